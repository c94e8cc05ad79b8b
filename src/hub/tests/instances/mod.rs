//! Hubs of several instances at random, on a bus that cuts connections, loses what channels bring, restarts empty and goes
//! back to an old state, under a clock of its own. Each member has each message once and in order, or is told.
//!
//! A failure tells its seed: `SIM_SEED` plays that one again, `SIM_ROUNDS` so many from there on.

mod store;
mod world;

use world::{Seen, World};

use crate::shard::testing::seeds;

const ROUNDS: u64 = 150;
const ROUNDS_LONG: u64 = 10_000;

#[test]
fn members_on_all_instances_have_one_order_and_what_is_lost_is_told() {
    let is_long = std::env::var_os("SHARDGATE_TEST_LONG").is_some_and(|value| value == "1");
    let seeds = seeds(if is_long { ROUNDS_LONG } else { ROUNDS });
    let (are_enough, mut seen) = (seeds.are_enough(), Seen::default());
    for seed in seeds {
        World::new(seed).play(&mut seen);
    }
    if std::env::var_os("SIM_TELL").is_some() {
        eprintln!("{seen:?}");
    }
    assert!(!are_enough || seen.is_everything(), "some things never happened: {seen:?}");
}

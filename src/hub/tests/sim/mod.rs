//! Hubs of several shards at random, with a mesh that loses letters and clients that stall, die, come back and renew their
//! tokens, under a clock of its own. What each client is told is checked frame by frame against what all others were.
//!
//! A failure tells its seed: `SIM_SEED` plays that one again, `SIM_ROUNDS` so many from there on.

mod client;
mod plan;
mod world;

use plan::Seen;
use world::World;

use crate::shard::testing::seeds;

/// Plans of a usual run, and of a long one.
const ROUNDS: u64 = 300;
const ROUNDS_LONG: u64 = 3000;

#[test]
fn what_is_lost_is_told_and_nothing_else_goes_wrong() {
    let is_long = std::env::var_os("SHARDGATE_TEST_LONG").is_some_and(|value| value == "1");
    let seeds = seeds(if is_long { ROUNDS_LONG } else { ROUNDS });
    let (are_enough, mut seen) = (seeds.are_enough(), Seen::default());
    for seed in seeds {
        seen += World::new(seed).play();
    }
    if std::env::var_os("SIM_TELL").is_some() {
        eprintln!("{seen:?}");
    }
    assert!(!are_enough || seen.is_everything(), "some things never happened: {seen:?}");
}

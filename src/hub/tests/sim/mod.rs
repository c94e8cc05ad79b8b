//! Hubs of several shards at random, with a mesh that loses letters and clients that stall, die, come back and renew their
//! tokens, under a clock of its own. What each client is told is checked frame by frame against what all others were.
//!
//! A failure tells its seed: `SIM_SEED` plays that one again, `SIM_ROUNDS` so many from there on.

mod client;
mod plan;
mod world;

use plan::Seen;
use world::World;

/// Plans of a usual run, and of a long one.
const ROUNDS: u64 = 300;
const ROUNDS_LONG: u64 = 3000;

#[test]
fn what_is_lost_is_told_and_nothing_else_goes_wrong() {
    let first = number("SIM_SEED");
    let is_long = std::env::var_os("SHARDGATE_TEST_LONG").is_some_and(|value| value == "1");
    let usual = match first {
        Some(_) => 1,
        None if is_long => ROUNDS_LONG,
        None => ROUNDS,
    };
    let rounds = number("SIM_ROUNDS").unwrap_or(usual);
    let first = first.unwrap_or(1);
    let mut seen = Seen::default();
    for seed in first..first + rounds {
        let _told = Told(seed);
        seen += World::new(seed).play();
    }
    if std::env::var_os("SIM_TELL").is_some() {
        eprintln!("{seen:?}");
    }
    assert!(rounds < ROUNDS || seen.is_everything(), "some things never happened: {seen:?}");
}

pub(super) fn number(variable: &str) -> Option<u64> {
    let value = std::env::var_os(variable)?.into_string().ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is {value:?}; it should be a number")))
}

/// Tells the seed of a failure, whatever it is that fails.
pub(super) struct Told(pub(super) u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SIM_SEED={} plays this again", self.0);
        }
    }
}

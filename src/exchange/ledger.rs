//! A shard's books: what it counts and logs of the requests that end on it, and the ids it gives them.

use crate::telemetry::{access_log::AccessLog, date::DateCache, ids::Sampler, metrics::Counters};

/// One per shard.
#[derive(Debug)]
pub struct Ledger {
    /// The shard's number.
    pub shard: u16,
    /// What it counted.
    pub counters: Counters,
    /// Its lines on the way to the log.
    pub access_log: AccessLog,
    /// The time of answers.
    pub dates: DateCache,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// Where its ids come from.
    pub rng: fastrand::Rng,
}

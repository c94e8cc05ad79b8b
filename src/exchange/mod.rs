//! What every floor above speaks of: one request and its answer, who sent it, and how it is refused.

mod client_note;
mod open_socket;
mod open_tunnel;
mod reject;
mod spans;
mod tether;
mod under_way;

pub use client_note::ClientNote;
pub use open_socket::OpenSocket;
pub use open_tunnel::OpenTunnel;
pub use reject::{Code, Reject};
pub use tether::{Tether, Tethers};
pub use under_way::{Exchange, Labels};

use crate::telemetry::{
    access_log::AccessLog, date::DateCache, exemplars::Exemplars, ids::Sampler, metrics::Counters, spans::SpanLog,
};

/// A shard's books: what it counts and logs of the requests that end on it, and the ids it gives them. One per shard.
#[derive(Debug)]
pub struct Ledger {
    /// The shard's number.
    pub shard: u16,
    /// What it counted.
    pub counters: Counters,
    /// Traces that stand for requests.
    pub exemplars: Exemplars,
    /// Its lines on the way to the log.
    pub access_log: AccessLog,
    /// Its spans on the way to the exporter.
    pub spans: SpanLog,
    /// The time of answers.
    pub dates: DateCache,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// Where its ids come from.
    pub rng: fastrand::Rng,
}

impl Ledger {
    /// Empty books of the shard of this number; the seed makes its ids repeatable.
    pub fn new(shard: u16, access_log: AccessLog, seed: u64) -> Self {
        Self {
            shard,
            counters: Counters::default(),
            exemplars: Exemplars::default(),
            access_log,
            spans: SpanLog::default(),
            dates: DateCache::default(),
            sampler: Sampler::default(),
            rng: fastrand::Rng::with_seed(seed),
        }
    }
}

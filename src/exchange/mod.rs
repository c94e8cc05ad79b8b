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
pub use under_way::{Exchange, Labels, SpanNames};

use crate::telemetry::{access_log::AccessLog, date::DateCache, ids::Sampler, metrics::Counters, spans::SpanLog};

/// A shard's books: what it counts and logs of the requests that end on it, and the ids it gives them. One per shard.
#[derive(Debug)]
pub struct Ledger {
    /// The shard's number.
    pub shard: u16,
    /// What it counted.
    pub counters: Counters,
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

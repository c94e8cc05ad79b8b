//! The closed list of what may cross from one thread to another.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::Arc};

use crate::{
    accounts::{Outcome, Question},
    auth::{Issuer, KeySet, Revocation},
    bus::desk::{Slip, Ticket},
    config::Config,
    gateway::{Pages, Plan, rate_limit},
    sessions::Heard,
    shard::Instant,
    telemetry::{dependency::Databases, metrics::Counters},
    upstream::Report,
};

/// What one thread tells another. Every letter is a control letter: none is ever lost.
#[derive(Debug)]
pub(super) enum Letter {
    /// Control → shard and bridge: work by this plan from now on.
    Plan(Arc<Plan>),
    /// Control → shard: check tokens with these keys from now on.
    Keys(Arc<KeySet>),
    /// Control → shard: say this of the gateway's health.
    Pages(Pages),
    /// Control → shard: send your counters.
    Scrape,
    /// Control → shard: end connections after the answer under way.
    EndConnections,
    /// Control → shard: empty the accept queues, close the listeners, then close what is idle.
    StopAccepting,
    /// Control → shard: the time is nearly up: refuse what has no answer yet.
    RefuseUnanswered,
    /// Control → shard and bridge: the time is up.
    Stop,
    /// Control → bridge: go on by this configuration, and sign with this.
    Configuration(Arc<Config>, Option<Issuer>),
    /// Shard → bridge: an operation on an account, or whether anybody waits for it.
    Account(Box<Slip<Question>>),
    /// Bridge → shard: look whether the client still waits for this.
    Doubted(Ticket),
    /// Bridge → shard: what came of an operation.
    Told(Ticket, Outcome),
    /// Bridge → shard: these were revoked.
    Revoked(Revoked),
    /// Bridge → shard: everything revoked until then has been told.
    KnownUntil(Instant),
    /// Bridge → control: the log of revocations has lost entries.
    RevocationsLost,
    /// Bridge → control: how much it has to do.
    Load(Load),
    /// Bridge → control: how the stores are.
    Databases(Box<Databases>),
    /// Shard → shard: a fresh connection for you, not a byte of it read.
    Connection(Accepted),
    /// Between shards, and with the bridge: requests that were admitted, or that they are counted.
    Limit(rate_limit::Message),
    /// Bridge → shard: Redis is away, so that this instance counts the fleet's limits alone; or it is there.
    LimitsAlone(bool),
    /// Shard → control: this generation of the configuration is in force here, and so its upstreams stand.
    Applied(Box<Scraped>),
    /// Shard → control: my counters, and how each upstream of that generation stands. One for each `Scrape`.
    Scraped(Box<Scraped>),
    /// Shard → control: somebody who may asks for the metrics.
    AskMetrics(Ticket),
    /// Control → shard: this is what all shards have counted.
    Metrics(Ticket, Arc<str>),
    /// Shard → control: a token of this issuer names a key that is not known.
    WantKeys(Arc<str>),
    /// Shard → control: the listeners are closed and no connection is left.
    Drained,
}

/// A connection that was accepted. Moves between shards.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) fd: OwnedFd,
    /// The client's.
    pub(super) address: SocketAddr,
    /// Which of the public listeners accepted it.
    pub(super) listener: u16,
}

/// Operations on accounts at the bridge, log-ins left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Those that have begun.
    pub(super) under_way: usize,
    /// Those that wait for their turn.
    pub(super) waiting: usize,
}

/// What was revoked lately.
#[derive(Clone, Debug)]
pub(super) struct Revoked {
    /// In the log's order.
    pub(super) entries: Arc<[Revocation]>,
    /// How far the log's clock is ahead of this machine's, in milliseconds; none for what was read in hindsight, which
    /// says nothing of how fast the log is.
    pub(super) clock_ahead_ms: Option<i64>,
}

impl Revoked {
    pub(super) fn of(heard: &Heard) -> Self {
        let clock_ahead_ms = (!heard.is_replay).then_some(heard.clock_ahead_ms);
        Self { entries: heard.entries.as_slice().into(), clock_ahead_ms }
    }
}

/// What a shard tells of itself.
#[derive(Debug)]
pub(super) struct Scraped {
    /// What it counted.
    pub(super) counters: Counters,
    /// The generation that the reports are about.
    pub(super) generation: u64,
    /// In the order of the plan's upstreams.
    pub(super) reports: Vec<Report>,
}

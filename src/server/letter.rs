//! The closed lists of what may cross from one thread to another: one for each kind of reader.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::Arc};

use crate::{
    accounts::{Outcome, Question},
    auth::{Issuer, KeySet, Revocation},
    bus::{
        desk::{Slip, Ticket},
        mesh::Letters,
    },
    config::Config,
    gateway::{
        Pages, Plan,
        rate_limit::counter::{Counted, Hits},
    },
    sessions::Heard,
    shard::Instant,
    telemetry::{dependency::Databases, metrics::Counters},
    upstream::Report,
};

/// Which lists the threads of the process read.
#[derive(Debug)]
pub(super) enum AllLetters {}

impl Letters for AllLetters {
    type Control = ToControl;
    type Bridge = ToBridge;
    type Shard = ToShard;
}

/// What a shard is told.
#[derive(Debug)]
pub(super) enum ToShard {
    /// By control: work by this plan from now on.
    Plan(Arc<Plan>),
    /// By control: check tokens with these keys from now on.
    Keys(Arc<KeySet>),
    /// By control: say this of the gateway's health.
    Pages(Pages),
    /// By control: send your counters.
    Scrape,
    /// By control: end connections after the answer under way.
    EndConnections,
    /// By control: empty the accept queues, close the listeners, then close what is idle.
    StopAccepting,
    /// By control: the time is nearly up: refuse what has no answer yet.
    RefuseUnanswered,
    /// By control: the time is up.
    Stop,
    /// By control: this is what all shards have counted.
    Metrics(Ticket, Arc<str>),
    /// By the bridge: look whether the client still waits for this.
    Doubted(Ticket),
    /// By the bridge: what came of an operation.
    Told(Ticket, Outcome),
    /// By the bridge: these were revoked.
    Revoked(Revoked),
    /// By the bridge: everything revoked until then has been told.
    KnownUntil(Instant),
    /// By the bridge: Redis is away, so that this instance counts the fleet's limits alone; or it is there.
    LimitsAlone(bool),
    /// By a shard: a fresh connection for you, not a byte of it read.
    Connection(Accepted),
    /// By the shard of this number: requests that were admitted there, whose key is at home here.
    Hits(usize, Hits),
    /// By a key's home, which is a shard or the bridge: they are counted.
    Counted(Counted),
}

/// What the control thread is told.
#[derive(Debug)]
pub(super) enum ToControl {
    /// By a shard: the generation of the configuration that it tells of is in force here, and so its upstreams stand.
    Applied(Box<Scraped>),
    /// By a shard: my counters, and how each upstream of that generation stands. One for each `Scrape`.
    Scraped(Box<Scraped>),
    /// By a shard: somebody who may asks for the metrics.
    AskMetrics(ReplyTo),
    /// By a shard: a token of this issuer names a key that is not known.
    WantKeys(Arc<str>),
    /// By the shard of this number: the listeners are closed and no connection is left.
    Drained(usize),
    /// By the bridge: the log of revocations has lost entries.
    RevocationsLost,
    /// By the bridge: how much it has to do.
    Load(Load),
    /// By the bridge: how the stores are.
    Databases(Box<Databases>),
}

/// What the bridge is told.
#[derive(Debug)]
pub(super) enum ToBridge {
    /// By control: count the fleet's limits by this plan.
    Plan(Arc<Plan>),
    /// By control: go on by this configuration, and sign with this.
    Configuration(Arc<Config>, Option<Issuer>),
    /// By control: the time is up.
    Stop,
    /// By the shard of this number: an operation on an account, or whether anybody waits for it.
    Account(usize, Box<Slip<Question>>),
    /// By the shard of this number: requests that were admitted there.
    Hits(usize, Hits),
}

/// Who waits for an answer: a ticket of a shard's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ReplyTo {
    pub(super) shard: usize,
    pub(super) ticket: Ticket,
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
    /// Its number.
    pub(super) shard: usize,
    /// What it counted.
    pub(super) counters: Counters,
    /// The generation that the reports are about.
    pub(super) generation: u64,
    /// In the order of the plan's upstreams.
    pub(super) reports: Vec<Report>,
}

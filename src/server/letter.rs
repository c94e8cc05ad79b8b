//! The closed lists of what may cross from one thread to another: one for each kind of reader and lane.
//!
//! Control letters are never lost. A thread that has not taken 65,536 of one sender's ends the process
//! ([`SPILL_MAX`](crate::bus::mesh::SPILL_MAX)), and it is stuck then, as nothing that clients do comes near:
//!
//! | letters | as many wait for one reader, at most |
//! | --- | --- |
//! | snapshots (`Plan`, `Keys`, `Certificates`, `Configuration`), `Pages`, what a drain says | one for each reload or change; pages only when every shard has told |
//! | `Instances` | one each second, when names of instances have other addresses |
//! | `Revoked`, `KnownUntil`, `RevocationsLost`, `LimitsAlone`, `Bus` | some each second: one for each look at the log, one for each change of Redis |
//! | `Connection` | as many as may be open; a shard that is handed one counts as more loaded |
//! | `Account`, and `Told`, `Doubted` in return | 4,096 operations that are waited for, each with a withdrawal; when so many wait for the bridge, the next is refused |
//! | `AskMetrics`, and `Metrics` in return | one for each shard |
//! | `Scrape`, and `Scraped`, `Applied` in return | 64, and one for each reload |
//! | `Spans`, and `SpansTaken` in return | 4 for each shard: it has no more batches |
//! | `WantKeys` | one each second for each issuer |
//! | `Counted` | 1,024: so many hits a shard tells a home without an answer |
//! | `Operated` | one for each change by an operator, and one for each reload |
//! | `Probed` | one for each instance whose probes change their verdict, which takes two probes at the least |
//! | `Load`, `Databases`, `BusHeard`, `BusRefusals`, `Drained` | one or two each second; one |
//! | `Bus`, `BusRefused`, `EventsRefused` | one for each change of Redis |
//!
//! Of these the abort is right for the first four rows: without a revocation a session lives on, without a snapshot a
//! shard is of another configuration or asks who is gone, without its letter a socket is lost. What may be lost goes over the droppable lane, is
//! counted, and has at its definition what repairs the loss.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use super::scrapes::{Texts, Wanted};
use crate::{
    accounts::{Outcome, Question},
    auth::{Issuer, KeySet, Revocation},
    bus::{
        desk::{DeskLetter, Ticket},
        mesh::Letters,
    },
    certificates::Certificates,
    config::Config,
    gateway::{
        Instances, Pages, Plan, Suspect,
        rate_limit::{
            To,
            counter::{Counted, Hits, Owed},
        },
    },
    hub::{
        bus::{BusAnswer, BusRequest},
        letter::RoomLetter,
    },
    sessions::LogUpdate,
    shard::Instant,
    telemetry::{dependency::Databases, exemplars::Shown, metrics::Counters, slots::MetricSlot, spans::SpanBatch},
    upstream::{BackendAddress, InstanceReport, Orders, Report, probe::Verdict},
};

/// Which lists the threads of the process read.
#[derive(Debug)]
pub(super) enum AllLetters {}

impl Letters for AllLetters {
    type Control = ToControl;
    type Bridge = ToBridge;
    type Shard = ToShard;
    type DroppableToBridge = DroppableToBridge;
    type DroppableToShard = DroppableToShard;
}

/// What a shard is told.
#[derive(Debug)]
pub(super) enum ToShard {
    /// By control: work by this plan from now on.
    Plan(Arc<Plan>),
    /// By control: these upstreams of the plan have other backends from now on.
    Instances(Arc<Instances>),
    /// By control: check tokens with these keys from now on.
    Keys(Arc<KeySet>),
    /// By control: show clients these certificates from now on.
    Certificates(Arc<Certificates>),
    /// By control: say this of the gateway's health.
    Pages(Box<Pages>),
    /// By control: send your counters, and traces that stand for requests where those are wanted.
    Scrape { with_exemplars: bool },
    /// By control: end connections after the answer under way.
    EndConnections,
    /// By control: empty the accept queues, close the listeners, then close what is idle.
    StopAccepting,
    /// By control: the time is nearly up: refuse what has no answer yet.
    RefuseUnanswered,
    /// By control: the time is up.
    Stop,
    /// By control: a batch for spans is empty again.
    SpansTaken(SpanBatch),
    /// By control: this is what all shards have counted, for all who waited when it was asked, in the formats that they wanted.
    Metrics(Texts),
    /// By control: the probes of an instance have changed their verdict.
    Probed(Box<Probed>),
    /// By control: operators want this of backends, and nothing else. It stands over plans that follow.
    Operated(Arc<Orders>),
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
    /// By a key's home: hits that it was told of are counted.
    Counted(To, Counted),
    /// By the bridge: the bus between instances is there, with a new connection perhaps, or it is away.
    Bus(bool),
}

/// What a shard is told if there is room.
#[derive(Debug)]
pub(super) enum DroppableToShard {
    /// By the shard of this number: requests that were admitted there, whose key is at home here. Those that do not go are
    /// kept and told later.
    Hits(usize, Hits),
    /// By the hub of the shard of this number, to this one's; see [`RoomLetter`].
    Room(u16, Box<RoomLetter>),
    /// By a shard that has ejected an instance, or opened a circuit; see [`Suspect`]. Whoever misses it finds out by itself,
    /// with some more failures.
    Suspect(Box<Suspect>),
    /// By the bridge: what the bus says to the hub of this shard; see [`BusAnswer`].
    Bus(Box<BusAnswer>),
    /// By a key's home, of its own accord: so much is owed. Whoever misses it is told with the next.
    Owed(Owed),
}

/// What the control thread is told.
#[derive(Debug)]
pub(super) enum ToControl {
    /// By a shard: the generation of the configuration that it tells of is in force here, and so its upstreams stand.
    Applied(Box<Scraped>),
    /// By a shard: my counters, and how each upstream of that generation stands. One for each `Scrape`.
    Scraped(Box<Scraped>),
    /// By the shard of this number: some who may ask for the metrics, in these formats. Not again before it is answered.
    AskMetrics(usize, Wanted),
    /// By a shard: spans, to be exported. The batch goes back.
    Spans(SpanBatch),
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
    /// By the bridge: the bus between instances is there, or away.
    Bus(bool),
    /// By the bridge: the bus took so long to bring back what was said on it.
    BusHeard(Duration),
    /// By the bridge: Redis refuses what the bus needs. Once, until it is there again.
    BusRefused,
    /// By the bridge: so many commands were refused.
    BusRefusals(u64),
    /// By the bridge: lifecycle events are refused, or are not any more.
    EventsRefused(bool),
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
    Account(usize, Box<DeskLetter<Question>>),
}

/// What the bridge is told if there is room.
#[derive(Debug)]
pub(super) enum DroppableToBridge {
    /// By the shard of this number: requests that were admitted there. Those that do not go are kept and told later.
    Hits(usize, Hits),
    /// By the hub of the shard of this number, for the bus between instances; see [`BusRequest`].
    Rooms(u16, Box<BusRequest>),
}

// Rings set aside so much for each of their letters, from the start: what is larger is boxed.
const _: () = assert!(size_of::<ToShard>() <= 64 && size_of::<ToControl>() <= 64 && size_of::<ToBridge>() <= 96);
const _: () = assert!(size_of::<DroppableToShard>() <= 48 && size_of::<DroppableToBridge>() <= 48);

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

/// What probes say of an instance from now on. Moves to every shard.
#[derive(Clone, Debug)]
pub(super) struct Probed {
    /// Of the plan that the upstream's place is of. A shard that runs another one is told by what follows that one.
    pub(super) generation: u64,
    /// The upstream's place in the plan.
    pub(super) upstream: usize,
    pub(super) at: BackendAddress,
    pub(super) verdict: Verdict,
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
    pub(super) fn of(heard: &LogUpdate) -> Self {
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
    /// How late its regular timer was at worst, since it told last.
    pub(super) lag: Duration,
    /// Likewise, of each of their instances, with the upstream's place in the metrics.
    pub(super) instances: Vec<(MetricSlot, Vec<InstanceReport>)>,
    /// Where they were asked for.
    pub(super) exemplars: Vec<Shown>,
}

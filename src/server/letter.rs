//! The closed list of what may cross from one thread to another.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::Arc};

use crate::{
    auth::KeySet,
    bus::desk::Ticket,
    gateway::{Pages, Plan, rate_limit},
    telemetry::metrics::Counters,
    upstream::Report,
};

/// What one thread tells another. Every letter is a control letter: none is ever lost.
#[derive(Debug)]
pub(super) enum Letter {
    /// Control → shard: work by this plan from now on.
    Plan(Arc<Plan>),
    /// Control → shard: check tokens with these keys from now on.
    Keys(Arc<KeySet>),
    /// Control → shard: say this of the gateway's health.
    Pages(Pages),
    /// Control → shard: send your counters.
    Scrape,
    /// Control → shard: end connections after the answer under way.
    EndConnections,
    /// Control → shard: empty the accept queue, close the listener, then close what is idle.
    StopAccepting,
    /// Control → shard: the time is up.
    Stop,
    /// Shard → shard: a fresh connection for you, not a byte of it read.
    Connection(OwnedFd, SocketAddr),
    /// Shard → shard: requests that were admitted, or that they are counted.
    Limit(rate_limit::Message),
    /// Shard → control: this generation of the configuration is in force here, and so its upstreams stand.
    Applied(Box<Scraped>),
    /// Shard → control: my counters, and how each upstream of that generation stands. One for each `Scrape`.
    Scraped(Box<Scraped>),
    /// Shard → control: somebody who may asks for the metrics.
    AskMetrics(Ticket),
    /// Control → shard: this is what all shards have counted.
    Metrics(Ticket, Arc<str>),
    /// Shard → control: the listener is closed and no connection is left.
    Drained,
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

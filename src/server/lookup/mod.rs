//! The names and lists of instances, followed: what is known of them is in [`Discovery`] and [`Lists`]; here it is asked for,
//! and told to whoever compiles plans.
//!
//! A configuration that is to be taken has its names followed by itself, as it says, beside the one in force: nothing of it
//! acts before it is taken, and when it is refused nothing is left of it.

mod files;
mod following;
mod registry;
mod said;
mod sources;

use std::{collections::BTreeSet, net::SocketAddr};

use tokio::time::sleep;

use crate::{
    config::{self, Config, DnsAddress},
    gateway::{self, Addresses, Instances, Moved, Wanted},
    shard::{Instant, clock},
    telemetry::metrics::{NAMES_MAX, NameCounters},
    upstream::{DiscoverySettings, Instance, Known, NoAddress, Source},
};
pub(super) use files::read_listing;
use following::Following;
use sources::{Ask, Sources};

/// One per process, on the control thread.
#[derive(Debug)]
pub(super) struct Lookups<A = Sources> {
    /// What the configuration in force names.
    in_force: Following<A>,
    /// What one names that is to be taken.
    candidate: Option<Candidate<A>>,
    /// The instances that the shards have, in the order of the plan's upstreams.
    instances: Vec<Box<[Instance]>>,
    /// What was told of each upstream's instances that are the gateway's own listeners, in the same order.
    loops: Vec<BTreeSet<String>>,
}

#[derive(Debug)]
struct Candidate<A> {
    following: Following<A>,
    /// What is waited for; nothing once that was told.
    wait: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    wanted: Wanted,
    due: Instant,
}

/// What has come of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// What a start or a reload waited for is known, or the time is up.
    Ready,
    /// Names have other addresses.
    Changed,
}

impl Lookups {
    /// Follows no name yet.
    pub(super) fn new(config: &Config) -> Self {
        Self::by(Sources::new(config), settings(&config.discovery))
    }

    /// Begins to follow the names of a configuration that is to be taken, beside those of the one in force, and as it says;
    /// says how many are waited for. Those are they that nobody has asked for before.
    pub(super) fn begin(&mut self, config: &Config) -> usize {
        let sources = self.in_force.sources.fork(config);
        self.begin_by(sources, config)
    }

    /// What is done every second: the system's files are looked at, by which names are looked up.
    pub(super) fn look(&mut self) {
        let candidate = self.candidate.as_mut().map(|candidate| &mut candidate.following);
        for following in [Some(&mut self.in_force), candidate].into_iter().flatten() {
            if following.asks_dns() {
                following.sources.resolver.look();
            }
        }
    }
}

impl<A: Ask> Lookups<A> {
    fn by(sources: A, settings: DiscoverySettings) -> Self {
        let in_force = Following::new(sources, settings);
        Self { in_force, candidate: None, instances: Vec::new(), loops: Vec::new() }
    }

    fn begin_by(&mut self, sources: A, config: &Config) -> usize {
        let mut wanted = Addresses::wanted(config);
        let following = self.in_force.fork(sources, settings(&config.discovery), wanted.clone());
        wanted.names.retain(|name| self.in_force.discovery.known(name).is_none());
        wanted.sources.retain(|source| self.in_force.lists.known(source).is_none());
        let count = wanted.names.len() + wanted.sources.len();
        // Whoever reloads before names were looked up does not begin to wait anew: it could go on for ever.
        let waited = self.candidate.as_ref().and_then(|candidate| candidate.wait.as_ref());
        let due = clock::now() + config.runtime.lookup_timeout;
        let wait = Wait { wanted, due: waited.map_or(due, |wait| wait.due.min(due)) };
        self.candidate = Some(Candidate { following, wait: Some(wait) });
        count
    }

    /// What was begun is in force from now on.
    pub(super) fn adopt(&mut self) {
        if let Some(Candidate { mut following, .. }) = self.candidate.take() {
            following.join(&self.in_force);
            self.in_force = following;
        }
    }

    /// What was begun is not taken.
    pub(super) fn give_up(&mut self) {
        self.candidate = None;
    }

    /// Asks for what is due and takes answers until there is news. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> News {
        loop {
            let now = clock::now();
            let Self { in_force, candidate, .. } = self;
            in_force.ask_due(now);
            in_force.serve(now);
            let mut due = in_force.discovery.changes_at().min(in_force.asks_at());
            if let Some(Candidate { following, wait }) = candidate {
                following.ask_due(now);
                following.serve(now);
                if wait.take_if(|wait| wait.is_over(following, now)).is_some() {
                    return News::Ready;
                }
                let wait = wait.as_ref().map_or(Instant::NEVER, |wait| wait.due);
                // Whether anything has changed is asked when it is in force.
                due = due.min(wait).min(following.asks_at());
            }
            if in_force.discovery.take_changed(now) {
                return News::Changed;
            }
            let of_candidate = async {
                match candidate {
                    Some(candidate) => (candidate.following.answer().await, &mut candidate.following),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = in_force.answer() => in_force.take(told, None),
                (told, following) = of_candidate => following.take(told, Some(in_force)),
                () = sleep(due.since(now)), if due != Instant::NEVER => {}
            }
        }
    }

    /// Waits until what was begun can be taken.
    pub(super) async fn ready(&mut self) {
        while self.next().await != News::Ready {}
    }

    /// What is known of all names of a configuration: of the one that is to be taken, while there is one. The shards are
    /// told with the plan that is made of it.
    pub(super) fn addresses(&self, config: &Config) -> Addresses {
        let following = self.candidate.as_ref().map_or(&self.in_force, |candidate| &candidate.following);
        Self::known(following, config)
    }

    fn known(following: &Following<A>, config: &Config) -> Addresses {
        let of = |known: &Known| {
            if !known.addresses.is_empty() {
                return Ok(known.addresses.clone());
            }
            let late = NoAddress::Late(config.runtime.lookup_timeout);
            Err(known.error.clone().filter(|error| !matches!(error, NoAddress::Late(_))).unwrap_or(late))
        };
        let names = following.discovery.names().map(|(name, known)| (name.into(), of(known))).collect();
        Addresses::new(names, following.serving(), settings(&config.discovery))
    }

    /// The shards have all that is known now, with the plan of this configuration.
    pub(super) fn told(&mut self, config: &Config, listeners: &[SocketAddr]) {
        let addresses = Self::known(&self.in_force, config);
        self.instances = gateway::instances(config, &addresses);
        let loops = |upstream| gateway::own_listener_loops([upstream], &addresses, listeners).into_iter().collect();
        self.loops = config.upstreams.iter().map(loops).collect();
        self.in_force.discovery.told(clock::now());
    }

    /// The instances that the shards have, in the order of the plan's upstreams.
    pub(super) fn current(&self) -> &[Box<[Instance]>] {
        &self.instances
    }

    /// What the shards are to be told of the names of the configuration in force, if it is anything.
    pub(super) fn instances(
        &mut self,
        config: &Config,
        listeners: &[SocketAddr],
        generation: u64,
    ) -> Option<Instances> {
        let addresses = Self::known(&self.in_force, config);
        let zone = config.runtime.zone.as_ref().map(|zone| &*zone.0);
        let instances = gateway::instances(config, &addresses);
        let mut changed = Vec::new();
        for (place, ((name, upstream), (new, old))) in
            config.upstreams.iter().zip(instances.iter().zip(&self.instances)).enumerate()
        {
            if new != old {
                changed.push(Moved::new(place, upstream, new, zone));
                // Whether an address is this machine's own is for the kernel to say: it is asked of those only that changed.
                let loops = gateway::own_listener_loops([(name, upstream)], &addresses, listeners);
                let loops: BTreeSet<_> = loops.into_iter().collect();
                loops.difference(&self.loops[place]).for_each(|warning| tracing::warn!("{warning}"));
                self.loops[place] = loops;
            }
        }
        self.instances = instances;
        (!changed.is_empty()).then_some(Instances { generation, changed })
    }

    /// The upstreams with a name or a list that fails.
    pub(super) fn unresolved(&self, config: &Config) -> BTreeSet<String> {
        let Following { discovery, lists, .. } = &self.in_force;
        let is_name_failing = |name: &str| discovery.known(name).is_none_or(Known::is_failing);
        let is_list_failing = |source: &Source| {
            lists.known(source).is_none_or(|known| known.is_failing() || known.names().any(is_name_failing))
        };
        let is_failing = |(name, upstream): &(&String, &config::Upstream)| {
            gateway::names(upstream).any(is_name_failing)
                || gateway::sources(name, upstream).any(|source| is_list_failing(&source))
        };
        config.upstreams.iter().filter(is_failing).map(|(name, _)| name.clone()).collect()
    }

    /// What a scrape tells of each name and each list.
    pub(super) fn counters(&self) -> Vec<(String, NameCounters)> {
        let now = clock::now();
        let of = |count: usize, since: Instant, failures: u64| NameCounters {
            addresses: i64::try_from(count).unwrap_or(i64::MAX),
            age: i64::try_from(now.since(since).as_secs()).unwrap_or(i64::MAX),
            failures,
        };
        let Following { discovery, lists, .. } = &self.in_force;
        // Lists first: how many names there are besides may be for outsiders to say.
        let lists = lists
            .sources()
            .map(|(source, known)| (source.to_string(), of(known.instances.len(), known.since, known.failures_total)));
        let names = discovery
            .names()
            .map(|(name, known)| (name.to_owned(), of(known.addresses.len(), known.since, known.failures_total)));
        let mut counters = Vec::new();
        let mut others = NameCounters::default();
        for (place, (name, counted)) in lists.chain(names).enumerate() {
            if place < NAMES_MAX && name != OTHERS {
                counters.push((name, counted));
            } else {
                others.join(&counted);
            }
        }
        counters.push((OTHERS.to_owned(), others));
        counters
    }
}

/// Names without a series of their own.
const OTHERS: &str = "other";

impl Wait {
    fn is_over<A: Ask>(&self, following: &Following<A>, now: Instant) -> bool {
        now >= self.due || following.is_heard(&self.wanted)
    }
}

fn settings(discovery: &config::Discovery) -> DiscoverySettings {
    DiscoverySettings {
        interval_min: discovery.interval_min,
        interval_max: discovery.interval_max,
        shrink_percent_max: discovery.max_shrink,
        takes_loopback: discovery.allow.contains(&DnsAddress::Loopback),
        takes_link_local: discovery.allow.contains(&DnsAddress::LinkLocal),
    }
}

#[cfg(test)]
mod tests;

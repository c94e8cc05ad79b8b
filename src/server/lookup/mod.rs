//! The names of instances, followed: what is known of them is in [`Discovery`]; here it is asked for, and told to whoever
//! compiles plans.
//!
//! A configuration that is to be taken has its names followed by itself, as it says, beside the one in force: nothing of it
//! acts before it is taken, and when it is refused nothing is left of it.

mod following;
mod said;

use std::{collections::BTreeSet, net::SocketAddr};

use tokio::time::sleep;

use super::resolver::{Resolve, Resolver};
use crate::{
    config::{self, Config, DnsAddress},
    gateway::{self, Addresses, Instances, Moved},
    shard::{Instant, clock},
    telemetry::metrics::{NAMES_MAX, NameCounters},
    upstream::{DiscoverySettings, Instance, Known, NoAddress},
};
use following::Following;

/// One per process, on the control thread.
#[derive(Debug)]
pub(super) struct Lookups<R = Resolver> {
    /// What the configuration in force names.
    in_force: Following<R>,
    /// What one names that is to be taken.
    candidate: Option<Candidate<R>>,
    /// The instances that the shards have, in the order of the plan's upstreams.
    instances: Vec<Box<[Instance]>>,
    /// What was told of instances that are the gateway's own listeners.
    loops: Vec<String>,
}

#[derive(Debug)]
struct Candidate<R> {
    following: Following<R>,
    /// What is waited for; nothing once that was told.
    wait: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    names: BTreeSet<Box<str>>,
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
        Self::by(Resolver::new(&config.discovery.nameservers), settings(&config.discovery))
    }

    /// Begins to follow the names of a configuration that is to be taken, beside those of the one in force, and as it says;
    /// says how many are waited for. Those are they that nobody has asked for before.
    pub(super) fn begin(&mut self, config: &Config) -> usize {
        self.begin_by(Resolver::new(&config.discovery.nameservers), config)
    }

    /// What is done every second: other files of the system have the names asked for anew.
    pub(super) fn look(&mut self) {
        let candidate = self.candidate.as_mut().map(|candidate| &mut candidate.following);
        for following in [Some(&mut self.in_force), candidate].into_iter().flatten() {
            if following.discovery.names().next().is_some() && following.resolver.look() {
                following.discovery.ask_all(clock::now());
            }
        }
    }
}

impl<R: Resolve> Lookups<R> {
    fn by(resolver: R, settings: DiscoverySettings) -> Self {
        let in_force = Following::new(resolver, settings);
        Self { in_force, candidate: None, instances: Vec::new(), loops: Vec::new() }
    }

    fn begin_by(&mut self, resolver: R, config: &Config) -> usize {
        let names = Addresses::wanted(config);
        let following = self.in_force.fork(resolver, settings(&config.discovery), &names);
        let new = names.into_iter().filter(|name| self.in_force.discovery.known(name).is_none()).collect();
        let wait = Wait { names: new, due: clock::now() + config.runtime.lookup_timeout };
        let count = wait.names.len();
        self.candidate = Some(Candidate { following, wait: Some(wait) });
        count
    }

    /// What was begun is in force from now on.
    pub(super) fn adopt(&mut self) {
        if let Some(Candidate { mut following, .. }) = self.candidate.take() {
            following.discovery.join(&self.in_force.discovery);
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
            let mut due = in_force.discovery.due();
            if let Some(Candidate { following, wait }) = candidate {
                following.ask_due(now);
                if wait.take_if(|wait| wait.is_over(following, now)).is_some() {
                    return News::Ready;
                }
                let wait = wait.as_ref().map_or(Instant::NEVER, |wait| wait.due);
                // Whether anything has changed is asked when it is in force.
                due = due.min(wait).min(following.discovery.asks_at());
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
                told = in_force.answer() => in_force.take(told, |_| false),
                (told, following) = of_candidate => {
                    following.take(told, |name| in_force.discovery.known(name).is_some());
                }
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

    fn known(following: &Following<R>, config: &Config) -> Addresses {
        let of = |known: &Known| {
            if !known.addresses.is_empty() {
                return Ok(known.addresses.clone());
            }
            let late = NoAddress::Late(config.runtime.lookup_timeout);
            Err(known.error.clone().filter(|error| !matches!(error, NoAddress::Late(_))).unwrap_or(late))
        };
        Addresses::new(following.discovery.names().map(|(name, known)| (name.into(), of(known))).collect())
    }

    /// The shards have all that is known now, with the plan of this configuration.
    pub(super) fn told(&mut self, config: &Config, listeners: &[SocketAddr]) {
        let addresses = Self::known(&self.in_force, config);
        self.instances = gateway::instances(config, &addresses);
        self.loops = gateway::own_listener_loops(config, &addresses, listeners);
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
        let loops = gateway::own_listener_loops(config, &addresses, listeners);
        loops.iter().filter(|warning| !self.loops.contains(warning)).for_each(|warning| tracing::warn!("{warning}"));
        self.loops = loops;
        let zone = config.runtime.zone.as_ref().map(|zone| &*zone.0);
        let instances = gateway::instances(config, &addresses);
        let places = instances.iter().zip(&self.instances).enumerate().zip(config.upstreams.values());
        let changed = places.filter(|((_, (new, old)), _)| new != old);
        let changed = changed.map(|((place, (new, _)), upstream)| Moved::new(place, upstream, new, zone));
        let changed: Vec<_> = changed.collect();
        self.instances = instances;
        (!changed.is_empty()).then_some(Instances { generation, changed })
    }

    /// The upstreams with a name whose look-ups fail.
    pub(super) fn unresolved(&self, config: &Config) -> BTreeSet<String> {
        let is_failing = |name: &str| self.in_force.discovery.known(name).is_none_or(Known::is_failing);
        let failing = config.upstreams.iter().filter(|(_, upstream)| gateway::names(upstream).any(is_failing));
        failing.map(|(name, _)| name.clone()).collect()
    }

    /// What a scrape tells of each name.
    pub(super) fn counters(&self) -> Vec<(String, NameCounters)> {
        let now = clock::now();
        let mut counters = Vec::new();
        let mut others = NameCounters::default();
        for (place, (name, known)) in self.in_force.discovery.names().enumerate() {
            let of_name = NameCounters {
                addresses: i64::try_from(known.addresses.len()).unwrap_or(i64::MAX),
                age: i64::try_from(now.since(known.since).as_secs()).unwrap_or(i64::MAX),
                failures: known.failures_total,
            };
            if place < NAMES_MAX && name != OTHERS {
                counters.push((name.to_owned(), of_name));
            } else {
                others.join(&of_name);
            }
        }
        counters.push((OTHERS.to_owned(), others));
        counters
    }
}

/// Names without a series of their own.
const OTHERS: &str = "other";

impl Wait {
    fn is_over<R: Resolve>(&self, following: &Following<R>, now: Instant) -> bool {
        now >= self.due || self.names.iter().all(|name| following.is_heard(name))
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

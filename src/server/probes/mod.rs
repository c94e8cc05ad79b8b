//! Probes at work: asks whom `upstream::probe` says, and keeps what came of it for health and metrics. One per process, on the
//! control thread.

mod ask;
mod told;

use std::{cell::Cell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::sleep,
};

use self::told::Changes;
use super::letter;
use crate::{
    certificates::Services,
    config::Health,
    gateway::Plan,
    shard::{Instant, clock},
    telemetry::{
        metrics::{self, ProbeCounters, ProbeResult},
        slots::MetricSlot,
    },
    upstream::{
        BackendAddress, Instance, InstanceReport,
        probe::{LastProbe, Probe, ProbeRules, Prober, Verdict},
    },
};

/// As many probes are under way at once, of all upstreams: each has a descriptor.
const UNDER_WAY_MAX: usize = 256;

/// All upstreams' probes.
pub(super) struct Probes {
    upstreams: BTreeMap<String, Probed>,
    /// Those of upstreams that have gone too.
    under_way: usize,
    numbers: Rc<Cell<u64>>,
    tell: UnboundedSender<Told>,
    told: UnboundedReceiver<Told>,
    /// What connections to instances that speak TLS are made by.
    services: Arc<Services>,
    /// Those that ended since somebody took them, each with its upstream's place in the metrics.
    ended: Vec<(MetricSlot, BackendAddress, metrics::Probed)>,
}

/// An upstream that is probed.
struct Probed {
    prober: Prober,
    health: Rc<Health>,
    slot: MetricSlot,
    counts: [u64; ProbeResult::COUNT],
    changes: Changes,
}

/// A probe of an upstream has ended. At most [`UNDER_WAY_MAX`] are waiting.
struct Told {
    upstream: String,
    probe: Probe,
    result: ProbeResult,
}

/// Tells what came of a probe, whatever ends its task.
struct Telling {
    told: Option<Told>,
    tell: UnboundedSender<Told>,
}

impl Telling {
    async fn ask(mut self, health: Rc<Health>, services: Arc<Services>) {
        let Some(told) = &mut self.told else { return };
        told.result = ask::probe(&health, &told.probe.at, services.get(&told.upstream)).await;
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            // Nobody listens any more when the process ends.
            let _ = self.tell.send(told);
        }
    }
}

/// An instance's verdict is another one, or it is up and has answered well again.
pub(super) struct Changed {
    upstream: String,
    at: BackendAddress,
    verdict: Verdict,
}

impl Changed {
    /// What shards of this plan are told.
    pub(super) fn letter(self, plan: &Plan) -> Option<letter::Probed> {
        let upstream = plan.upstreams.iter().position(|known| known.name == self.upstream)?;
        let Self { at, verdict, .. } = self;
        Some(letter::Probed { generation: plan.generation, upstream, at, verdict })
    }
}

impl Probes {
    pub(super) fn new() -> Self {
        let (tell, told) = unbounded_channel();
        let (upstreams, services, numbers) = (BTreeMap::new(), Arc::default(), Rc::default());
        Self { upstreams, under_way: 0, numbers, tell, told, services, ended: Vec::new() }
    }

    /// Connections to instances that speak TLS are made by this from now on. Whoever is trusted by something else is asked at
    /// once.
    pub(super) fn trust(&mut self, services: &Arc<Services>) {
        let known = std::mem::replace(&mut self.services, Arc::clone(services));
        for (name, probed) in &mut self.upstreams {
            let is_same = match (known.get(name), services.get(name)) {
                (Some(one), Some(other)) => one.is_as(other),
                (one, other) => one.is_none() && other.is_none(),
            };
            if !is_same {
                probed.prober.ask_all(clock::now());
            }
        }
    }

    /// Takes other upstreams, or other instances of them, in the plan's order. What is known of those that stay is kept, new
    /// ones are asked at once.
    pub(super) fn set(&mut self, plan: &Plan, instances: &[Box<[Instance]>]) {
        let now = clock::now();
        let mut known = std::mem::take(&mut self.upstreams);
        for (upstream, instances) in plan.upstreams.iter().zip(instances) {
            let Some(health) = upstream.health.as_ref().filter(|health| health.kind().is_some()) else { continue };
            let rules =
                ProbeRules { interval: health.interval, down_after: health.down_after, up_after: health.up_after };
            let mut probed = known.remove(&upstream.name).unwrap_or_else(|| Probed {
                prober: Prober::new(rules, fastrand::u64(..), Rc::clone(&self.numbers)),
                health: Rc::new(health.clone()),
                slot: upstream.slot,
                counts: [0; ProbeResult::COUNT],
                changes: Changes::default(),
            });
            probed.prober.set(now, rules, instances);
            if *probed.health != *health {
                probed.health = Rc::new(health.clone());
                probed.prober.ask_all(now);
            }
            self.upstreams.insert(upstream.name.clone(), probed);
        }
    }

    /// The next change of a verdict. Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) -> Changed {
        loop {
            let now = clock::now();
            self.begin(now);
            for (upstream, probed) in &mut self.upstreams {
                probed.changes.tell_rest(upstream, now);
            }
            let due = self.due();
            let wait = due.map_or(Duration::MAX, |due| due.since(now));
            tokio::select! {
                Some(told) = self.told.recv() => {
                    if let Some(changed) = self.take(told) {
                        return changed;
                    }
                }
                () = sleep(wait), if due.is_some() => {}
            }
        }
    }

    /// When there is something to do, if nothing is told before.
    fn due(&self) -> Option<Instant> {
        let has_room = self.under_way < UNDER_WAY_MAX;
        let of_upstream = |probed: &Probed| {
            let next = probed.prober.poll_timeout().filter(|_| has_room);
            [next, probed.changes.due()].into_iter().flatten().min()
        };
        self.upstreams.values().filter_map(of_upstream).min()
    }

    /// Makes the probes that are due, whoever has waited longest first.
    fn begin(&mut self, now: Instant) {
        while self.under_way < UNDER_WAY_MAX {
            let next = self.upstreams.iter_mut().filter_map(|(name, probed)| {
                let due = probed.prober.poll_timeout().filter(|due| *due <= now)?;
                Some((due, name, probed))
            });
            let Some((_, name, probed)) = next.min_by_key(|(due, ..)| *due) else { return };
            let Some(probe) = probed.prober.poll_probe(now) else { return };
            self.under_way += 1;
            let told = Told { upstream: name.clone(), probe, result: ProbeResult::NotAsked };
            let telling = Telling { told: Some(told), tell: self.tell.clone() };
            tokio::task::spawn_local(telling.ask(Rc::clone(&probed.health), Arc::clone(&self.services)));
        }
    }

    fn take(&mut self, told: Told) -> Option<Changed> {
        let Told { upstream, probe, result } = told;
        self.under_way = self.under_way.saturating_sub(1);
        let now = clock::now();
        let probed = self.upstreams.get_mut(&upstream)?;
        probed.counts[result.index()] += 1;
        if result != ProbeResult::NotAsked {
            let is_good = result == ProbeResult::Good;
            let ended = if is_good { metrics::Probed::Good } else { metrics::Probed::Failed };
            self.ended.push((probed.slot, probe.at.clone(), ended));
        }
        let (before, verdict) = probed.prober.handle_result(now, &probe, result)?;
        probed.changes.tell(&upstream, &probe.at, before, verdict, result, now);
        Some(Changed { upstream, at: probe.at, verdict })
    }

    /// Those that ended since this was asked last.
    pub(super) fn take_ended(&mut self) -> Vec<(MetricSlot, BackendAddress, metrics::Probed)> {
        std::mem::take(&mut self.ended)
    }

    /// A shard that runs this plan tells how each instance stands there, in the plan's order.
    pub(super) fn told(&mut self, plan: &Plan, reports: &[(MetricSlot, Vec<InstanceReport>)]) {
        let now = clock::now();
        for (upstream, (_, reports)) in plan.upstreams.iter().zip(reports) {
            let Some(probed) = self.upstreams.get_mut(&upstream.name) else { continue };
            for report in reports.iter().filter(|report| report.is_failing_in_use()) {
                probed.prober.doubt(now, report.id);
            }
        }
    }

    /// Asks all instances of an upstream as soon as may be; says whether it is probed.
    pub(super) fn ask_now(&mut self, upstream: &str) -> bool {
        let probed = self.upstreams.get_mut(upstream);
        probed.map(|probed| probed.prober.ask_all(clock::now())).is_some()
    }

    /// What is known of each instance of an upstream, in the order in which it was given them; `None` if it is not probed.
    pub(super) fn report(&self, upstream: &str) -> Option<Vec<(Verdict, Option<LastProbe>)>> {
        let probed = self.upstreams.get(upstream)?;
        Some(probed.prober.report().map(|(_, verdict, last)| (verdict, last)).collect())
    }

    /// What is published, by slot; nothing for upstreams that are not probed.
    pub(super) fn counters(&self) -> Vec<Option<ProbeCounters>> {
        let mut counters: Vec<Option<ProbeCounters>> = Vec::new();
        for probed in self.upstreams.values() {
            let slot = probed.slot.index();
            counters.resize_with(counters.len().max(slot + 1), || None);
            let instances_up = i64::try_from(probed.prober.up()).unwrap_or(i64::MAX);
            // Upstreams past the last slot share it.
            counters[slot].get_or_insert_default().join(&ProbeCounters { probes: probed.counts, instances_up });
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::task::LocalSet;

    use super::*;
    use crate::telemetry::slots::OTHER;

    const RULES: ProbeRules = ProbeRules { interval: Duration::from_secs(5), down_after: 3, up_after: 2 };

    /// Upstreams of a hundred instances each.
    fn probes(upstreams: u8) -> Probes {
        let mut probes = Probes::new();
        for upstream in 0..upstreams {
            let instance = |host: u8| {
                let address = SocketAddr::from(([127, 0, upstream, host], 9));
                Instance::new(BackendAddress { name: "a:9".into(), address: address.into() })
            };
            let mut prober = Prober::new(RULES, 1, Rc::clone(&probes.numbers));
            prober.set(clock::now(), RULES, &(0..100).map(instance).collect::<Vec<_>>());
            let counts = [u64::from(upstream); ProbeResult::COUNT];
            let health = Rc::new(Health::default());
            let probed = Probed { prober, health, slot: OTHER, counts, changes: Changes::default() };
            probes.upstreams.insert(upstream.to_string(), probed);
        }
        probes
    }

    fn on_local<T>(work: impl AsyncFnOnce() -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, work())
    }

    #[test]
    fn all_upstreams_together_have_so_many_under_way() {
        on_local(async || {
            let mut probes = probes(5);
            let now = clock::now();
            probes.begin(now);
            assert_eq!(probes.under_way, UNDER_WAY_MAX);
            assert_eq!(probes.due(), None, "somebody has to end first");
            let told = probes.told.recv().await.expect("one ends");
            probes.take(told);
            assert_eq!(probes.under_way, UNDER_WAY_MAX - 1);
            assert!(probes.due().is_some_and(|due| due <= now));
        });
    }

    #[test]
    fn a_probe_tells_whatever_ends_it() {
        on_local(async || {
            let mut probes = probes(1);
            probes.begin(clock::now());
            let probed = probes.upstreams.get_mut("0").expect("it is there");
            let first = probed.prober.report().next().map(|(at, ..)| at.clone()).expect("it has instances");
            // A task that is ended, as by a panic.
            let probe = Probe::for_test(first, 1);
            let told = Told { upstream: "0".to_owned(), probe, result: ProbeResult::NotAsked };
            let telling = Telling { told: Some(told), tell: probes.tell.clone() };
            let task = tokio::task::spawn_local(async move {
                let _telling = telling;
                panic!("as it should not");
            });
            assert!(task.await.is_err());
            let mut told = Vec::new();
            while let Ok(one) = probes.told.try_recv() {
                told.push(one);
            }
            assert!(told.iter().any(|told| told.result == ProbeResult::NotAsked), "of {}", told.len());
        });
    }

    #[test]
    fn upstreams_without_a_series_of_their_own_share_one() {
        let counters = probes(4).counters();
        let shared = counters.into_iter().flatten().next().expect("there is one");
        assert_eq!(shared.probes, [6; ProbeResult::COUNT]);
    }
}

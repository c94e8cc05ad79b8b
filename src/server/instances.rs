//! The instances that metrics tell of: what all shards and probes say of each, added up. One per process, on the control
//! thread.
//!
//! A shard forgets an instance that leaves and counts from nothing when it comes back; here it goes on where it was, for an
//! hour. There are no more than so many, so that whoever says which instances there are does not say how long a scrape is.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    gateway::Plan,
    shard::Instant,
    telemetry::{
        exposition::InstanceSeries,
        metrics::{InstanceCounters, InstanceOut, Names, Probed},
        slots::{MetricSlot, OTHER},
        table::{Micros, Sparse},
    },
    upstream::{BackendAddress, Instance, InstanceCounts, InstanceId, InstanceReport},
};

/// Instances that have series of their own.
const INSTANCES_MAX: usize = 4096;

/// How long an instance that has left keeps its series.
const KEPT: Duration = Duration::from_hours(1);

/// An instance, by its upstream's place in the metrics.
type Key = (MetricSlot, InstanceId);

/// All instances that have series.
#[derive(Debug, Default)]
pub(super) struct InstanceBook {
    known: BTreeMap<Key, Known>,
    /// Those that are there and found no place.
    unlisted: usize,
}

#[derive(Debug)]
struct Known {
    address: String,
    /// When it left; `None` while it is there.
    left_at: Option<Instant>,
    /// What was counted by shards that forgot it meanwhile.
    before: InstanceCounts,
    /// What each shard told last.
    shards: Vec<Option<InstanceReport>>,
    probes: [u64; Probed::COUNT],
}

impl InstanceBook {
    /// These are the instances now, in the order of the plan's upstreams.
    pub(super) fn set(&mut self, plan: &Plan, instances: &[Box<[Instance]>], now: Instant) {
        let there = plan.upstreams.iter().zip(instances);
        let there =
            there.flat_map(|(upstream, instances)| instances.iter().map(|instance| (upstream.slot, &instance.at)));
        self.set_all(there.map(|(slot, at)| ((slot, at.id()), at.label())), now);
    }

    fn set_all(&mut self, there: impl Iterator<Item = (Key, String)>, now: Instant) {
        let mut there: BTreeMap<_, _> = there.collect();
        let is_kept = |left_at: Instant| now.since(left_at) < KEPT;
        self.known.retain(|key, known| {
            match there.remove(key) {
                Some(_) => known.left_at = None,
                None => _ = known.left_at.get_or_insert(now),
            }
            known.left_at.is_none_or(is_kept)
        });
        // Those that left longest ago go first when there is no place.
        let surplus = (self.known.len() + there.len()).saturating_sub(INSTANCES_MAX);
        let mut left: Vec<_> = self.known.iter().filter_map(|(key, known)| Some((known.left_at?, *key))).collect();
        left.sort_unstable();
        let gone: BTreeSet<_> = left.into_iter().take(surplus).map(|(_, key)| key).collect();
        self.known.retain(|key, _| !gone.contains(key));
        let room = INSTANCES_MAX.saturating_sub(self.known.len());
        self.unlisted = there.len().saturating_sub(room);
        let fresh = |address| Known {
            address,
            left_at: None,
            before: InstanceCounts::default(),
            shards: Vec::new(),
            probes: [0; Probed::COUNT],
        };
        self.known.extend(there.into_iter().take(room).map(|(key, address)| (key, fresh(address))));
    }

    /// Those that are there and have no series.
    pub(super) const fn unlisted(&self) -> usize {
        self.unlisted
    }

    /// A shard tells of its instances.
    pub(super) fn told(&mut self, shard: usize, reports: &[(MetricSlot, Vec<InstanceReport>)]) {
        let reports = reports.iter().flat_map(|(slot, reports)| reports.iter().map(move |report| (slot, report)));
        // Upstreams that share a place may share instances too; of these the first one's is told, always.
        let mut others = BTreeSet::new();
        for (slot, report) in reports {
            if *slot == OTHER && !others.insert(report.id) {
                continue;
            }
            let Some(known) = self.known.get_mut(&(*slot, report.id)) else { continue };
            if known.shards.len() <= shard {
                known.shards.resize(shard + 1, None);
            }
            let before = known.shards[shard].replace(*report);
            // The shard had forgotten it, and counts anew.
            if let Some(before) = before.filter(|before| before.counted_since != report.counted_since) {
                add(&mut known.before, &before.counts);
            }
        }
    }

    /// A probe of an instance has ended.
    pub(super) fn probed(&mut self, slot: MetricSlot, at: &BackendAddress, result: Probed) {
        if let Some(known) = self.known.get_mut(&(slot, at.id())) {
            known.probes[result.index()] += 1;
        }
    }

    /// What is published, by upstream.
    pub(super) fn series(&mut self, names: &Names, now: Instant) -> Vec<InstanceSeries> {
        self.known.retain(|_, known| known.left_at.is_none_or(|left_at| now.since(left_at) < KEPT));
        let names = names.upstreams.names();
        let series = self.known.iter().filter_map(|((slot, _), known)| {
            Some(InstanceSeries {
                upstream: names.get(slot.index())?.clone(),
                address: known.address.clone(),
                is_there: known.left_at.is_none(),
                counters: known.counters(),
            })
        });
        series.collect()
    }
}

impl Known {
    fn counters(&self) -> InstanceCounters {
        let told = || self.shards.iter().flatten();
        let mut counts = self.before;
        let mut out = [None; InstanceOut::COUNT];
        for report in told() {
            add(&mut counts, &report.counts);
            if let Some(reason) = report.out {
                *out[reason.index()].get_or_insert(0) += 1;
            }
        }
        InstanceCounters {
            // Nobody knows before the first shard has told.
            up: i64::from(told().count() > 0 && out.iter().all(Option::is_none)),
            out: Sparse(out),
            in_flight: told().map(|report| i64::from(report.in_flight)).sum(),
            latency: Micros(told().map(|report| u64::from(report.latency_us)).max().unwrap_or(0)),
            requests: counts.requests,
            ejections: counts.ejections,
            probes: self.probes,
        }
    }
}

fn add(sum: &mut InstanceCounts, more: &InstanceCounts) {
    sum.ejections += more.ejections;
    for (sum, more) in sum.requests.iter_mut().zip(more.requests) {
        *sum += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Outcome;

    fn at(port: u16) -> BackendAddress {
        let address = std::net::SocketAddr::from(([10, 0, 0, 1], port));
        BackendAddress { name: address.to_string().into(), address: address.into() }
    }

    fn report(port: u16, answered: u64) -> InstanceReport {
        let mut counts = InstanceCounts::default();
        counts.requests[Outcome::Answered.index()] = answered;
        InstanceReport {
            id: at(port).id(),
            counted_since: NOW,
            out: None,
            out_until: None,
            error: None,
            in_flight: 2,
            latency_us: 50,
            counts,
        }
    }

    fn slot() -> MetricSlot {
        names().upstreams.claim("shop")
    }

    fn names() -> Names {
        let mut names = Names::default();
        names.upstreams.claim("shop");
        names
    }

    fn set(book: &mut InstanceBook, ports: impl Iterator<Item = u16>, now: Instant) {
        book.set_all(ports.map(|port| ((slot(), at(port).id()), at(port).label())), now);
    }

    /// `address there? up in-flight answered` of each that is published.
    fn told(book: &mut InstanceBook, now: Instant) -> Vec<String> {
        let mut told: Vec<_> = book
            .series(&names(), now)
            .into_iter()
            .map(|InstanceSeries { address, is_there, counters, .. }| {
                let answered = counters.requests[Outcome::Answered.index()];
                format!("{address} {is_there} {} {} {answered}", counters.up, counters.in_flight)
            })
            .collect();
        told.sort_unstable();
        told
    }

    const NOW: Instant = Instant::START;

    #[test]
    fn shards_are_added_up_and_the_worst_says_whether_it_is_up() {
        let mut book = InstanceBook::default();
        set(&mut book, 1..3, NOW);
        assert_eq!(told(&mut book, NOW), ["10.0.0.1:1 true 0 0 0", "10.0.0.1:2 true 0 0 0"]);
        book.told(0, &[(slot(), vec![report(1, 5), report(2, 1)])]);
        book.told(1, &[(slot(), vec![report(1, 7), report(9, 9)])]);
        assert_eq!(told(&mut book, NOW), ["10.0.0.1:1 true 1 4 12", "10.0.0.1:2 true 1 2 1"]);
        let out = InstanceReport { out: Some(InstanceOut::Ejected), ..report(1, 8) };
        book.told(1, &[(slot(), vec![out])]);
        book.probed(slot(), &at(1), Probed::Failed);
        let series = book.series(&names(), NOW);
        let one = series.iter().find(|series| series.address == "10.0.0.1:1").expect("it is there");
        assert_eq!((one.counters.up, one.counters.latency, one.counters.probes), (0, Micros(50), [0, 1]));
        assert_eq!(one.counters.out.0[InstanceOut::Ejected.index()], Some(1));
    }

    #[test]
    fn an_instance_of_two_upstreams_that_share_a_place_is_counted_once() {
        let mut book = InstanceBook::default();
        book.set_all([((OTHER, at(1).id()), at(1).label())].into_iter(), NOW);
        for _ in 0..100 {
            book.told(0, &[(OTHER, vec![report(1, 5)]), (OTHER, vec![report(1, 3)])]);
        }
        assert_eq!(told(&mut book, NOW), ["10.0.0.1:1 true 1 2 5"]);
    }

    #[test]
    fn one_that_flaps_between_two_addresses_has_two_series_however_long_it_does() {
        let mut book = InstanceBook::default();
        for second in 0..3600 {
            let now = NOW + Duration::from_secs(second.into());
            let port = 1 + second % 2;
            set(&mut book, port..=port, now);
            // Each time the shard counts anew.
            book.told(0, &[(slot(), vec![InstanceReport { counted_since: now, ..report(port, 1) }])]);
        }
        let end = NOW + KEPT;
        assert_eq!(told(&mut book, end), ["10.0.0.1:1 false 1 2 1800", "10.0.0.1:2 true 1 2 1800"]);
        // With another address each time it has as many as there may be, and what is there is always among them.
        set(&mut book, 10..10 + u16::try_from(INSTANCES_MAX).expect("it is"), end);
        for port in 20_000..20_100 {
            set(&mut book, port..=port, end + Duration::from_secs(1));
            assert_eq!((book.known.len(), book.unlisted()), (INSTANCES_MAX, 0));
            assert!(book.known[&(slot(), at(port).id())].left_at.is_none());
        }
    }

    #[test]
    fn one_that_left_keeps_what_was_counted_for_an_hour_and_goes_on_with_it() {
        let mut book = InstanceBook::default();
        set(&mut book, 1..3, NOW);
        book.told(0, &[(slot(), vec![report(1, 5)])]);
        set(&mut book, 2..3, NOW);
        assert_eq!(told(&mut book, NOW)[0], "10.0.0.1:1 false 1 2 5");
        // It comes back, and the shard has forgotten it.
        set(&mut book, 1..3, NOW + KEPT / 2);
        let anew = |answered| InstanceReport { counted_since: NOW + KEPT / 2, ..report(1, answered) };
        book.told(0, &[(slot(), vec![anew(6)])]);
        book.told(0, &[(slot(), vec![anew(7)])]);
        assert_eq!(told(&mut book, NOW)[0], "10.0.0.1:1 true 1 2 12", "also where it has counted more than before");
        set(&mut book, 2..3, NOW + KEPT);
        assert_eq!(told(&mut book, NOW + KEPT + KEPT - Duration::from_nanos(1)).len(), 2);
        assert_eq!(told(&mut book, NOW + KEPT + KEPT), ["10.0.0.1:2 true 0 0 0"]);
    }

    #[test]
    fn past_the_bound_those_that_left_make_room_and_the_rest_is_counted() {
        let most = u16::try_from(INSTANCES_MAX).expect("it is");
        let mut book = InstanceBook::default();
        set(&mut book, 0..most, NOW);
        set(&mut book, 10..most + 4, NOW + KEPT / 2);
        assert_eq!((book.known.len(), book.unlisted()), (INSTANCES_MAX, 0));
        assert_eq!(book.known.values().filter(|known| known.left_at.is_some()).count(), 6);
        set(&mut book, 0..most + 4, NOW + KEPT / 2);
        assert_eq!((book.known.len(), book.unlisted()), (INSTANCES_MAX, 4));
        set(&mut book, 0..1, NOW + KEPT / 2);
        assert_eq!(book.unlisted(), 0);
        assert_eq!(told(&mut book, NOW + KEPT * 2), ["10.0.0.1:0 true 0 0 0"]);
    }
}

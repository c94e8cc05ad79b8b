//! Active probes of one upstream: which instance is asked when, and what follows from the answers. A pure core: time and
//! chance are arguments, and whoever drives it does the asking.
//!
//! An instance's first good answer makes it up. From then on so many failures in a row make it unwell or down, by the last of
//! them, and so many good answers in a row up again.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use super::{BackendAddress, Instance, InstanceId};
use crate::{shard::Instant, telemetry::metrics::ProbeResult};

/// As many probes of an upstream are under way at once.
const UNDER_WAY_MAX: usize = 64;

/// Waits are shorter by up to this part, by chance, so that instances are not asked in step; never longer, so that so many
/// intervals are so long at most.
const JITTER_PART: u32 = 5;

/// The numbers of [`Prober`]. From the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRules {
    /// From the beginning of one probe to that of the next, at most.
    pub interval: Duration,
    /// Failures in a row that make an instance down.
    pub down_after: u32,
    /// Good answers in a row that make it up again.
    pub up_after: u32,
}

/// What probes say of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has given no good answer yet, and has not failed often enough.
    Unknown,
    /// It is well.
    Up,
    /// It is there, and says that it is not well.
    Unwell,
    /// Nothing that it should say comes from it.
    Down,
}

impl Verdict {
    /// Whether it is used.
    pub fn is_up(self) -> bool {
        self == Self::Up
    }

    /// Whether it is not used, unless there is nobody else.
    pub fn is_down(self) -> bool {
        matches!(self, Self::Unwell | Self::Down)
    }

    /// By the last of enough failures.
    fn of_failure(result: ProbeResult) -> Self {
        match result {
            ProbeResult::Status | ProbeResult::Body => Self::Unwell,
            _ => Self::Down,
        }
    }
}

/// One probe that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Who is asked.
    pub at: BackendAddress,
    /// An instance that went and came again is another one.
    number: u64,
    began: Instant,
}

#[cfg(test)]
impl Probe {
    /// One that no prober knows.
    pub(crate) fn for_test(at: BackendAddress, number: u64) -> Self {
        Self { at, number, began: Instant::START }
    }
}

/// What came of the last probe of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastProbe {
    /// When it ended.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub result: ProbeResult,
}

/// The probes of one upstream. On the control thread.
#[derive(Debug)]
pub struct Prober {
    rules: ProbeRules,
    instances: Vec<Tested>,
    /// Where each stands in `instances`.
    places: BTreeMap<BackendAddress, usize>,
    /// The same, by what shards call them.
    by_id: BTreeMap<InstanceId, usize>,
    /// Those that nobody asks now, by when they are due.
    waiting: BTreeSet<(Instant, usize)>,
    /// The numbers of the probes that are under way, those of instances that have gone too.
    under_way: BTreeSet<u64>,
    /// The last number that a probe was given, by any prober.
    numbers: Rc<Cell<u64>>,
    rng: fastrand::Rng,
}

#[derive(Debug)]
struct Tested {
    at: BackendAddress,
    verdict: Verdict,
    /// Good answers, or failures, in a row.
    in_a_row: u32,
    was_good: bool,
    due: Instant,
    /// The number of the probe that is under way.
    asked: Option<u64>,
    last: Option<LastProbe>,
    /// When a shard told that requests to it fail in a row, until a probe that began later has gone well.
    doubted_at: Option<Instant>,
}

impl Prober {
    /// Probes of nobody yet. All probers of the process share `numbers`: what comes of a probe is told later, and its upstream
    /// may be another one by then.
    pub fn new(rules: ProbeRules, seed: u64, numbers: Rc<Cell<u64>>) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self {
            rules,
            instances: Vec::new(),
            places: BTreeMap::new(),
            by_id: BTreeMap::new(),
            waiting: BTreeSet::new(),
            under_way: BTreeSet::new(),
            numbers,
            rng,
        }
    }

    /// Takes other instances or rules. What is known of instances that stay is kept; new ones are asked at once, and all are
    /// when the rules change.
    pub fn set(&mut self, now: Instant, rules: ProbeRules, instances: &[Instance]) {
        // Most often another upstream's have changed.
        if self.report().map(|(at, ..)| at).ne(instances.iter().map(|instance| &instance.at)) {
            self.set_instances(now, instances);
        }
        if std::mem::replace(&mut self.rules, rules) != rules {
            self.ask_all(now);
        }
    }

    fn set_instances(&mut self, now: Instant, instances: &[Instance]) {
        let known = std::mem::take(&mut self.instances);
        let mut known: BTreeMap<_, _> = known.into_iter().map(|tested| (tested.at.clone(), tested)).collect();
        let fresh = |at: &BackendAddress| Tested {
            at: at.clone(),
            verdict: Verdict::Unknown,
            in_a_row: 0,
            was_good: false,
            due: now,
            asked: None,
            last: None,
            doubted_at: None,
        };
        let tested = |Instance { at, .. }: &Instance| known.remove(at).unwrap_or_else(|| fresh(at));
        self.instances = instances.iter().map(tested).collect();
        self.places = (self.instances.iter().enumerate()).map(|(place, tested)| (tested.at.clone(), place)).collect();
        self.by_id = self.places.iter().map(|(at, place)| (at.id(), *place)).collect();
        self.queue();
    }

    /// All are asked as soon as may be.
    pub fn ask_all(&mut self, now: Instant) {
        self.instances.iter_mut().for_each(|instance| instance.due = instance.due.min(now));
        self.queue();
    }

    fn queue(&mut self) {
        let waiting = self.instances.iter().enumerate().filter(|(_, instance)| instance.asked.is_none());
        self.waiting = waiting.map(|(place, instance)| (instance.due, place)).collect();
    }

    /// A probe that is to begin now, of the instance that has waited longest; it is under way until [`Self::handle_result`]
    /// is told of it.
    pub fn poll_probe(&mut self, now: Instant) -> Option<Probe> {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return None;
        }
        let (_, place) = self.waiting.pop_first()?;
        let next = &mut self.instances[place];
        let number = self.numbers.get() + 1;
        self.numbers.set(number);
        next.asked = Some(number);
        self.under_way.insert(number);
        Some(Probe { at: next.at.clone(), number, began: now })
    }

    /// When the next probe is to begin, if nothing is told before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = self.waiting.first().filter(|_| self.under_way.len() < UNDER_WAY_MAX);
        next.map(|(due, _)| *due)
    }

    /// A shard tells that requests to an instance in use fail in a row: it does not hear of probes that go well all along, so the
    /// next one that does is told.
    pub fn doubt(&mut self, now: Instant, id: InstanceId) {
        if let Some(place) = self.by_id.get(&id) {
            self.instances[*place].doubted_at.get_or_insert(now);
        }
    }

    /// A probe has ended so. Returns the instance's verdict before and now, if it is another one, or if it is up and this probe
    /// went well after one that did not, or after a shard's doubt.
    pub fn handle_result(&mut self, now: Instant, probe: &Probe, result: ProbeResult) -> Option<(Verdict, Verdict)> {
        // It may be one of a prober before this one.
        if !self.under_way.remove(&probe.number) {
            return None;
        }
        let place = *self.places.get(&probe.at)?;
        let instance = self.instances.get_mut(place).filter(|instance| instance.asked == Some(probe.number))?;
        instance.asked = None;
        let jitter = self.rules.interval / JITTER_PART;
        let jitter = jitter.mul_f64(self.rng.f64());
        instance.due = now.max(probe.began + self.rules.interval.saturating_sub(jitter));
        self.waiting.insert((instance.due, place));
        if result == ProbeResult::NotAsked {
            return None;
        }
        instance.last = Some(LastProbe { at: now, took: now.since(probe.began), result });
        let is_good = result == ProbeResult::Good;
        let was_good = std::mem::replace(&mut instance.was_good, is_good);
        instance.in_a_row = if is_good == was_good { instance.in_a_row.saturating_add(1) } else { 1 };
        let verdict = match (instance.verdict, is_good) {
            (Verdict::Unknown, true) => Verdict::Up,
            (Verdict::Unwell | Verdict::Down, true) if instance.in_a_row >= self.rules.up_after => Verdict::Up,
            (Verdict::Unknown | Verdict::Up, false) if instance.in_a_row >= self.rules.down_after => {
                Verdict::of_failure(result)
            }
            // Whether anybody is there may have changed.
            (Verdict::Unwell | Verdict::Down, false) => Verdict::of_failure(result),
            (verdict, _) => verdict,
        };
        let before = std::mem::replace(&mut instance.verdict, verdict);
        // What was asked before it failed says nothing of it since.
        let was_doubted = is_good && instance.doubted_at.take_if(|at| *at <= probe.began).is_some();
        let is_well_again = is_good && verdict.is_up() && (!was_good || was_doubted);
        (before != verdict || is_well_again).then_some((before, verdict))
    }

    /// What is known of each instance.
    pub fn report(&self) -> impl Iterator<Item = (&BackendAddress, Verdict, Option<LastProbe>)> {
        self.instances.iter().map(|instance| (&instance.at, instance.verdict, instance.last))
    }

    /// How many are up.
    pub fn up(&self) -> usize {
        self.instances.iter().filter(|instance| instance.verdict.is_up()).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: ProbeRules = ProbeRules { interval: Duration::from_secs(5), down_after: 3, up_after: 2 };
    const NOW: Instant = Instant::START;

    fn instance(port: u16) -> Instance {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        Instance::new(BackendAddress { name: address.to_string().into(), address: address.into() })
    }

    fn instances(count: u16) -> Vec<Instance> {
        (1..=count).map(instance).collect()
    }

    fn prober(count: u16) -> Prober {
        let mut prober = Prober::new(RULES, 7, Rc::default());
        prober.set(NOW, RULES, &instances(count));
        prober
    }

    /// Waits for the one instance's next probe and ends it so, after a millisecond; what changed.
    fn answer(prober: &mut Prober, now: &mut Instant, result: ProbeResult) -> Option<Verdict> {
        *now = prober.poll_timeout().expect("one is next").max(*now);
        let probe = prober.poll_probe(*now).expect("it is due");
        assert_eq!(prober.poll_probe(*now), None, "an instance is asked once at a time");
        *now += Duration::from_millis(1);
        prober.handle_result(*now, &probe, result).map(|(_, verdict)| verdict)
    }

    #[test]
    fn so_many_in_a_row_change_a_verdict() {
        use ProbeResult::{Body, Closed, Good, NotAsked, Refused, Status, TimedOut};
        use Verdict::{Down, Unwell, Up};
        for (results, verdicts) in [
            (vec![Good], vec![Some(Up)]),
            (vec![Refused, Good], vec![None, Some(Up)]),
            (vec![Refused, TimedOut, Status], vec![None, None, Some(Unwell)]),
            (
                vec![Good, Status, Status, Good, Status, Body, Refused],
                // Of one that stays up a good probe is told that came after a bad one.
                vec![Some(Up), None, None, Some(Up), None, None, Some(Down)],
            ),
            (
                vec![Refused, Refused, Refused, Status, Closed, Closed, Body, Good, Good],
                vec![None, None, Some(Down), Some(Unwell), Some(Down), None, Some(Unwell), None, Some(Up)],
            ),
            (
                vec![Refused, Refused, Refused, Good, Refused, Good, Good],
                vec![None, None, Some(Down), None, None, None, Some(Up)],
            ),
            (vec![Good, Refused, Refused, NotAsked, Refused], vec![Some(Up), None, None, None, Some(Down)]),
        ] {
            let (mut prober, mut now) = (prober(1), NOW);
            let found: Vec<_> = results.iter().map(|result| answer(&mut prober, &mut now, *result)).collect();
            assert_eq!(found, verdicts, "{results:?}");
        }
    }

    #[test]
    fn the_next_good_probe_is_told_of_one_that_a_shard_doubts() {
        use ProbeResult::{Good, Refused};
        use Verdict::{Down, Up};
        let (mut prober, mut now) = (prober(1), NOW);
        let id = instance(1).at.id();
        assert_eq!(answer(&mut prober, &mut now, Good), Some(Up));
        assert_eq!(answer(&mut prober, &mut now, Good), None, "as before");
        now = prober.poll_timeout().expect("one is next");
        let under_way = prober.poll_probe(now).expect("it is due");
        now += Duration::from_millis(1);
        prober.doubt(now, id);
        prober.doubt(now + Duration::from_mins(1), id);
        assert_eq!(prober.handle_result(now, &under_way, Good), None, "it was asked before it failed");
        assert_eq!(answer(&mut prober, &mut now, Good), Some(Up));
        assert_eq!(answer(&mut prober, &mut now, Good), None, "once");
        prober.doubt(now, instance(2).at.id());
        assert_eq!(answer(&mut prober, &mut now, Good), None, "nobody's");
        // Of one that is down a good probe alone says nothing.
        assert_eq!([(); 3].map(|()| answer(&mut prober, &mut now, Refused)), [None, None, Some(Down)]);
        prober.doubt(now, id);
        assert_eq!([(); 3].map(|()| answer(&mut prober, &mut now, Good)), [None, Some(Up), None]);
    }

    #[test]
    fn the_first_probe_is_at_once_and_the_next_within_the_interval() {
        let mut prober = prober(1);
        let mut begun = Vec::new();
        for _ in 0..200 {
            let now = prober.poll_timeout().expect("one is next");
            begun.push(now);
            let probe = prober.poll_probe(now).expect("it is due");
            prober.handle_result(now + Duration::from_secs(1), &probe, ProbeResult::TimedOut);
        }
        assert_eq!(begun[0], NOW);
        let waits: Vec<_> = begun.windows(2).map(|pair| pair[1].since(pair[0])).collect();
        assert!(waits.iter().all(|wait| *wait <= RULES.interval && *wait >= RULES.interval * 4 / 5), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait < RULES.interval * 9 / 10), "and not all alike: {waits:?}");
    }

    #[test]
    fn one_that_dies_is_down_within_three_intervals_and_a_timeout() {
        let timeout = Duration::from_secs(2);
        let (mut prober, mut now) = (prober(1), NOW);
        answer(&mut prober, &mut now, ProbeResult::Good);
        let died = now;
        loop {
            now = prober.poll_timeout().expect("one is next");
            let probe = prober.poll_probe(now).expect("it is due");
            now += timeout;
            if prober.handle_result(now, &probe, ProbeResult::TimedOut) == Some((Verdict::Up, Verdict::Down)) {
                break;
            }
        }
        assert!(now.since(died) <= RULES.interval * 3 + timeout, "{:?}", now.since(died));
    }

    #[test]
    fn no_more_are_under_way_than_may_be_and_those_who_wait_longest_are_next() {
        let mut prober = prober(200);
        let first: Vec<_> = std::iter::from_fn(|| prober.poll_probe(NOW)).collect();
        assert_eq!((first.len(), prober.poll_timeout()), (UNDER_WAY_MAX, None));
        prober.handle_result(NOW, &first[0], ProbeResult::Good);
        let next = prober.poll_probe(NOW).expect("a place is free");
        assert!(first.iter().all(|probe| probe.at != next.at));
        assert_eq!(prober.poll_probe(NOW), None);
        // All but one of those that wait come after those that have waited longer, wherever they stand.
        let later = NOW + RULES.interval;
        let all: Vec<_> = first[1..].iter().chain([&next]).cloned().collect();
        for probe in &all {
            prober.handle_result(later, probe, ProbeResult::Good);
        }
        let then: Vec<_> = std::iter::from_fn(|| prober.poll_probe(later)).collect();
        assert!(then.iter().all(|probe| !first.iter().any(|other| other.at == probe.at)));
    }

    #[test]
    fn what_came_of_a_probe_of_an_earlier_prober_is_not_taken() {
        let numbers = Rc::new(Cell::new(0));
        let mut old = Prober::new(RULES, 7, Rc::clone(&numbers));
        old.set(NOW, RULES, &instances(1));
        let late = old.poll_probe(NOW).expect("it is due");
        // The upstream went, and came again by another reload.
        let mut new = Prober::new(RULES, 7, numbers);
        new.set(NOW, RULES, &instances(1));
        let own = new.poll_probe(NOW).expect("it is due");
        assert_eq!(new.handle_result(NOW, &late, ProbeResult::Good), None);
        assert_eq!(new.up(), 0);
        assert_eq!(new.handle_result(NOW, &own, ProbeResult::Good), Some((Verdict::Unknown, Verdict::Up)));
    }

    #[test]
    fn what_is_known_of_those_who_stay_is_kept() {
        let (mut prober, mut now) = (prober(1), NOW);
        answer(&mut prober, &mut now, ProbeResult::Good);
        prober.set(now, RULES, &instances(2));
        assert_eq!(prober.up(), 1);
        let probe = prober.poll_probe(now).expect("the new one is asked at once");
        assert_eq!(probe.at, instance(2).at);
        // It goes and comes again while it is being asked: what comes of that is not about the one that is there now.
        prober.set(now, RULES, &instances(1));
        prober.set(now, RULES, &instances(2));
        assert_eq!(prober.handle_result(now, &probe, ProbeResult::Good), None);
        assert_eq!(prober.up(), 1);
        let rules = ProbeRules { interval: Duration::from_secs(50), ..RULES };
        prober.set(now, rules, &instances(2));
        assert_eq!(std::iter::from_fn(|| prober.poll_probe(now)).count(), 2, "other rules hold at once");
    }

    proptest! {
        /// Whatever comes back when: nobody is asked twice at once, bounds hold, and a verdict has as many in a row behind
        /// it as the rules say.
        #[test]
        fn verdicts_follow_from_what_came_in_a_row(
            count in 1_u16..80,
            steps in proptest::collection::vec((0_u64..4000, any::<usize>(), 0_usize..4), 1..300),
        ) {
            let mut prober = prober(count);
            let mut now = NOW;
            let mut under_way: Vec<Probe> = Vec::new();
            let mut history: BTreeMap<Box<str>, (Verdict, Vec<bool>)> = BTreeMap::new();
            for (wait_ms, which, how) in steps {
                now += Duration::from_millis(wait_ms);
                while let Some(probe) = prober.poll_probe(now) {
                    prop_assert!(under_way.iter().all(|other| other.at != probe.at));
                    under_way.push(probe);
                }
                prop_assert!(under_way.len() <= UNDER_WAY_MAX);
                if under_way.is_empty() {
                    continue;
                }
                let probe = under_way.swap_remove(which % under_way.len());
                let result = [ProbeResult::Good, ProbeResult::Refused, ProbeResult::Closed, ProbeResult::NotAsked][how];
                let changed = prober.handle_result(now, &probe, result);
                let (verdict, seen) =
                    history.entry(probe.at.name.clone()).or_insert((Verdict::Unknown, Vec::new()));
                if result != ProbeResult::NotAsked {
                    seen.push(result == ProbeResult::Good);
                }
                let last = |good: bool, count: usize| seen.len() >= count && seen.iter().rev().take(count).all(|one| *one == good);
                let expected = match *verdict {
                    Verdict::Unknown if last(true, 1) => Verdict::Up,
                    Verdict::Down if last(true, 2) => Verdict::Up,
                    Verdict::Unknown | Verdict::Up if last(false, 3) => Verdict::Down,
                    known => known,
                };
                let is_well_again = result == ProbeResult::Good && matches!(seen[..], [.., false, true]);
                let is_told = expected != *verdict || (expected == Verdict::Up && is_well_again);
                prop_assert_eq!(changed, is_told.then_some((*verdict, expected)));
                *verdict = expected;
            }
        }
    }
}

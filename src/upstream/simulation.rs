//! Shards, their letters and a prober, with instances that come, go, die and recover, by a seed and a clock of its own.
//!
//! A failure tells its seed: `SIM_SEED` plays that one again, `SIM_ROUNDS` so many from there on.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use super::{
    balance::Share,
    probe::{ProbeRules, Prober},
    tests::settings,
    *,
};
use crate::{config::Balance, shard::testing::seeds, telemetry::metrics::ProbeResult};

const PLACES: u16 = 9;
const ROUNDS: u64 = 120;
const STEPS: usize = 400;
const STEP: Duration = Duration::from_millis(100);
const RULES: ProbeRules = ProbeRules { interval: Duration::from_secs(1), down_after: 3, up_after: 2 };

/// How an instance really is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Well,
    Ill,
    Dead,
}

/// What a shard is told.
#[derive(Clone, Debug)]
enum Letter {
    Instances(Vec<Instance>, Option<Arc<Table>>),
    Probed(BackendAddress, Verdict),
}

struct Shard {
    upstream: Upstream,
    post: VecDeque<Letter>,
    /// As it was told.
    members: Vec<Instance>,
}

struct World {
    rng: fastrand::Rng,
    now: Instant,
    settings: Settings,
    has_tiers: bool,
    shards: Vec<Shard>,
    prober: Prober,
    current: Vec<Instance>,
    conditions: BTreeMap<BackendAddress, Condition>,
    ejections: usize,
}

/// What happened in all runs, so that none of it is never looked at.
#[derive(Debug, Default)]
struct Seen {
    ejections: usize,
    without_anybody: usize,
    kept_keys: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let policy = *rng.choice(Balance::ALL.iter()).expect("there are some");
        let given = settings();
        let outlier = OutlierPolicy { failures: 3, ejection: Duration::from_secs(5), percent_max: 50, ..given.outlier };
        let settings = Settings {
            outlier,
            balance: Rules { policy, panic_percent: rng.u32(..2) * 50, slow_start: Duration::ZERO },
            zone: rng.bool().then(|| "a".into()),
            is_probed: true,
            ..given
        };
        let shard = |_| Shard {
            upstream: Upstream::new(settings.clone(), rng.u64(..)),
            post: VecDeque::new(),
            members: Vec::new(),
        };
        let mut world = Self {
            shards: (0..3).map(shard).collect(),
            has_tiers: rng.bool(),
            prober: Prober::new(RULES, seed, Rc::default()),
            // Backends know the real clock, which must not be ahead.
            now: clock::now() + Duration::from_secs(1),
            current: Vec::new(),
            conditions: BTreeMap::new(),
            ejections: 0,
            settings,
            rng,
        };
        for shard in &world.shards {
            shard.upstream.update(world.settings.clone(), &[], None);
        }
        let first = (1..=world.rng.u16(2..=6)).map(|port| world.instance(port)).collect();
        world.tell_instances(first);
        world
    }

    fn instance(&mut self, port: u16) -> Instance {
        let address = SocketAddr::from(([10, 0, 0, 1], port));
        let at = BackendAddress { name: address.to_string().into(), address: address.into() };
        self.conditions.entry(at.clone()).or_insert(Condition::Well);
        let (weight, priority) = (self.rng.u16(..5), if self.has_tiers { self.rng.u16(..2) } else { 0 });
        let zone = ["a", "b"][self.rng.usize(..2)];
        Instance { at, weight, priority, zone: self.has_tiers.then(|| zone.into()) }
    }

    /// What discovery finds goes to the shards, and then to the prober.
    fn tell_instances(&mut self, mut instances: Vec<Instance>) {
        if instances.iter().all(|instance| instance.weight == 0) {
            instances[0].weight = 1;
        }
        self.rng.shuffle(&mut instances);
        let names: Vec<_> = (instances.iter().map(|instance| instance.at.name.to_string()))
            .zip(shares(&instances, self.settings.zone.as_deref()))
            .collect();
        let table = Some(Arc::new(Table::new(&names)));
        for shard in &mut self.shards {
            shard.post.push_back(Letter::Instances(instances.clone(), table.clone()));
        }
        self.prober.set(self.now, RULES, &instances);
        self.current = instances;
    }

    fn deliver(&mut self, shard: usize, letters: usize) {
        let now = self.now;
        let shard = &mut self.shards[shard];
        for letter in shard.post.drain(..letters.min(shard.post.len())) {
            match letter {
                Letter::Instances(members, table) => {
                    shard.upstream.replace_backends(&members, table);
                    shard.members = members;
                }
                Letter::Probed(at, verdict) => shard.upstream.probed(&at, verdict, now),
            }
        }
    }

    fn probe(&mut self) {
        while let Some(probe) = self.prober.poll_probe(self.now) {
            let result = match self.conditions[&probe.at] {
                Condition::Well => ProbeResult::Good,
                Condition::Ill => ProbeResult::Status,
                Condition::Dead => ProbeResult::Refused,
            };
            if let Some((_, verdict)) = self.prober.handle_result(self.now, &probe, result) {
                for shard in &mut self.shards {
                    shard.post.push_back(Letter::Probed(probe.at.clone(), verdict));
                }
            }
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        match self.rng.u32(..20) {
            0 | 1 => {
                let at = self.rng.usize(..self.current.len());
                let condition = [Condition::Well, Condition::Ill, Condition::Dead][self.rng.usize(..3)];
                self.conditions.insert(self.current[at].at.clone(), condition);
            }
            2 => {
                let port = self.rng.u16(1..=PLACES);
                let (other, mut instances) = (self.instance(port), self.current.clone());
                instances.retain(|instance| instance.at != other.at);
                if instances.is_empty() || self.rng.bool() {
                    instances.push(other);
                }
                self.tell_instances(instances);
            }
            _ => {}
        }
        self.probe();
        for shard in 0..self.shards.len() {
            if self.rng.bool() {
                let letters = self.rng.usize(..4);
                self.deliver(shard, letters);
            }
        }
    }

    /// One request on a shard.
    fn ask(&mut self, shard: usize, seen: &mut Seen) {
        let (now, key) = (self.now, self.rng.u64(..));
        let Shard { upstream, members, .. } = &self.shards[shard];
        let standing = |backend: &Rc<Backend>| backend.standing(true, now);
        let weight =
            |backend: &Rc<Backend>| members.iter().find(|member| member.at == backend.at).map(|one| one.weight);
        let backends = upstream.state.with(|state| state.backends.clone());
        let takes_part = |backend: &&Rc<Backend>| weight(backend).is_some_and(|weight| weight > 0);
        let is_usable = |backend: &Rc<Backend>| matches!(standing(backend), Standing::Usable { .. });
        let usable = backends.iter().filter(takes_part).filter(|backend| is_usable(backend)).count();
        let Some(chosen) = upstream.choose(now, Some(key), &[]) else {
            assert_eq!(usable, 0, "somebody is there");
            seen.without_anybody += 1;
            return;
        };
        assert!(weight(&chosen).is_some_and(|weight| weight > 0), "{:?} was told gone, or to get nothing", chosen.at);
        let is_last_resort = standing(&chosen) == Standing::Unusable;
        assert!(!is_last_resort || usable == 0, "{:?} does not answer, and {usable} are well", chosen.at);
        if self.conditions[&chosen.at] == Condition::Dead {
            let is_ejected = upstream.failed(&chosen, &Failure::TimedOut, Duration::from_millis(1), now);
            let is_out = |backend: &&Rc<Backend>| backend.state.with(|state| state.outlier.is_out(now));
            let out = backends.iter().filter(is_out).count();
            assert!(!is_ejected || out * 2 <= backends.len(), "{out} of {} are ejected", backends.len());
            self.ejections += usize::from(is_ejected);
        } else {
            // As `succeeded` does it, by this clock.
            let policy = upstream.state.with(|state| state.settings.outlier);
            let was_out = chosen.state.with(|state| state.outlier.succeeded(now, &policy));
            if was_out {
                upstream.state.with(|state| state.renew(now));
            }
        }
    }

    /// All are well, and everybody knows.
    fn calm(&mut self) {
        self.conditions.values_mut().for_each(|condition| *condition = Condition::Well);
        for _ in 0..100 {
            self.now += STEP;
            self.probe();
            (0..self.shards.len()).for_each(|shard| self.deliver(shard, usize::MAX));
        }
        // Until no ejection is left.
        self.now += Duration::from_mins(10);
    }

    fn check_shares(&mut self) {
        const REQUESTS: u32 = 3000;
        let tiers = shares(&self.current, self.settings.zone.as_deref());
        let first = tiers.iter().filter(|share| share.weight > 0).map(|share| share.tier).min();
        let is_first = |share: &Share| Some(share.tier) == first;
        let total: u32 = tiers.iter().filter(|share| is_first(share)).map(|share| u32::from(share.weight)).sum();
        for shard in &self.shards {
            let mut taken: BTreeMap<BackendAddress, u32> = BTreeMap::new();
            for _ in 0..REQUESTS {
                let chosen = shard.upstream.choose(self.now, Some(self.rng.u64(..)), &[]).expect("all are well");
                *taken.entry(chosen.at.clone()).or_default() += 1;
            }
            for (instance, share) in self.current.iter().zip(&tiers) {
                let fair = if is_first(share) { REQUESTS * u32::from(share.weight) / total } else { 0 };
                let found = taken.get(&instance.at).copied().unwrap_or(0);
                assert!(
                    found.abs_diff(fair) <= fair / 8 + 50 * u32::from(fair > 0),
                    "{found} for {fair}: {instance:?}"
                );
            }
        }
    }

    fn homes(&self) -> Vec<Option<BackendAddress>> {
        let key = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let of = |shard: &Shard| {
            let home =
                |number| shard.upstream.choose(self.now, Some(key(number)), &[]).map(|backend| backend.at.clone());
            (0..300).map(home).collect::<Vec<_>>()
        };
        let homes = of(&self.shards[0]);
        assert!(self.shards.iter().all(|shard| of(shard) == homes), "shards agree");
        homes
    }

    fn check_keys(&mut self, seen: &mut Seen) {
        let before = self.homes();
        let gone = self.current[self.rng.usize(..self.current.len())].at.clone();
        self.conditions.insert(gone.clone(), Condition::Dead);
        for _ in 0..60 {
            self.now += STEP;
            self.probe();
        }
        (0..self.shards.len()).for_each(|shard| self.deliver(shard, usize::MAX));
        let is_alone = self.current.iter().filter(|instance| instance.weight > 0).all(|instance| instance.at == gone);
        for (before, after) in before.iter().zip(self.homes()) {
            assert!(*before == after || before.as_ref() == Some(&gone), "a key that need not move");
            assert!(after.as_ref() != Some(&gone) || is_alone, "there are others");
        }
        self.calm();
        assert_eq!(self.homes(), before, "and they come back");
        // One that is taken away moves little else.
        let fewer: Vec<_> = self.current.iter().filter(|instance| instance.at != gone).cloned().collect();
        if fewer.iter().any(|instance| instance.weight > 0) {
            self.tell_instances(fewer);
            (0..self.shards.len()).for_each(|shard| self.deliver(shard, usize::MAX));
            let after = self.homes();
            let moved = before.iter().zip(&after).filter(|(one, other)| one != other && one.as_ref() != Some(&gone));
            assert!(moved.count() <= 30, "of 300");
        }
        seen.kept_keys += 1;
    }
}

#[test]
fn whatever_comes_and_goes_requests_go_where_they_should() {
    let seeds = seeds(ROUNDS);
    let (are_enough, mut seen) = (seeds.are_enough(), Seen::default());
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
            for shard in 0..world.shards.len() {
                for _ in 0..3 {
                    world.ask(shard, &mut seen);
                }
            }
        }
        world.calm();
        world.check_shares();
        if world.settings.balance.policy == Balance::ConsistentHash && !world.has_tiers {
            world.check_keys(&mut seen);
        }
        seen.ejections += world.ejections;
    }
    let is_everything = seen.ejections > 0 && seen.without_anybody > 0 && seen.kept_keys > 0;
    assert!(!are_enough || is_everything, "some things never happened: {seen:?}");
}

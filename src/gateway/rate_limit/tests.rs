//! Several shards in one thread, letters that take their time, and a clock that jumps: however requests are spread, no
//! more pass than the limit says, and hardly fewer.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::{
    cells::CellKey,
    counter::{Counted, Counter, Due, Hits, Home, Owed, Terms, Verdict},
    gcra::Rate,
};
use crate::{shard::Instant, telemetry::slots::OTHER};

/// What is on its way: when it arrives, and where.
enum Letter {
    Hits(usize, Hits),
    Counted(Counted),
    Owed(Owed),
}

struct Sim {
    now: u64,
    key: CellKey,
    counters: Vec<Counter>,
    /// For each shard, in order: letters between two shards never overtake each other.
    letters: Vec<VecDeque<(u64, Letter)>>,
    /// Nothing goes that may be dropped.
    is_full: bool,
    /// Redis, when the home is there.
    elsewhere: Option<Counter>,
    admitted: Vec<u64>,
    held: usize,
    refused: usize,
}

impl Sim {
    fn new(rate: Rate, lease: u16, shards: usize, home: Home) -> Self {
        let terms = Terms { slot: OTHER, rate, home, lease, dry_run: false, keys_max: 8 };
        let counter = |me| Counter::new(terms, me, shards);
        Self {
            now: 0,
            key: CellKey::of_texts(b'u', b"", b"somebody"),
            counters: (0..shards).map(counter).collect(),
            letters: (0..=shards).map(|_| VecDeque::new()).collect(),
            is_full: false,
            elsewhere: (home == Home::Redis).then(|| counter(shards)),
            admitted: Vec::new(),
            held: 0,
            refused: 0,
        }
    }

    fn home(&self) -> usize {
        if self.elsewhere.is_some() { self.counters.len() } else { self.key.home(self.counters.len()) }
    }

    fn send(&mut self, to: usize, delay: u64, letter: Letter) {
        let at = (self.now + delay).max(self.letters[to].back().map_or(0, |(at, _)| *at));
        self.letters[to].push_back((at, letter));
    }

    fn ask(&mut self, shard: usize, delay: u64) {
        let now = Instant::from_nanos(self.now);
        let (place, verdict) = self.counters[shard].look(self.key, now);
        match verdict {
            Verdict::Conforms(next) => {
                self.admitted.push(self.now);
                match self.counters[shard].pass(place, next, now) {
                    Due::Now(hits) => self.tell_hits(shard, hits, delay),
                    Due::Spread(owed) => self.spread(owed, delay),
                    Due::Soon | Due::Nothing => {}
                }
            }
            Verdict::Exceeds(_) => self.refused += 1,
            Verdict::Unknown => self.held += 1,
        }
    }

    fn tell_hits(&mut self, shard: usize, hits: Hits, delay: u64) {
        if self.is_full {
            _ = self.counters[shard].keep(hits);
        } else {
            self.send(self.home(), delay, Letter::Hits(shard, hits));
        }
    }

    fn spread(&mut self, owed: Owed, delay: u64) {
        if self.is_full {
            return;
        }
        for shard in 0..self.counters.len() {
            // Letters to some are slower.
            self.send(shard, delay * (1 + shard as u64 % 3), Letter::Owed(owed));
        }
    }

    /// Tells what has not been told.
    fn tell(&mut self, shard: usize, delay: u64) {
        if let Some(hits) = self.counters[shard].untold(self.key) {
            self.tell_hits(shard, hits, delay);
        }
    }

    fn deliver(&mut self, delay: u64) {
        for to in 0..self.letters.len() {
            while self.letters[to].front().is_some_and(|(at, _)| *at <= self.now) {
                let Some((_, letter)) = self.letters[to].pop_front() else { break };
                match letter {
                    Letter::Hits(from, hits) => {
                        let home = self.counters.get_mut(to).or(self.elsewhere.as_mut()).expect("a home");
                        let (counted, spread) = home.count(hits, Instant::from_nanos(self.now));
                        self.send(from, delay, Letter::Counted(counted));
                        if let Some(spread) = spread {
                            self.spread(spread, delay);
                        }
                    }
                    Letter::Counted(counted) => self.counters[to].hear(counted, Instant::from_nanos(self.now)),
                    Letter::Owed(owed) => self.counters[to].hear_owed(owed, Instant::from_nanos(self.now)),
                }
            }
        }
    }

    /// The most that passed beyond what the rate alone allows, in any stretch of time.
    fn overshoot(&self, rate: Rate) -> i128 {
        let mut most = 0;
        for (first, from) in self.admitted.iter().enumerate() {
            for (last, to) in self.admitted.iter().enumerate().skip(first) {
                let count = (last - first + 1) as i128;
                let allowed = i128::from(rate.tolerance() / rate.interval() + (to - from) / rate.interval());
                most = most.max(count - allowed);
            }
        }
        most
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask(usize, u64),
    Tell(usize, u64),
    Pass(u64),
    Fill(bool),
}

fn steps(shards: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..shards, 0..60_u64).prop_map(|(shard, delay)| Step::Ask(shard, delay)),
        1 => (0..shards, 0..60_u64).prop_map(|(shard, delay)| Step::Tell(shard, delay)),
        2 => (0..40_u64).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Fill),
    ];
    prop::collection::vec(step, 1..400)
}

fn run(sim: &mut Sim, steps: &[Step]) {
    for (count, step) in steps.iter().enumerate() {
        match step {
            Step::Ask(shard, delay) => sim.ask(*shard, *delay),
            Step::Tell(shard, delay) => sim.tell(*shard, *delay),
            Step::Pass(time) => sim.now += time,
            Step::Fill(is_full) => sim.is_full = *is_full,
        }
        sim.deliver((count as u64 * 7) % 50);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn shards_together_never_pass_more_than_they_may(
        interval in 1..60_u64, burst in 1..30_u32, lease in 1..6_u16, steps in steps(4), in_redis: bool,
    ) {
        let rate = Rate::new(interval, burst);
        let mut sim = Sim::new(rate, lease, 4, if in_redis { Home::Redis } else { Home::Shard });
        run(&mut sim, &steps);
        // The home itself is never ahead; where it is no shard, all four may be.
        let bound = i128::from(lease) * 3;
        prop_assert!(sim.overshoot(rate) <= bound, "{} of {bound}", sim.overshoot(rate));
        // Whatever did not go, everything that was admitted is counted in the end.
        sim.is_full = false;
        (0..4).for_each(|shard| sim.tell(shard, 1));
        for _ in 0..4 {
            sim.now += 200;
            sim.deliver(1);
        }
        let key = sim.key;
        let ahead = |counter: &mut Counter| match counter.cells.find_known(key) {
            Some(place) => counter.cells.at(place).ahead,
            None => 0,
        };
        let ahead: Vec<_> = sim.counters.iter_mut().map(ahead).collect();
        prop_assert_eq!(ahead, [0; 4]);
    }

    #[test]
    fn one_shard_alone_is_exact(interval in 1..60_u64, burst in 1..30_u32, steps in steps(1)) {
        let rate = Rate::new(interval, burst);
        let mut sim = Sim::new(rate, 1, 1, Home::Shard);
        run(&mut sim, &steps);
        prop_assert!(sim.overshoot(rate) <= 0);
        prop_assert_eq!(sim.held, 0);
    }
}

#[test]
fn a_steady_client_gets_its_rate_whatever_shard_it_meets() {
    let rate = Rate::new(1_000, 8);
    let mut sim = Sim::new(rate, 1, 4, Home::Shard);
    // Twice the rate, from shard to shard, letters take a tenth of the pause.
    for count in 0..4_000_usize {
        sim.ask(count % 4, 50);
        sim.now += 250;
        sim.deliver(50);
        sim.now += 250;
        sim.deliver(50);
    }
    let (admitted, earned) = (sim.admitted.len(), 2_000 + 8);
    assert!(admitted.abs_diff(earned) <= 3, "{admitted} of {earned}");
}

#[test]
fn whoever_comes_by_other_shards_meets_shards_that_know() {
    for burst in [1, 2, 5, 64] {
        let mut sim = Sim::new(Rate::new(1_000_000, burst), 1, 4, Home::Shard);
        for count in 0..200 {
            sim.ask(count % 4, 5);
            for _ in 0..10 {
                sim.now += 5;
                sim.deliver(5);
            }
        }
        assert_eq!(sim.admitted.len(), burst as usize);
    }
}

#[test]
fn a_burst_within_its_bounds_passes_whole() {
    // Sixteen at once on each of four shards, of 64: held ones are asked again a little later, none is refused.
    let rate = Rate::new(1_000_000, 64);
    let mut sim = Sim::new(rate, 4, 4, Home::Shard);
    let mut left = [16; 4];
    for _ in 0..200 {
        for (shard, left) in left.iter_mut().enumerate() {
            while *left > 0 {
                let before = sim.held;
                sim.ask(shard, 20);
                if sim.held > before {
                    break;
                }
                *left -= 1;
            }
            sim.tell(shard, 20);
        }
        sim.now += 10;
        sim.deliver(20);
    }
    assert_eq!((left, sim.refused, sim.admitted.len()), ([0; 4], 0, 64));
}

#[test]
fn new_terms_keep_what_is_counted() {
    let terms =
        Terms { slot: OTHER, rate: Rate::new(100, 10), home: Home::Here, lease: 1, dry_run: false, keys_max: 64 };
    let mut counter = Counter::new(terms, 0, 1);
    let keys: Vec<_> = (0..16_u8).map(|key| CellKey::of_texts(b'u', b"", &[key])).collect();
    let now = Instant::from_nanos(1_000);
    for key in &keys {
        for _ in 0..4 {
            let (place, Verdict::Conforms(next)) = counter.look(*key, now) else { panic!("four conform") };
            assert_eq!(counter.pass(place, next, now), Due::Nothing);
        }
    }
    let remaining = |counter: &mut Counter| {
        let of = |key: &CellKey| {
            let (place, _) = counter.look(*key, now);
            counter.state(place, now).0
        };
        keys.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(remaining(&mut counter), [6; 16]);
    counter.adopt(Terms { keys_max: 4096, ..terms }, now);
    assert_eq!(remaining(&mut counter), [6; 16]);
    counter.adopt(Terms { rate: Rate::new(7, 10), keys_max: 4096, ..terms }, now);
    assert_eq!(remaining(&mut counter), [6; 16]);
    counter.adopt(Terms { rate: Rate::new(7, 3), keys_max: 4096, ..terms }, now);
    assert_eq!(remaining(&mut counter), [0; 16], "more than the burst is owed to nobody");
    counter.adopt(Terms { rate: Rate::new(7, 30), keys_max: 4096, ..terms }, now);
    assert_eq!(remaining(&mut counter), [27; 16]);
}

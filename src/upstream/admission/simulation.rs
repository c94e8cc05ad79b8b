//! What admission is for, in events of a discrete time: an upstream with 16 places that takes 20 ms for a request, so 800 a
//! second, clients that come whether or not they are answered, and shards that know of nothing but their own requests. A
//! failure tells its seed: `SIM_SEED` plays that one alone, `SIM_ROUNDS` so many from there on.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use super::*;
use crate::shard::testing::seeds;

const ROUNDS: u64 = 20;
const PLACES: usize = 16;
const SERVICE: Duration = Duration::from_millis(20);
const CAPACITY_PER_S: f64 = 800.0;
const DEADLINE: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    /// The upstream has done with a request, whether anybody waits for it or not.
    Done(usize),
    /// Its client, and with it its shard, waits no longer.
    Missed(usize),
}

#[derive(Clone, Copy, Debug)]
struct Request {
    at: Instant,
    shard: usize,
    waiting: u32,
    is_over: bool,
}

#[derive(Debug, Default)]
struct Shard {
    forecast: Forecast,
    waiting: u32,
}

/// What became of the requests that came in one second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    came: u32,
    admitted: u32,
    refused: u32,
    in_time: u32,
    missed: u32,
}

struct World {
    now: Instant,
    rng: fastrand::Rng,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    number: u64,
    shards: Vec<Shard>,
    requests: Vec<Request>,
    queue: VecDeque<usize>,
    busy: usize,
    service: Duration,
    /// Whether the upstream answers at all.
    hangs: bool,
    rate_per_s: f64,
    seconds: Vec<Second>,
    /// How long admitted requests took, with the deadline for those that missed it.
    taken: Vec<Duration>,
}

impl World {
    fn new(shards: usize, seed: u64) -> Self {
        Self {
            now: Instant::START,
            rng: fastrand::Rng::with_seed(seed),
            events: BinaryHeap::new(),
            number: 0,
            shards: (0..shards).map(|_| Shard::default()).collect(),
            requests: Vec::new(),
            queue: VecDeque::new(),
            busy: 0,
            service: SERVICE,
            hangs: false,
            rate_per_s: 0.0,
            seconds: Vec::new(),
            taken: Vec::new(),
        }
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.number += 1;
        self.events.push(Reverse((at, self.number, event)));
    }

    fn second(&mut self, at: Instant) -> &mut Second {
        let second = usize::try_from(at.since(Instant::START).as_secs()).expect("short");
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Second::default());
        }
        &mut self.seconds[second]
    }

    /// Lets requests come at this rate for so long, by chance (Poisson).
    fn run(&mut self, rate_per_s: f64, time: Duration) {
        let (was, until) = (self.rate_per_s, self.now + time);
        self.rate_per_s = rate_per_s;
        if was == 0.0 {
            self.at(self.now, Event::Arrives);
        }
        while let Some(Reverse((at, ..))) = self.events.peek()
            && *at < until
        {
            let Some(Reverse((at, _, event))) = self.events.pop() else { break };
            self.now = at;
            match event {
                Event::Arrives => self.arrives(),
                Event::Done(number) => self.done(number),
                Event::Missed(number) => self.missed(number),
            }
        }
        self.now = until;
    }

    fn arrives(&mut self) {
        let now = self.now;
        let gap = -(1.0 - self.rng.f64()).ln() / self.rate_per_s;
        self.at(now + Duration::from_secs_f64(gap), Event::Arrives);
        self.second(now).came += 1;
        let index = self.rng.usize(..self.shards.len());
        let shard = &mut self.shards[index];
        if !shard.forecast.admits(now, DEADLINE, shard.waiting) {
            self.second(now).refused += 1;
            return;
        }
        shard.waiting += 1;
        let request = Request { at: now, shard: index, waiting: shard.waiting, is_over: false };
        self.second(now).admitted += 1;
        let number = self.requests.len();
        self.requests.push(request);
        self.at(now + DEADLINE, Event::Missed(number));
        self.queue.push_back(number);
        self.serve();
    }

    fn serve(&mut self) {
        while self.busy < PLACES
            && !self.hangs
            && let Some(number) = self.queue.pop_front()
        {
            self.busy += 1;
            // As services are: a tenth more or less.
            let service = self.service.mul_f64(0.9 + 0.2 * self.rng.f64());
            self.at(self.now + service, Event::Done(number));
        }
    }

    fn done(&mut self, number: usize) {
        self.busy -= 1;
        self.ends(number, true);
        self.serve();
    }

    /// The upstream is not told, and does for nobody what stands in its queue: the worst that may be.
    fn missed(&mut self, number: usize) {
        self.ends(number, false);
    }

    fn ends(&mut self, number: usize, is_answered: bool) {
        let now = self.now;
        let request = &mut self.requests[number];
        if std::mem::replace(&mut request.is_over, true) {
            return;
        }
        let Request { at, shard, waiting, .. } = *request;
        let taken = now.since(at);
        let shard = &mut self.shards[shard];
        shard.waiting -= 1;
        shard.forecast.tell(now, Waited { allowed: DEADLINE, taken, waiting, is_answered });
        let second = self.second(at);
        if is_answered {
            second.in_time += 1;
        } else {
            second.missed += 1;
        }
        self.taken.push(taken);
    }

    /// What the seconds of this range have together.
    fn sum(&self, seconds: std::ops::Range<usize>) -> Second {
        self.seconds[seconds].iter().fold(Second::default(), |sum, second| Second {
            came: sum.came + second.came,
            admitted: sum.admitted + second.admitted,
            refused: sum.refused + second.refused,
            in_time: sum.in_time + second.in_time,
            missed: sum.missed + second.missed,
        })
    }
}

#[test]
fn at_twice_its_rate_an_upstream_is_as_useful_as_it_can_be() {
    for shards in [1, 4] {
        for seed in seeds(ROUNDS) {
            let mut world = World::new(shards, seed);
            world.run(0.5 * CAPACITY_PER_S, Duration::from_secs(2));
            world.taken.clear();
            world.run(2.0 * CAPACITY_PER_S, Duration::from_secs(10));
            let sum = world.sum(2..12);
            let goodput = f64::from(sum.in_time) / 10.0;
            let missed = f64::from(sum.missed) / f64::from(sum.admitted);
            assert!(
                goodput >= 0.9 * CAPACITY_PER_S,
                "seed {seed}, {shards} shards: {goodput} a second in time, {sum:?}"
            );
            assert!(missed <= 0.01, "seed {seed}, {shards} shards: {missed} of those let in were late, {sum:?}");
            let mut taken = world.taken.clone();
            taken.sort();
            let p99 = taken[taken.len() * 99 / 100];
            assert!(p99 <= DEADLINE, "seed {seed}, {shards} shards: p99 {p99:?}");
        }
    }
}

#[test]
fn five_times_its_rate_for_long_leaves_nothing_behind() {
    for shards in [1, 4] {
        for seed in seeds(ROUNDS) {
            let mut world = World::new(shards, seed);
            world.run(0.5 * CAPACITY_PER_S, Duration::from_secs(2));
            world.run(5.0 * CAPACITY_PER_S, Duration::from_secs(30));
            world.run(0.5 * CAPACITY_PER_S, Duration::from_secs(6));
            let during = world.sum(2..32);
            let goodput = f64::from(during.in_time) / 30.0;
            assert!(goodput >= 0.9 * CAPACITY_PER_S, "seed {seed}, {shards} shards: {goodput} a second, {during:?}");
            let after = world.sum(34..37);
            assert_eq!((after.refused, after.missed), (0, 0), "seed {seed}, {shards} shards: {after:?}");
        }
    }
}

#[test]
fn without_overload_nobody_is_refused() {
    for shards in [1, 4] {
        for seed in seeds(ROUNDS) {
            for load in [0.1, 0.5, 0.8] {
                let mut world = World::new(shards, seed);
                world.run(load * CAPACITY_PER_S, Duration::from_secs(10));
                let sum = world.sum(0..9);
                assert_eq!((sum.refused, sum.missed), (0, 0), "seed {seed}, {shards} shards, {load}: {sum:?}");
            }
        }
    }
}

#[test]
fn an_upstream_that_hung_is_used_again_soon() {
    for shards in [1, 4] {
        for seed in seeds(ROUNDS) {
            let mut world = World::new(shards, seed);
            world.run(0.5 * CAPACITY_PER_S, Duration::from_secs(2));
            world.hangs = true;
            world.run(0.5 * CAPACITY_PER_S, Duration::from_secs(10));
            world.hangs = false;
            world.serve();
            world.run(0.5 * CAPACITY_PER_S, Duration::from_secs(5));
            let hanging = world.sum(4..12);
            let let_in = f64::from(hanging.admitted) / f64::from(hanging.came);
            assert!(let_in <= 0.2, "seed {seed}, {shards} shards: {hanging:?} waited in vain");
            let after = world.sum(14..16);
            assert_eq!((after.refused, after.missed), (0, 0), "seed {seed}, {shards} shards: {after:?}");
        }
    }
}

#[test]
fn a_slower_upstream_is_found_out() {
    for shards in [1, 4] {
        for seed in seeds(ROUNDS) {
            let mut world = World::new(shards, seed);
            world.run(0.8 * CAPACITY_PER_S, Duration::from_secs(5));
            world.service = 3 * SERVICE;
            world.run(0.8 * CAPACITY_PER_S, Duration::from_secs(20));
            let sum = world.sum(6..24);
            let goodput = f64::from(sum.in_time) / 18.0;
            assert!(goodput >= 0.9 * CAPACITY_PER_S / 3.0, "seed {seed}, {shards} shards: {goodput} a second, {sum:?}");
            let missed = f64::from(sum.missed) / f64::from(sum.admitted);
            assert!(missed <= 0.02, "seed {seed}, {shards} shards: {missed} of those let in, {sum:?}");
        }
    }
}

//! Shards and the instances of one upstream at random, with letters that come late or never, requests that are dropped, and a
//! clock of its own. What shards do with instances and circuits is checked after each step.
//!
//! A failure tells its seed: `SIM_SEED` plays that one again, `SIM_ROUNDS` so many from there on.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io,
    net::SocketAddr,
};

use super::{
    breaker::{Found, Pass},
    tests::settings,
    *,
};
use crate::shard::testing::seeds;

const SHARDS: usize = 4;
const ROUNDS: u64 = 24;
/// How long the world is at random; then all is well, for longer than any ejection lasts.
const WILD: Duration = Duration::from_mins(4);
const CALM: Duration = Duration::from_mins(6);

/// What an instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    Refuses,
    /// Takes connections and stands still.
    Silent,
    /// Fails so many of a hundred with 503.
    Fails(u8),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Answer(u16),
    Failure,
    TimedOut,
    /// The client left.
    Dropped,
}

/// A request that is under way.
struct UnderWay {
    shard: usize,
    backend: Rc<Backend>,
    trial: Option<Trial>,
    pass: Pass,
    began: Instant,
    end: End,
}

enum Event {
    Request(usize),
    End(u64),
    Letter(usize, Option<(BackendAddress, Cause)>),
    Mood,
}

struct World {
    rng: fastrand::Rng,
    now: Instant,
    shards: Vec<Upstream>,
    instances: Vec<BackendAddress>,
    moods: Vec<Mood>,
    events: BinaryHeap<Reverse<(Instant, u64)>>,
    what: BTreeMap<u64, Event>,
    under_way: BTreeMap<u64, UnderWay>,
    numbers: u64,
    has_letters: bool,
    /// So many of ten letters are lost.
    lost: u8,
    is_calm: bool,
    failed: u64,
    seen: Seen,
}

/// What has happened at all, so that a world in which nothing does is noticed.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    ejected: [u64; 2],
    on_word: u64,
    returned: u64,
    opened: u64,
    closed: u64,
    refused: u64,
    trials: u64,
}

impl World {
    fn new(seed: u64, instances: usize) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        let at = |port: usize| BackendAddress {
            name: format!("a:{port}").into(),
            address: SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).expect("few"))).into(),
        };
        let instances: Vec<_> = (1..=instances).map(at).collect();
        let shards = (0..SHARDS).map(|shard| {
            let mut settings = settings();
            settings.outlier.ejection = Duration::from_secs(30);
            let upstream = Upstream::new(settings.clone(), seed * 10 + shard as u64);
            let all: Vec<_> = instances.iter().cloned().map(Instance::new).collect();
            upstream.update(settings, &all, None);
            upstream
        });
        Self {
            rng,
            // Later than all that was made above.
            now: clock::now() + Duration::from_hours(1),
            shards: shards.collect(),
            moods: vec![Mood::Well; instances.len()],
            instances,
            events: BinaryHeap::new(),
            what: BTreeMap::new(),
            under_way: BTreeMap::new(),
            numbers: 0,
            has_letters: true,
            lost: 1,
            is_calm: false,
            failed: 0,
            seen: Seen::default(),
        }
    }

    fn later(&mut self, after: Duration, event: Event) {
        self.numbers += 1;
        self.events.push(Reverse((self.now + after, self.numbers)));
        self.what.insert(self.numbers, event);
    }

    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.u64(from..to))
    }

    fn run_until(&mut self, end: Instant) {
        while let Some(Reverse((at, number))) = self.events.peek().copied()
            && at < end
        {
            self.events.pop();
            self.now = at;
            let touched = match self.what.remove(&number).expect("each happens once") {
                Event::Request(shard) => {
                    self.request(shard);
                    // Where all is well, there is not much to see.
                    let pause = if self.is_calm { self.ms(100, 1000) } else { self.ms(1, 100) };
                    self.later(pause, Event::Request(shard));
                    Some(shard)
                }
                Event::End(number) => Some(self.end(number)),
                Event::Letter(shard, suspect) => {
                    let suspect = suspect.as_ref().map(|(at, cause)| (at, *cause));
                    self.shards[shard].suspect(suspect, self.now);
                    Some(shard)
                }
                Event::Mood => {
                    let instance = self.rng.usize(..self.moods.len());
                    self.moods[instance] = match self.rng.u8(..8) {
                        0 | 1 => Mood::Refuses,
                        2 => Mood::Silent,
                        3 => Mood::Fails(50),
                        4 => Mood::Fails(100),
                        _ => Mood::Well,
                    };
                    let pause = self.ms(500, 20_000);
                    self.later(pause, Event::Mood);
                    None
                }
            };
            if let Some(shard) = touched {
                self.tell(shard);
                self.check(shard);
            }
        }
        self.now = end;
    }

    /// As `Upstream::send` does it.
    fn request(&mut self, shard: usize) {
        let upstream = &self.shards[shard];
        let pass = upstream.state.with(|state| state.breaker.admit(self.now, &state.settings.breaker));
        let Ok(pass) = pass else {
            self.seen.refused += 1;
            return;
        };
        let backend = upstream.choose(self.now, None, &[]).expect("one is in");
        let trial = backend.state.with(|state| {
            state.in_flight += 1;
            state.outlier.begin(self.now)
        });
        self.seen.trials += u64::from(trial.is_some());
        let place = self.instances.iter().position(|at| *at == backend.at).expect("it is one");
        let (took, end) = match self.moods[place] {
            _ if self.rng.u8(..50) == 0 => (self.ms(0, 100), End::Dropped),
            Mood::Well => (self.ms(1, 20), End::Answer(200)),
            Mood::Refuses => (Duration::from_millis(1), End::Failure),
            Mood::Silent => (Duration::from_secs(3), End::TimedOut),
            Mood::Fails(percent) => {
                let status = if self.rng.u8(..100) < percent { 503 } else { 200 };
                (self.ms(1, 20), End::Answer(status))
            }
        };
        let request = UnderWay { shard, backend, trial, pass, began: self.now, end };
        self.numbers += 1;
        let number = self.numbers;
        self.under_way.insert(number, request);
        self.later(took, Event::End(number));
    }

    fn end(&mut self, number: u64) -> usize {
        let UnderWay { shard, backend, trial, pass, began, end } = self.under_way.remove(&number).expect("it was sent");
        let (upstream, now) = (&self.shards[shard], self.now);
        let found = match end {
            End::Answer(status) => {
                upstream.answered(&backend, now.since(began), status, now);
                self.failed += u64::from(status >= 500);
                upstream.state.with(|state| state.found(status))
            }
            End::Failure | End::TimedOut => {
                let failure = match end {
                    End::TimedOut => Failure::TimedOut,
                    _ => Failure::Connect(io::ErrorKind::ConnectionRefused.into()),
                };
                upstream.failed(&backend, &failure, now.since(began), now);
                self.failed += 1;
                Found::Failed
            }
            End::Dropped => Found::Nothing,
        };
        backend.state.with(|state| {
            state.in_flight -= 1;
            if let Some(trial) = trial {
                state.outlier.end(trial);
            }
        });
        upstream.record(pass, found, now);
        shard
    }

    /// Letters go to the others: a tenth never come.
    fn tell(&mut self, shard: usize) {
        for notice in self.shards[shard].take_notices() {
            let suspect = match notice {
                Notice::Ejected { at, cause, was_suspected, .. } => {
                    self.seen.ejected[usize::from(cause == Cause::Share)] += 1;
                    self.seen.on_word += u64::from(was_suspected);
                    Some((at, cause)).filter(|_| !was_suspected).map(Some)
                }
                Notice::Opened => {
                    self.seen.opened += 1;
                    Some(None)
                }
                Notice::Returned { .. } => {
                    self.seen.returned += 1;
                    None
                }
                Notice::Closed { .. } => {
                    self.seen.closed += 1;
                    None
                }
            };
            let Some(suspect) = suspect else { continue };
            for sibling in (0..SHARDS).filter(|sibling| *sibling != shard) {
                if self.has_letters && self.rng.u8(..10) >= self.lost {
                    let after = self.ms(0, 5);
                    self.later(after, Event::Letter(sibling, suspect.clone()));
                }
            }
        }
    }

    fn check(&self, shard: usize) {
        let backends = self.shards[shard].state.with(|state| state.backends.clone());
        let ejected = backends.iter().filter(|one| one.state.with(|state| state.outlier.is_ejected())).count();
        assert!(ejected * 2 <= backends.len(), "shard {shard}: {ejected} of {} are out", backends.len());
        let mut trials = vec![0; backends.len()];
        for request in self.under_way.values().filter(|request| request.shard == shard) {
            let Some(trial) = request.trial else { continue };
            let place = backends.iter().position(|backend| Rc::ptr_eq(backend, &request.backend)).expect("it is one");
            trials[place] += u32::from(request.backend.state.with(|state| state.outlier.is_of(trial)));
        }
        assert!(
            trials.iter().all(|count| *count <= 1),
            "shard {shard}: more than one trial of an instance: {trials:?}"
        );
    }

    fn play(&mut self) {
        for shard in 0..SHARDS {
            let first = self.ms(0, 50);
            self.later(first, Event::Request(shard));
        }
        self.later(Duration::from_secs(1), Event::Mood);
        self.run_until(self.now + WILD);
        // From here on everything is well.
        self.what.retain(|_, event| !matches!(event, Event::Mood));
        self.events.retain(|Reverse((_, number))| self.what.contains_key(number));
        self.moods.fill(Mood::Well);
        self.is_calm = true;
        self.run_until(self.now + CALM);
        for (shard, upstream) in self.shards.iter().enumerate() {
            let report = upstream.report(self.now);
            let (circuit, all) = (report.circuit, report.total);
            assert_eq!((circuit, report.ejected, report.healthy), (CircuitState::Closed, 0, all), "shard {shard}");
            let are_tried = upstream.state.with(|state| state.has_trials);
            assert!(!are_tried, "shard {shard}: all that came back has answered");
        }
    }
}

#[test]
fn whatever_fails_most_stay_in_and_all_come_back() {
    let seeds = seeds(ROUNDS);
    let (are_enough, mut seen) = (seeds.are_enough(), Seen::default());
    for seed in seeds {
        let mut world = World::new(seed, 1 + usize::try_from(seed % 7).expect("few"));
        world.play();
        let Seen { ejected, on_word, returned, opened, closed, refused, trials } = world.seen;
        seen.ejected = [seen.ejected[0] + ejected[0], seen.ejected[1] + ejected[1]];
        seen.on_word += on_word;
        seen.returned += returned;
        seen.opened += opened;
        seen.closed += closed;
        seen.refused += refused;
        seen.trials += trials;
    }
    if std::env::var_os("SIM_TELL").is_some() {
        eprintln!("{seen:?}");
    }
    let Seen { ejected: [in_a_row, by_share], on_word, returned, opened, closed, refused, trials } = seen;
    let all = [in_a_row, by_share, on_word, returned, opened, closed, refused, trials];
    assert!(!are_enough || all.iter().all(|count| *count > 0), "some things never happened: {seen:?}");
}

#[test]
fn four_shards_that_are_told_do_not_need_four_times_the_failures() {
    for (mood, few, many) in [(Mood::Refuses, 8..=8, 20..=20), (Mood::Fails(50), 11..=40, 32..=400)] {
        let failures = |has_letters| {
            let mut world = World::new(7, 3);
            (world.has_letters, world.lost) = (has_letters, 0);
            world.moods[0] = mood;
            let eject = |world: &mut World, shards: usize| {
                let are_told = |world: &World| {
                    let mut shards = world.shards[..shards].iter();
                    shards.all(|shard| shard.report(world.now).ejected == 1)
                };
                let due = world.now + Duration::from_secs(8);
                while !are_told(world) && world.now < due {
                    world.run_until(world.now + Duration::from_millis(1));
                }
                assert!(are_told(world), "{mood:?}");
            };
            // One finds out first; the others have had no requests for it until then.
            world.later(Duration::ZERO, Event::Request(0));
            eject(&mut world, 1);
            for shard in 1..SHARDS {
                world.later(Duration::from_millis(10), Event::Request(shard));
            }
            eject(&mut world, SHARDS);
            world.failed
        };
        let (told, untold) = (failures(true), failures(false));
        assert!(few.contains(&told) && many.contains(&untold), "{mood:?}: {told} when told, {untold} otherwise");
        assert!(told * 10 <= untold * 9, "{mood:?}: {told} when told, {untold} otherwise");
    }
}

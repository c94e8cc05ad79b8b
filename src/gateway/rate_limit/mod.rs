//! How many requests may pass: the limits of the configuration, on one shard.
//!
//! `gcra` is the arithmetic, `cells` the bounded table, `counter` one limit on one shard and what shards tell each other,
//! `statement` what answers say of it. This file puts them together: which limits a request meets, in what order, and when
//! letters go out.

pub mod cells;
pub mod counter;
pub mod fleet;
pub mod gcra;
mod held;
mod plan;
mod statement;
#[cfg(test)]
mod tests;
mod untold;

use std::{
    fmt,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use cells::{CellIndex, CellKey};
use counter::{Counted, Counter, Counts, Due, Hits, Home, Owed, Verdict};
use held::{HeldKey, HeldRequests};
pub(super) use plan::RouteLimits;
pub use plan::{LimitPlan, compile};
pub(super) use statement::Statement;
use untold::Untold;

use crate::{
    config::{LIMITS_PER_ROUTE_MAX, LimitKey},
    exchange::{Code, Reject},
    shard::{Instant, Local, clock, task, timer},
    telemetry::{metrics, slots::MetricSlot},
};

/// How long requests that were admitted may wait until their key's home is told, when they are few.
const TELL_AFTER: Duration = Duration::from_millis(5);
/// How long a request may wait for its key's home: in reach of a few letters, or of a few round trips to Redis.
const HOLD_MAX: [(Home, Duration); 2] =
    [(Home::Shard, Duration::from_millis(50)), (Home::Redis, Duration::from_millis(250))];
/// How often a shard says that a limit refuses, or would, or has no places left.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Where keys are at home, as one who tells or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// This shard.
    Shard(usize),
    /// Redis, by way of the bridge.
    Redis,
}

/// How a shard tells others of a key. An answer is never lost, and whoever was told of hits answers, whatever becomes of
/// them. Hits that do not go are kept and told later; what is told of its own accord may be lost.
pub struct Post {
    /// This shard.
    pub me: usize,
    /// How many there are.
    pub shards: usize,
    /// These were admitted. Returns whether the letter went.
    pub tell_hits: Box<dyn Fn(To, Hits) -> bool>,
    /// They are counted: to the shard of this number.
    pub tell_counted: Box<dyn Fn(usize, Counted)>,
    /// Of its own accord: to the shard of this number, if there is room.
    pub tell_owed: Box<dyn Fn(usize, Owed)>,
}

impl Post {
    /// Tells all other shards but one.
    fn spread(&self, except: usize, owed: Owed) {
        for shard in (0..self.shards).filter(|shard| ![self.me, except].contains(shard)) {
            (self.tell_owed)(shard, owed);
        }
    }
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").field("me", &self.me).field("shards", &self.shards).finish_non_exhaustive()
    }
}

/// All limits of a shard. One per shard; a reload changes what is in it.
#[derive(Clone, Debug)]
pub struct Limits(Rc<LimitsShared>);

#[derive(Debug)]
struct LimitsShared {
    state: Local<LimitsState>,
    post: Post,
}

#[derive(Debug)]
struct LimitsState {
    /// By slot.
    counters: Vec<Option<Box<LimitCounter>>>,
    /// What homes are to be told.
    untold: Untold,
    /// Somebody will tell them.
    is_telling: bool,
    /// Requests that wait for word from their key's home.
    held: HeldRequests,
    /// Redis is away: keys are at home on shards.
    is_redis_away: bool,
    logged_at: Instant,
}

impl LimitsState {
    /// `None` if the limit came later, or is gone.
    fn counter_at(&mut self, slot: MetricSlot) -> Option<&mut Counter> {
        self.counters.get_mut(slot.index())?.as_deref_mut().map(|entry| &mut entry.counter)
    }

    /// The next that this home is to be told, if it may be told.
    fn next_untold(&mut self, home: To) -> Option<Hits> {
        while self.untold.may_tell(home) {
            let (slot, key) = self.untold.next(home)?;
            let Some(counter) = self.counter_at(slot) else { continue };
            let Some(hits) = counter.untold(key) else { continue };
            let to = to_home(counter, key);
            if to == home {
                self.untold.told(home);
                return Some(hits);
            }
            // It has moved since.
            self.keep(to, hits);
        }
        None
    }

    /// These could not be told: they are told later, with what comes until then.
    fn keep(&mut self, home: To, hits: Hits) {
        if self.counter_at(hits.limit).is_some_and(|counter| counter.keep(hits)) {
            self.untold.list(home, hits.limit, hits.key);
        }
    }
}

#[derive(Debug)]
struct LimitCounter {
    limit: LimitPlan,
    counter: Counter,
    logged: Counts,
    logged_shared: u64,
}

/// A request's way through some limits.
enum Passage {
    Passed,
    /// It may come again in so many nanoseconds, for this limit of the plan's.
    Refused(u64, u8),
    /// Not known yet; the home is where the answer comes from, and this key's comes at once for all that wait.
    Held(Home, HeldKey),
}

impl Limits {
    /// No limits yet.
    pub fn new(post: Post) -> Self {
        let state = LimitsState {
            counters: Vec::new(),
            untold: Untold::new(post.shards),
            is_telling: false,
            held: HeldRequests::default(),
            // Until the bridge says that it is there.
            is_redis_away: true,
            logged_at: Instant::START,
        };
        Self(Rc::new(LimitsShared { state: Local::new(state), post }))
    }

    /// These limits hold from now on. Those that stay keep what they counted.
    pub fn adopt(&self, plans: &[LimitPlan]) {
        let LimitsShared { state, post } = &*self.0;
        let now = clock::now();
        let held = state.with(|state| {
            let mut old = std::mem::take(&mut state.counters);
            for plan in plans {
                let index = plan.slot().index();
                if state.counters.len() <= index {
                    state.counters.resize_with(index + 1, || None);
                }
                let terms = plan.terms(state.is_redis_away);
                let known = old.get_mut(index).and_then(Option::take).filter(|entry| entry.limit.key == plan.key);
                let entry = match known {
                    Some(mut entry) => {
                        entry.counter.adopt(terms, now);
                        entry.limit = plan.clone();
                        entry
                    }
                    None => Box::new(LimitCounter {
                        limit: plan.clone(),
                        counter: Counter::new(terms, post.me, post.shards),
                        logged: Counts::default(),
                        logged_shared: 0,
                    }),
                };
                state.counters[index] = Some(entry);
            }
            state.held.take_all()
        });
        wake(held);
    }

    /// Redis went away, or came back: until it does, its limits count on shards, with their local share.
    pub fn redis_is_away(&self, is_away: bool) {
        let held = self.0.state.with(|state| {
            if std::mem::replace(&mut state.is_redis_away, is_away) == is_away {
                return Vec::new();
            }
            let now = clock::now();
            for entry in state.counters.iter_mut().flatten() {
                let terms = entry.limit.terms(is_away);
                entry.counter.adopt(terms, now);
            }
            state.held.take_all()
        });
        wake(held);
    }

    /// Whether a request may pass these limits, of which there are some; it counts in all of them or in none.
    ///
    /// It waits only for word from a key's home, when this shard is further ahead of it than it may be, and goes on in
    /// the turn in which that comes. Dropping the future then is as if it had never come.
    pub(super) async fn pass(
        &self,
        plans: &[LimitPlan],
        which: &[u8],
        key_of: impl Fn(LimitKey) -> Option<CellKey>,
        statement: &mut Statement,
    ) -> Result<(), Reject> {
        let began = clock::now();
        let mut now = began;
        let mut is_held = false;
        loop {
            match self.try_pass(plans, which, &key_of, now, is_held, statement) {
                Passage::Passed => return Ok(()),
                Passage::Refused(wait, index) => {
                    let name = &plans[usize::from(index)].name;
                    return Err(refusal(wait, format!("the limit {name} is used up")));
                }
                Passage::Held(home, key) => {
                    let held_max = HOLD_MAX.iter().find(|(at, _)| *at == home).map_or(Duration::ZERO, |(_, max)| *max);
                    let due = began + held_max;
                    if now >= due {
                        let why = "other shards or Redis did not say in time whether a limit is used up";
                        return Err(refusal(0, why.to_owned()));
                    }
                    is_held = true;
                    timer::within(due, self.word_from_home(key)).await;
                    now = clock::now();
                }
            }
        }
    }

    /// Completes when a key's home has said something of it, or limits have changed.
    async fn word_from_home(&self, key: HeldKey) {
        let state = &self.0.state;
        let mut waiting = HeldRequest { limits: self, key, number: None };
        poll_fn(|cx| {
            state.with(|state| match waiting.number {
                Some(number) if !state.held.waits(key, number, cx.waker()) => Poll::Ready(()),
                Some(_) => Poll::Pending,
                None => {
                    waiting.number = Some(state.held.add(key, cx.waker()));
                    Poll::Pending
                }
            })
        })
        .await;
    }

    /// One look at all of them, in one step.
    #[inline]
    fn try_pass(
        &self,
        plans: &[LimitPlan],
        which: &[u8],
        key_of: &impl Fn(LimitKey) -> Option<CellKey>,
        now: Instant,
        was_held: bool,
        statement: &mut Statement,
    ) -> Passage {
        let LimitsShared { state, post } = &*self.0;
        let mut due = [None; LIMITS_PER_ROUTE_MAX];
        let (passage, mut starts_telling) = state.with(|state| {
            let LimitsState { counters, untold, is_telling, .. } = state;
            let mut looked: [Option<(CellIndex, Verdict)>; LIMITS_PER_ROUTE_MAX] = [None; LIMITS_PER_ROUTE_MAX];
            let (mut wait, mut held) = (None, None);
            for (looked, index) in looked.iter_mut().zip(which) {
                let limit = &plans[usize::from(*index)];
                let Some(key) = key_of(limit.key) else { continue };
                let Some(counter) = counter_of(counters, limit) else { continue };
                let (place, verdict) = counter.look(key, now);
                *looked = Some((place, verdict));
                match verdict {
                    _ if counter.terms.dry_run => {}
                    Verdict::Exceeds(nanos) => wait = wait.max(Some((nanos, *index))),
                    Verdict::Unknown => {
                        counter.counts.held += u64::from(!was_held);
                        held = Some((counter.terms.home, (limit.slot().index(), counter.cells.at(place).key)));
                    }
                    Verdict::Conforms(_) => {}
                }
            }
            if let (None, Some((home, key))) = (wait, held) {
                return (Passage::Held(home, key), false);
            }
            let mut is_soon = false;
            for ((looked, due), index) in looked.iter().zip(&mut due).zip(which) {
                let Some((place, verdict)) = looked else { continue };
                let Some(counter) = counter_of(counters, &plans[usize::from(*index)]) else { continue };
                match verdict {
                    Verdict::Exceeds(_) if counter.terms.dry_run => counter.counts.dry_run += 1,
                    Verdict::Exceeds(_) => counter.counts.limited += 1,
                    Verdict::Conforms(next) if wait.is_none() => match counter.pass(*place, *next, now) {
                        Due::Nothing => {}
                        Due::Now(hits) => {
                            let home = to_home(counter, hits.key);
                            if untold.may_tell(home) {
                                untold.told(home);
                                *due = Some(Tell::Home(home, hits));
                            } else if counter.keep(hits) {
                                untold.list(home, hits.limit, hits.key);
                                is_soon = true;
                            }
                        }
                        Due::Spread(owed) => *due = Some(Tell::Others(owed)),
                        Due::Soon => {
                            let key = counter.cells.at(*place).key;
                            untold.list(to_home(counter, key), counter.terms.slot, key);
                            is_soon = true;
                        }
                    },
                    Verdict::Conforms(_) | Verdict::Unknown => {}
                }
                if !counter.terms.dry_run {
                    let (remaining, nanos) = counter.state(*place, now);
                    statement.say(*index, remaining, nanos);
                }
            }
            let starts_telling = is_soon && !std::mem::replace(is_telling, true);
            (wait.map_or(Passage::Passed, |(nanos, index)| Passage::Refused(nanos, index)), starts_telling)
        });
        for due in due.into_iter().flatten() {
            match due {
                Tell::Home(home, hits) => {
                    if !self.tell_home(home, hits) {
                        starts_telling |= state.with(|state| !std::mem::replace(&mut state.is_telling, true));
                    }
                }
                Tell::Others(owed) => post.spread(post.me, owed),
            }
        }
        if starts_telling {
            task::spawn("limits", self.clone().tell());
        }
        passage
    }

    /// Tells a home, which may be told and counts as told, and returns whether the letter went; if not, the hits are kept.
    fn tell_home(&self, home: To, hits: Hits) -> bool {
        let LimitsShared { state, post } = &*self.0;
        let went = (post.tell_hits)(home, hits);
        if !went {
            state.with(|state| {
                state.untold.answered(home, 1);
                state.keep(home, hits);
            });
        }
        went
    }

    /// Tells homes of what was admitted, some time after the first of it, and again as long as a home cannot be told.
    async fn tell(self) {
        let LimitsShared { state, .. } = &*self.0;
        loop {
            timer::sleep(TELL_AFTER).await;
            for home in state.with(|state| state.untold.homes()) {
                while let Some(hits) = state.with(|state| state.next_untold(home)) {
                    // If it does not go, the others of this home wait with it.
                    if !self.tell_home(home, hits) {
                        break;
                    }
                }
            }
            let is_over = state.with(|state| {
                state.is_telling = !state.untold.is_empty();
                !state.is_telling
            });
            if is_over {
                return;
            }
        }
    }

    /// The shard of this number has admitted requests whose key is at home here.
    pub fn count(&self, from: usize, hits: Hits) {
        let LimitsShared { state, post } = &*self.0;
        let now = clock::now();
        let (counted, spread) = state.with(|state| {
            let Hits { limit, key, count } = hits;
            match state.counter_at(limit) {
                Some(counter) => counter.count(hits, now),
                // The configuration came here later, or is gone already.
                None => (Counted { owed: Owed { limit, key, until: Instant::START }, count, answers: 1 }, None),
            }
        });
        (post.tell_counted)(from, counted);
        if let Some(spread) = spread {
            post.spread(from, spread);
        }
    }

    /// A key's home has counted what it was told of.
    pub fn hear(&self, home: To, counted: Counted) {
        self.learn(counted.owed, |state, now| {
            state.untold.answered(home, counted.answers);
            if let Some(counter) = state.counter_at(counted.owed.limit) {
                counter.hear(counted, now);
            }
        });
    }

    /// A key's home tells of its own accord.
    pub fn hear_owed(&self, owed: Owed) {
        self.learn(owed, |state, now| {
            if let Some(counter) = state.counter_at(owed.limit) {
                counter.hear_owed(owed, now);
            }
        });
    }

    /// Takes in what is told of a key, and wakes those who wait for word of it.
    fn learn(&self, owed: Owed, take: impl FnOnce(&mut LimitsState, Instant)) {
        let held = self.0.state.with(|state| {
            take(state, clock::now());
            state.held.take((owed.limit.index(), owed.key))
        });
        wake(held);
    }

    /// Writes down what was counted, and from time to time says what an operator should know.
    pub fn report(&self, counters: &mut metrics::Counters, now: Instant) {
        self.0.state.with(|state| {
            let logs = now.since(state.logged_at) >= LOG_INTERVAL;
            if logs {
                state.logged_at = now;
            }
            for entry in state.counters.iter_mut().flatten() {
                let Counter { terms, counts, cells, .. } = &entry.counter;
                let limit = counters.limit(terms.slot);
                limit.requests = [counts.allowed, counts.limited, counts.dry_run];
                limit.held = counts.held;
                limit.evicted = cells.evicted;
                limit.shared = cells.shared;
                limit.shards_alone = i64::from(entry.limit.is_fleet() && terms.home != Home::Redis);
                if logs {
                    entry.log();
                }
            }
        });
    }
}

/// A request's place among those that are held. Dropping it gives the place up.
struct HeldRequest<'l> {
    limits: &'l Limits,
    key: HeldKey,
    number: Option<u64>,
}

impl Drop for HeldRequest<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.limits.0.state.with(|state| state.held.remove(self.key, number));
        }
    }
}

fn wake(held: Vec<Waker>) {
    for waker in held {
        waker.wake();
    }
}

/// What is told of one request.
#[derive(Clone, Copy)]
enum Tell {
    Home(To, Hits),
    Others(Owed),
}

fn to_home(counter: &Counter, key: CellKey) -> To {
    match counter.terms.home {
        Home::Redis => To::Redis,
        Home::Shard | Home::Here => To::Shard(counter.home_of(key)),
    }
}

#[inline]
fn counter_of<'c>(counters: &'c mut [Option<Box<LimitCounter>>], limit: &LimitPlan) -> Option<&'c mut Counter> {
    counters.get_mut(limit.slot().index())?.as_mut().map(|entry| &mut entry.counter)
}

impl LimitCounter {
    /// Says what happened since it was said last.
    fn log(&mut self) {
        let Self { limit, counter, logged, logged_shared } = self;
        let name = &*limit.name;
        let counts = counter.counts;
        let (limited, dry_run) = (counts.limited - logged.limited, counts.dry_run - logged.dry_run);
        if limited > 0 {
            tracing::info!(limit = name, requests = limited, "a limit refused requests");
        }
        if dry_run > 0 {
            tracing::info!(limit = name, requests = dry_run, "a limit that only watches would have refused requests");
        }
        let shared = counter.cells.shared - *logged_shared;
        if shared > 0 {
            tracing::warn!(
                limit = name,
                requests = shared,
                places = counter.cells.capacity(),
                "a limit has no places left: new keys share one; raise limits.{name}.keys_max or expect a flood"
            );
        }
        (*logged, *logged_shared) = (counts, counter.cells.shared);
    }
}

/// Nobody is told to come back at once: the wait is rounded up.
fn refusal(wait_ns: u64, why: String) -> Reject {
    let seconds = wait_ns.div_ceil(1_000_000_000).max(1);
    Reject { retry_after_s: Some(u32::try_from(seconds).unwrap_or(u32::MAX)), ..Reject::caused(Code::RateLimited, why) }
}

//! Which backend takes a request. A pure core: time, chance and load are arguments.
//!
//! Of all backends those are *ready* that may be chosen now. That list is made anew when something changes, so that a choice
//! costs the same among three and among a thousand.

mod latency;
mod maglev;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

pub(super) use latency::Latency;
pub use maglev::Table;

use crate::{config::Balance, shard::Instant};

/// The numbers of [`Balancer`]. From the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How one is chosen.
    pub policy: Balance,
    /// Below this share of usable backends, in percent, all are used: too few would break under what is meant for all.
    pub panic_percent: u32,
    /// How long one that has come, or come back, takes to get its full share.
    pub slow_start: Duration,
}

/// Whether a backend may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Usable {
        /// Since when, if it has come or come back: the first requests come slowly.
        since: Option<Instant>,
    },
    /// Nothing is known of it yet: not while another one is usable.
    Untested,
    /// Not, as far as is known; but it may be when there are too few others.
    Unusable,
}

/// What a backend has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests that this shard has under way on it.
    pub in_flight: u32,
    /// How long its answers take, in microseconds; 0 while that is not known.
    pub latency_us: u32,
}

/// A backend has at most this multiple of the mean of all, in percent, before a key goes to another one.
const HASH_LOAD_PERCENT: u64 = 125;
/// So many places of a key are looked at: of a thousand backends of which half are out, one in 2^64 keys finds none.
const HASH_LOOKS_MAX: usize = 64;
/// So many backends of a key may have too much to do; then it stays at its first one.
const HASH_BUSY_MAX: u32 = 8;
/// Latencies whose ratio is less than this are equal, in halves: what is left is noise.
const LATENCY_RATIO_HALVES: u64 = 3;
/// The share that one which has just come gets at least, in percent.
const RAMP_PERCENT_MIN: u64 = 10;
/// How often it is drawn anew when the drawn one was tried already; then the list is looked through.
const DRAWS_MAX: usize = 4;

/// The choice among an upstream's backends, by their places. One per upstream and shard.
#[derive(Debug)]
pub struct Balancer {
    rules: Rules,
    standings: Vec<Standing>,
    table: Option<Arc<Table>>,
    /// Those that may be chosen now.
    ready: Vec<u32>,
    is_ready: Vec<bool>,
    /// Whose turn is next, as a position in `ready`.
    turn: usize,
    /// Until then some of `ready` come slowly.
    ramps_until: Instant,
    is_panicking: bool,
    rng: fastrand::Rng,
}

impl Balancer {
    /// A balancer without backends; the seed makes its choices repeatable.
    pub fn new(rules: Rules, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            rules,
            standings: Vec::new(),
            table: None,
            ready: Vec::new(),
            is_ready: Vec::new(),
            // Not the same one first on every shard.
            turn: rng.usize(..1 << 16),
            ramps_until: Instant::START,
            is_panicking: false,
            rng,
        }
    }

    /// Other backends. `table` is theirs, where they are chosen by key.
    pub fn set(&mut self, rules: Rules, standings: impl Iterator<Item = Standing>, table: Option<Arc<Table>>) {
        (self.rules, self.table) = (rules, table);
        self.standings.clear();
        self.standings.extend(standings);
        self.renew();
    }

    /// How the same backends stand from now on.
    pub fn stand(&mut self, standings: impl Iterator<Item = Standing>) {
        let mut has_changed = false;
        for (known, standing) in self.standings.iter_mut().zip(standings) {
            has_changed |= *known != standing;
            *known = standing;
        }
        if has_changed {
            self.renew();
        }
    }

    /// Which are ready, when something has changed.
    fn renew(&mut self) {
        let is_usable = |standing: &Standing| matches!(standing, Standing::Usable { .. });
        let count = |is_one: &dyn Fn(&Standing) -> bool| self.standings.iter().filter(|one| is_one(one)).count();
        let (known, usable) = (count(&|one| *one != Standing::Untested), count(&is_usable));
        // Those that have just come are no sign of trouble.
        self.is_panicking = usable < known && usable * 100 < known * self.rules.panic_percent as usize;
        let may_serve = |standing: &Standing| match standing {
            Standing::Usable { .. } => true,
            Standing::Untested => self.is_panicking || usable == 0,
            Standing::Unusable => self.is_panicking,
        };
        self.is_ready.clear();
        self.is_ready.extend(self.standings.iter().map(may_serve));
        self.ready.clear();
        self.ready.extend((0_u32..).zip(&self.is_ready).filter(|(_, is_ready)| **is_ready).map(|(at, _)| at));
        let ramp_end = |standing: &Standing| match standing {
            Standing::Usable { since: Some(since) } => *since + self.rules.slow_start,
            _ => Instant::START,
        };
        self.ramps_until = self.standings.iter().map(ramp_end).max().unwrap_or(Instant::START);
    }

    /// The backend that takes a request, of those that are meant; `None` if none of them is ready. `key` is what stays with
    /// one backend, `under_way` how many requests all backends have, this one included.
    pub fn choose(
        &mut self,
        now: Instant,
        key: Option<u64>,
        under_way: u32,
        load: impl Fn(usize) -> Load,
        is_meant: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if let [only] = self.ready[..] {
            return Some(only as usize).filter(|at| is_meant(*at));
        }
        let chosen = match (self.rules.policy, key) {
            (Balance::ConsistentHash, Some(key)) => self.by_key(key, under_way, &load, &is_meant),
            (Balance::RoundRobin, _) => self.in_turn(now, &is_meant),
            _ => self.of_two(now, &load, &is_meant),
        };
        // Few are meant, or they come slowly: any will do.
        chosen.or_else(|| self.find(&is_meant))
    }

    /// Of two that are drawn, the one with less to do (Mitzenmacher, "The Power of Two Choices in Randomized Load
    /// Balancing"), for as long as it takes for an answer (peak EWMA, as in Finagle).
    fn of_two(
        &mut self,
        now: Instant,
        load: impl Fn(usize) -> Load,
        is_meant: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = self.draw(now, None, &is_meant)?;
        let second = self.draw(now, Some(first), &is_meant);
        let first = self.ready[first] as usize;
        let Some(second) = second.map(|position| self.ready[position] as usize) else { return Some(first) };
        let (one, other) = (load(first), load(second));
        let (least, most) = (one.latency_us.min(other.latency_us), one.latency_us.max(other.latency_us));
        let differ = least > 0 && u64::from(most) * 2 >= u64::from(least) * LATENCY_RATIO_HALVES;
        let is_less = if differ && self.rules.policy != Balance::LeastRequests {
            cost_of(other) < cost_of(one)
        } else {
            other.in_flight < one.in_flight
        };
        Some(if is_less { second } else { first })
    }

    /// A position in `ready`, other than `but`. One that comes slowly is drawn as often as its share says: it is passed
    /// over as the first, and left out as the second.
    fn draw(&mut self, now: Instant, but: Option<usize>, is_meant: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.ready.len().checked_sub(usize::from(but.is_some())).filter(|count| *count > 0)?;
        for _ in 0..DRAWS_MAX {
            let drawn = self.rng.usize(..count);
            let position = drawn + usize::from(but.is_some_and(|but| drawn >= but));
            let at = self.ready[position] as usize;
            if !is_meant(at) {
                continue;
            }
            if self.takes_part(now, at) {
                return Some(position);
            }
            if but.is_some() {
                return None;
            }
        }
        None
    }

    /// One that is meant, from anywhere.
    fn find(&mut self, is_meant: impl Fn(usize) -> bool) -> Option<usize> {
        let from = if self.ready.is_empty() { 0 } else { self.rng.usize(..self.ready.len()) };
        let (before, after) = self.ready.split_at(from);
        after.iter().chain(before).map(|at| *at as usize).find(|at| is_meant(*at))
    }

    /// Whether one that has come a while ago gets this request.
    fn takes_part(&mut self, now: Instant, at: usize) -> bool {
        if now >= self.ramps_until {
            return true;
        }
        let Standing::Usable { since: Some(since) } = self.standings[at] else { return true };
        let whole = self.rules.slow_start.as_millis().max(1);
        let percent = u64::try_from(now.since(since).as_millis().saturating_mul(100) / whole).unwrap_or(100);
        self.rng.u64(..100) < percent.max(RAMP_PERCENT_MIN)
    }

    fn in_turn(&mut self, now: Instant, is_meant: impl Fn(usize) -> bool) -> Option<usize> {
        for _ in 0..self.ready.len() {
            self.turn = (self.turn + 1) % self.ready.len();
            let at = self.ready[self.turn] as usize;
            if is_meant(at) && self.takes_part(now, at) {
                return Some(at);
            }
        }
        None
    }

    /// The same for the same key, but for one that has far more to do than the others (Mirrokni et al., "Consistent Hashing
    /// with Bounded Loads").
    fn by_key(
        &self,
        key: u64,
        under_way: u32,
        load: impl Fn(usize) -> Load,
        is_meant: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let table = self.table.as_ref()?;
        let bound = (u64::from(under_way) * HASH_LOAD_PERCENT).div_ceil(self.ready.len().max(1) as u64 * 100);
        let (mut first, mut busy) = (None, 0_u32);
        for at in table.from(key).take(HASH_LOOKS_MAX) {
            if !self.is_ready.get(at).copied().unwrap_or(false) || !is_meant(at) {
                continue;
            }
            first.get_or_insert(at);
            // One more than that is always borne: with few requests under way the mean says nothing.
            if u64::from(load(at).in_flight) <= bound {
                return Some(at);
            }
            busy += 1;
            if busy == HASH_BUSY_MAX {
                break;
            }
        }
        first
    }
}

/// How long a request would take there.
fn cost_of(load: Load) -> u64 {
    (u64::from(load.in_flight) + 1) * u64::from(load.latency_us)
}

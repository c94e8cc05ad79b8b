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

/// What a backend is to get, beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its part of what its tier gets; none with 0.
    pub weight: u16,
    /// Which backends it is one of: those of a higher tier get what the lower ones cannot bear.
    pub tier: u16,
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
    /// It answers, and says that it is not well: not unless there are too few others.
    Unwell,
    /// It did not answer when it was asked: not unless there are no others.
    Unusable,
    /// Not, however few others there are: an operator holds it out of use.
    Held {
        /// Whether requests whose key is its own still go there.
        keeps_keys: bool,
    },
}

/// What a backend has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests that this shard has under way on it.
    pub in_flight: u32,
    /// How long its answers take, in microseconds; 0 while that is not known.
    pub latency_us: u32,
}

/// What is quicker than that differs by who else wants the processor.
const NOISE_US: u32 = 1000;

impl Load {
    fn without_noise(self) -> Self {
        Self { latency_us: if self.latency_us > 0 { self.latency_us.max(NOISE_US) } else { 0 }, ..self }
    }
}

/// A backend has at most this multiple of the mean of all, in percent, before a key goes to another one.
const HASH_LOAD_PERCENT: u64 = 125;
/// So many places of a key are looked at: of a thousand backends of which half are out, one in 2^64 keys finds none.
const HASH_LOOKS_MAX: usize = 64;
/// So many backends of a key may have too much to do; then it stays at its first one.
const HASH_BUSY_MAX: u32 = 8;
/// Latencies whose ratio is less than this are equal, in halves: what is left is noise.
const LATENCY_RATIO_HALVES: u64 = 3;
/// Who would take so many times as long is slow, and no noise.
const FAR_SLOWER: u128 = 4;
/// The share that one which has just come gets at least, in percent.
const RAMP_PERCENT_MIN: u64 = 10;
/// How often it is drawn anew when the drawn one was tried already; then the list is looked through.
const DRAWS_MAX: usize = 4;

/// A tier of which so much is well, in percent, bears all that is meant for it; what is less goes to the next one in the same
/// measure (Envoy's overprovisioning factor of 1.4: 100 / 72).
const BEARS_ALL_PERCENT: usize = 72;

/// The choice among an upstream's backends, by their places. One per upstream and shard.
#[derive(Debug)]
pub struct Balancer {
    rules: Rules,
    backends: Vec<(Share, Standing)>,
    table: Option<Arc<Table>>,
    /// Those that may be chosen now, tier by tier.
    ready: Vec<u32>,
    is_ready: Vec<bool>,
    /// For each of `ready`, the weights of its tier up to its own.
    sums: Vec<u32>,
    /// Who gets requests now.
    tiers: Vec<Tier>,
    /// Usable backends of tiers that get none now, tier by tier: for requests that those of `ready` have failed.
    spare: Vec<u32>,
    /// Whose turn is next.
    turn: u32,
    /// Until then some of `ready` come slowly.
    ramps_until: Instant,
    is_panicking: bool,
    /// The first tier in which one that is held keeps its keys.
    keeps: Option<u16>,
    rng: fastrand::Rng,
}

/// Backends that get requests by one measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tier {
    /// Its number, as shares have it.
    number: u16,
    /// Its backends: from here to there in `ready`.
    from: usize,
    to: usize,
    /// Its weights together.
    weight: u32,
    /// Whether all weigh the same.
    is_even: bool,
    /// It and those before it get so many percent of all requests.
    percent: u64,
}

impl Balancer {
    /// A balancer without backends; the seed makes its choices repeatable.
    pub fn new(rules: Rules, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            rules,
            backends: Vec::new(),
            table: None,
            ready: Vec::new(),
            is_ready: Vec::new(),
            sums: Vec::new(),
            tiers: Vec::new(),
            spare: Vec::new(),
            // Not the same one first on every shard.
            turn: rng.u32(..1 << 16),
            ramps_until: Instant::START,
            is_panicking: false,
            keeps: None,
            rng,
        }
    }

    /// Other backends. `table` is theirs, where they are chosen by key.
    pub fn set(&mut self, rules: Rules, backends: impl Iterator<Item = (Share, Standing)>, table: Option<Arc<Table>>) {
        (self.rules, self.table) = (rules, table);
        self.backends.clear();
        self.backends.extend(backends);
        self.renew();
    }

    /// How the same backends stand from now on.
    pub fn stand(&mut self, standings: impl Iterator<Item = Standing>) {
        let mut has_changed = false;
        for ((_, known), standing) in self.backends.iter_mut().zip(standings) {
            has_changed |= *known != standing;
            *known = standing;
        }
        if has_changed {
            self.renew();
        }
    }

    /// The same backends weigh so much from now on. Whose key is whose stays as it is.
    pub fn weigh(&mut self, weights: impl Iterator<Item = u16>) {
        self.backends.iter_mut().zip(weights).for_each(|((share, _), weight)| share.weight = weight);
        self.renew();
    }

    /// Whether backends are used that are not well, because too few are.
    pub fn is_panicking(&self) -> bool {
        self.is_panicking
    }

    /// Which are ready, when something has changed.
    fn renew(&mut self) {
        let mut counts: Vec<Counts> = Vec::new();
        for (share, standing) in self.backends.iter().filter(|(share, _)| share.weight > 0) {
            let tier = usize::from(share.tier);
            counts.resize(counts.len().max(tier + 1), Counts::default());
            counts[tier].count(share.weight, *standing);
        }
        let is_enough = |counts: &[Counts]| counts.iter().map(Counts::bears_percent).sum::<usize>() >= 100;
        let may_panic = self.rules.panic_percent > 0;
        let keeps = |(_, standing): &&(Share, Standing)| *standing == Standing::Held { keeps_keys: true };
        self.keeps = self.backends.iter().filter(keeps).map(|(share, _)| share.tier).min();
        self.is_panicking = false;
        if counts.iter().all(|tier| tier.usable == 0) {
            // Who is the best that there is: not tested, then not well, then not there at all.
            if let Some(tier) = counts.iter_mut().find(|tier| tier.untested > 0) {
                tier.takes_untested = true;
            } else if may_panic && let Some(tier) = counts.iter_mut().find(|tier| tier.unwell > 0) {
                tier.takes_unwell = true;
            } else if may_panic && let Some(tier) = counts.iter_mut().find(|tier| tier.unusable > 0) {
                tier.takes_unusable = true;
            }
        } else if !is_enough(&counts) {
            for tier in counts.iter_mut().filter(|tier| tier.is_short(self.rules.panic_percent)) {
                (tier.takes_untested, tier.takes_unwell) = (true, true);
            }
        }
        for tier in &mut counts {
            self.is_panicking |= tier.takes_unwell && tier.unwell > 0 || tier.takes_unusable;
        }
        self.share_out(&counts);
        let ramp_end = |(_, standing): &(Share, Standing)| match standing {
            Standing::Usable { since: Some(since) } => *since + self.rules.slow_start,
            _ => Instant::START,
        };
        self.ramps_until = self.backends.iter().map(ramp_end).max().unwrap_or(Instant::START);
    }

    /// Which tier gets how much: the first as much as it bears, the next of what is left, and so on. Where all of them do not
    /// bear all of it, each gets by what it bears.
    fn share_out(&mut self, counts: &[Counts]) {
        let Self { backends, ready, is_ready, sums, tiers, spare, .. } = self;
        let borne: usize = counts.iter().map(Counts::bears_percent).sum();
        ready.clear();
        sums.clear();
        tiers.clear();
        spare.clear();
        is_ready.clear();
        is_ready.resize(backends.len(), false);
        let (mut percent, mut bears) = (0, 0);
        for (number, counts) in (0_u16..).zip(counts) {
            bears += counts.bears_percent();
            let up_to = if borne >= 100 { bears.min(100) } else { bears * 100 / borne.max(1) };
            let members = (0_u32..).zip(backends.iter());
            let members = members
                .filter(|(_, (share, standing))| share.tier == number && share.weight > 0 && counts.takes(*standing));
            if up_to == percent {
                spare.extend(members.map(|(at, _)| at));
                continue;
            }
            percent = up_to;
            let (from, mut weight, mut first) = (ready.len(), 0_u32, None);
            let mut is_even = true;
            for (at, (share, _)) in members {
                is_even &= *first.get_or_insert(share.weight) == share.weight;
                weight += u32::from(share.weight);
                ready.push(at);
                sums.push(weight);
                is_ready[at as usize] = true;
            }
            tiers.push(Tier { number, from, to: ready.len(), weight, is_even, percent: percent as u64 });
        }
        if let Some(last) = tiers.last_mut() {
            last.percent = 100;
        }
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
        if let Some(kept) = self.kept(key, &is_meant) {
            return Some(kept);
        }
        let chosen = match self.ready[..] {
            [] => None,
            [only] => Some(only as usize).filter(|at| is_meant(*at)),
            _ => {
                let tier = self.tier(key);
                let chosen = match (self.rules.policy, key) {
                    (Balance::ConsistentHash, Some(key)) => self.by_key(tier, key, under_way, &load, &is_meant),
                    (Balance::RoundRobin, _) => self.in_turn(tier, now, &is_meant),
                    _ => self.of_two(tier, now, &load, &is_meant),
                };
                // Few are meant, or they come slowly: any will do.
                chosen.or_else(|| self.find(tier, &is_meant))
            }
        };
        chosen.or_else(|| self.spare.iter().map(|at| *at as usize).find(|at| is_meant(*at)))
    }

    /// One that is held and keeps the key that is its own.
    fn kept(&self, key: Option<u64>, is_meant: impl Fn(usize) -> bool) -> Option<usize> {
        let (tier, key) = (self.keeps?, key.filter(|_| self.rules.policy == Balance::ConsistentHash)?);
        for at in self.table.as_ref()?.from(tier.into(), key).take(HASH_LOOKS_MAX) {
            match self.backends.get(at)?.1 {
                Standing::Held { keeps_keys: true } => return Some(at).filter(|at| is_meant(*at)),
                _ if self.is_ready[at] => return None,
                _ => {}
            }
        }
        None
    }

    /// The tier that gets a request: the same for the same key, for as long as shares stay.
    fn tier(&mut self, key: Option<u64>) -> Tier {
        if let [only] = self.tiers[..] {
            return only;
        }
        // Other bits than those that say which backend it is.
        let drawn = key.map_or_else(|| self.rng.u64(..100), |key| (key >> 40) % 100);
        let tier = self.tiers.iter().find(|tier| drawn < tier.percent);
        *tier.expect("the last one gets what is left, and there is one where backends are ready")
    }

    /// Of two that are drawn, the one with less to do (Mitzenmacher, "The Power of Two Choices in Randomized Load
    /// Balancing"), for as long as it takes for an answer (peak EWMA, as in Finagle), by what it can bear.
    fn of_two(
        &mut self,
        tier: Tier,
        now: Instant,
        load: impl Fn(usize) -> Load,
        is_meant: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = self.draw(tier, now, None, &is_meant)?;
        let second = self.draw(tier, now, Some(first), &is_meant);
        let first = self.ready[first] as usize;
        let Some(second) = second.map(|position| self.ready[position] as usize) else { return Some(first) };
        let [one, other] = [first, second].map(|at| load(at).without_noise());
        let [weight, other_weight] = [first, second].map(|at| u64::from(self.backends[at].0.weight));
        let (least, most) = (one.latency_us.min(other.latency_us), one.latency_us.max(other.latency_us));
        let differ = least > 0 && u64::from(most) * 2 >= u64::from(least) * LATENCY_RATIO_HALVES;
        let is_less = if differ && self.rules.policy != Balance::LeastRequests {
            let heavier = weight.max(other_weight);
            // Drawn from all by weight the second might have been the first again: then it takes more to change one's mind,
            // or one of a small weight would get far more than that, as the others have a bad moment more often.
            let is_doubled = !tier.is_even && self.rng.u64(..u64::from(tier.weight)) < weight;
            let margin = if is_doubled { FAR_SLOWER } else { 1 };
            cost_of(other, other_weight, heavier) * margin < cost_of(one, weight, heavier)
        } else {
            // With one more it has no more to do than the first has already, for its weight: they are drawn by weight, and
            // where there is little to do that alone decides.
            (u64::from(other.in_flight) + 1) * weight <= u64::from(one.in_flight) * other_weight
        };
        Some(if is_less { second } else { first })
    }

    /// A position in `ready`, other than `but`, drawn by weight. One that comes slowly is drawn as often as its share says:
    /// it is passed over as the first, and left out as the second.
    fn draw(
        &mut self,
        tier: Tier,
        now: Instant,
        but: Option<usize>,
        is_meant: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let count = (tier.to - tier.from).checked_sub(usize::from(but.is_some())).filter(|count| *count > 0)?;
        for _ in 0..DRAWS_MAX {
            let position = if tier.is_even {
                let drawn = tier.from + self.rng.usize(..count);
                drawn + usize::from(but.is_some_and(|but| drawn >= but))
            } else {
                let without = but.map_or(0, |but| self.weight_at(but));
                let drawn = self.rng.u32(..tier.weight - without);
                let is_behind = but.is_some_and(|but| drawn >= self.sums[but] - without);
                self.position_of(tier, drawn + if is_behind { without } else { 0 })
            };
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

    /// The position whose weight this is a part of.
    fn position_of(&self, tier: Tier, drawn: u32) -> usize {
        tier.from + self.sums[tier.from..tier.to].partition_point(|sum| *sum <= drawn)
    }

    fn weight_at(&self, position: usize) -> u32 {
        u32::from(self.backends[self.ready[position] as usize].0.weight)
    }

    /// One that is meant, from anywhere in the tier, or else in another one.
    fn find(&mut self, tier: Tier, is_meant: impl Fn(usize) -> bool) -> Option<usize> {
        let (before, after) = self.ready[tier.from..tier.to].split_at(self.rng.usize(..tier.to - tier.from));
        let others = self.ready.iter().enumerate().filter(|(at, _)| !(tier.from..tier.to).contains(at));
        let all = after.iter().chain(before).chain(others.map(|(_, at)| at));
        all.map(|at| *at as usize).find(|at| is_meant(*at))
    }

    /// Whether one that has come a while ago gets this request.
    fn takes_part(&mut self, now: Instant, at: usize) -> bool {
        if now >= self.ramps_until {
            return true;
        }
        let Standing::Usable { since: Some(since) } = self.backends[at].1 else { return true };
        let whole = self.rules.slow_start.as_millis().max(1);
        let percent = u64::try_from(now.since(since).as_millis().saturating_mul(100) / whole).unwrap_or(100);
        self.rng.u64(..100) < percent.max(RAMP_PERCENT_MIN)
    }

    fn in_turn(&mut self, tier: Tier, now: Instant, is_meant: impl Fn(usize) -> bool) -> Option<usize> {
        let count = tier.to - tier.from;
        for _ in 0..count {
            self.turn = self.turn.wrapping_add(1);
            let position = if tier.is_even {
                tier.from + self.turn as usize % count
            } else {
                // Multiples of the golden ratio leave no part of the weights out for long (Knuth, "Sorting and Searching",
                // §6.4, theorem S).
                let spread = u64::from(self.turn.wrapping_mul(0x9e37_79b9));
                self.position_of(tier, u32::try_from((spread * u64::from(tier.weight)) >> 32).unwrap_or(0))
            };
            let at = self.ready[position] as usize;
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
        tier: Tier,
        key: u64,
        under_way: u32,
        load: impl Fn(usize) -> Load,
        is_meant: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let table = self.table.as_ref()?;
        let (mut first, mut busy) = (None, 0_u32);
        for at in table.from(tier.number.into(), key).take(HASH_LOOKS_MAX) {
            if !self.is_ready.get(at).copied().unwrap_or(false) || !is_meant(at) {
                continue;
            }
            first.get_or_insert(at);
            let fair = u64::from(under_way) * u64::from(self.backends[at].0.weight);
            let bound = fair.saturating_mul(HASH_LOAD_PERCENT).div_ceil(u64::from(tier.weight.max(1)) * 100);
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

/// How a tier's backends stand, by their weights, and who of them is taken. Where all weigh the same it is as if they were
/// counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    usable: usize,
    untested: usize,
    unwell: usize,
    unusable: usize,
    takes_untested: bool,
    takes_unwell: bool,
    takes_unusable: bool,
}

impl Counts {
    fn count(&mut self, weight: u16, standing: Standing) {
        *match standing {
            Standing::Usable { .. } => &mut self.usable,
            Standing::Untested => &mut self.untested,
            Standing::Unwell => &mut self.unwell,
            Standing::Unusable => &mut self.unusable,
            // It is neither well nor in trouble: it is not there.
            Standing::Held { .. } => return,
        } += usize::from(weight);
    }

    fn takes(&self, standing: Standing) -> bool {
        match standing {
            Standing::Usable { .. } => true,
            Standing::Untested => self.takes_untested,
            Standing::Unwell => self.takes_unwell,
            Standing::Unusable => self.takes_unusable,
            Standing::Held { .. } => false,
        }
    }

    /// Those that have just come are no sign of trouble.
    fn known(&self) -> usize {
        self.usable + self.unwell + self.unusable
    }

    /// Whether less than this share is usable.
    fn is_short(&self, percent: u32) -> bool {
        self.usable * 100 < self.known() * percent as usize
    }

    /// How much of all requests those bear that are taken.
    fn bears_percent(&self) -> usize {
        let taken = |is_taken: bool, count: usize| if is_taken { count } else { 0 };
        let untested = taken(self.takes_untested, self.untested);
        let ready =
            self.usable + untested + taken(self.takes_unwell, self.unwell) + taken(self.takes_unusable, self.unusable);
        // However few they are, they are not nothing.
        let least = usize::from(ready > 0);
        (ready * 10_000 / ((self.known() + untested).max(1) * BEARS_ALL_PERCENT)).clamp(least, 100)
    }
}

/// How long a request would take at one of this weight, beside one of the greater weight, whose requests under way weigh less.
fn cost_of(load: Load, weight: u64, heavier: u64) -> u128 {
    if weight == heavier {
        return (u128::from(load.in_flight) + 1) * u128::from(load.latency_us);
    }
    u128::from(load.latency_us) * u128::from(weight + u64::from(load.in_flight) * heavier) / u128::from(weight)
}

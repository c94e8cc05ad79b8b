//! One limit on one shard: who may pass, and what is told to the key's home so that all shards count together.
//!
//! Pure. A key has a *home*: a shard, or with the scope `fleet` Redis. Every other shard knows what its home said last and
//! what it admitted since, and admits by that without asking. It may be *ahead* of its home by a few requests only, its
//! lease; then it holds the next one until the home has counted them. So however requests are spread over `n` shards, no
//! more pass than the burst, what is earned meanwhile, and `n - 1` leases (decision 9 has the proof, `tests` a search for
//! a counterexample). Of keys that have used half of their burst the home tells everybody, so that whoever comes by other
//! shards one after the other meets shards that know.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use super::{
    cells::{CellIndex, CellKey, Cells},
    gcra::Rate,
};
use crate::{shard::Instant, telemetry::slots::MetricSlot};

/// Requests admitted on one shard, told to their key's home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hits {
    /// The limit.
    pub limit: MetricSlot,
    /// Whose they are.
    pub key: CellKey,
    /// How many.
    pub count: u16,
}

/// What the home answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The key, with them.
    pub owed: Owed,
    /// How many requests it has counted with this.
    pub count: u16,
    /// How many times it was told of them, which this is the answer to.
    pub answers: u16,
}

/// What the home says of a key, all shards together; also of its own accord. Whoever misses that counts on by what it
/// knows, and hears it with the next one or with the answer to its own hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// The limit.
    pub limit: MetricSlot,
    /// Whose it is.
    pub key: CellKey,
    /// Until when something is owed.
    pub until: Instant,
}

/// Where a limit's keys are at home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Every shard counts for itself.
    Here,
    /// On the shard that the key's hash names.
    Shard,
    /// In Redis, behind the bridge.
    Redis,
}

/// What the counter works by; a reload brings a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its place in the metrics; letters name it so, too.
    pub slot: MetricSlot,
    /// How much of what.
    pub rate: Rate,
    /// Where its keys are at home.
    pub home: Home,
    /// How far a shard may be ahead of a key's home.
    pub lease: u16,
    /// It counts, and refuses nobody.
    pub dry_run: bool,
    /// Keys that it remembers.
    pub keys_max: usize,
}

/// What one request is told by one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It conforms; then so much is owed.
    Conforms(u64),
    /// It conforms in so many nanoseconds.
    Exceeds(u64),
    /// It conforms as far as is known here, and the shard is too far ahead to rely on that.
    Unknown,
}

/// What is to be told to the key's home, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// At once: half of the lease is used.
    Now(Hits),
    /// Soon, together with others.
    Soon,
    /// To all other shards: this one is the key's home.
    Spread(Owed),
}

/// What was counted of a limit on one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that passed.
    pub allowed: u64,
    /// Requests that were refused.
    pub limited: u64,
    /// Requests that a dry run would have refused.
    pub dry_run: u64,
    /// Requests that waited for their key's home.
    pub held: u64,
}

/// One per limit and shard.
#[derive(Debug)]
pub struct Counter {
    /// What it works by.
    pub terms: Terms,
    /// What it counted.
    pub counts: Counts,
    /// What each key owes.
    pub cells: Cells,
    me: usize,
    shards: usize,
}

impl Counter {
    /// A counter on shard `me` of so many.
    pub fn new(terms: Terms, me: usize, shards: usize) -> Self {
        Self { terms, counts: Counts::default(), cells: Cells::new(terms.keys_max), me, shards }
    }

    /// Works by new terms from now on. What was counted stays, as a number of requests.
    pub fn adopt(&mut self, terms: Terms, now: Instant) {
        let now = now.as_nanos();
        let (old, new) = (self.terms.rate, terms.rate);
        if old != new {
            for cell in self.cells.owing(now) {
                cell.owed_until = old.convert(cell.owed_until, now, new);
            }
        }
        if terms.keys_max != self.terms.keys_max {
            let mut cells = Cells::new(terms.keys_max);
            (cells.evicted, cells.shared) = (self.cells.evicted, self.cells.shared);
            for cell in self.cells.owing(now) {
                let place = cells.find(cell.key, now);
                let taken = cells.at(place);
                taken.owed_until = taken.owed_until.max(cell.owed_until);
                taken.ahead = taken.ahead.saturating_add(cell.ahead);
                taken.untold = taken.untold.saturating_add(cell.untold);
                taken.is_listed |= cell.is_listed;
            }
            self.cells = cells;
        }
        self.terms = terms;
    }

    /// Whether one more request of this key may pass. Nothing is counted yet.
    #[inline]
    pub fn look(&mut self, key: CellKey, now: Instant) -> (CellIndex, Verdict) {
        let place = self.cells.find(key, now.as_nanos());
        let lease = if self.terms.dry_run { u16::MAX } else { self.terms.lease };
        let cell = self.cells.at(place);
        let verdict = match self.terms.rate.admit(cell.owed_until, now.as_nanos()) {
            Err(wait) => Verdict::Exceeds(wait),
            Ok(_) if cell.ahead >= lease => Verdict::Unknown,
            Ok(next) => Verdict::Conforms(next),
        };
        (place, verdict)
    }

    /// It passes: `next` is what its verdict said. No other key was looked for since.
    #[inline]
    pub fn pass(&mut self, place: CellIndex, next: u64, now: Instant) -> Due {
        self.counts.allowed = self.counts.allowed.saturating_add(1);
        let Terms { slot, home, lease, .. } = self.terms;
        let (me, shards) = (self.me, self.shards);
        let cell = self.cells.at(place);
        cell.owed_until = next;
        match home {
            Home::Here => return Due::Nothing,
            Home::Shard if cell.key.home(shards) == me => {
                return match self.spread(place, 1, now) {
                    Some(owed) => Due::Spread(owed),
                    None => Due::Nothing,
                };
            }
            Home::Shard | Home::Redis => {}
        }
        cell.ahead = cell.ahead.saturating_add(1);
        cell.untold = cell.untold.saturating_add(1);
        if u32::from(cell.untold) * 2 >= u32::from(lease) {
            let hits = Hits { limit: slot, key: cell.key, count: cell.untold };
            cell.untold = 0;
            return Due::Now(hits);
        }
        // The first of several asks for the others, too.
        if std::mem::replace(&mut cell.is_listed, true) { Due::Nothing } else { Due::Soon }
    }

    /// These hits could not be told, as there was no room: they are told with the next. Whether the key is to be listed
    /// among those of whom something is untold, as it is not yet.
    #[must_use = "nobody else lists it"]
    pub fn keep(&mut self, hits: Hits) -> bool {
        // It has a place of its own as long as something is ahead.
        let Some(place) = self.cells.find_known(hits.key) else { return false };
        let cell = self.cells.at(place);
        cell.untold = cell.untold.saturating_add(hits.count);
        !std::mem::replace(&mut cell.is_listed, true)
    }

    /// What has not been told of a key that was listed. It is not listed any more.
    pub fn untold(&mut self, key: CellKey) -> Option<Hits> {
        let place = self.cells.find_known(key)?;
        let cell = self.cells.at(place);
        cell.is_listed = false;
        // Where the key is at home nothing is ahead.
        let count = std::mem::take(&mut cell.untold).min(cell.ahead);
        (count > 0).then_some(Hits { limit: self.terms.slot, key, count })
    }

    /// What all shards are told of a key that is at home here, when there is a reason to.
    #[inline]
    fn spread(&mut self, place: CellIndex, count: u16, now: Instant) -> Option<Owed> {
        let Terms { slot, rate, lease, .. } = self.terms;
        let cell = self.cells.at(place);
        cell.untold = cell.untold.saturating_add(count);
        if u32::from(cell.untold) * 2 < u32::from(lease) || !rate.is_half_used(cell.owed_until, now.as_nanos()) {
            return None;
        }
        cell.untold = 0;
        Some(Owed { limit: slot, key: cell.key, until: Instant::from_nanos(cell.owed_until) })
    }

    /// Another shard admitted some; this one is their key's home. What that shard is told, and what all others are.
    pub fn count(&mut self, hits: Hits, now: Instant) -> (Counted, Option<Owed>) {
        let Hits { limit, key, count } = hits;
        let place = self.cells.find(key, now.as_nanos());
        let cell = self.cells.at(place);
        cell.owed_until = self.terms.rate.charge(cell.owed_until, now.as_nanos(), count.into());
        let owed = Owed { limit, key, until: Instant::from_nanos(cell.owed_until) };
        (Counted { owed, count, answers: 1 }, self.spread(place, count, now))
    }

    /// A key's home has counted what was admitted here.
    pub fn hear(&mut self, counted: Counted, now: Instant) {
        self.learn(counted.owed, counted.count, now);
    }

    /// A key's home tells of its own accord.
    pub fn hear_owed(&mut self, owed: Owed, now: Instant) {
        self.learn(owed, 0, now);
    }

    fn learn(&mut self, owed: Owed, count: u16, now: Instant) {
        let place = if owed.until > now {
            self.cells.find_own(owed.key, now.as_nanos())
        } else {
            self.cells.find_known(owed.key)
        };
        let Some(place) = place else { return };
        let rate = self.terms.rate;
        let cell = self.cells.at(place);
        cell.ahead = cell.ahead.saturating_sub(count);
        let known = owed.until.as_nanos().saturating_add(rate.worth(cell.ahead.into()));
        cell.owed_until = cell.owed_until.max(known);
    }

    /// How many requests of a key conform, and the nanoseconds until more do: until the next one when none does, until
    /// nothing is owed otherwise.
    #[inline]
    pub fn state(&mut self, place: CellIndex, now: Instant) -> (u64, u64) {
        let owed_until = self.cells.at(place).owed_until;
        let now = now.as_nanos();
        let rate = self.terms.rate;
        match rate.remaining(owed_until, now) {
            0 => (0, rate.wait(owed_until, now)),
            remaining => (remaining, owed_until.saturating_sub(now)),
        }
    }

    /// The shard on which a key is at home.
    pub fn home_of(&self, key: CellKey) -> usize {
        key.home(self.shards)
    }
}

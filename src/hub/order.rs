//! In which order the messages came that rooms remember, so that the oldest of all is the first to be forgotten.
//!
//! Rooms also forget by themselves, and do not look for it here. What is stale for that is taken out with each step that is
//! taken, a little at a time: a shard remembers hundreds of thousands of messages.

use std::collections::VecDeque;

use super::arena::Key;

/// A message of a room, by its number.
pub(super) type Kept = (Key, u64);

/// Stale entries that are let be, beside one for each that is not.
const STALE_MAX: usize = 1024;
/// Entries that are looked at for each message that comes: more than it makes.
const LOOKS: usize = 4;
/// Entries that one step looks at, and takes out at the front, at most.
const STEP_MAX: usize = 1024;

/// The messages, the oldest first, and stale entries.
#[derive(Debug)]
pub(super) struct Order {
    entries: VecDeque<Kept>,
    /// It is looked through once there are so many.
    looks_from: usize,
    /// How far it is looked through: what is not stale of the first `seen` is the first `kept`.
    sweep: Option<Sweep>,
    /// Looks that messages which came have yet to pay for.
    looks: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sweep {
    kept: usize,
    seen: usize,
}

impl Default for Order {
    fn default() -> Self {
        Self { entries: VecDeque::new(), looks_from: STALE_MAX, sweep: None, looks: 0 }
    }
}

impl Order {
    pub(super) fn extend(&mut self, messages: impl IntoIterator<Item = Kept>) {
        let before = self.entries.len();
        self.entries.extend(messages);
        let came = self.entries.len().saturating_sub(before);
        self.looks = self.looks.saturating_add(came.saturating_mul(LOOKS));
    }

    /// Takes out the oldest; it may be stale.
    pub(super) fn pop_front(&mut self) -> Option<Kept> {
        if let Some(sweep) = &mut self.sweep {
            sweep.kept = sweep.kept.saturating_sub(1);
            sweep.seen = sweep.seen.saturating_sub(1);
        }
        self.entries.pop_front()
    }

    /// Takes out some of those that nobody remembers.
    pub(super) fn forget(&mut self, is_remembered: impl Fn(Kept) -> bool) {
        for _ in 0..STEP_MAX {
            if self.entries.front().is_none_or(|&first| is_remembered(first)) {
                break;
            }
            self.pop_front();
        }
        if self.sweep.is_none() && self.entries.len() >= self.looks_from {
            self.sweep = Some(Sweep::default());
        }
        let looks = self.looks.min(STEP_MAX);
        self.looks = if self.sweep.is_some() { self.looks.saturating_sub(looks) } else { 0 };
        for _ in 0..looks {
            self.look_at_next(&is_remembered);
        }
    }

    /// Moves the next one to those that are kept, unless it is stale.
    fn look_at_next(&mut self, is_remembered: impl Fn(Kept) -> bool) {
        let Some(mut sweep) = self.sweep else { return };
        let Some(&next) = self.entries.get(sweep.seen) else {
            self.entries.truncate(sweep.kept);
            self.looks_from = self.entries.len().saturating_mul(2).saturating_add(STALE_MAX);
            self.sweep = None;
            return;
        };
        if is_remembered(next) {
            if let Some(place) = self.entries.get_mut(sweep.kept) {
                *place = next;
            }
            sweep.kept = sweep.kept.saturating_add(1);
        }
        sweep.seen = sweep.seen.saturating_add(1);
        self.sweep = Some(sweep);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::shard::Slab;

    #[test]
    fn what_rooms_forget_by_themselves_goes_a_little_at_a_time() {
        let mut keys = Slab::new();
        let [quiet, busy] = [0, 1].map(|room| {
            let index = keys.insert(room);
            keys.key(index)
        });
        let (mut order, looks) = (Order::default(), Cell::new(0));
        // What the one has said stays, and of the other only the last hundred: as soon as it is full nothing at the front goes.
        order.extend([(quiet, 1)]);
        for seq in 1..100_000_u64 {
            order.extend([(busy, seq)]);
            looks.set(0);
            order.forget(|(key, of)| {
                looks.set(looks.get() + 1);
                key == quiet || of + 100 > seq
            });
            assert!(looks.get() <= 2 * LOOKS, "{} at {seq}", looks.get());
            assert!(order.entries.len() <= 3 * STALE_MAX, "{} at {seq}", order.entries.len());
        }
        let is_last = |&(key, of): &Kept| key == quiet || of + 100 > 99_999;
        let mut left = Vec::new();
        while let Some(kept) = order.pop_front() {
            // What has been moved to the front may stand at its old place still.
            if is_last(&kept) && !left.contains(&kept) {
                left.push(kept);
            }
        }
        let wanted: Vec<Kept> = [(quiet, 1)].into_iter().chain((99_900..100_000).map(|seq| (busy, seq))).collect();
        assert_eq!(left, wanted, "in order");
    }

    #[test]
    fn the_oldest_is_first_also_while_it_is_looked_through() {
        let mut keys = Slab::new();
        let index = keys.insert(());
        let room = keys.key(index);
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut order, mut first, mut next) = (Order::default(), 0_u64, 0_u64);
            let mut holes = std::collections::BTreeSet::new();
            for _ in 0..5000 {
                if rng.u8(0..10) > 2 {
                    order.extend([(room, next)]);
                    next += 1;
                } else if rng.u8(0..20) == 0 {
                    // The oldest of all is forgotten.
                    while first < next && holes.contains(&first) {
                        first += 1;
                    }
                    let oldest =
                        std::iter::from_fn(|| order.pop_front()).find(|(_, seq)| *seq >= first && !holes.contains(seq));
                    assert_eq!(oldest.map(|(_, seq)| seq), (first < next).then_some(first), "seed {seed}");
                    first = (first + 1).min(next);
                } else if first < next {
                    holes.insert(rng.u64(first..next));
                }
                order.forget(|(_, seq)| seq >= first && !holes.contains(&seq));
            }
        }
    }
}

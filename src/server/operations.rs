//! Which operations the bridge works on: so many at once, the others in the order in which they came, each for a bounded
//! time. Pure; what an operation is, and doing it, is for `bridge`.
//!
//! Whoever asks may leave. What has not begun is dropped then; what has begun goes on to its end and keeps its place until
//! then, so that those who ask and leave make no more work at once than those who wait.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    time::Duration,
};

use crate::shard::Instant;

/// Operations of one sort, `T`, each named by a `K`.
#[derive(Debug)]
pub(super) struct Operations<K, T> {
    at_once_max: usize,
    wait_max: Duration,
    under_way: usize,
    /// In the order in which they came.
    waiting: BTreeMap<u64, QueuedOperation<K, T>>,
    places: HashMap<K, u64>,
    came: u64,
}

#[derive(Debug)]
struct QueuedOperation<K, T> {
    key: K,
    operation: T,
    /// Past this it is not begun any more.
    until: Instant,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<K, T> {
    /// This is to be begun, and [`Operations::handle_end`] called when it has ended.
    Begin(K, T),
    /// This has waited for too long and is not begun.
    Refuse(K),
}

impl<K: Copy + Eq + Hash, T> Operations<K, T> {
    /// At most so many at once; the others wait at most so long.
    pub(super) fn new(at_once_max: usize, wait_max: Duration) -> Self {
        let (waiting, places) = (BTreeMap::new(), HashMap::new());
        Self { at_once_max, wait_max, under_way: 0, waiting, places, came: 0 }
    }

    /// An operation is asked for.
    /// `came` is since when it waits; those that came earlier may be asked for later.
    pub(super) fn handle_ask(&mut self, came: Instant, key: K, operation: T) {
        self.came = self.came.wrapping_add(1);
        self.places.insert(key, self.came);
        self.waiting.insert(self.came, QueuedOperation { key, operation, until: came + self.wait_max });
    }

    /// Nobody waits for it any more. If it has begun it goes on.
    pub(super) fn handle_withdrawn(&mut self, key: K) {
        if let Some(place) = self.places.remove(&key) {
            self.waiting.remove(&place);
        }
    }

    /// One that was begun has ended.
    pub(super) fn handle_end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// What is to be done now: to be asked until there is nothing, after everything that is handled and now and then.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Next<K, T>> {
        let first = self.waiting.first_entry()?;
        let is_late = first.get().until < now;
        if !is_late && self.under_way >= self.at_once_max {
            return None;
        }
        let QueuedOperation { key, operation, .. } = first.remove();
        self.places.remove(&key);
        if is_late {
            return Some(Next::Refuse(key));
        }
        self.under_way = self.under_way.saturating_add(1);
        Some(Next::Begin(key, operation))
    }

    /// How many have begun and not ended.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// How many wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn all(operations: &mut Operations<u32, &'static str>, now: Instant) -> Vec<Next<u32, &'static str>> {
        std::iter::from_fn(|| operations.poll(now)).collect()
    }

    fn two_at_once() -> Operations<u32, &'static str> {
        let mut operations = Operations::new(2, SECOND);
        for (key, operation) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
            operations.handle_ask(Instant::START, key, operation);
        }
        operations
    }

    #[test]
    fn so_many_begin_and_the_others_follow_in_order() {
        let (mut operations, now) = (two_at_once(), Instant::START);
        assert_eq!(all(&mut operations, now), [Next::Begin(1, "a"), Next::Begin(2, "b")]);
        assert_eq!((operations.under_way(), operations.waiting()), (2, 2));
        operations.handle_end();
        assert_eq!(all(&mut operations, now), [Next::Begin(3, "c")]);
        operations.handle_end();
        operations.handle_end();
        assert_eq!(all(&mut operations, now), [Next::Begin(4, "d")]);
        operations.handle_end();
        assert_eq!(all(&mut operations, now), []);
        assert_eq!((operations.under_way(), operations.waiting()), (0, 0));
    }

    #[test]
    fn who_leaves_before_the_turn_has_none_and_who_leaves_after_it_keeps_the_place() {
        let (mut operations, now) = (two_at_once(), Instant::START);
        assert_eq!(all(&mut operations, now).len(), 2);
        operations.handle_withdrawn(1);
        operations.handle_withdrawn(3);
        assert_eq!(all(&mut operations, now), [], "the first goes on to its end");
        assert_eq!((operations.under_way(), operations.waiting()), (2, 1));
        operations.handle_end();
        assert_eq!(all(&mut operations, now), [Next::Begin(4, "d")], "the third is never begun");
        operations.handle_withdrawn(4);
        operations.handle_withdrawn(9);
        assert_eq!((operations.under_way(), operations.waiting()), (2, 0));
    }

    #[test]
    fn nobody_waits_longer_than_may_be() {
        let (mut operations, due) = (two_at_once(), Instant::START + SECOND);
        assert_eq!(all(&mut operations, Instant::START).len(), 2);
        assert_eq!(all(&mut operations, due), [], "not yet");
        operations.handle_ask(due, 5, "e");
        let late = due + Duration::from_nanos(1);
        assert_eq!(all(&mut operations, late), [Next::Refuse(3), Next::Refuse(4)], "though no place is free");
        operations.handle_end();
        assert_eq!(all(&mut operations, late), [Next::Begin(5, "e")]);
    }

    #[test]
    fn any_order_of_events_keeps_the_bound_and_loses_nothing() {
        for seed in 0..64 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut operations = Operations::new(3, SECOND);
            let (mut now, mut asked, mut ended) = (Instant::START, 0_u32, 0);
            let (mut begun, mut waiting) = (Vec::new(), Vec::new());
            for _ in 0..500 {
                match rng.u8(..4) {
                    0 | 1 => {
                        operations.handle_ask(now, asked, asked);
                        waiting.push(asked);
                        asked += 1;
                    }
                    2 if begun.len() > ended => {
                        operations.handle_end();
                        ended += 1;
                    }
                    _ => {
                        let key = rng.u32(..=asked);
                        operations.handle_withdrawn(key);
                        waiting.retain(|other| *other != key);
                    }
                }
                now += Duration::from_millis(rng.u64(..200));
                while let Some(next) = operations.poll(now) {
                    let (Next::Begin(key, _) | Next::Refuse(key)) = next;
                    assert_eq!(waiting.remove(0), key, "seed {seed}: in order, and once");
                    if let Next::Begin(..) = next {
                        begun.push(key);
                    }
                }
                assert_eq!(operations.under_way(), begun.len() - ended, "seed {seed}");
                assert!(operations.under_way() <= 3, "seed {seed}");
                assert!(waiting.is_empty() || operations.under_way() == 3, "seed {seed}: nobody waits for nothing");
                assert_eq!(
                    (operations.waiting(), operations.places.len()),
                    (waiting.len(), waiting.len()),
                    "seed {seed}"
                );
            }
        }
    }
}

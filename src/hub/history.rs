//! What a room remembers: its last messages, and which ids it has seen. Bounded by count, bytes and age.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::letter::Delivery;
use super::rules::History as Bounds;
use crate::shard::Instant;

/// The last messages of a room, contiguous, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    kept: VecDeque<(Instant, Arc<Delivery>)>,
    bytes: usize,
}

impl History {
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of the oldest that is kept.
    pub(super) fn first(&self) -> Option<u64> {
        self.kept.front().map(|(_, message)| message.position.seq)
    }

    /// When the last one becomes too old.
    pub(super) fn forgotten_at(&self, bounds: Bounds) -> Option<Instant> {
        self.kept.back().map(|&(at, _)| at + bounds.age_max)
    }

    pub(super) fn push(&mut self, now: Instant, message: Arc<Delivery>, bounds: Bounds) {
        if bounds.messages_max == 0 || bounds.age_max.is_zero() {
            return;
        }
        self.bytes = self.bytes.saturating_add(message.cost());
        self.kept.push_back((now, message));
        self.prune(now, bounds);
    }

    /// Puts older messages, in order, before what is kept, or before `last` where nothing is; those that do not lead there
    /// are passed over.
    pub(super) fn fill_before(&mut self, now: Instant, older: Vec<Arc<Delivery>>, last: u64) {
        let mut next = self.first().unwrap_or(last.saturating_add(1));
        for message in older.into_iter().rev() {
            let follows = self.kept.front().is_none_or(|(_, first)| first.chain.before == message.chain.after);
            if message.position.seq.saturating_add(1) == next && follows {
                next = message.position.seq;
                self.bytes = self.bytes.saturating_add(message.cost());
                // It counts as new: how old it is, the bus knows.
                let at = self.kept.front().map_or(now, |&(at, _)| at);
                self.kept.push_front((at, message));
            }
        }
    }

    /// Forgets what is too old or too much; a room that remembers nothing holds no memory for it.
    pub(super) fn prune(&mut self, now: Instant, bounds: Bounds) {
        while let Some(&(at, _)) = self.kept.front()
            && (self.kept.len() > bounds.messages_max || self.bytes > bounds.bytes_max || at + bounds.age_max <= now)
        {
            self.forget_first();
        }
    }

    /// Forgets the oldest.
    pub(super) fn forget_first(&mut self) {
        if let Some((_, message)) = self.kept.pop_front() {
            self.bytes = self.bytes.saturating_sub(message.cost());
        }
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }

    /// What was said after `after` and up to `to`, if all of it is still here.
    pub(super) fn between(&self, after: u64, to: u64) -> Option<Vec<Arc<Delivery>>> {
        if after >= to {
            return Some(Vec::new());
        }
        let found = self.from(after.saturating_add(1), to);
        (found.first().is_some_and(|message| message.position.seq == after.saturating_add(1))
            && found.last().is_some_and(|message| message.position.seq == to))
        .then_some(found)
    }

    /// What is here of what was said from `from` to `to`.
    pub(super) fn from(&self, from: u64, to: u64) -> Vec<Arc<Delivery>> {
        let Some(first) = self.first() else { return Vec::new() };
        let start = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX).min(self.kept.len());
        let rest = self.kept.range(start..).map(|(_, message)| message);
        rest.take_while(|message| message.position.seq <= to).map(Arc::clone).collect()
    }
}

/// What ids are hashed with, so that nobody can choose two that look the same.
#[derive(Clone, Copy)]
pub struct Secret(pub [u64; 2]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Who said it and under which id, in 128 bits.
pub(super) type Seen = u128;

impl Secret {
    /// The mark of a message by its speaker's scope (a session, or a service's `sub`) and its id.
    pub(super) fn mark(self, scope: &str, id: &str) -> Seen {
        let half = |key: u64| {
            let mut hasher = DefaultHasher::new();
            (key, scope, id).hash(&mut hasher);
            hasher.finish()
        };
        let [one, other] = self.0.map(half);
        u128::from(one) << 64 | u128::from(other)
    }
}

/// Ids that a room knows at most, and all rooms of a shard together, at some 72 bytes each. Past it the oldest of the room that
/// gets another one is forgotten before its time.
pub(super) const IDS_OF_ROOM_MAX: usize = 1 << 16;
/// See [`IDS_OF_ROOM_MAX`].
pub(super) const IDS_MAX: usize = 1 << 18;

/// The ids that a room has seen, and the number that each got.
#[derive(Debug, Default)]
pub(super) struct Window {
    order: VecDeque<(Instant, Seen)>,
    numbers: HashMap<Seen, u64>,
    /// Those of all rooms of the shard.
    all: Rc<Cell<usize>>,
}

impl Window {
    /// One that counts with these.
    pub(super) fn new(all: &Rc<Cell<usize>>) -> Self {
        Self { order: VecDeque::new(), numbers: HashMap::new(), all: Rc::clone(all) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// The number that this got already.
    pub(super) fn number(&self, seen: Seen) -> Option<u64> {
        self.numbers.get(&seen).copied()
    }

    pub(super) fn forgotten_at(&self, age: Duration) -> Option<Instant> {
        self.order.back().map(|&(at, _)| at + age)
    }

    pub(super) fn push(&mut self, now: Instant, seen: Seen, number: u64) {
        if self.order.len() >= IDS_OF_ROOM_MAX || self.all.get() >= IDS_MAX {
            self.forget_first();
        }
        self.all.set(self.all.get().saturating_add(1));
        self.order.push_back((now, seen));
        self.numbers.insert(seen, number);
    }

    pub(super) fn prune(&mut self, now: Instant, age: Duration) {
        while self.order.front().is_some_and(|&(at, _)| at + age <= now) {
            self.forget_first();
        }
        if self.order.is_empty() {
            (self.order, self.numbers) = Default::default();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, seen)) = self.order.pop_front() {
            self.numbers.remove(&seen);
            self.all.set(self.all.get().saturating_sub(1));
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.all.set(self.all.get().saturating_sub(self.order.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_bounded_by_room_and_by_shard_and_let_go() {
        let all = Rc::default();
        let (mut busy, mut quiet) = (Window::new(&all), Window::new(&all));
        let now = Instant::START;
        for id in 0..=IDS_OF_ROOM_MAX as u64 {
            busy.push(now, u128::from(id), id);
        }
        assert_eq!((busy.number(0), busy.number(1)), (None, Some(1)), "the oldest is forgotten");
        assert_eq!(all.get(), IDS_OF_ROOM_MAX);
        quiet.push(now, 7, 7);
        assert_eq!(all.replace(IDS_MAX), IDS_OF_ROOM_MAX + 1);
        quiet.push(now, 8, 8);
        assert_eq!((quiet.number(7), quiet.number(8)), (None, Some(8)), "each room pays for itself");
        all.set(IDS_OF_ROOM_MAX + 1);
        quiet.prune(now + Duration::from_secs(2), Duration::from_secs(1));
        drop(busy);
        assert_eq!((all.get(), quiet.is_empty()), (0, true));
    }
}

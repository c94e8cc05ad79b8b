//! Messages that have come in part: how long each may take, and what those of all sockets may hold.

use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use super::{Close, Hub, SocketKey, State};
use crate::shard::Instant;

/// What a shard's sockets hold of messages that are not whole. Most hold nothing and are not in it.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    of: BTreeMap<SocketKey, Part>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    since: Instant,
    bytes: usize,
}

impl Unfinished {
    fn set(&mut self, now: Instant, key: SocketKey, bytes: usize) {
        let part = self.of.entry(key).or_insert(Part { since: now, bytes: 0 });
        self.bytes = self.bytes.saturating_sub(part.bytes).saturating_add(bytes);
        part.bytes = bytes;
    }

    /// The message is whole, or nobody waits for it.
    pub(super) fn remove(&mut self, key: SocketKey) {
        if let Some(part) = self.of.remove(&key) {
            self.bytes = self.bytes.saturating_sub(part.bytes);
        }
    }

    /// When the socket's message must be whole.
    pub(super) fn due(&self, key: SocketKey, within: Duration) -> Instant {
        self.of.get(&key).map_or(Instant::NEVER, |part| part.since + within)
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<W> Hub<W> {
    /// So many bytes of what has come of a socket are not a whole message yet; none is said too. A message must be whole
    /// [`super::limits::Limits::message_within`] after it was first said; past what all may hold, those with most are closed.
    pub fn hold_unfinished(&mut self, now: Instant, key: SocketKey, bytes: usize) {
        if bytes == 0 || self.sockets.all.get(key).is_none_or(|socket| socket.state == State::Closing) {
            self.unfinished.remove(key);
            return;
        }
        self.unfinished.set(now, key, bytes);
        if self.unfinished.bytes() > self.plan.limits.unfinished_bytes_max {
            self.close_most_unfinished(now);
        }
        self.settle(now);
    }

    /// Closes those that hold most until an eighth is free again: looking through them all is then rare.
    fn close_most_unfinished(&mut self, now: Instant) {
        let max = self.plan.limits.unfinished_bytes_max;
        let target = max.saturating_sub(max / 8);
        let mut held: BinaryHeap<(usize, SocketKey)> =
            self.unfinished.of.iter().map(|(&key, part)| (part.bytes, key)).collect();
        while self.unfinished.bytes() > target
            && let Some((_, key)) = held.pop()
        {
            // It may come back: there was too much of all together.
            self.end(now, key, Some(Close::TryLater));
        }
    }
}

//! What came too early: messages that wait for those before them, in order, once, and within bounds.

use std::collections::VecDeque;
use std::sync::Arc;

use super::letter::Delivery;
use super::position::Position;

/// What is kept; the rest is asked for.
const EARLY_MAX: usize = 256;
const EARLY_BYTES_MAX: usize = 1 << 20;

/// Messages of one epoch.
#[derive(Debug, Default)]
pub(super) struct Early {
    messages: VecDeque<Arc<Delivery>>,
    bytes: usize,
}

impl Early {
    /// The number of the first.
    pub(super) fn first(&self) -> Option<u64> {
        self.messages.front().map(|first| first.position.seq)
    }

    /// The one that is next, if it is here. What is before it is forgotten.
    pub(super) fn take_next(&mut self, after: Position) -> Option<Arc<Delivery>> {
        loop {
            let first = self.messages.front()?;
            if first.position.seq > after.seq.saturating_add(1) {
                return None;
            }
            let message = self.forget_first()?;
            if message.position.epoch == after.epoch && message.position.seq > after.seq {
                return Some(message);
            }
        }
    }

    /// Forgets what has at most this number.
    pub(super) fn forget_to(&mut self, seq: u64) {
        while self.first().is_some_and(|first| first <= seq) {
            self.forget_first();
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Keeps one, unless it is here or there is no room.
    pub(super) fn keep(&mut self, message: Arc<Delivery>) {
        if self.messages.front().is_some_and(|first| first.position.epoch != message.position.epoch) {
            self.clear();
        }
        let bytes = self.bytes.saturating_add(message.cost());
        let place = self.messages.partition_point(|kept| kept.position.seq < message.position.seq);
        let is_here = self.messages.get(place).is_some_and(|kept| kept.position.seq == message.position.seq);
        if is_here || self.messages.len() >= EARLY_MAX || bytes > EARLY_BYTES_MAX {
            return;
        }
        self.bytes = bytes;
        self.messages.insert(place, message);
    }

    /// How many there are, and their bytes.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        (self.messages.len(), self.bytes)
    }

    fn forget_first(&mut self) -> Option<Arc<Delivery>> {
        let message = self.messages.pop_front()?;
        self.bytes = self.bytes.saturating_sub(message.cost());
        if self.messages.is_empty() {
            self.clear();
        }
        Some(message)
    }
}

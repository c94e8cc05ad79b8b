//! How much a hub does before its shard's other tasks get their turn.
//!
//! One message is queued for each member of its room, so few bytes of a client may be very much work. What is queued is
//! counted, that of clients and that of letters each for itself, so that neither keeps the other from its turn. Past the
//! bound the letters that the hub wrote to itself wait, in order, and the driver takes nothing more until [`Hub::go_on`]. What
//! is done for all rooms or sockets takes its turns too (`walk.rs`).

use super::Hub;
use crate::shard::Instant;

impl<W> Hub<W> {
    /// Another turn has begun: goes on with what the last one left.
    pub fn go_on(&mut self, now: Instant) {
        self.sockets.left = self.plan.limits.pushes_per_turn;
        self.left_of_letters = self.plan.limits.pushes_per_turn;
        self.walk_on(now);
        self.settle(now);
    }

    /// Whether the driver is to read what clients say, in this turn.
    pub fn takes_messages(&self) -> bool {
        self.sockets.left > 0 && self.post.is_own_empty() && !self.walks.hold_clients()
    }

    /// Whether the driver is to take letters of other shards and the bus, in this turn. They come after those that wait.
    pub fn takes_letters(&self) -> bool {
        self.left_of_letters > 0 && self.post.is_own_empty()
    }

    /// Whether it waits for [`Hub::go_on`].
    pub fn is_behind(&self) -> bool {
        !(self.takes_messages() && self.takes_letters()) || self.walks.are_under_way()
    }

    /// A step that letters cause: what it queues counts as theirs.
    pub(super) fn of_letters(&mut self, step: impl FnOnce(&mut Self)) {
        std::mem::swap(&mut self.sockets.left, &mut self.left_of_letters);
        step(self);
        std::mem::swap(&mut self.sockets.left, &mut self.left_of_letters);
    }
}

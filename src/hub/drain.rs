//! The instance goes: each socket is told when to come back, and is closed at a time of its own.

use std::time::Duration;

use super::{Effect, Hub, State, walk::PLACES_PER_TURN};
use crate::shard::Instant;

/// The instance goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draining {
    window: Duration,
    /// When the next socket goes, and how long after it the one behind it.
    slot: Instant,
    each: Duration,
}

impl<W> Hub<W> {
    /// Nobody comes in any more, and all go within the window: evenly spread, and told to come back at a time that is spread
    /// over as long again, so that those who take them in are not stormed.
    pub fn drain(&mut self, now: Instant, window: Duration) {
        if self.draining.is_some() {
            return;
        }
        let count = u32::try_from(self.sockets.all.len()).unwrap_or(u32::MAX).max(1);
        let each = window.checked_div(count).unwrap_or_default();
        self.draining = Some(Draining { window, slot: now + each, each });
        // Where there are other instances, those who come to one of them in time have not gone.
        if self.bus.is_none() {
            self.events.hurry(now);
        }
        self.walks.drain.begin();
        self.walk_drain();
        self.settle(now);
    }

    /// Tells the next of the sockets.
    pub(super) fn walk_drain(&mut self) {
        let Some(mut draining) = self.draining else { return };
        let window_ms = u64::try_from(draining.window.as_millis()).unwrap_or(u64::MAX);
        for key in self.walks.drain.next(&self.sockets.all, PLACES_PER_TURN) {
            let Some(socket) = self.sockets.all.get_mut(key).filter(|socket| socket.state != State::Closing) else {
                continue;
            };
            socket.slot = draining.slot;
            draining.slot += draining.each;
            let frame = self.encoder.reconnect(self.rng.u64(0..=window_ms));
            self.sockets.push(key, frame);
            self.effects.push_back(Effect::Due(key));
        }
        self.draining = Some(draining);
    }
}

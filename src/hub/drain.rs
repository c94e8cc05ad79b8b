//! The instance goes: each socket is told when to come back, and is closed at a time of its own.

use std::time::Duration;

use super::{Effect, Hub, SocketKey, State};
use crate::shard::Instant;

/// The instance goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draining;

impl<W> Hub<W> {
    /// Nobody comes in any more, and all go within the window: evenly spread, and told to come back at a time that is spread
    /// over as long again, so that those who take them in are not stormed.
    pub fn drain(&mut self, now: Instant, window: Duration) {
        if self.draining.replace(Draining).is_some() {
            return;
        }
        // Where there are other instances, those who come to one of them in time have not gone.
        if self.bus.is_none() {
            self.events.hurry(now);
        }
        let open = self.sockets.all.iter().filter(|(_, socket)| socket.state != State::Closing);
        let open: Vec<SocketKey> = open.map(|(key, _)| key).collect();
        let count = u32::try_from(open.len()).unwrap_or(u32::MAX).max(1);
        let each = window.checked_div(count).unwrap_or_default();
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        for (turn, key) in (0_u32..).zip(open) {
            let frame = self.encoder.reconnect(self.rng.u64(0..=window_ms));
            self.sockets.push(key, frame);
            if let Some(socket) = self.sockets.all.get_mut(key) {
                socket.slot = now + each.saturating_mul(turn.saturating_add(1));
                self.effects.push_back(Effect::Due(key));
            }
        }
        self.settle(now);
    }
}

//! Another plan for a hub that runs.

use super::{Hub, Plan, SocketKey, arena::Key, rules::Permits};
use crate::shard::Instant;

impl<W> Hub<W> {
    /// Other rules and limits apply from now on; nobody is thrown out for it.
    pub fn adopt(&mut self, now: Instant, plan: Plan) {
        self.sockets.outbox_bytes_max = plan.limits.outbox_bytes_max;
        self.adopt_events(now, plan.events);
        let old = std::mem::replace(&mut self.plan, plan);
        self.adopt_types(&old.types);
        let homes: Vec<Key> = self.homes.iter().map(|(key, _)| key).collect();
        for key in homes {
            let Some(room) = self.homes.get(key).map(|home| home.room().clone()) else { continue };
            let policy = self.plan.rules.policy(room.as_str()).clone();
            self.at_home(now, key, |home, given| home.adopt(given.now, policy));
        }
        self.settle(now);
    }

    /// Other rights hold from now on, for what sockets do next: nobody leaves a room for it.
    pub fn renew_permits(&mut self, permits: impl Fn(&W) -> Option<Permits>) {
        let keys: Vec<SocketKey> = self.sockets.all.iter().map(|(key, _)| key).collect();
        for socket in keys {
            if let Some(socket) = self.sockets.all.get_mut(socket)
                && let Some(permits) = permits(&socket.handle)
            {
                socket.permits = permits;
            }
        }
    }
}

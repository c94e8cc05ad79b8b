//! Another plan for a hub that runs.

use super::{Hub, Plan};
use crate::shard::Instant;

impl<W> Hub<W> {
    /// Other rules and limits apply from now on; nobody is thrown out for it. Rooms take the rules some in each turn, and
    /// what clients say waits until all have; what sockets may do is the driver's to renew ([`Hub::expire_permits`]).
    pub fn adopt(&mut self, now: Instant, plan: Plan) {
        self.sockets.outbox_bytes_max = plan.limits.outbox_bytes_max;
        let are_users_new = self.adopt_events(plan.events);
        let old = std::mem::replace(&mut self.plan, plan);
        self.adopt_types(&old.types);
        self.begin_policies(now);
        if are_users_new {
            self.begin_users(None);
        }
        if self.plan.limits.are_times_earlier(&old.limits) {
            self.begin_times();
        }
        self.settle(now);
    }
}

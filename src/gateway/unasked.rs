//! What backends sent that nobody had asked for: counted, and told of once. What follows for their connections is
//! `upstream`'s.

use super::Gateway;

impl Gateway {
    /// Counts the connections on which backends sent something unasked, and tells once of each that is distrusted for it.
    pub fn note_unasked(&self) {
        let live = self.live();
        for (plan, upstream) in live.plan.upstreams.iter().zip(&live.upstreams) {
            for (backend, caught) in upstream.take_caught() {
                let shard = self.ledger.with(|ledger| {
                    ledger.counters.upstream(plan.slot).connections_unasked += caught.connections;
                    ledger.shard
                });
                let (upstream, instance) = (plan.name.as_str(), backend.authority());
                if caught.newly_sends_bodies {
                    tracing::warn!(
                        upstream,
                        instance,
                        shard,
                        "it sends bodies to HEAD: a connection is closed after each"
                    );
                }
                if caught.is_newly_distrusted {
                    tracing::warn!(
                        upstream,
                        instance,
                        shard,
                        "it sent something that nobody had asked for: each of its connections waits before it is used again"
                    );
                }
            }
        }
    }
}

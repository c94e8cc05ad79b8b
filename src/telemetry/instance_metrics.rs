//! The rows of the table of metrics that are about one instance: the control thread makes them of what shards and probes tell.

use super::labels::{InstanceOut, Outcome, Probed};
use super::table::{Field as _, Merge, Metric, MetricKind, Micros, Per, Sparse, Value, Values, table};

table! {
    /// What is published of one instance. Two names at one address are two instances.
    #[derive(Default)]
    InstanceCounters {
        /// Whether all shards use the instance: 1, or 0. Gone once it is no instance any more.
        up: i64 = Gauge "shardgate_instance_up" per Instance;
        /// Shards that do not use the instance, by why not. There is no series where it is none.
        out: Sparse<{ InstanceOut::COUNT }> = Gauge "shardgate_instance_out_shards" per Instance
            by "reason" in Values::Fixed(InstanceOut::VALUES);
        /// Requests under way on the instance now.
        in_flight: i64 = Gauge "shardgate_instance_requests_in_flight" per Instance;
        /// How long the instance takes to answer, by the shard that finds it slowest: a moving average that rises at once and falls within seconds of better answers (peak EWMA). 0 while nothing is known of late: it had no answer for 15 s.
        latency: Micros = Gauge "shardgate_instance_latency_seconds" per Instance;
        /// Attempts at the instance that ended, by outcome.
        requests: [u64; Outcome::COUNT] = Counter "shardgate_instance_requests_total" per Instance
            by "outcome" in Values::Fixed(Outcome::VALUES);
        /// Times that a shard has left the instance out for failing.
        ejections: u64 = Counter "shardgate_instance_ejections_total" per Instance;
        /// Probes of the instance that ended, by result. How they failed is in `shardgate_upstream_probes_total`.
        probes: [u64; Probed::COUNT] = Counter "shardgate_instance_probes_total" per Instance
            by "result" in Values::Fixed(Probed::VALUES);
    }
}

//! The rows of the table of metrics that are about one name of instances, or one list of them.

use super::slots::SLOTS_MAX;
use super::table::{Field as _, Merge, Metric, MetricKind, Per, Value, table};

table! {
    /// What the control thread knows of one name of instances, or of one list of them.
    #[derive(Default)]
    NameCounters {
        /// Addresses of the name that are instances, or instances that are listed.
        addresses: i64 = Gauge "shardgate_discovery_addresses" per Name;
        /// Seconds since the name was looked up, or the list had, with success; since it is followed, if it never was.
        age: i64 = Gauge "shardgate_discovery_age_seconds" per Name;
        /// Questions for the name or the list that failed or brought nothing.
        failures: u64 = Counter "shardgate_discovery_failures_total" per Name;
    }
}

/// Names that have series of their own; the others are one, as in [`SLOTS_MAX`].
pub const NAMES_MAX: usize = SLOTS_MAX - 1;

impl NameCounters {
    /// Adds another name, where names share a series: their addresses, the worst age, all failures.
    pub fn join(&mut self, other: &Self) {
        let age = self.age.max(other.age);
        self.merge_fields(other);
        self.age = age;
    }
}

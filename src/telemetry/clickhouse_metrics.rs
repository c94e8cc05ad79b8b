//! The rows of the table of metrics that are about the sink of ClickHouse. Whether the server takes rows is in `shardgate_store_up`.

use super::labels::{RequestResult, RowOutcome};
use super::table::{Field as _, Merge, Metric, MetricKind, Per, Value, Values, table};

table! {
    /// What the sink of ClickHouse counts. One per process, where there is a sink.
    #[derive(Default)]
    ClickhouseCounters {
        /// Rows of the access log, by what became of them. Without `[clickhouse]` there are no such series.
        rows: [u64; RowOutcome::COUNT] = Counter "shardgate_clickhouse_rows_total" per Process
            by "outcome" in Values::Fixed(RowOutcome::VALUES);
        /// Batches whose rows are in the table.
        batches: u64 = Counter "shardgate_clickhouse_batches_total" per Process;
        /// Requests to the server, by how they ended.
        requests: [u64; RequestResult::COUNT] = Counter "shardgate_clickhouse_requests_total" per Process
            by "result" in Values::Fixed(RequestResult::VALUES);
        /// Bytes of rows that wait in memory, what reading files takes included.
        memory_bytes: i64 = Gauge "shardgate_clickhouse_memory_bytes" per Process;
        /// Bytes of files with rows that wait.
        spill_bytes: i64 = Gauge "shardgate_clickhouse_spill_bytes" per Process;
        /// Stretches of such files that could not be read: torn by a crash, or damaged.
        damaged: u64 = Counter "shardgate_clickhouse_spill_damaged_total" per Process;
        /// Writes to such files that failed. The rows wait in memory then.
        spill_errors: u64 = Counter "shardgate_clickhouse_spill_errors_total" per Process;
        /// Seconds since the oldest row came that is not sent yet; 0 if there is none.
        oldest_age: i64 = Gauge "shardgate_clickhouse_oldest_row_age_seconds" per Process;
    }
}

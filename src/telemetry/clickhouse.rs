//! What the sink of ClickHouse counts, and the rows that publish it.

use super::table::{Field as _, Merge, Metric, MetricKind, Per, Value, Values, label, table};

label! {
    /// What became of rows.
    RowOutcome {
        /// They are in the table.
        Sent = "sent",
        /// The server refused them, each alone and twice.
        Refused = "refused",
        /// There was no room for them, in memory or in files.
        Dropped = "dropped",
        /// They were still there when the process ended, and there was no room in files.
        Cut = "cut",
    }
}

label! {
    /// How a request to the server ended.
    RequestResult {
        /// It did what was asked.
        Good = "good",
        /// It refused a row.
        Rejected = "rejected",
        /// It took nothing, or did not answer.
        Failed = "failed",
    }
}

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
        /// Whether the server takes rows.
        up: i64 = Gauge "shardgate_clickhouse_up" per Process;
    }
}

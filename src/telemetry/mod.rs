//! What Shardgate remembers of its own work: counters, access-log lines, ids, the log of what operators should know.
//!
//! Everything on a request's path is plain memory of its shard: nothing here locks, sends over a network or allocates
//! for a request. Who asks for the numbers and who ships the records are matters of the floors above.

pub mod access_log;
mod clickhouse_metrics;
pub mod date;
pub mod dependency;
pub mod escape;
pub mod exemplars;
pub mod exposition;
pub mod format;
pub mod histogram;
pub mod ids;
mod instance_metrics;
mod labels;
mod lines;
pub mod log;
pub mod metrics;
mod name_metrics;
pub mod record;
mod retold;
pub mod slots;
pub mod spans;
pub mod table;
pub mod usage;

//! Where records leave the process for somebody else's store. What they say is told by the floors below; each sink has its
//! bounds, and a store that is away costs records, never a request.

pub mod clickhouse;
pub mod otlp;

//! Shardgate: a thread-per-core API gateway and WebSocket hub.
//!
//! The modules stand in the order in which a request meets them; each uses only those below it
//! (`tests/it/tidy.rs` checks that). `ARCHITECTURE.md` is the map.

pub mod bus;

pub mod shard;

pub mod proto;

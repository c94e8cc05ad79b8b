//! Shardgate: a thread-per-core API gateway and WebSocket hub.
//!
//! The modules stand in the order in which a request meets them; each uses only those below it
//! (`tests/it/tidy/` checks that). `ARCHITECTURE.md` is the map.

pub mod demo;

pub mod top;

pub mod server;

pub mod sinks;

pub mod gateway;

pub mod admin;

pub mod accounts;

pub mod sessions;

pub mod hub;

pub mod exchange;

pub mod bus;

pub mod auth;

pub mod upstream;

pub mod net;

pub mod embedded;

pub mod shard;

pub mod telemetry;

pub mod certificates;

pub mod config;

pub mod proto;

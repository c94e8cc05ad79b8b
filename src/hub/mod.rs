//! The WebSocket hub: rooms, their members and messages, without sockets, clocks or a runtime.
//!
//! It runs inside a shard's state, where a panic ends the process, on what strangers send: the same lints as in `proto`.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

pub mod code;
pub mod encode;
pub mod frame;
mod json;
pub mod limits;
pub mod message;
pub mod name;
pub mod outbox;
pub mod pointer;
pub mod position;
pub mod rules;
pub mod types;

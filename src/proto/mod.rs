//! Pure protocol cores: bytes in, events out. No sockets, clocks, threads, logs or other modules.
//!
//! Nothing here can be made to panic by a peer's bytes, and the compiler helps to keep it so.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

pub mod head;
pub mod http1;
pub mod known;
pub mod proxy_protocol;
pub mod time_left;
pub mod websocket;

//! Accounts: log-in, renewal, log-out and the list of sessions.
//!
//! Shards ask by an [`Operation`] and are told an [`Outcome`]; which requests lead to them is for `gateway`.

mod operation;
pub mod password;
pub mod request;
pub mod slowdown;
pub mod store;
pub mod user;

pub use operation::{Operation, Outcome};

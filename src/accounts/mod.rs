//! Accounts: log-in, renewal, log-out and the list of sessions.
//!
//! Shards ask by an [`Operation`] and are told an [`Outcome`]; which requests lead to them is for `gateway`.

mod operation;

pub use operation::{Operation, Outcome};

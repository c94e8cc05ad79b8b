//! Accounts against real stores.

mod away;
mod cli;
mod store;
mod walk;

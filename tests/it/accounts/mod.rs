//! Accounts against real stores.

mod cli;
mod store;
mod walk;

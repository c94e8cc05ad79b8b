//! Accounts against real stores.

mod store;

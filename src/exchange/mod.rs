//! What every floor above speaks of: one request and its answer, who sent it, and how it is refused.

mod exchange;
mod ledger;
mod reject;

pub use exchange::{Exchange, Labels};
pub use ledger::Ledger;
pub use reject::{Code, Reject};

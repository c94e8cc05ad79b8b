//! What every floor above speaks of: one request and its answer, who sent it, and how it is refused.

mod client_note;
mod ledger;
mod open_tunnel;
mod reject;
mod tether;
mod under_way;

pub use client_note::ClientNote;
pub use ledger::Ledger;
pub use open_tunnel::OpenTunnel;
pub use reject::{Code, Reject};
pub use tether::{Tether, Tethers};
pub use under_way::{Exchange, Labels};

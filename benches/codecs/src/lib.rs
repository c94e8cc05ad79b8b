//! What all codecs of the comparison are given.

#[path = "../../messages/mod.rs"]
mod messages;

pub use messages::{ANSWER, BROWSER, SMALL};

//! The doorbell's protocol in every interleaving. The file is the product's own; nothing else of it is built here.
#![cfg_attr(not(test), expect(dead_code, reason = "only its tests use it here"))]

#[path = "../../src/bus/armed.rs"]
mod armed;

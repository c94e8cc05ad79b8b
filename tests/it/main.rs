//! The tests that look at Shardgate from outside, in one binary.

mod client;
mod docs;
mod harness;
mod tidy;

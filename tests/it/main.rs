//! The tests that look at Shardgate from outside, in one binary.

mod client;
mod harness;
mod process;
mod service;
mod tidy;

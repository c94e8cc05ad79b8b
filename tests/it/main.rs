//! The tests that look at Shardgate from outside, in one binary.

mod backend;
mod client;
mod harness;
mod journey;
mod process;
mod service;
mod tidy;

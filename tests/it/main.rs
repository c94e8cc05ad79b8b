//! The tests that look at Shardgate from outside, in one binary.

mod accounts;
mod backend;
mod certificate;
mod client;
mod collector;
mod docs;
mod harness;
mod hub;
mod javascript;
mod journey;
mod process;
mod secrets;
mod servers;
mod service;
mod sessions;
mod tidy;

//! The open-loop load test of Shardgate.
fn main() {}

//! The tests that look at Shardgate from outside, in one binary.

mod docs;
mod tidy;

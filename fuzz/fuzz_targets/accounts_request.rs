//! Any bytes as the body of a log-in, of a renewal, and as the id of a session.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::accounts::request::fuzz_one(data));

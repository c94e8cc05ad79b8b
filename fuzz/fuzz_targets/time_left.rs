//! Any bytes as the time that a client gives its request.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::proto::time_left::fuzz_one(data));

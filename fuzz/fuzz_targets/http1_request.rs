//! Any bytes as what a client sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::proto::http1::fuzz_request(data));

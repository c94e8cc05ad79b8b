//! Any bytes as a token, as what a token says, and as a key set.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::auth::fuzz_one(data));

//! Any bytes as what a client of the hub says.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::hub::message::fuzz_one(data));

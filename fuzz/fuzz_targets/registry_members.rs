//! Any bytes as the members of a registry and their leases.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::upstream::fuzz_registered(data));

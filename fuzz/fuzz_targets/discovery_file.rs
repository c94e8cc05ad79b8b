//! Any bytes as a file that lists instances, in both its forms.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::config::fuzz_listing(data));

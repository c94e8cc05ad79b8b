//! Any bytes as the files of a certificate and its key.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::certificates::fuzz_files(data));

//! Any bytes as the answer of a server of DNS.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::server::fuzz_dns_answer(data));

//! Any bytes as what a client says first over TLS, split anywhere.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::net::fuzz_handshake(data));

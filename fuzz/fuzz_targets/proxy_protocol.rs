//! Any bytes as the PROXY header of a connection, in pieces whose length the first byte says.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::proto::proxy_protocol::fuzz_one(data));

//! Any bytes as the head of a request for a WebSocket.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::proto::websocket::fuzz_handshake(data));

//! Any bytes as what a client sends over its WebSocket.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardgate::proto::websocket::fuzz_frames(data));

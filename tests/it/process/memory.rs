//! How little memory streams and idle connections take.

use std::fs;

use super::{memory_kib, raise_descriptor_limit, source};
use crate::{
    harness::{Client, Gateway, is_long},
    service::Service,
};

const MIB: usize = 1024 * 1024;

/// What streams may add to the gateway's memory, whatever their length.
const STREAM_KIB_MAX: u64 = 32 * 1024;

/// What an idle connection may take of the gateway's memory.
const IDLE_BYTES_MAX: u64 = 3 * 1024;

/// The most memory that the gateway has had since [`forget_peak`], in KiB.
fn peak_kib(gateway: &Gateway) -> u64 {
    memory_kib(gateway, "status", "VmHWM:")
}

fn forget_peak(gateway: &Gateway) {
    fs::write(format!("/proc/{}/clear_refs", gateway.pid()), "5").expect("the gateway is ours");
}

#[test]
fn streams_pass_through_without_being_gathered() {
    let size = if is_long() { 1024 * MIB } else { 128 * MIB };
    let service = Service::start();
    let gateway = Gateway::start(&service.config(""));
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status, 200);
    forget_peak(&gateway);
    let before = memory_kib(&gateway, "status", "VmRSS:");

    client.send(format!("GET /download/{size} HTTP/1.1\r\nhost: a\r\n\r\n"));
    let head = client.read_response_head();
    assert_eq!(head.status, 200);
    let mut received = 0;
    client.read_large_body(&head.fields, |piece| received += piece.len()).expect("the whole download");
    assert_eq!(received, size);

    client.send(format!("POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n"));
    let piece = vec![b'u'; MIB];
    for _ in 0..size / MIB {
        client.send(&piece);
    }
    let response = client.read_response();
    assert_eq!((response.status, response.text()), (200, size.to_string()));

    client.send("POST /upload HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..size / MIB {
        client.send(format!("{MIB:x}\r\n"));
        client.send(&piece);
        client.send("\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.read_response().text(), size.to_string());

    let extra = peak_kib(&gateway).saturating_sub(before);
    assert!(extra < STREAM_KIB_MAX, "{extra} KiB more than the {before} KiB before");
}

#[test]
fn a_reader_that_is_slow_holds_back_the_service_and_not_the_memory() {
    const SIZE: usize = 256 * MIB;
    let service = Service::start();
    let gateway = Gateway::start(&service.config(""));
    assert_eq!(gateway.get("/").status, 200);
    forget_peak(&gateway);
    let before = memory_kib(&gateway, "status", "VmRSS:");
    // They read the head, and no more for as long as everybody else is served.
    let slow: Vec<_> = (0..16)
        .map(|_| {
            let mut client = gateway.connect();
            client.send(format!("GET /download/{SIZE} HTTP/1.1\r\nhost: a\r\n\r\n"));
            assert_eq!(client.read_response_head().status, 200);
            client
        })
        .collect();
    let mut other = gateway.connect();
    for _ in 0..200 {
        assert_eq!(other.get("/").status, 200);
    }
    let extra = peak_kib(&gateway).saturating_sub(before);
    assert!(extra < STREAM_KIB_MAX, "{extra} KiB more than the {before} KiB before");
    drop(slow);
    gateway.metrics_until("their requests have ended", |metrics| metrics.sum("shardgate_requests_in_flight") == 0);
}

/// Bytes that each of `count` idle connections that have been served adds to the gateway's memory.
fn idle_bytes_each(count: usize, shards: usize, huge_pages: bool) -> u64 {
    raise_descriptor_limit();
    let service = Service::start();
    let config = service.config(&format!(
        "[runtime]\nshards = {shards}\n[http]\nkeep_alive_timeout = \"10m\"\n[listener]\nconnections_max = 20000\n"
    ));
    let gateway = Gateway::start_as(&config, |command| {
        command.env("MIMALLOC_ALLOW_THP", if huge_pages { "1" } else { "0" });
    });
    let connect = |index: usize| {
        let mut client = Client::connect_from(source(index, 5_000), gateway.address()).expect("it is taken");
        assert_eq!(client.get("/").status, 200);
        client
    };
    // What is there for every number of connections is there now.
    drop((0..64).map(connect).collect::<Vec<_>>());
    gateway.metrics_until("they are closed", |metrics| metrics.sum("shardgate_connections_open") == 0);
    // Its own memory: what it shares with other gateways of the suite counts for more as soon as one of those ends.
    let before = memory_kib(&gateway, "smaps_rollup", "Anonymous:");
    let mut clients: Vec<_> = (0..count).map(connect).collect();
    let expected = i64::try_from(count).expect("few");
    let metrics =
        gateway.metrics_until("all are open", |metrics| metrics.sum("shardgate_connections_open") == expected);
    let on_shards = metrics.by_shard("shardgate_connections_open");
    assert!(on_shards.iter().all(|&open| open > expected / 8), "all shards have their share: {on_shards:?}");
    let after = memory_kib(&gateway, "smaps_rollup", "Anonymous:");
    for client in clients.iter_mut().step_by(97) {
        assert_eq!(client.get("/").status, 200, "they still work");
    }
    let each = after.saturating_sub(before) * 1024 / count as u64;
    eprintln!("{count} idle connections take {each} bytes each: from {before} KiB to {after} KiB");
    each
}

#[test]
fn an_idle_connection_takes_little() {
    let count = if is_long() { 10_000 } else { 2_000 };
    assert!(idle_bytes_each(count, 4, false) <= IDLE_BYTES_MAX);
    if is_long() {
        // As it runs by default. Every shard's heap then grows by 2 MiB at a time, which on several shards is a good part
        // of what so few connections take.
        assert!(idle_bytes_each(count, 1, true) <= IDLE_BYTES_MAX);
    }
}

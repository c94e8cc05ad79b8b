//! Clients that mean harm: they get what the limits give them, and nobody else notices.

use std::{
    sync::mpsc::{Receiver, TryRecvError, channel},
    time::Duration,
};

use super::raise_descriptor_limit;
use crate::{
    client::is_silence,
    harness::{Client, Gateway, is_long, now, pause},
    service::Service,
};

/// Asks over and over until told to stop, though some times at least; fails if it is not answered.
fn behave(gateway: &Gateway, stopped: &Receiver<()>) {
    let mut served = 0;
    let mut kept = gateway.connect();
    while served < 20 || stopped.try_recv() == Err(TryRecvError::Empty) {
        assert_eq!(kept.get("/").status, 200);
        assert_eq!(gateway.get("/").status, 200);
        served += 2;
        pause(Duration::from_millis(5));
    }
}

/// Does `harm` while well-behaved clients ask on; all of these have to be answered.
fn while_others_ask(gateway: &Gateway, harm: impl FnOnce()) {
    std::thread::scope(|scope| {
        let (stops, clients): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| {
                let (stop, stopped) = channel::<()>();
                (stop, scope.spawn(move || behave(gateway, &stopped)))
            })
            .unzip();
        harm();
        drop(stops);
        for client in clients {
            client.join().expect("every request was answered");
        }
    });
    gateway.metrics_until("nothing is left of it", |metrics| metrics.sum("shardgate_connections_open") == 0);
}

/// Whether the gateway has said 408 or closed by now; an answer of any other kind fails the test.
fn has_been_ended(client: &mut Client) -> bool {
    match client.try_read_response("GET") {
        Ok(response) => {
            assert_eq!((response.status, response.json()["code"].as_str()), (408, Some("request_timeout")));
            true
        }
        Err(error) => !is_silence(&error),
    }
}

#[test]
fn heads_that_come_a_byte_a_second_are_ended() {
    let connections = if is_long() { 1_000 } else { 200 };
    raise_descriptor_limit();
    let service = Service::start();
    let gateway = Gateway::start(&service.config("[http]\nheader_timeout = \"3s\"\n"));
    let head = b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: and never an end of it";
    while_others_ask(&gateway, || {
        let began = now();
        let mut slow: Vec<_> = (0..connections).map(|_| gateway.connect()).collect();
        for (at, byte) in head.iter().enumerate().take(6) {
            for client in &mut slow {
                // It may have been ended already.
                let _ = client.try_send([*byte]);
            }
            let due = began + Duration::from_secs(at as u64 + 1);
            pause(due.saturating_duration_since(now()));
        }
        let ended = slow.iter_mut().filter_map(|client| has_been_ended(client).then_some(())).count();
        assert_eq!(ended, connections);
    });
    let expected = i64::try_from(connections).expect("few");
    assert_eq!(gateway.metrics().value("shardgate_rejects_total{code=\"request_timeout\"}"), expected);
}

#[test]
fn bodies_that_come_a_byte_a_second_are_ended() {
    const CONNECTIONS: usize = 50;
    let service = Service::start();
    let gateway = Gateway::start(&service.config("").replace("request_timeout = \"10m\"", "request_timeout = \"2s\""));
    while_others_ask(&gateway, || {
        let mut slow: Vec<_> = (0..CONNECTIONS).map(|_| gateway.connect()).collect();
        for client in &mut slow {
            client.send("POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n");
        }
        let began = now();
        for second in 1..=3 {
            for client in &mut slow {
                let _ = client.try_send("u");
            }
            pause((began + Duration::from_secs(second)).saturating_duration_since(now()));
        }
        let ended = slow.iter_mut().filter_map(|client| has_been_ended(client).then_some(())).count();
        assert_eq!(ended, CONNECTIONS);
    });
}

#[test]
fn heads_without_end_are_refused_at_the_limit() {
    const CONNECTIONS: usize = 100;
    let service = Service::start();
    let gateway = Gateway::start(&service.config(""));
    while_others_ask(&gateway, || {
        for (name, bomb) in [
            ("one long field", format!("x-bomb: {}", "b".repeat(200_000))),
            ("many fields", "x-bomb: 1\r\n".repeat(5_000)),
        ] {
            let mut bombers: Vec<_> = (0..CONNECTIONS).map(|_| gateway.connect()).collect();
            for client in &mut bombers {
                client.send("GET / HTTP/1.1\r\nhost: a\r\n");
                // The refusal may come before all of it is sent.
                let _ = client.try_send(&bomb);
            }
            for client in &mut bombers {
                let response = client.read_response();
                assert_eq!(response.status, 431, "{name}");
                assert_eq!(response.json()["code"], "header_too_large", "{name}");
                client.expect_end();
            }
        }
    });
}

#[test]
fn connections_that_say_nothing_are_closed() {
    const CONNECTIONS: usize = 100;
    let service = Service::start();
    let gateway =
        Gateway::start(&service.config("[http]\nheader_timeout = \"500ms\"\nkeep_alive_timeout = \"500ms\"\n"));
    let mut silent: Vec<_> = (0..CONNECTIONS).map(|_| gateway.connect()).collect();
    let ask = |_| {
        let mut client = gateway.connect();
        assert_eq!(client.get("/").status, 200);
        client
    };
    let mut idle: Vec<_> = (0..CONNECTIONS).map(ask).collect();
    for client in silent.iter_mut().chain(&mut idle) {
        assert_eq!(client.read_to_end().expect("it is closed in order"), b"", "there is nothing to say");
    }
    gateway.metrics_until("all are closed", |metrics| metrics.sum("shardgate_connections_open") == 0);
}

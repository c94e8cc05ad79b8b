//! SIGTERM: tell balancers, close the listeners, finish what is under way, end.

use std::{net::TcpStream, time::Duration};

use rustix::process::Signal;

use crate::{
    harness::{Gateway, until},
    service::Service,
};

const SOON: Duration = Duration::from_secs(10);

fn wait_for_requests_in_flight(gateway: &Gateway, count: i64) {
    gateway.metrics_until("the requests are in flight", |metrics| metrics.sum("shardgate_requests_in_flight") >= count);
}

#[test]
fn a_drain_tells_then_closes_then_ends() {
    let service = Service::start();
    let mut gateway = Gateway::start(&service.config("[drain]\nnotice = \"3s\"\nmax = \"30s\"\n"));
    let mut idle = gateway.connect();
    assert_eq!(idle.get("/").status, 200);
    let mut untouched = gateway.connect();
    let mut held = gateway.connect();
    held.send("GET /held HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut stream = gateway.connect();
    stream.send("GET /stream HTTP/1.1\r\nhost: a\r\n\r\n");
    stream.read_until("first");
    wait_for_requests_in_flight(&gateway, 2);

    gateway.signal(Signal::TERM);
    gateway.log_until("draining", SOON);
    assert_eq!(gateway.ask_admin("/health/ready").status, 503);
    // The page takes its way through the mesh.
    until(SOON, "the public page says it too", || (gateway.get("/health/ready").status == 503).then_some(()));
    assert!(!gateway.log().contains("closing the listeners"), "it still accepts");
    assert_eq!(gateway.get("/health/live").status, 200);
    let fresh = gateway.get("/");
    assert_eq!((fresh.status, fresh.field("connection")), (200, Some("close")), "still served, and sent elsewhere");

    gateway.log_until("closing the listeners", SOON);
    idle.expect_end();
    untouched.expect_end();
    until(SOON, "connections are refused", || TcpStream::connect(gateway.address()).is_err().then_some(()));
    assert!(gateway.has_exited().is_none(), "requests are under way");
    service.release();
    let response = held.read_response();
    assert_eq!((response.text().as_str(), response.field("connection")), ("held", Some("close")));
    held.expect_end();
    stream.read_until("last\r\n0\r\n\r\n");
    stream.expect_end();
    assert_eq!(gateway.wait_exit(SOON), Some(0));
    assert_eq!(gateway.access_lines(6).len(), 6 + ready_asked(&gateway), "every request is in the log at the end");
}

/// How often readiness was asked for, as the access log has it.
fn ready_asked(gateway: &Gateway) -> usize {
    let is_probe = |line: &serde_json::Value| line["path"] == "/health/ready";
    gateway.access_lines(1).iter().filter(|line| is_probe(line)).count().saturating_sub(1)
}

#[test]
fn what_is_left_at_the_end_of_the_drain_is_refused_or_cut() {
    for driver in ["epoll", "io_uring"] {
        let service = Service::start();
        let config = format!("[runtime]\ndriver = \"{driver}\"\n[drain]\nnotice = \"0s\"\nmax = \"500ms\"\n");
        let mut gateway = Gateway::start(&service.config(&config));
        let mut held: Vec<_> = (0..32).map(|_| gateway.connect()).collect();
        for client in &mut held {
            client.send("GET /held HTTP/1.1\r\nhost: a\r\n\r\n");
        }
        let mut stream = gateway.connect();
        stream.send("GET /stream HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.read_until("first");
        wait_for_requests_in_flight(&gateway, 33);
        gateway.signal(Signal::TERM);
        for client in &mut held {
            let answer = client.read_response();
            assert_eq!((answer.status, &answer.json()["code"]), (503, &"draining".into()), "{driver}");
            assert!(answer.field("retry-after").is_some());
            client.expect_end();
        }
        assert_eq!(gateway.wait_exit(SOON), Some(3), "{driver}");
        stream.expect_end();
        let lines = gateway.access_lines(33);
        let ended = |reason: &str| lines.iter().filter(|line| line["reason"] == reason).count();
        assert_eq!((ended("draining"), ended("aborted")), (32, 1), "what was left is in the log: {lines:?}");
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let service = Service::start();
        let mut gateway = Gateway::start(&service.config("[drain]\nnotice = \"1m\"\nmax = \"2m\"\n"));
        let mut held = gateway.connect();
        held.send("GET /held HTTP/1.1\r\nhost: a\r\n\r\n");
        wait_for_requests_in_flight(&gateway, 1);
        gateway.signal(Signal::TERM);
        gateway.log_until("draining", SOON);
        gateway.signal(second);
        assert_eq!(gateway.wait_exit(SOON), Some(3));
    }
}

#[test]
fn a_signal_counts_from_the_first_line_of_the_log_on() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut gateway = Gateway::start("[drain]\nnotice = \"0s\"\n");
        gateway.signal(signal);
        assert_eq!(gateway.wait_exit(SOON), Some(0));
    }
    let mut gateway = Gateway::start("[drain]\nnotice = \"0s\"\n");
    gateway.signal(Signal::HUP);
    gateway.log_until("configuration reloaded", SOON);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0));
}

#[test]
fn who_waited_in_the_queue_is_served() {
    const CONNECTIONS: usize = 40;
    let service = Service::start();
    for driver in ["epoll", "io_uring", "epoll", "io_uring"] {
        let config = format!("[runtime]\ndriver = \"{driver}\"\n[drain]\nnotice = \"0s\"\nmax = \"20s\"\n");
        let mut gateway = Gateway::start(&service.config(&config));
        gateway.log_until("every shard runs the configuration", SOON);
        // While the process stands still the kernel queues connections for it, and the signal too.
        gateway.signal(Signal::STOP);
        let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        }
        gateway.signal(Signal::TERM);
        gateway.signal(Signal::CONT);
        let served = clients.iter_mut().filter_map(|client| client.try_read_response("GET").ok());
        assert_eq!(served.filter(|response| response.status == 200).count(), CONNECTIONS);
        assert_eq!(gateway.wait_exit(SOON), Some(0));
    }
}

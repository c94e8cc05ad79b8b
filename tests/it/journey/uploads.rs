//! Requests whose bodies take their time, and what they leave for everybody else.

use std::{sync::mpsc, time::Duration};

use rustix::process::Signal;

use super::{Setup, expect_refusal};
use crate::{
    backend::{Backend, OK},
    client::{Client, Response},
    harness::{Gateway, until},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Longer than what is waited for without a place.
const LONG: usize = 100_000;

/// For each of 4 shards: 8 requests, and of them 4 uploads.
const PLACES: &str = "requests_max = 32";
const UPLOADS: usize = 16;

/// A backend that tells of a request with its head, and answers once all of it is there.
fn backend() -> Backend {
    Backend::start(|conversation| {
        loop {
            let head = conversation.tell_head()?;
            if head.field("transfer-encoding").is_some() {
                conversation.read_until(b"0\r\n\r\n")?;
            }
            let length = head.field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            conversation.take(length)?;
            conversation.send(OK)?;
        }
    })
}

/// What became of an upload that stands still.
enum Became {
    Underway(Client),
    Refused(Response),
}

/// Begins an upload that stands still.
fn begin(gateway: &Gateway, backend: &mut Backend, head: &str) -> Became {
    let mut client = gateway.connect();
    client.send(format!("POST /slow HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n"));
    let is_refused = until(PATIENCE, "it is refused or with the backend", || {
        let is_under_way = !backend.requests().is_empty();
        (is_under_way || client.has_bytes()).then_some(!is_under_way)
    });
    if is_refused { Became::Refused(client.read_response()) } else { Became::Underway(client) }
}

/// Begins uploads that stand still until no shard takes one more.
fn fill(gateway: &Gateway, backend: &mut Backend, head: &str) -> Vec<Client> {
    let mut under_way = Vec::new();
    until(PATIENCE, "every shard has its share of uploads", || {
        match begin(gateway, backend, head) {
            Became::Underway(client) => under_way.push(client),
            Became::Refused(answer) => expect_refusal(&answer, 503, "circuit_open"),
        }
        (under_way.len() == UPLOADS).then_some(())
    });
    under_way
}

fn uploads(gateway: &Gateway) -> i64 {
    gateway.metrics().value(r#"shardgate_upstream_uploads_in_flight{upstream="back"}"#)
}

#[test]
fn slow_uploads_leave_places_for_others() {
    let mut backend = backend();
    let gateway = Setup { upstream: PLACES, ..Setup::default() }.start(&[backend.address()]);
    let mut under_way = fill(&gateway, &mut backend, &format!("Content-Length: {LONG}"));
    assert_eq!(uploads(&gateway), 16);
    for _ in 0..16 {
        assert_eq!(gateway.get("/x").status, 200);
        // All of it is there with the head, or with a second look.
        let mut client = gateway.connect();
        client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(client.read_response().status, 200);
        assert_eq!(client.post("/x", &vec![b'x'; 16 * 1024]).status, 200);
        let refused = client.post("/x", &vec![b'x'; 16 * 1024 + 1]);
        expect_refusal(&refused, 503, "circuit_open");
        assert!(refused.text().contains("bodies are on their way"), "{}", refused.text());
    }
    for client in &mut under_way {
        client.send(vec![b'x'; LONG]);
        assert_eq!(client.read_response().status, 200);
    }
    assert_eq!(uploads(&gateway), 0);
    // An upload that is over leaves its place, also when it was cut off.
    let under_way = fill(&gateway, &mut backend, "Transfer-Encoding: chunked");
    drop(under_way);
    until(PATIENCE, "nothing is under way", || (uploads(&gateway) == 0).then_some(()));
    assert_eq!(gateway.connect().post("/x", &vec![b'x'; LONG]).status, 200);
}

#[test]
fn a_short_body_without_a_place_is_waited_for() {
    let brief = "[[routes]]\naccess = \"public\"\npath = \"/brief\"\nupstream = \"back\"\nrequest_timeout = \"300ms\"";
    let mut backend = backend();
    let gateway = Setup { upstream: PLACES, rest: brief, ..Setup::default() }.start(&[backend.address()]);
    let _under_way = fill(&gateway, &mut backend, &format!("Content-Length: {LONG}"));
    let mut clients: Vec<_> = (0..32).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.read_response().status, 100);
        client.send("he");
    }
    // The gateway has answered these, so it has not forwarded those.
    assert_eq!(gateway.metrics().value(r#"shardgate_upstream_requests_in_flight{upstream="back"}"#), 16);
    for client in &mut clients {
        client.send("llo");
        assert_eq!(client.read_response().status, 200);
    }
    let late = &mut clients[0];
    late.send("POST /brief HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe");
    expect_refusal(&late.read_response(), 408, "request_timeout");
    let gone = &mut clients[1];
    gone.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe");
    gone.finish();
    until(PATIENCE, "the one that left is in the log", || {
        gateway.access_lines(0).iter().any(|line| line["reason"] == "client_closed").then_some(())
    });
}

#[test]
fn uploads_may_have_more_or_fewer_places() {
    let mut backend = backend();
    let upstream = "requests_max = 1024\nuploads_max = 16";
    let gateway = Setup { upstream, ..Setup::default() }.start(&[backend.address()]);
    fill(&gateway, &mut backend, &format!("Content-Length: {LONG}"));
}

#[test]
fn an_upload_that_is_sent_again_is_still_one() {
    let (gate, released) = mpsc::sync_channel(0);
    let mut backend = Backend::start(move |conversation| {
        conversation.tell_head()?;
        if conversation.number > 0 {
            conversation.take(LONG)?;
            return conversation.send(OK);
        }
        let _ = gate.send(());
        conversation.reset()
    });
    let gateway = Setup::default().start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send(format!("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: {LONG}\r\n\r\n"));
    backend.request();
    // The gateway sees both at once: that its connection broke, and the first of the body, which finds that out.
    gateway.stand_still();
    released.recv_timeout(PATIENCE).expect("the backend waits for it");
    backend.wait_ended(0);
    client.send(vec![b'x'; LONG / 10]);
    gateway.signal(Signal::CONT);
    backend.request();
    assert_eq!(uploads(&gateway), 1);
    client.send(vec![b'x'; LONG - LONG / 10]);
    assert_eq!(client.read_response().status, 200);
    assert_eq!(uploads(&gateway), 0);
}

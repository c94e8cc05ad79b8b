//! Between two messages on one connection, on either side of the gateway: nothing of the one is taken for the other.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{Setup, before};
use crate::backend::{Backend, OK};

const MIB: usize = 1024 * 1024;
/// What the gateway has of an upload when the answer begins may be all but this.
const LAST: usize = 16 * 1024;
/// A write that takes longer has met back-pressure.
const STUCK: Duration = Duration::from_millis(300);

/// One shard, so that all share one pool of connections.
const ONE_SHARD: &str = "[runtime]\nshards = 1";

#[test]
fn the_end_of_a_body_is_no_request() {
    // As much as the gateway moves before others get their turn: the answer ends while the end of the upload waits for it.
    let mut backend = Backend::start(|conversation| {
        loop {
            let head = conversation.tell_head()?;
            if head.first_line.starts_with("POST") {
                conversation.take(MIB - LAST)?;
                conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")?;
                conversation.take(LAST)?;
                conversation.send("0\r\n\r\n")?;
            } else {
                conversation.send(OK)?;
            }
        }
    });
    let gateway = before(backend.address());
    let mut smuggled = b"POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX-Padding: ".to_vec();
    smuggled.resize(LAST - 4, b'x');
    smuggled.extend(b"\r\n\r\n");
    for _ in 0..8 {
        let mut client = gateway.connect();
        client.send(format!("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB}\r\n\r\n"));
        client.send(vec![b'x'; MIB - LAST]);
        client.read_until("hello");
        client.send(&smuggled);
        client.read_until("0\r\n\r\n");
        assert_eq!(client.get("/next").text(), "ok");
        let seen = [backend.request(), backend.request()].map(|request| request.head.first_line);
        assert_eq!(seen, ["POST /upload HTTP/1.1", "GET /next HTTP/1.1"]);
    }
    assert!(backend.requests().is_empty());
}

#[test]
fn a_backend_that_answers_early_gets_no_other_request_behind_the_rest_of_the_first() {
    const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    // It takes no notice of the body, whatever its head says.
    let mut backend = Backend::start(|conversation| {
        loop {
            let head = conversation.tell_head()?;
            if head.first_line.contains("/early") {
                conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
                assert_eq!(conversation.take(SMUGGLED.len())?, SMUGGLED.as_bytes(), "it comes as it was sent");
                conversation.send("4\r\nlast\r\n0\r\n\r\n")?;
            } else {
                conversation.send(OK)?;
            }
        }
    });
    let gateway = Setup { rest: ONE_SHARD, ..Setup::default() }.start(&[backend.address()]);
    for round in 0..4 {
        let mut client = gateway.connect();
        client.send(format!("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", SMUGGLED.len()));
        client.read_until("first");
        client.send(SMUGGLED);
        client.read_until("last\r\n0\r\n\r\n");
        assert_eq!(gateway.get("/next").text(), "ok");
        let [early, next] = [backend.request(), backend.request()];
        assert_ne!(early.connection, next.connection, "in round {round}");
    }
}

#[test]
fn urgent_data_holds_nothing_up() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    for _ in 0..8 {
        let mut client = gateway.connect();
        client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n");
        client.send(vec![b'x'; 30_000]);
        rustix::net::send(client.stream(), b"!", rustix::net::SendFlags::OOB).expect("it is connected");
        client.send(vec![b'x'; 30_000]);
        assert_eq!(client.read_response().status, 200);
        // It is no part of the stream.
        assert_eq!(backend.request().body, vec![b'x'; 60_000]);
    }
}

#[test]
fn what_comes_behind_an_answer_is_nobodys() {
    // A body to a HEAD, in a piece of its own: whoever asks next would take it for an answer.
    let mut backend = Backend::start(|conversation| {
        loop {
            let head = conversation.tell_head()?;
            if head.first_line.starts_with("HEAD") {
                conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n")?;
                conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")?;
            } else {
                conversation.send(OK)?;
            }
        }
    });
    let gateway = Setup { rest: ONE_SHARD, ..Setup::default() }.start(&[backend.address()]);
    for _ in 0..16 {
        let mut client = gateway.connect();
        client.send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n");
        client.read_head_response();
        assert_eq!(client.read_response().text(), "ok");
        // The next one comes as soon as it is known that what came before is over.
        let [head, next] = [backend.request(), backend.request()];
        assert_ne!(head.connection, next.connection);
    }
}

#[test]
fn an_answer_that_is_finished_for_nobody_leaves_its_connection_clean() {
    const CHUNKS: usize = 400_000;
    let gate = Arc::new(OnceLock::new());
    let opened = Arc::clone(&gate);
    let mut backend = Backend::start(move |conversation| {
        loop {
            let head = conversation.tell_head()?;
            if head.first_line.contains("/much") {
                conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
                opened.wait();
                conversation.send("3\r\nabc\r\n".repeat(CHUNKS) + "0\r\n\r\n")?;
            } else {
                conversation.send(OK)?;
            }
        }
    });
    let finish = Setup { route: "on_client_close = \"finish\"", rest: ONE_SHARD, ..Setup::default() };
    let gateway = finish.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send("GET /much HTTP/1.1\r\nHost: a\r\n\r\n");
    client.read_until("first");
    socket2::SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).expect("a socket");
    drop(client);
    gate.get_or_init(|| ());
    gateway.access_lines(1);
    gateway.metrics_until("the answer has been read over", |metrics| {
        metrics.sum("shardgate_upstream_requests_in_flight") == 0
    });
    assert_eq!(gateway.get("/next").text(), "ok");
    assert_eq!([backend.request(), backend.request()].map(|request| request.connection), [0, 0], "it is used again");
}

#[test]
fn an_answer_that_was_broken_off_does_not_end_well() {
    // The gateway learns of the reset when it passes on more of the request; what it reads then looks like the end.
    let gate = Arc::new(OnceLock::new());
    let opened = Arc::clone(&gate);
    let mut backend = Backend::start(move |conversation| {
        conversation.tell_head()?;
        conversation.send("HTTP/1.1 200 OK\r\n\r\nfirst")?;
        opened.wait();
        // More than the gateway takes while its client does not read.
        conversation.stream().set_write_timeout(Some(STUCK))?;
        while conversation.send([b'x'; LAST]).is_ok() {}
        conversation.reset()
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    client.read_until("first");
    gate.get_or_init(|| ());
    backend.wait_ended(0);
    client.send("6");
    let rest = client.read_to_end().unwrap_or_default();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a part passes for the whole");
    assert_eq!(gateway.access_lines(1)[0]["reason"], "upstream_broken");
}

#[test]
fn what_was_sent_before_an_answer_broke_off_arrives() {
    let mut backend = Backend::start(|conversation| {
        while !conversation.read_request()?.head.first_line.contains("/part") {
            conversation.send(OK)?;
        }
        conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    });
    let gateway = Setup { rest: ONE_SHARD, ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    // More requests than the gateway reads ahead: a socket that is closed over them resets its connection.
    let further = "GET /further HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2000);
    client.send(format!("GET /whole HTTP/1.1\r\nHost: a\r\n\r\nGET /part HTTP/1.1\r\nHost: a\r\n\r\n{further}"));
    assert_eq!(gateway.access_lines(2)[1]["reason"], "upstream_broken");
    let heard = client.read_to_end().expect("an end, not a reset");
    assert!(heard.ends_with(b"5\r\nfirst\r\n"), "{}", String::from_utf8_lossy(&heard));
    assert!(backend.requests().iter().all(|request| !request.head.first_line.contains("further")));
}

//! Other protocols: a tunnel begins with the backend's 101, not a byte before, and ends with either side.

use std::{
    io::{ErrorKind, Read as _},
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{Setup, before, expect_refusal};
use crate::{
    backend::{Backend, OK},
    client::Client,
};

const ASK: &str = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
/// How long nothing may come before it is taken for nothing.
const QUIET: Duration = Duration::from_millis(150);

#[test]
fn no_byte_of_the_client_passes_before_the_backend_has_agreed() {
    let mut backend = Backend::start(|conversation| {
        conversation.tell_head()?;
        // The client's bytes were sent together with the request.
        conversation.stream().set_read_timeout(Some(QUIET))?;
        let early = conversation.stream().read(&mut [0; 64]);
        conversation.stream().set_read_timeout(Some(Duration::from_secs(10)))?;
        match early {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // The first bytes of the other protocol come right behind.
                conversation.send([SWITCH.as_bytes(), b"hello"].concat())?;
                let echo = conversation.read_until(b"early")?;
                conversation.send(echo)?;
                let echo = conversation.read_until(b"later")?;
                conversation.send(echo)
            }
            _ => conversation.send("HTTP/1.1 500 Bytes came before\r\nContent-Length: 0\r\n\r\n"),
        }
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send([ASK.as_bytes(), b"early"].concat());
    let answer = client.read_response();
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!((answer.field("connection"), answer.field("upgrade")), (Some("upgrade"), Some("websocket")));
    assert!(answer.field("x-request-id").is_some());
    assert_eq!(client.read_until("early"), b"helloearly");
    client.send("later");
    assert_eq!(client.read_until("later"), b"later");
    let asked = backend.request().head;
    assert_eq!((asked.field("connection"), asked.field("upgrade")), (Some("upgrade"), Some("WebSocket")));
    client.expect_end();
    // The backend is done; the client may have gone on.
    client.finish();
    let line = &gateway.access_lines(1)[0];
    assert_eq!((line["status"].as_u64(), line["response_bytes"].as_u64()), (Some(101), Some(15)), "{line}");
}

#[test]
fn a_backend_that_does_not_agree_answers_as_ever() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    // What follows is the next request then, not bytes of a tunnel.
    client.send(format!("{ASK}GET /y HTTP/1.1\r\nHost: a\r\n\r\n"));
    for path in ["/x", "/y"] {
        let answer = client.read_response();
        assert_eq!((answer.status, answer.text().as_str(), answer.field("upgrade")), (200, "ok", None));
        assert!(backend.request().head.first_line.contains(path));
    }
}

#[test]
fn nobody_switches_unasked() {
    let backend = Backend::answering(|_| SWITCH);
    let gateway = before(backend.address());
    // No upgrade at all, one that is not meant for this connection, one in HTTP/1.0 (RFC 9110 §7.8).
    for request in [
        "GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        "GET /x HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let mut client = gateway.connect();
        client.send(request);
        expect_refusal(&client.read_response(), 502, "upstream_bad_response");
    }
}

#[test]
fn nobody_switches_to_another_protocol_than_was_asked_for() {
    const NAMELESS: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n";
    const OTHER: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other/1\r\n\r\nhello";
    for switch in [NAMELESS, OTHER] {
        let mut backend = Backend::answering(move |_| switch);
        let gateway = before(backend.address());
        let mut client = gateway.connect();
        client.send(ASK);
        expect_refusal(&client.read_response(), 502, "upstream_bad_response");
        backend.wait_ended(0);
    }
}

#[test]
fn http2_is_not_begun_by_upgrade() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send(
        "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    );
    assert_eq!(client.read_response().status, 200);
    let seen = backend.request().head;
    for gone in ["upgrade", "connection", "http2-settings"] {
        assert_eq!(seen.field(gone), None, "{seen:?}");
    }
}

/// A backend that switches, and a client that asked it to.
fn tunnel(
    setup: &Setup<'_>,
    script: impl Fn(&mut crate::backend::Conversation) -> std::io::Result<()> + Send + Sync + 'static,
) -> (crate::harness::Gateway, Backend, Client) {
    let backend = Backend::start(move |conversation| {
        conversation.read_head()?;
        conversation.send(SWITCH)?;
        script(conversation)
    });
    let gateway = setup.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send(ASK);
    assert_eq!(client.read_response().status, 101);
    (gateway, backend, client)
}

#[test]
fn each_direction_ends_by_itself() {
    let (_gateway, mut backend, mut client) = tunnel(&Setup::default(), |conversation| {
        let heard = conversation.read_to_end();
        conversation.send([b"you said ".as_slice(), &heard].concat())
    });
    client.send("goodbye");
    client.finish();
    assert_eq!(client.read_to_end().expect("the backend's end"), b"you said goodbye");
    backend.wait_ended(0);

    let (_gateway, mut backend, mut client) = tunnel(&Setup::default(), |conversation| {
        conversation.send("that is all")?;
        conversation.finish()?;
        conversation.read_until(b"one more thing").map(drop)
    });
    assert_eq!(client.read_to_end().expect("the backend's end"), b"that is all");
    client.send("one more thing");
    client.finish();
    backend.wait_ended(0);
}

#[test]
fn a_client_that_breaks_off_takes_the_backend_with_it() {
    let (_gateway, mut backend, client) = tunnel(&Setup::default(), |conversation| {
        conversation.read_to_end();
        Ok(())
    });
    socket2::SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).expect("a socket");
    drop(client);
    backend.wait_ended(0);
}

#[test]
fn a_connection_that_has_switched_carries_no_request_whatever_becomes_of_its_client() {
    let (gate, heard) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
    let (opened, told) = (Arc::clone(&gate), Arc::clone(&heard));
    let mut backend = Backend::start(move |conversation| {
        if conversation.number > 0 {
            loop {
                conversation.read_request()?;
                conversation.send(OK)?;
            }
        }
        conversation.tell_head()?;
        opened.wait();
        conversation.send(SWITCH)?;
        let _ = told.set(conversation.read_to_end());
        Ok(())
    });
    // One shard, so that all share one pool.
    let finish = Setup { route: "on_client_close = \"finish\"", rest: "[runtime]\nshards = 1", ..Setup::default() };
    let gateway = finish.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send(ASK);
    backend.request();
    socket2::SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).expect("a socket");
    drop(client);
    gate.get_or_init(|| ());
    gateway.access_lines(1);
    for _ in 0..4 {
        assert_eq!(gateway.get("/y").status, 200);
    }
    backend.wait_ended(0);
    assert_eq!(heard.get().map(Vec::len), Some(0), "nobody's request went into the tunnel");
}

#[test]
fn a_tunnel_does_not_outlive_a_backend_that_has_closed() {
    // A client that does not close by itself, nor say anything: the idle limit is 5 minutes.
    let (gateway, _backend, mut client) = tunnel(&Setup::default(), |_| Ok(()));
    client.expect_end();
    assert_eq!(gateway.access_lines(1)[0]["status"], 101);
    // One that talks on into a connection that nobody has any more.
    let (gateway, _backend, mut client) = tunnel(&Setup::default(), |_| Ok(()));
    client.expect_end();
    client.send("are you there?");
    client.send("are you?");
    assert_eq!(gateway.access_lines(1)[0]["status"], 101);
}

#[test]
fn a_silent_tunnel_is_closed() {
    let setup = Setup { route: "stream_idle_timeout = \"200ms\"", ..Setup::default() };
    let (_gateway, mut backend, mut client) = tunnel(&setup, |conversation| {
        conversation.read_to_end();
        Ok(())
    });
    client.expect_end();
    backend.wait_ended(0);
}

#[test]
fn much_passes_both_ways_at_once() {
    const BYTES: usize = 8 * 1024 * 1024;
    let (_gateway, _backend, mut client) = tunnel(&Setup::default(), |conversation| {
        let mut left = BYTES;
        while left > 0 {
            let piece = conversation.take(left.min(10_000))?;
            conversation.send(&piece)?;
            left -= piece.len();
        }
        Ok(())
    });
    let mut writing = Client::new(client.stream().try_clone().expect("another descriptor"));
    let sent: Vec<u8> = (0..BYTES).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || writing.send(sent));
    let mut got = Vec::with_capacity(BYTES);
    while got.len() < BYTES {
        let some = client.read_some().expect("more");
        assert!(!some.is_empty(), "it ends after {} bytes", got.len());
        got.extend_from_slice(&some);
    }
    writer.join().expect("all was sent");
    assert!(got == expected, "what came back is not what was sent");
}

#[test]
fn a_client_that_is_answered_otherwise_keeps_its_connection() {
    let mut backend = Backend::answering(|_| OK);
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for number in 0..3 {
        client.send(ASK);
        assert_eq!(client.read_response().status, 200);
        // The backend's is not used again: it may be closed, or no HTTP any more.
        assert_eq!(backend.request().connection, number);
    }
}

#[test]
fn only_protocols_that_the_route_knows_are_asked_for() {
    let mut backend = Backend::ok();
    let plain = before(backend.address());
    let listing =
        Setup { route: "upgrades = [\"websocket\", \"foo\"]", ..Setup::default() }.start(&[backend.address()]);
    let none = Setup { route: "upgrades = []", ..Setup::default() }.start(&[backend.address()]);
    for (gateway, asked, passed) in [
        (&plain, "websocket", Some("websocket")),
        (&plain, "WebSocket", Some("WebSocket")),
        (&plain, "foo/2", None),
        (&plain, "tcp", None),
        (&plain, "TLS/1.2", None),
        (&plain, "foo/2, websocket", Some("websocket")),
        (&plain, "web", None),
        (&listing, "foo/2, bar , WEBSOCKET", Some("foo/2, WEBSOCKET")),
        (&listing, "bar", None),
        (&listing, "h2c", None),
        (&listing, "foo, h2c", None),
        (&none, "websocket", None),
    ] {
        let mut client = gateway.connect();
        client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: {asked}\r\n\r\n"));
        assert_eq!(client.read_response().status, 200, "{asked}");
        let seen = backend.request().head;
        assert_eq!(seen.field("upgrade"), passed, "{asked}");
        assert_eq!(seen.field("connection"), passed.map(|_| "upgrade"), "{asked}");
    }
}

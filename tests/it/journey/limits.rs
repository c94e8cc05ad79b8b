//! Every limit, with its status and its code: in size, in number and in time.

use std::{sync::mpsc, time::Duration};

use super::{Setup, before, expect_refusal};
use crate::{
    backend::{Backend, OK},
    client::Client,
    harness::{now, pause, until},
};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_head_has_its_time_from_its_first_byte() {
    let mut backend = Backend::ok();
    let gateway = Setup { http: "header_timeout = \"300ms\"", ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n");
    expect_refusal(&client.read_response(), 408, "request_timeout");
    client.expect_end();
    // Byte by byte it is no more.
    let mut client = gateway.connect();
    let began = now();
    for byte in "GET /x HTTP/1.1\r\nHost: a\r\nX: ".bytes().chain(std::iter::repeat(b'x')) {
        if client.try_send([byte]).is_err() || began.elapsed() > Duration::from_secs(3) {
            break;
        }
        pause(Duration::from_millis(20));
        client.stream().set_nonblocking(true).expect("a socket");
        let has_answer = client.stream().peek(&mut [0]).is_ok();
        client.stream().set_nonblocking(false).expect("a socket");
        if has_answer {
            break;
        }
    }
    assert!(began.elapsed() < Duration::from_secs(2), "it goes on for {:?}", began.elapsed());
    expect_refusal(&client.read_response(), 408, "request_timeout");
    // Who never began is owed no answer.
    let mut client = gateway.connect();
    assert_eq!(client.read_to_end().expect("an end"), b"");
    assert!(backend.requests().is_empty());
}

#[test]
fn a_request_has_its_time_until_its_body_is_complete() {
    let mut backend = Backend::ok();
    let setup = Setup { http: "request_timeout = \"10s\"", route: "request_timeout = \"300ms\"", ..Setup::default() };
    let gateway = setup.start(&[backend.address()]);
    for framing in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        let mut client = gateway.connect();
        client.send(format!("POST /x HTTP/1.1\r\nHost: a\r\n{framing}"));
        let answer = client.read_response();
        expect_refusal(&answer, 408, "request_timeout");
        assert_eq!(answer.field("connection"), Some("close"));
        client.expect_end();
    }
    assert!(backend.requests().is_empty(), "no request was complete");
}

#[test]
fn a_request_that_stands_still_has_its_time_also_behind_its_answer() {
    let backend = Backend::start(|conversation| {
        conversation.read_head()?;
        conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n")?;
        conversation.read_to_end();
        Ok(())
    });
    // The answer itself may pause for 5 minutes.
    let gateway = Setup { route: "request_timeout = \"300ms\"", ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf ");
    client.read_until("early");
    client.expect_end();
    assert_eq!(gateway.access_lines(1)[0]["reason"], "upload_failed");
}

#[test]
fn sizes_are_refused_just_past_their_bounds() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let target = |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(bytes - 1));
    let head = |bytes: usize| {
        let start = "GET /x HTTP/1.1\r\nHost: a\r\nX: ";
        format!("{start}{}\r\n\r\n", "x".repeat(bytes - start.len() - 4))
    };
    let fields = |count: usize| format!("GET /x HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
    for (accepted, refused, status, code) in [
        (target(8192), target(8193), 414, "uri_too_long"),
        (head(32_768), head(32_769), 431, "header_too_large"),
        (fields(100), fields(101), 431, "header_too_large"),
    ] {
        let mut client = gateway.connect();
        client.send(accepted);
        assert_eq!(client.read_response().status, 200, "{code}");
        backend.request();
        let mut client = gateway.connect();
        client.send(refused);
        let answer = client.read_response();
        expect_refusal(&answer, status, code);
        assert_eq!(answer.field("connection"), Some("close"));
        client.expect_end();
        assert!(backend.requests().is_empty());
    }
    // One MiB of body is accepted by default.
    assert_eq!(gateway.connect().post("/x", &vec![0; 1024 * 1024]).status, 200);
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n");
    expect_refusal(&client.read_response(), 413, "body_too_large");
}

#[test]
fn a_refusal_reaches_a_client_that_goes_on_sending() {
    const SENT: usize = 8 * 1024 * 1024;
    let backend = Backend::ok();
    let gateway = before(backend.address());
    let line = |rest: &str| format!("POST /x HTTP/1.1\r\nHost: a\r\n{rest}\r\n\r\n");
    let body = vec![b'a'; SENT];
    let chunked = [format!("{SENT:x}\r\n").as_bytes(), &body].concat();
    for (head, body, status) in [
        (line(&format!("Content-Length: {SENT}")), &body, 413),
        (line("Transfer-Encoding: chunked"), &chunked, 413),
        (line("Host: b"), &body, 400),
        (line(&format!("Expect: much\r\nContent-Length: {SENT}")), &body, 417),
        (line(&format!("Content-Length: {SENT}")).replace("/x", "/auth/login"), &body, 413),
        (line(&format!("Content-Length: {SENT}")).replace("/x", "/auth/me"), &body, 405),
        (line(&format!("Content-Length: {SENT}")).replace("/x", "/%00"), &body, 400),
    ] {
        let mut client = gateway.connect();
        // It reads nothing until all is sent, and takes a reset for an answer that never came.
        client.send(&head);
        client.send(body);
        let answer = client.read_response();
        assert_eq!((answer.status, answer.field("connection")), (status, Some("close")), "{head}: {answer:?}");
        client.finish();
        assert_eq!(client.read_to_end().expect("an end that is no reset"), b"", "{head}");
    }
}

#[test]
fn a_client_that_never_stops_sending_is_not_read_for_ever() {
    let backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n");
    let (megabyte, mut sent) = (vec![b'a'; 1024 * 1024], 0);
    while client.try_send(&megabyte).is_ok() {
        sent += 1;
        assert!(sent < 512, "{sent} MiB were read");
    }
    assert!(sent >= 256, "{sent} MiB were read");
}

#[test]
fn what_is_not_implemented_is_told_apart() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    for (request, status, code) in [
        ("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: cookies\r\n\r\n", 417, "expectation_failed"),
        ("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501, "not_implemented"),
        ("GET /x HTTP/2.0\r\nHost: a\r\n\r\n", 505, "http_version_not_supported"),
    ] {
        let mut client = gateway.connect();
        client.send(request);
        expect_refusal(&client.read_response(), status, code);
        client.expect_end();
    }
    assert!(backend.requests().is_empty());
}

#[test]
fn an_idle_connection_is_closed() {
    let backend = Backend::ok();
    let gateway = Setup { http: "keep_alive_timeout = \"200ms\"", ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    assert_eq!(client.get("/x").status, 200);
    assert_eq!(client.read_to_end().expect("an end"), b"");
}

#[test]
fn a_connection_serves_so_many_requests() {
    let backend = Backend::ok();
    let gateway = Setup { http: "requests_per_connection_max = 3", ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    for connection in [None, None, Some("close")] {
        assert_eq!(client.get("/x").field("connection"), connection);
    }
    assert_eq!(client.read_to_end().expect("an end"), b"");
}

#[test]
fn past_the_limit_connections_are_refused() {
    let backend = Backend::ok();
    let rest = "[listener]\nconnections_max = 3";
    let gateway = Setup { rest, ..Setup::default() }.start(&[backend.address()]);
    let mut served: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
    for client in &mut served {
        assert_eq!(client.get("/x").status, 200);
    }
    let mut client = gateway.connect();
    let answer = client.read_response();
    expect_refusal(&answer, 503, "overloaded");
    assert_eq!(answer.field("connection"), Some("close"));
    client.expect_end();
    // Those that are there are served on, and a place that is left is somebody else's.
    assert_eq!(served[2].get("/x").status, 200);
    served.remove(0);
    until(PATIENCE, "a place is free again", || {
        let mut client = gateway.connect();
        // A refused connection may be closed before the request is out.
        client.try_send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").ok()?;
        client.try_read_response("GET").ok().filter(|answer| answer.status == 200)
    });
}

#[test]
fn a_backend_has_its_time_to_answer() {
    let mut backend = Backend::start(|conversation| {
        conversation.read_request()?;
        // Half a head is no answer.
        conversation.send("HTTP/1.1 200 OK\r\nContent-")?;
        conversation.read_to_end();
        Ok(())
    });
    let gateway = Setup { upstream: "response_timeout = \"200ms\"", ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    expect_refusal(&client.get("/x"), 504, "upstream_timeout");
    // Whatever it still says is nobody's answer.
    backend.wait_ended(0);
    expect_refusal(&client.get("/x"), 504, "upstream_timeout");
    assert_eq!(backend.opened(), 2, "a request that timed out is not sent again");
}

#[test]
fn an_answer_that_stands_still_is_cut() {
    let mut backend = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")?;
        conversation.read_to_end();
        Ok(())
    });
    let gateway = Setup { route: "stream_idle_timeout = \"200ms\"", ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    let got = client.read_to_end().unwrap_or_default();
    assert!(!got.ends_with(b"0\r\n\r\n"), "half an answer looks whole");
    backend.wait_ended(0);
    assert_eq!(gateway.access_lines(1)[0]["reason"], "upstream_stalled");
}

/// A backend that sends without end, or until the gateway closes.
fn endless() -> Backend {
    Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.1 200 OK\r\n\r\n")?;
        let piece = [b'x'; 16 * 1024];
        loop {
            conversation.send(piece)?;
        }
    })
}

#[test]
fn a_client_that_reads_nothing_is_cut() {
    let mut backend = endless();
    let gateway = Setup { http: "stream_idle_timeout = \"300ms\"", ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    backend.wait_ended(0);
    assert_eq!(gateway.access_lines(1)[0]["reason"], "client_stalled");
}

#[test]
fn a_client_that_reads_slowly_is_served_on() {
    let mut backend = endless();
    let gateway = Setup { http: "stream_idle_timeout = \"300ms\"", ..Setup::default() }.start(&[backend.address()]);
    // A small window, so that little reading is felt at the other end soon.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(64 * 1024).expect("a socket");
    socket.connect(&gateway.address().into()).expect("it listens");
    let mut client = Client::new(socket.into());
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    let began = now();
    while began.elapsed() < Duration::from_millis(1500) {
        let some = client.read_some().expect("it goes on");
        assert!(!some.is_empty(), "cut after {:?}", began.elapsed());
        pause(Duration::from_millis(2));
    }
    drop(client);
    backend.wait_ended(0);
}

#[test]
fn a_backend_that_reads_slowly_gets_the_whole_request() {
    const BYTES: usize = 48 * 1024 * 1024;
    let backend = Backend::start(|conversation| {
        conversation.read_head()?;
        let mut left = BYTES;
        while left > 0 {
            let piece = left.min(BYTES / 64);
            conversation.take(piece)?;
            left -= piece;
            pause(Duration::from_millis(20));
        }
        conversation.send(OK)
    });
    // The time to answer begins when the request is complete: sending it takes longer, and what the kernel holds of it far less.
    let setup = Setup { http: "body_bytes_max = \"1GiB\"", upstream: "response_timeout = \"1s\"", ..Setup::default() };
    let gateway = setup.start(&[backend.address()]);
    let answer = gateway.connect().post("/x", &vec![0; BYTES]);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn past_the_limit_requests_find_the_circuit_open() {
    let (gate, released) = mpsc::sync_channel(0);
    let mut backend = Backend::start(move |conversation| {
        loop {
            conversation.read_request()?;
            let _ = gate.send(());
            conversation.send(OK)?;
        }
    });
    // One for each of the 4 shards.
    let gateway = Setup { upstream: "requests_max = 4", ..Setup::default() }.start(&[backend.address()]);
    let mut clients: Vec<_> = (0..12).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    // All but those that wait for the backend are answered at once.
    let refused = until(PATIENCE, "each is refused or with the backend", || {
        let refused = gateway.access_lines(1).len();
        (refused + backend.opened() == 12).then_some(refused)
    });
    assert!((8..12).contains(&refused), "{refused} are refused, and every shard may have one");
    for _ in 0..12 - refused {
        released.recv_timeout(PATIENCE).expect("the backend answers");
    }
    let mut served = 0;
    for client in &mut clients {
        let answer = client.read_response();
        match answer.status {
            200 => served += 1,
            _ => expect_refusal(&answer, 503, "circuit_open"),
        }
    }
    assert_eq!(served, 12 - refused);
}

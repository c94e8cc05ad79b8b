//! Bodies in both directions: every framing, whole and in order, as they come, and never more than somebody takes.

use std::{
    io::{ErrorKind, Write as _},
    sync::mpsc,
    time::Duration,
};

use super::{Setup, before, expect_refusal};
use crate::{
    backend::{Backend, Conversation, OK},
    client::Client,
    harness::Gateway,
};

/// How long the other side may take to let a script go on.
const PATIENCE: Duration = Duration::from_secs(10);
/// A write that takes longer has met back-pressure.
const STUCK: Duration = Duration::from_millis(300);
/// What a gateway may grow by while it holds a stream up; the stream is many times as long.
const HELD_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Bytes that repeat late enough to tell places apart.
fn noise(bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..bytes).map(|_| rng.u8(..)).collect()
}

#[test]
fn a_chunked_request_arrives_without_extensions_and_with_its_trailers() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send(
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         5;name=value\r\nhello\r\n06 ; quoted=\"a b\"\r\n world\r\n0;last\r\nX-Sum: 11\r\nContent-Length: 3\r\n\r\n",
    );
    assert_eq!(client.read_response().status, 200);
    let seen = backend.request();
    assert_eq!(seen.body, b"hello world");
    assert_eq!((seen.head.field("transfer-encoding"), seen.head.field("content-length")), (Some("chunked"), None));
    // RFC 9110 §6.5.1: what frames the message is no trailer.
    assert_eq!(seen.trailers, ["X-Sum: 11"]);
    assert!(!seen.raw.windows(4).any(|window| window == b"name" || window == b"last"), "{seen:?}");
}

#[test]
fn a_chunked_answer_arrives_without_extensions_and_with_its_trailers() {
    let backend = Backend::answering(|_| {
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         5;secret=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 11\r\nTransfer-Encoding: gzip\r\n\r\n"
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for _ in 0..2 {
        let answer = client.get("/x");
        assert_eq!(answer.text(), "hello world");
        assert_eq!(answer.trailers, [("X-Sum".to_owned(), "11".to_owned())]);
        assert_eq!((answer.field("transfer-encoding"), answer.field("content-length")), (Some("chunked"), None));
    }
}

#[test]
fn a_length_stays_a_length() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let answer = gateway.connect().post("/x", b"hello");
    assert_eq!((answer.field("content-length"), answer.field("transfer-encoding")), (Some("2"), None));
    let seen = backend.request();
    assert_eq!((seen.head.field("content-length"), seen.head.field("transfer-encoding")), (Some("5"), None));
    assert!(seen.raw.ends_with(b"\r\n\r\nhello"), "{seen:?}");
    gateway.connect().post("/x", b"");
    assert_eq!(backend.request().head.field("content-length"), Some("0"));
}

#[test]
fn answers_without_a_body_have_none() {
    let backend = Backend::answering(|request| match request.head.first_line.split(' ').nth(1) {
        Some("/204") => "HTTP/1.1 204 No Content\r\nX-Kept: 1\r\n\r\n",
        Some("/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"a\"\r\n\r\n",
        _ if request.head.first_line.starts_with("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    });
    let gateway = before(backend.address());
    // On one connection: a byte too many or too few would show in the next answer.
    let mut client = gateway.connect();
    let answer = client.get("/204");
    assert_eq!((answer.status, answer.field("content-length"), answer.field("x-kept")), (204, None, Some("1")));
    let answer = client.get("/304");
    assert_eq!((answer.status, answer.field("content-length")), (304, Some("1000")));
    client.send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.read_head_response();
    assert_eq!((answer.status, answer.field("content-length")), (200, Some("1000")));
    assert_eq!(client.get("/x").text(), "ok");
}

#[test]
fn an_answer_that_ends_with_its_connection_is_framed_for_the_client() {
    let backend = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.0 200 OK\r\n\r\nall of it")
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for _ in 0..2 {
        let answer = client.get("/x");
        assert_eq!((answer.field("transfer-encoding"), answer.text().as_str()), (Some("chunked"), "all of it"));
    }
    // RFC 9112 §6.1: an HTTP/1.0 client does not know chunks.
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let answer = client.read_response();
    assert_eq!((answer.field("transfer-encoding"), answer.field("content-length")), (None, None));
    assert_eq!((answer.field("connection"), answer.text().as_str()), (Some("close"), "all of it"));
}

#[test]
fn an_old_client_may_keep_its_connection() {
    let backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send("GET /x HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        let answer = client.read_response();
        assert_eq!((answer.field("connection"), answer.text().as_str()), (Some("keep-alive"), "ok"));
    }
    client.send("GET /x HTTP/1.0\r\n\r\n");
    assert_eq!(client.read_response().field("connection"), Some("close"));
    assert_eq!(client.read_to_end().expect("an end"), b"");
}

#[test]
fn a_client_that_asks_is_told_to_go_on() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n");
    assert_eq!(client.read_response().status, 100);
    client.send("hello");
    assert_eq!(client.read_response().status, 200);
    let seen = backend.request();
    assert_eq!((seen.body.as_slice(), seen.head.field("expect")), (b"hello".as_slice(), None));
    // Its connection goes on, and who sends the body unasked is not told (RFC 9110 §10.1.1).
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello");
    assert_eq!(client.read_response().status, 200);
}

#[test]
fn a_client_that_asks_may_be_refused_before_it_sends() {
    let mut backend = Backend::ok();
    let gateway = Setup { http: "body_bytes_max = 4", ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    let answer = client.read_response();
    expect_refusal(&answer, 413, "body_too_large");
    // Whether the body comes all the same is anybody's guess: only closing is unambiguous.
    assert_eq!(answer.field("connection"), Some("close"));
    assert_eq!(client.read_to_end().expect("an end"), b"");
    assert!(backend.requests().is_empty());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut backend = Backend::answering(|request| {
        let target = request.head.first_line.split(' ').nth(1).unwrap_or_default();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len())
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    let request = |number| match number % 3 {
        0 => format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"),
        1 => format!("POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"),
        _ => format!("POST /{number} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    };
    let all: Vec<_> = (0..100).map(request).collect();
    client.send(all.concat());
    for number in 0..100 {
        assert_eq!(client.read_response().text(), format!("/{number}"));
        assert_eq!(backend.request().body, if number % 3 == 0 { b"".as_slice() } else { b"abc" });
    }
}

#[test]
fn a_body_that_is_too_large_is_refused_by_what_it_says_or_by_what_it_is() {
    let mut backend = Backend::ok();
    let setup = Setup { http: "body_bytes_max = 4", route: "body_bytes_max = 10", ..Setup::default() };
    let gateway = setup.start(&[backend.address()]);
    assert_eq!(gateway.connect().post("/x", b"0123456789").status, 200);
    assert_eq!(backend.request().body, b"0123456789");
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n");
    expect_refusal(&client.read_response(), 413, "body_too_large");
    let chunked = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n";
    let mut client = gateway.connect();
    client.send(format!("{chunked}5\r\n56789\r\n0\r\n\r\n"));
    assert_eq!(client.read_response().status, 200);
    assert_eq!(backend.request().body, b"0123456789");
    let mut client = gateway.connect();
    client.send(format!("{chunked}6\r\n567890\r\n0\r\n\r\n"));
    let answer = client.read_response();
    expect_refusal(&answer, 413, "body_too_large");
    assert_eq!(answer.field("connection"), Some("close"));
    client.expect_end();
    assert!(backend.requests().is_empty(), "no request was complete");
}

#[test]
fn an_answer_may_come_before_the_request_is_complete() {
    let backend = Backend::start(|conversation| {
        conversation.read_head()?;
        conversation.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")?;
        conversation.read_to_end();
        Ok(())
    });
    let setup = Setup { http: "body_bytes_max = \"1GiB\"", ..Setup::default() };
    let gateway = setup.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    let answer = client.read_response();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    // The rest is little and on its way: the connection goes on behind it.
    client.send("worldGET /y HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nhello");
    assert_eq!(client.read_response().field("connection"), Some("close"));
    client.expect_end();
}

#[test]
fn a_body_that_nobody_read_is_no_request() {
    let mut backend = Backend::ok();
    let routes = "[[routes]]\naccess = \"public\"\npath = \"/x\"\nupstream = \"back\"";
    let gateway = Gateway::start(&format!("[upstreams.back]\ninstances = [\"{}\"]\n{routes}", backend.address()));
    let smuggled = "GET /x HTTP/1.1\r\nHost: smuggled\r\n\r\n";
    let mut client = gateway.connect();
    client.send(format!("POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()));
    expect_refusal(&client.read_response(), 404, "not_found");
    assert_eq!(client.get("/x").status, 200);
    assert_eq!(backend.request().head.field("x-forwarded-host"), Some("gateway.test"));
    // Nobody knows where a chunked one ends without reading it: the connection closes instead.
    let mut client = gateway.connect();
    client.send(format!("POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"));
    let answer = client.read_response();
    expect_refusal(&answer, 404, "not_found");
    assert_eq!(answer.field("connection"), Some("close"));
    assert_eq!(client.read_to_end().expect("an end"), b"");
    assert!(backend.requests().is_empty());
}

#[test]
fn large_bodies_arrive_as_they_were() {
    let mut backend = Backend::answering(|request| {
        let framing = match request.head.field("transfer-encoding") {
            None => return [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &request.body].concat(),
            Some(_) => "Transfer-Encoding: chunked",
        };
        let mut answer = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").into_bytes();
        for chunk in request.body.chunks(100_003) {
            write!(answer, "{:x}\r\n", chunk.len()).expect("vectors take everything");
            answer.extend_from_slice(chunk);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"0\r\n\r\n");
        answer
    });
    let setup = Setup { http: "body_bytes_max = \"64MiB\"", ..Setup::default() };
    let gateway = setup.start(&[backend.address()]);
    let body = noise(3_000_017);
    let mut client = gateway.connect();
    // Cut into pieces of every size that could be a boundary of something.
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut rest = body.as_slice();
    for size in [1, 2, 8191, 8192, 8193, 16_384, 65_536, 1_000_000].into_iter().cycle() {
        let (chunk, tail) = rest.split_at(size.min(rest.len()));
        client.send(format!("{:x}\r\n", chunk.len()));
        client.send(chunk);
        client.send("\r\n");
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    client.send("0\r\n\r\n");
    let answer = client.read_response();
    assert!(backend.request().body == body, "the request's body is another");
    assert!(answer.body == body, "the chunked answer's body is another");
}

#[test]
fn large_bodies_with_a_length_arrive_as_they_were() {
    let mut backend = Backend::answering(|request| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
        [head.as_bytes(), &request.body].concat()
    });
    let setup = Setup { http: "body_bytes_max = \"64MiB\"", ..Setup::default() };
    let gateway = setup.start(&[backend.address()]);
    let mut client = gateway.connect();
    for size in [1, 8191, 8192, 8193, 5_000_011] {
        let body = noise(size);
        let answer = client.post("/x", &body);
        assert!(backend.request().body == body, "the request's body of {size} bytes is another");
        assert!(answer.body == body, "the answer's body of {size} bytes is another");
    }
}

/// Writes until the other side takes no more, and says how much that was.
fn write_until_stuck(stream: &std::net::TcpStream, total: usize) -> usize {
    stream.set_write_timeout(Some(STUCK)).expect("a socket");
    let piece = [b'x'; 16 * 1024];
    let (mut stream, mut written) = (stream, 0);
    while written < total {
        match stream.write(&piece[..piece.len().min(total - written)]) {
            Ok(taken) => written += taken,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error} after {written} bytes"),
        }
    }
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    written
}

/// What the gateway's process occupies.
fn resident_bytes(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

const LONG: usize = 256 * 1024 * 1024;

#[test]
fn a_client_that_does_not_read_holds_the_backend_up() {
    let (stuck, written) = mpsc::channel();
    let backend = Backend::start(move |conversation| {
        conversation.read_request()?;
        conversation.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n"))?;
        let sent = write_until_stuck(conversation.stream(), LONG);
        let _ = stuck.send(sent);
        let piece = vec![b'x'; 1024 * 1024];
        let mut rest = LONG - sent;
        while rest > 0 {
            conversation.send(&piece[..piece.len().min(rest)])?;
            rest -= piece.len().min(rest);
        }
        Ok(())
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.get("/health/live");
    let before = resident_bytes(&gateway);
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    let sent = written.recv_timeout(PATIENCE).expect("the backend gets stuck");
    assert!(sent < LONG / 4, "{sent} bytes were taken though nobody reads them");
    let grown = resident_bytes(&gateway).saturating_sub(before);
    assert!(grown < HELD_BYTES_MAX, "the gateway holds {grown} bytes");
    // Whoever reads on gets all of it.
    client.read_response_head();
    let mut got = 0;
    while got < LONG {
        let some = client.read_some().expect("more");
        assert!(!some.is_empty(), "it ends after {got} bytes");
        got += some.len();
    }
    assert_eq!(got, LONG);
}

#[test]
fn a_backend_that_does_not_read_holds_the_client_up() {
    let (gate, released) = mpsc::sync_channel(0);
    let mut backend = Backend::start(move |conversation| {
        conversation.read_head()?;
        let _ = gate.send(());
        let mut left = LONG;
        while left > 0 {
            let piece = left.min(1024 * 1024);
            conversation.take(piece)?;
            left -= piece;
        }
        conversation.send(OK)
    });
    let setup = Setup { http: "body_bytes_max = \"1GiB\"", ..Setup::default() };
    let gateway = setup.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.get("/health/live");
    let before = resident_bytes(&gateway);
    client.send(format!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {LONG}\r\n\r\n"));
    let sent = write_until_stuck(client.stream(), LONG);
    assert!(sent < LONG / 4, "{sent} bytes were taken though nobody reads them");
    let grown = resident_bytes(&gateway).saturating_sub(before);
    assert!(grown < HELD_BYTES_MAX, "the gateway holds {grown} bytes");
    backend.wait_opened(1);
    released.recv_timeout(PATIENCE).expect("the backend has the head");
    client.send(vec![b'x'; LONG - sent]);
    assert_eq!(client.read_response().status, 200);
}

/// Sends a part whenever the test lets it.
fn step(conversation: &mut Conversation, gate: &mpsc::SyncSender<()>, part: &str) -> std::io::Result<()> {
    let _ = gate.send(());
    conversation.send(part)
}

#[test]
fn events_pass_as_they_come() {
    let (gate, released) = mpsc::sync_channel(0);
    let backend = Backend::start(move |conversation| {
        conversation.read_request()?;
        conversation
            .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for part in ["9\r\ndata: 1\n\n\r\n", "9\r\ndata: 2\n\n\r\n", "4\r\ndata\r\n", "5\r\n: 3\n\n\r\n", "0\r\n\r\n"] {
            step(conversation, &gate, part)?;
        }
        Ok(())
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    // Each part is here before the next one is sent, the head before the first.
    assert_eq!(client.read_response_head().field("content-type"), Some("text/event-stream"));
    for part in ["data: 1\n\n", "data: 2\n\n", "data", ": 3\n\n"] {
        released.recv_timeout(PATIENCE).expect("the backend goes on");
        client.read_until(part);
    }
    released.recv_timeout(PATIENCE).expect("the backend goes on");
    client.read_until("0\r\n\r\n");
}

#[test]
fn an_upload_passes_as_it_comes() {
    let (told, heard) = mpsc::channel();
    let backend = Backend::start(move |conversation| {
        conversation.read_head()?;
        for part in [b"one", b"two", b"six"] {
            conversation.read_until(part)?;
            let _ = told.send(());
        }
        conversation.read_until(b"0\r\n\r\n")?;
        conversation.send(OK)
    });
    let gateway = before(backend.address());
    let mut client: Client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for part in ["one", "two", "six"] {
        client.send(format!("3\r\n{part}\r\n"));
        heard.recv_timeout(PATIENCE).expect("the backend has it before the next one is sent");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
}

#[test]
fn a_refusal_of_a_head_request_has_no_body() {
    let backend = Backend::ok();
    let routes = "[[routes]]\naccess = \"public\"\npath = \"/x\"\nupstream = \"back\"";
    let gateway = Gateway::start(&format!("[upstreams.back]\ninstances = [\"{}\"]\n{routes}", backend.address()));
    let mut client = gateway.connect();
    client.send("HEAD /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_head_response().status, 404);
    assert_eq!(client.get("/x").text(), "ok");
}

#[test]
fn framing_survives_being_named_in_connection() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    // RFC 9110 §7.6.1 forbids to name them; whoever dropped the field would take the body for a request.
    for (named, framing) in [
        ("Content-Length", "Content-Length: 5\r\n\r\nhello"),
        ("Transfer-Encoding", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ] {
        client.send(format!("POST /x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, {named}\r\n{framing}"));
        assert_eq!(client.read_response().status, 200, "{named}");
        assert_eq!(backend.request().body, b"hello", "{named}");
    }
    let backend =
        Backend::answering(|_| "HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 2\r\n\r\nok");
    let gateway = before(backend.address());
    assert_eq!(gateway.get("/x").text(), "ok");
}

#[test]
fn what_follows_an_answer_unasked_is_nobodys() {
    let mut backend = Backend::answering(
        |_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
    );
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for number in 0..5 {
        assert_eq!(client.get("/x").text(), "ok");
        assert_eq!(backend.request().connection, number);
    }
}

#[test]
fn a_backend_that_closes_leaves_the_client_where_it_is() {
    let backend = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for _ in 0..3 {
        let answer = client.get("/x");
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("ok", None));
    }
}

#[test]
fn a_body_that_turns_out_malformed_cuts_an_answer_that_has_begun() {
    let mut backend = Backend::start(|conversation| {
        conversation.read_head()?;
        conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")?;
        conversation.read_to_end();
        Ok(())
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    client.read_until("ok\r\n");
    client.send("zz\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    let rest = client.read_to_end().unwrap_or_default();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "half an answer looks whole");
    backend.wait_ended(0);
    assert_eq!(backend.opened(), 1);
    assert_eq!(gateway.access_lines(1)[0]["reason"], "upload_failed");
}

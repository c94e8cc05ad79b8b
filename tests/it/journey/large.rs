//! Large bodies, which go from socket to socket through pipes: whole, in order, each to whom it belongs, and no byte further.

use std::{
    io::{self, Write as _},
    net::TcpStream,
    sync::mpsc,
    time::Duration,
};

use rustix::net::SendFlags;

use super::Setup;
use crate::{
    backend::{Backend, Conversation, OK},
    client::Client,
    harness::Gateway,
};

const MIB: usize = 1024 * 1024;
const LARGE: usize = 100 * MIB;
const PATIENCE: Duration = Duration::from_mins(1);
/// A write that takes longer has met back-pressure.
const STUCK: Duration = Duration::from_millis(300);

/// Content without end, in which one place is not like another, nor one body like another.
struct Content {
    cycle: Vec<u8>,
    at: usize,
}

impl Content {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // No multiple of what anything is cut into.
        Self { cycle: (0..1_000_003).map(|_| rng.u8(..)).collect(), at: 0 }
    }

    /// The next bytes, up to so many.
    fn next(&mut self, bytes_max: usize) -> &[u8] {
        let start = self.at % self.cycle.len();
        let end = self.cycle.len().min(start + bytes_max);
        self.at += end - start;
        &self.cycle[start..end]
    }

    fn check(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let place = self.at;
            let sent = self.next(bytes.len());
            assert!(bytes[..sent.len()] == *sent, "something else stands near {place}");
            bytes = &bytes[sent.len()..];
        }
    }

    fn write(&mut self, bytes: usize, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let piece = self.next(left.min(256 * 1024));
            left -= piece.len();
            write(piece)?;
        }
        Ok(())
    }
}

/// A service whose answers are named by its targets: `/how/seed/bytes`.
fn service(conversation: &mut Conversation) -> io::Result<()> {
    loop {
        let (_, head) = conversation.read_head()?;
        let target = head.first_line.split(' ').nth(1).unwrap_or_default();
        let mut parts = target.split('/').skip(1);
        let how = parts.next().unwrap_or_default();
        let mut number = || parts.next().and_then(|part| part.parse().ok()).unwrap_or_default();
        let (seed, bytes) = (number(), usize::try_from(number()).unwrap_or_default());
        let mut content = Content::new(seed);
        if head.first_line.starts_with("POST") {
            let mut left = bytes;
            while left > 0 {
                let piece = left.min(64 * 1024);
                content.check(&conversation.take(piece)?);
                left -= piece;
            }
            conversation.send(OK)?;
            continue;
        }
        let length = if how.starts_with("close") { String::new() } else { format!("Content-Length: {bytes}\r\n") };
        conversation.send(format!("HTTP/1.1 200 OK\r\n{length}\r\n"))?;
        if head.first_line.starts_with("HEAD") {
            continue;
        }
        let is_part = how.ends_with("torn") || how.ends_with("reset");
        content.write(if is_part { bytes / 2 } else { bytes }, |piece| conversation.send(piece))?;
        match how {
            "junk" => conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\njunk")?,
            "reset" | "close-reset" => return conversation.reset(),
            "close" | "torn" => return Ok(()),
            _ => {}
        }
    }
}

fn start(backend: &Backend, shards: usize) -> Gateway {
    let shards = format!("[runtime]\nshards = {shards}");
    Setup { http: "body_bytes_max = \"1GiB\"", rest: &shards, ..Setup::default() }.start(&[backend.address()])
}

fn spliced(gateway: &Gateway) -> usize {
    usize::try_from(gateway.metrics().value("shardgate_spliced_bytes_total")).expect("it only grows")
}

/// On io_uring bodies are copied.
fn splices() -> bool {
    std::env::var_os("SHARDGATE_TEST_DRIVER").is_none_or(|driver| driver == "epoll")
}

/// All but little of so many bytes went unseen since there were `before`.
#[track_caller]
fn expect_spliced(gateway: &Gateway, before: usize, bytes: usize) {
    let spliced = spliced(gateway) - before;
    let least = if splices() { bytes - bytes / 8 } else { 0 };
    assert!((least..=bytes).contains(&spliced), "{spliced} bytes of {bytes} went unseen");
}

fn upload(client: &mut Client, seed: u64, bytes: usize, behind: &str) {
    client.send(format!("POST /x/{seed}/{bytes} HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n"));
    Content::new(seed).write(bytes, |piece| client.try_send(piece)).expect("all of it is taken");
    client.send(behind);
    assert_eq!(client.read_response().text(), "ok");
}

fn expect_body(client: &mut Client, seed: u64, bytes: usize) {
    let head = client.read_response_head();
    assert_eq!((head.status, head.field("content-length")), (200, Some(bytes.to_string().as_str())));
    let mut content = Content::new(seed);
    client.read_large_body(&head.fields, |piece| content.check(piece)).expect("all of it comes");
    assert_eq!(content.at, bytes);
}

fn download(client: &mut Client, how: &str, seed: u64, bytes: usize) {
    client.send(format!("GET /{how}/{seed}/{bytes} HTTP/1.1\r\nHost: a\r\n\r\n"));
    expect_body(client, seed, bytes);
}

#[test]
fn a_hundred_mebibytes_go_both_ways_unseen() {
    let backend = Backend::start(service);
    let gateway = start(&backend, 4);
    let several = |act: fn(&mut Client, u64)| {
        std::thread::scope(|scope| {
            for seed in 0..3 {
                let mut client = gateway.connect().with_patience(PATIENCE);
                // One of them takes little at a time.
                if seed == 2 {
                    socket2::SockRef::from(client.stream()).set_recv_buffer_size(8 * 1024).expect("set");
                }
                scope.spawn(move || act(&mut client, seed));
            }
        });
    };
    several(|client, seed| upload(client, seed, LARGE, ""));
    let uploaded = spliced(&gateway);
    expect_spliced(&gateway, 0, 3 * LARGE);
    several(|client, seed| download(client, "x", seed, if seed == 2 { 4 * MIB } else { LARGE }));
    expect_spliced(&gateway, uploaded, 2 * LARGE + 4 * MIB);
    assert_eq!(gateway.metrics().value("shardgate_request_body_bytes_total{route=\"all\"}"), 3 * 104_857_600);
    let answered = gateway.metrics().value("shardgate_response_body_bytes_total{route=\"all\"}");
    assert_eq!(answered, 2 * 104_857_600 + 4 * 1_048_576 + 3 * 2);
}

#[test]
fn what_stands_behind_a_body_is_not_moved_with_it() {
    let mut backend = Backend::start(service);
    let gateway = start(&backend, 1);
    let mut client = gateway.connect().with_patience(PATIENCE);
    for seed in 0..8 {
        // The next request is in the socket while the body is.
        upload(&mut client, seed, 2 * MIB + 1, &format!("GET /x/{seed}/3000000 HTTP/1.1\r\nHost: a\r\n\r\n"));
        expect_body(&mut client, seed, 3_000_000);
    }
    for seed in 0..8 {
        download(&mut client, "junk", seed, 2 * MIB + 1);
    }
    assert!(backend.opened() >= 8, "a connection with junk behind its answer is not used again");
    expect_spliced(&gateway, 0, 8 * (4 * MIB + 3_000_000 + 2));
}

#[test]
fn a_short_body_is_copied() {
    let backend = Backend::start(service);
    let gateway = start(&backend, 1);
    let mut client = gateway.connect();
    for bytes in [0, 100, 10_000, 30_000] {
        upload(&mut client, 1, bytes, "");
        download(&mut client, "x", 2, bytes);
    }
    assert_eq!(spliced(&gateway), 0);
}

#[test]
fn a_body_that_breaks_off_is_never_whole() {
    const BYTES: usize = 8 * MIB;
    let mut backend = Backend::start(service);
    let gateway = start(&backend, 1);
    for (seed, how) in [(1, "torn"), (2, "reset"), (3, "close-reset")] {
        // A client of HTTP/1.0 is told by the end of the connection alone.
        let mut client = gateway.connect();
        client.send(format!("GET /{how}/{seed}/{BYTES} HTTP/1.0\r\n\r\n"));
        let head = client.read_response_head();
        assert_eq!((head.status, head.field("transfer-encoding")), (200, None));
        let mut content = Content::new(seed);
        let end = loop {
            match client.read_some() {
                Ok(some) if some.is_empty() => break Ok(()),
                Ok(some) => content.check(&some),
                Err(error) => break Err(error.kind()),
            }
        };
        assert!(content.at <= BYTES / 2, "{how}: {} bytes", content.at);
        let is_reset = end == Err(io::ErrorKind::ConnectionReset);
        assert_eq!(is_reset, how == "close-reset", "{how} ends with {end:?}");
        if how == "torn" {
            assert_eq!(content.at, BYTES / 2, "all that came is passed on");
        }
    }
    let reasons = gateway.access_lines(3).into_iter().map(|line| line["reason"].clone()).collect::<Vec<_>>();
    assert_eq!(reasons, ["upstream_broken"; 3]);
    // None of those connections is used again.
    download(&mut gateway.connect(), "x", 4, BYTES);
    assert_eq!(backend.opened(), 4);
    assert!(spliced(&gateway) > BYTES || !splices());
}

#[test]
fn the_end_of_a_connection_ends_a_body() {
    const BYTES: usize = 8 * MIB;
    let backend = Backend::start(service);
    let gateway = start(&backend, 1);
    let mut client = gateway.connect().with_patience(PATIENCE);
    client.send(format!("GET /close/5/{BYTES} HTTP/1.0\r\n\r\n"));
    assert_eq!(client.read_response_head().field("content-length"), None);
    Content::new(5).check(&client.read_to_end().expect("it closes"));
    expect_spliced(&gateway, 0, BYTES);
    // A client of HTTP/1.1 is given chunks, which somebody has to make.
    let mut client = gateway.connect().with_patience(PATIENCE);
    client.send(format!("GET /close/6/{BYTES} HTTP/1.1\r\nHost: a\r\n\r\n"));
    let body = client.read_response().body;
    assert_eq!(body.len(), BYTES);
    Content::new(6).check(&body);
    // The length of what a GET would get is nothing to wait for.
    client.send(format!("HEAD /x/7/{LARGE} HTTP/1.1\r\nHost: a\r\n\r\n"));
    let head = client.read_head_response();
    assert_eq!(head.field("content-length"), Some(LARGE.to_string().as_str()));
    download(&mut client, "x", 8, MIB);
}

/// Writes until the other side takes no more.
fn write_until_stuck(mut stream: &TcpStream, content: &mut Content) {
    stream.set_write_timeout(Some(STUCK)).expect("a socket");
    while stream.write(content.next(64 * 1024)).is_ok() {}
    stream.set_write_timeout(None).expect("a socket");
}

#[test]
fn what_is_left_in_a_pipe_is_nobodys() {
    const ROUNDS: u64 = 4;
    let (stuck, is_stuck) = mpsc::channel();
    let (gate, released) = mpsc::sync_channel(0);
    let backend = Backend::start(move |conversation| {
        let (_, head) = conversation.read_head()?;
        if head.first_line.starts_with("POST") {
            let _ = stuck.send(());
            // It reads nothing until the test has seen that no more is taken.
            let _ = gate.send(());
        } else {
            conversation.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"))?;
            write_until_stuck(conversation.stream(), &mut Content::new(99));
            let _ = stuck.send(());
            conversation.read_to_end();
        }
        Ok(())
    });
    let other = Backend::start(service);
    let other_route = format!(
        "[runtime]\nshards = 1\n[upstreams.other]\ninstances = [\"{}\"]\n[[routes]]\naccess = \"public\"\npath = \"/x/*\"\n\
         upstream = \"other\"",
        other.address()
    );
    let setup = Setup { http: "body_bytes_max = \"1GiB\"", rest: &other_route, ..Setup::default() };
    let gateway = setup.start(&[backend.address()]);
    let mut others = gateway.connect().with_patience(PATIENCE);
    let before = spliced(&gateway);
    for round in 0..ROUNDS {
        // The client takes no more of an answer, and leaves.
        let mut client = gateway.connect();
        client.send("GET /stuck HTTP/1.1\r\nHost: a\r\n\r\n");
        is_stuck.recv_timeout(PATIENCE).expect("the backend gets stuck");
        drop(client);
        download(&mut others, "x", round, MIB);
        // The backend takes no more of a request, and its client leaves.
        let mut client = gateway.connect();
        client.send(format!("POST /stuck HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"));
        is_stuck.recv_timeout(PATIENCE).expect("the backend has the head");
        write_until_stuck(client.stream(), &mut Content::new(98));
        socket2::SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).expect("set");
        drop(client);
        released.recv_timeout(PATIENCE).expect("the backend goes on");
        upload(&mut others, round, MIB, "");
        download(&mut others, "x", round, MIB);
    }
    gateway.metrics_until("who has left is forgotten", |metrics| metrics.sum("shardgate_requests_in_flight") == 0);
    assert!(spliced(&gateway) > before + 8 * MIB || !splices());
}

#[test]
fn urgent_data_in_a_body_holds_nothing_up() {
    const BYTES: usize = 2 * MIB;
    let backend = Backend::start(service);
    let gateway = start(&backend, 1);
    let mut client = gateway.connect().with_patience(PATIENCE);
    client.send(format!("POST /x/1/{BYTES} HTTP/1.1\r\nHost: a\r\nContent-Length: {BYTES}\r\n\r\n"));
    let mut content = Content::new(1);
    content.write(BYTES / 2, |piece| client.try_send(piece)).expect("it is taken");
    // It belongs to no stream of bytes; splice stops before it, a read steps over it.
    rustix::net::send(client.stream(), b"!", SendFlags::OOB).expect("sent");
    content.write(BYTES / 2, |piece| client.try_send(piece)).expect("it is taken");
    assert_eq!(client.read_response().text(), "ok");
}

//! The gateway and its backends: connections that are used again, requests that are sent again, backends that fail.

use std::{
    net::SocketAddr,
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{Setup, before, expect_refusal};
use crate::{
    backend::{Backend, Conversation, OK, Refusing},
    client::Client,
    harness::{Gateway, now, until},
};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_connection_is_used_again() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for _ in 0..5 {
        assert_eq!(client.get("/x").status, 200);
        assert_eq!(client.post("/x", b"hello").status, 200);
    }
    assert_eq!(backend.opened(), 1);
    let reused = gateway.access_lines(10).iter().filter(|line| line["reused"] == true).count();
    assert_eq!(reused, 9);
}

#[test]
fn a_connection_is_used_as_long_as_the_backend_keeps_it() {
    // The hint, less a second for the way, or the gateway's own patience: whichever is shorter.
    for (fields, is_reused) in [
        ("Keep-Alive: timeout=1\r\n", false),
        ("Keep-Alive: timeout=60\r\n", true),
        ("Keep-Alive: max=1, timeout=0\r\n", false),
        ("Connection: close\r\n", false),
        ("Connection: keep-alive\r\n", true),
    ] {
        let mut backend = Backend::answering(move |_| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n"));
        let gateway = before(backend.address());
        let mut client = gateway.connect();
        for _ in 0..2 {
            assert_eq!(client.get("/x").status, 200);
        }
        let (first, second) = (backend.request().connection, backend.request().connection);
        assert_eq!(first == second, is_reused, "{fields}");
    }
}

#[test]
fn an_idle_connection_is_closed_after_a_while() {
    let mut backend = Backend::ok();
    let gateway = Setup { upstream: "idle_timeout = \"100ms\"", ..Setup::default() }.start(&[backend.address()]);
    assert_eq!(gateway.get("/x").status, 200);
    backend.wait_ended(0);
}

#[test]
fn a_connection_that_the_backend_closed_is_not_used() {
    let mut backend = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.send(OK)?;
        conversation.finish_surely()
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for number in 0..5 {
        // A POST is never sent again: it has to go over a connection that lives.
        assert_eq!(client.post("/x", b"hello").status, 200);
        backend.wait_ended(number);
    }
    assert!(gateway.access_lines(5).iter().all(|line| line["attempts"] == 1));
}

/// Reads a head, and breaks the first connections; later ones answer.
fn breaking_at_first(count: usize) -> impl Fn(&mut Conversation) -> std::io::Result<()> + Send + Sync {
    move |conversation| {
        loop {
            conversation.read_request()?;
            if conversation.number < count {
                return conversation.reset();
            }
            conversation.send(OK)?;
        }
    }
}

/// Sends a request of this method without a body.
#[track_caller]
fn ask(gateway: &Gateway, method: &str) -> crate::client::Response {
    let mut client = gateway.connect();
    client.send(format!("{method} /x HTTP/1.1\r\nHost: a\r\n\r\n"));
    client.try_read_response(method).expect("an answer")
}

#[test]
fn what_is_safe_to_repeat_is_sent_again() {
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        let mut backend = Backend::start(breaking_at_first(1));
        let gateway = before(backend.address());
        assert_eq!(ask(&gateway, method).status, 200, "{method}");
        assert_eq!(backend.requests().len(), 2, "{method}");
        assert_eq!(gateway.access_lines(1)[0]["attempts"], 2);
    }
}

#[test]
fn what_may_have_arrived_is_never_sent_again() {
    for method in ["POST", "PATCH", "PROPPATCH"] {
        let mut backend = Backend::start(breaking_at_first(1));
        let gateway = before(backend.address());
        expect_refusal(&ask(&gateway, method), 502, "upstream_unreachable");
        assert_eq!(backend.requests().len(), 1, "{method}");
    }
    let mut backend = Backend::start(breaking_at_first(1));
    let gateway = before(backend.address());
    expect_refusal(&gateway.connect().post("/x", b"hello"), 502, "upstream_unreachable");
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn a_warm_connection_that_breaks_under_a_post_fails_it() {
    let mut backend = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.send(OK)?;
        conversation.read_request()?;
        conversation.reset()
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    assert_eq!(client.get("/x").status, 200);
    expect_refusal(&client.post("/x", b"hello"), 502, "upstream_unreachable");
    assert_eq!(backend.requests().len(), 2);
    // The client's connection is as good as before.
    assert_eq!(client.get("/x").status, 200);
}

#[test]
fn connections_that_were_closed_in_idleness_take_no_backend_out() {
    const CLIENTS: usize = 6;
    // Each serves one request, all of them at the same time, and takes the next one with it.
    let (gate, released) = mpsc::sync_channel(0);
    let mut backend = Backend::start(move |conversation| {
        conversation.read_request()?;
        let _ = gate.send(());
        conversation.send(OK)?;
        conversation.read_request().map(drop)
    });
    let upstream = "outlier_failures = 2\noutlier_percent_max = 100";
    let gateway = Setup { upstream, rest: "[runtime]\nshards = 1", ..Setup::default() }.start(&[backend.address()]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    backend.wait_opened(CLIENTS);
    for _ in 0..CLIENTS {
        released.recv_timeout(PATIENCE).expect("the backend answers");
    }
    for client in &mut clients {
        assert_eq!(client.read_response().status, 200);
    }
    for client in &mut clients {
        expect_refusal(&client.post("/x", b"hello"), 502, "upstream_unreachable");
    }
    assert_eq!(gateway.metrics().value(r#"shardgate_upstream_ejections_total{upstream="back"}"#), 0);
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    released.recv_timeout(PATIENCE).expect("the backend answers");
    assert_eq!(client.read_response().status, 200);
}

#[test]
fn a_request_whose_answer_has_begun_is_not_sent_again() {
    let mut backend = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.1 20")
    });
    let gateway = before(backend.address());
    expect_refusal(&gateway.get("/x"), 502, "upstream_unreachable");
    assert_eq!(backend.opened(), 1);
}

#[test]
fn a_request_is_sent_so_often_and_no_more() {
    for (upstream, route, attempts) in [
        ("", "", 3),
        ("retries_max = 4\nretry_budget_min_per_s = 100", "", 5),
        ("retries_max = 4", "retries_max = 0", 1),
        ("retry_budget_percent = 0\nretry_budget_min_per_s = 0", "", 1),
        // Ten seconds of a quarter of it, on each of four shards.
        ("retries_max = 4\nretry_budget_percent = 0\nretry_budget_min_per_s = 1", "", 3),
    ] {
        let upstream = format!("{upstream}\noutlier_failures = 0\nretry_budget_min_per_s = 1000");
        let upstream = match upstream.matches("retry_budget_min_per_s").count() {
            1 => upstream,
            _ => upstream.rsplit_once('\n').expect("several lines").0.to_owned(),
        };
        let mut backend = Backend::start(breaking_at_first(usize::MAX));
        let gateway = Setup { upstream: &upstream, route, ..Setup::default() }.start(&[backend.address()]);
        expect_refusal(&gateway.get("/x"), 502, "upstream_unreachable");
        assert_eq!(backend.opened(), attempts, "{upstream} {route}");
        assert_eq!(gateway.access_lines(1)[0]["attempts"], attempts);
    }
}

#[test]
fn who_refuses_connections_is_passed_over() {
    let refusing = Refusing::new();
    let backend = Backend::ok();
    let gateway = before(refusing.address());
    expect_refusal(&gateway.get("/x"), 502, "upstream_unreachable");
    // No byte of it was sent: even a POST may go to another instance, and takes nothing from the budget for retries.
    let upstream = "outlier_failures = 0\nretry_budget_percent = 0\nretry_budget_min_per_s = 0";
    let setup = Setup { upstream, ..Setup::default() };
    let gateway = setup.start(&[refusing.address(), backend.address()]);
    let mut client = gateway.connect();
    for _ in 0..20 {
        assert_eq!(client.post("/x", b"hello").status, 200);
    }
    let retried = gateway.access_lines(20).iter().filter(|line| line["attempts"] == 2).count();
    assert!((1..20).contains(&retried), "{retried} of 20 met the instance that refuses");
}

/// An address that takes no connection and refuses none: its queue is full.
#[derive(Debug)]
struct Silent {
    address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<std::net::TcpStream>,
}

impl Silent {
    fn new() -> Self {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        listener.listen(0).expect("it listens");
        let address = listener.local_addr().ok().and_then(|address| address.as_socket()).expect("it is bound");
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok();
        let queued: Vec<_> = std::iter::from_fn(connect).take(16).collect();
        assert!(queued.len() < 16, "the queue has an end");
        Self { address, _listener: listener, _queued: queued }
    }
}

#[test]
fn who_never_takes_a_connection_is_passed_over() {
    let silent = Silent::new();
    let backend = Backend::ok();
    let upstream = "connect_timeout = \"100ms\"\nretry_budget_min_per_s = 1000\noutlier_failures = 0";
    let gateway = Setup { upstream, ..Setup::default() }.start(&[silent.address]);
    expect_refusal(&gateway.get("/x"), 502, "upstream_unreachable");
    let gateway = Setup { upstream, ..Setup::default() }.start(&[silent.address, backend.address()]);
    let mut client = gateway.connect();
    for _ in 0..8 {
        assert_eq!(client.post("/x", b"hello").status, 200);
    }
}

#[test]
fn who_fails_in_a_row_is_left_out() {
    let refusing = Refusing::new();
    let backend = Backend::ok();
    let upstream = "outlier_failures = 3\nretries_max = 0";
    let gateway = Setup { upstream, ..Setup::default() }.start(&[refusing.address(), backend.address()]);
    // On one connection, so on one shard: each judges by what it saw.
    let mut client = gateway.connect();
    let failed = (0..60).filter(|_| client.get("/x").status != 200).count();
    assert_eq!(failed, 3, "from the third failure on the instance is left out");
}

/// Answers with half of what it promises, and closes.
fn breaking_off() -> Backend {
    Backend::start(|conversation| {
        let head = conversation.tell_head()?;
        conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")?;
        if head.first_line.contains("/stays") {
            conversation.read_to_end();
        }
        Ok(())
    })
}

#[test]
fn whose_answers_break_off_is_left_out() {
    let (breaking, backend) = (breaking_off(), Backend::ok());
    let upstream = "outlier_failures = 3\nbalance = \"round_robin\"";
    let setup = Setup { upstream, rest: "[runtime]\nshards = 1", ..Setup::default() };
    let gateway = setup.start(&[breaking.address(), backend.address()]);
    let is_cut = |_: &i32| {
        let mut client = gateway.connect();
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        client.try_read_response("GET").is_err()
    };
    // Whole answers of others are not its own.
    let cut = (0..60).filter(is_cut).count();
    let of_upstream = |name: &str| gateway.metrics().value(&format!("shardgate_upstream_{name}{{upstream=\"back\"}}"));
    assert_eq!((cut, of_upstream("ejections_total")), (3, 1));
    assert!(gateway.log().contains("an instance is left out"));
}

#[test]
fn an_answer_breaks_off_by_no_fault_of_an_instance_that_its_client_left() {
    let mut backend = breaking_off();
    let upstream = "outlier_failures = 1\noutlier_percent_max = 100\nretries_max = 0";
    let gateway = Setup { upstream, ..Setup::default() }.start(&[backend.address()]);
    for (number, request) in [
        // It leaves.
        "GET /stays HTTP/1.1\r\nHost: a\r\n\r\n",
        // What it sends is still on its way when the service has enough of it.
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello",
        // It waits no longer.
        "GET /stays HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 300\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = gateway.connect();
        client.send(request);
        client.read_until("half");
        if number == 0 {
            drop(client);
        } else {
            let _ = client.read_to_end();
        }
        backend.wait_ended(number);
    }
    let lines = gateway.access_lines(3);
    let ends: std::collections::BTreeSet<_> = lines.iter().map(|line| line["reason"].to_string()).collect();
    let ejections = gateway.metrics().value("shardgate_upstream_ejections_total{upstream=\"back\"}");
    assert_eq!(ejections, 0, "{ends:?}");
}

#[test]
fn with_nobody_left_the_client_is_told_to_come_back() {
    let mut backend = Backend::start(breaking_at_first(2));
    let upstream = "outlier_failures = 2\noutlier_ejection = \"300ms\"\noutlier_percent_max = 100\npanic_percent = 0\nretries_max = 0";
    let gateway = Setup { upstream, ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    for _ in 0..2 {
        expect_refusal(&client.get("/x"), 502, "upstream_unreachable");
    }
    let ejected = now();
    expect_refusal(&client.get("/x"), 503, "no_healthy_upstream");
    assert_eq!(backend.opened(), 2, "nobody asks it while it is out");
    until(PATIENCE, "the backend is back", || (client.get("/x").status == 200).then_some(()));
    assert!(ejected.elapsed() >= Duration::from_millis(250), "back after {:?}", ejected.elapsed());
}

#[test]
fn by_default_the_last_instances_are_never_left_out() {
    let mut backend = Backend::start(breaking_at_first(15));
    let gateway = Setup { upstream: "retries_max = 0", ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    for _ in 0..15 {
        expect_refusal(&client.get("/x"), 502, "upstream_unreachable");
    }
    assert_eq!(client.get("/x").status, 200);
    assert_eq!(backend.opened(), 16);
}

#[test]
fn a_client_that_leaves_takes_its_request_with_it() {
    let mut backend = Backend::start(|conversation| {
        let head = conversation.tell_head()?;
        if head.first_line.contains("/streaming") {
            conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")?;
        }
        conversation.read_to_end();
        Ok(())
    });
    let gateway = before(backend.address());
    // While the backend thinks, while it answers, while the request is on its way.
    for (number, request) in [
        "GET /thinking HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /streaming HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /uploading HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello",
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = gateway.connect();
        client.send(request);
        backend.request();
        if request.contains("streaming") {
            client.read_until("ok");
        }
        // An end is enough; it need not be a reset.
        client.finish();
        backend.wait_ended(number);
    }
    let reasons: Vec<_> = gateway.access_lines(3).iter().map(|line| line["reason"].clone()).collect();
    assert!(reasons.iter().all(|reason| reason == "client_closed" || reason == "client_gone"), "{reasons:?}");
}

#[test]
fn a_client_that_leaves_may_leave_its_request_behind() {
    const BYTES: usize = 32 * 1024 * 1024;
    let (gate, released) = mpsc::sync_channel(0);
    let (told, outcome) = mpsc::channel();
    let mut backend = Backend::start(move |conversation| {
        conversation.read_request()?;
        let _ = gate.send(());
        let sent = conversation
            .send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n"))
            .and_then(|()| conversation.send(vec![b'x'; BYTES]));
        let _ = told.send(sent.is_ok());
        sent
    });
    let gateway = Setup { http: "on_client_close = \"finish\"", ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    backend.request();
    drop(client);
    released.recv_timeout(PATIENCE).expect("the backend answers");
    // More than fits on the way: somebody has read it.
    assert!(outcome.recv_timeout(PATIENCE).expect("the backend ends"), "the answer was cut off");
}

#[test]
fn a_backend_that_is_killed_takes_only_what_it_had_in_flight() {
    const CLIENTS: usize = 8;
    // Something to kill: a gateway of its own stands for a backend's process.
    let origin = Backend::ok();
    let mut killed = before(origin.address());
    let other = Backend::ok();
    // In turn: by latency the one that stands behind a gateway gets as little as the machine makes of that.
    let upstream = "retry_budget_min_per_s = 100000\nbalance = \"round_robin\"";
    let gateway = Setup { upstream, ..Setup::default() }.start(&[killed.address(), other.address()]);
    let (told, heard) = mpsc::channel();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (mut client, told) = (gateway.connect(), told.clone());
            std::thread::spawn(move || post_until_told(&mut client, &told))
        })
        .collect();
    drop(told);
    // In full flow, on both.
    let answered = |count: usize| {
        for _ in 0..count {
            heard.recv_timeout(PATIENCE).expect("answers keep coming");
        }
    };
    answered(400);
    let kill = now();
    killed.signal(Signal::KILL);
    killed.wait_exit(PATIENCE);
    // On a busy machine the kernel may tell of the closed connections a little later than of the exit.
    answered(4 * CLIENTS);
    let gone = now();
    answered(400);
    drop(heard);
    let failed: Vec<_> = clients.into_iter().flat_map(|client| client.join().expect("it went on")).collect();
    // A POST that may have arrived fails; all others go to the instance that is left.
    assert!(failed.iter().all(|(began, _)| *began < gone), "failed after it was gone: {failed:?} {gone:?}");
    assert!(failed.iter().all(|(_, status)| matches!(status, 502 | 504)), "{failed:?}");
    // Until its sockets are closed it takes connections that nobody serves; before that, no more than were in flight.
    let in_flight = failed.iter().filter(|(began, _)| *began < kill).count();
    assert!(in_flight <= CLIENTS, "more failed than were in flight: {failed:?} {kill:?}");
    let instance = killed.address().to_string();
    let served = gateway.access_lines(800).iter().filter(|line| line["instance"] == instance.as_str()).count();
    assert!(served > 100, "the killed instance had its share: {served}");
}

/// Posts until nobody listens any more; returns when what failed began, and its status.
fn post_until_told(client: &mut Client, told: &mpsc::Sender<()>) -> Vec<(Instant, u16)> {
    let mut failed = Vec::new();
    loop {
        let began = now();
        let status = client.post("/x", b"hello").status;
        if status != 200 {
            failed.push((began, status));
        }
        if told.send(()).is_err() {
            return failed;
        }
    }
}

//! Which connections to a service are used again, and which are not, as they might bring a client what is another's.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use super::{Setup, before, expect_refusal};
use crate::{
    backend::{Backend, Conversation, OK},
    harness::{Gateway, Metrics, until},
    servers::python::PythonService,
};

/// One shard, so that all share one pool of connections.
const ONE_SHARD: &str = "[runtime]\nshards = 1";
const PATIENCE: Duration = Duration::from_secs(10);
const UPGRADE: &str = "GET /switch HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const FORGED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
const SMUGGLED: &str = "GET /admin HTTP/1.1\r\nHost: a\r\nX-User-Id: 1\r\n\r\n";

fn one_shard(backend: &Backend) -> Gateway {
    Setup { rest: ONE_SHARD, ..Setup::default() }.start(&[backend.address()])
}

/// What is counted of the one upstream.
fn counted(metrics: &Metrics, name: &str) -> i64 {
    metrics.value(&format!("shardgate_upstream_{name}{{upstream=\"back\"}}"))
}

// ---- behind a refused switch ----

#[test]
fn a_connection_on_which_a_switch_was_refused_is_not_used_again() {
    for status in [200, 400, 403, 426] {
        let mut backend = Backend::answering(move |request| {
            let status = if request.head.field("upgrade").is_some() { status } else { 200 };
            format!("HTTP/1.1 {status} \r\nContent-Length: 2\r\n\r\nok")
        });
        let gateway = one_shard(&backend);
        let mut client = gateway.connect();
        client.send(UPGRADE);
        assert_eq!(client.read_response().status, status);
        assert_eq!(gateway.get("/next").status, 200);
        assert_eq!([backend.request(), backend.request()].map(|request| request.connection), [0, 1], "{status}");
        backend.wait_ended(0);
    }
}

#[test]
fn who_refuses_a_switch_and_closes_fails_nobody_else() {
    let Some(service) = PythonService::start("uvicorn") else { return };
    let gateway = Setup { rest: ONE_SHARD, ..Setup::default() }.start(&[service.address()]);
    let mut other = gateway.connect();
    for round in 0..200 {
        let mut client = gateway.connect();
        client.send(UPGRADE);
        // It does not say that it closes, and does.
        assert_eq!(client.read_response().status, 400);
        assert_eq!(other.post("/mine", b"hello").status, 200, "in round {round}");
    }
}

// ---- what comes behind an answer ----

/// Answers; behind the answers to some requests comes something more, once the gate is open.
fn followed(gate: &Arc<OnceLock<()>>, marked: &'static str, more: &'static str) -> Backend {
    let gate = Arc::clone(gate);
    Backend::start(move |conversation| {
        loop {
            let head = conversation.tell_head()?;
            if head.first_line.contains(marked) {
                conversation.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", FORGED.len()))?;
                if head.first_line.starts_with("GET") {
                    conversation.send(FORGED)?;
                }
                gate.wait();
                conversation.send(more)?;
            } else {
                conversation.send(OK)?;
            }
        }
    })
}

#[test]
fn a_late_body_to_a_head_is_nobodys_answer() {
    let gate = Arc::new(OnceLock::new());
    let mut backend = followed(&gate, "HEAD", FORGED);
    let gateway = one_shard(&backend);
    let head = |gateway: &Gateway| {
        let mut client = gateway.connect();
        client.send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.read_head_response().status, 200);
    };
    head(&gateway);
    assert_eq!(counted(&gateway.metrics(), "connections_held"), 1);
    assert_eq!(gateway.get("/next").text(), "ok");
    assert_eq!([backend.request(), backend.request()].map(|request| request.connection), [0, 1]);
    gate.get_or_init(|| ());
    backend.wait_ended(0);
    gateway.metrics_until("it is counted", |metrics| counted(metrics, "connections_unasked_total") == 1);
    // From now on nothing is hoped for behind a HEAD; other connections are not in doubt.
    head(&gateway);
    let connection = backend.request().connection;
    backend.wait_ended(connection);
    assert_eq!(counted(&gateway.metrics(), "instances_distrusted"), 0);
    assert!(gateway.log_until("it sends bodies to HEAD", PATIENCE).contains("WARN"));
}

#[test]
fn behind_a_head_a_connection_is_used_again_when_it_stays_silent() {
    for answer in ["Content-Length: 5", "Transfer-Encoding: chunked", "X: no length"] {
        let mut backend = Backend::answering(move |request| {
            let is_head = request.head.first_line.starts_with("HEAD");
            if is_head { format!("HTTP/1.1 200 OK\r\n{answer}\r\n\r\n").into_bytes() } else { OK.to_vec() }
        });
        let gateway = one_shard(&backend);
        let mut client = gateway.connect();
        client.send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n");
        client.read_head_response();
        assert_eq!(counted(&gateway.metrics(), "connections_held"), 1, "{answer}");
        assert_eq!(backend.request().connection, 0);
        until(PATIENCE, "it is used again", || {
            assert_eq!(client.get("/next").text(), "ok");
            (backend.request().connection == 0).then_some(())
        });
        assert_eq!(backend.opened(), 2, "{answer}");
    }
}

#[test]
fn no_more_are_kept_than_may_be_when_their_doubts_are_over() {
    let head = "HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n";
    let gate = Arc::new(OnceLock::new());
    let waits = Arc::clone(&gate);
    let mut backend = Backend::start(move |conversation| {
        loop {
            conversation.tell_head()?;
            waits.wait();
            conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")?;
        }
    });
    let upstream = "idle_max = 2\nidle_timeout = \"1h\"";
    let gateway = Setup { upstream, rest: ONE_SHARD, ..Setup::default() }.start(&[backend.address()]);
    let mut clients: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(head);
    }
    until(PATIENCE, "each has a connection", || (backend.opened() == 8).then_some(()));
    gate.get_or_init(|| ());
    for client in &mut clients {
        assert_eq!(client.read_head_response().status, 200);
    }
    // No request comes that would take one.
    gateway.metrics_until("two are left", |metrics| {
        (counted(metrics, "connections_held"), counted(metrics, "connections_idle")) == (0, 2)
    });
}

#[test]
fn behind_a_head_nothing_is_hoped_for_once_an_instance_is_distrusted() {
    let mut backend = Backend::answering(|request| {
        let is_head = request.head.first_line.starts_with("HEAD");
        let more = if is_head { "" } else { "okmore" };
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{more}")
    });
    let setup = Setup { upstream: "idle_timeout = \"1h\"", rest: ONE_SHARD, ..Setup::default() };
    let gateway = setup.start(&[backend.address()]);
    assert_eq!(gateway.get("/more").text(), "ok");
    gateway.metrics_until("it is distrusted", |metrics| counted(metrics, "instances_distrusted") == 1);
    let mut client = gateway.connect();
    client.send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_head_response().status, 200);
    // Its body may come later than is waited for.
    backend.wait_ended(1);
    assert_eq!(counted(&gateway.metrics(), "connections_held"), 0);
}

#[test]
fn a_connection_that_has_nothing_to_add_is_used_at_once() {
    for (method, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let mut backend = Backend::answering(move |_| answer);
        let gateway = one_shard(&backend);
        let mut client = gateway.connect();
        for _ in 0..8 {
            client.send(format!("{method} /x HTTP/1.1\r\nHost: a\r\n\r\n"));
            client.read_head_response();
        }
        assert_eq!(backend.opened(), 1, "{method} {answer}");
    }
}

#[test]
fn an_instance_that_was_caught_sending_unasked_is_distrusted() {
    let gate = Arc::new(OnceLock::new());
    let mut backend = followed(&gate, "/more", "more");
    let gateway = one_shard(&backend);
    assert_eq!(gateway.get("/more").text(), FORGED);
    assert_eq!(counted(&gateway.metrics(), "connections_held"), 0);
    gate.get_or_init(|| ());
    // Nobody uses it, and it is seen all the same.
    backend.wait_ended(0);
    gateway.metrics_until("it is counted", |metrics| counted(metrics, "connections_unasked_total") == 1);
    assert_eq!(counted(&gateway.metrics(), "instances_distrusted"), 1);
    // From now on each connection waits; what comes meanwhile closes it.
    assert_eq!(gateway.get("/next").text(), "ok");
    assert_eq!(counted(&gateway.metrics(), "connections_held"), 1);
    for _ in 0..3 {
        assert_eq!(gateway.get("/more").text(), FORGED);
    }
    gateway.metrics_until("they are counted", |metrics| counted(metrics, "connections_unasked_total") == 4);
    let told = gateway.log().matches("it sent something that nobody had asked for").count();
    assert_eq!(told, 1, "it is told once");
}

#[test]
fn what_comes_with_an_answer_and_is_not_of_it_closes_its_connection() {
    let mut backend = Backend::answering(|_| format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{FORGED}"));
    let gateway = one_shard(&backend);
    for number in 0..3 {
        assert_eq!(gateway.get("/x").text(), "ok");
        backend.wait_ended(number);
    }
    assert_eq!(counted(&gateway.metrics(), "connections_unasked_total"), 3);
}

#[test]
fn nobody_reads_what_another_made_a_service_send() {
    // This one answers a HEAD with a body, at times in a piece of its own.
    let Some(service) = PythonService::start("waitress") else { return };
    let gateway = Setup { rest: ONE_SHARD, ..Setup::default() }.start(&[service.address()]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = gateway.connect();
                for _ in 0..300 {
                    client.send("HEAD /forged HTTP/1.1\r\nHost: a\r\n\r\n");
                    assert_eq!(client.read_head_response().status, 200);
                }
            });
        }
        for number in 0..4 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut client = gateway.connect();
                for round in 0..300 {
                    let path = format!("/mine/{number}/{round}");
                    let answer = client.get(&path);
                    assert_eq!((answer.status, answer.text()), (200, path));
                }
            });
        }
    });
    assert!(counted(&gateway.metrics(), "connections_unasked_total") > 0);
}

// ---- bodies that are not read ----

/// Reads no bodies, and closes when it is told that a request is the last.
fn reads_no_bodies(conversation: &mut Conversation) -> io::Result<()> {
    loop {
        let head = conversation.tell_head()?;
        conversation.send(OK)?;
        if head.field("connection") == Some("close") {
            return Ok(());
        }
    }
}

/// A request of this method with another one for a body.
fn carrier(method: &str, is_chunked: bool) -> String {
    let bytes = SMUGGLED.len();
    if is_chunked {
        let coding = "Transfer-Encoding: chunked";
        return format!("{method} /x HTTP/1.1\r\nHost: a\r\n{coding}\r\n\r\n{bytes:x}\r\n{SMUGGLED}\r\n0\r\n\r\n");
    }
    format!("{method} /x HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n{SMUGGLED}")
}

#[test]
fn a_body_that_a_service_does_not_read_is_no_request() {
    for (method, is_chunked) in
        [("GET", false), ("GET", true), ("HEAD", false), ("DELETE", false), ("OPTIONS", true), ("PROPFIND", false)]
    {
        let mut backend = Backend::start(reads_no_bodies);
        let gateway = one_shard(&backend);
        let mut client = gateway.connect();
        client.send(carrier(method, is_chunked));
        assert_eq!(client.read_head_response().status, 200);
        assert_eq!(gateway.get("/next").text(), "ok", "{method}");
        let [first, next] = [backend.request(), backend.request()];
        assert_eq!((first.head.field("connection"), next.head.field("connection")), (Some("close"), None), "{method}");
        assert_eq!((first.connection, next.connection), (0, 1), "{method}");
        assert!(next.head.first_line.contains("/next"), "{next:?}");
        backend.wait_ended(0);
        assert!(backend.requests().is_empty());
    }
}

#[test]
fn a_service_that_reads_bodies_keeps_its_connections() {
    for (upstream, route, method, is_kept) in [
        ("", "", "POST", true),
        ("", "", "PUT", true),
        ("", "", "PATCH", true),
        ("", "", "GET", false),
        ("body_methods = [\"GET\"]", "", "GET", true),
        ("body_methods = [\"GET\"]", "", "POST", false),
        ("body_methods = []", "", "POST", false),
        ("body_methods = [\"*\"]", "", "SEARCH", true),
        ("", "body_methods = [\"*\"]", "DELETE", true),
        ("body_methods = [\"*\"]", "body_methods = []", "DELETE", false),
    ] {
        let mut backend = Backend::ok();
        let setup = Setup { upstream, route, rest: ONE_SHARD, ..Setup::default() };
        let gateway = setup.start(&[backend.address()]);
        let mut client = gateway.connect();
        for number in 0..3 {
            client.send(carrier(method, false));
            assert_eq!(client.read_response().text(), "ok");
            let request = backend.request();
            let found = (request.connection, request.head.field("connection"));
            let wanted = if is_kept { (0, None) } else { (number, Some("close")) };
            assert_eq!(found, wanted, "{method}, {upstream} {route}");
            assert_eq!(request.body, SMUGGLED.as_bytes());
        }
        // Without a body there is nothing to leave unread.
        client.send("GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.read_response().text(), "ok");
        assert_eq!(backend.request().head.field("connection"), None);
    }
}

// ---- heads that some read otherwise ----

#[test]
fn a_length_that_some_take_for_less_than_nothing_is_refused() {
    let length = "Content-Length: 9223372036854775808\r\n\r\n";
    let backend = Backend::answering(move |request| match request.head.field("x-chunked") {
        None => format!("HTTP/1.1 200 OK\r\n{length}"),
        Some(_) => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8000000000000000\r\n".to_owned(),
    });
    let gateway = before(backend.address());
    for method in ["GET", "POST"] {
        let mut client = gateway.connect();
        client.send(format!("{method} /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        expect_refusal(&client.read_response(), 502, "upstream_bad_response");
    }
    let mut client = gateway.connect();
    client.send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_head_response().status, 502);
    let mut client = gateway.connect();
    client.send(format!("POST /x HTTP/1.1\r\nHost: a\r\n{length}"));
    expect_refusal(&client.read_response(), 400, "bad_request");
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\nX-Chunked: 1\r\n\r\n");
    assert!(!client.read_to_end().unwrap_or_default().ends_with(b"0\r\n\r\n"), "a broken body does not end well");
    // Each shard writes its own lines when it has some.
    let lines = gateway.access_lines(5);
    assert!(lines.iter().any(|line| line["reason"] == "upstream_malformed"), "{lines:?}");
}

#[test]
fn only_trailer_fields_that_come_are_announced() {
    let names = "Transfer-Encoding, X-Sum,, Content-Length , Trailer,x-user-id, Authorization, b@d, X-Time";
    for (names, kept) in [(names, Some("X-Sum, X-Time")), ("Host", None), ("", None), ("X-Sum", Some("X-Sum"))] {
        let mut backend = Backend::answering(move |_| {
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: {names}\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
            )
        });
        let gateway = before(backend.address());
        let mut client = gateway.connect();
        client.send(format!(
            "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: {names}\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n"
        ));
        let answer = client.read_response();
        let request = backend.request();
        assert_eq!((answer.field("trailer"), request.head.field("trailer")), (kept, kept), "{names}");
        assert_eq!((answer.trailers.len(), request.trailers.len()), (1, 1));
    }
}

#[test]
fn trailer_fields_that_are_left_out_are_not_announced() {
    let mut backend = Backend::answering(|request| {
        if request.head.first_line.contains("/length") {
            return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTrailer: X-Sum\r\n\r\nok".to_owned();
        }
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
            .to_owned()
    });
    let rules = "[routes.request_headers]\nremove = [\"X-Any\"]\n[routes.response_headers]\nremove = [\"X-Any\"]";
    for (route, version, path) in [(rules, "1.1", "/x"), ("", "1.0", "/x"), ("", "1.1", "/length")] {
        let gateway = Setup { route, ..Setup::default() }.start(&[backend.address()]);
        let mut client = gateway.connect();
        let body = match version {
            "1.1" if path == "/x" => "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
            _ => "Content-Length: 1\r\n\r\na",
        };
        client.send(format!("POST {path} HTTP/{version}\r\nHost: a\r\nTrailer: X-Sum\r\n{body}"));
        let answer = client.read_response();
        assert_eq!((answer.status, answer.field("trailer")), (200, None), "{path} {version} {route}");
        assert_eq!(backend.request().head.field("trailer"), None, "{path} {version} {route}");
    }
}

//! Interim answers (RFC 9110 §15.2): what a backend says before its answer reaches the client before the answer.

use std::{sync::mpsc, time::Duration};

use super::{Setup, before, expect_refusal};
use crate::backend::{Backend, OK};

const PATIENCE: Duration = Duration::from_secs(10);

/// An answer, and what comes before it in the same piece.
fn before_ok(interim: &str) -> Vec<u8> {
    [interim.as_bytes(), OK].concat()
}

#[test]
fn a_hint_is_with_the_client_before_the_answer_is_made() {
    let (gate, released) = mpsc::sync_channel(0);
    let backend = Backend::start(move |conversation| {
        loop {
            conversation.read_request()?;
            conversation.send("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")?;
            let _ = gate.send(());
            // The gateway asks no backend for a 100. The others come in one piece with the answer.
            conversation.send("HTTP/1.1 100 Continue\r\n\r\n")?;
            conversation.send(before_ok("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 Odd\r\nX-Odd: 1\r\n\r\n"))?;
        }
    });
    let gateway = before(backend.address());
    // Connections to every shard, and each goes on.
    for client in &mut (0..16).map(|_| gateway.connect()).collect::<Vec<_>>() {
        for round in 0..2 {
            client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
            let hint = client.read_response();
            assert_eq!((hint.status, hint.field("link")), (103, Some("</style.css>; rel=preload")), "in round {round}");
            assert_eq!(hint.field("via"), Some("1.1 shardgate"));
            for of_the_answer in ["connection", "content-length", "transfer-encoding", "x-request-id"] {
                assert_eq!(hint.field(of_the_answer), None);
            }
            released.recv_timeout(PATIENCE).expect("the backend waits for it");
            assert_eq!(client.read_response().status, 102);
            let odd = client.read_response();
            assert_eq!((odd.status, odd.field("x-odd")), (199, Some("1")));
            let answer = client.read_response();
            assert_eq!((answer.status, answer.text().as_str(), answer.field("link")), (200, "ok", None));
        }
    }
}

#[test]
fn what_is_between_neighbours_stays_there_and_routes_have_their_say() {
    let backend = Backend::answering(|_| {
        before_ok(
            "HTTP/1.1 103 Early Hints\r\nConnection: X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
             Content-Length: 0\r\nUpgrade: h2c\r\nX-Request-Id: mine\r\nServer: inside\r\nLink: </a>\r\n\r\n",
        )
    });
    let route = "[routes.response_headers]\nremove = [\"server\"]\nset = { \"X-Frame-Options\" = \"DENY\" }";
    let gateway = Setup { route, ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    let hint = client.get("/x");
    let mut names: Vec<_> = hint.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    assert_eq!((hint.status, names), (103, ["link", "via", "x-frame-options"].map(str::to_owned).to_vec()));
    assert_eq!(client.read_response().text(), "ok");
}

#[test]
fn an_old_client_gets_the_answer_alone() {
    let backend = Backend::answering(|_| before_ok("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"));
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.0\r\n\r\n");
    let answer = client.read_response();
    assert_eq!((answer.status, answer.text().as_str(), answer.field("link")), (200, "ok", None));
    client.expect_end();
}

#[test]
fn a_route_may_keep_hints_from_clients_that_take_them_for_answers() {
    let backend = Backend::answering(|_| before_ok("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"));
    for (http, route, first) in [
        ("interim_answers = true", "", 103),
        ("interim_answers = false", "", 200),
        ("interim_answers = false", "interim_answers = true", 103),
        ("", "interim_answers = false", 200),
    ] {
        let gateway = Setup { http, route, ..Setup::default() }.start(&[backend.address()]);
        assert_eq!(gateway.get("/x").status, first, "{http}, {route}");
    }
}

#[test]
fn a_hint_and_a_continue_are_both_whole() {
    let backend = Backend::start(|conversation| {
        loop {
            conversation.read_head()?;
            conversation.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
            assert_eq!(conversation.take(5)?, b"hello");
            conversation.send(OK)?;
        }
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for _ in 0..8 {
        client.send("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        let mut told = [client.read_response().status, client.read_response().status];
        told.sort_unstable();
        assert_eq!(told, [100, 103]);
        client.send("hello");
        assert_eq!(client.read_response().text(), "ok");
    }
}

#[test]
fn who_has_hinted_has_the_request() {
    // A GET may be sent again, but not to let the client see two halves of different answers.
    let mut backend = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    assert_eq!(client.get("/x").status, 103);
    expect_refusal(&client.read_response(), 502, "upstream_unreachable");
    assert_eq!(backend.opened(), 1);
}

#[test]
fn a_backend_that_only_ever_hints_is_given_up() {
    let mut backend = Backend::start(|conversation| {
        conversation.read_request()?;
        loop {
            conversation.send("HTTP/1.1 103 Early Hints\r\n\r\n")?;
        }
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut answers = std::iter::repeat_with(|| client.read_response());
    let answer = answers.find(|answer| answer.status != 103).expect("an end");
    expect_refusal(&answer, 502, "upstream_bad_response");
    backend.wait_ended(0);
}

#[test]
fn a_client_that_reads_misses_no_hint() {
    // Together far more than is kept for a client that does not read.
    let hint = format!("HTTP/1.1 103 Early Hints\r\nX-Padding: {}\r\n\r\n", "x".repeat(6000));
    let backend = Backend::answering(move |_| before_ok(&hint.repeat(8)));
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for _ in 0..8 {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        let told: Vec<_> = (0..9).map(|_| client.read_response().status).collect();
        assert_eq!(told, [[103; 8].as_slice(), &[200]].concat());
    }
}

#[test]
fn a_hint_says_nothing_of_cors() {
    let allows = "Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\n";
    let backend =
        Backend::answering(move |_| before_ok(&format!("HTTP/1.1 103 Early Hints\r\n{allows}Link: </a>\r\n\r\n")));
    let rest = "[cors]\norigins = [\"https://shop.example\"]";
    let gateway = Setup { rest, ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\n\r\n");
    let hint = client.read_response();
    assert_eq!((hint.status, hint.field("link")), (103, Some("</a>")));
    let is_cors = |name: &str| name.to_ascii_lowercase().starts_with("access-control-");
    assert!(!hint.fields.iter().any(|(name, _)| is_cors(name)), "{hint:?}");
    assert_eq!(client.read_response().text(), "ok");
}

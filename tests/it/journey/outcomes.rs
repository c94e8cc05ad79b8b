//! What is counted and logged of attempts at an upstream, each by how it ended, and of answers that end early.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Setup,
    access::{KEYS, token},
};
use crate::{
    backend::Backend,
    client::Client,
    harness::{Gateway, Metrics, until},
};

const SOON: Duration = Duration::from_secs(10);

/// Where nobody listens: bound and gone.
pub(crate) fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound")
}

/// The outcomes that were counted, without those that were not.
fn outcomes(metrics: &Metrics) -> Value {
    let outcomes = ["answered", "server_error", "connect_failed", "timed_out", "closed", "malformed", "cancelled"].map(
        |outcome| {
            let series = format!("shardgate_upstream_requests_total{{upstream=\"back\",outcome=\"{outcome}\"}}");
            (outcome.to_owned(), metrics.value(&series))
        },
    );
    outcomes.into_iter().filter(|(_, count)| *count > 0).map(|(outcome, count)| (outcome, json!(count))).collect()
}

/// What is counted once the lines of this many requests are there: the outcomes are as many as attempts were logged.
#[track_caller]
fn told(gateway: &Gateway, requests: usize) -> (Value, Vec<Value>) {
    let lines = gateway.access_lines(requests);
    let attempts: i64 = lines.iter().filter_map(|line| line["attempts"].as_i64()).sum();
    let metrics = gateway.metrics();
    let outcomes = outcomes(&metrics);
    let counted: i64 = outcomes.as_object().expect("an object").values().filter_map(Value::as_i64).sum();
    assert_eq!(counted, attempts, "{outcomes}: {lines:?}");
    let again = metrics.sum("shardgate_upstream_retries_total");
    let tried = lines.iter().filter(|line| line["attempts"].as_i64().is_some_and(|attempts| attempts > 0)).count();
    assert_eq!(again, attempts - i64::try_from(tried).expect("few"), "{lines:?}");
    (outcomes, lines)
}

#[test]
fn an_attempt_that_found_nobody_is_no_connection_that_closed() {
    let gateway = Setup { upstream: "retries_max = 0\noutlier_failures = 0", ..Setup::default() }.start(&[nobody()]);
    for _ in 0..3 {
        assert_eq!(gateway.get("/x").status, 502);
    }
    assert_eq!(told(&gateway, 3).0, json!({ "connect_failed": 3 }));
}

#[test]
fn each_attempt_counts_by_its_own_outcome() {
    let again = "retries_max = 2\nretry_budget_min_per_s = 1000\noutlier_failures = 0";
    let gateway = Setup { upstream: again, ..Setup::default() }.start(&[nobody()]);
    for _ in 0..3 {
        assert_eq!(gateway.get("/x").status, 502);
    }
    assert_eq!(told(&gateway, 3).0, json!({ "connect_failed": 9 }));

    // One of two is away: whoever meets it first is served by the other.
    let backend = Backend::ok();
    let gateway = Setup { upstream: again, ..Setup::default() }.start(&[nobody(), backend.address()]);
    for _ in 0..20 {
        assert_eq!(gateway.get("/x").status, 200);
    }
    let (outcomes, lines) = told(&gateway, 20);
    let met = lines.iter().filter(|line| line["attempts"] == 2).count();
    assert!(met > 0, "20 choices between two of them");
    assert_eq!(outcomes, json!({ "answered": 20, "connect_failed": met }));
}

#[test]
fn every_way_in_which_an_attempt_ends_has_an_outcome() {
    let backend = Backend::start(|conversation| {
        loop {
            let request = conversation.read_request()?;
            let path = request.head.first_line.split(' ').nth(1).unwrap_or_default().to_owned();
            match &*path {
                "/closed" => return Ok(()),
                "/malformed" => conversation.send("HTTP/9 nonsense\r\n\r\n")?,
                "/unasked" => {
                    conversation.send("HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")?;
                }
                "/late" => {
                    conversation.read_to_end();
                    return Ok(());
                }
                "/broken" => {
                    conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ")?;
                    return Ok(());
                }
                "/stalled" => {
                    conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ")?;
                    conversation.read_to_end();
                    return Ok(());
                }
                "/garbled" => {
                    conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n")?;
                    return Ok(());
                }
                "/error" => conversation.send("HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n")?,
                _ => conversation.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
            }
        }
    });
    for (path, outcome, reason) in [
        ("/fine", "answered", None),
        ("/error", "server_error", None),
        ("/closed", "closed", Some("upstream_unreachable")),
        ("/malformed", "malformed", Some("upstream_bad_response")),
        ("/unasked", "malformed", Some("upstream_bad_response")),
        ("/late", "timed_out", Some("upstream_timeout")),
        ("/broken", "closed", Some("upstream_broken")),
        ("/stalled", "timed_out", Some("upstream_stalled")),
        ("/garbled", "malformed", Some("upstream_malformed")),
        ("/gone", "cancelled", Some("client_closed")),
    ] {
        let upstream = "retries_max = 0\noutlier_failures = 0\nresponse_timeout = \"200ms\"";
        let route = "stream_idle_timeout = \"200ms\"";
        let gateway = Setup { upstream, route, ..Setup::default() }.start(&[backend.address()]);
        let mut client = gateway.connect();
        if path == "/gone" {
            // It waits for an answer that is late, and leaves before.
            client.send("GET /late HTTP/1.1\r\nHost: a\r\n\r\n");
            drop(client);
        } else {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
            // What comes of it is for others to look at.
            let _ = client.read_to_end();
        }
        let (outcomes, lines) = told(&gateway, 1);
        assert_eq!(outcomes, json!({ outcome: 1 }), "{path}: {lines:?}");
        assert_eq!(lines[0].get("reason").and_then(Value::as_str), reason, "{path}");
    }
}

/// A gateway whose route asks for a token, so that a session's end cuts what is under way.
fn guarded(backend: &Backend) -> Gateway {
    let rest = format!("{KEYS}[[routes]]\nname = \"guarded\"\npath = \"/guarded\"\nupstream = \"back\"\n");
    Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()])
}

/// Ends all sessions of the token's user, and returns the line of what ended for this reason.
#[track_caller]
fn end_sessions(gateway: &Gateway, token: &str, reason: &str) -> Value {
    let mut client = gateway.connect();
    client.send(format!(
        "POST /auth/logout-all HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
    ));
    assert_eq!(client.read_response().status, 204);
    until(SOON, "the line of what was cut", || {
        gateway.access_lines(0).into_iter().find(|line| line["reason"] == reason)
    })
}

/// Begins to send a body of 1,000 bytes, of which 300 go; returns the token that came with it, too.
fn begin_upload(gateway: &Gateway) -> (String, Client) {
    let token = token(&json!({ "sid": "s_1" }));
    let mut client = gateway.connect();
    client.send(format!(
        "POST /guarded HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\n{}",
        "x".repeat(300)
    ));
    (token, client)
}

#[test]
fn an_answer_that_is_cut_in_the_middle_is_logged_with_what_was_sent_of_it() {
    const SENT: usize = 61_440;
    let backend = Backend::start(|conversation| {
        conversation.read_head()?;
        conversation.take(300)?;
        conversation.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(SENT)))?;
        conversation.read_to_end();
        Ok(())
    });
    let gateway = guarded(&backend);
    let (token, mut client) = begin_upload(&gateway);
    assert_eq!(client.read_response_head().status, 200);
    read_exactly(&mut client, SENT);
    let line = end_sessions(&gateway, &token, "revoked");
    assert_eq!((&line["status"], &line["response_bytes"]), (&json!(200), &json!(SENT)), "{line}");
    assert_eq!(line["request_bytes"], 300, "the upload was under way, too: {line}");
    let bytes = gateway.metrics().value("shardgate_response_body_bytes_total{route=\"guarded\"}");
    assert_eq!(bytes, i64::try_from(SENT).expect("it fits"));
    assert_eq!(outcomes(&gateway.metrics()), json!({ "cancelled": 1 }));
}

#[test]
fn an_upload_that_ends_in_the_middle_is_logged_with_what_came_of_it() {
    let mut backend = Backend::start(|conversation| {
        conversation.read_to_end();
        Ok(())
    });
    let gateway = guarded(&backend);
    let (token, _client) = begin_upload(&gateway);
    until(SOON, "the upload is under way", || {
        (gateway.metrics().value("shardgate_upstream_uploads_in_flight{upstream=\"back\"}") == 1
            && backend.opened() == 1)
            .then_some(())
    });
    let line = end_sessions(&gateway, &token, "token_revoked");
    assert_eq!((&line["status"], &line["request_bytes"]), (&json!(401), &json!(300)), "{line}");
    assert_eq!(outcomes(&gateway.metrics()), json!({ "cancelled": 1 }));
}

#[test]
fn a_tunnel_that_is_cut_is_logged_with_what_went_through_it() {
    let backend = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")?;
        conversation.read_to_end();
        Ok(())
    });
    let gateway = guarded(&backend);
    let token = token(&json!({ "sid": "s_1" }));
    let mut client = gateway.connect();
    client.send(format!(
        "GET /guarded HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    ));
    assert_eq!(client.read_response_head().status, 101);
    read_exactly(&mut client, 5);
    let line = end_sessions(&gateway, &token, "revoked");
    assert_eq!((&line["status"], &line["response_bytes"]), (&json!(101), &json!(5)), "{line}");
}

#[track_caller]
fn read_exactly(client: &mut Client, bytes: usize) {
    let mut read = 0;
    while read < bytes {
        let some = client.read_some().expect("the answer goes on");
        assert!(!some.is_empty(), "{read} of {bytes} bytes came");
        read += some.len();
    }
    assert_eq!(read, bytes);
}

//! `X-Request-Timeout-Ms`: how long a client waits, what its request's services are told of it, and what becomes of those
//! that take longer.

use std::time::Duration;

use super::{Setup, before, expect_refusal};
use crate::{
    backend::{Backend, OK},
    client::Response,
    harness::{Gateway, now, pause},
};

const FIELD: &str = "x-request-timeout-ms";

#[track_caller]
fn ask(gateway: &Gateway, fields: &str) -> Response {
    let mut client = gateway.connect();
    client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    client.read_response()
}

#[track_caller]
fn of_upstream(gateway: &Gateway, name: &str) -> i64 {
    gateway.metrics().value(&format!("shardgate_upstream_{name}{{upstream=\"back\"}}"))
}

#[test]
fn what_is_left_goes_on() {
    let mut backend = Backend::ok();
    let said = |ms: &str| format!("X-Request-Timeout-Ms: {ms}\r\n");
    let (route, trusts) = ("deadline = \"2s\"", "[trust]\nproxies = [\"127.0.0.1\"]\n");
    // What the route, the configuration and the client say; between which two numbers the service hears one, if it does.
    for (route, rest, fields, heard) in [
        ("", "", String::new(), None),
        ("", "", said("5000"), Some(1..=5000)),
        ("", "", said("99999999"), Some(50_000..=60_000)),
        ("", "[deadline]\nmax = \"3s\"", said("5000"), Some(1..=3000)),
        (route, "", String::new(), Some(1..=2000)),
        (route, "", said("5000"), Some(1..=2000)),
        (route, "", said("1000"), Some(1..=1000)),
        ("", "", said("soon"), None),
        ("", "", said("0"), None),
        ("", "", said("1000, 2000"), None),
        ("", "", said("1000") + &said("2000"), None),
        ("", "", "X_Request_Timeout_Ms: 1000\r\n".to_owned(), None),
        (route, "", said("soon"), Some(1..=2000)),
        ("", "[deadline]\nfrom = \"trusted\"", said("1000"), None),
        ("", &format!("{trusts}[deadline]\nfrom = \"trusted\""), said("1000"), Some(1..=1000)),
        // It means nothing here, whatever it may mean there.
        ("", "[deadline]\nfrom = \"nobody\"", said("7"), Some(7..=7)),
    ] {
        let upstream = "response_timeout = \"10m\"";
        let gateway = Setup { upstream, route, rest, ..Setup::default() }.start(&[backend.address()]);
        assert_eq!(ask(&gateway, &fields).status, 200);
        let request = backend.request();
        let told: Vec<_> = request.head.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case(FIELD)).collect();
        let told: Vec<u32> = told.into_iter().map(|(_, value)| value.parse().expect("digits")).collect();
        let is_right = match &heard {
            Some(range) => told.len() == 1 && range.contains(&told[0]),
            None => told.is_empty() && request.head.field("x_request_timeout_ms").is_none(),
        };
        assert!(is_right, "{route} {rest} {fields}: {told:?}, not {heard:?}");
    }
}

#[test]
fn what_is_no_number_is_counted_and_otherwise_left_alone() {
    let backend = Backend::ok();
    let gateway = before(backend.address());
    for value in ["soon", "-1", "", "1.5", "12345678901234567890"] {
        assert_eq!(ask(&gateway, &format!("X-Request-Timeout-Ms: {value}\r\n")).status, 200, "{value:?}");
    }
    assert_eq!(gateway.metrics().value("shardgate_deadlines_malformed_total"), 5);
}

#[test]
fn who_waits_no_longer_is_told_so_and_nobody_else_suffers() {
    let mut backend = Backend::start(|conversation| {
        conversation.tell_head()?;
        conversation.read_to_end();
        Ok(())
    });
    let upstream = "outlier_failures = 1\noutlier_percent_max = 100\npanic_percent = 0\nretries_max = 5";
    let gateway = Setup { upstream, ..Setup::default() }.start(&[backend.address()]);
    for number in 0..3 {
        let began = now();
        expect_refusal(&ask(&gateway, "X-Request-Timeout-Ms: 100\r\n"), 504, "upstream_timeout");
        let waited = began.elapsed();
        assert!(waited >= Duration::from_millis(95) && waited < Duration::from_secs(5), "{waited:?}");
        backend.wait_ended(number);
    }
    // The service was slow for this client only: it is in, and was not asked again.
    assert_eq!((backend.requests().len(), of_upstream(&gateway, "ejections_total")), (3, 0));
    assert_eq!(of_upstream(&gateway, "deadlines_missed_total"), 3);
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 100\r\nContent-Length: 10\r\n\r\nhello");
    expect_refusal(&client.read_response(), 504, "upstream_timeout");
}

#[test]
fn who_waits_no_longer_takes_no_instance_out_that_was_asked_as_well() {
    let silent = || {
        Backend::start(|conversation| {
            conversation.tell_head()?;
            conversation.read_to_end();
            Ok(())
        })
    };
    let (mut first, mut second) = (silent(), silent());
    let upstream = "outlier_failures = 1\noutlier_percent_max = 100";
    let setup = Setup { upstream, route: "hedge_after = \"50ms\"", ..Setup::default() };
    let gateway = setup.start(&[first.address(), second.address()]);
    for _ in 0..3 {
        expect_refusal(&ask(&gateway, "X-Request-Timeout-Ms: 300\r\n"), 504, "upstream_timeout");
    }
    assert_eq!((first.requests().len(), second.requests().len()), (3, 3));
    assert_eq!((of_upstream(&gateway, "hedges_total"), of_upstream(&gateway, "ejections_total")), (3, 0));
}

#[test]
fn clients_that_send_too_slowly_are_no_sign_of_a_slow_service() {
    let backend = Backend::ok();
    let gateway = Setup { rest: "[runtime]\nshards = 1", ..Setup::default() }.start(&[backend.address()]);
    let uploads: Vec<_> = (0..20)
        .map(|_| {
            let mut client = gateway.connect();
            client.send("POST /x HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 300\r\nContent-Length: 10\r\n\r\nhello");
            client
        })
        .collect();
    for mut client in uploads {
        expect_refusal(&client.read_response(), 504, "upstream_timeout");
    }
    let mut client = gateway.connect();
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    gateway.metrics_until("one is under way", |metrics| {
        metrics.value("shardgate_upstream_uploads_in_flight{upstream=\"back\"}") == 1
    });
    assert_eq!(ask(&gateway, "X-Request-Timeout-Ms: 300\r\n").status, 200, "others are let in");
}

#[test]
fn attempts_and_pauses_are_within_the_deadline() {
    let mut backend = Backend::answering(|_| "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let upstream = "retry_on = [\"503\"]\nretry_budget_min_per_s = 1000\nretries_max = 10\nretry_backoff = \"60s\"\n\
                    retry_backoff_max = \"60s\"";
    let gateway = Setup { upstream, ..Setup::default() }.start(&[backend.address()]);
    let began = now();
    // Most pauses that are drawn are longer than that, and then what there is goes on at once.
    assert_eq!(ask(&gateway, "X-Request-Timeout-Ms: 300\r\n").status, 503);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(backend.requests().len() <= 3);
}

#[test]
fn a_body_that_says_how_long_it_is_is_whole_by_then_and_a_stream_goes_on() {
    let backend = Backend::start(|conversation| {
        loop {
            let request = conversation.read_request()?;
            if request.head.first_line.contains("/stream") {
                conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
                pause(Duration::from_millis(600));
                conversation.send("4\r\nlast\r\n0\r\n\r\n")?;
            } else if request.head.first_line.contains("/part") {
                conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")?;
                conversation.read_to_end();
                return Ok(());
            } else {
                conversation.send(OK)?;
            }
        }
    });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send("GET /stream HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 200\r\n\r\n");
    assert_eq!(client.read_response().text(), "firstlast");
    let mut client = gateway.connect();
    client.send("GET /part HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 200\r\n\r\n");
    assert_eq!(client.read_response_head().status, 200);
    client.read_until("first");
    client.expect_end();
    let lines = gateway.access_lines(2);
    assert_eq!(lines[1]["reason"], "deadline_missed", "{lines:?}");
    assert_eq!(of_upstream(&gateway, "deadlines_missed_total"), 1);
}

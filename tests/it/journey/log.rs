//! The access log: one line for each request, whatever became of it, and nothing from outside that breaks out of it.

use std::collections::BTreeSet;

use super::{Setup, before};
use crate::backend::Backend;

#[test]
fn a_line_says_what_there_is_to_know() {
    let backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send(
        "POST /a/./b?secret=1 HTTP/1.1\r\nHost: shop.test\r\nUser-Agent: curl/8\r\nX-Request-Id: request-1\r\n\
         Content-Length: 5\r\n\r\nhello",
    );
    assert_eq!(client.read_response().status, 200);
    let line = gateway.access_lines(1).remove(0);
    let instance = backend.address().to_string();
    for (field, value) in [
        ("request_id", "request-1"),
        ("client", "127.0.0.1"),
        ("method", "POST"),
        ("host", "shop.test"),
        ("path", "/a/b"),
        ("protocol", "HTTP/1.1"),
        ("route", "all"),
        ("upstream", "back"),
        ("instance", &instance),
        ("user_agent", "curl/8"),
    ] {
        assert_eq!(line[field], value, "{field}: {line}");
    }
    for (field, value) in [("status", 200), ("request_bytes", 5), ("response_bytes", 2), ("attempts", 1)] {
        assert_eq!(line[field], value, "{field}: {line}");
    }
    assert_eq!((&line["reused"], line.get("reason")), (&false.into(), None), "{line}");
    let us = |field: &str| line[field].as_u64().unwrap_or_else(|| panic!("{field}: {line}"));
    assert!(us("gateway_us") + us("upstream_us") <= us("total_us") + 1, "{line}");
    assert!(us("connect_us") <= us("upstream_us"), "{line}");
    assert!(us("shard") < 4, "{line}");
    assert_eq!(line["trace_id"].as_str().map(str::len), Some(32), "{line}");
    let time = line["time"].as_str().expect("a time");
    assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
    assert!(!line.to_string().contains("secret"), "a query may hold secrets: {line}");
}

#[test]
fn what_was_refused_says_why() {
    let backend = Backend::ok();
    let gateway = Setup { http: "body_bytes_max = 1", ..Setup::default() }.start(&[backend.address()]);
    for (request, status, reason) in [
        ("GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        ("GET /.. HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request"),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 501, "not_implemented"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab", 413, "body_too_large"),
    ] {
        let mut client = gateway.connect();
        client.send(request);
        let answer = client.read_response();
        assert_eq!(answer.status, status, "{request:?}");
        let id = answer.field("x-request-id").expect("every answer has an id").to_owned();
        let lines = crate::harness::until(std::time::Duration::from_secs(10), "its line", || {
            let lines: Vec<_> =
                gateway.access_lines(1).into_iter().filter(|line| line["request_id"] == id.as_str()).collect();
            (!lines.is_empty()).then_some(lines)
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((&line["status"], &line["reason"]), (&status.into(), &reason.into()), "{line}");
        assert_eq!(line.get("instance"), None, "{line}");
    }
}

#[test]
fn hostile_bytes_stay_inside_their_strings() {
    let backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client
        .send(b"GET /x HTTP/1.1\r\nHost: a\r\nUser-Agent: \"},{\"status\":1,\\ \xff\xc2\x9b31m\xe2\x80\xa8\t\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    let raw = crate::harness::until(std::time::Duration::from_secs(10), "a line", || {
        std::fs::read(gateway.directory().join("access.log")).ok().filter(|log| log.ends_with(b"\n"))
    });
    assert_eq!(raw.iter().filter(|byte| byte.is_ascii_control()).count(), 1, "one line end and no other control");
    let text = String::from_utf8(raw).expect("always UTF-8");
    assert!(!text.contains('\u{9b}') && !text.contains('\u{2028}'), "{text:?}");
    let line = gateway.access_lines(1).remove(0);
    assert_eq!(line["status"], 200);
    let agent = line["user_agent"].as_str().expect("a user agent");
    assert!(agent.starts_with("\"},{\"status\":1,\\ "), "{agent:?}");
}

#[test]
fn every_request_has_one_line_whatever_shard_served_it() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let mut ids = BTreeSet::new();
    // The kernel spreads connections by their ports; uneven shards hand over.
    let mut clients: Vec<_> = (0..64).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        for _ in 0..3 {
            let answer = client.get("/x");
            ids.insert(answer.field("x-request-id").expect("every answer has an id").to_owned());
        }
    }
    let lines = gateway.access_lines(192);
    assert_eq!((lines.len(), ids.len()), (192, 192));
    let logged: BTreeSet<_> = lines.iter().filter_map(|line| line["request_id"].as_str().map(str::to_owned)).collect();
    assert_eq!(logged, ids);
    let shards: BTreeSet<_> = lines.iter().filter_map(|line| line["shard"].as_u64()).collect();
    assert_eq!(shards, BTreeSet::from([0, 1, 2, 3]), "every shard serves");
    assert_eq!(backend.requests().len(), 192);
}

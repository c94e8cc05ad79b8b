//! Tokens in the query, for `EventSource` and `WebSocket` of browsers: whom they let in, and that nobody behind the check
//! gets to see them. That no log line, no trace and no metric has one is looked at where each gateway ends.

use serde_json::json;

use super::{
    access::{KEYS, token, unix_now},
    expect_refusal,
};
use crate::{
    backend::Backend,
    client::{Client, Response},
    harness::Gateway,
};

const ORIGIN: &str = "https://shop.example";

/// A gateway that takes tokens out of the query where the path begins with `/query`; it logs all that it can.
fn start(backend: &Backend) -> Gateway {
    Gateway::start(&format!(
        "[log]\nlevel = \"trace\"\n[cors]\norigins = [\"{ORIGIN}\"]\n{KEYS}[upstreams.back]\ninstances = [\"{}\"]\n\
         [[routes]]\npath = \"/*\"\nupstream = \"back\"\n\
         [[routes]]\npath = \"/query/*\"\nupstream = \"back\"\ntoken_query = \"access_token\"\nstrip_prefix = \"/query\"\n\
         [[routes]]\npath = \"/query-of/{{id}}\"\nupstream = \"back\"\ntoken_query = \"t\"\nrewrite = \"/v2/{{id}}\"\n\
         [[routes]]\npath = \"/query/admin\"\nupstream = \"back\"\ntoken_query = \"access_token\"\nroles = [\"admin\"]\n",
        backend.address()
    ))
}

#[track_caller]
fn ask(client: &mut Client, target: &str, fields: &str) -> Response {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\n"));
    client.read_response()
}

#[test]
fn a_token_in_the_query_lets_in_and_goes_no_further() {
    let mut backend = Backend::ok();
    let gateway = start(&backend);
    let good = token(&json!({ "role": "user", "sid": "s_1" }));
    let escaped = good.replace('.', "%2E");
    let mut clients: Vec<Client> = (0..64).map(|_| gateway.connect()).collect();
    for (target, sent) in [
        (format!("/query/x?access_token={good}"), "GET /x HTTP/1.1"),
        (format!("/query/x?a=%41&access_token={good}&b=+&&c"), "GET /x?a=%41&b=+&&c HTTP/1.1"),
        (format!("/query/x?access%5Ftoken={escaped}&a=1;b"), "GET /x?a=1;b HTTP/1.1"),
        (format!("http://shop.test/query/./y?t=1&access_token={good}"), "GET /y?t=1 HTTP/1.1"),
        (format!("/query-of/7?t={good}&access_token=mine"), "GET /v2/7?access_token=mine HTTP/1.1"),
    ] {
        for client in clients.iter_mut().step_by(4) {
            let answer = ask(client, &target, "Referer: https://shop.example/page\r\n");
            assert_eq!(answer.status, 200, "{target}: {answer:?}");
            assert_eq!(answer.field("cache-control"), Some("private"), "RFC 6750, section 2.3");
            assert_eq!(answer.field("referrer-policy"), Some("strict-origin"));
            let seen = backend.request().head;
            assert_eq!(seen.first_line, sent);
            let told = ["x-user-id", "x-user-role", "authorization"].map(|name| seen.field(name));
            assert_eq!(told, [Some("42"), Some("user"), None]);
            assert!(!format!("{seen:?}").contains(&good), "{seen:?}");
        }
        clients.rotate_left(1);
    }
    let served = gateway.metrics().by_shard("shardgate_shard_requests_total");
    assert!(served.len() == 4 && served.iter().all(|count| *count > 0), "requests by shard: {served:?}");
    for line in gateway.access_lines(5 * 16) {
        assert!(!line.to_string().contains("access_token"), "{line}");
    }

    // Whoever can send the field goes on to do so, and what is not the parameter's name stays.
    let fields = format!("Authorization: Bearer {good}\r\n");
    for target in ["/query/x?token=1", "/query/x?xaccess_token=1&Access_token=2", "/query/x"] {
        let answer = ask(&mut clients[0], target, &fields);
        assert_eq!((answer.status, answer.field("cache-control")), (200, None), "{target}");
        assert_eq!(backend.request().head.first_line, format!("GET {} HTTP/1.1", &target["/query".len()..]));
    }
}

#[test]
fn a_query_is_refused_as_a_field_would_be_and_where_there_are_two_tokens() {
    let mut backend = Backend::ok();
    let gateway = start(&backend);
    let good = token(&json!({}));
    let field = format!("Authorization: Bearer {good}\r\n");
    let expired = token(&json!({ "exp": unix_now() - 60 }));
    for (target, fields, status, code) in [
        ("/query/x".to_owned(), "", 401, "token_missing"),
        ("/query/x?access_token=".to_owned(), "", 401, "token_missing"),
        ("/query/x?access_token".to_owned(), "", 401, "token_missing"),
        (format!("/query/x?Access_Token={good}"), "", 401, "token_missing"),
        (format!("/query/x?access_token={good}x"), "", 401, "token_invalid"),
        (format!("/query/x?access_token=Bearer%20{good}"), "", 401, "token_invalid"),
        (format!("/query/x?access_token={expired}"), "", 401, "token_expired"),
        (format!("/query/admin?access_token={good}"), "", 403, "forbidden"),
        // One of the two might be checked here and the other used there.
        (format!("/query/x?access_token={good}&access_token={good}"), "", 400, "bad_request"),
        (format!("/query/x?access_token={good}&access%5ftoken={expired}"), "", 400, "bad_request"),
        (format!("/query/x?access_token={good}"), &field, 400, "bad_request"),
        (format!("/query/x?access_token={good}"), "Authorization: Basic eA==\r\n", 400, "bad_request"),
        ("/query/x?access_token=".to_owned(), &field, 400, "bad_request"),
        // Elsewhere nobody looks for one.
        (format!("/x?access_token={good}"), "", 401, "token_missing"),
        (format!("/query-of/7?access_token={good}"), "", 401, "token_missing"),
    ] {
        let answer = ask(&mut gateway.connect(), &target, fields);
        expect_refusal(&answer, status, code);
        assert_eq!(answer.field("cache-control"), Some("no-store"));
        assert!(!format!("{answer:?}").contains(&good), "{answer:?}");
    }
    assert!(backend.requests().is_empty(), "nobody was let in");
}

#[test]
fn event_sources_and_web_sockets_of_pages_elsewhere_get_through() {
    let mut backend = Backend::answering(|request| {
        if request.head.field("upgrade").is_some() {
            return "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        }
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\
         Transfer-Encoding: chunked\r\n\r\nd\r\ndata: first\n\n\r\n"
    });
    let gateway = start(&backend);
    let good = token(&json!({}));

    // As Chromium's EventSource asks: no preflight, for it is a simple request.
    let mut client = gateway.connect();
    client.send(format!(
        "GET /query/events?last=1&access_token={good} HTTP/1.1\r\nHost: shop.test\r\nAccept: text/event-stream\r\n\
         Cache-Control: no-cache\r\nOrigin: {ORIGIN}\r\nSec-Fetch-Mode: cors\r\n\r\n"
    ));
    let answer = client.read_response_head();
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("text/event-stream")));
    assert_eq!(answer.field("access-control-allow-origin"), Some(ORIGIN));
    assert_eq!(answer.field("cache-control"), Some("no-store"), "what the service says is enough");
    let mut told = Vec::new();
    while !told.ends_with(b"data: first\n\n\r\n") {
        told.extend(client.read_some().expect("the stream goes on"));
    }
    assert_eq!(backend.request().head.first_line, "GET /events?last=1 HTTP/1.1");

    let mut client = gateway.connect();
    client.send(format!(
        "GET /query/socket?access_token={good} HTTP/1.1\r\nHost: shop.test\r\nOrigin: {ORIGIN}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    ));
    assert_eq!(client.read_response_head().status, 101);
    assert_eq!(backend.request().head.first_line, "GET /socket HTTP/1.1");
}

//! What the gateway says and counts as one hop among several: `Date`, `Via`, `Max-Forwards`.

use std::time::Duration;

use super::{Setup, before, expect_refusal};
use crate::{
    backend::Backend,
    client::{Client, Response},
    harness::Gateway,
};

/// Checks that an answer has one date, which is the time now.
#[track_caller]
fn expect_date(answer: &Response) {
    let dates: Vec<_> = answer.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("date")).collect();
    let [(_, date)] = dates[..] else { panic!("{answer:?}") };
    let read = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date);
    let read = read.unwrap_or_else(|error| panic!("{error}: {date}"));
    assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
    // An answer has come a while after it was dated.
    let age = jiff::Timestamp::now().duration_since(read).as_secs();
    assert!((-1..60).contains(&age), "{date} is {age} s ago");
}

/// What the gateway answers to these bytes, by a method that has answers with bodies.
#[track_caller]
fn ask(gateway: &Gateway, request: &str) -> Response {
    let mut client = gateway.connect();
    client.send(request);
    let method = request.split(' ').next().expect("a method");
    client.try_read_response(method).unwrap_or_else(|error| panic!("{error}: {request}"))
}

#[test]
fn every_answer_of_the_gateways_own_has_a_date() {
    let backend = Backend::start(|conversation| conversation.tell_head().map(drop));
    let cors =
        "[cors]\norigins = [\"https://a.test\"]\n[limits.few]\nquota = 1\nwindow = \"1h\"\napplies = \"named\"\n";
    let other = |path: &str, rest: &str| {
        format!("[[routes]]\naccess = \"public\"\npath = \"{path}\"\nupstream = \"back\"\n{rest}\n")
    };
    let rest = format!(
        "{cors}{}{}{}",
        other("/few", "limits = [\"few\"]"),
        other("/post", "methods = [\"POST\"]\nbody_bytes_max = 1"),
        "[[routes]]\npath = \"/closed\"\nupstream = \"back\"\n"
    );
    let gateway = Setup { route: "hosts = [\"a\"]", rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let long = "a".repeat(9000);
    let huge = "a".repeat(33_000);
    for (request, status) in [
        ("HEAD /health/live HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("GET /health/live HTTP/1.0\r\n\r\n", 200),
        ("GET /.well-known/jwks.json HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204),
        (
            "OPTIONS /few HTTP/1.1\r\nHost: a\r\nOrigin: https://a.test\r\nAccess-Control-Request-Method: PUT\r\n\r\n",
            204,
        ),
        ("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("nonsense\r\n\r\n", 400),
        ("POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{", 400),
        ("POST /auth/refresh HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 415),
        ("GET /closed HTTP/1.1\r\nHost: b\r\n\r\n", 401),
        ("GET /auth/me HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n", 401),
        ("GET /nowhere HTTP/1.1\r\nHost: b\r\n\r\n", 404),
        ("GET /post HTTP/1.1\r\nHost: b\r\n\r\n", 405),
        ("POST /post HTTP/1.1\r\nHost: b\r\nContent-Length: 2\r\n\r\nab", 413),
        (&format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
        ("GET /x HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n", 417),
        (&format!("GET /x HTTP/1.1\r\nHost: a\r\nX: {huge}\r\n\r\n"), 431),
        ("TRACE /x HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", 502),
        ("GET /few HTTP/1.1\r\nHost: b\r\n\r\n", 502),
        ("GET /few HTTP/1.1\r\nHost: b\r\n\r\n", 429),
        ("GET /x HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    ] {
        let answer = ask(&gateway, request);
        assert_eq!(answer.status, status, "{request}: {answer:?}");
        expect_date(&answer);
    }
    for path in ["/health", "/health/ready"] {
        let early = gateway.get(path);
        assert!(matches!(early.status, 200 | 503), "also before its state is known: {early:?}");
        expect_date(&early);
        expect_date(&gateway.ask_admin(path));
    }
}

#[test]
fn who_finds_no_place_is_told_when() {
    let gateway = Gateway::start("routes = []\n[listener]\nconnections_max = 1\n");
    let mut first = gateway.connect();
    assert_eq!(first.get("/health/live").status, 200);
    let answer = gateway.connect().read_response();
    expect_refusal(&answer, 503, "overloaded");
    expect_date(&answer);
}

#[test]
fn a_request_that_comes_too_slowly_is_told_when() {
    let gateway = Gateway::start("routes = []\n[http]\nheader_timeout = \"100ms\"\n");
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\n");
    let answer = client.read_response();
    expect_refusal(&answer, 408, "request_timeout");
    expect_date(&answer);
}

#[test]
fn an_answer_without_date_is_given_one_and_others_keep_theirs() {
    const DATED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    let backend = Backend::start(|conversation| {
        loop {
            let request = conversation.read_request()?;
            conversation.send(match request.head.first_line.split(' ').nth(1) {
                Some("/dated") => format!("HTTP/1.1 200 OK\r\nDate: {DATED}\r\nContent-Length: 0\r\n\r\n"),
                Some("/304") => "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(),
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
                Some("/500") => "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".to_owned(),
                Some("/hints") => {
                    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
                        .to_owned()
                }
                Some("/socket") => {
                    "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned()
                }
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
            })?;
        }
    });
    let gateway = before(backend.address());
    for path in ["/x", "/304", "/204", "/500"] {
        expect_date(&gateway.get(path));
    }
    let dated = gateway.get("/dated");
    assert_eq!(dated.field("date"), Some(DATED));
    assert_eq!(dated.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("date")).count(), 1, "{dated:?}");
    let mut client = gateway.connect();
    client.send("GET /hints HTTP/1.1\r\nHost: a\r\n\r\n");
    let hints = client.read_response();
    assert_eq!((hints.status, hints.field("date")), (103, None), "{hints:?}");
    expect_date(&client.read_response());
    expect_date(&ask(&gateway, "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"));
}

#[test]
fn via_names_the_version_that_each_side_spoke() {
    let mut backend = Backend::answering(|request| {
        let version = if request.head.first_line.contains("old") { "1.0" } else { "1.1" };
        format!("HTTP/{version} 200 OK\r\nVia: 1.1 a\r\nVia: 1.0 b, \r\nContent-Length: 0\r\n\r\n")
    });
    let gateway = before(backend.address());
    for (path, version) in [("/old", "1.0"), ("/new", "1.1")] {
        let answer = gateway.get(path);
        let via: Vec<_> = answer.fields.iter().filter(|(name, _)| name == "Via").map(|(_, value)| &**value).collect();
        assert_eq!(via, ["1.1 a", &format!("1.0 b, {version} shardgate")], "in the order of the hops");
        assert_eq!(backend.request().head.field("via"), Some("1.1 shardgate"));
    }
}

/// Asks for the options of a path with these lines.
fn options(gateway: &Gateway, path: &str, lines: &str) -> Response {
    ask(gateway, &format!("OPTIONS {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n"))
}

#[test]
fn max_forwards_is_counted_down_and_ends_here_at_nought() {
    let mut backend = Backend::ok();
    let get = "[[routes]]\naccess = \"public\"\npath = \"/some\"\nupstream = \"back\"\nmethods = [\"GET\", \"OPTIONS\"]\n\
               [[routes]]\npath = \"/closed\"\nupstream = \"back\"\n";
    let gateway = Setup { rest: get, ..Setup::default() }.start(&[backend.address()]);
    for (sent, left) in [
        ("5", "4"),
        ("1", "0"),
        ("007", "6"),
        ("99999999999999999999", "4294967294"),
        // What is no number bounds nothing, and is nobody's to mend.
        ("-1", "-1"),
        ("1.5", "1.5"),
        ("", ""),
    ] {
        let answer = options(&gateway, "/x", &format!("Max-Forwards: {sent}\r\n"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{sent}");
        assert_eq!(backend.request().head.field("max-forwards"), Some(left), "{sent}");
    }
    for (path, lines, status, allow) in [
        ("/x", "max-forwards: 0\r\n", 204, Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")),
        ("/some", "Max-Forwards: 000\r\n", 204, Some("GET, HEAD, OPTIONS")),
        // Who may not ask is not told.
        ("/closed", "Max-Forwards: 0\r\n", 401, None),
    ] {
        let answer = options(&gateway, path, lines);
        assert_eq!((answer.status, answer.field("allow")), (status, allow), "{path}: {answer:?}");
    }
    // It is for OPTIONS; elsewhere it may be passed over (RFC 9110 §7.6.2).
    let mut client: Client = gateway.connect().with_patience(Duration::from_secs(10));
    client.send("GET /last HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    let seen = backend.request().head;
    assert_eq!((&*seen.first_line, seen.field("max-forwards")), ("GET /last HTTP/1.1", Some("0")), "none came between");
}

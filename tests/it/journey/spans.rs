//! Spans: what a collector is told of a request, and that the services' spans hang below those of the gateway.

use std::{collections::BTreeSet, time::Duration};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use super::{
    Setup,
    access::{KEYS, token},
    shared_calls::Socket,
};
use crate::{
    backend::{Backend, OK, Received},
    client::Client,
    collector::{Collector, Told},
    harness::Gateway,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const TRUSTING: &str = "[trust]\nproxies = [\"127.0.0.0/8\"]\n";

/// Trace and span of the `traceparent` that a backend was told, and whether the trace is recorded.
#[track_caller]
fn told_parent(request: &Received) -> (String, String, bool) {
    let parts: Vec<_> = request.head.field("traceparent").expect("it is always told").split('-').collect();
    (parts[1].to_owned(), parts[2].to_owned(), parts[3] == "01")
}

#[track_caller]
fn ask(client: &mut Client, target: &str, fields: &str) -> u16 {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: shop.test:8080\r\n{fields}\r\n"));
    client.read_response().status
}

#[track_caller]
fn only(spans: &[Told], kind: SpanKind) -> Told {
    let mut of_kind = spans.iter().filter(|span| span.kind == kind);
    let span = of_kind.next().unwrap_or_else(|| panic!("no span of {kind:?}: {spans:?}"));
    assert!(of_kind.next().is_none(), "more than one of {kind:?}: {spans:?}");
    span.clone()
}

#[test]
fn a_request_is_a_span_and_its_try_one_below_that_the_service_is_told() {
    let (mut backend, mut collector) = (Backend::ok(), Collector::start());
    let rest = collector.config("service_name = \"edge\"\nattributes = \"deployment.environment.name=test,a=b%2Cc\"");
    let gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    let fields = "User-Agent: tests/1\r\nAuthorization: Bearer hunter2\r\nX-Request-Id: req-00000001\r\n";
    assert_eq!(ask(&mut client, "/a/b?token=hunter2", fields), 200);
    let (trace, span, is_sampled) = told_parent(&backend.request());
    assert!(is_sampled);
    let spans = collector.trace(&trace, 2);
    let (request, attempt) = (only(&spans, SpanKind::Server), only(&spans, SpanKind::Client));
    assert_eq!((request.parent.as_str(), &attempt.parent, &attempt.id), ("", &request.id, &span));
    assert_eq!((request.name.as_str(), attempt.name.as_str()), ("GET /*", "GET"));
    assert!(request.began_ns <= attempt.began_ns && attempt.ended_ns <= request.ended_ns, "{spans:?}");
    assert!(!request.has_failed && !attempt.has_failed && request.flags & 1 == 1);
    let instance = backend.address();
    for (name, value) in [
        ("http.request.method", "GET"),
        ("url.scheme", "http"),
        ("url.path", "/a/b"),
        ("http.route", "/*"),
        ("http.response.status_code", "200"),
        ("server.address", "shop.test"),
        ("server.port", "8080"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "tests/1"),
        ("http.request.body.size", "0"),
        ("http.response.body.size", "2"),
        ("shardgate.request_id", "req-00000001"),
        ("shardgate.route", "all"),
        ("shardgate.upstream", "back"),
        ("shardgate.instance", &instance.to_string()),
        ("shardgate.attempts", "1"),
        ("error.type", ""),
    ] {
        assert_eq!(request.get(name), value, "{name}: {request:?}");
    }
    for (name, value) in [
        ("http.request.method", "GET"),
        ("url.full", &*format!("http://{instance}/a/b")),
        ("server.address", "127.0.0.1"),
        ("server.port", &instance.port().to_string()),
        ("http.response.status_code", "200"),
        ("http.request.resend_count", ""),
        ("shardgate.connection", "opened"),
    ] {
        assert_eq!(attempt.get(name), value, "{name}: {attempt:?}");
    }
    for (name, value) in [("service.name", "edge"), ("deployment.environment.name", "test"), ("a", "b,c")] {
        assert_eq!(request.resource.get(name).map(String::as_str), Some(value), "{:?}", request.resource);
    }
    for name in ["service.version", "service.instance.id", "host.name", "telemetry.sdk.name"] {
        assert!(request.resource.contains_key(name), "{:?}", request.resource);
    }
    assert!(!format!("{spans:?}").contains("hunter2"), "no credentials, no queries: {spans:?}");
    assert_eq!(gateway.access_lines(1)[0]["trace_id"], trace);

    // The next goes over the same connection, and the backend is told another span.
    assert_eq!(ask(&mut client, "/again", ""), 200);
    let (second, span, _) = told_parent(&backend.request());
    let attempt = only(&collector.trace(&second, 2), SpanKind::Client);
    assert_eq!((attempt.get("shardgate.connection"), &attempt.id), ("reused", &span));
    assert_ne!(trace, second);
}

#[test]
fn each_try_is_a_span_of_its_own_and_its_instance_is_told_that_one() {
    let mut closing = Backend::start(|conversation| conversation.read_request().map(drop));
    let (mut well, mut collector) = (Backend::ok(), Collector::start());
    let upstream = "retries_max = 2\noutlier_failures = 0\nbalance = \"round_robin\"";
    let rest = collector.config("");
    let gateway = Setup { upstream, rest: &rest, ..Setup::default() }.start(&[closing.address(), well.address()]);
    let mut client = gateway.connect();
    let both = (0..64).find_map(|_| {
        assert_eq!(ask(&mut client, "/x?a=1", ""), 200);
        let answered = well.request();
        closing.requests().pop().map(|failed| (failed, answered))
    });
    let (failed, answered) = both.expect("one in two goes to the one that closes");
    let ((trace, failed_id, _), (other, answered_id, _)) = (told_parent(&failed), told_parent(&answered));
    assert_eq!(trace, other);
    let spans = collector.trace(&trace, 3);
    let request = only(&spans, SpanKind::Server);
    let of = |id: &str| spans.iter().find(|span| span.id == id).unwrap_or_else(|| panic!("no {id}: {spans:?}"));
    let (first, second) = (of(&failed_id), of(&answered_id));
    assert_eq!((&first.parent, &second.parent), (&request.id, &request.id));
    assert_eq!((first.get("error.type"), first.has_failed), ("closed", true));
    assert_eq!((second.get("error.type"), second.has_failed), ("", false));
    assert_eq!((first.get("http.request.resend_count"), second.get("http.request.resend_count")), ("", "1"));
    assert!(first.ended_ns <= second.began_ns, "{spans:?}");
    assert_eq!((request.get("shardgate.attempts"), request.has_failed), ("2", false));
}

#[test]
fn what_is_not_sampled_is_not_recorded() {
    let (mut backend, mut collector) = (Backend::ok(), Collector::start());
    let rest = format!("{}{TRUSTING}", collector.config("sample_ratio = 0.5\nerrors = true"));
    let gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    // A trusted peer decides; of all other traces their ids do, and the services are told.
    let decided = |flags: &str| format!("traceparent: 00-{TRACE}-{PARENT}-{flags}\r\n");
    assert_eq!(ask(&mut client, "/no", &decided("00")), 200);
    assert!(!told_parent(&backend.request()).2);
    let mut sampled = BTreeSet::new();
    for _ in 0..40 {
        assert_eq!(ask(&mut client, "/x", ""), 200);
        let (trace, _, is_sampled) = told_parent(&backend.request());
        sampled.extend(is_sampled.then_some(trace));
    }
    assert_eq!(ask(&mut client, "/yes", &decided("01")), 200);
    let (trace, span, is_sampled) = told_parent(&backend.request());
    assert_eq!((trace.as_str(), is_sampled), (TRACE, true));
    sampled.insert(trace);
    let spans = collector.spans_until("all of them", |spans| spans.len() >= 2 * sampled.len());
    assert_eq!(spans.iter().map(|span| span.trace.clone()).collect::<BTreeSet<_>>(), sampled);
    let continued: Vec<_> = spans.iter().filter(|span| span.trace == TRACE).cloned().collect();
    let (request, attempt) = (only(&continued, SpanKind::Server), only(&continued, SpanKind::Client));
    assert_eq!((request.parent.as_str(), request.get("url.path"), &attempt.id), (PARENT, "/yes", &span));
    assert_eq!(request.flags & 0x300, 0x300, "its parent is another process's");
    assert_eq!(attempt.flags & 0x300, 0x100, "its parent is ours");
    let recorded = gateway.metrics().value("shardgate_trace_spans_recorded_total");
    assert_eq!(usize::try_from(recorded), Ok(spans.len()), "and nothing more was recorded");
}

#[test]
fn of_what_fails_one_span_tells_whatever_was_decided() {
    let mut backend = Backend::answering(|request| {
        if request.head.first_line.contains("/500") { b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n" } else { OK }
    });
    for (errors, count) in [("true", 2), ("false", 0)] {
        let mut collector = Collector::start();
        let rest = collector.config(&format!("sample_ratio = 0\nerrors = {errors}"));
        let away = "[upstreams.away]\ninstances = [\"127.0.0.1:9\"]\nretries_max = 0\n[[routes]]\naccess = \"public\"\npath = \"/away\"\nupstream = \"away\"\n";
        let rest = format!("{rest}{away}");
        let mut gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
        for (path, status) in [("/x", 200), ("/500", 500), ("/away", 502), ("/y", 200)] {
            assert_eq!(gateway.get(path).status, status);
        }
        assert!(backend.requests().iter().all(|request| !told_parent(request).2), "nobody else records it");
        // All that was told has been sent when it ends.
        gateway.signal(rustix::process::Signal::TERM);
        assert!(gateway.wait_exit(Duration::from_secs(20)).is_some());
        let mut spans = collector.spans_until("as many as failed", |spans| spans.len() >= count);
        spans.sort_by(|one, other| one.get("url.path").cmp(other.get("url.path")));
        assert_eq!(spans.len(), count, "{spans:?}");
        for (span, (path, status, error)) in
            spans.iter().zip([("/500", "500", "500"), ("/away", "502", "upstream_unreachable")])
        {
            assert_eq!((span.kind, span.has_failed, span.flags & 1), (SpanKind::Server, true, 0), "{span:?}");
            assert_eq!((span.get("url.path"), span.get("http.response.status_code")), (path, status));
            assert_eq!(span.get("error.type"), error, "{span:?}");
        }
    }
}

#[test]
fn what_the_end_of_the_process_cuts_is_told() {
    let backend = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.read_to_end();
        Ok(())
    });
    let mut collector = Collector::start();
    let rest = format!("[drain]\nnotice = \"0s\"\nmax = \"300ms\"\n{}", collector.config(""));
    let mut gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let mut clients: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /held HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    gateway.metrics_until("all are asked", |metrics| metrics.sum("shardgate_upstream_requests_in_flight") == 8);
    gateway.signal(rustix::process::Signal::TERM);
    assert_eq!(gateway.wait_exit(Duration::from_secs(20)), Some(3));
    let spans = collector.spans_until("requests and tries", |spans| spans.len() >= 16);
    let (requests, tries): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.kind == SpanKind::Server);
    assert_eq!((requests.len(), tries.len()), (8, 8));
    for span in requests {
        assert_eq!((span.get("http.response.status_code"), span.get("error.type")), ("503", "draining"), "{span:?}");
    }
    assert!(tries.iter().all(|span| span.get("url.full").ends_with("/held")), "{tries:?}");
    assert!(!gateway.log().contains("they are lost"), "{}", gateway.log());
}

#[test]
fn every_shard_tells_its_spans() {
    let (backend, mut collector) = (Backend::ok(), Collector::start());
    let rest = collector.config("compression = \"gzip\"\nheaders = \"api-key=of%20the%20tests\"");
    let gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let mut clients: Vec<_> = (0..64).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        assert_eq!(ask(client, "/x", ""), 200);
    }
    let spans = collector.spans_until("all of them", |spans| spans.len() >= 128);
    let requests = || spans.iter().filter(|span| span.kind == SpanKind::Server);
    let shards: BTreeSet<_> = requests().map(|span| span.get("shardgate.shard")).collect();
    assert_eq!(shards.into_iter().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    assert_eq!(spans.iter().map(|span| &span.id).collect::<BTreeSet<_>>().len(), 128, "no id stands for two");
    for (request, _) in &collector.requests {
        assert_eq!(request.head.first_line, "POST /v1/traces HTTP/1.1");
        assert_eq!(request.head.field("api-key"), Some("of the tests"));
        assert_eq!(request.head.field("content-encoding"), Some("gzip"));
    }
    assert!(!gateway.log().contains("of the tests") && !gateway.log().contains("of%20the"), "{}", gateway.log());
    gateway.metrics_until("they are counted", |metrics| {
        metrics.value("shardgate_trace_spans_exported_total") == 128
            && metrics.value("shardgate_trace_spans_waiting") == 0
    });
    assert_eq!(gateway.ask_admin("/health").json()["traces"], json!({"status": "up"}));
}

#[test]
fn a_token_is_a_span_when_it_is_checked_and_none_when_it_is_known() {
    let (backend, mut collector) = (Backend::ok(), Collector::start());
    let config = format!(
        "[runtime]\nshards = 1\n{KEYS}{}[upstreams.back]\ninstances = [\"{}\"]\n[[routes]]\npath = \"/me\"\nupstream = \"back\"\n",
        collector.config(""),
        backend.address()
    );
    let gateway = Gateway::start(&config);
    let mut client = gateway.connect();
    let bearer = format!("Authorization: Bearer {}\r\n", token(&json!({})));
    for (fields, status) in [(&*bearer, 200), (&bearer, 200), ("Authorization: Bearer no\r\n", 401), ("", 401)] {
        assert_eq!(ask(&mut client, "/me", fields), status);
    }
    let spans = collector
        .spans_until("four requests", |spans| spans.iter().filter(|span| span.kind == SpanKind::Server).count() == 4);
    let mut requests: Vec<_> = spans.iter().filter(|span| span.kind == SpanKind::Server).collect();
    requests.sort_by_key(|span| span.began_ns);
    let errors: Vec<_> = requests.iter().map(|span| (span.get("error.type"), span.has_failed)).collect();
    assert_eq!(errors, [("", false), ("", false), ("token_invalid", false), ("token_missing", false)]);
    let checks: Vec<_> = spans.iter().filter(|span| span.name == "token check").collect();
    let below: Vec<_> = checks.iter().map(|span| (&span.parent, span.has_failed, span.kind)).collect();
    assert_eq!(below, [(&requests[0].id, false, SpanKind::Internal), (&requests[2].id, true, SpanKind::Internal),]);
}

#[test]
fn a_message_for_a_service_is_a_trace_of_its_own() {
    let (mut backend, mut collector) = (Backend::ok(), Collector::start());
    let rest = format!(
        "{KEYS}[[hub.services]]\ntype_name = \"ask\"\nupstream = \"back\"\npath = \"/asked\"\n{}",
        collector.config("")
    );
    let gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let mut socket = Socket::open(&gateway, "ann");
    let mut traces = BTreeSet::new();
    for number in 0..2 {
        socket.say(&json!({ "type": "ask", "id": number.to_string(), "payload": {} }));
        let (trace, span, is_sampled) = told_parent(&backend.request());
        assert!(is_sampled && traces.insert(trace.clone()), "each has a trace of its own");
        let spans = collector.trace(&trace, 2);
        let (message, attempt) = (only(&spans, SpanKind::Consumer), only(&spans, SpanKind::Client));
        assert_eq!((&attempt.id, &attempt.parent), (&span, &message.id));
        assert_eq!((message.parent.as_str(), message.get("url.path")), ("", "/asked"));
        assert!(message.name.starts_with("message "), "{message:?}");
    }
    let opened = collector.spans_until("the handshake too", |spans| {
        spans.iter().any(|span| span.get("http.response.status_code") == "101")
    });
    assert!(opened.iter().any(|span| span.name == "GET /ws"), "{opened:?}");
}

#[test]
fn what_waits_to_be_counted_is_a_span() {
    let (backend, mut collector) = (Backend::ok(), Collector::start());
    // A request may have to wait for either of them, or for both.
    let limit = "quota = 64\nwindow = \"1d\"\n";
    let rest = format!("[limits.api]\n{limit}[limits.whole]\nkey = \"route\"\n{limit}{}", collector.config(""));
    let gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let mut clients: Vec<_> = (0..128).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    for client in &mut clients {
        client.read_response();
    }
    let spans = collector
        .spans_until("all requests", |spans| spans.iter().filter(|span| span.kind == SpanKind::Server).count() == 128);
    let waits: Vec<_> = spans.iter().filter(|span| span.name == "rate limit").collect();
    let metrics = gateway.metrics();
    let held = |limit: &str| metrics.value(&format!("shardgate_limit_held_total{{limit=\"{limit}\"}}"));
    let held = held("api") + held("whole");
    assert_eq!(spans.iter().map(|span| &span.id).collect::<BTreeSet<_>>().len(), spans.len(), "no id stands for two");
    assert!(
        !waits.is_empty() && usize::try_from(held).is_ok_and(|held| waits.len() <= held),
        "{} of {held}",
        waits.len()
    );
    for wait in waits {
        let request = spans.iter().find(|span| span.id == wait.parent).expect("it is a request's");
        assert_eq!(
            (&request.trace, request.get("error.type")),
            (&wait.trace, if wait.has_failed { "rate_limited" } else { "" })
        );
    }
}

#[test]
fn what_waits_for_the_bridge_is_a_span() {
    let mut collector = Collector::start();
    let config = format!("[accounts]\npassword_memory = \"64KiB\"\npassword_passes = 1\n{}", collector.config(""));
    let gateway = Gateway::start(&config);
    super::rows::add_ann(&gateway);
    super::rows::log_in(&gateway);
    let spans = collector.spans_until("the log-in", |spans| spans.iter().any(|span| span.name == "POST /auth/login"));
    let request = spans.iter().find(|span| span.name == "POST /auth/login").expect("it is there");
    let wait = spans.iter().find(|span| span.name == "account").expect("it waited");
    assert_eq!((&wait.trace, &wait.parent, wait.has_failed), (&request.trace, &request.id, false));
    assert!(!format!("{spans:?}").contains("a password of the tests"));
}

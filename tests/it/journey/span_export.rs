//! Collectors that hang, refuse, ask for patience, are away or come back: requests go on, what waits is bounded, and what is
//! lost is counted.
#![expect(clippy::disallowed_types, reason = "a collector is told from another thread what to answer from now on")]

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message as _;
use serde_json::json;

use super::{Setup, outcomes::nobody};
use crate::{
    backend::Backend,
    collector::{Collector, TAKEN},
    harness::{Gateway, Metrics, now},
    servers::tls::{certificate, server_config},
};

fn start(backend: &Backend, trace: &str) -> Gateway {
    Setup { rest: trace, ..Setup::default() }.start(&[backend.address()])
}

/// Asks so often, over one connection, and how long the slowest took.
#[track_caller]
fn ask(gateway: &Gateway, count: usize) -> Duration {
    let mut client = gateway.connect();
    let mut slowest = Duration::ZERO;
    for _ in 0..count {
        let began = now();
        assert_eq!(client.get("/x").status, 200);
        slowest = slowest.max(now() - began);
    }
    slowest
}

fn dropped(metrics: &Metrics, reason: &str) -> i64 {
    metrics.value(&format!("shardgate_trace_spans_dropped_total{{reason=\"{reason}\"}}"))
}

fn failures(metrics: &Metrics, reason: &str) -> i64 {
    metrics.value(&format!("shardgate_trace_exports_failed_total{{reason=\"{reason}\"}}"))
}

fn traces_health(gateway: &Gateway) -> serde_json::Value {
    gateway.ask_admin("/health").json()["traces"].clone()
}

/// How much memory a process has, in KiB.
fn memory(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the kernel tells");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn a_collector_that_hangs_costs_spans_and_nothing_else() {
    let backend = Backend::ok();
    let hangs = Collector::at(SocketAddr::from(([127, 0, 0, 1], 0)), |conversation| {
        conversation.read_to_end();
        Ok(())
    });
    let gateway = start(&backend, &hangs.config("queue_spans = 1024\ntimeout = \"200ms\""));
    ask(&gateway, 2000);
    let metrics = gateway.metrics_until("further spans are dropped", |metrics| dropped(metrics, "queue_full") > 0);
    assert!(metrics.value("shardgate_trace_spans_waiting") <= 1024);
    let before = memory(&gateway);
    let slowest = ask(&gateway, 6000);
    assert!(slowest < Duration::from_millis(200), "no request waits for a collector: {slowest:?}");
    let metrics =
        gateway.metrics_until("it is given time, and it is over", |metrics| failures(metrics, "timeout") >= 2);
    assert!(metrics.value("shardgate_trace_spans_waiting") <= 1024);
    assert_eq!(metrics.value("shardgate_trace_spans_exported_total"), 0);
    let grown = memory(&gateway).saturating_sub(before);
    assert!(grown < 2048, "12,000 spans more, and {grown} KiB");
    assert_eq!(traces_health(&gateway), json!({"status": "down", "error": "timeout"}));
    let warnings = gateway.log().lines().filter(|line| line.contains("be exported")).count();
    assert_eq!(warnings, 1, "trouble is told once: {}", gateway.log());
    // Everything that was told is in one place or another.
    gateway.metrics_until("the books are right", |metrics| {
        let lost = dropped(metrics, "queue_full") + dropped(metrics, "shard_full") + dropped(metrics, "gave_up");
        lost + metrics.value("shardgate_trace_spans_waiting") == metrics.value("shardgate_trace_spans_recorded_total")
    });
}

#[test]
fn a_collector_that_comes_later_is_told_what_waited() {
    let backend = Backend::ok();
    let address = nobody();
    let gateway = start(&backend, &format!("[trace]\nendpoint = \"http://{address}\"\n"));
    ask(&gateway, 10);
    gateway.metrics_until("nobody is there", |metrics| failures(metrics, "unreachable") > 0);
    assert_eq!(traces_health(&gateway), json!({"status": "down", "error": "unreachable"}));
    gateway.log_until("spans cannot be exported", Duration::from_secs(5));
    // One that ends its connections, so that none outlives it.
    let mut collector = Collector::at(address, |conversation| {
        conversation.read_request()?;
        conversation.send(TAKEN)
    });
    let spans = collector.spans_until("what waited", |spans| spans.len() >= 20);
    assert_eq!(spans.len(), 20);
    gateway.log_until("spans are exported again", Duration::from_secs(5));
    assert_eq!(traces_health(&gateway), json!({"status": "up"}));
    // It restarts: its connection is gone, and it has forgotten nothing that it took.
    drop(collector);
    let mut collector = Collector::at(address, |conversation| {
        loop {
            conversation.read_request()?;
            conversation.send(TAKEN)?;
        }
    });
    ask(&gateway, 10);
    let spans = collector.spans_until("the next", |spans| spans.len() >= 20);
    assert_eq!(spans.iter().map(|span| &span.id).collect::<BTreeSet<_>>().len(), 20);
}

#[test]
fn a_collector_that_asks_for_patience_is_told_again_and_no_span_twice() {
    let backend = Backend::ok();
    let asked = Arc::new(AtomicUsize::new(0));
    let mut collector = Collector::answering({
        let asked = Arc::clone(&asked);
        move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => &b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"[..],
            1 => b"HTTP/1.1 429 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
            _ => TAKEN,
        }
    });
    let gateway = start(&backend, &collector.config(""));
    let began = now();
    ask(&gateway, 5);
    gateway.metrics_until("all are taken", |metrics| metrics.value("shardgate_trace_spans_exported_total") == 10);
    assert!(now() - began >= Duration::from_secs(1), "it was waited for");
    let metrics = gateway.metrics();
    assert_eq!((failures(&metrics, "busy"), metrics.sum("shardgate_trace_spans_dropped_total")), (2, 0));
    collector.read();
    assert_eq!(collector.requests.len(), 3);
    let bodies: BTreeSet<_> = collector.requests.iter().map(|(request, _)| request.body.clone()).collect();
    assert_eq!(bodies.len(), 1, "the same again");
}

#[test]
fn what_a_collector_refuses_is_not_told_again() {
    let backend = Backend::ok();
    let is_partial = Arc::new(AtomicBool::new(false));
    let mut collector = Collector::answering({
        let is_partial = Arc::clone(&is_partial);
        move |_| {
            if !is_partial.load(Ordering::SeqCst) {
                return b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n".to_vec();
            }
            let partial = ExportTracePartialSuccess { rejected_spans: 3, error_message: "too old".to_owned() };
            let body = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
            let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            answer.extend(body);
            answer
        }
    });
    let gateway = start(&backend, &collector.config(""));
    ask(&gateway, 2);
    let metrics = gateway.metrics_until("it is refused", |metrics| dropped(metrics, "refused") == 4);
    assert_eq!((failures(&metrics, "refused"), metrics.value("shardgate_trace_spans_waiting")), (1, 0));
    gateway.log_until("it answered 400", Duration::from_secs(5));
    is_partial.store(true, Ordering::SeqCst);
    ask(&gateway, 2);
    gateway.metrics_until("some are taken", |metrics| {
        dropped(metrics, "rejected") == 3 && metrics.value("shardgate_trace_spans_exported_total") == 1
    });
    let line = gateway.log_until("the collector took some spans only", Duration::from_secs(5));
    assert!(line.contains("\"rejected\":3") && line.contains("\"detail\":\"too old\""), "{line}");
    assert_eq!(line.matches("\"message\":").count(), 1, "what others say has a field of its own: {line}");
    collector.read();
    assert_eq!(collector.requests.len(), 2);
}

#[test]
fn a_reload_turns_the_export_on_and_off() {
    let (backend, mut collector) = (Backend::ok(), Collector::start());
    let config = |trace: &str| Setup { rest: trace, ..Setup::default() }.config(&[backend.address()]);
    let gateway = Gateway::start(&config(""));
    assert_eq!(traces_health(&gateway), json!({"status": "disabled"}));
    ask(&gateway, 3);
    assert_eq!(gateway.metrics().value("shardgate_trace_spans_recorded_total"), 0, "nobody wants them");
    let reload = |trace: &str, nth: usize| {
        gateway.rewrite_config(&config(trace));
        gateway.signal(rustix::process::Signal::HUP);
        gateway.log_until_nth("every shard runs the configuration", nth, Duration::from_secs(10));
    };
    reload(&collector.config(""), 2);
    ask(&gateway, 3);
    assert_eq!(collector.spans_until("they go out", |spans| spans.len() >= 6).len(), 6);
    reload("", 3);
    let recorded = gateway.metrics().value("shardgate_trace_spans_recorded_total");
    ask(&gateway, 3);
    assert_eq!(gateway.metrics().value("shardgate_trace_spans_recorded_total"), recorded);
    assert_eq!(traces_health(&gateway), json!({"status": "disabled"}));
}

#[test]
fn the_variables_of_opentelemetry_hold() {
    let (backend, mut collector) = (Backend::ok(), Collector::start());
    let address = collector.address();
    let variables = |more: &[(&'static str, &'static str)]| {
        let endpoint = format!("http://{address}/base/");
        let more: Vec<_> = more.to_vec();
        move |command: &mut Command| {
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).envs(more);
        }
    };
    let config = Setup::default().config(&[backend.address()]);
    let gateway = Gateway::start_as(
        &config,
        variables(&[
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "5000"),
            ("OTEL_SERVICE_NAME", "from-the-environment"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=beaten,team=edge"),
            ("OTEL_TRACES_SAMPLER", "always_on"),
        ]),
    );
    ask(&gateway, 1);
    let spans = collector.spans_until("two spans", |spans| spans.len() >= 2);
    assert_eq!(spans[0].resource["service.name"], "from-the-environment");
    assert_eq!(spans[0].resource["team"], "edge");
    let (request, _) = &collector.requests[0];
    assert_eq!(request.head.first_line, "POST /base/v1/traces HTTP/1.1");
    assert_eq!((request.head.field("x-tenant"), request.head.field("content-encoding")), (Some("a b"), Some("gzip")));
    for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_TRACES_SAMPLER", "always_off")]
    {
        let gateway = Gateway::start_as(&config, variables(&[off]));
        ask(&gateway, 1);
        assert_eq!(gateway.metrics().value("shardgate_trace_spans_recorded_total"), 0, "{off:?}");
    }
    let https = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://127.0.0.1:9/v1/traces"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/there/is/none.pem"),
    ];
    let mut gateway = Gateway::launch(&config, variables(&https));
    assert_ne!(gateway.wait_exit(Duration::from_secs(20)), Some(0));
    assert!(gateway.log().contains("ca_file is"), "{}", gateway.log());
    let mut gateway = Gateway::launch(&config, variables(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]));
    assert_eq!(gateway.wait_exit(Duration::from_secs(20)), Some(2));
    assert!(
        gateway.log().contains("OTEL_EXPORTER_OTLP_PROTOCOL is \\\"grpc\\\"")
            || gateway.log().contains("OTEL_EXPORTER_OTLP_PROTOCOL is \"grpc\""),
        "{}",
        gateway.log()
    );
}

/// Takes TLS connections with the certificate of this name, and passes each request on to a collector in clear text.
fn terminate(directory: &Path, name: &str, collector: SocketAddr) -> SocketAddr {
    let config = server_config(directory, name);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let config = Arc::clone(&config);
            std::thread::spawn(move || pass_on(stream, config, collector));
        }
    });
    address
}

/// One connection, request by request; each answer of the collector is a head without a body.
fn pass_on(stream: TcpStream, config: Arc<rustls::ServerConfig>, collector: SocketAddr) -> io::Result<()> {
    let session = rustls::ServerConnection::new(config).map_err(io::Error::other)?;
    let (mut client, mut server) = (rustls::StreamOwned::new(session, stream), TcpStream::connect(collector)?);
    let mut buffer = vec![0; 64 * 1024];
    server.set_read_timeout(Some(Duration::from_millis(20)))?;
    loop {
        let read = client.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        server.write_all(&buffer[..read])?;
        match server.read(&mut buffer) {
            Ok(answered) => client.write_all(&buffer[..answered])?,
            // The request is not whole yet.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn a_collector_over_tls_is_known_by_its_certificate() {
    let directory = tempfile::tempdir().expect("a folder");
    for name in ["right", "other"] {
        if certificate(directory.path(), name).is_none() {
            return;
        }
    }
    let (backend, mut collector) = (Backend::ok(), Collector::start());
    let address = terminate(directory.path(), "right", collector.address());
    let trusting = |name: &str, host: &str| {
        let (file, port) = (directory.path().join(format!("{name}.crt")), address.port());
        let endpoint = format!("endpoint = \"https://{host}:{port}\"\nca_file = \"{}\"\n", file.display());
        start(&backend, &format!("[trace]\nheaders = \"api-key=hunter2\"\n{endpoint}"))
    };
    // Of nobody who is trusted, and for another name.
    for (name, host) in [("other", "127.0.0.1"), ("right", "localhost")] {
        let gateway = trusting(name, host);
        ask(&gateway, 1);
        gateway.metrics_until("it is not trusted", |metrics| failures(metrics, "unreachable") > 0);
        let log = gateway.log_until("certificate", Duration::from_secs(5));
        assert!(!log.contains("hunter2"), "{log}");
    }
    let gateway = trusting("right", "127.0.0.1");
    ask(&gateway, 1);
    assert_eq!(collector.spans_until("two spans", |spans| spans.len() >= 2).len(), 2, "nobody else was told any");
    gateway.metrics_until("they are taken", |metrics| metrics.value("shardgate_trace_spans_exported_total") == 2);
}

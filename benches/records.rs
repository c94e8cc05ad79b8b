//! What a request pays for being recorded: its log line, its ids, its counters.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use shardgate::telemetry::ids::{RequestId, TRACEPARENT_LENGTH, TraceContext};
use shardgate::telemetry::log::Format;
use shardgate::telemetry::metrics::{Counters, Finished};
use shardgate::telemetry::record::{Record, RouteNames, TimestampCache};
use shardgate::telemetry::slots::MetricSlots;
use shardgate::telemetry::spans::{LastTry, Recording, Span, SpanFacts, SpanLog, SpanNames, SpanTexts};

fn record(place: &RouteNames) -> Record<'_> {
    Record {
        request_id: b"4bf92f3577b34da6a3ce929d0e",
        client_text: b"192.0.2.7",
        method: b"GET",
        path: b"/api/events/carts/1234567/items",
        host: b"api.example.com",
        user_agent:
            b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36",
        place,
        instance: b"10.0.12.7:8081",
        attempts: 1,
        reused: true,
        protocol: "HTTP/1.1",
        status: 200,
        response_bytes: 1024,
        unix_ms: 1_795_428_969_007,
        total_us: 812,
        gateway_us: 41,
        upstream_us: 771,
        shard: 3,
        trace_id: [0xab; 16],
        ..Record::BLANK
    }
}

fn lines(criterion: &mut Criterion) {
    let mut out = Vec::with_capacity(64 * 1024);
    let mut times = TimestampCache::default();
    let place = RouteNames::new("events", "ingestion");
    let mut bench = |name: &str, record: Record<'_>| {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                black_box(&record).write_line(Format::Json, &mut times, &mut out);
                black_box(out.len())
            });
        });
    };
    bench("line", record(&place));
    bench("line, hostile bytes", Record { path: &[b'"'; 2048], user_agent: &[0xff; 256], ..record(&place) });
}

fn ids(criterion: &mut Criterion) {
    let mut rng = fastrand::Rng::with_seed(1);
    criterion.bench_function("request id, new", |bencher| bencher.iter(|| RequestId::generate(black_box(&mut rng))));
    criterion.bench_function("request id, accepted", |bencher| {
        bencher.iter(|| RequestId::accept(black_box(b"0b2f6f3e-3d4c-4c43-9f0b-8f5b1c0e6a55")));
    });
    criterion.bench_function("traceparent, continued", |bencher| {
        let mut out = [0; TRACEPARENT_LENGTH];
        bencher.iter(|| {
            let incoming = black_box(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
            if let Some(context) = TraceContext::parse_traceparent(incoming) {
                context.child(&mut rng).write(&mut out);
            }
            black_box(out)
        });
    });
}

fn counters(criterion: &mut Criterion) {
    let mut counters = Counters::default();
    let route = MetricSlots::default().claim("events");
    counters.make_room(2, 2);
    let mut total_us = 0;
    criterion.bench_function("counters", |bencher| {
        bencher.iter(|| {
            total_us = (total_us + 77) % 100_000;
            counters.finish(black_box(&Finished {
                route,
                status: 200,
                total_us,
                gateway_us: 41,
                request_bytes: 0,
                response_bytes: 1024,
            }));
        });
    });
    black_box(counters);
}

/// The spans of one proxied request: its own, and that of its try.
fn spans(criterion: &mut Criterion) {
    let mut log = SpanLog::default();
    log.set(Recording { is_on: true, with_errors: false });
    let names = SpanNames::new("events", "/api/events/*", "ingestion");
    let texts = SpanTexts {
        names: names.all(),
        method: b"GET",
        path: b"/api/events/carts/1234567/items",
        instance: b"10.0.12.7:8081",
        host: b"api.example.com",
        user_agent:
            b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36",
        request_id: b"4bf92f3577b34da6a3ce929d0e",
    };
    let last_try = LastTry {
        id: [7; 8],
        began_ns: 1_795_428_969_006_000_000,
        status: 200,
        has_failed: false,
        reason: "",
        attempt: 1,
        is_reused: true,
        connect_us: 0,
    };
    let facts = SpanFacts { status: 200, ended_ns: 1_795_428_969_007_000_000, ..SpanFacts::BLANK };
    criterion.bench_function("spans of a request", |bencher| {
        bencher.iter(|| {
            log.record_both(black_box(&Span { facts, texts }), black_box(Some(last_try)), b"/carts/1234567/items");
            while let Some(batch) = log.take(false) {
                log.give_back(batch);
            }
        });
    });
}

criterion_group!(benches, lines, ids, counters, spans);
criterion_main!(benches);

//! The one table, and the document made of it.

use std::fmt::Write as _;
use std::path::Path;

use super::*;
use crate::telemetry::slots::OTHER;

fn tables() -> [(&'static str, &'static [Metric]); 9] {
    [
        ("Connections, requests, shards", Counters::METRICS),
        ("Routes", RouteCounters::METRICS),
        ("Upstreams", UpstreamCounters::METRICS),
        ("Probes", ProbeCounters::METRICS),
        ("Instances", InstanceCounters::METRICS),
        ("Limits", LimitCounters::METRICS),
        ("Names of instances", NameCounters::METRICS),
        ("The process", ProcessCounters::METRICS),
        ("ClickHouse", ClickhouseCounters::METRICS),
    ]
}

/// `docs/metrics.md` as the table has it, below what `found` says before its first table.
fn documentation(found: &str) -> String {
    let mut text = found.split_once("\n## ").map_or(found, |(opening, _)| opening).to_owned();
    for (title, metrics) in tables() {
        let _ = write!(text, "\n## {title}\n\n| metric | type | labels | what it says |\n| --- | --- | --- | --- |\n");
        for metric in metrics {
            let values = match metric.by {
                Some((label, Values::Fixed(values))) => Some(format!("`{label}`: {}", values.join(", "))),
                Some((label, Values::RejectCodes)) => Some(format!("`{label}`: the codes of `docs/errors.md`")),
                Some((labels, Values::Free)) => Some(format!("`{}`", labels.replace(", ", "`; `"))),
                None => None,
            };
            let labels: Vec<_> = metric.per.labels().iter().map(|label| format!("`{label}`")).chain(values).collect();
            let (name, kind, help) = (metric.name, metric.kind.word(), metric.help);
            let _ = writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join("; "));
        }
    }
    text
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a switch for whoever runs the tests, not configuration")]
fn the_documentation_follows_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let found = std::fs::read_to_string(&path).expect("docs/metrics.md");
    let expected = documentation(&found);
    if std::env::var("UPDATE_DOCS").is_ok_and(|value| value == "1") {
        std::fs::write(&path, &expected).expect("docs/ is writable");
        return;
    }
    assert!(found == expected, "docs/metrics.md is not what the table says; UPDATE_DOCS=1 cargo test rewrites it");
}

#[test]
fn names_keep_prometheus_conventions() {
    let mut seen = std::collections::HashSet::new();
    for metric in tables().into_iter().flat_map(|(_, metrics)| metrics) {
        let name = metric.name;
        assert!(seen.insert(name), "{name} is declared twice");
        assert!(name.starts_with("shardgate_"), "{name} starts with shardgate_");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}: [a-z_] only");
        assert_eq!(metric.kind == MetricKind::Counter, name.ends_with("_total"), "{name}: counters end in _total");
        assert_eq!(
            metric.kind == MetricKind::Info,
            name.ends_with("_info"),
            "{name}: what is said in labels ends in _info"
        );
        assert!(metric.kind != MetricKind::Histogram || name.ends_with("_seconds"), "{name}: the unit is last");
        assert!(metric.help.ends_with('.'), "{name}: the help is a sentence");
    }
}

#[test]
fn kinds_suit_their_fields() {
    fn check<const N: usize>(metrics: &[Metric], values: [Value<'_>; N]) {
        for (metric, value) in metrics.iter().zip(values) {
            let suits = match value {
                Value::Count(_) => metric.kind == MetricKind::Counter && metric.by.is_none(),
                Value::Level(_) => metric.kind == MetricKind::Gauge && metric.by.is_none(),
                Value::Counts(counts) => match metric.by {
                    Some((_, Values::Fixed(values))) => {
                        metric.kind == MetricKind::Counter && counts.len() == values.len()
                    }
                    Some((_, Values::RejectCodes)) => counts.len() == REJECT_CODES_MAX,
                    Some((_, Values::Free)) | None => false,
                },
                Value::Sparse(values) => {
                    metric.kind == MetricKind::Gauge
                        && matches!(metric.by, Some((_, Values::Fixed(names))) if names.len() == values.len())
                }
                Value::Times(values) => {
                    metric.kind == MetricKind::Counter
                        && matches!(metric.by, Some((_, Values::Fixed(names))) if names.len() == values.len())
                }
                Value::Time(_) => metric.by.is_none() && metric.kind != MetricKind::Histogram,
                Value::Facts(_) => metric.kind == MetricKind::Info && matches!(metric.by, Some((_, Values::Free))),
                Value::Requests(_) | Value::Own(_) | Value::Lifetimes(_) => {
                    metric.kind == MetricKind::Histogram && metric.by.is_none()
                }
            };
            assert!(suits, "{}: {:?} of {value:?}", metric.name, metric.kind);
        }
    }
    check(Counters::METRICS, Counters::default().values());
    check(RouteCounters::METRICS, RouteCounters::default().values());
    check(UpstreamCounters::METRICS, UpstreamCounters::default().values());
    check(ProbeCounters::METRICS, ProbeCounters::default().values());
    check(InstanceCounters::METRICS, InstanceCounters::default().values());
    check(LimitCounters::METRICS, LimitCounters::default().values());
    check(NameCounters::METRICS, NameCounters::default().values());
    check(ProcessCounters::METRICS, ProcessCounters::default().values());
    check(ClickhouseCounters::METRICS, ClickhouseCounters::default().values());
}

#[test]
fn a_request_is_counted_where_it_belongs() {
    let mut slots = MetricSlots::default();
    let events = slots.claim("events");
    let mut counters = Counters::default();
    let finished =
        |route, status| Finished { route, status, total_us: 500, gateway_us: 20, request_bytes: 3, response_bytes: 5 };
    for status in [101, 200, 204, 302, 404, 599, 0, 600, 999] {
        counters.finish(&finished(events, status));
    }
    counters.finish(&finished(OTHER, 404));
    counters.reject(0);
    counters.reject(REJECT_CODES_MAX);
    assert_eq!(counters.requests, 10);
    assert_eq!(counters.route(events).requests, [1, 2, 1, 1, 1, 3]);
    assert_eq!(counters.route(OTHER).requests, [0, 0, 0, 1, 0, 0]);
    assert_eq!((counters.route(events).duration.count(), counters.gateway_duration.count()), (9, 10));
    assert_eq!((counters.route(events).request_bytes, counters.route(events).response_bytes), (27, 45));
    assert_eq!(counters.rejects.iter().sum::<u64>(), 1, "an unknown code is no reason to panic");
}

#[test]
fn shards_that_know_different_names_add_up() {
    let mut slots = MetricSlots::default();
    let (first, second) = (slots.claim("first"), slots.claim("second"));
    let (mut one, mut other) = (Counters::default(), Counters::default());
    one.upstream(first).retries_refused = 1;
    one.connections_open = 4;
    other.upstream(first).retries_refused = 2;
    other.upstream(second).retries_refused = 5;
    other.connections_open = 3;
    let mut backwards = other.clone();
    backwards.merge(&one);
    one.merge(&other);
    assert_eq!([one.upstream(first).retries_refused, one.upstream(second).retries_refused], [3, 5]);
    assert_eq!(one.connections_open, 7);
    assert_eq!(format!("{one:?}"), format!("{backwards:?}"));
}

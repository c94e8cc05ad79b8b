//! The counters as Prometheus reads them: text exposition format 0.0.4.
//!
//! It runs on the control thread over copies of the shards' counters and knows nothing of how they got there.

use std::fmt::Write as _;

use super::clickhouse::ClickhouseCounters;
use super::histogram::{Histogram, Ladder};
use super::metrics::{
    Counters, LimitCounters, NameCounters, Names, ProbeCounters, ProcessCounters, RouteCounters, UpstreamCounters,
};
use super::table::{Metric, MetricKind, Per, Value, Values};

/// The `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One shard's copy of its counters.
#[derive(Clone, Debug)]
pub struct ShardCounters {
    /// The shard's number.
    pub shard: u16,
    /// What it counted.
    pub counters: Counters,
}

/// Appends all metrics. `followed` are the names of instances, each once.
pub fn write_prometheus(
    shards: &[ShardCounters],
    process: &ProcessCounters,
    followed: &[(String, NameCounters)],
    names: &Names,
    out: &mut String,
) {
    let mut sum = Counters::default();
    for shard in shards {
        sum.merge(&shard.counters);
    }
    let values: Vec<_> = shards.iter().map(|shard| (shard.shard.to_string(), shard.counters.values())).collect();
    for ((index, metric), value) in Counters::METRICS.iter().enumerate().zip(sum.values()) {
        let mut family = Family::begin(out, metric, names);
        if metric.per == Per::Shard {
            for (shard, values) in &values {
                family.series(shard, values[index]);
            }
        } else {
            family.series("", value);
        }
    }
    for (metric, value) in ProcessCounters::METRICS.iter().zip(process.values()) {
        Family::begin(out, metric, names).series("", value);
    }
    for (index, metric) in ClickhouseCounters::METRICS.iter().enumerate() {
        let mut family = Family::begin(out, metric, names);
        if let Some(counters) = &process.clickhouse {
            family.series("", counters.values()[index]);
        }
    }
    let routes: Vec<_> = sum.routes().iter().map(RouteCounters::values).collect();
    write_named(RouteCounters::METRICS, names.routes.names(), &routes, names, out);
    let upstreams: Vec<_> = sum.upstreams().iter().map(UpstreamCounters::values).collect();
    write_named(UpstreamCounters::METRICS, names.upstreams.names(), &upstreams, names, out);
    for (index, metric) in ProbeCounters::METRICS.iter().enumerate() {
        let mut family = Family::begin(out, metric, names);
        for (upstream, counters) in names.upstreams.names().iter().zip(&process.probes) {
            if let Some(counters) = counters {
                family.series(upstream, counters.values()[index]);
            }
        }
    }
    let limits: Vec<_> = sum.limits().iter().map(LimitCounters::values).collect();
    write_named(LimitCounters::METRICS, names.limits.names(), &limits, names, out);
    let (owners, values): (Vec<_>, Vec<_>) =
        followed.iter().map(|(name, counters)| (name.clone(), counters.values())).unzip();
    write_named(NameCounters::METRICS, &owners, &values, names, out);
}

/// Metrics of which each name has a series of its own.
fn write_named<const N: usize>(
    metrics: &[Metric],
    owners: &[String],
    values: &[[Value<'_>; N]],
    names: &Names,
    out: &mut String,
) {
    for (index, metric) in metrics.iter().enumerate() {
        let mut family = Family::begin(out, metric, names);
        for (owner, values) in owners.iter().zip(values) {
            family.series(owner, values[index]);
        }
    }
}

/// All series of one metric: the format wants them in one group below their `# TYPE`.
struct Family<'a> {
    out: &'a mut String,
    metric: &'a Metric,
    names: &'a Names,
}

impl<'a> Family<'a> {
    fn begin(out: &'a mut String, metric: &'a Metric, names: &'a Names) -> Self {
        out.push_str("# HELP ");
        out.push_str(metric.name);
        out.push(' ');
        push_escaped(out, metric.help, false);
        out.push_str("\n# TYPE ");
        out.push_str(metric.name);
        out.push(' ');
        out.push_str(metric.kind.word());
        out.push('\n');
        debug_assert!(metric.kind != MetricKind::Histogram || metric.by.is_none(), "a histogram has one label at most");
        Self { out, metric, names }
    }

    /// The series of one owner: a shard, a route, an upstream, or with an empty name the process.
    fn series(&mut self, owner: &str, value: Value<'_>) {
        match value {
            Value::Count(count) => self.sample("", owner, None, count),
            Value::Level(level) => self.sample("", owner, None, level),
            Value::Counts(counts) => {
                let Some((label, values)) = self.metric.by else { return };
                let values = match values {
                    Values::Fixed(values) => values,
                    Values::RejectCodes => self.names.reject_codes,
                };
                for (value, count) in values.iter().zip(counts) {
                    self.sample("", owner, Some((label, value)), count);
                }
            }
            Value::Requests(histogram) => self.histogram(owner, histogram),
            Value::Lifetimes(histogram) => self.histogram(owner, histogram),
            Value::Own(histogram) => self.histogram(owner, histogram),
        }
    }

    fn histogram<L: Ladder>(&mut self, owner: &str, histogram: &Histogram<L>) {
        for (bound, count) in histogram.cumulative() {
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| seconds(u64::from(bound)));
            self.sample("_bucket", owner, Some(("le", &bound)), count);
        }
        self.sample("_sum", owner, None, seconds(histogram.sum_us()));
        self.sample("_count", owner, None, histogram.count());
    }

    fn sample(&mut self, suffix: &str, owner: &str, by: Option<(&str, &str)>, value: impl std::fmt::Display) {
        self.out.push_str(self.metric.name);
        self.out.push_str(suffix);
        let mut before = '{';
        for (label, text) in self.metric.per.label().map(|label| (label, owner)).into_iter().chain(by) {
            self.out.push(before);
            self.out.push_str(label);
            self.out.push_str("=\"");
            push_escaped(self.out, text, true);
            self.out.push('"');
            before = ',';
        }
        if before == ',' {
            self.out.push('}');
        }
        // Writing to a `String` cannot fail.
        let _ = writeln!(self.out, " {value}");
    }
}

/// Microseconds as seconds, without an error of rounding: `0.0002`, `60`, `1.000001`.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Escapes what the format reserves: backslash and newline everywhere, quotes in labels.
fn push_escaped(out: &mut String, text: &str, in_label: bool) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if in_label => out.push_str("\\\""),
            _ => out.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::process::{Command, Stdio};

    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;
    use crate::telemetry::metrics::{Finished, Outcome, Refusal, Reload};

    /// Two shards that counted something of everything, with names that need escapes.
    fn scraped() -> String {
        let mut names = Names { reject_codes: &["not_found", "rate_limited"], ..Names::default() };
        let route = names.routes.claim("events");
        let upstream = names.upstreams.claim("in\"ges\\ti\non");
        let shards = [0, 1].map(|shard| {
            let mut counters = Counters::default();
            counters.connections_accepted = 3;
            counters.connections_refused[Refusal::Limit.index()] = 1;
            counters.connections_open = 2;
            counters.loop_lag.observe_us(7);
            counters.reject(1);
            for (status, total_us) in [(200, 150), (503, 2_000_001), (0, 90_000_000)] {
                let bytes = u64::from(status);
                counters.finish(&Finished {
                    route,
                    status,
                    total_us,
                    gateway_us: 12,
                    request_bytes: bytes,
                    response_bytes: bytes,
                });
            }
            counters.upstream(upstream).requests[Outcome::TimedOut.index()] += 1;
            counters.upstream(upstream).requests_in_flight -= i64::from(shard);
            ShardCounters { shard, counters }
        });
        let mut process = ProcessCounters::default();
        process.config_reloads[Reload::Refused.index()] = 2;
        let mut out = String::new();
        let followed = [("a.test".to_owned(), NameCounters { addresses: 3, age: 7, failures: 2 })];
        write_prometheus(&shards, &process, &followed, &names, &mut out);
        out
    }

    /// One sample: the name, the labels as they stand, the value.
    fn sample(line: &str) -> (&str, &str, f64) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) =
            series.strip_suffix('}').map_or((series, ""), |open| open.split_once('{').expect("a brace"));
        (name, labels, value.parse().unwrap_or_else(|_| panic!("{line}: a number")))
    }

    /// The labels one by one, their values unescaped; panics at anything that the format does not allow.
    fn labels(mut text: &str) -> Vec<(String, String)> {
        let mut labels = Vec::new();
        while !text.is_empty() {
            let (name, rest) = text.split_once("=\"").expect("a quoted value");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            let (mut value, mut characters) = (String::new(), rest.chars());
            loop {
                match characters.next().expect("a closing quote") {
                    '"' => break,
                    '\\' => value.push(match characters.next() {
                        Some('n') => '\n',
                        Some(plain @ ('\\' | '"')) => plain,
                        other => panic!("{rest}: escape of {other:?}"),
                    }),
                    character => value.push(character),
                }
            }
            labels.push((name.to_owned(), value));
            text = characters.as_str();
            text = text.strip_prefix(',').unwrap_or(text);
        }
        labels
    }

    /// What the format asks of a text; returns all series.
    fn check_format(text: &str) -> HashMap<String, f64> {
        let mut seen = HashMap::new();
        let mut families = HashSet::new();
        let (mut family, mut kind, mut cumulative) = (String::new(), String::new(), 0.0);
        let mut lines = text.strip_suffix('\n').expect("a last newline").lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split_once(' ').expect("a sentence").0.to_owned();
                assert!(families.insert(family.clone()), "{family} in one group only");
                let next = lines.next().unwrap_or_default();
                kind = next.strip_prefix(&format!("# TYPE {family} ")).unwrap_or_else(|| panic!("{next}")).to_owned();
                assert!(["counter", "gauge", "histogram"].contains(&&*kind), "{kind}");
                continue;
            }
            let (name, written, value) = sample(line);
            let labels = labels(written);
            let bound = labels.iter().find(|(name, _)| name == "le").map(|(_, bound)| &**bound);
            match (name.strip_prefix(&*family), &*kind) {
                (Some(""), "counter" | "gauge") | (Some("_sum"), "histogram") => assert_eq!(bound, None),
                (Some("_bucket"), "histogram") => {
                    assert!(value >= cumulative, "{line}: buckets are cumulative");
                    cumulative = if bound == Some("+Inf") { 0.0 } else { value };
                }
                (Some("_count"), "histogram") => {
                    let owner = if written.is_empty() { String::new() } else { format!("{written},") };
                    assert_eq!(Some(&value), seen.get(&format!("{family}_bucket{{{owner}le=\"+Inf\"}}")), "{line}");
                }
                other => panic!("{line} belongs to {family}: {other:?}"),
            }
            let series = line.rsplit_once(' ').expect("a value").0;
            assert_eq!(seen.insert(series.to_owned(), value), None, "{series} once only");
        }
        seen
    }

    #[test]
    fn the_text_keeps_the_format() {
        let seen = check_format(&scraped());
        let value = |series: &str| seen.get(series).copied();
        assert_eq!(value("shardgate_connections_accepted_total"), Some(6.0), "shards are added up");
        assert_eq!(value(r#"shardgate_connections_open{shard="1"}"#), Some(2.0), "or stand apart");
        assert_eq!(value(r#"shardgate_loop_lag_seconds_bucket{shard="0",le="0.00001"}"#), Some(1.0));
        assert_eq!(value(r#"shardgate_rejects_total{code="rate_limited"}"#), Some(2.0));
        assert_eq!(value(r#"shardgate_requests_total{route="events",status="none"}"#), Some(2.0));
        assert_eq!(value(r#"shardgate_request_duration_seconds_sum{route="events"}"#), Some(184.000_302));
        assert_eq!(value(r#"shardgate_upstream_requests_in_flight{upstream="in\"ges\\ti\non"}"#), Some(-1.0));
        assert_eq!(value(r#"shardgate_config_reloads_total{result="refused"}"#), Some(2.0));
    }

    #[test]
    fn one_family_in_full() {
        let text = scraped();
        let family: Vec<_> = text.lines().filter(|line| line.contains("shardgate_request_duration_seconds")).collect();
        expect![[r#"
            # HELP shardgate_request_duration_seconds Time from a request's first byte to its answer's last.
            # TYPE shardgate_request_duration_seconds histogram
            shardgate_request_duration_seconds_bucket{route="other",le="0.0001"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.0002"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.0005"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.001"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.002"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.005"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.01"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.02"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.05"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.1"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.2"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="0.5"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="1"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="2"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="5"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="10"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="20"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="60"} 0
            shardgate_request_duration_seconds_bucket{route="other",le="+Inf"} 0
            shardgate_request_duration_seconds_sum{route="other"} 0
            shardgate_request_duration_seconds_count{route="other"} 0
            shardgate_request_duration_seconds_bucket{route="events",le="0.0001"} 0
            shardgate_request_duration_seconds_bucket{route="events",le="0.0002"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="0.0005"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="0.001"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="0.002"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="0.005"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="0.01"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="0.02"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="0.05"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="0.1"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="0.2"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="0.5"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="1"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="2"} 2
            shardgate_request_duration_seconds_bucket{route="events",le="5"} 4
            shardgate_request_duration_seconds_bucket{route="events",le="10"} 4
            shardgate_request_duration_seconds_bucket{route="events",le="20"} 4
            shardgate_request_duration_seconds_bucket{route="events",le="60"} 4
            shardgate_request_duration_seconds_bucket{route="events",le="+Inf"} 6
            shardgate_request_duration_seconds_sum{route="events"} 184.000302
            shardgate_request_duration_seconds_count{route="events"} 6"#]]
        .assert_eq(&family.join("\n"));
    }

    #[test]
    fn prometheus_own_parser_reads_the_text() {
        const PARSE: &str = "import sys; from prometheus_client.parser import text_string_to_metric_families as parse; \
            print(sum(len(family.samples) for family in parse(sys.stdin.read())))";
        let python = |code: &str| {
            let mut command = Command::new("python3");
            command.args(["-c", code]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            command
        };
        if !python("import prometheus_client.parser").status().is_ok_and(|status| status.success()) {
            return; // The checker above stands alone where Python has no such parser.
        }
        let text = scraped();
        let mut parser = python(PARSE).spawn().expect("it ran a moment ago");
        let written = std::io::Write::write_all(&mut parser.stdin.take().expect("piped"), text.as_bytes());
        written.expect("it reads");
        let output = parser.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), check_format(&text).len().to_string());
    }

    #[test]
    fn times_are_exact() {
        let times = [0, 1, 10, 200, 1_000_000, 1_000_001, 60_000_000].map(seconds);
        expect!["0 0.000001 0.00001 0.0002 1 1.000001 60"].assert_eq(&times.join(" "));
    }

    proptest! {
        #[test]
        fn any_name_is_read_back(name in any::<String>()) {
            let mut names = Names::default();
            names.routes.claim(&name);
            let mut counters = Counters::default();
            counters.make_room(2, 1);
            let mut out = String::new();
            let shards = [ShardCounters { shard: 0, counters }];
            write_prometheus(&shards, &ProcessCounters::default(), &[], &names, &mut out);
            let line = out.split('\n').rfind(|line| line.starts_with("shardgate_request_body_bytes_total"));
            let (_, written, _) = sample(line.expect("a series"));
            prop_assert_eq!(labels(written), [("route".to_owned(), names.routes.names().last().cloned().expect("one"))]);
        }
    }
}

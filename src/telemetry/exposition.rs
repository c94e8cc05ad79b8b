//! The counters as Prometheus reads them: text exposition format 0.0.4.
//!
//! It runs on the control thread over copies of the shards' counters and knows nothing of how they got there.

use std::fmt::Write as _;

use super::histogram::{Histogram, Ladder};
use super::metrics::{
    Counters, Kind, Metric, Names, Per, ProcessCounters, RouteCounters, UpstreamCounters, Value, Values,
};

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

/// Appends all metrics.
pub fn write_prometheus(shards: &[ShardCounters], process: &ProcessCounters, names: &Names, out: &mut String) {
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
    let routes: Vec<_> = sum.routes().iter().map(RouteCounters::values).collect();
    write_named(RouteCounters::METRICS, names.routes.names(), &routes, names, out);
    let upstreams: Vec<_> = sum.upstreams().iter().map(UpstreamCounters::values).collect();
    write_named(UpstreamCounters::METRICS, names.upstreams.names(), &upstreams, names, out);
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
        debug_assert!(metric.kind != Kind::Histogram || metric.by.is_none(), "a histogram has one label at most");
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

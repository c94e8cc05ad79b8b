//! The counters as Prometheus reads them: text exposition format 0.0.4, or `OpenMetrics` 1.0.
//!
//! It runs on the control thread over what the shards have told and knows nothing of how that got there.

use std::{cell::Cell, fmt::Write as _};

use super::exemplars::{Exemplar, Merged};
use super::format::Format;
use super::histogram::{Histogram, Ladder};
use super::metrics::{
    ClickhouseCounters, Counters, InstanceCounters, LimitCounters, NameCounters, Names, ProbeCounters, ProcessCounters,
    RouteCounters, UpstreamCounters,
};
use super::table::{Metric, MetricKind, Per, Value, Values};

/// What one shard has told of its counters.
#[derive(Clone, Copy, Debug)]
pub struct ShardCounters<'a> {
    /// The shard's number.
    pub shard: u16,
    /// What it counted.
    pub counters: &'a Counters,
}

/// An instance that has series.
#[derive(Clone, Debug)]
pub struct InstanceSeries {
    /// Its upstream.
    pub upstream: String,
    /// Where it is, and by which name.
    pub address: String,
    /// Whether it is an instance still. Of those that have gone only what was counted is told.
    pub is_there: bool,
    /// What is published of it.
    pub counters: InstanceCounters,
}

/// All that is told in a scrape.
#[derive(Clone, Copy, Debug)]
pub struct Scrape<'a> {
    /// The shards that have told.
    pub shards: &'a [ShardCounters<'a>],
    /// What the control thread counts.
    pub process: &'a ProcessCounters,
    /// The names of instances, each once.
    pub followed: &'a [(String, NameCounters)],
    /// The instances, each once.
    pub instances: &'a [InstanceSeries],
    /// Traces that stand for requests.
    pub exemplars: &'a Merged,
    /// The names behind slots.
    pub names: &'a Names,
}

/// So much text is written between two chances for others.
const PIECE: usize = 64 * 1024;

impl Scrape<'_> {
    /// Appends all metrics. After each piece of the text `give_way` is called: with thousands of series it takes milliseconds,
    /// and the thread may have its core together with a shard.
    pub fn write(&self, format: Format, out: &mut String, give_way: &dyn Fn()) {
        let Self { process, names, .. } = *self;
        let mut sum = Counters::default();
        for shard in self.shards {
            sum.merge(shard.counters);
        }
        let pace = Pace { next: Cell::new(out.len() + PIECE), give_way };
        let mut text = Text { out, pace: &pace, format, names, exemplars: self.exemplars };
        let values: Vec<_> = self
            .shards
            .iter()
            .map(|shard| (pair("shard", &shard.shard.to_string()), shard.counters.values()))
            .collect();
        for ((index, metric), value) in Counters::METRICS.iter().enumerate().zip(sum.values()) {
            let mut family = text.family(metric);
            if metric.per == Per::Shard {
                for (shard, values) in &values {
                    family.series(shard, values[index]);
                }
            } else {
                family.series("", value);
            }
        }
        for (metric, value) in ProcessCounters::METRICS.iter().zip(process.values()) {
            text.family(metric).series("", value);
        }
        for (index, metric) in ClickhouseCounters::METRICS.iter().enumerate() {
            let mut family = text.family(metric);
            if let Some(counters) = &process.clickhouse {
                family.series("", counters.values()[index]);
            }
        }
        let upstreams = owners("upstream", names.upstreams.names());
        let values: Vec<_> = sum.routes().iter().map(RouteCounters::values).collect();
        text.named(RouteCounters::METRICS, &owners("route", names.routes.names()), &values);
        let values: Vec<_> = sum.upstreams().iter().map(UpstreamCounters::values).collect();
        text.named(UpstreamCounters::METRICS, &upstreams, &values);
        for (index, metric) in ProbeCounters::METRICS.iter().enumerate() {
            let mut family = text.family(metric);
            for (upstream, counters) in upstreams.iter().zip(&process.probes) {
                if let Some(counters) = counters {
                    family.series(upstream, counters.values()[index]);
                }
            }
        }
        self.write_instances(&mut text);
        let values: Vec<_> = sum.limits().iter().map(LimitCounters::values).collect();
        text.named(LimitCounters::METRICS, &owners("limit", names.limits.names()), &values);
        let followed: Vec<_> = self.followed.iter().map(|(name, _)| pair("name", name)).collect();
        let values: Vec<_> = self.followed.iter().map(|(_, counters)| counters.values()).collect();
        text.named(NameCounters::METRICS, &followed, &values);
        if format == Format::OpenMetrics {
            out.push_str("# EOF\n");
        }
    }

    fn write_instances(&self, text: &mut Text<'_>) {
        let instances: Vec<_> = self
            .instances
            .iter()
            .map(|instance| {
                let labels = pair("upstream", &instance.upstream) + "," + &pair("address", &instance.address);
                (labels, instance.is_there, instance.counters.values())
            })
            .collect();
        for (index, metric) in InstanceCounters::METRICS.iter().enumerate() {
            let mut family = text.family(metric);
            for (labels, _, values) in
                instances.iter().filter(|(_, is_there, _)| *is_there || metric.kind == MetricKind::Counter)
            {
                family.series(labels, values[index]);
            }
        }
    }
}

/// A label with its value, as it stands in a series.
fn pair(label: &str, value: &str) -> String {
    let mut pair = String::with_capacity(label.len() + value.len() + 3);
    push_pair(&mut pair, label, value);
    pair
}

fn push_pair(out: &mut String, label: &str, value: &str) {
    out.push_str(label);
    out.push_str("=\"");
    push_escaped(out, value, true);
    out.push('"');
}

fn owners(label: &str, names: &[String]) -> Vec<String> {
    names.iter().map(|name| pair(label, name)).collect()
}

/// When others get a chance.
struct Pace<'a> {
    /// At this length of the text.
    next: Cell<usize>,
    give_way: &'a dyn Fn(),
}

impl Pace<'_> {
    fn written(&self, length: usize) {
        if length >= self.next.get() {
            self.next.set(length + PIECE);
            (self.give_way)();
        }
    }
}

/// The document so far, and what it is made by.
struct Text<'a> {
    out: &'a mut String,
    pace: &'a Pace<'a>,
    format: Format,
    names: &'a Names,
    exemplars: &'a Merged,
}

impl Text<'_> {
    /// Metrics of which each owner has a series of its own.
    fn named<const N: usize>(&mut self, metrics: &[Metric], owners: &[String], values: &[[Value<'_>; N]]) {
        for (index, metric) in metrics.iter().enumerate() {
            let mut family = self.family(metric);
            for (place, (owner, values)) in owners.iter().zip(values).enumerate() {
                family.place = place;
                family.series(owner, values[index]);
            }
        }
    }

    /// Begins all series of one metric: the formats want them in one group.
    fn family<'f>(&'f mut self, metric: &'f Metric) -> Family<'f> {
        let Self { out, pace, format, names, exemplars } = self;
        // OpenMetrics has a family's name without what its samples end with.
        let suffix = match (&format, metric.kind) {
            (Format::OpenMetrics, MetricKind::Counter) => "_total",
            (Format::OpenMetrics, MetricKind::Info) => "_info",
            _ => "",
        };
        let name = metric.name.strip_suffix(suffix).unwrap_or(metric.name);
        let kind = match (&format, metric.kind) {
            (Format::Text, MetricKind::Info) => MetricKind::Gauge,
            (_, kind) => kind,
        };
        let mut comment = |word: &str, value: &str| {
            for part in ["# ", word, " ", name, " ", value, "\n"] {
                out.push_str(part);
            }
        };
        comment("HELP", &escaped_help(metric.help, *format));
        comment("TYPE", kind.word());
        let unit = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit));
        if let Some(unit) = unit.filter(|_| *format == Format::OpenMetrics) {
            comment("UNIT", unit);
        }
        debug_assert!(metric.kind != MetricKind::Histogram || metric.by.is_none(), "a histogram has one label at most");
        let has_exemplars = *format == Format::OpenMetrics && metric.per == Per::Route;
        Family { out, pace, metric, names, exemplars: Some(&**exemplars).filter(|_| has_exemplars), place: 0 }
    }
}

/// All series of one metric.
struct Family<'a> {
    out: &'a mut String,
    pace: &'a Pace<'a>,
    metric: &'a Metric,
    names: &'a Names,
    /// Where they stand for requests of a route.
    exemplars: Option<&'a Merged>,
    /// The owner's, among all.
    place: usize,
}

impl Family<'_> {
    /// The series of one owner, by its labels: a shard, a route, an upstream, or without labels the process.
    fn series(&mut self, owner: &str, value: Value<'_>) {
        match value {
            Value::Count(count) => self.whole("", owner, None, count),
            Value::Level(level) => {
                self.begin("", owner, None);
                let mut digits = itoa::Buffer::new();
                self.end(digits.format(level));
            }
            Value::Counts(counts) => self.by_value(counts, |family, by, count| family.whole("", owner, by, count)),
            Value::Sparse(levels) => self.by_value(levels, |family, by, level| {
                if let Some(level) = level {
                    family.whole("", owner, by, level);
                }
            }),
            Value::Time(us) => self.time("", owner, None, us),
            Value::Times(times) => self.by_value(times, |family, by, us| family.time("", owner, by, us)),
            Value::Facts(facts) => {
                let mut labels = owner.to_owned();
                for (label, value) in facts {
                    if !labels.is_empty() {
                        labels.push(',');
                    }
                    push_pair(&mut labels, label, value);
                }
                self.whole("", &labels, None, 1);
            }
            Value::Requests(histogram) => self.histogram(owner, histogram, self.exemplars),
            Value::Lifetimes(histogram) => self.histogram(owner, histogram, None),
            Value::Own(histogram) => self.histogram(owner, histogram, None),
        }
        self.pace.written(self.out.len());
    }

    fn by_value<T: Copy>(&mut self, counts: &[T], mut write: impl FnMut(&mut Self, Option<(&str, &str)>, T)) {
        let (label, values) = match self.metric.by {
            Some((label, Values::Fixed(values))) => (label, values),
            Some((label, Values::RejectCodes)) => (label, self.names.reject_codes),
            Some((_, Values::Free)) | None => return,
        };
        for (value, count) in values.iter().zip(counts) {
            write(self, Some((label, value)), *count);
        }
    }

    fn histogram<L: Ladder>(&mut self, owner: &str, histogram: &Histogram<L>, exemplars: Option<&Merged>) {
        let mut text = String::with_capacity(16);
        for (bucket, (bound, count)) in histogram.cumulative().enumerate() {
            text.clear();
            match bound {
                Some(bound) => push_bound(&mut text, bound),
                None => text.push_str("+Inf"),
            }
            self.begin("_bucket", owner, Some(("le", &text)));
            let mut digits = itoa::Buffer::new();
            self.out.push_str(digits.format(count));
            let exemplar = exemplars.and_then(|exemplars| exemplars.of_bucket(self.place, bucket));
            if let Some(exemplar) = exemplar {
                push_exemplar(self.out, exemplar);
            }
            self.out.push('\n');
        }
        self.time("_sum", owner, None, histogram.sum_us());
        self.whole("_count", owner, None, histogram.count());
    }

    fn whole(&mut self, suffix: &str, owner: &str, by: Option<(&str, &str)>, value: u64) {
        self.begin(suffix, owner, by);
        let mut digits = itoa::Buffer::new();
        self.end(digits.format(value));
    }

    fn time(&mut self, suffix: &str, owner: &str, by: Option<(&str, &str)>, us: u64) {
        self.begin(suffix, owner, by);
        push_seconds(self.out, us);
        self.out.push('\n');
    }

    /// A sample up to its value. The label's value needs no escapes.
    fn begin(&mut self, suffix: &str, owner: &str, by: Option<(&str, &str)>) {
        self.out.push_str(self.metric.name);
        self.out.push_str(suffix);
        if !owner.is_empty() || by.is_some() {
            self.out.push('{');
            self.out.push_str(owner);
            if let Some((label, value)) = by {
                if !owner.is_empty() {
                    self.out.push(',');
                }
                self.out.push_str(label);
                self.out.push_str("=\"");
                self.out.push_str(value);
                self.out.push('"');
            }
            self.out.push('}');
        }
        self.out.push(' ');
    }

    fn end(&mut self, value: &str) {
        self.out.push_str(value);
        self.out.push('\n');
    }
}

/// ` # {trace_id="…"} 0.067 1520879607.789`
fn push_exemplar(out: &mut String, exemplar: &Exemplar) {
    out.push_str(" # {trace_id=\"");
    for byte in exemplar.trace_id {
        // Writing to a `String` cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out.push_str("\"} ");
    push_seconds(out, exemplar.took_us);
    out.push(' ');
    push_seconds(out, exemplar.at.saturating_mul(1000));
}

/// Microseconds as seconds, without an error of rounding: `0.0002`, `60`, `1.000001`.
fn push_seconds(out: &mut String, us: u64) {
    let mut digits = itoa::Buffer::new();
    out.push_str(digits.format(us / 1_000_000));
    let part = us % 1_000_000;
    if part > 0 {
        // The seventh digit keeps the zeros before the others.
        let text = digits.format(1_000_000 + part);
        out.push('.');
        out.push_str(text[1..].trim_end_matches('0'));
    }
}

/// The upper bound of a bucket as `OpenMetrics` spells numbers, in both formats: `1.0`, `0.0002`, `5e-06`. A scraper that is
/// given the other format finds the same series.
fn push_bound(out: &mut String, us: u32) {
    if us > 0 && us < 100 {
        // Bounds of one digit that counts: 5, 10, 20, 50.
        let (digit, exponent) = if us.is_multiple_of(10) { (us / 10, "e-05") } else { (us, "e-06") };
        let mut digits = itoa::Buffer::new();
        out.push_str(digits.format(digit));
        out.push_str(exponent);
        return;
    }
    push_seconds(out, us.into());
    if us.is_multiple_of(1_000_000) {
        out.push_str(".0");
    }
}

/// The help's sentence: the formats differ in whether quotes are escaped.
fn escaped_help(help: &str, format: Format) -> String {
    let mut out = String::with_capacity(help.len());
    push_escaped(&mut out, help, format == Format::OpenMetrics);
    out
}

/// Escapes what the formats reserve: backslash and newline everywhere, quotes where they end something.
fn push_escaped(out: &mut String, text: &str, has_quotes: bool) {
    if !text.contains(['\\', '\n', '"']) {
        return out.push_str(text);
    }
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if has_quotes => out.push_str("\\\""),
            _ => out.push(character),
        }
    }
}

#[cfg(test)]
#[path = "exposition_tests.rs"]
mod tests;

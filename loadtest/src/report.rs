//! Says what was measured: a table for people, JSON for programs, a progress line, and a warning where a figure does
//! not mean what it seems to. Pure but for `Conditions::now`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::scenario::{Job, Measured, Plan};
use crate::tally::{Ending, Tally};

/// Under what conditions a figure holds.
#[derive(Debug)]
pub(crate) struct Conditions {
    pub(crate) command: Vec<String>,
    pub(crate) date: String,
    pub(crate) version: &'static str,
    pub(crate) kernel: String,
    pub(crate) cores: usize,
    pub(crate) processor: String,
}

impl Conditions {
    /// This machine, now.
    pub(crate) fn now() -> Self {
        let uname = rustix::system::uname();
        let seconds = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            command: std::env::args().collect(),
            date: jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |date| date.to_string()),
            version: env!("CARGO_PKG_VERSION"),
            kernel: uname.release().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: model.map_or_else(String::new, |(_, name)| name.to_owned()),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "command": self.command, "date": self.date, "version": self.version, "kernel": self.kernel,
            "cores": self.cores, "processor": self.processor,
        })
    }
}

/// What is said about one run.
pub(crate) struct Report {
    rows: Vec<(String, String)>,
    fields: Map<String, Value>,
    warnings: Vec<String>,
    failed: bool,
}

impl Report {
    /// A report to be filled.
    pub(crate) fn empty() -> Self {
        Self { rows: Vec::new(), fields: Map::new(), warnings: Vec::new(), failed: false }
    }

    pub(crate) fn new(job: &Job, measured: &Measured) -> Self {
        let mut report = Self::empty();
        let tally = &measured.tally;
        report.failed = tally.failed() > 0;
        report.put("seconds", measured.seconds);
        match job.plan {
            Plan::Open { .. } | Plan::Closed => report.put_requests(job, measured),
            Plan::Events => report.put_events(measured),
            Plan::Idle { .. } => report.put_idle(tally),
            Plan::Slow { .. } => report.put_endings(tally),
            Plan::Burst => report.put_burst(job, tally),
            Plan::Transfer => report.put_transfer(measured),
        }
        report.put_answers(tally);
        report.put_costs(job, measured);
        report
    }

    /// Whether any request failed.
    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    pub(crate) fn table(&self) -> String {
        let width = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut table = String::new();
        for (name, value) in &self.rows {
            // Writing to a string cannot fail.
            let _ = writeln!(table, "{name:width$}  {value}");
        }
        for warning in &self.warnings {
            let _ = writeln!(table, "warning: {warning}");
        }
        table
    }

    pub(crate) fn json(&self, conditions: &Conditions) -> Value {
        let mut fields = self.fields.clone();
        fields.insert("conditions".to_owned(), conditions.to_json());
        fields.insert("failed".to_owned(), self.failed.into());
        fields.insert("warnings".to_owned(), self.warnings.clone().into());
        Value::Object(fields)
    }

    fn put_requests(&mut self, job: &Job, measured: &Measured) {
        let tally = &measured.tally;
        let per_s = tally.answered_meanwhile as f64 / measured.seconds.max(1e-9);
        self.put("answers_per_s", per_s);
        self.put_histogram("latency_us", &tally.latency);
        if !tally.unexpected_latency.is_empty() {
            self.put_histogram("unexpected_us", &tally.unexpected_latency);
        }
        self.put_count("connects", tally.traffic.connects);
        self.put_handshakes(tally);
        if tally.answers() == 0 {
            self.warnings.push("no answer came".to_owned());
            self.failed = true;
        }
        let Plan::Open { rate, .. } = job.plan else { return };
        self.put("intended_per_s", rate);
        self.put_count("backlog", tally.backlog);
        self.put_histogram("own_lag_us", &tally.lag);
        if tally.backlog > 0 {
            self.warnings.push(format!(
                "{} requests never left: no connection was free. The latencies are of those that did; the rate is over what server, connections or load test can do",
                tally.backlog
            ));
            self.failed = true;
        }
        if tally.lag.value_at_quantile(0.99) > 1_000_000 {
            self.warnings.push(
                "the load test itself sent 1 % of its requests over 1 ms late: high latencies are partly its own"
                    .to_owned(),
            );
        }
    }

    /// Of TLS, where it is spoken.
    fn put_handshakes(&mut self, tally: &Tally) {
        let (whole, resumed) = (tally.traffic.whole, tally.traffic.resumed);
        if whole + resumed > 0 {
            self.put_count("handshakes_whole", whole);
            self.put_count("handshakes_resumed", resumed);
        }
    }

    fn put_events(&mut self, measured: &Measured) {
        let tally = &measured.tally;
        self.put_count("events", tally.events);
        self.put("events_per_s", tally.events as f64 / measured.seconds.max(1e-9));
        self.put_count("events_stamped", tally.stamped);
        let name = if tally.stamped > 0 { "latency_us" } else { "gap_us" };
        self.put_histogram(name, &tally.latency);
        self.put_count("streams_ended", tally.closed);
        if tally.events == 0 {
            self.warnings.push("no event came".to_owned());
            self.failed = true;
        } else if tally.stamped > 0 && tally.stamped < tally.events {
            self.warnings
                .push("some events carry no stamp: for those the time since the event before counts".to_owned());
        }
    }

    fn put_idle(&mut self, tally: &Tally) {
        self.put_count("closed_by_server", tally.closed);
        self.put_handshakes(tally);
        let Some(held) = tally.held else { return };
        self.put_count("connections_held", held.connections);
        if held.before.rss_kib > 0 {
            let each =
                |before: u64, after: u64| (after as f64 - before as f64) * 1024.0 / (held.connections.max(1)) as f64;
            self.put_count("rss_before_kib", held.before.rss_kib);
            self.put_count("rss_held_kib", held.after.rss_kib);
            self.put("rss_bytes_per_connection", each(held.before.rss_kib, held.after.rss_kib));
            self.put("pss_bytes_per_connection", each(held.before.pss_kib, held.after.pss_kib));
        }
        if tally.closed > 0 {
            self.warnings.push(format!("the server closed {} of the idle connections meanwhile", tally.closed));
        }
    }

    fn put_endings(&mut self, tally: &Tally) {
        let mut by_ending = BTreeMap::<Ending, Vec<u64>>::new();
        for (ending, after_ns) in &tally.endings {
            by_ending.entry(*ending).or_default().push(*after_ns);
        }
        let mut list = Vec::new();
        for (ending, mut after_ns) in by_ending {
            after_ns.sort_unstable();
            let name = match ending {
                Ending::Status(status) => format!("answered {status}"),
                Ending::Closed(failure) => failure.name().to_owned(),
                Ending::StillOpen => "still open".to_owned(),
            };
            let second = |nth: usize| after_ns.get(nth).map_or(0.0, |ns| *ns as f64 / 1e9);
            let (first, median, last) = (second(0), second(after_ns.len() / 2), second(after_ns.len() - 1));
            self.rows.push((
                name.clone(),
                format!("{} after {first:.1} to {last:.1} s, median {median:.1} s", after_ns.len()),
            ));
            list.push(json!({
                "ending": name, "count": after_ns.len(), "first_s": first, "median_s": median, "last_s": last,
            }));
        }
        self.fields.insert("endings".to_owned(), list.into());
    }

    /// Served or told when to come back: nothing else is right when too many come at once.
    fn put_burst(&mut self, job: &Job, tally: &Tally) {
        let count =
            |wanted: usize| tally.statuses().find(|(status, _)| *status == wanted).map_or(0, |(_, count)| count);
        let (served, refused) = (count(200), count(429) + count(503));
        let seconds = (tally.took_ns as f64 / 1e9).max(1e-9);
        self.put_count("asked", job.requests.heads.len() as u64);
        self.put_count("served", served);
        self.put("took_s", seconds);
        self.put("served_per_s", served as f64 / seconds);
        self.put_histogram("latency_us", &tally.latency);
        self.put_count("told_to_come_back", refused);
        self.put_count("told_when", tally.told_when);
        self.failed = tally.failed() > refused || tally.told_when < refused || served == 0;
        if tally.told_when < refused {
            self.warnings.push(format!("{} refusals have no Retry-After", refused - tally.told_when));
        }
    }

    fn put_transfer(&mut self, measured: &Measured) {
        let tally = &measured.tally;
        let seconds = (tally.took_ns as f64 / 1e9).max(1e-9);
        self.put_count("bytes_up", tally.traffic.bytes_out);
        self.put_count("bytes_down", tally.traffic.bytes_in);
        self.put("took_s", seconds);
        self.put("mb_per_s", (tally.traffic.bytes_in + tally.traffic.bytes_out) as f64 / 1e6 / seconds);
    }

    pub(crate) fn put_answers(&mut self, tally: &Tally) {
        self.put_count("answers", tally.answers());
        self.put_count("failed", tally.failed());
        let statuses = tally.statuses().map(|(status, count)| (status.to_string(), count)).collect::<Vec<_>>();
        for (status, count) in &statuses {
            self.rows.push((format!("  status {status}"), count.to_string()));
        }
        let failures = tally.failures().collect::<Vec<_>>();
        for (kind, count) in &failures {
            self.rows.push((format!("  {kind}"), count.to_string()));
        }
        let classes = statuses.iter().fold(Map::new(), |mut classes, (status, count)| {
            let class = format!("{}xx", &status[..1]);
            let sum = classes.get(&class).and_then(Value::as_u64).unwrap_or(0) + count;
            classes.insert(class, sum.into());
            classes
        });
        self.fields.insert("status_classes".to_owned(), classes.into());
        self.fields.insert(
            "statuses".to_owned(),
            statuses.into_iter().map(|(name, n)| (name, n.into())).collect::<Map<_, _>>().into(),
        );
        let failures = failures.into_iter().map(|(name, count)| (name.to_owned(), count.into()));
        self.fields.insert("failures".to_owned(), failures.collect::<Map<_, _>>().into());
    }

    fn put_costs(&mut self, job: &Job, measured: &Measured) {
        let tally = &measured.tally;
        let seconds = measured.seconds.max(1e-9);
        let done = match job.plan {
            Plan::Events => tally.events,
            Plan::Open { .. } | Plan::Closed => tally.answered_meanwhile,
            _ => 0,
        };
        let unit = if matches!(job.plan, Plan::Events) { "event" } else { "request" };
        if let Some(server) = measured.server {
            self.put("server_cpu_percent", server.cpu_us as f64 / seconds / 1e4);
            if done > 0 {
                self.put(&format!("server_cpu_us_per_{unit}"), server.cpu_us as f64 / done as f64);
            }
            self.put_count("server_rss_kib", server.memory.rss_kib);
            self.put_count("server_pss_kib", server.memory.pss_kib);
            self.put_count("server_rss_before_kib", server.rss_before_kib);
            self.put_count("server_rss_peak_kib", server.rss_peak_kib);
        }
        self.put("own_cpu_percent", measured.own_cpu_ns as f64 / seconds / 1e7);
        if done > 0 {
            self.put(&format!("own_cpu_us_per_{unit}"), measured.own_cpu_ns as f64 / 1e3 / done as f64);
        }
        let busiest = tally.thread_cpu_ns as f64 / seconds / 1e7;
        if busiest > 90.0 && !matches!(job.plan, Plan::Transfer) {
            self.warnings.push(format!(
                "a thread of the load test used {busiest:.0} % of a core: it, not the server, may be the limit; try --threads"
            ));
        }
    }

    pub(crate) fn put(&mut self, name: &str, value: f64) {
        self.rows.push((name.to_owned(), figure(value)));
        self.fields.insert(name.to_owned(), value.into());
    }

    pub(crate) fn put_count(&mut self, name: &str, count: u64) {
        self.rows.push((name.to_owned(), count.to_string()));
        self.fields.insert(name.to_owned(), count.into());
    }

    /// Counts by name, those that there are; returns their sum.
    pub(crate) fn put_counts(&mut self, name: &str, counts: &[(String, u64)]) -> u64 {
        let sum = counts.iter().map(|(_, count)| count).sum();
        self.rows.push((name.to_owned(), format!("{sum}")));
        self.rows.extend(counts.iter().map(|(name, count)| (format!("  {name}"), count.to_string())));
        let fields = counts.iter().map(|(name, count)| (name.clone(), (*count).into()));
        self.fields.insert(name.to_owned(), fields.collect::<Map<_, _>>().into());
        sum
    }

    /// What is no figure: a line for people.
    pub(crate) fn put_row(&mut self, name: &str, text: &str) {
        self.rows.push((name.to_owned(), text.to_owned()));
    }

    /// What programs are told of it.
    pub(crate) fn put_field(&mut self, name: &str, value: Value) {
        self.fields.insert(name.to_owned(), value);
    }

    pub(crate) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// The run has failed, and this is why.
    pub(crate) fn fail(&mut self, why: String) {
        self.warnings.push(why);
        self.failed = true;
    }

    pub(crate) fn put_histogram(&mut self, name: &str, histogram: &Histogram<u64>) {
        let (text, fields) = quantiles(histogram);
        self.rows.push((name.to_owned(), text));
        self.fields.insert(name.to_owned(), fields);
    }
}

/// A histogram of nanoseconds in microseconds, for people and for programs.
pub(crate) fn quantiles(histogram: &Histogram<u64>) -> (String, Value) {
    let quantiles = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];
    let values = quantiles.map(|(name, quantile)| (name, histogram.value_at_quantile(quantile)));
    let mut text = String::new();
    let mut fields = Map::new();
    for (quantile, ns) in values.into_iter().chain([("max", histogram.max())]) {
        let us = ns as f64 / 1e3;
        let _ = write!(text, "{quantile} {}  ", figure(us));
        fields.insert(quantile.replace('.', "_"), us.into());
    }
    fields.insert("mean".to_owned(), (histogram.mean() / 1e3).into());
    fields.insert("count".to_owned(), histogram.len().into());
    (text.trim_end().to_owned(), fields.into())
}

/// One line about what has been counted so far: the rate of the last second, p99 and failures of all.
pub(crate) fn progress(seconds: f64, since: f64, before: &Tally, now: &Tally) -> String {
    let done = |tally: &Tally| tally.answered_meanwhile + tally.events;
    let rate = done(now).saturating_sub(done(before)) as f64 / since.max(1e-9);
    let p99 = figure(now.latency.value_at_quantile(0.99) as f64 / 1e3);
    format!("{seconds:.0} s  {}/s  p99 {p99} us  {} failed", figure(rate), now.failed())
}

/// Three digits or more, no false precision.
fn figure(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;

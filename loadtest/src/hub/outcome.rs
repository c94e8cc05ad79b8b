//! What all scenarios of the hub report alike.

use std::collections::BTreeMap;

use crate::hub::sockets::Ending;
use crate::hub::tally::{Tally, Why};
use crate::hub::workers::{Cost, Workers};
use crate::report::Report;

/// A part of the measured time.
pub(crate) struct Part<'a> {
    /// What the names of its figures begin with.
    pub(crate) prefix: &'a str,
    pub(crate) phase: usize,
    /// How many should get each message; one in an echo, where each goes to one.
    pub(crate) members: u32,
    pub(crate) seconds: f64,
}

/// How messages were delivered, and whether all were.
pub(crate) fn put_deliveries(report: &mut Report, tally: &Tally, part: &Part<'_>) {
    let missing = put_latencies(report, tally, part);
    report.put_count(&format!("{}missing", part.prefix), missing);
    if missing > 0 {
        let expected = tally.sent[part.phase] * u64::from(part.members);
        report.fail(format!("{missing} of {expected} deliveries did not come"));
    }
}

/// How fast messages were delivered; returns how many deliveries are missing.
pub(crate) fn put_latencies(report: &mut Report, tally: &Tally, part: &Part<'_>) -> u64 {
    let Part { prefix, phase, members, seconds } = *part;
    report.put_count(&format!("{prefix}sent"), tally.sent[phase]);
    report.put_count(&format!("{prefix}deliveries"), tally.latency[phase].len());
    report.put(&format!("{prefix}deliveries_per_s"), tally.arrived[phase] as f64 / seconds.max(1e-9));
    report.put_histogram(&format!("{prefix}latency_us"), &tally.latency[phase]);
    let (last, missing) = tally.to_the_last(phase, members);
    if members > 1 {
        report.put_histogram(&format!("{prefix}to_the_last_us"), &last);
    }
    if tally.sent[phase] == 0 {
        report.fail("no message was sent while it was measured".to_owned());
    }
    missing
}

/// How sockets fared.
pub(crate) fn put_sockets(report: &mut Report, tally: &Tally) {
    report.put_histogram("joining_us", &tally.joining[Why::Begins as usize]);
    report.put_count("attempts", tally.attempts);
    report.put_count("not_joined", tally.gave_up);
    put_endings(report, "attempts_failed", &tally.failures);
    let lost = put_endings(report, "lost", &tally.losses);
    report.put_count("unsent", tally.unsent);
    report.put_count("told_losses", tally.told_losses);
    let errors = tally.errors.iter().map(|(code, count)| (code.clone(), *count)).collect::<Vec<_>>();
    let refused = report.put_counts("errors", &errors);
    report.put_count("asked_to_reconnect", tally.reconnects_asked);
    for (count, what) in [
        (tally.gave_up, "sockets were not let into their rooms"),
        (lost, "sockets were ended by the other side"),
        (tally.unsent, "messages could not be sent, since their sockets were gone or full"),
        (refused, "frames said that something was refused"),
    ] {
        if count > 0 {
            report.fail(format!("{count} {what}"));
        }
    }
    if tally.lag.value_at_quantile(0.99) > 1_000_000 {
        report.warn(
            "the load test itself sent 1 % of its messages over 1 ms late: high latencies are partly its own"
                .to_owned(),
        );
    }
}

/// How many ended, and how.
pub(crate) fn put_endings(report: &mut Report, name: &str, endings: &BTreeMap<Ending, u64>) -> u64 {
    let counts = endings.iter().map(|(ending, count)| (ending.name(), *count)).collect::<Vec<_>>();
    report.put_counts(name, &counts)
}

/// What it cost, in all and for each of so many.
pub(crate) fn put_cost(report: &mut Report, cost: &Cost, unit: &str, done: u64) {
    if let Some(cpu_us) = cost.server_cpu_us() {
        report.put("server_cpu_percent", cost.percent(cpu_us));
        if cost.servers_cpu_us.len() > 1 {
            for (nth, cpu_us) in cost.servers_cpu_us.iter().enumerate() {
                report.put(&format!("server_{}_cpu_percent", nth + 1), cost.percent(*cpu_us));
            }
        }
        if done > 0 {
            report.put(&format!("server_cpu_us_per_{unit}"), cpu_us as f64 / done as f64);
        }
    }
    if let Some(cpu_us) = cost.redis_cpu_us {
        report.put("redis_cpu_percent", cost.percent(cpu_us));
    }
    report.put("own_cpu_percent", cost.percent(cost.own_cpu_ns / 1000));
    if done > 0 {
        report.put(&format!("own_cpu_us_per_{unit}"), cost.own_cpu_ns as f64 / 1e3 / done as f64);
    }
}

/// The load test's own part in what was measured.
pub(crate) fn put_own(report: &mut Report, tally: &Tally, measured_seconds: f64) {
    report.put_histogram("own_lag_us", &tally.lag);
    let busiest = tally.thread_cpu_ns as f64 / measured_seconds.max(1e-9) / 1e7;
    report.put("own_busiest_thread_percent", busiest);
    if busiest > 90.0 {
        report.warn(format!(
            "a thread of the load test used {busiest:.0} % of a core: it, not the server, may be the limit; try --threads"
        ));
    }
}

/// What the server weighs, before the threads are ended and their sockets with them.
pub(crate) fn put_memory(report: &mut Report, workers: &Workers) {
    let Some(memory) = workers.memory() else { return };
    report.put_count("server_rss_kib", memory.rss_kib);
    report.put_count("server_pss_kib", memory.pss_kib);
    report.put_count("server_rss_before_kib", workers.rss_before_kib);
    report.put_count("server_rss_peak_kib", workers.rss_peak_kib.max(memory.rss_kib));
}

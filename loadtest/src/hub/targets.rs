//! The targets in one run: thousands of sockets with fan-out, while requests whose tokens are checked go through the gateway.

use std::sync::Arc;

use anyhow::Context;

use crate::http::Requests;
use crate::hub::options::{HubCommon, Targets};
use crate::hub::order::Instance;
use crate::hub::outcome::{Part, put_cost, put_deliveries, put_memory, put_own, put_sockets};
use crate::hub::token::Tokens;
use crate::hub::traffic::{rooms, send};
use crate::hub::workers::{Workers, setup, shares};
use crate::options::Common;
use crate::pace::Arrival;
use crate::report::Report;
use crate::scenario::{self, Job, Measured, Plan};
use crate::{nanoseconds, target};

pub(crate) fn measure(options: &Targets) -> anyhow::Result<Report> {
    let common = &options.common;
    let (group, places) = rooms(common, &options.fan_out)?;
    let setup = setup(common, vec![group], 0..0)?;
    let job = Arc::new(job(options, &setup.instances[0])?);
    let mut report = Report::empty();
    if options.baseline {
        let alone = scenario::run(&job, &mut |_| {})?;
        put_requests(&mut report, "http_alone_", &alone);
    }
    let mut workers = Workers::start(common, setup, &shares(0..places, usize::from(common.threads)))?;
    workers.open(0..places, places)?;
    report.put_count("sockets", workers.counts().ready);

    let [from, .., end] = send(&workers, common, 0, options.fan_out.rate, 1)?;
    // Requests have the same warm-up, and so are measured at the same time but for a few milliseconds.
    let requests = std::thread::spawn({
        let job = Arc::clone(&job);
        move || scenario::run(&job, &mut |_| {})
    });
    workers.wait_until(from)?;
    let begun = workers.mark();
    workers.wait_until(end)?;
    let cost = workers.since(&begun);
    workers.settle()?;
    let beside = requests.join().map_err(|_| anyhow::anyhow!("the thread of the requests panicked"))??;
    put_memory(&mut report, &workers);
    let tally = workers.finish()?;

    report.put("seconds", cost.seconds);
    put_requests(&mut report, "http_", &beside);
    let part = Part { prefix: "", phase: 0, members: options.fan_out.members, seconds: cost.seconds };
    put_deliveries(&mut report, &tally, &part);
    put_cost(&mut report, &cost, "delivery_and_request", tally.arrived[0] + beside.tally.answered_meanwhile);
    put_own(&mut report, &tally, cost.seconds);
    put_sockets(&mut report, &tally);
    Ok(report)
}

/// The requests, each with a user's token.
fn job(options: &Targets, Instance { tls, authority, .. }: &Instance) -> anyhow::Result<Job> {
    let hub = &options.common;
    let tokens = Tokens::new(&hub.token)?;
    // Users of their own, not those of the sockets.
    let users = (0..options.http_users).map(|nth| tokens.of(1_000_000 + usize::try_from(nth).unwrap_or(0)));
    let scheme = if tls.is_some() { "https" } else { "http" };
    let common = Common::of_url(format!("{scheme}://{authority}{}", options.http_path), hub.allow_remote);
    let requests = target::requests_with(&common, &users.collect::<Vec<_>>()).context("--http-path")?;
    Ok(open_job(hub, requests, options.http_rate, usize::try_from(options.http_connections)?))
}

/// Requests at a rate beside a scenario of the hub.
pub(crate) fn open_job(hub: &HubCommon, requests: Requests, rate: f64, connections: usize) -> Job {
    Job {
        plan: Plan::Open { rate, arrival: Arrival::Constant, seed: 1 },
        requests: Arc::new(requests),
        connections,
        threads: 1,
        warm_up_ns: nanoseconds(hub.warm_up),
        duration_ns: nanoseconds(hub.duration),
        timeout_ns: nanoseconds(hub.timeout),
        expected: Vec::new(),
        server_pid: None,
        tokens_out: None,
        records: false,
    }
}

pub(crate) fn put_requests(report: &mut Report, prefix: &str, measured: &Measured) {
    let tally = &measured.tally;
    report.put(&format!("{prefix}answers_per_s"), tally.answered_meanwhile as f64 / measured.seconds.max(1e-9));
    report.put_histogram(&format!("{prefix}latency_us"), &tally.latency);
    report.put_histogram(&format!("{prefix}own_lag_us"), &tally.lag);
    report.put_count(&format!("{prefix}backlog"), tally.backlog);
    let statuses = tally.statuses().map(|(status, count)| (status.to_string(), count)).collect::<Vec<_>>();
    report.put_counts(&format!("{prefix}statuses"), &statuses);
    let failures = tally.failures().map(|(name, count)| (name.to_owned(), count)).collect::<Vec<_>>();
    report.put_counts(&format!("{prefix}failures"), &failures);
    if tally.failed() > 0 || tally.backlog > 0 || tally.answers() == 0 {
        report.fail(format!("of the requests {} failed and {} never left", tally.failed(), tally.backlog));
    }
}

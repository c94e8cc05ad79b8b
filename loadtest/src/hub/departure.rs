//! Thousands of sockets dropped at once, and, in a storm, all back again, while others go on talking and new ones come: how
//! long did anybody else wait?

use crate::hub::options::{HubCommon, HubMassDisconnect, HubReconnectStorm, Others};
use crate::hub::order::{Group, Order, When};
use crate::hub::outcome::{Part, put_cost, put_deliveries, put_memory, put_own, put_sockets};
use crate::hub::tally::Why;
use crate::hub::traffic::{LEAD, send};
use crate::hub::workers::{Workers, setup, shares};
use crate::report::Report;
use crate::{nanoseconds, socket};

pub(crate) fn mass_disconnect(options: &HubMassDisconnect) -> anyhow::Result<Report> {
    run(&options.common, usize::try_from(options.connections)?, &options.others, None)
}

pub(crate) fn reconnect_storm(options: &HubReconnectStorm) -> anyhow::Result<Report> {
    let jitter_ns = nanoseconds(options.jitter);
    run(&options.common, usize::try_from(options.connections)?, &options.others, Some(jitter_ns))
}

fn run(common: &HubCommon, crowd: usize, others: &Others, returns: Option<u64>) -> anyhow::Result<Report> {
    let count = usize::try_from(others.count)?;
    let duration_ns = nanoseconds(common.duration);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a gap is positive and short")]
    let gap_ns = (1e9 / others.accepts) as u64;
    let new = usize::try_from(2 * duration_ns / gap_ns.max(1))?.min(100_000);
    let all = crowd + count + new;
    let group = |slots, name: &str| Group { slots, rooms: vec![format!("{}.{name}", common.room)] };
    let groups =
        vec![group(0..crowd, "crowd"), group(crowd..crowd + count, "others"), group(crowd + count..all, "new")];
    // The others have a thread of their own: closing thousands of sockets keeps a thread busy, and is not the hub's doing.
    let mut parts = shares(0..crowd, usize::from(common.threads));
    parts.push(crowd..all);
    let mut workers = Workers::start(common, setup(common, groups, 0..0)?, &parts)?;
    workers.open(0..crowd + count, crowd + count)?;

    let [from, turn, end] = send(&workers, common, 1, others.rate, 2)?;
    workers.wait_until(from)?;
    workers.order(&Order::Open(crowd + count..all, When::Each { from: socket::now() + LEAD, gap_ns }));
    workers.wait_until(turn)?;
    let begun = workers.mark();
    workers.order(&Order::Drop(0..crowd));
    let (mut back, mut back_s) = (None, 0.0);
    if let Some(jitter_ns) = returns {
        workers.order(&Order::Open(0..crowd, When::Within(jitter_ns)));
        back = Some(workers.wait_for("the crowd's return", |counts| counts.returned >= crowd as u64));
        back_s = (socket::now() - begun.at) as f64 / 1e9;
    }
    workers.wait_until(end)?;
    let cost = workers.since(&begun);
    workers.settle()?;
    let mut report = Report::empty();
    put_memory(&mut report, &workers);
    let tally = workers.finish()?;

    report.put_count("dropped", crowd as u64);
    // However long the crowd takes to come back.
    let seconds = duration_ns as f64 / 1e9;
    for (phase, prefix) in [(0, "before_"), (1, "after_")] {
        put_deliveries(&mut report, &tally, &Part { prefix, phase, members: others.count, seconds });
    }
    report.put("longest_wait_ms", tally.latency[1].max() as f64 / 1e6);
    if let Some(back) = back {
        if let Err(error) = back {
            report.fail(error.to_string());
        }
        report.put("all_back_after_s", back_s);
        // Each from the moment when it first tried.
        report.put_histogram("returning_us", &tally.joining[Why::Returns as usize]);
    }
    report.put_histogram("new_joining_us", &tally.joining[Why::Probes as usize]);
    put_cost(&mut report, &cost, "delivery", tally.arrived[1]);
    put_own(&mut report, &tally, (end - from) as f64 / 1e9);
    put_sockets(&mut report, &tally);
    Ok(report)
}

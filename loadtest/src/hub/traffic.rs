//! Messages at a set rate: echoes, rooms, and rooms in which some stop reading. Latency counts from when each message should
//! have left, for every one who gets it.

use rustix::process::Signal;

use crate::hub::options::{FanOut, HubCommon, HubEcho, HubFanOut, HubSlowReaders};
use crate::hub::order::{Group, Order, Traffic};
use crate::hub::outcome::{Part, put_cost, put_deliveries, put_endings, put_memory, put_own, put_sockets};
use crate::hub::workers::{SECOND, Workers, setup, shares};
use crate::report::Report;
use crate::{nanoseconds, socket};

/// Traffic begins this long after it is ordered, so that all threads have heard of it.
pub(crate) const LEAD: u64 = SECOND / 10;

pub(crate) fn echo(options: &HubEcho) -> anyhow::Result<Report> {
    let mut common = options.common.clone();
    for url in &mut common.urls {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let authority = rest.split('/').next().unwrap_or_default();
        *url = format!("{scheme}://{authority}{}", options.path);
    }
    let places = usize::try_from(options.connections)?;
    let group = Group { slots: 0..places, rooms: Vec::new() };
    let setup = setup(&common, vec![group], 0..0)?;
    let mut workers = Workers::start(&common, setup, &shares(0..places, usize::from(common.threads)))?;
    workers.open(0..places, places)?;
    measure(&common, workers, options.rate, 1, "echo", Reloads::default())
}

pub(crate) fn fan_out(options: &HubFanOut) -> anyhow::Result<Report> {
    let common = &options.common;
    let reloads = Reloads { count: options.reloads, every_ns: nanoseconds(options.reload_every) };
    anyhow::ensure!(
        u64::from(reloads.count) * reloads.every_ns <= nanoseconds(common.duration),
        "--reloads {} every {} ms take longer than --duration",
        reloads.count,
        reloads.every_ns / 1_000_000
    );
    let (group, places) = rooms(common, &options.fan_out)?;
    let setup = setup(common, vec![group], 0..0)?;
    let mut workers = Workers::start(common, setup, &shares(0..places, usize::from(common.threads)))?;
    workers.open(0..places, places)?;
    measure(common, workers, options.fan_out.rate, options.fan_out.members, "delivery", reloads)
}

/// How often each instance is to reload its configuration.
#[derive(Clone, Copy, Default)]
struct Reloads {
    count: u32,
    every_ns: u64,
}

/// The rooms of a fan-out, and how many sockets are in them.
pub(crate) fn rooms(common: &HubCommon, fan_out: &FanOut) -> anyhow::Result<(Group, usize)> {
    let places = usize::try_from(u64::from(fan_out.rooms) * u64::from(fan_out.members))?;
    anyhow::ensure!(places <= 500_000, "--rooms × --members is {places}; at most 500000 sockets are opened");
    let names = (0..fan_out.rooms).map(|nth| format!("{}.{nth}", common.room));
    Ok((Group { slots: 0..places, rooms: names.collect() }, places))
}

fn measure(
    common: &HubCommon,
    mut workers: Workers,
    rate: f64,
    members: u32,
    unit: &str,
    reloads: Reloads,
) -> anyhow::Result<Report> {
    let [from, .., end] = send(&workers, common, 0, rate, 1)?;
    workers.wait_until(from)?;
    let begun = workers.mark();
    let mut report = Report::empty();
    if reloads.count > 0 {
        let rss_kib = workers.memory().map_or(0, |memory| memory.rss_kib);
        for nth in 0..u64::from(reloads.count) {
            workers.wait_until(from + nth * reloads.every_ns)?;
            workers.signal(Signal::HUP)?;
        }
        report.put_count("reloads", reloads.count.into());
        report.put_count("rss_before_reloads_kib", rss_kib);
    }
    workers.wait_until(end)?;
    let cost = workers.since(&begun);
    workers.settle()?;
    put_memory(&mut report, &workers);
    let tally = workers.finish()?;
    report.put("seconds", cost.seconds);
    report.put("intended_per_s", rate);
    put_deliveries(&mut report, &tally, &Part { prefix: "", phase: 0, members, seconds: cost.seconds });
    put_cost(&mut report, &cost, unit, tally.arrived[0]);
    put_own(&mut report, &tally, cost.seconds);
    put_sockets(&mut report, &tally);
    Ok(report)
}

/// Has a group's messages sent at a rate: after the warm-up, from the first of these times on, they are measured for as long
/// as it is said, in one part or in two, which the second time divides, until the last.
pub(crate) fn send(
    workers: &Workers,
    common: &HubCommon,
    group: usize,
    rate: f64,
    parts: u64,
) -> anyhow::Result<[u64; 3]> {
    let start = socket::now() + LEAD;
    let from = start + nanoseconds(common.warm_up);
    let turn = from + nanoseconds(common.duration);
    let end = from + parts * nanoseconds(common.duration);
    let phases = [from..turn, turn..end];
    let payload_bytes = usize::try_from(common.payload_bytes)?;
    workers.order(&Order::Send(Traffic { group, rate, start, end, phases, payload_bytes }));
    Ok([from, turn, end])
}

pub(crate) fn slow_readers(options: &HubSlowReaders) -> anyhow::Result<Report> {
    let common = &options.common;
    let (group, places) = rooms(common, &options.fan_out)?;
    let (count, rooms) = (usize::try_from(options.slow)?, usize::try_from(options.fan_out.rooms)?);
    anyhow::ensure!(
        count.is_multiple_of(rooms) && count < places,
        "--slow {count} should be less than all {places} members, and as many in each of {rooms} rooms"
    );
    let slow = places - count..places;
    let members = options.fan_out.members - u32::try_from(count / rooms)?;
    let setup = setup(common, vec![group], slow.clone())?;
    let mut workers = Workers::start(common, setup, &shares(0..places, usize::from(common.threads)))?;
    workers.open(0..places, places)?;

    let [from, turn, end] = send(&workers, common, 0, options.fan_out.rate, 2)?;
    workers.wait_until(turn)?;
    workers.order(&Order::Deafen(slow.clone()));
    let rss_kib = workers.memory().map(|memory| memory.rss_kib);
    workers.rss_peak_kib = rss_kib.unwrap_or_default();
    let begun = workers.mark();
    workers.wait_until(end)?;
    let cost = workers.since(&begun);
    let rss_peak_kib = workers.rss_peak_kib;
    // They read again, to see what they are told: what was kept for them, a gap, or why they were closed.
    workers.order(&Order::Hear(slow));
    workers.settle()?;
    let mut report = Report::empty();
    put_memory(&mut report, &workers);
    let tally = workers.finish()?;

    for (phase, prefix, seconds) in [(0, "before_", (turn - from) as f64 / 1e9), (1, "beside_", cost.seconds)] {
        put_deliveries(&mut report, &tally, &Part { prefix, phase, members, seconds });
    }
    let p99 = |phase: usize| tally.latency[phase].value_at_quantile(0.99) as f64;
    report.put("p99_ratio", p99(1) / p99(0).max(1.0));
    if let Some(before) = rss_kib {
        report.put_count("rss_growth_kib", rss_peak_kib.saturating_sub(before));
    }
    report.put_count("slow_readers", count as u64);
    report.put_count("slow_deliveries", tally.to_slow);
    let ended = put_endings(&mut report, "slow_ended", &tally.slow_losses);
    if ended == 0 && tally.told_losses == 0 {
        report.warn(
            "all that was sent to the slow readers was kept for them, most of it by the kernel: with a larger payload, or for \
             longer, they would show what the server does about them"
                .to_owned(),
        );
    }
    put_cost(&mut report, &cost, "delivery", tally.arrived[1]);
    put_own(&mut report, &tally, (end - from) as f64 / 1e9);
    put_sockets(&mut report, &tally);
    Ok(report)
}

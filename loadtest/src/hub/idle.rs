//! Idle sockets, each with its own token, in one room: what one more of them weighs, what it takes to open and join, and what
//! it weighs some time after each got a large message at once.

use crate::hub::options::HubIdle;
use crate::hub::order::{Group, Order};
use crate::hub::outcome::{put_memory, put_sockets};
use crate::hub::tally::Counts;
use crate::hub::workers::{Workers, setup, shares};
use crate::process::Memory;
use crate::report::Report;
use crate::{nanoseconds, socket};

pub(crate) fn measure(options: &HubIdle) -> anyhow::Result<Report> {
    let common = &options.common;
    let (from, to) = (usize::try_from(options.from)?, usize::try_from(options.to)?);
    anyhow::ensure!(from < to, "--from {from} should be less than --to {to}");
    let group = Group { slots: 0..to, rooms: vec![format!("{}.idle", common.room)] };
    let setup = setup(common, vec![group], 0..0)?;
    let mut workers = Workers::start(common, setup, &shares(0..to, usize::from(common.threads)))?;
    let hold_ns = nanoseconds(options.hold);
    let mut report = Report::empty();

    workers.open(0..from, from)?;
    workers.wait_until(socket::now() + hold_ns)?;
    let few = workers.memory();
    let begun = workers.mark();
    workers.open(from..to, to)?;
    let cost = workers.since(&begun);
    workers.wait_until(socket::now() + hold_ns)?;
    let many = workers.memory();
    let counts = workers.counts();
    report.put_count("sockets", counts.ready);
    let opened = (to - from) as u64;
    report.put("opened_per_s", opened as f64 / cost.seconds.max(1e-9));
    if let Some(cpu_us) = cost.server_cpu_us() {
        report.put("server_cpu_us_per_join", cpu_us as f64 / opened as f64);
    }
    report.put("own_cpu_us_per_join", cost.own_cpu_ns as f64 / 1e3 / opened as f64);
    let slope = put_slope(&mut report, "", opened, few, many);

    if options.burst_bytes > 0 {
        let payload_bytes = usize::try_from(options.burst_bytes)?;
        workers.order(&Order::Burst { group: 0, payload_bytes });
        // Those that are not there, for whatever reason, get none, and fail the run all the same.
        let have_all = |counts: &Counts| counts.bursts + counts.lost + counts.failed >= to as u64;
        workers.wait_for("the large message for all", have_all)?;
        workers.wait_until(socket::now() + nanoseconds(options.burst_hold))?;
        let after = workers.memory();
        report.put_count("burst_deliveries", workers.counts().bursts);
        if let (Some(before), Some(after)) = (slope, put_slope(&mut report, "after_burst_", opened, few, after)) {
            report.put("after_burst_ratio", after / before.max(1.0));
        }
    }
    put_memory(&mut report, &workers);
    let tally = workers.finish()?;
    put_sockets(&mut report, &tally);
    Ok(report)
}

/// Bytes of the server's memory for each socket more.
fn put_slope(
    report: &mut Report,
    prefix: &str,
    sockets: u64,
    few: Option<Memory>,
    many: Option<Memory>,
) -> Option<f64> {
    let (few, many) = (few?, many?);
    let each = |few: u64, many: u64| (many as f64 - few as f64) * 1024.0 / sockets.max(1) as f64;
    let slope = each(few.rss_kib, many.rss_kib);
    if prefix.is_empty() {
        report.put_count("rss_few_kib", few.rss_kib);
    }
    report.put_count(&format!("{prefix}rss_many_kib"), many.rss_kib);
    report.put(&format!("{prefix}rss_bytes_per_socket"), slope);
    report.put(&format!("{prefix}pss_bytes_per_socket"), each(few.pss_kib, many.pss_kib));
    Some(slope)
}

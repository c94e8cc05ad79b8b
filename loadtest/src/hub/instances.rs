//! Rooms whose members are on several instances, while Redis or an instance may be killed, paused or replaced half way: each
//! member should get each message once and in order, or be told that something is missing.

use std::process::{Child, Command, Stdio};

use anyhow::Context;
use rustix::process::Signal;

use crate::hub::follow::{self, Verdict};
use crate::hub::options::HubInstances;
use crate::hub::outcome::{Part, put_cost, put_endings, put_latencies, put_memory, put_own, put_sockets};
use crate::hub::readiness::Readiness;
use crate::hub::tally::{Counts, Why};
use crate::hub::traffic::{rooms, send};
use crate::hub::workers::{Workers, setup, shares};
use crate::report::Report;
use crate::{nanoseconds, process, socket};

/// What may be noted of messages in all.
const FOLLOWED_BYTES_MAX: u64 = 1 << 30;

pub(crate) fn measure(options: &HubInstances) -> anyhow::Result<Report> {
    let common = &options.common;
    let (group, places) = rooms(common, &options.fan_out)?;
    check_memory(options, places)?;
    let mut setup = setup(common, vec![group], 0..0)?;
    setup.follows = true;
    setup.returns_within = Some(nanoseconds(options.jitter));
    if let Some(pid) = options.kill_pid {
        anyhow::ensure!(process::exists(pid), "--kill-pid {pid} is no process");
    }
    let readiness = Readiness::watch(&options.ready, common.allow_remote).context("--ready")?;
    let mut workers = Workers::start(common, setup, &shares(0..places, usize::from(common.threads)))?;
    workers.readiness = readiness;
    workers.open(0..places, places)?;

    let [from, turn, end] = send(&workers, common, 0, options.fan_out.rate, 2)?;
    workers.wait_until(from)?;
    let begun = workers.mark();
    workers.wait_until(turn)?;
    let happens_at = socket::now();
    let command = begin_half_way(options)?;
    workers.wait_until(end)?;
    let cost = workers.since(&begun);
    let is_whole = |counts: &Counts| counts.unanswered == 0 && counts.ready + counts.failed >= places as u64;
    let whole = workers.wait_for("an answer to all messages and the return of all sockets", is_whole);
    workers.wait_until(socket::now() + nanoseconds(options.settle))?;
    workers.settle()?;
    let mut report = Report::empty();
    if let Some(mut command) = command {
        let status = command.wait()?;
        if !status.success() {
            report.fail(format!("--half-way: {status}"));
        }
    }
    if let Err(error) = whole {
        report.fail(error.to_string());
    }
    put_memory(&mut report, &workers);
    let counts = workers.counts();
    workers.readiness.put(&mut report, happens_at);
    let mut tally = workers.finish()?;

    report.put_count("sockets", counts.ready);
    let (members, seconds) = (options.fan_out.members, common.duration.as_secs_f64());
    for (phase, prefix) in [(0, "before_"), (1, "after_")] {
        let missing = put_latencies(&mut report, &tally, &Part { prefix, phase, members, seconds });
        // What came when its member was back, and what did not: no figure of latency has it.
        report.put_count(&format!("{prefix}not_timed"), missing);
    }
    put_verdict(&mut report, tally.followed.verdict(options.fan_out.rooms.into()));
    let refused = tally.refused.iter().map(|(code, count)| (code.clone(), *count)).collect::<Vec<_>>();
    report.put_counts("refused_and_sent_again", &refused);
    report.put_count("unanswered", counts.unanswered);
    if options.kill_pid.is_some() {
        // These were to be lost; all others fail the run.
        put_endings(&mut report, "killed", &std::mem::take(&mut tally.losses));
    }
    if counts.returned > 0 {
        report.put_count("returned", counts.returned);
        report.put("all_back_after_s", counts.returned_at.saturating_sub(happens_at) as f64 / 1e9);
        // Each from the moment when it first tried.
        report.put_histogram("returning_us", &tally.joining[Why::Returns as usize]);
    }
    put_cost(&mut report, &cost, "delivery", tally.arrived.iter().sum());
    put_own(&mut report, &tally, (end - from) as f64 / 1e9);
    put_sockets(&mut report, &tally);
    Ok(report)
}

/// That there is memory for what is noted of each message.
fn check_memory(options: &HubInstances, places: usize) -> anyhow::Result<()> {
    let HubInstances { common, fan_out, .. } = options;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive")]
    let messages = (fan_out.rate * (common.warm_up + 2 * common.duration).as_secs_f64()) as u64;
    let bytes = follow::bytes(places as u64, messages, fan_out.rooms.into(), common.threads.into());
    anyhow::ensure!(
        bytes <= FOLLOWED_BYTES_MAX,
        "following {messages} messages of {places} members takes {} MiB, and {} are allowed: less of --duration, --rate or --members",
        bytes >> 20,
        FOLLOWED_BYTES_MAX >> 20
    );
    Ok(())
}

/// Does what is to be done half way; what takes its time goes on beside.
fn begin_half_way(options: &HubInstances) -> anyhow::Result<Option<Child>> {
    if let Some(pid) = options.kill_pid {
        process::signal(pid, Signal::KILL)?;
    }
    let Some(command) = &options.half_way else { return Ok(None) };
    // Whatever it leaves running is not to hold the pipes of this process open.
    let spawned = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    Ok(Some(spawned.context("--half-way")?))
}

fn put_verdict(report: &mut Report, verdict: Verdict) {
    let Verdict { expected, delivered, recovered, told, missing, doubled, again, out_of_order, renumbered, tells } =
        verdict;
    for (name, count) in [
        ("expected", expected),
        ("delivered", delivered),
        ("recovered", recovered),
        ("told_missing", told),
        ("missing_untold", missing),
        ("doubled", doubled),
        ("doubled_told", again),
        ("out_of_order", out_of_order),
        ("renumbered_told", renumbered),
        ("members_told", tells),
    ] {
        report.put_count(name, count);
    }
    if expected == 0 {
        report.fail("nothing was said that could be followed".to_owned());
    }
    for (count, what) in [
        (missing, "deliveries did not come, and nobody was told"),
        (doubled, "deliveries came twice"),
        (out_of_order, "deliveries were out of order, or their numbers given twice"),
    ] {
        if count > 0 {
            report.fail(format!("{count} {what}"));
        }
    }
}

//! What becomes of requests when an instance of an upstream fails, and when it comes back: an even load over a proxy that
//! balances three sample backends, one of which is killed, stopped, slowed down or made to fail for a while.

mod instances;
mod timeline;

use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;

use self::instances::Instances;
pub(crate) use self::timeline::Record;
use self::timeline::{Served, back_after, phase, share};
use crate::http::Requests;
use crate::logout::Caller;
use crate::options::{Fault, Faults};
use crate::report::Report;
use crate::scenario::{self, Job, Plan};
use crate::{nanoseconds, socket, target};

/// How often instances are asked what they have served.
const ASK_EVERY: u64 = 100_000_000;
/// The proxy has found the instances when it has answered so many requests in a row.
const GOOD_IN_A_ROW: u32 = 30;
/// A proxy that has not found its instances after this long does not.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// When the balance has had time to move away from a slow instance.
const MOVED_AFTER_NS: u64 = 2_000_000_000;

/// When what happened, in nanoseconds of the machine's clock.
struct Times {
    fails_at: u64,
    returns_at: u64,
    end: u64,
}

pub(crate) fn measure(options: &Faults) -> anyhow::Result<Report> {
    let common = &options.common;
    let victim = options.ports.len() - 1;
    ensure!(victim > 0, "--ports wants two or more instances: what fails is the last one");
    let mut instances = Instances::start(&options.ports, options.delay)?;
    let requests = target::requests(common)?;
    wait_for(&requests, common.urls.first().context("no URL")?)?;
    let whole = options.before + options.lasting + options.after;
    let job = Job {
        plan: Plan::Open { rate: options.rate, arrival: options.arrival, seed: options.seed },
        requests: requests.into(),
        connections: usize::try_from(options.connections)?,
        threads: usize::from(common.threads),
        warm_up_ns: nanoseconds(common.warm_up),
        duration_ns: nanoseconds(whole),
        timeout_ns: nanoseconds(common.timeout),
        expected: common.expected.clone(),
        server_pid: common.server_pid,
        tokens_out: None,
        records: true,
    };
    let begin = socket::now() + job.warm_up_ns;
    let fails_at = begin + nanoseconds(options.before);
    let returns_at = fails_at + nanoseconds(options.lasting);
    let times = Times { fails_at, returns_at, end: begin + job.duration_ns };
    let (measured, served) = std::thread::scope(|scope| {
        let script = scope.spawn(|| play(options, &mut instances, victim, &times));
        let measured = scenario::run(&job, &mut |_| {});
        let served = script.join().map_err(|_| anyhow::anyhow!("what makes the instance fail panicked"))??;
        anyhow::Ok((measured?, served))
    })?;
    let mut report = Report::empty();
    let records = &measured.tally.records;
    put_phase(&mut report, "before", records, begin, fails_at);
    put_phase(&mut report, "failing", records, fails_at, returns_at);
    put_phase(&mut report, "after", records, returns_at, times.end);
    let mut put_share = |name: &str, from, end| {
        if let Some(share) = share(&served, victim, from, end) {
            report.put(name, share);
        }
    };
    put_share("before_share", begin, fails_at);
    put_share("failing_share_at_first", fails_at, returns_at.min(fails_at + MOVED_AFTER_NS));
    put_share("failing_share_later", returns_at.min(fails_at + MOVED_AFTER_NS), returns_at);
    put_share("after_share", returns_at, times.end);
    if let Some(after) = back_after(&served, victim, returns_at) {
        report.put("back_after_s", after as f64 / 1e9);
    }
    report.put_count("backlog", measured.tally.backlog);
    report.put_answers(&measured.tally);
    Ok(report)
}

fn put_phase(report: &mut Report, name: &str, records: &[Record], from: u64, end: u64) {
    let phase = phase(records, from, end);
    report.put_count(&format!("{name}_requests"), phase.requests);
    report.put_count(&format!("{name}_failed"), phase.failed);
    if let Some(ns) = phase.last_failure_ns {
        report.put(&format!("{name}_last_failure_s"), ns as f64 / 1e9);
    }
    report.put_histogram(&format!("{name}_us"), &phase.latency);
}

/// Waits until the proxy answers by its instances.
fn wait_for(requests: &Requests, url: &str) -> anyhow::Result<()> {
    let (_, path) = target::split_url(url)?;
    let due = socket::now() + nanoseconds(READY_WITHIN);
    let mut good = 0;
    while good < GOOD_IN_A_ROW {
        let asked =
            Caller::at(requests.address, Duration::from_secs(1)).and_then(|mut caller| caller.ask("GET", path, "", ""));
        match asked {
            Ok(said) if said.status < 400 => good += 1,
            Ok(said) => {
                ensure!(socket::now() < due, "{url} is still answered {}", said.status);
                good = 0;
            }
            Err(error) => {
                ensure!(socket::now() < due, "{url} is still not answered: {error:#}");
                good = 0;
            }
        }
        wait_until(socket::now() + ASK_EVERY / 10);
    }
    Ok(())
}

/// Makes the victim fail and come back in time, and asks all what they have served.
fn play(options: &Faults, instances: &mut Instances, victim: usize, times: &Times) -> anyhow::Result<Vec<Served>> {
    let mut served = Vec::new();
    watch(instances, times.fails_at, &mut served);
    match options.fault {
        Fault::Killed => instances.kill(victim)?,
        Fault::Stopped => instances.signal(victim, Signal::STOP)?,
        Fault::Slow => instances.behave(victim, options.delay * 10, 0)?,
        Fault::Failing => instances.behave(victim, options.delay, 2)?,
    }
    watch(instances, times.returns_at, &mut served);
    match options.fault {
        Fault::Killed => instances.revive(victim)?,
        Fault::Stopped => instances.signal(victim, Signal::CONT)?,
        Fault::Slow | Fault::Failing => instances.behave(victim, options.delay, 0)?,
    }
    watch(instances, times.end, &mut served);
    Ok(served)
}

fn watch(instances: &Instances, until: u64, served: &mut Vec<Served>) {
    loop {
        served.push(instances.served());
        let now = socket::now();
        if now >= until {
            return;
        }
        wait_until(until.min(now + ASK_EVERY));
    }
}

#[expect(clippy::disallowed_methods, reason = "what happens when is the scenario: there is no event to wait for")]
fn wait_until(at: u64) {
    std::thread::sleep(Duration::from_nanos(at.saturating_sub(socket::now())));
}

//! The load test of Shardgate: arguments → job → scenario → report → exit code.
//!
//! `scenario` says what to do, `pace` when, `http` does it over a `stream` on a `socket`, `answer` and `body` read what comes,
//! `tally` counts, `process` weighs the server, `report` tells. `serve` is a sample backend to do it to, and `faults` makes one
//! of several fail. `logout`, which watches two servers at once, and `flood`, which ends no handshake, go their own ways, and
//! `hub` has the scenarios for WebSockets.
#![expect(clippy::cast_precision_loss, reason = "figures are shown with three digits")]

mod answer;
mod body;
mod faults;
mod flood;
#[cfg(test)]
mod front;
mod http;
mod hub;
mod logout;
mod options;
mod pace;
mod process;
mod report;
mod scenario;
mod serve;
mod socket;
mod stream;
mod tally;
mod target;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;

use crate::options::{Cli, Command, Common, Serve};
use crate::pace::Arrival;
use crate::report::{Conditions, Report};
use crate::scenario::{Job, Plan};
use crate::tally::Tally;

/// Exit codes: all went well, some request failed, the command line or its files are wrong.
const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// A body for slow uploads and a bound for what they pretend to send.
const SLOW_BODY_BYTES: u64 = 1 << 20;

fn main() -> ExitCode {
    let run = match Cli::parse().command {
        Command::Serve(serve) => serve_until_killed(&serve),
        Command::Logout(logout) => logout::measure(&logout),
        Command::Faults(faults) => {
            faults::measure(&faults).and_then(|report| tell(&report, faults.common.json.as_deref()))
        }
        Command::Flood(flood) => flood::measure(&flood).and_then(|report| tell(&report, flood.json.as_deref())),
        Command::Hub(command) => hub::measure(&command).and_then(|report| tell(&report, command.json())),
        command => job(command).and_then(|(common, job)| measure(&common, &job)),
    };
    match run {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shardgate-loadtest: {error:#}");
            ExitCode::from(USAGE)
        }
    }
}

fn serve_until_killed(options: &Serve) -> anyhow::Result<ExitCode> {
    let (server, port) = serve::Server::bind(options.address, options.port)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {}:{port}", options.address)?;
    stdout.flush()?;
    server.run()
}

/// From the command line to what is to be done.
fn job(command: Command) -> anyhow::Result<(Common, Job)> {
    let mut heads = None;
    let mut tokens_out = None;
    let (mut common, plan, connections) = match command {
        Command::Open(open) => {
            (open.common, Plan::Open { rate: open.rate, arrival: open.arrival, seed: open.seed }, open.connections)
        }
        Command::Closed(closed) => (closed.common, Plan::Closed, closed.connections),
        Command::Sse(sse) => (sse.common, Plan::Events, sse.streams),
        Command::Idle(idle) => (idle.common, Plan::Idle { hold_ns: nanoseconds(idle.hold) }, idle.connections),
        Command::Slow(slow) => {
            let mut common = slow.common;
            if slow.body && common.body_bytes == 0 {
                common.body_bytes = SLOW_BODY_BYTES;
            }
            ensure!(!slow.every.is_zero(), "--every 0 is not slow; give a time like 1s");
            (common, Plan::Slow { every_ns: nanoseconds(slow.every), in_body: slow.body }, slow.connections)
        }
        Command::Stream(stream) => {
            let mut common = stream.common;
            common.body_bytes = stream.up.unwrap_or(common.body_bytes);
            (common, Plan::Transfer, stream.connections)
        }
        Command::Bomb(bomb) => {
            let mut common = bomb.common;
            if common.expected.is_empty() {
                common.expected = vec![431];
            }
            let plan = Plan::Open { rate: bomb.rate, arrival: Arrival::Constant, seed: 1 };
            heads = Some(target::bombs(&common, bomb.head_bytes)?);
            (common, plan, bomb.connections)
        }
        Command::Login(login) => {
            let mut common = login.common;
            common.expected = vec![200];
            heads = Some(target::logins(&common, &login.users, login.count)?);
            tokens_out = login.tokens_out;
            (common, Plan::Burst, login.connections.unwrap_or(login.count))
        }
        Command::Serve(_) | Command::Logout(_) | Command::Faults(_) | Command::Flood(_) | Command::Hub(_) => {
            anyhow::bail!("it is no job")
        }
    };
    if matches!(plan, Plan::Idle { .. } | Plan::Burst) {
        common.threads = 1; // one moment for all connections
    }
    ensure!(!common.duration.is_zero() && !common.timeout.is_zero(), "--duration and --timeout must be over 0");
    if let Some(pid) = common.server_pid {
        ensure!(process::exists(pid), "--server-pid {pid} is no process");
    }
    let job = Job {
        plan,
        requests: Arc::new(match heads {
            Some(requests) => requests,
            None => target::requests(&common)?,
        }),
        connections: usize::try_from(connections)?,
        threads: usize::from(common.threads),
        warm_up_ns: nanoseconds(common.warm_up),
        duration_ns: nanoseconds(common.duration),
        timeout_ns: nanoseconds(common.timeout),
        expected: common.expected.clone(),
        server_pid: common.server_pid,
        tokens_out,
        records: false,
    };
    Ok((common, job))
}

fn measure(common: &Common, job: &Job) -> anyhow::Result<ExitCode> {
    let start = socket::now();
    let mut last = (start, Tally::new());
    let measured = scenario::run(job, &mut |tally| {
        if !common.quiet {
            let now = socket::now();
            let seconds = |from: u64| (now - from) as f64 / 1e9;
            eprintln!("{}", report::progress(seconds(start), seconds(last.0), &last.1, tally));
            last = (now, tally.clone());
        }
    })?;
    if let Some(file) = &job.tokens_out {
        let tokens = measured.tally.contents.iter().filter_map(|content| logout::access_token(content));
        let text = tokens.fold(String::new(), |text, token| text + &token + "\n");
        std::fs::write(file, text).with_context(|| format!("--tokens-out {}", file.display()))?;
    }
    tell(&Report::new(job, &measured), common.json.as_deref())
}

/// Prints a report, writes it as JSON where that is asked for, and makes the exit code of it.
fn tell(report: &Report, json: Option<&Path>) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(report.table().as_bytes())?;
    if let Some(file) = json {
        let json = serde_json::to_string_pretty(&report.json(&Conditions::now()))?;
        std::fs::write(file, json + "\n").with_context(|| format!("--json {}", file.display()))?;
    }
    Ok(if report.failed() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

//! What to do: runs a scenario's threads, marks what server and load test cost meanwhile, and adds up the tallies.
//! Each scenario is a loop in a file of its own; words for the result are `report`'s.

mod burst;
mod idle;
mod requests;
mod slow;
mod sse;
mod transfer;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::Context;

use crate::faults::Record;
use crate::http::{Client, Outcome, Requests, Traffic};
use crate::pace::Arrival;
use crate::process;
use crate::socket;
use crate::tally::{Tally, is_expected};

const SECOND: u64 = 1_000_000_000;
/// Requests that are too late are looked for this often.
const EXPIRE_EVERY: u64 = SECOND / 10;
/// A connection that failed waits this long, so that a dead server is not asked a million times a second.
const REST: u64 = SECOND / 100;
/// Resident memory is looked at this often for its peak.
const SAMPLE_EVERY: u64 = SECOND / 20;

/// A scenario and its numbers.
pub(crate) struct Job {
    pub(crate) plan: Plan,
    pub(crate) requests: Arc<Requests>,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) warm_up_ns: u64,
    pub(crate) duration_ns: u64,
    pub(crate) timeout_ns: u64,
    /// Statuses that are success; all below 400 if empty.
    pub(crate) expected: Vec<u16>,
    pub(crate) server_pid: Option<u32>,
    /// Where the access tokens go that a burst of log-ins got.
    pub(crate) tokens_out: Option<std::path::PathBuf>,
    /// Whether each request is noted.
    pub(crate) records: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Plan {
    Open {
        rate: f64,
        arrival: Arrival,
        seed: u64,
    },
    Closed,
    Events,
    Idle {
        hold_ns: u64,
    },
    Slow {
        every_ns: u64,
        in_body: bool,
    },
    /// Each of the job's heads once, as fast as the connections let it.
    Burst,
    Transfer,
}

/// What came of it.
pub(crate) struct Measured {
    pub(crate) tally: Tally,
    pub(crate) seconds: f64,
    /// CPU time of the load test itself.
    pub(crate) own_cpu_ns: u64,
    pub(crate) server: Option<Server>,
}

/// What the server took while it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Server {
    pub(crate) cpu_us: u64,
    pub(crate) memory: process::Memory,
    pub(crate) rss_before_kib: u64,
    pub(crate) rss_peak_kib: u64,
}

/// One thread's part of a job.
struct Share<'job> {
    job: &'job Job,
    nth: usize,
    /// Place of its first connection among all.
    first: usize,
    connections: usize,
    start: u64,
    measure_from: u64,
    end: u64,
    news: Sender<(usize, Tally)>,
}

/// Runs a job to its end; `progress` hears each second what has been counted so far.
pub(crate) fn run(job: &Job, progress: &mut dyn FnMut(&Tally)) -> anyhow::Result<Measured> {
    socket::allow_sockets(job.connections as u64)?;
    let mut cost = Cost::new(job.server_pid);
    let is_timed = matches!(job.plan, Plan::Open { .. } | Plan::Closed | Plan::Events);
    // Timed threads begin together, after their connections are on their way.
    let start = socket::now() + if is_timed { SECOND / 20 } else { 0 };
    let measure_from = start + if is_timed { job.warm_up_ns } else { 0 };
    let end = match job.plan {
        Plan::Idle { .. } | Plan::Transfer | Plan::Burst => start + 3600 * SECOND, // they end by themselves; this is the bound
        _ => measure_from + job.duration_ns,
    };
    let (news, heard) = channel();
    std::thread::scope(|scope| {
        let threads = job.threads.min(job.connections).max(1);
        let mut workers = Vec::new();
        for nth in 0..threads {
            let first = job.connections * nth / threads;
            let connections = job.connections * (nth + 1) / threads - first;
            let share = Share { job, nth, first, connections, start, measure_from, end, news: news.clone() };
            workers.push(scope.spawn(move || work(&share)));
        }
        drop(news);
        let mut latest: Vec<Option<Tally>> = vec![None; threads];
        loop {
            let wait = cost.mark(measure_from, end);
            match heard.recv_timeout(Duration::from_nanos(wait)) {
                Ok((nth, tally)) => {
                    latest[nth] = Some(tally);
                    if nth == 0 {
                        progress(&sum(latest.iter().flatten()));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let finished = cost.finish();
        let mut tallies = Vec::new();
        for worker in workers {
            tallies.push(worker.join().map_err(|_| anyhow::anyhow!("a thread of the load test panicked"))??);
        }
        let (seconds, own_cpu_ns, server) = finished;
        Ok(Measured { tally: sum(tallies.iter()), seconds, own_cpu_ns, server })
    })
}

fn work(share: &Share<'_>) -> anyhow::Result<Tally> {
    let job = share.job;
    let client = Client::new(Arc::clone(&job.requests), share.connections, share.first).context("epoll")?;
    let meter = Meter::new(share);
    Ok(match job.plan {
        Plan::Open { .. } | Plan::Closed => requests::run(client, meter),
        Plan::Events => sse::run(client, meter),
        Plan::Idle { hold_ns } => idle::run(client, meter, hold_ns),
        Plan::Slow { every_ns, in_body } => slow::run(client, meter, every_ns, in_body),
        Plan::Burst => burst::run(client, meter),
        Plan::Transfer => transfer::run(client, meter),
    })
}

fn sum<'tally>(mut tallies: impl Iterator<Item = &'tally Tally>) -> Tally {
    let mut sum = tallies.next().cloned().unwrap_or_else(Tally::new);
    for tally in tallies {
        sum.add(tally);
    }
    sum
}

/// Counts for one thread, within the measured time, and sends the news of each second.
struct Meter<'share> {
    share: &'share Share<'share>,
    tally: Tally,
    next_news: u64,
    /// Traffic and CPU time when the measured time began.
    before: Option<(Traffic, u64)>,
    over: bool,
}

impl<'share> Meter<'share> {
    fn new(share: &'share Share<'share>) -> Self {
        Self { share, tally: Tally::new(), next_news: share.start + SECOND, before: None, over: false }
    }

    /// To be called each round.
    fn tick(&mut self, now: u64, traffic: Traffic) {
        if self.before.is_none() && now >= self.share.measure_from {
            self.before = Some((traffic, socket::thread_cpu()));
        }
        if !self.over && now >= self.share.end {
            self.close(traffic);
        }
        if now >= self.next_news {
            self.next_news = now + SECOND;
            // A receiver that is gone has no use for news.
            let _ = self.share.news.send((self.share.nth, self.tally.clone()));
        }
    }

    /// The measured time is over.
    fn close(&mut self, traffic: Traffic) {
        if let (false, Some((before, cpu_before))) = (self.over, self.before) {
            self.tally.traffic = Traffic {
                connects: traffic.connects - before.connects,
                whole: traffic.whole - before.whole,
                resumed: traffic.resumed - before.resumed,
                bytes_in: traffic.bytes_in - before.bytes_in,
                bytes_out: traffic.bytes_out - before.bytes_out,
            };
            self.tally.thread_cpu_ns = socket::thread_cpu() - cpu_before;
        }
        self.over = true;
    }

    /// Counts how a request ended that was meant to leave at `intended_at`.
    fn count(&mut self, outcome: Outcome, intended_at: u64, now: u64) {
        let measured = self.share.measure_from..self.share.end;
        if measured.contains(&now) && matches!(outcome, Outcome::Answered { .. }) {
            self.tally.answered_meanwhile += 1;
        }
        // A failure counts also if the request left before: a server that hangs from the beginning must show.
        let counts = match outcome {
            Outcome::Failed(_) => intended_at < self.share.end && now >= self.share.measure_from,
            _ => measured.contains(&intended_at),
        };
        if self.share.job.records && outcome != Outcome::Closed {
            let is_good = match outcome {
                Outcome::Answered { status } => is_expected(status, &self.share.job.expected),
                _ => false,
            };
            self.tally.records.push(Record { intended_at, latency_ns: now.saturating_sub(intended_at), is_good });
        }
        if counts {
            self.tally.count(outcome, now.saturating_sub(intended_at), &self.share.job.expected);
        }
    }

    fn finish(mut self, client: &Client) -> Tally {
        self.close(client.traffic);
        self.tally
    }
}

/// Marks what the measured time costs, from the main thread.
struct Cost {
    pid: Option<u32>,
    /// The server's processes, as they were when the measured time began.
    members: Vec<u32>,
    rss_before_kib: u64,
    rss_peak_kib: u64,
    next_sample: u64,
    begun: Option<Mark>,
    ended: Option<Mark>,
}

#[derive(Clone, Copy)]
struct Mark {
    at: u64,
    own_cpu_ns: u64,
    server_cpu_us: u64,
}

impl Cost {
    fn new(pid: Option<u32>) -> Self {
        let members = pid.map(process::members).unwrap_or_default();
        let rss_before_kib = process::rss_kib(&members);
        Self { pid, members, rss_before_kib, rss_peak_kib: rss_before_kib, next_sample: 0, begun: None, ended: None }
    }

    fn now(&self) -> Mark {
        Mark {
            at: socket::now(),
            own_cpu_ns: socket::process_cpu(),
            server_cpu_us: self.pid.map_or(0, process::cpu_us),
        }
    }

    /// Does what is due; returns for how long nothing will be.
    fn mark(&mut self, measure_from: u64, end: u64) -> u64 {
        let now = socket::now();
        if now >= measure_from && self.begun.is_none() {
            self.members = self.pid.map(process::members).unwrap_or_default();
            self.begun = Some(self.now());
        }
        if now >= end && self.ended.is_none() {
            self.ended = Some(self.now());
        }
        if now >= self.next_sample {
            self.next_sample = now + SAMPLE_EVERY;
            self.rss_peak_kib = self.rss_peak_kib.max(process::rss_kib(&self.members));
        }
        let mut next = if self.pid.is_some() { self.next_sample } else { u64::MAX };
        if self.begun.is_none() {
            next = next.min(measure_from);
        } else if self.ended.is_none() {
            next = next.min(end);
        }
        next.saturating_sub(now).min(SECOND)
    }

    fn finish(self) -> (f64, u64, Option<Server>) {
        let ended = self.ended.unwrap_or_else(|| self.now());
        let begun = self.begun.unwrap_or(ended);
        let server = self.pid.map(|pid| Server {
            cpu_us: ended.server_cpu_us.saturating_sub(begun.server_cpu_us),
            memory: process::memory(pid),
            rss_before_kib: self.rss_before_kib,
            rss_peak_kib: self.rss_peak_kib,
        });
        ((ended.at - begun.at) as f64 / 1e9, ended.own_cpu_ns - begun.own_cpu_ns, server)
    }
}

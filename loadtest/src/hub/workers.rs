//! The threads of sockets, as the scenarios see them: gives them orders, waits until something has happened, says how it
//! goes, and marks what the server costs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::hub::options::HubCommon;
use crate::hub::order::{Group, Order, Setup, When};
use crate::hub::tally::{Counts, Tally};
use crate::hub::token::Tokens;
use crate::hub::worker::Worker;
use crate::process::{self, Memory};
use crate::{nanoseconds, socket, target};

pub(crate) const SECOND: u64 = 1_000_000_000;
/// Resident memory is looked at this often for its peak, and whether what is waited for has come.
const LOOK_EVERY: u64 = SECOND / 20;

/// Whoever sends nothing for so long has nothing more to send.
const QUIET: u64 = 2 * SECOND;

/// What server and load test had cost at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) at: u64,
    pub(crate) own_cpu_ns: u64,
    pub(crate) server_cpu_us: u64,
}

/// What it has cost from one mark to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) own_cpu_ns: u64,
    pub(crate) server_cpu_us: Option<u64>,
}

pub(crate) struct Workers {
    orders: Vec<Sender<Order>>,
    threads: Vec<JoinHandle<Tally>>,
    heard: Receiver<(usize, Counts)>,
    latest: Vec<Counts>,
    started: u64,
    timeout_ns: u64,
    next_progress: u64,
    messages_told: u64,
    quiet: bool,
    server_pid: Option<u32>,
    members: Vec<u32>,
    pub(crate) rss_before_kib: u64,
    pub(crate) rss_peak_kib: u64,
}

/// What the threads are to know, from the options.
pub(crate) fn setup(common: &HubCommon, groups: Vec<Group>, slow: Range<usize>) -> anyhow::Result<Setup> {
    let url = common.url.strip_prefix("ws://").map(|rest| format!("http://{rest}"));
    let url = url.with_context(|| format!("--url {} does not begin with ws://", common.url))?;
    let (authority, path) = target::split_url(&url)?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    ensure!(
        (1..=100).contains(&common.room.len()) && common.room.bytes().all(is_name),
        "--room {:?} should be 1 to 100 of A-Z a-z 0-9 . _ : -",
        common.room
    );
    ensure!(!common.timeout.is_zero() && !common.duration.is_zero(), "--duration and --timeout must be over 0");
    if let Some(pid) = common.server_pid {
        ensure!(process::exists(pid), "--server-pid {pid} is no process");
    }
    Ok(Setup {
        address: target::resolve(authority, common.allow_remote)?,
        authority: authority.to_owned(),
        path: path.to_owned(),
        tokens: Tokens::new(&common.token)?,
        groups,
        slow,
        timeout_ns: nanoseconds(common.timeout),
        opening_max: usize::try_from(common.opening)?,
    })
}

impl Workers {
    /// Starts a thread for each of these shares of all places.
    pub(crate) fn start(common: &HubCommon, setup: Setup, shares: &[Range<usize>]) -> anyhow::Result<Self> {
        socket::allow_sockets(shares.iter().map(|share| share.len() as u64).sum::<u64>() + 1024)?;
        let setup = Arc::new(setup);
        let members = common.server_pid.map(process::members).unwrap_or_default();
        let rss_before_kib = process::rss_kib(&members);
        let (news, heard) = channel();
        let (mut orders, mut threads) = (Vec::new(), Vec::new());
        for (nth, share) in shares.iter().enumerate() {
            let (order, ordered) = channel();
            // An epoll set and its timer slack are a thread's own, so it makes its worker itself.
            let (setup, share, news) = (Arc::clone(&setup), share.clone(), news.clone());
            orders.push(order);
            threads.push(std::thread::spawn(move || match Worker::new(setup, nth, share, ordered, news) {
                Ok(worker) => worker.run(),
                Err(error) => {
                    eprintln!("shardgate-loadtest: epoll: {error}");
                    Tally::new()
                }
            }));
        }
        let now = socket::now();
        Ok(Self {
            orders,
            threads,
            heard,
            latest: vec![Counts::default(); shares.len()],
            started: now,
            timeout_ns: nanoseconds(common.timeout),
            next_progress: now + SECOND,
            messages_told: 0,
            quiet: common.quiet,
            server_pid: common.server_pid,
            members,
            rss_before_kib,
            rss_peak_kib: rss_before_kib,
        })
    }

    /// Gives all threads an order; each does its part.
    pub(crate) fn order(&self, order: &Order) {
        for orders in &self.orders {
            // A thread that is gone shows when it is waited for.
            let _ = orders.send(order.clone());
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.latest.iter().fold(Counts::default(), |mut sum, counts| {
            sum.add(*counts);
            sum
        })
    }

    /// Waits until this holds of what has been counted; an error says what was waited for in vain.
    pub(crate) fn wait_for(&mut self, what: &str, holds: impl Fn(&Counts) -> bool) -> anyhow::Result<()> {
        let due = socket::now() + self.timeout_ns;
        while !holds(&self.counts()) {
            let now = socket::now();
            ensure!(now < due, "{what} did not come about in {} s: {:?}", self.timeout_ns / SECOND, self.counts());
            self.listen(due - now)?;
        }
        Ok(())
    }

    /// Waits until a time.
    pub(crate) fn wait_until(&mut self, due: u64) -> anyhow::Result<()> {
        loop {
            let now = socket::now();
            if now >= due {
                return Ok(());
            }
            self.listen(due - now)?;
        }
    }

    /// Waits for what is still on its way: until no message has come for so long that a stall is unlikely.
    pub(crate) fn settle(&mut self) -> anyhow::Result<()> {
        let due = socket::now() + self.timeout_ns;
        let (mut messages, mut quiet_since) = (self.counts().messages, socket::now());
        while socket::now() < due.min(quiet_since + QUIET) {
            self.listen(LOOK_EVERY)?;
            let now = self.counts().messages;
            if now != messages {
                (messages, quiet_since) = (now, socket::now());
            }
        }
        Ok(())
    }

    /// Opens these places and waits until all are ready or known not to be.
    pub(crate) fn open(&mut self, places: Range<usize>, ready: usize) -> anyhow::Result<()> {
        self.order(&Order::Open(places, When::Soon));
        let ready = ready as u64;
        self.wait_for("all sockets in their rooms", |counts| counts.ready + counts.failed + counts.lost >= ready)?;
        let counts = self.counts();
        ensure!(counts.ready > 0, "no socket got into its room");
        Ok(())
    }

    fn listen(&mut self, wait_ns: u64) -> anyhow::Result<()> {
        match self.heard.recv_timeout(Duration::from_nanos(wait_ns.min(LOOK_EVERY))) {
            Ok((nth, counts)) => self.latest[nth] = counts,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("a thread of the load test has ended early"),
        }
        self.rss_peak_kib = self.rss_peak_kib.max(process::rss_kib(&self.members));
        let now = socket::now();
        if now >= self.next_progress {
            self.next_progress = now + SECOND;
            let counts = self.counts();
            if !self.quiet {
                eprintln!("{}", progress((now - self.started) / SECOND, self.messages_told, &counts));
            }
            self.messages_told = counts.messages;
        }
        Ok(())
    }

    pub(crate) fn mark(&mut self) -> Mark {
        self.members = self.server_pid.map(process::members).unwrap_or_default();
        Mark {
            at: socket::now(),
            own_cpu_ns: socket::process_cpu(),
            server_cpu_us: self.server_pid.map_or(0, process::cpu_us),
        }
    }

    /// What it has cost since.
    pub(crate) fn since(&mut self, before: Mark) -> Cost {
        let now = self.mark();
        Cost {
            seconds: (now.at - before.at) as f64 / 1e9,
            own_cpu_ns: now.own_cpu_ns - before.own_cpu_ns,
            server_cpu_us: self.server_pid.map(|_| now.server_cpu_us.saturating_sub(before.server_cpu_us)),
        }
    }

    pub(crate) fn memory(&self) -> Option<Memory> {
        self.server_pid.map(process::memory)
    }

    /// Ends the threads and adds up what they counted.
    pub(crate) fn finish(self) -> anyhow::Result<Tally> {
        drop(self.orders);
        let mut sum = Tally::new();
        for thread in self.threads {
            let tally = thread.join().map_err(|_| anyhow::anyhow!("a thread of the load test panicked"))?;
            sum.add(&tally);
        }
        Ok(sum)
    }
}

/// One line about what has been counted so far.
fn progress(seconds: u64, messages_before: u64, counts: &Counts) -> String {
    let Counts { ready, opening, failed, lost, messages, errors, p99_ns, .. } = counts;
    let rate = messages - messages_before;
    let p99_us = p99_ns / 1000;
    format!(
        "{seconds} s  {ready} ready  {opening} opening  {rate}/s  p99 {p99_us} us  {failed} failed  {lost} lost  {errors} errors"
    )
}

/// Divides places evenly among threads.
pub(crate) fn shares(places: Range<usize>, threads: usize) -> Vec<Range<usize>> {
    let threads = threads.min(places.len()).max(1);
    let at = |nth: usize| places.start + places.len() * nth / threads;
    (0..threads).map(|nth| at(nth)..at(nth + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_whole() {
        assert_eq!(shares(10..20, 3), [10..13, 13..16, 16..20]);
        assert_eq!(shares(0..2, 8), [0..1, 1..2]);
    }

    #[test]
    fn progress_is_one_line() {
        let counts = Counts { ready: 9000, opening: 1000, messages: 25_000, p99_ns: 4_300_000, ..Counts::default() };
        assert_eq!(
            progress(7, 5000, &counts),
            "7 s  9000 ready  1000 opening  20000/s  p99 4300 us  0 failed  0 lost  0 errors"
        );
    }
}

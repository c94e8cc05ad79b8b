//! The threads of sockets, as the scenarios see them: gives them orders, waits until something has happened, says how it
//! goes, and marks what the server costs.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;

use crate::hub::options::HubCommon;
use crate::hub::order::{Group, Instance, Order, Setup, When};
use crate::hub::readiness::Readiness;
use crate::hub::tally::{Counts, Tally};
use crate::hub::token::Tokens;
use crate::hub::worker::Worker;
use crate::process::{self, Memory};
use crate::stream::Tls;
use crate::target::Url;
use crate::{nanoseconds, socket};

pub(crate) const SECOND: u64 = 1_000_000_000;
/// Resident memory is looked at this often for its peak, and whether what is waited for has come.
const LOOK_EVERY: u64 = SECOND / 20;

/// Whoever sends nothing for so long has nothing more to send.
const QUIET: u64 = 2 * SECOND;

/// What server and load test had cost at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) at: u64,
    own_cpu_ns: u64,
    servers_cpu_us: Vec<u64>,
    redis_cpu_us: u64,
}

/// What it has cost from one mark to another.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) own_cpu_ns: u64,
    /// Of each instance.
    pub(crate) servers_cpu_us: Vec<u64>,
    pub(crate) redis_cpu_us: Option<u64>,
}

impl Cost {
    /// Of all instances.
    pub(crate) fn server_cpu_us(&self) -> Option<u64> {
        (!self.servers_cpu_us.is_empty()).then(|| self.servers_cpu_us.iter().sum())
    }

    /// A time as a share of one core.
    pub(crate) fn percent(&self, cpu_us: u64) -> f64 {
        cpu_us as f64 / self.seconds.max(1e-9) / 1e4
    }
}

pub(crate) struct Workers {
    orders: Vec<Sender<Order>>,
    threads: Vec<JoinHandle<Tally>>,
    heard: Receiver<(usize, Counts)>,
    handed_in: Receiver<Tally>,
    latest: Vec<Counts>,
    started: u64,
    timeout_ns: u64,
    next_progress: u64,
    messages_told: u64,
    quiet: bool,
    server_pids: Vec<u32>,
    redis_pid: Option<u32>,
    members: Vec<u32>,
    pub(crate) readiness: Readiness,
    pub(crate) rss_before_kib: u64,
    pub(crate) rss_peak_kib: u64,
}

/// What the threads are to know, from the options.
pub(crate) fn setup(common: &HubCommon, groups: Vec<Group>, slow: Range<usize>) -> anyhow::Result<Setup> {
    let instances = common.urls.iter().map(|url| instance(url, common.allow_remote));
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    ensure!(
        (1..=100).contains(&common.room.len()) && common.room.bytes().all(is_name),
        "--room {:?} should be 1 to 100 of A-Z a-z 0-9 . _ : -",
        common.room
    );
    ensure!(!common.timeout.is_zero() && !common.duration.is_zero(), "--duration and --timeout must be over 0");
    for pid in &common.server_pids {
        ensure!(process::exists(*pid), "--server-pid {pid} is no process");
    }
    if let Some(pid) = common.redis_pid {
        ensure!(process::exists(pid), "--redis-pid {pid} is no process");
    }
    Ok(Setup {
        instances: instances.collect::<anyhow::Result<_>>()?,
        tokens: Tokens::new(&common.token)?,
        first_user: 0,
        sockets_per_user: 1,
        groups,
        slow,
        timeout_ns: nanoseconds(common.timeout),
        opening_max: usize::try_from(common.opening)?,
        follows: false,
        returns_within: None,
    })
}

fn instance(url: &str, allow_remote: bool) -> anyhow::Result<Instance> {
    let rest = url.strip_prefix("ws").filter(|rest| rest.starts_with("://") || rest.starts_with("s://"));
    let http = format!("http{}", rest.with_context(|| format!("--url {url} does not begin with ws:// or wss://"))?);
    let http = Url::split(&http)?;
    let tls = http.is_secure.then(|| Tls::new(http.authority, None)).transpose()?;
    let (authority, path) = (http.authority.to_owned(), http.path.to_owned());
    Ok(Instance { address: http.resolve(allow_remote)?, tls, authority, path })
}

impl Workers {
    /// Starts a thread for each of these shares of all places.
    pub(crate) fn start(common: &HubCommon, setup: Setup, shares: &[Range<usize>]) -> anyhow::Result<Self> {
        socket::allow_sockets(shares.iter().map(|share| share.len() as u64).sum::<u64>() + 1024)?;
        let setup = Arc::new(setup);
        let members = common.server_pids.iter().flat_map(|pid| process::members(*pid)).collect::<Vec<_>>();
        let rss_before_kib = process::rss_kib(&members);
        let (news, heard) = channel();
        let (hand_in, handed_in) = channel();
        let (mut orders, mut threads) = (Vec::new(), Vec::new());
        for (nth, share) in shares.iter().enumerate() {
            let (order, ordered) = channel();
            // An epoll set and its timer slack are a thread's own, so it makes its worker itself.
            let (setup, share, news, hand_in) = (Arc::clone(&setup), share.clone(), news.clone(), hand_in.clone());
            orders.push(order);
            threads.push(std::thread::spawn(move || match Worker::new(setup, nth, share, ordered, news, hand_in) {
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
            handed_in,
            latest: vec![Counts::default(); shares.len()],
            started: now,
            timeout_ns: nanoseconds(common.timeout),
            next_progress: now + SECOND,
            messages_told: 0,
            quiet: common.quiet,
            server_pids: common.server_pids.clone(),
            redis_pid: common.redis_pid,
            members,
            readiness: Readiness::default(),
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
        self.readiness.listen();
        let now = socket::now();
        if now >= self.next_progress {
            self.next_progress = now + SECOND;
            let counts = self.counts();
            if !self.quiet {
                let line = progress((now - self.started) / SECOND, self.messages_told, &counts);
                eprintln!("{line}{}", self.readiness.progress());
            }
            self.messages_told = counts.messages;
        }
        Ok(())
    }

    pub(crate) fn mark(&mut self) -> Mark {
        self.members = self.server_pids.iter().flat_map(|pid| process::members(*pid)).collect();
        Mark {
            at: socket::now(),
            own_cpu_ns: socket::process_cpu(),
            servers_cpu_us: self.server_pids.iter().map(|pid| process::cpu_us(*pid)).collect(),
            redis_cpu_us: self.redis_pid.map_or(0, process::cpu_us),
        }
    }

    /// What it has cost since.
    pub(crate) fn since(&mut self, before: &Mark) -> Cost {
        let now = self.mark();
        let each = now.servers_cpu_us.iter().zip(&before.servers_cpu_us);
        Cost {
            seconds: (now.at - before.at) as f64 / 1e9,
            own_cpu_ns: now.own_cpu_ns - before.own_cpu_ns,
            // A process that has been killed meanwhile counts as nothing.
            servers_cpu_us: each.map(|(now, before)| now.saturating_sub(*before)).collect(),
            redis_cpu_us: self
                .redis_pid
                .filter(|pid| process::exists(*pid))
                .map(|_| now.redis_cpu_us.saturating_sub(before.redis_cpu_us)),
        }
    }

    pub(crate) fn memory(&self) -> Option<Memory> {
        let each = self.server_pids.iter().map(|pid| process::memory(*pid));
        each.reduce(|one, other| Memory { rss_kib: one.rss_kib + other.rss_kib, pss_kib: one.pss_kib + other.pss_kib })
    }

    /// Sends a signal to each instance.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.server_pids.iter().try_for_each(|pid| process::signal(*pid, signal))
    }

    /// What has been counted since it was last asked for.
    pub(crate) fn hand_in(&mut self) -> anyhow::Result<Tally> {
        self.order(&Order::HandIn);
        let mut sum = Tally::new();
        for _ in &self.threads {
            let tally = self.handed_in.recv_timeout(Duration::from_nanos(self.timeout_ns));
            sum.add(&tally.context("a thread of the load test has ended early")?);
        }
        Ok(sum)
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
    let Counts { ready, opening, failed, lost, messages, errors, refused, unanswered, p99_ns, .. } = counts;
    let rate = messages - messages_before;
    let p99_us = p99_ns / 1000;
    let mut line = format!(
        "{seconds} s  {ready} ready  {opening} opening  {rate}/s  p99 {p99_us} us  {failed} failed  {lost} lost  {errors} errors"
    );
    if *refused > 0 {
        // Writing to a string cannot fail.
        let _ = write!(line, "  {refused} refused  {unanswered} unanswered");
    }
    line
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
        let counts = Counts { refused: 7, unanswered: 2, messages: 5000, ..counts };
        assert_eq!(
            progress(8, 5000, &counts),
            "8 s  9000 ready  1000 opening  0/s  p99 4300 us  0 failed  0 lost  0 errors  7 refused  2 unanswered"
        );
    }
}

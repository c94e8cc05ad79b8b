//! A flood of handshakes: what does a server do whose every core has more signatures asked of it than it can make? Clients
//! come at a set rate, send one greeting, which is the same for all of them, and leave when the first bytes are there. That
//! costs them next to nothing and the server nearly all of a handshake, and so one core can ask too much of another.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::ensure;
use hdrhistogram::Histogram;
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::http::Failure;
use crate::options::Flood;
use crate::pace::{Arrival, Pace};
use crate::report::Report;
use crate::socket::{self, Poller, Ready};
use crate::stream::Tls;
use crate::tally::histogram;
use crate::target::Url;
use crate::{nanoseconds, process};

/// Types of the record that comes first.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
/// What a server says first is less than this.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Connections are spread over so many loopback addresses, each of which has 28,000 ephemeral ports by default.
const SOURCES: usize = 32;
const EXPIRE_EVERY: u64 = 100_000_000;

pub(crate) fn measure(options: &Flood) -> anyhow::Result<Report> {
    let url = Url::split(&options.url)?;
    ensure!(url.is_secure, "--url {} does not begin with https://", options.url);
    ensure!(!options.duration.is_zero() && !options.timeout.is_zero(), "--duration and --timeout must be over 0");
    if let Some(pid) = options.server_pid {
        ensure!(process::exists(pid), "--server-pid {pid} is no process");
    }
    let connections = usize::try_from(options.connections)?;
    socket::allow_sockets(connections as u64)?;
    let clients = Clients {
        address: url.resolve(options.allow_remote)?,
        greeting: Tls::new(url.authority, options.tls)?.greeting()?,
        poller: Poller::new()?,
        slots: std::iter::repeat_with(Client::default).take(connections).collect(),
        free: (0..connections).collect(),
        buffer: vec![0; RECEIVE_BYTES],
        told: Told::default(),
    };
    let cpu_us = || options.server_pid.map_or(0, process::cpu_us);
    let before = (cpu_us(), socket::process_cpu(), socket::now());
    let (told, backlog) = clients.run(options.rate, options.duration, nanoseconds(options.timeout));
    let seconds = (socket::now() - before.2) as f64 / 1e9;
    let mut report = Report::empty();
    report.put("seconds", seconds);
    report.put("intended_per_s", options.rate);
    report.put_count("backlog", backlog);
    report.put_count("answered", told.answered.len());
    report.put_histogram("answered_us", &told.answered);
    report.put_count("refused", told.refused.len());
    report.put_histogram("refused_us", &told.refused);
    let failures = Failure::ALL.iter().map(|kind| (kind.name().to_owned(), told.failures[*kind as usize]));
    let failures = failures.filter(|(_, count)| *count > 0).collect::<Vec<_>>();
    report.put_counts("failures", &failures);
    if options.server_pid.is_some() {
        let spent = (cpu_us() - before.0) as f64;
        report.put("server_cpu_percent", spent / seconds / 1e4);
        report.put("server_cpu_us_per_handshake", spent / (told.answered.len().max(1)) as f64);
    }
    report.put("own_cpu_percent", (socket::process_cpu() - before.1) as f64 / seconds / 1e7);
    if told.answered.is_empty() {
        report.fail("no handshake was answered".to_owned());
    }
    if backlog > 0 {
        report.warn(format!("{backlog} handshakes never began: no connection was free; try --connections"));
    }
    Ok(report)
}

/// What clients were told, and after how many nanoseconds.
struct Told {
    answered: Histogram<u64>,
    /// By an alert.
    refused: Histogram<u64>,
    failures: [u64; Failure::ALL.len()],
}

impl Default for Told {
    fn default() -> Self {
        Self { answered: histogram(), refused: histogram(), failures: [0; Failure::ALL.len()] }
    }
}

/// One place for a client; the client in it comes and goes.
#[derive(Default)]
struct Client {
    socket: Option<OwnedFd>,
    /// Counts the clients of this place, so that an event for an earlier one is known as such.
    generation: u32,
    has_greeted: bool,
    /// When it should have come.
    due: u64,
}

struct Clients {
    address: SocketAddr,
    greeting: Vec<u8>,
    poller: Poller,
    slots: Vec<Client>,
    /// The longest free comes first.
    free: VecDeque<usize>,
    buffer: Vec<u8>,
    told: Told,
}

impl Clients {
    /// Tells what came of it, and how many never came because no place was free.
    fn run(mut self, rate: f64, duration: Duration, timeout_ns: u64) -> (Told, u64) {
        let start = socket::now();
        let end = start + nanoseconds(duration);
        let mut pace = Pace::new(Arrival::Constant, rate, start, 0);
        let mut next_expiry = start;
        loop {
            let now = socket::now();
            if now >= next_expiry {
                next_expiry = now + EXPIRE_EVERY;
                self.expire(now.saturating_sub(timeout_ns));
            }
            while let Some(slot) = self.free.front().copied()
                && pace.next_due() < end
                && let Some(due) = pace.take_due(now)
            {
                self.free.pop_front();
                self.open(slot, due);
            }
            if now >= end && self.free.len() == self.slots.len() {
                return (self.told, pace.untaken_before(end));
            }
            let can_open = !self.free.is_empty() && pace.next_due() < end;
            let next = if can_open { next_expiry.min(pace.next_due()) } else { next_expiry };
            self.poller.wait(Some(next.saturating_sub(socket::now())));
            while let Some(ready) = self.poller.next() {
                self.handle(ready);
            }
        }
    }

    fn open(&mut self, slot: usize, due: u64) {
        let place = &mut self.slots[slot];
        place.generation = place.generation.wrapping_add(1);
        place.has_greeted = false;
        place.due = due;
        let is_ipv4_loopback = self.address.is_ipv4() && self.address.ip().is_loopback();
        let host = u8::try_from(1 + slot % SOURCES).unwrap_or(1);
        let source = is_ipv4_loopback.then(|| IpAddr::V4(Ipv4Addr::new(127, 0, 0, host)));
        let key = u64::from(place.generation) << 32 | slot as u64;
        let opened = socket::connect(self.address, source).and_then(|socket| {
            self.poller.watch(&socket, key)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => place.socket = Some(socket),
            Err(errno) => self.fail(slot, errno.into()),
        }
    }

    fn handle(&mut self, ready: Ready) {
        let slot = usize::try_from(ready.key & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        let Some(place) = self.slots.get_mut(slot) else { return };
        let Some(socket) = place.socket.as_ref().filter(|_| u64::from(place.generation) == ready.key >> 32) else {
            return; // an event of a client that has left since
        };
        if ready.writable && !place.has_greeted {
            if let Err(errno) = socket::connected(socket) {
                return self.fail(slot, errno.into());
            }
            place.has_greeted = true;
            // A buffer that is empty takes it whole. Broken: shows when read.
            let _ = socket::send(socket, &self.greeting);
        }
        if !ready.readable {
            return;
        }
        let received = socket::receive(socket, &mut self.buffer);
        let waited = socket::now().saturating_sub(place.due);
        match received {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(errno) => return self.fail(slot, errno.into()),
            Ok(0) => return self.fail(slot, Failure::EofBeforeAnswer),
            Ok(_) => match self.buffer[0] {
                HANDSHAKE => self.told.answered.saturating_record(waited),
                ALERT => self.told.refused.saturating_record(waited),
                _ => return self.fail(slot, Failure::BadAnswer),
            },
        }
        self.leave(slot);
    }

    fn expire(&mut self, due_before: u64) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].socket.is_some() && self.slots[slot].due < due_before {
                self.fail(slot, Failure::Timeout);
            }
        }
    }

    fn fail(&mut self, slot: usize, failure: Failure) {
        self.told.failures[failure as usize] += 1;
        self.leave(slot);
    }

    fn leave(&mut self, slot: usize) {
        self.slots[slot].socket = None;
        self.free.push_back(slot);
    }
}

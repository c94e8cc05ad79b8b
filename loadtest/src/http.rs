//! The client: many non-blocking HTTP/1.1 connections in one thread. It sends what it is told on the connection it is
//! told and says how each request ended; when and how often is `scenario`'s and `pace`'s.
//!
//! Made to be cheap, because it shares a machine with the server it measures: one receive and one send a request,
//! requests built beforehand, answers read from one buffer that all connections share.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustix::io::Errno;
use rustls::HandshakeKind;

use crate::answer::Answer;
use crate::socket::{self, Poller, Ready};
use crate::stream::{Stream, Tls};

/// What a connection's buffer takes at once; more is read in the next round, so that no big answer starves the rest.
const RECEIVE_BYTES: usize = 128 * 1024;
/// Connections from one loopback address; a machine has 28,000 ephemeral ports for each by default.
const PER_SOURCE: usize = 20_000;

/// The requests to send, built once and shared by all threads.
pub(crate) struct Requests {
    pub(crate) address: SocketAddr,
    /// They go over TLS.
    pub(crate) tls: Option<Tls>,
    /// Each connection takes the session of the one before in its place up again.
    pub(crate) resumes: bool,
    /// They ask for their connection to be closed: it is, whatever their answers say of that (RFC 9112 §9.6).
    pub(crate) closes: bool,
    /// Heads, used in turn.
    pub(crate) heads: Vec<Vec<u8>>,
    /// The body, or the piece that is repeated until `body_bytes` are sent.
    pub(crate) body: Vec<u8>,
    pub(crate) body_bytes: u64,
    /// They are HEAD requests: their answers have no bodies.
    pub(crate) to_head: bool,
}

/// Why a request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// Nobody listens.
    ConnectRefused,
    /// The connection was broken by the other end.
    Reset,
    /// No complete answer in time.
    Timeout,
    /// Closed in order before a byte of the answer.
    EofBeforeAnswer,
    /// Closed in order in the middle of the answer.
    EofMidAnswer,
    /// The answer is not HTTP, or more came than was asked for.
    BadAnswer,
    /// An alert came instead of a handshake, or what is no TLS.
    Tls,
    /// This machine would not open another socket: the load test's own failure.
    NoSocket,
    /// Any other failure of the network.
    Network,
}

impl Failure {
    pub(crate) const ALL: [Self; 9] = [
        Self::ConnectRefused,
        Self::Reset,
        Self::Timeout,
        Self::EofBeforeAnswer,
        Self::EofMidAnswer,
        Self::BadAnswer,
        Self::Tls,
        Self::NoSocket,
        Self::Network,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect_refused",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::EofBeforeAnswer => "eof_before_answer",
            Self::EofMidAnswer => "eof_mid_answer",
            Self::BadAnswer => "bad_answer",
            Self::Tls => "tls",
            Self::NoSocket => "no_socket",
            Self::Network => "network",
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::CONNREFUSED => Self::ConnectRefused,
            Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED => Self::Reset,
            Errno::TIMEDOUT => Self::Timeout,
            Errno::PROTO => Self::Tls,
            Errno::MFILE | Errno::NFILE | Errno::ADDRNOTAVAIL | Errno::NOBUFS | Errno::NOMEM => Self::NoSocket,
            _ => Self::Network,
        }
    }
}

/// How a request, or an idle connection, ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    Answered {
        status: u16,
    },
    Failed(Failure),
    /// An idle connection was closed by the other end.
    Closed,
}

/// One connection's place; the connection in it may come and go.
struct Slot {
    socket: Option<Stream>,
    tls: Option<Tls>,
    /// Counts the connections of this place, so that an event for an earlier one is known as such.
    generation: u32,
    connecting: bool,
    /// A request is under way.
    busy: bool,
    request: usize,
    /// Bytes of head and body already written.
    written: u64,
    intended_at: u64,
    sent_at: u64,
    /// Its last answer had a `Retry-After`.
    was_told_when: bool,
    answer: Answer,
}

/// What one thread's connections have done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) connects: u64,
    /// Handshakes of TLS: whole ones, and those that took a session up again.
    pub(crate) whole: u64,
    pub(crate) resumed: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// One thread's connections.
pub(crate) struct Client {
    requests: Arc<Requests>,
    /// The place of its first connection among those of all threads.
    first: usize,
    poller: Poller,
    slots: Vec<Slot>,
    buffer: Vec<u8>,
    next_request: usize,
    busy: usize,
    /// Failures that were known at once, or found by `expire`.
    /// The time a request was sent tells it from the connection's next one.
    failed: Vec<(usize, u64, Failure)>,
    /// Connections that may have more to read than was taken.
    unfinished: Vec<usize>,
    /// Those of the round before, to be read in this one.
    resumed: Vec<usize>,
    now: u64,
    pub(crate) traffic: Traffic,
}

impl Client {
    pub(crate) fn new(requests: Arc<Requests>, connections: usize, first: usize) -> std::io::Result<Self> {
        let slot = || Slot {
            socket: None,
            tls: requests.tls.as_ref().map(|tls| if requests.resumes { tls.resuming() } else { tls.clone() }),
            generation: 0,
            connecting: false,
            busy: false,
            request: 0,
            written: 0,
            intended_at: 0,
            sent_at: 0,
            was_told_when: false,
            answer: Answer::new(requests.to_head),
        };
        let slots = std::iter::repeat_with(slot).take(connections).collect();
        Ok(Self {
            // Threads begin at different requests, so that together they send them in turn, not in step.
            next_request: first,
            requests,
            first,
            poller: Poller::new()?,
            slots,
            buffer: vec![0; RECEIVE_BYTES],
            busy: 0,
            failed: Vec::new(),
            unfinished: Vec::new(),
            resumed: Vec::new(),
            now: socket::now(),
            traffic: Traffic::default(),
        })
    }

    pub(crate) fn connections(&self) -> usize {
        self.slots.len()
    }

    /// How many requests are under way.
    pub(crate) fn busy(&self) -> usize {
        self.busy
    }

    pub(crate) fn is_open(&self, slot: usize) -> bool {
        self.slots[slot].socket.is_some()
    }

    /// When the last outcome was seen.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn intended_at(&self, slot: usize) -> u64 {
        self.slots[slot].intended_at
    }

    /// Whether a place's last answer said when to come back.
    pub(crate) fn was_told_when(&self, slot: usize) -> bool {
        self.slots[slot].was_told_when
    }

    /// Opens the connection of a place that has none. A failure comes out of `next`.
    pub(crate) fn open(&mut self, slot: usize) {
        let nth = self.first + slot;
        let source = self.requests.address.is_ipv4() && self.requests.address.ip().is_loopback() && nth >= PER_SOURCE;
        let source = source.then(|| {
            let host = u8::try_from(1 + nth / PER_SOURCE).unwrap_or(u8::MAX);
            IpAddr::V4(Ipv4Addr::new(127, 0, 0, host))
        });
        let place = &mut self.slots[slot];
        place.generation = place.generation.wrapping_add(1);
        let key = u64::from(place.generation) << 32 | slot as u64;
        let opened = socket::connect(self.requests.address, source).and_then(|socket| {
            self.poller.watch(&socket, key)?;
            Stream::new(socket, place.tls.as_ref())
        });
        match opened {
            Ok(socket) => {
                place.socket = Some(socket);
                place.connecting = true;
                self.traffic.connects += 1;
            }
            Err(errno) => self.failed.push((slot, place.sent_at, errno.into())),
        }
    }

    /// Sends the next request; connects first if need be. `intended_at` is what its latency counts from.
    pub(crate) fn send(&mut self, slot: usize, intended_at: u64, now: u64) {
        self.begin(slot, intended_at, now);
        let place = &mut self.slots[slot];
        place.request = self.next_request % self.requests.heads.len();
        self.next_request += 1;
        place.written = 0;
        if !place.connecting && place.socket.is_some() {
            self.write(slot);
        }
    }

    /// Makes a connection wait for an answer to bytes that `trickle` sends.
    pub(crate) fn begin(&mut self, slot: usize, intended_at: u64, now: u64) {
        let place = &mut self.slots[slot];
        place.busy = true;
        place.written = u64::MAX; // nothing of a request of ours is left to write
        place.intended_at = intended_at;
        place.sent_at = now;
        place.answer.reset();
        self.busy += 1;
        if place.socket.is_none() {
            self.open(slot);
        }
    }

    /// Sends some bytes as they are, once the connection stands. Says whether they went out.
    pub(crate) fn trickle(&mut self, slot: usize, bytes: &[u8]) -> bool {
        let place = &mut self.slots[slot];
        let Some(socket) = place.socket.as_mut().filter(|_| !place.connecting) else { return false };
        match socket.send(bytes) {
            Ok(written) => {
                self.traffic.bytes_out += written as u64;
                written == bytes.len()
            }
            // What ended the connection shows when it is read.
            Err(_) => false,
        }
    }

    /// Gives up requests sent before `sent_before`; `next` tells of each.
    pub(crate) fn expire(&mut self, sent_before: u64) {
        for (slot, place) in self.slots.iter().enumerate() {
            if place.busy && place.sent_at < sent_before {
                self.failed.push((slot, place.sent_at, Failure::Timeout));
            }
        }
    }

    /// Waits until something happens or the time has passed.
    pub(crate) fn wait(&mut self, timeout_ns: u64) {
        self.resumed.append(&mut self.unfinished);
        let pending = !self.failed.is_empty() || !self.resumed.is_empty();
        self.poller.wait(Some(if pending { 0 } else { timeout_ns }));
    }

    /// The next thing that happened since `wait`. Content of answers goes to `content` as it comes.
    pub(crate) fn next(&mut self, content: &mut impl FnMut(usize, &[u8])) -> Option<(usize, Outcome)> {
        while let Some(ready) = self.poller.next() {
            let slot = usize::try_from(ready.key & u64::from(u32::MAX)).unwrap_or(usize::MAX);
            let place = self.slots.get(slot)?;
            if u64::from(place.generation) != ready.key >> 32 || place.socket.is_none() {
                continue; // an event of a connection that has been closed since
            }
            if let Some(outcome) = self.handle(slot, ready, content) {
                return Some((slot, outcome));
            }
        }
        while let Some(slot) = self.resumed.pop() {
            if let Some(outcome) = self.read(slot, false, content) {
                return Some((slot, outcome));
            }
        }
        while let Some((slot, sent_at, failure)) = self.failed.pop() {
            // Its answer may have come in this round, and the next request be on its way.
            if self.slots[slot].sent_at == sent_at {
                return Some((slot, self.fail(slot, failure)));
            }
        }
        None
    }

    fn handle(&mut self, slot: usize, ready: Ready, content: &mut impl FnMut(usize, &[u8])) -> Option<Outcome> {
        let place = &mut self.slots[slot];
        if place.connecting {
            if !ready.writable {
                return None;
            }
            if let Err(errno) = place.socket.as_mut().map_or(Ok(()), Stream::connected) {
                return Some(self.fail(slot, errno.into()));
            }
            place.connecting = false;
            if place.busy {
                self.write(slot);
            }
        } else if ready.writable {
            if let Some(socket) = &mut place.socket {
                socket.flush();
            }
            self.write_on(slot);
        }
        let outcome = if ready.readable { self.read(slot, ready.ended, content) } else { None };
        if outcome.is_none() {
            self.write_on(slot); // of what a handshake has held up
        }
        outcome
    }

    /// Writes what is left of a request, if anything is.
    fn write_on(&mut self, slot: usize) {
        if self.slots[slot].busy && self.slots[slot].written != u64::MAX {
            self.write(slot);
        }
    }

    /// Writes what is left of the request, as far as it goes.
    fn write(&mut self, slot: usize) {
        let place = &mut self.slots[slot];
        let head = &self.requests.heads[place.request];
        let body = &self.requests.body;
        let head_bytes = head.len() as u64;
        let total = head_bytes + self.requests.body_bytes;
        let Some(socket) = &mut place.socket else { return };
        while place.written < total {
            let sent = if let Some(rest) = place.written.checked_sub(head_bytes) {
                let left = total - place.written;
                let from = index(rest % body.len() as u64);
                let until = body.len().min(from.saturating_add(index(left)));
                socket.send(&body[from..until])
            } else {
                let head = &head[index(place.written)..];
                let body = &body[..body.len().min(index(self.requests.body_bytes))];
                if body.is_empty() { socket.send(head) } else { socket.send_both(head, body) }
            };
            match sent {
                Ok(sent) => {
                    place.written += sent as u64;
                    self.traffic.bytes_out += sent as u64;
                }
                // Full: goes on when writable. Broken: shows when read, perhaps behind an answer that says why.
                Err(_) => return,
            }
        }
        place.written = u64::MAX;
    }

    /// Reads what has come, until there is no more or a fair share is taken.
    fn read(&mut self, slot: usize, ended: bool, content: &mut impl FnMut(usize, &[u8])) -> Option<Outcome> {
        let place = &mut self.slots[slot];
        loop {
            let socket = place.socket.as_mut()?;
            let received = socket.receive(&mut self.buffer);
            match socket.handshake() {
                Some(HandshakeKind::Resumed) => self.traffic.resumed += 1,
                Some(_) => self.traffic.whole += 1,
                None => {}
            }
            match received {
                Ok(0) => return self.ended(slot),
                Ok(received) => {
                    self.traffic.bytes_in += received as u64;
                    let bytes = &self.buffer[..received];
                    if !place.busy {
                        // Nothing was asked: a 408 before the close of an idle connection, at best.
                        self.drop_socket(slot);
                        return Some(Outcome::Closed);
                    }
                    match place.answer.take(bytes, &mut |part| content(slot, part)) {
                        Ok(taken) if taken == received => {}
                        _ => return Some(self.fail(slot, Failure::BadAnswer)),
                    }
                    // A short read has emptied the socket, and what comes later is a new event; but the end of the
                    // connection may have been told already.
                    if received < self.buffer.len() && !ended {
                        break;
                    }
                    if received == self.buffer.len() && !ended {
                        self.unfinished.push(slot);
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) if place.busy && !place.answer.is_done() => return Some(self.fail(slot, errno.into())),
                Err(_) => return self.ended(slot),
            }
        }
        place.answer.is_done().then(|| self.answered(slot))
    }

    fn answered(&mut self, slot: usize) -> Outcome {
        let place = &mut self.slots[slot];
        let status = place.answer.status;
        place.was_told_when = place.answer.says_when;
        // An answer before the whole request was sent leaves the connection unfit for another.
        let reusable = place.answer.keeps_alive && !self.requests.closes && place.written == u64::MAX;
        place.answer.reset();
        place.busy = false;
        self.busy -= 1;
        if !reusable {
            self.drop_socket(slot);
        }
        self.now = socket::now();
        Outcome::Answered { status }
    }

    /// The other end closed in order.
    fn ended(&mut self, slot: usize) -> Option<Outcome> {
        let place = &mut self.slots[slot];
        place.socket.as_ref()?;
        if !place.busy {
            self.drop_socket(slot);
            return Some(Outcome::Closed);
        }
        if place.answer.end() {
            let outcome = self.answered(slot);
            self.drop_socket(slot);
            return Some(outcome);
        }
        let failure = if place.answer.has_begun() { Failure::EofMidAnswer } else { Failure::EofBeforeAnswer };
        Some(self.fail(slot, failure))
    }

    fn fail(&mut self, slot: usize, failure: Failure) -> Outcome {
        self.drop_socket(slot);
        self.now = socket::now();
        let place = &mut self.slots[slot];
        if !place.busy {
            // Nobody waits for it; the next request on this place tries again, and fails in its own name.
            return Outcome::Closed;
        }
        place.busy = false;
        self.busy -= 1;
        Outcome::Failed(failure)
    }

    fn drop_socket(&mut self, slot: usize) {
        self.slots[slot].socket = None;
        self.slots[slot].connecting = false;
    }
}

/// Lengths of buffers fit; a longer number stands for "all there is".
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

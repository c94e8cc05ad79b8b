//! A fast sample backend, for tests and benches of the gateway and of the load test itself: one thread, HTTP/1.1 with
//! keep-alive, pipelining and bodies in either framing. Loopback only; not a server for anybody else.
//!
//! | path | answer |
//! | --- | --- |
//! | `/big?bytes=N` | N bytes (100 MiB) |
//! | `/sse?rate=N&count=N` | a stream of N events a second (10), each with the time it left; ends after `count`, if given |
//! | `/echo` | the request's body, as it comes |
//! | `/delay?ms=N` | the usual answer after N ms (100) |
//! | `/places?n=N&ms=N` | the usual answer after N ms (20) in one of N places (16), with a queue before them that all share |
//! | `/status?code=N` | that status (200) |
//! | `/behave?delay_us=N&failing=N` | from now on any other path is answered after N µs, and one of N with 500 (none at 0) |
//! | `/served` | how many times any other path was |
//! | any other | 1 KiB of JSON |

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::answer::number;
use crate::body::Body;
use crate::socket::{self, Poller};

const LISTENER: u64 = u64::MAX;
const HEAD_BYTES_MAX: usize = 64 * 1024;
const PLACES_MAX: usize = 1024;
/// Past this much unsent, a connection is not read on.
const UNSENT_BYTES_MAX: usize = 256 * 1024;
static FILL: [u8; 128 * 1024] = [b'z'; 128 * 1024];

pub(crate) struct Server {
    listener: OwnedFd,
    poller: Poller,
    connections: Vec<Option<Connection>>,
    /// Counts each place's connections, so that an event or a timer of an earlier one is known as such.
    generations: Vec<u32>,
    free: Vec<usize>,
    timers: BinaryHeap<Reverse<(u64, usize, u32)>>,
    buffer: Vec<u8>,
    usual: Usual,
}

/// How any other path is answered.
struct Usual {
    answer: Vec<u8>,
    delay_ns: u64,
    /// One of so many fails; none at 0.
    failing: u64,
    served: u64,
    /// When each place will be free.
    places: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Route {
    Behave { delay_us: u64, failing: u64 },
    Served,
    Usual,
    Big { bytes: u64 },
    Events { gap_ns: u64, left: u64 },
    Echo { chunked: bool },
    Delay { ns: u64 },
    Places { count: usize, ns: u64 },
    Status { code: u16 },
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts about one socket, not states")]
struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    taken: usize,
    output: Vec<u8>,
    sent: usize,
    /// Bytes of a big answer still to send, after `output`.
    fill_left: u64,
    /// The body of the request under way, and what will be answered to it.
    body: Option<Body>,
    route: Route,
    to_head: bool,
    /// Events or a delayed answer are under way: the next one is due at this time.
    due: Option<u64>,
    /// A timer stands for `due`.
    armed: bool,
    /// The request asked for the connection to be closed after its answer.
    last: bool,
    /// To be closed when all output is sent.
    closing: bool,
    /// The other end will send no more.
    ended: bool,
    /// The last read emptied the socket.
    drained: bool,
}

impl Server {
    /// Listens on an address; port 0 picks a free one. Returns the port.
    pub(crate) fn bind(address: Ipv4Addr, port: u16) -> anyhow::Result<(Self, u16)> {
        let (listener, port) = socket::listen(address, port)
            .map_err(|error| anyhow::anyhow!("{address}:{port} cannot be listened on: {error}"))?;
        let poller = Poller::new()?;
        poller.watch(&listener, LISTENER)?;
        let server = Self {
            listener,
            poller,
            connections: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            timers: BinaryHeap::new(),
            buffer: vec![0; 128 * 1024],
            usual: Usual { answer: usual_answer(), delay_ns: 0, failing: 0, served: 0, places: Vec::new() },
        };
        Ok((server, port))
    }

    /// Serves for ever.
    pub(crate) fn run(mut self) -> ! {
        let mut accepting = true;
        loop {
            let timer = self.timers.peek().map(|Reverse((due, ..))| due.saturating_sub(socket::now()));
            // Out of file descriptors: look again soon, for nothing else tells when one is free.
            let retry = if accepting { None } else { Some(10_000_000) };
            self.poller.wait(timer.into_iter().chain(retry).min());
            if !accepting {
                accepting = self.accept();
            }
            while let Some(ready) = self.poller.next() {
                if ready.key == LISTENER {
                    accepting = self.accept();
                    continue;
                }
                let slot = usize::try_from(ready.key & u64::from(u32::MAX)).unwrap_or(usize::MAX);
                if self.generations.get(slot).is_none_or(|generation| u64::from(*generation) != ready.key >> 32) {
                    continue;
                }
                if let Some(connection) = &mut self.connections[slot] {
                    connection.drained &= !ready.readable;
                    // A stream's reader that has gone will not be written to again.
                    connection.ended |= ready.ended;
                    connection.closing |= ready.ended && matches!(connection.route, Route::Events { .. });
                    self.advance(slot);
                }
            }
            self.fire_timers();
        }
    }

    /// Takes all waiting connections. Says whether it could.
    fn accept(&mut self) -> bool {
        loop {
            let socket = match socket::accept(&self.listener) {
                Ok(socket) => socket,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => return false,
                Err(Errno::AGAIN) => return true,
                Err(_) => continue, // one that has gone already
            };
            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.generations.push(0);
                self.connections.len() - 1
            });
            let key = u64::from(self.generations[slot]) << 32 | slot as u64;
            if self.poller.watch(&socket, key).is_ok() {
                self.connections[slot] = Some(Connection::new(socket));
            } else {
                self.free.push(slot);
            }
        }
    }

    fn fire_timers(&mut self) {
        let now = socket::now();
        while let Some(Reverse((due, slot, generation))) = self.timers.peek().copied() {
            if due > now {
                return;
            }
            self.timers.pop();
            if self.generations[slot] != generation {
                continue;
            }
            if let Some(connection) = &mut self.connections[slot] {
                connection.on_time(now, &mut self.usual);
                self.advance(slot);
            }
        }
    }

    /// Lets a connection go on as far as it can.
    fn advance(&mut self, slot: usize) {
        let Some(connection) = &mut self.connections[slot] else { return };
        if !connection.advance(&mut self.buffer, &mut self.usual) {
            self.connections[slot] = None;
            self.generations[slot] = self.generations[slot].wrapping_add(1);
            self.free.push(slot);
        } else if let Some(due) = connection.due
            && !std::mem::replace(&mut connection.armed, true)
        {
            self.timers.push(Reverse((due, slot, self.generations[slot])));
        }
    }
}

impl Connection {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            input: Vec::new(),
            taken: 0,
            output: Vec::new(),
            sent: 0,
            fill_left: 0,
            body: None,
            route: Route::Usual,
            to_head: false,
            due: None,
            armed: false,
            last: false,
            closing: false,
            ended: false,
            drained: false,
        }
    }

    /// Handles what has been read, sends, reads on; false when the connection is over.
    fn advance(&mut self, buffer: &mut [u8], usual: &mut Usual) -> bool {
        loop {
            let progressed = self.handle_input(usual);
            match self.flush() {
                Ok(true) => {}
                Ok(false) => return true, // full; writability calls again
                Err(_) => return false,
            }
            if self.closing {
                return false;
            }
            if self.due.is_some() {
                return true;
            }
            if progressed && self.taken < self.input.len() {
                continue; // it had stopped to send first
            }
            if self.drained {
                return true;
            }
            match socket::receive(&self.socket, buffer) {
                Ok(0) => return false,
                Ok(received) => {
                    // A short read emptied the socket, unless the end of the connection is known to stand behind it.
                    self.drained = received < buffer.len() && !self.ended;
                    self.input.drain(..self.taken);
                    self.taken = 0;
                    self.input.extend_from_slice(&buffer[..received]);
                }
                Err(Errno::AGAIN) => self.drained = true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Goes through the input until it ends or an answer must leave first. Says whether it took anything.
    fn handle_input(&mut self, usual: &mut Usual) -> bool {
        let before = self.taken;
        while self.taken < self.input.len()
            && !self.closing
            && self.due.is_none()
            && self.fill_left == 0
            && self.output.len() - self.sent < UNSENT_BYTES_MAX
        {
            let taken = if self.body.is_some() { self.take_body(usual) } else { self.take_head(usual) };
            match taken {
                Some(0) => break,
                Some(taken) => self.taken += taken,
                None => {
                    self.output.extend_from_slice(
                        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                    );
                    self.closing = true;
                }
            }
        }
        self.taken > before
    }

    /// Reads a head; `Some(0)` when it is not complete, `None` when it is wrong.
    fn take_head(&mut self, usual: &mut Usual) -> Option<usize> {
        let bytes = &self.input[self.taken..];
        let mut fields = [const { MaybeUninit::uninit() }; 100];
        let mut request = httparse::Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(bytes, &mut fields) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return (bytes.len() <= HEAD_BYTES_MAX).then_some(0),
            Err(_) => return None,
        };
        let mut body = Body::Length(0);
        let mut expects = false;
        for field in request.headers.iter() {
            match field.name.len() {
                14 if field.name.eq_ignore_ascii_case("content-length") => body = Body::Length(number(field.value)?),
                17 if field.name.eq_ignore_ascii_case("transfer-encoding") => body = Body::chunked(),
                10 if field.name.eq_ignore_ascii_case("connection") => {
                    self.last = field.value.eq_ignore_ascii_case(b"close");
                }
                6 if field.name.eq_ignore_ascii_case("expect") => expects = true,
                _ => {}
            }
        }
        self.to_head = request.method == Some("HEAD");
        self.route = match route(request.path?, &body) {
            Route::Usual if usual.delay_ns > 0 => Route::Delay { ns: usual.delay_ns },
            route => route,
        };
        if expects && !body.is_done() {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        if let Route::Echo { .. } = self.route {
            let framing = match &body {
                Body::Length(length) => format!("Content-Length: {length}"),
                _ => "Transfer-Encoding: chunked".to_owned(),
            };
            self.put_head(200, "application/octet-stream", &framing);
        }
        if body.is_done() {
            self.answer(usual);
        } else {
            self.body = Some(body);
        }
        Some(length)
    }

    fn take_body(&mut self, usual: &mut Usual) -> Option<usize> {
        let Some(body) = &mut self.body else { return Some(0) };
        let (route, output) = (self.route, &mut self.output);
        let taken = body.take(&self.input[self.taken..], &mut |part| match route {
            Route::Echo { chunked: true } => put_chunk(output, part),
            Route::Echo { chunked: false } => output.extend_from_slice(part),
            _ => {}
        });
        if body.is_done() {
            self.body = None;
            self.answer(usual);
        }
        taken.ok()
    }

    /// The request is complete.
    fn answer(&mut self, usual: &mut Usual) {
        // A delayed answer or a stream comes back here, or to `on_time`, when it ends.
        self.closing |=
            self.last && !matches!(self.route, Route::Delay { .. } | Route::Places { .. } | Route::Events { .. });
        match self.route {
            Route::Usual => {
                usual.served += 1;
                if usual.failing > 0 && usual.served.is_multiple_of(usual.failing) {
                    self.put_head(500, "text/plain", "Content-Length: 0");
                } else {
                    let length = usual.answer.len() - if self.to_head { USUAL_BODY_BYTES } else { 0 };
                    self.output.extend_from_slice(&usual.answer[..length]);
                }
            }
            Route::Behave { delay_us, failing } => {
                (usual.delay_ns, usual.failing) = (delay_us * 1000, failing);
                self.put_head(200, "text/plain", "Content-Length: 0");
            }
            Route::Served => {
                let count = usual.served.to_string();
                self.put_head(200, "text/plain", &format!("Content-Length: {}", count.len()));
                self.output.extend_from_slice(count.as_bytes());
            }
            Route::Echo { chunked: true } => self.output.extend_from_slice(b"0\r\n\r\n"),
            Route::Echo { chunked: false } => {}
            Route::Big { bytes } => {
                self.put_head(200, "application/octet-stream", &format!("Content-Length: {bytes}"));
                self.fill_left = if self.to_head { 0 } else { bytes };
            }
            Route::Status { code } => {
                let length = if matches!(code, 204 | 304) { "X-Body: none" } else { "Content-Length: 0" };
                self.put_head(code, "text/plain", length);
            }
            Route::Delay { ns } => self.due = Some(socket::now() + ns),
            Route::Places { count, ns } => self.due = Some(usual.serve_in_place(socket::now(), count, ns)),
            Route::Events { gap_ns, .. } => {
                self.put_head(200, "text/event-stream", "Transfer-Encoding: chunked");
                self.due = Some(socket::now() + gap_ns);
            }
        }
    }

    /// Its timer has fired.
    fn on_time(&mut self, now: u64, usual: &mut Usual) {
        self.armed = false;
        let due = self.due.take().unwrap_or(now);
        if let Route::Events { gap_ns, left } = self.route {
            if self.output.len() - self.sent < UNSENT_BYTES_MAX {
                let stamp = socket::now();
                let event = format!("data: {{\"t\":\"@@{stamp:019}\",\"pad\":\"{}\"}}\n\n", "abcdefgh".repeat(8));
                put_chunk(&mut self.output, event.as_bytes());
            }
            if left == 1 {
                self.output.extend_from_slice(b"0\r\n\r\n");
                self.closing |= self.last;
                self.route = Route::Usual;
            } else {
                self.route = Route::Events { gap_ns, left: left.saturating_sub(1) };
                self.due = Some(now.max(due + gap_ns));
            }
        } else {
            self.route = Route::Usual;
            self.answer(usual);
        }
    }

    fn put_head(&mut self, status: u16, content_type: &str, framing: &str) {
        let head = format!(
            "HTTP/1.1 {status} Sample\r\nContent-Type: {content_type}\r\nCache-Control: no-store\r\n{framing}\r\n\r\n"
        );
        self.output.extend_from_slice(head.as_bytes());
    }

    /// Sends what there is; false when the socket is full.
    fn flush(&mut self) -> rustix::io::Result<bool> {
        while self.sent < self.output.len() || self.fill_left > 0 {
            let sent = if self.sent < self.output.len() {
                socket::send(&self.socket, &self.output[self.sent..]).map(|sent| self.sent += sent)
            } else {
                let piece = usize::try_from(self.fill_left).map_or(FILL.len(), |left| left.min(FILL.len()));
                socket::send(&self.socket, &FILL[..piece]).map(|sent| self.fill_left -= sent as u64)
            };
            match sent {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(true)
    }
}

impl Usual {
    /// When a request that comes now is served, by the place that is free first. It takes its place also when its client
    /// has left by then, as it is with services that do not notice.
    fn serve_in_place(&mut self, now: u64, count: usize, ns: u64) -> u64 {
        self.places.resize(count, 0);
        let place = self.places.iter_mut().min().expect("there is one at least");
        *place = now.max(*place) + ns;
        *place
    }
}

const USUAL_BODY_BYTES: usize = 1024;

fn usual_answer() -> Vec<u8> {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: 1024\r\n\r\n";
    let pad = "x".repeat(USUAL_BODY_BYTES - 10);
    format!("{head}{{\"pad\":\"{pad}\"}}").into_bytes()
}

fn put_chunk(output: &mut Vec<u8>, content: &[u8]) {
    output.extend_from_slice(format!("{:x}\r\n", content.len()).as_bytes());
    output.extend_from_slice(content);
    output.extend_from_slice(b"\r\n");
}

fn route(target: &str, body: &Body) -> Route {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str, default: u64| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut values = pairs.filter(|(key, _)| *key == name).filter_map(|(_, value)| number(value.as_bytes()));
        values.next().unwrap_or(default)
    };
    match path {
        "/big" => Route::Big { bytes: parameter("bytes", 100 << 20).min(1 << 40) },
        "/sse" => Route::Events {
            gap_ns: 1_000_000_000 / parameter("rate", 10).clamp(1, 1_000_000),
            left: parameter("count", 0), // 0 counts down no further: for ever
        },
        "/echo" => Route::Echo { chunked: !matches!(body, Body::Length(_)) },
        "/behave" => {
            Route::Behave { delay_us: parameter("delay_us", 0).min(3_600_000_000), failing: parameter("failing", 0) }
        }
        "/served" => Route::Served,
        "/places" => Route::Places {
            count: usize::try_from(parameter("n", 16)).map_or(PLACES_MAX, |count| count.clamp(1, PLACES_MAX)),
            ns: parameter("ms", 20).min(3_600_000) * 1_000_000,
        },
        "/delay" => Route::Delay { ns: parameter("ms", 100).min(3_600_000) * 1_000_000 },
        "/status" => {
            let code = u16::try_from(parameter("code", 200)).ok().filter(|code| (200..=599).contains(code));
            Route::Status { code: code.unwrap_or(400) }
        }
        _ => Route::Usual,
    }
}

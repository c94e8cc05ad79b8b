//! The client: many WebSockets in one thread. It opens them, reads and writes their frames, answers pings, and tells a
//! `Handler` what happens; what to say and when is `worker`'s.
//!
//! Made to be cheap, because it shares a machine with the hub it measures: one receive for whatever has come, read where it
//! lies in a buffer that all sockets share; an idle socket holds no buffer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::io::Errno;

use crate::http::Failure;
use crate::hub::frame::{self, Frames};
use crate::socket::{self, Poller};
use crate::stream::{Stream, Tls};

/// What is read of one socket at once; more is read in the next round, so that a flood on one does not starve the rest.
const RECEIVE_BYTES: usize = 256 * 1024;
/// An answer to an upgrade may take this much.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// What may wait to be sent on one socket; past it, messages are not sent and counted.
const UNSENT_BYTES_MAX: usize = 1 << 20;
/// Buffers up to this size stay with their socket for its next message.
const UNSENT_BYTES_KEPT: usize = 1024;
/// Connections are spread over so many loopback addresses: each has 28,000 ephemeral ports by default, and one that was
/// closed is not free for a minute.
const SOURCES: usize = 16;

/// The example of RFC 6455 §1.3: the key only shows that the server speaks the protocol.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// How far a socket has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Closed,
    Connecting,
    /// Its request is sent.
    Upgrading,
    /// It is a WebSocket, and not yet in its room.
    Open,
    /// It has all that it wants.
    Ready,
}

/// Why a socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// Its request was answered with this status and not with 101.
    Refused(u16),
    /// By a close frame with this code.
    Closed(u16),
    Broken(Failure),
}

impl Ending {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Refused(status) => format!("refused_{status}"),
            Self::Closed(code) => format!("closed_{code}"),
            Self::Broken(failure) => failure.name().to_owned(),
        }
    }
}

/// What is done about what happens on sockets.
pub(crate) trait Handler {
    /// The socket has connected: the request to send.
    fn request(&mut self, slot: usize) -> Vec<u8>;
    /// The socket is a WebSocket.
    fn opened(&mut self, slot: usize, socket: &mut Socket, now: u64);
    fn text(&mut self, slot: usize, socket: &mut Socket, text: &[u8], now: u64);
    /// The socket, which had come this far, has ended, and not by us.
    fn ended(&mut self, slot: usize, stage: Stage, ending: Ending, now: u64);
}

/// One place for a socket; the socket in it may come and go.
pub(crate) struct Socket {
    stream: Option<Stream>,
    /// Counts the sockets of this place, so that an event for an earlier one is known as such.
    generation: u32,
    pub(crate) stage: Stage,
    /// It does not read.
    pub(crate) is_deaf: bool,
    close_code: Option<u16>,
    /// When it began to connect.
    pub(crate) began_at: u64,
    frames: Frames,
    /// The beginning of the answer to its request; no heap once that has come.
    head: Vec<u8>,
    unsent: Vec<u8>,
}

impl Socket {
    /// Sends a text. Says whether it went, or will go, out.
    pub(crate) fn send_text(&mut self, text: &[u8]) -> bool {
        self.send(frame::TEXT, text)
    }

    fn send(&mut self, opcode: u8, payload: &[u8]) -> bool {
        if self.stream.is_none() || self.unsent.len() > UNSENT_BYTES_MAX {
            return false;
        }
        let is_blocked = !self.unsent.is_empty();
        frame::put(&mut self.unsent, opcode, payload);
        if !is_blocked {
            self.flush();
        }
        true
    }

    /// Writes what waits, as far as it goes.
    fn flush(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let mut sent = 0;
        while sent < self.unsent.len() {
            match stream.send(&self.unsent[sent..]) {
                Ok(bytes) => sent += bytes,
                Err(Errno::INTR) => {}
                // Full: goes on when writable. Broken: shows when read, perhaps behind a frame that says why.
                Err(_) => break,
            }
        }
        if sent < self.unsent.len() {
            self.unsent.drain(..sent);
        } else if self.unsent.capacity() > UNSENT_BYTES_KEPT {
            self.unsent = Vec::new();
        } else {
            self.unsent.clear();
        }
    }

    fn clear(&mut self) {
        self.stream = None;
        self.stage = Stage::Closed;
        self.is_deaf = false;
        self.close_code = None;
        self.frames = Frames::default();
        self.head = Vec::new();
        self.unsent = Vec::new();
    }
}

/// One thread's sockets.
pub(crate) struct Sockets {
    /// The place of its first socket among those of all threads.
    first: usize,
    poller: Poller,
    slots: Vec<Socket>,
    buffer: Vec<u8>,
    /// Sockets that may have more to read than was taken.
    unfinished: Vec<usize>,
    /// Those of the round before, to be read in this one.
    resumed: Vec<usize>,
    /// Sockets that this machine would not open.
    failed: Vec<(usize, Failure)>,
}

impl Sockets {
    pub(crate) fn new(first: usize, count: usize) -> std::io::Result<Self> {
        let closed = || Socket {
            stream: None,
            generation: 0,
            stage: Stage::Closed,
            is_deaf: false,
            close_code: None,
            began_at: 0,
            frames: Frames::default(),
            head: Vec::new(),
            unsent: Vec::new(),
        };
        Ok(Self {
            first,
            poller: Poller::new()?,
            slots: std::iter::repeat_with(closed).take(count).collect(),
            buffer: vec![0; RECEIVE_BYTES],
            unfinished: Vec::new(),
            resumed: Vec::new(),
            failed: Vec::new(),
        })
    }

    pub(crate) fn socket(&mut self, slot: usize) -> &mut Socket {
        &mut self.slots[slot]
    }

    /// Begins to open a place's socket.
    pub(crate) fn open(&mut self, slot: usize, address: SocketAddr, tls: Option<&Tls>, now: u64) {
        let place = &mut self.slots[slot];
        place.clear();
        place.generation = place.generation.wrapping_add(1);
        place.began_at = now;
        place.stage = Stage::Connecting;
        let key = u64::from(place.generation) << 32 | slot as u64;
        let is_ipv4_loopback = address.is_ipv4() && address.ip().is_loopback();
        let source = is_ipv4_loopback.then(|| {
            let host = u8::try_from(1 + (self.first + slot) % SOURCES).unwrap_or(1);
            IpAddr::V4(Ipv4Addr::new(127, 0, 0, host))
        });
        let opened = socket::connect(address, source).and_then(|stream| {
            self.poller.watch(&stream, key)?;
            Stream::new(stream, tls)
        });
        match opened {
            Ok(stream) => place.stream = Some(stream),
            Err(errno) => self.failed.push((slot, errno.into())),
        }
    }

    /// Closes a socket at once, without a word.
    pub(crate) fn drop_socket(&mut self, slot: usize) {
        self.slots[slot].clear();
    }

    /// Reads again a socket that was deaf.
    pub(crate) fn hear(&mut self, slot: usize) {
        self.slots[slot].is_deaf = false;
        self.unfinished.push(slot);
    }

    /// Ends a socket that takes too long.
    pub(crate) fn give_up(&mut self, slot: usize, handler: &mut impl Handler, now: u64) {
        self.end(slot, Ending::Broken(Failure::Timeout), handler, now);
    }

    /// Waits until something happens or the time has passed, and has it handled.
    pub(crate) fn wait(&mut self, timeout_ns: u64, handler: &mut impl Handler) {
        self.resumed.append(&mut self.unfinished);
        let pending = !self.failed.is_empty() || !self.resumed.is_empty();
        self.poller.wait(Some(if pending { 0 } else { timeout_ns }));
        while let Some(ready) = self.poller.next() {
            let slot = usize::try_from(ready.key & u64::from(u32::MAX)).unwrap_or(usize::MAX);
            let Some(place) = self.slots.get_mut(slot) else { continue };
            if u64::from(place.generation) != ready.key >> 32 || place.stream.is_none() {
                continue; // an event of a socket that has been closed since
            }
            if ready.writable {
                if place.stage == Stage::Connecting {
                    if let Err(errno) = place.stream.as_mut().map_or(Ok(()), Stream::connected) {
                        self.end(slot, Ending::Broken(errno.into()), handler, socket::now());
                        continue;
                    }
                    place.stage = Stage::Upgrading;
                    place.unsent = handler.request(slot);
                }
                if let Some(stream) = &mut place.stream {
                    stream.flush();
                }
                if !place.unsent.is_empty() {
                    place.flush();
                }
            }
            if ready.readable {
                self.read(slot, ready.ended, handler);
            }
        }
        while let Some(slot) = self.resumed.pop() {
            // What was told of its end while it was deaf is not told again.
            self.read(slot, true, handler);
        }
        while let Some((slot, failure)) = self.failed.pop() {
            self.end(slot, Ending::Broken(failure), handler, socket::now());
        }
    }

    /// Reads what has come, until there is no more or a fair share is taken.
    fn read(&mut self, slot: usize, has_ended: bool, handler: &mut impl Handler) {
        loop {
            let place = &mut self.slots[slot];
            if place.is_deaf {
                return;
            }
            let Some(stream) = &mut place.stream else { return };
            match stream.receive(&mut self.buffer) {
                Ok(0) => {
                    let ending = place.close_code.map_or(Ending::Broken(Failure::EofBeforeAnswer), Ending::Closed);
                    return self.end(slot, ending, handler, socket::now());
                }
                Ok(received) => {
                    let now = socket::now();
                    if let Err(ending) = take(slot, place, &self.buffer[..received], handler, now) {
                        return self.end(slot, ending, handler, now);
                    }
                    // A short read has emptied the socket, and what comes later is a new event; but the end of the
                    // connection may have been told already.
                    if received == self.buffer.len() {
                        return self.unfinished.push(slot);
                    }
                    if !has_ended {
                        return;
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    let ending = place.close_code.map_or(Ending::Broken(errno.into()), Ending::Closed);
                    return self.end(slot, ending, handler, socket::now());
                }
            }
        }
    }

    fn end(&mut self, slot: usize, ending: Ending, handler: &mut impl Handler, now: u64) {
        let stage = self.slots[slot].stage;
        self.slots[slot].clear();
        if stage != Stage::Closed {
            handler.ended(slot, stage, ending, now);
        }
    }
}

/// Takes what a socket has received.
fn take(slot: usize, place: &mut Socket, bytes: &[u8], handler: &mut impl Handler, now: u64) -> Result<(), Ending> {
    let bad = |_| Ending::Broken(Failure::BadAnswer);
    if place.stage > Stage::Upgrading {
        return take_frames(slot, place, bytes, handler, now).map_err(bad);
    }
    place.head.extend_from_slice(bytes);
    let Some(length) = head_length(&place.head)? else { return Ok(()) };
    let head = std::mem::take(&mut place.head);
    place.stage = Stage::Open;
    handler.opened(slot, place, now);
    take_frames(slot, place, &head[length..], handler, now).map_err(bad)
}

fn take_frames(
    slot: usize,
    place: &mut Socket,
    bytes: &[u8],
    handler: &mut impl Handler,
    now: u64,
) -> Result<(), &'static str> {
    let mut frames = std::mem::take(&mut place.frames);
    let taken = frames.take(bytes, &mut |opcode, payload| match opcode {
        frame::TEXT => handler.text(slot, place, payload, now),
        frame::PING => {
            place.send(frame::PONG, payload);
        }
        frame::CLOSE => {
            place.close_code = Some(frame::close_code(payload));
            place.send(frame::CLOSE, &payload[..payload.len().min(2)]);
        }
        _ => {}
    });
    place.frames = frames;
    taken
}

/// How long the head of an answer is that agrees to the upgrade; none if there is more of it to come.
fn head_length(bytes: &[u8]) -> Result<Option<usize>, Ending> {
    let bad = Ending::Broken(Failure::BadAnswer);
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut answer = httparse::Response::new(&mut fields);
    let length = match answer.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_BYTES_MAX => return Ok(None),
        _ => return Err(bad),
    };
    if answer.code != Some(101) {
        return Err(Ending::Refused(answer.code.unwrap_or(0)));
    }
    let mut accepts = answer.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("sec-websocket-accept"));
    if accepts.next().is_none_or(|field| field.value != ACCEPT.as_bytes()) {
        return Err(bad);
    }
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_is_agreed_to_or_refused() {
        let agreed = format!("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {ACCEPT}\r\n\r\n");
        assert_eq!(head_length(agreed.as_bytes()), Ok(Some(agreed.len())));
        assert_eq!(head_length(&agreed.as_bytes()[..agreed.len() - 1]), Ok(None));
        let bad = Err(Ending::Broken(Failure::BadAnswer));
        assert_eq!(head_length(agreed.replace("s3p", "S3p").as_bytes()), bad);
        assert_eq!(head_length(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), bad);
        assert_eq!(head_length(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n\r\n"), Err(Ending::Refused(503)));
        assert_eq!(head_length(&[b'x'; 20]), bad);
        let endless = [b"HTTP/1.1 101 Switching\r\nA: ".as_slice(), &[b'a'; HEAD_BYTES_MAX]].concat();
        assert_eq!(head_length(&endless), bad);
    }
}

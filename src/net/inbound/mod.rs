//! The reading half of a client's HTTP/1.1 connection: heads, bodies, and whether the client is still there.
//!
//! It holds a buffer only while there are bytes, and keeps the one timer of the connection: every wait of the connection,
//! whatever it is for, moves that timer.

use std::{
    io,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{
    Io,
    body::{BodyFailure, RequestBody},
    reader::{Reader, Step},
    writer::Chunks,
};
use crate::{
    proto::{
        head::{Framing, RequestHead, ResponseHead},
        http1::{ConnectionToken, HeadLimits, HeadScanner, RequestError, WholeRequest, encode_response, parse_request},
    },
    shard::{Deadline, Instant, Pipe, buffers, clock},
};

/// What a client's connection may ask of us, in sizes and times. From the configuration, replaced by a reload.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Bounds of a head.
    pub head: HeadLimits,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// From a request's first byte to the end of its body.
    pub request_timeout: Duration,
    /// Between two requests.
    pub keep_alive_timeout: Duration,
    /// Bytes of a body, unless its route says otherwise.
    pub body_bytes_max: u64,
    /// For a write that the client does not read.
    pub write_timeout: Duration,
    /// Requests on one connection; 0 is no limit.
    pub requests_max: u32,
}

/// Bytes of the next requests that are read ahead while an answer is under way. Past it the client has to wait, and
/// that it left shows only when its answer is written.
const READ_AHEAD_MAX: usize = 4096;

/// A request's body that the answer did not wait for is read over up to this many bytes, to keep the connection.
const DISCARD_MAX: u64 = 64 * 1024;

/// A body up to this size finds room in one buffer.
const SHORT_MAX: u64 = buffers::BUFFER_BYTES as u64;

/// What `100 Continue` looks like on the wire.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The reading half of a connection.
#[derive(Debug)]
pub(super) struct Inbound {
    io: Rc<Io>,
    reader: Reader,
    /// How far the search for the end of the next head has come.
    scanner: HeadScanner,
    deadline: Deadline,
    /// The client waits to be told to send its body, and nothing of that was written yet.
    awaits_continue: bool,
    /// What is left to write of interim answers (RFC 9110 §15.2), before anything else goes to the client.
    interim: Vec<u8>,
    /// The client has sent its FIN, or the connection broke.
    has_ended: bool,
    /// When the body has to be complete.
    body_due: Instant,
    body_bytes: u64,
    body_bytes_max: u64,
    /// What the head says of the body's length.
    framing: Framing,
    /// Trailer fields are left out.
    drops_trailers: bool,
}

/// How the wait for a request's first bytes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// They are here.
    Bytes,
    /// The client closed, or the connection broke.
    Closed,
    /// The deadline passed.
    TimedOut,
}

/// Why there is no further request on a connection.
#[derive(Debug)]
pub(super) enum NoRequest {
    /// The client closed, fell silent between requests, or the shard drains: nothing to say.
    Closed,
    /// The head did not come in time.
    TimedOut,
    /// The head is refused.
    Refused(RequestError),
}

impl Inbound {
    /// A new connection's reading half.
    pub(super) fn new(io: Rc<Io>) -> Self {
        Self {
            io,
            reader: Reader::new(),
            scanner: HeadScanner::new(),
            deadline: Deadline::new(),
            awaits_continue: false,
            interim: Vec::new(),
            has_ended: false,
            body_due: Instant::NEVER,
            body_bytes: 0,
            body_bytes_max: 0,
            framing: Framing::None,
            drops_trailers: false,
        }
    }

    /// Whether bytes of a next request are here already.
    pub(super) fn has_bytes(&self) -> bool {
        !self.reader.bytes().is_empty()
    }

    /// The connection's timer, for whoever waits on its behalf.
    pub(super) fn deadline(&mut self) -> &mut Deadline {
        &mut self.deadline
    }

    /// Waits for the first bytes of a request.
    pub(super) fn poll_first_bytes(&mut self, cx: &mut Context<'_>) -> Poll<First> {
        if self.has_bytes() {
            return Poll::Ready(First::Bytes);
        }
        match self.reader.poll_read(&self.io, cx) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(First::Closed),
            Poll::Ready(Ok(_)) => Poll::Ready(First::Bytes),
            Poll::Pending => self.deadline.poll(cx).map(|()| First::TimedOut),
        }
    }

    /// Reads on until a request's head is complete, or its deadline, which the caller has set, has passed.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        limits: &HttpLimits,
    ) -> Poll<Result<RequestHead, NoRequest>> {
        loop {
            if self.scanner.is_new()
                && self.has_bytes()
                && let Some(head) = self.take_whole_head(limits)
            {
                return Poll::Ready(Ok(head));
            }
            if let Some(head_bytes) =
                self.scanner.scan(self.reader.bytes(), &limits.head).map_err(NoRequest::Refused)?
            {
                return Poll::Ready(self.take_head(head_bytes, limits));
            }
            match self.reader.poll_read(&self.io, cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(NoRequest::Closed)),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return self.deadline.poll(cx).map(|()| Err(NoRequest::TimedOut)),
            }
        }
    }

    /// A head that came in one piece, as most do.
    fn take_whole_head(&mut self, limits: &HttpLimits) -> Option<RequestHead> {
        let mut fields = buffers::take_fields();
        let Some(whole) = WholeRequest::read(self.reader.bytes(), &mut fields, &limits.head) else {
            buffers::give_fields(fields);
            return None;
        };
        let bytes = self.reader.split_head(whole.head_len());
        let head = whole.into_head(bytes, fields);
        self.begin_body(&head, limits);
        Some(head)
    }

    fn begin_body(&mut self, head: &RequestHead, limits: &HttpLimits) {
        self.reader.begin_body(head.framing);
        self.framing = head.framing;
        self.drops_trailers = false;
        self.body_bytes = 0;
        self.body_bytes_max = limits.body_bytes_max;
        self.awaits_continue = head.expect_continue && !self.has_bytes();
    }

    fn take_head(&mut self, head_bytes: usize, limits: &HttpLimits) -> Result<RequestHead, NoRequest> {
        self.scanner = HeadScanner::new();
        let bytes = self.reader.split_head(head_bytes);
        match parse_request(bytes, head_bytes, buffers::take_fields(), &limits.head) {
            Ok(head) => {
                self.begin_body(&head, limits);
                Ok(head)
            }
            Err((error, bytes, fields)) => {
                buffers::give(bytes);
                buffers::give_fields(fields);
                Err(NoRequest::Refused(error))
            }
        }
    }

    /// Bytes of the current request's content consumed so far.
    pub(super) fn received_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Whether the body of the current request has been consumed in full.
    pub(super) fn is_body_done(&self) -> bool {
        self.reader.is_done()
    }

    /// Takes what was read beyond the head: the first bytes of a tunnel.
    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        self.reader.take_rest()
    }

    /// Reads over the rest of a body that is within reach: `true` when the connection can go on.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.body_bytes_max = u64::MAX;
        loop {
            match self.poll_fill(cx) {
                Poll::Ready(Ok(true)) => self.consume(usize::MAX),
                Poll::Ready(Ok(false)) => return Poll::Ready(true),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => return self.deadline.poll(cx).map(|()| false),
            }
        }
    }

    /// Reads and drops whatever still comes on a connection that is being closed, so that a client that still writes reads
    /// our answer, not a reset. `false` when the client has closed too, pauses for as long as `pause`, or the time is up;
    /// `true` when `turn` bytes have come and others should run.
    pub(super) fn poll_linger(
        &mut self,
        cx: &mut Context<'_>,
        turn: &mut usize,
        pause: Duration,
        ends_at: Instant,
    ) -> Poll<bool> {
        loop {
            buffers::give(self.reader.take_rest());
            match self.reader.poll_read(&self.io, cx) {
                Poll::Ready(Ok(read)) if read > 0 => {
                    self.deadline.set((clock::now() + pause).min(ends_at));
                    if read >= *turn {
                        return Poll::Ready(true);
                    }
                    *turn -= read;
                }
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return self.deadline.poll(cx).map(|()| false),
            }
        }
    }

    fn consume(&mut self, bytes: usize) {
        let bytes = bytes.min(self.reader.chunk().len());
        self.reader.consume(bytes);
        self.received(bytes);
    }

    fn received(&mut self, bytes: usize) {
        self.body_bytes = self.body_bytes.saturating_add(bytes as u64);
        self.io.received.set(self.body_bytes);
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BodyFailure>> {
        loop {
            match self.reader.step().map_err(BodyFailure::Malformed)? {
                Step::Done => return Poll::Ready(Ok(false)),
                Step::Chunk => {
                    let received = self.body_bytes.saturating_add(self.reader.chunk().len() as u64);
                    let fits = received <= self.body_bytes_max;
                    return Poll::Ready(if fits { Ok(true) } else { Err(BodyFailure::TooLarge) });
                }
                Step::More => ready!(self.poll_more_body(cx))?,
            }
        }
    }

    /// Bytes of the body that are to come, when they may be moved unseen: the bound on its size holds for all of them.
    fn unseen(&self) -> u64 {
        let left = self.reader.unseen(&self.io);
        if left <= self.body_bytes_max.saturating_sub(self.body_bytes) { left } else { 0 }
    }

    /// Moves what has come of them into a pipe. They count as consumed: from here they go to the backend, or nowhere.
    fn poll_move(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<usize, BodyFailure>> {
        if self.unseen() == 0 {
            return Poll::Ready(Ok(0));
        }
        if let Poll::Ready(Err(_)) = self.poll_continue(cx) {
            return Poll::Ready(Err(BodyFailure::ClientGone));
        }
        match self.reader.poll_move(&self.io, cx, pipe) {
            Poll::Ready(Ok(moved)) => {
                self.received(moved);
                Poll::Ready(Ok(moved))
            }
            Poll::Ready(Err(_)) => {
                self.has_ended = true;
                Poll::Ready(Err(BodyFailure::ClientGone))
            }
            Poll::Pending if self.body_due <= clock::now() => Poll::Ready(Err(BodyFailure::TimedOut)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads further bytes of the body, after the client has been told to go on if it waits for that.
    fn poll_more_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyFailure>> {
        if let Poll::Ready(Err(_)) = self.poll_continue(cx) {
            return Poll::Ready(Err(BodyFailure::ClientGone));
        }
        match self.reader.poll_read(&self.io, cx) {
            Poll::Ready(Ok(0) | Err(_)) => {
                self.has_ended = true;
                Poll::Ready(Err(BodyFailure::ClientGone))
            }
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
            Poll::Pending if self.body_due <= clock::now() => Poll::Ready(Err(BodyFailure::TimedOut)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Writes what is left of interim answers, then `100 Continue` if the client waits for it.
    fn poll_continue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_interim(cx))?;
        if self.awaits_continue {
            // From here on it is begun: what a write has begun with stays the first that is written.
            self.awaits_continue = false;
            self.interim = buffers::take();
            self.interim.extend_from_slice(CONTINUE);
            ready!(self.poll_interim(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is left of interim answers.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.interim.is_empty() {
            let written = ready!(self.io.poll_write(cx, &self.interim))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim.drain(..written);
            if self.interim.is_empty() {
                buffers::give(std::mem::take(&mut self.interim));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the whole body has come; asked before any of it is consumed. One of unknown length is never said to be here.
    fn is_body_here(&self) -> bool {
        match self.framing {
            Framing::None => true,
            Framing::Length(bytes) => self.reader.bytes().len() as u64 >= bytes,
            Framing::Chunked | Framing::UntilClose => false,
        }
    }

    /// Ready when the client has closed or the connection broke; until then the next requests are read ahead, within
    /// bounds.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.has_ended {
            if self.reader.bytes().len() >= READ_AHEAD_MAX {
                return Poll::Pending;
            }
            if let Ok(0) | Err(_) = ready!(self.reader.poll_read(&self.io, cx)) {
                self.has_ended = true;
            }
        }
        Poll::Ready(())
    }
}

/// A request's body on its HTTP/1.1 connection: chunks that are looked at where they were received.
///
/// Dropping it leaves the rest of the body on the connection, which then reads over it or closes. Its timer is the
/// connection's: there is one exchange at a time.
#[derive(Debug)]
pub(super) struct Http1Body<'i> {
    inbound: &'i mut Inbound,
}

impl Chunks for Http1Body<'_> {
    type Failure = BodyFailure;

    /// Tells a client that waits for it to go on (RFC 9110 §10.1.1).
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BodyFailure>> {
        self.inbound.poll_fill(cx)
    }

    fn chunk(&self) -> &[u8] {
        self.inbound.reader.chunk()
    }

    fn consume(&mut self, bytes: usize) {
        self.inbound.consume(bytes);
    }

    fn unseen(&self) -> u64 {
        self.inbound.unseen()
    }

    fn poll_move(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<usize, BodyFailure>> {
        self.inbound.poll_move(cx, pipe)
    }

    fn trailers(&self) -> &[u8] {
        if self.inbound.drops_trailers { &[] } else { self.inbound.reader.trailers() }
    }
}

impl<'i> Http1Body<'i> {
    pub(super) fn new(inbound: &'i mut Inbound) -> Self {
        Self { inbound }
    }

    /// Whether the connection can go on to its next request soon: the body is done, or its rest is short, known to be
    /// on its way and not overdue. A client that waits to be told to send may or may not send; only closing is unambiguous then.
    pub(super) fn is_within_reach(&self) -> bool {
        let rest = match self.inbound.framing {
            Framing::Length(bytes) => bytes.saturating_sub(self.inbound.body_bytes),
            _ => u64::MAX,
        };
        let is_due = || self.inbound.body_due <= clock::now();
        self.is_done() || (rest <= DISCARD_MAX && !self.inbound.awaits_continue && !is_due())
    }

    /// The answer begins: what is left of interim answers goes out before it, and a `100 Continue` that was not begun
    /// never will, for it would stand in the middle of the answer.
    pub(super) fn end_interim(&mut self) -> Vec<u8> {
        self.inbound.awaits_continue = false;
        std::mem::take(&mut self.inbound.interim)
    }
}

impl RequestBody for Http1Body<'_> {
    fn is_done(&self) -> bool {
        self.inbound.is_body_done()
    }

    fn received_bytes(&self) -> u64 {
        self.inbound.body_bytes
    }

    fn drop_trailers(&mut self) {
        self.inbound.drops_trailers = true;
    }

    fn set_bytes_max(&mut self, bytes_max: u64) {
        self.inbound.body_bytes_max = bytes_max;
    }

    fn bytes_max(&self) -> u64 {
        self.inbound.body_bytes_max
    }

    fn set_due(&mut self, due: Instant) {
        self.inbound.body_due = due;
    }

    fn due(&self) -> Instant {
        self.inbound.body_due
    }

    fn is_here(&self) -> bool {
        self.inbound.is_body_here()
    }

    fn is_short(&self) -> bool {
        matches!(self.inbound.framing, Framing::None | Framing::Length(0..=SHORT_MAX))
    }

    fn poll_here(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyFailure>> {
        while !self.is_here() {
            match self.inbound.poll_more_body(cx) {
                Poll::Ready(read) => read?,
                Poll::Pending => return self.inbound.deadline.poll(cx).map(|()| Err(BodyFailure::TimedOut)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// While a buffer's worth of them waits for a client that does not read, further ones are left out: it costs a
    /// buffer and one head at the most.
    fn tell(&mut self, cx: &mut Context<'_>, interim: &ResponseHead) {
        if self.inbound.interim.len() >= buffers::BUFFER_BYTES {
            self.poll_told(cx);
        }
        let out = &mut self.inbound.interim;
        if out.is_empty() {
            *out = buffers::take();
        }
        if out.len() < buffers::BUFFER_BYTES {
            encode_response(interim, Framing::None, ConnectionToken::None, out);
        }
    }

    fn poll_told(&mut self, cx: &mut Context<'_>) {
        let _ = self.inbound.poll_interim(cx);
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.inbound.poll_gone(cx)
    }

    fn has_client_left(&mut self, cx: &mut Context<'_>) -> bool {
        // Where the kernel cannot be asked so, a read tells, unless requests that were sent ahead stand before the end.
        self.inbound.io.has_peer_ended().unwrap_or_else(|_| self.inbound.poll_gone(cx).is_ready())
    }

    fn deadline(&mut self) -> &mut Deadline {
        &mut self.inbound.deadline
    }
}

#[cfg(test)]
mod tests;

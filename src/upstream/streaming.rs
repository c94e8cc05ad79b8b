//! An answer's body on its way from a backend, and what goes on beside it: the rest of the request, and the client.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::{Call, Lease, RequestPermit, Trail, pool::Doubt, send::Answered};
use crate::{
    net::{AnswerBody, ClientError, Cut, Io, Progress, RequestBody, Writer, recycle},
    proto::{
        head::{Framing, ResponseHead},
        http1::BodyError,
    },
    shard::{Deadline, Instant, Pipe, clock, task},
    telemetry::metrics::Outcome,
};

/// Chunks of an abandoned answer that are read over before the shard's other tasks get their turn.
const CHUNKS_PER_TURN: u32 = 64;

/// So much is read of an answer that is not passed on, to keep its connection: such answers say in a few words that there
/// is none.
const SET_ASIDE_MAX: usize = 64 * 1024;

/// How long an answer may go on for nobody: one that never ends would hold its place for ever.
const ABANDONED_MAX: Duration = Duration::from_mins(5);

/// The body of an answer. Its connection goes back to the pool with its last byte, and closes if it is dropped before.
#[derive(Debug)]
pub struct Streaming {
    /// The connection and the place among the requests under way, until the body is complete.
    hold: Option<Hold>,
    /// What is left of the request; boxed, since there seldom is any.
    upload: Option<Box<Upload>>,
    is_reusable: bool,
    doubt: Option<Doubt>,
    keep_alive: Option<Duration>,
    idle_timeout: Duration,
    cancels_on_close: bool,
    drops_trailers: bool,
    /// When all of it is to be here; `NEVER` for a stream, of which nobody knows how long it is.
    due: Instant,
    /// While the backend pauses: when it will have paused for too long.
    stalls_at: Option<Instant>,
    head_at: HeadAt,
    trailers: Vec<u8>,
}

/// When the head of an answer was complete.
#[derive(Clone, Copy, Debug)]
enum HeadAt {
    /// Just now: nothing was waited for since.
    Now(Instant),
    /// At that time, and the body had to be waited for.
    Earlier(Instant),
}

/// What an answer holds of its upstream.
#[derive(Debug)]
struct Hold {
    lease: Lease,
    place: RequestPermit,
}

/// A backend's end of a connection that has switched protocols. It is under way on its upstream until it is dropped.
#[derive(Debug)]
pub struct SwitchedBackend {
    hold: Hold,
    /// How long nothing may move.
    pub idle_timeout: Duration,
}

impl SwitchedBackend {
    /// What came behind the answer's head.
    pub fn take_rest(&mut self) -> Vec<u8> {
        self.hold.lease.connection().take_rest()
    }

    /// The connection.
    pub fn io(&mut self) -> &Io {
        self.hold.lease.connection().io()
    }
}

/// The rest of a request whose answer began before it was complete.
#[derive(Debug)]
pub(super) struct Upload {
    writer: Writer,
    /// Lets other tasks run when much was moved at once.
    pause: Option<task::Yield>,
}

impl Upload {
    pub(super) fn new(writer: Writer) -> Self {
        Self { writer, pause: None }
    }
}

/// What speaks against the next request behind such an answer.
fn doubt_about(answer: &ResponseHead) -> Option<Doubt> {
    match answer.status {
        _ if answer.may_have_body => Some(Doubt::Body),
        // The request, or the connection, was not to a server's liking.
        400 | 408 | 413 | 414 | 417 | 426 | 431 | 501 | 505 => Some(Doubt::End),
        _ => None,
    }
}

/// An answer that is not passed on, since the request is sent again. Its connection is kept if all of it has come, and
/// closed otherwise: what is still to come would be taken for the next answer.
pub(super) fn set_aside((answer, mut lease, upload): Answered, call: &Call, trail: &mut Trail, now: Instant) {
    trail.attempt_failed(Outcome::ServerError, now);
    (trail.status, trail.answered_at) = (None, None);
    let mut bytes_left = SET_ASIDE_MAX;
    let mut is_whole = false;
    if upload.is_none() && answer.keep_alive && !call.is_last {
        // Nothing is waited for, so nobody is to be woken.
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok(goes_on)) = lease.connection().poll_fill(&mut cx) {
            let bytes = lease.connection().chunk().len();
            is_whole = !goes_on;
            if is_whole || bytes > bytes_left {
                break;
            }
            bytes_left -= bytes;
            lease.connection().consume(usize::MAX);
        }
    }
    if is_whole {
        let keep_alive = answer.keep_alive_timeout_s.map(|seconds| Duration::from_secs(u64::from(seconds)));
        lease.give_back(keep_alive, doubt_about(&answer), now);
    }
    recycle(answer);
}

impl Streaming {
    pub(super) fn new(
        lease: Lease,
        place: RequestPermit,
        upload: Option<Box<Upload>>,
        answer: &ResponseHead,
        call: &Call,
        answered_at: Instant,
    ) -> Self {
        let mut streaming = Self {
            hold: Some(Hold { lease, place }),
            upload,
            // A connection that has switched protocols speaks HTTP no more, whatever becomes of the tunnel.
            is_reusable: answer.keep_alive && answer.status != 101,
            doubt: doubt_about(answer),
            keep_alive: answer.keep_alive_timeout_s.map(|seconds| Duration::from_secs(u64::from(seconds))),
            idle_timeout: call.stream_idle_timeout,
            cancels_on_close: call.cancels_on_close,
            drops_trailers: call.drops_trailers,
            due: if matches!(answer.framing, Framing::Length(_)) { call.deadline } else { Instant::NEVER },
            stalls_at: None,
            head_at: HeadAt::Now(answered_at),
            trailers: Vec::new(),
        };
        // Nobody asks for the body of an answer that has none: to a HEAD, a 204, a 304.
        if answer.framing == Framing::None && answer.status != 101 {
            streaming.complete();
        }
        streaming
    }
}

impl Streaming {
    /// The last byte is here: the connection is free for another request.
    fn complete(&mut self) {
        let Some(Hold { mut lease, .. }) = self.hold.take() else { return };
        let connection = lease.connection();
        if !connection.trailers().is_empty() && !self.drops_trailers {
            self.trailers.extend_from_slice(connection.trailers());
        }
        if self.is_reusable && self.upload.is_none() {
            // Most answers are here whole with their head; then no time has passed.
            let now = match self.head_at {
                HeadAt::Now(at) => at,
                HeadAt::Earlier(_) => clock::now(),
            };
            lease.give_back(self.keep_alive, self.doubt, now);
        }
    }

    /// What follows on a connection that failed so means nothing.
    fn fail(&mut self, error: &ClientError) -> Cut {
        let (cut, class) = match error {
            // A connection that ended too soon broke, with a FIN or without.
            ClientError::Broken(_) | ClientError::Body(BodyError::Truncated) => (Cut::UpstreamBroken, "closed"),
            _ => (Cut::UpstreamMalformed, "malformed"),
        };
        let Some(Hold { mut lease, place }) = self.hold.take() else { return cut };
        // A backend that closes before it has read all of a request may lose the end of its answer by that (RFC 9112 §9.6).
        if self.upload.is_none() && !lease.connection().has_write_broken() {
            let (HeadAt::Now(answered_at) | HeadAt::Earlier(answered_at)) = self.head_at;
            place.upstream().broke_off(&lease.backend, lease.trial, class, answered_at, clock::now());
        }
        cut
    }

    /// Waits while the backend pauses.
    fn poll_stalled(&mut self, cx: &mut Context<'_>, request: &mut impl RequestBody) -> Poll<Cut> {
        if let HeadAt::Now(at) = self.head_at {
            self.head_at = HeadAt::Earlier(at);
        }
        let stalls_at = *self.stalls_at.get_or_insert_with(|| clock::now() + self.idle_timeout);
        // The timer is the rest of the request's too, which `poll_upload` finds overdue when it is woken.
        let due = if self.upload.is_some() { stalls_at.min(request.due()) } else { stalls_at };
        request.deadline().set(due.min(self.due));
        let cut = if self.due <= due { Cut::DeadlineMissed } else { Cut::UpstreamStalled };
        request.deadline().poll(cx).map(|()| cut)
    }

    /// Moves the rest of the request on.
    fn poll_upload(&mut self, cx: &mut Context<'_>, request: &mut impl RequestBody) -> Option<Cut> {
        let (Some(upload), Some(hold)) = (&mut self.upload, &mut self.hold) else { return None };
        if upload.pause.as_mut().is_some_and(|pause| Pin::new(pause).poll(cx).is_pending()) {
            return None;
        }
        upload.pause = None;
        match upload.writer.poll(hold.lease.connection().io(), cx, request) {
            Progress::Done => {
                hold.place.uploaded();
                self.upload = None;
            }
            Progress::Turn => {
                // Registers the waker; this turn is not over yet.
                let mut pause = task::yield_now();
                let _ = Pin::new(&mut pause).poll(cx);
                upload.pause = Some(pause);
            }
            Progress::Blocked | Progress::Waiting => {}
            Progress::BodyFailed(_) => return Some(Cut::Upload),
            Progress::Broken => {
                // It reads no further; its answer is still good, if it says itself where it ends.
                hold.lease.connection().write_broke();
                self.is_reusable = false;
                hold.place.uploaded();
                self.upload = None;
            }
        }
        None
    }
}

impl AnswerBody for Streaming {
    fn poll_fill(&mut self, cx: &mut Context<'_>, request: &mut impl RequestBody) -> Poll<Result<bool, Cut>> {
        let Some(hold) = &mut self.hold else { return Poll::Ready(Ok(false)) };
        match hold.lease.connection().poll_fill(cx) {
            Poll::Ready(Ok(true)) => {
                self.stalls_at = None;
                Poll::Ready(Ok(true))
            }
            Poll::Ready(Ok(false)) => {
                self.complete();
                Poll::Ready(Ok(false))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.fail(&error))),
            Poll::Pending => self.poll_stalled(cx, request).map(Err),
        }
    }

    fn chunk(&self) -> &[u8] {
        let connection = self.hold.as_ref().and_then(|hold| hold.lease.connection.as_ref());
        connection.map_or(&[], |connection| connection.chunk())
    }

    fn consume(&mut self, bytes: usize) {
        if let Some(hold) = &mut self.hold {
            hold.lease.connection().consume(bytes);
        }
    }

    fn unseen(&self) -> u64 {
        let connection = self.hold.as_ref().and_then(|hold| hold.lease.connection.as_ref());
        connection.map_or(0, |connection| connection.unseen())
    }

    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        request: &mut impl RequestBody,
        pipe: &mut Pipe,
    ) -> Poll<Result<usize, Cut>> {
        let Some(hold) = &mut self.hold else { return Poll::Ready(Ok(0)) };
        match hold.lease.connection().poll_move(cx, pipe) {
            Poll::Ready(Ok(moved)) => {
                if moved > 0 {
                    self.stalls_at = None;
                }
                Poll::Ready(Ok(moved))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.fail(&error))),
            Poll::Pending => self.poll_stalled(cx, request).map(Err),
        }
    }

    fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    fn poll_meanwhile(&mut self, cx: &mut Context<'_>, request: &mut impl RequestBody) -> Poll<Cut> {
        if let Some(cut) = self.poll_upload(cx, request) {
            return Poll::Ready(cut);
        }
        if self.upload.is_none() && self.cancels_on_close && request.is_done() {
            return request.poll_gone(cx).map(|()| Cut::ClientGone);
        }
        Poll::Pending
    }

    fn write_timeout(&self) -> Option<Duration> {
        Some(self.idle_timeout)
    }

    /// With `on_client_close = "finish"` the backend gets to send the rest of its answer, to nobody.
    fn abandon(mut self) {
        if self.cancels_on_close || self.upload.is_some() {
            return;
        }
        task::spawn("abandoned answer", async move {
            let mut silence = Deadline::new();
            let ends_at = clock::now() + ABANDONED_MAX;
            silence.set((clock::now() + self.idle_timeout).min(ends_at));
            while !poll_fn(|cx| self.poll_discard(cx, &mut silence, ends_at)).await {
                task::yield_now().await;
            }
        });
    }
}

impl Streaming {
    /// The connection, for an answer with status 101.
    pub fn into_switched(mut self) -> Option<SwitchedBackend> {
        Some(SwitchedBackend { hold: self.hold.take()?, idle_timeout: self.idle_timeout })
    }

    /// Reads over the rest of the answer: `true` when there is none left, `false` when others should run first.
    fn poll_discard(&mut self, cx: &mut Context<'_>, silence: &mut Deadline, ends_at: Instant) -> Poll<bool> {
        for _ in 0..CHUNKS_PER_TURN {
            let Some(hold) = &mut self.hold else { return Poll::Ready(true) };
            match hold.lease.connection().poll_fill(cx) {
                Poll::Ready(Ok(true)) => {
                    hold.lease.connection().consume(usize::MAX);
                    let now = clock::now();
                    if now >= ends_at {
                        return Poll::Ready(true);
                    }
                    silence.set((now + self.idle_timeout).min(ends_at));
                }
                Poll::Ready(Ok(false)) => self.complete(),
                Poll::Ready(Err(_)) => return Poll::Ready(true),
                Poll::Pending => return silence.poll(cx).map(|()| true),
            }
        }
        Poll::Ready(false)
    }
}

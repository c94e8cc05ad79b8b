//! One request to an upstream: a backend, a connection, the request out and the answer's head in; again if that is safe.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    Backend, Failure, Lease, RequestPermit, RetryRules, Streaming, Trail, Upstream,
    hedge::may_be_hedged,
    retry::{AttemptTime, Tried, retry_after},
    streaming::{Upload, set_aside},
};
use crate::{
    config::RetryOn,
    net::{AnswerLimits, BodyFailure, ClientConnection, Progress, RequestBody, Writer, recycle},
    proto::{
        head::{Framing, Known, Method, RequestHead, ResponseHead, Span, Version},
        http1::encode_request,
        time_left,
    },
    shard::{Instant, clock, task},
};

/// What an upstream is asked, besides the head and the body. The route's.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a decision of its own")]
pub struct Call {
    /// The target that the backend sees: a span of the head's bytes.
    pub target: Span,
    /// Whether the client's `Host` is kept; otherwise the backend's authority takes its place.
    pub preserve_host: bool,
    /// From the request's last byte to the end of the answer's head.
    pub response_timeout: Duration,
    /// How long the answer's body may pause.
    pub stream_idle_timeout: Duration,
    /// Attempts beyond the first.
    pub retries_max: u32,
    /// What is tried again.
    pub retry: RetryRules,
    /// After how long without an answer another instance is asked as well.
    pub hedge_after: Option<Duration>,
    /// When it is to be answered; `NEVER` where nothing is said of that.
    pub deadline: Instant,
    /// Whether it is refused where it would be answered too late.
    pub may_be_shed: bool,
    /// Whether nothing may follow it on its connection, which the backend is told: it may not read the body, and take that
    /// for the next request.
    pub is_last: bool,
    /// Whether the answer's trailer fields are left out.
    pub drops_trailers: bool,
    /// Whether a client that leaves, or whose session ends, takes its request with it.
    pub cancels_on_close: bool,
    /// What keeps it with one backend, where those are chosen by key.
    pub hash_key: Option<u64>,
}

impl Call {
    /// How long one attempt may take. Where no other one may follow it, that is all the time that there is.
    fn answer_timeout(&self, head: &RequestHead) -> Duration {
        match self.retry.per_try_timeout {
            Some(timeout)
                if head.method.is_idempotent()
                    && head.framing == Framing::None
                    && self.retries_max > 0
                    && self.retry.has(RetryOn::Timeout) =>
            {
                timeout.min(self.response_timeout)
            }
            _ => self.response_timeout,
        }
    }
}

/// Who waits for the answer.
pub trait Asker {
    /// Whether its right to an answer has ended. Whoever ends it wakes the task.
    fn has_ended(&self) -> bool;

    /// Makes the head of an interim answer ready for the client; `false` if it gets none.
    fn prepare(&self, interim: &mut ResponseHead) -> bool;
}

/// Further addresses of a name that one request tries when no connection can be opened.
const ADDRESSES_TRIED_MAX: u32 = 4;

/// What an attempt brings: the answer's head, the connection that its body comes over, and what is left of the request.
pub(super) type Answered = (ResponseHead, Lease, Option<Box<Upload>>);

/// How the answer to one attempt stands.
enum Waited {
    Answered(ResponseHead),
    Turn,
}

impl Upstream {
    /// Sends a request and waits for the answer's head. The trail says what was tried, also when it fails.
    ///
    /// It is sent again only if that is safe (`Tried::is_repeatable`), for a reason that the route names, and within the
    /// retry budget and its time. A connection that was not opened cost nobody anything: for the next instance that budget
    /// is not asked, and the other addresses of one that is given by name are part of the same attempt. Interim answers
    /// (RFC 9110 §15.2) go to the client as they come. Dropping the future closes the connections in use.
    pub async fn send(
        self: &Rc<Self>,
        head: &mut RequestHead,
        body: &mut impl RequestBody,
        call: &Call,
        trail: &mut Trail,
        asker: &impl Asker,
    ) -> Result<(ResponseHead, Streaming), Failure> {
        let admitted_at = clock::now();
        if call.may_be_shed {
            self.admit(admitted_at, call.deadline, trail)?;
        }
        let mut began = admitted_at;
        let mut place = match self.enter(!body.is_here(), began) {
            Err(Failure::UploadsFull) if body.is_short() => {
                body.wait_until_due();
                poll_fn(|cx| wait_outside(cx, body, asker)).await?;
                began = clock::now();
                self.enter(false, began)?
            }
            entered => entered?,
        };
        // When somebody was asked first: no attempt begins later than the answer to that one would have been waited for.
        let mut asked_at = None;
        let mut limit = call.deadline;
        let mut earlier = None;
        let mut failed: Vec<Rc<Backend>> = Vec::new();
        let mut next = None;
        // Attempts that were other addresses of the same instance.
        let mut addresses = 0;
        loop {
            if asker.has_ended() {
                return Err(Failure::Ended);
            }
            let mut attempt = Attempt::new(began, limit, &mut place);
            let backend = next.take().or_else(|| self.choose(began, call.hash_key, &failed));
            let mut ended = match call.hedge_after {
                Some(after) if trail.attempts == 0 && may_be_hedged(head) => {
                    // Boxed, so that requests which have no such thing are not larger for it.
                    Box::pin(self.hedged(&mut attempt, after, backend, head, body, call, trail, asker, &mut failed))
                        .await
                }
                _ => self.attempt(&mut attempt, backend, head, body, call, trail, asker).await,
            };
            let tried = attempt.tried(head.method, body, trail);
            let again = match &mut ended {
                Ok((answer, ..)) => {
                    let reason = call.retry.of_status(answer.status).filter(|reason| tried.is_repeatable(*reason));
                    reason.map(|reason| Again { reason, is_unasked: false, was_stale: false })
                }
                Err(failure) => {
                    self.if_late(failure, &place, began, admitted_at, call, trail);
                    let time = AttemptTime { began, limit, answer_timeout: call.answer_timeout(head) };
                    self.account(failure, tried, time, &mut place, call, trail)
                }
            };
            let Some(again) = again else {
                return match ended {
                    Ok(answered) => Ok(stream(answered, place, call, trail, admitted_at)),
                    // The attempts took out the last backend: what they met says more.
                    Err(none @ Failure::NoBackend { .. }) => Err(earlier.unwrap_or(none)),
                    Err(failure) => Err(failure),
                };
            };
            let now = clock::now();
            if !again.is_unasked {
                asked_at.get_or_insert(began);
            }
            let retries_until = call.deadline.min(asked_at.map_or(Instant::NEVER, |at| at + call.response_timeout));
            failed.extend(trail.backend.clone());
            let is_fresh = |backend: &Rc<Backend>| !failed.iter().any(|failed| Rc::ptr_eq(failed, backend));
            // Nobody was asked for anything, so whoever is tried next gets no more than a request.
            if again.is_unasked && addresses < ADDRESSES_TRIED_MAX {
                let tried = trail.backend.as_ref();
                let is_the_same =
                    |backend: &Rc<Backend>| is_fresh(backend) && tried.is_some_and(|tried| tried.has_name_of(backend));
                next = self.choose_among(now, call.hash_key, is_the_same);
            }
            let mut pause = Duration::ZERO;
            if next.is_some() {
                addresses += 1;
            } else {
                let done = trail.attempts - addresses - u32::from(trail.unusual.is_hedged);
                if again.is_unasked {
                    next = self.choose_among(now, call.hash_key, is_fresh);
                }
                if next.is_none() && !again.was_stale {
                    pause = self.pause(done, &ended);
                }
                let may = done <= call.retries_max
                    && now + pause < retries_until
                    && (next.is_some() || place.may_retry(now, trail));
                if !may {
                    return ended.map(|answered| stream(answered, place, call, trail, admitted_at));
                }
            }
            trail.retried(again.reason);
            match ended {
                Ok(answered) => set_aside(answered, call, trail, now),
                Err(failure) => earlier = Some(failure),
            }
            if call.retry.per_try_timeout.is_some() {
                limit = retries_until;
            }
            if !pause.is_zero() {
                wait_between(now + pause, body, call, asker).await?;
            }
            began = clock::now();
        }
    }

    /// A failure for want of time becomes a missed deadline when the request's own time is up. Unless its client did not send
    /// it in that time, the upstream was too slow for it.
    fn if_late(
        &self,
        failure: &mut Failure,
        place: &RequestPermit,
        began: Instant,
        admitted_at: Instant,
        call: &Call,
        trail: &mut Trail,
    ) {
        let now = clock::now();
        if now < call.deadline || !failure.is_of_time() {
            return;
        }
        trail.missed_deadline();
        if let Some(backend) = trail.backend.as_ref().filter(|_| !matches!(failure, Failure::Request(_))) {
            self.gave_up(backend, now.since(began), now);
            let allowed = call.deadline.since(admitted_at);
            place.tell(now, allowed, allowed, false);
        }
        *failure = Failure::DeadlineMissed;
    }

    /// Counts how an attempt failed, and says whether it is a reason to make another one.
    fn account(
        &self,
        failure: &Failure,
        tried: Tried,
        time: AttemptTime,
        place: &mut RequestPermit,
        call: &Call,
        trail: &mut Trail,
    ) -> Option<Again> {
        let now = clock::now();
        let waited = now.since(time.began);
        trail.waited += waited;
        if let Some(outcome) = failure.outcome() {
            trail.attempt_failed(outcome, now);
        }
        let was_stale = trail.was_stale(failure);
        let is_its_fault = failure.class().is_some() && !was_stale;
        let connect_timeout = self.state.with(|state| state.settings.connect_timeout);
        if let Some(backend) = trail.backend.as_ref().filter(|_| time.is_cut_short(failure, connect_timeout)) {
            // What those before it left of the request's time was too little for it: no fault of its.
            self.gave_up(backend, waited, now);
            place.failed();
        } else if let Some(backend) = trail.backend.as_ref().filter(|_| is_its_fault) {
            trail.ejected += u32::from(self.failed(backend, failure, waited, now));
            place.failed();
        }
        let reason = match failure {
            Failure::Connect(_) => Some(RetryOn::Connect),
            Failure::Broken(_) => Some(RetryOn::Reset),
            Failure::TimedOut if call.retry.per_try_timeout.is_some() => Some(RetryOn::Timeout),
            _ => None,
        };
        let reason = reason.filter(|reason| call.retry.has(*reason) && tried.is_repeatable(*reason));
        let is_unasked = is_its_fault && matches!(failure, Failure::Connect(_));
        reason.map(|reason| Again { reason, is_unasked, was_stale })
    }

    /// How long to wait before the request is sent again, when this has been done so often.
    fn pause(&self, attempts: u32, ended: &Result<Answered, Failure>) -> Duration {
        let drawn = self.state.with(|state| state.settings.backoff.pause(attempts, &mut state.rng));
        match ended {
            Ok((answer, ..)) if answer.status == 503 => drawn.max(retry_after(answer)),
            _ => drawn,
        }
    }

    /// That there is no backend to ask.
    pub(super) fn nobody(&self) -> Failure {
        self.state.with(|state| {
            let is_held = |backend: &&Rc<Backend>| backend.state.with(|state| state.order.held.is_some());
            let held = state.backends.iter().filter(is_held).count();
            Failure::NoBackend { held, total: state.backends.len() }
        })
    }

    #[expect(clippy::too_many_arguments, reason = "what a request is and what has become of it so far")]
    pub(super) async fn attempt(
        &self,
        attempt: &mut Attempt<'_>,
        backend: Option<Rc<Backend>>,
        head: &mut RequestHead,
        body: &mut impl RequestBody,
        call: &Call,
        trail: &mut Trail,
        asker: &impl Asker,
    ) -> Result<Answered, Failure> {
        let now = attempt.began;
        let backend = backend.ok_or_else(|| self.nobody())?;
        let is_retry = trail.attempts > 0;
        trail.attempts += 1;
        trail.has_answered = false;
        trail.backend = Some(Rc::clone(&backend));
        trail.begin_try(head, call.target, now);
        let mut lease = self.lease(&backend, is_retry, now, attempt.limit, trail).await?;

        set_host(head, &backend, call.preserve_host);
        let answer_timeout = call.answer_timeout(head);
        if call.deadline != Instant::NEVER {
            time_left::say(head, attempt.limit.since(now).min(answer_timeout).as_millis());
        }
        let is_chunked = head.framing == Framing::Chunked;
        let writer = attempt.writer.insert(Writer::new(is_chunked, head.framing == Framing::None, |out| {
            encode_request(head, head.text(call.target), head.framing, call.is_last, out);
        }));
        lease.connection().begin();
        body.wait_until_due();
        let mut wait = Wait {
            method: head.method,
            version: head.version,
            answers: self.state.with(|state| state.settings.answers),
            call,
            asker,
            place: attempt.place,
            began: now,
            limit: attempt.limit,
            answer_timeout,
            has_waited: false,
            is_uploaded: false,
            is_broken: false,
            blocked_at: None,
        };
        let mut answer = loop {
            let waited = poll_fn(|cx| wait.poll(cx, lease.connection(), writer, body)).await;
            trail.has_answered = lease.connection().has_answered();
            match waited? {
                Waited::Answered(answer) => break answer,
                Waited::Turn => task::yield_now().await,
            }
        };
        let answered_at = clock::turn();
        let waited = answered_at.since(now);
        trail.waited += waited;
        trail.answered_at = Some(answered_at);
        trail.status = Some(answer.status);
        trail.mended = answer.mended;
        wait.place.answered(answer.status, answered_at);
        trail.ejected += u32::from(self.answered(&backend, waited, answer.status, answered_at));
        // A backend that answered before it had all of a request may take the rest of it for the next one. One that did not
        // switch protocols may close all the same, or have left HTTP behind.
        answer.keep_alive &= wait.is_uploaded && !call.is_last && (!head.upgrade || answer.status == 101);
        let goes_on = !wait.is_uploaded && !wait.is_broken;
        if !goes_on {
            attempt.place.uploaded();
        }
        let upload = attempt.writer.take_if(|_| goes_on).map(|writer| Box::new(Upload::new(writer)));
        Ok((answer, lease, upload))
    }

    /// A connection to the backend: one that is warm, or a new one. A retry does not trust the warm ones.
    async fn lease(
        &self,
        backend: &Rc<Backend>,
        is_retry: bool,
        now: Instant,
        limit: Instant,
        trail: &mut Trail,
    ) -> Result<Lease, Failure> {
        let (connect_timeout, idle_timeout, idle_max) = self
            .state
            .with(|state| (state.settings.connect_timeout, state.settings.idle_timeout, state.settings.idle_max));
        let (warm, trial, trusted_by) = backend.state.with(|state| {
            state.in_flight += 1;
            let warm = if is_retry { None } else { state.pool.take(now, idle_max) };
            (warm, state.outlier.begin(now), state.trust.changes())
        });
        // From here on the lease counts the request off again, whatever happens.
        let mut lease =
            Lease { backend: Rc::clone(backend), connection: warm, idle_timeout, idle_max, trial, trusted_by };
        trail.reused = lease.connection.is_some();
        if lease.connection.is_none() {
            trail.opened += 1;
            let connected = self.connect(backend, limit.min(now + connect_timeout)).await;
            trail.connect += clock::now().since(now);
            lease.connection = Some(connected.map_err(Failure::Connect)?);
        }
        Ok(lease)
    }
}

/// Waits for a short body that found no place among the uploads.
fn wait_outside(cx: &mut Context<'_>, body: &mut impl RequestBody, asker: &impl Asker) -> Poll<Result<(), Failure>> {
    if asker.has_ended() {
        return Poll::Ready(Err(Failure::Ended));
    }
    body.poll_here(cx).map_err(Failure::Request)
}

/// Makes sure that there is one `Host` (RFC 9112 §3.2): the backend's authority, or the client's where it is kept. An
/// HTTP/1.0 client may have sent none.
fn set_host(head: &mut RequestHead, backend: &Backend, is_preserved: bool) {
    if !is_preserved || (head.value(Known::Host).is_none() && head.authority.is_empty()) {
        head.remove(|known| known == Known::Host);
        head.push(Known::Host, b"Host", backend.authority().as_bytes());
    } else if head.value(Known::Host).is_none() {
        head.push_copy(Known::Host, b"Host", head.authority);
    }
}

/// An attempt that may be followed by another one.
struct Again {
    reason: RetryOn,
    /// No connection could be opened: nobody was asked for anything.
    is_unasked: bool,
    /// It went over a connection that its backend had closed.
    was_stale: bool,
}

/// One attempt.
pub(super) struct Attempt<'p> {
    pub(super) began: Instant,
    /// When it is given up, whatever else.
    pub(super) limit: Instant,
    pub(super) place: &'p mut RequestPermit,
    writer: Option<Writer>,
}

impl<'p> Attempt<'p> {
    pub(super) fn new(began: Instant, limit: Instant, place: &'p mut RequestPermit) -> Self {
        Self { began, limit, place, writer: None }
    }

    /// What the decision whether there may be another one goes by.
    pub(super) fn tried(&self, method: Method, body: &impl RequestBody, trail: &Trail) -> Tried {
        Tried {
            is_idempotent: method.is_idempotent(),
            was_sent: self.writer.as_ref().is_some_and(Writer::has_written),
            is_body_gone: body.received_bytes() > 0,
            has_answered: trail.has_answered,
        }
    }
}

/// The answer that counts.
fn stream(
    (answer, lease, upload): Answered,
    place: RequestPermit,
    call: &Call,
    trail: &Trail,
    admitted_at: Instant,
) -> (ResponseHead, Streaming) {
    if call.deadline != Instant::NEVER
        && answer.status < 500
        && let Some(answered_at) = trail.answered_at
    {
        place.tell(answered_at, call.deadline.since(admitted_at), answered_at.since(admitted_at), true);
    }
    let answered_at = trail.answered_at.unwrap_or(admitted_at);
    let streaming = Streaming::new(lease, place, upload, &answer, call, answered_at);
    (answer, streaming)
}

/// Waits until the next attempt.
async fn wait_between(
    until: Instant,
    body: &mut impl RequestBody,
    call: &Call,
    asker: &impl Asker,
) -> Result<(), Failure> {
    body.deadline().set(until);
    poll_fn(|cx| {
        if asker.has_ended() {
            return Poll::Ready(Err(Failure::Ended));
        }
        if call.cancels_on_close && body.is_done() && body.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Failure::ClientGone));
        }
        body.deadline().poll(cx).map(Ok)
    })
    .await
}

/// The wait for an answer's head while the request goes out.
struct Wait<'a, A> {
    method: Method,
    /// The client's.
    version: Version,
    answers: AnswerLimits,
    call: &'a Call,
    asker: &'a A,
    place: &'a mut RequestPermit,
    began: Instant,
    /// When it is given up.
    limit: Instant,
    /// From the request's last byte to the head of the answer.
    answer_timeout: Duration,
    /// It was polled before, so that time may have passed.
    has_waited: bool,
    is_uploaded: bool,
    /// The backend takes no more; it may still have answered.
    is_broken: bool,
    /// While the backend takes no more: how much it had taken when the timer was set for that.
    blocked_at: Option<u64>,
}

impl<A: Asker> Wait<'_, A> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut ClientConnection,
        writer: &mut Writer,
        body: &mut impl RequestBody,
    ) -> Poll<Result<Waited, Failure>> {
        if self.asker.has_ended() && (!self.is_uploaded || self.call.cancels_on_close) {
            return Poll::Ready(Err(Failure::Ended));
        }
        let mut has_had_its_turn = false;
        if !self.is_uploaded && !self.is_broken {
            match writer.poll(connection.io(), cx, body) {
                Progress::Done => {
                    self.is_uploaded = true;
                    self.place.uploaded();
                    self.blocked_at = None;
                    // Most requests go out whole at once; then no time has passed.
                    let sent_at = if self.has_waited { clock::now() } else { self.began };
                    body.deadline().set(self.limit.min(sent_at + self.answer_timeout));
                }
                Progress::Turn => has_had_its_turn = true,
                Progress::Blocked => {
                    // A backend that reads slowly gets all of it; it has the time of an answer to take anything at all.
                    let taken = writer.taken_bytes();
                    if self.blocked_at.replace(taken) != Some(taken) {
                        let due = clock::now() + self.answer_timeout;
                        let due = due.min(body.due()).min(self.limit);
                        body.deadline().set(due);
                    }
                }
                Progress::Waiting => {
                    if self.blocked_at.take().is_some() {
                        body.wait_until_due();
                    }
                }
                Progress::BodyFailed(failure) => return Poll::Ready(Err(Failure::Request(failure))),
                Progress::Broken => {
                    // It stays an upload: if nothing of its body is gone, it may be sent again.
                    self.is_broken = true;
                    connection.write_broke();
                    body.deadline().set(self.limit.min(clock::now() + self.answer_timeout));
                }
            }
        }
        self.has_waited = true;
        loop {
            match connection.poll_head(cx, self.method, &self.answers) {
                Poll::Ready(Ok(head)) if head.is_interim() => self.pass_on(cx, head, body),
                Poll::Ready(Ok(head)) => return Poll::Ready(Ok(Waited::Answered(head))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::of(error))),
                Poll::Pending => break,
            }
        }
        body.poll_told(cx);
        if has_had_its_turn {
            return Poll::Ready(Ok(Waited::Turn));
        }
        if self.is_uploaded && self.call.cancels_on_close && body.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Failure::ClientGone));
        }
        let is_the_clients = !self.is_uploaded && self.blocked_at.is_none() && !self.is_broken;
        body.deadline()
            .poll(cx)
            .map(|()| Err(if is_the_clients { Failure::Request(BodyFailure::TimedOut) } else { Failure::TimedOut }))
    }

    /// An interim answer goes on to the client. RFC 9110 §15.2: an HTTP/1.0 client is sent none.
    fn pass_on(&self, cx: &mut Context<'_>, mut interim: ResponseHead, body: &mut impl RequestBody) {
        if self.version == Version::Http11 && !self.asker.has_ended() && self.asker.prepare(&mut interim) {
            body.tell(cx, &interim);
        }
        recycle(interim);
    }
}

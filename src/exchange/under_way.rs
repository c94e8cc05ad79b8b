//! One request and its answer, from the first byte to the last: its ids, its caller, what was tried; counted and logged
//! exactly once, whatever happens to it.

use std::{borrow::Cow, net::IpAddr, rc::Rc, time::Duration};

use super::{Code, Ledger, OpenTunnel, Reject, Tether, Tethers};
use crate::{
    auth::Claims,
    net::{Cut, Ender, Finish, Moved, Peer, Sent},
    proto::head::{Known, RequestHead, ResponseHead, Version},
    shard::{Instant, Local, buffers, clock},
    telemetry::{
        exemplars::Exemplar,
        ids::{RequestId, TraceContext},
        metrics::{Finished, Outcome, Stale, UpstreamCounters},
        record::{Record, RouteNames},
        slots::{MetricSlot, OTHER},
        spans::{SpanKind, SpanNames},
    },
    upstream::{Trail, Unusual},
};

/// What logs and metrics call a route and its upstream. One per route and shard.
#[derive(Debug)]
pub struct Labels {
    /// Both names, as lines of the access log have them.
    pub place: RouteNames,
    /// The route's place in the metrics.
    pub route_slot: MetricSlot,
    /// The upstream's place in the metrics.
    pub upstream_slot: MetricSlot,
    /// What spans call them.
    pub names: SpanNames,
}

/// One request under way.
#[derive(Debug)]
pub struct Exchange {
    pub(super) ledger: Rc<Local<Ledger>>,
    /// The request's head; edited on its way to a backend, its spans still name what came.
    pub head: RequestHead,
    /// Who is at the other end of the connection.
    pub peer: Peer,
    /// Whether the peer's word about the client counts.
    pub is_trusted: bool,
    /// Whom the request is from: the peer, or whom a trusted peer named.
    pub client: IpAddr,
    /// When its first byte was seen.
    pub began: Instant,
    /// What every answer and log line of it carries.
    pub request_id: RequestId,
    /// Its place in a trace, as the backend is told.
    pub trace: TraceContext,
    /// The span of whoever sent it, where that trace came with it; else nought.
    pub(super) parent_span: [u8; 8],
    /// Whether that trace came with the request; `tracestate` belongs to it, and means nothing to a new one.
    pub continues_trace: bool,
    /// What was tried at its upstream.
    pub trail: Trail,
    /// Who calls, once its token has been checked; `None` on public routes.
    pub caller: Option<Rc<Claims>>,
    /// Whether it is a client's request or a message of the hub.
    pub kind: SpanKind,
    /// Ends what is under way on its connection; `None` for a request that never was one.
    ender: Option<Ender>,
    tether: Option<Tether>,
    pub(super) labels: Option<Rc<Labels>>,
    pub(super) status: u16,
    pub(super) ended: Ended,
    /// Why it was refused, for the log.
    why: Cow<'static, str>,
    pub(super) request_bytes: u64,
    answered_at: Option<Instant>,
    answer_kind: AnswerKind,
    is_finished: bool,
}

impl Exchange {
    /// A request has come. `is_trusted`: the peer is a proxy whose word counts.
    pub fn begin(
        ledger: &Rc<Local<Ledger>>,
        peer: &Peer,
        ender: Option<Ender>,
        head: RequestHead,
        began: Instant,
        is_trusted: bool,
        client: IpAddr,
    ) -> Self {
        let (request_id, trace, parent, is_recorded) = ledger.with(|ledger| {
            ledger.counters.requests_in_flight += 1;
            let rng = &mut ledger.rng;
            let request_id = head.value(Known::XRequestId).and_then(RequestId::accept);
            let parent = parent(&head);
            let mut trace = match parent {
                Some(parent) => parent.child(rng),
                None => TraceContext::begin(rng),
            };
            // Strangers do not decide what is recorded, and a trace that begins here has no decision yet.
            let decided = parent.filter(|_| is_trusted).map(|parent| parent.sampled);
            trace.sampled = ledger.sampler.decides(&trace.trace_id, decided);
            let is_recorded = trace.sampled && ledger.spans.recording().is_on;
            (request_id.unwrap_or_else(|| RequestId::generate(rng)), trace, parent, is_recorded)
        });
        Self {
            ledger: Rc::clone(ledger),
            head,
            peer: *peer,
            is_trusted,
            client,
            began,
            request_id,
            trace,
            parent_span: parent.map_or([0; 8], |parent| parent.parent),
            continues_trace: parent.is_some(),
            trail: if is_recorded { Trail::recorded(trace.parent) } else { Trail::default() },
            caller: None,
            kind: SpanKind::Request,
            ender,
            tether: None,
            labels: None,
            status: 0,
            ended: Ended::Served,
            why: Cow::Borrowed(""),
            request_bytes: 0,
            answered_at: None,
            answer_kind: AnswerKind::Usual,
            is_finished: false,
        }
    }

    /// It is known which route takes it.
    pub fn routed(&mut self, labels: &Rc<Labels>) {
        self.labels = Some(Rc::clone(labels));
    }

    /// From now on it goes on for no longer than its caller's session.
    pub fn tie(&mut self, tethers: &Rc<Local<Tethers>>) {
        if let (Some(claims), Some(ender)) = (&self.caller, self.ender.take()) {
            self.tether = Some(Tethers::tie(tethers, claims, ender));
        }
    }

    /// Ties what it is to become to its caller's session: it ends with that. Nothing for a request that never was one.
    pub fn tie_what_follows(&mut self, tethers: &Rc<Local<Tethers>>) -> Option<Tether> {
        let (claims, ender) = (self.caller.as_ref()?, self.ender.take()?);
        let tether = Tethers::tie(tethers, claims, ender);
        tether.answer();
        Some(tether)
    }

    /// Its answer switches to a protocol that the gateway itself speaks: it is over, and what follows is counted for itself.
    pub fn upgraded(mut self, request_bytes: u64) {
        self.request_bytes = request_bytes;
        self.record(0);
    }

    /// What sending it to a backend needs: its head, what is tried, and what says whether its caller's session has ended.
    pub fn to_send(&mut self) -> (&mut RequestHead, &mut Trail, impl Fn() -> bool) {
        let tether = self.tether.as_ref();
        (&mut self.head, &mut self.trail, move || tether.is_some_and(Tether::has_ended))
    }

    fn route_slot(&self) -> MetricSlot {
        self.labels.as_deref().map_or(OTHER, |labels| labels.route_slot)
    }

    /// An answer is about to begin: whether it may, because its caller's session goes on.
    pub fn may_answer(&self) -> bool {
        let Some(tether) = &self.tether else { return true };
        tether.answer();
        !tether.has_ended()
    }

    /// What it says of the time that it has means nothing.
    pub fn has_malformed_deadline(&self) {
        self.ledger.with(|ledger| ledger.counters.deadlines_malformed += 1);
    }

    /// It came while it was not known what had been revoked lately.
    pub fn stale(&self, is_refused: bool) {
        let outcome = if is_refused { Stale::Refused } else { Stale::Served };
        self.ledger.with(|ledger| ledger.counters.stale[outcome.index()] += 1);
    }

    /// Refuses it: the answer, and the reason for the log.
    pub fn refuse(&mut self, reject: &Reject) -> (ResponseHead, Vec<u8>) {
        self.ended = Ended::Refused(reject.code);
        self.why = match &reject.cause {
            Some(cause) => Cow::Owned(ErrorChain(cause.as_ref()).to_string()),
            None => Cow::Borrowed(reject.detail.unwrap_or_default()),
        };
        self.ledger.with(|ledger| ledger.counters.reject(reject.code as usize));
        tracing::debug!(request_id = self.request_id.as_str(), code = reject.code.name(), why = &*self.why, "refused");
        reject.to_response(self.request_id.as_bytes())
    }

    /// Its answer is ready to be written: the fields that every answer carries.
    pub fn answered(&mut self, head: &mut ResponseHead) {
        self.status = head.status;
        let answered_at = self.trail.answered_at.unwrap_or_else(clock::now);
        self.answered_at = Some(answered_at);
        head.push(Known::XRequestId, b"X-Request-Id", self.request_id.as_bytes());
        let mut has_date = false;
        for field in &head.fields {
            match field.known {
                Known::Date => has_date = true,
                Known::ContentType => self.answer_kind = AnswerKind::of(field.value.of(&head.bytes)),
                _ => {}
            }
        }
        if self.answer_kind == AnswerKind::Stream {
            let route = self.route_slot();
            self.ledger.with(|ledger| ledger.counters.route(route).streams_open += 1);
        }
        // RFC 9110 §6.6.1: who forwards an answer without a date says when it came.
        if !has_date {
            let second = clock::to_unix(answered_at).as_secs();
            self.ledger.with(|ledger| head.push(Known::Date, b"Date", ledger.dates.at(second)));
        }
    }

    /// It ended without an answer: the client left.
    pub fn abandoned(&mut self) {
        self.status = Code::ClientClosed.status();
        self.ended = Ended::Refused(Code::ClientClosed);
        self.ledger.with(|ledger| ledger.counters.reject(Code::ClientClosed as usize));
    }

    /// Counts and logs it, and returns the time that was taken down.
    fn record(&mut self, response_bytes: u64) -> Instant {
        let now = clock::now();
        self.count(now, response_bytes);
        self.log(now, response_bytes);
        buffers::give(std::mem::take(&mut self.head.bytes));
        buffers::give_fields(std::mem::take(&mut self.head.fields));
        now
    }

    /// Its answer switches protocols: it is counted, and the tunnel that it has become is logged when that ends.
    pub fn switched(mut self, request_bytes: u64) -> OpenTunnel {
        self.request_bytes = request_bytes;
        self.count(clock::now(), 0);
        OpenTunnel::new(self)
    }

    /// Gives back what it borrowed, and keeps of its head what its line in the log has.
    pub(super) fn keep_only_what_is_logged(&mut self) {
        self.ender = None;
        self.head.keep_only(Known::UserAgent, |bytes, fields| {
            buffers::give(bytes);
            buffers::give_fields(fields);
        });
    }

    /// Logs the tunnel that it became. Returns how long that lasted.
    pub(super) fn log_tunnel(&mut self, ended: Ended, moved: Moved) -> u64 {
        self.ended = ended;
        self.request_bytes = moved.up;
        let now = clock::now();
        self.log(now, moved.down);
        us(now.since(self.answered_at.unwrap_or(now)))
    }

    /// Counts it.
    fn count(&mut self, now: Instant, response_bytes: u64) {
        self.is_finished = true;
        self.tell(now, response_bytes);
        let Self { ledger, trail, labels, answer_kind, .. } = self;
        let (labels, kind) = (labels.as_deref(), *answer_kind);
        let upstream_us = us(trail.waited);
        let to_answer = self.answered_at.unwrap_or(now).since(self.began);
        ledger.with(|ledger| {
            let counters = &mut ledger.counters;
            counters.requests_in_flight -= 1;
            let route = labels.map_or(OTHER, |labels| labels.route_slot);
            // How long a stream lasts is no request's duration.
            let total_us = us(if kind == AnswerKind::Stream { to_answer } else { now.since(self.began) });
            if kind == AnswerKind::Stream {
                let of_route = counters.route(route);
                of_route.streams_open -= 1;
                of_route.stream_lifetime.observe_us(us(now.since(self.answered_at.unwrap_or(now))));
            }
            if self.trace.sampled {
                let exemplar = Exemplar { trace_id: self.trace.trace_id, took_us: total_us, at: now.as_nanos() };
                ledger.exemplars.note(route, exemplar);
            }
            counters.finish(&Finished {
                route,
                status: self.status,
                total_us,
                gateway_us: us(to_answer).saturating_sub(upstream_us),
                request_bytes: self.request_bytes,
                response_bytes,
            });
            if let Some(labels) = labels.filter(|_| trail.attempts > 0) {
                let upstream = counters.upstream(labels.upstream_slot);
                let failed = if trail.failed == [0; Outcome::COUNT] { 0 } else { count_failed(upstream, trail.failed) };
                if trail.attempts > failed {
                    let outcome = self.ended.of_attempt(trail.status);
                    upstream.requests[outcome.index()] += 1;
                    if let Some(backend) = &trail.backend {
                        backend.count(outcome);
                    }
                }
                upstream.duration.observe_us(upstream_us);
                upstream.connections_opened += u64::from(trail.opened);
                upstream.connections_reused += u64::from(trail.reused);
                upstream.ejections += u64::from(trail.ejected);
                upstream.answers_mended += u64::from(trail.mended);
            }
            if let Some(labels) = labels.filter(|_| trail.unusual.is_any) {
                count_unusual(counters.upstream(labels.upstream_slot), &trail.unusual);
            }
            // Messages of the hub have stood in no line.
            if self.kind == SpanKind::Request && (trail.attempts > 0 || trail.unusual.shed.is_some()) {
                counters.queue_duration.observe_us(trail.queued_us.into());
            }
        });
    }

    /// Writes its line.
    fn log(&self, now: Instant, response_bytes: u64) {
        let Self { ledger, head, trail, labels, .. } = self;
        let labels = labels.as_deref();
        let upstream_us = us(trail.waited);
        let to_answer = self.answered_at.unwrap_or(now).since(self.began);
        ledger.with(|ledger| {
            ledger.access_log.line(&Record {
                unix_ms: u64::try_from(clock::to_unix(now).as_millis()).unwrap_or(u64::MAX),
                request_id: self.request_id.as_bytes(),
                trace_id: self.trace.trace_id,
                client: self.client,
                client_text: if self.client == self.peer.address.ip() { self.peer.text() } else { &[] },
                user: self.caller.as_deref().map_or("", |claims| &claims.sub),
                method: head.text(head.method_text),
                host: head.text(head.authority),
                path: head.text(head.path),
                place: labels.map_or(RouteNames::NONE, |labels| &labels.place),
                instance: trail.backend.as_ref().map_or(&[], |backend| backend.name().as_bytes()),
                protocol: match head.version {
                    Version::Http10 => "HTTP/1.0",
                    Version::Http11 => "HTTP/1.1",
                    Version::Http2 => "HTTP/2",
                },
                status: self.status,
                request_bytes: self.request_bytes,
                response_bytes,
                total_us: us(now.since(self.began)),
                gateway_us: us(to_answer).saturating_sub(upstream_us),
                upstream_us,
                connect_us: (trail.opened > 0).then(|| us(trail.connect)),
                attempts: trail.attempts,
                reused: trail.reused,
                reason: self.ended.reason(),
                reason_detail: if matches!(self.ended, Ended::Refused(_)) { &self.why } else { "" },
                shard: ledger.shard,
                user_agent: head.value(Known::UserAgent).unwrap_or_default(),
                socket: None,
            });
        });
    }
}

/// Counts the attempts that had no answer; says how many there were.
#[cold]
fn count_failed(upstream: &mut UpstreamCounters, failed: [u8; Outcome::COUNT]) -> u32 {
    for (count, attempts) in upstream.requests.iter_mut().zip(failed) {
        *count += u64::from(attempts);
    }
    failed.into_iter().map(u32::from).sum()
}

#[cold]
fn count_unusual(upstream: &mut UpstreamCounters, unusual: &Unusual) {
    for (count, retried) in upstream.retries.iter_mut().zip(unusual.retried) {
        *count += u64::from(retried);
    }
    upstream.retries_refused += u64::from(unusual.is_out_of_budget);
    upstream.hedges += u64::from(unusual.is_hedged);
    upstream.hedges_won += u64::from(unusual.hedge_won);
    upstream.deadlines_missed += u64::from(unusual.missed_deadline);
    if let Some(shed) = unusual.shed {
        upstream.shed[shed.index()] += 1;
    }
}

/// How long an answer may be meant to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerKind {
    /// As long as its bytes take.
    Usual,
    /// As long as both sides like: counted as open until it ends.
    Stream,
}

impl AnswerKind {
    fn of(content_type: &[u8]) -> Self {
        if is_event_stream(content_type) { Self::Stream } else { Self::Usual }
    }
}

/// A media type may have parameters (RFC 9110 §8.3.1).
fn is_event_stream(content_type: &[u8]) -> bool {
    const STREAM: &[u8] = b"text/event-stream";
    content_type.split_at_checked(STREAM.len()).is_some_and(|(kind, rest)| {
        kind.eq_ignore_ascii_case(STREAM)
            && rest.iter().find(|byte| !byte.is_ascii_whitespace()).is_none_or(|byte| *byte == b';')
    })
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The trace that a request comes with, if it comes with one. Of two, neither is taken to be its own.
fn parent(head: &RequestHead) -> Option<TraceContext> {
    let mut parents = head.fields.iter().filter(|field| field.known == Known::Traceparent);
    let parent = TraceContext::parse_traceparent(head.text(parents.next()?.value))?;
    parents.next().is_none().then_some(parent)
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    /// With a whole answer, or not yet.
    Served,
    /// It was refused.
    Refused(Code),
    /// Its answer was cut off.
    Cut(Cut),
    /// Its caller's session ended under it.
    Revoked,
    /// Its caller was kicked while its tunnel was open.
    Kicked,
    /// Its tunnel ended because the process drains.
    Draining,
    /// Nothing moved in its tunnel for too long.
    Idle,
    /// Its task ended under it.
    Aborted,
}

impl Ended {
    /// What the access log calls it; nothing where nothing went wrong.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Served => "",
            Self::Refused(code) => code.name(),
            Self::Cut(Cut::ClientGone) => "client_gone",
            Self::Cut(Cut::ClientStalled) => "client_stalled",
            Self::Cut(Cut::Upload) => "upload_failed",
            Self::Cut(Cut::UpstreamBroken) => "upstream_broken",
            Self::Cut(Cut::UpstreamMalformed) => "upstream_malformed",
            Self::Cut(Cut::UpstreamStalled) => "upstream_stalled",
            Self::Cut(Cut::DeadlineMissed) => "deadline_missed",
            Self::Revoked => "revoked",
            Self::Kicked => "kicked",
            Self::Draining => "draining",
            Self::Idle => "idle",
            Self::Aborted => "aborted",
        }
    }

    /// How the attempt ended that did not fail before the head of its answer, which had this status.
    pub(super) const fn of_attempt(self, status: Option<u16>) -> Outcome {
        match (self, status) {
            (Self::Served, Some(..500)) => Outcome::Answered,
            (Self::Served, Some(_)) => Outcome::ServerError,
            (Self::Cut(Cut::UpstreamBroken), _) => Outcome::Closed,
            (Self::Cut(Cut::UpstreamStalled | Cut::DeadlineMissed), _) => Outcome::TimedOut,
            (Self::Cut(Cut::UpstreamMalformed) | Self::Refused(Code::UpstreamBadResponse), _) => Outcome::Malformed,
            _ => Outcome::Cancelled,
        }
    }
}

impl Finish for Exchange {
    fn finish(&mut self, sent: Sent) -> Instant {
        if let Some(cut) = sent.cut {
            self.ended = Ended::Cut(cut);
            if cut == Cut::DeadlineMissed {
                self.trail.missed_deadline();
            }
        }
        self.request_bytes = sent.request_bytes;
        self.record(sent.body_bytes)
    }

    fn give_up(&mut self, so_far: Sent) {
        self.request_bytes = so_far.request_bytes;
        self.end_early(so_far.body_bytes);
    }
}

impl Exchange {
    /// The connection's task ends under it: its session ended, it panicked, or the shard stops.
    fn end_early(&mut self, response_bytes: u64) {
        // It may have been counted, and panicked over that.
        if self.is_finished {
            return;
        }
        let has_session_ended = self.tether.as_ref().is_some_and(Tether::has_ended);
        self.ended = if has_session_ended { Ended::Revoked } else { Ended::Aborted };
        self.record(response_bytes);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end_early(0);
    }
}

/// An error and what led to it, on one line.
struct ErrorChain<'e>(&'e (dyn std::error::Error + 'static));

impl std::fmt::Display for ErrorChain<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(formatter, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

//! What the spans of an exchange say: that of the request, one of each try at an instance, and those of what else it waited
//! for. They are told once it has ended, where its trace is recorded; of one that fails the first may be told all the same.

use std::{future::poll_fn, pin::pin};

use super::{Exchange, Ledger, under_way::Ended};
use crate::{
    net::{Cut, Scheme},
    proto::head::{Known, Version},
    shard::{Instant, clock},
    telemetry::{
        metrics::Outcome,
        spans::{LastTry, Names, Span, SpanFacts, SpanKind, SpanTexts},
    },
    upstream::{Backend, UnderWay},
};

impl Exchange {
    /// Whether its trace is recorded.
    #[inline]
    pub fn is_recorded(&self) -> bool {
        self.trail.tries.is_recorded()
    }

    /// Whether it ended in a way that is told of whatever its trace says.
    #[inline]
    fn is_failure(&self) -> bool {
        let is_cut =
            matches!(self.ended, Ended::Cut(Cut::UpstreamBroken | Cut::UpstreamMalformed | Cut::UpstreamStalled));
        self.status >= 500 || is_cut
    }

    /// It has ended: its spans are told, if they are to be.
    #[inline]
    pub(super) fn tell(&self, now: Instant, response_bytes: u64) {
        if self.is_recorded() {
            self.tell_recorded(now, response_bytes);
        } else if self.is_failure() {
            self.tell_failure(now, response_bytes);
        }
    }

    #[inline(never)]
    fn tell_recorded(&self, now: Instant, response_bytes: u64) {
        self.ledger.with(|ledger| {
            let frame = Frame::new(self, ledger, now);
            if !self.trail.tries.failed().is_empty() {
                self.tell_failed(&frame, ledger);
            }
            let last_try = self.trail.tries.under_way();
            self.tell_request(&frame, ledger, response_bytes, last_try);
        });
    }

    #[cold]
    fn tell_failure(&self, now: Instant, response_bytes: u64) {
        self.ledger.with(|ledger| {
            let recording = ledger.spans.recording();
            if recording.is_on && recording.with_errors {
                let frame = Frame::new(self, ledger, now);
                self.tell_request(&frame, ledger, response_bytes, None);
            }
        });
    }

    /// Its own span, and that of the try which brought the answer: most of what they say is the same.
    fn tell_request(&self, frame: &Frame, ledger: &mut Ledger, response_bytes: u64, last_try: Option<&UnderWay>) {
        let Self { head, trail, .. } = self;
        let facts = SpanFacts {
            kind: self.kind,
            id: self.trace.parent,
            parent: self.parent_span,
            began_ns: frame.ns(self.began),
            ended_ns: frame.now_ns,
            status: self.status,
            has_failed: self.is_failure(),
            reason: self.ended.reason(),
            attempt: trail.attempts,
            request_bytes: self.request_bytes,
            response_bytes,
            ..frame.facts
        };
        let texts = SpanTexts {
            method: head.text(head.method_text),
            path: head.text(head.path),
            names: self.names(),
            instance: trail.backend.as_deref().map_or(&[], instance),
            host: head.text(head.authority),
            user_agent: head.value(Known::UserAgent).unwrap_or_default(),
            request_id: self.request_id.as_bytes(),
        };
        let asked = last_try.map_or(&[][..], |at| head.text(at.path));
        let asked = if asked == texts.path { &[][..] } else { asked };
        let last_try = last_try.map(|at| self.last_try(frame, at));
        ledger.spans.record_both(&Span { facts, texts }, last_try, asked);
    }

    fn last_try(&self, frame: &Frame, at: &UnderWay) -> LastTry {
        let trail = &self.trail;
        let outcome = self.ended.of_attempt(trail.status);
        let status = trail.status.unwrap_or(0);
        LastTry {
            id: at.id,
            began_ns: frame.ns(at.began),
            status,
            has_failed: status >= 400 || !matches!(outcome, Outcome::Answered | Outcome::Cancelled),
            reason: word(outcome),
            attempt: at.number,
            is_reused: trail.reused,
            connect_us: us(trail.connect_of(at)),
        }
    }

    fn names(&self) -> Names<'_> {
        self.labels.as_deref().map_or(Names::default(), |labels| labels.names.all())
    }

    #[cold]
    fn tell_failed(&self, frame: &Frame, ledger: &mut Ledger) {
        let Self { head, trail, .. } = self;
        let texts =
            SpanTexts { method: head.text(head.method_text), names: self.names().of_try(), ..SpanTexts::default() };
        let facts = SpanFacts { kind: SpanKind::Try, parent: self.trace.parent, ..frame.facts };
        for failed in trail.tries.failed() {
            let facts = SpanFacts {
                id: failed.at.id,
                began_ns: frame.ns(failed.at.began),
                ended_ns: frame.ns(failed.ended),
                has_failed: failed.outcome != Outcome::Cancelled,
                reason: word(failed.outcome),
                attempt: failed.at.number,
                is_reused: failed.is_reused,
                connect_us: us(failed.connect),
                ..facts
            };
            let instance = failed.backend.as_deref().map_or(&[][..], instance);
            let texts = SpanTexts { path: head.text(failed.at.path), instance, ..texts };
            ledger.spans.record(&Span { facts, texts });
        }
    }

    /// Does this, and tells of it as a part if it was waited for. Dropping the future drops the work.
    pub async fn wait<T, E>(&self, kind: SpanKind, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut work = pin!(work);
        let mut began = None;
        let done = poll_fn(|cx| {
            let polled = work.as_mut().poll(cx);
            if polled.is_pending() && began.is_none() {
                began = Some(clock::turn());
            }
            polled
        })
        .await;
        if let Some(began) = began {
            self.tell_part(kind, began, done.is_err());
        }
        done
    }

    /// Something that it waited for, from then until now; where it is recorded.
    pub fn tell_part(&self, kind: SpanKind, began: Instant, has_failed: bool) {
        if !self.is_recorded() {
            return;
        }
        let now = clock::now();
        self.ledger.with(|ledger| {
            let frame = Frame::new(self, ledger, now);
            let facts = SpanFacts {
                kind,
                // It may wait for the same more than once, as for two limits.
                id: self.trace.child(&mut ledger.rng).parent,
                parent: self.trace.parent,
                began_ns: frame.ns(began),
                ended_ns: frame.now_ns,
                has_failed,
                ..frame.facts
            };
            ledger.spans.record(&Span { facts, texts: SpanTexts::default() });
        });
    }
}

/// What all spans of an exchange have in common.
struct Frame {
    now: Instant,
    now_ns: u64,
    facts: SpanFacts,
}

impl Frame {
    fn new(exchange: &Exchange, ledger: &Ledger, now: Instant) -> Self {
        let facts = SpanFacts {
            trace_id: exchange.trace.trace_id,
            is_sampled: exchange.trace.sampled,
            scheme: match exchange.peer.scheme {
                Scheme::Http => "http",
                Scheme::Https => "https",
            },
            protocol: match exchange.head.version {
                Version::Http10 => "1.0",
                Version::Http11 => "1.1",
                Version::Http2 => "2",
            },
            client: exchange.client,
            shard: ledger.shard,
            ..SpanFacts::BLANK
        };
        let now_ns = u64::try_from(clock::to_unix(now).as_nanos()).unwrap_or(u64::MAX);
        Self { now, now_ns, facts }
    }

    /// An instant before now, in nanoseconds since 1970.
    fn ns(&self, at: Instant) -> u64 {
        let ago = self.now.as_nanos().saturating_sub(at.as_nanos());
        self.now_ns.saturating_sub(ago)
    }
}

fn instance(backend: &Backend) -> &[u8] {
    backend.name().as_bytes()
}

/// What a span says of how a try ended; of an answer its status says all.
fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Answered | Outcome::ServerError => "",
        outcome => Outcome::VALUES[outcome.index()],
    }
}

fn us(time: std::time::Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

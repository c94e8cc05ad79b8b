//! The tries of a request whose trace is recorded: what the spans of it say of each, and which of them its instance is told.
//! Nothing is kept of a request that is not recorded, and its trail is no larger for it.

use std::{rc::Rc, time::Duration};

use super::{Backend, Trail};
use crate::{
    proto::head::{Known, RequestHead, Span},
    shard::Instant,
    telemetry::{
        ids::{part_id, replace_span_id},
        metrics::Outcome,
    },
};

/// Failed tries that are told of; there are more only where somebody configured as many retries.
const FAILED_MAX: usize = 16;

/// What is known of the tries of one request; nothing where it is not recorded.
#[derive(Clone, Debug, Default)]
pub struct Tries(Option<Box<Recorded>>);

#[derive(Clone, Debug, Default)]
struct Recorded {
    /// The id of the request's span, which those of its tries follow from.
    request: [u8; 8],
    /// Tries that are told of elsewhere, before these.
    earlier: u32,
    under_way: Option<UnderWay>,
    failed: Vec<FailedTry>,
}

/// The try that is under way, or has brought the answer.
#[derive(Clone, Copy, Debug)]
pub struct UnderWay {
    /// The id of its span.
    pub id: [u8; 8],
    /// Which one it is, from 1.
    pub number: u32,
    /// When it began.
    pub began: Instant,
    /// The path that the instance is asked for, without its query: a span of the head's bytes.
    pub path: Span,
    /// Time that had been spent on handshakes before.
    connect_before: Duration,
}

/// A try that brought no answer.
#[derive(Clone, Debug)]
pub struct FailedTry {
    /// The try.
    pub at: UnderWay,
    /// When it failed.
    pub ended: Instant,
    /// Who was asked; `None` if nobody was found.
    pub backend: Option<Rc<Backend>>,
    /// Whether over a connection that had served before.
    pub is_reused: bool,
    /// How long its connect took.
    pub connect: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

impl Trail {
    /// One whose tries are recorded, as parts of this span.
    pub fn recorded(request: [u8; 8]) -> Self {
        Self { tries: Tries::of(Recorded { request, ..Recorded::default() }), ..Self::default() }
    }

    /// One for another try at the same request, beside the next one.
    pub(super) fn beside(&self) -> Self {
        let earlier = self.attempts + 1;
        let beside = |own: &Recorded| Recorded { request: own.request, earlier, ..Recorded::default() };
        let tries = self.tries.0.as_deref().map(beside).map_or_else(Tries::default, Tries::of);
        Self { tries, ..Self::default() }
    }

    /// The try beside this one has brought the answer: this one is told of as failed, and that one as under way.
    pub(super) fn replace_try(&mut self, other: &mut Self, outcome: Outcome, now: Instant) {
        self.fail_try(outcome, now);
        if let (Some(own), Some(other)) = (&mut self.tries.0, &mut other.tries.0) {
            let at = other.under_way.take();
            own.under_way = at.map(|at| UnderWay { connect_before: self.connect + at.connect_before, ..at });
        }
    }

    /// The try beside this one has not.
    pub(super) fn fail_other_try(&mut self, other: &mut Self, outcome: Outcome, now: Instant) {
        other.fail_try(outcome, now);
        if let (Some(own), Some(other)) = (&mut self.tries.0, &mut other.tries.0) {
            let room = FAILED_MAX.saturating_sub(own.failed.len());
            own.failed.extend(other.failed.drain(..).take(room));
        }
    }

    /// A try begins, with which the instance is told its span.
    #[inline]
    pub(super) fn begin_try(&mut self, head: &mut RequestHead, target: Span, now: Instant) {
        if self.tries.is_recorded() {
            self.begin_recorded(head, target, now);
        }
    }

    #[inline(never)]
    fn begin_recorded(&mut self, head: &mut RequestHead, target: Span, now: Instant) {
        let Some(tries) = &mut self.tries.0 else { return };
        let number = tries.earlier + self.attempts;
        let id = part_id(tries.request, number);
        let path_length = memchr::memchr(b'?', head.text(target));
        let end = path_length.and_then(|length| target.start.checked_add(u32::try_from(length).ok()?));
        let path = Span { end: end.unwrap_or(target.end), ..target };
        tries.under_way = Some(UnderWay { id, number, began: now, path, connect_before: self.connect });
        // A route's rules may have taken it out, or written another.
        let traceparent = head.fields.iter().find(|field| field.known == Known::Traceparent).map(|field| field.value);
        if let Some(Span { start, end }) = traceparent
            && let Some(value) = head.bytes.get_mut(start as usize..end as usize)
        {
            replace_span_id(value, id);
        }
    }

    /// The try under way has failed.
    #[inline]
    pub(super) fn fail_try(&mut self, outcome: Outcome, now: Instant) {
        let Some(tries) = &mut self.tries.0 else { return };
        let Some(at) = tries.under_way.take() else { return };
        if tries.failed.len() < FAILED_MAX {
            let connect = self.connect.saturating_sub(at.connect_before);
            tries.failed.push(FailedTry {
                at,
                ended: now,
                backend: self.backend.clone(),
                is_reused: self.reused,
                connect,
                outcome,
            });
        }
    }

    /// How long the connect of its last try took.
    pub fn connect_of(&self, at: &UnderWay) -> Duration {
        self.connect.saturating_sub(at.connect_before)
    }
}

impl Tries {
    fn of(recorded: Recorded) -> Self {
        Self(Some(Box::new(recorded)))
    }

    /// Whether its trace is recorded.
    #[inline]
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// The try that is under way, or has brought the answer.
    pub fn under_way(&self) -> Option<&UnderWay> {
        self.0.as_ref()?.under_way.as_ref()
    }

    /// Those that brought none.
    pub fn failed(&self) -> &[FailedTry] {
        self.0.as_ref().map_or(&[], |recorded| &recorded.failed)
    }
}

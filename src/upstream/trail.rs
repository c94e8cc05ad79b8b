//! What happened to a request on its way to a backend, for whoever counts and logs it.

use std::{rc::Rc, time::Duration};

use super::{Backend, Failure, Tries};
use crate::{
    config::RetryOn,
    shard::Instant,
    telemetry::metrics::{Outcome, Shed},
};

/// What happened to a request on its way to a backend.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    /// The backend that was tried last.
    pub backend: Option<Rc<Backend>>,
    /// How often it was sent, or tried to be.
    pub attempts: u32,
    /// Connections that were opened for it.
    pub opened: u32,
    /// Whether the last attempt went over a connection that had served before.
    pub reused: bool,
    /// Whether a byte of its answer has come.
    pub(super) has_answered: bool,
    /// Time spent on handshakes, of TCP and TLS.
    pub connect: Duration,
    /// How the attempts ended that had no answer, each counted by its outcome. One more had an answer, or was given up.
    pub failed: [u8; Outcome::COUNT],
    /// The status of the answer, as the backend sent it.
    pub status: Option<u16>,
    /// Backends that were ejected because of it.
    pub ejected: u32,
    /// Time spent on attempts, until each failed or the head of its answer was complete.
    pub waited: Duration,
    /// Whether white space before the colons of its fields was taken out (RFC 9112 §5.1).
    pub mended: bool,
    /// When the head of the answer was complete.
    pub answered_at: Option<Instant>,
    /// How long it was in line for its shard, in microseconds.
    pub queued_us: u32,
    /// What was out of the usual, if anything.
    pub unusual: Unusual,
    /// What its spans say of each, where its trace is recorded.
    pub tries: Tries,
}

/// What few requests meet on their way to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Unusual {
    /// Whether anything of it was met.
    pub is_any: bool,
    /// How often it was sent again, for each reason.
    pub retried: [u8; RetryOn::ALL.len()],
    /// It would have been sent again, had the budget allowed it.
    pub is_out_of_budget: bool,
    /// Another instance was asked as well, for want of an answer.
    pub is_hedged: bool,
    /// And that one's answer counts.
    pub hedge_won: bool,
    /// It was not answered by its deadline.
    pub missed_deadline: bool,
    /// It was refused at once.
    pub shed: Option<Shed>,
}

impl Trail {
    /// Its deadline has passed.
    pub fn missed_deadline(&mut self) {
        self.unusual.is_any = true;
        self.unusual.missed_deadline = true;
    }

    /// The last attempt has ended without an answer that counts.
    pub(super) fn attempt_failed(&mut self, outcome: Outcome, now: Instant) {
        self.failed[outcome.index()] += 1;
        self.fail_try(outcome, now);
        if let Some(backend) = &self.backend {
            backend.count(outcome);
        }
    }

    /// Whether the last attempt failed so because its connection was closed: a backend may close one that has served before,
    /// and cannot know that a request is on its way. That is no fault of its.
    pub(super) fn was_stale(&self, failure: &Failure) -> bool {
        self.reused && !self.has_answered && matches!(failure, Failure::Broken(_))
    }

    /// It is sent again.
    pub(super) fn retried(&mut self, reason: RetryOn) {
        self.unusual.is_any = true;
        let count = &mut self.unusual.retried[reason as usize];
        *count = count.saturating_add(1);
    }
}

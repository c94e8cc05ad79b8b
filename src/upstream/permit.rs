//! Places among an upstream's requests under way: how many there may be, and how many of them without their bodies.
//!
//! A client decides how long its upload takes. Uploads have an allowance of their own, so that those that take long leave
//! places for everybody else.

use std::{rc::Rc, time::Duration};

use super::{
    Failure, Trail, Upstream,
    admission::Waited,
    breaker::{Found, OpenUntil, Pass},
};
use crate::{
    shard::{Instant, clock, woken_at},
    telemetry::metrics::Shed,
};

/// A place among an upstream's requests under way. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct RequestPermit {
    upstream: Rc<Upstream>,
    is_uploading: bool,
    is_retrying: bool,
    /// It has no answer yet.
    is_waiting: bool,
    /// How many had none when it came, it included.
    waiting: u32,
    /// The circuit's, until it has been told what became of the request.
    pass: Option<Pass>,
    found: Found,
}

impl Upstream {
    /// Refuses a request that would be answered too late.
    pub(super) fn admit(&self, now: Instant, deadline: Instant, trail: &mut Trail) -> Result<(), Failure> {
        let queued = now.since(woken_at());
        trail.queued_us = u32::try_from(queued.as_micros()).unwrap_or(u32::MAX);
        let shed = self.state.with(|state| {
            let settings = &state.settings;
            if !state.queue.admits(now, queued, settings.queue_max) {
                return Some(Shed::Queue);
            }
            if deadline == Instant::NEVER || !settings.sheds_by_deadline {
                return None;
            }
            let is_admitted = state.forecast.admits(now, deadline.since(now), state.waiting);
            (!is_admitted).then_some(Shed::Deadline)
        });
        if let Some(shed) = shed {
            trail.unusual.is_any = true;
            trail.unusual.shed = Some(shed);
            return Err(Failure::Shed(shed));
        }
        if now >= deadline {
            trail.missed_deadline();
            return Err(Failure::DeadlineMissed);
        }
        Ok(())
    }

    /// Takes a place; `uploads`: the request's body is still coming in.
    pub(super) fn enter(self: &Rc<Self>, uploads: bool, now: Instant) -> Result<RequestPermit, Failure> {
        let (waiting, pass) = self.state.with(|state| {
            if state.in_flight >= state.settings.requests_max {
                return Err(Failure::CircuitOpen);
            }
            if uploads && state.uploading >= state.settings.uploads_max {
                return Err(Failure::UploadsFull);
            }
            let pass = state.breaker.admit(now, &state.settings.breaker);
            let pass = pass.map_err(|OpenUntil(until)| Failure::Failing(until.since(now)))?;
            state.in_flight += 1;
            state.uploading += u32::from(uploads);
            state.waiting += 1;
            state.budget.deposit();
            Ok((state.waiting, pass))
        })?;
        let upstream = Rc::clone(self);
        Ok(RequestPermit {
            upstream,
            is_uploading: uploads,
            is_retrying: false,
            is_waiting: true,
            waiting,
            pass: Some(pass),
            found: Found::Nothing,
        })
    }

    /// Takes a place for another attempt at a request that has one, if one may be made; its time goes on. While the circuit is
    /// not closed, what may be sent to try is one request and not two.
    pub(super) fn enter_again(self: &Rc<Self>, now: Instant) -> Option<RequestPermit> {
        let may = self.state.with(|state| {
            let may = state.breaker.is_closed()
                && state.in_flight < state.settings.requests_max
                && state.retrying < state.settings.retries_at_once_max
                && state.budget.withdraw(now);
            state.in_flight += u32::from(may);
            state.retrying += u32::from(may);
            may
        });
        may.then(|| RequestPermit {
            upstream: Rc::clone(self),
            is_uploading: false,
            is_retrying: true,
            is_waiting: false,
            waiting: 0,
            pass: None,
            found: Found::Nothing,
        })
    }
}

impl RequestPermit {
    /// No more of the request's body comes.
    #[inline]
    pub(super) fn uploaded(&mut self) {
        if std::mem::take(&mut self.is_uploading) {
            self.upstream.state.with(|state| state.uploading -= 1);
        }
    }

    /// The head of its answer is here: it waits no longer. How long the rest takes says nothing of retries either: streams
    /// that began with one would keep all others from it. Of several answers the last one says how the upstream is, and at
    /// once if that is well.
    #[inline]
    pub(super) fn answered(&mut self, status: u16, now: Instant) {
        let Self { upstream, is_waiting, is_retrying, pass, found, .. } = self;
        let has_changed = upstream.state.with(|state| {
            state.waiting -= u32::from(std::mem::take(is_waiting));
            state.retrying -= u32::from(std::mem::take(is_retrying));
            *found = state.found(status);
            let told = if *found == Found::Well { pass.take() } else { None };
            told.is_some_and(|pass| state.record(pass, *found, now))
        });
        if has_changed {
            upstream.ring();
        }
    }

    /// Whose place it is.
    pub(super) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// No answer came.
    pub(super) fn failed(&mut self) {
        self.found = Found::Failed;
    }

    /// What it tells of its upstream, where it had a deadline: how long it waited of the time that it had.
    pub(super) fn tell(&self, now: Instant, allowed: Duration, taken: Duration, is_answered: bool) {
        let waited = Waited { allowed, taken, waiting: self.waiting, is_answered };
        self.upstream.state.with(|state| state.forecast.tell(now, waited));
    }

    /// Takes over the place of another attempt at the same request, which has the answer.
    pub(super) fn take_over(&mut self, other: Self, now: Instant) {
        let mut own = std::mem::replace(self, other);
        self.waiting = own.waiting;
        self.pass = own.pass.take();
        if self.found == Found::Well
            && let Some(pass) = self.pass.take()
        {
            self.upstream.record(pass, self.found, now);
        }
        drop(own);
    }

    /// Whether the request may be sent once more: not behind a circuit that has opened since. The trail is told if it may not for
    /// want of a budget.
    pub(super) fn may_retry(&mut self, now: Instant, trail: &mut Trail) -> bool {
        let Self { upstream, is_retrying, is_waiting, pass, .. } = self;
        if pass.is_some_and(|pass| !upstream.state.with(|state| state.breaker.lets_on(pass))) {
            return false;
        }
        let allowed = upstream.state.with(|state| {
            if !*is_retrying && state.retrying >= state.settings.retries_at_once_max || !state.budget.withdraw(now) {
                return false;
            }
            // An answer that is not passed on was none.
            state.waiting += u32::from(!std::mem::replace(is_waiting, true));
            state.retrying += u32::from(!std::mem::replace(is_retrying, true));
            true
        });
        trail.unusual.is_any |= !allowed;
        trail.unusual.is_out_of_budget |= !allowed;
        allowed
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let has_changed = self.upstream.state.with(|state| {
            state.in_flight -= 1;
            state.uploading -= u32::from(self.is_uploading);
            state.retrying -= u32::from(self.is_retrying);
            state.waiting -= u32::from(self.is_waiting);
            // Whoever leaves before anything was found frees the place of a trial.
            self.pass.take().is_some_and(|pass| state.record(pass, self.found, clock::turn()))
        });
        if has_changed {
            self.upstream.ring();
        }
    }
}

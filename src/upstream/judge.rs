//! What becomes of a backend and of the circuit when an attempt has ended: the pure parts are asked, and what they say is done.

use std::{rc::Rc, time::Duration};

use super::{
    Backend, BackendAddress, Failure, Notice, NoticeBell, Upstream, UpstreamState,
    balance::{Latency, Standing},
    breaker::{CircuitCounts, Found, Pass},
    outlier::{self, Cause, Fault, Others, Trial},
};
use crate::{
    shard::Instant,
    telemetry::metrics::{CircuitState, Outcome},
};

impl Upstream {
    /// Whoever tells what this upstream notices is woken by this bell.
    pub fn attach(&self, bell: &Rc<NoticeBell>) {
        self.state.with(|state| state.bell = Some(Rc::clone(bell)));
    }

    /// What is to be told.
    pub fn take_notices(&self) -> Vec<Notice> {
        self.state.with(|state| state.notices.take())
    }

    /// What was counted of the circuit since this was asked last.
    pub fn take_circuit_counts(&self) -> CircuitCounts {
        self.state.with(|state| state.breaker.take_counts())
    }

    /// Another shard has ejected a backend, or with none has opened the circuit.
    pub fn suspect(&self, backend: Option<(&BackendAddress, Cause)>, now: Instant) {
        self.state.with(|state| match backend {
            None => state.breaker.suspect(now, &state.settings.breaker),
            Some((at, cause)) => {
                if let Some(backend) = state.backends.iter().find(|backend| backend.at == *at) {
                    backend.state.with(|backend| backend.outlier.suspect(now, cause));
                }
            }
        });
    }

    /// Counts a failure of a backend, after this long; says whether it is left out from now on.
    pub(super) fn failed(&self, backend: &Rc<Backend>, failure: &Failure, waited: Duration, now: Instant) -> bool {
        let is_ejected = self.state.with(|state| {
            state.tried_at = Some(now);
            let policy = &state.settings.outlier;
            let cause = backend.state.with(|backend| {
                backend.last_error = failure.class();
                if matches!(backend.last_error, Some("timeout" | "tls_timeout")) && !backend.outlier.is_out(now) {
                    backend.latency.tell(now, waited);
                }
                backend.outlier.failed(now, policy, Fault::NoAnswer)
            });
            cause.is_some_and(|cause| state.eject(backend, cause, now))
        });
        self.ring();
        is_ejected
    }

    /// A request was given up before its deadline that this backend had until then.
    pub(super) fn gave_up(&self, backend: &Backend, waited: Duration, now: Instant) {
        backend.state.with(|backend| {
            // It took that long at least; how much longer nobody knows.
            if waited.as_micros() > u128::from(backend.latency.us(now)) {
                backend.latency.tell(now, waited);
            }
        });
        self.state.with(|state| state.tried_at = Some(now));
    }

    /// Counts an answer of a backend; says whether the backend is left out from now on, for a status that is a failure.
    pub(super) fn answered(&self, backend: &Rc<Backend>, waited: Duration, status: u16, now: Instant) -> bool {
        let is_error = status >= 500;
        let (is_ejected, is_noticed) = self.state.with(|state| {
            let policy = &state.settings.outlier;
            // Whoever fails at once is not quick: it would be chosen for it.
            let least = Duration::from_micros(if is_error { state.latency_us.into() } else { 0 });
            let (was_out, cause) = backend.state.with(|backend| {
                backend.latency.tell(now, waited.max(least));
                if !policy.statuses.contains(status) {
                    return (backend.outlier.succeeded(now, policy), None);
                }
                backend.last_error = Some("status");
                (false, backend.outlier.failed(now, policy, Fault::Status))
            });
            if was_out {
                state.renew(now);
                state.notices.push(Notice::Returned { at: backend.at.clone() });
            }
            let waited_us = u32::try_from(waited.as_micros()).unwrap_or(u32::MAX);
            state.tried_at = Some(now);
            // The first answer is all that is known; an average that began at nothing would call a slow upstream quick.
            state.latency_us = match state.latency_us {
                0 => waited_us,
                average if is_error => average,
                average => average - average / 8 + waited_us / 8,
            };
            (cause.is_some_and(|cause| state.eject(backend, cause, now)), state.notices.are_there())
        });
        if is_noticed {
            self.ring();
        }
        is_ejected
    }

    /// An answer broke off, by the backend's fault, whose head came at that time and was counted as one. A stream that has gone
    /// on for longer than what is looked back upon says nothing of what is asked now: a thousand of them end with their instance.
    pub(super) fn broke_off(
        &self,
        backend: &Rc<Backend>,
        trial: Option<Trial>,
        error: &'static str,
        answered_at: Instant,
        now: Instant,
    ) {
        self.state.with(|state| {
            let policy = &state.settings.outlier;
            if now.since(answered_at) <= policy.share.window {
                let cause = backend.state.with(|backend| {
                    backend.last_error = Some(error);
                    let whole =
                        [Outcome::Answered, Outcome::ServerError].map(|how| backend.counts.requests[how.index()]);
                    backend.outlier.broke_off(now, policy, trial.is_some(), whole.iter().sum())
                });
                let is_ejected = cause.is_some_and(|cause| state.eject(backend, cause, now));
                state.late_ejections += u32::from(is_ejected);
            }
            if state.breaker.broke_off(now, &state.settings.breaker, answered_at) {
                state.notice_circuit(now);
            }
        });
        self.ring();
    }

    /// Backends that were left out when an answer broke off, since this was asked last.
    pub fn take_late_ejections(&self) -> u32 {
        self.state.with(|state| std::mem::take(&mut state.late_ejections))
    }

    /// A request that was admitted has ended.
    pub(super) fn record(&self, pass: Pass, found: Found, now: Instant) {
        if self.state.with(|state| state.record(pass, found, now)) {
            self.ring();
        }
    }

    /// Has it told what was noticed, if anything was.
    pub(super) fn ring(&self) {
        let bell = self.state.with(|state| state.bell.clone().filter(|_| state.notices.are_there()));
        if let Some(bell) = bell {
            bell.ring();
        }
    }
}

impl UpstreamState {
    /// What an answer with this status says of the upstream.
    #[inline]
    pub(super) fn found(&self, status: u16) -> Found {
        if self.settings.breaker.statuses.contains(status) { Found::Failed } else { Found::Well }
    }

    /// A request that was admitted has ended; says whether something was noticed.
    #[inline]
    pub(super) fn record(&mut self, pass: Pass, found: Found, now: Instant) -> bool {
        let has_changed = self.breaker.record(now, &self.settings.breaker, pass, found);
        if has_changed {
            self.notice_circuit(now);
        }
        has_changed
    }

    /// Leaves a backend out, if the others allow it; says whether.
    fn eject(&mut self, backend: &Rc<Backend>, cause: Cause, now: Instant) -> bool {
        let policy = self.settings.outlier;
        // One that is no instance any more is not chosen anyway.
        if !self.backends.iter().any(|known| Rc::ptr_eq(known, backend)) {
            return false;
        }
        let mut others = Others { count: self.backends.len(), out: 0, usable: 0 };
        let mut tallies = Vec::new();
        for other in self.backends.iter().filter(|other| !Rc::ptr_eq(other, backend)) {
            let is_usable = matches!(other.standing(self.settings.is_probed, now), Standing::Usable { .. });
            other.state.with(|other| {
                others.usable += usize::from(is_usable);
                others.out += usize::from(other.outlier.is_ejected());
                if is_usable && cause == Cause::Share {
                    tallies.push(other.outlier.tally(now, &policy));
                }
            });
        }
        if !outlier::may_eject(&policy, others) {
            return false;
        }
        let ejected = backend.state.with(|backend| {
            let own = backend.outlier.tally(now, &policy);
            // Who fails on trial did stand out.
            if cause == Cause::Share
                && !backend.outlier.is_ejected()
                && !outlier::stands_out(&backend.outlier.share(now, &policy), own, tallies)
            {
                return None;
            }
            let was_suspected = backend.outlier.is_suspected(now);
            let lasts = backend.outlier.eject(now, &policy, cause);
            backend.counts.ejections += 1;
            // When it is back, it is to be used.
            backend.latency = Latency::default();
            Some((lasts, was_suspected, backend.last_error))
        });
        let Some((lasts, was_suspected, error)) = ejected else { return false };
        self.renew(now);
        self.notices.push(Notice::Ejected { at: backend.at.clone(), cause, error, lasts, was_suspected });
        true
    }

    /// Notices when the circuit opens, and when it is closed again; what is tried in between is no news.
    pub(super) fn notice_circuit(&mut self, now: Instant) {
        match (self.breaker.state(now), self.has_opened) {
            (CircuitState::Closed, true) => {
                self.has_opened = false;
                self.notices.push(Notice::Closed { open: self.breaker.take_open_time() });
            }
            (CircuitState::Open, false) => {
                self.has_opened = true;
                self.notices.push(Notice::Opened);
            }
            _ => {}
        }
    }
}

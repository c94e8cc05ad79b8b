//! Places among an upstream's requests under way: how many there may be, and how many of them without their bodies.
//!
//! A client decides how long its upload takes. Uploads have an allowance of their own, so that those that take long leave
//! places for everybody else.

use std::rc::Rc;

use super::{Failure, Upstream};
use crate::shard::Instant;

/// A place among an upstream's requests under way. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct RequestPermit {
    upstream: Rc<Upstream>,
    is_uploading: bool,
    is_retrying: bool,
}

impl Upstream {
    /// Takes a place; `uploads`: the request's body is still coming in.
    pub(super) fn enter(self: &Rc<Self>, uploads: bool) -> Result<RequestPermit, Failure> {
        self.state.with(|state| {
            if state.in_flight >= state.settings.requests_max {
                return Err(Failure::CircuitOpen);
            }
            if uploads && state.uploading >= state.settings.uploads_max {
                return Err(Failure::UploadsFull);
            }
            state.in_flight += 1;
            state.uploading += u32::from(uploads);
            state.budget.deposit();
            Ok(())
        })?;
        Ok(RequestPermit { upstream: Rc::clone(self), is_uploading: uploads, is_retrying: false })
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

    /// Whether the request may be sent once more.
    pub(super) fn may_retry(&mut self, now: Instant) -> bool {
        let was_retrying = self.is_retrying;
        let allowed = self.upstream.state.with(|state| {
            if !was_retrying && state.retrying >= state.settings.retries_at_once_max || !state.budget.withdraw(now) {
                return false;
            }
            state.retrying += u32::from(!was_retrying);
            true
        });
        self.is_retrying |= allowed;
        allowed
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.upstream.state.with(|state| {
            state.in_flight -= 1;
            state.uploading -= u32::from(self.is_uploading);
            state.retrying -= u32::from(self.is_retrying);
        });
    }
}

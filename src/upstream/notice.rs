//! What an upstream notices beyond the request during which it happens. Telling other shards and the log is left to the floors
//! above.

use std::{future::poll_fn, task::Poll, task::Waker, time::Duration};

use super::{BackendAddress, Cause};
use crate::shard::Local;

/// So many wait to be told; further ones are left out, which costs the log a line and other shards some failures.
const NOTICES_MAX: usize = 64;

/// Something that is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A backend is left out.
    Ejected {
        /// Which one.
        at: BackendAddress,
        /// Why.
        cause: Cause,
        /// What it did last: `refused`, `timeout`, `closed`, `malformed` or `status`.
        error: Option<&'static str>,
        /// How long.
        lasts: Duration,
        /// Whether less was enough than otherwise, since it was suspected.
        was_suspected: bool,
    },
    /// A backend that was left out has answered well.
    Returned {
        /// Which one.
        at: BackendAddress,
    },
    /// The circuit has opened.
    Opened,
    /// The circuit is closed again.
    Closed {
        /// How long nothing was sent: less than it was not closed where nobody asked.
        open: Duration,
    },
}

/// Notices that wait to be told. One per upstream and shard.
#[derive(Debug, Default)]
pub(super) struct Notices(Vec<Notice>);

impl Notices {
    pub(super) fn push(&mut self, notice: Notice) {
        if self.0.len() < NOTICES_MAX {
            self.0.push(notice);
        }
    }

    pub(super) fn take(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.0)
    }

    pub(super) fn are_there(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Wakes the one task that tells what upstreams have noticed. One per shard.
#[derive(Debug, Default)]
pub struct NoticeBell {
    state: Local<BellState>,
}

#[derive(Debug, Default)]
struct BellState {
    is_rung: bool,
    waiting: Option<Waker>,
}

impl NoticeBell {
    /// There is something to be told.
    pub(super) fn ring(&self) {
        let waiting = self.state.with(|state| {
            state.is_rung = true;
            state.waiting.take()
        });
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Waits until there is something. Dropping it loses nothing.
    pub async fn rung(&self) {
        poll_fn(|cx| {
            self.state.with(|state| {
                if std::mem::take(&mut state.is_rung) {
                    return Poll::Ready(());
                }
                state.waiting = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
    }
}

//! An end that is under way: which step of it is due when. Taking the steps is for `control`.

use std::time::Duration;

use tokio::time::Instant;

use crate::config;

/// So long before the end of a drain requests without an answer are refused, so that clients read why.
pub(super) const FAREWELL: Duration = Duration::from_millis(250);

/// One per process, from the signal on.
#[derive(Clone, Copy)]
pub(super) struct Drain {
    pub(super) closes_at: Instant,
    pub(super) refuses_at: Instant,
    pub(super) cut_at: Instant,
    pub(super) has_closed: bool,
    pub(super) has_refused: bool,
}

impl Drain {
    pub(super) fn begin(now: Instant, config: &config::Drain) -> Self {
        let (closes_at, cut_at) = (now + config.notice, now + config.max);
        let refuses_at = (now + config.max.saturating_sub(FAREWELL)).max(closes_at);
        Self { closes_at, refuses_at, cut_at, has_closed: false, has_refused: false }
    }

    /// When its next step is due.
    pub(super) fn due(&self) -> Instant {
        match self {
            Self { has_closed: false, .. } => self.closes_at,
            Self { has_refused: false, .. } => self.refuses_at,
            _ => self.cut_at,
        }
    }
}

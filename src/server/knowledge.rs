//! How old what this instance knows of revocations is: says loudly when that is too old, and when it is known again. What
//! follows for a request each shard decides, by the same time (`gateway::access`).
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::{cell::Cell, time::Duration};

use crate::{
    config::Revocation,
    sessions::{Freshness, LogUpdate},
    shard::{Instant, Local},
};

/// One per process, on the bridge.
#[derive(Debug)]
pub(super) struct Knowledge {
    rules: Local<Revocation>,
    freshness: Cell<Freshness>,
    /// Whether the log was told that it is too old; `None` as long as it was told nothing.
    told: Cell<Option<bool>>,
    /// What the shards were told last.
    shards_know: Cell<Option<Instant>>,
}

/// How much older what the shards know may be than what the bridge knows, at most: telling them wakes them.
const BEHIND_MAX: Duration = Duration::from_secs(2);

impl Knowledge {
    /// Nothing is known yet.
    pub(super) fn new(rules: &Revocation) -> Self {
        let (freshness, told) = (Cell::new(Freshness::NEVER), Cell::new(None));
        Self { rules: Local::new(rules.clone()), freshness, told, shards_know: Cell::new(None) }
    }

    /// A reload.
    pub(super) fn adopt(&self, rules: &Revocation) {
        self.rules.with(|current| *current = rules.clone());
    }

    /// The log was read, or could not be. Says until when it is known, where the shards are to be told: after news, and
    /// well before what they know is too old.
    pub(super) fn heard(&self, heard: &LogUpdate) -> Option<Instant> {
        self.freshness.set(heard.freshness);
        let until = heard.freshness.looked_at()?;
        let behind_max =
            self.rules.with(|rules| BEHIND_MAX.min(rules.max_staleness.checked_div(4).unwrap_or_default()));
        let is_news = heard.is_replay || !heard.entries.is_empty();
        let is_due = self.shards_know.get().is_none_or(|known| is_news || until.since(known) >= behind_max);
        is_due.then(|| {
            self.shards_know.set(Some(until));
            until
        })
    }

    /// Tells the log what has changed. To be called now and then.
    pub(super) fn look(&self, now: Instant) {
        let freshness = self.freshness.get();
        let (is_stale, effect) = self.rules.with(|rules| {
            let effect = match (rules.closes(true), rules.closes(false)) {
                (true, true) => "every route that asks for a token answers 503",
                (true, false) => "routes that ask for roles or permissions answer 503, the others go on",
                (false, _) => "all routes go on, for tokens that were revoked meanwhile too",
            };
            (freshness.is_stale(now, rules.max_staleness), effect)
        });
        match (is_stale, self.told.replace(Some(is_stale)), freshness.looked_at()) {
            (true, Some(true), _) | (false, Some(false) | None, _) => {}
            (true, _, None) => tracing::warn!(
                "the log of revocations has not been read since the start, so nothing is known of what was revoked: \
                 {effect} (revocation.fail)"
            ),
            (true, _, Some(looked_at)) => tracing::warn!(
                age_s = now.since(looked_at).as_secs(),
                "the log of revocations has not been read for longer than revocation.max_staleness: \
                 {effect} (revocation.fail)"
            ),
            (false, Some(true), _) => tracing::info!("the log of revocations is read; what was revoked is known"),
        }
    }
}

//! Following the log of revocations: what is new, and how fresh that knowledge is.

use std::time::Duration;

use super::embedded;
use super::stream::Stream;
use crate::auth::Revocation;
use crate::embedded::Fingerprint;
use crate::shard::clock::{self, Instant};
use crate::shard::ticks::Ticks;

/// How often the embedded log is looked at (decision 8): other processes write to it too (`shardgate user disable`), and
/// SQLite wakes nobody. Most looks are at what the file system says of the file.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How often at least the log itself is read, whatever the file system says.
const READ_INTERVAL: Duration = Duration::from_secs(5);

/// How often at least [`Follower::next`] answers while all is well, so that freshness travels: well below the least
/// `revocation.max_staleness`, which is a second.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Until when the knowledge of the log is complete. Moves between threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    looked_at: Option<Instant>,
}

impl Freshness {
    /// The log has not been read yet.
    pub const NEVER: Self = Self { looked_at: None };

    /// The log was read to its end at this time.
    pub const fn at(looked_at: Instant) -> Self {
        Self { looked_at: Some(looked_at) }
    }

    /// Whether this is older than may be (`revocation.max_staleness`).
    pub fn is_stale(self, now: Instant, staleness_max: Duration) -> bool {
        self.looked_at.is_none_or(|looked_at| now.since(looked_at) > staleness_max)
    }

    /// When the log was last read to its end.
    pub const fn looked_at(self) -> Option<Instant> {
        self.looked_at
    }
}

/// What a look at the log found. Moves between threads.
#[derive(Clone, Debug, Default)]
pub struct LogUpdate {
    /// What was not told before, in the log's order. An entry may be told twice.
    pub entries: Vec<Revocation>,
    /// How fresh everything told so far is. It does not advance while the log cannot be read.
    pub freshness: Freshness,
    /// Whether the entries are read in hindsight (at start, after the log was away), so that they say nothing of how
    /// fast the log is.
    pub is_replay: bool,
    /// The log lost entries: it was emptied, or a replica that lacked some took over. What was told stays true and was
    /// written back; what this instance never heard nobody can tell.
    pub is_lossy: bool,
    /// How far the log's clock is ahead of this machine's, in milliseconds: an entry is as old as `now - (at - ahead)`.
    pub clock_ahead_ms: i64,
}

/// Reads the log. One per process, on the bridge.
pub struct Follower {
    source: Source,
    freshness: Freshness,
}

enum Source {
    Redis(Box<Stream>),
    Embedded(Box<Tail>),
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("freshness", &self.freshness).finish_non_exhaustive()
    }
}

impl Follower {
    pub(super) fn embedded(store: embedded::EmbeddedSessions) -> Self {
        let (seen, read_at) = (None, clock::now());
        let tail = Tail { store, position: 0, state: LookResult::Unread, seen, read_at, ticks: None };
        Self { source: Source::Embedded(Box::new(tail)), freshness: Freshness::NEVER }
    }

    pub(super) fn redis(stream: Stream) -> Self {
        Self { source: Source::Redis(Box::new(stream)), freshness: Freshness::NEVER }
    }

    /// Waits for something new. Answers at least each second while all is well, so that freshness travels, and every few
    /// seconds while the log cannot be read.
    ///
    /// The first answer after the start, and after the log was away, comes once all of the log has been read (or could
    /// not be): [`Freshness::NEVER`] in the first one says that it could not.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> LogUpdate {
        let due = clock::now() + HEARTBEAT;
        let Self { source, freshness } = self;
        match source {
            Source::Redis(stream) => {
                let heard = stream.next().await;
                *freshness = heard.freshness;
                heard
            }
            Source::Embedded(tail) => tail.next(freshness, due).await,
        }
    }
}

/// The end of the embedded log.
struct Tail {
    store: embedded::EmbeddedSessions,
    /// The last entry that was read.
    position: i64,
    state: LookResult,
    /// What the file system said before the log was last read to its end, where later changes show.
    seen: Option<Fingerprint>,
    read_at: Instant,
    /// When to look; `None` before the first look.
    ticks: Option<Ticks>,
}

impl Tail {
    async fn next(&mut self, freshness: &mut Freshness, due: Instant) -> LogUpdate {
        let ticks = self.ticks.get_or_insert_with(|| Ticks::every(LOOK_INTERVAL));
        loop {
            let before = self.state;
            let (looked_at, unix_now, print) = (clock::now(), clock::unix_now(), self.store.fingerprint());
            let is_due = looked_at.since(self.read_at) >= READ_INTERVAL;
            if before != LookResult::Current || is_due || print.is_none() || print != self.seen {
                let Some((entries, end, looked_at)) = look(&self.store, self.position).await else {
                    self.state = LookResult::Away;
                    if before != LookResult::Away || clock::now() >= due {
                        return LogUpdate { freshness: *freshness, ..LogUpdate::default() };
                    }
                    ticks.tick().await;
                    continue;
                };
                let is_replay = before != LookResult::Current;
                let is_lossy = end < self.position;
                if is_lossy {
                    tracing::error!(
                        read = self.position,
                        end,
                        "the log of revocations is not the one that was read before: was its file replaced?"
                    );
                }
                (self.position, self.state, self.read_at) = (end, LookResult::Current, looked_at);
                self.seen = print.filter(|print| print.is_settled(unix_now));
                *freshness = Freshness::at(looked_at);
                if is_replay || is_lossy || !entries.is_empty() {
                    return LogUpdate { entries, freshness: *freshness, is_replay, is_lossy, clock_ahead_ms: 0 };
                }
            } else {
                // Nobody has changed the file, so all that is in it is known.
                *freshness = Freshness::at(looked_at);
            }
            if clock::now() >= due {
                return LogUpdate { freshness: *freshness, ..LogUpdate::default() };
            }
            tokio::select! {
                () = self.store.appended() => {}
                () = ticks.tick() => {}
            }
        }
    }
}

/// How the latest look went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LookResult {
    /// There was none.
    Unread,
    Current,
    Away,
}

/// Everything after the position, the new position, and since when that is complete; `None` if it cannot be read.
async fn look(store: &embedded::EmbeddedSessions, position: i64) -> Option<(Vec<Revocation>, i64, Instant)> {
    let mut entries = Vec::new();
    let mut position = position;
    loop {
        let looked_at = clock::now();
        let page = store.read_log(position).await.ok()?;
        if page.last < position {
            // Another file: all of it is new.
            position = 0;
            continue;
        }
        entries.extend(page.entries);
        match page.next {
            Some(next) => position = next,
            None => return Some((entries, page.last, looked_at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decision_says_how_often_the_embedded_log_is_looked_at() {
        let decision = include_str!("../../docs/decisions/0008-sessions-and-revocations.md");
        let said = format!("**The embedded log is looked at every {} ms.**", LOOK_INTERVAL.as_millis());
        assert!(decision.contains(&said), "decision 8 does not say: {said}");
    }
}

//! What this instance knows of the log in Redis: for renewals that come between the two steps of an ending, and to write
//! back what a Redis that lost data has forgotten. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::auth::Revocation;
use crate::auth::revocation::Kind;

/// More than this many live entries are not kept: the oldest go first.
const ENTRIES_MAX: usize = 200_000;

/// An entry's number in the stream: Unix milliseconds by the server's clock, and a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EntryId(pub(super) u64, pub(super) u64);

impl EntryId {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (millis, count) = text.split_once('-')?;
        Some(Self(millis.parse().ok()?, count.parse().ok()?))
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) revocation: Revocation,
    /// Whose record has what is ended, if that is told.
    pub(super) user: Option<Box<str>>,
}

/// The entries that still matter. One per process.
#[derive(Debug)]
pub(super) struct Known {
    kept_ms: u64,
    entries: BTreeMap<EntryId, Entry>,
    /// When each session was revoked.
    sessions: HashMap<Box<str>, u64>,
    /// Until when each user's sessions began that are revoked.
    users: HashMap<Box<str>, u64>,
}

impl Known {
    pub(super) fn new(kept: Duration) -> Self {
        let kept_ms = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
        Self { kept_ms, entries: BTreeMap::new(), sessions: HashMap::new(), users: HashMap::new() }
    }

    /// Takes an entry in that was read; says whether it is new.
    pub(super) fn read(&mut self, id: EntryId, entry: Entry) -> bool {
        let Revocation { kind, id: whom, at_ms, .. } = &entry.revocation;
        self.remember(*kind, whom, *at_ms);
        let is_new = self.entries.insert(id, entry).is_none();
        if self.entries.len() > ENTRIES_MAX {
            self.entries.pop_first();
        }
        is_new
    }

    /// Remembers what this instance revoked itself.
    pub(super) fn remember(&mut self, kind: Kind, whom: &str, at_ms: u64) {
        let ended = match kind {
            Kind::Session => &mut self.sessions,
            Kind::User => &mut self.users,
            Kind::Kick => return,
        };
        let until_ms = ended.entry(whom.into()).or_default();
        *until_ms = at_ms.max(*until_ms);
    }

    /// Whether the session was revoked.
    pub(super) fn ends(&self, user: &str, sid: &str, began_ms: u64) -> bool {
        self.sessions.contains_key(sid) || self.user_ended_ms(user).is_some_and(|at_ms| began_ms <= at_ms)
    }

    /// Sessions of the user that began until then are revoked.
    pub(super) fn user_ended_ms(&self, user: &str) -> Option<u64> {
        self.users.get(user).copied()
    }

    /// Lets go what no longer matters, by the server's clock.
    pub(super) fn expire(&mut self, now_ms: u64) {
        let oldest_ms = now_ms.saturating_sub(self.kept_ms);
        self.entries = self.entries.split_off(&EntryId(oldest_ms, 0));
        self.sessions.retain(|_, at_ms| *at_ms >= oldest_ms);
        self.users.retain(|_, at_ms| *at_ms >= oldest_ms);
    }

    /// Takes the entries out that a whole reading of the log did not find.
    pub(super) fn take_missing(&mut self, read: impl Fn(EntryId) -> bool) -> Vec<Entry> {
        let missing: Vec<EntryId> = self.entries.keys().copied().filter(|id| !read(*id)).collect();
        missing.iter().filter_map(|id| self.entries.remove(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, id: &str, at_ms: u64) -> Entry {
        Entry { revocation: Revocation { kind, id: id.into(), at_ms, by: "test".into() }, user: None }
    }

    #[test]
    fn what_was_read_ends_sessions_until_it_is_too_old() {
        let mut known = Known::new(Duration::from_secs(1));
        assert!(known.read(EntryId(100, 0), entry(Kind::Session, "s_1", 100)));
        assert!(!known.read(EntryId(100, 0), entry(Kind::Session, "s_1", 100)), "it is known");
        known.read(EntryId(200, 0), entry(Kind::User, "42", 200));
        known.read(EntryId(300, 0), entry(Kind::Kick, "43", 300));
        let ends = |known: &Known, user: &str, sid, began| known.ends(user, sid, began);
        assert!(ends(&known, "7", "s_1", 900));
        assert!(ends(&known, "42", "s_2", 200) && !ends(&known, "42", "s_2", 201));
        assert!(!ends(&known, "43", "s_3", 0));
        known.expire(1_150);
        assert!(!ends(&known, "7", "s_1", 900) && ends(&known, "42", "s_2", 200));
        assert_eq!(known.entries.len(), 2);
    }

    #[test]
    fn what_a_reading_did_not_find_is_missing_once() {
        let mut known = Known::new(Duration::from_secs(1));
        known.read(EntryId(1, 0), entry(Kind::Session, "s_1", 1));
        known.read(EntryId(1, 1), entry(Kind::Session, "s_2", 1));
        assert_eq!(known.take_missing(|id| id == EntryId(1, 0)), [entry(Kind::Session, "s_2", 1)]);
        assert_eq!(known.take_missing(|id| id == EntryId(1, 0)), []);
        assert!(known.ends("", "s_2", 0), "it stays revoked here");
        assert_eq!(EntryId::parse("17-3"), Some(EntryId(17, 3)));
        assert_eq!((EntryId(17, 3).to_string().as_str(), EntryId::parse("17")), ("17-3", None));
    }
}

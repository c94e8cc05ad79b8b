//! What this instance knows of the log in Redis: for whoever looks at a record between the two steps of an ending, and to
//! write back what a Redis that lost data has forgotten. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::{is_session_id, is_user_id};
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
pub(super) struct LogEntry {
    pub(super) revocation: Revocation,
    /// Whose record has what is ended, if that is told.
    pub(super) user: Option<Box<str>>,
}

impl LogEntry {
    /// Whose record the second step changes; `None` where there is no second step.
    pub(super) fn record_of(&self) -> Option<&str> {
        let user = self.user.as_deref().filter(|user| is_user_id(user))?;
        let Revocation { kind, id, .. } = &self.revocation;
        let has_one = match kind {
            Kind::Session => is_session_id(id),
            Kind::User => **id == *user,
            Kind::Kick => false,
        };
        has_one.then_some(user)
    }

    /// What marks it as unfinished; the script that appends writes the same. All of it is in it, and only who did it may
    /// have spaces.
    pub(super) fn mark(&self) -> Option<String> {
        let user = self.record_of()?;
        let Revocation { kind, id, at_ms, by } = &self.revocation;
        Some(format!("{} {id} {at_ms} {user} {by}", kind.word()))
    }

    /// The entry that is marked so.
    pub(super) fn of_mark(mark: &str) -> Option<Self> {
        let [kind, id, at_ms, user, by] = mark.splitn(5, ' ').collect::<Vec<_>>().try_into().ok()?;
        let (kind, at_ms) = (Kind::from_word(kind)?, at_ms.parse().ok()?);
        let revocation = Revocation { kind, id: id.into(), at_ms, by: by.into() };
        Some(Self { revocation, user: Some(user.into()) }).filter(|entry| entry.record_of().is_some())
    }
}

/// The entries that still matter. One per process.
#[derive(Debug)]
pub(super) struct KnownRevocations {
    kept_ms: u64,
    /// One for each session and user, the latest: what several instances wrote back says nothing new.
    entries: BTreeMap<EntryId, LogEntry>,
    numbers: HashMap<(Kind, Box<str>), EntryId>,
    /// When each session was revoked.
    sessions: HashMap<Box<str>, u64>,
    /// Until when each user's sessions began that are revoked.
    users: HashMap<Box<str>, u64>,
    /// When each user was kicked. A kick ends what is open when it is heard of, so it counts once, however often a log that
    /// lost it has it anew.
    kicks: HashMap<Box<str>, u64>,
    /// What is unfinished, so that it matters however old it is.
    unfinished: HashSet<(Kind, Box<str>)>,
}

impl KnownRevocations {
    pub(super) fn new(kept: Duration) -> Self {
        Self {
            kept_ms: millis(kept),
            entries: BTreeMap::new(),
            numbers: HashMap::new(),
            sessions: HashMap::new(),
            users: HashMap::new(),
            kicks: HashMap::new(),
            unfinished: HashSet::new(),
        }
    }

    /// Entries matter this long from now on.
    pub(super) fn keep(&mut self, kept: Duration) {
        self.kept_ms = millis(kept);
    }

    /// The entry of this one that was read, so that it would be written back.
    pub(super) fn entry(&self, kind: Kind, whom: &str) -> Option<&LogEntry> {
        self.entries.get(self.numbers.get(&(kind, whom.into()))?)
    }

    /// This is all that is unfinished now.
    pub(super) fn keep_unfinished<'a>(&mut self, entries: impl Iterator<Item = &'a LogEntry>) {
        self.unfinished.clear();
        for LogEntry { revocation, .. } in entries {
            self.remember(revocation.kind, &revocation.id, revocation.at_ms);
            self.unfinished.insert((revocation.kind, revocation.id.clone()));
        }
    }

    /// Takes an entry in that was read; says whether there is something to be done that was not done before.
    pub(super) fn read(&mut self, id: EntryId, entry: LogEntry) -> bool {
        let Revocation { kind, id: whom, at_ms, .. } = &entry.revocation;
        self.remember(*kind, whom, *at_ms);
        let is_over = *kind == Kind::Kick && {
            let kicked_ms = self.kicks.entry(whom.clone()).or_default();
            *at_ms <= std::mem::replace(kicked_ms, *at_ms.max(kicked_ms))
        };
        let number = self.numbers.entry((*kind, whom.clone())).or_insert(id);
        if self.entries.get(number).is_some_and(|known| known.revocation.at_ms >= *at_ms) {
            return false;
        }
        self.entries.remove(&std::mem::replace(number, id));
        self.entries.insert(id, entry);
        if self.entries.len() > ENTRIES_MAX
            && let Some((_, oldest)) = self.entries.pop_first()
        {
            self.numbers.remove(&(oldest.revocation.kind, oldest.revocation.id));
        }
        !is_over
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

    /// What says that the session has ended, or for all sessions of the user that this one has, which began then.
    pub(super) fn endings(&self, user: &str, sid: Option<&str>, began_ms: u64) -> Vec<LogEntry> {
        let of_session = sid.and_then(|sid| Some((Kind::Session, sid, *self.sessions.get(sid)?)));
        let of_user = self.user_ended_ms(user).filter(|at_ms| began_ms <= *at_ms);
        let known = of_session.into_iter().chain(of_user.map(|at_ms| (Kind::User, user, at_ms)));
        known
            .map(|(kind, id, at_ms)| {
                let read = self.entry(kind, id).map(|entry| entry.revocation.clone());
                let written = || Revocation { kind, id: id.into(), at_ms, by: Box::default() };
                // The user is the one who asks: the log may not say whose session it was.
                LogEntry { revocation: read.unwrap_or_else(written), user: Some(user.into()) }
            })
            .collect()
    }

    /// Sessions of the user that began until then are revoked.
    pub(super) fn user_ended_ms(&self, user: &str) -> Option<u64> {
        self.users.get(user).copied()
    }

    /// What was revoked before this no token can be affected by.
    pub(super) fn oldest_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.kept_ms)
    }

    /// Lets go what no longer matters, by the server's clock: what is unfinished does.
    pub(super) fn expire(&mut self, now_ms: u64) {
        let oldest_ms = self.oldest_ms(now_ms);
        let Self { entries, numbers, sessions, users, kicks, unfinished, .. } = self;
        let matters = |kind: Kind, id: &str, at_ms: u64| {
            // By when it was revoked: an entry that was written back is younger than what it says.
            at_ms >= oldest_ms || (!unfinished.is_empty() && unfinished.contains(&(kind, id.into())))
        };
        entries.retain(|_, LogEntry { revocation, .. }| matters(revocation.kind, &revocation.id, revocation.at_ms));
        numbers.retain(|_, number| entries.contains_key(number));
        sessions.retain(|sid, at_ms| matters(Kind::Session, sid, *at_ms));
        users.retain(|user, at_ms| matters(Kind::User, user, *at_ms));
        kicks.retain(|user, at_ms| matters(Kind::Kick, user, *at_ms));
    }

    /// Takes the entries out that a whole reading of the log did not find, under whatever number.
    pub(super) fn take_missing(&mut self, is_found: impl Fn(&Revocation) -> bool) -> Vec<LogEntry> {
        let missing: Vec<EntryId> =
            self.entries.iter().filter(|(_, entry)| !is_found(&entry.revocation)).map(|(number, _)| *number).collect();
        let missing: Vec<LogEntry> = missing.iter().filter_map(|number| self.entries.remove(number)).collect();
        for LogEntry { revocation, .. } in &missing {
            self.numbers.remove(&(revocation.kind, revocation.id.clone()));
        }
        missing
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, id: &str, at_ms: u64) -> LogEntry {
        LogEntry { revocation: Revocation { kind, id: id.into(), at_ms, by: "test".into() }, user: None }
    }

    #[test]
    fn what_was_read_ends_sessions_until_it_is_too_old() {
        let mut known = KnownRevocations::new(Duration::from_secs(1));
        assert!(known.read(EntryId(100, 0), entry(Kind::Session, "s_1", 100)));
        assert!(!known.read(EntryId(100, 0), entry(Kind::Session, "s_1", 100)), "it is known");
        known.read(EntryId(200, 0), entry(Kind::User, "42", 200));
        known.read(EntryId(300, 0), entry(Kind::Kick, "43", 300));
        let ends = |known: &KnownRevocations, user: &str, sid, began| known.ends(user, sid, began);
        assert!(ends(&known, "7", "s_1", 900));
        assert!(ends(&known, "42", "s_2", 200) && !ends(&known, "42", "s_2", 201));
        assert!(!ends(&known, "43", "s_3", 0));
        known.expire(1_150);
        assert!(!ends(&known, "7", "s_1", 900) && ends(&known, "42", "s_2", 200));
        assert_eq!(known.entries.len(), 2);
        assert!(known.entry(Kind::User, "42").is_some() && known.entry(Kind::Session, "s_1").is_none());
        known.keep(Duration::from_secs(5));
        known.expire(5_150);
        assert!(ends(&known, "42", "s_2", 200), "a reload keeps it longer");
    }

    #[test]
    fn what_a_reading_did_not_find_is_missing_once() {
        let mut known = KnownRevocations::new(Duration::from_secs(1));
        known.read(EntryId(1, 0), entry(Kind::Session, "s_1", 1));
        known.read(EntryId(1, 1), entry(Kind::Session, "s_2", 1));
        let is_found = |revocation: &Revocation| &*revocation.id == "s_1";
        assert_eq!(known.take_missing(is_found), [entry(Kind::Session, "s_2", 1)]);
        assert_eq!(known.take_missing(is_found), []);
        assert!(known.ends("", "s_2", 0), "it stays revoked here");
        assert_eq!(EntryId::parse("17-3"), Some(EntryId(17, 3)));
        assert_eq!((EntryId(17, 3).to_string().as_str(), EntryId::parse("17")), ("17-3", None));
    }

    #[test]
    fn what_others_wrote_back_is_nothing_new_and_no_younger() {
        let mut known = KnownRevocations::new(Duration::from_secs(1));
        assert!(known.read(EntryId(100, 0), entry(Kind::Session, "s_1", 100)));
        assert!(!known.read(EntryId(900, 0), entry(Kind::Session, "s_1", 100)), "the same under another number");
        assert!(known.read(EntryId(910, 0), entry(Kind::User, "42", 200)));
        assert!(known.read(EntryId(920, 0), entry(Kind::User, "42", 300)), "later sessions too");
        assert_eq!((known.entries.len(), known.numbers.len()), (2, 2));
        known.expire(1_150);
        assert_eq!(known.take_missing(|_| false), [entry(Kind::User, "42", 300)]);
        assert!(known.numbers.is_empty());
    }

    #[test]
    fn a_kick_that_is_written_back_closes_nothing_that_came_after_it() {
        let mut known = KnownRevocations::new(Duration::from_secs(1));
        assert!(known.read(EntryId(100, 0), entry(Kind::Kick, "42", 100)));
        assert_eq!(known.take_missing(|_| false), [entry(Kind::Kick, "42", 100)], "others may not have heard of it");
        assert!(!known.read(EntryId(900, 0), entry(Kind::Kick, "42", 100)), "it is over here");
        assert!(known.entry(Kind::Kick, "42").is_some(), "and would be missed again");
        assert!(known.read(EntryId(910, 0), entry(Kind::Kick, "42", 910)), "that is another one");
        known.expire(2_000);
        assert!(known.kicks.is_empty());
    }
}

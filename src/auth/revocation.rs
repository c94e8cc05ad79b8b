//! What has been revoked: the entries of the revocation log, and the set of them that each shard checks tokens against.
//! Writing, following and expiring the log itself is for `sessions`.
//!
//! The set is bounded and forgets nothing that could still matter. It keeps entries in batches by age: a batch goes when
//! every token that it speaks of has expired. When the set is full the oldest batch goes early, and from then on all
//! tokens *issued* up to the last of its entries count as expired: their bearers refresh once, and those whose session
//! was ended cannot.

use super::{Claims, TokenError};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// One entry of the revocation log. Moves between threads and instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// What is ended.
    pub kind: Kind,
    /// The session's id (`Kind::Session`) or the user's.
    pub id: Box<str>,
    /// When, in Unix milliseconds, by the clock of whoever wrote the entry. Whoever ends all sessions of a user makes it
    /// not less than the beginning of the latest of them, whatever the clocks say.
    pub at_ms: u64,
    /// Who did it, for the log: a user's id, `cli`, a service.
    pub by: Box<str>,
}

/// What a revocation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One session: its tokens, its live connections.
    Session,
    /// All sessions of a user that began at or before `at_ms`.
    User,
    /// The live connections of a user; tokens stay good.
    Kick,
}

impl Kind {
    /// As the log writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::User => "user",
            Self::Kick => "kick",
        }
    }

    /// The kind of that word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Session, Self::User, Self::Kick].into_iter().find(|kind| kind.word() == word)
    }
}

impl Revocation {
    /// Whether it ends what this token opened: for live connections, which registered with these claims. Unlike
    /// [`Revocations::is_revoked`] it knows kicks.
    pub fn ends(&self, claims: &Claims) -> bool {
        match self.kind {
            Kind::Session => claims.sid.as_ref() == Some(&self.id),
            Kind::User => claims.sub == self.id && claims.began_ms() <= self.at_ms,
            Kind::Kick => claims.sub == self.id,
        }
    }
}

impl Claims {
    /// When the session began, as far as the token says: `auth_time`, else `iat`, else as early as can be.
    fn began_ms(&self) -> u64 {
        self.session_began_ms.unwrap_or_else(|| self.iat.unwrap_or(0).saturating_mul(1000))
    }

    fn issued_ms(&self) -> u64 {
        self.iat.unwrap_or(0).saturating_mul(1000)
    }
}

/// How many batches an entry's life is cut into: so much of it is waited at most beyond what is needed.
const BATCHES: u64 = 8;

/// One for each batch.
const ENTRIES_MIN: usize = 8;

/// The entries that still matter. One per shard.
#[derive(Debug)]
pub struct Revocations {
    /// How long an entry matters: the longest life of a token.
    kept: Duration,
    entries_max: usize,
    batches: VecDeque<Batch>,
    entries: usize,
    /// Tokens issued up to here count as expired; 0 for none.
    floor_ms: u64,
    generation: u64,
}

#[derive(Debug, Default)]
struct Batch {
    oldest_ms: u64,
    newest_ms: u64,
    /// By session: nothing but that it ended.
    sessions: HashSet<Box<str>>,
    /// By user: sessions that began up to here are ended.
    users: HashMap<Box<str>, u64>,
}

impl Batch {
    fn len(&self) -> usize {
        self.sessions.len() + self.users.len()
    }
}

impl Revocations {
    /// An empty set. `kept` is the longest life of a token, leeway included; `entries_max` bounds the set.
    pub fn new(kept: Duration, entries_max: usize) -> Self {
        let entries_max = entries_max.max(ENTRIES_MIN);
        Self { kept, entries_max, batches: VecDeque::new(), entries: 0, floor_ms: 0, generation: 1 }
    }

    /// Tokens may live this long and the set may hold so much from now on, as a reload says. Entries that went before stay gone.
    pub fn resize(&mut self, kept: Duration, entries_max: usize) {
        self.kept = kept;
        self.entries_max = entries_max.max(ENTRIES_MIN);
    }

    /// Takes an entry in. It may come twice, and in any order.
    pub fn apply(&mut self, revocation: &Revocation) {
        if revocation.kind == Kind::Kick {
            return;
        }
        let at_ms = revocation.at_ms;
        self.open_batch(at_ms);
        let Some(batch) = self.batches.back_mut() else { return };
        let before = batch.len();
        let id = revocation.id.clone();
        match revocation.kind {
            Kind::Session => drop(batch.sessions.insert(id)),
            Kind::User => {
                let until_ms = batch.users.entry(id).or_default();
                *until_ms = at_ms.max(*until_ms);
            }
            Kind::Kick => {}
        }
        batch.newest_ms = batch.newest_ms.max(at_ms);
        batch.oldest_ms = batch.oldest_ms.min(at_ms);
        self.entries += batch.len() - before;
        self.generation += 1;
    }

    /// Why the token is refused, if it is: its session was ended, or all sessions of its user that began when it did; or it
    /// is older than what the set still knows, so that its bearer has to refresh it, which only a live session can.
    pub fn refusal(&self, claims: &Claims) -> Option<TokenError> {
        if self.knows(claims) {
            return Some(TokenError::Revoked);
        }
        let is_below_floor = self.floor_ms > 0 && claims.issued_ms() <= self.floor_ms;
        is_below_floor.then_some(TokenError::Expired)
    }

    /// Whether the token is refused.
    pub fn is_revoked(&self, claims: &Claims) -> bool {
        self.refusal(claims).is_some()
    }

    fn knows(&self, claims: &Claims) -> bool {
        let session = |batch: &Batch| claims.sid.as_ref().is_some_and(|sid| batch.sessions.contains(sid));
        let user = |batch: &Batch| batch.users.get(&claims.sub).is_some_and(|until| claims.began_ms() <= *until);
        self.batches.iter().any(|batch| session(batch) || user(batch))
    }

    /// Lets go what no longer matters. To be called now and then; a minute apart is plenty.
    pub fn expire(&mut self, now: Duration) {
        let now_ms = millis(now);
        while self.batches.front().is_some_and(|batch| batch.newest_ms.saturating_add(millis(self.kept)) < now_ms) {
            self.drop_oldest();
        }
        if self.floor_ms.saturating_add(millis(self.kept)) < now_ms {
            self.floor_ms = 0;
        }
    }

    /// Grows with each entry that could revoke a token: what was looked up at this generation need not be looked up again.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How many entries there are, for the metrics.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Tokens issued up to this time, in Unix milliseconds, count as expired because the set was full; 0 for none.
    pub fn floor_ms(&self) -> u64 {
        self.floor_ms
    }

    /// Makes the last batch one that may take an entry of this time.
    fn open_batch(&mut self, at_ms: u64) {
        while self.entries >= self.entries_max {
            // Its tokens live on, so they are refused by when they were issued.
            self.floor_ms = self.floor_ms.max(self.drop_oldest());
        }
        let span_ms = millis(self.kept) / BATCHES;
        let share = self.entries_max / ENTRIES_MIN;
        let fits = |batch: &Batch| at_ms.saturating_sub(batch.oldest_ms) <= span_ms && batch.len() < share;
        if !self.batches.back().is_some_and(fits) {
            self.batches.push_back(Batch { oldest_ms: at_ms, newest_ms: at_ms, ..Batch::default() });
        }
    }

    /// The time of the last entry that went.
    fn drop_oldest(&mut self) -> u64 {
        let batch = self.batches.pop_front().unwrap_or_default();
        self.entries -= batch.len();
        batch.newest_ms
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEPT: Duration = Duration::from_mins(15);

    fn claims(sub: &str, sid: Option<&str>, began_ms: Option<u64>, iat: Option<u64>) -> Claims {
        Claims { sid: sid.map(Into::into), iat, session_began_ms: began_ms, ..Claims::plain(sub) }
    }

    fn entry(kind: Kind, id: &str, at_ms: u64) -> Revocation {
        Revocation { kind, id: id.into(), at_ms, by: "test".into() }
    }

    fn set(entries: &[Revocation]) -> Revocations {
        let mut set = Revocations::new(KEPT, 1024);
        for entry in entries {
            set.apply(entry);
        }
        set
    }

    #[test]
    fn a_session_ends_whenever_it_began() {
        let set = set(&[entry(Kind::Session, "s_1", 5_000)]);
        assert!(set.is_revoked(&claims("42", Some("s_1"), Some(9_000), Some(9))));
        assert!(!set.is_revoked(&claims("42", Some("s_2"), Some(1_000), Some(1))));
        assert!(!set.is_revoked(&claims("s_1", None, Some(1_000), Some(1))), "a user is no session");
    }

    #[test]
    fn a_user_loses_the_sessions_that_began_until_then() {
        let set = set(&[entry(Kind::User, "42", 5_000), entry(Kind::User, "42", 4_000)]);
        assert!(set.is_revoked(&claims("42", Some("s"), Some(5_000), Some(900))), "iat says nothing of the session");
        assert!(!set.is_revoked(&claims("42", Some("s"), Some(5_001), Some(5))));
        assert!(!set.is_revoked(&claims("43", Some("42"), Some(5_000), Some(5))));
        assert!(set.is_revoked(&claims("42", None, None, Some(5))), "without auth_time, iat stands in");
        assert!(!set.is_revoked(&claims("42", None, None, Some(6))));
        assert!(set.is_revoked(&claims("42", None, None, None)), "without either, it may be as old as can be");
    }

    #[test]
    fn a_kick_ends_connections_only() {
        let kick = entry(Kind::Kick, "42", 5_000);
        let claims = claims("42", Some("s"), Some(9_000), None);
        assert!(kick.ends(&claims));
        assert!(!entry(Kind::User, "42", 5_000).ends(&claims));
        assert!(entry(Kind::Session, "s", 5_000).ends(&claims));
        let set = set(&[kick]);
        assert_eq!((set.generation(), set.len()), (1, 0));
        assert!(!set.is_revoked(&claims));
    }

    #[test]
    fn an_entry_goes_when_its_tokens_have_expired() {
        let mut set = set(&[entry(Kind::Session, "s_1", 1_000), entry(Kind::Session, "s_2", 800_000)]);
        let gone = |set: &Revocations, sid: &str| !set.is_revoked(&claims("42", Some(sid), None, None));
        set.expire(Duration::from_secs(901));
        assert!(!gone(&set, "s_1"), "not before its time");
        set.expire(Duration::from_millis(901_001));
        assert!(gone(&set, "s_1") && !gone(&set, "s_2"));
        set.expire(Duration::from_mins(30));
        assert!(set.is_empty());
    }

    #[test]
    fn when_full_the_oldest_go_and_tokens_as_old_as_they_are_refused() {
        let mut set = Revocations::new(KEPT, 16);
        for n in 0..20_u64 {
            set.apply(&entry(Kind::Session, &format!("s_{n}"), 10_000 + n * 1_000));
        }
        assert!(set.len() <= 16);
        assert!(set.floor_ms() > 0);
        for n in 0..20_u64 {
            let ended = claims("42", Some(&format!("s_{n}")), None, Some(10 + n));
            assert!(set.is_revoked(&ended), "s_{n} is still refused");
        }
        let innocent = |iat| claims("43", Some("s_live"), Some(1), Some(iat));
        assert_eq!(set.refusal(&innocent(10)), Some(TokenError::Expired), "it has to refresh");
        assert!(!set.is_revoked(&innocent(set.floor_ms() / 1000 + 1)), "and then it goes on");
        set.expire(Duration::from_secs(2_000));
        assert_eq!((set.floor_ms(), set.len()), (0, 0));
    }

    #[test]
    fn words_are_read_back() {
        for kind in [Kind::Session, Kind::User, Kind::Kick] {
            assert_eq!(Kind::from_word(kind.word()), Some(kind));
        }
        assert_eq!(Kind::from_word("Session"), None);
    }

    proptest! {
        /// Against a plain list: what is revoked stays refused until the tokens that it speaks of are gone, however small
        /// the set and whatever the order.
        #[test]
        fn nothing_revoked_is_let_in(
            entries in prop::collection::vec((any::<bool>(), 0_u8..20, 0_u64..2_000), 0..60),
            entries_max in 8_usize..64,
            token in (0_u8..20, 0_u8..20, 0_u64..2_000),
        ) {
            let mut set = Revocations::new(KEPT, entries_max);
            let mut list = Vec::new();
            for (is_user, id, at) in entries {
                let kind = if is_user { Kind::User } else { Kind::Session };
                let entry = entry(kind, &id.to_string(), at * 1000);
                set.apply(&entry);
                list.push(entry);
                prop_assert!(set.len() <= entries_max);
            }
            let (sub, sid, iat) = token;
            let claims = claims(&sub.to_string(), Some(&sid.to_string()), Some(iat * 1000), Some(iat));
            // A session's tokens are issued before it ends.
            let now = list.iter().map(|entry| entry.at_ms).max().unwrap_or(0);
            set.expire(Duration::from_millis(now));
            let matters = |entry: &&Revocation| entry.at_ms >= iat * 1000 && entry.at_ms + 900_000 >= now;
            if list.iter().filter(matters).any(|entry| entry.ends(&claims)) {
                prop_assert!(set.is_revoked(&claims));
            }
            prop_assert!(set.generation() > list.len() as u64);
        }
    }
}

//! What has been revoked: the entries of the revocation log, and the set of them that each shard checks tokens against.
//! Writing, following and expiring the log itself is for `sessions`.
//!
//! The set is bounded and forgets nothing that could still matter. It keeps entries in batches by when they came, and not
//! by their own time, which another clock has written: every token that an entry speaks of was issued before it came, so
//! a batch goes when tokens that old have expired. When the set is full the oldest batch goes early, and from then on all
//! tokens *issued* up to its last entry's coming count as expired: their bearers refresh once, and those whose session was
//! ended cannot.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

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
    pub fn began_ms(&self) -> u64 {
        self.session_began_ms.unwrap_or_else(|| self.iat.unwrap_or(0).saturating_mul(1000))
    }

    fn issued_ms(&self) -> u64 {
        self.iat.unwrap_or(0).saturating_mul(1000)
    }
}

/// How many batches an entry's life is cut into: so much of it is waited at most beyond what is needed.
const BATCHES: u32 = 8;

/// One for each batch.
const ENTRIES_MIN: usize = 8;

/// A moment, by both clocks of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// By a clock that only goes forward, whatever is done to the date.
    pub elapsed: Duration,
    /// Unix time.
    pub unix: Duration,
}

/// The entries that still matter. One per shard.
#[derive(Debug)]
pub struct Revocations {
    bounds: Bounds,
    /// In the order in which their entries came.
    batches: VecDeque<Batch>,
    entries: usize,
    floor: Option<Floor>,
    generation: u64,
}

/// How long entries matter, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The longest life of a token, leeway included.
    pub kept: Duration,
    /// How far the clocks of those who issue tokens may be ahead.
    pub leeway: Duration,
    /// At least 8.
    pub entries_max: usize,
}

impl Bounds {
    fn entries_max(&self) -> usize {
        self.entries_max.max(ENTRIES_MIN)
    }
}

#[derive(Debug)]
struct Batch {
    opened: Moment,
    newest: Moment,
    /// By session: nothing but that it ended.
    sessions: HashSet<Box<str>>,
    /// By user: sessions that began up to here are ended.
    users: HashMap<Box<str>, u64>,
}

/// What is left of batches that went early.
#[derive(Clone, Copy, Debug)]
struct Floor {
    /// Tokens issued up to here, in Unix milliseconds, count as expired.
    issued_ms: u64,
    /// When they have expired indeed, by the clock that only goes forward.
    until: Duration,
}

impl Batch {
    fn new(now: Moment) -> Self {
        Self { opened: now, newest: now, sessions: HashSet::new(), users: HashMap::new() }
    }

    fn len(&self) -> usize {
        self.sessions.len().saturating_add(self.users.len())
    }

    fn has(&self, revocation: &Revocation) -> bool {
        match revocation.kind {
            Kind::Session => self.sessions.contains(&revocation.id),
            Kind::User => self.users.get(&revocation.id).is_some_and(|until| revocation.at_ms <= *until),
            Kind::Kick => false,
        }
    }
}

impl Revocations {
    /// An empty set.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, batches: VecDeque::new(), entries: 0, floor: None, generation: 1 }
    }

    /// The set has these bounds from now on, as a reload says. Entries that went before stay gone.
    pub fn resize(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Takes an entry in that comes now. It may come again, which changes nothing, and in any order.
    pub fn apply(&mut self, revocation: &Revocation, now: Moment) {
        if revocation.kind == Kind::Kick || self.batches.iter().any(|batch| batch.has(revocation)) {
            return;
        }
        let batch = self.open_batch(now);
        batch.newest = now;
        let before = batch.len();
        let id = revocation.id.clone();
        match revocation.kind {
            Kind::Session => drop(batch.sessions.insert(id)),
            Kind::User => drop(batch.users.insert(id, revocation.at_ms)),
            Kind::Kick => {}
        }
        let added = batch.len().saturating_sub(before);
        self.entries = self.entries.saturating_add(added);
        self.generation = self.generation.saturating_add(1);
    }

    /// Why the token is refused, if it is: its session was ended, or all sessions of its user that began when it did; or it
    /// is older than what the set still knows, so that its bearer has to refresh it, which only a live session can.
    pub fn refusal(&self, claims: &Claims) -> Option<TokenError> {
        if self.knows(claims) {
            return Some(TokenError::Revoked);
        }
        let is_below = |floor: Floor| claims.issued_ms() <= floor.issued_ms;
        self.floor.is_some_and(is_below).then_some(TokenError::Expired)
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
    pub fn expire(&mut self, now: Moment) {
        let kept = self.bounds.kept;
        while self.batches.front().is_some_and(|batch| batch.newest.elapsed.saturating_add(kept) < now.elapsed) {
            self.drop_oldest();
        }
        // A date that was set back must not make every new token an old one.
        let newest_ms = millis(now.unix.saturating_add(self.bounds.leeway));
        self.floor = self
            .floor
            .filter(|floor| now.elapsed <= floor.until)
            .map(|floor| Floor { issued_ms: floor.issued_ms.min(newest_ms), ..floor });
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

    /// Tokens issued up to this time, in Unix milliseconds, count as expired because the set was full.
    pub fn floor_ms(&self) -> Option<u64> {
        self.floor.map(|floor| floor.issued_ms)
    }

    /// The batch that takes an entry which comes now.
    fn open_batch(&mut self, now: Moment) -> &mut Batch {
        let Bounds { kept, leeway, .. } = self.bounds;
        while self.entries >= self.bounds.entries_max() {
            // Its tokens live on, so they are refused by when they were issued.
            let Some(newest) = self.drop_oldest() else { break };
            let issued_ms = millis(newest.unix.min(now.unix).saturating_add(leeway));
            let until = newest.elapsed.saturating_add(kept);
            let known = self.floor.unwrap_or(Floor { issued_ms, until });
            self.floor = Some(Floor { issued_ms: issued_ms.max(known.issued_ms), until: until.max(known.until) });
        }
        let share = self.bounds.entries_max() / ENTRIES_MIN;
        let span = kept.checked_div(BATCHES).unwrap_or(kept);
        let fits = |batch: &Batch| now.elapsed.saturating_sub(batch.opened.elapsed) <= span && batch.len() < share;
        let last = self.batches.pop_back_if(|batch| fits(batch)).unwrap_or_else(|| Batch::new(now));
        self.batches.push_back_mut(last)
    }

    /// When the last of the entries came that went.
    fn drop_oldest(&mut self) -> Option<Moment> {
        let batch = self.batches.pop_front()?;
        self.entries = self.entries.saturating_sub(batch.len());
        Some(batch.newest)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, clippy::expect_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { kept: Duration::from_mins(15), leeway: Duration::from_secs(5), entries_max: 1024 };
    /// When the clock that only goes forward began.
    const BEGAN: Duration = Duration::from_secs(1_700_000_000);

    /// So long after the beginning, with clocks that agree.
    fn after(elapsed: Duration) -> Moment {
        Moment { elapsed, unix: BEGAN + elapsed }
    }

    fn secs(seconds: u64) -> Moment {
        after(Duration::from_secs(seconds))
    }

    fn claims(sub: &str, sid: Option<&str>, began_ms: Option<u64>, iat: Option<u64>) -> Claims {
        Claims { sid: sid.map(Into::into), iat, session_began_ms: began_ms, ..Claims::plain(sub) }
    }

    fn entry(kind: Kind, id: &str, at_ms: u64) -> Revocation {
        Revocation { kind, id: id.into(), at_ms, by: "test".into() }
    }

    fn set(entries: &[Revocation]) -> Revocations {
        let mut set = Revocations::new(BOUNDS);
        for entry in entries {
            set.apply(entry, secs(0));
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

    fn is_ended(set: &Revocations, sid: &str) -> bool {
        set.is_revoked(&claims("42", Some(sid), None, None))
    }

    #[test]
    fn an_entry_goes_when_its_tokens_have_expired() {
        let mut set = set(&[entry(Kind::Session, "s_1", 1_000)]);
        set.apply(&entry(Kind::Session, "s_2", 1_000), secs(800));
        // It is known, and not kept for longer.
        set.apply(&entry(Kind::Session, "s_1", 1_000), secs(800));
        assert_eq!(set.len(), 2);
        set.expire(secs(900));
        assert!(is_ended(&set, "s_1"), "not before its time");
        set.expire(secs(901));
        assert!(!is_ended(&set, "s_1") && is_ended(&set, "s_2"));
        set.expire(secs(1_701));
        assert!(set.is_empty());
    }

    #[test]
    fn no_clock_makes_a_revoked_token_good_again() {
        const HOUR: Duration = Duration::from_hours(1);
        let mut set = Revocations::new(BOUNDS);
        // The log's clock is an hour behind, half a year ahead, or as ours; ours is set forward a day and back again.
        let far_ms = u64::try_from((BEGAN + 4_400 * HOUR).as_millis()).expect("it is small");
        for (sid, at_ms) in [("s_1", millis(BEGAN.saturating_sub(HOUR))), ("s_2", far_ms), ("s_3", millis(BEGAN))] {
            set.apply(&entry(Kind::Session, sid, at_ms), secs(0));
        }
        for unix in [BEGAN + 24 * HOUR, BEGAN.saturating_sub(24 * HOUR)] {
            set.expire(Moment { elapsed: Duration::from_mins(10), unix });
            assert!(["s_1", "s_2", "s_3"].iter().all(|sid| is_ended(&set, sid)));
        }
        set.expire(secs(901));
        assert!(set.is_empty(), "nor does one keep what is over");
    }

    #[test]
    fn when_full_the_oldest_go_and_tokens_as_old_as_they_are_refused() {
        let mut set = Revocations::new(Bounds { entries_max: 16, ..BOUNDS });
        let began_s = BEGAN.as_secs();
        for n in 0..20_u64 {
            set.apply(&entry(Kind::Session, &format!("s_{n}"), 7), secs(10 + n));
        }
        assert!(set.len() <= 16);
        for n in 0..20_u64 {
            // The clock of whoever issued it may have been ahead.
            let ended = claims("42", Some(&format!("s_{n}")), None, Some(began_s + 10 + n + 5));
            assert!(set.is_revoked(&ended), "s_{n} is still refused");
        }
        let innocent = |iat| claims("43", Some("s_live"), Some(1), Some(iat));
        assert_eq!(set.refusal(&innocent(began_s + 10)), Some(TokenError::Expired), "it has to refresh");
        let floor_ms = set.floor_ms().expect("the set was full");
        assert!(floor_ms <= millis(BEGAN) + 35_000, "not above now and the leeway");
        assert!(!set.is_revoked(&innocent(floor_ms / 1000 + 1)), "and then it goes on");
        set.expire(secs(2_000));
        assert_eq!((set.floor_ms(), set.len()), (None, 0));
    }

    #[test]
    fn a_date_that_was_wrong_does_not_refuse_new_tokens_for_ever() {
        let mut set = Revocations::new(Bounds { entries_max: 16, ..BOUNDS });
        let (elapsed, year) = (Duration::from_secs(1), Duration::from_hours(24 * 365));
        for n in 0..20_u64 {
            set.apply(&entry(Kind::Session, &format!("s_{n}"), 7), Moment { elapsed, unix: BEGAN + year });
        }
        set.expire(secs(2));
        let fresh = claims("43", Some("s_live"), None, Some(BEGAN.as_secs() + 10));
        assert_eq!(set.refusal(&fresh), None);
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
        /// the set, whatever the entries' own times and however often they come.
        #[test]
        fn nothing_revoked_is_let_in(
            entries in prop::collection::vec((any::<bool>(), 0_u8..20, 0_u64..2_000, 0_u64..100), 0..60),
            entries_max in 8_usize..64,
            token in (0_u8..20, 0_u8..20, 0_u64..2_000, 0_u64..2_000),
        ) {
            let mut set = Revocations::new(Bounds { entries_max, ..BOUNDS });
            let (mut list, mut now) = (Vec::new(), 0);
            for (is_user, id, at, pause) in entries {
                let kind = if is_user { Kind::User } else { Kind::Session };
                let entry = entry(kind, &id.to_string(), at * 1000);
                now += pause;
                set.apply(&entry, secs(now));
                list.push((entry, now));
                prop_assert!(set.len() <= entries_max);
            }
            let (sub, sid, began, issued) = token;
            let iat = Some(BEGAN.as_secs() + issued);
            let claims = claims(&sub.to_string(), Some(&sid.to_string()), Some(began * 1000), iat);
            set.expire(secs(now));
            // A session's tokens are issued before its end comes first, by a clock that is ahead by no more than the leeway.
            let covers = |other: &Revocation, entry: &Revocation| {
                other.kind == entry.kind && other.id == entry.id && (other.at_ms >= entry.at_ms || entry.kind == Kind::Session)
            };
            let since = |entry| list.iter().find(|(other, _)| covers(other, entry)).map_or(0, |(_, came)| *came);
            let ended = list.iter().any(|(entry, _)| {
                let came = since(entry);
                entry.ends(&claims) && came + 5 >= issued && came + 900 >= now
            });
            if ended {
                prop_assert!(set.is_revoked(&claims));
            }
        }
    }
}

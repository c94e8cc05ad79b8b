//! Sessions: how they begin, are renewed and end; the refresh tokens that renew them; and the log of revocations that
//! ends the access tokens and live connections of what has ended.
//!
//! Everything here runs on the bridge. Who may log in is for `accounts`, access tokens and the set that each shard checks
//! them against for `auth`, carrying the log's entries to the shards for `server`.
//!
//! There are two stores that behave alike: Redis, for several instances, and the embedded one. In both, a session is
//! ended in this order: the revocation is written to the log and durable, then the session goes, then the caller is
//! answered (decision 8). In the embedded one both are one transaction; in Redis what stops between them is finished.

mod embedded;
mod known;
mod log;
mod redis;
mod rotation;
mod stream;
#[cfg(test)]
mod tests;
mod token;
mod unfinished;

pub use embedded::COMPONENT;
pub use log::{Follower, Freshness, LogUpdate};
pub use rotation::SessionRules;
pub use token::{Keyring, RefreshToken, TOKEN_CHARS_MAX};

use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::auth::revocation::Kind;
use crate::bus::redis::Redis;
use crate::config::{Config, SessionStore};
use crate::embedded::Embedded;
use crate::exchange::ClientNote;
use crate::shard::Instant;
use crate::shard::complaints::complain;
use rotation::Session;
use token::TokenContent;

/// Bytes of a user's id that can have sessions.
pub const USER_ID_BYTES_MAX: usize = 128;

/// Bytes of a session's id. Ours have 24.
const SESSION_ID_BYTES_MAX: usize = 64;

/// A session that began.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Its id, for the token's `sid`.
    pub sid: String,
    /// When it began, in Unix milliseconds by the store's clock, for the token's `auth_time`.
    pub began_ms: u64,
    /// What renews it.
    pub refresh_token: RefreshToken,
}

/// A session that was renewed.
#[derive(Clone, Debug)]
pub struct Renewed {
    /// Whose it is.
    pub user: String,
    /// Its id.
    pub sid: String,
    /// When it began, in Unix milliseconds by the store's clock.
    pub began_ms: u64,
    /// What renews it next.
    pub refresh_token: RefreshToken,
}

/// A session in the list of its user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub sid: String,
    /// When it began, in Unix milliseconds.
    pub created_ms: u64,
    /// When it was last renewed (or began), in Unix milliseconds.
    pub last_seen_ms: u64,
    /// What its client calls itself.
    pub user_agent: String,
    /// Where its client was then.
    pub address: String,
}

/// Why nothing was done, or nobody knows what was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionFailure {
    /// The store cannot be reached or did not answer in time: `503 dependency_unavailable`. A change may have been made;
    /// every one of them can be asked for again.
    #[error("the store of sessions is away")]
    Away,
    /// As much waits for the store as may: `503 overloaded`.
    #[error("as much waits for the store of sessions as may")]
    Busy,
    /// No sessions are kept for a user with such an id.
    #[error("the user's id is not 1 to {USER_ID_BYTES_MAX} of A-Z, a-z, 0-9, ., _, -, : and @")]
    UserId,
}

/// Why a refresh token renews nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    /// It is none of ours, or its session has ended: `401 refresh_invalid`.
    #[error("the refresh token is not valid")]
    Invalid,
    /// It was spent before, so its session has just been ended: `401 refresh_reused`.
    #[error("the refresh token was used before")]
    Reused,
    /// Nobody can tell now.
    #[error(transparent)]
    Failed(#[from] SessionFailure),
}

/// What tells the store's time; with `None` the store tells it itself. Tests turn it.
type Clock = Rc<dyn Fn() -> Option<u64>>;

/// The sessions. One per process, on the bridge; clones share it.
#[derive(Clone)]
pub struct Sessions {
    store: Store,
    keys: Rc<Keyring>,
    rules: SessionRules,
}

#[derive(Clone)]
enum Store {
    Embedded(embedded::EmbeddedSessions),
    Redis(Box<redis::RedisSessions>),
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Sessions where the configuration has them. `embedded` has [`COMPONENT`]; `redis` is there where the configuration
    /// keeps sessions in it. The follower needs a `LocalSet`.
    pub fn open(config: &Config, embedded: &Embedded, redis: Option<&Redis>, keys: Keyring) -> Self {
        let (rules, kept) = (SessionRules::from(&config.sessions), config.auth.revocations_kept());
        match (config.session_store(), redis) {
            (SessionStore::Redis, Some(redis)) => Self::redis(redis.clone(), keys, rules, kept),
            _ => Self::embedded(embedded.clone(), keys, rules, kept),
        }
    }

    /// Sessions in the embedded store, which has [`COMPONENT`]. Revocations are kept for `kept`: the longest life of an
    /// access token, leeway included.
    pub fn embedded(store: Embedded, keys: Keyring, rules: SessionRules, kept: Duration) -> Self {
        let store = Store::Embedded(embedded::EmbeddedSessions::new(store, kept, Rc::new(|| None)));
        Self { store, keys: Rc::new(keys), rules }
    }

    /// Sessions in Redis; else as [`Sessions::embedded`].
    pub fn redis(redis: Redis, keys: Keyring, rules: SessionRules, kept: Duration) -> Self {
        let store = Store::Redis(Box::new(redis::RedisSessions::new(redis, kept, Rc::new(|| None))));
        Self { store, keys: Rc::new(keys), rules }
    }

    /// Begins a session. Where the user has as many as may be, the one that was not seen for longest ends.
    ///
    /// Dropping the future may leave a session that nobody holds a token of.
    pub async fn create(&self, user: &str, note: &ClientNote) -> Result<NewSession, SessionFailure> {
        if !is_user_id(user) {
            return Err(SessionFailure::UserId);
        }
        let sid = new_session_id();
        let began_ms = match &self.store {
            Store::Embedded(store) => store.create(user, &sid, note, self.rules).await?,
            Store::Redis(store) => store.create(user, &sid, note, self.rules).await?,
        };
        let refresh_token =
            self.keys.issue(&TokenContent { sid: sid.as_str().into(), user: user.into(), generation: 0 });
        Ok(NewSession { sid, began_ms, refresh_token })
    }

    /// Renews the session that this token is of. The token is spent by it: presented again within the grace it is
    /// answered with the same successor, later it ends the session.
    ///
    /// Dropping the future may leave the token spent; the grace lets the client ask again.
    pub async fn refresh(&self, token: &str, note: &ClientNote) -> Result<Renewed, RefreshError> {
        self.refresh_until(token, note, Instant::NEVER).await
    }

    /// The same, unless Redis comes to it later than this.
    pub async fn refresh_until(&self, token: &str, note: &ClientNote, until: Instant) -> Result<Renewed, RefreshError> {
        let said = self.keys.check(token).ok_or(RefreshError::Invalid)?;
        let renewal = match &self.store {
            Store::Embedded(store) => store.refresh(&said, note, self.rules).await?,
            Store::Redis(store) => store.refresh(&said, note, self.rules, until).await?,
        };
        match renewal {
            Renewal::To { began_ms, generation } => {
                let refresh_token = self.keys.issue(&TokenContent { generation, ..said.clone() });
                Ok(Renewed { user: said.user.into(), sid: said.sid.into(), began_ms, refresh_token })
            }
            Renewal::Invalid => Err(RefreshError::Invalid),
            Renewal::Reused => {
                complain!(warn: user = %said.user, sid = %said.sid, "a spent refresh token was presented; its session ends");
                Err(RefreshError::Reused)
            }
        }
    }

    /// Whose token it is, if it is one of ours at all; whether it is still good is not looked at.
    pub fn user_of(&self, token: &str) -> Option<Box<str>> {
        self.keys.check(token).map(|said| said.user)
    }

    /// Ends a session that is known to be this user's, as a token's `sub` and `sid` are. The answer means that the
    /// revocation is durable, whether or not the session was still kept.
    pub async fn end(&self, user: &str, sid: &str, by: &str) -> Result<(), SessionFailure> {
        match &self.store {
            Store::Embedded(store) => store.end(user, sid, by, Proof::Given, self.rules).await.map(|_| ()),
            Store::Redis(store) => store.end(user, sid, by, Proof::Given, self.rules).await.map(|_| ()),
        }
    }

    /// Whether a session has ended, or, with no `sid`, all that the user had at `began_ms`: asked when their end is asked
    /// for again. It ends none. `true` means that the revocation is durable and nothing is left to be done. That the
    /// sessions are the user's is known from a token.
    pub async fn end_again(&self, user: &str, sid: Option<&str>, began_ms: u64) -> Result<bool, SessionFailure> {
        match &self.store {
            Store::Embedded(store) => store.has_ended(user, sid, began_ms).await,
            Store::Redis(store) => store.end_again(user, sid, began_ms, self.rules).await,
        }
    }

    /// Ends a session if it is this user's; says whether it was.
    pub async fn end_own(&self, user: &str, sid: &str, by: &str) -> Result<bool, SessionFailure> {
        if !is_user_id(user) || !is_session_id(sid) {
            return Ok(false);
        }
        match &self.store {
            Store::Embedded(store) => store.end(user, sid, by, Proof::Wanted, self.rules).await,
            Store::Redis(store) => store.end(user, sid, by, Proof::Wanted, self.rules).await,
        }
    }

    /// Ends all sessions that the user has now, and revokes every token of theirs, those of other issuers included.
    /// Sessions that begin after the answer go on.
    pub async fn end_all(&self, user: &str, by: &str) -> Result<(), SessionFailure> {
        match &self.store {
            Store::Embedded(store) => store.end_all(user, by).await,
            Store::Redis(store) => store.end_all(user, by, self.rules).await,
        }
    }

    /// As [`Sessions::end_all`], for a user that may have been asked to leave before: where no session is left, nothing is
    /// written to the log again.
    pub async fn end_left(&self, user: &str, by: &str) -> Result<(), SessionFailure> {
        match &self.store {
            Store::Embedded(store) => store.end_left(user, by).await,
            Store::Redis(store) => store.end_left(user, by, self.rules).await,
        }
    }

    /// Revocations are kept this long from now on; see [`Sessions::embedded`].
    pub fn keep_revocations(&self, kept: Duration) {
        match &self.store {
            Store::Embedded(store) => store.keep(kept),
            Store::Redis(store) => store.keep(kept),
        }
    }

    /// Closes the user's live connections; sessions and tokens stay good.
    pub async fn kick(&self, user: &str, by: &str) -> Result<(), SessionFailure> {
        match &self.store {
            Store::Embedded(store) => store.append(Kind::Kick, user, by).await,
            Store::Redis(store) => store.append(Kind::Kick, user, None, by, "").await.map(|_| ()),
        }
    }

    /// The user's sessions, the latest first.
    pub async fn list(&self, user: &str) -> Result<Vec<Listed>, SessionFailure> {
        if !is_user_id(user) {
            return Ok(Vec::new());
        }
        let mut sessions = match &self.store {
            Store::Embedded(store) => store.list(user, self.rules).await?,
            Store::Redis(store) => store.list(user, self.rules).await?,
        };
        sessions.sort_by(|one, two| (two.created_ms, &two.sid).cmp(&(one.created_ms, &one.sid)));
        Ok(sessions.into_iter().map(Listed::from).collect())
    }

    /// Reads the log of revocations, from its beginning on.
    pub fn follow(&self) -> Follower {
        match &self.store {
            Store::Embedded(store) => Follower::embedded(store.clone()),
            Store::Redis(store) => Follower::redis(stream::Stream::new(redis::RedisSessions::clone(store), self.rules)),
        }
    }
}

impl From<Session> for Listed {
    fn from(session: Session) -> Self {
        let Session { sid, created_ms, last_seen_ms, user_agent, address, .. } = session;
        Self { sid, created_ms, last_seen_ms, user_agent, address }
    }
}

/// What a store says to a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewal {
    /// Its successor is of this generation.
    To {
        began_ms: u64,
        generation: u64,
    },
    Reused,
    Invalid,
}

/// Whether a session is known to be the user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// The caller has it in a token.
    Given,
    /// The store has to look.
    Wanted,
}

/// 128 bits that nobody can guess.
fn new_session_id() -> String {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
    format!("s_{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Whether it looks like a session's id.
fn is_session_id(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    id.len() <= SESSION_ID_BYTES_MAX && id.starts_with("s_") && id.bytes().all(is_plain)
}

/// Whether sessions are kept for a user of this id. It goes into a key of Redis, where a brace would choose the slot and
/// other signs would make patterns of it.
pub fn is_user_id(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':' | b'@');
    (1..=USER_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(is_plain)
}

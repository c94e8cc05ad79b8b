//! Accounts: log-in, renewal, log-out and the list of sessions; and the commands that change users.
//!
//! Shards ask by an [`Operation`] and are told an [`Outcome`]; which requests lead to them is for `gateway`. Everything
//! here runs on the bridge, but for hashing, which has threads of its own.

mod answer;
pub mod cli;
mod operation;
pub mod password;
pub mod request;
mod shares;
pub mod slowdown;
mod start;
pub mod store;
#[cfg(test)]
mod tests;
pub mod user;

pub use answer::Payload;
pub use operation::{Operation, Outcome, Question, Waiter, WaitsForever};
pub use start::{StartError, Stores, check_key};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::auth::rbac::Roles;
use crate::auth::{Grant, IssueError, Issuer};
use crate::exchange::{ClientNote, Code};
use crate::sessions::{self, RefreshError, RefreshToken};
use crate::shard::complaints::complain;
use crate::shard::offload::{Offload, Refused};
use crate::shard::{Local, clock};

use self::password::{Hasher, PasswordCheck, Scratch, StoredHash};
use self::shares::Shares;
use self::slowdown::{Admission, AttemptKey, Slowdown};
use self::store::UserChange;
use self::user::{User, normal_email};

/// Who did it, in the log of revocations, when it was nobody in particular.
const BY: &str = "accounts";

/// When an address that has its share of the queue may come again: much of it has been served by then.
const SHARE_RETRY: Duration = Duration::from_secs(1);

/// As long as the ids of sessions are.
const SESSION_SAMPLE: &str = "s_0123456789abcdefghijkl";

/// The accounts. One per process, on the bridge.
#[derive(Debug)]
pub struct Accounts {
    kept: Stores,
    pool: Offload<Scratch>,
    /// Of the pool's queue, by address.
    shares: Shares,
    hasher: Arc<Hasher>,
    slowdown: Local<Slowdown>,
    /// Told whenever a log-in has ended, to those that wait for others of their account and address.
    ended: Notify,
    terms: Local<Terms>,
}

/// What a reload changes.
#[derive(Clone, Debug)]
struct Terms {
    /// `None` when no key signs.
    issuer: Option<Issuer>,
    roles: Arc<Roles>,
}

/// Why a client does not get what it asks.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    code: Code,
    retry_after: Option<Duration>,
}

impl Refusal {
    const fn new(code: Code) -> Self {
        Self { code, retry_after: None }
    }
}

impl From<store::StoreFailure> for Refusal {
    fn from(failure: store::StoreFailure) -> Self {
        Self::new(match failure {
            store::StoreFailure::Busy => Code::Overloaded,
            store::StoreFailure::Away(_) | store::StoreFailure::Taken => Code::DependencyUnavailable,
        })
    }
}

impl From<sessions::SessionFailure> for Refusal {
    fn from(failure: sessions::SessionFailure) -> Self {
        Self::new(match failure {
            sessions::SessionFailure::Busy => Code::Overloaded,
            sessions::SessionFailure::Away => Code::DependencyUnavailable,
            // Somebody added the user by other means than ours.
            sessions::SessionFailure::UserId => Code::InvalidCredentials,
        })
    }
}

impl From<RefreshError> for Refusal {
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::Invalid => Self::new(Code::RefreshInvalid),
            RefreshError::Reused => Self::new(Code::RefreshReused),
            RefreshError::Failed(failure) => failure.into(),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full(wait) => Self { code: Code::Overloaded, retry_after: Some(wait) },
            Refused::Panicked => Self::new(Code::DependencyUnavailable),
        }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        // Rounded up: whoever comes when told to is let in.
        let seconds = |wait: Duration| u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1);
        Self::Refused { code: refusal.code, retry_after_s: refusal.retry_after.map(seconds) }
    }
}

impl Accounts {
    /// Does what a client asks, and says what to tell it.
    ///
    /// Dropping the future takes back a log-in that waits for its password's hash; what has begun to change may be
    /// changed or not.
    pub async fn handle(&self, operation: Operation) -> Outcome {
        self.handle_for(operation, &WaitsForever).await
    }

    /// The same for a client that may leave: once it has, no session is begun or renewed for it.
    pub async fn handle_for(&self, operation: Operation, waiter: &impl Waiter) -> Outcome {
        let outcome = match operation {
            Operation::Login { email, password, note } => self.login(&email, password, &note, waiter).await,
            Operation::Refresh { token, note } => self.refresh(&token, &note, waiter).await,
            Operation::Logout { user, sid } => done(self.kept.sessions.end(&user, &sid, &user).await),
            Operation::LogoutAll { user } => done(self.kept.sessions.end_all(&user, &user).await),
            Operation::Kick { user, by } => done(self.kept.sessions.kick(&user, &by).await),
            Operation::EndAgain { user, sid, began_ms } => {
                match self.kept.sessions.end_again(&user, sid.as_deref(), began_ms).await {
                    Ok(true) => Ok(answer::nothing()),
                    // Nobody ends anything by a token that is revoked.
                    Ok(false) => Err(Refusal::new(Code::TokenRevoked)),
                    Err(failure) => Err(failure.into()),
                }
            }
            Operation::Sessions { user, current } => match self.kept.sessions.list(&user).await {
                Ok(listed) => Ok(answer::sessions(&listed, current.as_deref())),
                Err(failure) => Err(failure.into()),
            },
            Operation::EndSession { user, sid } => match self.kept.sessions.end_own(&user, &sid, &user).await {
                Ok(true) => Ok(answer::nothing()),
                Ok(false) => Err(Refusal::new(Code::NotFound)),
                Err(failure) => Err(failure.into()),
            },
        };
        outcome.unwrap_or_else(Outcome::from)
    }

    async fn login(
        &self,
        email: &str,
        password: Zeroizing<String>,
        note: &ClientNote,
        waiter: &impl Waiter,
    ) -> Result<Outcome, Refusal> {
        // What is no address is nobody's, and is treated as an unknown one.
        let normal = normal_email(email);
        let key = self.slowdown.with(|slowdown| slowdown.key(normal.as_deref().unwrap_or(email), note.address));
        // First a place, so that a flood is refused before anything is looked up for it; and no more than a share of
        // them, so that others get in beside it.
        let too_many = Refusal { code: Code::Overloaded, retry_after: Some(SHARE_RETRY) };
        let share = self.shares.take(note.address).ok_or(too_many)?;
        let place = self.pool.reserve()?;
        let attempt = self.admitted(key).await?;
        let user = match &normal {
            Some(email) => self.kept.users.by_email(email).await?,
            None => None,
        };
        let stored = user.as_ref().and_then(|user| user.password.clone());
        let (hasher, checked) = (Arc::clone(&self.hasher), stored.clone());
        let verdict = place.run(move |scratch| hasher.verify(scratch, &password, checked.as_ref())).await?;
        drop(share);
        let (Some(user), PasswordCheck::Right(better)) = (&user, &verdict) else {
            if let (Some(user), PasswordCheck::Unusable) = (&user, &verdict) {
                complain!(warn: user = %user.id, "the stored hash of this user's password is not one that is checked here");
            }
            attempt.failed();
            return Err(Refusal::new(Code::InvalidCredentials));
        };
        if user.is_disabled {
            attempt.failed();
            return Err(Refusal::new(Code::InvalidCredentials));
        }
        attempt.succeeded();
        if let (Some(old), Some(new)) = (stored.clone(), better.clone()) {
            // The next log-in tries again.
            let _ = self.kept.users.change(&user.id, UserChange::Rehash { old, new }).await;
        }
        // First whether there can be a token: else a session would begin that nobody can use, and end others to have room.
        self.check_grant(user)?;
        is_awaited(waiter).await?;
        let begun = self.kept.sessions.create(&user.id, note).await?;
        // Whoever locks a user out ends the sessions that there are by then. So one that began meanwhile is ended here.
        let now = self.kept.users.by_id(&user.id).await?;
        let is_known = |password: &Option<StoredHash>| *password == stored || (better.is_some() && password == better);
        let is_same = |now: &User| !now.is_disabled && is_known(&now.password);
        let Some(user) = now.filter(is_same) else {
            self.kept.sessions.end(&user.id, &begun.sid, BY).await?;
            return Err(Refusal::new(Code::InvalidCredentials));
        };
        let told = self.tokens(&user, &begun.sid, begun.began_ms, &begun.refresh_token);
        if told.is_err() {
            // The user was changed meanwhile, or the keys were.
            self.kept.sessions.end(&user.id, &begun.sid, BY).await?;
        }
        told
    }

    async fn refresh(&self, token: &str, note: &ClientNote, waiter: &impl Waiter) -> Result<Outcome, Refusal> {
        // First the user: while the store of users is away no token is spent.
        let id = self.kept.sessions.user_of(token).ok_or(Refusal::new(Code::RefreshInvalid))?;
        let Some(user) = self.kept.users.by_id(&id).await?.filter(|user| !user.is_disabled) else {
            // Removed or locked out by other means than ours.
            self.kept.sessions.end_left(&id, BY).await?;
            return Err(Refusal::new(Code::RefreshInvalid));
        };
        // While there can be no access token, no refresh token is spent for it.
        self.check_grant(&user)?;
        // Nor one whose client has left: it may have renewed elsewhere, and this would look like reuse.
        is_awaited(waiter).await?;
        let renewed = self.kept.sessions.refresh_until(token, note, waiter.waits_until()).await?;
        self.tokens(&user, &renewed.sid, renewed.began_ms, &renewed.refresh_token)
    }

    fn tokens(
        &self,
        user: &User,
        sid: &str,
        session_began_ms: u64,
        refresh_token: &RefreshToken,
    ) -> Result<Outcome, Refusal> {
        let issued = self.granted(user, sid, session_began_ms, Issuer::issue)?;
        Ok(answer::tokens(&issued, refresh_token))
    }

    /// Whether the user can have an access token now.
    fn check_grant(&self, user: &User) -> Result<(), Refusal> {
        self.granted(user, SESSION_SAMPLE, 0, Issuer::check)
    }

    fn granted<T>(
        &self,
        user: &User,
        sid: &str,
        session_began_ms: u64,
        how: impl FnOnce(&Issuer, &Grant<'_>, Duration) -> Result<T, IssueError>,
    ) -> Result<T, Refusal> {
        let Terms { issuer, roles } = self.terms.with(|terms| terms.clone());
        let Some(issuer) = issuer else { return Err(Refusal::new(Code::DependencyUnavailable)) };
        let mut permissions = user.permissions.clone();
        permissions.extend(roles.of(&user.role).map(str::to_owned));
        permissions.sort();
        permissions.dedup();
        let (sub, email, role) = (&user.id, &user.email, &user.role);
        let grant = Grant { sub, email, role, permissions: &permissions, sid, session_began_ms };
        how(&issuer, &grant, clock::unix_now()).map_err(|error| {
            complain!(error: user = %user.id, %error, "this user gets no access token; look at its row in the table users");
            Refusal::new(Code::DependencyUnavailable)
        })
    }

    /// Waits while as many log-ins of the key are under way as there are failures left.
    async fn admitted(&self, key: AttemptKey) -> Result<LoginAttempt<'_>, Refusal> {
        loop {
            let others = self.ended.notified();
            match self.slowdown.with(|slowdown| slowdown.admit(clock::now(), key)) {
                Admission::Go => return Ok(LoginAttempt { accounts: self, key, is_open: true }),
                Admission::Later(wait) => {
                    return Err(Refusal { code: Code::RateLimited, retry_after: Some(wait) });
                }
                Admission::Wait => others.await,
            }
        }
    }
}

/// Whether somebody still waits. Nobody reads the refusal, unless the time was up.
async fn is_awaited(waiter: &impl Waiter) -> Result<(), Refusal> {
    if waiter.is_there().await { Ok(()) } else { Err(Refusal::new(Code::Overloaded)) }
}

fn done(outcome: Result<(), sessions::SessionFailure>) -> Result<Outcome, Refusal> {
    outcome.map(|()| answer::nothing()).map_err(Refusal::from)
}

/// A log-in under way. Dropping it counts neither way.
struct LoginAttempt<'a> {
    accounts: &'a Accounts,
    key: AttemptKey,
    is_open: bool,
}

impl LoginAttempt<'_> {
    fn failed(mut self) {
        self.end(|slowdown, key| slowdown.failed(clock::now(), key));
    }

    fn succeeded(mut self) {
        self.end(Slowdown::succeeded);
    }

    fn end(&mut self, how: impl FnOnce(&mut Slowdown, AttemptKey)) {
        if std::mem::take(&mut self.is_open) {
            self.accounts.slowdown.with(|slowdown| how(slowdown, self.key));
            self.accounts.ended.notify_waiters();
        }
    }
}

impl Drop for LoginAttempt<'_> {
    fn drop(&mut self) {
        self.end(Slowdown::withdrawn);
    }
}

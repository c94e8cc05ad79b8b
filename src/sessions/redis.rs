//! Sessions and revocations in Redis, for all instances that share it (docs/sessions.md has the keys).
//!
//! A user's sessions are one record, changed by one script. The log of revocations is a stream with a key of its own,
//! which in a cluster is in another slot: no script can change both. So each ending is two steps, the log first. Between
//! them tokens are refused already, a renewal is undone, and no list has the session: `known` says what the log said. The
//! first step marks the ending as unfinished, the second takes the mark away; what is left marked, whoever dies or fails,
//! any instance finishes (`unfinished`).

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::OnceCell;

use super::known::{KnownRevocations, LogEntry};
use super::rotation::{Session, SessionRules};
use super::token::TokenContent;
use super::{Clock, Proof, Renewal, SessionFailure, is_user_id};
use crate::auth::Revocation;
use crate::auth::revocation::Kind;
use crate::bus::redis::{self as bus, Link, Redis, Script};
use crate::exchange::ClientNote;
use crate::shard::complaints::complain;
use crate::shard::{Instant, Local};

/// The log's key.
pub(super) const LOG: &str = "shardgate:revocations";

/// The key of the marks of endings whose second step is not known to be made. In a cluster it is in the log's slot: what
/// is in the braces is the log's whole key.
pub(super) const UNFINISHED: &str = "{shardgate:revocations}:unfinished";

/// How often room is made for one session before it is given up: each time somebody else was faster.
const CREATE_TRIES: usize = 8;

/// Redis as sessions use it. Lives on the bridge.
#[derive(Clone)]
pub(super) struct RedisSessions {
    pub(super) redis: Redis,
    scripts: Rc<Scripts>,
    /// How long an entry of the log matters.
    kept: Rc<Cell<Duration>>,
    clock: Clock,
    pub(super) known: Rc<Local<KnownRevocations>>,
    revoking: Rc<Local<Revoking>>,
}

/// Sessions whose revocation is being written to the log.
type Revoking = HashMap<Box<str>, Weak<OnceCell<LogEntry>>>;

struct Scripts {
    record: Script,
    append: Script,
}

impl RedisSessions {
    pub(super) fn new(redis: Redis, kept: Duration, clock: Clock) -> Self {
        let scripts = Scripts {
            record: Script::new(include_str!("record.lua")),
            append: Script::new(include_str!("append.lua")),
        };
        let known = Rc::new(Local::new(KnownRevocations::new(kept)));
        let kept = Rc::new(Cell::new(kept));
        Self { redis, scripts: Rc::new(scripts), kept, clock, known, revoking: Rc::default() }
    }

    /// Entries matter this long from now on.
    pub(super) fn keep(&self, kept: Duration) {
        self.kept.set(kept);
        self.known.with(|known| known.keep(kept));
    }

    /// Begins a session and says when.
    pub(super) async fn create(
        &self,
        user: &str,
        sid: &str,
        note: &ClientNote,
        rules: SessionRules,
    ) -> Result<u64, SessionFailure> {
        let address = note.address.to_string();
        let most = rules.per_user_max.to_string();
        let mut may_go: Vec<String> = Vec::new();
        let mut revoked = Vec::new();
        for tries in 0..CREATE_TRIES {
            let after = self.known.with(|known| known.user_ended_ms(user)).map_or(0, |at_ms| at_ms + 1).to_string();
            let mut arguments = vec![user, sid, &note.user_agent, &address, &most, &after];
            arguments.extend(may_go.iter().map(String::as_str));
            let answer = self.change_in_time(user, "create", rules, &arguments, Instant::NEVER).await?;
            match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["begun", began_ms] => {
                    // They went from the record in the same step.
                    self.unmark(&revoked).await;
                    return number(began_ms);
                }
                ["crowded", ref crowded @ ..] => {
                    if tries == 0 {
                        // Those that have ended already take no other's place.
                        may_go = self.ended_in_record(user, rules).await?.into_iter().map(|ended| ended.sid).collect();
                        if !may_go.is_empty() {
                            continue;
                        }
                    }
                    for sid in crowded {
                        revoked.push(self.revoke(sid, user, user).await?);
                    }
                    may_go.extend(crowded.iter().map(|sid| (*sid).to_owned()));
                }
                _ => return Err(odd(&answer)),
            }
        }
        Err(SessionFailure::Busy)
    }

    pub(super) async fn refresh(
        &self,
        said: &TokenContent,
        note: &ClientNote,
        rules: SessionRules,
        until: Instant,
    ) -> Result<Renewal, SessionFailure> {
        let TokenContent { sid, user, generation } = said;
        let (generation, grace, address) =
            (generation.to_string(), rules.grace_ms.to_string(), note.address.to_string());
        let arguments = [sid, generation.as_str(), &grace, &note.user_agent, &address];
        let answer = self.change_in_time(user, "refresh", rules, &arguments, until).await?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["renewed", began_ms, generation] => {
                let (began_ms, generation) = (number(began_ms)?, number(generation)?);
                // It may have been revoked, and its record is not gone yet.
                let has_ended = self.end_again(user, Some(sid), began_ms, rules).await?;
                Ok(if has_ended { Renewal::Invalid } else { Renewal::To { began_ms, generation } })
            }
            ["reused", began_ms] => {
                if self.end_again(user, Some(sid), number(began_ms)?, rules).await? {
                    return Ok(Renewal::Invalid);
                }
                let entry = self.revoke(sid, user, user).await?;
                self.finish(&entry, rules).await.map_err(|error| told(&error))?;
                Ok(Renewal::Reused)
            }
            ["invalid"] => Ok(Renewal::Invalid),
            _ => Err(odd(&answer)),
        }
    }

    /// Ends a session; says whether it was the user's.
    pub(super) async fn end(
        &self,
        user: &str,
        sid: &str,
        by: &str,
        proof: Proof,
        rules: SessionRules,
    ) -> Result<bool, SessionFailure> {
        if proof == Proof::Wanted {
            let (_, sessions) = self.look(user, rules).await?;
            let Some(session) = sessions.iter().find(|session| session.sid == sid) else { return Ok(false) };
            if self.end_again(user, Some(sid), session.created_ms, rules).await? {
                return Ok(true);
            }
        }
        let entry = self.revoke(sid, by, user).await?;
        self.finish(&entry, rules).await.map_err(|error| told(&error))?;
        Ok(true)
    }

    /// Makes the second step of what the log says has ended: the session, or all that the user had when it began. Says
    /// whether the log says so.
    pub(super) async fn end_again(
        &self,
        user: &str,
        sid: Option<&str>,
        began_ms: u64,
        rules: SessionRules,
    ) -> Result<bool, SessionFailure> {
        let endings = self.known.with(|known| known.endings(user, sid, began_ms));
        for entry in &endings {
            self.finish(entry, rules).await.map_err(|error| told(&error))?;
        }
        Ok(!endings.is_empty())
    }

    pub(super) async fn end_all(&self, user: &str, by: &str, rules: SessionRules) -> Result<(), SessionFailure> {
        if !is_user_id(user) {
            return self.append(Kind::User, user, None, by, "").await.map(|_| ());
        }
        let (now_ms, sessions) = self.look(user, rules).await?;
        // Whatever the server's clock says now, sessions that are there began before.
        let latest = sessions.iter().map(|session| session.created_ms).max();
        let at_ms = now_ms.max(latest.unwrap_or(0));
        let entry = self.append(Kind::User, user, Some(at_ms), by, user).await?;
        self.finish(&entry, rules).await.map_err(|error| told(&error))
    }

    /// As `end_all` if a session is left. If not, it only finishes what has ended already.
    pub(super) async fn end_left(&self, user: &str, by: &str, rules: SessionRules) -> Result<(), SessionFailure> {
        if !is_user_id(user) || !self.list(user, rules).await?.is_empty() {
            return self.end_all(user, by, rules).await;
        }
        // What is in no record has been revoked: the log comes first.
        for ended in self.ended_in_record(user, rules).await? {
            self.end_again(user, Some(&ended.sid), ended.created_ms, rules).await?;
        }
        Ok(())
    }

    /// Appends the end of a session to the log, unless it is there: many may ask at once, and again.
    async fn revoke(&self, sid: &str, by: &str, user: &str) -> Result<LogEntry, SessionFailure> {
        // Only what was read: should Redis lose it, this instance writes it back. What it has just written itself and
        // not read yet would be lost.
        if let Some(entry) = self.known.with(|known| known.entry(Kind::Session, sid).cloned()) {
            return Ok(LogEntry { user: Some(user.into()), ..entry });
        }
        let written = self.revoking.with(|revoking| {
            revoking.retain(|_, written| written.strong_count() > 0);
            let written = revoking.get(sid).and_then(Weak::upgrade).unwrap_or_default();
            revoking.insert(sid.into(), Rc::downgrade(&written));
            written
        });
        written.get_or_try_init(|| self.append(Kind::Session, sid, None, by, user)).await.cloned()
    }

    /// The second step: what the log says has ended goes from the record, and the mark that it is to be done goes.
    pub(super) async fn finish(&self, entry: &LogEntry, rules: SessionRules) -> Result<(), bus::RedisFailure> {
        let Some(user) = entry.record_of() else { return Ok(()) };
        let Revocation { kind, id, at_ms, .. } = &entry.revocation;
        match kind {
            Kind::Session => self.change(user, "end", rules, &[id]).await?,
            Kind::User => self.change(user, "end_until", rules, &[&at_ms.to_string()]).await?,
            Kind::Kick => return Ok(()),
        };
        self.unmark(std::slice::from_ref(entry)).await;
        Ok(())
    }

    /// Takes marks away. What fails here is done all the same: it is only done once more.
    async fn unmark(&self, entries: &[LogEntry]) {
        let marks: Vec<String> = entries.iter().filter_map(LogEntry::mark).collect();
        if !marks.is_empty() {
            let _ = self.redis.ask::<u64>(redis::cmd("ZREM").arg(UNFINISHED).arg(marks)).await;
        }
    }

    /// The sessions that have not ended.
    pub(super) async fn list(&self, user: &str, rules: SessionRules) -> Result<Vec<Session>, SessionFailure> {
        let (_, mut sessions) = self.look(user, rules).await?;
        self.known.with(|known| sessions.retain(|session| !known.ends(user, &session.sid, session.created_ms)));
        Ok(sessions)
    }

    /// The sessions whose record has them although the log says that they have ended.
    async fn ended_in_record(&self, user: &str, rules: SessionRules) -> Result<Vec<Session>, SessionFailure> {
        let (_, mut sessions) = self.look(user, rules).await?;
        self.known.with(|known| sessions.retain(|session| known.ends(user, &session.sid, session.created_ms)));
        Ok(sessions)
    }

    /// Appends to the log. `user` is whose record has what is ended; empty where there is none.
    pub(super) async fn append(
        &self,
        kind: Kind,
        id: &str,
        at_ms: Option<u64>,
        by: &str,
        user: &str,
    ) -> Result<LogEntry, SessionFailure> {
        let at_ms = at_ms.or_else(|| (self.clock)());
        let user = Some(user).filter(|user| !user.is_empty()).map(Into::into);
        let revocation = Revocation { kind, id: id.into(), at_ms: at_ms.unwrap_or(0), by: by.into() };
        let mut entry = LogEntry { revocation, user };
        let arguments = self.append_arguments(&entry, at_ms);
        let arguments = arguments.each_ref().map(String::as_str);
        let keys = [LOG, UNFINISHED];
        let appended = self.redis.run_in_time::<String>(&self.scripts.append, &keys, &arguments, Instant::NEVER).await;
        entry.revocation.at_ms = number(&appended.map_err(|error| told(&error))?)?;
        // What this instance writes it need not wait for to read.
        self.known.with(|known| known.remember(kind, id, entry.revocation.at_ms));
        Ok(entry)
    }

    /// Writes an entry to the log again, after the log has lost it.
    pub(super) async fn write_back(&self, link: &mut Link, entry: &LogEntry) -> Result<(), bus::RedisFailure> {
        let arguments = self.append_arguments(entry, Some(entry.revocation.at_ms));
        // Whenever it is done, it is what was true.
        let arguments: Vec<&str> = std::iter::once("").chain(arguments.iter().map(String::as_str)).collect();
        link.run::<String>(&self.scripts.append, &[LOG, UNFINISHED], &arguments).await.map(|_| ())
    }

    fn append_arguments(&self, entry: &LogEntry, at_ms: Option<u64>) -> [String; 7] {
        let Revocation { kind, id, by, .. } = &entry.revocation;
        let at_ms = at_ms.map_or_else(String::new, |at_ms| at_ms.to_string());
        let user = entry.user.as_deref().unwrap_or_default();
        let has_second_step = u8::from(entry.record_of().is_some()).to_string();
        let kept_ms = self.kept.get().as_millis().to_string();
        [kind.word().to_owned(), id.to_string(), at_ms, by.to_string(), user.to_owned(), kept_ms, has_second_step]
    }

    /// The time, and the sessions that are not over.
    async fn look(&self, user: &str, rules: SessionRules) -> Result<(u64, Vec<Session>), SessionFailure> {
        let answer = self.change(user, "look", rules, &[]).await.map_err(|error| told(&error))?;
        let [what, now_ms, text] = &answer[..] else { return Err(odd(&answer)) };
        let now_ms = number(now_ms)?;
        if what != "record" || text.is_empty() {
            return Ok((now_ms, Vec::new()));
        }
        let record: UserRecord = serde_json::from_str(text).map_err(|error| {
            complain!(error: user, %error, "the sessions of a user in Redis cannot be read");
            SessionFailure::Away
        })?;
        let sessions = record.sessions.into_iter().map(Session::from);
        Ok((now_ms, sessions.filter(|session| !session.is_over(now_ms, &rules)).collect()))
    }

    /// Changes a record, or looks at it, whenever Redis comes to it: what has been written to the log is to be done.
    async fn change(
        &self,
        user: &str,
        what: &str,
        rules: SessionRules,
        arguments: &[&str],
    ) -> Result<Vec<String>, bus::RedisFailure> {
        let (key, told_first) = (record_of(user), self.told_first(what, rules));
        let told_first = told_first.iter().map(String::as_str);
        let arguments: Vec<&str> = std::iter::once("").chain(told_first).chain(arguments.iter().copied()).collect();
        self.redis.run(&self.scripts.record, &[&key], &arguments).await
    }

    /// Changes a record, unless Redis comes to it when the client has been refused already: it may have asked again. Nor
    /// later than `until`.
    async fn change_in_time(
        &self,
        user: &str,
        what: &str,
        rules: SessionRules,
        arguments: &[&str],
        until: Instant,
    ) -> Result<Vec<String>, SessionFailure> {
        let (key, told_first) = (record_of(user), self.told_first(what, rules));
        let arguments: Vec<&str> = told_first.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        let changed = self.redis.run_in_time(&self.scripts.record, &[&key], &arguments, until).await;
        changed.map_err(|error| told(&error))
    }

    /// What the script is told whatever it is to do.
    fn told_first(&self, what: &str, rules: SessionRules) -> [String; 3] {
        let now_ms = (self.clock)().map_or_else(String::new, |now_ms| now_ms.to_string());
        [what.to_owned(), now_ms, rules.lifetime_ms.to_string()]
    }
}

/// The key of a user's record.
fn record_of(user: &str) -> String {
    format!("session:{user}")
}

/// A user's record, as other services may read it too.
#[derive(Deserialize)]
struct UserRecord {
    #[serde(default)]
    sessions: Vec<StoredSession>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredSession {
    sid: String,
    created_at: u64,
    last_seen: u64,
    generation: u64,
    rotated_at: u64,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    address: String,
}

impl From<StoredSession> for Session {
    fn from(stored: StoredSession) -> Self {
        let StoredSession { sid, created_at, last_seen, generation, rotated_at, user_agent, address } = stored;
        Self {
            sid,
            created_ms: created_at,
            last_seen_ms: last_seen,
            generation,
            rotated_ms: rotated_at,
            user_agent,
            address,
        }
    }
}

fn number(text: &str) -> Result<u64, SessionFailure> {
    text.parse().map_err(|_| odd(&[text.to_owned()]))
}

fn odd(answer: &[String]) -> SessionFailure {
    complain!(error: words = answer.len(), "the script of sessions answered oddly");
    SessionFailure::Away
}

/// What is the matter is told by the connection itself, once for all who meet it.
fn told(_: &bus::RedisFailure) -> SessionFailure {
    SessionFailure::Away
}

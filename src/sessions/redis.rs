//! Sessions and revocations in Redis, for all instances that share it (docs/sessions.md has the keys).
//!
//! A user's sessions are one record, changed by one script. The log of revocations is a stream with a key of its own,
//! which in a cluster is in another slot: no script can change both. So each ending is two steps, the log first. Between
//! them, or if the second never comes, tokens are refused already, and a renewal is undone: `known` says what the log
//! said. What a dead instance left half done the next one finishes when it reads the log at its start.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::OnceCell;

use super::known::{Entry, Known};
use super::rotation::{Rules, Session};
use super::token::Said;
use super::{Clock, Failure, Proof, Renewal, is_session_id, is_user_id};
use crate::auth::Revocation;
use crate::auth::revocation::Kind;
use crate::bus::redis::{self as bus, Link, Redis, Script};
use crate::exchange::ClientNote;
use crate::shard::Local;

/// The log's key.
pub(super) const LOG: &str = "shardgate:revocations";

/// How often room is made for one session before it is given up: each time somebody else was faster.
const CREATE_TRIES: usize = 8;

/// Redis as sessions use it. Lives on the bridge.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) redis: Redis,
    scripts: Rc<Scripts>,
    /// How long an entry of the log matters.
    kept: Rc<Cell<Duration>>,
    clock: Clock,
    pub(super) known: Rc<Local<Known>>,
    revoking: Rc<Local<Revoking>>,
}

/// Sessions whose revocation is being written to the log.
type Revoking = HashMap<Box<str>, Weak<OnceCell<()>>>;

struct Scripts {
    record: Script,
    append: Script,
}

impl Store {
    pub(super) fn new(redis: Redis, kept: Duration, clock: Clock) -> Self {
        let scripts = Scripts {
            record: Script::new(include_str!("record.lua")),
            append: Script::new(include_str!("append.lua")),
        };
        let known = Rc::new(Local::new(Known::new(kept)));
        let kept = Rc::new(Cell::new(kept));
        Self { redis, scripts: Rc::new(scripts), kept, clock, known, revoking: Rc::default() }
    }

    /// Entries matter this long from now on.
    pub(super) fn keep(&self, kept: Duration) {
        self.kept.set(kept);
        self.known.with(|known| known.keep(kept));
    }

    /// Begins a session and says when.
    pub(super) async fn create(&self, user: &str, sid: &str, note: &ClientNote, rules: Rules) -> Result<u64, Failure> {
        let address = note.address.to_string();
        let most = rules.per_user_max.to_string();
        let mut may_go: Vec<String> = Vec::new();
        for _ in 0..CREATE_TRIES {
            let after = self.known.with(|known| known.user_ended_ms(user)).map_or(0, |at_ms| at_ms + 1).to_string();
            let mut arguments = vec![user, sid, &note.user_agent, &address, &most, &after];
            arguments.extend(may_go.iter().map(String::as_str));
            let answer = self.change_in_time(user, "create", rules, &arguments).await?;
            match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["begun", began_ms] => return number(began_ms),
                ["crowded", ref crowded @ ..] => {
                    for sid in crowded {
                        self.revoke(sid, user, user).await?;
                    }
                    may_go.extend(crowded.iter().map(|sid| (*sid).to_owned()));
                }
                _ => return Err(odd(&answer)),
            }
        }
        Err(Failure::Busy)
    }

    pub(super) async fn refresh(&self, said: &Said, note: &ClientNote, rules: Rules) -> Result<Renewal, Failure> {
        let Said { sid, user, generation } = said;
        let (generation, grace, address) =
            (generation.to_string(), rules.grace_ms.to_string(), note.address.to_string());
        let arguments = [sid, generation.as_str(), &grace, &note.user_agent, &address];
        let answer = self.change_in_time(user, "refresh", rules, &arguments).await?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["renewed", began_ms, generation] => {
                let (began_ms, generation) = (number(began_ms)?, number(generation)?);
                if self.known.with(|known| known.ends(user, sid, began_ms)) {
                    // It was revoked, and its record is not gone yet.
                    self.change(user, "end", rules, &[sid]).await?;
                    return Ok(Renewal::Invalid);
                }
                Ok(Renewal::To { began_ms, generation })
            }
            ["reused"] => {
                self.revoke(sid, user, user).await?;
                self.change(user, "end", rules, &[sid]).await?;
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
        rules: Rules,
    ) -> Result<bool, Failure> {
        if proof == Proof::Wanted && !self.list(user, rules).await?.iter().any(|session| session.sid == sid) {
            return Ok(false);
        }
        self.revoke(sid, by, user).await?;
        if is_user_id(user) {
            self.change(user, "end", rules, &[sid]).await?;
        }
        Ok(true)
    }

    pub(super) async fn end_all(&self, user: &str, by: &str, rules: Rules) -> Result<(), Failure> {
        if !is_user_id(user) {
            return self.append(Kind::User, user, None, by, "").await;
        }
        let (now_ms, sessions) = self.look(user, rules).await?;
        // Whatever the server's clock says now, sessions that are there began before.
        let latest = sessions.iter().map(|session| session.created_ms).max();
        let at_ms = now_ms.max(latest.unwrap_or(0));
        self.append(Kind::User, user, Some(at_ms), by, user).await?;
        self.change(user, "end_until", rules, &[&at_ms.to_string()]).await?;
        Ok(())
    }

    /// As `end_all`, unless there is no session.
    pub(super) async fn end_left(&self, user: &str, by: &str, rules: Rules) -> Result<(), Failure> {
        // What is in no record has been revoked: the log comes first.
        if is_user_id(user) && self.list(user, rules).await?.is_empty() {
            return Ok(());
        }
        self.end_all(user, by, rules).await
    }

    /// Appends the end of a session to the log, unless it is there: many may ask at once, and again.
    async fn revoke(&self, sid: &str, by: &str, user: &str) -> Result<(), Failure> {
        // Only what was read: should Redis lose it, this instance writes it back. What it has just written itself and
        // not read yet would be lost.
        if self.known.with(|known| known.has_read(Kind::Session, sid)) {
            return Ok(());
        }
        let written = self.revoking.with(|revoking| {
            revoking.retain(|_, written| written.strong_count() > 0);
            let written = revoking.get(sid).and_then(Weak::upgrade).unwrap_or_default();
            revoking.insert(sid.into(), Rc::downgrade(&written));
            written
        });
        written.get_or_try_init(|| self.append(Kind::Session, sid, None, by, user)).await.copied()
    }

    /// Ends in the record what the log says has ended: whoever wrote it may have died before it could.
    pub(super) async fn finish(&self, entry: &Entry, rules: Rules) -> Result<(), Failure> {
        let Some(user) = entry.user.as_deref().filter(|user| is_user_id(user)) else { return Ok(()) };
        let Revocation { kind, id, at_ms, .. } = &entry.revocation;
        match kind {
            Kind::Session if is_session_id(id) => self.change(user, "end", rules, &[id]).await.map(|_| ()),
            Kind::User => self.change(user, "end_until", rules, &[&at_ms.to_string()]).await.map(|_| ()),
            Kind::Session | Kind::Kick => Ok(()),
        }
    }

    pub(super) async fn list(&self, user: &str, rules: Rules) -> Result<Vec<Session>, Failure> {
        Ok(self.look(user, rules).await?.1)
    }

    /// Appends to the log. `user` is whose record has what is ended; empty where there is none.
    pub(super) async fn append(
        &self,
        kind: Kind,
        id: &str,
        at_ms: Option<u64>,
        by: &str,
        user: &str,
    ) -> Result<(), Failure> {
        let at_ms = at_ms.or_else(|| (self.clock)());
        let arguments = self.append_arguments(kind, id, at_ms, by, user);
        let arguments = arguments.each_ref().map(String::as_str);
        let id_given: String =
            self.redis.run_in_time(&self.scripts.append, &[LOG], &arguments).await.map_err(|error| told(&error))?;
        // What this instance writes it need not wait for to read.
        let at_ms = at_ms.or_else(|| id_given.split_once('-')?.0.parse().ok()).unwrap_or(0);
        self.known.with(|known| known.remember(kind, id, at_ms));
        Ok(())
    }

    /// Writes an entry to the log again, after the log has lost it.
    pub(super) async fn write_back(&self, link: &mut Link, entry: &Entry) -> Result<(), bus::Failure> {
        let Revocation { kind, id, at_ms, by } = &entry.revocation;
        let user = entry.user.as_deref().unwrap_or_default();
        let arguments = self.append_arguments(*kind, id, Some(*at_ms), by, user);
        // Whenever it is done, it is what was true.
        let arguments: Vec<&str> = std::iter::once("").chain(arguments.iter().map(String::as_str)).collect();
        link.run::<String>(&self.scripts.append, &[LOG], &arguments).await.map(|_| ())
    }

    fn append_arguments(&self, kind: Kind, id: &str, at_ms: Option<u64>, by: &str, user: &str) -> [String; 6] {
        let at_ms = at_ms.map_or_else(String::new, |at_ms| at_ms.to_string());
        let kept_ms = self.kept.get().as_millis().to_string();
        [kind.word().to_owned(), id.to_owned(), at_ms, by.to_owned(), user.to_owned(), kept_ms]
    }

    /// The time, and the sessions that are not over.
    async fn look(&self, user: &str, rules: Rules) -> Result<(u64, Vec<Session>), Failure> {
        let answer = self.change(user, "look", rules, &[]).await?;
        let [what, now_ms, text] = &answer[..] else { return Err(odd(&answer)) };
        let now_ms = number(now_ms)?;
        if what != "record" || text.is_empty() {
            return Ok((now_ms, Vec::new()));
        }
        let record: Record = serde_json::from_str(text).map_err(|error| {
            tracing::error!(user, %error, "the sessions of a user in Redis cannot be read");
            Failure::Away
        })?;
        let sessions = record.sessions.into_iter().map(Session::from);
        Ok((now_ms, sessions.filter(|session| !session.is_over(now_ms, &rules)).collect()))
    }

    /// Changes a record, or looks at it, whenever Redis comes to it: what has been written to the log is to be done.
    async fn change(&self, user: &str, what: &str, rules: Rules, arguments: &[&str]) -> Result<Vec<String>, Failure> {
        let (key, told_first) = (record_of(user), self.told_first(what, rules));
        let told_first = told_first.iter().map(String::as_str);
        let arguments: Vec<&str> = std::iter::once("").chain(told_first).chain(arguments.iter().copied()).collect();
        self.redis.run(&self.scripts.record, &[&key], &arguments).await.map_err(|error| told(&error))
    }

    /// Changes a record, unless Redis comes to it when the client has been refused already: it may have asked again.
    async fn change_in_time(
        &self,
        user: &str,
        what: &str,
        rules: Rules,
        arguments: &[&str],
    ) -> Result<Vec<String>, Failure> {
        let (key, told_first) = (record_of(user), self.told_first(what, rules));
        let arguments: Vec<&str> = told_first.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        self.redis.run_in_time(&self.scripts.record, &[&key], &arguments).await.map_err(|error| told(&error))
    }

    /// What the script is told whatever it is to do.
    fn told_first(&self, what: &str, rules: Rules) -> [String; 3] {
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
struct Record {
    #[serde(default)]
    sessions: Vec<Stored>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
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

impl From<Stored> for Session {
    fn from(stored: Stored) -> Self {
        let Stored { sid, created_at, last_seen, generation, rotated_at, user_agent, address } = stored;
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

fn number(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| odd(&[text.to_owned()]))
}

fn odd(answer: &[String]) -> Failure {
    tracing::error!(words = answer.len(), "the script of sessions answered oddly");
    Failure::Away
}

fn told(error: &bus::Failure) -> Failure {
    if let bus::Failure::Refused(source) = error {
        // Why it is away is told by the connection itself; this is a mistake of ours or of who set Redis up.
        tracing::error!(error = %source, "Redis refused a change of sessions");
    }
    Failure::Away
}

//! Sessions and revocations in the embedded store. Each change is one transaction and durable when it is answered: a
//! spent refresh token stays spent after a power cut.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Row};
use tokio::sync::Notify;

use super::rotation::{RefreshVerdict, Session, SessionRules, crowded_out, judge};
use super::token::TokenContent;
use super::{Clock, Proof, Renewal, SessionFailure};
use crate::auth::Revocation;
use crate::auth::revocation::Kind;
use crate::embedded::{self, Component, Embedded, Fingerprint};
use crate::exchange::ClientNote;
use crate::shard::clock;
use crate::shard::complaints::complain;

/// Its tables. The log's numbers are never used again, so that whoever has read up to one knows what is new.
pub const COMPONENT: Component = Component {
    name: "sessions",
    steps: &[
        "CREATE TABLE sessions (
            sid TEXT PRIMARY KEY,
            user_id TEXT NOT NULL,
            created_ms INTEGER NOT NULL,
            last_seen_ms INTEGER NOT NULL,
            generation INTEGER NOT NULL,
            rotated_ms INTEGER NOT NULL,
            user_agent TEXT NOT NULL,
            address TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX sessions_by_user ON sessions (user_id);
        CREATE INDEX sessions_by_age ON sessions (created_ms);
        CREATE TABLE revocations (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL,
            id TEXT NOT NULL,
            at_ms INTEGER NOT NULL,
            by TEXT NOT NULL
        ) STRICT;
        CREATE INDEX revocations_by_age ON revocations (at_ms);",
        // Each log-in asks when its user was last logged out everywhere.
        "CREATE INDEX revocations_by_id ON revocations (kind, id, at_ms);",
    ],
};

/// Rows that are cleared away with one change, so that no change waits for a great cleaning.
const CLEARED_MAX: i64 = 100;

/// Entries of the log that are read in one go.
const PAGE: u16 = 1000;

/// A part of the log.
pub(super) struct LogPage {
    pub(super) entries: Vec<Revocation>,
    /// Where the next part begins, if there is one.
    pub(super) next: Option<i64>,
    /// The last number that was ever given.
    pub(super) last: i64,
}

/// The embedded store as sessions use it. Lives on the bridge.
#[derive(Clone)]
pub(super) struct EmbeddedSessions {
    embedded: Embedded,
    /// How long an entry of the log matters.
    kept_ms: Rc<Cell<i64>>,
    clock: Clock,
    /// Wakes whoever follows the log.
    appended: Rc<Notify>,
}

impl EmbeddedSessions {
    pub(super) fn new(embedded: Embedded, kept: Duration, clock: Clock) -> Self {
        Self { embedded, kept_ms: Rc::new(Cell::new(millis(kept))), clock, appended: Rc::new(Notify::new()) }
    }

    /// Entries matter this long from now on.
    pub(super) fn keep(&self, kept: Duration) {
        self.kept_ms.set(millis(kept));
    }

    pub(super) fn now_ms(&self) -> u64 {
        (self.clock)().unwrap_or_else(|| u64::try_from(clock::unix_now().as_millis()).unwrap_or(u64::MAX))
    }

    /// Begins a session and says when.
    pub(super) async fn create(
        &self,
        user: &str,
        sid: &str,
        note: &ClientNote,
        rules: SessionRules,
    ) -> Result<u64, SessionFailure> {
        let (log, now_ms) = (self.appending(user), self.now_ms());
        let (user, sid, note) = (user.to_owned(), sid.to_owned(), note.clone());
        self.change(move |db| {
            clear_away(db, now_ms, &rules)?;
            for crowded in crowded_out(&sessions_of(db, &user)?, now_ms, &rules) {
                log.append(db, Kind::Session, &crowded, now_ms)?;
                db.prepare_cached("DELETE FROM sessions WHERE sid = ?1")?.execute([crowded])?;
            }
            // Whoever logs in right after a log-out everywhere begins after it, even within its millisecond.
            let ended: Option<i64> = db
                .prepare_cached("SELECT max(at_ms) FROM revocations WHERE kind = 'user' AND id = ?1")?
                .query_row([&user], |row| row.get(0))?;
            let began_ms = now_ms.max(ended.map_or(0, |at_ms| unsigned(at_ms) + 1));
            db.prepare_cached("INSERT INTO sessions VALUES (?1, ?2, ?3, ?3, 0, ?3, ?4, ?5)")?.execute((
                sid,
                user,
                signed(began_ms),
                note.user_agent,
                note.address.to_string(),
            ))?;
            Ok(began_ms)
        })
        .await
    }

    pub(super) async fn refresh(
        &self,
        said: &TokenContent,
        note: &ClientNote,
        rules: SessionRules,
    ) -> Result<Renewal, SessionFailure> {
        let (log, now_ms) = (self.appending(&said.user), self.now_ms());
        let (said, note) = (said.clone(), note.clone());
        self.change(move |db| {
            let session = db
                .prepare_cached("SELECT * FROM sessions WHERE sid = ?1 AND user_id = ?2")?
                .query_row([&said.sid, &said.user], read_session)
                .optional()?;
            let began_ms = session.as_ref().map_or(0, |session| session.created_ms);
            let to_next = Renewal::To { began_ms, generation: said.generation.saturating_add(1) };
            Ok(match judge(session.as_ref(), said.generation, now_ms, &rules) {
                RefreshVerdict::Renewed => {
                    db.prepare_cached(
                        "UPDATE sessions SET generation = generation + 1, rotated_ms = ?2, last_seen_ms = ?2,
                         user_agent = ?3, address = ?4 WHERE sid = ?1",
                    )?
                    .execute((
                        &said.sid,
                        signed(now_ms),
                        note.user_agent,
                        note.address.to_string(),
                    ))?;
                    to_next
                }
                RefreshVerdict::Again => to_next,
                RefreshVerdict::Reused => {
                    log.append(db, Kind::Session, &said.sid, now_ms)?;
                    db.prepare_cached("DELETE FROM sessions WHERE sid = ?1")?.execute([&said.sid])?;
                    Renewal::Reused
                }
                RefreshVerdict::Invalid => Renewal::Invalid,
            })
        })
        .await
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
        let (log, now_ms) = (self.appending(by), self.now_ms());
        let (user, sid) = (user.to_owned(), sid.to_owned());
        self.change(move |db| {
            let ended = db
                .prepare_cached("DELETE FROM sessions WHERE sid = ?1 AND user_id = ?2 RETURNING *")?
                .query_row([&sid, &user], read_session)
                .optional()?;
            let was_there = ended.is_some_and(|session| !session.is_over(now_ms, &rules));
            // Whoever comes later finds what the first has written.
            if was_there || (proof == Proof::Given && !is_revoked(db, &sid)?) {
                log.append(db, Kind::Session, &sid, now_ms)?;
            }
            Ok(was_there)
        })
        .await
    }

    /// Whether the session has ended, or with no `sid` all that the user had when this one began. What the log has, its
    /// transaction has taken from the sessions too.
    pub(super) async fn has_ended(&self, user: &str, sid: Option<&str>, began_ms: u64) -> Result<bool, SessionFailure> {
        let (user, sid) = (user.to_owned(), sid.map(str::to_owned));
        let read = self.embedded.read(move |db| {
            if let Some(sid) = sid
                && is_revoked(db, &sid)?
            {
                return Ok(true);
            }
            db.prepare_cached("SELECT 1 FROM revocations WHERE kind = 'user' AND id = ?1 AND at_ms >= ?2")?
                .exists((user, signed(began_ms)))
        });
        read.await.map_err(|error| told(&error))
    }

    pub(super) async fn end_all(&self, user: &str, by: &str) -> Result<(), SessionFailure> {
        let (log, now_ms) = (self.appending(by), self.now_ms());
        let user = user.to_owned();
        self.change(move |db| {
            // Whatever this machine's clock says now, sessions that are there began before.
            let latest = sessions_of(db, &user)?.iter().map(|session| session.created_ms).max();
            log.append(db, Kind::User, &user, now_ms.max(latest.unwrap_or(0)))?;
            db.prepare_cached("DELETE FROM sessions WHERE user_id = ?1")?.execute([&user])?;
            Ok(())
        })
        .await
    }

    pub(super) async fn end_left(&self, user: &str, by: &str) -> Result<(), SessionFailure> {
        let owned = user.to_owned();
        let sessions = self.embedded.read(move |db| sessions_of(db, &owned)).await.map_err(|error| told(&error))?;
        if sessions.is_empty() { Ok(()) } else { self.end_all(user, by).await }
    }

    pub(super) async fn append(&self, kind: Kind, id: &str, by: &str) -> Result<(), SessionFailure> {
        let (log, now_ms, id) = (self.appending(by), self.now_ms(), id.to_owned());
        self.change(move |db| log.append(db, kind, &id, now_ms)).await
    }

    pub(super) async fn list(&self, user: &str, rules: SessionRules) -> Result<Vec<Session>, SessionFailure> {
        let (user, now_ms) = (user.to_owned(), self.now_ms());
        let mut sessions = self.embedded.read(move |db| sessions_of(db, &user)).await.map_err(|error| told(&error))?;
        sessions.retain(|session| !session.is_over(now_ms, &rules));
        Ok(sessions)
    }

    /// The entries after this one.
    pub(super) async fn read_log(&self, after: i64) -> Result<LogPage, SessionFailure> {
        let read = self.embedded.read(move |db| {
            let mut rows = db.prepare_cached(
                "SELECT seq, kind, id, at_ms, by FROM revocations WHERE seq > ?1 ORDER BY seq LIMIT ?2",
            )?;
            let rows = rows.query_map((after, PAGE), read_entry)?.collect::<Result<Vec<_>, _>>()?;
            let last = db
                .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'revocations'")?
                .query_row([], |row| row.get(0))
                .optional()?;
            Ok(LogPage {
                next: rows.last().filter(|_| rows.len() == usize::from(PAGE)).map(|(seq, _)| *seq),
                entries: rows.into_iter().filter_map(|(_, entry)| entry).collect(),
                last: last.unwrap_or(0),
            })
        });
        read.await.map_err(|error| told(&error))
    }

    /// See [`Embedded::fingerprint`].
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        self.embedded.fingerprint()
    }

    /// Waits until this process appends to the log.
    pub(super) async fn appended(&self) {
        self.appended.notified().await;
    }

    fn appending(&self, by: &str) -> Appending {
        let over_ms = signed(self.now_ms()).saturating_sub(self.kept_ms.get());
        Appending { by: by.to_owned(), over_ms }
    }

    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, SessionFailure> {
        let done = self.embedded.write(change).await;
        self.appended.notify_one();
        done.map_err(|error| told(&error))
    }
}

/// What an entry of the log needs besides its subject.
struct Appending {
    by: String,
    /// Entries from before this do not matter any more, whatever the new one's time is.
    over_ms: i64,
}

impl Appending {
    fn append(&self, db: &Connection, kind: Kind, id: &str, at_ms: u64) -> rusqlite::Result<()> {
        let at_ms = signed(at_ms);
        db.prepare_cached("INSERT INTO revocations (kind, id, at_ms, by) VALUES (?1, ?2, ?3, ?4)")?.execute((
            kind.word(),
            id,
            at_ms,
            &self.by,
        ))?;
        db.prepare_cached(
            "DELETE FROM revocations WHERE seq IN
             (SELECT seq FROM revocations WHERE at_ms < ?1 ORDER BY at_ms LIMIT ?2)",
        )?
        .execute((self.over_ms, CLEARED_MAX))?;
        Ok(())
    }
}

fn clear_away(db: &Connection, now_ms: u64, rules: &SessionRules) -> rusqlite::Result<()> {
    let over = signed(now_ms.saturating_sub(rules.lifetime_ms));
    let mut delete = db.prepare_cached(
        "DELETE FROM sessions WHERE sid IN (SELECT sid FROM sessions WHERE created_ms <= ?1 LIMIT ?2)",
    )?;
    delete.execute((over, CLEARED_MAX))?;
    Ok(())
}

fn is_revoked(db: &Connection, sid: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM revocations WHERE kind = 'session' AND id = ?1")?.exists([sid])
}

fn sessions_of(db: &Connection, user: &str) -> rusqlite::Result<Vec<Session>> {
    db.prepare_cached("SELECT * FROM sessions WHERE user_id = ?1")?.query_map([user], read_session)?.collect()
}

fn read_session(row: &Row<'_>) -> rusqlite::Result<Session> {
    Ok(Session {
        sid: row.get("sid")?,
        created_ms: unsigned(row.get("created_ms")?),
        last_seen_ms: unsigned(row.get("last_seen_ms")?),
        generation: unsigned(row.get("generation")?),
        rotated_ms: unsigned(row.get("rotated_ms")?),
        user_agent: row.get("user_agent")?,
        address: row.get("address")?,
    })
}

/// An entry's number, and the entry unless it is of a kind that a newer version writes.
fn read_entry(row: &Row<'_>) -> rusqlite::Result<(i64, Option<Revocation>)> {
    let [kind, id, by]: [String; 3] = [row.get("kind")?, row.get("id")?, row.get("by")?];
    let at_ms = unsigned(row.get("at_ms")?);
    let entry = Kind::from_word(&kind).map(|kind| Revocation { kind, id: id.into(), at_ms, by: by.into() });
    Ok((row.get("seq")?, entry))
}

fn told(error: &embedded::EmbeddedFailure) -> SessionFailure {
    match error {
        embedded::EmbeddedFailure::Busy => SessionFailure::Busy,
        // Why is told once by the store itself.
        embedded::EmbeddedFailure::Away(..) | embedded::EmbeddedFailure::Slow => SessionFailure::Away,
        embedded::EmbeddedFailure::Query(_) | embedded::EmbeddedFailure::Panicked => {
            complain!(error: %error, "the embedded store of sessions failed");
            SessionFailure::Away
        }
    }
}

/// SQLite's numbers have a sign; times and generations have none and are far from its end.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

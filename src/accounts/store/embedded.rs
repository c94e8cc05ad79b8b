//! Users in the embedded store.

use rusqlite::{OptionalExtension as _, Row};

use super::{NewUser, StoreFailure, UserChange};
use crate::accounts::password::StoredHash;
use crate::accounts::user::User;
use crate::embedded::{self, Component, Embedded};
use crate::shard::clock;
use crate::shard::complaints::complain;

/// Its table. Times are Unix milliseconds; permissions are a JSON list.
pub const COMPONENT: Component = Component {
    name: "users",
    steps: &["CREATE TABLE users (
            id TEXT PRIMARY KEY,
            email TEXT NOT NULL UNIQUE,
            role TEXT NOT NULL,
            permissions TEXT NOT NULL DEFAULT '[]',
            password_hash TEXT,
            disabled INTEGER NOT NULL DEFAULT 0,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL
        ) STRICT"],
};

const COLUMNS: &str = "id, email, role, permissions, password_hash, disabled, created_at, updated_at";

impl From<embedded::EmbeddedFailure> for StoreFailure {
    fn from(failure: embedded::EmbeddedFailure) -> Self {
        match failure {
            embedded::EmbeddedFailure::Busy => Self::Busy,
            embedded::EmbeddedFailure::Slow => Self::Away("timeout"),
            embedded::EmbeddedFailure::Away(class, _) => Self::Away(class.word()),
            _ if failure.is_conflict() => Self::Taken,
            embedded::EmbeddedFailure::Query(error) => {
                complain!(error: %error, "the embedded store refused a statement about users");
                Self::Away("statement")
            }
            embedded::EmbeddedFailure::Panicked => Self::Away("panic"),
        }
    }
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    let permissions: String = row.get(3)?;
    Ok(User {
        id: row.get(0)?,
        email: row.get(1)?,
        role: row.get(2)?,
        // Somebody wrote it by hand, and nothing is permitted by it.
        permissions: serde_json::from_str(&permissions).unwrap_or_default(),
        password: row.get::<_, Option<String>>(4)?.map(StoredHash::new),
        is_disabled: row.get(5)?,
        created_ms: row.get::<_, i64>(6)?.try_into().unwrap_or(0),
        updated_ms: row.get::<_, i64>(7)?.try_into().unwrap_or(0),
    })
}

fn now_ms() -> i64 {
    i64::try_from(clock::unix_now().as_millis()).unwrap_or(i64::MAX)
}

async fn find(store: &Embedded, column: &'static str, value: &str) -> Result<Option<User>, StoreFailure> {
    let value = value.to_owned();
    let query = move |connection: &rusqlite::Connection| {
        let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM users WHERE {column} = ?1"))?;
        statement.query_row([value], user).optional()
    };
    Ok(store.read(query).await?)
}

pub(super) async fn by_email(store: &Embedded, email: &str) -> Result<Option<User>, StoreFailure> {
    find(store, "email", email).await
}

pub(super) async fn by_id(store: &Embedded, id: &str) -> Result<Option<User>, StoreFailure> {
    find(store, "id", id).await
}

pub(super) async fn list(store: &Embedded, after: &str, limit: u32) -> Result<Vec<User>, StoreFailure> {
    let after = after.to_owned();
    let query = move |connection: &rusqlite::Connection| {
        let sql = format!("SELECT {COLUMNS} FROM users WHERE email > ?1 ORDER BY email LIMIT ?2");
        connection.prepare_cached(&sql)?.query_map((after, limit), user)?.collect()
    };
    Ok(store.read(query).await?)
}

fn json(permissions: &[String]) -> String {
    serde_json::to_string(permissions).expect("texts are JSON")
}

pub(super) async fn add(store: &Embedded, new: NewUser) -> Result<(), StoreFailure> {
    let insert = move |connection: &rusqlite::Connection| {
        let NewUser { id, email, role, permissions, password } = &new;
        let sql = "INSERT INTO users (id, email, role, permissions, password_hash, created_at, updated_at)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)";
        connection.execute(sql, (id, email, role, json(permissions), password.as_str(), now_ms())).map(|_| ())
    };
    Ok(store.write(insert).await?)
}

pub(super) async fn change(store: &Embedded, id: &str, change: UserChange) -> Result<bool, StoreFailure> {
    let id = id.to_owned();
    let update = move |connection: &rusqlite::Connection| {
        let now = now_ms();
        let changed = match &change {
            UserChange::Password(new) => connection.execute(&touching("password_hash = ?3"), (&id, now, new.as_str())),
            UserChange::Role { role, permissions } => {
                connection.execute(&touching("role = ?3, permissions = ?4"), (&id, now, role, json(permissions)))
            }
            UserChange::Disabled(is_disabled) => {
                connection.execute(&touching("disabled = ?3"), (&id, now, is_disabled))
            }
            // The password is the same, so nothing that others look at has changed.
            UserChange::Rehash { old, new } => connection.execute(
                "UPDATE users SET password_hash = ?1 WHERE id = ?2 AND password_hash = ?3",
                (new.as_str(), &id, old.as_str()),
            ),
        };
        changed.map(|changed| changed > 0)
    };
    Ok(store.write(update).await?)
}

/// A change that shows in `updated_at`, which never goes back.
fn touching(set: &str) -> String {
    format!("UPDATE users SET {set}, updated_at = max(?2, updated_at + 1) WHERE id = ?1")
}

pub(super) async fn probe(store: &Embedded) -> Result<(), StoreFailure> {
    Ok(store.probe_if_due().await?)
}

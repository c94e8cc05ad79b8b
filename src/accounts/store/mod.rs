//! Where users are kept: in the embedded store, or in PostgreSQL. One interface, one behaviour: the same tests
//! run against both.

mod embedded;
mod postgres;

pub use embedded::COMPONENT;
pub use postgres::{Postgres, StartError};

use std::time::Duration;

use crate::embedded::Embedded;

use super::password::StoredHash;
use super::user::User;

/// The users. Lives on the bridge, or in a command.
#[derive(Debug)]
pub enum UserStore {
    /// In the file in the data directory.
    Embedded(Embedded),
    /// In a table of a PostgreSQL server, which other services read as well.
    Postgres(Box<Postgres>),
}

/// Why a store did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFailure {
    /// It cannot be used now; the log says why: `503 dependency_unavailable`. A change may have been made.
    #[error("the store of users is away ({0})")]
    Away(&'static str),
    /// It has as much to do as it may: `503 overloaded`.
    #[error("the store of users has as much to do as it may")]
    Busy,
    /// There is a user with this id or this e-mail address already.
    #[error("there is a user with this id or this e-mail address already")]
    Taken,
}

/// How the latest use of a store went: for health reports. Moves between threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreHealth {
    /// `sqlite` or `postgres`.
    pub kind: &'static str,
    /// Why it is away, as a class; `None` while it is up.
    pub away: Option<&'static str>,
    /// How long that took.
    pub latency: Duration,
    /// When that was: the time since 1970.
    pub checked_at: Duration,
}

/// A user to be added; the rest is the store's.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// Fixed for ever.
    pub id: String,
    /// In normal form.
    pub email: String,
    /// One of `[roles]`.
    pub role: String,
    /// Besides those of the role.
    pub permissions: Vec<String>,
    /// The password's hash.
    pub password: StoredHash,
}

/// What is changed about a user.
#[derive(Clone, Debug)]
pub enum UserChange {
    /// Another password.
    Password(StoredHash),
    /// The same password, hashed anew: made only if the old hash still stands there.
    Rehash {
        /// What stood there.
        old: StoredHash,
        /// What is to stand there.
        new: StoredHash,
    },
    /// Another role, and other permissions besides it.
    Role {
        /// One of `[roles]`.
        role: String,
        /// Besides those of the role.
        permissions: Vec<String>,
    },
    /// Locked out, or let in again.
    Disabled(bool),
}

/// Calls the same method of whichever store it is.
macro_rules! either {
    ($store:expr, $kept:ident => $embedded:expr, $postgres:expr) => {
        match $store {
            UserStore::Embedded($kept) => $embedded.await,
            UserStore::Postgres($kept) => $postgres.await,
        }
    };
}

impl UserStore {
    /// Makes the tables, or brings them up to date. The embedded store does so by itself.
    pub async fn migrate(&self) -> Result<(), StoreFailure> {
        either!(self, store => embedded::probe(store), store.migrate())
    }

    /// The user of this e-mail address, in normal form.
    pub async fn by_email(&self, email: &str) -> Result<Option<User>, StoreFailure> {
        either!(self, store => embedded::by_email(store, email), store.by_email(email))
    }

    /// The user of this id.
    pub async fn by_id(&self, id: &str) -> Result<Option<User>, StoreFailure> {
        either!(self, store => embedded::by_id(store, id), store.by_id(id))
    }

    /// Up to `limit` users in the order of their e-mail addresses, from the one after `after` on.
    pub async fn list(&self, after: &str, limit: u32) -> Result<Vec<User>, StoreFailure> {
        either!(self, store => embedded::list(store, after, limit), store.list(after, limit))
    }

    /// Adds a user.
    pub async fn add(&self, user: NewUser) -> Result<(), StoreFailure> {
        either!(self, store => embedded::add(store, user), store.add(&user))
    }

    /// Changes a user; says whether there is one (and, for a rehash, whether the old hash still stood there).
    pub async fn change(&self, id: &str, change: UserChange) -> Result<bool, StoreFailure> {
        either!(self, store => embedded::change(store, id, change), store.change(id, &change))
    }

    /// Uses the store a little, so that [`UserStore::health`] is about now.
    pub async fn probe(&self) -> Result<(), StoreFailure> {
        either!(self, store => embedded::probe(store), store.probe())
    }

    /// How the latest use went.
    pub fn health(&self) -> StoreHealth {
        match self {
            Self::Embedded(store) => {
                let crate::embedded::Health { away, latency, checked_at } = store.health();
                StoreHealth { kind: "sqlite", away: away.map(crate::embedded::FileFault::word), latency, checked_at }
            }
            Self::Postgres(store) => store.health(),
        }
    }
}

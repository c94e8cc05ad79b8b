//! Users in PostgreSQL: a bounded pool of connections on the bridge.
//!
//! Each statement is one round trip without a name, so it also works through poolers that know no prepared statements.
//! A connection whose statement did not end in time is closed, not used again: whoever came next would wait behind it.

use std::cell::Cell;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{NewUser, StoreFailure, StoreHealth, UserChange};
use crate::accounts::password::StoredHash;
use crate::accounts::user::User;
use crate::certificates::read_authorities;
use crate::config::{Secret, postgres_url};
use crate::shard::complaints::complain;
use crate::shard::{Instant, Local, clock};
use crate::telemetry::dependency::{Condition, ConditionChange, LoggedCondition};

/// Requests that wait for a connection or an answer; more are refused.
const UNDER_WAY_MAX: usize = 1024;

/// So that two commands do not migrate at once. Any number that nobody else uses.
const MIGRATION_LOCK: i64 = 0x5348_4152_4447_4154;

/// The steps to the tables, as in [`crate::embedded::Component`]. A table `users` that is there already is completed.
const STEPS: &[&str] = &["
    CREATE TABLE IF NOT EXISTS users (id text PRIMARY KEY, email text NOT NULL);
    ALTER TABLE users ADD COLUMN IF NOT EXISTS role text NOT NULL DEFAULT 'user';
    ALTER TABLE users ADD COLUMN IF NOT EXISTS permissions text[] NOT NULL DEFAULT '{}';
    ALTER TABLE users ADD COLUMN IF NOT EXISTS password_hash text;
    ALTER TABLE users ADD COLUMN IF NOT EXISTS disabled boolean NOT NULL DEFAULT false;
    ALTER TABLE users ADD COLUMN IF NOT EXISTS created_at timestamptz NOT NULL DEFAULT now();
    ALTER TABLE users ADD COLUMN IF NOT EXISTS updated_at timestamptz NOT NULL DEFAULT now();
    CREATE UNIQUE INDEX IF NOT EXISTS users_email_lower ON users (lower(email))"];

const COLUMNS: &str = "id, email, role, permissions, password_hash, disabled,
    (extract(epoch from created_at) * 1000)::bigint, (extract(epoch from updated_at) * 1000)::bigint";

/// Why there can be no connection, ever.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The URL is none.
    #[error("accounts.postgres_url is no URL of PostgreSQL")]
    Url,
    /// The certificates cannot be read.
    #[error("accounts.postgres_ca_file is {0}")]
    CaFile(String),
    /// TLS cannot be set up.
    #[error("TLS to PostgreSQL cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// The pool. Lives on the bridge.
pub struct Postgres {
    pool: Pool,
    patience: Duration,
    under_way: Semaphore,
    health: Local<StoreHealth>,
    told: Local<LoggedCondition>,
    /// When it last went or came back. What was asked before that says nothing of how it is now.
    changed_at: Cell<Instant>,
    /// Where it is, without a password.
    server: String,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("server", &self.server).finish_non_exhaustive()
    }
}

type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// What went wrong with a statement.
enum StatementError {
    Sql(tokio_postgres::Error),
    Pool(PoolError),
    Slow,
}

impl Postgres {
    /// Prepares the pool; it connects when it is first used. To be made and used inside one tokio runtime.
    pub fn new(
        url: &Secret,
        ca_file: Option<&Path>,
        connections_max: usize,
        patience: Duration,
    ) -> Result<Self, StartError> {
        let mut config = postgres_url(url.reveal()).map_err(|_| StartError::Url)?.connect;
        config.connect_timeout(patience);
        config.keepalives_idle(Duration::from_secs(30));
        if config.get_application_name().is_none() {
            config.application_name("shardgate");
        }
        let server = server_of(&config);
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = if config.get_ssl_mode() == SslMode::Disable {
            Manager::from_config(config, NoTls, recycling)
        } else {
            Manager::from_config(config, MakeRustlsConnect::new(tls(ca_file)?), recycling)
        };
        let pool = Pool::builder(manager).max_size(connections_max).runtime(Runtime::Tokio1);
        let timeouts = pool.wait_timeout(Some(patience)).create_timeout(Some(patience)).recycle_timeout(Some(patience));
        let health =
            StoreHealth { kind: "postgres", away: None, latency: Duration::ZERO, checked_at: clock::unix_now() };
        Ok(Self {
            pool: timeouts.build().expect("a runtime is given for the timeouts"),
            patience,
            under_way: Semaphore::new(UNDER_WAY_MAX),
            health: Local::new(health),
            told: Local::default(),
            changed_at: Cell::new(Instant::START),
            server,
        })
    }

    pub(super) fn health(&self) -> StoreHealth {
        self.health.with(|health| health.clone())
    }

    pub(super) async fn by_email(&self, email: &str) -> Result<Option<User>, StoreFailure> {
        // Others may have written the address as they liked.
        self.one(&format!("SELECT {COLUMNS} FROM users WHERE lower(email) = $1"), &[(&email, Type::TEXT)]).await
    }

    pub(super) async fn by_id(&self, id: &str) -> Result<Option<User>, StoreFailure> {
        self.one(&format!("SELECT {COLUMNS} FROM users WHERE id = $1"), &[(&id, Type::TEXT)]).await
    }

    pub(super) async fn list(&self, after: &str, limit: u32) -> Result<Vec<User>, StoreFailure> {
        // Byte order, whatever the server's locale is, so that the next page begins where this one ends.
        let sql =
            format!("SELECT {COLUMNS} FROM users WHERE email COLLATE \"C\" > $1 ORDER BY email COLLATE \"C\" LIMIT $2");
        self.query(&sql, &[(&after, Type::TEXT), (&i64::from(limit), Type::INT8)]).await?.iter().map(user).collect()
    }

    pub(super) async fn add(&self, new: &NewUser) -> Result<(), StoreFailure> {
        let NewUser { id, email, role, permissions, password } = new;
        let sql = "INSERT INTO users (id, email, role, permissions, password_hash) VALUES ($1, $2, $3, $4, $5)";
        let parameters: [Parameter<'_>; 5] = [
            (id, Type::TEXT),
            (email, Type::TEXT),
            (role, Type::TEXT),
            (permissions, Type::TEXT_ARRAY),
            (&password.as_str(), Type::TEXT),
        ];
        self.query(sql, &parameters).await.map(|_| ())
    }

    pub(super) async fn change(&self, id: &str, change: &UserChange) -> Result<bool, StoreFailure> {
        let touching = |set: &str| format!("UPDATE users SET {set}, updated_at = now() WHERE id = $1 RETURNING id");
        let id: Parameter<'_> = (&id, Type::TEXT);
        let rows = match change {
            UserChange::Password(new) => {
                self.query(&touching("password_hash = $2"), &[id, (&new.as_str(), Type::TEXT)]).await?
            }
            UserChange::Role { role, permissions } => {
                let parameters = [id, (role, Type::TEXT), (permissions, Type::TEXT_ARRAY)];
                self.query(&touching("role = $2, permissions = $3"), &parameters).await?
            }
            UserChange::Disabled(is_disabled) => {
                self.query(&touching("disabled = $2"), &[id, (is_disabled, Type::BOOL)]).await?
            }
            UserChange::Rehash { old, new } => {
                let sql = "UPDATE users SET password_hash = $2 WHERE id = $1 AND password_hash = $3 RETURNING id";
                self.query(sql, &[id, (&new.as_str(), Type::TEXT), (&old.as_str(), Type::TEXT)]).await?
            }
        };
        Ok(!rows.is_empty())
    }

    pub(super) async fn probe(&self) -> Result<(), StoreFailure> {
        self.query("SELECT role, permissions, password_hash, disabled FROM users LIMIT 0", &[]).await.map(|_| ())
    }

    /// Makes the steps that were not made yet, all or none of them.
    pub(super) async fn migrate(&self) -> Result<(), StoreFailure> {
        let made = async {
            let mut connection = self.pool.get().await.map_err(StatementError::Pool)?;
            let transaction = connection.transaction().await.map_err(StatementError::Sql)?;
            let lock = "SELECT pg_advisory_xact_lock($1)";
            transaction.query_typed(lock, &[(&MIGRATION_LOCK, Type::INT8)]).await.map_err(StatementError::Sql)?;
            transaction
                .batch_execute("CREATE TABLE IF NOT EXISTS shardgate_schema (version bigint NOT NULL)")
                .await
                .map_err(StatementError::Sql)?;
            let rows = transaction.query_typed("SELECT max(version) FROM shardgate_schema", &[]).await;
            let rows = rows.map_err(StatementError::Sql)?;
            let version = rows.first().and_then(|row| row.get::<_, Option<i64>>(0)).unwrap_or(0);
            for step in STEPS.iter().skip(usize::try_from(version).unwrap_or(0)) {
                transaction.batch_execute(step).await.map_err(StatementError::Sql)?;
            }
            let steps = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
            if version < steps {
                let sql = "INSERT INTO shardgate_schema (version) VALUES ($1)";
                transaction.query_typed(sql, &[(&steps, Type::INT8)]).await.map_err(StatementError::Sql)?;
            }
            transaction.commit().await.map_err(StatementError::Sql)
        };
        let began = clock::now();
        // Others may migrate, and a large table takes its time; so this waits longer than a request would.
        let made = timeout(Duration::from_mins(5), made).await.unwrap_or(Err(StatementError::Slow));
        self.note(began, made)
    }

    async fn one(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Option<User>, StoreFailure> {
        self.query(sql, parameters).await?.first().map(user).transpose()
    }

    async fn query(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, StoreFailure> {
        let Ok(_permit) = self.under_way.try_acquire() else { return Err(StoreFailure::Busy) };
        let began = clock::now();
        let mut outcome = self.try_query(sql, parameters).await;
        // A server that was restarted has closed connections that looked good. What was sent on them was not done, and
        // would do no harm if it were done twice.
        for _ in 0..self.pool.status().max_size {
            match &outcome {
                Err(StatementError::Sql(error)) if is_broken(error) => outcome = self.try_query(sql, parameters).await,
                _ => break,
            }
        }
        self.note(began, outcome)
    }

    async fn try_query(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, StatementError> {
        let connection = self.pool.get().await.map_err(StatementError::Pool)?;
        let outcome = match timeout(self.patience, connection.query_typed(sql, parameters)).await {
            Ok(outcome) => outcome.map_err(StatementError::Sql),
            Err(_) => Err(StatementError::Slow),
        };
        if matches!(&outcome, Err(StatementError::Slow))
            || matches!(&outcome, Err(StatementError::Sql(error)) if is_broken(error))
        {
            drop(Object::take(connection));
        }
        outcome
    }

    /// Keeps how it went, and tells the log when that changed.
    fn note<T>(&self, began: Instant, outcome: Result<T, StatementError>) -> Result<T, StoreFailure> {
        let (class, cause) = match &outcome {
            Ok(_) => (None, String::new()),
            Err(trouble) => match classify(trouble) {
                // The server is well: it has refused this one.
                StoreFailure::Away(class) => (Some(class), trouble.told()),
                _ => (None, String::new()),
            },
        };
        if began < self.changed_at.get() {
            return outcome.map_err(|trouble| classify(&trouble));
        }
        let latency = clock::now().since(began);
        let health = StoreHealth { kind: "postgres", away: class, latency, checked_at: clock::unix_now() };
        self.health.with(|latest| *latest = health);
        let news = self.told.with(|told| told.change(class.map_or(Condition::Up, Condition::Away)));
        match news {
            Some(ConditionChange::Gone(class) | ConditionChange::Refuses(class)) => tracing::error!(
                server = %self.server,
                cause,
                "PostgreSQL is away ({class}): {}; until then logins and renewals are refused with 503",
                advice(class)
            ),
            Some(ConditionChange::Back) => tracing::info!(server = %self.server, "PostgreSQL is back"),
            Some(ConditionChange::There) | None => {}
        }
        if news.is_some() {
            self.changed_at.set(clock::now());
        }
        outcome.map_err(|trouble| classify(&trouble))
    }
}

impl StatementError {
    /// The chain of causes. Nothing of a statement's values is in the message of those that mean "away".
    fn told(&self) -> String {
        let error: &dyn std::error::Error = match self {
            Self::Slow => return "no answer in time".to_owned(),
            Self::Sql(error) => error,
            Self::Pool(error) => error,
        };
        let mut told = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            told = format!("{told}: {cause}");
            next = cause.source();
        }
        told
    }
}

/// Whether the connection is gone, rather than the statement refused.
fn is_broken(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN].contains(code),
        None => error.is_closed() || error.source().is_some_and(<dyn std::error::Error>::is::<io::Error>),
    }
}

fn classify(trouble: &StatementError) -> StoreFailure {
    let error = match trouble {
        StatementError::Slow | StatementError::Pool(PoolError::Timeout(_)) => return StoreFailure::Away("timeout"),
        StatementError::Sql(error) | StatementError::Pool(PoolError::Backend(error)) => error,
        StatementError::Pool(_) => return StoreFailure::Away("refused"),
    };
    let Some(code) = error.code() else {
        let io = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        return StoreFailure::Away(match io.map(io::Error::kind) {
            Some(io::ErrorKind::TimedOut) => "timeout",
            // What the TLS library says comes as such an error.
            Some(io::ErrorKind::InvalidData | io::ErrorKind::Other) => "tls",
            _ if error.to_string().contains("TLS") => "tls",
            _ => "refused",
        });
    };
    match *code {
        SqlState::UNIQUE_VIOLATION => StoreFailure::Taken,
        SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN => StoreFailure::Away("not_migrated"),
        SqlState::INSUFFICIENT_PRIVILEGE => StoreFailure::Away("not_permitted"),
        SqlState::READ_ONLY_SQL_TRANSACTION => StoreFailure::Away("read_only"),
        SqlState::DISK_FULL => StoreFailure::Away("disk_full"),
        SqlState::TOO_MANY_CONNECTIONS => StoreFailure::Away("too_many_connections"),
        SqlState::INVALID_CATALOG_NAME => StoreFailure::Away("no_such_database"),
        _ if code.code().starts_with("28") => StoreFailure::Away("authentication"),
        // Starting up, shutting down, recovering.
        _ if code.code().starts_with("57P") || code.code().starts_with("08") => StoreFailure::Away("refused"),
        _ => StoreFailure::Away("statement"),
    }
}

/// What an operator does about it.
fn advice(class: &str) -> &'static str {
    match class {
        "timeout" => "look at the server's load and locks and at the network, or raise accounts.postgres_timeout",
        "tls" => "check the server's certificate, accounts.postgres_ca_file, and sslmode in accounts.postgres_url",
        "not_migrated" => "run `shardgate migrate` with this configuration",
        "not_permitted" => {
            "grant this user SELECT and UPDATE on the table users (and INSERT, for `shardgate user add`)"
        }
        "read_only" => "the server is a standby: name the primary in accounts.postgres_url",
        "disk_full" => "make room on the server's disk",
        "too_many_connections" => "raise the server's max_connections, or lower accounts.postgres_connections_max",
        "no_such_database" => "create the database, or name another in accounts.postgres_url",
        "authentication" => "check user and password in accounts.postgres_url, and the server's pg_hba.conf",
        "statement" => "compare the table users with docs/accounts.md",
        _ => "start the server, or correct accounts.postgres_url",
    }
}

fn user(row: &Row) -> Result<User, StoreFailure> {
    let read = || -> Result<User, tokio_postgres::Error> {
        let ms = |index| Ok(row.try_get::<_, i64>(index)?.try_into().unwrap_or(0));
        Ok(User {
            id: row.try_get(0)?,
            email: row.try_get(1)?,
            role: row.try_get(2)?,
            permissions: row.try_get(3)?,
            password: row.try_get::<_, Option<String>>(4)?.map(StoredHash::new),
            is_disabled: row.try_get(5)?,
            created_ms: ms(6)?,
            updated_ms: ms(7)?,
        })
    };
    read().map_err(|error| {
        complain!(error: %error, "a row of the table users has other types than expected; docs/accounts.md tells them");
        StoreFailure::Away("statement")
    })
}

/// Where it is, for the log.
fn server_of(config: &tokio_postgres::Config) -> String {
    use tokio_postgres::config::Host;
    let host = |host: &Host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    };
    let hosts: Vec<String> = config.get_hosts().iter().map(host).collect();
    let ports: Vec<String> = config.get_ports().iter().map(u16::to_string).collect();
    format!("{}:{}/{}", hosts.join(","), ports.join(","), config.get_dbname().unwrap_or_default())
}

/// The server's certificate is always checked; `sslmode=prefer` goes on without TLS where the server has none.
fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, StartError> {
    let roots = if let Some(file) = ca_file {
        read_authorities(file).map_err(StartError::CaFile)?
    } else {
        // Those that cannot be read are left out; a server that needs one of them is then refused, and told so.
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    };
    let provider = crate::certificates::provider();
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

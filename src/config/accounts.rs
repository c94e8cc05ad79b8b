//! Accounts: where users are kept, and what a log-in may cost. Connecting and hashing are for `accounts`.

use super::raw::Node;
use super::read::{Fields, Report};
use super::{Secret, units};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Where users are kept, and what a log-in may cost. All of it needs a new process.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accounts {
    /// Whether there are any: `/auth/*`, sessions and the log of revocations. Default true.
    pub enabled: bool,
    /// The PostgreSQL server that has the table `users`. None: the embedded store in [`super::Data::dir`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_url: Option<Secret>,
    /// The certificates that PostgreSQL's is checked against, as PEM. None: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_ca_file: Option<PathBuf>,
    /// Connections to PostgreSQL. Default 4. Process.
    pub postgres_connections_max: usize,
    /// How long connecting to PostgreSQL, and each statement, may take. Default 3 s. Each.
    #[serde(serialize_with = "units::duration")]
    pub postgres_timeout: Duration,
    /// Threads that hash passwords. `None` (written 0, the default): half of the cores. Process.
    #[serde(serialize_with = "units::zero_for_none")]
    pub password_threads: Option<usize>,
    /// Log-ins that wait for one of them; more are refused (503 `overloaded`). Default 64. Process.
    pub password_queue: usize,
    /// Memory of a password's hash. Default 19 MiB. Each.
    #[serde(serialize_with = "units::size_in_memory")]
    pub password_memory: usize,
    /// Passes over it. Default 2. Each.
    pub password_passes: u32,
    /// Failed log-ins in a row of one account from one address before each further one has to wait (429). Default 5.
    pub login_failures_max: u32,
}

/// Reads `[accounts]`.
pub(super) fn read_accounts(node: Option<&Node>, report: &mut Report) -> Accounts {
    let fields = Fields::of("accounts", "accounts".to_owned(), node, report);
    let accounts = Accounts {
        enabled: fields.take("enabled", report),
        postgres_url: fields.take_written("postgres_url", report),
        postgres_ca_file: fields.take_written("postgres_ca_file", report),
        postgres_connections_max: fields.take("postgres_connections_max", report),
        postgres_timeout: fields.take("postgres_timeout", report),
        password_threads: Some(fields.take("password_threads", report)).filter(|&threads| threads != 0),
        password_queue: fields.take("password_queue", report),
        password_memory: fields.take("password_memory", report),
        password_passes: fields.take("password_passes", report),
        login_failures_max: fields.take("login_failures_max", report),
    };
    let is_url = |url: &Secret| {
        let text = url.reveal();
        let scheme = text.starts_with("postgres://") || text.starts_with("postgresql://");
        // What the parser says may hold what it read, and with it a password.
        scheme && text.parse::<tokio_postgres::Config>().is_ok_and(|parsed| !parsed.get_hosts().is_empty())
    };
    if accounts.postgres_url.as_ref().is_some_and(|url| !is_url(url)) {
        let right = "write \"postgres://user:password@host:5432/database?sslmode=require\"; escape special characters of a password by percent signs";
        report.push(fields.place_of("postgres_url"), "accounts.postgres_url is no URL of PostgreSQL".to_owned(), right);
    }
    accounts
}

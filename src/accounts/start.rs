//! From a configuration to accounts: opens the stores, reads the keys, starts the pool. And what a reload changes.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::password::{Cost, HashError, Hasher, Scratch};
use super::shares::Shares;
use super::slowdown::Slowdown;
use super::store::{self, Postgres, StoreHealth, UserStore};
use super::{Accounts, Terms};
use crate::auth::Issuer;
use crate::auth::rbac::Roles;
use crate::bus::redis::{Address, Outage, Redis, Status};
use crate::config::{Config, SecretFile, SessionStore};
use crate::embedded::{Component, Embedded};
use crate::sessions::{self, Follower, Keyring, SessionRules, Sessions};
use crate::shard::offload::Offload;
use crate::shard::{Local, cores};
use crate::telemetry::dependency::{Databases, Dependency};

/// The tables of the embedded store.
static COMPONENTS: [Component; 2] = [store::COMPONENT, sessions::COMPONENT];

/// Accounts and addresses whose failed log-ins are remembered: a few megabytes, and more than the pool can check
/// passwords of in the time for which they are.
const SLOWED_MAX: usize = 1 << 16;

/// Where the key of refresh tokens stands that the gateway makes itself, in the data directory.
pub(super) const REFRESH_KEY_FILE: &str = "refresh-key";
const REFRESH_KEY_BYTES: usize = 32;

/// Why there are no accounts.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The embedded store's threads, or the pool's, cannot be started.
    #[error("a thread cannot be started")]
    Thread(#[source] io::Error),
    /// PostgreSQL as configured is impossible.
    #[error(transparent)]
    Postgres(#[from] store::StartError),
    /// The key of refresh tokens cannot be read or made.
    #[error("the key of refresh tokens in {} can be neither used nor made; let this user read and write data.dir", .0.display())]
    RefreshKey(PathBuf, #[source] io::Error),
    /// Redis as configured is impossible.
    #[error("redis")]
    Redis(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The cost of hashes is impossible.
    #[error(transparent)]
    Cost(#[from] HashError),
}

/// What is kept of users and sessions: as much of the accounts as a command needs.
#[derive(Debug)]
pub struct Stores {
    /// The users.
    pub users: UserStore,
    /// Their sessions, and the log of revocations.
    pub sessions: Sessions,
    /// Redis, where there is one.
    pub redis: Option<Redis>,
    /// The embedded store, where it is used.
    pub embedded: Option<Embedded>,
}

impl Stores {
    /// Opens the stores for a command, which makes no refresh tokens. To be called on the runtime that uses them.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        Self::with_keys(config, Keyring::new(&*random_key(), []))
    }

    fn with_keys(config: &Config, keys: Keyring) -> Result<Self, StartError> {
        let accounts = &config.accounts;
        let is_needed = accounts.postgres_url.is_none() || config.session_store() == SessionStore::Embedded;
        let embedded = is_needed.then(|| Embedded::start(&config.data.dir, &COMPONENTS));
        let embedded = embedded.transpose().map_err(StartError::Thread)?;
        let here = || embedded.clone().expect("it is opened for whoever needs it");
        let users = match &accounts.postgres_url {
            None => UserStore::Embedded(here()),
            Some(url) => {
                let (connections_max, patience) = (accounts.postgres_connections_max, accounts.postgres_timeout);
                let ca_file = accounts.postgres_ca();
                UserStore::Postgres(Box::new(Postgres::new(url, ca_file.as_deref(), connections_max, patience)?))
            }
        };
        let redis = if config.redis.is_given() {
            Some(Redis::start(Address::new(&config.redis).map_err(|error| StartError::Redis(error.into()))?))
        } else {
            None
        };
        let rules = SessionRules::from(&config.sessions);
        let kept = config.auth.revocations_kept();
        let sessions = match (config.session_store(), &redis) {
            (SessionStore::Redis, Some(redis)) => Sessions::redis(redis.clone(), keys, rules, kept),
            _ => Sessions::embedded(here(), keys, rules, kept),
        };
        Ok(Self { users, sessions, redis, embedded })
    }
}

impl Accounts {
    /// Opens the stores, reads the key of refresh tokens, and starts the pool. The issuer signs access tokens; with none
    /// nobody can log in. A store that is away is no error: it is asked for again with each request. To be called on the
    /// bridge.
    pub fn start(config: &Config, issuer: Option<Issuer>) -> Result<Self, StartError> {
        let terms = Terms::new(config, issuer);
        let kept = Stores::with_keys(config, keyring(config)?)?;
        let accounts = &config.accounts;
        let memory_kib = u32::try_from(accounts.password_memory >> 10).unwrap_or(u32::MAX);
        let hasher = Hasher::new(Cost { memory_kib, passes: accounts.password_passes })?;
        let threads = accounts.password_threads.unwrap_or_else(|| (cores::shard_count(None).count / 2).max(1));
        let pool = Offload::start("password", threads, accounts.password_queue, Scratch::new);
        Ok(Self {
            kept,
            pool: pool.map_err(StartError::Thread)?,
            shares: Shares::of(accounts.password_queue),
            hasher: Arc::new(hasher),
            slowdown: Local::new(Slowdown::new(accounts.login_failures_max, SLOWED_MAX)),
            ended: Notify::new(),
            terms: Local::new(terms),
        })
    }

    /// Goes on by this configuration: its roles, what signs, and how long tokens live.
    pub fn adopt(&self, config: &Config, issuer: Option<Issuer>) {
        let terms = Terms::new(config, issuer);
        self.terms.with(|current| *current = terms);
        self.kept.sessions.keep_revocations(config.auth.revocations_kept());
    }

    /// Reads the log of revocations.
    pub fn follow(&self) -> Follower {
        self.kept.sessions.follow()
    }

    /// Redis, where there is one: for others that share it.
    pub fn redis(&self) -> Option<&Redis> {
        self.kept.redis.as_ref()
    }

    /// Uses the stores a little, and says how they are.
    pub async fn databases(&self) -> Databases {
        let Stores { users, redis, embedded, .. } = &self.kept;
        // How that goes is what their health tells.
        let _ = users.probe().await;
        let mut databases = Databases { redis: redis.as_ref().map(of_redis), ..Databases::default() };
        match users {
            UserStore::Embedded(_) => databases.embedded = Some(of_users(users)),
            UserStore::Postgres(_) => databases.postgres = Some(of_users(users)),
        }
        if let (None, Some(embedded)) = (&databases.embedded, embedded) {
            let _ = embedded.probe_if_due().await;
            databases.embedded = Some(of_users(&UserStore::Embedded(embedded.clone())));
        }
        databases
    }
}

fn of_users(users: &UserStore) -> Dependency {
    let StoreHealth { away, latency, checked_at, .. } = users.health();
    Dependency { error: away, is_degraded: false, latency, checked_at }
}

fn of_redis(redis: &Redis) -> Dependency {
    let Status { away, refuses, latency, checked_at } = redis.status();
    Dependency { error: away.or(refuses).map(Outage::word), is_degraded: away.is_none(), latency, checked_at }
}

impl Terms {
    fn new(config: &Config, issuer: Option<Issuer>) -> Self {
        if issuer.is_none() {
            tracing::warn!("no key of auth.keys signs, so nobody can log in here; say sign = true for one of them");
        }
        let roles = config.roles.iter();
        let roles = Roles::new(
            roles.map(|(name, role)| (name.as_str(), role.permissions.iter().map(String::as_str).collect::<Vec<_>>())),
        );
        Self { issuer, roles: Arc::new(roles) }
    }
}

/// What refresh tokens are signed with: as configured, else a key that the data directory holds.
fn keyring(config: &Config) -> Result<Keyring, StartError> {
    let made = if config.sessions.secret.is_none() { refresh_key(&config.data.dir)? } else { Zeroizing::default() };
    Ok(Keyring::of(&config.sessions, &made))
}

fn random_key() -> Zeroizing<[u8; REFRESH_KEY_BYTES]> {
    let mut key = Zeroizing::new([0; REFRESH_KEY_BYTES]);
    SystemRandom::new().fill(&mut *key).expect("the kernel gives random bytes");
    key
}

/// Reads the key that the data directory holds, or makes it, for its owner alone.
fn refresh_key(directory: &Path) -> Result<Zeroizing<Vec<u8>>, StartError> {
    let path = directory.join(REFRESH_KEY_FILE);
    let read_or_make = || {
        if let Some(key) = read_key(&path)? {
            return Ok(key);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        // First whole under another name: whoever starts at the same time sees all of it or nothing.
        let draft = directory.join(format!("{REFRESH_KEY_FILE}.{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&*random_key())?;
        file.sync_all()?;
        let linked = fs::hard_link(&draft, &path);
        fs::remove_file(&draft)?;
        match linked {
            Ok(()) => tracing::info!(file = %path.display(), "made a key for refresh tokens; keep it with the data"),
            // Somebody was faster; it is theirs that counts.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        read_key(&path)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    read_or_make().map_err(|error| StartError::RefreshKey(path.clone(), error))
}

/// What is wrong with the key of refresh tokens that the data directory holds, if it is to be used and is there.
pub fn check_key(config: &Config) -> Option<String> {
    let path = config.data.dir.join(REFRESH_KEY_FILE);
    let is_used = config.accounts.enabled && config.sessions.secret.is_none();
    let wrong = is_used.then(|| read_key(&path).err()).flatten();
    wrong.map(|error| format!("{}: {error}", path.display()))
}

fn read_key(path: &Path) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let file = match SecretFile::read(path, 1024) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let key = file.secret(path).map_err(|wrong| io::Error::new(io::ErrorKind::PermissionDenied, wrong))?;
    if key.len() < REFRESH_KEY_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has fewer than 32 bytes"));
    }
    Ok(Some(key))
}

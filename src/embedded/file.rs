//! The file: where it is, how it is opened, and how its tables come up to date.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior};

use super::failure::{EmbeddedFailure, FileFault};

/// Its name in the data directory.
pub const FILE_NAME: &str = "shardgate.db";

/// How long a lane waits for another process's lock before it gives up.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(2);
/// The same, where the use before found it held: whoever queued behind that one has waited already.
pub(super) const LOCK_WAIT_AGAIN: Duration = Duration::from_millis(100);

/// The tables of one floor, as the steps that lead to them.
#[derive(Debug)]
pub struct Component {
    /// Under this name the file remembers which steps were made.
    pub name: &'static str,
    /// SQL, each step in turn, each once. A step that was released never changes: what is to be different is a new one.
    pub steps: &'static [&'static str],
}

/// What a lane opens.
#[derive(Debug)]
pub(super) struct LaneOptions {
    pub(super) path: Arc<Path>,
    pub(super) components: &'static [Component],
    /// Whether this lane writes: then it also creates and migrates.
    pub(super) writes: bool,
}

/// An open connection, and which file it is.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) connection: Connection,
    identity: (u64, u64),
}

impl Opened {
    /// Whether the path still leads to this file. SQLite would go on writing into one that was removed.
    pub(super) fn is_in_place(&self, place: &LaneOptions) -> bool {
        identity(&place.path).is_ok_and(|identity| identity == self.identity)
    }
}

impl LaneOptions {
    /// Opens the file. It is created only when `may_create`: a file that vanished under a running gateway is not
    /// silently replaced by an empty one. Another process's lock is waited for as long as `lock_wait`.
    pub(super) fn open(&self, may_create: bool, lock_wait: Duration) -> Result<Opened, EmbeddedFailure> {
        if self.writes && may_create {
            create(&self.path)?;
        }
        let identity = identity(&self.path).map_err(|error| from_system(&error))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(lock_wait)?;
        connection.set_prepared_statement_cache_capacity(64);
        if self.writes {
            connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
            // Spent tokens and revocations stay so after a power cut.
            connection.pragma_update(None, "synchronous", "full")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            migrate(&mut connection, self.components)?;
        } else {
            connection.pragma_update(None, "query_only", true)?;
        }
        Ok(Opened { connection, identity })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

/// What the file system says of the file and of its write-ahead log: as long as it says the same, nobody has changed them.
/// (To read either would be wrong: whoever closes them drops the locks that SQLite has on them, fcntl(2).)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([Option<FileStat>; 2]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStat {
    identity: (u64, u64),
    bytes: u64,
    changed_at: Duration,
}

/// So long after a change there may be more than shows: what is written becomes visible with the flush that follows, which
/// leaves no trace; and of two changes in one tick of the file system's clock the second may leave none.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

impl Fingerprint {
    /// As it is now; `None` where the file cannot be looked at.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let mark = |path: &Path| match fs::metadata(path) {
            Ok(found) => {
                let changed_at = found.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
                Some(Some(FileStat { identity: (found.dev(), found.ino()), bytes: found.len(), changed_at }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(None),
            Err(_) => None,
        };
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Some(Self([Some(mark(path)??), mark(log.as_ref())?]))
    }

    /// Whether all that was written before is visible, and what comes later will show, by a clock that said `unix_now` when
    /// it was taken.
    pub fn is_settled(&self, unix_now: Duration) -> bool {
        self.0.iter().flatten().all(|mark| mark.changed_at + SETTLED_AFTER < unix_now)
    }
}

/// Creates the file and its directory, for this user alone, where they are missing. SQLite gives the files beside it the
/// same mode.
fn create(path: &Path) -> Result<(), EmbeddedFailure> {
    let made = || {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    made().map_err(|error| from_system(&error))
}

fn from_system(error: &io::Error) -> EmbeddedFailure {
    let class = match error.kind() {
        io::ErrorKind::NotFound => FileFault::Missing,
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            FileFault::CannotOpen
        }
        io::ErrorKind::ReadOnlyFilesystem => FileFault::ReadOnly,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FileFault::DiskFull,
        _ => FileFault::Io,
    };
    EmbeddedFailure::Away(class, None)
}

/// Makes the steps that were not made yet, all or none of them.
fn migrate(connection: &mut Connection, components: &[Component]) -> Result<(), EmbeddedFailure> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT",
    )?;
    for Component { name, steps } in components {
        let made: Option<u32> = transaction
            .query_row("SELECT version FROM schema_versions WHERE component = ?1", [name], |row| row.get(0))
            .optional()?;
        let made = made.unwrap_or(0) as usize;
        let Some(missing) = steps.get(made..) else { return Err(EmbeddedFailure::Away(FileFault::Newer, None)) };
        for step in missing {
            transaction.execute_batch(step)?;
        }
        if !missing.is_empty() {
            transaction.execute(
                "INSERT INTO schema_versions (component, version) VALUES (?1, ?2)
                 ON CONFLICT (component) DO UPDATE SET version = excluded.version",
                (name, u32::try_from(steps.len()).expect("few steps")),
            )?;
            tracing::info!(
                component = name,
                from = made,
                to = steps.len(),
                "the embedded store's tables are up to date"
            );
        }
    }
    Ok(transaction.commit()?)
}

/// A change that changes nothing, and yet is written.
pub(super) fn touch(connection: &Connection) -> rusqlite::Result<()> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    connection.pragma_update(None, "user_version", version)
}

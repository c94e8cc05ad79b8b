//! What can go wrong with the embedded store, sorted by what is to be done; and how it is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::shard::clock;

/// Why a request to the store failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EmbeddedFailure {
    /// Too many requests wait already.
    #[error("the embedded store has as many requests waiting as it may")]
    Busy,
    /// No answer in time. A change may still be made.
    #[error("the embedded store did not answer in time")]
    Slow,
    /// The file cannot be used now.
    #[error("the embedded store is away: {}", .0.word())]
    Away(FileFault, #[source] Option<Arc<rusqlite::Error>>),
    /// SQLite refused this request: a constraint, a mistake in the statement.
    #[error("the embedded store refused the request")]
    Query(#[source] Arc<rusqlite::Error>),
    /// The request panicked, and was undone.
    #[error("a request to the embedded store panicked")]
    Panicked,
}

impl EmbeddedFailure {
    /// Whether it would be the same for any other request now.
    pub const fn is_away(&self) -> bool {
        matches!(self, Self::Away(..) | Self::Slow)
    }

    /// Whether another process holds the file.
    pub(super) const fn is_locked(&self) -> bool {
        matches!(self, Self::Away(FileFault::Locked, _))
    }

    /// Whether a value that must be unique was there already (or another constraint did not hold).
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Query(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation))
    }
}

impl From<rusqlite::Error> for EmbeddedFailure {
    fn from(error: rusqlite::Error) -> Self {
        let class = error.sqlite_error_code().and_then(FileFault::of);
        let error = Arc::new(error);
        class.map_or_else(|| Self::Query(Arc::clone(&error)), |class| Self::Away(class, Some(Arc::clone(&error))))
    }
}

/// Why the file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFault {
    /// It was there, and is not any more.
    Missing,
    /// It, or its directory, cannot be opened.
    CannotOpen,
    /// It may be read and not written.
    ReadOnly,
    /// The disk is full.
    DiskFull,
    /// Another process holds its lock.
    Locked,
    /// It is no database, or a damaged one.
    Corrupt,
    /// A newer version of the gateway has written it.
    Newer,
    /// Anything else that the system says.
    Io,
}

impl FileFault {
    fn of(code: ErrorCode) -> Option<Self> {
        Some(match code {
            ErrorCode::CannotOpen | ErrorCode::PermissionDenied => Self::CannotOpen,
            ErrorCode::ReadOnly => Self::ReadOnly,
            ErrorCode::DiskFull => Self::DiskFull,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed => Self::Locked,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Corrupt,
            ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory | ErrorCode::NoLargeFileSupport => Self::Io,
            _ => return None,
        })
    }

    /// As health reports show it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::CannotOpen => "cannot_open",
            Self::ReadOnly => "read_only",
            Self::DiskFull => "disk_full",
            Self::Locked => "locked",
            Self::Corrupt => "corrupt",
            Self::Newer => "newer_version",
            Self::Io => "io",
        }
    }

    /// What an operator does about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Missing => "put the file back; to begin an empty one, restart the gateway",
            Self::CannotOpen => "let this user read, write and search data.dir, or set data.dir to another directory",
            Self::ReadOnly => {
                "let this user write the file, those beside it and data.dir, on a file system mounted for writing"
            }
            Self::DiskFull => "make room on the file system of data.dir",
            Self::Locked => "end the process that holds the file (lsof tells), or wait for it",
            Self::Corrupt => "stop the gateway and restore the file, with those beside it, from a backup",
            Self::Newer => "run the version that wrote it, or a newer one",
            Self::Io => "look into the kernel's log for what the disk says",
        }
    }
}

/// How the latest use of the store went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Why it is away; `None` while it is up.
    pub away: Option<FileFault>,
    /// How long the latest use took, the flush included.
    pub latency: Duration,
    /// When that was: the time since 1970.
    pub checked_at: Duration,
}

impl Health {
    pub(super) fn now(away: Option<FileFault>, latency: Duration) -> Self {
        Self { away, latency, checked_at: clock::unix_now() }
    }

    /// Whether it went well.
    pub const fn is_up(&self) -> bool {
        self.away.is_none()
    }
}

/// Tells the log when the store goes away, for another reason than before, or comes back.
pub(super) fn log_change(path: &Path, before: Option<FileFault>, failure: Option<&EmbeddedFailure>) {
    let now = match failure {
        Some(EmbeddedFailure::Away(class, source)) => Some((*class, source)),
        _ => None,
    };
    match now {
        Some((class, source)) if before != Some(class) => tracing::error!(
            path = %path.display(),
            error = source.as_ref().map(tracing::field::display),
            "the embedded store is away ({}): {}; until then logins and sessions are refused with 503",
            class.word(),
            class.advice()
        ),
        None if before.is_some() => tracing::info!(path = %path.display(), "the embedded store is back"),
        _ => {}
    }
}

//! The embedded store: one SQLite file in the data directory, for whoever runs without PostgreSQL or Redis.
//!
//! All writes go down one lane (a thread with the only writing connection): what waits is put into one transaction and
//! becomes durable with one flush, and nobody is answered before that (decision 7). Reads have a lane of their own and
//! see what is committed. What is stored is for the floors above: each brings a [`Component`] with its tables and gives
//! closures that run on a lane.

mod failure;
mod file;
mod lane;
#[cfg(test)]
mod tests;

pub use failure::{EmbeddedFailure, FileFault, Health};
pub use file::{Component, FILE_NAME, Fingerprint};

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use crate::shard::clock;

use self::file::LaneOptions;
use self::lane::{Job, Lane, Task};

/// Requests that wait for a lane; more are refused as [`EmbeddedFailure::Busy`]. At 1 ms a flush and 256 requests in each, the
/// last one waits a few milliseconds.
const QUEUE: usize = 1024;

/// How long an answer may take. A disk that hangs must not hold requests forever; and the lane itself waits 2 s for
/// another process's lock.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How old the latest change may be before a probe makes one. A disk that is full or gone shows that late at rest; whoever
/// uses the store sees it at once, and while it is away every probe is made.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// A handle to the store; clones share it. Moves between threads. Its lanes end with the last handle.
#[derive(Clone, Debug)]
pub struct Embedded {
    path: Arc<Path>,
    writer: Handle,
    reader: Handle,
}

#[derive(Clone, Debug)]
struct Handle {
    jobs: SyncSender<Box<dyn Job>>,
    health: watch::Receiver<Health>,
}

impl Embedded {
    /// Opens (or creates) the file in the data directory, brings every component's tables up to date, and starts the
    /// lanes. It blocks while it does.
    ///
    /// A file that cannot be opened is no error here: [`Embedded::health`] tells, the log says what to do, requests are
    /// answered with [`EmbeddedFailure::Away`], and each of them tries again.
    pub fn start(directory: &Path, components: &'static [Component]) -> io::Result<Self> {
        let path: Arc<Path> = directory.join(FILE_NAME).into();
        let place = |writes| LaneOptions { path: Arc::clone(&path), components, writes };
        // First the writer: it creates what the reader opens.
        let writer = start_lane("store-writer", place(true))?;
        let reader = start_lane("store-reader", place(false))?;
        Ok(Self { path, writer, reader })
    }

    /// Runs a change and answers once it is durable; an error undoes this change and no other.
    ///
    /// Dropping the future does not take the change back: once queued it is made.
    pub async fn write<T, F>(&self, change: F) -> Result<T, EmbeddedFailure>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.writer.ask(change, true).await
    }

    /// Runs queries over one consistent state: what was committed when they began.
    ///
    /// All reads share one connection, so `PRAGMA data_version` tells whether anybody else (this process's writer
    /// included) changed something since it was last asked. Dropping the future before its turn leaves the query out.
    pub async fn read<T, F>(&self, query: F) -> Result<T, EmbeddedFailure>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.reader.ask(query, false).await
    }

    /// Makes a small change and a small query, so that [`Embedded::health`] is about now.
    pub async fn probe(&self) -> Result<(), EmbeddedFailure> {
        self.write(file::touch).await?;
        self.read(|connection| connection.query_row("SELECT count(*) FROM schema_versions", [], |_| Ok(()))).await
    }

    /// [`Embedded::probe`], unless the latest change is recent and went well: each one wakes the disk.
    pub async fn probe_if_due(&self) -> Result<(), EmbeddedFailure> {
        let is_recent = {
            let writer = self.writer.health.borrow();
            writer.is_up() && clock::unix_now().saturating_sub(writer.checked_at) < PROBE_INTERVAL
        };
        if is_recent { Ok(()) } else { self.probe().await }
    }

    /// How the latest use went.
    pub fn health(&self) -> Health {
        let (writer, reader) = (self.writer.health.borrow().clone(), self.reader.health.borrow().clone());
        if writer.is_up() && !reader.is_up() { reader } else { writer }
    }

    /// Tells whether the file may have changed since it was last asked, by whichever process, without a lane's work.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        Fingerprint::of(&self.path)
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }
}

impl Handle {
    async fn ask<T, F>(&self, work: F, whatever_happens: bool) -> Result<T, EmbeddedFailure>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let task = Task::new(work, reply, whatever_happens);
        self.jobs.try_send(Box::new(task)).map_err(|refused| match refused {
            TrySendError::Full(_) => EmbeddedFailure::Busy,
            TrySendError::Disconnected(_) => EmbeddedFailure::Panicked,
        })?;
        match tokio::time::timeout(ANSWER_MAX, answer).await {
            Ok(Ok(outcome)) => outcome,
            // The lane went away with the job in its hands.
            Ok(Err(_)) => Err(EmbeddedFailure::Panicked),
            Err(_) => Err(EmbeddedFailure::Slow),
        }
    }
}

fn start_lane(name: &str, place: LaneOptions) -> io::Result<Handle> {
    let (jobs, queue) = std::sync::mpsc::sync_channel(QUEUE);
    let (lane, health) = Lane::open(place);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || lane.run(&queue))?;
    Ok(Handle { jobs, health })
}

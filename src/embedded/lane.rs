//! A lane: one thread, one connection, one queue. The writer's lane makes one transaction of whatever waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::failure::{EmbeddedFailure, FileFault, Health, log_change};
use super::file::{LOCK_WAIT, LOCK_WAIT_AGAIN, LaneOptions, Opened};
use crate::shard::clock;

/// Requests in one transaction. More would only make the first of them wait longer for the same flush.
const BATCH: usize = 256;

/// A request as a lane sees it.
pub(super) trait Job: Send {
    /// Whether somebody still waits, or it is to be done whatever happens.
    fn is_wanted(&self) -> bool;
    /// Does the work and keeps what comes of it.
    fn run(&mut self, connection: &Connection) -> Result<(), EmbeddedFailure>;
    /// Answers with what came of it, or with what undid it.
    fn answer(self: Box<Self>, undone: Option<EmbeddedFailure>);
}

/// A closure on its way to a lane, and the answer on its way back.
pub(super) struct Task<T, F> {
    work: Option<F>,
    /// `None` before its turn.
    outcome: Option<Result<T, EmbeddedFailure>>,
    reply: oneshot::Sender<Result<T, EmbeddedFailure>>,
    whatever_happens: bool,
}

impl<T, F> Task<T, F> {
    pub(super) fn new(work: F, reply: oneshot::Sender<Result<T, EmbeddedFailure>>, whatever_happens: bool) -> Self {
        Self { work: Some(work), outcome: None, reply, whatever_happens }
    }
}

impl<T, F> Job for Task<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
{
    fn is_wanted(&self) -> bool {
        self.whatever_happens || !self.reply.is_closed()
    }

    fn run(&mut self, connection: &Connection) -> Result<(), EmbeddedFailure> {
        let Some(work) = self.work.take() else { return Ok(()) };
        // The savepoint around it undoes what a panic left half done.
        let outcome = catch_unwind(AssertUnwindSafe(|| work(connection)));
        let outcome = outcome.map_err(|_| EmbeddedFailure::Panicked).and_then(|outcome| Ok(outcome?));
        self.outcome.insert(outcome).as_ref().map(|_| ()).map_err(EmbeddedFailure::clone)
    }

    fn answer(self: Box<Self>, undone: Option<EmbeddedFailure>) {
        // Whoever asked may have left.
        let _ = self.reply.send(match (self.outcome, undone) {
            (Some(Err(failure)), _) | (_, Some(failure)) => Err(failure),
            (Some(Ok(done)), None) => Ok(done),
            (None, None) => Err(EmbeddedFailure::Panicked),
        });
    }
}

/// One lane. Lives on its thread.
pub(super) struct Lane {
    place: LaneOptions,
    opened: Option<Opened>,
    /// Whether the file was ever open: from then on it is not created any more.
    was_open: bool,
    health: watch::Sender<Health>,
}

impl Lane {
    /// Opens the file, or tells the log why not.
    pub(super) fn open(place: LaneOptions) -> (Self, watch::Receiver<Health>) {
        let (health, told) = watch::channel(Health::now(None, std::time::Duration::ZERO));
        let mut lane = Self { place, opened: None, was_open: false, health };
        let began = clock::now();
        let failure = lane.ensure_open().err();
        lane.tell(began, failure.as_ref());
        (lane, told)
    }

    /// Works until the last handle is gone.
    pub(super) fn run(mut self, queue: &Receiver<Box<dyn Job>>) {
        let writes = self.place.writes;
        while let Ok(first) = queue.recv() {
            let began = clock::now();
            let mut batch = vec![first];
            batch.extend(queue.try_iter().take(if writes { BATCH - 1 } else { 0 }));
            batch.retain(|job| job.is_wanted());
            if batch.is_empty() {
                continue;
            }
            let undone = self.ensure_open().and_then(|connection| transact(connection, writes, &mut batch)).err();
            if undone.as_ref().is_some_and(EmbeddedFailure::is_away) {
                // A fresh connection sees what was repaired. One that waited for a lock in vain is as good as new.
                let waited = undone.as_ref().is_some_and(EmbeddedFailure::is_locked);
                self.opened.take_if(|opened| !waited || !opened.connection.is_autocommit());
            }
            // First told, then answered: whoever was answered and looks at the health sees this use or a later one.
            self.tell(began, undone.as_ref());
            for job in batch {
                job.answer(undone.clone());
            }
        }
    }

    fn ensure_open(&mut self) -> Result<&Connection, EmbeddedFailure> {
        if self.opened.as_ref().is_some_and(|opened| !opened.is_in_place(&self.place)) {
            self.opened = None;
        }
        let is_locked = self.health.borrow().away == Some(FileFault::Locked);
        let lock_wait = if is_locked { LOCK_WAIT_AGAIN } else { LOCK_WAIT };
        let opened = match self.opened.take() {
            Some(opened) => {
                opened.connection.busy_timeout(lock_wait)?;
                opened
            }
            None => self.place.open(!self.was_open, lock_wait)?,
        };
        self.was_open = true;
        Ok(&self.opened.insert(opened).connection)
    }

    fn tell(&self, began: clock::Instant, failure: Option<&EmbeddedFailure>) {
        let class = match failure {
            Some(EmbeddedFailure::Away(class, _)) => Some(*class),
            _ => None,
        };
        log_change(&self.place.path, self.health.borrow().away, failure);
        self.health.send_replace(Health::now(class, clock::now().since(began)));
    }
}

/// Runs all of them in one transaction. An error undoes all; a job that fails by itself is undone alone.
fn transact(connection: &Connection, writes: bool, batch: &mut [Box<dyn Job>]) -> Result<(), EmbeddedFailure> {
    let outcome = run_batch(connection, writes, batch);
    if outcome.is_err() && !connection.is_autocommit() {
        // The cause is in hand already, and the connection is opened anew.
        let _ = connection.execute_batch("ROLLBACK");
    }
    outcome
}

fn run_batch(connection: &Connection, writes: bool, batch: &mut [Box<dyn Job>]) -> Result<(), EmbeddedFailure> {
    connection.execute_batch(if writes { "BEGIN IMMEDIATE" } else { "BEGIN" })?;
    for job in batch {
        connection.execute_batch("SAVEPOINT job")?;
        match job.run(connection) {
            Ok(()) => {}
            Err(failure) if failure.is_away() || connection.is_autocommit() => return Err(failure),
            Err(_) => connection.execute_batch("ROLLBACK TO job")?,
        }
        connection.execute_batch("RELEASE job")?;
    }
    Ok(connection.execute_batch("COMMIT")?)
}

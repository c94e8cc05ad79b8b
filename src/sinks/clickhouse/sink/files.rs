//! The directory for batches, which may not be there, not be had yet, or not take any.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::super::batch::Batch;
use super::super::spill::Spill;
use crate::shard::Instant;

/// The directory is tried again so long after it could not be had.
const RETRY: Duration = Duration::from_secs(5);

/// Where batches wait outside memory, if anywhere.
pub(super) struct Files {
    /// The directory and how large its files may become, until it is had.
    wanted: Option<(PathBuf, u64)>,
    try_at: Instant,
    spill: Option<Spill>,
    /// The log has been told that it cannot be had, or not be written.
    is_told: bool,
    /// Writes that failed.
    pub(super) errors: u64,
}

impl Files {
    pub(super) fn new(now: Instant, wanted: Option<(PathBuf, u64)>) -> Self {
        let mut files = Self { wanted, try_at: now, spill: None, is_told: false, errors: 0 };
        files.handle_timeout(now);
        files
    }

    /// When to call again to have the directory.
    pub(super) fn poll_timeout(&self) -> Instant {
        if self.wanted.is_some() { self.try_at } else { Instant::NEVER }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let Some((directory, bytes_max)) = &self.wanted else { return };
        if now < self.try_at {
            return;
        }
        match Spill::open(directory, *bytes_max) {
            Ok(spill) => {
                if !spill.is_empty() {
                    tracing::info!(bytes = spill.bytes(), "ClickHouse: rows that were not sent before are sent now");
                }
                (self.spill, self.wanted, self.is_told) = (Some(spill), None, false);
            }
            Err(error) => {
                self.try_at = now + RETRY;
                if !std::mem::replace(&mut self.is_told, true) {
                    let directory = directory.display();
                    let why = match error.kind() {
                        io::ErrorKind::WouldBlock => "another process uses it; give each one of its own".to_owned(),
                        _ => error.to_string(),
                    };
                    tracing::error!(
                        "clickhouse.spill_dir is \"{directory}\": {why}; until then rows wait in memory only"
                    );
                }
            }
        }
    }

    /// Whether a batch is in a file now.
    pub(super) fn append(&mut self, batch: &Batch) -> bool {
        let Some(spill) = &mut self.spill else { return false };
        match spill.append(batch) {
            Ok(is_in) => {
                self.is_told &= !is_in;
                is_in
            }
            Err(error) => {
                self.errors += 1;
                if !std::mem::replace(&mut self.is_told, true) {
                    tracing::error!(
                        %error,
                        "ClickHouse: rows cannot be written to clickhouse.spill_dir; they wait in memory"
                    );
                }
                false
            }
        }
    }

    /// The first batch that is not sent yet.
    pub(super) fn front(&mut self) -> Option<Batch> {
        self.spill.as_mut()?.front()
    }

    /// The first batch is sent.
    pub(super) fn pop(&mut self) {
        if let Some(spill) = &mut self.spill {
            spill.pop();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spill.as_ref().is_none_or(Spill::is_empty)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.spill.as_ref().map_or(0, Spill::bytes)
    }

    pub(super) fn memory(&self) -> usize {
        self.spill.as_ref().map_or(0, Spill::memory)
    }

    pub(super) fn damaged(&self) -> u64 {
        self.spill.as_ref().map_or(0, |spill| spill.damaged)
    }

    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.spill.as_ref()?.oldest_ms()
    }
}

//! Idle connections to one backend, the warmest first.

use crate::{net::ClientConnection, shard::Instant};

/// One per backend and shard.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// In the order in which they came back.
    idle: Vec<Idle>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<ClientConnection>,
    /// From here on the backend may close it under a request.
    until: Instant,
}

impl Pool {
    /// The connection that came back last and is still good. Those found dead are closed.
    pub(super) fn take(&mut self, now: Instant) -> Option<Box<ClientConnection>> {
        while let Some(idle) = self.idle.pop() {
            if now < idle.until && idle.connection.is_reusable() {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Keeps a connection until then, unless `idle_max` are kept already.
    pub(super) fn give(&mut self, connection: Box<ClientConnection>, until: Instant, idle_max: usize) {
        if self.idle.len() < idle_max {
            self.idle.push(Idle { connection, until });
        }
    }

    /// Closes what has been idle for too long.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.idle.retain(|idle| now < idle.until);
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.idle.len()
    }
}

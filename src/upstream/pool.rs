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
    /// The turn of the shard in which it came back.
    since: Instant,
    /// From here on the backend may close it under a request.
    until: Instant,
}

impl Pool {
    /// The connection that came back last and is still good. Those found dead are closed.
    ///
    /// None that came back in this turn: what its backend sent behind the answer, unasked or because it gave a body to a
    /// HEAD, is seen when the next turn begins, and would be taken for the answer to this request. (On io_uring every look
    /// at the clock is a turn, so there this holds nobody back.)
    pub(super) fn take(&mut self, now: Instant, turn: Instant) -> Option<Box<ClientConnection>> {
        let mut places = self.idle.iter().rposition(|idle| idle.since < turn)? + 1;
        while places > 0 {
            places -= 1;
            let idle = self.idle.remove(places);
            if now < idle.until && idle.connection.is_reusable() {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Keeps a connection that comes back in this turn until then, unless `idle_max` are kept already.
    pub(super) fn give(&mut self, connection: Box<ClientConnection>, turn: Instant, until: Instant, idle_max: usize) {
        if self.idle.len() < idle_max {
            self.idle.push(Idle { connection, since: turn, until });
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

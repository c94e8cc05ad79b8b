//! What is due when, by what it is for: each has at most one time, and moving it costs a step in a tree.

use std::collections::BTreeSet;

use super::arena::Key;
use crate::shard::Instant;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A room at home here.
    Home(Key),
    /// A room that waits for what it missed.
    Pull(Key),
    /// Letters that are sent again.
    Kept,
    /// Events that wait for the grace.
    Events,
    /// Rooms of which the bus is told again.
    Forgotten,
    /// The next rooms are told that the bus has come or gone.
    Bus,
}

/// All timers of a shard's rooms; those of sockets are the driver's.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Instant, Timer)>);

impl Timers {
    /// Moves a timer from `armed`, which its owner keeps, to `due`; `NEVER` is no time.
    pub(super) fn set(&mut self, timer: Timer, armed: &mut Instant, due: Instant) {
        if *armed == due {
            return;
        }
        if *armed != Instant::NEVER {
            self.0.remove(&(*armed, timer));
        }
        if due != Instant::NEVER {
            self.0.insert((due, timer));
        }
        *armed = due;
    }

    /// The next that is due; its owner has to be told that it is not armed any more.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let &(at, timer) = self.0.first()?;
        if at > now {
            return None;
        }
        self.0.pop_first();
        Some(timer)
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|&(at, _)| at)
    }
}

//! The sending half: a line to each reader, with two lanes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use rtrb::{Producer, PushError};

use super::{Address, Letters, ThreadId, to};
use crate::bus::doorbell::Doorbell;

/// Control letters that may wait in one sender for one reader, beyond the ring. A reader that is so far behind is stuck, and
/// what it misses (revocations, snapshots, sockets) must not be dropped: the process ends and its supervisor starts it anew.
/// Whatever clients can cause has a bound of its own far below this one.
pub const SPILL_MAX: usize = 1 << 16;

/// What an outbox counted. Plain numbers of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxCounts {
    /// Control letters accepted for sending.
    pub sent: u64,
    /// Of them, letters that found their ring full and waited in the spill.
    pub spilled: u64,
    /// Control letters whose reader had ended.
    pub undeliverable: u64,
    /// Droppable letters that went.
    pub sent_droppable: u64,
    /// Droppable letters that found their ring full and did not go.
    pub dropped: u64,
}

/// A thread's sending half.
pub struct Outbox<L: Letters> {
    me: ThreadId,
    lines: Lines<L>,
    state: OutboxState,
}

/// The lines from one thread to all.
pub struct Lines<L: Letters> {
    pub(super) control: Line<L::Control, Infallible>,
    pub(super) bridge: Line<L::Bridge, L::DroppableToBridge>,
    pub(super) shards: Vec<Line<L::Shard, L::DroppableToShard>>,
}

#[derive(Debug, Default)]
struct OutboxState {
    /// Letters in all spills.
    waiting: usize,
    /// Whether something was sent since the bells were last considered.
    dirty: bool,
    counts: OutboxCounts,
}

/// From one thread to one reader.
pub struct Line<T, D> {
    ring: Producer<T>,
    /// What came while the ring was full; empty unless it is.
    spill: VecDeque<T>,
    /// The second lane; none between threads that have only one.
    droppable: Option<Producer<D>>,
    bell: Arc<Doorbell>,
    /// Whether something was pushed since the bell was last considered.
    dirty: bool,
}

impl<L: Letters> fmt::Debug for Outbox<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("me", &self.me).field("state", &self.state).finish_non_exhaustive()
    }
}

impl<L: Letters> fmt::Debug for Lines<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

impl<T, D> fmt::Debug for Line<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("spilled", &self.spill.len()).finish_non_exhaustive()
    }
}

impl<L: Letters> Outbox<L> {
    pub(super) fn new(me: ThreadId, lines: Lines<L>) -> Self {
        Self { me, lines, state: OutboxState::default() }
    }

    /// The thread that sends.
    pub fn me(&self) -> ThreadId {
        self.me
    }

    /// How many shards the mesh has.
    pub fn shards(&self) -> usize {
        self.lines.shards.len()
    }

    /// Sends a letter to a thread, which may be this one. Its reader is woken by the next [`Outbox::flush`].
    ///
    /// Letters to one reader arrive in the order in which they were sent. A letter to a reader that has ended is dropped.
    #[inline]
    pub fn send<A: Address<L>>(&mut self, to: A, letter: A::Letter) {
        self.state.counts.sent += 1;
        self.state.dirty = true;
        let reader = to.thread_id();
        let line = to.line(&mut self.lines);
        line.dirty = true;
        if line.spill.is_empty() {
            match line.ring.push(letter) {
                Ok(()) => {}
                Err(PushError::Full(letter)) => line.spill(letter, self.me, reader, &mut self.state),
            }
        } else {
            line.spill(letter, self.me, reader, &mut self.state);
        }
    }

    /// Sends a letter that may be dropped, and returns whether it went: not if its ring is full, nor to a thread to which
    /// this one has no such ring (all have but the control thread). Its reader is woken by the next [`Outbox::flush`].
    ///
    /// Those that go to one reader arrive in the order in which they were sent, before or after control letters that were
    /// sent with them.
    #[inline]
    #[must_use = "it may not have gone"]
    pub fn try_send<A: Address<L>>(&mut self, to: A, letter: A::Droppable) -> bool {
        self.offer(to, letter).is_ok()
    }

    /// As [`Outbox::try_send`]; a letter that does not go comes back.
    #[inline]
    pub fn offer<A: Address<L>>(&mut self, to: A, letter: A::Droppable) -> Result<(), A::Droppable> {
        let line = to.line(&mut self.lines);
        let offered = match &mut line.droppable {
            Some(ring) => ring.push(letter).map_err(|PushError::Full(letter)| letter),
            None => Err(letter),
        };
        if offered.is_ok() {
            self.state.counts.sent_droppable += 1;
            self.state.dirty = true;
            line.dirty = true;
        } else {
            self.state.counts.dropped += 1;
        }
        offered
    }

    /// Sends one letter to every shard.
    pub fn broadcast(&mut self, mut letter: impl FnMut() -> L::Shard) {
        for shard in 0..self.shards() {
            self.send(to::Shard(shard), letter());
        }
    }

    /// Moves what was spilled into the rings as far as it fits, and rings the bell of each sleeping reader that has new
    /// letters, once.
    ///
    /// Whoever sends must call it again, with nothing new to send, while [`Outbox::waiting`] is not zero.
    pub fn flush(&mut self) {
        let Self { lines, state, .. } = self;
        if !state.dirty && state.waiting == 0 {
            return;
        }
        state.dirty = false;
        lines.control.flush(state);
        lines.bridge.flush(state);
        for line in &mut lines.shards {
            line.flush(state);
        }
    }

    /// Letters in the spills, waiting for room in the rings.
    pub fn waiting(&self) -> usize {
        self.state.waiting
    }

    /// Control letters to this reader that wait for room in its ring.
    pub fn waiting_for<A: Address<L>>(&mut self, to: A) -> usize {
        to.line(&mut self.lines).spill.len()
    }

    /// What it counted so far.
    pub fn counts(&self) -> OutboxCounts {
        self.state.counts
    }
}

impl<T, D> Line<T, D> {
    pub(super) fn new(ring: Producer<T>, droppable: Option<Producer<D>>, bell: Arc<Doorbell>) -> Self {
        Self { ring, spill: VecDeque::new(), droppable, bell, dirty: false }
    }

    #[cold]
    fn spill(&mut self, letter: T, sender: ThreadId, reader: ThreadId, state: &mut OutboxState) {
        if self.ring.is_abandoned() {
            state.counts.undeliverable += 1;
            return;
        }
        if self.spill.len() >= SPILL_MAX {
            // Not through the log, whose buffers die with the process.
            eprintln!(
                "shardgate: mesh: {reader} has not taken {SPILL_MAX} letters from {sender}: aborting, for letters are \
                 never lost"
            );
            std::process::abort();
        }
        self.spill.push_back(letter);
        state.waiting += 1;
        state.counts.spilled += 1;
    }

    fn flush(&mut self, state: &mut OutboxState) {
        if !self.spill.is_empty() {
            if self.ring.is_abandoned() {
                state.counts.undeliverable += self.spill.len() as u64;
                state.waiting -= self.spill.len();
                self.spill = VecDeque::new();
            }
            while self.ring.slots() > 0
                && let Some(letter) = self.spill.pop_front()
            {
                // There is room, and nobody else pushes.
                let _ = self.ring.push(letter);
                state.waiting -= 1;
                self.dirty = true;
            }
        }
        if std::mem::take(&mut self.dirty) {
            self.bell.ring_if_asleep();
        }
    }
}

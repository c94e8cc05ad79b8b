//! Rings between all threads: a single-writer ring for each ordered pair, a spill beside each, a bell for each reader.
//!
//! This is the control lane: letters are never lost and keep their order per sender. A sender never waits. What a letter
//! is, and the waiting, are left to others.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rtrb::{Consumer, Producer, PushError, RingBuffer};

use super::doorbell::Doorbell;

/// Letters taken from one ring before the next ring's turn, so that no sender is heard late because of another.
const BATCH: usize = 64;

/// Letters that may wait in one sender for one reader, beyond the ring. A reader that is so far behind is stuck, and what
/// it misses (revocations, sockets) must not be dropped: the process ends and its supervisor starts it anew.
pub const SPILL_MAX: usize = 1 << 16;

/// One thread's end of the mesh. Moves once, to its thread.
#[derive(Debug)]
pub struct Endpoint<L> {
    pub(super) outbox: Outbox<L>,
    pub(super) inbox: Inbox<L>,
}

/// Builds a mesh of `count` endpoints whose rings hold `capacity` letters each. Endpoint `i` of the answer is number `i`.
pub fn build<L: Send>(count: usize, capacity: usize) -> io::Result<Vec<Endpoint<L>>> {
    let bells: Vec<_> = (0..count).map(|_| Doorbell::new()).collect::<io::Result<_>>()?;
    let bells: Vec<_> = bells.into_iter().map(|(bell, ear)| (Arc::new(bell), ear)).collect();
    let mut outboxes: Vec<Outbox<L>> = (0..count).map(Outbox::new).collect();
    let mut inboxes = Vec::with_capacity(count);
    for (bell, ear) in bells {
        let mut rings = Vec::with_capacity(count);
        for outbox in &mut outboxes {
            let (producer, consumer) = RingBuffer::new(capacity.max(1));
            outbox.lanes.push(Lane { ring: producer, spill: VecDeque::new(), bell: Arc::clone(&bell), dirty: false });
            rings.push(consumer);
        }
        inboxes.push(Inbox { rings, next: 0, received: 0, bell, ear: Some(ear) });
    }
    Ok(outboxes.into_iter().zip(inboxes).map(|(outbox, inbox)| Endpoint { outbox, inbox }).collect())
}

impl<L> Endpoint<L> {
    /// This endpoint's number.
    pub fn me(&self) -> usize {
        self.outbox.me
    }

    /// The two directions, for a thread that drives them by itself.
    pub fn split(self) -> (Outbox<L>, Inbox<L>) {
        (self.outbox, self.inbox)
    }
}

/// What an outbox counted. Plain numbers of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxCounts {
    /// Letters accepted for sending.
    pub sent: u64,
    /// Of them, letters that found their ring full and waited in the spill.
    pub spilled: u64,
    /// Letters whose reader had ended.
    pub undeliverable: u64,
}

/// The sending half.
#[derive(Debug)]
pub struct Outbox<L> {
    me: usize,
    lanes: Vec<Lane<L>>,
    /// Letters in all spills.
    waiting: usize,
    dirty: bool,
    counts: OutboxCounts,
}

#[derive(Debug)]
struct Lane<L> {
    ring: Producer<L>,
    /// What came while the ring was full; empty unless it is.
    spill: VecDeque<L>,
    bell: Arc<Doorbell>,
    /// Whether something was pushed since the bell was last considered.
    dirty: bool,
}

impl<L> Outbox<L> {
    fn new(me: usize) -> Self {
        Self { me, lanes: Vec::new(), waiting: 0, dirty: false, counts: OutboxCounts::default() }
    }

    /// This endpoint's number.
    pub fn me(&self) -> usize {
        self.me
    }

    /// How many endpoints the mesh has, this one included.
    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    /// Whether the mesh has no endpoints at all.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Sends a letter to an endpoint, which may be this one. Its reader is woken by the next [`Outbox::flush`].
    ///
    /// Letters to one reader arrive in the order in which they were sent. A letter to a reader that has ended is dropped.
    #[inline]
    pub fn send(&mut self, to: usize, letter: L) {
        self.counts.sent += 1;
        self.dirty = true;
        let lane = &mut self.lanes[to];
        lane.dirty = true;
        if lane.spill.is_empty() {
            match lane.ring.push(letter) {
                Ok(()) => {}
                Err(PushError::Full(letter)) => self.spill(to, letter),
            }
        } else {
            self.spill(to, letter);
        }
    }

    #[cold]
    fn spill(&mut self, to: usize, letter: L) {
        let lane = &mut self.lanes[to];
        if lane.ring.is_abandoned() {
            self.counts.undeliverable += 1;
            return;
        }
        if lane.spill.len() >= SPILL_MAX {
            // Not through the log, whose buffers die with the process.
            eprintln!(
                "shardgate: mesh: thread {to} has not taken {SPILL_MAX} letters from thread {}: aborting, for control \
                 letters are never lost",
                self.me
            );
            std::process::abort();
        }
        lane.spill.push_back(letter);
        self.waiting += 1;
        self.counts.spilled += 1;
    }

    /// Sends one letter to every other endpoint.
    pub fn broadcast(&mut self, mut make: impl FnMut(usize) -> L) {
        for to in 0..self.lanes.len() {
            if to != self.me {
                self.send(to, make(to));
            }
        }
    }

    /// Moves what was spilled into the rings as far as it fits, and rings the bell of each sleeping reader that has new
    /// letters, once.
    ///
    /// Whoever sends must call it again, with nothing new to send, while [`Outbox::waiting`] is not zero.
    pub fn flush(&mut self) {
        if !self.dirty && self.waiting == 0 {
            return;
        }
        self.dirty = false;
        for lane in &mut self.lanes {
            if !lane.spill.is_empty() {
                if lane.ring.is_abandoned() {
                    self.counts.undeliverable += lane.spill.len() as u64;
                    self.waiting -= lane.spill.len();
                    lane.spill = VecDeque::new();
                }
                while lane.ring.slots() > 0
                    && let Some(letter) = lane.spill.pop_front()
                {
                    // There is room, and nobody else pushes.
                    let _ = lane.ring.push(letter);
                    self.waiting -= 1;
                    lane.dirty = true;
                }
            }
            if std::mem::take(&mut lane.dirty) {
                lane.bell.ring_if_asleep();
            }
        }
    }

    /// Letters in the spills, waiting for room in the rings.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// What it counted so far.
    pub fn counts(&self) -> OutboxCounts {
        self.counts
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Inbox<L> {
    /// By sender.
    rings: Vec<Consumer<L>>,
    /// The ring whose turn it is.
    next: usize,
    received: u64,
    pub(super) bell: Arc<Doorbell>,
    /// Until somebody waits on it.
    pub(super) ear: Option<UnixStream>,
}

impl<L> Inbox<L> {
    /// Takes up to `budget` letters, some from each ring in turn, and returns how many.
    ///
    /// Fewer than `budget` means that all rings were empty when they were looked at.
    pub fn drain(&mut self, budget: usize, mut handle: impl FnMut(usize, L)) -> usize {
        let mut taken = 0;
        let mut empty = 0;
        while empty < self.rings.len() && taken < budget {
            let from = self.next;
            self.next = if from + 1 == self.rings.len() { 0 } else { from + 1 };
            let ring = &mut self.rings[from];
            let before = taken;
            let end = budget.min(taken + BATCH);
            while taken < end
                && let Ok(letter) = ring.pop()
            {
                taken += 1;
                handle(from, letter);
            }
            empty = if taken == before { empty + 1 } else { 0 };
        }
        self.received += taken as u64;
        taken
    }

    /// Whether a letter waits.
    pub fn has_letters(&self) -> bool {
        self.rings.iter().any(|ring| !ring.is_empty())
    }

    /// Letters taken so far.
    pub fn received(&self) -> u64 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::testing;

    /// Two halves of one direction, `0` to `1`.
    fn pair(capacity: usize) -> (Outbox<u32>, Inbox<u32>) {
        let mut mesh = build(2, capacity).expect("a mesh");
        let reader = mesh.pop().expect("two ends");
        let writer = mesh.pop().expect("two ends");
        (writer.split().0, reader.split().1)
    }

    fn drained(inbox: &mut Inbox<u32>, budget: usize) -> Vec<(usize, u32)> {
        let mut letters = Vec::new();
        let taken = inbox.drain(budget, |from, letter| letters.push((from, letter)));
        assert_eq!(taken, letters.len());
        letters
    }

    #[test]
    fn letters_that_do_not_fit_wait_and_keep_their_order() {
        let (mut outbox, mut inbox) = pair(4);
        for letter in 0..10 {
            outbox.send(1, letter);
        }
        outbox.flush();
        assert_eq!((outbox.waiting(), outbox.counts().spilled), (6, 6));
        let mut seen = Vec::new();
        for turn in 0..4 {
            seen.extend(drained(&mut inbox, 3));
            if turn == 0 {
                // There is room in the ring again, but others were first.
                outbox.send(1, 10);
            }
            outbox.flush();
        }
        assert_eq!(seen, (0..11).map(|letter| (0, letter)).collect::<Vec<_>>());
        assert_eq!((outbox.waiting(), outbox.counts().sent, inbox.received()), (0, 11, 11));
    }

    #[test]
    fn no_sender_is_heard_late_because_of_another() {
        let mut mesh = build::<u32>(3, 1024).expect("a mesh");
        let (_, mut inbox) = mesh.pop().expect("three ends").split();
        let (mut quiet, _one) = mesh.pop().expect("three ends").split();
        let (mut loud, _zero) = mesh.pop().expect("three ends").split();
        (0..1000).for_each(|letter| loud.send(2, letter));
        quiet.send(2, 7);
        let first = drained(&mut inbox, BATCH + 1);
        assert_eq!(first.last(), Some(&(1, 7)));
        assert_eq!(drained(&mut inbox, usize::MAX).len(), 1000 - BATCH);
        assert!(!inbox.has_letters());
    }

    #[test]
    fn a_broadcast_reaches_everybody_else() {
        let mesh = build::<usize>(3, 4).expect("a mesh");
        let (mut outboxes, mut inboxes): (Vec<_>, Vec<_>) = mesh.into_iter().map(Endpoint::split).unzip();
        outboxes[1].broadcast(|to| to * 10);
        outboxes[1].flush();
        let mut seen = Vec::new();
        for inbox in &mut inboxes {
            inbox.drain(usize::MAX, |from, letter| seen.push((from, letter)));
        }
        assert_eq!(seen, [(1, 0), (1, 20)]);
    }

    #[test]
    fn letters_to_a_thread_that_has_ended_are_dropped_and_counted() {
        let (mut outbox, inbox) = pair(2);
        (0..5).for_each(|letter| outbox.send(1, letter));
        drop(inbox);
        outbox.flush();
        assert_eq!((outbox.waiting(), outbox.counts().undeliverable), (0, 3));
        outbox.send(1, 5);
        assert_eq!(outbox.counts().undeliverable, 4);
    }

    #[test]
    fn a_reader_that_is_stuck_ends_the_process() {
        let Some(output) = testing::in_child("bus::mesh::tests::a_reader_that_is_stuck_ends_the_process") else {
            let (mut outbox, _stuck) = pair(1);
            let last = u32::try_from(SPILL_MAX).expect("it is small") + 1;
            (0..last).for_each(|letter| outbox.send(1, letter));
            assert_eq!(outbox.waiting(), SPILL_MAX);
            eprintln!("the spill is full");
            outbox.send(1, last);
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(testing::signal(&output), Some(libc::SIGABRT), "{said}");
        assert!(said.contains("the spill is full") && said.contains("thread 1 has not taken"), "{said}");
    }
}

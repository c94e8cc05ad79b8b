//! What waits for one socket: frames in order, bounded in bytes, dropped by policy and never without a word.
//!
//! Writing is for whoever has the socket; what is in a frame is for `encode`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSlice;

use super::encode::gap_of;
use super::frame::{Frame, Gap, Kind, REFERENCE_BYTES, Slow};
use super::name::RoomName;
use super::pointer::Key;

/// Pieces of one vectored write. Linux takes 1,024; past 64 the cost of a call is lost in that of its bytes.
pub const PIECES_MAX: usize = 64;

/// Frames that wait for one socket. When empty it holds no memory of its own.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that are written.
    written: u32,
    /// Frames that are wholly written, as far as 32 bits count.
    sent: u32,
    /// What waits costs, [`cost`] by [`cost`].
    cost: usize,
}

/// The outbox is full of what may not be dropped: the socket is to be closed with 4000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outbox is full")]
pub struct Full;

impl Outbox {
    /// Queues a frame. Past `bytes_max`, place is made for it by the policies of what waits: of rooms that keep the latest
    /// with each key the others go, of rooms that drop their oldest these, those of the frame's own room first. Says how
    /// many messages were dropped.
    ///
    /// At least an eighth of `bytes_max` is made free, so that a full outbox is not looked through for every frame; when so
    /// much cannot go, the frame is not queued.
    pub fn push(&mut self, frame: Frame, bytes_max: usize) -> Result<usize, Full> {
        let mut dropped = 0;
        if self.cost.saturating_add(cost(&frame)) > bytes_max {
            let target = bytes_max.saturating_sub(bytes_max / 8).saturating_sub(cost(&frame));
            dropped = self.shed(&frame, target);
            if self.cost > target {
                return Err(Full);
            }
        }
        self.cost = self.cost.saturating_add(cost(&frame));
        self.frames.push_back(frame);
        Ok(dropped)
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// What waits costs in bytes, a reference to each frame with it.
    #[inline]
    pub const fn bytes(&self) -> usize {
        self.cost
    }

    /// Fills in what to write next; says how many pieces it is.
    pub fn slices<'a>(&'a self, pieces: &mut [IoSlice<'a>; PIECES_MAX]) -> usize {
        let mut count = 0_usize;
        for (piece, frame) in pieces.iter_mut().zip(&self.frames) {
            let skipped = if count == 0 { self.begun() } else { 0 };
            *piece = IoSlice::new(frame.bytes().get(skipped..).unwrap_or_default());
            count = count.saturating_add(1);
        }
        count
    }

    /// So many bytes of it are written.
    pub fn written(&mut self, bytes: usize) {
        let mut written = self.begun().saturating_add(bytes);
        while let Some(first) = self.frames.front() {
            let length = first.bytes().len();
            if length > written {
                break;
            }
            written = written.saturating_sub(length);
            self.sent = self.sent.saturating_add(u32::from(*first.kind() != Kind::Opening));
            self.cost = self.cost.saturating_sub(cost(first));
            self.frames.pop_front();
        }
        // Less than one frame has, which is far from 4 GiB.
        self.written = u32::try_from(written).unwrap_or(u32::MAX);
        self.give_back();
    }

    /// Frames that were wholly written so far.
    pub const fn sent(&self) -> u32 {
        self.sent
    }

    /// Bytes of the first frame that are written.
    fn begun(&self) -> usize {
        self.written as usize
    }

    /// Puts this before all that waits; nothing is written yet.
    pub fn begin_with(&mut self, frame: Frame) {
        self.cost = self.cost.saturating_add(cost(&frame));
        self.frames.push_front(frame);
    }

    /// Drops what waits, but for what a close cannot follow without: the rest of a frame that is partly written, the answer
    /// to the handshake.
    pub fn abandon(&mut self) {
        let is_kept = self.written > 0 || self.frames.front().is_some_and(|first| *first.kind() == Kind::Opening);
        self.frames.truncate(usize::from(is_kept));
        self.cost = self.frames.front().map_or(0, cost);
        self.give_back();
    }

    /// Makes room; says how many messages were dropped.
    fn shed(&mut self, coming: &Frame, target: usize) -> usize {
        let mut dropped = self.keep_latest(coming);
        if let Kind::Message { room, slow: Slow::DropOldest, .. } = coming.kind() {
            dropped = dropped.saturating_add(self.drop_oldest(target, |of| of == room));
        }
        // Once, as a rule. A gap that was there before grows with its numbers, which may take a byte more than was counted.
        loop {
            let more = self.drop_oldest(target, |_| true);
            dropped = dropped.saturating_add(more);
            if more == 0 || self.cost <= target {
                return dropped;
            }
        }
    }

    /// Drops each message that a later one with its key, the coming one included, makes old.
    fn keep_latest(&mut self, coming: &Frame) -> usize {
        let mut newer: BTreeSet<_> = latest(coming).into_iter().collect();
        let mut is_old: Vec<bool> =
            self.frames.iter().rev().map(|frame| latest(frame).is_some_and(|key| !newer.insert(key))).collect();
        self.drop_where(|_, _| is_old.pop().unwrap_or_default())
    }

    /// Drops the oldest messages of these rooms, as far as they may go, until no more than `target` waits.
    fn drop_oldest(&mut self, target: usize, is_of: impl Fn(&RoomName) -> bool) -> usize {
        self.drop_where(|frame, cost| match frame.kind() {
            Kind::Message { room, slow: Slow::DropOldest, .. } => cost > target && is_of(room),
            _ => false,
        })
    }

    /// Drops those that are chosen, each frame being shown with the cost of all, and has a gap told in their place. What is
    /// partly written stays.
    fn drop_where(&mut self, mut is_chosen: impl FnMut(&Frame, usize) -> bool) -> usize {
        let mut dropped = 0_usize;
        let mut cost_left = self.cost;
        let mut is_begun = self.written > 0;
        let mut kept = Vec::with_capacity(self.frames.len());
        // Where the last gap of each room is among those kept.
        let mut gaps: BTreeMap<RoomName, usize> = BTreeMap::new();
        for frame in self.frames.drain(..) {
            let may_go = !std::mem::take(&mut is_begun);
            let is_chosen = is_chosen(&frame, cost_left);
            match frame.kind() {
                Kind::Message { room, position, .. } if is_chosen && may_go => {
                    dropped = dropped.saturating_add(1);
                    cost_left = cost_left.saturating_sub(cost(&frame));
                    let gap = Gap { room: room.clone(), epoch: position.epoch, from: position.seq, to: position.seq };
                    if !extend(&mut kept, &gaps, &gap) {
                        cost_left = cost_left.saturating_add(gap_cost_max(room));
                        gaps.insert(room.clone(), kept.len());
                        kept.push(Kept::Gap(gap, frame));
                    }
                }
                Kind::Gap(gap) if may_go => {
                    if !extend(&mut kept, &gaps, gap) {
                        gaps.insert(gap.room.clone(), kept.len());
                        kept.push(Kept::Gap(gap.clone(), frame));
                    }
                }
                _ => kept.push(Kept::Frame(frame)),
            }
        }
        self.frames.extend(kept.into_iter().map(Kept::into_frame));
        self.cost = self.frames.iter().map(cost).fold(0, usize::saturating_add);
        self.give_back();
        dropped
    }

    /// Gives memory back that is not needed.
    fn give_back(&mut self) {
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
            self.written = 0;
        } else if self.frames.len().saturating_mul(4) < self.frames.capacity() {
            self.frames.shrink_to(self.frames.len().saturating_mul(2));
        }
    }
}

/// What is left in an outbox.
enum Kept {
    Frame(Frame),
    /// Is to be told, where this frame was.
    Gap(Gap, Frame),
}

impl Kept {
    fn into_frame(self) -> Frame {
        match self {
            Self::Frame(frame) => frame,
            Self::Gap(gap, frame) if *frame.kind() == Kind::Gap(gap.clone()) => frame,
            Self::Gap(gap, frame) => gap_of(gap, frame.tally()),
        }
    }
}

/// Adds this gap to the room's last one, if it follows on that.
fn extend(kept: &mut [Kept], gaps: &BTreeMap<RoomName, usize>, next: &Gap) -> bool {
    let last = gaps.get(&next.room).and_then(|&at| kept.get_mut(at));
    let Some(Kept::Gap(last, _)) = last else { return false };
    let follows = last.epoch == next.epoch && last.to.checked_add(1) == Some(next.from);
    if follows {
        last.to = next.to;
    }
    follows
}

/// More than any gap of this room costs, which is known when it is written.
fn gap_cost_max(room: &RoomName) -> usize {
    room.as_str().len().saturating_add(128).saturating_add(REFERENCE_BYTES)
}

/// What a frame costs in an outbox.
#[inline]
fn cost(frame: &Frame) -> usize {
    frame.bytes().len().saturating_add(REFERENCE_BYTES)
}

/// Key and room of a message that a later one makes old.
fn latest(frame: &Frame) -> Option<(Key, &RoomName)> {
    match frame.kind() {
        Kind::Message { room, slow: Slow::Latest(key), .. } => Some((*key, room)),
        _ => None,
    }
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]
mod tests;

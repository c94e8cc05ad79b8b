//! What waits for one socket: frames in order, bounded in bytes, dropped by policy and never without a word.
//!
//! Writing is for whoever has the socket; what is in a frame is for `encode.rs`.

use std::collections::{BTreeSet, VecDeque};
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
    written: usize,
    /// What waits costs, [`cost`] by [`cost`].
    cost: usize,
}

/// The outbox is full of what may not be dropped: the socket is to be closed with 4000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outbox is full")]
pub struct Full;

impl Outbox {
    /// Queues a frame. Past `bytes_max` room is made first by the policies of what waits: of each room that keeps the
    /// latest with each key, the others go; of rooms that drop their oldest, these go, first in the room of this frame. Says
    /// how many messages were dropped.
    ///
    /// An eighth more than is needed goes, so that a full outbox is not looked through for every frame. When not enough can
    /// go, the frame is not queued.
    pub fn push(&mut self, frame: Frame, bytes_max: usize) -> Result<usize, Full> {
        let mut dropped = 0;
        if self.cost.saturating_add(cost(&frame)) > bytes_max {
            let target = bytes_max.saturating_sub(bytes_max / 8).saturating_sub(cost(&frame));
            dropped = self.shed(&frame, target);
            if self.cost.saturating_add(cost(&frame)) > bytes_max {
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
            let skipped = if count == 0 { self.written } else { 0 };
            *piece = IoSlice::new(frame.bytes().get(skipped..).unwrap_or_default());
            count = count.saturating_add(1);
        }
        count
    }

    /// So many bytes of it are written.
    pub fn written(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes);
        while let Some(first) = self.frames.front() {
            let length = first.bytes().len();
            if length > self.written {
                break;
            }
            self.written = self.written.saturating_sub(length);
            self.cost = self.cost.saturating_sub(cost(first));
            self.frames.pop_front();
        }
        self.give_back();
    }

    /// Drops what waits, but for the rest of a frame that is partly written: a close may follow.
    pub fn abandon(&mut self) {
        self.frames.truncate(usize::from(self.written > 0));
        self.cost = self.frames.front().map_or(0, cost);
        self.give_back();
    }

    /// Makes room; says how many messages were dropped.
    fn shed(&mut self, coming: &Frame, target: usize) -> usize {
        let mut dropped = self.keep_latest(coming);
        if let Kind::Message { room, slow: Slow::DropOldest, .. } = coming.kind() {
            dropped = dropped.saturating_add(self.drop_oldest(target, Some(room)));
        }
        dropped.saturating_add(self.drop_oldest(target, None))
    }

    /// Drops each message that a later one with its key, the coming one included, makes old.
    fn keep_latest(&mut self, coming: &Frame) -> usize {
        let mut newer: BTreeSet<(&RoomName, Key)> = latest(coming).into_iter().collect();
        let is_old: Vec<bool> =
            self.frames.iter().rev().map(|frame| latest(frame).is_some_and(|key| !newer.insert(key))).collect();
        let mut is_old = is_old.into_iter().rev();
        self.drop_where(|_, _| is_old.next().unwrap_or_default())
    }

    /// Drops messages that may go, of this room if one is named, the oldest first, until no more than `target` waits.
    fn drop_oldest(&mut self, target: usize, of: Option<&RoomName>) -> usize {
        self.drop_where(|frame, cost| match frame.kind() {
            Kind::Message { room, slow: Slow::DropOldest, .. } => cost > target && of.is_none_or(|of| of == room),
            _ => false,
        })
    }

    /// Drops the messages that are told, the frame and what waits being shown, and puts gaps in their place.
    fn drop_where(&mut self, mut is_to_go: impl FnMut(&Frame, usize) -> bool) -> usize {
        let mut dropped = 0_usize;
        let is_begun = self.written > 0;
        let mut kept: VecDeque<Frame> = VecDeque::with_capacity(self.frames.len());
        let _ = (&mut dropped, is_begun, &mut kept, &mut is_to_go);
        dropped
    }

    /// Gives memory back that is not needed.
    fn give_back(&mut self) {
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
            self.written = 0;
        } else if self.frames.len() < self.frames.capacity() / 4 {
            self.frames.shrink_to(self.frames.len().saturating_mul(2));
        }
    }
}

/// What a frame costs in an outbox.
#[inline]
fn cost(frame: &Frame) -> usize {
    frame.bytes().len().saturating_add(REFERENCE_BYTES)
}

/// Room and key of a message that a later one makes old.
fn latest(frame: &Frame) -> Option<(&RoomName, Key)> {
    match frame.kind() {
        Kind::Message { room, slow: Slow::Latest(key), .. } => Some((room, *key)),
        _ => None,
    }
}

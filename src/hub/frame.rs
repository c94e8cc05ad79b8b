//! What is sent: a WebSocket frame's bytes, shared by the outboxes of a shard and counted while they live.
//!
//! What the text says is for `encode`, who waits for it for `outbox`.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use super::name::RoomName;
use super::pointer::Key;
use super::position::{Epoch, Position};

/// What a reference in an outbox counts beside the frame's own bytes: a slot of a queue that may be a quarter full.
pub const REFERENCE_BYTES: usize = 32;

/// Bytes of the longest header without a mask (RFC 6455 §5.2).
pub(super) const HEADER_BYTES_MAX: usize = 10;

/// Bytes that frames and the references to them take. One per shard; every frame holds it.
#[derive(Clone, Debug, Default)]
pub struct Tally(Rc<Cell<usize>>);

impl Tally {
    /// How many they are now.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.0.get()
    }

    #[inline]
    fn add(&self, bytes: usize) {
        self.0.set(self.0.get().saturating_add(bytes));
    }

    #[inline]
    fn subtract(&self, bytes: usize) {
        self.0.set(self.0.get().saturating_sub(bytes));
    }
}

/// What happens to a message when it waits in an outbox that is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// It stays, and the socket is closed.
    Close,
    /// It goes, the oldest of its room first.
    DropOldest,
    /// It goes if a later one of its room with this key waits.
    Latest(Key),
}

/// What an outbox may do with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An answer, an unnumbered event: it is delivered or the socket is closed.
    Plain,
    /// A room's message.
    Message {
        /// The room.
        room: RoomName,
        /// Its epoch, and the message's number in it.
        position: Position,
        /// Whether it may be dropped.
        slow: Slow,
    },
    /// Stands where messages were dropped.
    Gap(Gap),
}

/// Messages of a room that were dropped, by their numbers; both ends belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The room.
    pub room: RoomName,
    /// Which count of numbers.
    pub epoch: Epoch,
    /// The first that was dropped.
    pub from: u64,
    /// The last that was dropped.
    pub to: u64,
}

/// A frame as it goes over the wire, header and all. A clone is one more reference to the same bytes.
pub struct Frame(Rc<Shared>);

struct Shared {
    bytes: Box<[u8]>,
    kind: Kind,
    tally: Tally,
}

impl Frame {
    /// A text frame.
    pub fn text(text: &str, kind: Kind, tally: &Tally) -> Self {
        let mut bytes = Vec::with_capacity(text.len().saturating_add(HEADER_BYTES_MAX));
        push_header(&mut bytes, text.len());
        bytes.extend_from_slice(text.as_bytes());
        Self::of_wire(bytes, kind, tally)
    }

    /// These bytes, which are one whole frame already: a ping, a pong, a close.
    pub fn of_wire(bytes: Vec<u8>, kind: Kind, tally: &Tally) -> Self {
        let shared = Shared { bytes: bytes.into(), kind, tally: tally.clone() };
        tally.add(shared.cost().saturating_add(REFERENCE_BYTES));
        Self(Rc::new(shared))
    }

    /// The bytes for the wire.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// What an outbox may do with it.
    #[inline]
    pub fn kind(&self) -> &Kind {
        &self.0.kind
    }

    /// Where it is counted.
    pub(super) fn tally(&self) -> &Tally {
        &self.0.tally
    }
}

impl Clone for Frame {
    #[inline]
    fn clone(&self) -> Self {
        self.0.tally.add(REFERENCE_BYTES);
        Self(Rc::clone(&self.0))
    }
}

impl Drop for Frame {
    #[inline]
    fn drop(&mut self) {
        self.0.tally.subtract(REFERENCE_BYTES);
    }
}

impl Shared {
    /// The bytes, this, and the two counters of an `Rc`.
    fn cost(&self) -> usize {
        self.bytes.len().saturating_add(size_of::<Self>()).saturating_add(size_of::<[usize; 2]>())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tally.subtract(self.cost());
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind(), self.bytes().escape_ascii())
    }
}

/// Appends the header of a text frame that is whole and not masked (RFC 6455 §5.2).
pub(super) fn push_header(out: &mut Vec<u8>, length: usize) {
    const WHOLE_TEXT: u8 = 0x81;
    out.push(WHOLE_TEXT);
    if let Ok(short @ 0..126) = u8::try_from(length) {
        out.push(short);
    } else if let Ok(length) = u16::try_from(length) {
        out.push(126);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(127);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::websocket::Borders;

    #[test]
    fn headers_say_where_the_frame_ends() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20] {
            let frame = Frame::text(&"x".repeat(length), Kind::Plain, &Tally::default());
            let mut borders = Borders::default();
            assert_eq!(borders.pass_frame(frame.bytes()), frame.bytes().len(), "{length}");
            assert!(borders.is_between_frames(), "{length}");
            assert_eq!(frame.bytes().first(), Some(&0x81), "whole, and text");
            let header = frame.bytes().len() - length;
            assert_eq!(
                header,
                2 + if length < 126 {
                    0
                } else if length < 65_536 {
                    2
                } else {
                    8
                },
                "{length}"
            );
        }
    }

    #[test]
    fn bytes_are_counted_once_and_references_each() {
        let tally = Tally::default();
        let frame = Frame::text(&"x".repeat(1000), Kind::Plain, &tally);
        let alone = tally.bytes();
        assert!((1000..1200).contains(&alone), "{alone}");
        let others = vec![frame.clone(); 99];
        assert_eq!(tally.bytes(), alone + 99 * REFERENCE_BYTES);
        drop(frame);
        assert_eq!(tally.bytes(), alone + 98 * REFERENCE_BYTES);
        drop(others);
        assert_eq!(tally.bytes(), 0);
    }
}

//! What is sent: a WebSocket frame's bytes, shared by the outboxes of a shard and counted while they live.
//!
//! What the text says is for `encode`, who waits for it for `outbox`.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::rc::Rc;

use super::name::RoomName;
use super::pointer::Key;
use super::position::{Epoch, Position};
use crate::proto::websocket::{Deflater, Opcode, deflated_header};

/// What a reference in an outbox counts beside the frame's own bytes: a slot of a queue that may be a quarter full.
pub const REFERENCE_BYTES: usize = 32;

/// Bytes of the longest header without a mask (RFC 6455 §5.2).
pub(super) const HEADER_BYTES_MAX: usize = 10;

/// Shorter texts are sent as they are: of a message of 256 bytes an eighth goes, of one of 512 a third (docs/websocket.md,
/// "Compression"), and each costs the shard as much as several writes.
const DEFLATE_BYTES_MIN: usize = 512;

/// The window that a message is compressed for, as a power of two: the largest, which costs its receiver no more.
const WINDOW_BITS: u8 = 15;

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
    /// The answer to the handshake, without which nobody can read what follows.
    Opening,
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
    /// The same message compressed, once a socket has asked for it; none where that is no shorter.
    deflated: OnceCell<Option<Frame>>,
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

    /// These bytes, as they are: a whole frame (a ping, a pong, a close), or the answer to the handshake.
    pub fn of_wire(bytes: Vec<u8>, kind: Kind, tally: &Tally) -> Self {
        let shared = Shared { bytes: bytes.into(), deflated: OnceCell::new(), kind, tally: tally.clone() };
        tally.add(shared.cost().saturating_add(REFERENCE_BYTES));
        Self(Rc::new(shared))
    }

    /// The bytes for the wire.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The frame for a client that takes compressed messages, with a window of so many bits (RFC 7692): made once, for all
    /// such clients of the shard. It is this one where there is nothing to be won, and where the message is longer than the
    /// client's window: what lies within the window never reaches back past it, whatever it was compressed for.
    pub(super) fn deflated(&self, window_bits: u8, deflater: &mut Deflater) -> Self {
        let Some(text) = self.payload() else { return self.clone() };
        let window_bytes = 1_usize.checked_shl(window_bits.into()).unwrap_or_default();
        if text.len() < DEFLATE_BYTES_MIN || text.len() > window_bytes && window_bits < WINDOW_BITS {
            return self.clone();
        }
        let deflated = self.0.deflated.get_or_init(|| {
            let payload = deflater.deflate(text, WINDOW_BITS);
            let header = deflated_header(Opcode::Text, payload.len());
            let bytes = [header.as_bytes(), payload].concat();
            let is_shorter = bytes.len() < self.bytes().len();
            let deflated = is_shorter.then(|| Self::of_wire(bytes, self.kind().clone(), self.tally()));
            deflater.release();
            deflated
        });
        deflated.as_ref().unwrap_or(self).clone()
    }

    /// The text of a text frame.
    fn payload(&self) -> Option<&[u8]> {
        let &[WHOLE_TEXT, length, ref rest @ ..] = self.bytes() else { return None };
        rest.get(
            match length {
                ..126 => 0,
                126 => size_of::<u16>(),
                _ => size_of::<u64>(),
            }..,
        )
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

/// How the frame of a whole text begins.
const WHOLE_TEXT: u8 = 0x81;

/// Appends the header of a text frame that is whole and not masked (RFC 6455 §5.2).
pub(super) fn push_header(out: &mut Vec<u8>, length: usize) {
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
#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::websocket::{Borders, Inflater};

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

    #[test]
    fn a_message_is_compressed_once_for_all_who_take_that() {
        let (tally, mut deflater) = (Tally::default(), Deflater::default());
        let text = r#"{"type":"room_message","payload":{"text":"hello"}}"#.repeat(20);
        let frame = Frame::text(&text, Kind::Plain, &tally);
        let alone = tally.bytes();
        let one = frame.deflated(15, &mut deflater);
        let made = tally.bytes() - alone;
        assert!(made < 400, "{made} bytes are counted, those of the short form");
        let others: Vec<Frame> = (0..99).map(|_| frame.deflated(15, &mut deflater)).collect();
        assert!(others.iter().all(|other| Rc::ptr_eq(&other.0, &one.0)));
        assert_eq!(tally.bytes(), alone + made + 99 * REFERENCE_BYTES);
        assert_eq!(others[0].deflated(15, &mut deflater).bytes(), one.bytes(), "it is compressed already");
        assert_eq!(one.kind(), frame.kind());
        // RFC 6455 §5.2, RFC 7692 §6: whole, compressed, a text of less than 126 bytes.
        let (&[first, length], payload) = one.bytes().split_first_chunk().unwrap();
        assert_eq!((first, usize::from(length)), (0xc1, payload.len()));
        assert_eq!(Inflater::default().inflate(payload, 2000).unwrap(), text.as_bytes());
        drop(frame);
        drop(others);
        drop(one);
        assert_eq!(tally.bytes(), 0);
    }

    #[test]
    fn what_is_not_worth_it_goes_as_it_is() {
        let (tally, mut deflater) = (Tally::default(), Deflater::default());
        let mut goes_plain = |text: &str, window_bits| {
            let frame = Frame::text(text, Kind::Plain, &tally);
            Rc::ptr_eq(&frame.deflated(window_bits, &mut deflater).0, &frame.0)
        };
        assert!(goes_plain(&"x".repeat(DEFLATE_BYTES_MIN - 1), 15));
        assert!(!goes_plain(&"x".repeat(DEFLATE_BYTES_MIN), 15));
        // Text whose bytes hold as much as they can: nothing is to be won.
        let noise: String = (0..1000).map(|_| fastrand::char('\u{10000}'..='\u{10ffff}')).collect();
        let deflated = Deflater::default().deflate(noise.as_bytes(), 15).len();
        assert_eq!(goes_plain(&noise, 15), deflated >= noise.len(), "{deflated} of {}", noise.len());
        assert!(!goes_plain(&"x".repeat(1024), 10));
        assert!(goes_plain(&"x".repeat(1025), 10), "longer than the client's window");
        assert!(!goes_plain(&"x".repeat(1 << 20), 15));
        let ping = Frame::of_wire(vec![0x89, 0], Kind::Plain, &tally);
        assert!(Rc::ptr_eq(&ping.deflated(15, &mut deflater).0, &ping.0));
    }

    proptest! {
        /// Nothing reaches back past the window of whoever gets it.
        #[test]
        fn a_client_with_a_small_window_can_read_it(
            picks in prop::collection::vec(0_u8..4, 0..5000), bits in 9_u8..=15,
        ) {
            let text: String = picks.iter().map(|&pick| ["abc", "{\"n\":", "é", "7"][usize::from(pick)]).collect();
            let frame = Frame::text(&text, Kind::Plain, &Tally::default()).deflated(bits, &mut Deflater::default());
            if frame.bytes()[0] == 0xc1 {
                let header = match frame.bytes()[1] { ..126 => 2, 126 => 4, _ => 10 };
                let mut inflated = Vec::with_capacity(text.len() + 1);
                let mut state = flate2::Decompress::new_with_window_bits(false, bits);
                let payload = [&frame.bytes()[header..], &[0, 0, 0xff, 0xff]].concat();
                state.decompress_vec(&payload, &mut inflated, flate2::FlushDecompress::Sync).unwrap();
                prop_assert_eq!(inflated, text.as_bytes());
            }
        }
    }
}

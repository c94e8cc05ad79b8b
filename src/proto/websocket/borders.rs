//! Frames as they pass by (RFC 6455 §5.2): where one ends and the next may begin.
//!
//! What is inside frames is nobody's business here, and nothing is refused: who relays a connection follows its borders,
//! so that it can say something itself between two frames.

use super::frame::{HEADER_MAX, Opcode};

/// Where one direction of a connection stands between its frames.
#[derive(Clone, Debug, Default)]
pub struct Borders {
    header: [u8; HEADER_MAX],
    /// Bytes of the header that have passed; all of it has when `payload_left` counts.
    header_bytes: u8,
    /// Bytes of the payload that have not passed.
    payload_left: u64,
    has_closed: bool,
}

impl Borders {
    /// Lets bytes pass, up to the end of the first frame that ends in them; says how many these are. All of them if none
    /// does.
    pub fn pass_frame(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while let Some((first, others)) = rest.split_first() {
            if self.payload_left > 0 {
                let passed = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(rest.len());
                self.payload_left = self.payload_left.saturating_sub(passed as u64);
                rest = rest.get(passed..).unwrap_or_default();
                if self.payload_left == 0 {
                    return bytes.len().saturating_sub(rest.len());
                }
                continue;
            }
            if let Some(place) = self.header.get_mut(usize::from(self.header_bytes)) {
                *place = *first;
            }
            self.header_bytes = self.header_bytes.saturating_add(1);
            rest = others;
            let Some(payload_bytes) = self.whole_header() else { continue };
            self.has_closed |= self.header[0] & 0x0f == Opcode::Close as u8;
            self.header_bytes = 0;
            self.payload_left = payload_bytes;
            if payload_bytes == 0 {
                return bytes.len().saturating_sub(rest.len());
            }
        }
        bytes.len()
    }

    /// Lets all of these bytes pass.
    pub fn pass(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let passed = self.pass_frame(rest);
            rest = rest.get(passed..).unwrap_or_default();
        }
    }

    /// Whether a frame of our own may be said here.
    pub const fn is_between_frames(&self) -> bool {
        self.header_bytes == 0 && self.payload_left == 0
    }

    /// Whether a `Close` has passed, or its beginning has: nothing may follow it (RFC 6455 §5.5.1).
    pub const fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// The length of the payload, once the header is whole.
    fn whole_header(&self) -> Option<u64> {
        let [_, second, lengths @ ..] = self.header;
        let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
        let (length_bytes, payload_bytes) = match (second & 0x7f, lengths) {
            (126, [high, low, ..]) => (2, u64::from(u16::from_be_bytes([high, low]))),
            // The highest bit has to be 0; a peer that sets it is at no border for longer than anybody lives.
            (127, lengths) => (8, lengths.first_chunk().map_or(u64::MAX, |length| u64::from_be_bytes(*length))),
            (short, _) => (0, u64::from(short)),
        };
        let whole: u8 = 2_u8.saturating_add(length_bytes).saturating_add(mask_bytes);
        (self.header_bytes >= 2 && self.header_bytes >= whole).then_some(payload_bytes)
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::websocket::{close_to_client, close_to_server};

    /// A frame with this opcode and so much payload; the length is written in as many bytes as `width` says.
    fn frame(opcode: u8, payload: usize, width: u8, is_masked: bool) -> Vec<u8> {
        let mask_bit = if is_masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match width {
            0 => frame.push(mask_bit | u8::try_from(payload).unwrap_or(0x7d)),
            2 => {
                frame.push(mask_bit | 0x7e);
                frame.extend_from_slice(&u16::try_from(payload).unwrap_or(u16::MAX).to_be_bytes());
            }
            _ => {
                frame.push(mask_bit | 0x7f);
                frame.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        if is_masked {
            frame.extend_from_slice(&[0x88; 4]);
        }
        frame.resize(frame.len() + payload, 0x88);
        frame
    }

    fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let one = (0_u8..8, 0_usize..300, prop_oneof![Just(0_u8), Just(2), Just(8)], any::<bool>());
        let one = one.prop_map(|(opcode, payload, width, is_masked)| {
            frame(opcode, if width == 0 { payload % 126 } else { payload }, width, is_masked)
        });
        prop::collection::vec(one, 1..8)
    }

    proptest! {
        #[test]
        fn borders_are_found_wherever_the_bytes_are_split(frames in frames(), step in 1_usize..40) {
            let ends: Vec<usize> = frames.iter().scan(0, |end, frame| { *end += frame.len(); Some(*end) }).collect();
            let bytes = frames.concat();
            let mut borders = Borders::default();
            let mut passed = 0;
            for piece in bytes.chunks(step) {
                let mut rest = piece;
                while !rest.is_empty() {
                    let taken = borders.pass_frame(rest);
                    passed += taken;
                    rest = &rest[taken..];
                    prop_assert_eq!(borders.is_between_frames(), ends.contains(&passed), "at {}", passed);
                }
            }
            prop_assert_eq!(passed, bytes.len());
            prop_assert!(!borders.has_closed());
        }

        #[test]
        fn any_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut borders = Borders::default();
            borders.pass(&bytes);
        }
    }

    #[test]
    fn a_close_is_seen_and_ours_are_frames() {
        let mut borders = Borders::default();
        borders.pass(&frame(1, 5, 0, true));
        assert!(!borders.has_closed());
        borders.pass(&close_to_client(1001));
        assert!(borders.has_closed() && borders.is_between_frames());
        let masked = close_to_server(1001, [1, 2, 3, 4]);
        let mut borders = Borders::default();
        borders.pass(&masked[..2]);
        assert!(!borders.has_closed() && !borders.is_between_frames(), "its header is not whole");
        borders.pass(&masked[2..]);
        assert!(borders.has_closed() && borders.is_between_frames());
        assert_eq!([masked[6] ^ 1, masked[7] ^ 2], 1001_u16.to_be_bytes());
        assert_eq!(close_to_client(1001)[2..], 1001_u16.to_be_bytes());
    }

    #[test]
    fn a_length_that_nobody_sends_ends_nowhere() {
        let mut borders = Borders::default();
        borders.pass(&[0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        borders.pass(&[0; 4096]);
        assert!(!borders.is_between_frames());
    }
}

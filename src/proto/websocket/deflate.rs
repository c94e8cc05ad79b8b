//! permessage-deflate (RFC 7692 §7) without context takeover: each message by itself, so that a connection keeps no state
//! and all of a shard share one.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::FrameError;

/// What a sender takes from the end of each message (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Memory for what comes out grows by at least so much.
const STEP_BYTES: usize = 16 * 1024;

/// What is kept of it for the next message.
const KEPT_BYTES_MAX: usize = 128 * 1024;

/// The window that needs no saying, as a power of two.
const WINDOW_BITS: u8 = 15;

/// Inflates messages. One per shard.
#[derive(Debug)]
pub struct Inflater {
    state: Decompress,
    inflated: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { state: Decompress::new(false), inflated: Vec::new() }
    }
}

impl Inflater {
    /// Inflates a message, as long as it becomes no longer than this.
    pub fn inflate(&mut self, payload: &[u8], bytes_max: u32) -> Result<&[u8], FrameError> {
        self.inflated.clear();
        self.state.reset(false);
        let limit = bytes_max as usize;
        for mut rest in [payload, &TAIL] {
            loop {
                self.make_room(limit);
                let (read, written) = (self.state.total_in(), self.inflated.len());
                let status = self.state.decompress_vec(rest, &mut self.inflated, FlushDecompress::Sync);
                let status = status.map_err(|_| FrameError::NotDeflated)?;
                let read = usize::try_from(self.state.total_in().saturating_sub(read)).unwrap_or(usize::MAX);
                rest = rest.get(read..).unwrap_or_default();
                if self.inflated.len() > limit {
                    return Err(FrameError::MessageTooLong(bytes_max));
                }
                let has_moved = read > 0 || self.inflated.len() > written;
                match status {
                    // RFC 7692 §7.2.3.4: a sender may end its data, and begin again.
                    Status::StreamEnd => self.state.reset(false),
                    _ if has_moved || rest.is_empty() => {}
                    _ => return Err(FrameError::NotDeflated),
                }
                if rest.is_empty() && (!has_moved || self.inflated.len() < self.inflated.capacity()) {
                    break;
                }
            }
        }
        Ok(&self.inflated)
    }

    /// Room for more, up to one byte past the limit, which shows that it is passed.
    fn make_room(&mut self, limit: usize) {
        let held = self.inflated.len();
        if held == self.inflated.capacity() {
            let wanted = held.saturating_mul(2).max(STEP_BYTES).min(limit.saturating_add(1));
            self.inflated.reserve_exact(wanted.saturating_sub(held));
        }
    }

    /// Gives back what a long message needed.
    pub fn release(&mut self) {
        release(&mut self.inflated);
    }
}

/// Compresses messages. One per shard.
#[derive(Debug, Default)]
pub struct Deflater {
    state: Option<Compress>,
    /// For the window that a client last asked for.
    narrow: Option<(u8, Compress)>,
    deflated: Vec<u8>,
}

impl Deflater {
    /// Compresses a message for a window of so many bits, 9 to 15.
    pub fn deflate(&mut self, payload: &[u8], window_bits: u8) -> &[u8] {
        let level = Compression::fast();
        let state = if window_bits >= WINDOW_BITS {
            self.state.get_or_insert_with(|| Compress::new(level, false))
        } else {
            let bits = window_bits.max(9);
            match &mut self.narrow {
                Some((agreed, _)) if *agreed == bits => {}
                narrow => *narrow = Some((bits, Compress::new_with_window_bits(level, false, bits))),
            }
            match &mut self.narrow {
                Some((_, state)) => state,
                None => return &[], // it was put there just now
            }
        };
        state.reset();
        self.deflated.clear();
        let mut rest = payload;
        loop {
            let (read, written) = (state.total_in(), self.deflated.len());
            self.deflated.reserve(STEP_BYTES.min(rest.len().saturating_add(64)));
            let room = self.deflated.capacity();
            // It fails only for settings that are wrong.
            let _ = state.compress_vec(rest, &mut self.deflated, FlushCompress::Sync);
            let read = usize::try_from(state.total_in().saturating_sub(read)).unwrap_or(usize::MAX);
            rest = rest.get(read..).unwrap_or_default();
            let has_moved = read > 0 || self.deflated.len() > written;
            if !has_moved || (rest.is_empty() && self.deflated.len() < room) {
                break;
            }
        }
        self.deflated.strip_suffix(&TAIL).unwrap_or(&self.deflated)
    }

    /// Gives back what a long message needed.
    pub fn release(&mut self) {
        release(&mut self.deflated);
    }
}

fn release(bytes: &mut Vec<u8>) {
    if bytes.capacity() > KEPT_BYTES_MAX {
        *bytes = Vec::new();
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_rfc_inflate() {
        let mut inflater = Inflater::default();
        // RFC 7692 §7.2.3: compressed, in two blocks, stored, and with an end in it.
        for payload in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
        ] {
            assert_eq!(inflater.inflate(payload, 5), Ok(&b"Hello"[..]), "{payload:x?}");
            assert_eq!(inflater.inflate(payload, 4), Err(FrameError::MessageTooLong(4)), "{payload:x?}");
        }
        assert_eq!(inflater.inflate(&[0], 0), Ok(&[][..]));
        assert_eq!(inflater.inflate(&[0xff, 0xff], 100), Err(FrameError::NotDeflated));
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = Deflater::default().deflate(&vec![0; 64 << 20], 15).to_vec();
        assert!(bomb.len() < 1 << 20, "{}", bomb.len());
        let mut inflater = Inflater::default();
        assert_eq!(inflater.inflate(&bomb, 65_536), Err(FrameError::MessageTooLong(65_536)));
        assert!(inflater.inflated.capacity() <= 65_537, "{}", inflater.inflated.capacity());
        assert_eq!(inflater.state.total_out(), 65_537, "one byte shows that there are more");
    }

    #[test]
    fn what_a_long_message_needed_goes() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        let long: Vec<u8> = (0..1 << 20).map(|_| fastrand::u8(..)).collect();
        let deflated = deflater.deflate(&long, 15).to_vec();
        assert_eq!(inflater.inflate(&deflated, 1 << 20).unwrap(), long);
        deflater.release();
        inflater.release();
        assert_eq!((deflater.deflated.capacity(), inflater.inflated.capacity()), (0, 0));
    }

    proptest! {
        #[test]
        fn what_is_deflated_inflates(
            words in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..30),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..2000), bits in 9_u8..=15,
        ) {
            let message: Vec<u8> =
                picks.iter().filter(|_| !words.is_empty()).flat_map(|pick| pick.get(&words).clone()).collect();
            let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
            for _ in 0..2 {
                let deflated = deflater.deflate(&message, bits);
                let length = u32::try_from(message.len()).unwrap();
                prop_assert_eq!(inflater.inflate(deflated, length).unwrap(), &message[..]);
            }
        }

        #[test]
        fn any_bytes_inflate_or_not(bytes in prop::collection::vec(any::<u8>(), 0..300), limit in 0_u32..5000) {
            let mut inflater = Inflater::default();
            if let Ok(inflated) = inflater.inflate(&bytes, limit) {
                prop_assert!(inflated.len() <= limit as usize);
            }
            prop_assert!(inflater.inflated.capacity() <= limit as usize + 1);
        }
    }
}

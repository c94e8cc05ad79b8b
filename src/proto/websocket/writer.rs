//! Messages into frames. A server's frames are not masked, so one encoding serves every receiver.

use super::frame::{CONTROL_BYTES_MAX, FIN, MASK, Opcode, RSV1};
use super::mask::unmask;

/// Bytes of the longest close frame of a server.
pub const CLOSE_FRAME_MAX: usize = 2 + CONTROL_BYTES_MAX;

/// The header of a server's frame.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; 10],
    len: u8,
}

impl Header {
    /// The bytes to send.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The header of a frame that is a whole message, or a control frame.
#[inline]
pub fn header(opcode: Opcode, payload_bytes: usize) -> Header {
    begin(FIN | opcode as u8, 0, payload_bytes)
}

/// The header of a whole message that is compressed.
#[inline]
pub fn deflated_header(opcode: Opcode, payload_bytes: usize) -> Header {
    begin(FIN | RSV1 | opcode as u8, 0, payload_bytes)
}

/// The shortest form of the length (RFC 6455 §5.2).
fn begin(first: u8, mask: u8, payload_bytes: usize) -> Header {
    let length = (payload_bytes as u64).to_be_bytes();
    let [.., high, low] = length;
    match payload_bytes {
        0..=125 => Header { bytes: [first, mask | low, 0, 0, 0, 0, 0, 0, 0, 0], len: 2 },
        126..=0xffff => Header { bytes: [first, mask | 0x7e, high, low, 0, 0, 0, 0, 0, 0], len: 4 },
        _ => {
            let mut bytes = [first, mask | 0x7f, 0, 0, 0, 0, 0, 0, 0, 0];
            if let Some(place) = bytes.last_chunk_mut() {
                *place = length;
            }
            Header { bytes, len: 10 }
        }
    }
}

/// A whole text message from its pieces, which together are UTF-8.
pub fn text_frame(pieces: &[&[u8]]) -> Vec<u8> {
    let payload_bytes = pieces.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
    let header = header(Opcode::Text, payload_bytes);
    let mut frame = Vec::with_capacity(payload_bytes.saturating_add(header.as_bytes().len()));
    frame.extend_from_slice(header.as_bytes());
    for piece in pieces {
        frame.extend_from_slice(piece);
    }
    frame
}

/// A close with a code and a reason, or with neither. A reason that is too long ends early, at the end of a letter.
pub fn close_frame(code: Option<u16>, reason: &str) -> Vec<u8> {
    let Some(code) = code else { return header(Opcode::Close, 0).as_bytes().to_vec() };
    let reason = reason.get(..reason.floor_char_boundary(CONTROL_BYTES_MAX.saturating_sub(2))).unwrap_or_default();
    let mut frame = header(Opcode::Close, reason.len().saturating_add(2)).as_bytes().to_vec();
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(reason.as_bytes());
    frame
}

/// A `Close` with a status code (RFC 6455 §7.4), as a server says it.
pub const fn close_to_client(code: u16) -> [u8; 4] {
    let [high, low] = code.to_be_bytes();
    [FIN | Opcode::Close as u8, 2, high, low]
}

/// The same as a client says it, masked with this key (RFC 6455 §5.3).
pub const fn close_to_server(code: u16, key: [u8; 4]) -> [u8; 8] {
    let [high, low] = code.to_be_bytes();
    let [a, b, c, d] = key;
    [FIN | Opcode::Close as u8, MASK | 2, a, b, c, d, high ^ a, low ^ b]
}

/// A frame as a client sends it, masked with this key.
pub fn client_frame(opcode: Opcode, is_final: bool, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let first = if is_final { FIN | opcode as u8 } else { opcode as u8 };
    let header = begin(first, MASK, payload.len());
    let mut frame = [header.as_bytes(), &key].concat();
    let start = frame.len();
    frame.extend_from_slice(payload);
    unmask(frame.get_mut(start..).unwrap_or_default(), key);
    frame
}

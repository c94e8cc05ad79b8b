//! Walks through the body of a message as it comes: says which stretches are payload, and copies none of them.

use super::error::BodyError;
use super::fields::LENGTH_MAX;
use super::trailers::Trailers;
use crate::proto::head::Framing;

/// Bytes of one chunk line, extensions included.
const CHUNK_LINE_BYTES_MAX: u16 = 4096;

/// How far the lines of all chunks together may outgrow what their payload justifies: a body of one-byte chunks that
/// carry an extension each would cost far more to read than it is worth. Go's net/http allows as much.
const CHUNK_OVERHEAD_MAX: u64 = 16 * 1024;

/// Overhead that any chunk justifies, and what each byte of its payload adds.
const CHUNK_OVERHEAD_FREE: u64 = 16;
const CHUNK_OVERHEAD_PER_BYTE: u64 = 2;

/// What comes next in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// More input is needed, after so many bytes of framing.
    More {
        /// Bytes to drop from the input.
        consumed: usize,
    },
    /// `input[start..end]` is payload, never empty; drop `end` bytes from the input and call again.
    Data {
        /// Where the payload starts.
        start: usize,
        /// Where it ends.
        end: usize,
    },
    /// The body is complete after so many bytes; what follows belongs to the next message.
    Done {
        /// Bytes to drop from the input.
        consumed: usize,
    },
}

/// Decodes one body.
///
/// Call [`decode`](Self::decode) with what has come and is not yet consumed, until it says `More` or `Done`. It never
/// looks back: consumed input may be dropped.
#[derive(Debug)]
pub struct BodyDecoder {
    state: Progress,
}

#[derive(Debug)]
enum Progress {
    Length { left: u64 },
    Chunked(Chunked),
    UntilClose,
    Closed,
}

impl BodyDecoder {
    /// For a message that is framed so.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None => Progress::Length { left: 0 },
            Framing::Length(left) => Progress::Length { left },
            Framing::Chunked => Progress::Chunked(Chunked::default()),
            Framing::UntilClose => Progress::UntilClose,
        };
        Self { state }
    }

    /// What the input begins with. After an error the connection is of no more use.
    #[inline]
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, BodyError> {
        match &mut self.state {
            Progress::Closed | Progress::Length { left: 0 } => Ok(Decoded::Done { consumed: 0 }),
            _ if input.is_empty() => Ok(Decoded::More { consumed: 0 }),
            Progress::Length { left } => Ok(Decoded::Data { start: 0, end: take(left, input.len()) }),
            Progress::UntilClose => Ok(Decoded::Data { start: 0, end: input.len() }),
            Progress::Chunked(chunked) => chunked.decode(input),
        }
    }

    /// How many bytes are to come that are payload and nothing else: as many as can be; none of a chunked body, whose
    /// framing stands between them.
    pub const fn payload_left(&self) -> u64 {
        match &self.state {
            Progress::Length { left } => *left,
            Progress::UntilClose => u64::MAX,
            Progress::Closed | Progress::Chunked(_) => 0,
        }
    }

    /// So many bytes of payload have gone another way and will not be decoded: no more than
    /// [`payload_left`](Self::payload_left) says.
    pub fn skip(&mut self, bytes: u64) {
        if let Progress::Length { left } = &mut self.state {
            *left = left.saturating_sub(bytes);
        }
    }

    /// Whether the body is complete.
    #[inline]
    pub const fn is_done(&self) -> bool {
        match &self.state {
            Progress::Closed | Progress::Length { left: 0 } => true,
            Progress::Length { .. } | Progress::UntilClose => false,
            Progress::Chunked(chunked) => matches!(chunked.expected, Expected::Nothing),
        }
    }

    /// Tells that the peer closed. Only a body that is read until then is complete by it.
    pub fn finish_at_eof(&mut self) -> Result<(), BodyError> {
        if matches!(self.state, Progress::UntilClose) {
            self.state = Progress::Closed;
        }
        if self.is_done() { Ok(()) } else { Err(BodyError::Truncated) }
    }

    /// The trailer fields, once the body is complete: lines as they came, each with its CR LF, without those that may
    /// not stand in a trailer. Fit for [`encode_last_chunk`](super::encode_last_chunk).
    pub fn trailers(&self) -> &[u8] {
        match &self.state {
            Progress::Chunked(chunked) => chunked.trailers.kept(),
            _ => &[],
        }
    }
}

/// Takes up to `len` bytes of what is left, and says how many.
#[inline]
fn take(left: &mut u64, len: usize) -> usize {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(len);
    *left = left.saturating_sub(taken as u64);
    taken
}

/// The chunked transfer coding (RFC 9112 §7.1).
#[derive(Debug, Default)]
struct Chunked {
    expected: Expected,
    /// The size read so far, then what is left of the chunk.
    left: u64,
    /// Bytes of the chunk line so far.
    line_bytes: u16,
    /// Overhead that no payload has justified yet.
    overhead: u64,
    trailers: Trailers,
}

#[derive(Clone, Copy, Debug, Default)]
enum Expected {
    /// A chunk size; none of its digits came yet.
    #[default]
    Size,
    MoreSize,
    /// White space behind the size, which only an extension may follow.
    Semicolon,
    Extension,
    LineLf,
    Payload,
    PayloadCr,
    PayloadLf,
    Trailers,
    Nothing,
}

impl Chunked {
    #[inline]
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, BodyError> {
        for (at, &byte) in input.iter().enumerate() {
            self.expected = match self.expected {
                Expected::Payload => {
                    let end = at.saturating_add(take(&mut self.left, input.len().saturating_sub(at)));
                    if self.left == 0 {
                        self.expected = Expected::PayloadCr;
                    }
                    return Ok(Decoded::Data { start: at, end });
                }
                Expected::PayloadCr if byte == b'\r' => Expected::PayloadLf,
                Expected::PayloadLf if byte == b'\n' => Expected::Size,
                Expected::PayloadCr | Expected::PayloadLf => return Err(BodyError::MissingChunkEnd),
                Expected::Trailers => {
                    if self.trailers.take(byte)? {
                        self.expected = Expected::Nothing;
                        return Ok(Decoded::Done { consumed: at.saturating_add(1) });
                    }
                    Expected::Trailers
                }
                Expected::Nothing => return Ok(Decoded::Done { consumed: at }),
                expected => self.take_line_byte(expected, byte)?,
            };
        }
        match self.expected {
            Expected::Nothing => Ok(Decoded::Done { consumed: input.len() }),
            _ => Ok(Decoded::More { consumed: input.len() }),
        }
    }

    /// One byte of a chunk line: `size [ ";" extension ] CR LF`.
    #[inline]
    fn take_line_byte(&mut self, expected: Expected, byte: u8) -> Result<Expected, BodyError> {
        self.line_bytes = self.line_bytes.saturating_add(1);
        if self.line_bytes > CHUNK_LINE_BYTES_MAX {
            return Err(BodyError::ChunkLineTooLong);
        }
        match (expected, byte) {
            (Expected::LineLf, b'\n') => self.end_line(),
            (Expected::LineLf, _) => Err(BodyError::BareCr),
            (Expected::Size | Expected::MoreSize, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.add_digit(byte),
            (Expected::Size, _) => Err(BodyError::BadChunkSize),
            (_, b'\n') => Err(BodyError::BareLf),
            (Expected::MoreSize | Expected::Extension, b'\r') => Ok(Expected::LineLf),
            (Expected::MoreSize | Expected::Semicolon, b' ' | b'\t') => Ok(Expected::Semicolon),
            // What an extension says is of no interest and goes no further; that it is text keeps parsers in step.
            (Expected::MoreSize | Expected::Semicolon, b';') | (Expected::Extension, b' '..=b'~' | b'\t' | 0x80..) => {
                Ok(Expected::Extension)
            }
            (Expected::MoreSize, _) => Err(BodyError::BadChunkSize),
            _ => Err(BodyError::BadChunkExtension),
        }
    }

    fn add_digit(&mut self, byte: u8) -> Result<Expected, BodyError> {
        let digit = match byte {
            b'0'..=b'9' => byte & 0x0f,
            _ => (byte & 0x0f).saturating_add(9),
        };
        let shifted = self.left.checked_mul(16).filter(|size| *size <= LENGTH_MAX).ok_or(BodyError::ChunkTooLarge)?;
        self.left = shifted | u64::from(digit);
        Ok(Expected::MoreSize)
    }

    fn end_line(&mut self) -> Result<Expected, BodyError> {
        let justified = self.left.saturating_mul(CHUNK_OVERHEAD_PER_BYTE).saturating_add(CHUNK_OVERHEAD_FREE);
        self.overhead = self.overhead.saturating_add(u64::from(self.line_bytes)).saturating_sub(justified);
        self.line_bytes = 0;
        match self.left {
            _ if self.overhead > CHUNK_OVERHEAD_MAX => Err(BodyError::TooMuchChunkOverhead),
            0 => Ok(Expected::Trailers),
            _ => Ok(Expected::Payload),
        }
    }
}

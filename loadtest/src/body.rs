//! The framing of an HTTP/1.1 body, requests and answers alike: where it ends and which bytes are content.
//! Pure; a body may be split anywhere. Heads are `answer`'s and `serve`'s.

/// Chunk extensions and trailers of one body may take this much together: nothing of them is used.
const OVERHEAD_BYTES_MAX: u32 = 16 * 1024;

/// What is still to come of a body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Length(u64),
    Chunked { state: Chunk, overhead: u32 },
    UntilClose,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Chunk {
    Size { value: u64, digits: u8 },
    Extension { value: u64 },
    SizeLf { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    LineStart,
    Trailer,
    LastLf,
    Done,
}

impl Body {
    pub(crate) fn chunked() -> Self {
        Self::Chunked { state: Chunk::Size { value: 0, digits: 0 }, overhead: 0 }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked { state: Chunk::Done, .. })
    }

    /// Takes what belongs to this body from the front of `bytes`, hands its content on, and says how much it took.
    /// The error is a sentence about the other end's mistake.
    pub(crate) fn take(&mut self, bytes: &[u8], content: &mut impl FnMut(&[u8])) -> Result<usize, &'static str> {
        match self {
            Self::UntilClose => {
                content(bytes);
                Ok(bytes.len())
            }
            Self::Length(left) => {
                let taken = shorter(bytes.len(), *left);
                *left -= taken as u64;
                content(&bytes[..taken]);
                Ok(taken)
            }
            Self::Chunked { state, overhead } => {
                let mut at = 0;
                while at < bytes.len() && *state != Chunk::Done {
                    if let Chunk::Data { left } = state {
                        let taken = shorter(bytes.len() - at, *left);
                        content(&bytes[at..at + taken]);
                        at += taken;
                        *left -= taken as u64;
                        if *left == 0 {
                            *state = Chunk::DataCr;
                        }
                        continue;
                    }
                    if matches!(state, Chunk::Extension { .. } | Chunk::Trailer) {
                        *overhead += 1;
                        if *overhead > OVERHEAD_BYTES_MAX {
                            return Err("chunk extensions and trailers over 16 KiB");
                        }
                    }
                    *state = step(*state, bytes[at])?;
                    at += 1;
                }
                Ok(at)
            }
        }
    }
}

fn shorter(length: usize, left: u64) -> usize {
    usize::try_from(left).map_or(length, |left| left.min(length))
}

fn step(state: Chunk, byte: u8) -> Result<Chunk, &'static str> {
    Ok(match (state, byte) {
        (Chunk::Size { value, digits: 1.. } | Chunk::Extension { value }, b'\r') => Chunk::SizeLf { value },
        (Chunk::Size { value, digits: 1.. }, b';') | (Chunk::Extension { value }, _) => Chunk::Extension { value },
        (Chunk::Size { value, digits }, byte) => {
            let digit = char::from(byte).to_digit(16).ok_or("a chunk size that is not hexadecimal")?;
            if digits == 16 {
                return Err("a chunk size of more than 16 digits");
            }
            Chunk::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
        }
        (Chunk::SizeLf { value: 0 } | Chunk::Trailer, b'\n') => Chunk::LineStart,
        (Chunk::SizeLf { value }, b'\n') => Chunk::Data { left: value },
        (Chunk::DataCr, b'\r') => Chunk::DataLf,
        (Chunk::DataLf, b'\n') => Chunk::Size { value: 0, digits: 0 },
        (Chunk::LineStart, b'\r') => Chunk::LastLf,
        (Chunk::LineStart | Chunk::Trailer, _) => Chunk::Trailer,
        (Chunk::LastLf, b'\n') => Chunk::Done,
        _ => return Err("a chunk that does not end with CR LF"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut body: Body, bytes: &[u8], split: usize) -> Result<(Vec<u8>, usize, bool), &'static str> {
        let mut content = Vec::new();
        let mut taken = 0;
        for piece in bytes.chunks(split) {
            taken += body.take(piece, &mut |part| content.extend_from_slice(part))?;
            if body.is_done() {
                break;
            }
        }
        Ok((content, taken, body.is_done()))
    }

    #[test]
    fn chunks_end_at_the_last_one_however_they_are_split() {
        let bytes = b"5;name=value\r\nhello\r\n00b\r\n, and again\r\n0\r\nTrailer: x\r\n\r\nnext";
        for split in 1..=bytes.len() {
            let (content, taken, done) = read(Body::chunked(), bytes, split).expect("well formed");
            assert_eq!(content, b"hello, and again", "split {split}");
            assert_eq!(taken, bytes.len() - 4, "split {split}");
            assert!(done, "split {split}");
        }
    }

    #[test]
    fn a_length_takes_no_more_than_its_own() {
        assert_eq!(read(Body::Length(3), b"abcdef", 2), Ok((b"abc".to_vec(), 3, true)));
        assert_eq!(read(Body::Length(9), b"abcdef", 6), Ok((b"abcdef".to_vec(), 6, false)));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let cases: [&[u8]; 6] = [b"\r\n", b"x\r\n", b"1\n", b"1\r\nabc", b"11111111111111111\r\n", b"0\r\n\rx"];
        for case in cases {
            assert!(read(Body::chunked(), case, 1).is_err(), "{}", case.escape_ascii());
        }
    }

    #[test]
    fn endless_trailers_are_refused() {
        let mut bytes = b"0\r\n".to_vec();
        bytes.resize(20_000, b'a');
        assert!(read(Body::chunked(), &bytes, 100).is_err());
    }
}

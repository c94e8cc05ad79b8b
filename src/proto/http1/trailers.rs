//! The trailer section of a chunked body: bounded, checked like the fields of a head, and rid of what may not stand there.

use super::bytes::{TOKEN, all};
use super::connection::elements;
use super::error::{BodyError, HeadError};
use super::fields::check_line;
use crate::proto::head::Known;
use crate::proto::known::{known, looks_like_framing};

/// Bytes of a trailer section, dropped fields included. Checksums and timings fit many times over.
pub(super) const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Fields of a trailer section, dropped ones included.
pub(super) const TRAILER_FIELDS_MAX: usize = 32;

/// Takes a trailer section byte by byte; allocates with its first field.
#[derive(Debug, Default)]
pub(super) struct Trailers {
    /// Complete lines that are kept, and behind them the one that is coming in.
    lines: Vec<u8>,
    /// Where the incoming line begins.
    start: usize,
    /// All that came.
    bytes_seen: usize,
    fields_seen: usize,
    ends_in_cr: bool,
}

impl Trailers {
    /// The fields that are kept, each line with its CR LF.
    pub(super) fn kept(&self) -> &[u8] {
        self.lines.get(..self.start).unwrap_or_default()
    }

    /// Takes one byte and says whether it ended the section.
    pub(super) fn take(&mut self, byte: u8) -> Result<bool, BodyError> {
        self.bytes_seen = self.bytes_seen.saturating_add(1);
        if self.bytes_seen > TRAILER_BYTES_MAX {
            return Err(BodyError::TrailersTooLarge);
        }
        match (self.ends_in_cr, byte) {
            (false, b'\r') => self.ends_in_cr = true,
            (false, b'\n') => return Err(BodyError::BareLf),
            (false, _) => self.lines.push(byte),
            (true, b'\n') => {
                self.ends_in_cr = false;
                return self.end_line();
            }
            (true, _) => return Err(BodyError::BareCr),
        }
        Ok(false)
    }

    fn end_line(&mut self) -> Result<bool, BodyError> {
        let line = self.lines.get(self.start..).unwrap_or_default();
        if line.is_empty() {
            return Ok(true);
        }
        self.fields_seen = self.fields_seen.saturating_add(1);
        if self.fields_seen > TRAILER_FIELDS_MAX {
            return Err(BodyError::TooManyTrailers);
        }
        let name = check_line(line).map_err(|error| match error {
            HeadError::BareCr => BodyError::BareCr,
            _ => BodyError::BadTrailer,
        })?;
        if may_trail(name) {
            self.lines.extend_from_slice(b"\r\n");
            self.start = self.lines.len();
        } else {
            self.lines.truncate(self.start);
        }
        Ok(false)
    }
}

/// The names in the value of a `Trailer` field that may come behind a body, in their order (RFC 9110 §6.6.2).
pub fn trailer_names(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    elements(value).filter(|name| all(name, TOKEN) && may_trail(name))
}

/// RFC 9110 §6.5.1: framing, routing, credentials, conditions and whatever tells how to read the content may not trail.
///
/// Whoever merges trailers into the head would take such a field for one that was checked, so all that the gateway
/// itself reads or sets goes too.
fn may_trail(name: &[u8]) -> bool {
    known(name) == Known::Other
        && !looks_like_framing(name)
        && !NEVER_TRAILING.iter().any(|never| name.eq_ignore_ascii_case(never))
}

const NEVER_TRAILING: [&[u8]; 22] = [
    b"age",
    b"accept-encoding",
    b"allow",
    b"cache-control",
    b"content-encoding",
    b"content-language",
    b"content-location",
    b"content-range",
    b"cookie",
    b"expires",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"last-modified",
    b"location",
    b"max-forwards",
    b"pragma",
    b"range",
    b"warning",
    b"www-authenticate",
];

//! Finds the end of a head in bytes that come piece by piece.
//!
//! A scanner never looks at a byte twice, however small the pieces, and it refuses as early as the bytes allow: an
//! over-long target before its line is complete, a TLS handshake at its first byte. It finds the lines; what they say is
//! for the parsers.

use memchr::{memchr2, memchr3};

use super::bytes::{TOKEN, is};
use super::error::{HeadError, RequestError, ResponseError};

/// Longest method that is looked at; the longest registered one (`UPDATEREDIRECTREF`) has 17 characters.
pub(super) const METHOD_BYTES_MAX: usize = 32;

/// Empty lines before a request, which RFC 9112 §2.2 asks to ignore: some clients send one after a body.
const LEADING_LINES_MAX: usize = 2;

/// What an answer begins with, as far as both versions agree.
const ANSWER_START: &[u8] = b"HTTP/1.";

/// Bounds of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of the whole head, with its first and its empty last line.
    pub head_bytes_max: usize,
    /// Field lines; more than 256 are never accepted.
    pub fields_max: usize,
    /// Bytes of a request target.
    pub target_bytes_max: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { head_bytes_max: 32 * 1024, fields_max: 100, target_bytes_max: 8 * 1024 }
    }
}

/// How far the search for the end of a request's head has come.
///
/// It remembers offsets: give it the same bytes again, with more behind them. Begin each request with a new one.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    lines: Lines,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Before,
    Method,
    Target,
    Lines,
}

impl HeadScanner {
    /// At the start of a request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it has looked at nothing yet.
    pub const fn is_new(&self) -> bool {
        self.lines.at == 0 && matches!(self.stage, Stage::Before)
    }

    /// The length of the head that `bytes` begin with, through its empty line; `None` while it is incomplete.
    ///
    /// Empty lines before the request count to its head.
    pub fn scan(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<usize>, RequestError> {
        let window = bytes.get(..limits.head_bytes_max).unwrap_or(bytes);
        let found = loop {
            let more = match self.stage {
                Stage::Before => self.skip_empty_lines(window)?,
                Stage::Method => self.pass_method(window)?,
                Stage::Target => self.pass_target(window, limits.target_bytes_max)?,
                Stage::Lines => break self.lines.pass(window, limits.fields_max)?,
            };
            if !more {
                break None;
            }
        };
        found_or_room(found, bytes, limits)
    }

    /// Whether there are bytes for the next stage, here and below.
    fn skip_empty_lines(&mut self, window: &[u8]) -> Result<bool, RequestError> {
        loop {
            let at = self.lines.at;
            match window.get(at..).unwrap_or_default() {
                [] | [b'\r'] => return Ok(false),
                [b'\r', b'\n', ..] if at < LEADING_LINES_MAX.saturating_mul(2) => self.lines.at = at.saturating_add(2),
                [b'\r', b'\n', ..] => return Err(RequestError::BadRequestLine),
                [b'\r', ..] => return Err(HeadError::BareCr.into()),
                [b'\n', ..] => return Err(HeadError::BareLf.into()),
                [..] => {
                    self.lines.start = at;
                    self.stage = Stage::Method;
                    return Ok(true);
                }
            }
        }
    }

    fn pass_method(&mut self, window: &[u8]) -> Result<bool, RequestError> {
        let rest = window.get(self.lines.at..).unwrap_or_default();
        let end = rest.iter().position(|&byte| !is(byte, TOKEN));
        let at = self.lines.at.saturating_add(end.unwrap_or(rest.len()));
        let length = at.saturating_sub(self.lines.start);
        if length > METHOD_BYTES_MAX {
            return Err(RequestError::MethodTooLong);
        }
        let Some(end) = end else {
            self.lines.at = at;
            return Ok(false);
        };
        match rest.get(end) {
            Some(b' ') if length > 0 => {
                self.lines.at = at.saturating_add(1);
                self.lines.start = self.lines.at;
                self.stage = Stage::Target;
                Ok(true)
            }
            Some(b'\n') => Err(HeadError::BareLf.into()),
            _ => Err(RequestError::BadRequestLine),
        }
    }

    fn pass_target(&mut self, window: &[u8], target_bytes_max: usize) -> Result<bool, RequestError> {
        let rest = window.get(self.lines.at..).unwrap_or_default();
        let end = memchr3(b' ', b'\r', b'\n', rest);
        let at = self.lines.at.saturating_add(end.unwrap_or(rest.len()));
        let length = at.saturating_sub(self.lines.start);
        if length > target_bytes_max {
            return Err(RequestError::TargetTooLong);
        }
        self.lines.at = at;
        match end.and_then(|end| rest.get(end)) {
            None => Ok(false),
            // The start of the line stays where the target began, so that the line counts as not empty.
            Some(b' ') if length > 0 => {
                self.stage = Stage::Lines;
                Ok(true)
            }
            Some(b'\n') => Err(HeadError::BareLf.into()),
            // HTTP/0.9 ends here: a request line without a version.
            Some(_) => Err(RequestError::BadRequestLine),
        }
    }
}

/// How far the search for the end of an answer's head has come; see [`HeadScanner`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseScanner {
    lines: Lines,
}

impl ResponseScanner {
    /// At the start of an answer, interim ones included.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it has looked at nothing yet.
    pub const fn is_new(&self) -> bool {
        self.lines.at == 0
    }

    /// The length of the head that `bytes` begin with, through its empty line; `None` while it is incomplete.
    pub fn scan(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<usize>, ResponseError> {
        let window = bytes.get(..limits.head_bytes_max).unwrap_or(bytes);
        if self.lines.at < ANSWER_START.len() && !window.iter().zip(ANSWER_START).all(|(byte, wanted)| byte == wanted) {
            return Err(ResponseError::BadStatusLine);
        }
        let found = self.lines.pass(window, limits.fields_max)?;
        found_or_room(found, bytes, limits)
    }
}

/// Waiting for more makes sense only while there may be more.
fn found_or_room<E: From<HeadError>>(
    found: Option<usize>,
    bytes: &[u8],
    limits: &HeadLimits,
) -> Result<Option<usize>, E> {
    if found.is_none() && bytes.len() >= limits.head_bytes_max {
        return Err(HeadError::TooLarge.into());
    }
    Ok(found)
}

/// Walks over lines that end in CR LF, up to the empty one.
#[derive(Clone, Copy, Debug, Default)]
struct Lines {
    /// The first byte not yet looked at.
    at: usize,
    /// The start of the line that it is in.
    start: usize,
    /// Complete lines; the first is no field.
    count: usize,
}

impl Lines {
    #[inline]
    fn pass(&mut self, window: &[u8], fields_max: usize) -> Result<Option<usize>, HeadError> {
        loop {
            let rest = window.get(self.at..).unwrap_or_default();
            let Some(found) = memchr2(b'\r', b'\n', rest) else {
                self.at = window.len();
                return Ok(None);
            };
            let end = self.at.saturating_add(found);
            match rest.get(found..).unwrap_or_default() {
                [b'\r', b'\n', ..] => {}
                [b'\r'] => {
                    self.at = end;
                    return Ok(None);
                }
                [b'\n', ..] => return Err(HeadError::BareLf),
                _ => return Err(HeadError::BareCr),
            }
            let next = end.saturating_add(2);
            if end == self.start {
                return Ok(Some(next));
            }
            if self.count > fields_max {
                return Err(HeadError::TooManyFields);
            }
            self.count = self.count.saturating_add(1);
            self.start = next;
            self.at = next;
        }
    }
}

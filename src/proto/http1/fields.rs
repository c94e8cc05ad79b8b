//! The field lines of a head: from httparse's slices to spans, with all that framing needs picked up on the way.

use std::mem::MaybeUninit;

use super::bytes::{TOKEN, VALUE, all, is, trim};
use super::connection::{CONNECTION_OPTIONS_MAX, elements};
use super::error::HeadError;
use crate::proto::head::{Field, Framing, Known, Span, Version};
use crate::proto::known::{known, looks_like_framing};

/// The most field lines that a head may have, whatever the limits say; 32 bytes of stack each.
pub(super) const FIELDS_MAX: usize = 256;

/// Room for httparse's view of the fields.
pub(super) type Room<'b> = [MaybeUninit<httparse::Header<'b>>; FIELDS_MAX];

/// Room that costs nothing to make.
#[inline]
pub(super) const fn room<'b>() -> Room<'b> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// What the fields say about framing, the connection and the host.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word that is listed or is not")]
pub(super) struct Survey {
    pub(super) host: Option<Span>,
    pub(super) several_hosts: bool,
    pub(super) expect: Expectation,
    /// `Connection: close`
    pub(super) close: bool,
    /// `Connection: keep-alive`
    pub(super) keep_alive: bool,
    /// `Connection: upgrade`
    pub(super) upgrade: bool,
    /// The first `Upgrade` names a protocol, and no `Upgrade` names h2c.
    pub(super) protocol: Protocol,
    /// The value of `Keep-Alive`.
    pub(super) keep_alive_parameters: Option<Span>,
    content_length: Option<u64>,
    transfer_encoding: Option<Span>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Expectation {
    #[default]
    None,
    Continue,
    Unknown,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Protocol {
    #[default]
    None,
    Named,
    /// HTTP/2 without TLS begins with prior knowledge only (RFC 9113 §3.1 dropped the upgrade): never passed on.
    H2c,
}

impl Survey {
    /// Fills `fields` from what httparse found in `head`.
    ///
    /// httparse takes a bare LF for a line's end; here each line must end in CR LF, so that a head that never went
    /// through a scanner is not read any more leniently.
    #[inline]
    pub(super) fn of(
        head: &[u8],
        headers: &[httparse::Header<'_>],
        fields: &mut Vec<Field>,
    ) -> Result<Self, HeadError> {
        let mut survey = Self::default();
        let mut options = 0_usize;
        fields.reserve(headers.len());
        for header in headers {
            let name = header.name.as_bytes();
            let field = Field { name: span_in(head, name), value: span_in(head, header.value), known: known(name) };
            require_line_end(head, field.value.end)?;
            fields.push(field);
            match field.known {
                Known::Other if looks_like_framing(name) => return Err(HeadError::AmbiguousFieldName),
                Known::Host if survey.host.is_some() => survey.several_hosts = true,
                Known::Host => survey.host = Some(field.value),
                Known::ContentLength if survey.content_length.is_some() => {
                    return Err(HeadError::SeveralContentLengths);
                }
                Known::ContentLength => survey.content_length = Some(length(header.value)?),
                Known::TransferEncoding if survey.transfer_encoding.is_some() => {
                    return Err(HeadError::SeveralTransferEncodings);
                }
                Known::TransferEncoding => survey.transfer_encoding = Some(field.value),
                Known::Connection => {
                    for option in elements(header.value) {
                        options = options.saturating_add(1);
                        if options > CONNECTION_OPTIONS_MAX {
                            return Err(HeadError::TooManyConnectionOptions);
                        }
                        survey.close |= option.eq_ignore_ascii_case(b"close");
                        survey.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                        survey.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                    }
                }
                Known::Upgrade => survey.note_protocols(header.value),
                Known::Expect => survey.note_expectation(header.value),
                Known::KeepAlive => survey.keep_alive_parameters = Some(field.value),
                _ => {}
            }
        }
        Ok(survey)
    }

    /// How the fields frame the body; `None` when neither field is present (RFC 9112 §6.3).
    #[inline]
    pub(super) fn framing(&self, head: &[u8], version: Version) -> Result<Option<Framing>, HeadError> {
        match (self.content_length, self.transfer_encoding) {
            (None, None) => Ok(None),
            (Some(length), None) => Ok(Some(Framing::Length(length))),
            // RFC 9112 §6.1: a server may refuse; a gateway that means to stop smuggling must.
            (Some(_), Some(_)) => Err(HeadError::LengthAndTransferEncoding),
            (None, Some(_)) if version == Version::Http10 => Err(HeadError::TransferEncodingInHttp10),
            (None, Some(codings)) => {
                require_chunked(codings.of(head))?;
                Ok(Some(Framing::Chunked))
            }
        }
    }

    /// Whether the connection is to stay (RFC 9112 §9.3).
    #[inline]
    pub(super) const fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (self.keep_alive || !matches!(version, Version::Http10))
    }

    fn note_protocols(&mut self, value: &[u8]) {
        for protocol in elements(value) {
            if protocol.eq_ignore_ascii_case(b"h2c") {
                self.protocol = Protocol::H2c;
            } else if self.protocol == Protocol::None {
                self.protocol = Protocol::Named;
            }
        }
    }

    fn note_expectation(&mut self, value: &[u8]) {
        let wanted = value.eq_ignore_ascii_case(b"100-continue");
        self.expect = match self.expect {
            Expectation::Unknown => Expectation::Unknown,
            _ if wanted => Expectation::Continue,
            _ => Expectation::Unknown,
        };
    }
}

/// The longest body, or chunk, that may be announced. Those who count with a sign take more for less than nothing.
pub(super) const LENGTH_MAX: u64 = i64::MAX as u64;

/// `1*DIGIT` up to [`LENGTH_MAX`] and nothing else: no sign, no list, no white space inside.
fn length(value: &[u8]) -> Result<u64, HeadError> {
    if value.is_empty() {
        return Err(HeadError::BadContentLength);
    }
    value
        .iter()
        .try_fold(0_u64, |length, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte & 0x0f))?;
            length.checked_mul(10)?.checked_add(digit).filter(|length| *length <= LENGTH_MAX)
        })
        .ok_or(HeadError::BadContentLength)
}

/// RFC 9112 §6.1 and §6.3: `chunked` must be the last coding, and only once. A body whose end is known that way but
/// that has another coding below is understood and not supported, hence 501; all else has no known end, hence 400.
/// `identity` was taken out of HTTP and is only seen where somebody tries to confuse two parsers.
fn require_chunked(codings: &[u8]) -> Result<(), HeadError> {
    if codings.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut above = codings.split(|&byte| byte == b',').map(trim);
    let last = above.next_back().unwrap_or_default();
    let mut below = above.peekable();
    if !last.eq_ignore_ascii_case(b"chunked") || below.peek().is_none() {
        return Err(HeadError::BadTransferEncoding);
    }
    for coding in below {
        let name = coding.split(|&byte| byte == b';').next().map(trim).unwrap_or_default();
        let confusing = name.eq_ignore_ascii_case(b"chunked") || name.eq_ignore_ascii_case(b"identity");
        if confusing || name.is_empty() || !all(name, TOKEN) {
            return Err(HeadError::BadTransferEncoding);
        }
    }
    Err(HeadError::UnknownTransferCoding)
}

/// Where a slice lies within the head that it was cut out of.
#[inline]
pub(in crate::proto) fn span_in(head: &[u8], part: &[u8]) -> Span {
    let start = part.as_ptr().addr().wrapping_sub(head.as_ptr().addr());
    let end = start.saturating_add(part.len());
    Span { start: u32::try_from(start).unwrap_or(u32::MAX), end: u32::try_from(end).unwrap_or(u32::MAX) }
}

/// After a value come white space and CR LF.
#[inline]
pub(super) fn require_line_end(head: &[u8], value_end: u32) -> Result<(), HeadError> {
    let mut rest = head.get(value_end as usize..).unwrap_or_default();
    while let [b' ' | b'\t', after @ ..] = rest {
        rest = after;
    }
    if rest.starts_with(b"\r\n") { Ok(()) } else { Err(HeadError::BareLf) }
}

/// The first mistake in the lines after the first one, for a head that httparse refused.
pub(super) fn first_mistake(lines: &[u8]) -> Option<HeadError> {
    lines.split_inclusive(|&byte| byte == b'\n').find_map(|line| match line {
        [line @ .., b'\r', b'\n'] => mistake_in(line),
        [.., b'\n'] => Some(HeadError::BareLf),
        _ => None,
    })
}

fn mistake_in(line: &[u8]) -> Option<HeadError> {
    if line.is_empty() {
        return None;
    }
    if let [b' ' | b'\t', ..] = line {
        return Some(HeadError::FoldedLine);
    }
    let mut parts = line.splitn(2, |&byte| byte == b':');
    let name = parts.next().unwrap_or_default();
    let value = parts.next();
    match (name, value) {
        ([.., b' ' | b'\t'], Some(_)) => Some(HeadError::SpaceBeforeColon),
        (_, None) | ([], _) => Some(HeadError::BadFieldName),
        _ if name.contains(&b'\r') => Some(HeadError::BareCr),
        _ if !all(name, TOKEN) => Some(HeadError::BadFieldName),
        (_, Some(value)) if value.contains(&b'\r') => Some(HeadError::BareCr),
        (_, Some(value)) if value.iter().any(|&byte| !is(byte, VALUE)) => Some(HeadError::BadFieldValue),
        _ => None,
    }
}

/// Checks a field line without its line end, as trailers bring it, and gives its name.
pub(super) fn check_line(line: &[u8]) -> Result<&[u8], HeadError> {
    match mistake_in(line) {
        Some(mistake) => Err(mistake),
        None => Ok(line.split(|&byte| byte == b':').next().unwrap_or_default()),
    }
}

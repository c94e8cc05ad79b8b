//! The head of a request: request line and fields, checked whole (RFC 9112 §3, §5, §6; RFC 9110 §5, §7).

use super::bytes::{TOKEN, all};
use super::error::{HeadError, RequestError};
use super::fields::{Expectation, FIELDS_MAX, Protocol, Survey, first_mistake, require_line_end, room, span_in};
use super::scan::{HeadLimits, METHOD_BYTES_MAX};
use super::target::{SplitTarget, has_legal_bytes, is_host};
use crate::proto::head::{Field, Framing, Method, RequestHead, Span, TargetForm, Version};

/// Reads the head that `bytes` begin with, `head_len` bytes long as [`HeadScanner`](super::HeadScanner) found it.
///
/// The head keeps the buffer: hand over one that holds the head and nothing else. `fields` is lent for its capacity.
/// Both come back with a refusal, `fields` empty.
pub fn parse_request(
    bytes: Vec<u8>,
    head_len: usize,
    mut fields: Vec<Field>,
    limits: &HeadLimits,
) -> Result<RequestHead, (RequestError, Vec<u8>, Vec<Field>)> {
    fields.clear();
    match read(bytes.get(..head_len).unwrap_or_default(), &mut fields, limits, Extent::All) {
        Ok(parts) => Ok(parts.into_head(bytes, fields)),
        Err(error) => {
            fields.clear();
            Err((error, bytes, fields))
        }
    }
}

/// A request's head that was whole, and in order, when its bytes were looked at first.
pub struct WholeRequest(RequestLine);

impl WholeRequest {
    /// Reads the head that `bytes` begin with, whatever follows it, if there is nothing to wait for and nothing wrong
    /// with it: most heads come in one piece, and are looked at only once so. `None` says nothing about the bytes; the
    /// scanner and [`parse_request`] do.
    ///
    /// `fields` are the head's if there is one, else empty.
    pub fn read(bytes: &[u8], fields: &mut Vec<Field>, limits: &HeadLimits) -> Option<Self> {
        fields.clear();
        let window = bytes.get(..limits.head_bytes_max).unwrap_or(bytes);
        let in_order = |parts: &RequestLine| {
            // What only the scanner refuses.
            parts.method_text.start == 0 && parts.method_text.end as usize <= METHOD_BYTES_MAX
        };
        let parts = read(window, fields, limits, Extent::Start).ok().filter(in_order);
        if parts.is_none() {
            fields.clear();
        }
        parts.map(Self)
    }

    /// Its length, through its empty line.
    pub const fn head_len(&self) -> usize {
        self.0.head_len
    }

    /// The head, of the same bytes and fields; of the bytes as many as it has.
    pub fn into_head(self, bytes: Vec<u8>, fields: Vec<Field>) -> RequestHead {
        self.0.into_head(bytes, fields)
    }
}

/// What the bytes are that a head is read from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// The head.
    All,
    /// The head and what follows it. Refusals are not worth a name then.
    Start,
}

/// A head without what it points into.
struct RequestLine {
    head_len: usize,
    method: Method,
    method_text: Span,
    target_text: Span,
    target: SplitTarget,
    authority: Span,
    version: Version,
    framing: Framing,
    keep_alive: bool,
    expect_continue: bool,
    upgrade: bool,
}

impl RequestLine {
    #[inline]
    fn into_head(self, bytes: Vec<u8>, fields: Vec<Field>) -> RequestHead {
        RequestHead {
            bytes,
            fields,
            method: self.method,
            method_text: self.method_text,
            target: self.target_text,
            form: self.target.form,
            path: self.target.path,
            query: self.target.query,
            authority: self.authority,
            version: self.version,
            framing: self.framing,
            keep_alive: self.keep_alive,
            expect_continue: self.expect_continue,
            upgrade: self.upgrade,
        }
    }
}

#[inline]
fn read(
    bytes: &[u8],
    fields: &mut Vec<Field>,
    limits: &HeadLimits,
    extent: Extent,
) -> Result<RequestLine, RequestError> {
    if bytes.len() > limits.head_bytes_max || u32::try_from(bytes.len()).is_err() {
        return Err(HeadError::TooLarge.into());
    }
    let mut room = room();
    let room = room.get_mut(..limits.fields_max.min(FIELDS_MAX)).unwrap_or_default();
    let mut request = httparse::Request::new(&mut []);
    let head = match request.parse_with_uninit_headers(bytes, room) {
        Ok(httparse::Status::Complete(end)) if let Some(head) = whole(bytes, end, extent) => head,
        _ if extent == Extent::Start => return Err(RequestError::BadRequestLine),
        Ok(_) => return Err(mistake(bytes, None)),
        Err(error) => return Err(mistake(bytes, Some(error))),
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(RequestError::BadRequestLine);
    };
    let method_text = span_in(head, method.as_bytes());
    let target_text = span_in(head, target.as_bytes());
    require_empty_lines(head.get(..method_text.start as usize).unwrap_or_default())?;
    require_line_end(head, target_text.end.saturating_add(VERSION_BYTES))?;
    if target.len() > limits.target_bytes_max {
        return Err(RequestError::TargetTooLong);
    }
    let method = Method::of(method.as_bytes());
    let version = if version == 0 { Version::Http10 } else { Version::Http11 };
    let target = SplitTarget::read(head, target_text, method)?;
    let survey = Survey::of(head, request.headers, fields)?;
    let authority = authority(head, version, &target, &survey)?;
    // A request without either field has no body: it is never read until close (RFC 9112 §6.3).
    let framing = survey.framing(head, version)?.unwrap_or(Framing::None);
    let has_body = !matches!(framing, Framing::None | Framing::Length(0));
    let expect_continue = match survey.expect {
        // RFC 9110 §10.1.1: HTTP/1.0 does not know of it.
        _ if version == Version::Http10 => false,
        Expectation::None => false,
        // Who waits for nothing must not be answered with an interim answer.
        Expectation::Continue => has_body,
        Expectation::Unknown => return Err(RequestError::UnknownExpectation),
    };
    let upgrade = version == Version::Http11 && survey.upgrade && survey.protocol == Protocol::Named;
    Ok(RequestLine {
        head_len: head.len(),
        method,
        method_text,
        target_text,
        target,
        authority,
        version,
        framing,
        keep_alive: survey.keeps_alive(version),
        expect_continue,
        upgrade,
    })
}

/// The head that ends there, if it is all that it should be and ends in an empty line.
#[inline]
pub(super) fn whole(bytes: &[u8], end: usize, extent: Extent) -> Option<&[u8]> {
    let head = bytes.get(..end)?;
    (head.ends_with(b"\r\n\r\n") && (extent == Extent::Start || end == bytes.len())).then_some(head)
}

/// Space and `HTTP/1.x` after the target.
const VERSION_BYTES: u32 = 9;

/// Which authority the request is for (RFC 9112 §3.2).
#[inline]
fn authority(head: &[u8], version: Version, target: &SplitTarget, survey: &Survey) -> Result<Span, RequestError> {
    if survey.several_hosts {
        return Err(RequestError::SeveralHosts);
    }
    let own = matches!(target.form, TargetForm::Absolute | TargetForm::Authority);
    match survey.host {
        None if version == Version::Http11 => Err(RequestError::MissingHost),
        None => Ok(target.authority),
        Some(host) if !is_host(host.of(head)) => Err(RequestError::BadHost),
        Some(host) if own && !target.agrees_with(head, host.of(head)) => Err(RequestError::HostMismatch),
        Some(_) if own => Ok(target.authority),
        Some(host) => Ok(host),
    }
}

/// httparse skips any number of line ends before a request, bare ones too.
#[inline]
fn require_empty_lines(before: &[u8]) -> Result<(), RequestError> {
    if before.chunks(2).all(|line| line == b"\r\n") { Ok(()) } else { Err(HeadError::BareLf.into()) }
}

/// Names the mistake in a head that httparse refused; only refusals pay for it.
#[cold]
fn mistake(head: &[u8], error: Option<httparse::Error>) -> RequestError {
    let head = head.iter().position(|byte| !b"\r\n".contains(byte)).and_then(|start| head.get(start..));
    let mut lines = head.unwrap_or_default().splitn(2, |&byte| byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let Some(line) = line.strip_suffix(b"\r") else { return HeadError::BareLf.into() };
    if let Some(mistake) = mistake_in_line(line) {
        return mistake;
    }
    if error == Some(httparse::Error::TooManyHeaders) {
        return HeadError::TooManyFields.into();
    }
    match first_mistake(lines.next().unwrap_or_default()) {
        Some(mistake) => mistake.into(),
        None => RequestError::BadRequestLine,
    }
}

fn mistake_in_line(line: &[u8]) -> Option<RequestError> {
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Some(RequestError::BadRequestLine);
    };
    match version {
        _ if method.is_empty() || !all(method, TOKEN) || target.is_empty() => Some(RequestError::BadRequestLine),
        _ if !has_legal_bytes(target) => Some(RequestError::BadTarget),
        b"HTTP/1.1" | b"HTTP/1.0" => None,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Some(RequestError::UnsupportedVersion)
        }
        _ => Some(RequestError::BadVersion),
    }
}

//! The head of a request: request line and fields, checked whole (RFC 9112 §3, §5, §6; RFC 9110 §5, §7).

use super::bytes::{TOKEN, all};
use super::error::{HeadError, RequestError};
use super::fields::{Expectation, FIELDS_MAX, Protocol, Survey, first_mistake, require_line_end, room, span_in};
use super::scan::HeadLimits;
use super::target::{Target, has_legal_bytes, is_host};
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
    match read(bytes.get(..head_len).unwrap_or_default(), &mut fields, limits) {
        Ok(parts) => Ok(RequestHead {
            bytes,
            fields,
            method: parts.method,
            method_text: parts.method_text,
            target: parts.target_text,
            form: parts.target.form,
            path: parts.target.path,
            query: parts.target.query,
            authority: parts.authority,
            version: parts.version,
            framing: parts.framing,
            keep_alive: parts.keep_alive,
            expect_continue: parts.expect_continue,
            upgrade: parts.upgrade,
        }),
        Err(error) => {
            fields.clear();
            Err((error, bytes, fields))
        }
    }
}

/// A head without what it points into.
struct Parts {
    method: Method,
    method_text: Span,
    target_text: Span,
    target: Target,
    authority: Span,
    version: Version,
    framing: Framing,
    keep_alive: bool,
    expect_continue: bool,
    upgrade: bool,
}

#[inline]
fn read(head: &[u8], fields: &mut Vec<Field>, limits: &HeadLimits) -> Result<Parts, RequestError> {
    if head.len() > limits.head_bytes_max || u32::try_from(head.len()).is_err() {
        return Err(HeadError::TooLarge.into());
    }
    let mut room = room();
    let room = room.get_mut(..limits.fields_max.min(FIELDS_MAX)).unwrap_or_default();
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, room) {
        Ok(httparse::Status::Complete(end)) if end == head.len() && head.ends_with(b"\r\n\r\n") => {}
        Ok(_) => return Err(mistake(head, None)),
        Err(error) => return Err(mistake(head, Some(error))),
    }
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
    let target = Target::read(head, target_text, method)?;
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
    Ok(Parts {
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

/// Space and `HTTP/1.x` after the target.
const VERSION_BYTES: u32 = 9;

/// Which authority the request is for (RFC 9112 §3.2).
#[inline]
fn authority(head: &[u8], version: Version, target: &Target, survey: &Survey) -> Result<Span, RequestError> {
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

//! The head of an answer: status line and fields, checked as strictly as a request's (RFC 9112 §4, §6.3).
//!
//! Any mistake is the upstream's: the gateway answers 502 and does not use the connection again.

use super::bytes::{VALUE, all};
use super::connection::elements;
use super::error::{HeadError, ResponseError};
use super::fields::{FIELDS_MAX, Survey, first_mistake, require_line_end, room, span_in};
use super::request::{Extent, whole};
use super::scan::HeadLimits;
use crate::proto::head::{Field, Framing, Method, ResponseHead, Span, Version};

/// Reads the head of the answer to a request of this method; see [`parse_request`](super::parse_request).
///
/// Interim answers (1xx) come out like any other; a 101 has [`Framing::None`], and what follows it is not HTTP.
/// `Content-Length` stays among the fields of an answer to HEAD and of a 304, whose framing is none either.
pub fn parse_response(
    bytes: Vec<u8>,
    head_len: usize,
    mut fields: Vec<Field>,
    request_method: Method,
    limits: &HeadLimits,
) -> Result<ResponseHead, (ResponseError, Vec<u8>, Vec<Field>)> {
    fields.clear();
    match read(bytes.get(..head_len).unwrap_or_default(), &mut fields, request_method, limits, Extent::All) {
        Ok(parts) => Ok(parts.into_head(bytes, fields)),
        Err(error) => {
            fields.clear();
            Err((error, bytes, fields))
        }
    }
}

/// An answer's head that was whole, and in order, when its bytes were looked at first; see
/// [`WholeRequest`](super::WholeRequest).
pub struct WholeResponse(StatusLine);

impl WholeResponse {
    /// Reads the head that `bytes` begin with, if there is nothing to wait for and nothing wrong with it.
    ///
    /// `fields` are the head's if there is one, else empty.
    pub fn read(bytes: &[u8], fields: &mut Vec<Field>, request_method: Method, limits: &HeadLimits) -> Option<Self> {
        fields.clear();
        let window = bytes.get(..limits.head_bytes_max).unwrap_or(bytes);
        let parts = read(window, fields, request_method, limits, Extent::Start).ok();
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
    pub fn into_head(self, bytes: Vec<u8>, fields: Vec<Field>) -> ResponseHead {
        self.0.into_head(bytes, fields)
    }
}

/// A head without what it points into.
struct StatusLine {
    head_len: usize,
    status: u16,
    reason: Span,
    version: Version,
    framing: Framing,
    mended: bool,
    keep_alive: bool,
    may_have_body: bool,
    keep_alive_timeout_s: Option<u32>,
}

impl StatusLine {
    #[inline]
    fn into_head(self, bytes: Vec<u8>, fields: Vec<Field>) -> ResponseHead {
        ResponseHead {
            bytes,
            fields,
            status: self.status,
            reason: self.reason,
            version: self.version,
            framing: self.framing,
            mended: self.mended,
            keep_alive: self.keep_alive,
            may_have_body: self.may_have_body,
            keep_alive_timeout_s: self.keep_alive_timeout_s,
        }
    }
}

/// `HTTP/1.1 200`, after which a space and the reason may follow.
const STATUS_BYTES: usize = 12;

#[inline]
fn read(
    bytes: &[u8],
    fields: &mut Vec<Field>,
    request_method: Method,
    limits: &HeadLimits,
    extent: Extent,
) -> Result<StatusLine, ResponseError> {
    if bytes.len() > limits.head_bytes_max || u32::try_from(bytes.len()).is_err() {
        return Err(HeadError::TooLarge.into());
    }
    let mut room = room();
    let room = room.get_mut(..limits.fields_max.min(FIELDS_MAX)).unwrap_or_default();
    let mut response = httparse::Response::new(&mut []);
    let mut parser = httparse::ParserConfig::default();
    // RFC 9112 §5.1: in answers it is to be removed. They are seldom, so that the first look refuses them.
    parser.allow_spaces_after_header_name_in_responses(extent == Extent::All);
    let head = match parser.parse_response_with_uninit_headers(&mut response, bytes, room) {
        Ok(httparse::Status::Complete(end)) if let Some(head) = whole(bytes, end, extent) => head,
        _ if extent == Extent::Start => return Err(ResponseError::BadStatusLine),
        Ok(_) => return Err(mistake(bytes, None)),
        Err(error) => return Err(mistake(bytes, Some(error))),
    };
    let (Some(version), Some(status)) = (response.version, response.code) else {
        return Err(ResponseError::BadStatusLine);
    };
    let reason = reason(head)?;
    if status < 100 {
        return Err(ResponseError::BadStatus);
    }
    let version = if version == 0 { Version::Http10 } else { Version::Http11 };
    let survey = Survey::of(head, response.headers, fields)?;
    let follows_name = |field: &Field| head.get(field.name.end as usize);
    let mended = extent == Extent::All && fields.iter().any(|field| follows_name(field) != Some(&b':'));
    let announced = survey.framing(head, version)?;
    let framing = match (status, announced) {
        // RFC 9112 §6.1: neither field may be sent. What would the bytes be that follow? The final answer, or a body?
        (100..=199, Some(Framing::Length(1..) | Framing::Chunked)) => return Err(ResponseError::BodyNotAllowed),
        (100..=199 | 204 | 304, _) => Framing::None,
        _ if request_method == Method::Head => Framing::None,
        (200..=299, _) if request_method == Method::Connect => Framing::None,
        (_, Some(framing)) => framing,
        (_, None) => Framing::UntilClose,
    };
    // A 204 that announces a body may well send one, which would be taken for the next answer. With others it is the rule
    // to tell of a body that does not come, and some servers send it.
    let tells_of_body = matches!(announced, Some(Framing::Length(1..) | Framing::Chunked));
    let is_clean = status != 204 || !tells_of_body;
    let may_have_body = match status {
        304 => tells_of_body,
        200..=203 | 205.. => request_method == Method::Head && announced != Some(Framing::Length(0)),
        _ => false,
    };
    Ok(StatusLine {
        head_len: head.len(),
        status,
        reason,
        version,
        framing,
        mended,
        keep_alive: survey.keeps_alive(version) && framing != Framing::UntilClose && is_clean,
        may_have_body,
        keep_alive_timeout_s: survey.keep_alive_parameters.and_then(|span| timeout_s(span.of(head))),
    })
}

/// The reason phrase as it came: httparse hides one with obs-text. The head is known to be complete.
#[inline]
fn reason(head: &[u8]) -> Result<Span, ResponseError> {
    let after = head.get(STATUS_BYTES..).unwrap_or_default();
    let end = memchr::memchr(b'\r', after).ok_or(ResponseError::BadStatusLine)?;
    let line = after.get(..end).unwrap_or_default();
    let phrase = line.strip_prefix(b" ").unwrap_or(line);
    if !head.starts_with(b"HTTP/1.") || !all(line, VALUE) {
        return Err(ResponseError::BadStatusLine);
    }
    let phrase = span_in(head, phrase);
    require_line_end(head, phrase.end)?;
    Ok(phrase)
}

/// The `timeout` parameter of `Keep-Alive`; a hint, so what is malformed is passed over.
fn timeout_s(parameters: &[u8]) -> Option<u32> {
    elements(parameters).find_map(|parameter| {
        let (name, value) = parameter.split_at_checked(8)?;
        if !name.eq_ignore_ascii_case(b"timeout=") || value.is_empty() {
            return None;
        }
        value.iter().try_fold(0_u32, |seconds, byte| {
            let digit = byte.is_ascii_digit().then(|| u32::from(byte & 0x0f))?;
            seconds.checked_mul(10)?.checked_add(digit)
        })
    })
}

/// Names the mistake in a head that httparse refused.
#[cold]
fn mistake(head: &[u8], error: Option<httparse::Error>) -> ResponseError {
    let mut lines = head.splitn(2, |&byte| byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let rest = lines.next().unwrap_or_default();
    match error {
        Some(httparse::Error::Version) => ResponseError::BadVersion,
        Some(httparse::Error::TooManyHeaders) => HeadError::TooManyFields.into(),
        _ if !line.ends_with(b"\r") => HeadError::BareLf.into(),
        Some(httparse::Error::Status) => ResponseError::BadStatusLine,
        _ => first_mistake(rest).map_or(ResponseError::BadStatusLine, ResponseError::Head),
    }
}

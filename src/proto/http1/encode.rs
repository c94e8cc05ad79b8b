//! Writes heads and chunk framing. Fields go out as they are; what frames the message is written here and only here.

use std::num::NonZeroUsize;

use crate::proto::head::{Field, Framing, Known, RequestHead, ResponseHead};

/// Ends the payload of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// Ends a chunked body that has no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What a head's `Connection` field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionToken {
    /// There is no such field: an HTTP/1.1 connection stays.
    None,
    /// `keep-alive`, for HTTP/1.0 clients that asked for it.
    KeepAlive,
    /// `close`
    Close,
    /// `upgrade`, with the `Upgrade` field among the head's fields.
    Upgrade,
}

/// Appends the head of a request: its method, this target, its fields, this framing; `Connection: close` if it `is_last`
/// on its connection.
///
/// Of the fields, those about framing and about the connection stay behind, except `Upgrade` when `head.upgrade` and
/// something may follow. No request is framed by close: [`Framing::UntilClose`] is written as chunked.
pub fn encode_request(head: &RequestHead, target: &[u8], framing: Framing, is_last: bool, out: &mut Vec<u8>) {
    out.reserve(room_for(&head.bytes, &head.fields).saturating_add(target.len()));
    out.extend_from_slice(head.text(head.method_text));
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let upgrade = head.upgrade && !is_last;
    encode_fields(&head.bytes, &head.fields, out, |known| match known {
        Known::Upgrade => upgrade,
        known => !is_of_this_connection(known),
    });
    match framing {
        Framing::None => {}
        Framing::Length(length) => encode_length(length, out),
        Framing::Chunked | Framing::UntilClose => out.extend_from_slice(CHUNKED),
    }
    if is_last {
        out.extend_from_slice(CONNECTION_CLOSE);
    } else if upgrade {
        out.extend_from_slice(CONNECTION_UPGRADE);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of an answer: its status, its fields, this framing, this `Connection`.
///
/// [`Framing::None`] is for answers that have no body by rule (1xx, 204, 304, to HEAD); then a `Content-Length` among
/// the fields goes out where it may: with 304 and answers to HEAD. [`Framing::UntilClose`] always says `close`.
pub fn encode_response(head: &ResponseHead, framing: Framing, connection: ConnectionToken, out: &mut Vec<u8>) {
    out.reserve(room_for(&head.bytes, &head.fields));
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(head.status).as_bytes());
    out.push(b' ');
    let reason = head.text(head.reason);
    out.extend_from_slice(if reason.is_empty() { reason_of(head.status) } else { reason });
    out.extend_from_slice(b"\r\n");
    let keeps_length = framing == Framing::None && head.status >= 200 && head.status != 204;
    let upgrade = connection == ConnectionToken::Upgrade;
    encode_fields(&head.bytes, &head.fields, out, |known| match known {
        Known::ContentLength => keeps_length,
        Known::Upgrade => upgrade,
        known => !is_of_this_connection(known),
    });
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => encode_length(length, out),
        Framing::Chunked => out.extend_from_slice(CHUNKED),
    }
    match connection {
        _ if framing == Framing::UntilClose => out.extend_from_slice(CONNECTION_CLOSE),
        ConnectionToken::None => {}
        ConnectionToken::KeepAlive => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        ConnectionToken::Close => out.extend_from_slice(CONNECTION_CLOSE),
        ConnectionToken::Upgrade => out.extend_from_slice(CONNECTION_UPGRADE),
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the line before a chunk's payload; after the payload comes [`CHUNK_END`]. A chunk is never empty: an empty
/// one would end the body.
pub fn encode_chunk_header(len: NonZeroUsize, out: &mut Vec<u8>) {
    let len = len.get();
    let digits = (usize::BITS.saturating_sub(len.leading_zeros())).div_ceil(4);
    for place in (0..digits).rev() {
        let digit = (len >> place.saturating_mul(4)) & 0x0f;
        out.push(b"0123456789abcdef".get(digit).copied().unwrap_or(b'0'));
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk, these trailer lines (each with its CR LF) and the end of the body.
pub fn encode_last_chunk(trailers: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    out.extend_from_slice(trailers);
    out.extend_from_slice(b"\r\n");
}

const CHUNKED: &[u8] = b"Transfer-Encoding: chunked\r\n";
const CONNECTION_CLOSE: &[u8] = b"Connection: close\r\n";
const CONNECTION_UPGRADE: &[u8] = b"Connection: upgrade\r\n";

/// Fields that are never passed on as they came; `Upgrade` has its own rule.
const fn is_of_this_connection(known: Known) -> bool {
    matches!(
        known,
        Known::ContentLength
            | Known::TransferEncoding
            | Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::Upgrade
    )
}

/// Enough for nearly every head, so that the buffer grows at most once.
fn room_for(bytes: &[u8], fields: &[Field]) -> usize {
    bytes.len().saturating_add(fields.len().saturating_mul(4)).saturating_add(128)
}

/// Appends the wanted fields. Lines that stand in the buffer as they are to go out, one behind the other, go in one
/// piece: most of a forwarded head does.
#[inline]
fn encode_fields(bytes: &[u8], fields: &[Field], out: &mut Vec<u8>, wanted: impl Fn(Known) -> bool) {
    let (mut start, mut end) = (0_usize, 0_usize);
    for field in fields.iter().filter(|field| wanted(field.known)) {
        if let Some((line_start, line_end)) = line_of(bytes, field) {
            if line_start != end {
                out.extend_from_slice(bytes.get(start..end).unwrap_or_default());
                start = line_start;
            }
            end = line_end;
        } else {
            out.extend_from_slice(bytes.get(start..end).unwrap_or_default());
            (start, end) = (0, 0);
            out.extend_from_slice(field.name.of(bytes));
            out.extend_from_slice(b": ");
            out.extend_from_slice(field.value.of(bytes));
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(bytes.get(start..end).unwrap_or_default());
}

/// Where the field stands as `name: value` CR LF, if it does.
#[inline]
fn line_of(bytes: &[u8], field: &Field) -> Option<(usize, usize)> {
    let (start, end) = (field.name.start as usize, field.value.end as usize);
    let line_end = end.checked_add(2)?;
    let between = bytes.get(field.name.end as usize..field.value.start as usize)?;
    (between == b": " && bytes.get(end..line_end)? == b"\r\n").then_some((start, line_end))
}

fn encode_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The phrases of RFC 9110 §15 and RFC 6585 for what a gateway answers itself.
const fn reason_of(status: u16) -> &'static [u8] {
    match status {
        100 => b"Continue",
        101 => b"Switching Protocols",
        200 => b"OK",
        201 => b"Created",
        202 => b"Accepted",
        204 => b"No Content",
        304 => b"Not Modified",
        400 => b"Bad Request",
        401 => b"Unauthorized",
        403 => b"Forbidden",
        404 => b"Not Found",
        405 => b"Method Not Allowed",
        408 => b"Request Timeout",
        413 => b"Content Too Large",
        414 => b"URI Too Long",
        415 => b"Unsupported Media Type",
        417 => b"Expectation Failed",
        422 => b"Unprocessable Content",
        426 => b"Upgrade Required",
        429 => b"Too Many Requests",
        431 => b"Request Header Fields Too Large",
        500 => b"Internal Server Error",
        501 => b"Not Implemented",
        502 => b"Bad Gateway",
        503 => b"Service Unavailable",
        504 => b"Gateway Timeout",
        505 => b"HTTP Version Not Supported",
        _ => b"",
    }
}

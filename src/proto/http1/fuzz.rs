//! Drives both directions over any bytes and checks what must hold for all of them; for tests and fuzzing only.
//!
//! A run turns a connection's bytes into a list of events. It must be the same list however the bytes are cut, what was
//! accepted must come out the same when written and read again, and nothing may outgrow its bound.
#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a broken promise must stop the run")]

use std::fmt::Write as _;
use std::num::NonZeroUsize;

use super::{
    BodyDecoder, BodyError, CHUNK_END, ConnectionToken, Decoded, HeadLimits, HeadScanner, ResponseScanner,
    WholeRequest, WholeResponse, encode_chunk_header, encode_last_chunk, encode_request, encode_response,
    parse_request, parse_response,
};
use crate::proto::head::{Field, Framing, Known, Method, RequestHead, ResponseHead, Span, Version};

/// Small, so that short inputs reach them.
pub(super) const LIMITS: HeadLimits = HeadLimits { head_bytes_max: 2048, fields_max: 16, target_bytes_max: 256 };

/// For a head that was written again: framing, connection and white space come on top of what was read.
const WRITTEN_LIMITS: HeadLimits =
    HeadLimits { head_bytes_max: 2 * LIMITS.head_bytes_max, fields_max: LIMITS.fields_max + 2, ..LIMITS };

/// Messages looked at in one run.
const MESSAGES_MAX: usize = 64;

/// Takes `data` for what a client sends.
pub fn fuzz_request(data: &[u8]) {
    require_same_when_cut(data, &Requests);
}

/// Takes `data` for what an upstream sends; the first byte chooses the method of the request.
pub fn fuzz_response(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let method = match first % 4 {
        0 => Method::Get,
        1 => Method::Head,
        2 => Method::Connect,
        _ => Method::Post,
    };
    require_same_when_cut(rest, &Responses(method));
}

/// What happens on a connection, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A head was accepted; what was understood.
    Head(String),
    /// Payload, joined.
    Payload(Vec<u8>),
    /// A body ended, with these trailers.
    End(Vec<u8>),
    /// The bytes were refused, with status and name.
    Refused(String),
}

/// One direction of a connection.
pub(super) trait Side {
    type Scanner: Default;
    fn scan(&self, scanner: &mut Self::Scanner, bytes: &[u8]) -> Result<Option<usize>, String>;
    /// What was understood at the first look, and how many bytes were the head.
    fn at_once(&self, bytes: &[u8]) -> Option<(usize, String)>;
    /// Parses, checks, and says what was understood and how the body is framed; `None` when no HTTP follows.
    fn parse(&self, bytes: Vec<u8>) -> Result<(String, Option<Framing>), String>;
    /// The status that a mistake in a body makes.
    fn status_of(&self, error: BodyError) -> u16;
}

fn require_same_when_cut(data: &[u8], side: &impl Side) {
    let whole = run(&[data], side);
    let bytes: Vec<&[u8]> = data.chunks(1).collect();
    assert_eq!(whole, run(&bytes, side), "byte by byte");
    assert_eq!(whole, run(&cut(data), side), "cut at random");
}

/// Pieces of lengths that the data itself decides, so that an input replays.
fn cut(mut data: &[u8]) -> Vec<&[u8]> {
    let mut seed = data.iter().fold(0x811c_9dc5_u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut pieces = Vec::new();
    while !data.is_empty() {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (piece, rest) = data.split_at(((seed >> 16) as usize % 23).min(data.len()));
        pieces.push(piece);
        data = rest;
    }
    pieces
}

enum Stage<S> {
    Head(S),
    Body(BodyDecoder, Framing, Vec<u8>),
    Over,
}

/// Reads messages until the pieces end, or a mistake, or bytes that are not HTTP.
pub(super) fn run<S: Side>(pieces: &[&[u8]], side: &S) -> Vec<Event> {
    let mut buffer = Vec::new();
    let mut events = Vec::new();
    let mut stage = Stage::Head(S::Scanner::default());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while step(&mut buffer, &mut stage, side, &mut events) {}
    }
    if let Stage::Body(mut body, framing, payload) = stage {
        match body.finish_at_eof() {
            Ok(()) => end_body(&body, framing, payload, &mut events),
            Err(error) => refuse_body(side.status_of(error), error, payload, &mut events),
        }
    }
    events
}

/// Does one thing; says whether there may be more to do.
fn step<S: Side>(buffer: &mut Vec<u8>, stage: &mut Stage<S::Scanner>, side: &S, events: &mut Vec<Event>) -> bool {
    match stage {
        Stage::Over => {
            buffer.clear();
            false
        }
        Stage::Head(scanner) => {
            if let Some((len, told)) = side.at_once(buffer) {
                assert_eq!(Ok(Some(len)), side.scan(&mut S::Scanner::default(), buffer), "the same head");
                assert_eq!(Ok(told), side.parse(buffer[..len].to_vec()).map(|(told, _)| told), "and the same in it");
            }
            let parsed = match side.scan(scanner, buffer) {
                Ok(None) => {
                    assert!(buffer.len() < LIMITS.head_bytes_max, "waits beyond the bound");
                    return false;
                }
                Ok(Some(head_len)) => {
                    let rest = buffer.split_off(head_len);
                    side.parse(std::mem::replace(buffer, rest))
                }
                Err(error) => Err(error),
            };
            let heads = events.iter().filter(|event| matches!(event, Event::Head(_))).count();
            *stage = match parsed {
                Ok((told, framing)) => {
                    events.push(Event::Head(told));
                    framing
                        .filter(|_| heads < MESSAGES_MAX)
                        .map_or(Stage::Over, |framing| Stage::Body(BodyDecoder::new(framing), framing, Vec::new()))
                }
                Err(error) => {
                    events.push(Event::Refused(error));
                    Stage::Over
                }
            };
            true
        }
        Stage::Body(body, framing, payload) => match body.decode(buffer) {
            Ok(Decoded::More { consumed }) => {
                buffer.drain(..consumed);
                assert!(!body.is_done() && buffer.is_empty(), "leaves bytes and asks for more");
                false
            }
            Ok(Decoded::Data { start, end }) => {
                assert!(start < end, "empty payload");
                payload.extend_from_slice(&buffer[start..end]);
                buffer.drain(..end);
                true
            }
            Ok(Decoded::Done { consumed }) => {
                buffer.drain(..consumed);
                assert!(body.is_done(), "done and not done");
                end_body(body, *framing, std::mem::take(payload), events);
                *stage = Stage::Head(S::Scanner::default());
                true
            }
            Err(error) => {
                refuse_body(side.status_of(error), error, std::mem::take(payload), events);
                *stage = Stage::Over;
                true
            }
        },
    }
}

fn end_body(body: &BodyDecoder, framing: Framing, payload: Vec<u8>, events: &mut Vec<Event>) {
    let trailers = body.trailers().to_vec();
    assert!(trailers.len() <= super::trailers::TRAILER_BYTES_MAX, "trailers outgrow their bound");
    if framing == Framing::Chunked {
        require_same_when_chunked(&payload, &trailers);
    }
    if !payload.is_empty() {
        events.push(Event::Payload(payload));
    }
    events.push(Event::End(trailers));
}

fn require_same_when_chunked(payload: &[u8], trailers: &[u8]) {
    let mut wire = Vec::new();
    if let Some(len) = NonZeroUsize::new(payload.len()) {
        encode_chunk_header(len, &mut wire);
        wire.extend_from_slice(payload);
        wire.extend_from_slice(CHUNK_END);
    }
    encode_last_chunk(trailers, &mut wire);
    let mut body = BodyDecoder::new(Framing::Chunked);
    let mut rest = wire.as_slice();
    let mut decoded = Vec::new();
    while !body.is_done() {
        rest = match body.decode(rest).expect("what was encoded decodes") {
            Decoded::More { consumed } | Decoded::Done { consumed } => &rest[consumed..],
            Decoded::Data { start, end } => {
                decoded.extend_from_slice(&rest[start..end]);
                &rest[end..]
            }
        };
    }
    assert_eq!((payload, trailers, 0), (decoded.as_slice(), body.trailers(), rest.len()));
}

fn refuse_body(status: u16, error: BodyError, payload: Vec<u8>, events: &mut Vec<Event>) {
    if !payload.is_empty() {
        events.push(Event::Payload(payload));
    }
    events.push(Event::Refused(named(status, &error)));
}

fn named(status: u16, error: &impl std::fmt::Debug) -> String {
    let name = format!("{error:?}");
    format!("{status} {}", name.strip_prefix("Head(").map_or(name.as_str(), |inner| inner.trim_end_matches(')')))
}

/// What a client sends.
pub(super) struct Requests;

impl Side for Requests {
    type Scanner = HeadScanner;

    fn status_of(&self, error: BodyError) -> u16 {
        error.status()
    }

    fn scan(&self, scanner: &mut HeadScanner, bytes: &[u8]) -> Result<Option<usize>, String> {
        scanner.scan(bytes, &LIMITS).map_err(|error| named(error.status(), &error))
    }

    fn at_once(&self, bytes: &[u8]) -> Option<(usize, String)> {
        let mut fields = Vec::new();
        let whole = WholeRequest::read(bytes, &mut fields, &LIMITS)?;
        let len = whole.head_len();
        Some((len, tell_request(&whole.into_head(bytes[..len].to_vec(), fields), true)))
    }

    fn parse(&self, bytes: Vec<u8>) -> Result<(String, Option<Framing>), String> {
        let head_len = bytes.len();
        let head =
            parse_request(bytes, head_len, Vec::new(), &LIMITS).map_err(|(error, ..)| named(error.status(), &error))?;
        require_bounds(&head.bytes, &head.fields);
        // An HTTP/1.0 request may lack what 1.1 requires and is passed on as 1.1.
        if head.version == Version::Http11 {
            let mut wire = Vec::new();
            encode_request(&head, head.text(head.target), head.framing, false, &mut wire);
            let len = wire.len();
            assert_eq!(Ok(Some(len)), HeadScanner::new().scan(&wire, &WRITTEN_LIMITS), "written as a head");
            let again = parse_request(wire, len, Vec::new(), &WRITTEN_LIMITS).expect("what was encoded parses");
            assert_eq!(tell_request(&head, false), tell_request(&again, false));
        }
        Ok((tell_request(&head, true), Some(head.framing)))
    }
}

/// What an upstream sends in answer to requests of one method.
pub(super) struct Responses(pub(super) Method);

impl Side for Responses {
    type Scanner = ResponseScanner;

    fn status_of(&self, _error: BodyError) -> u16 {
        502
    }

    fn scan(&self, scanner: &mut ResponseScanner, bytes: &[u8]) -> Result<Option<usize>, String> {
        scanner.scan(bytes, &LIMITS).map_err(|error| named(502, &error))
    }

    fn at_once(&self, bytes: &[u8]) -> Option<(usize, String)> {
        let mut fields = Vec::new();
        let whole = WholeResponse::read(bytes, &mut fields, self.0, &LIMITS)?;
        let len = whole.head_len();
        Some((len, tell_response(&whole.into_head(bytes[..len].to_vec(), fields), true)))
    }

    fn parse(&self, bytes: Vec<u8>) -> Result<(String, Option<Framing>), String> {
        let head_len = bytes.len();
        let head =
            parse_response(bytes, head_len, Vec::new(), self.0, &LIMITS).map_err(|(error, ..)| named(502, &error))?;
        require_bounds(&head.bytes, &head.fields);
        let is_switch = head.status == 101;
        let connection = match head.keep_alive {
            _ if is_switch => ConnectionToken::Upgrade,
            true => ConnectionToken::None,
            false => ConnectionToken::Close,
        };
        let mut wire = Vec::new();
        encode_response(&head, head.framing, connection, &mut wire);
        let len = wire.len();
        assert_eq!(Ok(Some(len)), ResponseScanner::new().scan(&wire, &WRITTEN_LIMITS), "written as a head");
        let again = parse_response(wire, len, Vec::new(), self.0, &WRITTEN_LIMITS).expect("what was encoded parses");
        assert_eq!(tell_response(&head, false), tell_response(&again, false));
        Ok((tell_response(&head, true), Some(head.framing).filter(|_| !is_switch)))
    }
}

fn require_bounds(bytes: &[u8], fields: &[Field]) {
    assert!(bytes.len() <= LIMITS.head_bytes_max && fields.len() <= LIMITS.fields_max, "a head outgrows its bound");
    let spans = fields.iter().flat_map(|field| [field.name, field.value]);
    assert!(spans.into_iter().all(|span| span.start <= span.end && span.end as usize <= bytes.len()), "span outside");
}

/// What was understood; with `all`, also what a head that is written anew does not carry on.
fn tell_request(head: &RequestHead, all: bool) -> String {
    let text = |span: Span| head.text(span).escape_ascii();
    let mut told = format!("{} {:?} path={}", text(head.method_text), head.form, text(head.path));
    if let Some(query) = head.query {
        let _ = write!(told, " query={}", text(query));
    }
    let _ = write!(told, " authority={} body={:?}", text(head.authority), head.framing);
    for (is, word) in [(head.expect_continue, " expect"), (head.upgrade, " upgrade")] {
        told.push_str(if is { word } else { "" });
    }
    told.push_str(if all && !head.keep_alive { " close" } else { "" });
    told + &tell_fields(&head.bytes, &head.fields, all)
}

fn tell_response(head: &ResponseHead, all: bool) -> String {
    let mut told = format!("{} body={:?}", head.status, head.framing);
    if !head.reason.is_empty() && all {
        let _ = write!(told, " reason={}", head.text(head.reason).escape_ascii());
    }
    if head.status != 101 || all {
        told.push_str(if head.keep_alive { "" } else { " close" });
    }
    if let Some(timeout_s) = head.keep_alive_timeout_s.filter(|_| all) {
        let _ = write!(told, " timeout={timeout_s}");
    }
    told + &tell_fields(&head.bytes, &head.fields, all)
}

fn tell_fields(bytes: &[u8], fields: &[Field], all: bool) -> String {
    let mut told = String::new();
    for field in fields {
        let is_left_behind = matches!(
            field.known,
            Known::ContentLength
                | Known::TransferEncoding
                | Known::Connection
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::Upgrade
        );
        let is_told_already = all && field.known == Known::Host;
        if !is_left_behind && !is_told_already {
            let (name, value) = (field.name.of(bytes).escape_ascii(), field.value.of(bytes).escape_ascii());
            let _ = write!(told, " [{name}: {value}]");
        }
    }
    told
}

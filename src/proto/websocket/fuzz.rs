//! Drives the reader and the handshake over any bytes and checks what must hold for all of them; for tests and fuzzing
//! only.
#![expect(clippy::expect_used, clippy::panic, reason = "a broken promise must stop the run")]

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Borders, DeflateOffer, Event, Handshake, Inflater, Limits, Opcode, Reader, client_frame, close_frame};
use crate::proto::{
    head::{Framing, Method, RequestHead, ResponseHead},
    http1::{ConnectionToken, HeadLimits, elements, encode_response, parse_request, parse_response},
};

/// Small, so that short inputs reach them.
const LIMITS: Limits = Limits { message_bytes_max: 512, fragments_max: 5 };

/// What a message that is stored rather than compressed may have, see the reader.
const KEPT_BYTES_MAX: usize = 512 + 512 / 16 + 64 + 125;

const SPOKEN: &str = "shardgate.v1";

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What happens on a connection, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Message(Opcode, Vec<u8>),
    /// What it becomes, and whether it may not.
    Deflated(bool, Option<Vec<u8>>),
    Control(Opcode, Vec<u8>),
    Close(Option<u16>, String),
    Mistake(u16),
}

/// Takes `data` for what a client sends once its socket is open; the first byte says whether it may compress.
pub fn fuzz_frames(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let may_be_deflated = first & 1 == 1;
    let whole = run(&[bytes], may_be_deflated);
    assert_eq!(whole, run(&bytes.chunks(1).collect::<Vec<_>>(), may_be_deflated), "byte by byte");
    assert_eq!(whole, run(&bytes.chunks(usize::from(*first).max(2)).collect::<Vec<_>>(), may_be_deflated), "in pieces");
    for told in &whole {
        require_same_when_written(told);
    }
}

/// Reads all pieces.
fn run(pieces: &[&[u8]], may_be_deflated: bool) -> Vec<Told> {
    let mut reader = Reader::of_client(LIMITS, may_be_deflated);
    let mut borders = Borders::default();
    let mut all = Vec::new();
    for piece in pieces {
        let mut buffer = piece.to_vec();
        let mut rest = &mut buffer[..];
        borders.pass(piece);
        loop {
            let told = match reader.next(&mut rest) {
                Ok(None) => break,
                Ok(Some(event)) => tell(event),
                Err(error) => Told::Mistake(error.close_code()),
            };
            assert!(!is_over(&all), "{told:?} comes after the end: {all:?}");
            all.push(told);
        }
        assert!(rest.is_empty(), "bytes are left");
        assert!(reader.kept_bytes() <= KEPT_BYTES_MAX, "{} bytes are kept", reader.kept_bytes());
        if is_over(&all) {
            assert!(reader.is_at_rest(), "what has ended keeps nothing");
        } else {
            assert!(!reader.is_at_rest() || borders.is_between_frames(), "at rest within a frame");
            assert!(!borders.has_closed() || !reader.is_at_rest(), "a close was passed over");
        }
    }
    all
}

fn is_over(all: &[Told]) -> bool {
    matches!(all.last(), Some(Told::Close(..) | Told::Mistake(_)))
}

fn tell(event: Event<'_>) -> Told {
    match event {
        Event::Text(text) => Told::Message(Opcode::Text, text.into()),
        Event::Binary(bytes) => Told::Message(Opcode::Binary, bytes.into()),
        Event::Deflated { is_text, payload } => {
            let mut inflater = Inflater::default();
            let inflated = inflater.inflate(payload, LIMITS.message_bytes_max).ok();
            assert!(inflated.is_none_or(|bytes| bytes.len() <= LIMITS.message_bytes_max as usize), "too long");
            Told::Deflated(is_text, inflated.map(<[u8]>::to_vec))
        }
        Event::Ping(payload) => Told::Control(Opcode::Ping, payload.into()),
        Event::Pong(payload) => Told::Control(Opcode::Pong, payload.into()),
        Event::Close { code, reason } => Told::Close(code, reason.into()),
    }
}

/// What was accepted is read again when it is written.
fn require_same_when_written(told: &Told) {
    let read = |bytes: Vec<u8>| run(&[&bytes], false);
    match told {
        Told::Message(opcode, payload) => {
            assert!(payload.len() <= LIMITS.message_bytes_max as usize, "a message outgrows its bound");
            assert_eq!(read(client_frame(*opcode, true, payload, KEY)).as_slice(), std::slice::from_ref(told));
        }
        Told::Control(opcode, payload) => {
            assert!(payload.len() <= 125, "RFC 6455 §5.5");
            assert_eq!(read(client_frame(*opcode, true, payload, KEY)).as_slice(), std::slice::from_ref(told));
        }
        Told::Close(code, reason) => {
            let mut buffer = close_frame(*code, reason);
            let mut rest = &mut buffer[..];
            let mut server = Reader::of_server(LIMITS, false);
            let event = server.next(&mut rest).expect("what was said is legal").expect("and whole");
            assert_eq!(event, Event::Close { code: *code, reason });
        }
        Told::Mistake(code) => assert!(matches!(code, 1002 | 1007 | 1009), "{code}"),
        Told::Deflated(..) => {}
    }
}

/// Takes `data` for the head of a request for a socket.
pub fn fuzz_handshake(data: &[u8]) {
    let limits = HeadLimits { head_bytes_max: 4096, fields_max: 64, target_bytes_max: 512 };
    let Ok(head) = parse_request(data.to_vec(), data.len(), Vec::new(), &limits) else { return };
    let Ok(handshake) = Handshake::read(&head, SPOKEN) else { return };

    assert!(head.method == Method::Get && matches!(head.framing, Framing::None | Framing::Length(0)));
    assert_eq!(values(&head, "sec-websocket-version"), [b"13"]);
    let [key] = values(&head, "sec-websocket-key")[..] else { panic!("one key") };
    assert_eq!(STANDARD.decode(key).map(|nonce| nonce.len()), Ok(16));
    assert_eq!(STANDARD.decode(handshake.accept()).map(|hash| hash.len()), Ok(20));
    let offered: Vec<&[u8]> = values(&head, "sec-websocket-protocol").into_iter().flat_map(elements).collect();
    assert_eq!(handshake.speaks, offered.contains(&SPOKEN.as_bytes()));
    let token = offered.iter().find_map(|one| one.strip_prefix(b"bearer."));
    assert_eq!(handshake.bearer.map(|token| head.text(token)), token);
    let mut distinct = offered.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() == offered.len() && offered.len() <= 16, "{offered:?}");

    let protocol = offered.first().map(|one| std::str::from_utf8(one).expect("tokens are ASCII"));
    require_same_when_answered(&handshake, protocol);
}

/// The answer is a 101 that says what was agreed.
fn require_same_when_answered(handshake: &Handshake, protocol: Option<&str>) {
    let mut answer = ResponseHead::new(101, Vec::new(), Vec::new());
    handshake.answer(&mut answer, protocol, handshake.deflate);
    let mut wire = Vec::new();
    encode_response(&answer, Framing::None, ConnectionToken::Upgrade, &mut wire);
    let length = wire.len();
    let answer = parse_response(wire, length, Vec::new(), Method::Get, &HeadLimits::default()).expect("an answer");
    let value = |name: &str| {
        let mut named =
            answer.fields.iter().filter(|field| answer.text(field.name).eq_ignore_ascii_case(name.as_bytes()));
        let value = named.next().map(|field| answer.text(field.value));
        assert!(named.next().is_none(), "{name} stands there twice");
        value
    };
    assert_eq!((answer.status, value("upgrade")), (101, Some(&b"websocket"[..])));
    assert_eq!(value("sec-websocket-accept"), Some(handshake.accept()));
    assert_eq!(value("sec-websocket-protocol"), protocol.map(str::as_bytes));
    let agreed = value("sec-websocket-extensions");
    assert_eq!(agreed.is_some(), handshake.deflate.is_some());
    if let Some(offer) = handshake.deflate {
        let DeflateOffer { server_window_bits } = offer;
        assert!((9..=15).contains(&server_window_bits), "{server_window_bits}");
        // What a server agrees to is an offer too, and means the same as one.
        let again = super::extensions::deflate_offer(agreed.into_iter());
        assert_eq!(again.ok().flatten(), Some(offer));
    }
}

/// The values of all fields of this name.
fn values<'h>(head: &'h RequestHead, name: &str) -> Vec<&'h [u8]> {
    let named = head.fields.iter().filter(|field| head.text(field.name).eq_ignore_ascii_case(name.as_bytes()));
    named.map(|field| head.text(field.value)).collect()
}

//! Tables for each mistake, and what must hold for any bytes in any pieces.
#![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, reason = "a test may panic")]

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const LIMITS: Limits = Limits { message_bytes_max: 1000, fragments_max: 5 };

/// What a reader makes of bytes that come in these pieces, a line each.
fn read(reader: &mut Reader, pieces: &[&[u8]]) -> Vec<String> {
    let mut told = Vec::new();
    for piece in pieces {
        let mut buffer = piece.to_vec();
        let mut rest = &mut buffer[..];
        loop {
            match reader.next(&mut rest) {
                Ok(Some(event)) => told.push(tell(event)),
                Ok(None) => break,
                Err(error) => told.push(format!("{} {error}", error.close_code())),
            }
        }
        assert!(rest.is_empty());
    }
    told
}

fn tell(event: Event<'_>) -> String {
    let short = |text: String| if text.len() > 80 { format!("{} bytes", text.len()) } else { text };
    match event {
        Event::Text(text) => format!("text {}", short(text.to_owned())),
        Event::Binary(bytes) => format!("binary {}", short(bytes.escape_ascii().to_string())),
        Event::Deflated { is_text, payload } => format!("deflated {is_text} {}", payload.escape_ascii()),
        Event::Ping(bytes) => format!("ping {}", short(bytes.escape_ascii().to_string())),
        Event::Pong(bytes) => format!("pong {}", short(bytes.escape_ascii().to_string())),
        Event::Close { code, reason } => format!("close {code:?} {reason}"),
    }
}

fn client() -> Reader {
    Reader::of_client(LIMITS, false)
}

fn check(frames: &[Vec<u8>], expected: &Expect) {
    let bytes = frames.concat();
    let whole = read(&mut client(), &[&bytes]);
    expected.assert_eq(&whole.join("\n"));
    let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(read(&mut client(), &bytewise), whole, "byte by byte");
}

fn text(payload: &[u8]) -> Vec<u8> {
    client_frame(Opcode::Text, true, payload, KEY)
}

fn part(opcode: Opcode, is_final: bool, payload: &[u8]) -> Vec<u8> {
    client_frame(opcode, is_final, payload, KEY)
}

/// A frame whose first bytes are these, then the key.
fn raw(start: &[u8]) -> Vec<u8> {
    [start, &KEY].concat()
}

#[test]
fn messages_and_what_stands_between_their_fragments() {
    use Opcode::{Binary, Close, Continuation, Ping, Pong, Text};
    check(
        &[text(b"Hello"), text(b""), part(Binary, true, &[0, 255])],
        &expect![[r"
        text Hello
        text 
        binary \x00\xff"]],
    );
    let fragments = [
        part(Text, false, "Grü".as_bytes().split_last().unwrap().1),
        part(Ping, true, b"between"),
        part(Continuation, false, &"ü".as_bytes()[1..]),
        part(Pong, true, b""),
        part(Continuation, true, b""),
        part(Close, true, &[&1000_u16.to_be_bytes()[..], "adé".as_bytes()].concat()),
        text(b"nobody reads this"),
    ];
    check(
        &fragments,
        &expect![[r"
        ping between
        pong 
        text Grü
        close Some(1000) adé"]],
    );
    check(&[part(Close, true, b"")], &expect!["close None "]);
}

#[test]
fn each_mistake_has_its_code() {
    use Opcode::{Binary, Close, Continuation, Ping, Text};
    let mistakes: &[(&str, Vec<u8>)] = &[
        ("unmasked", vec![0x81, 5]),
        ("second reserved bit", vec![0xa1]),
        ("third reserved bit", vec![0x91]),
        ("compressed, not agreed", vec![0xc1]),
        ("opcode 3", vec![0x83]),
        ("opcode 11", vec![0x8b]),
        ("fragmented ping", vec![0x09]),
        ("long ping", vec![0x89, 0xfe]),
        ("long close", vec![0x88, 0xff]),
        ("125 in two bytes", raw(&[0x82, 0xfe, 0, 125])),
        ("65535 in eight bytes", raw(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff])),
        ("2^63", raw(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0])),
        ("2^63 - 1", raw(&[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
        ("1001 bytes", raw(&[0x82, 0xfe, 3, 0xe9])),
        ("1001 bytes in two", [part(Binary, false, &[0; 600]), part(Continuation, true, &[0; 401])].concat()),
        ("a continuation", part(Continuation, true, b"")),
        ("a message within", [part(Text, false, b""), text(b"")].concat()),
        ("six fragments", [part(Text, false, b""), part(Continuation, false, b"").repeat(5)].concat()),
        ("a surrogate", text(&[0xed, 0xa0, 0x80])),
        ("an overlong letter", text(&[0xc0, 0xaf])),
        ("past Unicode, in a part", raw(&[0x01, 0x85]).into_iter().chain([0xf4 ^ KEY[0], 0x90 ^ KEY[1]]).collect()),
        ("half a letter", text(&[0xc3])),
        ("half a letter in two", [part(Text, false, b"a"), part(Continuation, true, &[0xc3])].concat()),
        ("a close of a byte", part(Close, true, b"a")),
        ("a close in other letters", part(Close, true, &[3, 232, 0xff])),
        ("a ping is no text", part(Ping, true, &[0xff])),
    ];
    let mut told = Vec::new();
    for (name, bytes) in mistakes {
        let whole = read(&mut client(), &[bytes]);
        let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&mut client(), &bytewise), whole, "{name}, byte by byte");
        told.push(format!("{name}: {}", whole.join(", ")));
    }
    expect![[r"
        unmasked: 1002 a client's frame is not masked
        second reserved bit: 1002 a reserved bit is set that nothing agreed gives a meaning
        third reserved bit: 1002 a reserved bit is set that nothing agreed gives a meaning
        compressed, not agreed: 1002 a reserved bit is set that nothing agreed gives a meaning
        opcode 3: 1002 opcode 0x3 is reserved
        opcode 11: 1002 opcode 0xb is reserved
        fragmented ping: 1002 a control frame is fragmented
        long ping: 1002 a control frame has more than 125 bytes
        long close: 1002 a control frame has more than 125 bytes
        125 in two bytes: 1002 a length takes more bytes than it needs
        65535 in eight bytes: 1002 a length takes more bytes than it needs
        2^63: 1002 a length has its highest bit set
        2^63 - 1: 1009 a message is longer than 1000 bytes
        1001 bytes: 1009 a message is longer than 1000 bytes
        1001 bytes in two: 1009 a message is longer than 1000 bytes
        a continuation: 1002 a continuation continues nothing
        a message within: 1002 a message begins within another one
        six fragments: 1009 a message has more than 5 fragments
        a surrogate: 1007 text is not UTF-8
        an overlong letter: 1007 text is not UTF-8
        past Unicode, in a part: 1007 text is not UTF-8
        half a letter: 1007 text is not UTF-8
        half a letter in two: 1007 text is not UTF-8
        a close of a byte: 1002 a close has one byte, which is no code
        a close in other letters: 1007 text is not UTF-8
        a ping is no text: ping \xff"]]
    .assert_eq(&told.join("\n"));
}

#[test]
fn close_codes_that_may_be_sent() {
    let close = |code: u16| read(&mut client(), &[&part(Opcode::Close, true, &code.to_be_bytes())]).concat();
    let may_be_sent: Vec<u16> = (0..=u16::MAX).filter(|code| close(*code).starts_with("close")).collect();
    let wanted = (1000..=1003).chain(1007..=1014).chain(3000..=4999);
    assert_eq!(may_be_sent, wanted.collect::<Vec<u16>>());
}

#[test]
fn a_server_reads_at_rest_from_little_memory() {
    assert_eq!(size_of::<Reader>(), 24);
}

#[test]
fn a_whole_message_is_lent_where_it_lies() {
    let mut bytes = text(b"Hello");
    let place = bytes[6..].as_ptr();
    let mut reader = client();
    let mut rest = &mut bytes[..];
    let Ok(Some(Event::Text(hello))) = reader.next(&mut rest) else { panic!("a text") };
    assert_eq!((hello, hello.as_ptr()), ("Hello", place));
    assert!(reader.is_at_rest());
}

#[test]
fn limits_change_between_frames() {
    let mut reader = client();
    reader.set_limits(Limits { message_bytes_max: 4, ..LIMITS });
    assert_eq!(read(&mut reader, &[&text(b"four")]), ["text four"]);
    reader.set_limits(LIMITS);
    assert_eq!(read(&mut reader, &[&text(b"a longer one")]), ["text a longer one"]);
    reader.set_limits(Limits { message_bytes_max: 4, ..LIMITS });
    assert_eq!(read(&mut reader, &[&text(b"five!")]), ["1009 a message is longer than 4 bytes"]);
}

fn messages() -> impl Strategy<Value = Vec<(bool, Vec<Vec<u8>>)>> {
    let fragments = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..5);
    prop::collection::vec((any::<bool>(), fragments), 0..6)
}

/// Bytes in pieces of these lengths, again and again.
fn pieces<'b>(mut bytes: &'b [u8], lengths: &[usize]) -> Vec<&'b [u8]> {
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at((*length).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

proptest! {
    #[test]
    fn what_is_written_is_read_in_any_pieces(
        messages in messages(), key: [u8; 4], lengths in prop::collection::vec(1_usize..300, 1..8),
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (is_ping, fragments) in &messages {
            let last = fragments.len() - 1;
            for (place, fragment) in fragments.iter().enumerate() {
                let opcode = if place == 0 { Opcode::Binary } else { Opcode::Continuation };
                bytes.extend(client_frame(opcode, place == last, fragment, key));
                if *is_ping {
                    bytes.extend(client_frame(Opcode::Ping, true, b"?", key));
                    if place < last { expected.push("ping ?".to_owned()); }
                }
            }
            expected.push(tell(Event::Binary(&fragments.concat())));
            if *is_ping { expected.push("ping ?".to_owned()); }
        }
        let mut reader = client();
        prop_assert_eq!(read(&mut reader, &pieces(&bytes, &lengths)), expected);
        prop_assert!(reader.is_at_rest());
    }

    #[test]
    fn any_bytes_are_read_the_same_in_any_pieces(
        start in prop::collection::vec(prop_oneof![Just(0x81_u8), Just(0x01), Just(0x80), Just(0x89), Just(0xc1), any::<u8>()], 0..4),
        bytes in prop::collection::vec(any::<u8>(), 0..300), lengths in prop::collection::vec(1_usize..20, 1..8),
    ) {
        let mut all = Vec::new();
        for first in start {
            all.extend(client_frame(Opcode::Text, true, &bytes[..bytes.len() % 40], KEY));
            all.extend([first, 0x80 | (first & 0x1f)]);
        }
        all.extend(&bytes);
        let whole = read(&mut Reader::of_client(LIMITS, true), &[&all]);
        prop_assert_eq!(read(&mut Reader::of_client(LIMITS, true), &pieces(&all, &lengths)), whole);
    }

    #[test]
    fn a_server_s_frames_are_read(payload in prop::collection::vec(any::<u8>(), 0..1000)) {
        let mut reader = Reader::of_server(LIMITS, true);
        let frame = [header(Opcode::Binary, payload.len()).as_bytes(), &payload].concat();
        prop_assert_eq!(read(&mut reader, &[&frame]), [tell(Event::Binary(&payload))]);
        let text = String::from_utf8_lossy(&payload[..payload.len() / 4]).into_owned();
        let (left, right) = text.as_bytes().split_at(text.len() / 2);
        prop_assert_eq!(read(&mut reader, &[&text_frame(&[left, right])]), [tell(Event::Text(&text))]);
        prop_assert_eq!(read(&mut reader, &[&close_frame(Some(4000), &text.replace('\0', ""))]).len(), 1);
    }
}

#[test]
fn what_is_declared_takes_no_memory() {
    let limits = Limits { message_bytes_max: u32::MAX, fragments_max: 5 };
    let mut reader = Reader::of_client(limits, false);
    let declared = raw(&[0x82, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert!(read(&mut reader, &[&declared, &[0; 1000]]).is_empty());
    assert!((1000..=2000).contains(&reader.kept_bytes()), "{}", reader.kept_bytes());
}

#[test]
fn many_fragments_take_what_they_carry() {
    let limits = Limits { message_bytes_max: 65_536, fragments_max: 65_536 };
    let mut reader = Reader::of_client(limits, false);
    let mut sent = read(&mut reader, &[&part(Opcode::Text, false, b"a")]);
    let fragment = part(Opcode::Continuation, false, b"b");
    for _ in 1..65_535 {
        sent.extend(read(&mut reader, &[&fragment]));
    }
    assert!(sent.is_empty() && reader.kept_bytes() <= 65_536, "{}", reader.kept_bytes());
    assert_eq!(read(&mut reader, &[&part(Opcode::Continuation, true, b"c")]), ["text 65536 bytes"]);
    assert!(reader.is_at_rest());
}

#[test]
fn what_is_skipped_takes_no_memory_and_the_close_behind_it_is_read() {
    let limits = Limits { message_bytes_max: 65_536, fragments_max: 1000 };
    let mut reader = Reader::of_client(limits, false);
    assert_eq!(reader.held_bytes(), 0);
    assert!(read(&mut reader, &[&part(Opcode::Text, false, "a".repeat(30_000).as_bytes())]).is_empty());
    assert!((30_000..=65_536).contains(&reader.held_bytes()), "{}", reader.held_bytes());
    reader.skip_messages();
    assert!(reader.held_bytes() < 1000, "{}", reader.held_bytes());
    for _ in 0..10 {
        assert!(read(&mut reader, &[&part(Opcode::Continuation, false, &[0xff].repeat(30_000))]).is_empty());
        assert!(reader.held_bytes() < 1000, "{}", reader.held_bytes());
    }
    let rest = [part(Opcode::Continuation, true, b"c"), part(Opcode::Close, true, &1000_u16.to_be_bytes())].concat();
    let told = read(&mut reader, &[&rest]);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[1], tell(Event::Close { code: Some(1000), reason: "" }));
}

/// Bytes that the fuzzer also starts from.
#[test]
fn the_fuzzers_corpus_holds() {
    for (corpus, run) in [("websocket_frames", fuzz_frames as fn(&[u8])), ("websocket_handshake", fuzz_handshake)] {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(corpus);
        let mut files = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            run(&std::fs::read(entry.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 10, "{files} files in {}", folder.display());
    }
}

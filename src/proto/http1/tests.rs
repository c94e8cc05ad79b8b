//! Tables of raw messages with what becomes of each, and promises that hold for any bytes.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test stops where it fails"
)]

use std::fmt::Write as _;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use expect_test::{ExpectFile, expect, expect_file};
use proptest::prelude::*;

use super::fuzz::{Event, Requests, Responses, Side, run};
use super::*;
use crate::proto::head::{Field, Framing, Known, Method, RequestHead, ResponseHead};

#[path = "../../../tests/data/http1/cases.rs"]
#[expect(unreachable_pub, dead_code, clippy::panic, reason = "shared with tests that go over sockets")]
mod cases;

/// Runs every case of a table, whole and cut, and compares the table with what came out.
fn check<S: Side>(expected: &ExpectFile, table: &str, side: impl Fn(&str) -> S, cut: impl Fn(&str, &[u8])) {
    let mut rendered = String::new();
    let mut count = 0;
    for line in cases::lines(table) {
        match line {
            Ok(case) => {
                count += 1;
                cut(&case.name, &case.raw);
                let (outcome, told) = tell(&run(&[&case.raw], &side(&case.name)));
                let line = format!("{} | {} | {outcome} | {told}", case.name, case.written);
                rendered.push_str(line.trim_end_matches([' ', '|']));
            }
            Err(comment) => rendered.push_str(comment),
        }
        rendered.push('\n');
    }
    assert!(count >= 60, "{count} cases");
    expected.assert_eq(&rendered);
}

fn tell(events: &[Event]) -> (String, String) {
    let mut outcome = if events.is_empty() { "wait" } else { "accept" }.to_owned();
    let mut told = String::new();
    for event in events {
        match event {
            Event::Head(head) => write!(told, "; {head}"),
            Event::Payload(payload) if payload.len() > 40 => write!(told, "; {} bytes", payload.len()),
            Event::Payload(payload) => write!(told, "; \"{}\"", payload.escape_ascii()),
            Event::End(trailers) if trailers.is_empty() => Ok(()),
            Event::End(trailers) => write!(told, "; trailers \"{}\"", trailers.escape_ascii()),
            Event::Refused(error) => {
                outcome.clone_from(error);
                Ok(())
            }
        }
        .expect("a string takes all");
    }
    let told = told.trim_start_matches("; ");
    let told = if told.len() > 300 { "…" } else { told };
    (outcome, told.replace('|', "\\p"))
}

#[test]
fn requests_have_the_outcome_that_the_table_says() {
    let table = include_str!("../../../tests/data/http1/requests.txt");
    let expected = expect_file!["../../../tests/data/http1/requests.txt"];
    check(&expected, table, |_| Requests, |_, raw| fuzz_request(raw));
}

fn method_in(name: &str) -> (u8, Method) {
    match name.split(' ').next() {
        Some("HEAD") => (1, Method::Head),
        Some("CONNECT") => (2, Method::Connect),
        _ => (0, Method::Get),
    }
}

#[test]
fn answers_have_the_outcome_that_the_table_says() {
    let table = include_str!("../../../tests/data/http1/responses.txt");
    let expected = expect_file!["../../../tests/data/http1/responses.txt"];
    let cut = |name: &str, raw: &[u8]| fuzz_response(&[&[method_in(name).0], raw].concat());
    check(&expected, table, |name| Responses(method_in(name).1), cut);
}

/// Bytes from a corpus that the fuzzer also starts from.
fn replay(corpus: &str, run: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(corpus);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is committed") {
        run(&fs::read(entry.expect("readable").path()).expect("readable"));
        count += 1;
    }
    assert!(count >= 10, "{count} files in {}", folder.display());
}

#[test]
fn the_fuzzers_corpus_holds() {
    replay("http1_request", fuzz_request);
    replay("http1_response", fuzz_response);
}

fn limits() -> HeadLimits {
    HeadLimits::default()
}

fn request(raw: &str) -> RequestHead {
    parse_request(raw.into(), raw.len(), Vec::new(), &limits()).expect("a legal request")
}

fn response(raw: &str) -> ResponseHead {
    parse_response(raw.into(), raw.len(), Vec::new(), Method::Get, &limits()).expect("a legal answer")
}

#[test]
fn a_refusal_gives_the_lent_buffers_back() {
    let raw = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    let address = raw.as_ptr();
    let fields = vec![Field { name: head_span(), value: head_span(), known: Known::Other }];
    let (error, bytes, fields) = parse_request(raw, 18, fields, &limits()).expect_err("no Host");
    assert_eq!((error, bytes.as_ptr(), fields.len()), (RequestError::MissingHost, address, 0));
    assert_eq!(error.sentence(), "the Host field is missing");
    assert_eq!(error.to_string(), error.sentence());
    let folded = RequestError::from(HeadError::FoldedLine);
    assert_eq!((folded.status(), folded.to_string().as_str()), (400, folded.sentence()));
}

fn head_span() -> crate::proto::head::Span {
    crate::proto::head::Span { start: 0, end: 3 }
}

#[test]
fn a_parser_is_as_strict_without_a_scanner() {
    for raw in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX:\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b \n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nX",
        "\r\n",
        "",
    ] {
        let refused = parse_request(raw.into(), raw.len(), Vec::new(), &limits());
        assert!(refused.is_err(), "{raw:?}");
        let answer = raw.replacen("GET / HTTP/1.1", "HTTP/1.1 200 OK", 1);
        let refused = parse_response(answer.as_str().into(), answer.len(), Vec::new(), Method::Get, &limits());
        assert!(refused.is_err(), "{answer:?}");
    }
    let short = parse_request(b"GET".to_vec(), 4, Vec::new(), &limits());
    assert!(short.is_err(), "a length past the buffer");
}

#[test]
fn what_connection_names_is_found_and_dropped() {
    let mut head = request(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, , X-One,host\r\nX-one: 1\r\nX-Two: 2\r\n\
         Connection: x-three\r\nX-Three: 3\r\nx-THREE: 4\r\n\r\n",
    );
    let names: Vec<_> =
        connection_names(&head.bytes, &head.fields).map(|name| name.escape_ascii().to_string()).collect();
    assert_eq!(names, ["keep-alive", "X-One", "host", "x-three"]);
    remove_connection_named(&head.bytes, &mut head.fields);
    let left: Vec<_> = head.fields.iter().map(|field| head.text(field.name).escape_ascii().to_string()).collect();
    assert_eq!(left, ["Host", "Connection", "X-Two", "Connection"]);
}

#[test]
fn a_request_is_written_with_the_gateways_own_framing() {
    let mut head = request(
        "POST /api/a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nAccept:  x \r\nX-User-Id: 7\r\n\
         Keep-Alive: timeout=5\r\nConnection: close\r\nCookie: c\r\n\r\n",
    );
    head.remove(|known| matches!(known, Known::Host | Known::Identity));
    head.push(Known::Host, b"Host", b"backend:80");
    let mut wire = Vec::new();
    encode_request(&head, b"/a?b", Framing::Chunked, false, &mut wire);
    expect![[
        r"POST /a?b HTTP/1.1\r\nAccept: x\r\nCookie: c\r\nHost: backend:80\r\nTransfer-Encoding: chunked\r\n\r\n"
    ]]
    .assert_eq(&wire.escape_ascii().to_string());
}

#[test]
fn an_upgrade_is_written_hop_by_hop() {
    let raw = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut wire = Vec::new();
    encode_request(&request(raw), b"/ws", Framing::None, false, &mut wire);
    expect![[r"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"]]
        .assert_eq(&wire.escape_ascii().to_string());
    let head = response("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n");
    let mut wire = Vec::new();
    encode_response(&head, head.framing, ConnectionToken::Upgrade, &mut wire);
    expect![[r"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"]]
        .assert_eq(&wire.escape_ascii().to_string());
}

#[test]
fn an_answer_is_written_with_the_gateways_own_framing() {
    let write = |raw: &str, framing, connection| {
        let mut wire = Vec::new();
        encode_response(&response(raw), framing, connection, &mut wire);
        wire.escape_ascii().to_string()
    };
    let ok = "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX: a\r\nConnection: close\r\n\r\n";
    expect![[r"HTTP/1.1 200 Fine\r\nX: a\r\nContent-Length: 5\r\n\r\n"]].assert_eq(&write(
        ok,
        Framing::Length(5),
        ConnectionToken::None,
    ));
    expect![[r"HTTP/1.1 200 Fine\r\nX: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"]]
        .assert_eq(&write(ok, Framing::Chunked, ConnectionToken::Close));
    expect![[r"HTTP/1.1 200 Fine\r\nX: a\r\nConnection: close\r\n\r\n"]].assert_eq(&write(
        ok,
        Framing::UntilClose,
        ConnectionToken::KeepAlive,
    ));
    let not_modified = "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n";
    expect![[r"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n"]].assert_eq(&write(
        not_modified,
        Framing::None,
        ConnectionToken::KeepAlive,
    ));
    let empty = "HTTP/1.1 204 \r\nContent-Length: 5\r\n\r\n";
    expect![[r"HTTP/1.1 204 No Content\r\n\r\n"]].assert_eq(&write(empty, Framing::None, ConnectionToken::None));
    let mut own = ResponseHead::new(429, Vec::new(), Vec::new());
    own.push(Known::RetryAfter, b"Retry-After", b"1");
    own.push(Known::ContentLength, b"Content-Length", b"99");
    let mut wire = Vec::new();
    encode_response(&own, Framing::Length(0), ConnectionToken::None, &mut wire);
    expect![[r"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"]]
        .assert_eq(&wire.escape_ascii().to_string());
}

#[test]
fn chunk_headers_are_the_shortest_hex() {
    let headers = [1, 9, 10, 16, 255, 4096, usize::MAX].map(|len| {
        let mut header = Vec::new();
        encode_chunk_header(NonZeroUsize::new(len).expect("not zero"), &mut header);
        assert_eq!(header, format!("{len:x}\r\n").into_bytes());
        header.len()
    });
    assert_eq!(headers[0], 3);
}

#[test]
fn what_is_nothing_but_payload_may_be_skipped() {
    let mut length = BodyDecoder::new(Framing::Length(10));
    assert_eq!(length.decode(b"four"), Ok(Decoded::Data { start: 0, end: 4 }));
    assert_eq!(length.payload_left(), 6);
    length.skip(5);
    assert_eq!((length.payload_left(), length.is_done()), (1, false));
    // What follows belongs to the next message, as if all had been decoded.
    assert_eq!(length.decode(b"xGET"), Ok(Decoded::Data { start: 0, end: 1 }));
    assert_eq!((length.payload_left(), length.is_done()), (0, true));
    let mut length = BodyDecoder::new(Framing::Length(10));
    length.skip(9);
    assert!(length.finish_at_eof().is_err(), "a part is no whole");

    let mut rest = BodyDecoder::new(Framing::UntilClose);
    rest.skip(rest.payload_left());
    assert_eq!((rest.payload_left(), rest.is_done()), (u64::MAX, false));
    assert!(rest.finish_at_eof().is_ok());
    assert_eq!(rest.payload_left(), 0);

    for framing in [Framing::None, Framing::Length(0), Framing::Chunked] {
        assert_eq!(BodyDecoder::new(framing).payload_left(), 0, "{framing:?}");
    }
    let mut chunked = BodyDecoder::new(Framing::Chunked);
    assert!(matches!(chunked.decode(b"a\r\nfour"), Ok(Decoded::Data { .. })));
    assert_eq!(chunked.payload_left(), 0, "framing stands behind it");
}

#[test]
fn the_end_of_a_body_is_known_at_once() {
    let mut body = BodyDecoder::new(Framing::Length(2));
    assert_eq!(body.decode(b""), Ok(Decoded::More { consumed: 0 }));
    assert_eq!(body.decode(b"okGET"), Ok(Decoded::Data { start: 0, end: 2 }));
    assert!(body.is_done());
    assert_eq!(body.decode(b"GET"), Ok(Decoded::Done { consumed: 0 }));
    let mut body = BodyDecoder::new(Framing::Chunked);
    assert_eq!(body.decode(b"2\r\nok\r\n0\r\n\r\nGET"), Ok(Decoded::Data { start: 3, end: 5 }));
    assert_eq!(body.finish_at_eof(), Err(BodyError::Truncated));
    assert_eq!(body.decode(b"\r\n0\r\n\r\nGET"), Ok(Decoded::Done { consumed: 7 }));
    assert_eq!((body.is_done(), body.finish_at_eof()), (true, Ok(())));
    let mut body = BodyDecoder::new(Framing::UntilClose);
    assert_eq!(body.decode(b"all"), Ok(Decoded::Data { start: 0, end: 3 }));
    assert_eq!((body.is_done(), body.finish_at_eof(), body.is_done()), (false, Ok(()), true));
    assert_eq!(body.decode(b"late"), Ok(Decoded::Done { consumed: 0 }));
    assert!(BodyDecoder::new(Framing::None).is_done());
}

/// Whole lines and broken ones: random bytes alone seldom get past a request line.
const PIECES: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /a?b HTTP/1.1\r\n",
    "GET http://a/ HTTP/1.1\r\n",
    "OPTIONS * HTTP/1.0\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.0 200 \r\n",
    "HTTP/1.1 100 \r\n",
    "Host: a\r\n",
    "Host: a:80\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    "Connection: upgrade\r\n",
    "Upgrade: x\r\n",
    "Expect: 100-continue\r\n",
    "X:  y \r\n",
    "X: y\n",
    " z\r\n",
    "\r\n",
    "\r",
    "\n",
    "hello",
    "5\r\nhello\r\n",
    "5;x=y\r\nhello\r\n",
    "0\r\n",
    "0\r\n\r\n",
    "1\r\n",
    "A",
    ":",
    " ",
    "\t",
    "\0",
    "\u{e9}",
];

fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        20 => prop::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..4),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn cut_anywhere_a_client_says_the_same(data in fragments()) {
        fuzz_request(&data);
    }

    #[test]
    fn cut_anywhere_an_upstream_says_the_same(method in any::<u8>(), data in fragments()) {
        fuzz_response(&[&[method][..], &data].concat());
    }

    #[test]
    fn decoding_undoes_encoding(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..20),
        cuts in prop::collection::vec(1_usize..50, 1..50),
        trailers in prop::sample::select(&["", "X: 1\r\n", "X: 1\r\nY:2\r\n"][..]),
    ) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            encode_chunk_header(NonZeroUsize::new(chunk.len()).expect("not empty"), &mut wire);
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(CHUNK_END);
        }
        encode_last_chunk(trailers.as_bytes(), &mut wire);
        let mut body = BodyDecoder::new(Framing::Chunked);
        let mut payload = Vec::new();
        let mut rest = wire.as_slice();
        for cut in cuts.iter().cycle() {
            let mut input = &rest[..rest.len().min(*cut)];
            rest = &rest[input.len()..];
            while !input.is_empty() {
                input = match body.decode(input).expect("legal") {
                    Decoded::More { consumed } | Decoded::Done { consumed } => &input[consumed..],
                    Decoded::Data { start, end } => {
                        payload.extend_from_slice(&input[start..end]);
                        &input[end..]
                    }
                };
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(body.is_done());
        prop_assert_eq!(payload, chunks.concat());
        prop_assert_eq!(body.trailers(), trailers.as_bytes());
    }
}

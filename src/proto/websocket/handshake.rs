//! The opening handshake, as a server sees it (RFC 6455 §4.2), and what a client offers to agree on.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::extensions::{self, Cursor, DeflateOffer};
use crate::proto::head::{Framing, Known, Method, RequestHead, ResponseHead, Span, Version};
use crate::proto::http1::{connection_names, elements, span_in};

/// Subprotocols that a client may offer. Honest clients offer one to three.
const PROTOCOLS_MAX: usize = 16;

/// What a bearer token stands behind in a list of subprotocols, which is all that browsers can send.
const BEARER: &[u8] = b"bearer.";

/// A client's handshake that is in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    accept: [u8; 28],
    /// Whether the client offers the subprotocol that is spoken here.
    pub speaks: bool,
    /// Where the token lies that is offered as the subprotocol `bearer.<token>`.
    pub bearer: Option<Span>,
    /// The first offer of permessage-deflate that can be taken.
    pub deflate: Option<DeflateOffer>,
}

/// What is wrong with a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// To be answered 405.
    #[error("a WebSocket begins with GET")]
    Method,
    /// To be answered 426 with `Upgrade: websocket`.
    #[error("the request does not ask for a WebSocket: Connection: Upgrade and Upgrade: websocket are missing")]
    NotAsked,
    /// To be answered 426 with `Sec-WebSocket-Version: 13`.
    #[error("Sec-WebSocket-Version is not 13")]
    Version,
    /// To be answered 400.
    #[error("a WebSocket begins with HTTP/1.1")]
    HttpVersion,
    /// To be answered 400.
    #[error("a WebSocket begins with a request without a body")]
    Body,
    /// To be answered 400.
    #[error("Sec-WebSocket-Key is not 16 bytes in base64, once")]
    Key,
    /// To be answered 400.
    #[error("Sec-WebSocket-Protocol is not a list of different tokens, at most 16")]
    Protocols,
    /// To be answered 400.
    #[error("Sec-WebSocket-Extensions is malformed")]
    Extensions,
}

impl Handshake {
    /// Reads a client's handshake, where this subprotocol is spoken.
    pub fn read(head: &RequestHead, spoken: &str) -> Result<Self, HandshakeError> {
        if head.method != Method::Get {
            return Err(HandshakeError::Method);
        }
        if head.version != Version::Http11 {
            return Err(HandshakeError::HttpVersion);
        }
        if !is_asked(head) {
            return Err(HandshakeError::NotAsked);
        }
        if !matches!(head.framing, Framing::None | Framing::Length(0)) {
            return Err(HandshakeError::Body);
        }
        if only(head, Known::WebSocketVersion) != Some(b"13") {
            return Err(HandshakeError::Version);
        }
        let key = only(head, Known::WebSocketKey).ok_or(HandshakeError::Key)?;
        let accept = accept(key).ok_or(HandshakeError::Key)?;
        let Protocols { speaks, bearer } = read_protocols(head, spoken)?;
        let deflate = extensions::deflate_offer(values(head, Known::WebSocketExtensions))?;
        Ok(Self { accept, speaks, bearer, deflate })
    }

    /// Writes the fields of the 101: the upgrade itself, the subprotocol that was chosen among those offered, and
    /// permessage-deflate where it is agreed. `Connection` is for whoever writes the answer.
    pub fn answer(&self, head: &mut ResponseHead, protocol: Option<&str>, deflate: Option<DeflateOffer>) {
        head.push(Known::Upgrade, b"Upgrade", b"websocket");
        head.push(Known::Other, b"Sec-WebSocket-Accept", &self.accept);
        if let Some(protocol) = protocol {
            head.push(Known::Other, b"Sec-WebSocket-Protocol", protocol.as_bytes());
        }
        if let Some(deflate) = deflate {
            head.push(Known::Other, b"Sec-WebSocket-Extensions", deflate.answer().as_bytes());
        }
    }

    /// The value of `Sec-WebSocket-Accept`.
    pub fn accept(&self) -> &[u8] {
        &self.accept
    }
}

fn is_asked(head: &RequestHead) -> bool {
    let mut protocols = head.fields.iter().filter(|field| field.known == Known::Upgrade);
    connection_names(&head.bytes, &head.fields).any(|name| name.eq_ignore_ascii_case(b"upgrade"))
        && protocols.any(|field| elements(head.text(field.value)).any(|name| name.eq_ignore_ascii_case(b"websocket")))
}

/// The values of all these fields.
fn values(head: &RequestHead, known: Known) -> impl Iterator<Item = &[u8]> {
    head.fields.iter().filter(move |field| field.known == known).map(|field| head.text(field.value))
}

/// The value of a field that stands there once.
fn only(head: &RequestHead, known: Known) -> Option<&[u8]> {
    let mut values = values(head, known);
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// RFC 6455 §4.2.2: SHA-1 over the key and this name, which no other protocol knows.
fn accept(key: &[u8]) -> Option<[u8; 28]> {
    let mut nonce = [0; 18];
    if key.len() != 24 || STANDARD.decode_slice(key, &mut nonce) != Ok(16) {
        return None;
    }
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let mut accept = [0; 28];
    STANDARD.encode_slice(hash.finish(), &mut accept).ok()?;
    Some(accept)
}

/// What is told by the subprotocols that a client offers.
struct Protocols {
    speaks: bool,
    bearer: Option<Span>,
}

/// Reads them once: with a token among them they are most of a head.
fn read_protocols(head: &RequestHead, spoken: &str) -> Result<Protocols, HandshakeError> {
    let mut seen: [&[u8]; PROTOCOLS_MAX] = [&[]; PROTOCOLS_MAX];
    let mut count = 0_usize;
    let mut told = Protocols { speaks: false, bearer: None };
    for value in values(head, Known::WebSocketProtocol) {
        let mut list = Cursor::new(value);
        while list.has_more() {
            let protocol = list.token().filter(|_| list.ends_element()).ok_or(HandshakeError::Protocols)?;
            if seen.iter().take(count).any(|other| *other == protocol) {
                return Err(HandshakeError::Protocols);
            }
            *seen.get_mut(count).ok_or(HandshakeError::Protocols)? = protocol;
            count = count.saturating_add(1);
            told.speaks |= protocol == spoken.as_bytes();
            let token = protocol.strip_prefix(BEARER).map(|token| span_in(&head.bytes, token));
            told.bearer = told.bearer.or(token);
        }
    }
    Ok(told)
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may panic")]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::proto::http1::{HeadLimits, parse_request};

    const WHOLE: &str = "GET /ws HTTP/1.1|Host: a|Connection: keep-alive, Upgrade|Upgrade: websocket|Sec-WebSocket-Version: 13|\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

    fn head(lines: &str) -> RequestHead {
        let limits = HeadLimits { head_bytes_max: 4096, fields_max: 32, target_bytes_max: 256 };
        let bytes = format!("{}\r\n\r\n", lines.replace('|', "\r\n")).into_bytes();
        parse_request(bytes.clone(), bytes.len(), Vec::new(), &limits).expect("a request")
    }

    #[test]
    fn an_answer_proves_that_the_key_was_read() {
        let handshake = Handshake::read(&head(WHOLE), "").expect("it is in order");
        assert_eq!(handshake.accept(), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "RFC 6455 §1.3");
    }

    #[test]
    fn what_is_missing_or_doubled_is_named() {
        let cases: &[(&str, &str, &str)] = &[
            ("whole", "", ""),
            ("post", "GET", "POST"),
            ("http/1.0", "HTTP/1.1", "HTTP/1.0"),
            ("connection without the option", "keep-alive, Upgrade", "keep-alive"),
            ("another protocol", "websocket", "h2c"),
            ("among others", "websocket", "h2c, WebSocket"),
            ("with a version", "websocket", "websocket/13"),
            ("body", "Host: a", "Host: a|Content-Length: 1"),
            ("empty body", "Host: a", "Host: a|Content-Length: 0"),
            ("chunked", "Host: a", "Host: a|Transfer-Encoding: chunked"),
            ("version 8", "Version: 13", "Version: 8"),
            ("two versions", "Version: 13", "Version: 13|Sec-WebSocket-Version: 13"),
            ("versions in one", "Version: 13", "Version: 13, 8"),
            ("no version", "Sec-WebSocket-Version: 13", "X: y"),
            ("no key", "Sec-WebSocket-Key", "X"),
            ("two keys", "Host: a", "Host: a|Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
            ("short key", "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ=="),
            ("long key", "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZTE="),
            ("key with bits behind its end", "ZQ==", "ZR=="),
            ("key without padding", "ZQ==", "ZQ"),
            ("key in the alphabet of URLs", "dGhl", "-_hl"),
        ];
        let told: Vec<String> = cases
            .iter()
            .map(|(name, what, instead)| {
                let lines = if what.is_empty() { WHOLE.to_owned() } else { WHOLE.replacen(what, instead, 1) };
                format!(
                    "{name}: {}",
                    Handshake::read(&head(&lines), "")
                        .map_or_else(|error| format!("{error:?}"), |_| "in order".to_owned())
                )
            })
            .collect();
        expect![[r"
            whole: in order
            post: Method
            http/1.0: HttpVersion
            connection without the option: NotAsked
            another protocol: NotAsked
            among others: in order
            with a version: NotAsked
            body: Body
            empty body: in order
            chunked: Body
            version 8: Version
            two versions: Version
            versions in one: Version
            no version: Version
            no key: Key
            two keys: Key
            short key: Key
            long key: Key
            key with bits behind its end: Key
            key without padding: Key
            key in the alphabet of URLs: Key"]]
        .assert_eq(&told.join("\n"));
    }

    #[test]
    fn subprotocols_are_different_tokens_and_one_may_be_a_bearer() {
        let many: Vec<String> = (0..17).map(|number| number.to_string()).collect();
        let told: Vec<String> = [
            "",
            "shardgate.v1",
            "shardgate.v1, bearer.a.b-c_d",
            "a,,b|Sec-WebSocket-Protocol: c",
            "a, a",
            "a b",
            "a/b",
            "a, shardgate.v1 ,, bearer.long-enough-for-two-steps_of_sixteen.and~more",
            "bearer.a-token-with-an-e\u{e9}-far-behind",
            "bearer.one, bearer.two",
            "bearer.",
            &many.join(","),
        ]
        .iter()
        .map(|list| {
            let head = head(&format!("{WHOLE}|Sec-WebSocket-Protocol: {list}"));
            Handshake::read(&head, "shardgate.v1").map_or_else(
                |error| format!("{error:?}"),
                |handshake| {
                    let token = handshake.bearer.map(|token| head.text(token).escape_ascii().to_string());
                    format!("{} {token:?}", if handshake.speaks { "speaks" } else { "does not" })
                },
            )
        })
        .collect();
        expect![[r#"
            does not None
            speaks None
            speaks Some("a.b-c_d")
            does not None
            Protocols
            Protocols
            Protocols
            speaks Some("long-enough-for-two-steps_of_sixteen.and~more")
            Protocols
            does not Some("one")
            does not Some("")
            Protocols"#]]
        .assert_eq(&told.join("\n"));
    }

    #[test]
    fn an_offer_is_taken_declined_or_malformed() {
        let offers = [
            "permessage-deflate",
            "Permessage-Deflate; client_max_window_bits",
            "permessage-deflate; client_max_window_bits=8; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; client_max_window_bits=\"10\"; server_max_window_bits=\"1\\0\"",
            "permessage-deflate; server_max_window_bits=15",
            "permessage-deflate; server_max_window_bits=9",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=\"123456789012\"",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=9",
            "permessage-deflate; mystery",
            "permessage-deflate; mystery, permessage-deflate; server_max_window_bits=12",
            "permessage-deflate; mystery|Sec-WebSocket-Extensions: permessage-deflate",
            "x-webkit-deflate-frame; a=\"b\", other",
            ", permessage-deflate ;client_max_window_bits ,",
            "",
            "permessage-deflate;",
            "permessage-deflate; a=",
            "permessage-deflate; a=\"",
            "permessage-deflate; a=\"\"",
            "permessage-deflate; a=\"b c\"",
            "permessage-deflate; a = b",
            "permessage-deflate foo",
            "permessage-deflate, foo, b@r",
            "; a",
        ];
        let told: Vec<String> = offers
            .iter()
            .map(|offer| {
                let told = match Handshake::read(&head(&format!("{WHOLE}|Sec-WebSocket-Extensions: {offer}")), "") {
                    Ok(Handshake { deflate: Some(offer), .. }) => format!("taken {}", offer.server_window_bits),
                    Ok(_) => "declined".to_owned(),
                    Err(error) => format!("{error:?}"),
                };
                format!("{told}: {offer}")
            })
            .collect();
        expect![[r#"
            taken 15: permessage-deflate
            taken 15: Permessage-Deflate; client_max_window_bits
            taken 15: permessage-deflate; client_max_window_bits=8; server_no_context_takeover; client_no_context_takeover
            taken 10: permessage-deflate; client_max_window_bits="10"; server_max_window_bits="1\0"
            taken 15: permessage-deflate; server_max_window_bits=15
            taken 9: permessage-deflate; server_max_window_bits=9
            declined: permessage-deflate; server_max_window_bits=8
            declined: permessage-deflate; server_max_window_bits=16
            declined: permessage-deflate; server_max_window_bits=010
            declined: permessage-deflate; server_max_window_bits
            declined: permessage-deflate; server_max_window_bits="123456789012"
            declined: permessage-deflate; client_max_window_bits=7
            declined: permessage-deflate; server_no_context_takeover=1
            declined: permessage-deflate; server_no_context_takeover; server_no_context_takeover
            declined: permessage-deflate; client_max_window_bits; client_max_window_bits=9
            declined: permessage-deflate; mystery
            taken 12: permessage-deflate; mystery, permessage-deflate; server_max_window_bits=12
            taken 15: permessage-deflate; mystery|Sec-WebSocket-Extensions: permessage-deflate
            declined: x-webkit-deflate-frame; a="b", other
            taken 15: , permessage-deflate ;client_max_window_bits ,
            declined: 
            Extensions: permessage-deflate;
            Extensions: permessage-deflate; a=
            Extensions: permessage-deflate; a="
            Extensions: permessage-deflate; a=""
            Extensions: permessage-deflate; a="b c"
            Extensions: permessage-deflate; a = b
            Extensions: permessage-deflate foo
            Extensions: permessage-deflate, foo, b@r
            Extensions: ; a"#]].assert_eq(&told.join("\n"));
    }

    #[test]
    fn an_answer_has_what_was_agreed() {
        let offer = "permessage-deflate; server_max_window_bits=10";
        let handshake =
            Handshake::read(&head(&format!("{WHOLE}|Sec-WebSocket-Extensions: {offer}")), "").expect("it is in order");
        let mut answer = ResponseHead::new(101, Vec::new(), Vec::new());
        handshake.answer(&mut answer, Some("shardgate.v1"), handshake.deflate);
        expect![[r"
            Upgrade: websocket
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=
            Sec-WebSocket-Protocol: shardgate.v1
            Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10
        "]].assert_eq(&answer.bytes.escape_ascii().to_string().replace("\\r\\n", "\n"));
    }
}

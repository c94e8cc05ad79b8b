//! Messages as bytes: content that says whose it is, wherever one looks into it; framing; and how far a message has come.

use std::{fmt, io::Write as _};

use crate::client::Head;

/// Content consists of pieces of this size, each of which looks like a whole message. It divides the sizes of buffers, so
/// what is cut off there is whole again.
const PIECE: usize = 64;

/// Names an exchange: in the target and the content of its request, in a field and the content of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) client: usize,
    pub(super) exchange: usize,
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.client, self.exchange)
    }
}

impl Tag {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (client, exchange) = text.split_once('-')?;
        Some(Self { client: client.parse().ok()?, exchange: exchange.parse().ok()? })
    }
}

/// The two messages of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Answer,
}

/// So many bytes of content: requests, or answers, that nobody sends. Each names the exchange and its place.
pub(super) fn content(kind: Kind, tag: Tag, bytes: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(bytes + PIECE);
    for place in 0..bytes.div_ceil(PIECE) {
        match kind {
            Kind::Request => write!(content, "GET /smuggled/{tag}/{place} HTTP/1.1\r\nHost: "),
            Kind::Answer => write!(content, "HTTP/1.1 204 \r\nX-Tag: smuggled/{tag}/{place}/"),
        }
        .expect("memory takes everything");
        content.resize((place + 1) * PIECE - 4, b'x');
        content.extend(b"\r\n\r\n");
    }
    content.truncate(bytes);
    content
}

/// How the end of a content is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    Bare,
    Length,
    Chunked,
    /// It ends with its connection: an answer until close, or bytes of a tunnel.
    Rest,
}

/// A message as it is sent.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    /// Places in the content, and where they are in the bytes.
    marks: Vec<(usize, usize)>,
}

impl Encoded {
    /// Frames a content. The head comes without its last line; `chunk` says how long the next chunk is at most.
    pub(super) fn new(head: &str, framing: Framing, content: &[u8], mut chunk: impl FnMut() -> usize) -> Self {
        let mut bytes = head.as_bytes().to_vec();
        match framing {
            Framing::Length => bytes.extend(format!("Content-Length: {}\r\n", content.len()).bytes()),
            Framing::Chunked => bytes.extend(b"Transfer-Encoding: chunked\r\n"),
            Framing::Bare | Framing::Rest => {}
        }
        bytes.extend(b"\r\n");
        let mut marks = vec![(0, bytes.len())];
        if framing != Framing::Chunked {
            bytes.extend(content);
            return Self { bytes, marks };
        }
        let mut done = 0;
        while done < content.len() {
            let size = chunk().clamp(1, content.len() - done);
            bytes.extend(format!("{size:x}\r\n").bytes());
            marks.push((done, bytes.len()));
            bytes.extend(&content[done..done + size]);
            bytes.extend(b"\r\n");
            done += size;
        }
        bytes.extend(b"0\r\n\r\n");
        Self { bytes, marks }
    }

    /// How many bytes hold the head and so much of the content.
    pub(super) fn up_to(&self, content: usize) -> usize {
        let before = self.marks.iter().rev().find(|mark| mark.0 < content).unwrap_or(&self.marks[0]);
        before.1 + content - before.0
    }
}

/// A message as it arrives.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) head: Head,
    /// How much of its content has come, without framing.
    pub(super) content_bytes: usize,
    /// All that comes of it; empty while more may come.
    pub(super) content: Vec<u8>,
    pub(super) is_whole: bool,
    /// What has come of it, with framing.
    pub(super) bytes: usize,
}

/// What may follow on the bytes that have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// More of them.
    More,
    /// The end of the stream has come behind them.
    End,
    /// The connection broke.
    Broken,
}

impl Message {
    /// The message that begins here, as far as it has come; none until its head is whole. An error says what is no HTTP.
    pub(super) fn read(
        bytes: &[u8],
        framing: impl FnOnce(&Head) -> Framing,
        then: Then,
    ) -> Result<Option<Self>, String> {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let head = read_head(&bytes[..end])?;
        let start = end + 4;
        let rest = &bytes[start..];
        // A large content is looked at often before it is whole, and copied once.
        let (content, is_whole, taken) = match framing(&head) {
            Framing::Bare => (&[][..], true, 0),
            Framing::Rest => (rest, then == Then::End, rest.len()),
            Framing::Chunked => {
                let (content, is_whole, taken) = read_chunks(rest)?;
                let content_bytes = content.len();
                return Ok(Some(Self { head, content_bytes, content, is_whole, bytes: start + taken }));
            }
            Framing::Length => {
                let length = head.field("content-length").and_then(|length| length.parse().ok());
                let length: usize = length.ok_or_else(|| format!("no length: {head:?}"))?;
                let taken = length.min(rest.len());
                (&rest[..taken], taken == length, taken)
            }
        };
        let content_bytes = content.len();
        let content = if is_whole || then != Then::More { content.to_vec() } else { Vec::new() };
        Ok(Some(Self { head, content_bytes, content, is_whole, bytes: start + taken }))
    }

    /// The status of an answer.
    pub(super) fn status(&self) -> u16 {
        self.head.first_line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    pub(super) fn closes(&self) -> bool {
        self.head.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// How the content of a request is framed, by its head.
pub(super) fn framing_of_request(head: &Head) -> Framing {
    match (head.field("transfer-encoding"), head.field("content-length")) {
        (Some(_), _) => Framing::Chunked,
        (None, Some(_)) => Framing::Length,
        (None, None) => Framing::Bare,
    }
}

/// How the content of an answer is framed, by its head and by what it answers.
pub(super) fn framing_of_answer(head: &Head, to_head: bool) -> Framing {
    let status = head.first_line.split(' ').nth(1).unwrap_or_default();
    match status {
        "101" => Framing::Rest,
        "204" | "304" => Framing::Bare,
        _ if to_head || status.starts_with('1') => Framing::Bare,
        _ if framing_of_request(head) == Framing::Bare => Framing::Rest,
        _ => framing_of_request(head),
    }
}

fn read_head(bytes: &[u8]) -> Result<Head, String> {
    let text = str::from_utf8(bytes).map_err(|_| format!("no head: {:?}", String::from_utf8_lossy(bytes)))?;
    let mut lines = text.split("\r\n");
    let first_line = lines.next().unwrap_or_default().to_owned();
    let field = |line: &str| {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("no field: {line:?}"))?;
        Ok((name.to_owned(), value.trim().to_owned()))
    };
    if !first_line.contains("HTTP/1.") {
        return Err(format!("no head: {text:?}"));
    }
    Ok(Head { first_line, fields: lines.map(field).collect::<Result<_, String>>()? })
}

/// Content, whether that is all of it, and the bytes that it takes.
fn read_chunks(bytes: &[u8]) -> Result<(Vec<u8>, bool, usize), String> {
    let mut content = Vec::new();
    let mut at = 0;
    while let Some(line) = bytes[at..].windows(2).position(|window| window == b"\r\n") {
        let size = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
        let size = usize::from_str_radix(&size, 16).map_err(|_| format!("no chunk size: {size:?}"))?;
        let start = at + line + 2;
        let end = (start + size).min(bytes.len());
        if size == 0 {
            // Without trailers, as nobody sends any here.
            return if bytes[start..].len() < 2 {
                Ok((content, false, bytes.len()))
            } else {
                Ok((content, true, start + 2))
            };
        }
        content.extend(&bytes[start..end]);
        if bytes.len() < start + size + 2 {
            break;
        }
        if &bytes[end..end + 2] != b"\r\n" {
            return Err(format!("a chunk of {size} bytes is longer than that"));
        }
        at = end + 2;
    }
    Ok((content, false, bytes.len()))
}

#[test]
fn what_is_encoded_is_read_again() {
    let tag = Tag { client: 1, exchange: 2 };
    for framing in [Framing::Length, Framing::Chunked, Framing::Rest] {
        let sent = content(Kind::Request, tag, 1000);
        let encoded = Encoded::new("POST /1-2 HTTP/1.1\r\n", framing, &sent, || 300);
        for stop in [0, 1, 299, 300, 301, 999, 1000] {
            let read = Message::read(&encoded.bytes[..encoded.up_to(stop)], |_| framing, Then::More);
            let read = read.expect("it is HTTP").expect("the head is there");
            assert_eq!((read.content_bytes, read.is_whole), (stop, stop == 1000 && framing == Framing::Length));
        }
        let read = Message::read(&encoded.bytes, |_| framing, Then::End).expect("it is HTTP").expect("it is there");
        assert_eq!((read.content, read.is_whole, read.bytes), (sent, true, encoded.bytes.len()));
    }
}

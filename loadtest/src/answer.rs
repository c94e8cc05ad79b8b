//! Reads one HTTP/1.1 answer out of bytes that may be split anywhere. Pure; sockets are `http`'s.

use std::mem::MaybeUninit;

use crate::body::Body;

const HEAD_BYTES_MAX: usize = 64 * 1024;
const FIELDS_MAX: usize = 100;

/// An answer under way. One per connection, used again for each answer.
pub(crate) struct Answer {
    /// The beginning of a head that came in pieces; empty otherwise.
    partial: Vec<u8>,
    state: State,
    /// The answer is to a HEAD request, so it has no body whatever its fields say.
    to_head: bool,
    pub(crate) status: u16,
    pub(crate) keeps_alive: bool,
    /// It has a `Retry-After`.
    pub(crate) says_when: bool,
}

#[derive(Debug, PartialEq)]
enum State {
    Head,
    Body(Body),
    Done,
}

impl Answer {
    pub(crate) fn new(to_head: bool) -> Self {
        Self { partial: Vec::new(), state: State::Head, to_head, status: 0, keeps_alive: true, says_when: false }
    }

    /// Makes it ready for the next answer.
    pub(crate) fn reset(&mut self) {
        self.partial.clear();
        self.state = State::Head;
        self.keeps_alive = true;
        self.says_when = false;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether any byte of this answer has come.
    pub(crate) fn has_begun(&self) -> bool {
        !self.partial.is_empty() || self.state != State::Head
    }

    /// The other end has closed: tells whether that was the proper end of this answer.
    pub(crate) fn end(&mut self) -> bool {
        if self.state == State::Body(Body::UntilClose) {
            self.state = State::Done;
        }
        self.is_done()
    }

    /// Takes this answer's bytes from the front of `bytes`, hands its content on, and says how much it took.
    /// The error is a sentence about the server's mistake.
    pub(crate) fn take(&mut self, bytes: &[u8], content: &mut impl FnMut(&[u8])) -> Result<usize, &'static str> {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.state {
                State::Done => break,
                State::Body(body) => {
                    at += body.take(&bytes[at..], content)?;
                    if body.is_done() {
                        self.state = State::Done;
                    }
                    break;
                }
                State::Head => at += self.take_head(&bytes[at..])?,
            }
        }
        Ok(at)
    }

    fn take_head(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        if self.partial.is_empty() {
            if let Some((length, head)) = parse(bytes, self.to_head)? {
                self.begin(head);
                return Ok(length);
            }
            self.partial.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        // Only a line's end can complete a head, so a head that comes byte by byte is parsed once a line.
        let before = self.partial.len();
        self.partial.extend_from_slice(bytes);
        if self.partial.len() > HEAD_BYTES_MAX + bytes.len() {
            return Err("a head over 64 KiB");
        }
        if memchr::memchr(b'\n', bytes).is_some()
            && let Some((length, head)) = parse(&self.partial, self.to_head)?
        {
            self.partial.clear();
            self.begin(head);
            return Ok(length - before);
        }
        Ok(bytes.len())
    }

    fn begin(&mut self, head: Head) {
        self.status = head.status;
        self.keeps_alive = head.keeps_alive;
        self.says_when = head.says_when;
        self.state = match head.body {
            // 100 and 103 only announce; the answer is still to come.
            _ if head.status < 200 => State::Head,
            Body::Length(0) => State::Done,
            body => State::Body(body),
        };
    }
}

struct Head {
    status: u16,
    keeps_alive: bool,
    says_when: bool,
    body: Body,
}

fn parse(bytes: &[u8], to_head: bool) -> Result<Option<(usize, Head)>, &'static str> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut fields);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err("more than 100 fields"),
        Err(_) => return Err("a head that is not HTTP/1.1"),
    };
    let status = response.code.unwrap_or(0);
    if !(100..=999).contains(&status) || status == 101 {
        return Err("a status that no request asked for");
    }
    let mut keeps_alive = response.version == Some(1);
    let (mut length_field, mut chunked, mut says_when) = (None, false, false);
    for field in response.headers.iter() {
        // Lengths first: most fields are none of these, and a length tells it without looking at the name.
        match field.name.len() {
            14 if field.name.eq_ignore_ascii_case("content-length") => {
                let value = number(field.value).ok_or("a content-length that is not a number")?;
                if length_field.replace(value).is_some_and(|earlier| earlier != value) {
                    return Err("two different content-length fields");
                }
            }
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                if !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err("a transfer-encoding other than chunked");
                }
                chunked = true;
            }
            11 if field.name.eq_ignore_ascii_case("retry-after") => says_when = number(field.value).is_some(),
            10 if field.name.eq_ignore_ascii_case("connection") => {
                if field.value.eq_ignore_ascii_case(b"close") {
                    keeps_alive = false;
                } else if field.value.eq_ignore_ascii_case(b"keep-alive") {
                    keeps_alive = true;
                }
            }
            _ => {}
        }
    }
    let body = match (chunked, length_field) {
        _ if to_head || status < 200 || status == 204 || status == 304 => Body::Length(0),
        (true, Some(_)) => return Err("content-length beside transfer-encoding"),
        (true, None) => Body::chunked(),
        (false, Some(length)) => Body::Length(length),
        (false, None) => Body::UntilClose,
    };
    keeps_alive &= body != Body::UntilClose;
    Ok(Some((length, Head { status, keeps_alive, says_when, body })))
}

/// A decimal number without sign, space or overflow.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + u64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads one answer in pieces of `split` bytes: (status, content, bytes taken, done, keeps alive).
    fn read(bytes: &[u8], split: usize, to_head: bool) -> Result<(u16, String, usize, bool, bool), &'static str> {
        let mut answer = Answer::new(to_head);
        let (mut content, mut taken) = (Vec::new(), 0);
        for piece in bytes.chunks(split) {
            taken += answer.take(piece, &mut |part| content.extend_from_slice(part))?;
            if answer.is_done() {
                break;
            }
        }
        let content = String::from_utf8(content).expect("ascii");
        Ok((answer.status, content, taken, answer.is_done(), answer.keeps_alive))
    }

    fn same_however_split(bytes: &str, expected: (u16, &str, usize, bool, bool)) {
        for split in 1..=bytes.len() {
            let (status, content, taken, done, keeps) = read(bytes.as_bytes(), split, false).expect("well formed");
            assert_eq!((status, content.as_str(), taken, done, keeps), expected, "split {split}");
        }
    }

    #[test]
    fn an_answer_is_the_same_however_it_is_split() {
        let with_length = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello";
        same_however_split(&format!("{with_length}HTTP/1.1 500"), (200, "hello", with_length.len(), true, true));
        let chunked =
            "HTTP/1.1 201 Made\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        same_however_split(chunked, (201, "abc", chunked.len(), true, false));
        let empty = "HTTP/1.1 204 No Content\r\n\r\n";
        same_however_split(empty, (204, "", empty.len(), true, true));
        let announced = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        same_however_split(announced, (200, "ok", announced.len(), true, true));
        let old = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok";
        same_however_split(old, (200, "ok", old.len(), true, false));
    }

    #[test]
    fn an_answer_without_length_ends_with_the_connection() {
        let mut answer = Answer::new(false);
        answer.take(b"HTTP/1.1 200 OK\r\n\r\nabc", &mut |_| {}).expect("well formed");
        assert!(!answer.is_done());
        assert!(answer.end());
        let mut cut = Answer::new(false);
        cut.take(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", &mut |_| {}).expect("well formed");
        assert!(!cut.end());
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n";
        assert_eq!(read(bytes, 7, true), Ok((200, String::new(), bytes.len(), true, true)));
    }

    #[test]
    fn malformed_answers_are_refused() {
        let cases = [
            "SMTP ready\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 099 Low\r\n\r\n",
        ];
        for case in cases {
            for split in [1, case.len()] {
                assert!(read(case.as_bytes(), split, false).is_err(), "{case:?} split {split}");
            }
        }
    }

    #[test]
    fn an_endless_head_is_refused() {
        let mut bytes = b"HTTP/1.1 200 OK\r\nX-Long: ".to_vec();
        bytes.resize(HEAD_BYTES_MAX * 2, b'a');
        assert_eq!(read(&bytes, 1000, false), Err("a head over 64 KiB"));
    }
}

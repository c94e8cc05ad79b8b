//! A small blocking HTTP/1.1 client that sends what it is told, right or wrong, and never waits without end.
//!
//! It takes bytes apart just enough to see where an answer ends; what an answer should be is the tests' business.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{harness::now, secrets};

/// How long any answer may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Names as sent, and trimmed values, in order.
pub(crate) type Fields = Vec<(String, String)>;

/// A head of a message: its first line and its fields.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// The request line or the status line.
    pub(crate) first_line: String,
    /// Names as sent, values trimmed.
    pub(crate) fields: Fields,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    /// Its status.
    pub(crate) status: u16,
    /// Its fields in order, values trimmed.
    pub(crate) fields: Fields,
    /// Its content, without framing.
    pub(crate) body: Vec<u8>,
    /// The fields after a chunked body.
    pub(crate) trailers: Fields,
}

/// A connection, from either end of it.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    /// What was read beyond what was asked for.
    unread: Vec<u8>,
    patience: Duration,
}

impl Head {
    /// The value of the first field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }
}

impl Response {
    /// The value of the first field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }

    /// The content as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The content as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

fn field<'f>(fields: &'f [(String, String)], name: &str) -> Option<&'f str> {
    fields.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

impl Client {
    /// Connects.
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect_timeout(&address, PATIENCE).expect("the listener takes the connection"))
    }

    /// Connects from one of this machine's addresses: each has ports of its own.
    pub(crate) fn connect_from(local: IpAddr, address: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(local, 0).into())?;
        socket.connect_timeout(&address.into(), PATIENCE)?;
        Ok(Self::new(socket.into()))
    }

    /// Takes over a connection.
    pub(crate) fn new(stream: TcpStream) -> Self {
        // What is written in pieces shall arrive in pieces.
        stream.set_nodelay(true).expect("a fresh socket");
        Self { stream, unread: Vec::new(), patience: PATIENCE }
    }

    /// Waits for answers as long as this from now on.
    pub(crate) fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The socket, for what this client has no word for.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends all of these bytes.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the other end reads");
    }

    /// Sends all of these bytes, unless the connection has ended.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        secrets::keep_message(bytes.as_ref());
        self.stream.set_write_timeout(Some(self.patience))?;
        self.stream.write_all(bytes.as_ref())
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Sends a GET without fields but `Host`, and reads the answer.
    #[track_caller]
    pub(crate) fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: gateway.test\r\n\r\n"));
        self.read_response()
    }

    /// Sends a POST with this body, and reads the answer.
    #[track_caller]
    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Response {
        self.send(format!("POST {path} HTTP/1.1\r\nhost: gateway.test\r\ncontent-length: {}\r\n\r\n", body.len()));
        self.send(body);
        self.read_response()
    }

    /// Reads an answer that may have a body.
    #[track_caller]
    pub(crate) fn read_response(&mut self) -> Response {
        self.try_read_response("GET").expect("an answer")
    }

    /// Reads the answer to a HEAD: its fields speak of a body that does not come.
    #[track_caller]
    pub(crate) fn read_head_response(&mut self) -> Response {
        self.try_read_response("HEAD").expect("an answer")
    }

    /// Reads an answer to a request of this method. An interim answer (1xx) is one too.
    pub(crate) fn try_read_response(&mut self, method: &str) -> io::Result<Response> {
        let due = now() + self.patience;
        let mut response = self.read_response_head_until(due)?;
        if method != "HEAD" && response.status >= 200 && ![204, 304].contains(&response.status) {
            (response.body, response.trailers) = self.read_body_until(&response.fields, true, due)?;
            secrets::keep_message(&response.body);
        }
        Ok(response)
    }

    /// Reads an answer's head only; its body is read with [`Client::read_some`].
    #[track_caller]
    pub(crate) fn read_response_head(&mut self) -> Response {
        self.read_response_head_until(now() + self.patience).expect("the head of an answer")
    }

    fn read_response_head_until(&mut self, due: Instant) -> io::Result<Response> {
        let head = self.read_head_until(due)?;
        let status = head.first_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| broken(&format!("no status line: {:?}", head.first_line)))?;
        Ok(Response { status, fields: head.fields, body: Vec::new(), trailers: Vec::new() })
    }

    /// Reads a head: the first line and the fields, up to the empty line.
    pub(crate) fn read_head(&mut self) -> io::Result<Head> {
        self.read_head_until(now() + self.patience)
    }

    fn read_head_until(&mut self, due: Instant) -> io::Result<Head> {
        let first_line = self.read_line(due)?;
        Ok(Head { first_line, fields: self.read_fields(due)? })
    }

    fn read_fields(&mut self, due: Instant) -> io::Result<Fields> {
        let mut fields = Vec::new();
        loop {
            let line = self.read_line(due)?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| broken(&format!("no field: {line:?}")))?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    fn read_body_until(
        &mut self,
        fields: &[(String, String)],
        is_answer: bool,
        due: Instant,
    ) -> io::Result<(Vec<u8>, Fields)> {
        if is_chunked(fields) {
            let mut body = Vec::new();
            while let Some(size) = self.read_chunk_size(due)? {
                body.extend_from_slice(&self.read_exactly(size, due)?);
                self.read_chunk_end(due)?;
            }
            return Ok((body, self.read_fields(due)?));
        }
        let body = match content_length(fields)? {
            Some(length) => self.read_exactly(length, due)?,
            None if is_answer => self.read_to_end_until(due)?,
            None => Vec::new(),
        };
        Ok((body, Vec::new()))
    }

    /// Reads a body that is too large to keep, piece by piece. Each piece may take as long as any answer.
    pub(crate) fn read_large_body(
        &mut self,
        fields: &[(String, String)],
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        if !is_chunked(fields) {
            return self.read_large(content_length(fields)?.unwrap_or(0), &mut take);
        }
        while let Some(size) = self.read_chunk_size(now() + self.patience)? {
            self.read_large(size, &mut take)?;
            self.read_chunk_end(now() + self.patience)?;
        }
        self.read_fields(now() + self.patience).map(drop)
    }

    fn read_large(&mut self, mut bytes: usize, take: &mut impl FnMut(&[u8])) -> io::Result<()> {
        while bytes > 0 {
            if self.unread.is_empty() {
                self.fill(now() + self.patience)?;
            }
            let piece = self.unread.len().min(bytes);
            take(&self.unread[..piece]);
            self.unread.drain(..piece);
            bytes -= piece;
        }
        Ok(())
    }

    /// The size of the next chunk; `None` for the last one.
    fn read_chunk_size(&mut self, due: Instant) -> io::Result<Option<usize>> {
        let line = self.read_line(due)?;
        let size = line.split(';').next().unwrap_or("").trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| broken(&format!("no chunk size: {line:?}")))?;
        Ok((size > 0).then_some(size))
    }

    fn read_chunk_end(&mut self, due: Instant) -> io::Result<()> {
        let rest = self.read_line(due)?;
        if rest.is_empty() { Ok(()) } else { Err(broken("a chunk is longer than it says")) }
    }

    fn read_line(&mut self, due: Instant) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.unread.drain(..end + 2).collect::<Vec<_>>();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.fill(due)?;
        }
    }

    fn read_exactly(&mut self, bytes: usize, due: Instant) -> io::Result<Vec<u8>> {
        while self.unread.len() < bytes {
            self.fill(due)?;
        }
        let rest = self.unread.split_off(bytes);
        Ok(std::mem::replace(&mut self.unread, rest))
    }

    /// Whether bytes are here that were not read, or the end.
    pub(crate) fn has_bytes(&self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket");
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).expect("a socket");
        !self.unread.is_empty() || peeked.is_ok()
    }

    /// Reads whatever comes next, at least one byte; nothing when the other end has closed.
    pub(crate) fn read_some(&mut self) -> io::Result<Vec<u8>> {
        if self.unread.is_empty() {
            match self.fill(now() + self.patience) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                outcome => outcome?,
            }
        }
        Ok(std::mem::take(&mut self.unread))
    }

    /// Reads until these bytes have come, and returns all up to and with them.
    #[track_caller]
    pub(crate) fn read_until(&mut self, wanted: impl AsRef<[u8]>) -> Vec<u8> {
        let (wanted, due) = (wanted.as_ref(), now() + self.patience);
        loop {
            if let Some(at) = self.unread.windows(wanted.len()).position(|window| window == wanted) {
                return self.unread.drain(..at + wanted.len()).collect();
            }
            if let Err(error) = self.fill(due) {
                let (wanted, unread) = (String::from_utf8_lossy(wanted), String::from_utf8_lossy(&self.unread));
                panic!("{error} before {wanted:?} came; there is {unread:?}");
            }
        }
    }

    /// Reads until the other end closes. A reset is an error, and so is silence.
    pub(crate) fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        self.read_to_end_until(now() + self.patience)
    }

    fn read_to_end_until(&mut self, due: Instant) -> io::Result<Vec<u8>> {
        loop {
            match self.fill(due) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(std::mem::take(&mut self.unread));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the other end has closed or reset the connection; whatever it still sent is dropped.
    #[track_caller]
    pub(crate) fn expect_end(&mut self) {
        match self.read_to_end() {
            Err(error) if is_silence(&error) => panic!("the connection stays open"),
            _ => {}
        }
    }

    /// Adds at least one byte to what is unread.
    fn fill(&mut self, due: Instant) -> io::Result<()> {
        let left = due.saturating_duration_since(now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came in time"));
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
            Ok(read) => {
                self.unread.extend_from_slice(&buffer[..read]);
                Ok(())
            }
            // A read with a timeout is not begun anew by the kernel when a child of another test has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.fill(due),
            Err(error) => Err(error),
        }
    }
}

/// Whether nothing came, as opposed to an end.
pub(crate) fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn is_chunked(fields: &[(String, String)]) -> bool {
    field(fields, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
}

fn content_length(fields: &[(String, String)]) -> io::Result<Option<usize>> {
    let length = field(fields, "content-length").map(str::parse);
    length.transpose().map_err(|_| broken("the length is no number"))
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

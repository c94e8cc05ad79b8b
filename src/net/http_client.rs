//! The gateway's side of an HTTP/1.1 connection to a backend: writes requests, reads answers.
//!
//! Pooling, retries and deadlines are `upstream/`'s; this drives the core in `proto/http1` over one stream.

use std::{
    io,
    task::{Context, Poll, ready},
};

use super::{
    Io, Stream,
    reader::{Reader, Step},
    tls_connect::{TlsTo, connect_tls},
};
use crate::{
    proto::{
        head::{Method, ResponseHead},
        http1::{BodyError, HeadLimits, ResponseError, ResponseScanner, WholeResponse, parse_response},
    },
    shard::{Address, Heard, Instant, Pipe, TcpStream, buffers},
};

/// Bounds of what a backend answers before the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerLimits {
    /// Of a head.
    pub head: HeadLimits,
    /// Interim answers (RFC 9110 §15.2) that one request may get before its final one.
    pub interim_max: u8,
}

/// A connection to a backend, idle or in use by one exchange.
#[derive(Debug)]
pub struct ClientConnection {
    io: Io,
    reader: Reader,
    /// How far the search for the end of the next head has come.
    scanner: ResponseScanner,
    interim: u8,
    has_answered: bool,
    /// The backend takes no more. Whatever told of that is told once: the end of the stream may stand for a reset now.
    is_broken: bool,
}

/// What a backend's connection did wrong.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It was closed, or broke.
    #[error("the connection to the instance was closed or broke")]
    Broken(#[source] Option<io::Error>),
    /// Its head is malformed.
    #[error("the head of the answer is malformed")]
    Head(#[source] ResponseError),
    /// Its body is malformed, or ended early.
    #[error("the body of the answer is malformed")]
    Body(#[source] BodyError),
    /// It sent more interim answers than any backend needs.
    #[error("more interim answers than are accepted")]
    Interim,
}

impl ClientConnection {
    /// Connects before the deadline, over TLS where it is said by what. Dropping the future closes the socket.
    ///
    /// Boxed: with every request it goes from the pool to whoever uses it and back.
    pub async fn connect(address: &Address, tls: Option<Box<TlsTo>>, deadline: Instant) -> io::Result<Box<Self>> {
        let socket = TcpStream::connect_to(address, deadline).await?;
        let stream = match tls {
            None => Stream::Plain(socket),
            // Boxed, so that requests which have no such thing are not larger for it.
            Some(to) => Box::pin(connect_tls(socket, *to, deadline)).await?,
        };
        Ok(Box::new(Self {
            io: Io::new(stream),
            reader: Reader::new(),
            scanner: ResponseScanner::new(),
            interim: 0,
            has_answered: false,
            is_broken: false,
        }))
    }

    /// Whether more was read than the last answer. What that is nobody asked for.
    pub fn has_unread(&self) -> bool {
        !self.reader.bytes().is_empty()
    }

    /// What came over an idle connection: whether the backend has closed it, or sent anything unasked.
    pub fn heard(&self) -> Heard {
        if self.has_unread() { Heard::Bytes } else { self.io.heard() }
    }

    /// Whether a byte of an answer to the current request has come: from there on the request was acted upon.
    pub fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// The stream, for writing requests and for tunnels.
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Takes what was read beyond the answer's head: the first bytes of a tunnel.
    pub fn take_rest(&mut self) -> Vec<u8> {
        self.reader.take_rest()
    }

    /// A write to the backend has failed: from here on no end of the stream ends an answer.
    pub fn write_broke(&mut self) {
        self.is_broken = true;
    }

    /// Whether a write to the backend has failed.
    pub fn has_write_broken(&self) -> bool {
        self.is_broken
    }

    /// Forgets the last exchange before the next one.
    pub fn begin(&mut self) {
        self.has_answered = false;
        self.interim = 0;
    }

    /// Reads until the head of an answer is complete. An interim one (RFC 9110 §15.2) is one too, except `100 Continue`:
    /// who forwards requests does not ask for it, for it has told the client already.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        method: Method,
        limits: &AnswerLimits,
    ) -> Poll<Result<ResponseHead, ClientError>> {
        loop {
            let head = match self.take_whole_head(method, &limits.head) {
                Some(head) => Some(head),
                None => match self.scanner.scan(self.reader.bytes(), &limits.head).map_err(ClientError::Head)? {
                    Some(head_bytes) => Some(self.take_head(head_bytes, method, &limits.head)?),
                    None => None,
                },
            };
            if let Some(head) = head {
                if !head.is_interim() {
                    return Poll::Ready(Ok(head));
                }
                if self.interim == limits.interim_max {
                    return Poll::Ready(Err(ClientError::Interim));
                }
                self.interim += 1;
                if head.status != 100 {
                    return Poll::Ready(Ok(head));
                }
                recycle(head);
                continue;
            }
            match ready!(self.reader.poll_read(&self.io, cx)) {
                Ok(0) => return Poll::Ready(Err(ClientError::Broken(None))),
                Ok(_) => self.has_answered = true,
                Err(error) => return Poll::Ready(Err(ClientError::Broken(Some(error)))),
            }
        }
    }

    /// A head that came in one piece, as most do.
    fn take_whole_head(&mut self, method: Method, limits: &HeadLimits) -> Option<ResponseHead> {
        if !self.scanner.is_new() || self.reader.bytes().is_empty() {
            return None;
        }
        let mut fields = buffers::take_fields();
        let Some(whole) = WholeResponse::read(self.reader.bytes(), &mut fields, method, limits) else {
            buffers::give_fields(fields);
            return None;
        };
        let bytes = self.reader.split_head(whole.head_len());
        let head = whole.into_head(bytes, fields);
        self.reader.begin_body(head.framing);
        Some(head)
    }

    fn take_head(
        &mut self,
        head_bytes: usize,
        method: Method,
        limits: &HeadLimits,
    ) -> Result<ResponseHead, ClientError> {
        self.scanner = ResponseScanner::new();
        let bytes = self.reader.split_head(head_bytes);
        match parse_response(bytes, head_bytes, buffers::take_fields(), method, limits) {
            Ok(head) => {
                self.reader.begin_body(head.framing);
                Ok(head)
            }
            Err((error, bytes, fields)) => {
                buffers::give(bytes);
                buffers::give_fields(fields);
                Err(ClientError::Head(error))
            }
        }
    }

    /// Makes a chunk of the answer's body available: `true` when there is one, `false` when the body is complete.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ClientError>> {
        loop {
            match self.reader.step().map_err(ClientError::Body)? {
                Step::Chunk => return Poll::Ready(Ok(true)),
                Step::Done => return Poll::Ready(Ok(false)),
                Step::More => match ready!(self.reader.poll_read(&self.io, cx)) {
                    Ok(0) if self.is_broken => return Poll::Ready(Err(ClientError::Broken(None))),
                    Ok(0) => self.reader.finish_at_eof().map_err(ClientError::Body)?,
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(Err(ClientError::Broken(Some(error)))),
                },
            }
        }
    }

    /// The chunk that `poll_fill` made available, or what is left of it.
    pub fn chunk(&self) -> &[u8] {
        self.reader.chunk()
    }

    /// Drops the first bytes of the chunk.
    pub fn consume(&mut self, bytes: usize) {
        self.reader.consume(bytes);
    }

    /// Bytes of the answer's body that are to come and can be moved unseen: none while some are here. `u64::MAX` where only
    /// the end of the connection tells.
    pub fn unseen(&self) -> u64 {
        self.reader.unseen(&self.io)
    }

    /// Moves what has come of them into an empty pipe. `Ok(0)` says that the rest has to come by [`Self::poll_fill`].
    pub fn poll_move(&mut self, cx: &Context<'_>, pipe: &mut Pipe) -> Poll<Result<usize, ClientError>> {
        self.reader.poll_move(&self.io, cx, pipe).map_err(|error| ClientError::Broken(Some(error)))
    }

    /// Whether the answer has been consumed in full.
    pub fn is_done(&self) -> bool {
        self.reader.is_done()
    }

    /// The trailer fields of a chunked answer, checked; empty until it is done.
    pub fn trailers(&self) -> &[u8] {
        self.reader.trailers()
    }
}

/// Gives a head's memory back to the shard.
pub fn recycle(head: ResponseHead) {
    buffers::give(head.bytes);
    buffers::give_fields(head.fields);
}

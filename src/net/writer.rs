//! Writes one message: its encoded head, then its body as it comes, with as few writes and copies as that allows.
//!
//! Both directions use it: answers to clients and requests to backends.

use std::{
    io::IoSlice,
    num::NonZeroUsize,
    task::{Context, Poll},
};

use super::Io;
use crate::{
    proto::http1::{CHUNK_END, encode_chunk_header, encode_last_chunk},
    shard::{Pipe, buffers, pipes},
};

/// A chunk up to this size is copied behind the head or the chunks before it, so that one write carries them all; a
/// larger one is written from where it is.
const COPY_MAX: usize = 8 * 1024;

/// What one message may move before the shard's other tasks get their turn.
const BYTES_PER_TURN: u64 = 1024 * 1024;

/// A body of which at least so much is left is moved through a pipe. With 32 KiB left that takes a fifth less CPU than copies
/// do, with 240 KiB half as much (PERF.md, "Large bodies").
const MOVE_MIN: u64 = 32 * 1024;

/// A body on its way: chunks that are looked at where they were received.
pub trait Chunks {
    /// Why it may end early.
    type Failure;

    /// Makes a chunk available: `true` when there is one, `false` when the body is complete.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Self::Failure>>;

    /// What `poll_fill` made available, or what is left of it.
    fn chunk(&self) -> &[u8];

    /// Drops the first bytes of the chunk.
    fn consume(&mut self, bytes: usize);

    /// How many bytes are to come that are payload and nothing else, and that nobody has to see: none while some are here.
    /// `u64::MAX` where only the end of the connection tells.
    fn unseen(&self) -> u64 {
        0
    }

    /// Moves what has come of them into an empty pipe, and says how many bytes: they are consumed. `Ok(0)` says that the
    /// rest has to come by `poll_fill`, also why, if it has ended.
    fn poll_move(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<usize, Self::Failure>> {
        let _ = (cx, pipe);
        Poll::Ready(Ok(0))
    }

    /// Trailer fields, each with its line end; known when the body is complete.
    fn trailers(&self) -> &[u8];
}

/// One message on its way out. Holds a buffer from the shard until it is dropped.
#[derive(Debug)]
pub struct Writer {
    /// Encoded bytes that are not written yet, from `written` on.
    out: Vec<u8>,
    written: usize,
    is_chunked: bool,
    behind: Behind,
    /// The last byte of the message has been put into `out`.
    is_encoded: bool,
    /// Bytes that the kernel has taken, framing included.
    taken_bytes: u64,
    content_bytes: u64,
    turn_bytes: u64,
}

/// What of the body goes out behind `out` without a copy.
#[derive(Debug)]
enum Behind {
    /// None is known to yet.
    Nothing,
    /// A chunk that is too large to copy is being written from where it is: how much of it is left.
    Chunk(usize),
    /// Whatever comes, through a pipe; one is here while it holds bytes.
    Piped(Option<Pipe>),
}

/// How far a message has come.
#[derive(Debug)]
pub enum Progress<F> {
    /// All of it is written.
    Done,
    /// It has had its share; other tasks should run before it goes on.
    Turn,
    /// The peer does not take more for now.
    Blocked,
    /// The body has no more for now; what there was is written.
    Waiting,
    /// The body ended early.
    BodyFailed(F),
    /// The peer's connection broke.
    Broken,
}

impl Writer {
    /// A message with a body to follow, unless `is_complete`: then the head is all. The head is what `encode` writes.
    pub fn new(is_chunked: bool, is_complete: bool, encode: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut out = buffers::take();
        encode(&mut out);
        Self {
            out,
            written: 0,
            is_chunked,
            behind: Behind::Nothing,
            is_encoded: is_complete,
            taken_bytes: 0,
            content_bytes: 0,
            turn_bytes: 0,
        }
    }

    /// Bytes of content that were written, or encoded to be.
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Whether the kernel has taken any byte of the message.
    pub fn has_written(&self) -> bool {
        self.taken_bytes > 0
    }

    /// Bytes of the message that the kernel has taken: a writer that is blocked twice at the same count stands still.
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// All that is encoded, of a message of which nothing was written.
    pub(super) fn into_unwritten(mut self) -> Vec<u8> {
        debug_assert!(!self.has_written(), "whoever goes on writes all of it");
        std::mem::take(&mut self.out)
    }

    /// Moves the message on as far as both sides let it.
    pub fn poll<C: Chunks>(&mut self, io: &Io, cx: &mut Context<'_>, body: &mut C) -> Progress<C::Failure> {
        loop {
            let filled = match self.poll_encode(cx, body) {
                Ok(filled) => filled,
                Err(failure) => {
                    // What came before the failure was good; the peer gets it, as far as it takes it now.
                    let _ = self.poll_flush(io, cx, body);
                    return Progress::BodyFailed(failure);
                }
            };
            match self.poll_flush(io, cx, body) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Progress::Broken,
                Poll::Pending => return Progress::Blocked,
            }
            if self.is_encoded {
                return Progress::Done;
            }
            if filled.is_pending() {
                return Progress::Waiting;
            }
            if self.turn_bytes >= BYTES_PER_TURN {
                self.turn_bytes = 0;
                return Progress::Turn;
            }
            if let Some(progress) = self.poll_move(io, cx, body) {
                return progress;
            }
        }
    }

    /// Puts into `out` what is here of the body and fits; `Pending` when the body has nothing further.
    fn poll_encode<C: Chunks>(&mut self, cx: &mut Context<'_>, body: &mut C) -> Result<Poll<()>, C::Failure> {
        while !self.is_encoded && matches!(self.behind, Behind::Nothing) {
            match body.poll_fill(cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(filled) => {
                    if !filled? {
                        self.is_encoded = true;
                        if self.is_chunked {
                            encode_last_chunk(body.trailers(), &mut self.out);
                        }
                        break;
                    }
                }
            }
            let chunk = body.chunk();
            let Some(length) = NonZeroUsize::new(chunk.len()) else { continue };
            let bytes = length.get();
            if self.is_chunked {
                encode_chunk_header(length, &mut self.out);
            }
            if bytes <= COPY_MAX && self.out.len() + bytes + CHUNK_END.len() <= self.out.capacity() {
                self.out.extend_from_slice(chunk);
                if self.is_chunked {
                    self.out.extend_from_slice(CHUNK_END);
                }
                body.consume(bytes);
                self.count(bytes);
            } else {
                self.behind = Behind::Chunk(bytes);
            }
        }
        Ok(Poll::Ready(()))
    }

    fn count(&mut self, bytes: usize) {
        self.content_bytes += bytes as u64;
        self.turn_bytes += bytes as u64;
    }

    /// Writes what is encoded, and the chunk behind it that was not copied: `false` when the peer is gone.
    fn poll_flush<C: Chunks>(&mut self, io: &Io, cx: &mut Context<'_>, body: &mut C) -> Poll<bool> {
        loop {
            let uncopied = match self.behind {
                Behind::Chunk(uncopied) => uncopied,
                _ if self.written == self.out.len() => return Poll::Ready(true),
                _ => 0,
            };
            let encoded = &self.out[self.written..];
            let result = if uncopied == 0 {
                io.poll_write(cx, encoded)
            } else if encoded.is_empty() && !self.is_chunked {
                io.poll_write(cx, body.chunk())
            } else {
                let end: &[u8] = if self.is_chunked { CHUNK_END } else { &[] };
                io.poll_write_vectored(cx, &[IoSlice::new(encoded), IoSlice::new(body.chunk()), IoSlice::new(end)])
            };
            let mut bytes = match result {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(false),
                Poll::Ready(Ok(bytes)) => bytes,
                Poll::Pending => return Poll::Pending,
            };
            self.taken_bytes += bytes as u64;
            let of_encoded = bytes.min(encoded.len());
            self.written += of_encoded;
            bytes -= of_encoded;
            if self.written == self.out.len() {
                self.out.clear();
                self.written = 0;
            }
            let of_chunk = bytes.min(uncopied);
            if of_chunk == 0 {
                continue;
            }
            body.consume(of_chunk);
            self.count(of_chunk);
            bytes -= of_chunk;
            if of_chunk < uncopied {
                self.behind = Behind::Chunk(uncopied - of_chunk);
                continue;
            }
            self.behind = Behind::Nothing;
            if self.is_chunked {
                // The end of the chunk went out with it, whole or in part.
                self.out.extend_from_slice(&CHUNK_END[bytes.min(CHUNK_END.len())..]);
            }
        }
    }

    /// Moves a large rest of the body through a pipe of the shard's, all of `out` being written; `None` when it has to be
    /// filled and written.
    ///
    /// Asked only behind a chunk that was not copied, so that small messages do not pay for the question, and a body that
    /// comes in dribbles goes on being gathered.
    #[inline(never)]
    fn poll_move<C: Chunks>(&mut self, io: &Io, cx: &mut Context<'_>, body: &mut C) -> Option<Progress<C::Failure>> {
        let mut pipe = match std::mem::replace(&mut self.behind, Behind::Nothing) {
            Behind::Piped(pipe) => pipe,
            _ if self.is_chunked || !io.can_splice() => return None,
            _ => {
                // Of a body without a length as much is expected as has come.
                let left = Some(body.unseen()).filter(|left| *left < u64::MAX).unwrap_or(self.content_bytes);
                if left < MOVE_MIN {
                    return None;
                }
                None
            }
        };
        loop {
            let mut lent = pipe.take().or_else(pipes::take)?;
            while lent.held() > 0 {
                match io.poll_pour_pipe(cx, &mut lent) {
                    Poll::Ready(Ok(0) | Err(_)) => return Some(Progress::Broken),
                    Poll::Ready(Ok(bytes)) => {
                        self.taken_bytes += bytes as u64;
                        self.count(bytes);
                    }
                    Poll::Pending => {
                        self.behind = Behind::Piped(Some(lent));
                        return Some(Progress::Blocked);
                    }
                }
            }
            if self.turn_bytes >= BYTES_PER_TURN {
                self.turn_bytes = 0;
                pipes::give(lent);
                self.behind = Behind::Piped(None);
                return Some(Progress::Turn);
            }
            match body.poll_move(cx, &mut lent) {
                Poll::Ready(Ok(0)) => {
                    pipes::give(lent);
                    return None;
                }
                Poll::Ready(Ok(_)) => pipe = Some(lent),
                Poll::Ready(Err(failure)) => {
                    pipes::give(lent);
                    return Some(Progress::BodyFailed(failure));
                }
                Poll::Pending => {
                    pipes::give(lent);
                    self.behind = Behind::Piped(None);
                    return Some(Progress::Waiting);
                }
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.out));
    }
}

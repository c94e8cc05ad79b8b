//! What a reading half of HTTP/1.1 holds, on either side: the bytes that came, and how far head and body are taken.

use std::{
    io,
    task::{Context, Poll, ready},
};

use super::Io;
use crate::{
    proto::{
        head::Framing,
        http1::{BodyDecoder, BodyError, Decoded},
    },
    shard::{Pipe, buffers},
};

/// One per connection side. Holds a buffer only while there are bytes.
#[derive(Debug)]
pub(super) struct Reader {
    buffer: Vec<u8>,
    /// How much of `buffer` the decoder is done with; the current chunk ends there.
    taken: usize,
    /// The chunk of body that was decoded and not yet consumed: offsets of its start and end.
    chunk: (usize, usize),
    decoder: BodyDecoder,
}

/// Where the decoding of a body stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// `chunk` holds bytes of it.
    Chunk,
    /// It is complete.
    Done,
    /// More bytes are needed.
    More,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::new(), taken: 0, chunk: (0, 0), decoder: BodyDecoder::new(Framing::None) }
    }

    /// All bytes that are here.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads what has come. A full buffer grows: the caller's scanner and decoder refuse what outgrows their limits.
    #[inline]
    pub(super) fn poll_read(&mut self, io: &Io, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.len() == self.buffer.capacity() && !self.buffer.is_empty() {
            self.buffer.reserve(self.buffer.len());
        }
        io.poll_read(cx, &mut self.buffer)
    }

    /// Splits a complete head off; what follows stays, as body or as the next message.
    pub(super) fn split_head(&mut self, head_bytes: usize) -> Vec<u8> {
        debug_assert!(self.taken == 0, "bytes of a body are no head");
        let mut bytes = std::mem::take(&mut self.buffer);
        if bytes.len() > head_bytes {
            self.buffer = buffers::take();
            self.buffer.extend_from_slice(&bytes[head_bytes..]);
            bytes.truncate(head_bytes);
        }
        bytes
    }

    /// Gets ready for a body with this framing.
    pub(super) fn begin_body(&mut self, framing: Framing) {
        debug_assert!(self.taken == 0, "the body before this one is forgotten");
        self.decoder = BodyDecoder::new(framing);
    }

    /// Decodes as far as a chunk, the end, or the end of what has come.
    pub(super) fn step(&mut self) -> Result<Step, BodyError> {
        if self.chunk.0 < self.chunk.1 {
            return Ok(Step::Chunk);
        }
        loop {
            if self.decoder.is_done() {
                self.forget_taken();
                return Ok(Step::Done);
            }
            match self.decoder.decode(&self.buffer[self.taken..])? {
                Decoded::Data { start, end } => {
                    self.chunk = (self.taken + start, self.taken + end);
                    self.taken += end;
                    return Ok(Step::Chunk);
                }
                Decoded::Done { consumed } => self.taken += consumed,
                Decoded::More { consumed } => {
                    self.taken += consumed;
                    self.forget_taken();
                    return Ok(Step::More);
                }
            }
        }
    }

    /// The peer has closed: the end of a body that lasts until then, a mistake for any other.
    pub(super) fn finish_at_eof(&mut self) -> Result<(), BodyError> {
        self.decoder.finish_at_eof()
    }

    /// What is left of the current chunk.
    pub(super) fn chunk(&self) -> &[u8] {
        &self.buffer[self.chunk.0..self.chunk.1]
    }

    /// Drops the first bytes of the current chunk, or all of it. With the last byte of a body none of it is left here:
    /// what is in the buffer then is the next message.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.chunk.0 += bytes.min(self.chunk.1 - self.chunk.0);
        if self.is_done() {
            self.forget_taken();
        }
    }

    /// Bytes of the body that are still to come and that nobody has to see: none while some are here.
    pub(super) fn unseen(&self, io: &Io) -> u64 {
        let is_empty = self.taken == self.buffer.len() && self.chunk.0 == self.chunk.1;
        if is_empty && io.can_splice() { self.decoder.payload_left() } else { 0 }
    }

    /// Moves what has come of those bytes into a pipe. `Ok(0)` says that the rest has to be read.
    pub(super) fn poll_move(&mut self, io: &Io, cx: &Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let bytes_max = self.unseen(io);
        if bytes_max == 0 {
            return Poll::Ready(Ok(0));
        }
        self.forget_taken();
        let moved = ready!(io.poll_fill_pipe(cx, pipe, bytes_max))?;
        self.decoder.skip(moved as u64);
        Poll::Ready(Ok(moved))
    }

    /// Whether the body has been consumed in full, and nothing of it is left here.
    pub(super) fn is_done(&self) -> bool {
        self.chunk.0 == self.chunk.1 && self.decoder.is_done()
    }

    /// The trailer fields of a chunked body, checked; empty until it is done.
    pub(super) fn trailers(&self) -> &[u8] {
        self.decoder.trailers()
    }

    /// Takes all bytes that are left.
    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        self.forget_taken();
        std::mem::take(&mut self.buffer)
    }

    /// Drops from the buffer what the decoder is done with.
    fn forget_taken(&mut self) {
        self.chunk = (0, 0);
        if self.taken == self.buffer.len() {
            if self.taken > 0 {
                buffers::give(std::mem::take(&mut self.buffer));
            }
        } else {
            self.buffer.drain(..self.taken);
        }
        self.taken = 0;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.buffer));
    }
}

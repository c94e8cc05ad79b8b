//! A connection's stream, shared by the half that reads and the half that writes within one task.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};

use super::stream::{Shutdown, Stream};
use crate::shard::{Heard, Local, Pipe, buffers};

/// One per connection. Both halves borrow it; neither keeps it across an await.
#[derive(Debug)]
pub struct Io {
    stream: Local<Stream>,
    /// Content of the request under way that was taken.
    pub(super) received: Cell<u64>,
    /// Content of its answer that was written: kept here for whoever is left when a task ends in the middle.
    pub(super) sent: Cell<u64>,
}

impl Io {
    /// Takes the stream over.
    pub fn new(stream: Stream) -> Self {
        Self { stream: Local::new(stream), received: Cell::new(0), sent: Cell::new(0) }
    }

    /// Reads into the buffer's spare capacity, borrowing one from the shard when there is none. `Ok(0)` is the end of
    /// the stream. The caller bounds the buffer: a full one is never grown here, so it must have room.
    #[inline]
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        if buffer.capacity() == 0 {
            // Most of those who ask wait: they borrow nothing for it.
            ready!(self.stream.with(|stream| stream.poll_readable(cx)));
            *buffer = buffers::take();
        }
        debug_assert!(buffer.len() < buffer.capacity(), "a full buffer would be grown by the read");
        let read = self.stream.with(|stream| stream.poll_read(cx, buffer));
        if buffer.is_empty() {
            // Nothing came: an idle connection holds no buffer.
            buffers::give(std::mem::take(buffer));
        }
        read
    }

    /// Whether bytes can go from here, and to here, through a pipe; see `Stream`.
    #[inline]
    pub fn can_splice(&self) -> bool {
        self.stream.with(|stream| stream.can_splice())
    }

    /// Moves what has come into a pipe; see `Stream`.
    pub fn poll_fill_pipe(&self, cx: &Context<'_>, pipe: &mut Pipe, bytes_max: u64) -> Poll<io::Result<usize>> {
        self.stream.with(|stream| stream.poll_fill_pipe(cx, pipe, bytes_max))
    }

    /// Moves what the kernel takes out of a pipe.
    pub fn poll_pour_pipe(&self, cx: &Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        self.stream.with(|stream| stream.poll_pour_pipe(cx, pipe))
    }

    /// What came while nobody had anything to say; see `Stream::heard`.
    #[inline]
    pub fn heard(&self) -> Heard {
        self.stream.with(Stream::heard)
    }

    /// Whether the peer has ended its bytes or broken the connection; see `Stream::has_peer_ended`.
    pub fn has_peer_ended(&self) -> io::Result<bool> {
        self.stream.with(|stream| stream.has_peer_ended())
    }

    /// Writes what the kernel takes of `bytes`. After `Pending` the same bytes come first; see `Stream::poll_write`.
    #[inline]
    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.with(|stream| stream.poll_write(cx, bytes))
    }

    /// Writes what the kernel takes of several pieces, in one system call.
    #[inline]
    pub fn poll_write_vectored(&self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.stream.with(|stream| stream.poll_write_vectored(cx, pieces))
    }

    /// Makes the connection end in a reset when it is closed, so that the peer does not take a part for the whole.
    pub fn reset_at_close(&self) {
        if let Err(error) = self.stream.with(|stream| stream.reset_at_close()) {
            tracing::debug!(%error, "a connection could not be reset and is closed in the ordinary way");
        }
    }

    /// Ends our direction; the peer may still send. Ready when that is done, or the peer is gone and has nothing to be told.
    /// It may take as long as the peer likes: who waits has a bound, and reads meanwhile; see `Stream::poll_shutdown`.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>, how: Shutdown) -> Poll<()> {
        self.stream.with(|stream| stream.poll_shutdown(cx, how)).map(|_gone| ())
    }

    /// Says goodbye over a connection that is closed then; see `Stream::say_goodbye`.
    pub fn say_goodbye(&self) {
        self.stream.with(Stream::say_goodbye);
    }
}

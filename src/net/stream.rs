//! What a connection's bytes come over: one type for all kinds of stream, and what every kind promises.
//!
//! Who drives a protocol over a stream knows of no kind. A kind between the bytes and the socket may decode ahead of who
//! reads, hold what a blocked socket left of a write, say things of its own at any time, and take a while to end.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::io::AsyncWrite as _;

use super::tls::Tls;
use crate::shard::{Heard, Pipe, TcpStream};

/// A connected stream. Dropping it closes the connection at once, and says no goodbye.
///
/// What is the stream's own (handshakes, tickets, changed keys, what is held of a write) moves on in whatever is polled;
/// none of it is ever told as bytes, and none of it makes a connection unfit for use.
#[derive(Debug)]
pub enum Stream {
    /// The bytes are the socket's.
    Plain(TcpStream),
    /// Over TLS, whose handshake is done.
    Tls(Box<Tls>),
    /// Records, as an encrypted stream has them.
    #[cfg(test)]
    Records(Box<super::records::Records>),
}

/// How our direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// All was said that was to be said; a kind that has a goodbye says it.
    Whole,
    /// Something is missing: no goodbye, so that nobody takes the part for the whole.
    Cut,
}

impl Stream {
    /// Ready when [`Stream::poll_read`] may bring something. Bytes that are decoded already count, whether the socket has
    /// more or not.
    #[inline]
    pub(super) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(socket) => socket.poll_readable(cx),
            Self::Tls(tls) => tls.poll_readable(cx),
            #[cfg(test)]
            Self::Records(records) => records.poll_readable(cx),
        }
    }

    /// Reads into the spare capacity of `buffer`, which must have some. What does not fit stays readable. `Ok(0)` is the end
    /// that the peer meant; one that may be a cut is an error, where the kind can tell.
    #[inline]
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_read_to(cx, buffer),
            Self::Tls(tls) => tls.poll_read(cx, buffer),
            #[cfg(test)]
            Self::Records(records) => records.poll_read(cx, buffer),
        }
    }

    /// Writes from the start of `bytes`, and says how many it wrote once the kernel has taken *all* that stands for them.
    /// Whether a request may be sent again rests on this: bytes that were not said to be written mean nothing to the peer.
    ///
    /// `Pending` may be in the middle: some of them are under way, and the stream holds the rest of what stands for them.
    /// So whoever writes next gives the same bytes first (more may stand behind them), or nobody writes again.
    #[inline]
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(tls) => tls.poll_write(cx, &[IoSlice::new(bytes)]),
            #[cfg(test)]
            Self::Records(records) => records.poll_write(cx, &[IoSlice::new(bytes)]),
        }
    }

    /// As [`Stream::poll_write`], from several pieces, with one system call.
    #[inline]
    pub(super) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, pieces),
            Self::Tls(tls) => tls.poll_write(cx, pieces),
            #[cfg(test)]
            Self::Records(records) => records.poll_write(cx, pieces),
        }
    }

    /// Ends our direction; the peer may still send. Ready once what is held is out, the goodbye behind it, and then the FIN:
    /// a peer that does not read delays all three, so whoever waits has a bound, and reads meanwhile.
    #[inline]
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>, how: Shutdown) -> Poll<io::Result<()>> {
        match (self, how) {
            (Self::Plain(socket), Shutdown::Whole | Shutdown::Cut) => Pin::new(socket).poll_shutdown(cx),
            (Self::Tls(tls), how) => tls.poll_shutdown(cx, how),
            #[cfg(test)]
            (Self::Records(records), how) => records.poll_shutdown(cx, how),
        }
    }

    /// Says goodbye, where the kind has one, over a connection that is dropped then: all was said before. As far as the socket
    /// takes it at once; a peer that reads nothing is not waited for.
    pub(super) fn say_goodbye(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let _ = match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => tls.poll_goodbye(&mut cx),
            #[cfg(test)]
            Self::Records(records) => records.poll_goodbye(&mut cx),
        };
    }

    /// What came over a connection on which nobody has anything to say. Bytes are thrown away; what is the stream's own is
    /// taken in and is [`Heard::Nothing`]. Leaves no waker behind that anybody hears.
    #[inline]
    pub(super) fn heard(&mut self) -> Heard {
        match self {
            Self::Plain(socket) => socket.heard(),
            Self::Tls(tls) => tls.heard(),
            #[cfg(test)]
            Self::Records(records) => records.heard(),
        }
    }

    /// Whether the socket's bytes are the stream's, so that they can go from here, and to here, through a pipe unseen; see
    /// [`TcpStream::can_splice`].
    #[inline]
    pub(super) fn can_splice(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.can_splice(),
            Self::Tls(_) => false,
            #[cfg(test)]
            Self::Records(_) => false,
        }
    }

    /// Moves what has come into a pipe, where [`Stream::can_splice`] says that this is possible.
    pub(super) fn poll_fill_pipe(
        &mut self,
        cx: &Context<'_>,
        pipe: &mut Pipe,
        bytes_max: u64,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_fill_pipe(cx, pipe, bytes_max),
            Self::Tls(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
            #[cfg(test)]
            Self::Records(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Moves what the kernel takes out of a pipe, where [`Stream::can_splice`] says that this is possible.
    pub(super) fn poll_pour_pipe(&mut self, cx: &Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_pour_pipe(cx, pipe),
            Self::Tls(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
            #[cfg(test)]
            Self::Records(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Whether the peer has ended its bytes or broken the connection, as the kernel knows of the socket now.
    pub(super) fn has_peer_ended(&self) -> io::Result<bool> {
        self.socket().has_peer_ended()
    }

    /// Makes the connection end in a reset when it is dropped: what is held goes with it, and so does a goodbye.
    pub(super) fn reset_at_close(&self) -> io::Result<()> {
        self.socket().reset_at_close()
    }

    /// What is under every kind.
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.socket(),
            #[cfg(test)]
            Self::Records(records) => records.socket(),
        }
    }
}

//! A stream that writes long answers in pieces, and lets others have the core after each.
//!
//! The metrics of many instances are megabytes. The kernel takes as much of them as it has room for in one system call, which nothing
//! interrupts; and the control thread may have its core together with a shard, whose requests would wait that long.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What one system call writes at most.
const PIECE: usize = 64 * 1024;
/// What one system call writes at most, in buffers.
const BUFFERS_MAX: usize = 8;

/// A stream that writes in pieces.
#[derive(Debug)]
pub(super) struct InPieces<S>(pub(super) S);

impl<S: AsyncRead + Unpin> AsyncRead for InPieces<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for InPieces<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut piece = [IoSlice::new(&[]); BUFFERS_MAX];
        let mut room = PIECE;
        let mut count = 0;
        for (into, from) in piece.iter_mut().zip(buffers) {
            let part = &from[..from.len().min(room)];
            *into = IoSlice::new(part);
            room -= part.len();
            count += 1;
        }
        let written = ready!(Pin::new(&mut self.0).poll_write_vectored(context, &piece[..count]))?;
        if room == 0 {
            std::thread::yield_now();
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_long_answer_comes_whole_and_in_pieces() {
        let (mut client, server) = tokio::io::duplex(16 * PIECE);
        let mut server = InPieces(server);
        let head = [b'h'; 100];
        let body = vec![b'b'; 5 * PIECE];
        let first = server.write_vectored(&[IoSlice::new(&head), IoSlice::new(&body)]).await.expect("room");
        assert!(first <= PIECE, "{first}");
        let sent: Vec<u8> = head.iter().chain(&body).copied().collect();
        server.write_all(&sent[first..]).await.expect("room");
        drop(server);
        let mut came = Vec::new();
        client.read_to_end(&mut came).await.expect("the end");
        assert!(came == sent, "{} of {} bytes", came.len(), sent.len());
    }
}

//! A TCP connection of a shard, over the runtime's poll I/O: the same on epoll and io_uring, and safe to drop at any time.
//!
//! What bytes mean is left to `net/`.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use monoio::io::IntoPollIo;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::clock::Instant;
use super::timer;

/// A connected socket, registered with this shard's driver. Dropping it closes the connection.
///
/// Before it is made, a socket is a plain `OwnedFd` and may go to another shard; from here on it stays.
#[derive(Debug)]
pub struct TcpStream {
    io: <monoio::net::TcpStream as IntoPollIo>::PollIo,
}

impl TcpStream {
    /// Takes over a connected socket: without delay of small writes, and registered with this thread's driver.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        sockopt::set_tcp_nodelay(&fd, true)?;
        // The epoll driver reads and writes at once and must not block; the io_uring driver sets it by itself.
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::register(fd)
    }

    fn register(fd: OwnedFd) -> io::Result<Self> {
        let stream = monoio::net::TcpStream::from_std(std::net::TcpStream::from(fd))?;
        let io = stream.try_into_poll_io().map_err(|(error, _closed)| error)?;
        Ok(Self { io })
    }

    /// Connects by `deadline`, else fails with `TimedOut`. Dropping the future closes the socket.
    ///
    /// The runtime's own connect is not used: dropped on io_uring, it leaks its descriptor.
    pub async fn connect(address: SocketAddr, deadline: Instant) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let mut stream = Self::register(socket.into())?;
        // An empty write is EAGAIN while the handshake runs, then its outcome; it sends nothing.
        let connected = poll_fn(|cx| Pin::new(&mut stream.io).poll_write(cx, &[]));
        match timer::within(deadline, connected).await {
            Some(Ok(_)) => Ok(stream),
            Some(Err(error)) => Err(error),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.io.peer_addr()
    }

    /// This end's address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// For a connection on which nobody has anything to say: ready when the peer closed it, broke it or sent bytes
    /// unasked, all of which make it unfit for use. Whatever came is thrown away.
    pub fn poll_unfit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0];
        Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut byte)).map(drop)
    }

    /// Whether an idle connection is unfit for use, as far as this shard's driver has heard. Replaces the waker of
    /// whoever waits in [`TcpStream::poll_unfit`].
    pub fn is_unfit(&mut self) -> bool {
        self.poll_unfit(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Closes the connection with a reset, so that the peer cannot take what it has for the whole.
    ///
    /// An error means that the connection was closed in the ordinary way: a container's seccomp filter may forbid
    /// `pidfd_getfd`.
    pub fn reset(self) -> io::Result<()> {
        let socket = duplicate(self.io.as_raw_fd())?;
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        // The last descriptor to close sends the reset, whichever that is.
        Ok(())
    }
}

/// Another descriptor for the same socket. The runtime lends no `BorrowedFd`, and to make one out of a number takes
/// `unsafe`; asking the kernel for a descriptor of our own process does not. A few microseconds, for rare paths.
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    let process = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    Ok(rustix::process::pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?)
}

impl AsyncRead for TcpStream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TcpStream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing is held back here.
    #[inline]
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends this side's bytes (FIN); the other side may go on.
    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

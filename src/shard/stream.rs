//! A shard's connections: the same on epoll and io_uring, and safe to drop at any time.
//!
//! On epoll a socket is ours (`shard::reactor`); on io_uring it is the runtime's, by its poll I/O. What bytes mean is left
//! to `net/`.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use monoio::io::IntoPollIo;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::clock::Instant;
use super::pipes::Pipe;
use super::reactor::{self, Fresh};
use super::timer;

/// A connected socket, registered with this shard's driver. Dropping it closes the connection.
///
/// Before it is made, a socket is a plain `OwnedFd` and may go to another shard; from here on it stays.
#[derive(Debug)]
pub struct TcpStream {
    io: Io,
}

#[derive(Debug)]
enum Io {
    Epoll(reactor::Socket),
    Ring(<monoio::net::TcpStream as IntoPollIo>::PollIo),
}

/// What came over a connection on which nobody has anything to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is as it was.
    Nothing,
    /// The peer closed or broke it.
    End,
    /// The peer sent something, and may have closed it then.
    Bytes,
}

impl TcpStream {
    /// Takes over a socket that an [`Acceptor`](super::listener::Acceptor) has accepted, and registers it with this thread's
    /// driver. It does not block and does not delay small writes: so it was accepted, and so its listener was bound.
    pub fn accepted(fd: OwnedFd) -> io::Result<Self> {
        Self::register(fd, Fresh::Connected)
    }

    /// Takes over a connected socket, however it was made.
    #[cfg(test)]
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        sockopt::set_tcp_nodelay(&fd, true)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::register(fd, Fresh::Connected)
    }

    pub(super) fn register(fd: OwnedFd, fresh: Fresh) -> io::Result<Self> {
        let io = if reactor::is_here() {
            Io::Epoll(reactor::Socket::new(fd, fresh)?)
        } else {
            let stream = monoio::net::TcpStream::from_std(std::net::TcpStream::from(fd))?;
            Io::Ring(stream.try_into_poll_io().map_err(|(error, _closed)| error)?)
        };
        Ok(Self { io })
    }

    /// Connects by `deadline`, else fails with `TimedOut`. Dropping the future closes the socket.
    ///
    /// monoio's own connect is not used: dropped on io_uring, it leaks its descriptor.
    pub async fn connect(address: SocketAddr, deadline: Instant) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(super::explained(address, error)),
        }
        let mut stream = Self::register(socket.into(), Fresh::Unready)?;
        // An empty write is EAGAIN while the handshake runs, then its outcome; it sends nothing.
        let connected = poll_fn(|cx| Pin::new(&mut stream).poll_write(cx, &[]));
        match timer::within(deadline, connected).await {
            Some(Ok(_)) => Ok(stream),
            Some(Err(error)) => Err(error),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.io {
            Io::Epoll(socket) => {
                Ok(SocketAddr::try_from(rustix::net::getpeername(socket)?.ok_or(io::ErrorKind::NotConnected)?)?)
            }
            Io::Ring(io) => io.peer_addr(),
        }
    }

    /// This end's address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.io {
            Io::Epoll(socket) => Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?)?),
            Io::Ring(io) => io.local_addr(),
        }
    }

    /// Reads into the spare capacity of `buffer`, which must have some. `Ok(0)` is the end of the stream.
    #[inline]
    pub fn poll_read_to(&mut self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Epoll(socket) => socket.poll_read(cx, buffer.capacity() - buffer.len(), |fd| {
                rustix::net::recv(fd, spare_capacity(buffer), RecvFlags::empty()).map(|(bytes, _)| bytes)
            }),
            Io::Ring(io) => pin!(io.read_buf(buffer)).poll(cx),
        }
    }

    /// Whether bytes can be moved from here through a pipe, and to here: not on io_uring, and not where urgent data
    /// (TCP's `URG`) stands in the way, which a read steps over.
    #[inline]
    pub fn can_splice(&self) -> bool {
        matches!(&self.io, Io::Epoll(socket) if !socket.is_urgent())
    }

    /// Moves up to so many bytes of what has come into a pipe, which is empty. `Ok(0)` says that a read tells more: that the
    /// stream has ended, if it has.
    pub fn poll_fill_pipe(&mut self, cx: &Context<'_>, pipe: &mut Pipe, bytes_max: u64) -> Poll<io::Result<usize>> {
        match &mut self.io {
            // However few bytes come, there may be more: a pipe is full when its places are, however small what is in them.
            Io::Epoll(socket) => socket.poll_read(cx, 0, |fd| pipe.fill(fd, bytes_max)),
            Io::Ring(_) => Poll::Ready(Ok(0)),
        }
    }

    /// Moves what the kernel takes of a pipe's bytes to the peer.
    pub fn poll_pour_pipe(&mut self, cx: &Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        match &mut self.io {
            // A part may have been taken because of a signal: only EAGAIN says that the peer takes no more.
            Io::Epoll(socket) => socket.poll_write(cx, 0, |fd| pipe.pour(fd)),
            Io::Ring(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Ready when a read may bring something, as far as this shard's driver has heard: always so on io_uring.
    #[inline]
    pub fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        match &self.io {
            Io::Epoll(socket) => socket.poll_readable(cx),
            Io::Ring(_) => Poll::Ready(()),
        }
    }

    /// What came over an idle connection, as far as this shard's driver has heard. Bytes are thrown away. May replace the
    /// waker of whoever waits for bytes.
    #[inline]
    pub fn heard(&mut self) -> Heard {
        if let Io::Epoll(socket) = &self.io
            && !socket.is_readable()
        {
            return Heard::Nothing;
        }
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        match Pin::new(self).poll_read(&mut Context::from_waker(Waker::noop()), &mut byte) {
            Poll::Pending => Heard::Nothing,
            Poll::Ready(Ok(())) if !byte.filled().is_empty() => Heard::Bytes,
            Poll::Ready(_) => Heard::End,
        }
    }

    /// Whether the peer has ended its bytes or broken the connection, as the kernel knows it now: also behind bytes that
    /// were not read, and also if this shard was not told yet, because it did not run.
    ///
    /// A system call, and on io_uring four: for what is rare and dear. An error means that nobody can tell this way; see
    /// [`TcpStream::reset_at_close`].
    pub fn has_peer_ended(&self) -> io::Result<bool> {
        match &self.io {
            Io::Epoll(socket) => has_ended(socket),
            Io::Ring(io) => has_ended(&duplicate(io.as_raw_fd())?),
        }
    }

    /// Makes the connection end in a reset once it is dropped, so that the peer cannot take what it has for the whole.
    ///
    /// An error means that it will close in the ordinary way: on io_uring a container's seccomp filter may forbid
    /// `pidfd_getfd`.
    pub fn reset_at_close(&self) -> io::Result<()> {
        match &self.io {
            Io::Epoll(socket) => sockopt::set_socket_linger(socket, Some(Duration::ZERO))?,
            Io::Ring(io) => sockopt::set_socket_linger(duplicate(io.as_raw_fd())?, Some(Duration::ZERO))?,
        }
        Ok(())
    }
}

fn has_ended(socket: impl AsFd) -> io::Result<bool> {
    // What is an error, or an end of both directions, is told unasked.
    let mut sockets = [PollFd::new(&socket, PollFlags::RDHUP)];
    let told = poll(&mut sockets, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    Ok(told? > 0)
}

/// Another descriptor for the same socket. monoio lends no `BorrowedFd`, and to make one out of a number takes `unsafe`;
/// asking the kernel for a descriptor of our own process does not. A few microseconds, for rare paths.
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    let process = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    Ok(rustix::process::pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?)
}

impl AsyncRead for TcpStream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Epoll(socket) => read(socket, cx, buffer),
            Io::Ring(io) => Pin::new(io).poll_read(cx, buffer),
        }
    }
}

#[inline]
fn read(socket: &reactor::Socket, cx: &Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    let room = buffer.initialize_unfilled();
    let read = socket
        .poll_read(cx, room.len(), |fd| rustix::net::recv(fd, &mut *room, RecvFlags::empty()).map(|(bytes, _)| bytes));
    read.map_ok(|bytes| buffer.advance(bytes))
}

impl AsyncWrite for TcpStream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Epoll(socket) => {
                socket.poll_write(cx, bytes.len(), |fd| rustix::net::send(fd, bytes, SendFlags::NOSIGNAL))
            }
            Io::Ring(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Epoll(socket) => {
                let bytes = slices.iter().map(|slice| slice.len()).sum();
                socket.poll_write(cx, bytes, |fd| match slices {
                    // Most of what a hub writes is one piece. `writev` finds its way to the socket through the files:
                    // 6.1 us of CPU for 277 bytes, 5.3 by `send` and 5.5 by `sendmsg` (PERF.md, "The hub").
                    [slice] => rustix::net::send(fd, slice, SendFlags::NOSIGNAL),
                    _ => rustix::net::sendmsg(fd, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL),
                })
            }
            Io::Ring(io) => Pin::new(io).poll_write_vectored(cx, slices),
        }
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
        match &mut self.get_mut().io {
            Io::Epoll(socket) => {
                Poll::Ready(rustix::net::shutdown(socket.as_fd(), Shutdown::Write).map_err(Into::into))
            }
            Io::Ring(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// The reading end of a pair of local sockets; what a doorbell is heard through.
#[derive(Debug)]
pub struct LocalStream {
    io: LocalIo,
}

#[derive(Debug)]
enum LocalIo {
    Epoll(reactor::Socket),
    Ring(<monoio::net::UnixStream as IntoPollIo>::PollIo),
}

impl LocalStream {
    /// Takes over a non-blocking socket and registers it with this thread's driver.
    pub fn from_std(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        let io = if reactor::is_here() {
            LocalIo::Epoll(reactor::Socket::new(socket.into(), Fresh::Connected)?)
        } else {
            let stream = monoio::net::UnixStream::from_std(socket)?;
            LocalIo::Ring(stream.try_into_poll_io().map_err(|(error, _closed)| error)?)
        };
        Ok(Self { io })
    }
}

impl AsyncRead for LocalStream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            LocalIo::Epoll(socket) => read(socket, cx, buffer),
            LocalIo::Ring(io) => Pin::new(io).poll_read(cx, buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::shard::{Driver, clock, pipes, testing};

    const LOCAL: &str = "127.0.0.1:0";

    fn soon() -> Instant {
        clock::now() + Duration::from_secs(30)
    }

    /// A connection over loopback, both ends on this shard.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(LOCAL).expect("a port");
        let address = listener.local_addr().expect("its address");
        let client = TcpStream::connect(address, soon()).await.expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        (client, TcpStream::from_fd(server.into()).expect("registered"))
    }

    #[test]
    fn bytes_go_both_ways_and_end_with_a_fin() {
        testing::on_both_drivers(|| async {
            let (mut client, mut server) = pair().await;
            assert_eq!(client.peer_addr().ok(), server.local_addr().ok());
            for stream in [&client, &server] {
                let is_set = match &stream.io {
                    Io::Epoll(socket) => sockopt::tcp_nodelay(socket).expect("known"),
                    Io::Ring(io) => io.nodelay().expect("known"),
                };
                assert!(is_set);
            }
            let slices = [IoSlice::new(b"one "), IoSlice::new(b"write")];
            assert_eq!(client.write_vectored(&slices).await.expect("written"), 9);
            client.shutdown().await.expect("ended");
            let mut heard = String::new();
            server.read_to_string(&mut heard).await.expect("read to the end");
            assert_eq!(heard, "one write");
            server.write_all(b"still here").await.expect("the other direction goes on");
            let mut answer = [0; 10];
            client.read_exact(&mut answer).await.expect("read");
            assert_eq!(&answer, b"still here");
        });
    }

    #[test]
    fn the_kernel_knows_of_an_end_before_anybody_was_told() {
        testing::on_both_drivers(|| async {
            let linger = Some(Duration::ZERO);
            for (unread, is_reset) in [(&b""[..], false), (b"not read", false), (b"", true), (b"lost", true)] {
                let listener = TcpListener::bind(LOCAL).expect("a port");
                let address = listener.local_addr().expect("its address");
                let mut client = std::net::TcpStream::connect(address).expect("connected");
                let server = TcpStream::from_fd(listener.accept().expect("accepted").0.into()).expect("registered");
                assert!(!server.has_peer_ended().expect("known"));
                client.write_all(unread).expect("written");
                assert!(!server.has_peer_ended().expect("known"), "bytes are no end");
                if is_reset {
                    sockopt::set_socket_linger(&client, linger).expect("set");
                }
                // Over loopback it has arrived when this returns, and this task has not let anybody else run.
                drop(client);
                assert!(server.has_peer_ended().expect("known"), "{unread:?} {is_reset}");
            }
        });
    }

    #[test]
    fn more_than_the_socket_holds_waits_for_the_reader() {
        testing::on_both_drivers(|| async {
            const BYTES: usize = 8 << 20;
            let (mut client, mut server) = pair().await;
            crate::shard::task::spawn("writer", async move {
                client.write_all(&vec![7; BYTES]).await.expect("written");
            });
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.expect("read");
            assert_eq!(heard.len(), BYTES);
        });
    }

    #[test]
    fn bytes_go_through_a_pipe_until_urgent_data_stands_in_the_way() {
        testing::on(Driver::Epoll, || async {
            let (mut from, mut source) = pair().await;
            let (mut sink, mut to) = pair().await;
            let mut pipe = pipes::take().expect("a pipe");
            from.write_all(b"unseen, and the rest").await.expect("written");
            assert_eq!(poll_fn(|cx| source.poll_fill_pipe(cx, &mut pipe, 6)).await.expect("moved"), 6);
            assert_eq!(poll_fn(|cx| sink.poll_pour_pipe(cx, &mut pipe)).await.expect("moved"), 6);
            let mut heard = [0; 6];
            to.read_exact(&mut heard).await.expect("read");
            assert_eq!(&heard, b"unseen");
            // What was not taken is still there, and nothing is told of it anew.
            assert_eq!(poll_fn(|cx| source.poll_fill_pipe(cx, &mut pipe, 100)).await.expect("moved"), 14);
            assert_eq!(poll_fn(|cx| sink.poll_pour_pipe(cx, &mut pipe)).await.expect("moved"), 14);
            let mut cx = Context::from_waker(Waker::noop());
            assert!(source.poll_fill_pipe(&cx, &mut pipe, 1).is_pending());
            // The socket takes no more at some time, and what it did not take is in the pipe.
            let block = vec![7; 64 * 1024];
            loop {
                while let Poll::Ready(written) = Pin::new(&mut from).poll_write(&mut cx, &block) {
                    written.expect("written");
                }
                if pipe.held() == 0 && source.poll_fill_pipe(&cx, &mut pipe, 1 << 20).is_pending() {
                    timer::sleep(Duration::from_millis(1)).await;
                }
                if pipe.held() > 0 && sink.poll_pour_pipe(&cx, &mut pipe).is_pending() {
                    break;
                }
            }
            assert!(pipe.held() > 0);
            let (from, source) = pair().await;
            assert!(source.can_splice());
            let Io::Epoll(socket) = &from.io else { unreachable!("it was asked for") };
            assert_eq!(rustix::net::send(socket, b"!", SendFlags::OOB), Ok(1));
            testing::until(|| !source.can_splice()).await;
        });
    }

    #[test]
    fn a_refused_connect_says_so() {
        testing::on_both_drivers(|| async {
            let address = TcpListener::bind(LOCAL).and_then(|gone| gone.local_addr()).expect("a port that was free");
            let error = TcpStream::connect(address, soon()).await.expect_err("nobody listens");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    /// A listener whose accept queue is full: further handshakes hang.
    fn full_listener() -> (Socket, SocketAddr, Vec<std::net::TcpStream>) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&LOCAL.parse::<SocketAddr>().expect("an address").into()).expect("a port");
        socket.listen(0).expect("it listens");
        let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("its address");
        let mut waiting = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            waiting.push(stream);
            assert!(waiting.len() < 100, "the queue of a backlog of 0 has no end");
        }
        (socket, address, waiting)
    }

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").expect("procfs").count()
    }

    #[test]
    fn a_connect_cut_off_or_dropped_leaks_no_descriptor() {
        // Alone in a process, so that nobody else's descriptors are counted.
        let Some(output) = testing::in_child("shard::stream::tests::a_connect_cut_off_or_dropped_leaks_no_descriptor")
        else {
            testing::on_both_drivers(|| async {
                let (_listener, address, _waiting) = full_listener();
                let before = open_descriptors();
                for _ in 0..20 {
                    let deadline = clock::now() + Duration::from_millis(2);
                    let error = TcpStream::connect(address, deadline).await.expect_err("it hangs");
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                    // Dropped by whoever waits, not by its own deadline.
                    let dropped = timer::within(deadline, TcpStream::connect(address, soon())).await;
                    assert!(dropped.is_none());
                }
                assert_eq!(open_descriptors(), before);
                for _ in 0..20 {
                    drop(pair().await);
                }
                assert_eq!(open_descriptors(), before);
                eprintln!("nothing leaked");
            });
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches("nothing leaked").count(), testing::drivers().len(), "{said}");
    }

    #[test]
    fn what_an_idle_connection_heard_is_told_apart() {
        testing::on_both_drivers(|| async {
            let (mut quiet, server) = pair().await;
            assert_eq!(quiet.heard(), Heard::Nothing);
            drop(server);
            let mut heard = Heard::Nothing;
            testing::until(|| {
                heard = quiet.heard();
                heard != Heard::Nothing
            })
            .await;
            assert_eq!(heard, Heard::End);

            let (mut quiet, mut server) = pair().await;
            assert_eq!(quiet.heard(), Heard::Nothing);
            server.write_all(b"unasked").await.expect("written");
            drop(server);
            let mut heard = Heard::Nothing;
            testing::until(|| {
                heard = quiet.heard();
                heard != Heard::Nothing
            })
            .await;
            assert_eq!(heard, Heard::Bytes, "also when it is closed behind them");
        });
    }

    #[test]
    fn a_reset_is_seen_as_one() {
        testing::on_both_drivers(|| async {
            let (mut client, server) = pair().await;
            let is_reset = server.reset_at_close().is_ok();
            drop(server);
            if is_reset {
                let error = client.read_u8().await.expect_err("it was reset");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            } else {
                let error = client.read_u8().await.expect_err("it was closed");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
        });
    }

    #[test]
    fn a_socket_moves_to_another_shard_before_it_is_registered() {
        for driver in testing::drivers() {
            let listener = TcpListener::bind(LOCAL).expect("a port");
            let address = listener.local_addr().expect("its address");
            let (hand_over, taken) = std::sync::mpsc::channel::<OwnedFd>();
            let other = std::thread::spawn(move || {
                testing::on(driver, move || async move {
                    let fd = taken.recv().expect("a socket is handed over");
                    let mut stream = TcpStream::from_fd(fd).expect("registered");
                    stream.write_all(b"from the other shard").await.expect("written");
                });
            });
            testing::on(driver, move || async move {
                let mut client = TcpStream::connect(address, soon()).await.expect("connected");
                let (server, _) = listener.accept().expect("accepted");
                hand_over.send(server.into()).expect("the other shard waits");
                let mut heard = String::new();
                client.read_to_string(&mut heard).await.expect("read");
                assert_eq!(heard, "from the other shard");
            });
            other.join().expect("it ended well");
        }
    }
}

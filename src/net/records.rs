//! A kind of stream for tests: what an encrypted one does, without a cipher. Bytes go in records, a blocked socket leaves
//! parts of them, some records are the stream's own, and there is a goodbye. It asserts what it may expect of who uses it.

use std::{
    cell::Cell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};

use super::{
    Chunks, ClientConnection, Connections, Cut, Goodbye, Io, Moved, Progress, Side, TunnelEnd, Writer, http1_server,
    inbound::Inbound,
    stream::{Shutdown, Stream},
    tunnel,
};
use crate::shard::{Heard, TcpStream, clock, task, testing};

/// Bytes of one record that is written; more may come in one.
const RECORD_BYTES: usize = 4000;

const CONTENT: u8 = 0;
const TICKET: u8 = 1;
const GOODBYE: u8 = 2;

/// A kind, a length of two bytes, and so many bytes.
fn record(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a record is short");
    [&[kind][..], &length.to_be_bytes(), bytes].concat()
}

#[derive(Debug)]
pub struct Records {
    socket: TcpStream,
    /// Came, and is no whole record yet.
    torn: Vec<u8>,
    decoded: Vec<u8>,
    has_ended: bool,
    /// What the socket has not taken of a record, and the bytes that the record stands for.
    held: Vec<u8>,
    promised: Vec<u8>,
    said_goodbye: bool,
}

impl Records {
    fn stream(socket: TcpStream) -> Stream {
        Stream::Records(Box::new(Self {
            socket,
            torn: Vec::new(),
            decoded: Vec::new(),
            has_ended: false,
            held: Vec::new(),
            promised: Vec::new(),
            said_goodbye: false,
        }))
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(super) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.decoded.is_empty() { self.socket.poll_readable(cx) } else { Poll::Ready(()) }
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        while self.decoded.is_empty() && !self.has_ended {
            self.torn.reserve(64 * 1024);
            if ready!(self.socket.poll_read_to(cx, &mut self.torn))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.decode();
        }
        let bytes = self.decoded.len().min(buffer.capacity() - buffer.len());
        buffer.extend(self.decoded.drain(..bytes));
        Poll::Ready(Ok(bytes))
    }

    fn decode(&mut self) {
        while let [kind, high, low, rest @ ..] = &self.torn[..] {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let Some(bytes) = rest.get(..length) else { return };
            match *kind {
                CONTENT => self.decoded.extend_from_slice(bytes),
                TICKET => {}
                _ => self.has_ended = true,
            }
            self.torn.drain(..3 + length);
        }
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        assert!(!self.said_goodbye, "nothing is written behind a goodbye");
        let mut bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        if self.held.is_empty() {
            bytes.truncate(RECORD_BYTES);
            self.held = record(CONTENT, &bytes);
            self.promised = bytes;
        } else {
            assert!(bytes.starts_with(&self.promised), "a write that was begun goes on with the same bytes");
        }
        ready!(self.poll_held(cx))?;
        Poll::Ready(Ok(self.promised.len()))
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.held))?;
            self.held.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>, how: Shutdown) -> Poll<io::Result<()>> {
        if how == Shutdown::Whole && !self.said_goodbye {
            self.held.extend(record(GOODBYE, &[]));
            self.said_goodbye = true;
            // An end takes a while, however willing the peer is.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    pub(super) fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.said_goodbye {
            self.held.extend(record(GOODBYE, &[]));
            self.said_goodbye = true;
        }
        self.poll_held(cx)
    }

    pub(super) fn heard(&mut self) -> Heard {
        match self.poll_read(&mut Context::from_waker(Waker::noop()), &mut Vec::with_capacity(1)) {
            Poll::Pending => Heard::Nothing,
            Poll::Ready(Ok(1..)) => Heard::Bytes,
            Poll::Ready(Ok(0) | Err(_)) => Heard::End,
        }
    }
}

/// A stream of records whose socket takes little, and the socket at its other end.
pub(super) async fn pair() -> (Rc<Io>, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    sockopt::set_socket_recv_buffer_size(&listener, 4096).expect("set");
    let address = listener.local_addr().expect("its address");
    let peer = TcpStream::connect(address, clock::now() + Duration::from_secs(30)).await.expect("connected");
    let (fd, _) = listener.accept().expect("accepted");
    sockopt::set_socket_send_buffer_size(&fd, 4096).expect("set");
    let socket = TcpStream::from_fd(fd.into()).expect("registered");
    (Rc::new(Io::new(Records::stream(socket))), peer)
}

/// What the other end reads until the end: the content, and whether there was a goodbye behind it.
pub(super) async fn read_all(peer: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    peer.read_to_end(&mut bytes).await.expect("read to the end");
    let (mut content, mut rest) = (Vec::new(), &bytes[..]);
    while let [kind, high, low, after @ ..] = rest {
        let (of_record, after) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        rest = after;
        match *kind {
            CONTENT => content.extend_from_slice(of_record),
            _ => return (content, rest.is_empty()),
        }
    }
    assert!(rest.is_empty(), "no record is torn");
    (content, false)
}

pub(super) type Told<T> = Rc<Cell<Option<T>>>;

/// Runs the other end in a task of its own.
pub(super) fn spawn_peer<T: 'static>(peer: impl Future<Output = T> + 'static) -> Told<T> {
    let told = Told::default();
    let tells = Rc::clone(&told);
    task::spawn("peer", async move { tells.set(Some(peer.await)) });
    told
}

/// What the other end told at its end.
pub(super) async fn told<T>(peer: &Told<T>) -> T {
    let mut told = None;
    testing::until(|| {
        told = peer.take();
        told.is_some()
    })
    .await;
    told.expect("it was waited for")
}

/// Until the socket takes no more. Returns how much was said to be written; one record is in the middle.
fn fill(io: &Io, cx: &mut Context<'_>, bytes: &[u8]) -> usize {
    let mut written = 0;
    while let Poll::Ready(taken) = io.poll_write(cx, &bytes[written..]) {
        written += taken.expect("the peer is there");
    }
    written
}

fn many_bytes() -> Vec<u8> {
    (0..1_000_000_u32).map(|place| u8::try_from(place % 251).expect("it is small")).collect()
}

#[test]
fn bytes_that_are_decoded_are_readable() {
    testing::on_both_drivers(|| async {
        let (io, mut peer) = pair().await;
        let sent = vec![7; 40_000];
        peer.write_all(&record(CONTENT, &sent)).await.expect("written");
        let mut received = 0;
        while received < sent.len() {
            let mut buffer = Vec::new();
            received += poll_fn(|cx| io.poll_read(cx, &mut buffer)).await.expect("read");
            assert!(!buffer.is_empty() && buffer.len() < 20_000, "it took {} bytes", buffer.len());
        }
        let mut buffer = Vec::new();
        let more = poll_fn(|cx| Poll::Ready(io.poll_read(cx, &mut buffer))).await;
        assert!(more.is_pending() && buffer.capacity() == 0, "who waits holds no buffer");
    });
}

#[test]
fn what_is_the_streams_own_leaves_a_resting_connection_fit() {
    testing::on_both_drivers(|| async {
        for (last, expected) in [(record(CONTENT, b"!"), Heard::Bytes), (record(GOODBYE, &[]), Heard::End)] {
            let (io, mut peer) = pair().await;
            let ticket = record(TICKET, &[9; 100]);
            let (first, rest) = ticket.split_at(50);
            for part in [first, rest, &ticket] {
                peer.write_all(part).await.expect("written");
                for _ in 0..5 {
                    assert_eq!(io.heard(), Heard::Nothing);
                    task::yield_now().await;
                }
            }
            peer.write_all(&last).await.expect("written");
            let mut heard = Heard::Nothing;
            testing::until(|| {
                heard = io.heard();
                heard != Heard::Nothing
            })
            .await;
            assert_eq!(heard, expected);
        }
    });
}

/// A body of one piece after another.
struct Pieces(Vec<Vec<u8>>);

impl Chunks for Pieces {
    type Failure = Cut;

    fn poll_fill(&mut self, _: &mut Context<'_>) -> Poll<Result<bool, Cut>> {
        self.0.retain(|piece| !piece.is_empty());
        Poll::Ready(Ok(!self.0.is_empty()))
    }

    fn chunk(&self) -> &[u8] {
        self.0.first().map_or(&[], Vec::as_slice)
    }

    fn consume(&mut self, bytes: usize) {
        self.0[0].drain(..bytes);
    }

    fn trailers(&self) -> &[u8] {
        &[]
    }
}

#[test]
fn a_message_counts_as_written_when_whole_records_are() {
    testing::on_both_drivers(|| async {
        let (io, mut peer) = pair().await;
        let bytes = many_bytes();
        // A few that are copied behind the head, then some that are not.
        let lengths = [[100; 20], [30_000; 20]].concat();
        let mut body = Pieces(Vec::new());
        let mut at = 0;
        for length in lengths {
            body.0.push(bytes[at..at + length].to_vec());
            at += length;
        }
        let mut writer = Writer::new(false, false, |out| out.extend_from_slice(b"head"));
        let stalled = poll_fn(|cx| {
            let progress = writer.poll(&io, cx, &mut body);
            Poll::Ready(matches!(progress, Progress::Blocked))
        });
        assert!(stalled.await);
        assert!(writer.taken_bytes() < 100_000, "the socket takes little");
        let reading = spawn_peer(async move { read_all(&mut peer).await });
        poll_fn(|cx| match writer.poll(&io, cx, &mut body) {
            Progress::Done => Poll::Ready(()),
            Progress::Blocked => Poll::Pending,
            progress => panic!("{progress:?}"),
        })
        .await;
        poll_fn(|cx| io.poll_shutdown(cx, Shutdown::Whole)).await;
        let (content, said_goodbye) = told(&reading).await;
        assert!(said_goodbye && content == [b"head", &bytes[..at]].concat());
    });
}

#[test]
fn nothing_of_a_record_that_is_not_out_counts_as_written() {
    testing::on_both_drivers(|| async {
        let (io, _peer) = pair().await;
        let bytes = many_bytes();
        let before = poll_fn(|cx| Poll::Ready(fill(&io, cx, &bytes))).await;
        assert_eq!(before % RECORD_BYTES, 0, "whole records");
        let mut writer = Writer::new(false, true, |out| out.extend_from_slice(&bytes[before..before + 5000]));
        let progress = poll_fn(|cx| Poll::Ready(writer.poll(&io, cx, &mut Pieces(Vec::new())))).await;
        assert!(matches!(progress, Progress::Blocked) && !writer.has_written());
    });
}

#[test]
fn an_end_waits_for_a_client_that_writes_before_it_reads() {
    testing::on_both_drivers(|| async {
        for how in [Shutdown::Whole, Shutdown::Cut] {
            let (io, mut peer) = pair().await;
            let bytes = many_bytes();
            let written = poll_fn(|cx| Poll::Ready(fill(&io, cx, &bytes))).await;
            let reading = spawn_peer(async move {
                for _ in 0..100 {
                    peer.write_all(&record(CONTENT, &vec![1; 50_000])).await.expect("the gateway reads on");
                }
                // It closes its direction, and reads only then.
                peer.shutdown().await.expect("ended");
                read_all(&mut peer).await
            });
            let mut inbound = Inbound::new(Rc::clone(&io));
            http1_server::linger(&io, &mut inbound, how).await;
            let (content, said_goodbye) = told(&reading).await;
            // The record that was in the middle comes too, whole.
            assert_eq!(content, bytes[..written + RECORD_BYTES]);
            assert_eq!(said_goodbye, how == Shutdown::Whole);
        }
    });
}

#[test]
fn a_tunnel_passes_an_end_on_behind_all_that_is_held() {
    testing::on_both_drivers(|| async {
        let (io, mut peer) = pair().await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let due = clock::now() + Duration::from_secs(30);
        let backend = ClientConnection::connect(&address.into(), None, due).await.expect("connected");
        let mut service = TcpStream::from_fd(listener.accept().expect("accepted").0.into()).expect("registered");
        let bytes = many_bytes();
        let said = bytes.clone();
        let serving = spawn_peer(async move {
            service.write_all(&said).await.expect("written");
            service.shutdown().await.expect("ended");
            let mut heard = Vec::new();
            service.read_to_end(&mut heard).await.expect("read to the end");
            heard
        });
        let reading = spawn_peer(async move {
            let read = read_all(&mut peer).await;
            // The other direction lasts until the client ends it.
            peer.write_all(&[record(CONTENT, b"and back"), record(GOODBYE, &[])].concat()).await.expect("written");
            (read, peer)
        });
        let side = |io| Side { io, first: Vec::new(), goodbye: Goodbye::None };
        let slot = Connections::new().enter();
        let mut down = 0;
        let moved = |moved: Moved| down += moved.down;
        let idle = Duration::from_secs(30);
        let end = tunnel::run(side(&*io), side(backend.io()), idle, &slot, moved, |within| within).await;
        assert_eq!((end, down), (TunnelEnd::Closed, bytes.len() as u64));
        let ((content, said_goodbye), _peer) = told(&reading).await;
        assert!(content == bytes && said_goodbye);
        assert_eq!(told(&serving).await, b"and back");
    });
}

//! One socket from its upgrade to its end: bytes in, messages to the hub, and what waits for it out.
//!
//! Frames are written by whoever comes first: the shard's runner (`mod.rs`), or this task when it has just read something or
//! when its connection has been blocked. At rest it holds no buffer.

use std::{
    fmt,
    future::{Future, poll_fn},
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use super::{Sockets, Written, open::LoggedIn};
use crate::{
    auth::Claims,
    config::CLOSE_WITHIN,
    exchange::{OpenSocket, Tether},
    hub::{
        Entrance, SocketKey,
        code::Close,
        frame::{Frame, Kind},
    },
    net::{End, Ender, Io, Message, Scheme, Serving, Shutdown, Slot, Upgrade, network, with_inflated},
    proto::websocket::{DeflateOffer, Event, FrameError, Limits, Opcode, Reader, close_frame, header},
    shard::{Deadline, buffers, clock, task},
};

/// Reads before the shard's other tasks get their turn.
const READS_PER_TURN: usize = 4;

/// Bytes that compressed messages may become in one read, and one message more: few bytes on the wire may be much to look
/// through.
const INFLATED_PER_READ: usize = 128 * 1024;

/// Frames that one message may come in. Browsers send one; libraries cut at a few KiB.
const FRAGMENTS_MAX: u32 = 1024;

/// What the hub knows a socket by.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) io: Rc<Io>,
    /// Wakes its task.
    pub(super) ender: Ender,
    /// Who it speaks for, once it has logged in.
    pub(super) claims: Option<Rc<Claims>>,
    /// Ends it with its session.
    pub(super) tether: Option<Tether>,
    /// Whom it is from.
    pub(super) client: IpAddr,
    pub(super) scheme: Scheme,
    /// What its last line in the log says of its beginning.
    pub(super) opened: Box<OpenSocket>,
    /// It is to be closed.
    pub(super) close: Option<Close>,
    /// It takes no bytes any more.
    pub(super) is_broken: bool,
    /// It waits until the hub takes messages again.
    pub(super) is_held: bool,
}

/// A socket that opens.
pub struct Opening {
    pub(super) sockets: Rc<Sockets>,
    /// Who it speaks for, if that is known already; or why it is closed at once.
    pub(super) entrance: Result<Option<LoggedIn>, Close>,
    /// The answer to the handshake, which goes out with the first frames: a write less for each socket.
    pub(super) head: Vec<u8>,
    pub(super) client: IpAddr,
    pub(super) scheme: Scheme,
    pub(super) opened: OpenSocket,
    /// How messages are compressed, where that is agreed.
    pub(super) deflate: Option<DeflateOffer>,
}

impl Upgrade for Opening {
    fn run<'a>(self: Box<Self>, client: &'a Rc<Io>, first: Vec<u8>, slot: &'a Slot) -> Serving<'a> {
        let (sockets, opened, from) = (Rc::clone(&self.sockets), self.opened, self.client);
        let claims = self.entrance.as_ref().ok().and_then(|entrance| Some(Rc::clone(&entrance.as_ref()?.claims)));
        match (*self).enter(client, slot) {
            Ok(mut socket) => {
                if !first.is_empty() {
                    socket.take_bytes(first);
                }
                Box::pin(Served { socket, io: client, slot, pause: None })
            }
            Err((head, close)) => {
                sockets.count_close(close);
                sockets.log_end(&opened, from, claims.as_deref(), Some(close), [0, 0]);
                Box::pin(refuse(client, slot, head, close))
            }
        }
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").finish_non_exhaustive()
    }
}

impl Opening {
    /// Takes the answer to the handshake, in a buffer of the shard's.
    pub(in crate::gateway) fn take_head(&mut self, head: Vec<u8>) {
        self.head = head.as_slice().to_vec();
        buffers::give(head);
    }

    /// Comes into the hub. Whoever may not is told so behind the answer to the handshake.
    fn enter(self, io: &Rc<Io>, slot: &Slot) -> Result<Socket, (Vec<u8>, Close)> {
        let Self { sockets, entrance, head, client, scheme, opened, deflate } = self;
        let (identity, claims, tether) = match entrance {
            Ok(Some(LoggedIn { identity, claims, tether })) => (Some(identity), Some(claims), tether),
            Ok(None) => (None, None, None),
            Err(close) => return Err((head, close)),
        };
        let (io, ender) = (Rc::clone(io), slot.ender());
        let opened = Box::new(opened);
        let handle =
            Handle { io, ender, claims, tether, client, scheme, opened, close: None, is_broken: false, is_held: false };
        let window_bits = deflate.map(|agreed| agreed.server_window_bits);
        let entrance = Entrance { handle, network: network(client), identity, window_bits };
        let key = match sockets.step(|hub, now| hub.enter(now, entrance)) {
            Ok(key) => key,
            Err(close) => return Err((head, close)),
        };
        // Nothing is written before this task writes.
        let opening = Frame::of_wire(head, Kind::Opening, &sockets.tally);
        sockets.hub.with(|hub| hub.begin_with(key, opening));
        let limits = Limits { message_bytes_max: 0, fragments_max: FRAGMENTS_MAX };
        Ok(Socket {
            place: Place { sockets, key },
            reader: Reader::of_client(limits, deflate.is_some()),
            deadline: Deadline::new(),
            phase: Phase::Open,
            is_unexplained: false,
            end: None,
            received: 0,
            rest: None,
        })
    }
}

/// A socket's place in the hub. Dropping it leaves all rooms.
struct Place {
    sockets: Rc<Sockets>,
    key: SocketKey,
}

impl Drop for Place {
    fn drop(&mut self) {
        // What is dropped with it may reach for the hub again.
        drop(self.sockets.step(|hub, now| hub.leave(now, self.key)));
    }
}

/// A socket being served.
struct Socket {
    place: Place,
    reader: Reader,
    deadline: Deadline,
    phase: Phase,
    /// Its client has closed it without a code.
    is_unexplained: bool,
    /// Why it was closed, if it was.
    end: Option<Close>,
    /// Messages that came.
    received: u32,
    /// What was read and is to be heard in another turn.
    rest: Option<Box<Rest>>,
}

/// The rest of a buffer, from so many bytes on.
#[derive(Debug)]
struct Rest {
    buffer: Vec<u8>,
    from: usize,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Place { sockets, key } = &self.place;
        let known = sockets.hub.with(|hub| {
            let socket = hub.socket(*key)?;
            let Handle { opened, client, claims, .. } = &socket.handle;
            Some((**opened, *client, claims.clone(), socket.outbox.sent()))
        });
        if let Some((opened, client, claims, sent)) = known {
            sockets.log_end(&opened, client, claims.as_deref(), self.end, [self.received, sent]);
        }
    }
}

/// How far a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Our close frame is queued behind what waited before.
    Closing,
    /// All is written, and our direction ended.
    Closed,
}

/// What a socket's task does next.
enum Turn {
    /// Others are to run before it goes on.
    Others,
    /// It has ended.
    Over,
}

/// A socket with its connection, until it ends. Dropping it leaves all rooms and cuts the connection.
///
/// Written by hand: an `async fn` would keep what it is given twice, in each idle socket.
struct Served<'a> {
    socket: Socket,
    io: &'a Io,
    slot: &'a Slot,
    /// It waits for the others' turn.
    pause: Option<task::Yield>,
}

impl Future for Served<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { socket, io, slot, pause } = &mut *self;
        loop {
            if let Some(paused) = pause {
                ready!(Pin::new(paused).poll(cx));
                *pause = None;
            }
            match ready!(socket.poll(cx, io, slot)) {
                Turn::Others => *pause = Some(task::yield_now()),
                Turn::Over => return Poll::Ready(()),
            }
        }
    }
}

impl Socket {
    fn poll(&mut self, cx: &mut Context<'_>, io: &Io, slot: &Slot) -> Poll<Turn> {
        let Place { sockets, key } = &self.place;
        let (sockets, key) = (Rc::clone(sockets), *key);
        match slot.poll_end(cx) {
            Poll::Ready(End::Cut) => {
                self.end = self.end.or(Some(Close::GoingAway));
                return Poll::Ready(Turn::Over);
            }
            Poll::Ready(End::Revoked | End::Kicked) if self.phase == Phase::Open => {
                sockets.step(|hub, now| hub.close(now, key, Close::Revoked));
            }
            // In a drain the hub says when.
            Poll::Ready(_) | Poll::Pending => {}
        }
        for _ in 0..READS_PER_TURN {
            self.poll_time(cx);
            if self.poll_out(cx, io).is_ready() {
                return Poll::Ready(Turn::Over);
            }
            if self.phase == Phase::Open && !sockets.takes_messages_of(key, self.rest.is_some()) {
                return Poll::Pending;
            }
            if let Some(rest) = self.rest.take() {
                if self.take_rest(*rest) {
                    return Poll::Ready(Turn::Over);
                }
                continue;
            }
            let mut bytes = Vec::new();
            match io.poll_read(cx, &mut bytes) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Turn::Over),
                Poll::Ready(Ok(_)) => {
                    if self.take_bytes(bytes) {
                        return Poll::Ready(Turn::Over);
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Turn::Others)
    }

    /// Writes what waits, as far as the connection takes it. Ready when there is nobody to write to, or a close has taken
    /// all the time that it may.
    fn poll_out(&mut self, cx: &mut Context<'_>, io: &Io) -> Poll<()> {
        let Place { sockets, key } = &self.place;
        let told = sockets.hub.with(|hub| {
            hub.set_blocked(*key, false);
            let handle = &mut hub.socket(*key)?.handle;
            Some((handle.is_broken, handle.close.take()))
        });
        let Some((is_broken, close)) = told else { return Poll::Ready(()) };
        self.end = self.end.or(close);
        if is_broken {
            // It may have been closed before it was cut.
            if let Some(close) = close {
                sockets.count_close(close);
            }
            return Poll::Ready(());
        }
        if let Some(close) = close.filter(|_| self.phase == Phase::Open) {
            sockets.count_close(close);
            self.phase = Phase::Closing;
            self.reader.skip_messages();
            self.deadline.set_after(CLOSE_WITHIN);
            // What waits is all that a full outbox still has, and a close frame finds room behind that.
            let frame = if self.is_unexplained {
                close_frame(None, "")
            } else {
                close_frame(Some(close.code()), close.reason())
            };
            sockets.queue_always(*key, frame);
        }
        loop {
            match sockets.write(*key, cx) {
                Written::All => break,
                Written::Part => {}
                Written::Blocked => return self.poll_close(cx),
                Written::Broken => return Poll::Ready(()),
            }
        }
        if self.phase == Phase::Closing && io.poll_shutdown(cx, Shutdown::Whole).is_ready() {
            self.phase = Phase::Closed;
        }
        self.poll_close(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.phase == Phase::Open { Poll::Pending } else { self.deadline.poll(cx) }
    }

    /// Tells the hub when a time of an open socket has come.
    fn poll_time(&mut self, cx: &mut Context<'_>) {
        let Place { sockets, key } = &self.place;
        while self.phase == Phase::Open {
            self.deadline.set(sockets.hub.with(|hub| hub.socket_due(*key)));
            if self.deadline.poll(cx).is_pending() {
                return;
            }
            sockets.step(|hub, now| hub.handle_socket_timeout(now, *key));
            if sockets.hub.with(|hub| hub.socket(*key).is_none_or(|socket| socket.handle.close.is_some())) {
                return;
            }
        }
    }

    /// Reads what came. Says whether the other side has closed, after us or before.
    fn take_bytes(&mut self, buffer: Vec<u8>) -> bool {
        self.take_rest(Rest { buffer, from: 0 })
    }

    fn take_rest(&mut self, Rest { mut buffer, from }: Rest) -> bool {
        let (is_over, left) = self.read(buffer.get_mut(from..).unwrap_or_default());
        if left > 0 {
            let from = buffer.len().saturating_sub(left);
            self.rest = Some(Box::new(Rest { buffer, from }));
        } else {
            buffers::give(buffer);
        }
        is_over
    }

    /// Says also how many bytes are left for another turn.
    fn read(&mut self, mut bytes: &mut [u8]) -> (bool, usize) {
        let Place { sockets, key } = &self.place;
        let (mut is_heard, mut inflated) = (false, 0);
        let was_at_rest = self.reader.is_at_rest();
        loop {
            let (bytes_max, is_taken, is_closed) = sockets.hub.with(|hub| {
                let is_closed = hub.socket(*key).is_none_or(|socket| socket.handle.close.is_some());
                (hub.message_bytes_max(*key), hub.takes_messages(), is_closed)
            });
            // What the hub has just closed is not heard any more, though its close frame is still to be written.
            let is_open = self.phase == Phase::Open && !is_closed;
            if is_open && !(is_taken && inflated < INFLATED_PER_READ) && !bytes.is_empty() {
                break;
            }
            let message_bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX);
            self.reader.set_limits(Limits { message_bytes_max, fragments_max: FRAGMENTS_MAX });
            let close = match self.reader.next(&mut bytes) {
                Ok(None) => break,
                Ok(Some(Event::Close { .. })) if self.phase != Phase::Open => return (true, 0),
                Ok(Some(event)) if !is_open && !matches!(event, Event::Close { .. }) => continue,
                Ok(Some(Event::Text(text))) => {
                    self.received = self.received.saturating_add(1);
                    sockets.step(|hub, now| hub.handle_text(now, *key, text));
                    continue;
                }
                Ok(Some(Event::Ping(payload))) => {
                    let pong = [header(Opcode::Pong, payload.len()).as_bytes(), payload].concat();
                    is_heard = true;
                    if sockets.queue(*key, pong) {
                        continue;
                    }
                    Close::SlowConsumer
                }
                Ok(Some(Event::Pong(_))) => {
                    is_heard = true;
                    continue;
                }
                Ok(Some(Event::Close { code, .. })) => {
                    // RFC 6455 §5.5.1: as a rule the status code comes back, where there was one.
                    self.is_unexplained = is_open && code.is_none();
                    Close::Normal
                }
                Ok(Some(Event::Deflated { is_text: true, payload })) => {
                    self.received = self.received.saturating_add(1);
                    let hear = |message: Message<'_>| {
                        if let Message::Text(text) = message {
                            inflated += text.len();
                            sockets.step(|hub, now| hub.handle_text(now, *key, text));
                        }
                    };
                    match with_inflated(true, payload, message_bytes_max, hear) {
                        Ok(()) => continue,
                        Err(error) => close_of(error),
                    }
                }
                Ok(Some(Event::Binary(_) | Event::Deflated { .. })) => Close::Unsupported,
                Err(error) => close_of(error),
            };
            sockets.step(|hub, now| hub.close(now, *key, close));
            bytes = &mut [];
            break;
        }
        let left = bytes.len();
        if is_heard {
            sockets.hub.with(|hub| hub.heard(clock::turn(), *key));
        }
        if !(was_at_rest && self.reader.is_at_rest()) {
            let held = self.reader.held_bytes();
            sockets.step(|hub, now| hub.hold_unfinished(now, *key, held));
        }
        (false, left)
    }
}

fn close_of(error: FrameError) -> Close {
    match error.close_code() {
        1007 => Close::InvalidText,
        1009 => Close::TooBig,
        _ => Close::ProtocolError,
    }
}

/// Says why a socket does not open, and closes. That may take as long as another close, or until all is cut.
async fn refuse(io: &Io, slot: &Slot, head: Vec<u8>, close: Close) {
    let mut frame = head;
    frame.extend_from_slice(&close_frame(Some(close.code()), close.reason()));
    let (mut written, mut bytes) = (0, Vec::new());
    let mut deadline = Deadline::new();
    deadline.set_after(CLOSE_WITHIN);
    poll_fn(|cx| {
        if slot.poll_end(cx) == Poll::Ready(End::Cut) {
            return Poll::Ready(());
        }
        while let Some(rest) = frame.get(written..).filter(|rest| !rest.is_empty()) {
            match io.poll_write(cx, rest) {
                Poll::Ready(Ok(more)) => written += more,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return deadline.poll(cx),
            }
        }
        if io.poll_shutdown(cx, Shutdown::Whole).is_pending() {
            return deadline.poll(cx);
        }
        // Bytes that nobody reads make a reset, which takes the close frame with it.
        for _ in 0..READS_PER_TURN {
            bytes.clear();
            match io.poll_read(cx, &mut bytes) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return deadline.poll(cx),
            }
        }
        Poll::Ready(())
    })
    .await;
    buffers::give(bytes);
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, net::TcpListener, time::Duration};

    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::{
        hub::Socket as HubSocket,
        net::{Connections, Stream},
        shard::{TcpStream, testing},
    };

    #[test]
    fn one_that_is_refused_waits_for_its_client_until_all_is_cut() {
        testing::on_both_drivers(|| async {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let due = clock::now() + Duration::from_secs(30);
            let address = listener.local_addr().expect("an address");
            let mut client = TcpStream::connect(address, due).await.expect("connected");
            let (server, _) = listener.accept().expect("accepted");
            let io = Io::new(Stream::Plain(TcpStream::from_fd(server.into()).expect("registered")));
            let connections = Connections::new();
            let (slot, is_over) = (connections.enter(), Rc::new(Cell::new(false)));
            let over = Rc::clone(&is_over);
            task::spawn("refused", async move {
                refuse(&io, &slot, b"101 ".to_vec(), Close::TooManyConnections).await;
                over.set(true);
            });
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.expect("read to the end");
            assert!(told.starts_with(b"101 \x88"), "{told:?}");
            assert!(!is_over.get(), "the client has not closed");
            let began = clock::now();
            connections.cut();
            testing::until(|| is_over.get()).await;
            assert!(clock::now().since(began) < CLOSE_WITHIN / 2);
        });
    }

    /// Ten thousand idle sockets hold each of these ten thousand times: what only a busy one needs goes into a box.
    #[test]
    fn what_an_idle_socket_holds_is_small() {
        let sizes = [
            ("what its task polls", size_of::<Served<'_>>(), 112),
            ("what the hub knows of it", size_of::<HubSocket<Handle>>(), 264),
            ("of that, the driver's", size_of::<Handle>(), 80),
            ("what its last line in the log needs", size_of::<OpenSocket>(), 80),
        ];
        for (what, bytes, bytes_max) in sizes {
            assert!(bytes <= bytes_max, "{what} takes {bytes} bytes, and took {bytes_max}");
        }
    }
}

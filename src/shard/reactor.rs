//! Readiness: which of a shard's sockets can be read or written, as far as epoll has told.
//!
//! Edge-triggered: epoll tells of a change once, and what is known here holds until a call to the kernel says otherwise.
//! A short read says so as well as `EAGAIN` does, and saves the call that would fail (decision 5).

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::local::Local;
use super::slab::{Key, Slab};

/// Events taken from epoll by one call.
const EVENTS_MAX: usize = 256;

/// Calls of a turn that find as much as they can take. epoll gives events in the order in which they came: what is left for
/// later turns holds up whoever comes behind it. 4,096 events take less than a millisecond.
const CALLS_PER_TURN: usize = 16;

/// Tasks woken in a turn because the peer has ended. When thousands leave at once, each costs its task some 20 us (a room to
/// leave, a socket to close): those who stay do not wait for all of them.
const ENDS_PER_TURN: usize = 64;

/// The longest that epoll is asked to wait, far within what fits its argument.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// What is known of a socket, a set of the bits below.
type ReadinessBits = u8;
/// A read may bring something.
const READABLE: ReadinessBits = 1;
/// A write may be taken.
const WRITABLE: ReadinessBits = 2;
/// The peer has ended its bytes, or the connection broke: behind a short read there is still the end to be read.
const ENDED: ReadinessBits = 4;
/// The peer has sent urgent data (TCP's `URG`): a read stops there, so a short one does not say that all is taken.
const URGENT: ReadinessBits = 8;
/// Whoever waits is in line to be woken because the peer has ended.
const IN_LINE: ReadinessBits = 16;

/// A non-blocking socket of this shard's. Dropping it closes it.
pub(super) struct Socket {
    fd: OwnedFd,
    readiness: Rc<Readiness>,
}

/// What is known of one socket, and who waits to hear more. One task at a time waits for each direction.
struct Readiness {
    /// Where events find it.
    index: u32,
    known: Cell<ReadinessBits>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

impl Readiness {
    /// Wakes those who wait for what is known now.
    fn wake(&self) {
        let known = self.known.get();
        if known & READABLE != 0
            && let Some(waker) = self.reader.take()
        {
            waker.wake();
        }
        if known & WRITABLE != 0
            && let Some(waker) = self.writer.take()
        {
            waker.wake();
        }
    }
}

/// What a new socket is known for before epoll has told anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fresh {
    /// It is being connected, or only listens.
    Unready,
    /// It is connected: a write will be taken.
    Connected,
}

impl Socket {
    /// Takes over a non-blocking socket, on the thread of the shard that will use it.
    pub(super) fn new(fd: OwnedFd, fresh: Fresh) -> io::Result<Self> {
        let known = match fresh {
            Fresh::Unready => 0,
            Fresh::Connected => WRITABLE,
        };
        let readiness = REACTOR.with(|reactor| {
            reactor.with(|reactor| match reactor {
                Some(reactor) => reactor.register(fd.as_fd(), known),
                None => Err(io::Error::other("a socket was given to a thread that runs no shard on epoll")),
            })
        })?;
        Ok(Self { fd, readiness })
    }

    /// Reads with one call of `read`, which has room for so many bytes.
    #[inline]
    pub(super) fn poll_read(
        &self,
        cx: &Context<'_>,
        room: usize,
        mut read: impl FnMut(BorrowedFd<'_>) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        let Readiness { known, reader, .. } = &*self.readiness;
        while known.get() & READABLE != 0 {
            match read(self.fd.as_fd()) {
                Ok(bytes) => {
                    // All that had come is taken; what comes now is told anew. The end itself stays to be read.
                    if bytes > 0 && bytes < room && known.get() & (ENDED | URGENT) == 0 {
                        known.set(known.get() & !READABLE);
                    }
                    return Poll::Ready(Ok(bytes));
                }
                Err(Errno::AGAIN) => known.set(known.get() & !READABLE),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        wait(reader, cx);
        Poll::Pending
    }

    /// Writes `bytes` bytes with one call of `write`.
    #[inline]
    pub(super) fn poll_write(
        &self,
        cx: &Context<'_>,
        bytes: usize,
        mut write: impl FnMut(BorrowedFd<'_>) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        let Readiness { known, writer, .. } = &*self.readiness;
        while known.get() & WRITABLE != 0 {
            match write(self.fd.as_fd()) {
                Ok(written) => {
                    if written < bytes {
                        known.set(known.get() & !WRITABLE);
                    }
                    return Poll::Ready(Ok(written));
                }
                Err(Errno::AGAIN) => known.set(known.get() & !WRITABLE),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        wait(writer, cx);
        Poll::Pending
    }

    /// Ready when a read may bring something, or a listener may have a connection.
    #[inline]
    pub(super) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_readable() {
            return Poll::Ready(());
        }
        wait(&self.readiness.reader, cx);
        Poll::Pending
    }

    /// Whether a read may bring something.
    #[inline]
    pub(super) fn is_readable(&self) -> bool {
        self.readiness.known.get() & READABLE != 0
    }

    /// Whether reads stop at urgent data, which only a read steps over.
    #[inline]
    pub(super) fn is_urgent(&self) -> bool {
        self.readiness.known.get() & URGENT != 0
    }

    /// Nothing is left to be read or accepted; the next event says when there is.
    pub(super) fn set_drained(&self) {
        self.readiness.known.set(self.readiness.known.get() & !READABLE);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Socket").field("fd", &self.fd.as_raw_fd()).finish_non_exhaustive()
    }
}

impl Drop for Socket {
    /// epoll forgets a descriptor that is closed. Events of it that were taken already find nothing: their key is
    /// stale.
    fn drop(&mut self) {
        let index = self.readiness.index;
        // An error means that the thread is ending and its reactor is gone.
        let _ = REACTOR.try_with(|reactor| reactor.with(|reactor| reactor.as_mut().map(|it| it.sockets.remove(index))));
    }
}

/// Leaves the task's waker, unless it is there already.
#[inline]
fn wait(who: &Cell<Option<Waker>>, cx: &Context<'_>) {
    let known = who.take().filter(|known| known.will_wake(cx.waker()));
    who.set(Some(known.unwrap_or_else(|| cx.waker().clone())));
}

thread_local! {
    static REACTOR: Local<Option<Reactor>> = const { Local::new(None) };
}

/// The sockets that one shard has registered with its epoll.
struct Reactor {
    epoll: Rc<OwnedFd>,
    /// An event carries its socket's key, so one for a socket that has gone does not reach the next.
    sockets: Slab<Option<Rc<Readiness>>>,
}

impl Reactor {
    fn register(&mut self, fd: BorrowedFd<'_>, known: ReadinessBits) -> io::Result<Rc<Readiness>> {
        let index = self.sockets.insert(None);
        let data = epoll::EventData::new_u64(self.sockets.key(index).to_bits());
        let flags = epoll::EventFlags::ET | epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP;
        let flags = flags | epoll::EventFlags::PRI;
        if let Err(error) = epoll::add(&*self.epoll, fd, data, flags) {
            self.sockets.remove(index);
            return Err(error.into());
        }
        let readiness =
            Rc::new(Readiness { index, known: Cell::new(known), reader: Cell::new(None), writer: Cell::new(None) });
        self.sockets[index] = Some(Rc::clone(&readiness));
        Ok(readiness)
    }

    fn find(&self, key: Key) -> Option<Rc<Readiness>> {
        self.sockets.find(key)?.clone()
    }
}

/// Whether this thread's sockets are watched here.
pub(super) fn is_here() -> bool {
    REACTOR.with(|reactor| reactor.with(|reactor| reactor.is_some()))
}

/// The end of a shard's epoll that its executor waits at. While it lives, sockets can be registered on its thread.
pub(super) struct Poller {
    epoll: Rc<OwnedFd>,
    events: Vec<epoll::Event>,
    /// Sockets whose peer has ended and whose task is still to be woken, in order.
    ended: VecDeque<Key>,
}

impl Poller {
    /// Begins to watch sockets on this thread.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let reactor = Reactor { epoll: Rc::clone(&epoll), sockets: Slab::new() };
        let is_free = REACTOR.with(|here| here.with(|here| here.is_none().then(|| *here = Some(reactor)).is_some()));
        if !is_free {
            return Err(io::Error::other("this thread runs a shard already"));
        }
        Ok(Self { epoll, events: Vec::with_capacity(EVENTS_MAX), ended: VecDeque::new() })
    }

    /// A number that no other poller has while this one lives.
    pub(super) fn id(&self) -> i32 {
        self.epoll.as_raw_fd()
    }

    /// Waits for events until one comes or the time is up; `None` is no end. [`Poller::tell`] passes them on. Does not wait
    /// while tasks are in line to be woken.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) {
        self.events.clear();
        let timeout = if self.ended.is_empty() { timeout } else { Some(Duration::ZERO) };
        let timeout = timeout.map(in_milliseconds);
        match epoll::wait(&*self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            // Whoever sent the signal has handled it.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("epoll, its descriptor and its buffer are all ours: {error}"),
        }
    }

    /// Notes what the events say and wakes those who waited for it: at once, unless their peer has ended. Those stand in
    /// line, and the first of them are woken.
    pub(super) fn tell(&mut self) {
        for _ in 0..CALLS_PER_TURN {
            let is_all = self.events.len() < EVENTS_MAX;
            self.tell_events();
            if is_all {
                break;
            }
            self.wait(Some(Duration::ZERO));
        }
        self.tell_events();
        for _ in 0..ENDS_PER_TURN {
            let Some(key) = self.ended.pop_front() else { break };
            if let Some(socket) = find(key) {
                socket.known.set(socket.known.get() & !IN_LINE);
                socket.wake();
            }
        }
        if self.ended.is_empty() && self.ended.capacity() > EVENTS_MAX {
            self.ended = VecDeque::new();
        }
    }

    fn tell_events(&mut self) {
        for event in self.events.drain(..) {
            let key = Key::from_bits(event.data.u64());
            let Some(socket) = find(key) else { continue };
            let flags = event.flags;
            let mut known = socket.known.get();
            let ended = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::PRI | ended) {
                known |= READABLE;
            }
            if flags.contains(epoll::EventFlags::PRI) {
                known |= URGENT;
            }
            if flags.intersects(epoll::EventFlags::OUT | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                known |= WRITABLE;
            }
            if flags.intersects(ended) {
                known |= ENDED;
                if known & IN_LINE == 0 {
                    known |= IN_LINE;
                    self.ended.push_back(key);
                }
            }
            socket.known.set(known);
            if known & IN_LINE == 0 {
                socket.wake();
            }
        }
    }
}

fn find(key: Key) -> Option<Rc<Readiness>> {
    REACTOR.with(|here| here.with(|here| here.as_ref()?.find(key)))
}

impl Drop for Poller {
    fn drop(&mut self) {
        let reactor = REACTOR.try_with(|here| here.with(Option::take));
        drop(reactor);
    }
}

/// epoll counts in milliseconds. Rounded up: a timer that is a little early would be asked again and again.
fn in_milliseconds(timeout: Duration) -> Timespec {
    let ms = timeout.min(WAIT_MAX).as_nanos().div_ceil(1_000_000);
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    Timespec { tv_sec: ms / 1_000, tv_nsec: ms % 1_000 * 1_000_000 }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::task::Wake;

    use rustix::net::{RecvFlags, SendFlags};

    use super::*;

    struct Nobody;

    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    fn pair(fresh: Fresh) -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("set");
        (Socket::new(ours.into(), fresh).expect("registered"), theirs)
    }

    fn read(socket: &Socket, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let room = buffer.len();
        socket.poll_read(&Context::from_waker(Waker::noop()), room, |fd| {
            rustix::net::recv(fd, &mut *buffer, RecvFlags::empty()).map(|(bytes, _)| bytes)
        })
    }

    fn hear(poller: &mut Poller) {
        poller.wait(Some(Duration::ZERO));
        poller.tell();
    }

    #[test]
    fn a_short_read_clears_readiness_and_the_next_bytes_set_it() {
        let mut poller = Poller::new().expect("epoll");
        let (socket, mut peer) = pair(Fresh::Unready);
        let mut buffer = [0; 8];
        assert!(read(&socket, &mut buffer).is_pending());
        for _ in 0..2 {
            peer.write_all(b"abc").expect("written");
            hear(&mut poller);
            assert!(socket.is_readable());
            assert!(matches!(read(&socket, &mut buffer), Poll::Ready(Ok(3))));
            assert!(!socket.is_readable(), "the call that would fail is saved");
        }
        peer.write_all(b"exactly 8").expect("written");
        hear(&mut poller);
        assert!(matches!(read(&socket, &mut buffer), Poll::Ready(Ok(8))));
        assert!(socket.is_readable(), "there may be more, and is");
        assert!(matches!(read(&socket, &mut buffer), Poll::Ready(Ok(1))));
    }

    #[test]
    fn the_end_is_read_however_it_comes() {
        let mut poller = Poller::new().expect("epoll");
        let mut buffer = [0; 8];
        // With the last bytes in one event.
        let (socket, mut peer) = pair(Fresh::Unready);
        peer.write_all(b"bye").expect("written");
        drop(peer);
        hear(&mut poller);
        assert!(matches!(read(&socket, &mut buffer), Poll::Ready(Ok(3))));
        assert!(matches!(read(&socket, &mut buffer), Poll::Ready(Ok(0))));
        assert!(matches!(read(&socket, &mut buffer), Poll::Ready(Ok(0))), "and stays read");
        // Between the event of the last bytes and their read.
        let (socket, mut peer) = pair(Fresh::Unready);
        peer.write_all(b"bye").expect("written");
        hear(&mut poller);
        drop(peer);
        assert!(matches!(read(&socket, &mut buffer), Poll::Ready(Ok(3))));
        hear(&mut poller);
        assert!(matches!(read(&socket, &mut buffer), Poll::Ready(Ok(0))));
    }

    #[test]
    fn more_events_than_one_call_takes_are_told_in_the_same_turn() {
        let mut poller = Poller::new().expect("epoll");
        let pairs: Vec<_> = (0..2 * EVENTS_MAX + 3).map(|_| pair(Fresh::Unready)).collect();
        for (_, peer) in &pairs {
            (&*peer).write_all(b"!").expect("written");
        }
        hear(&mut poller);
        assert!(pairs.iter().all(|(socket, _)| socket.is_readable()));
    }

    /// Counts how often it was woken.
    struct Woken(mpsc::Sender<()>);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn when_many_peers_end_at_once_others_do_not_wait_for_all_of_them() {
        let mut poller = Poller::new().expect("epoll");
        let (mut left, mut stayed) = (Vec::new(), pair(Fresh::Unready));
        let [(ends, ended), (others, heard)] = [(); 2].map(|()| {
            let (tell, told) = mpsc::channel();
            (Arc::new(Woken(tell)), told)
        });
        let wait = |socket: &Socket, who: &Arc<Woken>| {
            let waker = Waker::from(Arc::clone(who));
            assert!(socket.poll_readable(&Context::from_waker(&waker)).is_pending());
        };
        for _ in 0..3 * ENDS_PER_TURN {
            let (socket, peer) = pair(Fresh::Unready);
            wait(&socket, &ends);
            drop(peer);
            left.push(socket);
        }
        wait(&stayed.0, &others);
        stayed.1.write_all(b"last").expect("written");
        let count = |told: &mpsc::Receiver<()>| told.try_iter().count();
        hear(&mut poller);
        assert_eq!((count(&ended), count(&heard)), (ENDS_PER_TURN, 1));
        assert!(left.iter().all(Socket::is_readable), "whoever asks is told before");
        // One that has gone meanwhile takes nobody's turn for longer than it is passed over; the rest comes without an event.
        left.pop();
        poller.wait(Some(WAIT_MAX));
        poller.tell();
        poller.wait(Some(WAIT_MAX));
        poller.tell();
        assert_eq!((count(&ended), count(&heard)), (2 * ENDS_PER_TURN - 1, 0));
    }

    #[test]
    fn a_full_socket_waits_for_room() {
        let mut poller = Poller::new().expect("epoll");
        let (socket, mut peer) = pair(Fresh::Connected);
        let block = vec![0; 64 * 1024];
        let cx = Context::from_waker(Waker::noop());
        let write = || socket.poll_write(&cx, block.len(), |fd| rustix::net::send(fd, &block, SendFlags::NOSIGNAL));
        hear(&mut poller);
        let mut written = 0;
        while let Poll::Ready(sent) = write() {
            written += sent.expect("sent");
        }
        hear(&mut poller);
        assert!(write().is_pending(), "nothing has changed");
        let mut taken = vec![0; written];
        peer.read_exact(&mut taken).expect("read");
        hear(&mut poller);
        assert!(write().is_ready());
    }

    #[test]
    fn a_stale_event_does_not_reach_the_socket_that_came_after() {
        let mut poller = Poller::new().expect("epoll");
        let (old, mut peer) = pair(Fresh::Unready);
        let index = old.readiness.index;
        peer.write_all(b"late").expect("written");
        // The event has been taken, but not told, when another task closes the socket.
        poller.wait(Some(Duration::ZERO));
        drop(old);
        let (new, _peer) = pair(Fresh::Unready);
        // Its descriptor's number too, unless another thread opened one in between.
        assert_eq!(new.readiness.index, index, "it took over the slot");
        poller.tell();
        assert!(!new.is_readable());
        hear(&mut poller);
        assert!(!new.is_readable());
    }

    #[test]
    fn whoever_waited_last_is_woken() {
        let mut poller = Poller::new().expect("epoll");
        let (socket, mut peer) = pair(Fresh::Unready);
        let waiting = Arc::new(Nobody);
        assert!(socket.poll_readable(&Context::from_waker(Waker::noop())).is_pending());
        let waker = Waker::from(Arc::clone(&waiting));
        for _ in 0..3 {
            assert!(socket.poll_readable(&Context::from_waker(&waker)).is_pending());
        }
        assert_eq!(Arc::strong_count(&waiting), 3, "one waker is kept, however often it is asked");
        peer.write_all(b"!").expect("written");
        hear(&mut poller);
        assert_eq!(Arc::strong_count(&waiting), 2, "it was woken");
        assert!(socket.poll_readable(&Context::from_waker(&waker)).is_ready());
    }

    #[test]
    fn sockets_want_a_poller_and_a_thread_has_one() {
        let (one, _other) = UnixStream::pair().expect("a pair of sockets");
        Socket::new(one.into(), Fresh::Unready).expect_err("nobody watches");
        let poller = Poller::new().expect("epoll");
        assert!(is_here());
        Poller::new().map(drop).expect_err("there is one");
        assert!(is_here(), "the first goes on");
        drop(poller);
        assert!(!is_here());
    }

    #[test]
    fn waits_are_rounded_up() {
        let ms = |timeout| {
            let Timespec { tv_sec, tv_nsec } = in_milliseconds(timeout);
            (tv_sec, tv_nsec)
        };
        assert_eq!(ms(Duration::ZERO), (0, 0));
        assert_eq!(ms(Duration::from_nanos(1)), (0, 1_000_000));
        assert_eq!(ms(Duration::from_micros(1_500)), (0, 2_000_000));
        assert_eq!(ms(Duration::MAX), (3_600, 0));
    }
}

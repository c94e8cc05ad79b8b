//! Letters from thread to thread: the mesh, with somebody who waits for letters and passes them on.
//!
//! Each thread has one [`Bus`] to send with and one [`Pump`] that receives. A thread is woken by its doorbell and by
//! nothing else: wakers sent to single tasks of a shard starve its I/O on the io_uring driver. What a letter is, is
//! decided above.

pub mod desk;
pub mod load;
pub mod mesh;
pub mod redis;

mod armed;
mod doorbell;
/// A real Redis for the tests of those that use one.
#[cfg(test)]
#[path = "../../tests/it/servers/redis.rs"]
pub(crate) mod redis_server;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};

use crate::shard::local::{AbortOnUnwind, Local};
use crate::shard::stream::LocalStream;
use crate::shard::timer;

pub use mesh::to;
use mesh::{Address, InboxOf, Letters, Outbox, OutboxCounts, Port, ReceivedAt, Share, ThreadId};

/// Letters handled in one go, at most half of them droppable, before the thread's other tasks get their turn.
const BUDGET: usize = 256;
/// How soon a sender with a spill looks again for room in the rings. Nothing else may wake it: the reader that makes the
/// room does not know of the spill.
const RETRY: Duration = Duration::from_millis(1);

/// This thread's end of the mesh, for sending. Cheap to clone; stays on its thread.
pub struct Bus<L: Letters> {
    shared: Rc<Local<Shared<L>>>,
}

struct Shared<L: Letters> {
    outbox: Outbox<L>,
    pump: PumpState,
}

/// What the pump does, which sees to it that letters go out.
enum PumpState {
    /// The pump has not run yet; it will flush when it does.
    NotStarted,
    /// The pump runs right now and flushes before it rests.
    Running,
    /// The pump has been woken and will flush.
    Woken,
    /// The pump rests.
    Resting(Waker),
}

impl<L: Letters> Clone for Bus<L> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared) }
    }
}

impl<L: Letters> fmt::Debug for Bus<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").finish_non_exhaustive()
    }
}

/// Takes a port into use on a shard.
pub fn on_shard<L: Letters, A: Address<L>>(port: Port<L, A>) -> io::Result<(Bus<L>, Pump<L, A>)> {
    start(port, |socket| Ok(BellSocket::Shard(LocalStream::from_std(socket)?)))
}

/// Takes a port into use on a tokio thread, within its runtime (I/O and time enabled).
pub fn on_tokio<L: Letters, A: Address<L>>(port: Port<L, A>) -> io::Result<(Bus<L>, Pump<L, A>)> {
    start(port, |socket| Ok(BellSocket::Tokio(tokio::net::UnixStream::from_std(socket)?)))
}

fn start<L: Letters, A: Address<L>>(
    port: Port<L, A>,
    register: impl FnOnce(std::os::unix::net::UnixStream) -> io::Result<BellSocket>,
) -> io::Result<(Bus<L>, Pump<L, A>)> {
    let (outbox, mut inbox) = port.split();
    let socket = inbox.socket.take().ok_or_else(|| io::Error::other("this port is in use already"))?;
    let bus = Bus { shared: Rc::new(Local::new(Shared { outbox, pump: PumpState::NotStarted })) };
    let pump = Pump { inbox, bell: register(socket)?, retry: None, bus: bus.clone() };
    Ok((bus, pump))
}

impl<L: Letters> Bus<L> {
    /// The thread that sends.
    pub fn me(&self) -> ThreadId {
        self.shared.with(|shared| shared.outbox.me())
    }

    /// How many shards the mesh has.
    pub fn shards(&self) -> usize {
        self.shared.with(|shared| shared.outbox.shards())
    }

    /// Sends a letter to a thread, which may be this one. It never waits, and letters to one thread keep their order.
    ///
    /// The reader's bell is rung by the pump once this thread's tasks have had their turn, so a batch rings once.
    /// [`Bus::flush`] does it now.
    #[inline]
    pub fn send<A: Address<L>>(&self, to: A, letter: A::Letter) {
        let pump = self.shared.with(|shared| {
            shared.outbox.send(to, letter);
            shared.call_pump()
        });
        // Outside the closure: waking runs code of the runtime's.
        if let Some(pump) = pump {
            pump.wake();
        }
    }

    /// Sends a letter that may be dropped, and returns whether it went: not if its ring is full. Those that go to one
    /// thread keep their order, and have none with the letters of [`Bus::send`].
    #[inline]
    #[must_use = "it may not have gone"]
    pub fn try_send<A: Address<L>>(&self, to: A, letter: A::Droppable) -> bool {
        self.offer(to, letter).is_ok()
    }

    /// As [`Bus::try_send`]; a letter that does not go comes back.
    #[inline]
    pub fn offer<A: Address<L>>(&self, to: A, letter: A::Droppable) -> Result<(), A::Droppable> {
        let (offered, pump) = self.shared.with(|shared| {
            let offered = shared.outbox.offer(to, letter);
            let pump = if offered.is_ok() { shared.call_pump() } else { None };
            (offered, pump)
        });
        if let Some(pump) = pump {
            pump.wake();
        }
        offered
    }

    /// Sends one letter to every shard.
    pub fn broadcast(&self, letter: impl FnMut() -> L::Shard) {
        let pump = self.shared.with(|shared| {
            shared.outbox.broadcast(letter);
            shared.call_pump()
        });
        if let Some(pump) = pump {
            pump.wake();
        }
    }

    /// Rings the bells now.
    pub fn flush(&self) {
        self.shared.with(|shared| shared.outbox.flush());
    }

    /// Letters that found their ring full and still wait for room.
    pub fn waiting(&self) -> usize {
        self.shared.with(|shared| shared.outbox.waiting())
    }

    /// Control letters to one thread that wait for room: how far it is behind, beyond what a ring holds.
    pub fn waiting_for<A: Address<L>>(&self, to: A) -> usize {
        self.shared.with(|shared| shared.outbox.waiting_for(to))
    }

    /// What was sent so far.
    pub fn counts(&self) -> OutboxCounts {
        self.shared.with(|shared| shared.outbox.counts())
    }
}

impl<L: Letters> Shared<L> {
    /// The pump's waker, if somebody has to wake it. A pump that runs is never woken: a task that wakes itself starves
    /// its thread.
    fn call_pump(&mut self) -> Option<Waker> {
        if !matches!(self.pump, PumpState::Resting(_)) {
            return None;
        }
        match std::mem::replace(&mut self.pump, PumpState::Woken) {
            PumpState::Resting(waker) => Some(waker),
            _ => None,
        }
    }
}

/// Receives this thread's letters, and sees to it that what it sends goes out. One per thread; run it in a task of its
/// own for as long as the thread lives.
pub struct Pump<L: Letters, A: Address<L>> {
    inbox: InboxOf<L, A>,
    bell: BellSocket,
    retry: Option<Retry>,
    bus: Bus<L>,
}

impl<L: Letters, A: Address<L>> fmt::Debug for Pump<L, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pump").finish_non_exhaustive()
    }
}

impl<L: Letters, A: Address<L>> Pump<L, A> {
    /// Gives every letter to `handle`, for ever. `handle` may send.
    ///
    /// Dropping the future drops the port: letters to it are dropped from then on.
    pub async fn run(mut self, mut handle: impl FnMut(ReceivedAt<L, A>)) -> Infallible {
        poll_fn(|cx| self.poll(cx, &mut handle)).await
    }

    /// Handles what there is, within a budget, sends what there is to send, and arranges to be woken. Never ready.
    ///
    /// A panic in `handle` ends the process, whatever task it happens in: a thread that takes no letters is half alive.
    pub fn poll(&mut self, cx: &mut Context<'_>, handle: impl FnMut(ReceivedAt<L, A>)) -> Poll<Infallible> {
        self.poll_while(cx, || true, handle)
    }

    /// As [`Pump::poll`]; `takes` says before each droppable letter whether it is taken in this poll. What is not stays in
    /// its ring, and the others' turn comes before the next poll.
    pub fn poll_while(
        &mut self,
        cx: &mut Context<'_>,
        mut takes: impl FnMut() -> bool,
        mut handle: impl FnMut(ReceivedAt<L, A>),
    ) -> Poll<Infallible> {
        let guard = AbortOnUnwind("a panic while letters were handled");
        self.bus.shared.with(|shared| shared.pump = PumpState::Running);
        // Of the whole poll, however often it looks: droppable letters that keep coming have their half of it and no more.
        let mut left = Share::of(BUDGET);
        loop {
            self.inbox.drain_within(&mut left, &mut takes, &mut handle);
            self.bus.flush();
            if self.inbox.is_used_up(&left) {
                // Through our own bell rather than our own waker: the other tasks and all I/O come first. The bell's
                // socket must be empty before, else the ring would be swallowed with what is still in it.
                while self.bell.poll(cx).is_ready() {}
                self.inbox.bell.ring();
                break;
            }
            if !self.inbox.bell.armed.may_sleep(|| self.inbox.has_letters()) {
                continue;
            }
            // A byte heard now may be for a letter that came after the rings were looked at: look again.
            if self.bell.poll(cx).is_pending() {
                break;
            }
            // Also counts, so that a storm of rings cannot keep this loop going.
            left.use_one();
        }
        while self.bus.waiting() > 0 && self.poll_retry(cx).is_ready() {
            self.bus.flush();
        }
        let waker = cx.waker().clone();
        self.bus.shared.with(|shared| shared.pump = PumpState::Resting(waker));
        guard.disarm();
        Poll::Pending
    }

    /// Control letters received so far.
    pub fn received(&self) -> u64 {
        self.inbox.received()
    }

    /// Droppable letters received so far.
    pub fn received_droppable(&self) -> u64 {
        self.inbox.received_droppable()
    }

    fn poll_retry(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let retry = self.retry.get_or_insert_with(|| match self.bell {
            BellSocket::Shard(_) => Retry::Shard(Box::pin(timer::sleep(RETRY))),
            BellSocket::Tokio(_) => Retry::Tokio(Box::pin(tokio::time::sleep(RETRY))),
        });
        let polled = match retry {
            Retry::Shard(sleep) => sleep.as_mut().poll(cx),
            Retry::Tokio(sleep) => sleep.as_mut().poll(cx),
        };
        if polled.is_ready() {
            self.retry = None;
        }
        polled
    }
}

/// A reader's end of its bell, registered where it runs.
enum BellSocket {
    Shard(LocalStream),
    Tokio(tokio::net::UnixStream),
}

impl BellSocket {
    /// Ready when the bell was rung; reads what rang it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 64];
        let mut heard = ReadBuf::new(&mut bytes);
        let polled = match self {
            Self::Shard(socket) => Pin::new(socket).poll_read(cx, &mut heard),
            Self::Tokio(socket) => Pin::new(socket).poll_read(cx, &mut heard),
        };
        match polled {
            Poll::Ready(Ok(())) if !heard.filled().is_empty() => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
            // We hold both ends, so neither an end nor an error can come; if it does, the pump's guard ends the process.
            Poll::Ready(end) => panic!("the doorbell broke: {end:?}"),
        }
    }
}

enum Retry {
    Shard(Pin<Box<timer::Sleep>>),
    Tokio(Pin<Box<tokio::time::Sleep>>),
}

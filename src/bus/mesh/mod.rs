//! Rings between all threads: single-writer rings for each ordered pair, in two lanes, and a bell for each reader.
//!
//! *Control letters* are never lost: a spill stands beside each of their rings, and past its bound the process ends.
//! *Droppable letters* have rings of their own, smaller ones and without a spill, from shard to shard and between the shards
//! and the bridge: what finds its ring full is dropped and counted, and its sender is told. They are of types of their own,
//! so that no control letter is dropped by mistake.
//!
//! Within a lane letters keep their order per sender; between the lanes there is no order. One bell wakes a reader for both.
//! It takes control letters first, and at most half of what it takes at a time is droppable, so that neither lane starves
//! the other. A sender never waits. What a letter is, and the waiting, are left to others: above stand the lists of letters
//! for each kind of reader, and nobody can be sent what it does not read.

mod inbox;
mod outbox;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;

use rtrb::RingBuffer;

use super::doorbell::Doorbell;
pub use inbox::{Inbox, Received, Share};
use outbox::Lines;
pub use outbox::{Line, Outbox, OutboxCounts, SPILL_MAX};

/// The closed lists of what may be told to each kind of thread.
pub trait Letters: 'static {
    /// To the control thread.
    type Control: Send;
    /// To the bridge.
    type Bridge: Send;
    /// To a shard.
    type Shard: Send;
    /// To the bridge, by a shard; may be dropped.
    type DroppableToBridge: Send;
    /// To a shard, by a shard or the bridge; may be dropped.
    type DroppableToShard: Send;
}

/// A thread of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadId {
    /// The control thread.
    Control,
    /// The bridge.
    Bridge,
    /// The shard of this number.
    Shard(usize),
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("the control thread"),
            Self::Bridge => f.write_str("the bridge"),
            Self::Shard(number) => write!(f, "shard {number}"),
        }
    }
}

/// Whom a letter is for. The type says which letters are read there.
pub trait Address<L: Letters> {
    /// What is read there.
    type Letter: Send;
    /// What is read there and may be dropped on the way.
    type Droppable: Send;

    /// The thread.
    fn thread_id(&self) -> ThreadId;

    /// The line to it.
    fn line(self, lines: &mut Lines<L>) -> &mut Line<Self::Letter, Self::Droppable>;
}

/// Addresses: `bus.send(to::Shard(3), letter)`.
pub mod to {
    use super::{Address, Infallible, Letters, Line, Lines, ThreadId};

    /// The control thread.
    #[derive(Clone, Copy, Debug)]
    pub struct Control;

    /// The bridge.
    #[derive(Clone, Copy, Debug)]
    pub struct Bridge;

    /// The shard of this number.
    #[derive(Clone, Copy, Debug)]
    pub struct Shard(pub usize);

    impl<L: Letters> Address<L> for Control {
        type Letter = L::Control;
        type Droppable = Infallible;

        fn thread_id(&self) -> ThreadId {
            ThreadId::Control
        }

        #[inline]
        fn line(self, lines: &mut Lines<L>) -> &mut Line<L::Control, Infallible> {
            &mut lines.control
        }
    }

    impl<L: Letters> Address<L> for Bridge {
        type Letter = L::Bridge;
        type Droppable = L::DroppableToBridge;

        fn thread_id(&self) -> ThreadId {
            ThreadId::Bridge
        }

        #[inline]
        fn line(self, lines: &mut Lines<L>) -> &mut Line<L::Bridge, L::DroppableToBridge> {
            &mut lines.bridge
        }
    }

    impl<L: Letters> Address<L> for Shard {
        type Letter = L::Shard;
        type Droppable = L::DroppableToShard;

        fn thread_id(&self) -> ThreadId {
            ThreadId::Shard(self.0)
        }

        #[inline]
        fn line(self, lines: &mut Lines<L>) -> &mut Line<L::Shard, L::DroppableToShard> {
            &mut lines.shards[self.0]
        }
    }
}

/// All ends of a mesh.
#[derive(Debug)]
pub struct Mesh<L: Letters> {
    /// The control thread's.
    pub control: Port<L, to::Control>,
    /// The bridge's.
    pub bridge: Port<L, to::Bridge>,
    /// The shards', in their order.
    pub shards: Vec<Port<L, to::Shard>>,
}

/// One thread's end of the mesh, at which letters to such an address are read. Moves once, to its thread.
pub struct Port<L: Letters, A: Address<L>> {
    pub(super) outbox: Outbox<L>,
    pub(super) inbox: InboxOf<L, A>,
}

/// Where letters to such an address are read.
pub type InboxOf<L, A> = Inbox<<A as Address<L>>::Letter, <A as Address<L>>::Droppable>;

/// What is read there.
pub type ReceivedAt<L, A> = Received<<A as Address<L>>::Letter, <A as Address<L>>::Droppable>;

impl<L: Letters, A: Address<L>> fmt::Debug for Port<L, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("of", &self.outbox.me()).finish_non_exhaustive()
    }
}

impl<L: Letters, A: Address<L>> Port<L, A> {
    /// The two directions, for a thread that drives them by itself.
    pub fn split(self) -> (Outbox<L>, InboxOf<L, A>) {
        (self.outbox, self.inbox)
    }
}

/// How many letters a ring of each lane holds. All memory is set aside at the start, for each ordered pair of threads, so
/// what is large in a letter is boxed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// More wait in a spill.
    pub control: usize,
    /// More are dropped.
    pub droppable: usize,
}

/// Builds a mesh of control thread, bridge and so many shards.
pub fn build<L: Letters>(shards: usize, capacity: Capacity) -> io::Result<Mesh<L>> {
    let senders = || [ThreadId::Control, ThreadId::Bridge].into_iter().chain((0..shards).map(ThreadId::Shard));
    let (to_control, control) = reader(senders(), capacity, |_| false)?;
    let (to_bridge, bridge) = reader(senders(), capacity, |sender| matches!(sender, ThreadId::Shard(_)))?;
    let mut to_shards: Vec<Vec<Line<_, _>>> = senders().map(|_| Vec::with_capacity(shards)).collect();
    let mut shard_inboxes = Vec::with_capacity(shards);
    for _ in 0..shards {
        let (lines, inbox) = reader(senders(), capacity, |sender| sender != ThreadId::Control)?;
        to_shards.iter_mut().zip(lines).for_each(|(to_shards, line)| to_shards.push(line));
        shard_inboxes.push(inbox);
    }
    let mut outboxes = senders()
        .zip(to_control)
        .zip(to_bridge)
        .zip(to_shards)
        .map(|(((me, control), bridge), shards)| Outbox::new(me, Lines { control, bridge, shards }));
    let mut outbox = || outboxes.next().expect("there is a line to each reader for every thread");
    Ok(Mesh {
        control: Port { outbox: outbox(), inbox: control },
        bridge: Port { outbox: outbox(), inbox: bridge },
        shards: shard_inboxes.into_iter().map(|inbox| Port { outbox: outbox(), inbox }).collect(),
    })
}

/// A line for each thread, and where they end.
type Reader<T, D> = (Vec<Line<T, D>>, Inbox<T, D>);

/// A reader, and a line to it for each thread; `may_drop` says whose lines have the second lane.
fn reader<T, D>(
    senders: impl Iterator<Item = ThreadId>,
    capacity: Capacity,
    may_drop: impl Fn(ThreadId) -> bool,
) -> io::Result<Reader<T, D>> {
    let (bell, socket) = Doorbell::new()?;
    let bell = Arc::new(bell);
    let (mut lines, mut control, mut droppable) = (Vec::new(), Vec::new(), Vec::new());
    for sender in senders {
        let (writer, ring) = RingBuffer::new(capacity.control.max(1));
        control.push(ring);
        let droppable_writer = may_drop(sender).then(|| {
            let (writer, ring) = RingBuffer::new(capacity.droppable.max(1));
            droppable.push(ring);
            writer
        });
        lines.push(Line::new(writer, droppable_writer, Arc::clone(&bell)));
    }
    Ok((lines, Inbox::new(control, droppable, bell, socket)))
}

//! Rings between all threads: a single-writer ring for each ordered pair, a spill beside each, a bell for each reader.
//!
//! Letters are never lost and keep their order per sender. A sender never waits. What a letter is, and the waiting, are
//! left to others: above stands one list of letters for each kind of reader, and nobody can be sent what it does not read.

mod inbox;
mod outbox;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;

use rtrb::{Producer, RingBuffer};

use super::doorbell::Doorbell;
pub use inbox::Inbox;
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
}

/// A thread of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// The control thread.
    Control,
    /// The bridge.
    Bridge,
    /// The shard of this number.
    Shard(usize),
}

impl fmt::Display for Endpoint {
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

    /// The thread.
    fn endpoint(&self) -> Endpoint;

    /// The line to it.
    fn line(self, lines: &mut Lines<L>) -> &mut Line<Self::Letter>;
}

/// Addresses: `bus.send(to::Shard(3), letter)`.
pub mod to {
    use super::{Address, Endpoint, Letters, Line, Lines};

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

        fn endpoint(&self) -> Endpoint {
            Endpoint::Control
        }

        #[inline]
        fn line(self, lines: &mut Lines<L>) -> &mut Line<L::Control> {
            &mut lines.control
        }
    }

    impl<L: Letters> Address<L> for Bridge {
        type Letter = L::Bridge;

        fn endpoint(&self) -> Endpoint {
            Endpoint::Bridge
        }

        #[inline]
        fn line(self, lines: &mut Lines<L>) -> &mut Line<L::Bridge> {
            &mut lines.bridge
        }
    }

    impl<L: Letters> Address<L> for Shard {
        type Letter = L::Shard;

        fn endpoint(&self) -> Endpoint {
            Endpoint::Shard(self.0)
        }

        #[inline]
        fn line(self, lines: &mut Lines<L>) -> &mut Line<L::Shard> {
            &mut lines.shards[self.0]
        }
    }
}

/// All ends of a mesh.
#[derive(Debug)]
pub struct Mesh<L: Letters> {
    /// The control thread's.
    pub control: Port<L, L::Control>,
    /// The bridge's.
    pub bridge: Port<L, L::Bridge>,
    /// The shards', in their order.
    pub shards: Vec<Port<L, L::Shard>>,
}

/// One thread's end of the mesh, at which letters of type `T` are read. Moves once, to its thread.
pub struct Port<L: Letters, T> {
    pub(super) outbox: Outbox<L>,
    pub(super) inbox: Inbox<T>,
}

impl<L: Letters, T> fmt::Debug for Port<L, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("of", &self.outbox.me()).finish_non_exhaustive()
    }
}

impl<L: Letters, T> Port<L, T> {
    /// The two directions, for a thread that drives them by itself.
    pub fn split(self) -> (Outbox<L>, Inbox<T>) {
        (self.outbox, self.inbox)
    }
}

/// Builds a mesh of control thread, bridge and so many shards, whose rings hold `capacity` letters each.
pub fn build<L: Letters>(shards: usize, capacity: usize) -> io::Result<Mesh<L>> {
    let threads = shards + 2;
    let (to_control, control) = reader(threads, capacity)?;
    let (to_bridge, bridge) = reader(threads, capacity)?;
    let mut to_shards: Vec<Vec<Line<L::Shard>>> = (0..threads).map(|_| Vec::with_capacity(shards)).collect();
    let mut shard_inboxes = Vec::with_capacity(shards);
    for _ in 0..shards {
        let (lines, inbox) = reader(threads, capacity)?;
        to_shards.iter_mut().zip(lines).for_each(|(to_shards, line)| to_shards.push(line));
        shard_inboxes.push(inbox);
    }
    let senders = [Endpoint::Control, Endpoint::Bridge].into_iter().chain((0..shards).map(Endpoint::Shard));
    let mut outboxes = senders
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

/// A reader, and a line to it for each thread.
fn reader<T>(threads: usize, capacity: usize) -> io::Result<(Vec<Line<T>>, Inbox<T>)> {
    let (bell, ear) = Doorbell::new()?;
    let bell = Arc::new(bell);
    let (writers, rings): (Vec<Producer<T>>, Vec<_>) = (0..threads).map(|_| RingBuffer::new(capacity.max(1))).unzip();
    let lines = writers.into_iter().map(|ring| Line::new(ring, Arc::clone(&bell))).collect();
    Ok((lines, Inbox::new(rings, bell, ear)))
}

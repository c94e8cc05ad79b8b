//! Questions that wait for their answer: from a room's home, from all shards, or from a service.
//!
//! Each that goes to a home gets exactly one answer, or the loss of one of both letters is told to whoever sent it. So a
//! question is kept until its answer comes, although whoever asked was told long ago that it takes too long: a join that
//! succeeds after all has to be taken back.

use std::collections::VecDeque;

use super::{
    arena::{Arena, Key},
    code::Code,
    name::RoomName,
    others::Others,
};
use crate::shard::Instant;

/// Questions of one shard at once.
const ASKS_MAX: usize = 1 << 18;

/// Answered questions that are passed over with each further answer: more than one, so that what has gathered behind one that
/// waited long goes soon; and not all at once.
const PASSED_OVER_MAX: usize = 16;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A socket.
    Socket(Key),
    /// Somebody outside of the hub, who is told by [`super::Effect::Told`].
    Outside(u64),
    /// Another instance, which the bus knows by this number.
    Instance(u64),
}

/// What is asked.
#[derive(Debug)]
pub(super) enum Question {
    /// To come in. The room is this shard's; who left meanwhile says so with the id of that.
    Join { room: Key, left: Option<LeaveId> },
    /// To say something.
    Publish(RoomName),
    /// Who is there.
    Presence(RoomName),
    /// How a room stands.
    Look(RoomName),
    /// All shards, and other instances: how many sockets of a user there were.
    Everywhere(Everywhere),
    /// A service; the number says which type of message.
    Service(usize),
}

/// The id of a `leave_room` that came before the join was over, if it had one.
#[derive(Debug)]
pub(super) struct LeaveId(pub(super) Option<Box<str>>);

/// A question to all shards, and by the bus to other instances: how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Everywhere {
    pub(super) asked: u32,
    /// Whose answer or loss is still to come.
    pub(super) waiting: u32,
    pub(super) answered: u32,
    /// What they have counted.
    pub(super) count: u32,
    /// Other instances; none where they could not be asked.
    pub(super) others: Option<Others>,
}

/// A question.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) asker: Asker,
    pub(super) question: Question,
    /// The asker's own name for it.
    pub(super) id: Option<Box<str>>,
    /// Whether the asker was told already that it takes too long, or has gone.
    pub(super) is_given_up: bool,
}

/// All questions of a shard.
#[derive(Debug, Default)]
pub(super) struct Asks {
    waiting: Arena<Ask>,
    /// In the order in which they are due; those that were answered are passed over.
    due: VecDeque<(Instant, Key)>,
}

impl Asks {
    /// Keeps a question; refuses when there are too many.
    pub(super) fn insert(&mut self, ask: Ask, due: Instant) -> Result<Key, Code> {
        if self.waiting.len() >= ASKS_MAX {
            return Err(Code::Overloaded);
        }
        let ticket = self.waiting.insert(ask);
        if due != Instant::NEVER {
            // All wait equally long, so they are in order.
            self.due.push_back((due, ticket));
        }
        Ok(ticket)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn get_mut(&mut self, ticket: Key) -> Option<&mut Ask> {
        self.waiting.get_mut(ticket)
    }

    /// The question of an answer.
    pub(super) fn remove(&mut self, ticket: Key) -> Option<Ask> {
        let ask = self.waiting.remove(ticket);
        self.forget_answered();
        ask
    }

    /// A question that takes too long; it is kept.
    pub(super) fn take_late(&mut self, now: Instant) -> Option<(Key, Asker)> {
        loop {
            let &(due, ticket) = self.due.front()?;
            if due > now {
                return None;
            }
            self.due.pop_front();
            if let Some(ask) = self.waiting.get_mut(ticket).filter(|ask| !ask.is_given_up) {
                ask.is_given_up = true;
                return Some((ticket, ask.asker));
            }
        }
    }

    /// When the first may be late.
    pub(super) fn next_late(&self) -> Option<Instant> {
        self.due.front().map(|&(at, _)| at)
    }

    fn forget_answered(&mut self) {
        for _ in 0..PASSED_OVER_MAX {
            if self.due.front().is_none_or(|&(_, ticket)| self.waiting.get(ticket).is_some()) {
                break;
            }
            self.due.pop_front();
        }
        if self.due.is_empty() && self.due.capacity() > 1024 {
            self.due = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_behind_one_that_waits_is_passed_over_some_at_a_time() {
        let mut asks = Asks::default();
        let ask = |asks: &mut Asks| {
            let ask = Ask { asker: Asker::Outside(0), question: Question::Service(0), id: None, is_given_up: false };
            asks.insert(ask, Instant::START).ok()
        };
        let first = ask(&mut asks).into_iter();
        for _ in 0..100_000 {
            let key = ask(&mut asks).into_iter();
            key.for_each(|key| drop(asks.remove(key)));
        }
        let mut waiting = asks.due.len();
        assert_eq!(waiting, 100_001);
        first.for_each(|first| drop(asks.remove(first)));
        while waiting > 0 {
            let left = asks.due.len();
            assert!(waiting.saturating_sub(left) <= 64, "{waiting} {left}");
            waiting = left;
            let key = ask(&mut asks).into_iter();
            key.for_each(|key| drop(asks.remove(key)));
        }
        assert_eq!(asks.len(), 0);
    }
}

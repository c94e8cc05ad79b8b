//! A room as one shard knows it: its members here, how far they are, and what came too early.
//!
//! Numbers without a hole go to the members; a hole is asked for at the room's home. What nobody has any more is told.

use std::sync::Arc;
use std::time::Duration;

use super::{
    arena::Key,
    early::Early,
    letter::{Delivery, Pull, Pulled, RoomLetter},
    name::RoomName,
    position::{Epoch, Position},
    post::Post,
};
use crate::shard::Instant;

/// How long what was missed may take to come, before it is asked for again.
const PULL_WITHIN: Duration = Duration::from_secs(1);
/// When the question is sent again that did not go at all.
const PULL_AGAIN: Duration = Duration::from_millis(100);

/// A member on this shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) socket: Key,
    /// Its place among the rooms of the socket.
    pub(super) slot: u32,
    /// What the member knew when it came: it gets what has a higher number.
    pub(super) base: u64,
}

/// What the members are to be given next.
#[derive(Debug)]
pub(super) enum Next {
    /// The next number.
    Message(Arc<Delivery>),
    /// What is up to here was lost; the numbers may have begun anew.
    Lost { at: Position, is_new_epoch: bool },
}

/// A room on one shard.
#[derive(Debug)]
pub(super) struct LocalRoom {
    pub(super) name: RoomName,
    pub(super) home: usize,
    pub(super) members: Vec<Member>,
    /// Sockets whose join is under way.
    pub(super) joining: u32,
    /// How far the members are; none before the first came in.
    position: Option<Position>,
    early: Early,
    /// The highest number that was heard of.
    known: u64,
    is_pulling: bool,
    /// When what is missed is asked for (again).
    pub(super) due: Instant,
    /// What its timer is set to.
    pub(super) armed: Instant,
}

impl LocalRoom {
    pub(super) fn new(name: RoomName, home: usize) -> Self {
        Self {
            name,
            home,
            members: Vec::new(),
            joining: 0,
            position: None,
            early: Early::default(),
            known: 0,
            is_pulling: false,
            due: Instant::NEVER,
            armed: Instant::NEVER,
        }
    }

    /// Whether nobody needs it any more.
    pub(super) fn is_unused(&self) -> bool {
        self.members.is_empty() && self.joining == 0
    }

    /// Somebody comes in where the room is at `at`. What follows goes to all.
    pub(super) fn enter(&mut self, at: Position) -> Option<Next> {
        match self.position {
            Some(position) if position.epoch == at.epoch && !self.members.is_empty() => {
                self.hear_of(at.seq);
                None
            }
            Some(_) if !self.members.is_empty() => Some(self.lose(at)),
            _ => {
                self.lose(at);
                None
            }
        }
    }

    /// A message from home.
    pub(super) fn hear(&mut self, message: Arc<Delivery>) -> Option<Next> {
        let position = self.position?;
        if message.position.epoch != position.epoch {
            return self
                .hear_of_epoch(message.position.epoch, message.position.seq.saturating_sub(1))
                .inspect(|_| self.early.keep(message));
        }
        if message.position.seq <= position.seq {
            return None;
        }
        self.hear_of(message.position.seq);
        if message.position.seq == position.seq.saturating_add(1) {
            return Some(self.advance(message));
        }
        self.early.keep(message);
        None
    }

    /// What came early and is next now.
    pub(super) fn next(&mut self) -> Option<Next> {
        let message = self.early.take_next(self.position?)?;
        Some(self.advance(message))
    }

    /// Where it is, if what is next waits here.
    pub(super) fn halted(&mut self) -> Option<Position> {
        let position = self.position?;
        self.early.forget_to(position.seq);
        (self.early.first()? == position.seq.saturating_add(1)).then_some(position)
    }

    /// How far the room is, from home.
    pub(super) fn hear_position(&mut self, at: Position) -> Option<Next> {
        let position = self.position?;
        if at.epoch != position.epoch {
            return self.hear_of_epoch(at.epoch, at.seq);
        }
        self.hear_of(at.seq);
        None
    }

    /// What was asked for: what is left of it, in order. The caller goes on with [`LocalRoom::hear`] for each message.
    pub(super) fn hear_pulled(&mut self, pulled: &Pulled) -> Option<Next> {
        let position = self.position?;
        self.is_pulling = false;
        self.due = Instant::NEVER;
        if pulled.epoch != position.epoch {
            return self.hear_of_epoch(pulled.epoch, pulled.seq);
        }
        self.hear_of(pulled.seq);
        let wanted = position.seq.saturating_add(1);
        let is_all_here = pulled.messages.first().is_some_and(|first| first.position.seq <= wanted);
        if is_all_here || pulled.to < wanted || pulled.from > wanted {
            return None;
        }
        // The home has no more of it than this.
        let seq = pulled.messages.first().map_or(pulled.to, |first| first.position.seq.saturating_sub(1));
        Some(self.lose(Position { epoch: position.epoch, seq }))
    }

    /// Asks for what is missed, if something is and nobody has asked; says whether it did.
    pub(super) fn pull(&mut self, now: Instant, post: &mut Post) -> bool {
        let Some(position) = self.position else { return false };
        if self.known <= position.seq {
            self.is_pulling = false;
            self.due = Instant::NEVER;
            return false;
        }
        if self.is_pulling || self.halted().is_some() {
            return false;
        }
        self.is_pulling = true;
        self.due = now + PULL_WITHIN;
        let to = self.early.first().map_or(self.known, |first| first.saturating_sub(1));
        let from = position.seq.saturating_add(1);
        let pull = Pull { room: self.name.clone(), epoch: position.epoch, from, to };
        post.send(self.home, RoomLetter::Pull(pull));
        true
    }

    /// The question did not go.
    pub(super) fn pull_dropped(&mut self, now: Instant) {
        if self.is_pulling {
            self.due = now + PULL_AGAIN;
        }
    }

    /// It takes too long.
    pub(super) fn pull_late(&mut self) {
        self.is_pulling = false;
        self.due = Instant::NEVER;
    }

    /// Bytes of memory that it holds beside what others share.
    #[cfg(test)]
    pub(super) fn early(&self) -> (usize, usize) {
        self.early.size()
    }

    fn hear_of(&mut self, seq: u64) {
        self.known = self.known.max(seq);
    }

    /// The numbers begin anew: what the members had is worth nothing any more.
    fn hear_of_epoch(&mut self, epoch: Epoch, seq: u64) -> Option<Next> {
        let lost = self.lose(Position { epoch, seq });
        (!self.members.is_empty()).then_some(lost)
    }

    /// The members go on from here.
    fn lose(&mut self, at: Position) -> Next {
        let is_new_epoch = self.position.is_none_or(|position| position.epoch != at.epoch);
        if is_new_epoch {
            self.early.clear();
            self.known = at.seq;
            self.is_pulling = false;
            self.due = Instant::NEVER;
        }
        self.early.forget_to(at.seq);
        self.known = self.known.max(at.seq);
        self.position = Some(at);
        Next::Lost { at, is_new_epoch }
    }

    fn advance(&mut self, message: Arc<Delivery>) -> Next {
        self.position = Some(Position { epoch: message.position.epoch, seq: message.position.seq });
        Next::Message(message)
    }
}

//! What those outside of the hub ask for: a message to a room or a user, a kick, a look. The answer is an
//! [`Effect::Told`](super::Effect::Told).

use std::sync::Arc;

use super::{
    Answer, Asker, Close, Code, Effect, Hub, Question, RoomLetter,
    arena::Key,
    asks::{Ask, Everywhere},
    frame::Kind,
    letter::{Look, PresenceIs, Publish, Publisher, SeenIs, ToUser},
    name::RoomName,
};
use crate::shard::Instant;

/// A service's message to a room.
#[derive(Clone, Copy, Debug)]
pub struct ServiceMessage<'a> {
    /// Who sends it.
    pub sub: &'a str,
    /// Its type, which may be pushed.
    pub kind: &'a str,
    /// The service's own name for it.
    pub id: Option<&'a str>,
    /// One JSON document.
    pub payload: &'a str,
}

impl<W> Hub<W> {
    /// A service says something in a room.
    pub fn publish_for(&mut self, now: Instant, asker: u64, room: RoomName, message: &ServiceMessage<'_>) {
        if let Some(ticket) = self.ask_for(now, asker, Question::Publish(room.clone())) {
            let from = Publisher::Service { sub: message.sub.into(), kind: message.kind.into() };
            let (id, payload) = (message.id.map(Into::into), message.payload.into());
            let home = room.home(self.shards);
            self.post.send(home, RoomLetter::Publish(Box::new(Publish { room, ticket, from, id, payload })));
        }
        self.settle(now);
    }

    /// Somebody looks at a room.
    pub fn look_for(&mut self, now: Instant, asker: u64, room: RoomName) {
        if let Some(ticket) = self.ask_for(now, asker, Question::Look(room.clone())) {
            self.post.send(room.home(self.shards), RoomLetter::Look { room, ticket });
        }
        self.settle(now);
    }

    /// A service says something to all sockets of a user, on all shards.
    pub fn publish_to_user_for(&mut self, now: Instant, asker: u64, user: &Arc<str>, kind: &str, payload: &str) {
        if let Some(ticket) = self.ask_everywhere(now, asker) {
            let text = self.encoder.pushed((self.to_unix_ms)(now), kind, payload);
            for shard in 0..self.shards {
                let to_user = ToUser { ticket, user: Arc::clone(user), text: Arc::clone(&text) };
                self.post.send(shard, RoomLetter::ToUser(Box::new(to_user)));
            }
        }
        self.settle(now);
    }

    /// All sockets of a user are closed, on all shards (4102).
    pub fn kick_for(&mut self, now: Instant, asker: u64, user: &Arc<str>) {
        if let Some(ticket) = self.ask_everywhere(now, asker) {
            for shard in 0..self.shards {
                self.post.send(shard, RoomLetter::Kick { ticket, user: Arc::clone(user) });
            }
        }
        self.settle(now);
    }

    fn ask_everywhere(&mut self, now: Instant, asker: u64) -> Option<Key> {
        let asked = u32::try_from(self.shards).unwrap_or(u32::MAX);
        self.ask_for(now, asker, Question::Everywhere(Everywhere { asked, waiting: asked, answered: 0, count: 0 }))
    }

    fn ask_for(&mut self, now: Instant, asker: u64, question: Question) -> Option<Key> {
        let due = now + self.plan.limits.answer_within;
        let ask = Ask { asker: Asker::Outside(asker), question, id: None, is_given_up: false };
        match self.asks.insert(ask, due) {
            Ok(ticket) => Some(ticket),
            Err(code) => {
                self.answer_outside(asker, Answer::Refused(code));
                None
            }
        }
    }

    pub(super) fn answer_outside(&mut self, asker: u64, answer: Answer) {
        self.effects.push_back(Effect::Told { asker, answer });
    }

    /// It cannot be answered, or only in part.
    pub(super) fn tell_outside(&mut self, asker: u64, question: &Question, code: Code) {
        self.answer_outside(
            asker,
            match question {
                Question::Everywhere(all) => sockets(all),
                _ => Answer::Refused(code),
            },
        );
    }

    pub(super) fn handle_seen(&mut self, ticket: Key, seen: Look) {
        let Some(ask) = self.asks.remove(ticket).filter(|ask| !ask.is_given_up) else { return };
        if let Asker::Outside(asker) = ask.asker {
            self.answer_outside(asker, Answer::Room(seen));
        }
    }

    /// What the bus knows of a room is for a socket that asked who is there, or for somebody outside who looks.
    pub(super) fn handle_seen_is(&mut self, seen: SeenIs) {
        let SeenIs { ticket, look, users } = seen;
        match self.asks.get_mut(ticket).map(|ask| ask.asker) {
            Some(Asker::Socket(_)) => self.handle_presence(&PresenceIs { ticket, users, total: look.members }),
            _ => self.handle_seen(ticket, look),
        }
    }

    pub(super) fn handle_to_user(&mut self, from: usize, to_user: &ToUser) {
        let sockets = self.users.get(&to_user.user).map_or(&[][..], Vec::as_slice);
        let frame = self.encoder.frame(&to_user.text, Kind::Plain);
        for &socket in sockets {
            self.sockets.push(socket, frame.clone());
        }
        let count = u32::try_from(sockets.len()).unwrap_or(u32::MAX);
        self.post.send(from, RoomLetter::UserTold { ticket: to_user.ticket, count });
    }

    pub(super) fn handle_kick(&mut self, now: Instant, from: usize, ticket: Key, user: &str) {
        let count = self.close_user(now, user, Close::Revoked);
        self.post.send(from, RoomLetter::UserTold { ticket, count });
    }

    /// Closes the sockets of a user on this shard; says how many.
    fn close_user(&mut self, now: Instant, user: &str, close: Close) -> u32 {
        let sockets = self.users.get(user).cloned().unwrap_or_default();
        for &socket in &sockets {
            self.end(now, socket, Some(close));
        }
        u32::try_from(sockets.len()).unwrap_or(u32::MAX)
    }

    /// A shard has answered, or was not reached.
    pub(super) fn handle_user_told(&mut self, ticket: Key, count: Option<u32>) {
        let Some(ask) = self.asks.get_mut(ticket) else { return };
        let Question::Everywhere(all) = &mut ask.question else { return };
        all.waiting = all.waiting.saturating_sub(1);
        if let Some(count) = count {
            all.answered = all.answered.saturating_add(1);
            all.count = all.count.saturating_add(count);
        }
        if all.waiting > 0 {
            return;
        }
        let (all, asker, is_given_up) = (*all, ask.asker, ask.is_given_up);
        self.asks.remove(ticket);
        if let Asker::Outside(asker) = asker
            && !is_given_up
        {
            self.answer_outside(asker, sockets(&all));
        }
    }
}

fn sockets(all: &Everywhere) -> Answer {
    Answer::Sockets { count: all.count, asked: all.asked, answered: all.answered }
}

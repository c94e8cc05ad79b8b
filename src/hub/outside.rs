//! What those outside of the hub ask for: a message to a room or a user, a kick, a look. The answer is an
//! [`Effect::Told`](super::Effect::Told).

use std::sync::Arc;

use super::{
    Answer, Asker, Close, Code, Hub, Question, RoomLetter,
    arena::Key,
    asks::Ask,
    frame::Kind,
    letter::{Look, PresenceIs, Publish, Publisher, SeenIs, ToUser},
    name::RoomName,
    others::UserOrder,
};
use crate::shard::Instant;

/// A service's message to a room or a user.
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

    /// A service says something to all sockets of a user, on all shards and instances.
    pub fn publish_to_user_for(&mut self, now: Instant, asker: u64, user: &Arc<str>, message: &ServiceMessage<'_>) {
        let text = self.encoder.pushed((self.to_unix_ms)(now), message.kind, message.payload);
        let id = message.id.map(|id| (message.sub.into(), id.into()));
        self.ask_everywhere(now, Asker::Outside(asker), user, UserOrder::Say { text, id });
        self.settle(now);
    }

    /// All sockets of a user are closed, on all shards and instances (4102).
    pub fn kick_for(&mut self, now: Instant, asker: u64, user: &Arc<str>) {
        self.ask_everywhere(now, Asker::Outside(asker), user, UserOrder::Close);
        self.settle(now);
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

    /// It cannot be answered, or only in part.
    pub(super) fn tell_outside(&mut self, asker: u64, question: &Question, code: Code) {
        self.answer_outside(
            asker,
            match question {
                Question::Everywhere(all) => all.answer(),
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

    pub(super) fn handle_to_user(&mut self, now: Instant, from: usize, to_user: &ToUser) {
        let ToUser { ticket, user, text, seen } = to_user;
        let count = self.said_before(now, *seen).unwrap_or_else(|| {
            let sockets = self.users.get(user).map_or(&[][..], Vec::as_slice);
            let frame = self.encoder.frame(text, Kind::Plain);
            for &socket in sockets {
                self.sockets.push(socket, frame.clone());
            }
            let count = u32::try_from(sockets.len()).unwrap_or(u32::MAX);
            self.keep_said(now, *seen, count);
            count
        });
        self.post.send(from, RoomLetter::UserTold { ticket: *ticket, count });
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
}

//! What a client says, one message at a time, and what it is answered at once.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Close, Code, Effect, Hub, Identity, SocketKey, State,
    arena::Key,
    asks::{Ask, Asker, Question},
    encode::Refusal,
    letter::{Publish, Publisher, RoomLetter},
    message::{ClientMessage, Request},
    name::RoomName,
    rules::Action,
    socket::{AwaitedAck, Busy, WAITING_MAX, is_mistake},
};
use crate::shard::Instant;

impl<W> Hub<W> {
    /// One message of a client.
    pub fn handle_text(&mut self, now: Instant, key: SocketKey, text: &str) {
        let limits = Rc::clone(&self.plan.limits);
        let types = Rc::clone(&self.plan.types);
        let Some(socket) = self.sockets.all.get_mut(key).filter(|socket| socket.state != State::Closing) else {
            return;
        };
        socket.hear(now);
        self.unfinished.remove(key);
        let paid = socket.pay(now, &limits);
        match (ClientMessage::parse(text, &types), paid) {
            (Ok(message), Ok(())) => self.handle_message(now, key, &message),
            (Err(refused), Ok(())) => {
                let (code, sentence) = (refused.mistake.code(), refused.mistake.sentence());
                let refusal = Refusal { sentence, ..Refusal::new(refused.id.as_deref(), code) };
                self.refuse(now, key, &refusal);
            }
            (read, Err(late)) => {
                let id = match &read {
                    Ok(message) => message.id.as_deref(),
                    Err(refused) => refused.id.as_deref(),
                };
                let retry_after_ms = Some(whole_ms(late));
                self.refuse(now, key, &Refusal { retry_after_ms, ..Refusal::new(id, Code::RateLimited) });
            }
        }
        self.settle(now);
    }

    fn handle_message(&mut self, now: Instant, key: SocketKey, message: &ClientMessage<'_>) {
        let id = message.id.as_deref();
        let is_anonymous = self.sockets.all.get(key).is_some_and(|socket| socket.state == State::Anonymous);
        match &message.request {
            Request::Heartbeat => {
                let frame = self.encoder.heartbeat((self.to_unix_ms)(now), id);
                self.sockets.push(key, frame);
            }
            Request::Auth { token } => self.ask_auth(now, key, id, token),
            _ if is_anonymous => self.refuse(now, key, &Refusal::new(id, Code::Unauthenticated)),
            Request::Join { room, recover } => self.join(now, key, id, room, *recover),
            Request::Leave { room } => self.leave_room(now, key, id, room),
            Request::Publish { room, payload } => self.publish(now, key, id, room, payload),
            Request::Presence { room } => self.ask_presence(now, key, id, room),
            Request::Service { index, payload } => self.forward(now, key, id, *index, payload),
        }
    }

    /// Says no. Who has made too many mistakes is closed.
    pub(super) fn refuse(&mut self, now: Instant, key: SocketKey, refusal: &Refusal<'_>) {
        let frame = self.encoder.error(refusal);
        self.sockets.push(key, frame);
        let limits = Rc::clone(&self.plan.limits);
        let Some(socket) = self.sockets.all.get_mut(key) else { return };
        if is_mistake(refusal.code) && socket.mistake(now, &limits) {
            self.end(now, key, Some(Close::PolicyViolation));
        }
    }

    /// Says no about a room.
    pub(super) fn refuse_in(&mut self, now: Instant, key: SocketKey, id: Option<&str>, room: &str, code: Code) {
        self.refuse(now, key, &Refusal { room: Some(room), ..Refusal::new(id, code) });
    }

    // ---- log-in ----

    fn ask_auth(&mut self, now: Instant, key: SocketKey, id: Option<&str>, token: &str) {
        let Some(socket) = self.sockets.all.get_mut(key) else { return };
        if socket.is_authenticating {
            self.refuse(now, key, &Refusal::new(id, Code::Overloaded));
            return;
        }
        socket.is_authenticating = true;
        self.effects.push_back(Effect::Auth { socket: key, id: id.map(Into::into), token: token.into() });
    }

    /// The token of an `auth` is good.
    pub fn authenticated(&mut self, now: Instant, key: SocketKey, id: Option<&str>, identity: Identity) {
        self.renew(now, key, id, identity);
        self.settle(now);
    }

    fn renew(&mut self, now: Instant, key: SocketKey, id: Option<&str>, identity: Identity) {
        let Some(socket) = self.sockets.all.get_mut(key).filter(|socket| socket.state != State::Closing) else {
            return;
        };
        socket.is_authenticating = false;
        let is_first = socket.user.is_none();
        if socket.user.as_ref().is_some_and(|user| *user != identity.user) {
            self.refuse(now, key, &Refusal::new(id, Code::OtherUser));
            return;
        }
        if identity.expires <= now {
            self.refuse_auth(now, key, id, Code::TokenExpired);
            return;
        }
        if is_first && self.is_full_of(&identity.user) {
            self.end(now, key, Some(Close::TooManyConnections));
            return;
        }
        let (user, session) = (Arc::clone(&identity.user), identity.session.clone());
        let expires_s = identity.expires_unix_s;
        self.identify(key, identity);
        let frame = self.encoder.auth_ok((self.to_unix_ms)(now), id, expires_s, &user, session.as_deref());
        self.sockets.push(key, frame);
        if is_first {
            self.welcome(now, key);
        } else {
            self.leave_forbidden(now, key, &user);
        }
        self.effects.push_back(Effect::Due(key));
    }

    /// The token of an `auth` is not good.
    pub fn auth_failed(&mut self, now: Instant, key: SocketKey, id: Option<&str>, code: Code) {
        if let Some(socket) = self.sockets.all.get_mut(key).filter(|socket| socket.state != State::Closing) {
            socket.is_authenticating = false;
            self.refuse_auth(now, key, id, code);
        }
        self.settle(now);
    }

    /// A socket that lives goes on until its own token has expired; one that never logged in ends, if trying again does not
    /// help.
    fn refuse_auth(&mut self, now: Instant, key: SocketKey, id: Option<&str>, code: Code) {
        self.refuse(now, key, &Refusal::new(id, code));
        let is_anonymous = self.sockets.all.get(key).is_some_and(|socket| socket.state == State::Anonymous);
        if is_anonymous && !code.is_retryable() {
            let close = match code {
                Code::TokenExpired => Close::TokenExpired,
                Code::TokenRevoked => Close::Revoked,
                _ => Close::Unauthenticated,
            };
            self.end(now, key, Some(close));
        }
    }

    /// Leaves the rooms that a new token does not allow, and does not come into those that it was about to.
    fn leave_forbidden(&mut self, now: Instant, key: SocketKey, user: &str) {
        let Some(socket) = self.sockets.all.get(key) else { return };
        let names = socket.rooms.iter().filter_map(|membership| self.rooms.get(membership.room)).map(|room| &room.name);
        let forbidden = names.filter(|name| !socket.permits.allow(user, name.as_str(), Action::Join));
        let forbidden: Vec<RoomName> = forbidden.cloned().collect();
        for room in forbidden {
            if !self.give_up_join(key, room.as_str()) {
                self.leave_room(now, key, None, room.as_str());
                // It is no mistake of the client's.
                let refusal = Refusal { room: Some(room.as_str()), ..Refusal::new(None, Code::Forbidden) };
                let frame = self.encoder.error(&refusal);
                self.sockets.push(key, frame);
            }
        }
    }

    // ---- questions to a room's home ----

    fn publish(&mut self, now: Instant, key: SocketKey, id: Option<&str>, room: &str, payload: &str) {
        let Some(name) = self.joined_room(key, room) else {
            self.refuse_in(now, key, id, room, Code::NotJoined);
            return;
        };
        let Some(socket) = self.sockets.all.get(key) else { return };
        let Some(user) = socket.user.clone() else { return };
        if !socket.permits.allow(&user, room, Action::Publish) {
            self.refuse_in(now, key, id, room, Code::Forbidden);
            return;
        }
        let from = Publisher::Member { user, session: socket.session.clone() };
        let Some(ticket) = self.ask(now, key, id, room, Question::Publish(name.clone())) else { return };
        let home = name.home(self.shards);
        let publish = Publish { room: name, ticket, from, id: id.map(Into::into), payload: payload.into() };
        self.post.send(home, RoomLetter::Publish(Box::new(publish)));
    }

    fn ask_presence(&mut self, now: Instant, key: SocketKey, id: Option<&str>, room: &str) {
        let Some(socket) = self.sockets.all.get(key) else { return };
        let is_allowed = socket.user.as_ref().is_some_and(|user| socket.permits.allow(user, room, Action::Presence));
        let Some(name) = RoomName::parse(room).filter(|_| is_allowed) else {
            self.refuse_in(now, key, id, room, Code::Forbidden);
            return;
        };
        let Some(ticket) = self.ask(now, key, id, room, Question::Presence(name.clone())) else { return };
        self.post.send(name.home(self.shards), RoomLetter::AskPresence { room: name, ticket });
    }

    /// Notes a question of a socket; says no where it has too many.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        key: SocketKey,
        id: Option<&str>,
        room: &str,
        question: Question,
    ) -> Option<Key> {
        let due = now + self.plan.limits.answer_within;
        let is_acknowledged = matches!(question, Question::Publish(_));
        let socket = self.sockets.all.get_mut(key)?;
        let waiting = socket.busy.as_ref().map_or(0, |busy| busy.waiting());
        let ask = Ask { asker: Asker::Socket(key), question, id: id.map(Into::into), is_given_up: false };
        let noted = if waiting < WAITING_MAX { self.asks.insert(ask, due) } else { Err(Code::Overloaded) };
        match noted {
            Ok(ticket) if is_acknowledged => {
                socket.busy().acks.push_back(AwaitedAck { ticket, frame: None, is_of_service: false });
            }
            Ok(ticket) => socket.busy().asks.push(ticket),
            Err(code) => self.refuse_in(now, key, id, room, code),
        }
        noted.ok()
    }

    /// The question is over, for the socket. Acks that waited for it go out.
    pub(super) fn forget_ask(&mut self, key: SocketKey, ticket: Key) {
        if let Some(busy) = self.busy(key) {
            busy.forget(ticket);
        }
        self.send_acks(key);
    }

    pub(super) fn busy(&mut self, key: SocketKey) -> Option<&mut Busy> {
        self.sockets.all.get_mut(key)?.busy.as_deref_mut()
    }

    /// Sends the acks whose turn it is.
    pub(super) fn send_acks(&mut self, key: SocketKey) {
        while let Some(frame) = self.busy(key).and_then(Busy::next_ack) {
            self.sockets.push(key, frame);
        }
        if let Some(socket) = self.sockets.all.get_mut(key) {
            socket.rest();
        }
    }
}

/// Rounded up, so that who waits so long is not early.
fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

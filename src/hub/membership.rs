//! Sockets in rooms, on their own shard: coming in, leaving, and what is said meanwhile.

use std::sync::Arc;

use super::{
    Asker, Code, Hub, RoomLetter, SocketKey, State,
    arena::Key,
    asks::{Ask, LeaveId, Question},
    encode::{Recovery, Refusal},
    frame::Kind,
    letter::{Delivery, Join, Joined, Leave, PresenceIs, Pull, Pulled},
    name::RoomName,
    position::Position,
    room::{LocalRoom, Member, Next},
    rules::Action,
    socket::{JOINING, Membership},
    timers::Timer,
};
use crate::shard::Instant;

/// What a `joined` has around each of its messages, and around all of them.
const AROUND_MESSAGE: usize = 1;
const AROUND_MESSAGES: usize = 1024;

/// Bytes that an answer with these messages takes in an outbox at most.
fn recovery_bytes(messages: &[Arc<Delivery>]) -> usize {
    let each = |message: &Arc<Delivery>| message.text.len().saturating_add(AROUND_MESSAGE);
    messages.iter().map(each).fold(AROUND_MESSAGES, usize::saturating_add)
}

impl<W> Hub<W> {
    // ---- coming in ----

    pub(super) fn join(
        &mut self,
        now: Instant,
        key: SocketKey,
        id: Option<&str>,
        room: &str,
        recover: Option<Position>,
    ) {
        let Some(socket) = self.sockets.all.get(key) else { return };
        let Some(user) = socket.user.clone() else { return };
        let is_allowed = socket.permits.allow(&user, room, Action::Join);
        let is_full = socket.rooms.len() >= self.plan.limits.rooms_per_socket_max;
        let Some(name) = RoomName::parse(room).filter(|_| is_allowed) else {
            self.refuse_in(now, key, id, room, Code::Forbidden);
            return;
        };
        if self.slot_of(key, room).is_some() {
            self.refuse_in(now, key, id, room, Code::AlreadyJoined);
            return;
        }
        if is_full {
            self.refuse_in(now, key, id, room, Code::TooManyRooms);
            return;
        }
        let local = self.local_room(&name);
        let question = Question::Join { room: local, left: None };
        let Some(ticket) = self.ask(now, key, id, room, question) else {
            self.free_unused(local);
            return;
        };
        if let Some(local) = self.rooms.get_mut(local) {
            local.joining = local.joining.saturating_add(1);
        }
        if let Some(socket) = self.sockets.all.get_mut(key) {
            if socket.rooms.is_empty() {
                // Most are in one room: no room for more.
                socket.rooms.reserve_exact(1);
            }
            socket.rooms.push(Membership { room: local, place: JOINING });
        }
        let home = name.home(self.shards);
        self.post.send(home, RoomLetter::Join(Box::new(Join { room: name, ticket, user, recover })));
    }

    /// The room here, made if there is none.
    fn local_room(&mut self, name: &RoomName) -> Key {
        if let Some(&key) = self.room_names.get(name) {
            return key;
        }
        let key = self.rooms.insert(LocalRoom::new(name.clone(), name.home(self.shards)));
        self.room_names.insert(name.clone(), key);
        key
    }

    pub(super) fn handle_joined(&mut self, now: Instant, joined: Joined) {
        let Some(ask) = self.asks.remove(joined.ticket) else {
            // Nobody asked: not kept, and so not in the room.
            self.send_leave(joined.room, joined.user);
            return;
        };
        let Ask { asker: Asker::Socket(socket), question: Question::Join { room, left }, id, is_given_up } = ask else {
            return;
        };
        if let Some(local) = self.rooms.get_mut(room) {
            local.joining = local.joining.saturating_sub(1);
        }
        if is_given_up {
            self.send_leave(joined.room, joined.user);
            self.free_unused(room);
            return;
        }
        self.forget_ask(socket, joined.ticket);
        let next = self.rooms.get_mut(room).and_then(|room| room.enter(joined.position));
        self.hand_out(now, room, next);
        self.push_joined(now, socket, id.as_deref(), &joined);
        if let Some(LeaveId(left_id)) = left {
            let frame = self.encoder.left(left_id.as_deref(), joined.room.as_str());
            self.sockets.push(socket, frame);
            self.send_leave(joined.room, joined.user);
            self.free_unused(room);
            return;
        }
        self.add_member(room, socket, joined.position.seq);
        self.look_for_holes(now, room);
    }

    fn push_joined(&mut self, now: Instant, socket: SocketKey, id: Option<&str>, joined: &Joined) {
        let texts: Vec<Arc<str>>;
        let bytes_max = self.plan.limits.outbox_bytes_max;
        let room_for = self.sockets.all.get(socket).map_or(0, |socket| bytes_max.saturating_sub(socket.outbox.bytes()));
        let recovery = match &joined.recovered {
            None => Recovery::NotAsked,
            Some(None) => Recovery::Lost,
            // What does not fit would close the socket, which would come back and ask for it again.
            Some(Some(messages)) if recovery_bytes(messages) > room_for => Recovery::Lost,
            Some(Some(messages)) => {
                // To copy one costs about what it does to queue one.
                self.sockets.left = self.sockets.left.saturating_sub(messages.len());
                texts = messages.iter().map(|message| Arc::clone(&message.text)).collect();
                Recovery::Recovered(&texts)
            }
        };
        let (unix_ms, room) = ((self.to_unix_ms)(now), joined.room.as_str());
        let frame = self.encoder.joined(unix_ms, id, room, joined.position, joined.members as usize, recovery);
        self.sockets.push(socket, frame);
    }

    fn add_member(&mut self, room: Key, socket: SocketKey, base: u64) {
        let Some(local) = self.rooms.get_mut(room) else { return };
        let Some(known) = self.sockets.all.get_mut(socket) else { return };
        let is_it = |membership: &Membership| membership.room == room && membership.place == JOINING;
        let Some(slot) = known.rooms.iter().position(is_it) else { return };
        // So many members do not fit into memory.
        let place = u32::try_from(local.members.len()).unwrap_or(JOINING);
        if let (Some(membership), Ok(slot)) = (known.rooms.get_mut(slot), u32::try_from(slot)) {
            membership.place = place;
            local.members.push(Member { socket, slot, base });
        }
    }

    /// A home says no, or the question did not get there.
    pub(super) fn handle_refused(&mut self, now: Instant, ticket: Key, code: Code) {
        let Some(ask) = self.asks.remove(ticket) else { return };
        let Ask { asker, question, id, is_given_up } = ask;
        if let Question::Join { room, .. } = question
            && let Some(local) = self.rooms.get_mut(room)
        {
            local.joining = local.joining.saturating_sub(1);
        }
        if !is_given_up {
            self.tell_refused(now, ticket, asker, &question, id.as_deref(), code);
        }
        if let Question::Join { room, .. } = question {
            self.free_unused(room);
        }
    }

    /// A question takes too long. It is kept: a join may succeed yet, and is then taken back.
    pub(super) fn tell_late(&mut self, now: Instant, ticket: Key, asker: Asker) {
        let Some(ask) = self.asks.get_mut(ticket) else { return };
        let id = ask.id.take();
        let question = match &mut ask.question {
            Question::Join { room, left } => Question::Join { room: *room, left: left.take() },
            Question::Publish(room) => Question::Publish(room.clone()),
            Question::Presence(room) => Question::Presence(room.clone()),
            Question::Look(room) => Question::Look(room.clone()),
            Question::Everywhere(all) => Question::Everywhere(*all),
            Question::Service(index) => Question::Service(*index),
        };
        self.tell_refused(now, ticket, asker, &question, id.as_deref(), Code::Timeout);
    }

    fn tell_refused(
        &mut self,
        now: Instant,
        ticket: Key,
        asker: Asker,
        question: &Question,
        id: Option<&str>,
        code: Code,
    ) {
        let socket = match asker {
            Asker::Outside(number) => return self.tell_outside(number, question, code),
            // It has given up by then.
            Asker::Instance(_) => return,
            Asker::Socket(socket) => socket,
        };
        self.forget_ask(socket, ticket);
        match question {
            Question::Join { room, left } => {
                let Some(name) = self.rooms.get(*room).map(|room| room.name.clone()) else { return };
                if left.is_none() {
                    self.drop_joining(socket, *room);
                }
                self.refuse_in(now, socket, id, name.as_str(), code);
                if let Some(LeaveId(left_id)) = left {
                    self.refuse_in(now, socket, left_id.as_deref(), name.as_str(), Code::NotJoined);
                }
            }
            Question::Publish(room) | Question::Presence(room) | Question::Look(room) => {
                self.refuse_in(now, socket, id, room.as_str(), code);
            }
            Question::Everywhere(_) | Question::Service(_) => {}
        }
    }

    /// The socket does not come in after all.
    fn drop_joining(&mut self, socket: SocketKey, room: Key) {
        let Some(known) = self.sockets.all.get(socket) else { return };
        let is_it = |membership: &Membership| membership.room == room && membership.place == JOINING;
        if let Some(slot) = known.rooms.iter().position(is_it) {
            self.remove_membership(socket, slot);
        }
    }

    // ---- leaving ----

    pub(super) fn leave_room(&mut self, now: Instant, key: SocketKey, id: Option<&str>, room: &str) {
        let Some(slot) = self.slot_of(key, room) else {
            self.refuse_in(now, key, id, room, Code::NotJoined);
            return;
        };
        let Some(membership) = self.remove_membership(key, slot) else { return };
        if membership.place == JOINING {
            // `left` comes after `joined`.
            self.leave_when_joined(key, membership.room, id);
            return;
        }
        let frame = self.encoder.left(id, room);
        self.sockets.push(key, frame);
        let user = self.sockets.all.get(key).and_then(|socket| socket.user.clone());
        let name = self.rooms.get(membership.room).map(|room| room.name.clone());
        if let (Some(name), Some(user)) = (name, user) {
            self.send_leave(name, user);
        }
        self.free_unused(membership.room);
    }

    fn leave_when_joined(&mut self, key: SocketKey, room: Key, id: Option<&str>) {
        let asks = self.busy(key).map(|busy| busy.asks.clone()).unwrap_or_default();
        for ticket in asks {
            if let Some(Ask { question: Question::Join { room: joining, left }, .. }) = self.asks.get_mut(ticket)
                && *joining == room
                && left.is_none()
            {
                *left = Some(LeaveId(id.map(Into::into)));
                return;
            }
        }
    }

    /// Refuses a join that is under way, if one is: what the room says to it later is not for the socket any more.
    pub(super) fn give_up_join(&mut self, key: SocketKey, room: &str) -> bool {
        let Some(&local) = self.room_names.get(room) else { return false };
        let Some(socket) = self.sockets.all.get(key) else { return false };
        let is_it = |membership: &Membership| membership.room == local && membership.place == JOINING;
        if !socket.rooms.iter().any(is_it) {
            return false;
        }
        self.drop_joining(key, local);
        for ticket in self.busy(key).map(|busy| busy.asks.clone()).unwrap_or_default() {
            if let Some(ask) = self.asks.get_mut(ticket)
                && matches!(&ask.question, Question::Join { room, left: None } if *room == local)
            {
                ask.is_given_up = true;
                let id = ask.id.take();
                self.forget_ask(key, ticket);
                let refusal = Refusal { room: Some(room), ..Refusal::new(id.as_deref(), Code::Forbidden) };
                let frame = self.encoder.error(&refusal);
                self.sockets.push(key, frame);
            }
        }
        true
    }

    /// Leaves all rooms without a word: the socket ends.
    pub(super) fn leave_all(&mut self, _: Instant, key: SocketKey) {
        let Some(socket) = self.sockets.all.get(key) else { return };
        let user = socket.user.clone();
        // The last first: nothing has to be moved.
        for slot in (0..socket.rooms.len()).rev() {
            let Some(membership) = self.remove_membership(key, slot) else { continue };
            let name = self.rooms.get(membership.room).map(|room| room.name.clone());
            if membership.place != JOINING
                && let (Some(name), Some(user)) = (name, &user)
            {
                self.send_leave(name, Arc::clone(user));
            }
            self.free_unused(membership.room);
        }
        if let Some(socket) = self.sockets.all.get_mut(key) {
            socket.rooms = Vec::new();
        }
    }

    /// The socket's questions are nobody's any more.
    pub(super) fn forget_waiting(&mut self, key: SocketKey) {
        let Some(busy) = self.sockets.all.get_mut(key).and_then(|socket| socket.busy.take()) else { return };
        for ticket in busy.acks.iter().map(|ack| ack.ticket).chain(busy.asks.iter().copied()) {
            if let Some(ask) = self.asks.get_mut(ticket) {
                ask.is_given_up = true;
            }
        }
        self.cancel_services(&busy.services);
    }

    /// Takes a membership off the socket and the room, in time that does not depend on how many there are.
    fn remove_membership(&mut self, key: SocketKey, slot: usize) -> Option<Membership> {
        let socket = self.sockets.all.get_mut(key)?;
        if slot >= socket.rooms.len() {
            return None;
        }
        let membership = socket.rooms.swap_remove(slot);
        // The socket's last one has moved to this slot: its room is to know.
        if let (Some(moved), Ok(slot)) = (socket.rooms.get(slot).copied(), u32::try_from(slot))
            && let Some(room) = self.rooms.get_mut(moved.room)
            && let Some(member) = room.members.get_mut(moved.place as usize)
        {
            member.slot = slot;
        }
        let place = membership.place as usize;
        if membership.place != JOINING
            && let Some(room) = self.rooms.get_mut(membership.room)
            && place < room.members.len()
        {
            room.members.swap_remove(place);
            // The room's last member has moved to this place: its socket is to know.
            if let Some(moved) = room.members.get(place).copied()
                && let Some(socket) = self.sockets.all.get_mut(moved.socket)
                && let Some(known) = socket.rooms.get_mut(moved.slot as usize)
            {
                known.place = membership.place;
            }
        }
        Some(membership)
    }

    fn send_leave(&mut self, room: RoomName, user: Arc<str>) {
        self.post.send(room.home(self.shards), RoomLetter::Leave(Leave { room, user }));
    }

    /// Frees a room that nobody here is in or comes into.
    pub(super) fn free_unused(&mut self, key: Key) {
        if !self.rooms.get(key).is_some_and(LocalRoom::is_unused) {
            return;
        }
        if let Some(mut room) = self.rooms.remove(key) {
            self.timers.set(Timer::Pull(key), &mut room.armed, Instant::NEVER);
            self.room_names.remove(&room.name);
        }
    }

    /// The place of a room among those of a socket.
    fn slot_of(&self, key: SocketKey, room: &str) -> Option<usize> {
        let room = *self.room_names.get(room)?;
        self.sockets.all.get(key)?.rooms.iter().position(|membership| membership.room == room)
    }

    /// The room, if the socket is in it or about to be.
    pub(super) fn joined_room(&self, key: SocketKey, room: &str) -> Option<RoomName> {
        self.slot_of(key, room)?;
        self.room_names.get_key_value(room).map(|(name, _)| name.clone())
    }

    // ---- what is said ----

    pub(super) fn handle_deliver(&mut self, now: Instant, message: Arc<Delivery>) {
        let Some(&key) = self.room_names.get(&message.room) else { return };
        let next = self.rooms.get_mut(key).and_then(|room| room.hear(message));
        self.hand_out(now, key, next);
        self.look_for_holes(now, key);
    }

    pub(super) fn handle_position(&mut self, now: Instant, room: &RoomName, position: Position) {
        let Some(&key) = self.room_names.get(room) else { return };
        let next = self.rooms.get_mut(key).and_then(|room| room.hear_position(position));
        self.hand_out(now, key, next);
        self.look_for_holes(now, key);
    }

    pub(super) fn handle_pulled(&mut self, now: Instant, pulled: Pulled) {
        let Some(&key) = self.room_names.get(&pulled.room) else { return };
        let next = self.rooms.get_mut(key).and_then(|room| room.hear_pulled(&pulled));
        self.hand_out(now, key, next);
        let mut messages = pulled.messages.into_iter();
        while let Some(message) = messages.next() {
            let next = self.rooms.get_mut(key).and_then(|room| room.hear(message));
            self.hand_out(now, key, next);
            if self.sockets.left == 0 && messages.len() > 0 {
                let messages = messages.collect();
                self.post.send_first(RoomLetter::Pulled(Box::new(Pulled { messages, ..pulled })));
                return;
            }
        }
        self.look_for_holes(now, key);
    }

    pub(super) fn handle_tell(&mut self, room: &RoomName, text: &str) {
        let Some(room) = self.room_names.get(room).and_then(|&key| self.rooms.get(key)) else { return };
        let frame = self.encoder.frame(text, Kind::Plain);
        for member in &room.members {
            self.sockets.push(member.socket, frame.clone());
        }
    }

    /// Gives the members what is next, and all that follows without a hole; what is too much for this turn in the next.
    fn hand_out(&mut self, _: Instant, key: Key, first: Option<Next>) {
        let mut next = first.or_else(|| self.rooms.get_mut(key)?.next());
        while let Some(what) = next {
            match what {
                Next::Message(message) => self.fan_out(key, &message),
                Next::Lost { at, is_new_epoch } => self.tell_lost(key, at, is_new_epoch),
            }
            let Some(room) = self.rooms.get_mut(key) else { return };
            if self.sockets.left == 0
                && let Some(position) = room.halted()
            {
                // It is told what it knows, and goes on.
                self.post.send_first(RoomLetter::Position { room: room.name.clone(), position });
                return;
            }
            next = room.next();
        }
    }

    /// A message to all members who do not have it yet: one reference each.
    fn fan_out(&mut self, key: Key, message: &Delivery) {
        let Some(room) = self.rooms.get(key).filter(|room| !room.members.is_empty()) else { return };
        let Delivery { position, slow, text, at, .. } = message;
        let kind = Kind::Message { room: room.name.clone(), position: *position, slow: *slow };
        let frame = self.encoder.frame(text, kind);
        for member in &room.members {
            if position.seq > member.base {
                self.sockets.push(member.socket, frame.clone());
            }
        }
        self.sockets.time_from(*at);
    }

    /// What is up to here is lost: the members that miss some of it are told, and go on from here.
    fn tell_lost(&mut self, key: Key, at: Position, is_new_epoch: bool) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        let frame = self.encoder.continuity(room.name.as_str(), at);
        for member in &mut room.members {
            if is_new_epoch || member.base < at.seq {
                member.base = at.seq;
                self.sockets.push(member.socket, frame.clone());
                self.discontinuities = self.discontinuities.saturating_add(1);
            }
        }
    }

    /// Asks for what is missed, and sets the timer for asking again.
    fn look_for_holes(&mut self, now: Instant, key: Key) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        if room.pull(now, &mut self.post) {
            self.pulls = self.pulls.saturating_add(1);
        }
        let due = room.due;
        self.timers.set(Timer::Pull(key), &mut room.armed, due);
    }

    pub(super) fn handle_pull_timeout(&mut self, now: Instant, key: Key) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        room.armed = Instant::NEVER;
        room.pull_late();
        self.look_for_holes(now, key);
    }

    pub(super) fn pull_dropped(&mut self, now: Instant, pull: &Pull) {
        let Some(&key) = self.room_names.get(&pull.room) else { return };
        let Some(room) = self.rooms.get_mut(key) else { return };
        room.pull_dropped(now);
        let due = room.due;
        self.timers.set(Timer::Pull(key), &mut room.armed, due);
    }

    // ---- other answers ----

    pub(super) fn handle_published(&mut self, ticket: Key, position: Position) {
        let Some(ask) = self.asks.remove(ticket).filter(|ask| !ask.is_given_up) else { return };
        let Question::Publish(room) = &ask.question else { return };
        match ask.asker {
            Asker::Outside(number) => self.answer_outside(number, super::Answer::Published(position)),
            Asker::Instance(_) => {}
            Asker::Socket(socket) => {
                let frame = self.encoder.ack(ask.id.as_deref(), room.as_str(), position);
                self.acknowledge(socket, ticket, frame);
            }
        }
    }

    /// The ack of a message is here; it goes out when those of all messages before it have.
    pub(super) fn acknowledge(&mut self, socket: SocketKey, ticket: Key, frame: super::Frame) {
        if let Some(busy) = self.busy(socket) {
            busy.acknowledge(ticket, frame);
        }
        self.send_acks(socket);
    }

    pub(super) fn handle_presence(&mut self, presence: &PresenceIs) {
        let Some(ask) = self.asks.remove(presence.ticket).filter(|ask| !ask.is_given_up) else { return };
        let (Asker::Socket(socket), Question::Presence(room)) = (ask.asker, &ask.question) else { return };
        self.forget_ask(socket, presence.ticket);
        let total = presence.total as usize;
        let frame = self.encoder.presence(ask.id.as_deref(), room.as_str(), &presence.users, total);
        self.sockets.push(socket, frame);
    }

    /// Whether a socket is still to be told something.
    pub(super) fn is_open(&self, key: SocketKey) -> bool {
        self.sockets.all.get(key).is_some_and(|socket| socket.state != State::Closing)
    }

    /// For tests: whether memberships and members are each other's mirror.
    #[cfg(test)]
    pub(super) fn is_sound(&self) -> bool {
        let sockets = self.sockets.all.iter().all(|(key, socket)| {
            socket.rooms.iter().enumerate().all(|(slot, membership)| {
                self.rooms.get(membership.room).is_some_and(|room| {
                    membership.place == JOINING
                        || room
                            .members
                            .get(membership.place as usize)
                            .is_some_and(|member| member.socket == key && member.slot as usize == slot)
                })
            })
        });
        let rooms = self.rooms.iter().all(|(key, room)| {
            self.room_names.get(&room.name) == Some(&key)
                && !room.is_unused()
                && room.members.iter().enumerate().all(|(place, member)| {
                    self.sockets.all.get(member.socket).is_some_and(|socket| {
                        socket
                            .rooms
                            .get(member.slot as usize)
                            .is_some_and(|membership| membership.room == key && membership.place as usize == place)
                    })
                })
        });
        sockets && rooms
    }
}

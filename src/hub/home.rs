//! A room at its home shard: who gives numbers to its messages, remembers them, and knows who is there.
//!
//! Nothing here knows a socket: members are users on shards. What a shard makes of it is in `room.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{
    arena::Key,
    bus::{BusCounts, Keep},
    encode::{Encoder, PresenceEvent},
    following::Following,
    history::{History, Secret, Window},
    letter::{Delivery, Join, Joined, Leave, Look, PresenceIs, Publish, Publisher, Pull, Pulled, RoomLetter, Tell},
    name::RoomName,
    position::{Chain, Epoch, Position},
    post::Post,
    presence::{Change, Members},
    rules::Policy,
};
use crate::shard::Instant;

/// How soon a shard that missed something is told how far the room is, and again until it heard it.
const BEHIND_INTERVAL: Duration = Duration::from_millis(100);

/// Comings and goings that are told again to shards that missed them.
const UNTOLD_MAX: usize = 4096;

/// Users that one answer about presence lists.
pub(super) const PRESENCE_USERS_MAX: usize = 1000;

/// One room.
#[derive(Debug)]
pub(super) struct Home {
    room: RoomName,
    policy: Policy,
    position: Position,
    history: History,
    window: Window,
    members: Members,
    /// None where this shard gives the numbers itself.
    pub(super) following: Option<Following>,
    /// Shards that a letter did not reach, and when they are told how far the room is.
    behind: Vec<usize>,
    /// Of whom shards missed that they came or went: they are told again, as it is then.
    untold: BTreeSet<(usize, Arc<str>)>,
    behind_due: Instant,
    /// Who made it by coming in or speaking; nobody where a service did.
    maker: Option<Arc<str>>,
    /// The earliest timer that is set for it.
    pub(super) armed: Instant,
}

/// What a step of a room is given.
pub(super) struct Given<'a> {
    pub(super) now: Instant,
    /// The time of day now.
    pub(super) unix_ms: u64,
    pub(super) secret: Secret,
    /// Bytes of messages that one recovery may bring.
    pub(super) recovery_bytes_max: usize,
    /// A room's position is compared with the bus's so often.
    pub(super) position_every: Duration,
    pub(super) is_bus_up: bool,
    pub(super) rng: &'a mut fastrand::Rng,
    pub(super) encoder: &'a mut Encoder,
    pub(super) counts: &'a mut BusCounts,
    pub(super) post: &'a mut Post,
}

impl Home {
    pub(super) fn new(
        room: RoomName,
        policy: Policy,
        epoch: Epoch,
        shards: usize,
        maker: Option<Arc<str>>,
        window: Window,
    ) -> Self {
        Self {
            room,
            policy,
            position: Position { epoch, seq: 0 },
            history: History::default(),
            window,
            members: Members::new(shards),
            following: None,
            behind: Vec::new(),
            untold: BTreeSet::new(),
            behind_due: Instant::NEVER,
            maker,
            armed: Instant::NEVER,
        }
    }

    /// A room whose numbers the bus gives.
    pub(super) fn following(
        room: RoomName,
        policy: Policy,
        following: Following,
        shards: usize,
        maker: Option<Arc<str>>,
    ) -> Self {
        Self { following: Some(following), ..Self::new(room, policy, Epoch::NONE, shards, maker, Window::default()) }
    }

    pub(super) fn room(&self) -> &RoomName {
        &self.room
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// What the bus is to keep of the room.
    pub(super) fn keep(&self) -> Keep {
        keep(&self.policy)
    }

    pub(super) fn maker(&self) -> Option<&Arc<str>> {
        self.maker.as_ref()
    }

    pub(super) fn history_bytes(&self) -> usize {
        self.history.bytes()
    }

    /// Other rules apply from now on.
    pub(super) fn adopt(&mut self, now: Instant, policy: Policy) {
        self.policy = policy;
        self.prune(now);
    }

    /// Somebody comes in, on this shard.
    pub(super) fn join(&mut self, given: &mut Given<'_>, from: usize, join: Join) {
        self.prune(given.now);
        if self.following.is_some() {
            return self.join_following(given, from, join);
        }
        self.admit(given, from, join);
    }

    /// Somebody has come in.
    pub(super) fn admit(&mut self, given: &mut Given<'_>, from: usize, join: Join) {
        let Join { ticket, user, recover, .. } = join;
        let change = self.members.enter(from, &user);
        self.here_changed(given, &user);
        let joined = Joined {
            room: self.room.clone(),
            ticket,
            position: self.position,
            members: self.members.users(),
            recovered: recover.map(|last| self.recover(last, given.recovery_bytes_max)),
            user: Arc::clone(&user),
        };
        given.post.send(from, RoomLetter::Joined(Box::new(joined)));
        self.tell(given, change, &user);
    }

    /// All that was said after `last`; nothing where some of it is not here any more, or would be too much for one answer.
    fn recover(&self, last: Position, bytes_max: usize) -> Option<Vec<Arc<Delivery>>> {
        if last.epoch != self.position.epoch || last.seq > self.position.seq {
            return None;
        }
        let missed = self.history.between(last.seq, self.position.seq)?;
        let bytes: usize = missed.iter().map(|message| message.text.len()).sum();
        (bytes <= bytes_max).then_some(missed)
    }

    /// A member of this shard has left.
    pub(super) fn leave(&mut self, given: &mut Given<'_>, from: usize, user: &Arc<str>) {
        let change = self.members.leave(from, user, self.gone_at(given.now));
        self.here_changed(given, user);
        self.tell(given, change, user);
    }

    /// When it is told that somebody has gone who goes now; none for at once.
    fn gone_at(&self, now: Instant) -> Option<Instant> {
        let waits = self.policy.has_presence_events && !self.policy.presence_grace.is_zero();
        waits.then(|| now + self.policy.presence_grace)
    }

    /// A user has so many sockets on other instances.
    pub(super) fn set_elsewhere(&mut self, given: &mut Given<'_>, user: &Arc<str>, sockets: u32) {
        let change = self.members.set_elsewhere(user, sockets, self.gone_at(given.now));
        self.tell(given, change, user);
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Tells the members who came or went, where they are to be told.
    fn tell(&self, given: &mut Given<'_>, change: Change, user: &str) {
        let event = match change {
            Change::Came if self.policy.has_presence_events => PresenceEvent::Join,
            Change::Went if self.policy.has_presence_events => PresenceEvent::Leave,
            _ => return,
        };
        let tell = self.telling(given, event, user);
        for shard in self.members.shards() {
            given.post.send(shard, RoomLetter::Tell(Arc::clone(&tell)));
        }
    }

    fn telling(&self, given: &mut Given<'_>, event: PresenceEvent, user: &str) -> Arc<Tell> {
        let text = given.encoder.presence_event(self.room.as_str(), event, user);
        Arc::new(Tell { room: self.room.clone(), user: user.into(), text })
    }

    /// A shard was not told that somebody came or went.
    pub(super) fn untold(&mut self, now: Instant, shard: usize, user: &Arc<str>) {
        if self.untold.len() < UNTOLD_MAX {
            self.untold.insert((shard, Arc::clone(user)));
            self.behind_due = self.behind_due.min(now + BEHIND_INTERVAL);
        }
    }

    /// Tells again of whom shards were not told, as it is now: a letter about somebody may have overtaken the one before it.
    fn tell_untold(&mut self, given: &mut Given<'_>) {
        for (shard, user) in std::mem::take(&mut self.untold) {
            if !self.policy.has_presence_events || !self.members.shards().any(|one| one == shard) {
                continue;
            }
            let event = if self.members.is_known(&user) { PresenceEvent::Join } else { PresenceEvent::Leave };
            let tell = self.telling(given, event, &user);
            given.post.send(shard, RoomLetter::Tell(tell));
        }
    }

    /// A message; returns its number when it is new and kept.
    pub(super) fn publish(&mut self, given: &mut Given<'_>, from: usize, publish: &Publish) -> Option<u64> {
        self.prune(given.now);
        if self.following.is_some() {
            self.publish_following(given, from, publish);
            return None;
        }
        let mark = publish.id.as_deref().map(|id| given.secret.mark(&publish.from.scope(), id));
        if let Some(seq) = mark.and_then(|mark| self.window.number(mark)) {
            let position = Position { epoch: self.position.epoch, seq };
            given.post.send(from, RoomLetter::Published { ticket: publish.ticket, position });
            return None;
        }
        let position = self.next_position();
        if let Some(mark) = mark {
            self.window.push(given.now, mark, position.seq);
        }
        let message = Arc::new(self.encode(given, position, publish));
        given.post.send(from, RoomLetter::Published { ticket: publish.ticket, position });
        self.deliver(given, &message);
        self.remembers(position.seq).then_some(position.seq)
    }

    /// The next number.
    fn next_position(&mut self) -> Position {
        self.position.seq = self.position.seq.saturating_add(1);
        self.position
    }

    /// A message with its number goes to all shards with members, and into the history.
    fn deliver(&mut self, given: &mut Given<'_>, message: &Arc<Delivery>) {
        self.history.push(given.now, Arc::clone(message), self.policy.history);
        for shard in self.members.shards() {
            given.post.send(shard, RoomLetter::Deliver(Arc::clone(message)));
        }
    }

    /// The next message, as the bus has numbered it.
    pub(super) fn advance(&mut self, given: &mut Given<'_>, message: &Arc<Delivery>) {
        self.position = message.position;
        self.deliver(given, message);
    }

    /// The room goes on from here; what is remembered of it does not lead there.
    pub(super) fn set_position(&mut self, at: Position) {
        self.position = at;
        self.history = History::default();
    }

    /// Older messages that the bus still had, in order: those that lead to what is remembered.
    pub(super) fn remember_before(&mut self, now: Instant, missed: Vec<Arc<Delivery>>) {
        self.history.fill_before(now, missed, self.position.seq);
        self.prune(now);
    }

    /// The number of the oldest message that is remembered; past all where none is.
    pub(super) fn first_remembered(&self) -> u64 {
        self.history.first().unwrap_or(u64::MAX)
    }

    /// Tells all shards with members how far the room is.
    pub(super) fn tell_position(&self, given: &mut Given<'_>) {
        for shard in self.members.shards() {
            given.post.send(shard, RoomLetter::Position { room: self.room.clone(), position: self.position });
        }
    }

    /// Some of what was said is wanted again.
    pub(super) fn pull(&mut self, given: &mut Given<'_>, from: usize, pull: &Pull) {
        self.prune(given.now);
        let is_ours = pull.epoch == self.position.epoch;
        let pulled = Pulled {
            room: self.room.clone(),
            epoch: self.position.epoch,
            from: pull.from,
            to: pull.to,
            messages: if is_ours { self.history.from(pull.from, pull.to) } else { Vec::new() },
            seq: self.position.seq,
        };
        given.post.send(from, RoomLetter::Pulled(Box::new(pulled)));
    }

    /// Who is there.
    pub(super) fn presence(&self, given: &mut Given<'_>, from: usize, ticket: Key) {
        let users = self.members.list(PRESENCE_USERS_MAX);
        given
            .post
            .send(from, RoomLetter::PresenceIs(Box::new(PresenceIs { ticket, users, total: self.members.users() })));
    }

    /// How the room stands.
    pub(super) fn look(&self) -> Look {
        Look { members: self.members.users(), connections: self.members.connections(), position: self.position }
    }

    /// Whether it has members on this instance.
    pub(super) fn is_occupied(&self) -> bool {
        self.members.shards().next().is_some()
    }

    pub(super) fn has_member(&self, user: &str) -> bool {
        self.members.has(user)
    }

    /// A shard did not get a letter: it is told how far the room is.
    pub(super) fn missed(&mut self, now: Instant, shard: usize) {
        if !self.behind.contains(&shard) {
            self.behind.push(shard);
        }
        self.behind_due = self.behind_due.min(now + BEHIND_INTERVAL);
    }

    pub(super) fn handle_timeout(&mut self, given: &mut Given<'_>) {
        self.prune(given.now);
        if self.behind_due <= given.now {
            self.behind_due = Instant::NEVER;
            for shard in std::mem::take(&mut self.behind) {
                given.post.send(shard, RoomLetter::Position { room: self.room.clone(), position: self.position });
            }
            self.tell_untold(given);
        }
        while let Some(user) = self.members.departed(given.now) {
            self.tell(given, Change::Went, &user);
        }
        self.time_following(given);
    }

    fn prune(&mut self, now: Instant) {
        self.history.prune(now, self.policy.history);
        self.window.prune(now, self.ids_age());
    }

    /// Whether the message of this number is kept.
    pub(super) fn remembers(&self, seq: u64) -> bool {
        self.history.first().is_some_and(|first| first <= seq)
    }

    /// Forgets the messages up to this number: memory is short.
    pub(super) fn forget(&mut self, seq: u64) {
        while self.history.first().is_some_and(|first| first <= seq) {
            self.history.forget_first();
        }
    }

    /// When there is something to do.
    pub(super) fn due(&self) -> Instant {
        let departure = self.members.next_departure().unwrap_or(Instant::NEVER);
        let forgotten = self
            .history
            .forgotten_at(self.policy.history)
            .max(self.window.forgotten_at(self.ids_age()))
            .filter(|_| self.members.is_empty())
            .unwrap_or(Instant::NEVER);
        let following = self.following.as_ref().map_or(Instant::NEVER, Following::due);
        self.behind_due.min(departure).min(forgotten).min(following)
    }

    /// Whether nobody would miss it: nobody is there, and nothing is remembered, or the bus remembers it.
    pub(super) fn is_unused(&self) -> bool {
        if let Some(following) = &self.following {
            return self.members.is_empty() && following.is_unused();
        }
        self.members.is_empty() && self.history.is_empty() && self.window.is_empty()
    }

    fn ids_age(&self) -> Duration {
        self.policy.history.age_max.max(self.policy.ids_for)
    }

    fn encode(&self, given: &mut Given<'_>, position: Position, publish: &Publish) -> Delivery {
        let Publish { from, payload, .. } = publish;
        let (room, unix_ms) = (self.room.as_str(), given.unix_ms);
        let text = match from {
            Publisher::Member { user, .. } => given.encoder.room_message(unix_ms, room, position, user, payload),
            Publisher::Service { kind, .. } => given.encoder.pushed_to_room(unix_ms, kind, room, position, payload),
        };
        let slow = self.policy.slow.of_message(payload);
        Delivery { room: self.room.clone(), position, slow, chain: Chain::default(), at: given.now, text }
    }
}

/// What a bus is to keep of a room with this policy.
pub(super) fn keep(policy: &Policy) -> Keep {
    let super::rules::History { messages_max, bytes_max, age_max } = policy.history;
    Keep { messages_max, bytes_max, age_max, ids_age: age_max.max(policy.ids_for) }
}

/// Undoes a coming that nobody was told of.
pub(super) fn undo(joined: Joined) -> Leave {
    Leave { room: joined.room, user: joined.user }
}

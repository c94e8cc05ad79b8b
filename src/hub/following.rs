//! A room whose numbers the bus gives, at the home shard of one instance: what is heard of it goes on only as the next
//! number, and what is missing is read.

use std::sync::Arc;
use std::time::Duration;

use super::{
    arena::Key,
    bus::{BusMessage, BusPublish, BusRead, BusRequest, Keep, Stands, one},
    code::Code,
    crowd::Crowd,
    early::Early,
    home::{Given, Home},
    letter::{Delivery, Join, Publish, Publisher, RoomLetter},
    position::{Chain, Digest, Epoch, Last, Position},
    unnumbered::Unnumbered,
};
use crate::shard::Instant;

/// How long a hole may last until it is read: other instances' messages come over another way than what is told of one's own.
const HOLE_PATIENCE: Duration = Duration::from_millis(100);
/// When a question is asked again that was not answered.
const READ_WITHIN: Duration = Duration::from_secs(2);
/// When a question is asked again that could not be asked, or was refused; longer when it is so again, and part of it chance.
const READ_AGAIN: Duration = Duration::from_millis(200);
const READ_AGAIN_DOUBLINGS: u32 = 5;
/// Messages that wait until whoever says them has come in.
const HELD_MAX: usize = 256;
/// With so many questions one asks who is there: what a channel brought of that may have been missed.
const USERS_EVERY: u32 = 6;
/// Who comes in with one answer: each may bring what it missed, and while the bus was slow thousands may have come.
const ADMITTED_MAX: usize = 256;
/// How long a join waits for the bus.
const JOIN_WITHIN: Duration = Duration::from_secs(4);

/// What a home keeps of a room that it follows.
#[derive(Debug)]
pub(super) struct Following {
    early: Early,
    /// Of the last message, and all before it.
    digest: Digest,
    /// The highest number that was heard of.
    known: u64,
    /// Who comes in once the room was read.
    waiting: Vec<(usize, Join)>,
    waiting_due: Instant,
    /// What those say meanwhile.
    held: Vec<(usize, Publish)>,
    /// A question is under way, for messages from here on.
    reading: Option<u64>,
    /// Counts questions.
    number: u32,
    /// When the room is read, or read again.
    read_due: Instant,
    /// Questions that were refused, one after the other.
    refused: u32,
    /// Something was heard since that does not join on: it is asked again.
    is_in_doubt: bool,
    /// Questions that went to the bus: with the first it has begun to listen to the room.
    asked: u32,
    /// The next question from then on asks who is there.
    users_due: Instant,
    /// The question under way does.
    asks_users: bool,
    pub(super) crowd: Crowd,
}

impl Following {
    /// Questions are counted from this number on: not those of a home that the room had before. The bus may listen to the
    /// room still.
    pub(super) fn new(number: u32, was_heard: bool) -> Self {
        Self {
            early: Early::default(),
            digest: Digest::NONE,
            known: 0,
            waiting: Vec::new(),
            waiting_due: Instant::NEVER,
            held: Vec::new(),
            refused: 0,
            reading: None,
            number,
            read_due: Instant::NEVER,
            is_in_doubt: false,
            asked: was_heard.into(),
            users_due: Instant::NEVER,
            asks_users: false,
            crowd: Crowd::default(),
        }
    }

    pub(super) fn is_unused(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the bus listens to the room, and is to be told when nobody here is in it any more.
    pub(super) const fn is_heard(&self) -> bool {
        self.asked > 0
    }

    /// The bus listens to it already: it could not be told that nobody was in it.
    pub(super) const fn keep_heard(&mut self) {
        self.asked = self.asked.saturating_add(1);
    }

    pub(super) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// The next question from then on asks who is there.
    pub(super) fn ask_for_users(&mut self, from: Instant) {
        self.users_due = self.users_due.min(from);
    }

    /// There is no answer to the question under way.
    const fn give_up_reading(&mut self) {
        if self.asks_users {
            self.users_due = Instant::START;
        }
        self.reading = None;
    }

    fn read_again(&mut self, given: &mut Given<'_>) {
        let wait = READ_AGAIN.saturating_mul(1 << self.refused.saturating_sub(1).min(READ_AGAIN_DOUBLINGS));
        self.read_due = given.now + wait.mul_f64(0.5 + given.rng.f64());
    }

    pub(super) fn due(&self) -> Instant {
        self.read_due.min(self.waiting_due).min(self.crowd.due())
    }
}

impl Home {
    /// Somebody comes in: at once where all that it takes is known here.
    pub(super) fn join_following(&mut self, given: &mut Given<'_>, from: usize, join: Join) {
        if !self.has_to_read_for(&join) {
            return self.admit(given, from, join);
        }
        if !given.is_bus_up {
            return refuse(given, from, join.ticket);
        }
        let Some(following) = &mut self.following else { return };
        following.waiting.push((from, join));
        following.waiting_due = following.waiting_due.min(given.now + JOIN_WITHIN);
        self.read(given);
    }

    /// Whether more has to be known: where the room is, what the joiner missed, or what it says it has heard.
    fn has_to_read_for(&self, join: &Join) -> bool {
        let at = self.position();
        at.epoch == Epoch::NONE
            || join.recover.is_some_and(|last| {
                last.epoch == at.epoch && (last.seq > at.seq || self.history().between(last.seq, at.seq).is_none())
            })
    }

    /// A message goes to the bus for its number.
    pub(super) fn publish_following(&mut self, given: &mut Given<'_>, from: usize, publish: &Publish) {
        if let Publisher::Member { user, .. } = &publish.from
            && !self.has_member(user)
            && let Some(following) = &mut self.following
        {
            // It follows a join that is under way.
            if following.held.len() < HELD_MAX {
                return following.held.push((from, publish.clone()));
            }
            given.counts.refuse(Code::Overloaded);
            let refused = RoomLetter::Refused { ticket: publish.ticket, code: Code::Overloaded };
            return given.post.send(from, refused);
        }
        publish_on_bus(given, from, publish, self.last(), self.keep());
    }

    /// Whether a user is about to come in.
    pub(super) fn awaits(&self, user: &str) -> bool {
        let waiting = self.following.iter().flat_map(|following| &following.waiting);
        waiting.map(|(_, join)| &join.user).any(|joiner| **joiner == *user)
    }

    /// What was said by those who have come in goes out; nobody waits for what others said.
    fn release_held(&mut self, given: &mut Given<'_>) {
        let held = self.following.as_mut().map(|following| std::mem::take(&mut following.held)).unwrap_or_default();
        for (from, publish) in held {
            let Publisher::Member { user, .. } = &publish.from else { continue };
            if self.has_member(user) || self.awaits(user) {
                self.publish_following(given, from, &publish);
            } else {
                refuse(given, from, publish.ticket);
            }
        }
    }

    /// The last message that is known here.
    fn last(&self) -> Last {
        let digest = self.following.as_ref().map_or(Digest::NONE, |following| following.digest);
        Last { position: self.position(), digest }
    }

    /// Whether the message of this number is known here, and another one.
    fn is_other(&self, seq: u64, digest: Digest) -> bool {
        let last = self.last();
        if seq == last.position.seq {
            return last.position.epoch != Epoch::NONE && last.digest != digest;
        }
        let kept = self.history().from(seq, seq);
        kept.first().is_some_and(|kept| kept.position.seq == seq && kept.chain.after != digest)
    }

    /// Asks how the room stands, unless a question is under way.
    fn read(&mut self, given: &mut Given<'_>) {
        let (seen, keep, room) = (self.last(), self.keep(), self.room().clone());
        let at = seen.position;
        let Some(following) = &mut self.following else { return };
        if !given.is_bus_up {
            following.give_up_reading();
            following.read_due = Instant::NEVER;
            return;
        }
        if following.reading.is_some() {
            return;
        }
        let is_known = at.epoch != Epoch::NONE;
        let own = if is_known { at.seq.saturating_add(1) } else { u64::MAX };
        let wanted = following.waiting.iter().filter_map(|(_, join)| join.recover);
        let wanted = wanted.filter(|last| !is_known || last.epoch == at.epoch).map(|last| last.seq.saturating_add(1));
        let from = wanted.chain([own]).min().unwrap_or(own);
        let is_turn = following.number % USERS_EVERY == 0;
        let is_due = following.users_due <= given.now;
        if is_due {
            following.users_due = Instant::NEVER;
        }
        let wants_users = !is_known || is_due || is_turn;
        following.asks_users = wants_users;
        following.is_in_doubt = false;
        following.crowd.begin_reading();
        // What was heard of until now the answer has, if it was true.
        following.known = at.seq;
        following.reading = Some(from);
        following.number = following.number.wrapping_add(1);
        following.asked = following.asked.saturating_add(1);
        following.read_due = given.now + READ_WITHIN;
        let epoch = Epoch::random(given.rng);
        let (number, bytes_max) = (following.number, given.recovery_bytes_max);
        let read = BusRead { room, number, wants_users, seen, epoch, from, bytes_max, keep };
        given.post.ask(BusRequest::Read(Box::new(read)));
    }

    /// The question did not go.
    pub(super) fn read_dropped(&mut self, given: &mut Given<'_>, number: u32) {
        if let Some(following) = self.following.as_mut().filter(|following| following.number == number) {
            following.asked = following.asked.saturating_sub(1);
            following.give_up_reading();
            following.read_again(given);
        }
    }

    /// The question was not answered: nobody comes in for now.
    pub(super) fn unread(&mut self, given: &mut Given<'_>, number: u32) {
        let Some(following) = &mut self.following else { return };
        if following.reading.is_some() && following.number == number {
            following.give_up_reading();
            following.refused = following.refused.saturating_add(1);
            following.read_again(given);
            self.refuse_waiting(given);
        }
    }

    fn refuse_waiting(&mut self, given: &mut Given<'_>) {
        let Some(following) = &mut self.following else { return };
        following.waiting_due = Instant::NEVER;
        for (from, join) in std::mem::take(&mut following.waiting) {
            refuse(given, from, join.ticket);
        }
        self.release_held(given);
    }

    /// The bus has come back, and may have lost something: it is asked. Or it has gone.
    pub(super) fn bus_is_up(&mut self, given: &mut Given<'_>) {
        if let Some(following) = &mut self.following {
            following.give_up_reading();
            following.ask_for_users(given.now);
            following.refused = 0;
        }
        if !given.is_bus_up {
            self.refuse_waiting(given);
        }
        self.read(given);
        self.tell_all_here(given);
    }

    /// Time has passed.
    pub(super) fn time_following(&mut self, given: &mut Given<'_>) {
        let Some(following) = &mut self.following else { return };
        if following.waiting_due <= given.now {
            self.refuse_waiting(given);
        }
        let Some(following) = &mut self.following else { return };
        if following.read_due <= given.now {
            following.give_up_reading();
            self.read(given);
        }
        self.tell_here(given);
    }

    /// A message of some instance.
    pub(super) fn hear(&mut self, given: &mut Given<'_>, heard: &BusMessage) {
        let (at, position) = (self.position(), heard.position);
        if position.epoch != at.epoch {
            let message = self.delivery(given, position, heard.chain, &heard.message);
            if let Some(following) = &mut self.following {
                following.early.keep(message);
            }
            if at.epoch != Epoch::NONE {
                // What comes over a channel may be late: only what is read says which epoch it is.
                self.read(given);
            }
            return;
        }
        if position.seq <= at.seq {
            if self.is_other(position.seq, heard.chain.after) {
                self.doubt(given);
            }
            return;
        }
        let message = self.delivery(given, position, heard.chain, &heard.message);
        if let Some(following) = &mut self.following {
            following.early.keep(message);
        }
        self.hear_of(given, position);
    }

    /// A number was given.
    pub(super) fn hear_of(&mut self, given: &mut Given<'_>, position: Position) {
        let at = self.position();
        if at.epoch == Epoch::NONE {
            return;
        }
        if position.epoch != at.epoch {
            return self.read(given);
        }
        if let Some(following) = &mut self.following {
            following.known = following.known.max(position.seq);
        }
        self.go_on(given);
    }

    /// What is next goes to the members; a hole is read when it lasts.
    fn go_on(&mut self, given: &mut Given<'_>) {
        loop {
            let at = self.position();
            let Some(following) = &mut self.following else { return };
            let Some(message) = following.early.take_next(at) else {
                if following.known > at.seq && following.reading.is_none() {
                    following.read_due = following.read_due.min(given.now + HOLE_PATIENCE);
                }
                return;
            };
            if message.chain.before != following.digest {
                return self.doubt(given);
            }
            self.follow(given, &message);
        }
    }

    /// The next message.
    fn follow(&mut self, given: &mut Given<'_>, message: &Arc<Delivery>) {
        if let Some(following) = &mut self.following {
            following.digest = message.chain.after;
        }
        self.advance(given, message);
    }

    /// What was heard does not join on to what is known here: a bus that had lost some of this gave numbers again, or it is not
    /// from the bus at all. The bus is asked, which compares.
    fn doubt(&mut self, given: &mut Given<'_>) {
        if let Some(following) = &mut self.following {
            // The question under way may not know it.
            following.is_in_doubt = true;
        }
        self.read(given);
    }

    /// How the room stands on the bus.
    pub(super) fn hear_standing(&mut self, given: &mut Given<'_>, mut stands: Stands) {
        let Some(following) = &mut self.following else { return };
        let Some(from) = following.reading.filter(|_| following.number == stands.number) else { return };
        following.reading = None;
        following.refused = 0;
        following.asks_users = false;
        following.read_due = given.now + given.position_every;
        if let Some(users) = &stands.users {
            self.hear_crowd(given, users);
        }
        let (end, epoch) = (stands.last, stands.last.position.epoch);
        let is_new = epoch != self.position().epoch;
        if is_new && !self.is_occupied() && stands.messages.last().is_some_and(|(seq, ..)| *seq < end.position.seq) {
            // It is more than one recovery may bring: nobody here is to have the first part of it.
            stands.messages.clear();
        }
        if is_new {
            let before = |(seq, chain, _): &(u64, Chain, _)| Last {
                position: Position { epoch, seq: seq.saturating_sub(1) },
                digest: chain.before,
            };
            self.begin_at(given, stands.messages.first().map_or(end, before));
        }
        let at = self.position();
        let is_other = |(seq, chain, _): &(u64, Chain, _)| *seq <= at.seq && self.is_other(*seq, chain.after);
        if stands.messages.iter().any(is_other) || (end.position == at && self.is_other(at.seq, end.digest)) {
            return self.doubt(given);
        }
        let Some(following) = &mut self.following else { return };
        following.known = following.known.max(end.position.seq);
        self.take_read(given, &stands.messages, is_new);
        let last = stands.messages.last().map(|(seq, ..)| *seq);
        if last.is_none() {
            self.go_on(given);
            if self.position().seq < end.position.seq && from <= end.position.seq {
                self.lose(given, end.position.seq, end.digest);
            }
        }
        self.go_on(given);
        self.admit_waiting(given, from);
        let is_too_much = last.is_some_and(|last| last < end.position.seq) && self.position().seq < end.position.seq;
        if is_too_much || self.following.as_ref().is_some_and(|following| following.is_in_doubt) {
            self.read(given);
        }
    }

    /// Messages that were read, in order: the members go on with those that they lack, and older ones are remembered.
    fn take_read(&mut self, given: &mut Given<'_>, messages: &[(u64, Chain, Unnumbered)], is_new: bool) {
        let at = self.position();
        let mut missed = Vec::new();
        for (seq, chain, message) in messages {
            let message = self.delivery(given, Position { epoch: at.epoch, seq: *seq }, *chain, message);
            if *seq <= at.seq {
                missed.push(message);
                continue;
            }
            let is_behind_hole = |home: &Self| *seq > home.position().seq.saturating_add(1);
            if is_behind_hole(self) {
                // What was before it is not there any more, unless it came meanwhile.
                self.go_on(given);
                if is_behind_hole(self) {
                    self.lose(given, seq.saturating_sub(1), chain.before);
                }
            }
            if *seq <= self.position().seq {
                continue;
            }
            if self.last().digest == chain.before {
                given.counts.repaired = given.counts.repaired.saturating_add(u64::from(!is_new));
                self.follow(given, &message);
            } else {
                self.lose(given, *seq, chain.after);
            }
        }
        self.remember_before(given.now, missed);
    }

    /// Those whose question is answered come in, so many at once; others ask anew.
    fn admit_waiting(&mut self, given: &mut Given<'_>, from: u64) {
        let at = self.position();
        let Some(following) = &mut self.following else { return };
        following.waiting_due = Instant::NEVER;
        let waiting = std::mem::take(&mut following.waiting);
        let (mut later, mut admitted) = (Vec::new(), 0_usize);
        for (shard, join) in waiting {
            let is_answered =
                join.recover.is_none_or(|last| last.epoch != at.epoch || last.seq.saturating_add(1) >= from);
            if is_answered && admitted < ADMITTED_MAX {
                admitted = admitted.saturating_add(1);
                self.admit(given, shard, join);
            } else {
                later.push((shard, join));
            }
        }
        if later.is_empty() {
            return self.release_held(given);
        }
        if let Some(following) = &mut self.following {
            following.waiting = later;
            following.waiting_due = given.now + JOIN_WITHIN;
        }
        self.release_held(given);
        self.read(given);
    }

    /// The numbers begin anew: what was remembered is worth nothing.
    fn begin_at(&mut self, given: &mut Given<'_>, at: Last) {
        let is_first = self.position().epoch == Epoch::NONE;
        if let Some(following) = &mut self.following {
            following.known = at.position.seq;
            following.digest = at.digest;
        }
        self.set_position(at.position);
        if !is_first {
            one(&mut given.counts.begun);
            self.tell_position(given);
            // What has lost messages may have lost who is here.
            self.tell_again(given);
        }
    }

    /// What is up to this number is lost.
    fn lose(&mut self, given: &mut Given<'_>, seq: u64, digest: Digest) {
        if let Some(following) = &mut self.following {
            following.digest = digest;
        }
        one(&mut given.counts.lost);
        self.set_position(Position { seq, ..self.position() });
        self.tell_position(given);
    }

    fn delivery(&self, given: &Given<'_>, position: Position, chain: Chain, message: &Unnumbered) -> Arc<Delivery> {
        let slow = self.policy().slow.of_message(message.payload());
        let (room, text) = (self.room().clone(), message.number(position));
        Arc::new(Delivery { room, position, slow, chain, at: given.now, text })
    }
}

/// The bus is away.
fn refuse(given: &mut Given<'_>, from: usize, ticket: Key) {
    let code = Code::DependencyUnavailable;
    given.counts.refuse(code);
    given.post.send(from, RoomLetter::Refused { ticket, code });
}

/// Has the bus give a number to a message.
pub(super) fn publish_on_bus(given: &mut Given<'_>, from: usize, publish: &Publish, seen: Last, keep: Keep) {
    let Publish { room, ticket, from: speaker, id, payload } = publish;
    if !given.is_bus_up {
        return refuse(given, from, *ticket);
    }
    let message = match speaker {
        Publisher::Member { user, .. } => given.encoder.unnumbered_message(given.unix_ms, room.as_str(), user, payload),
        Publisher::Service { kind, .. } => given.encoder.unnumbered_push(given.unix_ms, kind, room.as_str(), payload),
    };
    let id = id.as_deref().map(|id| (speaker.scope().into(), id.into()));
    let epoch = Epoch::random(given.rng);
    let publish = BusPublish { room: room.clone(), asker: (from, *ticket), seen, epoch, id, message, keep };
    one(&mut given.counts.publishes);
    given.post.ask(BusRequest::Publish(Box::new(publish)));
}

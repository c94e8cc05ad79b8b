//! Letters from other shards' hubs are read here, and those that did not go are made good.

use super::{Code, Hub, KEPT_INTERVAL, RoomLetter, home, timers::Timer};
use crate::shard::Instant;

/// Letters that are sent again at once, for each shard that there is: about as many as its ring takes.
pub(super) const KEPT_PER_SHARD: usize = 512;

impl<W> Hub<W> {
    /// Another shard's hub has written. Letters of one shard come in the order in which it wrote them.
    pub fn handle_letter(&mut self, now: Instant, from: usize, letter: RoomLetter) {
        self.of_letters(|hub| {
            hub.read(now, from, letter);
            hub.settle(now);
        });
    }

    pub(super) fn read(&mut self, now: Instant, from: usize, letter: RoomLetter) {
        match letter {
            RoomLetter::Join(join) => self.handle_join(now, from, *join),
            RoomLetter::Leave(leave) => self.handle_leave(now, from, &leave),
            RoomLetter::Publish(publish) => self.handle_publish(now, from, &publish),
            RoomLetter::AskPresence { room, ticket } => self.handle_ask_presence(now, from, &room, ticket),
            RoomLetter::Look { room, ticket } => self.handle_look(from, &room, ticket),
            RoomLetter::Pull(pull) => self.handle_pull(now, from, &pull),
            RoomLetter::Joined(joined) => self.handle_joined(now, *joined),
            RoomLetter::Refused { ticket, code } => self.handle_refused(now, ticket, code),
            RoomLetter::Published { ticket, position } => self.handle_published(ticket, position),
            RoomLetter::Deliver(message) => self.handle_deliver(now, message),
            RoomLetter::Tell(tell) => self.handle_tell(&tell.room, &tell.text),
            RoomLetter::Position { room, position } => self.handle_position(now, &room, position),
            RoomLetter::Pulled(pulled) => self.handle_pulled(now, *pulled),
            RoomLetter::PresenceIs(presence) => self.handle_presence(&presence),
            RoomLetter::LookIs { ticket, seen } => self.handle_seen(ticket, seen),
            RoomLetter::User { user, is_here } => self.handle_user(now, from, user, is_here),
            RoomLetter::AskUsers => self.handle_ask_users(from),
            RoomLetter::SeenIs(seen) => self.handle_seen_is(*seen),
            RoomLetter::ToUser(to_user) => self.handle_to_user(now, from, &to_user),
            RoomLetter::Kick { ticket, user } => self.handle_kick(now, from, ticket, &user),
            RoomLetter::UserCount { user, count } => self.handle_user_count(from, user, count),
            RoomLetter::UserMax { user, max } => self.handle_user_max(now, &user, max),
            RoomLetter::UserTold { ticket, count } => self.handle_user_told(ticket, Some(count)),
        }
    }

    /// A letter did not go: the ring was full.
    pub fn letter_dropped(&mut self, now: Instant, to: usize, letter: RoomLetter) {
        match letter {
            RoomLetter::Join(join) => self.handle_refused(now, join.ticket, Code::Overloaded),
            RoomLetter::Publish(publish) => self.handle_refused(now, publish.ticket, Code::Overloaded),
            RoomLetter::AskPresence { ticket, .. } | RoomLetter::Look { ticket, .. } => {
                self.handle_refused(now, ticket, Code::Overloaded);
            }
            RoomLetter::ToUser(to_user) => self.handle_user_told(to_user.ticket, None),
            RoomLetter::Pull(pull) => self.pull_dropped(now, &pull),
            RoomLetter::Joined(joined) => {
                let ticket = joined.ticket;
                self.handle_leave(now, to, &home::undo(*joined));
                self.keep(now, to, RoomLetter::Refused { ticket, code: Code::Overloaded });
            }
            RoomLetter::Deliver(message) => self.missed(now, to, &message.room),
            RoomLetter::Position { room, .. } => self.missed(now, to, &room),
            RoomLetter::Pulled(pulled) => self.missed(now, to, &pulled.room),
            RoomLetter::User { user, .. } => self.user_unsaid(now, user),
            RoomLetter::Tell(tell) => self.untold(now, to, &tell),
            letter @ (RoomLetter::Leave(_)
            | RoomLetter::AskUsers
            | RoomLetter::Kick { .. }
            | RoomLetter::UserCount { .. }
            | RoomLetter::UserMax { .. }
            | RoomLetter::Refused { .. }
            | RoomLetter::Published { .. }
            | RoomLetter::PresenceIs(_)
            | RoomLetter::LookIs { .. }
            | RoomLetter::SeenIs(_)
            | RoomLetter::UserTold { .. }) => self.keep(now, to, letter),
        }
        self.settle(now);
    }

    /// Keeps a letter that has to go: no more of them than there are memberships and questions.
    fn keep(&mut self, now: Instant, to: usize, letter: RoomLetter) {
        self.kept.push_back((to, letter));
        self.arm_kept(now);
    }

    pub(super) fn arm_kept(&mut self, now: Instant) {
        let due = now + KEPT_INTERVAL;
        if self.kept_armed == Instant::NEVER {
            self.timers.set(Timer::Kept, &mut self.kept_armed, due);
        }
    }

    pub(super) fn send_kept(&mut self, now: Instant) {
        self.kept_armed = Instant::NEVER;
        let count = self.kept.len().min(KEPT_PER_SHARD.saturating_mul(self.shards));
        let mut letters = self.kept.drain(..count).collect();
        self.renew_counts(&mut letters);
        for (to, letter) in letters {
            self.post.send(to, letter);
        }
        self.say_unsaid(KEPT_PER_SHARD);
        if !self.kept.is_empty() || self.events.has_unsaid() {
            self.arm_kept(now);
        }
    }
}

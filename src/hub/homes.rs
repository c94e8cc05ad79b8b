//! The rooms at home on this shard: made, fed with letters, kept within bounds, and freed.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::{
    Code, Hub, RoomLetter,
    arena::{Arena, Key},
    bus::{BusAsker, BusRequest},
    following::{Following, publish_on_bus},
    history::Window,
    home::{Given, Home, keep},
    letter::{Join, Leave, Look, PresenceIs, Publish, Publisher, Pull, Tell},
    name::RoomName,
    position::{Epoch, Last},
    timers::{Timer, Timers},
};
use crate::shard::Instant;

/// Messages that rooms forget with each that comes, where a shard remembers too much: after a reload that is very much.
const FORGOTTEN_MAX: usize = 1024;

impl<W> Hub<W> {
    pub(super) fn handle_join(&mut self, now: Instant, from: usize, join: Join) {
        match self.home(&join.room, Some(&join.user)) {
            Ok(key) => drop(self.at_home(now, key, |home, given| home.join(given, from, join))),
            Err(code) => self.post.send(from, RoomLetter::Refused { ticket: join.ticket, code }),
        }
    }

    pub(super) fn handle_leave(&mut self, now: Instant, from: usize, leave: &Leave) {
        if let Some(&key) = self.home_names.get(&leave.room) {
            self.at_home(now, key, |home, given| home.leave(given, from, &leave.user));
        }
    }

    pub(super) fn handle_publish(&mut self, now: Instant, from: usize, publish: &Publish) {
        let ticket = publish.ticket;
        let home = match &publish.from {
            // Who is not in the room may have been, when this was sent.
            Publisher::Member { user, .. } => {
                let key = self.home_names.get(&publish.room).copied();
                let is_member =
                    |key: &Key| self.homes.get(*key).is_some_and(|home| home.has_member(user) || home.awaits(user));
                key.filter(is_member).ok_or(Code::NotJoined)
            }
            Publisher::Service { .. } if self.bus.is_some() => {
                let key = self.home_names.get(&publish.room).copied();
                if key.is_none() {
                    // Nobody here is in it: only the bus has to know.
                    return self.publish_unfollowed(now, from, publish);
                }
                key.ok_or(Code::NotJoined)
            }
            Publisher::Service { .. } => self.home(&publish.room, None),
        };
        match home {
            Ok(key) => {
                let seq = self.at_home(now, key, |home, given| home.publish(given, from, publish)).flatten();
                self.bound_history(now, key, seq);
            }
            Err(code) => self.post.send(from, RoomLetter::Refused { ticket, code }),
        }
    }

    fn publish_unfollowed(&mut self, now: Instant, from: usize, publish: &Publish) {
        let keep = keep(self.plan.rules.policy(publish.room.as_str()));
        publish_on_bus(&mut self.given(now).0, from, publish, Last::default(), keep);
    }

    pub(super) fn handle_ask_presence(&mut self, now: Instant, from: usize, room: &RoomName, ticket: Key) {
        if let Some(&key) = self.home_names.get(room) {
            self.at_home(now, key, |home, given| home.presence(given, from, ticket));
            return;
        }
        if self.bus.is_some() {
            return self.ask_bus_for(room, (from, ticket));
        }
        let nobody = PresenceIs { ticket, users: Vec::new(), total: 0 };
        self.post.send(from, RoomLetter::PresenceIs(Box::new(nobody)));
    }

    pub(super) fn handle_look(&mut self, from: usize, room: &RoomName, ticket: Key) {
        let home = self.home_names.get(room).and_then(|&key| self.homes.get(key));
        if home.is_none() && self.bus.is_some() {
            return self.ask_bus_for(room, (from, ticket));
        }
        let seen = home.map_or_else(Look::default, Home::look);
        self.post.send(from, RoomLetter::LookIs { ticket, seen });
    }

    /// Nobody here is in the room: only the bus knows it.
    fn ask_bus_for(&mut self, room: &RoomName, asker: BusAsker) {
        if self.has_bus() {
            self.post.ask(BusRequest::Look { room: room.clone(), asker });
        } else {
            let (shard, ticket) = asker;
            self.bus_counts.refuse(Code::DependencyUnavailable);
            self.post.send(shard, RoomLetter::Refused { ticket, code: Code::DependencyUnavailable });
        }
    }

    pub(super) fn handle_pull(&mut self, now: Instant, from: usize, pull: &Pull) {
        if let Some(&key) = self.home_names.get(&pull.room) {
            self.at_home(now, key, |home, given| home.pull(given, from, pull));
        }
    }

    /// A shard did not get what a room said.
    pub(super) fn missed(&mut self, now: Instant, shard: usize, room: &RoomName) {
        if let Some(&key) = self.home_names.get(room) {
            self.at_home(now, key, |home, given| home.missed(given.now, shard));
        }
    }

    pub(super) fn untold(&mut self, now: Instant, shard: usize, tell: &Tell) {
        if let Some(&key) = self.home_names.get(&tell.room) {
            self.at_home(now, key, |home, given| home.untold(given.now, shard, &tell.user));
        }
    }

    pub(super) fn handle_home_timeout(&mut self, now: Instant, key: Key) {
        if let Some(home) = self.homes.get_mut(key) {
            home.armed = Instant::NEVER;
        }
        self.follow_at_home(now, key, Home::handle_timeout);
    }

    /// A step of a room; afterwards it is freed if nobody needs it, or its timer set.
    pub(super) fn at_home<R>(
        &mut self,
        now: Instant,
        key: Key,
        step: impl FnOnce(&mut Home, &mut Given<'_>) -> R,
    ) -> Option<R> {
        let (mut given, homes, timers) = self.given(now);
        let home = homes.get_mut(key)?;
        let (before, was_occupied) = (home.history_bytes(), home.is_occupied());
        let result = step(home, &mut given);
        let (after, is_unused, due) = (home.history_bytes(), home.is_unused(), home.due());
        timers.set(Timer::Home(key), &mut home.armed, due);
        self.history_bytes = self.history_bytes.saturating_sub(before).saturating_add(after);
        self.note_home(now, key, was_occupied);
        if is_unused {
            self.free_home(key);
        }
        Some(result)
    }

    /// What a step of a room is given, the rooms, and their timers.
    fn given(&mut self, now: Instant) -> (Given<'_>, &mut Arena<Home>, &mut Timers) {
        let given = Given {
            now,
            unix_ms: (self.to_unix_ms)(now),
            secret: self.secret,
            recovery_bytes_max: self.plan.limits.outbox_bytes_max / 2,
            position_every: self.plan.limits.position_every,
            is_bus_up: self.bus.as_ref().is_some_and(|bus| bus.is_up),
            rng: &mut self.rng,
            encoder: &mut self.encoder,
            counts: &mut self.bus_counts,
            post: &mut self.post,
        };
        (given, &mut self.homes, &mut self.timers)
    }

    /// The room, made if there is none and its maker may.
    fn home(&mut self, room: &RoomName, maker: Option<&Arc<str>>) -> Result<Key, Code> {
        if let Some(&key) = self.home_names.get(room) {
            return Ok(key);
        }
        if self.homes.len() >= self.plan.limits.rooms_max {
            return Err(Code::Overloaded);
        }
        if let Some(maker) = maker {
            let max = self.plan.limits.rooms_per_user_max;
            let made = self.makers.entry(Arc::clone(maker)).or_default();
            if *made as usize >= max {
                return Err(Code::TooManyRooms);
            }
            *made = made.saturating_add(1);
        }
        let policy = self.plan.rules.policy(room.as_str()).clone();
        let (shards, maker) = (self.shards, maker.map(Arc::clone));
        let home = if let Some(bus) = &mut self.bus {
            let was_heard = bus.forgotten.remove(room);
            Home::following(room.clone(), policy, Following::new(self.rng.u32(..), was_heard), shards, maker)
        } else {
            let window = Window::new(&self.ids);
            Home::new(room.clone(), policy, Epoch::random(&mut self.rng), shards, maker, window)
        };
        let key = self.homes.insert(home);
        self.home_names.insert(room.clone(), key);
        Ok(key)
    }

    fn free_home(&mut self, key: Key) {
        let Some(mut home) = self.homes.remove(key) else { return };
        self.timers.set(Timer::Home(key), &mut home.armed, Instant::NEVER);
        self.home_names.remove(home.room());
        self.history_bytes = self.history_bytes.saturating_sub(home.history_bytes());
        if home.following.as_ref().is_some_and(Following::is_heard) {
            self.post.ask(BusRequest::Forget(home.room().clone()));
        }
        if let Some(maker) = home.maker()
            && let Entry::Occupied(mut made) = self.makers.entry(Arc::clone(maker))
        {
            *made.get_mut() = made.get().saturating_sub(1);
            if *made.get() == 0 {
                made.remove();
            }
        }
        self.forget_stale();
    }

    /// Notes a new message; past what a shard may remember the oldest of all rooms are forgotten.
    pub(super) fn bound_history(&mut self, now: Instant, key: Key, seq: Option<u64>) {
        self.history_order.extend(seq.map(|seq| (key, seq)));
        for _ in 0..FORGOTTEN_MAX {
            if self.history_bytes <= self.plan.limits.history_bytes_max {
                break;
            }
            let Some((key, seq)) = self.history_order.pop_front() else { break };
            self.at_home(now, key, |home, _| home.forget(seq));
        }
        self.forget_stale();
    }

    /// What rooms have forgotten by themselves is still in the order: not for ever.
    fn forget_stale(&mut self) {
        let homes = &self.homes;
        self.history_order.forget(|(key, seq)| homes.get(key).is_some_and(|home| home.remembers(seq)));
    }
}

//! What is done for each room or socket of a shard, some of them in each turn: another plan, a bus that comes or goes, an
//! instance that is gone, a drain.
//!
//! A walk goes by places. Who comes meanwhile is new already, or is met by the walk all the same: what a walk does may be done
//! twice.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::{
    Effect, Hub, State,
    arena::{Arena, Key},
    bus::{SLICE, SLICE_INTERVAL},
    home::Home,
    name::home_of,
    rules::Permits,
    timers::Timer,
};
use crate::shard::Instant;

/// Places that a walk looks at in a turn: what it does at each takes a fraction of a microsecond.
pub(super) const PLACES_PER_TURN: u32 = 256;

/// Places that a walk may pass over in a turn because nobody is there any more: a few nanoseconds each.
const EMPTY_PLACES_PER_TURN: u32 = 16_384;

/// How far a walk is; none where nobody walks.
#[derive(Debug, Default)]
pub(super) struct Walk(Option<u32>);

impl Walk {
    /// From the first place on, also where it is under way.
    pub(super) const fn begin(&mut self) {
        self.0 = Some(0);
    }

    pub(super) const fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    /// The next so many; places where nobody is are passed over, as far as a turn goes.
    pub(super) fn next_met<T>(&mut self, of: &Arena<T>, count: u32) -> Vec<Key> {
        let (mut met, mut looked_at) = (Vec::new(), 0);
        while self.is_under_way() && looked_at < EMPTY_PLACES_PER_TURN {
            let missing = count.saturating_sub(u32::try_from(met.len()).unwrap_or(u32::MAX));
            if missing == 0 {
                break;
            }
            met.extend(self.next(of, missing));
            looked_at = looked_at.saturating_add(missing);
        }
        met
    }

    /// The next to be met, at so many places.
    pub(super) fn next<T>(&mut self, of: &Arena<T>, places: u32) -> Vec<Key> {
        let Some(from) = self.0 else { return Vec::new() };
        let to = from.saturating_add(places);
        self.0 = Some(to).filter(|&to| to < of.places());
        of.keys_at(from..to)
    }
}

/// All walks of a shard.
#[derive(Debug, Default)]
pub(super) struct Walks {
    /// Rooms at home here take the plan's rules.
    policies: Walk,
    /// Sockets are given what the plan permits.
    permits: Walk,
    /// Users who have sockets here are told to these homes.
    users: Walk,
    homes_of_users: BTreeSet<usize>,
    /// Sockets whose times the plan has made earlier.
    times: Walk,
    /// Sockets are told that the instance goes.
    pub(super) drain: Walk,
    /// Rooms at home here are told that the bus has come or gone. This one waits between its slices.
    pub(super) bus: Walk,
    /// Instances that are gone, and how far the first of them is.
    gone: VecDeque<Arc<str>>,
    gone_at: Walk,
}

impl Walks {
    /// Whether one goes on in the next turn.
    pub(super) fn are_under_way(&self) -> bool {
        let walks = [&self.policies, &self.permits, &self.users, &self.times, &self.drain];
        walks.iter().any(|walk| walk.is_under_way()) || !self.gone.is_empty()
    }

    /// Whether what clients say has to wait: it would be judged by the plan before.
    pub(super) const fn hold_clients(&self) -> bool {
        self.policies.is_under_way() || self.permits.is_under_way()
    }
}

impl<W> Hub<W> {
    /// Goes on with all walks.
    pub(super) fn walk_on(&mut self, now: Instant) {
        self.walk_policies(now);
        self.walk_users();
        self.walk_times();
        self.walk_drain();
        self.walk_gone(now);
    }

    pub(super) fn begin_policies(&mut self, now: Instant) {
        self.walks.policies.begin();
        self.walk_policies(now);
    }

    fn walk_policies(&mut self, now: Instant) {
        for key in self.walks.policies.next(&self.homes, PLACES_PER_TURN) {
            let Some(home) = self.homes.get(key) else { continue };
            let (room, is_occupied) = (home.room().clone(), home.is_occupied());
            let policy = self.plan.rules.policy(room.as_str()).clone();
            self.at_home(now, key, |home, given| home.adopt(given.now, policy));
            if is_occupied {
                // Where events of rooms are wanted that were not before. Said twice it is told once.
                self.note_room(now, room, true);
            }
        }
    }

    /// What sockets may do has changed: they are to be given other permits by [`Hub::renew_permits`], in this turn and those
    /// that follow, for as long as [`Hub::has_old_permits`]. What clients say waits for it.
    pub fn expire_permits(&mut self) {
        self.walks.permits.begin();
    }

    /// Whether some sockets still have the permits of the plan before.
    pub fn has_old_permits(&self) -> bool {
        self.walks.permits.is_under_way()
    }

    /// Gives the next of the sockets their permits, for what they do from now on: nobody leaves a room for it.
    pub fn renew_permits(&mut self, permits: impl Fn(&W) -> Option<Permits>) {
        for key in self.walks.permits.next(&self.sockets.all, PLACES_PER_TURN) {
            if let Some(socket) = self.sockets.all.get_mut(key)
                && let Some(permits) = permits(&socket.handle)
            {
                socket.permits = permits;
            }
        }
    }

    /// Users who have sockets here and are at home on this shard, or on any, are told to their homes.
    pub(super) fn begin_users(&mut self, home: Option<usize>) {
        let homes = home.map_or(0..self.shards, |home| home..home.saturating_add(1));
        self.walks.homes_of_users.extend(homes);
        self.walks.users.begin();
        self.walk_users();
    }

    fn walk_users(&mut self) {
        for key in self.walks.users.next(&self.sockets.all, PLACES_PER_TURN) {
            let Some(user) = self.sockets.all.get(key).and_then(|socket| socket.user.clone()) else { continue };
            // With each of the user's sockets: those before may have gone when the walk comes to the last. Told once.
            if self.walks.homes_of_users.contains(&home_of(&user, self.shards)) {
                self.note_user(&user);
            }
        }
        if !self.walks.users.is_under_way() {
            self.walks.homes_of_users.clear();
        }
    }

    pub(super) fn begin_times(&mut self) {
        self.walks.times.begin();
        self.walk_times();
    }

    fn walk_times(&mut self) {
        for key in self.walks.times.next(&self.sockets.all, PLACES_PER_TURN) {
            if self.sockets.all.get(key).is_some_and(|socket| socket.state != State::Closing) {
                self.effects.push_back(Effect::Due(key));
            }
        }
    }

    /// The bus has come or gone: rooms are told in slices, for what would go beyond the way to it comes back.
    pub(super) fn begin_bus(&mut self, now: Instant) {
        self.walks.bus.begin();
        self.walk_bus(now);
    }

    pub(super) fn walk_bus(&mut self, now: Instant) {
        for key in self.walks.bus.next_met(&self.homes, SLICE) {
            self.follow_at_home(now, key, Home::bus_is_up);
        }
        if let Some(bus) = &mut self.bus {
            let due = if self.walks.bus.is_under_way() { now + SLICE_INTERVAL } else { Instant::NEVER };
            self.timers.set(Timer::Bus, &mut bus.walk_armed, due);
        }
    }

    /// An instance is gone.
    pub(super) fn begin_gone(&mut self, now: Instant, node: Arc<str>) {
        if !self.walks.gone.contains(&node) {
            self.walks.gone.push_back(node);
        }
        if !self.walks.gone_at.is_under_way() {
            self.walk_gone(now);
        }
    }

    fn walk_gone(&mut self, now: Instant) {
        let Some(node) = self.walks.gone.front().map(Arc::clone) else { return };
        if !self.walks.gone_at.is_under_way() {
            self.walks.gone_at.begin();
        }
        for key in self.walks.gone_at.next(&self.homes, PLACES_PER_TURN) {
            if self.homes.get(key).is_some_and(|home| home.knows_node(&node)) {
                self.at_home(now, key, |home, given| home.node_is_gone(given, &node));
            }
        }
        if !self.walks.gone_at.is_under_way() {
            self.walks.gone.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_passes_over_places_where_nobody_is() {
        let mut arena = Arena::default();
        let keys: Vec<Key> = (0..40_000).map(|n| arena.insert(n)).collect();
        let stays = |place: usize| place % 10_000 == 9_999 || place < 300;
        for (place, key) in keys.iter().enumerate().filter(|(place, _)| !stays(*place)) {
            assert_eq!(arena.remove(*key), Some(place));
        }
        let mut walk = Walk::default();
        assert!(walk.next_met(&arena, 128).is_empty(), "nobody walks");
        walk.begin();
        let mut met = Vec::new();
        let mut slices = Vec::new();
        while walk.is_under_way() {
            let slice = walk.next_met(&arena, 128);
            slices.push(slice.len());
            met.extend(slice);
        }
        assert_eq!(
            met,
            keys.iter().enumerate().filter(|(place, _)| stays(*place)).map(|(_, key)| *key).collect::<Vec<_>>()
        );
        assert!(slices.len() <= 6 && slices.iter().all(|met| *met <= 128), "{slices:?}");
    }
}

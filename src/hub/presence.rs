//! Who is in a room, at its home: users with how many sockets each, and which shards they are on.
//!
//! Whether anybody is told of comings and goings is the room's rule; here it is only found out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::shard::Instant;

/// Departures that are kept though they were overtaken, beside one for each user.
const STALE_MAX: usize = 64;

/// A user in the room.
#[derive(Debug)]
struct User {
    name: Arc<str>,
    sockets: u32,
    /// On other instances. Without any sockets its going is not told yet.
    elsewhere: u32,
    /// When its going is told; means nothing while it has sockets.
    gone_at: Instant,
}

impl User {
    const fn is_there(&self) -> bool {
        self.sockets > 0 || self.elsewhere > 0
    }
}

/// The members of one room.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// In no order that means anything.
    users: Vec<User>,
    places: HashMap<Arc<str>, usize>,
    /// Sockets on each shard.
    shards: Box<[u32]>,
    connections: u32,
    /// Sockets on other instances.
    elsewhere: u32,
    /// Users without sockets.
    away: u32,
    /// Goings that are not told yet, the first first. What a user's own entry does not confirm was overtaken.
    departures: VecDeque<(Instant, Arc<str>)>,
}

/// What a coming or going changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The user was there already, or still is.
    None,
    /// The user came.
    Came,
    /// The user has gone.
    Went,
}

impl Members {
    pub(super) fn new(shards: usize) -> Self {
        Self { shards: vec![0; shards].into_boxed_slice(), ..Self::default() }
    }

    /// Users who are there.
    pub(super) fn users(&self) -> u32 {
        u32::try_from(self.users.len()).unwrap_or(u32::MAX).saturating_sub(self.away)
    }

    /// Their sockets.
    pub(super) fn connections(&self) -> u32 {
        self.connections.saturating_add(self.elsewhere)
    }

    /// Whether nobody is here and nobody's going has to be told.
    pub(super) fn is_empty(&self) -> bool {
        self.connections == 0 && self.away == 0
    }

    /// How many sockets a user has on this instance.
    pub(super) fn sockets_here(&self, user: &str) -> u32 {
        self.user(user).map_or(0, |user| user.sockets)
    }

    /// All users of this instance with their sockets here.
    pub(super) fn here(&self) -> Vec<(Arc<str>, u32)> {
        self.users_here().map(|(user, sockets)| (Arc::clone(user), sockets)).collect()
    }

    /// The same, to look at.
    pub(super) fn users_here(&self) -> impl Iterator<Item = (&Arc<str>, u32)> {
        self.users.iter().filter(|user| user.sockets > 0).map(|user| (&user.name, user.sockets))
    }

    /// A user has so many sockets on other instances. Its going is told at `gone_at`, or now if that is none.
    pub(super) fn set_elsewhere(&mut self, user: &Arc<str>, count: u32, gone_at: Option<Instant>) -> Change {
        let Some(&place) = self.places.get(user) else {
            if count == 0 {
                return Change::None;
            }
            self.elsewhere = self.elsewhere.saturating_add(count);
            self.places.insert(Arc::clone(user), self.users.len());
            let name = Arc::clone(user);
            self.users.push(User { name, sockets: 0, elsewhere: count, gone_at: Instant::NEVER });
            return Change::Came;
        };
        let Some(known) = self.users.get_mut(place) else { return Change::None };
        let was_there = known.is_there();
        self.elsewhere = self.elsewhere.saturating_sub(known.elsewhere).saturating_add(count);
        known.elsewhere = count;
        match (was_there, known.is_there()) {
            (false, true) => {
                self.away = self.away.saturating_sub(1);
                Change::None
            }
            (true, false) => self.depart(place, gone_at),
            _ => Change::None,
        }
    }

    /// A user has no sockets any more.
    fn depart(&mut self, place: usize, gone_at: Option<Instant>) -> Change {
        let Some(known) = self.users.get_mut(place) else { return Change::None };
        let Some(at) = gone_at else {
            self.remove(place);
            return Change::Went;
        };
        known.gone_at = at;
        self.away = self.away.saturating_add(1);
        self.departures.push_back((at, Arc::clone(&known.name)));
        self.forget_overtaken();
        Change::None
    }

    pub(super) fn has(&self, user: &str) -> bool {
        self.user(user).is_some_and(|user| user.sockets > 0)
    }

    /// Whether a user's coming was told, and its going was not.
    pub(super) fn is_known(&self, user: &str) -> bool {
        self.places.contains_key(user)
    }

    /// Shards with members, in order.
    pub(super) fn shards(&self) -> impl Iterator<Item = usize> {
        self.shards.iter().enumerate().filter(|&(_, &sockets)| sockets > 0).map(|(shard, _)| shard)
    }

    /// Some users with their sockets.
    pub(super) fn list(&self, max: usize) -> Vec<(Arc<str>, u32)> {
        let there = self.users.iter().filter(|user| user.is_there()).take(max);
        there.map(|user| (Arc::clone(&user.name), user.sockets.saturating_add(user.elsewhere))).collect()
    }

    /// One more socket of a user.
    pub(super) fn enter(&mut self, shard: usize, user: &Arc<str>) -> Change {
        if let Some(sockets) = self.shards.get_mut(shard) {
            *sockets = sockets.saturating_add(1);
        }
        self.connections = self.connections.saturating_add(1);
        if let Some(&place) = self.places.get(&**user)
            && let Some(known) = self.users.get_mut(place)
        {
            if !known.is_there() {
                self.away = self.away.saturating_sub(1);
            }
            known.sockets = known.sockets.saturating_add(1);
            return Change::None;
        }
        self.places.insert(Arc::clone(user), self.users.len());
        self.users.push(User { name: Arc::clone(user), sockets: 1, elsewhere: 0, gone_at: Instant::NEVER });
        Change::Came
    }

    /// One socket of a user less. Its going is told at `gone_at`, or now if that is none.
    pub(super) fn leave(&mut self, shard: usize, user: &str, gone_at: Option<Instant>) -> Change {
        let Some(&place) = self.places.get(user) else { return Change::None };
        let Some(known) = self.users.get_mut(place).filter(|known| known.sockets > 0) else { return Change::None };
        if let Some(sockets) = self.shards.get_mut(shard) {
            *sockets = sockets.saturating_sub(1);
        }
        self.connections = self.connections.saturating_sub(1);
        known.sockets = known.sockets.saturating_sub(1);
        if known.is_there() { Change::None } else { self.depart(place, gone_at) }
    }

    /// When the next going may have to be told.
    pub(super) fn next_departure(&self) -> Option<Instant> {
        self.departures.front().map(|&(at, _)| at)
    }

    /// A user whose time to come back is over.
    pub(super) fn departed(&mut self, now: Instant) -> Option<Arc<str>> {
        while self.departures.front().is_some_and(|&(at, _)| at <= now) {
            let (at, name) = self.departures.pop_front()?;
            if self.is_departure(at, &name)
                && let Some(&place) = self.places.get(&name)
            {
                self.away = self.away.saturating_sub(1);
                self.remove(place);
                return Some(name);
            }
        }
        None
    }

    fn user(&self, name: &str) -> Option<&User> {
        self.users.get(*self.places.get(name)?)
    }

    fn is_departure(&self, at: Instant, name: &str) -> bool {
        self.user(name).is_some_and(|user| !user.is_there() && user.gone_at == at)
    }

    fn remove(&mut self, place: usize) {
        if place >= self.users.len() {
            return;
        }
        let user = self.users.swap_remove(place);
        self.places.remove(&user.name);
        if let Some(moved) = self.users.get(place)
            && let Some(known) = self.places.get_mut(&moved.name)
        {
            *known = place;
        }
    }

    /// Who comes and goes without end would fill the queue.
    fn forget_overtaken(&mut self) {
        if self.departures.len() > self.users.len().saturating_mul(2).saturating_add(STALE_MAX) {
            let mut departures = std::mem::take(&mut self.departures);
            departures.retain(|(at, name)| self.is_departure(*at, name));
            self.departures = departures;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(text: &str) -> Arc<str> {
        Arc::from(text)
    }

    #[test]
    fn members_counts_users_and_connections_sockets() {
        let mut members = Members::new(4);
        assert_eq!(members.enter(1, &name("a")), Change::Came);
        assert_eq!(members.enter(3, &name("a")), Change::None);
        assert_eq!(members.enter(3, &name("b")), Change::Came);
        assert_eq!((members.users(), members.connections()), (2, 3));
        assert_eq!(members.shards().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(members.leave(1, "a", None), Change::None);
        assert_eq!(members.leave(3, "a", None), Change::Went);
        assert_eq!(members.leave(3, "a", None), Change::None);
        assert_eq!((members.users(), members.connections()), (1, 1));
        assert_eq!(members.list(9), [(name("b"), 1)]);
        assert_eq!(members.leave(3, "b", None), Change::Went);
        assert!(members.is_empty() && members.places.is_empty());
    }

    #[test]
    fn who_is_on_another_instance_counts_and_keeps_no_room_open() {
        let mut members = Members::new(1);
        members.enter(0, &name("a"));
        assert_eq!(members.set_elsewhere(&name("a"), 2, None), Change::None);
        assert_eq!(members.set_elsewhere(&name("b"), 1, None), Change::Came);
        assert_eq!((members.users(), members.connections(), members.has("b")), (2, 4, false));
        assert_eq!(members.list(9), [(name("a"), 3), (name("b"), 1)]);
        assert_eq!(members.here(), [(name("a"), 1)]);
        assert_eq!(members.leave(0, "a", None), Change::None);
        assert!(members.is_empty());
        assert_eq!(members.set_elsewhere(&name("a"), 0, None), Change::Went);
        assert_eq!(members.set_elsewhere(&name("b"), 0, Some(Instant::START)), Change::None);
        assert_eq!((members.users(), members.connections(), members.is_empty()), (0, 0, false));
        assert_eq!(members.set_elsewhere(&name("b"), 1, None), Change::None);
        assert_eq!((members.users(), members.connections(), members.departed(Instant::NEVER)), (1, 1, None));
    }

    #[test]
    fn who_is_back_in_time_was_never_gone() {
        let (start, grace) = (Instant::START, Duration::from_secs(10));
        let mut members = Members::new(1);
        members.enter(0, &name("a"));
        assert_eq!(members.leave(0, "a", Some(start + grace)), Change::None);
        assert_eq!((members.users(), members.has("a"), members.is_empty()), (0, false, false));
        assert_eq!(members.enter(0, &name("a")), Change::None);
        assert_eq!((members.users(), members.departed(start + grace)), (1, None));
        let later = start + grace * 2;
        members.leave(0, "a", Some(later));
        assert_eq!(members.next_departure(), Some(later));
        assert_eq!((members.departed(later), members.departed(later)), (Some(name("a")), None));
        assert!(members.is_empty());
    }

    #[test]
    fn coming_and_going_without_end_holds_little() {
        let mut members = Members::new(1);
        for second in 0..10_000 {
            members.enter(0, &name("a"));
            members.leave(0, "a", Some(Instant::START + Duration::from_secs(second)));
        }
        assert!(members.departures.len() <= STALE_MAX + 3, "{}", members.departures.len());
        assert_eq!(members.departed(Instant::NEVER), Some(name("a")));
    }
}

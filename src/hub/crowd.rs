//! Who is in a room on other instances, at its home, and what others are told of who is here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::{
    bus::{BusHere, BusRequest, BusUsers, Elsewhere, Present},
    following::Following,
    home::{Given, Home},
};
use crate::shard::Instant;

/// Comings and goings are told together: members are known everywhere within a second.
const TELL_INTERVAL: Duration = Duration::from_millis(200);

/// What a home knows of other instances, and they of it.
#[derive(Debug)]
pub(super) struct Crowd {
    /// Sockets by instance and user.
    nodes: BTreeMap<Arc<str>, HashMap<Arc<str>, u32>>,
    /// Whose sockets have changed here.
    changed: Vec<Arc<str>>,
    /// The others are told of all who are here.
    is_whole: bool,
    tell_due: Instant,
    /// Who changed on other instances since the room's question went out: the answer may be older.
    touched: HashSet<(Arc<str>, Arc<str>)>,
    /// Whose sockets here have changed and may not be in that answer.
    touched_here: HashSet<Arc<str>>,
    /// All who are here were told since.
    was_told: bool,
}

impl Default for Crowd {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            changed: Vec::new(),
            // What the room's last home here has told may not have been taken back.
            is_whole: true,
            tell_due: Instant::NEVER,
            touched: HashSet::new(),
            touched_here: HashSet::new(),
            was_told: false,
        }
    }
}

impl Crowd {
    pub(super) const fn due(&self) -> Instant {
        self.tell_due
    }

    pub(super) fn begin_reading(&mut self) {
        self.touched = HashSet::new();
        self.touched_here = self.changed.iter().map(Arc::clone).collect();
        self.was_told = false;
    }

    /// Sets a user's sockets on an instance; returns those on all others together.
    fn set(&mut self, node: &Arc<str>, user: &Arc<str>, sockets: u32) -> u32 {
        if sockets > 0 {
            self.nodes.entry(Arc::clone(node)).or_default().insert(Arc::clone(user), sockets);
        } else if let Some(users) = self.nodes.get_mut(node) {
            users.remove(user);
            if users.is_empty() {
                self.nodes.remove(node);
            }
        }
        self.nodes.values().filter_map(|users| users.get(user)).fold(0, |sum, sockets| sum.saturating_add(*sockets))
    }

    /// A user's sockets on an instance.
    fn sockets_of(&self, node: &str, user: &str) -> u32 {
        self.nodes.get(node).and_then(|users| users.get(user)).copied().unwrap_or_default()
    }

    /// Who is known to be on an instance and is not there, in order.
    fn missing(&self, node: &str, is_there: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        let known = self.nodes.get(node).into_iter().flat_map(HashMap::keys);
        let mut missing: Vec<Arc<str>> = known.filter(|user| !is_there(user)).map(Arc::clone).collect();
        missing.sort_unstable();
        missing
    }

    /// What is different where these are all who are on other instances: instance, user and sockets, in order.
    fn differences(&self, others: &[Present], is_early: bool) -> Vec<(Arc<str>, Arc<str>, u32)> {
        let mut found: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
        for Present { node, user, .. } in others {
            found.entry(node).or_default().insert(user);
        }
        let mut different = Vec::new();
        for node in self.nodes.keys() {
            let users = found.get(&**node);
            if is_early && users.is_none() {
                continue;
            }
            let gone = self.missing(node, |user| users.is_some_and(|users| users.contains(user)));
            different.extend(gone.into_iter().map(|user| (Arc::clone(node), user, 0)));
        }
        // Most are as they were before.
        let others = others.iter().filter(|one| self.sockets_of(&one.node, &one.user) != one.sockets);
        different.extend(others.map(|one| (Arc::clone(&one.node), Arc::clone(&one.user), one.sockets)));
        different.sort_by(|one, other| (&one.0, &one.1).cmp(&(&other.0, &other.1)));
        different
    }
}

impl Home {
    /// A user's sockets here have changed.
    pub(super) fn here_changed(&mut self, given: &Given<'_>, user: &Arc<str>) {
        if let Some(following) = &mut self.following {
            let is_reading = following.is_reading();
            let crowd = &mut following.crowd;
            if is_reading {
                crowd.touched_here.insert(Arc::clone(user));
            }
            crowd.changed.push(Arc::clone(user));
            crowd.tell_due = crowd.tell_due.min(given.now + TELL_INTERVAL);
        }
    }

    /// The others did not hear it: they are told of all who are here.
    pub(super) fn tell_again(&mut self, given: &Given<'_>) {
        if let Some(following) = &mut self.following {
            following.crowd.is_whole = true;
            following.crowd.tell_due = following.crowd.tell_due.min(given.now + TELL_INTERVAL);
        }
    }

    /// The bus has come: it may have forgotten who is here.
    pub(super) fn tell_all_here(&mut self, given: &mut Given<'_>) {
        if let Some(following) = &mut self.following {
            following.crowd.is_whole = true;
            following.crowd.tell_due = given.now;
        }
        self.tell_here(given);
    }

    /// Tells the others who is here, if it is time.
    pub(super) fn tell_here(&mut self, given: &mut Given<'_>) {
        let Some(following) = &mut self.following else { return };
        let crowd = &mut following.crowd;
        if crowd.tell_due > given.now {
            return;
        }
        crowd.tell_due = Instant::NEVER;
        let mut changed = std::mem::take(&mut crowd.changed);
        if !given.is_bus_up {
            // All are told when it comes.
            return;
        }
        let is_whole = std::mem::take(&mut crowd.is_whole);
        crowd.was_told |= is_whole;
        let users = if is_whole {
            self.members().here()
        } else {
            changed.sort_unstable();
            changed.dedup();
            let sockets = |user: Arc<str>| (self.members().sockets_here(&user), user);
            changed.into_iter().map(sockets).map(|(sockets, user)| (user, sockets)).collect()
        };
        let (room, keep) = (self.room().clone(), self.keep());
        given.post.ask(BusRequest::Here(Box::new(BusHere { room, is_whole, users, keep })));
    }

    /// Another instance says who is there.
    pub(super) fn hear_elsewhere(&mut self, given: &mut Given<'_>, heard: &Elsewhere) {
        let Some(following) = &mut self.following else { return };
        let gone = if heard.is_whole {
            let there: HashSet<&str> = heard.users.iter().map(|(user, _)| &**user).collect();
            following.crowd.missing(&heard.node, |user| there.contains(user))
        } else {
            Vec::new()
        };
        let gone = gone.into_iter().map(|user| (user, 0));
        for (user, sockets) in gone.chain(heard.users.iter().cloned()) {
            let Some(following) = &mut self.following else { return };
            if following.is_reading() {
                following.crowd.touched.insert((Arc::clone(&heard.node), Arc::clone(&user)));
            }
            self.set_on(given, &heard.node, &user, sockets);
        }
    }

    /// A user has so many sockets on an instance.
    fn set_on(&mut self, given: &mut Given<'_>, node: &Arc<str>, user: &Arc<str>, sockets: u32) {
        let Some(following) = &mut self.following else { return };
        let elsewhere = following.crowd.set(node, user, sockets);
        self.set_elsewhere(given, user, elsewhere);
    }

    /// Whether users of an instance are known to be in the room.
    pub(super) fn knows_node(&self, node: &str) -> bool {
        self.following.as_ref().is_some_and(|following| following.crowd.nodes.contains_key(node))
    }

    /// An instance whose users are in the room is gone, as far as one can see: should it live after all, the next question
    /// shows it.
    pub(super) fn node_is_gone(&mut self, given: &mut Given<'_>, node: &Arc<str>) {
        let Some(following) = &mut self.following else { return };
        following.ask_for_users(given.now);
        let nobody = Elsewhere { room: self.room().clone(), node: Arc::clone(node), is_whole: true, users: Vec::new() };
        self.hear_elsewhere(given, &nobody);
    }

    /// Who is in the room, as it was when the room was read.
    pub(super) fn hear_crowd(&mut self, given: &mut Given<'_>, users: &BusUsers) {
        let Some(following) = &mut self.following else { return };
        let is_early = !users.early_for.is_zero();
        if is_early {
            following.ask_for_users(given.now + users.early_for);
        }
        let touched = std::mem::take(&mut following.crowd.touched);
        for (node, user, sockets) in following.crowd.differences(&users.others, is_early) {
            let both = (node, user);
            if !touched.contains(&both) {
                self.set_on(given, &both.0, &both.1, sockets);
            }
        }
        if let Some(here) = &users.here
            && !self.is_told(here)
        {
            self.tell_again(given);
        }
    }

    /// Whether what others find of who is here is right, or was told since it was asked for.
    fn is_told(&self, found: &[(Arc<str>, u32)]) -> bool {
        let Some(Following { crowd, .. }) = &self.following else { return true };
        if crowd.is_whole || crowd.was_told {
            return true;
        }
        let is_settled = |user: &str| !crowd.touched_here.contains(user);
        let mut named: HashSet<&str> = HashSet::with_capacity(found.len());
        for (user, sockets) in found.iter().filter(|(user, _)| is_settled(user)) {
            if self.members().sockets_here(user) != *sockets {
                return false;
            }
            named.insert(user);
        }
        named.len() == self.members().users_here().filter(|(user, _)| is_settled(user)).count()
    }
}

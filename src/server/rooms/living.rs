//! Which instances live, by their leases, and who of those that a room's key names is there.
//!
//! A lease holds the number under which its instance tells who is in its rooms. An instance whose lease has ended, or lost its
//! number, takes the next number and tells everything again. So what was told under another number than the lease's is not so
//! any more, whoever sees it and whenever.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{LEASE, Rooms, names, names::Names};
use crate::{
    bus::redis::{Link, Outage, RedisFailure},
    hub::{
        bus::{BusAnswer, BusUsers, Elsewhere, Present},
        name::RoomName,
    },
    server::letter::ToShard,
    shard::clock,
};

/// Other instances whose users are known here; past it others are not believed.
const NODES_MAX: usize = 1024;
/// Instances of whose users nothing is known here yet, and whose leases one read looks at.
const UNKNOWN_MAX: usize = 64;
/// Instances that one look takes for gone: all rooms are told of each.
const GONE_MAX: usize = 16;
/// Fields that one read takes out of a room's key.
const CLEANED_MAX: usize = 256;
/// Fields of a room's key that are read, and somewhat more; as `read.lua` has it.
pub(super) const FIELDS_MAX: usize = 131_072;
/// What the lease of an instance holds that has ended in peace.
const LEFT: &str = "left";
/// What a room's key says of a user: `<node> <user>`, `<number> <sockets>`.
pub(super) struct Field {
    pub(super) field: String,
    pub(super) value: String,
}

impl Field {
    fn parts(&self) -> Option<(&str, &str, &str, u32)> {
        let (node, user) = self.field.split_once(' ')?;
        let (number, sockets) = self.value.split_once(' ')?;
        Some((node, user, number, sockets.parse().ok()?))
    }
}

impl Rooms {
    /// This instance lives on. If others may have taken it for gone it takes a new number, and tells everything again.
    pub(super) async fn renew_lease(&self, link: &mut Link, connection: u64) -> Result<(), RedisFailure> {
        if self.lifecycle.is_leaving() {
            return Ok(());
        }
        let number = self.state.with(|state| state.told_as).to_string();
        let before: Option<String> = match link.ask(lease(&self.names.node, &number).arg("GET")).await {
            // Something else was put there; the next number takes its place.
            Err(RedisFailure::Refused(error)) if error.code() == Some("WRONGTYPE") => None,
            before => before?,
        };
        if before.is_some_and(|before| before == number) {
            return Ok(());
        }
        let next = self.state.with(|state| {
            // A new connection has a new number by itself.
            (state.number == connection && state.told_as.to_string() == number).then(|| {
                state.told_as += 1;
                // The others may be as late as this one.
                state.since = clock::now();
                state.told_as.to_string()
            })
        });
        let Some(next) = next else { return Ok(()) };
        link.ask::<()>(&lease(&self.names.node, &next)).await?;
        if let Some(count) = self.state.with(|state| state.lost.add(clock::now(), 1)) {
            tracing::warn!(count, "Redis had lost that this instance lives: the others are told of its users again");
        }
        if self.state.with(|state| state.is_up) {
            self.way.0.broadcast(|| ToShard::Bus(true));
        }
        Ok(())
    }

    /// This instance ends: nobody has to wait for its lease.
    pub(super) async fn end_lease(&self, link: &mut Link) -> Result<(), RedisFailure> {
        link.ask(&lease(&self.names.node, LEFT)).await
    }

    /// For how long others may still have to come back to this Redis, as this instance has a short while ago.
    fn early_for(&self) -> Duration {
        self.state.with(|state| LEASE.saturating_sub(clock::now().since(state.since)))
    }

    /// Looks whether the instances live of whose users is known here; those of one that does not are gone.
    pub(super) async fn look_for_nodes(&self, link: &mut Link) -> Result<(), RedisFailure> {
        let nodes: Vec<Arc<str>> = self.state.with(|state| state.nodes.iter().map(Arc::clone).collect());
        let mut gone: Vec<Arc<str>> = Vec::new();
        let leases = leases_of(link, &nodes).await?;
        for (node, lease) in nodes.into_iter().zip(leases) {
            if gone.len() >= GONE_MAX {
                break;
            }
            let has_left = lease.as_deref() == Some(LEFT);
            if !has_left && (lease.is_some() || !self.early_for().is_zero()) {
                continue;
            }
            if !self.state.with(|state| state.nodes.remove(&node)) {
                continue;
            }
            if has_left {
                tracing::info!(node = &*node, "an instance has ended, and its users have left their rooms");
            } else {
                gone.push(Arc::clone(&node));
            }
            for shard in 0..self.way.1 {
                self.answer(shard, BusAnswer::Gone(Arc::clone(&node)));
            }
        }
        if !gone.is_empty() {
            let nodes = gone.join(" ");
            tracing::warn!(nodes, count = gone.len(), "an instance is gone, and its users have left their rooms");
        }
        Ok(())
    }

    /// Whether what an instance says of its users is believed; then its lease is looked at from now on.
    pub(super) fn believes(&self, elsewhere: &Elsewhere) -> bool {
        let node = &elsewhere.node;
        let is_believed = names::is_node(node)
            && self.state.with(|state| {
                if elsewhere.users.is_empty() || state.nodes.contains(node) {
                    return true;
                }
                let has_space = state.nodes.len() < NODES_MAX;
                if has_space {
                    state.nodes.insert(Arc::clone(node));
                }
                has_space
            });
        if !is_believed {
            self.doubt(1);
        }
        is_believed
    }

    fn doubt(&self, count: usize) {
        let told = self.state.with(|state| state.doubted.add(clock::now(), count as u64));
        if let Some(count) = told {
            tracing::warn!(
                count,
                "users are named of what is no instance, or of too many: who else writes to this Redis?"
            );
        }
    }

    /// Who is in a room, on instances that live, as far as they were told under the number that the instance has now. What is
    /// not so any more is taken out, some of it with each read.
    pub(super) async fn there(
        &self,
        link: &mut Link,
        room: &RoomName,
        fields: &[Field],
    ) -> Result<BusUsers, RedisFailure> {
        let early_for = self.early_for();
        let own = self.state.with(|state| state.told_as.to_string());
        let leases = self.leases(link, fields, &own).await?;
        let (mut others, mut here, mut stale) = (Vec::new(), Vec::new(), Vec::new());
        for field in fields {
            let Some((node, user, number, sockets)) = field.parts() else {
                stale.push(field);
                continue;
            };
            match leases.get(node) {
                Some(lease) if lease.as_deref() != Some(number) => stale.push(field),
                Some(_) if node == self.names.node => here.push((user.into(), sockets)),
                Some(_) => others.push(Present { node: node.into(), user: user.into(), sockets }),
                None if names::is_node(node) => {}
                None => stale.push(field),
            }
        }
        if early_for.is_zero() && !stale.is_empty() {
            let arguments: Vec<&str> =
                stale.iter().take(CLEANED_MAX).flat_map(|field| [&*field.field, &*field.value]).collect();
            link.run_loaded::<i64>(&self.clean, &[&self.names.here(room)], &arguments).await?;
        }
        let is_all = fields.len() < FIELDS_MAX;
        Ok(BusUsers { others, here: is_all.then_some(here), early_for })
    }

    /// The leases of instances that have told of users: all of those that are known, and some more.
    async fn leases(
        &self,
        link: &mut Link,
        fields: &[Field],
        own: &str,
    ) -> Result<BTreeMap<String, Option<String>>, RedisFailure> {
        let nodes: BTreeSet<&str> = fields.iter().filter_map(|field| Some(field.parts()?.0)).collect();
        let nodes: Vec<&str> = nodes.into_iter().filter(|node| names::is_node(node)).collect();
        let is_own = |node: &&str| **node == *self.names.node;
        let has_own = nodes.iter().any(is_own).then(|| (self.names.node.clone(), Some(own.to_owned())));
        let (known, unknown): (Vec<&str>, Vec<&str>) = self
            .state
            .with(|state| nodes.into_iter().filter(|node| !is_own(node)).partition(|node| state.nodes.contains(*node)));
        let asked: Vec<&str> = known.into_iter().chain(unknown.into_iter().take(UNKNOWN_MAX)).collect();
        let leases = leases_of(link, &asked).await?;
        Ok(asked.into_iter().map(str::to_owned).zip(leases).chain(has_own).collect())
    }

    /// The leases of these instances are looked at from now on, as far as there is space.
    pub(super) fn watch(&self, users: &mut BusUsers) {
        let before = users.others.len();
        self.state.with(|state| {
            users.others.retain(|present| {
                if state.nodes.len() < NODES_MAX {
                    state.nodes.insert(Arc::clone(&present.node));
                }
                state.nodes.contains(&present.node)
            });
        });
        self.doubt(before - users.others.len());
    }
}

/// What the leases of these instances hold, in one question: a cluster's nodes are each asked for theirs.
async fn leases_of(link: &mut Link, nodes: &[impl AsRef<str>]) -> Result<Vec<Option<String>>, RedisFailure> {
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<String> = nodes.iter().map(|node| Names::lease(node.as_ref())).collect();
    let leases: Vec<Option<Vec<u8>>> = link.ask(redis::cmd("MGET").arg(keys)).await?;
    if leases.len() != nodes.len() {
        // Whose they are nobody can say.
        return Err(RedisFailure::Away(Outage::Broken));
    }
    let text = |lease: Vec<u8>| String::from_utf8_lossy(&lease).into_owned();
    Ok(leases.into_iter().map(|lease| lease.map(text)).collect())
}

/// The command that says that an instance lives, and under which number it tells.
pub(super) fn lease(node: &str, number: &str) -> redis::Cmd {
    let mut lease = redis::cmd("SET");
    lease.arg(Names::lease(node)).arg(number).arg("PX").arg(LEASE.as_millis().to_string());
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_none_says_nothing_of_anybody() {
        let parts = |field: &str, value: &str| {
            let (field, value) = (field.to_owned(), value.to_owned());
            Field { field, value }
                .parts()
                .map(|(node, user, number, sockets)| format!("{node}|{user}|{number}|{sockets}"))
        };
        assert_eq!(parts("n_1 a b", "3 2"), Some("n_1|a b|3|2".into()));
        for (field, value) in [("n_1", "3 2"), ("n_1 a", "3"), ("n_1 a", "3 x"), ("n_1 a", "3 -1"), ("", "")] {
            assert_eq!(parts(field, value), None, "{field} {value}");
        }
    }
}

//! What instances share, as Redis does it: numbers, a log for each room, known ids, and a state that it may go back to.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::super::super::{
    bus::{BusHere, BusMessage, BusPublish, BusRead, BusUsers, Present, Stands},
    name::RoomName,
    position::{Chain, Digest, Epoch, Last, Position},
    unnumbered::Unnumbered,
};

/// What is kept of a room.
#[derive(Clone, Default)]
struct Kept {
    position: Position,
    digest: Digest,
    /// The server that had it last.
    server: u32,
    log: VecDeque<(u64, Chain, Unnumbered)>,
    ids: BTreeMap<(Box<str>, Box<str>), Position>,
    /// By instance and user: over which of its connections it was told, and sockets.
    here: BTreeMap<(usize, Arc<str>), (u32, u32)>,
    /// All that was said in this epoch.
    said: BTreeMap<u64, String>,
}

/// All rooms, on one server.
#[derive(Clone, Default)]
pub(super) struct Store {
    rooms: BTreeMap<String, Kept>,
    server: u32,
}

impl Store {
    /// A replica with this state takes over, if those who ask see that it is another one.
    pub(super) fn take_over(&mut self, replica: &Self, is_seen: bool) {
        let server = self.server + u32::from(is_seen);
        *self = Self { rooms: replica.rooms.clone(), server };
    }

    /// Numbers a message; what goes to all instances, if it is new.
    pub(super) fn publish(&mut self, salt: u64, publish: &BusPublish) -> (Position, Option<BusMessage>) {
        let room = self.rooms.entry(publish.room.to_string()).or_default();
        if let Some(position) = publish.id.as_ref().and_then(|id| room.ids.get(id)) {
            return (*position, None);
        }
        room.begin(self.server, publish.seen, publish.epoch, false);
        room.position.seq += 1;
        let position = room.position;
        let chain = Chain { before: room.digest, after: digest(&format!("{} {salt}", room.digest)) };
        room.digest = chain.after;
        room.log.push_back((position.seq, chain, publish.message.clone()));
        while room.log.len() > publish.keep.messages_max {
            room.log.pop_front();
        }
        room.said.insert(position.seq, publish.message.number(position).to_string());
        if let Some(id) = &publish.id {
            room.ids.insert(id.clone(), position);
        }
        let (room, message) = (publish.room.clone(), publish.message.clone());
        (position, Some(BusMessage { room, position, chain, message }))
    }

    /// Who is there on an instance.
    pub(super) fn here(&mut self, node: usize, connection: u32, here: &BusHere) {
        let room = self.rooms.entry(here.room.to_string()).or_default();
        if here.is_whole {
            room.here.retain(|(of, _), _| *of != node);
        }
        for (user, sockets) in &here.users {
            room.here.insert((node, Arc::clone(user)), (connection, *sockets));
        }
        room.here.retain(|_, (_, sockets)| *sockets > 0);
    }

    /// Who is in a room, as far as it was told over the connection that the instance has now.
    pub(super) fn users(&self, room: &RoomName, connections: &[u32]) -> Vec<(usize, Present)> {
        let here = self.rooms.get(room.as_str()).into_iter().flat_map(|room| &room.here);
        let here = here.filter(|((node, _), (connection, _))| connections.get(*node) == Some(connection));
        here.map(|((node, user), (_, sockets))| {
            let user = Arc::clone(user);
            (*node, Present { node: format!("n{node}").into(), user, sockets: *sockets })
        })
        .collect()
    }

    pub(super) fn read(&mut self, node: usize, connections: &[u32], read: &BusRead) -> Stands {
        let room = self.rooms.entry(read.room.to_string()).or_default();
        room.begin(self.server, read.seen, read.epoch, true);
        let seen = read.seen.position.epoch;
        let from = if seen != Epoch::NONE && seen != room.position.epoch { 1 } else { read.from };
        let messages = match from {
            u64::MAX => room.log.back().cloned().into_iter().collect(),
            from => room.log.iter().filter(|(seq, ..)| *seq >= from).take(read.keep.messages_max).cloned().collect(),
        };
        let last = Last { position: room.position, digest: room.digest };
        let users = read.wants_users.then(|| {
            let (here, others): (Vec<_>, Vec<_>) =
                self.users(&read.room, connections).into_iter().partition(|(of, _)| *of == node);
            let here = here.into_iter().map(|(_, present)| (present.user, present.sockets)).collect();
            let others = others.into_iter().map(|(_, present)| present).collect();
            BusUsers { others, here: Some(here), early_for: Duration::ZERO }
        });
        Stands { room: read.room.clone(), number: read.number, last, messages, users }
    }

    pub(super) fn position(&self, room: &RoomName) -> Position {
        self.rooms.get(room.as_str()).map(|room| room.position).unwrap_or_default()
    }

    /// What has this number now.
    pub(super) fn said(&self, room: &str, seq: u64) -> Option<&str> {
        self.rooms.get(room)?.said.get(&seq).map(String::as_str)
    }
}

impl Kept {
    fn begin(&mut self, server: u32, seen: Last, epoch: Epoch, compares_log: bool) {
        let Last { position: Position { epoch: of_epoch, seq }, digest: seen } = seen;
        let next = || self.log.iter().find(|(of, ..)| *of == seq + 1).filter(|_| compares_log);
        let is_lost = self.position.epoch == of_epoch
            && match self.position.seq.cmp(&seq) {
                std::cmp::Ordering::Less => true,
                std::cmp::Ordering::Equal => self.digest != seen,
                std::cmp::Ordering::Greater => next().is_some_and(|(_, chain, _)| chain.before != seen),
            };
        let is_another = std::mem::replace(&mut self.server, server) != server;
        if self.position.epoch == Epoch::NONE || is_lost || is_another {
            self.position = Position { epoch, seq: 0 };
            self.digest = digest(&epoch.to_string());
            self.log.clear();
            self.said.clear();
        }
    }
}

fn digest(text: &str) -> Digest {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    Digest::parse(&format!("{:016x}", hasher.finish()))
}

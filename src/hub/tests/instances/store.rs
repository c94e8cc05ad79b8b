//! What instances share, as Redis does it: numbers, a log for each room, known ids, and a state that it may go back to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::super::super::{
    bus::{BusHere, BusMessage, BusPublish, BusRead, Present, Stands},
    name::RoomName,
    position::{Epoch, Position},
    unnumbered::Unnumbered,
};

/// What is kept of a room.
#[derive(Clone, Default)]
struct Kept {
    position: Position,
    log: VecDeque<(u64, Unnumbered)>,
    ids: BTreeMap<(Box<str>, Box<str>), Position>,
    /// By instance and user: over which of its connections it was told, and sockets.
    here: BTreeMap<(usize, Arc<str>), (u32, u32)>,
    /// All that was said in this epoch.
    said: BTreeMap<u64, String>,
}

/// All rooms.
#[derive(Clone, Default)]
pub(super) struct Store(BTreeMap<String, Kept>);

impl Store {
    /// Numbers a message; what goes to all instances, if it is new.
    pub(super) fn publish(&mut self, publish: &BusPublish) -> (Position, Option<BusMessage>) {
        let room = self.0.entry(publish.room.to_string()).or_default();
        if let Some(position) = publish.id.as_ref().and_then(|id| room.ids.get(id)) {
            return (*position, None);
        }
        room.begin(publish.seen, publish.epoch);
        room.position.seq += 1;
        let position = room.position;
        room.log.push_back((position.seq, publish.message.clone()));
        while room.log.len() > publish.keep.messages_max {
            room.log.pop_front();
        }
        room.said.insert(position.seq, publish.message.number(position).to_string());
        if let Some(id) = &publish.id {
            room.ids.insert(id.clone(), position);
        }
        (position, Some(BusMessage { room: publish.room.clone(), position, message: publish.message.clone() }))
    }

    /// Who is there on an instance.
    pub(super) fn here(&mut self, node: usize, connection: u32, here: &BusHere) {
        let room = self.0.entry(here.room.to_string()).or_default();
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
        let here = self.0.get(room.as_str()).into_iter().flat_map(|room| &room.here);
        let here = here.filter(|((node, _), (connection, _))| connections.get(*node) == Some(connection));
        here.map(|((node, user), (_, sockets))| {
            let user = Arc::clone(user);
            (*node, Present { node: format!("n{node}").into(), user, sockets: *sockets })
        })
        .collect()
    }

    pub(super) fn read(&mut self, node: usize, connections: &[u32], read: &BusRead) -> Stands {
        let room = self.0.entry(read.room.to_string()).or_default();
        room.begin(read.seen, read.epoch);
        let from = if read.seen.epoch != Epoch::NONE && read.seen.epoch != room.position.epoch { 1 } else { read.from };
        let messages = match from {
            u64::MAX => room.log.back().cloned().into_iter().collect(),
            from => room.log.iter().filter(|(seq, _)| *seq >= from).take(read.keep.messages_max).cloned().collect(),
        };
        let position = room.position;
        let others = || {
            self.users(&read.room, connections).into_iter().filter(|(of, _)| *of != node).map(|(_, present)| present)
        };
        let users = read.wants_users.then(|| others().collect());
        Stands { room: read.room.clone(), number: read.number, position, messages, users }
    }

    pub(super) fn position(&self, room: &RoomName) -> Position {
        self.0.get(room.as_str()).map(|room| room.position).unwrap_or_default()
    }

    /// What has this number now.
    pub(super) fn said(&self, room: &str, seq: u64) -> Option<&str> {
        self.0.get(room)?.said.get(&seq).map(String::as_str)
    }
}

impl Kept {
    fn begin(&mut self, seen: Position, epoch: Epoch) {
        let has_lost = self.position.epoch == seen.epoch && self.position.seq < seen.seq;
        if self.position.epoch == Epoch::NONE || has_lost {
            self.position = Position { epoch, seq: 0 };
            self.log.clear();
            self.said.clear();
        }
    }
}

//! What the channels of partitions bring, and which shard hears it.

use std::time::Duration;

use tokio::time::sleep;

use super::{DroppableToShard, Rooms};
use crate::{
    hub::{
        bus::{BusAnswer, BusMessage, Elsewhere},
        name::RoomName,
        position::{Chain, Digest, Epoch, Position},
        unnumbered::Unnumbered,
    },
    shard::clock,
};

/// How long messages wait for a shard that takes no letter; then it misses them until it takes one again.
const PATIENCE: Duration = Duration::from_millis(20);

impl Rooms {
    /// A message of some instance.
    pub(super) async fn hear(&self, text: &str) {
        let name = ["! ", "? "].iter().find_map(|mark| text.strip_prefix(mark)).unwrap_or(text).split(' ').next();
        // Most of a partition's rooms may have no members here.
        if !self.state.with(|state| name.is_some_and(|name| state.followed.contains(name))) {
            return;
        }
        let Some(mut answer) = read(text) else { return };
        if let BusAnswer::Elsewhere(elsewhere) = &answer
            && (*elsewhere.node == *self.names.node || !self.believes(elsewhere))
        {
            return;
        }
        let Some(room) = answer.room() else { return };
        let shard = room.home(self.way.1);
        let given_up_at = clock::now() + PATIENCE;
        loop {
            let Err(DroppableToShard::Bus(back)) = self.offer(shard, answer) else {
                return self.state.with(|state| state.stuck[shard] = false);
            };
            answer = *back;
            // One shard that stands still holds up the others once, not with each message.
            let is_stuck = self.state.with(|state| {
                state.stuck[shard] |= clock::now() >= given_up_at;
                state.stuck[shard]
            });
            if is_stuck {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// What a channel brings: a message of a room, who is there on an instance (`!`), or that all instances are to tell who is there,
/// for Redis has forgotten it (`?`).
fn read(text: &str) -> Option<BusAnswer> {
    if let Some(room) = text.strip_prefix("? ") {
        return RoomName::parse(room).map(BusAnswer::TellAgain);
    }
    match text.strip_prefix("! ") {
        Some(text) => read_elsewhere(text).map(|elsewhere| BusAnswer::Elsewhere(Box::new(elsewhere))),
        None => read_message(text).map(|message| BusAnswer::Heard(Box::new(message))),
    }
}

fn read_message(text: &str) -> Option<BusMessage> {
    let mut parts = text.splitn(6, ' ');
    let mut next = || parts.next();
    let room = RoomName::parse(next()?)?;
    let position = Position { epoch: Epoch::parse(next()?), seq: next()?.parse().ok()? };
    if position.epoch == Epoch::NONE {
        return None;
    }
    let chain = Chain { before: Digest::parse(next()?), after: Digest::parse(next()?) };
    Some(BusMessage { room, position, chain, message: Unnumbered::parse(next()?)? })
}

fn read_elsewhere(text: &str) -> Option<Elsewhere> {
    let mut parts = text.splitn(4, ' ');
    let (room, node, is_whole, users) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let users: Vec<(String, u32)> = serde_json::from_str(users).ok()?;
    let users = users.into_iter().map(|(user, sockets)| (user.into(), sockets)).collect();
    Some(Elsewhere { room: RoomName::parse(room)?, node: node.into(), is_whole: is_whole == "1", users })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_channel_brings_is_read_or_passed_over() {
        let kind = |text: &str| match read(text) {
            Some(BusAnswer::Heard(heard)) => format!("{} {}", heard.room, heard.position.seq),
            Some(BusAnswer::Elsewhere(there)) => format!("{} {} {:?}", there.node, there.is_whole, there.users),
            Some(BusAnswer::TellAgain(room)) => format!("again {room}"),
            other => format!("{other:?}"),
        };
        let epoch = Epoch::random(&mut fastrand::Rng::with_seed(1));
        let message = format!("public.sale {epoch} 7 00000000000000aa 00000000000000bb 6 0 0\n{{\"a\":1}}");
        assert_eq!(kind(&message), "public.sale 7");
        assert_eq!(kind(r#"! public.sale n_1 1 [["a b",2]]"#), r#"n_1 true [("a b", 2)]"#);
        assert_eq!(kind("? public.sale"), "again public.sale");
        let epochless = message.replace(&epoch.to_string(), "0");
        let cut = ["", "!", "?", "? ", "! ", "! public.sale n_1 1", "! public.sale n_1 1 [[\"a\",-1]]", "? no room"];
        for text in cut.into_iter().chain([&*epochless]) {
            assert_eq!(kind(text), "None", "{text}");
        }
    }
}

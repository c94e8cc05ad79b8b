//! What a thread does where every message is followed: it sends with an id until the message is taken, comes back with what it
//! has, and notes what each member heard or was told. Whether that is right is `follow`'s.

use std::cmp::Reverse;

use serde_json::Value;

use crate::hub::message::{self, Kind, Position, Stamp};
use crate::hub::state::State;

/// Who is refused for now waits this long at first, and at most, before it asks again; at random up to twice as long. A hub
/// closes a socket that is refused twenty times in ten seconds.
const AGAIN_MIN: u64 = 500_000_000;
const AGAIN_MAX: u64 = 2_000_000_000;
/// Names of epochs that a thread keeps.
const EPOCHS_MAX: usize = 1 << 20;

/// A message that has not been taken yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unanswered {
    slot: usize,
    intended_at: u64,
    refusals: u32,
}

/// What is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Again {
    /// By place.
    Join(usize),
    /// By number.
    Message(u64),
}

impl State {
    /// What asks for a place's room, with what it has of it.
    pub(crate) fn join(&self, slot: usize, room: &str) -> String {
        let position = self.tally.followed.position(self.slots.start + slot);
        match position.and_then(|at| Some((self.epochs.get(&at.epoch)?, at.seq))) {
            Some((epoch, seq)) => message::join_again(room, epoch, seq),
            None => message::join(room),
        }
    }

    /// A message has been sent, or will be when its sender is back.
    pub(crate) fn sent(&mut self, slot: usize, stamp: Stamp, is_sent: bool, now: u64) {
        self.unanswered.insert(stamp.number, Unanswered { slot, intended_at: stamp.intended_at, refusals: 0 });
        if !is_sent {
            self.send_again(stamp.number, now);
        }
    }

    /// What a socket has sent and has no answer to is sent on its next one.
    pub(crate) fn send_again_of(&mut self, slot: usize, now: u64) {
        let of_slot = self.unanswered.iter().filter(|(_, message)| message.slot == slot);
        let numbers = of_slot.map(|(number, _)| *number).collect::<Vec<_>>();
        self.again.extend(numbers.into_iter().map(|number| Reverse((now + AGAIN_MIN, Again::Message(number)))));
    }

    /// Plans to send a message again.
    pub(crate) fn send_again(&mut self, number: u64, now: u64) {
        let refusals = self.unanswered.get(&number).map_or(0, |message| message.refusals);
        self.ask_again(Again::Message(number), refusals, now);
    }

    fn ask_again(&mut self, again: Again, refusals: u32, now: u64) {
        let wait = (AGAIN_MIN << refusals.min(8)).min(AGAIN_MAX);
        self.again.push(Reverse((now + wait + self.random.u64(0..=wait), again)));
    }

    /// The text of what is sent again, and on whose socket; none if that is not needed any more.
    pub(crate) fn text_again(&self, again: Again) -> Option<(usize, String)> {
        match again {
            Again::Join(slot) => Some((slot, self.join(slot, self.setup.room(self.slots.start + slot)?))),
            Again::Message(number) => {
                let Unanswered { slot, intended_at, .. } = *self.unanswered.get(&number)?;
                let room = self.setup.room(self.slots.start + slot)?;
                let payload_bytes = self.traffic.as_ref().map_or(0, |traffic| traffic.payload_bytes);
                Some((slot, message::publish_with_id(room, Stamp { intended_at, number }, payload_bytes)))
            }
        }
    }

    /// Notes what a frame says about messages. Says whether there is nothing else to do about it.
    pub(crate) fn follow(&mut self, slot: usize, kind: &Kind, text: &[u8], now: u64) -> bool {
        let rooms = self.setup.groups.first().map_or(1, |group| group.rooms.len().max(1));
        if *kind == Kind::RoomMessage {
            if let (Some(stamp), Some(position)) = (Stamp::find(text), Position::find(text)) {
                self.hear(slot, position, stamp, rooms, false, now);
            }
            return true;
        }
        if *kind == Kind::Other {
            return false;
        }
        let Ok(frame) = serde_json::from_slice::<Value>(text) else { return false };
        let place = self.slots.start + slot;
        let position = self.position(&frame);
        let payload = &frame["payload"];
        match (kind, position) {
            (Kind::Joined, Some(position)) => {
                for message in payload["messages"].as_array().into_iter().flatten() {
                    let stamp = message["payload"].as_str().and_then(|text| Stamp::find(text.as_bytes()));
                    if let (Some(stamp), Some(position)) = (stamp, self.position(message)) {
                        self.hear(slot, position, stamp, rooms, true, now);
                    }
                }
                let room = (place % rooms) as u64;
                self.tally.followed.joined(place, room, position, payload["recovered"].as_bool(), now);
                false
            }
            (Kind::Ack, Some(position)) => {
                let number = frame["id"].as_str().and_then(message::number_of);
                if let Some((number, message)) = number.and_then(|number| self.unanswered.remove_entry(&number)) {
                    let stamp = Stamp { intended_at: message.intended_at, number };
                    self.tally.followed.taken(position, stamp, rooms as u64);
                }
                false
            }
            (Kind::Loss, Some(position)) => {
                self.tally.followed.told(place, position, now);
                false
            }
            (Kind::Loss, None) => {
                if let (Some(epoch), Some(from), Some(to)) =
                    (frame["epoch"].as_str(), payload["from"].as_u64(), payload["to"].as_u64())
                {
                    self.tally.followed.dropped(place, message::hash(epoch.as_bytes()), from, to, now);
                }
                false
            }
            (Kind::Error(code), _) => self.refused(slot, code, &frame, now),
            _ => false,
        }
    }

    fn position(&mut self, frame: &Value) -> Option<Position> {
        let (epoch, seq) = (frame["epoch"].as_str()?, frame["seq"].as_u64()?);
        let hash = message::hash(epoch.as_bytes());
        if self.epochs.len() < EPOCHS_MAX && !self.epochs.contains_key(&hash) {
            self.epochs.insert(hash, epoch.to_owned());
        }
        Some(Position { epoch: hash, seq })
    }

    fn hear(&mut self, slot: usize, position: Position, stamp: Stamp, rooms: usize, is_recovered: bool, now: u64) {
        let place = self.slots.start + slot;
        let is_new = self.tally.followed.heard(place, position, stamp, rooms as u64, is_recovered);
        // How late a message is that waited for its member says nothing about the hub.
        if is_new && !is_recovered {
            self.deliver(slot, stamp, now);
        }
    }

    /// Something was refused: if only for now, it is asked again.
    fn refused(&mut self, slot: usize, code: &str, frame: &Value, now: u64) -> bool {
        if frame["payload"]["retryable"] != true {
            return false;
        }
        let (again, refusals) = match frame["id"].as_str().and_then(message::number_of) {
            Some(number) => {
                let Some(message) = self.unanswered.get_mut(&number) else { return true };
                message.refusals += 1;
                (Again::Message(number), message.refusals - 1)
            }
            None => (Again::Join(slot), 0),
        };
        self.counts.refused += 1;
        *self.tally.refused.entry(code.to_owned()).or_default() += 1;
        self.ask_again(again, refusals, now);
        true
    }
}

//! What each member of a room has heard, and whether it is what it should be: every message once and in order, or else the
//! member was told that something is missing. Pure; what frames say is `message`'s, and what is done about it `following`'s.

use std::collections::BTreeMap;

use crate::hub::message::{Position, Stamp};

/// A member that is told of more losses than this has the rest counted as one.
const TELLS_MAX: usize = 256;

/// What a message takes in each thread that hears of it, and where all threads' are put together.
const MESSAGE_BYTES: u64 = 64;
const MESSAGE_TOGETHER_BYTES: u64 = 256;

/// What is noted of so many messages to members of so many rooms, at most; of what each has heard there are two bits, while
/// the threads' are put together in two places.
pub(crate) fn bytes(members: u64, messages: u64, rooms: u64, threads: u64) -> u64 {
    let heard = members.saturating_mul(messages / rooms.max(1)) / 8 * 4;
    let said = messages.saturating_mul(threads * MESSAGE_BYTES + MESSAGE_TOGETHER_BYTES);
    heard.saturating_add(said)
}

/// A member was told that what stands between two positions may be missing.
#[derive(Clone, Copy, Debug)]
struct Tell {
    at: u64,
    from: Position,
    to: Position,
}

impl Tell {
    /// Whether it tells of a message that was meant to leave at this time and stands there.
    fn covers(&self, intended_at: u64, position: Position) -> bool {
        let same_epoch = self.from.epoch == self.to.epoch;
        intended_at <= self.at
            && (!same_epoch || position.epoch == self.from.epoch)
            && (position.epoch != self.from.epoch || position.seq > self.from.seq)
            && (position.epoch != self.to.epoch || position.seq <= self.to.seq)
    }

    /// Whether it ends an epoch.
    fn ends(&self, epoch: u64) -> bool {
        self.from.epoch == epoch && self.to.epoch != epoch
    }
}

/// One member, over all its sockets.
#[derive(Clone, Debug)]
struct Member {
    room: u64,
    at: Position,
    /// Messages of its room that it has heard since it was told of a loss, a bit each; and those from before.
    heard: Vec<u64>,
    before: Vec<u64>,
    tells: Vec<Tell>,
}

impl Member {
    fn has(&self, turn: usize) -> bool {
        has(&self.heard, turn) || has(&self.before, turn)
    }

    fn tell(&mut self, at: u64, from: Position, to: Position) {
        if self.tells.len() < TELLS_MAX {
            self.tells.push(Tell { at, from, to });
        } else if let Some(last) = self.tells.last_mut() {
            (last.at, last.to) = (at, to);
        }
        self.at = to;
        self.before.resize(self.before.len().max(self.heard.len()), 0);
        for (before, heard) in self.before.iter_mut().zip(&self.heard) {
            *before |= heard;
        }
        self.heard.clear();
    }
}

fn has(bits: &[u64], nth: usize) -> bool {
    bits.get(nth / 64).is_some_and(|word| word >> (nth % 64) & 1 == 1)
}

/// What has become of all messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Each message for each member of its room.
    pub(crate) expected: u64,
    pub(crate) delivered: u64,
    /// Of these, those that came when the member was back.
    pub(crate) recovered: u64,
    /// Missing, and the member was told so.
    pub(crate) told: u64,
    /// Missing, and it was not.
    pub(crate) missing: u64,
    pub(crate) doubled: u64,
    /// Delivered again after a loss was told, which may be: what is lost may be what says that it was delivered.
    pub(crate) again: u64,
    pub(crate) out_of_order: u64,
    /// Numbers that two messages had, in an epoch that was ended and its end told.
    pub(crate) renumbered: u64,
    /// Times that members were told of a loss.
    pub(crate) tells: u64,
}

/// What members have heard and senders were told. One per thread, added up in the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Followed {
    /// By place.
    members: BTreeMap<usize, Member>,
    /// Which message stands where in which room, and when it was meant to leave.
    said: BTreeMap<(u64, Position, u64), u64>,
    counted: Verdict,
}

impl Followed {
    /// Where a member is in its room.
    pub(crate) fn position(&self, place: usize) -> Option<Position> {
        self.members.get(&place).map(|member| member.at)
    }

    /// A member has joined, or is back; `is_recovered` where it said what it had.
    pub(crate) fn joined(&mut self, place: usize, room: u64, at: Position, is_recovered: Option<bool>, now: u64) {
        let new = Member { room, at, heard: Vec::new(), before: Vec::new(), tells: Vec::new() };
        let member = self.members.entry(place).or_insert(new);
        if is_recovered == Some(false) {
            self.counted.tells += 1;
            member.tell(now, member.at, at);
        }
        member.at = at;
    }

    /// A member was told that an unknown number of messages is lost.
    pub(crate) fn told(&mut self, place: usize, to: Position, now: u64) {
        self.counted.tells += 1;
        if let Some(member) = self.members.get_mut(&place) {
            member.tell(now, member.at, to);
        }
    }

    /// A member was told that these were dropped for it.
    pub(crate) fn dropped(&mut self, place: usize, epoch: u64, from: u64, to: u64, now: u64) {
        self.counted.tells += 1;
        if let Some(member) = self.members.get_mut(&place) {
            let at = member.at;
            member.tell(now, Position { epoch, seq: from.saturating_sub(1) }, Position { epoch, seq: to });
            member.at = if at.epoch == epoch && at.seq > to { at } else { member.at };
        }
    }

    /// A member got a message; `rooms` is how many there are. Says whether it is new to it.
    pub(crate) fn heard(
        &mut self,
        place: usize,
        position: Position,
        stamp: Stamp,
        rooms: u64,
        is_recovered: bool,
    ) -> bool {
        let Some(member) = self.members.get_mut(&place) else {
            self.counted.out_of_order += 1; // before it had joined
            return false;
        };
        let room = stamp.number % rooms;
        self.said.entry((room, position, stamp.number)).or_insert(stamp.intended_at);
        let turn = usize::try_from(stamp.number / rooms).unwrap_or(usize::MAX);
        let is_known = member.has(turn);
        let is_next = position.epoch == member.at.epoch && position.seq > member.at.seq && room == member.room;
        if has(&member.heard, turn) {
            self.counted.doubled += 1;
        } else if is_known {
            self.counted.again += 1;
        } else if !is_next {
            self.counted.out_of_order += 1;
        }
        if is_next || position.epoch != member.at.epoch {
            // What was passed over shows in the end: it has not been heard.
            member.at = position;
        }
        if is_known {
            return false;
        }
        if member.heard.len() <= turn / 64 {
            member.heard.resize(turn / 64 + 1, 0);
        }
        member.heard[turn / 64] |= 1 << (turn % 64);
        self.counted.delivered += 1;
        self.counted.recovered += u64::from(is_recovered);
        true
    }

    /// A sender was told where its message stands.
    pub(crate) fn taken(&mut self, position: Position, stamp: Stamp, rooms: u64) {
        self.said.entry((stamp.number % rooms, position, stamp.number)).or_insert(stamp.intended_at);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.members.extend(other.members.iter().map(|(place, member)| (*place, member.clone())));
        self.said.extend(&other.said);
        let (sum, one) = (&mut self.counted, &other.counted);
        sum.delivered += one.delivered;
        sum.recovered += one.recovered;
        sum.doubled += one.doubled;
        sum.again += one.again;
        sum.out_of_order += one.out_of_order;
        sum.tells += one.tells;
    }

    /// What has become of all that was said, once nothing more is to come.
    pub(crate) fn verdict(&self, rooms: u64) -> Verdict {
        let mut verdict = self.counted;
        let mut members = BTreeMap::<u64, Vec<&Member>>::new();
        for member in self.members.values() {
            members.entry(member.room).or_default().push(member);
        }
        let mut messages = BTreeMap::<u64, (u64, Vec<(Position, bool)>)>::new();
        let mut numbered = BTreeMap::<(u64, Position), u32>::new();
        for (room, position, _) in self.said.keys() {
            *numbered.entry((*room, *position)).or_default() += 1;
        }
        for ((room, position, number), intended_at) in &self.said {
            let is_shared = numbered[&(*room, *position)] > 1;
            messages.entry(*number).or_insert((*intended_at, Vec::new())).1.push((*position, is_shared));
        }
        for ((room, position), _) in numbered.iter().filter(|(_, count)| **count > 1) {
            let mut tells = members.get(room).into_iter().flatten().flat_map(|member| &member.tells);
            if tells.any(|tell| tell.ends(position.epoch)) {
                verdict.renumbered += 1;
            } else {
                verdict.out_of_order += 1;
            }
        }
        for (number, (intended_at, positions)) in messages {
            let turn = usize::try_from(number / rooms).unwrap_or(usize::MAX);
            for member in members.get(&(number % rooms)).into_iter().flatten() {
                verdict.expected += 1;
                let is_told = |(position, is_shared): &(Position, bool)| {
                    let ended = |tell: &Tell| *is_shared && tell.ends(position.epoch);
                    member.tells.iter().any(|tell| tell.covers(intended_at, *position) || ended(tell))
                };
                match member.has(turn) {
                    true => {}
                    false if positions.iter().all(is_told) => verdict.told += 1,
                    false => verdict.missing += 1,
                }
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn at(epoch: u64, seq: u64) -> Position {
        Position { epoch, seq }
    }

    /// What is heard of messages that were meant to leave at ten times their number, in one room of two members that have
    /// joined at (1, 0): `a3` is the message number 3 for member a, at the next position or the one named by `a3@1.5`;
    /// `a!1.5` tells member a of a loss up to there, `a-1.2.4` that 2 to 4 were dropped, `a+1.5` and `a?1.5` that it is
    /// back, with and without what it missed; `ok3@1.5` is an ack. Each step takes a time of 10.
    fn check(steps: &str, expected: &Expect) {
        let mut parts = [Followed::default(), Followed::default()];
        for (place, part) in parts.iter_mut().enumerate() {
            part.joined(place, 0, at(1, 0), None, 0);
        }
        for (nth, step) in steps.split_whitespace().enumerate() {
            let now = 10 * nth as u64;
            let numbers = step.split(|byte: char| !byte.is_ascii_digit()).filter_map(|number| number.parse().ok());
            let numbers = numbers.collect::<Vec<u64>>();
            let place = usize::from(step.starts_with('b'));
            let part = &mut parts[place];
            let stamp = |number| Stamp { intended_at: 10 * number, number };
            match (step.trim_start_matches(['a', 'b']).chars().next(), &numbers[..]) {
                (Some('!'), [epoch, seq]) => part.told(place, at(*epoch, *seq), now),
                (Some('-'), [epoch, from, to]) => part.dropped(place, *epoch, *from, *to, now),
                (Some('+'), [epoch, seq]) => part.joined(place, 0, at(*epoch, *seq), Some(true), now),
                (Some('?'), [epoch, seq]) => part.joined(place, 0, at(*epoch, *seq), Some(false), now),
                (Some('o'), [number, epoch, seq]) => part.taken(at(*epoch, *seq), stamp(*number), 1),
                (Some('0'..='9'), [number, position @ ..]) => {
                    let here = part.position(place).expect("it has joined");
                    let position = match position {
                        [epoch, seq] => at(*epoch, *seq),
                        _ => at(here.epoch, here.seq + 1),
                    };
                    part.heard(place, position, stamp(*number), 1, false);
                }
                _ => panic!("{step}"),
            }
        }
        let mut sum = Followed::default();
        for part in &parts {
            sum.add(part);
        }
        let Verdict { expected: all, delivered, told, missing, doubled, again, out_of_order, renumbered, .. } =
            sum.verdict(1);
        expected.assert_eq(&format!(
            "{delivered} of {all}, {told} told, {missing} missing, {doubled} doubled, {again} again, \
             {out_of_order} out of order, {renumbered} renumbered"
        ));
    }

    #[test]
    fn each_gets_each_once_and_in_order() {
        check(
            "a0 b0 a1 ok0@1.1 b1 ok1@1.2",
            &expect!["4 of 4, 0 told, 0 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"],
        );
        check("a0 b0 b0", &expect!["2 of 2, 0 told, 0 missing, 1 doubled, 0 again, 0 out of order, 0 renumbered"]);
        check(
            "a0 a1 b1@1.2 b0@1.1",
            &expect!["4 of 4, 0 told, 0 missing, 0 doubled, 0 again, 1 out of order, 0 renumbered"],
        );
        // Two members have two orders.
        check("a0 a1 b1 b0", &expect!["4 of 4, 0 told, 0 missing, 0 doubled, 0 again, 2 out of order, 0 renumbered"]);
    }

    #[test]
    fn what_is_missing_was_told_or_not() {
        check("a0 a1 b0", &expect!["3 of 4, 0 told, 1 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"]);
        check(
            "a0 a1 a2 b0 b2@1.3",
            &expect!["5 of 6, 0 told, 1 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"],
        );
        check("ok0@1.1", &expect!["0 of 2, 0 told, 2 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"]);
        check(
            "a0 a1 a2 b0 b!1.2 b2",
            &expect!["5 of 6, 1 told, 0 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"],
        );
        check(
            "a0 a1 a2 b0 b-1.2.2 b2",
            &expect!["5 of 6, 1 told, 0 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"],
        );
        check(
            "a0 a1 b0 b?1.2 a2 b2",
            &expect!["5 of 6, 1 told, 0 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"],
        );
        // It is told of what is behind it, not of what comes after; and not of what it should have had before.
        check(
            "a0 b!1.1 a1 a2 b2@1.3",
            &expect!["4 of 6, 1 told, 1 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"],
        );
        check(
            "a0 a1 a2 b1@1.2 b!1.3 b+1.3",
            &expect!["4 of 6, 1 told, 1 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"],
        );
    }

    #[test]
    fn another_epoch_is_told() {
        check(
            "a0 b0 a1 a!2.0 b!2.0 a2 b2",
            &expect!["5 of 6, 1 told, 0 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"],
        );
        check(
            "a0 b0 a!2.0 a1 b1@2.1",
            &expect!["4 of 4, 0 told, 0 missing, 0 doubled, 0 again, 1 out of order, 0 renumbered"],
        );
        // The end of an epoch takes with it what says that a message was delivered.
        check(
            "a0 b0 a!2.0 b!2.0 a0 b0",
            &expect!["2 of 2, 0 told, 0 missing, 0 doubled, 2 again, 0 out of order, 0 renumbered"],
        );
        check("a0 b0 b!2.0", &expect!["2 of 2, 0 told, 0 missing, 0 doubled, 0 again, 0 out of order, 0 renumbered"]);
    }

    #[test]
    fn a_number_that_is_given_twice_has_to_be_told() {
        check("a0 b1", &expect!["2 of 4, 0 told, 2 missing, 0 doubled, 0 again, 1 out of order, 0 renumbered"]);
        check(
            "a0 b1 a!2.0 b!2.0",
            &expect!["2 of 4, 2 told, 0 missing, 0 doubled, 0 again, 0 out of order, 1 renumbered"],
        );
    }
}

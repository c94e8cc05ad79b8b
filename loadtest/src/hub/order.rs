//! What threads of sockets are told: the sockets that there are, who is in which room, what to open, send and drop, and
//! when. `worker` does it.

use std::ops::Range;

use crate::hub::tally::Phases;
use crate::hub::token::Tokens;
use crate::stream::Tls;

/// Sockets that share rooms.
pub(crate) struct Group {
    /// Their places among those of all threads.
    pub(crate) slots: Range<usize>,
    /// Names of its rooms; a member's room is the one of its place, modulo their number. Empty: they join none.
    pub(crate) rooms: Vec<String>,
}

/// Where a part of the hub is.
pub(crate) struct Instance {
    pub(crate) address: std::net::SocketAddr,
    /// Its sockets go over TLS.
    pub(crate) tls: Option<Tls>,
    pub(crate) authority: String,
    pub(crate) path: String,
}

/// What all threads share.
pub(crate) struct Setup {
    pub(crate) instances: Vec<Instance>,
    pub(crate) tokens: Tokens,
    /// The user of the first place; so many neighbouring places are sockets of one user.
    pub(crate) first_user: usize,
    pub(crate) sockets_per_user: usize,
    pub(crate) groups: Vec<Group>,
    /// Sockets that will stop reading: they send nothing and are counted apart.
    pub(crate) slow: Range<usize>,
    pub(crate) timeout_ns: u64,
    pub(crate) opening_max: usize,
    /// Every member's messages are followed one by one, and each is sent until it is taken.
    pub(crate) follows: bool,
    /// A socket that is lost comes back, at a random time within this.
    pub(crate) returns_within: Option<u64>,
}

impl Setup {
    /// The room of a place.
    pub(crate) fn room(&self, slot: usize) -> Option<&str> {
        let (group, nth) = self.seat(slot)?;
        group.rooms.get(nth % group.rooms.len().max(1)).map(String::as_str)
    }

    /// The user that a place's socket belongs to.
    pub(crate) fn user(&self, slot: usize) -> usize {
        self.first_user + slot / self.sockets_per_user
    }

    /// Where a place's socket goes that has been elsewhere so often: the members of each room use all instances, in turn.
    pub(crate) fn instance(&self, slot: usize, moves: usize) -> &Instance {
        let turn = self.seat(slot).map_or(slot, |(group, nth)| nth / group.rooms.len().max(1));
        &self.instances[(turn + moves) % self.instances.len()]
    }

    /// A place's group, and its place there.
    fn seat(&self, slot: usize) -> Option<(&Group, usize)> {
        let group = self.groups.iter().find(|group| group.slots.contains(&slot))?;
        Some((group, slot - group.slots.start))
    }
}

/// When sockets are opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// One after the other, with a bound on those on their way.
    Soon,
    /// Each at a random time within this; all at once if it is 0. Those that are refused try again.
    Within(u64),
    /// One each so often, from this time on; each is closed again when it is ready.
    Each { from: u64, gap_ns: u64 },
}

/// Messages at a set rate.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    /// Index of the group whose members send.
    pub(crate) group: usize,
    pub(crate) rate: f64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) phases: Phases,
    pub(crate) payload_bytes: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Order {
    Open(Range<usize>, When),
    Send(Traffic),
    /// One message to each room of a group, from its first member.
    Burst {
        group: usize,
        payload_bytes: usize,
    },
    /// These stop reading.
    Deafen(Range<usize>),
    /// These read again.
    Hear(Range<usize>),
    /// What has been counted is handed in, and counting begins anew.
    HandIn,
    /// These are closed without a word.
    Drop(Range<usize>),
}

/// Who sends a group's message of this number: the members of each room in turn, but for those who do not read.
pub(crate) fn sender(group: &Group, slow: &Range<usize>, number: u64) -> usize {
    let rooms = group.rooms.len().max(1);
    let slow_here = group.slots.end.min(slow.end).saturating_sub(group.slots.start.max(slow.start));
    let senders = ((group.slots.len() - slow_here) / rooms).max(1);
    let turn = usize::try_from(number).unwrap_or(0);
    group.slots.start + turn % rooms + turn / rooms % senders * rooms
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn group(slots: Range<usize>, rooms: usize) -> Group {
        Group { slots, rooms: (0..rooms).map(|nth| format!("room.{nth}")).collect() }
    }

    pub(crate) fn setup(groups: Vec<Group>, opening_max: usize) -> Setup {
        let instance = |port| Instance {
            address: std::net::SocketAddr::from(([127, 0, 0, 1], port)),
            tls: None,
            authority: format!("a:{port}"),
            path: "/".to_owned(),
        };
        Setup {
            instances: vec![instance(1), instance(2)],
            tokens: Tokens::None,
            first_user: 0,
            sockets_per_user: 1,
            groups,
            slow: 0..0,
            timeout_ns: 1,
            opening_max,
            follows: false,
            returns_within: None,
        }
    }

    #[test]
    fn members_of_each_room_are_on_all_instances() {
        let setup = setup(vec![group(10..22, 3)], 1);
        let ports = |moves| (10..22).map(|slot| setup.instance(slot, moves).address.port()).collect::<Vec<_>>();
        assert_eq!(ports(0), [1, 1, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2]);
        assert_eq!(ports(1), [2, 2, 2, 1, 1, 1, 2, 2, 2, 1, 1, 1], "and move on to the next");
    }

    #[test]
    fn members_of_all_rooms_send_in_turn() {
        let group = group(10..16, 3);
        let setup = setup(vec![group], 1);
        let group = &setup.groups[0];
        let senders = (0..7).map(|number| sender(group, &(0..0), number)).collect::<Vec<_>>();
        assert_eq!(senders, [10, 11, 12, 13, 14, 15, 10]);
        let rooms = senders.iter().map(|slot| setup.room(*slot)).collect::<Vec<_>>();
        assert_eq!(rooms[..4], [Some("room.0"), Some("room.1"), Some("room.2"), Some("room.0")]);
        assert_eq!(setup.room(9), None);
        // Those who will not read do not send either.
        let senders = (0..4).map(|number| sender(group, &(13..16), number)).collect::<Vec<_>>();
        assert_eq!(senders, [10, 11, 12, 10]);
        assert_eq!(sender(&Group { slots: 5..7, rooms: Vec::new() }, &(0..0), 3), 6, "echoes go round all sockets");
    }
}

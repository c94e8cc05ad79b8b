//! What the hubs of the shards tell one another. Any letter may be lost: whoever sends one is told of it, and each kind
//! says here what is done then.

#![expect(
    missing_docs,
    reason = "a letter is read by hubs only: each says what it is, and its members are what the kind needs"
)]

use std::sync::Arc;

use super::{
    arena::Key,
    code::Code,
    frame::Slow,
    name::RoomName,
    position::{Chain, Epoch, Position},
};
use crate::shard::Instant;

/// A message of a room as all shards share it: encoded once, at the room's home.
#[derive(Debug)]
pub struct Delivery {
    /// Where.
    pub room: RoomName,
    /// Its number.
    pub position: Position,
    /// What may be done with it where it waits too long.
    pub slow: Slow,
    /// What it follows, where the bus gives the numbers.
    pub chain: Chain,
    /// When it got its number.
    pub at: Instant,
    /// The whole message, as JSON.
    pub text: Arc<str>,
}

impl Delivery {
    /// Bytes of memory that one holds: the text, its counters, and this.
    pub(super) fn cost(&self) -> usize {
        const AROUND: usize = size_of::<Delivery>() + 64;
        self.text.len().saturating_add(AROUND)
    }
}

/// A letter from one shard's hub to another's. All go over one lane, so that what is told of a room arrives in the order in
/// which its home said it. Moves between shards.
#[derive(Debug)]
pub enum RoomLetter {
    /// To the home: somebody wants to come in. Lost: refused as overloaded.
    Join(Box<Join>),
    /// To the home: a member has left. Lost: sent again, at the next timeout.
    Leave(Leave),
    /// To the home: a message. Lost: refused as overloaded.
    Publish(Box<Publish>),
    /// To the home: who is there? Lost: refused as overloaded.
    AskPresence { room: RoomName, ticket: Key },
    /// To the home: how does the room stand? Lost: refused as overloaded.
    Look { room: RoomName, ticket: Key },
    /// To the home: some messages were missed. Lost: asked again, by a timer.
    Pull(Pull),

    /// From the home: come in. Lost: undone at home, and refused as overloaded.
    Joined(Box<Joined>),
    /// From the home: no. Lost: sent again, at the next timeout.
    Refused { ticket: Key, code: Code },
    /// From the home: the message has this number. Lost: sent again, at the next timeout.
    Published { ticket: Key, position: Position },
    /// From the home: a message. Lost: the next number, or a `Position` at the next timeout, shows the hole.
    Deliver(Arc<Delivery>),
    /// From the home, to all members: somebody came or went. Lost: told again, as it is then, at the next timeout.
    Tell(Arc<Tell>),
    /// From the home, to a shard that missed something: how far the room is. Lost: told again, as it is then, at the next
    /// timeout.
    Position { room: RoomName, position: Position },
    /// From the home: what was missed. Lost: a `Position` at the next timeout, and asked again, by a timer.
    Pulled(Box<Pulled>),
    /// From the home: who is there. Lost: sent again, at the next timeout.
    PresenceIs(Box<PresenceIs>),
    /// From the home: how the room stands. Lost: sent again, at the next timeout.
    LookIs { ticket: Key, seen: Look },

    /// To the home of a user: whether the user has sockets on this shard. Lost: told again, as it is then, at the next timeout.
    User { user: Arc<str>, is_here: bool },
    /// To all shards: tell me of your users who are at home here. Lost: sent again, at the next timeout.
    AskUsers,
    /// From the home, where only the bus knows: how the room stands and who is there. Lost: sent again, at the next
    /// timeout.
    SeenIs(Box<SeenIs>),

    /// To all shards: a message for each socket of a user. Lost: counted as none.
    ToUser(Box<ToUser>),
    /// To all shards: close the sockets of a user. Lost: sent again, at the next timeout.
    Kick { ticket: Key, user: Arc<str> },
    /// To the user's home: so many sockets the user has here now. Lost: sent again as it is then, at the next timeout.
    UserCount { user: Arc<str>, count: u32 },
    /// From the user's home: no more than so many. Lost: sent again, at the next timeout.
    UserMax { user: Arc<str>, max: u32 },
    /// From each: how many sockets it was. Lost: sent again, at the next timeout.
    UserTold { ticket: Key, count: u32 },
}

/// Somebody came or went.
#[derive(Debug)]
pub struct Tell {
    pub room: RoomName,
    pub user: Arc<str>,
    /// As members get it.
    pub text: Arc<str>,
}

/// Somebody wants to come in.
#[derive(Debug)]
pub struct Join {
    pub room: RoomName,
    pub ticket: Key,
    pub user: Arc<str>,
    /// Where the socket was when it lost its connection.
    pub recover: Option<Position>,
}

/// A member has left.
#[derive(Clone, Debug)]
pub struct Leave {
    pub room: RoomName,
    pub user: Arc<str>,
}

/// A message for a room.
#[derive(Clone, Debug)]
pub struct Publish {
    pub room: RoomName,
    pub ticket: Key,
    pub from: Publisher,
    /// The client's or the service's own name for it.
    pub id: Option<Box<str>>,
    /// The message's payload, as it came.
    pub payload: Box<str>,
}

/// Who says it.
#[derive(Clone, Debug)]
pub enum Publisher {
    /// A member; told apart from itself by its session.
    Member { user: Arc<str>, session: Option<Arc<str>> },
    /// A service.
    Service { sub: Box<str>, kind: Box<str> },
}

impl Publisher {
    /// Within what an id means the same message: a session, or a service.
    pub(super) fn scope(&self) -> String {
        match self {
            // A user without a session is told apart by its id: under another letter, so that no session is called so.
            Self::Member { session: Some(session), .. } => format!("s{session}"),
            Self::Member { user, session: None } => format!("u{user}"),
            Self::Service { sub, .. } => format!("p{sub}"),
        }
    }
}

/// Some messages were missed.
#[derive(Debug)]
pub struct Pull {
    pub room: RoomName,
    pub epoch: Epoch,
    pub from: u64,
    pub to: u64,
}

/// Come in: what is delivered after this letter has numbers after `position`.
#[derive(Debug)]
pub struct Joined {
    pub room: RoomName,
    pub ticket: Key,
    pub position: Position,
    pub members: u32,
    /// What was missed, if that was asked for: all of it, or nothing when it is not here any more.
    pub recovered: Option<Option<Vec<Arc<Delivery>>>>,
    /// Who came in, so that it can be undone when this letter is lost.
    pub user: Arc<str>,
}

/// What was missed.
#[derive(Debug)]
pub struct Pulled {
    pub room: RoomName,
    pub epoch: Epoch,
    /// What was asked for begins here; what is before the first message is lost.
    pub from: u64,
    pub to: u64,
    pub messages: Vec<Arc<Delivery>>,
    /// How far the room is.
    pub seq: u64,
}

/// Who is there: some users with how many sockets each has, and how many users there are.
#[derive(Debug)]
pub struct PresenceIs {
    pub ticket: Key,
    pub users: Vec<(Arc<str>, u32)>,
    pub total: u32,
}

/// How a room stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Users.
    pub members: u32,
    /// Their sockets.
    pub connections: u32,
    /// The last message; of no epoch where there is no such room.
    pub position: Position,
}

/// How a room stands, and some of its users.
#[derive(Debug)]
pub struct SeenIs {
    pub ticket: Key,
    pub look: Look,
    pub users: Vec<(Arc<str>, u32)>,
}

/// A message for each socket of a user.
#[derive(Debug)]
pub struct ToUser {
    pub ticket: Key,
    pub user: Arc<str>,
    pub text: Arc<str>,
    /// Who said it and under which id; with the same nothing is said again.
    pub seen: Option<u128>,
}

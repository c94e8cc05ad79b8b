//! The bus between instances, as a shard's hub uses it: it numbers the messages of rooms, keeps them, and brings what others
//! say. How it does that, and over what, is the driver's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{
    Code, Hub, Look, RoomLetter, Timer,
    arena::Key,
    events::{EventsAnswer, EventsRequest},
    home::{Home, PRESENCE_USERS_MAX},
    letter::SeenIs,
    name::RoomName,
    others::{OthersAnswer, OthersRequest},
    position::{Chain, Epoch, Last, Position},
    unnumbered::Unnumbered,
};
use crate::shard::Instant;

/// How long rooms that nobody here is in any more are remembered to be told of when that did not go.
const FORGET_INTERVAL: Duration = Duration::from_millis(100);

/// So many rooms ask at once when the bus comes, and the next a little later: what would go beyond the way to it comes back.
pub(super) const SLICE: u32 = 128;
pub(super) const SLICE_INTERVAL: Duration = Duration::from_millis(10);

/// Whose question it is: a shard's, and its ticket there.
pub type BusAsker = (usize, Key);

/// What a room's home asks of the bus. Any may be lost; [`Hub::bus_dropped`] is told of it. Moves between threads.
#[derive(Debug)]
pub enum BusRequest {
    /// Give it a number, and bring it to all instances. Answered by [`BusAnswer::Published`] or [`BusAnswer::Refused`], once.
    Publish(Box<BusPublish>),
    /// Listen to the room, and then say how it stands. Answered by [`BusAnswer::Stands`] or [`BusAnswer::Unread`], or not.
    Read(Box<BusRead>),
    /// Say how a room stands that nobody here is in. Answered by [`BusAnswer::LookIs`] or [`BusAnswer::Refused`], once.
    Look {
        /// Which.
        room: RoomName,
        /// Who asks.
        asker: BusAsker,
    },
    /// So many sockets these users have here. Lost, or answered by [`BusAnswer::TellAgain`]: all are told again.
    Here(Box<BusHere>),
    /// Nobody here is in the room any more.
    Forget(RoomName),
    /// For other instances; see there.
    Others(Box<OthersRequest>),
    /// For lifecycle events; see there.
    Events(Box<EventsRequest>),
}

/// Who is in a room on this instance.
#[derive(Debug)]
pub struct BusHere {
    /// Where.
    pub room: RoomName,
    /// Whether these are all who are here; otherwise those whose sockets have changed.
    pub is_whole: bool,
    /// Users and their sockets.
    pub users: Vec<(Arc<str>, u32)>,
    /// See [`BusRead::keep`].
    pub keep: Keep,
}

/// A message that gets its number.
#[derive(Debug)]
pub struct BusPublish {
    /// Where.
    pub room: RoomName,
    /// Who is told the number.
    pub asker: BusAsker,
    /// What is known of the room here: a bus that knows less, or something else, has lost something.
    pub seen: Last,
    /// The epoch that begins if one has to.
    pub epoch: Epoch,
    /// Who says it, and its id: the same gets the same number.
    pub id: Option<(Box<str>, Box<str>)>,
    /// The message.
    pub message: Unnumbered,
    /// What the bus keeps.
    pub keep: Keep,
}

/// How much the bus keeps of a room.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Messages.
    pub messages_max: usize,
    /// Bytes of their text.
    pub bytes_max: usize,
    /// How old they may be.
    pub age_max: Duration,
    /// How long ids are known.
    pub ids_age: Duration,
}

/// A question how a room stands.
#[derive(Debug)]
pub struct BusRead {
    /// Which.
    pub room: RoomName,
    /// Counts this home's questions: its answer has the same.
    pub number: u32,
    /// Whether it is also to be said who is in the room.
    pub wants_users: bool,
    /// See [`BusPublish::seen`].
    pub seen: Last,
    /// See [`BusPublish::epoch`].
    pub epoch: Epoch,
    /// The messages from here on are wanted; all, where the epoch has become another one; the last if this is
    /// [`u64::MAX`].
    pub from: u64,
    /// Bytes of messages that are wanted at once.
    pub bytes_max: usize,
    /// What the bus keeps: the room lives on at least so long.
    pub keep: Keep,
}

/// What a room's home hears from the bus. Any but the answers to questions of others may be lost. Moves between threads.
#[derive(Debug)]
pub enum BusAnswer {
    /// Some instance's message.
    Heard(Box<BusMessage>),
    /// The message has this number.
    Published {
        /// Where.
        room: RoomName,
        /// Whose it was.
        asker: BusAsker,
        /// Its number.
        position: Position,
    },
    /// No.
    Refused {
        /// Whose it was.
        asker: BusAsker,
        /// Why.
        code: Code,
    },
    /// How the room stands.
    Stands(Box<Stands>),
    /// It cannot be said.
    Unread {
        /// Which.
        room: RoomName,
        /// The question's.
        number: u32,
    },
    /// How a room stands.
    LookIs {
        /// Who asked.
        asker: BusAsker,
        /// Its last message.
        position: Position,
        /// Who is in it.
        users: Vec<Present>,
    },
    /// Who is in a room on another instance.
    Elsewhere(Box<Elsewhere>),
    /// An instance is gone, and with it all who were in rooms there.
    Gone(Arc<str>),
    /// Who is in the room here has to be told again.
    TellAgain(RoomName),
    /// Of other instances; see there.
    Others(Box<OthersAnswer>),
    /// Of lifecycle events; see there.
    Events(Box<EventsAnswer>),
}

/// A user on an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// The instance.
    pub node: Arc<str>,
    /// The user.
    pub user: Arc<str>,
    /// Its sockets there.
    pub sockets: u32,
}

/// Who is in a room on another instance.
#[derive(Debug)]
pub struct Elsewhere {
    /// Where.
    pub room: RoomName,
    /// The instance.
    pub node: Arc<str>,
    /// See [`BusHere::is_whole`].
    pub is_whole: bool,
    /// Users and their sockets.
    pub users: Vec<(Arc<str>, u32)>,
}

/// A message with its number.
#[derive(Debug)]
pub struct BusMessage {
    /// Where.
    pub room: RoomName,
    /// Its number.
    pub position: Position,
    /// What it follows.
    pub chain: Chain,
    /// The message.
    pub message: Unnumbered,
}

/// How a room stood when it was asked for.
#[derive(Debug)]
pub struct Stands {
    /// Which.
    pub room: RoomName,
    /// The question's.
    pub number: u32,
    /// The last message.
    pub last: Last,
    /// What was asked for and is there, in order; it may end early if it is much.
    pub messages: Vec<(u64, Chain, Unnumbered)>,
    /// Who is in the room, if that was asked for.
    pub users: Option<BusUsers>,
}

/// Who is in a room as the bus has it.
#[derive(Debug, Default)]
pub struct BusUsers {
    /// On other instances.
    pub others: Vec<Present>,
    /// What others find there of who is here; none where that cannot be said.
    pub here: Option<Vec<(Arc<str>, u32)>>,
    /// For so long other instances may still have to tell who is there: the bus has come a short while ago.
    pub early_for: Duration,
}

impl BusAnswer {
    /// The room whose home is to hear it; nothing where it is for whoever asked.
    pub fn room(&self) -> Option<&RoomName> {
        match self {
            Self::Heard(heard) => Some(&heard.room),
            Self::Published { room, .. } | Self::Unread { room, .. } | Self::TellAgain(room) => Some(room),
            Self::Stands(stands) => Some(&stands.room),
            Self::Elsewhere(elsewhere) => Some(&elsewhere.room),
            Self::Refused { .. } | Self::LookIs { .. } | Self::Gone(_) | Self::Others(_) | Self::Events(_) => None,
        }
    }
}

/// What the bus did for a hub, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusCounts {
    /// Messages that it was given for their number.
    pub publishes: u64,
    /// Messages that it brought.
    pub deliveries: u64,
    /// Messages that were missed, and read.
    pub repaired: u64,
    /// Times that some of a room were lost.
    pub lost: u64,
    /// Times that a room began anew.
    pub begun: u64,
    /// What was refused while it was away.
    pub away: u64,
    /// What was refused because too much waited.
    pub full: u64,
}

impl BusCounts {
    /// Something was refused.
    pub(super) fn refuse(&mut self, code: Code) {
        let count = if code == Code::Overloaded { &mut self.full } else { &mut self.away };
        *count = count.saturating_add(1);
    }
}

/// Counts one more.
pub(super) fn one(count: &mut u64) {
    *count = count.saturating_add(1);
}

/// The bus, as a hub knows it.
#[derive(Debug)]
pub(super) struct Bus {
    pub(super) is_up: bool,
    /// Rooms of which the bus was not told yet that nobody is in them: it listens to each.
    pub(super) forgotten: BTreeSet<RoomName>,
    armed: Instant,
    /// When the next rooms are told that it has come or gone.
    pub(super) walk_armed: Instant,
}

impl Bus {
    pub(super) const fn new() -> Self {
        Self { is_up: false, forgotten: BTreeSet::new(), armed: Instant::NEVER, walk_armed: Instant::NEVER }
    }
}

/// How a room stands, for whoever asked for the one or the other of it.
fn seen(ticket: Key, position: Position, users: &[Present]) -> SeenIs {
    let mut all: BTreeMap<&Arc<str>, u32> = BTreeMap::new();
    for Present { user, sockets, .. } in users {
        let known = all.entry(user).or_default();
        *known = known.saturating_add(*sockets);
    }
    let members = u32::try_from(all.len()).unwrap_or(u32::MAX);
    let connections = all.values().fold(0_u32, |sum, sockets| sum.saturating_add(*sockets));
    let users = all.into_iter().take(PRESENCE_USERS_MAX).map(|(user, sockets)| (Arc::clone(user), sockets)).collect();
    SeenIs { ticket, look: Look { members, connections, position }, users }
}

impl<W> Hub<W> {
    /// The bus has come, with a new connection perhaps, or has gone.
    pub fn bus_is_up(&mut self, now: Instant, is_up: bool) {
        let Some(bus) = &mut self.bus else { return };
        bus.is_up = is_up;
        self.begin_bus(now);
        self.settle(now);
    }

    /// Whether rooms can span instances now; they need not where there is no bus.
    pub fn has_bus(&self) -> bool {
        self.bus.as_ref().is_none_or(|bus| bus.is_up)
    }

    /// The bus says something to a room at home here, or answers a question of this shard's.
    pub fn handle_bus(&mut self, now: Instant, answer: BusAnswer) {
        self.of_letters(|hub| hub.hear_bus(now, answer));
    }

    fn hear_bus(&mut self, now: Instant, answer: BusAnswer) {
        match answer {
            BusAnswer::Heard(heard) => {
                if let Some(&key) = self.home_names.get(&heard.room) {
                    one(&mut self.bus_counts.deliveries);
                    self.follow_at_home(now, key, |home, given| home.hear(given, &heard));
                }
            }
            BusAnswer::Published { room, asker: (shard, ticket), position } => {
                self.post.send(shard, RoomLetter::Published { ticket, position });
                if let Some(&key) = self.home_names.get(&room) {
                    self.follow_at_home(now, key, |home, given| home.hear_of(given, position));
                }
            }
            BusAnswer::Refused { asker: (shard, ticket), code } => {
                self.bus_counts.refuse(code);
                self.post.send(shard, RoomLetter::Refused { ticket, code });
            }
            BusAnswer::Stands(stands) => {
                if let Some(&key) = self.home_names.get(&stands.room) {
                    self.follow_at_home(now, key, |home, given| home.hear_standing(given, *stands));
                }
            }
            BusAnswer::Unread { room, number } => {
                if let Some(&key) = self.home_names.get(&room) {
                    self.follow_at_home(now, key, |home, given| home.unread(given, number));
                }
            }
            BusAnswer::LookIs { asker: (shard, ticket), position, users } => {
                self.post.send(shard, RoomLetter::SeenIs(Box::new(seen(ticket, position, &users))));
            }
            BusAnswer::Elsewhere(elsewhere) => {
                if let Some(&key) = self.home_names.get(&elsewhere.room) {
                    self.at_home(now, key, |home, given| home.hear_elsewhere(given, &elsewhere));
                }
            }
            BusAnswer::Gone(node) => self.begin_gone(now, node),
            BusAnswer::TellAgain(room) => {
                if let Some(&key) = self.home_names.get(&room) {
                    self.at_home(now, key, |home, given| home.tell_again(given));
                }
            }
            BusAnswer::Others(answer) => self.handle_others(now, *answer),
            BusAnswer::Events(answer) => self.handle_events(*answer),
        }
        self.settle(now);
    }

    /// A request did not go.
    pub fn bus_dropped(&mut self, now: Instant, request: BusRequest) {
        match request {
            BusRequest::Publish(publish) => self.refuse_bus(publish.asker),
            BusRequest::Look { asker, .. } => self.refuse_bus(asker),
            BusRequest::Others(request) => self.others_dropped(&request),
            BusRequest::Events(request) => self.events_dropped(now, *request),
            BusRequest::Read(read) => {
                if let Some(&key) = self.home_names.get(&read.room) {
                    self.at_home(now, key, |home, given| home.read_dropped(given, read.number));
                }
            }
            BusRequest::Here(here) => {
                if let Some(&key) = self.home_names.get(&here.room) {
                    self.at_home(now, key, |home, given| home.tell_again(given));
                }
            }
            BusRequest::Forget(room) => {
                let home = self.home_names.get(&room).and_then(|&key| self.homes.get_mut(key));
                if let Some(following) = home.and_then(|home| home.following.as_mut()) {
                    // Somebody is in it again.
                    following.keep_heard();
                } else if let Some(bus) = &mut self.bus {
                    bus.forgotten.insert(room);
                    self.timers.set(Timer::Forgotten, &mut bus.armed, now + FORGET_INTERVAL);
                }
            }
        }
        self.settle(now);
    }

    fn refuse_bus(&mut self, (shard, ticket): BusAsker) {
        self.bus_counts.refuse(Code::Overloaded);
        self.post.send(shard, RoomLetter::Refused { ticket, code: Code::Overloaded });
    }

    /// Tells the bus what it could not be told before.
    pub(super) fn send_forgotten(&mut self) {
        let Some(bus) = &mut self.bus else { return };
        bus.armed = Instant::NEVER;
        for room in std::mem::take(&mut bus.forgotten) {
            self.post.ask(BusRequest::Forget(room));
        }
    }

    /// A step of a room after which it may be further than before.
    pub(super) fn follow_at_home(
        &mut self,
        now: Instant,
        key: Key,
        step: impl FnOnce(&mut Home, &mut super::home::Given<'_>),
    ) {
        let before = self.homes.get(key).map(|home| (home.position(), home.first_remembered()));
        self.at_home(now, key, step);
        if let (Some((before, first_before)), Some(home)) = (before, self.homes.get(key)) {
            let (after, first) = (home.position(), home.first_remembered());
            let known = if before.epoch == after.epoch { before.seq } else { 0 };
            let next = known.saturating_add(1);
            // What was put back before what was remembered, and what is new.
            let put_back = first..first_before.min(next);
            self.history_order
                .extend(put_back.chain(first.max(next)..after.seq.saturating_add(1)).map(|seq| (key, seq)));
            self.bound_history(now, key, None);
        }
    }
}

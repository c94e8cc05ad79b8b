//! Lifecycle events: a room that has members or none any more, a user who has sockets or none any more.
//!
//! One place decides of each: the home shard of the room, and that of the user, which all shards tell whether the user has
//! sockets there. What is told of one room or user alternates and is numbered; where it goes is the driver's.
//!
//! Where rooms span instances, the home shard decides for this instance, after the grace, and the bus for all of them: it is told
//! who is here, and says what has happened and who sends it (decision 20).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{
    Effect, Hub, RoomLetter,
    arena::Key,
    bus::BusRequest,
    encode::EventNumber,
    name::{RoomName, home_of},
    position::{Epoch, Position},
    timers::Timer,
};
use crate::shard::Instant;

/// How long numbers go on from the last one when nobody is there any more, and for how many rooms and users of a shard. After
/// it the next has a higher number still, but there may be some between.
const NUMBERS_KEPT_FOR: Duration = Duration::from_mins(10);
const NUMBERS_KEPT_MAX: usize = 1 << 14;

/// Of what events are made. One per shard, with its [`Plan`](super::Plan).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventPlan {
    /// Of rooms.
    pub rooms: bool,
    /// Of users.
    pub users: bool,
    /// How long nobody has to be there.
    pub grace: Duration,
}

impl EventPlan {
    /// Whether events are made by this of what another makes none of.
    const fn wants_more_than(self, other: Self) -> bool {
        self.rooms && !other.rooms || self.users && !other.users
    }
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A room has its first member.
    RoomOccupied,
    /// A room has had none for the grace.
    RoomVacated,
    /// A user has the first socket.
    UserOnline,
    /// A user has had none for the grace.
    UserOffline,
}

impl EventKind {
    /// Its `type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoomOccupied => "room.occupied",
            Self::RoomVacated => "room.vacated",
            Self::UserOnline => "user.online",
            Self::UserOffline => "user.offline",
        }
    }
}

/// One event, as it is sent.
#[derive(Debug)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// A number for the room or user: those of one go in order.
    pub lane: u64,
    /// What no other event is called, of any process.
    pub key: Box<str>,
    /// The document.
    pub json: Box<str>,
    /// Which of the bus's it is: [`Hub::event_is_done`] is told what has become of it.
    pub position: Option<Position>,
}

/// Whose event it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A room's.
    Room(RoomName),
    /// A user's.
    User(Arc<str>),
}

impl Subject {
    /// As one text: `room:<name>` or `user:<id>`.
    pub fn to_text(&self) -> String {
        match self {
            Self::Room(room) => format!("room:{room}"),
            Self::User(user) => format!("user:{user}"),
        }
    }

    /// What was written so.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("room", name) => RoomName::parse(name).map(Self::Room),
            ("user", id) => Some(Self::User(id.into())),
            _ => None,
        }
    }

    /// Its home shard.
    pub fn home(&self, shards: usize) -> usize {
        match self {
            Self::Room(room) => room.home(shards),
            Self::User(user) => home_of(user, shards),
        }
    }
}

/// What a home tells the bus of lifecycle events. Moves between threads.
#[derive(Debug)]
pub enum EventsRequest {
    /// The room has members here, or none any more; the user sockets. Lost: told again, as it is then.
    Is {
        /// Who.
        subject: Subject,
        /// Whether it is here.
        is_here: bool,
    },
    /// This one needs not be sent any more. Lost: told again.
    Taken(Position),
    /// This one was not sent, for no service wants events here: it is another instance's to send. Lost: told again.
    Left(Position),
}

/// What a home hears from the bus of lifecycle events. Moves between threads.
#[derive(Debug)]
pub enum EventsAnswer {
    /// Send this. Answered by [`EventsRequest::Taken`] or [`EventsRequest::Left`], once.
    Event(KeptEvent),
    /// So many were dropped, as too many waited.
    Dropped(u64),
    /// The bus has lost what it knew, and counts anew: events of other epochs are not sent any more.
    Begins(Epoch),
}

/// An event that the bus keeps until it was taken.
#[derive(Debug)]
pub struct KeptEvent {
    /// Which it is of all.
    pub position: Position,
    /// Whose.
    pub subject: Subject,
    /// Whether somebody is there.
    pub is_there: bool,
    /// Its number.
    pub n: u64,
    /// When.
    pub at_unix_ms: u64,
    /// The instance where it came about.
    pub node: Box<str>,
}

/// What has changed, before it is written down.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Happened {
    pub(super) subject: Subject,
    pub(super) is_there: bool,
    pub(super) n: u64,
}

/// What is known of a room or user.
#[derive(Debug)]
struct Record {
    /// Where the user has sockets; for a room, its home where it has members.
    shards: Vec<usize>,
    /// What was told last.
    is_told: bool,
    n: u64,
    /// When it is told that nobody is there, or, after that, when this is forgotten.
    due: Instant,
}

/// All rooms and users at home on a shard of which events are made. One per shard.
#[derive(Debug, Default)]
pub(super) struct Events {
    plan: EventPlan,
    known: HashMap<Subject, Record>,
    /// Whose going is told next.
    leaving: BTreeSet<(Instant, Subject)>,
    /// Who is forgotten next.
    gone: BTreeSet<(Instant, Subject)>,
    /// The highest number of those who were forgotten.
    floor: u64,
    pub(super) armed: Instant,
    /// Users of this shard of whom a home could not be told.
    pub(super) unsaid: BTreeSet<Arc<str>>,
    /// Of whom, and of what, the bus could not be told.
    unsaid_to_bus: BTreeSet<Subject>,
    untold: Vec<EventsRequest>,
}

impl Events {
    pub(super) fn new(plan: EventPlan) -> Self {
        Self { plan, armed: Instant::NEVER, ..Self::default() }
    }

    /// Whether the room has members, or the user sockets on a shard.
    pub(super) fn note(&mut self, now: Instant, subject: Subject, shard: usize, is_here: bool) -> Option<Happened> {
        let is_wanted = match subject {
            Subject::Room(_) => self.plan.rooms,
            Subject::User(_) => self.plan.users,
        };
        if !is_wanted || !is_here && !self.known.contains_key(&subject) {
            return None;
        }
        let fresh = Record { shards: Vec::new(), is_told: false, n: self.floor, due: Instant::NEVER };
        let record = self.known.entry(subject.clone()).or_insert(fresh);
        let was_there = !record.shards.is_empty();
        record.shards.retain(|&known| known != shard);
        record.shards.extend(is_here.then_some(shard));
        let is_there = !record.shards.is_empty();
        if was_there == is_there {
            return None;
        }
        let entry = (std::mem::replace(&mut record.due, Instant::NEVER), subject.clone());
        if !is_there {
            record.due = now + self.plan.grace;
            self.leaving.insert((record.due, subject));
            return None;
        }
        if !self.leaving.remove(&entry) {
            self.gone.remove(&entry);
        }
        if record.is_told {
            return None;
        }
        record.is_told = true;
        record.n = record.n.saturating_add(1);
        Some(Happened { subject, is_there, n: record.n })
    }

    /// Somebody whose time to come back is over.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Happened> {
        while self.gone.len() > NUMBERS_KEPT_MAX || self.gone.first().is_some_and(|&(due, _)| due <= now) {
            let Some((_, subject)) = self.gone.pop_first() else { break };
            self.forget(&subject);
        }
        while self.leaving.first().is_some_and(|&(due, _)| due <= now) {
            let (_, subject) = self.leaving.pop_first()?;
            let Some(record) = self.known.get_mut(&subject) else { continue };
            record.is_told = false;
            record.n = record.n.saturating_add(1);
            record.due = now + NUMBERS_KEPT_FOR;
            self.gone.insert((record.due, subject.clone()));
            return Some(Happened { subject, is_there: false, n: record.n });
        }
        None
    }

    fn forget(&mut self, subject: &Subject) {
        if let Some(record) = self.known.remove(subject) {
            self.floor = self.floor.max(record.n);
        }
    }

    /// When something is due.
    pub(super) fn due(&self) -> Instant {
        let firsts = self.leaving.first().into_iter().chain(self.gone.first());
        firsts.map(|&(due, _)| due).min().unwrap_or(Instant::NEVER)
    }

    /// Whoever leaves from now on is told at once, and whoever has left.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.plan.grace = Duration::ZERO;
        for (_, subject) in std::mem::take(&mut self.leaving) {
            if let Some(record) = self.known.get_mut(&subject) {
                record.due = now;
                self.leaving.insert((now, subject));
            }
        }
    }

    /// Another plan; says of what events are made now that were not before. What is not wanted any more is forgotten.
    pub(super) fn adopt(&mut self, plan: EventPlan) -> EventPlan {
        let old = std::mem::replace(&mut self.plan, plan);
        let fresh = EventPlan { rooms: plan.rooms && !old.rooms, users: plan.users && !old.users, ..plan };
        let is_off = |subject: &Subject| match subject {
            Subject::Room(_) => !plan.rooms,
            Subject::User(_) => !plan.users,
        };
        if !old.wants_more_than(plan) {
            return fresh;
        }
        let off: Vec<Subject> = self.known.keys().filter(|subject| is_off(subject)).cloned().collect();
        for subject in off {
            self.forget(&subject);
        }
        self.leaving.retain(|(_, subject)| !is_off(subject));
        self.gone.retain(|(_, subject)| !is_off(subject));
        fresh
    }

    /// Those who are there as it was told last.
    fn told(&self) -> impl Iterator<Item = Subject> {
        self.known.iter().filter(|(_, record)| record.is_told).map(|(subject, _)| subject.clone())
    }

    /// Whether there is something that could not be said yet.
    pub(super) fn has_unsaid(&self) -> bool {
        !(self.unsaid.is_empty() && self.unsaid_to_bus.is_empty() && self.untold.is_empty())
    }

    /// Whether somebody is there as it was told last.
    fn is_told(&self, subject: &Subject) -> bool {
        self.known.get(subject).is_some_and(|record| record.is_told)
    }
}

impl<W> Hub<W> {
    /// A room at home here has members, or none.
    pub(super) fn note_room(&mut self, now: Instant, room: RoomName, is_there: bool) {
        let happened = self.events.note(now, Subject::Room(room), self.shard, is_there);
        self.tell_event(now, happened);
    }

    /// The user has the first socket on this shard, or none any more: the user's home is told how it is now.
    pub(super) fn note_user(&mut self, user: &Arc<str>) {
        if self.events.plan.users {
            let (user, is_here) = (Arc::clone(user), self.users.contains_key(user));
            self.post.send(home_of(&user, self.shards), RoomLetter::User { user, is_here });
        }
    }

    pub(super) fn handle_user(&mut self, now: Instant, from: usize, user: Arc<str>, is_here: bool) {
        let happened = self.events.note(now, Subject::User(user), from, is_here);
        self.tell_event(now, happened);
    }

    /// The home was not told. It is told later how it is then; so what is told last is true, whatever was lost before.
    pub(super) fn user_unsaid(&mut self, now: Instant, user: Arc<str>) {
        self.events.unsaid.insert(user);
        self.arm_kept(now);
    }

    /// Says so many of each kind of what could not be said.
    pub(super) fn say_unsaid(&mut self, count: usize) {
        for _ in 0..count {
            let Some(user) = self.events.unsaid.pop_first() else { break };
            self.note_user(&user);
        }
        for _ in 0..count {
            let Some(subject) = self.events.unsaid_to_bus.pop_first() else { break };
            let is_here = self.events.is_told(&subject);
            self.tell_bus(EventsRequest::Is { subject, is_here });
        }
        for request in self.events.untold.drain(..count.min(self.events.untold.len())).collect::<Vec<_>>() {
            self.tell_bus(request);
        }
    }

    fn tell_bus(&mut self, request: EventsRequest) {
        self.post.ask(BusRequest::Events(Box::new(request)));
    }

    /// The bus was not told.
    pub(super) fn events_dropped(&mut self, now: Instant, request: EventsRequest) {
        match request {
            EventsRequest::Is { subject, .. } => _ = self.events.unsaid_to_bus.insert(subject),
            request => self.events.untold.push(request),
        }
        self.arm_kept(now);
    }

    /// An event of the bus needs not be sent any more, or could not be sent here.
    pub fn event_is_done(&mut self, position: Position, is_taken: bool) {
        self.tell_bus(if is_taken { EventsRequest::Taken(position) } else { EventsRequest::Left(position) });
    }

    pub(super) fn handle_events(&mut self, answer: EventsAnswer) {
        match answer {
            EventsAnswer::Event(kept) => {
                let KeptEvent { position, subject, is_there, n, at_unix_ms, node } = kept;
                let happened = Happened { subject, is_there, n };
                self.send_event(at_unix_ms, &happened, &node, Some(position));
            }
            EventsAnswer::Dropped(count) => self.effects.push_back(Effect::EventsDropped(count)),
            EventsAnswer::Begins(epoch) => self.effects.push_back(Effect::EventsBegin(epoch)),
        }
    }

    /// A shard makes events of users now, and knows of none.
    pub(super) fn handle_ask_users(&mut self, from: usize) {
        self.begin_users(Some(from));
    }

    /// Other events are wanted. What is here already is told as if it came now: rooms with the plan's rules ([`Hub::adopt`]),
    /// and users if this says so.
    pub(super) fn adopt_events(&mut self, plan: EventPlan) -> bool {
        let is_told_off = self.bus.is_some() && self.events.plan.wants_more_than(plan);
        let told: Vec<Subject> = if is_told_off { self.events.told().collect() } else { Vec::new() };
        let fresh = self.events.adopt(plan);
        // Nobody looks any more whether they are here.
        for subject in told {
            if !self.events.known.contains_key(&subject) {
                self.tell_bus(EventsRequest::Is { subject, is_here: false });
            }
        }
        if fresh.users {
            // Whichever of two shards is later with the plan sees to it that the home hears of the other's users.
            for shard in (0..self.shards).filter(|&shard| shard != self.shard) {
                self.post.send(shard, RoomLetter::AskUsers);
            }
        }
        fresh.users
    }

    /// A step of a room is over: whether it has members may have changed.
    pub(super) fn note_home(&mut self, now: Instant, key: Key, was_occupied: bool) {
        let Some(home) = self.homes.get(key).filter(|home| home.is_occupied() != was_occupied) else { return };
        let (room, is_there) = (home.room().clone(), home.is_occupied());
        self.note_room(now, room, is_there);
    }

    pub(super) fn pass_events_time(&mut self, now: Instant) {
        while let Some(happened) = self.events.take_due(now) {
            self.tell_event(now, Some(happened));
        }
    }

    pub(super) fn arm_events(&mut self) {
        let due = self.events.due();
        self.timers.set(Timer::Events, &mut self.events.armed, due);
    }

    fn tell_event(&mut self, now: Instant, happened: Option<Happened>) {
        let Some(happened) = happened else { return };
        if self.bus.is_some() {
            let Happened { subject, is_there, .. } = happened;
            return self.tell_bus(EventsRequest::Is { subject, is_here: is_there });
        }
        let node = self.node.clone();
        self.send_event((self.to_unix_ms)(now), &happened, &node, None);
    }

    fn send_event(&mut self, at_unix_ms: u64, happened: &Happened, node: &str, position: Option<Position>) {
        let Happened { subject, is_there, n } = happened;
        let (kind, lane, name) = match subject {
            Subject::Room(room) => {
                let kind = if *is_there { EventKind::RoomOccupied } else { EventKind::RoomVacated };
                (kind, room.stable_hash(), room.as_str())
            }
            Subject::User(user) => {
                let kind = if *is_there { EventKind::UserOnline } else { EventKind::UserOffline };
                (kind, super::name::stable_hash(user.as_bytes()), &**user)
            }
        };
        let epoch = position.map(|position| position.epoch);
        // Numbers are of this process, or of the count that the bus keeps.
        let count = epoch.map_or_else(|| node.to_owned(), |epoch| epoch.to_string());
        let key = format!("{count}:{}:{n}", subject.to_text()).into();
        let json = self.encoder.event(at_unix_ms, kind.name(), name, &EventNumber { n: *n, node, epoch });
        self.effects.push_back(Effect::Event(Event { kind, lane, key, json, position }));
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test that panics has failed")]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);
    const ALL: EventPlan = EventPlan { rooms: true, users: true, grace: GRACE };

    fn user(name: &str) -> Subject {
        Subject::User(Arc::from(name))
    }

    /// Whether somebody is there, and the number of what is told.
    fn told(happened: Option<Happened>) -> Option<(bool, u64)> {
        happened.map(|happened| (happened.is_there, happened.n))
    }

    #[test]
    fn what_is_told_alternates_and_waits_for_the_grace() {
        let (mut events, mut now) = (Events::new(ALL), Instant::START);
        assert_eq!(told(events.note(now, user("a"), 0, false)), None, "nobody knew");
        assert_eq!(told(events.note(now, user("a"), 0, true)), Some((true, 1)));
        assert_eq!(told(events.note(now, user("a"), 1, true)), None, "there already");
        assert_eq!(told(events.note(now, user("a"), 1, true)), None, "said twice");
        assert_eq!(told(events.note(now, user("a"), 0, false)), None);
        assert_eq!(events.due(), Instant::NEVER, "still there on another shard");
        assert_eq!(told(events.note(now, user("a"), 1, false)), None);
        assert_eq!(events.due(), now + GRACE);
        now += GRACE / 2;
        assert_eq!((told(events.take_due(now)), told(events.note(now, user("a"), 2, true))), (None, None));
        assert_eq!(told(events.take_due(now + GRACE)), None, "back in time");
        events.note(now, user("a"), 2, false);
        now += GRACE;
        assert_eq!((told(events.take_due(now)), told(events.take_due(now))), (Some((false, 2)), None));
        assert_eq!(told(events.note(now, user("a"), 0, true)), Some((true, 3)), "the numbers go on");
        assert_eq!(events.due(), Instant::NEVER);
    }

    #[test]
    fn numbers_of_whom_nobody_remembers_still_rise() {
        let (mut events, mut now) = (Events::new(ALL), Instant::START);
        for name in ["a", "b"] {
            events.note(now, user(name), 0, true);
            events.note(now, user(name), 0, false);
        }
        now += GRACE;
        while events.take_due(now).is_some() {}
        now += NUMBERS_KEPT_FOR;
        assert_eq!(told(events.take_due(now)), None);
        assert!(events.known.is_empty() && events.gone.is_empty());
        assert_eq!(told(events.note(now, user("a"), 0, true)), Some((true, 3)));
        assert_eq!(told(events.note(now, user("c"), 0, true)), Some((true, 3)));
    }

    #[test]
    fn those_who_have_gone_are_remembered_within_a_bound() {
        let (mut events, now) = (Events::new(EventPlan { grace: Duration::ZERO, ..ALL }), Instant::START);
        for number in 0..NUMBERS_KEPT_MAX.saturating_add(100) {
            let name = user(&number.to_string());
            assert_eq!(
                told(events.note(now, name.clone(), 0, true)),
                Some((true, 1)).filter(|_| events.floor == 0).or(Some((true, events.floor.saturating_add(1))))
            );
            events.note(now, name, 0, false);
            assert!(events.take_due(now).is_some());
        }
        events.take_due(now);
        assert_eq!((events.known.len(), events.gone.len()), (NUMBERS_KEPT_MAX, NUMBERS_KEPT_MAX));
    }

    #[test]
    fn a_plan_decides_what_is_watched() {
        let rooms = EventPlan { users: false, ..ALL };
        let (mut events, now) = (Events::new(rooms), Instant::START);
        let room = || Subject::Room(RoomName::parse("public.x").expect("a name"));
        assert_eq!(told(events.note(now, user("a"), 0, true)), None);
        assert_eq!(told(events.note(now, room(), 0, true)), Some((true, 1)));
        let fresh = events.adopt(ALL);
        assert_eq!((fresh.rooms, fresh.users), (false, true));
        events.note(now, room(), 0, false);
        let fresh = events.adopt(EventPlan::default());
        assert_eq!((fresh.rooms, fresh.users, events.due()), (false, false, Instant::NEVER));
        assert!(events.known.is_empty());
        events.adopt(ALL);
        assert_eq!(told(events.note(now, room(), 0, true)), Some((true, 2)), "numbers never go back");
    }

    #[test]
    fn in_a_drain_nobody_is_waited_for() {
        let (mut events, now) = (Events::new(ALL), Instant::START);
        for name in ["a", "b"] {
            events.note(now, user(name), 0, true);
        }
        events.note(now, user("a"), 0, false);
        events.hurry(now);
        assert_eq!(told(events.take_due(now)), Some((false, 2)));
        events.note(now, user("b"), 0, false);
        assert_eq!(told(events.take_due(now)), Some((false, 2)));
    }
}

//! The WebSocket hub: rooms, their members and messages, without sockets, clocks or a runtime.
//!
//! Each shard has a [`Hub`]. It is told what clients said, what other shards' hubs wrote, and that time has passed; it says
//! what is to be done by [`Hub::poll_effect`], and whose outbox is to be written by [`Hub::next_dirty`]. Connections, frames
//! on the wire, tokens and services are the driver's.
//!
//! It runs inside a shard's state, where a panic ends the process, on what strangers send: the same lints as in `proto`.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod adopt;
mod arena;
mod asks;
pub mod bus;
mod client;
pub mod code;
mod crowd;
mod drain;
mod early;
pub mod encode;
pub mod events;
mod following;
pub mod frame;
mod history;
mod home;
mod homes;
mod json;
pub mod letter;
mod letters;
pub mod limits;
mod membership;
pub mod message;
pub mod name;
mod order;
pub mod others;
pub mod outbox;
mod outside;
pub mod pointer;
pub mod position;
mod post;
mod presence;
mod queue;
mod room;
pub mod rules;
mod services;
mod socket;
#[cfg(test)]
mod tests;
mod timers;
mod turn;
pub mod types;
mod unfinished;
pub mod unnumbered;
mod users;
mod walk;

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::num::NonZero;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arena::{Arena, Key};
use asks::{Asker, Asks, Question};
use bus::{Bus, BusCounts, BusRequest};
use code::{Close, Code};
use encode::{Encoder, Welcome};
use events::{Event, EventPlan, Events};
use frame::Frame;
pub use history::Secret;
use history::Window;
use home::Home;
pub use json::is_too_deep;
use letter::{Look, RoomLetter};
use limits::Limits;
use name::RoomName;
use order::Order;
use others::Others;
pub use outbox::{Outbox, PIECES_MAX};
pub use outside::ServiceMessage;
use position::Position;
use post::Post;
use queue::Sockets;
use room::LocalRoom;
use rules::Rules;
pub use services::{ServiceOutcome, Ticket};
use socket::{Due, State};
pub use socket::{Identity, Socket, SocketKey};
use timers::{Timer, Timers};
use types::ServiceTypes;
use unfinished::Unfinished;
use users::UserCounts;
use walk::Walks;

use crate::shard::Instant;

/// When letters that did not go are sent again.
const KEPT_INTERVAL: Duration = Duration::from_millis(100);

/// What a hub is made of.
#[derive(Debug)]
pub struct Setup {
    /// Which shard it is, of how many.
    pub shard: usize,
    /// See [`Setup::shard`].
    pub shards: usize,
    /// The name of this process, which no other has.
    pub node: Box<str>,
    /// What may be configured.
    pub plan: Plan,
    /// Where randomness begins.
    pub seed: u64,
    /// What ids are hashed with: the same on all shards.
    pub secret: Secret,
    /// The time of day at an instant, in milliseconds since 1970.
    pub to_unix_ms: fn(Instant) -> u64,
    /// Whether rooms span instances: a bus gives the numbers, see [`bus::BusRequest`].
    pub has_bus: bool,
}

/// What may be configured, and changed while the hub runs. One per shard; limits that count for the instance are this
/// shard's share.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Every number.
    pub limits: Rc<Limits>,
    /// Who may do what.
    pub rules: Rc<Rules>,
    /// Types of messages that go to services.
    pub types: Rc<ServiceTypes>,
    /// Of what events are made.
    pub events: EventPlan,
}

/// A socket that comes.
#[derive(Debug)]
pub struct Entrance<W> {
    /// Whatever the driver knows it by.
    pub handle: W,
    /// The client that it is from, as a number: sockets without a log-in are counted by it.
    pub network: NonZero<u64>,
    /// Who it speaks for; nobody before an `auth`.
    pub identity: Option<Identity>,
    /// The window for compressed messages (RFC 7692), as a power of two, where they are agreed.
    pub window_bits: Option<u8>,
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Effect {
    /// Send this to another shard's hub; tell [`Hub::letter_dropped`] if it did not go.
    Letter(usize, RoomLetter),
    /// Send this to the bus; tell [`Hub::bus_dropped`] if it did not go.
    Bus(BusRequest),
    /// Write what is queued for the socket, close it with this, and then [`Hub::leave`].
    Close(SocketKey, Close),
    /// End the connection at once, though what was begun is not written, and then [`Hub::leave`].
    Cut(SocketKey),
    /// Send a ping.
    Ping(SocketKey),
    /// What [`Hub::socket_due`] says has become earlier.
    Due(SocketKey),
    /// Check a token; tell [`Hub::authenticated`] or [`Hub::auth_failed`], with the id.
    Auth {
        /// For whom.
        socket: SocketKey,
        /// What to call the answer.
        id: Option<Box<str>>,
        /// The token.
        token: Box<str>,
    },
    /// Send a message to a service; tell [`Hub::service_answered`].
    Forward {
        /// What names it.
        ticket: Ticket,
        /// Whose it is.
        socket: SocketKey,
        /// Which of the [`ServiceTypes`] it is.
        index: usize,
        /// The client's id.
        id: Option<Box<str>>,
        /// The message.
        payload: Box<str>,
    },
    /// Nobody waits any more for what was forwarded.
    Cancel(Ticket),
    /// Somebody outside of the hub wants to know this.
    Event(Event),
    /// So many events were dropped, as too many waited.
    EventsDropped(u64),
    /// Events that the bus has numbered in another epoch than this need not be sent any more.
    EventsBegin(position::Epoch),
    /// The answer for somebody outside of the hub.
    Told {
        /// The number that was given with the question.
        asker: u64,
        /// The answer.
        answer: Answer,
    },
}

/// An answer for somebody outside of the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No.
    Refused(Code),
    /// The message has this number.
    Published(Position),
    /// How the room stands.
    Room(Look),
    /// So many sockets of the user there were, on the shards and instances that answered.
    Sockets {
        /// Sockets.
        count: u32,
        /// Shards that were asked.
        asked: u32,
        /// Shards that answered.
        answered: u32,
        /// Other instances; none where they could not be asked.
        others: Option<Others>,
    },
}

/// The numbers of a hub, for metrics and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sockets that are open.
    pub sockets: usize,
    /// Users with sockets here.
    pub users: usize,
    /// Users at home here, with sockets anywhere.
    pub users_at_home: usize,
    /// Rooms with members here.
    pub rooms: usize,
    /// Rooms at home here.
    pub homes: usize,
    /// Bytes of frames that wait.
    pub frame_bytes: usize,
    /// Bytes of messages that have come in part.
    pub unfinished_bytes: usize,
    /// Bytes of histories.
    pub history_bytes: usize,
    /// Bytes that wait for services.
    pub service_bytes: usize,
    /// Questions under way.
    pub asks: usize,
    /// Letters that are sent again.
    pub kept: usize,
    /// Sockets that wait for their turn to be written.
    pub backlog: usize,
    /// Bytes that connections took, since the start.
    pub written_bytes: u64,
    /// Frames that were queued, since the start.
    pub deliveries: u64,
    /// Messages that outboxes dropped, and told, since the start.
    pub dropped: u64,
    /// Holes that were asked for, since the start.
    pub pulls: u64,
    /// Members who were told that something is lost, since the start.
    pub discontinuities: u64,
    /// What the bus did.
    pub bus: BusCounts,
}

/// The hub of a shard. One per shard.
#[derive(Debug)]
pub struct Hub<W> {
    shard: usize,
    shards: usize,
    node: Box<str>,
    plan: Plan,
    rng: fastrand::Rng,
    secret: Secret,
    to_unix_ms: fn(Instant) -> u64,
    encoder: Encoder,
    post: Post,
    effects: VecDeque<Effect>,
    sockets: Sockets<W>,
    /// Frames that letters may still have queued in this turn; see there.
    left_of_letters: usize,
    unfinished: Unfinished,
    users: HashMap<Arc<str>, Vec<SocketKey>>,
    /// Of users at home here.
    user_counts: UserCounts,
    /// Sockets without a log-in, by where they come from.
    anonymous: HashMap<NonZero<u64>, u32>,
    rooms: Arena<LocalRoom>,
    room_names: HashMap<RoomName, Key>,
    homes: Arena<Home>,
    home_names: HashMap<RoomName, Key>,
    /// Rooms at home here that each user has made.
    makers: HashMap<Arc<str>, u32>,
    /// None where one instance is complete by itself.
    bus: Option<Bus>,
    bus_counts: BusCounts,
    history_bytes: usize,
    /// Ids that rooms at home here know.
    ids: Rc<Cell<usize>>,
    /// Messages in histories, the oldest first; what was forgotten is passed over.
    history_order: Order,
    asks: Asks,
    /// Messages to users by their ids, and how many sockets here each was for.
    said_to_users: Window,
    timers: Timers,
    /// Letters that did not go and have to.
    kept: VecDeque<(usize, RoomLetter)>,
    kept_armed: Instant,
    events: Events,
    service_bytes: usize,
    draining: Option<drain::Draining>,
    walks: Walks,
    pulls: u64,
    discontinuities: u64,
}

impl<W> Hub<W> {
    /// An empty hub.
    pub fn new(setup: Setup) -> Self {
        let Setup { shard, shards, node, plan, seed, secret, to_unix_ms, has_bus } = setup;
        let (sockets, left_of_letters) = (Sockets::new(&plan.limits), plan.limits.pushes_per_turn);
        Self {
            shard,
            shards: shards.max(1),
            node,
            events: Events::new(plan.events),
            plan,
            rng: fastrand::Rng::with_seed(seed),
            secret,
            to_unix_ms,
            encoder: Encoder::default(),
            post: Post::new(shard),
            effects: VecDeque::new(),
            sockets,
            left_of_letters,
            unfinished: Unfinished::default(),
            users: HashMap::new(),
            user_counts: UserCounts::default(),
            anonymous: HashMap::new(),
            rooms: Arena::default(),
            room_names: HashMap::new(),
            homes: Arena::default(),
            home_names: HashMap::new(),
            makers: HashMap::new(),
            bus: has_bus.then(Bus::new),
            bus_counts: BusCounts::default(),
            history_bytes: 0,
            ids: Rc::default(),
            history_order: Order::default(),
            asks: Asks::default(),
            said_to_users: Window::default(),
            timers: Timers::default(),
            kept: VecDeque::new(),
            kept_armed: Instant::NEVER,
            service_bytes: 0,
            draining: None,
            walks: Walks::default(),
            pulls: 0,
            discontinuities: 0,
        }
    }

    // ---- sockets come and go ----

    /// A socket comes. One that is refused is closed with what this says.
    pub fn enter(&mut self, now: Instant, entrance: Entrance<W>) -> Result<SocketKey, Close> {
        let Entrance { handle, network, identity, window_bits } = entrance;
        let limits = Rc::clone(&self.plan.limits);
        if self.draining.is_some() {
            return Err(Close::TryLater);
        }
        if self.sockets.all.len() >= limits.sockets_max as usize {
            return Err(Close::TooManyConnections);
        }
        let Some(identity) = identity else {
            let count = self.anonymous.entry(network).or_default();
            if *count >= limits.anonymous_per_address_max {
                return Err(Close::TooManyConnections);
            }
            *count = count.saturating_add(1);
            let mut socket = Socket::new(now, handle, now + limits.auth_within, Some(network));
            socket.window_bits = window_bits.unwrap_or_default();
            return Ok(self.sockets.all.insert(socket));
        };
        if identity.expires <= now {
            return Err(Close::TokenExpired);
        }
        if self.is_full_of(&identity.user) {
            return Err(Close::TooManyConnections);
        }
        let mut socket = Socket::new(now, handle, identity.expires, None);
        socket.window_bits = window_bits.unwrap_or_default();
        let key = self.sockets.all.insert(socket);
        self.identify(key, identity);
        self.welcome(now, key);
        self.settle(now);
        Ok(key)
    }

    /// Whether a user has as many sockets as may be.
    fn is_full_of(&self, user: &str) -> bool {
        self.users.get(user).is_some_and(|sockets| sockets.len() >= self.plan.limits.sockets_per_user_max as usize)
    }

    /// The socket speaks for this user from now on.
    fn identify(&mut self, key: SocketKey, identity: Identity) {
        self.forget_network(key);
        let Some(socket) = self.sockets.all.get_mut(key) else { return };
        socket.expires = identity.expires;
        socket.session = identity.session;
        socket.permits = identity.permits;
        if socket.user.is_some() {
            return;
        }
        socket.state = State::Live;
        // One text for all sockets of a user.
        let user = self.users.get_key_value(&identity.user).map_or(identity.user, |(user, _)| Arc::clone(user));
        socket.user = Some(Arc::clone(&user));
        // Most have one socket: no room for more.
        let sockets = self.users.entry(Arc::clone(&user)).or_insert_with(|| Vec::with_capacity(1));
        sockets.push(key);
        if sockets.len() == 1 {
            self.note_user(&user);
        }
        self.tell_count(&user);
    }

    fn welcome(&mut self, now: Instant, key: SocketKey) {
        let Some(socket) = self.sockets.all.get(key) else { return };
        let Some(user) = &socket.user else { return };
        let connection = format!("c_{:x}_{:x}", self.shard, key.to_bits());
        let heartbeat_ms = u64::try_from(self.plan.limits.ping_every.as_millis()).unwrap_or(u64::MAX);
        let session = socket.session.as_deref();
        let welcome = Welcome { connection: &connection, heartbeat_ms, node: &self.node, user, session };
        let frame = self.encoder.welcome((self.to_unix_ms)(now), &welcome);
        self.sockets.push(key, frame);
    }

    /// Closes a socket: it is in no room any more, nothing more is queued for it, and the driver is told, once.
    pub fn close(&mut self, now: Instant, key: SocketKey, close: Close) {
        self.end(now, key, Some(close));
        self.settle(now);
    }

    /// The socket's connection has ended.
    pub fn leave(&mut self, now: Instant, key: SocketKey) -> Option<W> {
        self.end(now, key, None);
        let socket = self.sockets.all.remove(key)?;
        self.settle(now);
        Some(socket.handle)
    }

    /// Ends what the hub does for a socket.
    fn end(&mut self, now: Instant, key: SocketKey, close: Option<Close>) {
        let Some(socket) = self.sockets.all.get_mut(key).filter(|socket| socket.state != State::Closing) else {
            return;
        };
        socket.state = State::Closing;
        self.unfinished.remove(key);
        if close.is_none_or(|close| close == Close::SlowConsumer) {
            socket.outbox.abandon();
        }
        let user = socket.user.clone();
        self.forget_network(key);
        self.leave_all(now, key);
        self.forget_waiting(key);
        if let Some(user) = user
            && let Some(sockets) = self.users.get_mut(&user)
        {
            sockets.retain(|&socket| socket != key);
            if sockets.is_empty() {
                self.users.remove(&user);
                self.note_user(&user);
            }
            self.tell_count(&user);
        }
        if let Some(close) = close {
            self.effects.push_back(Effect::Close(key, close));
        }
    }

    /// The socket does not count any more among those without a log-in.
    fn forget_network(&mut self, key: SocketKey) {
        let Some(network) = self.sockets.all.get_mut(key).and_then(|socket| socket.network.take()) else { return };
        if let Some(count) = self.anonymous.get_mut(&network) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.anonymous.remove(&network);
            }
        }
    }

    // ---- time ----

    /// Something came from a socket: a message, a pong, any frame.
    pub fn heard(&mut self, now: Instant, key: SocketKey) {
        if let Some(socket) = self.sockets.all.get_mut(key) {
            socket.hear(now);
        }
    }

    /// When [`Hub::handle_socket_timeout`] is due; it becomes earlier only by [`Effect::Due`].
    pub fn socket_due(&self, key: SocketKey) -> Instant {
        let limits = &self.plan.limits;
        let due =
            |socket: &Socket<W>| socket.due(jitter(key), limits).min(self.unfinished.due(key, limits.message_within));
        self.sockets.all.get(key).map_or(Instant::NEVER, due)
    }

    /// Time has passed for a socket.
    pub fn handle_socket_timeout(&mut self, now: Instant, key: SocketKey) {
        let Some(socket) = self.sockets.all.get_mut(key) else { return };
        let is_late = self.unfinished.due(key, self.plan.limits.message_within) <= now;
        match socket.pass_time(now, jitter(key), &self.plan.limits) {
            Due::Close(close) => self.end(now, key, Some(close)),
            Due::Nothing | Due::Ping if is_late => self.end(now, key, Some(Close::PolicyViolation)),
            Due::Nothing => {}
            Due::Ping => self.effects.push_back(Effect::Ping(key)),
        }
        self.settle(now);
    }

    /// When [`Hub::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next().into_iter().chain(self.asks.next_late()).min()
    }

    /// Time has passed for rooms and questions.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.take_due(now) {
            match timer {
                Timer::Home(key) => self.handle_home_timeout(now, key),
                Timer::Pull(key) => self.handle_pull_timeout(now, key),
                Timer::Kept => self.send_kept(now),
                Timer::Events => {
                    self.events.armed = Instant::NEVER;
                    self.pass_events_time(now);
                }
                Timer::Forgotten => self.send_forgotten(),
                Timer::Bus => {
                    if let Some(bus) = &mut self.bus {
                        bus.walk_armed = Instant::NEVER;
                    }
                    self.walk_bus(now);
                }
            }
        }
        while let Some((ticket, asker)) = self.asks.take_late(now) {
            self.tell_late(now, ticket, asker);
        }
        self.settle(now);
    }

    // ---- the end of each step ----

    /// Reads what this shard wrote to itself, as far as the turn goes, and closes whom it is too much for.
    fn settle(&mut self, now: Instant) {
        loop {
            while self.sockets.left > 0
                && let Some(letter) = self.post.next_own()
            {
                self.read(now, self.shard, letter);
            }
            let full = std::mem::take(&mut self.sockets.full);
            if full.is_empty() && self.encoder.tally().bytes() <= self.plan.limits.frames_bytes_max {
                break;
            }
            let is_budget_spent = full.is_empty();
            for key in full {
                self.end(now, key, Some(Close::SlowConsumer));
            }
            if is_budget_spent && !self.close_slowest(now) {
                break;
            }
        }
        self.arm_events();
    }
}

/// A socket's own fraction, for what sockets are not to do at once.
fn jitter(key: SocketKey) -> f64 {
    // Fibonacci hashing: keys that follow one another are spread evenly.
    let spread = key.to_bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    f64::from(u32::try_from(spread).unwrap_or_default()) / f64::from(u32::MAX)
}

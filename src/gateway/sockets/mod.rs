//! The hub of a shard at work: lends the pure core its sockets, a clock, the way to other shards, tokens and services.
//!
//! What is decided about rooms, members and messages is for `hub`; how one socket is read and written is in `socket.rs`.

mod ask;
mod calls;
mod endpoints;
mod events;
mod identity;
mod open;
mod plan;
mod service;
mod socket;

use std::{
    cell::{Cell, OnceCell},
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io::IoSlice,
    net::IpAddr,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use ask::Questions;
use calls::Calls;
pub(super) use endpoints::{HubEndpoint, answer};
use events::Events;
pub(super) use open::{Opener, refused};
pub(super) use plan::HubPlan;
pub(super) use service::label_services;
use socket::Handle;
pub(super) use socket::Opening;

use super::{Gateway, Plan};
use crate::{
    auth::Claims,
    exchange::{Ledger, OpenSocket},
    hub::{
        Effect, Hub, PIECES_MAX, Secret, Setup, SocketKey,
        bus::{BusAnswer, BusCounts, BusRequest},
        code::Close,
        frame::{Frame, Kind, Tally},
        letter::RoomLetter,
        rules::PermitShelf,
    },
    proto::websocket::{Opcode, header},
    shard::{Deadline, Instant, Local, clock, task},
    telemetry::{
        metrics::{BusLoss, BusRefusal, Counters, SocketClosed},
        record::SocketEnd,
    },
};

/// Sockets that are written before the shard's other tasks get their turn: 5,000 at once would hold up requests for 15 ms,
/// and a request waits for two or three turns. With 64 a delivery was no cheaper (PERF.md, "The hub").
const WRITES_PER_TURN: usize = 16;

/// Sockets that are read again in a turn, of those that were held: most have a message, and few of these fill the turn.
const HELD_PER_TURN: usize = 64;

/// The close code of a connection that went without a close frame (RFC 6455 §7.1.5).
const ABNORMAL: u16 = 1006;

/// How a hub's letters go to other shards. One that does not go comes back.
pub type SendLetter = Box<dyn Fn(usize, RoomLetter) -> Result<(), RoomLetter>>;

/// How a hub's requests go to the bus between instances. One that does not go comes back.
pub type AskBus = Box<dyn Fn(BusRequest) -> Result<(), BusRequest>>;

/// Where a shard's hub stands among those of the process.
pub struct Seat {
    /// The number of its shard.
    pub shard: usize,
    /// How many there are.
    pub shards: usize,
    /// The name of this process, which no other has.
    pub node: Box<str>,
    /// What the ids of messages are hashed with: the same on all shards.
    pub secret: Secret,
    /// The way to the others.
    pub send: SendLetter,
    /// The way to the bus between instances, where there is one.
    pub ask_bus: Option<AskBus>,
}

/// The hub, and what it needs of its shard. One per shard.
pub(super) struct Sockets {
    hub: Local<Hub<Handle>>,
    /// Whose tokens and services it uses.
    gateway: OnceCell<Weak<Gateway>>,
    send: SendLetter,
    ask_bus: Option<AskBus>,
    runner: Local<Runner>,
    /// Sockets that are read once the hub takes messages again, in turn.
    held: Local<VecDeque<SocketKey>>,
    calls: Calls,
    questions: Questions,
    events: Events,
    shelf: Local<PermitShelf>,
    /// What control frames count as.
    tally: Tally,
    outbox_bytes_max: Cell<usize>,
    shards: usize,
    ledger: Rc<Local<Ledger>>,
}

/// The task that writes and keeps time.
struct Runner {
    waker: Option<Waker>,
    /// When it runs next by itself.
    due: Instant,
}

/// What became of an attempt to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// Nothing waits.
    All,
    /// More waits.
    Part,
    /// The connection takes nothing more now.
    Blocked,
    /// It is broken.
    Broken,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets").finish_non_exhaustive()
    }
}

impl Sockets {
    pub(super) fn new(seat: Seat, plan: &HubPlan, ledger: Rc<Local<Ledger>>) -> Rc<Self> {
        let hub = Hub::new(Setup {
            shard: seat.shard,
            shards: seat.shards,
            node: seat.node,
            plan: plan.of_shard(seat.shards),
            seed: ledger.with(|ledger| ledger.rng.u64(..)),
            secret: seat.secret,
            to_unix_ms: |instant| u64::try_from(clock::to_unix(instant).as_millis()).unwrap_or(u64::MAX),
            has_bus: seat.ask_bus.is_some(),
        });
        Rc::new(Self {
            hub: Local::new(hub),
            gateway: OnceCell::new(),
            send: seat.send,
            ask_bus: seat.ask_bus,
            held: Local::default(),
            runner: Local::new(Runner { waker: None, due: Instant::NEVER }),
            calls: Calls::default(),
            questions: Questions::default(),
            events: Events::default(),
            shelf: Local::default(),
            tally: Tally::default(),
            outbox_bytes_max: Cell::new(plan.limits.outbox_bytes_max),
            shards: seat.shards,
            ledger,
        })
    }

    /// From now on tokens are checked and services asked by this gateway.
    pub(super) fn attach(&self, gateway: &Rc<Gateway>) {
        let _ = self.gateway.set(Rc::downgrade(gateway));
    }

    fn gateway(&self) -> Option<Rc<Gateway>> {
        self.gateway.get()?.upgrade()
    }

    /// Another plan is in force.
    pub(super) fn adopt(self: &Rc<Self>, plan: &Plan) {
        self.outbox_bytes_max.set(plan.hub.limits.outbox_bytes_max);
        self.calls.part();
        self.step(|hub, now| {
            hub.adopt(now, plan.hub.of_shard(self.shards));
            hub.expire_permits();
        });
        self.renew_permits(plan);
    }

    /// Gives some of the sockets that have them from a plan before the permits of this one.
    fn renew_permits(&self, plan: &Plan) {
        self.hub.with(|hub| {
            hub.renew_permits(|handle| handle.claims.as_ref().map(|claims| self.permits(plan, claims)));
        });
    }

    /// Whether the hub is to hear more from other shards and the bus in this turn.
    pub(super) fn takes_letters(&self) -> bool {
        self.hub.with(|hub| hub.takes_letters())
    }

    /// Another shard's hub has written.
    pub(super) fn hear(self: &Rc<Self>, from: usize, letter: RoomLetter) {
        self.step(|hub, now| hub.handle_letter(now, from, letter));
    }

    /// The bus between instances says something.
    pub(super) fn hear_bus(self: &Rc<Self>, answer: BusAnswer) {
        self.step(|hub, now| hub.handle_bus(now, answer));
    }

    /// Whether rooms are whole now: they span instances, or need not.
    pub(super) fn has_bus(&self) -> bool {
        self.hub.with(|hub| hub.has_bus())
    }

    /// Whether there are other instances whose sockets are of the same hub.
    pub(super) const fn spans_instances(&self) -> bool {
        self.ask_bus.is_some()
    }

    /// The bus between instances has come or gone.
    pub(super) fn bus_is_up(self: &Rc<Self>, is_up: bool) {
        self.step(|hub, now| hub.bus_is_up(now, is_up));
    }

    /// The process goes: each socket is told when to come back, and closed at a time of its own.
    pub(super) fn drain(self: &Rc<Self>, window: Duration) {
        self.step(|hub, now| hub.drain(now, window));
    }

    /// Adds what it holds to the shard's counters.
    pub(super) fn count(&self, counters: &mut Counters) {
        let counts = self.hub.with(|hub| hub.counts());
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        counters.sockets_open = gauge(counts.sockets);
        counters.hub_users = gauge(counts.users);
        counters.hub_rooms = gauge(counts.rooms);
        counters.hub_homes = gauge(counts.homes);
        counters.hub_frame_bytes = gauge(counts.frame_bytes);
        counters.hub_history_bytes = gauge(counts.history_bytes);
        counters.hub_events_waiting = gauge(self.events.waiting());
        counters.hub_backlog = gauge(counts.backlog);
        counters.hub_written_bytes = counts.written_bytes;
        counters.hub_deliveries = counts.deliveries;
        counters.hub_dropped = counts.dropped;
        counters.hub_pulls = counts.pulls;
        counters.hub_discontinuities = counts.discontinuities;
        let BusCounts { publishes, deliveries, repaired, lost, begun, away, full } = counts.bus;
        counters.bus_publishes = publishes;
        counters.bus_deliveries = deliveries;
        counters.bus_repaired = repaired;
        counters.bus_losses[BusLoss::Window.index()] = lost;
        counters.bus_losses[BusLoss::Epoch.index()] = begun;
        counters.bus_refused[BusRefusal::Away.index()] = away;
        counters.bus_refused[BusRefusal::Full.index()] = full;
    }

    fn count_close(&self, close: Close) {
        let counted = counted(close);
        self.ledger.with(|ledger| ledger.counters.sockets_closed[counted.index()] += 1);
    }

    /// Writes the line of a socket that has ended; `messages` are those that came, and those that were written.
    fn log_end(
        &self,
        opened: &OpenSocket,
        client: IpAddr,
        claims: Option<&Claims>,
        close: Option<Close>,
        [received, sent]: [u32; 2],
    ) {
        let reason = match close {
            None => "client_gone",
            Some(Close::Normal) => "",
            Some(close) => SocketClosed::VALUES.get(counted(close).index()).copied().unwrap_or_default(),
        };
        let close_code = close.map_or(ABNORMAL, Close::code);
        let user = claims.map_or("", |claims| &claims.sub);
        let end = SocketEnd { close_code, received, sent };
        self.ledger.with(|ledger| opened.log(ledger, client, user, reason, end));
    }

    /// One step of the hub, and all that comes of it.
    fn step<R>(self: &Rc<Self>, change: impl FnOnce(&mut Hub<Handle>, Instant) -> R) -> R {
        let now = clock::now();
        let result = self.hub.with(|hub| change(hub, now));
        self.settle();
        result
    }

    /// Does what the hub asks for, and has what is queued written.
    fn settle(self: &Rc<Self>) {
        while let Some(effect) = self.hub.with(Hub::poll_effect) {
            self.act(effect);
        }
        let (has_work, due) = self.hub.with(|hub| (hub.is_dirty() || hub.is_behind(), hub.poll_timeout()));
        let waker = self.runner.with(|runner| {
            let is_wanted = has_work || due.is_some_and(|due| due < runner.due);
            if is_wanted { runner.waker.take() } else { None }
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn act(self: &Rc<Self>, effect: Effect) {
        match effect {
            Effect::Letter(to, letter) => {
                if let Err(letter) = (self.send)(to, letter) {
                    self.hub.with(|hub| hub.letter_dropped(clock::now(), to, letter));
                }
            }
            Effect::Bus(request) => {
                let Some(ask) = &self.ask_bus else { return };
                if let Err(request) = ask(request) {
                    self.hub.with(|hub| hub.bus_dropped(clock::now(), request));
                }
            }
            Effect::Close(key, close) => self.tell(key, |handle| handle.close = Some(close)),
            Effect::Cut(key) => self.tell(key, |handle| handle.is_broken = true),
            Effect::Ping(key) => {
                self.queue(key, header(Opcode::Ping, 0).as_bytes().to_vec());
            }
            Effect::Due(key) => self.tell(key, |_| {}),
            Effect::Auth { socket, id, token } => self.authenticate(socket, id.as_deref(), &token),
            Effect::Forward { ticket, socket, index, id, payload } => {
                self.forward(ticket, socket, index, id.as_deref(), payload);
            }
            Effect::Cancel(ticket) => self.calls.cancel(ticket),
            Effect::Event(event) => self.send_event(event),
            Effect::EventsDropped(count) => self.count_dropped(count),
            Effect::EventsBegin(epoch) => self.events.begin(epoch),
            Effect::Told { asker, answer } => self.questions.told(asker, answer),
        }
    }

    /// Changes what a socket's task looks at, and wakes it.
    fn tell(&self, key: SocketKey, change: impl FnOnce(&mut Handle)) {
        let ender = self.hub.with(|hub| {
            let handle = &mut hub.socket(key)?.handle;
            change(handle);
            Some(handle.ender.clone())
        });
        if let Some(ender) = ender {
            ender.wake();
        }
    }

    /// Queues a control frame. Whoever does not read what is sent to it has its outbox filled by these too.
    fn queue(&self, key: SocketKey, frame: Vec<u8>) -> bool {
        self.queue_within(key, frame, self.outbox_bytes_max.get())
    }

    /// Queues a frame that finds room however much waits.
    fn queue_always(&self, key: SocketKey, frame: Vec<u8>) {
        self.queue_within(key, frame, usize::MAX);
    }

    fn queue_within(&self, key: SocketKey, frame: Vec<u8>, bytes_max: usize) -> bool {
        self.hub.with(|hub| {
            let Some(socket) = hub.socket(key) else { return false };
            let is_queued = socket.outbox.push(Frame::of_wire(frame, Kind::Plain, &self.tally), bytes_max).is_ok();
            hub.written(key, 0);
            is_queued
        })
    }

    /// Writes what is queued for a socket, with one system call.
    fn write(&self, key: SocketKey, cx: &mut Context<'_>) -> Written {
        self.hub.with(|hub| {
            let Some(socket) = hub.socket(key) else { return Written::All };
            if socket.outbox.is_empty() {
                return Written::All;
            }
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let count = socket.outbox.slices(&mut pieces);
            let io = &socket.handle.io;
            let written = match pieces.get(..count).unwrap_or_default() {
                // Most writes are of one message, for which the kernel has a shorter way.
                [piece] => io.poll_write(cx, piece),
                pieces => io.poll_write_vectored(cx, pieces),
            };
            match written {
                Poll::Ready(Ok(bytes)) => {
                    hub.written(key, bytes);
                    let is_done = hub.socket(key).is_none_or(|socket| socket.outbox.is_empty());
                    if is_done { Written::All } else { Written::Part }
                }
                Poll::Ready(Err(_)) => {
                    socket.handle.is_broken = true;
                    hub.set_blocked(key, true);
                    Written::Broken
                }
                Poll::Pending => {
                    hub.set_blocked(key, true);
                    Written::Blocked
                }
            }
        })
    }

    /// Writes what is queued, a slice at a time, and tells the hub when time has passed. Never ends.
    pub(super) async fn run(self: Rc<Self>) {
        let mut deadline = Deadline::new();
        loop {
            poll_fn(|cx| self.poll_turn(cx, &mut deadline)).await;
            task::yield_now().await;
        }
    }

    fn poll_turn(self: &Rc<Self>, cx: &mut Context<'_>, deadline: &mut Deadline) -> Poll<()> {
        if self.hub.with(|hub| hub.is_behind()) {
            // It is awake.
            self.runner.with(|runner| runner.waker = None);
            self.step(Hub::go_on);
        }
        if self.hub.with(|hub| hub.has_old_permits())
            && let Some(gateway) = self.gateway()
        {
            self.renew_permits(&gateway.live().plan);
        }
        self.release_held();
        let due = self.hub.with(|hub| hub.poll_timeout()).unwrap_or(Instant::NEVER);
        self.runner.with(|runner| {
            runner.due = due;
            if !runner.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                runner.waker = Some(cx.waker().clone());
            }
        });
        deadline.set(due);
        if deadline.poll(cx).is_ready() {
            self.step(Hub::handle_timeout);
            return Poll::Ready(());
        }
        let polled = self.write_slice();
        self.time_messages();
        let has_more = self.hub.with(|hub| hub.is_behind()) || self.held.with(|held| !held.is_empty());
        if has_more { Poll::Ready(()) } else { polled }
    }

    /// Whether this socket may be read in this turn. One that may not is told when it may; what was begun comes first.
    fn takes_messages_of(&self, key: SocketKey, is_begun: bool) -> bool {
        let is_new = self.hub.with(|hub| {
            if hub.takes_messages() {
                return None;
            }
            let handle = &mut hub.socket(key)?.handle;
            Some(!std::mem::replace(&mut handle.is_held, true))
        });
        if is_new == Some(true) {
            self.held.with(|held| if is_begun { held.push_front(key) } else { held.push_back(key) });
        }
        is_new.is_none()
    }

    /// Has the next be read of those that were held.
    fn release_held(&self) {
        for _ in 0..HELD_PER_TURN {
            if !self.hub.with(|hub| hub.takes_messages()) {
                return;
            }
            let Some(key) = self.held.with(VecDeque::pop_front) else { return };
            self.tell(key, |handle| handle.is_held = false);
        }
    }

    /// Writes the next sockets. Pending when nobody waits any more.
    fn write_slice(&self) -> Poll<()> {
        for _ in 0..WRITES_PER_TURN {
            let Some(key) = self.hub.with(Hub::next_dirty) else { return Poll::Pending };
            // A socket that takes no more is its own task's to wait for.
            match self.write(key, &mut Context::from_waker(Waker::noop())) {
                Written::All | Written::Part => {}
                Written::Blocked | Written::Broken => self.tell(key, |_| {}),
            }
        }
        Poll::Ready(())
    }

    /// Counts how long the room messages took that are written now: once a slice, and so to its end.
    fn time_messages(&self) {
        let Some(first) = self.hub.with(Hub::next_fanned_out) else { return };
        let (now, mut next) = (clock::now(), Some(first));
        while let Some(at) = next {
            let us = u64::try_from(now.since(at).as_micros()).unwrap_or(u64::MAX);
            self.ledger.with(|ledger| ledger.counters.hub_publish_to_write.observe_us(us));
            next = self.hub.with(Hub::next_fanned_out);
        }
    }
}

/// What a close counts as.
const fn counted(close: Close) -> SocketClosed {
    match close {
        Close::Normal => SocketClosed::Normal,
        Close::ProtocolError => SocketClosed::ProtocolError,
        Close::Unsupported => SocketClosed::Unsupported,
        Close::InvalidText => SocketClosed::InvalidText,
        Close::TooBig => SocketClosed::TooBig,
        Close::GoingAway | Close::Restart => SocketClosed::Restart,
        Close::TryLater => SocketClosed::TryLater,
        Close::SlowConsumer => SocketClosed::SlowConsumer,
        Close::NoPong => SocketClosed::NoPong,
        Close::Unauthenticated => SocketClosed::Unauthenticated,
        Close::TokenExpired => SocketClosed::TokenExpired,
        Close::Revoked => SocketClosed::Revoked,
        Close::PolicyViolation => SocketClosed::PolicyViolation,
        Close::TooManyConnections => SocketClosed::TooManyConnections,
    }
}

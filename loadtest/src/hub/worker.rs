//! One thread of sockets: takes orders, sends what is due, counts what comes. What is ordered, and when, is the scenarios'.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use crate::hub::message::{self, Kind, Stamp};
use crate::hub::sockets::{Ending, Handler, KEY, Socket, Sockets, Stage};
use crate::hub::tally::{Counts, Phases, Tally, phase_at};
use crate::hub::token::Tokens;
use crate::pace::{Arrival, Pace};
use crate::socket;

const MILLISECOND: u64 = 1_000_000;
/// Orders are looked for this often.
const ORDERS_EVERY: u64 = 5 * MILLISECOND;
/// News is sent this often, and with p99, which takes longer to find, this often.
const NEWS_EVERY: u64 = 20 * MILLISECOND;
const P99_EVERY: u64 = 1000 * MILLISECOND;
/// Sockets that take too long are looked for this often.
const EXPIRE_EVERY: u64 = 100 * MILLISECOND;
/// Sockets opened in one round, so that those that are open are not kept waiting.
const OPENED_MAX: usize = 64;
/// A socket that is refused waits this long at first, and at most, before it tries again; at random up to twice as long.
const RETRY_MIN: u64 = 500 * MILLISECOND;
const RETRY_MAX: u64 = 15_000 * MILLISECOND;
/// The number of a message that belongs to no plan: the burst for all.
const BURST: u64 = 9_999_999_999;
/// Different codes of errors that are told apart.
const CODES_MAX: usize = 50;

/// Sockets that share rooms.
pub(crate) struct Group {
    /// Their places among those of all threads.
    pub(crate) slots: Range<usize>,
    /// Names of its rooms; a member's room is the one of its place, modulo their number. Empty: they join none.
    pub(crate) rooms: Vec<String>,
}

/// What all threads share.
pub(crate) struct Setup {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) tokens: Tokens,
    pub(crate) groups: Vec<Group>,
    /// Sockets that will stop reading: they get small receive buffers, send nothing, and are counted apart.
    pub(crate) slow: Range<usize>,
    pub(crate) timeout_ns: u64,
    pub(crate) opening_max: usize,
}

impl Setup {
    fn room(&self, slot: usize) -> Option<&str> {
        let group = self.groups.iter().find(|group| group.slots.contains(&slot))?;
        let nth = (slot - group.slots.start) % group.rooms.len().max(1);
        group.rooms.get(nth).map(String::as_str)
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
    /// These are closed without a word.
    Drop(Range<usize>),
}

pub(crate) struct Worker {
    sockets: Sockets,
    mind: Mind,
    orders: Receiver<Order>,
    news: Sender<(usize, Counts)>,
    nth: usize,
    /// The intended times of the traffic, those of all threads, and how many have been taken.
    pace: Option<(Pace, u64)>,
    cpu_before: Option<u64>,
}

impl Worker {
    pub(crate) fn new(
        setup: Arc<Setup>,
        nth: usize,
        slots: Range<usize>,
        orders: Receiver<Order>,
        news: Sender<(usize, Counts)>,
    ) -> std::io::Result<Self> {
        let mut sockets = Sockets::new(setup.address, slots.start, slots.len())?;
        for slot in slots.clone().filter(|slot| setup.slow.contains(slot)) {
            sockets.keep_small(slot - slots.start);
        }
        let mind = Mind::new(setup, slots, fastrand::Rng::with_seed(nth as u64 + 1));
        Ok(Self { sockets, mind, orders, news, nth, pace: None, cpu_before: None })
    }

    /// Goes on until nobody gives orders any more.
    pub(crate) fn run(mut self) -> Tally {
        let (mut next_orders, mut next_news, mut next_p99, mut next_expiry) = (0, 0, 0, 0);
        loop {
            let now = socket::now();
            if now >= next_orders {
                next_orders = now + ORDERS_EVERY;
                loop {
                    match self.orders.try_recv() {
                        Ok(order) => self.take(order),
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return self.mind.tally,
                    }
                }
            }
            self.weigh(now);
            if now >= next_expiry {
                next_expiry = now + EXPIRE_EVERY;
                self.expire(now);
            }
            let next = self.open_due().min(self.send_due()).min(next_orders);
            self.sockets.wait(next.saturating_sub(socket::now()), &mut self.mind);
            while let Some(slot) = self.mind.leaving.pop() {
                self.drop_socket(slot);
            }
            if now >= next_news {
                next_news = now + NEWS_EVERY;
                if now >= next_p99 {
                    next_p99 = now + P99_EVERY;
                    let latest = self.mind.tally.latency.iter().rev().find(|latency| !latency.is_empty());
                    self.mind.counts.p99_ns = latest.map_or(0, |latency| latency.value_at_quantile(0.99));
                }
                // Whoever is gone has no use for news.
                let _ = self.news.send((self.nth, self.mind.counts()));
            }
        }
    }

    fn take(&mut self, order: Order) {
        let now = socket::now();
        match order {
            Order::Open(slots, when) => self.mind.plan_opening(&slots, when, now),
            Order::Send(traffic) => {
                self.pace = Some((Pace::new(Arrival::Constant, traffic.rate, traffic.start, 0), 0));
                self.cpu_before = None;
                self.mind.traffic = Some(traffic);
            }
            Order::Burst { group, payload_bytes } => {
                let setup = Arc::clone(&self.mind.setup);
                let Group { slots, rooms } = &setup.groups[group];
                for (slot, room) in slots.clone().zip(rooms) {
                    let Some(slot) = self.mind.own(slot) else { continue };
                    let stamp = Stamp { intended_at: now, number: BURST };
                    let text = message::publish(room, stamp, payload_bytes);
                    self.sockets.socket(slot).send_text(text.as_bytes());
                }
            }
            Order::Deafen(slots) => {
                for slot in slots.filter_map(|slot| self.mind.own(slot)) {
                    self.sockets.socket(slot).is_deaf = true;
                }
            }
            Order::Hear(slots) => {
                for slot in slots.filter_map(|slot| self.mind.own(slot)) {
                    self.sockets.hear(slot);
                }
            }
            Order::Drop(slots) => {
                for slot in slots {
                    if let Some(slot) = self.mind.own(slot) {
                        self.drop_socket(slot);
                    }
                }
            }
        }
    }

    fn drop_socket(&mut self, slot: usize) {
        match self.sockets.socket(slot).stage {
            Stage::Closed => return,
            Stage::Ready => self.mind.counts.ready -= 1,
            _ => self.mind.opening -= 1,
        }
        self.sockets.drop_socket(slot);
    }

    /// Opens the sockets that are due; returns when more will be.
    fn open_due(&mut self) -> u64 {
        for _ in 0..OPENED_MAX {
            let now = socket::now();
            if let Some(slot) = self.mind.next_to_open(now) {
                self.mind.opening += 1;
                self.mind.tally.attempts += 1;
                self.sockets.open(slot, now);
            } else {
                return self.mind.waiting.peek().map_or(u64::MAX, |Reverse((due, _))| *due);
            }
        }
        0
    }

    fn expire(&mut self, now: u64) {
        if self.mind.opening == 0 {
            return;
        }
        for slot in 0..self.mind.places.len() {
            let socket = self.sockets.socket(slot);
            let on_its_way = Stage::Connecting..=Stage::Open;
            if on_its_way.contains(&socket.stage) && now.saturating_sub(socket.began_at) > self.mind.setup.timeout_ns {
                self.sockets.give_up(slot, &mut self.mind, now);
            }
        }
    }

    /// Sends the messages that are due and whose senders are here; returns when more will be.
    fn send_due(&mut self) -> u64 {
        let (Some((pace, taken)), Some(traffic)) = (&mut self.pace, &self.mind.traffic) else { return u64::MAX };
        let setup = Arc::clone(&self.mind.setup);
        let group = &setup.groups[traffic.group];
        loop {
            let due = pace.next_due();
            if due >= traffic.end {
                return u64::MAX;
            }
            let now = socket::now();
            if pace.take_due(now).is_none() {
                return due;
            }
            let stamp = Stamp { intended_at: due, number: *taken };
            *taken += 1;
            let sender = sender(group, &setup.slow, stamp.number);
            let Some(slot) = sender.checked_sub(self.mind.slots.start).filter(|slot| *slot < self.mind.places.len())
            else {
                continue;
            };
            let room = setup.room(sender).unwrap_or("echo");
            let text = message::publish(room, stamp, traffic.payload_bytes);
            let socket = self.sockets.socket(slot);
            if socket.stage == Stage::Ready && socket.send_text(text.as_bytes()) {
                self.mind.tally.publish(&traffic.phases, stamp, now - due);
            } else if phase_at(&traffic.phases, due).is_some() {
                self.mind.tally.unsent += 1;
            }
        }
    }

    /// Marks what the thread costs while it is measured.
    fn weigh(&mut self, now: u64) {
        let Some(traffic) = &self.mind.traffic else { return };
        let begin = traffic.phases.iter().map(|phase| phase.start).filter(|start| *start > 0).min();
        match (begin, self.cpu_before) {
            (Some(begin), None) if (begin..traffic.end).contains(&now) => self.cpu_before = Some(socket::thread_cpu()),
            (_, Some(before)) if now < traffic.end => self.mind.tally.thread_cpu_ns = socket::thread_cpu() - before,
            _ => {}
        }
    }
}

/// Who sends a group's message of this number: the members of each room in turn, but for those who do not read.
fn sender(group: &Group, slow: &Range<usize>, number: u64) -> usize {
    let rooms = group.rooms.len().max(1);
    let slow_here = group.slots.end.min(slow.end).saturating_sub(group.slots.start.max(slow.start));
    let senders = ((group.slots.len() - slow_here) / rooms).max(1);
    let turn = usize::try_from(number).unwrap_or(0);
    group.slots.start + turn % rooms + turn / rooms % senders * rooms
}

/// What is known of one place.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// When its socket should have begun to open.
    intended_at: u64,
    /// It belongs to those that were ordered at set times, after the beginning.
    is_timed: bool,
    /// It is closed when it is ready.
    leaves: bool,
    /// It tries again when it is refused.
    retries: bool,
    attempts: u32,
}

/// What one thread knows of its sockets, and what it does about what happens on them.
struct Mind {
    setup: Arc<Setup>,
    /// This thread's part of all places.
    slots: Range<usize>,
    places: Vec<Place>,
    /// Places to be opened as others get ready.
    queue: VecDeque<usize>,
    /// Places to be opened at a set time.
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    /// Sockets that are ready and not wanted any more.
    leaving: Vec<usize>,
    opening: usize,
    traffic: Option<Traffic>,
    tally: Tally,
    counts: Counts,
    random: fastrand::Rng,
}

impl Mind {
    fn new(setup: Arc<Setup>, slots: Range<usize>, random: fastrand::Rng) -> Self {
        Self {
            setup,
            places: vec![Place::default(); slots.len()],
            slots,
            queue: VecDeque::new(),
            waiting: BinaryHeap::new(),
            leaving: Vec::new(),
            opening: 0,
            traffic: None,
            tally: Tally::new(),
            counts: Counts::default(),
            random,
        }
    }

    /// A place of all as one of this thread, if it is.
    fn own(&self, slot: usize) -> Option<usize> {
        self.slots.contains(&slot).then(|| slot - self.slots.start)
    }

    fn counts(&self) -> Counts {
        Counts { opening: (self.opening + self.queue.len() + self.waiting.len()) as u64, ..self.counts }
    }

    fn plan_opening(&mut self, slots: &Range<usize>, when: When, now: u64) {
        for (nth, slot) in slots.clone().enumerate() {
            let Some(slot) = self.own(slot) else { continue };
            let place = &mut self.places[slot];
            *place = Place::default();
            match when {
                When::Soon => {
                    self.queue.push_back(slot);
                    continue;
                }
                When::Within(jitter_ns) => {
                    place.retries = true;
                    place.intended_at = now + self.random.u64(0..=jitter_ns);
                }
                When::Each { from, gap_ns } => {
                    place.leaves = true;
                    place.intended_at = from + gap_ns * nth as u64;
                }
            }
            place.is_timed = true;
            self.waiting.push(Reverse((place.intended_at, slot)));
        }
    }

    /// A place to open now.
    fn next_to_open(&mut self, now: u64) -> Option<usize> {
        if self.waiting.peek().is_some_and(|Reverse((due, _))| *due <= now) {
            return self.waiting.pop().map(|Reverse((_, slot))| slot);
        }
        if self.opening >= self.setup.opening_max {
            return None;
        }
        let slot = self.queue.pop_front()?;
        self.places[slot].intended_at = now;
        Some(slot)
    }

    fn ready(&mut self, slot: usize, socket: &mut Socket, now: u64) {
        if socket.stage == Stage::Ready {
            return;
        }
        socket.stage = Stage::Ready;
        self.opening -= 1;
        self.counts.ready += 1;
        let place = self.places[slot];
        self.tally.joining[usize::from(place.is_timed)].saturating_record(now.saturating_sub(place.intended_at));
        if place.leaves {
            self.leaving.push(slot);
        }
    }

    fn deliver(&mut self, slot: usize, stamp: Stamp, now: u64) {
        self.counts.messages += 1;
        if stamp.number == BURST {
            self.counts.bursts += 1;
        } else if self.setup.slow.contains(&(self.slots.start + slot)) {
            self.tally.to_slow += 1;
        } else if let Some(traffic) = &self.traffic {
            self.tally.deliver(&traffic.phases, stamp, now);
        }
    }
}

impl Handler for Mind {
    fn request(&mut self, slot: usize) -> Vec<u8> {
        let Setup { authority, path, tokens, .. } = &*self.setup;
        let protocol = match tokens.of(self.slots.start + slot) {
            token if token.is_empty() => String::new(),
            // As browsers do it, which can set no other field.
            token => format!("Sec-WebSocket-Protocol: shardgate.v1, bearer.{token}\r\n"),
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{protocol}\r\n"
        );
        request.into_bytes()
    }

    fn opened(&mut self, slot: usize, socket: &mut Socket, now: u64) {
        match self.setup.room(self.slots.start + slot) {
            Some(room) => {
                socket.send_text(message::join(room).as_bytes());
            }
            None => self.ready(slot, socket, now),
        }
    }

    fn text(&mut self, slot: usize, socket: &mut Socket, text: &[u8], now: u64) {
        match message::kind(text) {
            Kind::RoomMessage => {
                if let Some(stamp) = Stamp::find(text) {
                    self.deliver(slot, stamp, now);
                }
            }
            Kind::Joined => self.ready(slot, socket, now),
            Kind::Ack => self.tally.acks += 1,
            Kind::Error(code) => {
                self.counts.errors += 1;
                let is_known = self.tally.errors.contains_key(&code) || self.tally.errors.len() < CODES_MAX;
                let code = if is_known { code } else { "others".to_owned() };
                *self.tally.errors.entry(code).or_default() += 1;
            }
            Kind::Loss => self.tally.told_losses += 1,
            Kind::Reconnect => self.tally.reconnects_asked += 1,
            Kind::Other => {}
        }
    }

    fn ended(&mut self, slot: usize, stage: Stage, ending: Ending, now: u64) {
        if stage == Stage::Ready {
            self.counts.ready -= 1;
            self.counts.lost += 1;
            let is_slow = self.setup.slow.contains(&(self.slots.start + slot));
            let losses = if is_slow { &mut self.tally.slow_losses } else { &mut self.tally.losses };
            *losses.entry(ending).or_default() += 1;
            return;
        }
        self.opening -= 1;
        *self.tally.failures.entry(ending).or_default() += 1;
        let place = &mut self.places[slot];
        if place.retries {
            let wait = RETRY_MIN.saturating_mul(1 << place.attempts.min(10)).min(RETRY_MAX);
            place.attempts += 1;
            self.waiting.push(Reverse((now + wait + self.random.u64(0..=wait), slot)));
        } else {
            self.counts.failed += 1;
            self.tally.gave_up += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(slots: Range<usize>, rooms: usize) -> Group {
        Group { slots, rooms: (0..rooms).map(|nth| format!("room.{nth}")).collect() }
    }

    fn setup(groups: Vec<Group>, opening_max: usize) -> Setup {
        Setup {
            address: std::net::SocketAddr::from(([127, 0, 0, 1], 1)),
            authority: "a".to_owned(),
            path: "/".to_owned(),
            tokens: Tokens::None,
            groups,
            slow: 0..0,
            timeout_ns: 1,
            opening_max,
        }
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

    fn mind(opening_max: usize) -> Mind {
        Mind::new(Arc::new(setup(vec![group(0..100, 1)], opening_max)), 0..100, fastrand::Rng::with_seed(7))
    }

    #[test]
    fn sockets_open_soon_as_others_get_ready() {
        let mut mind = mind(2);
        mind.plan_opening(&(98..105), When::Soon, 5);
        assert_eq!(mind.counts().opening, 2, "this thread's places only");
        assert_eq!(mind.next_to_open(6), Some(98));
        mind.opening = 2;
        assert_eq!(mind.next_to_open(6), None);
        mind.opening = 1;
        assert_eq!((mind.next_to_open(9), mind.places[99].intended_at), (Some(99), 9));
    }

    #[test]
    fn sockets_open_at_their_times_whoever_is_on_the_way() {
        let mut mind = mind(1);
        mind.opening = 1;
        mind.plan_opening(&(0..3), When::Each { from: 100, gap_ns: 50 }, 0);
        assert_eq!((mind.next_to_open(99), mind.next_to_open(150), mind.next_to_open(150)), (None, Some(0), Some(1)));
        mind.plan_opening(&(10..60), When::Within(1000), 5000);
        let dues = mind.places[10..60].iter().map(|place| place.intended_at).collect::<Vec<_>>();
        assert!(dues.iter().all(|due| (5000..=6000).contains(due)));
        assert!(dues.iter().any(|due| *due < 5300) && dues.iter().any(|due| *due > 5700), "spread: {dues:?}");
    }

    #[test]
    fn who_is_refused_tries_again_later_and_later() {
        let mut mind = mind(1);
        mind.plan_opening(&(0..1), When::Within(0), 0);
        let mut waits = Vec::new();
        let mut now = 0;
        for _ in 0..8 {
            let slot = mind.next_to_open(now).expect("due");
            mind.opening += 1;
            mind.ended(slot, Stage::Upgrading, Ending::Refused(503), now);
            let Some(Reverse((due, 0))) = mind.waiting.peek().copied() else { panic!("it does not come back") };
            waits.push(due - now);
            now = due;
        }
        for (nth, wait) in waits.into_iter().enumerate() {
            let least = (RETRY_MIN << nth).min(RETRY_MAX);
            assert!((least..=2 * least).contains(&wait), "attempt {nth}: {wait}");
        }
        assert_eq!((mind.tally.failures[&Ending::Refused(503)], mind.tally.gave_up), (8, 0));
        assert_eq!(mind.places[0].intended_at, 0, "its waiting counts from its first attempt");
    }
}

//! One thread of sockets: takes orders, opens and sends what is due, and tells how it goes.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use crate::hub::following::Again;
use crate::hub::message::{self, Stamp};
use crate::hub::order::{Group, Order, Setup, sender};
use crate::hub::sockets::{Sockets, Stage};
use crate::hub::state::{BURST, State};
use crate::hub::tally::{Counts, Tally, phase_at};
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

pub(crate) struct Worker {
    sockets: Sockets,
    state: State,
    orders: Receiver<Order>,
    news: Sender<(usize, Counts)>,
    handed_in: Sender<Tally>,
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
        handed_in: Sender<Tally>,
    ) -> std::io::Result<Self> {
        let sockets = Sockets::new(slots.start, slots.len())?;
        let state = State::new(setup, slots, fastrand::Rng::with_seed(nth as u64 + 1));
        Ok(Self { sockets, state, orders, news, handed_in, nth, pace: None, cpu_before: None })
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
                        Err(TryRecvError::Disconnected) => return self.state.tally,
                    }
                }
            }
            self.weigh(now);
            if now >= next_expiry {
                next_expiry = now + EXPIRE_EVERY;
                self.expire(now);
            }
            let next = self.open_due().min(self.send_due()).min(self.send_again_due()).min(next_orders);
            self.sockets.wait(next.saturating_sub(socket::now()), &mut self.state);
            while let Some(slot) = self.state.leaving.pop() {
                self.drop_socket(slot);
            }
            if now >= next_news {
                next_news = now + NEWS_EVERY;
                if now >= next_p99 {
                    next_p99 = now + P99_EVERY;
                    let latest = self.state.tally.latency.iter().rev().find(|latency| !latency.is_empty());
                    self.state.counts.p99_ns = latest.map_or(0, |latency| latency.value_at_quantile(0.99));
                }
                // Whoever is gone has no use for news.
                let _ = self.news.send((self.nth, self.state.counts()));
            }
        }
    }

    fn take(&mut self, order: Order) {
        let now = socket::now();
        match order {
            Order::Open(slots, when) => self.state.plan_opening(&slots, when, now),
            Order::Send(traffic) => {
                self.pace = Some((Pace::new(Arrival::Constant, traffic.rate, traffic.start, 0), 0));
                self.cpu_before = None;
                self.state.traffic = Some(traffic);
            }
            Order::Burst { group, payload_bytes } => {
                let setup = Arc::clone(&self.state.setup);
                let Group { slots, rooms } = &setup.groups[group];
                for (slot, room) in slots.clone().zip(rooms) {
                    let Some(slot) = self.state.own(slot) else { continue };
                    let stamp = Stamp { intended_at: now, number: BURST };
                    let text = message::publish(room, stamp, payload_bytes);
                    self.sockets.socket(slot).send_text(text.as_bytes());
                }
            }
            Order::Deafen(slots) => {
                for slot in slots.filter_map(|slot| self.state.own(slot)) {
                    self.sockets.socket(slot).is_deaf = true;
                }
            }
            Order::Hear(slots) => {
                for slot in slots.filter_map(|slot| self.state.own(slot)) {
                    self.sockets.hear(slot);
                }
            }
            Order::HandIn => {
                let tally = std::mem::replace(&mut self.state.tally, Tally::new());
                // Whoever is gone has no use for it.
                let _ = self.handed_in.send(tally);
            }
            Order::Drop(slots) => {
                for slot in slots {
                    if let Some(slot) = self.state.own(slot) {
                        self.drop_socket(slot);
                    }
                }
            }
        }
    }

    fn drop_socket(&mut self, slot: usize) {
        match self.sockets.socket(slot).stage {
            Stage::Closed => return,
            Stage::Ready => self.state.counts.ready -= 1,
            _ => self.state.opening -= 1,
        }
        self.sockets.drop_socket(slot);
    }

    /// Opens the sockets that are due; returns when more will be.
    fn open_due(&mut self) -> u64 {
        for _ in 0..OPENED_MAX {
            let now = socket::now();
            if let Some(slot) = self.state.next_to_open(now) {
                self.state.opening += 1;
                self.state.tally.attempts += 1;
                let instance = self.state.instance(slot);
                self.sockets.open(slot, instance.address, instance.tls.as_ref(), now);
            } else {
                return self.state.waiting.peek().map_or(u64::MAX, |Reverse((due, _))| *due);
            }
        }
        0
    }

    fn expire(&mut self, now: u64) {
        if self.state.opening == 0 {
            return;
        }
        for slot in 0..self.state.places.len() {
            let socket = self.sockets.socket(slot);
            let on_its_way = Stage::Connecting..=Stage::Open;
            if on_its_way.contains(&socket.stage) && now.saturating_sub(socket.began_at) > self.state.setup.timeout_ns {
                self.sockets.give_up(slot, &mut self.state, now);
            }
        }
    }

    /// Sends the messages that are due and whose senders are here; returns when more will be.
    fn send_due(&mut self) -> u64 {
        let (Some((pace, taken)), Some(traffic)) = (&mut self.pace, self.state.traffic.clone()) else {
            return u64::MAX;
        };
        let setup = Arc::clone(&self.state.setup);
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
            let Some(slot) = sender.checked_sub(self.state.slots.start).filter(|slot| *slot < self.state.places.len())
            else {
                continue;
            };
            let room = setup.room(sender).unwrap_or("echo");
            let socket = self.sockets.socket(slot);
            if setup.follows {
                let text = message::publish_with_id(room, stamp, traffic.payload_bytes);
                self.state.tally.publish(&traffic.phases, stamp, now - due);
                let is_sent = socket.stage == Stage::Ready && socket.send_text(text.as_bytes());
                self.state.sent(slot, stamp, is_sent, now);
                continue;
            }
            let text = message::publish(room, stamp, traffic.payload_bytes);
            if socket.stage == Stage::Ready && socket.send_text(text.as_bytes()) {
                self.state.tally.publish(&traffic.phases, stamp, now - due);
            } else if phase_at(&traffic.phases, due).is_some() {
                self.state.tally.unsent += 1;
            }
        }
    }

    /// Sends again what was refused for now; returns when more will be.
    fn send_again_due(&mut self) -> u64 {
        while let Some(Reverse((due, again))) = self.state.again.peek().copied() {
            let now = socket::now();
            if due > now {
                return due;
            }
            self.state.again.pop();
            if let Some((slot, text)) = self.state.text_again(again) {
                let socket = self.sockets.socket(slot);
                let may_send = match again {
                    Again::Join(_) => socket.stage == Stage::Open,
                    Again::Message(_) => socket.stage == Stage::Ready,
                };
                let is_sent = may_send && socket.send_text(text.as_bytes());
                // A join belongs to its socket; a message waits for its sender's next one.
                if let Again::Message(number) = again
                    && !is_sent
                {
                    self.state.send_again(number, now);
                }
            }
        }
        u64::MAX
    }

    /// Marks what the thread costs while it is measured.
    fn weigh(&mut self, now: u64) {
        let Some(traffic) = &self.state.traffic else { return };
        let begin = traffic.phases.iter().map(|phase| phase.start).filter(|start| *start > 0).min();
        match (begin, self.cpu_before) {
            (Some(begin), None) if (begin..traffic.end).contains(&now) => self.cpu_before = Some(socket::thread_cpu()),
            (_, Some(before)) if now < traffic.end => self.state.tally.thread_cpu_ns = socket::thread_cpu() - before,
            _ => {}
        }
    }
}

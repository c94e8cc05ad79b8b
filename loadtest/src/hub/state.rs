//! What one thread knows of its sockets, and what it does about what happens on them: which to open next, who is where it
//! wants to be, what was delivered. Moves no bytes; `worker` and `sockets` do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::hub::following::{Again, Unanswered};
use crate::hub::message::{self, Kind, Stamp};
use crate::hub::order::{Instance, Setup, Traffic, When};
use crate::hub::sockets::{Ending, Handler, KEY, Socket, Stage};
use crate::hub::tally::{Counts, Tally, Why};

/// A socket that is refused waits this long at first, and at most, before it tries again; at random up to twice as long.
const RETRY_MIN: u64 = 500_000_000;
const RETRY_MAX: u64 = 15_000_000_000;
/// The number of a message that belongs to no plan: the burst for all.
pub(crate) const BURST: u64 = 9_999_999_999;
/// Different codes of errors that are told apart.
const CODES_MAX: usize = 50;

/// What is known of one place.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    /// When its socket should have begun to open.
    intended_at: u64,
    why: Why,
    /// Times that it was refused.
    attempts: u32,
    /// Instances that it has left behind.
    moves: usize,
}

/// One thread's.
pub(crate) struct State {
    pub(crate) setup: Arc<Setup>,
    /// This thread's part of all places.
    pub(crate) slots: Range<usize>,
    pub(crate) places: Vec<Place>,
    /// Places to be opened as others get ready.
    queue: VecDeque<usize>,
    /// Places to be opened at a set time.
    pub(crate) waiting: BinaryHeap<Reverse<(u64, usize)>>,
    /// Sockets that are ready and not wanted any more.
    pub(crate) leaving: Vec<usize>,
    pub(crate) opening: usize,
    pub(crate) traffic: Option<Traffic>,
    pub(crate) tally: Tally,
    pub(crate) counts: Counts,
    /// Messages with an id whose answer is still to come, by number.
    pub(crate) unanswered: BTreeMap<u64, Unanswered>,
    /// What is to be sent again, and when.
    pub(crate) again: BinaryHeap<Reverse<(u64, Again)>>,
    /// Names of epochs.
    pub(crate) epochs: BTreeMap<u64, String>,
    pub(crate) random: fastrand::Rng,
}

impl State {
    pub(crate) fn new(setup: Arc<Setup>, slots: Range<usize>, random: fastrand::Rng) -> Self {
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
            unanswered: BTreeMap::new(),
            again: BinaryHeap::new(),
            epochs: BTreeMap::new(),
            random,
        }
    }

    /// A place of all as one of this thread, if it is.
    pub(crate) fn own(&self, slot: usize) -> Option<usize> {
        self.slots.contains(&slot).then(|| slot - self.slots.start)
    }

    /// Where a place's socket is, or goes next.
    pub(crate) fn instance(&self, slot: usize) -> &Instance {
        self.setup.instance(self.slots.start + slot, self.places[slot].moves)
    }

    pub(crate) fn counts(&self) -> Counts {
        let opening = (self.opening + self.queue.len() + self.waiting.len()) as u64;
        Counts { opening, unanswered: self.unanswered.len() as u64, ..self.counts }
    }

    pub(crate) fn plan_opening(&mut self, slots: &Range<usize>, when: When, now: u64) {
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
                    place.why = Why::Returns;
                    place.intended_at = now + self.random.u64(0..=jitter_ns);
                }
                When::Each { from, gap_ns } => {
                    place.why = Why::Probes;
                    place.intended_at = from + gap_ns * nth as u64;
                }
            }
            self.waiting.push(Reverse((place.intended_at, slot)));
        }
    }

    /// A place to open now.
    pub(crate) fn next_to_open(&mut self, now: u64) -> Option<usize> {
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
        self.tally.joining[place.why as usize].saturating_record(now.saturating_sub(place.intended_at));
        match place.why {
            Why::Begins => {}
            Why::Returns => {
                self.counts.returned += 1;
                self.counts.returned_at = now;
            }
            Why::Probes => self.leaving.push(slot),
        }
    }

    pub(crate) fn deliver(&mut self, slot: usize, stamp: Stamp, now: u64) {
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

impl Handler for State {
    fn request(&mut self, slot: usize) -> Vec<u8> {
        let Instance { authority, path, .. } = self.instance(slot);
        let protocol = match self.setup.tokens.of(self.setup.user(self.slots.start + slot)) {
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
                socket.send_text(self.join(slot, room).as_bytes());
            }
            None => self.ready(slot, socket, now),
        }
    }

    fn text(&mut self, slot: usize, socket: &mut Socket, text: &[u8], now: u64) {
        let kind = message::kind(text);
        if self.setup.follows && self.follow(slot, &kind, text, now) {
            return;
        }
        match kind {
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
            self.tally.ended_at.push((self.slots.start + slot, now));
            if let Some(jitter_ns) = self.setup.returns_within {
                let due = now + self.random.u64(0..=jitter_ns);
                let place = &mut self.places[slot];
                *place = Place { intended_at: due, why: Why::Returns, attempts: 0, moves: place.moves + 1 };
                self.waiting.push(Reverse((due, slot)));
                self.send_again_of(slot, now);
            }
            return;
        }
        self.opening -= 1;
        *self.tally.failures.entry(ending).or_default() += 1;
        let place = &mut self.places[slot];
        if place.why == Why::Returns {
            let wait = RETRY_MIN.saturating_mul(1 << place.attempts.min(10)).min(RETRY_MAX);
            place.attempts += 1;
            place.moves += 1;
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
    use crate::hub::order::tests::{group, setup};

    fn state(opening_max: usize) -> State {
        State::new(Arc::new(setup(vec![group(0..100, 1)], opening_max)), 0..100, fastrand::Rng::with_seed(7))
    }

    #[test]
    fn sockets_open_soon_as_others_get_ready() {
        let mut state = state(2);
        state.plan_opening(&(98..105), When::Soon, 5);
        assert_eq!(state.counts().opening, 2, "this thread's places only");
        assert_eq!(state.next_to_open(6), Some(98));
        state.opening = 2;
        assert_eq!(state.next_to_open(6), None);
        state.opening = 1;
        assert_eq!((state.next_to_open(9), state.places[99].intended_at), (Some(99), 9));
    }

    #[test]
    fn sockets_open_at_their_times_whoever_is_on_the_way() {
        let mut state = state(1);
        state.opening = 1;
        state.plan_opening(&(0..3), When::Each { from: 100, gap_ns: 50 }, 0);
        assert_eq!(
            (state.next_to_open(99), state.next_to_open(150), state.next_to_open(150)),
            (None, Some(0), Some(1))
        );
        state.plan_opening(&(10..60), When::Within(1000), 5000);
        let dues = state.places[10..60].iter().map(|place| place.intended_at).collect::<Vec<_>>();
        assert!(dues.iter().all(|due| (5000..=6000).contains(due)));
        assert!(dues.iter().any(|due| *due < 5300) && dues.iter().any(|due| *due > 5700), "spread: {dues:?}");
    }

    #[test]
    fn who_is_refused_tries_again_later_and_later() {
        let mut state = state(1);
        state.plan_opening(&(0..1), When::Within(0), 0);
        let mut waits = Vec::new();
        let mut now = 0;
        for _ in 0..8 {
            let slot = state.next_to_open(now).expect("due");
            state.opening += 1;
            state.ended(slot, Stage::Upgrading, Ending::Refused(503), now);
            let Some(Reverse((due, 0))) = state.waiting.peek().copied() else { panic!("it does not come back") };
            waits.push(due - now);
            now = due;
        }
        for (nth, wait) in waits.into_iter().enumerate() {
            let least = (RETRY_MIN << nth).min(RETRY_MAX);
            assert!((least..=2 * least).contains(&wait), "attempt {nth}: {wait}");
        }
        assert_eq!((state.tally.failures[&Ending::Refused(503)], state.tally.gave_up), (8, 0));
        assert_eq!(state.places[0].intended_at, 0, "its waiting counts from its first attempt");
    }
}

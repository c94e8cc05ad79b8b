//! Whose outbox is to be written, in turn, and what all outboxes together may hold.

use std::collections::{BinaryHeap, VecDeque};

use super::{
    Close, Counts, Effect, Hub, SocketKey, State,
    arena::Arena,
    frame::Frame,
    limits::Limits,
    outbox::{self, Outbox},
    socket::Socket,
};
use crate::{proto::websocket::Deflater, shard::Instant};

/// The sockets of a shard, and whose turn it is to be written.
#[derive(Debug)]
pub(super) struct Sockets<W> {
    pub(super) all: Arena<Socket<W>>,
    dirty: VecDeque<SocketKey>,
    /// Sockets whose turn has come, since the start.
    turns: u64,
    /// Room messages on their way: the turn with which all members have it who read, and when it got its number.
    under_way: VecDeque<(u64, Instant)>,
    /// Those whose outbox is full.
    pub(super) full: Vec<SocketKey>,
    pub(super) outbox_bytes_max: usize,
    /// Frames that may still be queued in this turn, by whoever has caused the step.
    pub(super) left: usize,
    /// For all sockets that take compressed messages.
    deflater: Deflater,
    pub(super) deliveries: u64,
    pub(super) dropped: u64,
    pub(super) written_bytes: u64,
}

/// Room messages whose way to the members is timed at once; more are not.
const UNDER_WAY_MAX: usize = 1024;

impl<W> Sockets<W> {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            all: Arena::default(),
            dirty: VecDeque::new(),
            turns: 0,
            under_way: VecDeque::new(),
            full: Vec::new(),
            outbox_bytes_max: limits.outbox_bytes_max,
            left: limits.pushes_per_turn,
            deflater: Deflater::default(),
            deliveries: 0,
            dropped: 0,
            written_bytes: 0,
        }
    }

    /// A message that got its number `at` then is queued for all of a room's members here. Turns come in order: with that of
    /// the last who is in the queue now, all have been written who read. One entry a message and shard, whatever the room.
    pub(super) fn time_from(&mut self, at: Instant) {
        if !self.dirty.is_empty() && self.under_way.len() < UNDER_WAY_MAX {
            self.under_way.push_back((self.turns.saturating_add(self.dirty.len() as u64), at));
        }
    }

    /// Queues a frame.
    #[inline]
    pub(super) fn push(&mut self, key: SocketKey, frame: Frame) {
        let Some(socket) = self.all.get_mut(key).filter(|socket| socket.state != State::Closing) else { return };
        self.left = self.left.saturating_sub(1);
        let frame = match socket.window_bits {
            0 => frame,
            bits => frame.deflated(bits, &mut self.deflater),
        };
        match socket.outbox.push(frame, self.outbox_bytes_max) {
            Ok(dropped) => {
                self.deliveries = self.deliveries.saturating_add(1);
                self.dropped = self.dropped.saturating_add(dropped as u64);
            }
            Err(outbox::Full) => self.full.push(key),
        }
        if !socket.is_dirty && !socket.is_blocked {
            socket.is_dirty = true;
            self.dirty.push_back(key);
        }
    }
}

impl<W> Hub<W> {
    /// What is to be done next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let letter = self.post.next_other().map(|(to, letter)| Effect::Letter(to, letter));
        let letter = letter.or_else(|| self.post.next_request().map(Effect::Bus));
        letter.or_else(|| self.effects.pop_front())
    }

    /// Whose outbox is to be written next: each once, the one that waits longest first.
    pub fn next_dirty(&mut self) -> Option<SocketKey> {
        while let Some(key) = self.sockets.dirty.pop_front() {
            self.sockets.turns = self.sockets.turns.saturating_add(1);
            let Some(socket) = self.sockets.all.get_mut(key) else { continue };
            socket.is_dirty = false;
            if !socket.is_blocked && !socket.outbox.is_empty() {
                return Some(key);
            }
        }
        None
    }

    /// When a room message got its number that is written now, to all members here who read. Each is told once, after the
    /// turn of the last.
    pub fn next_fanned_out(&mut self) -> Option<Instant> {
        let &(turn, at) = self.sockets.under_way.front()?;
        (turn <= self.sockets.turns).then(|| self.sockets.under_way.pop_front())?;
        Some(at)
    }

    /// Whether somebody's outbox is to be written.
    pub fn is_dirty(&self) -> bool {
        !self.sockets.dirty.is_empty()
    }

    /// A socket.
    pub fn socket(&mut self, key: SocketKey) -> Option<&mut Socket<W>> {
        self.sockets.all.get_mut(key)
    }

    /// What a fresh socket is written before anything else.
    pub fn begin_with(&mut self, key: SocketKey, frame: Frame) {
        if let Some(socket) = self.sockets.all.get_mut(key) {
            socket.outbox.begin_with(frame);
        }
        self.look_again(key);
    }

    /// So many bytes of a socket's outbox are written. When more waits, its turn comes again.
    pub fn written(&mut self, key: SocketKey, bytes: usize) {
        let Some(socket) = self.sockets.all.get_mut(key) else { return };
        socket.outbox.written(bytes);
        self.sockets.written_bytes = self.sockets.written_bytes.saturating_add(bytes as u64);
        self.look_again(key);
    }

    /// A socket's connection takes nothing more, or takes something again.
    pub fn set_blocked(&mut self, key: SocketKey, is_blocked: bool) {
        if let Some(socket) = self.sockets.all.get_mut(key) {
            socket.is_blocked = is_blocked;
        }
        self.look_again(key);
    }

    fn look_again(&mut self, key: SocketKey) {
        let Some(socket) = self.sockets.all.get_mut(key) else { return };
        if !socket.is_dirty && !socket.is_blocked && !socket.outbox.is_empty() {
            socket.is_dirty = true;
            self.sockets.dirty.push_back(key);
        }
    }

    /// Bytes that a message of this socket may have.
    pub fn message_bytes_max(&self, key: SocketKey) -> usize {
        match self.sockets.all.get(key) {
            Some(socket) if socket.state == State::Anonymous => self.plan.limits.anonymous_message_bytes_max,
            _ => self.plan.limits.message_bytes_max,
        }
    }

    /// The numbers of now.
    pub fn counts(&self) -> Counts {
        Counts {
            sockets: self.sockets.all.len(),
            users: self.users.len(),
            users_at_home: self.user_counts.len(),
            rooms: self.rooms.len(),
            homes: self.homes.len(),
            frame_bytes: self.encoder.tally().bytes(),
            unfinished_bytes: self.unfinished.bytes(),
            history_bytes: self.history_bytes,
            service_bytes: self.service_bytes,
            asks: self.asks.len(),
            kept: self.kept.len().saturating_add(self.events.unsaid.len()),
            backlog: self.sockets.dirty.len(),
            written_bytes: self.sockets.written_bytes,
            deliveries: self.sockets.deliveries,
            dropped: self.sockets.dropped,
            pulls: self.pulls,
            discontinuities: self.discontinuities,
            bus: self.bus_counts,
        }
    }

    /// Closes the sockets with most queued until there is room again; says whether there were any. Whoever is closed may
    /// finish the frame that it has begun, unless that is what is most.
    pub(super) fn close_slowest(&mut self, now: Instant) -> bool {
        let max = self.plan.limits.frames_bytes_max;
        let target = max.saturating_sub(max / 8);
        let queued = self.sockets.all.iter().map(|(key, socket)| (socket.queued_bytes(), key));
        let mut queued: BinaryHeap<(usize, SocketKey)> = queued.filter(|&(bytes, _)| bytes > 0).collect();
        let mut is_any = false;
        while self.encoder.tally().bytes() > target
            && let Some((_, key)) = queued.pop()
        {
            is_any = true;
            let Some(socket) = self.sockets.all.get_mut(key) else { continue };
            if socket.state == State::Closing {
                socket.outbox = Outbox::default();
                self.effects.push_back(Effect::Cut(key));
                continue;
            }
            self.end(now, key, Some(Close::SlowConsumer));
            let left = self.sockets.all.get(key).map_or(0, Socket::queued_bytes);
            if left > 0 {
                queued.push((left, key));
            }
        }
        is_any
    }
}

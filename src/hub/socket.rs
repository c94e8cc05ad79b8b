//! One socket as the hub knows it: who it is, what waits for it, what it may still do, and when it ends.
//!
//! Its bytes are for the driver. An idle one is small: what only a busy one needs is in a box of its own.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use super::{
    arena::Key,
    code::{Close, Code},
    frame::{Frame, REFERENCE_BYTES},
    limits::Limits,
    outbox::Outbox,
    rules::Permits,
};
use crate::shard::Instant;

/// Names a socket of a shard.
pub type SocketKey = Key;

/// Who a socket speaks for.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The user (`sub`).
    pub user: Arc<str>,
    /// The session; some issuers name none.
    pub session: Option<Arc<str>>,
    /// What the user may do.
    pub permits: Permits,
    /// When the token counts no longer, leeway included.
    pub expires: Instant,
    /// The second of its `exp`.
    pub expires_unix_s: u64,
}

/// A room of a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Membership {
    pub(super) room: Key,
    /// The place among the room's members; [`JOINING`] before there is one.
    pub(super) place: u32,
}

/// The join is under way.
pub(super) const JOINING: u32 = u32::MAX;

/// What the hub still does for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It has not logged in.
    Anonymous,
    /// It has.
    Live,
    /// It is being closed: it is in no room and nothing is queued for it any more.
    Closing,
}

/// A socket. `W` is whatever the driver knows it by.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is true or not by itself")]
pub struct Socket<W> {
    /// The driver's.
    pub handle: W,
    /// What waits to be written.
    pub outbox: Outbox,
    pub(super) user: Option<Arc<str>>,
    pub(super) session: Option<Arc<str>>,
    pub(super) permits: Permits,
    pub(super) rooms: Vec<Membership>,
    pub(super) busy: Option<Box<Busy>>,
    /// When the last mistakes were made.
    #[expect(clippy::box_collection, reason = "hardly any socket has one: eight bytes, not 24")]
    mistakes: Option<Box<VecDeque<Instant>>>,
    /// Where it comes from, until it has logged in.
    pub(super) network: Option<NonZero<u64>>,
    /// When its token counts no longer; before a log-in, when that must have come.
    pub(super) expires: Instant,
    /// When something last came from it.
    heard: Instant,
    /// When it is closed because the instance goes.
    pub(super) slot: Instant,
    /// When the messages that it sent are paid for, at the average rate.
    paid: Instant,
    pub(super) state: State,
    /// The window, as a power of two, of a client that takes compressed messages; 0 for all others.
    pub(super) window_bits: u8,
    /// Whether the driver has been told to write.
    pub(super) is_dirty: bool,
    /// Whether its connection takes nothing more now.
    pub(super) is_blocked: bool,
    /// Whether it was pinged since it was last heard.
    is_pinged: bool,
    /// Whether its token is being checked.
    pub(super) is_authenticating: bool,
}

/// What has happened to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing yet.
    Nothing,
    /// A ping is to be sent.
    Ping,
    /// It is over.
    Close(Close),
}

impl<W> Socket<W> {
    pub(super) fn new(now: Instant, handle: W, expires: Instant, network: Option<NonZero<u64>>) -> Self {
        Self {
            handle,
            outbox: Outbox::default(),
            user: None,
            session: None,
            permits: Permits::none(),
            rooms: Vec::new(),
            busy: None,
            mistakes: None,
            network,
            expires,
            heard: now,
            slot: Instant::NEVER,
            paid: Instant::START,
            state: State::Anonymous,
            window_bits: 0,
            is_dirty: false,
            is_blocked: false,
            is_pinged: false,
            is_authenticating: false,
        }
    }

    /// The user, after the log-in.
    pub fn user(&self) -> Option<&Arc<str>> {
        self.user.as_ref()
    }

    /// The session, if the token named one.
    pub fn session(&self) -> Option<&Arc<str>> {
        self.session.as_ref()
    }

    /// Whether it has logged in and is not being closed.
    pub fn is_live(&self) -> bool {
        self.state == State::Live
    }

    /// Rooms that it is in or about to be.
    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = now;
        self.is_pinged = false;
    }

    /// When something is to be done about time passing.
    pub(super) fn due(&self, jitter: f64, limits: &Limits) -> Instant {
        let dead = self.heard + limits.dead_after;
        let alive = if self.is_pinged { dead } else { self.ping_at(jitter, limits) };
        match self.state {
            State::Closing => Instant::NEVER,
            State::Anonymous | State::Live => alive.min(self.expires).min(self.slot),
        }
    }

    /// What time has brought.
    pub(super) fn pass_time(&mut self, now: Instant, jitter: f64, limits: &Limits) -> Due {
        if self.state == State::Closing || now < self.due(jitter, limits) {
            return Due::Nothing;
        }
        if now >= self.expires {
            return Due::Close(match self.state {
                State::Anonymous => Close::Unauthenticated,
                _ => Close::TokenExpired,
            });
        }
        if now >= self.slot {
            return Due::Close(Close::Restart);
        }
        if now >= self.heard + limits.dead_after {
            return Due::Close(Close::NoPong);
        }
        self.is_pinged = true;
        Due::Ping
    }

    /// Between four fifths of the interval and all of it, so that sockets that came at once are not pinged at once.
    fn ping_at(&self, jitter: f64, limits: &Limits) -> Instant {
        self.heard + limits.ping_every.mul_f64(1.0 - jitter / 5.0)
    }

    /// Takes a message into account; says how long to wait where there were too many.
    pub(super) fn pay(&mut self, now: Instant, limits: &Limits) -> Result<(), Duration> {
        let Some(each) = Duration::from_secs(1).checked_div(limits.messages_per_second) else { return Ok(()) };
        let credit = each.saturating_mul(limits.messages_burst.saturating_sub(1));
        let paid = self.paid.max(now);
        let late = paid.since(now).saturating_sub(credit);
        if !late.is_zero() {
            return Err(late);
        }
        self.paid = paid + each;
        Ok(())
    }

    /// Counts a mistake of the client; says whether it was one too many.
    pub(super) fn mistake(&mut self, now: Instant, limits: &Limits) -> bool {
        let max = limits.errors_max.max(1) as usize;
        let mistakes = self.mistakes.get_or_insert_default();
        while mistakes.front().is_some_and(|&at| at + limits.errors_within <= now) {
            mistakes.pop_front();
        }
        mistakes.push_back(now);
        mistakes.len() >= max
    }

    pub(super) fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Bytes that wait for it, acks included that wait for those before them.
    pub(super) fn queued_bytes(&self) -> usize {
        let acks = self.busy.iter().flat_map(|busy| &busy.acks);
        let acks =
            acks.filter_map(|ack| ack.frame.as_ref()).map(|frame| frame.bytes().len().saturating_add(REFERENCE_BYTES));
        acks.fold(self.outbox.bytes(), usize::saturating_add)
    }

    /// Gives back what only a busy socket needs.
    pub(super) fn rest(&mut self) {
        if self.busy.as_ref().is_some_and(|busy| busy.is_idle()) {
            self.busy = None;
        }
    }
}

/// Whether a client that hears this much has itself to blame for it.
pub(super) fn is_mistake(code: Code) -> bool {
    match code {
        Code::RateLimited => true,
        _ => !code.is_retryable(),
    }
}

/// Answers of rooms that one socket may wait for. What it waits for from services is bounded by their types, and acks that
/// have come and wait for others by the bytes of an outbox.
pub(super) const WAITING_MAX: usize = 256;

/// What a socket waits for.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// Messages whose `ack` is to come, in order, whoever they are for; one that came too early waits for those before it.
    pub(super) acks: VecDeque<AwaitedAck>,
    /// Other questions to rooms that are under way.
    pub(super) asks: Vec<Key>,
    /// Messages for services, by their type.
    pub(super) services: Vec<Service>,
}

/// The ack of a message.
#[derive(Debug)]
pub(super) struct AwaitedAck {
    pub(super) ticket: Key,
    /// There once it has come.
    pub(super) frame: Option<Frame>,
    /// The message is for a service, which has a bound of its own.
    pub(super) is_of_service: bool,
}

/// Messages of one type for a service: one is under way, the others wait.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) index: usize,
    pub(super) under_way: Key,
    pub(super) waiting: VecDeque<(Key, Box<str>)>,
}

impl Busy {
    fn is_idle(&self) -> bool {
        self.acks.is_empty() && self.asks.is_empty() && self.services.is_empty()
    }

    /// How many answers of rooms are to come.
    pub(super) fn waiting(&self) -> usize {
        let unanswered = self.acks.iter().filter(|ack| ack.frame.is_none() && !ack.is_of_service).count();
        unanswered.saturating_add(self.asks.len())
    }

    /// Drops a question that is not to be answered any more.
    pub(super) fn forget(&mut self, ticket: Key) {
        self.asks.retain(|&ask| ask != ticket);
        self.acks.retain(|ack| ack.ticket != ticket);
    }

    /// The ack of a message is here.
    pub(super) fn acknowledge(&mut self, ticket: Key, frame: Frame) {
        if let Some(ack) = self.acks.iter_mut().find(|ack| ack.ticket == ticket) {
            ack.frame = Some(frame);
        }
    }

    /// The next ack, if it is its turn.
    pub(super) fn next_ack(&mut self) -> Option<Frame> {
        self.acks.front()?.frame.as_ref()?;
        self.acks.pop_front()?.frame
    }
}

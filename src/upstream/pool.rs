//! Connections to one backend that wait for a request, the warmest first, and those that are held out of use until it is
//! known that nothing comes behind their last answers.
//!
//! What a backend sends unasked would be taken for the answer to the next request. None of it can be told from that answer
//! once the request is on its way, so here it is waited for before.

use std::{collections::VecDeque, time::Duration};

use crate::{
    net::ClientConnection,
    shard::{Heard, Instant, Turn, clock},
};

/// How long a connection is held out where its backend is distrusted, or may close it without a word. What comes behind an
/// answer comes within a millisecond, or five times as late where a busy interpreter hands its lock around.
const HOLD: Duration = Duration::from_millis(20);

/// The longest that it becomes: each further catch doubles it, as what comes later than is waited for meets a request.
const HOLD_MAX: Duration = Duration::from_secs(1);

/// The same where a body may come that nobody is to get. Longer, for few answers are such, and the body may have to be made
/// first.
const BODY_HOLD: Duration = Duration::from_millis(100);

/// How long a backend is distrusted that was caught.
const DISTRUST: Duration = Duration::from_mins(10);

/// Connections held out at once: enough for 25,600 answers a second of a backend that is distrusted. What is past it closes.
const HELD_MAX: usize = 512;

/// What speaks against the next request on a connection whose last answer is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// There may be a body that nobody is to get: to a HEAD, or with a 304.
    Body,
    /// The status is one that backends close after, at times without saying so.
    End,
}

/// One per backend and shard.
#[derive(Debug)]
pub(super) struct ConnectionPool {
    /// In the order in which they came back, or were let in.
    idle: Vec<Idle>,
    /// Held out; in the order in which they are let in.
    held: VecDeque<Held>,
    /// While it lasts every connection is held out: the backend sent something unasked.
    distrust: Distrust,
    /// Until then a connection is closed where it may get a body that nobody is to get: the backend sends such bodies.
    sends_bodies_until: Instant,
    /// How often it was caught, and whether it began to be distrusted, since that was asked for.
    caught: Caught,
}

/// What backends were caught at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caught {
    /// Connections that were closed because something came unasked.
    pub connections: u64,
    /// Since then all of them are held out.
    pub is_newly_distrusted: bool,
    /// Since then they are closed after a HEAD that tells of a body.
    pub newly_sends_bodies: bool,
}

#[derive(Debug)]
struct Idle {
    connection: Box<ClientConnection>,
    /// The turn of the shard in which it came back.
    since: Turn,
    /// From here on the backend may close it under a request.
    until: Instant,
}

#[derive(Debug)]
struct Held {
    idle: Idle,
    doubt: Option<Doubt>,
    /// When it is let in.
    ends_at: Instant,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self {
            idle: Vec::new(),
            held: VecDeque::new(),
            distrust: Distrust::default(),
            sends_bodies_until: Instant::START,
            caught: Caught::default(),
        }
    }
}

impl ConnectionPool {
    /// The connection that came back last and is still good. Those found dead are closed.
    ///
    /// None that came back in this turn: what its backend sent behind the answer, unasked or because it gave a body to a
    /// HEAD, is seen when the next turn begins, and would be taken for the answer to this request.
    pub(super) fn take(&mut self, now: Instant, idle_max: usize) -> Option<Box<ClientConnection>> {
        if !self.held.is_empty() {
            self.let_in(clock::turn(), idle_max);
        }
        let mut places = self.idle.iter().rposition(|idle| idle.since.is_over())? + 1;
        while places > 0 {
            places -= 1;
            let Idle { connection, until, .. } = self.idle.remove(places);
            match connection.heard() {
                Heard::Nothing if now < until => return Some(connection),
                Heard::Nothing | Heard::End => {}
                Heard::Bytes => {
                    self.catch(now, None);
                    // From here on the others wait.
                    return None;
                }
            }
        }
        None
    }

    /// Keeps a connection that comes back in this turn until then, unless `idle_max` are kept already. It is held out where
    /// there is a doubt.
    pub(super) fn give(
        &mut self,
        connection: Box<ClientConnection>,
        now: Instant,
        until: Instant,
        doubt: Option<Doubt>,
        idle_max: usize,
    ) {
        if connection.has_unread() {
            self.catch(now, doubt);
            return;
        }
        let is_trusted = !self.is_distrusted(now);
        let idle = Idle { connection, since: Turn::current(), until };
        let hold = match doubt {
            None if is_trusted => {
                if self.idle.len() < idle_max {
                    self.idle.push(idle);
                }
                return;
            }
            // What was caught with the next request under way may have been such a body, later than is waited for.
            Some(Doubt::Body) if now < self.sends_bodies_until || !is_trusted => return,
            Some(Doubt::Body) => BODY_HOLD,
            None | Some(Doubt::End) => self.distrust.hold(now),
        };
        if idle_max > 0 {
            self.hold(Held { idle, doubt, ends_at: now + hold });
        }
    }

    /// Holds a connection out, if there is room and it is good for longer than that.
    fn hold(&mut self, held: Held) {
        if self.held.len() < HELD_MAX && held.ends_at < held.idle.until {
            let before = self.held.iter().rposition(|other| other.ends_at <= held.ends_at);
            self.held.insert(before.map_or(0, |before| before + 1), held);
        }
    }

    /// Lets in what has been silent for long enough. As without a doubt, it closes where there is no room.
    fn let_in(&mut self, turn: Instant, idle_max: usize) {
        while let Some(Held { idle, doubt, .. }) = self.held.pop_front_if(|held| held.ends_at < turn) {
            match idle.connection.heard() {
                Heard::Nothing if self.idle.len() < idle_max => self.idle.push(idle),
                Heard::Nothing | Heard::End => {}
                Heard::Bytes => self.catch(turn, doubt),
            }
        }
    }

    /// Something came that nobody had asked for. Its connection is closed.
    fn catch(&mut self, now: Instant, doubt: Option<Doubt>) {
        self.caught.connections += 1;
        if doubt == Some(Doubt::Body) {
            self.caught.newly_sends_bodies |= now >= self.sends_bodies_until;
            self.sends_bodies_until = now + DISTRUST;
            return;
        }
        if self.distrust.catch(now) {
            self.caught.is_newly_distrusted = true;
            // What made it send that may have made it send more.
            for idle in std::mem::take(&mut self.idle) {
                self.hold(Held { idle, doubt: None, ends_at: now + HOLD });
            }
        }
    }

    /// Lets in what may be; closes what has been idle for too long, what its backend has closed, and what it has sent something
    /// on.
    pub(super) fn sweep(&mut self, now: Instant, idle_max: usize) {
        self.let_in(now, idle_max);
        let mut heard = Vec::new();
        self.idle.retain(|idle| match idle.connection.heard() {
            Heard::Nothing => now < idle.until,
            Heard::End => false,
            Heard::Bytes => {
                heard.push(None);
                false
            }
        });
        self.held.retain(|held| match held.idle.connection.heard() {
            Heard::Nothing => now < held.idle.until,
            Heard::End => false,
            Heard::Bytes => {
                heard.push(held.doubt);
                false
            }
        });
        for doubt in heard {
            self.catch(now, doubt);
        }
    }

    /// What the backend was caught at since this was asked last.
    pub(super) fn take_caught(&mut self) -> Caught {
        std::mem::take(&mut self.caught)
    }

    /// Whether the backend is distrusted.
    pub(super) fn is_distrusted(&self, now: Instant) -> bool {
        self.distrust.lasts(now)
    }

    /// How many wait for a request.
    pub(super) fn len(&self) -> usize {
        self.idle.len()
    }

    /// How many are held out.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }
}

/// Whether and how far a backend is distrusted. Pure.
#[derive(Clone, Copy, Debug)]
struct Distrust {
    until: Instant,
    hold: Duration,
}

impl Default for Distrust {
    fn default() -> Self {
        Self { until: Instant::START, hold: HOLD }
    }
}

impl Distrust {
    fn lasts(&self, now: Instant) -> bool {
        now < self.until
    }

    /// The backend was caught; says whether it was trusted until now.
    fn catch(&mut self, now: Instant) -> bool {
        let is_first = !self.lasts(now);
        self.hold = if is_first { HOLD } else { HOLD_MAX.min(self.hold * 2) };
        self.until = now + DISTRUST;
        is_first
    }

    /// How long a connection is held out.
    fn hold(&self, now: Instant) -> Duration {
        if self.lasts(now) { self.hold } else { HOLD }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_caught_again_is_waited_for_longer_until_all_is_forgotten() {
        let (mut distrust, mut now) = (Distrust::default(), Instant::START);
        assert!(!distrust.lasts(now));
        assert!(distrust.catch(now), "it was trusted");
        let mut holds = Vec::new();
        for _ in 0..8 {
            holds.push(distrust.hold(now).as_millis());
            now += Duration::from_secs(1);
            assert!(!distrust.catch(now), "it is distrusted already");
        }
        assert_eq!(holds, [20, 40, 80, 160, 320, 640, 1000, 1000]);
        now += DISTRUST;
        assert!(!distrust.lasts(now));
        assert_eq!(distrust.hold(now), HOLD, "for those that may close without a word");
        assert!(distrust.catch(now));
        assert_eq!(distrust.hold(now), HOLD);
    }
}

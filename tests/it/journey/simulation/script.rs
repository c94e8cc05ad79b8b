//! The script of one exchange: both sides in one order, so that what a step waits for always comes before it.

use fastrand::Rng;

use super::{
    plan::{Act, Answer, Ask, BUFFER, End, Exchange, Step, When, percent, size},
    wire::{Encoded, Framing, Kind, Tag, content},
};

/// Both sides of one exchange, step by step.
pub(super) struct Script<'r> {
    rng: &'r mut Rng,
    exchange: Exchange,
    request: Encoded,
    answer: Encoded,
    client: Vec<Step>,
    backend: Vec<Step>,
    /// Bytes that are sent so far, and what of the content is among them; nothing of an answer that has not begun.
    sent: (usize, usize),
    said: (usize, Option<usize>),
    /// The sides take turns, and each waits for the other.
    is_strict: bool,
}

impl<'r> Script<'r> {
    pub(super) fn new(rng: &'r mut Rng, tag: Tag, ask: Ask, answer: Answer) -> Self {
        let framing = if ask.upgrades { Framing::Rest } else { ask.framing };
        let sends = content(Kind::Request, tag, ask.content_bytes);
        let request = Encoded::new(&ask.head(), framing, &sends, || size(rng));
        let head = answer.head(rng, tag);
        let says = content(Kind::Answer, tag, answer.content_bytes);
        let encoded = Encoded::new(&head, answer.framing, &says, || size(rng));
        let plain = encoded.bytes.clone();
        let is_strict = rng.bool();
        let exchange = Exchange { tag, ask, answer, starts_at: 0, steps: Vec::new(), plain, leaves: false };
        Self {
            rng,
            exchange,
            request,
            answer: encoded,
            client: Vec::new(),
            backend: Vec::new(),
            sent: (0, 0),
            said: (0, None),
            is_strict,
        }
    }

    /// Writes the steps.
    pub(super) fn finish(mut self, leaves: bool) -> (Exchange, Vec<Step>) {
        let mut sends = stops(self.rng, self.exchange.ask.content_bytes);
        let mut says = stops(self.rng, self.exchange.answer.content_bytes);
        let last = if self.exchange.ask.upgrades && self.rng.bool() { 0 } else { sends.len() + says.len() };
        let leaves_at = leaves.then(|| self.rng.usize(0..=last));
        self.send(0);
        let mut step = 0;
        if self.exchange.ask.upgrades {
            // Nothing goes through a tunnel before it stands.
            self.say_interim();
            self.maybe_leave(leaves_at == Some(0));
            self.say(0);
            step += 1;
            says.retain(|&stop| stop > 0);
            if self.exchange.answer.status != 101 {
                sends.clear();
            }
        } else if self.exchange.answer.is_early {
            self.say_interim();
        }
        while !sends.is_empty() || !says.is_empty() {
            self.maybe_leave(leaves_at == Some(step));
            let is_backends = if self.is_strict { step % 2 == 1 } else { self.rng.bool() };
            let answers = sends.is_empty() || (self.may_answer() && !says.is_empty() && is_backends);
            if answers {
                if self.backend.is_empty() && !self.exchange.answer.is_early {
                    self.say_interim();
                }
                let stop = says.remove(0);
                self.say(stop);
            } else {
                let stop = sends.remove(0);
                self.send(stop);
                if sends.is_empty() && !self.may_answer() {
                    self.send_rest();
                }
            }
            step += 1;
        }
        self.send_rest();
        self.maybe_leave(leaves_at == Some(step));
        self.hang_up();
        self.end();
        let Self { rng, mut exchange, client, backend, .. } = self;
        exchange.steps = cut(rng, backend);
        (exchange, client)
    }

    /// Whether a step waits until the other side has all that it was sent.
    fn waits(&mut self) -> bool {
        self.is_strict || percent(self.rng, 60)
    }

    fn may_answer(&self) -> bool {
        self.exchange.answer.is_early || self.exchange.answer.status == 101
    }

    /// The client sends its request up to so much of its content.
    fn send(&mut self, content: usize) {
        if self.exchange.leaves {
            return;
        }
        let waits = self.exchange.ask.upgrades || self.waits();
        let when = match self.said.1 {
            Some(said) if waits => When::Seen(said),
            _ if self.exchange.ask.expects && self.sent.0 > 0 => When::Invited,
            _ => When::Now,
        };
        let (tag, end) = (self.exchange.tag, self.request.up_to(content));
        if end == self.sent.0 {
            return;
        }
        self.client.push(Step { tag, when, act: Act::Write(self.request.bytes[self.sent.0..end].to_vec()) });
        self.sent = (end, content);
    }

    /// The client sends what frames the end of its content.
    fn send_rest(&mut self) {
        let tag = self.exchange.tag;
        let rest = self.request.bytes[self.sent.0..].to_vec();
        let is_tunnel_refused = self.exchange.ask.upgrades && self.exchange.answer.status != 101;
        if !rest.is_empty() && !self.exchange.leaves && !is_tunnel_refused {
            self.client.push(Step { tag, when: When::Now, act: Act::Write(rest) });
        }
        self.sent.0 = self.request.bytes.len();
    }

    /// The backend answers up to so much of its content.
    fn say(&mut self, content: usize) {
        let is_deaf = self.exchange.answer.is_deaf && !self.backend.is_empty();
        let when = if self.exchange.leaves && percent(self.rng, 70) {
            When::Left
        } else if !self.may_answer() {
            When::HeardAll
        } else if !is_deaf && self.waits() {
            When::Heard(self.sent.1)
        } else {
            When::Now
        };
        let (tag, end) = (self.exchange.tag, self.answer.up_to(content));
        if end == self.said.0 {
            return;
        }
        self.backend.push(Step { tag, when, act: Act::Write(self.answer.bytes[self.said.0..end].to_vec()) });
        self.said = (end, Some(content));
    }

    fn say_interim(&mut self) {
        if self.exchange.ask.is_http10 || !percent(self.rng, 20) {
            return;
        }
        let tag = self.exchange.tag;
        let when = if self.may_answer() { When::Now } else { When::HeardAll };
        for _ in 0..self.rng.usize(1..3) {
            let status = [100, 102, 103][self.rng.usize(0..3)];
            let interim = format!("HTTP/1.1 {status} \r\nX-Tag: {tag}\r\n\r\n").into_bytes();
            self.backend.push(Step { tag, when, act: Act::Write(interim) });
        }
    }

    fn maybe_leave(&mut self, leaves: bool) {
        if !leaves || self.exchange.leaves {
            return;
        }
        let when = match self.said.1 {
            Some(said) if self.rng.bool() => When::Seen(said),
            _ if percent(self.rng, 80) => When::Heard(if self.exchange.answer.is_deaf { 0 } else { self.sent.1 }),
            _ => When::Now,
        };
        let (tag, act) = (self.exchange.tag, if self.rng.bool() { Act::Reset } else { Act::Close });
        self.client.push(Step { tag, when, act });
        self.exchange.leaves = true;
    }

    /// The client closes a tunnel when all has come through it.
    fn hang_up(&mut self) {
        if self.exchange.answer.status == 101 && !self.exchange.leaves {
            let (tag, when) = (self.exchange.tag, When::Seen(self.exchange.answer.content_bytes));
            self.client.push(Step { tag, when, act: Act::Close });
        }
    }

    /// What the backend does with the last bytes of its answer, and behind them.
    fn end(&mut self) {
        let (tag, when) = (self.exchange.tag, When::Now);
        let rest = self.answer.bytes[self.said.0..].to_vec();
        if !rest.is_empty() {
            self.backend.push(Step { tag, when, act: Act::Write(rest) });
        }
        match self.exchange.answer.end {
            End::Keep => {}
            End::Announced => self.backend.push(Step { tag, when, act: Act::Close }),
            End::Silent => {
                let when = if self.rng.bool() { When::Over } else { When::Now };
                self.backend.push(Step { tag, when, act: Act::Close });
            }
            End::Late(bytes) => {
                let late = content(Kind::Answer, tag, bytes);
                self.backend.push(Step { tag, when: When::Over, act: Act::WriteLate(late) });
            }
            End::Unread => self.backend.push(Step { tag, when: When::Over, act: Act::CloseIfLast }),
            End::Torn => self.tear(),
            End::Junk => self.add_junk(),
        }
    }

    /// What is cut off for it is short enough to arrive with the junk, as one.
    fn add_junk(&mut self) {
        let (tag, junk) = (self.exchange.tag, junk(self.rng, self.exchange.tag));
        let Some(Step { when, act: Act::Write(mut bytes), .. }) = self.backend.pop() else { return };
        let tail = bytes.split_off(bytes.len().saturating_sub(200));
        let is_all = bytes.is_empty();
        if !is_all {
            self.backend.push(Step { tag, when, act: Act::Write(bytes) });
        }
        let when = if is_all { when } else { When::Now };
        self.backend.push(Step { tag, when, act: Act::WriteJunk(tail, junk) });
    }

    /// Closes at some byte of the answer before its last.
    fn tear(&mut self) {
        let at = self.rng.usize(0..self.backend.len());
        let when = self.backend[at].when;
        self.backend.truncate(at + 1);
        if let Some(Step { act: Act::Write(bytes), .. }) = self.backend.last_mut() {
            let left = self.rng.usize(0..bytes.len().max(1));
            bytes.truncate(left);
            if left == 0 {
                self.backend.pop();
            }
        }
        let when = if self.backend.len() > at { When::Now } else { when };
        let (tag, act) = (self.exchange.tag, if self.rng.bool() { Act::Reset } else { Act::Close });
        self.backend.push(Step { tag, when, act });
    }
}

/// What nobody asked for: the content that a HEAD does not get, or an answer to nothing.
fn junk(rng: &mut Rng, tag: Tag) -> Vec<u8> {
    if rng.bool() {
        return content(Kind::Answer, tag, 64);
    }
    format!("HTTP/1.1 200 \r\nX-Tag: junk-of-{tag}\r\nContent-Length: 4\r\n\r\njunk").into_bytes()
}

/// Where the sending of so much content pauses: now and then, near the end, and at its end.
fn stops(rng: &mut Rng, bytes: usize) -> Vec<usize> {
    let mut stops = vec![bytes];
    for _ in 0..rng.usize(0..4) {
        stops.push(match rng.usize(0..5) {
            0 => bytes.saturating_sub(64 * rng.usize(1..4)),
            1 => bytes.saturating_sub(1),
            2 => rng.usize(0..=bytes),
            _ => bytes.saturating_sub(BUFFER),
        });
    }
    stops.sort_unstable();
    stops.dedup();
    stops
}

/// Cuts writes into segments at random places, most of them not.
pub(super) fn cut(rng: &mut Rng, steps: Vec<Step>) -> Vec<Step> {
    let mut cut = Vec::new();
    for step in steps {
        let Step { tag, mut when, act: Act::Write(mut bytes) } = step else {
            cut.push(step);
            continue;
        };
        while bytes.len() > 1 && percent(rng, 25) {
            let rest = bytes.split_off(rng.usize(1..bytes.len()));
            cut.push(Step { tag, when, act: Act::Write(bytes) });
            (when, bytes) = (When::Now, rest);
        }
        cut.push(Step { tag, when, act: Act::Write(bytes) });
    }
    cut
}

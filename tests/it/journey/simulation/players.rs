//! A client's and a backend's end of a connection: they do their steps, take apart what they read, and tell the board.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, ErrorKind},
    time::{Duration, Instant},
};

use crate::harness::now;

use super::{
    board::Board,
    plan::{self, Act, Exchange, Plan, Step, When},
    stream::Stream,
    wire::{Framing, Message, Tag, Then, framing_of_answer, framing_of_request},
};

/// How long after its answer a backend may still send what the gateway waits for, with a margin for what holds up either.
const LATE_MAX: Duration = Duration::from_millis(40);
/// How long the gateway waits for that at least.
const WAITED_FOR: Duration = Duration::from_millis(90);

/// A socket, what is to be done on it, and what has come.
#[derive(Debug)]
pub(super) struct End {
    pub(super) stream: Option<Stream>,
    pub(super) steps: VecDeque<Step>,
    unread: Vec<u8>,
    /// A write has failed. That was told once: the next read would speak of an end.
    is_broken: bool,
}

/// What a read met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    Bytes(usize),
    End,
    Reset,
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(read) => write!(f, "reads {read} bytes"),
            Self::End => write!(f, "reads the end"),
            Self::Reset => write!(f, "is reset"),
        }
    }
}

impl End {
    fn new(stream: Option<Stream>, steps: VecDeque<Step>) -> Self {
        Self { stream, steps, unread: Vec::new(), is_broken: false }
    }

    /// Reads what is there, up to a bound.
    fn read(&mut self, bytes_max: usize) -> Met {
        let Some(stream) = &mut self.stream else { return Met::Reset };
        let mut buffer = vec![0; bytes_max];
        match stream.read(&mut buffer) {
            Ok(0) => {
                if self.is_broken {
                    Met::Reset
                } else {
                    Met::End
                }
            }
            Ok(read) => {
                self.unread.extend(&buffer[..read]);
                Met::Bytes(read)
            }
            Err(error) if is_for_later(&error) => Met::Bytes(0),
            Err(_) => Met::Reset,
        }
    }

    /// Writes what the kernel takes; none when the other end takes nothing any more.
    fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        match self.stream.as_mut()?.write(bytes) {
            Ok(written) => Some(written),
            Err(error) if is_for_later(&error) => Some(0),
            Err(_) => {
                self.is_broken = true;
                None
            }
        }
    }

    fn next(&self) -> String {
        let next = self.steps.front().map(|step| format!("; next a step of {} at {:?}", step.tag, step.when));
        format!("{} bytes are unread{}", self.unread.len(), next.unwrap_or_default())
    }

    fn close(&mut self, resets: bool) {
        let Some(mut stream) = self.stream.take() else { return };
        if resets {
            // It is reset where it is dropped, here.
            let _ = socket2::SockRef::from(stream.socket()).set_linger(Some(Duration::ZERO));
        } else {
            stream.say_goodbye();
        }
    }

    /// Writes some of what the socket does not have yet; says what it did.
    pub(super) fn flush(&mut self) -> String {
        if self.stream.as_mut().is_some_and(|stream| stream.flush().is_err()) {
            // Reading finds out what has become of it.
            self.is_broken = true;
            self.steps.clear();
        }
        "writes more of its records".to_owned()
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// What a client got.
#[derive(Debug, Default)]
pub(super) struct Got {
    /// The answers to each exchange: interim ones, then the final one as far as it came.
    pub(super) answers: Vec<Vec<Message>>,
    /// Why what came is no answer to anything.
    pub(super) strange: Option<String>,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) end: End,
    pub(super) got: Got,
    pub(super) has_come: bool,
    /// The exchange whose answer comes next.
    at: usize,
}

impl Client {
    pub(super) fn new(plan: &plan::Client) -> Self {
        let got = Got { answers: vec![Vec::new(); plan.exchanges.len()], ..Got::default() };
        Self { end: End::new(None, plan.steps.clone().into()), got, has_come: false, at: 0 }
    }

    pub(super) fn come(&mut self, stream: Stream) {
        self.end.stream = Some(stream);
        self.has_come = true;
    }

    /// Does the next step; says what it was.
    pub(super) fn act(&mut self, board: &mut Board) -> String {
        let Some(Step { tag, when, act }) = self.end.steps.pop_front() else { return String::new() };
        match act {
            Act::Write(bytes) | Act::WriteJunk(bytes, _) => {
                if matches!(when, When::Seen(_)) {
                    board.held(tag);
                }
                let written = self.write(&bytes, tag, board);
                format!("writes {written} bytes of {tag} ({when:?}) {:?}", start_of(&bytes))
            }
            Act::WriteBoth(bytes) => {
                let written = self.write(&bytes, tag, board);
                if written == bytes.len() {
                    board.paired(tag);
                }
                format!("writes {written} bytes of {tag} and the next ({when:?})")
            }
            Act::WriteLate(_) | Act::CloseIfLast => String::new(),
            Act::Close | Act::Reset => {
                self.end.close(matches!(act, Act::Reset));
                self.end.steps.clear();
                board.ended(tag.client, true);
                format!("leaves ({act:?}, {when:?})")
            }
        }
    }

    fn write(&mut self, bytes: &[u8], tag: Tag, board: &mut Board) -> usize {
        let Some(written) = self.end.write(bytes) else {
            // Nobody reads any more; there may be an answer yet.
            self.end.steps.clear();
            return 0;
        };
        board.sent(tag.client, written);
        if written < bytes.len() {
            let act = Act::Write(bytes[written..].to_vec());
            self.end.steps.push_front(Step { tag, when: When::Now, act });
        }
        written
    }

    /// What it has taken, and what it is about to do.
    pub(super) fn told(&self) -> String {
        format!(": {} are answered; {}", self.at, self.end.next())
    }

    pub(super) fn read(&mut self, bytes_max: usize, plan: &plan::Client, board: &mut Board) -> Met {
        let met = self.end.read(bytes_max);
        self.take(met, plan, board);
        if !matches!(met, Met::Bytes(_)) {
            self.end.close(false);
            self.end.steps.clear();
            board.ended(plan.exchanges[0].tag.client, false);
        }
        met
    }

    /// Takes the answers that are here.
    fn take(&mut self, met: Met, plan: &plan::Client, board: &mut Board) {
        while !self.end.unread.is_empty() && self.got.strange.is_none() {
            let Some(exchange) = plan.exchanges.get(self.at) else {
                self.got.strange = Some(format!("behind the last answer: {:?}", start_of(&self.end.unread)));
                return;
            };
            let framing = |head: &_| framing_of_answer(head, exchange.ask.method == "HEAD");
            let then = match met {
                Met::Bytes(_) => Then::More,
                Met::End => Then::End,
                Met::Reset => Then::Broken,
            };
            match Message::read(&self.end.unread, framing, then) {
                Ok(Some(answer)) => {
                    let is_whole = answer.is_whole;
                    self.take_answer(answer, met, exchange, board);
                    if !is_whole {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => self.got.strange = Some(error),
            }
        }
    }

    fn take_answer(&mut self, answer: Message, met: Met, exchange: &Exchange, board: &mut Board) {
        let (tag, status) = (exchange.tag, answer.status());
        if status < 200 && status != 101 {
            board.invited(tag);
        } else {
            board.seen(tag, &answer);
            if !answer.is_whole && matches!(met, Met::Bytes(_)) {
                return;
            }
            self.at += 1;
            if answer.closes() || (exchange.answer.status == 101 && status != 101) {
                // What would have followed is no request any more.
                self.end.steps.clear();
            }
        }
        self.end.unread.drain(..answer.bytes);
        self.got.answers[tag.exchange].push(answer);
    }
}

/// What a backend got over one connection.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) requests: Vec<(Tag, Message)>,
    /// Why what came is no request that anybody sent.
    pub(super) strange: Option<String>,
}

#[derive(Debug)]
pub(super) struct Backend {
    pub(super) end: End,
    pub(super) heard: Heard,
    /// The request that is being answered.
    current: Option<Tag>,
    /// It reads nothing until that exchange is over.
    is_deaf: bool,
    /// That request was said to be the last.
    is_told_last: bool,
    /// When it last began to write.
    wrote_at: Option<Instant>,
}

impl Backend {
    pub(super) fn new(stream: Stream) -> Self {
        let end = End::new(Some(stream), VecDeque::new());
        Self { end, heard: Heard::default(), current: None, is_deaf: false, is_told_last: false, wrote_at: None }
    }

    /// What it got; a request that is not done yet is told as far as it came.
    pub(super) fn finish(mut self, plan: &Plan, board: &mut Board) -> Heard {
        self.end.steps.clear();
        self.take(true, plan, board);
        self.heard
    }

    /// What it has taken, and what it is about to do.
    pub(super) fn told(&self) -> String {
        let current = self.current.map_or("nothing".to_owned(), |tag| tag.to_string());
        format!(": {current} is asked; {}", self.end.next())
    }

    pub(super) fn reads(&self, board: &Board) -> bool {
        !self.is_deaf || self.current.is_none_or(|tag| board.is_open(tag, When::Over))
    }

    /// Does the next step; says what it was.
    pub(super) fn act(&mut self, plan: &Plan, board: &mut Board) -> String {
        let Some(Step { tag, when, act }) = self.end.steps.pop_front() else { return String::new() };
        let said = match act {
            Act::Write(bytes) | Act::WriteBoth(bytes) => {
                let written = self.write(&bytes, tag, board, Act::Write);
                format!("writes {written} bytes to {tag} ({when:?})")
            }
            Act::WriteJunk(tail, junk) if board.is_quiet_but_for(tag) => {
                let rest = junk.clone();
                let written = self.write(&tail, tag, board, |tail| Act::WriteJunk(tail, rest));
                if written == tail.len() {
                    self.write(&junk, tag, board, Act::Write);
                }
                format!("writes {written} bytes to {tag}, and junk behind them ({when:?})")
            }
            Act::WriteJunk(tail, junk) => {
                // What does not go out with the answer does not go out: it would be taken for another answer, rightly.
                let written = self.end.write(&[&tail[..], &junk].concat()).unwrap_or(0);
                if written < tail.len() {
                    let act = Act::WriteJunk(tail[written..].to_vec(), junk);
                    self.end.steps.push_front(Step { tag, when: When::Now, act });
                }
                format!("writes {written} bytes to {tag}, with junk ({when:?})")
            }
            Act::WriteLate(late) => {
                let began = self.wrote_at.unwrap_or_else(now);
                if began.elapsed() > LATE_MAX {
                    format!("leaves {} bytes behind {tag} unsaid", late.len())
                } else {
                    let written = self.end.write(&late).unwrap_or(0);
                    board.is_too_late |= began.elapsed() > WAITED_FOR;
                    format!("writes {written} bytes behind {tag} ({when:?})")
                }
            }
            Act::CloseIfLast if !self.is_told_last => "goes on".to_owned(),
            Act::CloseIfLast => {
                self.end.close(false);
                self.ended(plan, board);
                return format!("closes behind {tag}, as it was told");
            }
            Act::Close | Act::Reset => {
                let said = format!("closes ({act:?}, {when:?})");
                self.end.close(matches!(act, Act::Reset));
                self.ended(plan, board);
                return said;
            }
        };
        self.is_deaf =
            plan.exchange(tag).is_some_and(|exchange| exchange.answer.is_deaf) && board.of(tag).attempts == 1;
        self.take(false, plan, board);
        said
    }

    fn write(&mut self, bytes: &[u8], tag: Tag, board: &mut Board, again: impl FnOnce(Vec<u8>) -> Act) -> usize {
        self.wrote_at = Some(now());
        let Some(written) = self.end.write(bytes) else {
            // The gateway has gone; reading finds out.
            self.end.steps.clear();
            self.is_deaf = false;
            board.torn(tag);
            return 0;
        };
        if written < bytes.len() {
            self.end.steps.push_front(Step { tag, when: When::Now, act: again(bytes[written..].to_vec()) });
        }
        written
    }

    pub(super) fn read(&mut self, bytes_max: usize, plan: &Plan, board: &mut Board) -> Met {
        let met = self.end.read(bytes_max);
        self.take(false, plan, board);
        if !matches!(met, Met::Bytes(_)) {
            self.end.close(false);
            self.ended(plan, board);
        }
        met
    }

    /// The connection has ended.
    fn ended(&mut self, plan: &Plan, board: &mut Board) {
        self.end.steps.clear();
        let reads_none = |tag| plan.exchange(tag).is_some_and(|exchange| exchange.answer.end == plan::End::Unread);
        if self.is_told_last && self.current.is_some_and(reads_none) {
            // What it has not read of the request goes with the connection.
            let head = self.end.unread.windows(4).position(|window| window == b"\r\n\r\n");
            self.end.unread.truncate(head.map_or(0, |at| at + 4));
        }
        self.take(true, plan, board);
        if let Some(tag) = self.current.take() {
            board.torn(tag);
        }
    }

    /// Takes the requests that are here.
    fn take(&mut self, has_ended: bool, plan: &Plan, board: &mut Board) {
        while !self.end.unread.is_empty() && self.heard.strange.is_none() {
            match self.take_one(has_ended, plan, board) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => self.heard.strange = Some(error),
            }
        }
    }

    /// Takes one request; whether it is done with that.
    fn take_one(&mut self, has_ended: bool, plan: &Plan, board: &mut Board) -> Result<bool, String> {
        let Some(first) = Message::read(&self.end.unread, |_| Framing::Bare, Then::More)? else { return Ok(false) };
        let target = first.head.first_line.split(' ').nth(1).unwrap_or_default();
        let tag = target.rsplit('/').next().and_then(Tag::parse);
        let (tag, exchange) = tag
            .and_then(|tag| Some((tag, plan.exchange(tag)?)))
            .filter(|(_, exchange)| exchange.ask.target == target)
            .ok_or_else(|| format!("a request that nobody sent: {:?}", first.head.first_line))?;
        if self.current.is_none() {
            self.current = Some(tag);
            let attempt = board.tried(tag);
            if !has_ended {
                self.end.steps =
                    if attempt == 1 { exchange.steps.clone().into() } else { exchange.plain_steps().into() };
            }
        }
        let reads_none = exchange.answer.end == plan::End::Unread;
        self.is_told_last = first.head.field("connection").is_some_and(|value| value == "close");
        let framing = |head: &_| match () {
            () if exchange.is_tunnel() => Framing::Rest,
            () if reads_none => Framing::Bare,
            () => framing_of_request(head),
        };
        let then = if has_ended { Then::End } else { Then::More };
        let Some(request) = Message::read(&self.end.unread, framing, then)? else { return Ok(false) };
        board.heard(tag, &request);
        let is_answered = !self.end.steps.iter().any(|step| matches!(step.act, Act::Write(_) | Act::WriteJunk(..)));
        if request.is_whole && !reads_none && !is_answered && self.end.unread.len() > request.bytes {
            return Err(format!("something behind {tag}, which is not answered"));
        }
        if !(has_ended || request.is_whole && self.end.steps.is_empty()) {
            return Ok(false);
        }
        if has_ended {
            board.torn(tag);
        }
        if has_ended && reads_none {
            // What stands behind its head is its body, which went with the connection.
            self.end.unread.clear();
        } else {
            self.end.unread.drain(..request.bytes);
        }
        self.heard.requests.push((tag, request));
        self.current = None;
        self.is_deaf = false;
        Ok(true)
    }
}

/// The first bytes of something unexpected.
fn start_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned()
}

//! What will happen, made of a seed alone: who asks what, who answers how, and which step waits for what of the other side.
//!
//! Both sides of an exchange are written down in one order, and a step waits only for steps before it: no plan can come to
//! a stop by itself.

use fastrand::Rng;

use super::{
    script::{Script, cut},
    wire::{Framing, Tag},
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const HUGE: usize = 100 * MIB;
/// What the gateway reads at once.
pub(super) const BUFFER: usize = 16 * KIB;

/// All that will happen in front of one gateway.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) clients: Vec<Client>,
}

/// One connection of a client.
#[derive(Debug)]
pub(super) struct Client {
    /// It connects when so many exchanges are over.
    pub(super) comes_after: usize,
    pub(super) exchanges: Vec<Exchange>,
    /// What it does, in order.
    pub(super) steps: Vec<Step>,
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) tag: Tag,
    pub(super) ask: Ask,
    pub(super) answer: Answer,
    /// Where its request begins among the bytes of its connection.
    pub(super) starts_at: usize,
    /// What the backend does that hears of it first.
    pub(super) steps: Vec<Step>,
    /// The whole answer.
    pub(super) plain: Vec<u8>,
    /// The client leaves before it has the answer.
    pub(super) leaves: bool,
}

/// A request.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the head, and any may go with any")]
pub(super) struct Ask {
    pub(super) method: &'static str,
    pub(super) target: String,
    pub(super) framing: Framing,
    pub(super) content_bytes: usize,
    pub(super) is_http10: bool,
    /// It waits to be told to send its content.
    pub(super) expects: bool,
    /// It says that it is the last.
    closes: bool,
    /// It asks for a tunnel; the content is what goes through it.
    pub(super) upgrades: bool,
}

/// What a backend makes of it.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) framing: Framing,
    pub(super) content_bytes: usize,
    /// It begins before the request is whole.
    pub(super) is_early: bool,
    /// The backend reads nothing more from when it begins to answer.
    pub(super) is_deaf: bool,
    pub(super) end: End,
}

/// What a backend does behind an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It waits for the next request.
    Keep,
    /// It closes, as it said that it would.
    Announced,
    /// It closes without a word.
    Silent,
    /// It closes before the answer is whole.
    Torn,
    /// It goes on to send what nobody asked for.
    Junk,
    /// It sends the body of so many bytes that a HEAD told of, when the client has long had its answer.
    Late(usize),
    /// It takes no notice of the request's content: what is left of that is the next request, unless this one was said to be
    /// the last.
    Unread,
}

/// One thing that one side does.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) tag: Tag,
    pub(super) when: When,
    pub(super) act: Act,
}

/// What a step waits for, of its own exchange. An exchange that is over holds nothing up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Now,
    /// Those before it on the connection are answered.
    Alone,
    /// The client has got any answer, an interim one or the head of the final one.
    Invited,
    /// The client has got the head of the answer and so much of its content.
    Seen(usize),
    /// The backend has got the head of the request and so much of its content.
    Heard(usize),
    /// The backend has got all of the request.
    HeardAll,
    /// The client has left.
    Left,
    /// The client has the whole answer.
    Over,
}

#[derive(Clone, Debug)]
pub(super) enum Act {
    Write(Vec<u8>),
    /// In one piece: two requests, so that the second is there before the first is answered.
    WriteBoth(Vec<u8>),
    /// The end of an answer, and junk behind it.
    WriteJunk(Vec<u8>, Vec<u8>),
    /// So much more than a HEAD gets, unless that would come too late to be waited for.
    WriteLate(Vec<u8>),
    /// Only if the request was said to be the last.
    CloseIfLast,
    Close,
    Reset,
}

impl Plan {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut doubtful = Rng::with_seed(!seed);
        // In a calm plan whoever closes, or sends what nobody asked for, has been given a reason to expect it.
        let is_calm = percent(&mut doubtful, 40);
        let busy = if is_calm { 0 } else { rng.usize(4..12) };
        let mut clients = Vec::new();
        let mut asked = 0;
        for number in 0..busy {
            let exchanges = rng.usize(1..6);
            clients.push(Client::new(&mut rng, number, exchanges, asked / 2));
            asked += exchanges;
        }
        for _ in 0..doubtful.usize(if is_calm { 6..20 } else { 0..6 }) {
            clients.push(Client::doubtful(&mut doubtful, clients.len(), asked / 2));
            asked += clients.last().map_or(0, |client| client.exchanges.len());
        }
        // In some plans there are bodies that go through pipes, and what breaks off or stands behind them.
        let mut large = Rng::with_seed(seed.rotate_left(32));
        if !is_calm && percent(&mut large, 40) {
            for _ in 0..large.usize(1..4) {
                clients.push(Client::large(&mut large, clients.len(), asked / 2, large_size));
                asked += clients.last().map_or(0, |client| client.exchanges.len());
            }
        }
        // Those who come last ask what anybody would, and get what anybody should.
        for _ in 0..6 {
            clients.push(Client::plain(&mut rng, clients.len(), asked));
        }
        Self { clients }
    }

    /// A few who send and get far more than any buffer holds.
    pub(super) fn huge(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut clients: Vec<_> =
            (0..3).map(|number| Client::large(&mut rng, number, 0, |rng| HUGE - rng.usize(0..2))).collect();
        clients.push(Client::plain(&mut rng, 3, 1));
        Self { clients }
    }

    pub(super) fn exchange(&self, tag: Tag) -> Option<&Exchange> {
        self.clients.get(tag.client)?.exchanges.get(tag.exchange)
    }
}

impl Client {
    fn new(rng: &mut Rng, number: usize, count: usize, busy: usize) -> Self {
        let mut client = Self { comes_after: rng.usize(0..=busy), exchanges: Vec::new(), steps: Vec::new() };
        let pipelines = percent(rng, 50);
        let mut written = 0;
        for exchange in 0..count {
            let (mut exchange, mut steps) = Exchange::new(rng, Tag { client: number, exchange }, exchange + 1 == count);
            exchange.starts_at = written;
            written += steps.iter().map(Step::bytes).sum::<usize>();
            if client.exchanges.last().is_some_and(Exchange::is_followed) && percent(rng, 80) {
                both(&mut client.steps, &mut steps);
            } else if exchange.tag.exchange > 0 && !(pipelines && percent(rng, 70)) {
                steps[0].when = When::Alone;
            }
            client.steps.extend(steps);
            client.exchanges.push(exchange);
        }
        let joined = join(rng, client.steps);
        client.steps = cut(rng, joined);
        client
    }

    fn plain(rng: &mut Rng, number: usize, comes_after: usize) -> Self {
        let tag = |exchange| Tag { client: number, exchange };
        let asks = [Ask::plain(tag(0), "GET", Framing::Bare), Ask::plain(tag(1), "POST", Framing::Length)];
        Self::one_by_one(rng, comes_after, asks.into_iter().map(|ask| (ask, Answer::plain())))
    }

    /// Asks as anybody would, and then so that it is in doubt what becomes of the connection to the service.
    fn doubtful(rng: &mut Rng, number: usize, busy: usize) -> Self {
        let comes_after = rng.usize(0..=busy);
        let before = rng.usize(0..3);
        let tag = |exchange| Tag { client: number, exchange };
        let plain = (0..before).map(|exchange| Ask::plain(tag(exchange), "POST", Framing::Length));
        let mut exchanges: Vec<_> = plain.map(|ask| (ask, Answer::plain())).collect();
        let (ask, answer) = (Ask::plain(tag(before), "GET", Framing::Bare), Answer::plain());
        exchanges.push(match rng.usize(0..3) {
            0 => {
                let end = End::Late(rng.usize(64..2000));
                (Ask { method: "HEAD", ..ask }, Answer { framing: Framing::Bare, content_bytes: 0, end, ..answer })
            }
            1 => {
                let framing = if rng.bool() { Framing::Length } else { Framing::Chunked };
                let method = ["GET", "HEAD", "DELETE"][rng.usize(0..3)];
                let ask = Ask { method, framing, content_bytes: rng.usize(1..2000), ..ask };
                let framing = if method == "HEAD" { Framing::Bare } else { Framing::Length };
                let content_bytes = if method == "HEAD" { 0 } else { 100 };
                (ask, Answer { framing, content_bytes, end: End::Unread, ..answer })
            }
            _ => {
                let ask = Ask { upgrades: true, framing: Framing::Rest, ..ask };
                let status = [200, 400, 403, 426][rng.usize(0..4)];
                (ask, Answer { status, end: End::Silent, ..answer })
            }
        });
        Self::one_by_one(rng, comes_after, exchanges.into_iter())
    }

    /// Sends a large body, gets one, or both; asks for something small before and behind it.
    fn large(rng: &mut Rng, number: usize, comes_after: usize, size: impl Fn(&mut Rng) -> usize) -> Self {
        let mut client = Self { comes_after, exchanges: Vec::new(), steps: Vec::new() };
        let tag = |exchange| Tag { client: number, exchange };
        let (sends, at) = (rng.bool(), rng.usize(0..2));
        let pipelines = rng.bool();
        let mut written = 0;
        for exchange in 0..3 {
            let tag = tag(exchange);
            let (ask, answer) = match (exchange == at, sends) {
                (false, _) => (Ask::plain(tag, "GET", Framing::Bare), Answer::plain()),
                (true, true) => {
                    let ask = Ask { content_bytes: size(rng), ..Ask::plain(tag, "POST", Framing::Length) };
                    let ask = Ask { expects: percent(rng, 15), ..ask };
                    let answer = Answer::new(rng, &ask);
                    (ask, answer)
                }
                (true, false) => {
                    let ask = Ask { is_http10: percent(rng, 40), ..Ask::plain(tag, "GET", Framing::Bare) };
                    let framing = if percent(rng, 60) { Framing::Length } else { Framing::Rest };
                    let answer = Answer { status: 200, framing, content_bytes: size(rng), ..Answer::new(rng, &ask) };
                    let end = if framing == Framing::Rest { End::Announced } else { answer.end };
                    (ask, Answer { end, ..answer })
                }
            };
            let leaves = exchange == at && percent(rng, 20);
            let (mut exchange, mut steps) = Script::new(rng, tag, ask, answer).finish(leaves);
            exchange.starts_at = written;
            written += steps.iter().map(Step::bytes).sum::<usize>();
            if !(pipelines && percent(rng, 70)) {
                steps[0].when = When::Alone;
            }
            client.steps.extend(in_pieces(steps));
            exchange.steps = in_pieces(exchange.steps);
            client.exchanges.push(exchange);
            if leaves {
                break;
            }
        }
        client
    }

    /// Each request when the one before is answered.
    fn one_by_one(rng: &mut Rng, comes_after: usize, exchanges: impl Iterator<Item = (Ask, Answer)>) -> Self {
        let mut client = Self { comes_after, exchanges: Vec::new(), steps: Vec::new() };
        let mut written = 0;
        for (ask, answer) in exchanges {
            let tag = ask.tag();
            let (mut exchange, mut steps) = Script::new(rng, tag, ask, answer).finish(false);
            exchange.starts_at = written;
            written += steps.iter().map(Step::bytes).sum::<usize>();
            steps[0].when = When::Alone;
            client.steps.extend(steps);
            client.exchanges.push(exchange);
        }
        client
    }
}

impl Step {
    fn bytes(&self) -> usize {
        match &self.act {
            Act::Write(bytes) | Act::WriteBoth(bytes) => bytes.len(),
            Act::WriteJunk(..) | Act::WriteLate(_) | Act::CloseIfLast | Act::Close | Act::Reset => 0,
        }
    }
}

impl Exchange {
    /// The exchange, and the client's steps.
    fn new(rng: &mut Rng, tag: Tag, is_last: bool) -> (Self, Vec<Step>) {
        let ask = Ask::new(rng, tag, is_last);
        let answer = Answer::new(rng, &ask);
        let leaves = is_last && percent(rng, if ask.upgrades { 60 } else { 30 });
        Script::new(rng, tag, ask, answer).finish(leaves)
    }

    /// Whether what follows is no HTTP any more.
    pub(super) fn is_tunnel(&self) -> bool {
        self.answer.status == 101
    }

    /// What a backend does that hears of it again: it answers as it would have, whole and without further ado.
    pub(super) fn plain_steps(&self) -> Vec<Step> {
        let (tag, when) = (self.tag, if self.is_tunnel() { When::Now } else { When::HeardAll });
        let mut steps = vec![Step { tag, when, act: Act::Write(self.plain.clone()) }];
        match self.answer.end {
            End::Announced => steps.push(Step { tag, when: When::Now, act: Act::Close }),
            End::Unread => steps.push(Step { tag, when: When::Over, act: Act::CloseIfLast }),
            _ => {}
        }
        steps
    }

    /// Its answer is followed by what nobody asked for; another request had better wait for that.
    fn is_followed(&self) -> bool {
        self.answer.end == End::Junk && self.ask.framing == Framing::Bare
    }
}

impl Ask {
    /// Whose it is, as its target says.
    fn tag(&self) -> Tag {
        self.target.rsplit('/').next().and_then(Tag::parse).expect("it was made of one")
    }

    fn new(rng: &mut Rng, tag: Tag, is_last: bool) -> Self {
        let route = if rng.bool() { "finish" } else { "cancel" };
        let is_http10 = percent(rng, 6);
        let upgrades = is_last && !is_http10 && percent(rng, 25);
        let method = if upgrades { "GET" } else { ["GET", "HEAD", "POST", "POST", "PUT"][rng.usize(0..5)] };
        let framing = match method {
            "POST" | "PUT" if is_http10 || percent(rng, 60) => Framing::Length,
            "POST" | "PUT" => Framing::Chunked,
            _ if upgrades => Framing::Rest,
            _ => Framing::Bare,
        };
        let content_bytes = match framing {
            Framing::Bare => 0,
            // What the gateway moves before it looks at others: the place where it stops in the middle.
            _ if percent(rng, 15) => MIB,
            _ => size(rng),
        };
        let expects = !is_http10 && !upgrades && content_bytes > 0 && percent(rng, 15);
        let closes = percent(rng, if is_last { 20 } else { 2 });
        Self { method, target: format!("/{route}/{tag}"), framing, content_bytes, is_http10, expects, closes, upgrades }
    }

    fn plain(tag: Tag, method: &'static str, framing: Framing) -> Self {
        Self {
            method,
            target: format!("/finish/{tag}"),
            framing,
            content_bytes: if framing == Framing::Bare { 0 } else { 100 },
            is_http10: false,
            expects: false,
            closes: false,
            upgrades: false,
        }
    }

    /// All but its last line and what frames its content.
    pub(super) fn head(&self) -> String {
        let version = if self.is_http10 { "1.0" } else { "1.1" };
        let mut head = format!("{} {} HTTP/{version}\r\nHost: gateway.test\r\n", self.method, self.target);
        if self.upgrades {
            head += "Connection: upgrade\r\nUpgrade: websocket\r\n";
        } else if self.closes {
            head += "Connection: close\r\n";
        } else if self.is_http10 {
            head += "Connection: keep-alive\r\n";
        }
        if self.expects {
            head += "Expect: 100-continue\r\n";
        }
        head
    }
}

impl Answer {
    fn new(rng: &mut Rng, ask: &Ask) -> Self {
        let is_switch = ask.upgrades && percent(rng, 80);
        let status = match rng.usize(0..100) {
            _ if is_switch => 101,
            0..10 => 204,
            10..15 => 304,
            _ => 200,
        };
        let framing = match rng.usize(0..100) {
            _ if is_switch => Framing::Rest,
            _ if ask.method == "HEAD" || status != 200 => Framing::Bare,
            0..50 => Framing::Length,
            50..88 => Framing::Chunked,
            _ => Framing::Rest,
        };
        let content_bytes = match framing {
            Framing::Bare => 0,
            // Through some tunnels nothing comes, and nothing tells them from idle connections.
            Framing::Rest if is_switch && percent(rng, 40) => 0,
            _ => size(rng),
        };
        let is_early = !is_switch && ask.content_bytes > 0 && percent(rng, 60);
        let end = match rng.usize(0..100) {
            _ if is_switch => End::Keep,
            _ if framing == Framing::Rest => End::Announced,
            0..6 => End::Announced,
            6..14 => End::Silent,
            14..22 => End::Torn,
            22..36 => End::Junk,
            _ => End::Keep,
        };
        Self { status, framing, content_bytes, is_early, is_deaf: is_early && percent(rng, 15), end }
    }

    fn plain() -> Self {
        let (is_early, is_deaf) = (false, false);
        Self { status: 200, framing: Framing::Length, content_bytes: 100, is_early, is_deaf, end: End::Keep }
    }

    /// All but its last line and what frames its content.
    pub(super) fn head(&self, rng: &mut Rng, tag: Tag) -> String {
        let mut head = format!("HTTP/1.1 {} \r\nX-Tag: {tag}\r\n", self.status);
        match self.status {
            101 => head += "Connection: upgrade\r\nUpgrade: websocket\r\n",
            _ if self.end == End::Announced => head += "Connection: close\r\n",
            _ => {}
        }
        if let End::Late(bytes) = self.end {
            head = format!("{head}Content-Length: {bytes}\r\n");
        } else if self.framing == Framing::Bare && self.status != 204 && rng.bool() {
            // Of what a GET would be given.
            head = format!("{head}Content-Length: {}\r\n", size(rng));
        }
        head
    }
}

/// Sends the next request in one piece with the whole of the one before.
fn both(before: &mut [Step], next: &mut Vec<Step>) {
    if let (Some(Step { act, .. }), Some(Step { act: Act::Write(bytes), .. })) = (before.last_mut(), next.first())
        && let Act::Write(both) | Act::WriteBoth(both) = act
    {
        both.extend(bytes);
        *act = Act::WriteBoth(std::mem::take(both));
        next.remove(0);
    }
}

/// Puts writes together that wait for nothing in between, some of them.
fn join(rng: &mut Rng, steps: Vec<Step>) -> Vec<Step> {
    let mut joined: Vec<Step> = Vec::new();
    for step in steps {
        match (joined.last_mut(), &step) {
            (Some(Step { act: Act::Write(before), .. }), Step { when: When::Now, act: Act::Write(bytes), .. })
                if percent(rng, 60) =>
            {
                before.extend(bytes);
            }
            _ => joined.push(step),
        }
    }
    joined
}

/// Sizes around those of buffers, and small ones.
pub(super) fn size(rng: &mut Rng) -> usize {
    let near = |rng: &mut Rng, size: usize| match rng.usize(0..4) {
        0 => size - 1,
        1 => size + 1,
        2 => size - 64 * rng.usize(0..4),
        _ => size,
    };
    match rng.usize(0..100) {
        0..10 => 0,
        10..20 => 1,
        20..50 => rng.usize(2..2000),
        50..60 => near(rng, 4 * KIB),
        60..70 => near(rng, 8 * KIB),
        70..80 => near(rng, BUFFER),
        80..88 => near(rng, 64 * KIB),
        88..92 => rng.usize(BUFFER..MIB),
        92..97 => MIB,
        _ => near(rng, MIB),
    }
}

/// Sizes around those from which on bodies are moved unseen, and those of pipes.
fn large_size(rng: &mut Rng) -> usize {
    let around = [32 * KIB, 32 * KIB + BUFFER, 128 * KIB, MIB, 2 * MIB];
    match rng.usize(0..3) {
        0 => rng.usize(32 * KIB..4 * MIB),
        _ => around[rng.usize(0..around.len())] + rng.usize(0..3) - 1,
    }
}

/// Long writes one piece after the other: what is left of one is copied whenever it is not taken whole.
fn in_pieces(steps: Vec<Step>) -> Vec<Step> {
    let mut pieces = Vec::new();
    for Step { tag, mut when, act } in steps {
        match act {
            Act::Write(bytes) if bytes.len() > MIB => {
                for piece in bytes.chunks(MIB) {
                    pieces.push(Step { tag, when, act: Act::Write(piece.to_vec()) });
                    when = When::Now;
                }
            }
            act => pieces.push(Step { tag, when, act }),
        }
    }
    pieces
}

pub(super) fn percent(rng: &mut Rng, percent: u32) -> bool {
    rng.u32(0..100) < percent
}

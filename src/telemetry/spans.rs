//! Spans of requests on their way out: each shard fills a batch of its own, and whole batches go to whoever exports them.
//!
//! A shard never waits and has few batches: while all are away its spans are dropped and counted. Nothing is told of a
//! request that is not recorded. How spans are named and sent is for the exporter.

use std::{
    net::{IpAddr, Ipv4Addr},
    task::{Context, Poll, Waker},
};

/// Spans of a batch: as many as go out in a request of the exporter.
pub const BATCH_SPANS: usize = 256;
/// Batches of a shard: one is filled, the others are on their way there or back.
const BATCHES: usize = 4;
/// Bytes of texts in a batch; with longer ones than usual it holds fewer spans.
const BATCH_TEXT_BYTES: usize = 48 * 1024;
/// No text of a span is longer; what is behind is cut off.
const TEXT_MAX: usize = 512;
/// All texts of one span: the names are three.
const SPAN_TEXT_MAX: usize = (TEXTS + 2) * TEXT_MAX;

/// What a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A client's request, from its first byte to its answer's last.
    Request,
    /// A message of the hub that a service is asked about.
    Message,
    /// One try at an instance.
    Try,
    /// The check of a token that was not known yet.
    TokenCheck,
    /// The wait for the bridge, for what a caller does with an account.
    Account,
    /// The wait until others have counted a request: another shard, or Redis.
    Limit,
}

/// What is known of a span, but for its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanFacts {
    /// What it is about.
    pub kind: SpanKind,
    /// The trace.
    pub trace_id: [u8; 16],
    /// Its own id.
    pub id: [u8; 8],
    /// That of the span that it is a part of; nought where it begins the trace.
    pub parent: [u8; 8],
    /// Whether the trace is recorded; one that is not is told of for its error alone.
    pub is_sampled: bool,
    /// When it began, in nanoseconds since 1970.
    pub began_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// The answer's status; 0 where there was none.
    pub status: u16,
    /// Whether it counts as failed.
    pub has_failed: bool,
    /// Why it ended otherwise than with a whole answer: a word of ours, or empty.
    pub reason: &'static str,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// `1.1`, `2`.
    pub protocol: &'static str,
    /// Of a request how often it was sent, of a try which one it is, from 1.
    pub attempt: u32,
    /// Whether a try went over a connection that had been used before.
    pub is_reused: bool,
    /// How long a try's connect took.
    pub connect_us: u32,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// Whom the request is from.
    pub client: IpAddr,
    /// The shard that served it.
    pub shard: u16,
}

impl SpanFacts {
    /// A span of which nothing is known.
    pub const BLANK: Self = Self {
        kind: SpanKind::Request,
        trace_id: [0; 16],
        id: [0; 8],
        parent: [0; 8],
        is_sampled: false,
        began_ns: 0,
        ended_ns: 0,
        status: 0,
        has_failed: false,
        reason: "",
        scheme: "",
        protocol: "",
        attempt: 0,
        is_reused: false,
        connect_us: 0,
        request_bytes: 0,
        response_bytes: 0,
        client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        shard: 0,
    };
}

/// The try that brought a request's answer, or was under way when it ended: told with the request, whose span says the rest
/// of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastTry {
    /// Its own id.
    pub id: [u8; 8],
    /// When it began, in nanoseconds since 1970. It ended with the request.
    pub began_ns: u64,
    /// The answer's status; 0 where there was none.
    pub status: u16,
    /// Whether it counts as failed.
    pub has_failed: bool,
    /// Why it ended otherwise than with an answer: a word of ours, or empty.
    pub reason: &'static str,
    /// Which one it is, from 1.
    pub attempt: u32,
    /// Whether it went over a connection that had been used before.
    pub is_reused: bool,
    /// How long its connect took.
    pub connect_us: u32,
}

impl LastTry {
    /// What its own span says, as a part of the request's.
    const fn facts(&self, request: &SpanFacts) -> SpanFacts {
        let Self { id, began_ns, status, has_failed, reason, attempt, is_reused, connect_us } = *self;
        SpanFacts {
            kind: SpanKind::Try,
            id,
            parent: request.id,
            began_ns,
            status,
            has_failed,
            reason,
            attempt,
            is_reused,
            connect_us,
            request_bytes: 0,
            response_bytes: 0,
            ..*request
        }
    }
}

/// A route and its upstream, as spans have them: one name behind the other, so that a span takes them in one go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpanNames {
    text: Box<[u8]>,
    route: u16,
    pattern: u16,
}

impl SpanNames {
    /// `pattern` is what the route takes: `/users/{id}`. `upstream` is empty where the gateway answers itself.
    pub fn new(route: &str, pattern: &str, upstream: &str) -> Self {
        let [route, pattern, upstream] = [route, pattern, upstream].map(|name| shortened(name.as_bytes()));
        Self { text: [route, pattern, upstream].concat().into(), route: length(route), pattern: length(pattern) }
    }

    /// All of them.
    pub fn all(&self) -> Names<'_> {
        Names { text: &self.text, route: self.route, pattern: self.pattern }
    }
}

/// The names of a route and its upstream, or of the upstream alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names<'a> {
    text: &'a [u8],
    route: u16,
    pattern: u16,
}

impl<'a> Names<'a> {
    fn parts(self) -> [&'a [u8]; 3] {
        let (route, rest) = self.text.split_at_checked(usize::from(self.route)).unwrap_or_default();
        let (pattern, upstream) = rest.split_at_checked(usize::from(self.pattern)).unwrap_or_default();
        [route, pattern, upstream]
    }

    /// The route's name.
    pub fn route(self) -> &'a [u8] {
        self.parts()[0]
    }

    /// What the route takes: `/users/{id}`.
    pub fn pattern(self) -> &'a [u8] {
        self.parts()[1]
    }

    /// The upstream's name.
    pub fn upstream(self) -> &'a [u8] {
        self.parts()[2]
    }

    /// The upstream's alone, which is all that a try has.
    #[must_use]
    pub fn of_try(self) -> Self {
        Self { text: self.upstream(), route: 0, pattern: 0 }
    }
}

/// No text of a span is longer.
fn shortened(text: &[u8]) -> &[u8] {
    text.get(..TEXT_MAX).unwrap_or(text)
}

fn length(text: &[u8]) -> u16 {
    u16::try_from(text.len()).unwrap_or(0)
}

/// The texts of a span, each empty where there is none. What came from a client is as it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanTexts<'a> {
    /// The names of the route and its upstream.
    pub names: Names<'a>,
    /// The method.
    pub method: &'a [u8],
    /// The path without its query; of a try, the one that its instance was asked for.
    pub path: &'a [u8],
    /// `host:port` of the instance that was asked last.
    pub instance: &'a [u8],
    /// The host that the client asked for.
    pub host: &'a [u8],
    /// The client's `User-Agent`.
    pub user_agent: &'a [u8],
    /// The request's id.
    pub request_id: &'a [u8],
}

/// How many texts a span has in a batch.
const TEXTS: usize = 8;

/// A span, as it is told and as it is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<'a> {
    /// What is known of it.
    pub facts: SpanFacts,
    /// Its texts.
    pub texts: SpanTexts<'a>,
}

/// A span in a batch, and perhaps that of its last try. Texts stand one behind the other from here on, each so long: the names,
/// then the others.
#[derive(Clone, Copy, Debug)]
struct Kept {
    facts: SpanFacts,
    last_try: Option<LastTry>,
    text: u32,
    lengths: [u16; TEXTS],
    /// How long the names of the route are.
    route: u16,
    pattern: u16,
}

/// Spans of one shard. Moves to the control thread and back.
#[derive(Debug, Default)]
pub struct SpanBatch {
    spans: Vec<Kept>,
    /// How many of them have a try besides.
    tries: usize,
    text: Vec<u8>,
    /// The shard that it is of.
    pub shard: u16,
    /// Spans that the shard dropped since the batch before.
    pub dropped: u32,
}

impl SpanBatch {
    /// An empty one with all of its room.
    fn with_room() -> Self {
        Self {
            spans: Vec::with_capacity(BATCH_SPANS),
            tries: 0,
            text: Vec::with_capacity(BATCH_TEXT_BYTES),
            shard: 0,
            dropped: 0,
        }
    }

    /// Adds a span.
    pub fn push(&mut self, span: &Span<'_>) {
        self.push_both(span, None, &[]);
    }

    /// Adds a request's span, and with it that of its last try, which asked for a path of its own or for the request's.
    fn push_both(&mut self, span: &Span<'_>, last_try: Option<LastTry>, asked: &[u8]) {
        let Span { facts, texts } = span;
        let text = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        let Names { text: names, route, pattern } = texts.names;
        let mut lengths = [0; TEXTS];
        let all =
            [names, texts.method, texts.path, asked, texts.instance, texts.host, texts.user_agent, texts.request_id];
        for (at, (room, text)) in lengths.iter_mut().zip(all).enumerate() {
            // No call is made for nothing. Names are short enough.
            if !text.is_empty() {
                let text = if at == 0 { text } else { shortened(text) };
                self.text.extend_from_slice(text);
                *room = length(text);
            }
        }
        self.tries += usize::from(last_try.is_some());
        self.spans.push(Kept { facts: *facts, last_try, text, lengths, route, pattern });
    }

    /// Whether it may have no room for another.
    pub fn is_full(&self) -> bool {
        self.len() >= BATCH_SPANS || self.text.len() + SPAN_TEXT_MAX > BATCH_TEXT_BYTES
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans.len() + self.tries
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The spans, in the order in which they were told.
    pub fn iter(&self) -> impl Iterator<Item = Span<'_>> {
        self.spans.iter().flat_map(|kept| {
            let mut rest = self.text.get(kept.text as usize..).unwrap_or_default();
            let [text, method, path, asked, instance, host, user_agent, request_id] = kept.lengths.map(|length| {
                let (text, behind) = rest.split_at_checked(usize::from(length)).unwrap_or_default();
                rest = behind;
                text
            });
            let names = Names { text, route: kept.route, pattern: kept.pattern };
            let span = Span {
                facts: kept.facts,
                texts: SpanTexts { names, method, path, instance, host, user_agent, request_id },
            };
            let last_try = kept.last_try.map(|last_try| {
                let path = if asked.is_empty() { path } else { asked };
                let texts = SpanTexts { names: names.of_try(), method, path, instance, ..SpanTexts::default() };
                Span { facts: last_try.facts(&kept.facts), texts }
            });
            std::iter::once(span).chain(last_try)
        })
    }

    /// Empties it, and keeps its room.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.tries = 0;
        self.text.clear();
        self.dropped = 0;
    }
}

/// Which requests a shard records, besides those that their traces say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// Whether spans go anywhere.
    pub is_on: bool,
    /// Whether a request that fails is told of whatever its trace says.
    pub with_errors: bool,
}

/// One shard's spans that are not handed over yet. One per shard.
#[derive(Debug, Default)]
pub struct SpanLog {
    recording: Recording,
    /// The one that is filled.
    current: Option<SpanBatch>,
    /// Those that are full.
    full: Vec<SpanBatch>,
    empty: Vec<SpanBatch>,
    /// How many there are, wherever they are.
    made: usize,
    waiting: Option<Waker>,
    recorded: u64,
    dropped: u32,
}

impl SpanLog {
    /// From now on so much is recorded.
    pub fn set(&mut self, recording: Recording) {
        self.recording = recording;
        if recording.is_on && self.current.is_none() {
            self.current = self.fresh();
        }
        if !recording.is_on {
            // What was told goes out yet; the room of what was not is free.
            self.made -= self.empty.len();
            self.empty.clear();
            if let Some(batch) = self.current.take_if(|batch| batch.is_empty()) {
                self.made -= 1;
                self.dropped = self.dropped.saturating_add(batch.dropped);
            }
        }
    }

    /// What is recorded.
    #[inline]
    pub const fn recording(&self) -> Recording {
        self.recording
    }

    /// Spans that were recorded so far, those included that were dropped.
    pub const fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Tells of a span.
    pub fn record(&mut self, span: &Span<'_>) {
        self.record_both(span, None, &[]);
    }

    /// Tells of a request and its last try. `asked` is the path that this asked for, if it is another than the request's.
    pub fn record_both(&mut self, span: &Span<'_>, last_try: Option<LastTry>, asked: &[u8]) {
        let count = 1 + u32::from(last_try.is_some());
        self.recorded += u64::from(count);
        if self.current.is_none() {
            self.current = self.fresh();
        }
        let Some(current) = &mut self.current else {
            self.dropped = self.dropped.saturating_add(count);
            return;
        };
        let mut wakes = current.is_empty();
        current.push_both(span, last_try, asked);
        if current.is_full() {
            self.full.extend(self.current.take());
            wakes = true;
        }
        if wakes && let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// A batch to be filled, if the shard may have one more.
    fn fresh(&mut self) -> Option<SpanBatch> {
        let fresh = self.empty.pop().or_else(|| {
            let may = self.made < BATCHES;
            self.made += usize::from(may);
            may.then(SpanBatch::with_room)
        });
        fresh.map(|mut batch| {
            batch.dropped = std::mem::take(&mut self.dropped);
            batch
        })
    }

    /// Waits until there is a span. One task waits, here or for a full batch.
    pub fn poll_any(&mut self, cx: &Context<'_>) -> Poll<()> {
        let has_any = !self.full.is_empty() || self.current.as_ref().is_some_and(|batch| !batch.is_empty());
        self.ready_if(has_any, cx)
    }

    /// Waits until a batch is full.
    pub fn poll_full(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.ready_if(!self.full.is_empty(), cx)
    }

    fn ready_if(&mut self, is_so: bool, cx: &Context<'_>) -> Poll<()> {
        if is_so {
            return Poll::Ready(());
        }
        self.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// A batch that is to be handed over: a full one, or where `even_if_not_full` what there is.
    pub fn take(&mut self, even_if_not_full: bool) -> Option<SpanBatch> {
        let full = self.full.pop();
        full.or_else(|| self.current.take_if(|batch| even_if_not_full && !batch.is_empty()))
    }

    /// A batch comes back, to be filled again.
    pub fn give_back(&mut self, mut batch: SpanBatch) {
        batch.clear();
        if self.recording.is_on {
            self.empty.push(batch);
        } else {
            self.made -= 1;
        }
    }
}

#[cfg(test)]
#[path = "spans_tests.rs"]
mod tests;

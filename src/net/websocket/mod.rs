//! One client's WebSocket from the handshake to the close: messages in, frames out, and the signs of life between.
//!
//! What messages mean is a [`Dialogue`]'s. A socket at rest holds no buffer: bytes are read into one that the shard lends,
//! all of them are handled, and then all that is to be said goes out in one write.

mod deflating;
mod outbox;

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

pub use deflating::with_inflated;
use outbox::Broken;
pub use outbox::Outbox;

use super::{End, Io, Moved, Slot, TunnelEnd, stream::Shutdown};
use crate::{
    proto::websocket::{DeflateOffer, Event, FrameError, Limits, Opcode, Reader, close_frame, header},
    shard::{Deadline, Instant, buffers, clock, task},
};

/// What a socket may read before the shard's other tasks get their turn.
const BYTES_PER_TURN: u64 = 256 * 1024;

/// A client that does not take what it is told is not read either, past so many bytes.
const WAITING_BYTES_MAX: usize = 64 * 1024;

/// How long both sides' closes may take, with what was queued before them.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// A whole message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Of text.
    Text(&'a str),
    /// Of bytes.
    Binary(&'a [u8]),
}

/// How a socket is closed from this side: a code (RFC 6455 §7.4) and a reason in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goodbye {
    /// The code.
    pub code: u16,
    /// The reason; may be empty.
    pub reason: &'static str,
}

/// What a socket's messages mean.
///
/// Whatever returns a [`Goodbye`] closes the socket with it: behind what waits in the outbox, and for five seconds.
pub trait Dialogue {
    /// A message came.
    fn received(&mut self, message: Message<'_>, outbox: &mut Outbox) -> Result<(), Goodbye>;

    /// The socket is told to end. In a drain it is its turn now, of those that end within the same time.
    fn end(&mut self, end: End, outbox: &mut Outbox) -> Goodbye {
        let _ = outbox;
        match end {
            End::Draining | End::Cut => Goodbye { code: 1001, reason: "" },
            End::Revoked | End::Kicked => Goodbye { code: 1008, reason: "" },
        }
    }

    /// In a drain all end within this time: how long this one goes on.
    fn wait(&self, within: Duration) -> Duration {
        let _ = within;
        Duration::ZERO
    }

    /// What it takes from the next frame on.
    fn limits(&self) -> Limits;

    /// So much has moved: up what was read, down what was written.
    fn moved(&mut self, moved: Moved);
}

/// The times of a socket.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A client that was not heard for so long is pinged.
    pub ping_after: Duration,
    /// A client that was not heard for so long is gone.
    pub dead_after: Duration,
    /// What a client that is gone is told.
    pub dead: Goodbye,
}

/// How a socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketEnd {
    /// Why.
    pub end: TunnelEnd,
    /// The code that was said first, by either side.
    pub code: Option<u16>,
}

/// How far the close has come (RFC 6455 §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// Ours is on its way or said; theirs is awaited.
    Closing,
    /// Nothing more is read that means anything: what waits goes out, then the FIN; theirs is awaited.
    Closed,
}

struct Socket<'s, D> {
    io: &'s Io,
    slot: &'s Slot,
    dialogue: D,
    reader: Reader,
    outbox: Outbox,
    timing: Timing,
    /// When the client was last heard.
    heard: Instant,
    has_pinged: bool,
    deadline: Deadline,
    /// In a drain: when it is this socket's turn.
    turn: Option<Instant>,
    stage: Stage,
    /// When a socket that closes is cut off.
    close_by: Instant,
    is_shut: bool,
    told: Option<End>,
    end: TunnelEnd,
    code: Option<u16>,
}

/// Serves a socket whose handshake is answered; `first` came behind it. Dropping the future closes it at once.
pub async fn run_websocket(
    io: &Io,
    first: Vec<u8>,
    slot: &Slot,
    deflate: Option<DeflateOffer>,
    timing: Timing,
    dialogue: impl Dialogue,
) -> SocketEnd {
    let now = clock::now();
    let mut socket = Socket {
        io,
        slot,
        reader: Reader::of_client(dialogue.limits(), deflate.is_some()),
        dialogue,
        outbox: Outbox::new(deflate),
        timing,
        heard: now,
        has_pinged: false,
        deadline: Deadline::new(),
        turn: None,
        stage: Stage::Open,
        close_by: Instant::NEVER,
        is_shut: false,
        told: None,
        end: TunnelEnd::Closed,
        code: None,
    };
    if !first.is_empty() {
        socket.dialogue.moved(Moved { up: first.len() as u64, down: 0 });
        socket.handle(first);
    }
    while !poll_fn(|cx| socket.poll(cx)).await {
        task::yield_now().await;
    }
    SocketEnd { end: socket.told.map_or(socket.end, TunnelEnd::Told), code: socket.code }
}

impl<D: Dialogue> Socket<'_, D> {
    /// Does all there is to do: `true` when the socket has ended, `false` when others are to run before it goes on.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.poll_told(cx) {
            return Poll::Ready(true);
        }
        let mut moved = Moved::default();
        let turn = self.poll_bytes(cx, &mut moved);
        if moved != Moved::default() {
            self.dialogue.moved(moved);
        }
        match turn {
            Poll::Ready(Ok(is_over)) => return Poll::Ready(is_over),
            Poll::Ready(Err(Broken)) => {
                if self.stage == Stage::Open {
                    self.end = TunnelEnd::Broken;
                }
                return Poll::Ready(true);
            }
            Poll::Pending => {}
        }
        self.poll_deadline(cx)
    }

    /// Whether the socket is cut. One that is told to end otherwise begins to close.
    fn poll_told(&mut self, cx: &Context<'_>) -> bool {
        let Poll::Ready(end) = self.slot.poll_end(cx) else { return false };
        if end == End::Cut {
            self.told = Some(end);
            return true;
        }
        if self.told.is_some() || self.stage != Stage::Open {
            return false;
        }
        if end == End::Draining {
            let within = self.slot.closes_within().unwrap_or_default();
            let turn = *self.turn.get_or_insert_with(|| clock::now() + self.dialogue.wait(within));
            if clock::now() < turn {
                return false;
            }
        }
        self.told = Some(end);
        let goodbye = self.dialogue.end(end, &mut self.outbox);
        self.close(goodbye);
        false
    }

    /// Reads all there is, handles all of it, and writes what is to be said, again and again until one has to wait.
    fn poll_bytes(&mut self, cx: &mut Context<'_>, moved: &mut Moved) -> Poll<Result<bool, Broken>> {
        loop {
            let is_blocked = match self.outbox.poll_write(cx, self.io, &mut moved.down) {
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                Poll::Pending => true,
            };
            if self.stage == Stage::Closed && !is_blocked && !self.is_shut {
                self.is_shut = self.io.poll_shutdown(cx, Shutdown::Whole).is_ready();
            }
            if self.stage != Stage::Closed && is_blocked && self.outbox.bytes() > WAITING_BYTES_MAX {
                return Poll::Pending;
            }
            // What is said in answer goes out before more is read, unless it has to wait.
            let mut has_read = false;
            while is_blocked || self.outbox.is_empty() {
                if moved.up >= BYTES_PER_TURN {
                    return Poll::Ready(Ok(false));
                }
                let mut buffer = Vec::new();
                match self.io.poll_read(cx, &mut buffer) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(self.hear_the_end(cx, moved)),
                    Poll::Ready(Ok(bytes)) => {
                        moved.up += bytes as u64;
                        has_read = true;
                        self.handle(buffer);
                    }
                    Poll::Pending => break,
                }
                if self.outbox.bytes() > WAITING_BYTES_MAX {
                    break;
                }
            }
            if !has_read || is_blocked {
                return Poll::Pending;
            }
        }
    }

    /// The client says nothing more, and nothing that it is told matters to it.
    fn hear_the_end(&mut self, cx: &mut Context<'_>, moved: &mut Moved) -> Result<bool, Broken> {
        if self.stage == Stage::Open {
            return Err(Broken);
        }
        let _ = self.outbox.poll_write(cx, self.io, &mut moved.down);
        Ok(true)
    }

    /// Handles what was read, and gives the buffer back.
    fn handle(&mut self, mut buffer: Vec<u8>) {
        if !buffer.is_empty() {
            self.heard = clock::turn();
            self.has_pinged = false;
            let mut bytes = &mut buffer[..];
            while self.stage != Stage::Closed {
                let limits = self.dialogue.limits();
                self.reader.set_limits(limits);
                let heard = match self.reader.next(&mut bytes) {
                    Ok(None) => break,
                    Ok(Some(Event::Close { code, .. })) => Heard::Close(code),
                    Ok(Some(event)) if self.stage == Stage::Open => {
                        hear(event, &mut self.dialogue, &mut self.outbox, limits.message_bytes_max)
                    }
                    Ok(Some(_)) => Heard::More,
                    Err(error) => Heard::Mistake(error),
                };
                match heard {
                    Heard::More => {}
                    Heard::Goodbye(goodbye) => self.close(goodbye),
                    Heard::Mistake(error) => self.close_at_once(Some(error.close_code())),
                    Heard::Close(code) => self.close_at_once(code),
                }
            }
        }
        buffers::give(buffer);
    }

    /// Says that nothing more is said, and waits for the client to say so too.
    fn close(&mut self, goodbye: Goodbye) {
        self.say_close(Some(goodbye.code), goodbye.reason);
        self.stage = Stage::Closing;
    }

    /// The client has said so, or has made a mistake after which nothing that it says means anything (RFC 6455 §7.1.7).
    fn close_at_once(&mut self, code: Option<u16>) {
        self.say_close(code, "");
        self.stage = Stage::Closed;
    }

    fn say_close(&mut self, code: Option<u16>, reason: &str) {
        // RFC 6455 §5.5.1: one close, and nothing behind it.
        if self.stage == Stage::Open {
            self.outbox.frame(&close_frame(code, reason), &[]);
            self.code = code;
            self.close_by = clock::now() + CLOSE_MAX;
        }
    }

    /// Waits for the next time that something is due, and does what is: `false` when it has something to be written.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.deadline.set(self.due());
        if self.deadline.poll(cx).is_pending() {
            return Poll::Pending;
        }
        let now = clock::now();
        if self.stage != Stage::Open {
            return Poll::Ready(now >= self.close_by);
        }
        if now >= self.heard + self.timing.dead_after {
            self.end = TunnelEnd::Idle;
            self.outbox.drop_waiting();
            self.close(self.timing.dead);
        } else if now >= self.heard + self.timing.ping_after && !self.has_pinged {
            self.has_pinged = true;
            self.outbox.frame(header(Opcode::Ping, 0).as_bytes(), &[]);
        }
        Poll::Ready(false)
    }

    fn due(&self) -> Instant {
        if self.stage != Stage::Open {
            return self.close_by;
        }
        let silence = if self.has_pinged { self.timing.dead_after } else { self.timing.ping_after };
        (self.heard + silence).min(self.turn.unwrap_or(Instant::NEVER))
    }
}

/// What is to be done about something that came.
enum Heard {
    /// Nothing.
    More,
    Goodbye(Goodbye),
    Mistake(FrameError),
    Close(Option<u16>),
}

fn hear<D: Dialogue>(event: Event<'_>, dialogue: &mut D, outbox: &mut Outbox, bytes_max: u32) -> Heard {
    let mut say = |message: Message<'_>| match dialogue.received(message, outbox) {
        Ok(()) => Heard::More,
        Err(goodbye) => Heard::Goodbye(goodbye),
    };
    match event {
        Event::Text(text) => say(Message::Text(text)),
        Event::Binary(bytes) => say(Message::Binary(bytes)),
        Event::Deflated { is_text, payload } => {
            with_inflated(is_text, payload, bytes_max, say).unwrap_or_else(Heard::Mistake)
        }
        Event::Ping(payload) => {
            outbox.frame(header(Opcode::Pong, payload.len()).as_bytes(), payload);
            Heard::More
        }
        Event::Pong(_) => Heard::More,
        Event::Close { code, .. } => Heard::Close(code),
    }
}

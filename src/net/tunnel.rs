//! Bytes both ways between a client and a backend that have agreed on another protocol (RFC 9110 §7.8).

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use super::{End, Io, Slot, stream::Shutdown};
use crate::{
    proto::websocket::Borders,
    shard::{Deadline, buffers, task},
};

/// What a tunnel may move before the shard's other tasks get their turn.
const BYTES_PER_TURN: u64 = 1024 * 1024;

/// How long a client may be silent once the backend has ended. Its FIN does not tell whether it closed or only has no
/// more to say. If it closed, the next byte sent to it breaks the connection, and so the tunnel; a client that has none
/// is not waited for.
const AFTER_BACKEND: Duration = Duration::from_secs(2);

/// How long a tunnel that is ended may take to say so: to come to a frame's border, and for both sides to close.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// One end of a tunnel.
#[derive(Debug)]
pub struct Side<'a> {
    /// The connection.
    pub io: &'a Io,
    /// What came over it already.
    pub first: Vec<u8>,
    /// What it is told when the tunnel is ended: a whole frame. Nothing where nobody knows what would be understood.
    pub goodbye: Goodbye,
}

/// What a side is told before a tunnel ends under it.
#[derive(Clone, Copy, Debug, Default)]
pub enum Goodbye {
    /// Only the end of the stream.
    #[default]
    None,
    /// A WebSocket `Close` with this code, from a server.
    AsServer,
    /// The same from a client, masked with this key.
    AsClient([u8; 4]),
}

/// Why a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelEnd {
    /// Both sides have ended, or one of them closed.
    Closed,
    /// A side's connection broke.
    Broken,
    /// Nothing moved for too long.
    Idle,
    /// It was ended.
    Told(End),
}

/// One direction of a tunnel.
struct Flow {
    /// Bytes on their way, from `written` on.
    bytes: Vec<u8>,
    written: usize,
    has_ended: bool,
    /// The end was passed on.
    is_done: bool,
    moved: u64,
    /// Where it stands between frames, if it carries WebSocket.
    borders: Option<Borders>,
    /// The tunnel ends: nothing passes beyond this frame, and then this is said.
    farewell: Option<Vec<u8>>,
    source: Source,
}

/// Where the bytes of one direction come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// From the other side.
    Side,
    /// Nothing more is taken from there: what is here is the rest.
    Rest,
    /// What is here are words of our own, and the last.
    Own,
}

/// A side's connection broke.
struct Broken;

impl Flow {
    fn new(first: Vec<u8>, watches: bool) -> Self {
        let mut borders = watches.then(Borders::default);
        if let Some(borders) = &mut borders {
            borders.pass(&first);
        }
        Self {
            bytes: first,
            written: 0,
            has_ended: false,
            is_done: false,
            moved: 0,
            borders,
            farewell: None,
            source: Source::Side,
        }
    }

    /// Moves what can be moved; each end of stream is passed on as a FIN, so that half-closed protocols work.
    fn poll(&mut self, cx: &mut Context<'_>, from: &Io, to: &Io) -> Result<(), Broken> {
        let before = self.moved;
        while !self.is_done && self.moved - before < BYTES_PER_TURN {
            if self.written < self.bytes.len() {
                match to.poll_write(cx, &self.bytes[self.written..]) {
                    Poll::Ready(Ok(0) | Err(_)) => return Err(Broken),
                    Poll::Ready(Ok(written)) => {
                        self.written += written;
                        if self.source != Source::Own {
                            self.moved += written as u64;
                        }
                    }
                    Poll::Pending => break,
                }
                continue;
            }
            self.bytes.clear();
            self.written = 0;
            self.say_farewell();
            if self.written < self.bytes.len() {
                continue;
            }
            if self.has_ended || self.source != Source::Side {
                self.is_done = to.poll_shutdown(cx, Shutdown::Whole).is_ready();
                break;
            }
            match from.poll_read(cx, &mut self.bytes) {
                Poll::Ready(Ok(0)) => self.has_ended = true,
                Poll::Ready(Ok(_)) => self.follow(),
                Poll::Ready(Err(_)) => return Err(Broken),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Follows what was read. In a farewell it goes no further than the frame that it is in.
    fn follow(&mut self) {
        let Some(borders) = &mut self.borders else { return };
        if self.farewell.is_some() {
            let passed = borders.pass_frame(&self.bytes);
            self.bytes.truncate(passed);
        } else {
            borders.pass(&self.bytes);
        }
    }

    /// The tunnel ends: after the frame that is under way this is said, and nothing else.
    fn bid_farewell(&mut self, goodbye: &[u8]) {
        // Bytes that nobody can tell apart end where they are.
        if self.borders.is_none() {
            self.source = Source::Rest;
        }
        self.farewell = Some(goodbye.to_vec());
    }

    /// Puts the goodbye into the empty buffer, if it is time for it.
    fn say_farewell(&mut self) {
        let Some(borders) = self.borders.as_ref().filter(|_| self.source == Source::Side && !self.has_ended) else {
            return;
        };
        if !borders.is_between_frames() {
            return;
        }
        let Some(goodbye) = self.farewell.take() else { return };
        self.source = Source::Own;
        // RFC 6455 §5.5.1: nothing follows a `Close`, not even another.
        if !borders.has_closed() {
            self.bytes.extend_from_slice(&goodbye);
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.bytes));
    }
}

/// Bytes that moved, to the backend and to the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// To the backend.
    pub up: u64,
    /// To the client.
    pub down: u64,
}

/// Runs a tunnel until both directions have ended, one side broke, nothing moved for `idle` (once the backend has ended
/// that is soon), or it is told to end. `moved` hears of what moves. `wait` says how long a tunnel that is to end within
/// the given time goes on: in a drain they do not all end at once.
///
/// Told to end, it says so to both sides and closes within a second; cut, at once. Dropping the future closes both.
pub async fn run(
    client: Side<'_>,
    backend: Side<'_>,
    idle: Duration,
    slot: &Slot,
    mut moved: impl FnMut(Moved),
    wait: impl Fn(Duration) -> Duration,
) -> TunnelEnd {
    let watches = !matches!(client.goodbye, Goodbye::None);
    let mut up = Flow::new(client.first, watches);
    let mut down = Flow::new(backend.first, watches);
    let mut silence = Deadline::new();
    silence.set_after(idle);
    let mut ending = PendingEnd::default();
    loop {
        let turn = poll_fn(|cx| {
            if let Some(end) = ending.poll(cx, slot, &wait) {
                if end == End::Cut {
                    return Poll::Ready(TurnEnd::Over(TunnelEnd::Told(end)));
                }
                up.bid_farewell(&backend.goodbye.words(end));
                down.bid_farewell(&client.goodbye.words(end));
                silence.set_after(FAREWELL_MAX);
            }
            let before = (up.moved, down.moved);
            let had_ended = down.is_done;
            let both = up.poll(cx, client.io, backend.io).and(down.poll(cx, backend.io, client.io));
            let now = Moved { up: up.moved - before.0, down: down.moved - before.1 };
            if now != Moved::default() {
                moved(now);
            }
            if both.is_err() || (up.is_done && down.is_done) {
                let end = if both.is_err() { TunnelEnd::Broken } else { TunnelEnd::Closed };
                return Poll::Ready(TurnEnd::Over(ending.told().unwrap_or(end)));
            }
            let is_told = ending.told().is_some();
            if !is_told && (now != Moved::default() || down.is_done != had_ended) {
                silence.set_after(if down.is_done { idle.min(AFTER_BACKEND) } else { idle });
            }
            // Before all else: whoever goes on and on in a farewell, inside of a frame without end, has the time of it and no more.
            if silence.poll(cx).is_ready() {
                let end = if down.is_done { TunnelEnd::Closed } else { TunnelEnd::Idle };
                return Poll::Ready(TurnEnd::Over(ending.told().unwrap_or(end)));
            }
            if now.up + now.down >= BYTES_PER_TURN { Poll::Ready(TurnEnd::Others) } else { Poll::Pending }
        });
        match turn.await {
            TurnEnd::Over(end) => {
                if matches!(end, TunnelEnd::Told(End::Revoked | End::Kicked | End::Draining)) {
                    see_off((&mut up, client.io), (&mut down, backend.io), &mut silence, slot).await;
                }
                return end;
            }
            TurnEnd::Others => task::yield_now().await,
        }
    }
}

enum TurnEnd {
    /// The tunnel has ended.
    Over(TunnelEnd),
    /// Others are to run before it goes on.
    Others,
}

/// Both directions were ended. What the sides still send is read over until they close too, for as long as a farewell may
/// take, or until all is cut: bytes that nobody reads make a reset, which takes the goodbye with it.
async fn see_off(
    (up, client): (&mut Flow, &Io),
    (down, backend): (&mut Flow, &Io),
    silence: &mut Deadline,
    slot: &Slot,
) {
    let mut is_over = false;
    while !is_over {
        is_over = poll_fn(|cx| {
            if silence.poll(cx).is_ready() || slot.poll_end(cx) == Poll::Ready(End::Cut) {
                return Poll::Ready(true);
            }
            let mut read = 0;
            for (flow, io) in [(&mut *up, client), (&mut *down, backend)] {
                while !flow.has_ended && read < BYTES_PER_TURN {
                    flow.bytes.clear();
                    match io.poll_read(cx, &mut flow.bytes) {
                        Poll::Ready(Ok(0) | Err(_)) => flow.has_ended = true,
                        Poll::Ready(Ok(bytes)) => read += bytes as u64,
                        Poll::Pending => break,
                    }
                }
            }
            if up.has_ended && down.has_ended {
                return Poll::Ready(true);
            }
            if read >= BYTES_PER_TURN { Poll::Ready(false) } else { Poll::Pending }
        })
        .await;
        if !is_over {
            task::yield_now().await;
        }
    }
}

/// Whether a tunnel is told to end, and when it does.
#[derive(Default)]
struct PendingEnd {
    told: Option<End>,
    /// In a drain: when it is this tunnel's turn.
    at: Option<Deadline>,
}

impl PendingEnd {
    /// The reason, once: when the tunnel has to begin to end, and again if it has to be cut.
    fn poll(&mut self, cx: &mut Context<'_>, slot: &Slot, wait: &impl Fn(Duration) -> Duration) -> Option<End> {
        let Poll::Ready(end) = slot.poll_end(cx) else { return None };
        if self.told.is_some() && end != End::Cut {
            return None;
        }
        if end == End::Draining {
            let within = slot.closes_within().unwrap_or_default();
            let at = self.at.get_or_insert_with(|| {
                let mut at = Deadline::new();
                at.set_after(wait(within));
                at
            });
            if at.poll(cx).is_pending() {
                return None;
            }
        }
        self.told = Some(end);
        Some(end)
    }

    fn told(&self) -> Option<TunnelEnd> {
        self.told.map(TunnelEnd::Told)
    }
}

impl Goodbye {
    /// RFC 6455 §7.4.1: 1001 says that this end goes away, 1008 that something is not allowed.
    fn words(self, end: End) -> Vec<u8> {
        let code = match end {
            End::Draining | End::Cut => 1001,
            End::Revoked | End::Kicked => 1008,
        };
        match self {
            Self::None => Vec::new(),
            Self::AsServer => crate::proto::websocket::close_to_client(code).to_vec(),
            Self::AsClient(key) => crate::proto::websocket::close_to_server(code, key).to_vec(),
        }
    }
}

//! Bytes both ways between a client and a backend that have agreed on another protocol (RFC 9110 §7.8).

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use super::{Io, Tunnel, inbound::Inbound};
use crate::shard::{Deadline, buffers, timer};

/// What a tunnel may move before the shard's other tasks get their turn.
const BYTES_PER_TURN: u64 = 1024 * 1024;

/// How long a client may be silent once the backend has ended. Its FIN does not tell whether it closed or only has no
/// more to say. If it closed, the next byte sent to it breaks the connection, and so the tunnel; a client that has none
/// is not waited for.
const AFTER_BACKEND: Duration = Duration::from_secs(2);

/// One direction of a tunnel.
struct Flow {
    /// Bytes on their way, from `written` on.
    bytes: Vec<u8>,
    written: usize,
    has_ended: bool,
    /// The end was passed on.
    is_done: bool,
    moved: u64,
}

/// How a poll of one direction went.
enum Flowed {
    /// Some bytes moved.
    Some(u64),
    /// It waits.
    None,
    /// A side broke.
    Broken,
}

impl Flow {
    fn new(first: Vec<u8>) -> Self {
        Self { bytes: first, written: 0, has_ended: false, is_done: false, moved: 0 }
    }

    /// Moves what can be moved; each end of stream is passed on as a FIN, so that half-closed protocols work.
    fn poll(&mut self, cx: &mut Context<'_>, from: &Io, to: &Io) -> Flowed {
        let before = self.moved;
        while !self.is_done && self.moved - before < BYTES_PER_TURN {
            if self.written < self.bytes.len() {
                match to.poll_write(cx, &self.bytes[self.written..]) {
                    Poll::Ready(Ok(0) | Err(_)) => return Flowed::Broken,
                    Poll::Ready(Ok(written)) => {
                        self.written += written;
                        self.moved += written as u64;
                    }
                    Poll::Pending => break,
                }
                continue;
            }
            self.written = 0;
            self.bytes.clear();
            if self.has_ended {
                to.shut_down_writes();
                self.is_done = true;
                break;
            }
            match from.poll_read(cx, &mut self.bytes) {
                Poll::Ready(Ok(0)) => self.has_ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Flowed::Broken,
                Poll::Pending => break,
            }
        }
        if self.moved > before { Flowed::Some(self.moved - before) } else { Flowed::None }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.bytes));
    }
}

/// Runs a tunnel until both directions have ended, one side broke, or nothing moved for too long; once the backend has
/// ended that is soon. Returns the bytes that went to the client.
pub(super) async fn run(client: &Io, inbound: &mut Inbound, tunnel: Tunnel) -> u64 {
    let Tunnel { mut backend, idle_timeout: idle, hold: _hold } = tunnel;
    let mut up = Flow::new(inbound.take_rest());
    let mut down = Flow::new(backend.take_rest());
    let mut silence = Deadline::new();
    silence.set_after(idle);
    loop {
        let goes_on = poll_fn(|cx| {
            let mut moved = 0;
            let had_ended = down.is_done;
            for flowed in [up.poll(cx, client, backend.io()), down.poll(cx, backend.io(), client)] {
                match flowed {
                    Flowed::Some(bytes) => moved += bytes,
                    Flowed::None => {}
                    Flowed::Broken => return Poll::Ready(false),
                }
            }
            client.sent.set(down.moved);
            if up.is_done && down.is_done {
                return Poll::Ready(false);
            }
            if moved > 0 || down.is_done != had_ended {
                silence.set_after(if down.is_done { idle.min(AFTER_BACKEND) } else { idle });
            }
            if moved >= BYTES_PER_TURN {
                return Poll::Ready(true);
            }
            silence.poll(cx).map(|()| false)
        });
        if !goes_on.await {
            return down.moved;
        }
        timer::sleep(timer::TURN).await;
    }
}

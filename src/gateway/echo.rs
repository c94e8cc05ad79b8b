//! `/ws/echo`: a WebSocket that says back what it hears, for tests of clients, proxies and this gateway.

use std::{rc::Rc, time::Duration};

use super::{body::Body, sockets};
use crate::{
    exchange::{Exchange, OpenTunnel, Reject},
    net::{Dialogue, Io, Message, Moved, Outbox, Serving, Slot, SocketGoodbye, Timing, Upgrade, run_websocket},
    proto::{
        head::ResponseHead,
        websocket::{DeflateOffer, Handshake, Limits},
    },
    shard::buffers,
};

/// As much as the suites of conformance send: 16 MiB, in 65,536 fragments and one empty one.
const LIMITS: Limits = Limits { message_bytes_max: 16 * 1024 * 1024, fragments_max: 65_537 };

const TIMING: Timing = Timing {
    ping_after: Duration::from_secs(25),
    dead_after: Duration::from_mins(1),
    dead: SocketGoodbye { code: 1001, reason: "not heard for a minute" },
};

/// Answers a handshake.
pub(super) fn answer(exchange: &Exchange) -> Result<(ResponseHead, Body), Reject> {
    let handshake = Handshake::read(&exchange.head, "").map_err(sockets::refused)?;
    let mut head = ResponseHead::new(101, buffers::take(), buffers::take_fields());
    handshake.answer(&mut head, None, handshake.deflate);
    Ok((head, Body::Echo(handshake.deflate)))
}

/// A socket that echoes.
pub(super) struct Echo {
    record: OpenTunnel,
    deflate: Option<DeflateOffer>,
}

impl Echo {
    pub(super) fn new(record: OpenTunnel, deflate: Option<DeflateOffer>) -> Self {
        Self { record, deflate }
    }

    async fn serve(self: Box<Self>, client: &Io, first: Vec<u8>, slot: &Slot) {
        let Self { mut record, deflate } = *self;
        let share = f64::from(record.random()) / (f64::from(u32::MAX) + 1.0);
        let said = run_websocket(client, first, slot, deflate, TIMING, Saying { record: &mut record, share }).await;
        record.end(said.end);
    }
}

impl Upgrade for Echo {
    fn run<'a>(self: Box<Self>, client: &'a Rc<Io>, first: Vec<u8>, slot: &'a Slot) -> Serving<'a> {
        Box::pin(self.serve(client, first, slot))
    }
}

struct Saying<'r> {
    record: &'r mut OpenTunnel,
    /// Of the time in which a drain ends sockets, so that clients do not all come back at once.
    share: f64,
}

impl Dialogue for Saying<'_> {
    fn received(&mut self, message: Message<'_>, outbox: &mut Outbox) -> Result<(), SocketGoodbye> {
        match message {
            Message::Text(text) => outbox.text(text),
            Message::Binary(bytes) => outbox.binary(bytes),
        }
        Ok(())
    }

    fn wait(&self, within: Duration) -> Duration {
        within.mul_f64(self.share)
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn moved(&mut self, moved: Moved) {
        self.record.moved(moved);
    }
}

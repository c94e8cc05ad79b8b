//! What the access log knows of a socket of the hub: a line at its end, beside that of the request that opened it.

use std::net::IpAddr;

use super::{Exchange, Ledger};
use crate::{
    shard::{Instant, clock},
    telemetry::{
        ids::RequestId,
        record::{Record, SocketEnd},
    },
};

/// A socket that is open. It says nothing by itself: who has it calls [`OpenSocket::log`].
#[derive(Clone, Copy, Debug)]
pub struct OpenSocket {
    request_id: RequestId,
    opened: Instant,
}

impl OpenSocket {
    /// The socket that this request becomes.
    pub fn of(exchange: &Exchange) -> Self {
        Self { request_id: exchange.request_id, opened: clock::turn() }
    }

    /// It has ended so, for this reason if it was one.
    pub fn log(&self, ledger: &mut Ledger, client: IpAddr, user: &str, reason: &'static str, end: SocketEnd) {
        let now = clock::now();
        ledger.access_log.line(&Record {
            unix_ms: u64::try_from(clock::to_unix(now).as_millis()).unwrap_or(u64::MAX),
            request_id: self.request_id.as_bytes(),
            client,
            user,
            method: b"GET",
            path: b"/ws",
            protocol: "websocket",
            status: 101,
            total_us: u64::try_from(now.since(self.opened).as_micros()).unwrap_or(u64::MAX),
            reason,
            shard: ledger.shard,
            socket: Some(end),
            ..Record::BLANK
        });
    }
}

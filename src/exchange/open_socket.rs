//! What the access log knows of a socket of the hub: a line at its end, beside that of the request that opened it.

use std::net::IpAddr;

use super::{Exchange, Ledger};
use crate::{
    shard::{Instant, clock},
    telemetry::{
        ids::RequestId,
        record::{Record, RouteNames, SocketEnd},
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
        Self { request_id: exchange.request_id, opened: clock::now() }
    }

    /// It has ended so, for this reason if it was one.
    pub fn log(&self, ledger: &mut Ledger, client: IpAddr, user: &str, reason: &'static str, end: SocketEnd) {
        let now = clock::now();
        ledger.access_log.line(&Record {
            unix_ms: u64::try_from(clock::to_unix(now).as_millis()).unwrap_or(u64::MAX),
            request_id: self.request_id.as_bytes(),
            trace_id: [0; 16],
            client,
            client_text: &[],
            user,
            method: b"GET",
            host: &[],
            path: b"/ws",
            place: RouteNames::NONE,
            instance: &[],
            protocol: "websocket",
            status: 101,
            request_bytes: 0,
            response_bytes: 0,
            total_us: u64::try_from(now.since(self.opened).as_micros()).unwrap_or(u64::MAX),
            gateway_us: 0,
            upstream_us: 0,
            connect_us: None,
            attempts: 0,
            reused: false,
            reason,
            reason_detail: "",
            shard: ledger.shard,
            user_agent: &[],
            socket: Some(end),
        });
    }
}

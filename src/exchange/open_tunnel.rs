//! What an exchange leaves behind that ended by switching protocols: a tunnel, counted while it is open, logged at its end.

use super::{Exchange, under_way::Ended};
use crate::{
    net::{End, Moved, TunnelEnd},
    proto::head::Known,
    telemetry::{
        metrics::TunnelEnded,
        slots::{MetricSlot, OTHER},
    },
};

/// A tunnel that is open. Dropping it means that its task ended under it.
#[derive(Debug)]
pub struct OpenTunnel {
    /// What opened it, with no more of its head than its line in the log has.
    exchange: Box<Exchange>,
    moved: Moved,
    is_websocket: bool,
    has_ended: bool,
}

impl OpenTunnel {
    pub(super) fn new(exchange: Exchange) -> Self {
        let upgrade = exchange.head.value(Known::Upgrade).unwrap_or_default();
        let is_websocket = upgrade.trim_ascii().eq_ignore_ascii_case(b"websocket");
        let mut exchange = Box::new(exchange);
        exchange.keep_only_what_is_logged();
        let tunnel = Self { exchange, moved: Moved::default(), is_websocket, has_ended: false };
        let route = tunnel.route();
        tunnel.exchange.ledger.with(|ledger| ledger.counters.route(route).tunnels_open += 1);
        tunnel
    }

    /// Whether what it carries is WebSocket (RFC 6455).
    pub fn is_websocket(&self) -> bool {
        self.is_websocket
    }

    /// A number of the shard's.
    pub fn random(&self) -> u32 {
        self.exchange.ledger.with(|ledger| ledger.rng.u32(..))
    }

    /// So much has moved.
    pub fn moved(&mut self, moved: Moved) {
        let route = self.route();
        self.moved.up += moved.up;
        self.moved.down += moved.down;
        self.exchange.ledger.with(|ledger| {
            let route = ledger.counters.route(route);
            route.tunnel_received_bytes += moved.up;
            route.tunnel_sent_bytes += moved.down;
        });
    }

    /// It has ended: counted and logged.
    pub fn end(mut self, end: TunnelEnd) {
        self.record(end);
    }

    fn route(&self) -> MetricSlot {
        self.exchange.labels.as_deref().map_or(OTHER, |labels| labels.route_slot)
    }

    fn record(&mut self, end: TunnelEnd) {
        self.has_ended = true;
        let (counted, logged) = match end {
            TunnelEnd::Closed => (TunnelEnded::Closed, Ended::Served),
            TunnelEnd::Broken => (TunnelEnded::Broken, Ended::Served),
            TunnelEnd::Idle => (TunnelEnded::Idle, Ended::Idle),
            TunnelEnd::Told(End::Revoked) => (TunnelEnded::Revoked, Ended::Revoked),
            TunnelEnd::Told(End::Kicked) => (TunnelEnded::Kicked, Ended::Kicked),
            TunnelEnd::Told(End::Draining) => (TunnelEnded::Draining, Ended::Draining),
            TunnelEnd::Told(End::Cut) => (TunnelEnded::Cut, Ended::Aborted),
        };
        let route = self.route();
        let lasted_us = self.exchange.log_tunnel(logged, self.moved);
        self.exchange.ledger.with(|ledger| {
            let route = ledger.counters.route(route);
            route.tunnels_open -= 1;
            route.tunnels_ended[counted.index()] += 1;
            route.tunnel_lifetime.observe_us(lasted_us);
        });
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        if !self.has_ended {
            self.record(TunnelEnd::Told(End::Cut));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, rc::Rc};

    use super::*;
    use crate::{
        exchange::Ledger,
        net::{Peer, Scheme},
        proto::{
            head::ResponseHead,
            http1::{HeadLimits, WholeRequest},
        },
        shard::{Local, clock},
        telemetry::access_log::AccessLog,
    };

    fn switched(ledger: &Rc<Local<Ledger>>, protocol: &str) -> OpenTunnel {
        let head = format!("GET /x HTTP/1.1\r\nHost: a\r\nUpgrade: {protocol}\r\nConnection: upgrade\r\n\r\n");
        let limits = HeadLimits { head_bytes_max: 4096, fields_max: 32, target_bytes_max: 1024 };
        let mut fields = Vec::new();
        let whole = WholeRequest::read(head.as_bytes(), &mut fields, &limits).expect("a good head");
        let head = whole.into_head(head.into_bytes(), fields);
        let address = Ipv4Addr::LOCALHOST;
        let peer = Peer::new((address, 1).into(), Scheme::Http);
        let mut exchange = Exchange::begin(ledger, &peer, None, head, clock::now(), false, address.into());
        exchange.answered(&mut ResponseHead::new(101, Vec::new(), Vec::new()));
        exchange.switched(0)
    }

    #[test]
    fn each_end_is_counted_and_logged_once() {
        let ledger = Rc::new(Local::new(Ledger::new(0, AccessLog::off(), 1)));
        let ends = [
            TunnelEnd::Closed,
            TunnelEnd::Broken,
            TunnelEnd::Idle,
            TunnelEnd::Told(End::Revoked),
            TunnelEnd::Told(End::Kicked),
            TunnelEnd::Told(End::Draining),
            TunnelEnd::Told(End::Cut),
        ];
        for end in ends {
            let mut tunnel = switched(&ledger, "WebSocket");
            assert!(tunnel.is_websocket());
            assert_eq!(ledger.with(|ledger| ledger.counters.route(OTHER).tunnels_open), 1);
            tunnel.moved(Moved { up: 3, down: 5 });
            tunnel.end(end);
        }
        drop(switched(&ledger, "foo"));
        ledger.with(|ledger| {
            assert_eq!(ledger.counters.requests_in_flight, 0);
            let route = ledger.counters.route(OTHER);
            assert_eq!(route.tunnels_ended, [1, 1, 1, 1, 1, 1, 2], "whose task broke was cut");
            assert_eq!((route.tunnels_open, route.tunnel_lifetime.count()), (0, 8));
            assert_eq!((route.tunnel_received_bytes, route.tunnel_sent_bytes), (21, 35));
            assert_eq!(route.requests.iter().sum::<u64>(), 8, "each was one request");
        });
    }
}

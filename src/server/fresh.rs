//! What becomes of a connection before its first request: there is no room for it, or its handshake is done.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use rustix::net::SendFlags;
use rustls::ServerConfig;

use crate::{
    certificates::Certificates,
    exchange::{Code, Ledger, Reject},
    gateway::Plan,
    net::{Agreed, CROWDED, HANDSHAKES_PER_TURN, Stream, accept_tls},
    proto::{
        head::Known,
        http1::{ConnectionToken, encode_response},
    },
    shard::{Local, TcpStream, clock, gate::Gate, timer},
    telemetry::{date::DATE_LENGTH, ids::RequestId, metrics::TlsFailure},
};

/// TLS with clients. One per shard.
#[derive(Debug)]
pub(super) struct Handshakes {
    /// By what they are done; `None` where no listener speaks TLS.
    config: Local<Option<Arc<ServerConfig>>>,
    gate: Gate,
}

impl Handshakes {
    pub(super) fn new(certificates: Option<Arc<Certificates>>) -> Self {
        let config = certificates.map(|certificates| certificates.for_shard());
        Self { config: Local::new(config), gate: Gate::new(HANDSHAKES_PER_TURN) }
    }

    /// Handshakes from now on are done by these; connections stay.
    pub(super) fn adopt(&self, certificates: &Certificates) {
        let config = certificates.for_shard();
        self.config.with(|current| *current = Some(config));
    }

    /// How many wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.gate.waiting()
    }

    /// Does a client's handshake, within its time, and counts how it ended.
    pub(super) async fn accept(&self, socket: TcpStream, plan: &Plan, ledger: &Local<Ledger>) -> Option<Stream> {
        let config = self.config.with(|config| config.clone())?;
        let due = clock::now() + plan.handshake_timeout;
        let accepted = timer::within(due, accept_tls(socket, config, &self.gate, plan.handshakes_waiting_max));
        match accepted.await.unwrap_or(Err(TlsFailure::TimedOut)) {
            Ok((stream, Agreed { version, is_resumed })) => {
                ledger.with(|ledger| {
                    ledger.counters.tls_handshakes[version.index()] += 1;
                    ledger.counters.tls_resumed += u64::from(is_resumed);
                });
                Some(stream)
            }
            Err(failure) => {
                ledger.with(|ledger| ledger.counters.tls_failures[failure.index()] += 1);
                None
            }
        }
    }
}

/// Tells a client that there is no room, as far as its socket takes that at once, and closes.
pub(super) fn refuse_http(fd: &OwnedFd, id: &RequestId, date: &[u8; DATE_LENGTH]) {
    let reject = Reject::new(Code::Overloaded);
    let (mut head, body) = reject.to_response(id.as_bytes());
    head.push(Known::XRequestId, b"X-Request-Id", id.as_bytes());
    head.push(Known::Date, b"Date", date);
    let mut answer = Vec::with_capacity(512);
    encode_response(&head, head.framing, ConnectionToken::Close, &mut answer);
    answer.extend_from_slice(&body);
    say_and_close(fd, &answer);
}

/// The same to a client that speaks TLS.
pub(super) fn refuse_tls(fd: &OwnedFd) {
    say_and_close(fd, &CROWDED);
}

/// Whoever is not told is closed on all the same.
fn say_and_close(fd: &OwnedFd, bytes: &[u8]) {
    let _ = rustix::net::send(fd.as_fd(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = rustix::net::shutdown(fd.as_fd(), rustix::net::Shutdown::Both);
}

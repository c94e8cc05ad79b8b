//! What becomes of a connection before its first request: it has its place, or there is no room for it; a balancer tells
//! whose it is; its handshake is done.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use rustix::net::SendFlags;
use rustls::ServerConfig;

use crate::{
    bus::load::LoadBoard,
    certificates::Certificates,
    exchange::{Code, Ledger, Reject},
    gateway::Plan,
    net::{Agreed, CROWDED, HANDSHAKES_PER_TURN, HandshakeFailed, Peer, Slot, Stream, accept_tls, read_proxy_header},
    proto::{
        head::Known,
        http1::{ConnectionToken, encode_response},
        proxy_protocol::Told,
    },
    shard::{Local, TcpStream, clock, complaints::complain, gate::Gate, timer},
    telemetry::{
        date::DATE_LENGTH,
        ids::RequestId,
        metrics::{ProxyFailure, TlsFailure},
    },
};

/// A connection's place on its shard and on the board of all shards.
pub(super) struct OpenConnection {
    pub(super) slot: Slot,
    pub(super) board: Arc<LoadBoard>,
    pub(super) shard: usize,
}

impl AsRef<Slot> for OpenConnection {
    fn as_ref(&self) -> &Slot {
        &self.slot
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.board.sub(self.shard);
    }
}

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
    pub(super) async fn accept(
        &self,
        socket: TcpStream,
        peer: &Peer,
        slot: &Slot,
        plan: &Plan,
        ledger: &Local<Ledger>,
    ) -> Option<Stream> {
        let config = self.config.with(|config| config.clone())?;
        let has_spoken = Cell::new(false);
        let accepting = accept_tls(socket, config, &self.gate, plan.handshakes_waiting_max, &has_spoken);
        match in_time(accepting, plan.handshake_timeout, slot, &has_spoken).await {
            Ok((stream, Agreed { version, alpn, is_resumed })) => {
                ledger.with(|ledger| {
                    ledger.counters.tls_handshakes[version.index()] += 1;
                    ledger.counters.tls_alpn[alpn.index()] += 1;
                    ledger.counters.tls_resumed += u64::from(is_resumed);
                });
                Some(stream)
            }
            Err(failed) => {
                ledger.with(|ledger| ledger.counters.tls_failures[failed.class.index()] += 1);
                complain!(debug: from = %peer.address, reason = %failed, "a handshake of a client failed");
                None
            }
        }
    }
}

/// In a drain: how long a handshake that has begun may take from then on, and how long its first bytes from the accepted
/// connection on, behind which they are on their way. Whoever has been silent for longer is not waited for.
const DRAINING_MAX: Duration = Duration::from_secs(1);
const SILENT_MAX: Duration = Duration::from_millis(100);

/// Does a handshake within its time.
async fn in_time<T>(
    accepting: impl Future<Output = Result<T, HandshakeFailed>>,
    timeout: Duration,
    slot: &Slot,
    has_spoken: &Cell<bool>,
) -> Result<T, HandshakeFailed> {
    let mut accepting = pin!(accepting);
    let accepted_at = clock::now();
    let mut drains_since = None;
    let mut due = timer::Deadline::new();
    due.set(accepted_at + timeout);
    poll_fn(|cx| {
        if let Poll::Ready(accepted) = accepting.as_mut().poll(cx) {
            return Poll::Ready(accepted);
        }
        if slot.is_closing() {
            let drains_since = *drains_since.get_or_insert_with(clock::now);
            let in_drain = if has_spoken.get() { drains_since + DRAINING_MAX } else { accepted_at + SILENT_MAX };
            due.set(in_drain.min(accepted_at + timeout));
        }
        due.poll(cx).map(|()| Err(TlsFailure::TimedOut.into()))
    })
    .await
}

/// How long a balancer may take for its PROXY header, from the accepted connection on: it knows it when it connects.
const PROXY_HEADER_MAX: Duration = Duration::from_secs(1);

/// Hears from a balancer whose connection it passes on. `None`, and counted, where it is none of ours, or has not said so.
pub(super) async fn hear_client(
    socket: &mut TcpStream,
    balancer: SocketAddr,
    plan: &Plan,
    ledger: &Local<Ledger>,
) -> Option<Told> {
    let is_trusted = plan.trusted.iter().any(|net| net.contains(balancer.ip().to_canonical()));
    let heard = if is_trusted {
        let header = timer::within(clock::now() + PROXY_HEADER_MAX, read_proxy_header(socket));
        header.await.unwrap_or(Err(ProxyFailure::TimedOut))
    } else {
        Err(ProxyFailure::Untrusted)
    };
    heard.inspect_err(|failure| ledger.with(|ledger| ledger.counters.proxy_failures[failure.index()] += 1)).ok()
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

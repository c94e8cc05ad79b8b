//! The handshake of a client, before anything else is read: by the gate of its shard, since it is long for a turn, and told
//! by class where it fails.

use std::{
    cell::Cell,
    fmt,
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{AlertDescription, HandshakeKind, ProtocolVersion, ServerConfig};

use super::{
    stream::{Shutdown, Stream},
    tls::Tls,
};
use crate::{
    certificates::take_refused,
    shard::{
        TcpStream,
        gate::{Gate, Passed},
    },
    telemetry::metrics::{TlsAlpn, TlsFailure, TlsVersion},
};

/// Handshakes that a shard signs in one turn at most: 176 µs each with a key of P-256 and all that belongs to it, while
/// everybody else waits. Of dearer ones the gate passes fewer.
pub const HANDSHAKES_PER_TURN: usize = 4;

/// A fatal alert in clear text, as it stands before keys are agreed on.
const fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

/// What a client is told that finds no place (`internal_error`).
pub const CROWDED: [u8; 7] = alert(80);
/// What it is told whose name no certificate has (`unrecognized_name`).
const UNRECOGNIZED_NAME: [u8; 7] = alert(112);
/// What it is told that has said more than there is room for (`decode_error`).
const TOO_LONG: [u8; 7] = alert(50);

/// What whoever speaks HTTP in clear text is told.
pub const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 35\r\n\
    Connection: close\r\n\r\nthis port speaks TLS; use https://\n";

/// What came of a handshake, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The version.
    pub version: TlsVersion,
    /// The protocol within.
    pub alpn: TlsAlpn,
    /// Whether a session was taken up again.
    pub is_resumed: bool,
}

/// Why a handshake came to nothing.
#[derive(Debug)]
pub struct HandshakeFailed {
    /// As it is counted.
    pub class: TlsFailure,
    /// What rustls says of it, where it was asked.
    cause: Option<rustls::Error>,
}

impl From<TlsFailure> for HandshakeFailed {
    fn from(class: TlsFailure) -> Self {
        Self { class, cause: None }
    }
}

impl fmt::Display for HandshakeFailed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(TlsFailure::VALUES[self.class.index()])?;
        let Some(cause) = &self.cause else { return Ok(()) };
        // Some of these texts have lists in them.
        let mut cause = cause.to_string();
        cause.truncate(cause.floor_char_boundary(CAUSE_BYTES_MAX));
        write!(formatter, ": {cause}")
    }
}

/// What is told of a cause.
const CAUSE_BYTES_MAX: usize = 200;

/// Does the handshake with a client; `has_spoken` is set when its first bytes are here. Dropping the future closes the
/// connection: whoever waits has a bound.
pub async fn accept_tls(
    socket: TcpStream,
    config: Arc<ServerConfig>,
    gate: &Gate,
    waiting_max: usize,
    has_spoken: &Cell<bool>,
) -> Result<(Stream, Agreed), HandshakeFailed> {
    let tls = Tls::accepted(socket, config);
    let mut tls =
        Box::new(tls.map_err(|error| HandshakeFailed { class: TlsFailure::Incompatible, cause: Some(error) })?);
    loop {
        match poll_fn(|cx| tls.poll_fill(cx)).await {
            Ok(0) => return Err(TlsFailure::Left.into()),
            Ok(_) => has_spoken.set(true),
            // Of a message without an end.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                if is_long(&tls) {
                    tls.replace_held(&TOO_LONG);
                }
                return Err(end(tls, TlsFailure::Malformed, tls_error(error)).await);
            }
            Err(_) => return Err(TlsFailure::Left.into()),
        }
        if is_at_start(&tls)
            && let Some(first) = tls.incoming().first()
            && *first != HANDSHAKE
        {
            let is_http = first.is_ascii_uppercase();
            if is_http {
                tls.replace_held(PLAIN_HTTP);
            }
            return Err(end(tls, if is_http { TlsFailure::PlainHttp } else { TlsFailure::Malformed }, None).await);
        }
        if !has_record(tls.incoming()) {
            continue;
        }
        let advanced = if is_long(&tls) {
            tls.pack_incoming();
            let Ok(passed) = gate.pass(waiting_max).await else {
                tls.replace_held(&CROWDED);
                return Err(end(tls, TlsFailure::Crowded, None).await);
            };
            advance_behind(passed, &mut tls)
        } else {
            Some(tls.advance_handshake())
        };
        let Some(advanced) = advanced else { return Err(TlsFailure::Left.into()) };
        // In this step or in none.
        let has_no_certificate = take_refused();
        if let Err(error) = advanced {
            let class = if has_no_certificate { TlsFailure::NoCertificate } else { class(&error) };
            if has_no_certificate {
                tls.replace_held(&UNRECOGNIZED_NAME);
            }
            return Err(end(tls, class, Some(error)).await);
        }
        if poll_fn(|cx| tls.poll_held(cx)).await.is_err() {
            return Err(TlsFailure::Left.into());
        }
        if !tls.session().is_handshaking() {
            let version = match tls.session().protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => TlsVersion::Tls13,
                _ => TlsVersion::Tls12,
            };
            let alpn = if tls.session().alpn_protocol().is_some() { TlsAlpn::Http1 } else { TlsAlpn::Unsaid };
            let is_resumed = tls.session().handshake_kind() == Some(HandshakeKind::Resumed);
            return Ok((Stream::Tls(tls), Agreed { version, alpn, is_resumed }));
        }
    }
}

/// The type of records that a handshake begins with.
const HANDSHAKE: u8 = 22;

/// Whether a whole record is here, so that looking at it is worth a place.
pub(super) fn has_record(incoming: &[u8]) -> bool {
    let [_, _, _, high, low, rest @ ..] = incoming else { return false };
    rest.len() >= usize::from(u16::from_be_bytes([*high, *low]))
}

/// Whether nothing of the client was taken in.
fn is_at_start(tls: &Tls) -> bool {
    tls.session().protocol_version().is_none()
}

/// Whether the next step may be the one with the signature: before keys are agreed on. In TLS 1.2 they are later, and the
/// signature is made when the version is known.
fn is_long(tls: &Tls) -> bool {
    match tls.session().protocol_version() {
        None => true,
        Some(ProtocolVersion::TLSv1_3) => tls.session().negotiated_key_exchange_group().is_none(),
        Some(_) => false,
    }
}

/// Takes the step with the signature; `None` for a client that has left meanwhile, and would not hear it.
fn advance_behind(passed: Passed<'_>, tls: &mut Tls) -> Option<Result<(), rustls::Error>> {
    // Where nobody can tell, it is there.
    if tls.socket().has_peer_ended().unwrap_or(false) {
        return None;
    }
    let advanced = tls.advance_handshake();
    drop(passed);
    Some(advanced)
}

/// Says what is held, as far as the socket takes it at once, and ends.
async fn end(mut tls: Box<Tls>, class: TlsFailure, cause: Option<rustls::Error>) -> HandshakeFailed {
    let said = |cx: &mut Context<'_>| {
        if let Poll::Ready(Ok(())) = tls.poll_held(cx) {
            let _ = tls.poll_shutdown(cx, Shutdown::Cut);
        }
        tls.discard_unread(cx);
        Poll::Ready(())
    };
    poll_fn(said).await;
    HandshakeFailed { class, cause }
}

/// What rustls says, in an error of a stream.
fn tls_error(error: io::Error) -> Option<rustls::Error> {
    error.downcast().ok()
}

/// What is wrong, for the counters.
fn class(error: &rustls::Error) -> TlsFailure {
    match error {
        rustls::Error::AlertReceived(AlertDescription::CloseNotify) => TlsFailure::Left,
        rustls::Error::AlertReceived(_) => TlsFailure::Refused,
        rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol => TlsFailure::Incompatible,
        _ => TlsFailure::Malformed,
    }
}

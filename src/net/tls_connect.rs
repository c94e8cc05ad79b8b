//! The handshake with a service, as its client: within the time that there is for the connection, by a gate of its shard, since
//! it is long for a turn; and what is wrong where it fails.

use std::{future::poll_fn, io, rc::Rc, task::Poll};

use rustls::{AlertDescription, CertificateError, HandshakeKind, InvalidMessage, ProtocolVersion};

use super::{stream::Stream, tls::Tls, tls_handshake::has_record};
use crate::{
    certificates::InstanceTls,
    shard::{Instant, TcpStream, gate::Gate, timer},
    telemetry::metrics::TlsFault,
};

/// Handshakes with services that a shard takes on in one turn, each up to four checks of signatures: about 300 µs. Beside those
/// of clients, and fewer: services are asked again over the same connections.
pub const SERVICE_HANDSHAKES_PER_TURN: usize = 2;

/// Why there is no TLS with a service.
#[derive(Debug, thiserror::Error)]
pub enum TlsConnectError {
    /// There is no more time.
    #[error("the TLS handshake took longer than a connection may")]
    TimedOut,
    /// What came is of something else.
    #[error("what is there does not speak TLS; write the instance without https://, or see which port is meant")]
    NotTls,
    /// The connection ended.
    #[error("it closed the connection during the TLS handshake")]
    Closed(#[source] Option<io::Error>),
    /// It refused us.
    #[error("it refused the TLS handshake by an alert: {}", told(*.0))]
    Refused(AlertDescription),
    /// Its certificate is not accepted.
    #[error("its certificate is not accepted: {}", words(.0))]
    Certificate(CertificateError),
    /// What it says breaks the rules, or we cannot agree.
    #[error("the TLS handshake failed: {0}")]
    Other(rustls::Error),
    /// There is nothing to do a handshake by.
    #[error("no certificate can be for its host; give the upstream a tls.server_name")]
    Nameless,
}

impl TlsConnectError {
    /// What is wrong.
    pub fn of(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => Self::Certificate(error),
            rustls::Error::AlertReceived(alert) => Self::Refused(alert),
            rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls,
            error => Self::Other(error),
        }
    }

    /// The same, for what asks over a stream of tokio's.
    pub fn of_io(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => Self::of(inner.clone()),
            None => Self::Closed(Some(error)),
        }
    }

    /// In a word.
    pub fn fault(&self) -> TlsFault {
        use CertificateError as Of;
        match self {
            Self::TimedOut => TlsFault::TimedOut,
            Self::NotTls => TlsFault::NotTls,
            Self::Refused(_) => TlsFault::Alert,
            Self::Certificate(Of::UnknownIssuer | Of::BadSignature) => TlsFault::UnknownAuthority,
            Self::Certificate(Of::NotValidForName | Of::NotValidForNameContext { .. }) | Self::Nameless => {
                TlsFault::WrongName
            }
            Self::Certificate(
                Of::Expired | Of::ExpiredContext { .. } | Of::NotValidYet | Of::NotValidYetContext { .. },
            ) => TlsFault::Expired,
            Self::Certificate(_) | Self::Closed(_) | Self::Other(_) => TlsFault::Other,
        }
    }
}

/// As connections that did not come about are told of.
impl From<TlsConnectError> for io::Error {
    fn from(error: TlsConnectError) -> Self {
        let kind = match error {
            TlsConnectError::TimedOut => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// What was wrong with TLS, where a connection failed for it.
pub fn tls_fault(error: &io::Error) -> Option<TlsFault> {
    let inner = error.get_ref()?;
    match inner.downcast_ref::<TlsConnectError>() {
        Some(error) => Some(error.fault()),
        // In TLS 1.3 a service says only after the handshake that it does not take the gateway's certificate.
        None => inner.downcast_ref::<rustls::Error>().map(|error| TlsConnectError::of(error.clone()).fault()),
    }
}

/// An alert, and what stands behind it most often.
fn told(alert: AlertDescription) -> String {
    let hint = match alert {
        AlertDescription::CertificateRequired => ": it asks for a certificate; give the upstream tls.cert and tls.key",
        AlertDescription::UnrecognisedName => {
            ": it knows no such name; give the upstream the tls.server_name that it goes by"
        }
        AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::HandshakeFailure => {
            ": it may want another certificate than the upstream's tls.cert, or one at all"
        }
        _ => "",
    };
    format!("{alert:?}{hint}")
}

fn words(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "it is of no authority that is trusted (ca_file, or the system's)".to_owned()
        }
        CertificateError::BadSignature => {
            "it is of no authority that is trusted, but of one that goes by the name of one".to_owned()
        }
        error => error.to_string(),
    }
}

/// What a connection to a service is made TLS by.
#[derive(Clone, Debug)]
pub struct TlsTo {
    /// The service.
    pub instance: InstanceTls,
    /// What handshakes with services pass on this shard.
    pub gate: Rc<Gate>,
}

/// Does the handshake with a service before the deadline. Dropping the future closes the connection.
pub(super) async fn connect_tls(socket: TcpStream, to: TlsTo, deadline: Instant) -> Result<Stream, TlsConnectError> {
    timer::within(deadline, shake_hands(socket, to)).await.unwrap_or(Err(TlsConnectError::TimedOut))
}

async fn shake_hands(socket: TcpStream, to: TlsTo) -> Result<Stream, TlsConnectError> {
    let TlsTo { instance: InstanceTls { config, name }, gate } = to;
    let tls = Tls::to_service(socket, config, name).map_err(TlsConnectError::of)?;
    let mut tls = Box::new(tls);
    tls.advance_handshake().map_err(TlsConnectError::of)?;
    poll_fn(|cx| tls.poll_held(cx)).await.map_err(|error| TlsConnectError::Closed(Some(error)))?;
    while tls.session().is_handshaking() {
        match poll_fn(|cx| tls.poll_fill(cx)).await {
            Ok(0) => return Err(TlsConnectError::Closed(None)),
            Ok(_) => {}
            Err(error) => return Err(TlsConnectError::of_io(error)),
        }
        if !is_tls(tls.incoming()) {
            return Err(TlsConnectError::NotTls);
        }
        if !has_record(tls.incoming()) {
            continue;
        }
        let advanced = {
            // Whoever waits is a request with a place among those under way, and with the time of a connection.
            let _passed = if is_long(&tls) { Some(gate.pass(usize::MAX).await) } else { None };
            tls.advance_handshake()
        };
        if let Err(error) = advanced {
            // The alert that tells the service why, as far as the socket takes it at once.
            poll_fn(|cx| {
                let _ = tls.poll_held(cx);
                Poll::Ready(())
            })
            .await;
            return Err(TlsConnectError::of(error));
        }
        poll_fn(|cx| tls.poll_held(cx)).await.map_err(|error| TlsConnectError::Closed(Some(error)))?;
    }
    Ok(Stream::Tls(tls))
}

/// Whether what came may be a record.
fn is_tls(incoming: &[u8]) -> bool {
    incoming.first().is_none_or(|first| (20..=23).contains(first))
}

/// Whether the next step may be one with signatures to check, or to make: until the service is known. A session that is taken
/// up again has none.
fn is_long(tls: &Tls) -> bool {
    let session = tls.session();
    session.handshake_kind() != Some(HandshakeKind::Resumed)
        && (session.peer_certificates().is_none() || session.protocol_version() == Some(ProtocolVersion::TLSv1_3))
}

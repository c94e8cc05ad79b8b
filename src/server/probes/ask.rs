//! One probe: asks an instance whether it is well, over a connection of its own.

use std::{error::Error as _, future::pending, io};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    certificates::{InstanceTls, ServiceTls},
    config::{Health, ProbeKind},
    net::{TlsConnectError, tls_fault},
    shard::{Address, explained, is_ours},
    telemetry::metrics::ProbeResult,
    upstream::BackendAddress,
};

/// An answer's head is read up to so many bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// And as many of its body are looked at.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Asks an instance, for as long as that may take.
pub(super) async fn probe(health: &Health, at: &BackendAddress, tls: Option<&ServiceTls>) -> ProbeResult {
    timeout(health.timeout, ask(health, at, tls)).await.unwrap_or(ProbeResult::TimedOut)
}

/// Asks an instance whether it is well.
async fn ask(health: &Health, at: &BackendAddress, tls: Option<&ServiceTls>) -> ProbeResult {
    let asked = match &at.address {
        Address::Ip(address) => {
            let stream = TcpStream::connect(address).await;
            ask_over(health, at, stream.map_err(|error| explained(*address, error)), tls).await
        }
        // Where too many wait the kernel does not say when there is room; what is asked for every so often need not know.
        Address::Unix(path) => ask_over(health, at, UnixStream::connect(path).await, None).await,
    };
    asked.unwrap_or_else(|result| result)
}

async fn ask_over<S>(
    health: &Health,
    at: &BackendAddress,
    stream: io::Result<S>,
    tls: Option<&ServiceTls>,
) -> Result<ProbeResult, ProbeResult>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = stream.map_err(|error| not_connected(&error))?;
    match health.kind() {
        Some(ProbeKind::Http) if at.is_https() => get(health, at, with_tls(at, stream, tls).await?).await,
        Some(ProbeKind::Http) => get(health, at, stream).await,
        Some(ProbeKind::Tcp) | None => Ok(ProbeResult::Good),
    }
}

/// Does the handshake with an instance that speaks TLS, as shards do: whole each time, so that its certificate is looked at.
async fn with_tls<S>(at: &BackendAddress, stream: S, tls: Option<&ServiceTls>) -> Result<TlsStream<S>, ProbeResult>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // It is known before an instance that speaks TLS is.
    let tls = tls.ok_or(ProbeResult::NotAsked)?;
    let failed = |error: TlsConnectError| {
        tracing::debug!(instance = &*at.name, address = %at.address, %error, "a probe found no TLS");
        error.fault().of_probe()
    };
    let InstanceTls { config, name } = tls.to_instance(at.host()).ok_or_else(|| failed(TlsConnectError::Nameless))?;
    let connected = TlsConnector::from(config).connect(name, stream).await;
    connected.map_err(|error| failed(TlsConnectError::of_io(error)))
}

fn not_connected(error: &io::Error) -> ProbeResult {
    match error.kind() {
        _ if is_ours(error) => ProbeResult::NotAsked,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ProbeResult::TimedOut,
        _ => ProbeResult::Refused,
    }
}

/// One GET. Of the answer the head is looked at, and the body where a text of it is known.
async fn get<S>(health: &Health, at: &BackendAddress, stream: S) -> Result<ProbeResult, ProbeResult>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = Request::get(health.path.as_deref().unwrap_or("/"))
        .header(header::HOST, health.host.as_deref().unwrap_or(at.authority()))
        .header(header::USER_AGENT, concat!("shardgate/", env!("CARGO_PKG_VERSION"), " (health)"))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .expect("the configuration is checked");
    let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| class_of(&error))?;
    // What ends it is told to who waits, and there may be something left to look at.
    let connection = async {
        let _ = connection.await;
        pending::<Result<ProbeResult, ProbeResult>>().await
    };
    let (mut connection, answer) = (std::pin::pin!(connection), sender.send_request(request));
    let mut answer = std::pin::pin!(answer);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        never = &mut connection => return never,
    };
    let answer = answer.map_err(|error| class_of(&error))?;
    if !health.statuses.contains(answer.status().as_u16()) {
        return Ok(ProbeResult::Status);
    }
    let Some(wanted) = &health.body else { return Ok(ProbeResult::Good) };
    tokio::select! {
        biased;
        found = has_text(answer, wanted.as_bytes()) => found,
        never = connection => never,
    }
}

/// Whether an answer's body has this text, as far as it is looked at.
async fn has_text(mut answer: Response<Incoming>, wanted: &[u8]) -> Result<ProbeResult, ProbeResult> {
    let mut body = Vec::new();
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(|error| class_of(&error))?;
        let bytes = frame.data_ref().map_or(&[][..], |bytes| bytes);
        // What was looked at is not looked at again, but for where the text may have begun: a body of many small pieces
        // would take its square.
        let from = body.len().saturating_sub(wanted.len());
        body.extend_from_slice(&bytes[..bytes.len().min(BODY_BYTES_MAX - body.len())]);
        if memchr::memmem::find(&body[from..], wanted).is_some() {
            return Ok(ProbeResult::Good);
        }
        if body.len() == BODY_BYTES_MAX {
            break;
        }
    }
    Ok(ProbeResult::Body)
}

fn class_of(error: &hyper::Error) -> ProbeResult {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    if let Some(fault) = cause.and_then(tls_fault) {
        return fault.of_probe();
    }
    if error.is_parse() { ProbeResult::Malformed } else { ProbeResult::Closed }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::{LocalSet, spawn_local},
    };

    use super::*;

    /// A service that says this to each connection once it has read something, and then waits or closes; and what came of
    /// a probe of it, and what it read.
    fn probed(health: Health, says: &'static str, closes: bool) -> (ProbeResult, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let service = spawn_local(async move {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let mut read = vec![0; 4096];
                let bytes = stream.read(&mut read).await.unwrap_or(0);
                let _ = stream.write_all(says.as_bytes()).await;
                if !closes {
                    // Until the prober has enough.
                    let _ = stream.read(&mut [0; 1]).await;
                }
                String::from_utf8_lossy(&read[..bytes]).into_owned()
            });
            let at = BackendAddress { name: "shop.internal:80".into(), address: address.into() };
            (probe(&health, &at, None).await, service.await.expect("it ends"))
        })
    }

    fn health() -> Health {
        Health { path: Some("/health?deep=1".to_owned()), timeout: Duration::from_millis(300), ..Health::default() }
    }

    #[test]
    fn an_answer_is_good_bad_late_or_none() {
        for (says, closes, result) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, ProbeResult::Good),
            ("HTTP/1.1 204 None\r\n\r\n", true, ProbeResult::Good),
            ("HTTP/1.1 399 Odd\r\nContent-Length: 9999999\r\n\r\n", false, ProbeResult::Good),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", false, ProbeResult::Good),
            ("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", false, ProbeResult::Status),
            ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", true, ProbeResult::Status),
            ("", true, ProbeResult::Closed),
            ("HTTP/1.1 200 O", true, ProbeResult::Closed),
            ("", false, ProbeResult::TimedOut),
            ("HTTP/1.1 200 O", false, ProbeResult::TimedOut),
            ("SSH-2.0-OpenSSH_9.9\r\n", false, ProbeResult::Malformed),
        ] {
            assert_eq!(probed(health(), says, closes).0, result, "{says:?}");
        }
    }

    #[test]
    fn a_body_has_its_text_or_not() {
        let with = || Health { body: Some("\"ok\"".to_owned()), ..health() };
        let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n{}\"ok\"", "x".repeat(BODY_BYTES_MAX - 2));
        for (says, closes, result) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"is\": \"ok\"}", false, ProbeResult::Good),
            ("HTTP/1.1 200 OK\r\n\r\nall is \"ok\"", true, ProbeResult::Good),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\"o\r\n2\r\nk\"\r\n0\r\n\r\n",
                false,
                ProbeResult::Good,
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n\"bad\"", false, ProbeResult::Body),
            ("HTTP/1.1 204 None\r\n\r\n", false, ProbeResult::Body),
            ("HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\n\"ok\"", false, ProbeResult::Status),
            ("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n\"o", false, ProbeResult::TimedOut),
            ("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n\"o", true, ProbeResult::Closed),
            (long.leak(), false, ProbeResult::Body),
        ] {
            assert_eq!(probed(with(), says, closes).0, result, "{:?}", says.get(..80));
        }
    }

    #[test]
    fn a_socket_with_a_path_is_asked_like_any_other() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("shop.sock");
        let at = BackendAddress { name: "localhost".into(), address: Address::from(path.as_path()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            assert_eq!(probe(&health(), &at, None).await, ProbeResult::Refused, "nothing is there");
            let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
            let service = spawn_local(async move {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let mut read = vec![0; 4096];
                let bytes = stream.read(&mut read).await.unwrap_or(0);
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("written");
                String::from_utf8_lossy(&read[..bytes]).to_ascii_lowercase()
            });
            assert_eq!(probe(&health(), &at, None).await, ProbeResult::Good);
            let read = service.await.expect("it ends");
            assert!(read.contains("\r\nhost: localhost\r\n"), "{read}");
        });
    }

    #[test]
    fn what_is_asked_is_as_configured() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (_, read) = probed(health(), ok, false);
        assert!(read.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{read}");
        let fields: BTreeSet<_> = read.to_ascii_lowercase().lines().map(str::to_owned).collect();
        assert!(fields.contains("host: shop.internal:80") && fields.contains("connection: close"), "{read}");
        let (_, read) = probed(Health { host: Some("shop.example".to_owned()), ..health() }, ok, false);
        assert!(read.to_ascii_lowercase().contains("\r\nhost: shop.example\r\n"), "{read}");
        let statuses = "201".parse().expect("a status");
        assert_eq!(probed(Health { statuses, ..health() }, ok, false).0, ProbeResult::Status);
        let tcp = Health { kind: Some(ProbeKind::Tcp), path: None, ..health() };
        assert_eq!(probed(tcp, "", true), (ProbeResult::Good, String::new()), "to be let in is enough");
    }

    #[test]
    fn who_does_not_listen_refuses() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let result = runtime.block_on(async {
            let address = TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr());
            let address = Address::from(address.expect("an address"));
            probe(&health(), &BackendAddress { name: "gone".into(), address }, None).await
        });
        assert_eq!(result, ProbeResult::Refused);
    }
}

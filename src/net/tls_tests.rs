//! TLS as a stream: what `Stream` promises, against rustls as a client, on both drivers.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io::{self, IoSlice, Read as _, Write as _},
    net,
    pin::Pin,
    rc::Rc,
    sync::{Arc, mpsc},
    task::{Context, Poll},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::net::sockopt;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    pki_types::{CertificateDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use super::{HandshakeFailed, Io, Shutdown, accept_tls};
use crate::{
    certificates::{self, provider},
    shard::{Heard, TcpStream, buffers, clock, gate::Gate, task, testing, timer},
    telemetry::metrics::{TlsFailure, TlsVersion},
};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// Writes so many bytes at a time.
struct Pieces(net::TcpStream, usize);

impl io::Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(self.1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Client = StreamOwned<ClientConnection, Pieces>;

/// A shard's side of a fresh connection, and what is done with the other one in a thread of its own.
fn connect<T: Send + 'static>(client: impl FnOnce(net::TcpStream) -> T + Send + 'static) -> (TcpStream, JoinHandle<T>) {
    let listener = net::TcpListener::bind("127.0.0.1:0").expect("a port");
    sockopt::set_socket_recv_buffer_size(&listener, 4096).expect("set");
    let address = listener.local_addr().expect("its address");
    let client = thread::spawn(move || {
        let socket = net::TcpStream::connect(address).expect("connected");
        socket.set_nodelay(true).expect("set");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        client(socket)
    });
    let (fd, _) = listener.accept().expect("accepted");
    sockopt::set_socket_send_buffer_size(&fd, 4096).expect("set");
    (TcpStream::from_fd(fd.into()).expect("registered"), client)
}

/// What a client's thread gives back, while the shard goes on.
async fn told<T>(client: JoinHandle<T>) -> T {
    testing::until(|| client.is_finished()).await;
    client.join().expect("the client ended well")
}

/// A server's configuration, and one of clients that trust it.
fn configurations(version: &'static SupportedProtocolVersion) -> (Arc<rustls::ServerConfig>, Arc<ClientConfig>) {
    let place = tempfile::tempdir().expect("a directory");
    let certificate = certificates::tests::made(place.path(), "a", &["localhost"]);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificate.cert).expect("a certificate")).expect("added");
    let server = certificates::tests::load(vec![certificate]).expect("it is right").for_shard();
    let client = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).expect("a version");
    (server, Arc::new(client.with_root_certificates(roots).with_no_client_auth()))
}

/// A stream whose handshake is done, and its client, which writes so many bytes at a time.
async fn pair<T: Send + 'static>(
    version: &'static SupportedProtocolVersion,
    at_a_time: usize,
    client: impl FnOnce(Client) -> T + Send + 'static,
) -> (Rc<Io>, JoinHandle<T>) {
    let (server, config) = configurations(version);
    let (socket, client) = connect(move |socket| {
        let session = ClientConnection::new(config, "localhost".try_into().expect("a name")).expect("a session");
        client(StreamOwned::new(session, Pieces(socket, at_a_time)))
    });
    let (stream, agreed) = accept_tls(socket, server, &Gate::new(4), 10, &Cell::new(false)).await.expect("a handshake");
    let is_new = version.version == rustls::ProtocolVersion::TLSv1_3;
    assert_eq!(agreed.version, if is_new { TlsVersion::Tls13 } else { TlsVersion::Tls12 });
    (Rc::new(Io::new(stream)), client)
}

/// All that is read until the end, and how that was.
async fn read_all(io: &Io) -> (Vec<u8>, io::Result<usize>) {
    let mut all = Vec::new();
    loop {
        let mut buffer = Vec::new();
        match poll_fn(|cx| io.poll_read(cx, &mut buffer)).await {
            Ok(1..) => all.extend_from_slice(&buffer),
            end => return (all, end),
        }
    }
}

async fn write_all(io: &Io, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| io.poll_write(cx, bytes)).await.expect("the client reads");
        bytes = &bytes[written..];
    }
}

fn many_bytes() -> Vec<u8> {
    (0..300_000_u32).map(|place| u8::try_from(place % 251).expect("it is small")).collect()
}

#[test]
fn what_is_said_is_heard_however_it_is_split() {
    testing::on_both_drivers(|| async {
        for (version, at_a_time) in [(VERSIONS[0], 1), (VERSIONS[0], 1 << 20), (VERSIONS[1], 7), (VERSIONS[1], 1 << 20)]
        {
            let length = if at_a_time == 1 << 20 { 300_000 } else { 3000 };
            let (io, client) = pair(version, at_a_time, move |mut client| {
                client.write_all(&many_bytes()[..length]).expect("written");
                client.conn.send_close_notify();
                client.flush().expect("written");
                let mut heard = Vec::new();
                client.read_to_end(&mut heard).expect("it ends with a goodbye");
                heard
            })
            .await;
            let (heard, end) = read_all(&io).await;
            assert_eq!(heard, many_bytes()[..length]);
            assert!(matches!(end, Ok(0)), "{end:?}");
            // Our direction goes on without the other.
            write_all(&io, &many_bytes()).await;
            poll_fn(|cx| io.poll_shutdown(cx, Shutdown::Whole)).await;
            assert_eq!(told(client).await, many_bytes());
        }
    });
}

#[test]
fn an_end_without_a_goodbye_is_told_apart() {
    testing::on_both_drivers(|| async {
        for version in VERSIONS {
            let (io, client) = pair(version, 1 << 20, |mut client| {
                client.write_all(b"half a").expect("written");
                client.sock.0.shutdown(net::Shutdown::Write).expect("ended");
                let mut heard = Vec::new();
                (client.read_to_end(&mut heard).map_err(|error| error.kind()), heard)
            })
            .await;
            let (heard, end) = read_all(&io).await;
            assert_eq!(
                (heard.as_slice(), end.map_err(|error| error.kind())),
                (&b"half a"[..], Err(io::ErrorKind::UnexpectedEof))
            );
            write_all(&io, b"a part").await;
            poll_fn(|cx| io.poll_shutdown(cx, Shutdown::Cut)).await;
            let (end, heard) = told(client).await;
            assert_eq!((end, heard.as_slice()), (Err(io::ErrorKind::UnexpectedEof), &b"a part"[..]));
        }
    });
}

#[test]
fn a_write_counts_when_the_kernel_has_the_whole_record() {
    testing::on_both_drivers(|| async {
        for version in VERSIONS {
            let (go, goes) = mpsc::channel();
            let (io, client) = pair(version, 1 << 20, move |mut client| {
                client.flush().expect("the handshake is done");
                goes.recv().expect("told");
                let mut heard = Vec::new();
                let end = client.read_to_end(&mut heard).map(drop);
                (heard, end.is_ok())
            })
            .await;
            let bytes: Vec<u8> = many_bytes().repeat(30);
            let mut written = 0;
            poll_fn(|cx| {
                let pieces = |from: usize| [IoSlice::new(&bytes[from..from + 10]), IoSlice::new(&bytes[from + 10..])];
                while let Poll::Ready(taken) = io.poll_write_vectored(cx, &pieces(written)) {
                    assert_eq!(taken.expect("the client is there"), 16 * 1024, "whole records");
                    written += 16 * 1024;
                }
                Poll::Ready(())
            })
            .await;
            go.send(()).expect("it waits");
            // The same bytes come first, and then others behind them.
            let rest = &bytes[written..written + 40_000];
            write_all(&io, rest).await;
            poll_fn(|cx| io.poll_shutdown(cx, Shutdown::Whole)).await;
            let (heard, said_goodbye) = told(client).await;
            assert!(heard == bytes[..written + 40_000] && said_goodbye);
        }
    });
}

#[test]
fn what_is_held_comes_before_the_goodbye() {
    testing::on_both_drivers(|| async {
        for (how, is_whole) in [(Shutdown::Whole, true), (Shutdown::Cut, false)] {
            let (go, goes) = mpsc::channel();
            let (io, client) = pair(&TLS13, 1 << 20, move |mut client| {
                client.flush().expect("the handshake is done");
                goes.recv().expect("told");
                let mut heard = Vec::new();
                let end = client.read_to_end(&mut heard).map(drop);
                (heard, end.is_ok())
            })
            .await;
            let bytes: Vec<u8> = many_bytes().repeat(30);
            let mut written = 0;
            poll_fn(|cx| {
                while let Poll::Ready(taken) = io.poll_write(cx, &bytes[written..]) {
                    written += taken.expect("the client is there");
                }
                Poll::Ready(())
            })
            .await;
            go.send(()).expect("it waits");
            poll_fn(|cx| io.poll_shutdown(cx, how)).await;
            let (heard, said_goodbye) = told(client).await;
            assert!(heard == bytes[..written + 16 * 1024], "the record in the middle is whole");
            assert_eq!(said_goodbye, is_whole);
        }
    });
}

#[test]
fn a_resting_connection_holds_no_buffer_and_hears_what_counts() {
    testing::on_both_drivers(|| async {
        for says in ["data", "goodbye", "end"] {
            let (io, client) = pair(&TLS13, 1 << 20, move |mut client| {
                client.write_all(b"one").expect("written");
                let mut heard = [0; 3];
                client.read_exact(&mut heard).expect("answered");
                for _ in 0..5 {
                    client.conn.refresh_traffic_keys().expect("1.3 can");
                    client.flush().expect("written");
                }
                client.read_exact(&mut heard).expect("told to go on");
                match says {
                    "data" => client.write_all(b"!").expect("written"),
                    "goodbye" => client.conn.send_close_notify(),
                    _ => client.sock.0.shutdown(net::Shutdown::Write).expect("ended"),
                }
                let _ = client.flush();
                client
            })
            .await;
            let mut buffer = Vec::new();
            poll_fn(|cx| io.poll_read(cx, &mut buffer)).await.expect("read");
            buffers::give(buffer);
            write_all(&io, b"two").await;
            // Keys are changed five times meanwhile.
            for _ in 0..20 {
                assert_eq!(io.heard(), Heard::Nothing);
                timer::sleep(Duration::from_millis(1)).await;
            }
            let kept = buffers::kept_for_records();
            assert!(kept > 0, "all that was lent is back");
            write_all(&io, b"on!").await;
            assert_eq!(buffers::kept_for_records(), kept);
            let mut heard = Heard::Nothing;
            testing::until(|| {
                heard = io.heard();
                heard != Heard::Nothing
            })
            .await;
            assert_eq!(heard, if says == "data" { Heard::Bytes } else { Heard::End });
            drop(told(client).await);
        }
    });
}

/// What comes of a handshake with somebody who says this, and then waits or leaves; and what they are told.
async fn refused(says: &'static [u8], then_leaves: bool) -> (TlsFailure, Vec<u8>) {
    let (server, _) = configurations(&TLS13);
    let (socket, client) = connect(move |mut socket| {
        socket.write_all(says).expect("written");
        if then_leaves {
            socket.shutdown(net::Shutdown::Write).expect("ended");
        }
        let mut heard = Vec::new();
        let _ = socket.read_to_end(&mut heard);
        heard
    });
    let accepted = accept_tls(socket, server, &Gate::new(4), 10, &Cell::new(false)).await;
    let failed = accepted.expect_err("it is no handshake");
    (failed.class, told(client).await)
}

#[test]
fn who_speaks_something_else_is_told() {
    testing::on_both_drivers(|| async {
        let (failure, heard) = refused(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", true).await;
        assert_eq!(failure, TlsFailure::PlainHttp);
        let heard = String::from_utf8(heard).expect("text");
        let (head, body) = heard.split_once("\r\n\r\n").expect("a head");
        assert!(
            head.starts_with("HTTP/1.1 400 ") && head.contains(&format!("Content-Length: {}\r\n", body.len())),
            "{heard}"
        );
        assert_eq!(refused(b"\x80\x2e\x01\x00\x02", true).await.0, TlsFailure::Malformed);
        assert_eq!(refused(b"", true).await.0, TlsFailure::Left);
        assert_eq!(refused(b"\x16\x03\x01\x02\x00\x01", true).await.0, TlsFailure::Left, "half a handshake");
        let (failure, alert) = refused(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", false).await;
        assert_eq!((failure, alert.first()), (TlsFailure::Malformed, Some(&21)), "{alert:?}");
    });
}

#[test]
fn a_message_without_an_end_is_bounded_and_told() {
    testing::on_both_drivers(|| async {
        // A ClientHello of so many bytes, in records of 1,000: one is a little too long, and one by far.
        for length in [19_000, 60_000_u32] {
            let mut hello = Vec::new();
            let mut message = vec![1];
            message.extend_from_slice(&length.to_be_bytes()[1..]);
            message.resize(4 + length as usize, 0);
            for part in message.chunks(1000) {
                let length = u16::try_from(part.len()).expect("short").to_be_bytes();
                hello.extend_from_slice(&[22, 3, 1, length[0], length[1]]);
                hello.extend_from_slice(part);
            }
            let (failure, alert) = refused(hello.leak(), false).await;
            let decode_error = [21, 3, 3, 0, 2, 2, 50];
            assert_eq!((failure, alert.as_slice()), (TlsFailure::Malformed, &decode_error[..]), "{length}");
        }
    });
}

/// Says that somebody is to be signed for, and has nothing for it.
#[derive(Debug)]
struct Asked(mpsc::Sender<()>);

impl ResolvesServerCert for Asked {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let _ = self.0.send(());
        None
    }
}

#[test]
fn who_has_left_meanwhile_is_signed_for_no_more() {
    testing::on_both_drivers(|| async {
        for is_reset in [false, true] {
            let (server, config) = configurations(&TLS13);
            let (asks, asked) = mpsc::channel();
            let mut server = rustls::ServerConfig::clone(&server);
            server.cert_resolver = Arc::new(Asked(asks));
            let gate = Rc::new(Gate::new(1));
            let (go, goes) = mpsc::channel();
            let (socket, client) = connect(move |socket| {
                let session =
                    ClientConnection::new(config, "localhost".try_into().expect("a name")).expect("a session");
                let mut client = StreamOwned::new(session, Pieces(socket, 1 << 20));
                client.conn.write_tls(&mut client.sock).expect("its hello");
                goes.recv().expect("told");
                if is_reset {
                    sockopt::set_socket_linger(&client.sock.0, Some(Duration::ZERO)).expect("set");
                }
            });
            let mut accepting = waiting_for(&gate, socket, Arc::new(server)).await;
            go.send(()).expect("it is there");
            told(client).await;
            let due = clock::now() + Duration::from_secs(30);
            let accepted = timer::within(due, accepting.as_mut()).await.expect("in time");
            assert_eq!(accepted.map(|failure| failure.class), Some(TlsFailure::Left), "{is_reset}");
            assert!(asked.try_recv().is_err(), "{is_reset}");
        }
    });
}

#[test]
fn who_waits_for_a_turn_holds_no_buffer() {
    testing::on_both_drivers(|| async {
        let (server, config) = configurations(&TLS13);
        let gate = Rc::new(Gate::new(1));
        let (socket, client) = connect(move |socket| {
            let session = ClientConnection::new(config, "localhost".try_into().expect("a name")).expect("a session");
            let mut client = StreamOwned::new(session, Pieces(socket, 1 << 20));
            client.flush().expect("the handshake is done");
        });
        let accepting = waiting_for(&gate, socket, server).await;
        assert_eq!(buffers::kept_for_records(), 1, "the one that was lent");
        assert!(accepting.await.is_none(), "it comes about");
        told(client).await;
    });
}

type Accepting = Pin<Box<dyn Future<Output = Option<HandshakeFailed>>>>;

/// A handshake whose first record is here, and whose turn is another's; what fails it, if anything does.
async fn waiting_for(gate: &Rc<Gate>, socket: TcpStream, server: Arc<rustls::ServerConfig>) -> Accepting {
    let taken = Rc::clone(gate);
    let mut accepting: Accepting =
        Box::pin(async move { accept_tls(socket, server, &taken, 10, &Cell::new(false)).await.err() });
    let gate = Rc::clone(gate);
    let mut wait = |cx: &mut Context<'_>| {
        // In each turn, so that it never has one.
        let _ = Box::pin(gate.pass(0)).as_mut().poll(cx);
        assert!(accepting.as_mut().poll(cx).is_pending());
        gate.waiting() == 1
    };
    while !poll_fn(|cx| Poll::Ready(wait(cx))).await {
        task::yield_now().await;
    }
    accepting
}

#[test]
fn keys_that_change_without_end_are_bounded() {
    testing::on_both_drivers(|| async {
        let (io, client) = pair(&TLS13, 1 << 20, |mut client| {
            // Both have done the handshake then: what comes in it counts as a part of it.
            client.read_exact(&mut [0; 2]).expect("told to go on");
            let mut sent = 0;
            while sent < 100_000 && client.conn.refresh_traffic_keys().is_ok() {
                if client.flush().is_err() {
                    break;
                }
                sent += 1;
            }
            let mut heard = Vec::new();
            (sent, client.read_to_end(&mut heard).is_err())
        })
        .await;
        write_all(&io, b"go").await;
        let (heard, end) = read_all(&io).await;
        assert!(heard.is_empty() && end.is_err());
        // Its alert is behind what nobody has read: it goes by a reset then.
        drop(io);
        let (sent, is_told) = told(client).await;
        assert!(sent < 100_000 && is_told, "{sent}");
    });
}

#[test]
fn past_the_bound_a_handshake_is_refused_at_once() {
    testing::on_both_drivers(|| async {
        let (server, config) = configurations(&TLS13);
        let gate = Rc::new(Gate::new(1));
        // Somebody else has this turn, and nobody may wait.
        let filled = Rc::clone(&gate);
        let (socket, client) = connect(move |socket| {
            let session = ClientConnection::new(config, "localhost".try_into().expect("a name")).expect("a session");
            let mut client = StreamOwned::new(session, Pieces(socket, 1 << 20));
            client.flush().expect_err("it is refused").to_string()
        });
        let has_spoken = Cell::new(false);
        let mut accepting = Box::pin(accept_tls(socket, server, &gate, 0, &has_spoken));
        let accepted = poll_fn(|cx: &mut Context<'_>| {
            let mut fills = Box::pin(filled.pass(0));
            let _ = fills.as_mut().poll(cx);
            accepting.as_mut().poll(cx)
        });
        let due = clock::now() + Duration::from_secs(30);
        let accepted = timer::within(due, accepted).await.expect("in time");
        assert_eq!(accepted.expect_err("there is no place").class, TlsFailure::Crowded);
        let told = told(client).await;
        assert!(told.contains("InternalError"), "{told}");
        task::yield_now().await;
    });
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<super::tls::Tls>() <= 3072, "{}", size_of::<super::tls::Tls>());
}

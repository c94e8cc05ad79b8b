//! TLS to services: handshakes, what is eaten on a resting connection and what is not, and what is wrong where none comes
//! about; against rustls as a server, on both drivers.

use std::{
    future::poll_fn,
    io::{Read as _, Write as _},
    net,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    task::Poll,
    thread::{self, JoinHandle},
    time::Duration,
};

use rustls::{
    HandshakeKind, ServerConfig, ServerConnection, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tempfile::TempDir;

use super::{Io, Shutdown, Stream, TlsConnectError, TlsTo, tls_connect::connect_tls};
use crate::{
    certificates::{self, Services, WantedOfService, provider},
    config::{TlsCertificate, UpstreamTls},
    shard::{Heard, TcpStream, buffers, clock, gate::Gate, testing},
    telemetry::metrics::TlsFault,
};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// What a gateway is configured to trust; `None` for nobody in particular.
fn trusting(certificate: &TlsCertificate, verify: bool) -> Services {
    let tls = UpstreamTls { ca_file: Some(certificate.cert.clone()), verify, ..UpstreamTls::default() };
    let services = [("a".to_owned(), WantedOfService { tls, is_needed: true })].into();
    let wanted = certificates::Wanted { services, ..certificates::Wanted::default() };
    let loaded = certificates::Certificates::load(&wanted, 0).expect("it is right");
    Services::clone(loaded.services())
}

fn to(services: &Services, host: &str) -> TlsTo {
    let instance = services["a"].to_instance(host).expect("a name");
    TlsTo { instance, gate: Rc::new(Gate::new(2)) }
}

/// A service's configuration, which gives this many tickets.
fn serving(
    version: &'static SupportedProtocolVersion,
    certificate: &TlsCertificate,
    tickets: usize,
) -> Arc<ServerConfig> {
    let chain = vec![CertificateDer::from_pem_file(&certificate.cert).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("its key");
    let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).expect("a version");
    let mut config = config.with_no_client_auth().with_single_cert(chain, key).expect("they belong together");
    config.send_tls13_tickets = tickets;
    Arc::new(config)
}

/// A service's side of a connection; what it has to say goes out when, and in what pieces, the test likes.
struct Service {
    socket: net::TcpStream,
    session: ServerConnection,
    /// What was said and not sent.
    unsent: Vec<u8>,
}

impl Service {
    fn new(socket: net::TcpStream, config: Arc<ServerConfig>) -> Self {
        socket.set_nodelay(true).expect("set");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        Self { socket, session: ServerConnection::new(config).expect("a session"), unsent: Vec::new() }
    }

    /// Takes what the session has to say, and sends none of it.
    fn gather(&mut self) {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.unsent).expect("into memory");
        }
    }

    fn send(&mut self, at_a_time: usize) {
        self.gather();
        for piece in std::mem::take(&mut self.unsent).chunks(at_a_time) {
            self.socket.write_all(piece).expect("the gateway is there");
        }
    }

    /// Does the handshake; the last that is said of it, tickets perhaps, stays unsent.
    fn shake_hands(&mut self, at_a_time: usize) {
        while self.session.is_handshaking() {
            self.send(at_a_time);
            self.session.read_tls(&mut self.socket).expect("the gateway speaks");
            self.session.process_new_packets().expect("and well");
        }
        self.gather();
    }

    fn hear(&mut self, bytes: usize) -> Vec<u8> {
        let mut heard = vec![0; bytes];
        let mut at = 0;
        while at < bytes {
            if let Ok(read) = self.session.reader().read(&mut heard[at..]) {
                at += read;
            } else {
                assert_ne!(self.session.read_tls(&mut self.socket).expect("the gateway speaks"), 0);
                self.session.process_new_packets().expect("and well");
            }
        }
        heard
    }

    fn say(&mut self, bytes: &[u8]) {
        self.session.writer().write_all(bytes).expect("into memory");
        self.gather();
    }
}

/// The gateway's socket to a service, and what that does in a thread of its own.
async fn connect<T: Send + 'static>(
    service: impl FnOnce(net::TcpStream) -> T + Send + 'static,
) -> (TcpStream, JoinHandle<T>) {
    let listener = net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let service = thread::spawn(move || service(listener.accept().expect("accepted").0));
    let due = clock::now() + Duration::from_secs(30);
    (TcpStream::connect_to(&address.into(), due).await.expect("connected"), service)
}

async fn secured(socket: TcpStream, to: TlsTo) -> Result<Stream, TlsConnectError> {
    connect_tls(socket, to, clock::now() + Duration::from_secs(30)).await
}

async fn told<T>(service: JoinHandle<T>) -> T {
    testing::until(|| service.is_finished()).await;
    service.join().expect("the service ended well")
}

async fn read_exact(io: &Io, bytes: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < bytes {
        let mut buffer = Vec::new();
        assert_ne!(poll_fn(|cx| io.poll_read(cx, &mut buffer)).await.expect("the service speaks"), 0);
        all.extend_from_slice(&buffer);
        buffers::give(buffer);
    }
    all
}

async fn write_all(io: &Io, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| io.poll_write(cx, bytes)).await.expect("the service reads");
        bytes = &bytes[written..];
    }
}

fn made(place: &TempDir) -> TlsCertificate {
    certificates::tests::made(place.path(), "a", &["shop.internal", "127.0.0.1"])
}

fn many_bytes() -> Vec<u8> {
    (0..300_000_u32).map(|place| u8::try_from(place % 251).expect("it is small")).collect()
}

#[test]
fn what_is_said_is_heard_however_it_is_split() {
    testing::on_both_drivers(|| async {
        let place = TempDir::new().expect("a directory");
        let made = made(&place);
        for (version, at_a_time, length) in
            [(&TLS12, 1, 3000), (&TLS12, 1 << 20, 300_000), (&TLS13, 7, 3000), (&TLS13, 1 << 20, 300_000)]
        {
            let config = serving(version, &made, 2);
            let (socket, service) = connect(move |socket| {
                let mut service = Service::new(socket, config);
                service.shake_hands(at_a_time);
                service.send(at_a_time);
                let heard = service.hear(length);
                for part in heard.chunks(16 * 1024) {
                    service.say(part);
                    service.send(at_a_time);
                }
                let name = service.session.server_name().map(str::to_owned);
                let alpn = service.session.alpn_protocol().map(<[u8]>::to_vec);
                (name, alpn, service.session.protocol_version())
            })
            .await;
            let stream = secured(socket, to(&trusting(&made, true), "shop.internal")).await.expect("a handshake");
            let io = Io::new(stream);
            assert!(!io.can_splice(), "what the kernel has is records");
            let bytes = many_bytes();
            write_all(&io, &bytes[..length]).await;
            assert_eq!(read_exact(&io, length).await, bytes[..length]);
            let (name, alpn, agreed) = told(service).await;
            // The service here knows no protocols within, and so none is agreed on.
            assert_eq!((name.as_deref(), alpn, agreed), (Some("shop.internal"), None, Some(version.version)));
        }
    });
}

/// A connection that has answered one request, and what has its service go on: each number is so many bytes of what waits.
async fn resting(
    version: &'static SupportedProtocolVersion,
    tickets: usize,
    then: impl FnOnce(&mut Service) + Send + 'static,
) -> (Io, Sender<usize>, Receiver<usize>, JoinHandle<Service>) {
    let place = TempDir::new().expect("a directory");
    let made = made(&place);
    let config = serving(version, &made, tickets);
    let ((go, goes), (tell, tells)) = (channel::<usize>(), channel());
    let (socket, service) = connect(move |socket| {
        let mut service = Service::new(socket, config);
        service.shake_hands(1 << 20);
        // Of 1.2 the handshake ends with what the service says; of 1.3 only tickets are left.
        let tickets = if service.session.protocol_version() == Some(TLS13.version) {
            std::mem::take(&mut service.unsent)
        } else {
            Vec::new()
        };
        service.send(1 << 20);
        assert_eq!(service.hear(3), b"one");
        // Tickets have numbers before those of what follows: they are sent before the answer, or not at all.
        service.socket.write_all(&tickets).expect("the gateway is there");
        service.say(b"two");
        service.send(1 << 20);
        then(&mut service);
        tell.send(service.unsent.len()).expect("the test waits");
        for bytes in goes {
            let rest = service.unsent.split_off(bytes.min(service.unsent.len()));
            service.socket.write_all(&std::mem::replace(&mut service.unsent, rest)).expect("the gateway is there");
            tell.send(service.unsent.len()).expect("the test waits");
        }
        service
    })
    .await;
    let io = Io::new(secured(socket, to(&trusting(&made, true), "shop.internal")).await.expect("a handshake"));
    write_all(&io, b"one").await;
    assert_eq!(read_exact(&io, 3).await, b"two");
    (io, go, tells, service)
}

/// Has the service send so much of what waits; all of it is in our socket then.
async fn sent(go: &Sender<usize>, tells: &Receiver<usize>, bytes: usize) -> usize {
    go.send(bytes).expect("the service waits");
    let mut left = None;
    testing::until(|| {
        left = left.or(tells.try_recv().ok());
        left.is_some()
    })
    .await;
    left.expect("it is there")
}

#[test]
fn changed_keys_that_come_in_any_pieces_are_eaten_and_no_buffer_stays() {
    testing::on_both_drivers(|| async {
        let change = |service: &mut Service| {
            for _ in 0..3 {
                service.session.refresh_traffic_keys().expect("1.3 can");
                service.gather();
            }
        };
        let (io, go, tells, service) = resting(&TLS13, 0, change).await;
        assert_eq!(io.heard(), Heard::Nothing);
        let kept = buffers::kept_for_records();
        let mut left = sent(&go, &tells, 1).await;
        while left > 0 {
            assert_eq!(io.heard(), Heard::Nothing);
            left = sent(&go, &tells, 5).await;
        }
        // That there is more is known a turn later on io_uring.
        testing::until(|| io.heard() != Heard::Nothing || buffers::kept_for_records() == kept).await;
        assert_eq!(io.heard(), Heard::Nothing, "and what was lent is back");
        drop(go);
        let mut service = told(service).await;
        // And it is of use still, in both directions, by the new keys.
        service.say(b"three");
        service.send(3);
        assert_eq!(read_exact(&io, 5).await, b"three");
        write_all(&io, b"four").await;
        assert_eq!(service.hear(4), b"four");
    });
}

#[test]
fn tickets_are_eaten_between_answers_and_on_a_connection_that_rests() {
    testing::on_both_drivers(|| async {
        // Four before the first answer.
        let (io, _go, _tells, _service) = resting(&TLS13, 4, |_| {}).await;
        for _ in 0..3 {
            assert_eq!(io.heard(), Heard::Nothing);
        }
        // All of them alone, on a connection over which nothing was said.
        let place = TempDir::new().expect("a directory");
        let made = made(&place);
        let config = serving(&TLS13, &made, 4);
        let (go, goes) = channel::<()>();
        let (socket, service) = connect(move |socket| {
            let mut service = Service::new(socket, config);
            service.shake_hands(1 << 20);
            let _ = goes.recv();
            service.send(11);
            service
        })
        .await;
        let io = Io::new(secured(socket, to(&trusting(&made, true), "shop.internal")).await.expect("a handshake"));
        assert_eq!(io.heard(), Heard::Nothing);
        go.send(()).expect("it waits");
        while !service.is_finished() {
            assert_eq!(io.heard(), Heard::Nothing);
            crate::shard::task::yield_now().await;
        }
        let mut service = told(service).await;
        service.say(b"ready");
        service.send(1 << 20);
        assert_eq!(read_exact(&io, 5).await, b"ready", "all tickets are behind it");
        assert_eq!(io.heard(), Heard::Nothing);
    });
}

#[test]
fn what_counts_on_a_resting_connection_is_heard() {
    type Then = fn(&mut Service);
    let whats: [(Then, Heard); 3] = [
        (|service| service.say(b"!"), Heard::Bytes),
        (|service| service.session.send_close_notify(), Heard::End),
        (|service| drop(service.socket.shutdown(net::Shutdown::Write)), Heard::End),
    ];
    for version in VERSIONS {
        for (then, wanted) in whats {
            testing::on_both_drivers(move || async move {
                let (io, go, tells, _service) = resting(version, 1, move |service| {
                    then(service);
                    service.gather();
                })
                .await;
                // Half of a record says nothing yet.
                sent(&go, &tells, 7).await;
                if wanted == Heard::Bytes {
                    assert_eq!(io.heard(), Heard::Nothing);
                }
                sent(&go, &tells, usize::MAX).await;
                let mut heard = Heard::Nothing;
                testing::until(|| {
                    heard = io.heard();
                    heard != Heard::Nothing
                })
                .await;
                assert_eq!(heard, wanted);
            });
        }
    }
}

#[test]
fn a_session_is_taken_up_again_with_the_same_instance_only() {
    testing::on_both_drivers(|| async {
        let place = TempDir::new().expect("a directory");
        let made = made(&place);
        for version in VERSIONS {
            let config = serving(version, &made, 2);
            let services = trusting(&made, true);
            let known = to(&services, "shop.internal");
            let mut kinds = Vec::new();
            for to in [known.clone(), known.clone(), to(&services, "shop.internal"), known] {
                let config = Arc::clone(&config);
                let (socket, service) = connect(move |socket| {
                    let mut service = Service::new(socket, config);
                    service.shake_hands(1 << 20);
                    service.send(1 << 20);
                    service.say(b"x");
                    service.send(1 << 20);
                    service.session.handshake_kind()
                })
                .await;
                let io = Io::new(secured(socket, to).await.expect("a handshake"));
                read_exact(&io, 1).await;
                kinds.push(told(service).await.expect("it is known"));
            }
            let is_resumed: Vec<_> = kinds.iter().map(|kind| *kind == HandshakeKind::Resumed).collect();
            assert_eq!(is_resumed, [false, true, false, true], "{version:?}");
        }
    });
}

/// What comes of a handshake with a service that does this.
async fn refused(
    to: TlsTo,
    time: Duration,
    service: impl FnOnce(net::TcpStream) + Send + 'static,
) -> (TlsFault, String) {
    let (socket, service) = connect(service).await;
    let error = connect_tls(socket, to, clock::now() + time).await.expect_err("there is no TLS");
    told(service).await;
    (error.fault(), error.to_string())
}

#[test]
fn what_is_wrong_is_told_apart() {
    testing::on_both_drivers(|| async {
        let place = TempDir::new().expect("a directory");
        let made = made(&place);
        let other = certificates::tests::made(place.path(), "b", &["shop.internal"]);
        let long = Duration::from_secs(30);
        let trusted = trusting(&made, true);
        for version in VERSIONS {
            let serve = |certificate: &TlsCertificate| {
                let config = serving(version, certificate, 1);
                move |socket: net::TcpStream| {
                    let mut service = Service::new(socket, config);
                    let mut alert = Err(rustls::Error::HandshakeNotComplete);
                    while alert != Ok(()) {
                        service.send(1 << 20);
                        match service.session.read_tls(&mut service.socket) {
                            Ok(1..) => {}
                            _ => break,
                        }
                        match service.session.process_new_packets() {
                            Ok(_) => {}
                            Err(rustls::Error::AlertReceived(_)) => alert = Ok(()),
                            Err(error) => panic!("{error}"),
                        }
                    }
                    assert_eq!(alert, Ok(()), "it is told why");
                }
            };
            let (fault, text) = refused(to(&trusted, "shop.internal"), long, serve(&other)).await;
            assert_eq!(fault, TlsFault::UnknownAuthority, "{text}");
            let (fault, text) = refused(to(&trusted, "till.internal"), long, serve(&made)).await;
            assert_eq!(fault, TlsFault::WrongName, "{text}");
            assert!(text.contains("till.internal") && text.contains("shop.internal"), "{text}");
            let (fault, text) = refused(to(&trusted, "127.0.0.2"), long, serve(&made)).await;
            assert_eq!(fault, TlsFault::WrongName, "{text}");
        }
        for (says, fault) in [
            (&b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"[..], TlsFault::NotTls),
            (b"SSH-2.0-OpenSSH_9.9\r\n", TlsFault::NotTls),
            (b"\x15\x03\x03\x00\x02\x02\x70", TlsFault::Alert),
            (b"\x16\x03\x03\x00\x04\x02\x00\x00\x00", TlsFault::Other),
            (b"", TlsFault::Other),
            (b"\x16\x03", TlsFault::Other),
        ] {
            let serve = move |mut socket: net::TcpStream| {
                let _ = socket.read(&mut [0; 4096]);
                let _ = socket.write_all(says);
                let _ = socket.shutdown(net::Shutdown::Write);
                let _ = socket.read_to_end(&mut Vec::new());
            };
            let (found, text) = refused(to(&trusted, "shop.internal"), long, serve).await;
            assert_eq!(found, fault, "{text}");
        }
        // It says nothing, or stops in the middle.
        for says in [&b""[..], b"\x16\x03\x03\x40"] {
            let serve = move |mut socket: net::TcpStream| {
                let _ = socket.write_all(says);
                let _ = socket.read_to_end(&mut Vec::new());
            };
            let (found, _) = refused(to(&trusted, "shop.internal"), Duration::from_millis(30), serve).await;
            assert_eq!(found, TlsFault::TimedOut);
        }
    });
}

#[test]
fn without_verification_anybody_is_taken_and_an_address_is_a_name() {
    testing::on_both_drivers(|| async {
        let place = TempDir::new().expect("a directory");
        let made = made(&place);
        let other = certificates::tests::made(place.path(), "b", &["elsewhere"]);
        for (services, shown, host, name) in [
            (trusting(&made, false), &other, "shop.internal", Some("shop.internal")),
            (trusting(&made, true), &made, "127.0.0.1", None),
        ] {
            for version in VERSIONS {
                let config = serving(version, shown, 1);
                let (socket, service) = connect(move |socket| {
                    let mut service = Service::new(socket, config);
                    service.shake_hands(1 << 20);
                    service.send(1 << 20);
                    service.session.server_name().map(str::to_owned)
                })
                .await;
                let io = Io::new(secured(socket, to(&services, host)).await.expect("a handshake"));
                assert_eq!(told(service).await.as_deref(), name, "no address is asked for by SNI");
                poll_fn(|cx| io.poll_shutdown(cx, Shutdown::Whole)).await;
            }
        }
    });
}

#[test]
fn a_chain_of_certificates_has_a_bound() {
    testing::on_both_drivers(|| async {
        let place = TempDir::new().expect("a directory");
        let made = made(&place);
        let certificate = CertificateDer::from_pem_file(&made.cert).expect("a certificate");
        for (bytes, is_taken) in [(14_000, true), (40_000, false)] {
            for version in VERSIONS {
                let chain = vec![certificate.clone(); bytes / certificate.len()];
                let key = PrivateKeyDer::from_pem_file(&made.key).expect("its key");
                let config = ServerConfig::builder_with_provider(provider());
                let config = config.with_protocol_versions(&[version]).expect("a version").with_no_client_auth();
                let config = Arc::new(config.with_single_cert(chain, key).expect("they belong together"));
                let (socket, service) = connect(move |socket| {
                    let mut service = Service::new(socket, config);
                    while service.session.is_handshaking() {
                        service.send(1 << 20);
                        match service.session.read_tls(&mut service.socket) {
                            Ok(1..) if service.session.process_new_packets().is_ok() => {}
                            _ => return false,
                        }
                    }
                    service.send(1 << 20);
                    true
                })
                .await;
                let secured = secured(socket, to(&trusting(&made, true), "shop.internal")).await;
                let text = secured.as_ref().err().map(ToString::to_string);
                assert_eq!(secured.is_ok(), is_taken, "{version:?}: {text:?}");
                assert!(is_taken || text.is_some_and(|text| text.contains("MessageTooLarge")));
                assert_eq!(told(service).await, is_taken);
            }
        }
    });
}

#[test]
fn a_whole_handshake_waits_at_the_gate() {
    testing::on_both_drivers(|| async {
        let place = TempDir::new().expect("a directory");
        let made = made(&place);
        let config = serving(&TLS13, &made, 1);
        let (socket, service) = connect(move |socket| {
            let mut service = Service::new(socket, config);
            service.shake_hands(1 << 20);
        })
        .await;
        let to = TlsTo { gate: Rc::new(Gate::new(1)), ..to(&trusting(&made, true), "shop.internal") };
        let gate = Rc::clone(&to.gate);
        let mut connecting = Box::pin(secured(socket, to));
        let mut has_waited = false;
        let connected = poll_fn(|cx| {
            // Somebody else has passed in every turn before it looks.
            let mut other = Box::pin(gate.pass(1));
            let _ = other.as_mut().poll(cx);
            let polled = connecting.as_mut().poll(cx);
            let waits = gate.waiting() > 0;
            // What came of it is not there in the turn in which it has begun to wait.
            assert!(!waits || polled.is_pending());
            has_waited |= waits;
            if has_waited { Poll::Ready(()) } else { polled.map(drop) }
        });
        connected.await;
        assert!(has_waited, "it has checked signatures beside somebody else");
        assert!(connecting.await.is_ok());
        assert_eq!(gate.waiting(), 0);
        told(service).await;
    });
}

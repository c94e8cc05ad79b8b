//! What TLS with hostile, slow and old clients is bounded by, and how connections over it end.

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{Arc, OnceLock, mpsc},
    thread,
};

use rustix::process::Signal;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::ring::{cipher_suite, default_provider},
    version::TLS12,
};
use tempfile::TempDir;

use super::tls::{SOON, Session, ask, client, config, session, shown};
use crate::{
    certificate::Made,
    client::Client,
    harness::{Gateway, logged_address},
};

const DRIVERS: [&str; 2] = ["epoll", "io_uring"];

fn on(driver: &str) -> String {
    format!("[runtime]\ndriver = \"{driver}\"\n")
}

/// How a connection ends: an error where it is without a goodbye.
fn end(stream: &mut Session) -> io::Result<usize> {
    stream.read_to_end(&mut Vec::new())
}

#[test]
fn who_says_nothing_holds_up_no_drain() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    for driver in DRIVERS {
        // Longer than this test waits.
        let bounds = "[tls]\nhandshake_timeout = \"1m\"\n[drain]\nnotice = \"0s\"\nmax = \"1m\"\n";
        let mut gateway = Gateway::start(&format!("{}{bounds}{}", on(driver), config(&[&made])));
        let (mut silent, mut half) = (gateway.connect(), gateway.connect());
        half.send(b"\x16\x03\x01\x02\x00\x01\x00");
        gateway.metrics_until("they are here", |metrics| metrics.sum("shardgate_connections_open") == 2);
        gateway.signal(Signal::TERM);
        silent.expect_end();
        half.expect_end();
        assert_eq!(gateway.wait_exit(SOON), Some(0), "{driver}");
    }
}

#[test]
fn what_is_idle_is_left_with_a_goodbye_and_what_is_cut_without_one() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    let client = client(&[&made]);
    for driver in DRIVERS {
        let backend = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let instance = backend.local_addr().expect("it is bound");
        let route = "[[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n";
        let upstream = format!("[upstreams.back]\ninstances = [\"{instance}\"]\n{route}");
        let bounds = "[http]\nheader_timeout = \"300ms\"\nkeep_alive_timeout = \"300ms\"\n[drain]\nnotice = \"0s\"\n";
        let both = format!("{}{}{upstream}", on(driver), config(&[&made]));
        let gateway = Gateway::start(&format!("{bounds}{both}"));
        let mut idle = session(gateway.address(), "shop.example", &client).expect("a handshake");
        assert!(ask(&mut idle, "/health/live").starts_with("HTTP/1.1 200"));
        let mut silent = session(gateway.address(), "shop.example", &client).expect("a handshake");
        for stream in [&mut idle, &mut silent] {
            assert!(end(stream).is_ok(), "{driver}");
        }

        let mut gateway = Gateway::start(&format!("[drain]\nnotice = \"0s\"\n{both}"));
        let serving = thread::spawn(move || {
            let mut service = Client::new(backend.accept().expect("the gateway connects").0);
            service.read_head().expect("a request");
            service.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
        });
        let mut cut = session(gateway.address(), "shop.example", &client).expect("a handshake");
        assert!(ask(&mut cut, "/").starts_with("HTTP/1.1 200"));
        let ended = end(&mut cut).expect_err("half an answer");
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof, "{driver}");
        serving.join().expect("it ended well");
        let mut idle = session(gateway.address(), "shop.example", &client).expect("a handshake");
        assert!(ask(&mut idle, "/health/live").starts_with("HTTP/1.1 200"));
        let mut fresh = session(gateway.address(), "shop.example", &client).expect("a handshake");
        gateway.signal(Signal::TERM);
        for stream in [&mut idle, &mut fresh] {
            assert!(end(stream).is_ok(), "{driver}");
        }
        assert_eq!(gateway.wait_exit(SOON), Some(0), "{driver}");
    }
}

#[test]
fn failed_handshakes_are_in_the_log_but_not_each() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    let gateway = Gateway::start(&format!("[log]\nlevel = \"debug\"\n{}", config(&[&made])));
    let said = "a handshake of a client failed";
    // Half a message.
    let mut wrong = gateway.connect();
    wrong.send(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00");
    let line = gateway.log_until(said, SOON);
    let from = wrong.stream().local_addr().expect("its address");
    assert!(line.contains(&format!("\"from\":\"{from}\"")), "{line}");
    assert!(line.contains("\"reason\":\"malformed: ") && line.contains("MissingData"), "{line}");
    for _ in 0..400 {
        gateway.connect().send([0; 100]);
    }
    gateway.metrics_until("they are counted", |metrics| {
        metrics.value("shardgate_tls_handshakes_failed_total{reason=\"malformed\"}") == 401
    });
    let lines = gateway.log().matches(said).count();
    assert!(lines < 100, "{lines}");
}

#[test]
fn a_client_of_tls_1_2_is_shown_what_goes_with_its_suites_of_1_2() {
    let place = TempDir::new().expect("a directory");
    let curve = Made::new(place.path(), "curve", &["shop.example"]);
    let rsa = Made::rsa(place.path(), "rsa", "shop.example");
    let gateway = Gateway::start(&config(&[&curve, &rsa]));
    let mut provider = default_provider();
    // It names the first all the same.
    provider.cipher_suites =
        vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];
    let mut roots = RootCertStore::empty();
    roots.add(rsa.der()).expect("added");
    let old = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&TLS12]);
    let old = Arc::new(old.expect("a version").with_root_certificates(roots).with_no_client_auth());
    let mut stream = session(gateway.address(), "shop.example", &old).expect("a handshake");
    assert!(ask(&mut stream, "/health/live").starts_with("HTTP/1.1 200"));
    assert!(shown(gateway.address(), "shop.example", &[&curve, &rsa]) == curve.der());
}

#[test]
fn a_flood_of_handshakes_locks_no_operator_out() {
    let place = TempDir::new().expect("a directory");
    let own = Made::new(place.path(), "own", &["localhost"]);
    let pair = format!("cert = \"{}\"\nkey = \"{}\"\n", own.cert.display(), own.key.display());
    let gateway = Gateway::start(&format!("[admin]\nkind = \"tls\"\n{pair}"));
    let address: SocketAddr = logged_address(&gateway.log(), "operators: https://").expect("it is told");
    let trusting = client(&[&own]);
    let mut hello = Vec::new();
    let name = "localhost".try_into().expect("a name");
    let mut session_of_flood = ClientConnection::new(Arc::clone(&trusting), name).expect("a session");
    session_of_flood.write_tls(&mut hello).expect("written");
    let ends = Arc::new(OnceLock::new());
    let (tell, told) = mpsc::channel();
    let has_ended = Arc::clone(&ends);
    let flood = thread::spawn(move || {
        let mut held = VecDeque::new();
        while has_ended.get().is_none() {
            let Ok(mut one) = Client::connect_from([127, 0, 0, 2].into(), address) else { continue };
            let _ = one.try_send(&hello);
            held.push_back(one);
            if held.len() > 200 {
                held.pop_front();
                let _ = tell.send(());
            }
        }
    });
    for _ in 0..200 {
        told.recv().expect("it goes on");
    }
    for _ in 0..5 {
        let mut operator = session(address, "localhost", &trusting).expect("a handshake");
        write!(operator, "GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("written");
        let mut heard = [0; 12];
        operator.read_exact(&mut heard).expect("an answer");
        assert_eq!(&heard, b"HTTP/1.1 200");
    }
    ends.get_or_init(|| ());
    flood.join().expect("it ended well");
}

//! HTTP over TLS, as clients that nobody here wrote see it: curl, `openssl s_client`, and rustls where it has to be known
//! which certificate was shown.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName},
};
use tempfile::TempDir;

use crate::{
    certificate::Made,
    harness::{Client, Gateway, shardgate},
    service::{Service, pattern},
};

pub(super) const SOON: Duration = Duration::from_secs(10);
pub(super) const APPLIED: &str = "every shard runs the configuration";

pub(super) fn config(certificates: &[&Made]) -> String {
    let certificates: String = certificates.iter().map(|made| made.config()).collect();
    format!("[listener]\nkind = \"tls\"\n{certificates}")
}

/// Asks by curl, as if this name led to the gateway.
pub(super) fn curl(address: SocketAddr, made: &Made, name: &str, path: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--cacert"]).arg(&made.cert);
    command.arg("--resolve").arg(format!("{name}:{}:127.0.0.1", address.port())).args(arguments);
    command.arg(format!("https://{name}:{}{path}", address.port())).output().expect("curl runs")
}

#[track_caller]
pub(super) fn got(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub(super) type Session = StreamOwned<ClientConnection, TcpStream>;

/// A client that trusts all of these, and keeps the sessions that it is given.
pub(super) fn client(trusted: &[&Made]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for made in trusted {
        roots.add(made.der()).expect("added");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// A session with the gateway by rustls.
pub(super) fn session(address: SocketAddr, name: &str, client: &Arc<ClientConfig>) -> std::io::Result<Session> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(SOON))?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(client), name).expect("a session"), socket);
    stream.flush()?;
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Which certificate the gateway shows for a name.
pub(super) fn shown(address: SocketAddr, name: &str, trusted: &[&Made]) -> CertificateDer<'static> {
    let stream = session(address, name, &client(trusted)).expect("a handshake");
    stream.conn.peer_certificates().expect("it is known")[0].clone().into_owned()
}

pub(super) fn ask(stream: &mut Session, path: &str) -> String {
    // In one piece: otherwise the kernel holds back the second until the first is acknowledged.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).expect("written");
    let mut heard = Vec::new();
    while !heard.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes).expect("read") {
            0 => break,
            read => heard.extend_from_slice(&bytes[..read]),
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

#[test]
fn curl_is_served_by_every_shard_on_both_drivers() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    for driver in ["epoll", "io_uring"] {
        let service = Service::start();
        let gateway =
            Gateway::start(&service.config(&format!("[runtime]\ndriver = \"{driver}\"\n{}", config(&[&made]))));
        let plain = got(&curl(gateway.address(), &made, "shop.example", "/", &[]));
        for version in ["--tlsv1.3", "--tls-max=1.2"] {
            let version: Vec<&str> = version.split('=').collect();
            let several: Vec<&str> = [&version[..], &["--parallel", "--parallel-immediate"]].concat();
            for _ in 0..10 {
                assert_eq!(got(&curl(gateway.address(), &made, "shop.example", "/", &several)), plain);
            }
        }
        let metrics = gateway.metrics();
        assert!(metrics.value("shardgate_tls_handshakes_total{version=\"1.3\"}") >= 10);
        assert!(metrics.value("shardgate_tls_handshakes_total{version=\"1.2\"}") >= 10);
        assert!(metrics.value("shardgate_tls_alpn_total{protocol=\"http/1.1\"}") >= 20);
        assert_eq!(metrics.sum("shardgate_tls_handshakes_failed_total"), 0);
        let mut unsaid = session(gateway.address(), "shop.example", &client(&[&made])).expect("a handshake");
        assert!(ask(&mut unsaid, "/health/live").starts_with("HTTP/1.1 200"));
        assert_eq!(gateway.metrics().value("shardgate_tls_alpn_total{protocol=\"none\"}"), 1);
        // Somebody else's certificate is not trusted, and the client says so.
        let other = Made::new(place.path(), "other", &["shop.example"]);
        assert_eq!(curl(gateway.address(), &other, "shop.example", "/", &[]).status.code(), Some(60));
        gateway.metrics_until("the refusal is counted", |metrics| {
            metrics.value("shardgate_tls_handshakes_failed_total{reason=\"refused\"}") == 1
        });
    }
}

#[test]
fn large_bodies_come_whole_in_both_directions() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    let backend = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let instance = backend.local_addr().expect("it is bound");
    let route = "[[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n";
    let gateway =
        Gateway::start(&format!("{}[upstreams.back]\ninstances = [\"{instance}\"]\n{route}", config(&[&made])));
    // Less than `http.body_bytes_max`.
    let bytes = pattern().repeat(15);
    let upload = place.path().join("upload");
    fs::write(&upload, &bytes).expect("written");
    let length = bytes.len();
    let serving = std::thread::spawn(move || {
        let mut service = Client::new(backend.accept().expect("the gateway connects").0);
        let head = service.read_head().expect("a request");
        assert_eq!(head.field("x-forwarded-proto"), Some("https"));
        let mut heard = service.read_some().expect("read");
        while heard.len() < length {
            heard.extend(service.read_some().expect("read"));
        }
        service.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"));
        service.send(&heard);
        heard
    });
    let file = format!("@{}", upload.display());
    let output = curl(gateway.address(), &made, "shop.example", "/", &["-H", "expect:", "--data-binary", &file]);
    assert!(output.status.success(), "{:?}", String::from_utf8_lossy(&output.stderr));
    assert!(serving.join().expect("it ended well") == bytes && output.stdout == bytes);
}

#[test]
fn openssl_changes_keys_and_is_served_in_both_versions() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    let service = Service::start();
    let gateway = Gateway::start(&service.config(&config(&[&made])));
    for version in ["-tls1_2", "-tls1_3"] {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "exec \"$@\" 2>&1",
            "sh",
            "openssl",
            "s_client",
            version,
            "-servername",
            "shop.example",
            "-verify_return_error",
            "-CAfile",
        ]);
        command.arg(&made.cert).arg("-connect").arg(gateway.address().to_string());
        let mut client =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs");
        let (mut input, mut output) = (client.stdin.take().expect("piped"), client.stdout.take().expect("piped"));
        let mut heard = String::new();
        let mut until = |wanted: &str| {
            let mut bytes = [0; 4096];
            while !heard.contains(wanted) {
                let read = output.read(&mut bytes).expect("read");
                assert!(read > 0, "no {wanted:?} in {heard}");
                heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
            // What is waited for next comes behind that.
            let end = heard.find(wanted).map_or(0, |at| at + wanted.len());
            heard.drain(..end);
        };
        until("Verify return code: 0");
        if version == "-tls1_3" {
            // It asks for new keys of ours too.
            for _ in 0..3 {
                input.write_all(b"K\n").expect("written");
                until("KEYUPDATE");
            }
        }
        input.write_all(b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").expect("written");
        until("HTTP/1.1 200 OK");
        until("closed");
        assert!(client.wait().is_ok());
    }
}

#[test]
fn who_does_not_do_a_handshake_is_counted() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    let gateway = Gateway::start(&format!("[tls]\nhandshake_timeout = \"300ms\"\n{}", config(&[&made])));
    let failed = |reason: &str, count: i64| {
        gateway.metrics_until(reason, |metrics| {
            metrics.value(&format!("shardgate_tls_handshakes_failed_total{{reason=\"{reason}\"}}")) == count
        });
    };
    let mut plain = Client::connect(gateway.address());
    plain.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let response = plain.read_response();
    assert_eq!((response.status, response.text().as_str()), (400, "this port speaks TLS; use https://\n"));
    failed("plain_http", 1);
    // One says nothing, and one half of what it should.
    let mut silent = Client::connect(gateway.address());
    let mut half = Client::connect(gateway.address());
    half.send(b"\x16\x03\x01\x02\x00\x01\x00");
    silent.expect_end();
    half.expect_end();
    failed("timeout", 2);
    let left = TcpStream::connect(gateway.address()).expect("connected");
    left.shutdown(Shutdown::Write).expect("ended");
    failed("left", 1);
    let mut wrong = Client::connect(gateway.address());
    wrong.send([0; 100]);
    wrong.expect_end();
    failed("malformed", 1);
    let output = curl(gateway.address(), &made, "shop.example", "/", &["--tls-max", "1.2", "--ciphers", "AES128-SHA"]);
    assert_eq!(output.status.code(), Some(35), "{output:?}");
    failed("incompatible", 1);
    assert!(!got(&curl(gateway.address(), &made, "shop.example", "/health/live", &[])).is_empty());
}

#[test]
fn a_certificate_is_shown_by_the_name() {
    let place = TempDir::new().expect("a directory");
    let exact = Made::new(place.path(), "exact", &["a.shop.example"]);
    let wild = Made::new(place.path(), "wild", &["*.shop.example"]);
    let rsa = Made::rsa(place.path(), "rsa", "a.shop.example");
    let default = Made::new(place.path(), "default", &["first.example"]);
    let all = [&default, &rsa, &exact, &wild];
    let gateway = Gateway::start(&config(&all));
    let shown = |name| shown(gateway.address(), name, &all);
    assert!(shown("a.shop.example") == exact.der(), "the exact name goes first, and an elliptic curve before RSA");
    assert!(shown("A.Shop.Example") == exact.der());
    assert!(shown("b.shop.example") == wild.der());
    assert!(shown("first.example") == default.der());
    // A client that can only check RSA.
    for arguments in
        [&["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"][..], &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]]
    {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-servername", "a.shop.example"]).args(arguments);
        command.args(["-verify_return_error", "-CAfile"]).arg(&rsa.cert).arg("-connect");
        let output = command.arg(gateway.address().to_string()).stdin(Stdio::null()).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("Verify return code: 0"), "{told}");
    }
    // Who asks for another name is shown the first.
    let output = curl(gateway.address(), &default, "unknown.example", "/", &["--verbose"]);
    assert_eq!(output.status.code(), Some(60), "{output:?}");
    let strict = Gateway::start(&format!("[tls]\nstrict_sni = true\n{}", config(&all)));
    assert!(session(strict.address(), "b.shop.example", &client(&all)).is_ok());
    for name in ["unknown.example", "a.b.shop.example", "127.0.0.1"] {
        let error = session(strict.address(), name, &client(&all)).expect_err("nobody has that name").to_string();
        assert!(error.contains("UnrecognisedName"), "{name}: {error}");
    }
    let failed = strict.metrics().value("shardgate_tls_handshakes_failed_total{reason=\"no_certificate\"}");
    assert_eq!(failed, 3);
}

#[test]
fn another_certificate_comes_with_a_reload_and_connections_stay() {
    let place = TempDir::new().expect("a directory");
    let (old, new) =
        (Made::new(place.path(), "old", &["shop.example"]), Made::new(place.path(), "new", &["shop.example"]));
    let mut gateway = Gateway::start(&config(&[&old]));
    gateway.log_until(APPLIED, SOON);
    let mut kept = session(gateway.address(), "shop.example", &client(&[&old])).expect("a handshake");
    assert!(ask(&mut kept, "/health/live").starts_with("HTTP/1.1 200"));
    // A pair that does not fit refuses the change.
    gateway.rewrite_config(&config(&[&Made { cert: new.cert.clone(), key: old.key.clone() }]));
    gateway.expect_error("the configuration is refused");
    gateway.signal(Signal::HUP);
    let told = gateway.log_until("the configuration is refused and the old one stays", SOON);
    assert!(told.contains("tls.certificates[0].key is ") && told.contains("it is not the key of the first"), "{told}");
    assert!(shown(gateway.address(), "shop.example", &[&old, &new]) == old.der());
    gateway.rewrite_config(&config(&[&new]));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth(APPLIED, 2, SOON);
    for _ in 0..20 {
        assert!(shown(gateway.address(), "shop.example", &[&old, &new]) == new.der());
    }
    assert!(ask(&mut kept, "/health/live").starts_with("HTTP/1.1 200"));
}

#[test]
fn sessions_are_taken_up_again_by_every_shard_and_after_reloads() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    let gateway = Gateway::start(&config(&[&made]));
    let client = client(&[&made]);
    for round in 0..3 {
        gateway.log_until_nth(APPLIED, round + 1, SOON);
        for number in 0..20 {
            let mut stream = session(gateway.address(), "shop.example", &client).expect("a handshake");
            let is_first = round == 0 && number == 0;
            let expected = if is_first { HandshakeKind::Full } else { HandshakeKind::Resumed };
            assert_eq!(stream.conn.handshake_kind(), Some(expected), "{round} {number}");
            // The ticket comes before the answer.
            assert!(ask(&mut stream, "/health/live").starts_with("HTTP/1.1 200"));
        }
        gateway.signal(Signal::HUP);
    }
    assert_eq!(gateway.metrics().value("shardgate_tls_resumed_total"), 59);
    // TLS 1.2, by somebody else: one whole handshake and five that are none.
    let mut command = Command::new("openssl");
    command.args(["s_client", "-tls1_2", "-reconnect", "-servername", "shop.example", "-CAfile"]).arg(&made.cert);
    command.arg("-connect").arg(gateway.address().to_string());
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(told.matches("Reused, TLSv1.2").count(), 5, "{told}");
}

#[test]
fn operators_see_when_certificates_end() {
    let place = TempDir::new().expect("a directory");
    let (long, short) =
        (Made::new(place.path(), "long", &["a.example"]), Made::rsa(place.path(), "short", "b.example"));
    let gateway = Gateway::start(&config(&[&long, &short]));
    let days = |days: i64| days * 24 * 60 * 60;
    gateway.metrics_until("it is known", |metrics| {
        let left = metrics.value("shardgate_certificate_expiry_seconds{certificate=\"first\"}");
        (days(29)..=days(30)).contains(&left)
    });
    let state = gateway.ask_admin("/api/state").json();
    let [first, second] = [0, 1].map(|index| &state["certificates"][index]);
    assert_eq!((first["names"][0].as_str(), second["names"][0].as_str()), (Some("a.example"), Some("b.example")));
    assert!(first["expiresAt"].as_str().expect("a time") > second["expiresAt"].as_str().expect("a time"), "{state}");
    let plain = Gateway::start("");
    assert!(!plain.ask_admin("/metrics").text().contains("certificate_expiry_seconds{"));
}

/// What `shardgate check` says of a configuration, and its exit code.
pub(super) fn check(directory: &Path, config: &str) -> (String, Option<i32>) {
    fs::write(directory.join("a.toml"), config).expect("written");
    let mut command = shardgate(directory);
    let output = command.args(["check", "a.toml"]).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.expect("it runs");
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

#[test]
fn check_says_what_is_wrong_with_certificates() {
    let place = TempDir::new().expect("a directory");
    let place = place.path();
    let (one, two) = (Made::new(place, "one", &["a"]), Made::new(place, "two", &["b"]));
    let old = Made::expired(place, "old", &["c"]);
    let (told, code) = check(place, &config(&[&one, &old]));
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("warning: tls.certificates[1].cert is ") && told.contains("which has expired"), "{told}");
    let mixed = Made { cert: one.cert.clone(), key: two.key.clone() };
    fs::set_permissions(&one.key, fs::Permissions::from_mode(0o644)).expect("set");
    let (told, code) = check(place, &config(&[&one]));
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("warning: tls.certificates[0].key is "), "{told}");
    assert!(told.contains("everybody may use the file"), "{told}");
    let (told, code) = check(place, &config(&[&one, &mixed]));
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("tls.certificates[1].key is ") && told.contains("it is not the key of the first"), "{told}");
    let (told, code) = check(place, "[listener]\nkind = \"tls\"\n");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("listener.kind is \"tls\", and there is no certificate"), "{told}");
}

//! Certificates that change while the gateway runs: by their files, by the links that Kubernetes swaps, and by reloads under
//! load; sessions that another process takes up; and what operators see over TLS.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
    sync::{Arc, mpsc},
    time::Duration,
};

use rustix::process::Signal;
use rustls::{ClientConfig, HandshakeKind};
use tempfile::TempDir;

use super::{
    namespace::{Hang, unshare},
    raise_descriptor_limit,
    tls::{APPLIED, SOON, Session, ask, check, client, config, curl, got, session, shown},
};
use crate::{
    certificate::Made,
    client::Client,
    harness::{Gateway, logged_address, now, pause, shardgate, until},
};

const CHANGED: &str = "the files of certificates have changed";
const REFUSED: &str = "what the files of certificates hold now is refused";

/// Another certificate in the place of this one, its two files one after the other.
fn replace(old: &Made, new: &Made) {
    for [from, to] in [[&new.cert, &old.cert], [&new.key, &old.key]] {
        fs::copy(from, to).expect("copied");
    }
}

fn changes(gateway: &Gateway, result: &str) -> i64 {
    gateway.metrics().value(&format!("shardgate_certificate_changes_total{{result=\"{result}\"}}"))
}

#[test]
fn files_that_change_are_taken_whole_or_not_at_all() {
    let place = TempDir::new().expect("a directory");
    let [served, old, new] = ["served", "old", "new"].map(|name| Made::new(place.path(), name, &["shop.example"]));
    replace(&served, &old);
    let mut gateway = Gateway::start(&config(&[&served]));
    let all = [&old, &new];
    let mut kept = session(gateway.address(), "shop.example", &client(&all)).expect("a handshake");
    assert!(ask(&mut kept, "/health/live").starts_with("HTTP/1.1 200"));
    // Half of it, for longer than it takes to look twice.
    gateway.expect_error(REFUSED);
    fs::copy(&new.cert, &served.cert).expect("copied");
    let told = gateway.log_until(REFUSED, SOON);
    assert!(told.contains("tls.certificates[0].key is ") && told.contains("it is not the key of the first"), "{told}");
    let state = gateway.ask_admin("/api/state").json();
    let refusal = state["certificatesRefusal"]["text"].as_str().unwrap_or_default();
    assert!(refusal.contains("it is not the key of the first"), "{state}");
    pause(Duration::from_secs(2));
    assert!(shown(gateway.address(), "shop.example", &all) == old.der());
    assert_eq!((changes(&gateway, "refused"), changes(&gateway, "applied")), (1, 0));
    // The other half: no reload is asked for.
    fs::copy(&new.key, &served.key).expect("copied");
    until(SOON, "the new one is shown", || (shown(gateway.address(), "shop.example", &all) == new.der()).then_some(()));
    assert_eq!((changes(&gateway, "refused"), changes(&gateway, "applied")), (1, 1));
    assert_eq!(gateway.log().matches(REFUSED).count(), 1, "it is told once");
    assert!(gateway.ask_admin("/api/state").json()["certificatesRefusal"].is_null());
    assert!(ask(&mut kept, "/health/live").starts_with("HTTP/1.1 200"), "connections stay");
    // No configuration was taken for it.
    assert_eq!(gateway.log().matches("configuration reloaded").count(), 0);
}

/// What Kubernetes makes of a secret: a folder for each version, and links through one that it swaps.
struct Mount<'p> {
    folder: &'p Path,
}

impl Mount<'_> {
    fn new(folder: &Path) -> Mount<'_> {
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), folder.join(name)).expect("a link");
        }
        Mount { folder }
    }

    /// As the kubelet does: the whole of the new version, one rename, and the old version is gone.
    fn swap(&self, version: &str, made: &Made) {
        let before = fs::read_link(self.folder.join("..data"));
        let folder = self.folder.join(version);
        fs::create_dir(&folder).expect("a directory");
        for (from, name) in [(&made.cert, "tls.crt"), (&made.key, "tls.key")] {
            let to = folder.join(name);
            fs::copy(from, &to).expect("copied");
            // `defaultMode`, where nobody says otherwise.
            fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).expect("set");
        }
        symlink(version, self.folder.join("..data_tmp")).expect("a link");
        fs::rename(self.folder.join("..data_tmp"), self.folder.join("..data")).expect("swapped");
        if let Ok(before) = before {
            fs::remove_dir_all(self.folder.join(before)).expect("removed");
        }
    }

    fn made(&self) -> Made {
        Made { cert: self.folder.join("tls.crt"), key: self.folder.join("tls.key") }
    }
}

#[test]
fn a_secret_of_kubernetes_is_followed_through_its_links() {
    let place = TempDir::new().expect("a directory");
    let all = ["one", "two", "three"].map(|name| Made::new(place.path(), name, &["shop.example"]));
    let folder = place.path().join("mount");
    fs::create_dir(&folder).expect("a directory");
    let mount = Mount::new(&folder);
    mount.swap("..2026_1", &all[0]);
    let gateway = Gateway::start(&config(&[&mount.made()]));
    // Everybody may read it, which is told and no more.
    gateway.log_until("everybody may use the file (mode 0644", SOON);
    let trusted: Vec<_> = all.iter().collect();
    for (number, made) in all.iter().enumerate().skip(1) {
        mount.swap(&format!("..2026_{}", number + 1), made);
        gateway.log_until_nth(CHANGED, number, SOON);
        until(SOON, "every shard shows it", || {
            (0..8).all(|_| shown(gateway.address(), "shop.example", &trusted) == made.der()).then_some(())
        });
    }
    assert_eq!((changes(&gateway, "refused"), changes(&gateway, "applied")), (0, 2));
}

#[test]
fn a_mount_that_hangs_holds_up_nobody() {
    let Some(unshare) = unshare() else { return };
    let place = TempDir::new().expect("a directory");
    let folder = place.path().join("mount");
    fs::create_dir(&folder).expect("a directory");
    let made = Made::new(&folder, "shop", &["shop.example"]);
    let trusted = Made::at(place.path(), "kept");
    replace(&trusted, &made);
    let mut gateway = Gateway::launch_through(&unshare, &config(&[&made]), |_| {}).wait_listening();
    let Some(hang) = Hang::over(&folder, gateway.pid()) else { return };
    let late = "the files of certificates cannot be read: that takes longer than 5s";
    gateway.expect_error(late);
    // Whatever it hangs for: operators, signals and handshakes go on.
    gateway.signal(Signal::HUP);
    for _ in 0..2 {
        let begun = now();
        assert_eq!(gateway.ask_admin("/health/ready").status, 200);
        assert!(shown(gateway.address(), "shop.example", &[&trusted]) == trusted.der());
        assert!(begun.elapsed() < Duration::from_secs(3), "nobody waits for it");
        gateway.log_until(late, 2 * SOON);
    }
    gateway.log_until("the configuration is refused and the old one stays", 2 * SOON);
    gateway.log_until(REFUSED, 2 * SOON);
    // It answers again, perhaps with an error first.
    gateway.expect_error(REFUSED);
    drop(hang);
    gateway.log_until(CHANGED, 3 * SOON);
    gateway.signal(Signal::HUP);
    gateway.log_until("configuration reloaded", SOON);
}

/// A socket of the hub that answers itself.
fn socket(address: SocketAddr, client: &Arc<ClientConfig>) -> Session {
    let mut stream = session(address, "shop.example", client).expect("a handshake");
    let handshake = "GET /ws/echo HTTP/1.1\r\nhost: shop.example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                     sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    stream.write_all(handshake.as_bytes()).expect("written");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("read");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

fn echo(socket: &mut Session) {
    socket.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).expect("written");
    let mut head = [0; 2];
    socket.read_exact(&mut head).expect("read");
    // A ping, where it has rested for long.
    while head == [0x89, 0] {
        socket.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).expect("written");
        socket.read_exact(&mut head).expect("read");
    }
    let mut heard = [0; 2];
    socket.read_exact(&mut heard).expect("read");
    assert_eq!((head, &heard), ([0x81, 2], b"hi"));
}

#[test]
fn a_hundred_swaps_under_load_close_nothing() {
    const SWAPS: usize = 100;
    let (connections, sockets) = (1000, 100);
    raise_descriptor_limit();
    let place = TempDir::new().expect("a directory");
    let all = [0, 1].map(|name| Made::new(place.path(), &name.to_string(), &["shop.example"]));
    let folder = place.path().join("mount");
    fs::create_dir(&folder).expect("a directory");
    let mount = Mount::new(&folder);
    mount.swap("..version_0", &all[0]);
    let gateway = Gateway::start(&format!("[hub]\necho = true\n{}", config(&[&mount.made()])));
    let address = gateway.address();
    let trusted = [&all[0], &all[1]];
    let resumes = client(&trusted);
    // Every connection is asked again and again while others come.
    let (stop, stopped) = mpsc::channel::<()>();
    let asked = |_| {
        let mut stream = session(address, "shop.example", &resumes).expect("a handshake");
        // Whoever says nothing at first is not waited for for long.
        assert!(ask(&mut stream, "/health/live").starts_with("HTTP/1.1 200"));
        stream
    };
    let mut kept: Vec<_> = (0..connections).map(asked).collect();
    let mut echoing: Vec<_> = (0..sockets).map(|_| socket(address, &resumes)).collect();
    let asking = std::thread::spawn(move || {
        let mut rounds = 0;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            for stream in &mut kept {
                assert!(ask(stream, "/health/live").starts_with("HTTP/1.1 200"));
            }
            echoing.iter_mut().for_each(echo);
            rounds += 1;
        }
        rounds
    });
    let mut opened = Vec::new();
    for number in 1..=SWAPS {
        let made = &all[number % 2];
        mount.swap(&format!("..version_{number}"), made);
        gateway.signal(Signal::HUP);
        until(SOON, "it is shown", || (shown(address, "shop.example", &trusted) == made.der()).then_some(()));
        if number % 10 == 0 {
            opened.push(asked(number));
        }
    }
    drop(stop);
    assert!(asking.join().expect("none was closed") > 0);
    for stream in &mut opened {
        assert!(ask(stream, "/health/live").starts_with("HTTP/1.1 200"));
    }
    gateway.log_until_nth(APPLIED, 2, SOON);
    for _ in 0..20 {
        let mut stream = session(address, "shop.example", &resumes).expect("a handshake");
        assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Resumed), "keys of tickets stay");
        // The next ticket comes before the answer.
        assert!(ask(&mut stream, "/health/live").starts_with("HTTP/1.1 200"));
    }
    assert_eq!(gateway.metrics().value("shardgate_config_reloads_total{result=\"refused\"}"), 0);
}

#[test]
fn another_process_with_the_same_secret_takes_sessions_up() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    let secret = place.path().join("secret");
    let write = |text: &str| {
        fs::write(&secret, text).expect("written");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("set");
    };
    write("a secret of 32 bytes, known here\n");
    let certificate = config(&[&made]);
    let shared = format!("[tls]\nticket_secret_file = \"{}\"\n{certificate}", secret.display());
    let (one, two) = (Gateway::start(&shared), Gateway::start(&shared));
    let client = client(&[&made]);
    let kind = |gateway: &Gateway| {
        let mut stream = session(gateway.address(), "shop.example", &client).expect("a handshake");
        // The ticket comes before the answer.
        assert!(ask(&mut stream, "/health/live").starts_with("HTTP/1.1 200"));
        stream.conn.handshake_kind().expect("it is done")
    };
    assert_eq!(kind(&one), HandshakeKind::Full);
    for gateway in [&two, &one, &one, &two] {
        assert_eq!(kind(gateway), HandshakeKind::Resumed);
    }
    // A process that has made its keys for itself takes up none of others.
    assert_eq!(kind(&Gateway::start(&certificate)), HandshakeKind::Full);
    // Another secret is another file: tickets of the one before open nothing any more.
    assert_eq!(kind(&two), HandshakeKind::Full);
    write("another secret of 32 bytes, or so");
    for gateway in [&one, &two] {
        gateway.log_until(CHANGED, SOON);
    }
    // Each shard has the new keys once it has its letter.
    until(SOON, "what was sealed before opens nothing", || (kind(&one) == HandshakeKind::Full).then_some(()));
    until(SOON, "the other takes up what is sealed now", || (kind(&two) == HandshakeKind::Resumed).then_some(()));
}

/// What a gateway's metrics have for this series, as its public listener shows them.
fn counted(gateway: &Gateway, series: &str) -> i64 {
    let text = gateway.get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{series}: {text}"));
    line.trim().parse().expect("a number")
}

#[test]
fn operators_are_served_over_tls() {
    let place = TempDir::new().expect("a directory");
    let [public, own, other] =
        ["public", "own", "other"].map(|name| Made::new(place.path(), name, &["localhost", "127.0.0.1"]));
    let served = Made { cert: place.path().join("o.pem"), key: place.path().join("o.key.pem") };
    replace(&served, &own);
    let admin = |more: &str| format!("[metrics]\nallow = [\"127.0.0.0/8\"]\n[admin]\nkind = \"tls\"\n{more}");
    let pair = format!("cert = \"{}\"\nkey = \"{}\"\n", served.cert.display(), served.key.display());
    let gateway = Gateway::start(&admin(&pair));
    let address = operators(&gateway);
    let page = got(&curl(address, &own, "localhost", "/", &[]));
    assert!(page.contains("<title>Shardgate"), "{page}");
    assert!(got(&curl(address, &own, "localhost", "/metrics", &["--tls-max", "1.2"])).contains("shardgate_build_info"));
    // Nobody has to wait for those who say nothing, or clear text.
    let silent: Vec<_> = (0..70).map(|_| TcpStream::connect(address).expect("connected")).collect();
    let mut plain = Client::connect(address);
    plain.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let response = plain.read_response();
    assert_eq!((response.status, response.text().as_str()), (400, "this port speaks TLS; use https://\n"));
    let refused = "shardgate_admin_refused_total{reason=\"handshake\"}";
    until(SOON, "it is counted", || (counted(&gateway, refused) > 0).then_some(()));
    got(&curl(address, &own, "localhost", "/health/live", &[]));
    drop(silent);
    // Signatures are bounded, 4 in 100 ms: nobody takes the thread for himself.
    let begun = now();
    for _ in 0..13 {
        assert!(shown(address, "localhost", &[&own]) == own.der());
    }
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    // In a terminal.
    let top = |arguments: &[&str]| {
        let folder = TempDir::new().expect("a folder");
        let mut command = shardgate(folder.path());
        let code = command.args(["top", "--once", "--url"]).args(arguments).status().expect("it runs").code();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("written");
        (code, read("stdout.log"), read("stderr.log"))
    };
    let (url, ca) = (format!("https://{address}"), own.cert.display().to_string());
    let (code, out, error) = top(&[&url, "--ca", &ca]);
    assert!(code == Some(0) && out.contains("SHARD"), "{out} {error}");
    let (code, _, error) = top(&[&url, "--ca", &public.cert.display().to_string()]);
    assert!(code == Some(1) && error.contains("there is no TLS with") && error.contains("certificate"), "{error}");
    let (code, _, error) = top(&[&format!("http://{address}"), "--ca", &ca]);
    assert!(code == Some(1) && error.contains("--ca is for listeners that speak TLS"), "{error}");
    // Other files are taken there too.
    replace(&served, &other);
    until(SOON, "it is shown", || (shown(address, "localhost", &[&own, &other]) == other.der()).then_some(()));
    // Without one of its own it shows those of the public listeners.
    let gateway = Gateway::start(&format!("{}{}", admin(""), public.config()));
    got(&curl(operators(&gateway), &public, "localhost", "/health/ready", &[]));
    // And no session there is taken up again.
    let client = client(&[&public]);
    for _ in 0..2 {
        let mut stream = session(operators(&gateway), "localhost", &client).expect("a handshake");
        write!(stream, "GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("written");
        let mut heard = String::new();
        stream.read_to_string(&mut heard).expect("read");
        assert!(heard.starts_with("HTTP/1.1 200") && stream.conn.handshake_kind() == Some(HandshakeKind::Full));
    }
}

fn operators(gateway: &Gateway) -> SocketAddr {
    logged_address(&gateway.log(), "operators: https://").expect("it is told")
}

#[test]
fn check_says_which_hosts_no_certificate_names() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example", "*.shop.example"]);
    let routes = "[upstreams.a]\ninstances = [\"127.0.0.1:1\"]\n[[routes]]\npath = \"/\"\nupstream = \"a\"\naccess = \"public\"\n\
                  hosts = [\"shop.example\", \"a.shop.example\", \"other.example\", \"*.b.shop.example\"]\n";
    let (told, code) = check(place.path(), &format!("{}{routes}", config(&[&made])));
    assert_eq!(code, Some(0), "{told}");
    for (host, is_told) in [("shop.example", false), ("other.example", true), ("*.b.shop.example", true)] {
        assert_eq!(told.contains(&format!("routes[0].hosts has \"{host}\"")), is_told, "{told}");
    }
    // Where nobody speaks TLS there is nothing to say.
    let (told, _) = check(place.path(), &format!("{}{routes}", made.config()));
    assert!(!told.contains("no certificate names"), "{told}");
}

#[test]
fn the_demo_is_served_over_tls_too() {
    let any_port = [("SHARDGATE_LISTENER_PORT", "0"), ("SHARDGATE_ADMIN_PORT", "0"), ("SHARDGATE_RUNTIME_SHARDS", "4")];
    let demo = Gateway::start_command(&["demo", "--tls=0"], &any_port);
    let line = until(SOON, "it says what to try", || {
        demo.log().lines().find(|line| line.trim_start().starts_with("curl --cacert ")).map(str::to_owned)
    });
    // As a user pastes it.
    let asked = |line: &str| Command::new("sh").args(["-c", line]).output().expect("a shell");
    assert!(got(&asked(&line.replace("curl", "curl -sS --noproxy '*'"))).contains("\"status\""), "{line}");
    let page = got(&asked(&line.replace("curl", "curl -sS --noproxy '*'").replace("/health", "/demo")));
    assert!(page.contains("data-port=\"0\""), "{page}");
    // A socket of the hub.
    let words: Vec<&str> = line.split_whitespace().collect();
    let port = words[3].rsplit_once(':').and_then(|(_, rest)| rest.split('/').next()).expect("a port");
    let made = Made { cert: words[2].into(), key: words[2].into() };
    let address = SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a port")));
    let mut stream = session(address, "localhost", &client(&[&made])).expect("a handshake");
    let handshake = "GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                     sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-protocol: shardgate.v1\r\n\r\n";
    stream.write_all(handshake.as_bytes()).expect("written");
    let mut heard = [0; 12];
    stream.read_exact(&mut heard).expect("read");
    assert_eq!(&heard, b"HTTP/1.1 101");
}

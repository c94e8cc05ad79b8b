//! Connections that a balancer passes on with a PROXY header: the told address is the peer's for all that follows, and
//! nothing else is taken for one.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use super::shards::with_shards;
use crate::{
    certificate::Made,
    harness::{Client, Gateway, now},
    servers::haproxy::Haproxy,
    service::Service,
};

const SOON: Duration = Duration::from_secs(10);

/// A listener that requires the header, from this machine.
const REQUIRED: &str = "[listener]\nproxy_protocol = \"required\"\n";
const TRUST: &str = "[trust]\nproxies = [\"127.0.0.1\"]\n";

const LINE: &str = "PROXY TCP4 203.0.113.9 198.51.100.7 56324 443\r\n";

/// A header of version 2 that tells this client, and has these TLVs.
fn binary(client: [u8; 4], tlvs: &[u8]) -> Vec<u8> {
    let addresses = [&client[..], &[198, 51, 100, 7], &[0xdc, 4], &[1, 0xbb]].concat();
    let length = u16::try_from(addresses.len() + tlvs.len()).expect("short").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11", &length[..], &addresses, tlvs].concat()
}

/// Counted so far for this reason.
fn refused(gateway: &Gateway, reason: &str, count: i64) {
    let series = format!("shardgate_proxy_protocol_refused_total{{reason=\"{reason}\"}}");
    gateway.metrics_until(&series, |metrics| metrics.value(&series) == count);
}

/// Whom the access log names for the request with this id.
fn logged_client(gateway: &Gateway, lines: usize, id: &str) -> String {
    let lines = gateway.access_lines(lines);
    let line = lines.iter().find(|line| line["request_id"] == id).expect("it is in the log");
    line["client"].as_str().expect("text").to_owned()
}

fn ask(client: &mut Client, id: &str, more: &str) {
    client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n{more}\r\n"));
    assert_eq!(client.read_response().status, 200);
}

#[test]
fn the_told_address_is_the_peers_on_both_drivers() {
    for driver in ["epoll", "io_uring"] {
        let service = Service::start();
        let gateway = Gateway::start(&service.config(&format!("[runtime]\ndriver = \"{driver}\"\n{REQUIRED}{TRUST}")));
        // Whole, with the request behind it in the same segment, and one byte at a time.
        let mut whole = gateway.connect();
        whole.send(format!("{LINE}GET / HTTP/1.1\r\nhost: a\r\nx-request-id: together-1\r\n\r\n"));
        assert_eq!(whole.read_response().status, 200);
        let mut bytewise = gateway.connect();
        for byte in [&binary([203, 0, 113, 8], &[4, 0, 1, 0])[..], b"GET / HTTP/1.1\r\nhost: a\r\n"].concat() {
            bytewise.send([byte]);
        }
        bytewise.send("x-request-id: bytewise-1\r\n\r\n");
        assert_eq!(bytewise.read_response().status, 200);
        let mut six = gateway.connect();
        six.send("PROXY TCP6 2001:db8::7 ::1 4660 80\r\n");
        ask(&mut six, "version-six", "");
        ask(&mut six, "and-again", "");
        for (id, wanted) in [
            ("together-1", "203.0.113.9"),
            ("bytewise-1", "203.0.113.8"),
            ("version-six", "2001:db8::7"),
            ("and-again", "2001:db8::7"),
        ] {
            assert_eq!(logged_client(&gateway, 4, id), wanted, "{driver}");
        }
    }
}

/// What a service is told of the client, and what the access log tells.
fn told(gateway: &Gateway, backend: &TcpListener, header: &[u8], request: &str) -> (String, String) {
    let mut client = gateway.connect();
    client.send([header, format!("GET / HTTP/1.1\r\nhost: a\r\n{request}\r\n").as_bytes()].concat());
    let mut service = Client::new(backend.accept().expect("the gateway connects").0);
    let head = service.read_head().expect("a request");
    service.send("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
    assert_eq!(client.read_response().status, 204);
    let field = |name| head.field(name).unwrap_or_default().to_owned();
    (field("x-forwarded-for"), field("x-forwarded-proto"))
}

#[test]
fn whose_word_counts_goes_by_the_told_address() {
    let backend = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let instance = backend.local_addr().expect("it is bound");
    let route = "[[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n";
    let trust = "[trust]\nproxies = [\"127.0.0.1\", \"203.0.113.0/24\"]\n";
    let gateway = Gateway::start(&format!("{REQUIRED}{trust}[upstreams.back]\ninstances = [\"{instance}\"]\n{route}"));
    let claims = "x-forwarded-for: 192.0.2.77\r\nx-forwarded-proto: https\r\n";
    let told = |header: &[u8]| told(&gateway, &backend, header, claims);
    let pair = |of: &str, proto: &str| (of.to_owned(), proto.to_owned());
    // A stranger claims in vain, however much the balancer is trusted.
    assert_eq!(told(b"PROXY TCP4 192.0.2.5 127.0.0.1 1 2\r\n"), pair("192.0.2.5", "http"));
    // A proxy behind the balancer that is trusted itself is believed.
    assert_eq!(told(LINE.as_bytes()), pair("192.0.2.77, 203.0.113.9", "https"));
    // Where nobody says who speaks, the balancer has not spoken.
    let nobody = pair("127.0.0.1", "http");
    assert_eq!(told(b"PROXY UNKNOWN\r\n"), nobody);
    assert_eq!(told(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"), nobody);
    assert_eq!(told(b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0"), nobody);
}

#[test]
fn limits_count_the_told_address() {
    let service = Service::start();
    let limit = "[limits.few]\nquota = 2\nwindow = \"1h\"\nkey = \"address\"\n";
    let config = service
        .config(&format!("{REQUIRED}{TRUST}{limit}"))
        .replace("path = \"/*\"", "limits = [\"few\"]\npath = \"/*\"");
    let gateway = Gateway::start(&config);
    let status = |client: [u8; 4]| {
        let mut connection = gateway.connect();
        connection.send(binary(client, &[]));
        connection.get("/").status
    };
    for _ in 0..2 {
        assert_eq!(status([203, 0, 113, 1]), 200);
    }
    assert_eq!(status([203, 0, 113, 1]), 429, "one client, whatever its connection");
    assert_eq!(status([203, 0, 113, 2]), 200, "another behind the same balancer");
}

#[test]
fn anything_else_closes_and_is_counted() {
    let service = Service::start();
    let gateway = Gateway::start(&service.config(&format!("{REQUIRED}{TRUST}")));
    let closes = |bytes: &[u8]| {
        let mut client = gateway.connect();
        client.send(bytes);
        client.expect_end();
    };
    closes(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    closes(&[0x16, 3, 1, 2, 0, 1]);
    closes(b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c123456789012");
    refused(&gateway, "malformed", 3);
    closes(format!("PROXY UNKNOWN {}", "x".repeat(200)).as_bytes());
    closes(&binary([203, 0, 113, 9], &[[4, 2, 0x58].as_slice(), &[0; 600]].concat()));
    refused(&gateway, "too_long", 2);
    closes(&binary([203, 0, 113, 9], &[3, 0, 4, 1, 2, 3, 4]));
    refused(&gateway, "checksum", 1);
    let left = TcpStream::connect(gateway.address()).expect("connected");
    left.shutdown(Shutdown::Write).expect("ended");
    refused(&gateway, "left", 1);
    // One that says half, and one that goes on too slowly to come to an end in time.
    let began = now();
    let mut half = gateway.connect();
    half.send(&LINE[..20]);
    let mut silent = gateway.connect();
    half.expect_end();
    silent.expect_end();
    assert!(began.elapsed() < SOON);
    refused(&gateway, "timeout", 2);
    // Somebody who is not trusted is not heard at all.
    let strange = Gateway::start(&service.config(&format!("{REQUIRED}[trust]\nproxies = [\"192.0.2.1\"]\n")));
    let mut client = strange.connect();
    client.send(LINE);
    client.expect_end();
    refused(&strange, "untrusted", 1);
    // Where none is read, a header is no request.
    let off = Gateway::start(&service.config(TRUST));
    let mut client = off.connect();
    client.send(format!("{LINE}\r\n"));
    assert_eq!(client.read_response().status, 400);
}

#[test]
fn connections_are_handed_over_before_their_header_is_read() {
    for driver in ["epoll", "io_uring"] {
        let service = Service::start();
        let gateway = Gateway::start(&service.config(&format!("[runtime]\ndriver = \"{driver}\"\n{REQUIRED}{TRUST}")));
        let connect = || {
            let mut client = gateway.connect();
            client.send(LINE);
            client
        };
        let mut kept = with_shards(&gateway, (0..160).map(|_| connect()).collect());
        kept.retain(|(shard, _)| *shard == 3);
        let held = i64::try_from(kept.len()).expect("few");
        gateway.metrics_until("the others are closed", |metrics| metrics.sum("shardgate_connections_open") == held);
        let fresh: Vec<_> = (0..60).map(|_| connect()).collect();
        for (index, mut client) in fresh.into_iter().enumerate() {
            ask(&mut client, &format!("fresh-{index:03}"), "");
        }
        assert!(gateway.metrics().sum("shardgate_connections_handed_over_total") > 0, "{driver}");
        let lines = gateway.access_lines(220);
        assert!(lines.iter().all(|line| line["client"] == "203.0.113.9"), "{driver}");
    }
}

/// Asks by curl with a header of version 1, which tells of curl's own connection.
fn curl(url: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--haproxy-protocol"]);
    let output = command.args(arguments).arg(url).output().expect("curl runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn tls_comes_behind_the_header() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    for driver in ["epoll", "io_uring"] {
        let service = Service::start();
        let listener = "[listener]\nkind = \"tls\"\nproxy_protocol = \"required\"\n";
        let config = format!("[runtime]\ndriver = \"{driver}\"\n{listener}{TRUST}{}", made.config());
        let gateway = Gateway::start(&service.config(&config));
        let port = gateway.address().port();
        let resolve = format!("shop.example:{port}:127.0.0.1");
        let authority = made.cert.to_str().expect("text");
        let url = format!("https://shop.example:{port}/");
        for _ in 0..8 {
            assert_eq!(curl(&url, &["--cacert", authority, "--resolve", &resolve]), "hello\n");
        }
        // Who speaks HTTP behind the header is told, as without one: one byte at a time too.
        for step in [usize::MAX, 1] {
            let mut plain = gateway.connect();
            let bytes = format!("{LINE}GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            for piece in bytes.as_bytes().chunks(step.min(bytes.len())) {
                // It may have closed by the last of them.
                if plain.try_send(piece).is_err() {
                    break;
                }
            }
            let response = plain.read_response();
            assert_eq!((response.status, response.text().as_str()), (400, "this port speaks TLS; use https://\n"));
        }
        let counted = "shardgate_tls_handshakes_failed_total{reason=\"plain_http\"}";
        gateway.metrics_until("both are counted", |metrics| metrics.value(counted) == 2);
        let mut bare = TcpStream::connect(gateway.address()).expect("connected");
        bare.set_read_timeout(Some(SOON)).expect("set");
        bare.write_all(&[0x16, 3, 1, 0, 5, 1]).expect("written");
        assert!(matches!(bare.read(&mut [0; 9]), Ok(0) | Err(_)), "TLS without a header is not spoken");
        refused(&gateway, "malformed", 1);
    }
}

#[test]
fn haproxy_passes_its_clients_on() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    let service = Service::start();
    let listener = "[listener]\nkind = \"tls\"\nproxy_protocol = \"required\"\n";
    let gateway = Gateway::start(&service.config(&format!("{listener}{TRUST}{}", made.config())));
    let mut asked = 0;
    for (number, version) in
        ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"].iter().enumerate()
    {
        let Some(haproxy) = Haproxy::start(gateway.address(), version) else { return };
        let client = format!("127.0.0.{}", 21 + number);
        let (name, port) = ("shop.example", haproxy.address().port());
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--interface", &client])
            .args(["--resolve", &format!("{name}:{port}:127.0.0.1"), "--cacert"])
            .arg(&made.cert)
            .args(["-H", &format!("x-request-id: haproxy-{number}"), &format!("https://{name}:{port}/")])
            .output()
            .expect("curl runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n", "{version}: {output:?}");
        asked += 1;
        assert_eq!(logged_client(&gateway, asked, &format!("haproxy-{number}")), client, "{version}");
    }
    assert_eq!(gateway.metrics().sum("shardgate_tls_handshakes_total{version=\"1.3\"}"), 3);
}

#[test]
fn a_listener_beside_it_reads_none() {
    let service = Service::start();
    let further = "[[listeners]]\naddress = \"127.0.0.1\"\nport = 0\nkind = \"plain\"\n";
    let gateway = Gateway::start(&service.config(&format!("{REQUIRED}{TRUST}{further}")));
    let line = gateway.log_until("listening on ", SOON);
    let (_, plain) = line.split_once(" and ").expect("two listeners");
    let plain: SocketAddr = plain.split('"').next().and_then(|text| text.parse().ok()).expect("an address");
    assert_eq!(Client::connect(plain).get("/").status, 200);
    assert_eq!(curl(&format!("http://{}/", gateway.address()), &[]), "hello\n");
}

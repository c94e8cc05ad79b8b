//! Plain HTTP that is led to HTTPS, and browsers that are told to stay there.

use std::{
    net::{SocketAddr, TcpListener},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use super::shards::with_shards;
use crate::{
    certificate::Made,
    harness::{Client, Gateway},
    service::Service,
};

const SOON: Duration = Duration::from_secs(10);

/// A first listener that leads to a second one over TLS.
fn both(made: &Made, more: &str) -> String {
    let tls = "[[listeners]]\naddress = \"127.0.0.1\"\nport = 0\nkind = \"tls\"\n";
    format!("[listener]\nkind = \"redirect\"\n{more}{tls}{}", made.config())
}

/// Where the second listener is.
fn second(gateway: &Gateway) -> SocketAddr {
    let line = gateway.log_until("listening on ", SOON);
    let (_, second) = line.split_once(" and ").expect("two listeners");
    second.split('"').next().and_then(|text| text.parse().ok()).expect("an address")
}

/// The status, and where it leads.
fn answer(gateway: &Gateway, request: &str) -> (u16, String) {
    let mut client = gateway.connect();
    client.send(request);
    let response = client.read_response();
    assert_eq!(response.field("strict-transport-security"), None, "over clear text nobody may say that");
    (response.status, response.field("location").unwrap_or_default().to_owned())
}

#[test]
fn curl_follows_it_on_both_drivers_and_every_shard() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    for driver in ["epoll", "io_uring"] {
        let service = Service::start();
        let gateway = Gateway::start(&service.config(&both(&made, &format!("[runtime]\ndriver = \"{driver}\"\n"))));
        let tls = second(&gateway);
        for _ in 0..10 {
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--location"]);
            command.args(["--data", "a body", "--write-out", "%{url_effective} %{num_redirects}", "--cacert"]);
            command.arg(&made.cert);
            for address in [gateway.address(), tls] {
                command.arg("--resolve").arg(format!("shop.example:{}:127.0.0.1", address.port()));
            }
            let url = format!("http://shop.example:{}/echo?a=b%20c", gateway.address().port());
            let output = command.arg(url).output().expect("curl runs");
            let told = String::from_utf8_lossy(&output.stdout);
            let wanted = format!("https://shop.example:{}/echo?a=b%20c 1", tls.port());
            assert!(told.ends_with(&wanted) && output.status.success(), "{told} {output:?}");
        }
        let lines = gateway.access_lines(20);
        assert_eq!(lines.iter().filter(|line| line["status"] == 308).count(), 10, "{driver}");
    }
}

#[test]
fn it_leads_to_no_host_but_ours() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example", "*.wild.example"]);
    let service = Service::start();
    let config = service.config(&both(&made, "https_port = 443\n"));
    let gateway = Gateway::start(
        &config.replace("path = \"/*\"", "hosts = [\"route.example\", \"*.below.example\"]\npath = \"/*\""),
    );
    let get = |target: &str, host: &str| answer(&gateway, &format!("GET {target} HTTP/1.1\r\n{host}\r\n"));
    let led = |to: &str| (308, to.to_owned());
    for (target, host, wanted) in [
        ("/", "host: shop.example\r\n", led("https://shop.example/")),
        ("/a/../b%2f?q=/\\x", "host: Shop.Example:80\r\n", led("https://shop.example/a/../b%2f?q=/\\x")),
        ("/", "host: shop.example.\r\n", led("https://shop.example/")),
        ("//evil.example/a", "host: shop.example\r\n", led("https://shop.example//evil.example/a")),
        ("/@evil.example", "host: shop.example\r\n", led("https://shop.example/@evil.example")),
        ("/", "host: route.example\r\n", led("https://route.example/")),
        ("/", "host: a.wild.example\r\n", led("https://a.wild.example/")),
        ("/", "host: a.below.example\r\n", led("https://a.below.example/")),
        ("http://shop.example", "host: shop.example\r\n", led("https://shop.example/")),
        ("http://shop.example?q", "host: shop.example\r\n", led("https://shop.example/?q")),
    ] {
        assert_eq!(get(target, host), wanted, "{target} {host}");
    }
    for host in [
        "evil.example",
        "wild.example",
        "a.b.wild.example",
        "a.b.below.example",
        "below.example",
        "shop.example.evil.example",
        "evilshop.example",
        "127.0.0.1",
        "[::1]",
    ] {
        assert_eq!(get("/", &format!("host: {host}\r\n")), (421, String::new()), "{host}");
    }
    for (target, host) in [
        ("/", ""),
        ("/", "host: shop.example\r\nhost: shop.example\r\n"),
        ("/", "host: shop.example, evil.example\r\n"),
        ("/", "host: shop.example@evil.example\r\n"),
        ("/", "host: shop.example\\.evil.example\r\n"),
        ("/", "host: shop.example/evil\r\n"),
        ("/", "host: shop.example:443:80\r\n"),
        ("/", "host: shop.example\u{b}\r\n"),
        ("/", "host: .wild.example\r\n"),
        ("http://evil.example/", "host: shop.example\r\n"),
        ("http://a@shop.example/", "host: shop.example\r\n"),
        ("http:\\\\shop.example/", "host: shop.example\r\n"),
        ("\\\\evil.example/", "host: shop.example\r\n"),
        ("/a\\evil.example", "host: shop.example\r\n"),
        ("/a\u{1}", "host: shop.example\r\n"),
        ("/#a", "host: shop.example\r\n"),
    ] {
        assert_eq!(get(target, host), (400, String::new()), "{target:?} {host:?}");
    }
    // Authorities that give certificates ask here, by whatever name.
    for host in ["shop.example", "evil.example"] {
        assert_eq!(get("/.well-known/acme-challenge/token", &format!("host: {host}\r\n")), (404, String::new()));
    }
    assert_eq!(answer(&gateway, "CONNECT shop.example:443 HTTP/1.1\r\nhost: shop.example:443\r\n\r\n").0, 501);
    assert_eq!(answer(&gateway, "GET / HTTP/1.0\r\n\r\n").0, 421, "it names nobody");
    let metrics = gateway.metrics();
    assert_eq!(metrics.value("shardgate_rejects_total{code=\"misdirected_request\"}"), 10);
}

#[test]
fn it_stands_behind_a_balancer_too_and_is_handed_over() {
    for driver in ["epoll", "io_uring"] {
        let service = Service::start();
        let limit = "[limits.few]\nquota = 400\nwindow = \"1h\"\nkey = \"address\"\n";
        let redirect =
            "[[listeners]]\naddress = \"127.0.0.1\"\nport = 0\nkind = \"redirect\"\nproxy_protocol = \"required\"\n";
        let trust = "[trust]\nproxies = [\"127.0.0.1\"]\n";
        let config = service.config(&format!("[runtime]\ndriver = \"{driver}\"\n{redirect}{trust}{limit}"));
        let named =
            "[[routes]]\naccess = \"public\"\nhosts = [\"shop.example\"]\npath = \"/shop\"\nupstream = \"sample\"\n";
        let gateway = Gateway::start(&format!("{config}{named}"));
        let redirects = second(&gateway);
        // Busy shards hand fresh connections over before a byte of them is read.
        let mut kept = with_shards(&gateway, (0..160).map(|_| gateway.connect()).collect());
        kept.retain(|(shard, _)| *shard == 3);
        let held = i64::try_from(kept.len()).expect("few");
        gateway.metrics_until("the others are closed", |metrics| metrics.sum("shardgate_connections_open") == held);
        let fresh: Vec<_> = (0..60).map(|_| Client::connect(redirects)).collect();
        for mut client in fresh {
            client
                .send("PROXY TCP4 203.0.113.9 198.51.100.7 56324 80\r\nGET /a HTTP/1.1\r\nhost: shop.example\r\n\r\n");
            let response = client.read_response();
            assert_eq!((response.status, response.field("location")), (308, Some("https://shop.example/a")));
        }
        assert!(gateway.metrics().sum("shardgate_connections_handed_over_total") > 0, "{driver}");
        let lines = gateway.access_lines(220);
        let led: Vec<_> = lines.iter().filter(|line| line["status"] == 308).collect();
        assert_eq!(led.len(), 60, "{driver}");
        assert!(led.iter().all(|line| line["client"] == "203.0.113.9"), "{driver}");
    }
}

/// An answer's head over TLS, by curl.
fn head(address: SocketAddr, made: &Made, path: &str, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        "--noproxy",
        "*",
        "--dump-header",
        "-",
        "--output",
        "/dev/null",
    ]);
    command.arg("--resolve").arg(format!("shop.example:{}:127.0.0.1", address.port())).arg("--cacert").arg(&made.cert);
    let output = command.args(arguments).arg(format!("https://shop.example:{}{path}", address.port())).output();
    let output = output.expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 "), "{output:?}");
    text.lines().map(str::to_owned).collect()
}

fn hsts(head: &[String]) -> Vec<&str> {
    head.iter().filter_map(|line| line.strip_prefix("strict-transport-security: ")).collect()
}

#[test]
fn browsers_are_told_over_tls_only_and_once() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "shop", &["shop.example"]);
    let backend = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let instance = backend.local_addr().expect("it is bound");
    let route = "[[routes]]\naccess = \"public\"\npath = \"/own\"\nupstream = \"back\"\n";
    let tls = "[tls]\nhsts_max_age = \"365d\"\nhsts_include_subdomains = true\nhsts_preload = true\n";
    let plain = "[[listeners]]\naddress = \"127.0.0.1\"\nport = 0\nkind = \"plain\"\n";
    let gateway = Gateway::start(&format!(
        "[listener]\nkind = \"tls\"\n{plain}{tls}{}[upstreams.back]\ninstances = [\"{instance}\"]\n{route}",
        made.config()
    ));
    let wanted = "max-age=31536000; includesubdomains; preload";
    let ask = |path: &str, arguments: &[&str]| head(gateway.address(), &made, path, arguments);
    let answered = ask("/health/live", &[]);
    assert_eq!((answered[0].as_str(), hsts(&answered)), ("http/1.1 200 ok", vec![wanted]));
    let refused = ask("/nothing", &[]);
    assert_eq!((&refused[0][..12], hsts(&refused)), ("http/1.1 404", vec![wanted]));
    let malformed = ask("/", &["-H", "host: a b"]);
    assert_eq!((&malformed[0][..12], hsts(&malformed)), ("http/1.1 400", vec![wanted]));
    // What a service says itself stays, alone.
    let serving = std::thread::spawn(move || {
        let mut service = Client::new(backend.accept().expect("the gateway connects").0);
        service.read_head().expect("a request");
        service.send("HTTP/1.1 204 No Content\r\nstrict-transport-security: max-age=7\r\nconnection: close\r\n\r\n");
    });
    assert_eq!(hsts(&ask("/own", &[])), ["max-age=7"]);
    serving.join().expect("it ended well");
    for path in ["/health/live", "/nothing"] {
        let answered = Client::connect(second(&gateway)).get(path);
        assert_eq!(answered.field("strict-transport-security"), None, "{path} in clear text");
    }
}

//! TLS to services: nginx, `openssl s_server` and Python behind the gateway, as nobody here wrote them; what is wrong with a
//! service is told, and other instances answer.

use std::{fs, path::Path, time::Duration};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    backend::Backend,
    certificate::Made,
    client::Client,
    harness::{Gateway, shardgate, until},
    servers::web::WebServer,
    service::{Service, pattern},
};

/// One failure is told, and an instance that is alone stays in use.
const TOLD_AT_ONCE: &str = "retries_max = 0\noutlier_failures = 1\n[upstreams.back.breaker]\npercent = 0";

const SOON: Duration = Duration::from_secs(10);
const VERSIONS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];

/// What nginx says of the connection that a request came over.
const SAYS: &str = "$connection $connection_requests $ssl_protocol r=$ssl_session_reused n=$ssl_server_name \
    a=$ssl_alpn_protocol c=$ssl_client_s_dn h=$http_host";

/// A server of nginx with this certificate: `/tls` says what it knows, `/gone` closes without a word, everything else goes to
/// the service at this address, if there is one.
fn nginx(made: &Made, protocols: &str, more: &str, behind: Option<std::net::SocketAddr>) -> Option<WebServer> {
    let (cert, key) = (made.cert.display(), made.key.display());
    let behind = behind.map_or_else(
        || "location / { return 200 ok; }".to_owned(),
        |address| {
            format!(
                "location / {{ proxy_pass http://{address}; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
                 proxy_set_header Connection $http_connection; proxy_request_buffering off; proxy_buffering off; \
                 client_max_body_size 0; }}"
            )
        },
    );
    WebServer::nginx_by(&format!(
        "daemon off; master_process off; pid pid; error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:PORT ssl;
        ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols {protocols};
        {more}
        location /tls {{ default_type text/plain; return 200 \"{SAYS}\"; }}
        location /gone {{ return 444; }}
        {behind}
    }}
}}
"
    ))
}

/// A configuration that sends everything to these instances.
fn before(instances: &[String], tls: &str, upstream: &str) -> String {
    let instances: Vec<_> = instances.iter().map(|instance| format!("\"{instance}\"")).collect();
    format!(
        "[[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\nbody_bytes_max = \"1GiB\"\n\
         [upstreams.back]\ninstances = [{}]\n{upstream}\n[upstreams.back.tls]\n{tls}\n",
        instances.join(", ")
    )
}

fn trusting(made: &Made) -> String {
    format!("ca_file = \"{}\"", made.cert.display())
}

fn https(server: &WebServer) -> String {
    format!("https://{}", server.address())
}

/// The word behind this in what nginx says.
fn said(text: &str, name: &str) -> String {
    let word = text.split(' ').find_map(|word| word.strip_prefix(name));
    word.unwrap_or_else(|| panic!("no {name} in {text:?}")).to_owned()
}

/// What `/health` says of the upstream.
fn health(gateway: &Gateway) -> serde_json::Value {
    gateway.ask_admin("/health").json()["services"]["back"].clone()
}

/// Waits until `/health` says that this is wrong with it: shards tell of themselves now and then.
#[track_caller]
fn expect_error(gateway: &Gateway, error: &str) {
    until(SOON, error, || (health(gateway)["error"] == error).then_some(()));
}

const PROBED: &str = "[upstreams.back.health]\npath = \"/\"\ninterval = \"100ms\"";

/// Waits until a probe has ended so.
#[track_caller]
fn probes_end_as(gateway: &Gateway, result: &str) {
    let series = format!("shardgate_upstream_probes_total{{upstream=\"back\",result=\"{result}\"}}");
    gateway.metrics_until(&series, |metrics| metrics.value(&series) > 0);
}

#[test]
fn a_connection_is_used_again_behind_tickets_of_either_version() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "a", &["127.0.0.1"]);
    for (driver, version) in [("epoll", VERSIONS[0]), ("epoll", VERSIONS[1]), ("io_uring", VERSIONS[1])] {
        let Some(server) = nginx(&made, version, "ssl_session_tickets on;", None) else { return };
        let instance = https(&server);
        let rest = format!("[runtime]\ndriver = \"{driver}\"");
        let gateway =
            Gateway::start(&format!("{rest}\n{}", before(std::slice::from_ref(&instance), &trusting(&made), "")));
        let mut client = gateway.connect();
        let mut connections = Vec::new();
        for number in 1..=6 {
            // In one piece: nginx answers without waiting for the body, and what comes behind an answer costs the connection.
            let body = if number % 2 == 0 { "hello" } else { "" };
            let length = body.len();
            client.send(format!("POST /tls HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"));
            let text = client.read_response().text();
            let mut words = text.split(' ');
            connections.push(words.next().expect("a number").to_owned());
            assert_eq!(words.next(), Some(&*number.to_string()), "{text}");
            assert_eq!(words.next(), Some(version), "{text}");
            assert_eq!(said(&text, "a="), "http/1.1");
            assert_eq!(said(&text, "n="), "", "an address is asked for by no name");
            assert_eq!(format!("https://{}", said(&text, "h=")), instance);
        }
        connections.dedup();
        assert_eq!(connections.len(), 1);
        let lines = gateway.access_lines(6);
        assert_eq!(lines.iter().filter(|line| line["reused"] == true).count(), 5, "{lines:?}");
        assert!(lines.iter().all(|line| line["instance"] == *instance), "{lines:?}");
        let state = gateway.ask_admin("/api/state").json();
        assert_eq!(state["upstreams"][0]["instances"][0]["instance"], *instance, "{state}");
        // On every shard there is a way to it.
        for _ in 0..40 {
            assert_eq!(gateway.get("/").text(), "ok");
        }
    }
}

#[test]
fn sessions_are_taken_up_again() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "a", &["127.0.0.1"]);
    for version in VERSIONS {
        for sessions in ["ssl_session_tickets on;", "ssl_session_tickets off; ssl_session_cache builtin;"] {
            let Some(server) = nginx(&made, version, &format!("{sessions} keepalive_timeout 0;"), None) else { return };
            let gateway = Gateway::start(&before(&[https(&server)], &trusting(&made), ""));
            let mut client = gateway.connect();
            let resumed: Vec<_> = (0..4).map(|_| said(&client.get("/tls").text(), "r=")).collect();
            assert_eq!(resumed, [".", "r", "r", "r"], "{version} {sessions}");
        }
    }
}

#[test]
fn a_name_of_the_upstream_stands_for_that_of_its_instances() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "a", &["shop.internal"]);
    let Some(server) = nginx(&made, "TLSv1.3", "", None) else { return };
    let instance = https(&server);
    let tls = format!("{}\nserver_name = \"shop.internal\"", trusting(&made));
    let gateway = Gateway::start(&before(std::slice::from_ref(&instance), &tls, ""));
    let text = gateway.get("/tls").text();
    assert_eq!(said(&text, "n="), "shop.internal");
    // What it is asked for by is the instance's own all the same.
    assert_eq!(format!("https://{}", said(&text, "h=")), instance);
    let gateway = Gateway::start(&before(&[instance], &trusting(&made), TOLD_AT_ONCE));
    assert_eq!(gateway.get("/tls").status, 502);
    expect_error(&gateway, "tls_wrong_name");
}

#[test]
fn what_is_wrong_with_a_service_is_told_and_another_answers() {
    let place = TempDir::new().expect("a directory");
    let [good, unknown, wrong] = [("good", "127.0.0.1"), ("unknown", "127.0.0.1"), ("wrong", "shop.internal")]
        .map(|(file, name)| Made::new(place.path(), file, &[name]));
    let expired = Made::expired(place.path(), "expired", &["127.0.0.1"]);
    // All but one of these are authorities of their own.
    let bundle = place.path().join("bundle.pem");
    let trusted: String =
        [&good, &wrong, &expired].map(|made| fs::read_to_string(&made.cert).expect("a certificate")).concat();
    fs::write(&bundle, trusted).expect("written");
    let Some(right) = nginx(&good, "TLSv1.3", "", None) else { return };
    let Some(plain) = WebServer::nginx() else { return };
    let closing = Backend::start(|conversation| conversation.finish());
    let servers: Vec<_> = [&unknown, &wrong, &expired].map(|made| nginx(made, "TLSv1.2 TLSv1.3", "", None)).into();
    let servers: Vec<_> = servers.into_iter().flatten().collect();
    let addresses = servers.iter().map(WebServer::address).chain([plain.address(), closing.address()]);
    let expected = [
        ("tls_unknown_authority", "of no authority that is trusted"),
        ("tls_wrong_name", "shop.internal"),
        ("tls_expired", "expired"),
        ("tls_not_spoken", "does not speak TLS"),
        ("tls_failed", "it closed the connection during the TLS handshake"),
    ];
    for (address, (class, words)) in addresses.zip(expected) {
        let tls = format!("ca_file = \"{}\"", bundle.display());
        let bad = format!("https://{address}");
        let gateway = Gateway::start(&before(std::slice::from_ref(&bad), &tls, TOLD_AT_ONCE));
        let answer = gateway.get("/");
        assert_eq!((answer.status, answer.json()["code"].clone()), (502, json!("upstream_unreachable")), "{class}");
        expect_error(&gateway, class);
        let line = gateway.access_lines(1)[0].clone();
        assert!(line["reason_detail"].as_str().is_some_and(|why| why.contains(words)), "{line}");
        assert_eq!(line["instance"], *bad);
        let failed =
            gateway.metrics().value("shardgate_upstream_requests_total{upstream=\"back\",outcome=\"tls_failed\"}");
        assert_eq!(failed, 1);
        let of_instance =
            format!("shardgate_instance_requests_total{{upstream=\"back\",address=\"{bad}\",outcome=\"tls_failed\"}}");
        gateway.metrics_until("its own count", |metrics| metrics.value(&of_instance) == 1);
        let probed = Gateway::start(&before(std::slice::from_ref(&bad), &tls, PROBED));
        probes_end_as(&probed, class);
        // Nobody was sent a byte of a request: one that is no use to repeat goes to the other as well.
        let upstream = "balance = \"round_robin\"\nretries_max = 1\noutlier_failures = 3\noutlier_ejection = \"1h\"";
        let gateway = Gateway::start(&before(&[bad, https(&right)], &tls, upstream));
        for _ in 0..40 {
            assert_eq!(gateway.connect().post("/", b"once").status, 200, "{class}");
        }
        let metrics = gateway.metrics();
        let of = |outcome: &str| {
            metrics.value(&format!("shardgate_upstream_requests_total{{upstream=\"back\",outcome=\"{outcome}\"}}"))
        };
        assert_eq!(of("answered"), 40);
        let line = gateway.log_until("an instance is left out", SOON);
        assert!(line.contains(class), "{line}");
        assert!((3..=12).contains(&of("tls_failed")), "each shard ejects it after three: {}", of("tls_failed"));
    }
}

#[test]
fn a_handshake_that_hangs_is_given_up_with_the_connection() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "a", &["127.0.0.1"]);
    let Some(still) = nginx(&made, "TLSv1.3", "", None) else { return };
    let Some(right) = nginx(&made, "TLSv1.3", "", None) else { return };
    still.stand_still();
    let upstream = "connect_timeout = \"200ms\"\nbalance = \"round_robin\"\nretries_max = 1";
    let gateway = Gateway::start(&before(&[https(&still), https(&right)], &trusting(&made), upstream));
    let mut client = gateway.connect();
    for _ in 0..4 {
        assert_eq!(client.post("/", b"once").status, 200);
    }
    let lines = gateway.access_lines(4);
    assert!(lines.iter().any(|line| line["attempts"] == 2), "{lines:?}");
    assert!(lines.iter().all(|line| line["instance"] == *https(&right)), "{lines:?}");
    let alone = format!("connect_timeout = \"200ms\"\n{TOLD_AT_ONCE}");
    let alone = Gateway::start(&before(&[https(&still)], &trusting(&made), &alone));
    assert_eq!(alone.get("/").status, 502);
    expect_error(&alone, "tls_timeout");
}

#[test]
fn services_that_ask_are_shown_a_certificate() {
    let place = TempDir::new().expect("a directory");
    let [made, own] = ["a", "gateway"].map(|file| Made::new(place.path(), file, &["127.0.0.1"]));
    let ask = format!("ssl_verify_client on; ssl_client_certificate {};", own.cert.display());
    let with = format!("{}\ncert = \"{}\"\nkey = \"{}\"", trusting(&made), own.cert.display(), own.key.display());
    for version in VERSIONS {
        let Some(server) = nginx(&made, version, &ask, None) else { return };
        let gateway = Gateway::start(&before(&[https(&server)], &with, ""));
        let text = gateway.get("/tls").text();
        assert!(said(&text, "c=").contains("rcgen"), "{text}");
        let gateway = Gateway::start(&before(&[https(&server)], &trusting(&made), ""));
        assert_eq!(gateway.get("/tls").status, 400, "nginx says so in HTTP");
    }
    // OpenSSL says so by an alert: in 1.3 only after the handshake, when the request is out.
    for (version, kept) in [("-tls1_2", "tls_failed"), ("-tls1_3", "closed")] {
        let [cert, key, ca] = [&made.cert, &made.key, &own.cert].map(|file| file.to_str().expect("text"));
        let arguments =
            ["-cert", cert, "-key", key, "-CAfile", ca, "-Verify", "1", "-verify_return_error", "-www", version];
        let Some(server) = WebServer::openssl(&arguments) else { return };
        let gateway = Gateway::start(&before(&[https(&server)], &with, "retries_max = 0"));
        let page = gateway.get("/");
        assert!(page.status == 200 && page.text().contains("Client certificate"), "{version}: {}", page.text());
        let gateway = Gateway::start(&before(&[https(&server)], &trusting(&made), TOLD_AT_ONCE));
        assert_eq!(gateway.get("/").status, 502);
        expect_error(&gateway, "tls_alert");
        let counted = format!("shardgate_upstream_requests_total{{upstream=\"back\",outcome=\"{kept}\"}}");
        assert_eq!(gateway.metrics().value(&counted), 1, "{version}");
        let gateway = Gateway::start(&before(&[https(&server)], &trusting(&made), PROBED));
        probes_end_as(&gateway, "tls_alert");
    }
}

#[test]
fn openssl_says_that_sessions_are_taken_up_again() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "a", &["127.0.0.1"]);
    let [cert, key] = [&made.cert, &made.key].map(|file| file.to_str().expect("text"));
    for tickets in ["1", "8"] {
        let arguments = ["-cert", cert, "-key", key, "-num_tickets", tickets, "-www", "-tls1_3"];
        let Some(server) = WebServer::openssl(&arguments) else { return };
        let gateway = Gateway::start(&before(&[https(&server)], &trusting(&made), ""));
        let mut client = gateway.connect();
        // Its answers end with their connections.
        let pages: Vec<_> = (0..3).map(|_| client.get("/").text()).collect();
        assert!(pages[0].contains("New, TLSv1.3"), "{}", pages[0]);
        assert!(pages[1..].iter().all(|page| page.contains("Reused, TLSv1.3")), "{}", pages[1]);
    }
}

const PYTHON: &str = r#"
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

#[test]
fn bodies_of_any_length_go_both_ways() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "a", &["127.0.0.1"]);
    let files = [&made.cert, &made.key].map(|file| file.to_str().expect("text"));
    let Some(python) = WebServer::python_by(PYTHON, &files) else { return };
    let gateway = Gateway::start(&before(&[https(&python)], &trusting(&made), ""));
    let mut client = gateway.connect();
    for bytes in [0, 1, 16 * 1024, 3_000_000, 5] {
        let body: Vec<u8> = pattern().into_iter().cycle().take(bytes).collect();
        let answer = client.post("/", &body);
        assert!(answer.status == 200 && answer.body == body, "{bytes}: {}", answer.status);
    }
    // Behind nginx a service whose downloads are streams.
    let service = Service::start();
    let Some(server) = nginx(&made, "TLSv1.3", "", Some(service.address())) else { return };
    let gateway = Gateway::start(&before(&[https(&server)], &trusting(&made), ""));
    let plain = Client::connect(service.address()).get("/download/20000000");
    assert_eq!(plain.body.len(), 20_000_000);
    for _ in 0..2 {
        assert!(gateway.get("/download/20000000").body == plain.body);
    }
}

#[test]
fn tunnels_go_to_services_over_tls() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "a", &["127.0.0.1"]);
    let echoing = Backend::start(|conversation| {
        let head = conversation.read_request()?.head;
        assert_eq!(head.field("upgrade"), Some("websocket"));
        conversation
            .send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst")?;
        conversation.read_until(b"question")?;
        conversation.send(vec![b'x'; 300_000])?;
        conversation.read_until(b"last")?;
        conversation.finish()
    });
    let Some(server) = nginx(&made, "TLSv1.3", "", Some(echoing.address())) else { return };
    let gateway = Gateway::start(&before(&[https(&server)], &trusting(&made), ""));
    let mut client = gateway.connect();
    client.send(
        "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    let head = client.read_head().expect("an answer");
    assert!(head.first_line.starts_with("HTTP/1.1 101"), "{}", head.first_line);
    client.read_until("first");
    client.send("question");
    let mut heard = 0;
    while heard < 300_000 {
        heard += client.read_some().expect("it goes on").len();
    }
    client.send("last");
    client.expect_end();
}

#[test]
fn a_request_that_went_out_is_repeated_only_where_that_is_safe() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "a", &["127.0.0.1"]);
    for version in VERSIONS {
        let Some(server) = nginx(&made, version, "", None) else { return };
        let upstream = "retries_max = 2\noutlier_failures = 0\n[upstreams.back.breaker]\npercent = 0";
        let gateway = Gateway::start(&before(&[https(&server)], &trusting(&made), upstream));
        let mut client = gateway.connect();
        assert_eq!(client.post("/gone", b"once").status, 502);
        assert_eq!(client.get("/gone").status, 502);
        let lines = gateway.access_lines(2);
        assert_eq!([&lines[0]["attempts"], &lines[1]["attempts"]], [1, 3], "{version}: {lines:?}");
    }
}

#[test]
fn other_authorities_are_trusted_when_their_file_changes_and_connections_of_the_old_trust_end() {
    let place = TempDir::new().expect("a directory");
    let [made, other] = ["a", "b"].map(|file| Made::new(place.path(), file, &["127.0.0.1"]));
    let Some(server) = nginx(&made, "TLSv1.3", "", None) else { return };
    let authorities = place.path().join("ca.pem");
    // Written beside it and renamed, as whoever is careful does.
    let trust = |made: &Made| {
        fs::copy(&made.cert, place.path().join("fresh")).expect("copied");
        fs::rename(place.path().join("fresh"), &authorities).expect("renamed");
    };
    trust(&made);
    let tls = format!("ca_file = \"{}\"", authorities.display());
    let upstream = format!("idle_timeout = \"1m\"\n{TOLD_AT_ONCE}");
    let gateway = Gateway::start(&before(&[https(&server)], &tls, &upstream));
    let mut client = gateway.connect();
    let first = client.get("/tls").text();
    assert_eq!(client.get("/tls").text().split(' ').next(), first.split(' ').next(), "it is used again");
    let changed = "the files of certificates have changed";
    trust(&other);
    gateway.log_until_nth(changed, 1, SOON);
    // Shards that answer this have been told before.
    gateway.metrics();
    // Not over the connection that was there: it is trusted no more.
    assert_eq!(client.get("/tls").status, 502);
    expect_error(&gateway, "tls_unknown_authority");
    trust(&made);
    gateway.log_until_nth(changed, 2, SOON);
    gateway.metrics();
    let answer = client.get("/tls");
    assert_eq!(answer.status, 200);
    assert_ne!(answer.text().split(' ').next(), first.split(' ').next());
    // A file that is none is refused, and those before go on.
    let mut gateway = gateway;
    gateway.expect_error("is refused, and the old ones stay");
    fs::write(&authorities, "no certificate").expect("written");
    let line = gateway.log_until("is refused, and the old ones stay", SOON);
    assert!(line.contains("upstreams.back.tls.ca_file is"), "{line}");
    assert_eq!(client.get("/tls").status, 200);
}

#[test]
fn what_is_under_way_when_the_trust_changes_ends_well_and_is_not_followed_by_another() {
    let place = TempDir::new().expect("a directory");
    let [made, other] = ["a", "b"].map(|file| Made::new(place.path(), file, &["127.0.0.1"]));
    let service = Service::start();
    let Some(server) = nginx(&made, "TLSv1.3", "", Some(service.address())) else { return };
    let config = |made: &Made| before(&[https(&server)], &trusting(made), "idle_timeout = \"1m\"");
    let gateway = Gateway::start(&config(&made));
    let mut client = gateway.connect();
    client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.metrics_until("it is under way", |metrics| {
        metrics.value("shardgate_upstream_requests_in_flight{upstream=\"back\"}") == 1
    });
    gateway.rewrite_config(&config(&other));
    gateway.signal(rustix::process::Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, SOON);
    service.release();
    assert_eq!(client.read_response().text(), "held");
    // The same shard, which would have its connection at hand.
    assert_eq!(client.get("/tls").status, 502);
}

#[test]
fn a_reload_with_another_trust_uses_it_and_keeps_connections_of_the_same() {
    let place = TempDir::new().expect("a directory");
    let [made, other] = ["a", "b"].map(|file| Made::new(place.path(), file, &["127.0.0.1"]));
    let Some(server) = nginx(&made, "TLSv1.3", "", None) else { return };
    let config = |tls: &str, more: &str| {
        before(&[https(&server)], tls, &format!("idle_timeout = \"1m\"\nrequests_max = {more}"))
    };
    let gateway = Gateway::start(&config(&trusting(&made), "100"));
    let mut client = gateway.connect();
    let connection = |client: &mut Client| client.get("/tls").text().split(' ').next().map(str::to_owned);
    let first = connection(&mut client);
    let reload = |tls: &str, more: &str, nth: usize| {
        gateway.rewrite_config(&config(tls, more));
        gateway.signal(rustix::process::Signal::HUP);
        gateway.log_until_nth("every shard runs the configuration", nth, SOON);
    };
    reload(&trusting(&made), "99", 2);
    assert_eq!(connection(&mut client), first, "nothing about it has changed");
    // Whoever is trusted without a look is trusted by something else than before.
    reload("verify = false", "99", 3);
    let second = connection(&mut client);
    assert_ne!(second, first);
    reload(&trusting(&other), "99", 4);
    assert_eq!(client.get("/tls").status, 502);
}

#[test]
fn that_nobody_is_looked_at_is_said() {
    let place = TempDir::new().expect("a directory");
    let made = Made::expired(place.path(), "a", &["elsewhere"]);
    let Some(server) = nginx(&made, "TLSv1.2 TLSv1.3", "", None) else { return };
    let config = before(&[https(&server)], "verify = false", "");
    let gateway = Gateway::start(&config);
    assert_eq!(gateway.get("/tls").status, 200);
    let warning = "upstreams.back.tls.verify is false";
    gateway.log_until_nth(warning, 1, SOON);
    assert_eq!(health(&gateway)["tls"], "unverified");
    gateway.rewrite_config(&format!("{config}\n# again\n"));
    gateway.signal(rustix::process::Signal::HUP);
    gateway.log_until_nth(warning, 2, SOON);
    let output = check(place.path(), &config);
    assert!(output.contains(warning), "{output}");
    let trusted = before(&[https(&server)], &trusting(&made), "");
    assert!(!check(place.path(), &trusted).contains("verify"), "{output}");
    let gateway = Gateway::start(&trusted);
    assert_eq!(health(&gateway)["tls"], json!(null));
}

/// What `shardgate check` says of a configuration.
fn check(place: &Path, config: &str) -> String {
    fs::write(place.join("check.toml"), config).expect("written");
    let output = shardgate(place).args(["check", "check.toml"]).output().expect("it runs");
    let files = ["stdout.log", "stderr.log"].map(|file| fs::read_to_string(place.join(file)).unwrap_or_default());
    format!("{}{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr), files.concat())
}

#[test]
fn plain_instances_and_those_over_tls_share_an_upstream_and_a_file_may_list_both() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "a", &["127.0.0.1"]);
    let Some(server) = nginx(&made, "TLSv1.3", "", None) else { return };
    let mut plain = Backend::ok();
    let listing = place.path().join("shop.json");
    let instances = json!({ "instances": [https(&server), { "address": plain.address().to_string() }] });
    fs::write(&listing, instances.to_string()).expect("written");
    let gateway = Gateway::start(&format!(
        "[runtime]\nshards = 1\n[[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n\
         [upstreams.back]\nbalance = \"round_robin\"\n[upstreams.back.discover]\nfile = \"{}\"\n\
         [upstreams.back.tls]\n{}\n",
        listing.display(),
        trusting(&made)
    ));
    let texts: Vec<_> = (0..8).map(|_| gateway.get("/tls").text()).collect();
    assert_eq!(texts.iter().filter(|text| text.contains("TLSv1.3")).count(), 4, "{texts:?}");
    assert_eq!(plain.requests().len(), 4);
}

#[test]
fn probes_go_over_tls_and_say_why_they_fail() {
    let place = TempDir::new().expect("a directory");
    let [made, other] = ["a", "b"].map(|file| Made::new(place.path(), file, &["127.0.0.1"]));
    let Some(right) = nginx(&made, "TLSv1.3", "", None) else { return };
    let Some(wrong) = nginx(&other, "TLSv1.3", "", None) else { return };
    let probes = "[upstreams.back.health]\npath = \"/tls\"\ninterval = \"100ms\"\ndown_after = 1";
    let gateway = Gateway::start(&before(&[https(&right), https(&wrong)], &trusting(&made), probes));
    let series = |result: &str| format!("shardgate_upstream_probes_total{{upstream=\"back\",result=\"{result}\"}}");
    gateway.metrics_until("both are asked", |metrics| {
        metrics.value(&series("good")) > 0 && metrics.value(&series("tls_unknown_authority")) > 0
    });
    let state = until(SOON, "they are told apart", || {
        let state = gateway.ask_admin("/api/state").json();
        let instances = state["upstreams"][0]["instances"].as_array().cloned().unwrap_or_default();
        let told = |server: &WebServer| {
            let instance = instances.iter().find(|instance| instance["instance"] == *https(server));
            instance.map(|instance| (instance["status"].clone(), instance["why"].clone()))
        };
        let both = (told(&right)?, told(&wrong)?);
        (both.0.0 == "up" && both.1.0 == "down").then_some(both)
    });
    assert_eq!(state.1.1, "tls_unknown_authority");
    gateway.log_until("an instance is down: its probes fail", SOON);
    for _ in 0..20 {
        assert_eq!(gateway.get("/").status, 200);
    }
    // Of a connection no more is asked than that it opens.
    let tcp = "[upstreams.back.health]\nkind = \"tcp\"\ninterval = \"100ms\"";
    let gateway = Gateway::start(&before(&[https(&wrong)], &trusting(&made), tcp));
    gateway.metrics_until("it is asked", |metrics| metrics.value(&series("good")) > 0);
}

#[test]
fn the_systems_authorities_are_those_of_its_variables() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "a", &["127.0.0.1"]);
    let Some(server) = nginx(&made, "TLSv1.3", "", None) else { return };
    let config = before(&[https(&server)], "", "");
    let trusted = Gateway::start_as(&config, |command| {
        command.env("SSL_CERT_FILE", &made.cert);
    });
    assert_eq!(trusted.get("/tls").status, 200);
    let output = check(place.path(), &config);
    assert!(!output.contains("upstreams.back.tls"), "{output}");
}

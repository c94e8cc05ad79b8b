//! Several public listeners: each shard accepts from all of them, and they open, drain and fail together.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;

use super::shards::with_shards;
use crate::{
    harness::{Client, Gateway, shardgate, until},
    service::Service,
};

const SOON: Duration = Duration::from_secs(10);

/// Further listeners on these ports.
fn further(ports: &[u16]) -> String {
    let listener = |port: &u16| format!("[[listeners]]\naddress = \"127.0.0.1\"\nport = {port}\nkind = \"plain\"\n");
    ports.iter().map(listener).collect()
}

/// Where the gateway listens, as it says at its start.
fn addresses(gateway: &Gateway) -> Vec<SocketAddr> {
    let line = gateway.log_until("listening on ", SOON);
    let line: serde_json::Value = serde_json::from_str(&line).expect("a line of the log");
    let [message, field] = ["message", "address"].map(|name| line[name].as_str().expect("it has both"));
    let addresses = message.strip_prefix("listening on ").expect("it begins with that");
    assert_eq!(addresses.replace(" and ", ", "), field);
    addresses.split(" and ").map(|address| address.parse().expect("an address")).collect()
}

/// Connects to one listener after the other and asks each connection once; returns listener, shard and connection, as the
/// access log has them.
fn connect(gateway: &Gateway, listeners: &[SocketAddr], count: usize) -> Vec<(usize, u64, Client)> {
    let clients = (0..count).map(|index| Client::connect(listeners[index % listeners.len()])).collect();
    let clients = with_shards(gateway, clients).into_iter().enumerate();
    clients.map(|(index, (shard, client))| (index % listeners.len(), shard, client)).collect()
}

#[test]
fn connections_of_every_listener_land_on_every_shard() {
    for driver in ["epoll", "io_uring"] {
        let service = Service::start();
        let config = format!("[runtime]\ndriver = \"{driver}\"\n{}", further(&[0, 0]));
        let gateway = Gateway::start(&service.config(&config));
        let listeners = addresses(&gateway);
        assert_eq!((listeners.len(), listeners[0]), (3, gateway.address()));
        let clients = connect(&gateway, &listeners, 300);
        for listener in 0..3 {
            for shard in 0..4 {
                let count = clients.iter().filter(|client| (client.0, client.1) == (listener, shard)).count();
                assert!(count > 0, "none of listener {listener} is on shard {shard} ({driver})");
            }
        }
        assert_eq!(gateway.metrics().sum("shardgate_connections_accepted_total"), 300);
    }
}

#[test]
fn a_connection_that_is_handed_over_stays_of_its_listener() {
    let service = Service::start();
    let gateway = Gateway::start(&service.config(&further(&[0])));
    let listeners = addresses(&gateway);
    let mut kept = connect(&gateway, &listeners[1..], 160);
    kept.retain(|(_, shard, _)| *shard == 3);
    let held = i64::try_from(kept.len()).expect("few");
    gateway.metrics_until("the others are closed", |metrics| metrics.sum("shardgate_connections_open") == held);
    let mut fresh: Vec<_> = (0..60).map(|_| Client::connect(listeners[1])).collect();
    for client in &mut fresh {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(gateway.metrics().sum("shardgate_connections_handed_over_total") > 0);
}

#[test]
fn a_drain_closes_every_listener() {
    let service = Service::start();
    let mut gateway = Gateway::start(&service.config(&format!("[drain]\nnotice = \"0s\"\n{}", further(&[0]))));
    let listeners = addresses(&gateway);
    let mut idle: Vec<_> = listeners.iter().map(|address| Client::connect(*address)).collect();
    let mut held: Vec<_> = listeners.iter().map(|address| Client::connect(*address)).collect();
    for client in &mut idle {
        assert_eq!(client.get("/").status, 200);
    }
    for client in &mut held {
        client.send("GET /held HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    gateway.metrics_until("both are under way", |metrics| metrics.sum("shardgate_requests_in_flight") >= 2);
    gateway.signal(Signal::TERM);
    idle.iter_mut().for_each(Client::expect_end);
    for address in &listeners {
        until(SOON, "connections are refused", || TcpStream::connect(address).is_err().then_some(()));
    }
    assert!(gateway.has_exited().is_none(), "requests are under way");
    service.release();
    for client in &mut held {
        let response = client.read_response();
        assert_eq!((response.text().as_str(), response.field("connection")), ("held", Some("close")));
        client.expect_end();
    }
    assert_eq!(gateway.wait_exit(SOON), Some(0));
}

#[test]
fn a_service_is_told_what_the_connection_speaks() {
    let backend = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let instance = backend.local_addr().expect("it is bound");
    let route = "[[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n";
    let config = format!("{}[upstreams.back]\ninstances = [\"{instance}\"]\n{route}", further(&[0]));
    let gateway = Gateway::start(&config);
    for address in addresses(&gateway) {
        let mut client = Client::connect(address);
        client.send("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-proto: https\r\n\r\n");
        let mut service = Client::new(backend.accept().expect("the gateway connects").0);
        let head = service.read_head().expect("a request");
        assert_eq!(head.field("x-forwarded-proto"), Some("http"), "whatever the client says of itself");
        service.send("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        assert_eq!(client.read_response().status, 204);
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let first = Gateway::start(&further(&[0]));
    let taken = addresses(&first);
    for (index, address) in taken.iter().enumerate() {
        let mut second = Gateway::launch(&further(&[0, address.port()]), |_| {});
        assert_eq!(second.wait_exit(SOON), Some(1));
        let log = second.log();
        let complaint = log.lines().find(|line| line.starts_with("shardgate: ")).unwrap_or_default();
        let wanted = format!("cannot listen on 127.0.0.1 port {}: ", address.port());
        assert!(complaint.contains(&wanted) && complaint.contains("listeners[1].port"), "{index}: {log}");
        assert!(complaint.contains("second gateway") && !log.contains("listening on"), "{index}: {log}");
    }
    for address in &taken {
        assert_eq!(Client::connect(*address).get("/health/live").status, 200);
    }
}

#[test]
fn a_reload_leaves_the_listeners_as_they_are_and_says_so() {
    const APPLIED: &str = "every shard runs the configuration";
    let service = Service::start();
    let gateway = Gateway::start(&service.config(&further(&[0])));
    gateway.log_until(APPLIED, SOON);
    let listeners = addresses(&gateway);
    gateway.rewrite_config(&service.config(""));
    gateway.signal(Signal::HUP);
    let told = gateway.log_until("these keys are applied by a restart only", SOON);
    assert!(told.contains("\"keys\":\"listeners\""), "{told}");
    gateway.log_until_nth(APPLIED, 2, SOON);
    for address in listeners {
        assert_eq!(Client::connect(address).get("/").status, 200);
    }
}

#[test]
fn check_knows_all_of_them() {
    let directory = TempDir::new().expect("a temporary directory");
    let upstream = "[upstreams.a]\ninstances = [\"127.0.0.1:8081\"]\n[[routes]]\npath = \"/*\"\nupstream = \"a\"\n";
    fs::write(directory.path().join("a.toml"), further(&[8080, 8081]) + upstream).expect("written");
    let mut command = shardgate(directory.path());
    let output = command.args(["check", "a.toml"]).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.expect("it runs");
    let [told, warned] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let listeners = "listens on 0.0.0.0:3000 and 127.0.0.1:8080 and 127.0.0.1:8081";
    assert_eq!(told, format!("a.toml: no mistakes; 1 route, 1 upstream; {listeners}\n"), "{warned}");
    assert!(warned.contains("127.0.0.1:8081 is the gateway's own listener"), "{warned}");
}

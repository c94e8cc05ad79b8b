//! Shards and their listeners: every one works, none is overloaded while another idles, and limits hold.

use std::{fs, net::TcpListener, time::Duration};

use rustix::process::{Resource, Rlimit, prlimit};

use crate::{
    harness::{Client, Gateway, now, pause, until},
    service::Service,
};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn connections_land_on_every_shard_with_both_drivers() {
    for driver in ["epoll", "io_uring"] {
        let service = Service::start();
        let gateway = Gateway::start(&service.config(&format!("[runtime]\ndriver = \"{driver}\"\n")));
        let line = gateway.log_until("listening on ", SOON);
        if !line.contains(&format!("\"driver\":\"{driver}\"")) {
            eprintln!("skipped: the kernel refuses {driver}: {line}");
            continue;
        }
        let body = vec![7; 100_000];
        let mut clients: Vec<_> = (0..64).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.get("/").text(), "hello\n");
            assert_eq!(client.post("/echo", &body).body, body);
        }
        let metrics = gateway
            .metrics_until("all requests are counted", |metrics| metrics.sum("shardgate_shard_requests_total") >= 128);
        let (open, requests) =
            (metrics.by_shard("shardgate_connections_open"), metrics.by_shard("shardgate_shard_requests_total"));
        assert_eq!((open.len(), open.iter().sum::<i64>()), (4, 64), "{open:?}");
        assert!(open.iter().all(|&count| count > 0), "{open:?}");
        assert!(requests.iter().all(|&count| count > 0), "{requests:?}");
        drop(clients);
        gateway.metrics_until("all are closed", |metrics| metrics.sum("shardgate_connections_open") == 0);
    }
}

/// Connects and asks once, and learns from the access log which shard has the connection.
fn connect_to_shards(gateway: &Gateway, count: usize) -> Vec<(u64, Client)> {
    with_shards(gateway, (0..count).map(|_| gateway.connect()).collect())
}

/// Asks each of these connections once, and returns them with the shard that has each, as the access log tells.
pub(super) fn with_shards(gateway: &Gateway, mut clients: Vec<Client>) -> Vec<(u64, Client)> {
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: connection-{index}\r\n\r\n"));
        assert_eq!(client.read_response().status, 200);
    }
    let lines = gateway.access_lines(clients.len());
    let shard_of = |index: usize| {
        let id = format!("connection-{index}");
        let line = lines.iter().find(|line| line["request_id"] == id.as_str()).expect("its request is in the log");
        line["shard"].as_u64().expect("a number")
    };
    clients.into_iter().enumerate().map(|(index, client)| (shard_of(index), client)).collect()
}

#[test]
fn a_shard_with_too_many_connections_hands_fresh_ones_over() {
    let service = Service::start();
    let gateway = Gateway::start(&service.config(""));
    let mut kept = connect_to_shards(&gateway, 160);
    kept.retain(|(shard, _)| *shard == 3);
    let held = i64::try_from(kept.len()).expect("few");
    assert!(held > 17, "the kernel spreads connections: shard 3 got {held}");
    gateway.metrics_until("the others are closed", |metrics| metrics.sum("shardgate_connections_open") == held);
    let mut fresh: Vec<_> = (0..60).map(|_| gateway.connect()).collect();
    for client in &mut fresh {
        assert_eq!(client.get("/").status, 200);
    }
    let metrics = gateway.metrics();
    let handed = metrics.by_shard("shardgate_connections_handed_over_total");
    assert!(metrics.sum("shardgate_connections_handed_over_total") > 0, "{handed:?}");
    assert_eq!(metrics.sum("shardgate_connections_open"), held + 60);
    for (_, client) in &mut kept {
        assert_eq!(client.get("/").status, 200, "those that were there stay where they are");
    }
}

#[test]
fn past_the_limit_clients_are_told_and_the_others_notice_nothing() {
    let service = Service::start();
    let gateway = Gateway::start(&service.config("[listener]\nconnections_max = 8\n"));
    let mut served: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    for client in &mut served {
        assert_eq!(client.get("/").status, 200);
    }
    for _ in 0..4 {
        let mut refused = gateway.connect();
        let response = refused.read_response();
        assert_eq!((response.status, response.json()["code"].as_str()), (503, Some("overloaded")));
        assert_eq!(response.field("connection"), Some("close"));
        assert!(response.field("retry-after").is_some(), "{response:?}");
        assert_eq!(response.field("content-type"), Some("application/problem+json"));
        assert!(response.field("x-request-id").is_some_and(|id| id.len() >= 8), "{response:?}");
        assert_eq!(response.json()["requestId"].as_str(), response.field("x-request-id"));
        refused.expect_end();
    }
    for client in &mut served {
        assert_eq!(client.get("/").status, 200);
    }
    let metrics = gateway.metrics();
    assert_eq!(metrics.value("shardgate_connections_refused_total{reason=\"limit\"}"), 4);
    assert_eq!(metrics.value("shardgate_rejects_total{code=\"overloaded\"}"), 4);
    drop(served.pop());
    gateway.metrics_until("there is room", |metrics| metrics.sum("shardgate_connections_open") == 7);
    assert_eq!(gateway.get("/").status, 200);
}

#[test]
fn a_port_that_is_taken_is_a_loud_failure() {
    let first = Gateway::start("");
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let ports = [first.address().port(), other.local_addr().expect("it is bound").port()];
    for port in ports {
        for address in ["127.0.0.1", "0.0.0.0"] {
            let config = format!("[listener]\naddress = \"{address}\"\nport = {port}\n");
            let mut second = Gateway::launch(&config, |_| {});
            assert_eq!(second.wait_exit(SOON), Some(1), "{address}");
            let log = second.log();
            let complaint = log.lines().find(|line| line.starts_with("shardgate: ")).unwrap_or_default();
            assert!(
                complaint.contains(&format!("port {port}"))
                    && complaint.contains("listener.port (SHARDGATE_LISTENER_PORT)"),
                "{log}"
            );
        }
    }
    assert_eq!(first.get("/health/live").status, 200);
    let mut second = Gateway::launch(&format!("[admin]\nport = {}\n", first.admin().port()), |_| {});
    assert_eq!(second.wait_exit(SOON), Some(1));
    assert!(second.log().contains("admin.port"), "{}", second.log());
}

/// Processor time that the gateway has used, in ticks of a hundredth of a second.
fn processor_ticks(gateway: &Gateway) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).expect("the gateway runs");
    // The name in the second field may hold anything; what follows it is plain.
    let fields = stat.rsplit_once(") ").expect("the name is in brackets").1.split(' ');
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

#[test]
fn running_out_of_descriptors_is_survived_without_spinning() {
    const BURST: usize = 200;
    for driver in ["epoll", "io_uring"] {
        let service = Service::start();
        let config = format!("[runtime]\ndriver = \"{driver}\"\n[listener]\nconnections_max = 100000\n");
        let gateway = Gateway::start(&service.config(&config));
        let mut early: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
        for client in &mut early {
            assert_eq!(client.get("/health/live").status, 200);
        }
        let used = fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("the gateway runs").count() as u64;
        let limit = |current| Rlimit { current: Some(current), maximum: None };
        let before =
            prlimit(Some(gateway.process()), Resource::Nofile, Rlimit { maximum: hard_limit(), ..limit(used + 40) });
        before.expect("the gateway is ours");
        let burst: Vec<_> = (0..BURST).map(|_| gateway.connect()).collect();
        gateway.log_until("cannot accept", SOON);
        let (ticks, began) = (processor_ticks(&gateway), now());
        let window = Duration::from_secs(2);
        while began.elapsed() < window {
            for client in &mut early {
                assert_eq!(client.get("/health/live").status, 200, "those that are in are served");
            }
            pause(Duration::from_millis(50));
        }
        let spent = processor_ticks(&gateway) - ticks;
        // Spinning on one shard alone would be 200.
        assert!(spent < 80, "{spent} hundredths of a second in {window:?} with nothing to do");
        drop(burst);
        until(SOON, "fresh connections are served", || {
            let mut client = gateway.connect().with_patience(Duration::from_secs(2));
            client.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").ok()?;
            client.try_read_response("GET").ok().filter(|response| response.status == 200)
        });
        gateway.metrics_until("the burst is over", |metrics| metrics.sum("shardgate_connections_open") <= 9);
        let metrics = gateway.metrics();
        assert!(metrics.sum("shardgate_accept_errors_total") > 0);
        assert!(metrics.value("shardgate_connections_refused_total{reason=\"descriptors\"}") > 0);
    }
}

fn hard_limit() -> Option<u64> {
    rustix::process::getrlimit(Resource::Nofile).maximum
}

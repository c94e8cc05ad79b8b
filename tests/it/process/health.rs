//! Health, as balancers and operators ask for it on both listeners.

use std::{net::TcpListener, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    backend::{Backend, OK},
    harness::{Client, Gateway, Response, pause, until},
    service::Service,
};

/// Both listeners' answers.
fn both(gateway: &Gateway, path: &str) -> [Response; 2] {
    [gateway.get(path), gateway.ask_admin(path)]
}

#[test]
fn a_fresh_gateway_is_alive_ready_and_healthy() {
    let service = Service::start();
    let address = service.address();
    let gateway = Gateway::start(&format!("[upstreams.ai-engine]\ninstances = [\"{address}\"]\n"));
    gateway.log_until("every shard runs the configuration", Duration::from_secs(10));
    for response in both(&gateway, "/health/live") {
        assert_eq!((response.status, &response.json()["status"]), (200, &Value::from("up")));
    }
    // The shards have told that they are ready; the page that says so is on its way to them.
    until(Duration::from_secs(5), "it is ready", || {
        both(&gateway, "/health/ready").iter().all(|response| response.status == 200).then_some(())
    });
    for response in both(&gateway, "/health") {
        let document = response.json();
        assert_eq!(response.status, 200, "{document}");
        assert_eq!(response.field("content-type"), Some("application/json"));
        assert_eq!(document["status"], "healthy", "{document}");
        assert_eq!(document["version"], env!("CARGO_PKG_VERSION"));
        assert!(document["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{document}");
        assert!(document["uptimeSeconds"].is_u64(), "{document}");
        for name in ["ingestion", "prediction", "aiEngine"] {
            let entry = &document["services"][name];
            // Nobody has asked them for anything, and they are not probed: nothing is known of them.
            assert_eq!(entry["status"], "disabled", "{name}: {document}");
            assert_eq!(entry["instances"], serde_json::json!({"healthy": 0, "total": 1}), "{name}: {document}");
            assert_eq!(entry["circuit"], "closed");
            assert!(entry["latencyMs"].is_null() && entry["checkedAt"].is_null(), "{entry}");
        }
        for name in ["redis", "postgres", "clickhouse"] {
            assert_eq!(document["services"]["databases"][name]["status"], "disabled", "{document}");
        }
    }
}

#[test]
fn an_instance_that_refuses_is_down_and_the_class_says_why() {
    // A port that was just free and is nobody's now.
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let service = Service::start();
    let config = format!(
        "[upstreams.dead]\ninstances = [\"{nobody}\"]\noutlier_failures = 1\noutlier_percent_max = 100\n\
         [upstreams.alive]\ninstances = [\"{}\"]\n\
         [[routes]]\naccess = \"public\"\npath = \"/dead\"\nupstream = \"dead\"\n[[routes]]\naccess = \"public\"\npath = \"/alive\"\nupstream = \"alive\"\n",
        service.address()
    );
    let gateway = Gateway::start(&config);
    let refused = gateway.get("/dead");
    assert_eq!((refused.status, refused.json()["code"].as_str()), (502, Some("upstream_unreachable")));
    assert_eq!(gateway.get("/alive").status, 200);
    let document = until(Duration::from_secs(10), "the upstream is down", || {
        let [public, admin] = both(&gateway, "/health").map(|response| response.json());
        let status = |document: &Value, name: &str| document["services"][name]["status"].clone();
        // They were asked on two shards, and each tells for itself.
        let are = |document: &Value| status(document, "dead") == "down" && status(document, "alive") == "up";
        (are(&public) && are(&admin)).then_some(public)
    });
    assert_eq!(document["services"]["dead"]["error"], "refused", "{document}");
    assert_eq!(document["status"], "degraded");
    assert_eq!(gateway.get("/health").status, 200);
    for response in both(&gateway, "/health/ready") {
        assert_eq!(response.status, 200, "readiness is not about upstreams");
    }
}

#[test]
fn a_reload_or_a_scrape_never_looks_like_an_outage() {
    let service = Service::start();
    let gateway = Gateway::start(&service.config(""));
    gateway.log_until("every shard runs the configuration", Duration::from_secs(10));
    assert_eq!(gateway.get("/x").status, 200);
    let is_up = |response: &Response| response.json()["services"]["sample"]["status"] == "up";
    until(Duration::from_secs(10), "it is known", || both(&gateway, "/health").iter().all(is_up).then_some(()));
    for reload in 0..10 {
        gateway.rewrite_config(&service.config(&format!("[http]\nfields_max = {}\n", 50 + reload)));
        gateway.signal(Signal::HUP);
        gateway.log_until_nth("configuration reloaded", reload + 1, Duration::from_secs(10));
        let scraping = std::thread::scope(|scope| {
            let scrapes = scope.spawn(|| (0..5).for_each(|_| drop(gateway.metrics())));
            for _ in 0..10 {
                for response in both(&gateway, "/health") {
                    assert_eq!(response.status, 200, "{}", response.text());
                    assert!(is_up(&response), "{}", response.text());
                }
            }
            scrapes.join()
        });
        scraping.expect("scrapes are answered");
    }
}

#[test]
fn the_latency_begins_with_the_first_answer() {
    const TAKES: Duration = Duration::from_millis(200);
    let backend = Backend::start(|conversation| {
        conversation.read_request()?;
        pause(TAKES);
        conversation.send(OK)
    });
    let config = format!(
        "[upstreams.slow]\ninstances = [\"{}\"]\n[[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"slow\"\n",
        backend.address()
    );
    let gateway = Gateway::start(&config);
    let latency_ms = || gateway.ask_admin("/health").json()["services"]["slow"]["latencyMs"].as_f64();
    assert_eq!(latency_ms(), None, "nobody has asked it");
    assert_eq!(gateway.get("/x").status, 200);
    // An average that began at nothing would have come to an eighth of it.
    let told = until(Duration::from_secs(10), "it is told", || latency_ms().filter(|latency| *latency > 0.0));
    assert!(told >= 200.0, "{told} ms");
}

#[test]
fn a_scrape_counts_what_was_answered_before_it() {
    let service = Service::start();
    let gateway = Gateway::start(&service.config(""));
    let mut clients: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    for asked in 1..=100 {
        for client in &mut clients {
            assert_eq!(client.get("/health/live").status, 200);
        }
        let counted = gateway.metrics().sum("shardgate_requests_total");
        assert_eq!(counted, asked * 8, "the answers were here before the scrape began");
    }
}

#[test]
fn the_operators_listener_answers_to_its_own_names_only() {
    let gateway = Gateway::start("");
    let port = gateway.admin().port();
    let ask = |host: &str, path: &str| {
        let mut client = Client::connect(gateway.admin());
        client.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"));
        client.read_response().status
    };
    for path in ["/metrics", "/health", "/health/live", "/health/ready"] {
        assert_eq!(ask("localhost", path), 200);
        assert_eq!(ask(&format!("127.0.0.1:{port}"), path), 200);
        for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""] {
            assert_eq!(ask(host, path), 403, "{host}");
        }
    }
    assert_eq!(ask("localhost", "/nowhere"), 404);
    let mut client = Client::connect(gateway.admin());
    client.send("POST /metrics HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
    let response = client.read_response();
    assert_eq!((response.status, response.field("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn metrics_are_not_for_the_public() {
    let gateway = Gateway::start("");
    let response = gateway.get("/metrics");
    assert_eq!((response.status, response.json()["code"].as_str()), (404, Some("not_found")));
}

#[test]
fn metrics_are_for_those_who_may_read_them() {
    let service = Service::start();
    // The route takes every path, and `/metrics` where it is the gateway's own is not its.
    let config = |rest: &str| service.config(&format!("[metrics]\nallow = [\"127.0.0.2/32\"]\n{rest}"));
    let gateway = Gateway::start(&config(""));
    let from = |address: &str| {
        Client::connect_from(address.parse().expect("an address"), gateway.address()).expect("it connects")
    };
    // On connections that land on several shards, each of which asks the control thread.
    for nth in 1..=20 {
        let mut client = from("127.0.0.2");
        assert_eq!(client.get("/health/live").status, 200);
        let page = client.get("/metrics");
        assert_eq!(page.status, 200, "{page:?}");
        assert_eq!(page.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let text = page.text();
        let lives =
            text.lines().filter(|line| line.starts_with("shardgate_requests_total{") && line.contains("/health/live"));
        let counted: i64 = lives.filter_map(|line| line.rsplit(' ').next()?.parse::<i64>().ok()).sum();
        assert_eq!(counted, nth, "all shards' requests, to the last one:\n{text}");
    }
    let response = from("127.0.0.3").get("/metrics");
    assert_eq!((response.status, response.json()["code"].as_str()), (404, Some("not_found")));
    // Behind a proxy that is trusted it is the client who counts.
    gateway.rewrite_config(&config("[trust]\nproxies = [\"127.0.0.2/32\"]\n"));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, Duration::from_secs(10));
    let mut proxy = from("127.0.0.2");
    proxy.send("GET /metrics HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 203.0.113.7\r\n\r\n");
    assert_eq!(proxy.read_response().status, 404);
    assert_eq!(proxy.get("/metrics").status, 200);
}

//! Instances that requests find unwell, and a service of which nothing is left: who is left out, when the circuit opens, and
//! how both come back.
#![expect(clippy::disallowed_types, reason = "a service is told from another thread what to do from now on")]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use super::{Setup, expect_refusal, outcomes::nobody, probes::Crowd, probes::Process};
use crate::{
    backend::{Backend, OK},
    harness::{Gateway, now, pause, until},
};

const SOON: Duration = Duration::from_secs(15);
/// Requests in one go. Each has a connection of its own, so that in the end they land on all shards.
const REQUESTS: usize = 32;
const SHARDS: i64 = 4;

fn gauge(gateway: &Gateway, name: &str) -> i64 {
    gateway.metrics().value(&format!("shardgate_upstream_{name}{{upstream=\"back\"}}"))
}

fn entry(gateway: &Gateway) -> Value {
    gateway.ask_admin("/health").json()["services"]["back"].clone()
}

/// The same as the dashboard is told.
fn state(gateway: &Gateway) -> Value {
    gateway.ask_admin("/api/state").json()["upstreams"][0].clone()
}

/// How requests in one go are answered.
fn ask(gateway: &Gateway) -> Vec<u16> {
    (0..REQUESTS).map(|_| gateway.get("/x").status).collect()
}

fn of_status(statuses: &[u16], wanted: u16) -> usize {
    statuses.iter().filter(|status| **status == wanted).count()
}

#[test]
fn one_that_answers_500_to_half_is_out_by_share_on_all_shards_and_back() {
    let is_ill = Arc::new(AtomicBool::new(true));
    let count = Mutex::new(0_u32);
    let ill = Arc::clone(&is_ill);
    let mut half = Backend::answering(move |_| {
        let mut count = count.lock().expect("it is whole");
        *count += 1;
        if ill.load(Ordering::Relaxed) && (*count).is_multiple_of(2) {
            return b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".as_slice();
        }
        OK
    });
    let (one, other) = (Backend::ok(), Backend::ok());
    let upstream =
        "outlier_statuses = \"500-599\"\noutlier_requests_min = 10\noutlier_ejection = \"3s\"\nretries_max = 0";
    let instances = [half.address(), one.address(), other.address()];
    let gateway = Setup { upstream, ..Setup::default() }.start(&instances);
    until(SOON, "every shard leaves it out", || {
        ask(&gateway);
        (gauge(&gateway, "instances_ejected") == SHARDS).then_some(())
    });
    let line = gateway.log_until("an instance is left out", SOON);
    let address = half.address().to_string();
    assert!(line.contains("share of failures") && line.contains(&address), "{line}");
    let entry = entry(&gateway);
    assert_eq!((&entry["status"], &entry["circuit"]), (&Value::from("degraded"), &Value::from("closed")), "{entry}");
    half.requests();
    let failed: usize = (0..4).map(|_| of_status(&ask(&gateway), 500)).sum();
    // Where its time is over meanwhile, a shard lets one request try it.
    let tried = half.requests().len();
    assert!(tried <= 8 && failed <= tried, "{tried} went to it, {failed} failed");

    is_ill.store(false, Ordering::Relaxed);
    until(SOON, "every shard uses it again", || {
        ask(&gateway);
        (gauge(&gateway, "instances_ejected") == 0).then_some(())
    });
    gateway.log_until("an instance is used again", SOON);
    half.requests();
    let well: usize = (0..8).map(|_| of_status(&ask(&gateway), 200)).sum();
    let taken = half.requests().len();
    assert_eq!(well, 8 * REQUESTS);
    assert!(taken >= well / 10, "{taken} of {well}");
}

#[test]
fn where_all_answer_alike_none_is_left_out_and_the_circuit_stays_closed() {
    let failing = || {
        let count = Mutex::new(0_u32);
        Backend::answering(move |_| {
            let mut count = count.lock().expect("it is whole");
            *count += 1;
            if (*count).is_multiple_of(2) { b"HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n".as_slice() } else { OK }
        })
    };
    let backends = [failing(), failing(), failing()];
    let instances = backends.each_ref().map(Backend::address);
    let upstream = "outlier_requests_min = 10\nretries_max = 0";
    let gateway = Setup { upstream, rest: "[runtime]\nshards = 1", ..Setup::default() }.start(&instances);
    let mut client = gateway.connect();
    let failed = (0..300).filter(|_| client.get("/x").status == 503).count();
    assert!((147..=150).contains(&failed), "what they answer is passed on: {failed}");
    assert_eq!((gauge(&gateway, "ejections_total"), gauge(&gateway, "circuit_refused_total")), (0, 0));
}

/// When requests came, and how many there were at once then.
type AtOnce = Mutex<Vec<(Duration, usize)>>;

/// A service that tells how many requests it had at once when each came.
fn counting(address: SocketAddr, at_once: Arc<AtOnce>) -> Backend {
    let under_way = Mutex::new(0_usize);
    let began = now();
    Backend::start_at(address, move |conversation| {
        loop {
            conversation.read_request()?;
            {
                let mut under_way = under_way.lock().expect("it is whole");
                *under_way += 1;
                at_once.lock().expect("it is whole").push((began.elapsed(), *under_way));
            }
            pause(Duration::from_millis(50));
            *under_way.lock().expect("it is whole") -= 1;
            conversation.send(OK)?;
        }
    })
}

#[test]
fn when_all_refuse_the_circuit_opens_and_closes_without_a_burst() {
    let address = nobody();
    let upstream = "retries_max = 0\noutlier_failures = 0";
    let rest = "[upstreams.back.breaker]\nrequests_min = 5\nopen_for = \"1s\"";
    let gateway = Setup { upstream, rest, ..Setup::default() }.start(&[address]);
    // On one connection, so on one shard.
    let mut client = gateway.connect();
    for _ in 0..5 {
        expect_refusal(&client.get("/x"), 502, "upstream_unreachable");
    }
    let refused = client.get("/x");
    expect_refusal(&refused, 503, "circuit_open");
    assert_eq!(refused.field("retry-after"), Some("1"), "the next one tries within a second");
    gateway.log_until("the circuit is open", SOON);
    let mut seen = Vec::new();
    until(SOON, "every shard's circuit is open", || {
        seen.extend(ask(&gateway));
        (gauge(&gateway, "circuit_open_shards") == SHARDS).then_some(())
    });
    assert!(of_status(&seen, 502) > 0 && of_status(&seen, 502) + of_status(&seen, 503) == seen.len(), "{seen:?}");
    let entry = entry(&gateway);
    assert!(["open", "half_open"].contains(&entry["circuit"].as_str().expect("a word")), "{entry}");
    assert_ne!(entry["status"], "up");
    let told = state(&gateway);
    assert_eq!((told["circuit"] == "closed", &told["circuitShards"]), (false, &Value::from(SHARDS)), "{told}");

    let at_once = Arc::default();
    let backend = counting(address, Arc::clone(&at_once));
    let crowd = Crowd::start(&gateway);
    until(SOON, "every circuit is closed", || {
        ask(&gateway);
        (state(&gateway)["circuitShards"] == 0).then_some(())
    });
    let (answered, failed) = crowd.end();
    assert!(answered > 0 && failed.iter().all(|status| [502, 503].contains(status)), "{answered}: {failed:?}");
    gateway.log_until("the circuit is closed again", SOON);
    let at_once = at_once.lock().expect("it is whole").clone();
    let first = at_once.first().expect("one came").0;
    // Each shard waits for the end of its first request before it lets a second one go.
    let most = at_once.iter().filter(|(at, _)| *at < first + Duration::from_millis(40)).map(|(_, count)| *count).max();
    assert!(most.is_some_and(|most| most <= 4), "{most:?} at once when it came back");
    assert_eq!(of_status(&ask(&gateway), 200), REQUESTS);
    assert_eq!(self::entry(&gateway)["circuit"], "closed");
    let told = state(&gateway);
    assert_eq!((&told["circuit"], &told["circuitShards"]), (&Value::from("closed"), &Value::from(0)), "{told}");
    drop(backend);
}

#[test]
fn clients_that_leave_do_not_keep_the_circuit_from_trying() {
    let is_there = Arc::new(AtomicBool::new(false));
    let there = Arc::clone(&is_there);
    let backend = Backend::start(move |conversation| {
        let head = conversation.tell_head()?;
        if head.first_line.contains("/closed") {
            return Ok(());
        }
        if !there.load(Ordering::Relaxed) {
            conversation.read_to_end();
            return Ok(());
        }
        conversation.send(OK)
    });
    let mut backend = backend;
    let upstream = "retries_max = 0\noutlier_failures = 0";
    let rest = "[runtime]\nshards = 1\n[upstreams.back.breaker]\nrequests_min = 3\nopen_for = \"200ms\"";
    let gateway = Setup { upstream, rest, ..Setup::default() }.start(&[backend.address()]);
    for _ in 0..3 {
        assert_eq!(gateway.get("/closed").status, 502);
    }
    backend.requests();
    // Whose trial it is leaves, several times: the next one tries.
    for _ in 0..3 {
        let mut leaves = gateway.connect();
        until(SOON, "somebody tries", || {
            leaves.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
            pause(Duration::from_millis(20));
            if leaves.has_bytes() {
                assert_eq!(leaves.read_response().status, 503);
            }
            (!backend.requests().is_empty()).then_some(())
        });
        drop(leaves);
    }
    is_there.store(true, Ordering::Relaxed);
    until(SOON, "it is closed", || {
        gateway.get("/x");
        (state(&gateway)["circuitShards"] == 0).then_some(())
    });
    assert_eq!(gateway.get("/x").status, 200);
}

#[test]
fn a_circuit_that_nobody_asks_keeps_no_alert_and_no_health_down() {
    let address = nobody();
    let upstream = "retries_max = 0\noutlier_failures = 0";
    let rest = "[runtime]\nshards = 1\n[upstreams.back.breaker]\nrequests_min = 3\nopen_for = \"400ms\"";
    let gateway = Setup { upstream, rest, ..Setup::default() }.start(&[address]);
    for _ in 0..3 {
        assert_eq!(gateway.get("/x").status, 502);
    }
    // Nobody asks any more.
    let half_open = until(SOON, "somebody may try", || {
        let entry = entry(&gateway);
        (entry["circuit"] == "half_open").then_some(entry)
    });
    assert_eq!(half_open["status"], "up", "{half_open}");
    assert_eq!(gauge(&gateway, "circuit_open_shards"), 0);
    assert_eq!(state(&gateway)["circuitShards"], 1);
}

#[test]
fn one_that_stands_still_is_out_by_its_requests_and_comes_back() {
    let services: Vec<_> = (0..3).map(|number| Process::start(nobody(), &number.to_string())).collect();
    let addresses: Vec<_> = services.iter().map(Process::address).collect();
    // By latency nobody would ask it a second time for long.
    let upstream =
        "balance = \"round_robin\"\nresponse_timeout = \"300ms\"\noutlier_failures = 3\noutlier_ejection = \"2s\"";
    let gateway = Setup { upstream, ..Setup::default() }.start(&addresses);
    let crowd = Crowd::start(&gateway);
    until(SOON, "all are asked", || (gauge(&gateway, "connections_idle") > 0).then_some(()));
    services[0].signal(Signal::STOP);
    until(SOON, "the shards that ask it leave it out", || (gauge(&gateway, "instances_ejected") > 0).then_some(()));
    let line = gateway.log_until("an instance is left out", SOON);
    assert!(line.contains("timeout") && line.contains(&addresses[0].to_string()), "{line}");
    assert_eq!(gateway.get("/x").status, 200);
    services[0].signal(Signal::CONT);
    until(SOON, "it is used again", || (gauge(&gateway, "instances_ejected") == 0).then_some(()));
    gateway.log_until("an instance is used again", SOON);
    let (answered, failed) = crowd.end();
    assert!(failed.len() * 10 < answered && failed.iter().all(|status| *status == 504), "{answered}: {failed:?}");
}

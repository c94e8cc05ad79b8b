//! Names of instances are followed while the gateway runs: services move, and DNS fails, lies and changes its mind.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    backend::{Backend, Conversation},
    harness::{Gateway, is_long, now, pause, until},
    servers::dns::{Dns, Mode},
};

const SOON: Duration = Duration::from_secs(15);
const NAME: &str = "shop.test";

pub(super) fn host(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, number)
}

/// A port that is free at all of loopback's addresses.
pub(super) fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// An instance that answers with its address.
pub(super) fn instance(number: u8, port: u16) -> Backend {
    let name = host(number).to_string();
    Backend::start_at(SocketAddr::from((host(number), port)), move |conversation: &mut Conversation| {
        loop {
            conversation.read_request()?;
            conversation.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))?;
        }
    })
}

/// Everything goes to the instances of one name, which is looked up as often as may be.
fn config(dns: &Dns, port: u16, more: &str) -> String {
    format!(
        "[discovery]\n{}interval_min = \"100ms\"\nallow = [\"loopback\"]\n{more}\n\
         [upstreams.shop]\ninstances = [\"{NAME}:{port}\"]\nidle_timeout = \"10m\"\n\
         [[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"shop\"\n",
        dns.config()
    )
}

fn of_name(metric: &str) -> String {
    format!("shardgate_discovery_{metric}{{name=\"{NAME}\"}}")
}

pub(super) fn health(gateway: &Gateway) -> Value {
    gateway.ask_admin("/health").json()["services"]["shop"].clone()
}

/// Who answers so many requests, each on a connection of its own, and none of them badly.
#[track_caller]
pub(super) fn answering(gateway: &Gateway, count: usize) -> BTreeSet<String> {
    let answers = (0..count).map(|_| gateway.get("/x"));
    answers.inspect(|answer| assert_eq!(answer.status, 200, "{}", answer.text())).map(|answer| answer.text()).collect()
}

/// Waits until requests are answered by these alone; meanwhile none fails.
#[track_caller]
pub(super) fn until_answered_by(gateway: &Gateway, numbers: &[u8]) {
    let wanted: BTreeSet<String> = numbers.iter().map(|number| host(*number).to_string()).collect();
    until(SOON, "these answer", || (answering(gateway, 40) == wanted).then_some(()));
}

#[test]
fn requests_follow_a_service_that_moves_and_none_fails() {
    let (dns, port) = (Dns::start(), free_port());
    dns.set(NAME, [host(2)]);
    let first = SocketAddr::from((host(2), port));
    let mut old = Backend::start_at(first, |conversation: &mut Conversation| {
        loop {
            let request = conversation.read_request()?;
            if request.head.first_line.contains("/held") {
                conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n127.")?;
                // Until the connection ends.
                conversation.read_to_end();
                return Ok(());
            }
            conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n127.0.0.2")?;
        }
    });
    let gateway = Gateway::start(&config(&dns, port, ""));
    until_answered_by(&gateway, &[2]);
    // One that is under way when the service moves.
    let mut under_way = gateway.connect();
    under_way.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    under_way.read_until("127.");
    // Its shard has idle connections beside it.
    until_answered_by(&gateway, &[2]);
    let _new = instance(3, port);
    dns.set(NAME, [host(3)]);
    until_answered_by(&gateway, &[3]);
    let line = gateway.log_until("a name of instances has moved", SOON);
    assert!(line.contains("\"added\":\"127.0.0.3\"") && line.contains("\"gone\":\"127.0.0.2\""), "{line}");
    // What was idle there is closed, and what was under way is not.
    let opened = old.opened();
    until(SOON, "all but one have ended", || (old.ended() + 1 == opened).then_some(()));
    drop(old);
    assert_eq!(answering(&gateway, 40), [host(3).to_string()].into());
    assert_eq!(gateway.metrics().value("shardgate_config_reloads_total{result=\"applied\"}"), 0);
    assert_eq!(health(&gateway)["instances"], serde_json::json!({"healthy": 1, "total": 1}));
}

#[test]
fn who_comes_by_its_name_is_probed_and_has_a_share_of_the_keys() {
    let (dns, port) = (Dns::start(), free_port());
    dns.set(NAME, [host(2)]);
    let _first = instance(2, port);
    let more = "balance = \"consistent_hash\"\nhash_key = \"header:X-Key\"\n\
                [upstreams.shop.health]\npath = \"/well\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\n";
    let config = config(&dns, port, "").replace("idle_timeout = \"10m\"\n", more);
    let gateway = Gateway::start(&config);
    let up = || gateway.metrics().value("shardgate_upstream_instances_up{upstream=\"shop\"}");
    until(SOON, "it is found well", || (up() == 1).then_some(()));
    let ask = |key: usize| {
        let mut client = gateway.connect();
        client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\nX-Key: {key}\r\n\r\n"));
        client.read_response().text()
    };
    let owners = || (0..32).map(ask).collect::<Vec<_>>();
    let old = host(2).to_string();
    assert_eq!(owners(), vec![old.clone(); 32]);

    // One comes that nobody can reach: probes keep it out, and no request fails.
    dns.set(NAME, [host(2), host(3)]);
    until(SOON, "there are two", || (health(&gateway)["instances"]["total"] == 2).then_some(()));
    assert_eq!(owners(), vec![old.clone(); 32]);
    assert_eq!(up(), 1);

    // It is well: it has about half of the keys, always the same, and the others stay where they were.
    let second = instance(3, port);
    until(SOON, "it is found well", || (up() == 2).then_some(()));
    until(SOON, "it has keys", || owners().contains(&host(3).to_string()).then_some(()));
    let shared = owners();
    let moved = shared.iter().filter(|owner| **owner != old).count();
    assert!((4..=28).contains(&moved), "{shared:?}");
    assert_eq!(owners(), shared);

    drop(second);
    dns.set(NAME, [host(2)]);
    until(SOON, "there is one", || (health(&gateway)["instances"]["total"] == 1).then_some(()));
    assert_eq!(owners(), vec![old; 32]);
    assert_eq!(up(), 1);
}

#[test]
fn while_dns_fails_or_says_nothing_the_last_answer_serves() {
    let (dns, port) = (Dns::start(), free_port());
    dns.set(NAME, [host(2), host(3)]);
    let _instances = [2, 3].map(|number| instance(number, port));
    let gateway = Gateway::start(&config(&dns, port, ""));
    gateway.log_until("every shard runs the configuration", SOON);
    for mode in [Mode::Fail, Mode::Empty, Mode::Silent] {
        dns.set_mode(mode);
        let before = gateway.metrics().value(&of_name("failures_total"));
        // For minutes where the long suites are asked for.
        let least = if is_long() && mode == Mode::Silent { Duration::from_mins(5) } else { Duration::ZERO };
        let began = now();
        until(least + SOON, "it has failed", || {
            answering(&gateway, 4);
            let has_failed = gateway.metrics().value(&of_name("failures_total")) >= before + 2;
            (has_failed && began.elapsed() >= least).then_some(())
        });
        until_answered_by(&gateway, &[2, 3]);
        until(SOON, "health tells", || {
            let entry = health(&gateway);
            (entry["status"] == "degraded" && entry["error"] == "unresolved").then_some(())
        });
        assert_eq!(gateway.metrics().value(&of_name("addresses")), 2);
        assert!(gateway.metrics().value(&of_name("age_seconds")) >= i64::from(mode == Mode::Silent));
        dns.set_mode(Mode::Table);
        // What has failed for long is asked for more rarely.
        until(Duration::from_mins(1), "health tells that it is over", || {
            (health(&gateway)["status"] == "up").then_some(())
        });
        until_answered_by(&gateway, &[2, 3]);
    }
    assert!(gateway.log().contains("is not resolved any more"));
    assert!(gateway.log().contains("is resolved again"));
    // What is known of one family does not hang on the other.
    dns.set_mode(Mode::FailsForIpv6);
    dns.set(NAME, [host(2)]);
    until_answered_by(&gateway, &[2]);
}

#[test]
fn the_next_server_is_asked_when_one_fails_and_not_when_it_says_no() {
    let (first, second, port) = (Dns::start(), Dns::start(), free_port());
    second.set(NAME, [host(2)]);
    let _instance = instance(2, port);
    let config = config(&second, port, "");
    let both = config.replace("nameservers = [", &first.config().trim_end().replace(']', ", "));
    let start = |mode| {
        first.set_mode(mode);
        let gateway = Gateway::start(&both);
        gateway.log_until("every shard runs the configuration", SOON);
        gateway.get("/x").status
    };
    assert_eq!([Mode::Fail, Mode::Silent].map(start), [200; 2]);
    assert_eq!([Mode::Table, Mode::Empty].map(start), [503; 2]);
}

#[test]
fn a_set_that_flaps_fails_no_request_and_is_told_once_a_second() {
    let (dns, port) = (Dns::start(), free_port());
    let _instances = [2, 3, 4, 5].map(|number| instance(number, port));
    dns.set(NAME, [host(2)]);
    let gateway = Gateway::start(&config(&dns, port, "max_shrink = 100"));
    gateway.log_until("every shard runs the configuration", SOON);
    let began = now();
    let mut seen = BTreeSet::new();
    for round in 0..60_u8 {
        dns.set(NAME, [host(2 + round % 4), host(2 + (round / 4) % 4)]);
        seen.extend(answering(&gateway, 10));
        pause(Duration::from_millis(50));
    }
    assert!(seen.len() > 2, "it was followed: {seen:?}");
    let changes = gateway.metrics().value("shardgate_discovery_changes_total");
    let seconds = i64::try_from(began.elapsed().as_secs()).expect("few");
    assert!((2..=seconds + 2).contains(&changes), "{changes} in {seconds} s");
}

#[test]
fn a_name_that_is_not_there_yet_is_used_when_it_is() {
    let (dns, port) = (Dns::start(), free_port());
    let gateway = Gateway::start(&config(&dns, port, ""));
    let line = gateway.log_until("does not resolve (there is no such name)", SOON);
    assert!(line.contains("It is asked for again") && line.contains("WARN"), "{line}");
    let answer = gateway.get("/x");
    assert_eq!((answer.status, &answer.json()["code"]), (503, &Value::from("no_healthy_upstream")));
    let entry = until(SOON, "health tells", || Some(health(&gateway)).filter(|entry| entry["status"] == "down"));
    assert_eq!(entry["error"], "unresolved");
    let _instance = instance(2, port);
    dns.set(NAME, [host(2)]);
    until(SOON, "it is used", || (gateway.get("/x").status == 200).then_some(()));
    until(SOON, "health tells", || (health(&gateway)["status"] == "up").then_some(()));
    // A reload has what was found since.
    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, SOON);
    assert_eq!(answering(&gateway, 40), [host(2).to_string()].into());
}

#[test]
fn this_machine_is_no_instance_by_dns_unless_that_is_allowed() {
    let (dns, port) = (Dns::start(), free_port());
    dns.set(NAME, [host(2)]);
    let _instance = instance(2, port);
    let allowed = config(&dns, port, "");
    let gateway = Gateway::start(&allowed.replace("[\"loopback\"]", "[]"));
    let line = gateway.log_until("is not taken from DNS", SOON);
    assert!(line.contains("discovery.allow = [\\\"loopback\\\"] takes it"), "{line}");
    assert_eq!(gateway.get("/x").status, 503);
    gateway.rewrite_config(&allowed);
    gateway.signal(Signal::HUP);
    until(SOON, "it is used", || (gateway.get("/x").status == 200).then_some(()));
}

#[test]
fn an_answer_lives_as_long_as_it_says_and_may_be_long() {
    let (dns, port) = (Dns::start(), free_port());
    let all: Vec<Ipv4Addr> = (1..=100).map(|number| Ipv4Addr::new(127, 0, 1, number)).collect();
    dns.set_time_to_live(3600);
    dns.set(NAME, all);
    let gateway = Gateway::start(&config(&dns, port, "interval_max = \"300ms\""));
    assert_eq!(gateway.metrics().value(&of_name("addresses")), 100, "by TCP, as it is too long for UDP");
    until(SOON, "health tells", || (health(&gateway)["instances"]["total"] == 100).then_some(()));
    let _instance = instance(2, port);
    dns.set(NAME, [host(2)]);
    until(SOON, "it is looked up again though it lives for longer", || {
        (gateway.metrics().value(&of_name("addresses")) == 1).then_some(())
    });
    until(SOON, "it is used", || (gateway.get("/x").status == 200).then_some(()));
    // Now it may live for as long as it says.
    gateway.rewrite_config(&config(&dns, port, ""));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, SOON);
    dns.set(NAME, [host(3)]);
    while dns.is_asked_within(Duration::from_millis(500)) {}
    assert!(!dns.is_asked_within(Duration::from_millis(1500)), "an hour is not over");
}

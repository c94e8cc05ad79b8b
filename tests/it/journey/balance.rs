//! Which instance a request goes to, as configured.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::json;

use super::{
    Setup,
    access::{KEYS, token},
};
use crate::{
    backend::{Backend, OK},
    client::Client,
    harness::{Gateway, now, pause, until},
};

/// A service that answers with its number.
fn numbered(number: usize) -> Backend {
    Backend::answering(move |_| format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}"))
}

fn addresses(backends: &[Backend]) -> Vec<SocketAddr> {
    backends.iter().map(Backend::address).collect()
}

#[track_caller]
fn ask(client: &mut Client, fields: &str) -> String {
    client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    let answer = client.read_response();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text()
}

/// Who answers each of these, asked on connections of their own, which land on several shards.
#[track_caller]
fn homes(gateway: &Gateway, keys: &[String]) -> BTreeMap<String, String> {
    let mut homes = BTreeMap::new();
    for _ in 0..3 {
        for key in keys {
            let home = ask(&mut gateway.connect(), key);
            let known = homes.entry(key.clone()).or_insert_with(|| home.clone());
            assert_eq!(*known, home, "one key stays with one instance: {key}");
        }
    }
    homes
}

/// A field of the request that is another one for each number.
fn key_field(key: &str, number: u32) -> String {
    match key {
        "header:X-Cart" => format!("x-cart: {number}\r\n"),
        "cookie:cart" => format!("Cookie: a=b; cart={number}; c=d\r\n"),
        "address" => format!("X-Forwarded-For: 192.0.2.{number}\r\n"),
        "user" => format!("Authorization: Bearer {}\r\n", token(&json!({ "sub": format!("user-{number}") }))),
        _ => unreachable!("all are here"),
    }
}

#[test]
fn a_key_stays_with_one_instance_on_every_shard() {
    let backends: Vec<_> = (0..4).map(numbered).collect();
    for key in ["header:X-Cart", "cookie:cart", "address", "user"] {
        let upstream = format!("balance = \"consistent_hash\"\nhash_key = \"{key}\"");
        let rest = format!("[trust]\nproxies = [\"127.0.0.1\"]\n{KEYS}");
        let config = Setup { upstream: &upstream, rest: &rest, ..Setup::default() }.config(&addresses(&backends));
        // Only where a token is looked at is there a caller.
        let access = if key == "user" { "authenticated" } else { "public" };
        let gateway = Gateway::start(&config.replace("\"public\"", &format!("\"{access}\"")));
        let keys: Vec<_> = (0..24).map(|number| key_field(key, number)).collect();
        let used: BTreeSet<_> = homes(&gateway, &keys).into_values().collect();
        assert!(used.len() >= 3, "{key}: keys are spread over the instances: {used:?}");
    }
}

#[test]
fn only_the_keys_of_an_instance_that_dies_move() {
    let mut backends: Vec<_> = (0..4).map(numbered).collect();
    let upstream = "balance = \"consistent_hash\"\nhash_key = \"header:x-cart\"\noutlier_failures = 1\nidle_max = 0";
    let gateway = Setup { upstream, ..Setup::default() }.start(&addresses(&backends));
    let keys: Vec<_> = (0..24).map(|number| format!("X-Cart: {number}\r\n")).collect();
    let before = homes(&gateway, &keys);
    drop(backends.remove(0));
    let after = homes(&gateway, &keys);
    for (key, home) in &before {
        if home == "0" {
            assert_ne!(after[key], "0");
        } else {
            assert_eq!(after[key], *home, "{key} need not move");
        }
    }
}

#[test]
fn each_has_its_turn() {
    let backends: Vec<_> = (0..3).map(numbered).collect();
    let (upstream, rest) = ("balance = \"round_robin\"", "[runtime]\nshards = 1");
    let gateway = Setup { upstream, rest, ..Setup::default() }.start(&addresses(&backends));
    let mut client = gateway.connect();
    let taken: Vec<_> = (0..9).map(|_| ask(&mut client, "")).collect();
    assert!(taken.windows(3).all(|three| three.iter().collect::<BTreeSet<_>>().len() == 3), "{taken:?}");
}

#[test]
fn who_is_ten_times_slower_gets_few_and_is_tried_again() {
    let slow = |number: usize| {
        Backend::answering(move |_| {
            pause(Duration::from_millis(if number == 0 { 50 } else { 1 }));
            format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}")
        })
    };
    for (policy, share) in [("least_latency", 0..=5), ("round_robin", 30..=37)] {
        let backends: Vec<_> = (0..3).map(slow).collect();
        let upstream = format!("balance = \"{policy}\"");
        let setup = Setup { upstream: &upstream, rest: "[runtime]\nshards = 1", ..Setup::default() };
        let gateway = setup.start(&addresses(&backends));
        let mut client = gateway.connect();
        let to_slow = (0..300).filter(|_| ask(&mut client, "") == "0").count();
        assert!(share.contains(&(to_slow * 100 / 300)), "{policy}: {to_slow} of 300");
        assert!(to_slow >= 1, "nobody knew that it is slow");
    }
}

#[test]
fn those_that_requests_have_ejected_stay_out_while_one_is_left() {
    let gone: Vec<_> = (0..3).map(|_| super::outcomes::nobody()).collect();
    let backend = Backend::answering(|_| OK);
    for panic_percent in [0, 50, 100] {
        let upstream = format!(
            "outlier_failures = 1\noutlier_percent_max = 75\npanic_percent = {panic_percent}\nretries_max = 3\nidle_max = 0"
        );
        let rest = "[runtime]\nshards = 1";
        let instances = [&gone[..], &[backend.address()]].concat();
        let gateway = Setup { upstream: &upstream, rest, ..Setup::default() }.start(&instances);
        let mut client = gateway.connect();
        let ejections =
            |gateway: &Gateway| gateway.metrics().value("shardgate_upstream_ejections_total{upstream=\"back\"}");
        until(Duration::from_secs(10), "the three are out", || {
            client.get("/x");
            (ejections(&gateway) == 3).then_some(())
        });
        let connects = |gateway: &Gateway| {
            gateway.metrics().value("shardgate_upstream_requests_total{upstream=\"back\",outcome=\"connect_failed\"}")
        };
        let before = connects(&gateway);
        for _ in 0..40 {
            assert_eq!(client.get("/x").status, 200, "a connection that was not opened costs nothing");
        }
        assert_eq!(connects(&gateway), before, "panic_percent = {panic_percent}");
    }
}

#[test]
fn one_that_comes_by_a_reload_starts_slowly() {
    let backends: Vec<_> = (0..2).map(numbered).collect();
    let [first, second] = [&backends[0], &backends[1]].map(Backend::address);
    let config = |instances: &str| {
        format!(
            "[runtime]\nshards = 1\n[upstreams.back]\ninstances = [{instances}]\nbalance = \"round_robin\"\nslow_start = \"30s\"\n\
             [[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n"
        )
    };
    let gateway = Gateway::start(&config(&format!("\"{first}\"")));
    gateway.rewrite_config(&config(&format!("\"{first}\", \"{second}\"")));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, Duration::from_secs(10));
    let began = now();
    let mut client = gateway.connect();
    let to_new = (0..300).filter(|_| ask(&mut client, "") == "1").count();
    assert!(began.elapsed() < Duration::from_secs(6), "the machine is too slow for this test");
    assert!((1..90).contains(&to_new), "{to_new} of 300, and half of them once it has started");
}

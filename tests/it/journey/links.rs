//! Three instances, the way to one of which goes wrong: late, narrow, reset, or silent.

use std::{collections::BTreeMap, net::SocketAddr, thread, time::Duration};

use super::Setup;
use crate::{
    backend::Backend,
    client::Client,
    harness::{Gateway, until},
    servers::relay::{Link, Relay},
};

const SOON: Duration = Duration::from_secs(10);

/// Three services that answer with their numbers, and the way to the last.
fn three() -> ([Backend; 3], Relay, [SocketAddr; 3]) {
    let numbered =
        |number: usize| Backend::answering(move |_| format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}"));
    let services = [0, 1, 2].map(numbered);
    let relay = Relay::to(services[2].address());
    let instances = [services[0].address(), services[1].address(), relay.address()];
    (services, relay, instances)
}

/// What clients on several shards are told while each asks so often: statuses, and how many answers were whose.
fn ask_all(gateway: &Gateway, times: usize) -> (BTreeMap<u16, usize>, BTreeMap<String, usize>) {
    let (mut statuses, mut whose) = (BTreeMap::new(), BTreeMap::new());
    let address = gateway.address();
    let asking: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(move || {
                let mut client = Client::connect(address);
                let answers = (0..times).map(|_| {
                    let answer = client.get("/x");
                    (answer.status, answer.text())
                });
                answers.collect::<Vec<_>>()
            })
        })
        .collect();
    for (status, text) in asking.into_iter().flat_map(|client| client.join().expect("it is answered")) {
        *statuses.entry(status).or_default() += 1;
        if status == 200 {
            *whose.entry(text).or_default() += 1;
        }
    }
    (statuses, whose)
}

/// How many were answered with 200, and how many with anything else.
fn sum(statuses: &[BTreeMap<u16, usize>]) -> (usize, usize) {
    let all = || statuses.iter().flatten();
    let good = all().filter(|(status, _)| **status == 200).map(|(_, count)| count).sum();
    (good, all().map(|(_, count)| count).sum::<usize>() - good)
}

#[test]
fn a_link_that_resets_every_answer_fails_no_get() {
    let (_services, relay, instances) = three();
    // With everything as by default, and clients on four shards.
    let gateway = Setup::default().start(&instances);
    assert_eq!(ask_all(&gateway, 10).0, BTreeMap::from([(200, 80)]));
    relay.set(Link::Resetting);
    until(SOON, "each shard has been asked", || {
        let (statuses, whose) = ask_all(&gateway, 40);
        assert_eq!(statuses, BTreeMap::from([(200, 320)]), "each is answered by another instance");
        assert!(!whose.contains_key("2") && relay.resets() > 0, "{whose:?}");
        let served = gateway.metrics().by_shard("shardgate_shard_requests_total");
        (served.len() == 4 && served.iter().all(|count| *count > 0)).then_some(())
    });
}

#[test]
fn an_answer_that_is_cut_is_told_as_cut_and_the_link_is_left_out() {
    let (_services, relay, instances) = three();
    let gateway = Setup { upstream: "outlier_failures = 1", ..Setup::default() }.start(&instances);
    relay.set(Link::Cutting);
    let (statuses, whose) = ask_all(&gateway, 40);
    assert!(!whose.contains_key("2") && relay.resets() > 0, "{whose:?}");
    // Of what has answered nobody else is asked: that is told. One failure puts the link out of use on a shard, and up to
    // eight requests are under way to it by then.
    let (again, _) = ask_all(&gateway, 20);
    let (good, cut) = sum(&[statuses, again]);
    assert!((1..=8 + 4).contains(&cut) && good + cut == 480, "{cut} were cut, {good} answered");
}

#[test]
fn a_late_link_gets_little_and_its_share_again_later() {
    let (_services, relay, instances) = three();
    let gateway = Setup::default().start(&instances);
    relay.set(Link::Late(30));
    ask_all(&gateway, 10);
    let (statuses, whose) = ask_all(&gateway, 60);
    assert_eq!(statuses, BTreeMap::from([(200, 480)]));
    assert!(whose.get("2").is_none_or(|late| *late <= 80), "half of its share: {whose:?}");
    relay.set(Link::Open);
    // What was slow is forgotten by a third in a second or so.
    until(4 * SOON, "it has its share again", || {
        let (_, whose) = ask_all(&gateway, 10);
        whose.get("2").is_some_and(|count| *count >= 16).then_some(())
    });
}

#[test]
fn a_silent_link_costs_each_shard_few_requests() {
    let (_services, relay, instances) = three();
    let upstream = "outlier_failures = 2\nresponse_timeout = \"300ms\"\nidle_max = 8";
    let gateway = Setup { upstream, ..Setup::default() }.start(&instances);
    ask_all(&gateway, 5);
    relay.set(Link::Silent);
    let (statuses, _) = ask_all(&gateway, 100);
    let (again, _) = ask_all(&gateway, 20);
    // Two failures put it out of use on a shard; up to eight requests are under way to it by then.
    let (good, failed) = sum(&[statuses, again]);
    assert!((1..=8 + 4 * 2).contains(&failed) && good + failed == 960, "{failed} failed, {good} answered");
    relay.set(Link::Open);
}

#[test]
fn a_narrow_link_slows_down_what_goes_over_it_and_nothing_else() {
    let narrow = Backend::answering(|_| {
        let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n".to_vec();
        answer.resize(answer.len() + 65_536, b'x');
        answer
    });
    let relay = Relay::to(narrow.address());
    let wide = Backend::ok();
    let config = format!(
        "[upstreams.narrow]\ninstances = [\"{}\"]\n[upstreams.wide]\ninstances = [\"{}\"]\n\
         [[routes]]\naccess = \"public\"\npath = \"/narrow/*\"\nupstream = \"narrow\"\n\
         [[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"wide\"\n",
        relay.address(),
        wide.address()
    );
    let gateway = Gateway::start(&config);
    relay.set(Link::Narrow(64 * 1024));
    let mut waiting: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    for client in &mut waiting {
        client.send("GET /narrow/x HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let (statuses, _) = ask_all(&gateway, 20);
    assert_eq!(statuses, BTreeMap::from([(200, 160)]), "all are answered while eight wait");
    for mut client in waiting {
        let answer = client.read_response();
        assert_eq!((answer.status, answer.body.len()), (200, 65_536));
    }
}

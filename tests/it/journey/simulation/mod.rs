//! Clients, gateway and backends at random: many messages on each connection, all of them half done at some time. Nothing of
//! one exchange may ever be taken for another's, on either side.
//!
//! A seed makes a [`plan`]; the [`stage`] plays it with [`players`] at both sides of a real gateway; the [`judge`] reads what
//! they got. A failure tells its seed: `SHARDGATE_TEST_SEED` plays that one again, `SHARDGATE_TEST_ROUNDS` so many from
//! there on.

mod board;
mod judge;
mod plan;
mod players;
mod script;
mod stage;
mod stream;
mod wire;

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

use super::Setup;
use crate::{
    certificate::Made,
    harness::{Gateway, is_long, now, pause},
};
use plan::Plan;
use stage::Stage;

/// The first seed: from here on the mistakes that this was made for show within forty, when they are made again.
const FIRST: u64 = 2000;
/// Seeds for each number of shards.
const ROUNDS: u64 = 60;
const ROUNDS_LONG: u64 = 1500;
/// Handshakes take their time.
const ROUNDS_TLS: u64 = 20;
const HUGE_ROUNDS_LONG: u64 = 20;
/// How long the gateway may take to see that all is over, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

#[test]
fn what_many_say_at_once_is_never_confused_on_one_shard() {
    play_all(1, None);
}

#[test]
fn what_many_say_at_once_is_never_confused_on_four_shards() {
    play_all(4, None);
}

#[test]
fn what_many_say_at_once_over_tls_is_never_confused() {
    let place = TempDir::new().expect("a directory");
    let made = Made::new(place.path(), "gateway", &["gateway.test"]);
    for shards in [1, 4] {
        play_all(shards, Some(&made));
    }
}

#[test]
fn what_is_huge_is_never_confused() {
    let first = number("SHARDGATE_TEST_SEED");
    let rounds = if is_long() { HUGE_ROUNDS_LONG } else { 1 };
    let first = first.unwrap_or(FIRST);
    let spliced: i64 = (first..first + rounds).map(|seed| play(seed, &Plan::huge(seed), 1, None)).sum();
    assert!(spliced > 0 || !is_on_epoll(), "nothing went through a pipe");
}

/// Clients speak TLS where there is a certificate for it.
fn play_all(shards: usize, tls: Option<&Made>) {
    let first = number("SHARDGATE_TEST_SEED");
    let usual = match first {
        Some(_) => 1,
        None if is_long() => ROUNDS_LONG,
        None if tls.is_some() => ROUNDS_TLS,
        None => ROUNDS,
    };
    let first = first.unwrap_or(FIRST);
    let rounds = number("SHARDGATE_TEST_ROUNDS").unwrap_or(usual);
    let spliced: i64 = (first..first + rounds).map(|seed| play(seed, &Plan::new(seed), shards, tls)).sum();
    let may_splice = tls.is_none() && is_on_epoll();
    assert!(spliced > 0 || rounds < ROUNDS || !may_splice, "nothing went through a pipe");
}

fn is_on_epoll() -> bool {
    std::env::var_os("SHARDGATE_TEST_DRIVER").is_none_or(|driver| driver == "epoll")
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var_os(variable)?.into_string().ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is {value:?}; it should be a number")))
}

/// Plays a plan; returns how many bytes went through pipes.
fn play(seed: u64, plan: &Plan, shards: usize, tls: Option<&Made>) -> i64 {
    let _told = Told { seed, shards };
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let gateway = gateway(shards, listener.local_addr().expect("it is bound"), tls);
    let mut stage = Stage::new(plan, seed, gateway.address(), tls.map(client), &listener);
    let left = if stage.play() { unsettled(&gateway, &mut stage) } else { Some("nothing happens any more".to_owned()) };
    let outcome = stage.finish();
    if outcome.board.is_too_late {
        return 0;
    }
    let complaints: Vec<String> = left.into_iter().chain(judge::complaints(plan, &outcome)).collect();
    assert!(complaints.is_empty(), "{}\n---- {}", outcome.log.join("\n"), complaints.join("\n---- "));
    let metrics = gateway.metrics();
    assert_eq!(metrics.sum("shardgate_tls_handshakes_total") > 0, tls.is_some());
    metrics.value("shardgate_spliced_bytes_total")
}

/// Tells the seed of a failure, whatever it is that fails.
struct Told {
    seed: u64,
    shards: usize,
}

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SHARDGATE_TEST_SEED={} plays this again ({} shards)", self.seed, self.shards);
        }
    }
}

/// One route lets answers go on that nobody waits for any more, the other does not.
fn gateway(shards: usize, backend: SocketAddr, tls: Option<&Made>) -> Gateway {
    let cancel = "access = \"public\"\nname = \"cancel\"\npath = \"/cancel/*\"\nupstream = \"back\"";
    let speaks_tls = tls.map(|made| format!("[listener]\nkind = \"tls\"\n{}", made.config())).unwrap_or_default();
    Setup {
        http: "body_bytes_max = \"128MiB\"",
        upstream: "retry_budget_percent = 100\noutlier_failures = 0",
        route: "on_client_close = \"finish\"",
        rest: &format!("{speaks_tls}[runtime]\nshards = {shards}\n[[routes]]\n{cancel}\non_client_close = \"cancel\""),
    }
    .start(&[backend])
}

/// A client that trusts this certificate.
fn client(trusted: &Made) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der()).expect("added");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// What is still under way when all is over.
fn unsettled(gateway: &Gateway, stage: &mut Stage<'_>) -> Option<String> {
    let due = now() + PATIENCE;
    loop {
        stage.look_around();
        let metrics = gateway.metrics();
        if metrics.sum("shardgate_panics_total") > 0 {
            return Some("the gateway caught a panic".to_owned());
        }
        let gauges = ["shardgate_requests_in_flight", "shardgate_upstream_requests_in_flight"];
        let under_way = gauges.map(|gauge| (gauge, metrics.sum(gauge)));
        if under_way.iter().all(|(_, count)| *count == 0) {
            return None;
        }
        if now() > due {
            return Some(format!("all is over, but not for the gateway: {under_way:?}"));
        }
        pause(LOOK_INTERVAL);
    }
}

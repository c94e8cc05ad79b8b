//! Instances that do not know what was revoked: those that start while the log is away, and those that stood still.

use std::time::Duration;

use rustix::process::Signal;

use super::{RedisServer, Stage, ask, expect_everywhere, log_in, log_out, redis, told};
use crate::harness::{Gateway, now, until};

const SOON: Duration = Duration::from_secs(20);
const STALE: &str = "shardgate_revocation_stale_shards";
/// Durable before it answers.
const DURABLE: [&str; 6] = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""];

/// What `/health` says of the whole, and of revocations.
fn health(gateway: &Gateway) -> [String; 2] {
    let document = gateway.ask_admin("/health").json();
    [&document["status"], &document["revocations"]["status"]].map(|value| value.as_str().unwrap_or("").to_owned())
}

fn lines(gateway: &Gateway, pattern: &str) -> usize {
    gateway.log().lines().filter(|line| line.contains(pattern)).count()
}

#[test]
fn an_instance_that_starts_while_redis_is_away_says_that_it_knows_nothing() {
    let Some(mut server) = RedisServer::start_with(&DURABLE) else { return };
    let stage = Stage::new(&redis(&server));
    stage.add_ann();
    let (session, revoked) = {
        let before = stage.start();
        let (session, revoked) = (log_in(&before), log_in(&before));
        log_out(&before, &revoked.access);
        (session, revoked)
    };
    server.kill();
    let gateway = stage.start();
    // From the first request on, on every shard.
    expect_everywhere(&gateway, "/admin", &revoked.access, "503 dependency_unavailable");
    expect_everywhere(&gateway, "/admin", &session.access, "503 dependency_unavailable");
    expect_everywhere(&gateway, "/any/x", &session.access, "200 ok");
    gateway.log_until("has not been read since the start", SOON);
    gateway.metrics_until("it is counted", |metrics| metrics.value(STALE) == 4);
    until(SOON, "health tells", || (health(&gateway) == ["degraded", "stale"]).then_some(()));
    assert_eq!(gateway.ask_admin("/health/ready").status, 200, "traffic that does not depend on it is served");

    server.restart();
    gateway.log_until("the log of revocations is read", SOON);
    expect_everywhere(&gateway, "/admin", &session.access, "200 ok");
    expect_everywhere(&gateway, "/admin", &revoked.access, "401 token_revoked");
    gateway.metrics_until("it is known", |metrics| {
        let ages = metrics.by_shard("shardgate_revocation_age_seconds");
        metrics.value(STALE) == 0 && ages.len() == 4 && ages.iter().all(|age| *age < 60)
    });
    until(SOON, "health tells", || (health(&gateway) == ["healthy", "current"]).then_some(()));
    for line in ["has not been read", "the log of revocations is read"] {
        assert_eq!(lines(&gateway, line), 1, "{line}");
    }
}

#[test]
fn an_answer_that_an_instance_finds_when_it_goes_on_is_no_news() {
    let Some(server) = RedisServer::start() else { return };
    // A question is not given up while the instance stands still.
    let patient = redis(&server).replace("\ntimeout = \"250ms\"", "\ntimeout = \"10s\"");
    let stage = Stage::new(&(patient + "[revocation]\nmax_staleness = \"2s\"\n"));
    stage.add_ann();
    let (here, there) = (stage.start(), stage.start());
    let (session, other) = (log_in(&there), log_in(&there));
    expect_everywhere(&here, "/admin", &session.access, "200 ok");
    here.stand_still();
    let since = now();
    // The question that it had asked is answered with the first end, and without the second.
    log_out(&there, &other.access);
    log_out(&there, &session.access);
    until(SOON, "what it knows is too old", || (since.elapsed() > Duration::from_secs(2)).then_some(()));
    server.pause();
    here.signal(Signal::CONT);
    let since = now();
    until(SOON, "for a second the token is good nowhere", || {
        let answer = told(&ask(&mut here.connect(), "/admin", &session.access));
        assert_eq!(answer, "503 dependency_unavailable");
        (since.elapsed() > Duration::from_secs(1)).then_some(())
    });
    server.go_on();
    until(SOON, "it is known", || {
        let answer = told(&ask(&mut here.connect(), "/admin", &session.access));
        assert_ne!(answer, "200 ok");
        (answer == "401 token_revoked").then_some(())
    });
}

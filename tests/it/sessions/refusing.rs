//! Redis that answers and takes no changes, and a PostgreSQL that is restarted: what the log and `/health` say of them.

use std::time::Duration;

use super::{RedisServer, Stage, crowd, expect_everywhere, left, log_in, log_out, redis, refresh, tokens, told};
use crate::{
    harness::{Gateway, until},
    servers::postgres::PostgresServer,
};

const SOON: Duration = Duration::from_secs(20);

/// What `/health` says of the whole, of Redis, and why.
fn health(gateway: &Gateway) -> [String; 3] {
    let document = gateway.ask_admin("/health").json();
    let redis = &document["services"]["databases"]["redis"];
    [&document["status"], &redis["status"], &redis["error"]].map(|value| value.as_str().unwrap_or("").to_owned())
}

/// Lines of the log at level WARN or ERROR that name the store.
fn complaints(gateway: &Gateway, store: &str) -> Vec<String> {
    let log = gateway.log();
    // What the configuration looks like is told at the start, whatever the store does.
    let is_one = |line: &&str| {
        (line.contains("\"WARN\"") || line.contains("\"ERROR\"")) && line.contains(store) && !line.contains(".toml:")
    };
    log.lines().filter(is_one).map(str::to_owned).collect()
}

/// Redis is made to refuse changes and to take them again, by settings.
#[track_caller]
fn expect_told_once(class: &str, refuse: &[&[&str]], take: &[&[&str]]) {
    let Some(server) = RedisServer::start() else { return };
    let stage = Stage::new(&redis(&server));
    stage.add_ann();
    let (mut gateway, mut quiet) = (stage.start(), stage.start());
    for gateway in [&mut gateway, &mut quiet] {
        gateway.expect_error("Redis takes no changes");
        until(SOON, "all is well", || (health(gateway) == ["healthy", "up", ""]).then_some(()));
    }
    let session = log_in(&gateway);
    for command in refuse {
        assert_eq!(server.ask(command), "OK", "{command:?}");
    }
    for _ in 0..50 {
        assert_eq!(told(&refresh(&gateway, &session.refresh)), "503 dependency_unavailable");
    }
    // Also where nobody asks for anything.
    for gateway in [&gateway, &quiet] {
        until(SOON, "health tells", || (health(gateway) == ["degraded", "degraded", class]).then_some(()));
        assert_eq!(gateway.ask_admin("/health/ready").status, 200);
        expect_everywhere(gateway, "/admin", &session.access, "200 ok");
    }
    assert_eq!(told(&refresh(&gateway, &session.refresh)), "503 dependency_unavailable");
    for command in take {
        assert_eq!(server.ask(command), "OK", "{command:?}");
    }
    for gateway in [&gateway, &quiet] {
        until(SOON, "health tells", || (health(gateway) == ["healthy", "up", ""]).then_some(()));
        gateway.log_until("Redis is back", SOON);
        let (rooms, sessions): (Vec<_>, Vec<_>) =
            complaints(gateway, "Redis").into_iter().partition(|line| line.contains("shardgate::server::rooms"));
        assert!(sessions.len() == 1 && sessions[0].contains(class), "{sessions:#?}");
        // Their connection is another one, and may be good again before it has met it.
        assert!(rooms.len() <= 1, "{rooms:#?}");
        assert_eq!(gateway.log().matches("Redis is back").count(), 1);
    }
    let renewed = tokens(&refresh(&gateway, &session.refresh));
    log_out(&quiet, &renewed.access);
}

#[test]
fn a_redis_whose_memory_is_full_is_told_of_once() {
    let memory = |bytes| ["CONFIG", "SET", "maxmemory", bytes];
    expect_told_once("out_of_memory", &[&memory("1")], &[&memory("0")]);
}

#[test]
fn a_user_that_has_the_keys_that_the_documentation_names_is_told_of_full_memory() {
    let Some(server) = RedisServer::start() else { return };
    let documentation = include_str!("../../../docs/sessions.md");
    let (_, rest) =
        documentation.split_once("A Redis user whose keys and channels are restricted needs").expect("it names them");
    let keys = rest.split('`').nth(1).expect("in backticks").split(' ');
    let create = ["ACL", "SETUSER", "gate", "on", ">pass", "+@all"];
    assert_eq!(server.ask(&create.into_iter().chain(keys).collect::<Vec<_>>()), "OK");
    let stage = Stage::new(&redis(&server).replacen("redis://", "redis://gate:pass@", 1));
    stage.add_ann();
    let mut gateway = stage.start();
    gateway.expect_error("Redis takes no changes");
    let session = log_in(&gateway);
    let renewed = tokens(&refresh(&gateway, &session.refresh));
    // Nobody asks for anything: only the look once a second meets it.
    assert_eq!(server.ask(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
    until(SOON, "health tells", || (health(&gateway) == ["degraded", "degraded", "out_of_memory"]).then_some(()));
    assert_eq!(server.ask(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    until(SOON, "health tells", || (health(&gateway) == ["healthy", "up", ""]).then_some(()));
    log_out(&gateway, &renewed.access);
}

#[test]
fn a_redis_that_follows_another_is_told_of_once() {
    let Some(other) = RedisServer::start() else { return };
    let port = other.port().to_string();
    let follow = ["REPLICAOF", "127.0.0.1", &port];
    // What it had it loses to the other's nothing; so it follows nobody who answers.
    drop(other);
    expect_told_once("read_only", &[&follow], &[&["REPLICAOF", "NO", "ONE"]]);
}

#[test]
fn a_redis_without_its_replicas_is_told_of_once() {
    let wanted = |count| ["CONFIG", "SET", "min-replicas-to-write", count];
    expect_told_once("too_few_replicas", &[&wanted("1")], &[&wanted("0")]);
}

#[test]
fn a_postgresql_that_is_restarted_is_one_line_when_it_goes_and_one_when_it_is_back() {
    let Some(mut server) = PostgresServer::start() else { return };
    let (_stage, config) = left::with_postgres(&server, "");
    let mut gateway = Gateway::start(&config);
    gateway.expect_error("PostgreSQL is away");
    for round in 1..=3 {
        // As many connections as there may be.
        let mut clients: Vec<_> = (0..16).map(|_| gateway.connect()).collect();
        let login = crowd::request("POST", "/auth/login", "", &super::credentials());
        for client in &mut clients {
            client.send(&login);
        }
        for client in &mut clients {
            let answer = told(&client.read_response());
            assert!(["200 ok", "503 overloaded"].contains(&answer.as_str()), "{answer}");
        }
        match round {
            1 => server.stop(rustix::process::Signal::INT),
            2 => server.stop(rustix::process::Signal::QUIT),
            _ => server.kill(),
        }
        for _ in 0..8 {
            let answer = super::post(&gateway, "/auth/login", &super::credentials(), "");
            assert_eq!(told(&answer), "503 dependency_unavailable");
        }
        server.restart();
        until(SOON, "users are asked for again", || {
            (super::post(&gateway, "/auth/login", &super::credentials(), "").status == 200).then_some(())
        });
        gateway.log_until_nth("PostgreSQL is back", round, SOON);
        let said: Vec<_> = gateway
            .log()
            .lines()
            .filter(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\""))
            .map(str::to_owned)
            .collect();
        assert!(
            said.len() == round && said.iter().all(|line| line.contains("PostgreSQL is away (refused)")),
            "{said:#?}"
        );
    }
}

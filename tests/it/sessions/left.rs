//! Renewals whose clients have left: whatever stood still meanwhile, an instance or PostgreSQL, they are not made, and
//! whoever renewed elsewhere is not taken for a thief. Log-outs are made all the same.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::{
    EMAIL, PASSWORD, RedisServer, Stage, Tokens, bearer, crowd, log_in, redis, refresh, secrets::run, tokens, told,
};
use crate::{
    client::Client,
    harness::{Gateway, until},
    servers::postgres::PostgresServer,
};

const SOON: Duration = Duration::from_secs(20);

/// How a client goes away that has asked.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    /// By a FIN.
    Close,
    /// By a reset.
    Reset,
    /// It has asked once more before, and closes.
    AskAheadAndClose,
    /// By a FIN of its own direction: it would still read an answer.
    HalfClose,
}

const WAYS: [Leaving; 4] = [Leaving::Close, Leaving::Reset, Leaving::AskAheadAndClose, Leaving::HalfClose];

fn renewal(session: &Tokens) -> String {
    crowd::request("POST", "/auth/refresh", "", &json!({ "refreshToken": session.refresh }))
}

/// Asks and leaves; what is left of the connection, if it is held.
fn ask_and_leave(mut client: Client, request: String, how: Leaving) -> Option<Client> {
    client.send(request);
    match how {
        Leaving::Close => {}
        Leaving::Reset => {
            socket2::SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).expect("it is a socket");
        }
        // More than is read ahead.
        Leaving::AskAheadAndClose => client.send(format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(6_000))),
        Leaving::HalfClose => {
            client.finish();
            return Some(client);
        }
    }
    None
}

/// The lines of the access log about this.
fn lines(gateway: &Gateway, path: &str) -> usize {
    gateway.access_lines(0).iter().filter(|line| line["path"] == path).count()
}

/// The lines of the access log about renewals.
fn renewals(gateway: &Gateway) -> usize {
    lines(gateway, "/auth/refresh")
}

#[track_caller]
fn wait_for_renewals(gateway: &Gateway, count: usize) {
    until(SOON, "the renewals are over", || (renewals(gateway) >= count).then_some(()));
    until(SOON, "nothing goes on", || (crowd::load(gateway) == [0, 0]).then_some(()));
}

#[test]
fn what_is_found_of_clients_that_left_while_the_instance_stood_still_is_not_begun() {
    let Some(server) = RedisServer::start() else { return };
    let stage = Stage::new(&(redis(&server) + "refresh_grace = \"0s\"\n"));
    stage.add_ann();
    let (here, there) = (stage.start(), stage.start());
    let sessions: Vec<_> = (0..24).map(|_| log_in(&there)).collect();
    let patient = log_in(&there);
    // Every second connection has served before.
    let clients = sessions.iter().enumerate().map(|(index, _)| {
        let mut client = here.connect();
        if index % 2 == 0 {
            assert_eq!(client.get("/health/live").status, 200);
        }
        client
    });
    let clients: Vec<_> = clients.collect();
    let mut waits = here.connect();
    here.stand_still();
    let ways = WAYS.iter().cycle();
    let mut held: Vec<_> = clients
        .into_iter()
        .zip(&sessions)
        .zip(ways)
        .filter_map(|((client, session), how)| ask_and_leave(client, renewal(session), *how))
        .collect();
    waits.send(renewal(&patient));
    let renewed: Vec<_> = sessions.iter().map(|session| tokens(&refresh(&there, &session.refresh))).collect();
    here.signal(Signal::CONT);
    tokens(&waits.read_response());
    for client in &mut held {
        client.expect_end();
    }
    wait_for_renewals(&here, sessions.len() + 1);
    for (session, way) in renewed.iter().zip(WAYS.iter().cycle()) {
        assert_eq!(told(&refresh(&there, &session.refresh)), "200 ok", "{way:?}: nobody is logged out");
    }
}

#[test]
fn who_asked_a_frozen_instance_to_end_all_and_left_keeps_what_began_since() {
    let Some(server) = RedisServer::start() else { return };
    let stage = Stage::new(&redis(&server));
    stage.add_ann();
    let (here, there) = (stage.start(), stage.start());
    let session = log_in(&there);
    let clients: Vec<_> = (0..8).map(|_| here.connect()).collect();
    here.stand_still();
    let request = || crowd::request("POST", "/auth/logout-all", &bearer(&session.access), &json!({}));
    let held: Vec<_> = clients
        .into_iter()
        .zip(WAYS.iter().cycle())
        .filter_map(|(client, how)| ask_and_leave(client, request(), *how))
        .collect();
    let later = log_in(&there);
    here.signal(Signal::CONT);
    until(SOON, "all are over", || (lines(&here, "/auth/logout-all") >= 8).then_some(()));
    until(SOON, "nothing goes on", || (crowd::load(&here) == [0, 0]).then_some(()));
    assert_eq!(server.ask(&["XLEN", "shardgate:revocations"]), "0");
    assert_eq!(told(&refresh(&there, &later.refresh)), "200 ok");
    drop(held);
}

#[test]
fn log_outs_are_made_though_their_clients_leave_at_once() {
    let Some(server) = RedisServer::start() else { return };
    let stage = Stage::new(&redis(&server));
    stage.add_ann();
    let gateway = stage.start();
    let ways = [Leaving::Close, Leaving::AskAheadAndClose, Leaving::HalfClose];
    let sessions: Vec<_> = (0..24).map(|_| log_in(&gateway)).collect();
    let leave = |(session, how): (&Tokens, &Leaving)| {
        let request = crowd::request("POST", "/auth/logout", &bearer(&session.access), &json!({}));
        ask_and_leave(gateway.connect(), request, *how)
    };
    let held: Vec<_> = sessions.iter().zip(ways.iter().cycle()).map(leave).collect();
    until(SOON, "all have come", || (lines(&gateway, "/auth/logout") >= sessions.len()).then_some(()));
    let gone = || server.ask(&["XLEN", "shardgate:revocations"]) == sessions.len().to_string();
    until(SOON, "all are made", || gone().then_some(()));
    until(SOON, "nothing goes on", || (crowd::load(&gateway) == [0, 0]).then_some(()));
    for (session, way) in sessions.iter().zip(ways.iter().cycle()) {
        assert_eq!(told(&refresh(&gateway, &session.refresh)), "401 refresh_invalid", "{way:?}");
    }
    drop(held);
}

/// Gateways whose users are in PostgreSQL.
pub(super) fn with_postgres(server: &PostgresServer, rest: &str) -> (Stage, String) {
    let accounts = format!("[accounts]\npostgres_timeout = \"10s\"\npostgres_url = \"{}\"\n", server.url());
    let stage = Stage::new(rest);
    let config = stage.config().replacen("[accounts]\n", &accounts, 1);
    run(&["migrate"], &config, "");
    run(&["user", "add", EMAIL], &config, PASSWORD);
    (stage, config)
}

#[test]
fn renewals_that_waited_for_postgresql_when_their_clients_left_are_not_made() {
    let Some(server) = PostgresServer::start() else { return };
    let (_stage, config) = with_postgres(&server, "[sessions]\nrefresh_grace = \"0s\"\n");
    let gateway = Gateway::start(&config);
    let sessions: Vec<_> = (0..8).map(|_| log_in(&gateway)).collect();
    server.pause();
    let mut held: Vec<_> = sessions
        .iter()
        .map(|session| {
            let mut client = gateway.connect();
            client.send(renewal(session));
            client
        })
        .collect();
    until(SOON, "they have begun", || (crowd::load(&gateway)[0] == 8).then_some(()));
    held.clear();
    until(SOON, "they are missed", || (renewals(&gateway) >= 8).then_some(()));
    server.go_on();
    wait_for_renewals(&gateway, 8);
    for session in &sessions {
        assert_eq!(told(&refresh(&gateway, &session.refresh)), "200 ok", "it was never spent");
    }
}

#[test]
fn renewals_that_were_under_way_when_the_instance_stood_still_are_not_made() {
    let Some(redis_server) = RedisServer::start() else { return };
    let Some(server) = PostgresServer::start() else { return };
    let (_stage, config) = with_postgres(&server, &(redis(&redis_server) + "refresh_grace = \"0s\"\n"));
    let (here, there) = (Gateway::start(&config), Gateway::start(&config));
    let sessions: Vec<_> = (0..8).map(|_| log_in(&here)).collect();
    server.pause();
    let clients: Vec<_> = sessions
        .iter()
        .map(|session| {
            let mut client = here.connect();
            client.send(renewal(session));
            client
        })
        .collect();
    until(SOON, "they have begun", || (crowd::load(&here)[0] == 8).then_some(()));
    here.stand_still();
    drop(clients);
    server.go_on();
    let renewed: Vec<_> = sessions.iter().map(|session| tokens(&refresh(&there, &session.refresh))).collect();
    here.signal(Signal::CONT);
    wait_for_renewals(&here, 8);
    for session in &renewed {
        assert_eq!(told(&refresh(&there, &session.refresh)), "200 ok", "nobody is logged out");
    }
}

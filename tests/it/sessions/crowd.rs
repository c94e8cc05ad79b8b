//! Clients that ask and leave, by the thousand: what goes on without them is bounded, the others are told in time, and
//! what was begun is whole.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    EMAIL, PASSWORD, RedisServer, Stage, Tokens, ask, bearer, expect_everywhere, log_in, log_out, post, redis, refresh,
    secrets::run, tokens, told,
};
use crate::{
    client::{Client, Response},
    harness::{Gateway, until},
    servers::postgres::PostgresServer,
};

const SOON: Duration = Duration::from_secs(20);
const UNDER_WAY: &str = "shardgate_account_operations_under_way";
const WAITING: &str = "shardgate_account_operations_waiting";
/// What the bridge begins at once of renewals, and of endings.
const AT_ONCE_MAX: i64 = 512;

pub(super) fn request(method: &str, path: &str, fields: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{fields}\r\n{body}",
        body.len()
    )
}

/// Asks, and leaves before there is an answer.
fn ask_and_leave(gateway: &Gateway, request: &str) {
    gateway.connect().send(request);
}

/// Asks as often as this, and waits.
#[track_caller]
fn ask_and_wait<'c>(gateway: &Gateway, count: usize, requests: impl Iterator<Item = &'c String>) -> Vec<Client> {
    let ask = |request| {
        let mut client = gateway.connect();
        client.send(request);
        client
    };
    requests.take(count).map(ask).collect()
}

/// The endings and renewals of a session that clients ask for.
fn changes(session: &Tokens) -> [String; 4] {
    let (bearer, nothing) = (bearer(&session.access), json!({}));
    [
        request("POST", "/auth/refresh", "", &json!({ "refreshToken": session.refresh })),
        request("POST", "/auth/logout", &bearer, &nothing),
        request("POST", "/auth/logout-all", &bearer, &nothing),
        request("DELETE", "/auth/sessions/s_0123456789abcdefghijkl", &bearer, &nothing),
    ]
}

/// How much the bridge has to do. Never more at once than may be.
#[track_caller]
pub(super) fn load(gateway: &Gateway) -> [i64; 2] {
    let metrics = gateway.metrics();
    let load = [UNDER_WAY, WAITING].map(|name| metrics.value(name));
    assert!(load[0] <= 2 * AT_ONCE_MAX, "{load:?}");
    load
}

/// Whether an answer is a refusal that says when to come again.
#[track_caller]
fn expect_put_off(answer: &Response) {
    let told = told(answer);
    assert!(["503 overloaded", "503 dependency_unavailable"].contains(&told.as_str()), "{told}");
    assert!(answer.field("retry-after").is_some(), "{answer:?}");
}

#[test]
fn clients_that_ask_a_hanging_redis_and_leave_pile_nothing_up() {
    let Some(server) = RedisServer::start() else { return };
    let stage = Stage::new(&redis(&server).replace("\ntimeout = \"250ms\"", "\ntimeout = \"10s\""));
    stage.add_ann();
    let gateway = stage.start();
    let (session, other, third) = (log_in(&gateway), log_in(&gateway), log_in(&gateway));
    server.pause();
    let changes = changes(&session);
    // More than may be under way at once of renewals, which are not begun for those who have left, and of endings.
    let first = changes[..2].iter().cycle();
    let waiting = ask_and_wait(&gateway, 1_040, first);
    until(SOON, "as much is under way as may be", || (load(&gateway)[0] == 2 * AT_ONCE_MAX).then_some(()));
    drop(waiting);
    for change in changes.iter().cycle().take(1_360) {
        ask_and_leave(&gateway, change);
    }
    until(SOON, "as much is under way as may be, and what waited has been withdrawn", || {
        (load(&gateway) == [2 * AT_ONCE_MAX, 0]).then_some(())
    });
    let put_off = gateway.metrics().value("shardgate_rejects_total{code=\"overloaded\"}");
    // Had they been waited for until their time was up, it would be all that could not begin.
    let too_many = 2_400 - 2 * AT_ONCE_MAX;
    assert!(put_off < too_many / 2, "{put_off} were still waited for when their time was up");
    // Whoever waits is told in time, and everything else goes on.
    let mut patient: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    for (client, change) in patient.iter_mut().zip(changes.iter().cycle()) {
        client.send(change);
    }
    expect_everywhere(&gateway, "/any/x", &session.access, "200 ok");
    for client in &mut patient {
        expect_put_off(&client.read_response());
    }
    // Once the first timeouts have told, nobody waits.
    until(SOON, "all that was begun has ended", || (load(&gateway) == [0, 0]).then_some(()));
    for change in &changes {
        let mut client = gateway.connect();
        client.send(change);
        expect_put_off(&client.read_response());
    }

    server.go_on();
    let renewed = tokens(&until(SOON, "sessions are asked for again", || {
        Some(refresh(&gateway, &session.refresh)).filter(|answer| answer.status != 503)
    }));
    // Nothing that was given up has been done.
    for token in [&session.access, &renewed.access, &other.access] {
        expect_everywhere(&gateway, "/any/x", token, "200 ok");
    }
    // The log is followed on a connection of its own, which may be back a little later.
    log_out(&gateway, &third.access);
    until(SOON, "the log is followed again", || {
        let answer = ask(&mut gateway.connect(), "/any/x", &third.access);
        (told(&answer) == "401 token_revoked").then_some(())
    });
    log_out(&gateway, &other.access);
    expect_everywhere(&gateway, "/any/x", &other.access, "401 token_revoked");
    assert_eq!(told(&refresh(&gateway, &other.refresh)), "401 refresh_invalid");
    let answer = post(&gateway, "/auth/logout-all", &json!({}), &bearer(&renewed.access));
    assert_eq!(answer.status, 204);
    expect_everywhere(&gateway, "/any/x", &renewed.access, "401 token_revoked");
}

#[test]
fn renewals_that_wait_for_a_hanging_postgresql_hold_up_no_log_out() {
    let Some(server) = PostgresServer::start() else { return };
    let accounts = format!("[accounts]\npostgres_timeout = \"10s\"\npostgres_url = \"{}\"\n", server.url());
    let stage = Stage::new("");
    let config = stage.config().replacen("[accounts]\n", &accounts, 1);
    run(&["migrate"], &config, "");
    run(&["user", "add", EMAIL], &config, PASSWORD);
    let gateway = Gateway::start(&config);
    let (session, other) = (log_in(&gateway), log_in(&gateway));
    server.pause();
    let [renewal, ..] = changes(&other);
    let waiting = ask_and_wait(&gateway, 700, std::iter::repeat(&renewal));
    until(SOON, "as many renewals are under way as may be", || (load(&gateway)[0] == AT_ONCE_MAX).then_some(()));
    drop(waiting);
    log_out(&gateway, &session.access);
    expect_everywhere(&gateway, "/any/x", &session.access, "401 token_revoked");
    server.go_on();
    // None of them was spent for nothing.
    until(SOON, "users are asked for again", || (refresh(&gateway, &other.refresh).status == 200).then_some(()));
}

/// For each of many sessions a client asks for its end and leaves at once.
#[track_caller]
fn expect_each_ended_or_untouched(stage: &Stage) {
    stage.add_ann();
    let gateway = stage.start();
    let sessions: Vec<_> = (0..200).map(|_| log_in(&gateway)).collect();
    for session in &sessions {
        ask_and_leave(&gateway, &request("POST", "/auth/logout", &bearer(&session.access), &json!({})));
    }
    // The one that stays is last in the queue, so that what was begun before it has ended.
    let last = log_in(&gateway);
    log_out(&gateway, &last.access);
    until(SOON, "all that was begun has ended", || (load(&gateway) == [0, 0]).then_some(()));
    let mut ended = 0;
    for session in &sessions {
        let access = told(&ask(&mut Client::connect(gateway.address()), "/any/x", &session.access));
        let renewal = told(&refresh(&gateway, &session.refresh));
        match (access.as_str(), renewal.as_str()) {
            ("401 token_revoked", "401 refresh_invalid") => ended += 1,
            ("200 ok", "200 ok") => {}
            half_done => panic!("{half_done:?}"),
        }
    }
    eprintln!("{ended} of {} sessions were ended", sessions.len());
    assert!(ended > 0, "some had begun before their clients left");
}

#[test]
fn log_outs_whose_clients_leave_are_done_or_never_begun() {
    let most = "[sessions]\nper_user_max = 1000\n";
    expect_each_ended_or_untouched(&Stage::new(most));
    let Some(server) = RedisServer::start() else { return };
    expect_each_ended_or_untouched(&Stage::new(&(redis(&server) + "per_user_max = 1000\n")));
}

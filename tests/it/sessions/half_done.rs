//! Log-outs that Redis lets begin and not end: two gateways, and a user of Redis that may write the log but no record.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::{
    RedisServer, Stage, Tokens, ask, bearer, expect_everywhere, log_in, log_out, post, redis, refresh, tokens, told,
};
use crate::{
    client::Response,
    harness::{Gateway, until},
};

const SOON: Duration = Duration::from_secs(20);
const AWAY: &str = "503 dependency_unavailable";

/// The session of a token.
fn sid(gateway: &Gateway, tokens: &Tokens) -> String {
    let sessions = ask(&mut gateway.connect(), "/auth/sessions", &tokens.access).json();
    let is_current = |session: &&serde_json::Value| session["current"] == true;
    let current = sessions["sessions"].as_array().expect("a list").iter().find(is_current).expect("it asks");
    current["sid"].as_str().expect("an id").to_owned()
}

fn end(gateway: &Gateway, sid: &str, token: &str) -> Response {
    let mut client = gateway.connect();
    client.send(format!("DELETE /auth/sessions/{sid} HTTP/1.1\r\nhost: gateway.test\r\n{}\r\n", bearer(token)));
    client.read_response()
}

fn out(gateway: &Gateway, path: &str, token: &str) -> String {
    let answer = post(gateway, path, &json!({}), &bearer(token));
    if answer.status == 204 { "204".to_owned() } else { told(&answer) }
}

struct House {
    server: RedisServer,
    user: String,
}

impl House {
    fn set(&self, rights: &[&str]) {
        assert_eq!(self.server.ask(&[&["ACL", "SETUSER", "gate"], rights].concat()), "OK");
    }

    fn close_records(&self) {
        self.set(&["-set", "-del"]);
    }

    fn open_records(&self) {
        self.set(&["+set", "+del"]);
    }

    fn record(&self) -> String {
        self.server.ask(&["GET", &self.user])
    }

    #[track_caller]
    fn until_gone(&self, sid: &str) {
        until(SOON, "the session goes from its record", || (!self.record().contains(sid)).then_some(()));
    }
}

#[test]
fn a_log_out_that_is_half_done_is_finished_and_let_in_nowhere_meanwhile() {
    let Some(server) = RedisServer::start() else { return };
    server.ask(&["ACL", "SETUSER", "gate", "on", ">pass", "~*", "&*", "+@all"]);
    let stage = Stage::new(&redis(&server).replace("redis://", "redis://gate:pass@"));
    stage.add_ann();
    let (mut here, mut there) = (stage.start(), stage.start());
    // What Redis refuses is told.
    here.expect_error("");
    there.expect_error("");
    let [ended, named, other, last] = [(); 4].map(|()| log_in(&here));
    let [ended_sid, named_sid, last_sid] = [&ended, &named, &last].map(|tokens| sid(&here, tokens));
    let user = server.ask(&["KEYS", "session:*"]);
    let house = House { server, user };

    house.close_records();
    assert_eq!(out(&here, "/auth/logout", &ended.access), AWAY);
    assert_eq!(told(&end(&here, &named_sid, &other.access)), AWAY);
    for gateway in [&here, &there] {
        for token in [&ended.access, &named.access] {
            until(SOON, "it has heard", || {
                (told(&ask(&mut gateway.connect(), "/any/x", token)) == "401 token_revoked").then_some(())
            });
        }
        // Whoever asks again is told that it is not done, and not that it cannot be asked.
        for _ in 0..8 {
            assert_eq!(out(gateway, "/auth/logout", &ended.access), AWAY);
        }
        assert_eq!(told(&end(gateway, &ended_sid, &ended.access)), AWAY);
        assert_eq!(told(&end(gateway, &named_sid, &other.access)), AWAY);
        // No other end is to be had with a token that is revoked, and nothing else.
        assert_eq!(out(gateway, "/auth/logout-all", &ended.access), "401 token_revoked");
        assert_eq!(told(&end(gateway, &last_sid, &ended.access)), "401 token_revoked");
        for path in ["/auth/me", "/auth/sessions", "/any/x", "/admin"] {
            expect_everywhere(gateway, path, &ended.access, "401 token_revoked");
        }
        let listed = ask(&mut gateway.connect(), "/auth/sessions", &other.access);
        assert_eq!(listed.status, 200);
        assert!(listed.text().contains(&last_sid), "{}", listed.text());
        assert!(![&ended_sid, &named_sid].iter().any(|sid| listed.text().contains(*sid)), "{}", listed.text());
        assert_ne!(refresh(gateway, &ended.refresh).status, 200);
    }
    assert!(house.record().contains(&ended_sid), "it is only half done");

    // The one that began it is gone; the other finishes it, unasked.
    here.signal(Signal::KILL);
    here.wait_exit(SOON);
    house.open_records();
    house.until_gone(&ended_sid);
    house.until_gone(&named_sid);
    assert_eq!(out(&there, "/auth/logout", &ended.access), "204");
    for tokens in [&ended, &named] {
        assert_eq!(told(&refresh(&there, &tokens.refresh)), "401 refresh_invalid");
    }

    // Asked again it is done at once, whoever is asked, and so is a log-out of all.
    let here = {
        let mut here = stage.start();
        here.expect_error("");
        here
    };
    house.close_records();
    assert_eq!(out(&there, "/auth/logout-all", &other.access), AWAY);
    for gateway in [&here, &there] {
        until(SOON, "it has heard", || {
            (told(&ask(&mut gateway.connect(), "/any/x", &last.access)) == "401 token_revoked").then_some(())
        });
        for token in [&other.access, &last.access] {
            assert_eq!(out(gateway, "/auth/logout-all", token), AWAY);
            assert_eq!(out(gateway, "/auth/logout", token), AWAY);
        }
    }
    house.open_records();
    assert_eq!(out(&here, "/auth/logout-all", &other.access), "204");
    assert_eq!(house.record(), "", "nothing is left of it");
    for gateway in [&here, &there] {
        assert_eq!(out(gateway, "/auth/logout-all", &last.access), "204");
        assert_eq!(out(gateway, "/auth/logout", &last.access), "204");
        assert_eq!(end(gateway, &last_sid, &last.access).status, 204);
    }
    // Whoever logs in after it stays.
    let new = log_in(&here);
    assert_eq!(out(&there, "/auth/logout-all", &last.access), "204");
    tokens(&refresh(&there, &new.refresh));
}

#[test]
fn a_log_out_that_is_done_is_done_when_it_is_asked_for_again() {
    let stage = Stage::new("");
    stage.add_ann();
    let gateway = stage.start();
    let (ended, other) = (log_in(&gateway), log_in(&gateway));
    let ended_sid = sid(&gateway, &ended);
    for _ in 0..8 {
        log_out(&gateway, &ended.access);
    }
    assert_eq!(end(&gateway, &ended_sid, &ended.access).status, 204);
    assert_eq!(out(&gateway, "/auth/logout-all", &ended.access), "401 token_revoked");
    assert_eq!(told(&end(&gateway, &sid(&gateway, &other), &ended.access)), "401 token_revoked");
    expect_everywhere(&gateway, "/auth/me", &ended.access, "401 token_revoked");
    expect_everywhere(&gateway, "/any/x", &other.access, "200 ok");
    for _ in 0..8 {
        assert_eq!(out(&gateway, "/auth/logout-all", &other.access), "204");
    }
    assert_eq!(told(&refresh(&gateway, &other.refresh)), "401 refresh_invalid");
}

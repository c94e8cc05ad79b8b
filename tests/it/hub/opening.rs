//! How a socket opens: the handshake, the page that asks, and the token in each of its places.

use std::time::Duration;

use serde_json::json;

use super::{
    ATTEMPTS_MAX, expect_closed,
    socket::{ASK, Heard, Socket},
    start, token, unix_now, user,
};
use crate::{
    client::Response,
    harness::{Gateway, now, pause, until},
    journey::tokens::{self, KeyServer, jwk, secret},
};
use jsonwebtoken::Algorithm;

fn ask(gateway: &Gateway, request: &str) -> Response {
    let mut client = gateway.connect();
    client.send(request);
    client.read_response()
}

fn expired() -> String {
    token(&json!({ "sub": "42", "iat": unix_now() - 600, "exp": unix_now() - 60 }))
}

#[test]
fn what_is_no_handshake_is_refused() {
    let gateway = start("");
    let without = |line: &str| {
        let asked = format!("{ASK}\r\n").replace(line, "");
        assert!(asked.len() < ASK.len() + 2, "{line:?} is in it");
        asked
    };
    let with = |from: &str, to: &str| format!("{ASK}\r\n").replace(from, to);
    for (request, status, code) in [
        ("GET /ws HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 426, "upgrade_required"),
        (without("Upgrade: websocket\r\n"), 426, "upgrade_required"),
        (with("Version: 13", "Version: 8"), 426, "upgrade_required"),
        (without("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), 400, "bad_request"),
        (with("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400, "bad_request"),
        (with("GET ", "POST "), 405, "method_not_allowed"),
    ] {
        let answer = ask(&gateway, &request);
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{request}: {answer:?}");
        match status {
            426 => {
                assert_eq!(answer.field("upgrade"), Some("websocket"), "RFC 9110 §15.5.22");
                assert_eq!(answer.field("sec-websocket-version"), Some("13"), "RFC 6455 §4.4");
            }
            405 => assert_eq!(answer.field("allow"), Some("GET, HEAD"), "RFC 9110 §15.5.6"),
            _ => {}
        }
    }
}

#[test]
fn pages_of_other_origins_open_no_sockets() {
    let gateway = start("[cors]\norigins = [\"https://shop.example\"]\n");
    let bearer = format!("Authorization: Bearer {}\r\n", user("42"));
    let with = |origin: &str| Socket::on(gateway.connect(), &format!("{bearer}{origin}"));
    for good in
        ["", "Origin: https://shop.example\r\n", "Origin: http://shop.test\r\n", "Origin: https://SHOP.test\r\n"]
    {
        let (mut socket, answer) = with(good).unwrap_or_else(|answer| panic!("{good}: {answer:?}"));
        assert_eq!(answer.field("sec-websocket-protocol"), None, "it was not asked for");
        assert_eq!(socket.hear()["type"], "welcome", "{good}");
    }
    for foreign in [
        "http://shop.example",
        "https://shop.example.evil.test",
        "https://evil.test",
        "null",
        "http://shop.test:81",
        "",
    ] {
        let answer = with(&format!("Origin: {foreign}\r\n")).expect_err(foreign);
        assert_eq!((answer.status, &answer.json()["code"]), (403, &json!("forbidden")), "{foreign}");
    }
    let answer = with("Origin: https://shop.example\r\nOrigin: https://evil.test\r\n").expect_err("two of them");
    assert!([400, 403].contains(&answer.status), "{answer:?}");
}

#[test]
fn limits_by_user_count_sockets_that_open() {
    let gateway = start("[limits.mine]\nkey = \"user\"\nquota = 3\nwindow = \"1d\"\n");
    let bearer = |name: &str| format!("Authorization: Bearer {}\r\n", user(name));
    let protocol = |name: &str| format!("Sec-WebSocket-Protocol: shardgate.v1, bearer.{}\r\n", user(name));
    let open = |fields: String| Socket::on(gateway.connect(), &fields);
    // What is refused before anybody is known, or as no handshake, counts for nobody.
    assert_eq!(open("Authorization: Bearer nonsense\r\n".to_owned()).expect_err("a bad token").status, 401);
    assert_eq!(open(format!("{}Origin: https://evil.test\r\n", bearer("42"))).expect_err("its page").status, 403);
    for fields in [bearer("42"), protocol("42"), bearer("42")] {
        let (mut socket, answer) = open(fields).expect("it opens");
        assert!(answer.field("ratelimit").is_some_and(|left| left.starts_with("\"mine\";r=")), "{answer:?}");
        assert_eq!(socket.hear()["userId"], "42");
    }
    // What other shards have counted may be on its way still.
    let mut more = 0;
    for fields in [bearer("42"), protocol("42")] {
        let answer = until(super::SOON, "three are all", || {
            let refused = open(fields.clone()).err();
            more += i32::from(refused.is_none());
            refused
        });
        assert_eq!((answer.status, &answer.json()["code"]), (429, &json!("rate_limited")), "{answer:?}");
        assert!(answer.field("retry-after").is_some(), "{answer:?}");
    }
    assert!(more <= 3, "{more} more than three, from one shard each");
    open(bearer("43")).expect("another user");
    // Who says it later is counted by the hub's own limits.
    for _ in 0..4 {
        let mut socket = Socket::bare(&gateway, "");
        let answer = socket.ask(&json!({ "type": "auth", "id": "1", "payload": { "token": user("44") } }));
        assert_eq!(answer["type"], "auth_ok", "{answer}");
    }
    until(super::SOON, "no session is held by those that were refused", || {
        (gateway.metrics().sum("shardgate_sockets_open") == 0).then_some(())
    });
}

#[test]
fn a_token_comes_as_a_subprotocol() {
    let gateway = start("");
    for (offered, answered) in [
        (format!("shardgate.v1, bearer.{}", user("42")), Some("shardgate.v1")),
        (format!("bearer.{},shardgate.v1,other", user("42")), Some("shardgate.v1")),
        (format!("other, bearer.{}", user("42")), None),
    ] {
        let fields = format!("Sec-WebSocket-Protocol: {offered}\r\n");
        let (mut socket, answer) = Socket::on(gateway.connect(), &fields).expect("it opens");
        assert_eq!(answer.field("sec-websocket-protocol"), answered, "never the token: {answer:?}");
        let welcome = socket.hear();
        assert_eq!((&welcome["type"], &welcome["userId"]), (&json!("welcome"), &json!("42")), "{welcome}");
    }
    for line in gateway.access_lines(3) {
        assert!(!line.to_string().contains("bearer."), "{line}");
    }
}

#[test]
fn a_token_comes_as_the_first_message() {
    let gateway = start("");
    let mut shards = [false; 4];
    for n in 0.. {
        assert!(n < ATTEMPTS_MAX, "each shard has its turn");
        let mut socket = Socket::bare(&gateway, "");
        let asked = socket.ask(&json!({ "type": "heartbeat", "id": "h", "payload": {} }));
        assert_eq!(asked["type"], "heartbeat", "the one thing beside auth: {asked}");
        socket.say(&json!({ "type": "join_room", "id": "2", "room": "public.a" }));
        socket.expect_error(&json!("2"), "unauthenticated");
        let answer = socket.ask(&json!({ "type": "auth", "id": "1", "payload": { "token": user("42") } }));
        assert_eq!((&answer["type"], &answer["id"], &answer["userId"]), (&json!("auth_ok"), &json!("1"), &json!("42")));
        socket.welcome = socket.hear();
        assert_eq!(socket.welcome["type"], "welcome", "right behind it: {}", socket.welcome);
        socket.join("public.a");
        shards[socket.shard()] = true;
        if shards == [true; 4] {
            return;
        }
    }
}

#[test]
fn without_a_token_a_socket_ends_in_time() {
    let gateway = start("[hub]\nauth_timeout = \"1s\"\n");
    let began = now();
    let mut socket = Socket::bare(&gateway, "");
    // Heartbeats do not extend the time.
    loop {
        socket.say(&json!({ "type": "heartbeat", "payload": {} }));
        match socket.hear_frame() {
            Heard::Text(text) => assert!(text.contains("heartbeat"), "{text}"),
            Heard::Close(code, _) => {
                assert_eq!(code, Some(4100));
                break;
            }
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < super::SOON, "it lives on");
        pause(Duration::from_millis(100));
    }
    assert!(began.elapsed() > Duration::from_millis(900), "it had its time: {:?}", began.elapsed());
    expect_closed(&gateway, "unauthenticated", 1);
}

#[test]
fn a_token_comes_in_the_query_where_that_is_configured() {
    let gateway = start("[hub]\ntoken_query = \"token\"\n");
    let token = user("42");
    for n in 0..8 {
        let mut client = gateway.connect();
        client.send(format!("{ASK}\r\n").replace("GET /ws ", &format!("GET /ws?a=1&token={token}&b=2 ")));
        let answer = client.read_response();
        assert_eq!(answer.status, 101, "{n}: {answer:?}");
    }
    for line in gateway.access_lines(8) {
        let line = line.to_string();
        let proof = token.rsplit('.').next().expect("three parts");
        assert!(!line.contains(proof) && !line.contains(&token), "{line}");
    }
    let bad = ask(&gateway, &format!("{ASK}\r\n").replace("GET /ws ", "GET /ws?token=nonsense "));
    assert_eq!((bad.status, &bad.json()["code"]), (401, &json!("token_invalid")));
}

#[test]
fn a_token_in_the_query_is_none_where_that_is_not_configured() {
    let gateway = start("");
    let asked = ASK.replace("GET /ws ", &format!("GET /ws?token={} ", expired()));
    let mut client = gateway.connect();
    client.send(format!("{asked}\r\n"));
    assert_eq!(client.read_response().status, 101, "as without a token");
    gateway.metrics_until("it lives", |metrics| metrics.sum("shardgate_sockets_open") == 1);
}

#[test]
fn a_bad_token_is_never_as_none() {
    let gateway = start("");
    for (bad, code, close) in [("nonsense".to_owned(), "token_invalid", 4100), (expired(), "token_expired", 4101)] {
        for _ in 0..8 {
            let refused = Socket::on(gateway.connect(), &format!("Authorization: Bearer {bad}\r\n")).expect_err("401");
            assert_eq!((refused.status, &refused.json()["code"]), (401, &json!(code)));
            // A browser is not shown a 401.
            let fields = format!("Sec-WebSocket-Protocol: shardgate.v1, bearer.{bad}\r\n");
            let (mut socket, answer) = Socket::on(gateway.connect(), &fields).expect("it opens");
            assert_eq!(answer.field("sec-websocket-protocol"), Some("shardgate.v1"));
            assert_eq!(socket.hear_close(), (vec![], close));
            let mut socket = Socket::bare(&gateway, "");
            socket.say(&json!({ "type": "auth", "id": "1", "payload": { "token": bad } }));
            socket.expect_error(&json!("1"), code);
            socket.expect_close(close);
        }
    }
    let both = format!("Authorization: Bearer {0}\r\nSec-WebSocket-Protocol: bearer.{0}\r\n", user("42"));
    let refused = Socket::on(gateway.connect(), &both).expect_err("more than one token");
    assert_eq!(refused.status, 400);
}

#[test]
fn sockets_without_a_token_are_bounded_by_address() {
    let gateway = start("[hub]\nunauthenticated_per_address_max = 2\n");
    let mut open = Vec::new();
    loop {
        let mut socket = Socket::bare(&gateway, "");
        socket.say(&json!({ "type": "heartbeat" }));
        match socket.hear_frame() {
            Heard::Text(_) => open.push(socket),
            Heard::Close(code, _) => {
                assert_eq!(code, Some(4104));
                break;
            }
            other => panic!("{other:?}"),
        }
        assert!(open.len() <= 8, "two on each shard");
    }
    assert!(open.len() >= 2, "{}", open.len());
    // One that has logged in counts no more.
    for socket in &mut open {
        socket.ask(&json!({ "type": "auth", "payload": { "token": user("42") } }));
        assert_eq!(socket.hear()["type"], "welcome");
    }
    let mut fresh = Socket::bare(&gateway, "");
    assert_eq!(fresh.ask(&json!({ "type": "heartbeat" }))["type"], "heartbeat");
}

#[test]
fn a_client_with_many_ipv6_addresses_is_one() {
    let limits = "[hub]\nunauthenticated_per_address_max = 2\n[trust]\nproxies = [\"127.0.0.0/8\"]\n";
    let gateway = start(limits);
    let from = |address: String| {
        let mut socket = Socket::bare(&gateway, &format!("X-Forwarded-For: {address}\r\n"));
        socket.say(&json!({ "type": "heartbeat" }));
        matches!(socket.hear_frame(), Heard::Text(_)).then_some(socket)
    };
    let open: Vec<_> = (0..40).map_while(|n| from(format!("2001:db8::{n:x}"))).collect();
    assert!((2..=8).contains(&open.len()), "two on each shard, not {}", open.len());
    assert!(from("2001:db8:0:1::1".to_owned()).is_some(), "that is another one");
}

#[test]
fn a_user_has_so_many_sockets_wherever_they_are() {
    let gateway = start("[hub]\nsockets_per_user_max = 5\n");
    let mut open: Vec<Socket> = (0..5).map(|_| Socket::open(&gateway, &user("42"))).collect();
    for socket in &mut open {
        // Some of these rooms are at home where the user's sockets are counted: what answers there has heard of this one.
        (0..40).for_each(|n| drop(socket.join(&format!("public.{n}"))));
    }
    for _ in 0..12 {
        let mut more = Socket::bare(&gateway, &format!("Authorization: Bearer {}\r\n", user("42")));
        more.expect_close(4104);
    }
    expect_closed(&gateway, "too_many_connections", 12);
    for socket in &mut open {
        socket.expect_nothing();
    }
    assert_eq!(Socket::open(&gateway, &user("43")).welcome["userId"], "43", "others are not concerned");
    // Who leaves makes room.
    open.pop();
    let mut again = until(super::SOON, "there is room again", || {
        let mut again = Socket::open(&gateway, &user("42"));
        // It may come before it is known where they are counted that the other has gone. Some of these rooms are at home there.
        let stays = (0..40).all(|n| {
            again.say(&json!({ "type": "join_room", "room": format!("public.{n}"), "payload": {} }));
            matches!(again.hear_frame(), Heard::Text(_))
        });
        stays.then_some(again)
    });
    again.expect_nothing();
}

#[test]
fn an_instance_has_so_many_sockets() {
    let gateway = start("[hub]\nsockets_max = 4\n");
    let mut open = Vec::new();
    let refused = (0..ATTEMPTS_MAX).find_map(|n| {
        let mut socket = Socket::bare(&gateway, &format!("Authorization: Bearer {}\r\n", user(&n.to_string())));
        match socket.hear_frame() {
            Heard::Text(_) => open.push(socket),
            Heard::Close(code, _) => return code,
            other => panic!("{other:?}"),
        }
        None
    });
    assert_eq!(refused, Some(4104));
    assert!((1..=4).contains(&open.len()), "{}", open.len());
}

#[test]
fn without_a_hub_its_paths_are_like_any_other() {
    let gateway = start("[hub]\nenabled = false\n");
    assert_eq!(ask(&gateway, &format!("{ASK}\r\n")).status, 404);
    assert_eq!(gateway.get("/hub/rooms/public.a").status, 404);
}

/// A write costs more than all else that a handshake takes: there is one for its answer and the welcome.
#[test]
fn the_welcome_comes_with_the_answer_to_the_handshake() {
    let gateway = start("");
    for _ in 0..16 {
        let mut client = gateway.connect();
        client.send(format!("{ASK}Authorization: Bearer {}\r\n\r\n", user("42")));
        let first = client.read_some().expect("read");
        let first = String::from_utf8_lossy(&first);
        assert!(first.starts_with("HTTP/1.1 101 ") && first.contains("\"welcome\""), "{first}");
    }
}

#[test]
fn a_message_right_behind_the_handshake_is_heard() {
    use shardgate::proto::websocket::{Opcode, client_frame};
    let gateway = start("");
    for _ in 0..8 {
        let mut client = gateway.connect();
        let early = client_frame(Opcode::Text, true, br#"{"type":"heartbeat","id":"early"}"#, super::socket::KEY);
        client.send([format!("{ASK}Authorization: Bearer {}\r\n\r\n", user("42")).as_bytes(), &early].concat());
        assert_eq!(client.read_response().status, 101);
        client.read_until("\"early\"");
    }
}

/// A browser's refusal is a close, and not the answer; the keys that its token names are wanted all the same.
#[test]
fn an_issuers_new_key_is_fetched_for_a_browser_too() {
    let server = KeyServer::start(&json!({ "keys": [jwk("one", "RS256", "rsa.pem")] }));
    let issuer = format!(
        "{}[[auth.issuers]]\nissuer = \"https://id.example\"\njwks_url = \"http://{}/keys\"\n\
         unknown_key_cooldown = \"100ms\"\nclaim_role = \"none\"\n",
        secret("hs", true),
        server.address
    );
    let gateway = Gateway::start(&issuer);
    let is_let_in = |token: &str| {
        // While the issuer has not been asked yet, the answer is a 503.
        let fields = format!("Sec-WebSocket-Protocol: shardgate.v1, bearer.{token}\r\n");
        Socket::on(gateway.connect(), &fields)
            .is_ok_and(|(mut socket, _)| matches!(socket.hear_frame(), Heard::Text(_)))
    };
    let one = tokens::token("https://id.example", "one", Algorithm::RS256, "rsa.pem");
    let two = tokens::token("https://id.example", "two", Algorithm::EdDSA, "ed25519.pem");
    until(super::SOON, "the first key", || is_let_in(&one).then_some(()));
    server.next.send(json!({ "keys": [jwk("two", "EdDSA", "ed25519.pem")] }).to_string()).expect("it runs");
    until(super::SOON, "the second key", || is_let_in(&two).then_some(()));
}

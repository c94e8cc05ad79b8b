//! What services and operators ask of the hub over HTTP.

use serde_json::{Value, json};

use super::{
    SOON, on_each_shard, on_each_shard_of,
    socket::{Socket, timeless},
    start, token, user, with_role,
};
use crate::{
    client::Response,
    harness::{Gateway, until},
};

/// Asks with a token and a body of JSON.
#[track_caller]
pub(super) fn ask(gateway: &Gateway, method: &str, path: &str, token: &str, body: &Value) -> Response {
    send(gateway, method, path, token, "application/json", body.to_string().as_bytes())
}

#[track_caller]
fn send(gateway: &Gateway, method: &str, path: &str, token: &str, kind: &str, body: &[u8]) -> Response {
    let mut client = gateway.connect();
    let length = body.len();
    client.send(format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\n\
         Content-Length: {length}\r\n\r\n"
    ));
    client.send(body);
    client.read_response()
}

#[track_caller]
pub(super) fn get(gateway: &Gateway, path: &str, token: &str) -> Response {
    let mut client = gateway.connect();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"));
    client.read_response()
}

fn service() -> String {
    with_role("pricing", "service")
}

#[test]
fn a_service_speaks_in_a_room_from_any_shard() {
    let gateway = start("");
    let mut sockets = on_each_shard(&gateway);
    let mut epoch = Value::Null;
    for socket in &mut sockets {
        epoch = socket.join("public.sale")["epoch"].clone();
    }
    // Over connections of their own: each shard has its turn.
    for n in 1..=32 {
        let path = "/hub/rooms/public.sale/publish";
        let said = ask(&gateway, "POST", path, &service(), &json!({ "type": "price", "payload": { "n": n } }));
        assert_eq!(said.status, 202, "{}", said.text());
        assert_eq!(said.json(), json!({ "room": "public.sale", "seq": n, "epoch": epoch }));
    }
    let said = ask(&gateway, "POST", "/hub/rooms/public.sale/publish", &service(), &json!({ "payload": null }));
    assert_eq!(said.status, 202);
    for socket in &mut sockets {
        for n in 1..=32 {
            socket.expect(
                &json!({ "type": "price", "room": "public.sale", "seq": n, "epoch": epoch, "payload": { "n": n } }),
            );
        }
        let left_out = timeless(socket.hear());
        assert_eq!((&left_out["type"], &left_out["payload"]), (&json!("room_message"), &Value::Null), "{left_out}");
    }
}

#[test]
fn an_id_may_be_written_with_escapes() {
    let gateway = start("");
    let publish = |body: &str| {
        let path = "/hub/rooms/public.sale/publish";
        let said = send(&gateway, "POST", path, &service(), "application/json", body.as_bytes());
        assert_eq!(said.status, 202, "{}", said.text());
        said.json()["seq"].clone()
    };
    let plain = publish("{\"payload\":1,\"id\":\"\u{e9}\"}");
    assert_eq!(publish(r#"{"payload":1,"id":"\u00e9","type":"pr\u0069ce"}"#), plain, "it is the same text");
    assert_ne!(publish(r#"{"payload":1,"id":"\""}"#), plain);
}

#[test]
fn the_same_publish_again_has_the_same_number() {
    let gateway = start("");
    let mut sockets = on_each_shard(&gateway);
    for socket in &mut sockets {
        socket.join("public.a");
    }
    let publish = |caller: &str, id: &str| {
        let body = json!({ "type": "price", "payload": caller, "id": id });
        let answer = ask(&gateway, "POST", "/hub/rooms/public.a/publish", &with_role(caller, "service"), &body);
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["seq"].as_u64().expect("a number")
    };
    for _ in 0..8 {
        assert_eq!(publish("one", "x"), 1, "by the caller and the id, on every shard");
    }
    assert_eq!([publish("two", "x"), publish("one", "y")], [2, 3]);
    for socket in &mut sockets {
        let heard: Vec<Value> = (0..3).map(|_| socket.hear()["payload"].take()).collect();
        assert_eq!(heard, ["one", "two", "one"]);
        socket.expect_nothing();
    }
}

#[test]
fn who_may_publish_where_is_a_permission_or_its_pattern() {
    let gateway = start(
        "[roles.feed]\npermissions = [\"hub:publish:public.feed.*\"]\n[roles.none]\npermissions = [\"other:thing\"]\n",
    );
    let publish =
        |role: &str, path: &str| ask(&gateway, "POST", path, &with_role("s", role), &json!({ "payload": 1 })).status;
    for (role, path, status) in [
        ("service", "/hub/rooms/any.room/publish", 202),
        ("admin", "/hub/rooms/any.room/publish", 202),
        ("feed", "/hub/rooms/public.feed.a/publish", 202),
        ("feed", "/hub/rooms/public.other/publish", 403),
        ("feed", "/hub/users/42/publish", 403),
        ("service", "/hub/users/42/publish", 202),
        ("user", "/hub/rooms/public.a/publish", 403),
        ("none", "/hub/rooms/public.a/publish", 403),
        ("analyst", "/hub/rooms/public.a/publish", 403),
    ] {
        assert_eq!(publish(role, path), status, "{role} {path}");
    }
    let in_token = token(&json!({ "sub": "s", "role": "none", "permissions": ["hub:publish:public.feed.*"] }));
    let scoped = |path: &str| ask(&gateway, "POST", path, &in_token, &json!({ "payload": 1 })).status;
    assert_eq!([scoped("/hub/rooms/public.feed.a/publish"), scoped("/hub/rooms/public.a/publish")], [202, 403]);
    let mut client = gateway.connect();
    assert_eq!(client.post("/hub/rooms/public.a/publish", b"{}").status, 401);
}

#[test]
fn what_cannot_be_published_is_refused() {
    let gateway = start(
        "[upstreams.one]\ninstances = [\"127.0.0.1:1\"]\n\
         [[hub.services]]\ntype_name = \"ask_price\"\nupstream = \"one\"\npath = \"/\"\nanswer = \"price_is\"\n",
    );
    let path = "/hub/rooms/public.a/publish";
    for own in [
        "ack",
        "auth",
        "auth_ok",
        "cart_event",
        "continuity",
        "error",
        "gap",
        "heartbeat",
        "join_room",
        "joined",
        "leave_room",
        "left",
        "prediction_request",
        "prediction_response",
        "presence",
        "presence_event",
        "reconnect",
        "welcome",
        "ask_price",
        "price_is",
        "",
        "a b",
    ] {
        for path in [path, "/hub/users/42/publish"] {
            let answer = ask(&gateway, "POST", path, &service(), &json!({ "type": own, "payload": 1 }));
            assert_eq!((answer.status, &answer.json()["code"]), (422, &json!("validation_failed")), "{own}");
        }
    }
    let deep = |levels: usize| format!("{{\"payload\":{}1{}}}", "[".repeat(levels), "]".repeat(levels));
    assert_eq!(send(&gateway, "POST", path, &service(), "application/json", deep(100).as_bytes()).status, 202);
    for (kind, body, status, code) in [
        ("application/json", deep(101).as_bytes(), 422, "validation_failed"),
        ("application/json", b"{\"payload\":", 400, "invalid_json"),
        ("application/json", b"\xff", 400, "invalid_json"),
        ("application/json", b"{}", 422, "validation_failed"),
        ("application/json", b"[]", 422, "validation_failed"),
        ("application/json", b"{\"payload\":1,\"more\":2}", 422, "validation_failed"),
        ("application/json", b"{\"payload\":1,\"id\":\"\"}", 422, "validation_failed"),
        ("application/json", b"{\"payload\":1,\"type\":7}", 422, "validation_failed"),
        ("text/plain", b"{\"payload\":1}", 415, "unsupported_media_type"),
        ("application/json", " ".repeat(70_000).as_bytes(), 413, "body_too_large"),
    ] {
        let answer = send(&gateway, "POST", path, &service(), kind, body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{shown}");
    }
    let answer = send(&gateway, "POST", path, &service(), "application/json", " ".repeat(70_000).as_bytes());
    assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("hub.message_bytes_max")));
    let answer = ask(&gateway, "POST", "/hub/rooms/no%20room/publish", &service(), &json!({ "payload": 1 }));
    assert_eq!(answer.status, 422, "{}", answer.text());
    let answer = ask(&gateway, "PUT", path, &service(), &json!({ "payload": 1 }));
    assert_eq!((answer.status, answer.field("allow")), (405, Some("POST")));
}

#[test]
fn a_service_speaks_to_a_user_wherever_that_is() {
    let gateway = start("");
    let mut sockets = on_each_shard_of(&gateway, |n| user(if n < 3 { "a|b/c" } else { "other" }));
    let body = json!({ "type": "cart_saved", "payload": { "by": "another device" } });
    let said = ask(&gateway, "POST", "/hub/users/a%7Cb%2Fc/publish", &service(), &body);
    assert_eq!((said.status, said.json()), (202, json!({ "connections": 3 })));
    for socket in &mut sockets[..3] {
        socket.expect(&json!({ "type": "cart_saved", "payload": { "by": "another device" } }));
    }
    sockets[3].expect_nothing();
    let nobody = ask(&gateway, "POST", "/hub/users/nobody/publish", &service(), &body);
    assert_eq!((nobody.status, nobody.json()), (202, json!({ "connections": 0 })));
}

#[test]
fn a_look_at_a_room_counts_users_and_sockets() {
    let gateway = start("");
    let mut sockets = on_each_shard_of(&gateway, |n| user(if n < 3 { "ada" } else { "bob" }));
    let mut epoch = Value::Null;
    for socket in &mut sockets {
        epoch = socket.join("public.a")["epoch"].clone();
    }
    sockets[0].publish("public.a", "1", &json!(1));
    sockets[0].hear_all(2);
    for _ in 0..8 {
        let seen = get(&gateway, "/hub/rooms/public.a", &with_role("ann", "analyst"));
        assert_eq!(
            (seen.status, seen.json()),
            (200, json!({ "room": "public.a", "members": 2, "connections": 4, "seq": 1, "epoch": epoch }))
        );
    }
    let empty = get(&gateway, "/hub/rooms/public.empty", &service());
    assert_eq!(
        empty.json(),
        json!({ "room": "public.empty", "members": 0, "connections": 0, "seq": 0, "epoch": null })
    );
    assert_eq!(get(&gateway, "/hub/rooms/public.a", &user("ada")).status, 403);
}

#[test]
fn a_kick_closes_a_users_sockets_on_every_shard() {
    let gateway = start("");
    let mut sockets = on_each_shard_of(&gateway, |n| user(if n < 3 { "42" } else { "43" }));
    let path = "/hub/users/42/connections";
    assert_eq!(ask(&gateway, "DELETE", path, &service(), &json!({})).status, 403);
    let kicked = ask(&gateway, "DELETE", path, &with_role("root", "admin"), &json!({}));
    assert_eq!(
        (kicked.status, kicked.json()),
        (200, json!({ "closed": 3, "instancesAsked": 1, "instancesAnswered": 1 }))
    );
    for socket in &mut sockets[..3] {
        assert_eq!(socket.hear_close(), (vec![], 4102));
    }
    sockets[3].expect_nothing();
    // Nothing was revoked.
    Socket::open(&gateway, &user("42")).expect_nothing();
    let kicked = ask(&gateway, "DELETE", "/hub/users/nobody/connections", &with_role("root", "admin"), &json!({}));
    assert_eq!(kicked.json()["closed"], 0);
    let wrong = ask(&gateway, "DELETE", &format!("{path}?revoke=perhaps"), &with_role("root", "admin"), &json!({}));
    assert_eq!(wrong.status, 422);
}

#[test]
fn a_kick_that_revokes_ends_the_sessions_too() {
    let gateway = start("");
    let mut sockets = on_each_shard_of(&gateway, |_| user("42"));
    // Made before it is kicked: one of a later second would be another log-in's.
    let token = user("42");
    let kicked =
        ask(&gateway, "DELETE", "/hub/users/42/connections?revoke=true", &with_role("root", "admin"), &json!({}));
    assert_eq!(kicked.status, 200, "{}", kicked.text());
    for socket in &mut sockets {
        assert_eq!(socket.hear_close(), (vec![], 4102));
    }
    let bearer = format!("Authorization: Bearer {token}\r\n");
    // The answer waits a quarter of a second at most until all shards have been told.
    let refused = until(SOON, "the session has ended", || Socket::on(gateway.connect(), &bearer).err());
    assert_eq!((refused.status, &refused.json()["code"]), (401, &json!("token_revoked")));
    let fields = format!("Sec-WebSocket-Protocol: shardgate.v1, bearer.{token}\r\n");
    until(SOON, "a browser is told by a close", || {
        let (mut socket, _) = Socket::on(gateway.connect(), &fields).expect("it opens");
        (socket.hear_close() == (vec![], 4102)).then_some(())
    });
    until(SOON, "whoever logs in first is told, too", || {
        let mut socket = Socket::bare(&gateway, "");
        let answer = socket.ask(&json!({ "type": "auth", "id": "1", "payload": { "token": token } }));
        (answer["payload"]["code"] == "token_revoked" && socket.hear_close() == (vec![], 4102)).then_some(())
    });
}

//! Points of the protocol where a reader of its frames could choose.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    on_each_shard, on_each_shard_of,
    socket::{Socket, timeless},
    start, user,
};
use crate::harness::{pause, until};

#[test]
fn an_answer_has_an_id_where_the_message_had_one() {
    for mut socket in on_each_shard(&start("")) {
        for (message, answer) in [
            (json!({ "type": "join_room", "room": "public.a" }), "joined"),
            (json!({ "type": "presence", "room": "public.a" }), "presence"),
            (json!({ "type": "leave_room", "room": "public.a" }), "left"),
            (json!({ "type": "leave_room", "room": "public.a" }), "error"),
        ] {
            let heard = socket.ask(&message);
            assert_eq!((&heard["type"], heard.get("id")), (&json!(answer), None), "{message}: {heard}");
        }
    }
}

#[test]
fn an_id_has_up_to_64_characters() {
    let gateway = start("");
    for mut socket in on_each_shard(&gateway) {
        let longest = "é".repeat(64);
        let heard = socket.ask(&json!({ "type": "heartbeat", "id": longest }));
        assert_eq!(heard["id"], longest);
        socket.say(&json!({ "type": "heartbeat", "id": "e".repeat(65) }));
        socket.expect_error(&Value::Null, "invalid_id");
        socket.say(&json!({ "type": "heartbeat", "id": 7 }));
        socket.expect_error(&Value::Null, "invalid_id");
    }
}

#[test]
fn what_a_client_says_of_itself_is_ignored() {
    let gateway = start("");
    let mut sockets = on_each_shard(&gateway);
    for socket in &mut sockets {
        socket.join("public.a");
    }
    let claims = json!({
        "type": "room_message", "id": "1", "room": "public.a", "payload": { "room": "other" },
        "userId": "root", "sessionId": "stolen", "timestamp": "1970-01-01T00:00:00Z", "seq": 99, "epoch": "mine",
    });
    sockets[0].say(&claims);
    for socket in &mut sockets[1..] {
        let mut copy = socket.hear();
        assert!(!copy["timestamp"].as_str().is_some_and(|time| time.starts_with("1970")), "{copy}");
        assert_ne!(copy["epoch"].take(), "mine");
        assert_eq!(
            timeless(copy),
            json!({
                "type": "room_message", "room": "public.a", "seq": 1, "epoch": null, "userId": "u0",
                "payload": { "room": "other" },
            }),
            "exactly these members"
        );
    }
}

#[test]
fn acks_come_in_the_order_of_the_messages() {
    let gateway = start("[hub]\nmessages_per_s = 1000\n");
    let mut sockets = on_each_shard(&gateway);
    // Rooms with homes everywhere.
    let rooms: Vec<String> = (0..16).map(|n| format!("public.{n}")).collect();
    for socket in &mut sockets {
        for room in &rooms {
            socket.join(room);
        }
        for n in 0..200_usize {
            socket.publish(&rooms[n * 7 % 16], &n.to_string(), &json!(n));
        }
        let acks: Vec<String> =
            (0..200).map(|_| socket.hear_type("ack")["id"].as_str().expect("an id").to_owned()).collect();
        assert_eq!(acks, (0..200).map(|n| n.to_string()).collect::<Vec<_>>());
        for room in &rooms {
            socket.say(&json!({ "type": "leave_room", "room": room }));
            socket.hear_type("left");
        }
    }
}

#[test]
fn members_are_users_and_connections_their_sockets() {
    let gateway = start("");
    // Two sockets of one user and two of another, each on a shard of its own.
    let mut sockets = on_each_shard_of(&gateway, |n| user(if n < 2 { "ada" } else { "bob" }));
    let members: Vec<Value> =
        sockets.iter_mut().map(|socket| socket.join("public.a")["payload"]["members"].take()).collect();
    assert_eq!(members, [1, 1, 2, 2], "each counts itself, and its user once");
    let mut presence = sockets[3].ask(&json!({ "type": "presence", "room": "public.a" }));
    presence["payload"]["users"].as_array_mut().expect("a list").sort_by_key(|user| user["userId"].to_string());
    assert_eq!(
        presence["payload"],
        json!({
            "users": [{ "userId": "ada", "connections": 2 }, { "userId": "bob", "connections": 2 }], "total": 2,
        })
    );
    drop(sockets.remove(0));
    drop(sockets.remove(0));
    super::expect_sockets(&gateway, 2);
    let only_bob = json!({ "users": [{ "userId": "bob", "connections": 2 }], "total": 1 });
    // What the room's home is told of them may be on its way still.
    until(super::SOON, "the room has one user", || {
        pause(Duration::from_millis(50));
        let presence = sockets[0].ask(&json!({ "type": "presence", "room": "public.a" }));
        (presence["payload"] == only_bob).then_some(())
    });
}

#[test]
fn joining_twice_and_leaving_or_speaking_where_one_is_not_are_errors() {
    for mut socket in on_each_shard(&start("")) {
        socket.join("public.a");
        for (message, code) in [
            (json!({ "type": "join_room", "id": "1", "room": "public.a" }), "already_joined"),
            (json!({ "type": "leave_room", "id": "1", "room": "public.b" }), "not_joined"),
            (json!({ "type": "room_message", "id": "1", "room": "public.b", "payload": 1 }), "not_joined"),
            (json!({ "type": "join_room", "id": "1", "room": "no room" }), "invalid_room"),
            (json!({ "type": "join_room", "id": "1" }), "invalid_room"),
            (json!({ "type": "join_room", "id": "1", "room": "user.somebody.inbox" }), "forbidden"),
            (json!({ "type": "dance", "id": "1" }), "unknown_type"),
            (json!({ "id": "1" }), "invalid_message"),
            (json!(["a", "list"]), "invalid_json"),
        ] {
            socket.say(&message);
            let id = message.get("id").cloned().unwrap_or_default();
            socket.expect_error(&id, code);
        }
        socket.expect_nothing();
        let own = format!("user.{}.inbox", socket.welcome["userId"].as_str().expect("a text"));
        socket.join(&own);
    }
}

#[test]
fn a_position_ahead_of_the_room_or_of_another_epoch_is_not_recovered() {
    let gateway = start("");
    let mut sockets = on_each_shard(&gateway);
    let epoch = sockets[0].join("public.a")["epoch"].clone();
    sockets[0].publish("public.a", "1", &json!(1));
    sockets[0].hear_all(2);
    for (socket, (epoch, seq)) in sockets[1..].iter_mut().zip([(&epoch, 2), (&json!("other"), 0), (&epoch, 1)]) {
        let joined = socket.recover("public.a", epoch, seq);
        let payload = &joined["payload"];
        if seq == 1 {
            assert_eq!((&payload["recovered"], &payload["messages"]), (&json!(true), &json!([])), "it missed nothing");
        } else {
            assert_eq!((&payload["recovered"], payload.get("messages")), (&json!(false), None), "{joined}");
        }
        assert_eq!(joined["seq"], 1, "what follows counts from here");
    }
}

#[test]
fn the_same_message_again_is_delivered_once_with_the_same_number() {
    let gateway = start("");
    let mut sockets = on_each_shard(&gateway);
    for socket in &mut sockets {
        socket.join("public.a");
    }
    sockets[0].publish("public.a", "same", &json!("first"));
    let first = sockets[0].hear_type("ack")["seq"].clone();
    // The session over another connection, wherever that is; and the same id of somebody else.
    let mut again = Socket::open(&gateway, &user("u0"));
    again.join("public.a");
    again.publish("public.a", "same", &json!("again"));
    assert_eq!(again.hear_type("ack")["seq"], first);
    sockets[1].publish("public.a", "same", &json!("another's"));
    let heard: Vec<Value> = (0..2).map(|_| sockets[2].hear_type("room_message")["payload"].take()).collect();
    assert_eq!(heard, ["first", "another's"]);
    // Without an id each counts.
    for _ in 0..2 {
        sockets[3].say(&json!({ "type": "room_message", "room": "public.a", "payload": "each" }));
    }
    let heard: Vec<Value> = (0..2).map(|_| sockets[2].hear_type("room_message")["payload"].take()).collect();
    assert_eq!(heard, ["each", "each"]);
}

//! Rooms across two instances of four shards each, on a Redis of the test's own.

mod checker;
mod elections;
mod failover;
mod faults;
mod presence;
mod refusing;

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    SOON,
    across::{config_of, instance, pair, until_rooms_span},
    socket::Socket,
    user, with_role,
};
use crate::{
    harness::{Gateway, pause, until},
    servers::redis::RedisServer,
};

const ROOM: &str = "public.sale";

/// How often something is asked again, within what a socket may ask.
const AGAIN: Duration = Duration::from_millis(50);

#[track_caller]
fn instance_in(redis: &RedisServer, mode: &str, more: &str) -> Gateway {
    let gateway = instance_of(&redis.url(), mode, more);
    until_rooms_span(&gateway);
    gateway
}

/// An instance with this URL, whatever comes of it.
#[track_caller]
fn instance_of(url: &str, mode: &str, more: &str) -> Gateway {
    Gateway::start(&config_of(&format!("urls = [\"{url}\"]\nmode = \"{mode}\""), more))
}

/// A writer on the one and a reader on the other instance, both in the room, and the room's epoch.
#[track_caller]
fn writer_and_reader(one: &Gateway, two: &Gateway) -> (Socket, Socket, Value) {
    let (mut writer, mut reader) = (Socket::open(one, &user("writer")), Socket::open(two, &user("reader")));
    let epoch = writer.join(ROOM)["epoch"].take();
    reader.join(ROOM);
    (writer, reader, epoch)
}

/// Joins as soon as the room can be joined.
#[track_caller]
fn join_soon(socket: &mut Socket, payload: &Value) -> Value {
    join_room_soon(socket, ROOM, payload)
}

/// The same in this room; what comes meanwhile of others is passed over.
#[track_caller]
fn join_room_soon(socket: &mut Socket, room: &str, payload: &Value) -> Value {
    until(SOON, "the room can be joined", || {
        socket.say(&json!({ "type": "join_room", "id": "join", "room": room, "payload": payload }));
        let answer = socket.hear_answer("join");
        if answer["type"] == "joined" {
            return Some(answer);
        }
        pause(AGAIN);
        None
    })
}

/// Publishes until it is taken, under one id; returns the number. What comes meanwhile is kept.
#[track_caller]
fn publish_until_taken(socket: &mut Socket, id: &str, payload: &Value, heard: &mut Vec<Value>) -> Value {
    publish_in_until_taken(socket, ROOM, id, payload, heard)
}

#[track_caller]
fn publish_in_until_taken(socket: &mut Socket, room: &str, id: &str, payload: &Value, heard: &mut Vec<Value>) -> Value {
    until(Duration::from_secs(20), "the message is taken", || {
        socket.publish(room, id, payload);
        loop {
            let message = socket.hear();
            match message["type"].as_str() {
                Some("ack") => return Some(message),
                Some("error") => {
                    assert_eq!(message["payload"]["retryable"], true, "{message}");
                    pause(AGAIN);
                    return None;
                }
                _ => heard.push(message),
            }
        }
    })
}

fn numbers(messages: &[Value]) -> Vec<u64> {
    messages.iter().filter_map(|message| message["seq"].as_u64()).collect()
}

#[test]
fn a_message_crosses_and_all_members_have_one_order() {
    let Some((_redis, [one, two])) = pair() else { return };
    let mut members: Vec<Socket> = (0..8).map(|n| Socket::open([&one, &two][n % 2], &user(&format!("u{n}")))).collect();
    for member in &mut members {
        member.join(ROOM);
    }
    for round in 0..10 {
        for (n, member) in members.iter_mut().enumerate() {
            member.publish(ROOM, &format!("m{round}"), &json!([round, n]));
        }
    }
    let mut first = None;
    for member in &mut members {
        let heard = member.hear_all(90);
        let (acks, messages): (Vec<_>, Vec<_>) = heard.into_iter().partition(|message| message["type"] == "ack");
        assert_eq!(acks.len(), 10, "{acks:?}");
        assert_eq!(numbers(&messages), (1..=80).collect::<Vec<_>>());
        let messages: Vec<Value> = messages;
        assert_eq!(first.get_or_insert_with(|| messages.clone()), &messages, "one order for all");
    }
}

#[test]
fn who_comes_back_to_the_other_instance_has_what_it_missed() {
    let Some((_redis, [one, two])) = pair() else { return };
    let mut writer = Socket::open(&one, &user("writer"));
    writer.join(ROOM);
    let mut heard = Vec::new();
    let first = publish_until_taken(&mut writer, "a", &json!("a"), &mut heard);
    for id in ["b", "c"] {
        publish_until_taken(&mut writer, id, &json!(id), &mut heard);
    }
    // Nobody there has ever heard of the room.
    let mut reader = Socket::open(&two, &user("reader"));
    let joined = reader.recover(ROOM, &first["epoch"], 1);
    assert_eq!((&joined["seq"], &joined["payload"]["recovered"]), (&json!(3), &json!(true)), "{joined}");
    let messages: Vec<_> = joined["payload"]["messages"].as_array().expect("messages").clone();
    assert_eq!(messages.iter().map(|message| message["payload"].clone()).collect::<Vec<_>>(), [json!("b"), json!("c")]);
    // And now somebody does, who asks for more than is kept there.
    let mut late = Socket::open(&two, &user("late"));
    let joined = late.recover(ROOM, &first["epoch"], 0);
    assert_eq!(joined["payload"]["messages"].as_array().map(Vec::len), Some(3), "{joined}");
    let joined = Socket::open(&two, &user("ahead")).recover(ROOM, &first["epoch"], 9);
    assert_eq!(joined["payload"]["recovered"], false, "{joined}");
    // The same id is the same message, wherever it is sent again.
    let mut again = Socket::open(&two, &user("writer"));
    again.join(ROOM);
    let ack = publish_until_taken(&mut again, "b", &json!("b"), &mut heard);
    assert_eq!(ack["seq"], 2, "{ack}");
    reader.expect_nothing();
}

/// Who is in the room as the members of an instance see it.
#[track_caller]
fn expect_present(socket: &mut Socket, within: Duration, wanted: &[(&str, u64)]) {
    let wanted: Vec<Value> =
        wanted.iter().map(|(user, connections)| json!({ "userId": user, "connections": connections })).collect();
    until(within, "those are there", || {
        pause(AGAIN);
        let mut heard = socket.ask(&json!({ "type": "presence", "id": "p", "room": ROOM, "payload": {} }));
        let users = heard["payload"]["users"].as_array_mut()?;
        users.sort_by_key(|user| user["userId"].to_string());
        (*users == wanted && heard["payload"]["total"] == wanted.len()).then_some(())
    });
}

#[test]
fn who_is_there_is_known_on_all_instances_and_a_dead_ones_users_vanish() {
    let Some((redis, [one, two])) = pair() else { return };
    let mut ann = Socket::open(&one, &user("ann"));
    let mut also_ann = Socket::open(&two, &user("ann"));
    let mut bob = Socket::open(&two, &user("bob"));
    ann.join(ROOM);
    also_ann.join(ROOM);
    bob.join(ROOM);
    let second = Duration::from_secs(1);
    for socket in [&mut ann, &mut also_ann, &mut bob] {
        expect_present(socket, second, &[("ann", 2), ("bob", 1)]);
    }
    let mut carl = Socket::open(&one, &user("carl"));
    assert_eq!(carl.join(ROOM)["payload"]["members"], 3, "users count once");
    // Cut connections take nobody away.
    redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    expect_present(&mut bob, second, &[("ann", 2), ("bob", 1), ("carl", 1)]);
    drop(also_ann);
    expect_present(&mut carl, second, &[("ann", 1), ("bob", 1), ("carl", 1)]);
    drop(two);
    expect_present(&mut carl, Duration::from_secs(14), &[("ann", 1), ("carl", 1)]);
}

#[test]
fn a_kick_closes_the_sockets_of_all_instances() {
    let Some(redis) = RedisServer::start() else { return };
    let roles = "[roles.operator]\npermissions = [\"hub:admin\"]\n";
    let [one, two] = [instance(&redis, roles), instance(&redis, roles)];
    let (mut here, mut there) = (Socket::open(&one, &user("ann")), Socket::open(&two, &user("ann")));
    let mut other = Socket::open(&two, &user("bob"));
    let mut operator = one.connect();
    let token = with_role("root", "operator");
    operator.send(format!(
        "DELETE /hub/users/ann/connections HTTP/1.1\r\nHost: shop.test\r\nAuthorization: Bearer {token}\r\n\r\n"
    ));
    let answer = operator.read_response();
    assert_eq!((answer.status, &answer.json()["closed"]), (200, &json!(2)), "{}", answer.text());
    here.expect_close(4102);
    there.expect_close(4102);
    other.expect_nothing();
}

//! Rooms across two instances of two shards each, on a Redis of the test's own that is cut, killed, paused and replaced.

use std::time::Duration;

use serde_json::{Value, json};

use super::{SOON, socket::Socket, user};
use crate::{
    harness::{Gateway, until},
    journey::access::KEYS,
    servers::redis::RedisServer,
};

const ROOM: &str = "public.sale";

/// An instance on this Redis.
#[track_caller]
fn instance(redis: &RedisServer, more: &str) -> Gateway {
    let gateway = Gateway::start(&format!(
        "{KEYS}[runtime]\nshards = 2\n[redis]\nurls = [\"{}\"]\ntimeout = \"500ms\"\n[sessions]\nsecret = \"a secret of the tests, as long as it has to be\"\n{more}",
        redis.url()
    ));
    gateway.log_until("rooms span instances: Redis is there", SOON);
    gateway
}

/// Two instances.
#[track_caller]
fn pair() -> Option<(RedisServer, [Gateway; 2])> {
    let redis = RedisServer::start()?;
    let gateways = [instance(&redis, ""), instance(&redis, "")];
    Some((redis, gateways))
}

/// Joins as soon as the room can be joined.
#[track_caller]
fn join_soon(socket: &mut Socket, payload: &Value) -> Value {
    until(SOON, "the room can be joined", || {
        let answer = socket.ask(&json!({ "type": "join_room", "id": "join", "room": ROOM, "payload": payload }));
        (answer["type"] == "joined").then_some(answer)
    })
}

/// Publishes until it is taken, under one id; returns the number. What comes meanwhile is kept.
#[track_caller]
fn publish_until_taken(socket: &mut Socket, id: &str, payload: &Value, heard: &mut Vec<Value>) -> Value {
    until(Duration::from_secs(20), "the message is taken", || {
        socket.publish(ROOM, id, payload);
        loop {
            let message = socket.hear();
            match message["type"].as_str() {
                Some("ack") => return Some(message),
                Some("error") => {
                    assert_eq!(message["payload"]["retryable"], true, "{message}");
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

#[test]
fn a_cut_connection_loses_nothing_and_tells_nothing() {
    let Some((redis, [one, two])) = pair() else { return };
    let (mut writer, mut reader) = (Socket::open(&one, &user("writer")), Socket::open(&two, &user("reader")));
    writer.join(ROOM);
    reader.join(ROOM);
    let mut heard = Vec::new();
    for n in 0..40 {
        if n % 10 == 5 {
            redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        publish_until_taken(&mut writer, &format!("m{n}"), &json!(n), &mut heard);
    }
    for n in 0..40 {
        let message = reader.hear();
        assert_eq!((&message["type"], &message["payload"]), (&json!("room_message"), &json!(n)), "{message}");
    }
    reader.expect_nothing();
}

#[test]
fn a_redis_that_comes_back_empty_begins_a_new_epoch_that_is_told() {
    let Some((mut redis, [one, two])) = pair() else { return };
    let (mut writer, mut reader) = (Socket::open(&one, &user("writer")), Socket::open(&two, &user("reader")));
    let before = writer.join(ROOM)["epoch"].clone();
    reader.join(ROOM);
    let mut heard = Vec::new();
    publish_until_taken(&mut writer, "a", &json!("a"), &mut heard);
    assert_eq!(reader.hear()["payload"], "a");
    redis.kill();
    writer.publish(ROOM, "b", &json!("b"));
    let error = writer.hear_type("error");
    assert_eq!(error["payload"]["code"], "dependency_unavailable", "{error}");
    redis.restart();
    let ack = publish_until_taken(&mut writer, "b", &json!("b"), &mut heard);
    assert_ne!(ack["epoch"], before);
    let told = reader.hear();
    assert_eq!((&told["type"], &told["payload"]["continuity"]), (&json!("continuity"), &json!(false)), "{told}");
    let message = reader.hear();
    assert_eq!((&message["payload"], &message["epoch"], &message["seq"]), (&json!("b"), &ack["epoch"], &json!(1)));
    reader.expect_nothing();
}

#[test]
fn a_redis_that_hangs_holds_up_nobody_and_loses_nothing() {
    let Some((redis, [one, two])) = pair() else { return };
    let (mut writer, mut reader) = (Socket::open(&one, &user("writer")), Socket::open(&two, &user("reader")));
    writer.join(ROOM);
    reader.join(ROOM);
    let mut heard = Vec::new();
    publish_until_taken(&mut writer, "a", &json!("a"), &mut heard);
    redis.pause();
    writer.publish(ROOM, "b", &json!("b"));
    assert_eq!(writer.hear_type("error")["payload"]["retryable"], true);
    redis.go_on();
    let ack = publish_until_taken(&mut writer, "b", &json!("b"), &mut heard);
    assert_eq!(ack["seq"], 2, "it is delivered once: {ack}");
    assert_eq!([reader.hear(), reader.hear()].map(|message| message["payload"].clone()), [json!("a"), json!("b")]);
    reader.expect_nothing();
    let _ = join_soon(&mut Socket::open(&two, &user("late")), &json!({}));
}

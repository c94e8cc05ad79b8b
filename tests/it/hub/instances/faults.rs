//! A Redis that is cut, paused, killed and comes back empty.

use std::time::Duration;

use serde_json::json;

use super::{ROOM, instance, join_soon, pair, publish_until_taken};
use crate::{
    harness::{Gateway, until},
    hub::{socket::Socket, user},
    servers::redis::RedisServer,
};

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

#[test]
fn the_hub_is_not_ready_without_its_redis_and_takes_no_sockets() {
    let Some(mut redis) = RedisServer::start() else { return };
    let gateways = [instance(&redis, ""), instance(&redis, "[hub]\nwithout_redis = \"local\"\n")];
    let is = |gateway: &Gateway, status: u16| {
        let pages = || [gateway.get("/health/ready/hub"), gateway.ask_admin("/health/ready/hub")];
        until(Duration::from_secs(3), "the page says so", || {
            pages().iter().all(|page| page.status == status).then_some(())
        });
    };
    for gateway in &gateways {
        is(gateway, 200);
    }
    redis.pause();
    for gateway in &gateways {
        is(gateway, 503);
    }
    assert_eq!(gateways[0].get("/health/ready").status, 200, "requests go on");
    let fields = format!("Authorization: Bearer {}\r\n", user("a"));
    let refused = Socket::on(gateways[0].connect(), &fields).expect_err("it is refused");
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("dependency_unavailable")));
    let mut local = Socket::open(&gateways[1], &user("a"));
    local.say(&json!({ "type": "join_room", "id": "1", "room": ROOM, "payload": {} }));
    local.expect_error(&json!("1"), "dependency_unavailable");
    redis.go_on();
    for gateway in &gateways {
        is(gateway, 200);
    }
    join_soon(&mut local, &json!({}));
    redis.kill();
    for gateway in &gateways {
        is(gateway, 503);
    }
    redis.restart();
    for gateway in &gateways {
        is(gateway, 200);
    }
}

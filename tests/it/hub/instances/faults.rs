//! A Redis that is cut, paused, killed and comes back empty.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;

use super::{ROOM, instance, join_soon, pair, publish_in_until_taken, publish_until_taken, writer_and_reader};
use crate::{
    harness::{Gateway, now, pause, until},
    hub::{socket::Socket, user},
    servers::redis::RedisServer,
};

#[test]
fn a_cut_connection_loses_nothing_and_tells_nothing() {
    let Some((redis, [one, two])) = pair() else { return };
    let (mut writer, mut reader, _) = writer_and_reader(&one, &two);
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
fn connections_that_do_not_last_are_made_less_and_less_often() {
    let Some(redis) = RedisServer::start() else { return };
    let gateway = instance(&redis, "");
    let due = now() + Duration::from_secs(3);
    while now() < due {
        redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        pause(Duration::from_millis(50));
    }
    let lost = gateway.log().matches("rooms do not span instances: Redis is away").count();
    assert!((2..=10).contains(&lost), "{lost} connections in three seconds");
}

#[test]
fn a_redis_that_comes_back_empty_begins_a_new_epoch_that_is_told() {
    let Some((mut redis, [one, two])) = pair() else { return };
    let (mut writer, mut reader, before) = writer_and_reader(&one, &two);
    let mut heard = Vec::new();
    publish_until_taken(&mut writer, "a", &json!("a"), &mut heard);
    assert_eq!(reader.hear()["payload"], "a");
    redis.kill();
    writer.publish(ROOM, "b", &json!("b"));
    let error = writer.hear_type("error");
    assert_eq!(error["payload"]["code"], "dependency_unavailable", "{error}");
    one.metrics_until("it is counted", |metrics| {
        metrics.value("shardgate_hub_bus_refused_total{reason=\"away\"}") > 0
            && metrics.value("shardgate_hub_bus_up") == 0
    });
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
    let (mut writer, mut reader, _) = writer_and_reader(&one, &two);
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
        gateway.metrics_until("it hears itself", |metrics| {
            metrics.value("shardgate_hub_bus_round_trip_seconds_count") > 0
                && metrics.value("shardgate_hub_bus_up") == 1
        });
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

#[test]
fn a_redis_that_takes_no_changes_is_none() {
    let Some((redis, [one, two])) = pair() else { return };
    let (mut writer, mut reader, _) = writer_and_reader(&one, &two);
    let mut heard = Vec::new();
    publish_until_taken(&mut writer, "a", &json!("a"), &mut heard);
    let is = |status: u16| {
        until(Duration::from_secs(4), "the page says so", || {
            [&one, &two].iter().all(|gateway| gateway.get("/health/ready/hub").status == status).then_some(())
        });
    };
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    is(503);
    writer.publish(ROOM, "b", &json!("b"));
    assert_eq!(writer.hear_type("error")["payload"]["retryable"], true);
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    is(200);
    let ack = publish_until_taken(&mut writer, "b", &json!("b"), &mut heard);
    assert_eq!(ack["seq"], 2, "{ack}");
    assert_eq!([reader.hear(), reader.hear()].map(|message| message["payload"].clone()), [json!("a"), json!("b")]);
    let told = one.log().matches("do not span instances").count();
    assert_eq!(told, 1, "once, and not for each that was refused");
}

#[test]
fn a_redis_that_forgets_the_scripts_changes_no_order() {
    let Some((redis, [one, two])) = pair() else { return };
    let (mut writer, mut reader, _) = writer_and_reader(&one, &two);
    redis.ask(&["SCRIPT", "FLUSH"]);
    for n in 0..20 {
        writer.publish(ROOM, &format!("m{n}"), &json!(n));
    }
    // Some or all are refused; those that were taken are in their order.
    let mut taken = Vec::new();
    let mut answers = 0;
    while answers < 20 {
        let message = writer.hear();
        answers += usize::from(message["type"] == "ack" || message["type"] == "error");
        if message["type"] == "ack" {
            taken.push((message["seq"].as_u64(), message["id"].as_str().and_then(|id| id[1..].parse::<u64>().ok())));
        }
    }
    assert!(taken.is_sorted(), "{taken:?}");
    let ack = publish_until_taken(&mut writer, "end", &json!("end"), &mut Vec::new());
    let seq = ack["seq"].as_u64().expect("a number");
    let payloads: Vec<_> = reader.hear_all(usize::try_from(seq).expect("few")).into_iter().collect();
    let said: Vec<_> = payloads.iter().filter_map(|message| message["payload"].as_u64()).collect();
    assert!(said.is_sorted() && said.len() as u64 + 1 == seq, "{payloads:?}");
}

#[test]
fn whoever_says_rubbish_on_the_channels_and_in_the_keys_is_passed_over() {
    let Some((redis, [mut one, mut two])) = pair() else { return };
    for gateway in [&mut one, &mut two] {
        gateway.expect_error("WRONGTYPE");
    }
    let (mut writer, mut reader, epoch) = writer_and_reader(&one, &two);
    let epoch = epoch.as_str().expect("an epoch");
    let mut heard = Vec::new();
    publish_until_taken(&mut writer, "a", &json!("a"), &mut heard);
    let digest = "00000000000000aa";
    let rubbish = [
        String::new(),
        ROOM.to_owned(),
        format!("{ROOM} {epoch} 2"),
        format!("{ROOM} {epoch} 18446744073709551615 {digest} {digest} 2 0 0\n{{}}"),
        format!("{ROOM} {epoch} 1 {digest} {digest} 2 0 0\n{{}}"),
        format!("{ROOM} {epoch} 2 {digest} {digest} 2 0 0\n{{}}"),
        format!("{ROOM} 0 1 {digest} {digest} 2 0 0\n{{}}"),
        format!("{ROOM} zzzz 1 {digest} {digest} 99 7 3\n{{}}"),
        format!("! {ROOM} nobody 1 [[\"u\",-1]]"),
        format!("! {ROOM} nobody 1 {}", "[".repeat(10_000)),
    ];
    for channel in 0..64 {
        for text in &rubbish {
            redis.ask(&["PUBLISH", &format!("shardgate:bus:{channel}"), text]);
        }
    }
    let ack = publish_until_taken(&mut writer, "b", &json!("b"), &mut heard);
    assert_eq!((&ack["seq"], &ack["epoch"]), (&json!(2), &json!(epoch)), "{ack}");
    assert_eq!([reader.hear(), reader.hear()].map(|message| message["payload"].clone()), [json!("a"), json!("b")]);
    reader.expect_nothing();
    // A key of another kind: that room is refused, and others go on.
    redis.ask(&["SET", "shardgate:room:public.other:meta", "x"]);
    writer.say(&json!({ "type": "join_room", "id": "other", "room": "public.other", "payload": {} }));
    let answer = writer.hear_answer("other");
    assert_eq!(answer["payload"]["code"], "dependency_unavailable", "{answer}");
    publish_until_taken(&mut writer, "c", &json!("c"), &mut heard);
    assert_eq!(reader.hear()["payload"], "c");
    // An entry of a log that is none: it is lost, and that is told.
    let [meta, log] = ["meta", "log"].map(|part| format!("shardgate:room:{ROOM}:{part}"));
    let code = "redis.call('HSET', KEYS[1], 'seq', '4', 'digest', ARGV[1]) \
                return redis.call('XADD', KEYS[2], '4-0', 'm', string.char(255), 't', '0', 'b', '', 'd', ARGV[1])";
    redis.ask(&["EVAL", code, "2", &meta, &log, digest]);
    // The numbers of what was said begin anew: what comes next does not join on to what the members have.
    publish_until_taken(&mut writer, "d", &json!("d"), &mut heard);
    let told = reader.hear();
    assert_eq!(told["type"], "continuity", "{told}");
    let ack = publish_until_taken(&mut writer, "e", &json!("e"), &mut heard);
    let mut last = reader.hear_type("room_message");
    while last["payload"] != "e" {
        last = reader.hear_type("room_message");
    }
    assert_eq!((&last["seq"], &last["epoch"]), (&ack["seq"], &ack["epoch"]), "{last}");
}

#[test]
fn many_who_come_back_at_once_to_long_logs_take_no_connection_down() {
    let Some(redis) = RedisServer::start() else { return };
    let fast = "[hub]\nmessages_per_s = 10000\n";
    let [one, two] = [instance(&redis, fast), instance(&redis, fast)];
    let mut writer = Socket::open(&one, &user("writer"));
    let large = "x".repeat(30_000);
    let rooms: Vec<String> = (0..40).map(|n| format!("public.{n}")).collect();
    let mut epochs = Vec::new();
    for room in &rooms {
        epochs.push(writer.join(room)["epoch"].clone());
        for n in 0..34 {
            publish_in_until_taken(&mut writer, room, &format!("{room}-{n}"), &json!(large), &mut Vec::new());
        }
    }
    redis.ask(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 12mb 12mb 60"]);
    let clients =
        || redis.ask(&["CLIENT", "LIST", "TYPE", "pubsub"]).lines().filter(|line| line.contains("addr=")).count();
    let before = redis.ask(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    assert!(clients() >= 2, "{before}");
    let mut readers: Vec<Socket> = (0..4).map(|n| Socket::open(&two, &user(&format!("r{n}")))).collect();
    for (at, (room, epoch)) in rooms.iter().zip(&epochs).enumerate() {
        let recover = json!({ "recover": { "epoch": epoch, "seq": 1 } });
        readers[at % 4].say(&json!({ "type": "join_room", "id": room, "room": room, "payload": recover }));
    }
    for reader in &mut readers {
        for _ in 0..10 {
            _ = reader.hear_type("joined");
        }
    }
    // In no order: Redis turns its list round as it looks after its clients.
    let ids = |list: &str| -> BTreeSet<String> {
        list.lines()
            .filter_map(|line| line.split(' ').next())
            .filter(|id| id.starts_with("id="))
            .map(str::to_owned)
            .collect()
    };
    let after = redis.ask(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    assert_eq!(ids(&before), ids(&after), "no connection was ended");
}

#[test]
fn a_log_that_ended_before_its_room_is_kept_again() {
    let Some(redis) = RedisServer::start() else { return };
    let gateway = instance(&redis, "[hub]\nhistory_bytes = 65536\n");
    let mut writer = Socket::open(&gateway, &user("writer"));
    let epoch = writer.join(ROOM)["epoch"].clone();
    let mut heard = Vec::new();
    publish_until_taken(&mut writer, "a", &json!("a"), &mut heard);
    let [meta, log] = ["meta", "log"].map(|part| format!("shardgate:room:{ROOM}:{part}"));
    redis.ask(&["DEL", &log]);
    redis.ask(&["HSET", &meta, "bytes", "65536"]);
    for id in ["b", "c"] {
        publish_until_taken(&mut writer, id, &json!(id), &mut heard);
    }
    assert_eq!(redis.ask(&["XLEN", &log]), "2");
    drop(writer);
    let joined = Socket::open(&gateway, &user("reader")).recover(ROOM, &epoch, 2);
    assert_eq!(joined["payload"]["recovered"], true, "{joined}");
}

#[test]
fn a_room_that_is_followed_outlives_its_messages() {
    let Some(redis) = RedisServer::start() else { return };
    let gateway = instance(&redis, "[hub]\nhistory_age = \"0s\"\ndedup_window = \"1s\"\n");
    let mut writer = Socket::open(&gateway, &user("writer"));
    writer.join(ROOM);
    for id in ["a", "b"] {
        let lives: u64 = redis.ask(&["PTTL", &format!("shardgate:room:{ROOM}:meta")]).parse().expect("a number");
        assert!(lives > 30_000, "it is looked at every five seconds: {lives}");
        publish_until_taken(&mut writer, id, &json!(id), &mut Vec::new());
    }
}

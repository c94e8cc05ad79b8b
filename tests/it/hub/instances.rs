//! Rooms across two instances of two shards each, on a Redis of the test's own that is cut, killed, paused and replaced.

use std::time::Duration;

use serde_json::{Value, json};

use super::{SOON, socket::Socket, user, with_role};
use crate::{
    harness::{Gateway, pause, until},
    journey::access::KEYS,
    servers::redis::RedisServer,
};

const ROOM: &str = "public.sale";

/// How often something is asked again, within what a socket may ask.
const AGAIN: Duration = Duration::from_millis(50);

/// An instance on this Redis.
#[track_caller]
fn instance(redis: &RedisServer, more: &str) -> Gateway {
    instance_in(redis, "single", more)
}

#[track_caller]
fn instance_in(redis: &RedisServer, mode: &str, more: &str) -> Gateway {
    let gateway = Gateway::start(&format!(
        "{KEYS}[runtime]\nshards = 2\n[redis]\nurls = [\"{}\"]\nmode = \"{mode}\"\ntimeout = \"500ms\"\n\
         [sessions]\nsecret = \"a secret of the tests, as long as it has to be\"\n{more}",
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
    until(Duration::from_secs(20), "the message is taken", || {
        socket.publish(ROOM, id, payload);
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

/// What a member makes sure of: each message once and in order, or a word that some are lost.
#[derive(Default)]
struct Checker {
    epoch: Value,
    seq: u64,
    heard: Vec<(Value, u64, Value)>,
    told: usize,
}

impl Checker {
    #[track_caller]
    fn hear(&mut self, message: &Value) {
        match message["type"].as_str() {
            Some("joined" | "continuity") => {
                self.told += usize::from(message["type"] == "continuity");
                (self.epoch, self.seq) = (message["epoch"].clone(), message["seq"].as_u64().expect("a number"));
            }
            Some("room_message") => {
                assert_eq!(
                    (&message["epoch"], message["seq"].as_u64()),
                    (&self.epoch, Some(self.seq + 1)),
                    "{message}"
                );
                self.seq += 1;
                self.heard.push((self.epoch.clone(), self.seq, message["payload"].clone()));
            }
            _ => {}
        }
    }
}

#[test]
fn through_kills_pauses_and_cuts_each_member_has_each_message_once_and_in_order_or_is_told() {
    let Some(mut redis) = RedisServer::start_with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
    else {
        return;
    };
    let gateways = [instance(&redis, ""), instance(&redis, "")];
    let mut members: Vec<(Socket, Checker)> = (0..12)
        .map(|n| {
            let mut socket = Socket::open(&gateways[n % 2], &user(&format!("u{n}")));
            let mut checker = Checker::default();
            checker.hear(&socket.join(ROOM));
            (socket, checker)
        })
        .collect();
    let mut acked = Vec::new();
    for round in 0..60 {
        match round {
            10 | 25 => _ = redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]),
            15 => redis.pause(),
            20 => redis.go_on(),
            30 => redis.kill(),
            35 => redis.restart(),
            _ => {}
        }
        let (socket, checker) = &mut members[round % 12];
        let is_away = (15..20).contains(&round) || (30..35).contains(&round);
        let mut heard = Vec::new();
        if is_away {
            socket.publish(ROOM, &format!("m{round}"), &json!(round));
            loop {
                let message = socket.hear();
                if message["type"] == "error" {
                    assert_eq!(message["payload"]["retryable"], true, "{message}");
                    break;
                }
                heard.push(message);
            }
        } else {
            let ack = publish_until_taken(socket, &format!("m{round}"), &json!(round), &mut heard);
            acked.push((ack["epoch"].clone(), ack["seq"].as_u64().expect("a number"), json!(round)));
        }
        for message in &heard {
            checker.hear(message);
        }
    }
    let last = acked.iter().map(|(_, seq, _)| *seq).max().expect("some");
    for (socket, checker) in &mut members {
        while checker.seq < last {
            checker.hear(&socket.hear());
        }
        assert_eq!(checker.told, 0, "Redis has lost nothing");
        assert!(acked.iter().all(|message| checker.heard.contains(message)), "what was acknowledged came");
        socket.expect_nothing();
    }
    let first = &members[0].1.heard;
    assert!(members.iter().all(|(_, checker)| checker.heard == *first), "one order for all");
}

#[test]
fn a_redis_that_goes_back_to_an_old_state_begins_a_new_epoch_that_is_told() {
    let Some((mut redis, [one, two])) = pair() else { return };
    let (mut writer, mut reader) = (Socket::open(&one, &user("writer")), Socket::open(&two, &user("reader")));
    let before = writer.join(ROOM)["epoch"].clone();
    reader.join(ROOM);
    let mut heard = Vec::new();
    for n in 0..8 {
        publish_until_taken(&mut writer, &format!("m{n}"), &json!(n), &mut heard);
        assert_eq!(reader.hear()["payload"], n);
        if n == 4 {
            redis.ask(&["SAVE"]);
        }
    }
    redis.kill();
    redis.restart();
    // The room is read as soon as there is a connection: it has lost three messages.
    let told = reader.hear();
    assert_eq!((&told["type"], &told["payload"]["continuity"]), (&json!("continuity"), &json!(false)), "{told}");
    assert_ne!(told["epoch"], before, "{told}");
    let ack = publish_until_taken(&mut writer, "after", &json!("after"), &mut heard);
    assert_eq!(ack["epoch"], told["epoch"]);
    let message = reader.hear();
    assert_eq!((&message["payload"], &message["seq"]), (&json!("after"), &json!(1)), "{message}");
    // Who comes back with what it had is told that it cannot be joined on.
    let joined = Socket::open(&two, &user("late")).recover(ROOM, &before, 7);
    assert_eq!(joined["payload"]["recovered"], false, "{joined}");
}

#[test]
fn rooms_span_instances_on_a_cluster() {
    let node =
        || RedisServer::start_with(&["--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
    let (Some(a), Some(b), Some(c)) = (node(), node(), node()) else { return };
    let nodes = [a, b, c];
    let addresses = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port()));
    let made = std::process::Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(addresses)
        .arg("--cluster-yes")
        .output()
        .expect("redis-cli runs");
    assert!(made.status.success(), "{made:?}");
    until(SOON, "the cluster is whole", || {
        nodes.iter().all(|node| node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok")).then_some(())
    });
    let gateways = [instance_in(&nodes[0], "cluster", ""), instance_in(&nodes[1], "cluster", "")];
    // Rooms of several partitions, and so of several nodes.
    let rooms: Vec<String> = (0..6).map(|n| format!("public.{n}")).collect();
    let mut members: Vec<Socket> = (0..4).map(|n| Socket::open(&gateways[n % 2], &user(&format!("u{n}")))).collect();
    for room in &rooms {
        for member in &mut members {
            _ = member.join(room);
        }
        members[0].publish(room, "1", &json!(room));
        let acked = members[0].hear_all(2);
        assert!(acked.iter().any(|message| message["type"] == "ack"), "{acked:?}");
        for member in &mut members[1..] {
            assert_eq!(member.hear()["payload"], json!(room));
        }
    }
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
    assert_eq!((answer.status, &answer.json()["closed"]), (200, &json!(1)), "{}", answer.text());
    here.expect_close(4102);
    there.expect_close(4102);
    other.expect_nothing();
    // Only what was open is closed.
    Socket::open(&two, &user("ann")).expect_nothing();
}

//! A Redis that lacks the last messages: one that goes back, a replica that takes over; and a cluster.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    ROOM, checker::under_load, instance_in, join_room_soon, pair, publish_in_until_taken, publish_until_taken,
    writer_and_reader,
};
use crate::{
    harness::{Gateway, now, pause, until},
    hub::{SOON, across::cluster, socket::Socket, user},
    servers::redis::RedisServer,
};

#[test]
fn a_redis_that_goes_back_to_an_old_state_begins_a_new_epoch_that_is_told() {
    let Some((mut redis, [one, two])) = pair() else { return };
    let (mut writer, mut reader, before) = writer_and_reader(&one, &two);
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
fn a_slot_that_moves_to_another_node_takes_its_rooms_along() {
    let Some(nodes) = cluster() else { return };
    let gateways = [instance_in(&nodes[0], "cluster", ""), instance_in(&nodes[1], "cluster", "")];
    let (mut writer, mut reader, _) = writer_and_reader(&gateways[0], &gateways[1]);
    let mut heard = Vec::new();
    publish_until_taken(&mut writer, "a", &json!("a"), &mut heard);
    assert_eq!(reader.hear()["payload"], "a");
    let keys_of = |node: &RedisServer| node.ask(&["KEYS", "shardgate:room:public.sale:meta*"]);
    let from = nodes.iter().position(|node| !keys_of(node).is_empty()).expect("one has it");
    let (source, target) = (&nodes[from], &nodes[(from + 1) % 3]);
    let slot = source.ask(&["CLUSTER", "KEYSLOT", &keys_of(source)]);
    let [source_id, target_id] = [source, target].map(|node| node.ask(&["CLUSTER", "MYID"]));
    target.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id]);
    source.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id]);
    let port = target.port().to_string();
    until(SOON, "the slot is empty", || {
        for key in source.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).lines() {
            source.ask(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
        }
        let is_empty = source.ask(&["CLUSTER", "COUNTKEYSINSLOT", &slot]) == "0";
        is_empty.then(|| target.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id]))
    });
    source.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id]);
    nodes[(from + 2) % 3].ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id]);
    let ack = publish_until_taken(&mut writer, "b", &json!("b"), &mut heard);
    let mut message = reader.hear();
    if message["type"] == "continuity" {
        message = reader.hear();
    }
    assert_eq!((&message["payload"], &message["seq"], &message["epoch"]), (&json!("b"), &ack["seq"], &ack["epoch"]));
    // Over the channel again, and not when positions are compared, every five seconds.
    for id in ["c", "d", "e"] {
        let began = now();
        publish_until_taken(&mut writer, id, &json!(id), &mut heard);
        assert_eq!(reader.hear()["payload"], id);
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    }
    reader.expect_nothing();
}

#[test]
fn rooms_span_instances_on_a_cluster() {
    let Some(nodes) = cluster() else { return };
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

/// A server, its replica, and a sentinel that names the one that is to be used.
struct Pair {
    first: RedisServer,
    replica: RedisServer,
    sentinel: RedisServer,
}

impl Pair {
    #[track_caller]
    fn start() -> Option<Self> {
        let first = RedisServer::start()?;
        let port = first.port().to_string();
        let replica = RedisServer::start_with(&["--save", "", "--replicaof", "127.0.0.1", &port])?;
        let sentinel = RedisServer::start_sentinel("rooms", first.port())?;
        until(SOON, "it follows", || {
            replica.ask(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
        });
        Some(Self { first, replica, sentinel })
    }

    #[track_caller]
    fn instance(&self) -> Gateway {
        instance_in(&self.sentinel, "sentinel\"\nmaster = \"rooms", "")
    }

    /// The replica has all that this room has said.
    #[track_caller]
    fn until_it_has(&self, room: &str, seq: u64) {
        let key = format!("shardgate:room:{room}:meta");
        until(SOON, "the replica has it", || {
            (self.replica.ask(&["HGET", &key, "seq"]) == seq.to_string()).then_some(())
        });
    }

    /// Whatever comes now the replica does not hear.
    fn cut(&self) {
        // Nobody listens there.
        self.replica.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    }

    /// The first dies, and the replica takes over.
    fn fail_over(&mut self) {
        self.first.kill();
        self.replica.ask(&["REPLICAOF", "NO", "ONE"]);
        self.sentinel.ask(&["SENTINEL", "REMOVE", "rooms"]);
        self.sentinel.ask(&["SENTINEL", "MONITOR", "rooms", "127.0.0.1", &self.replica.port().to_string(), "1"]);
    }
}

#[test]
fn numbers_that_a_stale_replica_gives_again_are_taken_for_what_they_are() {
    let Some(mut redis) = Pair::start() else { return };
    let [one, two] = [redis.instance(), redis.instance()];
    let (stays, left) = ("public.stays", "public.left");
    let mut writer = Socket::open(&one, &user("writer"));
    let (mut reader, mut goes) = (Socket::open(&two, &user("reader")), Socket::open(&two, &user("goes")));
    let mut old = Value::Null;
    for room in [stays, left] {
        old = writer.join(room)["epoch"].clone();
        _ = [&mut reader, &mut goes].map(|socket| socket.join(room));
    }
    let mut heard = Vec::new();
    let mut say =
        |socket: &mut Socket, room, id: &str| publish_in_until_taken(socket, room, id, &json!(id), &mut heard);
    for (at, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
        for room in [stays, left] {
            assert_eq!(say(&mut writer, room, &format!("{id}-{room}"))["seq"], at + 1);
        }
        if id == "b" {
            redis.until_it_has(stays, 2);
            redis.until_it_has(left, 2);
            redis.cut();
        }
    }
    for socket in [&mut reader, &mut goes] {
        assert_eq!(socket.hear_all(8)[7]["seq"], 4);
    }
    // In one of the rooms nobody is left who has heard the last messages.
    drop(goes);
    for socket in [&mut writer, &mut reader] {
        socket.say(&json!({ "type": "leave_room", "id": "leave", "room": left, "payload": {} }));
        assert_eq!(socket.hear_type("left")["room"], left);
    }
    for gateway in [&one, &two] {
        gateway
            .metrics_until("nobody knows the room any more", |metrics| metrics.sum("shardgate_hub_rooms_at_home") == 1);
    }
    redis.fail_over();
    let told = reader.hear();
    assert_eq!((&told["type"], &told["room"]), (&json!("continuity"), &json!(stays)), "{told}");
    let row = "shardgate_hub_bus_losses_total{reason=\"epoch\"}";
    two.metrics_until("it is counted", |metrics| metrics.value(row) > 0);
    let ack = say(&mut writer, stays, "after");
    assert_eq!((&ack["epoch"], &ack["seq"]), (&told["epoch"], &json!(1)), "{ack}");
    assert_eq!(reader.hear()["payload"], "after");
    reader.expect_nothing();
    // The numbers that are lost are given again, and then somebody comes back who had them.
    _ = join_room_soon(&mut writer, left, &json!({}));
    let acks = ["x", "y", "z", "u", "v"].map(|id| say(&mut writer, left, id));
    assert!(acks.iter().all(|ack| ack["epoch"] != old), "{acks:?}");
    let back = Socket::open(&two, &user("goes")).recover(left, &old, 4);
    assert_eq!(back["payload"]["recovered"], false, "{back}");
}

#[test]
fn an_instance_that_missed_a_whole_window_of_numbers_given_twice_is_told() {
    let Some(mut redis) = Pair::start() else { return };
    // What the others do is done here by hand, as an instance would that the first did not cut off.
    let gateway = redis.instance();
    let mut reader = Socket::open(&gateway, &user("reader"));
    let old = reader.join(ROOM)["epoch"].clone();
    let mut heard = Vec::new();
    for n in 0..5 {
        _ = publish_until_taken(&mut reader, &format!("m{n}"), &json!(n), &mut heard);
        if n == 2 {
            redis.until_it_has(ROOM, 3);
            redis.cut();
        }
    }
    // A server that hides that it took over: all that is left to find it by is the digest.
    let meta = format!("shardgate:room:{ROOM}:meta");
    redis.replica.ask(&["REPLICAOF", "NO", "ONE"]);
    let named = |redis: &Pair, section: &str, what: &str| {
        let told = redis.replica.ask(&["INFO", section]);
        told.lines().find_map(|line| line.strip_prefix(what)).expect("it is told").trim().to_owned()
    };
    let (server, run) = (named(&redis, "replication", "master_replid:"), named(&redis, "server", "run_id:"));
    redis.replica.ask(&["HSET", &meta, "server", &server, "run", &run, "seq", "6", "digest", "00000000000000aa"]);
    let log = format!("shardgate:room:{ROOM}:log");
    redis.replica.ask(&["DEL", &log]);
    let (before, after) = ("00000000000000bb", "00000000000000aa");
    redis.replica.ask(&["XADD", &log, "6-0", "m", "2 0 0\n{}", "t", "0", "b", before, "d", after]);
    redis.fail_over();
    let told = reader.hear_type("continuity");
    assert_ne!(told["epoch"], old, "{told}");
    let ack = publish_until_taken(&mut reader, "after", &json!("after"), &mut heard);
    assert_eq!(ack["epoch"], told["epoch"]);
}

#[test]
fn under_load_a_replica_that_takes_over_is_told_to_all() {
    let Some(mut redis) = Pair::start() else { return };
    let gateways = [redis.instance(), redis.instance()];
    let members = under_load(&gateways, || {
        pause(Duration::from_millis(500));
        redis.cut();
        pause(Duration::from_millis(500));
        redis.fail_over();
        pause(Duration::from_millis(2500));
    });
    assert!(members.iter().all(|member| member.checker.told > 0), "half a second is lost");
}

//! Rooms over all shards: the same order for every member, nothing twice, and what is missed comes back or is told.

use std::{collections::BTreeMap, thread};

use serde_json::{Value, json};

use super::{on_each_shard, socket::Socket, start, user};

/// Messages of each who speaks.
const EACH: usize = 200;

/// Numbers and payloads, as a member heard them.
fn numbered(messages: &[Value]) -> Vec<(u64, String)> {
    messages
        .iter()
        .map(|message| (message["seq"].as_u64().expect("a number"), message["payload"].to_string()))
        .collect()
}

#[test]
fn every_member_hears_the_same_in_the_same_order() {
    // What a shard with much to do could not take of another it asks for again: so far back the room remembers.
    let gateway = start("[hub]\nmessages_per_s = 10000\nhistory_messages = 1000\n");
    let mut sockets = on_each_shard(&gateway);
    for socket in &mut sockets {
        socket.join("public.sale");
    }
    let heard: Vec<Vec<(u64, String)>> = thread::scope(|scope| {
        let members: Vec<_> = sockets
            .iter_mut()
            .map(|socket| {
                scope.spawn(move || {
                    let name = socket.welcome["userId"].clone();
                    let (mut messages, mut acks) = (Vec::new(), BTreeMap::new());
                    for n in 0..EACH {
                        socket.publish("public.sale", &n.to_string(), &json!({ "from": name, "n": n }));
                    }
                    while messages.len() < 4 * EACH || acks.len() < EACH {
                        let heard = socket.hear();
                        match heard["type"].as_str() {
                            Some("ack") => drop(acks.insert(heard["id"].to_string(), heard["seq"].clone())),
                            Some("room_message") => messages.push(heard),
                            _ => panic!("{heard}"),
                        }
                    }
                    // What the ack says is the number of the copy.
                    for own in messages.iter().filter(|message| message["userId"] == name) {
                        let id = json!(own["payload"]["n"].to_string()).to_string();
                        assert_eq!(acks[&id], own["seq"], "{own}");
                    }
                    numbered(&messages)
                })
            })
            .collect();
        members.into_iter().map(|member| member.join().expect("it hears all")).collect()
    });
    let numbers: Vec<u64> = heard[0].iter().map(|(seq, _)| *seq).collect();
    assert_eq!(numbers, (1..=4 * EACH as u64).collect::<Vec<_>>(), "no holes, and nothing twice");
    for other in &heard[1..] {
        assert!(other == &heard[0], "the same for all");
    }
    // What one member said is in its order.
    for n in 0..4 {
        let name = format!("\"u{n}\"");
        let own: Vec<&String> = heard[0].iter().map(|(_, text)| text).filter(|text| text.contains(&name)).collect();
        let wanted: Vec<String> = (0..EACH).map(|at| json!({ "from": format!("u{n}"), "n": at }).to_string()).collect();
        assert_eq!(own, wanted.iter().collect::<Vec<_>>());
    }
}

#[test]
fn who_loses_the_connection_again_and_again_misses_nothing() {
    let gateway = start("[hub]\nmessages_per_s = 10000\nhistory_messages = 10000\nsockets_per_user_max = 1000\n");
    let mut speaker = Socket::open(&gateway, &user("speaker"));
    let epoch = speaker.join("public.sale")["epoch"].clone();
    let gateway = &gateway;
    thread::scope(|scope| {
        scope.spawn(move || {
            for n in 1..=1000_u64 {
                speaker.publish("public.sale", &n.to_string(), &json!(n));
                speaker.hear_all(2);
            }
        });
        for name in ["one", "two"] {
            let epoch = epoch.clone();
            scope.spawn(move || {
                let (mut seq, mut connections, mut shards) = (0, 0, [false; 4]);
                while seq < 1000 || connections < 16 {
                    let mut socket = Socket::open(gateway, &user(name));
                    shards[socket.shard()] = true;
                    connections += 1;
                    let joined = socket.recover("public.sale", &epoch, seq);
                    assert_eq!((&joined["payload"]["recovered"], &joined["epoch"]), (&json!(true), &epoch), "{joined}");
                    let missed = joined["payload"]["messages"].as_array().expect("a list");
                    for (at, message) in (seq + 1..).zip(missed) {
                        assert_eq!((&message["seq"], &message["payload"]), (&json!(at), &json!(at)));
                    }
                    seq += missed.len() as u64;
                    assert_eq!(joined["seq"], seq);
                    for _ in 0..20 {
                        if seq < 1000 {
                            seq += 1;
                            assert_eq!(socket.hear()["seq"], seq);
                        }
                    }
                }
                assert_eq!(shards, [true; 4], "it was everywhere");
            });
        }
    });
}

#[test]
fn what_the_room_has_forgotten_is_told_and_nothing_of_the_rest_comes() {
    let gateway = start("[hub]\nhistory_messages = 5\n");
    let mut sockets = on_each_shard(&gateway);
    let epoch = sockets[0].join("public.a")["epoch"].clone();
    for n in 1..=10 {
        sockets[0].publish("public.a", &n.to_string(), &json!(n));
        sockets[0].hear_all(2);
    }
    for (socket, (seq, is_recovered)) in sockets[1..].iter_mut().zip([(4, false), (5, true), (10, true)]) {
        let joined = socket.recover("public.a", &epoch, seq);
        assert_eq!((&joined["seq"], &joined["payload"]["recovered"]), (&json!(10), &json!(is_recovered)), "{joined}");
        let messages = joined["payload"].get("messages").and_then(Value::as_array).map(Vec::len);
        assert_eq!(messages, is_recovered.then_some(10 - usize::try_from(seq).expect("small")), "{joined}");
    }
    sockets[0].publish("public.a", "next", &json!("next"));
    for socket in &mut sockets[1..] {
        assert_eq!(socket.hear()["seq"], 11, "all go on from there");
    }
}

#[test]
fn who_joins_hears_what_comes_after_and_who_has_left_nothing() {
    let gateway = start("[hub]\nmessages_per_s = 10000\n");
    let mut sockets = on_each_shard(&gateway);
    let mut speaker = sockets.remove(0);
    speaker.join("public.a");
    thread::scope(|scope| {
        let speaking = scope.spawn(move || {
            for n in 0..500 {
                speaker.publish("public.a", &n.to_string(), &json!(n));
                speaker.hear_all(2);
            }
        });
        for mut socket in sockets {
            scope.spawn(move || {
                for _ in 0..20 {
                    let base = socket.join("public.a")["seq"].as_u64().expect("a number");
                    socket.say(&json!({ "type": "leave_room", "id": "left", "room": "public.a" }));
                    let mut seq = base;
                    loop {
                        let heard = socket.hear();
                        if heard["type"] == "left" {
                            break;
                        }
                        seq += 1;
                        assert_eq!(heard["seq"], seq, "after {base}");
                    }
                    socket.expect_nothing();
                }
            });
        }
        speaking.join().expect("all is said");
    });
}

#[test]
fn a_large_payload_reaches_every_shard_as_it_was() {
    let gateway = start("");
    let mut sockets = on_each_shard(&gateway);
    for socket in &mut sockets {
        socket.join("public.a");
    }
    // Numbers that no double holds, escapes, and the order of members: the hub takes nothing apart.
    let payload = format!(
        r#"{{"z":12345678901234567890123,"a":"\u00e9\"\\é😀","deep":{}1{},"pad":"{}"}}"#,
        "[".repeat(98),
        "]".repeat(98),
        "x".repeat(60_000)
    );
    sockets[0].say_text(&format!(r#"{{"type":"room_message","id":"1","room":"public.a","payload":{payload}}}"#));
    for socket in &mut sockets[1..] {
        let super::socket::Heard::Text(text) = socket.hear_frame() else { panic!("a message") };
        assert!(text.contains(&payload), "byte for byte");
    }
    let deeper = format!("{}1{}", "[".repeat(101), "]".repeat(101));
    sockets[1].say_text(&format!(r#"{{"type":"room_message","id":"2","room":"public.a","payload":{deeper}}}"#));
    sockets[1].expect_error(&json!("2"), "invalid_payload");
}

#[test]
fn a_room_outlives_its_last_member_by_its_history() {
    let gateway = start(
        "[hub]\nhistory_age = \"0s\"\ndedup_window = \"1s\"\n[[hub.rooms]]\npattern = \"public.kept\"\nhistory_age = \"1h\"\n[[hub.rooms]]\npattern = \"public.*\"\n",
    );
    let mut epochs = Vec::new();
    for room in ["public.kept", "public.gone"] {
        let mut socket = Socket::open(&gateway, &user("42"));
        epochs.push(socket.join(room)["epoch"].clone());
        socket.publish(room, "1", &json!(1));
        socket.hear_all(2);
    }
    // The one that remembers nothing is freed once no id of it is remembered either.
    gateway.metrics_until("one is freed", |metrics| metrics.sum("shardgate_hub_rooms_at_home") == 1);
    let mut socket = Socket::open(&gateway, &user("42"));
    let joined = socket.recover("public.kept", &epochs[0], 0);
    assert_eq!((&joined["epoch"], &joined["payload"]["recovered"]), (&epochs[0], &json!(true)), "{joined}");
    let joined = socket.recover("public.gone", &epochs[1], 1);
    assert_ne!(joined["epoch"], epochs[1]);
    assert_eq!(joined["payload"]["recovered"], false, "{joined}");
}

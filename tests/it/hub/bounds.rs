//! What a client may not do, and what becomes of it: frames out of form, floods, and tokens that end.

use std::time::Duration;

use serde_json::{Value, json};
use shardgate::proto::websocket::{Opcode, client_frame};

use super::{
    expect_closed, on_each_shard,
    socket::{Heard, KEY, Socket},
    start, token, unix_now, user,
};
use crate::harness::until;

/// Bytes of a message that a client may send.
const MESSAGE_BYTES_MAX: usize = 65_536;

#[test]
fn frames_out_of_form_close_the_socket_with_their_code() {
    let gateway = start("");
    let frame = |opcode, payload: &[u8]| client_frame(opcode, true, payload, KEY);
    for (bytes, code) in [
        (b"\x81\x02{}".to_vec(), 1002),
        ([&[0xf1, 0x82][..], &KEY, b"xx"].concat(), 1002),
        ([&[0x83, 0x80][..], &KEY].concat(), 1002),
        (frame(Opcode::Continuation, b"{}"), 1002),
        (frame(Opcode::Close, &[3]), 1002),
        (frame(Opcode::Binary, b"{}"), 1003),
        (frame(Opcode::Text, b"\"\xff\""), 1007),
        (frame(Opcode::Text, &vec![b' '; MESSAGE_BYTES_MAX + 1]), 1009),
        (frame(Opcode::Close, &[]), 0),
        (frame(Opcode::Close, &1000_u16.to_be_bytes()), 1000),
        (frame(Opcode::Close, &[&1001_u16.to_be_bytes()[..], b"bye"].concat()), 1000),
    ] {
        let mut socket = Socket::open(&gateway, &user("42"));
        socket.send(&bytes);
        let Heard::Close(found, _) = socket.hear_frame() else { panic!("{code}") };
        assert_eq!(found.unwrap_or_default(), code, "{:x?}", bytes.get(..8.min(bytes.len())));
        let _ = socket.client().try_send(client_frame(Opcode::Close, true, &[], KEY));
        socket.client().expect_end();
    }
    super::expect_sockets(&gateway, 0);
    let metrics = gateway.metrics();
    for (reason, count) in
        [("protocol_error", 5), ("unsupported", 1), ("invalid_text", 1), ("too_big", 1), ("normal", 3)]
    {
        let row = format!("shardgate_sockets_closed_total{{reason=\"{reason}\"}}");
        assert_eq!(metrics.value(&row), count, "{row}");
    }
}

#[test]
fn a_message_has_64_kib_and_before_the_log_in_8() {
    let gateway = start("");
    let mut longest = format!(r#"{{"type":"heartbeat","id":"long"{}}}"#, " ".repeat(MESSAGE_BYTES_MAX - 32));
    assert_eq!(longest.len(), MESSAGE_BYTES_MAX);
    for mut socket in on_each_shard(&gateway) {
        socket.say_text(&longest);
        socket.expect(&json!({ "type": "heartbeat", "id": "long", "payload": {} }));
    }
    longest.replace_range(8 << 10.., "");
    longest.pop();
    longest.push('}');
    let mut socket = Socket::bare(&gateway, "");
    socket.say_text(&longest);
    socket.expect(&json!({ "type": "heartbeat", "id": "long", "payload": {} }));
    longest.insert(1, ' ');
    socket.say_text(&longest);
    socket.expect_close(1009);
}

#[test]
fn a_message_comes_in_pieces_with_a_ping_between_them() {
    let gateway = start("");
    for mut socket in on_each_shard(&gateway) {
        let text = br#"{"type":"heartbeat","id":"pieces"}"#;
        socket.send(client_frame(Opcode::Text, false, &text[..10], KEY));
        socket.send_frame(Opcode::Ping, b"are you there");
        assert_eq!(socket.hear_frame(), Heard::Pong(b"are you there".to_vec()));
        socket.send(client_frame(Opcode::Continuation, false, &[], KEY));
        for byte in &client_frame(Opcode::Continuation, true, &text[10..], KEY) {
            socket.send([*byte]);
        }
        socket.expect(&json!({ "type": "heartbeat", "id": "pieces", "payload": {} }));
    }
}

#[test]
fn a_message_that_comes_in_pieces_is_whole_within_ten_seconds() {
    let gateway = start("");
    let mut sockets = on_each_shard(&gateway);
    let begun = crate::harness::now();
    for socket in &mut sockets {
        socket.send(client_frame(Opcode::Text, false, br#"{"type":"heartbeat","id":"p""#, KEY));
    }
    sockets[0].send(client_frame(Opcode::Continuation, true, b"}", KEY));
    sockets[0].expect(&json!({ "type": "heartbeat", "id": "p", "payload": {} }));
    std::thread::scope(|scope| {
        for socket in &mut sockets[1..] {
            scope.spawn(move || {
                loop {
                    let _ = socket.client().try_send(client_frame(Opcode::Continuation, false, b" ", KEY));
                    let _ = socket.client().try_send(client_frame(Opcode::Ping, true, b"here", KEY));
                    match socket.hear_frame() {
                        Heard::Pong(_) => crate::harness::pause(Duration::from_millis(250)),
                        closed => {
                            assert_eq!(closed, Heard::Close(Some(4103), "policy violation".to_owned()));
                            break;
                        }
                    }
                    assert!(begun.elapsed() < Duration::from_secs(30), "pieces and pings do not keep it");
                }
            });
        }
    });
    assert!(begun.elapsed() >= Duration::from_secs(10));
    expect_closed(&gateway, "policy_violation", 3);
    sockets[0].expect_nothing();
}

#[test]
fn what_all_sockets_hold_of_unfinished_messages_is_bounded() {
    // Two messages of the greatest length on each of the 4 shards.
    let gateway = start("[hub]\noutboxes_bytes_max = \"1MiB\"\nsockets_per_user_max = 100\n");
    let mut sockets: Vec<Socket> = (0..24).map(|n| Socket::open(&gateway, &user(&format!("u{n}")))).collect();
    for socket in &mut sockets {
        socket.send(client_frame(Opcode::Text, false, &vec![b' '; MESSAGE_BYTES_MAX - 2], KEY));
    }
    let row = "shardgate_sockets_closed_total{reason=\"try_later\"}";
    gateway.metrics_until("most are closed", |metrics| metrics.value(row) >= 16);
    let (mut answered, mut closed) = (0, 0);
    for socket in &mut sockets {
        let _ = socket.client().try_send(client_frame(Opcode::Continuation, true, b"{}", KEY));
        let heard = loop {
            match socket.next_frame() {
                Ok(Some(Heard::Ping(_))) => {}
                other => break other,
            }
        };
        match heard {
            Ok(Some(Heard::Text(text))) => {
                assert!(text.contains("invalid_message"), "{text}");
                answered += 1;
            }
            Ok(Some(Heard::Close(code, _))) => {
                assert_eq!(code, Some(1013));
                closed += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(answered > 0, "others go on");
    assert_eq!(gateway.metrics().value(row), closed);
}

#[test]
fn the_twentieth_error_in_ten_seconds_is_the_last() {
    let gateway = start("");
    for mut socket in on_each_shard(&gateway) {
        for n in 1..20 {
            socket.say(&json!({ "type": "nothing", "id": n.to_string() }));
            socket.expect_error(&json!(n.to_string()), "unknown_type");
        }
        socket.say(&json!({ "type": "nothing", "id": "20" }));
        socket.expect_error(&json!("20"), "unknown_type");
        socket.expect_close(4103);
    }
    expect_closed(&gateway, "policy_violation", 4);
}

#[test]
fn what_comes_behind_the_last_error_is_not_heard() {
    let gateway = start("");
    let mut socket = Socket::open(&gateway, &user("42"));
    // In one write, so that all of it has come when the socket is closed.
    socket.send(client_frame(Opcode::Text, true, b"nonsense", KEY).repeat(100));
    let (told, code) = socket.hear_close();
    assert_eq!((told.len(), code), (20, 4103), "{told:?}");
    drop(socket);
    let lines = gateway.access_lines(2);
    let ended = lines.iter().find(|line| line["close_code"] == 4103).expect("a line");
    assert_eq!(ended["messages_in"], 20, "{ended}");
}

#[test]
fn too_many_messages_are_refused_and_told_when_to_come_again() {
    let gateway = start("[hub]\nmessages_per_s = 1\n");
    for mut socket in on_each_shard(&gateway) {
        // In one write, so that no time passes between them.
        let three = ["0", "1", "2"].map(|id| {
            let beat = json!({ "type": "heartbeat", "id": id }).to_string();
            client_frame(Opcode::Text, true, beat.as_bytes(), KEY)
        });
        socket.send(three.concat());
        for id in ["0", "1"] {
            socket.expect(&json!({ "type": "heartbeat", "id": id, "payload": {} }));
        }
        let error = socket.expect_error(&json!("2"), "rate_limited");
        let after_ms = error["payload"]["retryAfterMs"].as_u64().expect("a number");
        assert!((1..=1000).contains(&after_ms), "{error}");
        assert_eq!(error["payload"]["retryable"], true, "{error}");
        crate::harness::pause(Duration::from_millis(after_ms));
        socket.say(&json!({ "type": "heartbeat", "id": "3" }));
        socket.expect(&json!({ "type": "heartbeat", "id": "3", "payload": {} }));
    }
}

/// More than a shard queues in a turn, from clients on all shards at once.
#[test]
fn a_burst_that_takes_many_turns_is_heard_by_all_in_one_order() {
    const EACH: u64 = 200;
    let gateway = start(
        "[hub]\nmessages_per_s = 100000\nhistory_messages = 10000\nhistory_bytes = \"16MiB\"\noutbox_bytes_max = \"8MiB\"\n",
    );
    let mut members: Vec<Socket> = (0..40).map(|n| Socket::open(&gateway, &user(&format!("m{n}")))).collect();
    let mut senders: Vec<Socket> = (0..12).map(|n| Socket::open(&gateway, &user(&format!("s{n}")))).collect();
    for socket in members.iter_mut().chain(&mut senders) {
        socket.join("public.a");
    }
    for (at, sender) in senders.iter_mut().enumerate() {
        let say = |n: u64| {
            let message =
                json!({ "type": "room_message", "id": n.to_string(), "room": "public.a", "payload": [at, n] });
            client_frame(Opcode::Text, true, message.to_string().as_bytes(), KEY)
        };
        sender.send((0..EACH).flat_map(say).collect::<Vec<u8>>());
    }
    let mut taken = 0;
    for sender in &mut senders {
        let (mut acks, mut refused) = (Vec::new(), 0);
        while acks.len() as u64 + refused < EACH {
            let heard = sender.hear();
            match heard["type"].as_str() {
                Some("ack") => acks.push(heard["id"].as_str().and_then(|id| id.parse::<u64>().ok())),
                // A ring between shards is full.
                Some("error") if heard["payload"]["code"] == "overloaded" => refused += 1,
                Some("room_message") => {}
                _ => panic!("{heard}"),
            }
        }
        assert!(acks.is_sorted(), "{acks:?}");
        taken += acks.len() as u64;
    }
    assert!(taken > 1000, "{taken}");
    let mut first = Vec::new();
    for member in &mut members {
        let heard: Vec<Value> = (1..=taken)
            .map(|seq| {
                let mut message = member.hear();
                assert_eq!(message["seq"], seq, "{message}");
                message["payload"].take()
            })
            .collect();
        if first.is_empty() {
            first = heard;
        } else {
            assert!(first == heard, "one order for all");
        }
        member.expect_nothing();
    }
}

#[test]
fn a_socket_is_in_so_many_rooms() {
    let gateway = start("[hub]\nrooms_per_socket_max = 3\n");
    for mut socket in on_each_shard(&gateway) {
        for n in 0..3 {
            socket.join(&format!("public.{n}"));
        }
        socket.say(&json!({ "type": "join_room", "id": "1", "room": "public.3" }));
        socket.expect_error(&json!("1"), "too_many_rooms");
        socket.ask(&json!({ "type": "leave_room", "room": "public.0" }));
        socket.join("public.3");
    }
}

#[test]
fn a_user_makes_so_many_rooms() {
    let gateway = start("[hub]\nrooms_per_user_max = 8\n");
    let mut socket = Socket::open(&gateway, &user("42"));
    let mut codes = Vec::new();
    for n in 0..16 {
        let answer = socket.ask(&json!({ "type": "join_room", "id": "1", "room": format!("public.{n}") }));
        if answer["type"] != "joined" {
            assert_eq!(answer["payload"]["code"], "too_many_rooms", "{answer}");
            codes.push(n);
        }
    }
    // Two at home on each of the 4 shards, however many names lead there.
    assert!(codes.len() >= 8, "{codes:?}");
    let mut other = Socket::open(&gateway, &user("43"));
    other.join(&format!("public.{}", codes[0]));
    socket.join(&format!("public.{}", codes[0]));
}

#[test]
fn an_instance_has_so_many_rooms() {
    let gateway = start("[hub]\nrooms_max = 8\n");
    let mut socket = Socket::open(&gateway, &user("42"));
    let mut joined = 0;
    for n in 0..16 {
        let answer = socket.ask(&json!({ "type": "join_room", "id": "1", "room": format!("public.{n}") }));
        if answer["type"] == "joined" {
            joined += 1;
        } else {
            assert_eq!(
                (&answer["type"], &answer["payload"]["code"]),
                (&json!("error"), &json!("overloaded")),
                "{answer}"
            );
        }
    }
    assert!((2..=8).contains(&joined), "{joined}");
    assert!(gateway.metrics().sum("shardgate_hub_rooms_at_home") <= 8);
}

#[test]
fn a_quiet_socket_is_pinged_and_a_dead_one_closed() {
    let gateway = start("[hub]\nping_interval = \"1s\"\ndead_after = \"2s\"\n");
    let sockets = on_each_shard(&gateway);
    std::thread::scope(|scope| {
        for (n, mut socket) in sockets.into_iter().enumerate() {
            scope.spawn(move || {
                if n % 2 == 0 {
                    for _ in 0..4 {
                        let Heard::Ping(payload) = socket.hear_frame() else { panic!("a ping") };
                        socket.send_frame(Opcode::Pong, &payload);
                    }
                    socket.expect_nothing();
                } else {
                    assert!(matches!(socket.hear_frame(), Heard::Ping(_)));
                    assert_eq!(socket.hear_frame(), Heard::Close(Some(4001), "no pong".to_owned()));
                }
            });
        }
    });
    expect_closed(&gateway, "no_pong", 2);
}

fn expires_in(name: &Value, seconds: u64) -> String {
    token(&json!({ "sub": name, "sid": "s_1", "role": "user", "exp": unix_now() + seconds }))
}

#[test]
fn a_socket_ends_with_its_token_unless_that_is_renewed() {
    let gateway = start("[auth]\nleeway = \"0s\"\n");
    let exp = unix_now() + 4;
    let short = |n: usize| token(&json!({ "sub": format!("u{n}"), "role": "user", "exp": exp }));
    let mut sockets = super::on_each_shard_of(&gateway, short);
    for socket in &mut sockets[..2] {
        let name = socket.welcome["userId"].clone();
        let renewed = socket.ask(&json!({ "type": "auth", "id": "1", "payload": { "token": expires_in(&name, 600) } }));
        assert_eq!(renewed["type"], "auth_ok", "{renewed}");
    }
    for socket in &mut sockets[2..] {
        assert_eq!(socket.hear_close(), (vec![], 4101));
        assert!((exp..=exp + 1).contains(&unix_now()), "within a second");
    }
    expect_closed(&gateway, "token_expired", 2);
    until(super::SOON, "the first token has ended", || (unix_now() > exp + 1).then_some(()));
    for socket in &mut sockets[..2] {
        socket.expect_nothing();
    }
}

#[test]
fn a_renewal_with_fewer_rights_leaves_what_it_does_not_allow() {
    let gateway =
        start("[[hub.rooms]]\npattern = \"public.*\"\n[[hub.rooms]]\npattern = \"staff.*\"\nroles = [\"analyst\"]\n");
    let with = |name: &str, role: &str| token(&json!({ "sub": name, "sid": "s_1", "role": role }));
    let mut sockets = super::on_each_shard_of(&gateway, |n| with(&format!("u{n}"), "analyst"));
    for socket in &mut sockets {
        socket.join("staff.plans");
        socket.join("public.a");
    }
    let mut socket = sockets.remove(0);
    let answer = socket.ask(&json!({ "type": "auth", "id": "1", "payload": { "token": with("u0", "user") } }));
    assert_eq!((&answer["type"], &answer["id"]), (&json!("auth_ok"), &json!("1")), "{answer}");
    socket.expect(&json!({ "type": "left", "room": "staff.plans", "payload": {} }));
    let error = socket.expect_error(&Value::Null, "forbidden");
    assert_eq!(error["room"], "staff.plans", "{error}");
    sockets[0].publish("staff.plans", "1", &json!("secret"));
    sockets[0].publish("public.a", "2", &json!("open"));
    assert_eq!(socket.hear()["payload"], "open");
    socket.say(&json!({ "type": "join_room", "id": "2", "room": "staff.plans" }));
    socket.expect_error(&json!("2"), "forbidden");
}

#[test]
fn anothers_token_is_an_error_and_the_socket_lives() {
    let gateway = start("");
    for mut socket in on_each_shard(&gateway) {
        socket.join("public.a");
        let anothers = expires_in(&json!("somebody else"), 600);
        socket.say(&json!({ "type": "auth", "id": "1", "payload": { "token": anothers } }));
        socket.expect_error(&json!("1"), "other_user");
        socket.say(&json!({ "type": "auth", "id": "2", "payload": { "token": "nonsense" } }));
        socket.expect_error(&json!("2"), "token_invalid");
        socket.publish("public.a", "3", &json!(1));
        assert_eq!(socket.hear_type("room_message")["userId"], socket.welcome["userId"]);
    }
}

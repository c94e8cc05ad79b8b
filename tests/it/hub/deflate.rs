//! Compressed messages (permessage-deflate, RFC 7692), where the configuration has them.

use serde_json::{Value, json};
use shardgate::proto::websocket::{Deflater, Opcode};

use super::{
    expect_sockets, on_each_shard,
    socket::{Heard, Socket, deflated_frame},
    start, user,
};
use crate::harness::Gateway;

const ON: &str = "[hub]\ndeflate = true\n";

/// What browsers offer.
const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

/// Bytes of a message that a client may send, and before its log-in.
const MESSAGE_BYTES_MAX: usize = 65_536;
const EARLY_BYTES_MAX: usize = 8_192;

fn bearer(name: &str) -> String {
    format!("Authorization: Bearer {}\r\n", user(name))
}

/// A socket of this user that takes compressed messages.
#[track_caller]
fn deflating(gateway: &Gateway, name: &str, offer: &str) -> Socket {
    let (mut socket, answer) = Socket::on(gateway.connect(), &format!("{}{offer}", bearer(name))).expect("it opens");
    assert!(answer.field("sec-websocket-extensions").is_some(), "it is agreed");
    socket.welcome = socket.hear();
    socket
}

/// A heartbeat of so many bytes.
fn heartbeat(bytes: usize) -> String {
    let text = format!(r#"{{"type":"heartbeat","id":"long"{}}}"#, " ".repeat(bytes - 32));
    assert_eq!(text.len(), bytes);
    text
}

#[test]
fn it_is_agreed_only_where_both_sides_want_it() {
    for (config, offer, agreed) in [
        ("", OFFER, None),
        (ON, "", None),
        (ON, "Sec-WebSocket-Extensions: x-webkit-deflate-frame\r\n", None),
        (ON, OFFER, Some("permessage-deflate; server_no_context_takeover; client_no_context_takeover")),
        (
            ON,
            "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n",
            Some(
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10",
            ),
        ),
    ] {
        let gateway = start(config);
        let (mut socket, answer) =
            Socket::on(gateway.connect(), &format!("{}{offer}", bearer("42"))).expect("it opens");
        assert_eq!(answer.field("sec-websocket-extensions"), agreed, "{config}{offer}");
        assert_eq!(socket.hear()["type"], "welcome");
        socket.send_deflated(Opcode::Text, heartbeat(1000).as_bytes());
        if agreed.is_some() {
            assert_eq!(socket.hear()["id"], "long");
        } else {
            socket.expect_close(1002);
        }
    }
}

#[test]
fn members_of_both_kinds_hear_the_same() {
    let gateway = start(ON);
    let mut plain = on_each_shard(&gateway);
    // More than there are shards: some shard has two, which share one compressed message.
    let mut others: Vec<Socket> = (0..8).map(|n| deflating(&gateway, &format!("d{n}"), OFFER)).collect();
    others.push(deflating(
        &gateway,
        "narrow",
        "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9\r\n",
    ));
    for socket in plain.iter_mut().chain(&mut others) {
        socket.join("public.sale");
    }
    let long = "a message that is worth it. ".repeat(500);
    for (n, payload) in (1_u64..).zip([json!({ "text": long }), json!({ "text": "short" })]) {
        let message = json!({ "type": "room_message", "room": "public.sale", "id": n.to_string(), "payload": payload });
        others[0].send_deflated(Opcode::Text, message.to_string().as_bytes());
        let before: Vec<usize> = others.iter().map(|socket| socket.bytes).collect();
        for socket in plain.iter_mut().chain(&mut others) {
            let heard = socket.hear_type("room_message");
            assert_eq!((&heard["seq"], &heard["payload"]), (&json!(n), &payload));
        }
        let taken: Vec<usize> = others.iter().zip(before).map(|(socket, before)| socket.bytes - before).collect();
        let (narrow, wide) = taken.split_last().expect("there are some");
        if n == 1 {
            assert!(wide.iter().all(|&bytes| bytes < 1000), "{taken:?}");
            assert!(*narrow > long.len(), "longer than its window, so it comes as it is: {taken:?}");
        }
    }
    for socket in &others[..8] {
        assert_eq!(socket.deflated, 1, "the short one came as it is");
    }
    // Who comes back gets all that it missed in one compressed answer.
    let mut late = deflating(&gateway, "late", OFFER);
    let epoch = late.join("public.sale")["epoch"].clone();
    late.ask(&json!({ "type": "leave_room", "room": "public.sale" }));
    let joined = late.recover("public.sale", &epoch, 0);
    let texts: Vec<&Value> =
        joined["payload"]["messages"].as_array().expect("a list").iter().map(|one| &one["payload"]["text"]).collect();
    assert_eq!(texts, [&json!(long), &json!("short")]);
    assert_eq!(late.deflated, 1);
}

#[test]
fn limits_count_what_a_message_becomes() {
    let gateway = start(ON);
    let mut socket = deflating(&gateway, "42", OFFER);
    socket.send_deflated(Opcode::Text, heartbeat(MESSAGE_BYTES_MAX).as_bytes());
    assert_eq!(socket.hear()["id"], "long");
    let mut early = Socket::bare(&gateway, OFFER);
    early.send_deflated(Opcode::Text, heartbeat(EARLY_BYTES_MAX).as_bytes());
    assert_eq!(early.hear()["id"], "long");
    early.send_deflated(Opcode::Text, heartbeat(EARLY_BYTES_MAX + 1).as_bytes());
    early.expect_close(1009);

    let deflated = |payload: &[u8]| Deflater::default().deflate(payload, 15).to_vec();
    for (frame, code) in [
        (deflated_frame(Opcode::Text, &deflated(heartbeat(MESSAGE_BYTES_MAX + 1).as_bytes())), 1009),
        (deflated_frame(Opcode::Text, &deflated(b"\"\xff\"")), 1007),
        (deflated_frame(Opcode::Text, b"\xff\xff\xff"), 1007),
        (deflated_frame(Opcode::Binary, &deflated(b"{}")), 1003),
        (deflated_frame(Opcode::Ping, b""), 1002),
        // It would become short enough, but comes as more than it may become.
        (deflated_frame(Opcode::Text, &[0, 0, 0, 0xff, 0xff].repeat(MESSAGE_BYTES_MAX / 4)), 1009),
    ] {
        let mut socket = deflating(&gateway, "42", OFFER);
        let _ = socket.client().try_send(&frame);
        let Heard::Close(found, _) = socket.hear_frame() else { panic!("{code}") };
        assert_eq!(found, Some(code), "{:x?}", &frame[..8]);
    }
}

#[test]
fn many_that_come_at_once_are_all_heard() {
    let gateway = start(&format!("{ON}messages_per_s = 1000\n"));
    let mut socket = deflating(&gateway, "42", OFFER);
    let mut deflater = Deflater::default();
    let frames: Vec<u8> = (100..200)
        .flat_map(|n| {
            let text = heartbeat(MESSAGE_BYTES_MAX).replace("\"long\"", &format!("\"l{n}\""));
            deflated_frame(Opcode::Text, deflater.deflate(text.as_bytes(), 15))
        })
        .collect();
    assert!(frames.len() < 100_000, "one read takes many: {}", frames.len());
    socket.send(&frames);
    for n in 100..200 {
        assert_eq!(socket.hear()["id"], format!("l{n}"));
    }
}

#[test]
fn bombs_take_no_memory() {
    let gateway = start(ON);
    // As small as it gets: a thousandth.
    let mut deflated = Vec::with_capacity(1 << 20);
    let mut state = flate2::Compress::new(flate2::Compression::best(), false);
    state.compress_vec(&vec![b' '; 48 << 20], &mut deflated, flate2::FlushCompress::Sync).expect("it compresses");
    let bomb = deflated_frame(Opcode::Text, &deflated);
    assert!(bomb.len() < 60_000, "it comes as less than a message may have: {}", bomb.len());
    let throw = || {
        let mut socket = deflating(&gateway, "42", OFFER);
        socket.send(&bomb);
        socket.expect_close(1009);
    };
    // Each shard has its own inflater, and memory for what comes out.
    (0..20).for_each(|_| throw());
    std::fs::write(format!("/proc/{}/clear_refs", gateway.pid()), "5").expect("the gateway is ours");
    let before = peak_kib(&gateway);
    (0..100).for_each(|_| throw());
    let grown = peak_kib(&gateway).saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB, where one bomb is of 48 MiB");
    expect_sockets(&gateway, 0);
}

/// The most memory that the gateway has had since its figure was reset.
fn peak_kib(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

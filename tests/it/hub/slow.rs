//! Members that do not read: what becomes of them is their room's to say, and nobody else notices.

use std::{net::SocketAddr, sync::mpsc::channel, thread};

use serde_json::{Value, json};

use super::{endpoints::ask, expect_closed, on_each_shard, socket::Socket, start, user, with_role};
use crate::{client::Client, harness::Gateway};

/// Messages, and what fills each: more together than an outbox and the kernel's buffers hold.
const MESSAGES: u64 = 160;
const PAD: usize = 60_000;

/// A client whose kernel takes little.
fn narrow(address: SocketAddr) -> Client {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("as small as it goes");
    socket.connect(&address.into()).expect("it listens");
    Client::new(socket.into())
}

/// A member that joins and then does not read.
fn slow(gateway: &Gateway, name: &str, room: &str) -> Socket {
    let bearer = format!("Authorization: Bearer {}\r\n", user(name));
    let (mut socket, _) = Socket::on(narrow(gateway.address()), &bearer).expect("it opens");
    socket.welcome = socket.hear();
    socket.join(room);
    socket
}

/// Says all messages in a room, those of four symbols in turn, each when those who read have the one before.
fn say_all(gateway: &Gateway, room: &str, heard_by_all: impl Fn()) {
    for n in 1..=MESSAGES {
        let payload = json!({ "symbol": n % 4, "n": n, "pad": "x".repeat(PAD) });
        let path = format!("/hub/rooms/{room}/publish");
        let said =
            ask(gateway, "POST", &path, &with_role("s", "service"), &json!({ "type": "price", "payload": payload }));
        assert_eq!((said.status, &said.json()["seq"]), (202, &json!(n)), "{}", said.text());
        heard_by_all();
    }
}

/// Fast members on every shard hear everything while this goes on, and a slow one is left for the test.
fn fill(gateway: &Gateway, room: &str) -> Socket {
    let fast = on_each_shard(gateway);
    let slow = slow(gateway, "slow", room);
    let (heard, all_heard) = channel();
    thread::scope(|scope| {
        let fast_count = fast.len();
        for mut socket in fast {
            socket.join(room);
            let heard = heard.clone();
            scope.spawn(move || {
                for n in 1..=MESSAGES {
                    let message = socket.hear();
                    assert_eq!(
                        (&message["seq"], &message["payload"]["n"]),
                        (&json!(n), &json!(n)),
                        "{}",
                        message["type"]
                    );
                    // Nobody waits for it any more where another one has failed.
                    let _ = heard.send(());
                }
                socket.expect_nothing();
            });
        }
        // It ends for whoever waits when those who read have.
        drop(heard);
        // On a busy machine they would be slow, too, if they were not waited for.
        say_all(gateway, room, || (0..fast_count).for_each(|_| all_heard.recv().expect("others do not notice")));
    });
    slow
}

/// What a slow member hears up to the answer to its heartbeat: each number is in a message or in a gap, once and in order.
#[track_caller]
fn hear_with_gaps(socket: &mut Socket) -> (Vec<Value>, u64) {
    socket.say(&json!({ "type": "heartbeat", "id": "end" }));
    let (mut messages, mut next, mut in_gaps) = (Vec::new(), 1, 0);
    loop {
        let heard = socket.hear();
        match heard["type"].as_str() {
            Some("price") => {
                assert_eq!(heard["seq"], next);
                next += 1;
                messages.push(heard);
            }
            Some("gap") => {
                assert!(heard["epoch"].is_string() && heard["room"].is_string(), "{heard}");
                assert_eq!(heard["payload"]["from"], next, "{heard}");
                let to = heard["payload"]["to"].as_u64().expect("a number");
                in_gaps += to + 1 - next;
                next = to + 1;
            }
            Some("heartbeat") => break,
            _ => panic!("{heard}"),
        }
    }
    assert_eq!(next, MESSAGES + 1, "nothing is silent");
    (messages, in_gaps)
}

#[test]
fn who_does_not_read_is_closed_by_default() {
    let gateway = start("[hub]\noutbox_bytes_max = \"512KiB\"\n");
    let mut slow = fill(&gateway, "public.a");
    expect_closed(&gateway, "slow_consumer", 1);
    // What was on its way arrives whole and in order, and then why.
    let (messages, code) = slow.hear_close();
    assert_eq!(code, 4000);
    let numbers: Vec<u64> = messages.iter().map(|message| message["seq"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert!(numbers.last() < Some(&MESSAGES), "{}", numbers.len());
    // It comes back for the rest.
    let mut again = Socket::open(&gateway, &user("slow"));
    let epoch = messages[0]["epoch"].clone();
    let joined = again.recover("public.a", &epoch, MESSAGES - 1);
    assert_eq!(joined["payload"]["recovered"], true, "{}", joined["payload"]["recovered"]);
}

#[test]
fn a_room_may_drop_its_oldest_messages() {
    let gateway = start(
        "[hub]\noutbox_bytes_max = \"512KiB\"\n[[hub.rooms]]\npattern = \"public.*\"\nslow_consumer = \"drop_oldest\"\n",
    );
    let mut slow = fill(&gateway, "public.a");
    let dropped = gateway.metrics().value("shardgate_hub_dropped_total");
    let (messages, in_gaps) = hear_with_gaps(&mut slow);
    assert_eq!(i64::try_from(in_gaps), Ok(dropped), "what is dropped is told");
    assert!(dropped > 0);
    assert_eq!(messages.last().expect("some came")["seq"], MESSAGES, "the newest stays");
    slow.expect_nothing();
}

#[test]
fn a_room_may_keep_the_latest_of_each_key() {
    let gateway = start(
        "[hub]\noutbox_bytes_max = \"512KiB\"\n\
         [[hub.rooms]]\npattern = \"public.*\"\nslow_consumer = \"latest\"\nkey = \"/symbol\"\n",
    );
    let mut slow = fill(&gateway, "public.a");
    let (messages, in_gaps) = hear_with_gaps(&mut slow);
    assert!(in_gaps > 0);
    let last: Vec<u64> = messages.iter().rev().take(4).filter_map(|message| message["seq"].as_u64()).collect();
    assert_eq!(last, [MESSAGES, MESSAGES - 1, MESSAGES - 2, MESSAGES - 3], "the latest of each symbol");
    slow.expect_nothing();
}

#[test]
fn all_outboxes_together_are_bounded() {
    const ALL: i64 = 1 << 20;
    let gateway = start("[hub]\noutboxes_bytes_max = \"1MiB\"\n");
    let _members: Vec<Socket> = (0..16).map(|n| slow(&gateway, &format!("slow{n}"), "public.a")).collect();
    let mut most = 0;
    for n in 0..MESSAGES {
        let payload = json!({ "n": n, "pad": "x".repeat(PAD) });
        let said = ask(
            &gateway,
            "POST",
            "/hub/rooms/public.a/publish",
            &with_role("s", "service"),
            &json!({ "payload": payload }),
        );
        assert_eq!(said.status, 202, "{}", said.text());
        let bytes = gateway.metrics().by_shard("shardgate_hub_outbox_bytes");
        for shard in &bytes {
            assert!(*shard <= ALL / 4, "{bytes:?}");
        }
        most = most.max(bytes.iter().sum());
    }
    assert!(most > ALL / 8, "they were filled: {most}");
    assert!(gateway.metrics().value("shardgate_sockets_closed_total{reason=\"slow_consumer\"}") > 0);
}

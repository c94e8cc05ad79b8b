//! A hub alone on a bus that is answered by hand.

use super::super::{
    bus::{BusAnswer, BusCounts, BusMessage, BusPublish, BusRead, BusRequest, Stands},
    encode::Encoder,
    limits::Limits,
    name::RoomName,
    position::{Chain, Digest, Epoch, Last, Position},
    unnumbered::Unnumbered,
};
use super::*;
use std::rc::Rc;

const ROOM: &str = "public.a";

/// A hub whose bus is there.
fn on_bus(plan: Plan) -> One {
    let mut one = One { hub: hub_of_bus(0, 1, plan.clone(), 7), plan, now: Instant::START };
    one.hub.bus_is_up(one.now, true);
    one
}

fn requests(one: &mut One) -> Vec<BusRequest> {
    let effects = one.effects().into_iter();
    effects.filter_map(|effect| if let Effect::Bus(request) = effect { Some(request) } else { None }).collect()
}

/// What is read, of the only room.
fn read_asked(one: &mut One) -> BusRead {
    let found = requests(one).into_iter().find_map(|request| match request {
        BusRequest::Read(read) => Some(*read),
        _ => None,
    });
    found.expect("it reads")
}

fn published(one: &mut One) -> Vec<BusPublish> {
    let requests = requests(one).into_iter();
    requests
        .filter_map(|request| if let BusRequest::Publish(publish) = request { Some(*publish) } else { None })
        .collect()
}

fn digest(seq: u64) -> Digest {
    Digest::parse(&format!("{:016x}", seq + 1))
}

fn message(seq: u64) -> (u64, Chain, Unnumbered) {
    let chain = Chain { before: digest(seq - 1), after: digest(seq) };
    (seq, chain, Encoder::default().unnumbered_message(0, ROOM, "u", &seq.to_string()))
}

fn position(epoch: &str, seq: u64) -> Position {
    Position { epoch: Epoch::parse(epoch), seq }
}

/// The room has so many messages, and the log those from `first` on.
fn stand(one: &mut One, read: &BusRead, epoch: &str, seq: u64, first: u64) {
    let from = if read.from == u64::MAX { seq.max(1) } else { read.from };
    let messages = (first.max(from)..=seq).map(message).collect();
    let last = Last { position: position(epoch, seq), digest: digest(seq) };
    let stands = Stands { room: read.room.clone(), number: read.number, last, messages, users: None };
    one.hub.handle_bus(one.now, BusAnswer::Stands(Box::new(stands)));
}

fn heard(one: &mut One, epoch: &str, seq: u64) {
    let (_, chain, message) = message(seq);
    let room = RoomName::parse(ROOM).expect("a name");
    let heard = BusMessage { room, position: position(epoch, seq), chain, message };
    one.hub.handle_bus(one.now, BusAnswer::Heard(Box::new(heard)));
}

/// A member, where the room stands.
fn joined(one: &mut One, seq: u64) -> SocketKey {
    let socket = one.enter("a");
    one.say(socket, r#"{"type":"join_room","id":"1","room":"public.a"}"#);
    let read = read_asked(one);
    stand(one, &read, "k3", seq, 1);
    assert!(one.read(socket).contains(r#""type":"joined""#));
    socket
}

/// Time passes until it is time for something.
fn wait(one: &mut One) -> Duration {
    let due = one.hub.poll_timeout().expect("something is due");
    let passed = due.since(one.now);
    one.now = due;
    one.hub.handle_timeout(one.now);
    passed
}

#[test]
fn a_message_right_behind_its_join_waits_for_it() {
    let mut one = on_bus(Plan::default());
    let socket = one.enter("a");
    one.read(socket);
    one.say(socket, r#"{"type":"join_room","id":"1","room":"public.a"}"#);
    one.say(socket, r#"{"type":"room_message","id":"2","room":"public.a","payload":1}"#);
    one.say(socket, r#"{"type":"room_message","id":"3","room":"public.a","payload":2}"#);
    let read = read_asked(&mut one);
    assert_eq!(one.read(socket), "", "no answer yet");
    stand(&mut one, &read, "k3", 4, 5);
    let publishes = published(&mut one);
    assert_eq!(publishes.iter().map(|publish| publish.message.payload()).collect::<Vec<_>>(), ["1", "2"]);
    assert!(one.read(socket).contains(r#""seq":4,"payload":{"members":1}"#));
    for (publish, seq) in publishes.iter().zip(5..) {
        let (room, asker, position) = (publish.room.clone(), publish.asker, position("k3", seq));
        one.hub.handle_bus(one.now, BusAnswer::Published { room, asker, position });
    }
    let told = one.read(socket);
    assert!(told.contains(r#""type":"ack","id":"2""#) && told.contains(r#""type":"ack","id":"3""#), "{told}");
}

#[test]
fn a_message_behind_a_join_that_is_refused_is_refused_and_so_is_one_too_many() {
    let mut one = on_bus(Plan::default());
    let socket = one.enter("a");
    one.read(socket);
    one.say(socket, r#"{"type":"join_room","id":"1","room":"public.a"}"#);
    one.say(socket, r#"{"type":"room_message","id":"2","room":"public.a","payload":1}"#);
    one.hub.bus_is_up(one.now, false);
    let told = one.read(socket);
    assert_eq!(told.matches("dependency_unavailable").count(), 2, "{told}");
    assert_eq!(one.hub.counts().bus.away, 2);
    assert_eq!((one.hub.counts().homes, one.hub.counts().asks), (0, 0));
}

#[test]
fn a_bus_that_refuses_is_asked_less_and_less() {
    let mut one = on_bus(Plan::default());
    let socket = joined(&mut one, 1);
    // The comparison, and all that is told of who is here.
    let mut waits = Vec::new();
    while waits.len() < 8 {
        let mut waited = Duration::ZERO;
        let read = loop {
            waited += wait(&mut one);
            let found = requests(&mut one).into_iter().find_map(|request| match request {
                BusRequest::Read(read) => Some(read),
                _ => None,
            });
            if let Some(read) = found {
                break read;
            }
        };
        waits.push(waited);
        one.hub.handle_bus(one.now, BusAnswer::Unread { room: read.room.clone(), number: read.number });
    }
    assert!(waits[1] < Duration::from_millis(400) && waits[7] > Duration::from_secs(3), "{waits:?}");
    one.hub.leave(one.now, socket);
}

#[test]
fn what_was_put_back_is_forgotten_when_memory_is_short() {
    let limits = Limits { history_bytes_max: 2000, ..Limits::default() };
    let mut one = on_bus(Plan { limits: Rc::new(limits), ..Plan::default() });
    let _first = joined(&mut one, 100);
    let other = one.enter("b");
    one.read(other);
    one.say(other, r#"{"type":"join_room","room":"public.a","payload":{"recover":{"epoch":"k3","seq":60}}}"#);
    let read = read_asked(&mut one);
    stand(&mut one, &read, "k3", 100, 1);
    assert!(one.read(other).contains(r#""recovered":true"#));
    assert!(one.hub.counts().history_bytes <= 2000, "{:?}", one.hub.counts());
}

#[test]
fn when_the_bus_comes_not_all_rooms_ask_at_once() {
    let (rooms_per_user_max, rooms_per_socket_max) = (1000, 1000);
    let limits =
        Limits { rooms_per_user_max, rooms_per_socket_max, messages_per_second: u32::MAX, ..Limits::default() };
    let mut one = on_bus(Plan { limits: Rc::new(limits), ..Plan::default() });
    let socket = one.enter("a");
    for n in 0..600 {
        one.say(socket, &format!(r#"{{"type":"join_room","room":"public.{n}"}}"#));
        let read = read_asked(&mut one);
        stand(&mut one, &read, "k3", 0, 1);
        one.read(socket);
    }
    one.hub.bus_is_up(one.now, false);
    requests(&mut one);
    one.hub.bus_is_up(one.now, true);
    let mut asked = vec![requests(&mut one).len()];
    for _ in 0..10 {
        one.now += Duration::from_millis(10);
        one.hub.handle_timeout(one.now);
        asked.push(requests(&mut one).len());
    }
    assert!(asked.iter().all(|count| *count <= 256) && asked.iter().sum::<usize>() == 1200, "{asked:?}");
}

#[test]
fn what_the_bus_does_is_counted() {
    let mut one = on_bus(Plan::default());
    let socket = joined(&mut one, 1);
    heard(&mut one, "k3", 2);
    // One is missed, and read.
    heard(&mut one, "k3", 4);
    let mut read = None;
    while read.is_none() {
        wait(&mut one);
        read = requests(&mut one).into_iter().find_map(|request| match request {
            BusRequest::Read(read) => Some(read),
            _ => None,
        });
    }
    stand(&mut one, &read.expect("it reads"), "k3", 4, 1);
    assert!(one.read(socket).contains(r#""seq":4"#));
    // What has left the log is lost, and then the numbers begin anew.
    for (epoch, seq) in [("k3", 9), ("k4", 1)] {
        one.hub.bus_is_up(one.now, true);
        let read = read_asked(&mut one);
        stand(&mut one, &read, epoch, seq, 100);
        assert!(one.read(socket).contains(r#""type":"continuity""#));
    }
    one.say(socket, r#"{"type":"room_message","id":"2","room":"public.a","payload":1}"#);
    let publish = published(&mut one).pop().expect("it is given to the bus");
    one.hub.bus_dropped(one.now, BusRequest::Publish(Box::new(publish)));
    one.hub.bus_is_up(one.now, false);
    one.say(socket, r#"{"type":"room_message","id":"3","room":"public.a","payload":1}"#);
    let wanted = BusCounts { publishes: 1, deliveries: 2, repaired: 2, lost: 1, begun: 1, away: 1, full: 1 };
    assert_eq!(one.hub.counts().bus, wanted);
}

#[test]
fn who_missed_more_than_one_answer_brings_is_told_so_and_begins_at_the_end() {
    let mut one = on_bus(Plan::default());
    let socket = one.enter("a");
    one.read(socket);
    one.say(socket, r#"{"type":"join_room","id":"1","room":"public.a","payload":{"recover":{"epoch":"k3","seq":2}}}"#);
    let read = read_asked(&mut one);
    assert_eq!(read.from, 3);
    let last = Last { position: position("k3", 9), digest: digest(9) };
    let messages = (3..6).map(message).collect();
    let stands = Stands { room: read.room.clone(), number: read.number, last, messages, users: None };
    one.hub.handle_bus(one.now, BusAnswer::Stands(Box::new(stands)));
    let told = one.read(socket);
    assert!(told.contains(r#""seq":9,"payload":{"members":1,"recovered":false}"#), "{told}");
}

#[test]
fn an_answer_to_a_home_that_is_gone_is_none_to_the_next() {
    let mut one = on_bus(Plan::default());
    let join = r#"{"type":"join_room","id":"1","room":"public.a"}"#;
    let first = one.enter("a");
    one.say(first, join);
    let old = read_asked(&mut one);
    one.hub.leave(one.now, first);
    one.hub.bus_is_up(one.now, false);
    one.hub.bus_is_up(one.now, true);
    assert_eq!(one.hub.counts().homes, 0);
    let second = one.enter("b");
    one.read(second);
    one.say(second, join);
    let new = read_asked(&mut one);
    stand(&mut one, &old, "k3", 1, 1);
    assert_eq!(one.read(second), "", "that was before it came");
    stand(&mut one, &new, "k3", 2, 1);
    assert!(one.read(second).contains(r#""seq":2,"payload":{"members":1}"#));
}

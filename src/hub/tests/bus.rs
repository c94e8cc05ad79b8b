//! A hub alone on a bus that is answered by hand.

use super::super::{
    bus::{BusAnswer, BusCounts, BusMessage, BusPublish, BusRead, BusRequest, BusUsers, Present, Stands},
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
pub(super) fn on_bus(plan: Plan) -> One {
    let mut one = One { hub: hub_of_bus(0, 1, plan.clone(), 7), plan, now: Instant::START };
    one.hub.bus_is_up(one.now, true);
    one
}

fn requests(one: &mut One) -> Vec<BusRequest> {
    let effects = one.effects().into_iter();
    effects.filter_map(|effect| if let Effect::Bus(request) = effect { Some(request) } else { None }).collect()
}

/// What is read now, of the only room.
fn read_now(one: &mut One) -> Option<BusRead> {
    requests(one).into_iter().find_map(|request| match request {
        BusRequest::Read(read) => Some(*read),
        _ => None,
    })
}

pub(super) fn read_asked(one: &mut One) -> BusRead {
    read_now(one).expect("it reads")
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
            if let Some(read) = read_now(&mut one) {
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

fn forgets(one: &mut One) -> usize {
    requests(one).iter().filter(|request| matches!(request, BusRequest::Forget(_))).count()
}

#[test]
fn of_a_room_that_it_was_never_asked_for_the_bus_is_told_nothing() {
    let mut one = on_bus(Plan::default());
    let socket = one.enter("a");
    let join = r#"{"type":"join_room","id":"1","room":"public.a"}"#;
    one.hub.bus_is_up(one.now, false);
    one.say(socket, join);
    assert_eq!((one.hub.counts().homes, forgets(&mut one)), (0, 0), "it was refused");
    one.hub.bus_is_up(one.now, true);
    one.say(socket, join);
    let read = read_asked(&mut one);
    one.hub.bus_dropped(one.now, BusRequest::Read(Box::new(read)));
    one.hub.bus_is_up(one.now, false);
    assert_eq!((one.hub.counts().homes, forgets(&mut one)), (0, 0), "it did not hear of it");
}

#[test]
fn that_nobody_is_in_a_room_is_told_again_unless_somebody_is() {
    let mut one = on_bus(Plan::default());
    let room = RoomName::parse(ROOM).expect("a name");
    let socket = joined(&mut one, 1);
    one.say(socket, r#"{"type":"leave_room","room":"public.a"}"#);
    assert_eq!(forgets(&mut one), 1);
    // It does not go, time and again, and is there once.
    for _ in 0..3 {
        one.hub.bus_dropped(one.now, BusRequest::Forget(room.clone()));
        one.hub.bus_dropped(one.now, BusRequest::Forget(room.clone()));
        wait(&mut one);
        assert_eq!(forgets(&mut one), 1);
    }
    // Somebody comes before it could be told, and leaves before the bus heard of that.
    one.hub.bus_dropped(one.now, BusRequest::Forget(room.clone()));
    one.say(socket, r#"{"type":"join_room","room":"public.a"}"#);
    let read = read_asked(&mut one);
    one.hub.bus_dropped(one.now, BusRequest::Read(Box::new(read)));
    one.hub.bus_is_up(one.now, false);
    assert_eq!((one.hub.counts().homes, forgets(&mut one)), (0, 1), "it listens still");
    // The same, where it turns out only then that it could not be told.
    one.hub.bus_is_up(one.now, true);
    one.say(socket, r#"{"type":"join_room","room":"public.a"}"#);
    one.hub.bus_dropped(one.now, BusRequest::Forget(room));
    let read = read_asked(&mut one);
    one.hub.bus_dropped(one.now, BusRequest::Read(Box::new(read)));
    one.hub.bus_is_up(one.now, false);
    assert_eq!((one.hub.counts().homes, forgets(&mut one)), (0, 1));
}

#[test]
fn what_the_bus_does_is_counted() {
    let mut one = on_bus(Plan::default());
    let socket = joined(&mut one, 1);
    heard(&mut one, "k3", 2);
    // One is missed, and read.
    heard(&mut one, "k3", 4);
    let read = until_read(&mut one).0;
    stand(&mut one, &read, "k3", 4, 1);
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
fn who_came_while_the_bus_was_slow_comes_in_some_at_a_time() {
    let mut one = on_bus(Plan::default());
    let sockets: Vec<SocketKey> = (0..600).map(|user| one.enter(&format!("u{user}"))).collect();
    for &socket in &sockets {
        one.read(socket);
        one.say(socket, r#"{"type":"join_room","room":"public.a"}"#);
    }
    let mut admitted = Vec::new();
    while admitted.iter().sum::<usize>() < 600 {
        let read = read_asked(&mut one);
        stand(&mut one, &read, "k3", 1, 1);
        one.hub.go_on(one.now);
        admitted.push(sockets.iter().filter(|&&socket| one.read(socket).contains(r#""type":"joined""#)).count());
    }
    assert_eq!(admitted, [256, 256, 88]);
    assert!(read_now(&mut one).is_none());
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

/// The question is answered by where the room stood already, and by who is there.
pub(super) fn stand_with(one: &mut One, read: &BusRead, users: BusUsers) {
    let last = Last { position: position("k3", 1), digest: digest(1) };
    let stands =
        Stands { room: read.room.clone(), number: read.number, last, messages: Vec::new(), users: Some(users) };
    one.hub.handle_bus(one.now, BusAnswer::Stands(Box::new(stands)));
}

pub(super) fn others(of: &[(&str, &str)]) -> Vec<Present> {
    of.iter().map(|&(node, user)| Present { node: node.into(), user: user.into(), sockets: 1 }).collect()
}

fn members(one: &One) -> u32 {
    one.hub.homes.iter().map(|(_, home)| home.look().members).sum()
}

/// What is asked until the room is read; the question, and what was told of who is here: whether it was all, and how many.
fn until_read(one: &mut One) -> (BusRead, Vec<(bool, usize)>) {
    let mut told = Vec::new();
    loop {
        let mut read = None;
        for request in requests(one) {
            match request {
                BusRequest::Read(asked) => read = Some(*asked),
                BusRequest::Here(here) => told.push((here.is_whole, here.users.len())),
                _ => {}
            }
        }
        if let Some(read) = read {
            return (read, told);
        }
        wait(one);
    }
}

/// The next question that is also for who is there; those before it are answered.
fn until_users_are_asked_for(one: &mut One) -> BusRead {
    loop {
        let read = until_read(one).0;
        if read.wants_users {
            return read;
        }
        stand(one, &read, "k3", 1, 9);
    }
}

#[test]
fn soon_after_the_bus_came_nobody_is_gone_who_is_not_named() {
    let mut one = on_bus(Plan::default());
    joined(&mut one, 1);
    one.hub.bus_is_up(one.now, true);
    let read = until_read(&mut one).0;
    let all = [("n_1", "b"), ("n_2", "c"), ("n_2", "d")];
    stand_with(&mut one, &read, BusUsers { others: others(&all), ..BusUsers::default() });
    assert_eq!(members(&one), 4);
    one.hub.bus_is_up(one.now, true);
    let read = until_read(&mut one).0;
    assert!(read.wants_users);
    // The second has told again; the first has not come back yet.
    let early = BusUsers { others: others(&[("n_2", "d")]), early_for: Duration::from_secs(7), ..BusUsers::default() };
    stand_with(&mut one, &read, early);
    assert_eq!(members(&one), 3, "b is still there, and c has gone");
    let read = until_read(&mut one).0;
    assert!(!read.wants_users, "others may still be about to come back");
    stand(&mut one, &read, "k3", 1, 9);
    let read = until_read(&mut one).0;
    assert!(read.wants_users, "by now they have");
    stand_with(&mut one, &read, BusUsers { others: others(&[("n_2", "d")]), ..BusUsers::default() });
    assert_eq!(members(&one), 2);
    assert!(!until_read(&mut one).0.wants_users);
}

#[test]
fn an_instance_that_is_gone_is_asked_for_once_more() {
    let mut one = on_bus(Plan::default());
    joined(&mut one, 1);
    one.hub.bus_is_up(one.now, true);
    let read = until_read(&mut one).0;
    stand_with(&mut one, &read, BusUsers { others: others(&[("n_1", "b")]), ..BusUsers::default() });
    one.hub.handle_bus(one.now, BusAnswer::Gone("n_2".into()));
    let read = until_read(&mut one).0;
    assert!(!read.wants_users, "nobody was there");
    one.hub.handle_bus(one.now, BusAnswer::Gone("n_1".into()));
    assert_eq!(members(&one), 1);
    // The answer under way does not say so, nor does one that never comes.
    stand(&mut one, &read, "k3", 1, 9);
    let read = until_read(&mut one).0;
    assert!(read.wants_users);
    one.hub.handle_bus(one.now, BusAnswer::Unread { room: read.room.clone(), number: read.number });
    let read = until_read(&mut one).0;
    assert!(read.wants_users);
    stand_with(&mut one, &read, BusUsers { others: others(&[("n_1", "b")]), ..BusUsers::default() });
    assert_eq!(members(&one), 2, "it lives after all");
}

#[test]
fn what_the_bus_has_lost_of_who_is_here_is_told_again() {
    let mut one = on_bus(Plan::default());
    joined(&mut one, 1);
    let found = |here: &[(&str, u32)]| BusUsers {
        here: Some(here.iter().map(|&(user, sockets)| (user.into(), sockets)).collect()),
        ..BusUsers::default()
    };
    let cases: [(&[(&str, u32)], bool); 4] =
        [(&[("a", 1)], false), (&[], true), (&[("a", 2)], true), (&[("a", 1), ("b", 1)], true)];
    for (here, is_told_again) in cases {
        one.hub.handle_bus(one.now, BusAnswer::Gone("n_1".into()));
        let read = until_users_are_asked_for(&mut one);
        stand_with(&mut one, &read, found(here));
        let (read, told) = until_read(&mut one);
        assert_eq!(told, if is_told_again { vec![(true, 1)] } else { vec![] }, "{here:?}");
        stand(&mut one, &read, "k3", 1, 9);
    }
    // While it is asked somebody comes: the answer may lack that.
    let read = until_users_are_asked_for(&mut one);
    let other = one.enter("b");
    one.say(other, r#"{"type":"join_room","room":"public.a"}"#);
    stand_with(&mut one, &read, found(&[("a", 1)]));
    assert_eq!(until_read(&mut one).1, [(false, 1)]);
}

#[test]
fn a_new_epoch_tells_who_is_here_again() {
    let mut one = on_bus(Plan::default());
    joined(&mut one, 1);
    let (read, told) = until_read(&mut one);
    assert_eq!(told.len(), 1, "it is told when somebody comes");
    stand(&mut one, &read, "k4", 0, 9);
    assert_eq!(until_read(&mut one).1, [(true, 1)]);
}

#[test]
fn a_number_that_no_message_has_is_asked_for_once() {
    let mut one = on_bus(Plan::default());
    joined(&mut one, 1);
    heard(&mut one, "k3", u64::MAX - 1);
    let before = one.now;
    let read = until_read(&mut one).0;
    assert!(one.now.since(before) < Duration::from_secs(1), "at once");
    stand(&mut one, &read, "k3", 1, 9);
    let before = one.now;
    let _ = until_read(&mut one);
    assert!(one.now.since(before) > Duration::from_secs(4), "with the next comparison");
}

//! Lifecycle events of the hub, as the service gets them that wants them.

use std::{collections::BTreeMap, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Setup, access::KEYS, outcomes::nobody, shared_calls::Socket};
use crate::{
    backend::{Backend, Received},
    harness::{Gateway, now, until},
};

/// Who leaves has left.
const AT_ONCE: &str = "presence_grace = \"0s\"\n";

/// A gateway of 4 shards that tells this address of everything, with these further lines of `[hub]`.
fn start(address: std::net::SocketAddr, more: &str) -> Gateway {
    let rest = format!("{KEYS}[hub]\nevents_upstream = \"back\"\n{more}\n");
    Setup { rest: &rest, ..Setup::default() }.start(&[address])
}

fn join(socket: &mut Socket, room: &str) {
    socket.say(&json!({ "type": "join_room", "room": room }));
    socket.until("joined");
}

fn document(request: &Received) -> Value {
    serde_json::from_slice(&request.body).expect("JSON")
}

/// Checks what is true of every event, and returns whom it is of, whether somebody is there, and its number.
#[track_caller]
fn expect_event(request: &Received) -> (String, bool, u64) {
    assert_eq!(request.head.first_line, "POST /hub-events HTTP/1.1");
    assert_eq!(request.head.field("content-type"), Some("application/json"));
    assert_eq!(request.head.field("x-user-id"), None);
    let event = document(request);
    let (what, name) = match event["room"].as_str() {
        Some(room) => ("room", room),
        None => ("user", event["userId"].as_str().expect("a room or a user")),
    };
    let (n, node) = (event["n"].as_u64().expect("a number"), event["node"].as_str().expect("a name"));
    assert!(event["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{event}");
    let key = format!("{node}:{what}:{name}:{n}");
    assert_eq!(request.head.field("idempotency-key"), Some(&*key));
    let is_there = match event["type"].as_str().expect("a type") {
        "room.occupied" | "user.online" => true,
        "room.vacated" | "user.offline" => false,
        other => panic!("{other}"),
    };
    (format!("{what}:{name}"), is_there, n)
}

/// Takes events until these were told last; checks that what is told of each alternates, without a hole. The same may come
/// twice.
#[track_caller]
fn expect_until(backend: &mut Backend, last: &mut BTreeMap<String, (bool, u64)>, wanted: &[(&str, bool, u64)]) {
    let is_so = |last: &BTreeMap<String, (bool, u64)>| {
        wanted.iter().all(|&(subject, is_there, n)| last.get(subject) == Some(&(is_there, n)))
    };
    while !is_so(last) {
        let (subject, is_there, n) = expect_event(&backend.request());
        let (was_there, before) = last.get(&subject).copied().unwrap_or_default();
        if n == before {
            assert_eq!(is_there, was_there, "{subject}: the same again");
            continue;
        }
        assert_eq!((is_there, n), (!was_there, before + 1), "{subject}");
        last.insert(subject, (is_there, n));
    }
}

#[test]
fn a_service_is_told_who_comes_and_goes() {
    let mut backend = Backend::ok();
    let gateway = start(backend.address(), AT_ONCE);
    let mut last = BTreeMap::new();
    let mut sockets: Vec<Socket> = (0..8).map(|_| Socket::open(&gateway, "ann")).collect();
    for socket in &mut sockets {
        join(socket, "public.x");
    }
    expect_until(&mut backend, &mut last, &[("user:ann", true, 1), ("room:public.x", true, 1)]);
    sockets.drain(1..).for_each(Socket::cut);
    let left = || gateway.metrics().sum("shardgate_sockets_open") == 1;
    until(Duration::from_secs(10), "one is left", || left().then_some(()));
    let mut ben = Socket::open(&gateway, "ben");
    join(&mut ben, "public.y");
    expect_until(&mut backend, &mut last, &[("user:ben", true, 1), ("room:public.y", true, 1)]);
    assert_eq!(last["user:ann"], (true, 1), "still there");
    sockets.drain(..).for_each(Socket::cut);
    expect_until(&mut backend, &mut last, &[("user:ann", false, 2), ("room:public.x", false, 2)]);
    let mut back = Socket::open(&gateway, "ann");
    join(&mut back, "public.x");
    expect_until(&mut backend, &mut last, &[("user:ann", true, 3), ("room:public.x", true, 3)]);
    assert_eq!(last.len(), 4, "{last:?}");
    gateway.metrics_until("nothing waits", |metrics| {
        metrics.value("shardgate_hub_events_total{result=\"delivered\"}") == 8
            && metrics.sum("shardgate_hub_events_waiting") == 0
    });
}

#[test]
fn what_a_service_misses_while_it_is_away_it_gets_when_it_is_back() {
    let address = nobody();
    let gateway = start(address, AT_ONCE);
    for turn in 1..=2 {
        let mut ann = Socket::open(&gateway, "ann");
        join(&mut ann, "public.x");
        ann.cut();
        let what = "the coming and going of the user and of the room wait";
        gateway.metrics_until(what, |metrics| metrics.sum("shardgate_hub_events_waiting") == 4 * turn);
    }
    let mut ben = Socket::open(&gateway, "ben");
    join(&mut ben, "public.y");
    gateway.metrics_until("all of it waits", |metrics| metrics.sum("shardgate_hub_events_waiting") == 10);
    // Requests go their way meanwhile, and so does the hub.
    ben.say(&json!({ "type": "heartbeat" }));
    ben.until("heartbeat");
    let mut backend = Backend::start_at(address, |conversation| {
        conversation.read_request()?;
        // It is not quite well yet: the first is refused for now, and comes again.
        let status = if conversation.number == 0 { "503 Later" } else { "204 Taken" };
        conversation.send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
    });
    let mut last = BTreeMap::new();
    let all = [("user:ann", false, 4), ("room:public.x", false, 4), ("user:ben", true, 1), ("room:public.y", true, 1)];
    expect_until(&mut backend, &mut last, &all);
    gateway.metrics_until("all is taken", |metrics| {
        metrics.value("shardgate_hub_events_total{result=\"delivered\"}") == 10
            && metrics.sum("shardgate_hub_events_waiting") == 0
    });
}

#[test]
fn past_the_bound_the_oldest_go_and_what_is_not_wanted_is_not_sent_again() {
    let address = nobody();
    // One waits in each lane.
    let gateway =
        start(address, &format!("{AT_ONCE}events_waiting_max = 1\nevents = [\"user.online\", \"user.offline\"]"));
    for turn in 1..=3 {
        Socket::open(&gateway, "ann").cut();
        gateway.metrics_until("the coming and going are told", |metrics| {
            let dropped = metrics.value("shardgate_hub_events_total{result=\"dropped\"}");
            dropped + metrics.sum("shardgate_hub_events_waiting") == 2 * turn
        });
    }
    // The first is being sent, the last waits.
    gateway.metrics_until("four are dropped", |metrics| {
        metrics.value("shardgate_hub_events_total{result=\"dropped\"}") == 4
            && metrics.sum("shardgate_hub_events_waiting") == 2
    });
    gateway.log_until("hub.events_waiting_max", Duration::from_secs(10));
    let mut backend = Backend::start_at(address, |conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.1 400 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    });
    assert_eq!(expect_event(&backend.request()), ("user:ann".to_owned(), true, 1));
    assert_eq!(expect_event(&backend.request()), ("user:ann".to_owned(), false, 6), "what is true now");
    gateway.metrics_until("both are refused", |metrics| {
        metrics.value("shardgate_hub_events_total{result=\"refused\"}") == 2
    });
    assert!(backend.requests().is_empty());
}

#[test]
fn a_service_that_takes_no_events_is_named_in_the_log_once_a_second() {
    for (status, complaint) in [
        ("404 No", "lifecycle events of the hub were refused and are not sent again"),
        ("500 Later", "lifecycle events of the hub are not taken, and will be sent again"),
    ] {
        let mut backend = Backend::start(move |conversation| {
            conversation.read_request()?;
            conversation.send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
        });
        let began = now();
        let gateway = start(backend.address(), AT_ONCE);
        for user in 0..40 {
            Socket::open(&gateway, &format!("u{user}")).cut();
        }
        // More attempts than the four shards may write lines meanwhile.
        for _ in 0..60 {
            backend.request();
        }
        gateway.log_until(complaint, Duration::from_secs(10));
        let lines = gateway.log().matches(complaint).count() as u64;
        assert!(lines <= 4 * (began.elapsed().as_secs() + 1), "{lines} lines");
    }
}

#[test]
fn a_drain_tells_of_those_whom_it_closes() {
    let mut backend = Backend::ok();
    let mut gateway = start(backend.address(), "[drain]\nnotice = \"0s\"\nwindow = \"100ms\"");
    let mut sockets: Vec<Socket> = (0..16).map(|user| Socket::open(&gateway, &format!("u{user}"))).collect();
    for socket in &mut sockets {
        join(socket, "public.x");
    }
    gateway.signal(Signal::TERM);
    // Who is told to come back goes, and the others see the end.
    drop(sockets.split_off(8));
    for socket in &mut sockets {
        socket.until("reconnect");
    }
    drop(sockets);
    let mut last = BTreeMap::new();
    let users: Vec<String> = (0..16).map(|user| format!("user:u{user}")).collect();
    let mut all: Vec<(&str, bool, u64)> = users.iter().map(|user| (&**user, false, 2)).collect();
    all.push(("room:public.x", false, 2));
    expect_until(&mut backend, &mut last, &all);
    assert_eq!(gateway.wait_exit(Duration::from_secs(20)), Some(0));
}

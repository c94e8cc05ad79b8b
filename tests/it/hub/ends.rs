//! How sockets end that did nothing wrong: with their session, and with the process; and that a reload ends none.

use std::{thread, time::Duration};

use rustix::process::Signal;
use serde_json::json;

use super::{
    SOON, config, endpoints::ask, expect_closed, on_each_shard, on_each_shard_of, socket::Socket, start, user,
};
use crate::{
    harness::{Gateway, now},
    journey::rows,
};

/// The gateway of a user who logs in with a password.
const ACCOUNTS: &str = "[accounts]\npassword_memory = \"64KiB\"\npassword_passes = 1\n";

#[test]
fn a_log_out_ends_the_sockets_of_its_session() {
    let gateway = start(ACCOUNTS);
    rows::add_ann(&gateway);
    let [one, other] = [(); 2].map(|()| rows::log_in(&gateway)["accessToken"].as_str().expect("a token").to_owned());
    let mut sockets = on_each_shard_of(&gateway, |n| if n < 3 { one.clone() } else { other.clone() });
    // One that has logged in by a message ends with it too.
    let mut late = Socket::bare(&gateway, "");
    late.ask(&json!({ "type": "auth", "payload": { "token": one } }));
    late.hear_type("welcome");
    assert_eq!(ask(&gateway, "POST", "/auth/logout", &one, &json!({})).status, 204);
    for socket in sockets[..3].iter_mut().chain([&mut late]) {
        assert_eq!(socket.hear_close(), (vec![], 4102));
    }
    sockets[3].expect_nothing();
    assert_eq!(ask(&gateway, "POST", "/auth/logout-all", &other, &json!({})).status, 204);
    assert_eq!(sockets[3].hear_close(), (vec![], 4102));
    expect_closed(&gateway, "revoked", 5);
}

#[test]
fn a_socket_is_tied_to_the_session_that_it_was_renewed_with() {
    let gateway = start(ACCOUNTS);
    rows::add_ann(&gateway);
    let [one, other] = [(); 2].map(|()| rows::log_in(&gateway)["accessToken"].as_str().expect("a token").to_owned());
    let mut sockets = on_each_shard_of(&gateway, |_| one.clone());
    for socket in &mut sockets {
        let renewed = socket.ask(&json!({ "type": "auth", "payload": { "token": other } }));
        assert_eq!(renewed["type"], "auth_ok", "{renewed}");
    }
    assert_eq!(ask(&gateway, "POST", "/auth/logout", &one, &json!({})).status, 204);
    for socket in &mut sockets {
        socket.expect_nothing();
    }
    assert_eq!(ask(&gateway, "POST", "/auth/logout", &other, &json!({})).status, 204);
    for socket in &mut sockets {
        assert_eq!(socket.hear_close(), (vec![], 4102));
    }
}

#[test]
fn a_drain_sends_each_socket_away_at_a_time_of_its_own() {
    const WINDOW: Duration = Duration::from_secs(2);
    let mut gateway =
        start("[drain]\nnotice = \"0s\"\nwindow = \"2s\"\nmax = \"10s\"\n[hub]\nsockets_per_user_max = 1000\n");
    let mut sockets = on_each_shard(&gateway);
    sockets.extend((0..28).map(|_| Socket::open(&gateway, &user("many"))));
    for socket in &mut sockets {
        socket.join("public.a");
    }
    gateway.signal(Signal::TERM);
    let began = now();
    let ends: Vec<(u64, Duration)> = thread::scope(|scope| {
        let readers: Vec<_> = sockets
            .into_iter()
            .map(|mut socket| {
                scope.spawn(move || {
                    let reconnect = socket.hear();
                    assert_eq!(reconnect["type"], "reconnect", "{reconnect}");
                    let after_ms = reconnect["payload"]["afterMs"].as_u64().expect("a number");
                    // It is served until its time has come.
                    socket.say(&json!({ "type": "heartbeat", "id": "still" }));
                    let (messages, code) = socket.hear_close();
                    assert_eq!(code, 1012);
                    assert!(messages.iter().any(|message| message["id"] == "still"), "{messages:?}");
                    (after_ms, now().duration_since(began))
                })
            })
            .collect();
        gateway.metrics_until("some have been sent away", |metrics| {
            metrics.value("shardgate_sockets_closed_total{reason=\"restart\"}") > 0
        });
        readers.into_iter().map(|reader| reader.join().expect("it is told")).collect()
    });
    assert_eq!(gateway.wait_exit(SOON), Some(0), "sockets that were sent away are no failure");
    let quarter =
        |at: u32| ends.iter().filter(|(_, end)| *end > WINDOW * at / 4 && *end <= WINDOW * (at + 1) / 4).count();
    let spread: Vec<usize> = (0..4).map(quarter).collect();
    assert!(spread.iter().all(|count| *count > 0), "closes by quarters of the window: {spread:?}");
    let back: Vec<u64> = ends.iter().map(|(after_ms, _)| *after_ms).collect();
    assert!(back.iter().all(|after_ms| *after_ms <= 2000), "{back:?}");
    assert!(back.iter().max() > back.iter().min(), "they do not come back together: {back:?}");
}

#[test]
fn while_the_notice_lasts_all_goes_on() {
    let gateway = start("[drain]\nnotice = \"6s\"\nwindow = \"0s\"\nmax = \"20s\"\n");
    let mut sockets = on_each_shard(&gateway);
    gateway.signal(Signal::TERM);
    gateway.log_until("draining", SOON);
    for socket in &mut sockets {
        socket.join("public.a");
    }
    for socket in &mut sockets {
        let (messages, code) = socket.hear_close();
        assert_eq!(code, 1012);
        assert_eq!(messages.last().expect("it is told")["type"], "reconnect");
    }
}

#[test]
fn a_hundred_reloads_close_no_socket() {
    const APPLIED: &str = "every shard runs the configuration";
    let rooms =
        |n: usize| config(&format!("[[hub.rooms]]\npattern = \"public.*\"\n[[hub.rooms]]\npattern = \"v{n}.*\"\n"));
    let gateway = Gateway::start(&rooms(0));
    gateway.log_until(APPLIED, SOON);
    let mut sockets = on_each_shard(&gateway);
    for socket in &mut sockets {
        socket.join("public.a");
    }
    for n in 1..=100 {
        gateway.rewrite_config(&rooms(n));
        gateway.signal(Signal::HUP);
        gateway.log_until_nth(APPLIED, n + 1, SOON);
        let socket = &mut sockets[n % 4];
        socket.join(&format!("v{n}.a"));
        // Now and then, so that the errors are not too many.
        if n % 20 == 0 {
            socket.say(&json!({ "type": "join_room", "id": "old", "room": format!("v{}.a", n - 1) }));
            socket.expect_error(&json!("old"), "forbidden");
        }
        socket.say(&json!({ "type": "leave_room", "room": format!("v{n}.a") }));
        assert_eq!(socket.hear()["type"], "left");
    }
    sockets[0].publish("public.a", "1", &json!("still here"));
    for socket in &mut sockets {
        assert_eq!(socket.hear_type("room_message")["payload"], "still here");
    }
    assert_eq!(gateway.metrics().sum("shardgate_sockets_closed_total"), 0);
}

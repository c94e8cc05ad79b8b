//! The frames of the protocol, one by one, as they are written down.

use serde_json::{Value, json};

use super::{
    on_each_shard, services,
    socket::{Socket, expect_time, timeless},
    start, token, unix_now, user,
};
use crate::backend::{Backend, Received};

/// Events are taken, predictions made, and one of the paths is refused.
fn answer(request: &Received) -> String {
    let body = match request.head.first_line.split(' ').nth(1) {
        Some("/predict") => r#"{"recoveryProbability":0.73}"#,
        _ => return "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n".to_owned(),
    };
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_socket_is_greeted_first() {
    let gateway = start("");
    let mut nodes = Vec::new();
    for socket in on_each_shard(&gateway) {
        let mut welcome = socket.welcome.clone();
        expect_time(&welcome["payload"]["serverTime"]);
        assert!(!welcome["payload"]["connectionId"].as_str().expect("a text").is_empty());
        nodes.push(welcome["payload"]["node"].as_str().expect("a text").to_owned());
        let user = welcome["userId"].as_str().expect("a text").to_owned();
        for varies in ["connectionId", "serverTime", "node"] {
            welcome["payload"].as_object_mut().expect("an object").remove(varies);
        }
        assert_eq!(
            timeless(welcome),
            json!({ "type": "welcome", "payload": { "heartbeatMs": 25000 }, "userId": user, "sessionId": format!("s_{user}") })
        );
    }
    nodes.dedup();
    assert_eq!(nodes.len(), 1, "one process has one name");
}

#[test]
fn a_heartbeat_comes_back() {
    let gateway = start("");
    let mut socket = Socket::open(&gateway, &user("42"));
    socket.say(&json!({ "type": "heartbeat", "payload": {} }));
    let answer = socket.hear();
    expect_time(&answer["timestamp"]);
    assert_eq!(timeless(answer), json!({ "type": "heartbeat", "payload": {} }));
    socket.say(&json!({ "type": "heartbeat", "id": "h", "payload": {} }));
    socket.expect(&json!({ "type": "heartbeat", "id": "h", "payload": {} }));
}

#[test]
fn a_room_is_joined_spoken_in_looked_at_and_left() {
    let gateway = start("");
    let mut sockets = on_each_shard(&gateway);
    let room = "public.sale";
    let joined = sockets[0].ask(&json!({ "type": "join_room", "id": "2", "room": room, "payload": {} }));
    expect_time(&joined["timestamp"]);
    let epoch = joined["epoch"].clone();
    assert!(epoch.as_str().is_some_and(|epoch| !epoch.is_empty()), "{joined}");
    assert_eq!(
        timeless(joined),
        json!({ "type": "joined", "id": "2", "room": room, "epoch": epoch, "seq": 0, "payload": { "members": 1 } })
    );
    for (members, socket) in (2..).zip(&mut sockets[1..]) {
        assert_eq!(socket.join(room)["payload"], json!({ "members": members }));
    }
    sockets[0].say(&json!({ "type": "room_message", "id": "4", "room": room, "payload": { "any": "json" } }));
    // The copy and the ack come in either order.
    let mut own = sockets[0].hear_all(2);
    own.sort_by_key(|frame| frame["type"] != "ack");
    assert_eq!(
        timeless(own[0].take()),
        json!({ "type": "ack", "id": "4", "room": room, "seq": 1, "epoch": epoch, "payload": {} })
    );
    let message = json!({ "type": "room_message", "room": room, "seq": 1, "epoch": epoch, "userId": "u0", "payload": { "any": "json" } });
    expect_time(&own[1]["timestamp"]);
    assert_eq!(timeless(own[1].take()), message);
    for socket in &mut sockets[1..] {
        let copy = socket.hear();
        expect_time(&copy["timestamp"]);
        assert_eq!(timeless(copy), message);
    }
    let mut answer = sockets[1].ask(&json!({ "type": "presence", "id": "5", "room": room, "payload": {} }));
    let users = answer["payload"]["users"].as_array_mut().expect("a list");
    users.sort_by_key(|user| user["userId"].to_string());
    let here: Vec<Value> = (0..4).map(|n| json!({ "userId": format!("u{n}"), "connections": 1 })).collect();
    assert_eq!(
        timeless(answer),
        json!({ "type": "presence", "id": "5", "room": room, "payload": { "users": here, "total": 4 } })
    );
    sockets[0].say(&json!({ "type": "leave_room", "id": "3", "room": room, "payload": {} }));
    sockets[0].expect(&json!({ "type": "left", "id": "3", "room": room, "payload": {} }));
    sockets[1].publish(room, "6", &json!(2));
    sockets[2].hear_type("room_message");
    sockets[0].expect_nothing();
}

#[test]
fn who_comes_back_gets_what_it_missed() {
    let gateway = start("");
    let mut sockets = on_each_shard(&gateway);
    let epoch = sockets[0].join("public.sale")["epoch"].clone();
    for n in 1..=3 {
        sockets[0].publish("public.sale", &n.to_string(), &json!({ "n": n }));
    }
    sockets[0].hear_all(6);
    for socket in &mut sockets[1..] {
        socket.say(&json!({ "type": "join_room", "id": "2", "room": "public.sale", "payload": { "recover": { "epoch": epoch, "seq": 1 } } }));
    }
    let message = |n: u64| json!({ "type": "room_message", "room": "public.sale", "seq": n, "epoch": epoch, "userId": "u0", "payload": { "n": n } });
    for socket in &mut sockets[1..] {
        let mut joined = socket.hear();
        let members = joined["payload"].as_object_mut().expect("an object").remove("members");
        assert!(members.is_some_and(|members| (2..=4).contains(&members.as_i64().expect("a number"))));
        assert_eq!(
            timeless(joined),
            json!({
                "type": "joined", "id": "2", "room": "public.sale", "epoch": epoch, "seq": 3,
                "payload": { "recovered": true, "messages": [message(2), message(3)] },
            })
        );
    }
}

#[test]
fn services_answer_by_frames() {
    let mut backend = Backend::answering(answer);
    let gateway = start(&services(backend.address()));
    for mut socket in on_each_shard(&gateway) {
        socket.say(&json!({ "type": "cart_event", "id": "6", "payload": { "type": "cart_abandoned" } }));
        socket.expect(&json!({ "type": "ack", "id": "6", "payload": { "status": 202 } }));
        let request = backend.request();
        assert_eq!(request.head.first_line, "POST /events HTTP/1.1");
        assert_eq!(request.body, br#"{"type":"cart_abandoned"}"#, "the payload alone");
        socket.say(&json!({ "type": "prediction_request", "id": "7", "payload": { "items": [1, 2] } }));
        socket.expect(&json!({ "type": "prediction_response", "id": "7", "payload": { "recoveryProbability": 0.73 } }));
        let request = backend.request();
        assert_eq!((&*request.head.first_line, &*request.body), ("POST /predict HTTP/1.1", &br#"{"items":[1,2]}"#[..]));
    }
}

#[test]
fn what_is_refused_is_told_by_an_error() {
    for mut socket in on_each_shard(&start("")) {
        socket.say(&json!({ "type": "join_room", "id": "7", "room": "secret", "payload": {} }));
        let mut error = timeless(socket.hear());
        let message = error["payload"].as_object_mut().and_then(|payload| payload.remove("message"));
        assert!(message.is_some_and(|message| message.as_str().is_some_and(|text| !text.is_empty())));
        assert_eq!(
            error,
            json!({ "type": "error", "id": "7", "room": "secret", "payload": { "code": "forbidden", "retryable": false } })
        );
    }
}

#[test]
fn a_token_is_renewed_on_the_open_socket() {
    let gateway = start("");
    for mut socket in on_each_shard(&gateway) {
        let name = socket.welcome["userId"].clone();
        let expires = unix_now() + 1234;
        let fresh = token(&json!({ "sub": name, "sid": "s_9f", "exp": expires }));
        socket.say(&json!({ "type": "auth", "id": "1", "payload": { "token": fresh } }));
        let mut answer = socket.hear();
        assert_eq!(unix_of(&answer["payload"]["expiresAt"].take()), expires, "{answer}");
        expect_time(&answer["timestamp"]);
        assert_eq!(
            timeless(answer),
            json!({
                "type": "auth_ok", "id": "1", "payload": { "expiresAt": null },
                "userId": name, "sessionId": "s_9f",
            })
        );
        socket.expect_nothing();
    }
}

/// Seconds since 1970 of a time like `2026-11-23T10:15:00Z`.
#[track_caller]
fn unix_of(time: &Value) -> u64 {
    let text = time.as_str().unwrap_or_default();
    let parts: Vec<u64> =
        text.trim_end_matches('Z').split(['-', 'T', ':']).map_while(|part| part.parse().ok()).collect();
    let &[year, month, day, hour, minute, second] = parts.as_slice() else { panic!("{time} is no time") };
    // The days of the months from March on, with the leap day at the year's end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    ((days * 24 + hour) * 60 + minute) * 60 + second
}

#[test]
fn the_room_may_stand_in_the_payload() {
    let gateway = start("");
    let mut sockets = on_each_shard(&gateway);
    for socket in &mut sockets {
        let answer = socket.ask(&json!({ "type": "join_room", "payload": { "room": "public.sale" } }));
        assert_eq!((&answer["type"], &answer["room"]), (&json!("joined"), &json!("public.sale")), "{answer}");
        assert!(answer.get("id").is_none(), "there was none: {answer}");
    }
    sockets[1].say(&json!({ "type": "room_message", "payload": { "room": "public.sale", "text": "hi" } }));
    for socket in &mut sockets {
        let copy = socket.hear_type("room_message");
        assert_eq!(copy["payload"], json!({ "room": "public.sale", "text": "hi" }), "it goes on unchanged");
    }
    sockets[2].say(&json!({ "type": "leave_room", "payload": { "room": "public.sale" } }));
    sockets[2].expect(&json!({ "type": "left", "room": "public.sale", "payload": {} }));
}

#[test]
fn those_who_want_to_know_are_told_who_comes_and_goes() {
    let gateway =
        start("[hub]\npresence_grace = \"0s\"\n[[hub.rooms]]\npattern = \"public.*\"\npresence_events = true\n");
    let mut sockets = on_each_shard(&gateway);
    let event = |event: &str| json!({ "type": "presence_event", "room": "public.sale", "payload": { "event": event, "userId": "u3" } });
    sockets[0].join("public.sale");
    sockets[1].join("public.sale");
    sockets[0].hear_type("presence_event");
    sockets[3].join("public.sale");
    for at in [0, 1] {
        assert_eq!(timeless(sockets[at].hear_type("presence_event"))["payload"]["userId"].is_string(), true);
    }
    drop(sockets.pop());
    for socket in &mut sockets[..2] {
        loop {
            let heard = timeless(socket.hear_type("presence_event"));
            if heard == event("leave") {
                break;
            }
            assert_eq!(heard["payload"]["event"], "join", "{heard}");
        }
    }
}

//! Messages for services: in order, one at a time, known again by their key, and each with an answer.

use std::sync::{Arc, OnceLock};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{SOON, Socket, on_each_shard, services, socket::timeless, start, user};
use crate::{
    backend::{Backend, Received, Refusing},
    harness::Gateway,
};

/// A service that answers the event with this `n` once that is let go, with the `status` that it asks for.
fn held() -> (Backend, Arc<[OnceLock<()>; 4]>) {
    let gates: Arc<[OnceLock<()>; 4]> = Arc::default();
    let shared = Arc::clone(&gates);
    let backend = Backend::answering(move |request: &Received| {
        let event: Value = serde_json::from_slice(&request.body).expect("JSON");
        let n = event["n"].as_u64().expect("a number");
        shared[usize::try_from(n).expect("small")].wait();
        taken(event["status"].as_u64().unwrap_or(202), "")
    });
    (backend, gates)
}

fn taken(status: u64, fields: &str) -> String {
    format!("HTTP/1.1 {status} S\r\n{fields}Content-Length: 0\r\n\r\n")
}

fn event(id: &str, payload: &Value) -> Value {
    json!({ "type": "cart_event", "id": id, "payload": payload })
}

fn ack(id: &str) -> Value {
    json!({ "type": "ack", "id": id, "payload": { "status": 202 } })
}

#[test]
fn events_of_a_socket_reach_the_service_in_order_one_at_a_time() {
    let (mut backend, gates) = held();
    let gateway = start(&services(backend.address()));
    let mut socket = Socket::open(&gateway, &user("42"));
    for n in 0..4 {
        socket.say(&event(&format!("e{n}"), &json!({ "n": n })));
    }
    for (n, gate) in gates.iter().enumerate() {
        let request = backend.request();
        assert_eq!(request.body, json!({ "n": n }).to_string().as_bytes());
        let told = |name| request.head.field(name).map(str::to_owned);
        assert_eq!(told("idempotency-key"), Some(format!("s_42:e{n}")));
        assert_eq!(told("content-type").as_deref(), Some("application/json"));
        assert_eq!((told("x-user-id").as_deref(), told("x-session-id").as_deref()), (Some("42"), Some("s_42")));
        // It is under way: no ack comes before the service's answer, and the next does not go.
        socket.expect_nothing();
        assert!(backend.requests().is_empty(), "the next one waits");
        gate.get_or_init(|| ());
        socket.expect(&ack(&format!("e{n}")));
    }
}

#[test]
fn a_slow_service_holds_up_no_room_and_no_other_socket() {
    let (mut backend, gates) = held();
    let gateway = start(&services(backend.address()));
    let mut sockets = on_each_shard(&gateway);
    sockets[0].say(&event("slow", &json!({ "n": 0 })));
    backend.request();
    gates[1].get_or_init(|| ());
    for socket in &mut sockets {
        socket.join("public.a");
    }
    sockets[1].say(&event("quick", &json!({ "n": 1 })));
    sockets[1].expect(&ack("quick"));
    gates[0].get_or_init(|| ());
    sockets[0].expect(&ack("slow"));
}

#[test]
fn what_a_service_refuses_is_told_and_the_next_goes_on() {
    let backend = Backend::answering(|request: &Received| {
        let event: Value = serde_json::from_slice(&request.body).expect("JSON");
        let status = event["status"].as_u64().expect("a number");
        taken(status, if status == 429 || status == 503 { "Retry-After: 2\r\n" } else { "" })
    });
    let gateway = start(&services(backend.address()));
    for mut socket in on_each_shard(&gateway) {
        let statuses = [202, 400, 429, 500, 302, 503, 202];
        for (n, status) in statuses.iter().enumerate() {
            socket.say(&event(&n.to_string(), &json!({ "status": status })));
        }
        // Of the acks alone it is said that they come in order; here each message waits for the one before it.
        for (n, code, is_retryable, retry_after_ms) in [
            (0, None, false, Value::Null),
            (1, Some("upstream_refused"), false, Value::Null),
            (2, Some("rate_limited"), true, json!(2000)),
            (3, Some("upstream_failed"), true, Value::Null),
            (4, Some("upstream_bad_response"), true, Value::Null),
            (5, Some("upstream_failed"), true, json!(2000)),
            (6, None, false, Value::Null),
        ] {
            let Some(code) = code else {
                socket.expect(&ack(&n.to_string()));
                continue;
            };
            let error = socket.expect_error(&json!(n.to_string()), code);
            assert_eq!(error["payload"]["retryable"], is_retryable, "{error}");
            assert_eq!(error["payload"]["retryAfterMs"], retry_after_ms, "{error}");
        }
    }
}

#[test]
fn more_than_may_wait_is_overloaded() {
    let (mut backend, gates) = held();
    let address = backend.address();
    let gateway = start(&format!(
        "[upstreams.one]\ninstances = [\"{address}\"]\n\
         [[hub.services]]\ntype_name = \"cart_event\"\nupstream = \"one\"\npath = \"/events\"\nwaiting_max = 1\n\
         [[hub.services]]\ntype_name = \"other\"\nupstream = \"one\"\npath = \"/other\"\nwaiting_max = 3\n"
    ));
    let mut socket = Socket::open(&gateway, &user("42"));
    for n in 0..3 {
        socket.say(&event(&n.to_string(), &json!({ "n": n })));
    }
    backend.request();
    let error = socket.expect_error(&json!("2"), "overloaded");
    assert_eq!(error["payload"]["retryable"], true, "{error}");
    for gate in gates.iter() {
        gate.get_or_init(|| ());
    }
    socket.expect(&ack("0"));
    socket.expect(&ack("1"));
    // It may be sent again, with the same id.
    socket.say(&event("2", &json!({ "n": 2 })));
    socket.expect(&ack("2"));
    assert_eq!(backend.requests().len(), 2, "what was refused did not go");
}

#[test]
fn a_service_that_is_away_or_slow_is_told_by_its_code() {
    let refusing = Refusing::new();
    let (slow, _gates) = held();
    let gateway = start(&format!(
        "[upstreams.away]\ninstances = [\"{}\"]\noutlier_failures = 0\n[upstreams.slow]\ninstances = [\"{}\"]\n\
         [[hub.services]]\ntype_name = \"away\"\nupstream = \"away\"\npath = \"/\"\n\
         [[hub.services]]\ntype_name = \"slow\"\nupstream = \"slow\"\npath = \"/\"\ntimeout = \"200ms\"\n",
        refusing.address(),
        slow.address()
    ));
    for mut socket in on_each_shard(&gateway) {
        for (kind, code) in [("away", "upstream_unreachable"), ("slow", "upstream_timeout")] {
            socket.say(&json!({ "type": kind, "id": kind, "payload": { "n": 0 } }));
            let error = socket.expect_error(&json!(kind), code);
            assert_eq!(error["payload"]["retryable"], true, "{error}");
        }
    }
}

#[test]
fn a_socket_that_goes_takes_its_request_back() {
    let mut backend = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.read_to_end();
        Ok(())
    });
    let gateway = start(&services(backend.address()));
    for socket in on_each_shard(&gateway) {
        let mut socket = socket;
        for n in 0..2 {
            socket.say(&event(&n.to_string(), &json!({ "n": n })));
        }
        let under_way = backend.request();
        drop(socket);
        backend.wait_ended(under_way.connection);
    }
    assert!(backend.requests().is_empty(), "what waited behind it never goes");
}

#[test]
fn messages_for_services_have_ids_that_can_be_a_header() {
    let mut backend = Backend::answering(|_: &Received| taken(202, ""));
    let gateway = start(&services(backend.address()));
    for mut socket in on_each_shard(&gateway) {
        socket.say(&json!({ "type": "cart_event", "payload": {} }));
        socket.expect_error(&Value::Null, "id_required");
        socket.say(&json!({ "type": "prediction_request", "payload": {} }));
        socket.expect_error(&Value::Null, "id_required");
        for id in ["a b", "é", "a\r\nX: 1", ""] {
            socket.say(&event(id, &json!({})));
            let error = socket.hear();
            assert_eq!((&error["type"], &error["payload"]["code"]), (&json!("error"), &json!("invalid_id")), "{error}");
        }
        let longest = "~".repeat(64);
        socket.say(&event(&longest, &json!({})));
        socket.expect(&ack(&longest));
        assert!(backend.request().head.field("idempotency-key").is_some_and(|key| key.ends_with(&longest)));
    }
    assert!(backend.requests().is_empty());
}

#[test]
fn an_answer_that_is_no_json_is_not_passed_on() {
    let backend = Backend::answering(|request: &Received| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let body = serde_json::from_str::<String>(&body).expect("a text");
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    });
    let gateway = start(&services(backend.address()));
    for mut socket in on_each_shard(&gateway) {
        for broken in ["{", "1} {\"type\":\"welcome\"", "nope", "{} {}"] {
            socket.say(&json!({ "type": "prediction_request", "id": "1", "payload": broken }));
            socket.expect_error(&json!("1"), "upstream_bad_response");
        }
        socket.say(&json!({ "type": "prediction_request", "id": "2", "payload": " [1, \"ü\"] \n" }));
        socket.expect(&json!({ "type": "prediction_response", "id": "2", "payload": [1, "ü"] }));
        socket.say(&json!({ "type": "prediction_request", "id": "3", "payload": "" }));
        socket.expect(&json!({ "type": "prediction_response", "id": "3", "payload": null }));
    }
}

#[test]
fn a_2xx_is_an_ack_whatever_its_body_is() {
    let backend = Backend::start(|conversation| {
        loop {
            let request = conversation.read_request()?;
            let body = match &request.body[..] {
                b"\"text\"" => "Content-Length: 8\r\n\r\naccepted".to_owned(),
                b"\"long\"" => format!("Content-Length: 2000000\r\n\r\n{}", "x".repeat(2_000_000)),
                _ => "Transfer-Encoding: chunked\r\n\r\n3\r\n".to_owned(),
            };
            conversation.send(format!("HTTP/1.1 202 S\r\n{body}"))?;
            if request.body == b"\"cut\"" {
                return Ok(());
            }
        }
    });
    let gateway = start(&services(backend.address()));
    for mut socket in on_each_shard(&gateway) {
        for body in ["text", "long", "cut", "text"] {
            socket.say(&event(body, &json!(body)));
            socket.expect(&ack(body));
        }
    }
}

/// One that an outbox has no room for would close a socket that reads as fast as it can.
#[test]
fn an_answer_that_is_too_long_for_an_outbox_is_refused() {
    let backend = Backend::answering(|request: &Received| {
        let length: usize = String::from_utf8_lossy(&request.body).parse().expect("a number");
        let text = "x".repeat(length - 2);
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n\"{text}\"")
    });
    let gateway = start(&format!("{}[hub]\noutbox_bytes_max = \"64KiB\"\n", services(backend.address())));
    let mut socket = Socket::open(&gateway, &user("42"));
    let ask = |length: usize| json!({ "type": "prediction_request", "id": "1", "payload": length });
    socket.say(&ask(32 * 1024 + 1));
    socket.expect_error(&json!("1"), "upstream_bad_response");
    socket.say(&ask(32 * 1024));
    assert_eq!(socket.hear()["type"], "prediction_response");
}

#[test]
fn what_waits_at_a_reload_goes_where_its_type_goes_then() {
    let (mut backend, gates) = held();
    let address = backend.address();
    let config = |types: &[&str]| {
        let upstream = format!("[upstreams.one]\ninstances = [\"{address}\"]\n");
        let service =
            |kind: &&str| format!("[[hub.services]]\ntype_name = \"{kind}\"\nupstream = \"one\"\npath = \"/{kind}\"\n");
        super::config(&(upstream + &types.iter().map(service).collect::<Vec<_>>().concat()))
    };
    let gateway = Gateway::start(&config(&["a", "b"]));
    gateway.log_until("every shard runs the configuration", SOON);
    let mut socket = Socket::open(&gateway, &user("42"));
    for (kind, n) in [("a", 0), ("a", 1), ("b", 2), ("b", 3)] {
        socket.say(&json!({ "type": kind, "id": n.to_string(), "payload": { "n": n } }));
    }
    let mut under_way = [(); 2].map(|()| backend.request().head.first_line);
    under_way.sort();
    assert_eq!(under_way, ["POST /a HTTP/1.1", "POST /b HTTP/1.1"]);
    // The second comes first, and the first is gone.
    gateway.rewrite_config(&config(&["b", "c"]));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, SOON);
    for gate in gates.iter() {
        gate.get_or_init(|| ());
    }
    let mut heard = socket.hear_all(4);
    heard.sort_by_key(|answer| answer["id"].to_string());
    let codes: Vec<&Value> = heard.iter().map(|answer| &answer["payload"]["code"]).collect();
    assert!(codes[1] == "upstream_failed", "{heard:?}");
    assert_eq!((timeless(heard[2].clone()), timeless(heard[3].clone())), (ack("2"), ack("3")));
    let after: Vec<String> = backend.requests().into_iter().map(|request| request.head.first_line).collect();
    assert_eq!(after, ["POST /b HTTP/1.1"], "what waited for b, and nothing for its old place");
}

#[test]
fn each_message_is_counted_and_logged_as_a_request() {
    let backend = Backend::answering(|_: &Received| taken(202, ""));
    let gateway = start(&services(backend.address()));
    let mut socket = Socket::open(&gateway, &user("42"));
    socket.say(&event("1", &json!({})));
    socket.expect(&ack("1"));
    // That of the handshake, which the message's may follow later, and the message's.
    let lines = gateway.access_lines(2);
    let line = lines.iter().find(|line| line["route"] == "cart_event (message)").expect("it is logged");
    assert_eq!(
        (&line["status"], &line["upstream"], &line["user"]),
        (&json!(202), &json!("ingestion"), &json!("42")),
        "{line}"
    );
}

#[test]
fn a_question_has_a_key_too_unless_several_share_the_call() {
    let mut backend = Backend::answering(|_: &Received| "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1".to_owned());
    let service = |name: &str, share: &str| {
        format!(
            "[[hub.services]]\ntype_name = \"{name}\"\nupstream = \"prediction\"\npath = \"/p\"\nanswer = \"{name}_answer\"\n\
             share = \"{share}\"\n"
        )
    };
    let gateway = start(&[services(backend.address()), service("own", "nobody"), service("shared", "user")].concat());
    let mut socket = Socket::open(&gateway, &user("42"));
    for (kind, id, key) in [("own", "q1", Some("s_42:q1")), ("shared", "an id", None)] {
        socket.say(&json!({ "type": kind, "id": id, "payload": 1 }));
        socket.expect(&json!({ "type": format!("{kind}_answer"), "id": id, "payload": 1 }));
        assert_eq!(backend.request().head.field("idempotency-key"), key);
    }
    socket.say(&json!({ "type": "own", "id": "an id", "payload": 1 }));
    socket.expect_error(&json!("an id"), "invalid_id");
}

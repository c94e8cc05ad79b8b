//! Each frame, literally; and that whatever is in one, it is JSON that says the same.

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::name::RoomName;
use super::super::position::Epoch;
use super::*;

/// 2026-11-23T10:15:00.250Z.
const NOW: u64 = 1_795_428_900_250;
const ID: Option<&str> = Some("7");
const ROOM: &str = "public.sale";

fn at(seq: u64) -> Position {
    Position { epoch: Epoch::parse("k3"), seq }
}

/// The text of a frame.
fn text(frame: &Frame) -> String {
    let bytes = frame.bytes();
    let header = match bytes[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    String::from_utf8(bytes[header..].to_vec()).expect("UTF-8")
}

fn check(text: &str, expected: &Expect) {
    serde_json::from_str::<Value>(text).expect("JSON");
    expected.assert_eq(text);
}

#[test]
fn answers_are_as_documented() {
    let mut encoder = Encoder::default();
    let mut check =
        |write: &dyn Fn(&mut Encoder) -> Frame, expected: &Expect| check(&text(&write(&mut encoder)), expected);
    check(
        &|to| to.auth_ok(NOW, ID, 1_795_429_800, "42", Some("s_9f")),
        &expect![[
            r#"{"type":"auth_ok","id":"7","payload":{"expiresAt":"2026-11-23T10:30:00Z"},"userId":"42","sessionId":"s_9f","timestamp":"2026-11-23T10:15:00.250Z"}"#
        ]],
    );
    check(
        &|to| to.auth_ok(NOW, None, 0, "42", None),
        &expect![[
            r#"{"type":"auth_ok","payload":{"expiresAt":"1970-01-01T00:00:00Z"},"userId":"42","timestamp":"2026-11-23T10:15:00.250Z"}"#
        ]],
    );
    check(
        &|to| to.heartbeat(NOW, None),
        &expect![[r#"{"type":"heartbeat","payload":{},"timestamp":"2026-11-23T10:15:00.250Z"}"#]],
    );
    check(
        &|to| to.heartbeat(NOW, ID),
        &expect![[r#"{"type":"heartbeat","id":"7","payload":{},"timestamp":"2026-11-23T10:15:00.250Z"}"#]],
    );
    check(
        &|to| to.joined(NOW, ID, ROOM, at(19), 12, Recovery::NotAsked),
        &expect![[
            r#"{"type":"joined","id":"7","room":"public.sale","epoch":"k3","seq":19,"payload":{"members":12},"timestamp":"2026-11-23T10:15:00.250Z"}"#
        ]],
    );
    check(
        &|to| to.joined(NOW, None, ROOM, at(19), 12, Recovery::Lost),
        &expect![[
            r#"{"type":"joined","room":"public.sale","epoch":"k3","seq":19,"payload":{"members":12,"recovered":false},"timestamp":"2026-11-23T10:15:00.250Z"}"#
        ]],
    );
    check(
        &|to| to.joined(NOW, ID, ROOM, at(0), 1, Recovery::Recovered(&[])),
        &expect![[
            r#"{"type":"joined","id":"7","room":"public.sale","epoch":"k3","seq":0,"payload":{"members":1,"recovered":true,"messages":[]},"timestamp":"2026-11-23T10:15:00.250Z"}"#
        ]],
    );
    check(
        &|to| {
            let messages = [18, 19].map(|seq| to.room_message(NOW, ROOM, at(seq), "42", "{}"));
            to.joined(NOW, ID, ROOM, at(19), 12, Recovery::Recovered(&messages))
        },
        &expect![[
            r#"{"type":"joined","id":"7","room":"public.sale","epoch":"k3","seq":19,"payload":{"members":12,"recovered":true,"messages":[{"type":"room_message","room":"public.sale","seq":18,"epoch":"k3","userId":"42","payload":{},"timestamp":"2026-11-23T10:15:00.250Z"},{"type":"room_message","room":"public.sale","seq":19,"epoch":"k3","userId":"42","payload":{},"timestamp":"2026-11-23T10:15:00.250Z"}]},"timestamp":"2026-11-23T10:15:00.250Z"}"#
        ]],
    );
    check(&|to| to.left(ID, ROOM), &expect![[r#"{"type":"left","id":"7","room":"public.sale","payload":{}}"#]]);
    check(&|to| to.left(None, ROOM), &expect![[r#"{"type":"left","room":"public.sale","payload":{}}"#]]);
    check(
        &|to| to.ack(ID, ROOM, at(20)),
        &expect![[r#"{"type":"ack","id":"7","room":"public.sale","seq":20,"epoch":"k3","payload":{}}"#]],
    );
    check(
        &|to| to.presence(ID, ROOM, &[(Arc::from("42"), 2), (Arc::from("43"), 1)], 2),
        &expect![[
            r#"{"type":"presence","id":"7","room":"public.sale","payload":{"users":[{"userId":"42","connections":2},{"userId":"43","connections":1}],"total":2}}"#
        ]],
    );
    check(
        &|to| to.presence(None, ROOM, &[], 0),
        &expect![[r#"{"type":"presence","room":"public.sale","payload":{"users":[],"total":0}}"#]],
    );
    check(&|to| to.service_ack(ID, 202), &expect![[r#"{"type":"ack","id":"7","payload":{"status":202}}"#]]);
    check(
        &|to| to.service_answer(ID, "prediction_response", r#"{ "score": 0.5 }"#),
        &expect![[r#"{"type":"prediction_response","id":"7","payload":{ "score": 0.5 }}"#]],
    );
}

#[test]
fn refusals_are_as_documented() {
    let mut encoder = Encoder::default();
    let mut check = |refusal: &Refusal<'_>, expected: &Expect| check(&text(&encoder.error(refusal)), expected);
    let timeout = Refusal { retry_after_ms: Some(500), ..Refusal::new(ID, Code::UpstreamTimeout) };
    check(
        &timeout,
        &expect![[
            r#"{"type":"error","id":"7","payload":{"code":"upstream_timeout","message":"the service did not answer in time; try again with the same id","retryable":true,"retryAfterMs":500}}"#
        ]],
    );
    check(
        &Refusal { room: Some(ROOM), ..Refusal::new(None, Code::Forbidden) },
        &expect![[
            r#"{"type":"error","room":"public.sale","payload":{"code":"forbidden","message":"no rule allows this user to do this in this room","retryable":false}}"#
        ]],
    );
    check(
        &Refusal { sentence: "it says \"no\"", ..Refusal::new(ID, Code::InvalidPayload) },
        &expect![[
            r#"{"type":"error","id":"7","payload":{"code":"invalid_payload","message":"it says \"no\"","retryable":false}}"#
        ]],
    );
}

#[test]
fn what_comes_unasked_is_as_documented() {
    let mut encoder = Encoder::default();
    let welcome = Welcome { connection: "c_1", heartbeat_ms: 25_000, node: "n1", user: "42", session: Some("s_9f") };
    check(
        &text(&encoder.welcome(NOW, &welcome)),
        &expect![[
            r#"{"type":"welcome","payload":{"connectionId":"c_1","heartbeatMs":25000,"serverTime":"2026-11-23T10:15:00.250Z","node":"n1"},"userId":"42","sessionId":"s_9f","timestamp":"2026-11-23T10:15:00.250Z"}"#
        ]],
    );
    check(
        &text(&encoder.welcome(NOW, &Welcome { session: None, ..welcome })),
        &expect![[
            r#"{"type":"welcome","payload":{"connectionId":"c_1","heartbeatMs":25000,"serverTime":"2026-11-23T10:15:00.250Z","node":"n1"},"userId":"42","timestamp":"2026-11-23T10:15:00.250Z"}"#
        ]],
    );
    check(
        &encoder.room_message(NOW, ROOM, at(20), "42", r#"{"any":"json"}"#),
        &expect![[
            r#"{"type":"room_message","room":"public.sale","seq":20,"epoch":"k3","userId":"42","payload":{"any":"json"},"timestamp":"2026-11-23T10:15:00.250Z"}"#
        ]],
    );
    check(
        &encoder.presence_event(ROOM, PresenceEvent::Join, "42"),
        &expect![[r#"{"type":"presence_event","room":"public.sale","payload":{"event":"join","userId":"42"}}"#]],
    );
    check(
        &encoder.presence_event(ROOM, PresenceEvent::Leave, "42"),
        &expect![[r#"{"type":"presence_event","room":"public.sale","payload":{"event":"leave","userId":"42"}}"#]],
    );
    let gap = Gap { room: RoomName::parse(ROOM).unwrap(), epoch: Epoch::parse("k3"), from: 21, to: 30 };
    check(
        &text(&encoder.gap(gap)),
        &expect![[r#"{"type":"gap","room":"public.sale","epoch":"k3","payload":{"from":21,"to":30}}"#]],
    );
    check(
        &text(&encoder.continuity(ROOM, at(31))),
        &expect![[
            r#"{"type":"continuity","room":"public.sale","epoch":"k3","seq":31,"payload":{"continuity":false}}"#
        ]],
    );
    check(&text(&encoder.reconnect(4200)), &expect![[r#"{"type":"reconnect","payload":{"afterMs":4200}}"#]]);
    check(
        &encoder.pushed(NOW, "cart.saved", "[1]"),
        &expect![[r#"{"type":"cart.saved","payload":[1],"timestamp":"2026-11-23T10:15:00.250Z"}"#]],
    );
    check(
        &encoder.pushed_to_room(NOW, "cart.saved", ROOM, at(20), "null"),
        &expect![[
            r#"{"type":"cart.saved","payload":null,"room":"public.sale","seq":20,"epoch":"k3","timestamp":"2026-11-23T10:15:00.250Z"}"#
        ]],
    );
}

#[test]
fn a_large_frame_leaves_no_large_buffer() {
    let mut encoder = Encoder::default();
    let large = encoder.room_message(NOW, ROOM, at(1), "42", &format!("\"{}\"", "x".repeat(1 << 20)));
    assert!(large.len() > 1 << 20);
    encoder.reconnect(1);
    assert!(encoder.text.json.capacity() <= SPARE_BYTES_MAX);
}

proptest! {
    #[test]
    fn frames_say_what_went_in(id in ".{0,64}", user in "\\PC{0,20}", payload in "[0-9]|\"[a-z ]*\"|\\[1, 2\\]", seq: u64) {
        let mut encoder = Encoder::default();
        let read = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let error = read(&text(&encoder.error(&Refusal::new(Some(&id), Code::Timeout))));
        prop_assert_eq!(&error["id"], &json!(id));
        let presence = read(&text(&encoder.presence(Some(&id), ROOM, &[(Arc::from(&*user), 1)], 1)));
        prop_assert_eq!(&presence["payload"]["users"], &json!([{"userId": user, "connections": 1}]));
        let message = encoder.room_message(NOW, ROOM, at(seq), &user, &payload);
        let expected = format!(r#","payload":{payload},"timestamp""#);
        prop_assert!(message.contains(&expected), "as it came: {}", message);
        prop_assert_eq!(&read(&message)["userId"], &json!(user));
        prop_assert_eq!(&read(&message)["seq"], &json!(seq));
    }
}

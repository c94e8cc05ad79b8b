//! Each message and each mistake by example, and any text at all.

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn read(text: &str) -> String {
    match ClientMessage::parse(text, &ServiceTypes::default()) {
        Ok(ClientMessage { id, request }) => format!("{} {request:?}", id.as_deref().unwrap_or("-")),
        Err(Refused { id, mistake }) => {
            format!("{} {mistake:?} {}", id.as_deref().unwrap_or("-"), mistake.code().name())
        }
    }
}

fn check(text: &str, expected: &Expect) {
    expected.assert_eq(&read(text));
}

#[test]
fn messages_are_as_documented() {
    check(r#"{"type":"auth","id":"1","payload":{"token":"eyJ"}}"#, &expect![[r#"1 Auth { token: "eyJ" }"#]]);
    check(r#"{"type":"heartbeat","payload":{}}"#, &expect!["- Heartbeat"]);
    check(r#"{"type":"heartbeat","id":"h"}"#, &expect!["h Heartbeat"]);
    check(
        r#"{"type":"join_room","id":"2","room":"public.sale","payload":{"recover":{"epoch":"k3","seq":17}}}"#,
        &expect![[r#"2 Join { room: "public.sale", recover: Some(Position { epoch: k3, seq: 17 }) }"#]],
    );
    check(
        r#"{"type":"join_room","room":"public.sale"}"#,
        &expect![[r#"- Join { room: "public.sale", recover: None }"#]],
    );
    check(
        r#"{"type":"leave_room","id":"3","room":"public.sale","payload":{}}"#,
        &expect![[r#"3 Leave { room: "public.sale" }"#]],
    );
    check(
        r#"{"type":"room_message","id":"4","room":"public.sale","payload":{"any":"json"}}"#,
        &expect![[r#"4 Publish { room: "public.sale", payload: "{\"any\":\"json\"}" }"#]],
    );
    check(
        r#"{"type":"presence","id":"5","room":"public.sale","payload":{}}"#,
        &expect![[r#"5 Presence { room: "public.sale" }"#]],
    );
    check(
        r#"{"type":"cart_event","id":"6","payload":{"sku":1}}"#,
        &expect![[r#"6 Service { index: 0, payload: "{\"sku\":1}" }"#]],
    );
    check(r#"{"type":"prediction_request","id":"ü 7","payload":null}"#, &expect!["ü 7 IdNotPrintable invalid_id"]);
}

#[test]
fn rooms_stand_beside_the_payload_or_in_it() {
    check(
        r#"{"type":"join_room","payload":{"room":"public.sale"}}"#,
        &expect![[r#"- Join { room: "public.sale", recover: None }"#]],
    );
    check(
        r#"{"type":"leave_room","payload":{"room":"public.sale"}}"#,
        &expect![[r#"- Leave { room: "public.sale" }"#]],
    );
    check(
        r#"{"type":"presence","room":null,"payload":{"room":"public.sale"}}"#,
        &expect![[r#"- Presence { room: "public.sale" }"#]],
    );
    // What is beside it counts; a payload goes on as it came.
    check(
        r#"{"type":"join_room","room":"a","payload":{"room":"b"}}"#,
        &expect![[r#"- Join { room: "a", recover: None }"#]],
    );
    check(
        r#"{"type":"room_message","payload":{ "room":"a", "x": 1.0 }}"#,
        &expect![[r#"- Publish { room: "a", payload: "{ \"room\":\"a\", \"x\": 1.0 }" }"#]],
    );
    check(
        r#"{"type":"room_message","room":"a","payload":{"room":1,"room":2}}"#,
        &expect![[r#"- Publish { room: "a", payload: "{\"room\":1,\"room\":2}" }"#]],
    );
    check(
        r#"{"type":"room_message","room":"a","payload":"\ud800"}"#,
        &expect![[r#"- Publish { room: "a", payload: "\"\\ud800\"" }"#]],
    );
}

#[test]
fn what_is_not_read_does_not_matter() {
    check(
        r#" { "userId":"1", "sessionId":[{}], "timestamp":7, "timestamp":8, "x":{"type":1}, "type" : "heartbeat" } "#,
        &expect!["- Heartbeat"],
    );
    check(r#"{"\u0074ype":"heart\u0062eat","id":"\u0061\u00e9"}"#, &expect!["aé Heartbeat"]);
    check(r#"{"type":"heartbeat","id":null,"room":7,"payload":"x"}"#, &expect!["- Heartbeat"]);
    check(
        r#"{"type":"join_room","room":"public\u002esale","payload":{"recover":null}}"#,
        &expect![[r#"- Join { room: "public.sale", recover: None }"#]],
    );
}

#[test]
fn positions_are_whole() {
    let join = |recover: &str| read(&format!(r#"{{"type":"join_room","room":"a","payload":{{"recover":{recover}}}}}"#));
    let check = |recover: &str, expected: &Expect| expected.assert_eq(&join(recover));
    check(
        r#"{"epoch":"k3","seq":0}"#,
        &expect![[r#"- Join { room: "a", recover: Some(Position { epoch: k3, seq: 0 }) }"#]],
    );
    check(
        r#"{"epoch":"not one of ours","seq":18446744073709551615}"#,
        &expect![[r#"- Join { room: "a", recover: Some(Position { epoch: 0, seq: 18446744073709551615 }) }"#]],
    );
    for recover in [
        "1",
        "{}",
        "[]",
        r#"{"epoch":"k3"}"#,
        r#"{"seq":1}"#,
        r#"{"epoch":3,"seq":1}"#,
        r#"{"epoch":"k3","seq":"1"}"#,
        r#"{"epoch":"k3","seq":-1}"#,
        r#"{"epoch":"k3","seq":1.0}"#,
        r#"{"epoch":"k3","seq":1e3}"#,
        r#"{"epoch":"k3","seq":null}"#,
        r#"{"epoch":"k3","seq":18446744073709551616}"#,
    ] {
        assert_eq!(join(recover), "- RecoverInvalid invalid_payload", "{recover}");
    }
    check(r#"{"epoch":"k3","seq":1,"seq":2}"#, &expect!["- MemberTwice invalid_message"]);
}

#[test]
fn mistakes_have_names() {
    check("", &expect!["- NotJson invalid_json"]);
    check("hello", &expect!["- NotJson invalid_json"]);
    check("{", &expect!["- NotJson invalid_json"]);
    check(r#"{"type":"heartbeat"} {}"#, &expect!["- NotJson invalid_json"]);
    check(r#"{"type":"heartbeat",}"#, &expect!["- NotJson invalid_json"]);
    check(r#"{"type":"heartbeat","x":01}"#, &expect!["- NotJson invalid_json"]);
    check("\u{feff}{}", &expect!["- NotJson invalid_json"]);
    check("[1]", &expect!["- NotAnObject invalid_json"]);
    check(" null ", &expect!["- NotAnObject invalid_json"]);
    check(r#"{"type":"heartbeat","type":"heartbeat"}"#, &expect!["- MemberTwice invalid_message"]);
    check(r#"{"id":"1","type":"heartbeat","id":"2"}"#, &expect!["- MemberTwice invalid_message"]);
    check(
        r#"{"type":"join_room","id":"1","payload":{"room":"a","room":"b"}}"#,
        &expect!["1 MemberTwice invalid_message"],
    );
    check(r#"{"id":"1"}"#, &expect!["1 TypeMissing invalid_message"]);
    check(r#"{"type":null}"#, &expect!["- TypeMissing invalid_message"]);
    check(r#"{"type":7,"id":"1"}"#, &expect!["1 TypeMissing invalid_message"]);
    check(r#"{"type":"\ud800","id":"1"}"#, &expect!["1 TypeMissing invalid_message"]);
    check(r#"{"type":"welcome","id":"1"}"#, &expect!["1 TypeUnknown unknown_type"]);
    check(r#"{"type":"Heartbeat","id":"1"}"#, &expect!["1 TypeUnknown unknown_type"]);
    check(r#"{"type":"heartbeat","id":7}"#, &expect!["- IdInvalid invalid_id"]);
    check(r#"{"type":"heartbeat","id":""}"#, &expect!["- IdInvalid invalid_id"]);
    check(&format!(r#"{{"type":"heartbeat","id":"{}"}}"#, "é".repeat(65)), &expect!["- IdInvalid invalid_id"]);
    check(r#"{"type":"cart_event","payload":1}"#, &expect!["- IdMissing id_required"]);
    check(r#"{"type":"prediction_request","payload":1}"#, &expect!["- IdMissing id_required"]);
    check(r#"{"type":"cart_event","id":"a b","payload":1}"#, &expect!["a b IdNotPrintable invalid_id"]);
    check(r#"{"type":"cart_event","id":"é","payload":1}"#, &expect!["é IdNotPrintable invalid_id"]);
    check(r#"{"type":"join_room","id":"1"}"#, &expect!["1 RoomMissing invalid_room"]);
    check(r#"{"type":"join_room","id":"1","payload":[{"room":"a"}]}"#, &expect!["1 RoomMissing invalid_room"]);
    check(r#"{"type":"room_message","id":"1","payload":"a"}"#, &expect!["1 RoomMissing invalid_room"]);
    check(r#"{"type":"leave_room","id":"1","room":"a b"}"#, &expect!["1 RoomInvalid invalid_room"]);
    check(r#"{"type":"presence","id":"1","room":["a"]}"#, &expect!["1 RoomInvalid invalid_room"]);
    check(r#"{"type":"join_room","id":"1","payload":{"room":7}}"#, &expect!["1 RoomInvalid invalid_room"]);
    check(r#"{"type":"room_message","id":"1","room":"a"}"#, &expect!["1 PayloadMissing invalid_payload"]);
    check(r#"{"type":"cart_event","id":"1"}"#, &expect!["1 PayloadMissing invalid_payload"]);
    check(r#"{"type":"auth","id":"1"}"#, &expect!["1 TokenMissing invalid_payload"]);
    check(r#"{"type":"auth","id":"1","payload":"eyJ"}"#, &expect!["1 TokenMissing invalid_payload"]);
    check(r#"{"type":"auth","id":"1","payload":{"token":""}}"#, &expect!["1 TokenMissing invalid_payload"]);
    let deep =
        format!(r#"{{"type":"room_message","id":"1","room":"a","payload":{}{}}}"#, "[".repeat(101), "]".repeat(101));
    check(&deep, &expect!["1 PayloadTooDeep invalid_payload"]);
}

#[test]
fn ids_are_counted_in_characters() {
    let id = "é".repeat(64);
    assert_eq!(read(&format!(r#"{{"type":"heartbeat","id":"{id}"}}"#)), format!("{id} Heartbeat"));
    let id = "!~".repeat(32);
    let read = read(&format!(r#"{{"type":"cart_event","id":"{id}","payload":1}}"#));
    assert!(read.starts_with(&id) && read.contains("Service"), "{read}");
}

#[test]
fn what_is_not_escaped_is_not_copied() {
    let text = r#"{"type":"room_message","id":"4","room":"public.sale","payload":{"any":"json"}}"#;
    let message = ClientMessage::parse(text, &ServiceTypes::default()).unwrap();
    assert!(matches!(message.id, Some(Cow::Borrowed("4"))));
    let Request::Publish { room: Cow::Borrowed(_), payload } = message.request else { panic!("{message:?}") };
    assert!(text.as_bytes().as_ptr_range().contains(&payload.as_ptr()), "the payload is part of what came");
}

#[test]
fn hostile_nesting_ends() {
    for text in ["[".repeat(65_536), "{\"a\":".repeat(13_000), format!("{{\"payload\":{}", "[".repeat(65_000))] {
        assert_eq!(read(&text), "- NotJson invalid_json");
    }
    let deep = format!(r#"{{"x":{}{},"type":"heartbeat"}}"#, "[".repeat(30_000), "]".repeat(30_000));
    assert_eq!(read(&deep), "- Heartbeat", "what is not read goes to nobody");
}

#[test]
fn the_bound_that_is_told_is_the_bound() {
    assert!(Mistake::PayloadTooDeep.sentence().contains(&super::super::limits::DEPTH_MAX.to_string()));
    assert!(Mistake::IdInvalid.sentence().contains(&ID_CHARACTERS_MAX.to_string()));
}

#[test]
fn every_mistake_is_told_plainly() {
    for mistake in Mistake::ALL {
        assert!(crate::telemetry::escape::is_plain(mistake.sentence().as_bytes()), "{mistake:?}");
        assert!(!mistake.code().is_retryable(), "the same text is the same mistake again: {mistake:?}");
    }
}

#[test]
fn the_corpus_of_the_fuzz_target_keeps_its_promises() {
    let mut files = 0;
    for entry in std::fs::read_dir("fuzz/corpus/hub_message").expect("the folder") {
        fuzz_one(&std::fs::read(entry.expect("an entry").path()).expect("readable"));
        files += 1;
    }
    assert!(files > 5, "{files}");
}

/// JSON that looks like messages, whole or not.
fn alike() -> impl Strategy<Value = String> {
    let kind = prop::sample::select(vec![
        "auth",
        "heartbeat",
        "join_room",
        "leave_room",
        "room_message",
        "presence",
        "cart_event",
        "prediction_request",
        "x",
    ])
    .prop_map(|kind| format!(r#""type":"{kind}""#));
    let value = prop::sample::select(vec![
        r#""a""#,
        r#""public.sale""#,
        "null",
        "1",
        "{}",
        r#"{"room":"a"}"#,
        r#"{"token":"t"}"#,
        "[]",
        r#""\u0061""#,
        r#""é""#,
        r#"{"recover":{"epoch":"k3","seq":1},"room":"b"}"#,
    ]);
    let name = prop::sample::select(vec!["type", "id", "room", "payload", "userId"]);
    let member = (name, value).prop_map(|(name, value)| format!(r#""{name}":{value}"#));
    (kind, prop::collection::vec(member, 0..4)).prop_map(|(kind, members)| {
        let members: Vec<String> = members.into_iter().chain([kind]).collect();
        format!("{{{}}}", members.join(","))
    })
}

proptest! {
    #[test]
    fn any_text_is_a_message_or_a_mistake(text in ".{0,60}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        fuzz_one(text.as_bytes());
        fuzz_one(&bytes);
    }

    #[test]
    fn whatever_looks_like_a_message_is_one_or_a_mistake(text in alike(), at in 0_usize..200, byte: u8) {
        fuzz_one(text.as_bytes());
        let mut broken = text.into_bytes();
        if let Some(place) = broken.get_mut(at) {
            *place = byte;
        }
        fuzz_one(&broken);
    }

    #[test]
    fn payloads_go_on_as_they_came(
        value in r#""[^"\\\x00-\x1f]{0,9}"|-?[1-9][0-9]{0,30}|1\.0e-5|true|null"#,
        around in prop::sample::select(vec![("", ""), (" ", "\t"), ("[ ", " ]"), ("{ \"a\" :", "}"), ("[[],\n", ",{}]")]),
    ) {
        let payload = format!("{}{value}{}", around.0, around.1);
        let text = format!(r#"{{"type":"room_message","room":"a","payload":{payload}}}"#);
        let message = ClientMessage::parse(&text, &ServiceTypes::default()).unwrap();
        prop_assert_eq!(message.request, Request::Publish { room: "a".into(), payload: payload.trim() });
    }
}

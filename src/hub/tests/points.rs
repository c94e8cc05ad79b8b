//! The points of the dialect: where a reader of the frames could choose, what was chosen.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::{
    Answer, Close, Code, Effect, Entrance, ServiceMessage, ServiceOutcome, SocketKey,
    letter::RoomLetter,
    limits::Limits,
    name::{Pattern, RoomName},
    others::Others,
    rules::{Actions, Policy, Rule, Rules},
    types::{IdRule, ServiceAnswer, ServiceType, ServiceTypes},
};
use super::{HOME, One, Plan, hub_of, identity, plan_of, read, room_at};

#[track_caller]
fn has(told: &str, parts: &[&str]) {
    for part in parts {
        assert!(told.contains(part), "{part} in {told}");
    }
}

#[test]
fn an_answer_has_the_id_of_its_question_if_there_was_one() {
    let mut one = One::new();
    let a = one.enter("a");
    one.read(a);
    one.say(a, r#"{"type":"heartbeat","id":"h"}"#);
    one.say(a, r#"{"type":"heartbeat"}"#);
    let told = one.read(a);
    let (first, second) = told.split_once('\n').expect("two");
    has(first, &[r#"{"type":"heartbeat","id":"h","payload":{},"timestamp":"2026-"#]);
    has(second, &[r#"{"type":"heartbeat","payload":{}"#]);
    one.say(a, r#"{"type":"cart_event","payload":{}}"#);
    has(&one.read(a), &["id_required"]);
}

#[test]
fn acks_of_one_socket_come_in_order_though_rooms_answer_out_of_order() {
    let plan = Plan::default();
    let [mut here, mut there] = [0, 1].map(|shard| hub_of(shard, 2, plan.clone()));
    let (near, far) = (room_at(0), room_at(1));
    let now = super::Instant::START;
    let entrance = Entrance { handle: (), network: HOME, identity: Some(identity(&plan, "a")), window_bits: None };
    let a = here.enter(now, entrance).expect("room");
    let exchange = |here: &mut super::Hub<()>, there: &mut super::Hub<()>| {
        while let Some(Effect::Letter(1, letter)) = here.poll_effect() {
            there.handle_letter(now, 0, letter);
        }
        while let Some(Effect::Letter(0, letter)) = there.poll_effect() {
            here.handle_letter(now, 1, letter);
        }
    };
    for room in [&near, &far] {
        here.handle_text(now, a, &format!(r#"{{"type":"join_room","room":"{room}"}}"#));
    }
    exchange(&mut here, &mut there);
    read(&mut here, a);
    for (id, room) in [("1", &far), ("2", &near), ("3", &far)] {
        here.handle_text(now, a, &format!(r#"{{"type":"room_message","id":"{id}","room":"{room}","payload":1}}"#));
    }
    let told = read(&mut here, a).join("\n");
    assert!(told.contains("room_message") && !told.contains("ack"), "the second waits for the first: {told}");
    exchange(&mut here, &mut there);
    let told = read(&mut here, a);
    let acks: Vec<&str> = told.iter().filter_map(|text| text.strip_prefix(r#"{"type":"ack","id":""#)).collect();
    assert_eq!(acks.iter().map(|ack| &ack[..1]).collect::<Vec<_>>(), ["1", "2", "3"]);
}

#[test]
fn the_same_message_again_gets_the_same_number() {
    let mut one = One::new();
    let (a, again, other) = (one.enter("a"), one.enter("a"), one.enter("b"));
    for socket in [a, again, other] {
        one.join(socket, "public.x");
    }
    one.read(a);
    let text = r#"{"type":"room_message","id":"m","room":"public.x","payload":{"room":"x"}}"#;
    one.say(a, text);
    has(&one.read(a), &[r#""seq":1"#, r#""payload":{"room":"x"},"timestamp""#]);
    one.say(again, text);
    let told = one.read(again);
    assert_eq!((told.matches("\"ack\"").count(), told.matches("room_message").count()), (1, 1), "{told}");
    assert_eq!(one.read(a), "", "it is not delivered twice");
    one.say(other, text);
    has(&one.read(other), &[r#"{"type":"ack","id":"m","room":"public.x","seq":2"#]);

    let service = |sub| ServiceMessage { sub, kind: "price", id: Some("m"), payload: "1" };
    let room = RoomName::parse("public.x").expect("a name");
    for (asker, sub) in [(1, "svc"), (2, "svc"), (3, "other")] {
        one.hub.publish_for(one.now, asker, room.clone(), &service(sub));
    }
    let seqs = one.effects().into_iter().map(|effect| match effect {
        Effect::Told { answer: Answer::Published(position), .. } => position.seq,
        other => panic!("{other:?}"),
    });
    assert_eq!(seqs.collect::<Vec<_>>(), [3, 3, 4]);
    one.now += Duration::from_mins(10);
    one.say(a, text);
    has(&one.read(a), &[r#""seq":5"#]);
}

// ---- log-in ----

fn anonymous(one: &mut One) -> SocketKey {
    one.hub.enter(one.now, Entrance { handle: (), network: HOME, identity: None, window_bits: None }).expect("room")
}

#[test]
fn before_its_log_in_a_socket_may_do_little_and_for_ten_seconds() {
    let mut one = One::new();
    let a = anonymous(&mut one);
    assert_eq!((one.read(a), one.hub.message_bytes_max(a)), (String::new(), 8 << 10));
    one.say(a, r#"{"type":"join_room","id":"1","room":"public.x"}"#);
    has(&one.read(a), &[r#"{"type":"error","id":"1""#, "unauthenticated"]);
    one.now += Duration::from_secs(9);
    one.say(a, r#"{"type":"heartbeat"}"#);
    has(&one.read(a), &["heartbeat"]);
    one.now += Duration::from_secs(1);
    assert_eq!(one.hub.socket_due(a), one.now, "heartbeats do not extend it");
    one.hub.handle_socket_timeout(one.now, a);
    assert_eq!(one.closes(), [(a, Close::Unauthenticated)]);
}

#[test]
fn a_log_in_is_welcomed_and_a_renewal_is_not() {
    let mut one = One::new();
    let a = anonymous(&mut one);
    one.say(a, r#"{"type":"auth","id":"1","payload":{"token":"t"}}"#);
    one.say(a, r#"{"type":"auth","id":"2","payload":{"token":"t"}}"#);
    has(&one.read(a), &[r#""id":"2","payload":{"code":"overloaded""#]);
    let asked = one.effects();
    assert!(matches!(&asked[..], [Effect::Auth { socket, token, .. }] if *socket == a && &**token == "t"), "{asked:?}");
    let mine = identity(&one.plan, "a");
    one.hub.authenticated(one.now, a, Some("1"), mine.clone());
    let told = one.read(a);
    assert!(told.starts_with(r#"{"type":"auth_ok","id":"1","payload":{"expiresAt":"2026-11-23T"#), "{told}");
    has(&told, &["\n{\"type\":\"welcome\"", r#""userId":"a","sessionId":"s_a""#]);
    assert_eq!(one.hub.message_bytes_max(a), 64 << 10);

    let later =
        super::Identity { session: Some(Arc::from("s_2")), expires: mine.expires + Duration::from_hours(1), ..mine };
    one.hub.authenticated(one.now, a, Some("3"), later);
    let told = one.read(a);
    has(&told, &[r#""id":"3""#, r#""sessionId":"s_2""#]);
    assert!(!told.contains("welcome"), "{told}");
    assert_eq!(one.hub.socket(a).and_then(|socket| socket.session().cloned()).as_deref(), Some("s_2"));

    let others = identity(&one.plan, "b");
    one.hub.authenticated(one.now, a, Some("4"), others);
    has(&one.read(a), &[r#""id":"4","payload":{"code":"other_user""#]);
    one.hub.auth_failed(one.now, a, Some("5"), Code::TokenInvalid);
    has(&one.read(a), &[r#""id":"5","payload":{"code":"token_invalid""#]);
    assert!(one.closes().is_empty(), "it lives");
}

#[test]
fn a_first_log_in_that_fails_ends_the_socket_unless_it_may_be_tried_again() {
    for (code, close) in [
        (Code::TokenInvalid, Some(Close::Unauthenticated)),
        (Code::TokenRevoked, Some(Close::Revoked)),
        (Code::TokenExpired, Some(Close::TokenExpired)),
        (Code::DependencyUnavailable, None),
    ] {
        let mut one = One::new();
        let a = anonymous(&mut one);
        one.hub.auth_failed(one.now, a, Some("1"), code);
        has(&one.read(a), &[code.name()]);
        assert_eq!(one.closes(), close.map(|close| (a, close)).into_iter().collect::<Vec<_>>(), "{code:?}");
    }
}

#[test]
fn a_socket_ends_with_its_token() {
    let mut one = One::new();
    let a = one.enter("a");
    for _ in 0..60 {
        one.now += Duration::from_mins(1);
        one.hub.heard(one.now, a);
        one.hub.handle_socket_timeout(one.now, a);
    }
    assert_eq!(one.closes(), [(a, Close::TokenExpired)]);
}

#[test]
fn a_renewal_leaves_the_rooms_that_it_does_not_allow() {
    let rule = |pattern: &str, roles: &[&str]| Rule {
        pattern: Pattern::parse(pattern).expect("a pattern"),
        allow: Actions::ALL,
        roles: roles.iter().map(|&role| role.into()).collect(),
        permissions: Box::default(),
        policy: Policy::default(),
    };
    let rules = Rules::new(vec![rule("public.*", &[]), rule("staff.*", &["staff"])]);
    let mut one = One::with(Plan { rules: Rc::new(rules), ..Plan::default() });
    let staff = super::Identity { permits: one.plan.rules.permits(|_| true, |_| true), ..identity(&one.plan, "a") };
    let entrance = Entrance { handle: (), network: HOME, identity: Some(staff), window_bits: None };
    let a = one.hub.enter(one.now, entrance).expect("room");
    one.join(a, "staff.x");
    one.join(a, "public.x");
    let less = identity(&one.plan, "a");
    one.hub.authenticated(one.now, a, None, less);
    let told = one.read(a);
    let kinds: Vec<&str> = told.lines().filter_map(|line| line.split('"').nth(3)).collect();
    assert_eq!(kinds, ["auth_ok", "left", "error"]);
    has(
        &told,
        &[r#"{"type":"left","room":"staff.x","payload":{}}"#, r#""room":"staff.x","payload":{"code":"forbidden""#],
    );
    one.hub.publish_for(
        one.now,
        1,
        RoomName::parse("staff.x").expect("a name"),
        &ServiceMessage { sub: "s", kind: "k", id: None, payload: "1" },
    );
    assert_eq!(one.read(a), "");
}

// ---- rooms ----

#[test]
fn what_cannot_be_done_in_a_room_is_an_error_frame() {
    let mut one = One::new();
    let a = one.enter("a");
    one.join(a, "public.x");
    for (text, code) in [
        (r#"{"type":"join_room","id":"1","room":"public.x"}"#, "already_joined"),
        (r#"{"type":"leave_room","id":"1","room":"public.y"}"#, "not_joined"),
        (r#"{"type":"room_message","id":"1","room":"public.y","payload":1}"#, "not_joined"),
        (r#"{"type":"join_room","id":"1","room":"user.b.x"}"#, "forbidden"),
        (r#"{"type":"presence","id":"1","room":"secret"}"#, "forbidden"),
        (r#"{"type":"join_room","id":"1","room":"no room"}"#, "invalid_room"),
        (r#"{"type":"dance","id":"1"}"#, "unknown_type"),
        ("[]", "invalid_json"),
    ] {
        one.say(a, text);
        has(&one.read(a), &[r#"{"type":"error""#, &format!(r#""payload":{{"code":"{code}""#)]);
    }
    one.say(a, r#"{"type":"leave_room","id":"9","room":"public.x"}"#);
    assert_eq!(one.read(a), r#"{"type":"left","id":"9","room":"public.x","payload":{}}"#);
}

#[test]
fn who_comes_back_gets_all_that_was_missed_or_nothing() {
    let mut one = One::new();
    let (a, b) = (one.enter("a"), one.enter("b"));
    one.join(a, "public.x");
    for number in 1..=3 {
        one.say(a, &format!(r#"{{"type":"room_message","room":"public.x","payload":{number}}}"#));
    }
    let told = one.read(a);
    let epoch = told.split(r#""epoch":""#).nth(1).and_then(|rest| rest.split('"').next()).expect("an epoch").to_owned();
    let mut join = |epoch: &str, seq: u64| {
        let recover = format!(r#"{{"recover":{{"epoch":"{epoch}","seq":{seq}}}}}"#);
        one.say(b, &format!(r#"{{"type":"join_room","room":"public.x","payload":{recover}}}"#));
        one.say(b, r#"{"type":"leave_room","room":"public.x"}"#);
        one.read(b)
    };
    let told = join(&epoch, 1);
    has(&told, &[r#""seq":3,"payload":{"members":2,"recovered":true,"messages":[{"type":"room_message""#]);
    assert_eq!((told.matches("room_message").count(), told.contains(r#""payload":1"#)), (2, false), "{told}");
    has(&join(&epoch, 3), &[r#""recovered":true,"messages":[]"#]);
    for (epoch, seq) in [(&*epoch, 4), ("other", 1), ("ÖÄ", 0)] {
        has(&join(epoch, seq), &[r#""payload":{"members":2,"recovered":false},"#]);
    }
    one.join(b, "public.x");
}

#[test]
fn presence_counts_users_and_lists_their_sockets() {
    let mut one = One::new();
    let (a, again, b) = (one.enter("a"), one.enter("a"), one.enter("b"));
    for socket in [a, again, b] {
        one.join(socket, "public.x");
    }
    one.say(b, r#"{"type":"presence","id":"5","room":"public.x"}"#);
    let users = r#"{"users":[{"userId":"a","connections":2},{"userId":"b","connections":1}],"total":2}"#;
    assert_eq!(one.read(b), format!(r#"{{"type":"presence","id":"5","room":"public.x","payload":{users}}}"#));
    one.hub.look_for(one.now, 7, RoomName::parse("public.x").expect("a name"));
    one.hub.look_for(one.now, 8, RoomName::parse("public.nobody").expect("a name"));
    let told = one.effects();
    let [Effect::Told { asker: 7, answer: Answer::Room(look) }, Effect::Told { asker: 8, answer: Answer::Room(none) }] =
        &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!((look.members, look.connections), (2, 3));
    assert_eq!(*none, super::super::letter::Look::default());
}

/// Carries what two shards have written, but for what is lost of the first one's.
fn carry([one, other]: [&mut super::Hub<()>; 2], now: super::Instant, is_lost: impl Fn(&RoomLetter) -> bool) {
    while let Some(effect) = one.poll_effect() {
        match effect {
            Effect::Letter(to, letter) if is_lost(&letter) => one.letter_dropped(now, to, letter),
            Effect::Letter(_, letter) => other.handle_letter(now, 0, letter),
            _ => {}
        }
    }
    while let Some(effect) = other.poll_effect() {
        if let Effect::Letter(_, letter) = effect {
            one.handle_letter(now, 1, letter);
        }
    }
}

#[test]
fn a_lost_message_without_a_past_is_told() {
    let policy = Policy {
        history: super::super::rules::History { messages_max: 0, ..Policy::default().history },
        ..Policy::default()
    };
    let plan = plan_of(policy);
    let [mut home, mut other] = [0, 1].map(|shard| hub_of(shard, 2, plan.clone()));
    let room = room_at(0);
    let mut now = super::Instant::START;
    let entrance = Entrance { handle: (), network: HOME, identity: Some(identity(&plan, "a")), window_bits: None };
    let a = other.enter(now, entrance).expect("room");
    other.handle_text(now, a, &format!(r#"{{"type":"join_room","room":"{room}"}}"#));
    let mut is_losing = false;
    for step in 0..40 {
        if step == 5 {
            read(&mut other, a);
            is_losing = true;
            let message = ServiceMessage { sub: "s", kind: "k", id: None, payload: "1" };
            home.publish_for(now, 1, room.clone(), &message);
        }
        now += Duration::from_millis(50);
        home.handle_timeout(now);
        other.handle_timeout(now);
        carry([&mut home, &mut other], now, |letter| is_losing && matches!(letter, RoomLetter::Deliver(_)));
    }
    let told = read(&mut other, a).join("\n");
    has(&told, &[r#"{"type":"continuity""#, r#""seq":1,"payload":{"continuity":false}}"#]);
    let counts = other.counts();
    assert!(counts.pulls > 0 && counts.discontinuities == 1, "{counts:?}");
}

#[test]
fn a_lost_coming_or_going_is_told_again_as_it_is_then() {
    let plan = plan_of(Policy { has_presence_events: true, presence_grace: Duration::ZERO, ..Policy::default() });
    let [mut home, mut other] = [0, 1].map(|shard| hub_of(shard, 2, plan.clone()));
    let room = room_at(0);
    let mut now = super::Instant::START;
    let enter = |hub: &mut super::super::Hub<()>, now, user: &str| {
        let entrance = Entrance { handle: (), network: HOME, identity: Some(identity(&plan, user)), window_bits: None };
        let socket = hub.enter(now, entrance).expect("room");
        hub.handle_text(now, socket, &format!(r#"{{"type":"join_room","room":"{room}"}}"#));
        socket
    };
    let a = enter(&mut other, now, "a");
    let (mut b, mut c) = (None, None);
    for step in 0..20 {
        match step {
            4 => {
                read(&mut other, a);
                (b, c) = (Some(enter(&mut home, now, "b")), Some(enter(&mut home, now, "c")));
            }
            // Both were lost: what is told is that c is not there.
            5 => {
                home.leave(now, c.take().expect("it came"));
            }
            _ => {}
        }
        carry([&mut home, &mut other], now, |letter| (4..6).contains(&step) && matches!(letter, RoomLetter::Tell(_)));
        now += Duration::from_millis(50);
        home.handle_timeout(now);
        other.handle_timeout(now);
    }
    let told = read(&mut other, a);
    let event = |event: &str, user: &str| {
        format!(r#"{{"type":"presence_event","room":"{room}","payload":{{"event":"{event}","userId":"{user}"}}}}"#)
    };
    assert_eq!(told, [event("join", "b"), event("leave", "c")]);
    assert!(b.is_some());
}

// ---- services ----

#[test]
fn messages_for_a_service_go_one_at_a_time_and_are_told_apart() {
    let mut one = One::new();
    let a = one.enter("a");
    one.read(a);
    for id in 1..=66 {
        one.say(a, &format!(r#"{{"type":"cart_event","id":"{id}","payload":{{"n":{id}}}}}"#));
    }
    one.say(a, r#"{"type":"prediction_request","id":"p","payload":{}}"#);
    has(&one.read(a), &[r#"{"type":"error","id":"66","payload":{"code":"overloaded""#]);
    let forwarded = |one: &mut One| match &one.effects()[..] {
        [Effect::Forward { ticket, id, payload, .. }, ..] => (*ticket, id.clone().expect("an id"), payload.clone()),
        other => panic!("{other:?}"),
    };
    let (ticket, id, payload) = forwarded(&mut one);
    assert_eq!((&*id, &*payload), ("1", r#"{"n":1}"#));
    one.hub.service_answered(one.now, ticket, &ServiceOutcome::Taken { status: 202, json: "" });
    assert_eq!(one.read(a), r#"{"type":"ack","id":"1","payload":{"status":202}}"#);
    let (ticket, id, _) = forwarded(&mut one);
    assert_eq!(&*id, "2");
    let refused = ServiceOutcome::Refused { code: Code::UpstreamTimeout, retry_after_ms: Some(500) };
    one.hub.service_answered(one.now, ticket, &refused);
    let told = one.read(a);
    has(
        &told,
        &[
            r#"{"type":"error","id":"2","payload":{"code":"upstream_timeout""#,
            r#""retryable":true,"retryAfterMs":500}"#,
        ],
    );
    let (ticket, id, _) = forwarded(&mut one);
    assert_eq!(&*id, "3", "the next goes on");
    one.hub.leave(one.now, a);
    let left = one.effects();
    let cancelled = |effect: &Effect| matches!(effect, Effect::Cancel(known) if *known == ticket);
    assert!(left.iter().any(cancelled) && left.len() == 2, "both types: {left:?}");
    assert_eq!((one.hub.counts().asks, one.hub.counts().service_bytes), (0, 0));
}

#[test]
fn a_service_that_is_slow_holds_up_acks_and_nothing_else() {
    let types = ["slow", "quick"].map(service);
    let limits = Rc::new(Limits { messages_per_second: u32::MAX, ..Limits::default() });
    let types = Rc::new(ServiceTypes::new(types.into()).expect("sound"));
    let mut one = One::with(Plan { limits, types, ..Plan::default() });
    let a = one.enter("a");
    one.join(a, "public.x");
    for id in 0..=300 {
        one.say(a, &format!(r#"{{"type":"slow","id":"s{id}","payload":{id}}}"#));
    }
    one.say(a, r#"{"type":"quick","id":"q","payload":1}"#);
    let told = one.read(a);
    assert!(told.is_empty(), "each type has its own bound: {told}");
    for id in 0..300 {
        one.say(a, &format!(r#"{{"type":"room_message","id":"{id}","room":"public.x","payload":1}}"#));
        let told = one.read(a);
        assert!(told.starts_with(r#"{"type":"room_message","room":"public.x","seq":"#), "it is in the room: {told}");
        assert!(!told.contains("overloaded") && !told.contains("ack"), "acks of a socket are in order: {told}");
    }
    let forwarded = one.effects();
    let [Effect::Forward { ticket: mut slow, .. }, Effect::Forward { ticket: quick, .. }] = forwarded[..] else {
        panic!("{forwarded:?}")
    };
    let taken = ServiceOutcome::Taken { status: 202, json: "" };
    one.hub.service_answered(one.now, quick, &taken);
    assert_eq!(one.read(a), "");
    let mut acks = Vec::new();
    for _ in 0..=300 {
        one.hub.service_answered(one.now, slow, &taken);
        acks.extend(read(&mut one.hub, a));
        if let Some(Effect::Forward { ticket, .. }) = one.effects().pop() {
            slow = ticket;
        }
    }
    let sent = (0..=300).map(|id| format!("s{id}")).chain(["q".to_owned()]).chain((0..300).map(|id| id.to_string()));
    let sent: Vec<_> = sent.map(|id| format!(r#"{{"type":"ack","id":"{id}""#)).collect();
    assert_eq!(acks.len(), sent.len());
    assert!(acks.iter().zip(&sent).all(|(ack, start)| ack.starts_with(start)), "{acks:?}");
}

#[test]
fn services_that_have_gone_with_a_reload_go_on_each_by_itself() {
    let types = Rc::new(ServiceTypes::new(["a", "b"].map(service).into()).expect("sound"));
    let mut one = One::with(Plan { types, ..Plan::default() });
    let socket = one.enter("a");
    one.read(socket);
    for (kind, id) in [("a", 1), ("b", 2), ("b", 3)] {
        one.say(socket, &format!(r#"{{"type":"{kind}","id":"{id}","payload":{id}}}"#));
    }
    let forwarded = one.effects();
    let [_, Effect::Forward { ticket, .. }] = forwarded[..] else { panic!("{forwarded:?}") };
    one.hub.adopt(one.now, Plan::default());
    one.hub.service_answered(one.now, ticket, &ServiceOutcome::Taken { status: 202, json: "" });
    has(&one.read(socket), &[r#"{"type":"error","id":"2","payload":{"code":"upstream_bad_response""#]);
    assert!(matches!(&one.effects()[..], [Effect::Forward { payload, .. }] if &**payload == "3"));
    one.hub.leave(one.now, socket);
    assert_eq!((one.effects().len(), one.hub.counts().asks), (2, 0), "both are cancelled");
}

fn service(name: &str) -> ServiceType {
    ServiceType { name: name.into(), id: IdRule::Required, answer: ServiceAnswer::Ack, waiting_max: 1000 }
}

// ---- ends ----

#[test]
fn a_kick_closes_all_sockets_of_a_user() {
    let mut one = One::new();
    let (a, again, b) = (one.enter("a"), one.enter("a"), one.enter("b"));
    one.hub.kick_for(one.now, 1, &Arc::from("a"));
    let told = one.effects();
    let answer = Answer::Sockets { count: 2, asked: 1, answered: 1, others: Some(Others::default()) };
    assert!(
        matches!(&told[..], [Effect::Close(one, Close::Revoked), Effect::Close(two, Close::Revoked), Effect::Told { asker: 1, answer: last }]
        if (*one, *two) == (a, again) && *last == answer),
        "{told:?}"
    );
    one.read(b);
    let hello = ServiceMessage { sub: "shop", kind: "hello", id: None, payload: "{}" };
    one.hub.publish_to_user_for(one.now, 2, &Arc::from("b"), &hello);
    has(&one.read(b), &[r#"{"type":"hello","payload":{},"timestamp":"#]);
}

#[test]
fn a_drain_spreads_the_ends_and_the_returns() {
    let mut one = One::new();
    let sockets: Vec<SocketKey> = (0..10).map(|user| one.enter(&format!("u{user}"))).collect();
    let begun = one.now;
    one.hub.drain(begun, Duration::from_secs(20));
    let mut after = Vec::new();
    for &socket in &sockets {
        let told = one.read(socket);
        let ms = told.split(r#"{"type":"reconnect","payload":{"afterMs":"#).nth(1).expect("it is told");
        after.push(ms.trim_end_matches('}').parse::<u64>().expect("a number"));
    }
    assert!(after.iter().max().zip(after.iter().min()).is_some_and(|(max, min)| max - min > 5000 && *max <= 20_000));
    let dues: Vec<u64> = sockets.iter().map(|&socket| one.hub.socket_due(socket).since(begun).as_secs()).collect();
    assert_eq!(dues, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]);
    one.effects();
    one.now += Duration::from_secs(2);
    one.hub.handle_socket_timeout(one.now, sockets[0]);
    one.hub.handle_socket_timeout(one.now, sockets[1]);
    assert_eq!(one.closes(), [(sockets[0], Close::Restart)]);
    let late = Entrance { handle: (), network: HOME, identity: Some(identity(&one.plan, "late")), window_bits: None };
    assert_eq!(one.hub.enter(one.now, late).err(), Some(Close::TryLater));
}

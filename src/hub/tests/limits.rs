//! Each bound of the hub, and what happens at it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::super::{
    Close, Entrance, Socket, letter::RoomLetter, limits::Limits, name::RoomName, room::Member, rules::Policy,
    socket::Membership,
};
use super::{HOME, One, Plan, identity};
use crate::shard::Local;

fn with(change: impl FnOnce(&mut Limits)) -> One {
    let mut limits = Limits::default();
    change(&mut limits);
    One::with(Plan { limits: Rc::new(limits), ..Plan::default() })
}

#[test]
fn an_idle_socket_and_a_membership_are_small() {
    assert!(size_of::<Socket<u64>>() <= 300, "{}", size_of::<Socket<u64>>());
    assert!(size_of::<Membership>() + size_of::<Member>() <= 40);
    assert!(Policy::default().history.messages_max > 0);
}

#[test]
fn too_many_sockets_are_refused_by_user_instance_and_address() {
    let mut one = with(|limits| {
        limits.sockets_per_user_max = 2;
        limits.sockets_max = 4;
        limits.anonymous_per_address_max = 1;
    });
    let enter = |one: &mut One, user: Option<&str>| {
        let identity = user.map(|user| identity(&one.plan, user));
        one.hub.enter(one.now, Entrance { handle: (), network: HOME, identity, window_bits: None })
    };
    let first = enter(&mut one, Some("a")).expect("room");
    enter(&mut one, Some("a")).expect("room");
    assert_eq!(enter(&mut one, Some("a")).err(), Some(Close::TooManyConnections));
    let nobody = enter(&mut one, None).expect("room");
    assert_eq!(enter(&mut one, None).err(), Some(Close::TooManyConnections));
    let mine = identity(&one.plan, "a");
    one.hub.authenticated(one.now, nobody, None, mine);
    assert_eq!(one.closes(), [(nobody, Close::TooManyConnections)]);
    one.hub.leave(one.now, nobody);
    enter(&mut one, Some("b")).expect("room");
    enter(&mut one, None).expect("room");
    assert_eq!(enter(&mut one, Some("c")).err(), Some(Close::TooManyConnections));
    one.hub.leave(one.now, first);
    enter(&mut one, Some("a")).expect("room again");
}

#[test]
fn the_twentieth_mistake_in_ten_seconds_is_the_last() {
    let mut one = One::new();
    let a = one.enter("a");
    for _ in 0..19 {
        one.say(a, "nonsense");
        one.now += Duration::from_millis(500);
    }
    one.now += Duration::from_secs(1);
    one.say(a, "nonsense");
    assert!(one.closes().is_empty(), "the first was more than ten seconds ago");
    one.say(a, "nonsense");
    assert_eq!(one.closes(), [], "as was the second");
    one.say(a, "nonsense");
    assert_eq!(one.closes(), [(a, Close::PolicyViolation)]);
    let told = one.read(a);
    assert_eq!(told.matches("invalid_json").count(), 22, "each is told, the last too");
}

#[test]
fn who_says_too_much_is_told_when_to_go_on() {
    let mut one = with(|limits| {
        limits.messages_per_second = 10;
        limits.messages_burst = 3;
    });
    let a = one.enter("a");
    for _ in 0..3 {
        one.say(a, r#"{"type":"heartbeat"}"#);
    }
    one.read(a);
    one.say(a, r#"{"type":"heartbeat","id":"1"}"#);
    let told = one.read(a);
    assert!(told.contains(r#""id":"1","payload":{"code":"rate_limited""#), "{told}");
    assert!(told.contains(r#""retryable":true,"retryAfterMs":100}"#), "{told}");
    one.now += Duration::from_millis(100);
    one.say(a, r#"{"type":"heartbeat","id":"1"}"#);
    assert!(one.read(a).starts_with(r#"{"type":"heartbeat""#));
}

#[test]
fn rooms_are_bounded_by_socket_and_by_user() {
    let mut one = with(|limits| {
        limits.rooms_per_socket_max = 2;
        limits.rooms_per_user_max = 3;
    });
    let (a, again, b) = (one.enter("a"), one.enter("a"), one.enter("b"));
    one.join(a, "public.1");
    one.join(a, "public.2");
    one.say(a, r#"{"type":"join_room","room":"public.3"}"#);
    assert!(one.read(a).contains("too_many_rooms"));
    one.join(again, "public.3");
    one.say(again, r#"{"type":"join_room","room":"public.4"}"#);
    assert!(one.read(again).contains("too_many_rooms"), "the user has made three");
    one.join(b, "public.4");
    one.join(again, "public.4");
    one.hub.leave(one.now, a);
    one.hub.leave(one.now, again);
    let again = one.enter("a");
    one.join(again, "public.5");
}

#[test]
fn who_does_not_read_is_closed_and_what_waits_for_it_dropped() {
    let mut one = with(|limits| limits.outbox_bytes_max = 4096);
    let (slow, quick) = (one.enter("slow"), one.enter("quick"));
    one.join(slow, "public.x");
    one.join(quick, "public.x");
    let payload = "x".repeat(1000);
    for _ in 0..5 {
        one.say(quick, &format!(r#"{{"type":"room_message","room":"public.x","payload":"{payload}"}}"#));
        assert!(one.read(quick).contains("ack"));
    }
    assert_eq!(one.closes(), [(slow, Close::SlowConsumer)]);
    assert_eq!(one.read(slow), "");
    assert_eq!(one.hub.counts().frame_bytes, 0, "nothing waits for anybody");
}

#[test]
fn what_was_missed_is_lost_where_it_does_not_fit() {
    let mut one = with(|limits| limits.outbox_bytes_max = 8 << 10);
    let a = one.enter("a");
    let mut epochs = Vec::new();
    for room in ["public.a", "public.b", "public.c"] {
        one.say(a, &format!(r#"{{"type":"join_room","room":"{room}"}}"#));
        let joined = one.read(a);
        let epoch = joined.split(r#""epoch":""#).nth(1).and_then(|rest| rest.split('"').next()).expect("an epoch");
        epochs.push((room, epoch.to_owned()));
        for _ in 0..3 {
            one.say(a, &format!(r#"{{"type":"room_message","room":"{room}","payload":"{}"}}"#, "x".repeat(1000)));
            one.read(a);
        }
    }
    let b = one.enter("b");
    one.read(b);
    for (room, epoch) in &epochs {
        let recover = format!(r#"{{"recover":{{"epoch":"{epoch}","seq":0}}}}"#);
        one.say(b, &format!(r#"{{"type":"join_room","room":"{room}","payload":{recover}}}"#));
    }
    assert_eq!(one.closes(), [], "it would come back and ask for the same again");
    let told = one.read(b);
    assert_eq!([told.matches(r#""recovered":true"#).count(), told.matches(r#""recovered":false"#).count()], [2, 1]);
}

#[test]
fn past_the_budget_of_the_shard_the_slowest_goes_first() {
    let mut one = with(|limits| limits.frames_bytes_max = 8192);
    let (slow, slower, quick) = (one.enter("slow"), one.enter("slower"), one.enter("quick"));
    for socket in [slow, slower, quick] {
        one.join(socket, "public.x");
    }
    one.join(slower, "public.y");
    one.join(quick, "public.y");
    let payload = "x".repeat(1000);
    one.say(quick, &format!(r#"{{"type":"room_message","room":"public.y","payload":"{payload}"}}"#));
    let mut closes = Vec::new();
    for _ in 0..7 {
        one.say(quick, &format!(r#"{{"type":"room_message","room":"public.x","payload":"{payload}"}}"#));
        one.read(quick);
        closes.extend(one.closes());
    }
    assert_eq!(closes[0], (slower, Close::SlowConsumer));
    assert!(one.hub.counts().frame_bytes <= 8192);
}

/// A frame that was begun is finished before the close; while it is, it counts.
#[test]
fn who_was_closed_and_holds_the_budget_is_cut_before_others_are_closed() {
    let mut one = with(|limits| limits.frames_bytes_max = 8192);
    let (slow, quick) = (one.enter("slow"), one.enter("quick"));
    one.join(slow, "public.x");
    one.join(quick, "public.x");
    one.join(quick, "public.y");
    let say = |one: &mut One, room: &str, length| {
        let payload = "x".repeat(length);
        one.say(quick, &format!(r#"{{"type":"room_message","room":"{room}","payload":"{payload}"}}"#));
    };
    say(&mut one, "public.x", 6000);
    one.read(quick);
    assert_eq!(one.hub.next_dirty(), Some(slow));
    one.hub.written(slow, 1);
    one.hub.set_blocked(slow, true);
    say(&mut one, "public.y", 2000);
    assert_eq!(
        one.effects().iter().map(|effect| format!("{effect:?}")).collect::<Vec<_>>(),
        [format!("{:?}", super::Effect::Close(slow, Close::SlowConsumer)), format!("{:?}", super::Effect::Cut(slow)),]
    );
    assert!(one.read(quick).contains("xxx"), "what waits for it is still there");
    assert!(one.hub.socket(slow).is_some_and(|socket| socket.outbox.is_empty()));
}

#[test]
fn acks_that_wait_count_as_their_sockets() {
    let limits = Rc::new(Limits { frames_bytes_max: 8192, ..Limits::default() });
    let plan = Plan { limits, ..Plan::default() };
    let [mut here, mut there] = [0, 1].map(|shard| super::hub_of(shard, 2, plan.clone()));
    let (near, far, now) = (super::room_at(0), super::room_at(1), super::Instant::START);
    let [asker, quick] = ["asker", "quick"].map(|user| {
        let identity = Some(identity(&plan, user));
        let socket = here.enter(now, Entrance { handle: (), network: HOME, identity, window_bits: None });
        let socket = socket.expect("there is room");
        for room in [&near, &far] {
            here.handle_text(now, socket, &format!(r#"{{"type":"join_room","room":"{room}"}}"#));
        }
        while let Some(super::Effect::Letter(1, letter)) = here.poll_effect() {
            there.handle_letter(now, 0, letter);
        }
        while let Some(super::Effect::Letter(0, letter)) = there.poll_effect() {
            here.handle_letter(now, 1, letter);
        }
        socket
    });
    let say = |here: &mut super::Hub<()>, id: usize, room: &RoomName| {
        here.go_on(now);
        let text = format!(r#"{{"type":"room_message","id":"{id}","room":"{room}","payload":""}}"#);
        here.handle_text(now, asker, &text);
        super::read(here, asker);
        super::read(here, quick);
    };
    // The first is never answered.
    say(&mut here, 0, &far);
    for id in 1..100 {
        say(&mut here, id, &near);
    }
    let closes = std::iter::from_fn(|| here.poll_effect()).filter_map(|effect| match effect {
        super::Effect::Close(socket, close) => Some((socket, close)),
        _ => None,
    });
    assert_eq!(closes.collect::<Vec<_>>(), [(asker, Close::SlowConsumer)]);
}

#[test]
fn who_is_silent_is_pinged_and_then_taken_for_dead() {
    let mut one = One::new();
    let a = one.enter("a");
    let due = one.hub.socket_due(a).since(one.now);
    assert!(due >= Duration::from_secs(20) && due <= Duration::from_secs(25), "{due:?}");
    one.now += due;
    one.hub.handle_socket_timeout(one.now, a);
    assert!(matches!(one.effects()[..], [super::Effect::Ping(key)] if key == a));
    assert_eq!(one.hub.socket_due(a), super::Instant::START + Duration::from_mins(1));
    one.hub.heard(one.now, a);
    assert_eq!(one.hub.socket_due(a), one.now + due, "any sign of life counts");
    one.now += due;
    one.hub.handle_socket_timeout(one.now, a);
    one.effects();
    one.now += Duration::from_mins(1);
    one.hub.handle_socket_timeout(one.now, a);
    assert_eq!(one.closes(), [(a, Close::NoPong)]);
}

#[test]
fn a_blocked_socket_waits_for_its_turn_and_others_are_served_in_order() {
    let mut one = One::new();
    let (a, b, c) = (one.enter("a"), one.enter("b"), one.enter("c"));
    assert_eq!(one.hub.next_dirty(), Some(a));
    one.hub.set_blocked(a, true);
    assert_eq!((one.hub.next_dirty(), one.hub.next_dirty(), one.hub.next_dirty()), (Some(b), Some(c), None));
    one.hub.written(b, 1);
    one.hub.set_blocked(a, false);
    assert_eq!((one.hub.next_dirty(), one.hub.next_dirty(), one.hub.next_dirty()), (Some(b), Some(a), None));
}

#[test]
fn a_message_is_timed_until_the_last_who_reads_has_it() {
    let mut one = One::new();
    let sockets = ["a", "b", "c"].map(|user| one.enter(user));
    for socket in sockets {
        one.join(socket, "public.x");
    }
    while one.hub.next_dirty().is_some() {}
    for socket in sockets {
        one.read(socket);
    }
    let [a, b, c] = sockets;
    one.hub.set_blocked(b, true);
    assert_eq!((one.hub.next_fanned_out(), one.hub.counts().backlog), (None, 0));
    let at = one.now;
    one.say(a, r#"{"type":"room_message","room":"public.x","payload":1}"#);
    assert_eq!(one.hub.counts().backlog, 2, "who does not read is not waited for");
    for socket in [a, c] {
        assert_eq!(one.hub.next_fanned_out(), None);
        one.now += Duration::from_millis(1);
        assert_eq!(one.hub.next_dirty(), Some(socket));
        one.read(socket);
    }
    assert_eq!((one.hub.next_fanned_out(), one.hub.next_fanned_out()), (Some(at), None));
    // Where nobody reads there is nothing to time.
    one.hub.set_blocked(a, true);
    one.hub.set_blocked(c, true);
    one.say(a, r#"{"type":"room_message","room":"public.x","payload":2}"#);
    assert_eq!((one.hub.counts().backlog, one.hub.next_fanned_out()), (0, None));
}

#[test]
fn a_message_that_was_begun_is_whole_in_time_whatever_else_comes() {
    let mut one = One::new();
    let (slow, quick) = (one.enter("slow"), one.enter("quick"));
    let begun = one.now;
    let within = one.plan.limits.message_within;
    for second in 0..10 {
        for socket in [slow, quick] {
            one.hub.heard(one.now, socket);
            one.hub.hold_unfinished(one.now, socket, 1000 + second);
            assert_eq!(one.hub.socket_due(socket), begun + within, "pieces and pongs do not move it");
        }
        one.now += Duration::from_secs(1);
    }
    // This one's message is whole, and what came behind it is of another.
    one.say(quick, r#"{"type":"heartbeat"}"#);
    one.hub.hold_unfinished(one.now, quick, 10);
    for socket in [slow, quick] {
        one.hub.handle_socket_timeout(one.now, socket);
    }
    assert_eq!(one.closes(), [(slow, Close::PolicyViolation)]);
    assert_eq!((one.hub.counts().unfinished_bytes, one.hub.socket_due(quick)), (10, one.now + within));
    one.hub.hold_unfinished(one.now, slow, 1000);
    assert_eq!(one.hub.counts().unfinished_bytes, 10, "nothing is held for who is closed");
    one.hub.hold_unfinished(one.now, quick, 0);
    one.now += within;
    one.hub.handle_socket_timeout(one.now, quick);
    assert_eq!((one.closes(), one.hub.counts().unfinished_bytes), (vec![], 0), "at rest it may be silent");
}

#[test]
fn past_what_all_sockets_hold_unfinished_those_with_most_are_closed() {
    let budget = 1 << 20;
    let mut one = with(|limits| limits.unfinished_bytes_max = budget);
    let small = one.enter("small");
    one.hub.hold_unfinished(one.now, small, 1000);
    let mut closes = Vec::new();
    for n in 0..1000 {
        let socket = one.enter(&format!("u{n}"));
        one.hub.hold_unfinished(one.now, socket, 1);
        one.hub.hold_unfinished(one.now, socket, 65_536);
        let held = one.hub.counts().unfinished_bytes;
        assert!(held <= budget, "{held} after {n}");
        closes.extend(one.closes());
    }
    assert!(closes.len() > 980, "{}", closes.len());
    assert!(closes.iter().all(|&(socket, close)| socket != small && close == Close::TryLater), "{closes:?}");
}

#[test]
fn each_shard_may_hold_what_one_socket_says() {
    let limits = Limits { unfinished_bytes_max: 1, ..Limits::default() };
    assert_eq!(limits.of_shard(64).unfinished_bytes_max, 2 * limits.message_bytes_max);
}

/// So many sockets in one room.
fn room_of(members: usize, pushes_per_turn: usize) -> (One, Vec<super::SocketKey>) {
    let mut one = with(|limits| limits.pushes_per_turn = pushes_per_turn);
    let sockets: Vec<_> = (0..members).map(|n| one.enter(&format!("u{n}"))).collect();
    for &socket in &sockets {
        one.join(socket, "public.x");
    }
    one.hub.go_on(one.now);
    (one, sockets)
}

#[test]
fn a_turn_queues_so_many_frames_and_one_message_for_all_its_members() {
    let (mut one, sockets) = room_of(100, 250);
    let say = r#"{"type":"room_message","id":"1","room":"public.x","payload":1}"#;
    let before = one.hub.counts().deliveries;
    let mut said = 0;
    while one.hub.takes_messages() {
        one.hub.handle_text(one.now, sockets[0], &say.replace('1', &said.to_string()));
        said += 1;
    }
    let queued = one.hub.counts().deliveries - before;
    assert_eq!((said, queued), (3, 3 * 101), "each is queued for all, and acknowledged");
    // Whoever does not heed it is heard in order, in the turns that come.
    for n in said..20 {
        one.hub.handle_text(one.now, sockets[0], &say.replace('1', &n.to_string()));
    }
    assert_eq!(one.hub.counts().deliveries - before, queued);
    let mut turns = 0;
    while one.hub.is_behind() {
        let before = one.hub.counts().deliveries;
        one.hub.go_on(one.now);
        assert!(one.hub.counts().deliveries - before <= 250 + 101);
        turns += 1;
    }
    assert!((6..=8).contains(&turns), "{turns}");
    let told = one.read(sockets[7]);
    let seqs: Vec<&str> = told
        .lines()
        .filter(|line| line.contains("room_message"))
        .filter_map(|line| line.split(r#""seq":"#).nth(1))
        .collect();
    let seqs: Vec<u64> = seqs.iter().filter_map(|rest| rest.split(',').next()?.parse().ok()).collect();
    assert_eq!(seqs, (1..=20).collect::<Vec<u64>>());
}

#[test]
fn who_leaves_while_letters_wait_hears_nothing_behind_it_and_who_comes_nothing_from_before() {
    let (mut one, sockets) = room_of(4, 1);
    for n in 0..10 {
        one.hub.handle_text(
            one.now,
            sockets[0],
            &format!(r#"{{"type":"room_message","room":"public.x","payload":{n}}}"#),
        );
    }
    one.hub.handle_text(one.now, sockets[1], r#"{"type":"leave_room","room":"public.x"}"#);
    let late = one.enter("late");
    one.hub.handle_text(one.now, late, r#"{"type":"join_room","room":"public.x"}"#);
    for n in 10..20 {
        one.hub.handle_text(
            one.now,
            sockets[0],
            &format!(r#"{{"type":"room_message","room":"public.x","payload":{n}}}"#),
        );
    }
    while one.hub.is_behind() {
        one.hub.go_on(one.now);
    }
    let told = one.read(sockets[1]);
    assert!(told.lines().last().is_some_and(|line| line.contains(r#""type":"left""#)), "{told}");
    let told = one.read(late);
    let lines: Vec<&str> = told.lines().skip(1).collect();
    assert!(lines[0].contains(r#""type":"joined""#) && lines[0].contains(r#""seq":10,"#), "{told}");
    assert_eq!(lines.len(), 11, "{told}");
    assert!(lines[1].contains(r#""seq":11,"#) && lines[10].contains(r#""seq":20,"#), "{told}");
}

#[test]
fn what_is_brought_to_who_comes_back_counts_too() {
    let (mut one, sockets) = room_of(1, 50);
    let mut epoch = String::new();
    for _ in 0..60 {
        one.say(sockets[0], r#"{"type":"room_message","room":"public.x","payload":1}"#);
        let told = one.read(sockets[0]);
        told.split(r#""epoch":""#).nth(1).and_then(|rest| rest.split('"').next()).expect("one").clone_into(&mut epoch);
    }
    let back = one.enter("back");
    for (seq, is_spent) in [(60, false), (0, true)] {
        let recover = format!(r#"{{"recover":{{"epoch":"{epoch}","seq":{seq}}}}}"#);
        one.say(back, &format!(r#"{{"type":"join_room","room":"public.x","payload":{recover}}}"#));
        assert_eq!(one.hub.takes_messages(), !is_spent, "{seq}");
        assert!(one.read(back).contains(r#""recovered":true"#));
        one.say(back, r#"{"type":"leave_room","room":"public.x"}"#);
    }
}

/// What was missed comes at once, in one letter or behind a hole, and is for all members all the same.
#[test]
fn what_was_missed_is_queued_in_slices_too() {
    const MEMBERS: u64 = 20;
    let limits = Rc::new(Limits { pushes_per_turn: 50, ..Limits::default() });
    let plan = Plan { limits, ..Plan::default() };
    let [mut here, mut home] = [0, 1].map(|shard| super::hub_of(shard, 2, plan.clone()));
    let room = super::room_at(1);
    let now = super::Instant::START;
    // Questions for what was missed that have not reached the home yet.
    let (held, holds) = (Local::new(Vec::new()), Cell::new(false));
    let exchange = |here: &mut super::Hub<()>, home: &mut super::Hub<()>, loses: &dyn Fn(&RoomLetter) -> bool| {
        let mut pulls = 0;
        loop {
            here.go_on(now);
            home.go_on(now);
            let (to_home, to_here) = (here.poll_effect(), home.poll_effect());
            if to_home.is_none() && to_here.is_none() {
                break pulls;
            }
            if let Some(super::Effect::Letter(1, letter)) = to_home {
                let is_pull = matches!(letter, RoomLetter::Pull(_));
                pulls += usize::from(is_pull);
                if is_pull && holds.get() {
                    held.with(|held| held.push(letter));
                } else {
                    home.handle_letter(now, 0, letter);
                }
            }
            if let Some(super::Effect::Letter(0, letter)) = to_here
                && !loses(&letter)
            {
                let before = here.counts().deliveries;
                here.handle_letter(now, 1, letter);
                let queued = here.counts().deliveries - before;
                assert!(queued < 50 + MEMBERS, "{queued}");
                let mut turns = 0;
                while here.is_behind() {
                    let before = here.counts().deliveries;
                    here.go_on(now);
                    assert!(here.counts().deliveries - before < 50 + MEMBERS);
                    turns += 1;
                }
                assert!(queued < 50 || turns > 0);
            }
        }
    };
    let sockets: Vec<_> = (0..MEMBERS)
        .map(|n| {
            let identity = Some(identity(&plan, &format!("u{n}")));
            let socket = here.enter(now, Entrance { handle: (), network: HOME, identity, window_bits: None });
            let socket = socket.expect("there is room");
            here.handle_text(now, socket, &format!(r#"{{"type":"join_room","room":"{room}"}}"#));
            exchange(&mut here, &mut home, &|_| false);
            super::read(&mut here, socket);
            socket
        })
        .collect();
    let say = |here: &mut super::Hub<()>| {
        here.handle_text(now, sockets[0], &format!(r#"{{"type":"room_message","room":"{room}","payload":1}}"#));
    };
    let is_of = |letter: &RoomLetter, seqs: std::ops::Range<u64>| matches!(letter, RoomLetter::Deliver(message) if seqs.contains(&message.position.seq));
    // All but the last are lost and pulled; of the second lot the first is, and the others come early.
    for lost in [1..30, 31..32] {
        let mut pulls = 0;
        holds.set(lost.start == 31);
        for _ in 0..30 {
            say(&mut here);
            pulls += exchange(&mut here, &mut home, &|letter| is_of(letter, lost.clone()));
        }
        for pull in held.with(std::mem::take) {
            home.handle_letter(now, 0, pull);
        }
        pulls += exchange(&mut here, &mut home, &|_| false);
        assert_eq!(pulls, 1, "nothing that waits here is asked for again");
    }
    for &socket in &sockets {
        let told = super::read(&mut here, socket);
        let seqs = told.iter().filter(|text| text.starts_with(r#"{"type":"room_message""#)).map(|text| {
            let rest = text.split(r#""seq":"#).nth(1).expect("a number");
            rest.split(',').next().expect("some").parse().expect("a number")
        });
        assert_eq!(seqs.collect::<Vec<u64>>(), (1..=60).collect::<Vec<u64>>());
    }
}

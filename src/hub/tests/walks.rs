//! What is done for all rooms or sockets is done for some of them in each turn.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::super::{
    Effect, Entrance, Plan, SocketKey,
    bus::{BusAnswer, BusRequest, BusUsers},
    events::EventPlan,
    letters::KEPT_PER_SHARD,
    limits::Limits,
    rules::{Permits, Policy},
    walk::PLACES_PER_TURN,
};
use super::{Instant, One, bus, plan_of};

/// More than two turns take.
const MANY: usize = 700;

fn limits() -> Limits {
    let (rooms_per_socket_max, rooms_per_user_max) = (MANY, MANY);
    Limits { rooms_per_socket_max, rooms_per_user_max, messages_per_second: u32::MAX, ..Limits::default() }
}

/// The default plan but for these limits.
fn plan() -> Plan {
    Plan { limits: Rc::new(limits()), ..plan_of(Policy::default()) }
}

/// So many users with a socket each.
fn with_sockets(count: usize) -> (One, Vec<SocketKey>) {
    let mut one = One::with(plan());
    let sockets = (0..count).map(|user| one.enter(&format!("u{user}"))).collect();
    one.effects();
    (one, sockets)
}

/// How many more there are with each turn that is taken, to the end: `done` counts them.
fn turns(one: &mut One, mut done: impl FnMut(&mut One) -> usize) -> Vec<usize> {
    let mut before = 0;
    let mut more = Vec::new();
    loop {
        let now = done(one);
        more.push(now - before);
        before = now;
        if !one.hub.is_behind() {
            return more;
        }
        one.hub.go_on(one.now);
    }
}

/// The same of sockets that are told that something is due earlier.
fn dues(one: &mut One) -> Vec<usize> {
    let mut told = BTreeSet::new();
    turns(one, |one| {
        told.extend(one.effects().into_iter().filter_map(|effect| match effect {
            Effect::Due(key) => Some(key),
            _ => None,
        }));
        told.len()
    })
}

fn are_slices(turns: &[usize], of: usize) {
    let places = PLACES_PER_TURN as usize;
    let wanted: Vec<usize> = (0..of).step_by(places).map(|from| places.min(of - from)).collect();
    assert_eq!(turns, wanted);
}

#[test]
fn rooms_take_other_rules_in_slices_and_what_clients_say_waits_for_it() {
    let (mut one, sockets) = with_sockets(1);
    for room in 0..MANY {
        one.join(sockets[0], &format!("public.{room}"));
    }
    one.hub.go_on(one.now);
    assert!(one.hub.takes_messages());
    let mut policy = Policy::default();
    policy.history.messages_max = 3;
    one.hub.adopt(one.now, Plan { limits: Rc::new(limits()), ..plan_of(policy.clone()) });
    let done = |one: &mut One| {
        let count = one.hub.homes.iter().filter(|(_, home)| *home.policy() == policy).count();
        assert_eq!(one.hub.takes_messages(), count == MANY);
        assert!(one.hub.takes_letters());
        count
    };
    are_slices(&turns(&mut one, done), MANY);
}

#[test]
fn sockets_get_other_permits_in_slices_and_what_clients_say_waits_for_it() {
    let (mut one, sockets) = with_sockets(MANY);
    let none = Permits::none();
    one.hub.expire_permits();
    let done = |one: &mut One| {
        one.hub.renew_permits(|()| Some(none.clone()));
        let of = |one: &mut One, key| one.hub.socket(key).is_some_and(|socket| socket.permits == none);
        let count = sockets.iter().filter(|&&key| of(one, key)).count();
        assert_eq!((one.hub.takes_messages(), one.hub.has_old_permits()), (count == MANY, count < MANY));
        count
    };
    are_slices(&turns(&mut one, done), MANY);
}

#[test]
fn events_of_those_who_are_there_already_come_in_slices_and_once() {
    let (mut one, sockets) = with_sockets(MANY);
    one.enter("u0");
    one.join(sockets[0], "public.x");
    one.effects();
    let mut keys = BTreeSet::new();
    let events = EventPlan { rooms: true, users: true, grace: Duration::from_secs(5) };
    one.hub.adopt(one.now, Plan { events, ..plan() });
    let done = |one: &mut One| {
        for effect in one.effects() {
            if let Effect::Event(event) = effect {
                assert!(keys.insert(event.key.clone()), "{event:?}");
            }
        }
        keys.len() - 1
    };
    are_slices(&turns(&mut one, done), MANY);
    // Another shard asks for those who are at home there: it is alone here, and so there are none.
    one.hub.handle_ask_users(1);
    while one.hub.is_behind() {
        one.hub.go_on(one.now);
    }
    assert!(one.effects().is_empty());
}

#[test]
fn times_that_have_become_earlier_are_told_in_slices() {
    let (mut one, sockets) = with_sockets(MANY);
    let due = one.hub.socket_due(sockets[0]);
    let sooner = Limits { ping_every: Duration::from_secs(5), ..limits() };
    one.hub.adopt(one.now, Plan { limits: Rc::new(sooner), ..plan() });
    assert!(one.hub.socket_due(sockets[0]) < due);
    are_slices(&dues(&mut one), MANY);
    one.hub.adopt(one.now, plan());
    assert!(one.effects().is_empty(), "later they see by themselves");
}

#[test]
fn a_drain_tells_sockets_in_slices() {
    let (mut one, sockets) = with_sockets(MANY);
    for &socket in &sockets {
        one.read(socket);
    }
    let window = Duration::from_secs(70);
    one.hub.drain(one.now, window);
    are_slices(&dues(&mut one), MANY);
    let slots = sockets.iter().map(|&socket| one.hub.sockets.all.get(socket).expect("open").slot);
    let slots: Vec<u64> = slots.map(|slot| slot.since(one.now).as_millis().try_into().expect("soon")).collect();
    assert_eq!(slots, (1..=MANY as u64).map(|turn| turn * 100).collect::<Vec<_>>());
    assert!(one.read(sockets[MANY - 1]).contains("reconnect"));
}

/// A member of many rooms of which the bus says that others are there.
fn on_bus() -> One {
    let mut one = bus::on_bus(plan());
    let socket = one.enter("a");
    for room in 0..MANY {
        one.say(socket, &format!(r#"{{"type":"join_room","room":"public.{room}"}}"#));
        let read = bus::read_asked(&mut one);
        let others = bus::others(&[("n_1", "b"), ("n_2", "b")]);
        bus::stand_with(&mut one, &read, BusUsers { others, ..BusUsers::default() });
        one.read(socket);
    }
    one.effects();
    one
}

#[test]
fn an_instance_that_is_gone_is_taken_out_of_rooms_in_slices_and_others_after_it() {
    let mut one = on_bus();
    for node in ["n_1", "n_2", "n_1", "n_3"] {
        one.hub.handle_bus(one.now, BusAnswer::Gone(node.into()));
    }
    let without = |node: &'static str| {
        move |one: &mut One| one.hub.homes.iter().filter(|(_, home)| !home.knows_node(node)).count()
    };
    let (first, second) = (without("n_1"), without("n_2"));
    let mut both = (0, 0);
    let done = |one: &mut One| {
        let now = (first(one), second(one));
        assert!(now.1 == 0 || now.0 == MANY, "one after the other");
        let more = now.0 + now.1 - both.0 - both.1;
        assert!(more <= PLACES_PER_TURN as usize, "{now:?}");
        both = now;
        now.0 + now.1
    };
    turns(&mut one, done);
    assert_eq!(both, (MANY, MANY));
}

#[test]
fn rooms_are_told_in_slices_that_the_bus_has_gone_or_come() {
    let mut one = on_bus();
    for is_up in [false, true] {
        let armed = |one: &One| one.hub.homes.iter().map(|(_, home)| home.armed).collect::<Vec<Instant>>();
        one.now += Duration::from_secs(10);
        let mut before = armed(&one);
        one.hub.bus_is_up(one.now, is_up);
        let (mut touched, mut slices) = (0, 0);
        while touched < MANY {
            let after = armed(&one);
            let count = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            assert!((1..=128).contains(&count), "{count} of {touched}, {is_up}");
            (touched, slices, before) = (touched + count, slices + 1, after);
            one.now += Duration::from_millis(10);
            one.hub.walk_bus(one.now);
            let asked = one.effects().into_iter().filter(|effect| matches!(effect, Effect::Bus(BusRequest::Read(_))));
            assert!(asked.count() <= 128 * usize::from(is_up) * 2);
        }
        assert_eq!(slices, 6);
    }
}

#[test]
fn what_did_not_go_is_sent_again_in_slices() {
    const SOCKETS: usize = 3000;
    let mut now = Instant::START;
    let plan = Plan { events: EventPlan { rooms: false, users: true, grace: Duration::ZERO }, ..plan() };
    let mut here = super::hub_of(0, 2, plan.clone());
    for user in 0..SOCKETS {
        let identity = Some(super::identity(&plan, &format!("u{user}")));
        let entrance = Entrance { handle: (), network: super::HOME, identity, window_bits: None };
        here.enter(now, entrance).expect("there is room");
    }
    let letters = |here: &mut super::Hub<()>| {
        let effects = std::iter::from_fn(|| here.poll_effect());
        let letters = effects.filter_map(|effect| match effect {
            Effect::Letter(to, letter) => Some((to, letter)),
            _ => None,
        });
        letters.collect::<Vec<_>>()
    };
    let mut left = letters(&mut here);
    let all = left.len();
    assert!(all > 2 * KEPT_PER_SHARD, "counts of users, and that they are online: {all}");
    for is_lost in [true, true, false, false, false, false, false] {
        for (to, letter) in std::mem::take(&mut left) {
            if is_lost {
                here.letter_dropped(now, to, letter);
            }
        }
        now += Duration::from_millis(100);
        here.handle_timeout(now);
        left = letters(&mut here);
        assert!(left.len() <= 3 * KEPT_PER_SHARD, "{}", left.len());
    }
    assert_eq!((left.len(), here.counts().kept), (0, 0));
}

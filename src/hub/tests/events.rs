//! Lifecycle events as the driver gets them.

use std::time::Duration;

use super::super::{
    Effect, Entrance, Hub, Plan,
    events::{Event, EventPlan},
    letter::RoomLetter,
};
use super::{HOME, Instant, One, hub_of, identity};

const GRACE: Duration = Duration::from_secs(5);

fn plan() -> Plan {
    Plan { events: EventPlan { rooms: true, users: true, grace: GRACE }, ..Plan::default() }
}

fn events(one: &mut One) -> Vec<String> {
    let events = one.effects().into_iter().filter_map(|effect| match effect {
        Effect::Event(Event { json, key, .. }) => Some(format!("{key} {json}")),
        _ => None,
    });
    events.collect()
}

#[test]
fn whoever_comes_is_told_at_once_and_whoever_leaves_after_the_grace() {
    let mut one = One::with(plan());
    let a = one.enter("a");
    let [online] = &events(&mut one)[..] else { panic!("one event") };
    assert_eq!(
        online,
        r#"n1:user:a:1 {"type":"user.online","userId":"a","n":1,"at":"2026-11-23T10:00:00.000Z","node":"n1"}"#
    );
    one.join(a, "public.x");
    let [occupied] = &events(&mut one)[..] else { panic!("one event") };
    assert!(
        occupied.starts_with(r#"n1:room:public.x:1 {"type":"room.occupied","room":"public.x","n":1,"#),
        "{occupied}"
    );
    let b = one.enter("a");
    one.join(b, "public.x");
    one.hub.leave(one.now, a);
    one.hub.leave(one.now, b);
    assert_eq!(events(&mut one), Vec::<String>::new());
    one.now += GRACE;
    assert!(one.hub.poll_timeout().is_some_and(|due| due <= one.now));
    one.hub.handle_timeout(one.now);
    let gone = events(&mut one).join("\n");
    assert!(gone.contains(r#""room.vacated","room":"public.x","n":2"#), "{gone}");
    assert!(gone.contains(r#""user.offline","userId":"a","n":2"#), "{gone}");
}

#[test]
fn with_a_reload_those_who_are_there_are_told() {
    let mut one = One::new();
    let a = one.enter("a");
    one.join(a, "public.x");
    assert_eq!(events(&mut one), Vec::<String>::new(), "off by default");
    one.hub.adopt(one.now, plan());
    assert_eq!(events(&mut one).len(), 2);
    one.hub.adopt(one.now, plan());
    assert_eq!(events(&mut one), Vec::<String>::new(), "once");
    one.hub.adopt(one.now, Plan::default());
    one.hub.leave(one.now, a);
    one.now += GRACE;
    one.hub.handle_timeout(one.now);
    assert_eq!(events(&mut one), Vec::<String>::new(), "off again");
}

/// Two shards; the user is at home on the second and has a socket on the first. In either order of the reloads.
#[test]
fn shards_that_reload_one_after_the_other_leave_nobody_out() {
    let user = (0..1000).map(|number| format!("u{number}")).find(|user| super::super::name::home_of(user, 2) == 1);
    let user = user.expect("some");
    for order in [[0, 1], [1, 0]] {
        let mut hubs = [0, 1].map(|shard| hub_of(shard, 2, Plan::default()));
        let now = Instant::START;
        let identity = Some(identity(&Plan::default(), &user));
        hubs[0].enter(now, Entrance { handle: (), network: HOME, identity, window_bits: None }).expect("room");
        let mut told = 0;
        for shard in order {
            hubs[shard].adopt(now, plan());
            told += exchange(&mut hubs, now);
        }
        assert_eq!(told, 1, "{order:?}");
    }
}

/// Carries letters until there are none; how many events came.
fn exchange(hubs: &mut [Hub<()>; 2], now: Instant) -> usize {
    let mut told = 0;
    loop {
        let mut letters: Vec<(usize, usize, RoomLetter)> = Vec::new();
        for (from, hub) in hubs.iter_mut().enumerate() {
            while let Some(effect) = hub.poll_effect() {
                match effect {
                    Effect::Letter(to, letter) => letters.push((from, to, letter)),
                    Effect::Event(_) => told += 1,
                    _ => {}
                }
            }
        }
        if letters.is_empty() {
            return told;
        }
        for (from, to, letter) in letters {
            hubs[to].handle_letter(now, from, letter);
        }
    }
}

//! Lifecycle events as the driver gets them.

use std::time::Duration;

use super::super::{
    Effect, Entrance, Hub, Plan,
    bus::{BusAnswer, BusRequest},
    events::{Event, EventPlan, EventsAnswer, EventsRequest, KeptEvent, Subject},
    letter::RoomLetter,
    name::RoomName,
    position::{Epoch, Position},
};
use super::{HOME, Instant, One, hub_of, hub_of_bus, identity};

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

/// What the bus is told of events.
fn told_to_bus(hub: &mut Hub<()>) -> Vec<String> {
    let requests = std::iter::from_fn(|| hub.poll_effect()).filter_map(|effect| match effect {
        Effect::Bus(BusRequest::Events(request)) => Some(*request),
        Effect::Event(event) => panic!("the bus decides, but {event:?}"),
        _ => None,
    });
    requests.map(|request| format!("{request:?}")).collect()
}

#[test]
fn with_a_bus_it_is_told_who_is_here_until_it_has_heard_it() {
    let (mut hub, mut now) = (hub_of_bus(0, 1, plan(), 1), Instant::START);
    let entrance =
        Entrance { handle: (), network: HOME, identity: Some(identity(&Plan::default(), "a")), window_bits: None };
    let a = hub.enter(now, entrance).expect("room");
    let is = |is_here: bool| [format!("Is {{ subject: User(\"a\"), is_here: {is_here} }}")];
    assert_eq!(told_to_bus(&mut hub), is(true));
    let lost = |is_here| {
        let request = EventsRequest::Is { subject: Subject::User("a".into()), is_here };
        BusRequest::Events(Box::new(request))
    };
    hub.leave(now, a);
    hub.bus_dropped(now, lost(true));
    now += Duration::from_secs(1);
    hub.handle_timeout(now);
    assert_eq!(told_to_bus(&mut hub), is(true), "within the grace");
    hub.bus_dropped(now, lost(true));
    now += GRACE;
    hub.handle_timeout(now);
    let told = told_to_bus(&mut hub);
    assert_eq!(told.last(), is(false).first(), "as it is then: {told:?}");
    // What has become of an event is told again too.
    let position = Position { epoch: Epoch::parse("k3"), seq: 7 };
    hub.event_is_done(position, true);
    assert_eq!(told_to_bus(&mut hub), ["Taken(Position { epoch: k3, seq: 7 })"]);
    hub.bus_dropped(now, BusRequest::Events(Box::new(EventsRequest::Taken(position))));
    now += Duration::from_secs(1);
    hub.handle_timeout(now);
    assert_eq!(told_to_bus(&mut hub), ["Taken(Position { epoch: k3, seq: 7 })"]);
}

#[test]
fn what_the_bus_has_decided_is_sent_under_its_number() {
    let mut hub = hub_of_bus(0, 1, plan(), 1);
    let position = Position { epoch: Epoch::parse("k3"), seq: 7 };
    let subject = Subject::Room(RoomName::parse("public.x").expect("a name"));
    let (is_there, n, at_unix_ms) = (false, 4, super::BEGIN_UNIX_MS);
    let event = EventsAnswer::Event(KeptEvent { position, subject, is_there, n, at_unix_ms, node: "n2".into() });
    hub.handle_bus(Instant::START, BusAnswer::Events(Box::new(event)));
    let Some(Effect::Event(event)) = hub.poll_effect() else { panic!("it is sent") };
    assert_eq!((&*event.key, event.position), ("k3:room:public.x:4", Some(position)));
    assert_eq!(
        &*event.json,
        r#"{"type":"room.vacated","room":"public.x","n":4,"at":"2026-11-23T10:00:00.000Z","node":"n2","epoch":"k3"}"#
    );
}

#[test]
fn what_is_not_looked_at_any_more_is_not_here_for_the_bus() {
    let (mut hub, now) = (hub_of_bus(0, 1, plan(), 1), Instant::START);
    let entrance =
        Entrance { handle: (), network: HOME, identity: Some(identity(&Plan::default(), "a")), window_bits: None };
    hub.enter(now, entrance).expect("room");
    told_to_bus(&mut hub);
    hub.adopt(now, Plan::default());
    assert_eq!(told_to_bus(&mut hub), [r#"Is { subject: User("a"), is_here: false }"#]);
    hub.adopt(now, plan());
    assert_eq!(told_to_bus(&mut hub), [r#"Is { subject: User("a"), is_here: true }"#]);
}

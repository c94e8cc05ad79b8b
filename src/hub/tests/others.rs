//! What is asked of a user's sockets on all shards and instances.

use std::sync::Arc;

use super::super::{
    Answer, Close, Effect, Entrance, Hub, ServiceMessage, SocketKey,
    bus::{BusAnswer, BusRequest},
    letter::RoomLetter,
    others::{Others, OthersAnswer, OthersRequest, UserOrder},
};
use super::{HOME, Instant, One, Plan, hub_of_bus, identity, read};

/// Two shards of one instance that shares its rooms with others.
struct Two([Hub<()>; 2]);

impl Two {
    fn new() -> Self {
        Self([0, 1].map(|shard| hub_of_bus(shard, 2, Plan::default(), 1)))
    }

    fn enter(&mut self, shard: usize, user: &str) -> SocketKey {
        let identity = Some(identity(&Plan::default(), user));
        let entrance = Entrance { handle: (), network: HOME, identity, window_bits: None };
        let socket = self.0[shard].enter(Instant::START, entrance).expect("there is room");
        read(&mut self.0[shard], socket);
        socket
    }

    /// Carries letters until there are none; what else there is to do.
    fn effects(&mut self) -> Vec<Effect> {
        let mut rest = Vec::new();
        loop {
            let mut letters: Vec<(usize, usize, RoomLetter)> = Vec::new();
            for (from, hub) in self.0.iter_mut().enumerate() {
                while let Some(effect) = hub.poll_effect() {
                    match effect {
                        Effect::Letter(to, letter) => letters.push((from, to, letter)),
                        other => rest.push(other),
                    }
                }
            }
            if letters.is_empty() {
                return rest;
            }
            for (from, to, letter) in letters {
                self.0[to].handle_letter(Instant::START, from, letter);
            }
        }
    }

    fn hear(&mut self, shard: usize, answer: OthersAnswer) {
        self.0[shard].handle_bus(Instant::START, BusAnswer::Others(Box::new(answer)));
    }
}

fn is_told(effects: &[Effect], wanted: Answer) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Told { asker: 7, answer } if *answer == wanted))
}

#[test]
fn a_kick_waits_for_all_shards_and_for_the_other_instances() {
    let mut two = Two::new();
    two.enter(0, "a");
    two.enter(1, "a");
    let ask = |two: &mut Two| {
        two.0[0].kick_for(Instant::START, 7, &Arc::from("a"));
        let effects = two.effects();
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Told { .. })), "the others are waited for");
        let asked = effects.into_iter().find_map(|effect| match effect {
            Effect::Bus(BusRequest::Others(request)) => Some(*request),
            _ => None,
        });
        let Some(OthersRequest::Ask { ticket, order: UserOrder::Close, .. }) = asked else { panic!("{asked:?}") };
        ticket
    };
    let ticket = ask(&mut two);
    let others = Some(Others { asked: 2, answered: 1 });
    two.hear(0, OthersAnswer::Told { ticket, count: 3, others });
    assert!(is_told(&two.effects(), Answer::Sockets { count: 5, asked: 2, answered: 2, others }));
    let ticket = ask(&mut two);
    let lost = OthersRequest::Ask { ticket, user: "a".into(), order: UserOrder::Close };
    two.0[0].bus_dropped(Instant::START, BusRequest::Others(Box::new(lost)));
    assert!(is_told(&two.effects(), Answer::Sockets { count: 0, asked: 2, answered: 2, others: None }));
    assert_eq!(two.0[0].counts().asks, 0);
}

#[test]
fn another_instance_is_answered_for_all_shards_and_asks_no_others() {
    let mut two = Two::new();
    let sockets = [two.enter(0, "a"), two.enter(1, "a")];
    two.effects();
    let say = |text: &str, id: Option<&str>| OthersAnswer::Asked {
        number: 9,
        user: "a".into(),
        order: UserOrder::Say { text: text.into(), id: id.map(|id| ("shop".into(), id.into())) },
    };
    let answered = |effects: &[Effect]| match effects {
        [Effect::Bus(BusRequest::Others(request))] => match &**request {
            OthersRequest::Answer { number: 9, count } => *count,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    for text in ["1", "again"] {
        two.hear(1, say(text, Some("x")));
        assert_eq!(answered(&two.effects()), 2, "the same id is answered the same");
    }
    for (shard, socket) in sockets.into_iter().enumerate() {
        assert_eq!(read(&mut two.0[shard], socket), ["1"], "once");
    }
    two.hear(1, OthersAnswer::Asked { number: 9, user: "a".into(), order: UserOrder::Close });
    let effects = two.effects();
    let closed = effects.iter().filter(|effect| matches!(effect, Effect::Close(_, Close::Revoked))).count();
    assert_eq!(closed, 2);
    let rest: Vec<_> = effects.into_iter().filter(|effect| matches!(effect, Effect::Bus(_))).collect();
    assert_eq!(answered(&rest), 2);
}

#[test]
fn a_message_to_a_user_is_told_once_by_speaker_and_id_within_the_window() {
    let mut one = One::new();
    let a = one.enter("a");
    let say = |one: &mut One, user: &str, sub: &str, id: Option<&str>| {
        let message = ServiceMessage { sub, kind: "hello", id, payload: "1" };
        one.hub.publish_to_user_for(one.now, 7, &Arc::from(user), &message);
        let effects = one.effects();
        let count = effects.iter().find_map(|effect| match effect {
            Effect::Told { answer: Answer::Sockets { count, .. }, .. } => Some(*count),
            _ => None,
        });
        count.expect("it is answered")
    };
    let heard = |one: &mut One, socket: SocketKey| one.read(socket).matches("hello").count();
    one.read(a);
    assert_eq!(say(&mut one, "a", "shop", Some("1")), 1);
    // Whoever comes now was not there when it was said.
    let late = one.enter("a");
    one.read(late);
    assert_eq!(say(&mut one, "a", "shop", Some("1")), 1);
    assert_eq!((heard(&mut one, a), heard(&mut one, late)), (1, 0));
    for (sub, id) in [("shop", Some("2")), ("other", Some("1")), ("shop", None), ("shop", None)] {
        assert_eq!((say(&mut one, "a", sub, id), heard(&mut one, a)), (2, 1), "{sub} {id:?}");
    }
    let b = one.enter("as");
    assert_eq!((say(&mut one, "as", "hop", Some("1")), heard(&mut one, b)), (1, 1), "another user");
    one.now += one.plan.limits.ids_for;
    assert_eq!((say(&mut one, "a", "shop", Some("1")), heard(&mut one, a)), (2, 1));
    assert_eq!(one.hub.said_to_users.len(), 1, "the rest is forgotten");
}

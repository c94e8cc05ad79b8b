//! The hub as its driver sees it.
#![expect(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "a test that panics has failed"
)]

use std::num::NonZero;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

mod bus;
mod events;
mod instances;
mod limits;
mod others;
mod points;
mod sim;
mod walks;

use super::{
    Close, Effect, Entrance, Hub, Identity, PIECES_MAX, Plan, Secret, Setup, SocketKey,
    name::{Pattern, RoomName},
    rules::{Actions, Policy, Rule, Rules},
};
use crate::shard::Instant;

const HOME: NonZero<u64> = NonZero::<u64>::MIN;
/// Tests begin here: 2026-11-23T10:00:00Z.
const BEGIN_UNIX_MS: u64 = 1_795_428_000_000;

fn to_unix_ms(instant: Instant) -> u64 {
    BEGIN_UNIX_MS + instant.as_nanos() / 1_000_000
}

fn hub_of(shard: usize, shards: usize, plan: Plan) -> Hub<()> {
    let secret = Secret([1, 2]);
    Hub::new(Setup { shard, shards, node: "n1".into(), plan, seed: shard as u64, secret, to_unix_ms, has_bus: false })
}

/// The hub of an instance that shares its rooms with others.
fn hub_of_bus(shard: usize, shards: usize, plan: Plan, seed: u64) -> Hub<()> {
    let secret = Secret([1, 2]);
    Hub::new(Setup { shard, shards, node: "n1".into(), plan, seed, secret, to_unix_ms, has_bus: true })
}

/// Whose rooms `public.*` have this policy; in them all may do all.
fn plan_of(policy: Policy) -> Plan {
    let pattern = Pattern::parse("public.*").expect("a pattern");
    let rule = Rule { pattern, allow: Actions::ALL, roles: Box::default(), permissions: Box::default(), policy };
    Plan { rules: Rc::new(Rules::new(vec![rule])), ..Plan::default() }
}

/// A room at home on this one of two shards.
fn room_at(home: usize) -> RoomName {
    let names = (0..).map(|number| RoomName::parse(&format!("public.{number}")).expect("a name"));
    names.into_iter().find(|name| name.home(2) == home).expect("some")
}

fn identity(plan: &Plan, user: &str) -> Identity {
    let expires = Duration::from_hours(1);
    Identity {
        user: Arc::from(user),
        session: Some(Arc::from(format!("s_{user}"))),
        permits: plan.rules.permits(|_| false, |_| false),
        expires: Instant::START + expires,
        expires_unix_s: BEGIN_UNIX_MS / 1000 + expires.as_secs(),
    }
}

/// A hub alone, its sockets, and a clock.
struct One {
    hub: Hub<()>,
    plan: Plan,
    now: Instant,
}

impl One {
    fn new() -> Self {
        Self::with(Plan::default())
    }

    fn with(plan: Plan) -> Self {
        Self { hub: hub_of(0, 1, plan.clone()), plan, now: Instant::START }
    }

    fn enter(&mut self, user: &str) -> SocketKey {
        let identity = Some(identity(&self.plan, user));
        self.hub
            .enter(self.now, Entrance { handle: (), network: HOME, identity, window_bits: None })
            .expect("there is room")
    }

    fn say(&mut self, socket: SocketKey, text: &str) {
        self.hub.go_on(self.now);
        self.hub.handle_text(self.now, socket, text);
    }

    /// What the socket is told, a frame a line.
    fn read(&mut self, socket: SocketKey) -> String {
        read(&mut self.hub, socket).join("\n")
    }

    /// Brings a socket into a room; what it was told until then is read.
    fn join(&mut self, socket: SocketKey, room: &str) {
        self.say(socket, &format!(r#"{{"type":"join_room","room":"{room}"}}"#));
        let told = self.read(socket);
        assert!(told.contains(r#""type":"joined""#), "{told}");
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.hub.poll_effect()).collect()
    }

    fn closes(&mut self) -> Vec<(SocketKey, Close)> {
        let effects = std::iter::from_fn(|| self.hub.poll_effect());
        effects
            .filter_map(|effect| if let Effect::Close(key, close) = effect { Some((key, close)) } else { None })
            .collect()
    }
}

/// Takes all out of an outbox; the texts of its frames.
fn read(hub: &mut Hub<()>, key: SocketKey) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let Some(socket) = hub.socket(key) else { return texts };
        let mut pieces = [std::io::IoSlice::new(&[]); PIECES_MAX];
        let count = socket.outbox.slices(&mut pieces);
        let bytes: Vec<u8> = pieces[..count].iter().flat_map(|piece| piece.iter().copied()).collect();
        if bytes.is_empty() {
            return texts;
        }
        hub.written(key, bytes.len());
        let mut rest = &bytes[..];
        while let [0x81, length, ..] = *rest {
            let (header, length) = match length {
                126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
                127 => {
                    (10, usize::try_from(u64::from_be_bytes(rest[2..10].try_into().expect("eight"))).expect("short"))
                }
                short => (2, usize::from(short)),
            };
            texts.push(String::from_utf8(rest[header..header + length].to_vec()).expect("text"));
            rest = &rest[header + length..];
        }
        assert!(rest.is_empty(), "whole text frames: {}", rest.escape_ascii());
    }
}

#[test]
fn two_in_a_room_hear_what_one_says() {
    let mut one = One::new();
    let (a, b) = (one.enter("a"), one.enter("b"));
    assert!(one.read(a).starts_with(r#"{"type":"welcome""#));
    one.read(b);
    one.say(a, r#"{"type":"join_room","id":"1","room":"public.sale"}"#);
    one.say(b, r#"{"type":"join_room","id":"2","payload":{"room":"public.sale"}}"#);
    let joined = one.read(b);
    assert!(joined.starts_with(r#"{"type":"joined","id":"2","room":"public.sale","epoch":""#), "{joined}");
    assert!(joined.contains(r#""seq":0,"payload":{"members":2},"#), "{joined}");
    one.read(a);
    one.say(a, r#"{"type":"room_message","id":"3","room":"public.sale","payload":{"any":"json"}}"#);
    let (of_a, of_b) = (one.read(a), one.read(b));
    assert!(of_a.contains(r#"{"type":"ack","id":"3","room":"public.sale","seq":1,"#), "{of_a}");
    assert!(of_b.contains(r#""userId":"a","payload":{"any":"json"},"#), "{of_b}");
    assert!(of_a.contains(&of_b), "{of_a}");
    one.hub.leave(one.now, a);
    one.hub.leave(one.now, b);
    assert!(one.closes().is_empty());
    one.now += Duration::from_hours(1);
    one.hub.handle_timeout(one.now);
    let counts = one.hub.counts();
    assert_eq!((counts.sockets, counts.users, counts.rooms, counts.homes, counts.frame_bytes), (0, 0, 0, 0, 0));
}

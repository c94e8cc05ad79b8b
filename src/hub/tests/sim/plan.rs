//! What a simulation is made with, and what has to have happened in it.

use std::ops::AddAssign;
use std::rc::Rc;
use std::time::Duration;

use super::super::super::{
    Plan,
    events::EventPlan,
    limits::Limits,
    name::Pattern,
    pointer::Pointer,
    rules::{Actions, History, Policy, Rule, Rules, SlowPolicy},
};

/// How often things happened, so that a simulation in which nothing does is found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) messages: usize,
    pub(super) gaps: usize,
    pub(super) continuities: usize,
    pub(super) presence_events: usize,
    pub(super) joins: usize,
    pub(super) recovered: usize,
    pub(super) unrecovered: usize,
    pub(super) acks: usize,
    pub(super) errors: usize,
    pub(super) renewals: usize,
    pub(super) forbidden: usize,
    pub(super) lost: usize,
    pub(super) pulls: usize,
    pub(super) kicked: usize,
    pub(super) slow: usize,
    pub(super) answers: usize,
    pub(super) cancelled: usize,
    pub(super) drained: usize,
    pub(super) events: usize,
    pub(super) deflated: usize,
    /// Letters that were left for another turn.
    pub(super) held: usize,
}

impl Seen {
    /// Whether all of it happened.
    pub(super) fn is_everything(&self) -> bool {
        let (said, came) = (
            [self.messages, self.gaps, self.continuities, self.presence_events],
            [self.joins, self.recovered, self.unrecovered],
        );
        let (told, done) =
            ([self.acks, self.errors, self.renewals, self.forbidden], [self.lost, self.pulls, self.kicked, self.slow]);
        let all = [
            &said[..],
            &came,
            &told,
            &done,
            &[self.answers, self.cancelled, self.drained, self.events],
            &[self.deflated, self.held],
        ];
        all.iter().all(|some| some.iter().all(|&count| count > 0))
    }
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.gaps += other.gaps;
        self.continuities += other.continuities;
        self.presence_events += other.presence_events;
        self.joins += other.joins;
        self.recovered += other.recovered;
        self.unrecovered += other.unrecovered;
        self.acks += other.acks;
        self.errors += other.errors;
        self.renewals += other.renewals;
        self.forbidden += other.forbidden;
        self.lost += other.lost;
        self.pulls += other.pulls;
        self.kicked += other.kicked;
        self.slow += other.slow;
        self.answers += other.answers;
        self.cancelled += other.cancelled;
        self.drained += other.drained;
        self.events += other.events;
        self.deflated += other.deflated;
        self.held += other.held;
    }
}

/// Small bounds, so that all of them are met.
pub(super) fn plan(rng: &mut fastrand::Rng) -> Plan {
    let limits = Limits {
        outbox_bytes_max: *rng.choice(&[4096, 16 << 10, 1 << 20]).expect("some"),
        frames_bytes_max: *rng.choice(&[30 << 10, 256 << 20]).expect("some"),
        history_bytes_max: *rng.choice(&[8 << 10, 64 << 20]).expect("some"),
        pushes_per_turn: *rng.choice(&[1, 7, 4096]).expect("some"),
        messages_per_second: 10_000,
        messages_burst: 10_000,
        ..Limits::default()
    };
    let history = History {
        messages_max: *rng.choice(&[0, 3, 100]).expect("some"),
        bytes_max: *rng.choice(&[2 << 10, 256 << 10]).expect("some"),
        age_max: Duration::from_secs(*rng.choice(&[5, 600]).expect("some")),
    };
    let rule = |pattern: &str, slow: SlowPolicy, roles: &[&str], has_presence_events: bool| Rule {
        pattern: Pattern::parse(pattern).expect("a pattern"),
        allow: Actions::ALL,
        roles: roles.iter().map(|&role| role.into()).collect(),
        permissions: Box::default(),
        policy: Policy { slow, has_presence_events, history, ..Policy::default() },
    };
    let latest = SlowPolicy::Latest { key: Pointer::parse("/k").expect("a pointer") };
    let rules = Rules::new(vec![
        rule("public.a.*", SlowPolicy::Close, &[], false),
        rule("public.b.*", SlowPolicy::DropOldest, &["all"], true),
        rule("public.c.*", latest, &[], true),
    ]);
    let grace = Duration::from_millis(*rng.choice(&[0, 300, 5000]).expect("some"));
    let events = EventPlan { rooms: true, users: true, grace };
    Plan { limits: Rc::new(limits), rules: Rc::new(rules), events, ..Plan::default() }
}

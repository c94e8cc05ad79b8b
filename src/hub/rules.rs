//! Who may do what in which room, and how a room treats its messages: rules by pattern, from configuration.
//!
//! Who calls is checked elsewhere; here somebody is roles and permissions by name.

use std::rc::Rc;
use std::time::Duration;

use super::frame::Slow;
use super::name::Pattern;
use super::pointer::Pointer;
use crate::config::{self, Config};

/// What lets services push into every room, and with `:` and a pattern after it into those rooms.
const PUBLISH_PERMISSION: &str = "hub:publish";

/// What somebody wants to do in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Become a member.
    Join,
    /// Say something as a member.
    Publish,
    /// See who is there.
    Presence,
}

/// Some of the actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions(u8);

impl Actions {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// All of them.
    pub const ALL: Self = Self(0b111);

    /// These and this one.
    #[must_use]
    pub const fn with(self, action: Action) -> Self {
        Self(self.0 | 1 << action as u8)
    }

    /// Whether this is one of them.
    pub const fn has(self, action: Action) -> bool {
        self.0 & 1 << action as u8 != 0
    }
}

/// What rooms of a pattern allow, and how they treat messages. Part of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which rooms.
    pub pattern: Pattern,
    /// What is allowed in them.
    pub allow: Actions,
    /// To callers with one of these roles; to any user if there is none.
    pub roles: Box<[Box<str>]>,
    /// To callers with all of these permissions.
    pub permissions: Box<[Box<str>]>,
    /// How the rooms treat their messages.
    pub policy: Policy,
}

/// How a room treats its messages and members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What happens when a member's outbox is full.
    pub slow: SlowPolicy,
    /// Whether members are told who comes and goes.
    pub has_presence_events: bool,
    /// How long somebody may be gone before the others are told.
    pub presence_grace: Duration,
    /// How long the ids of messages are remembered at least; they are with the messages themselves too.
    pub ids_for: Duration,
    /// What is kept for those who come back.
    pub history: History,
}

/// What happens to a room's messages when a member's outbox is full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SlowPolicy {
    /// The socket is closed (4000).
    #[default]
    Close,
    /// The oldest go.
    DropOldest,
    /// Only the latest with each key stay.
    Latest {
        /// Where the key is in the payload.
        key: Pointer,
    },
}

impl SlowPolicy {
    /// The policy as one message has it.
    pub fn of_message(&self, payload: &str) -> Slow {
        match self {
            Self::Close => Slow::Close,
            Self::DropOldest => Slow::DropOldest,
            Self::Latest { key } => Slow::Latest(key.key(payload)),
        }
    }
}

/// How much of a room's past is kept; whichever bound is met first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// Messages.
    pub messages_max: usize,
    /// Bytes of their text.
    pub bytes_max: usize,
    /// How old they may be. After the last member left the room is kept so long.
    pub age_max: Duration,
}

impl Policy {
    /// As the configuration has it for the rooms of an entry, whose pointer it has checked.
    fn of(hub: &config::Hub, room: &config::HubRoom) -> Self {
        let key = || Pointer::parse(room.key.as_deref().unwrap_or_default());
        Self {
            slow: match room.slow_consumer {
                config::SlowConsumer::Close => SlowPolicy::Close,
                config::SlowConsumer::DropOldest => SlowPolicy::DropOldest,
                config::SlowConsumer::Latest => key().map_or(SlowPolicy::Close, |key| SlowPolicy::Latest { key }),
            },
            has_presence_events: room.presence_events,
            presence_grace: hub.presence_grace,
            ids_for: hub.dedup_window,
            history: History {
                messages_max: room.history_messages.unwrap_or(hub.history_messages) as usize,
                bytes_max: hub.history_bytes,
                age_max: room.history_age.unwrap_or(hub.history_age),
            },
        }
    }
}

#[cfg(test)]
impl Default for Policy {
    fn default() -> Self {
        Self::of(&Config::default().hub, &config::HubRoom::default())
    }
}

impl Rule {
    /// As the configuration has it, whose pattern it has checked.
    fn of(hub: &config::Hub, room: &config::HubRoom) -> Option<Self> {
        let allow = [(room.join, Action::Join), (room.publish, Action::Publish), (room.presence, Action::Presence)]
            .into_iter()
            .filter(|(is_allowed, _)| *is_allowed)
            .fold(Actions::NONE, |actions, (_, action)| actions.with(action));
        let boxed = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
        Some(Self {
            pattern: Pattern::parse(&room.pattern).ok()?,
            allow,
            roles: boxed(&room.roles),
            permissions: boxed(&room.permissions),
            policy: Policy::of(hub, room),
        })
    }
}

/// All rules, in their order. Immutable; on every shard as part of its plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    rules: Box<[Rule]>,
    /// For rooms that no rule names.
    otherwise: Policy,
}

impl Default for Rules {
    /// As they are where nothing is configured.
    fn default() -> Self {
        Self::of(&Config::default().hub)
    }
}

impl Rules {
    /// As the configuration has them.
    pub fn of(hub: &config::Hub) -> Self {
        let rules = hub.rooms.iter().filter_map(|room| Rule::of(hub, room)).collect();
        Self { rules, otherwise: Policy::of(hub, &config::HubRoom::default()) }
    }

    #[cfg(test)]
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        Self { rules: rules.into(), otherwise: Policy::default() }
    }

    /// How this room treats its messages: as the first rule says whose pattern it fits, whoever asks.
    pub fn policy(&self, room: &str) -> &Policy {
        self.rules.iter().find(|rule| rule.pattern.covers(room)).map_or(&self.otherwise, |rule| &rule.policy)
    }

    /// What a caller with these roles and permissions may do.
    pub fn permits(&self, has_role: impl Fn(&str) -> bool, has_permission: impl Fn(&str) -> bool) -> Permits {
        let applies = |rule: &&Rule| {
            (rule.roles.is_empty() || rule.roles.iter().any(|role| has_role(role)))
                && rule.permissions.iter().all(|permission| has_permission(permission))
        };
        Permits(self.rules.iter().filter(applies).map(|rule| (rule.pattern.clone(), rule.allow)).collect())
    }
}

/// What somebody may do: the rules that apply, without those that do not. Shared by all sockets of a shard with the same
/// rights, and older than its plan if that has changed since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permits(Rc<[(Pattern, Actions)]>);

impl Permits {
    /// Nothing at all: what a socket may do before its log-in.
    pub fn none() -> Self {
        Self(Rc::new([]))
    }

    /// Whether this user may do this: denied unless some rule allows it.
    #[inline]
    pub fn allow(&self, user: &str, room: &str, action: Action) -> bool {
        self.0.iter().any(|(pattern, allowed)| allowed.has(action) && pattern.matches(user, room))
    }
}

/// The permits that sockets of a shard hold, so that equal ones are one. One per shard.
#[derive(Debug, Default)]
pub struct PermitShelf(Vec<Permits>);

/// Different permits that are shared: one for each set of roles in use, and what two plans at a reload make of them.
const SHELF_MAX: usize = 64;

impl PermitShelf {
    /// The permits as others hold them already, if anybody does.
    pub fn share(&mut self, permits: Permits) -> Permits {
        if let Some(same) = self.0.iter().find(|same| **same == permits) {
            return same.clone();
        }
        if self.0.len() >= SHELF_MAX {
            self.0.retain(|held| Rc::strong_count(&held.0) > 1);
        }
        if self.0.len() < SHELF_MAX {
            self.0.push(permits.clone());
        }
        permits
    }
}

/// Whether a service with these permissions may push into this room.
pub fn may_push<'a>(permissions: impl IntoIterator<Item = &'a str>, room: &str) -> bool {
    permissions.into_iter().filter_map(|permission| permission.strip_prefix(PUBLISH_PERMISSION)).any(|scope| {
        scope.is_empty()
            || scope
                .strip_prefix(':')
                .and_then(|pattern| Pattern::parse(pattern).ok())
                .is_some_and(|pattern| !pattern.names_user() && pattern.covers(room))
    })
}

/// Whether a service with these permissions may push to users, who are in no pattern.
pub fn may_push_to_users<'a>(permissions: impl IntoIterator<Item = &'a str>) -> bool {
    permissions.into_iter().any(|permission| permission == PUBLISH_PERMISSION)
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const ACTIONS: [Action; 3] = [Action::Join, Action::Publish, Action::Presence];

    fn rule(pattern: &str, allow: &[Action], roles: &[&str], permissions: &[&str], slow: SlowPolicy) -> Rule {
        let names = |names: &[&str]| names.iter().map(|&name| name.into()).collect();
        Rule {
            pattern: Pattern::parse(pattern).expect("a pattern"),
            allow: allow.iter().fold(Actions::NONE, |all, &action| all.with(action)),
            roles: names(roles),
            permissions: names(permissions),
            policy: Policy { slow, ..Policy::default() },
        }
    }

    fn permits(rules: &Rules, roles: &[&str], permissions: &[&str]) -> Permits {
        rules.permits(|role| roles.contains(&role), |permission| permissions.contains(&permission))
    }

    /// What is allowed, by first letters.
    fn allowed(permits: &Permits, user: &str, room: &str) -> String {
        let letter = |action: &Action| match action {
            Action::Join => 'j',
            Action::Publish => 'p',
            Action::Presence => 'w',
        };
        ACTIONS.iter().filter(|&&action| permits.allow(user, room, action)).map(letter).collect()
    }

    #[test]
    fn by_default_there_are_public_rooms_and_ones_own() {
        let permits = permits(&Rules::default(), &[], &[]);
        assert_eq!(allowed(&permits, "42", "public.sale"), "jpw");
        assert_eq!(allowed(&permits, "42", "user.42.cart"), "jpw");
        for room in ["user.43.cart", "public", "orders.1", "user.42"] {
            assert_eq!(allowed(&permits, "42", room), "", "{room}");
        }
        assert_eq!(allowed(&Permits::none(), "42", "public.sale"), "");
    }

    #[test]
    fn whatever_some_rule_allows_is_allowed() {
        let rules = Rules::new(vec![
            rule("orders.*", &[Action::Join], &["user", "analyst"], &[], SlowPolicy::DropOldest),
            rule("orders.*", &[Action::Publish], &[], &["orders:write", "rooms"], SlowPolicy::Close),
            rule("orders.eu.*", &[Action::Presence], &["analyst"], &["rooms"], SlowPolicy::Close),
        ]);
        let allowed =
            |roles: &[&str], permissions: &[&str]| allowed(&permits(&rules, roles, permissions), "42", "orders.eu.1");
        assert_eq!(allowed(&[], &[]), "");
        assert_eq!(allowed(&["user"], &[]), "j");
        assert_eq!(allowed(&[], &["orders:write"]), "", "all of a rule's permissions");
        assert_eq!(allowed(&[], &["rooms", "orders:write"]), "p");
        assert_eq!(allowed(&["analyst"], &["rooms"]), "jw", "one of a rule's roles");
        assert_eq!(allowed(&["analyst"], &["rooms", "orders:write"]), "jpw");
    }

    #[test]
    fn the_first_rule_of_a_room_says_how_it_treats_messages() {
        let key = Pointer::parse("/symbol").expect("a pointer");
        let rules = Rules::new(vec![
            rule("user.{sub}.*", &[], &["nobody"], &[], SlowPolicy::DropOldest),
            rule("ticker.*", &[], &[], &[], SlowPolicy::Latest { key }),
            rule("*", &[], &[], &[], SlowPolicy::DropOldest),
            rule("public.*", &[], &[], &[], SlowPolicy::Close),
        ]);
        let slow = |room: &str| rules.policy(room).slow.of_message(r#"{"symbol":"ABC"}"#);
        assert_eq!(slow("user.42.cart"), Slow::DropOldest, "whoever's it is, and whoever may use it");
        assert_eq!(slow("ticker.1"), Slow::Latest(super::super::pointer::Key::of("ABC")));
        assert_eq!(slow("public.sale"), Slow::DropOldest);
        assert_eq!(Rules::default().policy("orders.1"), &Policy::default());
    }

    #[test]
    fn rooms_of_no_entry_are_as_the_hub_says() {
        let mut hub = Config::default().hub;
        hub.rooms = vec![config::HubRoom { history_messages: Some(3), ..config::HubRoom::new("public.*") }];
        (hub.dedup_window, hub.history_messages) = (Duration::from_hours(1), 7);
        let rules = Rules::of(&hub);
        let policy = |room: &str| (rules.policy(room).ids_for, rules.policy(room).history.messages_max);
        assert_eq!(policy("public.a"), (Duration::from_hours(1), 3));
        assert_eq!(policy("orders.1"), (Duration::from_hours(1), 7), "services push into these too");
    }

    #[test]
    fn equal_permits_are_one() {
        let mut shelf = PermitShelf::default();
        let rules = Rules::default();
        let [one, other] = [(); 2].map(|()| shelf.share(permits(&rules, &["user"], &[])));
        assert!(Rc::ptr_eq(&one.0, &other.0));
        let different = |at: usize| {
            let rules = Rules::new(vec![rule(&at.to_string(), &[], &[], &[], SlowPolicy::Close)]);
            permits(&rules, &[], &[])
        };
        let held: Vec<Permits> = (0..2 * SHELF_MAX).map(|at| shelf.share(different(at))).collect();
        assert_eq!(shelf.0.len(), SHELF_MAX, "bounded, whatever tokens hold");
        assert_eq!(held.last(), Some(&different(2 * SHELF_MAX - 1)));
        drop(held);
        shelf.share(different(0));
        shelf.share(different(SHELF_MAX));
        assert!(shelf.0.len() <= 3, "what nobody holds goes: {}", shelf.0.len());
    }

    #[test]
    fn pushing_is_permitted_by_pattern() {
        let may = |permissions: &[&str]| may_push(permissions.iter().copied(), "orders.1");
        assert!(may(&["hub:publish"]) && may(&["a", "hub:publish:orders.*"]) && may(&["hub:publish:orders.1"]));
        for permission in ["hub:publishing", "hub:publish:", "hub:publish:public.*", "hub:publish:{sub}.*", "hub", "*"]
        {
            assert!(!may(&[permission]), "{permission}");
        }
        assert!(may_push_to_users(["hub:publish"]) && !may_push_to_users(["hub:publish:*"]));
    }
}

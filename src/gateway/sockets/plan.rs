//! What the configuration says of the hub, compiled. Part of the plan; crosses to each shard with it.

use std::{rc::Rc, time::Duration};

use crate::{
    config::{self, Config, HubEventType, HubRoom, HubShare},
    hub::{
        self,
        events::{EventKind, EventPlan},
        limits::Limits,
        name::Pattern,
        pointer::Pointer,
        rules::{Action, Actions, History, Policy, Rule, Rules, SlowPolicy},
        types::{IdRule, ServiceAnswer, ServiceType, ServiceTypes},
    },
    telemetry::{metrics::Names, slots::MetricSlot},
};

/// The hub of an instance as every shard sets it up.
#[derive(Debug)]
pub(in crate::gateway) struct HubPlan {
    /// Whether there is one.
    pub(in crate::gateway) is_enabled: bool,
    /// Whether sockets are let in while the bus between instances is away.
    pub(in crate::gateway) opens_without_bus: bool,
    /// Whether messages are compressed for those who ask for it.
    pub(super) deflates: bool,
    /// The parameter of the query that may hold the token.
    pub(in crate::gateway) token_query: Option<Box<str>>,
    pub(super) limits: Limits,
    rules: Rules,
    types: ServiceTypes,
    /// By the index of the types.
    pub(in crate::gateway) services: Vec<Service>,
    /// Where lifecycle events go.
    pub(in crate::gateway) events: Option<EventsPlan>,
    presence_grace: Duration,
}

/// Where lifecycle events go, and which.
#[derive(Debug)]
pub(in crate::gateway) struct EventsPlan {
    pub(in crate::gateway) to: Service,
    kinds: Vec<HubEventType>,
    /// How many may wait, of the instance.
    pub(super) waiting_max: usize,
}

impl EventsPlan {
    /// Whether these are to be sent.
    pub(super) fn wants(&self, kind: EventKind) -> bool {
        self.kinds.contains(&match kind {
            EventKind::RoomOccupied => HubEventType::RoomOccupied,
            EventKind::RoomVacated => HubEventType::RoomVacated,
            EventKind::UserOnline => HubEventType::UserOnline,
            EventKind::UserOffline => HubEventType::UserOffline,
        })
    }
}

/// Where messages of a type go.
#[derive(Debug)]
pub(in crate::gateway) struct Service {
    /// What logs and metrics call it, where requests have their route.
    pub(in crate::gateway) name: String,
    pub(in crate::gateway) slot: MetricSlot,
    /// The index of its upstream.
    pub(in crate::gateway) upstream: usize,
    pub(super) path: Box<str>,
    pub(super) timeout: Duration,
    pub(super) has_key: bool,
    pub(super) share: HubShare,
}

impl HubPlan {
    pub(in crate::gateway) fn compile(config: &Config, upstreams: &[String], names: &mut Names) -> Self {
        let hub = &config.hub;
        let services = hub.services.iter().filter_map(|service| {
            let name = format!("{} (message)", service.type_name);
            Some(Service {
                slot: names.routes.claim(&name),
                name,
                upstream: upstreams.iter().position(|upstream| *upstream == service.upstream)?,
                path: service.path.as_str().into(),
                timeout: service.timeout,
                has_key: service.answer.is_none(),
                share: service.share,
            })
        });
        let services: Vec<Service> = services.collect();
        let events = hub.events_upstream.as_ref().and_then(|wanted| {
            let name = "lifecycle events".to_owned();
            Some(EventsPlan {
                to: Service {
                    slot: names.routes.claim(&name),
                    name,
                    upstream: upstreams.iter().position(|upstream| upstream == wanted)?,
                    path: hub.events_path.as_str().into(),
                    timeout: hub.events_timeout,
                    has_key: true,
                    share: HubShare::Nobody,
                },
                kinds: hub.events.clone(),
                waiting_max: hub.events_waiting_max as usize,
            })
        });
        let types = hub.services.iter().map(|service| ServiceType {
            name: service.type_name.as_str().into(),
            // The id of an event becomes the key by which the service knows it again.
            id: if service.answer.is_none() { IdRule::Header } else { IdRule::Required },
            answer: service.answer.as_deref().map_or(ServiceAnswer::Ack, |kind| ServiceAnswer::Response(kind.into())),
            waiting_max: service.waiting_max as usize,
        });
        Self {
            is_enabled: hub.enabled,
            opens_without_bus: hub.without_redis == config::WithoutRedis::Local,
            deflates: hub.deflate,
            token_query: hub.token_query.as_deref().map(Into::into),
            limits: limits(hub),
            rules: Rules::new(hub.rooms.iter().filter_map(|room| rule(hub, room)).collect()),
            types: ServiceTypes::new(types.collect()).unwrap_or_default(),
            services,
            events,
            presence_grace: hub.presence_grace,
        }
    }

    /// As one of so many shards has it: what counts for the instance is shared out, rounding up.
    pub(super) fn of_shard(&self, shards: usize) -> hub::Plan {
        let shards = shards.max(1);
        let limits = Limits {
            sockets_max: self.limits.sockets_max.div_ceil(u32::try_from(shards).unwrap_or(u32::MAX)),
            rooms_max: self.limits.rooms_max.div_ceil(shards),
            frames_bytes_max: self.limits.frames_bytes_max.div_ceil(shards),
            history_bytes_max: self.limits.history_bytes_max.div_ceil(shards),
            ..self.limits.clone()
        };
        let wants = |kind| self.events.as_ref().is_some_and(|events| events.wants(kind));
        let events = EventPlan {
            rooms: wants(EventKind::RoomOccupied) || wants(EventKind::RoomVacated),
            users: wants(EventKind::UserOnline) || wants(EventKind::UserOffline),
            grace: self.presence_grace,
        };
        let (rules, types) = (Rc::new(self.rules.clone()), Rc::new(self.types.clone()));
        hub::Plan { limits: Rc::new(limits), rules, types, events }
    }

    /// The places of its services in the metrics.
    pub(in crate::gateway) fn slots(&self) -> impl Iterator<Item = usize> {
        self.posts().map(|service| service.slot.index())
    }

    /// All that the hub sends to services: messages of each type, and events behind them.
    pub(super) fn posts(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().chain(self.events.iter().map(|events| &events.to))
    }

    /// Bytes of a message.
    pub(super) fn message_bytes_max(&self) -> u64 {
        self.limits.message_bytes_max as u64
    }

    /// Whether services may push messages of this type.
    pub(super) fn is_pushable(&self, kind: &str) -> bool {
        self.types.is_pushable(kind)
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }
}

fn limits(hub: &config::Hub) -> Limits {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Limits {
        message_bytes_max: hub.message_bytes_max,
        auth_within: hub.auth_timeout,
        anonymous_per_address_max: hub.unauthenticated_per_address_max,
        sockets_per_user_max: hub.sockets_per_user_max,
        sockets_max: hub.sockets_max,
        rooms_per_socket_max: hub.rooms_per_socket_max as usize,
        rooms_max: hub.rooms_max as usize,
        messages_per_second: hub.messages_per_s,
        messages_burst: hub.messages_per_s.saturating_mul(2),
        ping_every: hub.ping_interval,
        dead_after: hub.dead_after,
        outbox_bytes_max: hub.outbox_bytes_max,
        frames_bytes_max: size(hub.outboxes_bytes_max),
        history_bytes_max: size(hub.histories_bytes_max),
        ..Limits::default()
    }
}

/// The configuration has checked the patterns and pointers.
fn rule(hub: &config::Hub, room: &HubRoom) -> Option<Rule> {
    let allow = [(room.join, Action::Join), (room.publish, Action::Publish), (room.presence, Action::Presence)]
        .into_iter()
        .filter(|(is_allowed, _)| *is_allowed)
        .fold(Actions::NONE, |actions, (_, action)| actions.with(action));
    let boxed = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
    let slow = match room.slow_consumer {
        config::SlowConsumer::Close => SlowPolicy::Close,
        config::SlowConsumer::DropOldest => SlowPolicy::DropOldest,
        config::SlowConsumer::Latest => {
            SlowPolicy::Latest { key: Pointer::parse(room.key.as_deref().unwrap_or_default())? }
        }
    };
    Some(Rule {
        pattern: Pattern::parse(&room.pattern).ok()?,
        allow,
        roles: boxed(&room.roles),
        permissions: boxed(&room.permissions),
        policy: Policy {
            slow,
            has_presence_events: room.presence_events,
            presence_grace: hub.presence_grace,
            ids_for: hub.dedup_window,
            history: History {
                messages_max: room.history_messages.unwrap_or(hub.history_messages) as usize,
                bytes_max: hub.history_bytes,
                age_max: room.history_age.unwrap_or(hub.history_age),
            },
        },
    })
}

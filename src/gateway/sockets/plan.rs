//! What the configuration says of the hub, compiled. Part of the plan; crosses to each shard with it.

use std::{rc::Rc, time::Duration};

use crate::{
    config::{self, Config, HubEventType, HubShare},
    hub::{
        self,
        events::{EventKind, EventPlan},
        limits::Limits,
        rules::Rules,
        types::ServiceTypes,
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
    pub(in crate::gateway) waiting_max: usize,
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
    pub(super) share: HubShare,
    /// Whether the sender is told what it answers, and not only that it took the message.
    pub(super) has_answer: bool,
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
                share: service.share,
                has_answer: service.answer.is_some(),
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
                    share: HubShare::Nobody,
                    has_answer: false,
                },
                kinds: hub.events.clone(),
                waiting_max: hub.events_waiting_max as usize,
            })
        });
        Self {
            is_enabled: hub.enabled,
            opens_without_bus: hub.without_redis == config::WithoutRedis::Local,
            deflates: hub.deflate,
            token_query: hub.token_query.as_deref().map(Into::into),
            limits: Limits::of(hub),
            rules: Rules::of(hub),
            types: ServiceTypes::of(hub),
            services,
            events,
            presence_grace: hub.presence_grace,
        }
    }

    /// As one of so many shards has it.
    pub(super) fn of_shard(&self, shards: usize) -> hub::Plan {
        let wants = |kind| self.events.as_ref().is_some_and(|events| events.wants(kind));
        let events = EventPlan {
            rooms: wants(EventKind::RoomOccupied) || wants(EventKind::RoomVacated),
            users: wants(EventKind::UserOnline) || wants(EventKind::UserOffline),
            grace: self.presence_grace,
        };
        let (rules, types) = (Rc::new(self.rules.clone()), Rc::new(self.types.clone()));
        let limits = Rc::new(self.limits.of_shard(shards));
        hub::Plan { limits, rules, types, events }
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

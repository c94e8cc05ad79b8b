//! Types of messages: those of the dialect, and those that go to services.

use crate::config::{self, Config, HUB_TYPES, HubShare};

/// Characters of the name of a type.
pub const TYPE_NAME_BYTES_MAX: usize = 64;

/// Types of the dialect that go to services where they are configured to.
const SERVED: [&str; 2] = ["cart_event", "prediction_request"];
/// What comes back from one of them.
const SERVED_ANSWER: &str = "prediction_response";

fn is_type_name(name: &str) -> bool {
    (1..=TYPE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(super::name::is_name_byte)
}

/// What a type asks of a message's `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdRule {
    /// Nothing.
    Optional,
    /// There is one.
    Required,
    /// There is one, `[!-~]{1,64}`: it becomes part of a header.
    Header,
}

/// What a client gets when the service has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceAnswer {
    /// An `ack` with the status.
    Ack,
    /// The service's JSON as a message of this type.
    Response(Box<str>),
}

/// A type of messages that go to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceType {
    /// Its name.
    pub name: Box<str>,
    /// What it asks of the `id`.
    pub id: IdRule,
    /// What comes back.
    pub answer: ServiceAnswer,
    /// Messages of one socket that wait behind the one under way.
    pub waiting_max: usize,
}

/// The types that go to services, by their index. Immutable; part of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTypes(Box<[ServiceType]>);

/// As many types as one configuration may name.
pub const SERVICE_TYPES_MAX: usize = 64;

impl Default for ServiceTypes {
    /// As they are where nothing is configured.
    fn default() -> Self {
        Self::of(&Config::default().hub)
    }
}

impl ServiceTypes {
    /// As the configuration has them, which has checked them.
    pub fn of(hub: &config::Hub) -> Self {
        let types = hub.services.iter().map(|service| ServiceType {
            name: service.type_name.as_str().into(),
            // It becomes the key by which the service knows the message again; a call for several has none.
            id: if service.share == HubShare::Nobody { IdRule::Header } else { IdRule::Required },
            answer: service.answer.as_deref().map_or(ServiceAnswer::Ack, |kind| ServiceAnswer::Response(kind.into())),
            waiting_max: service.waiting_max as usize,
        });
        Self::new(types.collect()).unwrap_or_else(|| Self(Box::default()))
    }

    /// These, if each has a name that can be one, is there once, and is none of the dialect's own but `cart_event` and
    /// `prediction_request`.
    pub fn new(types: Vec<ServiceType>) -> Option<Self> {
        let is_free = |name: &str| is_type_name(name) && name != SERVED_ANSWER && !HUB_TYPES.contains(&name);
        let is_fit = |at: usize, kind: &ServiceType| {
            is_free(&kind.name) && types.iter().take(at).all(|earlier| earlier.name != kind.name)
        };
        let is_sound = types.len() <= SERVICE_TYPES_MAX && types.iter().enumerate().all(|(at, kind)| is_fit(at, kind));
        is_sound.then(|| Self(types.into()))
    }

    /// Whether a service may push messages of this type: they look like nothing else that a client is sent.
    pub fn is_pushable(&self, name: &str) -> bool {
        let is_served = |kind: &ServiceType| {
            *kind.name == *name || matches!(&kind.answer, ServiceAnswer::Response(answer) if **answer == *name)
        };
        is_type_name(name)
            && !HUB_TYPES.contains(&name)
            && !SERVED.contains(&name)
            && name != SERVED_ANSWER
            && !self.0.iter().any(is_served)
    }

    /// The type with this index.
    pub fn at(&self, index: usize) -> Option<&ServiceType> {
        self.0.get(index)
    }

    /// The index of the type of this name.
    #[inline]
    pub(super) fn find(&self, name: &str) -> Option<(usize, &ServiceType)> {
        self.0.iter().enumerate().find(|(_, kind)| *kind.name == *name)
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn types(names: &[&str]) -> Option<ServiceTypes> {
        let kind = |name: &&str| ServiceType {
            name: (*name).into(),
            id: IdRule::Optional,
            answer: ServiceAnswer::Ack,
            waiting_max: 1,
        };
        ServiceTypes::new(names.iter().map(kind).collect())
    }

    #[test]
    fn services_take_no_types_of_the_dialect() {
        assert!(types(&["orders.new", "a", "cart_event", "prediction_request"]).is_some());
        for name in HUB_TYPES.iter().chain([&SERVED_ANSWER]) {
            assert_eq!(types(&[name]), None, "{name}");
        }
        for names in [&["a", "a"][..], &[""], &["a b"], &["é"], &[&*"a".repeat(65)]] {
            assert_eq!(types(names), None, "{names:?}");
        }
        let many: Vec<String> = (0..=SERVICE_TYPES_MAX).map(|at| at.to_string()).collect();
        assert_eq!(types(&many.iter().map(String::as_str).collect::<Vec<_>>()), None);
    }

    #[test]
    fn services_push_no_types_of_the_dialect_nor_of_other_services() {
        let answer = ServiceAnswer::Response("price".into());
        let kind = ServiceType { name: "ask_price".into(), id: IdRule::Required, answer, waiting_max: 1 };
        let types = ServiceTypes::new(vec![kind]).expect("sound");
        for good in ["cart.saved", "Welcome", "prices", &"a".repeat(64)] {
            assert!(types.is_pushable(good), "{good}");
        }
        assert!(HUB_TYPES.iter().chain(&SERVED).all(|name| !types.is_pushable(name)));
        for bad in ["ask_price", "price", SERVED_ANSWER, "", "a b", "a\"", &"a".repeat(65)] {
            assert!(!types.is_pushable(bad), "{bad}");
        }
    }
}

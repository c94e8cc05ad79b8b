//! Types of messages: those of the dialect, and those that go to services.

/// Characters of the name of a type.
pub const TYPE_NAME_BYTES_MAX: usize = 64;

/// Every type of the dialect itself. Services can neither take these over nor push messages that look like them.
const OWN: [&str; 19] = [
    "auth",
    "auth_ok",
    "heartbeat",
    "join_room",
    "joined",
    "leave_room",
    "left",
    "room_message",
    "ack",
    "presence",
    "cart_event",
    "prediction_request",
    "prediction_response",
    "error",
    "welcome",
    "presence_event",
    "gap",
    "continuity",
    "reconnect",
];

/// Whether a service may push messages of this type.
pub fn is_pushable(name: &str) -> bool {
    is_type_name(name) && !OWN.contains(&name)
}

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
}

/// The types that go to services, by their index. Immutable; part of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTypes(Box<[ServiceType]>);

/// As many types as one configuration may name.
pub const SERVICE_TYPES_MAX: usize = 64;

impl Default for ServiceTypes {
    /// `cart_event` and `prediction_request`.
    fn default() -> Self {
        let cart_event = ServiceType { name: "cart_event".into(), id: IdRule::Header, answer: ServiceAnswer::Ack };
        let answer = ServiceAnswer::Response("prediction_response".into());
        let prediction = ServiceType { name: "prediction_request".into(), id: IdRule::Required, answer };
        Self(Box::new([cart_event, prediction]))
    }
}

impl ServiceTypes {
    /// These, if each has a name that can be one, is there once, and is none of the dialect's own but `cart_event` and
    /// `prediction_request`.
    pub fn new(types: Vec<ServiceType>) -> Option<Self> {
        const SERVED: [&str; 2] = ["cart_event", "prediction_request"];
        let is_free = |name: &str| is_type_name(name) && (!OWN.contains(&name) || SERVED.contains(&name));
        let is_fit = |at: usize, kind: &ServiceType| {
            is_free(&kind.name) && types.iter().take(at).all(|earlier| earlier.name != kind.name)
        };
        let is_sound = types.len() <= SERVICE_TYPES_MAX && types.iter().enumerate().all(|(at, kind)| is_fit(at, kind));
        is_sound.then(|| Self(types.into()))
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
mod tests {
    use super::*;

    fn types(names: &[&str]) -> Option<ServiceTypes> {
        let kind = |name: &&str| ServiceType { name: (*name).into(), id: IdRule::Optional, answer: ServiceAnswer::Ack };
        ServiceTypes::new(names.iter().map(kind).collect())
    }

    #[test]
    fn services_take_no_types_of_the_dialect() {
        assert!(types(&["orders.new", "a", "cart_event", "prediction_request"]).is_some());
        for name in OWN.iter().filter(|name| !matches!(**name, "cart_event" | "prediction_request")) {
            assert_eq!(types(&[name]), None, "{name}");
        }
        for names in [&["a", "a"][..], &[""], &["a b"], &["é"], &[&*"a".repeat(65)]] {
            assert_eq!(types(names), None, "{names:?}");
        }
        let many: Vec<String> = (0..=SERVICE_TYPES_MAX).map(|at| at.to_string()).collect();
        assert_eq!(types(&many.iter().map(String::as_str).collect::<Vec<_>>()), None);
    }

    #[test]
    fn services_push_no_types_of_the_dialect() {
        assert!(is_pushable("cart.saved") && is_pushable("Welcome") && is_pushable(&"a".repeat(64)));
        assert!(OWN.iter().all(|name| !is_pushable(name)));
        assert!(!is_pushable("") && !is_pushable("a b") && !is_pushable("a\"") && !is_pushable(&"a".repeat(65)));
    }
}

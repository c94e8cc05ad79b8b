//! What a client says: one message read from its text. Nothing is copied but what has to be unescaped.
//!
//! Whether it is allowed is for `rules.rs`, what comes of it for the hub.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::code::Code;
use super::json::{Unclear, given, is_too_deep, members, string};
use super::limits::ID_CHARACTERS_MAX;
use super::name::is_room_name;
use super::position::{Epoch, Position};
use super::types::{IdRule, ServiceTypes};

/// One message of a client. `userId`, `sessionId`, `timestamp` and whatever else it holds is passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientMessage<'a> {
    /// What its answer is to be called.
    pub id: Option<Cow<'a, str>>,
    /// What is wanted.
    pub request: Request<'a>,
}

/// What a client wants. A `room` can be a room's name; a `payload` is JSON as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// `auth`: this token counts from now on.
    Auth {
        /// The token.
        token: Cow<'a, str>,
    },
    /// `heartbeat`.
    Heartbeat,
    /// `join_room`.
    Join {
        /// The room.
        room: Cow<'a, str>,
        /// What the client has already; what follows is wanted.
        recover: Option<Position>,
    },
    /// `leave_room`.
    Leave {
        /// The room.
        room: Cow<'a, str>,
    },
    /// `room_message`.
    Publish {
        /// The room.
        room: Cow<'a, str>,
        /// For its members.
        payload: &'a str,
    },
    /// `presence`.
    Presence {
        /// The room.
        room: Cow<'a, str>,
    },
    /// A type that goes to a service.
    Service {
        /// Which, of the [`ServiceTypes`].
        index: usize,
        /// For the service.
        payload: &'a str,
    },
}

/// Defines the mistakes, so that a mistake, its code and what is said about it stand on one line.
macro_rules! mistakes {
    ($($(#[$doc:meta])* $name:ident = $code:ident, $sentence:literal;)*) => {
        /// What is wrong with a message.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mistake { $($(#[$doc])* $name,)* }

        impl Mistake {
            /// Every mistake, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What the `error` frame calls it.
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }

            /// What the `error` frame says.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)* }
            }
        }
    };
}

mistakes! {
    /// Not JSON.
    NotJson = InvalidJson, "the message is not JSON";
    /// JSON, but no object.
    NotAnObject = InvalidJson, "the message is not a JSON object";
    /// A member that is read is there twice, so that two readers could take it differently.
    MemberTwice = InvalidMessage, "a member of the message is there twice";
    /// No `type`, or none that is a text.
    TypeMissing = InvalidMessage, "the message has no type, or one that is not a text";
    /// No such type.
    TypeUnknown = UnknownType, "no message has this type";
    /// The `id` is no text of 1 to 64 characters.
    IdInvalid = InvalidId, "an id is a text of 1 to 64 characters";
    /// The type asks for an `id`.
    IdMissing = IdRequired, "messages of this type have an id";
    /// The `id` has characters that no header can have.
    IdNotPrintable = InvalidId, "the id of this type is 1 to 64 printable ASCII characters without spaces";
    /// No `room`, neither beside nor inside `payload`.
    RoomMissing = InvalidRoom, "the message names no room, neither beside payload nor in it";
    /// No room can be called so.
    RoomInvalid = InvalidRoom, "a room's name is 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', ':' and '-'";
    /// The type asks for a `payload`.
    PayloadMissing = InvalidPayload, "messages of this type have a payload";
    /// `payload` is nested too deeply.
    PayloadTooDeep = InvalidPayload, "the payload is nested deeper than 100 levels";
    /// `auth` without `payload.token`.
    TokenMissing = InvalidPayload, "the payload of auth has a token, a text";
    /// `payload.recover` is no position.
    RecoverInvalid = InvalidPayload, "recover is the position of a room: its epoch, a text, and its seq, a whole number";
}

/// A message that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused<'a> {
    /// Its id, as far as it has one that can be said again.
    pub id: Option<Cow<'a, str>>,
    /// What is wrong with it.
    pub mistake: Mistake,
}

impl From<Unclear> for Mistake {
    fn from(unclear: Unclear) -> Self {
        match unclear {
            Unclear::NoObject => Self::NotJson,
            Unclear::Twice => Self::MemberTwice,
        }
    }
}

impl<'a> ClientMessage<'a> {
    /// Reads a text. How long it may be is for whoever received it.
    pub fn parse(text: &'a str, types: &ServiceTypes) -> Result<Self, Refused<'a>> {
        let parts = Parts::read(text).map_err(|mistake| Refused { id: None, mistake })?;
        let id = parts.id().map_err(|mistake| Refused { id: None, mistake })?;
        match parts.request(id.as_deref(), types) {
            Ok(request) => Ok(Self { id, request }),
            Err(mistake) => Err(Refused { id, mistake }),
        }
    }
}

/// The members that are looked at, each as JSON; none where it is `null`, but for the payload.
struct Parts<'a> {
    kind: Option<&'a str>,
    id: Option<&'a str>,
    room: Option<&'a str>,
    payload: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn read(text: &'a str) -> Result<Self, Mistake> {
        if !text.trim_start_matches(JSON_SPACE).starts_with('{') {
            let is_json = serde_json::from_str::<&RawValue>(text).is_ok();
            return Err(if is_json { Mistake::NotAnObject } else { Mistake::NotJson });
        }
        let [kind, id, room, payload] = members(text, ["type", "id", "room", "payload"])?;
        Ok(Self { kind: given(kind), id: given(id), room: given(room), payload })
    }

    fn id(&self) -> Result<Option<Cow<'a, str>>, Mistake> {
        let Some(id) = self.id else { return Ok(None) };
        let id = string(id).filter(|id| !id.is_empty() && id.chars().count() <= ID_CHARACTERS_MAX);
        id.map(Some).ok_or(Mistake::IdInvalid)
    }

    fn request(&self, id: Option<&str>, types: &ServiceTypes) -> Result<Request<'a>, Mistake> {
        let kind = self.kind.and_then(string).ok_or(Mistake::TypeMissing)?;
        Ok(match &*kind {
            "room_message" => Request::Publish { room: self.room()?, payload: self.payload()? },
            "heartbeat" => Request::Heartbeat,
            "join_room" => {
                let room = self.room()?;
                let [recover] = self.inner(["recover"])?;
                Request::Join { room, recover: given(recover).map(position).transpose()? }
            }
            "leave_room" => Request::Leave { room: self.room()? },
            "presence" => Request::Presence { room: self.room()? },
            "auth" => {
                let [token] = self.inner(["token"])?;
                let token = token.and_then(string).filter(|token| !token.is_empty());
                Request::Auth { token: token.ok_or(Mistake::TokenMissing)? }
            }
            other => {
                let (index, kind) = types.find(other).ok_or(Mistake::TypeUnknown)?;
                match (kind.id, id) {
                    (IdRule::Required | IdRule::Header, None) => return Err(Mistake::IdMissing),
                    (IdRule::Header, Some(id)) if !id.bytes().all(|byte| byte.is_ascii_graphic()) => {
                        return Err(Mistake::IdNotPrintable);
                    }
                    _ => Request::Service { index, payload: self.payload()? },
                }
            }
        })
    }

    /// Members of `payload`, as far as it is an object.
    fn inner<const N: usize>(&self, names: [&str; N]) -> Result<[Option<&'a str>; N], Mistake> {
        match self.payload {
            Some(payload) if payload.starts_with('{') => Ok(members(payload, names)?),
            _ => Ok([None; N]),
        }
    }

    /// The room beside `payload`; where there is none, the one in it.
    fn room(&self) -> Result<Cow<'a, str>, Mistake> {
        let room = match self.room {
            Some(room) => room,
            None => self.inner(["room"])?.first().copied().and_then(given).ok_or(Mistake::RoomMissing)?,
        };
        string(room).filter(|room| is_room_name(room)).ok_or(Mistake::RoomInvalid)
    }

    fn payload(&self) -> Result<&'a str, Mistake> {
        let payload = self.payload.ok_or(Mistake::PayloadMissing)?;
        if is_too_deep(payload) { Err(Mistake::PayloadTooDeep) } else { Ok(payload) }
    }
}

/// The four bytes that JSON has for space.
const JSON_SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// `{"epoch": …, "seq": …}`. An epoch that none of ours is written as is [`Epoch::NONE`]: nothing is recovered from it.
fn position(json: &str) -> Result<Position, Mistake> {
    let [epoch, seq] = if json.starts_with('{') { members(json, ["epoch", "seq"])? } else { [None, None] };
    let epoch = epoch.and_then(string).map(|epoch| Epoch::parse(&epoch));
    // JSON has no `+` and no zeros before a number; what else is no `u64` (a sign, a fraction, an exponent) is no position.
    let seq = seq.and_then(|seq| seq.parse().ok());
    match (epoch, seq) {
        (Some(epoch), Some(seq)) => Ok(Position { epoch, seq }),
        _ => Err(Mistake::RecoverInvalid),
    }
}

/// Any bytes give a message within its bounds or a mistake that has a code, and never a panic.
#[cfg(any(test, fuzzing))]
pub fn fuzz_one(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let types = ServiceTypes::default();
    match ClientMessage::parse(text, &types) {
        Ok(message) => check_bounds(text, &message, &types),
        Err(refused) => {
            assert!(refused.id.is_none_or(|id| !id.is_empty() && id.len() <= text.len()));
            assert!(!refused.mistake.sentence().is_empty() && Code::ALL.contains(&refused.mistake.code()));
        }
    }
}

/// Panics if the message is one that was not to be taken.
#[cfg(any(test, fuzzing))]
fn check_bounds(text: &str, message: &ClientMessage<'_>, types: &ServiceTypes) {
    let id = message.id.as_deref();
    assert!(id.is_none_or(|id| (1..=ID_CHARACTERS_MAX).contains(&id.chars().count())));
    match &message.request {
        Request::Auth { token } => assert!(!token.is_empty()),
        Request::Heartbeat => {}
        Request::Join { room, .. } | Request::Leave { room } | Request::Presence { room } => {
            assert!(is_room_name(room));
        }
        Request::Publish { payload, .. } | Request::Service { payload, .. } => {
            assert!(text.contains(payload) && serde_json::from_str::<&RawValue>(payload).is_ok());
            assert!(!is_too_deep(payload));
        }
    }
    if let Request::Publish { room, .. } = &message.request {
        assert!(is_room_name(room));
    }
    if let Request::Service { index, .. } = message.request {
        let rule = types.at(index).map(|kind| kind.id);
        assert!(rule == Some(IdRule::Optional) || id.is_some());
        assert!(rule != Some(IdRule::Header) || id.is_some_and(|id| id.bytes().all(|byte| byte.is_ascii_graphic())));
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, clippy::panic, reason = "a test may panic")]
mod tests;

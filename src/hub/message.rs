//! What a client says: one message read from its text. Nothing is copied but what has to be unescaped.
//!
//! Whether it is allowed is for `rules.rs`, what comes of it for the hub.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::code::Code;
use super::limits::{DEPTH_MAX, ID_CHARACTERS_MAX};
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

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mistake {
    /// Not JSON.
    NotJson,
    /// JSON, but no object.
    NotAnObject,
    /// A member that is read is there twice, so that two readers could take it differently.
    MemberTwice,
    /// No `type`, or none that is a text.
    TypeMissing,
    /// No such type.
    TypeUnknown,
    /// The `id` is no text of 1 to 64 characters.
    IdInvalid,
    /// The type asks for an `id`.
    IdMissing,
    /// The `id` has characters that no header can have.
    IdNotPrintable,
    /// No `room`, neither beside nor inside `payload`.
    RoomMissing,
    /// No room can be called so.
    RoomInvalid,
    /// The type asks for a `payload`.
    PayloadMissing,
    /// `payload` is nested too deeply.
    PayloadTooDeep,
    /// `auth` without `payload.token`.
    TokenMissing,
    /// `payload.recover` is no position.
    RecoverInvalid,
}

impl Mistake {
    /// Every mistake, in the order of the documentation.
    pub const ALL: [Self; 14] = [
        Self::NotJson,
        Self::NotAnObject,
        Self::MemberTwice,
        Self::TypeMissing,
        Self::TypeUnknown,
        Self::IdInvalid,
        Self::IdMissing,
        Self::IdNotPrintable,
        Self::RoomMissing,
        Self::RoomInvalid,
        Self::PayloadMissing,
        Self::PayloadTooDeep,
        Self::TokenMissing,
        Self::RecoverInvalid,
    ];

    /// What the `error` frame calls it.
    pub const fn code(self) -> Code {
        match self {
            Self::NotJson | Self::NotAnObject => Code::InvalidJson,
            Self::MemberTwice | Self::TypeMissing => Code::InvalidMessage,
            Self::TypeUnknown => Code::UnknownType,
            Self::IdMissing => Code::IdRequired,
            Self::IdInvalid | Self::IdNotPrintable => Code::InvalidId,
            Self::RoomMissing | Self::RoomInvalid => Code::InvalidRoom,
            Self::PayloadMissing | Self::PayloadTooDeep | Self::TokenMissing | Self::RecoverInvalid => {
                Code::InvalidPayload
            }
        }
    }

    /// What the `error` frame says.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NotJson => "the message is not JSON",
            Self::NotAnObject => "the message is not a JSON object",
            Self::MemberTwice => "a member of the message is there twice",
            Self::TypeMissing => "the message has no type, or one that is not a text",
            Self::IdNotPrintable => "the id of this type is 1 to 64 printable ASCII characters without spaces",
            Self::RoomMissing => "the message names no room, neither beside payload nor in it",
            Self::PayloadMissing => "messages of this type have a payload",
            Self::PayloadTooDeep => "the payload is nested deeper than 100 levels",
            Self::TokenMissing => "the payload of auth has a token: {\"token\": \"...\"}",
            Self::RecoverInvalid => "recover is the position of a room: {\"epoch\": \"...\", \"seq\": 17}",
            Self::TypeUnknown | Self::IdMissing | Self::IdInvalid | Self::RoomInvalid => self.code().sentence(),
        }
    }
}

/// A message that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused<'a> {
    /// Its id, as far as it has one that can be said again.
    pub id: Option<Cow<'a, str>>,
    /// What is wrong with it.
    pub mistake: Mistake,
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
            Some(payload) if payload.starts_with('{') => members(payload, names),
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

/// A member that is there: `null` is as none.
fn given(json: Option<&str>) -> Option<&str> {
    json.filter(|&json| json != "null")
}

/// The text that a JSON string holds; nothing if this is none, or holds half a character.
fn string(json: &str) -> Option<Cow<'_, str>> {
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inside.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inside));
    }
    serde_json::from_str(json).ok().map(Cow::Owned)
}

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

/// Whether this JSON is nested deeper than may be.
fn is_too_deep(json: &str) -> bool {
    let opens = |byte: &u8| matches!(byte, b'[' | b'{');
    // Hardly any payload has so many brackets at all.
    if json.len() <= DEPTH_MAX || json.as_bytes().iter().filter(|byte| opens(byte)).count() <= DEPTH_MAX {
        return false;
    }
    let (mut depth, mut is_string, mut is_escape) = (0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if is_escape => is_escape = false,
            b'\\' => is_escape = true,
            b'"' => is_string = !is_string,
            b'[' | b'{' if !is_string => depth = depth.saturating_add(1),
            b']' | b'}' if !is_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return true;
        }
    }
    false
}

/// The four bytes that JSON has for space.
const JSON_SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// The values that an object has under these names, as JSON.
fn members<'a, const N: usize>(json: &'a str, names: [&str; N]) -> Result<[Option<&'a str>; N], Mistake> {
    let mut json = serde_json::Deserializer::from_str(json);
    let found = json.deserialize_map(Object { names: &names }).map_err(|_| Mistake::NotJson)?;
    json.end().map_err(|_| Mistake::NotJson)?;
    found.ok_or(Mistake::MemberTwice)
}

struct Object<'n, const N: usize> {
    names: &'n [&'n str; N],
}

impl<'de, const N: usize> Visitor<'de> for Object<'_, N> {
    /// None if one of them is there twice.
    type Value = Option<[Option<&'de str>; N]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        let mut is_any_twice = false;
        while let Some(at) = members.next_key_seed(Name { names: self.names })? {
            let value = members.next_value::<&'de RawValue>()?.get();
            if let Some(place) = at.and_then(|at| found.get_mut(at)) {
                is_any_twice |= place.replace(value).is_some();
            }
        }
        Ok((!is_any_twice).then_some(found))
    }
}

/// Which of the names a member has.
struct Name<'n> {
    names: &'n [&'n str],
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.names.iter().position(|&known| known == name))
    }
}

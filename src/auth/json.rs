//! JSON as tokens and key sets may have it: objects without a member that stands twice, not deep, not large. What the
//! members mean is for others.

use super::Flaw;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

/// Objects and lists in one another. Keycloak's roles are 4 deep.
const DEPTH_MAX: usize = 8;

/// Members of one object; they are compared in pairs.
const MEMBERS_MAX: usize = 64;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Boolean(bool),
    Number(f64),
    Text(Cow<'a, str>),
    List(Vec<Self>),
    Object(Vec<(Cow<'a, str>, Self)>),
}

impl<'a> Json<'a> {
    /// Reads one value and nothing after it. `otherwise` is the flaw of what is no JSON.
    pub(super) fn parse(bytes: &'a [u8], otherwise: Flaw) -> Result<Self, Flaw> {
        let flaw = Cell::new(otherwise);
        // Looked through once, and not text by text.
        let text = str::from_utf8(bytes).map_err(|_| otherwise)?;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let reader = ValueReader { depth: DEPTH_MAX, flaw: &flaw };
        let value = reader.deserialize(&mut deserializer).map_err(|_| flaw.get())?;
        deserializer.end().map_err(|_| otherwise)?;
        Ok(value)
    }

    /// The members of an object.
    pub(super) fn members(&self) -> Option<&[(Cow<'a, str>, Self)]> {
        if let Self::Object(members) = self { Some(members) } else { None }
    }

    /// A member of an object.
    pub(super) fn member(&self, name: &str) -> Option<&Self> {
        self.members()?.iter().find(|(member, _)| member == name).map(|(_, value)| value)
    }

    /// The member at a place as configuration writes it: a name, or names with a slash before each.
    pub(super) fn at(&self, place: &str) -> Option<&Self> {
        match place.strip_prefix('/') {
            Some(path) => path.split('/').try_fold(self, |value, name| value.member(name)),
            None => self.member(place),
        }
    }

    /// A text.
    pub(super) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

/// Reads one value, and the values in it with one less to go down.
#[derive(Clone, Copy)]
struct ValueReader<'f> {
    depth: usize,
    flaw: &'f Cell<Flaw>,
}

impl ValueReader<'_> {
    fn inside<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| self.fail(Flaw::Depth))?;
        Ok(Self { depth, ..self })
    }

    fn fail<E: serde::de::Error>(self, flaw: Flaw) -> E {
        self.flaw.set(flaw);
        E::custom("flaw")
    }
}

impl<'de> DeserializeSeed<'de> for ValueReader<'_> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueReader<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<Json<'de>, E> {
        Ok(Json::Boolean(boolean))
    }

    #[expect(clippy::cast_precision_loss, reason = "times and nothing else are numbers, and far smaller than 2^53")]
    fn visit_u64<E>(self, number: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(number as f64))
    }

    #[expect(clippy::cast_precision_loss, reason = "times and nothing else are numbers, and far smaller than 2^53")]
    fn visit_i64<E>(self, number: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Json<'de>, E> {
        if number.is_finite() { Ok(Json::Number(number)) } else { Err(E::custom("not finite")) }
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json<'de>, A::Error> {
        let inside = self.inside()?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(inside)? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
        let inside = self.inside()?;
        let mut members: Vec<(Cow<'de, str>, Json<'de>)> = Vec::new();
        while let Some(name) = map.next_key_seed(Name)? {
            if members.iter().any(|(other, _)| *other == name) {
                return Err(self.fail(Flaw::Duplicate));
            }
            if members.len() == MEMBERS_MAX {
                return Err(self.fail(Flaw::Depth));
            }
            let value = map.next_value_seed(inside)?;
            members.push((name, value));
        }
        Ok(Json::Object(members))
    }
}

/// A member's name, borrowed where it has no escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flaw(text: &str) -> Option<Flaw> {
        Json::parse(text.as_bytes(), Flaw::ClaimsJson).err()
    }

    #[test]
    fn members_stand_once_however_they_are_written() {
        assert_eq!(flaw(r#"{"a":1,"b":{"a":1}}"#), None);
        assert_eq!(flaw(r#"{"a":1,"a":1}"#), Some(Flaw::Duplicate));
        assert_eq!(flaw(r#"{"a":1,"\u0061":1}"#), Some(Flaw::Duplicate));
        assert_eq!(flaw(r#"{"b":[{"a":1,"a":2}]}"#), Some(Flaw::Duplicate));
    }

    #[test]
    fn it_is_neither_deep_nor_large() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(flaw(&nested(8)), None);
        assert_eq!(flaw(&nested(9)), Some(Flaw::Depth));
        assert_eq!(flaw(&nested(100_000)), Some(Flaw::Depth));
        let wide = |members: usize| {
            let members: Vec<String> = (0..members).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert_eq!(flaw(&wide(64)), None);
        assert_eq!(flaw(&wide(65)), Some(Flaw::Depth));
    }

    #[test]
    fn it_is_json_and_nothing_after_it() {
        for text in
            ["", "{", "{}{}", "{} x", "\u{feff}{}", "{'a':1}", "{a:1}", "[1,]", "NaN", "1e999", "\"\\ud800\"", "01"]
        {
            assert_eq!(flaw(text), Some(Flaw::ClaimsJson), "{text}");
        }
        assert_eq!(Json::parse(b"\"\xff\"", Flaw::HeaderJson), Err(Flaw::HeaderJson));
        assert_eq!(flaw(" {\"a\" : -1.5e3 }\n"), None);
    }

    #[test]
    fn places_are_names_or_paths() {
        let json = Json::parse(br#"{"a/b":1,"a":{"b":2},"":{"":3}}"#, Flaw::ClaimsJson).expect("JSON");
        assert_eq!(json.at("a/b"), Some(&Json::Number(1.0)));
        assert_eq!(json.at("/a/b"), Some(&Json::Number(2.0)));
        assert_eq!(json.at("/a/b/c"), None);
        assert_eq!(json.at("c"), None);
    }
}

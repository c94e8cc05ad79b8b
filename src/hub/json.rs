//! JSON that is looked into and goes on as it came: values stay text, and only those are read that are asked for.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::limits::DEPTH_MAX;

/// Why the members of an object cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unclear {
    /// This is no object, or no JSON at all.
    NoObject,
    /// One of the names is there twice, so that two readers could take different values.
    Twice,
}

/// The values that an object has under these names, as JSON without space around.
pub(super) fn members<'a, const N: usize>(json: &'a str, names: [&str; N]) -> Result<[Option<&'a str>; N], Unclear> {
    let mut json = serde_json::Deserializer::from_str(json);
    let found = json.deserialize_map(Object { names: &names }).map_err(|_| Unclear::NoObject)?;
    json.end().map_err(|_| Unclear::NoObject)?;
    found.ok_or(Unclear::Twice)
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
pub(super) struct Name<'n> {
    pub(super) names: &'n [&'n str],
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

/// A member that is there: `null` is as none.
pub(super) fn given(json: Option<&str>) -> Option<&str> {
    json.filter(|&json| json != "null")
}

/// The text that a JSON string holds; nothing if this is none, or holds half a character.
pub(super) fn string(json: &str) -> Option<Cow<'_, str>> {
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inside.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inside));
    }
    serde_json::from_str(json).ok().map(Cow::Owned)
}

/// Whether this JSON is nested deeper than may be.
pub fn is_too_deep(json: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(!is_too_deep(&nested(DEPTH_MAX)));
        assert!(is_too_deep(&nested(DEPTH_MAX + 1)));
        let objects = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert!(!is_too_deep(&objects(DEPTH_MAX)));
        assert!(is_too_deep(&objects(DEPTH_MAX + 1)));
        assert!(!is_too_deep(&format!("[{}1]", "[],".repeat(10 * DEPTH_MAX))), "beside one another");
        assert!(!is_too_deep(&format!("\"{}\"", r#"\\\"["#.repeat(10 * DEPTH_MAX))), "in a string");
    }

    proptest! {
        #[test]
        fn members_are_what_serde_finds(json in r#"\{( ?"(a|b|\\u0061|c)" ?: ?([0-9]|null|"[a\\\\n"]{0,3}"|\[1, ?2\]|\{"a":1\}) ?,?){0,4}\}"#) {
            let whole = serde_json::from_str::<Value>(&json);
            match members(&json, ["a", "b"]) {
                Ok(found) => {
                    let whole = whole.unwrap();
                    for (name, value) in ["a", "b"].into_iter().zip(found) {
                        let value: Option<Value> = value.map(|value| serde_json::from_str(value).unwrap());
                        prop_assert_eq!(whole.get(name), value.as_ref());
                    }
                }
                Err(Unclear::Twice) => prop_assert!(whole.is_ok() && json.matches(':').count() > 1),
                Err(Unclear::NoObject) => prop_assert!(whole.is_err()),
            }
        }

        #[test]
        fn strings_are_what_serde_reads(json in r#""?[a\\\\nu0d8é"]{0,8}"?"#) {
            if serde_json::from_str::<&RawValue>(&json).is_ok() {
                let read = string(&json).map(Cow::into_owned);
                prop_assert_eq!(read, serde_json::from_str::<String>(&json).ok());
            }
        }
    }
}

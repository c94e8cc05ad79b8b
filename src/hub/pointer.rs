//! The key of a message: what a JSON pointer (RFC 6901) finds in its payload.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::json::Name;
use super::name::stable_hash;

/// Bytes of a pointer as it is written.
const POINTER_BYTES_MAX: usize = 256;
/// Steps of a pointer.
const STEPS_MAX: usize = 16;

/// Which messages of a room replace one another: the hash of the text, number or truth value at the pointer.
///
/// Two keys with the same hash are taken for one: of 100,000 keys in a room, two are so with a chance of one in a billion,
/// and what is then dropped is told as all that is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

impl Key {
    /// The key of this text.
    pub fn of(text: &str) -> Self {
        Self(stable_hash(text.as_bytes()))
    }
}

/// A place in a JSON document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Box<[Box<str>]>);

impl Pointer {
    /// Reads a pointer: nothing for the whole document, else `/` before each step, with `~1` for `/` and `~0` for `~`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self(Box::new([])));
        }
        let steps: Vec<&str> = text.strip_prefix('/')?.split('/').collect();
        if text.len() > POINTER_BYTES_MAX || steps.len() > STEPS_MAX {
            return None;
        }
        steps.into_iter().map(unescape).collect::<Option<_>>().map(Self)
    }

    /// The key of a message with this payload; that of "" where nothing is there or what is there is no plain value.
    pub fn key(&self, payload: &str) -> Key {
        let mut json = serde_json::Deserializer::from_str(payload);
        let found = Step(&self.0).deserialize(&mut json).ok().flatten();
        Key::of(&found.unwrap_or_default())
    }
}

fn unescape(step: &str) -> Option<Box<str>> {
    let mut text = String::with_capacity(step.len());
    let mut characters = step.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '~' => match characters.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            other => other,
        });
    }
    Some(text.into())
}

/// Finds a plain value by the steps that are left; all else is read past and not kept.
struct Step<'p>(&'p [Box<str>]);

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then_some(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then(|| Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then_some(Cow::Borrowed(if value { "true" } else { "false" })))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then(|| Cow::Owned(value.to_string())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then(|| Cow::Owned(value.to_string())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then(|| Cow::Owned(value.to_string())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let wanted = self.0.split_first().and_then(|(step, rest)| Some((index(step)?, rest)));
        let mut found = None;
        let mut at = 0_usize;
        loop {
            match wanted {
                Some((index, rest)) if index == at => match items.next_element_seed(Step(rest))? {
                    Some(value) => found = value,
                    None => return Ok(found),
                },
                _ => {
                    if items.next_element::<IgnoredAny>()?.is_none() {
                        return Ok(found);
                    }
                }
            }
            at = at.saturating_add(1);
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let wanted = self.0.split_first();
        let mut found = None;
        let name = wanted.map(|(step, _)| [&**step]);
        let names = name.as_ref().map_or(&[][..], |name| name);
        while let Some(at) = members.next_key_seed(Name { names })? {
            match wanted {
                // The last of several with this name, as nearly all who read JSON take it.
                Some((_, rest)) if at.is_some() => found = members.next_value_seed(Step(rest))?,
                _ => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// The index of an item: digits without zeros before them (RFC 6901 §4).
fn index(step: &str) -> Option<usize> {
    let is_index = step.bytes().all(|byte| byte.is_ascii_digit()) && (step == "0" || !step.starts_with('0'));
    if is_index { step.parse().ok() } else { None }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pointer: &str, payload: &str, key: &str) {
        assert_eq!(Pointer::parse(pointer).expect("a pointer").key(payload), Key::of(key), "{pointer} in {payload}");
    }

    #[test]
    fn keys_are_plain_values() {
        check("/symbol", r#"{"price":1,"symbol":"ABC"}"#, "ABC");
        check("/symbol", r#"{"symbol":"\u0041B\n"}"#, "AB\n");
        check("/n", r#"{"n":17}"#, "17");
        check("/n", r#"{"n":-17}"#, "-17");
        check("/n", r#"{"n":1.5}"#, "1.5");
        check("/n", r#"{"n":true}"#, "true");
        check("/a/b/1", r#"{"a":{"b":["x","y"],"c":1}}"#, "y");
        check("/a~1b/m~0n", r#"{"a/b":{"m~n":"x"}}"#, "x");
        check("/\u{e4}", r#"{"\u00e4":"x"}"#, "x");
        check("", r#""x""#, "x");
        check("/", r#"{"":"x"}"#, "x");
        check("/a", r#"{"a":"x","a":"y"}"#, "y");
    }

    #[test]
    fn what_is_not_there_or_no_plain_value_is_the_empty_key() {
        for payload in ["{}", "[]", "1", "null", r#"{"a":null}"#, r#"{"a":{}}"#, r#"{"a":["x"]}"#, r#"{"a":"\ud800"}"#]
        {
            check("/a", payload, "");
        }
        for pointer in ["/2", "/01", "/-", "/x", "/99999999999999999999999"] {
            check(pointer, r#"["x","y"]"#, "");
        }
        check("/a/b", r#"{"a":"x"}"#, "");
        check("/a", &format!(r#"{{"b":{}1{},"a":"x"}}"#, "[".repeat(1000), "]".repeat(1000)), "x");
        check("/a", &format!(r#"{{"a":{}1{}}}"#, "[".repeat(1000), "]".repeat(1000)), "");
    }

    #[test]
    fn pointers_have_a_form() {
        for text in ["a", "a/b", "/~", "/~2", &format!("/{}", "a".repeat(256)), &"/a".repeat(17)] {
            assert_eq!(Pointer::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn keys_agree_with_serde(pointer in "(/[ab01~]{0,2}){0,3}", payload in "[ab01{}\\[\\]:,\" ]{0,16}") {
            let (Some(read), Ok(json)) = (Pointer::parse(&pointer), serde_json::from_str::<serde_json::Value>(&payload)) else {
                return Ok(());
            };
            let expected = match json.pointer(&pointer) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(serde_json::Value::Number(number)) => number.to_string(),
                Some(serde_json::Value::Bool(value)) => value.to_string(),
                _ => String::new(),
            };
            prop_assert_eq!(read.key(&payload), Key::of(&expected));
        }
    }
}

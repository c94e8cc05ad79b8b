//! The key of a message: what a JSON pointer (RFC 6901) finds in its payload.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

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
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            match wanted {
                // The last of several with this name, as nearly all who read JSON take it.
                Some((step, rest)) if **step == *name => found = members.next_value_seed(Step(rest))?,
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

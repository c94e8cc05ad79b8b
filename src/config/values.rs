//! The types that a key can have: how each is read, what is told when it cannot be, and how it is written back.

use super::key::{Fallback, Key, Kind};
use super::raw::{Node, Value, quoted};
use super::report::Report;
use super::secret::{HIDDEN, Secret};
use super::units::{parse_duration, parse_size, written_duration, written_size};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::Value as Toml;

/// A type that a key can have.
pub(super) trait Written: Sized {
    /// What may be written, where the key's row does not say (`as`).
    const KIND: Kind;
    /// What messages show instead of a wrong value, where that may hold a password.
    const SHOWN: Option<&'static str> = None;

    /// What the value is, or what would be right.
    fn from_value(_: &Value, kind: Kind) -> Result<Self, String> {
        Err(right(kind))
    }

    /// Reads a value for the key; what is wrong is reported under this path, and then nothing comes back.
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        read_as(key.kind, node, path, report)
    }

    /// What gives the value again; `None` where nothing needs to be written.
    fn write(&self, key: &Key) -> Option<Toml>;
}

fn read_as<T: Written>(kind: Kind, node: &Node, path: &str, report: &mut Report) -> Option<T> {
    match (T::from_value(&node.value, kind), &node.value) {
        (Ok(value), _) => return Some(value),
        // It is told already.
        (Err(_), Value::Broken) => {}
        (Err(right), value) => {
            report.wrong_at(node.place.clone(), path, T::SHOWN.unwrap_or(&value.shown()), &right);
        }
    }
    None
}

/// What would be right for a kind.
pub(super) fn right(kind: Kind) -> String {
    match kind {
        Kind::Boolean => "write true or false".to_owned(),
        Kind::Port => "ports go from 1 to 65535".to_owned(),
        Kind::Number(min, max) => format!("it is a whole number from {min} to {max}"),
        Kind::Ratio => "it is a share from 0.0 to 1.0, like 0.1".to_owned(),
        Kind::Size(min, max) => {
            let fits = [32 << 10, 1 << 20].into_iter().find(|bytes| (min..=max).contains(bytes));
            let like = like(fits.map(written_size));
            format!("write a size from \"{}\" to \"{}\"{like}", written_size(min), written_size(max))
        }
        Kind::Duration(min, max) => {
            let fit = [250, 10_000, 300_000].into_iter().filter(|millis| (min..=max).contains(millis));
            let written = |millis| written_duration(Duration::from_millis(millis));
            let like = like(fit.map(written));
            format!("write a duration from \"{}\" to \"{}\"{like}", written(min), written(max))
        }
        Kind::Choice(words) => {
            format!("it is one of {}", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", "))
        }
        // Forms are written as Markdown.
        Kind::Text(form) => format!("it is text: {}", form.replace('`', "\"")),
        Kind::Secret(form) => format!("it is a secret text: {}", form.replace('`', "\"")),
        Kind::List(form) => format!("it is a list of texts: {}", form.replace('`', "\"")),
        Kind::Instances => "it is a list of instances: [\"127.0.0.1:4001\"]".to_owned(),
        Kind::Fields => "it is a table of field names and values: { X-Name = \"value\" }".to_owned(),
    }
}

/// Some values that would do; those that the range leaves out are none.
fn like(fit: impl IntoIterator<Item = String>) -> String {
    let fit: Vec<String> = fit.into_iter().map(|value| quoted(&value)).collect();
    match fit.split_last() {
        None => String::new(),
        Some((last, [])) => format!(", like {last}"),
        Some((last, others)) => format!(", like {} or {last}", others.join(", ")),
    }
}

/// A key that may be left out. Where the table has a default, that one is `None`, and leaves it to the gateway.
impl<T: Written> Written for Option<T> {
    const KIND: Kind = T::KIND;

    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        let value = T::read(node, key, path, report)?;
        let is_default = value.write(key).is_some_and(|value| key.default.is(&value.to_string()));
        Some(Some(value).filter(|_| !is_default))
    }

    fn write(&self, key: &Key) -> Option<Toml> {
        match (self, key.default) {
            (Some(value), _) => value.write(key),
            (None, Fallback::Value(default)) => default.parse().ok(),
            (None, _) => None,
        }
    }
}

/// A whole number; one that came out of a variable is text.
fn whole_number(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::Text(text) if text.from_variable && text.text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.text.parse().ok()
        }
        _ => None,
    }
}

/// The number that a key's kind makes of a value.
fn number_of(value: &Value, kind: Kind) -> Option<u64> {
    let (number, min, max) = match (kind, value) {
        (Kind::Port, _) => (whole_number(value)?, 0, 65_535),
        (Kind::Number(min, max), _) => (whole_number(value)?, min, max),
        (Kind::Size(min, max), _) => {
            let written = || if let Value::Text(text) = value { parse_size(&text.text) } else { None };
            (whole_number(value).or_else(written)?, min, max)
        }
        (Kind::Duration(min, max), Value::Text(text)) => {
            (u64::try_from(parse_duration(&text.text)?.as_millis()).ok()?, min, max)
        }
        _ => return None,
    };
    (min..=max).contains(&number).then_some(number)
}

macro_rules! numbers {
    ($($number:ty: $kind:expr,)*) => {$(
        impl Written for $number {
            const KIND: Kind = $kind;

            fn from_value(value: &Value, kind: Kind) -> Result<Self, String> {
                let number = number_of(value, kind).and_then(|number| Self::try_from(number).ok());
                number.ok_or_else(|| match (kind, value) {
                    (Kind::Number(..), Value::Text(text)) if text.text.parse::<u64>().is_ok() => {
                        right(kind) + ", without quotes"
                    }
                    _ => right(kind),
                })
            }

            fn write(&self, key: &Key) -> Option<Toml> {
                let number = i64::try_from(*self).unwrap_or(i64::MAX);
                let is_size = matches!(key.kind, Kind::Size(..));
                Some(if is_size { written_size(number.unsigned_abs()).into() } else { number.into() })
            }
        }
    )*};
}
numbers! {
    u8: Kind::Number(0, u8::MAX as u64),
    u16: Kind::Port,
    u32: Kind::Number(0, u32::MAX as u64),
    u64: Kind::Number(0, i64::MAX as u64),
    usize: Kind::Number(0, i64::MAX as u64),
}

impl Written for f64 {
    const KIND: Kind = Kind::Ratio;

    fn from_value(value: &Value, kind: Kind) -> Result<Self, String> {
        let number: Option<Self> = match value {
            Value::Integer(number @ (0 | 1)) => Some(if *number == 0 { 0.0 } else { 1.0 }),
            Value::Other(written) => written.parse().ok(),
            Value::Text(text) if text.from_variable => text.text.parse().ok(),
            _ => None,
        };
        number.filter(|number| (0.0..=1.0).contains(number)).ok_or_else(|| right(kind))
    }

    fn write(&self, _: &Key) -> Option<Toml> {
        Some((*self).into())
    }
}

impl Written for Duration {
    /// Longer would be a mistake; shorter than a millisecond cannot be written.
    const KIND: Kind = Kind::Duration(1, 24 * 3_600_000);

    fn from_value(value: &Value, kind: Kind) -> Result<Self, String> {
        number_of(value, kind).map(Self::from_millis).ok_or_else(|| right(kind))
    }

    fn write(&self, _: &Key) -> Option<Toml> {
        Some(written_duration(*self).into())
    }
}

impl Written for bool {
    const KIND: Kind = Kind::Boolean;

    fn from_value(value: &Value, kind: Kind) -> Result<Self, String> {
        match value {
            Value::Boolean(boolean) => Ok(*boolean),
            Value::Text(text) if text.from_variable => text.text.parse().map_err(|_| right(kind)),
            _ => Err(right(kind)),
        }
    }

    fn write(&self, _: &Key) -> Option<Toml> {
        Some((*self).into())
    }
}

impl Written for Secret {
    const KIND: Kind = Kind::Secret("text");
    const SHOWN: Option<&'static str> = Some("no text");

    fn from_value(value: &Value, kind: Kind) -> Result<Self, String> {
        if let Value::Text(text) = value { Ok(Self::from(text.text.clone())) } else { Err(right(kind)) }
    }

    fn write(&self, _: &Key) -> Option<Toml> {
        Some(HIDDEN.into())
    }
}

impl Written for BTreeMap<String, String> {
    const KIND: Kind = Kind::Fields;

    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        let Value::Table(table) = &node.value else { return read_as(key.kind, node, path, report) };
        let mut fields = Self::new();
        for (name, node) in table {
            match &node.value {
                Value::Text(text) => drop(fields.insert(name.clone(), text.text.clone())),
                Value::Broken => {}
                _ => node.wrong(report, &format!("{path}.{name}"), "a field's value is text"),
            }
        }
        Some(fields)
    }

    fn write(&self, _: &Key) -> Option<Toml> {
        Some(self.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect::<toml::Table>().into())
    }
}

/// A type that is written as text and says itself what is wrong with it.
pub(super) trait AsText: Sized {
    /// What may be written: text of a form, or one of some words.
    const KIND: Kind;
    /// As in [`Written`].
    const SHOWN: Option<&'static str> = None;

    fn from_text(text: &str) -> Result<Self, String>;

    fn to_text(&self) -> String;
}

impl<T: AsText> Written for T {
    const KIND: Kind = T::KIND;
    const SHOWN: Option<&'static str> = T::SHOWN;

    fn from_value(value: &Value, kind: Kind) -> Result<Self, String> {
        if let Value::Text(text) = value { T::from_text(&text.text) } else { Err(right(kind)) }
    }

    fn write(&self, _: &Key) -> Option<Toml> {
        Some(self.to_text().into())
    }
}

impl<T: AsText> Written for Vec<T> {
    const KIND: Kind = match T::KIND {
        Kind::Text(form) => Kind::List(form),
        _ => Kind::List("text"),
    };
    const SHOWN: Option<&'static str> = T::SHOWN;

    /// What is wrong is reported; the rest stands in, as no configuration comes of it.
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        let Kind::List(form) = key.kind else { panic!("{} is no list in the table", key.name) };
        match &node.value {
            Value::List(list) => {
                let read = |(index, node)| read_as(Kind::Text(form), node, &format!("{path}[{index}]"), report);
                Some(list.iter().enumerate().filter_map(read).collect())
            }
            // A variable has no lists: commas part what stands in it.
            Value::Text(text) if text.from_variable => {
                let parts = text.text.split(',').map(str::trim).filter(|part| !part.is_empty());
                let read = |part| {
                    let wrong = |right: String| {
                        report.wrong_at(node.place.clone(), path, T::SHOWN.unwrap_or(&quoted(part)), &right);
                    };
                    T::from_text(part).map_err(wrong).ok()
                };
                Some(parts.filter_map(read).collect())
            }
            _ => read_as(key.kind, node, path, report),
        }
    }

    fn write(&self, _: &Key) -> Option<Toml> {
        Some(self.iter().map(AsText::to_text).collect::<Vec<_>>().into())
    }
}

/// Types that say in `FromStr` what is wrong, and show as they are written.
macro_rules! texts {
    ($($text:ty: $form:literal $(, shown as $shown:expr)?;)*) => {$(
        impl $crate::config::values::AsText for $text {
            const KIND: $crate::config::key::Kind = $crate::config::key::Kind::Text($form);
            $(const SHOWN: Option<&'static str> = Some($shown);)?

            fn from_text(text: &str) -> Result<Self, String> {
                text.parse()
            }

            fn to_text(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
pub(super) use texts;

impl AsText for String {
    const KIND: Kind = Kind::Text("text");

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn to_text(&self) -> String {
        self.clone()
    }
}

impl AsText for PathBuf {
    const KIND: Kind = Kind::Text("path");

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') { Err("it is a path".to_owned()) } else { Ok(text.into()) }
    }

    fn to_text(&self) -> String {
        self.to_string_lossy().into_owned()
    }
}

impl AsText for IpAddr {
    const KIND: Kind = Kind::Text("IP address");

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "it is an IP address, like \"127.0.0.1\" or \"::\"".to_owned())
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

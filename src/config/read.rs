//! From values as written to typed ones, by the table of keys: [`Fields`] reads one table, [`Report`] gathers what is
//! wrong. What holds between keys is for `resolve`.

use super::address::{HostPattern, Instance, IpNet};
use super::keys::{self, Fallback, Key, Kind, Section};
use super::path::PathPattern;
use super::raw::{self, Node, Place, Table, Value, quoted};
use super::units::{parse_duration, parse_size, written_duration, written_size};
use super::{
    Access, AccessLog, Algorithm, ClientClose, Driver, HIDDEN, ListenerKind, LogFormat, RedisMode, RedisUrl,
    RevocationFail, Secret, SessionStore,
};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use strsim::osa_distance;

/// One thing that is wrong: where, which key, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    place: Place,
    /// `shardgate.toml:12`, or `environment`.
    pub at: String,
    /// What is wrong: `listener.port is 99999`.
    pub what: String,
    /// What would be right: `ports go from 1 to 65535`.
    pub right: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, what, right, .. } = self;
        if right.is_empty() { write!(f, "{at}: {what}") } else { write!(f, "{at}: {what}; {right}") }
    }
}

/// Everything that is wrong with a configuration, in the file's order; one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// A single one about the file as a whole.
    pub(super) fn about_file(path: &Path, what: String, right: &str) -> Self {
        let at = path.display().to_string();
        Self(vec![Mistake { place: Place::File, at, what, right: right.to_owned() }])
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, mistake) in self.0.iter().enumerate() {
            write!(f, "{}{mistake}", if count == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Gathers mistakes and warnings.
#[derive(Debug)]
pub(super) struct Report {
    file: String,
    mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<String>,
}

impl Report {
    pub(super) fn new(file: Option<&Path>) -> Self {
        let file = file.map_or_else(|| "defaults".to_owned(), |file| file.display().to_string());
        Self { file, mistakes: Vec::new(), warnings: Vec::new() }
    }

    /// This key has this value, and this would be right.
    pub(super) fn wrong_at(&mut self, place: Place, key: &str, shown: &str, right: &str) {
        let what = match &place {
            Place::Variable(variable) => format!("{variable} is {shown}"),
            _ => format!("{key} is {shown}"),
        };
        self.push(place, what, right);
    }

    pub(super) fn wrong(&mut self, node: &Node, key: &str, right: &str) {
        self.wrong_at(node.place.clone(), key, &node.value.shown(), right);
    }

    pub(super) fn not_toml(&mut self, place: Place, message: &str) {
        self.push(place, format!("this is no TOML: {}", message.replace('\n', ", ")), "");
    }

    pub(super) fn push(&mut self, place: Place, what: String, right: &str) {
        let at = match &place {
            Place::Line(line) => format!("{}:{line}", self.file),
            Place::File => self.file.clone(),
            Place::Variable(_) => "environment".to_owned(),
        };
        self.mistakes.push(Mistake { place, at, what, right: right.to_owned() });
    }

    pub(super) fn warn(&mut self, place: &Place, warning: &str) {
        self.warnings.push(match place {
            Place::Line(line) => format!("{}:{line}: {warning}", self.file),
            Place::File | Place::Variable(_) => warning.to_owned(),
        });
    }

    /// Whether something is wrong there, so that the default stands in for what is written.
    fn has_mistake_at(&self, place: &Place) -> bool {
        self.mistakes.iter().any(|mistake| mistake.place == *place)
    }

    pub(super) fn is_clean(&self) -> bool {
        self.mistakes.is_empty()
    }

    pub(super) fn into_mistakes(mut self) -> Mistakes {
        self.mistakes.sort_by(|one, two| one.place.cmp(&two.place));
        Mistakes(self.mistakes)
    }
}

/// One table as written, read key by key.
pub(super) struct Fields<'a> {
    section: &'static Section,
    /// `upstreams.ai-engine`, `routes[0]`: how messages call it.
    pub(super) path: String,
    pub(super) place: Place,
    table: Option<&'a Table>,
}

impl<'a> Fields<'a> {
    /// The table of this section; keys that the section does not have are reported.
    pub(super) fn of(section: &str, path: String, node: Option<&'a Node>, report: &mut Report) -> Self {
        let section = keys::section(section).expect("the table of keys has it");
        let place = node.map_or(Place::File, |node| node.place.clone());
        let table = node.and_then(|node| match &node.value {
            Value::Table(table) => Some(table),
            Value::Broken => None,
            _ => {
                report.wrong(node, &path, &format!("it is a table: [{path}]"));
                None
            }
        });
        let fields = Self { section, path, place, table };
        fields.report_unknown(report);
        fields
    }

    /// The value of a key, or its default; what is wrong is reported and the default stands in for it.
    pub(super) fn take<T: Written>(&self, name: &str, report: &mut Report) -> T {
        self.take_written(name, report).unwrap_or_else(|| {
            let Fallback::Value(default) = self.key(name).default else { panic!("{name} has no default") };
            T::read(&raw::parse_value(default), self.key(name), name, report).expect("the table's defaults are right")
        })
    }

    /// The value of a key that has no default in the table.
    pub(super) fn take_written<T: Written>(&self, name: &str, report: &mut Report) -> Option<T> {
        let key = self.key(name);
        let Some(node) = self.node(name) else {
            if key.default == Fallback::Required {
                report.push(self.place.clone(), format!("{}.{name} is missing", self.path), &right(key.kind));
            }
            return None;
        };
        T::read(node, key, &format!("{}.{name}", self.path), report)
    }

    /// The node of a key or of a section inside.
    pub(super) fn node(&self, name: &str) -> Option<&'a Node> {
        self.table?.get(name)
    }

    /// Where a key stands, or its table when it does not.
    pub(super) fn place_of(&self, name: &str) -> Place {
        self.node(name).map_or_else(|| self.place.clone(), |node| node.place.clone())
    }

    /// Whether the key is as written or not written, so that it can be compared with others.
    pub(super) fn is_sound(&self, name: &str, report: &Report) -> bool {
        self.node(name).is_none_or(|node| !report.has_mistake_at(&node.place))
    }

    fn key(&self, name: &str) -> &'static Key {
        self.section.key(name).expect("the table of keys has it")
    }

    fn report_unknown(&self, report: &mut Report) {
        let Some(table) = self.table else { return };
        let known: Vec<&str> = self.section.keys.iter().map(|key| key.name).chain(self.section.inside()).collect();
        for (name, node) in table.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
            let what = format!("{}.{name} is not a key", self.path);
            report.push(node.place.clone(), what, &suggestion(name, &known, &format!("{}.", self.path)));
        }
    }
}

/// `did you mean x`, or all that there is.
pub(super) fn suggestion(wrong: &str, known: &[&str], prefix: &str) -> String {
    // How many letters to insert, drop, change or swap with a neighbour to make one word of the other.
    let near = known.iter().map(|known| (osa_distance(wrong, known), known)).min();
    match near {
        // A third of a word mistyped is still that word.
        Some((distance, near)) if distance <= 1.max(near.len() / 3) && distance < near.len() => {
            format!("did you mean {prefix}{near}?")
        }
        _ => format!("there are {}", known.join(", ")),
    }
}

/// A type that a key can have.
pub(super) trait Written: Sized {
    /// Reads a value for the key; what is wrong is reported under this path, and then nothing comes back.
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self>;
}

/// What would be right for a kind.
pub(super) fn right(kind: Kind) -> String {
    match kind {
        Kind::Boolean => "write true or false".to_owned(),
        Kind::Port => "ports go from 1 to 65535".to_owned(),
        Kind::Number(min, max) => format!("it is a whole number from {min} to {max}"),
        Kind::Ratio => "it is a share from 0.0 to 1.0, like 0.1".to_owned(),
        Kind::Size(min, max) => {
            format!("write a size from \"{}\" to \"{}\", like \"32KiB\"", written_size(min), written_size(max))
        }
        Kind::Duration(min, max) => {
            let [min, max] = [min, max].map(|millis| written_duration(Duration::from_millis(millis)));
            format!("write a duration from \"{min}\" to \"{max}\", like \"250ms\", \"10s\" or \"5m\"")
        }
        Kind::Choice(words) => one_of(words),
        // Forms are written as Markdown.
        Kind::Text(form) => format!("it is text: {}", form.replace('`', "\"")),
        Kind::Secret(form) => format!("it is a secret text: {}", form.replace('`', "\"")),
        Kind::List(form) => format!("it is a list of texts: {}", form.replace('`', "\"")),
        Kind::Fields => "it is a table of field names and values: { X-Name = \"value\" }".to_owned(),
    }
}

pub(super) fn one_of(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("it is one of {}", words.join(", "))
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
    let (number, min, max) = match kind {
        Kind::Port => (whole_number(value)?, 0, 65_535),
        Kind::Number(min, max) => (whole_number(value)?, min, max),
        Kind::Size(min, max) => {
            let written = || if let Value::Text(text) = value { parse_size(&text.text) } else { None };
            (whole_number(value).or_else(written)?, min, max)
        }
        Kind::Duration(min, max) => {
            let Value::Text(text) = value else { return None };
            (u64::try_from(parse_duration(&text.text)?.as_millis()).ok()?, min, max)
        }
        _ => return None,
    };
    (min..=max).contains(&number).then_some(number)
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Written for $number {
            fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
                let number = number_of(&node.value, key.kind).and_then(|number| Self::try_from(number).ok());
                or_report(number, node, path, report, || right(key.kind))
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64, usize);

impl Written for f64 {
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        let number: Option<Self> = match &node.value {
            Value::Integer(number @ (0 | 1)) => Some(if *number == 0 { 0.0 } else { 1.0 }),
            Value::Other(written) => written.parse().ok(),
            Value::Text(text) if text.from_variable => text.text.parse().ok(),
            _ => None,
        };
        let ratio = number.filter(|number| (0.0..=1.0).contains(number));
        or_report(ratio, node, path, report, || right(key.kind))
    }
}

impl Written for Duration {
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        let millis = number_of(&node.value, key.kind).map(Self::from_millis);
        or_report(millis, node, path, report, || right(key.kind))
    }
}

impl Written for bool {
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        let boolean = match &node.value {
            Value::Boolean(boolean) => Some(*boolean),
            Value::Text(text) if text.from_variable => text.text.parse().ok(),
            _ => None,
        };
        or_report(boolean, node, path, report, || right(key.kind))
    }
}

impl Written for String {
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        let text = if let Value::Text(text) = &node.value { Some(text.text.clone()) } else { None };
        or_report(text, node, path, report, || right(key.kind))
    }
}

impl Written for Secret {
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(Self::from(text.text.clone())),
            Value::Broken => None,
            // Whatever it is, it is not shown.
            _ => {
                report.wrong_at(node.place.clone(), path, "no text", &right(key.kind));
                None
            }
        }
    }
}

impl Written for BTreeMap<String, String> {
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        let table = if let Value::Table(table) = &node.value { Some(table) } else { None };
        let table = or_report(table, node, path, report, || right(key.kind))?;
        let mut fields = Self::new();
        for (name, node) in table {
            let path = format!("{path}.{name}");
            let text = if let Value::Text(text) = &node.value { Some(text.text.clone()) } else { None };
            let text = or_report(text, node, &path, report, || "a field's value is text".to_owned());
            fields.extend(text.map(|text| (name.clone(), text)));
        }
        Some(fields)
    }
}

/// A type that is written as text and says itself what is wrong with it.
pub(super) trait FromText: Sized {
    /// Whether what is wrong may hold a password, so that it is told without being shown.
    const IS_SECRET: bool = false;

    fn from_text(text: &str) -> Result<Self, String>;
}

pub(super) fn read_text<T: FromText>(node: &Node, kind: Kind, path: &str, report: &mut Report) -> Option<T> {
    let read = match &node.value {
        Value::Text(text) => T::from_text(&text.text),
        _ => Err(right(kind)),
    };
    match read {
        Ok(value) => Some(value),
        Err(wrong) if T::IS_SECRET => {
            report.wrong_at(node.place.clone(), path, HIDDEN, &wrong);
            None
        }
        Err(wrong) => or_report(None, node, path, report, || wrong),
    }
}

impl<T: FromText> Written for Vec<T> {
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        let Kind::List(form) = key.kind else { panic!("{} is no list in the table", key.name) };
        match &node.value {
            Value::List(list) => {
                let read = |(index, node)| read_text(node, Kind::Text(form), &format!("{path}[{index}]"), report);
                // What is wrong is reported; the rest stands in, as no configuration comes of it.
                Some(list.iter().enumerate().filter_map(read).collect())
            }
            // A variable has no lists: commas part what stands in it.
            Value::Text(text) if text.from_variable => {
                let parts = text.text.split(',').map(str::trim).filter(|part| !part.is_empty());
                let mut read = Self::new();
                for part in parts {
                    match T::from_text(part) {
                        Ok(value) => read.push(value),
                        Err(wrong) => {
                            let shown = if T::IS_SECRET { HIDDEN.to_owned() } else { quoted(part) };
                            report.wrong_at(node.place.clone(), path, &shown, &wrong);
                        }
                    }
                }
                Some(read)
            }
            _ if T::IS_SECRET => {
                report.wrong_at(node.place.clone(), path, HIDDEN, &right(key.kind));
                None
            }
            _ => or_report(None, node, path, report, || right(key.kind)),
        }
    }
}

fn or_report<T>(
    read: Option<T>,
    node: &Node,
    path: &str,
    report: &mut Report,
    right: impl FnOnce() -> String,
) -> Option<T> {
    if read.is_none() && !matches!(node.value, Value::Broken) {
        let mut right = right();
        if matches!(&node.value, Value::Text(text) if right.starts_with("it is a whole number") && text.text.parse::<u64>().is_ok())
        {
            right += ", without quotes";
        }
        report.wrong(node, path, &right);
    }
    read
}

macro_rules! texts {
    ($($text:ty),*) => {$(
        impl FromText for $text {
            fn from_text(text: &str) -> Result<Self, String> {
                text.parse()
            }
        }
    )*};
}
texts!(IpNet, Instance, HostPattern, PathPattern);

impl FromText for String {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl FromText for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') { Err("it is a path".to_owned()) } else { Ok(text.into()) }
    }
}

impl FromText for IpAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "it is an IP address, like \"127.0.0.1\" or \"::\"".to_owned())
    }
}

impl FromText for Driver {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "epoll" => Ok(Self::Epoll),
            "io_uring" => Ok(Self::IoUring),
            _ => Err(one_of(&["epoll", "io_uring"])),
        }
    }
}

impl FromText for ListenerKind {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "plain" => Ok(Self::Plain),
            _ => Err(one_of(&["plain"])),
        }
    }
}

impl FromText for Access {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "public" => Ok(Self::Public),
            "authenticated" => Ok(Self::Authenticated),
            _ => Err(one_of(&["public", "authenticated"])),
        }
    }
}

impl FromText for ClientClose {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "cancel" => Ok(Self::Cancel),
            "finish" => Ok(Self::Finish),
            _ => Err(one_of(&["cancel", "finish"])),
        }
    }
}

impl FromText for LogFormat {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(one_of(&["auto", "json", "text"])),
        }
    }
}

impl FromText for AccessLog {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "stdout" => Ok(Self::Stdout),
            _ if text.contains('/') && !text.ends_with('/') && !text.contains('\0') => Ok(Self::File(text.into())),
            _ => {
                Err("it is \"off\", \"stdout\" or the path of a file with a slash in it, like \"./access.log\""
                    .to_owned())
            }
        }
    }
}

macro_rules! written_texts {
    ($($text:ty),*) => {$(
        impl Written for $text {
            fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
                read_text(node, key.kind, path, report)
            }
        }
    )*};
}
written_texts!(
    IpAddr,
    Algorithm,
    RedisMode,
    RedisUrl,
    RevocationFail,
    SessionStore,
    PathBuf,
    PathPattern,
    Driver,
    ListenerKind,
    Access,
    ClientClose,
    LogFormat,
    AccessLog
);

//! From tables as written to typed values, by the table of keys: [`Fields`] reads one table. What holds between keys is
//! for those who know what the section is about.

use super::key::{Fallback, Key, Section};
use super::names::{NAME_FORM, is_name};
use super::raw::{self, Node, Value, quoted};
use super::report::{Location, Report};
use super::values::{Written, right};
use std::collections::BTreeMap;
use std::fmt;
use strsim::osa_distance;

/// One table as written, read key by key.
pub(super) struct Fields<'a> {
    section: &'static Section,
    /// `upstreams.ai-engine`, `routes[0]`: how messages call it.
    pub(super) path: String,
    node: Option<&'a Node>,
}

impl<'a> Fields<'a> {
    /// The table of this section.
    pub(super) fn of(section: &'static Section, path: String, node: Option<&'a Node>) -> Self {
        Self { section, path, node }
    }

    /// Reports what is no table, and keys that the section does not have.
    pub(super) fn checked(self, report: &mut Report) -> Self {
        let Some(node) = self.node else { return self };
        match &node.value {
            Value::Table(table) => {
                let keys = self.section.keys.iter().map(|key| key.name);
                let known: Vec<&str> = keys.chain(self.section.inside.iter().copied()).collect();
                for (name, node) in table.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
                    let what = format!("{}.{name} is not a key", self.path);
                    report.push(node.place.clone(), what, &suggestion(name, &known, &format!("{}.", self.path)));
                }
            }
            Value::Broken => {}
            _ => node.wrong(report, &self.path, &format!("it is a table: [{}]", self.path)),
        }
        self
    }

    /// The value of a key, or its default; what is wrong is reported and the default stands in for it.
    pub(super) fn take<T: Written>(&self, name: &str, report: &mut Report) -> T {
        self.take_written(name, report).unwrap_or_else(|| {
            let Fallback::Value(default) = self.key(name).default else { panic!("{name} has no default") };
            T::read(&raw::parse_value(default), self.key(name), name, report).expect("the table's defaults are right")
        })
    }

    /// The value of a key that has no default in the table: where it is not written, that of its type stands in.
    pub(super) fn take_or_default<T: Written + Default>(&self, name: &str, report: &mut Report) -> T {
        self.take_written(name, report).unwrap_or_default()
    }

    fn take_written<T: Written>(&self, name: &str, report: &mut Report) -> Option<T> {
        let key = self.key(name);
        let Some(node) = self.node(name) else {
            if key.default == Fallback::Required {
                report.push(self.place(), format!("{}.{name} is missing", self.path), &right(key.kind));
            }
            return None;
        };
        T::read(node, key, &format!("{}.{name}", self.path), report)
    }

    /// The node of a key or of a section inside.
    pub(super) fn node(&self, name: &str) -> Option<&'a Node> {
        let Section { name: section, inside, .. } = self.section;
        debug_assert!(self.section.key(name).is_some() || inside.contains(&name), "{section} has no {name}");
        if let Value::Table(table) = &self.node?.value { table.get(name) } else { None }
    }

    /// Where the table stands.
    pub(super) fn place(&self) -> Location {
        self.node.map_or(Location::File, |node| node.place.clone())
    }

    /// Where a key stands, or its table when it does not.
    pub(super) fn place_of(&self, name: &str) -> Location {
        self.node(name).map_or_else(|| self.place(), |node| node.place.clone())
    }

    /// Whether a text is written for a key.
    pub(super) fn is_text(&self, name: &str) -> bool {
        self.node(name).is_some_and(|node| matches!(node.value, Value::Text(_)))
    }

    /// Whether the key is as written or not written, so that it can be compared with others.
    pub(super) fn is_sound(&self, name: &str, report: &Report) -> bool {
        self.node(name).is_none_or(|node| !report.has_mistake_at(&node.place))
    }

    /// Something is wrong with a key: `is "x"`, `has "y" twice`; and this would be right.
    pub(super) fn wrong(&self, report: &mut Report, key: &str, what: impl fmt::Display, right: &str) {
        report.push(self.place_of(key), format!("{}.{key} {what}", self.path), right);
    }

    /// Two keys do not go together, which is told of the first where either is written; unless one of them is wrong by
    /// itself, so that its default stands in for it.
    pub(super) fn wrong_pair(
        &self,
        report: &mut Report,
        [key, other]: [&str; 2],
        what: impl fmt::Display,
        right: &str,
    ) {
        if self.is_sound(key, report) && self.is_sound(other, report) {
            let written = if self.node(key).is_some() { key } else { other };
            report.push(self.place_of(written), format!("{}.{key} {what}", self.path), right);
        }
    }

    /// Something is wrong with each of these values of a key.
    pub(super) fn wrong_values<'v>(
        &self,
        report: &mut Report,
        key: &str,
        values: impl IntoIterator<Item = &'v String>,
        right: &str,
    ) {
        for value in values {
            self.wrong(report, key, format_args!("has {}", quoted(value)), right);
        }
    }

    /// Values of a list that stand in it before.
    pub(super) fn report_twice<T: PartialEq + ToString>(&self, report: &mut Report, key: &str, values: &[T]) {
        for (_, value) in values.iter().enumerate().filter(|(index, value)| values[..*index].contains(value)) {
            self.wrong(report, key, format_args!("has {} twice", quoted(&value.to_string())), "once is enough");
        }
    }

    fn key(&self, name: &str) -> &'static Key {
        self.section.key(name).expect("the table of keys has it")
    }

    /// The tables of a section that stands once for each name (`limits.<name>`), with their names; what cannot be a
    /// name is reported. `one` is what each of them is, `example` the name of one.
    pub(super) fn named(
        section: &'static Section,
        node: Option<&'a Node>,
        [one, example]: [&str; 2],
        report: &mut Report,
    ) -> Vec<(&'a str, Self)> {
        let Some(node) = node else { return Vec::new() };
        let all = section.name.trim_end_matches(".<name>");
        let Value::Table(table) = &node.value else {
            node.wrong(report, all, &format!("it is a table of {all} by name: [{all}.{example}]"));
            return Vec::new();
        };
        let mut named = Vec::with_capacity(table.len());
        for (name, node) in table {
            if is_name(name) {
                named.push((name.as_str(), Self::of(section, format!("{all}.{name}"), Some(node)).checked(report)));
            } else {
                report.push(node.place.clone(), format!("{} is no name of {one}", quoted(name)), NAME_FORM);
            }
        }
        named
    }

    /// The tables of a section that stands any number of times.
    pub(super) fn listed(
        section: &'static Section,
        node: Option<&'a Node>,
        max: usize,
        report: &mut Report,
    ) -> Vec<Self> {
        let (Some(node), name) = (node, section.name) else { return Vec::new() };
        let list = match &node.value {
            Value::List(list) if list.len() <= max => list.as_slice(),
            Value::List(list) => {
                let what = format!("there are {} {name}", list.len());
                report.push(node.place.clone(), what, &format!("there are at most {max}"));
                &[]
            }
            _ => {
                let all = name.rsplit('.').next().unwrap_or(name);
                node.wrong(report, name, &format!("it is a list of {all}: [[{name}]]"));
                &[]
            }
        };
        let of = |(index, node)| Self::of(section, format!("{name}[{index}]"), Some(node)).checked(report);
        list.iter().enumerate().map(of).collect()
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
        _ => match &with_first_word_near(wrong, known)[..] {
            [] => format!("there are {}", known.join(", ")),
            [one] => format!("did you mean {prefix}{one}?"),
            several => format!("did you mean one of {}?", several.join(", ")),
        },
    }
}

/// Those of several words whose first word this may be.
fn with_first_word_near<'a>(wrong: &str, known: &[&'a str]) -> Vec<&'a str> {
    let is_near = |known: &&str| {
        let Some((first, _)) = known.split_once('_') else { return false };
        osa_distance(wrong, first) <= 1.max(first.len() / 3).min(first.len() / 2)
    };
    known.iter().copied().filter(is_near).collect()
}

/// The same for what the user defines; where nothing is, `example` is how to.
pub(super) fn suggestion_of<T>(wrong: &str, defined: &BTreeMap<String, T>, example: &str) -> String {
    let names: Vec<&str> = defined.keys().map(String::as_str).collect();
    if names.is_empty() { format!("define one: {example}") } else { suggestion(wrong, &names, "") }
}

//! The environment: the one place that reads the process's, and how its variables stand in for keys of the file.

use super::key::Shape;
use super::keys::SECTIONS;
use super::otel;
use super::raw::{Node, Table, Text, Value};
use super::read::suggestion;
use super::report::{Location, Report};
use super::secret::trimmed;
use std::collections::BTreeMap;

/// Names the file to read when the command line does not.
pub(super) const FILE: &str = "SHARDGATE_CONFIG";

const PREFIX: &str = "SHARDGATE_";

/// The tests steer themselves by variables of this prefix, which the gateways that they start inherit.
const TESTS_PREFIX: &str = "SHARDGATE_TEST_";

/// The variables of this process. One that is not Unicode cannot be ours and is left out.
pub fn process() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Puts the variables over what the file says. A variable that is set to nothing counts as not set, as container
/// templates have it.
pub(super) fn overlay(root: &mut Table, env: &BTreeMap<String, String>, report: &mut Report) {
    let given = |name: &str| env.get(name).map(|value| trimmed(value)).filter(|value| !value.is_empty());
    if let Some(port) = given("PORT") {
        put(root, "listener", "port", "PORT", port);
    }
    // systemd names the directory that it keeps for a service (`StateDirectory`), or several with colons between them.
    if let Some(directory) = given("STATE_DIRECTORY").and_then(|list| list.split(':').next())
        && !is_written(root, "data", "dir")
    {
        put(root, "data", "dir", "STATE_DIRECTORY", directory);
    }
    otel::overlay(root, &given, report);
    for section in SECTIONS {
        for key in section.keys {
            let variable = section.variable(key);
            let value = variable.as_deref().and_then(given);
            if let (Some(variable), Some(value)) = (variable, value.filter(|value| !is_service_link(value))) {
                put(root, section.name, key.name, &variable, value);
            }
        }
    }
    otel::check(root, &given, report);
    for (name, value) in env.iter().filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty()) {
        if !is_known(name) && !is_service_link_name(name, value) {
            let known: Vec<String> = variables().collect();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let suggestion = suggestion(name, &known, "");
            // All of them would be a page.
            let right = if suggestion.starts_with("did") { &suggestion } else { "docs/config.md lists those that are" };
            report.push(Location::Variable(name.clone()), format!("{name} is no variable of Shardgate"), right);
        }
    }
}

pub(super) fn is_written(root: &Table, section: &str, key: &str) -> bool {
    root.get(section).is_some_and(|node| match &node.value {
        Value::Table(table) => table.contains_key(key),
        _ => true,
    })
}

pub(super) fn put(root: &mut Table, section: &str, key: &str, variable: &str, value: &str) {
    let place = Location::Variable(variable.to_owned());
    let empty = || Node { place: place.clone(), value: Value::Table(Table::new()) };
    // A section that is no table is a mistake of its own, reported where sections are read.
    if let Value::Table(table) = &mut root.entry(section.to_owned()).or_insert_with(empty).value {
        let text = Text { text: value.to_owned(), from_variable: true };
        table.insert(key.to_owned(), Node { place: place.clone(), value: Value::Text(text) });
    }
}

/// Every variable that stands for a key.
pub(super) fn variables() -> impl Iterator<Item = String> {
    let once = SECTIONS.iter().filter(|section| section.shape == Shape::Once);
    once.flat_map(|section| section.keys.iter().filter_map(|key| section.variable(key)))
}

fn is_known(name: &str) -> bool {
    name == FILE || name.starts_with(TESTS_PREFIX) || variables().any(|variable| variable == name)
}

/// Kubernetes tells every pod of a service named `shardgate-…` by variables with our prefix; these are not ours:
/// `SHARDGATE_ADMIN_PORT=tcp://10.0.0.1:3001` means nothing to us, though the name is one of our keys.
fn is_service_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

fn is_service_link_name(name: &str, value: &str) -> bool {
    let port_part = |part: &str| {
        let mut parts = part.split('_');
        let number = parts.next().is_some_and(|port| port.parse::<u16>().is_ok());
        number && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
    };
    is_service_link(value)
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, part)| port_part(part))
}

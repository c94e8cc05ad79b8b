//! What the table of keys says, as documentation: the tables of `docs/config.md` and the JSON schema for editors. The
//! prose around the tables is written by hand.

use super::key::{Fallback, Key, Kind, Section, Shape};
use super::keys::SECTIONS;
use super::{written_duration, written_size};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// The tables of `docs/config.md`, in Markdown.
pub fn tables() -> String {
    let mut text = String::new();
    for section in SECTIONS {
        // Writing to a String cannot fail.
        let _ = write!(text, "### `{}`\n\n{}\n\n", header(section), section.about);
        text.push_str("| key | takes | default | scope | change by | does |\n| --- | --- | --- | --- | --- | --- |\n");
        for key in section.keys {
            let default = match key.default {
                Fallback::Value(value) => format!("`{value}`"),
                Fallback::Unset(words) => words.to_owned(),
                Fallback::Required => "must be given".to_owned(),
            };
            let (scope, change) = (key.scope.word(), key.change.word());
            let _ = writeln!(
                text,
                "| `{}` | {} | {default} | {scope} | {change} | {} |",
                key.name,
                takes(key.kind),
                key.about
            );
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn header(section: &Section) -> String {
    match section.shape {
        Shape::Listed => format!("[[{}]]", section.name),
        Shape::Once | Shape::Named | Shape::Inside => format!("[{}]", section.name),
    }
}

fn takes(kind: Kind) -> String {
    match kind {
        Kind::Boolean => "`true` or `false`".to_owned(),
        Kind::Port => "port".to_owned(),
        Kind::Number(min, max) => format!("number, {min} to {max}"),
        Kind::Ratio => "number, 0.0 to 1.0".to_owned(),
        Kind::Size(min, max) => format!("bytes, {} to {}", written_size(min), written_size(max)),
        Kind::Duration(min, max) => {
            let [min, max] = [min, max].map(|millis| written_duration(Duration::from_millis(millis)));
            format!("duration, {min} to {max}")
        }
        Kind::Choice(words) => words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(" or "),
        Kind::Text(form) => form.to_owned(),
        Kind::Secret(form) => format!("secret: {form}"),
        Kind::List(form) => format!("list: {form}"),
        Kind::Instances => {
            "list: `host:port`, `https://host`, `unix:/path`, or a table of `address`, `weight`, `priority` and `zone`"
                .to_owned()
        }
        Kind::Fields => "table of names and values".to_owned(),
    }
}

/// The JSON schema of the file (draft 2020-12), for editors that complete and check TOML.
pub fn schema() -> Value {
    let mut properties = Map::new();
    for section in SECTIONS {
        let name = section.name.trim_end_matches(".<name>");
        let table = table_schema(section);
        let schema = match section.shape {
            Shape::Once => table,
            Shape::Named => {
                let about = section.about;
                let names = json!({ "pattern": "^[a-z][a-z0-9_-]{0,63}$" });
                json!({ "type": "object", "description": about, "propertyNames": names, "additionalProperties": table })
            }
            Shape::Listed if !name.contains('.') => list_schema(section),
            // These are in the schema of what they are inside.
            Shape::Listed | Shape::Inside => continue,
        };
        properties.insert(name.to_owned(), schema);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Shardgate",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "$defs": {
            "variable": { "type": "string", "pattern": "\\$\\{[A-Za-z0-9_]+(:-[^}$]*)?\\}" },
        },
    })
}

fn list_schema(section: &Section) -> Value {
    json!({ "type": "array", "description": section.about, "items": table_schema(section) })
}

fn table_schema(section: &Section) -> Value {
    let mut properties: Map<String, Value> =
        section.keys.iter().map(|key| (key.name.to_owned(), key_schema(key))).collect();
    for name in section.inside {
        let path = format!("{}.{name}", section.name);
        let inside = SECTIONS.iter().find(|section| section.name == path);
        let schema = |inside: &Section| match inside.shape {
            Shape::Listed => list_schema(inside),
            _ => table_schema(inside),
        };
        properties.extend(inside.map(|inside| ((*name).to_owned(), schema(inside))));
    }
    // Without routes the built-in upstreams have instances of their own.
    let required =
        section.keys.iter().filter(|key| key.default == Fallback::Required && section.shape == Shape::Listed);
    let required: Vec<&str> = required.map(|key| key.name).collect();
    json!({
        "type": "object",
        "description": section.about,
        "additionalProperties": false,
        "required": required,
        "properties": properties,
    })
}

fn key_schema(key: &Key) -> Value {
    let number = |min: u64, max: u64| json!({ "type": "integer", "minimum": min, "maximum": max });
    let or_variable = |own: Value| json!({ "anyOf": [own, { "$ref": "#/$defs/variable" }] });
    let mut schema = match key.kind {
        Kind::Boolean => or_variable(json!({ "type": "boolean" })),
        Kind::Port => or_variable(number(0, 65_535)),
        Kind::Number(min, max) => or_variable(number(min, max)),
        Kind::Ratio => or_variable(json!({ "type": "number", "minimum": 0, "maximum": 1 })),
        Kind::Size(min, max) => {
            json!({ "anyOf": [
                number(min, max),
                { "type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB|TiB)$" },
                { "$ref": "#/$defs/variable" },
            ] })
        }
        Kind::Duration(..) => or_variable(json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$" })),
        Kind::Choice(words) => or_variable(json!({ "enum": words })),
        Kind::Text(_) | Kind::Secret(_) => json!({ "type": "string" }),
        Kind::List(_) => or_variable(json!({ "type": "array", "items": { "type": "string" } })),
        Kind::Instances => {
            let share = || or_variable(number(0, u16::MAX.into()));
            let table = json!({
                "type": "object",
                "additionalProperties": false,
                "required": ["address"],
                "properties": {
                    "address": { "type": "string" },
                    "weight": share(),
                    "priority": share(),
                    "zone": { "type": "string" },
                },
            });
            or_variable(json!({ "type": "array", "items": { "anyOf": [{ "type": "string" }, table] } }))
        }
        Kind::Fields => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
    };
    let fallback = match key.default {
        Fallback::Unset(words) => format!(" Default: {words}."),
        Fallback::Value(_) | Fallback::Required => String::new(),
    };
    let (scope, change) = (key.scope.word(), key.change.word());
    schema["description"] = format!("{}{fallback} Scope: {scope}. Change by: {change}.", key.about).into();
    if let Fallback::Value(value) = key.default {
        schema["default"] = as_json(value);
    }
    schema["examples"] = json!([as_json(key.example)]);
    schema
}

fn as_json(toml: &str) -> Value {
    let table: Map<String, Value> = toml::from_str(&format!("value = {toml}")).expect("the table of keys holds TOML");
    table["value"].clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::env;
    use std::fs;
    use std::path::Path;

    /// The file is as it should be, or `UPDATE_DOCS=1` makes it so.
    fn check_file(name: &str, expected: &str, found: &str) {
        if found != expected && env::process().contains_key("UPDATE_DOCS") {
            fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), expected).expect("written");
            return;
        }
        assert!(found == expected, "{name} is not what the table of keys says; run the tests with UPDATE_DOCS=1");
    }

    #[test]
    fn the_documentation_says_what_the_table_says() {
        const BEGIN: &str =
            "<!-- The tables below are made from src/config/keys; UPDATE_DOCS=1 cargo test makes them anew. -->\n";
        const END: &str = "<!-- End of the tables. -->\n";
        let found = read("docs/config.md");
        let (before, rest) = found.split_once(BEGIN).expect("the mark where the tables begin");
        let (_, after) = rest.split_once(END).expect("the mark where the tables end");
        check_file("docs/config.md", &format!("{before}{BEGIN}\n{}\n{END}{after}", tables()), &found);
    }

    #[test]
    fn the_schema_says_what_the_table_says() {
        let schema = serde_json::to_string_pretty(&schema()).expect("it is JSON") + "\n";
        check_file("docs/config.schema.json", &schema, &read("docs/config.schema.json"));
    }

    fn read(name: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap_or_default()
    }
}

//! The effective configuration as TOML, section by section in the order of the table of keys.

use super::Config;
use super::key::{Section, Shape};
use super::keys::SECTIONS;
use std::fmt::Write as _;
use toml::{Table, Value};

impl Config {
    /// The TOML that gives this configuration again. It says what holds now: numbers that the gateway derives at start
    /// are written as 0, and keys that fall back to another are left out.
    pub fn to_toml(&self) -> String {
        let mut root = self.to_table();
        root.iter_mut().for_each(|(_, value)| double_dollars(value));
        let mut text = String::new();
        if self.routes.is_empty() {
            // Without this line the built-in routes would apply. It stands before the first section, or it would be in one.
            text.push_str("routes = []\n\n");
        }
        for section in SECTIONS {
            let mut names = section.name.trim_end_matches(".<name>").split('.');
            let top = names.next().and_then(|name| root.get(name));
            let tables = names.fold(top, |value, name| value?.get(name));
            match (section.shape, tables) {
                (Shape::Once, Some(Value::Table(table))) => {
                    print(&mut text, section, &format!("[{}]", section.name), table);
                }
                (Shape::Named, Some(Value::Table(tables))) => {
                    for (name, table) in tables.iter().filter_map(|(name, table)| Some((name, table.as_table()?))) {
                        print(&mut text, section, &format!("[{}]", section.name.replace("<name>", name)), table);
                        print_inside(&mut text, section, name, table);
                    }
                }
                (Shape::Listed, Some(Value::Array(tables))) => {
                    for table in tables.iter().filter_map(Value::as_table) {
                        print(&mut text, section, &format!("[[{}]]", section.name), table);
                        print_inside(&mut text, section, "", table);
                    }
                }
                // Inside ones are printed with what they are in.
                _ => {}
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }
}

fn print(text: &mut String, section: &Section, header: &str, table: &Table) {
    text.push_str(header);
    text.push('\n');
    for key in section.keys {
        if let Some(value) = table.get(key.name) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} = {value}", key.name);
        }
    }
    text.push('\n');
}

/// The sections inside an entry of another, which has this name.
fn print_inside(text: &mut String, outer: &Section, name: &str, table: &Table) {
    for inside in outer.inside {
        let path = format!("{}.{inside}", outer.name);
        let section = SECTIONS.iter().find(|section| section.name == path);
        if let (Some(section), Some(Value::Table(table))) = (section, table.get(*inside)) {
            print(text, section, &format!("[{}]", path.replace("<name>", name)), table);
        }
    }
}

/// A dollar would begin a variable.
fn double_dollars(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('$') => *text = text.replace('$', "$$"),
        Value::Array(list) => list.iter_mut().for_each(double_dollars),
        Value::Table(table) => table.iter_mut().for_each(|(_, value)| double_dollars(value)),
        _ => {}
    }
}

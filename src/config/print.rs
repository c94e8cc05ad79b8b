//! The effective configuration as TOML, section by section in the order of the table of keys.

use super::Config;
use super::keys::{Fallback, Reload, SECTIONS, Section, Shape};
use std::fmt::Write as _;
use toml::{Table, Value};

impl Config {
    /// The TOML that gives this configuration again. It says what holds now: numbers that the gateway derives at start
    /// are written as 0, and keys that fall back to another are left out.
    pub fn to_toml(&self) -> String {
        let mut root = self.as_table();
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
                    }
                }
                (Shape::Listed, Some(Value::Array(tables))) => {
                    for table in tables.iter().filter_map(Value::as_table) {
                        print(&mut text, section, &format!("[[{}]]", section.name), table);
                        print_inside(&mut text, section, table);
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

    /// The keys in which `next` differs and which only a new process applies: `listener.port`.
    pub fn restart_needed(&self, next: &Self) -> Vec<String> {
        let (ours, theirs) = (self.as_table(), next.as_table());
        let value = |root: &Table, section: &str, key: &str| root.get(section)?.get(key).cloned();
        let once = SECTIONS.iter().filter(|section| section.shape == Shape::Once);
        let keys = once
            .flat_map(|section| section.keys.iter().map(move |key| (section.name, key)))
            .filter(|(_, key)| key.reload == Reload::Restart)
            .filter(|(section, key)| {
                value(&ours, section, key.name) != value(&theirs, section, key.name)
                    || self.hides_another(next, section, key.name)
            })
            .map(|(section, key)| format!("{section}.{}", key.name));
        // A list changes as a whole.
        let has_changed = self.listeners != next.listeners;
        keys.chain(has_changed.then(|| "listeners".to_owned())).collect()
    }

    /// Whether a key that shows as `***`, in part or as a whole, has another value in `next`.
    fn hides_another(&self, next: &Self, section: &str, key: &str) -> bool {
        match (section, key) {
            ("accounts", "postgres_url") => self.accounts.postgres_url != next.accounts.postgres_url,
            ("redis", "urls") => self.redis.urls != next.redis.urls,
            ("redis", "sentinel_password") => self.redis.sentinel_password != next.redis.sentinel_password,
            ("sessions", "secret") => self.sessions.secret != next.sessions.secret,
            ("sessions", "old_secret") => self.sessions.old_secret != next.sessions.old_secret,
            _ => false,
        }
    }

    /// Takes over from `old`, which is what the process runs with, the values of all keys that need a new one.
    pub fn keep_until_restart(&mut self, old: &Self) {
        self.runtime.shards = old.runtime.shards;
        self.runtime.driver = old.runtime.driver;
        self.runtime.pin = old.runtime.pin;
        self.admin.clone_from(&old.admin);
        self.data.clone_from(&old.data);
        self.accounts.clone_from(&old.accounts);
        self.redis.clone_from(&old.redis);
        self.sessions.clone_from(&old.sessions);
        let level = std::mem::take(&mut self.log.level);
        self.log = super::Log { level, ..old.log.clone() };
        self.listener.address = old.listener.address;
        self.listener.port = old.listener.port;
        self.listener.backlog = old.listener.backlog;
        self.listeners.clone_from(&old.listeners);
    }

    fn as_table(&self) -> Table {
        Table::try_from(self).expect("every value of a configuration can be written")
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

fn print_inside(text: &mut String, listed: &Section, table: &Table) {
    for name in listed.inside() {
        let path = format!("{}.{name}", listed.name);
        let section = SECTIONS.iter().find(|section| section.name == path);
        if let (Some(section), Some(Value::Table(rules))) = (section, table.get(name)) {
            // A key without a default is there because somebody wrote it.
            let is_unsaid = |(name, value): (&String, &Value)| match value {
                _ if section.key(name).is_some_and(|key| matches!(key.default, Fallback::Unset(_))) => false,
                Value::Array(list) => list.is_empty(),
                Value::Table(table) => table.is_empty(),
                _ => false,
            };
            if !rules.iter().all(is_unsaid) {
                print(text, section, &format!("[{path}]"), rules);
            }
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

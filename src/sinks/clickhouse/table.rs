//! The table: its columns, by what the server knows of types, and the statements that make it and bring it up to date.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::config::Clickhouse;

/// A server's version, as far as it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32);

impl Version {
    /// Of what `SELECT version()` says: `18.16.1`, `26.9.2.1`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split('.').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Some(Self(major, minor)),
            _ => None,
        }
    }

    /// Whether it knows times of milliseconds, dictionaries of texts, codecs and lifetimes of rows.
    const fn is_modern(self) -> bool {
        self.0 >= 20
    }

    /// Whether it may answer before rows are in the table, unless it is told not to.
    pub(super) const fn has_async_inserts(self) -> bool {
        self.0 >= 22
    }

    /// Whether a table may know a batch that it is sent once more.
    pub(super) const fn has_deduplication(self) -> bool {
        self.0 > 22 || self.0 == 22 && self.1 >= 2
    }
}

/// What a column holds.
#[derive(Clone, Copy)]
enum Kind {
    /// The time of the row.
    Time,
    /// A text with few values.
    Word,
    /// Any text.
    Text,
    Whole(&'static str),
}

/// All columns: what makes a row unique, then the fields of a line as docs/access-log.md has them. What a line does not have
/// is empty or 0.
const COLUMNS: &[(&str, Kind)] = &[
    ("time", Kind::Time),
    ("node", Kind::Word),
    ("shard", Kind::Whole("UInt16")),
    ("line", Kind::Whole("UInt64")),
    ("request_id", Kind::Text),
    ("trace_id", Kind::Text),
    ("client", Kind::Text),
    ("user", Kind::Text),
    ("method", Kind::Word),
    ("host", Kind::Text),
    ("path", Kind::Text),
    ("protocol", Kind::Word),
    ("status", Kind::Whole("UInt16")),
    ("reason", Kind::Word),
    ("reason_detail", Kind::Text),
    ("route", Kind::Word),
    ("upstream", Kind::Word),
    ("instance", Kind::Word),
    ("upstream_us", Kind::Whole("UInt64")),
    ("connect_us", Kind::Whole("UInt64")),
    ("attempts", Kind::Whole("UInt32")),
    ("reused", Kind::Whole("UInt8")),
    ("request_bytes", Kind::Whole("UInt64")),
    ("response_bytes", Kind::Whole("UInt64")),
    ("total_us", Kind::Whole("UInt64")),
    ("gateway_us", Kind::Whole("UInt64")),
    ("user_agent", Kind::Text),
    ("close_code", Kind::Whole("UInt16")),
    ("messages_in", Kind::Whole("UInt32")),
    ("messages_out", Kind::Whole("UInt32")),
];

impl Kind {
    const fn name(self, version: Version) -> &'static str {
        match (self, version.is_modern()) {
            (Self::Time, true) => "DateTime64(3, 'UTC') CODEC(Delta, ZSTD)",
            (Self::Time, false) => "DateTime('UTC')",
            (Self::Word, true) => "LowCardinality(String)",
            (Self::Text, true) => "String CODEC(ZSTD)",
            (Self::Word | Self::Text, false) => "String",
            (Self::Whole(name), _) => name,
        }
    }
}

/// The names of all columns.
pub fn columns() -> impl Iterator<Item = &'static str> {
    COLUMNS.iter().map(|(name, _)| *name)
}

fn qualified(config: &Clickhouse) -> String {
    format!("`{}`.`{}`", config.database, config.table)
}

/// The statement that makes the table where there is none. Rows with the same time, process, shard and number are one row:
/// a batch may be sent twice.
pub fn create(config: &Clickhouse, version: Version) -> String {
    let columns: Vec<_> = COLUMNS.iter().map(|(name, kind)| format!("`{name}` {}", kind.name(version))).collect();
    let mut sql = format!(
        "CREATE TABLE IF NOT EXISTS {} ({}) ENGINE = ReplacingMergeTree() PARTITION BY toDate(time) \
         ORDER BY (time, node, shard, line)",
        qualified(config),
        columns.join(", ")
    );
    if version.is_modern() && config.keep_days > 0 {
        // Writing to a String cannot fail.
        let _ = write!(sql, " TTL {}", lifetime(config));
    }
    let mut settings = Vec::new();
    if version.is_modern() {
        // Days go whole, by the partition.
        settings.push("ttl_only_drop_parts = 1");
    }
    if version.has_deduplication() {
        settings.push("non_replicated_deduplication_window = 1000");
    }
    if !settings.is_empty() {
        let _ = write!(sql, " SETTINGS {}", settings.join(", "));
    }
    sql
}

fn lifetime(config: &Clickhouse) -> String {
    format!("toDate(time) + INTERVAL {} DAY", config.keep_days.saturating_add(1))
}

/// The statement that tells which columns there are, one a line.
pub fn list_columns(config: &Clickhouse) -> String {
    format!(
        "SELECT name FROM system.columns WHERE database = '{}' AND table = '{}' FORMAT TabSeparated",
        config.database, config.table
    )
}

/// The statement that tells the table's engine, keys and lifetime.
pub fn show_engine(config: &Clickhouse) -> String {
    let Clickhouse { database, table, .. } = config;
    format!("SELECT engine_full FROM system.tables WHERE database = '{database}' AND name = '{table}' FORMAT TSVRaw")
}

/// The statements that bring a table with these columns and this engine up to date.
pub fn update(config: &Clickhouse, version: Version, found: &BTreeSet<String>, engine: &str) -> Vec<String> {
    let table = qualified(config);
    let missing = COLUMNS.iter().filter(|(name, _)| !found.contains(*name));
    let mut statements: Vec<_> =
        missing.map(|(name, kind)| format!("ALTER TABLE {table} ADD COLUMN `{name}` {}", kind.name(version))).collect();
    // Another lifetime is work for the server, so it is told of one only.
    let days = config.keep_days.saturating_add(1);
    if version.is_modern() && config.keep_days > 0 && !engine.contains(&format!("toIntervalDay({days})")) {
        statements.push(format!("ALTER TABLE {table} MODIFY TTL {}", lifetime(config)));
    }
    statements
}

/// Whether the server forgets old days by itself.
pub(super) const fn forgets(version: Version) -> bool {
    version.is_modern()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn versions() {
        assert_eq!(Version::parse("18.16.1\n"), Some(Version(18, 16)));
        assert_eq!(Version::parse("26.9.2.1"), Some(Version(26, 9)));
        assert_eq!([Version::parse(""), Version::parse("<html>"), Version::parse("22")], [None; 3]);
        let has = |text| Version::parse(text).unwrap().has_deduplication();
        assert_eq!([has("18.16"), has("22.1"), has("22.2"), has("23.1")], [false, false, true, true]);
    }

    /// Every field of a line has a column, and every column is a field.
    #[test]
    fn the_columns_are_the_fields_of_a_line() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/access-log.md");
        let text = fs::read_to_string(path).unwrap();
        let fields = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let mut expected: BTreeSet<_> = fields.map(|(name, _)| name).collect();
        expected.extend(["node", "line"]);
        assert_eq!(columns().collect::<BTreeSet<_>>(), expected);
    }

    #[test]
    fn an_older_table_gets_what_it_lacks() {
        let config = Clickhouse::default();
        let mut found: BTreeSet<_> = columns().map(str::to_owned).collect();
        found.remove("close_code");
        let old = update(&config, Version(18, 16), &found, "");
        assert_eq!(old, ["ALTER TABLE `default`.`shardgate_access` ADD COLUMN `close_code` UInt16"]);
        let new = update(&config, Version(26, 9), &found, "TTL toDate(time) + toIntervalDay(8)");
        let lifetime = "ALTER TABLE `default`.`shardgate_access` MODIFY TTL toDate(time) + INTERVAL 31 DAY";
        assert_eq!(new, [old[0].as_str(), lifetime]);
        let for_ever = Clickhouse { keep_days: 0, ..config.clone() };
        found.insert("close_code".to_owned());
        assert_eq!(update(&for_ever, Version(26, 9), &found, ""), [""; 0]);
        let has_it = "TTL toDate(time) + toIntervalDay(31) SETTINGS x = 1";
        assert_eq!(update(&config, Version(26, 9), &found, has_it), [""; 0]);
        assert!(!create(&for_ever, Version(26, 9)).contains("TTL"));
    }
}

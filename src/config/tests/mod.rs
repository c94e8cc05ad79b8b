//! What the whole does: a file and an environment in, a configuration or all its mistakes out.
#![expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

mod admin;
mod clickhouse;
mod defaults;
mod discover;
mod edge;
mod environment;
mod health;
mod hostile;
mod hub;
mod idle;
mod instances;
mod limits;
mod mistakes;
mod sessions;
mod table;
mod traces;

use super::*;
use expect_test::Expect;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const ONE_ROUTE: &str = "[upstreams.a]\ninstances = [\"h:1\"]\n[[routes]]\npath = \"/\"\nupstream = \"a\"\n";

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn resolve_text(text: &str) -> Result<Config, Mistakes> {
    resolve(Some((Path::new("shardgate.toml"), text)), &env(&[]))
}

fn good(text: &str) -> Config {
    resolve_text(text).unwrap_or_else(|mistakes| panic!("{text}\n{mistakes}"))
}

/// What is wrong with a text, one mistake a line; and, when nothing is, its warnings.
fn check(text: &str, expected: &Expect) {
    check_with(text, &[], expected);
}

fn check_with(text: &str, pairs: &[(&str, &str)], expected: &Expect) {
    let told = match resolve(Some((Path::new("shardgate.toml"), text)), &env(pairs)) {
        Err(mistakes) => mistakes.to_string(),
        Ok(config) => config.warnings.iter().flat_map(|warning| ["warning: ", warning, "\n"]).collect(),
    };
    expected.assert_eq(&told);
}

//! `shardgate migrate`: the tables of all stores that are configured.

use std::io::Write;

use anyhow::Context as _;

use crate::{accounts::cli, config::Config, sinks::clickhouse};

/// Makes the tables of the configured stores, or brings them up to date.
pub fn migrate(config: &Config, output: &mut impl Write) -> anyhow::Result<()> {
    // Whoever has ClickHouse only keeps no users.
    if config.accounts.enabled || !config.clickhouse.enabled {
        cli::migrate(config, output)?;
    }
    if config.clickhouse.enabled {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let done = runtime.block_on(clickhouse::migrate(&config.clickhouse));
        runtime.shutdown_background();
        writeln!(output, "{}", done.context("the table in ClickHouse cannot be made")?)?;
    }
    Ok(())
}

//! `shardgate migrate`: makes the table, or brings it up to date.

use std::collections::BTreeSet;

use anyhow::{anyhow, bail};

use super::answer::{Answer, advice};
use super::client::Client;
use super::table::{self, Version};
use crate::config::Clickhouse;

/// Of what the server says so much is shown.
const SAID_MAX: usize = 400;

/// Makes the table where there is none, and adds the columns that it lacks; says what was done. Within a tokio runtime.
pub async fn migrate(config: &Clickhouse) -> anyhow::Result<String> {
    let client = Client::new(config).map_err(|wrong| anyhow!(wrong))?;
    let said = ask(&client, "SELECT version()").await?;
    let Some(version) = Version::parse(&said) else { bail!("what answers at {} is no ClickHouse", config.url) };
    ask(&client, &table::create(config, version)).await?;
    let found: BTreeSet<String> =
        ask(&client, &table::list_columns(config)).await?.lines().map(str::to_owned).collect();
    let engine = ask(&client, &table::show_engine(config)).await?;
    for statement in table::update(config, version, &found, &engine) {
        ask(&client, &statement).await?;
    }
    let mut done =
        format!("the table {}.{} in ClickHouse {} is up to date", config.database, config.table, said.trim());
    if config.keep_days > 0 && !table::forgets(version) {
        done.push_str("; this server forgets nothing by itself, so drop old days (docs/clickhouse.md)");
    }
    Ok(done)
}

async fn ask(client: &Client, statement: &str) -> anyhow::Result<String> {
    let answer =
        client.query(statement).await.map_err(|class| anyhow!("it cannot be asked ({class}): {}", advice(class)))?;
    if answer.status == 200 && answer.code().is_none() {
        return Ok(String::from_utf8_lossy(&answer.text).into_owned());
    }
    Err(anyhow!("it answers {}: {}", answer.status, said(&answer)))
}

/// The beginning of what it says, in one line.
fn said(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.text);
    text.chars().take(SAID_MAX).map(|character| if character.is_control() { ' ' } else { character }).collect()
}

//! What `deploy/` has for those who run Shardgate: a dashboard of Grafana, alerts and a job of Prometheus. Each metric that is
//! named there is in the table, each page that is referred to is in the documentation, and each query has an answer.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::metrics::{busy_config, keep_busy};
use crate::{
    certificate::Made,
    harness::{Gateway, until},
    journey::outcomes::nobody,
    servers::{prometheus::Prometheus, redis::RedisServer},
    service::Service,
};

const SECRET: &str = "what refresh tokens of these tests are made with";

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(deploy(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The queries of the dashboard, with what Grafana puts in the place of its variables.
fn dashboard_queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana/shardgate.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let annotations = dashboard["annotations"]["list"].as_array().expect("a list").iter();
    let queries = targets.chain(annotations).map(|target| target["expr"].as_str().expect("a query"));
    queries.map(filled).collect()
}

fn filled(query: &str) -> String {
    let query = query.replace("$__rate_interval", "1m");
    ["$job", "$instance", "$upstream"].iter().fold(query, |query, name| query.replace(name, ".*"))
}

/// The same with the outcome of its comparisons instead of what passes them: an alert that is quiet has an answer then.
fn answered(query: &str) -> String {
    [" > ", " == ", " < "].iter().fold(query.to_owned(), |query, sign| query.replace(sign, &format!("{sign}bool ")))
}

/// Words that begin as metrics do.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words.filter(|word| word.starts_with("shardgate_")).collect()
}

#[test]
fn each_metric_that_is_named_is_in_the_table() {
    let table = fs::read_to_string(deploy("../docs/metrics.md")).expect("it is there");
    let known: BTreeSet<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(name, _)| name).collect();
    let mut named = 0;
    for file in ["grafana/shardgate.json", "prometheus/alerts.yml", "prometheus/prometheus.yml"] {
        let text = read(file);
        for name in names(&text) {
            let of_histogram = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
            let is_known = known.contains(name) || of_histogram.is_some_and(|name| known.contains(name));
            assert!(is_known, "{file} names {name}, which docs/metrics.md does not have");
            named += 1;
        }
    }
    assert!(named > 100, "the walk finds names: {named}");
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(&read("grafana/shardgate.json")).expect("JSON");
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64()), "{title}: an id of its own");
        let at = |name: &str| panel["gridPos"][name].as_u64().expect("a number");
        assert!(at("x") + at("w") <= 24, "{title} is within the page");
        assert!(places.insert((at("y"), at("x"))), "{title} has a place of its own");
        let of_source = |target: &Value| target["datasource"]["uid"] == "${datasource}";
        let mut targets = panel["targets"].as_array().into_iter().flatten();
        assert!(targets.all(of_source), "{title} asks the source that is chosen");
    }
}

/// What an alert has beside its query.
fn check_rule(rule: &Value) {
    let name = rule["name"].as_str().expect("a name");
    assert!(name.starts_with("Shardgate"), "{name}");
    let severity = rule["labels"]["severity"].as_str();
    assert!(severity.is_some_and(|known| ["critical", "warning", "info"].contains(&known)), "{name}: {severity:?}");
    let said = |what: &str| rule["annotations"][what].as_str().unwrap_or_else(|| panic!("{name} has no {what}"));
    assert!(!said("summary").is_empty() && said("description").ends_with('.'), "{name}: say what is wrong");
    let runbook = said("runbook");
    let page = runbook.rsplit(' ').next().expect("a word");
    let (file, heading) = page.split_once('#').unwrap_or((page, ""));
    let text = fs::read_to_string(deploy("..").join(file)).unwrap_or_else(|_| panic!("{name}: there is no {file}"));
    let slug = |line: &str| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        words.replace(' ', "-").replace(|one: char| !one.is_alphanumeric() && one != '-', "")
    };
    let is_there = text.lines().any(|line| line.starts_with('#') && slug(line) == heading);
    assert!(heading.is_empty() || is_there, "{name}: {file} has no heading {heading}");
}

/// Everything is asked of a Prometheus that scrapes a gateway of 4 shards, as the example has it.
#[test]
fn each_query_has_an_answer() {
    let Some(redis) = RedisServer::start() else { return };
    let service = Service::start();
    let place = tempfile::tempdir().expect("a directory");
    let certificate = Made::new(place.path(), "shop", &["shop.example"]).config();
    let gateway = Gateway::start(&busy_config(
        &service,
        &format!(
            "{certificate}[redis]\nurls = [\"{}\"]\n[sessions]\nsecret = \"{SECRET}\"\n\
             [clickhouse]\nenabled = true\nurl = \"http://{}\"\n",
            redis.url(),
            nobody()
        ),
    ));
    let config = read("prometheus/prometheus.yml")
        .replace("127.0.0.1:3001", &gateway.admin().to_string())
        .replace("_interval: 15s", "_interval: 200ms");
    assert!(config.contains("200ms"), "the example says how often");
    let rules = deploy("prometheus/alerts.yml");
    let Some(prometheus) = Prometheus::start(&config, ("alerts.yml", &rules)) else { return };
    let answer = prometheus.api("/api/v1/rules", "");
    let groups = answer["groups"].as_array().expect("groups").iter();
    let rules: Vec<&Value> = groups.flat_map(|group| group["rules"].as_array().expect("rules")).collect();
    assert!(rules.len() > 30, "all are loaded: {}", rules.len());
    rules.iter().copied().for_each(check_rule);
    let alerts = rules.iter().map(|rule| rule["query"].as_str().expect("a query").to_owned());
    let queries: Vec<String> = dashboard_queries().into_iter().chain(alerts).collect();
    assert!(queries.len() > 140, "{}", queries.len());

    let mut left = queries;
    until(Duration::from_mins(1), "each query has an answer", || {
        keep_busy(&gateway);
        left.retain(|query| {
            let answer = prometheus.api("/api/v1/query", &answered(query));
            answer["result"].as_array().is_none_or(Vec::is_empty)
        });
        eprintln!("without an answer: {left:#?}");
        left.is_empty().then_some(())
    });
    // The traces that stand for requests are taken too.
    let exemplars = prometheus.api("/api/v1/query_exemplars", "shardgate_request_duration_seconds_bucket");
    let first = &exemplars[0];
    assert!(first["exemplars"][0]["labels"]["trace_id"].is_string(), "{exemplars}");
}

//! From what is written to a checked [`Config`]: reads every section, checks what holds between keys, and reports all
//! mistakes at once.

use super::accounts::check_accounts;
use super::admin::{check_admin_tls, read_admin};
use super::auth::read_auth;
use super::clickhouse::check_clickhouse;
use super::cors::check_cors;
use super::hub::{CLOSE_WITHIN, read_hub};
use super::keys::SECTIONS;
use super::keys::section::FromFields as _;
use super::limits::{read_limits, warn_about_lonely, warn_about_unused};
use super::listeners::{read_listeners, read_tls};
use super::raw::{self, Node, Table, Value};
use super::read::{Fields, suggestion};
use super::redis::check_redis;
use super::report::{Location, Mistakes, Report};
use super::roles::read_roles;
use super::routes::{read_routes, warn_about_idle_upstreams, warn_about_own_paths};
use super::secret_file::explained;
use super::sessions::check_sessions;
use super::trace::check_trace;
use super::upstreams::{read_upstreams, warn_about_zones};
use super::{
    Accounts, Admin, Auth, Clickhouse, Config, Cors, Discovery, Drain, Http, Hub, IpNet, Listener, Log, Metrics, Redis,
    Sessions, Trace, Trust, env,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The upstreams and routes of a configuration that says nothing about routes (the reference platform's).
const BUILT_IN_UPSTREAMS: [(&str, &str); 3] = [
    ("ingestion", r#"["127.0.0.1:4001"]"#),
    ("prediction", r#"["127.0.0.1:4002"]"#),
    ("ai-engine", r#"["127.0.0.1:4003"]"#),
];
const BUILT_IN_ROUTES: &str = r#"[
    { name = "ingestion", path = "/api/events/*", upstream = "ingestion", strip_prefix = "/api" },
    { name = "prediction", path = "/api/predict/*", upstream = "prediction", strip_prefix = "/api" },
    { name = "ai-engine", path = "/api/ai/*", upstream = "ai-engine", strip_prefix = "/api" },
]"#;

/// A configuration is written by hand: what is larger is not one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Which file to read: the one given, else the one that `SHARDGATE_CONFIG` names, else `shardgate.toml` where the process
/// was started if there is one, else none.
pub fn find(given: Option<PathBuf>, env: &BTreeMap<String, String>) -> Option<PathBuf> {
    let named = || env.get(env::FILE).filter(|name| !name.is_empty()).map(PathBuf::from);
    let usual = || Some(PathBuf::from("shardgate.toml")).filter(|path| path.exists());
    given.or_else(named).or_else(usual)
}

/// Reads the file, if one is given, and this process's environment and limits.
pub fn load(path: Option<&Path>) -> Result<Config, Mistakes> {
    let text = path.map(|path| Ok((path, read_file(path)?))).transpose()?;
    let text = text.as_ref().map(|(path, text)| (*path, text.as_str()));
    let mut config = resolve(text, &env::process())?;
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    warn_about_descriptors(&mut config, descriptors.unwrap_or(u64::MAX));
    Ok(config)
}

/// Checks a configuration: the file's path and text, if there is a file, and the environment.
pub fn resolve(text: Option<(&Path, &str)>, env: &BTreeMap<String, String>) -> Result<Config, Mistakes> {
    let mut report = Report::new(text.map(|(path, _)| path));
    let root = match text {
        Some((_, text)) => raw::parse(text.trim_start_matches('\u{feff}'), env, &mut report),
        None => Some(Table::new()),
    };
    // Where it is no TOML, what the rest means is a guess.
    let Some(mut root) = root else { return Err(report.into_mistakes()) };
    report_unknown_sections(&root, &mut report);
    env::overlay(&mut root, env, &mut report);
    fill_in_built_in(&mut root, &mut report);
    let mut config = read_config(&root, &mut report);
    if !report.is_clean() {
        return Err(report.into_mistakes());
    }
    config.warnings = report.warnings;
    Ok(config)
}

impl Default for Config {
    /// What holds when nothing is configured.
    fn default() -> Self {
        resolve(None, &BTreeMap::new()).expect("the table's defaults are right")
    }
}

fn read_file(path: &Path) -> Result<String, Mistakes> {
    let unreadable = |error: std::io::Error| {
        let right = if error.kind() == std::io::ErrorKind::NotFound {
            "without one the defaults hold"
        } else {
            "name a readable file, or none"
        };
        Mistakes::about_file(path, format!("the file cannot be read: {}", explained(path, error)), right)
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Mistakes::about_file(path, "the file is larger than 1MiB".to_owned(), "name a configuration"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let what = format!("the file is no UTF-8 at byte {}", error.utf8_error().valid_up_to());
        Mistakes::about_file(path, what, "save it as UTF-8")
    })
}

fn warn_about_descriptors(config: &mut Config, descriptors: u64) {
    if let Some(connections_max) = config.listener.connections_max.filter(|max| *max as u64 > descriptors / 2) {
        config.warnings.push(format!(
            "listener.connections_max is {connections_max}, but the process may hold {descriptors} file descriptors and a \
             proxied request takes two; raise the limit (ulimit -n, LimitNOFILE) to {} or more",
            connections_max.saturating_mul(2)
        ));
    }
}

fn report_unknown_sections(root: &Table, report: &mut Report) {
    let mut known: Vec<&str> = SECTIONS.iter().filter_map(|section| section.name.split('.').next()).collect();
    known.dedup();
    for (name, node) in root.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
        // A key above the first section header belongs to none.
        let at_home =
            SECTIONS.iter().find(|section| !matches!(node.value, Value::Table(_)) && section.key(name).is_some());
        let (what, right) = match at_home {
            Some(section) => ("is in no section", format!("did you mean {}.{name}?", section.name)),
            None => ("is not a section", suggestion(name, &known, "")),
        };
        report.push(node.place.clone(), format!("{name} {what}"), &right);
    }
}

/// Without routes the built-in ones apply, with the user's upstreams where they have the built-in names.
fn fill_in_built_in(root: &mut Table, report: &mut Report) {
    if root.contains_key("routes") {
        return;
    }
    root.insert("routes".to_owned(), raw::parse_value(BUILT_IN_ROUTES));
    let empty = Node { place: Location::File, value: Value::Table(Table::new()) };
    let upstreams = root.entry("upstreams".to_owned()).or_insert(empty);
    let Value::Table(table) = &mut upstreams.value else { return };
    let is_partial = !table.is_empty();
    for (name, instances) in BUILT_IN_UPSTREAMS {
        let user_defined = table.contains_key(name);
        let empty = Node { place: Location::File, value: Value::Table(Table::new()) };
        let Value::Table(upstream) = &mut table.entry(name.to_owned()).or_insert(empty).value else { continue };
        upstream.entry("instances".to_owned()).or_insert_with(|| raw::parse_value(instances));
        if is_partial && !user_defined {
            let instances = instances.trim_matches(['[', ']']);
            let warning =
                format!("there are no routes, so the built-in ones apply, and upstreams.{name} is {instances}");
            report.warn(&upstreams.place, &warning);
        }
    }
}

fn read_config(root: &Table, report: &mut Report) -> Config {
    let mut config = Config::read_once(root, report);
    config.upstreams = read_upstreams(root, config.redis.is_given(), report);
    config.roles = read_roles(root, report);
    config.limits = read_limits(root, report);
    check_cors(&config.cors, &Cors::fields(root), report);
    config.routes = read_routes(root, &config, report);
    warn_about_unused(&config.limits, &config.routes, report);
    check_redis(&config.redis, &Redis::fields(root), report);
    warn_about_lonely(&config.limits, config.redis.is_given(), report);
    check_accounts(&config.accounts, &Accounts::fields(root), report);
    read_auth(&mut config.auth, &Auth::fields(root), report);
    warn_about_own_users(&config, root, report);
    check_sessions(&config, &Sessions::fields(root), report);
    read_hub(&mut config, &Hub::fields(root), report);
    warn_about_idle_upstreams(&config, report);
    warn_about_zones(&config, report);
    warn_about_own_paths(&config, report);
    read_admin(&mut config.admin, &Admin::fields(root), report);
    config.listeners = read_listeners(root, &config, report);
    read_tls(root, &mut config, report);
    check_admin_tls(&config, &Admin::fields(root), report);
    check_target(&config.http, &Http::fields(root), report);
    check_intervals(&config.discovery, &Discovery::fields(root), report);
    check_drain(&config, &Drain::fields(root), report);
    check_trace(&config.trace, &Trace::fields(root), report);
    check_clickhouse(&config, &Clickhouse::fields(root), report);
    check_log_level(&config.log.level, &Log::fields(root), report);
    if config.metrics.allow.iter().any(IpNet::is_everybody) {
        let place = Metrics::fields(root).place_of("allow");
        report.warn(&place, "metrics.allow shows everybody what the gateway counts");
    }
    if config.trust.proxies.iter().any(IpNet::is_everybody) {
        let place = Trust::fields(root).place_of("proxies");
        report.warn(&place, "trust.proxies trusts every peer to say where a request came from");
    }
    config
}

/// Instances that share a Redis are behind one address, and each request may come to any of them.
fn warn_about_own_users(config: &Config, root: &Table, report: &mut Report) {
    if !(config.redis.is_given() && config.accounts.enabled) {
        return;
    }
    let place = Redis::fields(root).place_of("urls");
    if config.auth.keys.is_empty() {
        report.warn(
            &place,
            "redis.urls is given, and tokens are signed with a key that this instance makes for itself: others that share \
             the Redis answer them with 401; give all of them the same [[auth.keys]]",
        );
    }
    if config.accounts.postgres_url.is_none() {
        report.warn(
            &place,
            "redis.urls is given, and users are kept in this instance's own file: others that share the Redis do not have \
             them; name accounts.postgres_url, or take the tokens of an issuer (accounts.enabled = false)",
        );
    }
}

impl Listener {
    /// How many client connections may be open at once when the process may hold this many file descriptors. Each
    /// proxied request may take one more for its upstream, hence the half.
    pub fn connections_allowed(&self, descriptors: u64) -> usize {
        let half = usize::try_from(descriptors / 2).unwrap_or(usize::MAX);
        self.connections_max.unwrap_or(half).max(1)
    }
}

fn check_target(&Http { head_bytes_max, target_bytes_max, .. }: &Http, http: &Fields<'_>, report: &mut Report) {
    if target_bytes_max > head_bytes_max {
        let [target, head] = [target_bytes_max, head_bytes_max].map(|bytes| super::written_size(bytes as u64));
        let right = format!("a target is part of a head, and http.head_bytes_max is \"{head}\"");
        http.wrong_pair(report, ["target_bytes_max", "head_bytes_max"], format_args!("is \"{target}\""), &right);
    }
}

fn check_intervals(discovery: &Discovery, fields: &Fields<'_>, report: &mut Report) {
    if discovery.interval_max < discovery.interval_min {
        let [min, max] = [discovery.interval_min, discovery.interval_max].map(super::written_duration);
        let right = format!("it is not less than discovery.interval_min, which is \"{min}\"");
        fields.wrong_pair(report, ["interval_max", "interval_min"], format_args!("is \"{max}\""), &right);
    }
}

fn check_drain(config: &Config, drain: &Fields<'_>, report: &mut Report) {
    let Drain { notice, window, max } = config.drain;
    // The last sockets of the hub are closed at the end of the window, and then wait for their clients.
    let needed = notice + window + CLOSE_WITHIN;
    let [shown, least, close] = [max, needed, CLOSE_WITHIN].map(super::written_duration);
    if max < notice {
        let right = format!("it is not less than drain.notice, which is \"{}\"", super::written_duration(notice));
        drain.wrong_pair(report, ["max", "notice"], format_args!("is \"{shown}\""), &right);
    } else if config.hub.enabled && max < needed {
        let warning = format!(
            "drain.max is \"{shown}\", and drain.notice, drain.window and the {close} in which a client of the hub may answer a \
             close make \"{least}\": sockets may be cut, and the process then ends with 3"
        );
        report.warn(&drain.place_of("max"), &warning);
    }
}

fn check_log_level(level: &str, log: &Fields<'_>, report: &mut Report) {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in level.split(',') {
        let (target, level) = directive.rsplit_once('=').unwrap_or(("all", directive));
        let is_target = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-');
        if target.is_empty() || !target.bytes().all(is_target) || !LEVELS.contains(&level) {
            let right = format!("write a level or target=level; levels are {}", LEVELS.map(raw::quoted).join(", "));
            log.wrong(report, "level", format_args!("has {}", raw::quoted(directive)), &right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_connections_than_half_the_descriptors_are_worth_a_warning() {
        let warnings = |connections_max, descriptors| {
            let mut config = Config::default();
            config.listener.connections_max = connections_max;
            warn_about_descriptors(&mut config, descriptors);
            config.warnings
        };
        assert_eq!(warnings(None, 16), Vec::<String>::new());
        assert_eq!(warnings(Some(512), 1024), Vec::<String>::new());
        assert_eq!(
            warnings(Some(10_000), 1024),
            [
                "listener.connections_max is 10000, but the process may hold 1024 file descriptors and a proxied request \
              takes two; raise the limit (ulimit -n, LimitNOFILE) to 20000 or more"
            ]
        );
    }
}

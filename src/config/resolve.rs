//! From what is written to a checked [`Config`]: reads every section, checks what holds between keys, and reports all
//! mistakes at once.

use super::accounts::read_accounts;
use super::address::NO_TLS;
use super::auth::read_auth;
use super::cors::read_cors;
use super::keys::SECTIONS;
use super::limits::{read_limits, warn_about_lonely, warn_about_unused};
use super::listeners::{check_listeners, read_listeners};
use super::raw::{self, Node, Place, Table, Value};
use super::read::{Fields, Mistakes, Report, suggestion};
use super::redis::read_redis;
use super::roles::read_roles;
use super::routes::{Referred, check_body_methods, read_routes, warn_about_own_paths};
use super::sessions::{read_revocation, read_sessions};
use super::{
    Admin, Config, Data, Drain, Http, Instance, IpNet, Listener, Log, Metrics, Runtime, Trace, Trust, Upstream, env,
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

impl Upstream {
    /// An upstream of these instances with everything else as by default.
    pub fn new(instances: Vec<Instance>) -> Self {
        let mut report = Report::new(None);
        let fields = Fields::of("upstreams.<name>", String::new(), None, &mut report);
        Self { instances, ..read_upstream(&fields, &mut report) }
    }
}

fn read_file(path: &Path) -> Result<String, Mistakes> {
    let unreadable = |error: std::io::Error| {
        Mistakes::about_file(path, format!("the file cannot be read: {error}"), "name a readable file, or none")
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
    let empty = Node { place: Place::File, value: Value::Table(Table::new()) };
    let upstreams = root.entry("upstreams".to_owned()).or_insert(empty);
    let Value::Table(table) = &mut upstreams.value else { return };
    let is_partial = !table.is_empty();
    for (name, instances) in BUILT_IN_UPSTREAMS {
        let user_defined = table.contains_key(name);
        let empty = Node { place: Place::File, value: Value::Table(Table::new()) };
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
    let mut section = |name: &str| Fields::of(name, name.to_owned(), root.get(name), report);
    let [runtime, listener, admin, metrics] = ["runtime", "listener", "admin", "metrics"].map(&mut section);
    let [http, trust, trace, drain] = ["http", "trust", "trace", "drain"].map(&mut section);
    let [data, log] = ["data", "log"].map(&mut section);
    let (listeners, ports) = read_listeners(root.get("listeners"), report);
    let upstreams = read_upstreams(root.get("upstreams"), report);
    let roles = read_roles(root.get("roles"), report);
    let cors = read_cors(root.get("cors"), report);
    let limits = read_limits(root.get("limits"), report);
    let referred = Referred { upstreams: &upstreams, roles: &roles, limits: &limits, cors: &cors };
    let routes = read_routes(root.get("routes"), &referred, report);
    warn_about_unused(&limits, &routes, report);
    let redis = read_redis(root.get("redis"), report);
    warn_about_lonely(&limits, redis.is_given(), report);
    let config = Config {
        runtime: Runtime {
            shards: none_for_zero(runtime.take("shards", report)),
            driver: runtime.take("driver", report),
            pin: runtime.take("pin", report),
            lookup_timeout: runtime.take("lookup_timeout", report),
        },
        listener: Listener {
            address: listener.take("address", report),
            port: listener.take("port", report),
            backlog: listener.take("backlog", report),
            connections_max: none_for_zero(listener.take("connections_max", report)),
            accept_budget: listener.take("accept_budget", report),
            hand_over: listener.take("hand_over", report),
        },
        listeners,
        admin: Admin {
            enabled: admin.take("enabled", report),
            address: admin.take("address", report),
            port: admin.take("port", report),
        },
        metrics: Metrics { allow: metrics.take("allow", report) },
        http: read_http(&http, report),
        trust: Trust { proxies: trust.take("proxies", report) },
        trace: Trace { sample_ratio: trace.take("sample_ratio", report) },
        drain: Drain {
            notice: drain.take("notice", report),
            window: drain.take("window", report),
            max: drain.take("max", report),
        },
        data: Data { dir: data.take("dir", report) },
        accounts: read_accounts(root.get("accounts"), report),
        log: Log {
            level: log.take("level", report),
            format: log.take("format", report),
            access: log.take("access", report),
            buffer_bytes: log.take("buffer_bytes", report),
            flush_interval: log.take("flush_interval", report),
        },
        cors,
        limits,
        auth: read_auth(root.get("auth"), report),
        sessions: read_sessions(root.get("sessions"), &redis, report),
        revocation: read_revocation(root.get("revocation"), report),
        redis,
        roles,
        upstreams,
        routes,
        warnings: Vec::new(),
    };
    warn_about_own_paths(&config.routes, config.accounts.enabled, report);
    check_listeners(&config, &listener, ports, &admin, report);
    check_limits(&config, &http, &drain, report);
    check_log_level(&config.log.level, &log, report);
    if config.metrics.allow.iter().any(IpNet::is_everybody) {
        report.warn(&metrics.place_of("allow"), "metrics.allow shows everybody what the gateway counts");
    }
    if config.trust.proxies.iter().any(IpNet::is_everybody) {
        report.warn(&trust.place_of("proxies"), "trust.proxies trusts every peer to say where a request came from");
    }
    config
}

fn none_for_zero(number: usize) -> Option<usize> {
    (number != 0).then_some(number)
}

fn read_http(http: &Fields<'_>, report: &mut Report) -> Http {
    Http {
        header_timeout: http.take("header_timeout", report),
        request_timeout: http.take("request_timeout", report),
        keep_alive_timeout: http.take("keep_alive_timeout", report),
        head_bytes_max: http.take("head_bytes_max", report),
        fields_max: http.take("fields_max", report),
        target_bytes_max: http.take("target_bytes_max", report),
        body_bytes_max: http.take("body_bytes_max", report),
        stream_idle_timeout: http.take("stream_idle_timeout", report),
        on_client_close: http.take("on_client_close", report),
        interim_answers: http.take("interim_answers", report),
        requests_per_connection_max: http.take("requests_per_connection_max", report),
    }
}

fn check_limits(config: &Config, http: &Fields<'_>, drain: &Fields<'_>, report: &mut Report) {
    let Http { head_bytes_max, target_bytes_max, .. } = config.http;
    let sound = ["target_bytes_max", "head_bytes_max"].iter().all(|key| http.is_sound(key, report));
    if sound && target_bytes_max > head_bytes_max {
        let [target, head] = [target_bytes_max, head_bytes_max].map(|bytes| super::written_size(bytes as u64));
        let place =
            http.node("target_bytes_max").map_or_else(|| http.place_of("head_bytes_max"), |node| node.place.clone());
        let right = format!("a target is part of a head, and http.head_bytes_max is \"{head}\"");
        report.push(place, format!("http.target_bytes_max is \"{target}\""), &right);
    }
    let Drain { notice, max, .. } = config.drain;
    let sound = ["max", "notice"].iter().all(|key| drain.is_sound(key, report));
    if sound && max < notice {
        let [notice, max] = [notice, max].map(super::written_duration);
        let place = drain.node("max").map_or_else(|| drain.place_of("notice"), |node| node.place.clone());
        let right = format!("it is not less than drain.notice, which is \"{notice}\"");
        report.push(place, format!("drain.max is \"{max}\""), &right);
    }
}

fn check_log_level(level: &str, log: &Fields<'_>, report: &mut Report) {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in level.split(',') {
        let (target, level) = directive.rsplit_once('=').unwrap_or(("all", directive));
        let is_target = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-');
        if target.is_empty() || !target.bytes().all(is_target) || !LEVELS.contains(&level) {
            let what = format!("log.level has {}", raw::quoted(directive));
            let levels = LEVELS.map(raw::quoted).join(", ");
            report.push(log.place_of("level"), what, &format!("write a level or target=level; levels are {levels}"));
        }
    }
}

fn read_upstreams(node: Option<&Node>, report: &mut Report) -> BTreeMap<String, Upstream> {
    let mut upstreams = BTreeMap::new();
    let Some(node) = node else { return upstreams };
    let Value::Table(table) = &node.value else {
        report.wrong(node, "upstreams", "it is a table of upstreams by name: [upstreams.shop]");
        return upstreams;
    };
    for (name, node) in table {
        let path = format!("upstreams.{name}");
        if !is_name(name) {
            let what = format!("{} is no name of an upstream", raw::quoted(name));
            report.push(node.place.clone(), what, NAME_FORM);
            continue;
        }
        let fields = Fields::of("upstreams.<name>", path, Some(node), report);
        let upstream = read_upstream(&fields, report);
        check_instances(&upstream.instances, &fields, report);
        upstreams.insert(name.clone(), upstream);
    }
    upstreams
}

fn read_upstream(fields: &Fields<'_>, report: &mut Report) -> Upstream {
    let body_methods: Vec<String> = fields.take("body_methods", report);
    check_body_methods(&body_methods, fields, report);
    Upstream {
        instances: fields.take_written("instances", report).unwrap_or_default(),
        connect_timeout: fields.take("connect_timeout", report),
        response_timeout: fields.take("response_timeout", report),
        idle_timeout: fields.take("idle_timeout", report),
        idle_max: fields.take("idle_max", report),
        head_bytes_max: fields.take("head_bytes_max", report),
        fields_max: fields.take("fields_max", report),
        interim_answers_max: fields.take("interim_answers_max", report),
        requests_max: fields.take("requests_max", report),
        uploads_max: fields.take_written("uploads_max", report),
        body_methods,
        retries_max: fields.take("retries_max", report),
        retry_budget_percent: fields.take("retry_budget_percent", report),
        retry_budget_min_per_s: fields.take("retry_budget_min_per_s", report),
        outlier_failures: fields.take("outlier_failures", report),
        outlier_ejection: fields.take("outlier_ejection", report),
        outlier_percent_max: fields.take("outlier_percent_max", report),
    }
}

/// How the names of upstreams and roles look.
pub(super) const NAME_FORM: &str = "a name is a letter, then up to 63 of a-z, 0-9, - and _";

pub(super) fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
}

/// As many as one shard's snapshot of an upstream should ever hold.
pub const INSTANCES_MAX: usize = 1024;

const HTTPS_PORT: u16 = 443;

fn check_instances(instances: &[Instance], fields: &Fields<'_>, report: &mut Report) {
    let Some(node) = fields.node("instances") else { return };
    let path = format!("{}.instances", fields.path);
    let written = if let Value::List(list) = &node.value { list.len() } else { instances.len() };
    if written == 0 && !matches!(node.value, Value::Broken) {
        report.push(node.place.clone(), format!("{path} is empty"), "an upstream has one instance or more");
    }
    if written > INSTANCES_MAX {
        let right = format!("an upstream has at most {INSTANCES_MAX}");
        report.push(node.place.clone(), format!("{path} has {written} instances"), &right);
        return;
    }
    for (index, instance) in instances.iter().enumerate() {
        if instances[..index].contains(instance) {
            report.push(node.place.clone(), format!("{path} has {instance} twice"), "name each instance once");
        }
        if instance.port == HTTPS_PORT {
            report.warn(&node.place, &format!("{path} has {instance}, the port of HTTPS, and {NO_TLS}"));
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

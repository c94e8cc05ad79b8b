//! Upstreams from what is written: their servers, and the methods with which these read bodies.

use super::address::host_name;
use super::keys::section::{FromFields as _, Part};
use super::listing::ListingFormat;
use super::names::is_token;
use super::raw::{Table, Value, quoted};
use super::read::Fields;
use super::report::{Location, Report};
use super::values::texts;
use super::{
    Balance, Breaker, Config, Discover, Health, Instance, ProbeKind, ServerAddress, Upstream, UpstreamTls,
    written_duration,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// As many as one shard's snapshot of an upstream should ever hold.
pub const INSTANCES_MAX: usize = 1024;

const HTTPS_PORT: u16 = 443;

/// What keeps a request with one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The client's address.
    Address,
    /// The caller.
    User,
    /// The value of the first field of this name.
    Header(Box<str>),
    /// The value of the first cookie of this name.
    Cookie(Box<str>),
}

impl FromStr for HashKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "address" => Ok(Self::Address),
            None if text == "user" => Ok(Self::User),
            Some(("header", name)) if is_token(name) => Ok(Self::Header(name.into())),
            Some(("cookie", name)) if is_token(name) => Ok(Self::Cookie(name.into())),
            _ => Err("it is \"address\", \"user\", \"header:NAME\" or \"cookie:NAME\"".to_owned()),
        }
    }
}

impl fmt::Display for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("address"),
            Self::User => f.write_str("user"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
        }
    }
}

/// Statuses of answers, from a first to a last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

impl StatusRange {
    /// Whether it is one of them.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromStr for StatusRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let status = |text: &str| text.parse().ok().filter(|status| (100..=999).contains(status));
        match (status(first), status(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err("it is a status, like \"200\", or two with a dash between them, like \"200-399\"".to_owned()),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

/// Statuses of answers that count as failures, if any do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureStatuses(Option<StatusRange>);

impl FailureStatuses {
    /// None: an answer is no failure.
    pub const NONE: Self = Self(None);

    /// Whether this one does.
    pub fn contains(self, status: u16) -> bool {
        self.0.is_some_and(|range| range.contains(status))
    }
}

impl FromStr for FailureStatuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<StatusRange>() {
            _ if text == "none" => Ok(Self::NONE),
            Ok(range) if range.first >= 400 => Ok(Self(Some(range))),
            Ok(_) => Err("failures have a status of 400 and above".to_owned()),
            Err(_) => {
                Err("it is a status, like \"503\", two with a dash between them, like \"500-599\", or \"none\""
                    .to_owned())
            }
        }
    }
}

impl fmt::Display for FailureStatuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(range) => range.fmt(f),
            None => f.write_str("none"),
        }
    }
}

texts! {
    FailureStatuses: "status, two with a dash between them, or `none`";
    HashKey: "`address`, `user`, `header:NAME` or `cookie:NAME`";
    StatusRange: "status, or two with a dash between them";
}

impl Health {
    /// What a probe is; `None` where there are no probes.
    pub fn kind(&self) -> Option<ProbeKind> {
        self.kind.or(self.path.as_ref().map(|_| ProbeKind::Http))
    }
}

impl Discover {
    /// Whether any is looked for.
    pub fn is_given(&self) -> bool {
        *self != Self::default()
    }
}

/// Reads `[upstreams.<name>.discover]`.
fn read_discover(upstream: &Fields<'_>, has_redis: bool, report: &mut Report) -> Discover {
    let (discover, fields) = Discover::inside(upstream, "discover", report);
    if let Some(file) = discover.file.as_deref().filter(|file| ListingFormat::of(file).is_none()) {
        let what = format_args!("is {}", quoted(&file.display().to_string()));
        fields.wrong(report, "file", what, "its name ends in \".toml\" or \".json\"");
    }
    if discover.redis && !has_redis {
        fields.wrong(report, "redis", "is true, and there is no Redis", "name it in redis.urls");
    }
    let is_sound = ["file", "srv", "redis"].iter().all(|key| fields.is_sound(key, report));
    if upstream.node("instances").is_none() && upstream.node("discover").is_some() && is_sound && !discover.is_given() {
        let right = "write a file or a name with SRV records, or redis = true, or name the upstream's instances";
        report.push(fields.place(), format!("{} finds nothing", fields.path), right);
    }
    discover
}

/// Reads `[upstreams.<name>.health]`.
fn read_health(upstream: &Fields<'_>, report: &mut Report) -> Health {
    let (mut health, fields) = Health::inside(upstream, "health", report);
    if let Some(path) = &health.path {
        let is_sound = path.starts_with('/') && path.len() <= 2048 && path.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_sound || path.parse::<hyper::Uri>().is_err() || path.contains('#') {
            let right = "it is a path as it stands in a request, like \"/health\"";
            fields.wrong(report, "path", format_args!("is {}", quoted(path)), right);
        }
    }
    if let Some(host) = &health.host {
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        if host.is_empty() || host.len() > 255 || !host.bytes().all(is_sound) {
            fields.wrong(report, "host", format_args!("is {}", quoted(host)), "it is a host, like \"shop.internal\"");
        }
    }
    if let Some(body) = &health.body {
        if body.is_empty() || body.len() > 1024 {
            fields.wrong(report, "body", format_args!("is {}", quoted(body)), "it is text of 1 to 1024 bytes");
        }
        if health.kind() == Some(ProbeKind::Tcp) {
            fields.wrong(report, "body", "is given, and kind is \"tcp\"", "only a GET has an answer");
        }
    }
    match (health.kind(), &health.path) {
        (Some(ProbeKind::Http), None) => {
            fields.wrong(report, "kind", "is \"http\", and there is no path", "write path = \"/health\"");
        }
        (Some(ProbeKind::Tcp), Some(_)) => {
            fields.wrong(report, "kind", "is \"tcp\", and there is a path", "leave one of them out");
        }
        (None, _) if upstream.node("health").is_some() => {
            let warning = format!("{} has neither path nor kind, so that nothing is probed", fields.path);
            report.warn(&fields.place(), &warning);
        }
        _ => {}
    }
    if health.kind() == Some(ProbeKind::Tcp) {
        let why = format!("{}.kind is \"tcp\", and only a GET has it", fields.path);
        warn_of_idle(&health, &["host", "statuses"], &why, &fields, report);
    }
    if fields.node("timeout").is_none() {
        health.timeout = health.timeout.min(health.interval);
    }
    if health.timeout > health.interval {
        let [timeout, interval] = [health.timeout, health.interval].map(written_duration);
        let right = format!("it is not more than interval, which is \"{interval}\"");
        fields.wrong_pair(report, ["timeout", "interval"], format_args!("is \"{timeout}\""), &right);
    }
    health
}

/// Reads `[upstreams.<name>.breaker]`.
fn read_breaker(upstream: &Fields<'_>, report: &mut Report) -> Breaker {
    let (breaker, fields) = Breaker::inside(upstream, "breaker", report);
    if breaker.percent == 0 {
        let keys = ["requests_min", "window", "open_for", "statuses"];
        warn_of_idle(&breaker, &keys, &format!("{}.percent is 0", fields.path), &fields, report);
    }
    breaker
}

/// Reads `[upstreams.<name>.tls]`.
fn read_tls(written: &Upstream, upstream: &Fields<'_>, report: &mut Report) -> UpstreamTls {
    let (tls, fields) = UpstreamTls::inside(upstream, "tls", report);
    if let Some(name) = &tls.server_name
        && name.parse::<IpAddr>().is_err()
        && host_name(name).is_none()
    {
        let right = "it is a name or an address, like \"shop.internal\"";
        fields.wrong(report, "server_name", format_args!("is {}", quoted(name)), right);
    }
    for (one, other) in [("cert", "key"), ("key", "cert")] {
        if fields.node(one).is_some() && fields.node(other).is_none() {
            let right = format!("give {}.{other} too", fields.path);
            fields.wrong(report, one, format_args!("is given, and no {other}"), &right);
        }
    }
    if tls == UpstreamTls::default() {
        return tls;
    }
    if !written.may_speak_tls() && upstream.node("instances").is_some() {
        let warning = format!("{} does nothing, as no instance begins with https://", fields.path);
        report.warn(&fields.place(), &warning);
    } else if !tls.verify {
        let warning = format!(
            "{}.verify is false: whoever takes the place of a service of the upstream reads what it is sent, tokens too",
            fields.path
        );
        report.warn(&fields.place_of("verify"), &warning);
        warn_of_idle(&tls, &["ca_file"], &format!("{}.verify is false", fields.path), &fields, report);
    }
    tls
}

impl Upstream {
    /// Whether an instance may speak TLS: one that is written, or that may be found.
    pub fn may_speak_tls(&self) -> bool {
        self.names_https() || self.discover.is_given()
    }

    /// Whether nobody looks at the certificates of instances that speak TLS.
    pub fn is_unverified(&self) -> bool {
        !self.tls.verify && self.may_speak_tls()
    }

    /// Whether an instance that is written speaks TLS.
    pub fn names_https(&self) -> bool {
        let is_https = |instance: &Instance| matches!(instance.address, ServerAddress::Port { is_https: true, .. });
        self.instances.iter().any(is_https)
    }

    /// An upstream of these instances with everything else as by default.
    pub fn new(instances: Vec<Instance>) -> Self {
        Self { instances, ..Self::default() }
    }
}

/// Reads `[upstreams.<name>]`.
pub(super) fn read_upstreams(root: &Table, has_redis: bool, report: &mut Report) -> BTreeMap<String, Upstream> {
    let mut upstreams = BTreeMap::new();
    for (name, fields) in Fields::named(Upstream::SECTION, root.get("upstreams"), ["an upstream", "shop"], report) {
        let mut upstream = Upstream::from_fields(&fields, report);
        upstream.discover = read_discover(&fields, has_redis, report);
        upstream.health = read_health(&fields, report);
        upstream.breaker = read_breaker(&fields, report);
        upstream.tls = read_tls(&upstream, &fields, report);
        check_body_methods(&upstream.body_methods, &fields, report);
        check_instances(&upstream, &fields, report);
        if upstream.hash_secret.as_ref().is_some_and(|secret| secret.reveal().len() < 16) {
            fields.wrong(report, "hash_secret", "is too short", "it is a secret of 16 bytes or more");
        }
        warn_about_idle_keys(&upstream, &fields, report);
        upstreams.insert(name.to_owned(), upstream);
    }
    upstreams
}

/// Keys that say something and do nothing, as another one decides.
fn warn_about_idle_keys(upstream: &Upstream, fields: &Fields<'_>, report: &mut Report) {
    let path = &fields.path;
    if upstream.balance != Balance::ConsistentHash {
        let why = format!("{path}.balance is not \"consistent_hash\"");
        warn_of_idle(upstream, &["hash_key", "hash_secret"], &why, fields, report);
    }
    if upstream.outlier_failures == 0 {
        let keys = ["outlier_requests_min", "outlier_window", "outlier_ejection", "outlier_percent_max"];
        // Nobody minds who says it twice.
        let share = Some("outlier_share_percent").filter(|_| upstream.outlier_share_percent != 0);
        let keys: Vec<_> = share.into_iter().chain(keys).collect();
        warn_of_idle(upstream, &keys, &format!("{path}.outlier_failures is 0"), fields, report);
    }
}

/// Zones of instances mean nothing to a gateway that stands nowhere.
pub(super) fn warn_about_zones(config: &Config, report: &mut Report) {
    let has_zone = |upstream: &Upstream| upstream.instances.iter().any(|instance| instance.zone.is_some());
    let zoned = config.upstreams.iter().find(|(_, upstream)| has_zone(upstream));
    if let (Some((name, _)), None) = (zoned, &config.runtime.zone) {
        let warning = format!(
            "upstreams.{name}.instances have zones, which do nothing: say in runtime.zone where the gateway stands"
        );
        report.warn(&Location::File, &warning);
    }
}

/// Warns of these keys of a section where they are not as by default.
fn warn_of_idle<T: Part>(section: &T, keys: &[&str], why: &str, fields: &Fields<'_>, report: &mut Report) {
    let [said, usual] = [section.to_value(), T::default().to_value()];
    for key in keys.iter().filter(|key| said.get(key) != usual.get(key)) {
        report.warn(&fields.place_of(key), &format!("{}.{key} does nothing, as {why}", fields.path));
    }
}

fn check_instances(upstream: &Upstream, fields: &Fields<'_>, report: &mut Report) {
    let instances = &upstream.instances;
    // Whether they are found elsewhere, or are meant to be, which is told there.
    let are_found = fields.node("discover").is_some();
    let Some(node) = fields.node("instances") else {
        if !are_found {
            let path = &fields.path;
            let right =
                format!("name one or more: [\"127.0.0.1:4001\"], or say in [{path}.discover] where they are found");
            report.push(fields.place(), format!("{path}.instances is missing"), &right);
        }
        return;
    };
    let written = if let Value::List(list) = &node.value { list.len() } else { instances.len() };
    if written == 0 && !are_found && !matches!(node.value, Value::Broken) {
        fields.wrong(report, "instances", "is empty", "an upstream has one instance or more");
    }
    if written > INSTANCES_MAX {
        let right = format!("an upstream has at most {INSTANCES_MAX}");
        fields.wrong(report, "instances", format_args!("has {written} instances"), &right);
        return;
    }
    if !instances.is_empty() && instances.iter().all(|instance| instance.weight == 0) {
        fields.wrong(report, "instances", "have no weight but 0", "one instance or more gets requests");
    }
    let mut seen = BTreeSet::new();
    for instance in instances {
        if !seen.insert(&instance.address) {
            fields.wrong(report, "instances", format_args!("has {instance} twice"), "name each instance once");
        }
        if let ServerAddress::Port { host, port: HTTPS_PORT, is_https: false } = &instance.address {
            let path = &fields.path;
            let warning = format!(
                "{path}.instances has {instance}, the port of HTTPS, and requests and their tokens go to it in clear text; write \
                 https://{host} where it speaks TLS"
            );
            report.warn(&node.place, &warning);
        }
    }
}

/// Methods with which bodies are read: names, or a star for all.
pub(super) fn check_body_methods(methods: &[String], fields: &Fields<'_>, report: &mut Report) {
    check_methods(methods, "body_methods", fields, report);
    if methods.len() > 1 && methods.iter().any(|method| method == "*") {
        fields.wrong(report, "body_methods", "has \"*\" and more", "the star stands for all");
    }
}

/// Methods as requests have them.
pub(super) fn check_methods(methods: &[String], key: &str, fields: &Fields<'_>, report: &mut Report) {
    for method in methods {
        let right = if !is_token(method) || method.len() > 32 {
            "a method is a word of up to 32 letters, like GET".to_owned()
        } else if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
            format!("methods are told apart by case; write {}", quoted(&method.to_ascii_uppercase()))
        } else if method == "CONNECT" {
            "CONNECT opens tunnels, which the gateway does not offer".to_owned()
        } else {
            continue;
        };
        fields.wrong_values(report, key, [method], &right);
    }
    fields.report_twice(report, key, methods);
}

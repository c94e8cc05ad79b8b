//! Routes from what is written: their names, what they take, where it goes, and that no two take the same requests.

use super::cors::read_route_cors;
use super::keys::section::FromFields as _;
use super::limits::check_limits;
use super::names::{is_plain, is_token};
use super::path::{check_path, check_rewrite};
use super::raw::{Table, quoted};
use super::read::{Fields, suggestion_of};
use super::report::{Location, Report};
use super::roles::check_access;
use super::upstreams::{check_body_methods, check_methods};
use super::{Config, HeaderRules, PathPattern, Route, Upstream};
use std::collections::{BTreeMap, BTreeSet};

/// Paths that the gateway answers itself, on every host.
pub const OWN_PATHS: [&str; 6] =
    ["/health", "/health/live", "/health/ready", "/health/ready/hub", "/metrics", "/.well-known/jwks.json"];
/// The same, where there are accounts.
pub const ACCOUNT_PATHS: [&str; 7] = [
    "/auth/login",
    "/auth/refresh",
    "/auth/logout",
    "/auth/logout-all",
    "/auth/me",
    "/auth/sessions",
    "/auth/sessions/{sid}",
];

/// The same, where there is a hub.
pub const HUB_PATHS: [&str; 5] = [
    "/ws",
    "/hub/rooms/{room}",
    "/hub/rooms/{room}/publish",
    "/hub/users/{user}/connections",
    "/hub/users/{user}/publish",
];
/// The same, where the hub echoes.
pub const ECHO_PATH: &str = "/ws/echo";

/// Conflicts are looked for in pairs.
const ROUTES_MAX: usize = 4096;

impl Route {
    /// A route for these paths to this upstream, with everything else as by default.
    pub fn new(path: PathPattern, upstream: impl Into<String>) -> Self {
        Self { name: path.to_string(), path, upstream: upstream.into(), ..Self::default() }
    }
}

/// Says which routes will see no request, because the gateway answers their paths itself.
pub(super) fn warn_about_own_paths(config: &Config, report: &mut Report) {
    let accounts = ACCOUNT_PATHS.iter().filter(|_| config.accounts.enabled);
    let hub = HUB_PATHS.iter().filter(|_| config.hub.enabled);
    let echo = [ECHO_PATH].iter().filter(|_| config.hub.echo);
    let own: Vec<PathPattern> = (OWN_PATHS.iter().chain(accounts).chain(hub).chain(echo))
        .map(|path| path.parse().expect("the lists' paths are right"))
        .collect();
    for route in config.routes.iter().filter(|route| own.iter().any(|own| route.path.same_paths(own))) {
        let path = &route.path;
        report.warn(
            &Location::File,
            &format!("the route of {path} sees no request: the gateway answers that path itself"),
        );
    }
}

impl HeaderRules {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// Reads `[[routes]]`, which refer to what the configuration has of everything else.
pub(super) fn read_routes(root: &Table, config: &Config, report: &mut Report) -> Vec<Route> {
    let mut routes: Vec<(usize, Location, Route)> = Vec::new();
    for (index, fields) in Fields::listed(Route::SECTION, root.get("routes"), ROUTES_MAX, report).iter().enumerate() {
        let route = read_route(fields, config, report);
        // Without a path there is nothing to compare with the others; what else is wrong is told nevertheless.
        if route.path != PathPattern::default() {
            check_new_path(&route, fields, report);
            routes.push((index, fields.place(), route));
        }
    }
    check_names_and_conflicts(&routes, report);
    routes.into_iter().map(|(_, _, route)| route).collect()
}

/// Upstreams to which neither routes nor the hub lead.
pub(super) fn warn_about_idle_upstreams(config: &Config, report: &mut Report) {
    let Config { hub, routes, .. } = config;
    let of_hub = hub.services.iter().map(|service| &service.upstream).chain(&hub.events_upstream);
    let of_hub = of_hub.filter(|_| hub.enabled);
    let used: BTreeSet<&str> = routes.iter().map(|route| &route.upstream).chain(of_hub).map(String::as_str).collect();
    for name in config.upstreams.keys().filter(|name| !used.contains(name.as_str())) {
        report.warn(&Location::File, &format!("upstreams.{name} is the upstream of no route, and of nothing in [hub]"));
    }
}

fn read_route(fields: &Fields<'_>, config: &Config, report: &mut Report) -> Route {
    let mut route = Route::from_fields(fields, report);
    check_name(&mut route, fields, report);
    fields.report_twice(report, "hosts", &route.hosts);
    check_methods(&route.methods, "methods", fields, report);
    check_body_methods(route.body_methods.as_deref().unwrap_or_default(), fields, report);
    check_upgrades(&route.upgrades, fields, report);
    check_upstream(&route, fields, &config.upstreams, report);
    check_access(&route, fields, &config.roles, report);
    check_limits(&route, fields, &config.limits, report);
    read_route_cors(&mut route, fields, &config.cors, report);
    route.request_headers = read_headers(fields, "request_headers", report);
    route.response_headers = read_headers(fields, "response_headers", report);
    route
}

fn check_name(route: &mut Route, fields: &Fields<'_>, report: &mut Report) {
    let path = route.path.to_string();
    if !fields.is_text("name") {
        route.name = path;
    } else if route.name != path && !is_plain(&route.name) {
        // The path is a name too: the effective configuration writes it.
        let right = "a name is up to 64 of A-Z, a-z, 0-9, ., _ and -";
        fields.wrong(report, "name", format_args!("is {}", quoted(&route.name)), right);
    }
}

fn check_upgrades(upgrades: &[String], fields: &Fields<'_>, report: &mut Report) {
    for protocol in upgrades {
        let right = if protocol.eq_ignore_ascii_case("h2c") {
            "HTTP/2 without TLS is not begun by an upgrade (RFC 9113)"
        } else if !is_token(protocol) || protocol.len() > 32 {
            "a protocol is a word of up to 32 letters, like websocket, without a version"
        } else {
            continue;
        };
        fields.wrong_values(report, "upgrades", [protocol], right);
    }
    fields.report_twice(report, "upgrades", upgrades);
}

fn check_upstream(route: &Route, fields: &Fields<'_>, upstreams: &BTreeMap<String, Upstream>, report: &mut Report) {
    if fields.is_text("upstream") && !upstreams.contains_key(&route.upstream) {
        let what = format_args!("is {}, and there is no such upstream", quoted(&route.upstream));
        let right = suggestion_of(&route.upstream, upstreams, "[upstreams.shop]");
        fields.wrong(report, "upstream", what, &right);
    }
}

/// What the upstream sees instead of the path.
fn check_new_path(route: &Route, fields: &Fields<'_>, report: &mut Report) {
    if let Some(prefix) = &route.strip_prefix {
        let right = match check_path(prefix) {
            Err(wrong) => Some(wrong),
            Ok(()) if route.path.begins_with(prefix) => None,
            Ok(()) => Some(format!("the path, \"{}\", does not begin with it in whole segments", route.path)),
        };
        if let Some(right) = right {
            fields.wrong(report, "strip_prefix", format_args!("is {}", quoted(prefix)), &right);
        }
    }
    if let Some(rewrite) = &route.rewrite {
        let right = match check_rewrite(rewrite, &route.path) {
            Err(wrong) => Some(wrong),
            Ok(()) => route.strip_prefix.as_ref().map(|_| "take either rewrite or strip_prefix".to_owned()),
        };
        if let Some(right) = right {
            fields.wrong(report, "rewrite", format_args!("is {}", quoted(rewrite)), &right);
        }
    }
}

fn check_names_and_conflicts(routes: &[(usize, Location, Route)], report: &mut Report) {
    for (count, (index, place, route)) in routes.iter().enumerate() {
        for (other_index, other_place, other) in &routes[..count] {
            let there = match other_place {
                Location::Line(line) => format!("routes[{other_index}] (line {line})"),
                _ => format!("routes[{other_index}]"),
            };
            if let Some(requests) = conflict(route, other) {
                let what = format!("routes[{index}] takes the same requests as {there}: {requests}");
                report.push(place.clone(), what, "change the hosts, the path or the methods of one");
            } else if route.name == other.name {
                let what = format!("routes[{index}].name is {}, as that of {there}", quoted(&route.name));
                report.push(place.clone(), what, "give each route a name of its own");
            }
        }
    }
}

/// Requests that no rule gives to one of the two rather than to the other. An exact host goes before a pattern, a route
/// with methods before one without, and so on; only equals collide.
fn conflict(one: &Route, two: &Route) -> Option<String> {
    if !one.path.same_paths(&two.path) {
        return None;
    }
    let method = common(&one.methods, &two.methods)?.map_or("any method", String::as_str);
    let host = common(&one.hosts, &two.hosts)?.map_or_else(|| "any host".to_owned(), ToString::to_string);
    Some(format!("{method}, {host}, {}", one.path))
}

/// `Some(None)` when both lists are empty and so take anything, `Some(Some(_))` for what stands in both.
#[expect(clippy::option_option, reason = "nothing in common and everything in common are two answers")]
fn common<'a, T: PartialEq>(one: &'a [T], two: &[T]) -> Option<Option<&'a T>> {
    if one.is_empty() && two.is_empty() {
        return Some(None);
    }
    one.iter().find(|value| two.contains(value)).map(Some)
}

fn read_headers(route: &Fields<'_>, name: &str, report: &mut Report) -> HeaderRules {
    let (rules, fields) = HeaderRules::inside(route, name, report);
    for field in &rules.remove {
        check_field_name(field, "remove", &fields, report);
    }
    fields.report_twice(report, "remove", &rules.remove);
    for (key, table) in [("set", &rules.set), ("add", &rules.add)] {
        let mut seen = BTreeSet::new();
        for (field, value) in table {
            check_field_name(field, key, &fields, report);
            if !seen.insert(field.to_ascii_lowercase()) {
                let what = format_args!("has {} twice", quoted(field));
                fields.wrong(report, key, what, "field names are the same in any case");
            }
            let is_plain = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
            if !value.bytes().all(is_plain) || value.trim() != value || value.len() > 4096 {
                let what = format!("{}.{key}.{field} is {}", fields.path, quoted(value));
                let right = "a value is up to 4096 printable ASCII characters without spaces around them";
                report.push(fields.place_of(key), what, right);
            }
        }
    }
    rules
}

fn check_field_name(name: &str, key: &str, fields: &Fields<'_>, report: &mut Report) {
    // Framing, hop-by-hop fields (RFC 9110 §7.6.1), identity and the id that every answer carries: a rule for one of
    // these would undo a check or a promise.
    const OURS: &str = "connection content-length expect host keep-alive proxy-authenticate proxy-authorization \
                        proxy-connection te trailer transfer-encoding upgrade x-request-id x-session-id x-user-id x-user-role";
    let plain = name.to_ascii_lowercase().replace('_', "-");
    let right = if !is_token(name) || name.len() > 128 {
        "a field name is up to 128 letters, digits and !#$%&'*+-.^_`|~"
    } else if OURS.split(' ').any(|ours| ours == plain) {
        "the gateway itself answers for that field"
    } else {
        return;
    };
    fields.wrong(report, key, format_args!("has {}", quoted(name)), right);
}

//! Routes from what is written: their names, what they take, where it goes, and that no two take the same requests.

use super::cors::{check_route_cors, read_route_cors};
use super::limits::check_limits;
use super::path::{check_path, check_rewrite};
use super::raw::{Node, Place, Value, quoted};
use super::read::{Fields, Report, suggestion};
use super::roles::check_access;
use super::{Cors, HeaderRules, HostPattern, Limit, PathPattern, Role, Route, Upstream};
use std::collections::{BTreeMap, BTreeSet};

/// Paths that the gateway answers itself, on every host.
pub const OWN_PATHS: [&str; 5] = ["/health", "/health/live", "/health/ready", "/metrics", "/.well-known/jwks.json"];
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

/// Conflicts are looked for in pairs.
const ROUTES_MAX: usize = 4096;

impl Route {
    /// A route for these paths to this upstream, with everything else as by default.
    pub fn new(path: PathPattern, upstream: impl Into<String>) -> Self {
        let mut report = Report::new(None);
        let fields = Fields::of("routes", String::new(), None, &mut report);
        let mut route = read_route(&fields, path, &mut report);
        route.upstream = upstream.into();
        route
    }
}

/// What routes refer to.
pub(super) struct Referred<'c> {
    pub(super) upstreams: &'c BTreeMap<String, Upstream>,
    pub(super) roles: &'c BTreeMap<String, Role>,
    pub(super) limits: &'c BTreeMap<String, Limit>,
    pub(super) cors: &'c Cors,
}

/// Says which routes will see no request, because the gateway answers their paths itself.
pub(super) fn warn_about_own_paths(routes: &[Route], has_accounts: bool, report: &mut Report) {
    let accounts = ACCOUNT_PATHS.iter().filter(|_| has_accounts);
    let own: Vec<PathPattern> =
        OWN_PATHS.iter().chain(accounts).map(|path| path.parse().expect("the lists' paths are right")).collect();
    for route in routes.iter().filter(|route| own.iter().any(|own| route.path.same_paths(own))) {
        let path = &route.path;
        report
            .warn(&Place::File, &format!("the route of {path} sees no request: the gateway answers that path itself"));
    }
}

/// Reads `[[routes]]`.
pub(super) fn read_routes(node: Option<&Node>, referred: &Referred<'_>, report: &mut Report) -> Vec<Route> {
    let Some(node) = node else { return Vec::new() };
    let list = match &node.value {
        Value::List(list) if list.len() <= ROUTES_MAX => list,
        Value::List(list) => {
            let right = format!("there are at most {ROUTES_MAX}");
            report.push(node.place.clone(), format!("there are {} routes", list.len()), &right);
            return Vec::new();
        }
        _ => {
            report.wrong(node, "routes", "it is a list of routes: [[routes]]");
            return Vec::new();
        }
    };
    let mut routes: Vec<(usize, Place, Route)> = Vec::with_capacity(list.len());
    for (index, node) in list.iter().enumerate() {
        let fields = Fields::of("routes", format!("routes[{index}]"), Some(node), report);
        // Without a path there is nothing to compare with the others; what else is wrong is told nevertheless.
        let path = fields.take_written("path", report);
        let has_path = path.is_some();
        let route = read_route(&fields, path.unwrap_or_else(|| PathPattern::Prefix(String::new())), report);
        check_upstream(&route, &fields, referred.upstreams, report);
        check_access(&route, &fields, referred.roles, report);
        check_limits(&route, &fields, referred.limits, report);
        check_route_cors(&route.cors, referred.cors, &fields, report);
        if has_path {
            check_new_path(&route, &fields, report);
            routes.push((index, node.place.clone(), route));
        }
    }
    check_names_and_conflicts(&routes, report);
    let routes: Vec<Route> = routes.into_iter().map(|(_, _, route)| route).collect();
    let used: BTreeSet<&str> = routes.iter().map(|route| route.upstream.as_str()).collect();
    for name in referred.upstreams.keys().filter(|name| !used.contains(name.as_str())) {
        report.warn(&Place::File, &format!("upstreams.{name} is the upstream of no route"));
    }
    routes
}

fn read_route(fields: &Fields<'_>, path: PathPattern, report: &mut Report) -> Route {
    let body_methods: Option<Vec<String>> = fields.take_written("body_methods", report);
    check_body_methods(body_methods.as_deref().unwrap_or_default(), fields, report);
    let mut headers = |name: &str| read_headers(fields, name, report);
    let [request_headers, response_headers] = ["request_headers", "response_headers"].map(&mut headers);
    Route {
        name: read_name(fields, &path, report),
        hosts: read_hosts(fields, report),
        path,
        methods: read_methods(fields, report),
        upstream: fields.take_written("upstream", report).unwrap_or_default(),
        access: fields.take("access", report),
        roles: fields.take("roles", report),
        permissions: fields.take("permissions", report),
        token_query: fields.take_written("token_query", report),
        strip_prefix: fields.take_written("strip_prefix", report),
        rewrite: fields.take_written("rewrite", report),
        preserve_host: fields.take("preserve_host", report),
        forward_authorization: fields.take("forward_authorization", report),
        allow_encoded_slash: fields.take("allow_encoded_slash", report),
        merge_slashes: fields.take("merge_slashes", report),
        rewrite_redirects: fields.take("rewrite_redirects", report),
        upgrades: read_upgrades(fields, report),
        body_bytes_max: fields.take_written("body_bytes_max", report),
        body_methods,
        response_timeout: fields.take_written("response_timeout", report),
        request_timeout: fields.take_written("request_timeout", report),
        stream_idle_timeout: fields.take_written("stream_idle_timeout", report),
        on_client_close: fields.take_written("on_client_close", report),
        interim_answers: fields.take_written("interim_answers", report),
        retries_max: fields.take_written("retries_max", report),
        limits: fields.take_written("limits", report),
        cors: read_route_cors(fields, report),
        request_headers,
        response_headers,
    }
}

fn read_name(fields: &Fields<'_>, path: &PathPattern, report: &mut Report) -> String {
    let path = path.to_string();
    let Some(name): Option<String> = fields.take_written("name", report) else { return path };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    // The path is a name too: the effective configuration writes it.
    if name != path && (!(1..=64).contains(&name.len()) || !name.bytes().all(is_plain)) {
        let what = format!("{}.name is {}", fields.path, quoted(&name));
        report.push(fields.place_of("name"), what, "a name is up to 64 of A-Z, a-z, 0-9, ., _ and -");
    }
    name
}

fn read_hosts(fields: &Fields<'_>, report: &mut Report) -> Vec<HostPattern> {
    let hosts: Vec<HostPattern> = fields.take("hosts", report);
    report_twice(&hosts, "hosts", fields, report);
    hosts
}

fn read_methods(fields: &Fields<'_>, report: &mut Report) -> Vec<String> {
    let methods: Vec<String> = fields.take("methods", report);
    check_methods(&methods, "methods", fields, report);
    methods
}

/// Methods with which bodies are read: names, or a star for all.
pub(super) fn check_body_methods(methods: &[String], fields: &Fields<'_>, report: &mut Report) {
    check_methods(methods, "body_methods", fields, report);
    if methods.len() > 1 && methods.iter().any(|method| method == "*") {
        let what = format!("{}.body_methods has \"*\" and more", fields.path);
        report.push(fields.place_of("body_methods"), what, "the star stands for all");
    }
}

fn check_methods(methods: &[String], key: &str, fields: &Fields<'_>, report: &mut Report) {
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
        report.push(fields.place_of(key), format!("{}.{key} has {}", fields.path, quoted(method)), &right);
    }
    report_twice(methods, key, fields, report);
}

fn read_upgrades(fields: &Fields<'_>, report: &mut Report) -> Vec<String> {
    let upgrades: Vec<String> = fields.take("upgrades", report);
    for protocol in &upgrades {
        let right = if protocol.eq_ignore_ascii_case("h2c") {
            "HTTP/2 without TLS is not begun by an upgrade (RFC 9113)"
        } else if !is_token(protocol) || protocol.len() > 32 {
            "a protocol is a word of up to 32 letters, like websocket, without a version"
        } else {
            continue;
        };
        report.push(fields.place_of("upgrades"), format!("{}.upgrades has {}", fields.path, quoted(protocol)), right);
    }
    report_twice(&upgrades, "upgrades", fields, report);
    upgrades
}

fn report_twice<T: PartialEq + ToString>(values: &[T], key: &str, fields: &Fields<'_>, report: &mut Report) {
    for (index, value) in values.iter().enumerate() {
        if values[..index].contains(value) {
            let what = format!("{}.{key} has {} twice", fields.path, quoted(&value.to_string()));
            report.push(fields.place_of(key), what, "once is enough");
        }
    }
}

fn check_upstream(route: &Route, fields: &Fields<'_>, upstreams: &BTreeMap<String, Upstream>, report: &mut Report) {
    if fields.node("upstream").is_some_and(|node| matches!(node.value, Value::Text(_)))
        && !upstreams.contains_key(&route.upstream)
    {
        let what = format!("{}.upstream is {}, and there is no such upstream", fields.path, quoted(&route.upstream));
        let right = if upstreams.is_empty() {
            "define one: [upstreams.shop]".to_owned()
        } else {
            let names: Vec<&str> = upstreams.keys().map(String::as_str).collect();
            suggestion(&route.upstream, &names, "")
        };
        report.push(fields.place_of("upstream"), what, &right);
    }
}

/// What the upstream sees instead of the path.
fn check_new_path(route: &Route, fields: &Fields<'_>, report: &mut Report) {
    let path = &fields.path;
    if let Some(prefix) = &route.strip_prefix {
        let what = format!("{path}.strip_prefix is {}", quoted(prefix));
        if let Err(wrong) = check_path(prefix) {
            report.push(fields.place_of("strip_prefix"), what, &wrong);
        } else if !route.path.begins_with(prefix) {
            let right = format!("the path, \"{}\", does not begin with it in whole segments", route.path);
            report.push(fields.place_of("strip_prefix"), what, &right);
        }
    }
    if let Some(rewrite) = &route.rewrite {
        let what = format!("{path}.rewrite is {}", quoted(rewrite));
        if let Err(wrong) = check_rewrite(rewrite, &route.path) {
            report.push(fields.place_of("rewrite"), what, &wrong);
        } else if route.strip_prefix.is_some() {
            report.push(fields.place_of("rewrite"), what, "take either rewrite or strip_prefix");
        }
    }
}

fn check_names_and_conflicts(routes: &[(usize, Place, Route)], report: &mut Report) {
    for (count, (index, place, route)) in routes.iter().enumerate() {
        for (other_index, other_place, other) in &routes[..count] {
            let there = match other_place {
                Place::Line(line) => format!("routes[{other_index}] (line {line})"),
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
    let path = format!("{}.{name}", route.path);
    let fields = Fields::of(&format!("routes.{name}"), path, route.node(name), report);
    let rules = HeaderRules {
        remove: fields.take("remove", report),
        set: fields.take("set", report),
        add: fields.take("add", report),
    };
    for field in &rules.remove {
        check_field_name(field, "remove", &fields, report);
    }
    report_twice(&rules.remove, "remove", &fields, report);
    for (key, table) in [("set", &rules.set), ("add", &rules.add)] {
        let mut seen = BTreeSet::new();
        for (field, value) in table {
            check_field_name(field, key, &fields, report);
            if !seen.insert(field.to_ascii_lowercase()) {
                let what = format!("{}.{key} has {} twice", fields.path, quoted(field));
                report.push(fields.place_of(key), what, "field names are the same in any case");
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
    const OURS: [&str; 16] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
        "x-session-id",
        "x-user-id",
        "x-user-role",
    ];
    let right = if !is_token(name) || name.len() > 128 {
        "a field name is up to 128 letters, digits and !#$%&'*+-.^_`|~"
    } else if OURS.contains(&name.to_ascii_lowercase().replace('_', "-").as_str()) {
        "the gateway itself answers for that field"
    } else {
        return;
    };
    report.push(fields.place_of(key), format!("{}.{key} has {}", fields.path, quoted(name)), right);
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token_byte)
}

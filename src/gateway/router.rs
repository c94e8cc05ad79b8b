//! Host, path and method to a route: a trie of path segments for each host, built once per configuration.
//!
//! The most specific route wins: an exact host before a wildcard before none; then, segment by segment, a literal before
//! a parameter before the rest of a prefix. Where the most specific path has routes, but none for the method, the search
//! ends: what guards a path would be no guard if other methods fell through to a wider route.

use std::{collections::BTreeMap, net::Ipv6Addr};

use crate::{
    config::{HostPattern, PathPattern, Segment},
    proto::head::{Method, Span},
};

/// What is routed: which route answers for which requests. The routes themselves are the caller's, by their index.
#[derive(Debug, Default)]
pub struct Router {
    /// The gateway's own paths, the same for every host.
    own: Node,
    exact: BTreeMap<Box<[u8]>, Node>,
    /// `*.example.com` as `.example.com`, the longest first.
    wildcard: Vec<(Box<[u8]>, Node)>,
    any: Node,
}

/// A place in a host's trie.
#[derive(Debug, Default)]
struct Node {
    /// Sorted by the text.
    literals: Vec<(Box<[u8]>, Self)>,
    parameter: Option<Box<Self>>,
    /// Routes for exactly this path.
    here: Vec<RouteMethods>,
    /// Routes for this path and all below it.
    below: Vec<RouteMethods>,
}

#[derive(Clone, Debug)]
struct RouteMethods {
    route: usize,
    /// Empty is any.
    methods: Vec<Box<[u8]>>,
}

/// A route that answers for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its index.
    pub route: usize,
    /// What its parameters took.
    pub captures: Captures,
}

/// Parameters that a route may have, its `/*` included.
pub const CAPTURES_MAX: usize = 16;

/// What a route's parameters took of the path, in order, and at last what its `/*` took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captures {
    spans: [Span; CAPTURES_MAX],
    len: usize,
}

impl Captures {
    /// The n-th, as a span of the path; empty when there is none.
    pub fn nth(&self, n: usize) -> Span {
        if n < self.len { self.spans[n] } else { Span::default() }
    }

    /// Past the maximum nothing is kept: `Plan` refuses such routes.
    fn push(&mut self, span: Span) {
        if let Some(place) = self.spans.get_mut(self.len) {
            *place = span;
            self.len += 1;
        }
    }

    fn truncate(&mut self, len: usize) {
        self.len = len;
    }
}

/// No route answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// Not for this host and path.
    NotFound,
    /// Not with this method; with these.
    Method(String),
}

impl Router {
    /// Adds a route. Among routes that are equally specific the one that was added first wins.
    pub fn add(&mut self, route: usize, hosts: &[HostPattern], path: &PathPattern, methods: &[String]) {
        let entry = RouteMethods { route, methods: methods.iter().map(|method| method.as_bytes().into()).collect() };
        if hosts.is_empty() {
            self.any.add(path, entry);
            return;
        }
        for host in hosts {
            match host {
                HostPattern::Exact(host) => {
                    self.exact.entry(host.as_bytes().into()).or_default().add(path, entry.clone());
                }
                HostPattern::Subdomains(domain) => {
                    self.wildcard_node(format!(".{domain}").as_bytes()).add(path, entry.clone());
                }
            }
        }
    }

    /// Adds a route of the gateway's own: it goes before all others, whatever the host.
    pub fn add_own(&mut self, route: usize, path: &PathPattern, method: &str) {
        self.own.add(path, RouteMethods { route, methods: vec![method.as_bytes().into()] });
    }

    fn wildcard_node(&mut self, suffix: &[u8]) -> &mut Node {
        let place = self.wildcard.iter().position(|(known, _)| **known == *suffix).unwrap_or_else(|| {
            let longer = self.wildcard.iter().take_while(|(known, _)| known.len() >= suffix.len()).count();
            self.wildcard.insert(longer, (suffix.into(), Node::default()));
            longer
        });
        &mut self.wildcard[place].1
    }

    /// The route for a request. `authority` may carry a port; `path` is in normal form; `method_text` is the method as
    /// it came.
    pub fn find(&self, authority: &[u8], path: &[u8], method: Method, method_text: &[u8]) -> Result<Found, NoRoute> {
        let mut search = Search { path, method, method_text, captures: Captures::default(), allowed: Vec::new() };
        let mut found = search.enter(&self.own);
        if found.is_none() && !(self.exact.is_empty() && self.wildcard.is_empty()) {
            let host = host_of(authority);
            found = self.exact.get(host.as_slice()).and_then(|node| search.enter(node));
            for (suffix, node) in &self.wildcard {
                // The star stands for one label or more, never for none.
                if found.is_none() && host.len() > suffix.len() && host.ends_with(suffix) {
                    found = search.enter(node);
                }
            }
        }
        match found.or_else(|| search.enter(&self.any)) {
            Some(route) => Ok(Found { route, captures: search.captures }),
            None if search.allowed.is_empty() => Err(NoRoute::NotFound),
            None => Err(NoRoute::Method(search.into_allow())),
        }
    }
}

/// The host without its port (RFC 3986 §3.2.2) and the dot of the root, with which a name is the same name, in lower case.
/// An IPv6 address keeps its brackets, and is written in its one usual form, as in the configuration.
pub(super) fn host_of(authority: &[u8]) -> Vec<u8> {
    let after_literal = authority.iter().rposition(|byte| *byte == b']').unwrap_or(0);
    let host = match authority[after_literal..].iter().position(|byte| *byte == b':') {
        Some(colon) => &authority[..after_literal + colon],
        None => authority,
    };
    let literal = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]"));
    match literal.and_then(|literal| std::str::from_utf8(literal).ok()?.parse::<Ipv6Addr>().ok()) {
        Some(address) => format!("[{address}]").into_bytes(),
        None => host.strip_suffix(b".").unwrap_or(host).to_ascii_lowercase(),
    }
}

impl Node {
    fn add(&mut self, path: &PathPattern, entry: RouteMethods) {
        match path {
            PathPattern::Exact(path) => insert(&mut self.descend(path).here, entry),
            PathPattern::Prefix(path) => insert(&mut self.descend(path).below, entry),
            PathPattern::Parameters { segments, rest } => {
                let node = segments.iter().fold(self, |node, segment| match segment {
                    Segment::Literal(text) => node.literal(text.as_bytes()),
                    Segment::Parameter(_) => node.parameter.get_or_insert_default(),
                });
                insert(if *rest { &mut node.below } else { &mut node.here }, entry);
            }
        }
    }

    fn descend(&mut self, path: &str) -> &mut Self {
        path.split('/').skip(1).fold(self, |node, segment| node.literal(segment.as_bytes()))
    }

    fn literal(&mut self, text: &[u8]) -> &mut Self {
        let place = match self.literals.binary_search_by(|(known, _)| (**known).cmp(text)) {
            Ok(place) => place,
            Err(place) => {
                self.literals.insert(place, (text.into(), Self::default()));
                place
            }
        };
        &mut self.literals[place].1
    }
}

/// Those that name methods stand before those that take any.
fn insert(entries: &mut Vec<RouteMethods>, entry: RouteMethods) {
    let end = if entry.methods.is_empty() {
        entries.len()
    } else {
        entries.iter().position(|other| other.methods.is_empty()).unwrap_or(entries.len())
    };
    entries.insert(end, entry);
}

/// One look-up under way.
struct Search<'s> {
    path: &'s [u8],
    method: Method,
    method_text: &'s [u8],
    captures: Captures,
    /// Methods of the routes at the most specific path, of which none takes the request's: then the search has ended.
    allowed: Vec<Box<[u8]>>,
}

impl Search<'_> {
    /// Looks through one trie, unless the search has ended in one before.
    fn enter(&mut self, root: &Node) -> Option<usize> {
        if self.has_ended() {
            return None;
        }
        self.captures.truncate(0);
        self.walk(root, 1)
    }

    /// Whether the most specific path was found, without a route for the method.
    fn has_ended(&self) -> bool {
        !self.allowed.is_empty()
    }

    /// Finds a route at or below a node; `at` is where the next segment begins, past the end when there is none. The
    /// depth is that of the configured trie, whatever the path.
    fn walk(&mut self, node: &Node, at: usize) -> Option<usize> {
        let Some(rest) = self.path.get(at..) else {
            if let Some(route) = self.take(&node.here) {
                return Some(route);
            }
            let route = self.take(&node.below)?;
            self.capture(self.path.len(), self.path.len());
            return Some(route);
        };
        let segment = rest.iter().position(|byte| *byte == b'/').map_or(rest, |slash| &rest[..slash]);
        let next = at + segment.len() + 1;
        if let Ok(place) = node.literals.binary_search_by(|(known, _)| (**known).cmp(segment))
            && let Some(route) = self.walk(&node.literals[place].1, next)
        {
            return Some(route);
        }
        if let Some(parameter) = node.parameter.as_deref().filter(|_| !segment.is_empty()) {
            let before = self.captures.len;
            self.capture(at, next - 1);
            if let Some(route) = self.walk(parameter, next) {
                return Some(route);
            }
            self.captures.truncate(before);
        }
        let route = self.take(&node.below)?;
        self.capture(at, self.path.len());
        Some(route)
    }

    fn take(&mut self, entries: &[RouteMethods]) -> Option<usize> {
        if self.has_ended() {
            return None;
        }
        for entry in entries {
            // RFC 9110 §9.3.2: what answers GET answers HEAD.
            let takes = |method: &[u8]| method == self.method_text || (self.method == Method::Head && method == b"GET");
            if entry.methods.is_empty() || entry.methods.iter().any(|method| takes(method)) {
                return Some(entry.route);
            }
            self.allowed.extend(entry.methods.iter().cloned());
        }
        None
    }

    fn capture(&mut self, start: usize, end: usize) {
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        self.captures.push(Span { start: offset(start), end: offset(end) });
    }

    /// The value of `Allow`.
    fn into_allow(mut self) -> String {
        if self.allowed.iter().any(|method| **method == *b"GET") {
            self.allowed.push((*b"HEAD").into());
        }
        self.allowed.sort();
        self.allowed.dedup();
        let names: Vec<_> = self.allowed.iter().map(|method| String::from_utf8_lossy(method)).collect();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};

    use super::*;

    /// `hosts methods path`, each a route, in this order.
    fn router(routes: &[&str]) -> Router {
        let mut router = Router::default();
        for (index, route) in routes.iter().enumerate() {
            let [hosts, methods, path] = route.split(' ').collect::<Vec<_>>()[..] else { panic!("{route}") };
            let list = |text: &str| match text {
                "-" => Vec::new(),
                _ => text.split(',').map(str::to_owned).collect::<Vec<_>>(),
            };
            let hosts: Vec<HostPattern> = list(hosts).iter().map(|host| host.parse().expect("a host")).collect();
            router.add(index, &hosts, &path.parse().expect("a path"), &list(methods));
        }
        router
    }

    fn check(router: &Router, requests: &[&str], expected: &Expect) {
        let mut outcome = String::new();
        for request in requests {
            let [method, host, path] = request.split(' ').collect::<Vec<_>>()[..] else { panic!("{request}") };
            let found = router.find(host.as_bytes(), path.as_bytes(), Method::of(method.as_bytes()), method.as_bytes());
            let found = match found {
                Ok(found) => {
                    let captures: Vec<_> = (0..found.captures.len)
                        .map(|n| String::from_utf8_lossy(found.captures.nth(n).of(path.as_bytes())).into_owned())
                        .collect();
                    format!("{} {captures:?}", found.route)
                }
                Err(NoRoute::NotFound) => "not found".to_owned(),
                Err(NoRoute::Method(allow)) => format!("allow {allow}"),
            };
            writeln!(outcome, "{request} → {found}").expect("a string takes it");
        }
        expected.assert_eq(&outcome);
    }

    #[test]
    fn the_most_specific_path_wins() {
        let router = router(&[
            "- - /*",
            "- - /users/{id}",
            "- - /users/me",
            "- - /users/{id}/orders/*",
            "- - /users/{id}/orders/{order}",
            "- - /api/events/*",
            "- - /api/events/",
        ]);
        check(
            &router,
            &[
                "GET h /",
                "GET h /users",
                "GET h /users/",
                "GET h /users/me",
                "GET h /users/7",
                "GET h /users/me/orders/1",
                "GET h /users/7/orders",
                "GET h /users/7/orders/1",
                "GET h /users/7/orders/1/lines",
                "GET h /api/events",
                "GET h /api/events/",
                "GET h /api/events/x/y",
                "GET h /api/eventsx",
            ],
            &expect![[r#"
                GET h / → 0 [""]
                GET h /users → 0 ["users"]
                GET h /users/ → 0 ["users/"]
                GET h /users/me → 2 []
                GET h /users/7 → 1 ["7"]
                GET h /users/me/orders/1 → 4 ["me", "1"]
                GET h /users/7/orders → 3 ["7", ""]
                GET h /users/7/orders/1 → 4 ["7", "1"]
                GET h /users/7/orders/1/lines → 3 ["7", "1/lines"]
                GET h /api/events → 5 [""]
                GET h /api/events/ → 6 []
                GET h /api/events/x/y → 5 ["x/y"]
                GET h /api/eventsx → 0 ["api/eventsx"]
            "#]],
        );
    }

    #[test]
    fn hosts_are_matched_exactly_then_by_wildcard_then_any() {
        let router = router(&[
            "shop.example.com - /a",
            "*.example.com - /a",
            "*.eu.example.com - /a",
            "- - /a",
            "[::1] - /a",
            "shop.example.com - /only",
        ]);
        check(
            &router,
            &[
                "GET shop.example.com /a",
                "GET SHOP.example.com:8080 /a",
                "GET x.example.com /a",
                "GET x.eu.example.com /a",
                "GET a.b.example.com /a",
                "GET example.com /a",
                "GET [::1]:3000 /a",
                "GET [0:0::0:1] /a",
                "GET x.Example.com. /a",
                "GET other /only",
                "GET x.example.com /only",
            ],
            &expect![[r"
                GET shop.example.com /a → 0 []
                GET SHOP.example.com:8080 /a → 0 []
                GET x.example.com /a → 1 []
                GET x.eu.example.com /a → 2 []
                GET a.b.example.com /a → 1 []
                GET example.com /a → 3 []
                GET [::1]:3000 /a → 4 []
                GET [0:0::0:1] /a → 4 []
                GET x.Example.com. /a → 1 []
                GET other /only → not found
                GET x.example.com /only → not found
            "]],
        );
    }

    #[test]
    fn a_path_without_a_route_for_the_method_ends_the_search() {
        let router = router(&[
            "- POST /a",
            "- GET,PUT /a",
            "- - /*",
            "- GET /guarded/*",
            "- - /guarded/open",
            "x.test GET /b",
            "- - /b",
            "- GET /{id}/c",
            "- DELETE /7/c",
            "- - /both",
            "- GET /both",
        ]);
        check(
            &router,
            &[
                "POST h /a",
                "GET h /a",
                "HEAD h /a",
                "DELETE h /a",
                "get h /a",
                "GET h /guarded/x",
                "PUT h /guarded/x",
                "PUT h /guarded",
                "PUT h /guarded/open",
                "POST h /elsewhere",
                "POST x.test /b",
                "POST h /b",
                "GET h /7/c",
                "GET h /8/c",
                "GET h /both",
                "POST h /both",
            ],
            &expect![[r#"
                POST h /a → 0 []
                GET h /a → 1 []
                HEAD h /a → 1 []
                DELETE h /a → allow GET, HEAD, POST, PUT
                get h /a → allow GET, HEAD, POST, PUT
                GET h /guarded/x → 3 ["x"]
                PUT h /guarded/x → allow GET, HEAD
                PUT h /guarded → allow GET, HEAD
                PUT h /guarded/open → 4 []
                POST h /elsewhere → 2 ["elsewhere"]
                POST x.test /b → allow GET, HEAD
                POST h /b → 6 []
                GET h /7/c → allow DELETE
                GET h /8/c → 7 ["8"]
                GET h /both → 10 []
                POST h /both → 9 []
            "#]],
        );
    }

    #[test]
    fn own_paths_go_before_all_others_on_every_host() {
        let mut router = router(&["- - /*", "x.test - /*", "- POST /auth/login", "x.test - /health"]);
        router.add_own(10, &"/auth/login".parse().expect("a path"), "POST");
        router.add_own(11, &"/auth/sessions/{sid}".parse().expect("a path"), "DELETE");
        router.add_own(12, &"/health".parse().expect("a path"), "GET");
        check(
            &router,
            &[
                "POST h /auth/login",
                "POST x.test /auth/login",
                "GET x.test /auth/login",
                "DELETE x.test /auth/sessions/s_1",
                "GET h /auth/sessions/s_1",
                "GET x.test /auth/other",
                "GET x.test /health",
                "HEAD h /health",
                "POST h /health",
            ],
            &expect![[r#"
                POST h /auth/login → 10 []
                POST x.test /auth/login → 10 []
                GET x.test /auth/login → allow POST
                DELETE x.test /auth/sessions/s_1 → 11 ["s_1"]
                GET h /auth/sessions/s_1 → allow DELETE
                GET x.test /auth/other → 1 ["auth/other"]
                GET x.test /health → 12 []
                HEAD h /health → 12 []
                POST h /health → allow GET, HEAD
            "#]],
        );
    }
}

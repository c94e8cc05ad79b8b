//! A configuration made ready for the shards: compiled once on the control thread, immutable from then on.

use std::{sync::Arc, time::Duration};

use super::{
    access::{Access, Tokens},
    account::AccountEndpoint,
    addresses::Addresses,
    affinity::Affinity,
    cors,
    fields::FieldRules,
    proxy::BodyMethods,
    rate_limit::{self, LimitPlan, RouteLimits},
    router::{CAPTURES_MAX, Router},
    sockets::{self, HubPlan},
    to_https::{NamedHosts, hsts},
};
use crate::{
    auth::rbac::Roles,
    config::{ClientClose, Config, Deadline, Drain, ECHO_PATH, Health, IpNet, PathPattern, RouteCors},
    net::HttpLimits,
    proto::{head::RequestHead, http1::HeadLimits},
    telemetry::{ids::Sampler, metrics::Names, slots::MetricSlot, spans::Recording},
    upstream::{Instance, RetryRules, Settings, balance::Table},
};

/// How long before the end of a drain the last tunnel begins to end.
const FAREWELL: Duration = Duration::from_secs(2);

/// What every shard routes by. Crosses to each shard as one `Arc`.
#[derive(Debug)]
pub struct Plan {
    /// Counts up with every configuration that is taken.
    pub generation: u64,
    /// Limits of clients' connections.
    pub http: HttpLimits,
    /// Client connections of the process.
    pub connections_max: usize,
    /// Connections that are accepted in one go.
    pub accept_budget: usize,
    /// In a drain: within which time tunnels end.
    pub drain_window: Duration,
    /// Which deadlines count that requests bring along.
    pub(super) deadline: Deadline,
    /// Whether fresh connections go to clearly less loaded shards.
    pub hands_over: bool,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How many may wait for their turn on a shard.
    pub handshakes_waiting_max: usize,
    /// What browsers are told to keep to over TLS.
    pub(super) hsts: Option<Box<[u8]>>,
    /// Where plain HTTP may be sent on to, besides hosts of certificates.
    pub(super) named_hosts: NamedHosts,
    /// Peers whose word about the client counts.
    pub trusted: Vec<IpNet>,
    /// Which traces are recorded.
    pub(super) sampler: Sampler,
    /// Which spans are told.
    pub(super) recording: Recording,
    /// Clients that may read the metrics.
    pub(super) metrics_allowed: Vec<IpNet>,
    /// The limits of the rate of requests, in the order that routes refer to.
    pub limits: Vec<LimitPlan>,
    /// Those of them that hold where no route takes the request, by address.
    pub(super) limits_without_route: Box<[u8]>,
    /// What browsers of other origins are told where no route says otherwise.
    pub(super) cors: Option<Arc<cors::Policy>>,
    /// What roles permit.
    pub(super) roles: Roles,
    /// Whether a client that leaves is not waited for where no route says so: under `/auth`.
    pub(super) cancels_on_close: bool,
    /// How tokens are checked.
    pub(super) tokens: Tokens,
    pub(super) hub: HubPlan,
    pub(super) router: Router,
    pub(super) routes: Vec<Route>,
    /// The groups of backends, in the order that routes refer to.
    pub upstreams: Vec<UpstreamPlan>,
}

/// An upstream as every shard sets it up.
#[derive(Debug)]
pub struct UpstreamPlan {
    /// Its name.
    pub name: String,
    /// Its place in the metrics.
    pub slot: MetricSlot,
    /// How it is used.
    pub settings: Settings,
    /// Its instances, as its names were when the plan was compiled.
    pub instances: Box<[Instance]>,
    /// Which of them has which key, where they are chosen so.
    pub table: Option<Arc<Table>>,
    /// How they are probed; `None` if they are not.
    pub health: Option<Health>,
    /// What keeps a request with one of them, where anything does.
    pub(super) affinity: Option<Affinity>,
}

/// A route, compiled.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) name: String,
    pub(super) slot: MetricSlot,
    pub(super) limits: RouteLimits,
    pub(super) cors: Option<Arc<cors::Policy>>,
    pub(super) access: Access,
    pub(super) target: Target,
}

impl Route {
    /// The paths that it takes, as spans have them. The gateway's own routes are named so.
    pub(super) fn pattern(&self) -> &str {
        if let Target::Proxy(proxy) = &self.target { &proxy.pattern } else { &self.name }
    }

    /// By what a preflight is answered; `None` for any other request.
    pub(super) fn cors_of_preflight(&self, head: &RequestHead) -> Option<&cors::Policy> {
        self.cors.as_deref().filter(|_| cors::asked_method(head).is_some())
    }
}

/// Who answers a route's requests.
#[derive(Debug)]
pub(super) enum Target {
    Proxy(Box<ProxyRoute>),
    /// The gateway itself.
    Own(OwnPage),
    /// The caller's account.
    Account(AccountEndpoint),
    /// The hub, by a socket.
    Socket,
    /// The hub, over HTTP.
    Hub(sockets::HubEndpoint),
    /// A WebSocket that says back what it hears.
    Echo,
}

/// What the gateway answers itself on the public listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnPage {
    Health,
    Live,
    Ready,
    ReadyHub,
    /// For those in `metrics.allow`.
    Metrics,
    /// The public keys that tokens are signed with.
    Jwks,
}

/// How a route's requests are proxied.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the configuration")]
pub(super) struct ProxyRoute {
    /// The paths that it takes, as configured.
    pub(super) pattern: Box<str>,
    pub(super) upstream: usize,
    pub(super) rewrite: Rewrite,
    pub(super) preserve_host: bool,
    pub(super) forward_authorization: bool,
    pub(super) allow_encoded_slash: bool,
    pub(super) merges_slashes: bool,
    pub(super) rewrites_redirects: bool,
    /// What paths begin with, behind what was taken from their front, that routes to this upstream lead to.
    pub(super) fronts: Vec<Box<[u8]>>,
    pub(super) upgrades: Vec<Box<[u8]>>,
    pub(super) body_bytes_max: u64,
    pub(super) request_timeout: Duration,
    pub(super) body_methods: BodyMethods,
    pub(super) response_timeout: Duration,
    pub(super) stream_idle_timeout: Duration,
    pub(super) retries_max: u32,
    pub(super) retry: RetryRules,
    pub(super) hedge_after: Option<Duration>,
    pub(super) deadline: Option<Duration>,
    pub(super) cancels_on_close: bool,
    pub(super) passes_interim: bool,
    pub(super) request_headers: FieldRules,
    pub(super) response_headers: FieldRules,
}

/// What becomes of the path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rewrite {
    Keep,
    /// So many bytes are taken from its front.
    Strip(usize),
    /// It is put together anew.
    Template(Vec<Piece>),
}

/// A piece of a rewritten path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(Vec<u8>),
    /// What the n-th parameter took.
    Capture(usize),
}

/// Why a checked configuration cannot be put to work.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// More limits were named since the process began than there are places for.
    #[error("limits: more names were used since the process began than it has room for; restart it")]
    Limits,
    /// A route has more parameters than the router keeps.
    #[error("routes: {route} has {count} parameters; a path has at most {CAPTURES_MAX}")]
    Parameters {
        /// The route's name.
        route: String,
        /// How many it has.
        count: usize,
    },
}

/// The routes that the gateway answers itself, under the names that logs and metrics show.
const OWN_PAGES: [(&str, OwnPage); 6] = [
    ("/health", OwnPage::Health),
    ("/health/live", OwnPage::Live),
    ("/health/ready", OwnPage::Ready),
    ("/health/ready/hub", OwnPage::ReadyHub),
    ("/metrics", OwnPage::Metrics),
    ("/.well-known/jwks.json", OwnPage::Jwks),
];

/// The endpoints of accounts, with whom they let in (docs/accounts.md, "Endpoints").
const ACCOUNTS: [(&str, &str, AccountEndpoint); 7] = [
    ("POST", "/auth/login", AccountEndpoint::Login),
    ("POST", "/auth/refresh", AccountEndpoint::Refresh),
    ("POST", "/auth/logout", AccountEndpoint::Logout),
    ("POST", "/auth/logout-all", AccountEndpoint::LogoutAll),
    ("GET", "/auth/me", AccountEndpoint::Me),
    ("GET", "/auth/sessions", AccountEndpoint::Sessions),
    ("DELETE", "/auth/sessions/{sid}", AccountEndpoint::EndSession),
];

/// The endpoints of the hub (docs/websocket.md); none of them is the socket's.
const HUB: [(&str, &str, Option<sockets::HubEndpoint>); 5] = [
    ("GET", "/ws", None),
    ("GET", "/hub/rooms/{room}", Some(sockets::HubEndpoint::Look)),
    ("POST", "/hub/rooms/{room}/publish", Some(sockets::HubEndpoint::Publish)),
    ("DELETE", "/hub/users/{user}/connections", Some(sockets::HubEndpoint::Kick)),
    ("POST", "/hub/users/{user}/publish", Some(sockets::HubEndpoint::PublishToUser)),
];

impl Plan {
    /// How many lifecycle events of the hub may wait; none where no service wants any.
    pub fn events_waiting_max(&self) -> Option<usize> {
        self.hub.events.as_ref().map(|events| events.waiting_max)
    }

    /// Compiles a configuration for this many shards, with the instances that there are by these addresses.
    pub fn compile(
        config: &Config,
        addresses: &Addresses,
        generation: u64,
        shards: usize,
        descriptors: u64,
        names: &mut Names,
    ) -> Result<Self, PlanError> {
        let upstreams = UpstreamPlan::all(config, addresses, shards, names);
        let limits = rate_limit::compile(config, shards, &mut names.limits).ok_or(PlanError::Limits)?;
        let cors = cors::Policy::compile(&config.cors).map(Arc::new);
        let upstream_names: Vec<String> = config.upstreams.keys().cloned().collect();
        let hub = HubPlan::compile(config, &upstream_names, names);
        let mut router = Router::default();
        let mut routes = Vec::with_capacity(config.routes.len() + OWN_PAGES.len());
        for route in &config.routes {
            let count = route.path.parameters().count();
            if count > CAPTURES_MAX {
                return Err(PlanError::Parameters { route: route.name.clone(), count });
            }
            router.add(routes.len(), &route.hosts, &route.path, &route.methods);
            routes.push(Route {
                name: route.name.clone(),
                slot: names.routes.claim(&route.name),
                limits: RouteLimits::of_route(&limits, route),
                cors: if route.cors == RouteCors::default() {
                    cors.clone()
                } else {
                    cors::Policy::compile(&route.cors.over(&config.cors)).map(Arc::new)
                },
                access: Access::compile(route),
                target: Target::Proxy(Box::new(ProxyRoute::compile(config, route, &upstreams))),
            });
        }
        for (path, page) in OWN_PAGES {
            router.add_own(routes.len(), &PathPattern::Exact(path.to_owned()), "GET");
            routes.push(Route {
                name: path.to_owned(),
                slot: names.routes.claim(path),
                // Whoever watches over the gateway is never told to come back later.
                limits: RouteLimits::default(),
                cors: cors.clone(),
                access: Access::Public,
                target: Target::Own(page),
            });
        }
        for (method, path, endpoint) in ACCOUNTS.iter().filter(|_| config.accounts.enabled) {
            let pattern: PathPattern = path.parse().expect("the table's paths are right");
            router.add_own(routes.len(), &pattern, method);
            routes.push(Route {
                name: (*path).to_owned(),
                slot: names.routes.claim(path),
                access: if endpoint.is_public() { Access::Public } else { Access::any_caller() },
                limits: RouteLimits::of_auth(&limits, path),
                cors: cors.clone(),
                target: Target::Account(*endpoint),
            });
        }
        if config.hub.echo {
            router.add_own(routes.len(), &PathPattern::Exact(ECHO_PATH.to_owned()), "GET");
            routes.push(echo_route(names.routes.claim(ECHO_PATH), &limits, cors.clone()));
        }
        for (method, path, endpoint) in HUB.iter().filter(|_| hub.is_enabled) {
            let pattern: PathPattern = path.parse().expect("the table's paths are right");
            router.add_own(routes.len(), &pattern, method);
            routes.push(Route {
                name: (*path).to_owned(),
                slot: names.routes.claim(path),
                // A socket says itself who it is for, or says so later.
                access: if endpoint.is_none() { Access::Public } else { Access::any_caller() },
                limits: RouteLimits::of_own(&limits, path),
                cors: cors.clone(),
                target: endpoint.map_or(Target::Socket, Target::Hub),
            });
        }
        Ok(Self {
            generation,
            http: http_limits(config),
            connections_max: config.listener.connections_allowed(descriptors),
            accept_budget: config.listener.accept_budget,
            drain_window: drain_window(&config.drain),
            deadline: config.deadline.clone(),
            hands_over: config.listener.hand_over,
            handshake_timeout: config.tls.handshake_timeout,
            handshakes_waiting_max: config.tls.handshakes_waiting_max,
            hsts: hsts(&config.tls),
            named_hosts: NamedHosts::of(config),
            trusted: config.trust.proxies.clone(),
            sampler: Sampler::new(config.trace.sample_ratio, config.trace.heed_parents),
            recording: Recording { is_on: config.trace.endpoint.is_some(), with_errors: config.trace.errors },
            metrics_allowed: config.metrics.allow.clone(),
            limits_without_route: RouteLimits::without_route(&limits),
            limits,
            cors,
            roles: roles(config),
            cancels_on_close: config.http.on_client_close == ClientClose::Cancel,
            tokens: Tokens::of(config),
            hub,
            router,
            routes,
            upstreams,
        })
    }
}

fn echo_route(slot: MetricSlot, limits: &[LimitPlan], cors: Option<Arc<cors::Policy>>) -> Route {
    let limits = RouteLimits::of_own(limits, ECHO_PATH);
    Route { name: ECHO_PATH.to_owned(), slot, limits, cors, access: Access::Public, target: Target::Echo }
}

/// What roles permit, for whoever compares.
pub(super) fn roles(config: &Config) -> Roles {
    Roles::new(config.roles.iter().map(|(name, role)| (name.as_str(), role.permissions.iter().map(String::as_str))))
}

/// What is left between the closing of listeners and the end of a drain is all the time that there is, less a moment in
/// which tunnels close.
fn drain_window(drain: &Drain) -> Duration {
    drain.window.min(drain.max.saturating_sub(drain.notice).saturating_sub(FAREWELL))
}

fn http_limits(config: &Config) -> HttpLimits {
    let http = &config.http;
    HttpLimits {
        head: HeadLimits {
            head_bytes_max: http.head_bytes_max,
            fields_max: http.fields_max,
            target_bytes_max: http.target_bytes_max,
        },
        header_timeout: http.header_timeout,
        request_timeout: http.request_timeout,
        keep_alive_timeout: http.keep_alive_timeout,
        body_bytes_max: http.body_bytes_max,
        write_timeout: http.stream_idle_timeout,
        requests_max: http.requests_per_connection_max,
    }
}

impl ProxyRoute {
    fn compile(config: &Config, route: &crate::config::Route, upstreams: &[UpstreamPlan]) -> Self {
        let upstream = &config.upstreams[&route.upstream];
        let rewrite = match (&route.strip_prefix, &route.rewrite) {
            (_, Some(template)) => Rewrite::Template(template_pieces(template, &route.path)),
            (Some(prefix), None) => Rewrite::Strip(prefix.len()),
            (None, None) => Rewrite::Keep,
        };
        Self {
            pattern: route.path.to_string().into(),
            upstream: upstreams
                .iter()
                .position(|plan| plan.name == route.upstream)
                .expect("the configuration is checked"),
            rewrite,
            preserve_host: route.preserve_host,
            forward_authorization: route.forward_authorization,
            allow_encoded_slash: route.allow_encoded_slash,
            merges_slashes: route.merge_slashes,
            rewrites_redirects: route.rewrite_redirects,
            fronts: fronts(config, route),
            upgrades: route.upgrades.iter().map(|protocol| protocol.as_bytes().into()).collect(),
            body_bytes_max: route.body_bytes_max.unwrap_or(config.http.body_bytes_max),
            request_timeout: route.request_timeout.unwrap_or(config.http.request_timeout),
            body_methods: BodyMethods::from(route.body_methods.as_ref().unwrap_or(&upstream.body_methods).as_slice()),
            response_timeout: route.response_timeout.unwrap_or(upstream.response_timeout),
            stream_idle_timeout: route.stream_idle_timeout.unwrap_or(config.http.stream_idle_timeout),
            retries_max: route.retries_max.unwrap_or(upstream.retries_max),
            retry: RetryRules::new(
                route.retry_on.as_deref().unwrap_or(&upstream.retry_on),
                route.per_try_timeout.or(upstream.per_try_timeout),
            ),
            hedge_after: route.hedge_after,
            deadline: route.deadline,
            cancels_on_close: route.on_client_close.unwrap_or(config.http.on_client_close) == ClientClose::Cancel,
            passes_interim: route.interim_answers.unwrap_or(config.http.interim_answers),
            request_headers: FieldRules::from(&route.request_headers),
            response_headers: FieldRules::from(&route.response_headers),
        }
    }
}

/// What paths begin with, behind the prefix that a route strips, that routes with the same prefix lead to the same
/// upstream. Behind a rewritten front, which names the route's own requests, that is any.
fn fronts(config: &Config, route: &crate::config::Route) -> Vec<Box<[u8]>> {
    let Some(prefix) = &route.strip_prefix else { return vec![Box::default()] };
    let is_alike =
        |other: &&crate::config::Route| other.upstream == route.upstream && other.strip_prefix == route.strip_prefix;
    let alike = config.routes.iter().filter(is_alike);
    let mut fronts: Vec<Box<[u8]>> = alike.map(|route| route.path.front()[prefix.len()..].as_bytes().into()).collect();
    fronts.sort();
    fronts.dedup();
    fronts
}

/// Cuts `/v2/{id}/{rest}` at its braces.
fn template_pieces(template: &str, path: &PathPattern) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some((text, tail)) = rest.split_once('{') {
        let (name, tail) = tail.split_once('}').unwrap_or((tail, ""));
        let place = path.parameters().position(|parameter| parameter == name).expect("the configuration is checked");
        pieces.push(Piece::Text(text.as_bytes().to_vec()));
        pieces.push(Piece::Capture(place));
        rest = tail;
    }
    pieces.push(Piece::Text(rest.as_bytes().to_vec()));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_knows_which_paths_are_our_own() {
        assert_eq!(OWN_PAGES.map(|(path, _)| path), crate::config::OWN_PATHS);
        assert_eq!(ACCOUNTS.map(|(_, path, _)| path), crate::config::ACCOUNT_PATHS);
        assert_eq!(HUB.map(|(_, path, _)| path), crate::config::HUB_PATHS);
    }

    #[test]
    fn templates_are_cut_at_their_braces() {
        let path: PathPattern = "/users/{id}/*".parse().expect("a path");
        let text = |text: &str| Piece::Text(text.as_bytes().to_vec());
        assert_eq!(
            template_pieces("/v2/{id}/x/{rest}", &path),
            [text("/v2/"), Piece::Capture(0), text("/x/"), Piece::Capture(1), text("")]
        );
        assert_eq!(template_pieces("/fixed", &path), [text("/fixed")]);
    }
}

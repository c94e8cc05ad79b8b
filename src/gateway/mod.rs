//! A request's journey: every step of it, in order, in one place.

mod access;
mod account;
mod addresses;
mod body;
mod cors;
pub mod fields;
mod neighbours;
mod pages;
mod path;
mod plan;
mod proxy;
pub mod rate_limit;
mod readings;
mod redirects;
pub mod router;
mod routing;
mod token_query;
mod tunnel;
mod unasked;

use std::{
    cell::Cell,
    fmt,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use access::{Admitted, Identity};
pub use addresses::{Addresses, NoAddress, own_listener_loops};
use body::Body;
pub use neighbours::unguarded_neighbours;
use pages::{NOT_CACHED, answer_options, json, own_answer, own_method};
pub use pages::{Page, Pages};
use plan::{OwnPage, Route, Target};
pub use plan::{Plan, PlanError};
use rate_limit::{Limits, Statement, cells::CellKey};
use routing::normalise_path;

use crate::{
    accounts::{Outcome, Question},
    auth::{KeySet, Revocation},
    bus::desk::Desk,
    config::LimitKey,
    exchange::{Code, Exchange, Labels, Ledger, Reject},
    net::{AnswerBody as _, HttpLimits, Mistake, Peer, RequestBody, Response, Service, Slot, Upgrade},
    proto::head::{Known, Method, RequestHead, ResponseHead, Span},
    shard::{Instant, Local, clock, timer},
    telemetry::{exposition, metrics::Counters, record::Place, slots::OTHER},
    upstream::{Report, Upstream},
};

/// How long a scrape waits for the control thread, which itself gives the shards one second.
const METRICS_TIMEOUT: Duration = Duration::from_secs(2);

/// One per shard: what it routes by, and the upstreams as it knows them.
#[derive(Debug)]
pub struct Gateway {
    ledger: Rc<Local<Ledger>>,
    desks: Desks,
    /// What its requests are counted by.
    pub limits: Limits,
    live: Local<Rc<Live>>,
    /// What the control thread said last of the gateway's health.
    pages: Local<Pages>,
    identity: Identity,
    /// Requests that have no answer yet are refused, for the process ends.
    refuses_unanswered: Cell<bool>,
}

/// Where a shard asks other threads what it does not know itself.
pub struct Desks {
    /// The control thread, for what all shards have counted.
    pub metrics: Rc<Desk<(), Arc<str>>>,
    /// The bridge, for what callers do with their accounts.
    pub accounts: Rc<Desk<Question, Outcome>>,
    /// Tells the control thread of an issuer whose keys lack the one that a token named.
    pub want_keys: Box<dyn Fn(Arc<str>)>,
}

impl fmt::Debug for Desks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desks").finish_non_exhaustive()
    }
}

/// The plan that is in force on a shard, and what it needs here. A request keeps the one that it began with.
#[derive(Debug)]
struct Live {
    plan: Arc<Plan>,
    http: Rc<HttpLimits>,
    limits: Limits,
    /// In the order of the plan's.
    upstreams: Vec<Rc<Upstream>>,
    /// For each route.
    labels: Vec<Rc<Labels>>,
}

/// What is to be said in a request's answer besides the answer: gathered step by step, for refusals too.
#[derive(Debug, Default)]
struct Besides {
    route: Option<usize>,
    /// Where the request says from which origin it comes. What a route does to the head moves nothing.
    origin: Option<Span>,
    is_preflight: bool,
    /// The caller's token stood in the query.
    has_token_query: bool,
    limits: Statement,
}

impl Gateway {
    /// A gateway that works by this plan, and checks tokens with these keys.
    pub fn new(plan: Arc<Plan>, keys: Arc<KeySet>, ledger: Rc<Local<Ledger>>, desks: Desks, limits: Limits) -> Self {
        limits.adopt(&plan.limits);
        let identity = Identity::new(keys, &plan.tokens);
        let live = Local::new(Rc::new(Live::new(plan, &[], &ledger, limits.clone())));
        let (pages, refuses_unanswered) = (Local::default(), Cell::new(false));
        Self { ledger, desks, limits, live, pages, identity, refuses_unanswered }
    }

    /// Checks tokens with these keys from now on.
    pub fn adopt_keys(&self, keys: Arc<KeySet>) {
        self.identity.adopt_keys(keys);
    }

    /// Has the keys fetched that a refused token named, if they are not known.
    fn ask_for_keys(&self) {
        if let Some(issuer) = self.identity.take_wanted_issuer() {
            (self.desks.want_keys)(issuer);
        }
    }

    /// These were revoked: their tokens count no more, and what is under way for them ends. `clock_ahead_ms` is how far
    /// the log's clock is ahead, where they are new.
    pub fn revoke(&self, revocations: &[Revocation], clock_ahead_ms: Option<i64>) {
        let ended = self.identity.revoke(revocations);
        let now_ms = i64::try_from(clock::unix_now().as_millis()).unwrap_or(i64::MAX);
        self.ledger.with(|ledger| {
            ledger.counters.exchanges_revoked += ended as u64;
            let Some(ahead_ms) = clock_ahead_ms else { return };
            for revocation in revocations {
                let at_ms = i64::try_from(revocation.at_ms).unwrap_or(i64::MAX).saturating_sub(ahead_ms);
                let lag_ms = u64::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(0);
                ledger.counters.revocation_lag.observe_us(lag_ms.saturating_mul(1000));
            }
        });
    }

    /// Requests that wait, for whatever it is, are refused from now on, once their tasks are woken: the process ends.
    pub fn refuse_unanswered(&self) {
        self.refuses_unanswered.set(true);
    }

    /// Adds what it holds to the shard's counters.
    pub fn count(&self, counters: &mut Counters) {
        self.identity.count(&self.live().plan.tokens, counters);
    }

    /// Everything that was revoked until then has been told.
    pub fn known_until(&self, until: Instant) {
        self.identity.known_until(until);
    }

    /// Takes a new plan. Requests under way end by the old one; upstreams and backends that stay keep their connections.
    pub fn adopt(&self, plan: Arc<Plan>) {
        let old = self.live();
        self.identity.adopt(&plan.tokens);
        let known: Vec<_> =
            old.plan.upstreams.iter().map(|upstream| upstream.name.as_str()).zip(&old.upstreams).collect();
        self.limits.adopt(&plan.limits);
        let live = Rc::new(Live::new(plan, &known, &self.ledger, self.limits.clone()));
        let replaced = self.live.with(|current| std::mem::replace(current, live));
        drop(replaced);
    }

    /// Closes connections to backends that have been idle for too long.
    pub fn sweep(&self, now: Instant) {
        self.identity.sweep();
        for upstream in &self.live().upstreams {
            upstream.sweep(now);
        }
        self.note_unasked();
    }

    /// How each upstream stands on this shard, in the order of the plan's.
    pub fn report(&self, now: Instant) -> Vec<Report> {
        self.live().upstreams.iter().map(|upstream| upstream.report(now)).collect()
    }

    /// The plan in force.
    pub fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.live().plan)
    }

    fn live(&self) -> Rc<Live> {
        self.live.with(|live| Rc::clone(live))
    }
}

impl Live {
    fn new(plan: Arc<Plan>, known: &[(&str, &Rc<Upstream>)], ledger: &Local<Ledger>, limits: Limits) -> Self {
        let upstreams = plan.upstreams.iter().map(|wanted| {
            let known = known.iter().find(|(name, _)| *name == wanted.name).map(|(_, upstream)| Rc::clone(upstream));
            let seed = || ledger.with(|ledger| ledger.rng.u64(..));
            let upstream = known.unwrap_or_else(|| Rc::new(Upstream::new(wanted.settings.clone(), seed())));
            upstream.update(wanted.settings.clone(), &wanted.backends);
            upstream
        });
        let upstreams: Vec<_> = upstreams.collect();
        let labels = plan.routes.iter().map(|route| {
            let upstream = match &route.target {
                Target::Proxy(proxy) => Some(&plan.upstreams[proxy.upstream]),
                Target::Own(_) | Target::Account(_) => None,
            };
            Rc::new(Labels {
                place: Place::new(&route.name, upstream.map_or("", |upstream| &upstream.name)),
                route_slot: route.slot,
                upstream_slot: upstream.map_or(OTHER, |upstream| upstream.slot),
            })
        });
        let labels = labels.collect();
        ledger.with(|ledger| {
            let slots = |slots: &mut dyn Iterator<Item = usize>| slots.max().map_or(0, |slot| slot + 1);
            ledger.counters.make_room(
                slots(&mut plan.routes.iter().map(|route| route.slot.index())),
                slots(&mut plan.upstreams.iter().map(|upstream| upstream.slot.index())),
            );
            ledger.sampler = plan.sampler;
            ledger.counters.config_generation = i64::try_from(plan.generation).unwrap_or(i64::MAX);
        });
        Self { http: Rc::new(plan.http.clone()), plan, limits, upstreams, labels }
    }
}

impl Service for Gateway {
    type Body = Body;
    type Exchange = Exchange;

    fn limits(&self) -> Rc<HttpLimits> {
        self.live.with(|live| Rc::clone(&live.http))
    }

    fn begin(&self, peer: &Peer, slot: &Slot, head: RequestHead, began: Instant) -> Exchange {
        let (client, is_trusted) = self.live.with(|live| live.client(peer, &head));
        Exchange::begin(&self.ledger, peer, Some(slot.ender()), head, began, is_trusted, client)
    }

    async fn serve<R: RequestBody>(&self, exchange: &mut Exchange, mut body: R) -> Option<Response<R, Body>> {
        let live = self.live();
        let mut besides = Besides::default();
        let answered = {
            let mut answering = pin!(live.answer(self, exchange, &mut besides, &mut body));
            poll_fn(|cx| match answering.as_mut().poll(cx) {
                Poll::Pending if self.refuses_unanswered.get() => Poll::Ready(Err(Reject::new(Code::Draining))),
                polled => polled,
            })
            .await
        };
        let answered = match answered {
            Ok((_, body)) if !exchange.may_answer() => {
                body.abandon();
                Err(Reject::new(Code::TokenRevoked))
            }
            answered => answered,
        };
        let (mut head, answer) = match answered {
            Ok(answer) => answer,
            Err(reject) if reject.code == Code::ClientClosed => {
                exchange.abandoned();
                return None;
            }
            Err(reject) => {
                let (head, bytes) = exchange.refuse(&reject);
                (head, Body::Own(bytes.into()))
            }
        };
        live.say_besides(&besides, &exchange.head, &mut head);
        exchange.answered(&mut head);
        Some(Response { head, body: answer, request: body })
    }

    fn refuse<R: RequestBody>(
        &self,
        peer: &Peer,
        mistake: Mistake,
        body: R,
        began: Instant,
    ) -> (Response<R, Body>, Exchange) {
        let head = RequestHead::unknown();
        let mut exchange = Exchange::begin(&self.ledger, peer, None, head, began, false, peer.address.ip());
        let (mut head, bytes) = exchange.refuse(&Reject::from(mistake));
        exchange.answered(&mut head);
        (Response { head, body: Body::Own(bytes.into()), request: body }, exchange)
    }

    fn switch(&self, exchange: Exchange, body: Body, request_bytes: u64) -> Option<Box<dyn Upgrade>> {
        let backend = body.into_switched()?;
        Some(Box::new(tunnel::Tunnel::new(exchange.switched(request_bytes), backend)))
    }
}

impl Live {
    /// Every step of a request's journey, in order.
    async fn answer(
        &self,
        gateway: &Gateway,
        exchange: &mut Exchange,
        besides: &mut Besides,
        body: &mut impl RequestBody,
    ) -> Result<(ResponseHead, Body), Reject> {
        besides.origin = cors::origin_of(&exchange.head);
        if let Some(answered) = own_method(&exchange.head).transpose() {
            self.pass_elsewhere(exchange.client, besides).await?;
            return answered;
        }
        let routed = normalise_path(&mut exchange.head).and_then(|mut path| {
            let found = self.route(&exchange.head)?;
            Ok((self.keep_slashes(&mut exchange.head, &mut path, found), path))
        });
        let (found, path) = match routed {
            Ok(routed) => routed,
            Err(reject) => {
                self.pass_elsewhere(exchange.client, besides).await?;
                // The request that follows gets the refusal, so that its page can read it.
                let is_routing = matches!(reject.code, Code::NotFound | Code::MethodNotAllowed);
                let cors = self.plan.cors.as_deref().filter(|_| is_routing && self.is_about_nothing(&exchange.head));
                return cors.map(|cors| answer_preflight(cors, &exchange.head, besides)).ok_or(reject);
            }
        };
        let Route { access, limits, cors, target, .. } = &self.plan.routes[found.route];
        besides.route = Some(found.route);
        exchange.routed(&self.labels[found.route]);
        if let Some(cors) = cors.as_deref().filter(|_| cors::asked_method(&exchange.head).is_some()) {
            if !limits.is_empty() {
                self.pass_elsewhere(exchange.client, besides).await?;
            }
            return Ok(answer_preflight(cors, &exchange.head, besides));
        }
        let by_address = |_| Some(CellKey::of_address(exchange.client));
        self.limits.pass(&self.plan.limits, &limits.by_address, by_address, &mut besides.limits).await?;
        self.refuse_other_readings(&exchange.head, &found, &path)?;
        let ends = matches!(target, Target::Account(endpoint) if endpoint.ends());
        let admitted = gateway.identity.admit(exchange, access, ends, &self.plan);
        let Admitted { standing, by_query } = admitted.inspect_err(|_| gateway.ask_for_keys())?;
        besides.has_token_query = by_query;
        // The gateway's own endpoints are not tied: a log-out is answered after its session has ended.
        if let Target::Proxy(_) = target {
            gateway.identity.tie(exchange);
        }
        let by_the_rest = |key| match key {
            LimitKey::User => exchange.caller.as_deref().map(CellKey::of_caller),
            LimitKey::Address | LimitKey::Route => Some(limits.key),
        };
        self.limits.pass(&self.plan.limits, &limits.later, by_the_rest, &mut besides.limits).await?;
        match target {
            Target::Proxy(route) => {
                if exchange.head.method == Method::Options && !fields::count_hop(&mut exchange.head) {
                    return Ok(answer_options(&self.methods(&exchange.head)));
                }
                let upstream = &self.upstreams[route.upstream];
                let (head, body) = proxy::forward(exchange, route, upstream, &found.captures, body).await?;
                Ok((head, Body::Upstream(body)))
            }
            // Boxed, so that other requests are not larger for what few of them wait for.
            Target::Own(OwnPage::Metrics) => Box::pin(self.metrics(exchange.client, &gateway.desks)).await,
            Target::Own(page) => Ok(gateway.own_page(*page)),
            Target::Account(endpoint) => {
                let desk = &gateway.desks.accounts;
                Box::pin(account::answer(*endpoint, standing, desk, &self.plan, exchange, &found.captures, body)).await
            }
        }
    }

    /// Whether a request may pass that no route takes, or that only asks about another: by the address alone.
    async fn pass_elsewhere(&self, client: IpAddr, besides: &mut Besides) -> Result<(), Reject> {
        let which = &self.plan.limits_elsewhere;
        if which.is_empty() {
            return Ok(());
        }
        let by_address = |_| Some(CellKey::of_address(client));
        // Boxed, so that requests which a route takes are not larger for it.
        Box::pin(self.limits.pass(&self.plan.limits, which, by_address, &mut besides.limits)).await
    }

    /// Adds to an answer, whoever gave it, what the gateway says to browsers and of limits.
    fn say_besides(&self, besides: &Besides, request: &RequestHead, answer: &mut ResponseHead) {
        besides.limits.write(&self.plan.limits, answer);
        if besides.has_token_query && answer.status >= 200 {
            token_query::protect(answer);
        }
        let cors = match besides.route {
            Some(route) => &self.plan.routes[route].cors,
            None => &self.plan.cors,
        };
        if let Some(cors) = cors.as_deref().filter(|_| !besides.is_preflight) {
            cors.complete(besides.origin.map(|origin| request.text(origin)), answer);
        }
    }

    /// Whom a request is from, and whether the peer's word about it counts: the last address of `X-Forwarded-For` that
    /// no trusted peer has added.
    fn client(&self, peer: &Peer, head: &RequestHead) -> (IpAddr, bool) {
        let is_trusted = |address: IpAddr| self.plan.trusted.iter().any(|net| net.contains(address));
        let mut client = peer.address.ip();
        if self.plan.trusted.is_empty() || !is_trusted(client) {
            return (client, false);
        }
        let fields = head.fields.iter().filter(|field| field.known == Known::XForwardedFor);
        let hops = fields.rev().flat_map(|field| field.value.of(&head.bytes).rsplit(|byte| *byte == b','));
        // RFC 9110 §5.6.1: empty members of a list stand for nothing.
        let hops = hops.map(<[u8]>::trim_ascii).filter(|hop| !hop.is_empty());
        for hop in hops {
            let Some(address) = hop_address(hop) else { break };
            client = address;
            if !is_trusted(address) {
                break;
            }
        }
        (client, true)
    }

    /// What all shards have counted, for those who may know: the control thread asks the shards, and this one among
    /// them, while the request waits.
    async fn metrics(&self, client: IpAddr, desks: &Desks) -> Result<(ResponseHead, Body), Reject> {
        if !self.plan.metrics_allowed.iter().any(|network| network.contains(client)) {
            return Err(Reject::new(Code::NotFound));
        }
        let asked = desks.metrics.ask(()).map_err(|_| Reject::new(Code::Overloaded))?;
        let told = timer::within(clock::now() + METRICS_TIMEOUT, asked).await;
        let text = told.ok_or_else(|| Reject::new(Code::Overloaded))?;
        Ok(own_answer(200, exposition::CONTENT_TYPE, NOT_CACHED, text.as_bytes()))
    }
}

/// The address of a member of `X-Forwarded-For`. Some proxies add the port, and brackets to an IPv6 address.
fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let bare = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    hop.parse().ok().or_else(with_port).or_else(bare)
}

fn answer_preflight(cors: &cors::Policy, head: &RequestHead, besides: &mut Besides) -> (ResponseHead, Body) {
    besides.is_preflight = true;
    (cors.answer_preflight(head), Body::Own(Vec::new().into()))
}

//! A request's journey: every step of it, in order, in one place.

mod access;
mod account;
mod addresses;
mod affinity;
mod body;
mod cors;
mod echo;
pub mod fields;
mod live;
mod neighbours;
mod outages;
mod pages;
mod path;
mod plan;
mod proxy;
pub mod rate_limit;
mod readings;
mod redirects;
pub mod router;
mod routing;
mod sockets;
mod to_https;
mod token_query;
mod tunnel;
mod upstreams;

use std::{cell::Cell, fmt, future::poll_fn, pin::pin, rc::Rc, sync::Arc, task::Poll};

use access::{Admitted, Identity, Standing};
pub use addresses::{
    Addresses, Instances, Moved, Wanted, instances, names, own_listener_loops, sources, unresolved_instances,
};
use body::Body;
use live::Live;
pub use neighbours::unguarded_neighbours;
use outages::Outages;
pub use outages::Suspect;
pub use pages::{Page, Pages};
use pages::{metrics_format, own_method};
use plan::{OwnPage, Route, Target};
pub use plan::{Plan, PlanError};
use rate_limit::{Limits, Statement, cells::CellKey};
use sockets::Sockets;
pub use sockets::{AskBus, Seat, SendLetter};
pub use to_https::ToHttps;
use to_https::keep_to_https;

use crate::{
    accounts::{Outcome, Question},
    auth::{KeySet, Revocation},
    bus::desk::Desk,
    certificates::Certificates,
    config::LimitKey,
    exchange::{Code, Exchange, Ledger, Reject},
    hub::{bus::BusAnswer, letter::RoomLetter},
    net::{
        AnswerBody as _, HttpLimits, Mistake, Peer, RequestBody, Response, SERVICE_HANDSHAKES_PER_TURN, Service, Slot,
        Upgrade,
    },
    proto::head::{RequestHead, ResponseHead, Span},
    shard::{Instant, Local, clock, gate::Gate},
    telemetry::{format::Format, metrics::Counters, spans::SpanKind},
    upstream::Orders,
};

/// One per shard: what it routes by, and the upstreams as it knows them.
#[derive(Debug)]
pub struct Gateway {
    ledger: Rc<Local<Ledger>>,
    desks: Desks,
    /// What its requests are counted by.
    pub limits: Limits,
    live: Local<Rc<Live>>,
    /// What operators want of backends.
    orders: Local<Arc<Orders>>,
    /// What clients are shown, where a listener speaks TLS.
    certificates: Local<Option<Arc<Certificates>>>,
    /// What handshakes with services pass.
    to_services: Rc<Gate>,
    /// What the control thread said last of the gateway's health.
    pages: Local<Pages>,
    identity: Identity,
    /// Requests that have no answer yet are refused, for the process ends.
    refuses_unanswered: Cell<bool>,
    sockets: Rc<Sockets>,
    outages: Outages,
}

/// Where a shard asks other threads what it does not know itself.
pub struct Desks {
    /// The control thread, for what all shards have counted.
    pub metrics: Rc<Desk<Format, Arc<String>>>,
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

impl Gateway {
    /// A gateway that works by this plan, and checks tokens with these keys.
    pub fn new(
        plan: Arc<Plan>,
        keys: Arc<KeySet>,
        ledger: Rc<Local<Ledger>>,
        desks: Desks,
        limits: Limits,
        seat: Seat,
    ) -> Rc<Self> {
        limits.adopt(&plan.limits);
        let identity = Identity::new(keys, &plan.tokens);
        let sockets = Sockets::new(seat, &plan.hub, Rc::clone(&ledger));
        let outages = Outages::default();
        let live = Local::new(Rc::new(Live::new(plan, &[], &ledger, limits.clone(), &outages.bell)));
        let (pages, refuses_unanswered) = (Local::default(), Cell::new(false));
        let orders = Local::default();
        let gateway = Rc::new(Self {
            ledger,
            desks,
            limits,
            live,
            orders,
            certificates: Local::default(),
            to_services: Rc::new(Gate::new(SERVICE_HANDSHAKES_PER_TURN)),
            pages,
            identity,
            refuses_unanswered,
            sockets,
            outages,
        });
        gateway.sockets.attach(&gateway);
        gateway
    }

    /// Writes what the hub has queued, and keeps its time. Never ends.
    pub fn run_hub(&self) -> impl Future<Output = ()> + use<> {
        Rc::clone(&self.sockets).run()
    }

    /// Another shard's hub has written.
    pub fn hear(&self, from: usize, letter: RoomLetter) {
        self.sockets.hear(from, letter);
    }

    /// Whether this shard's hub is to hear more from others in this turn.
    pub fn takes_letters(&self) -> bool {
        self.sockets.takes_letters()
    }

    /// The bus between instances says something to this shard's hub.
    pub fn hear_bus(&self, answer: BusAnswer) {
        self.sockets.hear_bus(answer);
    }

    /// The bus between instances has come, with a new connection perhaps, or has gone.
    pub fn bus_is_up(&self, is_up: bool) {
        self.sockets.bus_is_up(is_up);
    }

    /// The process goes: sockets are told when to come back, and end within this time.
    pub fn drain_sockets(&self, window: std::time::Duration) {
        self.sockets.drain(window);
    }

    /// Whether a service is told who comes and goes in the hub.
    pub fn sends_events(&self) -> bool {
        self.live.with(|live| live.plan.hub.events.is_some())
    }

    /// How many of these events wait for the service.
    pub fn events_waiting(&self) -> usize {
        self.sockets.events_waiting()
    }

    /// These are what clients are shown, and services are known by, from now on.
    pub fn adopt_certificates(&self, certificates: Arc<Certificates>) {
        self.live().trust(&certificates, &self.to_services);
        drop(self.certificates.with(|current| current.replace(certificates)));
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
        self.sockets.count(counters);
    }

    /// Everything that was revoked until then has been told.
    pub fn known_until(&self, until: Instant) {
        self.identity.known_until(until);
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
        let mut additions = Additions::default();
        let mut answered = {
            let mut answering = pin!(live.answer(self, exchange, &mut additions, &mut body));
            poll_fn(|cx| {
                let polled = answering.as_mut().poll(cx);
                if polled.is_pending() && self.refuses_unanswered.get() {
                    return Poll::Ready(Err(Reject::new(Code::Draining)));
                }
                polled
            })
            .await
        };
        if answered.is_ok()
            && !exchange.may_answer()
            && let Ok((_, body)) = std::mem::replace(&mut answered, Err(Reject::new(Code::TokenRevoked)))
        {
            body.abandon();
        }
        live.complete(exchange, &additions, &mut answered);
        let (head, answer) = answered.ok()?;
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
        self.live.with(|live| keep_to_https(&live.plan, peer, &mut head));
        exchange.answered(&mut head);
        (Response { head, body: Body::Own(bytes.into()), request: body }, exchange)
    }

    fn switch(&self, exchange: Exchange, body: Body, head: Vec<u8>, request_bytes: u64) -> Option<Box<dyn Upgrade>> {
        match body {
            Body::Own(_) => None,
            Body::Upstream(streaming) => {
                let backend = streaming.into_switched()?;
                Some(Box::new(tunnel::Tunnel::new(exchange.switched(request_bytes), backend)))
            }
            Body::Echo(deflate) => Some(Box::new(echo::Echo::new(exchange.switched(request_bytes), deflate))),
            Body::Upgraded(mut opening) => {
                exchange.upgraded(request_bytes);
                opening.take_head(head);
                Some(opening)
            }
        }
    }
}

impl Live {
    /// Makes of it the answer as it goes out, where it stands: it is large. A refusal becomes one too, unless nobody is there to be
    /// answered.
    fn complete(
        &self,
        exchange: &mut Exchange,
        additions: &Additions,
        answered: &mut Result<(ResponseHead, Body), Reject>,
    ) {
        if let Err(reject) = answered {
            if reject.code == Code::ClientClosed {
                return exchange.abandoned();
            }
            let (head, bytes) = exchange.refuse(reject);
            *answered = Ok((head, Body::Own(bytes.into())));
        }
        let Ok((head, _)) = answered else { return };
        additions.write(&self.plan, &exchange.head, head);
        keep_to_https(&self.plan, &exchange.peer, head);
        exchange.answered(head);
    }

    /// Every step of a request's journey, in order.
    async fn answer(
        &self,
        gateway: &Gateway,
        exchange: &mut Exchange,
        additions: &mut Additions,
        body: &mut impl RequestBody,
    ) -> Result<(ResponseHead, Body), Reject> {
        additions.origin = cors::origin_of(&exchange.head);
        if let Some(answered) = own_method(&exchange.head).transpose() {
            self.limit_without_route(exchange, additions).await?;
            return answered;
        }
        let (found, path) = match self.find_route(&mut exchange.head) {
            Ok(found) => found,
            Err(reject) => {
                self.limit_without_route(exchange, additions).await?;
                return self.answer_without_route(&exchange.head, reject, additions);
            }
        };
        let route = &self.plan.routes[found.route];
        additions.route = Some(found.route);
        exchange.routed(&self.labels[found.route]);
        if let Some(cors) = route.cors_of_preflight(&exchange.head) {
            self.limit_preflight(exchange, route, additions).await?;
            return Ok(additions.answer_preflight(cors, &exchange.head));
        }
        self.limit_by_address(exchange, route, additions).await?;
        self.refuse_other_readings(&exchange.head, &found, &path)?;
        let standing = gateway.admit(exchange, route, &self.plan, additions)?;
        if !matches!(route.target, Target::Socket) {
            self.limit_by_caller_and_route(exchange, route, additions).await?;
        }
        match &route.target {
            Target::Proxy(target) => proxy::forward(self, exchange, target, &found.captures, body).await,
            // Boxed, so that other requests are not larger for what few of them wait for.
            Target::Own(OwnPage::Metrics) => {
                let format = metrics_format(&exchange.head);
                Box::pin(gateway.metrics(&self.plan, exchange.client, format)).await
            }
            Target::Own(page) => Ok(gateway.own_page(*page)),
            Target::Echo => echo::answer(exchange),
            Target::Socket => Box::pin(self.open_socket(gateway, exchange, route, additions)).await,
            Target::Hub(endpoint) => {
                Box::pin(sockets::answer(self, gateway, exchange, *endpoint, &found.captures, body)).await
            }
            Target::Account(endpoint) => {
                Box::pin(account::answer(self, gateway, exchange, *endpoint, standing, &found.captures, body)).await
            }
        }
    }

    /// By the address alone.
    async fn limit_without_route(&self, exchange: &Exchange, additions: &mut Additions) -> Result<(), Reject> {
        let which = &self.plan.limits_without_route;
        if which.is_empty() {
            return Ok(());
        }
        let by_address = |_| Some(CellKey::of_address(exchange.client));
        // Boxed, so that requests which a route takes are not larger for it.
        Box::pin(self.limits.pass(&self.plan.limits, which, by_address, &mut additions.limits)).await
    }

    /// It only asks about a request that may follow: as one without a route, where the route has limits.
    async fn limit_preflight(
        &self,
        exchange: &Exchange,
        route: &Route,
        additions: &mut Additions,
    ) -> Result<(), Reject> {
        if route.limits.is_empty() {
            return Ok(());
        }
        self.limit_without_route(exchange, additions).await
    }

    async fn limit_by_address(
        &self,
        exchange: &Exchange,
        route: &Route,
        additions: &mut Additions,
    ) -> Result<(), Reject> {
        let which = &route.limits.by_address;
        if which.is_empty() {
            return Ok(());
        }
        let by_address = |_| Some(CellKey::of_address(exchange.client));
        let pass = self.limits.pass(&self.plan.limits, which, by_address, &mut additions.limits);
        exchange.wait(SpanKind::Limit, pass).await
    }

    async fn limit_by_caller_and_route(
        &self,
        exchange: &Exchange,
        route: &Route,
        additions: &mut Additions,
    ) -> Result<(), Reject> {
        let which = &route.limits.later;
        if which.is_empty() {
            return Ok(());
        }
        let key_of = |key| match key {
            LimitKey::User => exchange.caller.as_deref().map(CellKey::of_caller),
            LimitKey::Address | LimitKey::Route => Some(route.limits.key),
        };
        let pass = self.limits.pass(&self.plan.limits, which, key_of, &mut additions.limits);
        exchange.wait(SpanKind::Limit, pass).await
    }

    /// Its limits come when its handshake has been read: the token of a socket has places of its own.
    async fn open_socket(
        &self,
        gateway: &Gateway,
        exchange: &mut Exchange,
        route: &Route,
        additions: &mut Additions,
    ) -> Result<(ResponseHead, Body), Reject> {
        let opener = sockets::Opener::admit(self, gateway, exchange)?;
        self.limit_by_caller_and_route(exchange, route, additions).await?;
        Ok(opener.open(gateway, exchange))
    }

    /// The refusal where no route takes a request. A preflight is answered, so that the page can read the refusal of the
    /// request that follows it.
    fn answer_without_route(
        &self,
        head: &RequestHead,
        reject: Reject,
        additions: &mut Additions,
    ) -> Result<(ResponseHead, Body), Reject> {
        let has_no_route = matches!(reject.code, Code::NotFound | Code::MethodNotAllowed);
        let cors = self.plan.cors.as_deref().filter(|_| has_no_route && self.is_preflight_without_route(head));
        cors.map(|cors| additions.answer_preflight(cors, head)).ok_or(reject)
    }
}

impl Gateway {
    /// Lets the exchange in, with its caller, or refuses it. One that goes to a service ends with its caller's session.
    fn admit(
        &self,
        exchange: &mut Exchange,
        route: &Route,
        plan: &Plan,
        additions: &mut Additions,
    ) -> Result<Standing, Reject> {
        let ends = matches!(route.target, Target::Account(endpoint) if endpoint.ends());
        let admitted = self.identity.admit(exchange, &route.access, ends, plan);
        let Admitted { standing, by_query } = admitted.inspect_err(|_| self.ask_for_keys())?;
        additions.has_token_query = by_query;
        // The gateway's own endpoints are not tied: a log-out is answered after its session has ended.
        if let Target::Proxy(_) = route.target {
            self.identity.tie(exchange);
        }
        Ok(standing)
    }
}

/// What the gateway adds to an answer, whoever gives it: gathered step by step, for refusals too.
#[derive(Debug, Default)]
struct Additions {
    route: Option<usize>,
    /// Where the request says from which origin it comes. What a route does to the head moves nothing.
    origin: Option<Span>,
    is_preflight: bool,
    /// The caller's token stood in the query.
    has_token_query: bool,
    limits: Statement,
}

impl Additions {
    fn answer_preflight(&mut self, cors: &cors::Policy, request: &RequestHead) -> (ResponseHead, Body) {
        self.is_preflight = true;
        (cors.answer_preflight(request), Body::Own(Vec::new().into()))
    }

    /// Adds what the gateway says of limits and to browsers.
    fn write(&self, plan: &Plan, request: &RequestHead, answer: &mut ResponseHead) {
        self.limits.write(&plan.limits, answer);
        if self.has_token_query && answer.status >= 200 {
            token_query::protect(answer);
        }
        let cors = match self.route {
            Some(route) => &plan.routes[route].cors,
            None => &plan.cors,
        };
        if let Some(cors) = cors.as_deref().filter(|_| !self.is_preflight) {
            cors.complete(self.origin.map(|origin| request.text(origin)), answer);
        }
    }
}

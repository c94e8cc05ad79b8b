//! What leads clients to HTTPS, and has browsers stay there: the service of redirect listeners, and
//! `Strict-Transport-Security`.

use std::{collections::BTreeSet, rc::Rc};

use super::{Additions, Body, Gateway, Live, Plan, pages::own_method, router::host_of};
use crate::{
    config::{Config, HostPattern, Tls},
    exchange::{Code, Exchange, Reject},
    net::{HttpLimits, Mistake, Peer, RequestBody, Response, Scheme, Service, Slot, Upgrade},
    proto::head::{Framing, Known, RequestHead, ResponseHead},
    shard::{Instant, buffers},
};

/// Kept free for authorities that give certificates (RFC 8555 §8.3): they ask over plain HTTP.
const CHALLENGES: &[u8] = b"/.well-known/acme-challenge/";

/// The hosts that routes name. A redirect leads to a certificate, so a wildcard stands for what it does there: one label.
#[derive(Debug, Default)]
pub(super) struct NamedHosts {
    exact: BTreeSet<Box<[u8]>>,
    /// By what stands behind the `*.`.
    wildcards: BTreeSet<Box<[u8]>>,
}

impl NamedHosts {
    pub(super) fn of(config: &Config) -> Self {
        let mut named = Self::default();
        for host in config.routes.iter().flat_map(|route| &route.hosts) {
            let (hosts, name) = match host {
                HostPattern::Exact(name) => (&mut named.exact, name),
                HostPattern::Subdomains(parent) => (&mut named.wildcards, parent),
            };
            hosts.insert(name.as_bytes().into());
        }
        named
    }

    /// Whether a host is one of them; in lower case, without a port.
    fn has(&self, host: &[u8]) -> bool {
        let parent = || host.iter().position(|byte| *byte == b'.').filter(|dot| *dot > 0).map(|dot| &host[dot + 1..]);
        self.exact.contains(host) || parent().is_some_and(|parent| self.wildcards.contains(parent))
    }
}

/// Answers every request by where it is served over TLS. Made for each connection.
pub struct ToHttps {
    gateway: Rc<Gateway>,
    /// By which port clients reach what speaks TLS.
    https_port: u16,
}

impl ToHttps {
    /// Leads to this port.
    pub fn new(gateway: Rc<Gateway>, https_port: u16) -> Self {
        Self { gateway, https_port }
    }

    async fn answer(
        &self,
        live: &Live,
        exchange: &Exchange,
        additions: &mut Additions,
    ) -> Result<(ResponseHead, Body), Reject> {
        live.limit_without_route(exchange, additions).await?;
        let head = &exchange.head;
        if let Some(answered) = own_method(head)? {
            return Ok(answered);
        }
        if head.text(head.path).starts_with(CHALLENGES) {
            return Err(Reject::new(Code::NotFound));
        }
        let host = host_of(head.text(head.authority));
        if !live.plan.named_hosts.has(&host) && !self.gateway.has_certificate_for(&host) {
            let why = "no host of this name is served here over HTTPS";
            return Err(Reject::because(Code::MisdirectedRequest, why));
        }
        let mut answer = ResponseHead::new(308, buffers::take(), buffers::take_fields());
        answer.framing = Framing::Length(0);
        answer.push(Known::Location, b"Location", &location(&host, self.https_port, head));
        Ok((answer, Body::Own(Vec::new().into())))
    }
}

/// The same path and query on a host that is known. Nothing in them can be read as part of the authority: they begin with a slash.
fn location(host: &[u8], port: u16, head: &RequestHead) -> Vec<u8> {
    let mut location = [b"https://", host].concat();
    if port != 443 {
        location.push(b':');
        location.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    let path = head.text(head.path);
    location.extend_from_slice(if path.is_empty() { b"/" } else { path });
    if let Some(query) = head.query {
        location.push(b'?');
        location.extend_from_slice(head.text(query));
    }
    location
}

impl Service for ToHttps {
    type Body = Body;
    type Exchange = Exchange;

    fn limits(&self) -> Rc<HttpLimits> {
        self.gateway.limits()
    }

    fn begin(&self, peer: &Peer, slot: &Slot, head: RequestHead, began: Instant) -> Exchange {
        self.gateway.begin(peer, slot, head, began)
    }

    async fn serve<R: RequestBody>(&self, exchange: &mut Exchange, body: R) -> Option<Response<R, Body>> {
        let live = self.gateway.live();
        let mut additions = Additions::default();
        let mut answered = self.answer(&live, exchange, &mut additions).await;
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
        self.gateway.refuse(peer, mistake, body, began)
    }

    /// No answer switches protocols.
    fn switch(&self, _: Exchange, _: Body, _: Vec<u8>, _: u64) -> Option<Box<dyn Upgrade>> {
        None
    }
}

impl Gateway {
    fn has_certificate_for(&self, host: &[u8]) -> bool {
        let Ok(host) = std::str::from_utf8(host) else { return false };
        self.certificates.with(|certificates| certificates.as_ref().is_some_and(|all| all.cover(host)))
    }
}

/// What `Strict-Transport-Security` says, where the configuration has it said.
pub(super) fn hsts(tls: &Tls) -> Option<Box<[u8]>> {
    let max_age = tls.hsts_max_age?.as_secs();
    let subdomains = if tls.hsts_include_subdomains { "; includeSubDomains" } else { "" };
    let preload = if tls.hsts_preload { "; preload" } else { "" };
    Some(format!("max-age={max_age}{subdomains}{preload}").into_bytes().into())
}

/// Has browsers keep to HTTPS, on an answer over TLS that does not say itself for how long: of two, they heed the first only
/// (RFC 6797 §8.1).
#[inline]
pub(super) fn keep_to_https(plan: &Plan, peer: &Peer, answer: &mut ResponseHead) {
    if peer.scheme == Scheme::Https
        && let Some(hsts) = &plan.hsts
        && answer.status >= 200
        && answer.value_of(b"strict-transport-security").is_none()
    {
        answer.push(Known::Other, b"Strict-Transport-Security", hsts);
    }
}

//! Forwarding: a request on its way to its upstream, step by step. The fields are `fields`' work.

use std::time::Duration;

use super::{
    Live,
    body::Body,
    fields::{self, RequestContext},
    pages::answer_options,
    plan::{Piece, ProxyRoute, Rewrite},
    redirects::{self, Way},
    router::Captures,
};
use crate::{
    config::DeadlineFrom,
    exchange::{Code, Exchange, Reject},
    net::RequestBody,
    proto::{
        head::{Framing, Known, Method, RequestHead, ResponseHead, Span, Version},
        time_left::TimeLeft,
    },
    shard::Instant,
    upstream::{Asker, Call},
};

/// Methods with which a service reads a request's body to its end.
#[derive(Debug)]
pub(super) struct BodyMethods(Vec<Box<[u8]>>);

impl From<&[String]> for BodyMethods {
    fn from(names: &[String]) -> Self {
        Self(names.iter().map(|name| name.as_bytes().into()).collect())
    }
}

impl BodyMethods {
    /// Whether the request may have a body that the service does not read: GET, HEAD, DELETE and OPTIONS have none by which
    /// they are defined (RFC 9110 §9.3), and services differ. Whoever leaves one unread takes it for the next request.
    fn may_leave_body(&self, head: &RequestHead) -> bool {
        let has_body = matches!(head.framing, Framing::Length(1..) | Framing::Chunked);
        let method = head.text(head.method_text);
        has_body && !self.0.iter().any(|name| **name == *method || **name == *b"*")
    }
}

/// Forwards a request to its upstream and makes the answer's head ready for the client.
pub(super) async fn forward(
    live: &Live,
    exchange: &mut Exchange,
    route: &ProxyRoute,
    captures: &Captures,
    body: &mut impl RequestBody,
) -> Result<(ResponseHead, Body), Reject> {
    if exchange.head.method == Method::Options && !fields::count_hop(&mut exchange.head) {
        return Ok(answer_options(&live.methods(&exchange.head)));
    }
    let deadline = deadline(live, exchange, route.deadline);
    admit_body(&exchange.head, route, body, exchange.began, deadline)?;
    let target = rewrite(&mut exchange.head, &route.rewrite, captures);
    // A body and a tunnel on one connection would leave it open which byte belongs to which: the body goes first, and
    // `Upgrade` may be ignored (RFC 9110 §7.8).
    exchange.head.upgrade &= exchange.head.framing == Framing::None;
    // Protocols that nobody expects there would be a way around what is checked of requests.
    exchange.head.upgrade = exchange.head.upgrade && fields::keep_upgrades(&mut exchange.head, &route.upgrades);
    let asks_upgrade = exchange.head.upgrade;
    let affinity = live.plan.upstreams[route.upstream].affinity.as_ref();
    let hash_key = affinity.and_then(|affinity| affinity.key_of(exchange));
    let path = exchange.head.path;
    let stripped = match route.rewrite {
        Rewrite::Strip(prefix) => Some(part(path, 0, prefix)),
        Rewrite::Keep | Rewrite::Template(_) => None,
    };
    let said = RequestContext {
        request_id: exchange.request_id.as_bytes(),
        trace: &exchange.trace,
        continues_trace: exchange.continues_trace,
        peer: exchange.peer.text(),
        scheme: exchange.peer.scheme,
        is_trusted: exchange.is_trusted,
        caller: exchange.caller.as_deref(),
        stripped,
        forwards_authorization: route.forward_authorization,
    };
    if route.request_headers.removes_any() {
        // What may not stand in the head would come behind it.
        body.drop_trailers();
    }
    fields::of_request(&mut exchange.head, &said, &route.request_headers);
    let call = Call {
        target,
        preserve_host: route.preserve_host,
        response_timeout: route.response_timeout,
        stream_idle_timeout: route.stream_idle_timeout,
        retries_max: route.retries_max,
        retry: route.retry,
        hedge_after: route.hedge_after,
        deadline,
        may_be_shed: true,
        is_last: route.body_methods.may_leave_body(&exchange.head),
        drops_trailers: route.response_headers.removes_any(),
        cancels_on_close: route.cancels_on_close,
        hash_key,
    };
    let (head, trail, has_ended) = exchange.to_send();
    let client = Client { has_ended, route };
    let (mut answer, streaming) = live.upstreams[route.upstream].send(head, body, &call, trail, &client).await?;
    if answer.status == 101 && !(asks_upgrade && fields::switches_as_asked(head, &answer)) {
        return Err(Reject::because(Code::UpstreamBadResponse, "the service switched protocols unasked"));
    }
    if route.rewrites_redirects
        && redirects::has_any(&answer)
        && let Some((outer, inner)) = fronts(head, path, target, &route.rewrite, captures)
    {
        let way = Way {
            host: head.value(Known::Host).unwrap_or_default(),
            is_public: route.preserve_host,
            outer,
            inner,
            told: head.value_of(b"X-Forwarded-Prefix").unwrap_or_default(),
            scheme: head.value_of(b"X-Forwarded-Proto").unwrap_or_default(),
            is_https: trail.backend.as_ref().is_some_and(|backend| backend.is_https()),
            fronts: &route.fronts,
        };
        redirects::lead_back(&mut answer, &way);
    }
    fields::of_answer(&mut answer, head.version, &route.response_headers);
    Ok((answer, Body::Upstream(streaming)))
}

/// What the path of a request begins with, and what stood for that before its backend: they differ, and what follows is
/// the same. `None` where that is no matter of the front.
fn fronts<'h>(
    head: &'h RequestHead,
    path: Span,
    target: Span,
    rewrite: &Rewrite,
    captures: &Captures,
) -> Option<(&'h [u8], &'h [u8])> {
    let bare = |front: &'h [u8]| front.strip_suffix(b"/").unwrap_or(front);
    let path = head.text(path);
    match rewrite {
        Rewrite::Keep => Some((&[], &[])),
        Rewrite::Strip(prefix) => Some((path.get(..*prefix)?, &[])),
        Rewrite::Template(pieces) => {
            let [.., Piece::Capture(last), Piece::Text(end)] = &pieces[..] else { return None };
            let rest = captures.nth(*last);
            let rest_bytes = rest.end.checked_sub(rest.start)? as usize;
            if !end.is_empty() || rest.end as usize != path.len() {
                return None;
            }
            let target = head.text(target).split(|byte| *byte == b'?').next()?;
            let inner = target.get(..target.len().checked_sub(rest_bytes)?)?;
            Some((bare(path.get(..rest.start as usize)?), bare(inner)))
        }
    }
}

/// So many bytes of a span, from one on.
fn part(span: Span, from: usize, bytes: usize) -> Span {
    let offset = |at: usize| span.start.saturating_add(u32::try_from(at).unwrap_or(u32::MAX)).min(span.end);
    Span { start: offset(from), end: offset(from.saturating_add(bytes)) }
}

/// The client of a route, for whom the gateway asks an upstream.
struct Client<'a, E> {
    has_ended: E,
    route: &'a ProxyRoute,
}

impl<E: Fn() -> bool> Asker for Client<'_, E> {
    fn has_ended(&self) -> bool {
        (self.has_ended)()
    }

    fn prepare(&self, interim: &mut ResponseHead) -> bool {
        if !self.route.passes_interim {
            return false;
        }
        // Which pages may read is said with the answer, and where the gateway does CORS not by the service.
        interim.remove(|known| known == Known::AccessControl);
        fields::of_answer(interim, Version::Http11, &self.route.response_headers);
        true
    }
}

/// When a request is to be answered: by what it says itself, if that counts, and what its route says. Longer than the
/// route's, or than `deadline.max`, is neither.
fn deadline(live: &Live, exchange: &mut Exchange, of_route: Option<Duration>) -> Instant {
    let rules = &live.plan.deadline;
    let said = match rules.from {
        DeadlineFrom::Nobody => TimeLeft::Unsaid,
        DeadlineFrom::Anybody | DeadlineFrom::Trusted => TimeLeft::of(&exchange.head),
    };
    let said = match said {
        TimeLeft::Unsaid => None,
        // What nobody may say goes on to nobody: what is left is said anew with each attempt.
        _ if rules.from == DeadlineFrom::Trusted && !exchange.is_trusted => {
            exchange.head.remove(|known| known == Known::XRequestTimeout);
            None
        }
        TimeLeft::Ms(ms) => Some(Duration::from_millis(ms.into()).min(rules.max)),
        TimeLeft::Malformed => {
            exchange.head.remove(|known| known == Known::XRequestTimeout);
            exchange.has_malformed_deadline();
            None
        }
    };
    let within = match (said, of_route) {
        (Some(said), Some(of_route)) => Some(said.min(of_route)),
        (said, of_route) => said.or(of_route),
    };
    within.map_or(Instant::NEVER, |within| exchange.began + within)
}

/// Sets the route's bounds for the request's body, and refuses one that is known to be too large.
fn admit_body(
    head: &RequestHead,
    route: &ProxyRoute,
    body: &mut impl RequestBody,
    began: Instant,
    deadline: Instant,
) -> Result<(), Reject> {
    if let Framing::Length(bytes) = head.framing
        && bytes > route.body_bytes_max
    {
        let why = format!("the body has {bytes} bytes, and body_bytes_max is {}", route.body_bytes_max);
        return Err(Reject::caused(Code::BodyTooLarge, why));
    }
    body.set_bytes_max(route.body_bytes_max);
    body.set_due(deadline.min(began + route.request_timeout));
    Ok(())
}

/// The target that the backend sees. The path is in normal form already.
fn rewrite(head: &mut RequestHead, rewrite: &Rewrite, captures: &Captures) -> Span {
    let path = head.path;
    if *rewrite == Rewrite::Keep && head.query.is_none() {
        return path;
    }
    let RequestHead { bytes, query, .. } = head;
    let start = bytes.len();
    let copy = |bytes: &mut Vec<u8>, span: Span| bytes.extend_from_within(span.start as usize..span.end as usize);
    match rewrite {
        Rewrite::Keep => copy(bytes, path),
        Rewrite::Strip(prefix) => {
            let stripped = Span { start: path.start + u32::try_from(*prefix).unwrap_or(0), end: path.end };
            if stripped.is_empty() {
                bytes.push(b'/');
            }
            copy(bytes, stripped);
        }
        Rewrite::Template(pieces) => {
            for piece in pieces {
                match piece {
                    Piece::Text(text) => bytes.extend_from_slice(text),
                    Piece::Capture(n) => {
                        let within = captures.nth(*n);
                        copy(bytes, Span { start: path.start + within.start, end: path.start + within.end });
                    }
                }
            }
        }
    }
    if let Some(query) = *query {
        bytes.push(b'?');
        copy(bytes, query);
    }
    let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    Span { start: offset(start), end: offset(bytes.len()) }
}

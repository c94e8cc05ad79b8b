//! Forwarding: what is changed about a request and its answer on their way, in the order of the contract.

use super::{
    plan::{Piece, ProxyRoute, Rewrite, Rules},
    router::Captures,
};
use crate::{
    exchange::{Code, Exchange, Reject},
    net::RequestBody,
    proto::{
        head::{Field, Framing, Known, RequestHead, ResponseHead, Span, Version},
        http1::remove_connection_named,
    },
    shard::Instant,
    telemetry::ids::TRACEPARENT_LENGTH,
    upstream::{Call, Streaming, Upstream},
};

/// How the gateway names itself in `Via` (RFC 9110 §7.6.3).
const VIA: &[u8] = b"1.1 shardgate";

/// Forwards a request to its upstream and makes the answer's head ready for the client.
pub(super) async fn forward(
    exchange: &mut Exchange,
    route: &ProxyRoute,
    upstream: &std::rc::Rc<Upstream>,
    captures: &Captures,
    body: &mut RequestBody<'_>,
) -> Result<(ResponseHead, Streaming), Reject> {
    admit_body(&exchange.head, route, body, exchange.began)?;
    let target = rewrite(&mut exchange.head, &route.rewrite, captures);
    // A body and a tunnel on one connection would leave it open which byte belongs to which: the body goes first, and
    // `Upgrade` may be ignored (RFC 9110 §7.8).
    exchange.head.upgrade &= exchange.head.framing == Framing::None;
    let asks_upgrade = exchange.head.upgrade;
    request_fields(exchange, route);
    let call = Call {
        target,
        preserve_host: route.preserve_host,
        response_timeout: route.response_timeout,
        stream_idle_timeout: route.stream_idle_timeout,
        retries_max: route.retries_max,
        cancels_on_close: route.cancels_on_close,
    };
    let (head, trail) = (&mut exchange.head, &mut exchange.trail);
    let (mut answer, streaming) = upstream.send(head, body, &call, trail).await?;
    if answer.status == 101 && !asks_upgrade {
        return Err(Reject::because(Code::UpstreamBadResponse, "the service switched protocols unasked"));
    }
    response_fields(&mut answer, route);
    Ok((answer, streaming))
}

/// Sets the route's bounds for the request's body, and refuses one that is known to be too large.
fn admit_body(
    head: &RequestHead,
    route: &ProxyRoute,
    body: &mut RequestBody<'_>,
    began: Instant,
) -> Result<(), Reject> {
    if let Framing::Length(bytes) = head.framing
        && bytes > route.body_bytes_max
    {
        return Err(Reject::new(Code::BodyTooLarge));
    }
    body.set_bytes_max(route.body_bytes_max);
    body.set_due(began + route.request_timeout);
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

/// Fields that are between two neighbours only (RFC 9110 §7.6.1), in requests and answers. Framing is written anew.
fn is_hop_by_hop(known: Known) -> bool {
    matches!(
        known,
        Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::ProxyAuthenticate
            | Known::ProxyAuthorization
            | Known::Te
            | Known::TransferEncoding
            | Known::ContentLength
    )
}

/// What outsiders may not say of themselves, and what the gateway says anew of each request.
fn is_replaced(known: Known) -> bool {
    matches!(known, Known::Identity | Known::LookAlike | Known::XRequestId | Known::Traceparent | Known::Expect)
}

/// Claims about the hop before, which only a trusted peer may make.
fn is_claim(known: Known) -> bool {
    matches!(
        known,
        Known::Forwarded
            | Known::XForwardedFor
            | Known::XForwardedProto
            | Known::XForwardedHost
            | Known::XForwardedOther
    )
}

/// The request's fields as the backend gets them.
fn request_fields(exchange: &mut Exchange, route: &ProxyRoute) {
    let Exchange { head, is_trusted, continues_trace, .. } = exchange;
    let (is_trusted, continues_trace) = (*is_trusted, *continues_trace);
    remove_connection_named(&head.bytes, &mut head.fields);
    let is_upgrade = head.upgrade;
    head.remove(|known| {
        is_hop_by_hop(known)
            || (known == Known::Upgrade && !is_upgrade)
            || is_replaced(known)
            || (known == Known::Tracestate && !continues_trace)
            || (is_claim(known) && !is_trusted)
            || (known == Known::Authorization && !route.forward_authorization)
    });
    let mut traceparent = [0; TRACEPARENT_LENGTH];
    exchange.trace.write(&mut traceparent);
    let head = &mut exchange.head;
    head.push(Known::XRequestId, b"X-Request-Id", exchange.request_id.as_bytes());
    head.push(Known::Traceparent, b"traceparent", &traceparent);
    append_to(head, Known::XForwardedFor, b"X-Forwarded-For", exchange.peer.text());
    if head.value(Known::XForwardedProto).is_none() {
        head.push(Known::XForwardedProto, b"X-Forwarded-Proto", b"http");
    }
    if head.value(Known::XForwardedHost).is_none() && !head.authority.is_empty() {
        let (name, value) = (head.append(&[b"X-Forwarded-Host"]), head.authority);
        head.fields.push(Field { name, value, known: Known::XForwardedHost });
    }
    append_to(head, Known::Via, b"Via", if head.version == Version::Http10 { b"1.0 shardgate" } else { VIA });
    let RequestHead { .. } = head;
    for name in &route.request_headers.remove {
        head.remove_named(name);
    }
    for (name, value) in &route.request_headers.add {
        head.push(Known::Other, name, value);
    }
}

/// Appends a member to a list field, or begins the list.
fn append_to(head: &mut RequestHead, known: Known, name: &[u8], member: &[u8]) {
    let Some(place) = head.fields.iter().rposition(|field| field.known == known) else {
        head.push(known, name, member);
        return;
    };
    let old = head.fields[place].value;
    let start = u32::try_from(head.bytes.len()).unwrap_or(u32::MAX);
    head.bytes.extend_from_within(old.start as usize..old.end as usize);
    let end = head.append(&[b", ", member]).end;
    head.fields[place].value = Span { start, end };
}

/// The answer's fields as the client gets them. The request id is the exchange's to set.
fn response_fields(head: &mut ResponseHead, route: &ProxyRoute) {
    remove_connection_named(&head.bytes, &mut head.fields);
    let keeps_length = head.framing == Framing::None;
    let is_upgrade = head.status == 101;
    head.remove(|known| {
        (is_hop_by_hop(known) && !(known == Known::ContentLength && keeps_length))
            || (known == Known::Upgrade && !is_upgrade)
            || known == Known::XRequestId
    });
    let via = head.fields.iter().position(|field| field.known == Known::Via);
    match via {
        None => head.push(Known::Via, b"Via", VIA),
        Some(place) => {
            let old = head.fields[place].value;
            let start = u32::try_from(head.bytes.len()).unwrap_or(u32::MAX);
            head.bytes.extend_from_within(old.start as usize..old.end as usize);
            let end = head.append(&[b", ", VIA]).end;
            head.fields[place].value = Span { start, end };
        }
    }
    let Rules { remove, add } = &route.response_headers;
    for name in remove {
        head.remove_named(name);
    }
    for (name, value) in add {
        head.push(Known::Other, name, value);
    }
}

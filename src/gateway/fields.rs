//! The fields of a request and of its answer as the other side gets them: what goes, what the gateway says, then the
//! route's rules. Pure edits of a flat head.

use std::cell::Cell;

use crate::{
    auth::Claims,
    config::HeaderRules,
    net::Scheme,
    proto::{
        head::{Field, Framing, Known, RequestHead, ResponseHead, Span, Version},
        http1::{remove_connection_named, trailer_names},
    },
    telemetry::ids::{TRACEPARENT_LENGTH, TraceContext},
};

/// How the gateway names itself in `Via`, behind the version that the message came in (RFC 9110 §7.6.3).
const fn via(version: Version) -> &'static [u8] {
    match version {
        Version::Http10 => b"1.0 shardgate",
        Version::Http11 => b"1.1 shardgate",
        Version::Http2 => b"2 shardgate",
    }
}

/// What the gateway says of a request to the backend.
#[derive(Debug)]
pub struct RequestContext<'a> {
    /// The request's id.
    pub request_id: &'a [u8],
    /// Its place in a trace.
    pub trace: &'a TraceContext,
    /// Whether that trace came with it, so that `tracestate` means something.
    pub continues_trace: bool,
    /// The peer's address as text.
    pub peer: &'a [u8],
    /// What its connection speaks.
    pub scheme: Scheme,
    /// Whether the peer's word about the hops before it counts.
    pub is_trusted: bool,
    /// Who calls, if its token was checked.
    pub caller: Option<&'a Claims>,
    /// What was stripped from the front of its path.
    pub stripped: Option<Span>,
    /// Whether the backend sees the client's `Authorization`.
    pub forwards_authorization: bool,
}

/// A route's changes to a head's fields, in the order in which they are made.
#[derive(Debug, Default)]
pub struct FieldRules {
    remove: Vec<Vec<u8>>,
    add: Vec<(Vec<u8>, Vec<u8>)>,
}

impl FieldRules {
    /// Whether any field is removed or replaced by them.
    pub fn removes_any(&self) -> bool {
        !self.remove.is_empty()
    }
}

impl From<&HeaderRules> for FieldRules {
    /// `set` is a removal and an addition.
    fn from(rules: &HeaderRules) -> Self {
        let bytes = |text: &String| text.as_bytes().to_vec();
        let pairs = rules.set.iter().chain(&rules.add);
        Self {
            remove: rules.remove.iter().chain(rules.set.keys()).map(bytes).collect(),
            add: pairs.map(|(name, value)| (bytes(name), bytes(value))).collect(),
        }
    }
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
pub fn of_request(head: &mut RequestHead, said: &RequestContext<'_>, rules: &FieldRules) {
    remove_connection_named(&head.bytes, &mut head.fields);
    let is_upgrade = head.upgrade;
    let has_trailer = Cell::new(false);
    head.remove(|known| {
        has_trailer.set(has_trailer.get() || known == Known::Trailer);
        is_hop_by_hop(known)
            || (known == Known::Upgrade && !is_upgrade)
            || is_replaced(known)
            || (known == Known::Tracestate && !said.continues_trace)
            || (is_claim(known) && !said.is_trusted)
            || (known == Known::Authorization && !said.forwards_authorization)
    });
    if has_trailer.get() {
        let are_passed = head.framing == Framing::Chunked && !rules.removes_any();
        announce_trailers(&mut head.bytes, &mut head.fields, are_passed);
    }
    let mut traceparent = [0; TRACEPARENT_LENGTH];
    said.trace.write(&mut traceparent);
    head.push(Known::XRequestId, b"X-Request-Id", said.request_id);
    head.push(Known::Traceparent, b"traceparent", &traceparent);
    if let Some(caller) = said.caller {
        push_caller(head, caller);
    }
    head.push_member(Known::XForwardedFor, b"X-Forwarded-For", said.peer);
    if head.value(Known::XForwardedProto).is_none() {
        head.push(Known::XForwardedProto, b"X-Forwarded-Proto", said.scheme.text());
    }
    if head.value(Known::XForwardedHost).is_none() && !head.authority.is_empty() {
        head.push_copy(Known::XForwardedHost, b"X-Forwarded-Host", head.authority);
    }
    if let Some(prefix) = said.stripped {
        push_prefix(head, prefix);
    }
    head.push_member(Known::Via, b"Via", via(head.version));
    for name in &rules.remove {
        head.remove_named(name);
    }
    for (name, value) in &rules.add {
        head.push(Known::Other, name, value);
    }
}

/// Says what was stripped from the path, behind what a trusted peer says that it stripped before. What strangers said of
/// that is gone already; of what is no path, or was said twice, nothing is known.
fn push_prefix(head: &mut RequestHead, prefix: Span) {
    const NAME: &[u8] = b"X-Forwarded-Prefix";
    let bytes = &head.bytes;
    let mut earlier = head.fields.iter().filter(|field| field.name.of(bytes).eq_ignore_ascii_case(NAME));
    let (first, second) = (earlier.next().map(|field| field.value.of(bytes)), earlier.next());
    let Some(first) = first else {
        head.push_copy(Known::XForwardedOther, NAME, prefix);
        return;
    };
    let end = first.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let before = if second.is_none() && first.starts_with(b"/") { &first[..end] } else { &[] };
    let whole = [before, prefix.of(bytes)].concat();
    head.fields.retain(|field| !field.name.of(&head.bytes).eq_ignore_ascii_case(NAME));
    head.push(Known::XForwardedOther, NAME, &whole);
}

/// Leaves of the protocols that a request asks to switch to those that its route knows; says whether any is left.
pub fn keep_upgrades(head: &mut RequestHead, known: &[Box<[u8]>]) -> bool {
    let is_known = |protocol: &[u8]| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
        known.iter().any(|known| known.eq_ignore_ascii_case(name))
    };
    if protocols(&head.fields, &head.bytes).all(is_known) {
        return true;
    }
    let left: Vec<_> = protocols(&head.fields, &head.bytes).filter(|protocol| is_known(protocol)).collect();
    let left = left.join(&b", "[..]);
    head.remove(|known| known == Known::Upgrade);
    head.push(Known::Upgrade, b"Upgrade", &left);
    !left.is_empty()
}

/// Who calls. What the client said of that is gone already.
fn push_caller(head: &mut RequestHead, caller: &Claims) {
    head.push(Known::Identity, b"X-User-Id", caller.sub.as_bytes());
    if let Some(roles) = caller.roles.as_list() {
        head.push(Known::Identity, b"X-User-Role", roles.as_bytes());
    }
    if let Some(sid) = &caller.sid {
        head.push(Known::Identity, b"X-Session-Id", sid.as_bytes());
    }
}

/// Counts a hop off `Max-Forwards` (RFC 9110 §7.6.2); `false` where the request may go no further. A value that is no
/// number bounds nothing.
pub fn count_hop(head: &mut RequestHead) -> bool {
    let is_bound = |field: &Field| field.name.of(&head.bytes).eq_ignore_ascii_case(b"max-forwards");
    let Some(place) = head.fields.iter().position(is_bound) else { return true };
    let value = head.text(head.fields[place].value);
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return true;
    }
    let hops = value.iter().fold(0_u32, |hops, digit| hops.saturating_mul(10).saturating_add(u32::from(digit & 0x0f)));
    let Some(left) = hops.checked_sub(1) else { return false };
    head.fields[place].value = head.append(&[itoa::Buffer::new().format(left).as_bytes()]);
    true
}

/// The answer's fields as a client of this version gets them. The request id is the exchange's to set.
pub fn of_answer(head: &mut ResponseHead, to: Version, rules: &FieldRules) {
    remove_connection_named(&head.bytes, &mut head.fields);
    let keeps_length = head.framing == Framing::None;
    let is_upgrade = head.status == 101;
    let has_trailer = Cell::new(false);
    head.remove(|known| {
        has_trailer.set(has_trailer.get() || known == Known::Trailer);
        (is_hop_by_hop(known) && !(known == Known::ContentLength && keeps_length))
            || (known == Known::Upgrade && !is_upgrade)
            || known == Known::XRequestId
    });
    if has_trailer.get() {
        // Without a body of its own an answer tells what another would have: to a HEAD, with a 304.
        let may_come = to != Version::Http10 && matches!(head.framing, Framing::Chunked | Framing::None);
        let are_passed = may_come && !rules.removes_any();
        announce_trailers(&mut head.bytes, &mut head.fields, are_passed);
    }
    head.push_member(Known::Via, b"Via", via(head.version));
    for name in &rules.remove {
        head.remove_named(name);
    }
    for (name, value) in &rules.add {
        head.push(Known::Other, name, value);
    }
}

/// Leaves in the `Trailer` fields the names that are passed on behind the body, if any are: some servers refuse a message
/// that announces what may not come there. A field that names nothing goes.
fn announce_trailers(bytes: &mut Vec<u8>, fields: &mut Vec<Field>, are_passed: bool) {
    fields.retain_mut(|field| {
        if field.known != Known::Trailer {
            return true;
        }
        let names = trailer_names(field.value.of(bytes)).filter(|_| are_passed).collect::<Vec<_>>().join(&b", "[..]);
        let start = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&names);
        field.value = Span { start, end: u32::try_from(bytes.len()).unwrap_or(u32::MAX) };
        !names.is_empty()
    });
}

/// Whether a 101 names the protocols that it switches to, and each of them was asked for (RFC 9110 §7.8).
pub fn switches_as_asked(request: &RequestHead, answer: &ResponseHead) -> bool {
    let mut named = protocols(&answer.fields, &answer.bytes).peekable();
    let was_asked =
        |protocol: &[u8]| protocols(&request.fields, &request.bytes).any(|asked| asked.eq_ignore_ascii_case(protocol));
    named.peek().is_some() && named.all(was_asked)
}

/// What the `Upgrade` fields of a head list.
fn protocols<'h>(fields: &'h [Field], bytes: &'h [u8]) -> impl Iterator<Item = &'h [u8]> {
    let lists = fields.iter().filter(|field| field.known == Known::Upgrade).map(|field| field.value.of(bytes));
    let elements = lists.flat_map(|list| list.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    elements.filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::buffers;

    fn switches(asked: &str, named: &[&str]) -> bool {
        let mut request = RequestHead::unknown();
        request.push(Known::Upgrade, b"Upgrade", asked.as_bytes());
        let mut answer = ResponseHead::new(101, buffers::take(), Vec::new());
        for protocol in named {
            answer.push(Known::Upgrade, b"Upgrade", protocol.as_bytes());
        }
        switches_as_asked(&request, &answer)
    }

    /// What a backend is told of how the client speaks.
    fn told_proto(scheme: Scheme, is_trusted: bool, claimed: Option<&[u8]>) -> String {
        let mut head = RequestHead::unknown();
        if let Some(claimed) = claimed {
            head.push(Known::XForwardedProto, b"X-Forwarded-Proto", claimed);
        }
        let trace = TraceContext::begin(&mut fastrand::Rng::with_seed(1));
        let said = RequestContext {
            request_id: b"id",
            trace: &trace,
            continues_trace: false,
            peer: b"192.0.2.1",
            scheme,
            is_trusted,
            caller: None,
            stripped: None,
            forwards_authorization: false,
        };
        of_request(&mut head, &said, &FieldRules::default());
        String::from_utf8_lossy(head.value(Known::XForwardedProto).expect("it is always told")).into_owned()
    }

    #[test]
    fn the_scheme_is_the_connections_unless_a_trusted_peer_says_otherwise() {
        for (scheme, is_trusted, claimed, wanted) in [
            (Scheme::Http, false, None, "http"),
            (Scheme::Https, false, None, "https"),
            (Scheme::Http, false, Some("https"), "http"),
            (Scheme::Https, false, Some("http"), "https"),
            (Scheme::Https, true, None, "https"),
            (Scheme::Http, true, Some("https"), "https"),
            (Scheme::Https, true, Some("http"), "http"),
        ] {
            let told = told_proto(scheme, is_trusted, claimed.map(str::as_bytes));
            assert_eq!(told, wanted, "{scheme:?} {is_trusted} {claimed:?}");
        }
    }

    #[test]
    fn a_switch_names_what_was_asked_for() {
        assert!(switches("websocket", &["websocket"]));
        assert!(switches("WebSocket", &["websocket"]), "names have no case");
        assert!(switches("foo/2, websocket", &["websocket"]), "one of several");
        assert!(switches("foo/2 ,bar", &["bar, foo/2"]), "layers, as one list");
        assert!(switches("foo/2, bar", &["bar", "foo/2"]), "and as several fields");
        assert!(!switches("websocket", &[]), "which one?");
        assert!(!switches("websocket", &[" , "]), "none of an empty list");
        assert!(!switches("websocket", &["h2c"]));
        assert!(!switches("websocket", &["websocket, h2c"]));
        assert!(!switches("foo/2", &["foo/1"]));
        assert!(!switches("websocket", &["web"]));
    }
}

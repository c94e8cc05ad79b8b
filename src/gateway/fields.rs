//! The fields of a request and of its answer as the other side gets them: what goes, what the gateway says, then the
//! route's rules. Pure edits of a flat head.

use std::cell::Cell;

use crate::{
    auth::Claims,
    config::HeaderRules,
    proto::{
        head::{Field, Framing, Known, RequestHead, ResponseHead, Span, Version},
        http1::{remove_connection_named, trailer_names},
    },
    telemetry::ids::{TRACEPARENT_LENGTH, TraceContext},
};

/// How the gateway names itself in `Via` (RFC 9110 §7.6.3).
const VIA: &[u8] = b"1.1 shardgate";

/// What the gateway says of a request to the backend.
#[derive(Debug)]
pub struct Said<'a> {
    /// The request's id.
    pub request_id: &'a [u8],
    /// Its place in a trace.
    pub trace: &'a TraceContext,
    /// Whether that trace came with it, so that `tracestate` means something.
    pub continues_trace: bool,
    /// The peer's address as text.
    pub peer: &'a [u8],
    /// Whether the peer's word about the hops before it counts.
    pub is_trusted: bool,
    /// Who calls, if its token was checked.
    pub caller: Option<&'a Claims>,
    /// Whether the backend sees the client's `Authorization`.
    pub forwards_authorization: bool,
}

/// A route's changes to a head's fields, in the order in which they are made.
#[derive(Debug, Default)]
pub struct Rules {
    remove: Vec<Vec<u8>>,
    add: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Rules {
    /// Whether any field is removed or replaced by them.
    pub fn removes_any(&self) -> bool {
        !self.remove.is_empty()
    }
}

impl From<&HeaderRules> for Rules {
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
pub fn of_request(head: &mut RequestHead, said: &Said<'_>, rules: &Rules) {
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
    append_to(head, Known::XForwardedFor, b"X-Forwarded-For", said.peer);
    if head.value(Known::XForwardedProto).is_none() {
        head.push(Known::XForwardedProto, b"X-Forwarded-Proto", b"http");
    }
    if head.value(Known::XForwardedHost).is_none() && !head.authority.is_empty() {
        head.push_copy(Known::XForwardedHost, b"X-Forwarded-Host", head.authority);
    }
    append_to(head, Known::Via, b"Via", if head.version == Version::Http10 { b"1.0 shardgate" } else { VIA });
    for name in &rules.remove {
        head.remove_named(name);
    }
    for (name, value) in &rules.add {
        head.push(Known::Other, name, value);
    }
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

/// The answer's fields as a client of this version gets them. The request id is the exchange's to set.
pub fn of_answer(head: &mut ResponseHead, to: Version, rules: &Rules) {
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

//! The request target and the host it is for (RFC 9112 §3.2, RFC 3986).
//!
//! Of the characters that RFC 3986 leaves out, browsers send `^` `|` `[` `]` in paths, and also `{` `}` `` ` `` `\` in
//! queries; these pass where they are sent. Nothing else does: no space, control character, `#`, `"`, `<`, `>` and no
//! byte beyond ASCII. What percent-encoding in a path means is for the router.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::from_utf8;

use super::bytes::{HOST, PATH, QUERY, all, is};
use super::error::RequestError;
use crate::proto::head::{Method, Span, TargetForm};

/// A request target taken apart.
pub(super) struct SplitTarget {
    pub(super) form: TargetForm,
    pub(super) path: Span,
    pub(super) query: Option<Span>,
    /// The authority within the target; empty in origin-form and asterisk-form.
    pub(super) authority: Span,
    /// The port that goes without saying.
    default_port: Option<u16>,
}

impl SplitTarget {
    /// Takes apart the target that lies at `span` of `head`.
    #[inline]
    pub(super) fn read(head: &[u8], span: Span, method: Method) -> Result<Self, RequestError> {
        let target = span.of(head);
        match target {
            _ if method == Method::Connect => Self::authority_form(target, span),
            [b'/', ..] => {
                let (path, query) = path_and_query(target, span.start)?;
                Ok(Self { form: TargetForm::Origin, path, query, authority: Span::default(), default_port: None })
            }
            b"*" if method == Method::Options => Ok(Self {
                form: TargetForm::Asterisk,
                path: span,
                query: None,
                authority: Span::default(),
                default_port: None,
            }),
            b"*" => Err(RequestError::BadTargetForm),
            _ => Self::absolute_form(target, span),
        }
    }

    /// RFC 9112 §3.2.3: host and port, both required, and only for CONNECT.
    fn authority_form(target: &[u8], span: Span) -> Result<Self, RequestError> {
        match Authority::read(target) {
            Some(Authority { port: Some(_), .. }) => Ok(Self {
                form: TargetForm::Authority,
                path: Span::default(),
                query: None,
                authority: span,
                default_port: None,
            }),
            _ => Err(RequestError::BadTargetForm),
        }
    }

    fn absolute_form(target: &[u8], span: Span) -> Result<Self, RequestError> {
        let colon = target.iter().position(|&byte| byte == b':').ok_or(RequestError::BadTargetForm)?;
        let (scheme, rest) = target.split_at_checked(colon).ok_or(RequestError::BadTargetForm)?;
        let scheme_ends = scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
        if !scheme_ends || !scheme.first().is_some_and(u8::is_ascii_alphabetic) {
            return Err(RequestError::BadTargetForm);
        }
        let rest = rest.strip_prefix(b"://").ok_or(RequestError::BadTargetForm)?;
        let default_port = if scheme.eq_ignore_ascii_case(b"http") {
            80
        } else if scheme.eq_ignore_ascii_case(b"https") {
            443
        } else {
            return Err(RequestError::BadScheme);
        };
        let length = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
        let (authority, local) = rest.split_at_checked(length).unwrap_or_default();
        if Authority::read(authority).is_none() {
            return Err(RequestError::BadHost);
        }
        let local_start = span.end.saturating_sub(len_of(local));
        let authority = Span { start: local_start.saturating_sub(len_of(authority)), end: local_start };
        let (path, query) = path_and_query(local, local_start)?;
        Ok(Self { form: TargetForm::Absolute, path, query, authority, default_port: Some(default_port) })
    }

    /// Whether `Host` names the same place as the target does (RFC 9112 §3.2.2: one of the two would be ignored, and
    /// the next server may ignore the other).
    pub(super) fn agrees_with(&self, head: &[u8], host: &[u8]) -> bool {
        let (Some(target), Some(host)) = (Authority::read(self.authority.of(head)), Authority::read(host)) else {
            return false;
        };
        let same_port = match self.default_port {
            Some(default) => target.port.unwrap_or(default) == host.port.unwrap_or(default),
            // CONNECT has no scheme: a Host without a port says nothing about it.
            None => host.port.is_none() || host.port == target.port,
        };
        same_port && target.name.eq_ignore_ascii_case(host.name)
    }
}

/// Splits at the first `?` and checks every byte.
#[inline]
fn path_and_query(local: &[u8], start: u32) -> Result<(Span, Option<Span>), RequestError> {
    let end = start.saturating_add(len_of(local));
    let Some(question) = local.iter().position(|&byte| !is(byte, PATH)) else {
        return Ok((Span { start, end }, None));
    };
    match local.get(question..) {
        Some([b'?', query @ ..]) if all(query, QUERY) => {
            let query_start = end.saturating_sub(len_of(query));
            Ok((Span { start, end: query_start.saturating_sub(1) }, Some(Span { start: query_start, end })))
        }
        _ => Err(RequestError::BadTarget),
    }
}

/// Whether no byte of the target is out of place in every form.
pub(super) fn has_legal_bytes(target: &[u8]) -> bool {
    all(target, QUERY)
}

fn len_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// `uri-host [ ":" port ]`.
///
/// Narrower than RFC 3986: a name has letters, digits and `-._~` only, since no other resolves, and a comma, `%2f` or
/// `@` in a host has served to fool the second parser. No label is empty, but for the root's behind a last dot: nginx,
/// Apache and HAProxy take `.example.com` for a name below `example.com`, which it is not for others. A port has digits,
/// at least one, and is 1 to 65535. Names in brackets are IPv6 addresses without a zone, and a name that ends in a number
/// is an IPv4 address in its one usual form: `127.1` and `0x7f000001` are the same address to some (WHATWG URL).
struct Authority<'a> {
    name: &'a [u8],
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    fn read(authority: &'a [u8]) -> Option<Self> {
        let length = if let [b'[', rest @ ..] = authority {
            let length = rest.iter().position(|&byte| byte == b']')?;
            from_utf8(rest.get(..length)?).ok()?.parse::<Ipv6Addr>().ok()?;
            length.checked_add(2)?
        } else {
            authority.iter().position(|&byte| !is(byte, HOST)).unwrap_or(authority.len())
        };
        let (name, after) = authority.split_at_checked(length)?;
        let port = match after {
            [] => None,
            [b':', digits @ ..] => Some(port(digits)?),
            _ => return None,
        };
        (name.starts_with(b"[") || is_name(name)).then_some(Self { name, port })
    }
}

/// Whether no label is empty, and what ends in a number is an IPv4 address.
fn is_name(name: &[u8]) -> bool {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let mut last: &[u8] = b"";
    for label in name.split(|&byte| byte == b'.') {
        if label.is_empty() {
            return false;
        }
        last = label;
    }
    if !last.first().is_some_and(u8::is_ascii_digit) {
        return true;
    }
    let is_number = match last {
        [b'0', b'x' | b'X', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        digits => digits.iter().all(u8::is_ascii_digit),
    };
    !is_number || from_utf8(name).is_ok_and(|name| name.parse::<Ipv4Addr>().is_ok())
}

/// Whether a `Host` value is valid. An empty one is not: it is for targets without an authority, and `http` and
/// `https`, all that is served here, must have one (RFC 9110 §4.2.1).
#[inline]
pub(super) fn is_host(value: &[u8]) -> bool {
    Authority::read(value).is_some()
}

fn port(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits.len() > 5 {
        return None;
    }
    let port = digits.iter().try_fold(0_u16, |port, byte| {
        let digit = byte.is_ascii_digit().then(|| u16::from(byte & 0x0f))?;
        port.checked_mul(10)?.checked_add(digit)
    })?;
    (port > 0).then_some(port)
}

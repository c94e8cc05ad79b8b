//! Where a service sends its clients, in the clients' own terms: its own authority, and paths as it sees them behind a
//! prefix that was stripped or rewritten, lead back through the gateway. Pure edits of a flat head; what cannot be read in
//! one way stays as it is.

use crate::proto::head::{Known, ResponseHead, Span};

/// How a request's path was changed on its way to the service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way<'a> {
    /// What the service was told as `Host`.
    pub(super) host: &'a [u8],
    /// Whether clients know that name too, so that not all of its paths are the service's.
    pub(super) is_public: bool,
    /// The front of the path as the client wrote it; it ends before a slash.
    pub(super) outer: &'a [u8],
    /// What stood in its place for the service.
    pub(super) inner: &'a [u8],
    /// What the service was told as `X-Forwarded-Prefix`: it may have minded that.
    pub(super) told: &'a [u8],
    /// What the service was told as `X-Forwarded-Proto`: it may have minded that too.
    pub(super) scheme: &'a [u8],
    /// Whether the service speaks TLS itself.
    pub(super) is_https: bool,
    /// What paths behind `inner` begin with that routes lead to.
    pub(super) fronts: &'a [Box<[u8]>],
}

/// Whether an answer has anything that may lead somewhere.
pub(super) fn has_any(answer: &ResponseHead) -> bool {
    answer.fields.iter().any(|field| matches!(field.known, Known::Location | Known::ContentLocation | Known::SetCookie))
}

/// Has an answer lead back through the gateway.
pub(super) fn lead_back(answer: &mut ResponseHead, way: &Way<'_>) {
    for place in 0..answer.fields.len() {
        let field = answer.fields[place];
        let value = answer.text(field.value);
        let changed = match field.known {
            Known::Location | Known::ContentLocation => reference(value, way),
            Known::SetCookie => cookie(value, way),
            _ => None,
        };
        if let Some(value) = changed {
            let start = answer.append(&[&value]).start;
            let end = u32::try_from(answer.bytes.len()).unwrap_or(u32::MAX);
            answer.fields[place].value = Span { start, end };
        }
    }
}

/// A URI reference (RFC 3986 §4.1) as the client has to have it, if it is another one.
fn reference(value: &[u8], way: &Way<'_>) -> Option<Vec<u8>> {
    // Browsers drop some of these and read others as slashes: whatever stands there, it is not what it seems to be.
    if value.iter().any(|byte| matches!(byte, 0..=b' ' | 0x7f | b'\\')) {
        return None;
    }
    let is_https = way.is_https || way.scheme.eq_ignore_ascii_case(b"https");
    let (is_own, rest) = match behind_authority(value, is_https) {
        Some((authority, port, rest)) if is_same(authority, way.host, port) => (true, rest),
        None if value.starts_with(b"/") => (false, value),
        _ => return None,
    };
    let end = rest.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(rest.len());
    let (path, tail) = rest.split_at(end);
    let path = if path.is_empty() { b"/" } else { path };
    let path = match outward(path, way, is_own && !way.is_public) {
        Some(path) => path,
        None if is_own && is_outward(path, way) => path.to_vec(),
        None => return None,
    };
    // That would be another authority (RFC 3986 §4.2).
    (!path.starts_with(b"//")).then(|| [&path, tail].concat())
}

/// The authority of a reference with one, how its default port is written, and what follows it. The scheme is `http`, or
/// `https` where the service speaks it or was told that the client does, or left out.
fn behind_authority(value: &[u8], may_be_https: bool) -> Option<(&[u8], &'static [u8], &[u8])> {
    let behind = |scheme: &[u8]| {
        let (written, rest) = value.split_at_checked(scheme.len())?;
        written.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let (is_https, rest) = match (behind(b"http:"), behind(b"https:")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) if may_be_https => (true, rest),
        _ => (may_be_https, value),
    };
    let rest = rest.strip_prefix(b"//")?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    Some((authority, if is_https { b":443" } else { b":80" }, rest))
}

/// Whether two authorities are the same with this default port.
fn is_same(one: &[u8], other: &[u8], port: &[u8]) -> bool {
    // RFC 9110 §4.2.3: the port may be left out, or empty.
    let bare = |authority: &[u8]| {
        let bare = authority.strip_suffix(port).or_else(|| authority.strip_suffix(b":"));
        bare.unwrap_or(authority).to_ascii_lowercase()
    };
    let bare_one = bare(one);
    !bare_one.is_empty() && bare_one == bare(other)
}

/// A path of the service as the client has to ask for it, if that is another one. `is_sure`: it is one of the service's;
/// otherwise it is where a route leads to it.
fn outward(path: &[u8], way: &Way<'_>, is_sure: bool) -> Option<Vec<u8>> {
    if way.outer == way.inner || is_outward(path, way) || !begins(path, way.inner) {
        return None;
    }
    let rest = &path[way.inner.len()..];
    let is_led_to = is_sure || way.fronts.iter().any(|front| begins(rest, front));
    is_led_to.then(|| match [way.outer, rest].concat() {
        path if path.is_empty() => b"/".to_vec(),
        path => path,
    })
}

/// Whether a path is the client's already: nothing was changed, or the service minded what it was told.
fn is_outward(path: &[u8], way: &Way<'_>) -> bool {
    let is_below = |front: &[u8]| !front.is_empty() && begins(path, front);
    way.outer == way.inner || (!way.told.is_empty() && (is_below(way.told) || is_below(way.outer)))
}

/// Whether a path is this one, or below it.
fn begins(path: &[u8], front: &[u8]) -> bool {
    path.strip_prefix(front).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The value of a `Set-Cookie` whose path is the service's. A path of `/` stays: it holds for the prefix as well, other
/// services may share the cookie, and of `__Host-` ones it must be so (RFC 6265bis §4.1.3.2).
fn cookie(value: &[u8], way: &Way<'_>) -> Option<Vec<u8>> {
    let mut changed = Vec::new();
    let mut kept = 0;
    let mut at = value.iter().position(|byte| *byte == b';')? + 1;
    for attribute in value[at..].split(|byte| *byte == b';') {
        let equals = attribute.iter().position(|byte| *byte == b'=').unwrap_or(attribute.len());
        let (name, rest) = attribute.split_at(equals);
        let path = rest.get(1..).unwrap_or_default();
        let blank = path.len() - path.trim_ascii_start().len();
        let path = path.trim_ascii();
        if name.trim_ascii().eq_ignore_ascii_case(b"path")
            && path.len() > 1
            && let Some(outward) = outward(path, way, false)
        {
            let start = at + equals + 1 + blank;
            changed.extend_from_slice(&value[kept..start]);
            changed.extend_from_slice(&outward);
            kept = start + path.len();
        }
        at += attribute.len() + 1;
    }
    (kept > 0).then(|| {
        changed.extend_from_slice(&value[kept..]);
        changed
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `/api` is stripped in front of `/events` and `/login`.
    fn with_way<T>(use_way: impl FnOnce(Way<'_>) -> T) -> T {
        let fronts: [Box<[u8]>; 2] = [(*b"/events").into(), (*b"/login").into()];
        use_way(Way {
            host: b"10.0.0.5:9000",
            is_public: false,
            outer: b"/api",
            inner: b"",
            told: b"/api",
            scheme: b"http",
            is_https: false,
            fronts: &fronts,
        })
    }

    fn text(bytes: Option<Vec<u8>>) -> Option<String> {
        bytes.map(|bytes| String::from_utf8(bytes).expect("UTF-8"))
    }

    #[test]
    fn references_lead_back() {
        for (value, wanted) in [
            // The service's own authority, however it is written.
            ("http://10.0.0.5:9000/events/1", Some("/api/events/1")),
            ("HTTP://10.0.0.5:9000/events/1?q=/x#f", Some("/api/events/1?q=/x#f")),
            ("//10.0.0.5:9000/events", Some("/api/events")),
            ("http://10.0.0.5:9000", Some("/api/")),
            ("http://10.0.0.5:9000?q", Some("/api/?q")),
            ("http://10.0.0.5:9000#f", Some("/api/#f")),
            ("http://10.0.0.5:9000/elsewhere", Some("/api/elsewhere")),
            ("http://10.0.0.5:9000//evil.test/", Some("/api//evil.test/")),
            // It minded the prefix that it was told.
            ("http://10.0.0.5:9000/api/events", Some("/api/events")),
            ("/api/events/1", None),
            ("/api", None),
            // Paths behind the prefix that routes lead to.
            ("/events", Some("/api/events")),
            ("/events/", Some("/api/events/")),
            ("/events?next=http://10.0.0.5:9000/", Some("/api/events?next=http://10.0.0.5:9000/")),
            ("/login#top", Some("/api/login#top")),
            ("/events/../x", Some("/api/events/../x")),
            ("/events/caf\u{e9}", Some("/api/events/caf\u{e9}")),
            // Others are nobody's to change.
            ("/eventsx", None),
            ("/Events", None),
            ("/", None),
            ("/apix", None),
            // Relative to what the client asked for.
            ("", None),
            ("next", None),
            ("../next", None),
            ("?q", None),
            ("#f", None),
            ("events/1", None),
            // Others' authorities, and schemes that the service is not spoken to in.
            ("http://10.0.0.5:9001/events", None),
            ("http://10.0.0.5/events", None),
            ("https://10.0.0.5:9000/events", None),
            ("http://user@10.0.0.5:9000/events", None),
            ("http://10.0.0.5:9000.evil.test/events", None),
            ("//evil.test/events", None),
            ("http:///events", None),
            ("///events", None),
            ("ftp://10.0.0.5:9000/events", None),
            ("mailto:a@10.0.0.5", None),
            ("http:/events", None),
            // What browsers read in another way.
            ("/\\evil.test/events", None),
            ("\\events", None),
            ("/events\t", None),
            ("/events /", None),
            ("http:\\\\10.0.0.5:9000\\events", None),
            ("http://10.0.0.5:9000/\t/evil.test", None),
        ] {
            assert_eq!(with_way(|way| text(reference(value.as_bytes(), &way))).as_deref(), wanted, "{value}");
        }
    }

    #[test]
    fn who_is_told_that_clients_speak_https_may_say_so() {
        for (told, host, value, wanted) in [
            ("https", "10.0.0.5:9000", "https://10.0.0.5:9000/events/1", Some("/api/events/1")),
            ("HTTPS", "10.0.0.5:9000", "HTTPS://10.0.0.5:9000/events/1", Some("/api/events/1")),
            // It did not mind what it was told.
            ("https", "10.0.0.5:9000", "http://10.0.0.5:9000/events/1", Some("/api/events/1")),
            ("https", "10.0.0.5:9000", "https://10.0.0.5:9001/events/1", None),
            ("https", "10.0.0.5:9000", "https://evil.test/events", None),
            ("https", "shop", "https://shop:443/events", Some("/api/events")),
            ("https", "shop", "//shop:443/events", Some("/api/events")),
            ("https", "shop", "https://shop:80/events", None),
            ("https", "shop", "http://shop:443/events", None),
            ("http", "shop", "https://shop/events", None),
            ("", "shop", "https://shop/events", None),
            ("https, http", "shop", "https://shop/events", None),
        ] {
            let scheme = told.as_bytes();
            let found =
                with_way(|way| text(reference(value.as_bytes(), &Way { host: host.as_bytes(), scheme, ..way })));
            assert_eq!(found.as_deref(), wanted, "{told} {host} {value}");
        }
        for (host, value, wanted) in [
            ("shop", "https://shop/events", Some("/api/events")),
            ("shop", "https://shop:443/events", Some("/api/events")),
            ("shop:8443", "https://shop:8443/events", Some("/api/events")),
            ("shop", "//shop/events", Some("/api/events")),
            ("shop", "https://shop:8443/events", None),
        ] {
            let of_tls =
                |way: Way<'_>| text(reference(value.as_bytes(), &Way { host: host.as_bytes(), is_https: true, ..way }));
            assert_eq!(with_way(of_tls).as_deref(), wanted, "{host} {value}");
        }
    }

    #[test]
    fn ports_that_go_without_saying_need_not_be_said() {
        for (host, value, is_same) in [
            ("shop:80", "http://shop/events", true),
            ("shop", "http://SHOP:80/events", true),
            ("shop", "http://shop:/events", true),
            ("[::1]:80", "http://[::1]/events", true),
            ("[::80]", "http://[:/events", false),
            ("shop:8080", "http://shop/events", false),
            ("", "http:///events", false),
            ("", "http://:80/events", false),
        ] {
            let found = with_way(|way| reference(value.as_bytes(), &Way { host: host.as_bytes(), ..way }));
            assert_eq!(found.is_some(), is_same, "{host} {value}");
        }
    }

    #[test]
    fn of_a_name_that_clients_know_only_paths_with_routes_are_the_services() {
        for (value, wanted) in [
            ("http://shop.test/events/1", Some("/api/events/1")),
            ("http://shop.test/api/events", Some("/api/events")),
            ("http://shop.test/", None),
            ("http://shop.test/about", None),
            ("https://shop.test/events", None),
        ] {
            let found =
                with_way(|way| text(reference(value.as_bytes(), &Way { host: b"shop.test", is_public: true, ..way })));
            assert_eq!(found.as_deref(), wanted, "{value}");
        }
    }

    #[test]
    fn without_a_prefix_only_the_authority_goes() {
        for (value, wanted) in [
            ("http://10.0.0.5:9000/x?y", Some("/x?y")),
            ("http://10.0.0.5:9000", Some("/")),
            ("/x", None),
            // Without its authority this would be another's.
            ("http://10.0.0.5:9000//evil.test/", None),
            ("http://10.0.0.5:9000//", None),
        ] {
            let found =
                with_way(|way| text(reference(value.as_bytes(), &Way { outer: b"", told: b"", fronts: &[], ..way })));
            assert_eq!(found.as_deref(), wanted, "{value}");
        }
    }

    #[test]
    fn rewritten_fronts_are_put_back() {
        let any: [Box<[u8]>; 1] = [Box::default()];
        let way = Way {
            host: b"a:1",
            is_public: false,
            outer: b"/users/7/orders",
            inner: b"/v2/orders/7",
            told: b"",
            scheme: b"http",
            is_https: false,
            fronts: &any,
        };
        for (value, wanted) in [
            ("/v2/orders/7/new", Some("/users/7/orders/new")),
            ("/v2/orders/7", Some("/users/7/orders")),
            ("http://a:1/v2/orders/7?x", Some("/users/7/orders?x")),
            ("/v2/orders/8/new", None),
            ("http://a:1/v2/orders/8", None),
            ("/users/7/orders/x", None),
            ("/v2/orders/77", None),
        ] {
            assert_eq!(text(reference(value.as_bytes(), &way)).as_deref(), wanted, "{value}");
        }
        let way = Way { outer: b"", inner: b"/v2", ..way };
        for (value, wanted) in [("/v2", Some("/")), ("/v2/", Some("/")), ("/v2/a", Some("/a")), ("/v2//b", None)] {
            assert_eq!(text(reference(value.as_bytes(), &way)).as_deref(), wanted, "{value}");
        }
    }

    #[test]
    fn cookies_go_where_their_service_is() {
        for (value, wanted) in [
            ("a=1; Path=/events", Some("a=1; Path=/api/events")),
            ("a=1; HttpOnly; path = /events/ ; Secure", Some("a=1; HttpOnly; path = /api/events/ ; Secure")),
            ("a=1;PATH=/events;Path=/login", Some("a=1;PATH=/api/events;Path=/api/login")),
            ("a=/events; Path=/events", Some("a=/events; Path=/api/events")),
            ("__Secure-a=1; Path=/login; Secure", Some("__Secure-a=1; Path=/api/login; Secure")),
            ("__Host-a=1; Path=/; Secure", None),
            ("a=1; Path=/", None),
            ("a=1; Path=/api/events", None),
            ("a=1; Path=/eventsx", None),
            ("a=1; Path=events", None),
            ("a=1; Path=\"/events\"", None),
            ("a=1; Path=", None),
            ("a=1; Path", None),
            ("a=1; XPath=/events", None),
            ("Path=/events", None),
            ("a=1", None),
            ("", None),
            (";", None),
        ] {
            assert_eq!(with_way(|way| text(cookie(value.as_bytes(), &way))).as_deref(), wanted, "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_value_panics_or_becomes_another_authority(
            value in "(http:)?/{0,3}(10.0.0.5:9000)?[/a-c;=?#.:\\\\ ]{0,16}(Path=/events)?", is_public: bool, keeps: bool,
        ) {
            with_way(|way| {
                let way = Way { is_public, outer: if keeps { b"" } else { way.outer }, ..way };
                let changed = reference(value.as_bytes(), &way);
                let is_path = changed.as_ref().is_none_or(|path| path.starts_with(b"/") && !path.starts_with(b"//"));
                assert!(is_path, "{value} became {:?}", text(changed));
                let _ = cookie(value.as_bytes(), &way);
            });
        }
    }
}

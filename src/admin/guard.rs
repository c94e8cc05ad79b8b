//! Who may ask the operator's listener for what: whether a request means this listener, whether the page that sends it is
//! the listener's own, and whether its token is one of those that are configured.
//!
//! Pages of other origins in an operator's browser reach loopback too, and DNS may give their names this address.

use std::net::IpAddr;

use hyper::{
    Uri,
    header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN},
    http::uri::Authority,
};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Who may ask for what. One per process; a reload makes a new one.
#[derive(Debug, Default)]
pub struct Access {
    tokens: Vec<Token>,
    /// Names that this listener goes by, besides `localhost` and its addresses; in small letters.
    hosts: Vec<String>,
    /// Whether to be read asks for a token too.
    are_reads_guarded: bool,
}

/// A token, and who has it.
#[derive(Debug)]
struct Token {
    name: String,
    /// Of the token. Digests are of one length, and what is compared tells nothing of what was configured.
    digest: [u8; 32],
}

/// Why a request has no say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No token is configured.
    NotConfigured,
    /// It has none.
    Missing,
    /// It has another one.
    Wrong,
    /// It has several fields for one, of which somebody on the way may have looked at another.
    Several,
}

impl Access {
    /// Those of these names and tokens may make changes, at these hosts; `are_reads_guarded`: and nobody else may read.
    pub fn new<'t>(
        tokens: impl IntoIterator<Item = (&'t str, &'t [u8])>,
        hosts: &[String],
        are_reads_guarded: bool,
    ) -> Self {
        let token = |(name, token): (&str, &[u8])| Token { name: name.to_owned(), digest: digest_of(token) };
        Self {
            tokens: tokens.into_iter().map(token).collect(),
            hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            are_reads_guarded,
        }
    }

    /// Whether changes are possible at all.
    pub fn has_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Whether to be read asks for a token too.
    pub fn are_reads_guarded(&self) -> bool {
        self.are_reads_guarded
    }

    /// Whose token a request shows (RFC 6750 §2.1). How long it takes does not tell which bytes are right.
    pub fn who(&self, headers: &HeaderMap) -> Result<&str, Denied> {
        if self.tokens.is_empty() {
            return Err(Denied::NotConfigured);
        }
        let mut fields = headers.get_all(AUTHORIZATION).iter();
        let shown = fields.next().map(HeaderValue::as_bytes).ok_or(Denied::Missing)?;
        if fields.next().is_some() {
            return Err(Denied::Several);
        }
        let (scheme, token) = shown.split_at_checked(7).ok_or(Denied::Wrong)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(Denied::Wrong);
        }
        let shown = digest_of(token.trim_ascii());
        let mut found = None;
        for token in &self.tokens {
            if bool::from(token.digest.ct_eq(&shown)) {
                found = Some(&*token.name);
            }
        }
        found.ok_or(Denied::Wrong)
    }

    /// Whether a request means this listener, by its `Host` and, where its target has an authority, which counts before that
    /// (RFC 9112 §3.2.2), by both.
    pub fn is_own_host(&self, target: &Uri, headers: &HeaderMap, reached: Option<IpAddr>) -> bool {
        let target = target.authority().map(Authority::as_str);
        let is_own = |host| self.is_own_name(name_of(host), reached);
        single(headers, HOST).is_some_and(is_own) && target.is_none_or(is_own)
    }

    /// Whether this is `localhost`, a loopback address, the address that a connection came to, or a name that is configured.
    fn is_own_name(&self, name: &str, reached: Option<IpAddr>) -> bool {
        if name.eq_ignore_ascii_case("localhost") || self.hosts.iter().any(|host| name.eq_ignore_ascii_case(host)) {
            return true;
        }
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let address = name.parse::<IpAddr>().map(|address| address.to_canonical());
        address.is_ok_and(|address| {
            address.is_loopback() || reached.is_some_and(|reached| reached.to_canonical() == address)
        })
    }
}

/// Whether a page of another origin sends the request, as far as its browser says.
pub(super) fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return true;
    }
    if !headers.contains_key(ORIGIN) {
        return false;
    }
    let origin = single(headers, ORIGIN).and_then(|origin| origin.split_once("://"));
    // Behind somebody who ends TLS the scheme is another one.
    !origin.is_some_and(|(scheme, authority)| {
        matches!(scheme, "http" | "https")
            && single(headers, HOST).is_some_and(|own| own.eq_ignore_ascii_case(authority))
    })
}

fn digest_of(token: &[u8]) -> [u8; 32] {
    digest(&SHA256, token).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The value of a field that stands once and is text.
fn single(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    value.to_str().ok()
}

/// A `Host` without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) && !port.is_empty() => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
        };
        let mut headers = HeaderMap::new();
        fields.iter().map(field).for_each(|(name, value)| _ = headers.append(name, value));
        headers
    }

    #[test]
    fn only_its_own_hosts_are_served() {
        // As a listener on `::` is told of whoever comes by IPv4.
        let reached = Some("::ffff:10.1.2.3".parse().expect("an address"));
        let access = Access::new([], &["Gate.Internal".to_owned()], false);
        for (host, is_own) in [
            ("localhost", true),
            ("LOCALHOST:3001", true),
            ("127.0.0.1:3001", true),
            ("127.9.9.9", true),
            ("[::1]:3001", true),
            ("10.1.2.3:3001", true),
            ("[::ffff:10.1.2.3]:3001", true),
            ("10.1.2.4:3001", false),
            ("0.0.0.0:3001", false),
            ("[10.1.2.3", false),
            ("[[::1]]", false),
            ("localhost.", false),
            ("localhost:", false),
            ("localhost:x", false),
            ("localhost@evil.example", false),
            ("2130706433", false),
            ("gate.internal:80", true),
            ("GATE.INTERNAL", true),
            ("a.gate.internal", false),
            ("evil.example", false),
            ("evil.example:3001", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            assert_eq!(
                access.is_own_host(&Uri::from_static("/"), &headers(&[("host", host)]), reached),
                is_own,
                "{host}"
            );
        }
        for (target, hosts, is_own) in [
            ("/", &[][..], false),
            ("/", &["localhost", "evil.example"], false),
            ("http://localhost/", &[], false),
            ("http://localhost/", &["localhost"], true),
            ("http://gate.internal:80/", &["localhost:3001"], true),
            ("http://evil.example/", &["localhost"], false),
            ("http://localhost/", &["evil.example"], false),
            ("http://localhost@evil.example/", &["localhost"], false),
            ("http://evil.example@localhost/", &["localhost"], false),
            ("evil.example:80", &["localhost"], false),
        ] {
            let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            let target = Uri::from_static(target);
            assert_eq!(access.is_own_host(&target, &headers(&fields), reached), is_own, "{target} {hosts:?}");
        }
    }

    #[test]
    fn pages_of_other_origins_are_known_by_what_their_browsers_say() {
        for (fields, is_elsewhere) in [
            (&[][..], false),
            (&[("origin", "http://localhost:3001")], false),
            (&[("origin", "https://localhost:3001")], false),
            (&[("origin", "http://localhost:3002")], true),
            (&[("origin", "http://localhost")], true),
            (&[("origin", "ftp://localhost:3001")], true),
            (&[("origin", "http://localhost:3001.evil.example")], true),
            (&[("origin", "null")], true),
            (&[("origin", "")], true),
            (&[("origin", "http://localhost:3001"), ("origin", "http://localhost:3001")], true),
            (&[("sec-fetch-site", "same-origin")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "same-origin"), ("origin", "http://evil.example")], true),
        ] {
            let mut headers = headers(fields);
            headers.insert(HOST, HeaderValue::from_static("localhost:3001"));
            assert_eq!(is_from_elsewhere(&headers), is_elsewhere, "{fields:?}");
        }
    }

    #[test]
    fn a_token_says_who_it_is() {
        let tokens = [("ann", &b"a token of the tests"[..]), ("ben", b"another one, longer")];
        let access = Access::new(tokens, &[], false);
        for (shown, who) in [
            ("Bearer a token of the tests", Ok("ann")),
            ("bearer another one, longer", Ok("ben")),
            ("Bearer  a token of the tests ", Ok("ann")),
            ("Bearer a token of the test", Err(Denied::Wrong)),
            ("Bearer ", Err(Denied::Wrong)),
            ("Bearer", Err(Denied::Wrong)),
            ("Basic a token of the tests", Err(Denied::Wrong)),
            ("a token of the tests", Err(Denied::Wrong)),
        ] {
            assert_eq!(access.who(&headers(&[("authorization", shown)])), who, "{shown}");
        }
        assert_eq!(access.who(&headers(&[])), Err(Denied::Missing));
        let both = ["Bearer a token of the tests", "Bearer of a guess"].map(|shown| ("authorization", shown));
        assert_eq!(access.who(&headers(&both)), Err(Denied::Several));
        let nobody = Access::default();
        assert_eq!(nobody.who(&headers(&[("authorization", "Bearer ")])), Err(Denied::NotConfigured));
    }
}

//! Which origins may call from a browser, as the Fetch standard writes them.

use super::values::texts;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Which origins may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`: every origin, those without a name included.
    Any,
    /// `null`: origins without a name (sandboxed frames, files). Whoever wants to can be one.
    Null,
    /// This origin and no other, as browsers write it.
    Exact(String),
    /// `https://*.example.com`: one label more or several, never none; the port as written, `*` for any.
    Subdomains {
        /// `https`
        scheme: String,
        /// `.example.com`
        suffix: String,
        /// Which ports.
        port: PortPattern,
    },
}

/// The port of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortPattern {
    /// The scheme's own, which browsers do not write.
    Default,
    /// This one.
    Given(u16),
    /// Any, written or not.
    Any,
}

/// Longer is no origin: a scheme, a host name of 253 and a port.
pub const ORIGIN_BYTES_MAX: usize = 320;

impl OriginPattern {
    /// Whether it stands for this origin, as a browser sent it. Nothing else than a whole origin matches anything.
    pub fn matches(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Null => origin == b"null",
            Self::Exact(exact) => origin == exact.as_bytes(),
            Self::Subdomains { scheme, suffix, port } => {
                origin.len() <= ORIGIN_BYTES_MAX && is_below(origin, scheme, suffix, *port)
            }
        }
    }
}

fn is_below(origin: &[u8], scheme: &str, suffix: &str, port: PortPattern) -> bool {
    let Some(rest) = origin.strip_prefix(scheme.as_bytes()).and_then(|rest| rest.strip_prefix(b"://")) else {
        return false;
    };
    let (host, found) = match rest.iter().position(|byte| *byte == b':') {
        Some(colon) => (&rest[..colon], Some(&rest[colon + 1..])),
        None => (rest, None),
    };
    let is_port = match (port, found) {
        (PortPattern::Default | PortPattern::Any, None) => true,
        (PortPattern::Given(port), Some(found)) => found == itoa::Buffer::new().format(port).as_bytes(),
        (PortPattern::Any, Some(found)) => is_written_port(found),
        (PortPattern::Default, Some(_)) | (PortPattern::Given(_), None) => false,
    };
    is_port
        && host.strip_suffix(suffix.as_bytes()).is_some_and(|labels| labels.split(|byte| *byte == b'.').all(is_label))
}

/// A label of a host as browsers write it: in lower case, at least one character long.
fn is_label(label: &[u8]) -> bool {
    (1..=63).contains(&label.len())
        && label.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
}

fn is_written_port(text: &[u8]) -> bool {
    (1..=5).contains(&text.len())
        && text.iter().all(u8::is_ascii_digit)
        && text[0] != b'0'
        && std::str::from_utf8(text).is_ok_and(|text| text.parse::<u16>().is_ok())
}

const FORM: &str = "write an origin as \"https://shop.example.com\", \"https://*.example.com\", \"http://localhost:8080\", \
                    \"null\" or \"*\"";

impl FromStr for OriginPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "*" => return Ok(Self::Any),
            "null" => return Ok(Self::Null),
            _ => {}
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| FORM.to_owned())?;
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
        if !is_scheme || text.len() > ORIGIN_BYTES_MAX {
            return Err(FORM.to_owned());
        }
        if !text.is_ascii() {
            return Err("write the host in its ASCII form (xn--…), as browsers send it".to_owned());
        }
        if rest.contains(['/', '?', '#', '@']) {
            return Err(format!("{FORM}: no path, not even a last slash, and no user"));
        }
        let scheme = scheme.to_ascii_lowercase();
        let rest = rest.to_ascii_lowercase();
        let (host, port) = split_port(&rest, &scheme).ok_or_else(|| FORM.to_owned())?;
        match (host.strip_prefix('*'), port) {
            (Some(suffix), port)
                if suffix.starts_with('.') && suffix[1..].split('.').all(|label| is_label(label.as_bytes())) =>
            {
                Ok(Self::Subdomains { scheme, suffix: suffix.to_owned(), port })
            }
            (Some(_), _) => Err("a star stands for whole labels in front: \"https://*.example.com\"".to_owned()),
            (None, PortPattern::Any) => {
                Err("any port goes with a star in front only: \"http://*.example.com:*\"".to_owned())
            }
            (None, _) if !is_host(host) => Err(FORM.to_owned()),
            (None, PortPattern::Default) => Ok(Self::Exact(format!("{scheme}://{host}"))),
            (None, PortPattern::Given(port)) => Ok(Self::Exact(format!("{scheme}://{host}:{port}"))),
        }
    }
}

/// Host and port; the scheme's own port counts as none, as browsers write it.
fn split_port<'t>(rest: &'t str, scheme: &str) -> Option<(&'t str, PortPattern)> {
    let end = rest.rfind(']').unwrap_or(0);
    let Some(colon) = rest[end..].find(':').map(|at| at + end) else { return Some((rest, PortPattern::Default)) };
    let (host, port) = (&rest[..colon], &rest[colon + 1..]);
    if port == "*" {
        return Some((host, PortPattern::Any));
    }
    let port = is_written_port(port.as_bytes()).then(|| port.parse().ok()).flatten()?;
    let is_own = matches!((scheme, port), ("https", 443) | ("http", 80));
    Some((host, if is_own { PortPattern::Default } else { PortPattern::Given(port) }))
}

/// A host as an origin has it; of extensions and apps (`chrome-extension://…`) it is an id.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']');
        return address.is_some_and(|text| text.parse::<Ipv6Addr>().is_ok_and(|address| address.to_string() == text));
    }
    let ends_in_digits = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    host.split('.').all(|label| is_label(label.as_bytes()))
        && (!ends_in_digits || !host.contains('.') || host.parse::<Ipv4Addr>().is_ok())
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Null => f.write_str("null"),
            Self::Exact(origin) => f.write_str(origin),
            Self::Subdomains { scheme, suffix, port } => {
                write!(f, "{scheme}://*{suffix}")?;
                match port {
                    PortPattern::Default => Ok(()),
                    PortPattern::Given(port) => write!(f, ":{port}"),
                    PortPattern::Any => f.write_str(":*"),
                }
            }
        }
    }
}

texts! {
    OriginPattern: "origin, as `https://shop.example.com` or `https://*.example.com`; `null`; `*`";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_origins_and_nothing_else() {
        for (pattern, matching, other) in [
            (
                "https://a.example",
                &["https://a.example"][..],
                &[
                    "http://a.example",
                    "https://a.example:443",
                    "https://a.example:8443",
                    "https://a.example.evil.example",
                    "https://evil.example/https://a.example",
                    "https://xa.example",
                    "https://A.example",
                    "https://a.example/",
                    "https://a.example ",
                    "null",
                    "",
                ][..],
            ),
            ("https://A.Example:443", &["https://a.example"], &["https://a.example:443"]),
            ("http://localhost:8080", &["http://localhost:8080"], &["http://localhost", "http://localhost:80800"]),
            (
                "https://*.b.example",
                &["https://x.b.example", "https://x.y-1.b.example", "https://x_1.b.example"],
                &[
                    "https://b.example",
                    "https://.b.example",
                    "https://xb.example",
                    "https://x..b.example",
                    "https://evil.example/.b.example",
                    "https://evil.example#.b.example",
                    "https://evil.example?.b.example",
                    "https://u@x.b.example",
                    "https://x.b.example:443",
                    "http://x.b.example",
                    "https://x.b.example.evil.example",
                    "https://X.b.example",
                    "https://x.b.example/",
                    "https://x%00.b.example",
                    "https://x\0.b.example",
                    "https://\u{e9}.b.example",
                    "https://x.b.example:",
                    "https://x.b.example:@evil.example",
                    "https://evil.example:1.b.example",
                ],
            ),
            (
                "http://*.c.example:81",
                &["http://x.c.example:81"],
                &["http://x.c.example", "http://x.c.example:8100", "http://x.c.example:081"],
            ),
            (
                "http://*.d.example:*",
                &["http://x.d.example", "http://x.d.example:1", "http://x.d.example:65535"],
                &["http://x.d.example:0", "http://x.d.example:65536", "http://x.d.example:1a", "http://x.d.example:"],
            ),
            ("null", &["null"], &["https://null", "NULL", "null "]),
            ("*", &["https://a.example", "null"], &[]),
            ("chrome-extension://abcdef", &["chrome-extension://abcdef"], &["chrome-extension://abcdeg"]),
            ("http://[::1]:3000", &["http://[::1]:3000"], &["http://[::1]"]),
        ] {
            let parsed: OriginPattern = pattern.parse().expect("a pattern");
            for origin in matching {
                assert!(parsed.matches(origin.as_bytes()), "{pattern} stands for {origin}");
            }
            for origin in other {
                assert!(!parsed.matches(origin.as_bytes()), "{pattern} does not stand for {origin}");
            }
            assert_eq!(parsed.to_string().parse::<OriginPattern>().as_ref(), Ok(&parsed), "{pattern}");
        }
    }
}

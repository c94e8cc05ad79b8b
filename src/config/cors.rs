//! Who may call from a browser, and with what: CORS as the Fetch standard has it. Answering is for the gateway.

use super::raw::{Node, quoted};
use super::read::{Fields, FromText, Report};
use super::routes::is_token;
use super::units;
use serde::{Serialize, Serializer};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

/// What the gateway answers browsers of other origins. All of it follows a reload; without origins the gateway leaves
/// CORS to the services.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cors {
    /// Origins that may read answers. Default none.
    pub origins: Vec<OriginPattern>,
    /// Methods that they may use besides GET, HEAD and POST; `*` is any.
    pub methods: Vec<String>,
    /// Request fields that they may send besides the harmless ones; `*` is any.
    pub headers: Vec<String>,
    /// Answer fields that their scripts may read.
    pub exposed: Vec<String>,
    /// How long a browser may remember a preflight's answer. Default 10 min.
    #[serde(serialize_with = "units::duration")]
    pub max_age: Duration,
    /// Whether cookies and client certificates may come along. Default false.
    pub credentials: bool,
    /// Whether pages of the public network may call the gateway in a private one. Default false.
    pub private_network: bool,
}

/// What a route says otherwise; `None`: as `[cors]` has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each stands in for the field of that name in `Cors`")]
pub struct RouteCors {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origins: Option<Vec<OriginPattern>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::optional_duration")]
    pub max_age: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_network: Option<bool>,
}

impl RouteCors {
    /// What holds for the route.
    pub fn over(&self, cors: &Cors) -> Cors {
        let Self { origins, methods, headers, exposed, max_age, credentials, private_network } = self.clone();
        Cors {
            origins: origins.unwrap_or_else(|| cors.origins.clone()),
            methods: methods.unwrap_or_else(|| cors.methods.clone()),
            headers: headers.unwrap_or_else(|| cors.headers.clone()),
            exposed: exposed.unwrap_or_else(|| cors.exposed.clone()),
            max_age: max_age.unwrap_or(cors.max_age),
            credentials: credentials.unwrap_or(cors.credentials),
            private_network: private_network.unwrap_or(cors.private_network),
        }
    }
}

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
        port: Port,
    },
}

/// The port of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
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

fn is_below(origin: &[u8], scheme: &str, suffix: &str, port: Port) -> bool {
    let Some(rest) = origin.strip_prefix(scheme.as_bytes()).and_then(|rest| rest.strip_prefix(b"://")) else {
        return false;
    };
    let (host, found) = match rest.iter().position(|byte| *byte == b':') {
        Some(colon) => (&rest[..colon], Some(&rest[colon + 1..])),
        None => (rest, None),
    };
    let is_port = match (port, found) {
        (Port::Default | Port::Any, None) => true,
        (Port::Given(port), Some(found)) => found == itoa::Buffer::new().format(port).as_bytes(),
        (Port::Any, Some(found)) => is_written_port(found),
        (Port::Default, Some(_)) | (Port::Given(_), None) => false,
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
            (None, Port::Any) => Err("any port goes with a star in front only: \"http://*.example.com:*\"".to_owned()),
            (None, _) if !is_host(host) => Err(FORM.to_owned()),
            (None, Port::Default) => Ok(Self::Exact(format!("{scheme}://{host}"))),
            (None, Port::Given(port)) => Ok(Self::Exact(format!("{scheme}://{host}:{port}"))),
        }
    }
}

/// Host and port; the scheme's own port counts as none, as browsers write it.
fn split_port<'t>(rest: &'t str, scheme: &str) -> Option<(&'t str, Port)> {
    let end = rest.rfind(']').unwrap_or(0);
    let Some(colon) = rest[end..].find(':').map(|at| at + end) else { return Some((rest, Port::Default)) };
    let (host, port) = (&rest[..colon], &rest[colon + 1..]);
    if port == "*" {
        return Some((host, Port::Any));
    }
    let port = is_written_port(port.as_bytes()).then(|| port.parse().ok()).flatten()?;
    let is_own = matches!((scheme, port), ("https", 443) | ("http", 80));
    Some((host, if is_own { Port::Default } else { Port::Given(port) }))
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
                    Port::Default => Ok(()),
                    Port::Given(port) => write!(f, ":{port}"),
                    Port::Any => f.write_str(":*"),
                }
            }
        }
    }
}

impl Serialize for OriginPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromText for OriginPattern {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

/// Reads `[cors]`.
pub(super) fn read_cors(node: Option<&Node>, report: &mut Report) -> Cors {
    let fields = Fields::of("cors", "cors".to_owned(), node, report);
    let cors = Cors {
        origins: fields.take("origins", report),
        methods: fields.take("methods", report),
        headers: fields.take("headers", report),
        exposed: fields.take("exposed", report),
        max_age: fields.take("max_age", report),
        credentials: fields.take("credentials", report),
        private_network: fields.take("private_network", report),
    };
    check_cors(&cors, &fields, report);
    cors
}

/// Reads `[routes.cors]`.
pub(super) fn read_route_cors(route: &Fields<'_>, report: &mut Report) -> RouteCors {
    let path = format!("{}.cors", route.path);
    let fields = Fields::of("routes.cors", path, route.node("cors"), report);
    RouteCors {
        origins: fields.take_written("origins", report),
        methods: fields.take_written("methods", report),
        headers: fields.take_written("headers", report),
        exposed: fields.take_written("exposed", report),
        max_age: fields.take_written("max_age", report),
        credentials: fields.take_written("credentials", report),
        private_network: fields.take_written("private_network", report),
    }
}

/// What a route says, together with `[cors]`.
pub(super) fn check_route_cors(own: &RouteCors, cors: &Cors, route: &Fields<'_>, report: &mut Report) {
    if *own == RouteCors::default() {
        return;
    }
    // Its unknown keys are told already.
    let mut unheard = Report::new(None);
    let fields = Fields::of("routes.cors", format!("{}.cors", route.path), route.node("cors"), &mut unheard);
    check_cors(&own.over(cors), &fields, report);
}

fn check_cors(cors: &Cors, fields: &Fields<'_>, report: &mut Report) {
    let path = &fields.path;
    let has_star = |list: &[String]| list.iter().any(|name| name == "*");
    if cors.credentials && cors.origins.contains(&OriginPattern::Any) {
        let what = format!("{path}.credentials is true, and {path}.origins has \"*\"");
        report.push(fields.place_of("credentials"), what, "every site could act as the user; name the origins");
    }
    if cors.credentials && has_star(&cors.exposed) {
        let what = format!("{path}.credentials is true, and {path}.exposed has \"*\"");
        report.push(fields.place_of("exposed"), what, "browsers take that star literally then; name the fields");
    }
    for (key, list) in [("methods", &cors.methods), ("headers", &cors.headers), ("exposed", &cors.exposed)] {
        for name in list.iter().filter(|name| !is_token(name) || name.len() > 128) {
            report.push(fields.place_of(key), format!("{path}.{key} has {}", quoted(name)), "it is one word or \"*\"");
        }
        if list.len() > 1 && has_star(list) {
            report.push(fields.place_of(key), format!("{path}.{key} has \"*\" and more"), "the star stands for all");
        }
    }
    for method in cors.methods.iter().filter(|method| method.bytes().any(|byte| byte.is_ascii_lowercase())) {
        let right = format!("methods are told apart by case; write {}", quoted(&method.to_ascii_uppercase()));
        report.push(fields.place_of("methods"), format!("{path}.methods has {}", quoted(method)), &right);
    }
    if cors.origins.len() > 1 && cors.origins.contains(&OriginPattern::Any) {
        report.push(
            fields.place_of("origins"),
            format!("{path}.origins has \"*\" and more"),
            "the star stands for all",
        );
    }
    if cors.credentials && cors.origins.contains(&OriginPattern::Null) {
        report
            .warn(&fields.place_of("origins"), &format!("{path} allows \"null\" with credentials: any site can be it"));
    }
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

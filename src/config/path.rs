//! The path of a route: what may be written and what it means. Matching requests against it is for the router.

use super::values::texts;
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Which paths a route answers for. It is compared with the normalised path, so it is itself in normal form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathPattern {
    /// `/health`: this path and no other.
    Exact(String),
    /// `/api/events/*`, held as `/api/events`: that path itself and every path below it. `/*` is held as an empty text
    /// and takes every path.
    Prefix(String),
    /// `/users/{id}/orders`: a parameter takes one segment, never an empty one.
    Parameters {
        /// What stands between the slashes, in order; never empty.
        segments: Vec<Segment>,
        /// Written `/users/{id}/*`: every path below is taken too.
        rest: bool,
    },
}

/// One segment of a path with parameters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// This text.
    Literal(String),
    /// Any one segment, under this name.
    Parameter(String),
}

impl Default for PathPattern {
    /// No path: it cannot be written, and takes nothing.
    fn default() -> Self {
        Self::Exact(String::new())
    }
}

impl PathPattern {
    /// The names of its parameters, in order; `rest` is the name of what `/*` takes.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        let (segments, rest) = match self {
            Self::Exact(_) => (&[][..], false),
            Self::Prefix(_) => (&[][..], true),
            Self::Parameters { segments, rest } => (segments.as_slice(), *rest),
        };
        let names = segments.iter().filter_map(|segment| match segment {
            Segment::Parameter(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        });
        names.chain(rest.then_some(REST))
    }

    /// Whether both take exactly the same paths; what their parameters are called does not matter.
    pub fn same_paths(&self, other: &Self) -> bool {
        let same_segment = |pair: (&Segment, &Segment)| match pair {
            (Segment::Literal(one), Segment::Literal(two)) => one == two,
            (Segment::Parameter(_), Segment::Parameter(_)) => true,
            _ => false,
        };
        match (self, other) {
            (Self::Parameters { segments: one, rest }, Self::Parameters { segments: two, rest: other_rest }) => {
                rest == other_rest && one.len() == two.len() && one.iter().zip(two).all(same_segment)
            }
            (one, two) => one == two,
        }
    }

    /// Whether every path that it takes begins with these whole segments, so that they can be stripped.
    pub fn begins_with(&self, prefix: &str) -> bool {
        self.front().strip_prefix(prefix).is_some_and(|left| left.is_empty() || left.starts_with('/'))
    }

    /// What every path that it takes begins with, in whole segments.
    pub fn front(&self) -> Cow<'_, str> {
        match self {
            Self::Exact(path) | Self::Prefix(path) => path.into(),
            Self::Parameters { segments, .. } => {
                let literal = segments.iter().map_while(|segment| match segment {
                    Segment::Literal(text) => Some(text.as_str()),
                    Segment::Parameter(_) => None,
                });
                literal.fold(String::new(), |path, segment| path + "/" + segment).into()
            }
        }
    }
}

/// What `{rest}` stands for in a rewrite.
const REST: &str = "rest";

impl FromStr for PathPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, rest) = match text.strip_suffix("/*") {
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.contains('*') {
            return Err("a star stands only for all below, at the end: \"/api/*\"".to_owned());
        }
        if path.contains(['{', '}']) {
            return Ok(Self::Parameters { segments: segments(path)?, rest });
        }
        if !(rest && path.is_empty()) {
            check_path(path)?;
        }
        if rest && path.ends_with('/') {
            return Err("two slashes in a row never match; paths are normalised first".to_owned());
        }
        Ok(if rest { Self::Prefix(path.to_owned()) } else { Self::Exact(path.to_owned()) })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(path) => write!(f, "{path}/*"),
            Self::Parameters { segments, rest } => {
                for segment in segments {
                    match segment {
                        Segment::Literal(text) => write!(f, "/{text}")?,
                        Segment::Parameter(name) => write!(f, "/{{{name}}}")?,
                    }
                }
                f.write_str(if *rest { "/*" } else { "" })
            }
        }
    }
}

texts! {
    PathPattern: "path";
}

fn segments(path: &str) -> Result<Vec<Segment>, String> {
    let mut names: Vec<&str> = Vec::new();
    let mut plain = String::new();
    let mut segments = Vec::new();
    for segment in path.strip_prefix('/').ok_or(NO_SLASH)?.split('/') {
        plain.push('/');
        let Some(name) = segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}')) else {
            if segment.contains(['{', '}']) {
                return Err("a parameter is a whole segment: \"/users/{id}/orders\"".to_owned());
            }
            plain.push_str(segment);
            segments.push(Segment::Literal(segment.to_owned()));
            continue;
        };
        plain.push('p');
        if !is_parameter_name(name) {
            return Err(format!(
                "{{{name}}} is no parameter; a name is a lower-case letter, then letters, digits or _"
            ));
        }
        if name == REST {
            return Err("{rest} is the name of what \"/*\" takes; name the parameter otherwise".to_owned());
        }
        if names.contains(&name) {
            return Err(format!("{{{name}}} stands there twice; name each parameter once"));
        }
        names.push(name);
        segments.push(Segment::Parameter(name.to_owned()));
    }
    check_path(&plain)?;
    if matches!(segments.last(), Some(Segment::Literal(last)) if last.is_empty()) {
        return Err("a path with parameters does not end in a slash".to_owned());
    }
    Ok(segments)
}

/// Routes are named after their paths in logs and metrics.
const PATH_BYTES_MAX: usize = 1024;

const NO_SLASH: &str = "a path begins with a slash";

/// Whether the path is in normal form, so that a request can ever match it.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(NO_SLASH.to_owned());
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("a path has at most {PATH_BYTES_MAX} bytes"));
    }
    if path.contains("//") {
        return Err("two slashes in a row never match; paths are normalised first".to_owned());
    }
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err("segments . and .. never match; paths are normalised first".to_owned());
    }
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let pair = [rest.next().unwrap_or(0), rest.next().unwrap_or(0)];
                let upper = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
                if !pair.into_iter().all(upper) {
                    return Err("after % stand two digits of 0-9A-F, as in %20".to_owned());
                }
                let value = std::str::from_utf8(&pair).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                match value {
                    Some(value) if is_unreserved(value) => {
                        return Err(format!("write {} as itself; paths are normalised first", char::from(value)));
                    }
                    // A star has a meaning of its own here.
                    Some(value) if is_path_byte(value) && !matches!(value, b'/' | b'*') => {
                        return Err(format!("write {} as itself; services take both for the same", char::from(value)));
                    }
                    Some(b'/' | b'\\') => {
                        return Err("an escaped slash is a slash to services, and so to what guards them".to_owned());
                    }
                    _ => {}
                }
            }
            b'?' | b'#' => return Err("a path has no query and no fragment".to_owned()),
            _ if is_path_byte(byte) => {}
            _ => return Err("this byte does not stand in a path; percent-encode it, as in %20".to_owned()),
        }
    }
    Ok(())
}

/// Checks a rewrite, `/v2/{id}/{rest}`, against the parameters that its route's path has.
pub(super) fn check_rewrite(rewrite: &str, path: &PathPattern) -> Result<(), String> {
    let mut plain = String::new();
    let mut left = rewrite;
    while let Some(open) = left.find('{') {
        let (before, inner) = left.split_at(open);
        let close = inner.find('}').ok_or("a { has no }")?;
        let name = &inner[1..close];
        if !path.parameters().any(|parameter| parameter == name) {
            let have: Vec<String> = path.parameters().map(|parameter| format!("{{{parameter}}}")).collect();
            let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
            return Err(format!("the path has no {{{name}}}; it has {have}"));
        }
        left = &inner[close + 1..];
        // Glued to a dot, an empty rest would make a dot segment of it, which the upstream would climb.
        if !before.ends_with('/') || !(left.is_empty() || left.starts_with('/')) {
            return Err(format!("{{{name}}} is a whole segment, with a slash or the end on both sides"));
        }
        plain.push_str(before);
        plain.push('p');
    }
    plain.push_str(left);
    check_path(&plain)
}

fn is_parameter_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.len() <= 32
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 §3.3: `pchar` without its percent signs, and the slash.
fn is_path_byte(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@/".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn paths_are_read_and_written_back() {
        let mut outcome = String::new();
        for text in [
            "/health",
            "/",
            "/*",
            "/api/events/*",
            "/users/{id}/orders",
            "/users/{id}/*",
            "/{any}",
            "/a%20b",
            "/health/",
            "",
            "api",
            "*",
            "/api/*/x",
            "/api*",
            "/a//b",
            "/a//*",
            "/a/../b",
            "/a?b",
            "/a b",
            "/ä",
            "/a%2",
            "/a%2f",
            "/a%41",
            "/a%40b",
            "/a%2Fb",
            "/a%5Cb",
            "/a%2Ab",
            "/{id}/{id}",
            "/{rest}/x",
            "/{Id}",
            "/x{id}",
            "/{}",
            "/{id}/",
            "{id}",
        ] {
            let read = text.parse::<PathPattern>();
            if let Ok(path) = &read {
                assert_eq!(path.to_string(), text);
            }
            let read = read.map_or_else(|wrong| format!("! {wrong}"), |path| format!("{path:?}"));
            outcome.extend([format!("{text:?} -> {read}\n")]);
        }
        expect![[r#"
            "/health" -> Exact("/health")
            "/" -> Exact("/")
            "/*" -> Prefix("")
            "/api/events/*" -> Prefix("/api/events")
            "/users/{id}/orders" -> Parameters { segments: [Literal("users"), Parameter("id"), Literal("orders")], rest: false }
            "/users/{id}/*" -> Parameters { segments: [Literal("users"), Parameter("id")], rest: true }
            "/{any}" -> Parameters { segments: [Parameter("any")], rest: false }
            "/a%20b" -> Exact("/a%20b")
            "/health/" -> Exact("/health/")
            "" -> ! a path begins with a slash
            "api" -> ! a path begins with a slash
            "*" -> ! a star stands only for all below, at the end: "/api/*"
            "/api/*/x" -> ! a star stands only for all below, at the end: "/api/*"
            "/api*" -> ! a star stands only for all below, at the end: "/api/*"
            "/a//b" -> ! two slashes in a row never match; paths are normalised first
            "/a//*" -> ! two slashes in a row never match; paths are normalised first
            "/a/../b" -> ! segments . and .. never match; paths are normalised first
            "/a?b" -> ! a path has no query and no fragment
            "/a b" -> ! this byte does not stand in a path; percent-encode it, as in %20
            "/ä" -> ! this byte does not stand in a path; percent-encode it, as in %20
            "/a%2" -> ! after % stand two digits of 0-9A-F, as in %20
            "/a%2f" -> ! after % stand two digits of 0-9A-F, as in %20
            "/a%41" -> ! write A as itself; paths are normalised first
            "/a%40b" -> ! write @ as itself; services take both for the same
            "/a%2Fb" -> ! an escaped slash is a slash to services, and so to what guards them
            "/a%5Cb" -> ! an escaped slash is a slash to services, and so to what guards them
            "/a%2Ab" -> Exact("/a%2Ab")
            "/{id}/{id}" -> ! {id} stands there twice; name each parameter once
            "/{rest}/x" -> ! {rest} is the name of what "/*" takes; name the parameter otherwise
            "/{Id}" -> ! {Id} is no parameter; a name is a lower-case letter, then letters, digits or _
            "/x{id}" -> ! a parameter is a whole segment: "/users/{id}/orders"
            "/{}" -> ! {} is no parameter; a name is a lower-case letter, then letters, digits or _
            "/{id}/" -> ! a path with parameters does not end in a slash
            "{id}" -> ! a path begins with a slash
        "#]].assert_eq(&outcome);
    }

    #[test]
    fn paths_are_bounded() {
        let path = |bytes: usize| format!("/{}", "a".repeat(bytes - 1)).parse::<PathPattern>();
        assert!(path(1024).is_ok());
        assert_eq!(path(1025), Err("a path has at most 1024 bytes".to_owned()));
    }

    fn path(text: &str) -> PathPattern {
        text.parse().expect("a path")
    }

    #[test]
    fn parameters_of_other_names_take_the_same_paths() {
        assert!(path("/u/{id}/*").same_paths(&path("/u/{name}/*")));
        assert!(!path("/u/{id}/*").same_paths(&path("/u/{id}")));
        assert!(!path("/u/{id}").same_paths(&path("/{id}/u")));
        assert!(path("/a/*").same_paths(&path("/a/*")));
        assert!(!path("/a/*").same_paths(&path("/a")));
    }

    #[test]
    fn a_prefix_is_made_of_whole_segments() {
        for (text, prefix, begins) in [
            ("/api/events/*", "/api", true),
            ("/api/events/*", "/api/events", true),
            ("/api/events/*", "/api/ev", false),
            ("/api/events/*", "/api/events/x", false),
            ("/api/{id}/x", "/api", true),
            ("/api/{id}/x", "/api/x", false),
            ("/*", "/api", false),
        ] {
            assert_eq!(path(text).begins_with(prefix), begins, "{text} {prefix}");
        }
    }

    #[test]
    fn rewrites_name_what_the_path_has() {
        let pattern = path("/users/{id}/*");
        for (rewrite, wrong) in [
            ("/v2/{id}/{rest}", None),
            ("/v2", None),
            ("/v2/x{id}", Some("{id} is a whole segment, with a slash or the end on both sides")),
            ("/{name}", Some("the path has no {name}; it has {id}, {rest}")),
            ("/{id", Some("a { has no }")),
            ("/id}", Some("this byte does not stand in a path; percent-encode it, as in %20")),
            ("{id}", Some("{id} is a whole segment, with a slash or the end on both sides")),
            ("v2/{id}", Some("a path begins with a slash")),
        ] {
            assert_eq!(check_rewrite(rewrite, &pattern).err().as_deref(), wrong, "{rewrite}");
        }
        assert_eq!(check_rewrite("/{id}", &path("/x")).err().as_deref(), Some("the path has no {id}; it has none"));
    }
}

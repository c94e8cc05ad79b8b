//! The normal form of a path, so that the router and the backend see the same one (RFC 3986 §6.2.2).

use std::borrow::Cow;

/// A path in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Normal<'p> {
    /// The path: dot segments resolved, slashes merged, needless escapes undone, escapes in upper case.
    pub(super) path: Cow<'p, [u8]>,
    /// It holds `%2F` or `%5C`: a backend may see other segments than the router did.
    pub(super) has_encoded_slash: bool,
}

/// Why a path has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PathError {
    /// It does not begin with a slash.
    #[error("the path does not begin with a slash")]
    Relative,
    /// A `%` without two hexadecimal digits behind it.
    #[error("the path has an incomplete percent-escape")]
    Escape,
    /// `%00` or another control character, escaped.
    #[error("the path has an escaped control character")]
    Control,
    /// `..` above the root.
    #[error("the path climbs above its root")]
    AboveRoot,
    /// `..;x` or `.;x`: a backend that cuts parameters off (servlet containers do) would resolve what the router took
    /// for a name.
    #[error("the path has a dot segment with a parameter")]
    DotParameter,
}

impl PathError {
    /// The sentence for the client.
    pub(super) const fn detail(self) -> &'static str {
        match self {
            Self::Relative => "the path does not begin with a slash",
            Self::Escape => "the path has an incomplete percent-escape",
            Self::Control => "the path has an escaped control character",
            Self::AboveRoot => "the path climbs above its root",
            Self::DotParameter => "the path has a dot segment with a parameter",
        }
    }
}

/// Brings a path into normal form. An empty one is `/`. Nothing is copied when it is in normal form already.
pub(super) fn normalise(path: &[u8]) -> Result<Normal<'_>, PathError> {
    if path.is_empty() {
        return Ok(Normal { path: Cow::Borrowed(b"/"), has_encoded_slash: false });
    }
    if path[0] != b'/' {
        return Err(PathError::Relative);
    }
    if is_plain(path) {
        return Ok(Normal { path: Cow::Borrowed(path), has_encoded_slash: false });
    }
    let (unescaped, has_encoded_slash) = unescape(path)?;
    Ok(Normal { path: Cow::Owned(resolve_dots(&unescaped)?), has_encoded_slash })
}

/// Whether there is nothing to do: no escape, no empty segment, no segment that begins with a dot.
fn is_plain(path: &[u8]) -> bool {
    let mut previous = 0;
    path.iter().all(|&byte| {
        let is_plain = byte != b'%' && !(previous == b'/' && matches!(byte, b'/' | b'.'));
        previous = byte;
        is_plain
    })
}

/// Undoes escapes of unreserved characters and writes the others in upper case.
fn unescape(path: &[u8]) -> Result<(Vec<u8>, bool), PathError> {
    let mut out = Vec::with_capacity(path.len());
    let mut has_encoded_slash = false;
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        if *byte != b'%' {
            out.push(*byte);
            rest = tail;
            continue;
        }
        let [high, low, tail @ ..] = tail else { return Err(PathError::Escape) };
        let digit = |digit: &u8| char::from(*digit).to_digit(16).ok_or(PathError::Escape);
        let value = u8::try_from(digit(high)? * 16 + digit(low)?).map_err(|_| PathError::Escape)?;
        match value {
            0..=0x1f | 0x7f => return Err(PathError::Control),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(value),
            _ => {
                has_encoded_slash |= matches!(value, b'/' | b'\\');
                out.extend_from_slice(&[b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]);
            }
        }
        rest = tail;
    }
    Ok((out, has_encoded_slash))
}

/// Resolves `.` and `..` and merges slashes (RFC 3986 §5.2.4, but refusing to climb above the root).
fn resolve_dots(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"" | b"." => {}
            b".." => {
                let parent = out.iter().rposition(|byte| *byte == b'/').ok_or(PathError::AboveRoot)?;
                out.truncate(parent);
            }
            _ if is_dot_with_parameter(segment) => return Err(PathError::DotParameter),
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        // What ended in a slash, or in a dot segment, still does.
        if is_last {
            out.push(b'/');
        }
    }
    Ok(out)
}

/// Whether a segment is `.` or `..` for whoever cuts off what begins at a `;`, escaped or not (RFC 3986 §3.3).
fn is_dot_with_parameter(segment: &[u8]) -> bool {
    let behind = segment.strip_prefix(b"..").or_else(|| segment.strip_prefix(b"."));
    behind.is_some_and(|behind| behind.starts_with(b";") || behind.starts_with(b"%3B"))
}

/// The path as a backend has it that cuts parameters off its segments (RFC 3986 §3.3; servlet containers do), and drops
/// those that were nothing else; none if there are none. The path is in normal form.
pub(super) fn without_parameters(path: &[u8]) -> Option<Vec<u8>> {
    let parameters = |segment: &[u8]| {
        let plain = segment.iter().position(|byte| *byte == b';');
        let escaped = segment.windows(3).position(|escape| escape == b"%3B");
        plain.into_iter().chain(escaped).min()
    };
    parameters(path)?;
    let mut out = Vec::with_capacity(path.len());
    for segment in path[1..].split(|byte| *byte == b'/') {
        let name = &segment[..parameters(segment).unwrap_or(segment.len())];
        if !name.is_empty() || segment.is_empty() {
            out.push(b'/');
            out.extend_from_slice(name);
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_have_one_normal_form() {
        for (path, normal) in [
            ("", "/"),
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//a///b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/.", "/"),
            ("/a/%2e%2e/b", "/b"),
            ("/a/%2E./b", "/b"),
            ("/%61pi", "/api"),
            ("/a%3ab", "/a%3Ab"),
            ("/a/.hidden", "/a/.hidden"),
            ("/a/...", "/a/..."),
            ("/a%252e", "/a%252e"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/a/.hidden;v=1", "/a/.hidden;v=1"),
            ("/a/...;v=1", "/a/...;v=1"),
            ("/a/;..;/b", "/a/;..;/b"),
        ] {
            let found = normalise(path.as_bytes()).unwrap();
            assert_eq!(String::from_utf8_lossy(&found.path), normal, "{path}");
            assert!(!found.has_encoded_slash, "{path}");
        }
    }

    #[test]
    fn parameters_are_cut_off_as_some_backends_do() {
        for (path, bare) in [
            ("/", None),
            ("/a/b%3A", None),
            ("/a;x/b", Some("/a/b")),
            ("/a%3Bx/b", Some("/a/b")),
            ("/a%3Bx;y", Some("/a")),
            ("/a;/b/", Some("/a/b/")),
            ("/;x/a", Some("/a")),
            ("/a/;x", Some("/a")),
            ("/;x", Some("/")),
        ] {
            let found = without_parameters(path.as_bytes()).map(|bare| String::from_utf8(bare).expect("ASCII"));
            assert_eq!(found.as_deref(), bare, "{path}");
        }
    }

    #[test]
    fn what_has_none_is_refused() {
        for (path, error) in [
            ("a", PathError::Relative),
            ("*", PathError::Relative),
            ("/..", PathError::AboveRoot),
            ("/a/../../b", PathError::AboveRoot),
            ("/%2e%2e/", PathError::AboveRoot),
            ("/a/..;/b", PathError::DotParameter),
            ("/a/..;v=1", PathError::DotParameter),
            ("/a/.;/b", PathError::DotParameter),
            ("/a/%2e%2E;/b", PathError::DotParameter),
            ("/a/..%3b/b", PathError::DotParameter),
            ("/%", PathError::Escape),
            ("/%a", PathError::Escape),
            ("/%zz", PathError::Escape),
            ("/%00", PathError::Control),
            ("/a%0d%0ab", PathError::Control),
            ("/%7f", PathError::Control),
        ] {
            assert_eq!(normalise(path.as_bytes()), Err(error), "{path}");
        }
    }

    #[test]
    fn encoded_slashes_are_kept_and_told() {
        for path in ["/a%2fb", "/a%2Fb", "/a%5cb"] {
            let found = normalise(path.as_bytes()).unwrap();
            assert_eq!(found.path, path.to_ascii_uppercase().replace("/A", "/a").replace('B', "b").as_bytes());
            assert!(found.has_encoded_slash);
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_is_stable(path in "/[a-c./%2e5CF;]{0,24}") {
            if let Ok(normal) = normalise(path.as_bytes()) {
                let again = normalise(&normal.path).unwrap();
                prop_assert_eq!(&again.path, &normal.path);
                prop_assert!(normal.path.starts_with(b"/"));
                let text = String::from_utf8_lossy(&normal.path).into_owned();
                prop_assert!(!text.split('/').any(|segment| segment == ".." || segment == "."), "{}", text);
                let name = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
                prop_assert!(!text.split('/').any(|segment| matches!(&*name(segment), "." | "..")), "{}", text);
                prop_assert!(!text.contains("//"), "{}", text);
            }
        }

        #[test]
        fn no_path_panics(path in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = normalise(&path);
        }
    }
}

//! The normal form of a path, so that the router and the backend see the same one (RFC 3986 §6.2.2). What services make of
//! it that do more is for `readings`.

use std::borrow::Cow;

use super::readings::stands_for_itself;

/// A path in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Normal<'p> {
    /// The path: dot segments resolved, slashes merged, needless escapes undone, escapes in upper case.
    pub(super) path: Cow<'p, [u8]>,
    /// It holds `%2F` or `%5C`.
    pub(super) has_encoded_slash: bool,
    /// Nobody reads it as another path: all that it holds stands for itself, and escapes are of bytes that cannot.
    pub(super) is_plain: bool,
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
}

impl PathError {
    /// The sentence for the client.
    pub(super) const fn detail(self) -> &'static str {
        match self {
            Self::Relative => "the path does not begin with a slash",
            Self::Escape => "the path has an incomplete percent-escape",
            Self::Control => "the path has an escaped control character",
            Self::AboveRoot => "the path climbs above its root",
        }
    }
}

/// Brings a path into normal form. An empty one is `/`. Nothing is copied when it is in normal form already.
pub(super) fn normalise(path: &[u8]) -> Result<Normal<'_>, PathError> {
    if path.is_empty() {
        return Ok(Normal { path: Cow::Borrowed(b"/"), has_encoded_slash: false, is_plain: true });
    }
    if path[0] != b'/' {
        return Err(PathError::Relative);
    }
    let (is_normal, is_plain) = survey(path);
    if is_normal {
        return Ok(Normal { path: Cow::Borrowed(path), has_encoded_slash: false, is_plain });
    }
    let (unescaped, escapes) = unescape(path)?;
    let path = resolve_dots(&unescaped, true)?;
    // What stands for itself may have gone with a dot segment; then it is looked at for nothing.
    let is_plain = is_plain && escapes == Escapes::default();
    Ok(Normal { path: Cow::Owned(path), has_encoded_slash: escapes.has_slash, is_plain })
}

/// The same with doubled slashes kept, if there are any; `merged` is the normal form. `None` also where dot segments among
/// them make it another path: merging the slashes of what is returned always gives the normal form.
pub(super) fn with_doubled_slashes(path: &[u8], merged: &[u8]) -> Option<Vec<u8>> {
    if path.is_empty() {
        return None;
    }
    let kept = resolve_dots(&unescape(path).ok()?.0, false).ok()?;
    (kept != merged && merge_slashes(&kept) == merged).then_some(kept)
}

/// Makes one slash of several.
fn merge_slashes(path: &[u8]) -> Vec<u8> {
    let mut merged = path.to_vec();
    merged.dedup_by(|byte, before| *byte == b'/' && *before == b'/');
    merged
}

/// Whether there is nothing to do (no escape, no empty segment, no segment that begins with a dot), and whether every
/// byte but escapes stands for itself and begins nothing.
fn survey(path: &[u8]) -> (bool, bool) {
    let mut previous = 0;
    let (mut is_normal, mut is_plain) = (true, true);
    for &byte in path {
        is_normal &= byte != b'%' && !(previous == b'/' && matches!(byte, b'/' | b'.'));
        is_plain &= PLAIN[usize::from(byte)];
        previous = byte;
    }
    (is_normal, is_plain)
}

/// What stands for itself in a path, to every service; an escape is looked at when it is read.
static PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = (stands_for_itself(byte) && byte != b';') || byte == b'%';
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// Which of the escapes that stay may be undone by a service, for another path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Escapes {
    /// `%2F` or `%5C`.
    has_slash: bool,
    /// One of what may stand plain, of what begins a parameter, a query or a fragment, or of `%` itself.
    has_other: bool,
}

/// Undoes escapes of unreserved characters and writes the others in upper case.
fn unescape(path: &[u8]) -> Result<(Vec<u8>, Escapes), PathError> {
    let mut out = Vec::with_capacity(path.len());
    let mut escapes = Escapes::default();
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
                escapes.has_slash |= matches!(value, b'/' | b'\\');
                escapes.has_other |= stands_for_itself(value) || matches!(value, b'?' | b'#' | b'%');
                out.extend_from_slice(&[b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]);
            }
        }
        rest = tail;
    }
    Ok((out, escapes))
}

/// Resolves `.` and `..`, and merges slashes where that is wanted (RFC 3986 §5.2.4, but refusing to climb above the root).
fn resolve_dots(path: &[u8], merges_slashes: bool) -> Result<Vec<u8>, PathError> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"" if !merges_slashes && !is_last => out.push(b'/'),
            b"" | b"." => {}
            b".." => {
                let parent = out.iter().rposition(|byte| *byte == b'/').ok_or(PathError::AboveRoot)?;
                out.truncate(parent);
            }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::router::Router, *};
    use crate::proto::head::Method;

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
    fn what_has_none_is_refused() {
        for (path, error) in [
            ("a", PathError::Relative),
            ("*", PathError::Relative),
            ("/..", PathError::AboveRoot),
            ("/a/../../b", PathError::AboveRoot),
            ("/%2e%2e/", PathError::AboveRoot),
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

    #[test]
    fn doubled_slashes_are_kept_where_merging_them_gives_the_normal_form() {
        for (path, kept) in [
            ("", None),
            ("/", None),
            ("/a/b", None),
            ("/a/./b", None),
            ("/a//b", Some("/a//b")),
            ("//a", Some("//a")),
            ("/a//", Some("/a//")),
            ("/a///b/./c", Some("/a///b/c")),
            ("/p/https://a.test/b%2f", Some("/p/https://a.test/b%2F")),
            ("/p/https://%61.test/x/../y", Some("/p/https://a.test/y")),
            // `..` takes an empty segment or the one before, as one counts.
            ("/a/b//../c", None),
            ("/a/b//../..", None),
        ] {
            let merged = normalise(path.as_bytes()).unwrap().path.into_owned();
            let found = with_doubled_slashes(path.as_bytes(), &merged).map(|kept| String::from_utf8(kept).unwrap());
            assert_eq!(found.as_deref(), kept, "{path}");
        }
    }

    /// Every path between two: some slashes merged, others not.
    fn partly_merged(path: &[u8]) -> Vec<Vec<u8>> {
        let doubled: Vec<usize> =
            (1..path.len()).filter(|at| path[*at] == b'/' && path[*at - 1] == b'/').take(6).collect();
        let without = |set: usize| {
            let is_kept = |at: &usize| !doubled.iter().enumerate().any(|(n, place)| place == at && set >> n & 1 == 1);
            (0..path.len()).filter(is_kept).map(|at| path[at]).collect()
        };
        (0..1_usize << doubled.len()).map(without).collect()
    }

    proptest! {
        /// Whatever a backend makes of doubled slashes, it sees a path that leads to the route whose guards the request
        /// passed.
        #[test]
        fn doubled_slashes_lead_past_no_route(
            routes in proptest::collection::vec(("(/(a|b|\\{x\\}|\\{y\\}b?)){0,3}", any::<bool>(), any::<bool>()), 1..6),
            path in "(/|/a|/b|/a|/b|/[.]|/[.][.]){1,8}",
        ) {
            let mut router = Router::default();
            for (index, (route, is_prefix, has_method)) in routes.iter().enumerate() {
                let text = if *is_prefix || route.is_empty() { format!("{route}/*") } else { route.clone() };
                if let Ok(pattern) = text.parse() {
                    let methods: &[String] = if *has_method { &["GET".to_owned()] } else { &[] };
                    router.add(index, &[], &pattern, methods);
                }
            }
            let find = |path: &[u8]| router.find(b"a", path, Method::Get, b"GET").ok().map(|found| found.route);
            let Ok(normal) = normalise(path.as_bytes()) else { return Ok(()) };
            let Some(kept) = with_doubled_slashes(path.as_bytes(), &normal.path) else { return Ok(()) };
            prop_assert_eq!(&merge_slashes(&kept), &*normal.path);
            let route = find(&normal.path);
            if route.is_some() && find(&kept) == route {
                for seen in partly_merged(&kept) {
                    prop_assert_eq!(find(&seen), route, "{} of {}", seen.escape_ascii(), path);
                }
            }
        }

        #[test]
        fn the_normal_form_is_stable(path in "/[a-c./%2e5CF;]{0,24}") {
            if let Ok(normal) = normalise(path.as_bytes()) {
                let again = normalise(&normal.path).unwrap();
                prop_assert_eq!(&again.path, &normal.path);
                prop_assert!(normal.path.starts_with(b"/"));
                let text = String::from_utf8_lossy(&normal.path).into_owned();
                prop_assert!(!text.split('/').any(|segment| segment == ".." || segment == "."), "{}", text);
                prop_assert!(!text.contains("//"), "{}", text);
            }
        }

        #[test]
        fn no_path_panics(path in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = normalise(&path);
        }
    }
}

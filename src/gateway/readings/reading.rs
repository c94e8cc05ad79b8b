//! One reading of a path: what a service makes of it, step by step.
//!
//! Everything is text: an escape that is not undone, or that stands for a byte which a configured path cannot have plain,
//! stays three characters. So what comes out can be compared with the paths of routes.

use std::fmt;

/// What a service does to a path, in the order in which it does it. None of it is a reading too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) cut: ParameterCut,
    pub(super) unescape: Unescape,
    /// What follows an escaped `?` or `#` is no part of the path.
    pub(super) ends_at_question: bool,
    /// `\` is a slash.
    pub(super) backslash: bool,
    pub(super) shape: Shape,
}

/// When what follows a semicolon is cut off a segment (RFC 3986 §3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ParameterCut {
    #[default]
    Never,
    /// Before escapes are undone, as servlet containers do.
    Before,
    /// After that, as those do that stand behind a proxy which undoes escapes.
    After,
}

/// Which escapes are undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Unescape {
    #[default]
    None,
    /// All but `%2F`.
    NoSlash,
    All,
}

/// What becomes of empty segments and of dots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shape {
    /// They stay.
    #[default]
    AsIs,
    /// Slashes are merged, dot segments resolved.
    Merged,
    /// Dot segments are resolved, and `..` takes an empty segment for one.
    Resolved,
    /// As `Merged`, once a host was cut off: two slashes in front begin a host in a URL (RFC 3986 §4.2).
    Url,
}

/// Why there is no path left to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// `..` above the root. Some services stop there, and others go on.
    AboveRoot,
    /// `..;x` or `.;x`.
    DotParameter,
}

/// What one service makes of a path, or a second one of what the first has made of it and passes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) first: Option<Reading>,
    pub(super) last: Reading,
}

impl Chain {
    /// The path as the last one reads it.
    pub(super) fn of(self, path: &[u8]) -> Result<Vec<u8>, Unreadable> {
        match self.first {
            None => self.last.of(path),
            Some(first) => self.last.of(&first.text(path)?),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first {
            None => self.last.fmt(f),
            Some(first) => write!(f, "{first}, and again {}", self.last),
        }
    }
}

impl Reading {
    /// The path as it is read.
    pub(super) fn of(self, path: &[u8]) -> Result<Vec<u8>, Unreadable> {
        Ok(encode(&self.text(path)?))
    }

    /// The same as a service has it, and may pass it on: escapes that were undone are plain.
    pub(super) fn text(self, path: &[u8]) -> Result<Vec<u8>, Unreadable> {
        let text = self.spelled(path)?;
        match self.shape {
            Shape::AsIs => Ok(text),
            Shape::Merged => resolve(&text, true),
            Shape::Resolved => resolve(&text, false),
            Shape::Url => resolve(without_host(&text), true),
        }
    }

    /// What it is before dots are resolved.
    pub(super) fn spelled(self, path: &[u8]) -> Result<Vec<u8>, Unreadable> {
        let mut text = if self.cut == ParameterCut::Before { without_parameters(path)? } else { path.to_vec() };
        if self.unescape != Unescape::None {
            text = undo(&text, self.unescape == Unescape::All);
        }
        if self.cut == ParameterCut::After {
            text = without_parameters(&text)?;
        }
        if self.ends_at_question {
            let end = text.iter().position(|byte| matches!(byte, b'?' | b'#'));
            text.truncate(end.unwrap_or(text.len()));
        }
        if self.backslash {
            text.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
        }
        Ok(text)
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = "without what follows semicolons";
        let steps = [
            if self.cut == ParameterCut::Before { cut } else { "" },
            match self.unescape {
                Unescape::None => "",
                Unescape::NoSlash => "escapes but %2F undone",
                Unescape::All => "escapes undone",
            },
            if self.cut == ParameterCut::After { cut } else { "" },
            if self.ends_at_question { "cut at a question mark" } else { "" },
            if self.backslash { "backslashes as slashes" } else { "" },
            match self.shape {
                Shape::AsIs => "",
                Shape::Merged => "slashes merged and dots resolved",
                Shape::Resolved => "dots resolved",
                Shape::Url => "without a host in front",
            },
        ];
        let mut steps = steps.into_iter().filter(|step| !step.is_empty());
        f.write_str(steps.next().unwrap_or("as it is"))?;
        steps.try_for_each(|step| write!(f, ", {step}"))
    }
}

/// Whether a byte stands in configured paths as itself. Only a star does not, of those that may (RFC 3986 §3.3).
pub(in crate::gateway) const fn stands_for_itself(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@')
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'+' | b',' | b';' | b'=')
}

/// Undoes the escapes of what may stand plain, of what means something, and of the `%` of an escape: `%252F` is `%2F` for
/// who comes behind. A `%` that begins none is left as it is written.
fn undo(text: &[u8], slashes: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match if *byte == b'%' { escaped(rest) } else { None } {
            Some(b'/') if !slashes => out.push(b'%'),
            Some(value)
                if stands_for_itself(value)
                    || matches!(value, b'\\' | b'?' | b'#')
                    || (value == b'%' && escaped(&rest[2..]).is_some()) =>
            {
                out.push(value);
                rest = &rest[2..];
            }
            _ => out.push(*byte),
        }
    }
    out
}

/// The byte of the two digits that stand in front.
fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// Back to what a configured path has plain, and nothing else.
fn encode(text: &[u8]) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if stands_for_itself(*byte) || *byte == b'%' {
            out.push(*byte);
        } else {
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0x0f)]]);
        }
    }
    out
}

/// Cuts off what follows the first semicolon of each segment. A segment that was `.` or `..` but for that is none that
/// anybody needs.
fn without_parameters(text: &[u8]) -> Result<Vec<u8>, Unreadable> {
    let mut out = Vec::with_capacity(text.len());
    for segment in text.strip_prefix(b"/").unwrap_or(text).split(|byte| *byte == b'/') {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        if name.len() < segment.len() && matches!(name, b"." | b"..") {
            return Err(Unreadable::DotParameter);
        }
        out.push(b'/');
        out.extend_from_slice(name);
    }
    Ok(out)
}

/// Further slashes are no part of the host (WHATWG URL, "special authority ignore slashes state").
fn without_host(text: &[u8]) -> &[u8] {
    if !text.starts_with(b"//") {
        return text;
    }
    let host = text.iter().position(|byte| *byte != b'/').unwrap_or(text.len());
    let end = text[host..].iter().position(|byte| *byte == b'/').map_or(text.len(), |slash| host + slash);
    &text[end..]
}

/// Resolves `.` and `..` (RFC 3986 §5.2.4, but refusing to climb above the root), and merges slashes or keeps them.
fn resolve(text: &[u8], merge: bool) -> Result<Vec<u8>, Unreadable> {
    let mut out: Vec<u8> = Vec::with_capacity(text.len());
    let mut segments = text.strip_prefix(b"/").unwrap_or(text).split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            b"" if merge => {}
            b"." => {}
            b".." => {
                let parent = out.iter().rposition(|byte| *byte == b'/').ok_or(Unreadable::AboveRoot)?;
                out.truncate(parent);
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        // What ended in a slash, or in a dot segment, still does.
        if segments.peek().is_none() {
            out.push(b'/');
        }
    }
    Ok(out)
}

/// Whether every shape of it is the same: no empty segment but a last one, and no dots.
pub(super) fn has_one_shape(text: &[u8]) -> bool {
    let mut segments = text.strip_prefix(b"/").unwrap_or(text).split(|byte| *byte == b'/').peekable();
    std::iter::from_fn(|| segments.next().map(|segment| (segment, segments.peek().is_none())))
        .all(|(segment, is_last)| !matches!(segment, b"." | b"..") && (is_last || !segment.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reading: Reading, path: &str) -> String {
        match reading.of(path.as_bytes()) {
            Ok(text) => String::from_utf8(text).expect("ASCII"),
            Err(unreadable) => format!("{unreadable:?}"),
        }
    }

    /// What known services do: nginx, node and Python as the journeys see them, the others by their documents.
    #[test]
    fn services_are_readings() {
        let nginx = Reading { unescape: Unescape::All, shape: Shape::Merged, ..Reading::default() };
        let nginx_unmerged = Reading { shape: Shape::Resolved, ..nginx };
        let wsgi = Reading { shape: Shape::AsIs, ..nginx };
        let tomcat = Reading { cut: ParameterCut::Before, backslash: true, ..nginx };
        let jetty = Reading { cut: ParameterCut::Before, shape: Shape::Resolved, ..nginx };
        let kestrel = Reading { unescape: Unescape::NoSlash, backslash: true, ..nginx };
        let url = Reading { unescape: Unescape::All, backslash: true, shape: Shape::Url, ..nginx };
        let filter_then_tomcat = Reading { cut: ParameterCut::After, ..nginx };
        let fcgi = Reading { ends_at_question: true, ..nginx };

        for (name, reading, path, seen) in [
            ("nginx", nginx, "/enc/..%2Fadmin/x", "/admin/x"),
            ("nginx", nginx, "/enc/a%2F..%2F..%2Fadmin/x", "/admin/x"),
            ("nginx", nginx, "/enc/.%2F..%2Fadmin/x", "/admin/x"),
            ("nginx", nginx, "/enc/%2F..%2F..%2Fadmin/x", "AboveRoot"),
            ("nginx", nginx, "/enc/..%5Cadmin/x", "/enc/..%5Cadmin/x"),
            ("nginx", nginx, "/%2Fadmin%2Fx", "/admin/x"),
            ("nginx", nginx, "/enc/..%252Fadmin", "/enc/..%2Fadmin"),
            ("nginx", nginx, "/%40me%20a%C3%A4/%5Bx%5D*", "/@me%20a%C3%A4/%5Bx%5D%2A"),
            ("nginx", nginx, "/[x]/a%3Fb", "/%5Bx%5D/a%3Fb"),
            ("nginx, slashes kept", nginx_unmerged, "/enc/%2F..%2F..%2Fadmin/x", "/admin/x"),
            ("nginx, slashes kept", nginx_unmerged, "/%2Fadmin", "//admin"),
            ("WSGI", wsgi, "/enc/..%2Fadmin%2F", "/enc/../admin/"),
            ("Tomcat", tomcat, "/api;x%2Fy/a%3Bb/..%5Cc", "/api/c"),
            ("Tomcat", tomcat, "/a/..;/b", "DotParameter"),
            ("Tomcat", tomcat, "/a/.;x", "DotParameter"),
            ("Tomcat", tomcat, "/;x/a", "/a"),
            ("Jetty", jetty, "/;x/a", "//a"),
            ("Jetty", jetty, "/a/;x", "/a/"),
            ("Kestrel", kestrel, "/a%2F..%5Cb/..%5C%40c", "/a%2F../@c"),
            ("new URL of what was decoded", url, "/%5C%5Cx/admin/y", "/admin/y"),
            ("new URL of what was decoded", url, "/%2Fx", "/"),
            ("new URL of what was decoded", url, "/enc/..%5Cadmin", "/admin"),
            ("Tomcat behind nginx", filter_then_tomcat, "/admin%3Bx/y", "/admin/y"),
            ("Tomcat behind nginx", filter_then_tomcat, "/a/..%3B/y", "DotParameter"),
            ("Apache's proxy:fcgi before 2.4.60", fcgi, "/admin.php%3Fx/y", "/admin.php"),
        ] {
            assert_eq!(read(reading, path), seen, "{name} of {path}");
        }
    }

    #[test]
    fn services_behind_services_are_chains() {
        let nginx = Reading { unescape: Unescape::All, shape: Shape::Merged, ..Reading::default() };
        let tomcat = Reading { cut: ParameterCut::Before, ..nginx };
        for (name, first, last, path, seen) in [
            ("nginx, nginx", nginx, nginx, "/enc/..%252Fadmin", "/admin"),
            ("nginx, nginx", nginx, nginx, "/enc/%252E%252e%252fadmin%2525", "/admin%25"),
            ("nginx, nginx", nginx, nginx, "/100%25", "/100%25"),
            // The first takes away `x%2Fy`, of which the second would have made two.
            ("nginx, nginx", nginx, nginx, "/enc/x%252Fy%2F..%2F%252E%252E%2Fadmin", "/admin"),
            // The first makes a parameter, and the second cuts it off with what it would have made a segment.
            ("nginx, Tomcat", nginx, tomcat, "/a/b%3B%252Fc/%252E%252E/%252E%252E/admin", "/admin"),
            ("nginx, Tomcat", nginx, tomcat, "/p/q/%2F;x%2F..%2F..%2Fadmin;y/z", "/p/admin/z"),
            ("Tomcat, Tomcat", tomcat, tomcat, "/a;%2F../admin%3Bx/y", "/a/admin/y"),
        ] {
            let chain = Chain { first: Some(first), last };
            assert_eq!(chain.of(path.as_bytes()).as_deref(), Ok(seen.as_bytes()), "{name} of {path}");
        }
    }

    #[test]
    fn readings_tell_their_steps() {
        let all = Reading {
            cut: ParameterCut::After,
            unescape: Unescape::All,
            ends_at_question: true,
            backslash: true,
            shape: Shape::Merged,
        };
        let told = "escapes undone, without what follows semicolons, cut at a question mark, backslashes as slashes, \
                    slashes merged and dots resolved";
        assert_eq!(all.to_string(), told);
        assert_eq!(Reading::default().to_string(), "as it is");
        let undone = Reading { unescape: Unescape::All, ..Reading::default() };
        let chain = Chain { first: Some(undone), last: undone };
        assert_eq!(chain.to_string(), "escapes undone, and again escapes undone");
    }
}

//! One reading of a path: what a service makes of it, step by step.
//!
//! Everything is text: an escape that is not undone, or that stands for a byte which a configured path cannot have plain,
//! stays three characters. So what comes out can be compared with the paths of routes.

use std::fmt;

/// What a service does to a path, in the order in which it does it. None of it is a reading too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) cut: Cut,
    pub(super) unescape: Unescape,
    /// What follows an escaped `?` or `#` is no part of the path.
    pub(super) ends_at_question: bool,
    /// `\` is a slash.
    pub(super) backslash: bool,
    pub(super) shape: Shape,
}

/// When what follows a semicolon is cut off a segment (RFC 3986 §3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cut {
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
    /// And what they stand for is undone once more.
    Twice,
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

impl Reading {
    /// The path as it is read.
    pub(super) fn of(self, path: &[u8]) -> Result<Vec<u8>, Unreadable> {
        let text = self.spelled(path)?;
        Ok(encode(&match self.shape {
            Shape::AsIs => text,
            Shape::Merged => resolve(&text, true)?,
            Shape::Resolved => resolve(&text, false)?,
            Shape::Url => resolve(without_host(&text), true)?,
        }))
    }

    /// What it is before dots are resolved.
    pub(super) fn spelled(self, path: &[u8]) -> Result<Vec<u8>, Unreadable> {
        let mut text = if self.cut == Cut::Before { without_parameters(path)? } else { path.to_vec() };
        text = unescape(&text, self.unescape);
        if self.cut == Cut::After {
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
            if self.cut == Cut::Before { cut } else { "" },
            match self.unescape {
                Unescape::None => "",
                Unescape::NoSlash => "escapes but %2F undone",
                Unescape::All => "escapes undone",
                Unescape::Twice => "escapes undone twice",
            },
            if self.cut == Cut::After { cut } else { "" },
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

fn unescape(text: &[u8], which: Unescape) -> Vec<u8> {
    let mut once = Vec::with_capacity(text.len());
    match which {
        Unescape::None => once.extend_from_slice(text),
        Unescape::NoSlash | Unescape::All => undo(text, which == Unescape::All, &mut once),
        Unescape::Twice => {
            let mut between = Vec::with_capacity(text.len());
            undo_percents(text, &mut between);
            undo(&between, true, &mut once);
        }
    }
    once
}

/// Undoes the escapes of what may stand plain, and of what means something.
fn undo(text: &[u8], slashes: bool, out: &mut Vec<u8>) {
    let mut rest = text;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match if *byte == b'%' { escaped(rest) } else { None } {
            Some(b'/') if !slashes => out.push(b'%'),
            Some(value) if stands_for_itself(value) || matches!(value, b'\\' | b'?' | b'#') => {
                out.push(value);
                rest = &rest[2..];
            }
            _ => out.push(*byte),
        }
    }
}

/// `%252F` is `%2F` for who looks twice.
fn undo_percents(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let [byte, tail @ ..] = rest {
        out.push(*byte);
        rest = match tail {
            [b'2', b'5', behind @ ..] if *byte == b'%' && escaped(behind).is_some() => behind,
            _ => tail,
        };
    }
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
        let tomcat = Reading { cut: Cut::Before, backslash: true, ..nginx };
        let jetty = Reading { cut: Cut::Before, shape: Shape::Resolved, ..nginx };
        let kestrel = Reading { unescape: Unescape::NoSlash, backslash: true, ..nginx };
        let url = Reading { unescape: Unescape::All, backslash: true, shape: Shape::Url, ..nginx };
        let filter_then_tomcat = Reading { cut: Cut::After, ..nginx };
        let fcgi = Reading { ends_at_question: true, ..nginx };
        let twice = Reading { unescape: Unescape::Twice, ..nginx };
        for (name, reading, path, seen) in [
            ("nginx", nginx, "/enc/..%2Fadmin/x", "/admin/x"),
            ("nginx", nginx, "/enc/a%2F..%2F..%2Fadmin/x", "/admin/x"),
            ("nginx", nginx, "/enc/.%2F..%2Fadmin/x", "/admin/x"),
            ("nginx", nginx, "/enc/%2F..%2F..%2Fadmin/x", "AboveRoot"),
            ("nginx", nginx, "/enc/..%5Cadmin/x", "/enc/..%5Cadmin/x"),
            ("nginx", nginx, "/%2Fadmin%2Fx", "/admin/x"),
            ("nginx", nginx, "/enc/..%252Fadmin", "/enc/..%252Fadmin"),
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
            ("whoever decodes twice", twice, "/enc/..%252Fadmin", "/admin"),
            ("whoever decodes twice", twice, "/enc/%252E%252e%252fadmin%2525", "/admin%25"),
            ("whoever decodes twice", twice, "/100%25", "/100%25"),
        ] {
            assert_eq!(read(reading, path), seen, "{name} of {path}");
        }
    }

    #[test]
    fn readings_tell_their_steps() {
        let all = Reading {
            cut: Cut::After,
            unescape: Unescape::Twice,
            ends_at_question: true,
            backslash: true,
            shape: Shape::Merged,
        };
        let told = "escapes undone twice, without what follows semicolons, cut at a question mark, backslashes as slashes, \
                    slashes merged and dots resolved";
        assert_eq!(all.to_string(), told);
        assert_eq!(Reading::default().to_string(), "as it is");
    }
}

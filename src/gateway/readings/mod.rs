//! The paths that a service may read where the gateway reads one, and whether each of them leads to the same route.
//!
//! The path that a service sees is in normal form; services differ in what they do to it:
//!
//! | service | cuts `;…` | undoes escapes | takes `\` for `/` | resolves dots |
//! | --- | --- | --- | --- | --- |
//! | nginx | no | all | no | afterwards, and merges slashes (or, as configured, does not) |
//! | Apache `AllowEncodedSlashes On` | no | all | on Windows | before and afterwards, and merges slashes |
//! | Apache `AllowEncodedSlashes NoDecode` | no | all but `%2F` | on Windows | before |
//! | Apache before 2.4.60, `proxy:fcgi` | no | all, and ends the path at `?` | no | – |
//! | Tomcat | before | all (`encodedSolidusHandling`: or not `%2F`) | as configured | afterwards, and merges slashes |
//! | Jetty | before | all | no | afterwards; `..` takes an empty segment for one |
//! | IIS, Kestrel | no | all but `%2F` | yes | afterwards |
//! | node: `normalize(decodeURIComponent(..))` (express.static) | no | all | on Windows | afterwards, and merges slashes |
//! | node: `new URL(decodeURIComponent(..))` | no | all | yes | afterwards; a host in front is cut off |
//! | Python: `normpath(unquote(..))` (http.server) | no | all | on Windows | afterwards, and merges slashes |
//! | Python's WSGI and ASGI, Ruby's Rack | no | all | no | never |
//! | Go: `net/http`, `path.Clean` | no | all | no | afterwards, and merges slashes |
//!
//! Every step is combined with every other, in each order in which services take them. Services stand behind each other
//! (nginx with `proxy_pass http://tomcat$uri` before Tomcat), so what one makes of a path is read in every way once more:
//! then `/` comes of `%252F`, and what the first resolves or cuts off is gone before the second begins. Three in a row are
//! not looked at. Letter case is not looked at, nor are spellings that decoders stopped to take: `%u002F`, overlong UTF-8.

mod reading;

pub(super) use reading::stands_for_itself;
use reading::{Chain, ParameterCut, Reading, Shape, Unescape, Unreadable, has_one_shape};

use std::collections::BTreeSet;

use super::{
    plan::{Piece, Rewrite},
    router::{Captures, NoRoute, Router},
};
use crate::proto::head::Method;

/// A path that could be read in more ways is refused: honest ones have a dozen, and of two services two dozen.
const READINGS_MAX: usize = 256;

/// So many bytes are read in all; a longer path may have fewer readings. 16 of 8 KiB take half a millisecond.
const READ_BYTES_MAX: usize = 128 * 1024;

/// A request that was routed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Routed<'r> {
    pub(super) router: &'r Router,
    pub(super) host: &'r [u8],
    /// In normal form.
    pub(super) path: &'r [u8],
    pub(super) method: Method,
    pub(super) method_text: &'r [u8],
    /// Where it leads.
    pub(super) route: usize,
    pub(super) captures: &'r Captures,
    /// What becomes of the path before the service sees it.
    pub(super) rewrite: &'r Rewrite,
}

/// A way to read a request for which it is not the same request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OtherReading {
    /// The path leads to this route, or to none.
    Elsewhere { reading: String, route: Option<usize> },
    /// The path climbs above its root.
    AboveRoot { reading: String },
    /// A segment is `.` or `..` once what follows its semicolon is cut off.
    DotParameter,
    /// There are more ways than are looked at.
    TooMany,
    /// The method in capitals has another route.
    Method { route: Option<usize> },
}

impl OtherReading {
    /// The sentence for the client.
    pub(super) const fn detail(&self) -> &'static str {
        match self {
            Self::Elsewhere { .. } => "the path leads elsewhere in a spelling that services take for the same",
            Self::AboveRoot { .. } => "the path climbs above its root once its escapes are undone",
            Self::DotParameter => "the path has a dot segment with a parameter",
            Self::TooMany => "the path can be read in too many ways",
            Self::Method { .. } => "the method leads elsewhere in capitals, which services take for the same",
        }
    }

    /// What the log says; routes have names.
    pub(super) fn cause<'n>(&self, name: &dyn Fn(usize) -> &'n str) -> String {
        let to = |route: Option<usize>| route.map_or("no route of this one", name);
        match self {
            Self::Elsewhere { reading, route } => format!("read {reading}, the path leads to {}", to(*route)),
            Self::AboveRoot { reading } => format!("read {reading}, the path climbs above its root"),
            Self::DotParameter | Self::TooMany => self.detail().to_owned(),
            Self::Method { route } => format!("in capitals the method leads to {}", to(*route)),
        }
    }
}

/// Looks for a reading that leads elsewhere. For a path that has a sign of one, and for methods that are not well known.
pub(super) fn check(routed: &Routed<'_>, is_plain: bool) -> Result<(), OtherReading> {
    if routed.method == Method::Other {
        routed.check_method()?;
    }
    if is_plain { Ok(()) } else { routed.check_path() }
}

impl Routed<'_> {
    /// Werkzeug, for one, takes `get` for `GET`.
    fn check_method(&self) -> Result<(), OtherReading> {
        if !self.method_text.iter().any(u8::is_ascii_lowercase) {
            return Ok(());
        }
        let capitals = self.method_text.to_ascii_uppercase();
        let found = self.router.find(self.host, self.path, Method::of(&capitals), &capitals);
        match found.ok().map(|found| found.route) {
            Some(route) if route == self.route => Ok(()),
            route => Err(OtherReading::Method { route }),
        }
    }

    fn check_path(&self) -> Result<(), OtherReading> {
        let sent = self.sent(self.path, self.captures);
        let mut count = 0;
        let mut known = BTreeSet::new();
        each_chain(&sent, |chain, seen| {
            count += 1;
            let is_bounded = count <= READINGS_MAX && (count <= 4 || count * sent.len() <= READ_BYTES_MAX);
            if !is_bounded {
                return Err(OtherReading::TooMany);
            }
            let seen = readable(chain, seen)?;
            // Rewritten by a template, another reading of what was asked may lead to the same.
            if !matches!(self.rewrite, Rewrite::Template(_)) && !known.insert(seen.clone()) {
                return Ok(());
            }
            self.check_reading(chain, &seen)
        })
    }

    fn check_reading(&self, chain: Chain, seen: &[u8]) -> Result<(), OtherReading> {
        // The path that a client would ask for to have the service see just that.
        let asked = match self.rewrite {
            Rewrite::Keep => seen.to_vec(),
            Rewrite::Strip(prefix) => [self.path.get(..*prefix).unwrap_or_default(), seen].concat(),
            Rewrite::Template(_) => readable(chain, chain.of(self.path))?,
        };
        let captures = self.lead_here(chain, &asked)?;
        if matches!(self.rewrite, Rewrite::Template(_)) && self.sent(&asked, &captures) != seen {
            return Err(OtherReading::Elsewhere { reading: chain.to_string(), route: None });
        }
        // Some leave no slash where a dot segment, or one that was a parameter only, was the last.
        match asked.strip_suffix(b"/") {
            Some(bare) if !bare.is_empty() && !self.path.ends_with(b"/") => self.lead_here(chain, bare).map(|_| ()),
            _ => Ok(()),
        }
    }

    fn lead_here(&self, reading: Chain, path: &[u8]) -> Result<Captures, OtherReading> {
        match self.router.find(self.host, path, self.method, self.method_text) {
            Ok(found) if found.route == self.route => Ok(found.captures),
            Ok(found) => Err(OtherReading::Elsewhere { reading: reading.to_string(), route: Some(found.route) }),
            Err(NoRoute::NotFound) if self.stays_below(path) => Ok(*self.captures),
            Err(NoRoute::NotFound | NoRoute::Method(_)) => {
                Err(OtherReading::Elsewhere { reading: reading.to_string(), route: None })
            }
        }
    }

    /// Whether a path that no route takes, so that nothing guards it, begins as the route's own paths do: `/tags/` where
    /// `/tags/{tag}` was asked for `%23rust`, `/projects/a/b` where `/projects/{id}` may be asked for `a%2Fb`.
    fn stays_below(&self, path: &[u8]) -> bool {
        // What stands before the first parameter. A route without one takes its own path only, and nobody can say what a
        // template makes of a path that is not the route's.
        let literal = self.path.get(..self.captures.nth(0).start as usize).unwrap_or_default();
        let begins_so = path.starts_with(literal) || literal.strip_suffix(b"/") == Some(path);
        !literal.is_empty() && begins_so && !matches!(self.rewrite, Rewrite::Template(_))
    }

    /// The path that the service gets for a path of this route.
    fn sent(&self, path: &[u8], captures: &Captures) -> Vec<u8> {
        match self.rewrite {
            Rewrite::Keep => path.to_vec(),
            Rewrite::Strip(prefix) => match path.get(*prefix..) {
                None | Some([]) => b"/".to_vec(),
                Some(rest) => rest.to_vec(),
            },
            Rewrite::Template(pieces) => {
                let text = |piece: &Piece| match piece {
                    Piece::Text(text) => text.clone(),
                    Piece::Capture(n) => captures.nth(*n).of(path).to_vec(),
                };
                pieces.iter().flat_map(text).collect()
            }
        }
    }
}

fn readable(chain: Chain, seen: Result<Vec<u8>, Unreadable>) -> Result<Vec<u8>, OtherReading> {
    seen.map_err(|unreadable| match unreadable {
        Unreadable::AboveRoot => OtherReading::AboveRoot { reading: chain.to_string() },
        Unreadable::DotParameter => OtherReading::DotParameter,
    })
}

/// Every reading of a path, and every one of what those make of it that is not the path; each with what is seen so.
fn each_chain<E>(
    path: &[u8],
    mut visit: impl FnMut(Chain, Result<Vec<u8>, Unreadable>) -> Result<(), E>,
) -> Result<(), E> {
    let mut passed_on: Vec<(Reading, Vec<u8>)> = Vec::new();
    each(path, |last| {
        visit(Chain { first: None, last }, last.of(path))?;
        if let Ok(text) = last.text(path)
            && text != path
            && passed_on.iter().all(|(_, known)| *known != text)
        {
            passed_on.push((last, text));
        }
        Ok(())
    })?;
    for (first, text) in passed_on {
        each(&text, |last| {
            // What the first has read was looked at.
            if last == Reading::default() { Ok(()) } else { visit(Chain { first: Some(first), last }, last.of(&text)) }
        })?;
    }
    Ok(())
}

/// Every reading that makes something else of a path than it is, each once.
fn each<E>(path: &[u8], mut visit: impl FnMut(Reading) -> Result<(), E>) -> Result<(), E> {
    let has_escape = path.contains(&b'%');
    // A step that changes nothing is no reading of its own. What cannot be spelled is for the visitor to see.
    let spelled = |reading: Reading| reading.spelled(path);
    for cut in [ParameterCut::Never, ParameterCut::Before, ParameterCut::After] {
        let mut before = None;
        for unescape in [Unescape::None, Unescape::NoSlash, Unescape::All] {
            let with_cut = Reading { cut, unescape, ..Reading::default() };
            let uncut = spelled(Reading { cut: ParameterCut::Never, ..with_cut });
            let has_parameter = match cut {
                ParameterCut::Never => true,
                ParameterCut::Before => path.contains(&b';'),
                // Without escapes it makes no difference when it is done.
                ParameterCut::After => has_escape && uncut.is_ok_and(|text| text.contains(&b';')),
            };
            if !has_parameter {
                continue;
            }
            let Ok(text) = spelled(with_cut) else { return visit(with_cut) };
            if before.as_ref() == Some(&text) {
                continue;
            }
            let has_question = text.iter().any(|byte| matches!(byte, b'?' | b'#'));
            for ends_at_question in [false, true] {
                for backslash in [false, true] {
                    if (ends_at_question && !has_question) || (backslash && !text.contains(&b'\\')) {
                        continue;
                    }
                    each_shape(path, Reading { ends_at_question, backslash, ..with_cut }, &mut visit)?;
                }
            }
            before = Some(text);
        }
    }
    Ok(())
}

fn each_shape<E>(path: &[u8], reading: Reading, visit: &mut impl FnMut(Reading) -> Result<(), E>) -> Result<(), E> {
    let Ok(text) = reading.spelled(path) else { return visit(reading) };
    visit(reading)?;
    if has_one_shape(&text) {
        return Ok(());
    }
    visit(Reading { shape: Shape::Merged, ..reading })?;
    visit(Reading { shape: Shape::Resolved, ..reading })?;
    if text.starts_with(b"//") { visit(Reading { shape: Shape::Url, ..reading }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;

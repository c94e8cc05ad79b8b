//! Which route takes a request, and that nobody behind the gateway reads it as one of another: the path is brought into
//! normal form, looked up, and looked up once more in every way in which services read it.

use std::borrow::Cow;

use super::{
    Live, cors,
    pages::USUAL_METHODS,
    path,
    plan::{Rewrite, Target},
    readings::{self, Routed},
    router::{Found, NoRoute},
};
use crate::{
    exchange::{Code, Reject},
    proto::head::{Method, RequestHead, Span},
};

/// What was seen of a path while it was brought into normal form.
pub(super) struct Seen {
    /// The path as it was before.
    written: Span,
    has_encoded_slash: bool,
    is_plain: bool,
}

/// Brings the path into normal form, in place where it is already.
fn normalise_path(head: &mut RequestHead) -> Result<Seen, Reject> {
    let written = head.path;
    let normal =
        path::normalise(written.of(&head.bytes)).map_err(|error| Reject::because(Code::BadRequest, error.detail()))?;
    let seen = Seen { written, has_encoded_slash: normal.has_encoded_slash, is_plain: normal.is_plain };
    let changed = match normal.path {
        Cow::Borrowed(path) if !head.path.is_empty() => {
            debug_assert_eq!(path.len(), (head.path.end - head.path.start) as usize);
            None
        }
        path => Some(path.into_owned()),
    };
    if let Some(path) = changed {
        head.path = head.append(&[&path]);
    }
    Ok(seen)
}

impl Live {
    /// The route that takes a request, and what was seen of its path.
    pub(super) fn find_route(&self, head: &mut RequestHead) -> Result<(Found, Seen), Reject> {
        let mut path = normalise_path(head)?;
        let found = self.route(head)?;
        Ok((self.keep_slashes(head, &mut path, found), path))
    }

    /// The route that takes a request. A preflight asks about the request that is to follow, so it takes that one's.
    fn route(&self, head: &RequestHead) -> Result<Found, Reject> {
        let (host, path) = (head.text(head.authority), head.text(head.path));
        let router = &self.plan.router;
        if let Some(asked) = cors::asked_method(head).map(|asked| head.text(asked))
            && let Ok(found) = router.find(host, path, Method::of(asked), asked)
            && self.plan.routes[found.route].cors.is_some()
        {
            return Ok(found);
        }
        router.find(host, path, head.method, head.text(head.method_text)).map_err(no_route)
    }

    /// Has a route that asks for it see the doubled slashes that were written, where that changes nothing about who takes
    /// the request: what leads elsewhere with or without them stays merged.
    fn keep_slashes(&self, head: &mut RequestHead, seen: &mut Seen, found: Found) -> Found {
        match &self.plan.routes[found.route].target {
            Target::Proxy(route) if !route.merges_slashes && head.path != seen.written => {}
            _ => return found,
        }
        let merged = head.path;
        let Some(kept) = path::with_doubled_slashes(head.text(seen.written), head.text(merged)) else { return found };
        head.path = head.append(&[&kept]);
        if let Ok(again) = self.route(head)
            && again.route == found.route
        {
            // Services that merge them, or take what follows two for a host, read another path.
            seen.is_plain = false;
            return again;
        }
        head.path = merged;
        found
    }

    /// The methods that the routes of a path take.
    pub(super) fn methods(&self, head: &RequestHead) -> Cow<'static, str> {
        let (host, path) = (head.text(head.authority), head.text(head.path));
        // Nobody names a method that has no name.
        match self.plan.router.find(host, path, Method::Other, b"") {
            Err(NoRoute::Method(allow)) => allow.into(),
            _ => USUAL_METHODS.into(),
        }
    }

    /// Refuses a request that a service could read as one of another route: what that one guards, or the other way round.
    pub(super) fn refuse_other_readings(&self, head: &RequestHead, found: &Found, path: &Seen) -> Result<(), Reject> {
        let rewrite = match &self.plan.routes[found.route].target {
            Target::Proxy(route) if path.has_encoded_slash && !route.allow_encoded_slash => {
                return Err(Reject::because(Code::BadRequest, "the path has an escaped slash"));
            }
            Target::Proxy(route) => &route.rewrite,
            Target::Own(_) | Target::Account(_) | Target::Socket | Target::Hub(_) | Target::Echo => &Rewrite::Keep,
        };
        let routed = Routed {
            router: &self.plan.router,
            host: head.text(head.authority),
            path: head.text(head.path),
            method: head.method,
            method_text: head.text(head.method_text),
            route: found.route,
            captures: &found.captures,
            rewrite,
        };
        let name = |route: usize| self.plan.routes[route].name.as_str();
        readings::check(&routed, path.is_plain).map_err(|doubt| Reject {
            cause: Some(doubt.cause(&name).into()),
            ..Reject::because(Code::BadRequest, doubt.detail())
        })
    }

    /// Whether it is a preflight for a request that no route takes.
    pub(super) fn is_preflight_without_route(&self, head: &RequestHead) -> bool {
        let (host, path) = (head.text(head.authority), head.text(head.path));
        let asked = cors::asked_method(head).map(|asked| head.text(asked));
        asked.is_some_and(|asked| self.plan.router.find(host, path, Method::of(asked), asked).is_err())
    }
}

fn no_route(reason: NoRoute) -> Reject {
    match reason {
        NoRoute::NotFound => Reject::new(Code::NotFound),
        NoRoute::Method(allow) => Reject { allow: Some(allow), ..Reject::new(Code::MethodNotAllowed) },
    }
}

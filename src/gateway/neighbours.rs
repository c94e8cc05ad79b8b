//! Paths that a service may take for a guarded one, and that a less guarded route takes: `/users/` beside `/users`. For a
//! warning when a configuration is loaded; routing does not ask here.

use super::router::Router;
use crate::{
    config::{ACCOUNT_PATHS, Access, Config, HostPattern, OWN_PATHS, PathPattern, Route, Segment},
    proto::head::Method,
};

/// Stands for whatever a parameter, a star or any host takes: nothing that a configuration has reason to name.
const SAMPLE: &str = "0-0";

/// The route of what the gateway answers itself.
const OWN: usize = usize::MAX;

/// One sentence for each guarded path whose neighbour, the same with a slash more or less at its end, goes to the same
/// upstream by a route that asks for less.
///
/// Only where the upstream sees the two paths differ in nothing else. Other letter cases are not looked at: each guarded
/// path beside a wider route has such neighbours, for few services they are the same, and no route could take them all.
pub fn unguarded_neighbours(config: &Config) -> Vec<String> {
    let routes = &config.routes;
    if !routes.iter().any(|route| route.access != Access::Public && ends_sharply(&route.path)) {
        return Vec::new();
    }
    let mut router = Router::default();
    for (index, route) in routes.iter().enumerate() {
        router.add(index, &route.hosts, &route.path, &route.methods);
    }
    for path in OWN_PATHS.iter().chain(ACCOUNT_PATHS.iter().filter(|_| config.accounts.enabled)) {
        let pattern: PathPattern = path.parse().expect("the lists' paths are right");
        for method in ["GET", "POST", "DELETE"] {
            router.add_own(OWN, &pattern, method);
        }
    }
    let guarded = routes.iter().enumerate().filter(|(_, route)| ends_sharply(&route.path));
    guarded.filter_map(|(index, route)| warning(routes, &router, index, route)).collect()
}

fn warning(routes: &[Route], router: &Router, index: usize, route: &Route) -> Option<String> {
    let path = sample(&route.path);
    let neighbour = |path: &str| match path.strip_suffix('/') {
        Some("") => None,
        Some(bare) => Some(bare.to_owned()),
        None => Some(format!("{path}/")),
    };
    let beside = neighbour(&path)?;
    let any_host = [HostPattern::Exact(SAMPLE.to_owned())];
    let any_method = ["GET", "POST", "PUT", "PATCH", "DELETE"].map(str::to_owned);
    let hosts = if route.hosts.is_empty() { &any_host[..] } else { &route.hosts };
    let methods = if route.methods.is_empty() { &any_method[..] } else { &route.methods };
    let found = |host: &str, path: &str, method: &str| {
        let (host, path, method) = (host.as_bytes(), path.as_bytes(), method.as_bytes());
        router.find(host, path, Method::of(method), method).ok().map(|found| found.route)
    };
    let wider = hosts.iter().find_map(|host| {
        let host = match host {
            HostPattern::Exact(host) => host.clone(),
            HostPattern::Subdomains(domain) => format!("{SAMPLE}.{domain}"),
        };
        methods.iter().find_map(|method| {
            let other = routes.get(found(&host, &beside, method)?)?;
            let is_so = found(&host, &path, method) == Some(index)
                && asks_for_less(other, route)
                && other.upstream == route.upstream
                && other.strip_prefix == route.strip_prefix
                && other.rewrite.is_none()
                && route.rewrite.is_none();
            is_so.then_some(other)
        })
    })?;
    let written = route.path.to_string();
    let (name, beside) = (&route.name, neighbour(&written)?);
    let right = if written.ends_with('/') {
        format!("give {beside} a route that asks for as much")
    } else {
        format!("guard {written}/*, or give {beside} a route that asks for as much")
    };
    Some(format!(
        "the route {} asks for less than {name} and takes {beside}, which services may take for {written}; {right}",
        wider.name
    ))
}

/// Whether it takes a path and nothing below it.
fn ends_sharply(path: &PathPattern) -> bool {
    matches!(path, PathPattern::Exact(_) | PathPattern::Parameters { rest: false, .. })
}

/// A path that it takes.
fn sample(path: &PathPattern) -> String {
    match path {
        PathPattern::Exact(path) | PathPattern::Prefix(path) => path.clone(),
        PathPattern::Parameters { segments, .. } => {
            let text = |segment: &Segment| match segment {
                Segment::Literal(text) => format!("/{text}"),
                Segment::Parameter(_) => format!("/{SAMPLE}"),
            };
            segments.iter().map(text).collect()
        }
    }
}

/// Whether somebody may use `one` who may not use `other`.
fn asks_for_less(one: &Route, other: &Route) -> bool {
    if one.access == Access::Public || other.access == Access::Public {
        return other.access != Access::Public;
    }
    let lets_other_roles_in =
        !other.roles.is_empty() && (one.roles.is_empty() || one.roles.iter().any(|role| !other.roles.contains(role)));
    lets_other_roles_in || other.permissions.iter().any(|permission| !one.permissions.contains(permission))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fmt::Write as _, path::Path};

    use expect_test::{Expect, expect};

    use super::*;
    use crate::config::resolve;

    const ADMIN: &str = "roles = [\"admin\"]";
    const PUBLIC: &str = "access = \"public\"";

    /// Routes to one upstream unless they say otherwise: a path, and further keys.
    fn check(routes: &[(&str, &str)], expected: &Expect) {
        let mut text =
            "[upstreams.one]\ninstances = [\"127.0.0.1:1\"]\n[upstreams.two]\ninstances = [\"127.0.0.1:2\"]\n\
                        [[routes]]\npath = \"/two\"\nupstream = \"two\"\naccess = \"public\"\n"
                .to_owned();
        for (path, keys) in routes {
            let upstream = if keys.contains("upstream") { "" } else { "upstream = \"one\"\n" };
            let _ = write!(text, "[[routes]]\npath = \"{path}\"\n{upstream}{keys}\n");
        }
        let config = resolve(Some((Path::new("f"), &text)), &BTreeMap::new()).expect("it is right");
        expected.assert_eq(&unguarded_neighbours(&config).join("\n"));
    }

    #[test]
    fn a_guarded_path_beside_a_wider_route_is_told() {
        check(
            &[("/users", ADMIN), ("/*", PUBLIC)],
            &expect![
                "the route /* asks for less than /users and takes /users/, which services may take for /users; guard /users/*, or give /users/ a route that asks for as much"
            ],
        );
        check(
            &[("/users/{id}/roles", "name = \"roles\"\nroles = [\"admin\"]\nhosts = [\"*.a.test\"]"), ("/users/*", "")],
            &expect![
                "the route /users/* asks for less than roles and takes /users/{id}/roles/, which services may take for /users/{id}/roles; guard /users/{id}/roles/*, or give /users/{id}/roles/ a route that asks for as much"
            ],
        );
        check(
            &[("/users/", "methods = [\"DELETE\"]"), ("/*", PUBLIC)],
            &expect![
                "the route /* asks for less than /users/ and takes /users, which services may take for /users/; give /users a route that asks for as much"
            ],
        );
        check(
            &[("/users", "permissions = [\"users:read\", \"users:write\"]"), ("/*", "permissions = [\"users:read\"]")],
            &expect![
                "the route /* asks for less than /users and takes /users/, which services may take for /users; guard /users/*, or give /users/ a route that asks for as much"
            ],
        );
        check(
            &[("/users", ADMIN), ("/*", "roles = [\"admin\", \"analyst\"]")],
            &expect![
                "the route /* asks for less than /users and takes /users/, which services may take for /users; guard /users/*, or give /users/ a route that asks for as much"
            ],
        );
    }

    #[test]
    fn what_is_no_gap_is_not_told() {
        for routes in [
            // All below is guarded, or nobody takes the neighbour, or who does asks for as much.
            &[("/users/*", ADMIN), ("/*", PUBLIC)][..],
            &[("/users", ADMIN), ("/users/{id}", PUBLIC)],
            &[("/users", ADMIN), ("/users/", ADMIN), ("/*", PUBLIC)],
            &[("/users", "roles = [\"admin\", \"analyst\"]"), ("/*", ADMIN)],
            &[("/users", PUBLIC), ("/*", PUBLIC)],
            &[("/users", ""), ("/*", "")],
            &[("/", ADMIN), ("/*", PUBLIC)],
            // It goes elsewhere, or is another path there.
            &[("/users", ADMIN), ("/*", "upstream = \"two\"\naccess = \"public\"")],
            &[("/api/users", "roles = [\"admin\"]\nstrip_prefix = \"/api\""), ("/api/*", PUBLIC)],
            &[("/users", "roles = [\"admin\"]\nrewrite = \"/v2\""), ("/*", PUBLIC)],
            // Other hosts, other methods, paths that are ours.
            &[
                ("/users", "roles = [\"admin\"]\nhosts = [\"a.test\"]"),
                ("/*", "access = \"public\"\nhosts = [\"b.test\"]"),
            ],
            &[
                ("/users", "roles = [\"admin\"]\nmethods = [\"PUT\"]"),
                ("/*", "access = \"public\"\nmethods = [\"GET\"]"),
            ],
            &[("/health/", ADMIN), ("/*", PUBLIC)],
        ] {
            check(routes, &expect![""]);
        }
    }

    #[test]
    fn the_built_in_routes_and_the_example_give_no_warning() {
        assert_eq!(unguarded_neighbours(&Config::default()), Vec::<String>::new());
        let example = include_str!("../../shardgate.example.toml");
        let config = resolve(Some((Path::new("f"), example)), &BTreeMap::new()).expect("the example is right");
        assert_eq!(unguarded_neighbours(&config), Vec::<String>::new());
    }
}

//! What a service may take for something guarded, and a less guarded route to the same service takes: `/users/` beside
//! `/users`, other hosts and methods beside those that a guard names, escaped slashes. For warnings when a configuration is
//! loaded; routing does not ask here.

use super::router::Router;
use crate::{
    config::{ACCOUNT_PATHS, Access, Config, HostPattern, OWN_PATHS, PathPattern, Route, Segment},
    proto::head::Method,
};

/// Stands for whatever a parameter, a star, any host or any method takes: nothing that a configuration has reason to name.
const SAMPLE: &str = "0-0";

/// The route of what the gateway answers itself.
const OWN: usize = usize::MAX;

/// One sentence for each guard of a kind that a route which asks for less could be read around, and for each such route
/// that takes escaped slashes. Only where the upstream sees the same but for what is told.
///
/// Other letter cases of paths are not looked at: each guarded path beside a wider route has such neighbours, for few
/// services they are the same, and no route could take them all.
pub fn unguarded_neighbours(config: &Config) -> Vec<String> {
    let routes = &config.routes;
    if !routes.iter().any(|route| route.access != Access::Public) {
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
    let guarded = routes.iter().enumerate().filter(|(_, route)| route.access != Access::Public);
    let looks = guarded.map(|(index, route)| Look { routes, router: &router, index, route, path: sample(&route.path) });
    let told = looks.flat_map(|look| [look.last_slash(), look.host(), look.method()]).flatten();
    told.chain(routes.iter().filter_map(|route| escaped_slash(routes, route))).collect()
}

/// A guarded route, looked at.
struct Look<'c> {
    routes: &'c [Route],
    router: &'c Router,
    index: usize,
    route: &'c Route,
    /// One that it takes.
    path: String,
}

impl<'c> Look<'c> {
    /// `/users/` beside `/users`.
    fn last_slash(&self) -> Option<String> {
        if !ends_sharply(&self.route.path) {
            return None;
        }
        let neighbour = |path: &str| match path.strip_suffix('/') {
            Some("") => None,
            Some(bare) => Some(bare.to_owned()),
            None => Some(format!("{path}/")),
        };
        let beside = neighbour(&self.path)?;
        let wider = self.requests().find_map(|(host, method)| {
            // Rewritten, the two may be anything.
            self.less(&host, &beside, &method).filter(|other| other.rewrite.is_none())
        })?;
        let written = self.route.path.to_string();
        let (name, beside) = (&self.route.name, neighbour(&written)?);
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

    /// The same path at hosts that nobody named. A service that is told its own authority sees no difference at all; one that
    /// sees the client's tells exact names apart, but where a pattern ends is its own affair.
    fn host(&self) -> Option<String> {
        let is_pattern = self.route.hosts.iter().any(|host| matches!(host, HostPattern::Subdomains(_)));
        let wider = self.requests().find_map(|(_, method)| {
            let other = self.less(SAMPLE, &self.path, &method)?;
            (other.hosts.is_empty() && (is_pattern || !other.preserve_host)).then_some(other)
        })?;
        let (name, hosts) = (&self.route.name, listed(&self.route.hosts)?);
        Some(format!(
            "the route {} asks for less than {name} and takes {} at every host but {hosts}, which services may answer \
             alike; guard it at every host, or give {name} an upstream of its own",
            wider.name, self.route.path
        ))
    }

    /// The same path with methods that nobody named, which some services answer as they do GET; or with POST, of which
    /// `X-HTTP-Method-Override` makes another method for some.
    fn method(&self) -> Option<String> {
        let methods = &self.route.methods;
        let overrides = |method: &String| matches!(method.as_str(), "PUT" | "PATCH" | "DELETE");
        let other_by = |method: &str| {
            let taken = self.requests().map(|(host, _)| host);
            taken.into_iter().find_map(|host| self.less(&host, &self.path, method))
        };
        let (name, path, listed) = (&self.route.name, &self.route.path, listed(methods)?);
        if let Some(other) = other_by(SAMPLE) {
            return Some(format!(
                "the route {} asks for less than {name} and takes {path} with every method but {listed}, which services \
                 may answer alike; name its methods",
                other.name
            ));
        }
        let removes = |other: &Route| {
            let mut removed = other.request_headers.remove.iter();
            removed.any(|name| name.eq_ignore_ascii_case("x-http-method-override"))
        };
        let other =
            methods.iter().any(overrides).then(|| other_by("POST")).flatten().filter(|other| !removes(other))?;
        Some(format!(
            "the route {} asks for less than {name} and takes POST at {path}, of which X-HTTP-Method-Override makes \
             {listed} for some services; have it remove that field",
            other.name
        ))
    }

    /// Hosts and methods that lead to the route.
    fn requests(&self) -> impl Iterator<Item = (String, String)> {
        let hosts: Vec<String> = if self.route.hosts.is_empty() {
            vec![SAMPLE.to_owned()]
        } else {
            self.route.hosts.iter().map(sample_host).collect()
        };
        let methods = if self.route.methods.is_empty() {
            ["GET", "POST", "PUT", "PATCH", "DELETE"].map(str::to_owned).to_vec()
        } else {
            self.route.methods.clone()
        };
        let pairs = hosts.into_iter().flat_map(move |host| methods.clone().into_iter().map(move |m| (host.clone(), m)));
        pairs.filter(|(host, method)| self.found(host, &self.path, method) == Some(self.index))
    }

    /// The route of a request, if it asks for less and its upstream sees nothing of which route it was.
    fn less(&self, host: &str, path: &str, method: &str) -> Option<&'c Route> {
        let Self { route, .. } = self;
        let other = self.routes.get(self.found(host, path, method)?)?;
        let is_so = asks_for_less(other, route)
            && other.upstream == route.upstream
            && other.strip_prefix == route.strip_prefix
            && other.rewrite == route.rewrite;
        is_so.then_some(other)
    }

    fn found(&self, host: &str, path: &str, method: &str) -> Option<usize> {
        let (host, path, method) = (host.as_bytes(), path.as_bytes(), method.as_bytes());
        self.router.find(host, path, Method::of(method), method).ok().map(|found| found.route)
    }
}

/// What services make of escaped slashes is known of many (`readings`), and not of all.
fn escaped_slash(routes: &[Route], route: &Route) -> Option<String> {
    let guarded = || routes.iter().find(|other| other.upstream == route.upstream && asks_for_less(route, other));
    let other = Some(route).filter(|route| route.allow_encoded_slash).and_then(|_| guarded())?;
    Some(format!(
        "the route {} asks for less than {}, goes to the same upstream and takes escaped slashes: its paths that known \
         services read as guarded ones are refused, others may do more to a path; give it an upstream of its own",
        route.name, other.name
    ))
}

fn listed<T: ToString>(names: &[T]) -> Option<String> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn sample_host(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(host) => host.clone(),
        HostPattern::Subdomains(domain) => format!("{SAMPLE}.{domain}"),
    }
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
                "the route /users/* asks for less than roles and takes /users/{id}/roles/, which services may take for /users/{id}/roles; guard /users/{id}/roles/*, or give /users/{id}/roles/ a route that asks for as much\nthe route /users/* asks for less than roles and takes /users/{id}/roles at every host but *.a.test, which services may answer alike; guard it at every host, or give roles an upstream of its own"
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
    fn other_hosts_than_those_of_a_guard_are_told() {
        for keys in ["", "preserve_host = true\n"] {
            check(
                &[
                    ("/*", "name = \"wild\"\nroles = [\"admin\"]\nhosts = [\"*.in.test\", \"in.test\"]"),
                    ("/a/*", &format!("{PUBLIC}\nname = \"a\"")),
                    ("/*", &format!("{keys}{PUBLIC}\nname = \"any\"")),
                ],
                &expect![
                    "the route any asks for less than wild and takes /* at every host but *.in.test, in.test, which services may answer alike; guard it at every host, or give wild an upstream of its own"
                ],
            );
        }
        check(
            &[("/x", "name = \"exact\"\nhosts = [\"a.test\"]"), ("/x", "name = \"any\"\naccess = \"public\"")],
            &expect![
                "the route any asks for less than exact and takes /x at every host but a.test, which services may answer alike; guard it at every host, or give exact an upstream of its own"
            ],
        );
    }

    #[test]
    fn other_methods_than_those_of_a_guard_are_told() {
        check(
            &[
                ("/x/*", "name = \"reads\"\nmethods = [\"GET\", \"POST\"]"),
                ("/x/*", "name = \"any\"\naccess = \"public\""),
            ],
            &expect![
                "the route any asks for less than reads and takes /x/* with every method but GET, POST, which services may answer alike; name its methods"
            ],
        );
        check(
            &[
                ("/x/{id}", "name = \"changes\"\nmethods = [\"DELETE\"]\nroles = [\"admin\"]"),
                ("/x/{id}", "name = \"adds\"\nmethods = [\"GET\", \"POST\"]"),
            ],
            &expect![
                "the route adds asks for less than changes and takes POST at /x/{id}, of which X-HTTP-Method-Override makes DELETE for some services; have it remove that field"
            ],
        );
    }

    #[test]
    fn escaped_slashes_beside_a_guard_are_told() {
        let slashes = "access = \"public\"\nallow_encoded_slash = true";
        check(
            &[("/admin/*", ADMIN), ("/enc/*", slashes), ("/other/*", &format!("{slashes}\nupstream = \"two\""))],
            &expect![
                "the route /enc/* asks for less than /admin/*, goes to the same upstream and takes escaped slashes: its paths that known services read as guarded ones are refused, others may do more to a path; give it an upstream of its own"
            ],
        );
    }

    #[test]
    fn what_is_no_gap_is_not_told() {
        let kept = format!("{PUBLIC}\npreserve_host = true");
        let removing = "access = \"public\"\nmethods = [\"POST\"]\n[routes.request_headers]\nremove = [\"X-HTTP-Method-Override\"]";
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
            // Nobody is let in further by escaped slashes.
            &[("/admin/*", "allow_encoded_slash = true"), ("/*", PUBLIC)],
            &[("/admin/*", ADMIN), ("/enc/*", "roles = [\"admin\"]\nallow_encoded_slash = true")],
            // A service that sees the host tells exact ones apart.
            &[("/*", "name = \"one\"\nroles = [\"admin\"]\nhosts = [\"a.test\"]"), ("/*", &kept)],
            // Nothing makes GET another method, nor POST without the field.
            &[("/x", "name = \"one\"\nmethods = [\"PUT\"]"), ("/x", "access = \"public\"\nmethods = [\"GET\"]")],
            &[("/x", "name = \"one\"\nmethods = [\"GET\"]"), ("/x", "access = \"public\"\nmethods = [\"POST\"]")],
            &[("/x", "name = \"one\"\nmethods = [\"PUT\"]"), ("/x", removing)],
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

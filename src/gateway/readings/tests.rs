//! Which paths are refused, and that no service modelled here reads a guarded path where a public route was taken.

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::gateway::path::{normalise, with_doubled_slashes};

/// Routes by their paths, in this order.
fn router(paths: &[&str]) -> Router {
    let mut router = Router::default();
    for (index, path) in paths.iter().enumerate() {
        router.add(index, &[], &path.parse().expect("a path"), &[]);
    }
    router
}

/// Routes a path and looks for doubts; `None` if it has no normal form or no route.
fn outcome(router: &Router, rewrite: &Rewrite, path: &str) -> Option<(usize, Result<(), OtherReading>)> {
    let normal = normalise(path.as_bytes()).ok()?;
    checked(router, rewrite, &normal.path, normal.is_plain)
}

fn checked(
    router: &Router,
    rewrite: &Rewrite,
    path: &[u8],
    is_plain: bool,
) -> Option<(usize, Result<(), OtherReading>)> {
    let found = router.find(b"a", path, Method::Get, b"GET").ok()?;
    let routed = Routed {
        router,
        host: b"a",
        path,
        method: Method::Get,
        method_text: b"GET",
        route: found.route,
        captures: &found.captures,
        rewrite,
    };
    Some((found.route, check(&routed, is_plain)))
}

fn check_paths(router: &Router, rewrite: &Rewrite, paths: &[&str], expected: &Expect) {
    let told = paths.iter().map(|path| {
        let name = |route: usize| ["0", "1", "2", "3"][route];
        match outcome(router, rewrite, path) {
            None => format!("{path} – no route\n"),
            Some((route, Ok(()))) => format!("{path} – {route}\n"),
            Some((route, Err(doubt))) => format!("{path} – {route}, but {}\n", doubt.cause(&name)),
        }
    });
    expected.assert_eq(&told.collect::<String>());
}

#[test]
fn a_path_that_may_be_read_as_one_of_another_route_is_doubtful() {
    check_paths(
        &router(&["/admin/*", "/enc/*", "/*", "/@me"]),
        &Rewrite::Keep,
        &[
            "/enc/a%2Fb",
            "/enc/a%2F..%2Fb",
            "/enc/..%2Fadmin",
            "/enc/..%5Cadmin",
            "/enc/..%252Fadmin",
            "/enc/..%2F..%2Fadmin",
            "/admin%3Bx/y",
            "/admin;x/y",
            "/admin%3Fx",
            "/%2Fa/admin",
            "/enc/..;/admin",
            "/%40me",
            "/x;a=%2F%252F%5C%3F%40",
            "/enc/x%252Fy%2F..%2F%252E%252E%2Fadmin",
            "/a/b%3B%252Fc/%252E%252E/%252E%252E/admin",
            "/a%252Fb",
            "/%252Fenc",
            "/100%25",
        ],
        &expect![[r"
            /enc/a%2Fb – 1
            /enc/a%2F..%2Fb – 1
            /enc/..%2Fadmin – 1, but read escapes undone, slashes merged and dots resolved, the path leads to 0
            /enc/..%5Cadmin – 1, but read escapes but %2F undone, backslashes as slashes, slashes merged and dots resolved, the path leads to 0
            /enc/..%252Fadmin – 1, but read escapes but %2F undone, and again escapes undone, slashes merged and dots resolved, the path leads to 0
            /enc/..%2F..%2Fadmin – 1, but read escapes undone, slashes merged and dots resolved, the path climbs above its root
            /admin%3Bx/y – 2, but read escapes but %2F undone, without what follows semicolons, the path leads to 0
            /admin;x/y – 2, but read without what follows semicolons, the path leads to 0
            /admin%3Fx – 2, but read escapes but %2F undone, cut at a question mark, the path leads to 0
            /%2Fa/admin – 2, but read escapes undone, without a host in front, the path leads to 0
            /enc/..;/admin – 1, but the path has a dot segment with a parameter
            /%40me – 2, but read escapes but %2F undone, the path leads to 3
            /x;a=%2F%252F%5C%3F%40 – 2
            /enc/x%252Fy%2F..%2F%252E%252E%2Fadmin – 1, but read escapes undone, and again escapes but %2F undone, slashes merged and dots resolved, the path leads to 0
            /a/b%3B%252Fc/%252E%252E/%252E%252E/admin – 2, but read escapes but %2F undone, and again escapes but %2F undone, slashes merged and dots resolved, the path leads to 0
            /a%252Fb – 2
            /%252Fenc – 2, but read escapes but %2F undone, and again escapes undone, slashes merged and dots resolved, the path leads to 1
            /100%25 – 2
        "]],
    );
}

#[test]
fn what_is_stripped_is_no_ground_to_climb_on() {
    check_paths(
        &router(&["/api/admin/*", "/api/*"]),
        &Rewrite::Strip(4),
        &["/api/x%2Fy", "/api/..%2Fapi/x", "/api/x%2F..%2Fadmin", "/api/%2Fhome%2Fx", "/api/%2Fx/admin"],
        &expect![[r"
            /api/x%2Fy – 1
            /api/..%2Fapi/x – 1, but read escapes undone, slashes merged and dots resolved, the path climbs above its root
            /api/x%2F..%2Fadmin – 1, but read escapes undone, slashes merged and dots resolved, the path leads to 0
            /api/%2Fhome%2Fx – 1
            /api/%2Fx/admin – 1, but read escapes undone, without a host in front, the path leads to 0
        "]],
    );
}

#[test]
fn what_no_route_takes_is_let_pass_below_the_routes_own_beginning_only() {
    check_paths(
        &router(&["/projects/{id}", "/rooms/{room}/members", "/tags/{tag}", "/tags/{tag}/edit"]),
        &Rewrite::Keep,
        &[
            "/projects/a%2Fb",
            "/projects/a%2F..%2Fb",
            "/projects/..%2Fb",
            "/projects/..%2Frooms%2Fx%2Fmembers",
            "/rooms/%23matrix%3Ahost/members",
            "/rooms/x%23y/members",
            "/tags/%23rust",
            "/tags/;v=1",
            "/tags/a%2Fedit",
        ],
        &expect![[r"
            /projects/a%2Fb – 0
            /projects/a%2F..%2Fb – 0
            /projects/..%2Fb – 0, but read escapes undone, slashes merged and dots resolved, the path leads to no route of this one
            /projects/..%2Frooms%2Fx%2Fmembers – 0, but read escapes undone, slashes merged and dots resolved, the path leads to 1
            /rooms/%23matrix%3Ahost/members – 1
            /rooms/x%23y/members – 1
            /tags/%23rust – 2
            /tags/;v=1 – 2
            /tags/a%2Fedit – 2, but read escapes undone, the path leads to 3
        "]],
    );
}

#[test]
fn a_path_that_can_be_read_in_endless_ways_is_refused() {
    let path = "/;%3B%253B/%2F%252F%5C%255C%3F%253F%40";
    let (_, checked) = outcome(&router(&["/*"]), &Rewrite::Keep, path).expect("it has a route");
    assert_eq!(checked, Err(OtherReading::TooMany));
    // A long one has fewer, but one that is only long has all that it needs.
    let long = format!("/%2F%5C%3F%3B{}", "x".repeat(8000));
    let (_, checked) = outcome(&router(&["/*"]), &Rewrite::Keep, &long).expect("it has a route");
    assert_eq!(checked, Err(OtherReading::TooMany));
    let (_, checked) = outcome(&router(&["/*"]), &Rewrite::Keep, &"/a%2Fb".repeat(10_000)).expect("it has a route");
    assert_eq!(checked, Ok(()));
}

/// Percent-decoding, written once more.
fn decoded(text: &str, keeps_slash: bool) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let digits = rest.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match digits {
            Some(value) if value.is_ascii() && !(keeps_slash && value == b'/') => {
                out.push(char::from(value));
                rest = &rest[at + 3..];
            }
            _ => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// What `posixpath.normpath` does.
fn normpath(text: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in text.split('/').filter(|name| !matches!(*name, "" | ".")) {
        if name == ".." {
            names.pop();
        } else {
            names.push(name);
        }
    }
    format!("/{}", names.join("/"))
}

/// The same by whoever takes an empty segment for one.
fn normpath_of_all(text: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in text[1..].split('/').filter(|name| *name != ".") {
        if name == ".." {
            names.pop();
        } else {
            names.push(name);
        }
    }
    format!("/{}", names.join("/"))
}

fn cut(text: &str) -> String {
    text.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
}

fn without_host(text: &str) -> &str {
    let host = text.trim_start_matches('/');
    if text.starts_with("//") { host.find('/').map_or("/", |slash| &host[slash..]) } else { text }
}

type Read = fn(&str) -> String;

/// How services read a path, as `normpath` would write it.
const SERVICES: [(&str, Read); 9] = [
    ("Python", |path| normpath(&decoded(path, false))),
    ("Windows", |path| normpath(&decoded(path, false).replace('\\', "/"))),
    ("Kestrel", |path| normpath(&decoded(path, true).replace('\\', "/"))),
    ("Tomcat", |path| normpath(&decoded(&cut(path), false))),
    ("Tomcat that takes backslashes", |path| normpath(&decoded(&cut(path), false).replace('\\', "/"))),
    ("Tomcat behind nginx", |path| normpath(&cut(&decoded(path, false)))),
    ("new URL", |path| normpath(without_host(&decoded(path, false).replace('\\', "/")))),
    ("Apache, proxy:fcgi", |path| normpath(decoded(path, false).split('?').next().unwrap_or_default())),
    ("passed on as it is", str::to_owned),
];

/// How services read a path in which they leave doubled slashes, or some of them.
const KEEPERS: [(&str, Read); 8] = [
    ("WSGI", |path| decoded(path, false)),
    ("Jetty", |path| normpath_of_all(&decoded(&cut(path), false))),
    ("nginx, slashes kept", |path| normpath_of_all(&decoded(path, false))),
    ("Kestrel", |path| normpath_of_all(&decoded(path, true).replace('\\', "/"))),
    ("whoever merges pairs, then resolves", |path| normpath_of_all(&decoded(path, false).replace("//", "/"))),
    ("whoever merges one pair, then resolves", |path| normpath_of_all(&decoded(path, false).replacen("//", "/", 1))),
    ("whoever merges pairs before another decodes", |path| {
        normpath_of_all(&decoded(&decoded(path, false).replace("//", "/"), false))
    }),
    ("whoever cuts and merges one pair", |path| normpath_of_all(&cut(&decoded(path, false)).replacen("//", "/", 1))),
];

fn spelling() -> impl Strategy<Value = String> {
    let pieces = [
        "/", "/", "/", "..", ".", "%2F", "%2f", "%5C", ";", ";x", "%3B", "%2E", "%252F", "%252E", "%253B", "%25",
        "%3F", "%23", "admin", "admin", "enc", "a", "%61dmin", "@me", "%40me", "[", "%5B", "%20", "%C3%A4",
    ];
    proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 1..10)
        .prop_map(|pieces| format!("/{}", pieces.concat()))
}

fn is_guarded(seen: &str) -> bool {
    ["/admin", "/enc/admin"].iter().any(|path| seen == *path || seen.starts_with(&format!("{path}/")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn no_service_reads_a_guarded_path_from_a_public_route(path in spelling(), strips in any::<bool>()) {
        let router = router(&["/admin/*", "/enc/admin/*", "/enc/*", "/*"]);
        let (rewrite, prefix) = if strips { (Rewrite::Strip(4), "/enc") } else { (Rewrite::Keep, "") };
        let Some((route, Ok(()))) = outcome(&router, &rewrite, &path) else { return Ok(()) };
        // Only routes of that prefix strip it.
        if route < 2 || (strips && route != 2) {
            return Ok(());
        }
        let normal = normalise(path.as_bytes()).expect("it was routed");
        let sent = String::from_utf8_lossy(&normal.path[prefix.len()..]).into_owned();
        for ((first, passes_on), (service, read)) in SERVICES.iter().flat_map(|first| SERVICES.map(|last| (first, last))) {
            let seen = prefix.to_owned() + &read(&passes_on(&sent));
            prop_assert!(!is_guarded(&seen), "{} behind {} reads {} for {}, sent as {}", service, first, seen, path, sent);
        }
    }

    #[test]
    fn no_service_reads_a_guarded_path_in_doubled_slashes(path in spelling(), strips in any::<bool>()) {
        let router = router(&["/admin/*", "/enc/admin/*", "/enc/*", "/*", "/enc/a/admin/*"]);
        let (rewrite, prefix) = if strips { (Rewrite::Strip(4), "/enc") } else { (Rewrite::Keep, "") };
        let Ok(normal) = normalise(path.as_bytes()) else { return Ok(()) };
        let Some(kept) = with_doubled_slashes(path.as_bytes(), &normal.path) else { return Ok(()) };
        let Some((route, Ok(()))) = checked(&router, &rewrite, &kept, false) else { return Ok(()) };
        if !(2..4).contains(&route) || (strips && route != 2) {
            return Ok(());
        }
        let sent = String::from_utf8_lossy(&kept[prefix.len()..]).into_owned();
        for (service, read) in SERVICES.iter().chain(&KEEPERS) {
            let seen = prefix.to_owned() + &read(&sent);
            let is_guarded = is_guarded(&seen) || seen == "/enc/a/admin" || seen.starts_with("/enc/a/admin/");
            prop_assert!(!is_guarded, "{} reads {} for {}, sent as {}", service, seen, path, sent);
        }
    }

    #[test]
    fn what_is_plain_has_one_reading(path in "/[a-c/.@!%2F5C;*]{0,24}") {
        let Ok(normal) = normalise(path.as_bytes()) else { return Ok(()) };
        if normal.is_plain {
            let mut count = 0;
            let _ = each_chain::<()>(&normal.path, |_, seen| {
                count += usize::from(seen.as_deref() != Ok(&*normal.path));
                Ok(())
            });
            prop_assert_eq!(count, 0, "{}", path);
        }
    }

    #[test]
    fn no_path_panics(path in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = each_chain::<()>(&path, |_, _| Ok(()));
    }
}

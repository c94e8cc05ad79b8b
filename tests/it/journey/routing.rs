//! Which route takes a request, and which path the backend sees: the one that was matched, in normal form.

use super::{Setup, before, expect_refusal};
use crate::{backend::Backend, client::Response, harness::Gateway};

/// Asks for a path at a host.
#[track_caller]
fn ask(gateway: &Gateway, method: &str, host: &str, path: &str) -> Response {
    let mut client = gateway.connect();
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.try_read_response(method).expect("an answer")
}

/// The target that the backend saw.
#[track_caller]
fn target(backend: &mut Backend) -> String {
    backend.request().head.first_line.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// A gateway with these routes to one upstream, `back`, and none besides.
#[track_caller]
fn routed(backend: &Backend, routes: &str) -> Gateway {
    Gateway::start(&format!("[upstreams.back]\ninstances = [\"{}\"]\n{routes}", backend.address()))
}

#[test]
fn a_prefix_is_stripped_by_whole_segments() {
    let mut backend = Backend::ok();
    let routes = "[[routes]]\naccess = \"public\"\npath = \"/api/events/*\"\nupstream = \"back\"\nstrip_prefix = \"/api\"\n\
                  [[routes]]\naccess = \"public\"\npath = \"/shop/*\"\nupstream = \"back\"\nstrip_prefix = \"/shop\"";
    let gateway = routed(&backend, routes);
    for (asked, seen) in [
        ("/api/events/x?y=1&z", "/events/x?y=1&z"),
        ("/api/events", "/events"),
        ("/api/events/", "/events/"),
        ("/%61pi/./events/x", "/events/x"),
        ("/shop", "/"),
        ("/shop?a", "/?a"),
        ("/shop/", "/"),
        ("/shop/a//b", "/a/b"),
    ] {
        assert_eq!(ask(&gateway, "GET", "a", asked).status, 200, "{asked}");
        assert_eq!(target(&mut backend), seen, "{asked}");
    }
    for missed in ["/api/eventsx", "/api", "/", "/shopx", "/API/events"] {
        expect_refusal(&ask(&gateway, "GET", "a", missed), 404, "not_found");
    }
    assert!(backend.requests().is_empty());
}

#[test]
fn a_path_is_rewritten_with_its_parameters() {
    let mut backend = Backend::ok();
    let routes = "[[routes]]\naccess = \"public\"\npath = \"/users/{id}/orders/*\"\nupstream = \"back\"\nrewrite = \"/v2/{id}/o/{rest}\"\n\
                  [[routes]]\naccess = \"public\"\npath = \"/old\"\nupstream = \"back\"\nrewrite = \"/new/place\"";
    let gateway = routed(&backend, routes);
    for (asked, seen) in [
        ("/users/42/orders/a/b?c=d", "/v2/42/o/a/b?c=d"),
        ("/users/4%202/orders/a", "/v2/4%202/o/a"),
        ("/users/x/../42/orders/a", "/v2/42/o/a"),
        ("/old?a=1", "/new/place?a=1"),
    ] {
        assert_eq!(ask(&gateway, "GET", "a", asked).status, 200, "{asked}");
        assert_eq!(target(&mut backend), seen, "{asked}");
    }
    expect_refusal(&ask(&gateway, "GET", "a", "/users//orders/a"), 404, "not_found");
}

/// A route that tells the backend its name.
fn named(name: &str, rest: &str) -> String {
    format!(
        "[[routes]]\naccess = \"public\"\nname = \"{name}\"\nupstream = \"back\"\n{rest}\n[routes.request_headers]\n\
         set = {{ X-Route = \"{name}\" }}\n"
    )
}

#[track_caller]
fn expect_route(gateway: &Gateway, backend: &mut Backend, (method, host, path): (&str, &str, &str), wanted: &str) {
    assert_eq!(ask(gateway, method, host, path).status, 200, "{method} {host}{path}");
    let seen = backend.request().head;
    assert_eq!(seen.field("x-route"), Some(wanted), "{method} {host}{path}");
}

#[test]
fn the_most_specific_path_wins_whatever_the_order() {
    let mut backend = Backend::ok();
    let routes = [
        named("all", "path = \"/*\""),
        named("parameter", "path = \"/a/{id}\""),
        named("prefix", "path = \"/a/*\""),
        named("exact", "path = \"/a/b\""),
        named("longer", "path = \"/a/b/c/*\""),
        named("below", "path = \"/a/{id}/*\""),
        named("posts", "path = \"/m/*\"\nmethods = [\"POST\"]"),
        named("others", "path = \"/m/*\""),
    ];
    let gateway = routed(&backend, &routes.concat());
    for (method, path, wanted) in [
        ("GET", "/a/b", "exact"),
        ("GET", "/a/c", "parameter"),
        ("GET", "/a", "prefix"),
        ("GET", "/a/", "prefix"),
        ("GET", "/a/b/c/d", "longer"),
        ("GET", "/a/b/c", "longer"),
        ("GET", "/a/x/c", "below"),
        ("GET", "/b", "all"),
        ("GET", "/", "all"),
        ("POST", "/m/x", "posts"),
        ("GET", "/m/x", "others"),
        ("POST", "/m", "posts"),
    ] {
        expect_route(&gateway, &mut backend, (method, "a", path), wanted);
    }
}

#[test]
fn the_most_specific_host_wins() {
    let mut backend = Backend::ok();
    let routes = [
        named("any", "path = \"/*\""),
        named("wild", "hosts = [\"*.example.com\"]\npath = \"/*\""),
        named("deep", "hosts = [\"*.b.example.com\"]\npath = \"/*\""),
        named("exact", "hosts = [\"api.example.com\", \"other.test\"]\npath = \"/*\""),
    ];
    let gateway = routed(&backend, &routes.concat());
    for (host, wanted) in [
        ("api.example.com", "exact"),
        ("API.Example.COM:8080", "exact"),
        ("other.test", "exact"),
        ("www.example.com", "wild"),
        ("a.b.example.com", "deep"),
        ("b.example.com", "wild"),
        ("example.com", "any"),
        ("notexample.com", "any"),
        ("[::1]:80", "any"),
    ] {
        expect_route(&gateway, &mut backend, ("GET", host, "/x"), wanted);
    }
    // A target that names its host says the same.
    expect_route(&gateway, &mut backend, ("GET", "other.test", "http://other.test:80/x"), "exact");
}

#[test]
fn other_methods_are_told_which_there_are() {
    let mut backend = Backend::ok();
    let routes = "[[routes]]\naccess = \"public\"\npath = \"/x\"\nupstream = \"back\"\nmethods = [\"POST\", \"GET\"]";
    let gateway = routed(&backend, routes);
    let answer = ask(&gateway, "DELETE", "a", "/x");
    expect_refusal(&answer, 405, "method_not_allowed");
    let mut allowed: Vec<_> = answer.field("allow").expect("a 405 has Allow").split(", ").collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
    assert!(backend.requests().is_empty());
    // What answers GET answers HEAD; methods have their case.
    assert_eq!(ask(&gateway, "HEAD", "a", "/x").status, 200);
    assert_eq!(backend.request().head.first_line, "HEAD /x HTTP/1.1");
    expect_refusal(&ask(&gateway, "get", "a", "/x"), 405, "method_not_allowed");
    expect_refusal(&ask(&gateway, "GET", "a", "/y"), 404, "not_found");
}

#[test]
fn the_backend_sees_the_normal_form() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    for (asked, seen) in [
        ("/", "/"),
        ("/a/./b/../c", "/a/c"),
        ("//a///b/", "/a/b/"),
        ("/a/%2e%2E/b", "/b"),
        ("/%7euser/%41", "/~user/A"),
        ("/a%3ab%20c", "/a%3Ab%20c"),
        ("/a%252e", "/a%252e"),
        ("/a/b;../c", "/a/b;../c"),
        ("/a?b=/../c%2f//", "/a?b=/../c%2f//"),
        ("/a?", "/a?"),
        ("http://a/x/../y?z", "/y?z"),
        ("http://a", "/"),
        ("http://a?q", "/?q"),
    ] {
        assert_eq!(ask(&gateway, "GET", "a", asked).status, 200, "{asked}");
        assert_eq!(target(&mut backend), seen, "{asked}");
    }
}

#[test]
fn doubled_slashes_are_kept_where_the_route_says_so_and_lead_past_no_guard() {
    let mut backend = Backend::ok();
    let open = "[[routes]]\naccess = \"public\"\nupstream = \"back\"\n";
    let routes = format!(
        "{open}path = \"/proxy/*\"\nmerge_slashes = false\nstrip_prefix = \"/proxy\"\n\
         {open}path = \"/raw/{{id}}/*\"\nmerge_slashes = false\nrewrite = \"/{{id}}/{{rest}}\"\nallow_encoded_slash = true\n\
         {open}path = \"/*\"\n\
         [[routes]]\nupstream = \"back\"\npath = \"/proxy/admin/*\"\n\
         [[routes]]\nupstream = \"back\"\npath = \"/admin/*\"\nmerge_slashes = false\n"
    );
    let gateway = routed(&backend, &routes);
    for (asked, seen) in [
        ("/proxy/https://a.test/b?c=//d", "/https://a.test/b?c=//d"),
        ("/proxy/https%3A//a.test///b/", "/https%3A//a.test///b/"),
        ("/proxy/a/./b//../c", "/a/c"),
        ("/proxy/a//%2e/b//", "/a//b//"),
        ("/raw/7/x//y%2Fz", "/7/x//y%2Fz"),
        // Without its first slashes it leads there, with them elsewhere: then they are none.
        ("//proxy/https://a.test", "/https:/a.test"),
        ("/raw//7//x", "/7/x"),
        // Other routes merge as ever.
        ("/a//b", "/a/b"),
        ("//", "/"),
    ] {
        assert_eq!(ask(&gateway, "GET", "a", asked).status, 200, "{asked}");
        assert_eq!(target(&mut backend), seen, "{asked}");
    }
    for guarded in [
        "/proxy/admin//x",
        "/proxy//admin/x",
        "//proxy//admin//x",
        "/proxy/%61dmin//",
        "/proxy/x//../admin",
        "/admin//x",
        "//admin/x",
        "/a/..//admin",
    ] {
        expect_refusal(&ask(&gateway, "GET", "a", guarded), 401, "token_missing");
    }
    // Whoever cuts parameters off and merges would see what is guarded.
    expect_refusal(&ask(&gateway, "GET", "a", "/proxy//;x/admin/y"), 400, "bad_request");
    assert!(backend.requests().is_empty());
}

#[test]
fn paths_without_a_normal_form_are_refused() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    for path in [
        "/..",
        "/a/../../b",
        "/%2e%2e/b",
        "/%",
        "/%4",
        "/%zz",
        "/a%00b",
        "/a%0d%0aX:1",
        "/%7f",
        "/a/..;/b",
        "/a/%2e%2e%3bx",
    ] {
        expect_refusal(&ask(&gateway, "GET", "a", path), 400, "bad_request");
    }
    assert!(backend.requests().is_empty());
}

#[test]
fn an_escaped_slash_is_refused_unless_the_route_allows_it() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    for path in ["/a%2Fb", "/a%2f..%2fb", "/a%5Cb", "/a%5cb"] {
        expect_refusal(&ask(&gateway, "GET", "a", path), 400, "bad_request");
    }
    assert!(backend.requests().is_empty());
    let gateway = Setup { route: "allow_encoded_slash = true", ..Setup::default() }.start(&[backend.address()]);
    for (asked, seen) in [("/a%2fb", "/a%2Fb"), ("/a%5cb/../c", "/c")] {
        assert_eq!(ask(&gateway, "GET", "a", asked).status, 200, "{asked}");
        assert_eq!(target(&mut backend), seen, "{asked}");
    }
}

#[test]
fn a_path_that_leads_elsewhere_without_its_parameters_is_refused() {
    let mut backend = Backend::ok();
    let routes = named("all", "path = \"/*\"")
        + &named("admin", "path = \"/api/admin/*\"")
        + &named("slash", "path = \"/slash/\"")
        + &named("item", "path = \"/items/{id}\"");
    let gateway = routed(&backend, &routes);
    for path in [
        "/api/admin;x/users",
        "/api;/admin/users",
        "/api/admin%3bx/users",
        "/api/;x/admin/users",
        "/health;x",
        "/slash/;x",
        "/slash/%3bx",
    ] {
        expect_refusal(&ask(&gateway, "GET", "a", path), 400, "bad_request");
    }
    for (path, wanted) in [
        ("/shop;v=2/a;b", "all"),
        ("/api/admin/users;v=2", "admin"),
        ("/api/admin/;x", "admin"),
        ("/items/5;v=2", "item"),
    ] {
        expect_route(&gateway, &mut backend, ("GET", "a", path), wanted);
    }
    assert!(backend.requests().is_empty());
}

#[test]
fn a_host_with_the_roots_dot_is_the_same_host() {
    let mut backend = Backend::ok();
    let routes = named("any", "path = \"/*\"")
        + &named("admin", "path = \"/*\"\nhosts = [\"admin.example.com\"]")
        + &named("star", "path = \"/*\"\nhosts = [\"*.shop.example\"]");
    let gateway = routed(&backend, &routes);
    for (host, wanted) in [
        ("admin.example.com.", "admin"),
        ("ADMIN.example.com.:80", "admin"),
        ("a.shop.example.", "star"),
        ("example.com.", "any"),
    ] {
        expect_route(&gateway, &mut backend, ("GET", host, "/x"), wanted);
    }
    for host in ["admin.example.com..", ".shop.example", "a..shop.example", "."] {
        expect_refusal(&ask(&gateway, "GET", host, "/x"), 400, "bad_request");
    }
}

#[test]
fn some_methods_are_about_the_gateway_or_for_nobody() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    client.send("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.read_response();
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert!(answer.field("allow").is_some() && answer.field("x-request-id").is_some(), "{answer:?}");
    // The connection is as good as before.
    client.send("TRACE /x HTTP/1.1\r\nHost: a\r\n\r\n");
    expect_refusal(&client.read_response(), 501, "not_implemented");
    client.send("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n");
    expect_refusal(&client.read_response(), 501, "not_implemented");
    assert!(backend.requests().is_empty());
    assert_eq!(ask(&gateway, "OPTIONS", "a", "/x").status, 200);
    assert_eq!(backend.request().head.first_line, "OPTIONS /x HTTP/1.1");
}

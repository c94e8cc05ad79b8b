//! Guards hold in every spelling that a service knows: what real servers read as a guarded path or host is never passed to
//! them as a public one. Each spelling is first sent to the server itself, which shows that the guard is needed.

use super::{Setup, expect_refusal};
use crate::{
    backend::Backend,
    client::{Client, Response},
    harness::Gateway,
    servers::web::WebServer,
};

const KEYS: &str =
    "[[auth.keys]]\nkid = \"test\"\nalgorithm = \"HS256\"\nsecret = \"a secret of the tests, long enough for HS256\"\n";

/// A spelling of `/admin/…`, and which servers read it so: nginx, node, Python.
const PATHS: [(&str, [bool; 3]); 20] = [
    ("/admin/x", [true, true, true]),
    ("/%61dmin/x", [true, true, true]),
    ("//admin/x", [true, false, true]),
    ("/enc/../admin/x", [true, true, true]),
    ("/admin%2Fx", [true, true, true]),
    ("/%2Fadmin%2Fx", [true, true, true]),
    ("/enc%2F..%2Fadmin/x", [true, true, true]),
    ("/enc/..%2Fadmin/x", [true, true, true]),
    ("/enc/..%2fadmin/x", [true, true, true]),
    ("/enc/%2E%2E%2Fadmin/x", [true, true, true]),
    ("/enc/.%2F..%2Fadmin/x", [true, true, true]),
    ("/enc/a%2F..%2F..%2Fadmin/x", [true, true, true]),
    ("/enc/%2F..%2F..%2Fadmin/x", [false, true, true]),
    ("/enc/..%2F..%2Fadmin/x", [false, true, true]),
    ("/enc/%2F%2F..%2F..%2F..%2Fadmin/x", [false, true, true]),
    ("/enc/..%5Cadmin/x", [false, true, false]),
    ("/enc/.%5C..%5Cadmin%5Cx", [false, true, false]),
    ("/enc%5C..%5Cadmin/x", [false, true, false]),
    ("/%2Fx/admin/y", [false, true, false]),
    ("/%5C%5Cx/admin/y", [false, true, false]),
];

#[track_caller]
fn ask(client: &mut Client, host: &str, path: &str) -> Response {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.read_response()
}

/// `/admin/*` asks for a token, `/enc/*` and the rest ask for nothing and take escaped slashes.
fn before(server: &WebServer) -> Gateway {
    let rest = format!(
        "{KEYS}[[routes]]\npath = \"/admin/*\"\nupstream = \"back\"\nallow_encoded_slash = true\n\
         [[routes]]\npath = \"/enc/*\"\nupstream = \"back\"\naccess = \"public\"\nallow_encoded_slash = true\n\
         [[routes]]\npath = \"/*\"\nhosts = [\"*.in.test\"]\nupstream = \"back\"\npreserve_host = true\n"
    );
    let route = "allow_encoded_slash = true\npreserve_host = true";
    Setup { rest: &rest, route, ..Setup::default() }.start(&[server.address()])
}

/// Sends every spelling to a server and then through the gateway, from connections to all shards.
#[track_caller]
fn expect_guarded(server: &WebServer, which: usize) {
    let gateway = before(server);
    let mut clients: Vec<Client> = (0..16).map(|_| gateway.connect()).collect();
    for (path, readers) in PATHS {
        let itself = ask(&mut Client::connect(server.address()), "a", path);
        assert_eq!(itself.text() == "admin", readers[which], "{path}: {itself:?}");
        for client in &mut clients {
            let answer = ask(client, "a", path);
            assert!(matches!(answer.status, 400 | 401), "{path}: {answer:?}");
        }
    }
    for path in ["/enc/a%2Fb", "/enc/%40x%2F..%2Fy", "/public", "/enc/x%2F../x"] {
        assert_eq!(ask(&mut clients[0], "a", path).text(), "other", "{path}");
    }
}

#[test]
fn nginx_gets_no_guarded_path_from_a_public_route() {
    let Some(server) = WebServer::nginx() else { return };
    expect_guarded(&server, 0);
}

#[test]
fn node_gets_no_guarded_path_from_a_public_route() {
    let Some(server) = WebServer::node() else { return };
    expect_guarded(&server, 1);
}

#[test]
fn python_gets_no_guarded_path_from_a_public_route() {
    let Some(server) = WebServer::python() else { return };
    expect_guarded(&server, 2);
}

#[test]
fn nginx_gets_no_host_of_a_guarded_wildcard_from_a_route_of_any_host() {
    let Some(server) = WebServer::nginx() else { return };
    let gateway = before(&server);
    let mut clients: Vec<Client> = (0..16).map(|_| gateway.connect()).collect();
    for (host, is_read, status) in [
        ("x.in.test", true, 401),
        ("X.In.Test.", true, 401),
        (".in.test", true, 400),
        (".in.test:80", true, 400),
        (".in.test.", true, 400),
        ("..in.test", false, 400),
        ("a..in.test", false, 400),
        ("in.test..", false, 400),
        (".", false, 400),
    ] {
        let itself = ask(&mut Client::connect(server.address()), host, "/x");
        assert_eq!(itself.text() == "admin", is_read, "{host}: {itself:?}");
        for client in &mut clients {
            let answer = ask(client, host, "/x");
            assert_eq!(answer.status, status, "{host}: {answer:?}");
            if status == 400 {
                // A malformed head ends its connection.
                *client = gateway.connect();
            }
        }
    }
    assert_eq!(ask(&mut clients[0], "in.test", "/x").text(), "other");
}

#[test]
fn a_server_behind_another_gets_no_guarded_path_from_a_public_route() {
    let Some(server) = WebServer::nginx() else { return };
    let gateway = before(&server);
    let mut clients: Vec<Client> = (0..16).map(|_| gateway.connect()).collect();
    for path in [
        "/enc/..%252Fadmin/x",
        // The first takes away one segment, which would have been two to the second.
        "/enc/x%252Fy%2F..%2F%252E%252E%2Fadmin/x",
        "/enc/x%252Fy%2F..%2F%252E%252E/admin/x",
        "/enc/a/x%252Fy%2F..%2F%252E%252E/%252E%252E/admin/x",
    ] {
        let itself = ask(&mut Client::connect(server.address()), "front.test", path);
        assert_eq!(itself.text(), "admin", "{path}: {itself:?}");
        for client in &mut clients {
            assert_eq!(ask(client, "front.test", path).status, 400, "{path}");
        }
    }
    for path in ["/enc/a%252Fb", "/enc/a%252Fb%2F..%2Fc", "/a;b=c%3B%40/d"] {
        assert_eq!(ask(&mut clients[0], "front.test", path).text(), "other", "{path}");
    }
}

/// A gateway with these routes to one backend, all public unless they say otherwise.
#[track_caller]
fn routed(backend: &Backend, routes: &[&str]) -> Gateway {
    let routes: Vec<String> =
        routes.iter().map(|route| format!("[[routes]]\nupstream = \"back\"\n{route}\n")).collect();
    let routes = routes.concat();
    Gateway::start(&format!("[upstreams.back]\ninstances = [\"{}\"]\n{KEYS}{routes}", backend.address()))
}

const PUBLIC: &str = "access = \"public\"\nallow_encoded_slash = true\n";

#[test]
fn what_is_stripped_or_rewritten_is_read_as_the_service_does() {
    let mut backend = Backend::ok();
    let gateway = routed(
        &backend,
        &[
            &format!("{PUBLIC}path = \"/enc/*\"\nstrip_prefix = \"/enc\""),
            &format!("{PUBLIC}path = \"/api/shop/*\"\nstrip_prefix = \"/api\""),
            &format!("{PUBLIC}path = \"/users/{{id}}/*\"\nrewrite = \"/v2/{{id}}/of/{{rest}}\""),
        ],
    );
    for path in [
        // Above what is left once the prefix is gone, though not above the root of what was asked.
        "/enc/..%2Fenc/x",
        "/enc/a%2F..%2F..%2Fenc/x",
        "/enc/..%5Cenc",
        "/api/shop/..%2Fadmin/x",
        "/api/shop/..%252Fadmin/x",
        "/users/7/..%2F..%2Fusers%2F7/x",
        "/users/7/a%2F..%2F..%2Fx",
        "/users/a%2F..%2F..%2Fb/x",
    ] {
        expect_refusal(&gateway.get(path), 400, "bad_request");
    }
    assert!(backend.requests().is_empty());
    for (path, seen) in [
        ("/enc/a%2Fb", "/a%2Fb"),
        ("/enc/%2Fhome%2Fx", "/%2Fhome%2Fx"),
        ("/api/shop/a%2F..%2Fb", "/shop/a%2F..%2Fb"),
        ("/users/7/a%2F..%2Fb%3Fc", "/v2/7/of/a%2F..%2Fb%3Fc"),
        ("/users/7/http%3A%2F%2Fa.test%2F%25", "/v2/7/of/http%3A%2F%2Fa.test%2F%25"),
    ] {
        assert_eq!(gateway.get(path).status, 200, "{path}");
        assert_eq!(backend.request().head.first_line, format!("GET {seen} HTTP/1.1"), "{path}");
    }
}

#[test]
fn a_guard_holds_where_an_escape_stands_for_what_may_stand_plain() {
    let mut backend = Backend::ok();
    let gateway = routed(
        &backend,
        &[
            &format!("{PUBLIC}path = \"/*\""),
            "path = \"/users/@me\"",
            "path = \"/list%5B0%5D\"",
            "path = \"/admin.php\"",
            "path = \"/orders\"\nmethods = [\"GET\"]",
            "access = \"public\"\nname = \"rest\"\npath = \"/orders\"",
        ],
    );
    for path in
        ["/users/%40me", "/list[0]", "/admin.php%3Fx.css", "/users%252F@me", "/users/@me%3Bx", "/health%2Fx%5C.."]
    {
        expect_refusal(&gateway.get(path), 400, "bad_request");
    }
    let mut client = gateway.connect();
    for (method, status) in [("GET", 401), ("get", 400), ("Get", 400), ("purge", 200), ("POST", 200)] {
        client.send(format!("{method} /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(client.read_response().status, status, "{method}");
    }
    assert_eq!(backend.requests().len(), 2);
    for path in ["/users/@me", "/list%5B0%5D"] {
        expect_refusal(&gateway.get(path), 401, "token_missing");
    }
    for path in ["/100%25", "/a@b/%40", "/x[1]", "/q%3Fr", "/a;b=c/d%3Be", "/~%7E*"] {
        assert_eq!(gateway.get(path).status, 200, "{path}");
    }
}

#[test]
fn the_log_tells_how_a_refused_path_was_read() {
    let backend = Backend::ok();
    let routes = format!(
        "[log]\nlevel = \"debug\"\n[upstreams.back]\ninstances = [\"{}\"]\n{KEYS}[[routes]]\nupstream = \"back\"\n\
         path = \"/admin/*\"\nname = \"admins\"\n[[routes]]\nupstream = \"back\"\npath = \"/*\"\n{PUBLIC}",
        backend.address()
    );
    let gateway = Gateway::start(&routes);
    expect_refusal(&gateway.get("/enc/..%2Fadmin/x"), 400, "bad_request");
    let told = "read escapes undone, slashes merged and dots resolved, the path leads to admins";
    gateway.log_until(told, std::time::Duration::from_secs(10));
}

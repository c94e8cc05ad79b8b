//! CORS by the rules of the Fetch standard, over real sockets: what pages of other origins are told, by whomever answers.

use std::net::SocketAddr;

use super::expect_refusal;
use crate::{
    backend::Backend,
    client::{Client, Response},
    harness::Gateway,
};

const SHOP: &str = "https://shop.example";

fn start(backend: SocketAddr, cors: &str, route: &str) -> Gateway {
    Gateway::start(&format!(
        "[cors]\n{cors}\n[limits.one]\nquota = 1\nwindow = \"1d\"\napplies = \"named\"\n\
         [upstreams.back]\ninstances = [\"{backend}\"]\n[upstreams.away]\ninstances = [\"127.0.0.1:9\"]\n\
         [[routes]]\nname = \"all\"\npath = \"/*\"\nupstream = \"back\"\naccess = \"public\"\n{route}\n\
         [[routes]]\npath = \"/limited\"\nupstream = \"back\"\naccess = \"public\"\nlimits = [\"one\"]\n\
         [[routes]]\npath = \"/away\"\nupstream = \"away\"\naccess = \"public\"\n\
         [[routes]]\npath = \"/post\"\nmethods = [\"POST\"]\nupstream = \"back\"\naccess = \"public\"\n"
    ))
}

#[track_caller]
fn ask(gateway: &Gateway, method: &str, path: &str, fields: &[(&str, &str)]) -> Response {
    let mut client = gateway.connect();
    let fields: String = fields.iter().flat_map(|(name, value)| [name, ": ", value, "\r\n"]).collect();
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    client.read_response()
}

/// A backend that says this to everybody.
fn saying(answer: &str) -> Backend {
    let answer = answer.to_owned();
    Backend::answering(move |_| answer.clone())
}

/// The fields that say something of CORS, in order of their names.
fn cors_of(answer: &Response) -> Vec<String> {
    let is_cors = |name: &str| name == "vary" || name.starts_with("access-control-");
    let fields = answer.fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    let mut found: Vec<_> =
        fields.filter(|(name, _)| is_cors(name)).map(|(name, value)| format!("{name}: {value}")).collect();
    found.sort();
    found
}

const EXPOSED: &str = "access-control-expose-headers: RateLimit, RateLimit-Policy, Retry-After, X-Request-Id";
const ORIGIN: &str = "access-control-allow-origin: https://shop.example";
const VARY: &str = "vary: Origin";
const VARY_PREFLIGHT: &str = "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers";

fn preflight<'f>(origin: &'f str, method: &'f str, headers: &'f str) -> Vec<(&'f str, &'f str)> {
    let all =
        [("Origin", origin), ("Access-Control-Request-Method", method), ("Access-Control-Request-Headers", headers)];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

#[test]
fn a_preflight_is_answered_here_and_reaches_nobody() {
    let mut backend = Backend::ok();
    let gateway = start(backend.address(), "origins = [\"https://shop.example\"]", "");
    for path in ["/x", "/limited", "/limited", "/limited", "/away", "/post"] {
        let answer = ask(&gateway, "OPTIONS", path, &preflight(SHOP, "POST", "authorization, content-type"));
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{path}");
        assert!(answer.field("x-request-id").is_some());
        assert_eq!(
            cors_of(&answer),
            [
                "access-control-allow-headers: Authorization, Content-Type, Idempotency-Key, X-Request-Id",
                "access-control-allow-methods: GET, HEAD, POST, PUT, PATCH, DELETE",
                ORIGIN,
                "access-control-max-age: 600",
                VARY_PREFLIGHT,
            ],
            "{path}"
        );
    }
    // What no route takes may be asked for, so that the page can read the refusal.
    for (method, path, status) in [("GET", "/health", 200), ("POST", "/health", 405), ("DELETE", "/auth/me", 405)] {
        let answer = ask(&gateway, "OPTIONS", path, &preflight(SHOP, method, ""));
        assert_eq!((answer.status, answer.field("access-control-allow-origin")), (204, Some(SHOP)), "{method} {path}");
        let answer = ask(&gateway, method, path, &[("Origin", SHOP)]);
        assert_eq!((answer.status, answer.field("access-control-allow-origin")), (status, Some(SHOP)));
        // Whoever only asks what there is, and no browser for a page, is told what there is.
        assert_eq!(ask(&gateway, "OPTIONS", path, &[("Origin", SHOP)]).status, 405);
    }
    assert_eq!(ask(&gateway, "OPTIONS", "/a%00b", &preflight(SHOP, "GET", "")).status, 400);
    assert!(backend.requests().is_empty(), "a preflight never reaches a service");
    assert_eq!(ask(&gateway, "GET", "/limited", &[]).status, 200, "and costs nobody's quota");
}

#[test]
fn what_a_preflight_does_not_allow_is_missing_in_its_answer() {
    let mut backend = Backend::ok();
    let gateway = start(backend.address(), "origins = [\"https://shop.example\", \"https://*.apps.example:8443\"]", "");
    let long = format!("https://{}.apps.example:8443", "a.".repeat(200));
    for (origin, method, headers) in [
        ("https://evil.example", "GET", ""),
        ("https://shop.example.evil.example", "GET", ""),
        ("https://shop.example:443", "GET", ""),
        ("http://shop.example", "GET", ""),
        ("https://apps.example:8443", "GET", ""),
        ("https://a.apps.example", "GET", ""),
        ("https://evil.example/.apps.example:8443", "GET", ""),
        ("null", "GET", ""),
        ("*", "GET", ""),
        (&long, "GET", ""),
        (SHOP, "P OST", ""),
        (SHOP, &"M".repeat(65), ""),
        (SHOP, "GET", "x-a\tb"),
        (SHOP, "GET", "x-\u{e9}"),
        (SHOP, "GET", &"a,".repeat(3_000)),
    ] {
        let answer = ask(&gateway, "OPTIONS", "/x", &preflight(origin, method, headers));
        assert_eq!(answer.status, 204, "{origin} {method} {headers}");
        assert_eq!(cors_of(&answer), [VARY_PREFLIGHT], "{origin} {method} {headers}");
    }
    for twice in [("Origin", SHOP), ("Access-Control-Request-Method", "GET"), ("Access-Control-Request-Headers", "a")] {
        let mut fields = preflight(SHOP, "GET", "a");
        fields.push(twice);
        assert_eq!(cors_of(&ask(&gateway, "OPTIONS", "/x", &fields)), [VARY_PREFLIGHT], "{twice:?}");
    }
    let answer = ask(&gateway, "OPTIONS", "/x", &preflight("https://a.b.apps.example:8443", "GET", ""));
    assert_eq!(answer.field("access-control-allow-origin"), Some("https://a.b.apps.example:8443"));
    assert!(backend.requests().is_empty());
}

#[test]
fn an_options_request_that_is_no_preflight_is_a_request() {
    let mut backend = Backend::ok();
    let gateway = start(backend.address(), "origins = [\"https://shop.example\"]", "");
    for fields in [&[("Origin", SHOP)][..], &[("Access-Control-Request-Method", "GET")], &[]] {
        assert_eq!(ask(&gateway, "OPTIONS", "/x", fields).status, 200, "{fields:?}");
        assert_eq!(backend.request().head.first_line, "OPTIONS /x HTTP/1.1");
    }
    // A GET that carries a preflight's fields is a GET.
    assert_eq!(ask(&gateway, "GET", "/x", &preflight(SHOP, "PUT", "a")).status, 200);
}

#[test]
fn answers_are_for_allowed_origins_and_what_services_said_goes() {
    let backend = saying(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAccess-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\n\
         Access-Control-Expose-Headers: X-Secret\r\nVary: Accept-Encoding\r\n\r\nok",
    );
    let gateway = start(backend.address(), "origins = [\"https://shop.example\"]", "");
    let with = |origin: &str| cors_of(&ask(&gateway, "GET", "/x", &[("Origin", origin)]));
    assert_eq!(with(SHOP), [ORIGIN, EXPOSED, "vary: Accept-Encoding", VARY]);
    for origin in ["https://evil.example", "null", ""] {
        assert_eq!(with(origin), ["vary: Accept-Encoding", VARY], "{origin}");
    }
    // Without an origin, too: a cache must not give that answer to a page.
    assert_eq!(cors_of(&ask(&gateway, "GET", "/x", &[])), ["vary: Accept-Encoding", VARY]);
    let twice = cors_of(&ask(&gateway, "GET", "/x", &[("Origin", SHOP), ("Origin", SHOP)]));
    assert_eq!(twice, ["vary: Accept-Encoding", VARY]);
}

#[test]
fn vary_is_said_once() {
    for vary in ["Accept, ORIGIN", "*"] {
        let backend = saying(&format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVary: {vary}\r\n\r\nok"));
        let gateway = start(backend.address(), "origins = [\"https://shop.example\"]", "");
        let answer = ask(&gateway, "GET", "/x", &[("Origin", SHOP)]);
        assert_eq!(cors_of(&answer), [ORIGIN, EXPOSED, &format!("vary: {vary}")]);
    }
}

#[test]
fn refusals_of_the_gateway_can_be_read_too() {
    let backend = Backend::ok();
    let gateway = start(backend.address(), "origins = [\"https://shop.example\"]", "");
    let origin = [("Origin", SHOP)];
    let mut client = gateway.connect();
    let mut limited = || {
        client.send(format!("GET /limited HTTP/1.1\r\nHost: a\r\nOrigin: {SHOP}\r\n\r\n"));
        client.read_response()
    };
    assert_eq!(limited().status, 200);
    let limited = limited();
    expect_refusal(&limited, 429, "rate_limited");
    assert!(limited.field("retry-after").is_some() && limited.field("ratelimit").is_some());
    let bad = ask(&gateway, "GET", "/a%zz", &origin);
    expect_refusal(&bad, 400, "bad_request");
    let away = ask(&gateway, "GET", "/away", &origin);
    expect_refusal(&away, 502, "upstream_unreachable");
    let method = ask(&gateway, "GET", "/post", &origin);
    for (what, answer) in [("limited", limited), ("away", away), ("method", method)] {
        assert_eq!(cors_of(&answer), [ORIGIN, EXPOSED, VARY], "{what}");
    }
    let health = ask(&gateway, "GET", "/health/live", &origin);
    assert_eq!((health.status, cors_of(&health)), (200, vec![ORIGIN.to_owned(), EXPOSED.to_owned(), VARY.to_owned()]));
    // What another origin's page is refused, it may not even read.
    assert_eq!(cors_of(&ask(&gateway, "GET", "/away", &[("Origin", "https://evil.example")])), [VARY]);
}

#[test]
fn for_everybody_the_answer_is_the_same() {
    let backend = Backend::ok();
    let gateway =
        start(backend.address(), "origins = [\"*\"]\nheaders = [\"*\"]\nmethods = [\"*\"]\nexposed = [\"*\"]", "");
    for fields in [&[("Origin", SHOP)][..], &[("Origin", "null")], &[]] {
        let answer = ask(&gateway, "GET", "/x", fields);
        assert_eq!(
            cors_of(&answer),
            ["access-control-allow-origin: *", "access-control-expose-headers: *"],
            "{fields:?}"
        );
    }
    // Names, not stars: a star does not stand for `Authorization`.
    let answer = ask(&gateway, "OPTIONS", "/x", &preflight(SHOP, "PURGE", "authorization,x-a"));
    assert_eq!(
        cors_of(&answer),
        [
            "access-control-allow-headers: authorization,x-a",
            "access-control-allow-methods: PURGE",
            "access-control-allow-origin: *",
            "access-control-max-age: 600",
            "vary: Access-Control-Request-Method, Access-Control-Request-Headers",
        ]
    );
}

#[test]
fn credentials_come_with_a_name() {
    let backend = Backend::ok();
    let cors = "origins = [\"https://shop.example\", \"null\"]\ncredentials = true\nexposed = []\nmax_age = \"0s\"\n\
                private_network = true\nheaders = []";
    let gateway = start(backend.address(), cors, "");
    let credentials = "access-control-allow-credentials: true";
    assert_eq!(cors_of(&ask(&gateway, "GET", "/x", &[("Origin", SHOP)])), [credentials, ORIGIN, VARY]);
    let answer = ask(&gateway, "GET", "/x", &[("Origin", "null")]);
    assert_eq!(cors_of(&answer), [credentials, "access-control-allow-origin: null", VARY]);
    assert_eq!(cors_of(&ask(&gateway, "GET", "/x", &[("Origin", "https://evil.example")])), [VARY]);
    let mut fields = preflight(SHOP, "PUT", "x-a");
    fields.push(("Access-Control-Request-Private-Network", "true"));
    assert_eq!(
        cors_of(&ask(&gateway, "OPTIONS", "/x", &fields)),
        [
            credentials,
            "access-control-allow-methods: GET, HEAD, POST, PUT, PATCH, DELETE",
            ORIGIN,
            "access-control-allow-private-network: true",
            "access-control-max-age: 0",
            VARY_PREFLIGHT,
        ]
    );
}

#[test]
fn a_route_has_rules_of_its_own_or_leaves_them_to_its_service() {
    let mut backend =
        saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAccess-Control-Allow-Origin: https://own.example\r\n\r\nok");
    let own = "[routes.cors]\norigins = [\"https://partner.example\"]\ncredentials = true";
    let gateway = start(backend.address(), "origins = [\"https://shop.example\"]", own);
    let origin = |path, origin| {
        let answer = ask(&gateway, "GET", path, &[("Origin", origin)]);
        answer.field("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(origin("/x", "https://partner.example").as_deref(), Some("https://partner.example"));
    assert_eq!(origin("/x", SHOP), None);
    assert_eq!(origin("/limited", SHOP).as_deref(), Some(SHOP));
    drop(gateway);
    backend.requests();
    let gateway = start(backend.address(), "origins = [\"https://shop.example\"]", "[routes.cors]\norigins = []");
    let answer = ask(&gateway, "OPTIONS", "/x", &preflight("https://own.example", "PUT", ""));
    assert_eq!(cors_of(&answer), ["access-control-allow-origin: https://own.example"], "the service's own answer");
    assert_eq!(backend.request().head.first_line, "OPTIONS /x HTTP/1.1");
}

#[test]
fn without_origins_services_answer_browsers_themselves() {
    let mut backend = saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAccess-Control-Allow-Origin: *\r\n\r\nok");
    let gateway = start(backend.address(), "", "");
    let answer = ask(&gateway, "GET", "/x", &[("Origin", SHOP)]);
    assert_eq!(cors_of(&answer), ["access-control-allow-origin: *"]);
    assert_eq!(ask(&gateway, "OPTIONS", "/x", &preflight(SHOP, "PUT", "")).status, 200);
    assert_eq!(backend.requests().len(), 2);
}

#[test]
fn a_rule_that_takes_the_origin_out_does_not_blind_the_gateway() {
    let mut backend = Backend::ok();
    let route =
        "[routes.request_headers]\nremove = [\"Origin\"]\n[routes.response_headers]\nadd = { Vary = \"Accept\" }";
    let gateway = start(backend.address(), "origins = [\"https://shop.example\"]", route);
    let mut client: Client = gateway.connect();
    // A long path is moved within the head.
    client.send(format!("GET /./a/../{} HTTP/1.1\r\nHost: a\r\nOrigin: {SHOP}\r\n\r\n", "b".repeat(3_000)));
    assert_eq!(cors_of(&client.read_response()), [ORIGIN, EXPOSED, "vary: Accept", VARY]);
    assert_eq!(backend.request().head.field("origin"), None);
}

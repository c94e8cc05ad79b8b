//! What limits of the rate of requests reach: callers, the endpoints for accounts, and requests that no route takes; and
//! whether pages can read that they are refused.

use std::net::TcpListener;

use jsonwebtoken::Algorithm;
use serde_json::json;

use super::{
    expect_refusal,
    tokens::{hostile, secret, token, unix_now},
};
use crate::{
    backend::Backend,
    client::{Client, Response},
    harness::Gateway,
};

const SHOP: &str = "https://shop.example";

/// A gateway with these sections, in front of one backend: `/me` for callers, `/open` for all without limits, `/tight`
/// with the limit `tight`, and no route that takes every path.
fn start(backend: &Backend, sections: &str) -> Gateway {
    Gateway::start(&format!(
        "[cors]\norigins = [\"{SHOP}\"]\n[limits.tight]\nquota = 1\nwindow = \"1d\"\napplies = \"named\"\n{sections}\n\
         [upstreams.back]\ninstances = [\"{}\"]\n\
         [[routes]]\npath = \"/me\"\nupstream = \"back\"\naccess = \"authenticated\"\n\
         [[routes]]\npath = \"/open\"\nupstream = \"back\"\naccess = \"public\"\nlimits = []\n\
         [[routes]]\npath = \"/tight\"\nmethods = [\"GET\"]\nupstream = \"back\"\naccess = \"public\"\nlimits = [\"tight\"]\n",
        backend.address()
    ))
}

/// Connections until each of the 4 shards has had its chance many times over.
fn everywhere(gateway: &Gateway, local: &str) -> Vec<Client> {
    let local = local.parse().expect("an address");
    (0..64).map(|_| Client::connect_from(local, gateway.address()).expect("the listener answers")).collect()
}

#[track_caller]
fn expect_all_shards_served(gateway: &Gateway) {
    let served = gateway.metrics().by_shard("shardgate_shard_requests_total");
    assert!(served.len() == 4 && served.iter().all(|count| *count > 0), "requests by shard: {served:?}");
}

/// Sends this once over each connection, and says how many were not limited. Those have this status.
#[track_caller]
fn passed(clients: &mut [Client], request: &str, status: u16) -> usize {
    let mut passed = 0;
    for client in clients {
        client.send(request);
        let answer = client.read_response();
        if answer.status == 429 {
            expect_refusal(&answer, 429, "rate_limited");
            assert!(answer.field("retry-after").is_some() && answer.field("ratelimit").is_some(), "{answer:?}");
        } else {
            assert_eq!(answer.status, status, "{request}: {answer:?}");
            passed += 1;
        }
    }
    passed
}

const PREFLIGHT: &str = "Origin: https://shop.example\r\nAccess-Control-Request-Method: GET\r\n";

#[test]
fn what_no_route_takes_is_counted_by_address() {
    let mut backend = Backend::ok();
    let gateway = start(&backend, "[limits.all]\nquota = 16\nwindow = \"1d\"");
    // Three other shards, each ahead by one at the most.
    let bound = 16..=16 + 3;
    for (host, line, status) in [
        (1, "GET /no/such/path", 404),
        (2, "DELETE /tight", 405),
        (3, "OPTIONS *", 204),
        (4, "GET /%00", 400),
        (5, "TRACE /open", 501),
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        let passed = passed(&mut everywhere(&gateway, &format!("127.0.0.{host}")), &request, status);
        assert!(bound.contains(&passed), "{line}: {passed}");
    }
    for (host, path) in [(6, "/me"), (7, "/tight")] {
        let request = format!("OPTIONS {path} HTTP/1.1\r\nHost: a\r\n{PREFLIGHT}\r\n");
        let mut clients = everywhere(&gateway, &format!("127.0.0.{host}"));
        let passed = passed(&mut clients, &request, 204);
        assert!(bound.contains(&passed), "a preflight to {path}: {passed}");
        // A page can read why.
        let refused = clients.iter_mut().find_map(|client| {
            client.send(&request);
            Some(client.read_response()).filter(|answer| answer.status == 429)
        });
        let refused = refused.expect("there is nothing left");
        assert_eq!(refused.field("access-control-allow-origin"), Some(SHOP));
        // The tight limit of a route is for those who use it.
        let tight = clients[0].get("/tight").status;
        assert_eq!(tight, 200, "after preflights to {path}");
    }
    assert_eq!(backend.requests().len(), 2);
    expect_all_shards_served(&gateway);
}

#[test]
fn whoever_is_limited_still_sees_health_and_what_is_exempt() {
    let backend = Backend::ok();
    let gateway = start(&backend, "[metrics]\nallow = [\"127.0.0.1\"]\n[limits.all]\nquota = 4\nwindow = \"1d\"");
    let mut clients = everywhere(&gateway, "127.0.0.1");
    let missing = "GET /no/such/path HTTP/1.1\r\nHost: a\r\n\r\n";
    let asked = passed(&mut clients, missing, 404) + passed(&mut clients, missing, 404);
    assert!((4..=4 + 3).contains(&asked), "{asked}");
    for path in ["/health", "/health/live", "/health/ready", "/.well-known/jwks.json", "/open"] {
        for line in ["GET", "HEAD"] {
            for client in clients.iter_mut().step_by(4) {
                client.send(format!("{line} {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
                let answer = client.try_read_response(line).expect("an answer");
                assert_eq!((answer.status, answer.field("ratelimit")), (200, None), "{line} {path}");
            }
        }
        let preflight = format!("OPTIONS {path} HTTP/1.1\r\nHost: a\r\n{PREFLIGHT}\r\n");
        assert_eq!(passed(&mut clients, &preflight, 204), clients.len(), "{path}");
    }
    assert_eq!(clients[0].get("/metrics").status, 200);
    expect_all_shards_served(&gateway);
}

#[test]
fn limits_that_are_named_or_for_others_leave_the_rest_alone() {
    let backend = Backend::ok();
    let one = "quota = 1\nwindow = \"1d\"";
    let limits = format!(
        "[limits.users]\nkey = \"user\"\n{one}\n[limits.whole]\nkey = \"route\"\n{one}\n\
         [limits.log-in]\napplies = \"auth\"\n{one}"
    );
    let gateway = start(&backend, &limits);
    let mut clients = everywhere(&gateway, "127.0.0.1");
    assert_eq!(passed(&mut clients, "GET /no HTTP/1.1\r\nHost: a\r\n\r\n", 404), clients.len());
    let preflight = format!("OPTIONS /me HTTP/1.1\r\nHost: a\r\n{PREFLIGHT}\r\n");
    assert_eq!(passed(&mut clients, &preflight, 204), clients.len());
}

/// A request of `/me` by this subject of this gateway's tokens.
fn me(subject: &str) -> String {
    let mut claims = hostile::claims(unix_now());
    claims["sub"] = json!(subject);
    let token = hostile::hs(r#"{"alg":"HS256","typ":"JWT","kid":"hs"}"#, &claims.to_string());
    format!("GET /me HTTP/1.1\r\nHost: shop.test\r\nAuthorization: Bearer {token}\r\n\r\n")
}

#[test]
fn each_user_has_an_allowance_of_his_own_wherever_he_comes_from() {
    let mut backend = Backend::ok();
    let limits = "[limits.users]\nkey = \"user\"\nquota = 32\nwindow = \"1d\"";
    let gateway = start(&backend, &format!("{}{limits}", secret("hs", true)));
    // Two other addresses and every shard: it is the user that is counted. Each shard is ahead by two at the most.
    let bound = 32..=32 + 3 * 2;
    let mut clients = everywhere(&gateway, "127.0.0.1");
    clients.extend(everywhere(&gateway, "127.0.0.2"));
    for user in ["ann", "ben"] {
        let passed = passed(&mut clients, &me(user), 200);
        assert!(bound.contains(&passed), "{user}: {passed}");
        assert_eq!(backend.requests().len(), passed, "what is refused goes no further");
    }
    // Who shows no valid token is not counted here, and has not what is left of anybody's.
    assert_eq!(passed(&mut clients, "GET /me HTTP/1.1\r\nHost: a\r\n\r\n", 401), clients.len());
    expect_all_shards_served(&gateway);
}

#[test]
fn log_ins_have_limits_of_their_own() {
    let backend = Backend::ok();
    let accounts = "[accounts]\npassword_memory = \"64KiB\"\npassword_passes = 1\n";
    let limits = "[limits.log-in]\napplies = \"auth\"\nquota = 8\nwindow = \"1d\"";
    let gateway = start(&backend, &format!("{accounts}{limits}"));
    let mut clients = everywhere(&gateway, "127.0.0.1");
    // It lacks what a log-in has, which is noticed only after it was counted.
    let log_in =
        "POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    let preflight = format!(
        "OPTIONS /auth/login HTTP/1.1\r\nHost: a\r\nOrigin: {SHOP}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    );
    assert_eq!(passed(&mut clients, &preflight, 204), clients.len(), "a preflight takes nothing of it");
    // All endpoints together, by address; another address has its own, and other paths have none.
    let tried =
        passed(&mut clients, log_in, 422) + passed(&mut clients, "GET /auth/me HTTP/1.1\r\nHost: a\r\n\r\n", 401);
    assert!((8..=8 + 3).contains(&tried), "{tried}");
    let answer = clients[0].get("/open");
    assert_eq!((answer.status, answer.field("ratelimit")), (200, None));
    assert_eq!(passed(&mut everywhere(&gateway, "127.0.0.2")[..1], log_in, 422), 1);
    expect_all_shards_served(&gateway);
}

#[test]
fn a_page_can_read_why_it_is_refused() {
    let backend = Backend::ok();
    // Bound and gone: nobody listens where this issuer's keys should be.
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let issuer = format!("[[auth.issuers]]\nissuer = \"https://id.example\"\njwks_url = \"http://{nobody}/keys\"\n");
    let gateway = start(&backend, &format!("{}{issuer}", secret("hs", true)));
    let bearer = token("https://id.example", "one", Algorithm::RS256, "rsa.pem");
    let away = format!("/me HTTP/1.1\r\nAuthorization: Bearer {bearer}");
    let mut client = gateway.connect();
    let mut ask = |start: &str, origin: &str| -> Response {
        let start = if start.contains(" HTTP/1.1") { start.to_owned() } else { format!("{start} HTTP/1.1") };
        client.send(format!("GET {start}\r\nHost: a\r\nOrigin: {origin}\r\n\r\n"));
        client.read_response()
    };
    assert_eq!(ask("/tight", SHOP).status, 200);
    for (path, status, field) in [
        ("/me", 401, "www-authenticate"),
        ("/tight", 429, "ratelimit"),
        ("/tight", 429, "retry-after"),
        (&away, 503, "retry-after"),
        ("/no/such/path", 404, "x-request-id"),
        ("/%00", 400, "x-request-id"),
    ] {
        let answer = ask(path, SHOP);
        assert_eq!((answer.status, answer.field("access-control-allow-origin")), (status, Some(SHOP)), "{path}");
        let exposed = answer.field("access-control-expose-headers").unwrap_or_default();
        assert_eq!(exposed, "RateLimit, RateLimit-Policy, Retry-After, X-Request-Id", "{path}");
        assert!(answer.field(field).is_some() && answer.field("vary") == Some("Origin"), "{answer:?}");
        let other = ask(path, "https://evil.example");
        assert_eq!((other.status, other.field("access-control-allow-origin")), (status, None), "{path}");
    }
}

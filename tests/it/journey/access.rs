//! Who is let in: tokens on routes, what the backend is told of the caller, roles and permissions.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{Setup, expect_refusal};
use crate::{
    backend::Backend,
    client::{Client, Response},
    harness::Gateway,
};

const SECRET: &str = "a secret of the tests, long enough for HS256";
pub(crate) const KEYS: &str =
    "[[auth.keys]]\nkid = \"test\"\nalgorithm = \"HS256\"\nsecret = \"a secret of the tests, long enough for HS256\"\n";

/// Seconds since 1970, by the clock that the gateway has too.
#[expect(clippy::disallowed_methods, reason = "tokens tell the time of day")]
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs()
}

/// A token with these claims over those that every token needs.
pub(crate) fn token(claims: &Value) -> String {
    let now = unix_now();
    let mut payload = json!({ "iss": "shardgate", "aud": "shardgate", "sub": "42", "iat": now, "exp": now + 600 });
    for (name, value) in claims.as_object().expect("claims are an object") {
        payload[name] = value.clone();
    }
    let part = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", part(&json!({ "alg": "HS256", "typ": "JWT", "kid": "test" })), part(&payload));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

#[track_caller]
fn ask_on(client: &mut Client, path: &str, fields: &str) -> Response {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\n"));
    client.read_response()
}

#[track_caller]
fn ask(gateway: &Gateway, path: &str, fields: &str) -> Response {
    ask_on(&mut gateway.connect(), path, fields)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// Connections until each of the 4 shards has one, or has had its chance many times over.
fn on_every_shard(gateway: &Gateway) -> Vec<Client> {
    (0..64).map(|_| gateway.connect()).collect()
}

#[track_caller]
fn expect_all_shards_served(gateway: &Gateway) {
    let served = gateway.metrics().by_shard("shardgate_shard_requests_total");
    assert!(served.len() == 4 && served.iter().all(|count| *count > 0), "requests by shard: {served:?}");
}

/// A gateway before this backend, one route of which asks for a token; others ask for more, or for nothing.
fn guarded(backend: &Backend) -> Gateway {
    let rest = format!(
        "{KEYS}\
         [roles.editor]\npermissions = [\"events:write\", \"hub:*\"]\n\
         [[routes]]\npath = \"/me\"\nupstream = \"back\"\n\
         [[routes]]\npath = \"/admin\"\nupstream = \"back\"\nroles = [\"admin\", \"editor\"]\n\
         [[routes]]\npath = \"/write\"\nupstream = \"back\"\npermissions = [\"events:write\", \"hub:publish\"]\n\
         [[routes]]\npath = \"/only/*\"\nupstream = \"back\"\nmethods = [\"GET\", \"POST\"]\nroles = [\"admin\"]\n\
         [[routes]]\npath = \"/quiet\"\nupstream = \"back\"\nforward_authorization = false\n"
    );
    Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()])
}

#[test]
fn a_route_asks_for_a_token_unless_it_says_otherwise() {
    let mut backend = Backend::ok();
    let gateway = guarded(&backend);
    let answer = ask(&gateway, "/me", "");
    expect_refusal(&answer, 401, "token_missing");
    assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=\"shardgate\""));
    for (fields, code) in [
        ("Authorization: Basic eA==\r\n".to_owned(), "token_missing"),
        ("Authorization: Bearer\r\n".to_owned(), "token_missing"),
        (bearer(""), "token_missing"),
        (bearer("x"), "token_invalid"),
        (bearer(&token(&json!({ "exp": unix_now() - 60 }))), "token_expired"),
        (bearer(&token(&json!({ "aud": "others" }))), "token_invalid"),
        (bearer(&token(&json!({}))) + &bearer(&token(&json!({}))), "token_invalid"),
    ] {
        let answer = ask(&gateway, "/me", &fields);
        expect_refusal(&answer, 401, code);
        let challenge = answer.field("www-authenticate").expect("a challenge");
        assert_eq!(challenge.contains("error=\"invalid_token\""), code != "token_missing", "{challenge}");
    }
    assert!(backend.requests().is_empty(), "nobody was let in");
    assert_eq!(ask(&gateway, "/elsewhere", "").status, 200, "a public route lets anybody in");
    assert_eq!(ask(&gateway, "/elsewhere", &bearer("x")).status, 200, "and looks at no token");
}

#[test]
fn what_a_guarded_path_does_not_take_falls_through_to_no_wider_route() {
    let mut backend = Backend::ok();
    let gateway = guarded(&backend);
    for method in ["DELETE", "PUT", "OPTIONS", "get", "PROPFIND"] {
        let mut client = gateway.connect();
        client.send(format!("{method} /only/x HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n"));
        let answer = client.read_response();
        expect_refusal(&answer, 405, "method_not_allowed");
        assert_eq!(answer.field("allow"), Some("GET, HEAD, POST"), "{method}");
    }
    expect_refusal(&ask(&gateway, "/only/x", ""), 401, "token_missing");
    assert!(backend.requests().is_empty(), "nobody was let in");
}

#[test]
fn the_backend_is_told_who_calls_and_nobody_else_says_it() {
    let mut backend = Backend::ok();
    let gateway = guarded(&backend);
    let token = token(&json!({ "role": "user", "sid": "s_1", "email": "a@b.c", "permissions": ["x"] }));
    let forged = "X-User-Id: 1\r\nx_user_role: admin\r\nX-Session-Id: s_2\r\n";
    for scheme in ["Bearer", "bearer", "BEARER "] {
        let fields = format!("{forged}Authorization: {scheme} {token}\r\n");
        assert_eq!(ask(&gateway, "/me", &fields).status, 200);
        let seen = backend.request().head;
        for (name, value) in [("x-user-id", "42"), ("x-user-role", "user"), ("x-session-id", "s_1")] {
            let values: Vec<&str> = seen
                .fields
                .iter()
                .filter(|(found, _)| found.to_ascii_lowercase().replace('_', "-") == name)
                .map(|(_, value)| value.as_str())
                .collect();
            assert_eq!(values, [value], "{name}: {seen:?}");
        }
        assert!(seen.field("authorization").is_some_and(|value| value.ends_with(&token)));
    }
    assert_eq!(ask(&gateway, "/quiet", &bearer(&token)).status, 200);
    assert_eq!(backend.request().head.field("authorization"), None);
    // A token without a session or a role says nothing of them.
    let bare = self::token(&json!({}));
    assert_eq!(ask(&gateway, "/me", &(forged.to_owned() + &bearer(&bare))).status, 200);
    let seen = backend.request().head;
    assert_eq!(
        [seen.field("x-user-id"), seen.field("x-user-role"), seen.field("x-session-id")],
        [Some("42"), None, None]
    );
    for line in gateway.access_lines(5) {
        assert_eq!(line["user"], "42", "{line}");
        assert!(!line.to_string().contains(&token), "{line}");
    }
}

#[test]
fn roles_and_permissions_are_asked_for_on_every_shard() {
    let backend = Backend::ok();
    let gateway = guarded(&backend);
    let mut clients = on_every_shard(&gateway);
    for (claims, admin, write) in [
        (json!({ "role": "admin" }), 200, 200),
        (json!({ "role": "editor" }), 200, 200),
        (json!({ "role": "user" }), 403, 403),
        (json!({ "role": "user", "permissions": ["events:write", "hub:publish"] }), 403, 200),
        (json!({ "role": "user", "permissions": ["events:write"] }), 403, 403),
        (json!({ "role": "service", "permissions": ["events:write"] }), 403, 200),
        (json!({ "role": "nobody", "permissions": ["*"] }), 403, 200),
        (json!({}), 403, 403),
    ] {
        let fields = bearer(&token(&claims));
        for client in &mut clients {
            let answer = ask_on(client, "/admin", &fields);
            assert_eq!(answer.status, admin, "{claims}");
            if admin == 403 {
                expect_refusal(&answer, 403, "forbidden");
                assert!(answer.field("www-authenticate").is_some_and(|value| value.contains("insufficient_scope")));
            }
            assert_eq!(ask_on(client, "/write", &fields).status, write, "{claims}");
            assert_eq!(ask_on(client, "/me", &fields).status, 200, "{claims}");
        }
    }
    expect_all_shards_served(&gateway);
}

#[test]
fn a_token_that_was_good_once_is_refused_when_it_expires() {
    let backend = Backend::ok();
    let rest = format!("[auth]\nleeway = \"0s\"\n{KEYS}[[routes]]\npath = \"/me\"\nupstream = \"back\"\n");
    let gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let mut clients = on_every_shard(&gateway);
    let exp = unix_now() + 3;
    let fields = bearer(&token(&json!({ "exp": exp })));
    for client in &mut clients {
        assert_eq!(ask_on(client, "/me", &fields).status, 200);
    }
    crate::harness::until(std::time::Duration::from_secs(10), "the token expires", || (unix_now() > exp).then_some(()));
    for client in &mut clients {
        expect_refusal(&ask_on(client, "/me", &fields), 401, "token_expired");
    }
    expect_all_shards_served(&gateway);
}

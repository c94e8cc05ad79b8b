//! Where a service sends its clients: to where the gateway is, whatever the service knows of itself.

use std::sync::{Arc, OnceLock};

use super::Setup;
use crate::{
    backend::Backend,
    client::{Fields, Response},
    harness::Gateway,
};

/// A backend that answers each request with the fields that its `X-Answer` lists, and `{own}` for its own authority.
fn echoing() -> Backend {
    let own: Arc<OnceLock<String>> = Arc::default();
    let known = Arc::clone(&own);
    let backend = Backend::answering(move |request| {
        let fields: String = request
            .head
            .fields
            .iter()
            .filter(|(name, _)| name == "X-Answer")
            .fold(String::new(), |lines, (_, line)| {
                lines + &line.replace("{own}", known.get().expect("it listens")) + "\r\n"
            });
        format!("HTTP/1.1 302 Found\r\n{fields}Content-Length: 0\r\n\r\n")
    });
    own.set(backend.address().to_string()).expect("nobody else sets it");
    backend
}

/// Asks for a path, and has the backend answer with these fields.
#[track_caller]
fn ask(gateway: &Gateway, path: &str, lines: &str, answer: &[&str]) -> Response {
    let answer = answer.iter().map(|line| format!("X-Answer: {line}\r\n")).collect::<Vec<_>>().concat();
    let mut client = gateway.connect();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.test:81\r\n{lines}{answer}\r\n"));
    client.read_response()
}

fn values<'f>(fields: &'f Fields, name: &str) -> Vec<&'f str> {
    fields.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
}

/// Routes to the one backend, besides the one that takes what is left.
fn routes(list: &[(&str, &str)]) -> String {
    let route = |(path, rest): &(&str, &str)| {
        format!("[[routes]]\naccess = \"public\"\npath = \"{path}\"\nupstream = \"back\"\n{rest}\n")
    };
    list.iter().map(route).collect()
}

#[test]
fn redirects_lead_back_through_the_gateway() {
    let backend = echoing();
    let rest = routes(&[
        ("/api/events/*", "strip_prefix = \"/api\""),
        ("/api/login", "strip_prefix = \"/api\""),
        ("/app/*", "strip_prefix = \"/app\""),
        ("/users/{id}/orders/*", "rewrite = \"/v2/{id}/{rest}\""),
        ("/fixed", "rewrite = \"/other\""),
        ("/named/*", "strip_prefix = \"/named\"\npreserve_host = true"),
        ("/off/*", "strip_prefix = \"/off\"\nrewrite_redirects = false"),
    ]);
    let gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let own = backend.address().to_string();
    let kept = format!("http://{own}/v3");
    let untouched = format!("http://{own}/x");
    for (path, sent, wanted) in [
        ("/api/events/1", "/events/2", "/api/events/2"),
        ("/api/events/1", "/login?next=/events/1", "/api/login?next=/events/1"),
        ("/api/events/1", "/about", "/about"),
        ("/api/events/1", "http://{own}/about", "/api/about"),
        ("/api/events/1", "HTTP://{own}/events/2#f", "/api/events/2#f"),
        ("/api/events/1", "//{own}/events/2", "/api/events/2"),
        ("/api/events/1", "/api/events/2", "/api/events/2"),
        ("/api/events/1", "https://{own}/events/2", &format!("https://{own}/events/2")),
        ("/api/events/1", "http://elsewhere.test/events/2", "http://elsewhere.test/events/2"),
        ("/api/events/1", "//elsewhere.test/events/2", "//elsewhere.test/events/2"),
        ("/api/events/1", "../x", "../x"),
        ("/api/events/1", "?page=2", "?page=2"),
        ("/app", "/", "/app/"),
        ("/app/", "http://{own}", "/app/"),
        ("/app/x", "/\\evil.test", "/\\evil.test"),
        ("/app/x", "http://{own}//evil.test/", "/app//evil.test/"),
        // Without a prefix only the authority is wrong.
        ("/plain", "/x", "/x"),
        ("/plain", "http://{own}/x?y", "/x?y"),
        ("/plain", "http://{own}//evil.test/", &format!("http://{own}//evil.test/")),
        ("/users/7/orders/1", "/v2/7/2", "/users/7/orders/2"),
        ("/users/7/orders", "http://{own}/v2/7/2?x", "/users/7/orders/2?x"),
        ("/users/7/orders/1?q=/1", "/v2/7", "/users/7/orders"),
        ("/users/7/orders/1", "http://{own}/v3", &kept),
        ("/fixed", "http://{own}/x", &untouched),
        ("/named/x", "http://shop.test:81/y", "/named/y"),
        ("/named/x", "/named/y", "/named/y"),
        ("/named/x", "http://{own}/y", &format!("http://{own}/y")),
        ("/off/x", "http://{own}/x", &untouched),
    ] {
        let answer = ask(&gateway, path, "", &[&format!("Location: {sent}"), &format!("Content-Location: {sent}")]);
        assert_eq!(values(&answer.fields, "location"), [wanted], "{path}: {sent}");
        assert_eq!(values(&answer.fields, "content-location"), [wanted], "{path}: {sent}");
    }
}

#[test]
fn cookies_are_sent_back_to_the_service_that_set_them() {
    let backend = echoing();
    let rest = routes(&[
        ("/api/events/*", "strip_prefix = \"/api\""),
        ("/off/*", "strip_prefix = \"/off\"\nrewrite_redirects = false"),
    ]);
    let gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let sent = ["a=1; Path=/events; HttpOnly", "b=/events; path=/events/x", "c=1; Path=/", "d=1", "e=1; Path=/other"];
    let lines: Vec<_> = sent.iter().map(|cookie| format!("Set-Cookie: {cookie}")).collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let answer = ask(&gateway, "/api/events/1", "", &lines);
    let led =
        ["a=1; Path=/api/events; HttpOnly", "b=/events; path=/api/events/x", "c=1; Path=/", "d=1", "e=1; Path=/other"];
    assert_eq!(values(&answer.fields, "set-cookie"), led);
    assert_eq!(values(&ask(&gateway, "/off/1", "", &lines).fields, "set-cookie"), sent);
}

#[test]
fn a_service_is_told_of_the_prefix_and_only_by_those_who_may() {
    let mut backend = echoing();
    let rest = routes(&[("/api/*", "strip_prefix = \"/api\"")]);
    let trusting = format!("[trust]\nproxies = [\"127.0.0.0/8\"]\n{rest}");
    let stranger = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
    let trusted = Setup { rest: &trusting, ..Setup::default() }.start(&[backend.address()]);
    for (gateway, path, sent, told) in [
        (&stranger, "/api/x", &[][..], &["/api"][..]),
        (&stranger, "/api/x", &["/outer"], &["/api"]),
        (&stranger, "/x", &["/outer"], &[]),
        (&trusted, "/api/x", &[], &["/api"]),
        (&trusted, "/api/x", &["/outer"], &["/outer/api"]),
        (&trusted, "/api/x", &["/outer/"], &["/outer/api"]),
        (&trusted, "/api/x", &["/"], &["/api"]),
        (&trusted, "/api/x", &["nonsense"], &["/api"]),
        (&trusted, "/api/x", &["/one", "/two"], &["/api"]),
        (&trusted, "/x", &["/outer"], &["/outer"]),
    ] {
        let lines = sent.iter().map(|prefix| format!("X-Forwarded-Prefix: {prefix}\r\n")).collect::<Vec<_>>().concat();
        ask(gateway, path, &lines, &[]);
        let seen = backend.request().head;
        assert_eq!(values(&seen.fields, "x-forwarded-prefix"), told, "{path} {sent:?}");
    }
    // A service that minds what it is told is not told again.
    let answer = ask(&trusted, "/api/x", "X-Forwarded-Prefix: /outer\r\n", &["Location: /outer/api/y"]);
    assert_eq!(answer.field("location"), Some("/outer/api/y"));
    backend.request();
    for disguised in ["X_Forwarded_Prefix", "x.forwarded.prefix"] {
        ask(&trusted, "/x", &format!("{disguised}: /evil\r\n"), &[]);
        assert_eq!(backend.request().head.field(disguised), None);
    }
}

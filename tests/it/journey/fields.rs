//! What happens to fields on their way, in order: those of a connection go, identities from outside
//! go, the gateway's own come, and at last the route's rules act.

use super::{Setup, before};
use crate::{backend::Backend, client::Response, harness::Gateway};

const TRUSTING: &str = "[trust]\nproxies = [\"127.0.0.0/8\"]";

/// Sends a GET with these lines of fields besides `Host`.
#[track_caller]
fn ask(gateway: &Gateway, lines: &str) -> Response {
    let mut client = gateway.connect();
    client.send(format!("GET /x HTTP/1.1\r\nHost: shop.test\r\n{lines}\r\n"));
    client.read_response()
}

/// The values of all fields of this name.
fn values<'f>(fields: &'f [(String, String)], name: &str) -> Vec<&'f str> {
    fields.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
}

#[test]
fn fields_of_the_clients_connection_end_at_the_gateway() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let lines = "Connection: keep-alive, X-Private , ,x-other\r\nX-Private: 1\r\nX-OTHER: 2\r\nKeep-Alive: timeout=5\r\n\
                 Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\nUpgrade: foo\r\n\
                 X-Kept: 3\r\n";
    assert_eq!(ask(&gateway, lines).status, 200);
    let seen = backend.request().head;
    for gone in ["connection", "x-private", "x-other", "keep-alive", "proxy-connection", "proxy-authorization", "te"] {
        assert_eq!(seen.field(gone), None, "{gone}: {seen:?}");
    }
    assert_eq!(seen.field("upgrade"), None, "{seen:?}");
    assert_eq!(seen.field("x-kept"), Some("3"));
}

#[test]
fn naming_the_gateways_own_fields_does_not_remove_them() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let lines = "Connection: Host, X-Forwarded-For, X-Request-Id, Via, traceparent\r\nX-Request-Id: abcdefgh\r\n";
    assert_eq!(ask(&gateway, lines).status, 200);
    let seen = backend.request().head;
    for there in ["host", "x-forwarded-for", "x-request-id", "via", "traceparent"] {
        assert_eq!(values(&seen.fields, there).len(), 1, "{there}: {seen:?}");
    }
}

#[test]
fn fields_of_the_backends_connection_end_at_the_gateway() {
    let backend = Backend::answering(|_| {
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=9\r\n\
         Proxy-Authenticate: Basic\r\nUpgrade: h3\r\nX-Kept: 2\r\nX-Request-Id: the-backends-own\r\n\
         Via: 1.1 inner\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nok"
    });
    let gateway = before(backend.address());
    let answer = ask(&gateway, "X-Request-Id: the-clients-own\r\n");
    for gone in ["connection", "x-private", "keep-alive", "proxy-authenticate", "upgrade"] {
        assert_eq!(answer.field(gone), None, "{gone}: {answer:?}");
    }
    assert_eq!(answer.field("x-kept"), Some("2"));
    assert_eq!(values(&answer.fields, "set-cookie"), ["a=1", "b=2"]);
    assert_eq!(values(&answer.fields, "x-request-id"), ["the-clients-own"]);
    assert_eq!(values(&answer.fields, "via"), ["1.1 inner, 1.1 shardgate"]);
}

#[test]
fn nobody_outside_says_who_they_are() {
    let mut backend = Backend::ok();
    let gateway = Setup { rest: TRUSTING, ..Setup::default() }.start(&[backend.address()]);
    let lines = "X-User-Id: 1\r\nx-user-role: admin\r\nX-SESSION-ID: s\r\nX_User_Id: 1\r\nX-User_Role: admin\r\n\
                 x_session_id: s\r\nX-User-Name: kept\r\n";
    assert_eq!(ask(&gateway, lines).status, 200);
    let seen = backend.request().head;
    let identities = ["xuserid", "xuserrole", "xsessionid"];
    for (name, _) in &seen.fields {
        let bare: String = name.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
        assert!(!identities.contains(&bare.as_str()), "{seen:?}");
    }
    assert_eq!(seen.field("x-user-name"), Some("kept"));
}

#[test]
fn a_request_has_one_id_everywhere() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let longest = "a".repeat(64);
    let too_long = "a".repeat(65);
    let cases = [
        (Some("abcdefgh"), true),
        (Some("A.b_c-0123456789"), true),
        (Some(longest.as_str()), true),
        (Some("abcdefg"), false),
        (Some(too_long.as_str()), false),
        (Some("with space"), false),
        (Some("quote\"quote"), false),
        (Some(""), false),
        (None, false),
    ];
    for (number, (sent, is_kept)) in cases.into_iter().enumerate() {
        let lines = sent.map_or_else(String::new, |id| format!("X-Request-Id: {id}\r\n"));
        let answer = ask(&gateway, &lines);
        let ids = values(&answer.fields, "x-request-id");
        let [id] = ids[..] else { panic!("{sent:?}: {answer:?}") };
        assert!((8..=64).contains(&id.len()), "{id}");
        assert_eq!(sent == Some(id), is_kept, "{sent:?} became {id}");
        assert_eq!(values(&backend.request().head.fields, "x-request-id"), [id]);
        assert_eq!(gateway.access_lines(number + 1)[number]["request_id"], id);
    }
    // Of several none is a second opinion for the backend.
    let answer = ask(&gateway, "X-Request-Id: first-of-two\r\nX_Request_Id: second-of-two\r\n");
    let seen = backend.request().head;
    assert_eq!(seen.field("x-request-id"), answer.field("x-request-id"));
    assert_eq!(seen.field("x_request_id"), None, "{seen:?}");
}

#[test]
fn a_strangers_word_about_the_hop_before_is_replaced() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    let lines = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For: 203.0.113.8\r\nX-Forwarded-Proto: https\r\n\
                 X-Forwarded-Host: bank.test\r\nX-Forwarded-Port: 443\r\nX-Real-IP: 203.0.113.7\r\n\
                 Forwarded: for=203.0.113.7\r\nX_Forwarded_For: 203.0.113.9\r\nTrue-Client-IP: 203.0.113.7\r\n";
    ask(&gateway, lines);
    let seen = backend.request().head;
    assert_eq!(values(&seen.fields, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(&seen.fields, "x-forwarded-proto"), ["http"]);
    assert_eq!(values(&seen.fields, "x-forwarded-host"), ["shop.test"]);
    for gone in ["x-forwarded-port", "x-real-ip", "forwarded", "x_forwarded_for", "true-client-ip"] {
        assert_eq!(seen.field(gone), None, "{gone}: {seen:?}");
    }
    assert_eq!(gateway.access_lines(1)[0]["client"], "127.0.0.1");
}

#[test]
fn a_trusted_peers_word_is_appended_to() {
    let mut backend = Backend::ok();
    let gateway = Setup { rest: TRUSTING, ..Setup::default() }.start(&[backend.address()]);
    let lines = "X-Forwarded-For: 198.51.100.1, 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\
                 X-Forwarded-Host: www.shop.test\r\nForwarded: for=203.0.113.7\r\n";
    ask(&gateway, lines);
    let seen = backend.request().head;
    assert_eq!(values(&seen.fields, "x-forwarded-for"), ["198.51.100.1, 203.0.113.7, 127.0.0.1"]);
    assert_eq!(values(&seen.fields, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(&seen.fields, "x-forwarded-host"), ["www.shop.test"]);
    assert_eq!(seen.field("forwarded"), Some("for=203.0.113.7"));
    // The last that no trusted peer has added: whatever stands before it may be made up.
    assert_eq!(gateway.access_lines(1)[0]["client"], "203.0.113.7");
    ask(&gateway, "");
    assert_eq!(values(&backend.request().head.fields, "x-forwarded-for"), ["127.0.0.1"]);
}

#[test]
fn empty_members_of_the_list_of_hops_are_no_hops() {
    let mut backend = Backend::ok();
    let gateway = Setup { rest: TRUSTING, ..Setup::default() }.start(&[backend.address()]);
    for (number, (sent, client, passed)) in [
        (&["203.0.113.7, "][..], "203.0.113.7", &["203.0.113.7, 127.0.0.1"][..]),
        (&["203.0.113.7", ""], "203.0.113.7", &["203.0.113.7", "127.0.0.1"]),
        (&["198.51.100.1, 203.0.113.7,, ,"], "203.0.113.7", &["198.51.100.1, 203.0.113.7, 127.0.0.1"]),
        (&["203.0.113.7,,127.0.0.9"], "203.0.113.7", &["203.0.113.7,,127.0.0.9, 127.0.0.1"]),
        (&[" , ,"], "127.0.0.1", &["127.0.0.1"]),
        (&[""], "127.0.0.1", &["127.0.0.1"]),
        // What is no address ends the list of those who are known.
        (&["203.0.113.7, unknown"], "127.0.0.1", &["203.0.113.7, unknown, 127.0.0.1"]),
    ]
    .into_iter()
    .enumerate()
    {
        let lines = sent.iter().map(|list| format!("X-Forwarded-For: {list}\r\n")).collect::<Vec<_>>().concat();
        let id = format!("request-{number}");
        ask(&gateway, &format!("{lines}X-Request-Id: {id}\r\n"));
        assert_eq!(values(&backend.request().head.fields, "x-forwarded-for"), passed, "{sent:?}");
        // Shards write on their own: the lines stand in any order.
        let lines = gateway.access_lines(number + 1);
        let line = lines.iter().find(|line| line["request_id"] == id.as_str()).expect("its line");
        assert_eq!(line["client"], client, "{sent:?}");
    }
}

#[test]
fn the_gateway_names_itself_in_via() {
    let mut backend = Backend::ok();
    let gateway = before(backend.address());
    ask(&gateway, "");
    assert_eq!(values(&backend.request().head.fields, "via"), ["1.1 shardgate"]);
    let answer = ask(&gateway, "Via: 1.0 edge\r\n");
    assert_eq!(values(&backend.request().head.fields, "via"), ["1.0 edge, 1.1 shardgate"]);
    assert_eq!(values(&answer.fields, "via"), ["1.1 shardgate"]);
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.0\r\n\r\n");
    client.read_response();
    assert_eq!(values(&backend.request().head.fields, "via"), ["1.0 shardgate"]);
}

#[test]
fn the_backend_sees_its_own_authority_or_the_clients() {
    let mut backend = Backend::ok();
    let own = backend.address().to_string();
    let plain = before(backend.address());
    let preserving = Setup { route: "preserve_host = true", ..Setup::default() }.start(&[backend.address()]);
    for (gateway, request, host) in [
        (&plain, "GET /x HTTP/1.1\r\nHost: shop.test:81\r\n\r\n", own.as_str()),
        (&preserving, "GET /x HTTP/1.1\r\nHost: shop.test:81\r\n\r\n", "shop.test:81"),
        (&plain, "GET http://shop.test/x HTTP/1.1\r\nHost: shop.test\r\n\r\n", own.as_str()),
        (&preserving, "GET http://shop.test/x HTTP/1.1\r\nHost: shop.test\r\n\r\n", "shop.test"),
        (&plain, "GET /x HTTP/1.0\r\n\r\n", own.as_str()),
    ] {
        let mut client = gateway.connect();
        client.send(request);
        assert_eq!(client.read_response().status, 200, "{request:?}");
        let seen = backend.request().head;
        assert_eq!(seen.first_line, "GET /x HTTP/1.1");
        assert_eq!(values(&seen.fields, "host"), [host], "{request:?}");
    }
}

#[test]
fn a_request_without_host_gets_one_even_where_it_would_be_kept() {
    let mut backend = Backend::ok();
    let gateway = Setup { route: "preserve_host = true", ..Setup::default() }.start(&[backend.address()]);
    for request in ["GET /x HTTP/1.0\r\n\r\n", "GET http://shop.test/x HTTP/1.0\r\n\r\n"] {
        let mut client = gateway.connect();
        client.send(request);
        assert_eq!(client.read_response().status, 200, "{request:?}");
        // RFC 9112 §3.2: a request in HTTP/1.1 without Host is refused by any server.
        let seen = backend.request().head;
        assert_eq!(values(&seen.fields, "host").len(), 1, "{request:?}: {seen:?}");
    }
}

#[test]
fn authorization_is_forwarded_unless_the_route_says_otherwise() {
    let mut backend = Backend::ok();
    let plain = before(backend.address());
    let dropping = Setup { route: "forward_authorization = false", ..Setup::default() }.start(&[backend.address()]);
    ask(&plain, "Authorization: Bearer a.b.c\r\n");
    assert_eq!(backend.request().head.field("authorization"), Some("Bearer a.b.c"));
    ask(&dropping, "Authorization: Bearer a.b.c\r\n");
    assert_eq!(backend.request().head.field("authorization"), None);
}

#[test]
fn a_routes_rules_act_at_last() {
    let mut backend = Backend::answering(|_| {
        "HTTP/1.1 200 OK\r\nServer: secret/1.2\r\nserver: again\r\nX-Frame-Options: ALLOW\r\nVary: a\r\n\
         Content-Length: 2\r\n\r\nok"
    });
    let route = "[routes.request_headers]\nremove = [\"X-Debug\", \"via\"]\nset = { X-Tier = \"gold\" }\n\
                 add = { X-Seen-By = \"edge\" }\n[routes.response_headers]\nremove = [\"Server\"]\n\
                 set = { X-Frame-Options = \"DENY\" }\nadd = { Vary = \"b\" }";
    let gateway = Setup { route, ..Setup::default() }.start(&[backend.address()]);
    let answer = ask(&gateway, "x-debug: 1\r\nX-Tier: iron\r\nx-tier: tin\r\nX-Seen-By: cdn\r\n");
    let seen = backend.request().head;
    assert_eq!((seen.field("x-debug"), seen.field("via")), (None, None));
    assert_eq!(values(&seen.fields, "x-tier"), ["gold"]);
    assert_eq!(values(&seen.fields, "x-seen-by"), ["cdn", "edge"]);
    assert_eq!(answer.field("server"), None);
    assert_eq!(values(&answer.fields, "x-frame-options"), ["DENY"]);
    assert_eq!(values(&answer.fields, "vary"), ["a", "b"]);
}

#[test]
fn nobody_brings_a_routes_fields_in_disguise() {
    let mut backend = Backend::answering(
        |_| "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Debug: 1\r\nX-Sum: 2\r\n\r\n",
    );
    let route = "[routes.request_headers]\nremove = [\"X-Internal\"]\nset = { X-Tier = \"gold\" }\n\
                 [routes.response_headers]\nremove = [\"X-Debug\"]";
    let gateway = Setup { route, ..Setup::default() }.start(&[backend.address()]);
    let mut client = gateway.connect();
    client.send(
        "POST /x HTTP/1.1\r\nHost: a\r\nX_Internal: 1\r\nX.Tier: iron\r\nx_tier: tin\r\nXXTier: tin\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-Internal: 1\r\nX-Tier: tin\r\n\r\n",
    );
    let answer = client.read_response();
    assert_eq!((answer.text().as_str(), answer.trailers.len()), ("ok", 0));
    let seen = backend.request();
    let named: Vec<_> =
        seen.head.fields.iter().filter(|(name, _)| name.to_ascii_lowercase().contains("tier")).collect();
    assert_eq!(named, [&("XXTier".to_owned(), "tin".to_owned()), &("X-Tier".to_owned(), "gold".to_owned())]);
    assert_eq!((seen.head.field("x_internal"), seen.trailers.len()), (None, 0));
}

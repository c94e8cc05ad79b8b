//! What the access log says of a refusal at its default level: which claim, which role, which bound, which error of the
//! system. Nobody but the operator is told.

use std::{net::TcpListener, time::Duration};

use serde_json::{Value, json};

use super::access::{KEYS, token, unix_now};
use crate::{
    backend::Backend,
    harness::{Gateway, until},
};

const SOON: Duration = Duration::from_secs(10);

/// Sends this, and returns what the log says: the reason and what there is more about it.
#[track_caller]
fn why(gateway: &Gateway, request: &str) -> String {
    let mut client = gateway.connect();
    client.send(request);
    let answer = client.read_response();
    let id = answer.field("x-request-id").expect("every answer has an id").to_owned();
    let line =
        until(SOON, "its line", || gateway.access_lines(0).into_iter().find(|line| line["request_id"] == id.as_str()));
    let text = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (reason, detail) = (text("reason"), text("reason_detail"));
    if answer.status >= 400 {
        assert!(detail.is_empty() || !answer.text().contains(&detail) || answer.json()["detail"] == detail.as_str());
    }
    format!("{reason}: {detail}")
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

#[test]
fn a_refusal_says_why() {
    let backend = Backend::start(|conversation| {
        let request = conversation.read_request()?;
        match request.head.first_line.split(' ').nth(1) {
            Some("/late") => _ = conversation.read_to_end(),
            Some("/malformed") => conversation.send("HTTP/1.1 20 OK\r\n\r\n")?,
            Some("/closed") => {}
            _ => conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?,
        }
        Ok(())
    });
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let gateway = Gateway::start(&format!(
        "[http]\nhead_bytes_max = \"1KiB\"\nfields_max = 8\ntarget_bytes_max = \"256B\"\n{KEYS}\
         [limits.few]\nquota = 1\nwindow = \"1d\"\napplies = \"named\"\n\
         [upstreams.back]\ninstances = [\"{}\"]\nretries_max = 0\noutlier_failures = 0\nresponse_timeout = \"100ms\"\n\
         [upstreams.away]\ninstances = [\"{nobody}\"]\nretries_max = 0\noutlier_failures = 0\n\
         [[routes]]\npath = \"/*\"\nupstream = \"back\"\naccess = \"public\"\nbody_bytes_max = \"10B\"\n\
         [[routes]]\npath = \"/away\"\nupstream = \"away\"\naccess = \"public\"\n\
         [[routes]]\npath = \"/few\"\nupstream = \"back\"\naccess = \"public\"\nlimits = [\"few\"]\n\
         [[routes]]\npath = \"/me\"\nupstream = \"back\"\ntoken_query = \"t\"\n\
         [[routes]]\npath = \"/admin\"\nupstream = \"back\"\nroles = [\"admin\", \"service\"]\n\
         [[routes]]\npath = \"/write\"\nupstream = \"back\"\npermissions = [\"events:read\", \"events:write\"]\n",
        backend.address()
    ));
    let with = |claims: Value| format!("Authorization: Bearer {}\r\n", token(&claims));
    let long = "x".repeat(300);
    let many = "X: 1\r\n".repeat(8);
    assert_eq!(why(&gateway, &get("/few", "")), ": ");
    for (request, expected) in [
        (get("/me", ""), "token_missing: there is no Authorization"),
        (get("/me?t=", ""), "token_missing: the parameter of the query has no value"),
        (get("/me", "Authorization: Basic eA==\r\n"), "token_missing: Authorization is not of the scheme Bearer"),
        (
            get("/me", "Authorization: Bearer x\r\n"),
            "token_invalid: the token is invalid: it does not have three parts",
        ),
        (
            get("/me", &with(json!({ "sub": 42 }))),
            "token_invalid: the token is invalid: a claim is not of its type: sub",
        ),
        (
            get("/me", &with(json!({ "sid": "a\tb" }))),
            "token_invalid: the token is invalid: a claim is not of its type: sid",
        ),
        (get("/me", &with(json!({ "sub": "" }))), "token_invalid: the token is invalid: a claim is missing: sub"),
        (get("/me", &with(json!({ "iat": -1 }))), "token_invalid: the token is invalid: a time is out of range: iat"),
        (
            get("/me", &with(json!({ "aud": "others" }))),
            "token_invalid: the token is invalid: its aud names somebody else",
        ),
        (
            get("/me", &with(json!({ "role": ["a", "b"] }))),
            "token_invalid: the token is invalid: it has more roles than its issuer's tokens may have",
        ),
        (get("/me", &with(json!({ "exp": unix_now() - 60 }))), "token_expired: the token has expired"),
        (
            get("/admin", &with(json!({ "role": "user" }))),
            "forbidden: the route asks for one of the roles admin,service, and the caller has user",
        ),
        (
            get("/admin", &with(json!({}))),
            "forbidden: the route asks for one of the roles admin,service, and the caller has none",
        ),
        (
            get("/write", &with(json!({ "permissions": ["events:read"] }))),
            "forbidden: the caller lacks the permission events:write",
        ),
        (get("/few", ""), "rate_limited: the limit few is used up"),
        (
            get("/away", ""),
            "upstream_unreachable: connecting to the instance failed: Connection refused (os error 111)",
        ),
        (
            get("/closed", ""),
            "upstream_unreachable: the instance closed the connection before it answered: the connection to the instance was closed or broke",
        ),
        (
            get("/malformed", ""),
            "upstream_bad_response: the instance's answer is malformed: the head of the answer is malformed: the status line is malformed",
        ),
        (get("/late", ""), "upstream_timeout: the instance did not answer in time"),
        (get(&format!("/{long}"), ""), "uri_too_long: the target is longer than http.target_bytes_max"),
        (get("/", &many), "header_too_large: the head has more fields than http.fields_max"),
        (
            get("/", &format!("X: {}\r\n", long.repeat(4))),
            "header_too_large: the head is larger than http.head_bytes_max",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n".to_owned(),
            "body_too_large: the body has 11 bytes, and body_bytes_max is 10",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n".to_owned(),
            "bad_request: the request did not arrive: the request body is malformed: a chunk size is not a hexadecimal number",
        ),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "bad_request: the Host field is missing"),
        (get("/..", ""), "bad_request: the path climbs above its root"),
        (get("/health/x/y", ""), ": "),
    ] {
        assert_eq!(why(&gateway, &request), expected, "{request}");
    }
}

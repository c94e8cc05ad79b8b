//! Callers with several roles, as identity providers send them: who is let in where, what the services are told, and that
//! this follows a reload.

use std::{net::SocketAddr, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    expect_refusal,
    tokens::{foreign, jwk},
};
use crate::{
    backend::Backend,
    client::{Client, Response},
    harness::Gateway,
};

const SOON: Duration = Duration::from_secs(10);

/// An issuer that may give these roles, out of its key set in this folder.
fn config(backend: SocketAddr, folder: &tempfile::TempDir, roles: &str) -> String {
    let file = folder.path().join("keys.json");
    std::fs::write(&file, json!({ "keys": [jwk("one", "RS256", "rsa.pem")] }).to_string()).expect("written");
    format!(
        "[roles.editor]\npermissions = [\"events:write\"]\n[roles.reader]\npermissions = [\"events:read\"]\n\
         [upstreams.back]\ninstances = [\"{backend}\"]\n\
         [[auth.issuers]]\nissuer = \"keycloak\"\njwks_file = \"{}\"\nclaim_role = \"/realm_access/roles\"\n{roles}\n\
         [[routes]]\npath = \"/me\"\nupstream = \"back\"\n\
         [[routes]]\npath = \"/admin\"\nupstream = \"back\"\nroles = [\"admin\"]\n\
         [[routes]]\npath = \"/edit\"\nupstream = \"back\"\nroles = [\"admin\", \"editor\"]\n\
         [[routes]]\npath = \"/both\"\nupstream = \"back\"\npermissions = [\"events:read\", \"events:write\"]\n",
        file.display()
    )
}

#[track_caller]
fn ask(client: &mut Client, path: &str, token: &str) -> Response {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\nAuthorization: Bearer {token}\r\n\r\n"));
    client.read_response()
}

fn with_roles(roles: &Value) -> String {
    foreign("keycloak", &json!({ "role": "admin", "realm_access": { "roles": roles }, "permissions": ["*"] }))
}

#[test]
fn a_caller_has_all_the_roles_that_its_issuer_may_give() {
    let mut backend = Backend::ok();
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&config(backend.address(), &folder, "roles = [\"reader\", \"user\", \"editor\"]"));
    let mut clients: Vec<Client> = (0..64).map(|_| gateway.connect()).collect();
    for (roles, told, statuses) in [
        (
            json!(["offline_access", "uma_authorization", "editor", "reader"]),
            Some("reader,editor"),
            [200, 403, 200, 200],
        ),
        (json!(["editor", "editor", "user"]), Some("user,editor"), [200, 403, 200, 403]),
        (json!(["user", "reader"]), Some("reader,user"), [200, 403, 403, 403]),
        (json!(["admin", "reader"]), Some("reader"), [200, 403, 403, 403]),
        (json!("editor"), Some("editor"), [200, 403, 200, 403]),
        (json!("reader editor"), None, [200, 403, 403, 403]),
        (json!(["reader,admin"]), None, [200, 403, 403, 403]),
        (json!(["offline_access"]), None, [200, 403, 403, 403]),
        (json!([]), None, [200, 403, 403, 403]),
    ] {
        let token = with_roles(&roles);
        // With the cases in turn each shard sees each of them, cold and remembered.
        for client in clients.iter_mut().step_by(4) {
            let seen = ["/me", "/admin", "/edit", "/both"].map(|path| ask(client, path, &token).status);
            assert_eq!(seen, statuses, "{roles}");
        }
        clients.rotate_left(1);
        for request in backend.requests() {
            let fields = request.head.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-user-role"));
            let values: Vec<&str> = fields.map(|(_, value)| value.as_str()).collect();
            assert_eq!(values, told.into_iter().collect::<Vec<_>>(), "{roles}");
        }
    }
    let served = gateway.metrics().by_shard("shardgate_shard_requests_total");
    assert!(served.len() == 4 && served.iter().all(|count| *count > 0), "requests by shard: {served:?}");

    let me = ask(&mut clients[0], "/auth/me", &with_roles(&json!(["editor", "reader"]))).json();
    assert_eq!((&me["user"]["role"], &me["user"]["roles"]), (&json!("reader"), &json!(["reader", "editor"])));
    assert_eq!(me["permissions"], json!(["events:read", "events:write"]), "of both, in the same order");
    let me = ask(&mut clients[0], "/auth/me", &with_roles(&json!(["editor"]))).json();
    assert_eq!((&me["user"]["role"], me["user"].get("roles")), (&json!("editor"), None));
}

#[test]
fn a_reload_changes_which_roles_count_and_their_order_for_tokens_that_are_remembered() {
    let mut backend = Backend::ok();
    let address = backend.address();
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&config(address, &folder, "roles = [\"reader\", \"editor\"]"));
    let mut clients: Vec<Client> = (0..64).map(|_| gateway.connect()).collect();
    let token = with_roles(&json!(["editor", "reader", "admin"]));
    let mut told = |admin: u16| {
        for client in &mut clients {
            assert_eq!([ask(client, "/me", &token).status, ask(client, "/admin", &token).status], [200, admin]);
        }
        let requests = backend.requests();
        let mut told: Vec<String> =
            requests.iter().map(|request| request.head.field("x-user-role").unwrap_or_default().to_owned()).collect();
        told.dedup();
        told
    };
    assert_eq!(told(403), ["reader,editor"]);
    for (roles, admin, list, count) in [
        ("roles = [\"editor\", \"reader\"]", 403, "editor,reader", 2),
        ("roles = [\"admin\", \"reader\"]", 200, "admin,reader", 3),
        ("roles = [\"reader\", \"*\"]", 200, "reader,editor,admin", 4),
    ] {
        gateway.rewrite_config(&config(address, &folder, roles));
        gateway.signal(Signal::HUP);
        gateway.log_until_nth("every shard runs the configuration", count, SOON);
        assert_eq!(told(admin), [list]);
    }
}

#[test]
fn a_token_of_the_gateways_own_has_one_role() {
    let backend = Backend::ok();
    let folder = tempfile::tempdir().expect("a folder");
    let keys = super::tokens::secret("hs", true);
    let gateway = Gateway::start(&(config(backend.address(), &folder, "") + &keys));
    let with_role = |role: &Value| {
        let mut claims = super::tokens::hostile::claims(super::tokens::unix_now());
        claims["role"] = role.clone();
        super::tokens::hostile::hs(r#"{"alg":"HS256","kid":"hs"}"#, &claims.to_string())
    };
    let mut client = gateway.connect();
    for role in [json!("editor"), json!(["editor"])] {
        assert_eq!(ask(&mut client, "/edit", &with_role(&role)).status, 200, "{role}");
    }
    for role in [json!(["editor", "user"]), json!("editor,user")] {
        expect_refusal(&ask(&mut client, "/me", &with_role(&role)), 401, "token_invalid");
    }
}

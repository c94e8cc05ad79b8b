//! Tokens over the wire, on every shard: hostile ones, keys that change, and issuers whose keys come from elsewhere.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Setup, expect_refusal};
use crate::{
    backend::Backend,
    client::{Client, Response},
    harness::{Gateway, until},
};

#[path = "../../data/auth/hostile.rs"]
#[expect(unreachable_pub, reason = "the tests of the check include it too")]
pub(super) mod hostile;

const SOON: Duration = Duration::from_secs(10);

/// Seconds since 1970, by the clock that the gateway has too.
#[expect(clippy::disallowed_methods, reason = "tokens tell the time of day")]
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs()
}

/// A key file beside the tables, which others than its owner may not read.
fn key_file(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/auth").join(name);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    path
}

fn key(kid: &str, algorithm: &str, name: &str, sign: bool) -> String {
    let file = key_file(name);
    format!(
        "[[auth.keys]]\nkid = \"{kid}\"\nalgorithm = \"{algorithm}\"\nfile = \"{}\"\nsign = {sign}\n",
        file.display()
    )
}

pub(crate) fn secret(kid: &str, sign: bool) -> String {
    let secret = hostile::SECRET;
    format!("[[auth.keys]]\nkid = \"{kid}\"\nalgorithm = \"HS256\"\nsecret = \"{secret}\"\nsign = {sign}\n")
}

/// A gateway that asks for a token on `/me`, with these keys and issuers.
fn guarded(backend: &Backend, keys: &str) -> Gateway {
    let rest = format!("{keys}[[routes]]\npath = \"/me\"\nupstream = \"back\"\naccess = \"authenticated\"\n");
    Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()])
}

#[track_caller]
fn ask(client: &mut Client, token: &str) -> Response {
    client.send(format!("GET /me HTTP/1.1\r\nHost: shop.test\r\nAuthorization: Bearer {token}\r\n\r\n"));
    client.read_response()
}

/// Connections until each of the 4 shards has had its chance many times over.
fn everywhere(gateway: &Gateway) -> Vec<Client> {
    (0..64).map(|_| gateway.connect()).collect()
}

#[track_caller]
fn expect_all_shards_served(gateway: &Gateway) {
    let served = gateway.metrics().by_shard("shardgate_shard_requests_total");
    assert!(served.len() == 4 && served.iter().all(|count| *count > 0), "requests by shard: {served:?}");
}

#[test]
fn hostile_tokens_are_refused_on_every_shard_cold_and_warm() {
    let mut backend = Backend::ok();
    let keys = [
        secret("hs", true),
        key("rs", "RS256", "rsa.pem", false),
        key("ps", "PS256", "rsa.pub.pem", false),
        key("es", "ES256", "p256.pem", false),
        key("ed", "EdDSA", "ed25519.pem", false),
    ];
    let gateway = guarded(&backend, &keys.concat());
    let mut clients = everywhere(&gateway);
    let cases = hostile::cases(unix_now());
    assert!(cases.len() >= 80, "{} cases", cases.len());
    let refused_everywhere = |clients: &mut Vec<Client>| {
        for case in &cases {
            // Four at a time: with the cases in turn each shard sees each of them.
            let hostile::Case { name, token, code, flaw } = case;
            for client in clients.iter_mut().step_by(8) {
                let answer = ask(client, token);
                assert_eq!(answer.status, 401, "{name}: {answer:?}");
                assert_eq!(answer.json()["code"], *code, "{name}: {flaw}");
                assert!(!answer.text().contains(token.get(..20).unwrap_or("no token")), "{name}");
            }
            clients.rotate_left(1);
        }
    };
    refused_everywhere(&mut clients);
    expect_all_shards_served(&gateway);
    assert!(backend.requests().is_empty(), "no shard let one in");
    let good = hostile::hs(r#"{"alg":"HS256","typ":"JWT","kid":"hs"}"#, &hostile::claims(unix_now()).to_string());
    for client in &mut clients {
        assert_eq!([ask(client, &good).status, ask(client, &good).status], [200; 2]);
    }
    assert_eq!(backend.requests().len(), 2 * clients.len());
    refused_everywhere(&mut clients);
    assert!(backend.requests().is_empty(), "a shard that remembers a good one lets none in either");
    for line in gateway.access_lines(2 * clients.len()) {
        assert!(!line.to_string().contains(&good), "{line}");
    }
    assert!(!gateway.log().contains(hostile::SECRET), "the secret is in no log");
}

/// A token of this issuer, signed by a key file.
pub(crate) fn token(issuer: &str, kid: &str, algorithm: Algorithm, name: &str) -> String {
    shardgate::auth::install();
    let pem = hostile::pem(name);
    let key = match algorithm {
        Algorithm::ES256 => EncodingKey::from_ec_pem(&pem),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(&pem),
        _ => EncodingKey::from_rsa_pem(&pem),
    };
    let mut claims = hostile::claims(unix_now());
    claims["iss"] = issuer.into();
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) };
    encode(&header, &claims, &key.expect("a key")).expect("signed")
}

#[test]
fn keys_change_without_logging_anybody_out() {
    let backend = Backend::ok();
    let config = |keys: &str| {
        format!(
            "{keys}[upstreams.back]\ninstances = [\"{}\"]\n[[routes]]\npath = \"/me\"\nupstream = \"back\"\n",
            backend.address()
        )
    };
    let mut gateway = Gateway::start(&config(&key("old", "RS256", "rsa.pem", true)));
    let mut clients = everywhere(&gateway);
    let old = token("shardgate", "old", Algorithm::RS256, "rsa.pem");
    let new = token("shardgate", "new", Algorithm::ES256, "p256.pem");
    let mut everywhere_answers = |token: &str| {
        let mut codes: Vec<u16> = clients.iter_mut().map(|client| ask(client, token).status).collect();
        codes.sort_unstable();
        codes.dedup();
        codes
    };
    let shown = |gateway: &Gateway| {
        let page = gateway.get("/.well-known/jwks.json");
        assert_eq!(page.field("cache-control"), Some("public, max-age=300"));
        let page = page.json();
        let kids =
            page["keys"].as_array().expect("a list").iter().map(|key| key["kid"].as_str().expect("a kid").to_owned());
        assert!(!page.to_string().contains("\"d\""), "{page}");
        kids.collect::<Vec<_>>()
    };
    assert_eq!((everywhere_answers(&old), everywhere_answers(&new)), (vec![200], vec![401]));
    assert_eq!(shown(&gateway), ["old"]);
    let reload = |gateway: &Gateway, keys: &str, count| {
        gateway.rewrite_config(&config(keys));
        gateway.signal(Signal::HUP);
        gateway.log_until_nth("every shard runs the configuration", count, SOON);
    };
    let both = key("new", "ES256", "p256.pem", true) + &key("old", "RS256", "rsa.pem", false);
    reload(&gateway, &both, 2);
    assert_eq!((everywhere_answers(&old), everywhere_answers(&new)), (vec![200], vec![200]));
    assert_eq!(shown(&gateway), ["new", "old"]);
    // A key that cannot be used changes nothing.
    gateway.expect_error("the configuration is refused");
    gateway.rewrite_config(&config(&key("new", "EdDSA", "p256.pem", true)));
    gateway.signal(Signal::HUP);
    gateway.log_until("it is no key for EdDSA", SOON);
    assert_eq!((everywhere_answers(&old), everywhere_answers(&new)), (vec![200], vec![200]));
    // An old key that is taken out takes its tokens along, remembered or not.
    reload(&gateway, &key("new", "ES256", "p256.pem", true), 3);
    assert_eq!((everywhere_answers(&old), everywhere_answers(&new)), (vec![401], vec![200]));
    assert_eq!(shown(&gateway), ["new"]);
}

#[test]
fn a_key_is_made_where_none_is_configured() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().expect("a folder");
    let data = directory.path().join("data");
    let keys = format!("[data]\ndir = \"{}\"\n", data.display());
    let shown = || {
        let gateway = guarded(&backend, &keys);
        let line = gateway.log_until("no auth.keys are configured", SOON);
        (gateway.get("/.well-known/jwks.json").json(), line.contains("made a key"))
    };
    let (first, second) = (shown(), shown());
    assert_eq!((first.1, second.1), (true, false));
    assert_eq!(first.0, second.0, "a restart keeps the key");
    assert_eq!(first.0["keys"][0]["alg"], "ES256");
    let mode = std::fs::metadata(data.join("token-key.pem")).expect("it is kept").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A server of key sets: each connection is answered with what is sent to it next, or with the last again.
pub(crate) struct KeyServer {
    pub(crate) address: SocketAddr,
    pub(crate) next: mpsc::Sender<String>,
}

impl KeyServer {
    pub(crate) fn start(first: &Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (next, answers) = mpsc::channel();
        let mut answer = first.to_string();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let read =
                    BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).count();
                answer = answers.try_iter().last().unwrap_or(answer);
                if read > 0 {
                    let head =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
                    // Whoever does not wait for it gets none.
                    let _ = stream.write_all((head + &answer).as_bytes());
                }
            }
        });
        Self { address, next }
    }
}

/// The public half of a key file, as a set has it.
pub(crate) fn jwk(kid: &str, algorithm: &str, name: &str) -> Value {
    let keys = format!(
        "[[auth.keys]]\nkid = \"{kid}\"\nalgorithm = \"{algorithm}\"\nfile = \"{}\"\nsign = false\n",
        key_file(name).display()
    );
    let config = shardgate::config::resolve(Some((Path::new("f"), &keys)), &std::collections::BTreeMap::new());
    let auth = config.expect("it is right").auth;
    let own = shardgate::auth::OwnKeys::load(&auth, Path::new("nowhere")).expect("the key is right");
    let set = shardgate::auth::KeySet::new(&auth, &own, &std::collections::BTreeMap::new());
    serde_json::from_str::<Value>(set.jwks_json()).expect("JSON")["keys"][0].clone()
}

#[test]
fn another_issuers_keys_are_fetched_and_followed() {
    let mut backend = Backend::ok();
    let server = KeyServer::start(&json!({ "keys": [jwk("one", "RS256", "rsa.pem")] }));
    let issuer = format!(
        "{}[[auth.issuers]]\nissuer = \"https://id.example\"\njwks_url = \"http://{}/keys\"\nunknown_key_cooldown = \"100ms\"\nclaim_role = \"none\"\n",
        secret("hs", true),
        server.address
    );
    let gateway = guarded(&backend, &issuer);
    let mut clients = everywhere(&gateway);
    let one = token("https://id.example", "one", Algorithm::RS256, "rsa.pem");
    let two = token("https://id.example", "two", Algorithm::EdDSA, "ed25519.pem");
    let everywhere_becomes = |clients: &mut Vec<Client>, token: &str, status: u16| {
        until(SOON, &format!("{status} on every shard"), || {
            clients.iter_mut().all(|client| ask(client, token).status == status).then_some(())
        });
    };
    everywhere_becomes(&mut clients, &one, 200);
    let seen = backend.requests().pop().expect("it was let in").head;
    assert_eq!((seen.field("x-user-id"), seen.field("x-user-role")), (Some("https://id.example|42"), None));
    expect_refusal(
        &ask(&mut clients[0], &token("https://other.example", "one", Algorithm::RS256, "rsa.pem")),
        401,
        "token_invalid",
    );
    expect_refusal(
        &ask(&mut clients[0], &token("shardgate", "one", Algorithm::RS256, "rsa.pem")),
        401,
        "token_invalid",
    );
    // The issuer changes its key; a token that names the new one has it fetched.
    expect_refusal(&ask(&mut clients[0], &two), 401, "token_invalid");
    server.next.send(json!({ "keys": [jwk("two", "EdDSA", "ed25519.pem")] }).to_string()).expect("it runs");
    everywhere_becomes(&mut clients, &two, 200);
    everywhere_becomes(&mut clients, &one, 401);
    // It breaks; the last good keys go on.
    server.next.send("<html>".to_owned()).expect("it runs");
    gateway.metrics_until("a fetch that failed", |metrics| {
        expect_refusal(&ask(&mut gateway.connect(), &one), 401, "token_invalid");
        ["failed", "good"]
            .iter()
            .all(|result| metrics.value(&format!("shardgate_key_fetches_total{{result=\"{result}\"}}")) > 0)
    });
    everywhere_becomes(&mut clients, &two, 200);
}

/// The claims of a token of another issuer, signed with its key, with these changes.
pub(super) fn foreign(issuer: &str, changes: &Value) -> String {
    shardgate::auth::install();
    let mut claims = hostile::claims(unix_now());
    claims["iss"] = issuer.into();
    for (name, value) in changes.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    let header = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::RS256) };
    encode(&header, &claims, &EncodingKey::from_rsa_pem(&hostile::pem("rsa.pem")).expect("a key")).expect("signed")
}

#[test]
fn another_issuer_gives_only_what_it_may() {
    let mut backend = Backend::ok();
    let directory = tempfile::tempdir().expect("a folder");
    let file = directory.path().join("keys.json");
    std::fs::write(&file, json!({ "keys": [jwk("one", "RS256", "rsa.pem")] }).to_string()).expect("written");
    let issuer = |name: &str, more: &str| {
        format!("[[auth.issuers]]\nissuer = \"{name}\"\njwks_file = \"{}\"\n{more}", file.display())
    };
    let config = [
        secret("hs", true),
        issuer("plain", ""),
        issuer("partner", "sub_prefix = \"partner:\"\nroles = [\"admin\"]\npermissions = [\"events:*\"]\n"),
        issuer("guests", "role = \"user\"\n"),
        "[[routes]]\npath = \"/admin\"\nupstream = \"back\"\nroles = [\"admin\"]\n\
         [[routes]]\npath = \"/write\"\nupstream = \"back\"\npermissions = [\"events:write\"]\n"
            .to_owned(),
    ];
    let gateway = guarded(&backend, &config.concat());
    let mut clients = everywhere(&gateway);
    let all = json!({ "role": "admin", "permissions": ["*", "events:write"] });
    let mut statuses = |token: &str| {
        ["/me", "/admin", "/write"].map(|path| {
            let mut statuses: Vec<u16> = clients
                .iter_mut()
                .map(|client| {
                    client.send(format!(
                        "GET {path} HTTP/1.1\r\nHost: shop.test\r\nAuthorization: Bearer {token}\r\n\r\n"
                    ));
                    client.read_response().status
                })
                .collect();
            statuses.dedup();
            statuses
        })
    };
    assert_eq!(statuses(&foreign("plain", &all)), [[200], [403], [403]]);
    let told = |backend: &mut Backend| {
        let head = backend.requests().pop().expect("it was let in").head;
        ["x-user-id", "x-user-role", "x-session-id"].map(|name| head.field(name).map(str::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(told(&mut backend), [some("plain|42"), None, some("plain|s_1")]);
    assert_eq!(statuses(&foreign("guests", &all)), [[200], [403], [403]]);
    assert_eq!(told(&mut backend), [some("guests|42"), some("user"), some("guests|s_1")]);
    assert_eq!(statuses(&foreign("partner", &all)), [[200], [200], [200]]);
    assert_eq!(told(&mut backend), [some("partner:42"), some("admin"), some("partner:s_1")]);
    let write_only = json!({ "role": "user", "permissions": ["*"] });
    assert_eq!(statuses(&foreign("partner", &write_only)), [[200], [403], [403]], "`*` is more than it may give");
    expect_all_shards_served(&gateway);
}

#[test]
fn what_ends_our_user_leaves_another_issuers_of_the_same_id() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().expect("a folder");
    let file = directory.path().join("keys.json");
    std::fs::write(&file, json!({ "keys": [jwk("one", "RS256", "rsa.pem")] }).to_string()).expect("written");
    let issuer = |name: &str, more: &str| {
        format!("[[auth.issuers]]\nissuer = \"{name}\"\njwks_file = \"{}\"\n{more}", file.display())
    };
    let gateway =
        guarded(&backend, &(secret("hs", true) + &issuer("theirs", "") + &issuer("ours", "sub_prefix = \"\"\n")));
    let own = hostile::hs(r#"{"alg":"HS256","kid":"hs"}"#, &hostile::claims(unix_now()).to_string());
    let (theirs, same) = (foreign("theirs", &json!({})), foreign("ours", &json!({})));
    let mut clients = everywhere(&gateway);
    for client in &mut clients {
        assert_eq!([&own, &theirs, &same].map(|token| ask(client, token).status), [200; 3]);
    }
    clients[0].send(format!(
        "POST /auth/logout-all HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {own}\r\nContent-Length: 0\r\n\r\n"
    ));
    assert_eq!(clients[0].read_response().status, 204);
    for client in &mut clients {
        expect_refusal(&ask(client, &own), 401, "token_revoked");
        assert_eq!(ask(client, &theirs).status, 200, "their 42 is somebody else");
        expect_refusal(&ask(client, &same), 401, "token_revoked");
    }
    expect_all_shards_served(&gateway);
}

#[test]
fn an_issuer_whose_keys_never_came_is_no_fault_of_the_bearer() {
    let backend = Backend::ok();
    // Bound and gone: nobody listens there.
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let issuer = format!(
        "{}[[auth.issuers]]\nissuer = \"https://id.example\"\njwks_url = \"http://{nobody}/keys\"\n",
        secret("hs", true)
    );
    let gateway = guarded(&backend, &issuer);
    let one = token("https://id.example", "one", Algorithm::RS256, "rsa.pem");
    for client in &mut everywhere(&gateway) {
        expect_refusal(&ask(client, &one), 503, "dependency_unavailable");
    }
    gateway.log_until("the issuer's keys could not be fetched", SOON);
    let own = hostile::hs(r#"{"alg":"HS256","kid":"hs"}"#, &hostile::claims(unix_now()).to_string());
    assert_eq!(ask(&mut gateway.connect(), &own).status, 200, "others are not touched");
}

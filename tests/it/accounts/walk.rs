//! A caller's day: log in, be somebody on every shard, renew, look at the sessions, log out; and what ends with that.

use std::{
    fs,
    io::Write as _,
    process::Stdio,
    sync::{Arc, OnceLock},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    backend::Backend,
    client::{Client, Response},
    harness::{Gateway, shardgate, until},
};

const PASSWORD: &str = "correct horse battery";

/// More than sockets and pipes hold between them.
const LARGE: usize = 32 * 1024 * 1024;

/// A gateway with users of its own, before a service that answers, streams and tunnels.
struct House {
    gateway: Gateway,
    backend: Backend,
    /// Every secret that was handed out; none may stand in a log.
    secrets: Vec<String>,
    /// Holds the answers of `/held` back.
    gate: Arc<OnceLock<()>>,
}

/// What a log-in brings.
struct Tokens {
    access: String,
    refresh: String,
}

impl House {
    fn start(more: &str) -> Self {
        let gate = Arc::new(OnceLock::new());
        let opened = Arc::clone(&gate);
        let backend = Backend::start(move |conversation| {
            let request = conversation.read_request()?;
            if request.head.first_line.contains("/stream") {
                conversation.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
                // Until the gateway lets go.
                conversation.read_to_end();
                return Ok(());
            }
            if request.head.first_line.contains("/large") {
                conversation.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n"))?;
                return conversation.send(vec![b'x'; LARGE]);
            }
            if request.head.first_line.contains("/held") {
                opened.wait();
            }
            if request.head.first_line.contains("/websocket") {
                conversation
                    .send("HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x01\x05hello")?;
                let heard = conversation.read_to_end();
                assert!(matches!(heard[..], [0x88, 0x82, ..] | [0x81, ..]), "it is told in a frame: {heard:?}");
                return Ok(());
            }
            if request.head.first_line.contains("/tunnel") {
                conversation.send(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello",
                )?;
                conversation.read_to_end();
                return Ok(());
            }
            conversation.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        });
        let config = format!(
            "[accounts]\npassword_memory = \"64KiB\"\npassword_passes = 1\n[upstreams.back]\ninstances = [\"{}\"]\n\
             [[routes]]\npath = \"/*\"\nupstream = \"back\"\n{more}",
            backend.address()
        );
        let gateway = Gateway::start(&config);
        let mut house = Self { gateway, backend, secrets: vec![PASSWORD.to_owned()], gate };
        house.run(&["user", "add", "ann@example.com", "--id", "42", "--role", "user"]);
        house.run(&["user", "add", "ben@example.com", "--id", "43", "--role", "user"]);
        house
    }

    fn release(&self) {
        self.gate.get_or_init(|| ());
    }

    /// Runs a command of the binary beside the gateway, on the same data.
    #[track_caller]
    fn run(&mut self, arguments: &[&str]) {
        let elsewhere = tempfile::TempDir::new().expect("a directory");
        let mut command = shardgate(elsewhere.path());
        let config = self.gateway.directory().join("shardgate.toml");
        command.current_dir(self.gateway.directory()).args(arguments).arg("--config").arg(config);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        child.stdin.take().expect("a pipe").write_all(PASSWORD.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[track_caller]
    fn log_in(&mut self, email: &str) -> Tokens {
        let answer = post(&mut self.gateway.connect(), "/auth/login", &json!({"email": email, "password": PASSWORD}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.keep(&answer)
    }

    fn keep(&mut self, answer: &Response) -> Tokens {
        assert_eq!(answer.field("cache-control"), Some("no-store"));
        let body = answer.json();
        let text = |name: &str| body[name].as_str().expect("a token").to_owned();
        let tokens = Tokens { access: text("accessToken"), refresh: text("refreshToken") };
        self.secrets.extend([tokens.access.clone(), tokens.refresh.clone()]);
        tokens
    }

    /// Nothing secret stands in what the gateway wrote.
    #[track_caller]
    fn check_silence(&self) {
        let directory = self.gateway.directory();
        let mut written = self.gateway.log();
        for name in ["stdout.log", "access.log"] {
            written += &fs::read_to_string(directory.join(name)).unwrap_or_default();
        }
        written += &self.gateway.ask_admin("/metrics").text();
        assert!(written.len() > 1_000, "there is something to look at");
        for secret in &self.secrets {
            // A signature is as good as the token, and a part of one as good as none.
            let end = &secret[secret.len() - secret.len().min(40)..];
            assert!(!written.contains(end), "a secret was written");
        }
    }

    /// Connections enough that each of the 4 shards has some.
    fn clients(&self) -> Vec<Client> {
        (0..64).map(|_| self.gateway.connect()).collect()
    }

    #[track_caller]
    fn expect_all_shards(&self) {
        let served = self.gateway.metrics().by_shard("shardgate_shard_requests_total");
        assert!(served.len() == 4 && served.iter().all(|count| *count > 0), "requests by shard: {served:?}");
    }
}

#[track_caller]
fn post(client: &mut Client, path: &str, body: &Value) -> Response {
    let body = body.to_string();
    client.send(format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    client.read_response()
}

#[track_caller]
fn ask(client: &mut Client, method: &str, path: &str, token: &str) -> Response {
    client.send(format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
    ));
    client.read_response()
}

#[track_caller]
fn expect_code(answer: &Response, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (status, &Value::from(code)), "{}", answer.text());
}

#[test]
fn a_session_is_good_on_every_shard_until_its_log_out() {
    let mut house = House::start("");
    let tokens = house.log_in(" Ann@Example.com ");
    let mut clients = house.clients();
    for client in &mut clients {
        let me = ask(client, "GET", "/auth/me", &tokens.access);
        assert_eq!(me.status, 200, "{}", me.text());
        let me = me.json();
        assert_eq!((&me["user"]["sub"], &me["user"]["email"]), (&"42".into(), &"ann@example.com".into()));
        assert_eq!((&me["user"]["role"], &me["permissions"]), (&"user".into(), &json!([])));
        assert_eq!(ask(client, "GET", "/x", &tokens.access).status, 200);
    }
    let sessions = ask(&mut clients[0], "GET", "/auth/sessions", &tokens.access).json();
    assert_eq!(sessions["sessions"].as_array().map(Vec::len), Some(1), "{sessions}");
    assert_eq!(sessions["sessions"][0]["current"], true, "{sessions}");

    let other = house.log_in("ann@example.com");
    let out = ask(&mut clients[0], "POST", "/auth/logout", &tokens.access);
    assert_eq!((out.status, out.body.len()), (204, 0), "{}", out.text());
    for client in &mut clients {
        let refused = ask(client, "GET", "/x", &tokens.access);
        expect_code(&refused, 401, "token_revoked");
        assert!(refused.field("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
        assert_eq!(ask(client, "GET", "/x", &other.access).status, 200, "another session goes on");
    }
    expect_code(
        &post(&mut clients[0], "/auth/refresh", &json!({"refreshToken": tokens.refresh})),
        401,
        "refresh_invalid",
    );
    house.expect_all_shards();
    house.check_silence();
}

#[test]
fn what_is_under_way_ends_with_its_session() {
    let mut house = House::start("");
    let (ending, staying) = (house.log_in("ann@example.com"), house.log_in("ben@example.com"));
    let open = |tokens: &Tokens, path: &str, more: &str, first: &str| {
        let mut clients = house.clients();
        for client in &mut clients {
            client.send(format!(
                "GET {path} HTTP/1.1\r\nHost: a\r\n{more}Authorization: Bearer {}\r\n\r\n",
                tokens.access
            ));
            client.read_until(first);
        }
        clients
    };
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    let mut ended = open(&ending, "/stream", "", "first");
    ended.extend(open(&ending, "/tunnel", upgrade, "hello"));
    let mut kept = open(&staying, "/stream", "", "first");
    let mut old = house.gateway.connect();
    old.send(format!("GET /stream HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", ending.access));
    old.read_until("first");
    house
        .gateway
        .metrics_until("all are tied to their sessions", |metrics| metrics.sum("shardgate_exchanges_tied") == 193);
    assert_eq!(ask(&mut house.gateway.connect(), "POST", "/auth/logout-all", &ending.access).status, 204);
    for client in &mut ended {
        // The answer is cut short, or the connection reset: either way it is over.
        let _ = client.read_to_end();
    }
    // An old client knows the end of an answer by the end of the connection alone.
    assert!(old.read_to_end().is_err(), "a part is not taken for the whole");
    let metrics =
        house.gateway.metrics_until("the rest is let go", |metrics| metrics.sum("shardgate_exchanges_tied") == 64);
    assert_eq!(metrics.sum("shardgate_exchanges_revoked_total"), 129);
    house.run(&["user", "disable", "ben@example.com"]);
    for client in &mut kept {
        let _ = client.read_to_end();
    }
    house.gateway.metrics_until("all are let go", |metrics| metrics.sum("shardgate_exchanges_tied") == 0);
    let revoked = house.gateway.access_lines(193).iter().filter(|line| line["reason"] == "revoked").count();
    assert_eq!(revoked, 193);
    expect_code(&ask(&mut house.gateway.connect(), "GET", "/x", &staying.access), 401, "token_revoked");
    drop(house.backend.requests());
    house.expect_all_shards();
}

#[test]
fn websockets_are_told_that_their_session_has_ended() {
    let mut house = House::start("");
    let (ending, staying) = (house.log_in("ann@example.com"), house.log_in("ben@example.com"));
    let open = |tokens: &Tokens| {
        let mut clients = house.clients();
        for client in &mut clients {
            client.send(format!(
                "GET /websocket HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Authorization: Bearer {}\r\n\r\n",
                tokens.access
            ));
            client.read_until("hello");
        }
        clients
    };
    let (mut ended, mut kept) = (open(&ending), open(&staying));
    house.gateway.metrics_until("all are open", |metrics| metrics.sum("shardgate_tunnels_open") == 128);
    assert_eq!(ask(&mut house.gateway.connect(), "POST", "/auth/logout", &ending.access).status, 204);
    for client in &mut ended {
        // RFC 6455 §7.4.1: 1008, something is not allowed any more.
        assert_eq!(client.read_to_end().expect("a FIN"), [0x88, 2, 0x03, 0xf0]);
        client.finish();
    }
    let series = "shardgate_tunnels_ended_total{route=\"/*\",reason=\"revoked\"}";
    let metrics = house.gateway.metrics_until("they are gone", |metrics| metrics.value(series) == 64);
    assert_eq!(metrics.sum("shardgate_tunnels_open"), 64);
    assert_eq!(metrics.sum("shardgate_exchanges_tied"), 64);
    for client in &mut kept {
        client.send([0x81, 0x80, 0, 0, 0, 0]);
    }
    house
        .gateway
        .metrics_until("the others go on", |metrics| metrics.sum("shardgate_tunnel_received_bytes_total") == 64 * 6);
    house.expect_all_shards();
}

#[test]
fn requests_without_an_answer_are_refused_when_their_session_ends() {
    let finishing = "[[routes]]\npath = \"/finish/*\"\nupstream = \"back\"\non_client_close = \"finish\"\n";
    let mut house = House::start(finishing);
    let (ending, staying) = (house.log_in("ann@example.com"), house.log_in("ben@example.com"));
    let begin = |tokens: &Tokens, path: &str, fields: &str, body: &str| {
        let mut clients: Vec<Client> = (0..16).map(|_| house.gateway.connect()).collect();
        for client in &mut clients {
            let bearer = &tokens.access;
            client.send(format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\n{fields}Authorization: Bearer {bearer}\r\n\r\n{body}"
            ));
        }
        clients
    };
    let uploading = begin(&ending, "/x", "Transfer-Encoding: chunked\r\n", "5\r\nfirst\r\n");
    let waiting = [begin(&ending, "/held", "", ""), begin(&ending, "/held", "Content-Length: 5\r\n", "whole")];
    let finishing = begin(&ending, "/finish/held", "Content-Length: 5\r\n", "whole");
    let others = begin(&staying, "/held", "", "");
    house.gateway.metrics_until("all are under way", |metrics| metrics.sum("shardgate_exchanges_tied") == 80);
    // What is whole reaches the backend whole.
    for _ in 0..64 {
        house.backend.request();
    }
    assert_eq!(ask(&mut house.gateway.connect(), "POST", "/auth/logout", &ending.access).status, 204);
    for mut client in uploading {
        // The rest of its body would stand where the next request should: the connection closes.
        expect_code(&client.read_response(), 401, "token_revoked");
        assert!(client.read_to_end().unwrap_or_default().is_empty());
    }
    for mut client in waiting.into_iter().flatten() {
        expect_code(&client.read_response(), 401, "token_revoked");
        expect_code(&ask(&mut client, "GET", "/x", &ending.access), 401, "token_revoked");
    }
    // A backend that shall finish its work is let finish it.
    house.gateway.metrics_until("the others wait on", |metrics| metrics.sum("shardgate_exchanges_tied") == 32);
    house.release();
    for mut client in finishing {
        expect_code(&client.read_response(), 401, "token_revoked");
    }
    for mut client in others {
        assert_eq!(client.read_response().status, 200);
    }
    house.gateway.metrics_until("all are let go", |metrics| metrics.sum("shardgate_exchanges_tied") == 0);
}

#[test]
fn what_is_in_a_pipe_ends_with_its_session() {
    let mut house = House::start("");
    let tokens = house.log_in("ann@example.com");
    // Each connects when it has something to say: on a busy machine they take longer than a connection may be silent.
    let begin = |_| {
        let mut client = house.gateway.connect();
        client.send(format!("GET /large HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", tokens.access));
        assert_eq!(client.read_response_head().status, 200);
        // So much of it that the rest is on its way, unseen.
        let mut read = 0;
        while read < 1024 * 1024 {
            read += client.read_some().expect("more").len();
        }
        client
    };
    let mut clients: Vec<Client> = (0..64).map(begin).collect();
    // Nobody reads on, so nothing moves; the end has to come all the same.
    house.gateway.metrics_until("all are tied", |metrics| metrics.sum("shardgate_exchanges_tied") == 64);
    assert_eq!(ask(&mut house.gateway.connect(), "POST", "/auth/logout", &tokens.access).status, 204);
    house.gateway.metrics_until("all are let go", |metrics| metrics.sum("shardgate_exchanges_tied") == 0);
    for client in &mut clients {
        let rest = client.read_to_end().unwrap_or_default().len();
        assert!(rest < LARGE - 2 * 1024 * 1024, "{rest} bytes came");
    }
}

#[test]
fn log_ins_that_wait_at_the_end_of_a_drain_are_told() {
    // A hash takes longer than the drain. Nobody's password takes as long as anybody's.
    let mut gateway = Gateway::start(
        "[accounts]\npassword_threads = 1\npassword_memory = \"128MiB\"\npassword_passes = 16\n[drain]\nnotice = \"0s\"\n\
         max = \"300ms\"\n",
    );
    let mut clients: Vec<Client> = (0..32).map(|_| gateway.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let body = json!({"email": format!("{n}@example.com"), "password": PASSWORD}).to_string();
        client.send(format!(
            "POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
    }
    gateway.metrics_until("all wait", |metrics| metrics.sum("shardgate_requests_in_flight") == 32);
    gateway.signal(Signal::TERM);
    for mut client in clients {
        expect_code(&client.read_response(), 503, "draining");
        client.expect_end();
    }
    assert_eq!(gateway.wait_exit(Duration::from_secs(10)), Some(3));
}

#[test]
fn a_refresh_token_is_spent_once_and_again_within_the_grace() {
    let mut house = House::start("[sessions]\nrefresh_grace = \"1s\"\n");
    let first = house.log_in("ann@example.com");
    let renew = |house: &House, token: &str| {
        post(&mut house.gateway.connect(), "/auth/refresh", &json!({"refreshToken": token}))
    };
    let answer = renew(&house, &first.refresh);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let second = house.keep(&answer);
    let again = renew(&house, &first.refresh);
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(house.keep(&again).refresh, second.refresh, "two tabs get the same successor");
    assert_eq!(ask(&mut house.gateway.connect(), "GET", "/x", &second.access).status, 200);
    let reused = until(Duration::from_secs(10), "the grace is over", || {
        let answer = renew(&house, &first.refresh);
        (answer.status != 200).then_some(answer)
    });
    expect_code(&reused, 401, "refresh_reused");
    until(Duration::from_secs(5), "the session has ended", || {
        // A request that is under way at the backend just then is refused as the next one is.
        let answer = ask(&mut house.gateway.connect(), "GET", "/x", &second.access);
        (answer.status != 200).then(|| expect_code(&answer, 401, "token_revoked"))
    });
    expect_code(&renew(&house, &second.refresh), 401, "refresh_invalid");
    house.check_silence();
}

#[test]
fn one_ends_ones_own_sessions_and_nobody_elses() {
    let mut house = House::start("");
    let [here, there] = [(); 2].map(|()| house.log_in("ann@example.com"));
    let foreign = house.log_in("ben@example.com");
    let mut client = house.gateway.connect();
    let mut session_of = |token: &str| {
        let listed = ask(&mut client, "GET", "/auth/sessions", token).json();
        let current = listed["sessions"].as_array().expect("a list").iter().find(|session| session["current"] == true);
        current.expect("the session that asks")["sid"].as_str().expect("an id").to_owned()
    };
    let (there_sid, foreign_sid) = (session_of(&there.access), session_of(&foreign.access));
    let mut end = |sid: &str| ask(&mut client, "DELETE", &format!("/auth/sessions/{sid}"), &here.access);
    assert_eq!(end(&there_sid).status, 204);
    let answer = end(&foreign_sid);
    expect_code(&answer, 404, "not_found");
    expect_code(&end("s_nobody"), 404, "not_found");
    expect_code(&ask(&mut client, "GET", "/auth/me", &there.access), 401, "token_revoked");
    assert_eq!(ask(&mut client, "GET", "/auth/me", &foreign.access).status, 200);
    assert_eq!(ask(&mut client, "GET", "/auth/me", &here.access).status, 200);
}

#[test]
fn what_is_no_log_in_is_told_what_is_wrong() {
    let house = House::start("");
    let mut client = house.gateway.connect();
    let mut send = |content_type: &str, body: &str| {
        let length = body.len();
        client.send(format!(
            "POST /auth/login HTTP/1.1\r\nHost: a\r\n{content_type}Content-Length: {length}\r\n\r\n{body}"
        ));
        client.read_response()
    };
    let json = "Content-Type: application/json\r\n";
    let long = format!("{{\"email\":\"a@b.c\",\"password\":\"{}\"}}", "x".repeat(1_025));
    for (content_type, body, status, code) in [
        ("", "{}", 415, "unsupported_media_type"),
        ("Content-Type: text/plain\r\n", "{}", 415, "unsupported_media_type"),
        (json, "", 400, "invalid_json"),
        (json, "{\"email\":", 400, "invalid_json"),
        (json, "[]", 400, "invalid_json"),
        (json, "{\"email\":\"a@b.c\"}", 422, "validation_failed"),
        (json, "{\"email\":7,\"password\":\"x\"}", 422, "validation_failed"),
        (json, &long, 422, "validation_failed"),
        (json, "{\"email\":\"nobody@b.c\",\"password\":\"x\"}", 401, "invalid_credentials"),
        (
            "Content-Type: application/json; charset=utf-8\r\n",
            "{\"email\":\"ann@example.com\",\"password\":\"x\"}",
            401,
            "invalid_credentials",
        ),
    ] {
        let answer = send(content_type, body);
        assert_eq!((answer.status, &answer.json()["code"]), (status, &Value::from(code)), "{body}: {}", answer.text());
    }
    // A password is its bytes: nothing is trimmed, cut at a NUL, or taken for another case.
    for password in [format!("{PASSWORD} "), format!(" {PASSWORD}"), format!("{PASSWORD}\0"), PASSWORD.to_uppercase()] {
        let answer = send(json, &json!({"email": "ben@example.com", "password": password}).to_string());
        expect_code(&answer, 401, "invalid_credentials");
    }
    for (password, status, code) in [
        ("", 422, "validation_failed"),
        ("   ", 401, "invalid_credentials"),
        ("\\u0000", 401, "invalid_credentials"),
        ("\\ud83d\\ude00", 401, "invalid_credentials"),
        ("\\ud800", 400, "invalid_json"),
        ("\0", 400, "invalid_json"),
    ] {
        let body = format!("{{\"email\":\"nobody2@b.c\",\"password\":\"{password}\"}}");
        let answer = send(json, &body);
        assert_eq!((answer.status, &answer.json()["code"]), (status, &Value::from(code)), "{body}: {}", answer.text());
    }
    let mut client = house.gateway.connect();
    client.send(
        b"POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 34\r\n\r\n\
                  {\"email\":\"a@b.c\",\"password\":\"\xff\xfex\"}",
    );
    expect_code(&client.read_response(), 400, "invalid_json");
    // Refused by what it says, before it is sent.
    let mut client = house.gateway.connect();
    client.send("POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Length: 16385\r\n\r\n");
    expect_code(&client.read_response(), 413, "body_too_large");
    // What the route of everything else would take is still our own path.
    let mut client = house.gateway.connect();
    for (method, path, allow) in [("GET", "/auth/login", "POST"), ("PUT", "/auth/me", "GET, HEAD")] {
        let wrong = ask(&mut client, method, path, "x");
        expect_code(&wrong, 405, "method_not_allowed");
        assert_eq!(wrong.field("allow"), Some(allow));
    }
    expect_code(&ask(&mut client, "GET", "/metrics", "x"), 404, "not_found");
}

//! Sessions through real gateways: two of them on one Redis, one killed, one whose users are changed from outside.

mod crowd;
mod half_done;
mod left;
mod refusing;
mod secrets;
mod soak;
mod unread;

use std::{
    io::Write as _,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    backend::{Backend, Conversation},
    client::{Client, Response},
    harness::{Gateway, now, pause, shardgate, until},
    servers::redis::RedisServer,
};

const EMAIL: &str = "ann@shop.example";
const PASSWORD: &str = "a password of the tests";

/// What a test keeps on disk, and the service behind its gateways: `/stream` begins and never ends, the rest is answered.
struct Stage {
    data: TempDir,
    backend: Backend,
    /// Further lines of the configuration.
    rest: String,
}

fn serve(client: &mut Conversation) -> std::io::Result<()> {
    loop {
        let asked = client.read_request()?;
        if asked.head.first_line.contains("/stream") {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            client.send(format!("{head}7\r\ndata: 1\r\n"))?;
            client.read_to_end();
            return Ok(());
        }
        if asked.head.first_line.contains("/socket") {
            client.send("HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")?;
            client.read_to_end();
            return Ok(());
        }
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
    }
}

impl Stage {
    fn new(rest: &str) -> Self {
        Self {
            data: TempDir::new().expect("a temporary directory"),
            backend: Backend::start(serve),
            rest: rest.to_owned(),
        }
    }

    fn config(&self) -> String {
        let (data, backend, rest) = (self.data.path().display(), self.backend.address(), &self.rest);
        format!(
            "[data]\ndir = \"{data}\"\n[accounts]\npassword_memory = \"64KiB\"\npassword_passes = 1\n\
             [upstreams.back]\ninstances = [\"{backend}\"]\n\
             [[routes]]\nname = \"any\"\npath = \"/any/*\"\nupstream = \"back\"\n\
             [[routes]]\nname = \"admin\"\npath = \"/admin\"\nupstream = \"back\"\nroles = [\"admin\"]\n{rest}"
        )
    }

    #[track_caller]
    fn start(&self) -> Gateway {
        Gateway::start(&self.config())
    }

    /// Runs a command that changes users; the password goes to its standard input.
    #[track_caller]
    fn user(&self, arguments: &[&str]) {
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("shardgate.toml");
        std::fs::write(&file, self.config()).expect("the configuration is written");
        let mut command = shardgate(directory.path());
        command.arg("user").args(arguments).arg("--config").arg(&file).stdin(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        let mut stdin = child.stdin.take().expect("it is piped");
        // A command that asks for nothing may have ended already.
        let _ = writeln!(stdin, "{PASSWORD}");
        drop(stdin);
        let status = child.wait().expect("it is ours");
        assert!(status.success(), "{}", read(&directory.path().join("stderr.log")));
    }

    #[track_caller]
    fn add_ann(&self) {
        self.user(&["add", EMAIL, "--role", "admin"]);
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// What a log-in or a renewal answers with.
#[derive(Debug)]
struct Tokens {
    access: String,
    refresh: String,
}

#[track_caller]
fn post(gateway: &Gateway, path: &str, body: &Value, fields: &str) -> Response {
    let body = body.to_string();
    let mut client = gateway.connect();
    client.send(format!(
        "POST {path} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{fields}\r\n{body}",
        body.len()
    ));
    client.read_response()
}

#[track_caller]
fn tokens(answer: &Response) -> Tokens {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    let text = |name: &str| body[name].as_str().expect("a token").to_owned();
    Tokens { access: text("accessToken"), refresh: text("refreshToken") }
}

fn credentials() -> Value {
    json!({ "email": EMAIL, "password": PASSWORD })
}

#[track_caller]
fn log_in(gateway: &Gateway) -> Tokens {
    tokens(&post(gateway, "/auth/login", &credentials(), ""))
}

fn refresh(gateway: &Gateway, token: &str) -> Response {
    post(gateway, "/auth/refresh", &json!({ "refreshToken": token }), "")
}

#[track_caller]
fn log_out(gateway: &Gateway, token: &str) {
    let answer = post(gateway, "/auth/logout", &json!({}), &bearer(token));
    assert_eq!(answer.status, 204, "{}", answer.text());
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

fn ask(client: &mut Client, path: &str, token: &str) -> Response {
    client.send(format!("GET {path} HTTP/1.1\r\nhost: gateway.test\r\n{}\r\n", bearer(token)));
    client.read_response()
}

/// What is answered, in short: the status, and the code of a refusal.
fn told(answer: &Response) -> String {
    let code = if answer.status == 200 { Value::Null } else { answer.json()["code"].clone() };
    format!("{} {}", answer.status, code.as_str().unwrap_or("ok"))
}

/// What each of many connections is told, so that each shard is asked.
#[track_caller]
fn expect_everywhere(gateway: &Gateway, path: &str, token: &str, expected: &str) {
    for _ in 0..32 {
        assert_eq!(told(&ask(&mut gateway.connect(), path, token)), expected, "{path}");
    }
}

/// An answer that has begun and does not end by itself.
#[track_caller]
fn open_stream(gateway: &Gateway, token: &str) -> Client {
    let mut client = gateway.connect();
    client.send(format!("GET /any/stream HTTP/1.1\r\nhost: gateway.test\r\n{}\r\n", bearer(token)));
    client.read_until("data: 1");
    client
}

/// How long after `since` the stream has ended.
#[track_caller]
fn ended_after(stream: &mut Client, since: Instant) -> Duration {
    stream.expect_end();
    now().duration_since(since)
}

fn redis(server: &RedisServer) -> String {
    format!(
        "[redis]\nurls = [\"{}\"]\ntimeout = \"250ms\"\nconnect_timeout = \"250ms\"\n\
         [sessions]\nsecret = \"a secret of the tests, of 32 bytes or more\"\n",
        server.url()
    )
}

#[test]
fn a_log_out_on_one_instance_ends_everything_on_the_other() {
    let Some(server) = RedisServer::start() else { return };
    let stage = Stage::new(&redis(&server));
    stage.add_ann();
    let (here, there) = (stage.start(), stage.start());
    let rounds = if crate::harness::is_long() { 100 } else { 5 };
    let (mut refused, mut ended) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let session = log_in(&here);
        let other = log_in(&here);
        let mut streams = [open_stream(&there, &session.access), open_stream(&there, &session.access)];
        let mut left = open_stream(&there, &other.access);
        let mut client = there.connect();
        assert_eq!(told(&ask(&mut client, "/any/x", &session.access)), "200 ok");
        log_out(&here, &session.access);
        let since = now();
        until(Duration::from_secs(1), "the token is refused", || {
            (told(&ask(&mut client, "/any/x", &session.access)) == "401 token_revoked").then_some(())
        });
        refused.push(now().duration_since(since));
        ended.extend(streams.iter_mut().map(|stream| ended_after(stream, since)));
        assert!(ended.iter().all(|time| *time < Duration::from_secs(1)), "{ended:?}");
        if round == 0 {
            expect_everywhere(&here, "/any/x", &session.access, "401 token_revoked");
            expect_everywhere(&there, "/any/x", &session.access, "401 token_revoked");
            expect_everywhere(&there, "/any/x", &other.access, "200 ok");
        }
        assert_eq!(told(&refresh(&there, &session.refresh)), "401 refresh_invalid");
        tokens(&refresh(&there, &other.refresh));
        let answer = post(&there, "/auth/logout-all", &json!({}), &bearer(&other.access));
        assert_eq!(answer.status, 204);
        ended_after(&mut left, now());
    }
    for (what, mut times) in [("refused", refused), ("stream ended", ended)] {
        times.sort();
        let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
        eprintln!("after the log-out was answered, {what}: p50 {:?} p99 {:?} max {:?}", at(50), at(99), at(100));
    }
}

#[test]
fn a_kick_closes_what_lasts_on_every_instance() {
    let Some(server) = RedisServer::start() else { return };
    let stage = Stage::new(&redis(&server));
    stage.add_ann();
    let gateways = [stage.start(), stage.start()];
    let session = log_in(&gateways[0]);
    let open = |gateway: &Gateway| {
        let mut client = gateway.connect();
        let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
        client.send(format!("GET /any/socket HTTP/1.1\r\nHost: a\r\n{upgrade}{}\r\n", bearer(&session.access)));
        assert_eq!(client.read_response().status, 101);
        client
    };
    let mut clients: Vec<Client> = gateways.iter().flat_map(|gateway| (0..16).map(|_| open(gateway))).collect();
    let me = ask(&mut gateways[0].connect(), "/auth/me", &session.access).json();
    let id = me["user"]["sub"].as_str().unwrap_or_else(|| panic!("an id: {me}"));
    let entry = ["kind", "kick", "id", id, "at", "1", "by", "test"];
    server.ask(&[&["XADD", "shardgate:revocations", "*"][..], &entry].concat());
    for client in &mut clients {
        assert_eq!(client.read_to_end().expect("a FIN"), [0x88, 2, 0x03, 0xf0]);
        client.finish();
    }
    let series = "shardgate_tunnels_ended_total{route=\"any\",reason=\"kicked\"}";
    for gateway in &gateways {
        gateway.metrics_until("all are told", |metrics| metrics.value(series) == 16);
        // The first gateway's log also has what came before.
        until(Duration::from_secs(10), "a line for each that was kicked", || {
            let kicked = gateway.access_lines(16).iter().filter(|line| line["reason"] == "kicked").count();
            (kicked == 16).then_some(())
        });
        // The token stays good.
        expect_everywhere(gateway, "/any/x", &session.access, "200 ok");
    }
}

#[test]
fn what_is_known_serves_while_redis_is_away_and_nothing_revoked_is_good_after() {
    let Some(mut server) = RedisServer::start() else { return };
    let stage = Stage::new(&redis(&server));
    stage.add_ann();
    let guarded = format!("{}[revocation]\nmax_staleness = \"2s\"\n", stage.config());
    let closed = format!("{guarded}fail = \"closed\"\n");
    let (mut here, mut there) = (Gateway::start(&guarded), Gateway::start(&closed));
    for gateway in [&mut here, &mut there] {
        gateway.expect_error("has lost entries");
    }
    let (session, revoked) = (log_in(&here), log_in(&there));
    log_out(&here, &revoked.access);
    for gateway in [&here, &there] {
        until(Duration::from_secs(2), "both have heard", || {
            (told(&ask(&mut gateway.connect(), "/any/x", &revoked.access)) == "401 token_revoked").then_some(())
        });
    }
    server.kill();
    let killed = now();
    for gateway in [&here, &there] {
        expect_everywhere(gateway, "/admin", &session.access, "200 ok");
    }
    assert!(now().duration_since(killed) < Duration::from_secs(2), "asked while what is known is fresh");
    assert_eq!(told(&refresh(&here, &session.refresh)), "503 dependency_unavailable");
    for gateway in [&here, &there] {
        until(Duration::from_secs(5), "what is known is too old", || {
            (told(&ask(&mut gateway.connect(), "/admin", &session.access)) == "503 dependency_unavailable")
                .then_some(())
        });
    }
    assert!(now().duration_since(killed) >= Duration::from_millis(1_500), "not before its time");
    // The slowest shard has the same clock, and got the same word.
    pause(Duration::from_millis(100));
    expect_everywhere(&here, "/admin", &session.access, "503 dependency_unavailable");
    expect_everywhere(&here, "/any/x", &session.access, "200 ok");
    expect_everywhere(&here, "/any/x", &revoked.access, "401 token_revoked");
    expect_everywhere(&there, "/any/x", &session.access, "503 dependency_unavailable");
    for outcome in ["served", "refused"] {
        let series = format!("shardgate_revocation_stale_requests_total{{outcome=\"{outcome}\"}}");
        assert!(here.metrics().value(&series) > 0, "{outcome}");
    }
    assert!(here.metrics().sum("shardgate_revocation_age_seconds") > 0);

    // It kept nothing: what was revoked only the gateways know.
    server.restart();
    for gateway in [&here, &there] {
        until(Duration::from_secs(10), "it is back", || {
            (told(&ask(&mut gateway.connect(), "/admin", &session.access)) == "200 ok").then_some(())
        });
        expect_everywhere(gateway, "/any/x", &revoked.access, "401 token_revoked");
    }
    // Whoever looks first writes back, and the other may find all of it.
    let lost = |gateway: &Gateway| gateway.metrics().value("shardgate_revocation_log_losses_total");
    assert!([&here, &there].iter().any(|gateway| lost(gateway) > 0), "the loss is counted");
    let fresh = Gateway::start(&guarded);
    expect_everywhere(&fresh, "/any/x", &revoked.access, "401 token_revoked");
    // Whoever asks for sessions has a connection of its own, which comes back when it does.
    let refused = until(Duration::from_secs(10), "sessions are asked for again", || {
        Some(told(&refresh(&here, &session.refresh))).filter(|told| told != "503 dependency_unavailable")
    });
    assert_eq!(refused, "401 refresh_invalid", "sessions were lost with Redis");
    log_in(&here);
}

#[test]
fn a_redis_that_hangs_is_away_and_does_later_nothing_that_was_given_up() {
    let Some(server) = RedisServer::start() else { return };
    let stage = Stage::new(&redis(&server));
    stage.add_ann();
    let guarded = format!("{}[revocation]\nmax_staleness = \"2s\"\n", stage.config());
    let (here, there) = (Gateway::start(&guarded), Gateway::start(&guarded));
    let (session, other) = (log_in(&here), log_in(&there));
    server.pause();
    let paused = now();
    // Connections are there and nobody answers: each question ends by its own time.
    assert_eq!(told(&refresh(&here, &session.refresh)), "503 dependency_unavailable");
    let asked = [("/auth/logout", &session), ("/auth/logout-all", &other)];
    for (path, tokens) in asked {
        assert_eq!(told(&post(&there, path, &json!({}), &bearer(&tokens.access))), "503 dependency_unavailable");
    }
    assert!(now().duration_since(paused) < Duration::from_secs(5), "nobody waits for long");
    for gateway in [&here, &there] {
        until(Duration::from_secs(10), "what is known is too old", || {
            (told(&ask(&mut gateway.connect(), "/admin", &session.access)) == "503 dependency_unavailable")
                .then_some(())
        });
        // Requests that do not depend on it go on.
        expect_everywhere(gateway, "/any/x", &session.access, "200 ok");
    }
    let mut stream = open_stream(&here, &session.access);

    server.go_on();
    for gateway in [&here, &there] {
        until(Duration::from_secs(10), "it is back", || {
            (told(&ask(&mut gateway.connect(), "/admin", &session.access)) == "200 ok").then_some(())
        });
    }
    // Whoever was told that it could not be done finds it not done: nothing was spent, and nobody is logged out. Sessions
    // are asked for on another connection than the log, which comes back when it does.
    let [renewed, _] = [(&here, &session), (&there, &other)].map(|(gateway, session)| {
        tokens(&until(Duration::from_secs(10), "sessions are asked for again", || {
            Some(refresh(gateway, &session.refresh)).filter(|answer| answer.status != 503)
        }))
    });
    for gateway in [&here, &there] {
        for token in [&session.access, &renewed.access, &other.access] {
            expect_everywhere(gateway, "/any/x", token, "200 ok");
        }
    }
    log_out(&there, &renewed.access);
    stream.expect_end();
    expect_everywhere(&there, "/any/x", &renewed.access, "401 token_revoked");
    until(Duration::from_secs(2), "the other has heard", || {
        (told(&ask(&mut here.connect(), "/any/x", &renewed.access)) == "401 token_revoked").then_some(())
    });
}

#[test]
fn a_user_that_is_disabled_from_the_command_line_is_out_at_once() {
    let stage = Stage::new("");
    stage.add_ann();
    let gateway = stage.start();
    let session = log_in(&gateway);
    let mut streams: Vec<_> = (0..8).map(|_| open_stream(&gateway, &session.access)).collect();
    stage.user(&["disable", EMAIL]);
    let since = now();
    let ended = streams.iter_mut().map(|stream| ended_after(stream, since)).max().unwrap_or_default();
    eprintln!("after the command ended, the last stream ended: {ended:?}");
    // Promised are 250 ms; the rest is for a machine that runs other tests.
    assert!(ended < Duration::from_secs(1), "{ended:?}");
    expect_everywhere(&gateway, "/any/x", &session.access, "401 token_revoked");
    assert_eq!(told(&refresh(&gateway, &session.refresh)), "401 refresh_invalid");
    let answer = post(&gateway, "/auth/login", &json!({ "email": EMAIL, "password": PASSWORD }), "");
    assert_eq!(told(&answer), "401 invalid_credentials");
}

#[test]
fn a_gateway_that_is_killed_has_forgotten_nothing() {
    let stage = Stage::new("[sessions]\nrefresh_grace = \"0s\"\n");
    stage.add_ann();
    let mut gateway = stage.start();
    let (session, revoked) = (log_in(&gateway), log_in(&gateway));
    let renewed = tokens(&refresh(&gateway, &session.refresh));
    log_out(&gateway, &revoked.access);
    gateway.signal(Signal::KILL);
    assert_eq!(gateway.wait_exit(Duration::from_secs(10)), None, "a signal ended it");
    let gateway = stage.start();
    expect_everywhere(&gateway, "/any/x", &revoked.access, "401 token_revoked");
    expect_everywhere(&gateway, "/any/x", &renewed.access, "200 ok");
    let mut stream = open_stream(&gateway, &renewed.access);
    // Spent is spent, and shows that somebody else has it.
    assert_eq!(told(&refresh(&gateway, &session.refresh)), "401 refresh_reused");
    stream.expect_end();
    expect_everywhere(&gateway, "/any/x", &renewed.access, "401 token_revoked");
    assert_eq!(told(&refresh(&gateway, &renewed.refresh)), "401 refresh_invalid");
}

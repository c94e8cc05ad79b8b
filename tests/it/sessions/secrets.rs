//! A whole run with everything that has a secret, told at the most talkative level: no output of any command has one.

use super::*;
use crate::{secrets, servers::postgres::PostgresServer};

const REDIS_PASSWORD: &str = "the-password-of-redis";
/// As the cluster's user has it, and as its URL does.
const POSTGRES_PASSWORDS: [&str; 2] = ["test only", "test%20only"];
const TOKEN_SECRET: &str = "what-signs-the-access-tokens-of-this-test";
const REFRESH_SECRET: &str = "what-signs-the-refresh-tokens-of-this-test";
const SOON: Duration = Duration::from_secs(10);

/// Runs a command, and returns all that it prints.
#[track_caller]
pub(super) fn run(arguments: &[&str], config: &str, input: &str) -> String {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("shardgate.toml");
    std::fs::write(&file, config).expect("the configuration is written");
    let mut command = shardgate(directory.path());
    command.args(arguments).stdin(Stdio::piped()).env("TOKEN_SECRET", TOKEN_SECRET);
    if arguments.len() > 1 || arguments == ["migrate"] {
        command.arg("--config");
    }
    let mut child = command.arg(&file).spawn().expect("it runs");
    // A command that asks for nothing may have ended already.
    let _ = writeln!(child.stdin.take().expect("it is piped"), "{input}");
    child.wait().expect("it is ours");
    let printed = ["stdout.log", "stderr.log"].map(|name| read(&directory.path().join(name))).concat();
    expect_silence(&format!("{arguments:?}"), &printed);
    printed
}

#[track_caller]
fn expect_silence(what: &str, text: &str) {
    secrets::expect_none(what, text);
    for password in POSTGRES_PASSWORDS {
        assert!(!text.contains(password), "{what} tells the password of PostgreSQL");
    }
}

/// Asks with a token where none belongs.
fn misplace(gateway: &Gateway, token: &str) {
    for request in [
        format!("GET /any/x?access_token={token} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET /query/x?access_token={token}x HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET /query/x?access_token={token}&b&access_token={token} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET /query/x?access_token={token} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"),
        format!("GET /query/admin?access_token={token} HTTP/1.1\r\nHost: a\r\nbad field\r\n\r\n"),
        format!("GET /any/x HTTP/1.1\r\nHost: a\r\nAuthorization: bearer {token}x\r\n\r\n"),
        format!("GET /any/x HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {token}\r\n\r\n"),
        format!("GET /any/x HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\n\r\n"),
        format!("GET /any/x HTTP/1.1\r\nHost: a\r\nCookie: token={token}\r\n\r\n"),
        format!(
            "GET /any/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n\r\n"
        ),
        format!("GET /any/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nbad field: {token}\r\n\r\n"),
    ] {
        let mut client = gateway.connect();
        client.send(request);
        let answer = client.read_response();
        assert!(answer.status >= 400, "{}", answer.text());
        expect_silence("a refusal", &answer.text());
    }
    for body in [
        format!("{{\"refreshToken\":\"{token}\""),
        format!("{{\"refreshToken\":\"{token}\",\"refreshToken\":\"{token}\"}}"),
        format!("\"{token}\""),
    ] {
        let mut client = gateway.connect();
        let length = body.len();
        client.send(format!(
            "POST /auth/refresh HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        let answer = client.read_response();
        assert!(answer.status >= 400, "{}", answer.text());
        expect_silence("a refusal", &answer.text());
    }
}

#[test]
fn a_whole_run_tells_no_secret() {
    let Some(mut redis) = RedisServer::start_with(&["--save", "", "--requirepass", REDIS_PASSWORD]) else { return };
    let Some(mut postgres) = PostgresServer::start() else { return };
    for secret in [REDIS_PASSWORD, TOKEN_SECRET, REFRESH_SECRET, PASSWORD] {
        secrets::keep(secret);
    }
    let rest = format!(
        "[drain]\nnotice = \"0s\"\n[log]\nlevel = \"trace\"\n\
         [redis]\nurls = [\"redis://:{REDIS_PASSWORD}@127.0.0.1:{}\"]\ntimeout = \"250ms\"\nconnect_timeout = \"250ms\"\n\
         [sessions]\nsecret = \"{REFRESH_SECRET}\"\nrefresh_grace = \"0s\"\n\
         [[auth.keys]]\nkid = \"one\"\nalgorithm = \"HS256\"\nsecret = \"${{TOKEN_SECRET}}\"\n\
         [limits.one]\nquota = 100000\nwindow = \"1d\"\nscope = \"fleet\"\n\
         [[routes]]\npath = \"/query/*\"\nupstream = \"back\"\ntoken_query = \"access_token\"\n",
        redis.port()
    );
    let stage = Stage::new(&rest);
    let accounts = format!("[accounts]\npostgres_url = \"{}\"\n", postgres.url());
    let config = stage.config().replacen("[accounts]\n", &accounts, 1);

    run(&["migrate"], &config, "");
    run(&["user", "add", EMAIL, "--role", "admin"], &config, PASSWORD);
    run(&["user", "add", EMAIL], &config, PASSWORD);
    run(&["user", "passwd", EMAIL], &config, PASSWORD);
    assert!(run(&["user", "list"], &config, "").contains(EMAIL));
    assert!(run(&["config"], &config, "").contains("[redis]"));
    for (wrong, what) in [
        (config.replace("redis://:", "radish://:"), "redis.urls"),
        (config.replace("postgres://", "mysql://"), "accounts.postgres_url"),
        (config.replace("HS256", "HS255"), "algorithm"),
        (config.replace("refresh_grace", "refresh_grice"), "refresh_grice"),
        (config.replace("[sessions]\n", "[sessions\n"), "this is no TOML"),
    ] {
        let printed = run(&["check"], &wrong, "");
        assert!(printed.contains(what), "{what}: {printed}");
    }

    let start = || Gateway::start_as(&config, |command| _ = command.env("TOKEN_SECRET", TOKEN_SECRET));
    let (mut here, mut there) = (start(), start());
    // What fails on purpose is told as an error.
    here.expect_error("");
    there.expect_error("");
    let session = log_in(&here);
    let renewed = tokens(&refresh(&there, &session.refresh));
    let mut client = here.connect();
    client.send(format!("GET /query/x?a&access_token={}&b HTTP/1.1\r\nHost: a\r\n\r\n", renewed.access));
    assert_eq!(client.read_response().status, 200);
    misplace(&here, &renewed.access);
    misplace(&there, &renewed.refresh);
    for password in ["not the password of anybody", &renewed.refresh, ""] {
        let answer = post(&here, "/auth/login", &json!({ "email": EMAIL, "password": password }), "");
        assert!(answer.status >= 400);
    }
    let mut stream = open_stream(&there, &renewed.access);
    assert_eq!(told(&refresh(&here, &session.refresh)), "401 refresh_reused");
    stream.expect_end();
    until(SOON, "the session has ended", || {
        (told(&ask(&mut here.connect(), "/any/x", &renewed.access)) == "401 token_revoked").then_some(())
    });
    let session = log_in(&there);
    redis.kill();
    assert_eq!(told(&refresh(&here, &session.refresh)), "503 dependency_unavailable");
    redis.restart();
    until(SOON, "Redis is back", || {
        (told(&refresh(&there, &session.refresh)) != "503 dependency_unavailable").then_some(())
    });
    postgres.kill();
    let answer = post(&here, "/auth/login", &json!({ "email": EMAIL, "password": PASSWORD }), "");
    assert_eq!(told(&answer), "503 dependency_unavailable");
    run(&["user", "list"], &config, "");
    postgres.restart();
    until(SOON, "PostgreSQL is back", || {
        let answer = post(&here, "/auth/login", &json!({ "email": EMAIL, "password": PASSWORD }), "");
        (answer.status == 200).then_some(())
    });
    here.rewrite_config(&config.replace(REDIS_PASSWORD, "another-password-of-redis").replace("HS256", "HS255"));
    here.signal(Signal::HUP);
    here.log_until("HS255", SOON);
    for gateway in [&mut here, &mut there] {
        for page in ["/health", "/health/ready", "/metrics"] {
            expect_silence(page, &gateway.ask_admin(page).text());
        }
        gateway.signal(Signal::TERM);
        gateway.wait_exit(Duration::from_secs(40));
        let written = gateway.log() + &read(&gateway.directory().join("access.log"));
        assert!(written.contains("\"level\":\"DEBUG\""), "it is told to say all it can");
        expect_silence("the gateway", &written);
    }
}

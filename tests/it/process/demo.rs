//! The demo's page, as a browser asks for it, and as people use it in one.

use std::{path::Path, process::Command, time::Duration};

use rustix::process::{Pid, Signal, getpgid, kill_process};
use tempfile::TempDir;

use super::has_tool;
use crate::harness::{Client, Gateway, until};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn the_demo_serves_its_page_under_a_strict_policy() {
    let any_port = [("SHARDGATE_LISTENER_PORT", "0"), ("SHARDGATE_ADMIN_PORT", "0"), ("SHARDGATE_RUNTIME_SHARDS", "1")];
    let demo = Gateway::start_command(&["demo"], &any_port);
    // Everybody knows the passwords of its users.
    demo.log_until("listening on 127.0.0.1:", SOON);
    let mut client = Client::connect(demo.address());
    let javascript = "text/javascript; charset=utf-8";
    for (path, content_type, part) in [
        ("/demo", "text/html; charset=utf-8", "<option value=\"ada@example.com\""),
        ("/demo/page.js", javascript, "from \"/demo/shardgate.js\""),
        ("/demo/page.css", "text/css; charset=utf-8", "prefers-color-scheme: dark"),
        ("/demo/shardgate.js", javascript, "export function connect("),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
        let response = client.read_response();
        assert_eq!((response.status, response.field("content-type")), (200, Some(content_type)), "{path}");
        let policy = response.field("content-security-policy").expect("there is a policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; "), "{path}: {policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{path}: {policy}");
        assert_eq!(response.field("x-content-type-options"), Some("nosniff"), "{path}");
        assert!(response.text().contains(part), "{path} has {part}");
    }
    for path in ["/demo/", "/demo/page.html", "/demo/x"] {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert_eq!(client.read_response().status, 404, "{path}");
    }
}

#[test]
fn the_demo_knows_how_its_services_are() {
    let any_port = [("SHARDGATE_LISTENER_PORT", "0"), ("SHARDGATE_ADMIN_PORT", "0"), ("SHARDGATE_RUNTIME_SHARDS", "4")];
    let demo = Gateway::start_command(&["demo"], &any_port);
    // Nobody asks the services for anything but the probes.
    let document = until(Duration::from_secs(10), "all are up", || {
        let document = demo.get("/health").json();
        let up = |name: &str| document["services"][name]["status"] == "up";
        ["ingestion", "prediction", "aiEngine", "pages"].into_iter().all(up).then_some(document)
    });
    assert_eq!(document["status"], "healthy", "{document}");
    let entry = &document["services"]["prediction"];
    assert_eq!(entry["instances"], serde_json::json!({"healthy": 2, "total": 2}), "{entry}");
    assert!(entry["latencyMs"].as_f64().is_some_and(|ms| ms > 0.0) && entry["checkedAt"].is_string(), "{entry}");
}

/// The process of an instance of ingestion, as the demo says it.
fn instance(demo: &Gateway) -> Pid {
    let line = until(SOON, "it says what to kill", || {
        demo.log().lines().find(|line| line.trim_start().starts_with("ingestion")).map(str::to_owned)
    });
    let process: i32 = line.split_whitespace().last().and_then(|id| id.parse().ok()).expect("a process");
    Pid::from_raw(process).expect("a process")
}

#[test]
fn a_demo_that_is_killed_leaves_no_service_behind_also_none_that_is_stopped() {
    let any_port = [("SHARDGATE_LISTENER_PORT", "0"), ("SHARDGATE_ADMIN_PORT", "0"), ("SHARDGATE_RUNTIME_SHARDS", "1")];
    let mut demo = Gateway::start_command(&["demo"], &any_port);
    let process = instance(&demo);
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?;
        stat.rsplit_once(')').and_then(|(_, rest)| rest.trim().chars().next())
    };
    kill_process(process, Signal::STOP).expect("it runs");
    until(SOON, "it is stopped", || (state() == Some('T')).then_some(()));
    demo.signal(Signal::KILL);
    demo.wait_exit(SOON);
    // Whose parent has gone may be waited for by nobody, and is then still listed.
    until(SOON, "it has ended", || state().is_none_or(|state| matches!(state, 'Z' | 'X')).then_some(()));
}

#[test]
fn an_instance_that_is_killed_leaves_and_returns_and_no_request_fails() {
    let any_port = [("SHARDGATE_LISTENER_PORT", "0"), ("SHARDGATE_ADMIN_PORT", "0"), ("SHARDGATE_RUNTIME_SHARDS", "4")];
    let demo = Gateway::start_command(&["demo"], &any_port);
    let healthy = |count: u64| {
        let entry = demo.get("/health").json()["services"]["ingestion"]["instances"].clone();
        (entry["healthy"] == count && entry["total"] == 2).then_some(())
    };
    until(SOON, "both are up", || healthy(2));
    // As the demo says it: its passwords are no secrets.
    let output = Command::new("curl")
        .args(["-s", &format!("http://{}/auth/login", demo.address()), "-H", "Content-Type: application/json", "-d"])
        .arg(r#"{"email":"ada@example.com","password":"ada-demo-password"}"#)
        .output()
        .expect("curl runs");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an answer");
    let token = document["accessToken"].as_str().expect("a token").to_owned();
    let process = instance(&demo);
    // Ctrl-C in a terminal goes to all of a group, and services are asked for the rest of what is under way.
    assert_ne!(getpgid(Some(process)).expect("it runs"), getpgid(Some(demo.process())).expect("it runs"));
    let ask = || {
        let mut client = demo.connect();
        client.send(format!("GET /api/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"));
        assert_eq!(client.read_response().status, 202);
    };
    ask();
    kill_process(process, Signal::KILL).expect("it runs");
    until(SOON, "one has left", || {
        ask();
        healthy(1)
    });
    until(2 * SOON, "it has returned", || {
        ask();
        healthy(2)
    });
    assert!(demo.log().contains("an instance of ingestion is started again"));
}

#[test]
fn two_people_use_the_page_in_a_browser() {
    two_people(&["demo"], |demo| format!("http://127.0.0.1:{}", demo.address().port()));
}

#[test]
fn two_people_use_the_page_over_tls() {
    two_people(&["demo", "--tls=0"], |demo| {
        let line = until(SOON, "it says where", || {
            demo.log()
                .lines()
                .find_map(|line| Some(line.split_once("The same over TLS: https://localhost")?.1.to_owned()))
        });
        format!("https://127.0.0.1{}", line.split('/').next().expect("a port"))
    });
}

fn two_people(arguments: &[&str], origin: impl Fn(&Gateway) -> String) {
    if !has_tool("chromium") || !has_tool("node") {
        return;
    }
    let environment = [("LISTENER_PORT", "0"), ("ADMIN_PORT", "0"), ("RUNTIME_SHARDS", "4"), ("HUB_DEFLATE", "true")]
        .map(|(name, value)| (format!("SHARDGATE_{name}"), value));
    let environment = environment.each_ref().map(|(name, value)| (name.as_str(), *value));
    let demo = Gateway::start_command(arguments, &environment);
    let profile = TempDir::new().expect("a temporary directory");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/node/demo.mjs");
    let mut command = Command::new("node");
    command.arg(script).arg(origin(&demo)).arg(profile.path());
    // Pictures of the page, for whoever wants to look at it.
    command.args(std::env::var_os("SHARDGATE_TEST_PICTURES"));
    let output = command.output().expect("it runs");
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success() && said == "done\n", "{said}\n{errors}");
    let metrics =
        demo.metrics_until("the browser's sockets are gone", |metrics| metrics.sum("shardgate_sockets_open") == 0);
    let revoked = "shardgate_sockets_closed_total{reason=\"revoked\"}";
    assert_eq!(metrics.value(revoked), 3, "one by a log-out, two by one everywhere");
}

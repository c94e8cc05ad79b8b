//! What operators may read and change by their listener: who is refused, and what comes of a change on all shards.

use std::{collections::BTreeSet, fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    backend::{Backend, Conversation},
    client::{Client, Response},
    harness::{Gateway, now, until},
};

const SOON: Duration = Duration::from_secs(10);
const TOKEN: &str = "an-operators-token-of-the-tests";

/// A gateway in front of these, which asks this token for changes.
fn gateway(backends: &[&Backend], more: &str) -> Gateway {
    Gateway::start(&config(backends, more))
}

fn config(backends: &[&Backend], more: &str) -> String {
    format!("{}[[admin.tokens]]\nname = \"ann\"\nsecret = \"{TOKEN}\"\n{more}\n", routes(backends))
}

fn routes(backends: &[&Backend]) -> String {
    let instances = backends.iter().map(|back| format!("\"{}\"", back.address())).collect::<Vec<_>>().join(", ");
    format!(
        "[upstreams.back]\ninstances = [{instances}]\nbalance = \"round_robin\"\n\
         [[routes]]\nname = \"x\"\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n"
    )
}

/// A request with these fields besides those that every change has, unless they are given.
fn send(gateway: &Gateway, path: &str, fields: &[(&str, &str)], body: &str) -> Response {
    let mut client = Client::connect(gateway.admin());
    let usual = [("host", "localhost"), ("content-type", "application/json")];
    let usual = usual.iter().filter(|(name, _)| !fields.iter().any(|(given, _)| given == name));
    let fields = usual.chain(fields).map(|(name, value)| format!("{name}: {value}\r\n")).collect::<Vec<_>>().concat();
    let length = body.len();
    client.send(format!("POST {path} HTTP/1.1\r\n{fields}content-length: {length}\r\nconnection: close\r\n\r\n{body}"));
    client.read_response()
}

fn change(gateway: &Gateway, path: &str, body: &Value) -> Response {
    send(gateway, path, &[("authorization", &format!("Bearer {TOKEN}"))], &body.to_string())
}

#[track_caller]
fn done(gateway: &Gateway, path: &str, body: &Value) -> Value {
    let answer = change(gateway, path, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn state(gateway: &Gateway) -> Value {
    let answer = gateway.ask_admin("/api/state");
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("application/json")));
    answer.json()
}

fn refusal(answer: &Response) -> (u16, String) {
    (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
}

fn named(name: &'static str) -> Backend {
    Backend::answering(move |_| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

/// Who answers so many requests, each on a connection of its own, which land on all shards.
fn who_answers(gateway: &Gateway) -> BTreeSet<String> {
    (0..40).map(|_| gateway.get("/x").text()).collect()
}

#[test]
fn the_state_is_what_the_metrics_say() {
    let backend = Backend::ok();
    let gateway = gateway(&[&backend], "");
    for _ in 0..20 {
        assert_eq!(gateway.get("/x").status, 200);
    }
    let metrics = gateway.metrics_until("all are counted", |all| all.sum("shardgate_shard_requests_total") == 20);
    let state = state(&gateway);
    assert_eq!((&state["format"], &state["process"]["pid"]), (&json!(1), &json!(gateway.pid())));
    assert_eq!(state["requests"]["total"], 20);
    let statuses = state["requests"]["statuses"].as_array().expect("a list");
    for status in statuses {
        let series = |route: &str| format!("shardgate_requests_total{{route=\"{route}\",status={}}}", status["name"]);
        assert_eq!(status["total"], metrics.value(&series("x")) + metrics.value(&series("other")), "{status}");
    }
    assert_eq!(state["routes"][0]["name"], "x");
    assert_eq!((&state["routes"][0]["total"], &state["upstreams"][0]["total"]), (&json!(20), &json!(20)));
    let by_shard: Vec<_> =
        state["shards"].as_array().expect("a list").iter().map(|one| one["requests"].as_i64()).collect();
    let counted = metrics.by_shard("shardgate_shard_requests_total");
    assert_eq!(by_shard, counted.into_iter().map(Some).collect::<Vec<_>>());
    let [upstream, instance] = [&state["upstreams"][0], &state["upstreams"][0]["instances"][0]];
    assert_eq!((&upstream["name"], &instance["instance"]), (&json!("back"), &json!(backend.address().to_string())));
    assert_eq!((&instance["status"], &instance["held"]), (&json!("up"), &Value::Null));
    assert_eq!(state["configuration"]["path"], gateway.config_path().display().to_string());
    // The next seconds tell rates.
    let told = until(SOON, "rates and percentiles", || {
        gateway.get("/x");
        let state = self::state(&gateway);
        state["requests"]["p99Ms"].is_number().then_some(state)
    });
    assert!(told["requests"]["perSecond"].as_f64() > Some(0.0), "{}", told["requests"]);
    assert!(told["shards"][0]["busy"].is_number() && told["shards"][0]["lagMs"].is_number(), "{}", told["shards"]);
    assert!(!told["history"]["requests"].as_array().expect("a list").is_empty());
}

#[test]
fn a_refused_configuration_is_told_until_another_one_is_taken() {
    let backend = Backend::ok();
    let mut gateway = gateway(&[&backend], "");
    gateway.expect_error("the configuration is refused");
    gateway.rewrite_config("[http]\n\"<b>\" = 1\n");
    gateway.signal(Signal::HUP);
    let told = until(SOON, "the refusal", || {
        let told = state(&gateway)["configuration"].clone();
        told["refusal"].is_object().then_some(told)
    });
    assert!(told["refusal"]["text"].as_str().is_some_and(|text| text.contains("http.<b> is not a key")), "{told}");
    assert_eq!((&told["generation"], &told["reloadsRefused"]), (&json!(1), &json!(1)));
    gateway.rewrite_config(&config(&[&backend], "[listener]\nbacklog = 7"));
    gateway.signal(Signal::HUP);
    until(SOON, "the next one", || (state(&gateway)["configuration"]["generation"] == 2).then_some(()));
    let told = state(&gateway)["configuration"].clone();
    assert_eq!((&told["refusal"], &told["restartNeeded"]), (&Value::Null, &json!(["listener.backlog"])));
}

#[test]
fn pages_of_others_have_no_say() {
    let backend = Backend::ok();
    let gateway = gateway(&[&backend], "[admin]\nhosts = [\"gate.internal\"]");
    let bearer = format!("Bearer {TOKEN}");
    let body = json!({"upstream": "back", "instance": backend.address()}).to_string();
    let token = ("authorization", &*bearer);
    let ask = |fields: &[(&str, &str)]| send(&gateway, "/api/eject", &[&[token], fields].concat(), &body);
    for (fields, expected) in [
        (&[("origin", "http://evil.example")][..], (403, "origin_refused")),
        (&[("origin", "null")], (403, "origin_refused")),
        (&[("sec-fetch-site", "cross-site")], (403, "origin_refused")),
        (&[("sec-fetch-site", "same-site"), ("origin", "http://localhost")], (403, "origin_refused")),
        (&[("content-type", "text/plain")], (415, "unsupported_media_type")),
        (&[("content-type", "application/x-www-form-urlencoded")], (415, "unsupported_media_type")),
    ] {
        let (status, code) = refusal(&ask(fields));
        assert_eq!((status, &*code), expected, "{fields:?}");
    }
    // A name of somebody else's that leads here; it is refused before anything is looked at.
    for host in ["evil.example", "localhost.evil.example:3001", "10.1.2.3"] {
        let answer = ask(&[("host", host)]);
        assert!(answer.status == 403 && answer.text().contains("admin.hosts"), "{host}: {answer:?}");
    }
    assert_eq!(state(&gateway)["upstreams"][0]["instances"][0]["held"], Value::Null, "nothing has changed");
    let answer =
        ask(&[("host", "gate.internal"), ("origin", "https://gate.internal"), ("sec-fetch-site", "same-origin")]);
    assert_eq!(answer.status, 200, "{}", answer.text());
    // What is not to be read by them either: the page's own requests are.
    let read = |fields: &str| {
        let mut client = Client::connect(gateway.admin());
        client.send(format!("GET /api/state HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n"));
        client.read_response().status
    };
    assert_eq!([read("sec-fetch-site: same-origin\r\n"), read("sec-fetch-site: cross-site\r\n")], [200, 403]);
    let mut client = Client::connect(gateway.admin());
    client.send("GET http://evil.example/api/state HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(client.read_response().status, 403, "the target's authority counts before Host");
    let metrics = gateway.metrics();
    let refused = |reason: &str| metrics.value(&format!("shardgate_admin_refused_total{{reason=\"{reason}\"}}"));
    assert_eq!(["origin", "host", "malformed"].map(refused), [5, 4, 2]);
}

#[test]
fn what_is_wrong_with_a_change_is_told() {
    let backend = Backend::ok();
    let gateway = gateway(&[&backend], "");
    let bearer = format!("Bearer {TOKEN}");
    let send = |path: &str, body: &str| refusal(&send(&gateway, path, &[("authorization", &bearer)], body));
    let there = backend.address();
    let long = format!("{{\"upstream\":\"{}\"}}", "x".repeat(20_000));
    for (path, body, expected) in [
        ("/api/eject", "{}".to_owned(), (400, "malformed_change")),
        ("/api/eject", "[]".to_owned(), (400, "malformed_change")),
        ("/api/eject", format!("[\"back\",\"{there}\"]"), (400, "malformed_change")),
        ("/api/eject", String::new(), (400, "malformed_change")),
        (
            "/api/eject",
            format!("{{\"upstream\":\"back\",\"instance\":\"{there}\",\"x\":1}}"),
            (400, "malformed_change"),
        ),
        ("/api/eject", format!("{{\"upstream\":\"shop\",\"instance\":\"{there}\"}}"), (404, "not_found")),
        ("/api/eject", "{\"upstream\":\"back\",\"instance\":\"127.0.0.1:1\"}".to_owned(), (404, "not_found")),
        ("/api/return", format!("{{\"upstream\":\"back\",\"instance\":\"{there}\"}}"), (422, "wrong_value")),
        ("/api/probe", "{\"upstream\":\"back\"}".to_owned(), (422, "wrong_value")),
        ("/api/probe", "{\"upstream\":\"shop\"}".to_owned(), (404, "not_found")),
        ("/api/log-level", "{\"level\":\"loud\"}".to_owned(), (422, "wrong_value")),
        ("/api/log-level", "{\"level\":7}".to_owned(), (400, "malformed_change")),
        ("/api/eject", long, (413, "body_too_large")),
        ("/api/reboot", "{}".to_owned(), (404, "not_found")),
    ] {
        let (status, code) = send(path, &body);
        assert_eq!((status, &*code), expected, "{path} {}", &body[..body.len().min(80)]);
    }
    let answer = gateway.ask_admin("/api/eject");
    assert_eq!((answer.status, answer.field("allow")), (405, Some("POST")));
    assert_eq!(state(&gateway)["changes"]["latest"], json!([]));
}

#[test]
fn a_token_is_asked_for_and_guesses_are_slow() {
    let backend = Backend::ok();
    let body = json!({"upstream": "back", "instance": backend.address()}).to_string();
    let plain = Gateway::start(&routes(&[&backend]));
    let answer = send(&plain, "/api/eject", &[("authorization", &format!("Bearer {TOKEN}"))], &body);
    assert_eq!(refusal(&answer), (403, "changes_not_configured".to_owned()));
    assert!(answer.text().contains("[[admin.tokens]]"), "{}", answer.text());
    assert_eq!(state(&plain)["changes"]["possible"], false);

    let gateway = gateway(&[&backend], "");
    let answer = send(&gateway, "/api/eject", &[], &body);
    assert_eq!(
        (refusal(&answer), answer.field("www-authenticate")),
        ((401, "token_missing".to_owned()), Some("Bearer realm=\"operators\""))
    );
    let cookie = send(&gateway, "/api/eject", &[("cookie", &format!("token={TOKEN}"))], &body);
    assert_eq!(refusal(&cookie).1, "token_missing");
    let [right, other] = [TOKEN, "of another"].map(|token| ("authorization", format!("Bearer {token}")));
    let both = send(&gateway, "/api/eject", &[&right, &other].map(|(name, value)| (*name, &**value)), &body);
    assert_eq!(refusal(&both), (401, "token_wrong".to_owned()));
    assert!(both.text().contains("several Authorization fields"), "{}", both.text());
    // Four a second are answered late, and the others at once: they hold no places.
    let begun = now();
    let told: Vec<_> = std::thread::scope(|scope| {
        let guess = || refusal(&send(&gateway, "/api/eject", &[("authorization", "Bearer of a guess")], &body));
        let guesses: Vec<_> = (0..16).map(|_| scope.spawn(guess)).collect();
        guesses.into_iter().map(|guess| guess.join().expect("answered")).collect()
    });
    let took = begun.elapsed().as_secs();
    let count = |status| told.iter().filter(|(told, _)| *told == status).count();
    assert!(took >= 1 && count(401) >= 4, "a wrong token is answered late: {told:?}");
    assert!(count(401) as u64 <= 4 * (took + 1) && count(401) + count(429) == 16, "{took}: {told:?}");
    assert_eq!(
        done(&gateway, "/api/eject", &serde_json::from_str(&body).expect("JSON"))["shards"],
        json!({"applied": 4, "total": 4})
    );
    let line = gateway.log_until("is ejected", SOON);
    assert!(line.contains("\"who\":\"ann\"") && line.contains("\"from\":\"127.0.0.1:"), "{line}");
    let refused = |reason: &str| format!("shardgate_admin_refused_total{{reason=\"{reason}\"}}");
    let metrics = gateway.metrics();
    let counts = ["token_missing", "token_wrong", "too_many_guesses"].map(|reason| metrics.value(&refused(reason)));
    assert_eq!((counts[0], counts[1] + counts[2]), (2, 17), "{counts:?}");
    assert!(plain.metrics().value(&refused("not_configured")) == 1);
}

#[test]
fn a_right_token_passes_whoever_guesses() {
    let backend = Backend::ok();
    let gateway = gateway(&[&backend], "");
    let refused = || {
        let metrics = gateway.metrics();
        ["token_wrong", "too_many_guesses"]
            .map(|reason| metrics.value(&format!("shardgate_admin_refused_total{{reason=\"{reason}\"}}")))
    };
    let guess = || {
        let mut client = Client::connect(gateway.admin());
        client.send("POST /api/eject HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer of a guess\r\ncontent-length: 0\r\n\r\n");
        client
    };
    let begun = now();
    for round in 1..=4 {
        // Whether they wait for the answer or not; a second later there is room for four again.
        let guesses: Vec<_> = (0..12).map(|_| guess()).collect();
        until(SOON, "they are refused", || (refused().iter().sum::<i64>() == 12 * round).then_some(()));
        done(&gateway, "/api/log-level", &json!({"level": "info"}));
        drop(guesses);
    }
    let ([late, _], seconds) = (refused(), begun.elapsed().as_secs());
    let late = u64::try_from(late).expect("no fewer than none");
    assert!((4..=4 * (seconds + 1)).contains(&late), "{late} in {seconds} s");
}

#[test]
fn whoever_only_holds_connections_keeps_nobody_out() {
    let gateway = gateway(&[&Backend::ok()], "");
    // As many as are served at once, of which some have asked for something.
    let mut idle: Vec<_> = (0..64).map(|_| Client::connect(gateway.admin())).collect();
    for client in idle.iter_mut().step_by(7) {
        client.send("GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n");
        assert_eq!(client.read_response().status, 200);
    }
    let begun = now();
    for path in ["/health/live", "/metrics", "/health", "/api/state"] {
        assert_eq!(gateway.ask_admin(path).status, 200, "{path}");
    }
    // Sooner than they are closed for being idle.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    idle[0].expect_end();
    idle[63].send("GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(idle[63].read_response().status, 200, "only as many have to go as are needed");
}

#[test]
fn all_shards_hold_an_instance_out_until_it_is_let_in() {
    let [one, two] = ["one", "two"].map(named);
    let back = [&one, &two];
    let gateway = gateway(&back, "");
    let both = BTreeSet::from(["one".to_owned(), "two".to_owned()]);
    assert_eq!(who_answers(&gateway), both);
    let body = json!({"upstream": "back", "instance": one.address()});
    for (path, word) in [("/api/eject", "ejected"), ("/api/drain", "drained")] {
        let told = done(&gateway, path, &body);
        assert_eq!(
            told,
            json!({"detail": format!("{} of back is {word}", one.address()), "shards": {"applied": 4, "total": 4}})
        );
        assert_eq!(who_answers(&gateway), BTreeSet::from(["two".to_owned()]), "{word}");
        let instance = state(&gateway)["upstreams"][0]["instances"][0].clone();
        let held = &instance["held"];
        assert_eq!((&instance["status"], &held["state"], &held["by"]), (&json!("up"), &json!(word), &json!("ann")));
        let health = gateway.ask_admin("/health").json()["services"]["back"].clone();
        assert_eq!(health["status"], "up", "one that is well is left: {health}");
        assert_eq!(health["instances"], json!({"healthy": 2, "total": 2, "withheld": 1}));
    }
    assert_eq!(gateway.metrics().value("shardgate_instances_held"), 1);

    // It stands over reloads.
    gateway.rewrite_config(&config(&back, "[[routes]]\naccess = \"public\"\npath = \"/more\"\nupstream = \"back\"\n"));
    gateway.signal(Signal::HUP);
    gateway.log_until("every shard runs the configuration\",\"generation\":2", SOON);
    assert_eq!(who_answers(&gateway), BTreeSet::from(["two".to_owned()]), "after a reload");

    // Of two that are held none is used, rather than any.
    done(&gateway, "/api/eject", &json!({"upstream": "back", "instance": two.address()}));
    assert_eq!(refusal(&gateway.get("/x")), (503, "no_healthy_upstream".to_owned()));
    let health = gateway.ask_admin("/health");
    let entry = &health.json()["services"]["back"];
    let told = (health.status, entry["status"].as_str(), entry["error"].as_str());
    assert_eq!(told, (503, Some("down"), Some("withheld")), "no route can be served");
    let detail = until(SOON, "the access log says why", || {
        let lines = gateway.access_lines(1);
        let refused = lines.into_iter().find(|line| line["reason"] == "no_healthy_upstream");
        refused.map(|line| line["reason_detail"].clone())
    });
    assert_eq!(detail, "no instance is in use: an operator holds all out of use");
    done(&gateway, "/api/return", &body);
    assert_eq!(who_answers(&gateway), BTreeSet::from(["one".to_owned()]));
    done(&gateway, "/api/return", &json!({"upstream": "back", "instance": two.address()}));
    assert_eq!(who_answers(&gateway), both);

    let metrics = gateway.metrics();
    let counted = |change: &str| metrics.value(&format!("shardgate_admin_changes_total{{change=\"{change}\"}}"));
    assert_eq!(["eject", "drain", "return"].map(counted), [2, 1, 2]);
    let latest = state(&gateway)["changes"]["latest"].clone();
    assert_eq!(latest.as_array().map(Vec::len), Some(5));
    assert_eq!(latest[0]["what"], format!("{} of back is let in again", two.address()));
}

#[test]
fn an_instance_gets_as_much_as_it_weighs() {
    let [one, two] = ["one", "two"].map(named);
    let back = [&one, &two];
    let gateway = gateway(&back, "");
    let body = |weight: Value| json!({"upstream": "back", "instance": one.address(), "weight": weight});
    done(&gateway, "/api/weight", &body(json!(0)));
    assert_eq!(who_answers(&gateway), BTreeSet::from(["two".to_owned()]));
    let instance = state(&gateway)["upstreams"][0]["instances"][0].clone();
    assert_eq!(
        (&instance["weight"], &instance["configuredWeight"], &instance["held"]),
        (&json!(0), &json!(1), &Value::Null)
    );
    gateway.rewrite_config(&config(&back, "[drain]\nnotice = \"1s\"\n"));
    gateway.signal(Signal::HUP);
    gateway.log_until("every shard runs the configuration\",\"generation\":2", SOON);
    assert_eq!(who_answers(&gateway), BTreeSet::from(["two".to_owned()]), "after a reload");
    done(&gateway, "/api/weight", &body(Value::Null));
    assert_eq!(who_answers(&gateway).len(), 2);
    assert_eq!(gateway.metrics().value("shardgate_admin_changes_total{change=\"weight\"}"), 2);
}

#[test]
fn what_is_under_way_is_finished() {
    let slow = Backend::start(|conversation: &mut Conversation| {
        conversation.read_head()?;
        conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")?;
        // Until the test has ejected it.
        conversation.read_to_end();
        Ok(())
    });
    let gateway = gateway(&[&slow], "");
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    until(SOON, "it is under way", || (state(&gateway)["upstreams"][0]["instances"][0]["inFlight"] == 1).then_some(()));
    done(&gateway, "/api/eject", &json!({"upstream": "back", "instance": slow.address()}));
    let instance = state(&gateway)["upstreams"][0]["instances"][0].clone();
    assert_eq!((&instance["inFlight"], &instance["held"]["state"]), (&json!(1), &json!("ejected")));
    drop(client);
}

#[test]
fn probes_and_the_log_follow_operators() {
    let mut backend = Backend::ok();
    let probes = "[upstreams.back.health]\npath = \"/healthz\"\ninterval = \"1h\"\n";
    let gateway = Gateway::start(&config(&[&backend], "").replace("[[routes]]", &format!("{probes}[[routes]]")));
    assert!(backend.request().head.first_line.starts_with("GET /healthz "), "the first probe");
    until(SOON, "it is up", || (state(&gateway)["upstreams"][0]["instances"][0]["status"] == "up").then_some(()));
    done(&gateway, "/api/probe", &json!({"upstream": "back"}));
    assert!(backend.request().head.first_line.starts_with("GET /healthz "), "not in an hour");

    assert!(!gateway.log().contains("\"level\":\"DEBUG\""));
    done(&gateway, "/api/log-level", &json!({"level": "debug"}));
    let log = state(&gateway)["log"].clone();
    assert_eq!(log, json!({"level": "debug", "configured": "info"}));
    // A client that says what is no HTTP makes a line at that level.
    let mut client = Client::connect(gateway.admin());
    client.send("no HTTP\r\n\r\n");
    gateway.log_until("\"level\":\"DEBUG\"", SOON);
    // A reload that has the same level leaves it; one that has another takes its place.
    gateway.signal(Signal::HUP);
    until(SOON, "the reload", || (state(&gateway)["configuration"]["generation"] == 2).then_some(()));
    assert_eq!(state(&gateway)["log"]["level"], "debug");
    // Whoever switches it off is in it, and what is changed meanwhile, and whoever switches it on again.
    done(&gateway, "/api/log-level", &json!({"level": "off"}));
    gateway.log_until("an operator's change: the log's level is off", SOON);
    done(&gateway, "/api/probe", &json!({"upstream": "back"}));
    until(SOON, "the second one", || {
        (gateway.log().matches("the instances of back are probed now").count() == 2).then_some(())
    });
    done(&gateway, "/api/log-level", &json!({"level": null}));
    gateway.log_until("an operator's change: the log's level is info again", SOON);
    assert_eq!(gateway.log().matches("an operator's change: the log's level").count(), 3);
    assert_eq!(state(&gateway)["log"]["level"], "info");
    let metrics = gateway.metrics();
    assert_eq!(metrics.value("shardgate_admin_changes_total{change=\"probe\"}"), 2);
    assert_eq!(metrics.value("shardgate_admin_changes_total{change=\"log_level\"}"), 3);
}

#[test]
fn tokens_come_from_files_and_change_with_a_reload() {
    let backend = Backend::ok();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    let write = |token: &str, mode: u32| {
        fs::write(&file, format!("{token}\n")).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    write("the-first-token-of-the-file", 0o600);
    let more = format!("[[admin.tokens]]\nname = \"ben\"\nfile = \"{}\"\n", file.display());
    let mut gateway = gateway(&[&backend], &more);
    let body = json!({"upstream": "back", "instance": backend.address()}).to_string();
    let status = |gateway: &Gateway, token: &str| {
        send(gateway, "/api/drain", &[("authorization", &format!("Bearer {token}"))], &body).status
    };
    assert_eq!(status(&gateway, "the-first-token-of-the-file"), 200);
    write("the-second-token-of-the-file", 0o600);
    gateway.signal(Signal::HUP);
    until(SOON, "the reload", || (state(&gateway)["configuration"]["generation"] == 2).then_some(()));
    assert_eq!(
        ["the-second-token-of-the-file", "the-first-token-of-the-file"].map(|token| status(&gateway, token)),
        [200, 401]
    );
    // Everybody may read it: the reload is refused, and the tokens stay.
    gateway.expect_error("the configuration is refused");
    write("the-third-token-of-the-file", 0o644);
    gateway.signal(Signal::HUP);
    gateway.log_until("everybody may use the file", SOON);
    assert_eq!(status(&gateway, "the-second-token-of-the-file"), 200);
}

#[test]
fn where_others_reach_it_reading_asks_for_a_token_too() {
    let backend = Backend::ok();
    let mut gateway = gateway(&[&backend], "[admin]\naddress = \"0.0.0.0\"");
    let admin = SocketAddr::from(([127, 0, 0, 1], gateway.admin().port()));
    let read_as = |host: &str, path: &str, fields: &str| {
        let mut client = Client::connect(admin);
        client.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{fields}\r\n"));
        client.read_response().status
    };
    let read = |path: &str, fields: &str| read_as("localhost", path, fields);
    let token = format!("authorization: Bearer {TOKEN}\r\n");
    for (path, without) in [
        ("/", 200),
        ("/dashboard/app.js", 200),
        ("/health/live", 200),
        ("/health/ready", 200),
        ("/health", 401),
        ("/metrics", 401),
        ("/api/state", 401),
        ("/asyncapi.json", 401),
    ] {
        assert_eq!([read(path, ""), read(path, &token)], [without, 200], "{path}");
    }
    // An address is its own where the connection has come to it.
    let hosts = ["127.0.0.1", "0.0.0.0", "10.1.2.3"].map(|host| read_as(host, "/health/ready", ""));
    assert_eq!(hosts, [200, 403, 403]);
    gateway.log_until("can be reached by others", SOON);
    gateway.signal(Signal::TERM);
    gateway.wait_exit(SOON * 2);
}

#[test]
fn the_page_is_kept_until_it_changes() {
    let backend = Backend::ok();
    let gateway = gateway(&[&backend], "");
    let page = gateway.ask_admin("/");
    assert_eq!((page.status, page.field("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.field("content-security-policy").expect("a policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"),
        "{policy}"
    );
    let tag = page.field("etag").expect("a tag").to_owned();
    let mut client = Client::connect(gateway.admin());
    client.send(format!("GET / HTTP/1.1\r\nhost: localhost\r\nif-none-match: {tag}\r\nconnection: close\r\n\r\n"));
    assert_eq!(client.try_read_response("HEAD").expect("an answer").status, 304);
}

//! Instances are found while the gateway runs: in a file, by SRV records, and in Redis, each of which fails, lies and comes back.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::followed::{answering, free_port, health, host, instance, until_answered_by};
use crate::{
    harness::{Gateway, now, until},
    hub::across::cluster,
    servers::{
        self,
        dns::{Dns, Mode},
        npm, python,
        redis::RedisServer,
    },
};

const SOON: Duration = Duration::from_secs(15);
const KEY: &str = "shardgate:services:shop";

/// Everything goes to the instances that are found so, besides those that are written.
fn config(discover: &str, more: &str) -> String {
    format!(
        "{more}\n[upstreams.shop]\ndiscover = {{ {discover} }}\nidle_timeout = \"10m\"\n\
         [[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"shop\"\n"
    )
}

fn of(metric: &str, name: &str) -> String {
    format!("shardgate_discovery_{metric}{{name=\"{name}\"}}")
}

fn file_config(path: &Path) -> String {
    config(&format!("file = \"{}\"", path.display()), "")
}

/// What a file says that lists these.
fn listing(port: u16, numbers: &[u8]) -> String {
    let addresses: Vec<_> = numbers.iter().map(|number| format!("{}:{port}", host(*number))).collect();
    json!({ "instances": addresses }).to_string()
}

/// Puts a whole file in the place of another.
fn replace(path: &Path, text: &str) {
    replace_with(path, |new| fs::write(new, text).expect("written"));
}

/// The same with anything that has a name.
fn replace_with(path: &Path, make: impl Fn(&Path)) {
    let new = path.with_extension("new");
    make(&new);
    fs::rename(&new, path).expect("renamed");
}

/// Meanwhile no request fails.
#[track_caller]
fn until_unresolved(gateway: &Gateway) {
    until(SOON, "health tells", || {
        answering(gateway, 4);
        let entry = health(gateway);
        (entry["status"] == "degraded" && entry["error"] == "unresolved").then_some(())
    });
}

#[track_caller]
fn until_up(gateway: &Gateway) {
    until(SOON, "health tells that it is over", || (health(gateway)["status"] == "up").then_some(()));
}

#[test]
fn a_file_is_followed_and_who_stays_in_it_keeps_its_connections() {
    let (directory, port) = (TempDir::new().expect("a directory"), free_port());
    let path = directory.path().join("shop.json");
    let mut stays = instance(2, port);
    let _others = [3, 4].map(|number| instance(number, port));
    fs::write(&path, listing(port, &[2])).expect("written");
    let gateway = Gateway::start(&file_config(&path));
    until_answered_by(&gateway, &[2]);
    answering(&gateway, 100);
    let opened = stays.opened();

    replace(&path, &listing(port, &[2, 3]));
    until_answered_by(&gateway, &[2, 3]);
    let line = gateway.log_until("a list of instances has changed\"", SOON);
    let line = if line.contains(&format!("\"added\":\"{}:{port}\"", host(3))) {
        line
    } else {
        gateway.log_until_nth("a list of instances has changed\"", 2, SOON)
    };
    assert!(line.contains(&format!("\"added\":\"{}:{port}\"", host(3))) && line.contains("\"gone\":\"\""), "{line}");
    answering(&gateway, 100);
    assert_eq!((stays.opened(), stays.ended()), (opened, 0), "nobody connected anew");

    // Another weight is no other instance: with 0 it gets nothing, and its connections stay.
    let weighed = json!({"instances": [
        {"address": format!("{}:{port}", host(2)), "weight": 0},
        format!("{}:{port}", host(3)),
    ]});
    replace(&path, &weighed.to_string());
    until_answered_by(&gateway, &[3]);
    replace(&path, &listing(port, &[2, 3]));
    until_answered_by(&gateway, &[2, 3]);
    answering(&gateway, 100);
    assert_eq!((stays.opened(), stays.ended()), (opened, 0), "nobody connected anew");

    // However small a whole file has become, it is the operator's word.
    replace(&path, &listing(port, &[4]));
    until_answered_by(&gateway, &[4]);
    until(SOON, "what was idle is closed", || (stays.ended() == opened).then_some(()));
    assert_eq!(gateway.metrics().value("shardgate_config_reloads_total{result=\"applied\"}"), 0);
}

#[test]
fn a_file_that_is_none_changes_nothing_until_it_is_one() {
    let (directory, port) = (TempDir::new().expect("a directory"), free_port());
    let path = directory.path().join("shop.json");
    let _instances = [2, 3].map(|number| instance(number, port));
    fs::write(&path, listing(port, &[2, 3])).expect("written");
    let gateway = Gateway::start(&file_config(&path));
    until_answered_by(&gateway, &[2, 3]);
    until_up(&gateway);
    let name = format!("file:{}", path.display());
    let mut told = 0;
    let mut is_refused = |change: &dyn Fn(), why: &str| {
        let before = gateway.metrics().value(&of("failures_total", &name));
        change();
        until_unresolved(&gateway);
        told += 1;
        let line = gateway.log_until_nth("a list of instances cannot be had", told, SOON);
        assert!(line.contains(why) && line.contains("WARN"), "{why}: {line}");
        assert!(gateway.metrics().value(&of("failures_total", &name)) > before);
        until(SOON, "it grows old", || (gateway.metrics().value(&of("age_seconds", &name)) >= 1).then_some(()));
        assert_eq!(gateway.metrics().value(&of("addresses", &name)), 2);
        until_answered_by(&gateway, &[2, 3]);
        replace(&path, &listing(port, &[2, 3]));
        until_up(&gateway);
    };
    let whole = listing(port, &[2, 3]);
    // In place, as whoever copies over it does.
    is_refused(&|| fs::write(&path, &whole[..whole.len() / 2]).expect("written"), "it is not JSON");
    is_refused(&|| fs::write(&path, "").expect("written"), "it is empty");
    is_refused(&|| fs::remove_file(&path).expect("removed"), "it cannot be read");
    is_refused(&|| replace(&path, &listing(port, &[])), "instances is empty");
    is_refused(&|| replace(&path, &listing(port, &[2, 2])), "twice");
    is_refused(&|| replace(&path, &" ".repeat(2 << 20)), "longer than 1 MiB");
    // Nobody ever writes to the pipe.
    let make_pipe = |new: &Path| assert!(Command::new("mkfifo").arg(new).status().expect("mkfifo runs").success());
    is_refused(&|| replace_with(&path, make_pipe), "it is no regular file");
    let link = |new: &Path| symlink(directory.path(), new).expect("linked");
    is_refused(&|| replace_with(&path, link), "it is a directory");
    assert!(gateway.log().contains("a list of instances can be had again"));
    // Who mends one mistake and makes another is told of that one, too.
    replace(&path, "{");
    gateway.log_until_nth("it is not JSON", 2, SOON);
    replace(&path, &listing(port, &[]));
    gateway.log_until_nth("instances is empty", 2, SOON);
}

#[test]
fn a_directory_that_is_swapped_as_kubernetes_does_is_followed() {
    let (directory, port) = (TempDir::new().expect("a directory"), free_port());
    let root = directory.path();
    for (version, number) in [("v1", 2), ("v2", 3)] {
        fs::create_dir(root.join(version)).expect("a directory");
        let text = format!("instances = [\"{}:{port}\"]\n", host(number));
        fs::write(root.join(version).join("shop.toml"), text).expect("written");
    }
    symlink("v1", root.join("..data"))
        .and_then(|()| symlink("..data/shop.toml", root.join("shop.toml")))
        .expect("linked");
    let _instances = [2, 3].map(|number| instance(number, port));
    let gateway = Gateway::start(&file_config(&root.join("shop.toml")));
    until_answered_by(&gateway, &[2]);
    symlink("v2", root.join("..new"))
        .and_then(|()| fs::rename(root.join("..new"), root.join("..data")))
        .expect("swapped");
    fs::remove_dir_all(root.join("v1")).expect("removed");
    until_answered_by(&gateway, &[3]);
}

#[test]
fn names_in_a_file_are_followed_and_the_old_list_serves_until_they_are_known() {
    let (directory, dns, port) = (TempDir::new().expect("a directory"), Dns::start(), free_port());
    let path = directory.path().join("shop.toml");
    let _instances = [2, 3, 4].map(|number| instance(number, port));
    fs::write(&path, format!("instances = [\"{}:{port}\"]\n", host(2))).expect("written");
    let settings = format!("[discovery]\n{}interval_min = \"100ms\"\nallow = [\"loopback\"]\n", dns.config());
    let gateway = Gateway::start(&(settings + &file_config(&path)));
    until_answered_by(&gateway, &[2]);
    dns.set("new.test", [host(3)]);
    replace(&path, &format!("instances = [\"new.test:{port}\"]\n"));
    // None is refused on the way.
    until_answered_by(&gateway, &[3]);
    dns.set("new.test", [host(4)]);
    until_answered_by(&gateway, &[4]);
}

/// A server that answers for DNS, and the configuration that has it asked.
fn srv_config(dns: &Dns, allow: &str) -> String {
    let settings = format!("[discovery]\n{}interval_min = \"100ms\"\nallow = {allow}\n", dns.config());
    config("srv = \"_http._tcp.shop.test\"", &settings)
}

#[test]
fn srv_records_tell_ports_weights_and_priorities() {
    const SRV: &str = "_http._tcp.shop.test";
    let (dns, port) = (Dns::start(), free_port());
    let _instances = [2, 3, 4].map(|number| instance(number, port));
    dns.set("a.shop.test", [host(2)]);
    dns.set("b.shop.test", [host(3)]);
    dns.set_srv(SRV, &[(0, 1, port, "a.shop.test"), (0, 1, port, "b.shop.test"), (9, 1, port, "c.shop.test")]);
    let gateway = Gateway::start(&srv_config(&dns, "[\"loopback\"]"));
    // The last one has no address, and its turn would come later anyway.
    until_answered_by(&gateway, &[2, 3]);
    dns.set("b.shop.test", [host(4)]);
    until_answered_by(&gateway, &[2, 4]);
    dns.set_srv(SRV, &[(1, 1, port, "a.shop.test"), (0, 1, port, "b.shop.test")]);
    until_answered_by(&gateway, &[4]);

    // It fails, is empty, and says nothing: what was told serves.
    dns.set_srv(SRV, &[(0, 1, port, "a.shop.test"), (0, 1, port, "b.shop.test")]);
    until_answered_by(&gateway, &[2, 4]);
    let name = format!("srv:{SRV}");
    for mode in [Mode::Fail, Mode::Empty, Mode::Silent] {
        let before = gateway.metrics().value(&of("failures_total", &name));
        dns.set_mode(mode);
        until(SOON, "it has failed", || {
            answering(&gateway, 4);
            (gateway.metrics().value(&of("failures_total", &name)) >= before + 2).then_some(())
        });
        until_answered_by(&gateway, &[2, 4]);
        until_unresolved(&gateway);
        assert_eq!(gateway.metrics().value(&of("addresses", &name)), 2);
        dns.set_mode(Mode::Table);
        until(Duration::from_mins(1), "it is over", || (health(&gateway)["status"] != "degraded").then_some(()));
    }
    // RFC 2782: there is no such service. That is no reason to have none.
    dns.set_srv(SRV, &[(0, 0, 0, ".")]);
    let line = gateway.log_until("there is no such service", SOON);
    assert!(line.contains("WARN"), "{line}");
    until_answered_by(&gateway, &[2, 4]);
}

#[test]
fn srv_records_lead_to_this_machine_only_where_that_is_allowed() {
    let (dns, port) = (Dns::start(), free_port());
    let _instance = instance(1, port);
    dns.set("evil.test", [host(1)]);
    dns.set_srv(
        "_http._tcp.shop.test",
        &[(0, 1, port, "localhost"), (0, 1, port, "evil.test"), (0, 1, port, "127.0.0.1"), (0, 1, port, "2130706433")],
    );
    let gateway = Gateway::start(&srv_config(&dns, "[]"));
    let line = gateway.log_until("localhost resolves to 127.0.0.1, which is not taken", SOON);
    assert!(line.contains("WARN") && line.contains("discovery.allow"), "{line}");
    let answer = gateway.get("/x");
    assert_eq!((answer.status, &answer.json()["code"]), (503, &Value::from("no_healthy_upstream")));
    gateway.rewrite_config(&srv_config(&dns, "[\"loopback\"]"));
    gateway.signal(rustix::process::Signal::HUP);
    until(SOON, "it is used", || (gateway.get("/x").status == 200).then_some(()));
}

fn redis_config(redis: &RedisServer, mode: &str) -> String {
    let settings = format!(
        "[discovery]\nallow = [\"loopback\"]\n[redis]\nurls = [\"{}\"]\nmode = \"{mode}\"\ntimeout = \"500ms\"\n\
         [accounts]\nenabled = false\n[sessions]\nsecret = \"an example of 32 bytes or more: no secret\"\n",
        redis.url()
    );
    config("redis = true", &settings)
}

/// The clock of Redis.
fn time(redis: &RedisServer) -> u64 {
    redis.ask(&["TIME"]).lines().next().and_then(|time| time.parse().ok()).expect("seconds")
}

/// Registers these for so many seconds.
fn register(redis: &RedisServer, port: u16, numbers: &[u8], seconds: u64) {
    for number in numbers {
        redis.ask(&["ZADD", KEY, &(time(redis) + seconds).to_string(), &format!("{}:{port}", host(*number))]);
    }
}

#[test]
fn services_register_in_redis_until_their_leases_end() {
    let Some(redis) = RedisServer::start() else { return };
    let port = free_port();
    let _instances = [2, 3].map(|number| instance(number, port));
    let gateway = Gateway::start(&redis_config(&redis, "single"));
    let line = gateway.log_until("nobody has registered", SOON);
    assert!(line.contains("redis:shop"), "{line}");
    assert_eq!(gateway.get("/x").status, 503);
    register(&redis, port, &[2], 3600);
    until(SOON, "it is used", || (gateway.get("/x").status == 200).then_some(()));
    until_up(&gateway);
    register(&redis, port, &[3], 4);
    until_answered_by(&gateway, &[2, 3]);
    // Nobody renews it. Somebody was registered after nobody was, so it stays for a while.
    until(Duration::from_secs(30), "its lease ends", || {
        (answering(&gateway, 40) == [host(2).to_string()].into()).then_some(())
    });
    register(&redis, port, &[3], 3600);
    until_answered_by(&gateway, &[2, 3]);
    redis.ask(&["ZREM", KEY, &format!("{}:{port}", host(2))]);
    until_answered_by(&gateway, &[3]);

    // What can be no instance does not hold the others.
    let [soon, far] = [time(&redis) + 3600, 1 << 50].map(|end| end.to_string());
    redis.ask(&["ZADD", KEY, &soon, "nonsense", &soon, "169.254.169.254:80", &far, &format!("{}:1", host(9))]);
    let line = gateway.log_until("entries of a list of instances are left out", SOON);
    assert!(line.contains("\"left_out\":3"), "{line}");
    until_answered_by(&gateway, &[3]);
    until_up(&gateway);
    // So much of it that who is meant stands behind what is looked at: nobody is taken for gone.
    register(&redis, port, &[2], 3600);
    until_answered_by(&gateway, &[2, 3]);
    let flood = "for n = 1, tonumber(ARGV[2]) do redis.call('ZADD', KEYS[1], ARGV[1], 'nonsense' .. n) end";
    redis.ask(&["EVAL", flood, "1", KEY, &(time(&redis) + 1800).to_string(), "1024"]);
    until_unresolved(&gateway);
    let line = gateway.log_until("more than 1024 members have a lease", SOON);
    assert!(line.contains("the last good one serves"), "{line}");
    until_answered_by(&gateway, &[2, 3]);
    redis.ask(&["DEL", KEY]);
    register(&redis, port, &[2, 3], 3600);
    until_up(&gateway);
    // And something else altogether is a failure.
    redis.ask(&["SET", KEY, "a text"]);
    until_unresolved(&gateway);
    until_answered_by(&gateway, &[2, 3]);
}

#[test]
fn while_redis_is_away_those_serve_who_were_registered() {
    let Some(mut redis) = RedisServer::start() else { return };
    let port = free_port();
    let _instances = [2, 3, 4].map(|number| instance(number, port));
    register(&redis, port, &[2, 3, 4], 3600);
    let gateway = Gateway::start(&redis_config(&redis, "single"));
    until_answered_by(&gateway, &[2, 3, 4]);
    until_up(&gateway);
    let name = "redis:shop";
    let failures = || gateway.metrics().value(&of("failures_total", name));

    let before = failures();
    redis.pause();
    until(SOON, "it has failed", || {
        answering(&gateway, 10);
        (failures() >= before + 2).then_some(())
    });
    until_unresolved(&gateway);
    redis.go_on();
    until_up(&gateway);
    until_answered_by(&gateway, &[2, 3, 4]);

    redis.kill();
    until_unresolved(&gateway);
    let age = gateway.metrics().value(&of("age_seconds", name));
    until(SOON, "it grows old", || {
        answering(&gateway, 10);
        (gateway.metrics().value(&of("age_seconds", name)) >= age + 2).then_some(())
    });
    // It comes back without what it had, and nobody is registered.
    redis.restart();
    gateway.log_until("Redis is back", SOON);
    let before = failures();
    until(SOON, "it has been asked", || (failures() >= before + 3).then_some(()));
    until_answered_by(&gateway, &[2, 3, 4]);
    // The first that comes back does not have all the load.
    let began = now();
    register(&redis, port, &[2], 3600);
    until_up(&gateway);
    until_answered_by(&gateway, &[2, 3, 4]);
    // The others have had their time.
    until(Duration::from_secs(40), "one is left", || {
        (answering(&gateway, 40) == [host(2).to_string()].into()).then_some(())
    });
    assert!(began.elapsed() >= Duration::from_secs(14), "{:?}", began.elapsed());
}

#[test]
fn the_server_that_sentinels_name_has_the_registry_and_another_after_it() {
    let Some((mut first, second)) = RedisServer::start().zip(RedisServer::start()) else { return };
    let Some(sentinel) = RedisServer::start_sentinel("mymaster", first.port()) else { return };
    let port = free_port();
    let _instances = [2, 3].map(|number| instance(number, port));
    register(&first, port, &[2], 3600);
    let gateway = Gateway::start(&redis_config(&sentinel, "sentinel"));
    until_answered_by(&gateway, &[2]);
    register(&second, port, &[2, 3], 3600);
    first.kill();
    sentinel.ask(&["SENTINEL", "REMOVE", "mymaster"]);
    sentinel.ask(&["SENTINEL", "MONITOR", "mymaster", "127.0.0.1", &second.port().to_string(), "1"]);
    until_answered_by(&gateway, &[2, 3]);
}

#[test]
fn a_cluster_has_the_registry_on_the_node_of_its_key() {
    let Some(nodes) = cluster() else { return };
    let port = free_port();
    let _instances = [2, 3].map(|number| instance(number, port));
    // Upstreams whose keys are on several nodes.
    let names = ["shop", "orders", "till", "events"];
    let route = |name: &&str| {
        format!(
            "[upstreams.{name}]\ndiscover = {{ redis = true }}\n\
             [[routes]]\naccess = \"public\"\npath = \"/{name}\"\nupstream = \"{name}\"\n"
        )
    };
    let config = redis_config(&nodes[0], "cluster");
    let (settings, _) = config.split_once("[upstreams.shop]").expect("the upstream");
    let gateway = Gateway::start(&(settings.to_owned() + &names.iter().map(route).collect::<Vec<_>>().concat()));
    let mut taken_by = std::collections::BTreeSet::new();
    for name in names {
        let (key, member) = (format!("shardgate:services:{name}"), format!("{}:{port}", host(3)));
        let lease_end = (time(&nodes[0]) + 3600).to_string();
        let command = ["ZADD", key.as_str(), lease_end.as_str(), member.as_str()];
        // Other nodes say whose the key is.
        let has_taken = |node: &&RedisServer| servers::redis::ask(node.port(), &command).is_ok();
        taken_by.extend(nodes.iter().filter(has_taken).map(RedisServer::port));
    }
    assert!(taken_by.len() > 1, "{taken_by:?}");
    for name in names {
        until(SOON, "it is used", || (gateway.get(&format!("/{name}")).status == 200).then_some(()));
    }
}

/// A service's lines, which end with the test.
struct Registering(Child);

impl Drop for Registering {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of a document behind this mark.
fn documented(name: &str) -> String {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/discovery.md")).expect("it is there");
    let (_, rest) = text.split_once(&format!("<!-- {name} -->\n```")).expect("the mark");
    let (_, lines) = rest.split_once('\n').expect("a language");
    lines.split_once("```").expect("an end").0.to_owned()
}

/// Whoever registers as documented is used, and not any more when it ends well.
#[track_caller]
fn registers_as_documented(name: &str, command: impl FnOnce(&Path) -> Command) {
    let Some(redis) = RedisServer::start() else { return };
    let (directory, port) = (TempDir::new().expect("a directory"), free_port());
    let _instances = [2, 3].map(|number| instance(number, port));
    let script = directory.path().join(name);
    fs::write(&script, documented(name).replace("services:orders", "services:shop")).expect("written");
    register(&redis, port, &[2], 3600);
    let gateway = Gateway::start(&redis_config(&redis, "single"));
    until_answered_by(&gateway, &[2]);
    let mut command = command(&script);
    command.env("REDIS_URL", redis.url()).env("ME", format!("{}:{port}", host(3)));
    let mut service = Registering(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it runs"));
    until_answered_by(&gateway, &[2, 3]);
    let lease_end = || redis.ask(&["ZSCORE", KEY, &format!("{}:{port}", host(3))]);
    let first = lease_end();
    until(SOON, "it renews its lease", || (lease_end() != first).then_some(()));
    rustix::process::kill_process(rustix::process::Pid::from_child(&service.0), rustix::process::Signal::TERM)
        .expect("it runs");
    service.0.wait().expect("it is ours");
    assert_eq!(lease_end(), "", "it has taken its registration back");
    until_answered_by(&gateway, &[2]);
}

#[test]
fn a_script_registers_as_documented() {
    registers_as_documented("register.sh", |script| {
        let mut command = Command::new("bash");
        command.arg(script);
        command
    });
}

#[test]
fn a_service_in_python_registers_as_documented() {
    let Some(python) = python::python() else { return };
    registers_as_documented("register.py", |script| {
        let mut command = Command::new(python);
        command.arg(script);
        command
    });
}

#[test]
fn a_service_in_javascript_registers_as_documented() {
    let Some(packages) = npm::packages(&["redis@6.3.1"]) else { return };
    registers_as_documented("register.mjs", |script| {
        // Modules are looked for beside whoever wants them.
        symlink(packages.join("node_modules"), script.with_file_name("node_modules")).expect("linked");
        let mut command = Command::new("node");
        command.arg(script);
        command
    });
}

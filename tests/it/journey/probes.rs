//! Probes of real services: who is killed, stands still, answers wrongly or comes back, and what `/health` says of them.
#![expect(clippy::disallowed_types, reason = "a service is told from another thread what to answer from now on")]

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::outcomes::nobody;
use crate::{
    backend::{Backend, OK},
    client::Client,
    harness::{Gateway, now, until},
};

pub(super) const SOON: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_millis(300);

/// A service in a process of its own, so that it can be killed and stopped: it answers 200 with its name.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    pub(super) fn start(address: SocketAddr, name: &str) -> Self {
        const SCRIPT: &str = r#"
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = sys.argv[3].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    allow_reuse_address = True
Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"#;
        let child = Command::new("python3")
            .args(["-c", SCRIPT, &address.ip().to_string(), &address.port().to_string(), name])
            .stdin(Stdio::null())
            .spawn()
            .expect("python3 runs");
        let process = Self { child, address };
        until(SOON, "the service listens", || std::net::TcpStream::connect(address).ok());
        process
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("it runs");
        kill_process(pid, signal).expect("it runs");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(instances: &[SocketAddr], more: &str) -> String {
    let instances = instances.iter().map(|at| format!("\"{at}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "[upstreams.back]\ninstances = [{instances}]\nresponse_timeout = \"5s\"\n{more}\n\
         [upstreams.back.health]\npath = \"/health\"\ninterval = \"500ms\"\ntimeout = \"300ms\"\n\
         [[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n"
    )
}

fn entry(gateway: &Gateway) -> Value {
    gateway.ask_admin("/health").json()["services"]["back"].clone()
}

fn healthy(gateway: &Gateway) -> Option<u64> {
    entry(gateway)["instances"]["healthy"].as_u64()
}

#[track_caller]
pub(super) fn wait_healthy(gateway: &Gateway, count: u64) {
    until(SOON, &format!("{count} are healthy"), || (healthy(gateway) == Some(count)).then_some(()));
    // A scrape comes behind what the shards were told.
    gateway.metrics();
}

/// Who answers so many requests, each on a connection of its own, which land on all shards.
#[track_caller]
fn who_answers(gateway: &Gateway, requests: usize) -> std::collections::BTreeSet<String> {
    (0..requests)
        .map(|_| {
            let answer = gateway.get("/x");
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.text()
        })
        .collect()
}

/// GETs from several clients until told to stop; returns how many were answered, and how those that failed were.
pub(super) struct Crowd {
    stop: Arc<AtomicBool>,
    clients: Vec<std::thread::JoinHandle<(usize, Vec<u16>)>>,
}

impl Crowd {
    pub(super) fn start(gateway: &Gateway) -> Self {
        let (stop, address) = (Arc::new(AtomicBool::new(false)), gateway.address());
        let client = |_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let (mut answered, mut failed) = (0, Vec::new());
                let mut client = Client::connect(address);
                while !stop.load(Ordering::Relaxed) {
                    match client.get("/x").status {
                        200 => answered += 1,
                        status => failed.push(status),
                    }
                }
                (answered, failed)
            })
        };
        Self { clients: (0..8).map(client).collect(), stop }
    }

    pub(super) fn end(self) -> (usize, Vec<u16>) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.clients.into_iter().map(|client| client.join().expect("it ends"));
        ended.fold((0, Vec::new()), |(sum, mut all), (answered, failed)| {
            all.extend(failed);
            (sum + answered, all)
        })
    }
}

fn three() -> Vec<Process> {
    (0..3).map(|number| Process::start(nobody(), &number.to_string())).collect()
}

fn addresses(processes: &[Process]) -> Vec<SocketAddr> {
    processes.iter().map(|process| process.address).collect()
}

#[test]
fn one_that_is_killed_is_out_no_get_fails_and_it_comes_back() {
    let mut services = three();
    let gateway = Gateway::start(&config(&addresses(&services), ""));
    wait_healthy(&gateway, 3);
    let crowd = Crowd::start(&gateway);
    let killed = services.remove(0);
    let (address, at) = (killed.address, now());
    killed.signal(Signal::KILL);
    let line = gateway.log_until("an instance is down", SOON);
    // A look at the log, and a machine that has other things to do, take time too.
    let bound = INTERVAL * 3 + TIMEOUT + Duration::from_secs(2);
    assert!(at.elapsed() <= bound, "after {:?}", at.elapsed());
    assert!(line.contains(&address.to_string()) && line.contains("refused") && line.contains("back"), "{line}");
    wait_healthy(&gateway, 2);
    let entry = entry(&gateway);
    assert_eq!((&entry["status"], &entry["error"]), (&Value::from("degraded"), &Value::from("refused")), "{entry}");
    assert_eq!(entry["instances"]["total"], 3);
    let (answered, failed) = crowd.end();
    assert!(answered > 100 && failed.is_empty(), "{answered} answered, and not: {failed:?}");
    assert!(!who_answers(&gateway, 20).contains("0"));

    drop(killed);
    services.push(Process::start(address, "0"));
    gateway.log_until("an instance is up", SOON);
    wait_healthy(&gateway, 3);
    until(SOON, "it is used again", || who_answers(&gateway, 20).contains("0").then_some(()));
    assert_eq!(self::entry(&gateway)["error"], Value::Null);
    assert_eq!(gateway.log().matches("an instance is down").count(), 1, "each change is said once");
}

#[test]
fn one_that_stands_still_is_out_by_its_probes() {
    let services = three();
    // No requests: what is known is known from probes alone.
    let gateway = Gateway::start(&config(&addresses(&services), ""));
    wait_healthy(&gateway, 3);
    let at = now();
    services[0].signal(Signal::STOP);
    let line = gateway.log_until("an instance is down", SOON);
    assert!(at.elapsed() <= INTERVAL * 3 + TIMEOUT + Duration::from_secs(2), "after {:?}", at.elapsed());
    assert!(line.contains("timeout"), "{line}");
    wait_healthy(&gateway, 2);
    assert_eq!(entry(&gateway)["error"], "timeout");
    let began = now();
    assert!(!who_answers(&gateway, 40).contains("0"));
    assert!(began.elapsed() < Duration::from_secs(4), "nobody waited for it");
    services[0].signal(Signal::CONT);
    wait_healthy(&gateway, 3);
    until(SOON, "it is used again", || who_answers(&gateway, 20).contains("0").then_some(()));
}

#[test]
fn who_says_that_it_is_ill_is_out_and_with_all_of_them_ill_all_are_used() {
    let status: Vec<_> = (0..2).map(|_| Arc::new(AtomicUsize::new(200))).collect();
    let backends: Vec<_> = (0..2)
        .map(|number| {
            let status = Arc::clone(&status[number]);
            Backend::answering(move |request| {
                let is_probe = request.head.first_line.starts_with("GET /health ");
                let status = if is_probe { status.load(Ordering::Relaxed) } else { 200 };
                format!("HTTP/1.1 {status} S\r\nContent-Length: 1\r\n\r\n{number}")
            })
        })
        .collect();
    let gateway = Gateway::start(&config(&[backends[0].address(), backends[1].address()], "panic_percent = 50"));
    wait_healthy(&gateway, 2);
    assert_eq!(who_answers(&gateway, 40).len(), 2);
    status[0].store(500, Ordering::Relaxed);
    wait_healthy(&gateway, 1);
    assert_eq!(entry(&gateway)["error"], "status");
    until(SOON, "every shard knows", || (who_answers(&gateway, 20) == ["1".to_owned()].into()).then_some(()));
    status[1].store(503, Ordering::Relaxed);
    wait_healthy(&gateway, 0);
    let document = gateway.ask_admin("/health");
    assert_eq!(document.json()["services"]["back"]["status"], "down");
    until(SOON, "all are used", || (who_answers(&gateway, 20).len() == 2).then_some(()));
    let metrics = gateway.metrics();
    assert_eq!(metrics.value("shardgate_upstream_instances_up{upstream=\"back\"}"), 0);
    assert!(metrics.value("shardgate_upstream_probes_total{upstream=\"back\",result=\"status\"}") >= 6);
    for status in &status {
        status.store(200, Ordering::Relaxed);
    }
    wait_healthy(&gateway, 2);
}

#[test]
fn a_new_instance_is_used_after_its_first_good_probe() {
    let held = Arc::new(AtomicBool::new(true));
    let old = Backend::answering(|_| "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n0");
    let new = {
        let held = Arc::clone(&held);
        Backend::answering(move |request| {
            let is_held = held.load(Ordering::Relaxed) && request.head.first_line.starts_with("GET /health ");
            format!("HTTP/1.1 {} S\r\nContent-Length: 1\r\n\r\n1", if is_held { 500 } else { 200 })
        })
    };
    let gateway = Gateway::start(&config(&[old.address()], ""));
    wait_healthy(&gateway, 1);
    gateway.rewrite_config(&config(&[old.address(), new.address()], ""));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, SOON);
    assert_eq!(who_answers(&gateway, 40), ["0".to_owned()].into(), "nothing good is known of the other");
    held.store(false, Ordering::Relaxed);
    wait_healthy(&gateway, 2);
    until(SOON, "it is used", || who_answers(&gateway, 20).contains("1").then_some(()));
    // Without probes nothing that they said holds.
    held.store(true, Ordering::Relaxed);
    wait_healthy(&gateway, 1);
    let without = config(&[old.address(), new.address()], "").replace(
        "[upstreams.back.health]",
        "[upstreams.other]\ninstances = [\"127.0.0.1:1\"]\n[upstreams.other.health]",
    );
    gateway.rewrite_config(&without);
    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 3, SOON);
    assert!(who_answers(&gateway, 40).contains("1"));
}

#[test]
fn of_one_that_is_back_before_its_probes_have_noticed_the_next_one_tells() {
    // All probes go well, and what else is asked finds a connection that closes.
    let service = Backend::start(|conversation| {
        while conversation.read_request()?.head.first_line.starts_with("GET /health ") {
            conversation.send(OK)?;
        }
        Ok(())
    });
    let gateway = Gateway::start(&config(&[service.address()], "breaker.percent = 0"));
    wait_healthy(&gateway, 1);
    until(SOON, "requests say that it fails", || {
        assert_eq!(gateway.get("/x").status, 502);
        (healthy(&gateway) == Some(0)).then(|| assert_eq!(entry(&gateway)["error"], "closed"))
    });
    // Nobody asks it any more.
    wait_healthy(&gateway, 1);
    assert_eq!(gateway.log().matches("an instance is").count(), 0, "its probes went well all along");
    until(SOON, "and again", || {
        assert_eq!(gateway.get("/x").status, 502);
        (healthy(&gateway) == Some(0)).then_some(())
    });
}

#[test]
fn a_port_that_takes_connections_is_enough_for_tcp() {
    // It takes connections and says nothing.
    let silent = Backend::start(|conversation| {
        conversation.read_to_end();
        Ok(())
    });
    let config = format!(
        "[upstreams.silent]\ninstances = [\"{}\"]\n[upstreams.silent.health]\nkind = \"tcp\"\ninterval = \"200ms\"\ntimeout = \"200ms\"\n\
         [upstreams.gone]\ninstances = [\"{}\"]\n[upstreams.gone.health]\nkind = \"tcp\"\ninterval = \"200ms\"\ntimeout = \"200ms\"\n\
         [[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"silent\"\n[[routes]]\naccess = \"public\"\npath = \"/gone\"\nupstream = \"gone\"\n",
        silent.address(),
        nobody()
    );
    let gateway = Gateway::start(&config);
    gateway.log_until("an instance is down", SOON);
    let document = until(SOON, "both are known", || {
        let document = gateway.ask_admin("/health").json();
        let status = |name: &str| document["services"][name]["status"].clone();
        (status("silent") == "up" && status("gone") == "down").then_some(document)
    });
    assert_eq!(document["status"], "degraded");
    assert_eq!(document["services"]["gone"]["error"], "refused");
}

#[test]
fn probes_that_begin_under_load_do_not_send_all_to_the_first_that_answers() {
    // Its first probes take longer than the whole test, and its requests do not.
    let slow = Backend::answering(|request| {
        if request.head.first_line.starts_with("GET /health ") {
            crate::harness::pause(Duration::from_secs(20));
        }
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n0"
    });
    let quick = Backend::answering(|_| "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1");
    let with = config(&[slow.address(), quick.address()], "").replace("timeout = \"300ms\"", "timeout = \"15s\"");
    let with = with.replace("interval = \"500ms\"", "interval = \"15s\"");
    let without: String = {
        let (before, rest) = with.split_once("[upstreams.back.health]").expect("it is there");
        format!("{before}{}", &rest[rest.find("[[routes]]").expect("it is there")..])
    };
    let gateway = Gateway::start(&without);
    assert_eq!(who_answers(&gateway, 40).len(), 2);
    gateway.rewrite_config(&with);
    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, SOON);
    wait_healthy(&gateway, 1);
    assert_eq!(who_answers(&gateway, 40).len(), 2, "nothing speaks against either");
}

#[test]
fn a_body_has_its_text_or_the_instance_is_out() {
    let is_ok = Arc::new(AtomicBool::new(true));
    let said = Arc::clone(&is_ok);
    let backend = Backend::answering(move |_| {
        let body = if said.load(Ordering::Relaxed) { "{\"is\":\"ok\"}" } else { "{\"is\":\"ko\"}" };
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    });
    let with = config(&[backend.address()], "").replace("path = \"/health\"", "path = \"/health\"\nbody = '\"ok\"'");
    let gateway = Gateway::start(&with);
    wait_healthy(&gateway, 1);
    is_ok.store(false, Ordering::Relaxed);
    wait_healthy(&gateway, 0);
    assert_eq!(entry(&gateway)["error"], "body");
    assert!(gateway.metrics().value("shardgate_upstream_probes_total{upstream=\"back\",result=\"body\"}") >= 3);
    is_ok.store(true, Ordering::Relaxed);
    wait_healthy(&gateway, 1);
}

//! Names of instances with several addresses: each address is an instance.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Stdio,
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;

use super::namespace::unshare;
use crate::{
    backend::{Backend, Conversation},
    harness::{Gateway, shardgate, until},
};

const SOON: Duration = Duration::from_secs(15);

/// A machine with an `/etc/hosts` of its own.
struct Machine {
    directory: TempDir,
    before: Vec<String>,
}

impl Machine {
    /// Nothing where this user can have none.
    fn new(hosts: &str) -> Option<Self> {
        let mut before: Vec<String> = unshare()?.into_iter().map(str::to_owned).collect();
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("hosts");
        let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", file.display());
        before.extend(["sh", "-c", &script, "sh"].map(str::to_owned));
        let machine = Self { directory, before };
        machine.set(hosts);
        Some(machine)
    }

    fn set(&self, hosts: &str) {
        fs::write(self.directory.path().join("hosts"), hosts).expect("written");
    }

    #[track_caller]
    fn start(&self, config: &str) -> Gateway {
        let before: Vec<&str> = self.before.iter().map(String::as_str).collect();
        Gateway::launch_through(&before, config, |_| {}).wait_listening()
    }
}

/// A backend at this address that answers with it.
fn backend(address: SocketAddr) -> Backend {
    let name = address.ip().to_string();
    Backend::start_at(address, move |conversation: &mut Conversation| {
        while conversation.read_request().is_ok() {
            conversation.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))?;
        }
        Ok(())
    })
}

/// A port that is free at all of loopback's addresses that tests use.
fn free_port() -> u16 {
    let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

fn config(instance: &str, port: u16, more: &str) -> String {
    let (upstream, sections) = more.split_at(more.find('[').unwrap_or(more.len()));
    format!(
        "[upstreams.back]\ninstances = [\"{instance}:{port}\"]\n{upstream}\n{sections}\n\
         [[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n"
    )
}

fn instances(gateway: &Gateway) -> (u64, u64) {
    let health = gateway.ask_admin("/health").json();
    let of = |name: &str| health["services"]["back"]["instances"][name].as_u64().expect("a number");
    (of("healthy"), of("total"))
}

/// Shards tell once a second what they know.
#[track_caller]
fn wait_healthy(gateway: &Gateway, count: u64) {
    until(SOON, "all are known to be healthy", || (instances(gateway) == (count, count)).then_some(()));
}

#[test]
fn every_address_of_a_name_is_an_instance() {
    let hosts =
        |list: &[u8]| list.iter().map(|host| format!("127.0.0.{host} many.test\n")).collect::<Vec<_>>().concat();
    let Some(machine) = Machine::new(&hosts(&[2, 3, 4])) else { return };
    let port = free_port();
    let at = |host| SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), port));
    let _backends = [2, 3, 4, 5].map(|host| backend(at(host)));
    let gateway = machine.start(&config("many.test", port, ""));
    let answered = |gateway: &Gateway, count: usize| -> BTreeSet<String> {
        (0..count)
            .map(|_| gateway.get("/x"))
            .inspect(|answer| assert_eq!(answer.status, 200))
            .map(|answer| answer.text())
            .collect()
    };
    let all: BTreeSet<String> = ["127.0.0.2", "127.0.0.3", "127.0.0.4"].map(str::to_owned).into();
    assert_eq!(answered(&gateway, 100), all);
    wait_healthy(&gateway, 3);
    // The name is what the service sees, whichever address it has.
    assert!(gateway.access_lines(100).iter().all(|line| line["instance"] == format!("many.test:{port}")));

    // The file is followed: nobody has to tell.
    machine.set(&hosts(&[5, 4, 3]));
    let all: BTreeSet<String> = ["127.0.0.3", "127.0.0.4", "127.0.0.5"].map(str::to_owned).into();
    until(SOON, "the others answer", || (answered(&gateway, 100) == all).then_some(()));
    wait_healthy(&gateway, 3);
}

#[test]
fn an_instance_that_is_the_gateway_itself_is_warned_of() {
    const WARNING: &str = "is the gateway's own listener";
    // Its port is known only while it runs, so a reload names it.
    let Some(machine) = Machine::new("127.0.0.7 loop.test\n127.0.0.1 localhost\n") else { return };
    for (address, instance, is_loop) in [
        ("0.0.0.0", "loop.test", true),
        ("0.0.0.0", "0.0.0.0", true),
        ("127.0.0.7", "loop.test", true),
        ("127.0.0.1", "loop.test", false),
        ("0.0.0.0", "192.0.2.1", false),
        ("0.0.0.0", "[::1]", false),
    ] {
        let listener = format!("[listener]\naddress = \"{address}\"\n");
        let gateway = machine.start(&config(instance, 9, &listener));
        gateway.log_until("every shard runs the configuration", SOON);
        gateway.rewrite_config(&config(instance, gateway.address().port(), &listener));
        gateway.signal(Signal::HUP);
        gateway.log_until_nth("every shard runs the configuration", 2, SOON);
        assert_eq!(gateway.log().contains(WARNING), is_loop, "{address} {instance}: {}", gateway.log());
    }
    let gateway = machine.start("");
    assert!(!gateway.log().contains(WARNING));
}

#[test]
fn check_tells_what_an_instance_cannot_be_before_names_are_known() {
    for (instance, code, told) in [
        ("http://shop.example", 2, "or as \"https://host\" where it speaks TLS"),
        ("https://shop.example:443/", 2, "without a path"),
        ("shop.example:443", 0, "warning: a.toml:2: upstreams.back.instances has shop.example:443, the port of HTTPS"),
        (
            "127.0.0.1:3000",
            0,
            "warning: upstreams.back.instances[0] is \"127.0.0.1:3000\", and 127.0.0.1:3000 is the gateway's own",
        ),
        ("localhost:3000", 0, "127.0.0.1:3000 is the gateway's own listener"),
    ] {
        let directory = TempDir::new().expect("a temporary directory");
        let text =
            format!("[upstreams.back]\ninstances = [\"{instance}\"]\n[[routes]]\npath = \"/*\"\nupstream = \"back\"\n");
        fs::write(directory.path().join("a.toml"), text).expect("written");
        let mut command = shardgate(directory.path());
        let output = command.args(["check", "a.toml"]).stderr(Stdio::piped()).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(told), "{said}");
    }
}

#[test]
fn a_service_on_one_of_two_families_answers_from_the_first_request_on() {
    for (hosts, listening) in [
        ("::1 both.test\n127.0.0.1 both.test\n", "127.0.0.1"),
        ("127.0.0.1 both.test\n::1 both.test\n", "127.0.0.1"),
        ("::1 both.test\n127.0.0.1 both.test\n", "::1"),
        ("127.0.0.1 both.test\n::1 both.test\n", "::1"),
    ] {
        let Some(machine) = Machine::new(hosts) else { return };
        if TcpListener::bind("[::1]:0").is_err() {
            eprintln!("skipped: there is no IPv6 here");
            return;
        }
        let port = free_port();
        let _backend = backend(SocketAddr::new(listening.parse().expect("an address"), port));
        // Neither retries nor a budget for them: the addresses are one instance.
        for more in ["", "retries_max = 0\nretry_budget_percent = 0\nretry_budget_min_per_s = 0"] {
            let gateway = machine.start(&config("both.test", port, more));
            let mut client = gateway.connect();
            for _ in 0..40 {
                let answer = client.post("/x", b"hello");
                assert_eq!((answer.status, answer.text().as_str()), (200, listening), "{hosts}{more}");
            }
            // What refuses is left out, and shown.
            let ejected = || gateway.metrics().sum("shardgate_upstream_ejections_total");
            until(SOON, "the other address is left out", || {
                assert_eq!(gateway.get("/x").status, 200);
                (ejected() > 0).then_some(())
            });
            until(SOON, "health tells", || (instances(&gateway) == (1, 2)).then_some(()));
        }
    }
}

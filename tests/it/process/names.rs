//! A resolver that does not answer: nothing but what asks for a name waits for it.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    harness::{Gateway, until},
    servers::dns::{Dns, Mode},
    service::Service,
};

const SOON: Duration = Duration::from_secs(15);

/// An upstream by a name that nobody knows.
const SLOW: &str = "[upstreams.slow]\ninstances = [\"127.0.0.1:9\", \"slow.test:80\"]\n";

/// A server of DNS that says nothing.
fn silent() -> Dns {
    let dns = Dns::start();
    dns.set_mode(Mode::Silent);
    dns
}

/// Everything goes to the service, and answers tell which configuration they passed.
fn versioned(service: &Service, dns: &Dns, version: usize, more: &str) -> String {
    service.config(&format!("[drain]\nnotice = \"0s\"\n[discovery]\n{}", dns.config()))
        + &format!("[routes.response_headers]\nset = {{ X-Version = \"{version}\" }}\n{more}")
}

fn with_timeout(time: &str) -> String {
    format!("{SLOW}[runtime]\nlookup_timeout = \"{time}\"\n")
}

fn version(gateway: &Gateway) -> String {
    gateway.get("/").field("x-version").unwrap_or_default().to_owned()
}

fn reload(gateway: &Gateway, config: &str) {
    gateway.rewrite_config(config);
    gateway.signal(Signal::HUP);
}

#[test]
fn while_a_reload_waits_for_a_name_all_else_goes_on_and_a_newer_file_wins() {
    let (service, dns) = (Service::start(), silent());
    let mut gateway = Gateway::start(&versioned(&service, &dns, 1, ""));
    gateway.log_until("every shard runs the configuration", SOON);
    reload(&gateway, &versioned(&service, &dns, 2, &with_timeout("1h")));
    gateway.log_until("looking up the names", SOON);
    dns.wait_asked("slow.test");
    for _ in 0..3 {
        assert_eq!(gateway.ask_admin("/health").status, 200);
        assert_eq!(gateway.get("/health/ready").status, 200);
        assert_eq!(gateway.metrics().by_shard("shardgate_config_generation"), [1; 4]);
        assert_eq!(version(&gateway), "1");
    }
    reload(&gateway, &versioned(&service, &dns, 3, ""));
    gateway.log_until("left for a newer one", SOON);
    until(SOON, "the newer one is in force", || (version(&gateway) == "3").then_some(()));
    reload(&gateway, &versioned(&service, &dns, 4, &with_timeout("1h")));
    gateway.log_until_nth("looking up the names", 2, SOON);
    let results = ["applied", "refused"]
        .map(|result| gateway.metrics().value(&format!("shardgate_config_reloads_total{{result=\"{result}\"}}")));
    assert_eq!(results, [1, 0]);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0), "it does not wait for the resolver");
}

#[test]
fn a_reload_whose_names_nobody_tells_in_time_is_taken_without_them() {
    let (service, dns) = (Service::start(), silent());
    let gateway = Gateway::start(&versioned(&service, &dns, 1, ""));
    gateway.log_until("every shard runs the configuration", SOON);
    reload(&gateway, &versioned(&service, &dns, 2, &with_timeout("50ms")));
    let line = gateway.log_until("was not resolved within 50ms", SOON);
    let expected = "upstreams.slow.instances[1] is \\\"slow.test:80\\\", and slow.test was not resolved within 50ms; \
                    see whether DNS answers";
    assert!(line.contains(expected) && line.contains("WARN"), "{line}");
    until(SOON, "it is in force", || (version(&gateway) == "2").then_some(()));
    until(SOON, "health tells", || {
        let entry = gateway.ask_admin("/health").json()["services"]["slow"].clone();
        (entry["status"] == "degraded" && entry["error"] == "unresolved").then_some(())
    });
    assert_eq!(gateway.get("/health/ready").status, 200);
    // The name is followed already, so nobody waits for it again.
    reload(&gateway, &versioned(&service, &dns, 3, &with_timeout("1h")));
    until(SOON, "it is in force", || (version(&gateway) == "3").then_some(()));
    assert_eq!(gateway.metrics().value("shardgate_config_reloads_total{result=\"applied\"}"), 2);
}

#[test]
fn a_start_waits_so_long_and_says_what_it_waited_for() {
    let (service, dns) = (Service::start(), silent());
    let gateway = Gateway::start(&versioned(&service, &dns, 1, &with_timeout("50ms")));
    let line = gateway.log_until("slow.test was not resolved within 50ms", SOON);
    assert!(line.contains("WARN"), "{line}");
    assert_eq!(version(&gateway), "1");
}

#[test]
fn a_signal_ends_a_start_that_waits_for_a_name() {
    let (service, dns) = (Service::start(), silent());
    let mut gateway = Gateway::launch(&versioned(&service, &dns, 1, &with_timeout("1h")), |_| {});
    dns.wait_asked("slow.test");
    gateway.signal(Signal::HUP);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0));
    assert!(gateway.log().contains("ended before it listened"), "{}", gateway.log());
}

/// The system's own resolver, hanging: what names of issuers and of Redis are looked up with.
///
/// The C library reads the file that `HOSTALIASES` names before it asks a server for a name without a dot
/// (hostname(7)). Here it is a pipe that nobody writes to, so that reading it hangs as a silent server would, for as long
/// as the test likes, and no server is asked.
struct SystemResolver {
    directory: TempDir,
}

impl SystemResolver {
    /// Nothing where another library answers before the one that reads the file; the test is passed over then.
    fn new() -> Option<Self> {
        let switch = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
        let hosts = switch.lines().find_map(|line| line.strip_prefix("hosts:")).unwrap_or(" files dns");
        let before: Vec<_> = hosts.split_whitespace().take_while(|service| *service != "dns").collect();
        if !hosts.split_whitespace().any(|service| service == "dns") || before.contains(&"resolve") {
            eprintln!("skipped: /etc/nsswitch.conf looks hosts up by{hosts}");
            return None;
        }
        let resolver = Self { directory: TempDir::new().expect("a temporary directory") };
        let made = Command::new("mkfifo").arg(resolver.aliases()).status().expect("mkfifo runs");
        assert!(made.success());
        Some(resolver)
    }

    fn aliases(&self) -> PathBuf {
        self.directory.path().join("aliases")
    }

    fn start(&self, config: &str) -> Gateway {
        Gateway::start_as(config, |command| {
            command.env("HOSTALIASES", self.aliases());
        })
    }
}

/// Threads of the gateway that have this name.
fn threads(gateway: &Gateway, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.pid())).expect("it runs");
    let names = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|found| found.trim_end() == name).count()
}

#[test]
fn an_end_waits_for_no_name_of_an_issuer_or_of_redis() {
    let Some(resolver) = SystemResolver::new() else { return };
    let others = [
        "[[auth.issuers]]\nissuer = \"https://id.example\"\naudiences = [\"a\"]\njwks_url = \"http://slowly/keys\"\n",
        "[redis]\nurls = [\"redis://slowly\"]\n[sessions]\nstore = \"embedded\"\n[limits.all]\nquota = 9\nwindow = \"1s\"\nscope = \"fleet\"\n",
    ];
    for other in others {
        let mut gateway = resolver.start(&format!("[accounts]\nenabled = false\n[drain]\nnotice = \"0s\"\n{other}"));
        until(SOON, "a name is being looked up", || (threads(&gateway, "waits") > 0).then_some(()));
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.wait_exit(SOON), Some(0), "{other}");
    }
}

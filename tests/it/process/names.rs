//! A resolver that does not answer: nothing but what asks for a name waits for it.
//!
//! The C library reads the file that `HOSTALIASES` names before it asks a server for a name without a dot
//! (hostname(7)). Here it is a pipe that nobody writes to, so that reading it hangs as a silent server would, for as long
//! as the test likes, and no server is asked.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    harness::{Gateway, until},
    service::Service,
};

const SOON: Duration = Duration::from_secs(15);

/// An upstream by a name that nobody knows but the file of aliases might.
const SLOW: &str = "[upstreams.slow]\ninstances = [\"127.0.0.1:9\", \"slowly:80\"]\n";

/// A resolver that hangs.
struct Resolver {
    directory: TempDir,
}

impl Resolver {
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

    fn launch(&self, config: &str) -> Gateway {
        Gateway::launch(config, |command| {
            command.env("HOSTALIASES", self.aliases());
        })
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

#[track_caller]
fn until_it_hangs(gateway: &Gateway) {
    until(SOON, "a name is being looked up", || (threads(gateway, "lookup") == 1).then_some(()));
}

/// Everything goes to the service, and answers tell which configuration they passed.
fn versioned(service: &Service, version: usize, more: &str) -> String {
    service.config("[drain]\nnotice = \"0s\"\n")
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
    let Some(resolver) = Resolver::new() else { return };
    let service = Service::start();
    let mut gateway = resolver.start(&versioned(&service, 1, ""));
    gateway.log_until("every shard runs the configuration", SOON);
    reload(&gateway, &versioned(&service, 2, &with_timeout("1h")));
    gateway.log_until("looking up the names", SOON);
    until_it_hangs(&gateway);
    for _ in 0..3 {
        assert_eq!(gateway.ask_admin("/health").status, 200);
        assert_eq!(gateway.get("/health/ready").status, 200);
        assert_eq!(gateway.metrics().by_shard("shardgate_config_generation"), [1; 4]);
        assert_eq!(version(&gateway), "1");
    }
    reload(&gateway, &versioned(&service, 3, ""));
    gateway.log_until("left for a newer one", SOON);
    until(SOON, "the newer one is in force", || (version(&gateway) == "3").then_some(()));
    reload(&gateway, &versioned(&service, 4, &with_timeout("1h")));
    gateway.log_until_nth("looking up the names", 2, SOON);
    assert_eq!(threads(&gateway, "lookup"), 1, "the same name is not asked for twice");
    let results = ["applied", "refused"]
        .map(|result| gateway.metrics().value(&format!("shardgate_config_reloads_total{{result=\"{result}\"}}")));
    assert_eq!(results, [1, 0]);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0), "it does not wait for the resolver");
}

#[test]
fn a_reload_whose_names_nobody_tells_in_time_is_refused_whole() {
    let Some(resolver) = Resolver::new() else { return };
    let service = Service::start();
    let mut gateway = resolver.start(&versioned(&service, 1, ""));
    gateway.expect_error("the configuration is refused");
    gateway.log_until("every shard runs the configuration", SOON);
    reload(&gateway, &versioned(&service, 2, &with_timeout("50ms")));
    let line = gateway.log_until("the configuration is refused", SOON);
    let expected = "shardgate.toml: upstreams.slow.instances[1] is \\\"slowly:80\\\", and slowly was not resolved within 50ms; \
                    see whether DNS answers";
    assert!(line.contains(expected), "{line}");
    assert_eq!(version(&gateway), "1");
    assert_eq!(gateway.get("/health/ready").status, 200);
    let metrics = gateway.metrics();
    assert_eq!(metrics.value("shardgate_config_reloads_total{result=\"refused\"}"), 1);
    assert_eq!(metrics.by_shard("shardgate_config_generation"), [1; 4]);
    // What hangs is in nobody's way.
    assert_eq!(threads(&gateway, "lookup"), 1);
    reload(&gateway, &versioned(&service, 3, "[upstreams.near]\ninstances = [\"localhost:80\"]\n"));
    until(SOON, "names are looked up as ever", || (version(&gateway) == "3").then_some(()));
}

#[test]
fn a_start_waits_so_long_and_says_what_it_waited_for() {
    let Some(resolver) = Resolver::new() else { return };
    let service = Service::start();
    let mut gateway = resolver.launch(&versioned(&service, 1, &with_timeout("50ms")));
    assert_eq!(gateway.wait_exit(SOON), Some(1));
    assert!(
        gateway.log().contains("shardgate: upstreams.slow.instances[1] is \"slowly:80\", and slowly was not resolved"),
        "{}",
        gateway.log()
    );
}

#[test]
fn a_signal_ends_a_start_that_waits_for_a_name() {
    let Some(resolver) = Resolver::new() else { return };
    let service = Service::start();
    let mut gateway = resolver.launch(&versioned(&service, 1, &with_timeout("1h")));
    until_it_hangs(&gateway);
    gateway.signal(Signal::HUP);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0));
    assert!(gateway.log().contains("ended before it listened"), "{}", gateway.log());
}

#[test]
fn an_end_waits_for_no_name_of_an_issuer_or_of_redis() {
    let Some(resolver) = Resolver::new() else { return };
    let others = [
        "[[auth.issuers]]\nissuer = \"https://id.example\"\naudiences = [\"a\"]\njwks_url = \"http://slowly/keys\"\n",
        "[redis]\nurls = [\"redis://slowly\"]\n[sessions]\nstore = \"embedded\"\n[limits.all]\nquota = 9\nwindow = \"1s\"\nscope = \"fleet\"\n",
    ];
    for other in others {
        let mut gateway = resolver.start(&format!("[accounts]\nenabled = false\n[drain]\nnotice = \"0s\"\n{other}"));
        until(SOON, "a name is being looked up", || (threads(&gateway, "tokio-rt-worker") > 0).then_some(()));
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.wait_exit(SOON), Some(0), "{other}");
    }
}

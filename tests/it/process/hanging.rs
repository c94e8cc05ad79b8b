//! File systems that hang, as one on a network whose server is away: nobody waits for what is on them but whoever asked for it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use rustix::process::Signal;
use tempfile::TempDir;

use super::namespace::{Hang, unshare};
use crate::{
    harness::{Gateway, now, until},
    service::Service,
};

const SOON: Duration = Duration::from_secs(15);
const REFUSED: &str = "the configuration is refused and the old one stays";
const DRAIN: &str = "[drain]\nnotice = \"0s\"\nmax = \"5s\"\n";

/// Whatever hangs: operators and requests go on.
fn goes_on(gateway: &Gateway) {
    let begun = now();
    for path in ["/health", "/health/ready", "/metrics"] {
        assert_eq!(gateway.ask_admin(path).status, 200, "{path}");
    }
    assert_eq!(gateway.get("/").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(3), "nobody waits for it");
}

/// A reload whose files hang is refused, and so is another one; once they answer again one is taken.
#[track_caller]
fn is_refused(service: &Service, folder: &Path, what: &str, config: &str) {
    let Some(unshare) = unshare() else { return };
    let mut gateway =
        Gateway::launch_through(&unshare, &service.config(&format!("{DRAIN}{config}")), |_| {}).wait_listening();
    let Some(hang) = Hang::over(folder, gateway.pid()) else { return };
    gateway.expect_error(REFUSED);
    for count in 1..=2 {
        gateway.signal(Signal::HUP);
        goes_on(&gateway);
        let line = gateway.log_until_nth(REFUSED, count, SOON);
        let told = format!("{what} cannot be read: that takes longer than 5s");
        assert!(line.contains(&told), "{line}");
    }
    assert_eq!(gateway.metrics().value("shardgate_config_reloads_total{result=\"refused\"}"), 2);
    drop(hang);
    gateway.signal(Signal::HUP);
    gateway.log_until("configuration reloaded", SOON);
    // It hangs again, and the end is not held up by it.
    let Some(_hang) = Hang::over(folder, gateway.pid()) else { return };
    gateway.signal(Signal::HUP);
    goes_on(&gateway);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0));
}

#[test]
fn files_of_a_configuration_that_hang_hold_up_nobody() {
    let service = Service::start();
    let place = TempDir::new().expect("a directory");
    let of = |name: &str| place.path().join(name);
    let copied = |from: &str, to: &str| {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/auth").join(from);
        let to = of(to);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a directory");
        fs::copy(from, &to).expect("copied");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("it is ours");
        to.display().to_string()
    };
    let written = |to: &str, text: &str| {
        fs::create_dir_all(of(to).parent().expect("a folder")).expect("a directory");
        fs::write(of(to), text).expect("written");
        fs::set_permissions(of(to), fs::Permissions::from_mode(0o600)).expect("it is ours");
        of(to).display().to_string()
    };
    let key = copied("p256.pem", "keys/key.pem");
    let token = written("tokens/ben", "a-token-of-the-file-of-ben");
    let password = written("clickhouse/password", "a password of a file");
    let trusted = copied("ca.pem", "trace/ca.pem");
    let spilled = of("spilled").display().to_string();
    let cases = [
        (
            "keys",
            "the keys of tokens (auth.keys, auth.issuers, data.dir)",
            format!("[[auth.keys]]\nkid = \"mounted\"\nalgorithm = \"ES256\"\nfile = \"{key}\"\n"),
        ),
        (
            "tokens",
            "the tokens of operators (admin.tokens)",
            format!("[[admin.tokens]]\nname = \"ben\"\nfile = \"{token}\"\n"),
        ),
        (
            "clickhouse",
            "the files of clickhouse (password_file, ca_file)",
            format!(
                "[clickhouse]\nenabled = true\nurl = \"http://127.0.0.1:1\"\npassword_file = \"{password}\"\n\
                 spill_dir = \"{spilled}\"\n"
            ),
        ),
        (
            "trace",
            "the certificates of the collector (trace.ca_file)",
            format!("[trace]\nendpoint = \"https://127.0.0.1:1\"\nca_file = \"{trusted}\"\n"),
        ),
    ];
    std::thread::scope(|scope| {
        for (folder, what, config) in &cases {
            let (service, folder) = (&service, of(folder));
            scope.spawn(move || is_refused(service, &folder, what, config));
        }
    });
}

#[test]
fn the_systems_files_that_hang_hold_up_neither_names_nor_operators() {
    let Some(unshare) = unshare() else { return };
    let service = Service::start();
    let port = service.address().port();
    let config = |name: &str| {
        format!(
            "{DRAIN}[upstreams.named]\ninstances = [\"{name}:{port}\"]\n\
             [[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"named\"\n"
        )
    };
    let mut gateway = Gateway::launch_through(&unshare, &config("localhost"), |_| {}).wait_listening();
    goes_on(&gateway);
    let Some(hang) = Hang::over(Path::new("/etc/hosts"), gateway.pid()) else { return };
    let late = "/etc/hosts and /etc/resolv.conf cannot be read: that takes longer than 5s";
    gateway.log_until(late, SOON);
    goes_on(&gateway);
    // A name that is known costs no wait, and one that is not is looked up by what was read before.
    gateway.signal(Signal::HUP);
    gateway.log_until("configuration reloaded", SOON);
    gateway.rewrite_config(&config("new.localhost"));
    gateway.signal(Signal::HUP);
    goes_on(&gateway);
    gateway.log_until_nth("configuration reloaded", 2, SOON);
    until(SOON, "it is used", || (gateway.get("/").status == 200).then_some(()));
    drop(hang);
    gateway.log_until("/etc/hosts and /etc/resolv.conf can be read again", SOON);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0));
}

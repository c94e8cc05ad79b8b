//! The unit in `contrib/systemd`, as systemd would run it: its commands by a user without rights, over a root that cannot be
//! written but for the directories that the unit asks for.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::namespace::unshare;
use crate::{
    client::Response,
    harness::{Gateway, shardgate},
    service::Service,
};

/// Who owns nothing. `DynamicUser=` takes such a user, too.
const NOBODY: u32 = 65_534;

/// The unit that is shipped.
const UNIT: &str = include_str!("../../../contrib/systemd/shardgate.service");

/// The values of a key of `[Service]`, in order.
fn unit(key: &str) -> Vec<&'static str> {
    let section = UNIT.split_once("[Service]\n").expect("a service").1;
    let section = section.split("\n[").next().expect("its lines");
    let lines = section.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=').filter(|(name, _)| *name == key).map(|(_, value)| value)).collect()
}

/// The configuration of six lines that the README shows, with these for its instances.
fn readme_configuration(services: [&Service; 2]) -> String {
    let readme = include_str!("../../../README.md");
    let block = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("it shows one");
    assert_eq!(block.lines().count(), 6, "{block}");
    let mut text = block.to_owned();
    for (written, service) in ["10.0.0.5:9000", "10.0.0.6:9000"].iter().zip(services) {
        assert!(text.contains(written), "{text}");
        text = text.replace(written, &service.address().to_string());
    }
    text
}

/// A root of little more than `/usr`, in which the unit is installed.
struct Machine {
    root: TempDir,
    unshare: Vec<&'static str>,
    /// What the unit may write.
    writable: Vec<PathBuf>,
    /// What systemd says of them.
    variables: Vec<(&'static str, String)>,
}

impl Machine {
    /// Nothing where this user can have none.
    fn new(configuration: &str) -> Option<Self> {
        let unshare = unshare()?;
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can become somebody else");
            return None;
        }
        let root = TempDir::new().expect("a temporary directory");
        let path = |name: &str| root.path().join(name);
        for directory in ["usr", "etc/shardgate", "proc", "dev", "tmp", "bin"] {
            fs::create_dir_all(path(directory)).expect("made");
        }
        fs::remove_dir(path("bin")).expect("it is empty");
        for link in ["bin", "sbin", "lib", "lib32", "lib64"] {
            // Where the machine has no such link, there is none to follow.
            if let Ok(target) = fs::read_link(Path::new("/").join(link)) {
                std::os::unix::fs::symlink(target, path(link)).expect("linked");
            }
        }
        fs::write(path("etc/hosts"), "127.0.0.1 localhost\n").expect("written");
        fs::write(path("etc/shardgate/shardgate.toml"), configuration).expect("written");
        fs::copy(env!("CARGO_BIN_EXE_shardgate"), path("shardgate")).expect("copied");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("ours");

        let mut writable = Vec::new();
        let mut variables = vec![("HOME", "/".to_owned())];
        for (key, parent, variable) in [
            ("StateDirectory", "/var/lib", "STATE_DIRECTORY"),
            ("LogsDirectory", "/var/log", "LOGS_DIRECTORY"),
            ("CacheDirectory", "/var/cache", "CACHE_DIRECTORY"),
            ("RuntimeDirectory", "/run", "RUNTIME_DIRECTORY"),
        ] {
            for name in unit(key) {
                let directory = Path::new(parent).join(name);
                let inside = path(directory.strip_prefix("/").expect("it is absolute").to_str().expect("UTF-8"));
                fs::create_dir_all(&inside).expect("made");
                chown(&inside, Some(NOBODY), Some(NOBODY)).expect("root may");
                fs::set_permissions(&inside, fs::Permissions::from_mode(0o700)).expect("root may");
                variables.push((variable, directory.display().to_string()));
                writable.push(inside);
            }
        }
        variables.push(("CONFIGURATION_DIRECTORY", "/etc/shardgate".to_owned()));
        let of_the_unit = unit("Environment").into_iter().filter_map(|pair| pair.split_once('='));
        variables.extend(of_the_unit.map(|(name, value)| (name, value.to_owned())));
        Some(Self { root, unshare, writable, variables })
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside.trim_start_matches('/'))
    }

    /// Makes a command of the unit one that becomes it in this root, as nobody.
    fn command(&self, line: &str) -> Vec<String> {
        let root = self.root.path().display();
        let mut script = vec![
            "set -e".to_owned(),
            format!("mount --bind {root} {root}"),
            format!("mount --bind /usr {root}/usr"),
            format!("mount -t tmpfs none {root}/usr/local/bin"),
            format!("cp {root}/shardgate {root}/usr/local/bin/"),
            format!("mount --rbind /proc {root}/proc"),
            format!("mount --rbind /dev {root}/dev"),
        ];
        let writable = self.writable.iter().map(|directory| directory.display());
        script.extend(writable.map(|directory| format!("mount --bind {directory} {directory}")));
        let read_only = ["usr/local/bin", "usr", ""];
        script.extend(read_only.map(|place| format!("mount -o remount,bind,ro {root}/{place}")));
        script.push(format!("exec setpriv --no-new-privs chroot --userspec={NOBODY}:{NOBODY} --groups= {root} \"$@\""));
        let script = script.join("; ");
        let unshare = self.unshare.iter().map(|word| (*word).to_owned());
        let shell = ["sh", "-c", &script, "sh"].map(str::to_owned);
        unshare.chain(shell).chain(line.split_whitespace().map(str::to_owned)).collect()
    }

    fn prepare(&self, command: &mut Command) {
        command.envs(self.variables.iter().map(|(name, value)| (*name, value.as_str())));
        command.env("PORT", "0").env("SHARDGATE_ADMIN_PORT", "0").env("SHARDGATE_RUNTIME_SHARDS", "4");
    }

    #[track_caller]
    fn start(&self) -> Gateway {
        let line = unit("ExecStart");
        assert_eq!(line.len(), 1);
        Gateway::start_program(&self.command(line[0]), |command| self.prepare(command))
    }

    /// Runs the command that comes before the start, and returns what it says.
    #[track_caller]
    fn check(&self) -> (Option<i32>, String) {
        let words = self.command(unit("ExecStartPre")[0]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.root.path()).stderr(Stdio::piped()).stdout(Stdio::null());
        self.prepare(&mut command);
        let output = command.output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn log_in(gateway: &Gateway, password: &str) -> Response {
    let body = format!(r#"{{"email":"ada@example.com","password":"{password}"}}"#);
    let mut client = gateway.connect();
    client.send(format!(
        "POST /auth/login HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    client.read_response()
}

#[test]
fn the_unit_starts_with_the_six_lines_of_the_readme() {
    let services = [Service::start(), Service::start()];
    let Some(machine) = Machine::new(&readme_configuration([&services[0], &services[1]])) else { return };
    let (code, said) = machine.check();
    assert_eq!((code, said.as_str()), (Some(0), ""), "it may write where it wants to");
    let mut tokens = Vec::new();
    // The second start finds what the first one made.
    for _ in 0..2 {
        let gateway = machine.start();
        assert_eq!(gateway.get("/shop/x").status, 200);
        let keys = gateway.get("/.well-known/jwks.json");
        assert_eq!(keys.status, 200);
        tokens.push(keys.json()["keys"][0]["kid"].clone());
        assert_eq!(gateway.get("/auth/me").status, 401);
        assert_eq!(log_in(&gateway, "nothing at all").status, 401, "its store works");
    }
    assert_eq!(tokens[0], tokens[1]);
    for file in ["token-key.pem", "refresh-key", "shardgate.db"] {
        let mode = fs::metadata(machine.path("/var/lib/shardgate").join(file)).expect(file).permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }
    assert!(machine.path("/var/log/shardgate/access.log").exists());
}

/// The command that adds a user where the unit is installed, as docs/accounts.md has it: what systemd is asked for, and what
/// it is to run.
fn documented_add() -> (Vec<&'static str>, String) {
    let documented = include_str!("../../../docs/accounts.md");
    let from = documented.find("systemd-run --pty").expect("it has one");
    let command = documented[from..].split("```").next().expect("it is a block");
    let (asked, run) = command.split_once("/usr/").expect("the program has its path");
    let properties = asked.split_whitespace().filter_map(|word| word.strip_prefix("--property=")).collect();
    (properties, format!("/usr/{}", run.trim()))
}

#[test]
fn users_are_added_as_the_user_of_the_unit() {
    let (properties, line) = documented_add();
    let of_the_unit =
        ["DynamicUser", "StateDirectory", "StateDirectoryMode"].map(|key| format!("{key}={}", unit(key)[0]));
    // Where the unit names no user, systemd takes its own name.
    let expected = [of_the_unit[0].as_str(), "User=shardgate", &of_the_unit[1], &of_the_unit[2]];
    assert_eq!((properties, unit("User")), (expected.to_vec(), Vec::new()));
    let paths =
        |line: &str| line.split(' ').filter(|word| word.starts_with('/')).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(paths(&line), paths(unit("ExecStart")[0]), "the program, and its configuration");

    let services = [Service::start(), Service::start()];
    let Some(machine) = Machine::new(&readme_configuration([&services[0], &services[1]])) else { return };
    let words = machine.command(&line);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(machine.root.path()).stdin(Stdio::piped()).stderr(Stdio::piped());
    machine.prepare(&mut command);
    let mut adding = command.stdout(Stdio::piped()).spawn().expect("it runs");
    adding.stdin.take().expect("piped").write_all(b"correct horse battery\n").expect("it reads");
    let output = adding.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");

    let gateway = machine.start();
    let answer = log_in(&gateway, "correct horse battery");
    assert_eq!((answer.status, &answer.json()["user"]["role"]), (200, &"admin".into()));
}

#[test]
fn the_unit_is_as_hard_as_it_was() {
    for (key, value) in [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("ProtectKernelTunables", "yes"),
        ("ProtectKernelModules", "yes"),
        ("ProtectControlGroups", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        ("RestrictNamespaces", "yes"),
        ("LockPersonality", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("StateDirectory", "shardgate"),
    ] {
        assert_eq!(unit(key), [value], "{key}");
    }
}

#[test]
fn a_key_that_a_group_may_read_is_taken_by_who_is_in_it() {
    let services = [Service::start(), Service::start()];
    let key = "[[auth.keys]]\nkid = \"mounted\"\nalgorithm = \"ES256\"\nfile = \"/etc/shardgate/key.pem\"\n";
    let configuration = readme_configuration([&services[0], &services[1]]) + key;
    let Some(machine) = Machine::new(&configuration) else { return };
    let file = machine.path("/etc/shardgate/key.pem");
    let pem = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/auth/p256.pem");
    fs::copy(pem, &file).expect("copied");
    // As `fsGroup` of Kubernetes and `LoadCredential=` of systemd leave it.
    chown(&file, Some(0), Some(NOBODY)).expect("root may");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).expect("root may");
    assert_eq!(machine.check(), (Some(0), String::new()));
    let gateway = machine.start();
    assert_eq!(gateway.get("/.well-known/jwks.json").json()["keys"][0]["kid"], "mounted");
    drop(gateway);
    // Somebody else's group is another matter.
    chown(&file, Some(7), Some(NOBODY)).expect("root may");
    let (code, said) = machine.check();
    assert_eq!(code, Some(2), "{said}");
    let told = "a group may use the file, and it is neither root's nor this user's (mode 0440, owner 7); \
                chmod g= /etc/shardgate/key.pem, or chown 65534 /etc/shardgate/key.pem";
    assert!(said.contains(told), "{said}");
}

#[test]
fn check_warns_of_a_directory_that_it_cannot_write() {
    let services = [Service::start(), Service::start()];
    let configuration = readme_configuration([&services[0], &services[1]]);
    let written = "[data]\ndir = \"/var/lib/elsewhere/data\"\n[log]\naccess = \"/var/log/elsewhere/access.log\"\n";
    let Some(mut machine) = Machine::new(&(configuration + written)) else { return };
    machine.variables.retain(|(name, _)| *name != "SHARDGATE_LOG_ACCESS");
    let (code, said) = machine.check();
    assert_eq!(code, Some(0), "{said}");
    for told in [
        "warning: data.dir is \"/var/lib/elsewhere/data\", and user 65534 cannot write in /var/lib (",
        "warning: log.access is \"/var/log/elsewhere/access.log\", and user 65534 cannot write to /var/log/elsewhere (",
    ] {
        assert!(said.contains(told), "{said}");
    }
    // Whoever may write hears nothing.
    let directory = TempDir::new().expect("a temporary directory");
    let mut command = shardgate(directory.path());
    let output = command.arg("check").stderr(Stdio::piped()).output().expect("it runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

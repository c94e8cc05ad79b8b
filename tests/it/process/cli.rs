//! The command line: what each command prints, and with which code it ends.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::has_tool;
use crate::harness::{Gateway, shardgate};

const SOON: Duration = Duration::from_secs(15);

/// How a command ended, and what it said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs a command of the binary in a directory that has these files.
fn run(arguments: &[&str], files: &[(&str, &str)]) -> Said {
    let directory = TempDir::new().expect("a temporary directory");
    for (name, text) in files {
        fs::write(directory.path().join(name), text).expect("the file is written");
    }
    let mut command = shardgate(directory.path());
    let output = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("what it says is UTF-8");
    Said { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

const EXAMPLE: &str = include_str!("../../../shardgate.example.toml");

#[test]
fn help_documents_every_exit_code() {
    let help = run(&["--help"], &[]);
    assert_eq!(help.code, Some(0));
    let codes = help.stdout.split_once("Exit codes:").expect("exit codes are documented").1;
    for code in ["0 ", "1 ", "2 ", "3 "] {
        assert!(codes.contains(code), "{codes}");
    }
    for command in ["run", "demo", "check", "config", "version"] {
        assert!(help.stdout.contains(command), "{}", help.stdout);
    }
}

#[test]
fn what_is_wrong_with_the_command_line_ends_with_2() {
    for arguments in [&["fly"][..], &["run", "--no-such"], &["check", "a", "b"], &[]] {
        let said = run(arguments, &[]);
        assert_eq!(said.code, Some(2), "{arguments:?} {said:?}");
        assert!(said.stdout.is_empty() && said.stderr.contains("Usage"), "{said:?}");
    }
}

#[test]
fn version_is_the_package_version() {
    let version = concat!("shardgate ", env!("CARGO_PKG_VERSION"), "\n");
    for arguments in ["version", "--version"] {
        let said = run(&[arguments], &[]);
        assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (Some(0), version, ""));
    }
}

#[test]
fn check_and_the_log_warn_of_a_path_beside_a_guarded_one() {
    let routes = "[upstreams.shop]\ninstances = [\"127.0.0.1:9\"]\n\
                  [[routes]]\npath = \"/users\"\nupstream = \"shop\"\nroles = [\"admin\"]\n\
                  [[routes]]\npath = \"/*\"\nupstream = \"shop\"\naccess = \"public\"\n";
    let warning = "the route /* asks for less than /users and takes /users/";
    let said = run(&["check", "a.toml"], &[("a.toml", routes)]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains(&format!("warning: {warning}")), "{said:?}");
    let gateway = Gateway::start(routes);
    assert!(gateway.log_until(warning, Duration::from_secs(10)).contains("WARN"));
    gateway.signal(rustix::process::Signal::HUP);
    gateway.log_until_nth(warning, 2, Duration::from_secs(10));
}

#[test]
fn check_warns_of_a_file_of_instances_that_lists_none() {
    let config = "[upstreams.shop]\ndiscover = { file = \"./shop.json\" }\n\
                  [[routes]]\npath = \"/*\"\nupstream = \"shop\"\naccess = \"public\"\n";
    for (listing, why) in [
        (None, "it cannot be read"),
        (Some("{\"instances\": []}"), "instances is empty"),
        (Some("{\"instances\": [\"10.0.0.1:80\"]}"), ""),
    ] {
        let files: Vec<_> = [("a.toml", config)].into_iter().chain(listing.map(|text| ("shop.json", text))).collect();
        let said = run(&["check", "a.toml"], &files);
        let warning = format!("upstreams.shop.discover.file is \"./shop.json\": {why}");
        assert_eq!((said.code, said.stderr.contains(&warning)), (Some(0), !why.is_empty()), "{said:?}");
    }
}

#[test]
fn check_accepts_what_is_right() {
    for (arguments, files) in [
        (&["check"][..], &[][..]),
        (&["check", "a.toml"], &[("a.toml", "[listener]\nport = 8080\n")]),
        (&["check", "a.toml"], &[("a.toml", EXAMPLE)]),
        (&["check"], &[("shardgate.toml", "")]),
    ] {
        let said = run(arguments, files);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.stdout.contains("no mistakes"), "{said:?}");
    }
    let one = "[upstreams.a]\ninstances = [\"127.0.0.1:1\"]\n[[routes]]\npath = \"/*\"\nupstream = \"a\"";
    let said = run(&["check", "one.toml"], &[("one.toml", one)]);
    assert_eq!(said.stdout, "one.toml: no mistakes; 1 route, 1 upstream; listens on 0.0.0.0:3000\n");
}

#[test]
fn check_tells_every_mistake_with_its_line() {
    let file = "[listener]\nport = 99999\nprot = 1\n\n[http]\nheader_timeout = \"soon\"\n\n[[routes]]\npath = \"x\"\nupstream = \"nobody\"\n";
    let said = run(&["check", "bad.toml"], &[("bad.toml", file)]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
    for (line, words) in [(2, "99999"), (3, "prot"), (6, "soon"), (9, "path"), (10, "nobody")] {
        let place = format!("bad.toml:{line}");
        let complaint = said.stderr.lines().find(|found| found.contains(&place)).unwrap_or_default();
        assert!(complaint.contains(words), "line {line}: {words}\n{}", said.stderr);
    }
}

#[test]
fn check_opens_the_files_that_are_named_and_makes_none() {
    let directory = TempDir::new().expect("a temporary directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let loose = file("loose.pem", "32 bytes and more that anybody may read");
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let (set, certificates) = (file("set.json", "{}"), file("ca.pem", "no certificate"));
    let config = format!(
        "[auth]\n[[auth.keys]]\nkid = \"a\"\nalgorithm = \"ES256\"\nfile = \"/nowhere/key.pem\"\n\
         [[auth.keys]]\nkid = \"b\"\nalgorithm = \"HS256\"\nfile = \"{loose}\"\n\
         [[auth.issuers]]\nissuer = \"i\"\naudiences = [\"a\"]\njwks_file = \"{set}\"\n\
         [[auth.issuers]]\nissuer = \"j\"\naudiences = [\"a\"]\njwks_url = \"https://j\"\nca_file = \"{certificates}\"\n\
         [redis]\nurls = [\"rediss://h\"]\nca_file = \"/nowhere/redis.pem\"\n\
         [sessions]\nsecret = \"an example of 32 bytes or more: no secret\"\n\
         [accounts]\npostgres_url = \"postgres://h/d\"\npostgres_ca_file = \"/nowhere/postgres.pem\"\n"
    );
    let said = run(&["check", "a.toml"], &[("a.toml", &config)]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
    for (key, what) in [
        ("auth.keys[0].file", "/nowhere/key.pem"),
        ("auth.keys[1].file", "chmod o= "),
        ("auth.issuers[0].jwks_file", "set.json"),
        ("auth.issuers[1]: ca_file", "no certificate"),
        ("redis.ca_file", "/nowhere/redis.pem"),
        ("accounts.postgres_ca_file", "/nowhere/postgres.pem"),
    ] {
        let complaint = said.stderr.lines().find(|line| line.contains(key)).unwrap_or_default();
        assert!(complaint.contains(what), "{key}: {}", said.stderr);
    }
    assert_eq!(said.stderr.lines().count(), 6, "{}", said.stderr);
    let said = run(&["check", "--no-files", "a.toml"], &[("a.toml", &config)]);
    assert_eq!(said.code, Some(0), "{said:?}");
    // The key that is made at the start is not made here, but looked at where it is.
    let data = directory.path().join("data");
    let config = format!("[data]\ndir = \"{}\"\n", data.display());
    let said = run(&["check", "a.toml"], &[("a.toml", &config)]);
    assert_eq!((said.code, data.exists()), (Some(0), false), "{said:?}");
    fs::create_dir(&data).expect("made");
    fs::write(data.join("token-key.pem"), "-----BEGIN PUBLIC KEY-----").expect("written");
    let said = run(&["check", "a.toml"], &[("a.toml", &config)]);
    assert!(said.code == Some(2) && said.stderr.contains("token-key.pem"), "{said:?}");
}

#[test]
fn an_unknown_key_is_named_with_what_was_meant() {
    let said = run(&["check", "bad.toml"], &[("bad.toml", "[listener]\nprot = 1\n")]);
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("listener.prot") && said.stderr.contains("port"), "{}", said.stderr);
    let directory = TempDir::new().expect("a temporary directory");
    let mut command = shardgate(directory.path());
    let output =
        command.arg("check").env("SHARDGATE_LISTENER_PROT", "1").stderr(Stdio::piped()).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("SHARDGATE_LISTENER_PROT"), "{stderr}");
}

#[test]
fn a_configuration_that_is_wrong_or_missing_starts_nothing() {
    for (arguments, files) in [
        (&["run", "--config", "missing.toml"][..], &[][..]),
        (&["run", "--config", "bad.toml"], &[("bad.toml", "[listener]\nport = \"x\"\n")]),
        (&["run"], &[("shardgate.toml", "nonsense\n")]),
        (&["check", "missing.toml"], &[]),
        (&["config", "bad.toml"], &[("bad.toml", "[a]\n")]),
    ] {
        let said = run(arguments, files);
        assert_eq!(said.code, Some(2), "{arguments:?} {said:?}");
        assert!(!said.stderr.is_empty() && said.stdout.is_empty(), "{said:?}");
    }
}

#[test]
fn the_effective_configuration_is_one_that_means_the_same() {
    for file in ["", EXAMPLE, "[listener]\nport = 8080\n[upstreams.ingestion]\ninstances = [\"10.0.0.1:1\"]\n"] {
        let first = run(&["config", "a.toml"], &[("a.toml", file)]);
        assert_eq!((first.code, first.stderr.as_str()), (Some(0), ""), "{first:?}");
        let checked = run(&["check", "--no-files", "b.toml"], &[("b.toml", &first.stdout)]);
        assert_eq!(checked.code, Some(0), "{checked:?}\n{}", first.stdout);
        let second = run(&["config", "b.toml"], &[("b.toml", &first.stdout)]);
        assert_eq!(second.stdout, first.stdout);
        let table: toml::Table = first.stdout.parse().expect("it is TOML");
        assert!(table.contains_key("listener") && table.contains_key("routes"), "{}", first.stdout);
    }
}

#[test]
fn the_schema_is_json_and_the_one_that_ships() {
    let said = run(&["config", "--schema"], &[]);
    assert_eq!(said.code, Some(0));
    let schema: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert!(schema["properties"]["listener"].is_object(), "{schema}");
    let shipped: serde_json::Value =
        serde_json::from_str(include_str!("../../../docs/config.schema.json")).expect("JSON");
    assert_eq!(schema, shipped);
}

#[test]
fn the_demo_prints_its_hints_last_and_answers_every_line_of_them() {
    if !has_tool("curl") {
        return;
    }
    let environment =
        [("SHARDGATE_LISTENER_PORT", "0"), ("SHARDGATE_ADMIN_PORT", "0"), ("SHARDGATE_RUNTIME_SHARDS", "4")];
    let gateway = Gateway::start_command(&["demo"], &environment);
    gateway.log_until("Ctrl-C", Duration::from_secs(10));
    let log = gateway.log();
    let login = log.lines().find(|line| line.starts_with("  TOKEN=")).expect("the demo says how to log in");
    let hints: Vec<_> = log.lines().filter(|line| line.starts_with("  curl ")).map(str::to_owned).collect();
    assert!(hints.len() >= 7, "{hints:?}");
    let mut everything = String::new();
    gateway.log_until("every shard runs the configuration", Duration::from_secs(10));
    let log = gateway.log();
    let (_, behind_hints) = log.split_once("a second Ctrl-C ends it at once.").expect("the demo says how it ends");
    assert_eq!(behind_hints.trim(), "", "what is told of the start stands before the hints");
    for hint in hints {
        let output = Command::new("sh").args(["-c", &format!("{login}\n{hint}")]).output().expect("sh runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !said.is_empty(), "{hint}: {output:?}");
        assert!(!hint.contains("-i") || said.starts_with("HTTP/1.1 20"), "{hint}: {said}");
        everything.push_str(&said);
    }
    for part in [
        "\"user\":{",
        "\"accepted\":true",
        "recoveryProbability",
        "event: done",
        "\"status\":\"healthy\"",
        "shardgate_requests_total{",
    ] {
        assert!(everything.contains(part), "{part} in {everything}");
    }
}

#[test]
fn a_second_gateway_does_not_take_the_data_directory_of_another() {
    let directory = TempDir::new().expect("a temporary directory");
    let config = format!("[data]\ndir = \"{}\"\n", directory.path().display());
    let first = Gateway::start(&config);
    let mut second = Gateway::launch(&config, |_| {});
    assert_eq!(second.wait_exit(SOON), Some(1), "{}", second.log());
    assert!(second.log().contains("another gateway keeps its sessions in "), "{}", second.log());
    // Commands stand beside it, and once it is gone there is another one, however it went.
    let file = directory.path().join("shardgate.toml");
    fs::write(&file, &config).expect("written");
    let listed = run(&["user", "list", "--config", file.to_str().expect("a path")], &[]);
    assert_eq!(listed.code, Some(0), "{listed:?}");
    drop(first);
    let _third = Gateway::start(&config);
}

#[test]
fn what_is_wrong_with_files_ends_a_start_before_anything_is_made() {
    let config = "[[tls.certificates]]\ncert = \"no.pem\"\nkey = \"no.key\"\n[listener]\nport = 0\nkind = \"tls\"\n";
    let directory = TempDir::new().expect("a temporary directory");
    fs::write(directory.path().join("a.toml"), config).expect("written");
    let mut command = shardgate(directory.path());
    let output = command.args(["run", "--config", "a.toml"]).stderr(Stdio::piped()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("no.pem") && !directory.path().join("data").exists(), "{said}");
}

#[test]
fn a_file_without_its_option_is_told_of_it() {
    let said = run(&["run", "gw.toml"], &[("gw.toml", "")]);
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("shardgate run --config gw.toml"), "{said:?}");
}

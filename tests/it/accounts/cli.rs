//! `shardgate migrate` and `shardgate user`: what they print, what they change, and who hears of it.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use shardgate::{
    accounts::Stores,
    auth::revocation::Kind,
    config::{self, Config},
    exchange::ClientNote,
};
use tempfile::TempDir;

use crate::{harness::shardgate, servers::postgres::PostgresServer};

const PASSWORD: &str = "correct horse battery";

/// A directory with a configuration of cheap hashes.
struct House {
    directory: TempDir,
}

impl House {
    fn new(accounts: &str) -> Self {
        let directory = TempDir::new().expect("a directory");
        let text = format!("[accounts]\npassword_memory = \"64KiB\"\npassword_passes = 1\n{accounts}");
        fs::write(directory.path().join("shardgate.toml"), text).expect("written");
        Self { directory }
    }

    /// Runs the binary with this on its standard input.
    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = shardgate(self.directory.path());
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        // Those that ask for nothing may have ended.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
        child.wait_with_output().expect("it ends")
    }

    /// What it prints, if it ends well.
    #[track_caller]
    fn ok(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What it complains, if it fails.
    #[track_caller]
    fn wrong(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    fn users(&self) -> Vec<Value> {
        serde_json::from_str(&self.ok(&["user", "list", "--json"], "")).expect("JSON")
    }

    fn config(&self) -> Config {
        let path = self.directory.path().join("shardgate.toml");
        let text = fs::read_to_string(&path).expect("it is there");
        let mut config = config::resolve(Some((Path::new(&path), &text)), &std::collections::BTreeMap::default())
            .expect("it is right");
        config.data.dir = self.directory.path().join("data");
        config
    }
}

/// From the first user to the last command, wherever they are kept.
fn life_of_a_user(house: &House) {
    assert!(house.ok(&["migrate"], "").contains("up to date"));
    assert!(house.ok(&["user", "list"], "").contains("no users"));
    assert_eq!(house.users(), Vec::<Value>::new());

    let added =
        house.ok(&["user", "add", "Ada@Example.com", "--role", "admin", "--id", "42"], &format!("{PASSWORD}\n"));
    assert_eq!(added, "added 42 ada@example.com (admin)\n");
    house.ok(&["user", "add", "bob@example.com", "--permission", "a:b", "--permission", "c"], PASSWORD);
    let users = house.users();
    assert_eq!(users.len(), 2);
    assert_eq!(
        (&users[0]["id"], &users[0]["role"], &users[0]["disabled"]),
        (&"42".into(), &"admin".into(), &false.into())
    );
    assert_eq!(users[1]["permissions"], serde_json::json!(["a:b", "c"]));
    assert!(users[1]["id"].as_str().is_some_and(|id| id.starts_with("u_")));
    assert!(!house.ok(&["user", "list", "--json"], "").contains("argon2"), "no hash is shown");

    assert!(house.wrong(&["user", "add", "ADA@example.com"], PASSWORD).contains("already"));
    assert!(house.wrong(&["user", "add", "c@d", "--role", "king"], PASSWORD).contains("admin, analyst, service, user"));
    assert!(house.wrong(&["user", "add", "c@d"], "short\n").contains("8 characters"));
    assert!(house.wrong(&["user", "add", "c@d"], "").contains("8 characters"));
    assert!(house.wrong(&["user", "add", "nonsense"], PASSWORD).contains("e-mail address"));
    assert!(house.wrong(&["user", "add", "c@d", "--id", "a b"], PASSWORD).contains("id"));
    assert!(house.wrong(&["user", "disable", "nobody@example.com"], "").contains("there is no user"));

    assert!(house.ok(&["user", "disable", "ada@example.com"], "").contains("disabled 42"));
    assert_eq!(house.users()[0]["disabled"], true);
    assert!(house.ok(&["user", "enable", "42"], "").contains("enabled 42"));
    assert_eq!(house.users()[0]["disabled"], false);
    house.ok(&["user", "roles", "42", "analyst", "--permission", "x"], "");
    let ada = &house.users()[0];
    assert_eq!((&ada["role"], &ada["permissions"]), (&"analyst".into(), &serde_json::json!(["x"])));
    assert!(house.ok(&["user", "passwd", "42"], "another password\n").contains("set the password of 42"));
    let table = house.ok(&["user", "list"], "");
    assert!(table.lines().count() == 3 && table.contains("analyst  active"), "{table}");
}

#[test]
fn users_are_changed_in_the_embedded_store() {
    let house = House::new("");
    life_of_a_user(&house);
    assert!(house.directory.path().join("data/shardgate.db").exists());
}

#[test]
fn users_are_changed_in_postgresql() {
    let Some(server) = PostgresServer::start() else { return };
    let house = House::new(&format!("postgres_url = \"{}\"\npostgres_timeout = \"20s\"\n", server.url()));
    let said = house.wrong(&["user", "list"], "");
    assert!(said.contains("shardgate migrate"), "{said}");
    life_of_a_user(&house);
    assert_eq!(server.sql("SELECT count(*) FROM users"), "2");
}

#[test]
fn a_password_is_never_an_argument() {
    let house = House::new("");
    let output = house.run(&["user", "add", "a@b.c", "--password", PASSWORD], "");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_command_in_another_directory_makes_no_store_there() {
    let house = House::new("");
    for arguments in [&["list"][..], &["disable", "a@b.c"], &["passwd", "a@b.c"]] {
        let said = house.wrong(&[&["user"], arguments].concat(), PASSWORD);
        assert!(
            said.contains("data.dir: there is no shardgate.db in ")
                && said.contains("migrate")
                && !said.contains("--config"),
            "{said}"
        );
    }
    let data = house.directory.path().join("data");
    assert!(!data.exists());
    house.ok(&["user", "add", "a@b.c"], PASSWORD);
    // A gateway ran here, and its store went.
    fs::write(data.join("refresh-key"), "x").expect("written");
    fs::remove_file(data.join("shardgate.db")).expect("it was there");
    assert!(house.wrong(&["user", "add", "b@b.c"], PASSWORD).contains("put the file back"));
    assert!(!data.join("shardgate.db").exists());
}

#[test]
fn a_permission_that_no_token_can_carry_is_refused() {
    let house = House::new("");
    for wrong in ["a b", "a:**", "", "é"] {
        let said = house.wrong(&["user", "add", "a@b.c", "--permission", wrong], PASSWORD);
        assert!(said.contains("is no permission; a permission is up to 128 of"), "{said}");
    }
    house.ok(&["user", "add", "a@b.c", "--permission", "events:*", "--permission", "hub:read"], PASSWORD);
    assert_eq!(house.users()[0]["permissions"], serde_json::json!(["events:*", "hub:read"]));
    assert!(house.wrong(&["user", "roles", "a@b.c", "user", "--permission", "a b"], "").contains("is no permission"));
}

#[test]
fn a_store_that_is_away_says_what_to_do() {
    let house = House::new("");
    fs::write(house.directory.path().join("data"), "no directory").expect("written");
    let said = house.wrong(&["user", "list"], "");
    assert!(said.contains("data.dir"), "{said}");
    let nowhere = House::new("postgres_url = \"postgres://a:secret@127.0.0.1:1/b\"\n");
    let said = nowhere.wrong(&["user", "list"], "");
    assert!(said.contains("accounts.postgres_url") && said.contains("refused"), "{said}");
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn what_ends_sessions_is_heard_by_a_running_instance() {
    let house = House::new("");
    house.ok(&["user", "add", "ada@example.com", "--id", "42"], PASSWORD);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let kept = Stores::open(&house.config()).expect("it opens");
        let note = ClientNote::new(b"curl/8", "127.0.0.1".parse().expect("an address"));
        let mut follower = kept.sessions.follow();
        follower.next().await;
        for arguments in [&["user", "disable", "42"][..], &["user", "passwd", "42"], &["user", "roles", "42", "admin"]]
        {
            let begun = kept.sessions.create("42", &note).await.expect("it begins");
            house.ok(arguments, PASSWORD);
            assert!(kept.sessions.list("42").await.expect("up").is_empty(), "{arguments:?} ends {}", begun.sid);
            let heard = async {
                loop {
                    let heard = follower.next().await;
                    if let Some(entry) = heard.entries.into_iter().find(|entry| entry.kind == Kind::User) {
                        return entry;
                    }
                }
            };
            let entry = tokio::time::timeout(Duration::from_secs(5), heard).await.expect("it is in the log");
            assert_eq!((&*entry.id, &*entry.by), ("42", "cli"));
            assert!(entry.at_ms >= begun.began_ms);
        }
    });
}

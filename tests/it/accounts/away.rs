//! Log-ins while PostgreSQL is killed, hangs and comes back: refusals that say so, nothing lost, no restart of ours.

use std::{path::Path, time::Duration};

use serde_json::Value;
use shardgate::{
    accounts::{
        Accounts, Operation, Outcome, StartError, Stores,
        password::{Cost, Hasher, Scratch},
        store::NewUser,
    },
    auth::{Issuer, OwnKeys},
    config::{self, Config},
    exchange::ClientNote,
};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::{harness::now, servers::postgres::PostgresServer};

fn config(server: &PostgresServer, directory: &Path, timeout: &str) -> Config {
    let text = format!(
        "[data]\ndir = \"{}\"\n[sessions]\nrefresh_grace = \"1ms\"\n[accounts]\npassword_memory = \"64KiB\"\n\
         password_passes = 1\npostgres_timeout = \"{timeout}\"\npostgres_url = \"{}\"\n",
        directory.display(),
        server.url()
    );
    let path = Path::new("shardgate.toml");
    config::resolve(Some((path, &text)), &std::collections::BTreeMap::new()).expect("it is right")
}

fn start(config: &Config) -> Result<Accounts, StartError> {
    let keys = OwnKeys::load(&config.auth, &config.data.dir).expect("keys");
    Accounts::start(config, Issuer::new(&config.auth, &keys))
}

fn note() -> ClientNote {
    ClientNote::new(b"curl/8", "127.0.0.1".parse().expect("an address"))
}

async fn ask(accounts: &Accounts, operation: Operation) -> Result<Value, &'static str> {
    match accounts.handle(operation).await {
        Outcome::Done { body, .. } if body.is_empty() => Ok(Value::Null),
        Outcome::Done { body, .. } => Ok(serde_json::from_slice(&body).expect("JSON")),
        Outcome::Refused { code, .. } => Err(code.name()),
    }
}

async fn login(accounts: &Accounts) -> Result<Value, &'static str> {
    let (email, password) = ("ada@example.com".to_owned(), Zeroizing::new("correct horse".to_owned()));
    ask(accounts, Operation::Login { email, password, note: note() }).await
}

async fn refresh(accounts: &Accounts, tokens: &Value) -> Result<Value, &'static str> {
    let token = Zeroizing::new(tokens["refreshToken"].as_str().expect("a token").to_owned());
    ask(accounts, Operation::Refresh { token, note: note() }).await
}

/// Makes the table and Ada.
async fn furnish(config: &Config) {
    let users = Stores::open(config).expect("it opens").users;
    users.migrate().await.expect("made");
    let hasher = Hasher::new(Cost { memory_kib: 64, passes: 1 }).expect("a cost");
    let password = hasher.hash(&mut Scratch::new(), "correct horse").expect("hashed");
    let (id, email, role) = ("42".to_owned(), "ada@example.com".to_owned(), "user".to_owned());
    users.add(NewUser { id, email, role, permissions: Vec::new(), password }).await.expect("added");
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

#[test]
fn postgresql_killed_and_started_again() {
    let Some(mut server) = PostgresServer::start() else { return };
    let directory = TempDir::new().expect("a directory");
    run(async {
        let config = config(&server, directory.path(), "20s");
        furnish(&config).await;
        let accounts = start(&config).expect("it starts");
        let mut tokens = login(&accounts).await.expect("in");
        for _ in 0..3 {
            server.kill();
            assert_eq!(login(&accounts).await, Err("dependency_unavailable"));
            for _ in 0..2 {
                // Twice past its grace: had the first try spent it, the session would end.
                assert_eq!(refresh(&accounts, &tokens).await, Err("dependency_unavailable"));
            }
            let databases = accounts.databases().await;
            assert_eq!(databases.postgres.expect("it is used").error, Some("refused"));
            assert_eq!(databases.embedded.expect("sessions are there").error, None);
            let user = "42".to_owned();
            assert!(
                ask(&accounts, Operation::Sessions { user, current: None }).await.is_ok(),
                "sessions are elsewhere"
            );
            server.restart();
            tokens = refresh(&accounts, &tokens).await.expect("the session goes on");
            login(&accounts).await.expect("in");
            assert_eq!(accounts.databases().await.postgres.expect("it is used").error, None);
        }
    });
}

#[test]
fn postgresql_hanging() {
    let Some(server) = PostgresServer::start() else { return };
    let directory = TempDir::new().expect("a directory");
    run(async {
        let config = config(&server, directory.path(), "20s");
        furnish(&config).await;
        let hasty = self::config(&server, directory.path(), "500ms");
        let accounts = start(&hasty).expect("it starts");
        let tokens = loop {
            // A busy machine may need more than that to connect.
            if let Ok(tokens) = login(&accounts).await {
                break tokens;
            }
        };
        server.pause();
        let began = now();
        assert_eq!(login(&accounts).await, Err("dependency_unavailable"));
        assert_eq!(refresh(&accounts, &tokens).await, Err("dependency_unavailable"));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let (user, sid) = ("42".to_owned(), tokens["user"]["sid"].as_str().expect("a session").to_owned());
        assert_eq!(ask(&accounts, Operation::Logout { user, sid }).await, Ok(Value::Null), "ending needs no user");
        server.go_on();
        let due = now() + Duration::from_secs(20);
        while login(&accounts).await.is_err() {
            assert!(now() < due, "it is not used again");
        }
        assert_eq!(refresh(&accounts, &tokens).await, Err("refresh_invalid"), "it has ended");
    });
}

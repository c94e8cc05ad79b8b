//! What clients are told, over the embedded store: each test with a directory of its own and cheap hashes.

use std::fs;
use std::net::IpAddr;
use std::rc::Rc;

use serde_json::Value;
use tempfile::TempDir;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::*;
use crate::accounts::password::Cost;
use crate::accounts::store::NewUser;
use crate::auth::OwnKeys;
use crate::config::Config;

const HOME: &str = "127.0.0.1";

struct House {
    directory: TempDir,
    config: Config,
    accounts: Rc<Accounts>,
}

fn issuer(config: &Config) -> Option<Issuer> {
    Issuer::new(&config.auth, &OwnKeys::load(&config.auth, &config.data.dir).expect("keys"))
}

fn start(config: &Config) -> Result<Accounts, StartError> {
    Accounts::start(config, issuer(config))
}

fn house(prepare: impl FnOnce(&mut Config)) -> House {
    let directory = TempDir::new().expect("a directory");
    let mut config = Config::default();
    config.data.dir = directory.path().to_owned();
    config.accounts.password_memory = 64 << 10;
    config.accounts.password_passes = 1;
    config.accounts.password_threads = Some(1);
    prepare(&mut config);
    let accounts = Rc::new(start(&config).expect("it starts"));
    House { directory, config, accounts }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, work)
}

impl House {
    async fn add(&self, id: &str, email: &str, password: &str) {
        self.add_with(id, email, password, Cost { memory_kib: 64, passes: 1 }).await;
    }

    async fn add_with(&self, id: &str, email: &str, password: &str, cost: Cost) {
        let password = Hasher::new(cost).and_then(|hasher| hasher.hash(&mut Scratch::new(), password)).expect("hashed");
        let (id, email, role) = (id.to_owned(), email.to_owned(), "service".to_owned());
        let permissions = vec!["events:write".to_owned()];
        self.accounts.kept.users.add(NewUser { id, email, role, permissions, password }).await.expect("added");
    }

    async fn ask(&self, operation: Operation) -> Result<Value, (&'static str, Option<u32>)> {
        told(self.accounts.handle(operation).await)
    }

    async fn login(&self, email: &str, password: &str) -> Result<Value, (&'static str, Option<u32>)> {
        self.ask(login(email, password, HOME)).await
    }

    fn begin(&self, operation: Operation) -> JoinHandle<Outcome> {
        let accounts = Rc::clone(&self.accounts);
        spawn_local(async move { accounts.handle(operation).await })
    }
}

fn login(email: &str, password: &str, from: &str) -> Operation {
    let password = Zeroizing::new(password.to_owned());
    Operation::Login { email: email.to_owned(), password, note: note(from) }
}

fn note(from: &str) -> ClientNote {
    ClientNote::new(b"curl/8", from.parse::<IpAddr>().expect("an address"))
}

fn refresh(token: &Value) -> Operation {
    let token = token["refreshToken"].as_str().expect("a token").to_owned();
    Operation::Refresh { token: Zeroizing::new(token), note: note(HOME) }
}

fn told(outcome: Outcome) -> Result<Value, (&'static str, Option<u32>)> {
    match outcome {
        Outcome::Done { status: 204, body } => {
            assert!(body.is_empty());
            Ok(Value::Null)
        }
        Outcome::Done { status, body } => {
            assert_eq!(status, 200);
            Ok(serde_json::from_slice(&body).expect("JSON"))
        }
        Outcome::Refused { code, retry_after_s } => Err((code.name(), retry_after_s)),
    }
}

#[test]
fn a_session_from_log_in_to_log_out() {
    run(async {
        let house = house(|_| {});
        house.add("42", "ada@example.com", "correct horse").await;
        let tokens = house.login(" Ada@Example.com", "correct horse").await.expect("the password is right");
        assert_eq!(tokens["expiresIn"], 900);
        assert_eq!(tokens["accessToken"].as_str().expect("a token").split('.').count(), 3);
        let user = &tokens["user"];
        assert_eq!(
            (&user["sub"], &user["email"], &user["role"]),
            (&"42".into(), &"ada@example.com".into(), &"service".into())
        );
        assert_eq!(user["permissions"], serde_json::json!(["events:write", "hub:publish", "hub:read"]));
        assert_eq!(user["exp"].as_u64().expect("a time") - user["iat"].as_u64().expect("a time"), 900);
        let sid = user["sid"].as_str().expect("a session").to_owned();

        let second = house.login("ada@example.com", "correct horse").await.expect("as often as one likes");
        let (current, owner) = (Some(sid.clone()), "42".to_owned());
        let listed = house.ask(Operation::Sessions { user: owner.clone(), current }).await.expect("two");
        let sessions = listed["sessions"].as_array().expect("a list");
        assert_eq!(sessions.len(), 2);
        let of_first = sessions.iter().find(|session| session["sid"] == sid.as_str()).expect("it is there");
        assert_eq!((&of_first["current"], &of_first["userAgent"]), (&true.into(), &"curl/8".into()));

        let renewed = house.ask(refresh(&tokens)).await.expect("renewed");
        assert_eq!(renewed["user"]["sid"], sid.as_str());
        assert_ne!(renewed["accessToken"], tokens["accessToken"]);

        let end = |user: &str, sid: &str| Operation::EndSession { user: user.to_owned(), sid: sid.to_owned() };
        let second_sid = second["user"]["sid"].as_str().expect("a session");
        assert_eq!(house.ask(end("43", second_sid)).await, Err(("not_found", None)), "it is somebody else's");
        assert_eq!(house.ask(end("42", second_sid)).await, Ok(Value::Null));
        assert_eq!(house.ask(refresh(&second)).await, Err(("refresh_invalid", None)));
        assert_eq!(house.ask(Operation::Logout { user: owner.clone(), sid }).await, Ok(Value::Null));
        assert_eq!(house.ask(refresh(&renewed)).await, Err(("refresh_invalid", None)));

        let third = house.login("ada@example.com", "correct horse").await.expect("again");
        assert_eq!(house.ask(Operation::LogoutAll { user: owner }).await, Ok(Value::Null));
        assert_eq!(house.ask(refresh(&third)).await, Err(("refresh_invalid", None)));
    });
}

#[test]
fn who_may_not_come_in_is_told_nothing() {
    run(async {
        let house = house(|_| {});
        house.add("1", "ada@example.com", "correct horse").await;
        house.add("2", "bob@example.com", "correct horse").await;
        house.accounts.kept.users.change("2", UserChange::Disabled(true)).await.expect("locked out");
        let wrong = Err(("invalid_credentials", None));
        assert_eq!(house.login("ada@example.com", "wrong").await, wrong);
        assert_eq!(house.login("nobody@example.com", "correct horse").await, wrong);
        assert_eq!(house.login("bob@example.com", "correct horse").await, wrong);
        assert_eq!(house.login("no address@", "correct horse").await, wrong);
        house
            .accounts
            .kept
            .users
            .change("1", UserChange::Password(StoredHash::new("no hash".to_owned())))
            .await
            .expect("broken");
        assert_eq!(house.login("ada@example.com", "correct horse").await, wrong);
    });
}

#[test]
fn who_can_have_no_token_begins_no_session_and_spends_no_token() {
    run(async {
        let house = house(|config| config.sessions.per_user_max = 1);
        house.add("42", "ada@example.com", "correct horse").await;
        let tokens = house.login("ada@example.com", "correct horse").await.expect("the password is right");
        let list = async || {
            let current = None;
            house.ask(Operation::Sessions { user: "42".to_owned(), current }).await.expect("a list")["sessions"].clone()
        };
        let before = list().await;
        let permissions = |count: usize| (0..count).map(|number| format!("permission:{number}:{}", "x".repeat(50)));
        let role = "service".to_owned();
        let change = UserChange::Role { role: role.clone(), permissions: permissions(200).collect() };
        house.accounts.kept.users.change("42", change).await.expect("changed");
        let unavailable = Err(("dependency_unavailable", None));
        assert_eq!(house.login("ada@example.com", "correct horse").await, unavailable);
        assert_eq!(house.ask(refresh(&tokens)).await, unavailable);
        assert_eq!(list().await, before, "the session that there is was not crowded out, and was not renewed");
        let change = UserChange::Role { role, permissions: Vec::new() };
        house.accounts.kept.users.change("42", change).await.expect("changed");
        house.ask(refresh(&tokens)).await.expect("it is good");
    });
}

#[test]
fn a_user_that_was_locked_out_is_written_to_the_log_once() {
    run(async {
        let house = house(|_| {});
        house.add("42", "ada@example.com", "correct horse").await;
        let tokens = house.login("ada@example.com", "correct horse").await.expect("the password is right");
        house.accounts.kept.users.change("42", UserChange::Disabled(true)).await.expect("locked out");
        for _ in 0..5 {
            assert_eq!(house.ask(refresh(&tokens)).await, Err(("refresh_invalid", None)));
        }
        assert_eq!(house.accounts.follow().next().await.entries.len(), 1);
    });
}

#[test]
fn guesses_slow_down_where_they_come_from() {
    run(async {
        let house = house(|_| {});
        house.add("1", "ada@example.com", "correct horse").await;
        for email in ["ada@example.com", "nobody@example.com"] {
            for _ in 0..5 {
                assert_eq!(house.login(email, "wrong").await, Err(("invalid_credentials", None)));
            }
            assert_eq!(
                house.login(email, "wrong").await,
                Err(("rate_limited", Some(1))),
                "whether there is such a user or not"
            );
        }
        assert_eq!(house.login("ADA@example.com", "correct horse").await, Err(("rate_limited", Some(1))));
        let elsewhere = login("ada@example.com", "correct horse", "127.0.0.2");
        assert!(house.ask(elsewhere).await.is_ok(), "nobody locks her out");
    });
}

#[test]
fn guesses_at_once_are_checked_as_if_they_came_in_turn() {
    run(async {
        let house = house(|config| config.accounts.password_queue = 1000);
        house.add("1", "ada@example.com", "correct horse").await;
        let guesses: Vec<_> = (0..100).map(|_| house.begin(login("ada@example.com", "wrong", HOME))).collect();
        let mut outcomes = Vec::new();
        for guess in guesses {
            outcomes.push(told(guess.await.expect("no panic")).expect_err("it is wrong"));
        }
        let count = |code| outcomes.iter().filter(|(found, _)| *found == code).count();
        assert_eq!((count("invalid_credentials"), count("rate_limited")), (5, 95));
    });
}

#[test]
fn a_thousand_log_ins_at_once_are_let_in_or_told_when_to_come() {
    run(async {
        let house = house(|_| {});
        house.add("1", "ada@example.com", "correct horse").await;
        let tokens = house.login("ada@example.com", "correct horse").await.expect("in");
        let address = |n: usize| format!("192.0.2.{}", n % 10);
        let logins: Vec<_> =
            (0..1000).map(|n| house.begin(login("ada@example.com", "correct horse", &address(n)))).collect();
        // While they wait for hashes, a log-out does not.
        let sid = tokens["user"]["sid"].as_str().expect("a session").to_owned();
        let logout = house.begin(Operation::Logout { user: "1".to_owned(), sid });
        assert_eq!(told(logout.await.expect("no panic")), Ok(Value::Null));
        assert!(!logins.iter().all(JoinHandle::is_finished), "it was not the last");
        let (mut let_in, mut put_off) = (0, 0);
        for login in logins {
            match told(login.await.expect("no panic")) {
                Ok(_) => let_in += 1,
                Err(("overloaded", Some(1..=60))) => put_off += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(let_in + put_off, 1000);
        assert!(let_in >= 56, "nearly all of the 64 places were used: {let_in}");
    });
}

#[test]
fn an_address_that_floods_keeps_nobody_else_out() {
    run(async {
        let house = house(|config| config.accounts.password_queue = 32);
        house.add("1", "ada@example.com", "correct horse").await;
        let flood: Vec<_> =
            (0..90).map(|n| house.begin(login(&format!("{n}@example.com"), "guess", "192.0.2.66"))).collect();
        // All of it has come before she does.
        tokio::task::yield_now().await;
        assert!(house.login("ada@example.com", "correct horse").await.is_ok());
        let mut put_off = 0;
        for guess in flood {
            match told(guess.await.expect("no panic")) {
                Err(("invalid_credentials", None)) => {}
                Err(("overloaded", Some(1..=60))) => put_off += 1,
                other => panic!("{other:?}"),
            }
        }
        // Three quarters of the places, and those that were free again before the last had come.
        assert!((90 - 24 - 5..=90 - 24).contains(&put_off), "{put_off}");
    });
}

#[test]
fn a_log_in_whose_client_has_gone_makes_room() {
    run(async {
        let house = house(|config| config.accounts.password_queue = 2);
        house.add("1", "ada@example.com", "correct horse").await;
        let logins: Vec<_> = (0..8).map(|_| house.begin(login("ada@example.com", "correct horse", HOME))).collect();
        tokio::task::yield_now().await;
        for login in &logins {
            login.abort();
        }
        for login in logins {
            assert!(login.await.is_err() || house.accounts.pool.waiting() <= 2);
        }
        assert!(house.login("ada@example.com", "correct horse").await.is_ok());
        assert_eq!(house.accounts.pool.waiting(), 0);
        assert!(house.accounts.slowdown.with(|slowdown| slowdown.is_empty()), "none is under way any more");
    });
}

#[test]
fn a_hash_of_another_cost_is_made_anew() {
    run(async {
        let house = house(|config| config.accounts.password_memory = 128 << 10);
        house.add("1", "ada@example.com", "correct horse").await;
        assert!(house.login("ada@example.com", "correct horse").await.is_ok());
        let stored = house.accounts.kept.users.by_id("1").await.expect("up").expect("there").password.expect("a hash");
        assert!(stored.as_str().starts_with("$argon2id$v=19$m=128,t=1,p=1$"), "{}", stored.as_str());
        assert!(house.login("ada@example.com", "correct horse").await.is_ok());
    });
}

#[test]
fn a_store_that_is_away_spends_no_token_and_comes_back() {
    run(async {
        let house = house(|_| {});
        house.add("1", "ada@example.com", "correct horse").await;
        let tokens = house.login("ada@example.com", "correct horse").await.expect("in");
        let file = house.directory.path().join(crate::embedded::FILE_NAME);
        let aside = house.directory.path().join("aside");
        fs::rename(&file, &aside).expect("moved");
        let away = Err(("dependency_unavailable", None));
        assert_eq!(house.login("ada@example.com", "correct horse").await, away);
        assert_eq!(house.ask(refresh(&tokens)).await, away);
        assert_eq!(house.ask(Operation::LogoutAll { user: "1".to_owned() }).await, away);
        assert_eq!(house.accounts.databases().await.embedded.expect("it is used").error, Some("missing"));
        fs::rename(&aside, &file).expect("moved back");
        assert_eq!(house.accounts.databases().await.embedded.expect("it is used").error, None);
        assert!(house.ask(refresh(&tokens)).await.is_ok());
        assert!(house.accounts.slowdown.with(|slowdown| slowdown.is_empty()), "an outage is no wrong password");
    });
}

#[test]
fn a_user_who_was_locked_out_elsewhere_renews_nothing() {
    run(async {
        let house = house(|_| {});
        house.add("1", "ada@example.com", "correct horse").await;
        let tokens = house.login("ada@example.com", "correct horse").await.expect("in");
        // By SQL, say: nothing was revoked.
        house.accounts.kept.users.change("1", UserChange::Disabled(true)).await.expect("locked out");
        assert_eq!(house.ask(refresh(&tokens)).await, Err(("refresh_invalid", None)));
        assert!(house.accounts.kept.sessions.list("1").await.expect("up").is_empty(), "and the sessions have ended");
        house.accounts.kept.users.change("1", UserChange::Disabled(false)).await.expect("let in");
        assert_eq!(house.ask(refresh(&tokens)).await, Err(("refresh_invalid", None)));
    });
}

#[test]
fn a_reload_changes_roles_and_keys_are_kept_on_disk() {
    run(async {
        let mut house = house(|_| {});
        house.add("1", "ada@example.com", "correct horse").await;
        house.config.roles.get_mut("service").expect("it is there").permissions = vec!["new".to_owned()];
        house.accounts.adopt(&house.config, issuer(&house.config));
        let tokens = house.login("ada@example.com", "correct horse").await.expect("in");
        assert_eq!(tokens["user"]["permissions"], serde_json::json!(["events:write", "new"]));
        house.accounts = Rc::new(start(&house.config).expect("it starts again"));
        assert!(house.ask(refresh(&tokens)).await.is_ok(), "by the same key");
    });
}

#[test]
fn nothing_secret_is_shown() {
    run(async {
        let house = house(|_| {});
        house.add("1", "ada@example.com", "correct horse").await;
        let operation = login("ada@example.com", "correct horse", HOME);
        let before = format!("{operation:?}");
        let outcome = house.accounts.handle(operation).await;
        let shown = format!("{before} {outcome:?} {:?}", house.accounts);
        let tokens = told(outcome).expect("in");
        for secret in
            [tokens["accessToken"].as_str(), tokens["refreshToken"].as_str(), Some("correct horse"), Some("argon2id$")]
        {
            assert!(!shown.contains(secret.expect("a text")), "{shown}");
        }
    });
}

//! The store of users: the same tests against the embedded one and PostgreSQL, and what each does when it is away.

use std::{path::Path, time::Duration};

use shardgate::{
    accounts::{
        password::StoredHash,
        store::{self, NewUser, Postgres, StoreFailure, UserChange, UserStore},
        user::User,
    },
    config::Secret,
    embedded::Embedded,
};
use tempfile::TempDir;

use crate::{
    harness::{now, until},
    servers::postgres::PostgresServer,
};

static COMPONENTS: [shardgate::embedded::Component; 1] = [store::COMPONENT];

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn embedded(directory: &Path) -> UserStore {
    UserStore::Embedded(Embedded::start(directory, &COMPONENTS).expect("threads"))
}

fn postgres(url: &str, patience: Duration) -> UserStore {
    let postgres = Postgres::new(&Secret::from(url.to_owned()), None, 3, patience).expect("a URL");
    UserStore::Postgres(Box::new(postgres))
}

fn new_user(id: &str, email: &str) -> NewUser {
    NewUser {
        id: id.to_owned(),
        email: email.to_owned(),
        role: "user".to_owned(),
        permissions: vec!["events:write".to_owned(), "odd \"one\"".to_owned()],
        password: StoredHash::new("a hash".to_owned()),
    }
}

async fn find(store: &UserStore, id: &str) -> User {
    store.by_id(id).await.expect("up").expect("there")
}

/// What holds for every store.
async fn suite(store: &UserStore) {
    store.migrate().await.expect("made");
    store.migrate().await.expect("made once");
    store.add(new_user("u_1", "ada@example.com")).await.expect("added");
    store.add(new_user("u_2", "bob@example.com")).await.expect("added");
    store.add(new_user("u_3", "äda@example.com")).await.expect("added");

    let ada = store.by_email("ada@example.com").await.expect("up").expect("there");
    assert_eq!((ada.id.as_str(), ada.role.as_str(), ada.is_disabled), ("u_1", "user", false));
    assert_eq!(ada.permissions, ["events:write", "odd \"one\""]);
    assert_eq!(ada.password, Some(StoredHash::new("a hash".to_owned())));
    assert!(ada.created_ms > 1_700_000_000_000 && ada.created_ms == ada.updated_ms);
    assert_eq!(find(store, "u_1").await, ada);
    assert_eq!(store.by_email("äda@example.com").await.expect("up").map(|user| user.id).as_deref(), Some("u_3"));
    for nobody in ["", "nobody@example.com", "' OR ''='", "ada@example.com\0"] {
        assert_eq!(store.by_email(nobody).await.unwrap_or_default(), None, "{nobody:?}");
    }
    assert_eq!(store.by_id("u_4").await, Ok(None));

    for taken in [new_user("u_1", "new@example.com"), new_user("u_9", "ada@example.com")] {
        assert_eq!(store.add(taken).await, Err(StoreFailure::Taken));
    }
    let page = |after, limit| async move {
        let users = store.list(after, limit).await.expect("up");
        users.into_iter().map(|user| user.email).collect::<Vec<_>>()
    };
    assert_eq!(page("", 2).await, ["ada@example.com", "bob@example.com"]);
    assert_eq!(page("bob@example.com", 2).await, ["äda@example.com"]);

    let role = UserChange::Role { role: "admin".to_owned(), permissions: vec![] };
    assert_eq!(store.change("u_1", role).await, Ok(true));
    assert_eq!(store.change("u_1", UserChange::Disabled(true)).await, Ok(true));
    assert_eq!(store.change("u_1", UserChange::Password(StoredHash::new("another".to_owned()))).await, Ok(true));
    let changed = find(store, "u_1").await;
    assert_eq!((changed.role.as_str(), changed.permissions.len(), changed.is_disabled), ("admin", 0, true));
    assert_eq!(changed.password, Some(StoredHash::new("another".to_owned())));
    assert_eq!(changed.created_ms, ada.created_ms);
    assert!(changed.updated_ms > ada.updated_ms);
    assert_eq!(store.change("u_1", UserChange::Disabled(false)).await, Ok(true));
    assert_eq!(store.change("u_4", UserChange::Disabled(true)).await, Ok(false), "nobody");
    assert_eq!(find(store, "u_2").await.role, "user", "others are as they were");

    let rehash = |old: &str| UserChange::Rehash {
        old: StoredHash::new(old.to_owned()),
        new: StoredHash::new("anew".to_owned()),
    };
    assert_eq!(store.change("u_1", rehash("a hash")).await, Ok(false), "it was changed meanwhile");
    assert_eq!(store.change("u_1", rehash("another")).await, Ok(true));
    assert_eq!(find(store, "u_1").await.password, Some(StoredHash::new("anew".to_owned())));

    store.probe().await.expect("up");
    let health = store.health();
    assert!(health.away.is_none() && health.checked_at > Duration::ZERO, "{health:?}");
}

#[test]
fn the_embedded_store_keeps_users() {
    let directory = TempDir::new().expect("a directory");
    run(async {
        let store = embedded(directory.path());
        suite(&store).await;
        drop(store);
        assert_eq!(find(&embedded(directory.path()), "u_1").await.role, "admin", "they stay");
    });
}

#[test]
fn postgresql_keeps_users() {
    let Some(server) = PostgresServer::start() else { return };
    run(suite(&postgres(&server.url(), Duration::from_secs(10))));
    let row = server.sql("SELECT id, email, role, disabled FROM users WHERE id = 'u_2'");
    assert_eq!(row, "u_2|bob@example.com|user|f", "other services read it as they did");
}

#[test]
fn a_table_of_users_that_is_there_is_completed() {
    let Some(server) = PostgresServer::start() else { return };
    server.sql("CREATE TABLE users (id text PRIMARY KEY, email text NOT NULL, name text)");
    server.sql("INSERT INTO users VALUES ('42', 'Ada@Example.com', 'Ada')");
    run(async {
        let store = postgres(&server.url(), Duration::from_secs(10));
        store.migrate().await.expect("made");
        let ada = store.by_email("ada@example.com").await.expect("up").expect("however it is written");
        assert_eq!((ada.id.as_str(), ada.role.as_str(), ada.password), ("42", "user", None));
    });
    assert_eq!(server.sql("SELECT name FROM users"), "Ada");
}

#[test]
fn a_server_that_was_not_prepared_says_what_to_do() {
    let Some(server) = PostgresServer::start() else { return };
    run(async {
        let store = postgres(&server.url(), Duration::from_secs(10));
        assert_eq!(store.by_id("u_1").await, Err(StoreFailure::Away("not_migrated")));
        assert_eq!(store.health().away, Some("not_migrated"));
        let wrong = server.url().replace("test%20only", "wrong");
        assert_eq!(
            postgres(&wrong, Duration::from_secs(10)).by_id("u_1").await,
            Err(StoreFailure::Away("authentication"))
        );
        let nowhere = server.url().replace("/postgres", "/nowhere");
        let store = postgres(&nowhere, Duration::from_secs(10));
        assert_eq!(store.by_id("u_1").await, Err(StoreFailure::Away("no_such_database")));
        let required = format!("{}?sslmode=require", server.url());
        let store = postgres(&required, Duration::from_secs(10));
        assert_eq!(store.by_id("u_1").await, Err(StoreFailure::Away("tls")), "the server has none");
    });
}

#[test]
fn a_server_that_is_killed_is_told_and_used_again() {
    let Some(mut server) = PostgresServer::start() else { return };
    run(async {
        let store = postgres(&server.url(), Duration::from_secs(10));
        store.migrate().await.expect("made");
        store.add(new_user("u_1", "ada@example.com")).await.expect("added");
        // All connections of the pool are open, and none is good afterwards.
        let (one, two, three) = tokio::join!(store.by_id("u_1"), store.by_id("u_1"), store.by_id("u_1"));
        assert!([one, two, three].iter().all(Result::is_ok));
        server.kill();
        assert_eq!(store.by_id("u_1").await, Err(StoreFailure::Away("refused")));
        assert_eq!(store.health().away, Some("refused"));
        server.restart();
        assert_eq!(find(&store, "u_1").await.email, "ada@example.com", "at once, and nothing is lost");
        assert_eq!(store.health().away, None);
        // And when nobody asked in between.
        server.kill();
        server.restart();
        assert_eq!(find(&store, "u_1").await.email, "ada@example.com");
    });
}

#[test]
fn a_server_that_hangs_is_waited_for_so_long_and_no_longer() {
    let Some(server) = PostgresServer::start() else { return };
    run(async {
        let patience = Duration::from_millis(500);
        let store = postgres(&server.url(), patience);
        // Slow machines connect slowly.
        while store.migrate().await.is_err() {}
        server.pause();
        let began = now();
        assert_eq!(store.by_id("u_1").await, Err(StoreFailure::Away("timeout")), "on a connection that is open");
        assert_eq!(store.by_id("u_1").await, Err(StoreFailure::Away("timeout")), "on one that would be opened");
        assert!(began.elapsed() < 6 * patience, "{:?}", began.elapsed());
        server.go_on();
    });
    run(async {
        let store = postgres(&server.url(), Duration::from_secs(10));
        assert_eq!(store.by_id("u_1").await, Ok(None));
    });
}

#[test]
fn more_requests_than_connections_take_turns_and_too_many_are_refused() {
    let Some(server) = PostgresServer::start() else { return };
    run(async {
        let store = std::rc::Rc::new(postgres(&server.url(), Duration::from_secs(20)));
        store.migrate().await.expect("made");
        let local = tokio::task::LocalSet::new();
        let outcomes = local.run_until(async {
            let tasks: Vec<_> = (0..2000)
                .map(|_| {
                    let store = std::rc::Rc::clone(&store);
                    tokio::task::spawn_local(async move { store.by_id("u_1").await })
                })
                .collect();
            let mut outcomes = Vec::new();
            for task in tasks {
                outcomes.push(task.await.expect("no panic"));
            }
            outcomes
        });
        let outcomes = outcomes.await;
        let count =
            |wanted: &Result<Option<User>, StoreFailure>| outcomes.iter().filter(|&found| found == wanted).count();
        assert_eq!((count(&Ok(None)), count(&Err(StoreFailure::Busy))), (1024, 976));
        let open = server.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shardgate'");
        assert!(open.parse::<u32>().expect("a number") <= 3, "{open}");
    });
}

#[test]
fn tls_is_used_with_the_certificate_that_is_given_and_no_other() {
    let Some(mut server) = PostgresServer::start() else { return };
    if crate::servers::tls::certificate(server.directory(), "server").is_none() {
        return;
    }
    let path = |name: &str| server.directory().join(name);
    let (key, certificate) = (path("server.key"), path("server.crt"));
    server.give("server.key");
    server.give("server.crt");
    server.set(&[
        "ssl=on",
        &format!("ssl_key_file={}", key.display()),
        &format!("ssl_cert_file={}", certificate.display()),
    ]);
    server.kill();
    server.restart();
    let url = Secret::from(format!("{}?sslmode=require", server.url()));
    run(async {
        let with = |ca: Option<&Path>| {
            UserStore::Postgres(Box::new(Postgres::new(&url, ca, 2, Duration::from_secs(10)).expect("a URL")))
        };
        let store = with(Some(&certificate));
        store.migrate().await.expect("made");
        assert_eq!(server.sql("SELECT count(*) FROM pg_stat_ssl WHERE ssl AND pid <> pg_backend_pid()"), "1");
        assert_eq!(with(None).by_id("u_1").await, Err(StoreFailure::Away("tls")), "nobody vouches for it");
    });
    // As managed databases hand it out, and as a file that became a variable holds it.
    let url = format!("{}?sslmode=verify-full&sslrootcert={}\n", server.url(), certificate.display());
    let migrate = |url: &str| {
        let mut command = crate::harness::shardgate(server.directory());
        let command = command.arg("migrate").env("SHARDGATE_ACCOUNTS_POSTGRES_URL", url);
        command.env("SHARDGATE_ACCOUNTS_POSTGRES_TIMEOUT", "20s").output().expect("it runs").status.code()
    };
    assert_eq!(migrate(&url), Some(0));
    assert_eq!(migrate(&url.replace("verify-full", "verify-ca")), Some(0));
    assert_eq!(migrate(&url.replace("127.0.0.1", "localhost")), Some(1), "it is another name's certificate");
    assert_eq!(migrate(&url.replace("verify-full", "allow")), Some(2));
    let url = Secret::from(format!("{}?sslmode=require", server.url()));
    let unreadable = Postgres::new(&url, Some(Path::new("/nowhere/ca.pem")), 2, Duration::from_secs(1));
    assert!(unreadable.expect_err("no file").to_string().contains("/nowhere/ca.pem"));
    until(Duration::from_secs(1), "the server is well", || Some(server.sql("SELECT 1")));
}

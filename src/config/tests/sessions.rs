//! Redis, sessions, and what happens when revocations cannot be read.

use super::*;
use expect_test::expect;

const SECRET: &str = "an example of 32 bytes or more: no secret";

#[test]
fn servers_of_redis() {
    check(
        "[redis]\nurls = [\"http://h\", \"redis://:hunter2@h:x\", 7]\nmode = \"ring\"\ntimeout = \"0s\"\n",
        &expect![[r#"
            shardgate.toml:2: redis.urls[0] is ***; its scheme is neither redis:// nor rediss://; write "redis://host:6379", or "rediss://user:password@host:6379/0" with TLS and a password; what is special in a password is written as %40
            shardgate.toml:2: redis.urls[1] is ***; its port is no number from 1 to 65535; write "redis://host:6379", or "rediss://user:password@host:6379/0" with TLS and a password; what is special in a password is written as %40
            shardgate.toml:2: redis.urls[2] is ***; it is text: "redis://host:port", or "rediss://user:password@host:port/database"
            shardgate.toml:3: redis.mode is "ring"; it is one of "single", "sentinel", "cluster"
            shardgate.toml:4: redis.timeout is "0s"; write a duration from "1ms" to "1d", like "250ms", "10s" or "5m""#]],
    );
    check(
        "[redis]\nurls = \"redis://:hunter2@h\"\n",
        &expect![[
            r#"shardgate.toml:2: redis.urls is ***; it is a list of texts: "redis://host:port", or "rediss://user:password@host:port/database""#
        ]],
    );
    let with = |urls: &str, mode: &str| {
        format!("[redis]\nurls = {urls}\nmode = \"{mode}\"\nmaster = \"\"\n[sessions]\nsecret = \"{SECRET}\"\n")
    };
    check(
        &with("[\"redis://a:hunter2@h\", \"rediss://a:hunter2@i\"]", "sentinel"),
        &expect![[
            r#"shardgate.toml:2: redis.urls has "rediss://a:***@i:6379/0" beside "redis://a:***@h:6379/0"; all of them have the same scheme, user, password and database"#
        ]],
    );
    check(
        &with("[\"redis://h\", \"redis://i\"]", "single"),
        &expect![[r#"
        shardgate.toml:2: redis.urls has 2 servers, and redis.mode is "single"; name one, or set redis.mode to "sentinel" or "cluster"
        shardgate.toml:4: redis.master is empty; it is a name, like "mymaster""#]],
    );
    check(
        &with("[\"redis://h/1\"]", "cluster"),
        &expect![[r#"
        shardgate.toml:2: redis.urls has database 1, and redis.mode is "cluster"; a cluster has database 0 only
        shardgate.toml:4: redis.master is empty; it is a name, like "mymaster""#]],
    );
    check_with(
        "",
        &[("SHARDGATE_ACCOUNTS_POSTGRES_URL", "postgres://a:hunter2@h:x/d")],
        &expect![[
            r#"environment: SHARDGATE_ACCOUNTS_POSTGRES_URL is ***; its port is no number from 1 to 65535; write "postgres://user:password@host:5432/database?sslmode=verify-full"; escape special characters of a password by percent signs"#
        ]],
    );
    check_with(
        "",
        &[("SHARDGATE_REDIS_URLS", "redis://a:hunter2@")],
        &expect![[
            r#"environment: SHARDGATE_REDIS_URLS is ***; it names no host; write "redis://host:6379", or "rediss://user:password@host:6379/0" with TLS and a password; what is special in a password is written as %40"#
        ]],
    );
}

#[test]
fn sessions() {
    check(
        "[sessions]\nlifetime = \"5s\"\nrefresh_grace = \"1m\"\nper_user_max = 0\nsecret = \"hunter2\"\nold_secret = 7\n",
        &expect![[r#"
            shardgate.toml:2: sessions.lifetime is "5s"; it is not less than sessions.refresh_grace, which is "1m"
            shardgate.toml:4: sessions.per_user_max is 0; it is a whole number from 1 to 1000
            shardgate.toml:5: sessions.secret has 7 bytes; a secret has 32 bytes or more: openssl rand -base64 32
            shardgate.toml:6: sessions.old_secret is no text; it is a secret text: 32 bytes or more"#]],
    );
    check(
        "[sessions]\nstore = \"redis\"\n",
        &expect![[r#"
        shardgate.toml:1: sessions.secret is missing, and sessions are kept in Redis; instances that share sessions share the secret of their refresh tokens: write secret = "${SESSIONS_SECRET}", 32 bytes or more (openssl rand -base64 32)
        shardgate.toml:2: sessions.store is "redis", and there is no Redis; say where it is: redis.urls = ["redis://host:6379"]"#]],
    );
    check(
        "[redis]\nurls = [\"redis://h\"]\n",
        &expect![[
            r#"shardgate.toml: sessions.secret is missing, and sessions are kept in Redis; instances that share sessions share the secret of their refresh tokens: write secret = "${SESSIONS_SECRET}", 32 bytes or more (openssl rand -base64 32)"#
        ]],
    );
    check(
        "[redis]\nurls = [\"redis://h\"]\n[sessions]\nstore = \"embedded\"\n",
        &expect![[r#"
        warning: shardgate.toml:2: redis.urls is given, and tokens are signed with a key that this instance makes for itself: others that share the Redis answer them with 401; give all of them the same [[auth.keys]]
        warning: shardgate.toml:2: redis.urls is given, and users are kept in this instance's own file: others that share the Redis do not have them; name accounts.postgres_url, or take the tokens of an issuer (accounts.enabled = false)
    "#]],
    );
    check(
        "[revocation]\nfail = \"guarded\"\nmax_staleness = \"10ms\"\n",
        &expect![[r#"
            shardgate.toml:2: revocation.fail is "guarded"; it is one of "closed", "open"
            shardgate.toml:3: revocation.max_staleness is "10ms"; write a duration from "1s" to "1d", like "10s" or "5m""#]],
    );
}

#[test]
fn where_sessions_are_kept() {
    let store = |text: &str| good(text).session_store();
    assert_eq!(store(""), SessionStore::Embedded);
    let redis = format!("[redis]\nurls = [\"redis://h\"]\n[sessions]\nsecret = \"{SECRET}\"\n");
    assert_eq!(store(&redis), SessionStore::Redis);
    assert_eq!(store(&format!("{redis}store = \"embedded\"\n")), SessionStore::Embedded);
}

#[test]
fn what_is_closed_when_revocations_cannot_be_read() {
    let closes = |text: &str| [false, true].map(|is_guarded| good(text).revocation.closes(is_guarded));
    assert_eq!(closes(""), [false, true]);
    assert_eq!(closes("[revocation]\nfail = \"open\"\n"), [false, false]);
    assert_eq!(closes("[revocation]\nfail = \"closed\"\n"), [true, true]);
}

#[test]
fn passwords_show_nowhere() {
    let text = format!(
        "[redis]\nurls = [\"rediss://gate:${{REDIS_PASSWORD}}@h\"]\nsentinel_password = \"${{REDIS_PASSWORD}}\"\n\
         mode = \"sentinel\"\n[sessions]\nsecret = \"{SECRET}\"\nold_secret = \"{SECRET}\"\n"
    );
    let config = resolve(Some((Path::new("f"), &text)), &env(&[("REDIS_PASSWORD", "hunter2")])).expect("it is right");
    let [shown, debugged] = [config.to_toml(), format!("{config:?}")];
    assert!(shown.contains("rediss://gate:***@h:6379/0"), "{shown}");
    for text in [shown, debugged] {
        assert!(!text.contains("hunter2") && !text.contains(SECRET), "{text}");
    }
}

//! Redis killed, paused, emptied; several instances; sentinels and a cluster.

use std::process::Command;

use super::server::{ask, until};
use super::*;
use crate::bus::redis::{self as bus, Outage, Script, Status};
use crate::shard::clock;

/// An instance on this server, with the server's own clock.
fn instance(redis: &Redis) -> Sessions {
    instance_that_keeps(redis, KEPT)
}

/// One that keeps revocations so long.
pub(super) fn instance_that_keeps(redis: &Redis, kept: Duration) -> Sessions {
    let keys = Keyring::new(b"0123456789abcdef0123456789abcdef", []);
    Sessions::redis(redis.clone(), keys, RULES, kept)
}

fn connect(server: &RedisServer) -> Redis {
    Redis::start(address(&server.url()))
}

/// Durable before it answers.
const DURABLE: [&str; 6] = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""];

async fn until_status(redis: &Redis, mut is_so: impl FnMut(&Status) -> bool) -> Status {
    let mut redis = redis.clone();
    let look = async {
        loop {
            let status = redis.status();
            if is_so(&status) {
                return status;
            }
            redis.changed().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look).await.expect("the status changes")
}

/// Goes on until something is heard that is as wanted.
pub(super) async fn hear(follower: &mut Follower, mut is_so: impl FnMut(&LogUpdate) -> bool) -> LogUpdate {
    let look = async {
        loop {
            let heard = follower.next().await;
            if is_so(&heard) {
                return heard;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look).await.expect("it is heard")
}

fn has(heard: &LogUpdate, id: &str) -> bool {
    heard.entries.iter().any(|entry| &*entry.id == id)
}

#[test]
fn a_spent_token_stays_spent_when_redis_is_killed() {
    run(async {
        let Some(mut server) = RedisServer::start_with(&DURABLE) else { return };
        let redis = connect(&server);
        let sessions = instance(&redis);
        let first = sessions.create("42", &note("")).await.expect("it begins").refresh_token;
        let second = sessions.refresh(first.reveal(), &note("")).await.expect("it is renewed").refresh_token;
        server.kill();
        let refused = sessions.refresh(second.reveal(), &note("")).await.expect_err("nobody is there");
        assert_eq!(refused, RefreshError::Failed(SessionFailure::Away));
        let status = until_status(&redis, |status| !status.is_up()).await;
        assert!(matches!(status.away, Some(Outage::Refused | Outage::Broken)), "{status:?}");
        let began = clock::now();
        assert_eq!(sessions.list("42").await, Err(SessionFailure::Away));
        assert!(clock::now().since(began) < Duration::from_millis(100), "nobody waits for what is known to be away");
        server.restart();
        until_status(&redis, Status::is_up).await;
        let again = sessions.refresh(first.reveal(), &note("")).await.expect("within the grace");
        assert_eq!(again.refresh_token, second);
        sessions.refresh(second.reveal(), &note("")).await.expect("the session goes on");
    });
}

#[test]
fn a_redis_that_hangs_is_away_and_nobody_waits_long() {
    run(async {
        let Some(server) = RedisServer::start() else { return };
        let redis = connect(&server);
        let sessions = instance(&redis);
        sessions.create("42", &note("")).await.expect("it begins");
        let mut follower = sessions.follow();
        let fresh = hear(&mut follower, |heard| heard.freshness != Freshness::NEVER).await.freshness;
        server.pause();
        let began = clock::now();
        assert_eq!(sessions.list("42").await, Err(SessionFailure::Away));
        assert!(clock::now().since(began) < Duration::from_secs(3), "the timeout is a second");
        assert_eq!(until_status(&redis, |status| !status.is_up()).await.away, Some(Outage::Timeout));
        let paused = hear(&mut follower, |heard| heard.entries.is_empty()).await;
        server.go_on();
        until_status(&redis, Status::is_up).await;
        assert_eq!(sessions.list("42").await.expect("it answers").len(), 1);
        hear(&mut follower, |heard| heard.freshness.looked_at() > paused.freshness.looked_at().max(fresh.looked_at()))
            .await;
    });
}

#[test]
fn what_was_refused_while_redis_hung_is_not_done_when_it_goes_on() {
    run(async {
        let Some(server) = RedisServer::start() else { return };
        let redis = connect(&server);
        let sessions = Sessions { rules: SessionRules { grace_ms: 0, ..RULES }, ..instance(&redis) };
        let first = sessions.create("42", &note("")).await.expect("it begins");
        let before = server.ask(&["GET", "session:42"]);
        server.pause();
        // All are on their way before the first is given up.
        let (note, token) = (note(""), first.refresh_token.reveal());
        let refused = tokio::join!(
            sessions.refresh(token, &note),
            sessions.create("42", &note),
            sessions.end("42", &first.sid, "42"),
            sessions.kick("42", "42"),
        );
        assert_eq!(refused.0.expect_err("it hangs"), RefreshError::Failed(SessionFailure::Away));
        assert_eq!(refused.1.expect_err("it hangs"), SessionFailure::Away);
        assert_eq!((refused.2, refused.3), (Err(SessionFailure::Away), Err(SessionFailure::Away)));
        // Its sockets are read to their ends before they are closed, so what is in them is done by then, if ever.
        server.go_on();
        until(|| {
            let clients = server.ask(&["CLIENT", "LIST", "TYPE", "normal"]);
            // Whoever asks, and the new connection.
            (clients.lines().filter(|line| !line.is_empty()).count() <= 2).then_some(())
        });
        until_status(&redis, Status::is_up).await;
        assert_eq!(server.ask(&["GET", "session:42"]), before, "nothing was changed");
        assert_eq!(server.ask(&["EXISTS", redis::LOG]), "0", "nothing was revoked");
        sessions.refresh(token, &note).await.expect("it was never spent");
    });
}

#[test]
fn a_script_that_is_come_to_too_late_changes_nothing() {
    run(async {
        let Some(server) = RedisServer::start() else { return };
        let redis = connect(&server);
        let sessions = instance(&redis);
        let first = sessions.create("42", &note("")).await.expect("it begins");
        let before = server.ask(&["GET", "session:42"]);
        let time = server.ask(&["TIME"]);
        let now_ms: u64 = time.lines().next().expect("seconds").parse::<u64>().expect("a number") * 1_000;
        let record = Script::new(include_str!("../record.lua"));
        let append = Script::new(include_str!("../append.lua"));
        let until_ms = |ahead_s: u64| (now_ms - 1_000 + ahead_s * 1_000).to_string();
        let renew = async |until_ms: &str| {
            let arguments = [until_ms, "refresh", "", "1000000", &first.sid, "0", "0", "", "127.0.0.1"];
            redis.run::<Vec<String>>(&record, &["session:42"], &arguments).await
        };
        let revoke = async |until_ms: &str| {
            let arguments = [until_ms, "session", &first.sid, "", "42", "42", "900000", "1"];
            redis.run::<String>(&append, &[redis::LOG, redis::UNFINISHED], &arguments).await
        };
        assert!(matches!(renew(&until_ms(0)).await, Err(bus::RedisFailure::Late)));
        assert!(matches!(revoke(&until_ms(0)).await, Err(bus::RedisFailure::Late)));
        assert_eq!((server.ask(&["GET", "session:42"]), server.ask(&["EXISTS", redis::LOG])), (before, "0".into()));
        assert!(redis.status().is_up(), "the connection is good");
        renew(&until_ms(60)).await.expect("in time");
        revoke(&until_ms(60)).await.expect("in time");
        // How the server is asked for the time that the limit is told by.
        let two = Script::new("return { ARGV[1], ARGV[2] }");
        let ask = async |until: Instant| redis.run_in_time::<[String; 2]>(&two, &["session:42"], &["x"], until).await;
        let [until_ms, argument] = ask(Instant::NEVER).await.expect("it answers");
        let ahead_ms = until_ms.parse::<u64>().expect("a number") - now_ms;
        assert!(argument == "x" && (500..60_000).contains(&ahead_ms), "{ahead_ms}");
        // Nor longer than whoever asked has patience; the connection's own is 875 ms.
        let [until_ms, _] = ask(clock::now() + Duration::from_millis(200)).await.expect("it answers");
        let time = server.ask(&["TIME"]);
        let time: Vec<u64> = time.lines().map(|part| part.parse().expect("a number")).collect();
        assert!(until_ms.parse::<u64>().expect("a number") <= time[0] * 1_000 + time[1] / 1_000 + 200);
        assert!(matches!(ask(clock::now()).await, Err(bus::RedisFailure::Late)));
    });
}

#[test]
fn what_one_instance_revokes_another_hears_at_once() {
    run(async {
        let Some(server) = RedisServer::start() else { return };
        let (here, there) = (instance(&connect(&server)), instance(&connect(&server)));
        let mut follower = there.follow();
        hear(&mut follower, |heard| heard.is_replay).await;
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let begun = here.create("42", &note("")).await.expect("it begins");
            let began = clock::now();
            here.end("42", &begun.sid, "42").await.expect("it ends");
            let heard = hear(&mut follower, |heard| has(heard, &begun.sid)).await;
            assert!(!heard.is_replay && heard.clock_ahead_ms.abs() < 1_000, "{heard:?}");
            slowest = slowest.max(clock::now().since(began));
            let refused = there.refresh(begun.refresh_token.reveal(), &note("")).await;
            assert_eq!(refused.expect_err("it has ended"), RefreshError::Invalid);
        }
        assert!(slowest < Duration::from_millis(900), "{slowest:?} is as long as a quiet log is waited for");
    });
}

#[test]
fn a_redis_that_comes_back_empty_is_told_what_was_revoked() {
    run(async {
        // It keeps nothing, so a kill empties it.
        let Some(mut server) = RedisServer::start() else { return };
        let redis = connect(&server);
        let sessions = instance(&redis);
        let mut follower = sessions.follow();
        hear(&mut follower, |heard| heard.is_replay).await;
        let begun = sessions.create("42", &note("")).await.expect("it begins");
        sessions.end("42", &begun.sid, "42").await.expect("it ends");
        sessions.end_all("43", "cli").await.expect("they end");
        hear(&mut follower, |heard| has(heard, "43")).await;
        server.kill();
        let away = hear(&mut follower, |heard| heard.entries.is_empty()).await;
        let later = hear(&mut follower, |_| true).await;
        assert_eq!(away.freshness, later.freshness, "nothing is fresh while it is away");
        server.restart();
        let back = hear(&mut follower, |heard| heard.is_replay).await;
        assert!(back.is_lossy, "{back:?}");
        // An instance that starts now hears of both.
        let mut another = instance(&connect(&server)).follow();
        let heard = hear(&mut another, |heard| heard.is_replay).await;
        assert!(has(&heard, &begun.sid) && has(&heard, "43"), "{heard:?}");

        // The same under a connection that stays.
        hear(&mut follower, |heard| heard.freshness.looked_at() > back.freshness.looked_at()).await;
        server.ask(&["FLUSHALL"]);
        assert!(hear(&mut follower, |heard| heard.is_replay).await.is_lossy);
        assert_eq!(server.ask(&["XLEN", redis::LOG]), "2");
    });
}

#[test]
fn what_a_dead_instance_left_half_done_is_finished() {
    run(async {
        let Some(server) = RedisServer::start() else { return };
        let redis = connect(&server);
        let sessions = instance(&redis);
        let begun = sessions.create("42", &note("")).await.expect("it begins");
        let other = sessions.create("42", &note("")).await.expect("it begins");
        // As an instance does that dies after the first of its two steps.
        let at_ms = begun.began_ms.to_string();
        server.ask(&[
            "XADD",
            redis::LOG,
            "*",
            "kind",
            "session",
            "id",
            &begun.sid,
            "at",
            &at_ms,
            "by",
            "42",
            "user",
            "42",
        ]);
        let mut follower = sessions.follow();
        hear(&mut follower, |heard| has(heard, &begun.sid)).await;
        let left = async {
            while sessions.list("42").await.expect("it answers").len() > 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), left).await.expect("it goes from the record");
        assert_eq!(sessions.list("42").await.expect("it answers")[0].sid, other.sid);

        // Also without a restart: whoever renews it is refused.
        let at_ms = other.began_ms.to_string();
        server.ask(&["XADD", redis::LOG, "*", "kind", "user", "id", "42", "at", &at_ms, "by", "42"]);
        hear(&mut follower, |heard| has(heard, "42")).await;
        let refused = sessions.refresh(other.refresh_token.reveal(), &note("")).await;
        assert_eq!(refused.expect_err("it was revoked"), RefreshError::Invalid);
        assert_eq!(server.ask(&["EXISTS", "session:42"]), "0");
    });
}

#[test]
fn the_record_is_as_the_contract_says() {
    run(async {
        let Some(server) = RedisServer::start() else { return };
        let sessions = instance(&connect(&server));
        let begun = sessions.create("42", &note("curl/8 \"é\"")).await.expect("it begins");
        let record: serde_json::Value = serde_json::from_str(&server.ask(&["GET", "session:42"])).expect("JSON");
        assert_eq!(
            record,
            serde_json::json!({ "userId": "42", "sessions": [{
                "sid": begun.sid, "createdAt": begun.began_ms, "lastSeen": begun.began_ms, "generation": 0,
                "rotatedAt": begun.began_ms, "userAgent": "curl/8 \"é\"", "address": "127.0.0.1",
            }] })
        );
        let left: u64 = server.ask(&["PTTL", "session:42"]).parse().expect("a number");
        assert!((RULES.lifetime_ms - 60_000..=RULES.lifetime_ms).contains(&left), "{left}");
        sessions.end_all("42", "ops").await.expect("they end");
        let entry = server.ask(&["XRANGE", redis::LOG, "-", "+"]);
        let fields: Vec<&str> = entry.lines().skip(1).collect();
        assert_eq!(
            [&fields[..5], &fields[6..]].concat(),
            ["kind", "user", "id", "42", "at", "by", "ops", "user", "42"]
        );
        // What others wrote is no session of ours, and no panic either.
        server.ask(&["SET", "session:42", "not JSON"]);
        assert_eq!(sessions.list("42").await, Err(SessionFailure::Away));
    });
}

#[test]
fn sentinels_name_the_server() {
    run(async {
        let Some(server) = RedisServer::start() else { return };
        let Some(sentinel) = RedisServer::start_sentinel("mymaster", server.port()) else { return };
        let mut config = config_of(&format!("urls = [\"{}\"]\nmode = \"sentinel\"", sentinel.url()));
        let redis = Redis::start(Address::new(&config).expect("it is right"));
        let sessions = instance(&redis);
        let begun = sessions.create("42", &note("")).await.expect("it begins");
        sessions.end("42", &begun.sid, "42").await.expect("it ends");
        let mut follower = sessions.follow();
        assert!(has(&hear(&mut follower, |heard| heard.is_replay).await, &begun.sid));
        assert_eq!(server.ask(&["XLEN", redis::LOG]), "1", "it is the server that has the log");
        config.master = "another".to_owned();
        let redis = Redis::start(Address::new(&config).expect("it is right"));
        let status = until_status(&redis, |status| status.away != Some(Outage::Unknown)).await;
        assert!(!status.is_up(), "{status:?}");
    });
}

#[test]
fn a_cluster_holds_them() {
    run(async {
        let start =
            || RedisServer::start_with(&["--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
        let nodes: Option<Vec<_>> = (0..3).map(|_| start()).collect();
        let Some(nodes) = nodes else { return };
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let created =
            Command::new("redis-cli").args(["--cluster", "create"]).args(&addresses).arg("--cluster-yes").output();
        let created = created.expect("redis-cli runs");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
        until(|| nodes.iter().all(|node| node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok")).then_some(()));
        let config = config_of(&format!("urls = [\"{}\"]\nmode = \"cluster\"", nodes[0].url()));
        let redis = Redis::start(Address::new(&config).expect("it is right"));
        let sessions = instance(&redis);
        let mut follower = sessions.follow();
        hear(&mut follower, |heard| heard.is_replay && heard.freshness != Freshness::NEVER).await;
        // Users of several slots.
        for user in ["1", "2", "3", "4", "5"] {
            let begun = sessions.create(user, &note("")).await.expect("it begins");
            let renewed = sessions.refresh(begun.refresh_token.reveal(), &note("")).await.expect("it is renewed");
            sessions.end(user, &begun.sid, user).await.expect("it ends");
            hear(&mut follower, |heard| has(heard, &begun.sid)).await;
            let refused = sessions.refresh(renewed.refresh_token.reveal(), &note("")).await;
            assert_eq!(refused.expect_err("it has ended"), RefreshError::Invalid);
            sessions.create(user, &note("")).await.expect("it begins");
        }
        // One that stopped half way, with its mark beside the log.
        let begun = sessions.create("1", &note("")).await.expect("it begins");
        let append = Script::new(include_str!("../append.lua"));
        let arguments = ["", "session", &begun.sid, "", "1", "1", "900000", "1"];
        redis.run::<String>(&append, &[redis::LOG, redis::UNFINISHED], &arguments).await.expect("it is written");
        let marks = async || redis.ask::<u64>(::redis::cmd("ZCARD").arg(redis::UNFINISHED)).await.expect("it answers");
        assert_eq!(marks().await, 1);
        let finished = async {
            while marks().await > 0 {
                follower.next().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), finished).await.expect("it is finished");
        let refused = sessions.refresh(begun.refresh_token.reveal(), &note("")).await;
        assert_eq!(refused.expect_err("it has ended"), RefreshError::Invalid);
        let keys = nodes.iter().map(|node| ask(node.port(), &["DBSIZE"]).expect("it answers"));
        assert_eq!(keys.map(|count| count.parse::<u32>().expect("a number")).sum::<u32>(), 6, "five users and the log");
    });
}

/// Runs openssl in the directory.
fn openssl(directory: &TempDir, arguments: &str) {
    let made =
        Command::new("openssl").args(arguments.split(' ')).current_dir(directory.path()).output().expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn the_servers_certificate_is_checked() {
    let directory = TempDir::new().expect("a directory");
    if !server::is_installed() {
        return;
    }
    for name in ["ca", "other"] {
        openssl(
            &directory,
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            ),
        );
    }
    openssl(
        &directory,
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=redis -addext subjectAltName=IP:127.0.0.1 -keyout redis.key -out redis.csr",
    );
    openssl(
        &directory,
        "x509 -req -in redis.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy -out redis.pem",
    );
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    run(async {
        let port = server::free_port();
        let [port_text, certificate, key, ca] =
            [port.to_string(), path("redis.pem"), path("redis.key"), path("ca.pem")];
        let tls = ["--tls-port", &port_text, "--tls-cert-file", &certificate, "--tls-key-file", &key];
        let other = ["--tls-ca-cert-file", &ca, "--tls-auth-clients", "no", "--requirepass", "se:cr@t", "--save", ""];
        // It asks for the password on its plain port too.
        let arguments = [&tls[..], &other[..]].concat();
        let Some(_server) = RedisServer::start_with(&arguments) else { return };
        let config = |ca: &str, password: &str| {
            config_of(&format!("urls = [\"rediss://:{password}@127.0.0.1:{port}\"]\nca_file = \"{}\"", path(ca)))
        };
        let good = config("ca.pem", "se%3Acr%40t");
        let redis = Redis::start(Address::new(&good).expect("it is right"));
        let sessions = instance(&redis);
        let begun = sessions.create("42", &note("")).await.expect("it begins");
        sessions.end("42", &begun.sid, "42").await.expect("it ends");
        assert!(has(&hear(&mut sessions.follow(), |heard| heard.is_replay).await, &begun.sid));
        assert!(!format!("{good:?} {redis:?} {sessions:?}").contains("cr@t"), "no password shows");
        let away = async |config: config::Redis| {
            let redis = Redis::start(Address::new(&config).expect("it is right"));
            until_status(&redis, |status| status.away != Some(Outage::Unknown)).await.away
        };
        assert_eq!(away(config("other.pem", "se%3Acr%40t")).await, Some(Outage::Broken), "signed by somebody else");
        assert_eq!(away(config("ca.pem", "wrong")).await, Some(Outage::Login));
        let missing = Address::new(&config("missing.pem", "x")).expect_err("no such file");
        assert!(missing.to_string().starts_with("redis.ca_file"), "{missing}");
    });
}

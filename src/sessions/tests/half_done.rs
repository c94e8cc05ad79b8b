//! Endings in Redis that stop between their two steps: the log can be written, and records cannot be changed; or whoever
//! began is gone.

use super::redis_away::{hear, instance_that_keeps};
use super::server::until;
use super::*;
use crate::bus::redis::Script;

/// A server and a user of it whose rights can be taken. When it starts again they are given again.
struct House {
    server: RedisServer,
}

const RIGHTS: [&str; 13] = [
    "--user",
    "gate",
    "on",
    ">pass",
    "~*",
    "&*",
    "+@all",
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--save",
    "",
];

impl House {
    fn build(further: &[&str]) -> Option<Self> {
        Some(Self { server: RedisServer::start_with(&[&RIGHTS[..], further].concat())? })
    }

    fn redis(&self) -> Redis {
        Redis::start(address(&format!("redis://gate:pass@127.0.0.1:{}", self.server.port())))
    }

    fn instance(&self, kept: Duration) -> Sessions {
        instance_that_keeps(&self.redis(), kept)
    }

    /// From now on records can be looked at only; the log can be written.
    fn close_records(&self) {
        assert_eq!(self.server.ask(&["ACL", "SETUSER", "gate", "-set", "-del"]), "OK");
    }

    fn open_records(&self) {
        assert_eq!(self.server.ask(&["ACL", "SETUSER", "gate", "+set", "+del"]), "OK");
    }

    fn record(&self, user: &str) -> String {
        self.server.ask(&["GET", &format!("session:{user}")])
    }

    fn log(&self) -> String {
        self.server.ask(&["XRANGE", redis::LOG, "-", "+"])
    }

    fn entries(&self) -> String {
        self.server.ask(&["XLEN", redis::LOG])
    }

    fn unfinished(&self) -> String {
        self.server.ask(&["ZCARD", redis::UNFINISHED])
    }
}

/// Follows the log as a process does, for as long as the test runs; what it was at the start has been read.
async fn follow(sessions: &Sessions) -> tokio::task::JoinHandle<()> {
    let mut follower = sessions.follow();
    hear(&mut follower, |heard| heard.is_replay).await;
    tokio::task::spawn_local(async move {
        loop {
            follower.next().await;
        }
    })
}

/// Waits while others go on.
async fn wait_for(mut is_so: impl FnMut() -> bool) {
    let look = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look).await.expect("it comes to be so");
}

async fn begin(sessions: &Sessions) -> NewSession {
    sessions.create("42", &note("")).await.expect("it begins")
}

async fn renew(sessions: &Sessions, begun: &NewSession) -> RefreshError {
    sessions.refresh(begun.refresh_token.reveal(), &note("")).await.expect_err("it has ended")
}

#[test]
fn what_is_half_done_counts_as_done_and_is_when_it_is_asked_for_again() {
    run(async {
        let Some(house) = House::build(&[]) else { return };
        // It does not follow the log, so that nothing is finished unasked.
        let sessions = house.instance(KEPT);
        let (ended, one, two) = (begin(&sessions).await, begin(&sessions).await, begin(&sessions).await);
        house.close_records();
        for _ in 0..3 {
            assert_eq!(sessions.end("42", &ended.sid, "42").await, Err(SessionFailure::Away));
        }
        assert_eq!(sessions.end_own("42", &ended.sid, "42").await, Err(SessionFailure::Away));
        assert!(house.record("42").contains(&ended.sid) && house.log().contains(&ended.sid));
        assert_ne!(house.unfinished(), "0");
        let listed = sessions.list("42").await.expect("it may look").into_iter().map(|session| session.sid);
        assert_eq!(listed.collect::<HashSet<_>>(), [one.sid.clone(), two.sid.clone()].into());
        assert_eq!(renew(&sessions, &ended).await, RefreshError::Failed(SessionFailure::Away));

        // It takes nobody's place, although the record still has it.
        house.open_records();
        let entries = house.entries();
        let three = begin(&sessions).await;
        let listed = sessions.list("42").await.expect("it answers").into_iter().map(|session| session.sid);
        assert_eq!(listed.collect::<HashSet<_>>(), [&one, &two, &three].map(|session| session.sid.clone()).into());
        assert_eq!(house.entries(), entries, "nobody was crowded out");

        house.close_records();
        assert_eq!(sessions.end_own("42", &one.sid, "42").await, Err(SessionFailure::Away));
        house.open_records();
        assert_eq!(renew(&sessions, &one).await, RefreshError::Invalid);
        assert!(!house.record("42").contains(&one.sid), "and that finishes it");

        house.close_records();
        assert_eq!(sessions.end_own("42", &two.sid, "42").await, Err(SessionFailure::Away));
        assert_eq!(sessions.end_again("42", Some(&two.sid), two.began_ms).await, Err(SessionFailure::Away));
        assert_eq!(sessions.end_again("42", None, two.began_ms).await, Ok(false), "not all were to end");
        house.open_records();
        assert_eq!(sessions.end_own("42", &two.sid, "42").await, Ok(true));
        assert_eq!(sessions.end_again("42", Some(&two.sid), two.began_ms).await, Ok(true), "however often");
        assert!(!house.record("42").contains(&two.sid));

        house.close_records();
        assert_eq!(sessions.end_all("42", "42").await, Err(SessionFailure::Away));
        assert_eq!(
            (sessions.list("42").await, sessions.end_left("42", "42").await),
            (Ok(vec![]), Err(SessionFailure::Away))
        );
        assert!(house.record("42").contains(&three.sid));
        house.open_records();
        let entries = house.entries();
        assert_eq!(sessions.end_left("42", "42").await, Ok(()));
        assert_eq!((house.record("42"), house.entries()), (String::new(), entries), "finished, and not revoked again");
        assert_eq!(sessions.end_again("42", None, three.began_ms).await, Ok(true));
        let four = begin(&sessions).await;
        assert_eq!(sessions.end_again("42", None, four.began_ms).await, Ok(false), "it began after");
    });
}

#[test]
fn another_instance_finishes_what_is_half_done_and_nothing_of_it_is_forgotten_before() {
    run(async {
        // Entries go at once when they may.
        let Some(house) = House::build(&["--stream-node-max-entries", "1"]) else { return };
        let kept = Duration::from_secs(2);
        let (here, there) = (house.instance(kept), house.instance(kept));
        let (ended, thief, crowded) = (begin(&here).await, begin(&here).await, begin(&here).await);
        let third = here.refresh(thief.refresh_token.reveal(), &note("")).await.expect("it is renewed").refresh_token;
        let third = here.refresh(third.reveal(), &note("")).await.expect("it is renewed").refresh_token;
        let latest = here.refresh(crowded.refresh_token.reveal(), &note("")).await.expect("it is renewed");
        let other = here.create("43", &note("")).await.expect("it begins");
        let following = follow(&there).await;
        house.close_records();
        assert_eq!(here.create("42", &note("")).await.expect_err("none goes for it"), SessionFailure::Away);
        assert!(house.log().contains(&ended.sid), "it is the one that was not seen for longest");
        assert_eq!(renew(&here, &thief).await, RefreshError::Failed(SessionFailure::Away), "it was used before");
        assert_eq!(here.end("42", &crowded.sid, "42").await, Err(SessionFailure::Away));
        assert_eq!(here.end_all("43", "43").await, Err(SessionFailure::Away));
        drop(here);

        // Long after no access token can be affected by it.
        let seconds = || house.server.ask(&["TIME"]).lines().next().and_then(|text| text.parse::<u64>().ok());
        let began = seconds();
        wait_for(|| seconds() > began.map(|began| began + 5)).await;
        // Times of the log have these two digits too, now and then.
        let half_done = [&ended.sid, &thief.sid, &crowded.sid, "id\n43\n"];
        for _ in 0..5 {
            there.kick("44", "44").await.expect("it is written");
        }
        let log = house.log();
        assert!(half_done.iter().all(|id| log.contains(*id)), "{log}");
        assert_eq!(house.unfinished(), "4");
        assert_eq!(there.list("42").await, Ok(Vec::new()));
        assert_eq!(there.list("43").await, Ok(Vec::new()));

        // One that starts now knows it too, with whatever right.
        let late = house.instance(kept);
        let mut follower = late.follow();
        assert!(hear(&mut follower, |heard| heard.is_replay).await.entries.len() >= 4);
        assert_eq!(late.list("42").await, Ok(Vec::new()));
        house.open_records();
        let expect_refused = async |token: &RefreshToken| {
            let refused = late.refresh(token.reveal(), &note("")).await;
            assert_eq!(refused.expect_err("it has ended"), RefreshError::Invalid);
        };
        expect_refused(&ended.refresh_token).await;
        expect_refused(&third).await;
        // The others nobody asks for.
        wait_for(|| house.unfinished() == "0").await;
        expect_refused(&latest.refresh_token).await;
        expect_refused(&other.refresh_token).await;
        assert_eq!((house.record("42"), house.record("43")), (String::new(), String::new()));
        assert!(!following.is_finished());
        wait_for(|| seconds() > began.map(|began| began + 9)).await;
        for _ in 0..5 {
            there.kick("44", "44").await.expect("it is written");
        }
        let log = house.log();
        assert!(!half_done.iter().any(|id| log.contains(*id)), "what is done goes with its time: {log}");
    });
}

#[test]
fn marks_that_cannot_be_read_hold_up_nothing() {
    run(async {
        let Some(house) = House::build(&[]) else { return };
        let add = "for _, mark in ipairs({ '\\255', '', 'session', 'session s_1 x 42 a', 'kick 42 1 42 a' }) do \
                   redis.call('ZADD', KEYS[1], 1, mark) end return 'added'";
        assert_eq!(house.server.ask(&["EVAL", add, "1", redis::UNFINISHED]), "added");
        let sessions = house.instance(KEPT);
        let following = follow(&sessions).await;
        let ended = begin(&sessions).await;
        house.close_records();
        assert_eq!(sessions.end("42", &ended.sid, "42").await, Err(SessionFailure::Away));
        house.open_records();
        wait_for(|| !house.record("42").contains(&ended.sid)).await;
        following.abort();
    });
}

#[test]
fn what_a_killed_redis_left_half_done_is_finished_when_it_is_back() {
    run(async {
        let Some(mut house) = House::build(&[]) else { return };
        let (here, there) = (house.instance(KEPT), house.instance(KEPT));
        let (one, two) = (begin(&here).await, begin(&here).await);
        let following = [follow(&here).await, follow(&there).await];
        house.close_records();
        assert_eq!(here.end("42", &one.sid, "42").await, Err(SessionFailure::Away));
        house.server.kill();
        assert_eq!(here.end("42", &two.sid, "42").await, Err(SessionFailure::Away));
        house.server.restart();
        wait_for(|| house.unfinished() == "0" && !house.record("42").contains(&one.sid)).await;
        assert!(house.record("42").contains(&two.sid), "of this one nothing is in the log");
        assert!(following.iter().all(|task| !task.is_finished()));
    });
}

#[test]
fn what_an_older_version_left_half_done_is_finished_though_it_fails_at_first() {
    run(async {
        let Some(house) = House::build(&[]) else { return };
        let sessions = house.instance(KEPT);
        let begun = begin(&sessions).await;
        // Without a mark.
        let at_ms = begun.began_ms.to_string();
        let whom = ["kind", "session", "id", &begun.sid, "at", &at_ms, "by", "42", "user", "42"];
        house.server.ask(&[&["XADD", redis::LOG, "*"], &whom[..]].concat());
        house.close_records();
        let mut follower = sessions.follow();
        for _ in 0..3 {
            follower.next().await;
        }
        assert!(house.record("42").contains(&begun.sid));
        house.open_records();
        let going_on = async {
            loop {
                follower.next().await;
            }
        };
        tokio::select! {
            () = going_on => {}
            () = wait_for(|| house.record("42").is_empty()) => {}
        }
    });
}

#[test]
fn the_log_keeps_what_is_unfinished_and_does_not_grow_for_it() {
    run(async {
        let Some(house) = House::build(&["--stream-node-max-entries", "1"]) else { return };
        let redis = house.redis();
        let append = Script::new(include_str!("../append.lua"));
        let write = async |kind: &str, id: &str, user: &str, marked: &str| {
            let arguments = ["", kind, id, "1700000000000", "who did it", user, "1", marked];
            redis.run::<String>(&append, &[redis::LOG, redis::UNFINISHED], &arguments).await.expect("it is written")
        };
        for number in 0..7 {
            assert_eq!(write("session", &format!("s_{number}"), "42", "1").await, "1700000000000");
            // As several instances do that write back.
            write("session", &format!("s_{number}"), "42", "1").await;
        }
        house.server.ask(&["ZADD", redis::UNFINISHED, "0", "nothing"]);
        assert_eq!(house.unfinished(), "8");
        for _ in 0..100 {
            write("kick", "44", "", "0").await;
            let log = house.log();
            assert!((0..7).all(|number| log.contains(&format!("s_{number}"))), "{log}");
        }
        let entries: usize = house.entries().parse().expect("a number");
        assert!(entries < 60, "{entries} are no more than lately came");
        assert_eq!(house.unfinished(), "7", "what is no mark is not kept");
        let marks = house.server.ask(&["ZRANGE", redis::UNFINISHED, "0", "-1"]);
        assert!(marks.lines().all(|mark| mark.ends_with(" 1700000000000 42 who did it")), "{marks}");
        let mark = marks.lines().next().expect("there are some");
        assert_eq!(known::LogEntry::of_mark(mark).and_then(|entry| entry.mark()).as_deref(), Some(mark));
        // A key of another type is somebody's mistake, and no half of an ending.
        house.server.ask(&["SET", redis::UNFINISHED, "text"]);
        let entries = house.entries();
        let sessions = house.instance(KEPT);
        assert_eq!(sessions.end("42", "s_8", "42").await, Err(SessionFailure::Away));
        assert_eq!(house.entries(), entries);
    });
}

#[test]
fn amid_a_hundred_log_outs_redis_is_killed_and_none_stays_half_done() {
    run(async {
        let Some(house) = House::build(&[]) else { return };
        let (here, there) = (house.instance(KEPT), house.instance(KEPT));
        let following = [follow(&here).await, follow(&there).await];
        let mut begun = Vec::new();
        for user in 0..100 {
            let user = format!("u{user}");
            begun.push((here.create(&user, &note("")).await.expect("it begins"), user));
        }
        // At whatever step each of them is then.
        let killer = tokio::task::spawn_blocking(move || {
            let mut house = house;
            until(|| (house.entries().parse().is_ok_and(|entries: u32| entries >= 5)).then_some(()));
            house.server.kill();
            house.server.restart();
            house
        });
        let ends = begun.chunks(10).map(|part| {
            let (sessions, part) = (here.clone(), part.to_vec());
            tokio::task::spawn_local(async move {
                let mut ended = Vec::new();
                for (begun, user) in part {
                    ended.push(sessions.end(&user, &begun.sid, &user).await.is_ok());
                }
                ended
            })
        });
        let ends: Vec<_> = ends.collect();
        let mut ended = Vec::new();
        for end in ends {
            ended.extend(end.await.expect("it does not panic"));
        }
        let house = killer.await.expect("it is back");
        wait_for(|| house.unfinished() == "0").await;
        let log = house.log();
        let mut only_begun = 0;
        for ((begun, user), is_told) in begun.iter().zip(ended) {
            let is_in_log = log.contains(&begun.sid);
            assert!(is_in_log || !is_told, "{user} was told that it is done");
            assert_eq!(house.record(user).is_empty(), is_in_log, "{user} is half done");
            only_begun += usize::from(is_in_log && !is_told);
        }
        eprintln!("{only_begun} were finished without an answer");
        assert!(following.iter().all(|task| !task.is_finished()));
    });
}

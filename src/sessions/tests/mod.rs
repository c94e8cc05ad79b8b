//! One suite against both stores.

mod half_done;
mod histories;
mod killed;
mod redis_away;

use std::cell::Cell;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::auth::revocation::Kind;
use crate::bus::redis::{Address, Redis};
use crate::bus::redis_server::{self as server, RedisServer};
use crate::config;

const RULES: SessionRules = SessionRules { lifetime_ms: 1_000_000, grace_ms: 10_000, per_user_max: 3 };
const KEPT: Duration = Duration::from_mins(15);
const START_MS: u64 = 1_700_000_000_000;

/// Sessions over a store of their own, and the store's clock.
struct Bed {
    sessions: Sessions,
    now_ms: Rc<Cell<u64>>,
    server: Option<RedisServer>,
    _directory: Option<TempDir>,
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

fn bed(store: impl FnOnce(Clock) -> Store, server: Option<RedisServer>, directory: Option<TempDir>) -> Bed {
    let now_ms = Rc::new(Cell::new(START_MS));
    let clock = Rc::clone(&now_ms);
    let keys = Rc::new(Keyring::new(b"0123456789abcdef0123456789abcdef", []));
    let sessions = Sessions { store: store(Rc::new(move || Some(clock.get()))), keys, rules: RULES };
    Bed { sessions, now_ms, server, _directory: directory }
}

fn embedded_bed() -> Bed {
    let directory = TempDir::new().expect("a directory");
    let store = Embedded::start(directory.path(), &[COMPONENT]).expect("threads start");
    bed(|clock| Store::Embedded(embedded::EmbeddedSessions::new(store, KEPT, clock)), None, Some(directory))
}

/// Within a runtime. `None` where there is no redis-server.
fn redis_bed() -> Option<Bed> {
    let server = RedisServer::start()?;
    let store = redis_store(&server);
    Some(bed(store, Some(server), None))
}

fn redis_store(server: &RedisServer) -> impl FnOnce(Clock) -> Store + use<> {
    let redis = Redis::start(address(&server.url()));
    |clock| Store::Redis(Box::new(redis::RedisSessions::new(redis, KEPT, clock)))
}

fn address(url: &str) -> Address {
    Address::new(&config_of(&format!("urls = [\"{url}\"]"))).expect("it is right")
}

fn config_of(redis: &str) -> config::Redis {
    let text = format!("[redis]\n{redis}\n[sessions]\nsecret = \"0123456789abcdef0123456789abcdef\"\n");
    let path = std::path::Path::new("shardgate.toml");
    config::resolve(Some((path, &text)), &std::collections::BTreeMap::new()).expect("it is right").redis
}

impl Bed {
    fn pass(&self, millis: u64) {
        self.now_ms.set(self.now_ms.get() + millis);
    }

    async fn sids(&self, user: &str) -> Vec<String> {
        self.sessions.list(user).await.expect("the store answers").into_iter().map(|session| session.sid).collect()
    }

    /// The whole log.
    async fn log(&self) -> Vec<(Kind, String)> {
        let heard = self.sessions.follow().next().await;
        assert!(heard.is_replay && !heard.is_lossy);
        assert_ne!(heard.freshness, Freshness::NEVER);
        heard.entries.iter().map(|entry| (entry.kind, entry.id.to_string())).collect()
    }
}

fn note(user_agent: &str) -> ClientNote {
    ClientNote::new(user_agent.as_bytes(), IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Makes a test of each function: one for each store.
macro_rules! suite {
    ($($name:ident)*) => {
        mod embedded_store {
            $(#[test] fn $name() { super::run(async { super::$name(super::embedded_bed()).await }); })*
        }
        mod redis_store {
            $(#[test] fn $name() {
                super::run(async {
                    if let Some(bed) = super::redis_bed() {
                        super::$name(bed).await;
                    }
                });
            })*
        }
    };
}

suite! {
    a_session_begins_is_renewed_and_ends
    a_spent_token_is_answered_again_within_the_grace_and_ends_the_session_after_it
    a_hundred_renewals_at_once_have_one_successor
    a_session_has_an_end_whatever_happens
    the_one_not_seen_for_longest_makes_room
    all_sessions_of_a_user_end_and_new_ones_go_on
    nobody_ends_the_sessions_of_others
    what_has_ended_is_written_to_the_log_once
    an_end_that_is_asked_for_again_is_one
    the_log_is_followed
}

async fn a_session_begins_is_renewed_and_ends(bed: Bed) {
    let sessions = &bed.sessions;
    let begun = sessions.create("42", &note("one")).await.expect("it begins");
    assert_eq!(begun.began_ms, START_MS);
    bed.pass(5_000);
    let renewed = sessions.refresh(begun.refresh_token.reveal(), &note("two")).await.expect("it is renewed");
    assert_eq!((renewed.user.as_str(), &renewed.sid, renewed.began_ms), ("42", &begun.sid, START_MS));
    let listed = Listed {
        sid: begun.sid.clone(),
        created_ms: START_MS,
        last_seen_ms: START_MS + 5_000,
        user_agent: "two".into(),
        address: "127.0.0.1".into(),
    };
    assert_eq!(sessions.list("42").await, Ok(vec![listed]));
    assert_eq!(bed.log().await, []);
    sessions.end("42", &begun.sid, "42").await.expect("it ends");
    assert_eq!(bed.log().await, [(Kind::Session, begun.sid.clone())]);
    let refused = sessions.refresh(renewed.refresh_token.reveal(), &note("two")).await;
    assert_eq!(refused.expect_err("it has ended"), RefreshError::Invalid);
    assert_eq!(sessions.list("42").await, Ok(Vec::new()));
    sessions.end("42", &begun.sid, "42").await.expect("it may end twice");
    assert_eq!(bed.log().await.len(), 1, "the log says so already");
}

async fn a_spent_token_is_answered_again_within_the_grace_and_ends_the_session_after_it(bed: Bed) {
    let sessions = &bed.sessions;
    let first = sessions.create("42", &note("")).await.expect("it begins").refresh_token;
    let refresh = async |token: &RefreshToken| sessions.refresh(token.reveal(), &note("")).await;
    let second = refresh(&first).await.expect("it is renewed").refresh_token;
    bed.pass(10_000);
    assert_eq!(refresh(&first).await.expect("within the grace").refresh_token, second);
    let third = refresh(&second).await.expect("the session goes on").refresh_token;
    bed.pass(10_001);
    let fourth = refresh(&third).await.expect("the session goes on").refresh_token;
    // However often it was renewed since, and however lately.
    assert_eq!(refresh(&first).await.expect_err("three behind"), RefreshError::Reused);
    assert_eq!(refresh(&fourth).await.expect_err("the session has ended"), RefreshError::Invalid);
    assert_eq!(bed.log().await.len(), 1);
    assert_eq!(sessions.refresh("", &note("")).await.expect_err("no token"), RefreshError::Invalid);
}

async fn a_hundred_renewals_at_once_have_one_successor(bed: Bed) {
    let sessions = &bed.sessions;
    let begun = sessions.create("42", &note("")).await.expect("it begins");
    let (note, token) = (note(""), begun.refresh_token.reveal());
    let renewals = (0..100).map(|_| sessions.refresh(token, &note));
    let mut renewals: Vec<_> = renewals.map(Box::pin).collect();
    let mut successors = Vec::new();
    std::future::poll_fn(|cx| {
        renewals.retain_mut(|renewal| match renewal.as_mut().poll(cx) {
            std::task::Poll::Ready(renewed) => {
                successors.push(renewed.expect("nobody is logged out").refresh_token);
                false
            }
            std::task::Poll::Pending => true,
        });
        if renewals.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert!(successors.iter().all(|successor| *successor == successors[0]));
    sessions.refresh(successors[0].reveal(), &note).await.expect("the session goes on");
    bed.pass(10_001);
    assert_eq!(sessions.refresh(token, &note).await.expect_err("after the grace"), RefreshError::Reused);
    assert_eq!(bed.log().await, [(Kind::Session, begun.sid)]);
}

async fn a_session_has_an_end_whatever_happens(bed: Bed) {
    let sessions = &bed.sessions;
    let mut token = sessions.create("42", &note("")).await.expect("it begins").refresh_token;
    for _ in 0..9 {
        bed.pass(100_000);
        token = sessions.refresh(token.reveal(), &note("")).await.expect("it is renewed").refresh_token;
    }
    bed.pass(99_999);
    assert_eq!(bed.sids("42").await.len(), 1);
    bed.pass(1);
    assert_eq!(bed.sids("42").await, Vec::<String>::new());
    assert_eq!(sessions.refresh(token.reveal(), &note("")).await.expect_err("it is over"), RefreshError::Invalid);
}

async fn the_one_not_seen_for_longest_makes_room(bed: Bed) {
    let sessions = &bed.sessions;
    let mut begun = Vec::new();
    for _ in 0..3 {
        begun.push(sessions.create("42", &note("")).await.expect("it begins"));
        bed.pass(1_000);
    }
    sessions.refresh(begun[0].refresh_token.reveal(), &note("")).await.expect("it is renewed");
    bed.pass(1_000);
    let fourth = sessions.create("42", &note("")).await.expect("it begins");
    assert_eq!(bed.sids("42").await, [&fourth, &begun[2], &begun[0]].map(|session| session.sid.clone()));
    assert_eq!(bed.log().await, [(Kind::Session, begun[1].sid.clone())]);
}

async fn all_sessions_of_a_user_end_and_new_ones_go_on(bed: Bed) {
    let sessions = &bed.sessions;
    let old = sessions.create("42", &note("")).await.expect("it begins");
    sessions.create("42", &note("")).await.expect("it begins");
    let other = sessions.create("43", &note("")).await.expect("it begins");
    sessions.end_all("42", "cli").await.expect("they end");
    let new = sessions.create("42", &note("")).await.expect("it begins");
    let heard = sessions.follow().next().await;
    let [entry] = &heard.entries[..] else { panic!("one entry: {heard:?}") };
    assert_eq!((entry.kind, &*entry.id, &*entry.by), (Kind::User, "42", "cli"));
    assert!(old.began_ms <= entry.at_ms && entry.at_ms < new.began_ms, "in the same millisecond");
    assert_eq!((bed.sids("42").await, bed.sids("43").await), (vec![new.sid], vec![other.sid]));
    let refused = sessions.refresh(old.refresh_token.reveal(), &note("")).await;
    assert_eq!(refused.expect_err("it has ended"), RefreshError::Invalid);
    sessions.end_all("auth0|7", "42").await.expect("users of other issuers have tokens too");
    assert_eq!(bed.log().await.last(), Some(&(Kind::User, "auth0|7".to_owned())));
}

async fn nobody_ends_the_sessions_of_others(bed: Bed) {
    let sessions = &bed.sessions;
    let theirs = sessions.create("43", &note("")).await.expect("it begins");
    assert_eq!(sessions.end_own("42", &theirs.sid, "42").await, Ok(false));
    assert_eq!(sessions.end_own("43", "s_*", "43").await, Ok(false));
    assert_eq!((bed.log().await, bed.sids("43").await), (Vec::new(), vec![theirs.sid.clone()]));
    assert_eq!(sessions.end_own("43", &theirs.sid, "43").await, Ok(true));
    assert_eq!(sessions.end_own("43", &theirs.sid, "43").await, Ok(false));
    assert_eq!(bed.log().await, [(Kind::Session, theirs.sid)]);
    let over = sessions.create("43", &note("")).await.expect("it begins");
    bed.pass(RULES.lifetime_ms + 1);
    assert_eq!(sessions.end_own("43", &over.sid, "43").await, Ok(false), "its time is over");
    for user in ["", "a b", "{42}", "*", "4\n2", &"u".repeat(129)] {
        assert_eq!(sessions.create(user, &note("")).await.expect_err("no name of a key"), SessionFailure::UserId);
        assert_eq!(sessions.list(user).await, Ok(Vec::new()));
    }
}

async fn what_has_ended_is_written_to_the_log_once(bed: Bed) {
    let sessions = &bed.sessions;
    let begun = sessions.create("42", &note("")).await.expect("it begins");
    // As two tabs and a script that tries again do.
    let end = || sessions.end("42", &begun.sid, "42");
    let ended = tokio::join!(end(), end(), end(), end(), end(), end(), end(), end());
    assert_eq!(ended, (Ok(()), Ok(()), Ok(()), Ok(()), Ok(()), Ok(()), Ok(()), Ok(())));
    assert_eq!(bed.log().await, [(Kind::Session, begun.sid.clone())]);
    end().await.expect("it has been heard of");
    assert_eq!(bed.log().await.len(), 1);
    sessions.create("42", &note("")).await.expect("it begins");
    for _ in 0..3 {
        sessions.end_left("42", "accounts").await.expect("nobody is left");
    }
    assert_eq!(bed.log().await, [(Kind::Session, begun.sid), (Kind::User, "42".to_owned())]);
    assert_eq!(bed.sids("42").await, Vec::<String>::new());
}

async fn an_end_that_is_asked_for_again_is_one(bed: Bed) {
    let sessions = &bed.sessions;
    let one = sessions.create("42", &note("")).await.expect("it begins");
    let two = sessions.create("42", &note("")).await.expect("it begins");
    let again = async |sid: Option<&str>| sessions.end_again("42", sid, two.began_ms).await;
    sessions.end("42", &one.sid, "42").await.expect("it ends");
    assert_eq!(
        (again(Some(&one.sid)).await, again(Some(&two.sid)).await, again(None).await),
        (Ok(true), Ok(false), Ok(false))
    );
    assert_eq!(bed.sids("42").await, std::slice::from_ref(&two.sid), "it ended nothing");
    sessions.end_all("42", "42").await.expect("they end");
    assert_eq!((again(Some(&two.sid)).await, again(None).await), (Ok(true), Ok(true)));
    assert_eq!(sessions.end_again("43", None, two.began_ms).await, Ok(false), "another user");
    let later = sessions.create("42", &note("")).await.expect("it begins");
    assert_eq!(sessions.end_again("42", Some(&later.sid), later.began_ms).await, Ok(false), "it goes on");
    assert_eq!(bed.log().await.len(), 2);
}

async fn the_log_is_followed(bed: Bed) {
    let sessions = &bed.sessions;
    let mut follower = sessions.follow();
    let first = follower.next().await;
    assert!(first.is_replay && first.entries.is_empty(), "{first:?}");
    sessions.kick("42", "ops").await.expect("it is written");
    sessions.end_all("42", "ops").await.expect("it is written");
    let mut kinds = Vec::new();
    let mut latest = first.freshness;
    while kinds.len() < 2 {
        let heard = follower.next().await;
        assert!(!heard.is_replay && !heard.is_lossy, "{heard:?}");
        assert!(heard.freshness.looked_at() >= latest.looked_at());
        latest = heard.freshness;
        kinds.extend(heard.entries.iter().map(|entry| entry.kind));
    }
    assert_eq!(kinds, [Kind::Kick, Kind::User]);
    let quiet = follower.next().await;
    assert!(quiet.entries.is_empty() && quiet.freshness.looked_at() > latest.looked_at(), "freshness travels");
    if bed.server.is_some() {
        // It counts its own time.
        return;
    }
    // What no token can be affected by any more is cleared away. Tokens live longer after a reload.
    sessions.keep_revocations(2 * KEPT);
    bed.pass(900_001);
    sessions.kick("43", "ops").await.expect("it is written");
    assert_eq!(bed.log().await.len(), 3);
    bed.pass(900_001);
    sessions.kick("44", "ops").await.expect("it is written");
    assert_eq!(bed.log().await, [(Kind::Kick, "43".to_owned()), (Kind::Kick, "44".to_owned())]);
}

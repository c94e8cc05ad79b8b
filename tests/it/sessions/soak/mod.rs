//! Two instances, one Redis, and a nemesis that kills, stops, fills up and cuts off Redis and kills, freezes and restarts the
//! instances, while users log in, renew, log out, and are robbed. What was ended stays ended, and nobody else is.
//!
//! A seed makes a [`plan`]; [`user`]s and [`nemesis`] live by it and write down what they see; [`history`] judges that. A
//! failure tells its seed: `SHARDGATE_TEST_SEED` makes the same plan again. When its faults fall within a round trip is
//! still chance, so one seed may have to be run more than once.

mod history;
mod judged;
mod nemesis;
mod plan;
mod user;
mod wire;

use std::{collections::BTreeMap, sync::mpsc::channel, thread, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use super::{RedisServer, Stage, redis};
use crate::harness::{Gateway, is_long, now, pause};
use history::{History, KNOWN_MAX_MS, Ms, What};
use nemesis::Logged;
use plan::{INSTANCES, Plan};
use user::{ROUTES, User, call, list};
use wire::{Clock, Outcome, PATIENT, Places, Wire};

/// With it all that this was made to find shows most times, when it is made again.
const FIRST: u64 = 3;
const USERS: usize = 24;
/// How long something goes wrong now and then.
const TIME: Duration = Duration::from_secs(45);
const TIME_LONG: Duration = Duration::from_secs(570);
/// Past the last fault everything is as it should be within this.
const MEND_MAX: Duration = Duration::from_mins(1);

/// A failure tells so many.
const COMPLAINTS_TOLD_MAX: usize = 100;

/// How long an access token lives, and a revocation is kept in the log: the token's life and the leeway at both ends.
const ACCESS_MS: Ms = 12_000;
const KEPT_MS: Ms = 14_000;
/// For so long a spent refresh token is answered again.
const GRACE_MS: Ms = 10_000;

/// Besides what all tests of sessions have.
const REST: &str = "refresh_grace = \"10s\"\n[auth]\naccess_lifetime = \"12s\"\nlifetime_max = \"12s\"\nleeway = \"1s\"\n\
    [revocation]\nmax_staleness = \"2s\"\n[drain]\nnotice = \"0s\"\nmax = \"2s\"\n\
    [[routes]]\nname = \"open\"\npath = \"/open\"\nupstream = \"back\"\naccess = \"public\"\n";

/// It loses nothing that it has acknowledged, and lets entries of the log go as soon as it is told to: by default they go a
/// hundred at a time.
const DURABLE: [&str; 8] =
    ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--stream-node-max-entries", "1"];

/// Tells the seed of a failure, whatever it is that fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("SHARDGATE_TEST_SEED={} makes the same plan again", self.0);
        }
    }
}

#[test]
fn what_was_ended_stays_ended_and_nobody_else_is_whatever_fails() {
    let seed = std::env::var_os("SHARDGATE_TEST_SEED").map_or(FIRST, |seed| {
        seed.to_str().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| panic!("the seed {seed:?} is no number"))
    });
    let Some(server) = RedisServer::start_with(&DURABLE) else { return };
    let _told = Told(seed);
    let plan = Plan::new(seed, USERS, if is_long() { TIME_LONG } else { TIME });
    let mut history = play(&plan, server);
    let complaints = history.complaints();
    let (events, faults) = (history.events.len(), history.faults.len());
    // How many there are of each kind, and when the first one showed.
    let mut counts = BTreeMap::<_, (usize, Ms)>::new();
    for complaint in &complaints {
        counts.entry(complaint.kind).or_insert((0, complaint.at)).0 += 1;
    }
    eprintln!("seed {seed}: {events} events, {faults} faults; complaints, and the first at (ms): {counts:?}");
    let mut texts = Vec::new();
    for (number, complaint) in complaints.iter().enumerate().take(COMPLAINTS_TOLD_MAX) {
        texts.push(format!("{:?}: {}", complaint.kind, complaint.text));
        let is_first = !complaints[..number].iter().any(|earlier| earlier.kind == complaint.kind);
        texts.extend(is_first.then(|| history.before(complaint)).into_iter().flatten());
    }
    assert!(complaints.is_empty(), "{counts:?}\n{}", texts.join("\n"));
}

fn play(plan: &Plan, mut server: RedisServer) -> History {
    let stage = Stage::new(&(redis(&server) + REST));
    let emails: Vec<String> = (0..plan.lives.len()).map(|user| format!("user-{user}@shop.example")).collect();
    for email in &emails {
        stage.user(&["add", email, "--role", "admin"]);
    }
    let config = stage.config();
    let mut gateways = std::array::from_fn::<Gateway, INSTANCES, _>(|_| nemesis::start(&config));
    let places = Places::new(gateways.each_ref().map(Gateway::address));
    let clock = Clock(now());
    let ((diary, events), (harm, faults), (over, is_over)) = (channel(), channel(), channel::<()>());
    // They go on a little longer than the faults, so that one sees what is left of those.
    let users_until = plan.calm_at + KNOWN_MAX_MS + ACCESS_MS / 2;
    let patient_until = plan.calm_at + Ms::try_from(2 * MEND_MAX.as_millis()).expect("minutes");
    let port = server.port();
    let (mut users, logged) = thread::scope(|scope| {
        let reader = scope.spawn({
            let diary = diary.clone();
            move || nemesis::read_log(port, clock, &diary, &is_over)
        });
        let lives = emails.into_iter().zip(&plan.lives).enumerate().map(|(user, (email, life))| {
            let wire = Wire { user, clock, places: places.clone(), diary: diary.clone() };
            scope.spawn(move || User::new(email, wire, life.seed, patient_until).live(life, users_until))
        });
        let lives: Vec<_> = lives.collect();
        let (server, gateways, faults_of_redis, places) = (&mut server, &mut gateways, harm.clone(), &places);
        scope.spawn(move || nemesis::harm_redis(server, &plan.redis, clock, &faults_of_redis));
        let config = config.as_str();
        scope.spawn(move || nemesis::harm_instances(gateways, config, &plan.instances, (clock, places, &harm)));
        let users: Vec<User> = lives.into_iter().map(|life| life.join().expect("a life is lived to its end")).collect();
        drop(over);
        (users, reader.join().expect("the log is read to its end"))
    });
    let faults: Vec<_> = faults.into_iter().collect();
    expect_whole(&server, &users, &logged);
    users.iter_mut().for_each(expect_agreement);
    let last_fault = faults.iter().map(|fault| fault.till).max().unwrap_or(0);
    let patience = if is_long() { last_fault + 60_000 } else { 0 };
    expect_no_return(&mut users, patience);
    for gateway in &mut gateways {
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.wait_exit(PATIENT * 2), Some(0), "a clean end");
    }
    drop((diary, users));
    History { events: events.into_iter().collect(), faults }
}

/// Nothing is half done: no session is kept whose end stands in the log.
fn expect_whole(server: &RedisServer, users: &[User], logged: &Logged) {
    let due = now() + MEND_MAX;
    loop {
        let left: Vec<(&User, String)> = users.iter().flat_map(|user| left(server, user, logged)).collect();
        if left.is_empty() || now() > due {
            for (user, sid) in left {
                user.wire.tell_now(What::HalfDone { sid });
            }
            return;
        }
        pause(Duration::from_millis(50));
    }
}

fn left<'u>(server: &RedisServer, user: &'u User, logged: &Logged) -> Vec<(&'u User, String)> {
    let record = server.ask(&["GET", &format!("session:{}", user.id)]);
    let record: Value = serde_json::from_str(&record).unwrap_or_default();
    let sessions = record["sessions"].as_array().cloned().unwrap_or_default();
    let sessions =
        sessions.iter().filter_map(|session| Some((session["sid"].as_str()?, session["createdAt"].as_f64()?)));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "times that Lua wrote as it likes")]
    let ended = sessions.filter(|(sid, began)| logged.ends(&user.id, sid, *began as u64));
    ended.map(|(sid, _)| (user, sid.to_owned())).collect()
}

/// What is listed can be renewed, what can be renewed is listed and admitted, on both instances.
fn expect_agreement(user: &mut User) {
    for instance in 0..INSTANCES {
        for place in (0..user.devices.len()).rev() {
            user.renew(place, instance);
        }
        for device in &user.devices {
            soon(user, "a list", || list(&user.wire, instance, PATIENT, device));
            for route in 0..ROUTES.len() {
                soon(user, "a guarded route", || call(&user.wire, instance, PATIENT, route, device));
            }
        }
    }
}

/// What could not be told for a moment can be told soon.
fn soon(user: &User, what: &str, mut ask: impl FnMut() -> Outcome) {
    let due = now() + MEND_MAX;
    while !ask().is_done() {
        if now() > due {
            return user.wire.tell_now(What::Stuck { answer: format!("{what} cannot be had") });
        }
        pause(Duration::from_millis(100));
    }
}

/// When no entry of the log is kept any more, what has ended is still over.
fn expect_no_return(users: &mut [User], not_before: Ms) {
    let Some(clock) = users.first().map(|user| user.wire.clock) else { return };
    let last = users.iter().flat_map(|user| &user.ghosts).map(|ghost| ghost.ended).max().unwrap_or(0);
    clock.wait_until((last + KEPT_MS + 1_000).max(not_before));
    // One more entry lets the old ones go.
    if let Some(user) = users.iter_mut().find(|user| !user.devices.is_empty()) {
        user.renew(0, 0);
        if let Some(device) = user.devices.pop() {
            user.end(device, 0);
        }
    }
    for user in users {
        for (index, ghost) in user.ghosts.iter().enumerate() {
            ghost.present(&user.wire, index % INSTANCES, PATIENT);
        }
    }
}

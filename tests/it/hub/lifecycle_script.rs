//! The script that decides lifecycle events, on a Redis of the test's own: instances that come, go, die, hang and are late; a
//! service that is told of everything at least once.

use std::collections::{BTreeMap, BTreeSet};

use crate::servers::redis::RedisServer;

const CHANGE: &str = include_str!("../../../src/server/rooms/lifecycle.lua");
const TAKEN: &str = include_str!("../../../src/server/rooms/taken.lua");
const ALIVE: &str = include_str!("../../../src/server/rooms/alive.lua");

const KEYS: [&str; 8] = ["meta", "there", "here", "outbox", "gone", "nodes", "instances", "sender"];
const FOREVER: &str = "9999999999999";

/// What the script answers.
#[derive(Debug)]
struct Answer {
    epoch: String,
    seq: u64,
    standing: String,
    has_more: bool,
    sender: String,
    dropped: u64,
    came: u64,
}

/// How an instance asks.
#[derive(Clone, Debug)]
struct Asker {
    node: String,
    connection: u32,
    seen: (String, u64),
    sends: bool,
    sweeps: bool,
    swept_max: u32,
    waiting_max: u32,
}

impl Asker {
    fn new(node: &str) -> Self {
        let seen = ("0".to_owned(), 0);
        Self { node: node.into(), connection: 1, seen, sends: true, sweeps: false, swept_max: 500, waiting_max: 1000 }
    }

    #[track_caller]
    fn tell(&mut self, redis: &RedisServer, changes: &[(&str, bool)]) -> Answer {
        let flag = |is: bool| if is { "1" } else { "0" }.to_owned();
        let begins = format!("e{}", fastrand::u32(..));
        let mut words = vec!["EVAL".to_owned(), CHANGE.to_owned(), KEYS.len().to_string()];
        words.extend(KEYS.map(str::to_owned));
        words.extend([self.node.clone(), self.connection.to_string(), self.seen.0.clone(), self.seen.1.to_string()]);
        words.extend([begins, self.waiting_max.to_string(), flag(self.sweeps), flag(self.sends)]);
        words.push(self.swept_max.to_string());
        words.extend(changes.iter().flat_map(|&(subject, is_here)| [subject.to_owned(), flag(is_here)]));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = redis.ask(&words);
        let parts: Vec<&str> = answer.split('\n').collect();
        let [epoch, seq, standing, more, sender, dropped, came] = parts[..] else { panic!("{answer}") };
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{answer}"));
        self.seen = (epoch.to_owned(), number(seq));
        Answer {
            epoch: epoch.into(),
            seq: number(seq),
            standing: standing.into(),
            has_more: more == "1",
            sender: sender.into(),
            dropped: number(dropped),
            came: number(came),
        }
    }

    fn lives(&self, redis: &RedisServer, lives: bool) {
        redis.ask(&["ZADD", "instances", if lives { FOREVER } else { "0" }, &self.node]);
        if !lives {
            self.asked_until(redis, "0");
        }
    }

    /// It has not asked for so long that it lives until then, unless its lease says that it does.
    fn asked_until(&self, redis: &RedisServer, ms: &str) {
        let known = redis.ask(&["HGET", "nodes", &self.node]);
        if let [connection, until, waiting_max] = known.split(' ').collect::<Vec<_>>()[..]
            && until != "gone"
        {
            redis.ask(&["HSET", "nodes", &self.node, &format!("{connection} {ms} {waiting_max}")]);
        }
    }
}

/// An event that waits: its number of all, its subject, whether it is there, its own number.
type Waiting = (u64, String, bool, u64);

#[track_caller]
fn waiting(redis: &RedisServer) -> Vec<Waiting> {
    let answer = redis.ask(&["XRANGE", "outbox", "-", "+"]);
    let lines: Vec<&str> = answer.split('\n').filter(|line| !line.is_empty()).collect();
    let events = lines.chunks(11).map(|lines| {
        let [id, "s", subject, "is", is_there, "n", n, "at", _, "of", _] = lines else { panic!("{answer}") };
        let seq = id.strip_suffix("-0").expect("ours").parse().expect("a number");
        (seq, (*subject).to_owned(), *is_there == "1", n.parse().expect("a number"))
    });
    events.collect()
}

#[track_caller]
fn take(redis: &RedisServer, epoch: &str, seq: u64) {
    let answer = redis.ask(&["EVAL", TAKEN, "2", "meta", "outbox", epoch, &format!("{seq}-0")]);
    assert!(answer.parse::<u64>().is_ok(), "{answer}");
}

#[test]
fn who_is_there_anywhere_is_told_once_and_numbered() {
    let Some(redis) = RedisServer::start() else { return };
    let (mut one, mut two) = (Asker::new("one"), Asker::new("two"));
    let answer = one.tell(&redis, &[("user:a b", true), ("room:x", true)]);
    assert_eq!((&*answer.standing, answer.came, &*answer.sender), ("new", 2, "one"));
    assert_eq!((&*one.tell(&redis, &[("user:a b", true)]).standing, waiting(&redis).len()), ("known", 2), "once");
    let answer = two.tell(&redis, &[("user:a b", true)]);
    assert_eq!((answer.came, &*answer.sender), (0, "one"), "one of them sends");
    assert_eq!(one.tell(&redis, &[("user:a b", false), ("user:never", false)]).came, 0, "it is there on the other");
    assert_eq!(two.tell(&redis, &[("user:a b", false)]).came, 1);
    assert_eq!(two.tell(&redis, &[("user:a b", true)]).came, 1);
    let told: Vec<Waiting> = waiting(&redis);
    let wanted =
        [(1, "user:a b", true, 1), (2, "room:x", true, 1), (5, "user:a b", false, 2), (6, "user:a b", true, 3)];
    assert_eq!(told, wanted.map(|(seq, subject, is_there, n)| (seq, subject.to_owned(), is_there, n)));
    // What another count's was is not of this one.
    take(&redis, "other", 1);
    assert_eq!(waiting(&redis).len(), 4);
    // Two instances may have sent it, and both tell of it.
    for _ in 0..2 {
        take(&redis, &two.seen.0, 1);
        assert_eq!(waiting(&redis).first().map(|event| event.0), Some(2));
        assert_eq!(redis.ask(&["HGET", "meta", "waiting"]), "3");
    }
}

#[test]
fn what_an_older_connection_says_late_is_not_taken() {
    let Some(redis) = RedisServer::start() else { return };
    let mut old = Asker::new("one");
    old.tell(&redis, &[("user:a", true)]);
    let mut new = Asker { connection: 2, ..old.clone() };
    assert_eq!(&*new.tell(&redis, &[("user:a", false)]).standing, "known");
    let answer = old.tell(&redis, &[("user:a", true)]);
    assert_eq!((&*answer.standing, answer.came), ("late", 0));
}

#[test]
fn a_redis_that_has_lost_events_begins_a_new_count() {
    let Some(redis) = RedisServer::start() else { return };
    let (mut one, mut two) = (Asker::new("one"), Asker::new("two"));
    let before = one.tell(&redis, &[("user:a", true)]);
    two.tell(&redis, &[("user:b", true)]);
    // It has seen one more than there is.
    one.seen.1 = 3;
    let after = one.tell(&redis, &[("user:a", true)]);
    assert_ne!(after.epoch, before.epoch);
    assert_eq!((&*after.standing, after.seq, waiting(&redis).len()), ("new", 1, 1), "from the beginning");
    let other = two.tell(&redis, &[]);
    assert_eq!((&other.epoch, &*other.standing), (&after.epoch, "new"), "it tells all again");
    redis.ask(&["FLUSHALL"]);
    assert_ne!(one.tell(&redis, &[]).epoch, after.epoch);
}

#[test]
fn those_of_a_dead_instance_go_a_part_at_a_time_and_it_begins_anew_should_it_live() {
    let Some(redis) = RedisServer::start() else { return };
    let (mut one, mut two) = (Asker::new("one"), Asker::new("one!"));
    one.lives(&redis, true);
    two.lives(&redis, true);
    let names: Vec<String> = (0..10).map(|n| format!("user:u{n}")).collect();
    let all: Vec<(&str, bool)> = names.iter().map(|name| (&**name, true)).collect();
    one.tell(&redis, &all);
    two.tell(&redis, &all[..2]);
    two.sweeps = true;
    two.swept_max = 4;
    assert!(!two.tell(&redis, &[]).has_more, "it lives");
    one.lives(&redis, false);
    let answer = two.tell(&redis, &[]);
    assert_eq!((answer.has_more, answer.came), (true, 2), "two of four are elsewhere too");
    // It was not dead, only slow: it is not known any more what it said.
    one.lives(&redis, true);
    let answer = one.tell(&redis, &[("user:new", true)]);
    assert_eq!((&*answer.standing, answer.has_more, answer.came), ("swept", true, 6));
    let answer = one.tell(&redis, &all);
    assert_eq!((&*answer.standing, answer.came), ("new", 8));
    assert!(!two.tell(&redis, &[]).has_more);
}

#[test]
fn whom_an_instance_leaves_behind_have_the_time_of_a_lease() {
    let Some(redis) = RedisServer::start() else { return };
    let (mut one, mut two) = (Asker::new("one"), Asker::new("two"));
    let alive = |goes: &str| {
        redis.ask(&["EVAL", ALIVE, "2", "instances", "sender", "one", "10000", goes]);
    };
    alive("0");
    two.lives(&redis, true);
    assert_eq!(&*one.tell(&redis, &[("user:a", true), ("user:b", true)]).sender, "one");
    alive("1");
    assert_eq!(redis.ask(&["ZRANGE", "instances", "0", "-1"]), "two", "nobody asks it any more");
    let seconds: u64 = redis.ask(&["TIME"]).lines().next().and_then(|text| text.parse().ok()).expect("a time");
    let until: u64 = redis.ask(&["HGET", "nodes", "one"]).split(' ').nth(1).and_then(|ms| ms.parse().ok()).expect("ms");
    assert!(until > (seconds + 8) * 1000, "{until} is not a lease from {seconds} on");
    two.sweeps = true;
    let answer = two.tell(&redis, &[("user:a", true)]);
    assert_eq!((&*answer.sender, answer.came), ("two", 0), "another one sends, and nobody has gone");
    one.asked_until(&redis, "1");
    assert_eq!(two.tell(&redis, &[]).came, 1, "who has not come to another one");
    assert_eq!(waiting(&redis).last().map(|event| event.1.clone()), Some("user:b".into()));
}

#[test]
fn what_waits_is_bounded_and_the_oldest_go() {
    let Some(redis) = RedisServer::start() else { return };
    let mut one = Asker { waiting_max: 3, ..Asker::new("one") };
    assert_eq!(one.tell(&redis, &[("user:a", true), ("user:b", true)]).dropped, 0);
    assert_eq!(one.tell(&redis, &[("user:a", false), ("user:b", false)]).dropped, 1);
    assert_eq!(waiting(&redis).first().map(|event| event.0), Some(2));
    assert_eq!(redis.ask(&["ZCARD", "gone"]), "2");
    // It was on its way when it had to go.
    take(&redis, &one.seen.0, 1);
    assert_eq!(redis.ask(&["HGET", "meta", "waiting"]), "3");
}

#[test]
fn as_many_wait_as_the_instance_wants_that_wants_most() {
    let Some(redis) = RedisServer::start() else { return };
    let mut few = Asker { waiting_max: 1, ..Asker::new("few") };
    let mut many = Asker { waiting_max: 3, ..Asker::new("many") };
    let mut none = Asker { waiting_max: 0, ..Asker::new("none") };
    few.lives(&redis, true);
    many.lives(&redis, true);
    many.tell(&redis, &[]);
    let users = [("user:a", true), ("user:b", true), ("user:c", true), ("user:d", true)];
    assert_eq!(few.tell(&redis, &users[..3]).dropped, 0);
    assert_eq!(none.tell(&redis, &users[3..]).dropped, 1, "three wait, whoever says so");
    // As long as it lives.
    few.sweeps = true;
    assert_eq!(few.tell(&redis, &[("user:e", true)]).dropped, 1);
    many.lives(&redis, false);
    assert_eq!(few.tell(&redis, &[("user:f", true)]).dropped, 3);
}

#[test]
fn a_redis_that_has_lost_one_of_its_keys_begins_a_new_count() {
    let Some(redis) = RedisServer::start() else { return };
    for lost in ["there", "here", "outbox", "gone", "nodes", "meta"] {
        redis.ask(&["FLUSHALL"]);
        let mut one = Asker::new("one");
        one.tell(&redis, &[("user:a", true), ("user:b", true)]);
        let before = one.tell(&redis, &[("user:b", false)]);
        take(&redis, &before.epoch, 1);
        assert_eq!(one.tell(&redis, &[]).epoch, before.epoch, "what was taken is not lost");
        redis.ask(&["DEL", "instances", "sender"]);
        assert_eq!(one.tell(&redis, &[]).epoch, before.epoch, "these are made anew");
        redis.ask(&["DEL", lost]);
        let after = one.tell(&redis, &[("user:a", true)]);
        assert_ne!(after.epoch, before.epoch, "{lost}");
        assert_eq!((&*after.standing, after.came, waiting(&redis).len()), ("new", 1, 1), "{lost}");
    }
}

#[test]
fn an_instance_whose_lease_redis_has_lost_is_not_taken_for_dead() {
    let Some(redis) = RedisServer::start() else { return };
    let (mut one, mut two) = (Asker::new("one"), Asker::new("two"));
    two.sweeps = true;
    one.tell(&redis, &[("user:a", true)]);
    two.tell(&redis, &[]);
    redis.ask(&["DEL", "instances"]);
    assert_eq!(two.tell(&redis, &[]).came, 0);
    assert_eq!(&*one.tell(&redis, &[]).standing, "known");
}

#[test]
fn numbers_of_whom_nobody_remembers_still_rise() {
    let Some(redis) = RedisServer::start() else { return };
    let mut one = Asker::new("one");
    for is_here in [true, false, true, false] {
        one.tell(&redis, &[("user:a", is_here), ("user:b", is_here)]);
    }
    one.tell(&redis, &[("user:b", true)]);
    assert_eq!(redis.ask(&["ZRANGE", "gone", "0", "-1"]), "user:a", "who is back has not gone");
    // A long time ago.
    redis.ask(&["ZADD", "gone", "1", "user:a"]);
    one.tell(&redis, &[]);
    assert_eq!((redis.ask(&["HEXISTS", "there", "user:a"]), redis.ask(&["ZCARD", "gone"])), ("0".into(), "0".into()));
    one.tell(&redis, &[("user:a", true), ("user:c", true)]);
    let last: Vec<(String, u64)> = waiting(&redis).into_iter().rev().take(2).map(|event| (event.1, event.3)).collect();
    assert_eq!(last, [("user:c".to_owned(), 5), ("user:a".to_owned(), 5)]);
}

/// What a service makes of it.
#[derive(Default)]
struct Service {
    /// Of each subject of a count the last number, and whether it is there.
    told: BTreeMap<(String, String), (bool, u64)>,
    taken: u32,
    told_again: u32,
}

impl Service {
    #[track_caller]
    fn hear(&mut self, epoch: &str, (_, subject, is_there, n): &Waiting) {
        let last = self.told.entry((epoch.to_owned(), subject.clone())).or_default();
        if *n <= last.1 {
            self.told_again += 1;
            return;
        }
        assert_eq!((*is_there, *n), (!last.0, last.1 + 1), "{subject}: they alternate, without a hole");
        *last = (*is_there, *n);
        self.taken += 1;
    }
}

/// What has happened in the plays.
#[derive(Debug, Default)]
struct Seen {
    deaths: u32,
    hangs: u32,
    losses: u32,
    swept: u32,
    taken: u32,
    told_again: u32,
}

const SUBJECTS: [&str; 5] = ["user:a", "user:b", "room:a", "room:b", "user:c d"];

/// An instance that is asked at random.
struct Instance {
    asker: Asker,
    here: BTreeSet<&'static str>,
    unsaid: BTreeSet<&'static str>,
    is_alive: bool,
}

impl Instance {
    fn new(redis: &RedisServer, node: &str) -> Self {
        let asker = Asker { sweeps: true, swept_max: 2, ..Asker::new(node) };
        asker.lives(redis, true);
        Self { asker, here: BTreeSet::new(), unsaid: BTreeSet::new(), is_alive: true }
    }

    /// Somebody comes who is not here, or goes who is.
    fn turn(&mut self, subject: &'static str) {
        if !self.here.remove(subject) {
            self.here.insert(subject);
        }
        self.unsaid.insert(subject);
    }

    /// Tells what has changed, and all where nothing was known of it.
    #[track_caller]
    fn tell_changes(&mut self, redis: &RedisServer, seen: &mut Seen) {
        for _ in 0..20 {
            let changes: Vec<_> = self.unsaid.iter().map(|&subject| (subject, self.here.contains(subject))).collect();
            match &*self.asker.tell(redis, &changes).standing {
                "known" => {
                    self.unsaid.clear();
                    return;
                }
                "new" => self.unsaid.clone_from(&self.here),
                "swept" => seen.swept += 1,
                other => panic!("{other}"),
            }
        }
        panic!("it is never known");
    }
}

/// Instances and Redis at random: whatever happens, each subject's events alternate without a hole, and when all is quiet the last
/// that was told is true. `SIM_SEED` plays one again.
#[test]
fn through_deaths_and_losses_what_is_told_alternates_and_is_true_in_the_end() {
    let Some(redis) = RedisServer::start() else { return };
    let wanted = std::env::var_os("SIM_SEED").and_then(|seed| seed.into_string().ok()?.parse::<u64>().ok());
    let mut seen = Seen::default();
    for seed in wanted.map_or(1..=8, |seed| seed..=seed) {
        eprintln!("SIM_SEED={seed}");
        redis.ask(&["FLUSHALL"]);
        play(&redis, seed, &mut seen);
    }
    let Seen { deaths, hangs, losses, swept, taken, told_again } = seen;
    let all = [deaths, hangs, losses, swept, taken, told_again];
    assert!(wanted.is_some() || all.iter().all(|&count| count > 0), "some things never happened: {all:?}");
}

#[track_caller]
fn play(redis: &RedisServer, seed: u64, seen: &mut Seen) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut instances = ["n", "n1", "m"].map(|node| Instance::new(redis, node));
    let mut service = Service::default();
    for step in 0..300 {
        let instance = rng.choice(&mut instances).expect("some");
        match rng.u8(0..100) {
            // Another process of another name takes its place.
            0..3 => {
                instance.asker.lives(redis, false);
                *instance = Instance::new(redis, &format!("n{step}"));
                seen.deaths += 1;
            }
            // It hangs, and is taken for dead; or goes on.
            3..10 => {
                instance.is_alive = !instance.is_alive;
                instance.asker.lives(redis, instance.is_alive);
                seen.hangs += 1;
            }
            10..13 => instance.asker.connection += 1,
            13 => {
                redis.ask(&["FLUSHALL"]);
                for instance in &instances {
                    instance.asker.lives(redis, instance.is_alive);
                }
                seen.losses += 1;
            }
            14..30 => deliver(redis, &mut service, &mut rng),
            _ if instance.is_alive => {
                for _ in 0..rng.usize(0..3) {
                    instance.turn(rng.choice(SUBJECTS).expect("some"));
                }
                instance.tell_changes(redis, seen);
            }
            _ => {}
        }
        if step % 20 == 19 {
            settle(redis, &mut instances, &mut service, &mut rng, seen);
        }
    }
    seen.taken += service.taken;
    seen.told_again += service.told_again;
}

/// All is quiet: what was told last is true.
#[track_caller]
fn settle(
    redis: &RedisServer,
    instances: &mut [Instance],
    service: &mut Service,
    rng: &mut fastrand::Rng,
    seen: &mut Seen,
) {
    for _ in 0..20 {
        for instance in instances.iter_mut().filter(|instance| instance.is_alive) {
            instance.tell_changes(redis, seen);
        }
    }
    let epoch = redis.ask(&["HGET", "meta", "epoch"]);
    while !waiting(redis).is_empty() {
        deliver(redis, service, rng);
    }
    let is_anybody_alive = instances.iter().any(|instance| instance.is_alive);
    for subject in SUBJECTS {
        let is_there = instances.iter().any(|instance| instance.is_alive && instance.here.contains(subject));
        let told = service.told.get(&(epoch.clone(), subject.to_owned())).is_some_and(|last| last.0);
        assert!(!is_anybody_alive || told == is_there, "{subject}: {told}, but {is_there}");
    }
}

/// Somebody sends some of what waits, and dies before it says so, or does not.
#[track_caller]
fn deliver(redis: &RedisServer, service: &mut Service, rng: &mut fastrand::Rng) {
    let epoch = redis.ask(&["HGET", "meta", "epoch"]);
    let events = waiting(redis);
    let count = rng.usize(0..=events.len());
    let dies = rng.u8(0..4) == 0;
    for event in &events[..count] {
        service.hear(&epoch, event);
        if !dies {
            take(redis, &epoch, event.0);
        }
    }
}

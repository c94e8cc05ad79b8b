//! Two instances on one real Redis, in one thread; and one whose Redis goes and comes back.

use std::{cell::Cell, collections::BTreeMap};

use super::*;
use crate::{
    bus::{redis::Address, redis_server::RedisServer},
    config,
    gateway::rate_limit::{
        compile,
        counter::{Counter, Due, Verdict},
    },
    telemetry::slots::MetricSlots,
};

const SHARDS: usize = 4;

/// One instance: its shards, and its part of the bridge.
struct Instance {
    fleet: Fleet,
    shards: Rc<Local<Vec<Counter>>>,
    is_away: Rc<Cell<Option<bool>>>,
}

fn instance(server: &RedisServer, limit: &str) -> Instance {
    let text = format!("[redis]\nurls = [\"{}\"]\n[limits.api]\nscope = \"fleet\"\n{limit}\n", server.url());
    let text = format!("{text}[sessions]\nsecret = \"0123456789abcdef0123456789abcdef\"\n");
    let config = config::resolve(Some((std::path::Path::new("f"), &text)), &BTreeMap::new()).expect("it is right");
    let plans = compile(&config, SHARDS, &mut MetricSlots::default()).expect("there is room");
    let counters = |is_away| (0..SHARDS).map(|me| Counter::new(plans[0].terms(is_away), me, SHARDS)).collect();
    let shards: Rc<Local<Vec<Counter>>> = Rc::new(Local::new(counters(false)));
    let is_away = Rc::new(Cell::new(None));
    let tell = {
        let (shards, is_away, plan) = (Rc::clone(&shards), Rc::clone(&is_away), plans[0].clone());
        move |shard: usize, news| {
            shards.with(|shards| match news {
                FleetMessage::Counted(counted) => shards[shard].hear(counted, clock::now()),
                FleetMessage::Owed(owed) => shards[shard].hear_owed(owed, clock::now()),
                FleetMessage::IsAway(away) => {
                    is_away.set(Some(away));
                    shards[shard].adopt(plan.terms(away), clock::now());
                }
            });
        }
    };
    let redis = Redis::start(Address::new(&config.redis).expect("it is right"));
    let fleet = Fleet::new(redis, SHARDS, tell);
    fleet.adopt(&plans);
    tokio::task::spawn_local(fleet.clone().watch());
    Instance { fleet, shards, is_away }
}

impl Instance {
    /// Whether one more request passes on this shard; none: it is held.
    fn ask(&self, shard: usize, key: CellKey) -> Option<bool> {
        let now = clock::now();
        let (passed, due) = self.shards.with(|shards| {
            let counter = &mut shards[shard];
            match counter.look(key, now) {
                (place, Verdict::Conforms(next)) => (Some(true), counter.pass(place, next, now)),
                (_, Verdict::Exceeds(_)) => (Some(false), Due::Nothing),
                (_, Verdict::Unknown) => (None, Due::Nothing),
            }
        });
        match due {
            Due::Now(hits) => self.fleet.take(shard, hits),
            Due::Soon => {
                let untold = self.shards.with(|shards| shards[shard].untold(key));
                if let Some(hits) = untold {
                    self.fleet.take(shard, hits);
                }
            }
            Due::Nothing | Due::Spread(_) => {}
        }
        passed
    }

    async fn until_away(&self, away: bool) {
        while self.is_away.get() != Some(away) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn instances_count_together_and_their_overshoot_is_bounded() {
    let Some(server) = RedisServer::start() else { return };
    run(async {
        let (burst, lease) = (160, 160 / 16);
        let instances = [(); 2].map(|()| instance(&server, "quota = 160\nwindow = \"1d\""));
        for instance in &instances {
            instance.until_away(false).await;
        }
        let key = CellKey::of_texts(b'u', b"issuer", b"42");
        let (mut passed, mut refused, mut held) = (0, 0, 0);
        while refused < 400 {
            for (instance, shard) in instances.iter().flat_map(|one| (0..SHARDS).map(move |shard| (one, shard))) {
                match instance.ask(shard, key) {
                    Some(true) => passed += 1,
                    Some(false) => refused += 1,
                    None => held += 1,
                }
            }
            // As often as not nobody gets to answer in between.
            if held % 2 == 0 {
                tokio::task::yield_now().await;
            }
            if held > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert!((burst..=burst + 7 * lease).contains(&passed), "{passed} passed, {held} were held");
        let keys = server.ask(&["KEYS", "*"]);
        let [first, second] = key.halves();
        assert_eq!(keys, format!("shardgate:limits:api:{first:016x}{second:016x}"));
        assert!(server.ask(&["PTTL", &keys]).parse::<u64>().expect("it goes by itself") <= 2 * 86_400_000);
    });
}

#[test]
fn without_redis_an_instance_counts_alone_and_then_together_again() {
    let Some(mut server) = RedisServer::start() else { return };
    run(async {
        let instance = instance(&server, "quota = 64\nwindow = \"1d\"\nlocal_share_percent = 25");
        instance.until_away(false).await;
        let key = |number: u8| CellKey::of_texts(b'u', b"issuer", &[number]);
        assert_eq!(instance.ask(0, key(0)), Some(true));
        server.kill();
        instance.until_away(true).await;
        // By one shard, which may be the key's home or not; letters between shards are no part of this.
        let home = instance.shards.with(|shards| shards[0].home_of(key(1)));
        let passed = (0..100).filter(|_| instance.ask(home, key(1)) == Some(true)).count();
        assert_eq!(passed, 16, "a quarter of the burst");
        server.restart();
        instance.until_away(false).await;
        let mut passed = 0;
        for _ in 0..2_000 {
            match instance.ask(0, key(2)) {
                Some(true) => passed += 1,
                Some(false) => break,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        assert_eq!(passed, 64, "one shard alone is exact");
    });
}

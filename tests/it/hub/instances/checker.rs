//! What each member makes sure of while Redis fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{AGAIN, ROOM, instance, join_soon, publish_until_taken};
use crate::{
    harness::{Gateway, now, pause, until},
    hub::{on_each_shard_of, socket::Socket, user},
    servers::redis::RedisServer,
};

/// What a member makes sure of: each message once and in order, or a word that some are lost.
#[derive(Default)]
pub(super) struct Checker {
    epoch: Value,
    seq: u64,
    heard: Vec<(Value, u64, Value)>,
    pub(super) told: usize,
}

impl Checker {
    #[track_caller]
    fn hear(&mut self, message: &Value) {
        match message["type"].as_str() {
            Some("joined" | "continuity") => {
                self.told += usize::from(message["type"] == "continuity");
                (self.epoch, self.seq) = (message["epoch"].clone(), message["seq"].as_u64().expect("a number"));
            }
            Some("room_message") => {
                assert_eq!(
                    (&message["epoch"], message["seq"].as_u64()),
                    (&self.epoch, Some(self.seq + 1)),
                    "{message}"
                );
                self.seq += 1;
                self.heard.push((self.epoch.clone(), self.seq, message["payload"].clone()));
            }
            _ => {}
        }
    }
}

#[test]
fn through_kills_pauses_and_cuts_each_member_has_each_message_once_and_in_order_or_is_told() {
    let Some(mut redis) = RedisServer::start_with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
    else {
        return;
    };
    let gateways = [instance(&redis, ""), instance(&redis, "")];
    let mut members: Vec<(Socket, Checker)> = (0..12)
        .map(|n| {
            let mut socket = Socket::open(&gateways[n % 2], &user(&format!("u{n}")));
            let mut checker = Checker::default();
            checker.hear(&socket.join(ROOM));
            (socket, checker)
        })
        .collect();
    let mut acked = Vec::new();
    for round in 0..60 {
        match round {
            10 | 25 => _ = redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]),
            15 => redis.pause(),
            20 => redis.go_on(),
            30 => redis.kill(),
            35 => redis.restart(),
            _ => {}
        }
        let (socket, checker) = &mut members[round % 12];
        let is_away = (15..20).contains(&round) || (30..35).contains(&round);
        let mut heard = Vec::new();
        if is_away {
            socket.publish(ROOM, &format!("m{round}"), &json!(round));
            loop {
                let message = socket.hear();
                if message["type"] == "error" {
                    assert_eq!(message["payload"]["retryable"], true, "{message}");
                    break;
                }
                heard.push(message);
            }
        } else {
            let ack = publish_until_taken(socket, &format!("m{round}"), &json!(round), &mut heard);
            acked.push((ack["epoch"].clone(), ack["seq"].as_u64().expect("a number"), json!(round)));
        }
        for message in &heard {
            checker.hear(message);
        }
    }
    let last = acked.iter().map(|(_, seq, _)| *seq).max().expect("some");
    for (socket, checker) in &mut members {
        while checker.seq < last {
            checker.hear(&socket.hear());
        }
        assert_eq!(checker.told, 0, "Redis has lost nothing");
        assert!(acked.iter().all(|message| checker.heard.contains(message)), "what was acknowledged came");
        socket.expect_nothing();
    }
    let first = &members[0].1.heard;
    assert!(members.iter().all(|(_, checker)| checker.heard == *first), "one order for all");
}

/// A member that says something again and again, until it is told that it is enough.
pub(super) struct Member {
    socket: Socket,
    pub(super) checker: Checker,
    acked: Vec<(Value, u64, Value)>,
}

impl Member {
    fn say(&mut self, name: &str, enough: &Receiver<()>) {
        for n in 0_u32.. {
            if enough.try_recv() == Err(TryRecvError::Disconnected) {
                return;
            }
            let (id, mut heard) = (format!("{name}-{n}"), Vec::new());
            let ack = publish_until_taken(&mut self.socket, &id, &json!(id), &mut heard);
            for message in &heard {
                self.checker.hear(message);
            }
            self.acked.push((ack["epoch"].clone(), ack["seq"].as_u64().expect("a number"), json!(id)));
            pause(AGAIN);
        }
    }

    /// Hears all up to where the room is.
    fn hear_to(&mut self, epoch: &Value, seq: u64) {
        while (&self.checker.epoch, self.checker.seq) != (epoch, seq) {
            let message = self.socket.hear();
            self.checker.hear(&message);
        }
        self.socket.expect_nothing();
    }
}

/// The page says that the hub is ready, or that it is not, within this time.
#[track_caller]
fn expect_ready(gateways: &[Gateway; 2], is_ready: bool, within: Duration) {
    let began = now();
    let status = if is_ready { 200 } else { 503 };
    until(within, "the page says so", || {
        gateways.iter().all(|gateway| gateway.get("/health/ready/hub").status == status).then_some(())
    });
    assert!(began.elapsed() < within, "{:?}", began.elapsed());
}

/// Members on all shards of both instances say something all the time while this happens.
#[track_caller]
pub(super) fn under_load(gateways: &[Gateway; 2], happens: impl FnOnce()) -> Vec<Member> {
    let token = |at: usize| move |n: usize| user(&format!("u{at}-{n}"));
    let sockets = gateways.iter().enumerate().flat_map(|(at, gateway)| on_each_shard_of(gateway, token(at)));
    let mut members: Vec<Member> = sockets
        .map(|mut socket| {
            let mut checker = Checker::default();
            checker.hear(&join_soon(&mut socket, &json!({})));
            Member { socket, checker, acked: Vec::new() }
        })
        .collect();
    thread::scope(|scope| {
        let mut more = Vec::new();
        for (n, member) in members.iter_mut().enumerate() {
            let (goes_on, enough) = channel();
            more.push(goes_on);
            scope.spawn(move || member.say(&format!("m{n}"), &enough));
        }
        happens();
        drop(more);
    });
    let mut last = Socket::open(&gateways[0], &user("last"));
    join_soon(&mut last, &json!({}));
    let end = publish_until_taken(&mut last, "end", &json!("end"), &mut Vec::new());
    for member in &mut members {
        member.hear_to(&end["epoch"], end["seq"].as_u64().expect("a number"));
    }
    check(&members);
    members
}

/// One number is one message to all, each was heard once in an epoch, and whoever was told of no loss has all that was taken.
#[track_caller]
fn check(members: &[Member]) {
    let mut said: BTreeMap<(String, u64), &Value> = BTreeMap::new();
    for member in members {
        let mut once = BTreeSet::new();
        for (epoch, seq, payload) in &member.checker.heard {
            let known = *said.entry((epoch.to_string(), *seq)).or_insert(payload);
            assert_eq!(known, payload, "{epoch} {seq}: one number, two messages");
            assert!(once.insert((epoch.to_string(), payload.to_string())), "{payload} came twice in {epoch}");
        }
    }
    let acked: Vec<_> = members.iter().flat_map(|member| &member.acked).collect();
    assert!(acked.len() > 50, "only {} were taken", acked.len());
    for member in members.iter().filter(|member| member.checker.told == 0) {
        let heard: BTreeSet<_> = member.checker.heard.iter().map(|(_, _, payload)| payload.to_string()).collect();
        assert!(acked.iter().all(|(_, _, payload)| heard.contains(&payload.to_string())), "something is missing");
    }
}

#[test]
pub(super) fn under_load_a_redis_that_keeps_all_loses_nothing_and_says_nothing() {
    let arguments = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
    let Some(mut redis) = RedisServer::start_with(&arguments) else { return };
    let gateways = [instance(&redis, ""), instance(&redis, "")];
    let members = under_load(&gateways, || {
        for _ in 0..3 {
            pause(Duration::from_millis(300));
            redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        redis.pause();
        expect_ready(&gateways, false, Duration::from_millis(2500));
        redis.go_on();
        expect_ready(&gateways, true, Duration::from_secs(5));
        redis.kill();
        expect_ready(&gateways, false, Duration::from_millis(2500));
        redis.restart();
        expect_ready(&gateways, true, Duration::from_secs(5));
        pause(Duration::from_millis(300));
    });
    assert!(members.iter().all(|member| member.checker.told == 0), "Redis has lost nothing");
}

#[test]
pub(super) fn under_load_a_redis_that_comes_back_empty_is_told_to_all() {
    let Some(mut redis) = RedisServer::start() else { return };
    let gateways = [instance(&redis, ""), instance(&redis, "")];
    let members = under_load(&gateways, || {
        for _ in 0..2 {
            pause(Duration::from_millis(500));
            redis.kill();
            expect_ready(&gateways, false, Duration::from_millis(2500));
            redis.restart();
            expect_ready(&gateways, true, Duration::from_secs(5));
        }
        pause(Duration::from_millis(300));
    });
    assert!(members.iter().all(|member| member.checker.told > 0), "all is lost");
}

//! Who is in a room on all instances, when Redis forgets it or an instance stands still, dies or ends.

use std::time::Duration;

use serde_json::{Value, json};

use super::{ROOM, instance, instance_in, join_room_soon, pair};
use crate::{
    harness::{Gateway, is_long, now, pause, until},
    hub::{
        across::{LEASE, cluster},
        endpoints::get,
        socket::Socket,
        user, with_role,
    },
    servers::redis::RedisServer,
};

/// A key that only the comparison of who is here misses: each sixth, of one each five seconds.
const COMPARED: Duration = Duration::from_secs(40);

/// Users and sockets in a room, as an instance says.
#[track_caller]
fn counted(gateway: &Gateway, room: &str) -> (Value, Value) {
    let answer = get(gateway, &format!("/hub/rooms/{room}"), &with_role("s", "service"));
    let json = answer.json();
    (json["members"].clone(), json["connections"].clone())
}

#[track_caller]
fn expect_members(gateways: &[Gateway], rooms: &[String], members: u32, within: Duration) {
    let wanted = (json!(members), json!(members));
    let began = now();
    for (gateway, room) in gateways.iter().flat_map(|gateway| rooms.iter().map(move |room| (gateway, room))) {
        let left = within.saturating_sub(began.elapsed()).max(Duration::from_millis(10));
        until(left, "all know who is there", || {
            let is_so = counted(gateway, room) == wanted;
            if !is_so {
                pause(Duration::from_millis(100));
            }
            is_so.then_some(())
        });
    }
}

fn here(redis: &RedisServer, room: &str) -> String {
    redis.ask(&["HGETALL", &format!("shardgate:room:{room}:here")])
}

fn rooms(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("public.p{n}")).collect()
}

/// A member of all these rooms on each.
#[track_caller]
fn members(gateways: &[Gateway], rooms: &[String]) -> Vec<Socket> {
    let member = |(n, gateway): (usize, &Gateway)| {
        let mut socket = Socket::open(gateway, &user(&format!("u{n}")));
        for room in rooms {
            let _ = join_room_soon(&mut socket, room, &json!({}));
        }
        socket
    };
    let sockets = gateways.iter().enumerate().map(member).collect();
    expect_members(gateways, rooms, u32::try_from(gateways.len()).expect("few"), Duration::from_secs(5));
    sockets
}

const MANY: &str = "[hub]\nmessages_per_s = 10000\nrooms_per_socket_max = 1000\nrooms_per_user_max = 1000\n";

#[test]
fn who_is_there_is_told_again_to_a_redis_that_has_forgotten_it() {
    let Some((redis, gateways)) = pair() else { return };
    let rooms = rooms(3);
    let _sockets = members(&gateways, &rooms);
    let before = here(&redis, &rooms[0]);
    redis.ask(&["FLUSHALL"]);
    until(Duration::from_secs(5), "all of it is there again", || {
        let is_whole = here(&redis, &rooms[0]).lines().count() == before.lines().count();
        (is_whole && here(&redis, &rooms[0]) != before).then_some(())
    });
    expect_members(&gateways, &rooms, 2, Duration::from_secs(5));
    // The lease alone, and once something else in its place.
    let leases = redis.ask(&["KEYS", "shardgate:presence:*"]);
    for (n, lease) in leases.lines().enumerate() {
        if n % 2 == 0 {
            redis.ask(&["DEL", lease])
        } else {
            redis.ask(&["DEL", lease]);
            redis.ask(&["LPUSH", lease, "77"])
        };
    }
    for gateway in &gateways {
        gateway.log_until("Redis had lost that this instance lives", Duration::from_secs(2));
    }
    until(Duration::from_secs(5), "both have their leases", || {
        let is_good = |lease: &str| {
            let is_text = redis.ask(&["TYPE", lease]) == "string";
            is_text && redis.ask(&["GET", lease]).parse::<u32>().is_ok_and(|number| number > 1)
        };
        leases.lines().all(is_good).then_some(())
    });
    expect_members(&gateways, &rooms, 2, Duration::from_secs(5));
}

#[test]
fn who_is_there_is_told_again_where_only_its_key_is_lost() {
    let Some((redis, gateways)) = pair() else { return };
    let rooms = rooms(1);
    let _sockets = members(&gateways, &rooms);
    let lose = || redis.ask(&["DEL", &format!("shardgate:room:{}:here", rooms[0])]);
    let is_whole = |lines: usize| (here(&redis, &rooms[0]).lines().count() == lines).then_some(());
    // With the next who comes or goes on either, at once.
    lose();
    let mut late = Socket::open(&gateways[0], &user("late"));
    let _ = join_room_soon(&mut late, &rooms[0], &json!({}));
    until(Duration::from_secs(2), "all have told again", || is_whole(6));
    expect_members(&gateways, &rooms, 3, Duration::from_secs(1));
    drop(late);
    expect_members(&gateways, &rooms, 2, Duration::from_secs(5));
    // With the next comparison, each five seconds.
    lose();
    until(Duration::from_secs(7), "it is there again", || {
        pause(Duration::from_millis(100));
        is_whole(4)
    });
    expect_members(&gateways, &rooms, 2, Duration::from_secs(1));
}

#[test]
fn who_reads_a_room_of_which_redis_has_forgotten_who_is_there_takes_nobody_for_gone() {
    if !is_long() {
        return;
    }
    let Some((redis, gateways)) = pair() else { return };
    let rooms = rooms(1);
    let _sockets = members(&gateways, &rooms);
    // Each comparison of the one and the other meets it, those too that read who is there.
    let due = now() + COMPARED;
    while now() < due {
        redis.ask(&["DEL", &format!("shardgate:room:{}:here", rooms[0])]);
        for gateway in &gateways {
            assert_eq!(counted(gateway, &rooms[0]), (json!(2), json!(2)), "they are there all the time");
        }
        pause(Duration::from_millis(20));
    }
}

#[test]
fn the_leases_of_all_instances_are_asked_for_together() {
    let Some((redis, gateways)) = pair() else { return };
    let nodes: Vec<String> = (0..40).map(|n| format!("n_{n:012x}")).collect();
    let key = format!("shardgate:room:{ROOM}:here");
    for node in &nodes {
        redis.ask(&["SET", &format!("shardgate:presence:{node}"), "1"]);
        redis.ask(&["HSET", &key, &format!("{node} {node}"), "1 1"]);
    }
    redis.ask(&["CONFIG", "RESETSTAT"]);
    let mut socket = Socket::open(&gateways[0], &user("ann"));
    assert_eq!(socket.join(ROOM)["payload"]["members"], 41);
    let calls = |command: &str| {
        let told = redis.ask(&["INFO", "commandstats"]);
        let line = told.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|line| line.split(',').next()?.parse::<u32>().ok()).unwrap_or(0)
    };
    until(Duration::from_secs(3), "they are looked at again and again", || (calls("mget") >= 3).then_some(()));
    assert_eq!(calls("get"), 0);
    // One of them has gone.
    redis.ask(&["DEL", &format!("shardgate:presence:{}", nodes[7])]);
    gateways[0].log_until("an instance is gone", LEASE);
    expect_members(&gateways[..1], &[ROOM.to_owned()], 40, Duration::from_secs(2));
}

#[test]
fn a_redis_that_starts_again_empty_makes_nobody_gone() {
    let Some(mut redis) = RedisServer::start() else { return };
    let gateways = [instance(&redis, MANY), instance(&redis, MANY)];
    let rooms = rooms(300);
    let _sockets = members(&gateways, &rooms);
    // Who comes back first finds no lease of the other, which stands still a little longer.
    redis.kill();
    gateways[1].signal(rustix::process::Signal::STOP);
    redis.restart();
    until(Duration::from_secs(5), "the first is back", || {
        (gateways[0].get("/health/ready/hub").status == 200).then_some(())
    });
    until(Duration::from_secs(5), "it has told all its rooms", || {
        (here(&redis, &rooms[299]).lines().count() == 2).then_some(())
    });
    assert_eq!(counted(&gateways[0], &rooms[7]), (json!(2), json!(2)));
    gateways[1].signal(rustix::process::Signal::CONT);
    expect_members(&gateways, &rooms, 2, Duration::from_secs(8));
    assert!(!gateways[0].log().contains("an instance is gone"), "{}", gateways[0].log());
}

#[test]
fn an_instance_that_stood_still_past_its_lease_is_there_again() {
    let Some(redis) = RedisServer::start() else { return };
    let gateways = [instance(&redis, MANY), instance(&redis, MANY)];
    let rooms = rooms(300);
    let _sockets = members(&gateways, &rooms);
    gateways[1].signal(rustix::process::Signal::STOP);
    gateways[0].log_until("an instance is gone", LEASE);
    expect_members(&gateways[..1], &rooms[..9], 1, Duration::from_secs(3));
    gateways[1].signal(rustix::process::Signal::CONT);
    expect_members(&gateways, &rooms, 2, Duration::from_secs(8));
}

#[test]
fn what_dead_instances_and_strangers_leave_in_a_room_is_taken_out() {
    let Some((redis, gateways)) = pair() else { return };
    let rooms = [ROOM.to_owned()];
    let _sockets = members(&gateways, &rooms);
    let key = format!("shardgate:room:{ROOM}:here");
    redis.ask(&["HSET", &key, "n_0123456789ab x", "4 1", "stranger y", "1 1", "nothing", "z"]);
    for n in 0..64 {
        redis.ask(&["PUBLISH", &format!("shardgate:bus:{n}"), &format!("! {ROOM} stranger 1 [[\"y\",1]]")]);
    }
    gateways[0].log_until("users are named of what is no instance", Duration::from_secs(2));
    assert_eq!(counted(&gateways[0], ROOM), (json!(2), json!(2)));
    let [one, two] = gateways;
    drop(two);
    one.log_until("an instance is gone", LEASE);
    // The living one's own is all that stays.
    until(COMPARED, "the rest is taken out", || {
        pause(Duration::from_millis(100));
        (here(&redis, ROOM).lines().count() == 2).then_some(())
    });
    expect_members(&[one], &rooms, 1, Duration::from_secs(1));
}

#[test]
fn an_instance_that_ends_takes_its_users_along_at_once() {
    let Some(redis) = RedisServer::start() else { return };
    let drained = "[drain]\nnotice = \"0s\"\nwindow = \"0s\"\nmax = \"1s\"\n";
    let mut gateways = [instance(&redis, drained), instance(&redis, drained)];
    let rooms = [ROOM.to_owned()];
    let _sockets = members(&gateways, &rooms);
    let lease = redis.ask(&["KEYS", "shardgate:presence:*"]);
    gateways[1].signal(rustix::process::Signal::TERM);
    until(Duration::from_secs(5), "its lease says so", || {
        lease.lines().any(|lease| redis.ask(&["GET", lease]) == "left").then_some(())
    });
    gateways[0].log_until("an instance has ended", Duration::from_secs(2));
    expect_members(&gateways[..1], &rooms, 1, Duration::from_secs(1));
    assert!(!gateways[0].log().contains("an instance is gone"), "{}", gateways[0].log());
    assert!(gateways[1].wait_exit(Duration::from_secs(5)).is_some());
}

#[test]
fn a_cluster_that_has_forgotten_is_told_again() {
    let Some(nodes) = cluster() else { return };
    let gateways = [instance_in(&nodes[0], "cluster", ""), instance_in(&nodes[1], "cluster", "")];
    let rooms = rooms(6);
    let _sockets = members(&gateways, &rooms);
    for node in &nodes {
        node.ask(&["FLUSHALL"]);
    }
    for gateway in &gateways {
        gateway.log_until("Redis had lost that this instance lives", Duration::from_secs(3));
    }
    expect_members(&gateways, &rooms, 2, Duration::from_secs(8));
    let keys = || nodes.iter().map(|node| node.ask(&["KEYS", "shardgate:room:*:here*"]).lines().count()).sum::<usize>();
    until(Duration::from_secs(8), "all is there again", || (keys() == rooms.len()).then_some(()));
}

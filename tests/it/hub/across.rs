//! What reaches a user on all instances: two of four shards each, on a Redis of the test's own.

use std::{
    process::Command,
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    SOON,
    endpoints::{ask, get},
    socket::Socket,
    token, user, with_role,
};
use crate::{
    harness::{Gateway, now, pause, until},
    journey::access::{KEYS, unix_now},
    servers::redis::RedisServer,
};

/// Whatever has to be everywhere is there within this.
const EVERYWHERE: Duration = Duration::from_secs(1);

/// How long a killed instance lives on for the others, and some time to see it.
pub(super) const LEASE: Duration = Duration::from_secs(20);

const KICK: &str = "/hub/users/ann/connections";
const SAY: &str = "/hub/users/ann/publish";

/// The configuration of an instance on this Redis, with these lines more.
pub(super) fn config(redis: &RedisServer, more: &str) -> String {
    config_of(&format!("urls = [\"{}\"]", redis.url()), more)
}

/// The same with these lines of `[redis]`.
pub(super) fn config_of(redis: &str, more: &str) -> String {
    format!(
        "{KEYS}[runtime]\nshards = 4\n[redis]\n{redis}\ntimeout = \"500ms\"\n\
         [sessions]\nsecret = \"a secret of the tests, as long as it has to be\"\n{more}"
    )
}

/// An instance on this Redis, with these lines more.
#[track_caller]
pub(super) fn instance(redis: &RedisServer, more: &str) -> Gateway {
    let gateway = Gateway::start(&config(redis, more));
    until_rooms_span(&gateway);
    gateway
}

/// Waits until rooms span instances, and the shards know that.
#[track_caller]
pub(super) fn until_rooms_span(gateway: &Gateway) {
    gateway.log_until("rooms span instances: Redis is there", SOON);
    // The shards are told before the pages are made.
    until(SOON, "the hub is ready", || (gateway.get("/health/ready/hub").status == 200).then_some(()));
}

/// A cluster of three.
#[track_caller]
pub(crate) fn cluster() -> Option<[RedisServer; 3]> {
    let node =
        || RedisServer::start_with(&["--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
    let nodes = [node()?, node()?, node()?];
    let made = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())))
        .arg("--cluster-yes")
        .output()
        .expect("redis-cli runs");
    assert!(made.status.success(), "{made:?}");
    until(SOON, "the cluster is whole", || {
        nodes.iter().all(|node| node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok")).then_some(())
    });
    Some(nodes)
}

/// Two instances on a Redis.
#[track_caller]
pub(super) fn pair() -> Option<(RedisServer, [Gateway; 2])> {
    let redis = RedisServer::start()?;
    let gateways = [instance(&redis, ""), instance(&redis, "")];
    Some((redis, gateways))
}

/// So many sockets of a user, by turns on the one and the other.
#[track_caller]
fn sockets(gateways: &[Gateway; 2], name: &str, count: usize) -> Vec<Socket> {
    (0..count).map(|n| Socket::open(&gateways[n % 2], &user(name))).collect()
}

#[track_caller]
fn kick(gateway: &Gateway, path: &str) -> Value {
    let answer = ask(gateway, "DELETE", path, &with_role("root", "admin"), &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn a_kick_counts_the_sockets_that_it_closes_on_all_instances() {
    let kept = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
    let Some(mut redis) = RedisServer::start_with(&kept) else { return };
    let gateways = [instance(&redis, ""), instance(&redis, "")];
    let mut anns = sockets(&gateways, "ann", 9);
    let mut other = Socket::open(&gateways[1], &user("bob"));
    let all = |closed: u32| json!({ "closed": closed, "instancesAsked": 2, "instancesAnswered": 2 });
    assert_eq!(kick(&gateways[0], KICK), all(9));
    for socket in &mut anns {
        socket.expect_close(4102);
    }
    assert_eq!(kick(&gateways[1], KICK), all(0), "only what was open is closed");
    other.expect_nothing();
    // One that is asked and says nothing: it has been stopped, and its lease lasts.
    let mut eves = sockets(&gateways, "eve", 4);
    gateways[1].stand_still();
    assert_eq!(
        kick(&gateways[0], "/hub/users/eve/connections"),
        json!({ "closed": 2, "instancesAsked": 2, "instancesAnswered": 1 }),
        "within the lease"
    );
    // Messages wait for it no more.
    let began = now();
    for _ in 0..10 {
        let said = ask(&gateways[0], "POST", SAY, &with_role("pricing", "service"), &json!({ "payload": 1 }));
        assert_eq!(said.status, 202, "{}", said.text());
    }
    assert!(began.elapsed() < EVERYWHERE * 5, "{:?}", began.elapsed());
    gateways[1].signal(rustix::process::Signal::CONT);
    // It heard it all the same.
    for socket in &mut eves {
        socket.expect_close(4102);
    }
    // Without Redis those who are here are closed; what is elsewhere nobody can say.
    let mut fays = sockets(&gateways, "fay", 2);
    redis.kill();
    let fay = "/hub/users/fay/connections";
    let refused = ask(&gateways[0], "DELETE", fay, &with_role("root", "admin"), &json!({}));
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("dependency_unavailable")));
    fays[0].expect_close(4102);
    fays[1].expect_nothing();
    redis.restart();
    // One may be asked before it listens again.
    until(SOON, "all are asked again, and answer", || {
        let answer = ask(&gateways[0], "DELETE", fay, &with_role("root", "admin"), &json!({}));
        (answer.status == 200 && answer.json()["instancesAnswered"] == 2).then_some(())
    });
    fays[1].expect_close(4102);
}

#[test]
fn a_dead_instance_is_asked_within_its_lease_and_one_that_ended_is_not() {
    let Some((redis, [one, two])) = pair() else { return };
    let mut three = instance(&redis, "[drain]\nnotice = \"0s\"\n");
    // Redis may be slow for a moment on a busy machine: then it is asked again.
    let expect = |within: Duration, asked: u32, answered: u32| {
        let wanted = json!({ "closed": 0, "instancesAsked": asked, "instancesAnswered": answered });
        until(within, "so many are asked and answer", || {
            let answer = ask(&one, "DELETE", KICK, &with_role("root", "admin"), &json!({}));
            pause(Duration::from_millis(50));
            (answer.status == 200 && answer.json() == wanted).then_some(())
        });
    };
    expect(SOON, 3, 3);
    three.signal(rustix::process::Signal::TERM);
    assert_eq!(three.wait_exit(SOON), Some(0));
    // Long before its lease would have ended.
    expect(LEASE / 3, 2, 2);
    // The other is killed.
    drop(two);
    expect(LEASE / 2, 2, 1);
    expect(LEASE, 1, 1);
}

#[test]
fn a_message_to_a_user_reaches_the_sockets_of_all_instances_once() {
    let Some((redis, gateways)) = pair() else { return };
    let service = with_role("pricing", "service");
    let mut anns = sockets(&gateways, "ann", 8);
    let mut other = Socket::open(&gateways[1], &user("bob"));
    let say = |gateway: &Gateway, body: &Value| {
        let said = ask(gateway, "POST", SAY, &service, body);
        (said.status, said.json()["connections"].clone())
    };
    for (n, gateway) in gateways.iter().enumerate() {
        let (id, payload) = (format!("m{n}"), json!({ "n": n }));
        let message = json!({ "type": "price", "payload": payload, "id": id });
        // Whichever instance is asked, and again by the other.
        for gateway in [gateway, &gateways[0], &gateways[1]] {
            assert_eq!(say(gateway, &message), (202, json!(8)));
        }
        for socket in &mut anns {
            let heard = socket.hear();
            assert_eq!((&heard["type"], &heard["payload"]), (&json!("price"), &payload), "{heard}");
        }
    }
    // A socket that came after it is not told of it again.
    let mut late = Socket::open(&gateways[1], &user("ann"));
    assert_eq!(say(&gateways[0], &json!({ "type": "price", "payload": 1, "id": "m0" })), (202, json!(8)));
    late.expect_nothing();
    anns.iter_mut().for_each(Socket::expect_nothing);
    other.expect_nothing();
    assert_eq!(say(&gateways[0], &json!({ "payload": 1 })), (202, json!(9)));
    redis.pause();
    assert_eq!(say(&gateways[0], &json!({ "type": "price", "payload": 2, "id": "later" })).0, 503);
    redis.go_on();
    until(SOON, "it is taken", || {
        (say(&gateways[0], &json!({ "type": "price", "payload": 2, "id": "later" })) == (202, json!(9))).then_some(())
    });
    for socket in anns.iter_mut().chain([&mut late]) {
        assert_eq!([socket.hear(), socket.hear()].map(|heard| heard["payload"].clone()), [json!(1), json!(2)]);
        socket.expect_nothing();
    }
}

#[test]
fn a_look_counts_users_and_sockets_of_all_instances_within_a_second() {
    let Some((_redis, gateways)) = pair() else { return };
    let service = with_role("pricing", "service");
    let expect = |members: u32, connections: u32| {
        for gateway in &gateways {
            until(EVERYWHERE, "it is counted", || {
                let seen = get(gateway, "/hub/rooms/public.sale", &service).json();
                (seen["members"] == members && seen["connections"] == connections).then_some(())
            });
        }
    };
    let (mut anns, mut bobs) = (sockets(&gateways, "ann", 6), sockets(&gateways, "bob", 1));
    for socket in anns.iter_mut().chain(&mut bobs) {
        socket.join("public.sale");
    }
    expect(2, 7);
    drop(bobs);
    anns.truncate(1);
    expect(1, 1);
    drop(anns);
    expect(0, 0);
}

/// Logs out one user after the other, each of a session of its own, until it is told to stop; says how many.
fn log_out_others(gateway: &Gateway, names: &str, stop: &Receiver<()>) -> usize {
    let mut client = gateway.connect();
    for n in 0.. {
        if stop.try_recv() == Err(TryRecvError::Disconnected) {
            return n;
        }
        let token = user(&format!("{names}{n}"));
        client.send(format!(
            "POST /auth/logout HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
        ));
        assert_eq!(client.read_response().status, 204);
    }
    unreachable!("it is told to stop")
}

/// Does this while other users log out on both instances as fast as they can.
fn beside_log_outs(gateways: &[Gateway; 2], what: impl FnOnce()) {
    let began = now();
    let counts: Vec<usize> = thread::scope(|scope| {
        let (stops, others): (Vec<_>, Vec<_>) = gateways
            .iter()
            .enumerate()
            .map(|(n, gateway)| {
                let (stop, stopped) = channel::<()>();
                (stop, scope.spawn(move || log_out_others(gateway, &format!("other{n}-"), &stopped)))
            })
            .unzip();
        what();
        drop(stops);
        others.into_iter().map(|other| other.join().expect("all were logged out")).collect()
    });
    let (count, took_ms) = (counts.iter().sum::<usize>(), began.elapsed().as_millis());
    eprintln!("{count} log-outs in {took_ms} ms beside it");
    assert!(counts.iter().all(|&count| count > 20), "{counts:?}");
}

#[test]
fn what_ends_a_users_sockets_ends_them_everywhere_within_a_second_beside_many_log_outs() {
    let Some(redis) = RedisServer::start() else { return };
    let gateways = [0, 1].map(|_| instance(&redis, "[auth]\nleeway = \"0s\"\n"));
    let expect_closed = |sockets: &mut [Socket], code: u16| {
        let told = now();
        for socket in &mut *sockets {
            socket.expect_close(code);
        }
        assert!(told.elapsed() < EVERYWHERE, "{:?} until {code} was everywhere", told.elapsed());
    };
    beside_log_outs(&gateways, || {
        for round in 0..5 {
            let asked = &gateways[round % 2];
            let mut other = Socket::open(&gateways[0], &user("bob"));
            let end = |path: &str, name: &str| {
                let mut sockets = sockets(&gateways, name, 8);
                assert_eq!(ask(asked, "POST", path, &user(name), &json!({})).status, 204);
                expect_closed(&mut sockets, 4102);
            };
            end("/auth/logout", &format!("out{round}"));
            end("/auth/logout-all", &format!("all{round}"));
            let ann = format!("ann{round}");
            let mut anns = sockets(&gateways, &ann, 8);
            let wanted = json!({ "closed": 8, "instancesAsked": 2, "instancesAnswered": 2 });
            assert_eq!(kick(asked, &format!("/hub/users/{ann}/connections")), wanted);
            expect_closed(&mut anns, 4102);
            let dora = format!("dora{round}");
            let mut doras = sockets(&gateways, &dora, 8);
            // Made before it is kicked: one of a later second would be another log-in's.
            let fields = format!("Authorization: Bearer {}\r\n", user(&dora));
            assert_eq!(kick(asked, &format!("/hub/users/{dora}/connections?revoke=true")), wanted);
            expect_closed(&mut doras, 4102);
            // The kick comes by the bus and the end by the log, which may be read later.
            until(EVERYWHERE, "the session has ended", || Socket::on(gateways[1].connect(), &fields).err());
            other.expect_nothing();
        }
        // What expires does so by each instance's own clock.
        let expires = unix_now() + 3;
        let carl = token(&json!({ "sub": "carl", "sid": "s_carl", "role": "user", "exp": expires }));
        let mut carls: Vec<Socket> = (0..8).map(|n| Socket::open(&gateways[n % 2], &carl)).collect();
        until(SOON, "its time comes", || (unix_now() >= expires).then_some(()));
        expect_closed(&mut carls, 4101);
    });
}

#[test]
fn how_many_sockets_a_user_may_have_each_instance_counts_for_itself() {
    let Some(redis) = RedisServer::start() else { return };
    let gateways = [0, 1].map(|_| instance(&redis, "[hub]\nsockets_per_user_max = 2\n"));
    let mut anns = sockets(&gateways, "ann", 4);
    for gateway in &gateways {
        let (messages, code) =
            Socket::bare(gateway, &format!("Authorization: Bearer {}\r\n", user("ann"))).hear_close();
        assert_eq!(code, 4104, "{messages:?}");
    }
    for ann in &mut anns {
        ann.expect_nothing();
    }
}

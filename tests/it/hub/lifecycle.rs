//! Lifecycle events of two instances of four shards each, as one service gets them, on a Redis of the test's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    SOON,
    across::{LEASE, cluster, config, instance, until_rooms_span},
    endpoints::ask,
    socket::Socket,
    user, with_role,
};
use crate::{
    backend::{Backend, Received},
    harness::{Gateway, pause, until},
    servers::redis::{RedisServer, free_port},
};

const ROOM: &str = "public.sale";

/// An instance that tells this address of everything.
#[track_caller]
fn telling(redis: &RedisServer, address: SocketAddr, more: &str) -> Gateway {
    instance(redis, &told_of(address, more))
}

fn told_of(address: SocketAddr, more: &str) -> String {
    format!(
        "[upstreams.back]\ninstances = [\"{address}\"]\n[hub]\nevents_upstream = \"back\"\npresence_grace = \"100ms\"\n{more}"
    )
}

/// What the service was told last of each room and user: whether somebody is there, the number, and the node.
struct Told {
    backend: Backend,
    /// Epochs before it.
    left: BTreeSet<String>,
    epoch: String,
    last: BTreeMap<String, (bool, u64, String)>,
    /// What was told again.
    repeated: usize,
}

impl Told {
    fn new(backend: Backend) -> Self {
        Self { backend, left: BTreeSet::new(), epoch: String::new(), last: BTreeMap::new(), repeated: 0 }
    }

    #[track_caller]
    fn hear(&mut self, request: &Received) {
        let event: Value = serde_json::from_slice(&request.body).expect("JSON");
        let text = |name: &str| event[name].as_str().unwrap_or_else(|| panic!("no {name}: {event}")).to_owned();
        let subject =
            if event["room"].is_null() { format!("user:{}", text("userId")) } else { format!("room:{}", text("room")) };
        let (epoch, node, n) = (text("epoch"), text("node"), event["n"].as_u64().expect("a number"));
        assert_eq!(request.head.field("idempotency-key"), Some(&*format!("{epoch}:{subject}:{n}")));
        if epoch != self.epoch {
            // Redis has lost all it knew: they begin anew.
            assert!(self.left.insert(std::mem::replace(&mut self.epoch, epoch.clone())), "not twice: {event}");
            assert!(!self.left.contains(&epoch), "what is over is told no more: {event}");
            self.last.clear();
        }
        let is_there = matches!(&*text("type"), "room.occupied" | "user.online");
        let (was_there, before, _) = self.last.get(&subject).cloned().unwrap_or_default();
        if n <= before {
            self.repeated += 1;
            return;
        }
        assert_eq!((is_there, n), (!was_there, before + 1), "{event}");
        self.last.insert(subject, (is_there, n, node));
    }

    /// Waits until these were told last.
    #[track_caller]
    fn until(&mut self, within: Duration, wanted: &[(&str, bool, u64)]) {
        let is_so = |last: &BTreeMap<String, (bool, u64, String)>| {
            wanted.iter().all(|&(subject, is_there, n)| {
                last.get(subject).is_some_and(|(was_there, number, _)| (*was_there, *number) == (is_there, n))
            })
        };
        let due = crate::harness::now() + within;
        while !is_so(&self.last) {
            assert!(crate::harness::now() < due, "{wanted:?} are not told, but {:?}", self.last);
            for request in self.backend.requests() {
                self.hear(&request);
            }
            pause(Duration::from_millis(5));
        }
    }

    fn node_of(&self, subject: &str) -> &str {
        &self.last[subject].2
    }
}

fn node(socket: &Socket) -> String {
    socket.welcome["payload"]["node"].as_str().expect("it was greeted").to_owned()
}

/// A service that takes everything, and two instances that tell it.
#[track_caller]
fn start() -> Option<(RedisServer, [Gateway; 2], Told)> {
    let redis = RedisServer::start_with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"])?;
    let backend = Backend::ok();
    let gateways = [0, 1].map(|_| telling(&redis, backend.address(), ""));
    Some((redis, gateways, Told::new(backend)))
}

#[test]
fn a_user_is_online_and_a_room_occupied_while_anybody_is_there_on_any_instance() {
    let Some((_redis, [one, two], mut told)) = start() else { return };
    let mut here = Socket::open(&one, &user("ann"));
    here.join(ROOM);
    told.until(SOON, &[("user:ann", true, 1), ("room:public.sale", true, 1)]);
    let mut there: Vec<Socket> = (0..6).map(|_| Socket::open(&two, &user("ann"))).collect();
    for socket in &mut there {
        socket.join(ROOM);
    }
    let two_is = node(&there[0]);
    drop(here);
    // Whatever the first has to say is behind what another one says there.
    for n in 1..=3 {
        let mut ben = Socket::open(&one, &user("ben"));
        ben.join("public.other");
        told.until(SOON, &[("user:ben", true, 2 * n - 1), ("room:public.other", true, 2 * n - 1)]);
        drop(ben);
        told.until(SOON, &[("user:ben", false, 2 * n), ("room:public.other", false, 2 * n)]);
    }
    drop(there);
    told.until(SOON, &[("user:ann", false, 2), ("room:public.sale", false, 2)]);
    assert_eq!((told.node_of("user:ann"), told.node_of("room:public.sale")), (&*two_is, &*two_is), "it was the last");
    let _back = Socket::open(&one, &user("ann"));
    told.until(SOON, &[("user:ann", true, 3)]);
    assert_eq!(told.repeated, 0, "nothing has failed");
    let delivered = |gateway: &Gateway| gateway.metrics().value("shardgate_hub_events_total{result=\"delivered\"}");
    assert_eq!([delivered(&one), delivered(&two)].iter().filter(|&&count| count > 0).count(), 1, "one of them sends");
}

#[test]
fn the_users_of_a_killed_instance_go_offline_with_its_lease_unless_they_come_to_another() {
    let Some((_redis, [one, two], mut told)) = start() else { return };
    let mut carl = Socket::open(&two, &user("carl"));
    let mut dora = Socket::open(&two, &user("dora"));
    carl.join(ROOM);
    dora.join("public.other");
    let all =
        [("user:carl", true, 1), ("user:dora", true, 1), ("room:public.sale", true, 1), ("room:public.other", true, 1)];
    told.until(SOON, &all);
    // The instance that sends is killed, or the other one; either way it is told.
    drop(two);
    let mut back = Socket::open(&one, &user("carl"));
    back.join(ROOM);
    told.until(LEASE, &[("user:dora", false, 2), ("room:public.other", false, 2)]);
    drop(back);
    told.until(SOON, &[("user:carl", false, 2), ("room:public.sale", false, 2)]);
}

#[test]
fn who_comes_from_an_instance_that_drains_to_another_one_has_not_gone() {
    let Some(redis) = RedisServer::start() else { return };
    let mut told = Told::new(Backend::ok());
    let more = format!("{}[drain]\nnotice = \"0s\"\nwindow = \"100ms\"\n", told_of(told.backend.address(), ""));
    let more = more.replace("presence_grace = \"100ms\"\n", "");
    let [one, mut two] = [0, 1].map(|_| instance(&redis, &more));
    let [mut carl, mut dora] = ["carl", "dora"].map(|name| Socket::open(&two, &user(name)));
    let two_is = node(&carl);
    told.until(SOON, &[("user:carl", true, 1), ("user:dora", true, 1)]);
    two.signal(rustix::process::Signal::TERM);
    carl.expect_close(1012);
    dora.expect_close(1012);
    let back = Socket::open(&one, &user("carl"));
    assert_eq!(two.wait_exit(SOON), Some(0));
    told.until(LEASE, &[("user:dora", false, 2)]);
    assert_eq!((told.last["user:carl"].0, told.node_of("user:dora")), (true, &*two_is));
    drop(back);
    told.until(SOON, &[("user:carl", false, 2)]);
    assert_ne!(told.node_of("user:carl"), two_is, "he was told once, from where he was last");
}

#[test]
fn what_was_decided_is_told_although_the_instance_that_was_to_tell_it_is_killed() {
    let Some(redis) = RedisServer::start() else { return };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let gateways = [0, 1].map(|_| Some(telling(&redis, address, "")));
    let mut sockets: Vec<Vec<Socket>> = Vec::new();
    for (at, gateway) in gateways.iter().flatten().enumerate() {
        sockets.push((0..20).map(|n| Socket::open(gateway, &user(&format!("u{at}-{n}")))).collect());
    }
    let waiting = |count: &str| (redis.ask(&["XLEN", "shardgate:events:outbox"]) == count).then_some(());
    until(SOON, "all is decided, and nobody takes it", || waiting("40"));
    let sender = redis.ask(&["GET", "shardgate:events:sender"]);
    let sends = sockets.iter().position(|sockets| node(&sockets[0]) == sender).expect("one of them");
    let mut gateways = gateways;
    gateways[sends] = None;
    let backend = Backend::start_at(address, |conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.1 204 Taken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    });
    let mut told = Told::new(backend);
    let names: Vec<String> = (0..40).map(|n| format!("user:u{}-{}", n / 20, n % 20)).collect();
    let all = |of: usize, is_there, n| {
        names[of * 20..][..20].iter().map(move |name| (&**name, is_there, n)).collect::<Vec<_>>()
    };
    told.until(2 * SOON, &all(1 - sends, true, 1));
    told.until(LEASE, &all(sends, false, 2));
    until(SOON, "Redis knows that all was taken", || waiting("0"));
}

#[test]
fn while_redis_is_away_nothing_is_told_and_then_all_that_has_changed() {
    let Some((mut redis, [one, two], mut told)) = start() else { return };
    let (ann, _ben) = (Socket::open(&one, &user("ann")), Socket::open(&two, &user("ben")));
    told.until(SOON, &[("user:ann", true, 1), ("user:ben", true, 1)]);
    let before = told.epoch.clone();
    redis.kill();
    drop(ann);
    redis.restart();
    told.until(2 * SOON, &[("user:ann", false, 2)]);
    assert_eq!((&told.epoch, &told.last["user:ben"].0), (&before, &true), "it has lost nothing");
    // And one that comes back empty.
    redis.ask(&["FLUSHALL"]);
    let _carl = Socket::open(&one, &user("carl"));
    told.until(2 * SOON, &[("user:ben", true, 1), ("user:carl", true, 1)]);
    assert_ne!(told.epoch, before, "they are numbered anew, and that can be seen");
    assert!(!told.last.contains_key("user:ann"), "who is not there is not told");
}

#[test]
fn on_a_cluster_all_that_is_of_all_instances_is_in_one_slot() {
    let Some(nodes) = cluster() else { return };
    let mut told = Told::new(Backend::ok());
    let more = told_of(told.backend.address(), "");
    let mode = "mode = \"cluster\"\n";
    let [one, two] = [0, 1].map(|at| {
        let config =
            config(&nodes[at], &more).replace("timeout = \"500ms\"\n", &format!("timeout = \"500ms\"\n{mode}"));
        let gateway = Gateway::start(&config);
        until_rooms_span(&gateway);
        gateway
    });
    let mut here = Socket::open(&one, &user("ann"));
    let mut there = Socket::open(&two, &user("ann"));
    here.join(ROOM);
    told.until(SOON, &[("user:ann", true, 1), ("room:public.sale", true, 1)]);
    let said = ask(&two, "POST", "/hub/users/ann/publish", &with_role("pricing", "service"), &json!({ "payload": 1 }));
    assert_eq!((said.status, &said.json()["connections"]), (202, &json!(2)), "{}", said.text());
    assert_eq!([here.hear(), there.hear()].map(|heard| heard["payload"].clone()), [json!(1), json!(1)]);
    let kicked = ask(&one, "DELETE", "/hub/users/ann/connections", &with_role("root", "admin"), &json!({}));
    assert_eq!(kicked.json(), json!({ "closed": 2, "instancesAsked": 2, "instancesAnswered": 2 }), "{}", kicked.text());
    told.until(SOON, &[("user:ann", false, 2), ("room:public.sale", false, 2)]);
}

#[test]
fn an_instance_that_the_service_cannot_be_reached_from_lets_another_one_tell() {
    let Some(redis) = RedisServer::start() else { return };
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let cut_off = telling(&redis, nobody, "");
    let _here: Vec<Socket> = (0..8).map(|n| Socket::open(&cut_off, &user(&format!("u{n}")))).collect();
    until(SOON, "all wait", || (redis.ask(&["XLEN", "shardgate:events:outbox"]) == "8").then_some(()));
    let mut told = Told::new(Backend::ok());
    let _other = telling(&redis, told.backend.address(), "");
    let names: Vec<String> = (0..8).map(|n| format!("user:u{n}")).collect();
    told.until(2 * SOON, &names.iter().map(|name| (&**name, true, 1)).collect::<Vec<_>>());
}

#[test]
fn a_reload_that_wants_no_events_any_more_leaves_them_to_others() {
    let Some((redis, [one, two], mut told)) = start() else { return };
    let (_ann, ben) = (Socket::open(&one, &user("ann")), Socket::open(&two, &user("ben")));
    told.until(SOON, &[("user:ann", true, 1), ("user:ben", true, 1)]);
    one.rewrite_config(&config(&redis, ""));
    one.signal(rustix::process::Signal::HUP);
    // Nobody looks any more whether she is there.
    told.until(SOON, &[("user:ann", false, 2)]);
    drop(ben);
    told.until(SOON, &[("user:ben", false, 2)]);
}

#[test]
fn what_waits_stays_when_an_instance_wants_no_events_any_more() {
    let Some(redis) = RedisServer::start() else { return };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let [one, two] = [0, 1].map(|_| telling(&redis, address, ""));
    let open = |gateway: &Gateway, name: &str| -> Vec<Socket> {
        (0..5).map(|n| Socket::open(gateway, &user(&format!("{name}{n}")))).collect()
    };
    let _sockets = [open(&one, "a"), open(&two, "b")];
    let waiting = |count: &str| (redis.ask(&["XLEN", "shardgate:events:outbox"]) == count).then_some(());
    until(SOON, "nobody takes it", || waiting("10"));
    one.rewrite_config(&config(&redis, ""));
    one.signal(rustix::process::Signal::HUP);
    until(SOON, "its users have gone for whoever counts", || waiting("15"));
}

#[test]
fn what_a_redis_forgot_before_the_service_took_it_is_not_told_among_what_comes_after() {
    let Some(redis) = RedisServer::start() else { return };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let [one, two] = [0, 1].map(|_| telling(&redis, address, ""));
    let open = |gateway: &Gateway, name: &str| -> Vec<Socket> {
        (0..20).map(|n| Socket::open(gateway, &user(&format!("{name}{n}")))).collect()
    };
    let (here, _there) = (open(&one, "a"), open(&two, "b"));
    let waiting = |count: &str| (redis.ask(&["XLEN", "shardgate:events:outbox"]) == count).then_some(());
    until(SOON, "nobody takes it", || waiting("40"));
    drop(here);
    until(SOON, "they have gone", || waiting("60"));
    redis.ask(&["FLUSHALL"]);
    until(SOON, "those who are there are counted anew", || waiting("20"));
    let backend = Backend::start_at(address, |conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.1 204 Taken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    });
    let mut told = Told::new(backend);
    let names: Vec<String> = (0..20).map(|n| format!("user:b{n}")).collect();
    let online: Vec<(&str, bool, u64)> = names.iter().map(|name| (&**name, true, 1)).collect();
    told.until(2 * SOON, &online);
    until(SOON, "all is taken", || waiting("0"));
    assert!(told.last.keys().all(|name| name.starts_with("user:b")), "{:?}", told.last);
}

#[test]
fn an_instance_that_has_lost_redis_sends_nothing_that_waits_there() {
    let Some(redis) = RedisServer::start() else { return };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let gateway = telling(&redis, address, "events = [\"user.online\"]\n");
    let _sockets: Vec<Socket> = (0..8).map(|n| Socket::open(&gateway, &user(&format!("u{n}")))).collect();
    gateway.log_until("lifecycle events of the hub are not taken, and will be sent again", SOON);
    redis.pause();
    gateway.log_until("rooms do not span instances: Redis is away", SOON);
    // It might be another instance's to send by now.
    let backend = Backend::start_at(address, |conversation| {
        conversation.read_request()?;
        conversation.send("HTTP/1.1 204 Taken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    });
    let mut told = Told::new(backend);
    let due = crate::harness::now() + Duration::from_millis(3500);
    while crate::harness::now() < due {
        assert_eq!(told.backend.requests().len(), 0, "Redis is away");
        pause(Duration::from_millis(20));
    }
    redis.go_on();
    let names: Vec<String> = (0..8).map(|n| format!("user:u{n}")).collect();
    told.until(2 * SOON, &names.iter().map(|name| (&**name, true, 1)).collect::<Vec<_>>());
}

#[test]
fn past_the_bound_the_oldest_go_and_are_counted() {
    let Some(redis) = RedisServer::start() else { return };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let gateway = telling(&redis, address, "events_waiting_max = 4\nevents = [\"user.online\"]\n");
    let _sockets: Vec<Socket> = (0..10).map(|n| Socket::open(&gateway, &user(&format!("u{n}")))).collect();
    gateway.metrics_until("six are dropped", |metrics| {
        metrics.value("shardgate_hub_events_total{result=\"dropped\"}") == 6
    });
    assert_eq!(redis.ask(&["XLEN", "shardgate:events:outbox"]), "4");
    gateway.log_until("hub.events_waiting_max", SOON);
}

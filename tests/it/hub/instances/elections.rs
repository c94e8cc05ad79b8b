//! A master that dies, and a replica that is made the next one by the servers themselves: by an election of sentinels, and by one of
//! a cluster's masters.

use std::time::Duration;

use serde_json::json;

use super::{ROOM, checker::under_load, instance_of, join_soon, publish_until_taken};
use crate::{
    harness::{Gateway, pause, until},
    hub::{
        SOON,
        across::{cluster, until_rooms_span},
        socket::Socket,
        user,
    },
    servers::redis::{RedisServer, ask},
};

/// How long a master may be gone until its replica has taken over and everything works again.
const TAKEN_OVER: Duration = Duration::from_secs(20);

/// Two instances that are told of all these servers.
#[track_caller]
fn instances(servers: &[RedisServer], mode: &str) -> [Gateway; 2] {
    let urls: Vec<String> = servers.iter().map(RedisServer::url).collect();
    let gateways = [(); 2].map(|()| instance_of(&urls.join("\", \""), mode, ""));
    gateways.iter().for_each(until_rooms_span);
    gateways
}

/// Waits until the replica has taken over and both hubs are ready, and gives the members time to say something.
#[track_caller]
fn until_taken_over(replica: &RedisServer, gateways: &[Gateway; 2]) {
    until(TAKEN_OVER, "the replica takes over", || {
        replica.ask(&["INFO", "replication"]).contains("role:master").then_some(())
    });
    until(TAKEN_OVER, "both are ready", || {
        gateways.iter().all(|gateway| gateway.get("/health/ready/hub").status == 200).then_some(())
    });
    pause(Duration::from_millis(1500));
}

#[track_caller]
fn until_it_follows(replica: &RedisServer) {
    until(SOON, "it follows", || replica.ask(&["INFO", "replication"]).contains("master_link_status:up").then_some(()));
}

#[test]
fn under_load_a_master_that_dies_is_replaced_by_its_sentinels_and_all_are_told() {
    let Some(mut master) = RedisServer::start() else { return };
    let port = master.port().to_string();
    let Some(replica) = RedisServer::start_with(&["--save", "", "--replicaof", "127.0.0.1", &port]) else { return };
    until_it_follows(&replica);
    let sentinels: Vec<RedisServer> =
        (0..3).filter_map(|_| RedisServer::start_sentinel("rooms", master.port())).collect();
    for sentinel in &sentinels {
        for (what, value) in [("quorum", "2"), ("down-after-milliseconds", "1000"), ("failover-timeout", "4000")] {
            sentinel.ask(&["SENTINEL", "SET", "rooms", what, value]);
        }
    }
    for sentinel in &sentinels {
        until(TAKEN_OVER, "they know of each other and of the replica", || {
            let knows = |what: &str| {
                let told = sentinel.ask(&["SENTINEL", "MASTER", "rooms"]);
                let mut lines = told.lines().skip_while(|line| *line != what).skip(1);
                lines.next().and_then(|count| count.parse::<u32>().ok()).unwrap_or(0)
            };
            (knows("num-other-sentinels") == 2 && knows("num-slaves") == 1).then_some(())
        });
    }
    let gateways = instances(&sentinels, "sentinel\"\nmaster = \"rooms");
    let members = under_load(&gateways, || {
        pause(Duration::from_millis(500));
        master.kill();
        until_taken_over(&replica, &gateways);
    });
    assert!(members.iter().all(|member| member.checker.told > 0), "a replica may lack the last messages");
    // The old one comes back empty, and is made to follow: nobody is told of anything.
    let mut reader = Socket::open(&gateways[1], &user("reader"));
    let joined = join_soon(&mut reader, &json!({}));
    master.restart();
    until(TAKEN_OVER, "it follows the other", || {
        // The sentinels cut its connections as they make it follow.
        let told = ask(master.port(), &["INFO", "replication"]).unwrap_or_default();
        told.contains("master_link_status:up").then_some(())
    });
    let mut writer = Socket::open(&gateways[0], &user("writer"));
    join_soon(&mut writer, &json!({}));
    let ack = publish_until_taken(&mut writer, "after", &json!("after"), &mut Vec::new());
    let message = reader.hear_type("room_message");
    assert_eq!((&message["epoch"], &message["seq"]), (&joined["epoch"], &ack["seq"]), "{message}");
}

#[test]
fn under_load_a_clusters_master_that_dies_is_replaced_by_its_replica_and_all_are_told() {
    let Some(mut nodes) = cluster() else { return };
    let gateways = instances(&nodes, "cluster");
    // Whichever has the room.
    let mut socket = Socket::open(&gateways[0], &user("first"));
    join_soon(&mut socket, &json!({}));
    publish_until_taken(&mut socket, "first", &json!("first"), &mut Vec::new());
    drop(socket);
    let key = format!("shardgate:room:{ROOM}:meta*");
    let at = nodes.iter().position(|node| !node.ask(&["KEYS", &key]).is_empty()).expect("one has it");
    let arguments = ["--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    let Some(replica) = RedisServer::start_with(&arguments) else { return };
    replica.ask(&["CLUSTER", "MEET", "127.0.0.1", &nodes[at].port().to_string()]);
    let master = nodes[at].ask(&["CLUSTER", "MYID"]);
    until(SOON, "it knows its master", || {
        let told = replica.ask(&["CLUSTER", "NODES"]);
        let is_known = |line: &str| line.starts_with(&master) && !line.contains("handshake");
        (told.lines().count() == 4 && told.lines().any(is_known)).then_some(())
    });
    replica.ask(&["CLUSTER", "REPLICATE", &master]);
    until_it_follows(&replica);
    // All masters have to know of it, or they do not vote.
    until(SOON, "all know of it", || {
        nodes.iter().all(|node| node.ask(&["CLUSTER", "NODES"]).contains(&format!("slave {master}"))).then_some(())
    });
    let members = under_load(&gateways, || {
        pause(Duration::from_millis(500));
        nodes[at].kill();
        until_taken_over(&replica, &gateways);
    });
    assert!(members.iter().all(|member| member.checker.told > 0), "a replica may lack the last messages");
}

//! What a Redis lets its user do that rooms across instances need.

use serde_json::json;

use super::{ROOM, instance_of, until_rooms_span};
use crate::{
    backend::Backend,
    harness::{Client, Gateway, until},
    hub::{SOON, socket::Socket, user},
    servers::redis::RedisServer,
};

/// What docs/sessions.md gives a user of Redis.
fn documented_rights() -> Vec<&'static str> {
    let documentation = include_str!("../../../../docs/sessions.md");
    let (_, rest) =
        documentation.split_once("A Redis user whose keys and channels are restricted needs").expect("it is there");
    let command = rest.split('`').find(|text| text.starts_with("ACL SETUSER")).expect("a command");
    let categories = command.split(' ').filter(|word| word.starts_with(['+', '-']));
    categories.chain(rest.split('`').nth(1).expect("in backticks").split(' ')).collect()
}

/// All of these but one.
#[track_caller]
fn without<'a>(rights: &[&'a str], missing: &str) -> Vec<&'a str> {
    let fewer: Vec<&str> = rights.iter().copied().filter(|right| *right != missing).collect();
    assert_eq!(fewer.len() + 1, rights.len(), "{missing}");
    fewer
}

/// The operator's page about the hub says so, soon.
#[track_caller]
fn expect_page(gateway: &Gateway, status: u16, part: &str) {
    until(SOON, "the page says why", || {
        let mut operator = Client::connect(gateway.admin());
        operator.send("GET /health/ready/hub HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let page = operator.read_response();
        (page.status == status && page.text().contains(part)).then_some(())
    });
}

#[test]
fn a_redis_user_with_the_rights_that_are_documented_suffices_and_each_is_needed() {
    let Some(redis) = RedisServer::start() else { return };
    let rights = documented_rights();
    let set = |name: &str, rights: &[&str]| {
        redis.ask(&[&["ACL", "SETUSER", name, "reset", "on", ">pass", "resetchannels"], rights].concat());
    };
    set("gate", &rights);
    let url = redis.url().replacen("redis://", "redis://gate:pass@", 1);
    let gateways = [(); 2].map(|()| instance_of(&url, "single", ""));
    gateways.iter().for_each(until_rooms_span);
    let mut members = [0, 1].map(|n| Socket::open(&gateways[n], &user(&format!("u{n}"))));
    for member in &mut members {
        member.join(ROOM);
    }
    members[0].publish(ROOM, "1", &json!("over"));
    assert_eq!(members[1].hear_type("room_message")["payload"], "over");
    // By this the scripts see that another server has taken over. They go on without it, and say nothing.
    assert!(!redis.ask(&["HGET", &format!("shardgate:room:{ROOM}:meta"), "server"]).is_empty());
    until(SOON, "each knows of the other's users", || {
        let users = members[1].ask(&json!({ "type": "presence", "id": "2", "room": ROOM, "payload": {} }));
        (users["payload"]["total"] == 2).then_some(())
    });

    assert!(!gateways[0].log().contains("which server it is"), "{}", gateways[0].log());

    for missing in ["~shardgate:room:*", "~shardgate:presence:*", "&shardgate:bus:*"] {
        set("less", &without(&rights, missing));
        let mut gateway = instance_of(&redis.url().replacen("redis://", "redis://less:pass@", 1), "single", "");
        gateway.expect_error("Redis refuses what rooms across instances need");
        let told = gateway.log_until("docs/sessions.md", SOON);
        assert!(told.contains("NOPERM"), "{told}");
        expect_page(&gateway, 503, r#""bus":"refused""#);
        // Without an instance more, a user that gets the right is all that it takes.
        set("less", &rights);
        gateway.log_until("rooms span instances: Redis is there", SOON);
    }
}

#[test]
fn what_redis_refuses_of_lifecycle_events_is_told_once_with_the_key_and_the_hub_is_not_ready() {
    let Some(redis) = RedisServer::start() else { return };
    let backend = Backend::ok();
    let told =
        format!("[upstreams.back]\ninstances = [\"{}\"]\n[hub]\nevents_upstream = \"back\"\n", backend.address());
    let rights = documented_rights();
    let set = |rights: &[&str]| {
        redis.ask(&[&["ACL", "SETUSER", "less", "reset", "on", ">pass", "resetchannels"], rights].concat());
    };
    set(&without(&rights, "~shardgate:events:*"));
    let url = redis.url().replacen("redis://", "redis://less:pass@", 1);
    let mut gateway = instance_of(&url, "single", &told);
    gateway.expect_error("Redis refuses what lifecycle events need");
    gateway.log_until("rooms span instances: Redis is there", SOON);
    let refused = |gateway: &Gateway| {
        expect_page(gateway, 503, r#""bus":"events_refused""#);
        let before = gateway.metrics().value("shardgate_hub_bus_refusals_total");
        gateway.metrics_until("it is asked again and again", |metrics| {
            metrics.value("shardgate_hub_bus_refusals_total") > before + 2
        });
        let log = gateway.log();
        assert_eq!(log.matches("Redis refuses what lifecycle events need").count(), 1, "{log}");
        assert!(log.contains("shardgate:events:*"), "{log}");
        // Rooms span instances all the same.
        Socket::open(gateway, &user("ann")).join(ROOM);
    };
    refused(&gateway);
    set(&rights);
    expect_page(&gateway, 200, r#""bus":"up""#);
    drop(gateway);
    // Somebody else has written the key.
    redis.ask(&["DEL", "shardgate:events:there"]);
    redis.ask(&["SET", "shardgate:events:there", "x"]);
    let mut gateway = instance_of(&url, "single", &told);
    gateway.expect_error("Redis refuses what lifecycle events need");
    gateway.log_until("WRONGTYPE", SOON);
    refused(&gateway);
    redis.ask(&["DEL", "shardgate:events:there"]);
    expect_page(&gateway, 200, r#""bus":"up""#);
}

#[test]
fn a_redis_that_does_not_tell_which_server_it_is_is_warned_of() {
    let Some(redis) = RedisServer::start() else { return };
    let fewer = without(&documented_rights(), "+info");
    redis.ask(&[&["ACL", "SETUSER", "less", "reset", "on", ">pass", "resetchannels"], &fewer[..]].concat());
    let gateway = instance_of(&redis.url().replacen("redis://", "redis://less:pass@", 1), "single", "");
    gateway.log_until("Redis does not tell which server it is", SOON);
    expect_page(&gateway, 200, r#""bus":"up""#);
    Socket::open(&gateway, &user("ann")).join(ROOM);
}

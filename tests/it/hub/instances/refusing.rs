//! What a Redis lets its user do that rooms across instances need.

use serde_json::json;

use super::{ROOM, instance_of};
use crate::{
    harness::{Client, until},
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

#[test]
fn a_redis_user_with_the_rights_that_are_documented_suffices_and_each_is_needed() {
    let Some(redis) = RedisServer::start() else { return };
    let rights = documented_rights();
    let set = |name: &str, rights: &[&str]| {
        redis.ask(&[&["ACL", "SETUSER", name, "reset", "on", ">pass", "resetchannels"], rights].concat());
    };
    set("gate", &rights);
    let gateways =
        [(); 2].map(|()| instance_of(&redis.url().replacen("redis://", "redis://gate:pass@", 1), "single", ""));
    for gateway in &gateways {
        gateway.log_until("rooms span instances: Redis is there", SOON);
    }
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

    for missing in ["~shardgate:room:*", "~shardgate:presence:*", "&shardgate:bus:*"] {
        let fewer: Vec<&str> = rights.iter().copied().filter(|right| *right != missing).collect();
        assert_eq!(fewer.len() + 1, rights.len(), "{missing}");
        set("less", &fewer);
        let mut gateway = instance_of(&redis.url().replacen("redis://", "redis://less:pass@", 1), "single", "");
        gateway.expect_error("Redis refuses what rooms across instances need");
        let told = gateway.log_until("docs/sessions.md", SOON);
        assert!(told.contains("NOPERM"), "{told}");
        until(SOON, "the page says why", || {
            let mut operator = Client::connect(gateway.admin());
            operator.send("GET /health/ready/hub HTTP/1.1\r\nhost: localhost\r\n\r\n");
            let page = operator.read_response();
            (page.status == 503 && page.text().contains(r#""bus":"refused""#)).then_some(())
        });
        // Without an instance more, a user that gets the right is all that it takes.
        set("less", &rights);
        gateway.log_until("rooms span instances: Redis is there", SOON);
    }
}

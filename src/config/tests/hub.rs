//! What `[hub]` may say.

use super::*;
use expect_test::expect;

#[test]
fn mistakes_of_the_hub_are_told() {
    check(
        "[hub]\ndead_after = \"25s\"\ntoken_query = \"a b\"\nevents_upstream = \"nobody\"\nevents_path = \"x\"\nevents = [\"room\"]\n",
        &expect![[r#"
            shardgate.toml:2: hub.dead_after is "25s"; it is more than hub.ping_interval, which is "25s"
            shardgate.toml:3: hub.token_query is "a b"; it is up to 64 of A-Z, a-z, 0-9, ., _ and -, like "token"
            shardgate.toml:4: hub.events_upstream is "nobody", and there is no such upstream; there are ai-engine, ingestion, prediction
            shardgate.toml:5: hub.events_path is "x"; a path begins with a slash
            shardgate.toml:6: hub.events[0] is "room"; it is one of "room.occupied", "room.vacated", "user.online", "user.offline""#]],
    );
    check(
        "[[hub.rooms]]\npattern = \"pub*\"\nroles = [\"nobody\"]\npermissions = [\"a b\"]\nkey = \"symbol\"\n\
         [[hub.rooms]]\npattern = \"b\"\nkey = \"/symbol\"\n\
         [[hub.rooms]]\npattern = \"c\"\nslow_consumer = \"latest\"\nkey = \"/a~2b\"\n",
        &expect![[r#"
            shardgate.toml:2: hub.rooms[0].pattern is "pub*"; a room's name is up to 128 of A-Z, a-z, 0-9, ., _, : and -; {sub}, once, stands for the user's id, and a star at the end for all that begin so: each by itself between "." or ":", as in user.{sub}.*
            shardgate.toml:3: hub.rooms[0].roles has "nobody", and there is no such role; there are admin, analyst, service, user
            shardgate.toml:4: hub.rooms[0].permissions has "a b"; a permission is up to 128 of A-Z, a-z, 0-9, ., _, - and :, like "events:write"
            shardgate.toml:5: hub.rooms[0].key is "symbol"; a JSON pointer begins with a slash, like "/symbol", has ~ only as ~0 or ~1 (RFC 6901), up to 16 steps, and up to 128 bytes
            shardgate.toml:8: hub.rooms[1].key is given, and slow_consumer is "close"; keys are for slow_consumer = "latest"
            shardgate.toml:12: hub.rooms[2].key is "/a~2b"; a JSON pointer begins with a slash, like "/symbol", has ~ only as ~0 or ~1 (RFC 6901), up to 16 steps, and up to 128 bytes"#]],
    );
    check(
        "[[hub.services]]\ntype_name = \"join_room\"\nupstream = \"nobody\"\npath = \"x\"\nanswer = \"a b\"\n\
         [[hub.services]]\ntype_name = \"a\"\nupstream = \"ingestion\"\npath = \"/\"\nshare = \"anyone\"\n\
         [[hub.services]]\ntype_name = \"a\"\nupstream = \"ingestion\"\npath = \"/\"\n\
         [[hub.services]]\ntype_name = \"prediction_response\"\nupstream = \"ingestion\"\npath = \"/\"\n",
        &expect![[r#"
            shardgate.toml:2: hub.services[0].type_name is "join_room"; the hub itself gives that type its meaning
            shardgate.toml:3: hub.services[0].upstream is "nobody", and there is no such upstream; there are ai-engine, ingestion, prediction
            shardgate.toml:4: hub.services[0].path is "x"; a path begins with a slash
            shardgate.toml:5: hub.services[0].answer is "a b"; a type is up to 64 of A-Z, a-z, 0-9, ., _ and -, like "cart_event"
            shardgate.toml:10: hub.services[1].share is "anyone", and there is no answer; what is only acknowledged is an event, and each counts
            shardgate.toml:12: hub.services[2].type_name is "a", as that of another entry; a type goes to one service
            shardgate.toml:16: hub.services[3].type_name is "prediction_response"; the hub itself gives that type its meaning"#]],
    );
}

#[test]
fn what_is_by_default_stands_in_for_lists_that_are_not_written() {
    let hub = good("").hub;
    let patterns: Vec<_> = hub.rooms.iter().map(|room| room.pattern.as_str()).collect();
    let services: Vec<_> = hub.services.iter().map(|service| service.type_name.as_str()).collect();
    assert_eq!((patterns, services), (vec!["public.*", "user.{sub}.*"], vec!["cart_event", "prediction_request"]));
    let hub = good("[hub]\nrooms = []\nservices = []\n").hub;
    assert_eq!((hub.rooms.len(), hub.services.len()), (0, 0));
    let hub =
        good("[upstreams.prediction]\ninstances = [\"p:1\"]\n[[routes]]\npath = \"/\"\nupstream = \"prediction\"\n")
            .hub;
    assert_eq!(hub.services.len(), 1, "there is no ingestion");
}

#[test]
fn what_looks_like_a_mistake_in_the_hub_is_told() {
    check(
        "[hub]\nwithout_redis = \"local\"\noutbox_bytes_max = \"64KiB\"\n[[hub.rooms]]\npattern = \"public.*\"\n\
         [[hub.rooms]]\npattern = \"public.*\"\nroles = [\"admin\"]\n\
         [[hub.rooms]]\npattern = \"public.*\"\npresence_events = true\n",
        &expect![[r#"
            warning: shardgate.toml:10: hub.rooms[2].pattern is "public.*", as that of an entry before it for the same roles and permissions: either may allow something, and all else is as the first one says
            warning: shardgate.toml:3: hub.outbox_bytes_max is "64KiB", and hub.message_bytes_max "64KiB": below twice as much, long messages close members who read as fast as they can (4000)
            warning: shardgate.toml:2: hub.without_redis is given, and there is no Redis
        "#]],
    );
    let upstreams = "[upstreams.a]\ninstances = [\"h:1\"]\n[upstreams.b]\ninstances = [\"h:1\"]\n\
                     [upstreams.c]\ninstances = [\"h:1\"]\n[[routes]]\npath = \"/\"\nupstream = \"a\"\n";
    let hub =
        "[hub]\nevents_upstream = \"c\"\n[[hub.services]]\ntype_name = \"order\"\nupstream = \"b\"\npath = \"/\"\n";
    check(&format!("{upstreams}{hub}"), &expect![[r#""#]]);
    check(
        &format!("{upstreams}{hub}").replace("[hub]", "[hub]\nenabled = false"),
        &expect![[r#"
        warning: upstreams.b is the upstream of no route, and of nothing in [hub]
        warning: upstreams.c is the upstream of no route, and of nothing in [hub]
    "#]],
    );
}

#[test]
fn a_drain_that_may_cut_sockets_is_told() {
    let told = |notice, window, max, more| {
        let text = format!("[drain]\nnotice = \"{notice}\"\nwindow = \"{window}\"\nmax = \"{max}\"\n{more}");
        resolve(Some((Path::new("shardgate.toml"), &text)), &env(&[])).expect("it is sound").warnings
    };
    assert_eq!(
        told("2s", "30s", "36s", ""),
        [
            "shardgate.toml:4: drain.max is \"36s\", and drain.notice, drain.window and the 5s in which a client of the hub may \
             answer a close make \"37s\": sockets may be cut, and the process then ends with 3"
        ]
    );
    assert!(told("2s", "30s", "37s", "").is_empty());
    assert!(told("2s", "30s", "36s", "[hub]\nenabled = false\n").is_empty(), "nothing is cut that is not there");
}

#[test]
fn instances_that_share_a_redis_and_not_their_users_are_told() {
    let redis = "[redis]\nurls = [\"redis://r\"]\n[sessions]\nsecret = \"a secret that is as long as it has to be\"\n";
    check(
        redis,
        &expect![[r#"
        warning: shardgate.toml:2: redis.urls is given, and tokens are signed with a key that this instance makes for itself: others that share the Redis answer them with 401; give all of them the same [[auth.keys]]
        warning: shardgate.toml:2: redis.urls is given, and users are kept in this instance's own file: others that share the Redis do not have them; name accounts.postgres_url, or take the tokens of an issuer (accounts.enabled = false)
    "#]],
    );
    check(&format!("{redis}[accounts]\nenabled = false\n"), &expect![[r#""#]]);
    let shared = "[accounts]\npostgres_url = \"postgres://u@h/d\"\n\
                  [[auth.keys]]\nkid = \"1\"\nalgorithm = \"ES256\"\nfile = \"/k\"\n";
    check(&format!("{redis}{shared}"), &expect![[r#""#]]);
}

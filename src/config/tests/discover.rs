//! What `[upstreams.<name>.discover]` may say.

use super::*;
use expect_test::expect;

/// A file with these lines, and with the Redis that a registry needs.
pub(super) fn with_redis(lines: &str) -> String {
    format!(
        "[redis]\nurls = [\"redis://r\"]\n[sessions]\nsecret = \"an example of 32 bytes or more: no secret\"\n\
         {ONE_ROUTE}[upstreams.a.discover]\n{lines}"
    )
}

#[test]
fn instances_may_be_written_or_found() {
    let found = "[upstreams.a]\ndiscover = { file = \"./shop.toml\", srv = \"_http._TCP.shop.test.\" }\n\
                 [[routes]]\npath = \"/\"\nupstream = \"a\"\n";
    let upstream = &good(found).upstreams["a"];
    assert!(upstream.instances.is_empty() && upstream.discover.is_given());
    assert_eq!(upstream.discover.srv.as_ref().map(ToString::to_string).as_deref(), Some("_http._tcp.shop.test"));
    let both = &good(&with_redis("redis = true\n")).upstreams["a"];
    assert!(both.discover.redis && both.instances.len() == 1);
    assert!(!good(ONE_ROUTE).upstreams["a"].discover.is_given());
}

#[test]
fn mistakes_of_discovery_are_told() {
    check(
        "[upstreams.a.discover]\nfile = \"shop.yaml\"\nsrv = \"10.0.0.1\"\nredis = true\ndns = \"x\"\n\
         [upstreams.b]\ndiscover = {}\n[upstreams.c]\n[upstreams.d]\ndiscover = 1\n",
        &expect![[r#"
            shardgate.toml:2: upstreams.a.discover.file is "shop.yaml"; its name ends in ".toml" or ".json"
            shardgate.toml:3: upstreams.a.discover.srv is "10.0.0.1"; write a name with SRV records, like "_http._tcp.shop.internal"
            shardgate.toml:4: upstreams.a.discover.redis is true, and there is no Redis; name it in redis.urls
            shardgate.toml:5: upstreams.a.discover.dns is not a key; there are file, srv, redis
            shardgate.toml:7: upstreams.b.discover finds nothing; write a file or a name with SRV records, or redis = true, or name the upstream's instances
            shardgate.toml:8: upstreams.c.instances is missing; name one or more: ["127.0.0.1:4001"], or say in [upstreams.c.discover] where they are found
            shardgate.toml:10: upstreams.d.discover is 1; it is a table: [upstreams.d.discover]
            shardgate.toml:10: upstreams.d.discover finds nothing; write a file or a name with SRV records, or redis = true, or name the upstream's instances"#]],
    );
}

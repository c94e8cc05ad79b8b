//! Keys that say something and do nothing, which is worth a warning.

use super::*;
use expect_test::expect;

#[test]
fn keys_that_do_nothing() {
    let upstream = |name: &str, keys: &str, health: &str, breaker: &str| {
        format!(
            "[upstreams.{name}]\ninstances = [\"h:1\"]\n{keys}[upstreams.{name}.health]\n{health}\
             [upstreams.{name}.breaker]\n{breaker}[[routes]]\naccess = \"public\"\npath = \"/{name}\"\nupstream = \"{name}\"\n"
        )
    };
    let secret = "hash_secret = \"an example: no secret\"\n";
    let idle = upstream(
        "a",
        &format!(
            "hash_key = \"user\"\n{secret}outlier_failures = 0\noutlier_window = \"1m\"\noutlier_share_percent = 30\n"
        ),
        "kind = \"tcp\"\nstatuses = \"200\"\nhost = \"a\"\n",
        "percent = 0\nopen_for = \"30s\"\n",
    );
    // What is as by default says nothing, and what is off may be off twice.
    let usual = upstream(
        "c",
        "hash_key = \"address\"\noutlier_failures = 0\noutlier_share_percent = 0\noutlier_window = \"10s\"\n",
        "kind = \"tcp\"\nstatuses = \"200-399\"\n",
        "percent = 0\nopen_for = \"5s\"\n",
    );
    let used = upstream(
        "d",
        &format!("balance = \"consistent_hash\"\nhash_key = \"user\"\n{secret}outlier_window = \"1m\"\n"),
        "path = \"/\"\nstatuses = \"200\"\nhost = \"a\"\n",
        "open_for = \"30s\"\n",
    );
    check(
        &(idle + &usual + &used),
        &expect![[r#"
        warning: shardgate.toml:11: upstreams.a.health.host does nothing, as upstreams.a.health.kind is "tcp", and only a GET has it
        warning: shardgate.toml:10: upstreams.a.health.statuses does nothing, as upstreams.a.health.kind is "tcp", and only a GET has it
        warning: shardgate.toml:14: upstreams.a.breaker.open_for does nothing, as upstreams.a.breaker.percent is 0
        warning: shardgate.toml:3: upstreams.a.hash_key does nothing, as upstreams.a.balance is not "consistent_hash"
        warning: shardgate.toml:4: upstreams.a.hash_secret does nothing, as upstreams.a.balance is not "consistent_hash"
        warning: shardgate.toml:7: upstreams.a.outlier_share_percent does nothing, as upstreams.a.outlier_failures is 0
        warning: shardgate.toml:6: upstreams.a.outlier_window does nothing, as upstreams.a.outlier_failures is 0
    "#]],
    );
    let zoned = ONE_ROUTE.replace("\"h:1\"", "{ address = \"h:1\", zone = \"a\" }");
    check(
        &zoned,
        &expect![[r#"
        warning: upstreams.a.instances have zones, which do nothing: say in runtime.zone where the gateway stands
    "#]],
    );
    check(&("[runtime]\nzone = \"b\"\n".to_owned() + &zoned), &expect![[""]]);
}

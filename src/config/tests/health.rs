//! What `[upstreams.<name>.health]` may say.

use super::*;
use crate::config::ProbeKind;
use expect_test::expect;

fn with(lines: &str) -> String {
    format!("{ONE_ROUTE}[upstreams.a.health]\n{lines}")
}

#[test]
fn a_path_or_a_kind_makes_probes() {
    let kind = |text: &str| good(text).upstreams["a"].health.kind();
    assert_eq!(kind(ONE_ROUTE), None);
    assert_eq!(kind(&with("interval = \"1s\"\ntimeout = \"1s\"\n")), None);
    assert_eq!(kind(&with("path = \"/health?deep=1\"\n")), Some(ProbeKind::Http));
    assert_eq!(kind(&with("kind = \"tcp\"\n")), Some(ProbeKind::Tcp));
    check(
        &with("interval = \"9s\"\n"),
        &expect![[r#"
        warning: shardgate.toml:6: upstreams.a.health has neither path nor kind, so that nothing is probed
    "#]],
    );
    let statuses =
        |text: &str| good(&with(&format!("path = \"/\"\nstatuses = \"{text}\"\n"))).upstreams["a"].health.statuses;
    assert!(statuses("200-299").contains(299) && !statuses("200-299").contains(300));
    assert!(statuses("204").contains(204) && !statuses("204").contains(203));
}

#[test]
fn a_short_interval_needs_no_timeout_of_its_own() {
    let timeout_ms =
        |more: &str| good(&with(&format!("path = \"/\"\n{more}"))).upstreams["a"].health.timeout.as_millis();
    assert_eq!(["", "interval = \"1s\"\n", "interval = \"10s\"\n"].map(timeout_ms), [2000, 1000, 2000]);
}

#[test]
fn mistakes_of_probes_are_told() {
    check(
        &with(
            "path = \"health\"\nhost = \"a b\"\nstatuses = \"2xx\"\ninterval = \"1s\"\ntimeout = \"2s\"\ndown_after = 0\nbody = \"ok\"\n",
        ),
        &expect![[r#"
            shardgate.toml:7: upstreams.a.health.path is "health"; it is a path as it stands in a request, like "/health"
            shardgate.toml:8: upstreams.a.health.host is "a b"; it is a host, like "shop.internal"
            shardgate.toml:9: upstreams.a.health.statuses is "2xx"; it is a status, like "200", or two with a dash between them, like "200-399"
            shardgate.toml:11: upstreams.a.health.timeout is "2s"; it is not more than interval, which is "1s"
            shardgate.toml:12: upstreams.a.health.down_after is 0; it is a whole number from 1 to 100"#]],
    );
    check(
        &with("kind = \"http\"\n"),
        &expect![[
            r#"shardgate.toml:7: upstreams.a.health.kind is "http", and there is no path; write path = "/health""#
        ]],
    );
    check(
        &with("kind = \"tcp\"\npath = \"/\"\n"),
        &expect![[r#"shardgate.toml:7: upstreams.a.health.kind is "tcp", and there is a path; leave one of them out"#]],
    );
    check(
        &with("path = \"/a#b\"\nstatuses = \"399-200\"\nkind = \"grpc\"\n"),
        &expect![[r#"
        shardgate.toml:7: upstreams.a.health.path is "/a#b"; it is a path as it stands in a request, like "/health"
        shardgate.toml:8: upstreams.a.health.statuses is "399-200"; it is a status, like "200", or two with a dash between them, like "200-399"
        shardgate.toml:9: upstreams.a.health.kind is "grpc"; it is one of "http", "tcp""#]],
    );
}

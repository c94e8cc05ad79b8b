//! Limits of the rate of requests: who is counted together, what is refused, and what answers say of it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::expect_refusal;
use crate::{
    backend::Backend,
    client::{Client, Response},
    harness::{Gateway, pause},
    servers::redis::RedisServer,
};

/// A gateway in front of one backend, with these limits, and a route that may say more.
fn start(backend: SocketAddr, limits: &str, route: &str) -> Gateway {
    Gateway::start(&config(backend, limits, route))
}

fn config(backend: SocketAddr, limits: &str, route: &str) -> String {
    format!(
        "{limits}\n[upstreams.back]\ninstances = [\"{backend}\"]\n[[routes]]\nname = \"all\"\npath = \"/*\"\n\
         upstream = \"back\"\naccess = \"public\"\n{route}\n[[routes]]\nname = \"other\"\npath = \"/other\"\n\
         upstream = \"back\"\naccess = \"public\"\n"
    )
}

/// The members of a list of strings with parameters (RFC 9651), each with its parameters.
#[track_caller]
fn members(answer: &Response, field: &str) -> Vec<(String, BTreeMap<String, u64>)> {
    let Some(value) = answer.field(field) else { return Vec::new() };
    let member = |text: &str| {
        let mut parts = text.trim().split(';');
        let name =
            parts.next().and_then(|name| name.strip_prefix('"')?.strip_suffix('"')).expect("a string").to_owned();
        let parameter = |text: &str| {
            let (name, value) = text.split_once('=').expect("a parameter");
            (name.to_owned(), value.parse().expect("an integer"))
        };
        (name, parts.map(parameter).collect())
    };
    value.split(',').map(member).collect()
}

#[track_caller]
fn expect_limited(answer: &Response, seconds_max: u64) {
    expect_refusal(answer, 429, "rate_limited");
    let after: u64 = answer.field("retry-after").and_then(|after| after.parse().ok()).expect("when to come again");
    assert!((1..=seconds_max).contains(&after), "{after}");
    let (_, stated) = members(answer, "ratelimit").remove(0);
    assert_eq!((stated["r"], stated["t"]), (0, after), "both name the same moment: {answer:?}");
}

/// Asks from one of loopback's addresses.
#[track_caller]
fn ask_from(gateway: &Gateway, local: &str, fields: &str) -> Response {
    let mut client =
        Client::connect_from(local.parse().expect("an address"), gateway.address()).expect("the listener answers");
    client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n"));
    client.read_response()
}

#[test]
fn an_address_has_its_burst_and_then_waits() {
    let mut backend = Backend::ok();
    let gateway =
        start(backend.address(), "[limits.api]\nquota = 6\nwindow = \"1h\"\nburst = 3\nscope = \"shard\"", "");
    let mut client = gateway.connect();
    for remaining in [2, 1, 0] {
        let answer = client.get("/x");
        assert_eq!(answer.status, 200);
        let limits = members(&answer, "ratelimit");
        assert_eq!((limits.len(), limits[0].0.as_str(), limits[0].1["r"]), (1, "api", remaining));
        assert!((1..=1800).contains(&limits[0].1["t"]), "{limits:?}");
        assert_eq!(answer.field("ratelimit-policy"), Some("\"api\";q=6;w=3600"));
    }
    let answer = client.get("/x");
    expect_limited(&answer, 600);
    assert_eq!(answer.field("ratelimit-policy"), Some("\"api\";q=6;w=3600"));
    assert_eq!(backend.requests().len(), 3, "what is refused goes no further");
    // The connection stays in use, and the gateway's own pages are never limited.
    for _ in 0..5 {
        let answer = client.get("/health/live");
        assert_eq!((answer.status, answer.field("ratelimit")), (200, None));
    }
    let metrics = gateway.metrics();
    for (outcome, count) in [("allowed", 3), ("limited", 1), ("dry_run", 0)] {
        let series = format!("shardgate_limit_requests_total{{limit=\"api\",outcome=\"{outcome}\"}}");
        assert_eq!(metrics.value(&series), count, "{series}");
    }
    assert_eq!(metrics.value("shardgate_rejects_total{code=\"rate_limited\"}"), 1);
    assert_eq!(gateway.access_lines(4)[3]["reason"], "rate_limited");
}

#[test]
fn whoever_waits_as_told_passes() {
    let backend = Backend::ok();
    let gateway = start(backend.address(), "[limits.api]\nquota = 1\nwindow = \"1s\"\nscope = \"shard\"", "");
    let mut client = gateway.connect();
    assert_eq!(client.get("/x").status, 200);
    for _ in 0..2 {
        let refused = client.get("/x");
        expect_limited(&refused, 1);
        pause(Duration::from_secs(refused.field("retry-after").and_then(|after| after.parse().ok()).expect("seconds")));
        assert_eq!(client.get("/x").status, 200);
    }
}

#[test]
fn shards_count_together_and_their_overshoot_is_bounded() {
    let backend = Backend::ok();
    let gateway = start(backend.address(), "[limits.api]\nquota = 200\nwindow = \"1d\"", "");
    // Many connections, asked in turn: the kernel spreads them, and every shard gets its share.
    let mut clients: Vec<_> = (0..64).map(|_| gateway.connect()).collect();
    let mut passed = 0;
    for _ in 0..8 {
        for client in &mut clients {
            let answer = client.get("/x");
            match answer.status {
                200 => passed += 1,
                _ => expect_limited(&answer, 86_400),
            }
        }
    }
    let shards = gateway.metrics().by_shard("shardgate_shard_requests_total");
    assert!(shards.len() == 4 && shards.iter().all(|count| *count > 0), "{shards:?}");
    // Three other shards, each ahead by 200 / 16 at the most.
    assert!((200..=200 + 3 * 12).contains(&passed), "{passed}");
}

#[test]
fn a_burst_from_everywhere_at_once_passes_whole_and_no_further() {
    let backend = Backend::ok();
    let gateway = start(backend.address(), "[limits.api]\nquota = 64\nwindow = \"1d\"", "");
    let mut clients: Vec<_> = (0..128).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let passed = clients.iter_mut().map(|client| client.read_response().status).filter(|status| *status == 200).count();
    assert!(passed >= 64, "{passed}");
    assert!(gateway.metrics().value("shardgate_limit_held_total{limit=\"api\"}") > 0, "some waited for the key's home");
    // A shard that saw few of them may have some of its lease left, until it is told what the others have let in.
    let (mut passed, mut refused) = (passed, 0);
    while refused < 16 {
        let answer = gateway.get("/x");
        if answer.status == 200 {
            passed += 1;
        } else {
            expect_limited(&answer, 86_400);
            refused += 1;
        }
        assert!(passed <= 64 + 3 * 4, "{passed}");
    }
}

#[test]
fn addresses_are_those_of_clients_behind_trusted_proxies() {
    let backend = Backend::ok();
    let limits = "[trust]\nproxies = [\"127.0.0.1\"]\n[limits.api]\nquota = 1\nwindow = \"1d\"";
    let gateway = start(backend.address(), limits, "");
    // By one connection, so by one shard: what shards tell each other takes its time.
    let mut proxy = gateway.connect();
    let mut from = |client: &str| {
        proxy.send(format!("GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n\r\n"));
        proxy.read_response().status
    };
    assert_eq!([from("192.0.2.1"), from("192.0.2.1"), from("192.0.2.2")], [200, 429, 200]);
    assert_eq!(from("::ffff:192.0.2.2"), 429, "the same address in IPv6's clothes");
    // As some proxies write it: with the port, and an IPv6 address in brackets.
    let seen = ["192.0.2.2:4711", "[2001:db8:0:9::1]:4711", "[2001:db8:0:9::1]", "2001:db8:0:9::1"].map(&mut from);
    assert_eq!(seen, [429, 200, 429, 429]);
    // One household, and the one next door.
    assert_eq!([from("2001:db8::1"), from("2001:db8::2:1"), from("2001:db8:0:1::1")], [200, 429, 200]);
    // Nobody else's word counts: it is the peer's own address that is counted.
    let local = "127.0.0.2".parse().expect("an address");
    let mut outsider = Client::connect_from(local, gateway.address()).expect("the listener answers");
    for (claimed, status) in [("192.0.2.9", 200), ("192.0.2.10", 429)] {
        outsider.send(format!("GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {claimed}\r\n\r\n"));
        assert_eq!(outsider.read_response().status, status);
    }
    assert_eq!(ask_from(&gateway, "127.0.0.3", "").status, 200);
}

#[test]
fn a_route_is_counted_as_a_whole_and_may_have_limits_of_its_own() {
    let backend = Backend::ok();
    let limits = "[limits.all]\nkey = \"address\"\nquota = 100\nwindow = \"1h\"\n\
                  [limits.narrow]\nkey = \"route\"\nquota = 2\nwindow = \"1h\"\napplies = \"named\"\nscope = \"process\"";
    let gateway = start(backend.address(), limits, "limits = [\"narrow\"]");
    // Whoever asks, and whichever shards they meet: the three others may be ahead by one each.
    let locals = (1..=9).map(|host| format!("127.0.0.{host}"));
    let passed = locals.filter(|local| ask_from(&gateway, local, "").status == 200).count();
    assert!((2..=5).contains(&passed), "{passed}");
    let answer = gateway.get("/other");
    let names: Vec<_> = members(&answer, "ratelimit").into_iter().map(|(name, _)| name).collect();
    assert_eq!((answer.status, names), (200, vec!["all".to_owned()]), "routes that name none have those for all");
}

#[test]
fn a_request_counts_in_all_of_its_limits_or_in_none() {
    let backend = Backend::ok();
    let limits = "[limits.long]\nquota = 10\nwindow = \"1d\"\n[limits.short]\nquota = 2\nwindow = \"1h\"\n\
                  [limits.watching]\nquota = 1\nwindow = \"1h\"\ndry_run = true";
    let gateway = start(backend.address(), limits, "");
    let mut client = gateway.connect();
    let stated = |answer: &Response| {
        let limits = members(answer, "ratelimit");
        limits.into_iter().map(|(name, limit)| (name, limit["r"])).collect::<Vec<_>>()
    };
    let named = |names: [(&str, u64); 2]| names.map(|(name, left)| (name.to_owned(), left));
    assert_eq!(stated(&client.get("/x")), named([("short", 1), ("long", 9)]), "the tightest first");
    let answer = client.get("/x");
    assert_eq!(answer.field("ratelimit-policy"), Some("\"short\";q=2;w=3600, \"long\";q=10;w=86400"));
    for _ in 0..3 {
        let answer = client.get("/x");
        assert_eq!(stated(&answer), named([("short", 0), ("long", 8)]), "what is refused is not counted elsewhere");
        expect_limited(&answer, 1800);
    }
    let metrics = gateway.metrics();
    let of = |limit: &str, outcome: &str| {
        metrics.value(&format!("shardgate_limit_requests_total{{limit=\"{limit}\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!((of("short", "allowed"), of("short", "limited")), (2, 3));
    assert_eq!((of("long", "allowed"), of("long", "limited")), (2, 0));
    // It counts what it would have refused, and refuses nobody.
    assert_eq!((of("watching", "allowed"), of("watching", "limited"), of("watching", "dry_run")), (1, 0, 4));
}

#[test]
fn a_dry_run_refuses_nobody_and_tells_only_operators() {
    let backend = Backend::ok();
    let gateway = start(backend.address(), "[limits.next]\nquota = 1\nwindow = \"1d\"\ndry_run = true", "");
    let mut client = gateway.connect();
    for _ in 0..20 {
        let answer = client.get("/x");
        assert_eq!((answer.status, answer.field("ratelimit"), answer.field("ratelimit-policy")), (200, None, None));
    }
    gateway.log_until("would have refused requests", Duration::from_secs(15));
    let series = "shardgate_limit_requests_total{limit=\"next\",outcome=\"dry_run\"}";
    gateway.metrics_until("what it would have refused is counted", |metrics| metrics.value(series) >= 15);
}

#[test]
fn a_reload_keeps_what_is_counted() {
    let backend = Backend::ok();
    let limit = |quota: u32| format!("[limits.api]\nquota = {quota}\nwindow = \"1d\"\nscope = \"shard\"");
    let gateway = start(backend.address(), &limit(4), "");
    let mut client = gateway.connect();
    let remaining = |answer: &Response| members(answer, "ratelimit")[0].1["r"];
    assert_eq!([client.get("/x"), client.get("/x"), client.get("/x")].map(|answer| remaining(&answer)), [3, 2, 1]);
    let reload = |limits: &str, generation: i64| {
        gateway.rewrite_config(&config(backend.address(), limits, ""));
        gateway.signal(rustix::process::Signal::HUP);
        gateway.metrics_until("every shard runs it", |metrics| {
            metrics.by_shard("shardgate_config_generation") == [generation; 4]
        })
    };
    reload(&limit(10), 2);
    assert_eq!(remaining(&client.get("/x")), 6, "three of ten are used, and this one");
    reload(&limit(2), 3);
    expect_limited(&client.get("/x"), 86_400);
    reload("", 4);
    let answer = client.get("/x");
    assert_eq!((answer.status, answer.field("ratelimit")), (200, None));
    reload(&limit(4), 5);
    assert_eq!(remaining(&client.get("/x")), 3, "a limit that was gone begins anew");
}

#[test]
fn a_flood_of_addresses_stays_within_its_bound() {
    let backend = Backend::ok();
    let limits = "[trust]\nproxies = [\"127.0.0.1\"]\n[limits.api]\nquota = 10\nwindow = \"1d\"\nkeys_max = 64";
    let mut gateway = start(backend.address(), limits, "");
    let mut client = gateway.connect();
    let mut ask = |address: String| {
        client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n\r\n"));
        client.read_response().status
    };
    // Somebody who was there before the flood and has used what there is.
    let known: Vec<_> = (0..12).map(|_| ask("192.0.2.1".to_owned())).collect();
    assert_eq!(known.iter().filter(|status| **status == 200).count(), 10, "{known:?}");
    let refused = (0..2_000).filter(|n| ask(format!("10.{}.{}.1", n / 250, n % 250)) == 429).count();
    assert!(refused > 1_000, "those who find no place share one: {refused}");
    assert_eq!(ask("192.0.2.1".to_owned()), 429, "whoever owes is not forgotten");
    let metrics = gateway.metrics();
    assert!(metrics.value("shardgate_limit_shared_total{limit=\"api\"}") > 1_000);
    assert_eq!(metrics.value("shardgate_limit_evicted_total{limit=\"api\"}"), 0, "everybody owes something");
    gateway.expect_error("no places left");
    gateway.log_until("no places left", Duration::from_secs(15));
}

#[test]
fn instances_count_together_in_redis_and_alone_without_it() {
    let Some(mut redis) = RedisServer::start() else { return };
    let backend = Backend::ok();
    let limits = format!(
        "[redis]\nurls = [\"{}\"]\n[sessions]\nsecret = \"0123456789abcdef0123456789abcdef\"\n\
         [limits.api]\nquota = 160\nwindow = \"1d\"\nscope = \"fleet\"",
        redis.url()
    );
    let gateways = [(); 2].map(|()| start(backend.address(), &limits, ""));
    let counted = "limits of the fleet are counted in Redis";
    let expect_alone = |gateway: &Gateway, shards: i64| {
        let series = "shardgate_limit_shards_alone{limit=\"api\"}";
        gateway.metrics_until("each shard knows who counts", |metrics| metrics.value(series) == shards);
    };
    for gateway in &gateways {
        gateway.log_until(counted, Duration::from_secs(10));
        expect_alone(gateway, 0);
    }
    // So many connections from an address to each, asked in turn, until each has been refused.
    let passed = |local: &str, gateways: &[Gateway]| {
        let local = local.parse().expect("an address");
        let connect = |gateway: &Gateway| {
            let one = || Client::connect_from(local, gateway.address()).expect("the listener answers");
            (0..64).map(|_| one()).collect::<Vec<_>>()
        };
        let mut clients: Vec<_> = gateways.iter().flat_map(connect).collect();
        let (mut passed, mut refused) = (0, 0);
        while refused < clients.len() {
            for client in &mut clients {
                if client.get("/x").status == 200 { passed += 1 } else { refused += 1 }
            }
        }
        passed
    };
    // Eight shards, each ahead by 160 / 16 at the most.
    let together = passed("127.0.0.1", &gateways);
    assert!((160..=160 + 7 * 10).contains(&together), "{together}");
    for gateway in &gateways {
        let shards = gateway.metrics().by_shard("shardgate_shard_requests_total");
        assert!(shards.len() == 4 && shards.iter().all(|count| *count > 0), "{shards:?}");
    }
    assert_eq!(redis.ask(&["KEYS", "shardgate:limits:*"]), "shardgate:limits:api:000000007f0000010000000000000004");
    redis.kill();
    for gateway in &gateways {
        gateway.log_until("limits of the fleet are counted by this instance alone", Duration::from_secs(10));
        expect_alone(gateway, 4);
    }
    // A half for each, and what its shards may be ahead.
    let alone = passed("127.0.0.2", &gateways[..1]);
    assert!((80..=80 + 3 * 10).contains(&alone), "{alone}");
    redis.restart();
    for gateway in &gateways {
        gateway.log_until_nth(counted, 2, Duration::from_secs(10));
        expect_alone(gateway, 0);
    }
    let together = passed("127.0.0.3", &gateways);
    assert!((160..=160 + 7 * 10).contains(&together), "{together}");
}

//! What the formats ask of a text, checked by a reader of its own.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
};

use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::telemetry::{
    exemplars::Exemplars,
    metrics::{Finished, InstanceOut, Outcome, Refusal, Reload, ThreadKind},
    table::{Facts, Micros},
};

/// Two shards that counted something of everything, with names that need escapes.
fn scraped(format: Format) -> String {
    let mut names = Names { reject_codes: &["not_found", "rate_limited"], ..Names::default() };
    let route = names.routes.claim("events");
    let upstream = names.upstreams.claim("in\"ges\\ti\non");
    let shards = [0, 1].map(|shard| {
        let mut counters = Counters::default();
        counters.connections_accepted = 3;
        counters.connections_refused[Refusal::Limit.index()] = 1;
        counters.connections_open = 2;
        counters.loop_lag.observe_us(7);
        counters.cpu = Micros(1_500_000);
        counters.reject(1);
        for (status, total_us) in [(200, 150), (503, 2_000_001), (0, 90_000_000)] {
            let bytes = u64::from(status);
            counters.finish(&Finished {
                route,
                status,
                total_us,
                gateway_us: 12,
                request_bytes: bytes,
                response_bytes: bytes,
            });
        }
        counters.upstream(upstream).requests[Outcome::TimedOut.index()] += 1;
        counters.upstream(upstream).requests_in_flight -= i64::from(shard);
        counters
    });
    let exemplar = |took_us| Exemplar { trace_id: [0xab; 16], took_us, at: 1_764_000_000_250 };
    let mut exemplars = Exemplars::default();
    exemplars.note(route, exemplar(150));
    exemplars.note(route, exemplar(90_000_000));
    let mut process = ProcessCounters::default();
    process.config_reloads[Reload::Refused.index()] = 2;
    process.cpu.0[ThreadKind::Shard.index()] = 20;
    process.build = Facts(vec![("version", "1.2.3".to_owned()), ("driver", "epoll".to_owned())]);
    let instance = |address: &str, is_there| {
        let mut counters =
            InstanceCounters { up: 0, latency: Micros(2500), ejections: 4, ..InstanceCounters::default() };
        counters.out.0[InstanceOut::Ejected.index()] = Some(1);
        InstanceSeries { upstream: "shop".to_owned(), address: address.to_owned(), is_there, counters }
    };
    let instances = [instance("10.0.0.1:80", true), instance("a\"b:80 10.0.0.2:80", false)];
    let shards: Vec<_> = (0..).zip(&shards).map(|(shard, counters)| ShardCounters { shard, counters }).collect();
    let mut out = String::new();
    let scrape = Scrape {
        shards: &shards,
        process: &process,
        followed: &[("a.test".to_owned(), NameCounters { addresses: 3, age: 7, failures: 2 })],
        instances: &instances,
        exemplars: &Merged::of(exemplars.shown(|at| at).into_iter()),
        names: &names,
    };
    scrape.write(format, &mut out, &|| ());
    out
}

#[test]
fn others_get_a_chance_after_each_piece_of_a_long_text() {
    let mut names = Names::default();
    for nth in 0..300 {
        names.routes.claim(&format!("a-route-{nth}"));
    }
    let mut counters = Counters::default();
    counters.make_room(300, 0);
    let mut out = String::new();
    let chances = Cell::new(0);
    let scrape = Scrape {
        shards: &[ShardCounters { shard: 0, counters: &counters }],
        process: &ProcessCounters::default(),
        followed: &[],
        instances: &[],
        exemplars: &Merged::default(),
        names: &names,
    };
    scrape.write(Format::Text, &mut out, &|| chances.set(chances.get() + 1));
    let pieces = out.len() / PIECE;
    // The series of one owner stay together.
    assert!(pieces > 5 && (pieces * 9 / 10..=pieces).contains(&chances.get()), "{chances:?} in {pieces} pieces");
}

/// One sample: the name, the labels as they stand, the value.
fn sample(line: &str) -> (&str, &str, f64) {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = series.strip_suffix('}').map_or((series, ""), |open| open.split_once('{').expect("a brace"));
    (name, labels, value.parse().unwrap_or_else(|_| panic!("{line}: a number")))
}

/// The labels one by one, their values unescaped; panics at anything that the format does not allow.
fn labels(mut text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").expect("a quoted value");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        let (mut value, mut characters) = (String::new(), rest.chars());
        loop {
            match characters.next().expect("a closing quote") {
                '"' => break,
                '\\' => value.push(match characters.next() {
                    Some('n') => '\n',
                    Some(plain @ ('\\' | '"')) => plain,
                    other => panic!("{rest}: escape of {other:?}"),
                }),
                character => value.push(character),
            }
        }
        labels.push((name.to_owned(), value));
        text = characters.as_str();
        text = text.strip_prefix(',').unwrap_or(text);
    }
    labels
}

/// What the format asks of a text; returns all series.
fn check_format(text: &str) -> HashMap<String, f64> {
    let mut seen = HashMap::new();
    let mut families = HashSet::new();
    let (mut family, mut kind, mut cumulative) = (String::new(), String::new(), 0.0);
    let mut lines = text.strip_suffix('\n').expect("a last newline").lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split_once(' ').expect("a sentence").0.to_owned();
            assert!(families.insert(family.clone()), "{family} in one group only");
            let next = lines.next().unwrap_or_default();
            kind = next.strip_prefix(&format!("# TYPE {family} ")).unwrap_or_else(|| panic!("{next}")).to_owned();
            assert!(["counter", "gauge", "histogram"].contains(&&*kind), "{kind}");
            continue;
        }
        let (name, written, value) = sample(line);
        let labels = labels(written);
        let bound = labels.iter().find(|(name, _)| name == "le").map(|(_, bound)| &**bound);
        match (name.strip_prefix(&*family), &*kind) {
            (Some(""), "counter" | "gauge") | (Some("_sum"), "histogram") => assert_eq!(bound, None),
            (Some("_bucket"), "histogram") => {
                assert!(value >= cumulative, "{line}: buckets are cumulative");
                cumulative = if bound == Some("+Inf") { 0.0 } else { value };
            }
            (Some("_count"), "histogram") => {
                let owner = if written.is_empty() { String::new() } else { format!("{written},") };
                assert_eq!(Some(&value), seen.get(&format!("{family}_bucket{{{owner}le=\"+Inf\"}}")), "{line}");
            }
            other => panic!("{line} belongs to {family}: {other:?}"),
        }
        let series = line.rsplit_once(' ').expect("a value").0;
        assert_eq!(seen.insert(series.to_owned(), value), None, "{series} once only");
    }
    seen
}

#[test]
fn the_text_keeps_the_format() {
    let seen = check_format(&scraped(Format::Text));
    let value = |series: &str| seen.get(series).copied();
    assert_eq!(value("shardgate_connections_accepted_total"), Some(6.0), "shards are added up");
    assert_eq!(value(r#"shardgate_connections_open{shard="1"}"#), Some(2.0), "or stand apart");
    assert_eq!(value(r#"shardgate_loop_lag_seconds_bucket{shard="0",le="1e-05"}"#), Some(1.0));
    assert_eq!(value(r#"shardgate_rejects_total{code="rate_limited"}"#), Some(2.0));
    assert_eq!(value(r#"shardgate_requests_total{route="events",status="none"}"#), Some(2.0));
    assert_eq!(value(r#"shardgate_request_duration_seconds_sum{route="events"}"#), Some(184.000_302));
    assert_eq!(value(r#"shardgate_upstream_requests_in_flight{upstream="in\"ges\\ti\non"}"#), Some(-1.0));
    assert_eq!(value(r#"shardgate_config_reloads_total{result="refused"}"#), Some(2.0));
    assert_eq!(value(r#"shardgate_shard_cpu_seconds_total{shard="1"}"#), Some(1.5));
    assert_eq!(value(r#"shardgate_cpu_seconds_total{thread="shard"}"#), Some(0.000_02));
    assert_eq!(value(r#"shardgate_build_info{version="1.2.3",driver="epoll"}"#), Some(1.0));
}

#[test]
fn of_instances_that_have_gone_only_what_was_counted_is_told() {
    let seen = check_format(&scraped(Format::Text));
    let of = |name: &str| {
        let series = seen.keys().filter(|series| series.starts_with(&format!("shardgate_instance_{name}{{")));
        series.filter(|series| series.contains("10.0.0.2")).count()
    };
    assert_eq!([of("up"), of("out_shards"), of("latency_seconds"), of("requests_in_flight")], [0; 4]);
    assert_eq!([of("ejections_total"), of("requests_total"), of("probes_total")], [1, Outcome::COUNT, 2]);
    let value = |series: &str| seen.get(series).copied();
    assert_eq!(value(r#"shardgate_instance_up{upstream="shop",address="10.0.0.1:80"}"#), Some(0.0));
    assert_eq!(
        value(r#"shardgate_instance_out_shards{upstream="shop",address="10.0.0.1:80",reason="ejected"}"#),
        Some(1.0)
    );
    assert_eq!(value(r#"shardgate_instance_out_shards{upstream="shop",address="10.0.0.1:80",reason="probes"}"#), None);
    assert_eq!(value(r#"shardgate_instance_latency_seconds{upstream="shop",address="10.0.0.1:80"}"#), Some(0.0025));
    assert_eq!(
        value(r#"shardgate_instance_ejections_total{upstream="shop",address="a\"b:80 10.0.0.2:80"}"#),
        Some(4.0)
    );
}

#[test]
fn one_family_in_full() {
    let text = scraped(Format::Text);
    let family: Vec<_> = text.lines().filter(|line| line.contains("shardgate_request_duration_seconds")).collect();
    expect![[r#"
        # HELP shardgate_request_duration_seconds Time from a request's first byte to its answer's last; to the end of its answer's head where that begins a stream of events, or switches protocols.
        # TYPE shardgate_request_duration_seconds histogram
        shardgate_request_duration_seconds_bucket{route="other",le="0.0001"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.0002"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.0005"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.001"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.002"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.005"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.01"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.02"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.05"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.1"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.2"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="0.5"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="1.0"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="2.0"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="5.0"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="10.0"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="20.0"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="60.0"} 0
        shardgate_request_duration_seconds_bucket{route="other",le="+Inf"} 0
        shardgate_request_duration_seconds_sum{route="other"} 0
        shardgate_request_duration_seconds_count{route="other"} 0
        shardgate_request_duration_seconds_bucket{route="events",le="0.0001"} 0
        shardgate_request_duration_seconds_bucket{route="events",le="0.0002"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="0.0005"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="0.001"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="0.002"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="0.005"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="0.01"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="0.02"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="0.05"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="0.1"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="0.2"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="0.5"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="1.0"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="2.0"} 2
        shardgate_request_duration_seconds_bucket{route="events",le="5.0"} 4
        shardgate_request_duration_seconds_bucket{route="events",le="10.0"} 4
        shardgate_request_duration_seconds_bucket{route="events",le="20.0"} 4
        shardgate_request_duration_seconds_bucket{route="events",le="60.0"} 4
        shardgate_request_duration_seconds_bucket{route="events",le="+Inf"} 6
        shardgate_request_duration_seconds_sum{route="events"} 184.000302
        shardgate_request_duration_seconds_count{route="events"} 6"#]]
    .assert_eq(&family.join("\n"));
}

/// The lines of `OpenMetrics` that the text does not have, and the other way round.
#[test]
fn openmetrics_is_the_same_with_units_exemplars_and_an_end() {
    let (text, open) = (scraped(Format::Text), scraped(Format::OpenMetrics));
    assert!(open.ends_with("\n# EOF\n") && !text.contains("# EOF"));
    let samples = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" # ").next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(samples(&text), samples(&open));
    let of = |wanted: &[&str]| -> String {
        let lines = open.lines().filter(|line| wanted.iter().any(|wanted| line.contains(wanted)));
        lines.fold(String::new(), |all, line| all + line + "\n")
    };
    expect![[r#"
        # HELP shardgate_shard_requests Requests that ended, by the shard that served them.
        # TYPE shardgate_shard_requests counter
        shardgate_shard_requests_total{shard="0"} 3
        shardgate_shard_requests_total{shard="1"} 3
        # HELP shardgate_build The program: its version, and what the shards wait for sockets with.
        # TYPE shardgate_build info
        shardgate_build_info{version="1.2.3",driver="epoll"} 1
    "#]]
    .assert_eq(&of(&["shardgate_shard_requests", "shardgate_build"]));
    expect![[r"
        # TYPE shardgate_shard_cpu_seconds counter
        # UNIT shardgate_shard_cpu_seconds seconds
        # TYPE shardgate_cpu_seconds counter
        # UNIT shardgate_cpu_seconds seconds
    "]]
    .assert_eq(&of(&[
        "TYPE shardgate_shard_cpu",
        "UNIT shardgate_shard_cpu",
        "TYPE shardgate_cpu",
        "UNIT shardgate_cpu",
    ]));
    expect![[r#"
        shardgate_request_duration_seconds_bucket{route="events",le="0.0002"} 2 # {trace_id="abababababababababababababababab"} 0.00015 1764000000.25
        shardgate_request_duration_seconds_bucket{route="events",le="+Inf"} 6 # {trace_id="abababababababababababababababab"} 90 1764000000.25
    "#]]
    .assert_eq(&of(&["trace_id"]));
}

#[test]
fn times_are_exact() {
    let written = |write: fn(&mut String, u64), us| {
        let mut out = String::new();
        write(&mut out, us);
        out
    };
    let times = [0, 1, 10, 200, 1_000_000, 1_000_001, 60_000_000].map(|us| written(push_seconds, us));
    expect!["0 0.000001 0.00001 0.0002 1 1.000001 60"].assert_eq(&times.join(" "));
    // As Python and Go write them: what reads OpenMetrics compares the text.
    let bound = |out: &mut String, us| push_bound(out, u32::try_from(us).expect("small"));
    let bounds = [5, 10, 20, 50, 100, 500_000, 1_000_000, 3_600_000_000].map(|us| written(bound, us));
    expect!["5e-06 1e-05 2e-05 5e-05 0.0001 0.5 1.0 3600.0"].assert_eq(&bounds.join(" "));
}

proptest! {
    #[test]
    fn any_name_is_read_back(name in any::<String>()) {
        let mut names = Names::default();
        names.routes.claim(&name);
        let mut counters = Counters::default();
        counters.make_room(2, 1);
        let mut out = String::new();
        let scrape = Scrape {
            shards: &[ShardCounters { shard: 0, counters: &counters }],
            process: &ProcessCounters::default(),
            followed: &[],
            instances: &[],
            exemplars: &Merged::default(),
            names: &names,
        };
        scrape.write(Format::Text, &mut out, &|| ());
        let line = out.split('\n').rfind(|line| line.starts_with("shardgate_request_body_bytes_total"));
        let (_, written, _) = sample(line.expect("a series"));
        prop_assert_eq!(labels(written), [("route".to_owned(), names.routes.names().last().cloned().expect("one"))]);
    }
}

//! What a line of the access log looks like.

use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;

fn place() -> &'static RouteNames {
    Box::leak(Box::new(RouteNames::new("events", "ingestion")))
}

fn record() -> Record<'static> {
    Record {
        unix_ms: 1_795_428_969_007,
        request_id: b"req-00000001",
        trace_id: [0xab; 16],
        client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
        method: b"GET",
        host: b"api.example.com",
        path: b"/api/events/1",
        place: place(),
        instance: b"127.0.0.1:8081",
        protocol: "HTTP/1.1",
        status: 200,
        response_bytes: 1024,
        total_us: 812,
        gateway_us: 41,
        upstream_us: 771,
        connect_us: Some(90),
        attempts: 1,
        shard: 3,
        user_agent: b"curl/8.5.0",
        ..Record::BLANK
    }
}

fn line(record: &Record<'_>) -> String {
    let mut out = Vec::new();
    record.write_line(Format::Json, &mut TimestampCache::default(), &mut out);
    String::from_utf8(out).expect("always UTF-8")
}

fn parsed(record: &Record<'_>) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_str(&line(record)).expect("always JSON")
}

fn check(record: &Record<'_>, expected: &Expect) {
    expected.assert_eq(&line(record));
}

#[test]
fn a_proxied_request() {
    check(
        &record(),
        &expect![[r#"
        {"time":"2026-11-23T10:16:09.007Z","request_id":"req-00000001","trace_id":"abababababababababababababababab","client":"192.0.2.7","method":"GET","host":"api.example.com","path":"/api/events/1","protocol":"HTTP/1.1","status":200,"route":"events","upstream":"ingestion","instance":"127.0.0.1:8081","upstream_us":771,"connect_us":90,"attempts":1,"reused":false,"request_bytes":0,"response_bytes":1024,"total_us":812,"gateway_us":41,"shard":3,"user_agent":"curl/8.5.0"}
    "#]],
    );
    check(
        &Record { connect_us: None, reused: true, attempts: 2, ..record() },
        &expect![[r#"
        {"time":"2026-11-23T10:16:09.007Z","request_id":"req-00000001","trace_id":"abababababababababababababababab","client":"192.0.2.7","method":"GET","host":"api.example.com","path":"/api/events/1","protocol":"HTTP/1.1","status":200,"route":"events","upstream":"ingestion","instance":"127.0.0.1:8081","upstream_us":771,"attempts":2,"reused":true,"request_bytes":0,"response_bytes":1024,"total_us":812,"gateway_us":41,"shard":3,"user_agent":"curl/8.5.0"}
    "#]],
    );
}

#[test]
fn a_socket_has_a_line_at_its_end() {
    let socket = Some(SocketEnd { close_code: 4000, received: 2, sent: 1_000 });
    let ended = Record { place: RouteNames::NONE, status: 101, reason: "slow_consumer", socket, ..record() };
    let ended = Record { protocol: "websocket", method: b"GET", path: b"/ws", user: "42", ..ended };
    check(
        &ended,
        &expect![[r#"
        {"time":"2026-11-23T10:16:09.007Z","request_id":"req-00000001","trace_id":"abababababababababababababababab","client":"192.0.2.7","user":"42","method":"GET","path":"/ws","protocol":"websocket","status":101,"reason":"slow_consumer","close_code":4000,"messages_in":2,"messages_out":1000,"total_us":812,"shard":3}
    "#]],
    );
    let mut line = Vec::new();
    ended.write_line(Format::Text { is_colourful: false }, &mut TimestampCache::default(), &mut line);
    expect![[r"
        2026-11-23T10:16:09.007Z 101 GET /ws 0.8 ms closed with 4000 after 2 in and 1000 out: slow_consumer, 192.0.2.7 as 42, req-00000001
    "]].assert_eq(&String::from_utf8_lossy(&line));
}

#[test]
fn a_refused_request_says_nothing_of_upstreams() {
    let refused = Record { place: RouteNames::NONE, status: 404, reason: "not_found", ..record() };
    check(
        &Record { trace_id: [0; 16], reason_detail: "no \"route\"\n", ..refused },
        &expect![[r#"
        {"time":"2026-11-23T10:16:09.007Z","request_id":"req-00000001","client":"192.0.2.7","method":"GET","host":"api.example.com","path":"/api/events/1","protocol":"HTTP/1.1","status":404,"reason":"not_found","reason_detail":"no \"route\"\n","request_bytes":0,"response_bytes":1024,"total_us":812,"gateway_us":41,"shard":3,"user_agent":"curl/8.5.0"}
    "#]],
    );
}

#[test]
fn hostile_bytes_stay_inside_their_strings() {
    let hostile = Record {
        path: b"/\",\"status\":200}\n{\"a\":\"\x1b[2J\xff",
        user_agent: "\u{2028}\u{202e}\x7f☕".as_bytes(),
        ..record()
    };
    check(
        &hostile,
        &expect![[r#"
        {"time":"2026-11-23T10:16:09.007Z","request_id":"req-00000001","trace_id":"abababababababababababababababab","client":"192.0.2.7","method":"GET","host":"api.example.com","path":"/\",\"status\":200}\n{\"a\":\"\u001b[2J�","protocol":"HTTP/1.1","status":200,"route":"events","upstream":"ingestion","instance":"127.0.0.1:8081","upstream_us":771,"connect_us":90,"attempts":1,"reused":false,"request_bytes":0,"response_bytes":1024,"total_us":812,"gateway_us":41,"shard":3,"user_agent":"\u2028\u202e\u007f☕"}
    "#]],
    );
}

#[test]
fn long_fields_are_cut_and_marked() {
    let long = [b'a'; 5000];
    let parsed = parsed(&Record { path: &long, user_agent: &long, host: &long, method: &long, ..record() });
    let length = |field: &str| {
        let text = parsed[field].as_str().expect("a string");
        assert!(text.ends_with('…'), "{field} is marked");
        text.trim_end_matches('…').len()
    };
    assert_eq!((length("path"), length("user_agent")), (PATH_MAX, USER_AGENT_MAX));
    assert_eq!((length("host"), length("method")), (HOST_MAX, NAME_MAX));
}

#[test]
fn the_documentation_names_each_field() {
    let full = Record { reason: "client_closed", reason_detail: "x", user: "42", ..record() };
    let socket = Some(SocketEnd { close_code: 1000, received: 0, sent: 0 });
    let of_both = parsed(&full).into_iter().chain(parsed(&Record { socket, ..full }));
    let mut written: Vec<String> = of_both.map(|(name, _)| name).collect();
    let docs = include_str!("../../docs/access-log.md");
    let mut documented: Vec<String> =
        docs.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
    written.sort();
    written.dedup();
    documented.sort();
    assert_eq!(documented, written, "docs/access-log.md has one row for each field of a line");
}

#[test]
fn times() {
    let mut times = TimestampCache::default();
    let mut check = |unix_ms, expected: &Expect| expected.assert_eq(&String::from_utf8_lossy(times.at(unix_ms)));
    check(0, &expect!["1970-01-01T00:00:00.000Z"]);
    check(1_709_164_800_999, &expect!["2024-02-29T00:00:00.999Z"]);
    check(1_709_164_800_001, &expect!["2024-02-29T00:00:00.001Z"]);
    check(1_709_164_799_001, &expect!["2024-02-28T23:59:59.001Z"]);
    check(253_402_207_199_999, &expect!["9999-12-30T21:59:59.999Z"]);
    check(u64::MAX, &expect!["1970-01-01T00:00:00.615Z"]);
}

#[test]
fn addresses_are_written_as_recommended_and_without_allocating() {
    let addresses = [
        "::",
        "::1",
        "1::",
        "2001:db8::1",
        "2001:0DB8::00ab",
        "2001:db8:0:1:1:1:1:1",
        "2001:db8:0:0:1:0:0:1",
        "2001:0:0:1:0:0:0:1",
        "::192.0.2.33",
        "::ffff:192.0.2.33",
        "64:ff9b::192.0.2.33",
        "192.0.2.33",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];
    let written = addresses.map(|text| {
        // The longest text; one byte less would have to grow.
        let mut out = Vec::with_capacity(39);
        let buffer = out.as_ptr();
        write_address(&mut out, text.parse().expect("an address"));
        assert_eq!(out.as_ptr(), buffer, "{text}");
        String::from_utf8(out).expect("ASCII")
    });
    expect![["
        ::
        ::1
        1::
        2001:db8::1
        2001:db8::ab
        2001:db8:0:1:1:1:1:1
        2001:db8::1:0:0:1
        2001:0:0:1::1
        ::c000:221
        192.0.2.33
        64:ff9b::c000:221
        192.0.2.33
        ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]]
    .assert_eq(&written.join("\n"));
}

proptest! {
    #[test]
    fn any_bytes_make_one_line_of_json(
        path in prop::collection::vec(any::<u8>(), 0..3000),
        other in prop::collection::vec(any::<u8>(), 0..400),
        numbers: [u64; 5],
    ) {
        let [request_bytes, response_bytes, total_us, gateway_us, upstream_us] = numbers;
        let record = Record {
            path: &path, host: &other, user_agent: &other, method: &other, instance: &other, request_id: &other,
            request_bytes, response_bytes, total_us, gateway_us, upstream_us, connect_us: Some(total_us),
            ..record()
        };
        let line = line(&record);
        prop_assert!(line.len() <= LINE_MAX);
        prop_assert_eq!(line.find(|c: char| c.is_control()), Some(line.len() - 1));
        let parsed = parsed(&record);
        for (field, number) in [("request_bytes", request_bytes), ("upstream_us", upstream_us), ("connect_us", total_us)] {
            prop_assert_eq!(parsed[field].as_u64(), Some(number));
        }
        if path.len() <= PATH_MAX {
            prop_assert_eq!(parsed["path"].as_str(), Some(&*String::from_utf8_lossy(&path)));
        }
    }

    #[test]
    fn printable_text_round_trips(path in "\\PC{0,300}", user_agent in "[ -~]{0,256}") {
        let parsed = parsed(&Record { path: path.as_bytes(), user_agent: user_agent.as_bytes(), ..record() });
        prop_assert_eq!(parsed["path"].as_str(), Some(&*path));
        prop_assert_eq!(parsed["user_agent"].as_str(), Some(&*user_agent));
    }

    #[test]
    fn ipv4_reads_as_the_standard_library_writes_it(v4: [u8; 4]) {
        for address in [IpAddr::from(v4), IpAddr::V6(Ipv4Addr::from(v4).to_ipv6_mapped())] {
            let mut out = Vec::new();
            write_address(&mut out, address);
            prop_assert_eq!(String::from_utf8_lossy(&out), address.to_canonical().to_string());
        }
    }

    /// RFC 5952 §4, told by another way than counting: the text reads back, and none that reads back is better.
    #[test]
    fn ipv6_is_written_as_recommended(
        v6 in prop::array::uniform8(prop_oneof![Just(0_u16), 0_u16..20, any::<u16>()]),
    ) {
        let address = std::net::Ipv6Addr::from(v6);
        prop_assume!(address.to_ipv4_mapped().is_none());
        let plain = v6.map(|segment| format!("{segment:x}"));
        let shortened = |start: usize, end: usize| format!("{}::{}", plain[..start].join(":"), plain[end..].join(":"));
        let runs = (0..8).flat_map(|start| (start + 2..=8).map(move |end| (start, end)));
        let zeros = runs.filter(|(start, end)| v6[*start..*end].iter().all(|segment| *segment == 0));
        // The longest run, the first of equals.
        let best = zeros.min_by_key(|(start, end)| (8 - (end - start), *start));
        let expected = best.map_or_else(|| plain.join(":"), |(start, end)| shortened(start, end));
        prop_assert_eq!(expected.parse(), Ok(address));
        let mut out = Vec::new();
        write_address(&mut out, address.into());
        prop_assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn times_agree_with_jiff(unix_ms in 0_u64..253_402_207_200_000) {
        let text = *TimestampCache::default().at(unix_ms);
        let read: jiff::Timestamp = str::from_utf8(&text).expect("ASCII").parse().expect("RFC 3339");
        prop_assert_eq!(u64::try_from(read.as_millisecond()), Ok(unix_ms));
    }
}

//! One access-log line: everything that is known of a request when its answer is complete.
//!
//! It writes bytes into the caller's buffer; where lines go is `access_log`'s business. `docs/access-log.md` explains
//! each field to readers of the log.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use super::escape::{is_plain, push_json_bounded};
use super::ids::write_hex;
use super::log::Format;

/// Longest path in a line, in bytes as it came; more is cut and marked.
pub const PATH_MAX: usize = 2048;
/// Longest `User-Agent` in a line.
pub const USER_AGENT_MAX: usize = 256;
/// Longest host in a line: a DNS name and a port fit.
pub const HOST_MAX: usize = 262;
/// Longest of the short fields: methods, names of routes and upstreams, instances.
pub const NAME_MAX: usize = 128;
/// Longest of what is said about a failure.
pub const DETAIL_MAX: usize = 256;
/// No line is longer, whatever came from outside: six bytes for each that needs an escape.
pub const LINE_MAX: usize = 6 * (PATH_MAX + USER_AGENT_MAX + HOST_MAX + DETAIL_MAX + 7 * NAME_MAX) + 1024;

/// What one access-log line says. It borrows everything, and lives as long as it takes to write it.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When the answer was complete, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The id that the answer carries.
    pub request_id: &'a [u8],
    /// The trace that the request belongs to; all zero says none.
    pub trace_id: [u8; 16],
    /// Who asked: the peer, or whom a trusted peer named.
    pub client: IpAddr,
    /// The same as text where somebody has it already; else empty.
    pub client_text: &'a [u8],
    /// Who calls, by its token; empty when no token was checked.
    pub user: &'a str,
    /// The request's method.
    pub method: &'a [u8],
    /// The authority that was asked for.
    pub host: &'a [u8],
    /// The path without the query, which may hold secrets.
    pub path: &'a [u8],
    /// The route that took it and the upstream it went to. Without an upstream no field about upstreams is written.
    pub place: &'a RouteNames,
    /// `host:port` of the instance that was asked last; empty when none was reached.
    pub instance: &'a [u8],
    /// `HTTP/1.1`, `HTTP/2`; a word of ours, written as it is.
    pub protocol: &'static str,
    /// The answer's status; 0 when no answer was begun.
    pub status: u16,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// From the request's first byte to the answer's last.
    pub total_us: u64,
    /// The part of it that the gateway added.
    pub gateway_us: u64,
    /// The part of it spent waiting for the upstream.
    pub upstream_us: u64,
    /// How long the connect took, when a connection was opened for it.
    pub connect_us: Option<u64>,
    /// How often it was sent; more than 1 after a retry.
    pub attempts: u32,
    /// Whether it went over an upstream connection that had been used before.
    pub reused: bool,
    /// Why it failed: a refusal's code, `client_closed` and the like, written as it is; empty when it did not.
    pub reason: &'static str,
    /// More about that: which claim, which bound, what the system said; empty when there is no more.
    pub reason_detail: &'a str,
    /// The shard that served it.
    pub shard: u16,
    /// The client's `User-Agent`.
    pub user_agent: &'a [u8],
}

/// A route and its upstream as every line of theirs shows them, written once.
#[derive(Debug, Default)]
pub struct RouteNames {
    json: Vec<u8>,
    /// For people: the upstream, else the route.
    text: Vec<u8>,
    has_upstream: bool,
}

impl RouteNames {
    /// No route at all.
    pub const NONE: &Self = &Self { json: Vec::new(), text: Vec::new(), has_upstream: false };

    /// The place of this name; `upstream` is empty where the gateway answers itself.
    pub fn new(route: &str, upstream: &str) -> Self {
        let mut json = Vec::new();
        for (key, name) in [("route", route), ("upstream", upstream)] {
            if !name.is_empty() {
                json.extend_from_slice(b",\"");
                json.extend_from_slice(key.as_bytes());
                json.extend_from_slice(b"\":\"");
                push_json_bounded(&mut json, name.as_bytes(), NAME_MAX);
                json.push(b'"');
            }
        }
        let mut text = Vec::new();
        push_json_bounded(&mut text, if upstream.is_empty() { route } else { upstream }.as_bytes(), NAME_MAX);
        Self { json, text, has_upstream: !upstream.is_empty() }
    }
}

impl Record<'_> {
    /// Appends the record as one line, its newline included.
    ///
    /// Whatever the bytes are, the line is valid UTF-8 (and JSON where that is the format), holds no control character but
    /// colours of ours, and is no longer than [`LINE_MAX`].
    pub fn write_line(&self, format: Format, times: &mut TimestampCache, out: &mut Vec<u8>) {
        match format {
            Format::Json => self.write_json(times, out),
            Format::Text { is_colourful } => self.write_text(is_colourful, times, out),
        }
    }

    /// `2026-11-23T10:15:00.000Z 202 POST /api/events 1.2 ms > ingestion, 192.0.2.7 as 42, req-00000001`
    #[cold]
    fn write_text(&self, is_colourful: bool, times: &mut TimestampCache, out: &mut Vec<u8>) {
        let colour: &[u8] = match self.status {
            500.. | 0 => b"\x1b[31m",
            400.. => b"\x1b[33m",
            _ => b"\x1b[32m",
        };
        let (before, after): (&[u8], &[u8]) = if is_colourful { (colour, b"\x1b[0m") } else { (b"", b"") };
        out.extend_from_slice(times.at(self.unix_ms));
        out.push(b' ');
        out.extend_from_slice(before);
        // Writing to a vector cannot fail.
        let _ = write!(out, "{:03}", self.status);
        out.extend_from_slice(after);
        out.push(b' ');
        push_json_bounded(out, self.method, NAME_MAX);
        out.push(b' ');
        push_json_bounded(out, self.path, PATH_MAX);
        let _ = write!(out, " {}.{} ms", self.total_us / 1000, self.total_us % 1000 / 100);
        if !self.place.text.is_empty() {
            out.extend_from_slice(b" > ");
            out.extend_from_slice(&self.place.text);
        }
        if self.attempts > 1 {
            let _ = write!(out, " in {} attempts", self.attempts);
        }
        if !self.reason.is_empty() {
            let _ = write!(out, ": {}", self.reason);
        }
        out.extend_from_slice(b", ");
        push_address(out, self.client);
        if !self.user.is_empty() {
            out.extend_from_slice(b" as ");
            push_json_bounded(out, self.user.as_bytes(), NAME_MAX);
        }
        out.extend_from_slice(b", ");
        push_json_bounded(out, self.request_id, NAME_MAX);
        out.push(b'\n');
    }

    fn write_json(&self, times: &mut TimestampCache, out: &mut Vec<u8>) {
        debug_assert!(is_plain(self.protocol.as_bytes()) && is_plain(self.reason.as_bytes()), "words of our own");
        let mut number = itoa::Buffer::new();
        out.extend_from_slice(b"{\"time\":\"");
        out.extend_from_slice(times.at(self.unix_ms));
        out.extend_from_slice(b"\",\"request_id\":\"");
        push_json_bounded(out, self.request_id, NAME_MAX);
        if self.trace_id != [0; 16] {
            let mut digits = [0; 32];
            write_hex(&self.trace_id, &mut digits);
            out.extend_from_slice(b"\",\"trace_id\":\"");
            out.extend_from_slice(&digits);
        }
        out.extend_from_slice(b"\",\"client\":\"");
        if self.client_text.is_empty() {
            push_address(out, self.client);
        } else {
            out.extend_from_slice(self.client_text);
        }
        if !self.user.is_empty() {
            out.extend_from_slice(b"\",\"user\":\"");
            push_json_bounded(out, self.user.as_bytes(), NAME_MAX);
        }
        out.extend_from_slice(b"\",\"method\":\"");
        push_json_bounded(out, self.method, NAME_MAX);
        out.extend_from_slice(b"\",\"host\":\"");
        push_json_bounded(out, self.host, HOST_MAX);
        out.extend_from_slice(b"\",\"path\":\"");
        push_json_bounded(out, self.path, PATH_MAX);
        out.extend_from_slice(b"\",\"protocol\":\"");
        out.extend_from_slice(self.protocol.as_bytes());
        out.extend_from_slice(b"\",\"status\":");
        out.extend_from_slice(number.format(self.status).as_bytes());
        if !self.reason.is_empty() {
            out.extend_from_slice(b",\"reason\":\"");
            out.extend_from_slice(self.reason.as_bytes());
            if !self.reason_detail.is_empty() {
                out.extend_from_slice(b"\",\"reason_detail\":\"");
                push_json_bounded(out, self.reason_detail.as_bytes(), DETAIL_MAX);
            }
            out.push(b'"');
        }
        out.extend_from_slice(&self.place.json);
        if self.place.has_upstream {
            self.push_upstream(out, &mut number);
        }
        out.extend_from_slice(b",\"request_bytes\":");
        out.extend_from_slice(number.format(self.request_bytes).as_bytes());
        out.extend_from_slice(b",\"response_bytes\":");
        out.extend_from_slice(number.format(self.response_bytes).as_bytes());
        out.extend_from_slice(b",\"total_us\":");
        out.extend_from_slice(number.format(self.total_us).as_bytes());
        out.extend_from_slice(b",\"gateway_us\":");
        out.extend_from_slice(number.format(self.gateway_us).as_bytes());
        out.extend_from_slice(b",\"shard\":");
        out.extend_from_slice(number.format(self.shard).as_bytes());
        out.extend_from_slice(b",\"user_agent\":\"");
        push_json_bounded(out, self.user_agent, USER_AGENT_MAX);
        out.extend_from_slice(b"\"}\n");
    }

    fn push_upstream(&self, out: &mut Vec<u8>, number: &mut itoa::Buffer) {
        if !self.instance.is_empty() {
            out.extend_from_slice(b",\"instance\":\"");
            push_json_bounded(out, self.instance, NAME_MAX);
            out.push(b'"');
        }
        out.extend_from_slice(b",\"upstream_us\":");
        out.extend_from_slice(number.format(self.upstream_us).as_bytes());
        if let Some(connect_us) = self.connect_us {
            out.extend_from_slice(b",\"connect_us\":");
            out.extend_from_slice(number.format(connect_us).as_bytes());
        }
        out.extend_from_slice(b",\"attempts\":");
        out.extend_from_slice(number.format(self.attempts).as_bytes());
        out.extend_from_slice(if self.reused { b",\"reused\":true" } else { b",\"reused\":false" });
    }
}

/// Length of `2026-11-23T10:15:00.000Z`.
const TIMESTAMP_LENGTH: usize = 24;

/// Writes RFC 3339 times in UTC; all but the milliseconds are computed once a second. One per shard.
#[derive(Clone, Debug)]
pub struct TimestampCache {
    second: u64,
    text: [u8; TIMESTAMP_LENGTH],
}

impl Default for TimestampCache {
    fn default() -> Self {
        Self { second: 0, text: *b"1970-01-01T00:00:00.000Z" }
    }
}

impl TimestampCache {
    /// The time as text; what lies past the last days of 9999 is shown as 1970, since four digits cannot say it.
    #[inline]
    pub fn at(&mut self, unix_ms: u64) -> &[u8; TIMESTAMP_LENGTH] {
        let second = unix_ms / 1000;
        if second != self.second {
            self.begin_second(second);
        }
        let [hundreds, tens, ones] = digits::<3>(unix_ms % 1000);
        self.text[20] = hundreds;
        self.text[21] = tens;
        self.text[22] = ones;
        &self.text
    }

    #[cold]
    fn begin_second(&mut self, second: u64) {
        let timestamp = i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
        let date = jiff::tz::Offset::UTC.to_datetime(timestamp.unwrap_or_default());
        let part = |value: i8| digits::<2>(u64::from(value.unsigned_abs()));
        self.second = second;
        self.text[0..4].copy_from_slice(&digits::<4>(u64::from(date.year().unsigned_abs())));
        self.text[5..7].copy_from_slice(&part(date.month()));
        self.text[8..10].copy_from_slice(&part(date.day()));
        self.text[11..13].copy_from_slice(&part(date.hour()));
        self.text[14..16].copy_from_slice(&part(date.minute()));
        self.text[17..19].copy_from_slice(&part(date.second()));
    }
}

/// The last `N` decimal digits of `value`.
#[inline]
fn digits<const N: usize>(mut value: u64) -> [u8; N] {
    let mut text = [b'0'; N];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    text
}

/// Appends an address as RFC 5952 writes it; an IPv4 address that came through an IPv6 socket is shown as IPv4.
fn push_address(out: &mut Vec<u8>, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(address) => push_ipv4(out, address),
        // Written by `core`, which has no allocator.
        IpAddr::V6(address) => _ = write!(out, "{address}"),
    }
}

/// Most clients are IPv4's, and this takes less than half of what a formatter does.
fn push_ipv4(out: &mut Vec<u8>, address: Ipv4Addr) {
    let mut number = itoa::Buffer::new();
    for (index, octet) in address.octets().into_iter().enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        out.extend_from_slice(number.format(octet).as_bytes());
    }
}

#[cfg(test)]
mod tests {
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
            client_text: b"",
            user: "",
            method: b"GET",
            host: b"api.example.com",
            path: b"/api/events/1",
            place: place(),
            instance: b"127.0.0.1:8081",
            protocol: "HTTP/1.1",
            status: 200,
            request_bytes: 0,
            response_bytes: 1024,
            total_us: 812,
            gateway_us: 41,
            upstream_us: 771,
            connect_us: Some(90),
            attempts: 1,
            reused: false,
            reason: "",
            reason_detail: "",
            shard: 3,
            user_agent: b"curl/8.5.0",
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
        let mut written: Vec<String> = parsed(&full).into_iter().map(|(name, _)| name).collect();
        let docs = include_str!("../../docs/access-log.md");
        let mut documented: Vec<String> =
            docs.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
        written.sort();
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
            push_address(&mut out, text.parse().expect("an address"));
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
                push_address(&mut out, address);
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
            push_address(&mut out, address.into());
            prop_assert_eq!(String::from_utf8_lossy(&out), expected);
        }

        #[test]
        fn times_agree_with_jiff(unix_ms in 0_u64..253_402_207_200_000) {
            let text = *TimestampCache::default().at(unix_ms);
            let read: jiff::Timestamp = str::from_utf8(&text).expect("ASCII").parse().expect("RFC 3339");
            prop_assert_eq!(u64::try_from(read.as_millisecond()), Ok(unix_ms));
        }
    }
}

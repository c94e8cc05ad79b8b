//! One access-log line: everything that is known of a request when its answer is complete.
//!
//! It writes bytes into the caller's buffer; where lines go is `access_log`'s business. `docs/access-log.md` explains
//! each field to readers of the log.

use std::io::{self, Write};
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
    pub reason: &'a str,
    /// More about that: which claim, which bound, what the system said; empty when there is no more.
    pub reason_detail: &'a str,
    /// The shard that served it.
    pub shard: u16,
    /// The client's `User-Agent`.
    pub user_agent: &'a [u8],
    /// Set for a socket of the hub that has ended; its request has a line of its own.
    pub socket: Option<SocketEnd>,
}

/// How a socket of the hub ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketEnd {
    /// The code of its close frame; 1006 where there was none (RFC 6455 §7.1.5).
    pub close_code: u16,
    /// Messages that came from the client.
    pub received: u32,
    /// Frames that were wholly written.
    pub sent: u32,
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

impl Record<'static> {
    /// A line of which nothing is known yet.
    pub const BLANK: Self = Self {
        unix_ms: 0,
        request_id: b"",
        trace_id: [0; 16],
        client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        client_text: b"",
        user: "",
        method: b"",
        host: b"",
        path: b"",
        place: RouteNames::NONE,
        instance: b"",
        protocol: "",
        status: 0,
        request_bytes: 0,
        response_bytes: 0,
        total_us: 0,
        gateway_us: 0,
        upstream_us: 0,
        connect_us: None,
        attempts: 0,
        reused: false,
        reason: "",
        reason_detail: "",
        shard: 0,
        user_agent: b"",
        socket: None,
    };
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
        if let Some(SocketEnd { close_code, received, sent }) = self.socket {
            let _ = write!(out, " closed with {close_code} after {received} in and {sent} out");
        }
        if !self.reason.is_empty() {
            let _ = write!(out, ": {}", self.reason);
        }
        out.extend_from_slice(b", ");
        write_address(out, self.client);
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
            write_address(out, self.client);
        } else {
            out.extend_from_slice(self.client_text);
        }
        if !self.user.is_empty() {
            out.extend_from_slice(b"\",\"user\":\"");
            push_json_bounded(out, self.user.as_bytes(), NAME_MAX);
        }
        out.extend_from_slice(b"\",\"method\":\"");
        push_json_bounded(out, self.method, NAME_MAX);
        if self.socket.is_none() {
            out.extend_from_slice(b"\",\"host\":\"");
            push_json_bounded(out, self.host, HOST_MAX);
        }
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
        if let Some(socket) = self.socket {
            return self.push_socket(socket, out, &mut number);
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

    /// The rest of a line that is about a socket.
    #[cold]
    fn push_socket(&self, socket: SocketEnd, out: &mut Vec<u8>, number: &mut itoa::Buffer) {
        let SocketEnd { close_code, received, sent } = socket;
        out.extend_from_slice(b",\"close_code\":");
        out.extend_from_slice(number.format(close_code).as_bytes());
        out.extend_from_slice(b",\"messages_in\":");
        out.extend_from_slice(number.format(received).as_bytes());
        out.extend_from_slice(b",\"messages_out\":");
        out.extend_from_slice(number.format(sent).as_bytes());
        out.extend_from_slice(b",\"total_us\":");
        out.extend_from_slice(number.format(self.total_us).as_bytes());
        out.extend_from_slice(b",\"shard\":");
        out.extend_from_slice(number.format(self.shard).as_bytes());
        out.extend_from_slice(b"}\n");
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

/// Writes an address as RFC 5952 has it; an IPv4 address that came through an IPv6 socket is shown as IPv4. What has no room is
/// left out.
pub fn write_address(out: &mut impl Write, address: IpAddr) {
    let _ = match address.to_canonical() {
        IpAddr::V4(address) => write_ipv4(out, address),
        // Written by `core`, which has no allocator.
        IpAddr::V6(address) => write!(out, "{address}"),
    };
}

/// Most clients are IPv4's, and this takes less than half of what a formatter does.
fn write_ipv4(out: &mut impl Write, address: Ipv4Addr) -> io::Result<()> {
    let mut number = itoa::Buffer::new();
    for (index, octet) in address.octets().into_iter().enumerate() {
        if index > 0 {
            out.write_all(b".")?;
        }
        out.write_all(number.format(octet).as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;

//! Access-log lines for people, made of the lines of JSON that a sink takes: a shard writes each line once.
//!
//! It runs on the access log's thread.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Deserialize;

use super::log::Format;
use super::record::{Record, RouteNames, SocketEnd, TimestampCache};

/// The fields of a line that one for people shows.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    request_id: Cow<'a, str>,
    client: IpAddr,
    #[serde(borrow, default)]
    user: Cow<'a, str>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    path: Cow<'a, str>,
    status: u16,
    #[serde(borrow, default)]
    reason: Cow<'a, str>,
    #[serde(borrow, default)]
    route: Cow<'a, str>,
    #[serde(borrow, default)]
    upstream: Cow<'a, str>,
    #[serde(default)]
    attempts: u32,
    total_us: u64,
    close_code: Option<u16>,
    #[serde(default)]
    messages_in: u32,
    #[serde(default)]
    messages_out: u32,
}

/// Appends for each line of JSON one of this format. What cannot be read goes on as it is.
pub(super) fn write_retold(lines: &[u8], format: Format, out: &mut Vec<u8>) {
    let mut times = TimestampCache::default();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Line<'_>>(line) {
            Ok(line) => line.write(format, &mut times, out),
            Err(_) => out.extend_from_slice(line),
        }
    }
}

impl Line<'_> {
    fn unix_ms(&self) -> Option<u64> {
        let time: jiff::Timestamp = self.time.parse().ok()?;
        u64::try_from(time.as_millisecond()).ok()
    }

    fn write(&self, format: Format, times: &mut TimestampCache, out: &mut Vec<u8>) {
        let place = RouteNames::new(&self.route, &self.upstream);
        let record = Record {
            unix_ms: self.unix_ms().unwrap_or(0),
            request_id: self.request_id.as_bytes(),
            client: self.client,
            user: &self.user,
            method: self.method.as_bytes(),
            path: self.path.as_bytes(),
            place: &place,
            status: self.status,
            reason: &self.reason,
            attempts: self.attempts,
            total_us: self.total_us,
            socket: self.close_code.map(|close_code| SocketEnd {
                close_code,
                received: self.messages_in,
                sent: self.messages_out,
            }),
            ..Record::BLANK
        };
        record.write_line(format, times, out);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_line_that_is_retold_is_the_one_that_would_have_been_written() {
        let place = RouteNames::new("shop", "orders \"1\"");
        let record = Record {
            unix_ms: 1_795_947_300_007,
            request_id: b"req-00000001",
            client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
            user: "42",
            method: b"GET",
            path: "/a\"b\\c\u{202e}\n\u{fffd}/é".as_bytes(),
            place: &place,
            status: 502,
            reason: "upstream_error",
            attempts: 3,
            total_us: 12_345,
            ..Record::BLANK
        };
        let socket = SocketEnd { close_code: 4000, received: 12, sent: 4711 };
        let records = [
            record,
            Record { socket: Some(socket), reason: "slow_consumer", status: 101, ..record },
            Record { user: "", place: RouteNames::NONE, attempts: 0, client: IpAddr::V6([1; 16].into()), ..record },
            Record { path: &[b'a'; 3000], ..record },
        ];
        for is_colourful in [false, true] {
            let format = Format::Text { is_colourful };
            let (mut times, mut json, mut text, mut retold) =
                (TimestampCache::default(), Vec::new(), Vec::new(), Vec::new());
            for record in records {
                record.write_line(Format::Json, &mut times, &mut json);
                record.write_line(format, &mut times, &mut text);
            }
            write_retold(&json, format, &mut retold);
            // A path that was cut is cut no further.
            assert_eq!(String::from_utf8_lossy(&retold), String::from_utf8_lossy(&text));
        }
    }

    #[test]
    fn what_cannot_be_read_goes_on() {
        let mut out = Vec::new();
        write_retold(b"{}\n{\"time\"\n", Format::Text { is_colourful: false }, &mut out);
        assert_eq!(out, b"{}\n{\"time\"\n");
    }
}

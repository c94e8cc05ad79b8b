//! Streams of server-sent events: how late each event is by the stamp it carries, or else how long after the one
//! before it came.

use std::collections::VecDeque;

use super::{Meter, REST};
use crate::http::{Client, Outcome};
use crate::socket;
use crate::tally::Tally;

pub(super) fn run(mut client: Client, mut meter: Meter<'_>) -> Tally {
    let share = meter.share;
    let mut scanners = vec![Scanner::default(); client.connections()];
    let mut resting = (0..client.connections()).map(|slot| (share.start, slot)).collect::<VecDeque<_>>();
    loop {
        let now = socket::now();
        meter.tick(now, client.traffic);
        if now >= share.end {
            break;
        }
        while let Some((at, slot)) = resting.front().copied() {
            if at > now {
                break;
            }
            resting.pop_front();
            scanners[slot] = Scanner::default();
            client.send(slot, now, now);
        }
        let next = resting.front().map_or(share.end, |(at, _)| share.end.min(*at)).min(now + super::SECOND / 10);
        client.wait(next.saturating_sub(now));
        let tally = &mut meter.tally;
        let mut content = |slot: usize, bytes: &[u8]| {
            let now = socket::now();
            scanners[slot].take(bytes, now, &mut |event| {
                if now >= share.measure_from {
                    tally.events += 1;
                    tally.stamped += u64::from(event.is_stamped);
                    if let Some(latency_ns) = event.latency_ns {
                        tally.latency.saturating_record(latency_ns);
                    }
                }
            });
        };
        let mut ended = Vec::new();
        while let Some((slot, outcome)) = client.next(&mut content) {
            ended.push((slot, outcome));
        }
        for (slot, outcome) in ended {
            let is_expected = |status: u16| match share.job.expected.as_slice() {
                [] => status < 400,
                expected => expected.contains(&status),
            };
            match outcome {
                Outcome::Answered { status } if is_expected(status) => meter.tally.closed += 1,
                Outcome::Closed => {}
                failed => meter.tally.count(failed, 0, &share.job.expected),
            }
            resting.push_back((client.now() + REST, slot));
        }
    }
    meter.finish(&client)
}

/// An event that has come.
struct Event {
    is_stamped: bool,
    /// Since it left, or since the one before; unknown for a first event without a stamp.
    latency_ns: Option<u64>,
}

/// Finds events in a stream that may be split anywhere. Pure.
#[derive(Clone, Debug, Default)]
struct Scanner {
    /// First byte of the line under way.
    line_begins: Option<u8>,
    has_fields: bool,
    /// How much of `@@` and its 19 digits has been seen.
    matched: u8,
    digits: u64,
    stamp: Option<u64>,
    last_at: Option<u64>,
}

const STAMP_BYTES: u8 = 2 + 19;

impl Scanner {
    fn take(&mut self, bytes: &[u8], now: u64, event: &mut impl FnMut(Event)) {
        for &byte in bytes {
            self.take_stamp(byte);
            match byte {
                b'\n' => match self.line_begins.take() {
                    Some(b':') => {} // a comment, such as keeps a stream alive
                    Some(_) => self.has_fields = true,
                    None if std::mem::take(&mut self.has_fields) => {
                        let stamp = self.stamp.take();
                        let before = stamp.or(self.last_at.replace(now));
                        event(Event {
                            is_stamped: stamp.is_some(),
                            latency_ns: before.map(|before| now.saturating_sub(before)),
                        });
                    }
                    None => {}
                },
                b'\r' => {}
                _ => {
                    self.line_begins.get_or_insert(byte);
                }
            }
        }
    }

    fn take_stamp(&mut self, byte: u8) {
        match (self.matched, byte) {
            (0 | 1, b'@') => self.matched += 1,
            (2, b'@') => {}
            (2.., b'0'..=b'9') => {
                self.digits = self.digits.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
                self.matched += 1;
                if self.matched == STAMP_BYTES {
                    self.stamp = Some(self.digits);
                    (self.matched, self.digits) = (0, 0);
                }
            }
            _ => (self.matched, self.digits) = (0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (stamped, latency) of each event of a stream that comes in pieces of `split` bytes, all at `now`.
    fn scan(stream: &str, split: usize, now: u64) -> Vec<(bool, Option<u64>)> {
        let mut scanner = Scanner::default();
        let mut events = Vec::new();
        for piece in stream.as_bytes().chunks(split) {
            scanner.take(piece, now, &mut |event| events.push((event.is_stamped, event.latency_ns)));
        }
        events
    }

    #[test]
    fn stamped_events_are_found_however_they_are_split() {
        let stream =
            "data: {\"t\":\"@@0000000000000000400\"}\n\n: alive\n\ndata: a@b@@@0000000000000000900\r\n\r\ndata: cut";
        for split in 1..=stream.len() {
            assert_eq!(scan(stream, split, 1000), [(true, Some(600)), (true, Some(100))], "split {split}");
        }
    }

    #[test]
    fn without_stamps_the_gap_counts() {
        let mut scanner = Scanner::default();
        let mut gaps = Vec::new();
        for now in [100, 350, 400] {
            scanner.take(b"event: x\ndata: y\n\n", now, &mut |event| gaps.push(event.latency_ns));
        }
        assert_eq!(gaps, [None, Some(250), Some(50)]);
    }
}

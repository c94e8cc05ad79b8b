//! What one thread has counted; the threads' tallies are added up. Words and tables are `report`'s.

use hdrhistogram::Histogram;

use crate::faults::Record;
use crate::http::{Failure, Outcome, Traffic};
use crate::process::Memory;

/// Latencies from 100 ns to 10 min, to three digits.
const LATENCY_NS: std::ops::Range<u64> = 100..600_000_000_000;

/// How a server ended a slow connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    Status(u16),
    Closed(Failure),
    StillOpen,
}

#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Nanoseconds from the intended time to the complete answer, of expected answers; or of events, or between them.
    pub(crate) latency: Histogram<u64>,
    /// The same of answers with a status that was not expected: how soon who is refused is told.
    pub(crate) unexpected_latency: Histogram<u64>,
    /// Nanoseconds by which the load test itself sent late.
    pub(crate) lag: Histogram<u64>,
    /// Answers by status.
    statuses: Vec<u64>,
    failures: [u64; Failure::ALL.len()],
    /// Answers that came while it was measured, whenever their requests were meant to leave: what the server's CPU of
    /// that time was spent on.
    pub(crate) answered_meanwhile: u64,
    /// Requests that should have left, and did not because no connection was free.
    pub(crate) backlog: u64,
    /// Idle connections closed by the server.
    pub(crate) closed: u64,
    /// Events of streams.
    pub(crate) events: u64,
    /// Events that carried the time they left.
    pub(crate) stamped: u64,
    pub(crate) traffic: Traffic,
    /// CPU time of the busiest thread while it was measured.
    pub(crate) thread_cpu_ns: u64,
    /// Slow connections: how and after how many nanoseconds each ended.
    pub(crate) endings: Vec<(Ending, u64)>,
    /// Nanoseconds that transfers took, the longest; or until the last log-in of a burst was served.
    pub(crate) took_ns: u64,
    /// Refusals of a burst that said when to come back.
    pub(crate) told_when: u64,
    /// What those of a burst were told that were served.
    pub(crate) contents: Vec<Vec<u8>>,
    /// Each request, where the job asks for it.
    pub(crate) records: Vec<Record>,
    /// Connections open when the server was weighed, and its weight before and then.
    pub(crate) held: Option<Held>,
}

/// An empty histogram of latencies; all have the same bounds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_NS.start, LATENCY_NS.end, 3).expect("the bounds are in order and far apart")
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Held {
    pub(crate) connections: u64,
    pub(crate) before: Memory,
    pub(crate) after: Memory,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            latency: histogram(),
            unexpected_latency: histogram(),
            lag: histogram(),
            statuses: vec![0; 1000],
            failures: [0; Failure::ALL.len()],
            answered_meanwhile: 0,
            backlog: 0,
            closed: 0,
            events: 0,
            stamped: 0,
            traffic: Traffic::default(),
            thread_cpu_ns: 0,
            endings: Vec::new(),
            took_ns: 0,
            told_when: 0,
            contents: Vec::new(),
            records: Vec::new(),
            held: None,
        }
    }

    /// Counts how a request ended. Only expected answers count as latency: a quick refusal would flatter it.
    pub(crate) fn count(&mut self, outcome: Outcome, latency_ns: u64, expected: &[u16]) {
        match outcome {
            Outcome::Answered { status } => {
                self.statuses[usize::from(status).min(999)] += 1;
                if is_expected(status, expected) {
                    self.latency.saturating_record(latency_ns);
                } else {
                    self.unexpected_latency.saturating_record(latency_ns);
                }
            }
            Outcome::Failed(failure) => self.failures[failure as usize] += 1,
            Outcome::Closed => self.closed += 1,
        }
    }

    pub(crate) fn answers(&self) -> u64 {
        self.statuses.iter().sum()
    }

    /// Requests without an answer or with one that was not expected.
    pub(crate) fn failed(&self) -> u64 {
        self.unexpected_latency.len() + self.failures.iter().sum::<u64>()
    }

    /// Each status that came, with its count.
    pub(crate) fn statuses(&self) -> impl Iterator<Item = (usize, u64)> {
        self.statuses.iter().copied().enumerate().filter(|(_, count)| *count > 0)
    }

    /// Each kind of failure that occurred, with its count.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Failure::ALL.iter().map(|kind| (kind.name(), self.failures[*kind as usize])).filter(|(_, count)| *count > 0)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency).expect("all have the same bounds");
        self.unexpected_latency.add(&other.unexpected_latency).expect("all have the same bounds");
        self.lag.add(&other.lag).expect("all have the same bounds");
        for (sum, count) in self.statuses.iter_mut().zip(&other.statuses) {
            *sum += count;
        }
        for (sum, count) in self.failures.iter_mut().zip(&other.failures) {
            *sum += count;
        }
        self.answered_meanwhile += other.answered_meanwhile;
        self.backlog += other.backlog;
        self.closed += other.closed;
        self.events += other.events;
        self.stamped += other.stamped;
        self.traffic.connects += other.traffic.connects;
        self.traffic.whole += other.traffic.whole;
        self.traffic.resumed += other.traffic.resumed;
        self.traffic.bytes_in += other.traffic.bytes_in;
        self.traffic.bytes_out += other.traffic.bytes_out;
        self.thread_cpu_ns = self.thread_cpu_ns.max(other.thread_cpu_ns);
        self.endings.extend_from_slice(&other.endings);
        self.took_ns = self.took_ns.max(other.took_ns);
        self.told_when += other.told_when;
        self.contents.extend_from_slice(&other.contents);
        self.records.extend_from_slice(&other.records);
        self.held = self.held.or(other.held);
    }
}

/// Whether a status is success.
pub(crate) fn is_expected(status: u16, expected: &[u16]) -> bool {
    if expected.is_empty() { status < 400 } else { expected.contains(&status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_expected_answers_are_latency() {
        let mut tally = Tally::new();
        tally.count(Outcome::Answered { status: 200 }, 1_000_000, &[]);
        tally.count(Outcome::Answered { status: 503 }, 1_000, &[]);
        tally.count(Outcome::Failed(Failure::Reset), 1_000, &[]);
        assert_eq!((tally.answers(), tally.failed(), tally.latency.len()), (2, 2, 1));
        assert_eq!(tally.failures().collect::<Vec<_>>(), [("reset", 1)]);
        tally.count(Outcome::Answered { status: 429 }, 1_000, &[429]);
        tally.count(Outcome::Answered { status: 200 }, 1_000, &[429]);
        assert_eq!((tally.answers(), tally.failed(), tally.latency.len()), (4, 3, 2));
    }

    #[test]
    fn failures_are_counted_in_their_own_place() {
        for (nth, kind) in Failure::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, nth, "{kind:?}");
        }
    }

    #[test]
    fn tallies_add_up() {
        let mut one = Tally::new();
        one.count(Outcome::Answered { status: 200 }, 5_000, &[]);
        one.thread_cpu_ns = 7;
        let mut sum = one.clone();
        sum.add(&one);
        assert_eq!((sum.answers(), sum.latency.len(), sum.thread_cpu_ns), (2, 2, 7));
    }
}

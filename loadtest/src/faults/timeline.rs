//! What befell the requests of a run, by when each should have left. Pure.

use hdrhistogram::Histogram;

use crate::tally::histogram;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// When it should have left, in nanoseconds of the machine's clock.
    pub(crate) intended_at: u64,
    /// From then until its answer was complete, or it had failed.
    pub(crate) latency_ns: u64,
    /// It was answered as expected.
    pub(crate) is_good: bool,
}

/// What befell those of a span of time.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) requests: u64,
    pub(super) failed: u64,
    /// Of those that were answered as expected.
    pub(super) latency: Histogram<u64>,
    /// When the last one that failed should have left, in nanoseconds from the span's begin.
    pub(super) last_failure_ns: Option<u64>,
}

/// Sums up those that should have left from `from` until before `end`.
pub(super) fn phase(records: &[Record], from: u64, end: u64) -> Phase {
    let mut phase = Phase { requests: 0, failed: 0, latency: histogram(), last_failure_ns: None };
    for record in records.iter().filter(|record| (from..end).contains(&record.intended_at)) {
        phase.requests += 1;
        if record.is_good {
            phase.latency.saturating_record(record.latency_ns);
        } else {
            phase.failed += 1;
            phase.last_failure_ns = phase.last_failure_ns.max(Some(record.intended_at - from));
        }
    }
    phase
}

/// How many requests each instance had served when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) at: u64,
    /// None of an instance that did not tell.
    pub(super) counts: Vec<Option<u64>>,
}

/// The share of an instance among all that were served from `from` until `end`; none when nobody told, or nothing was.
pub(super) fn share(served: &[Served], victim: usize, from: u64, end: u64) -> Option<f64> {
    let inside = served.iter().filter(|sample| (from..=end).contains(&sample.at));
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for sample in inside {
        first.resize(sample.counts.len(), None);
        last.resize(sample.counts.len(), None);
        for (nth, count) in sample.counts.iter().enumerate().filter(|(_, count)| count.is_some()) {
            first[nth] = first[nth].or(*count);
            last[nth] = *count;
        }
    }
    let grown: Vec<u64> = first.iter().zip(&last).map(|(first, last)| last.unwrap_or(0) - first.unwrap_or(0)).collect();
    let all: u64 = grown.iter().sum();
    (all > 0).then(|| grown.get(victim).copied().unwrap_or(0) as f64 / all as f64)
}

/// When the instance began to serve without a pause after `from`, in nanoseconds from then: what had hung in it meanwhile is
/// served at once, and says nothing.
pub(super) fn back_after(served: &[Served], victim: usize, from: u64) -> Option<u64> {
    let told = served.iter().filter(|sample| sample.at >= from);
    let counts = told.filter_map(|sample| Some((sample.at, (*sample.counts.get(victim)?)?)));
    let (mut before, mut since, mut in_a_row) = (None, from, 0);
    for (at, count) in counts {
        if before.is_some_and(|before| count > before) {
            in_a_row += 1;
            if in_a_row == 1 {
                since = at;
            }
            if in_a_row == GROWTHS_IN_A_ROW {
                return Some(since - from);
            }
        } else {
            in_a_row = 0;
        }
        before = Some(count);
    }
    None
}

/// So often in a row an instance has served more that is back.
const GROWTHS_IN_A_ROW: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(intended_at: u64, is_good: bool) -> Record {
        Record { intended_at, latency_ns: 1_000_000, is_good }
    }

    #[test]
    fn a_phase_has_those_that_should_have_left_in_it() {
        let records = [record(9, false), record(10, true), record(12, false), record(15, true), record(20, false)];
        let phase = phase(&records, 10, 20);
        assert_eq!((phase.requests, phase.failed, phase.latency.len()), (3, 1, 2));
        assert_eq!(phase.last_failure_ns, Some(2));
    }

    #[test]
    fn an_instance_that_does_not_tell_has_no_share_and_is_back_when_its_count_grows() {
        let sample = |at, counts: [Option<u64>; 2]| Served { at, counts: counts.to_vec() };
        let served = [
            sample(0, [Some(10), Some(10)]),
            sample(1, [Some(20), Some(40)]),
            sample(2, [Some(30), None]),
            sample(3, [Some(40), Some(40)]),
            sample(4, [Some(50), Some(41)]),
            sample(5, [Some(60), Some(41)]),
            sample(6, [Some(70), Some(42)]),
            sample(7, [Some(80), Some(43)]),
            sample(8, [Some(90), Some(44)]),
        ];
        assert_eq!(share(&served, 1, 0, 1), Some(0.75));
        assert_eq!(share(&served, 1, 1, 3), Some(0.0));
        assert_eq!(share(&served, 1, 9, 10), None);
        assert_eq!(back_after(&served, 1, 2), Some(4), "what it served at 4 was alone");
        assert_eq!(back_after(&served, 0, 6), None);
    }
}

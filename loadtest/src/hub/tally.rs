//! What one thread has counted of its sockets; the threads' tallies are added up. Words and tables are `report`'s.

use std::collections::BTreeMap;
use std::ops::Range;

use hdrhistogram::Histogram;

use crate::hub::follow::Followed;
use crate::hub::message::Stamp;
use crate::hub::sockets::Ending;
use crate::tally::histogram;

/// Publications that are followed one by one until their last delivery; later ones count in the histograms only.
const FOLLOWED_MAX: u64 = 1 << 20;

/// A part of the measured time has its own figures: before something is done to the hub, and from then on.
pub(crate) const PHASES: usize = 2;

/// The measured time, in parts; empty parts are in the past.
pub(crate) type Phases = [Range<u64>; PHASES];

/// Which part a time is in.
pub(crate) fn phase_at(phases: &Phases, time: u64) -> Option<usize> {
    phases.iter().position(|phase| phase.contains(&time))
}

/// What has become of one publication.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Publication {
    /// The part of the measured time in which it should have left, plus one; 0: none, or not sent.
    pub(crate) phase: u8,
    pub(crate) deliveries: u32,
    /// From its intended time until its latest delivery.
    pub(crate) last_ns: u64,
}

/// Why a socket is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Why {
    /// It is one of those that the scenario begins with.
    #[default]
    Begins,
    /// It was dropped and comes back; it tries again when it is refused.
    Returns,
    /// It only shows how long joining takes, and is closed again when it has.
    Probes,
}

/// What is told once a round, so that the one who waits for something sees it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Sockets that are where they want to be.
    pub(crate) ready: u64,
    /// Sockets on their way, or waiting to be.
    pub(crate) opening: u64,
    /// Sockets that did not get where they wanted and will not try again.
    pub(crate) failed: u64,
    /// Sockets that were ready and ended, not by us.
    pub(crate) lost: u64,
    /// Stamped messages that came.
    pub(crate) messages: u64,
    /// Sockets that were asked to come back, and are ready.
    pub(crate) returned: u64,
    /// Messages outside of any plan: the burst for all.
    pub(crate) bursts: u64,
    pub(crate) errors: u64,
    /// Messages that were refused for now, and will be sent again.
    pub(crate) refused: u64,
    /// Messages with an id whose answer is still to come.
    pub(crate) unanswered: u64,
    /// When the latest of those who returned did.
    pub(crate) returned_at: u64,
    pub(crate) p99_ns: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.ready += other.ready;
        self.opening += other.opening;
        self.failed += other.failed;
        self.lost += other.lost;
        self.messages += other.messages;
        self.returned += other.returned;
        self.bursts += other.bursts;
        self.errors += other.errors;
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.returned_at = self.returned_at.max(other.returned_at);
        self.p99_ns = self.p99_ns.max(other.p99_ns);
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Nanoseconds from a message's intended time until each of its deliveries, by the part in which it was meant to leave.
    pub(crate) latency: [Histogram<u64>; PHASES],
    /// Deliveries that came in that part, whenever they were meant to: what the server's CPU was spent on.
    pub(crate) arrived: [u64; PHASES],
    /// Nanoseconds by which the load test itself sent late.
    pub(crate) lag: Histogram<u64>,
    /// Messages sent, by part.
    pub(crate) sent: [u64; PHASES],
    /// Messages that could not be sent, since their socket was gone or full.
    pub(crate) unsent: u64,
    pub(crate) publications: Vec<Publication>,
    /// Nanoseconds until a socket was ready, from when it was meant to open; by `Why`.
    pub(crate) joining: [Histogram<u64>; 3],
    pub(crate) attempts: u64,
    /// Deliveries to those who stop reading, before or after.
    pub(crate) to_slow: u64,
    /// Sockets that did not get where they wanted and will not try again.
    pub(crate) gave_up: u64,
    /// How attempts ended that did not get where they wanted.
    pub(crate) failures: BTreeMap<Ending, u64>,
    /// How sockets ended that had.
    pub(crate) losses: BTreeMap<Ending, u64>,
    /// The same of those who stop reading.
    pub(crate) slow_losses: BTreeMap<Ending, u64>,
    /// Frames that refuse something, by code.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Frames that tell of a loss.
    pub(crate) told_losses: u64,
    pub(crate) reconnects_asked: u64,
    pub(crate) acks: u64,
    /// Joins and messages that were refused for now and sent again, by code.
    pub(crate) refused: BTreeMap<String, u64>,
    /// When sockets were ended that were ready, by place.
    pub(crate) ended_at: Vec<(usize, u64)>,
    pub(crate) followed: Followed,
    /// CPU time of the busiest thread while it was measured.
    pub(crate) thread_cpu_ns: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            latency: std::array::from_fn(|_| histogram()),
            arrived: [0; PHASES],
            lag: histogram(),
            sent: [0; PHASES],
            unsent: 0,
            publications: Vec::new(),
            joining: std::array::from_fn(|_| histogram()),
            attempts: 0,
            to_slow: 0,
            gave_up: 0,
            failures: BTreeMap::new(),
            losses: BTreeMap::new(),
            slow_losses: BTreeMap::new(),
            errors: BTreeMap::new(),
            told_losses: 0,
            reconnects_asked: 0,
            acks: 0,
            refused: BTreeMap::new(),
            ended_at: Vec::new(),
            followed: Followed::default(),
            thread_cpu_ns: 0,
        }
    }

    /// A message left, or should have, at `intended_at`, `late_ns` after that.
    pub(crate) fn publish(&mut self, phases: &Phases, stamp: Stamp, late_ns: u64) {
        let Some(phase) = phase_at(phases, stamp.intended_at) else { return };
        self.sent[phase] += 1;
        self.lag.saturating_record(late_ns);
        if let Some(publication) = self.publication(stamp.number) {
            publication.phase = if phase == 0 { 1 } else { 2 };
        }
    }

    /// A message came that was meant to leave as its stamp says.
    pub(crate) fn deliver(&mut self, phases: &Phases, stamp: Stamp, now: u64) {
        if let Some(phase) = phase_at(phases, now) {
            self.arrived[phase] += 1;
        }
        let Some(phase) = phase_at(phases, stamp.intended_at) else { return };
        let latency = now.saturating_sub(stamp.intended_at);
        self.latency[phase].saturating_record(latency);
        if let Some(publication) = self.publication(stamp.number) {
            publication.deliveries += 1;
            publication.last_ns = publication.last_ns.max(latency);
        }
    }

    fn publication(&mut self, number: u64) -> Option<&mut Publication> {
        let nth = usize::try_from(number).ok().filter(|_| number < FOLLOWED_MAX)?;
        if self.publications.len() <= nth {
            self.publications.resize(nth + 1, Publication::default());
        }
        self.publications.get_mut(nth)
    }

    /// How long each publication of a part took until the last of so many had it, and how many deliveries are missing. Of
    /// those that are not followed one by one, what came twice makes up for what is missing.
    pub(crate) fn to_the_last(&self, phase: usize, deliveries: u32) -> (Histogram<u64>, u64) {
        let (mut last, mut missing) = (histogram(), 0);
        let (mut sent, mut delivered) = (self.sent[phase], self.latency[phase].len());
        for publication in self.publications.iter().filter(|one| usize::from(one.phase) == phase + 1) {
            sent = sent.saturating_sub(1);
            delivered = delivered.saturating_sub(publication.deliveries.into());
            missing += u64::from(deliveries.saturating_sub(publication.deliveries));
            if publication.deliveries >= deliveries {
                last.saturating_record(publication.last_ns);
            }
        }
        (last, missing + (sent * u64::from(deliveries)).saturating_sub(delivered))
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let histograms = self.latency.iter_mut().chain([&mut self.lag]).chain(&mut self.joining);
        let others = other.latency.iter().chain([&other.lag]).chain(&other.joining);
        for (sum, one) in histograms.zip(others) {
            sum.add(one).expect("all have the same bounds");
        }
        for phase in 0..PHASES {
            self.arrived[phase] += other.arrived[phase];
            self.sent[phase] += other.sent[phase];
        }
        self.unsent += other.unsent;
        for (nth, one) in other.publications.iter().enumerate() {
            if let Some(sum) = self.publication(nth as u64) {
                sum.phase = sum.phase.max(one.phase);
                sum.deliveries += one.deliveries;
                sum.last_ns = sum.last_ns.max(one.last_ns);
            }
        }
        self.attempts += other.attempts;
        self.to_slow += other.to_slow;
        self.gave_up += other.gave_up;
        for (sum, ones) in [
            (&mut self.failures, &other.failures),
            (&mut self.losses, &other.losses),
            (&mut self.slow_losses, &other.slow_losses),
        ] {
            for (ending, count) in ones {
                *sum.entry(*ending).or_default() += count;
            }
        }
        for (sum, ones) in [(&mut self.errors, &other.errors), (&mut self.refused, &other.refused)] {
            for (code, count) in ones {
                *sum.entry(code.clone()).or_default() += count;
            }
        }
        self.ended_at.extend(&other.ended_at);
        self.followed.add(&other.followed);
        self.told_losses += other.told_losses;
        self.reconnects_asked += other.reconnects_asked;
        self.acks += other.acks;
        self.thread_cpu_ns = self.thread_cpu_ns.max(other.thread_cpu_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: Phases = [100_000..200_000, 200_000..300_000];

    fn stamp(intended_at: u64, number: u64) -> Stamp {
        Stamp { intended_at, number }
    }

    #[test]
    fn a_delivery_counts_where_its_message_was_meant_to_leave() {
        let mut tally = Tally::new();
        tally.publish(&PARTS, stamp(99_999, 0), 0);
        tally.publish(&PARTS, stamp(150_000, 1), 10);
        tally.publish(&PARTS, stamp(250_000, 2), 20);
        // It comes in the second part and belongs to the first.
        tally.deliver(&PARTS, stamp(150_000, 1), 210_000);
        tally.deliver(&PARTS, stamp(250_000, 2), 290_000);
        tally.deliver(&PARTS, stamp(99_999, 0), 150_000);
        assert_eq!(tally.sent, [1, 1]);
        assert_eq!(tally.arrived, [1, 2]);
        assert_eq!((tally.latency[0].len(), tally.latency[1].len(), tally.lag.len()), (1, 1, 2));
        assert!(tally.latency[0].max() >= 60_000);
    }

    #[test]
    fn the_last_member_decides_across_threads() {
        let (mut one, mut other) = (Tally::new(), Tally::new());
        one.publish(&PARTS, stamp(100_000, 0), 0);
        one.publish(&PARTS, stamp(110_000, 1), 0);
        one.deliver(&PARTS, stamp(100_000, 0), 101_000);
        one.deliver(&PARTS, stamp(110_000, 1), 111_000);
        other.deliver(&PARTS, stamp(100_000, 0), 150_000);
        one.add(&other);
        let (last, missing) = one.to_the_last(0, 2);
        assert_eq!(
            (last.len(), missing),
            (1, 1),
            "the second of message 1 is missing, so nothing is known of its last"
        );
        assert!((50_000..50_100).contains(&last.max()), "{}", last.max());
        assert_eq!(one.to_the_last(1, 2).1, 0);
    }

    #[test]
    fn what_is_missing_of_later_messages_counts_too() {
        let mut tally = Tally::new();
        for number in [FOLLOWED_MAX - 1, FOLLOWED_MAX, FOLLOWED_MAX + 1] {
            tally.publish(&PARTS, stamp(100_000, number), 0);
            tally.deliver(&PARTS, stamp(100_000, number), 101_000);
        }
        tally.deliver(&PARTS, stamp(100_000, FOLLOWED_MAX), 101_000);
        let (last, missing) = tally.to_the_last(0, 2);
        assert_eq!((last.len(), missing), (0, 2), "one of the last that is followed, and one of those behind it");
    }

    #[test]
    fn endings_add_up_by_kind() {
        let mut one = Tally::new();
        one.losses.insert(Ending::Closed(4000), 1);
        one.errors.insert("rate_limited".to_owned(), 2);
        let mut sum = one.clone();
        sum.add(&one);
        assert_eq!((sum.losses[&Ending::Closed(4000)], sum.errors["rate_limited"]), (2, 4));
    }
}

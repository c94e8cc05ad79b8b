//! The last minutes, second by second: rates and percentiles out of counters that only rise. A pure core: time is an
//! argument. One per process, with the control thread.

use std::{collections::VecDeque, time::Duration};

use crate::{
    shard::Instant,
    telemetry::{
        histogram::{Histogram, Ladder, Own, Requests},
        metrics::{Counters, Outcome, REJECT_CODES_MAX, STATUS_CLASSES},
    },
};

/// So many samples are kept, one a second: five minutes.
pub const SAMPLES_MAX: usize = 300;
/// Rates of now are of at least so much time, where there is as much.
pub const WINDOW: Duration = Duration::from_secs(10);

/// What is known at one moment. Counts are those since the start.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The moment.
    pub at: Instant,
    /// Requests that ended.
    pub requests: u64,
    /// Those with a status of 500 or above, or none.
    pub errors: u64,
    /// How long they took.
    pub duration: Histogram<Requests>,
    /// What the gateway itself added.
    pub gateway: Histogram<Own>,
    /// Client connections open.
    pub connections: i64,
    /// Sockets of the hub open.
    pub sockets: i64,
    /// Messages queued for sockets.
    pub messages: u64,
    /// Processor time of the process.
    pub cpu: Duration,
    /// Of each shard.
    pub shards: Box<[ShardSample]>,
}

/// What is known of a shard at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardSample {
    /// Requests that ended.
    pub requests: u64,
    /// For how long its thread has run.
    pub cpu: Duration,
    /// How late its timer was at worst since the sample before.
    pub lag: Duration,
}

impl Sample {
    /// Adds up what shards have counted. What is told of the process and of each shard is the caller's.
    pub fn of<'c>(
        at: Instant,
        cpu: Duration,
        shards: Box<[ShardSample]>,
        counted: impl Iterator<Item = &'c Counters>,
    ) -> Self {
        let mut sample = Self {
            at,
            requests: 0,
            errors: 0,
            duration: Histogram::default(),
            gateway: Histogram::default(),
            connections: 0,
            sockets: 0,
            messages: 0,
            cpu,
            shards,
        };
        for counters in counted {
            sample.requests += counters.requests;
            sample.gateway.merge(&counters.gateway_duration);
            sample.connections += counters.connections_open;
            sample.sockets += counters.sockets_open;
            sample.messages += counters.hub_deliveries;
            for route in counters.routes() {
                sample.errors += failed(&route.requests);
                sample.duration.merge(&route.duration);
            }
        }
        sample
    }
}

/// Requests of a route that failed, by the classes of their statuses.
fn failed(statuses: &[u64; STATUS_CLASSES.len()]) -> u64 {
    // 5xx, and those without an answer.
    statuses[4] + statuses[5]
}

/// What has been counted of one route, or of one upstream.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// All.
    pub total: u64,
    /// Those that failed.
    pub failed: u64,
    /// How long they took.
    pub duration: Histogram<Requests>,
}

/// What has been counted by name at one moment.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The moment.
    pub at: Instant,
    /// Routes by slot.
    pub routes: Vec<Counted>,
    /// Upstreams by slot.
    pub upstreams: Vec<Counted>,
    /// Requests by the class of their status.
    pub statuses: [u64; STATUS_CLASSES.len()],
    /// Refusals by code.
    pub refusals: [u64; REJECT_CODES_MAX],
}

impl Mark {
    /// What all shards together have counted.
    pub fn of(at: Instant, sum: &Counters) -> Self {
        let mut statuses = [0; STATUS_CLASSES.len()];
        for route in sum.routes() {
            statuses.iter_mut().zip(route.requests).for_each(|(all, one)| *all += one);
        }
        let routes = sum.routes().iter().map(|route| Counted {
            total: route.requests.iter().sum(),
            failed: failed(&route.requests),
            duration: route.duration.clone(),
        });
        let is_well = [Outcome::Answered, Outcome::Cancelled].map(Outcome::index);
        let upstreams = sum.upstreams().iter().map(|upstream| Counted {
            total: upstream.requests.iter().sum(),
            failed: upstream
                .requests
                .iter()
                .enumerate()
                .filter(|(at, _)| !is_well.contains(at))
                .map(|(_, one)| one)
                .sum(),
            duration: upstream.duration.clone(),
        });
        let (routes, upstreams) = (routes.collect(), upstreams.collect());
        Self { at, routes, upstreams, statuses, refusals: sum.rejects }
    }
}

/// The last minutes.
#[derive(Debug, Default)]
pub struct History {
    samples: VecDeque<Sample>,
    /// The last two, [`WINDOW`] apart at least.
    marks: VecDeque<Mark>,
}

impl History {
    /// Takes the next sample; the oldest goes when there are enough.
    pub fn note(&mut self, sample: Sample) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// Whether it is time for another mark.
    pub fn wants_mark(&self, now: Instant) -> bool {
        self.marks.back().is_none_or(|mark| now.since(mark.at) >= WINDOW)
    }

    /// Takes a mark.
    pub fn mark(&mut self, mark: Mark) {
        if self.marks.len() == 2 {
            self.marks.pop_front();
        }
        self.marks.push_back(mark);
    }

    /// The oldest of the marks.
    pub fn marked(&self) -> Option<&Mark> {
        self.marks.front()
    }

    /// The samples that rates of now are of: an older one, and the last one.
    pub fn window(&self) -> Option<(&Sample, &Sample)> {
        let last = self.samples.back()?;
        let older = self.samples.iter().rev().skip(1).find(|sample| last.at.since(sample.at) >= WINDOW);
        Some((older.or(self.samples.front()).filter(|older| older.at < last.at)?, last))
    }

    /// The worst lag of a shard in that time.
    pub fn lag(&self, shard: usize) -> Option<Duration> {
        let (older, _) = self.window()?;
        let from = older.at;
        let samples = self.samples.iter().rev().take_while(|sample| sample.at > from);
        samples.filter_map(|sample| sample.shards.get(shard)).map(|shard| shard.lag).max()
    }

    /// A value for each second, of the sample and of the one before it.
    pub fn series(&self, value: impl Fn(&Sample, &Sample) -> Option<f64>) -> Vec<Option<f64>> {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        pairs.map(|(older, newer)| value(older, newer).map(rounded)).collect()
    }
}

/// How often a second something was counted, to three digits behind the point.
pub fn per_second(older: u64, newer: u64, time: Duration) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "nobody reads 16 digits of a rate")]
    let count = newer.saturating_sub(older) as f64;
    (!time.is_zero()).then(|| rounded(count / time.as_secs_f64()))
}

/// The share of the time for which something ran.
pub fn share(older: Duration, newer: Duration, time: Duration) -> Option<f64> {
    (!time.is_zero()).then(|| rounded(newer.saturating_sub(older).as_secs_f64() / time.as_secs_f64()))
}

/// What so much of what was counted meanwhile did not exceed, in milliseconds: `part` of 0.99 is the 99th percentile. Within a
/// bucket durations are taken to lie evenly; past the last bound there is that bound only.
pub fn percentile_ms<L: Ladder>(older: &Histogram<L>, newer: &Histogram<L>, part: f64) -> Option<f64> {
    let counts = older.cumulative().zip(newer.cumulative());
    let counts: Vec<_> = counts.map(|((_, old), (bound, new))| (bound, new.saturating_sub(old))).collect();
    let total = counts.last().map_or(0, |(_, count)| *count);
    if total == 0 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a percentile out of buckets is no exact number")]
    let (wanted, as_f64) = (total as f64 * part, |count: u64| count as f64);
    let (mut from_us, mut before) = (0, 0);
    for (bound, count) in counts {
        let Some(bound) = bound else { break };
        if as_f64(count) >= wanted {
            let within = (wanted - as_f64(before)) / as_f64(count - before).max(1.0);
            let us = f64::from(from_us) + f64::from(bound - from_us) * within.clamp(0.0, 1.0);
            return Some(rounded(us / 1000.0));
        }
        (from_us, before) = (bound, count);
    }
    Some(rounded(f64::from(from_us) / 1000.0))
}

/// Three digits behind the point say enough, and stay short.
pub fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Instant {
        Instant::START + Duration::from_secs(second)
    }

    fn sample(second: u64, requests: u64) -> Sample {
        let shards = Box::new([ShardSample { requests, cpu: Duration::ZERO, lag: Duration::from_millis(second) }]);
        let mut counters = Counters::default();
        counters.requests = requests;
        Sample::of(at(second), Duration::ZERO, shards, [&counters].into_iter())
    }

    #[test]
    fn a_rate_is_of_the_last_ten_seconds_or_of_what_there_is() {
        let mut history = History::default();
        assert!(history.window().is_none());
        history.note(sample(0, 0));
        assert!(history.window().is_none(), "one moment is no time");
        let rate = |history: &History| {
            let (older, newer) = history.window().expect("two samples");
            per_second(older.requests, newer.requests, newer.at.since(older.at))
        };
        history.note(sample(1, 50));
        assert_eq!(rate(&history), Some(50.0));
        (2..=100).for_each(|second| history.note(sample(second, 50)));
        assert_eq!(rate(&history), Some(0.0));
        history.note(sample(101, 60));
        assert_eq!(rate(&history), Some(1.0));
        assert_eq!(history.lag(0), Some(Duration::from_millis(101)));
        assert_eq!(history.lag(1), None);
        let series =
            history.series(|older, newer| per_second(older.requests, newer.requests, newer.at.since(older.at)));
        assert_eq!((series.len(), series[0], series[1], series[100]), (101, Some(50.0), Some(0.0), Some(10.0)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut history = History::default();
        for second in 0..1000 {
            history.note(sample(second, second));
            if history.wants_mark(at(second)) {
                history.mark(Mark::of(at(second), &Counters::default()));
            }
        }
        assert_eq!((history.samples.len(), history.marks.len()), (SAMPLES_MAX, 2));
        assert_eq!(history.marked().map(|mark| mark.at), Some(at(980)), "ten to twenty seconds ago");
        assert_eq!(history.series(|_, _| Some(1.0)).len(), SAMPLES_MAX - 1);
    }

    #[test]
    fn percentiles_lie_where_the_buckets_say() {
        let none = Histogram::<Requests>::default();
        assert_eq!(percentile_ms(&none, &none, 0.5), None);
        let mut some = none.clone();
        for _ in 0..99 {
            some.observe_us(1_500);
        }
        some.observe_us(700_000);
        let of = |part| percentile_ms(&none, &some, part).expect("counted");
        assert!((1.0..=2.0).contains(&of(0.5)), "{}", of(0.5));
        assert!((1.0..=2.0).contains(&of(0.99)), "{}", of(0.99));
        assert!((500.0..=1000.0).contains(&of(0.999)), "{}", of(0.999));
        assert_eq!(percentile_ms(&some, &some, 0.5), None, "nothing since");
        let mut late = some.clone();
        late.observe_us(600_000_000);
        assert_eq!(percentile_ms(&some, &late, 0.5), Some(60_000.0), "past the last bound");
    }

    #[test]
    fn counters_that_fall_are_no_rate() {
        assert_eq!(per_second(5, 3, Duration::from_secs(1)), Some(0.0));
        assert_eq!(per_second(0, 3, Duration::ZERO), None);
        assert_eq!(share(Duration::ZERO, Duration::from_millis(250), Duration::from_secs(1)), Some(0.25));
    }
}

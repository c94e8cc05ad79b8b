//! Traces that stand for a bucket of a histogram: for each route and bucket of request durations the last sampled one.
//!
//! A request that is not sampled costs nothing here, and no request an allocation but a route's first that is.

use super::histogram::{BUCKETS, Histogram, Requests};
use super::slots::{MetricSlot, SLOTS_MAX};

/// One request that was counted, and its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    /// The trace's id.
    pub trace_id: [u8; 16],
    /// How long the request took, in microseconds.
    pub took_us: u64,
    /// When it ended: by the shard's clock while it is there, in milliseconds since 1970 once it is shown.
    pub at: u64,
}

/// An exemplar and what it stands for. Moves to the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The route.
    pub route: MetricSlot,
    /// The place of the bucket, from the lowest.
    pub bucket: usize,
    /// The request.
    pub exemplar: Exemplar,
}

/// The last sampled request of each route and bucket. One per shard.
#[derive(Debug, Default)]
pub struct Exemplars {
    routes: Vec<Option<Box<[Option<Exemplar>; BUCKETS]>>>,
}

impl Exemplars {
    /// A request that is sampled has ended.
    pub fn note(&mut self, route: MetricSlot, exemplar: Exemplar) {
        if route.index() >= self.routes.len() {
            self.routes.resize_with((route.index() + 1).min(SLOTS_MAX), || None);
        }
        if let Some(of_route) = self.routes.get_mut(route.index()) {
            let buckets = of_route.get_or_insert_with(|| Box::new([None; BUCKETS]));
            buckets[Histogram::<Requests>::bucket(exemplar.took_us)] = Some(exemplar);
        }
    }

    /// All that there are, by route and bucket. `unix_ms` makes of the shard's time that of the day.
    pub fn shown(&self, unix_ms: impl Fn(u64) -> u64) -> Vec<Shown> {
        let routes = self.routes.iter().enumerate();
        let routes = routes.filter_map(|(at, buckets)| Some((MetricSlot::at(at)?, buckets.as_deref()?)));
        let shown = routes.flat_map(|(route, buckets)| {
            let buckets = buckets.iter().enumerate().filter_map(|(bucket, exemplar)| Some((bucket, (*exemplar)?)));
            let shown = |exemplar: Exemplar| Exemplar { at: unix_ms(exemplar.at), ..exemplar };
            buckets
                .map(move |(bucket, exemplar)| Shown { route, bucket, exemplar: shown(exemplar) })
                .collect::<Vec<_>>()
        });
        shown.collect()
    }
}

/// The exemplars of all shards by route and bucket, where several shards have one the newest.
#[derive(Clone, Debug, Default)]
pub struct Merged(Vec<Shown>);

impl Merged {
    /// Takes those of all shards.
    pub fn of(shown: impl Iterator<Item = Shown>) -> Self {
        let mut all: Vec<_> = shown.collect();
        all.sort_by_key(|shown| (shown.route.index(), shown.bucket, std::cmp::Reverse(shown.exemplar.at)));
        all.dedup_by_key(|shown| (shown.route.index(), shown.bucket));
        Self(all)
    }

    /// The one of a bucket.
    pub fn of_bucket(&self, route: usize, bucket: usize) -> Option<&Exemplar> {
        let place = self.0.binary_search_by_key(&(route, bucket), |shown| (shown.route.index(), shown.bucket));
        place.ok().and_then(|place| self.0.get(place)).map(|shown| &shown.exemplar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::slots::{MetricSlots, OTHER};

    fn exemplar(trace: u8, took_us: u64, at: u64) -> Exemplar {
        Exemplar { trace_id: [trace; 16], took_us, at }
    }

    #[test]
    fn the_last_of_each_bucket_stays_and_the_newest_of_all_shards_is_shown() {
        let mut slots = MetricSlots::default();
        let events = slots.claim("events");
        let mut shards = [Exemplars::default(), Exemplars::default()];
        shards[0].note(events, exemplar(1, 150, 1));
        shards[0].note(events, exemplar(2, 160, 2));
        shards[0].note(events, exemplar(3, 90_000_000, 3));
        shards[0].note(OTHER, exemplar(4, 150, 9));
        shards[1].note(events, exemplar(5, 170, 1));
        shards[1].note(events, exemplar(6, 10, 7));
        let merged = Merged::of(shards.iter().flat_map(|shard| shard.shown(|at| at + 1000)));
        assert_eq!(merged.of_bucket(events.index(), 0).map(|newest| newest.at), Some(1007));
        let trace = |route: MetricSlot, bucket| merged.of_bucket(route.index(), bucket).map(|found| found.trace_id[0]);
        let of_events = [trace(events, 0), trace(events, 1), trace(events, 2), trace(events, BUCKETS - 1)];
        assert_eq!(of_events, [Some(6), Some(2), None, Some(3)]);
        assert_eq!([trace(OTHER, 0), trace(OTHER, 1)], [None, Some(4)]);
    }
}

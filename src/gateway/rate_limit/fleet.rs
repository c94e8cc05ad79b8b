//! Redis as the home of keys that all instances count together. One per process; runs on the bridge, within a `LocalSet`.
//!
//! Shards tell what they admitted; for each key at most one script is under way, and what is told meanwhile is counted
//! with the next. Whoever tells is answered, whatever becomes of it: when Redis fails, with nothing new.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    rc::Rc,
    time::Duration,
};

use super::{
    LimitPlan,
    cells::CellKey,
    counter::{Counted, Hits, Owed},
};
use crate::{
    bus::redis::{Outage, Redis, RedisFailure, Script},
    shard::{Instant, Local, clock},
    telemetry::slots::MetricSlot,
};

/// Scripts under way at once. They share one connection, so more would only wait there.
const SCRIPTS_MAX: usize = 64;

/// What shards are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FleetMessage {
    /// A key has been counted, as this shard had told.
    Counted(Counted),
    /// A key has used half of its burst.
    Owed(Owed),
    /// Redis went away, or is there.
    IsAway(bool),
}

/// Counts in Redis for all shards of this process.
#[derive(Clone)]
pub struct Fleet(Rc<FleetShared>);

struct FleetShared {
    redis: Redis,
    script: Script,
    shards: usize,
    tell: Box<dyn Fn(usize, FleetMessage)>,
    state: Local<FleetState>,
}

#[derive(Default)]
struct FleetState {
    /// By slot.
    limits: Vec<Option<LimitPlan>>,
    /// What is to be counted. A shard tells so much without an answer and no more, so this has a bound.
    waiting: HashMap<(MetricSlot, CellKey), Vec<Report>>,
    /// Keys in the order in which they came.
    queue: VecDeque<(MetricSlot, CellKey)>,
    /// Keys whose script is under way; they go to the queue when it ends.
    running: HashMap<(MetricSlot, CellKey), bool>,
}

/// What one shard has told of a key.
#[derive(Clone, Copy, Debug)]
struct Report {
    shard: usize,
    count: u16,
    /// How many times it has told.
    times: u16,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("redis", &self.0.redis).finish_non_exhaustive()
    }
}

impl Fleet {
    /// Counts for so many shards, which it reaches by `tell`.
    pub fn new(redis: Redis, shards: usize, tell: impl Fn(usize, FleetMessage) + 'static) -> Self {
        let script = Script::new(include_str!("count.lua"));
        Self(Rc::new(FleetShared { redis, script, shards, tell: Box::new(tell), state: Local::default() }))
    }

    /// These limits hold from now on.
    pub fn adopt(&self, plans: &[LimitPlan]) {
        self.0.state.with(|state| {
            state.limits.clear();
            for plan in plans {
                let index = plan.slot().index();
                if state.limits.len() <= index {
                    state.limits.resize_with(index.saturating_add(1), || None);
                }
                if let Some(place) = state.limits.get_mut(index) {
                    *place = Some(plan.clone());
                }
            }
        });
    }

    /// A shard has admitted some requests.
    pub fn take(&self, shard: usize, hits: Hits) {
        let key = (hits.limit, hits.key);
        let starts = self.0.state.with(|state| {
            let waiting = state.waiting.entry(key).or_default();
            let is_first = waiting.is_empty();
            // One answer for each shard: two with one number would have it count the second's requests twice.
            match waiting.iter_mut().find(|report| report.shard == shard) {
                Some(report) => {
                    report.count = report.count.saturating_add(hits.count);
                    report.times = report.times.saturating_add(1);
                }
                None => waiting.push(Report { shard, count: hits.count, times: 1 }),
            }
            match state.running.get_mut(&key) {
                Some(comes_again) => *comes_again = true,
                None if is_first => state.queue.push_back(key),
                None => {}
            }
            state.next()
        });
        if let Some(key) = starts {
            tokio::task::spawn_local(self.clone().run(key));
        }
    }

    /// Tells all shards when Redis goes away and when it is there, for as long as the process lives.
    pub async fn watch(self) {
        let mut redis = self.0.redis.clone();
        let mut was_up = None;
        loop {
            let status = redis.status();
            let is_up = status.is_up();
            if was_up != Some(is_up) && status.away != Some(Outage::Unknown) {
                was_up = Some(is_up);
                if is_up {
                    tracing::info!("limits of the fleet are counted in Redis");
                } else {
                    tracing::warn!("limits of the fleet are counted by this instance alone: Redis is away");
                }
                for shard in 0..self.0.shards {
                    (self.0.tell)(shard, FleetMessage::IsAway(!is_up));
                }
            }
            redis.changed().await;
        }
    }

    /// Counts this key, and then others that wait.
    async fn run(self, first: (MetricSlot, CellKey)) {
        let mut next = Some(first);
        while let Some(key) = next {
            let (limit, reports) = self.0.state.with(|state| {
                let limit = state.limits.get(key.0.index()).and_then(Option::clone);
                (limit, state.waiting.remove(&key).unwrap_or_default())
            });
            let count = reports.iter().map(|report| u32::from(report.count)).sum();
            let counted = match &limit {
                Some(limit) if !reports.is_empty() => self.count(limit, key.1, count).await.inspect_err(|failure| {
                    if !failure.is_away() {
                        tracing::error!(error = %failure, limit = &*limit.name, "Redis does not count a limit");
                    }
                }),
                // The configuration is gone that named it; or what came last was counted with what came before.
                _ => Ok(Duration::ZERO),
            };
            self.answer(limit.as_ref(), key, &reports, counted.ok());
            next = self.0.state.with(|state| {
                if state.running.remove(&key) == Some(true) {
                    state.queue.push_back(key);
                }
                state.next()
            });
        }
    }

    async fn count(&self, limit: &LimitPlan, key: CellKey, count: u32) -> Result<Duration, RedisFailure> {
        let [first, second] = key.halves();
        let name = format!("shardgate:limits:{}:{first:016x}{second:016x}", limit.name);
        let interval = limit.rate().interval().to_string();
        let owed: String = self.0.redis.run(&self.0.script, &[&name], &[&interval, &count.to_string()]).await?;
        Ok(Duration::from_nanos(owed.parse().unwrap_or(0)))
    }

    /// Answers those who told, and tells all of a key that has used half of its burst.
    fn answer(
        &self,
        limit: Option<&LimitPlan>,
        key: (MetricSlot, CellKey),
        reports: &[Report],
        owed: Option<Duration>,
    ) {
        let now = clock::now();
        let owed_until = owed.map_or(Instant::START, |owed| now + owed);
        let owed = Owed { limit: key.0, key: key.1, until: owed_until };
        for Report { shard, count, times } in reports {
            (self.0.tell)(*shard, FleetMessage::Counted(Counted { owed, count: *count, answers: *times }));
        }
        let is_half_used = |limit: &LimitPlan| limit.rate().is_half_used(owed_until.as_nanos(), now.as_nanos());
        if limit.is_some_and(is_half_used) {
            let others = (0..self.0.shards).filter(|shard| !reports.iter().any(|report| report.shard == *shard));
            for shard in others {
                (self.0.tell)(shard, FleetMessage::Owed(owed));
            }
        }
    }
}

impl FleetState {
    /// The next key to count, if there is room for one more script.
    fn next(&mut self) -> Option<(MetricSlot, CellKey)> {
        if self.running.len() >= SCRIPTS_MAX {
            return None;
        }
        let key = self.queue.pop_front()?;
        self.running.insert(key, false);
        Some(key)
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]
#[path = "fleet_tests.rs"]
mod tests;

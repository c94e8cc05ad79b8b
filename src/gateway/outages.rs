//! What upstreams notice of their instances and circuits, told: to the log, a line for each change, and to the other shards,
//! which need less to do the same.

use std::{collections::BTreeMap, fmt::Write as _, rc::Rc, time::Duration};

use super::Gateway;
use crate::{
    shard::{Instant, Local, clock},
    upstream::{BackendAddress, Cause, Notice, NoticeBell},
};

/// Of one instance or circuit the log is told at most once in so long.
const SAID_EVERY: Duration = Duration::from_secs(1);
/// So many instances and circuits are remembered of which the log was told.
const LINES_MAX: usize = 2048;

/// What one shard has done, for the others. Moves between shards.
#[derive(Clone, Debug)]
pub struct Suspect {
    /// Of the plan that the upstream's place is of. A shard that runs another one leaves it.
    pub generation: u64,
    /// The upstream's place in the plan.
    pub upstream: usize,
    /// The instance that was ejected; `None` if the circuit has opened.
    pub instance: Option<(BackendAddress, Cause)>,
}

/// What is told of upstreams. One per shard.
#[derive(Debug, Default)]
pub(super) struct Outages {
    pub(super) bell: Rc<NoticeBell>,
    /// By upstream and instance.
    lines: Local<BTreeMap<String, Line>>,
}

/// What the log was told of one instance or circuit.
#[derive(Debug)]
struct Line {
    said_at: Instant,
    /// What came since.
    waiting: Option<Notice>,
    /// Changes that were left out before that.
    left_out: u32,
}

impl Line {
    /// What came since, when its time has come.
    fn late(&mut self, now: Instant) -> Option<(Notice, u32)> {
        if now.since(self.said_at) < SAID_EVERY {
            return None;
        }
        let notice = self.waiting.take()?;
        self.said_at = now;
        Some((notice, std::mem::take(&mut self.left_out)))
    }
}

impl Gateway {
    /// Waits until an upstream has noticed something; tells the log, and returns what the other shards are to be told.
    /// Dropping it loses nothing.
    pub async fn noticed(&self) -> Vec<Suspect> {
        self.outages.bell.rung().await;
        let live = self.live();
        let mut suspects = Vec::new();
        for (place, (plan, upstream)) in live.plan.upstreams.iter().zip(&live.upstreams).enumerate() {
            for notice in upstream.take_notices() {
                let instance = match &notice {
                    // What was ejected on another shard's word is known there.
                    Notice::Ejected { at, cause, was_suspected: false, .. } => Some(Some((at.clone(), *cause))),
                    Notice::Opened => Some(None),
                    _ => None,
                };
                let generation = live.plan.generation;
                suspects.extend(instance.map(|instance| Suspect { generation, upstream: place, instance }));
                self.say_once(&plan.name, notice, clock::now());
            }
        }
        suspects
    }

    /// Another shard has ejected an instance, or opened its circuit.
    pub fn suspect(&self, suspect: &Suspect) {
        let live = self.live();
        if live.plan.generation == suspect.generation
            && let Some(upstream) = live.upstreams.get(suspect.upstream)
        {
            let instance = suspect.instance.as_ref().map(|(at, cause)| (at, *cause));
            upstream.suspect(instance, clock::now());
        }
    }

    /// Counts what circuits did since this was asked last.
    pub fn count_circuits(&self) {
        let live = self.live();
        for (plan, upstream) in live.plan.upstreams.iter().zip(&live.upstreams) {
            let counts = upstream.take_circuit_counts();
            self.ledger.with(|ledger| {
                let counters = ledger.counters.upstream(plan.slot);
                counters.circuit_refused += u64::from(counts.refused);
                for (sum, count) in counters.circuit_changes.iter_mut().zip(counts.changes) {
                    *sum += u64::from(count);
                }
            });
        }
    }

    fn say_once(&self, upstream: &str, notice: Notice, now: Instant) {
        let mut key = upstream.to_owned();
        if let Notice::Ejected { at, .. } | Notice::Returned { at } = &notice {
            let _ = write!(key, " {} {}", at.authority, at.address);
        }
        let due = self.outages.lines.with(|lines| {
            if lines.len() >= LINES_MAX {
                lines.retain(|_, line| line.waiting.is_some() || now.since(line.said_at) < SAID_EVERY);
            }
            let Some(line) = lines.get_mut(&key) else {
                if lines.len() < LINES_MAX {
                    lines.insert(key, Line { said_at: now, waiting: None, left_out: 0 });
                }
                return Some((notice, 0));
            };
            line.left_out += u32::from(line.waiting.replace(notice).is_some());
            line.late(now)
        });
        if let Some((notice, left_out)) = due {
            self.say(upstream, &notice, left_out);
        }
    }

    /// Says what came too soon after the line before.
    pub(super) fn say_late(&self, now: Instant) {
        let due: Vec<_> = self.outages.lines.with(|lines| {
            lines.retain(|_, line| line.waiting.is_some() || now.since(line.said_at) < SAID_EVERY);
            lines.iter_mut().filter_map(|(key, line)| line.late(now).map(|late| (key.clone(), late))).collect()
        });
        for (key, (notice, left_out)) in due {
            let upstream = key.split(' ').next().unwrap_or_default();
            self.say(upstream, &notice, left_out);
        }
    }

    fn say(&self, upstream: &str, notice: &Notice, left_out: u32) {
        let shard = self.ledger.with(|ledger| ledger.shard);
        let left_out = (left_out > 0).then_some(left_out);
        match notice {
            Notice::Ejected { at, cause, error, lasts, .. } => tracing::warn!(
                upstream,
                instance = &*at.authority,
                address = %at.address,
                shard,
                error,
                cause = cause.word(),
                out_s = lasts.as_secs_f64(),
                left_out,
                "an instance is left out: requests to it fail"
            ),
            Notice::Returned { at } => tracing::info!(
                upstream,
                instance = &*at.authority,
                address = %at.address,
                shard,
                left_out,
                "an instance is used again: it answers"
            ),
            Notice::Opened => {
                tracing::warn!(upstream, shard, left_out, "the circuit is open: most requests fail, and none are sent");
            }
            Notice::Closed { after } => {
                let after_s = after.as_secs_f64();
                tracing::info!(upstream, shard, after_s, left_out, "the circuit is closed again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flapping_circuit_is_told_once_a_second_with_a_count() {
        let at = |ms| Instant::START + Duration::from_millis(ms);
        let mut line = Line { said_at: at(0), waiting: None, left_out: 0 };
        assert_eq!(line.late(at(5000)), None, "nothing came");
        line.said_at = at(5000);
        for ms in 5001..5010 {
            line.left_out += u32::from(line.waiting.replace(Notice::Opened).is_some());
            assert_eq!(line.late(at(ms)), None);
        }
        assert_eq!(line.late(at(6000)), Some((Notice::Opened, 8)));
        assert_eq!(line.late(at(8000)), None);
    }
}

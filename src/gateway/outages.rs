//! What upstreams notice of their instances and circuits, told: to the log, a line for each change, and to the other shards,
//! which need less to do the same.

use std::{collections::BTreeMap, fmt::Write as _, rc::Rc};

use super::Gateway;
use crate::{
    shard::{Instant, Local, clock, complaints::Complaints},
    upstream::{BackendAddress, Cause, Notice, NoticeBell},
};

/// So many lines a second are about instances, and as many about circuits: where a network is away, all of them fail at once.
const LINES_A_SECOND: u32 = 20;
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
    said: Local<Said>,
}

/// What the log was told: of each instance and circuit at most once a second, and then how it stands now.
#[derive(Debug)]
struct Said {
    /// By upstream and instance.
    of: BTreeMap<String, SaidOfOne>,
    of_all: SaidOfAll,
    /// Whose waiting line was said last: the next one's is next, so that nobody who flaps keeps others waiting.
    last: String,
}

/// How much it was told. Circuits are fewer and say more: what instances have to say takes no line from them.
#[derive(Debug)]
struct SaidOfAll {
    instances: Complaints,
    circuits: Complaints,
}

#[derive(Debug, Default)]
struct SaidOfOne {
    complaints: Complaints,
    /// What came last, if the log was not told of it.
    waiting: Option<Notice>,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    notice: Notice,
    /// Changes of the same instance or circuit of which the log was not told.
    left_out: u64,
    /// Changes of others, which came when there were too many, and of which nothing was remembered.
    others_left_out: u64,
}

impl Default for Said {
    fn default() -> Self {
        let [instances, circuits] = [Complaints::singly(LINES_A_SECOND); 2];
        Self { of: BTreeMap::new(), of_all: SaidOfAll { instances, circuits }, last: String::new() }
    }
}

impl SaidOfAll {
    fn of(&mut self, notice: &Notice) -> &mut Complaints {
        match notice {
            Notice::Ejected { .. } | Notice::Returned { .. } => &mut self.instances,
            Notice::Opened | Notice::Closed { .. } => &mut self.circuits,
        }
    }

    fn line(&mut self, notice: Notice, left_out: u64, now: Instant) -> Option<Line> {
        let all = self.of(&notice).add(now, 1)?;
        Some(Line { notice, left_out, others_left_out: all - 1 })
    }
}

impl Said {
    /// Something has changed; what is to be said now.
    fn note(&mut self, key: &str, notice: Notice, now: Instant) -> Option<Line> {
        if self.of.len() >= LINES_MAX {
            self.forget(now);
        }
        if !self.of.contains_key(key) && self.of.len() < LINES_MAX {
            self.of.insert(key.to_owned(), SaidOfOne::default());
        }
        let mut left_out = 0;
        if let Some(one) = self.of.get_mut(key) {
            if !self.of_all.of(&notice).has_room(now) {
                one.complaints.leave(1);
                one.waiting = Some(notice);
                return None;
            }
            let Some(count) = one.complaints.add(now, 1) else {
                one.waiting = Some(notice);
                return None;
            };
            (one.waiting, left_out) = (None, count - 1);
        }
        self.of_all.line(notice, left_out, now)
    }

    /// What came too soon after the line before, or when there were too many, and has waited for long enough.
    fn late(&mut self, now: Instant) -> Vec<(String, Line)> {
        self.forget(now);
        let Self { of, of_all, last } = self;
        let mut waiting: Vec<_> =
            of.iter().filter(|(_, one)| one.waiting.is_some()).map(|(key, _)| key.clone()).collect();
        let next = waiting.partition_point(|key| key <= last);
        waiting.rotate_left(next);
        let late = waiting.into_iter().filter_map(|key| {
            let one = of.get_mut(&key)?;
            one.waiting.as_ref().filter(|notice| of_all.of(notice).has_room(now))?;
            let count = one.complaints.add(now, 0)?;
            let line = of_all.line(one.waiting.take()?, count - 1, now)?;
            last.clone_from(&key);
            Some((key, line))
        });
        late.collect()
    }

    fn forget(&mut self, now: Instant) {
        self.of.retain(|_, one| one.waiting.is_some() || !one.complaints.is_over(now));
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

    /// Counts what circuits did since this was asked last, and who was left out behind its request.
    pub fn count_circuits(&self) {
        let live = self.live();
        for (plan, upstream) in live.plan.upstreams.iter().zip(&live.upstreams) {
            let counts = upstream.take_circuit_counts();
            self.ledger.with(|ledger| {
                let counters = ledger.counters.upstream(plan.slot);
                counters.ejections += u64::from(upstream.take_late_ejections());
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
            let _ = write!(key, " {} {}", at.name, at.address);
        }
        if let Some(line) = self.outages.said.with(|said| said.note(&key, notice, now)) {
            self.say(upstream, &line);
        }
    }

    /// Says what came too soon after the line before.
    pub(super) fn say_late(&self, now: Instant) {
        for (key, line) in self.outages.said.with(|said| said.late(now)) {
            let upstream = key.split(' ').next().unwrap_or_default();
            self.say(upstream, &line);
        }
    }

    fn say(&self, upstream: &str, line: &Line) {
        let shard = self.ledger.with(|ledger| ledger.shard);
        let [left_out, others_left_out] =
            [line.left_out, line.others_left_out].map(|count| (count > 0).then_some(count));
        match &line.notice {
            Notice::Ejected { at, cause, error, lasts, .. } => tracing::warn!(
                upstream,
                instance = &*at.name,
                address = %at.address,
                shard,
                error,
                cause = cause.word(),
                out_s = lasts.as_secs_f64(),
                left_out,
                others_left_out,
                "an instance is left out: requests to it fail"
            ),
            Notice::Returned { at } => tracing::info!(
                upstream,
                instance = &*at.name,
                address = %at.address,
                shard,
                left_out,
                others_left_out,
                "an instance is used again: it answers"
            ),
            Notice::Opened => tracing::warn!(
                upstream,
                shard,
                left_out,
                others_left_out,
                "the circuit is open: most requests fail, and none are sent"
            ),
            Notice::Closed { open } => {
                let open_s = open.as_secs_f64();
                tracing::info!(upstream, shard, open_s, left_out, others_left_out, "the circuit is closed again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::START + Duration::from_millis(ms)
    }

    fn opened(left_out: u64, others_left_out: u64) -> Line {
        Line { notice: Notice::Opened, left_out, others_left_out }
    }

    #[test]
    fn a_flapping_circuit_is_told_once_a_second_with_a_count() {
        let mut said = Said::default();
        assert_eq!(said.note("a", Notice::Opened, at(0)), Some(opened(0, 0)));
        for ms in 1..10 {
            assert_eq!(said.note("a", Notice::Opened, at(ms)), None);
        }
        assert!(said.late(at(999)).is_empty());
        // How it stands now is said though nothing changes any more.
        assert_eq!(said.late(at(1000)), [("a".to_owned(), opened(8, 0))]);
        assert!(said.late(at(3000)).is_empty());
        assert!(said.of.is_empty(), "and then it is forgotten");
    }

    #[test]
    fn where_all_fail_at_once_some_are_told_and_the_others_counted() {
        let (mut said, most) = (Said::default(), u64::from(LINES_A_SECOND));
        let address = std::net::SocketAddr::from(([10, 0, 0, 1], 80));
        let back =
            Notice::Returned { at: BackendAddress { name: address.to_string().into(), address: address.into() } };
        let change = |said: &mut Said, ms| -> Vec<Line> {
            (0..3000).filter_map(|n| said.note(&n.to_string(), back.clone(), at(ms))).collect()
        };
        assert_eq!(change(&mut said, 0).len() as u64, most);
        assert_eq!(said.of.len(), LINES_MAX);
        assert_eq!(said.note("a", Notice::Opened, at(1)), Some(opened(0, 0)), "circuits have lines of their own");
        // How those stand now of which something is remembered is said when there is room, each once.
        let mut waited = std::collections::BTreeSet::new();
        let mut seconds = 0;
        while waited.len() < LINES_MAX - LINES_A_SECOND as usize {
            seconds += 1;
            let lines = said.late(at(seconds * 1000));
            assert!(lines.len() as u64 <= most && seconds < 110, "{} of {seconds} s", waited.len());
            let uncounted = if seconds == 1 { 3000 - LINES_MAX as u64 } else { 0 };
            assert_eq!(lines[0].1, Line { notice: back.clone(), left_out: 0, others_left_out: uncounted });
            waited.extend(lines.into_iter().map(|(key, _)| key));
        }
        assert!(said.late(at((seconds + 1) * 1000)).is_empty() && said.of.is_empty());
    }

    #[test]
    fn who_flaps_keeps_nobody_from_saying_how_it_stands() {
        let mut said = Said::default();
        let few = 2 * LINES_A_SECOND as usize;
        let mut told = std::collections::BTreeSet::new();
        for second in 0..8 {
            told.extend(said.late(at(second * 1000)).into_iter().map(|(key, _)| key));
            // The first half again and again; the others once.
            for n in 0..if second == 0 { 2 * few } else { few } {
                told.extend(
                    said.note(&format!("{n:03}"), Notice::Opened, at(second * 1000)).map(|_| format!("{n:03}")),
                );
            }
        }
        assert_eq!(told.len(), 2 * few);
    }
}

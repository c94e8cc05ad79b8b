//! Which backends are left out for a while, because they failed in a row or far more often than others. A pure core: time is
//! an argument.
//!
//! Each shard judges by what it saw itself. What another one has ejected is suspected here: less is enough then. When its
//! time is over, a backend is on trial: it gets one request, whose end decides.

use std::{cmp::Ordering, time::Duration};

use super::window::{FailureShare, Tally, Window};
use crate::{config::FailureStatuses, shard::Instant};

/// A backend's ejections do not last longer than this, unless the first one does.
const EJECTION_MAX: Duration = Duration::from_mins(5);
/// So many failures in a row speak of a backend as failing where none is ejected for any number of them.
const FAILURES_WITHOUT_EJECTION: u32 = 5;
/// How long a backend is suspected that another shard has ejected.
const SUSPECTED: Duration = Duration::from_secs(10);
/// How often one that fails too often is compared with the others.
const COMPARED_EVERY: Duration = Duration::from_millis(100);

/// When a backend is left out. From the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Failures in a row; 0 turns ejection off.
    pub failures: u32,
    /// The share of failures at which it is compared with the others.
    pub share: FailureShare,
    /// Answers that count as failures in that share.
    pub statuses: FailureStatuses,
    /// How long the first ejection lasts; the n-th lasts n times as long.
    pub ejection: Duration,
    /// Share of an upstream's backends that may be out at once.
    pub percent_max: u32,
}

/// Why a backend is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It failed to answer, several times in a row.
    InARow,
    /// It failed far more often than others.
    Share,
}

impl Cause {
    /// For the log.
    pub const fn word(self) -> &'static str {
        match self {
            Self::InARow => "failures in a row",
            Self::Share => "share of failures",
        }
    }
}

/// How an attempt at a backend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// There was no answer.
    NoAnswer,
    /// There was one, with a status that counts as a failure.
    Status,
}

/// One per backend and shard.
#[derive(Debug, Default)]
pub(super) struct Outlier {
    in_a_row: u32,
    /// Whether a probe has gone well since the last of these failures.
    has_answered_probe: bool,
    window: Window,
    /// Answers that broke off with no whole one between them, and how many were whole until the last of them.
    broken_in_a_row: u32,
    whole_before: u64,
    /// How many ejections the next one comes on top of.
    ejections: u32,
    out: Option<Ejection>,
    /// Which trial it is, so that the end of an old one is not taken for that of a new one.
    trials: u32,
    /// Whether the trial's request is under way.
    is_tried: bool,
    /// When it was let in again.
    back_at: Option<Instant>,
    suspected: Option<(Cause, Instant)>,
    compared_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    until: Instant,
    cause: Cause,
}

/// A trial's request. Whoever has it says when it has ended, whatever came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trial(u32);

impl Outlier {
    /// Whether it is left out now.
    pub(super) fn is_out(&self, now: Instant) -> bool {
        self.out.is_some_and(|out| now < out.until)
    }

    /// Why it is left out, if it is now.
    pub(super) fn out_for(&self, now: Instant) -> Option<Cause> {
        self.out.filter(|out| now < out.until).map(|out| out.cause)
    }

    /// Until when it is left out, if it is now.
    pub(super) fn out_until(&self, now: Instant) -> Option<Instant> {
        self.out.map(|out| out.until).filter(|until| now < *until)
    }

    /// Since when it is back, if it was left out and is no more.
    pub(super) fn back_since(&self) -> Option<Instant> {
        self.out.map(|out| out.until).or(self.back_at)
    }

    /// Whether it is left out, or on trial.
    pub(super) fn is_ejected(&self) -> bool {
        self.out.is_some()
    }

    /// Whether it is back, and has not answered yet.
    pub(super) fn is_on_trial(&self, now: Instant) -> bool {
        self.out.is_some_and(|out| now >= out.until)
    }

    /// Whether it may get a request: not a second one while it is on trial.
    pub(super) fn takes(&self, now: Instant) -> bool {
        !self.is_tried || !self.is_on_trial(now)
    }

    /// A request goes to it; says whether it is a trial's.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Trial> {
        if !self.is_on_trial(now) || self.is_tried {
            return None;
        }
        self.is_tried = true;
        Some(Trial(self.trials))
    }

    /// The request of a trial has ended.
    pub(super) fn end(&mut self, trial: Trial) {
        if trial.0 == self.trials {
            self.is_tried = false;
        }
    }

    /// Whether this is the trial that it is on.
    #[cfg(test)]
    pub(super) fn is_of(&self, trial: Trial) -> bool {
        self.is_tried && trial.0 == self.trials
    }

    /// Whether it has failed so often in a row that only the share of others that are out keeps it in; or that nobody is left
    /// out for it. Not once a probe has gone well since.
    pub(super) fn is_failing(&self, policy: &OutlierPolicy) -> bool {
        let failures = if policy.failures == 0 { FAILURES_WITHOUT_EJECTION } else { policy.failures };
        self.in_a_row >= failures && !self.has_answered_probe
    }

    /// An answer came that is no failure; says whether it was left out, or on trial, until then.
    #[inline]
    pub(super) fn succeeded(&mut self, now: Instant, policy: &OutlierPolicy) -> bool {
        self.in_a_row = 0;
        let Some(out) = self.out else {
            self.window.count(now, policy.share.window, false);
            if self.suspected.is_some_and(|(cause, _)| cause == Cause::InARow) {
                self.suspected = None;
            }
            return false;
        };
        // Of one that fails now and then, what was under way before says nothing.
        if now < out.until && out.cause == Cause::Share {
            return false;
        }
        self.let_in(out.until.min(now));
        if out.cause == Cause::Share {
            self.suspected = Some((Cause::Share, now + policy.ejection));
        }
        true
    }

    /// A probe has gone well: an instance in use that nobody asks is not failing for ever. What speaks for leaving it out stays
    /// as it is: one whose probes go well while requests to it fail is left out with its next failure, once the others allow it.
    pub(super) fn answers_probes(&mut self) {
        self.has_answered_probe = true;
    }

    /// It is known to be well by other means.
    pub(super) fn readmit(&mut self, now: Instant) {
        self.in_a_row = 0;
        self.suspected = None;
        if self.out.is_some() {
            self.let_in(now);
        }
    }

    fn let_in(&mut self, at: Instant) {
        (self.out, self.back_at, self.is_tried) = (None, Some(at), false);
    }

    /// Another shard has ejected it.
    pub(super) fn suspect(&mut self, now: Instant, cause: Cause) {
        if self.out.is_none() {
            self.suspected = Some((cause, now + SUSPECTED));
        }
    }

    /// It failed; says what speaks for leaving it out from now on, if anything does.
    pub(super) fn failed(&mut self, now: Instant, policy: &OutlierPolicy, fault: Fault) -> Option<Cause> {
        self.has_answered_probe = false;
        self.in_a_row = if fault == Fault::NoAnswer { self.in_a_row.saturating_add(1) } else { 0 };
        if policy.failures == 0 {
            return None;
        }
        if let Some(out) = self.out {
            // On trial: once is enough.
            return Some(out.cause).filter(|_| now >= out.until);
        }
        self.window.count(now, policy.share.window, true);
        self.judge(now, policy)
    }

    /// An answer broke off whose head was counted as one that came; says what speaks for leaving it out from now on. So far so
    /// many were `whole`: the head of the next answer ends a row of these as little as its own did.
    pub(super) fn broke_off(
        &mut self,
        now: Instant,
        policy: &OutlierPolicy,
        was_trial: bool,
        whole: u64,
    ) -> Option<Cause> {
        self.has_answered_probe = false;
        self.broken_in_a_row = if whole == self.whole_before { self.broken_in_a_row.saturating_add(1) } else { 1 };
        self.whole_before = whole;
        self.in_a_row = self.in_a_row.saturating_add(1).max(self.broken_in_a_row);
        if policy.failures == 0 {
            return None;
        }
        if let Some(out) = self.out {
            return Some(out.cause).filter(|_| now >= out.until);
        }
        // Its head let it in.
        if was_trial {
            return Some(Cause::InARow);
        }
        self.window.recount(now, policy.share.window);
        self.judge(now, policy)
    }

    /// What speaks for leaving it out, now that it has failed once more.
    fn judge(&mut self, now: Instant, policy: &OutlierPolicy) -> Option<Cause> {
        let row = if self.suspect_of(now) == Some(Cause::InARow) { 1 } else { policy.failures };
        if self.in_a_row >= row {
            return Some(Cause::InARow);
        }
        let share = self.share(now, policy);
        let is_due = self.compared_at.is_none_or(|at| now.since(at) >= COMPARED_EVERY);
        if !is_due || !share.is_reached(self.window.tally(now, &share)) {
            return None;
        }
        self.compared_at = Some(now);
        Some(Cause::Share)
    }

    /// What it did of late.
    pub(super) fn tally(&mut self, now: Instant, policy: &OutlierPolicy) -> Tally {
        self.window.tally(now, &policy.share)
    }

    /// Whether less than otherwise is enough.
    pub(super) fn is_suspected(&self, now: Instant) -> bool {
        self.suspect_of(now).is_some()
    }

    fn suspect_of(&self, now: Instant) -> Option<Cause> {
        self.suspected.filter(|(_, until)| now < *until).map(|(cause, _)| cause)
    }

    /// The share by which it is judged.
    pub(super) fn share(&self, now: Instant, policy: &OutlierPolicy) -> FailureShare {
        if self.suspect_of(now) == Some(Cause::Share) { policy.share.quick() } else { policy.share }
    }

    /// Leaves it out; says how long. It is the longer the more often it was, and shorter again the longer it was in since.
    pub(super) fn eject(&mut self, now: Instant, policy: &OutlierPolicy, cause: Cause) -> Duration {
        let first = policy.ejection.max(Duration::from_millis(1));
        let longest = EJECTION_MAX.max(first);
        let times = |time: Duration| u32::try_from(time.as_millis() / first.as_millis()).unwrap_or(u32::MAX);
        let was_well = match self.out {
            Some(_) => Duration::ZERO,
            None => now.since(self.back_at.unwrap_or(Instant::START)),
        };
        self.ejections = self.ejections.saturating_sub(times(was_well)).min(times(longest)) + 1;
        let lasts = first.saturating_mul(self.ejections).min(longest);
        self.trials = self.trials.wrapping_add(1);
        (self.in_a_row, self.window, self.is_tried, self.suspected) = (0, Window::default(), false, None);
        self.broken_in_a_row = 0;
        self.out = Some(Ejection { until: now + lasts, cause });
        lasts
    }

    /// Windows of another length count something else.
    pub(super) fn forget_window(&mut self) {
        self.window = Window::default();
    }
}

/// How the backends of an upstream stand when another one of them is to be left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Others {
    /// All of the upstream, itself included.
    pub(super) count: usize,
    /// Those others that are ejected, or on trial.
    pub(super) out: usize,
    /// Those others that could take its requests.
    pub(super) usable: usize,
}

/// Whether one more may be left out: not more than the share that may be, and not the last one that is in, unless all may.
pub(super) fn may_eject(policy: &OutlierPolicy, others: Others) -> bool {
    let Others { count, out, usable } = others;
    (out + 1) * 100 <= count * policy.percent_max as usize && (usable > 0 || policy.percent_max >= 100)
}

/// Whether one fails at least twice as often as the better half of the others of which enough is known. Where all fail
/// alike, it is no fault of the one, and leaving it out helps nobody.
pub(super) fn stands_out(share: &FailureShare, own: Tally, mut others: Vec<Tally>) -> bool {
    others.retain(|other| other.all >= share.quick().requests_min);
    others.sort_unstable_by(|one, other| by_share(*one, *other));
    let better = (others.len() / 2).max(1).min(others.len());
    if better == 0 {
        return false;
    }
    // As if some more of them had failed: who is better by chance, in a few requests, is not better.
    let chance = u64::from(share.requests_min.div_ceil(4));
    let (all, failed) = others[..better]
        .iter()
        .fold((chance, chance), |(all, failed), other| (all + u64::from(other.all), failed + u64::from(other.failed)));
    u64::from(own.failed) * all >= 2 * failed * u64::from(own.all)
}

fn by_share(one: Tally, other: Tally) -> Ordering {
    let cross = |failed: u32, all: u32| u64::from(failed) * u64::from(all);
    cross(one.failed, other.all).cmp(&cross(other.failed, one.all))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: OutlierPolicy = OutlierPolicy {
        failures: 5,
        share: FailureShare { percent: 40, requests_min: 20, window: Duration::from_secs(10) },
        statuses: FailureStatuses::NONE,
        ejection: Duration::from_secs(30),
        percent_max: 50,
    };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Fails so often, and is ejected when anything speaks for it; says whether it was.
    fn fail(outlier: &mut Outlier, now: Instant, times: u32) -> bool {
        (0..times).any(|_| {
            let cause = outlier.failed(now, &POLICY, Fault::NoAnswer);
            cause.map(|cause| outlier.eject(now, &POLICY, cause)).is_some()
        })
    }

    #[test]
    fn five_failures_in_a_row_eject_for_thirty_seconds() {
        let mut outlier = Outlier::default();
        let now = Instant::START;
        assert!(!fail(&mut outlier, now, 4));
        outlier.succeeded(now, &POLICY);
        assert!(!fail(&mut outlier, now, 4), "a success starts the count anew");
        assert!(fail(&mut outlier, now, 1));
        assert!(outlier.is_out(now + s(29)));
        assert!(!outlier.is_out(now + s(30)));
    }

    #[test]
    fn answers_that_break_off_make_a_row_that_only_a_whole_one_ends() {
        let now = Instant::START;
        // Each begins with a head that is well.
        let break_off = |outlier: &mut Outlier, whole| {
            outlier.succeeded(now, &POLICY);
            outlier.broke_off(now, &POLICY, false, whole)
        };
        let mut outlier = Outlier::default();
        let causes = [3, 3, 3, 3, 3].map(|whole| break_off(&mut outlier, whole));
        assert_eq!(causes, [None, None, None, None, Some(Cause::InARow)]);
        let mut outlier = Outlier::default();
        assert!([3, 3, 3, 3, 4, 4, 4, 4].map(|whole| break_off(&mut outlier, whole)).iter().all(Option::is_none));
        // Who does not answer at all goes on with it.
        assert_eq!(outlier.failed(now, &POLICY, Fault::NoAnswer), Some(Cause::InARow));
        // Half of all, between whole ones, are too many of them.
        let mut outlier = Outlier::default();
        let cause = (0..40).find_map(|whole| {
            outlier.succeeded(now, &POLICY);
            break_off(&mut outlier, whole)
        });
        assert_eq!((cause, outlier.tally(now, &POLICY).all), (Some(Cause::Share), 20));
    }

    #[test]
    fn of_a_trial_the_end_of_its_answer_decides() {
        let mut outlier = Outlier::default();
        assert!(fail(&mut outlier, Instant::START, 5));
        let now = Instant::START + s(30);
        let trial = outlier.begin(now).expect("it is on trial");
        assert!(outlier.succeeded(now, &POLICY), "its head lets it in");
        let cause = outlier.broke_off(now, &POLICY, true, 0).expect("it is out again");
        assert_eq!(outlier.eject(now, &POLICY, cause), s(60));
        outlier.end(trial);
        assert!(outlier.begin(now + s(60)).is_some());
    }

    #[test]
    fn each_ejection_lasts_longer_up_to_a_bound_and_shorter_again_in_time() {
        let mut outlier = Outlier::default();
        let mut now = Instant::START;
        let mut lasted = Vec::new();
        for _ in 0..12 {
            assert!(fail(&mut outlier, now, 5));
            lasted.push(outlier.out_until(now).expect("it is out").since(now).as_secs());
            now = outlier.out_until(now).expect("it is out");
        }
        assert_eq!(lasted, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
        // It comes back, and is well for so long before it fails again.
        for (well_s, expected_s) in [(0, 300), (30, 300), (60, 300), (150, 180), (299, 30)] {
            now = outlier.out_until(now).unwrap_or(now);
            assert!(outlier.succeeded(now, &POLICY));
            now += s(well_s);
            assert!(fail(&mut outlier, now, 5));
            let lasts = outlier.out_until(now).expect("it is out").since(now);
            assert_eq!(lasts.as_secs(), expected_s, "well for {well_s} s");
        }
    }

    #[test]
    fn on_trial_one_request_decides() {
        let mut outlier = Outlier::default();
        let mut now = Instant::START;
        assert!(outlier.begin(now).is_none() && outlier.takes(now), "nobody is on trial");
        assert!(fail(&mut outlier, now, 5));
        now += s(30);
        assert!(outlier.takes(now));
        let first = outlier.begin(now).expect("it is on trial");
        assert!(!outlier.takes(now) && outlier.begin(now).is_none(), "one at a time");
        outlier.end(first);
        assert!(outlier.takes(now), "a client that left says nothing of it");
        let second = outlier.begin(now).expect("it is on trial still");
        assert!(fail(&mut outlier, now, 1), "one failure is enough");
        assert_eq!(outlier.out_until(now), Some(now + s(60)));
        now += s(60);
        let third = outlier.begin(now).expect("it is on trial again");
        outlier.end(second);
        assert!(!outlier.takes(now), "the end of the trial before is not that of this one");
        assert!(outlier.succeeded(now, &POLICY) && outlier.takes(now));
        outlier.end(third);
        assert!(!fail(&mut outlier, now, 4), "it is in again");
    }

    /// Every other request fails, with a status.
    fn fail_by_half(outlier: &mut Outlier, now: Instant, requests: u32) -> Option<u32> {
        (1..=requests).find(|number| {
            if number % 2 == 0 {
                outlier.succeeded(now, &POLICY);
                return false;
            }
            outlier.failed(now, &POLICY, Fault::Status) == Some(Cause::Share)
        })
    }

    #[test]
    fn one_that_fails_by_half_is_told_from_few_requests_only_when_it_is_suspected() {
        let mut outlier = Outlier::default();
        let mut now = Instant::START + s(1);
        assert_eq!(fail_by_half(&mut outlier, now, 100), Some(21));
        outlier.eject(now, &POLICY, Cause::Share);
        assert!(!outlier.succeeded(now, &POLICY) && outlier.is_out(now), "what was under way says nothing");
        now += s(30);
        assert!(outlier.succeeded(now, &POLICY), "its trial went well");
        now += s(1);
        assert_eq!(fail_by_half(&mut outlier, now, 100), Some(5), "it is suspected for a while");

        let mut told = Outlier::default();
        told.suspect(now, Cause::Share);
        assert_eq!(fail_by_half(&mut told, now, 100), Some(5));
        let mut told_long_ago = Outlier::default();
        told_long_ago.suspect(now, Cause::Share);
        assert_eq!(fail_by_half(&mut told_long_ago, now + SUSPECTED, 100), Some(21));
    }

    #[test]
    fn who_is_suspected_of_failing_in_a_row_goes_at_the_first_one_unless_it_answered_since() {
        let now = Instant::START;
        let mut outlier = Outlier::default();
        outlier.suspect(now, Cause::InARow);
        assert!(fail(&mut outlier, now, 1));
        let mut outlier = Outlier::default();
        outlier.suspect(now, Cause::InARow);
        outlier.succeeded(now, &POLICY);
        assert!(!fail(&mut outlier, now, 4));
    }

    #[test]
    fn at_most_half_are_out_and_never_the_last_one_that_is_in() {
        let may = |count, out, usable| may_eject(&POLICY, Others { count, out, usable });
        assert!(!may(1, 0, 0));
        assert!(may(2, 0, 1));
        assert!(!may(2, 1, 0));
        assert!(may(5, 1, 3));
        assert!(!may(5, 2, 2));
        assert!(!may(4, 0, 0), "probes have taken the others out");
        let all = OutlierPolicy { percent_max: 100, ..POLICY };
        assert!(may_eject(&all, Others { count: 1, out: 0, usable: 0 }), "who wants that has it");
    }

    #[test]
    fn who_fails_as_all_do_does_not_stand_out() {
        let stands_out = |own: u32, others: &[u32]| {
            let tally = |failed: &u32| Tally { all: 100, failed: *failed };
            stands_out(&POLICY.share, tally(&own), others.iter().map(tally).collect())
        };
        assert!(stands_out(50, &[0]));
        assert!(stands_out(50, &[0, 50]), "one of two that fail is taken first");
        assert!(stands_out(100, &[100, 100, 0]), "even three of four");
        assert!(!stands_out(50, &[50]) && !stands_out(50, &[40, 60, 50]) && !stands_out(100, &[100, 100]));
        assert!(!stands_out(50, &[]), "nothing says that another one would do better");
        let few = vec![Tally { all: 8, failed: 0 }];
        assert!(!super::stands_out(&POLICY.share, Tally { all: 100, failed: 50 }, few));
    }

    proptest! {
        /// Whatever happens: an ejection ends, a trial is never held by nobody, and times stay within their bounds.
        #[test]
        fn no_state_lasts_for_ever(events in proptest::collection::vec((0_u8..6, 0_u64..40_000), 1..200)) {
            let (mut outlier, mut now) = (Outlier::default(), Instant::START);
            let mut under_way = Vec::new();
            for (event, pause_ms) in events {
                now += Duration::from_millis(pause_ms);
                match event {
                    0 => drop(outlier.succeeded(now, &POLICY)),
                    1 | 2 => {
                        let fault = if event == 1 { Fault::NoAnswer } else { Fault::Status };
                        if let Some(cause) = outlier.failed(now, &POLICY, fault) {
                            prop_assert!(!outlier.is_out(now), "what is out is not ejected again");
                            let lasts = outlier.eject(now, &POLICY, cause);
                            prop_assert!((POLICY.ejection..=EJECTION_MAX).contains(&lasts));
                        }
                    }
                    3 => under_way.extend(outlier.begin(now)),
                    4 => outlier.suspect(now, Cause::InARow),
                    _ => under_way.drain(..).for_each(|trial| outlier.end(trial)),
                }
                let live = under_way.iter().filter(|trial| trial.0 == outlier.trials).count();
                prop_assert!(live <= 1, "one trial at a time");
            }
            under_way.drain(..).for_each(|trial| outlier.end(trial));
            now += EJECTION_MAX;
            prop_assert!(!outlier.is_out(now) && outlier.takes(now));
        }
    }
}

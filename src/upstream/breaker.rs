//! Whether an upstream is asked for anything at all: not for a while when most of what it was asked has failed. A pure core:
//! time is an argument.
//!
//! Each shard has one for each upstream, and judges by the requests that it sent itself. While the circuit is open nothing is
//! sent; then one request is, whose end decides. Each that goes well lets one more go at the same time, so that a service that
//! is back is not met by all at once.

use std::time::Duration;

use super::window::{FailureShare, Window};
use crate::{config::FailureStatuses, shard::Instant, telemetry::metrics::CircuitState};

/// So many requests that went well close the circuit.
const WELL_MIN: u32 = 8;

/// When the circuit opens. From the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// The share of requests that fail; 0 leaves the circuit closed.
    pub share: FailureShare,
    /// Answers that count as failures.
    pub statuses: FailureStatuses,
    /// How long nothing is sent.
    pub open_for: Duration,
}

/// One per upstream and shard.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: State,
    window: Window,
    /// How often the state has changed: what was sent in an earlier one says nothing of this one.
    epoch: u32,
    /// Since when it is this one.
    since: Instant,
    /// Another shard has opened its circuit; until then less is enough here.
    suspected_until: Option<Instant>,
    /// How long nothing was sent since it was closed last, but for the time that it is open now.
    was_open: Duration,
    changes: [u32; CircuitState::COUNT],
    refused: u32,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Closed,
    /// Nothing is sent.
    Open { until: Instant },
    /// A few requests are, to try.
    HalfOpen {
        well: u32,
        failed: u32,
        under_way: u32,
        /// When one more goes, whatever became of those before.
        next_at: Instant,
    },
}

/// Nothing may be sent before then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenUntil(pub(super) Instant);

/// That a request may be sent. It is given back with what became of it, also if that is nothing.
#[derive(Clone, Copy, Debug)]
#[must_use = "a trial's place is taken until it is given back"]
pub(super) struct Pass {
    epoch: u32,
}

/// What a request says of its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It answered.
    Well,
    /// It did not, or with a status that counts as a failure.
    Failed,
    /// Nothing: the client left, or the gateway itself failed.
    Nothing,
}

/// What was counted since it was asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CircuitCounts {
    /// Changes, by the state that was entered.
    pub changes: [u32; CircuitState::COUNT],
    /// Requests that were refused.
    pub refused: u32,
}

impl Breaker {
    /// Whether everything may be sent.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether a request may be sent.
    #[inline]
    pub(super) fn admit(&mut self, now: Instant, policy: &BreakerPolicy) -> Result<Pass, OpenUntil> {
        if !self.is_closed() {
            self.admit_trial(now, policy)?;
        }
        Ok(Pass { epoch: self.epoch })
    }

    fn admit_trial(&mut self, now: Instant, policy: &BreakerPolicy) -> Result<(), OpenUntil> {
        if let State::Open { until } = self.state
            && now >= until
        {
            self.leave_open(now);
            self.enter(now, State::HalfOpen { well: 0, failed: 0, under_way: 0, next_at: now });
        }
        let refused = match &mut self.state {
            State::Closed => return Ok(()),
            State::Open { until } => *until,
            State::HalfOpen { well, failed, under_way, next_at } => {
                // A trial that takes its time, or whose client does, keeps nobody out for longer than that.
                if *under_way <= *well - *failed || now >= *next_at {
                    *under_way += 1;
                    *next_at = now + policy.open_for;
                    return Ok(());
                }
                *next_at
            }
        };
        self.refused = self.refused.saturating_add(1);
        Err(OpenUntil(refused))
    }

    /// Whether a request that was let in may be sent once more: not when the circuit has opened since, if it is no trial.
    pub(super) fn lets_on(&self, pass: Pass) -> bool {
        self.is_closed() || pass.epoch == self.epoch
    }

    /// A request has ended; says whether that has opened or closed the circuit.
    #[inline]
    pub(super) fn record(&mut self, now: Instant, policy: &BreakerPolicy, pass: Pass, found: Found) -> bool {
        if pass.epoch != self.epoch {
            return false;
        }
        let State::HalfOpen { well, failed, under_way, .. } = &mut self.state else {
            return self.count(now, policy, found);
        };
        *under_way = under_way.saturating_sub(1);
        match found {
            Found::Nothing => return false,
            Found::Well => *well += 1,
            Found::Failed => *failed += 1,
        }
        if *failed > *well {
            self.open(now, policy);
        } else if *well - *failed >= WELL_MIN {
            self.enter(now, State::Closed);
        } else {
            return false;
        }
        true
    }

    #[inline]
    fn count(&mut self, now: Instant, policy: &BreakerPolicy, found: Found) -> bool {
        if found == Found::Nothing || policy.share.percent == 0 || !self.is_closed() {
            return false;
        }
        self.window.count(now, policy.share.window, found == Found::Failed);
        found == Found::Failed && self.opens(now, policy)
    }

    /// An answer broke off whose head, at that time, was recorded as one that went well; says whether that has opened the
    /// circuit.
    pub(super) fn broke_off(&mut self, now: Instant, policy: &BreakerPolicy, answered_at: Instant) -> bool {
        if answered_at < self.since || now.since(answered_at) > policy.share.window {
            return false;
        }
        match &mut self.state {
            State::Open { .. } => false,
            State::HalfOpen { well, failed, .. } => {
                (*well, *failed) = (well.saturating_sub(1), *failed + 1);
                let is_over = *failed > *well;
                if is_over {
                    self.open(now, policy);
                }
                is_over
            }
            State::Closed => {
                if policy.share.percent == 0 {
                    return false;
                }
                self.window.recount(now, policy.share.window);
                self.opens(now, policy)
            }
        }
    }

    /// Opens it, if too much has failed; says whether.
    fn opens(&mut self, now: Instant, policy: &BreakerPolicy) -> bool {
        let is_suspected = self.suspected_until.is_some_and(|until| now < until);
        let share = if is_suspected { policy.share.quick() } else { policy.share };
        if !share.is_reached(self.window.tally(now, &share)) {
            return false;
        }
        self.open(now, policy);
        true
    }

    fn open(&mut self, now: Instant, policy: &BreakerPolicy) {
        self.enter(now, State::Open { until: now + policy.open_for });
    }

    /// Adds up how long nothing was sent: not the time in which somebody could have tried.
    fn leave_open(&mut self, now: Instant) {
        if let State::Open { until } = self.state {
            self.was_open += now.min(until).since(self.since);
        }
    }

    /// How long nothing was sent until it was closed; from here on it is counted anew.
    pub(super) fn take_open_time(&mut self) -> Duration {
        std::mem::take(&mut self.was_open)
    }

    fn enter(&mut self, now: Instant, state: State) {
        (self.state, self.since) = (state, now);
        self.epoch = self.epoch.wrapping_add(1);
        self.window = Window::default();
        self.suspected_until = None;
        let entered = match state {
            State::Closed => CircuitState::Closed,
            State::Open { .. } => CircuitState::Open,
            State::HalfOpen { .. } => CircuitState::HalfOpen,
        };
        let count = &mut self.changes[entered.index()];
        *count = count.saturating_add(1);
    }

    /// Another shard has opened its circuit.
    pub(super) fn suspect(&mut self, now: Instant, policy: &BreakerPolicy) {
        if self.is_closed() {
            self.suspected_until = Some(now + policy.share.window);
        }
    }

    /// A backend is well by its probes: the next request tries.
    pub(super) fn hint_well(&mut self, now: Instant) {
        if let State::Open { until } = &mut self.state {
            *until = now.min(*until);
        }
    }

    /// Another policy is in force.
    pub(super) fn update(&mut self, now: Instant, policy: &BreakerPolicy) {
        self.window = Window::default();
        if policy.share.percent == 0 && !self.is_closed() {
            self.leave_open(now);
            self.enter(now, State::Closed);
        }
    }

    /// How it stands.
    pub(super) fn state(&self, now: Instant) -> CircuitState {
        match self.state {
            State::Closed => CircuitState::Closed,
            State::Open { until } if now < until => CircuitState::Open,
            State::Open { .. } | State::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    /// What was counted since this was asked last.
    pub(super) fn take_counts(&mut self) -> CircuitCounts {
        CircuitCounts { changes: std::mem::take(&mut self.changes), refused: std::mem::take(&mut self.refused) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy {
        share: FailureShare { percent: 50, requests_min: 20, window: Duration::from_secs(10) },
        statuses: FailureStatuses::NONE,
        open_for: Duration::from_secs(5),
    };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn after(seconds: u64) -> Instant {
        Instant::START + s(1000 + seconds)
    }

    /// Sends so many requests one after the other, all of which end so; says how many were sent.
    fn send(breaker: &mut Breaker, now: Instant, count: usize, found: Found) -> usize {
        let sent = |_: &usize| {
            let pass = breaker.admit(now, &POLICY);
            pass.map(|pass| breaker.record(now, &POLICY, pass, found)).is_ok()
        };
        (0..count).filter(sent).count()
    }

    fn open(breaker: &mut Breaker, now: Instant) {
        send(breaker, now, 20, Found::Failed);
        assert_eq!(breaker.state(now), CircuitState::Open);
    }

    #[test]
    fn it_opens_at_a_share_of_enough_requests() {
        let mut breaker = Breaker::default();
        assert_eq!(send(&mut breaker, after(0), 30, Found::Well), 30);
        assert_eq!(send(&mut breaker, after(0), 29, Found::Failed), 29);
        assert_eq!(breaker.state(after(0)), CircuitState::Closed, "not half of them");
        assert_eq!(send(&mut breaker, after(0), 30, Found::Failed), 1);
        assert_eq!(breaker.admit(after(0), &POLICY).map(drop), Err(OpenUntil(after(5))));
        let mut breaker = Breaker::default();
        assert_eq!(send(&mut breaker, after(0), 19, Found::Failed), 19, "few say nothing");
        assert_eq!(send(&mut breaker, after(0), 100, Found::Nothing), 100, "nor do those who leave");
        assert_eq!(send(&mut breaker, after(20), 19, Found::Failed), 19, "nor those of long ago");
    }

    #[test]
    fn half_open_one_request_tries_and_each_that_goes_well_lets_one_more_go() {
        let mut breaker = Breaker::default();
        open(&mut breaker, after(0));
        assert_eq!(breaker.state(after(5)), CircuitState::HalfOpen);
        let pass = breaker.admit(after(5), &POLICY).expect("one tries");
        for _ in 0..100 {
            assert_eq!(breaker.admit(after(6), &POLICY).map(drop), Err(OpenUntil(after(10))));
        }
        assert!(breaker.record(after(6), &POLICY, pass, Found::Failed), "it is open again");
        assert_eq!(breaker.admit(after(10), &POLICY).map(drop), Err(OpenUntil(after(11))));
        let mut passes = vec![breaker.admit(after(11), &POLICY).expect("one tries")];
        let mut at_once = Vec::new();
        while breaker.state(after(11)) == CircuitState::HalfOpen {
            at_once.push(passes.len());
            let _ = breaker.record(after(11), &POLICY, passes.pop().expect("there is one"), Found::Well);
            while !breaker.is_closed()
                && let Ok(pass) = breaker.admit(after(11), &POLICY)
            {
                passes.push(pass);
            }
        }
        assert_eq!(at_once, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(breaker.take_counts(), CircuitCounts { changes: [1, 2, 2], refused: 108 });
        // What was under way says nothing of a circuit that is closed.
        for pass in passes {
            assert!(!breaker.record(after(11), &POLICY, pass, Found::Failed));
        }
        assert_eq!(send(&mut breaker, after(11), 19, Found::Failed), 19);
    }

    #[test]
    fn the_time_in_which_nobody_asks_is_none_in_which_it_was_open() {
        let mut breaker = Breaker::default();
        open(&mut breaker, after(0));
        assert_eq!(breaker.state(after(250)), CircuitState::HalfOpen, "somebody may try");
        assert_eq!(send(&mut breaker, after(250), 1, Found::Failed), 1);
        breaker.hint_well(after(252));
        assert_eq!(send(&mut breaker, after(300), 9, Found::Well), 9);
        assert!(breaker.is_closed());
        assert_eq!([breaker.take_open_time(), breaker.take_open_time()], [s(7), s(0)], "5 s and, for a probe, 2 s");
    }

    #[test]
    fn a_trial_that_is_dropped_or_never_ends_holds_nobody_up() {
        let mut breaker = Breaker::default();
        open(&mut breaker, after(0));
        let pass = breaker.admit(after(5), &POLICY).expect("one tries");
        assert!(breaker.admit(after(5), &POLICY).is_err());
        assert!(!breaker.record(after(5), &POLICY, pass, Found::Nothing));
        let pass = breaker.admit(after(5), &POLICY).expect("another one tries at once");
        assert!(breaker.admit(after(9), &POLICY).is_err());
        let later = breaker.admit(after(10), &POLICY).expect("it has had its time");
        assert!(breaker.admit(after(10), &POLICY).is_err());
        let _ = breaker.record(after(10), &POLICY, later, Found::Well);
        let _ = breaker.record(after(11), &POLICY, pass, Found::Well);
        assert_eq!(breaker.state(after(11)), CircuitState::HalfOpen);
        assert_eq!(send(&mut breaker, after(11), 6, Found::Well), 6);
        assert_eq!(breaker.state(after(11)), CircuitState::Closed);
    }

    #[test]
    fn answers_that_break_off_have_not_gone_well_after_all() {
        let mut breaker = Breaker::default();
        let break_off = |breaker: &mut Breaker, now, answered_at| {
            let pass = breaker.admit(now, &POLICY).expect("it is let in");
            let _ = breaker.record(now, &POLICY, pass, Found::Well);
            breaker.broke_off(now, &POLICY, answered_at)
        };
        // What began long ago says nothing of what is asked now, however many end at once.
        assert!((0..100).all(|_| !break_off(&mut breaker, after(20), after(9))));
        assert!(!breaker.broke_off(
            after(20),
            &BreakerPolicy { share: FailureShare { percent: 0, ..POLICY.share }, ..POLICY },
            after(20)
        ));
        let mut breaker = Breaker::default();
        assert_eq!((0..100).take_while(|_| !break_off(&mut breaker, after(20), after(20))).count(), 19);
        // One tries, and its answer breaks off; as do some that it began before.
        let pass = breaker.admit(after(25), &POLICY).expect("one tries");
        assert!(!breaker.record(after(25), &POLICY, pass, Found::Well));
        assert!(!breaker.broke_off(after(25), &POLICY, after(20)));
        assert!(breaker.broke_off(after(26), &POLICY, after(25)), "it is open again");
        assert!(breaker.admit(after(30), &POLICY).is_err() && !breaker.broke_off(after(30), &POLICY, after(29)));
    }

    #[test]
    fn a_siblings_word_and_a_probes_count() {
        let mut breaker = Breaker::default();
        breaker.suspect(after(0), &POLICY);
        assert_eq!(send(&mut breaker, after(0), 20, Found::Failed), 5, "a quarter is enough");
        breaker.hint_well(after(1));
        assert_eq!(send(&mut breaker, after(1), 100, Found::Well), 100);
        breaker.suspect(after(1), &POLICY);
        assert_eq!(send(&mut breaker, after(11), 20, Found::Failed), 20, "not for ever");
    }

    #[test]
    fn without_a_share_it_stays_closed() {
        let off = BreakerPolicy { share: FailureShare { percent: 0, ..POLICY.share }, ..POLICY };
        let mut breaker = Breaker::default();
        open(&mut breaker, after(0));
        breaker.update(after(0), &off);
        for _ in 0..100 {
            let pass = breaker.admit(after(0), &off).expect("it is off");
            assert!(!breaker.record(after(0), &off, pass, Found::Failed));
        }
    }

    proptest! {
        /// Whatever happens, somebody tries each time that the circuit has been open for its time, and never more at once
        /// than have gone well, and one.
        #[test]
        fn no_state_is_stuck(events in proptest::collection::vec((0_u8..5, 0_u64..3000), 1..300)) {
            let (mut breaker, mut now) = (Breaker::default(), after(0));
            let mut passes = Vec::new();
            open(&mut breaker, now);
            for (event, pause_ms) in events {
                now += Duration::from_millis(pause_ms);
                match event {
                    0 | 1 => passes.extend(breaker.admit(now, &POLICY)),
                    _ if passes.is_empty() => {}
                    2 => _ = breaker.record(now, &POLICY, passes.swap_remove(0), Found::Well),
                    3 => _ = breaker.record(now, &POLICY, passes.swap_remove(0), Found::Failed),
                    _ => _ = breaker.record(now, &POLICY, passes.swap_remove(0), Found::Nothing),
                }
                if let State::HalfOpen { well, failed, under_way, .. } = breaker.state {
                    prop_assert!(failed <= well);
                    let live = passes.iter().filter(|pass| pass.epoch == breaker.epoch).count();
                    prop_assert_eq!(live, under_way as usize);
                }
            }
            let later = now + POLICY.open_for;
            prop_assert!(breaker.admit(later, &POLICY).is_ok(), "after that time somebody tries");
        }
    }
}

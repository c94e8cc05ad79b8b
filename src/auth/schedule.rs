//! When an issuer's key set is fetched: regularly, sooner when a key is missing, later and later while it fails. Pure: time
//! is an argument, as far since some beginning; fetching is for `fetch`.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::time::Duration;

/// After the first failure; each further one doubles it.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// However often it failed, and however rarely it is refreshed.
const RETRY_MAX: Duration = Duration::from_mins(1);

/// One for each issuer whose keys are fetched.
#[derive(Debug)]
pub(super) struct Schedule {
    refresh: Duration,
    cooldown: Duration,
    due: Duration,
    /// When the last fetch began.
    begun: Option<Duration>,
    is_under_way: bool,
    failures: u32,
    random: fastrand::Rng,
}

impl Schedule {
    /// The first fetch is due at once. A seed replays the jitter.
    pub(super) fn new(refresh: Duration, cooldown: Duration, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { refresh, cooldown, due: Duration::ZERO, begun: None, is_under_way: false, failures: 0, random }
    }

    /// When to call [`Schedule::handle_timeout`]; `None` while a fetch is under way.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        (!self.is_under_way).then_some(self.due)
    }

    /// Whether to begin a fetch now. There is never more than one.
    pub(super) fn handle_timeout(&mut self, now: Duration) -> bool {
        let begins = !self.is_under_way && now >= self.due;
        if begins {
            self.is_under_way = true;
            self.begun = Some(now);
        }
        begins
    }

    /// The fetch came to its end.
    pub(super) fn handle_fetched(&mut self, now: Duration, is_good: bool) {
        self.is_under_way = false;
        if is_good {
            self.failures = 0;
            // A tenth to either side, so that instances that started together do not ask together for ever.
            self.due = now.saturating_add(self.refresh.mul_f64(0.9 + 0.2 * self.random.f64()));
        } else {
            let doubled = RETRY_FIRST.saturating_mul(1 << self.failures.min(16));
            self.failures = self.failures.saturating_add(1);
            let longest = doubled.min(RETRY_MAX).min(self.refresh);
            self.due = now.saturating_add(longest.mul_f64(0.5 + 0.5 * self.random.f64()));
        }
    }

    /// A token named a key that the set lacks. One fetch after the cool-down serves all who ask until then; whoever invents
    /// keys causes one fetch for each cool-down and no more.
    pub(super) fn handle_unknown_key(&mut self) {
        if self.is_under_way || self.failures > 0 {
            // What is under way may bring it, and a server in trouble is asked by its own schedule.
            return;
        }
        let earliest = self.begun.map_or(Duration::ZERO, |begun| begun.saturating_add(self.cooldown));
        self.due = self.due.min(earliest);
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, clippy::expect_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REFRESH: Duration = Duration::from_mins(10);
    const COOLDOWN: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fetched(seed: u64) -> Schedule {
        let mut schedule = Schedule::new(REFRESH, COOLDOWN, seed);
        assert!(schedule.handle_timeout(at(0)));
        schedule.handle_fetched(at(1), true);
        schedule
    }

    #[test]
    fn one_fetch_at_a_time() {
        let mut schedule = Schedule::new(REFRESH, COOLDOWN, 1);
        assert_eq!(schedule.poll_timeout(), Some(at(0)));
        assert!(schedule.handle_timeout(at(0)));
        assert_eq!(schedule.poll_timeout(), None);
        schedule.handle_unknown_key();
        assert!(!schedule.handle_timeout(at(10_000)));
    }

    #[test]
    fn refreshes_are_spread_around_the_interval() {
        for seed in 0..100 {
            let due = fetched(seed).poll_timeout().expect("idle");
            assert!((at(541)..=at(661)).contains(&due), "{due:?}");
        }
    }

    #[test]
    fn failures_are_tried_again_later_and_later() {
        let mut schedule = fetched(7);
        let mut waits = Vec::new();
        for _ in 0..10 {
            let due = schedule.poll_timeout().expect("idle");
            assert!(schedule.handle_timeout(due));
            schedule.handle_fetched(due, false);
            waits.push(schedule.poll_timeout().expect("idle").saturating_sub(due));
        }
        for (wait, seconds) in waits.iter().zip([1, 2, 4, 8, 16, 32, 60, 60, 60, 60]) {
            assert!((at(seconds).mul_f64(0.5)..=at(seconds)).contains(wait), "{waits:?}");
        }
        let due = schedule.poll_timeout().expect("idle");
        schedule.handle_unknown_key();
        assert_eq!(schedule.poll_timeout(), Some(due), "a server in trouble is not asked sooner");
        assert!(schedule.handle_timeout(due));
        schedule.handle_fetched(due, true);
        assert!(schedule.poll_timeout().is_some_and(|next| next > due + at(500)));
    }

    #[test]
    fn an_unknown_key_waits_for_the_cool_down() {
        let mut schedule = fetched(7);
        schedule.handle_unknown_key();
        schedule.handle_unknown_key();
        assert_eq!(schedule.poll_timeout(), Some(at(30)));
        assert!(!schedule.handle_timeout(at(29)));
        assert!(schedule.handle_timeout(at(100)));
        schedule.handle_fetched(at(101), true);
        schedule.handle_unknown_key();
        assert_eq!(schedule.poll_timeout(), Some(at(130)), "it counts from the beginning of the last");
    }

    proptest! {
        /// However many invent keys, however long a fetch takes: the server is asked once a cool-down at most.
        #[test]
        fn the_server_is_not_flooded(asks in prop::collection::vec((0_u64..40, 0_u64..20, any::<bool>()), 1..200), seed: u64) {
            let mut schedule = Schedule::new(REFRESH, COOLDOWN, seed);
            let (mut now, mut begun, mut failed) = (Duration::ZERO, None, false);
            for (pause, takes, is_good) in asks {
                now += at(pause);
                schedule.handle_unknown_key();
                if schedule.handle_timeout(now) {
                    let apart = begun.map_or(Duration::MAX, |begun| now.saturating_sub(begun));
                    let least = if failed { at(1) / 2 } else { COOLDOWN };
                    prop_assert!(apart >= least);
                    begun = Some(now);
                    now += at(takes);
                    schedule.handle_fetched(now, is_good);
                    failed = !is_good;
                }
            }
        }
    }
}

//! How many of what ended of late has failed: a sliding window of a few buckets. A pure core: time is an argument.

use std::time::Duration;

use crate::shard::Instant;

/// So many parts of the window are forgotten one after the other. With more it would slide more smoothly, in more memory.
const BUCKETS: usize = 8;

/// Of so many times the least number the last ones are enough to judge by, and what was before them counts no more.
const ENOUGH: u32 = 5;

/// When failures are so many that something is done. From the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureShare {
    /// The share of failures, in percent; 0 turns it off.
    pub percent: u32,
    /// Of fewer than these nothing is concluded.
    pub requests_min: u32,
    /// How far back is looked.
    pub window: Duration,
}

impl FailureShare {
    /// Whether so many failures are too many.
    pub(super) fn is_reached(&self, tally: Tally) -> bool {
        self.percent > 0 && tally.all >= self.requests_min && tally.failed_percent() >= self.percent
    }

    /// How many that ended last are enough to judge by.
    fn enough(&self) -> u32 {
        self.requests_min.saturating_mul(ENOUGH)
    }

    /// The same, concluded from a quarter of what it takes otherwise.
    pub(super) fn quick(&self) -> Self {
        Self { requests_min: self.requests_min.div_ceil(4), ..*self }
    }
}

/// What ended, and how much of it failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) all: u32,
    pub(super) failed: u32,
}

impl Tally {
    fn count(&mut self, has_failed: bool) {
        self.all = self.all.saturating_add(1);
        self.failed = self.failed.saturating_add(u32::from(has_failed));
    }

    /// The share of failures, rounded down; of nothing it is nought.
    pub(super) fn failed_percent(self) -> u32 {
        u32::try_from(u64::from(self.failed) * 100 / u64::from(self.all).max(1)).unwrap_or(100)
    }
}

/// The tallies of a window that ends now. It is asked with one length of the window and no other.
#[derive(Debug, Default)]
pub(super) struct Window {
    buckets: [Tally; BUCKETS],
    /// Which of them is being filled.
    at: usize,
    /// Until when.
    full_at: Instant,
    sum: Tally,
}

impl Window {
    /// Counts what has just ended.
    #[inline]
    pub(super) fn count(&mut self, now: Instant, length: Duration, has_failed: bool) {
        if now >= self.full_at {
            self.slide(now, length);
        }
        self.buckets[self.at].count(has_failed);
        self.sum.count(has_failed);
    }

    /// What was counted of late as gone well has failed after all. Of nothing that went well nothing fails.
    pub(super) fn recount(&mut self, now: Instant, length: Duration) {
        if now >= self.full_at {
            self.slide(now, length);
        }
        let places = (0..BUCKETS).map(|back| (self.at + BUCKETS - back) % BUCKETS);
        let newest = places.into_iter().find(|place| self.buckets[*place].failed < self.buckets[*place].all);
        if let Some(place) = newest {
            self.buckets[place].failed += 1;
            self.sum.failed += 1;
        }
    }

    /// What has ended of late: in the shortest time that ends now, of a whole bucket at least, in which enough did; else in all of
    /// the window. So what goes wrong under load is seen within a quarter of the window, however much went well before.
    pub(super) fn tally(&mut self, now: Instant, share: &FailureShare) -> Tally {
        if now >= self.full_at {
            self.slide(now, share.window);
        }
        let mut recent = Tally::default();
        for back in 0..BUCKETS {
            let Tally { all, failed } = self.buckets[(self.at + BUCKETS - back) % BUCKETS];
            recent = Tally { all: recent.all.saturating_add(all), failed: recent.failed.saturating_add(failed) };
            if back > 0 && recent.all >= share.enough() {
                return recent;
            }
        }
        self.sum
    }

    fn slide(&mut self, now: Instant, length: Duration) {
        let width = length / u32::try_from(BUCKETS).unwrap_or(u32::MAX);
        let width_ns = u64::try_from(width.as_nanos()).unwrap_or(u64::MAX).max(1);
        let passed = (now.as_nanos() - self.full_at.as_nanos()) / width_ns + 1;
        if passed >= BUCKETS as u64 {
            *self = Self { full_at: now + width, ..Self::default() };
            return;
        }
        for _ in 0..passed {
            self.at = (self.at + 1) % BUCKETS;
            let Tally { all, failed } = std::mem::take(&mut self.buckets[self.at]);
            self.sum = Tally { all: self.sum.all.saturating_sub(all), failed: self.sum.failed.saturating_sub(failed) };
            self.full_at += width;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const LENGTH: Duration = Duration::from_secs(8);
    /// By which nothing less than all of the window is enough.
    const WHOLE: FailureShare = FailureShare { percent: 50, requests_min: u32::MAX, window: LENGTH };

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut window = Window::default();
        let at = |s: u64| Instant::START + Duration::from_secs(100 + s);
        for second in 0..8 {
            window.count(at(second), LENGTH, second < 2);
        }
        assert_eq!(window.tally(at(7), &WHOLE), Tally { all: 8, failed: 2 });
        assert_eq!(window.tally(at(8), &WHOLE), Tally { all: 7, failed: 1 });
        assert_eq!(window.tally(at(9), &WHOLE), Tally { all: 6, failed: 0 });
        assert_eq!(window.tally(at(1000), &WHOLE), Tally::default());
        window.count(at(1001), LENGTH, true);
        assert_eq!(window.tally(at(1001), &WHOLE).failed_percent(), 100);
        assert_eq!(Tally::default().failed_percent(), 0);
    }

    #[test]
    fn of_enough_that_ended_last_what_was_before_counts_no_more() {
        let share = FailureShare { percent: 40, requests_min: 20, window: LENGTH };
        let at = |ms: u64| Instant::START + Duration::from_secs(100) + Duration::from_millis(ms);
        // 100 a second go well for eight seconds, and then half of them.
        let mut window = Window::default();
        let mut judged_at = None;
        for ms in (0..16_000).step_by(10) {
            window.count(at(ms), LENGTH, ms >= 8000 && ms / 10 % 2 == 0);
            if judged_at.is_none() && share.is_reached(window.tally(at(ms), &share)) {
                judged_at = Some(ms);
            }
        }
        assert!(judged_at.is_some_and(|ms| (8400..10_000).contains(&ms)), "at {judged_at:?} ms");
        // Of few, all of the window is looked at.
        let mut window = Window::default();
        for second in 0..8 {
            window.count(at(second * 1000), LENGTH, second >= 6);
        }
        assert_eq!(window.tally(at(7000), &share), Tally { all: 8, failed: 2 });
    }

    #[test]
    fn no_more_fails_after_all_than_went_well() {
        let at = |ms: u64| Instant::START + Duration::from_secs(100) + Duration::from_millis(ms);
        let mut window = Window::default();
        window.recount(at(0), LENGTH);
        assert_eq!(window.tally(at(0), &WHOLE), Tally::default());
        for ms in [0, 0, 2000] {
            window.count(at(ms), LENGTH, false);
        }
        for failed in [1, 2, 3, 3] {
            window.recount(at(2000), LENGTH);
            assert_eq!(window.tally(at(2000), &WHOLE), Tally { all: 3, failed });
        }
        assert_eq!(window.tally(at(8999), &WHOLE), Tally { all: 1, failed: 1 }, "each is as old as it was");
    }

    #[test]
    fn a_share_is_concluded_from_enough_only() {
        let share = FailureShare { percent: 50, requests_min: 10, window: LENGTH };
        let reached = |all, failed| share.is_reached(Tally { all, failed });
        assert_eq!([reached(9, 9), reached(10, 4), reached(10, 5), reached(1000, 499)], [false, false, true, false]);
        assert!(share.quick().is_reached(Tally { all: 3, failed: 2 }));
        assert!(!FailureShare { percent: 0, ..share }.is_reached(Tally { all: 100, failed: 100 }));
    }

    proptest! {
        /// Whatever the pauses, what it says lies between what seven and what eight eighths of the window hold.
        #[test]
        fn it_is_true_to_a_bucket(events in proptest::collection::vec((0_u64..3000, any::<bool>()), 1..300)) {
            let (mut window, mut all) = (Window::default(), VecDeque::new());
            let mut now = Instant::START;
            for (pause_ms, has_failed) in events {
                now += Duration::from_millis(pause_ms);
                window.count(now, LENGTH, has_failed);
                all.push_back((now, has_failed));
                let within = |length: Duration| {
                    let recent = || all.iter().filter(|(at, _)| now.since(*at) < length);
                    (recent().count(), recent().filter(|(_, failed)| *failed).count())
                };
                let (least, most) = (within(LENGTH * 7 / 8), within(LENGTH));
                let Tally { all: counted, failed } = window.tally(now, &WHOLE);
                prop_assert!((least.0..=most.0).contains(&(counted as usize)), "{least:?} {most:?} {counted}");
                prop_assert!((least.1..=most.1).contains(&(failed as usize)));
            }
        }
    }
}

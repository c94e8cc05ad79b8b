//! The generic cell rate algorithm: one number for each key says when all that was asked for will have been earned.
//!
//! Pure: time is an argument, in nanoseconds since whenever, and nothing overflows.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

/// A rate, and how much may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds in which one request is earned; at least 1.
    interval: u64,
    /// Nanoseconds that may be owed: the burst's worth.
    tolerance: u64,
}

impl Rate {
    /// One request each `interval` nanoseconds, and `burst` at once after a pause. Neither is ever less than 1.
    pub const fn new(interval: u64, burst: u32) -> Self {
        let interval = if interval == 0 { 1 } else { interval };
        let burst = if burst == 0 { 1 } else { burst };
        Self { interval, tolerance: interval.saturating_mul(burst as u64) }
    }

    /// Whether one more request conforms: what is owed then, or how long until it does.
    #[inline]
    pub const fn admit(self, owed_until: u64, now: u64) -> Result<u64, u64> {
        let next = self.charge(owed_until, now, 1);
        let latest = now.saturating_add(self.tolerance);
        if next <= latest { Ok(next) } else { Err(next.saturating_sub(latest)) }
    }

    /// What is owed after so many requests, whether they conform or not.
    #[inline]
    pub const fn charge(self, owed_until: u64, now: u64, count: u32) -> u64 {
        let from = if owed_until > now { owed_until } else { now };
        from.saturating_add(self.interval.saturating_mul(count as u64))
    }

    /// How many requests conform now, one after the other.
    #[inline]
    pub const fn remaining(self, owed_until: u64, now: u64) -> u64 {
        match self.tolerance.saturating_sub(owed_until.saturating_sub(now)).checked_div(self.interval) {
            Some(remaining) => remaining,
            None => 0,
        }
    }

    /// The nanoseconds until a request conforms; 0 when one does now.
    #[inline]
    pub const fn wait(self, owed_until: u64, now: u64) -> u64 {
        match self.admit(owed_until, now) {
            Ok(_) => 0,
            Err(wait) => wait,
        }
    }

    /// The same number of requests owed, of another rate; never more than that rate lets anybody owe.
    pub fn convert(self, owed_until: u64, now: u64, to: Self) -> u64 {
        let owed = u128::from(owed_until.saturating_sub(now)).saturating_mul(to.interval.into());
        let owed = owed.checked_div(self.interval.into()).unwrap_or(u128::MAX);
        now.saturating_add(u64::try_from(owed).unwrap_or(u64::MAX).min(to.tolerance))
    }

    /// So many requests' worth, in nanoseconds.
    pub const fn worth(self, count: u32) -> u64 {
        self.interval.saturating_mul(count as u64)
    }

    /// Whether half of the burst is used, or more.
    #[inline]
    pub const fn is_half_used(self, owed_until: u64, now: u64) -> bool {
        owed_until.saturating_sub(now) >= self.tolerance / 2
    }

    /// The nanoseconds that may be owed.
    pub const fn tolerance(self) -> u64 {
        self.tolerance
    }

    /// The nanoseconds in which one request is earned.
    pub const fn interval(self) -> u64 {
        self.interval
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asks at these times, and returns those at which it was admitted.
    fn admitted(rate: Rate, times: &[u64]) -> Vec<u64> {
        let mut owed = 0;
        let ask = |now: &u64| match rate.admit(owed, *now) {
            Ok(next) => {
                owed = next;
                Some(*now)
            }
            Err(_) => None,
        };
        times.iter().filter_map(ask).collect()
    }

    #[test]
    fn a_burst_then_one_for_each_interval() {
        let rate = Rate::new(10, 3);
        assert_eq!(
            admitted(rate, &[0, 0, 0, 0, 9, 10, 10, 19, 20, 100, 100, 100, 100]),
            [0, 0, 0, 10, 20, 100, 100, 100]
        );
        assert_eq!(rate.remaining(0, 0), 3);
        assert_eq!([20, 21, 30].map(|owed| rate.remaining(owed, 0)), [1, 0, 0]);
        assert_eq!([20, 21, 30].map(|owed| rate.wait(owed, 0)), [0, 1, 10]);
    }

    #[test]
    fn the_ends_of_time_are_no_trouble() {
        let rate = Rate::new(u64::MAX, u32::MAX);
        assert_eq!(rate.admit(0, 0), Ok(u64::MAX));
        assert_eq!(rate.admit(u64::MAX, u64::MAX), Ok(u64::MAX));
        assert_eq!(Rate::new(0, 0), Rate::new(1, 1));
        assert_eq!(rate.convert(u64::MAX, 0, Rate::new(7, 2)), 7);
        assert_eq!(Rate::new(1, 1).convert(u64::MAX, 5, Rate::new(u64::MAX, 9)), u64::MAX);
    }

    fn rates() -> impl Strategy<Value = Rate> {
        (1..1_000_u64, 1..50_u32).prop_map(|(interval, burst)| Rate::new(interval, burst))
    }

    fn times() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(0..300_u64, 1..200).prop_map(|pauses| {
            let mut now = 0;
            pauses
                .into_iter()
                .map(|pause| {
                    // Half of them at once.
                    now += pause.saturating_sub(150);
                    now
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate(rate in rates(), times in times()) {
            let admitted = admitted(rate, &times);
            for (first, from) in admitted.iter().enumerate() {
                for (last, to) in admitted.iter().enumerate().skip(first) {
                    let count = (last - first + 1) as u64;
                    let allowed = rate.tolerance() / rate.interval() + (to - from) / rate.interval();
                    prop_assert!(count <= allowed, "{count} from {from} to {to}, of {allowed}");
                }
            }
        }

        #[test]
        fn whoever_waits_as_told_is_admitted_and_not_a_moment_sooner(rate in rates(), owed in 0..100_000_u64, now in 0..50_000_u64) {
            let wait = rate.wait(owed, now);
            if wait > 0 {
                prop_assert!(rate.admit(owed, now + wait - 1).is_err());
            }
            prop_assert!(rate.admit(owed, now + wait).is_ok());
        }

        #[test]
        fn remaining_is_how_many_conform(rate in rates(), owed in 0..100_000_u64, now in 0..50_000_u64) {
            let (mut count, mut at) = (0, owed);
            while let Ok(next) = rate.admit(at, now) {
                at = next;
                count += 1;
            }
            prop_assert_eq!(rate.remaining(owed, now), count);
        }

        #[test]
        fn later_or_owing_less_never_conforms_less(rate in rates(), owed in 0..100_000_u64, less in 0..1_000_u64, now in 0..50_000_u64) {
            prop_assert!(rate.remaining(owed.saturating_sub(less), now) >= rate.remaining(owed, now));
            prop_assert!(rate.remaining(owed, now + less) >= rate.remaining(owed, now));
            prop_assert!(rate.charge(owed, now, 2) == rate.charge(rate.charge(owed, now, 1), now, 1));
        }

        #[test]
        fn nothing_overflows(interval: u64, burst: u32, owed: u64, now: u64, count: u32) {
            let rate = Rate::new(interval, burst);
            let _ = (rate.admit(owed, now), rate.charge(owed, now, count), rate.remaining(owed, now));
            let _ = (rate.wait(owed, now), rate.convert(owed, now, Rate::new(burst.into(), count)), rate.worth(count));
        }
    }
}

//! Durations counted into fixed buckets, with integers only.
//!
//! What is measured, and under which name it is published, is said in `metrics`.

use std::marker::PhantomData;

/// The upper bounds of a histogram's buckets.
pub trait Ladder: 'static {
    /// Inclusive bounds in microseconds, rising; one more bucket without a bound follows.
    const BOUNDS_US: &'static [u32];
}

/// Whole requests: 100 µs to 60 s.
#[derive(Clone, Copy, Debug)]
pub struct Requests;

impl Ladder for Requests {
    const BOUNDS_US: &'static [u32] = &[
        100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
        5_000_000, 10_000_000, 20_000_000, 60_000_000,
    ];
}

/// What the gateway itself takes: 5 µs to 1 s.
#[derive(Clone, Copy, Debug)]
pub struct Own;

impl Ladder for Own {
    const BOUNDS_US: &'static [u32] = &[
        5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    ];
}

/// What lasts: 1 s to an hour.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes;

impl Ladder for Lifetimes {
    const BOUNDS_US: &'static [u32] =
        &[1_000_000, 10_000_000, 60_000_000, 300_000_000, 900_000_000, 1_800_000_000, 3_600_000_000];
}

/// Buckets of the longest ladder, the one without a bound included.
pub const BUCKETS: usize = 19;

/// How often each range of durations was seen, and their sum.
#[derive(Debug)]
pub struct Histogram<L: Ladder> {
    buckets: [u64; BUCKETS],
    sum_us: u64,
    ladder: PhantomData<L>,
}

impl<L: Ladder> Clone for Histogram<L> {
    fn clone(&self) -> Self {
        Self { buckets: self.buckets, sum_us: self.sum_us, ladder: PhantomData }
    }
}

impl<L: Ladder> Default for Histogram<L> {
    fn default() -> Self {
        const { assert!(L::BOUNDS_US.len() < BUCKETS) };
        Self { buckets: [0; BUCKETS], sum_us: 0, ladder: PhantomData }
    }
}

impl<L: Ladder> Histogram<L> {
    /// Counts one duration.
    #[inline]
    pub fn observe_us(&mut self, us: u64) {
        self.buckets[bucket::<L>(us)] += 1;
        self.sum_us = self.sum_us.wrapping_add(us);
    }

    /// The place of the bucket that a duration is counted in, in the order of [`Self::cumulative`].
    pub fn bucket(us: u64) -> usize {
        bucket::<L>(us)
    }

    /// Adds what another shard counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of all durations.
    pub const fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// Each bucket's upper bound (`None` for the last) with the number of durations up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<u32>, u64)> {
        let bounds = L::BOUNDS_US.iter().copied().map(Some).chain([None]);
        bounds.zip(self.buckets).scan(0, |total, (bound, count)| {
            *total += count;
            Some((bound, *total))
        })
    }
}

/// The bucket of a duration: the number of bounds below it.
#[inline]
fn bucket<L: Ladder>(us: u64) -> usize {
    let us = u32::try_from(us).unwrap_or(u32::MAX);
    // No branch for the processor to guess wrong: the compiler compares four bounds at once.
    L::BOUNDS_US.iter().map(|&bound| usize::from(bound < us)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_rise_and_belong_to_their_bucket() {
        fn check<L: Ladder>() {
            assert!(L::BOUNDS_US.is_sorted_by(|one, next| one < next));
            for (index, &bound) in L::BOUNDS_US.iter().enumerate() {
                assert_eq!(bucket::<L>(u64::from(bound)), index, "{bound} is within its own bucket");
                assert_eq!(bucket::<L>(u64::from(bound) + 1), index + 1, "{bound} + 1 is past it");
            }
            assert_eq!(bucket::<L>(u64::MAX), L::BOUNDS_US.len());
        }
        check::<Requests>();
        check::<Own>();
        check::<Lifetimes>();
    }

    proptest! {
        #[test]
        fn longer_durations_are_never_in_lower_buckets(one: u64, other: u64) {
            let (short, long) = (one.min(other), one.max(other));
            prop_assert!(bucket::<Requests>(short) <= bucket::<Requests>(long));
            prop_assert!(bucket::<Own>(short) <= bucket::<Own>(long));
        }

        #[test]
        fn merging_counts_what_one_would_have(durations in prop::collection::vec((any::<bool>(), any::<u32>()), 0..50)) {
            let (mut whole, mut halves) = (Histogram::<Requests>::default(), [Histogram::<Requests>::default(), Histogram::default()]);
            for &(first, us) in &durations {
                whole.observe_us(u64::from(us));
                halves[usize::from(first)].observe_us(u64::from(us));
            }
            let [mut merged, other] = halves;
            merged.merge(&other);
            prop_assert_eq!(merged.cumulative().collect::<Vec<_>>(), whole.cumulative().collect::<Vec<_>>());
            prop_assert_eq!(whole.count(), durations.len() as u64);
            prop_assert_eq!(whole.sum_us(), durations.iter().map(|&(_, us)| u64::from(us)).sum::<u64>());
            prop_assert_eq!(merged.sum_us(), whole.sum_us());
        }
    }
}

//! When a request should leave, in an open loop. Pure: time is an argument and chance is a seed; sending is
//! `scenario`'s.
//!
//! Latency counts from the intended time, so a request that a stalled server kept from leaving is charged its wait.
//! Intended times are made when they are taken: an overload of any length costs no memory.

/// The spacing of intended times.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(crate) enum Arrival {
    /// Evenly, one gap after another.
    Constant,
    /// As independent users arrive: exponential gaps with the same mean.
    Poisson,
}

/// The intended times of one thread's requests, in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    arrival: Arrival,
    start: u64,
    gap_ns: f64,
    random: fastrand::Rng,
    taken: u64,
    /// From `start` to the next intended time.
    next_ns: f64,
}

impl Pace {
    pub(crate) fn new(arrival: Arrival, rate_per_s: f64, start: u64, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let mut pace = Self { arrival, start, gap_ns: 1e9 / rate_per_s, random, taken: 0, next_ns: 0.0 };
        if arrival == Arrival::Poisson {
            pace.next_ns = pace.random_gap();
        }
        pace
    }

    /// The next intended time, be it past or to come.
    pub(crate) fn next_due(&self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and 2^63 ns are 292 years"
        )]
        let elapsed = self.next_ns as u64;
        self.start + elapsed
    }

    /// Takes the next intended time, if it is not after `now`.
    pub(crate) fn take_due(&mut self, now: u64) -> Option<u64> {
        let due = self.next_due();
        if due > now {
            return None;
        }
        self.taken += 1;
        match self.arrival {
            // Multiplied, not added up: the thousandth is where it should be, to the nanosecond.
            Arrival::Constant => self.next_ns = self.taken as f64 * self.gap_ns,
            Arrival::Poisson => self.next_ns += self.random_gap(),
        }
        Some(due)
    }

    /// How many intended times before `end` have not been taken.
    pub(crate) fn untaken_before(&self, end: u64) -> u64 {
        let mut rest = self.clone();
        let mut count = 0;
        while end > 0 && rest.take_due(end - 1).is_some() {
            count += 1;
        }
        count
    }

    fn random_gap(&mut self) -> f64 {
        // 1 − u is never 0, so the logarithm is finite.
        -(1.0 - self.random.f64()).ln() * self.gap_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(pace: &mut Pace, now: u64) -> Vec<u64> {
        std::iter::from_fn(|| pace.take_due(now)).collect()
    }

    #[test]
    fn constant_times_are_evenly_spaced_from_the_start() {
        let mut pace = Pace::new(Arrival::Constant, 1000.0, 5_000_000, 1);
        assert_eq!(pace.take_due(4_999_999), None);
        assert_eq!(take_all(&mut pace, 8_000_000), [5_000_000, 6_000_000, 7_000_000, 8_000_000]);
        assert_eq!(pace.next_due(), 9_000_000);
    }

    #[test]
    fn after_a_stall_each_keeps_its_own_intended_time() {
        let mut pace = Pace::new(Arrival::Constant, 100.0, 0, 1);
        assert_eq!(take_all(&mut pace, 10_000_000).len(), 2);
        let missed = take_all(&mut pace, 50_000_000);
        assert_eq!(missed, [20_000_000, 30_000_000, 40_000_000, 50_000_000]);
    }

    #[test]
    fn rates_that_do_not_divide_a_second_do_not_drift() {
        let mut pace = Pace::new(Arrival::Constant, 3000.0, 0, 1);
        assert_eq!(take_all(&mut pace, 100 * 1_000_000_000 - 1).len(), 300_000);
        assert_eq!(pace.next_due(), 100 * 1_000_000_000);
    }

    #[test]
    fn untaken_times_are_counted_and_stay() {
        let mut pace = Pace::new(Arrival::Constant, 1000.0, 0, 1);
        assert_eq!(pace.take_due(0), Some(0));
        assert_eq!(pace.untaken_before(5_000_000), 4);
        assert_eq!(pace.next_due(), 1_000_000);
        assert_eq!(pace.untaken_before(0), 0);
    }

    #[test]
    fn poisson_is_replayed_by_its_seed_and_keeps_the_rate() {
        let times = |seed| take_all(&mut Pace::new(Arrival::Poisson, 10_000.0, 0, seed), 1_000_000_000);
        assert_eq!(times(7), times(7));
        assert_ne!(times(7), times(8));
        // 10,000 expected, standard deviation 100.
        let count = times(7).len();
        assert!((9_500..10_500).contains(&count), "{count} arrivals in a second");
        // A share of e^-1 of exponential gaps is longer than the mean; of constant gaps none is.
        let long = times(7).windows(2).filter(|pair| pair[1] - pair[0] > 100_000).count();
        assert!((3_300..4_100).contains(&long), "{long} long gaps");
    }
}

//! Which backends are left out for a while because they failed in a row.
//!
//! Each shard judges by what it saw itself. Failures are those of the connection and of time: a status is an answer.

use std::time::Duration;

use crate::shard::Instant;

/// A backend's ejections never last longer than this.
const EJECTION_MAX: Duration = Duration::from_mins(5);

/// When a backend is left out. From the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Failures in a row; 0 turns ejection off.
    pub failures: u32,
    /// How long the first ejection lasts; the n-th lasts n times as long.
    pub ejection: Duration,
    /// Share of an upstream's backends that may be out at once.
    pub percent_max: u32,
}

/// One per backend and shard.
#[derive(Debug, Default)]
pub(super) struct Outlier {
    failures: u32,
    ejections: u32,
    until: Option<Instant>,
    /// When it answered before its time was over.
    back_at: Option<Instant>,
}

impl Outlier {
    /// Whether it is left out now.
    pub(super) fn is_out(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Until when it is left out, if it is now.
    pub(super) fn out_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| now < *until)
    }

    /// Since when it is back, if it was left out and is no more.
    pub(super) fn back_since(&self) -> Option<Instant> {
        self.until.or(self.back_at)
    }

    /// Whether it has failed so often in a row that only the share of others that are out keeps it in.
    pub(super) fn is_failing(&self, policy: &OutlierPolicy) -> bool {
        self.failures >= policy.failures.max(1)
    }

    /// An answer came; says whether it was left out until then.
    pub(super) fn succeeded(&mut self, now: Instant) -> bool {
        self.failures = 0;
        let Some(until) = self.until.take() else { return false };
        // It is back: the next ejection is a little shorter again.
        self.ejections = self.ejections.saturating_sub(1);
        self.back_at = Some(until.min(now));
        now < until
    }

    /// It is known to be well by other means.
    pub(super) fn readmit(&mut self) {
        (self.failures, self.until) = (0, None);
    }

    /// It failed. `may_eject`: few enough others are out. Returns whether it is ejected by this failure.
    pub(super) fn failed(&mut self, now: Instant, policy: &OutlierPolicy, may_eject: bool) -> bool {
        self.failures = self.failures.saturating_add(1);
        if policy.failures == 0 || self.failures < policy.failures || !may_eject || self.is_out(now) {
            return false;
        }
        self.failures = 0;
        self.ejections = self.ejections.saturating_add(1);
        self.until = Some(now + policy.ejection.saturating_mul(self.ejections).min(EJECTION_MAX));
        true
    }
}

/// Whether one more of `count` backends may be left out when `out` are.
pub(super) fn may_eject(policy: &OutlierPolicy, count: usize, out: usize) -> bool {
    (out + 1) * 100 <= count * policy.percent_max as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: OutlierPolicy = OutlierPolicy { failures: 5, ejection: Duration::from_secs(30), percent_max: 50 };

    fn fail(outlier: &mut Outlier, now: Instant, times: u32) -> bool {
        (0..times).any(|_| outlier.failed(now, &POLICY, true))
    }

    #[test]
    fn five_failures_in_a_row_eject_for_thirty_seconds() {
        let mut outlier = Outlier::default();
        let now = Instant::START;
        assert!(!fail(&mut outlier, now, 4));
        outlier.succeeded(now);
        assert!(!fail(&mut outlier, now, 4), "a success starts the count anew");
        assert!(fail(&mut outlier, now, 1));
        assert!(outlier.is_out(now + Duration::from_secs(29)));
        assert!(!outlier.is_out(now + Duration::from_secs(30)));
    }

    #[test]
    fn each_ejection_lasts_longer_up_to_a_bound() {
        let mut outlier = Outlier::default();
        let mut now = Instant::START;
        for seconds in [30, 60, 90] {
            assert!(fail(&mut outlier, now, 5));
            assert!(outlier.is_out(now + Duration::from_secs(seconds - 1)));
            now += Duration::from_secs(seconds);
            assert!(!outlier.is_out(now));
        }
        for _ in 0..50 {
            fail(&mut outlier, now, 5);
            now += EJECTION_MAX;
            assert!(!outlier.is_out(now));
        }
    }

    #[test]
    fn at_most_half_are_out() {
        assert!(!may_eject(&POLICY, 1, 0));
        assert!(may_eject(&POLICY, 2, 0));
        assert!(!may_eject(&POLICY, 2, 1));
        assert!(may_eject(&POLICY, 5, 1));
        assert!(!may_eject(&POLICY, 5, 2));
    }
}

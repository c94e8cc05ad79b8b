//! How many requests may be sent again: a share of those sent, and never fewer than a few a second.
//!
//! Without a budget retries multiply the load of a backend that is failing under load (linkerd, Envoy: the same idea).

use crate::shard::Instant;

/// Retries that a quiet upstream may save up, in seconds of its allowance.
const SAVED_S: u64 = 10;
/// One retry, in the unit of the account.
const RETRY: u64 = 1000;

/// One per upstream and shard.
#[derive(Debug)]
pub(super) struct RetryBudget {
    percent: u64,
    min_per_s: u64,
    /// Thousandths of a retry.
    balance: u64,
    counted_at: Instant,
}

impl RetryBudget {
    /// Allows `percent` of the requests and `min_per_s` on top to be retried.
    pub(super) fn new(percent: u32, min_per_s: u32, now: Instant) -> Self {
        let min_per_s = u64::from(min_per_s);
        Self { percent: u64::from(percent), min_per_s, balance: min_per_s * RETRY, counted_at: now }
    }

    /// Changes the allowance; what was saved up stays within the new bound.
    pub(super) fn set(&mut self, percent: u32, min_per_s: u32) {
        self.percent = u64::from(percent);
        self.min_per_s = u64::from(min_per_s);
        self.balance = self.balance.min(self.balance_max());
    }

    /// A request was sent for the first time.
    pub(super) fn deposit(&mut self) {
        self.balance = (self.balance + self.percent * RETRY / 100).min(self.balance_max());
    }

    /// Whether a request may be sent again now.
    pub(super) fn withdraw(&mut self, now: Instant) -> bool {
        let since = now.since(self.counted_at);
        let earned = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_mul(self.min_per_s);
        if earned > 0 {
            self.counted_at = now;
            self.balance = self.balance.saturating_add(earned).min(self.balance_max());
        }
        let allowed = self.balance >= RETRY;
        if allowed {
            self.balance -= RETRY;
        }
        allowed
    }

    /// A burst of failures may spend ten seconds' minimum, or a hundred requests' share, at once.
    fn balance_max(&self) -> u64 {
        (self.min_per_s * SAVED_S * RETRY).max(self.percent * RETRY)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_quiet_upstream_allows_its_minimum() {
        let start = Instant::START;
        let mut budget = RetryBudget::new(20, 3, start);
        let allowed = (0..10).filter(|_| budget.withdraw(start)).count();
        assert_eq!(allowed, 3);
        assert!(budget.withdraw(start + Duration::from_secs(1)));
    }

    #[test]
    fn a_busy_upstream_allows_a_share() {
        let start = Instant::START;
        let mut budget = RetryBudget::new(20, 0, start);
        for _ in 0..50 {
            budget.deposit();
        }
        let allowed = (0..50).filter(|_| budget.withdraw(start)).count();
        assert_eq!(allowed, 10);
    }

    #[test]
    fn saving_up_is_bounded() {
        let start = Instant::START;
        let mut budget = RetryBudget::new(20, 3, start);
        for _ in 0..1_000_000 {
            budget.deposit();
        }
        let later = start + Duration::from_hours(24);
        let allowed = (0..1000).filter(|_| budget.withdraw(later)).count();
        assert_eq!(allowed, 30);
    }
}

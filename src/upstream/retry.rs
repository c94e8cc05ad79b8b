//! Whether a request may be sent again, when, and how many may be: a share of those sent, and never fewer than a few a
//! second. Pure: time and chance are arguments.
//!
//! Without a budget retries multiply the load of a backend that is failing under load (linkerd, Envoy: the same idea).

use std::time::Duration;

use super::Failure;
use crate::{
    config::RetryOn,
    proto::head::{Known, ResponseHead},
    shard::Instant,
};

/// Retries that a quiet upstream may save up, in seconds of its allowance.
const SAVED_S: u64 = 10;
/// One retry, in the unit of the account.
const RETRY: u64 = 1_000_000;

/// What is tried again. The route's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryRules {
    /// A bit for each reason.
    reasons: u8,
    /// How long one attempt may take, where another one may follow it.
    pub per_try_timeout: Option<Duration>,
}

impl RetryRules {
    /// For these reasons, after this long.
    pub fn new(reasons: &[RetryOn], per_try_timeout: Option<Duration>) -> Self {
        let reasons = reasons.iter().fold(0, |bits, reason| bits | 1 << *reason as u8);
        Self { reasons, per_try_timeout }
    }

    pub(super) fn has(self, reason: RetryOn) -> bool {
        self.reasons & (1 << reason as u8) != 0
    }

    /// Whether an answer with this status is a reason.
    #[inline]
    pub(super) fn of_status(self, status: u16) -> Option<RetryOn> {
        let reason = match status {
            502 => RetryOn::BadGateway,
            503 => RetryOn::Unavailable,
            504 => RetryOn::GatewayTimeout,
            _ => return None,
        };
        Some(reason).filter(|reason| self.has(*reason))
    }
}

/// What an attempt has done, for the one place that decides whether there may be another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Tried {
    /// The method may be repeated (RFC 9110 §9.2.2).
    pub(super) is_idempotent: bool,
    /// A backend may have a byte of the request.
    pub(super) was_sent: bool,
    /// A byte of its body was taken, and is here no more.
    pub(super) is_body_gone: bool,
    /// A byte of an answer has come.
    pub(super) has_answered: bool,
}

impl Tried {
    /// Whether the request may be sent again for this reason without being carried out twice, and as it was.
    ///
    /// RFC 9110 §9.2.2: one that is not idempotent is never sent again once a backend may have it. Half an answer is no
    /// reason; a whole one that says that there is none, may be.
    pub(super) fn is_repeatable(self, reason: RetryOn) -> bool {
        let is_answer = matches!(reason, RetryOn::BadGateway | RetryOn::Unavailable | RetryOn::GatewayTimeout);
        let is_harmless = self.is_idempotent || !(self.was_sent || self.has_answered);
        !self.is_body_gone && is_harmless && (is_answer || !self.has_answered)
    }
}

/// How long an attempt might take.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptTime {
    pub(super) began: Instant,
    /// When it was given up, whatever else.
    pub(super) limit: Instant,
    /// Of any such attempt.
    pub(super) answer_timeout: Duration,
}

impl AttemptTime {
    /// Whether it failed since it had less time than any such attempt has.
    pub(super) fn is_cut_short(self, failure: &Failure, connect_timeout: Duration) -> bool {
        let own = match failure {
            Failure::TimedOut => self.answer_timeout,
            Failure::Connect(_) if failure.is_of_time() => connect_timeout,
            _ => return false,
        };
        self.limit < self.began + own
    }
}

/// How long to wait before a retry. From the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause is up to this.
    pub first: Duration,
    /// None is longer.
    pub max: Duration,
}

impl Backoff {
    /// A pause before the n-th retry, from 1: anything up to a bound that doubles ("full jitter": whoever failed together
    /// comes back apart).
    pub(super) fn pause(self, nth: u32, rng: &mut fastrand::Rng) -> Duration {
        let bound = self.first.saturating_mul(1 << nth.saturating_sub(1).min(16)).min(self.max);
        let us = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(rng.u64(..us.saturating_add(1)))
    }
}

/// For how long an answer asks to be let alone; nothing where it names a date or anything else.
pub(super) fn retry_after(answer: &ResponseHead) -> Duration {
    let seconds = answer.value(Known::RetryAfter).and_then(|value| std::str::from_utf8(value).ok());
    Duration::from_secs(seconds.and_then(|seconds| seconds.parse::<u32>().ok()).unwrap_or(0).into())
}

/// One per upstream and shard.
///
/// The share is of the shard's own requests, so that of all shards together it is the same. The minimum of the process is
/// divided: a shard earns its part of it, a fraction of a retry a second perhaps, but it may save up whole ones. It begins
/// with all that it may save up: an instance that fails costs each shard several requests until it is left out, and none of
/// them is to fail because the shard is new, or has little to do.
#[derive(Debug)]
pub(super) struct RetryBudget {
    percent: u64,
    /// Thousandths of a retry that are earned in a second.
    min_milli_per_s: u64,
    /// Millionths of a retry.
    balance: u64,
    counted_at: Instant,
}

impl RetryBudget {
    /// Allows `percent` of the requests to be retried, and on top so many thousandths of a request each second.
    pub(super) fn new(percent: u32, min_milli_per_s: u32, now: Instant) -> Self {
        let (percent, min_milli_per_s) = (u64::from(percent), u64::from(min_milli_per_s));
        let mut budget = Self { percent, min_milli_per_s, balance: 0, counted_at: now };
        budget.balance = budget.balance_max();
        budget
    }

    /// Changes the allowance; what was saved up stays within the new bound.
    pub(super) fn set(&mut self, percent: u32, min_milli_per_s: u32) {
        self.percent = u64::from(percent);
        self.min_milli_per_s = u64::from(min_milli_per_s);
        self.balance = self.balance.min(self.balance_max());
    }

    /// A request was sent for the first time.
    pub(super) fn deposit(&mut self) {
        self.balance = (self.balance + self.percent * RETRY / 100).min(self.balance_max());
    }

    /// Whether a request may be sent again now.
    pub(super) fn withdraw(&mut self, now: Instant) -> bool {
        let since = now.since(self.counted_at);
        let earned = u64::try_from(since.as_micros()).unwrap_or(u64::MAX).saturating_mul(self.min_milli_per_s) / 1000;
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

    /// A burst of failures may spend ten seconds' minimum, or a hundred requests' share, at once; and always one.
    fn balance_max(&self) -> u64 {
        let saved = (self.min_milli_per_s * SAVED_S * RETRY / 1000).max(self.percent * RETRY);
        if saved == 0 { 0 } else { saved.max(RETRY) }
    }
}

#[cfg(test)]
#[expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_safe_to_repeat_is_decided_here() {
        let mut table = String::new();
        for bits in 0..16_u8 {
            let [is_idempotent, was_sent, is_body_gone, has_answered] = [8, 4, 2, 1].map(|bit| bits & bit != 0);
            let tried = Tried { is_idempotent, was_sent, is_body_gone, has_answered };
            let reasons = RetryOn::ALL.into_iter().filter(|reason| tried.is_repeatable(*reason)).map(RetryOn::name);
            let words = [
                (is_idempotent, "idempotent"),
                (was_sent, "sent"),
                (is_body_gone, "body gone"),
                (has_answered, "answered"),
            ];
            let words: Vec<_> = words.into_iter().filter_map(|(is_so, word)| is_so.then_some(word)).collect();
            let reasons: Vec<_> = reasons.collect();
            let reasons = if reasons.is_empty() { "never".to_owned() } else { reasons.join(" ") };
            table.extend([words.join(", "), ": ".to_owned(), reasons, "\n".to_owned()]);
        }
        expect![[r#"
            : connect reset timeout 502 503 504
            answered: never
            body gone: never
            body gone, answered: never
            sent: never
            sent, answered: never
            sent, body gone: never
            sent, body gone, answered: never
            idempotent: connect reset timeout 502 503 504
            idempotent, answered: 502 503 504
            idempotent, body gone: never
            idempotent, body gone, answered: never
            idempotent, sent: connect reset timeout 502 503 504
            idempotent, sent, answered: 502 503 504
            idempotent, sent, body gone: never
            idempotent, sent, body gone, answered: never
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn only_what_is_named_is_a_reason() {
        let rules = RetryRules::new(&[RetryOn::Connect, RetryOn::Unavailable], None);
        let named: Vec<_> = RetryOn::ALL.into_iter().filter(|reason| rules.has(*reason)).collect();
        assert_eq!(named, [RetryOn::Connect, RetryOn::Unavailable]);
        let statuses: Vec<_> = (100..1000).filter(|status| rules.of_status(*status).is_some()).collect();
        assert_eq!(statuses, [503]);
        assert!(RetryOn::ALL.into_iter().all(|reason| !RetryRules::default().has(reason)));
    }

    #[test]
    fn pauses_are_anything_up_to_a_bound_that_doubles() {
        let ms = Duration::from_millis;
        let backoff = Backoff { first: ms(25), max: ms(250) };
        let mut rng = fastrand::Rng::with_seed(7);
        for (nth, bound) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (40, 250), (u32::MAX, 250)] {
            let pauses: Vec<_> = (0..1000).map(|_| backoff.pause(nth, &mut rng)).collect();
            assert!(pauses.iter().all(|pause| *pause <= ms(bound)), "{nth}");
            assert!(pauses.iter().any(|pause| *pause < ms(bound) / 10), "{nth}: some come back at once");
            assert!(pauses.iter().any(|pause| *pause > ms(bound) * 9 / 10), "{nth}");
        }
        let at_once = Backoff { first: Duration::ZERO, max: ms(250) };
        assert_eq!(at_once.pause(3, &mut rng), Duration::ZERO);
    }

    #[test]
    fn an_answer_says_for_how_long() {
        for (value, seconds) in [
            ("1", 1),
            ("120", 120),
            ("0", 0),
            ("-1", 0),
            ("soon", 0),
            ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
            ("99999999999", 0),
        ] {
            let mut answer = ResponseHead::new(503, Vec::new(), Vec::new());
            answer.push(Known::RetryAfter, b"Retry-After", value.as_bytes());
            assert_eq!(retry_after(&answer), Duration::from_secs(seconds), "{value}");
        }
        assert_eq!(retry_after(&ResponseHead::new(503, Vec::new(), Vec::new())), Duration::ZERO);
    }

    /// How many of so many it allows at once.
    fn allowed(budget: &mut RetryBudget, now: Instant, wanted: usize) -> usize {
        (0..wanted).filter(|_| budget.withdraw(now)).count()
    }

    #[test]
    fn it_begins_with_what_it_may_save_up_and_earns_its_minimum_and_its_share() {
        let start = Instant::START;
        let s = Duration::from_secs;
        let mut budget = RetryBudget::new(0, 3000, start);
        assert_eq!(allowed(&mut budget, start, 100), 30, "ten seconds' minimum");
        assert_eq!(allowed(&mut budget, start + s(1), 100), 3);
        let mut budget = RetryBudget::new(20, 0, start);
        assert_eq!(allowed(&mut budget, start, 100), 20, "a hundred requests' share");
        (0..50).for_each(|_| budget.deposit());
        assert_eq!(allowed(&mut budget, start + s(1000), 100), 10);
        assert!(!RetryBudget::new(0, 0, start).withdraw(start + s(1000)));
    }

    #[test]
    fn a_shard_of_many_earns_whole_ones_too() {
        let start = Instant::START;
        // 3 a second for 64 shards.
        let mut budget = RetryBudget::new(0, 47, start);
        assert_eq!(allowed(&mut budget, start, 10), 1);
        assert!(!budget.withdraw(start + Duration::from_secs(21)));
        assert!(budget.withdraw(start + Duration::from_secs(22)));
        assert_eq!(allowed(&mut budget, start + Duration::from_hours(1), 10), 1, "and saves up one at least");
    }

    #[test]
    fn saving_up_is_bounded() {
        let start = Instant::START;
        let mut budget = RetryBudget::new(20, 3000, start);
        for _ in 0..1_000_000 {
            budget.deposit();
        }
        assert_eq!(allowed(&mut budget, start + Duration::from_hours(24), 1000), 30);
    }

    proptest! {
        /// Over any time: no more than what it begins with, the share of the requests, and the minimum for the time.
        #[test]
        fn it_is_never_exceeded(
            percent in 0_u32..=100,
            milli in 0_u32..=10_000,
            steps in proptest::collection::vec((any::<bool>(), 0_u64..200), 1..2000),
        ) {
            let (mut now, start) = (Instant::START, Instant::START);
            let mut budget = RetryBudget::new(percent, milli, now);
            let (mut requests, mut retries) = (0_u64, 0_u64);
            for (is_request, ms) in steps {
                now += Duration::from_millis(ms);
                if is_request {
                    budget.deposit();
                    requests += 1;
                } else {
                    retries += u64::from(budget.withdraw(now));
                }
                let elapsed_ms = u64::try_from(now.since(start).as_millis()).expect("short");
                let begun = (u64::from(milli) * SAVED_S * 1000).max(u64::from(percent) * RETRY);
                let begun = if begun > 0 { begun.max(RETRY) } else { 0 };
                let allowed = begun + requests * u64::from(percent) * 10_000 + elapsed_ms * u64::from(milli);
                prop_assert!(retries * RETRY <= allowed, "{retries} of {requests} in {elapsed_ms} ms");
            }
        }
    }
}

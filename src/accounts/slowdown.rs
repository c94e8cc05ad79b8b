//! How failed logins slow down. A pure core: time is an argument.
//!
//! It counts by account *and* address: whoever guesses waits, and the account's owner, who calls from elsewhere, does
//! not. Accounts that do not exist are counted alike, so that a wait tells nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use crate::{net, shard::Instant};

/// Without a failure for so long, and twice the last wait on top, the failures are forgotten.
const QUIET: Duration = Duration::from_mins(1);
/// The first wait; each failure doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest: a guess each five minutes is slow enough, and nobody who remembers waits longer.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// An account and an address, as a number that nobody can aim at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttemptKey(u64, u64);

/// Whether a login may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Now; and it is under way until it is told how it ended.
    Go,
    /// Not before others of the same key have ended: as many are under way as there are failures left.
    Wait,
    /// Not before this has passed.
    Later(Duration),
}

/// What failed lately. One per process, on the bridge.
#[derive(Debug)]
pub struct Slowdown {
    /// Failures in a row without a wait.
    free: u32,
    entries_max: usize,
    entries: HashMap<AttemptKey, FailedLogins>,
    hashers: [RandomState; 2],
}

#[derive(Clone, Copy, Debug)]
struct FailedLogins {
    failures: u32,
    under_way: u32,
    /// When the last of them failed.
    failed_at: Instant,
}

impl FailedLogins {
    /// From the last failure on.
    fn wait(&self, free: u32) -> Duration {
        match self.failures.checked_sub(free) {
            None => Duration::ZERO,
            Some(more) => FIRST_WAIT.saturating_mul(1 << more.min(16)).min(LONGEST_WAIT),
        }
    }

    fn is_forgotten(&self, now: Instant, free: u32) -> bool {
        self.under_way == 0 && now.since(self.failed_at) > QUIET + 2 * self.wait(free)
    }
}

impl Slowdown {
    /// With so many failures in a row without a wait, and room for so many accounts and addresses.
    pub fn new(free: u32, entries_max: usize) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        Self { free: free.max(1), entries_max: entries_max.max(8), entries: HashMap::new(), hashers }
    }

    /// The key of an account (by its normal e-mail address) and an address. A client has a whole /64 of IPv6.
    pub fn key(&self, email: &str, address: IpAddr) -> AttemptKey {
        let network = net::network(address).get();
        let [one, other] = self.hashers.each_ref().map(|hasher| hasher.hash_one((email, network)));
        AttemptKey(one, other)
    }

    /// Whether a login may be tried now.
    pub fn admit(&mut self, now: Instant, key: AttemptKey) -> Admission {
        let free = self.free;
        if !self.entries.contains_key(&key) {
            self.make_room(now);
        }
        let fresh = FailedLogins { failures: 0, under_way: 0, failed_at: now };
        let entry = self.entries.entry(key).or_insert(fresh);
        if entry.is_forgotten(now, free) {
            *entry = fresh;
        }
        let wait = (entry.failed_at + entry.wait(free)).since(now);
        if !wait.is_zero() {
            return Admission::Later(wait);
        }
        if entry.under_way >= free.saturating_sub(entry.failures).max(1) {
            return Admission::Wait;
        }
        entry.under_way += 1;
        Admission::Go
    }

    /// One that was admitted had the wrong password.
    pub fn failed(&mut self, now: Instant, key: AttemptKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.under_way = entry.under_way.saturating_sub(1);
        entry.failures = entry.failures.saturating_add(1);
        entry.failed_at = now;
    }

    /// One that was admitted had the right one: what failed before is forgiven.
    pub fn succeeded(&mut self, key: AttemptKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.failures = 0;
        }
        self.withdrawn(key);
    }

    /// One that was admitted came to no end: its client left, or a store is away.
    pub fn withdrawn(&mut self, key: AttemptKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.under_way = entry.under_way.saturating_sub(1);
            if entry.under_way == 0 && entry.failures == 0 {
                self.entries.remove(&key);
            }
        }
    }

    /// How many accounts and addresses are remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets what is due, and, where that is not enough, the eighth that failed longest ago: so a flood of made-up
    /// accounts costs the walk only now and then.
    fn make_room(&mut self, now: Instant) {
        if self.entries.len() < self.entries_max {
            return;
        }
        let free = self.free;
        self.entries.retain(|_, entry| !entry.is_forgotten(now, free));
        if self.entries.len() <= self.entries_max - self.entries_max / 8 {
            return;
        }
        let idle = self.entries.values().filter(|entry| entry.under_way == 0);
        let mut failed_at: Vec<Instant> = idle.map(|entry| entry.failed_at).collect();
        let nth = (self.entries_max / 8).min(failed_at.len().saturating_sub(1));
        if !failed_at.is_empty() {
            let (_, cut, _) = failed_at.select_nth_unstable(nth);
            let cut = *cut;
            self.entries.retain(|_, entry| entry.under_way > 0 || entry.failed_at > cut);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn fail(slowdown: &mut Slowdown, now: Instant, key: AttemptKey) {
        assert_eq!(slowdown.admit(now, key), Admission::Go);
        slowdown.failed(now, key);
    }

    #[test]
    fn five_failures_are_free_then_each_waits_twice_as_long() {
        let mut slowdown = Slowdown::new(5, 100);
        let key = slowdown.key("a@b.c", address("127.0.0.1"));
        for n in 0..5 {
            fail(&mut slowdown, at(n), key);
        }
        let mut now = 4;
        for wait in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 300_000, 300_000] {
            assert_eq!(slowdown.admit(at(now), key), Admission::Later(Duration::from_millis(wait)));
            let almost = slowdown.admit(at(now + wait - 1), key);
            assert_eq!(almost, Admission::Later(Duration::from_millis(1)), "asking again does not make it longer");
            now += wait;
            fail(&mut slowdown, at(now), key);
        }
    }

    #[test]
    fn a_quiet_minute_or_the_right_password_forgives() {
        let mut slowdown = Slowdown::new(5, 100);
        let key = slowdown.key("a@b.c", address("127.0.0.1"));
        for _ in 0..4 {
            fail(&mut slowdown, at(0), key);
        }
        for _ in 0..5 {
            fail(&mut slowdown, at(60_001), key);
        }
        assert!(matches!(slowdown.admit(at(60_002), key), Admission::Later(_)));
        assert_eq!(slowdown.admit(at(62_000), key), Admission::Go);
        slowdown.succeeded(key);
        assert!(slowdown.is_empty());
        fail(&mut slowdown, at(62_001), key);
    }

    #[test]
    fn nobody_locks_somebody_else_out() {
        let mut slowdown = Slowdown::new(5, 100);
        let guesser = slowdown.key("a@b.c", address("2001:db8:1:2::1"));
        let neighbour = slowdown.key("a@b.c", address("2001:db8:1:2:ffff::9"));
        assert_eq!(guesser, neighbour, "one client has the whole /64");
        for _ in 0..5 {
            fail(&mut slowdown, at(0), guesser);
        }
        assert!(matches!(slowdown.admit(at(1), guesser), Admission::Later(_)));
        for (email, from) in [("a@b.c", "2001:db8:1:3::1"), ("a@b.c", "192.0.2.1"), ("d@e.f", "2001:db8:1:2::1")] {
            let other = slowdown.key(email, address(from));
            assert_eq!(slowdown.admit(at(1), other), Admission::Go, "{email} from {from}");
        }
        let mapped = slowdown.key("x@y.z", address("::ffff:192.0.2.1"));
        assert_eq!(mapped, slowdown.key("x@y.z", address("192.0.2.1")));
    }

    #[test]
    fn guesses_at_once_are_no_more_than_guesses_in_turn() {
        let mut slowdown = Slowdown::new(5, 100);
        let key = slowdown.key("a@b.c", address("127.0.0.1"));
        let admitted = (0..100).filter(|_| slowdown.admit(at(0), key) == Admission::Go).count();
        assert_eq!(admitted, 5);
        slowdown.failed(at(1), key);
        assert_eq!(slowdown.admit(at(1), key), Admission::Wait, "four are under way and may all fail");
        slowdown.succeeded(key);
        assert_eq!(slowdown.admit(at(1), key), Admission::Go);
        for _ in 0..4 {
            slowdown.failed(at(2), key);
        }
        slowdown.withdrawn(key);
        assert_eq!(slowdown.admit(at(2), key), Admission::Go);
        slowdown.failed(at(2), key);
        assert!(matches!(slowdown.admit(at(3), key), Admission::Later(_)));
        assert_eq!(slowdown.admit(at(1_002), key), Admission::Go);
        assert_eq!(slowdown.admit(at(1_002), key), Admission::Wait, "one at a time from then on");
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_what_is_under_way_stays(
            steps in prop::collection::vec((0_u32..200, 0_u8..4, 0_u64..30_000), 1..400),
        ) {
            let mut slowdown = Slowdown::new(5, 32);
            let (mut now, mut under_way) = (0, HashMap::<AttemptKey, u32>::new());
            for (account, how, passes) in steps {
                now += passes;
                let key = slowdown.key(&format!("{account}@b.c"), address("127.0.0.1"));
                if slowdown.admit(at(now), key) == Admission::Go {
                    match how {
                        0 => slowdown.succeeded(key),
                        1 | 2 => slowdown.failed(at(now), key),
                        _ if under_way.len() < 8 => *under_way.entry(key).or_default() += 1,
                        _ => slowdown.withdrawn(key),
                    }
                }
                prop_assert!(slowdown.len() <= 32);
                prop_assert!(under_way.keys().all(|key| slowdown.entries.contains_key(key)));
            }
        }
    }
}

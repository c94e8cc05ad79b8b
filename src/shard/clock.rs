//! The only clock: monotonic instants for deadlines and durations, and the time of day for logs.
//!
//! Cores take an [`Instant`] as an argument and never ask; whoever drives them asks here, once per turn.

use std::cell::Cell;
use std::ops::{Add, AddAssign, Sub};
use std::sync::OnceLock;
use std::time::Duration;

/// A point in time: nanoseconds since the process first looked at the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// Before every other instant.
    pub const START: Self = Self(0);
    /// After every other instant: a deadline that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The instant so many nanoseconds after the start; what tests turn the clock with.
    #[inline]
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since the start.
    #[inline]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to this; zero when `earlier` is later.
    #[inline]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at [`Instant::NEVER`].
    #[inline]
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for Instant {
    #[inline]
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    /// Saturates at [`Instant::START`].
    #[inline]
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// See [`Instant::since`].
    #[inline]
    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

/// Cheaper than `Duration::as_nanos`, which works on 128 bits.
#[inline]
fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// Monotonic time.
#[inline]
pub fn now() -> Instant {
    Instant(nanos(monotonic().saturating_duration_since(start())))
}

thread_local! {
    /// When this thread's executor was last told of events; `START` where it does not say.
    static TURN: Cell<Instant> = const { Cell::new(Instant::START) };
}

/// When the events that are being handled were seen: no system call, no look at the clock, and the wait behind the tasks
/// before is in what is measured from here. Where the runtime does not say it is now.
#[inline]
pub fn turn() -> Instant {
    match TURN.get() {
        Instant::START => now(),
        turn => turn,
    }
}

/// A turn begins, or, with `START`, nobody says any more when one does.
pub(super) fn set_turn(at: Instant) {
    TURN.set(at);
}

/// Time of day: the time since 1970-01-01T00:00:00Z.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub fn unix_now() -> Duration {
    // A clock set before 1970 is a broken machine; its log lines may as well say 1970.
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// The time of day at an instant of the last second or so. The two clocks are compared once a second, so that a request
/// need not read both.
#[inline]
pub fn to_unix(instant: Instant) -> Duration {
    thread_local! {
        /// When they were compared, and the time of day then.
        static COMPARED: Cell<(Instant, Duration)> = const { Cell::new((Instant::START, Duration::ZERO)) };
    }
    let (at, unix) = COMPARED.get();
    if unix.is_zero() || instant.since(at) >= Duration::from_secs(1) {
        COMPARED.set((now(), unix_now()));
        return unix_now();
    }
    unix + instant.since(at)
}

/// The instant as the standard library counts, for the runtime's timers.
pub(super) fn to_std(instant: Instant) -> std::time::Instant {
    start() + Duration::from_nanos(instant.0)
}

#[inline]
fn start() -> std::time::Instant {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    *START.get_or_init(monotonic)
}

#[inline]
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn monotonic() -> std::time::Instant {
    std::time::Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let second = Duration::from_secs(1);
        assert_eq!(Instant::NEVER + second, Instant::NEVER);
        assert_eq!(Instant::START + Duration::MAX, Instant::NEVER);
        assert_eq!(Instant::START - second, Instant::START);
        assert_eq!(Instant::START - Instant::NEVER, Duration::ZERO);
        assert_eq!((Instant::START + second).as_nanos(), 1_000_000_000);
        assert_eq!(Instant::from_nanos(1_500) - Instant::from_nanos(500), Duration::from_micros(1));
    }

    #[test]
    fn it_does_not_run_backwards() {
        let first = now();
        let second = now();
        assert!(second >= first);
        assert!(to_std(second) >= to_std(first));
    }

    #[test]
    fn a_turn_stands_still_until_the_next() {
        assert!(turn() >= Instant::START, "without an executor it is the clock's");
        set_turn(Instant::from_nanos(7));
        assert_eq!((turn(), turn()), (Instant::from_nanos(7), Instant::from_nanos(7)));
        set_turn(Instant::START);
        let before = now();
        assert!(turn() >= before);
    }

    #[test]
    fn the_time_of_day_is_after_this_was_written() {
        assert!(unix_now() > Duration::from_secs(1_760_000_000));
    }
}

//! How long a backend's answers take: what was worst of late counts at once, what is better only with time (peak EWMA).

use std::time::Duration;

use crate::shard::Instant;

/// A sample of so long ago counts 1/e of what it did. A request that waited 15 s in vain is forgotten after half a minute, next
/// to answers within some milliseconds; one that is ten times slower is tried again after six seconds.
const DECAY: Duration = Duration::from_secs(3);

/// What was told longer ago is not of late: less than a hundredth of it is left then.
const OF_LATE: Duration = Duration::from_secs(15);

/// One per backend and shard.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::upstream) struct Latency {
    average_us: f32,
    told_at: Option<Instant>,
}

impl Latency {
    /// An answer took this long, or none came in it.
    pub(in crate::upstream) fn tell(&mut self, now: Instant, waited: Duration) {
        let sample = waited.as_secs_f32() * 1e6;
        let kept = self.told_at.map_or(0.0, |told_at| decay(now.since(told_at)));
        self.average_us =
            if sample >= self.average_us { sample } else { self.average_us * kept + sample * (1.0 - kept) };
        self.told_at = Some(now);
    }

    /// What the next one may take, in microseconds; 0 while nothing is known. It falls with time while nothing is told, so
    /// that whoever was slow is tried again.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates, and is never negative")]
    pub(in crate::upstream) fn us(&self, now: Instant) -> u32 {
        let Some(told_at) = self.told_at else { return 0 };
        let age = now.since(told_at);
        // A busy backend is told of all the time: no root and no power for what is new.
        let kept = if age < DECAY / 64 { 1.0 } else { decay(age) };
        (self.average_us * kept).max(1.0) as u32
    }

    /// How long answers took of late, in microseconds; 0 while nothing is known of that. Unlike what balancing goes by, it does
    /// not fall while nobody asks.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates, and is never negative")]
    pub(in crate::upstream) fn of_late_us(&self, now: Instant) -> u32 {
        match self.told_at {
            Some(told_at) if now.since(told_at) < OF_LATE => self.average_us.max(1.0) as u32,
            _ => 0,
        }
    }
}

fn decay(age: Duration) -> f32 {
    (-age.as_secs_f32() / DECAY.as_secs_f32()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_worse_counts_at_once_and_what_is_better_in_time() {
        let (mut latency, start) = (Latency::default(), Instant::START);
        assert_eq!(latency.us(start), 0);
        latency.tell(start, 10 * MS);
        assert_eq!(latency.us(start), 10_000);
        latency.tell(start + MS, 100 * MS);
        assert_eq!(latency.us(start + MS), 100_000);
        let mut now = start + MS;
        for _ in 0..DECAY.as_millis() {
            now += MS;
            latency.tell(now, 10 * MS);
        }
        let later = latency.us(now);
        assert!((40_000..46_000).contains(&later), "10 + 90 / e ms, not {later} µs");
    }

    #[test]
    fn of_one_that_rests_nothing_is_known_before_long() {
        let (mut latency, start) = (Latency::default(), Instant::START);
        assert_eq!(latency.of_late_us(start), 0);
        latency.tell(start, 20 * MS);
        let told = |after| latency.of_late_us(start + after);
        assert_eq!([MS, DECAY, DECAY * 4, OF_LATE, Duration::from_hours(1)].map(told), [20_000, 20_000, 20_000, 0, 0]);
    }

    #[test]
    fn who_is_not_asked_is_forgiven() {
        let (mut latency, start) = (Latency::default(), Instant::START);
        latency.tell(start, 1000 * MS);
        assert_eq!(latency.us(start + DECAY), 367_879);
        assert_eq!(latency.us(start + Duration::from_hours(1)), 1);
    }
}

//! Which requests are refused at once, because they would be answered too late. A pure core: time and load are arguments.
//!
//! Two things make a request late. Its shard may be behind with its tasks ([`Queue`]); and its upstream may have more to do
//! than it can ([`Forecast`]), which shows at this end as answers that take longer the more requests wait for theirs.

#[cfg(test)]
mod simulation;

use std::time::Duration;

use crate::shard::Instant;

/// Of the time that a request has, the answer is to come within this share: what is predicted is not exact.
const TARGET: f32 = 0.8;
/// An answer may tell of a queue only if it took this share of its request's time, and this multiple of what is usual.
const NOTICED: f32 = 0.3;
const UNUSUAL: f32 = 2.0;
/// So many answers more that tell of a queue than such as do not: before that, nobody is refused for a slow answer or two.
const SIGNS: u8 = 8;
const SIGNS_MAX: u8 = 16;
/// Without a sign for so long there is no queue.
const SIGNS_LAST: Duration = Duration::from_secs(1);
/// How far one answer moves what a place costs.
const STEP_UP: f32 = 1.1;
const STEP_DOWN: f32 = 0.7;
/// What is usual follows by so much a second: upwards slowly, or a queue that lasts would soon be usual.
const USUAL_UP_PER_S: f32 = 0.02;
const USUAL_DOWN_PER_S: f32 = 0.5;

/// How long an answer will take, by what an upstream did of late. One per upstream and shard.
///
/// While requests queue at an upstream, the time until an answer is in proportion to how many waited when the request was
/// sent, this one included: Little's law, with the upstream's rate as the constant. Each answer gives that constant anew, what a
/// *place* in the queue costs. Without a queue the time is the same for few and for many, and the quotient says nothing; so
/// first there have to be signs of one. Only requests with deadlines ask, and only their answers are told.
#[derive(Debug, Default)]
pub(super) struct Forecast {
    /// Microseconds for each request that waits.
    place_us: f32,
    /// How long answers usually take, in microseconds; 0 while that is not known.
    usual_us: f32,
    told_at: Instant,
    signs: u8,
    /// When a sign of a queue came last that counted.
    sign_at: Option<Instant>,
}

/// How long a request has waited for its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waited {
    /// The time that it had, when it was let in.
    pub(super) allowed: Duration,
    /// The time that it took, or after which it was given up.
    pub(super) taken: Duration,
    /// How many waited then, this one included.
    pub(super) waiting: u32,
    /// Whether it was answered.
    pub(super) is_answered: bool,
}

impl Forecast {
    /// Whether a request that has this much time will be answered in it, while so many others wait. With none it always may
    /// be: nothing else would tell when there is no queue any more.
    pub(super) fn admits(&self, now: Instant, left: Duration, waiting: u32) -> bool {
        let is_queueing = self.sign_at.is_some_and(|sign_at| now.since(sign_at) < SIGNS_LAST);
        !is_queueing || waiting == 0 || count(waiting + 1) * self.place_us <= us(left) * TARGET
    }

    /// A request that had a deadline was answered, or missed it.
    pub(super) fn tell(&mut self, now: Instant, waited: Waited) {
        let (taken, allowed) = (us(waited.taken).max(1.0), us(waited.allowed));
        let place_us = taken / count(waited.waiting.max(1));
        let is_late = !waited.is_answered || taken > allowed * TARGET;
        let is_unusual = self.usual_us > 0.0 && taken > self.usual_us * UNUSUAL && taken > allowed * NOTICED;
        if waited.is_answered {
            self.learn_usual(now, taken);
        }
        if is_late || is_unusual {
            self.signs = (self.signs + 1).min(SIGNS_MAX);
            let has_begun = self.sign_at.is_some_and(|sign_at| now.since(sign_at) < SIGNS_LAST);
            if self.signs >= SIGNS || has_begun {
                self.sign_at = Some(now);
            }
            self.place_us = match self.place_us {
                known if !has_begun || known == 0.0 => place_us,
                // Whoever gives up early has seen little: it says that a place costs more, never that it costs less.
                known if !waited.is_answered => place_us.clamp(known, known * STEP_UP),
                known => place_us.clamp(known * STEP_DOWN, known * STEP_UP),
            };
            return;
        }
        self.signs = self.signs.saturating_sub(1);
        if place_us < self.place_us {
            self.place_us = place_us.max(self.place_us * STEP_DOWN);
        } else if count(waited.waiting) * self.place_us > allowed * TARGET * TARGET {
            // It was in time with as many as are let in: one more each time round.
            let places = (allowed * TARGET / self.place_us).max(1.0);
            self.place_us /= 1.0 + 1.0 / (places * places);
        }
    }

    fn learn_usual(&mut self, now: Instant, taken: f32) {
        if self.usual_us == 0.0 {
            self.usual_us = taken;
        } else {
            let seconds = now.since(self.told_at).as_secs_f32().min(1.0);
            let (least, most) = (1.0 - USUAL_DOWN_PER_S * seconds, 1.0 + USUAL_UP_PER_S * seconds);
            self.usual_us = taken.clamp(self.usual_us * least, self.usual_us * most);
        }
        self.told_at = now;
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn count(requests: u32) -> f32 {
    requests as f32
}

fn us(time: Duration) -> f32 {
    time.as_secs_f32() * 1e6
}

/// Whether requests stand in line for their shard. One that stood still for a moment, or was not given its core, finds all
/// that came meanwhile late, and yet has no queue a moment later; so it is one only if it lasts (RFC 8289 has the same
/// idea).
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Since when every request has waited for too long.
    since: Option<Instant>,
}

impl Queue {
    /// Whether a request is let in that has waited for so long until its task ran.
    #[inline]
    pub(super) fn admits(&mut self, now: Instant, waited: Duration, max: Duration) -> bool {
        if waited <= max {
            self.since = None;
            return true;
        }
        let since = *self.since.get_or_insert(now);
        now.since(since) < max
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn answered(taken_ms: u32, waiting: u32) -> Waited {
        Waited { allowed: 200 * MS, taken: taken_ms * MS, waiting, is_answered: true }
    }

    /// Answers that come 1 ms apart.
    fn tell(forecast: &mut Forecast, now: &mut Instant, count: usize, waited: Waited) {
        for _ in 0..count {
            *now += MS;
            forecast.tell(*now, waited);
        }
    }

    #[test]
    fn without_signs_of_a_queue_all_are_let_in() {
        let (mut forecast, mut now) = (Forecast::default(), Instant::START);
        assert!(forecast.admits(now, MS, 1000), "nothing is known");
        tell(&mut forecast, &mut now, 100, answered(20, 3));
        assert!(forecast.admits(now, 200 * MS, 1000), "three at once were no matter");
        // Slow, and yet in time; whoever is that slow always is.
        let (mut forecast, mut now) = (Forecast::default(), Instant::START);
        tell(&mut forecast, &mut now, 100, answered(150, 1));
        assert!(forecast.admits(now, 200 * MS, 100));
        // Some that are late among many that are not.
        for _ in 0..50 {
            tell(&mut forecast, &mut now, 1, answered(190, 2));
            tell(&mut forecast, &mut now, 3, answered(20, 2));
        }
        assert!(forecast.admits(now, 200 * MS, 100));
    }

    #[test]
    fn with_a_queue_as_many_are_let_in_as_are_in_time() {
        let (mut forecast, mut now) = (Forecast::default(), Instant::START);
        tell(&mut forecast, &mut now, 50, answered(20, 16));
        tell(&mut forecast, &mut now, 50, answered(100, 80));
        let most = (0..1000).take_while(|waiting| forecast.admits(now, 200 * MS, *waiting)).count();
        assert!((120..136).contains(&most), "0.8 × 200 ms at 1.25 ms each are 128, not {most}");
        let most = (0..1000).take_while(|waiting| forecast.admits(now, 100 * MS, *waiting)).count();
        assert!((60..68).contains(&most), "half of that for who has half the time, not {most}");
        assert!(forecast.admits(now, MS, 0), "one is always let in");
        assert!(forecast.admits(now + SIGNS_LAST, MS, 1000), "what was a while ago says nothing");
    }

    #[test]
    fn whoever_gives_up_at_once_tells_nothing_of_the_queue() {
        let (mut forecast, mut now) = (Forecast::default(), Instant::START);
        tell(&mut forecast, &mut now, 50, answered(20, 16));
        tell(&mut forecast, &mut now, 50, answered(100, 80));
        let before = forecast.place_us;
        let hasty = Waited { allowed: MS, taken: MS, waiting: 80, is_answered: false };
        tell(&mut forecast, &mut now, 500, hasty);
        assert!((forecast.place_us - before).abs() < 1.0, "{before} µs, then {}", forecast.place_us);
        // And where there is no queue, nobody else is refused for such.
        let (mut forecast, mut now) = (Forecast::default(), Instant::START);
        tell(&mut forecast, &mut now, 500, Waited { waiting: 3, ..hasty });
        assert!(forecast.admits(now, 200 * MS, 100));
    }

    #[test]
    fn it_forgives_soon() {
        let (mut forecast, mut now) = (Forecast::default(), Instant::START);
        tell(&mut forecast, &mut now, 50, answered(20, 4));
        // Nothing was answered for a while.
        tell(&mut forecast, &mut now, 50, Waited { is_answered: false, ..answered(200, 4) });
        assert!(!forecast.admits(now, 200 * MS, 20));
        tell(&mut forecast, &mut now, 30, answered(20, 4));
        assert!(forecast.admits(now, 200 * MS, 20));
    }

    #[test]
    fn a_shard_that_stood_still_once_refuses_nobody_and_one_that_is_behind_does() {
        let (mut queue, mut now, max) = (Queue::default(), Instant::START, 100 * MS);
        // All that came while it stood still, in one go.
        for _ in 0..1000 {
            now += Duration::from_micros(50);
            assert!(queue.admits(now, 5000 * MS, max));
        }
        now += MS;
        assert!(queue.admits(now, MS, max));
        let mut let_in = 0;
        for _ in 0..1000 {
            now += MS;
            let_in += u32::from(queue.admits(now, 150 * MS, max));
        }
        assert_eq!(let_in, 100, "from the hundredth millisecond on it is a queue");
        assert!(queue.admits(now, MS, max));
    }

    proptest! {
        /// Whatever is told, it stays a number, and lets one in when none waits.
        #[test]
        fn it_never_shuts(
            steps in proptest::collection::vec((0_u64..10_000, 0_u64..10_000_000, 0_u64..10_000_000, 0_u32..5000, any::<bool>()), 1..300),
        ) {
            let (mut forecast, mut now) = (Forecast::default(), Instant::START);
            for (ms, allowed, taken, waiting, is_answered) in steps {
                now += Duration::from_millis(ms);
                let (allowed, taken) = (Duration::from_micros(allowed), Duration::from_micros(taken));
                forecast.tell(now, Waited { allowed, taken, waiting, is_answered });
                prop_assert!(forecast.place_us.is_finite() && forecast.place_us >= 0.0);
                prop_assert!(forecast.usual_us.is_finite() && forecast.usual_us >= 0.0);
                prop_assert!(forecast.admits(now, allowed, 0));
                let few = (0..5000).take_while(|waiting| forecast.admits(now, allowed, *waiting)).count();
                prop_assert!(few == 5000 || !forecast.admits(now, allowed, 5000), "more that wait are never better");
            }
        }
    }
}

//! Spans that wait: how they are gathered into requests, when each is sent and sent again, and when it is given up. Pure.

use std::{collections::VecDeque, time::Duration};

use hyper::body::Bytes;

use crate::{shard::Instant, telemetry::spans::SpanBatch};

/// How long a request that is not full waits for more spans.
const GATHER: Duration = Duration::from_millis(500);
/// Between the first two tries of a request; each further pause is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A collector that asks for a longer pause gets this one.
const ASKED_PAUSE_MAX: Duration = Duration::from_mins(5);
/// Spans that were tried for so long are given up, so that younger ones have their turn.
const TRIED_MAX: Duration = Duration::from_mins(1);

/// One per process.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Filled from the back.
    waiting: VecDeque<SpanBatch>,
    sending: Option<Sending>,
    /// When the back of the queue was begun.
    gathered_since: Instant,
    spans: usize,
    spans_max: usize,
    /// Tries in a row that failed.
    failures: u32,
    not_before: Instant,
}

/// A request that nobody has taken yet.
#[derive(Debug)]
struct Sending {
    body: Bytes,
    spans: usize,
    tried_since: Instant,
}

impl Queue {
    /// So many spans may wait.
    pub(super) fn set(&mut self, spans_max: usize) {
        self.spans_max = spans_max;
    }

    /// Spans that wait, those of the request under way included.
    pub(super) fn len(&self) -> usize {
        self.spans
    }

    /// Takes spans, and says how many found no room.
    pub(super) fn take(&mut self, now: Instant, batch: &SpanBatch) -> u64 {
        let room = self.spans_max.saturating_sub(self.spans);
        for span in batch.iter().take(room) {
            if self.waiting.back().is_none_or(SpanBatch::is_full) {
                self.waiting.push_back(SpanBatch::default());
                self.gathered_since = now;
            }
            if let Some(back) = self.waiting.back_mut() {
                back.push(&span);
            }
        }
        let taken = batch.len().min(room);
        self.spans += taken;
        (batch.len() - taken) as u64
    }

    /// When the next request is to be sent. In the end nobody waits for more spans.
    pub(super) fn poll_timeout(&self, is_closing: bool) -> Option<Instant> {
        let due = match (&self.sending, self.waiting.front()) {
            (Some(_), _) => Instant::START,
            (None, None) => return None,
            (None, Some(front)) if is_closing || self.waiting.len() > 1 || front.is_full() => Instant::START,
            (None, Some(_)) => self.gathered_since + GATHER,
        };
        Some(due.max(self.not_before))
    }

    /// The request that is sent now: the one that failed, or a new one.
    pub(super) fn begin(&mut self, now: Instant, encode: impl FnOnce(&SpanBatch) -> Bytes) -> Option<Bytes> {
        if self.sending.is_none() {
            let batch = self.waiting.pop_front()?;
            self.sending = Some(Sending { body: encode(&batch), spans: batch.len(), tried_since: now });
        }
        self.sending.as_ref().map(|sending| sending.body.clone())
    }

    /// The request was taken. How many spans it had.
    pub(super) fn taken(&mut self) -> u64 {
        self.failures = 0;
        self.not_before = Instant::START;
        self.end()
    }

    /// The request will never be taken. How many spans it had.
    pub(super) fn refused(&mut self, now: Instant) -> u64 {
        self.pause(now, None);
        self.end()
    }

    /// The request was not taken, this time. How many spans are given up.
    pub(super) fn failed(&mut self, now: Instant, asked: Option<Duration>) -> u64 {
        self.pause(now, asked);
        let is_over = self.sending.as_ref().is_some_and(|sending| now.since(sending.tried_since) >= TRIED_MAX);
        if is_over { self.end() } else { 0 }
    }

    /// Everything that waits is given up. How many spans that were.
    pub(super) fn clear(&mut self) -> u64 {
        let spans = self.spans;
        *self = Self { spans_max: self.spans_max, ..Self::default() };
        spans as u64
    }

    fn end(&mut self) -> u64 {
        let spans = self.sending.take().map_or(0, |sending| sending.spans);
        self.spans -= spans;
        spans as u64
    }

    /// Not at the same time as everybody else: up to a fifth later.
    fn pause(&mut self, now: Instant, asked: Option<Duration>) {
        let own = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        // Whoever asks for none, for ever, is not asked without a pause for ever.
        let pause = asked.map_or(own, |asked| asked.clamp(PAUSE_MIN, ASKED_PAUSE_MAX));
        self.not_before = now + pause + pause.mul_f64(fastrand::f64() / 5.0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy as _, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::*;
    use crate::telemetry::spans::{BATCH_SPANS, Span, SpanFacts, SpanTexts};

    const SECOND: Duration = Duration::from_secs(1);

    fn batch(spans: usize) -> SpanBatch {
        let mut batch = SpanBatch::default();
        for _ in 0..spans {
            batch.push(&Span { facts: SpanFacts::BLANK, texts: SpanTexts::default() });
        }
        batch
    }

    fn queue(spans_max: usize) -> Queue {
        let mut queue = Queue::default();
        queue.set(spans_max);
        queue
    }

    fn begin(queue: &mut Queue, now: Instant) -> usize {
        queue.begin(now, |batch| vec![0; batch.len()].into()).map_or(0, |body| body.len())
    }

    #[test]
    fn few_spans_wait_for_more_and_many_do_not() {
        let (mut queue, now) = (queue(1000), Instant::START + SECOND);
        assert_eq!(queue.poll_timeout(false), None);
        assert_eq!(queue.take(now, &batch(3)), 0);
        assert_eq!((queue.poll_timeout(false), queue.poll_timeout(true)), (Some(now + GATHER), Some(Instant::START)));
        queue.take(now, &batch(BATCH_SPANS));
        assert_eq!(queue.poll_timeout(false), Some(Instant::START));
        assert_eq!(begin(&mut queue, now), BATCH_SPANS);
        assert_eq!((queue.taken(), queue.len()), (BATCH_SPANS as u64, 3));
        assert_eq!(queue.poll_timeout(false), Some(now + GATHER));
    }

    #[test]
    fn what_fails_is_sent_again_ever_more_rarely_and_in_the_end_given_up() {
        let (mut queue, mut now) = (queue(1000), Instant::START + SECOND);
        queue.take(now, &batch(2));
        queue.take(now, &batch(BATCH_SPANS));
        let (mut given_up, mut pauses) = (0, Vec::new());
        while given_up == 0 {
            assert_eq!(begin(&mut queue, now), BATCH_SPANS, "the same again");
            given_up = queue.failed(now, None);
            let due = queue.poll_timeout(true).expect("more waits");
            pauses.push(due.since(now));
            now = due;
        }
        assert_eq!((given_up, queue.len()), (BATCH_SPANS as u64, 2));
        // Each up to a fifth longer.
        let least = [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs);
        assert_eq!(pauses.len(), least.len());
        assert!(pauses.iter().zip(least).all(|(pause, least)| (least..=least * 6 / 5).contains(pause)), "{pauses:?}");
        // The next does not begin anew.
        assert_eq!(begin(&mut queue, now), 2);
        queue.failed(now, None);
        assert!(queue.poll_timeout(true).expect("it waits").since(now) >= PAUSE_MAX);
        begin(&mut queue, now);
        assert_eq!((queue.taken(), queue.poll_timeout(true)), (2, None));
    }

    #[test]
    fn a_collector_says_how_long_to_wait_within_reason() {
        for (asked, least, most) in [(0, 1, 1), (7, 7, 9), (86_400, 300, 360)] {
            let (mut queue, now) = (queue(1000), Instant::START + SECOND);
            queue.take(now, &batch(2));
            begin(&mut queue, now);
            assert_eq!(queue.failed(now, Some(Duration::from_secs(asked))), 0);
            let pause = queue.poll_timeout(true).expect("it waits").since(now).as_secs();
            assert!((least..=most).contains(&pause), "{asked}: {pause}");
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take(usize),
        Begin,
        Taken,
        Failed,
        Refused,
        Wait(u64),
    }

    proptest! {
        #[test]
        fn spans_are_taken_dropped_or_waiting_and_never_more_than_may(
            steps in prop::collection::vec(prop_oneof![
                (0..=BATCH_SPANS).prop_map(Step::Take),
                Just(Step::Begin), Just(Step::Taken), Just(Step::Failed), Just(Step::Refused),
                (0_u64..40).prop_map(Step::Wait),
            ], 0..200),
        ) {
            const MAX: usize = 1024;
            let (mut queue, mut now) = (queue(MAX), Instant::START);
            let (mut told, mut gone, mut is_sending) = (0, 0, false);
            for step in steps {
                match step {
                    Step::Take(spans) => {
                        told += spans as u64;
                        gone += queue.take(now, &batch(spans));
                    }
                    Step::Begin => is_sending = begin(&mut queue, now) > 0,
                    Step::Taken if is_sending => gone += queue.taken(),
                    Step::Failed if is_sending => gone += queue.failed(now, None),
                    Step::Refused if is_sending => gone += queue.refused(now),
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                    _ => continue,
                }
                is_sending &= !matches!(step, Step::Taken | Step::Failed | Step::Refused);
                prop_assert!(queue.len() <= MAX);
                prop_assert_eq!(told, gone + queue.len() as u64);
                prop_assert_eq!(queue.poll_timeout(true).is_some(), queue.len() > 0);
            }
        }
    }
}

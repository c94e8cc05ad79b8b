//! Waiting for time to pass: sleeps, and one cheap deadline per connection.
//!
//! Only futures over poll I/O may be cut off by a deadline. A dropped accept or connect of the runtime's own leaks its
//! descriptor on io_uring; `shard::stream` and `shard::listener` do both by readiness.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

/// A timer of the runtime's.
pub use monoio::time::Sleep;

use super::clock::{self, Instant};

/// Completes when `duration` has passed, to the runtime's millisecond.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(clock::now() + duration)
}

/// Completes at `instant`, to the runtime's millisecond.
pub fn sleep_until(instant: Instant) -> Sleep {
    monoio::time::sleep_until(to_runtime(instant))
}

/// The runtime's wheel turns once in about two years; nothing here waits for longer than one.
fn to_runtime(instant: Instant) -> monoio::time::Instant {
    const YEAR: Duration = Duration::from_hours(366 * 24);
    let instant = if instant == Instant::NEVER { clock::now() + YEAR } else { instant };
    monoio::time::Instant::from_std(clock::to_std(instant))
}

/// One deadline that is moved often and seldom met. One per connection.
///
/// Moving it later, or clearing it, is a plain store: the timer that is armed fires early, sees that there is time left
/// and arms itself again. It costs a timer operation per period, not per request.
#[derive(Debug)]
pub struct Deadline {
    /// When it is due; `NEVER` when it is clear.
    at: Instant,
    /// When the timer fires; means nothing without one.
    armed: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Default for Deadline {
    fn default() -> Self {
        Self::new()
    }
}

impl Deadline {
    /// A clear deadline; it holds no timer until it is polled with a time set.
    pub const fn new() -> Self {
        Self { at: Instant::NEVER, armed: Instant::NEVER, timer: None }
    }

    /// Due at `at`.
    #[inline]
    pub fn set(&mut self, at: Instant) {
        self.at = at;
    }

    /// Due `duration` from now.
    #[inline]
    pub fn set_after(&mut self, duration: Duration) {
        self.at = clock::now() + duration;
    }

    /// Not due.
    #[inline]
    pub fn clear(&mut self) {
        self.at = Instant::NEVER;
    }

    /// When it is due; `None` when it is clear.
    #[inline]
    pub fn at(&self) -> Option<Instant> {
        (self.at != Instant::NEVER).then_some(self.at)
    }

    /// Ready once the deadline has passed, and again at every later poll until it is moved.
    ///
    /// It must be polled after it was set, else nothing wakes the task, and always by the same task: the runtime's timers
    /// keep the first waker that they see.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.at == Instant::NEVER {
            return Poll::Pending;
        }
        loop {
            match &mut self.timer {
                Some(timer) if self.armed <= self.at => {
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    if self.armed == self.at {
                        return Poll::Ready(());
                    }
                    timer.as_mut().reset(to_runtime(self.at));
                }
                Some(timer) => timer.as_mut().reset(to_runtime(self.at)),
                None => self.timer = Some(Box::pin(sleep_until(self.at))),
            }
            self.armed = self.at;
        }
    }
}

/// Drives `future` until `deadline`; `None` when time ran out first.
///
/// Dropping it drops `future`, as running out of time does: `future` must wait on nothing but poll I/O and timers.
pub async fn within<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut limit = Deadline::new();
    limit.set(deadline);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => limit.poll(cx).map(|()| None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::shard::testing;

    const LONG: Duration = Duration::from_hours(1);

    async fn passed(deadline: &mut Deadline) {
        poll_fn(|cx| deadline.poll(cx)).await;
    }

    async fn poll_once(deadline: &mut Deadline) -> Poll<()> {
        poll_fn(|cx| Poll::Ready(deadline.poll(cx))).await
    }

    #[test]
    fn a_deadline_is_met_and_stays_met_until_moved() {
        testing::on_both_drivers(|| async {
            let mut deadline = Deadline::new();
            assert!(poll_once(&mut deadline).await.is_pending());
            deadline.set_after(Duration::from_millis(5));
            let due = deadline.at().expect("it was set");
            passed(&mut deadline).await;
            assert!(clock::now() >= due);
            assert!(poll_once(&mut deadline).await.is_ready());
            deadline.set_after(LONG);
            assert!(poll_once(&mut deadline).await.is_pending());
        });
    }

    #[test]
    fn moving_it_later_leaves_the_timer_alone_and_still_waits_for_the_later_time() {
        testing::on_both_drivers(|| async {
            let mut deadline = Deadline::new();
            deadline.set_after(Duration::from_millis(2));
            assert!(poll_once(&mut deadline).await.is_pending());
            let armed = deadline.armed;
            deadline.set_after(Duration::from_millis(20));
            assert!(poll_once(&mut deadline).await.is_pending());
            assert_eq!(deadline.armed, armed, "moving it later costs no timer operation");
            let due = deadline.at().expect("it was set");
            passed(&mut deadline).await;
            assert!(clock::now() >= due);
        });
    }

    #[test]
    fn moving_it_sooner_or_clearing_it_is_obeyed() {
        testing::on_both_drivers(|| async {
            let mut deadline = Deadline::new();
            deadline.set_after(LONG);
            assert!(poll_once(&mut deadline).await.is_pending());
            deadline.set_after(Duration::from_millis(2));
            passed(&mut deadline).await;
            deadline.clear();
            assert!(poll_once(&mut deadline).await.is_pending());
            assert_eq!(deadline.at(), None);
        });
    }

    #[test]
    fn within_gives_the_output_or_none() {
        testing::on_both_drivers(|| async {
            let soon = clock::now() + Duration::from_millis(3);
            assert_eq!(within(soon, pending::<()>()).await, None);
            assert_eq!(within(Instant::NEVER, async { 7 }).await, Some(7));
            // The future is asked first: what is ready at the deadline is not thrown away.
            assert_eq!(within(Instant::START, async { 8 }).await, Some(8));
            let slept = within(Instant::NEVER, sleep(Duration::from_millis(1))).await;
            assert_eq!(slept, Some(()));
        });
    }
}

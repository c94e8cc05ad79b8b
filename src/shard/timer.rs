//! Waiting for time to pass: sleeps, and one cheap deadline per connection.
//!
//! Only futures over poll I/O may be cut off by a deadline. A dropped accept or connect of the runtime's own leaks its
//! descriptor on io_uring; `shard::stream` and `shard::listener` do both by readiness.

use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::alarms::{self, Alarms};
use super::clock::{self, Instant};
use super::local::{AbortOnUnwind, Local};
use super::task;

/// Completes when `duration` has passed, to the driver's millisecond.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(clock::now() + duration)
}

/// Completes at `instant`, to the driver's millisecond.
pub fn sleep_until(instant: Instant) -> Sleep {
    let mut deadline = Deadline::new();
    deadline.set(instant);
    Sleep(deadline)
}

/// A wait for a moment. Small, where the runtime's own timers are half a KiB each and would swell every future that may
/// hold one.
#[derive(Debug)]
pub struct Sleep(Deadline);

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll(cx)
    }
}

/// The runtime's wheel turns once in about two years; whoever waits for longer than one is woken early, or never.
fn to_runtime(instant: Instant) -> monoio::time::Instant {
    const YEAR: Duration = Duration::from_hours(366 * 24);
    monoio::time::Instant::from_std(clock::to_std(instant.min(clock::now() + YEAR)))
}

/// One deadline that is moved often and seldom met. One per connection; stays on its shard.
///
/// Moving it later, or clearing it, is a plain store: the alarm that is set goes off early, sees that there is time left
/// and is set again. It costs a timer operation per period, not per request.
#[derive(Debug)]
pub struct Deadline {
    /// When it is due; `NEVER` when it is clear.
    at: Instant,
    /// What the alarm was last set to; means nothing without one.
    armed: Instant,
    alarm: Option<alarms::Id>,
    here: PhantomData<Rc<()>>,
}

impl Default for Deadline {
    fn default() -> Self {
        Self::new()
    }
}

impl Deadline {
    /// A clear deadline; it holds no alarm until it is polled with a time set.
    pub const fn new() -> Self {
        Self { at: Instant::NEVER, armed: Instant::NEVER, alarm: None, here: PhantomData }
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
    /// It must be polled after it was set, else nothing wakes the task.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.at == Instant::NEVER {
            return Poll::Pending;
        }
        let (polled, task) = ALARMS.with(|shard| shard.with(|shard| self.poll_alarm(shard, cx.waker())));
        // Outside the closure: starting and waking run code of the runtime's.
        match task {
            Some(AlarmTask::Waiting(waker)) => waker.wake(),
            Some(AlarmTask::NotStarted) => task::spawn("deadlines", run_alarms()),
            Some(AlarmTask::Running) | None => {}
        }
        polled
    }

    /// Also returns the alarms' task if it has to be told of an alarm sooner than the one that it waits for.
    fn poll_alarm(&mut self, shard: &mut ShardAlarms, waker: &Waker) -> (Poll<()>, Option<AlarmTask>) {
        let alarm = *self.alarm.get_or_insert_with(|| {
            self.armed = Instant::NEVER;
            shard.alarms.open()
        });
        if self.armed <= self.at {
            if shard.alarms.is_ticking(alarm, waker) {
                return (Poll::Pending, None);
            }
            if self.armed == self.at {
                return (Poll::Ready(()), None);
            }
        }
        shard.alarms.set(alarm, self.at, waker);
        self.armed = self.at;
        if self.at >= shard.next {
            return (Poll::Pending, None);
        }
        shard.next = self.at;
        (Poll::Pending, Some(std::mem::replace(&mut shard.task, AlarmTask::Running)))
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if let Some(alarm) = self.alarm {
            // An error means that the thread is ending and its alarms are gone.
            let _ = ALARMS.try_with(|shard| shard.with(|shard| shard.alarms.close(alarm)));
        }
    }
}

thread_local! {
    static ALARMS: Local<ShardAlarms> = const {
        Local::new(ShardAlarms { alarms: Alarms::new(), next: Instant::NEVER, task: AlarmTask::NotStarted })
    };
}

struct ShardAlarms {
    alarms: Alarms,
    /// When the task looks next. `START` under our own executor, which looks in every turn and need not be told.
    next: Instant,
    task: AlarmTask,
}

/// The task that lets alarms go off where the runtime is not ours.
enum AlarmTask {
    /// No deadline was ever set on this shard.
    NotStarted,
    /// It has been started or woken, and will look at all alarms before it waits.
    Running,
    /// It waits until `next`, or to be told of a sooner one.
    Waiting(Waker),
}

/// Whether this thread's executor is ours, and lets alarms go off by [`ring`].
pub(super) fn keep_by_turns(is_so: bool) {
    let next = if is_so { Instant::START } else { Instant::NEVER };
    ALARMS.with(|shard| shard.with(|shard| shard.next = next));
}

/// Lets go of all tasks that wait for an alarm, while they can still wake others: a runtime's end. On monoio a task lives as
/// long as anybody may wake it, and what it does when it is dropped needs the runtime.
pub(super) fn let_go() {
    loop {
        let waiting = ALARMS.with(|shard| shard.with(|shard| shard.alarms.take_all()));
        if waiting.is_empty() {
            return;
        }
        drop(waiting);
    }
}

/// Lets all alarms go off that are due.
#[inline]
pub(super) fn ring(now: Instant) {
    while let Some(due) = ALARMS.with(|shard| shard.with(|shard| shard.alarms.go_off(now))) {
        due.wake();
    }
}

/// How long it is until the next alarm; `None` is for ever.
pub(super) fn until_next() -> Option<Duration> {
    let next = ALARMS.with(|shard| shard.with(|shard| shard.alarms.next()))?;
    Some(next.since(clock::now()))
}

/// Lets this shard's alarms go off, with one timer of the runtime's, for as long as the shard lives.
async fn run_alarms() {
    // One task, so that the timer's first waker stays the right one.
    let mut timer = pin!(monoio::time::sleep_until(to_runtime(Instant::START)));
    poll_fn(|cx| {
        let guard = AbortOnUnwind("a panic while alarms went off");
        loop {
            ring(clock::now());
            let next = ALARMS.with(|shard| {
                shard.with(|shard| {
                    shard.next = shard.alarms.next().unwrap_or(Instant::NEVER);
                    shard.task = AlarmTask::Waiting(cx.waker().clone());
                    shard.next
                })
            });
            if next == Instant::NEVER {
                break;
            }
            timer.as_mut().reset(to_runtime(next));
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
        }
        guard.disarm();
        Poll::<()>::Pending
    })
    .await;
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
    use std::cell::Cell;
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
    fn the_task_that_polled_last_is_woken() {
        testing::on_both_drivers(|| async {
            let mut deadline = Deadline::new();
            deadline.set_after(Duration::from_millis(5));
            assert!(deadline.poll(&mut Context::from_waker(Waker::noop())).is_pending());
            passed(&mut deadline).await;
        });
    }

    #[test]
    fn many_deadlines_share_one_timer_and_none_comes_early() {
        testing::on_both_drivers(|| async {
            let met = Rc::new(Cell::new(0));
            for number in 0..500_u64 {
                let met = Rc::clone(&met);
                task::spawn(number, async move {
                    // Neither in order nor all different.
                    let due = clock::now() + Duration::from_micros(number * 7919 % 30_000);
                    let mut deadline = Deadline::new();
                    deadline.set(due);
                    passed(&mut deadline).await;
                    assert!(clock::now() >= due);
                    met.set(met.get() + 1);
                });
            }
            testing::until(|| met.get() == 500).await;
            assert_eq!(task::panics(), 0);
            assert_eq!(size_of::<Deadline>(), 24, "one for each idle connection");
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

//! Tasks of a shard whose panics end only themselves.
//!
//! Neither runtime catches anything: without this a panic in one connection would take its whole shard along. A panic inside
//! shared state is another matter, see `shard::local`.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::fmt::Display;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};

use super::complaints::complain;
use super::executor;
use super::turns::{self, Turn};

thread_local! {
    /// Whether a contained task is being polled or dropped.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
    /// What the last contained panic said, with its backtrace.
    static REPORT: Cell<Option<String>> = const { Cell::new(None) };
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Runs `future` on this shard. A panic in it ends it, is counted and is logged with `context`, which names the
/// connection or the job; the rest of the shard goes on.
///
/// `context` is formatted only then.
pub fn spawn(context: impl Display + 'static, future: impl Future<Output = ()> + 'static) {
    install_hook();
    let task = Contained { future: Some(Box::pin(future)), context };
    if let Err(task) = executor::spawn(task) {
        // The handle is dropped: the task goes on, and nobody can carry the handle to another thread.
        drop(monoio::spawn(task));
    }
}

/// Completes in the shard's next turn: all others who were woken run before, and sockets and timers are looked at.
///
/// For whoever has done much at once. It costs a place in the queue, on io_uring a completion besides.
pub fn yield_now() -> Yield {
    Yield(None)
}

/// What [`yield_now`] returns. Dropping it only may wake its task once more.
#[derive(Debug)]
pub struct Yield(Option<Turn>);

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.get_or_insert_with(Turn::current).is_over() {
            return Poll::Ready(());
        }
        turns::wait_for_next(cx.waker());
        Poll::Pending
    }
}

/// How many tasks of this shard ended in a panic.
pub fn panics() -> u64 {
    PANICS.get()
}

/// The last contained panic's message, for whoever ends the process because of it.
pub(super) fn take_report() -> Option<String> {
    REPORT.try_with(Cell::take).ok().flatten()
}

/// Boxed, so that the future is dropped where its panics are caught, and the runtime's task stays small.
struct Contained<F, C> {
    future: Option<Pin<Box<F>>>,
    context: C,
}

impl<F, C> Unpin for Contained<F, C> {}

impl<F: Future<Output = ()>, C: Display> Future for Contained<F, C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(future) = &mut self.future else { return Poll::Ready(()) };
        match contain(|| future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => {}
            Err(panic) => self.report(&*panic),
        }
        let future = self.future.take();
        if let Err(panic) = contain(|| drop(future)) {
            self.report(&*panic);
        }
        Poll::Ready(())
    }
}

impl<F, C: Display> Contained<F, C> {
    #[cold]
    fn report(&self, panic: &(dyn Any + Send)) {
        PANICS.set(PANICS.get() + 1);
        // The hook has the place and the backtrace; without it (another hook took over) there is still the message.
        let report = take_report().unwrap_or_else(|| message(panic).to_owned());
        complain!(error: context = %self.context, %report, "a task panicked; its connection is closed");
    }
}

fn contain<R>(run: impl FnOnce() -> R) -> Result<R, Box<dyn Any + Send>> {
    let outer = CONTAINED.replace(true);
    // Nothing of the future is used after a panic but its drop, and shared state aborts before it gets here.
    let result = catch_unwind(AssertUnwindSafe(run));
    CONTAINED.set(outer);
    result
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

/// Keeps the message and backtrace of contained panics for their log line; other panics go where they went before.
fn install_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if CONTAINED.try_with(Cell::get).unwrap_or(false) {
                let report = format!("{panic}\n{}", Backtrace::force_capture());
                let _ = REPORT.try_with(|last| last.set(Some(report)));
            } else {
                before(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::shard::{testing, timer};

    /// Panics when it is dropped.
    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            panic!("the drop failed too");
        }
    }

    #[test]
    fn a_panic_ends_its_task_and_no_other() {
        testing::on_both_drivers(|| async {
            let before = panics();
            let held = Rc::new(());
            let kept = Rc::clone(&held);
            spawn("127.0.0.1:1", async move {
                timer::sleep(Duration::from_millis(1)).await;
                assert_eq!(Rc::strong_count(&kept), 1, "one request's bug");
            });
            let ran = Rc::new(Cell::new(0));
            let count = Rc::clone(&ran);
            spawn("127.0.0.1:2", async move {
                for _ in 0..5 {
                    timer::sleep(Duration::from_millis(1)).await;
                    count.set(count.get() + 1);
                }
            });
            testing::until(|| ran.get() == 5 && panics() == before + 1).await;
            assert_eq!(Rc::strong_count(&held), 1, "what the task held is freed");
        });
    }

    #[test]
    fn a_panic_while_dropping_is_contained() {
        testing::on_both_drivers(|| async {
            let before = panics();
            spawn("a finished connection", async {
                let mine = PanicsOnDrop;
                timer::sleep(Duration::from_millis(1)).await;
                drop(mine);
            });
            testing::until(|| panics() == before + 1).await;
        });
    }

    #[test]
    fn the_report_has_message_place_and_backtrace() {
        install_hook();
        let panic = contain(|| panic!("seen {} times", 3)).expect_err("it panicked");
        assert_eq!(message(&*panic), "seen 3 times");
        let report = take_report().expect("the hook kept it");
        assert!(report.contains("seen 3 times") && report.contains("task.rs"), "{report}");
        assert!(report.contains("the_report_has_message_place_and_backtrace"), "no backtrace in {report}");
    }
}

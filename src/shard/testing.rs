//! What the tests of `shard` and `bus` share: a shard to run on, and child processes that may die.

use std::future::{Future, poll_fn};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::task::Poll;
use std::time::Duration;

use super::{Driver, clock, probe_driver, spawn_shard, timer};

/// Runs a test on a shard of each driver, and passes its panic on.
pub(crate) fn on_both_drivers<M, F>(test: M)
where
    M: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    for driver in drivers() {
        on(driver, test.clone());
    }
}

/// The drivers that this machine has.
pub(crate) fn drivers() -> Vec<Driver> {
    let mut drivers = vec![Driver::Epoll, probe_driver(Driver::IoUring)];
    drivers.dedup();
    drivers
}

/// Runs a test on a shard of one driver.
pub(crate) fn on<M, F>(driver: Driver, test: M)
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    let (done, outcome) = std::sync::mpsc::channel();
    let shard = spawn_shard(0, None, driver, move || async move {
        // A shard's escaped panic ends the process; a failed test should only fail.
        let mut test = Box::pin(test());
        let result = poll_fn(|cx| {
            let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test.as_mut().poll(cx)));
            match polled {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
                Err(panic) => Poll::Ready(Err(panic)),
            }
        })
        .await;
        let _ = done.send(result);
    })
    .expect("a shard starts");
    shard.join().expect("a shard ends well");
    if let Err(panic) = outcome.recv().expect("the test ran") {
        eprintln!("failed with the {} driver", driver.name());
        std::panic::resume_unwind(panic);
    }
}

/// Waits for something that other tasks bring about, and fails after a time that no machine needs.
#[track_caller]
pub(crate) fn until(mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let deadline = clock::now() + Duration::from_secs(30);
        while !holds() {
            assert!(clock::now() < deadline, "still not so after 30 s: {place}");
            timer::sleep(Duration::from_millis(1)).await;
        }
    }
}

const CHILD: &str = "SHARDGATE_TEST_CHILD";

/// In the parent: runs the test of this name alone in a child process and returns how it ended. In that child: `None`.
#[expect(clippy::disallowed_methods, reason = "the child of a test is told so by its environment")]
pub(crate) fn in_child(test: &str) -> Option<Output> {
    if std::env::var(CHILD).is_ok() {
        return None;
    }
    let this = std::env::current_exe().expect("the test binary is known");
    let output = Command::new(this)
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .expect("the child runs");
    Some(output)
}

/// The signal that ended a child.
pub(crate) fn signal(output: &Output) -> Option<i32> {
    output.status.signal()
}

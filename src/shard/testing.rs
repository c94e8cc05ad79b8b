//! What tests share: a shard to run on, child processes that may die, and the seeds of simulations.

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

/// The seeds that a simulation is played with: so many from 1 on. `SIM_SEED` plays that one alone, `SIM_ROUNDS` so many from
/// there on.
pub(crate) fn seeds(usual: u64) -> Seeds {
    let first = number("SIM_SEED");
    let rounds = number("SIM_ROUNDS").unwrap_or(if first.is_some() { 1 } else { usual });
    let next = first.unwrap_or(1);
    Seeds { next, end: next + rounds, are_enough: rounds >= usual }
}

/// Seeds, of which the last one is told when its turn fails.
pub(crate) struct Seeds {
    next: u64,
    end: u64,
    are_enough: bool,
}

impl Seeds {
    /// Whether they are as many as usual, so that whatever happens at times has happened.
    pub(crate) fn are_enough(&self) -> bool {
        self.are_enough
    }
}

impl Iterator for Seeds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let seed = self.next;
        (seed < self.end).then(|| {
            self.next += 1;
            seed
        })
    }
}

impl Drop for Seeds {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SIM_SEED={} plays this again", self.next - 1);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var_os(variable)?.into_string().ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is {value:?}; it should be a number")))
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

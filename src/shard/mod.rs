//! One thread and what it owns: the runtime behind a narrow door, listeners, streams, timers, and state that stays.
//!
//! There are two runtimes, our own over epoll and monoio over io_uring. Nothing outside this folder knows which it is on.
//! What a shard runs is handed in by `server/`.

mod address;
mod alarms;
pub mod buffers;
pub mod clock;
pub mod complaints;
pub mod cores;
mod executor;
pub mod gate;
pub mod listener;
pub mod local;
pub mod offload;
pub mod pipes;
mod reactor;
pub mod slab;
pub mod stall;
pub mod stream;
pub mod task;
#[cfg(test)]
pub(crate) mod testing;
pub mod ticks;
pub mod timer;
mod turns;

pub use address::{Address, explained, is_ours};
pub use clock::Instant;
pub use local::Local;
pub use pipes::Pipe;
pub use slab::Slab;
pub use stream::{Heard, TcpStream};
pub use timer::Deadline;
pub use turns::{Turn, woken_at};

use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

use monoio::{IoUringDriver, RuntimeBuilder};
use rustix::thread::{CpuSet, sched_setaffinity};

use executor::Executor;

/// Submissions that fit before the runtime has to enter the kernel. A ring that stays full panics inside the runtime.
const RING_ENTRIES: u32 = 4096;

/// How a shard talks to the kernel. One per process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Readiness through epoll, by an executor of our own: the default, and the cheapest (decision 5).
    Epoll,
    /// Completions through io_uring, with deferred task work, by monoio (decision 2).
    IoUring,
}

impl Driver {
    /// Its name in configuration and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::IoUring => "io_uring",
        }
    }
}

/// The driver that all shards will use: `requested`, unless this kernel or container refuses io_uring.
///
/// Ask once and hand the answer to every [`spawn_shard`]: sockets that move between shards must find the same driver.
pub fn probe_driver(requested: Driver) -> Driver {
    if requested == Driver::IoUring
        && let Err(error) = ring().build(RING_ENTRIES)
    {
        tracing::warn!(%error, "io_uring is refused here (it takes Linux 6.1 and a container that allows it); using epoll");
        return Driver::Epoll;
    }
    requested
}

/// The flags are worth half of a request's CPU: without them each completion interrupts the shard.
fn ring() -> io_uring::Builder {
    let mut ring = io_uring::IoUring::builder();
    ring.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun();
    ring
}

/// Starts the thread `shard-{index}`, pinned to `cpu`, and runs what `main` returns on it until that completes.
///
/// Returns once the thread's runtime stands, with its error if it does not. A panic that gets out of `main` or of a task
/// that was not spawned through [`task::spawn`] ends the process.
pub fn spawn_shard<M, F>(index: usize, cpu: Option<usize>, driver: Driver, main: M) -> io::Result<JoinHandle<()>>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    let (started, outcome) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
        if let Some(cpu) = cpu {
            pin_to(index, cpu);
        }
        run(driver, &started, main);
    })?;
    match outcome.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvError) => Err(io::Error::other(format!("shard {index} ended before it began"))),
    }
}

/// Builds the runtime, says how that went, and runs `main`'s future to its end.
fn run<M, F>(driver: Driver, started: &mpsc::SyncSender<io::Result<()>>, main: M)
where
    M: FnOnce() -> F,
    F: Future<Output = ()> + 'static,
{
    // The one who waits for it may have given up; the shard then still runs.
    let tell = |outcome| drop(started.send(outcome));
    let main = || {
        tell(Ok(()));
        async move { main().await }
    };
    let guard = local::AbortOnUnwind("a panic outside any task");
    let built = match driver {
        Driver::Epoll => Executor::new().map(|executor| executor.block_on(main())),
        Driver::IoUring => turns::TurnTask::new().and_then(|turns| {
            let runtime = RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring()).with_entries(RING_ENTRIES);
            let mut runtime = runtime.enable_timer().build()?;
            runtime.block_on(async {
                task::spawn("turns", turns.run());
                main().await;
                timer::let_go();
            });
            Ok(())
        }),
    };
    guard.disarm();
    if let Err(error) = built {
        tell(Err(error));
    }
}

fn pin_to(index: usize, cpu: usize) {
    let mut mask = CpuSet::new();
    if cpu < CpuSet::MAX_CPU {
        mask.set(cpu);
    }
    if let Err(error) = sched_setaffinity(None, &mask) {
        tracing::warn!(shard = index, cpu, %error, "the shard could not be pinned and will wander between CPUs");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn a_shard_has_its_name_its_cpu_and_its_tasks() {
        let allowed = sched_getaffinity(None).expect("known");
        let cpu = (0..CpuSet::MAX_CPU).rfind(|&cpu| allowed.is_set(cpu)).expect("one at least");
        for driver in testing::drivers() {
            let (tell, told) = mpsc::channel();
            let shard = spawn_shard(3, Some(cpu), driver, move || async move {
                let ran = Rc::new(Cell::new(false));
                let done = Rc::clone(&ran);
                task::spawn("a task", async move { done.set(true) });
                testing::until(|| ran.get()).await;
                let mask = sched_getaffinity(None).expect("known");
                let name = std::thread::current().name().map(str::to_owned);
                tell.send((name, mask.count(), mask.is_set(cpu))).expect("somebody listens");
            });
            shard.expect("it starts").join().expect("it ends well");
            assert_eq!(told.recv().expect("it ran"), (Some("shard-3".to_owned()), 1, true));
        }
    }

    #[test]
    fn a_cpu_that_is_refused_does_not_keep_a_shard_from_running() {
        for cpu in [CpuSet::MAX_CPU - 1, usize::MAX] {
            let shard = spawn_shard(0, Some(cpu), Driver::Epoll, || async {});
            shard.expect("it starts").join().expect("it ends well");
        }
    }

    #[test]
    fn a_panic_outside_any_task_ends_the_process() {
        let Some(output) = testing::in_child("shard::tests::a_panic_outside_any_task_ends_the_process") else {
            let shard = spawn_shard(0, None, Driver::Epoll, || async { panic!("the accept loop is broken") });
            let _ = shard.expect("it starts").join();
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(testing::signal(&output), Some(libc::SIGABRT), "{said}");
        assert!(said.contains("the accept loop is broken") && said.contains("a panic outside any task"), "{said}");
    }

    #[test]
    fn a_refused_ring_means_epoll_and_a_refused_runtime_is_an_error() {
        let Some(output) =
            testing::in_child("shard::tests::a_refused_ring_means_epoll_and_a_refused_runtime_is_an_error")
        else {
            let before = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).expect("lowered");
            let driver = probe_driver(Driver::IoUring);
            let shard = spawn_shard(0, None, driver, || async {});
            setrlimit(Resource::Nofile, before).expect("raised");
            assert_eq!(driver, Driver::Epoll);
            assert_eq!(shard.expect_err("no descriptors").raw_os_error(), Some(libc::EMFILE));
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn epoll_is_taken_as_asked() {
        assert_eq!(probe_driver(Driver::Epoll), Driver::Epoll);
        assert_eq!([Driver::Epoll.name(), Driver::IoUring.name()], ["epoll", "io_uring"]);
    }
}

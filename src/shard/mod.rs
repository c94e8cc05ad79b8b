//! One thread and what it owns: the runtime behind a narrow door, listeners, streams, timers, and state that stays.
//!
//! Nothing outside this folder names the runtime. What a shard runs is handed in by `server/`.

pub mod buffers;
pub mod clock;
pub mod cores;
pub mod listener;
pub mod local;
pub mod snapshot;
pub mod stall;
pub mod stream;
pub mod task;
#[cfg(test)]
pub(crate) mod testing;
pub mod timer;

pub use clock::Instant;
pub use local::Local;
pub use snapshot::Snapshot;
pub use stream::TcpStream;
pub use timer::Deadline;

use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Submissions that fit before the runtime has to enter the kernel. A ring that stays full panics inside the runtime.
const RING_ENTRIES: u32 = 4096;
/// Events taken from epoll at once.
const EPOLL_EVENTS: u32 = 1024;

/// How a shard talks to the kernel. One per process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Readiness through epoll: the default, and never slower when it was measured (decision 2).
    Epoll,
    /// Completions through io_uring, with deferred task work.
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
    // Both arms read the same, but their runtimes are different types.
    macro_rules! run_on {
        ($builder:expr) => {
            match $builder.enable_timer().build() {
                Ok(mut runtime) => {
                    // The one who waits for it may have given up; the shard then still runs.
                    let _ = started.send(Ok(()));
                    let guard = local::AbortOnUnwind("a panic outside any task");
                    runtime.block_on(async move { main().await });
                    guard.disarm();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        };
    }
    match driver {
        Driver::Epoll => run_on!(RuntimeBuilder::<LegacyDriver>::new().with_entries(EPOLL_EVENTS)),
        Driver::IoUring => {
            run_on!(RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring()).with_entries(RING_ENTRIES));
        }
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

//! Work that would hold a thread too long, done elsewhere: a small pool of threads at low priority with a bounded queue.
//!
//! It refuses at once when it is full, and says when there will be room. What is computed there is for others; password
//! hashes are the first use.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::clock;

#[expect(clippy::disallowed_types, reason = "the pool's queue is the one thing that its threads share")]
type Mutex<T> = std::sync::Mutex<T>;

/// How much less urgent than the shards (`nice`): with a shard that wants the core, a thread gets about a tenth of it.
const NICENESS: i32 = 10;

/// A pool. Clones share it; its threads end with the last of them. Moves between threads.
///
/// `S` is what each thread keeps for its work from one piece to the next, such as a buffer.
pub struct Offload<S> {
    shared: Arc<Shared<S>>,
    /// Closes the queue when the last clone goes.
    open: Arc<Open<S>>,
}

/// Why work was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As much waits as may.
    #[error("the pool has as much work waiting as it may; there should be room in {0:?}")]
    Full(Duration),
    /// The work panicked.
    #[error("the work panicked")]
    Panicked,
}

/// A place in the queue, taken before the work is known. Dropping it gives it back.
pub struct QueuePermit<S> {
    shared: Arc<Shared<S>>,
    /// Whether it is still ours to give back; a job takes it over.
    is_held: bool,
}

struct Shared<S> {
    queue: Mutex<Queue<S>>,
    work: Condvar,
    threads: usize,
    waiting_max: usize,
}

struct Queue<S> {
    jobs: VecDeque<Box<dyn Job<S>>>,
    /// Places taken: jobs that wait, and those who have a place and no job yet.
    taken: usize,
    /// What a piece of work takes, as a moving average.
    usual: Duration,
    is_closed: bool,
}

trait Job<S>: Send {
    fn is_wanted(&self) -> bool;
    /// Whether it went without a panic.
    fn run(self: Box<Self>, state: &mut S) -> bool;
}

struct Task<F, T> {
    work: F,
    reply: oneshot::Sender<T>,
}

impl<S, F, T> Job<S> for Task<F, T>
where
    F: FnOnce(&mut S) -> T + Send,
    T: Send,
{
    fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    fn run(self: Box<Self>, state: &mut S) -> bool {
        let Self { work, reply } = *self;
        // A panic drops the reply, which tells.
        let done = catch_unwind(AssertUnwindSafe(|| work(state)));
        // Whoever asked may have left.
        done.map(|done| drop(reply.send(done))).is_ok()
    }
}

struct Open<S>(Arc<Shared<S>>);

impl<S> Drop for Open<S> {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.work.notify_all();
    }
}

impl<S: 'static> Offload<S> {
    /// Starts `threads` threads, each with a state of its own; at most `waiting_max` pieces of work wait for them.
    pub fn start(
        name: &str,
        threads: usize,
        waiting_max: usize,
        state: impl Fn() -> S + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Queue { jobs: VecDeque::new(), taken: 0, usual: Duration::ZERO, is_closed: false };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), work: Condvar::new(), threads, waiting_max });
        let pool = Self { open: Arc::new(Open(Arc::clone(&shared))), shared };
        for number in 0..threads {
            let (shared, state) = (Arc::clone(&pool.shared), state.clone());
            std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                // Linux takes this for the thread alone. A refusal leaves it at the usual priority.
                let _ = rustix::process::nice(NICENESS);
                shared.work(state);
            })?;
        }
        Ok(pool)
    }

    /// Takes a place in the queue, or says when to try again.
    pub fn reserve(&self) -> Result<QueuePermit<S>, Refused> {
        let mut queue = self.shared.lock();
        if queue.taken >= self.shared.waiting_max {
            let before = queue.jobs.len();
            queue.jobs.retain(|job| job.is_wanted());
            queue.taken -= before - queue.jobs.len();
        }
        if queue.taken >= self.shared.waiting_max {
            let pieces = u32::try_from(queue.taken.div_ceil(self.shared.threads.max(1))).unwrap_or(u32::MAX);
            return Err(Refused::Full(queue.usual.saturating_mul(pieces)));
        }
        queue.taken += 1;
        drop(queue);
        Ok(QueuePermit { shared: Arc::clone(&self.shared), is_held: true })
    }

    /// How many pieces of work wait.
    pub fn waiting(&self) -> usize {
        self.shared.lock().taken
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }
}

impl<S> QueuePermit<S> {
    /// Does the work when its turn comes. Dropping the future before that leaves it undone.
    pub async fn run<T: Send + 'static>(
        mut self,
        work: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        self.shared.lock().jobs.push_back(Box::new(Task { work, reply }));
        self.is_held = false;
        self.shared.work.notify_one();
        answer.await.map_err(|_| Refused::Panicked)
    }
}

impl<S> Drop for QueuePermit<S> {
    fn drop(&mut self) {
        if self.is_held {
            self.shared.lock().taken -= 1;
        }
    }
}

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, Queue<S>> {
        // Nothing that is done under the lock leaves the queue half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does until the queue is closed.
    fn work(&self, make: impl Fn() -> S) {
        let mut state = make();
        while let Some(job) = self.next() {
            let began = clock::now();
            if !job.run(&mut state) {
                // What a panic left behind is not used again.
                state = make();
            }
            let took = clock::now().since(began);
            let mut queue = self.lock();
            queue.usual = if queue.usual.is_zero() { took } else { (queue.usual * 7 + took) / 8 };
        }
    }

    /// Waits for the next piece of work that somebody still wants; `None` once the queue is closed.
    fn next(&self) -> Option<Box<dyn Job<S>>> {
        let mut queue = self.lock();
        loop {
            while let Some(job) = queue.jobs.pop_front() {
                queue.taken -= 1;
                if job.is_wanted() {
                    return Some(job);
                }
            }
            if queue.is_closed {
                return None;
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<S> Clone for Offload<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), open: Arc::clone(&self.open) }
    }
}

impl<S> fmt::Debug for Offload<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { threads, waiting_max, .. } = *self.shared;
        f.debug_struct("Offload").field("threads", &threads).field("waiting_max", &waiting_max).finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for QueuePermit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePermit").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::Poll;

    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    /// Polls once, so that the work is queued.
    async fn queued<F: Future + Unpin>(mut work: F) -> F {
        std::future::poll_fn(|context| {
            assert!(std::pin::Pin::new(&mut work).poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        work
    }

    /// A pool of one thread that is busy until told to go on.
    async fn busy(waiting_max: usize) -> (Offload<u32>, mpsc::Sender<()>, impl Future<Output = Result<(), Refused>>) {
        let pool = Offload::start("busy", 1, waiting_max, || 0).expect("a thread");
        let (go, wait) = mpsc::channel::<()>();
        let (begun, begins) = oneshot::channel();
        let place = pool.reserve().expect("room");
        let first = place.run(move |_| {
            let _ = begun.send(());
            let _ = wait.recv();
        });
        let first = queued(Box::pin(first)).await;
        begins.await.expect("it began");
        (pool, go, first)
    }

    #[test]
    fn work_is_done_in_order_on_a_state_that_lasts_and_at_low_priority() {
        let pool = Offload::start("pool", 1, 8, || 0_u32).expect("a thread");
        run(async {
            for expected in 1..=3 {
                let done = pool.reserve().expect("room").run(|count| {
                    *count += 1;
                    *count
                });
                assert_eq!(done.await, Ok(expected));
            }
            let priority = pool.reserve().expect("room").run(|_| {
                let name = std::thread::current().name().map(str::to_owned);
                (name, rustix::process::getpriority_process(None).ok())
            });
            let (name, nice) = priority.await.expect("done");
            assert_eq!(name.as_deref(), Some("pool-0"));
            assert!(nice.is_some_and(|nice| nice >= NICENESS), "{nice:?}");
        });
    }

    #[test]
    fn a_full_queue_refuses_at_once_and_says_when() {
        run(async {
            let (pool, go, first) = busy(2).await;
            let second = queued(Box::pin(pool.reserve().expect("room").run(|_| ()))).await;
            let place = pool.reserve().expect("room");
            assert!(matches!(pool.reserve(), Err(Refused::Full(_))));
            drop(place);
            assert_eq!(pool.waiting(), 1);
            let third = queued(Box::pin(pool.reserve().expect("a place was given back").run(|_| ()))).await;
            go.send(()).expect("it waits");
            assert_eq!((first.await, second.await, third.await), (Ok(()), Ok(()), Ok(())));
            assert_eq!(pool.waiting(), 0);
        });
    }

    #[test]
    fn the_wait_is_what_the_work_ahead_usually_takes() {
        run(async {
            let (pool, go, first) = busy(1).await;
            let _place = pool.reserve().expect("room");
            assert_eq!(pool.reserve().err(), Some(Refused::Full(Duration::ZERO)), "nothing is known yet");
            pool.shared.lock().usual = Duration::from_millis(30);
            assert_eq!(pool.reserve().err(), Some(Refused::Full(Duration::from_millis(30))));
            go.send(()).expect("it waits");
            assert_eq!(first.await, Ok(()));
        });
    }

    #[test]
    fn what_nobody_waits_for_is_left_out_and_makes_room() {
        run(async {
            let (pool, go, first) = busy(2).await;
            let (told, tells) = mpsc::channel();
            let mut left = Vec::new();
            for _ in 0..2 {
                let told = told.clone();
                left.push(queued(Box::pin(pool.reserve().expect("room").run(move |_| told.send(())))).await);
            }
            assert!(pool.reserve().is_err());
            drop(left);
            let last = pool.reserve().expect("nobody waits for those").run(|_| ());
            go.send(()).expect("it waits");
            assert_eq!((first.await, last.await), (Ok(()), Ok(())));
            drop(told);
            assert!(tells.recv().is_err(), "none of them ran");
        });
    }

    #[test]
    fn a_panic_ends_its_work_alone_and_its_state_is_made_anew() {
        let pool = Offload::start("pool", 1, 8, || 0_u32).expect("a thread");
        run(async {
            let panics = pool.reserve().expect("room").run(|count| {
                *count = 7;
                assert!(*count == 0, "on purpose");
            });
            assert_eq!(panics.await, Err(Refused::Panicked));
            assert_eq!(pool.reserve().expect("room").run(|count| *count).await, Ok(0));
        });
    }

    #[test]
    fn the_threads_end_with_the_last_handle() {
        let (alive, ended) = mpsc::channel::<()>();
        let pool = Offload::start("pool", 2, 8, move || alive.clone()).expect("threads");
        let other = pool.clone();
        drop(pool);
        run(async { other.reserve().expect("room").run(|_| ()).await.expect("done") });
        drop(other);
        assert_eq!(ended.recv(), Err(mpsc::RecvError), "every thread dropped its state");
    }
}

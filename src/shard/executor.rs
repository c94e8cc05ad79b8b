//! Runs a shard's tasks on its one thread, over epoll: whoever is woken gets a turn, then sockets and timers get theirs.
//!
//! Every turn runs the tasks that were woken before it, each once, and asks epoll before the next: a task that wakes itself
//! runs once a turn and starves nobody. Wakers work on their own thread only; a shard is woken from outside by its
//! doorbell, which is a socket like any other.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::local::Local;
use super::reactor::Poller;
use super::{clock, timer, turns};

/// Tasks that run before epoll is asked again. Enough that the call is shared by many, few enough that no socket waits
/// for more than about a millisecond of them.
const TASKS_PER_TURN: usize = 256;

/// The number of the future that `block_on` drives.
const MAIN: u32 = 0;

type Task = Pin<Box<dyn Future<Output = ()>>>;

thread_local! {
    static TASKS: Local<Tasks> = const { Local::new(Tasks::new()) };
}

/// The tasks of one shard.
struct Tasks {
    /// Which executor they belong to; none runs here if it is `None`.
    executor: Option<i32>,
    slots: Vec<TaskSlot>,
    free: Vec<u32>,
    /// Those that were woken, in order.
    woken: VecDeque<Woken>,
}

/// A task in line.
#[derive(Clone, Copy)]
struct Woken {
    task: u32,
    /// The turn in which it was woken.
    turn: u32,
}

impl Woken {
    #[inline]
    fn now(task: u32) -> Self {
        Self { task, turn: turns::number() }
    }
}

/// A task's place. It keeps its waker for the task that comes after: one that a task left behind somewhere may then wake
/// another for nothing, which every future has to bear.
///
/// Hence no `Slab`, which empties what is left and tells who had it: here a place outlives its tasks, none of them has to be
/// told apart, and a generation would cost each eight bytes, or an allocation if wakers were made anew.
struct TaskSlot {
    /// None while it runs, and when the place is free.
    task: Option<Task>,
    is_woken: bool,
    waker: Option<Waker>,
}

/// What a task's waker knows.
struct Handle {
    executor: i32,
    task: u32,
}

impl Wake for Handle {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // An error means that the thread is ending, and its tasks are gone.
        let is_here = TASKS.try_with(|tasks| tasks.with(|tasks| tasks.wake(self)));
        if is_here == Ok(false) {
            tracing::error!("a task was woken from another thread, which only a doorbell may do; it sleeps on");
        }
    }
}

impl Tasks {
    const fn new() -> Self {
        Self { executor: None, slots: Vec::new(), free: Vec::new(), woken: VecDeque::new() }
    }

    /// Puts a task in line; `false` if it does not live on this thread.
    #[inline]
    fn wake(&mut self, handle: &Handle) -> bool {
        if self.executor != Some(handle.executor) {
            return false;
        }
        if let Some(slot) = self.slots.get_mut(handle.task as usize)
            && !slot.is_woken
        {
            slot.is_woken = true;
            self.woken.push_back(Woken::now(handle.task));
        }
        true
    }

    /// A free place, with its waker.
    fn place(&mut self, executor: i32) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            let task = u32::try_from(self.slots.len()).expect("memory runs out long before 4 billion tasks");
            let waker = Waker::from(Arc::new(Handle { executor, task }));
            self.slots.push(TaskSlot { task: None, is_woken: false, waker: Some(waker) });
            task
        })
    }

    /// Who runs next: its number, itself unless it is `MAIN` or has ended, and its waker.
    #[inline]
    fn next(&mut self) -> Option<(u32, Option<Task>, Waker)> {
        while let Some(Woken { task: number, turn }) = self.woken.pop_front() {
            let slot = &mut self.slots[number as usize];
            slot.is_woken = false;
            if (slot.task.is_some() || number == MAIN)
                && let Some(waker) = slot.waker.take()
            {
                turns::run_woken_in(turn);
                return Some((number, slot.task.take(), waker));
            }
        }
        None
    }

    /// Takes back what `next` gave: the task goes on, or its place is free.
    #[inline]
    fn put_back(&mut self, number: u32, task: Option<Task>, waker: Waker) {
        let slot = &mut self.slots[number as usize];
        slot.waker = Some(waker);
        slot.task = task;
        if slot.task.is_none() && number != MAIN {
            self.free.push(number);
        }
    }
}

/// Runs `task` on this thread's executor; gives it back if there is none.
pub(super) fn spawn<F: Future<Output = ()> + 'static>(task: F) -> Result<(), F> {
    TASKS.with(|tasks| {
        tasks.with(|tasks| {
            let Some(executor) = tasks.executor else { return Err(task) };
            let number = tasks.place(executor);
            let slot = &mut tasks.slots[number as usize];
            slot.task = Some(Box::pin(task));
            // It may be in line already, by a waker of the task before.
            if !std::mem::replace(&mut slot.is_woken, true) {
                tasks.woken.push_back(Woken::now(number));
            }
            Ok(())
        })
    })
}

/// A thread's executor. One per shard.
pub(super) struct Executor {
    poller: Poller,
}

impl Executor {
    /// Makes this thread a shard's.
    pub(super) fn new() -> io::Result<Self> {
        let poller = Poller::new()?;
        let id = poller.id();
        TASKS.with(|tasks| {
            tasks.with(|tasks| {
                tasks.executor = Some(id);
                let main = tasks.place(id);
                debug_assert_eq!(main, MAIN);
            });
        });
        timer::keep_by_turns(true);
        let turn = clock::now();
        clock::set_turn(turn);
        turns::begin(turn);
        Ok(Self { poller })
    }

    /// Drives `main` to its end, and beside it whatever is spawned. What is left of that is dropped.
    pub(super) fn block_on<F: Future>(mut self, main: F) -> F::Output {
        let mut main = pin!(main);
        TASKS.with(|tasks| tasks.with(|tasks| tasks.woken.push_back(Woken::now(MAIN))));
        loop {
            let mut left = TASKS.with(|tasks| tasks.with(|tasks| tasks.woken.len())).min(TASKS_PER_TURN);
            while left > 0
                && let Some((number, task, waker)) = TASKS.with(|tasks| tasks.with(Tasks::next))
            {
                left -= 1;
                let mut cx = Context::from_waker(&waker);
                let task = match task {
                    Some(mut task) => task.as_mut().poll(&mut cx).is_pending().then_some(task),
                    None => match main.as_mut().poll(&mut cx) {
                        Poll::Ready(output) => return output,
                        Poll::Pending => None,
                    },
                };
                TASKS.with(|tasks| tasks.with(|tasks| tasks.put_back(number, task, waker)));
            }
            let is_busy = TASKS.with(|tasks| tasks.with(|tasks| !tasks.woken.is_empty()));
            self.poller.wait(if is_busy { Some(Duration::ZERO) } else { timer::until_next() });
            let turn = clock::now();
            clock::set_turn(turn);
            turns::begin(turn);
            self.poller.tell();
            timer::ring(turn);
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // A task that is dropped may wake, spawn or close others, so none goes inside the closure.
        let next = || TASKS.with(|tasks| tasks.with(|tasks| tasks.slots.iter_mut().find_map(|slot| slot.task.take())));
        while let Some(task) = next() {
            drop(task);
        }
        timer::keep_by_turns(false);
        clock::set_turn(clock::Instant::START);
        turns::forget();
        let tasks = TASKS.with(|tasks| tasks.with(|tasks| std::mem::replace(tasks, Tasks::new())));
        drop(tasks);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, poll_fn};
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::shard::{Driver, TcpStream, stream::LocalStream, task, testing};

    /// Wakes itself for ever.
    async fn spin(turns: Rc<Cell<u64>>) {
        poll_fn(|cx| {
            turns.set(turns.get() + 1);
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        })
        .await;
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let soon = clock::now() + Duration::from_secs(30);
        let client = TcpStream::connect(address, soon).await.expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        (client, TcpStream::from_fd(server.into()).expect("registered"))
    }

    #[test]
    fn tasks_that_wake_themselves_starve_neither_sockets_nor_timers() {
        testing::on(Driver::Epoll, || async {
            let turns = Rc::new(Cell::new(0));
            for _ in 0..2 * TASKS_PER_TURN {
                task::spawn("spinning", spin(Rc::clone(&turns)));
            }
            let (mut client, mut server) = pair().await;
            task::spawn("echo", async move {
                let mut byte = [0];
                while server.read_exact(&mut byte).await.is_ok() {
                    server.write_all(&byte).await.expect("written");
                }
            });
            for number in 0..50 {
                client.write_u8(number).await.expect("written");
                assert_eq!(client.read_u8().await.ok(), Some(number));
            }
            let before = clock::now();
            for _ in 0..20 {
                timer::sleep(Duration::from_millis(1)).await;
            }
            assert!(clock::now() - before < Duration::from_secs(2), "20 sleeps of 1 ms beside a busy shard");
            assert!(turns.get() > 100, "the others had their turns too");
        });
    }

    #[test]
    fn everybody_woken_runs_once_a_turn_in_order() {
        testing::on(Driver::Epoll, || async {
            let order = Rc::new(Local::new(Vec::new()));
            for number in 0..3 {
                let order = Rc::clone(&order);
                let mut rounds = 0;
                task::spawn(number, async move {
                    poll_fn(|cx| {
                        order.with(|order| order.push(number));
                        rounds += 1;
                        cx.waker().wake_by_ref();
                        cx.waker().wake_by_ref();
                        if rounds == 3 { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                });
            }
            testing::until(|| order.with(|order| order.len() == 9)).await;
            assert_eq!(order.with(std::mem::take), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        });
    }

    #[test]
    fn a_waker_that_outlives_its_task_does_no_harm() {
        testing::on(Driver::Epoll, || async {
            let kept = Rc::new(Local::new(None));
            let keeper = Rc::clone(&kept);
            task::spawn("short", async move {
                poll_fn(|cx| {
                    keeper.with(|waker| *waker = Some(cx.waker().clone()));
                    Poll::Ready(())
                })
                .await;
            });
            testing::until(|| kept.with(|waker| waker.is_some())).await;
            let waker = kept.with(Option::take).expect("it was kept");
            waker.wake_by_ref();
            timer::sleep(Duration::from_millis(1)).await;
            // The next task takes the place over, and is polled once more than it asked for.
            let polls = Rc::new(Cell::new(0));
            let count = Rc::clone(&polls);
            waker.wake_by_ref();
            task::spawn("next", async move {
                poll_fn(|_| {
                    count.set(count.get() + 1);
                    Poll::<()>::Pending
                })
                .await;
            });
            testing::until(|| polls.get() == 1).await;
            waker.wake();
            testing::until(|| polls.get() == 2).await;
        });
    }

    #[test]
    fn a_waker_on_a_foreign_thread_is_refused_without_a_panic() {
        testing::on(Driver::Epoll, || async {
            let polls = Rc::new(Cell::new(0));
            let waker = Rc::new(Local::new(None));
            let (count, keeper) = (Rc::clone(&polls), Rc::clone(&waker));
            task::spawn("asleep", async move {
                poll_fn(|cx| {
                    count.set(count.get() + 1);
                    keeper.with(|waker| *waker = Some(cx.waker().clone()));
                    Poll::<()>::Pending
                })
                .await;
            });
            testing::until(|| polls.get() == 1).await;
            let waker = waker.with(Option::take).expect("it was kept");
            let plain = waker.clone();
            std::thread::spawn(move || plain.wake()).join().expect("no panic on a thread without a shard");
            let other = waker.clone();
            let thread = std::thread::spawn(move || testing::on(Driver::Epoll, || async move { other.wake() }));
            thread.join().expect("no panic on another shard");
            timer::sleep(Duration::from_millis(2)).await;
            assert_eq!(polls.get(), 1);
            waker.wake();
            testing::until(|| polls.get() == 2).await;
        });
    }

    #[test]
    fn another_thread_wakes_a_shard_through_a_socket() {
        testing::on(Driver::Epoll, || async {
            let (rope, bell) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
            bell.set_nonblocking(true).expect("set");
            let mut bell = LocalStream::from_std(bell).expect("registered");
            let ringer = std::thread::spawn(move || rustix::io::write(&rope, b"!").expect("rung"));
            assert_eq!(bell.read_u8().await.ok(), Some(b'!'));
            ringer.join().expect("it ended well");
        });
    }

    #[test]
    fn what_is_left_is_dropped_with_the_shard() {
        let (tell, told) = std::sync::mpsc::channel();
        testing::on(Driver::Epoll, || async move {
            /// Spawns another when it is dropped, as a connection that gives something back may.
            struct Last(std::sync::mpsc::Sender<&'static str>);

            impl Drop for Last {
                fn drop(&mut self) {
                    let _ = self.0.send("dropped");
                    task::spawn("too late", async {});
                }
            }
            let last = Last(tell);
            task::spawn("for ever", async move {
                let _last = last;
                pending::<()>().await;
            });
        });
        assert_eq!(told.recv().ok(), Some("dropped"));
    }

    #[test]
    fn timers_are_met_while_sockets_are_busy() {
        testing::on(Driver::Epoll, || async {
            let (mut client, mut server) = pair().await;
            task::spawn("flood", async move {
                let block = vec![0; 64 * 1024];
                while client.write_all(&block).await.is_ok() {}
            });
            let bytes = Rc::new(Cell::new(0));
            let count = Rc::clone(&bytes);
            task::spawn("sink", async move {
                let mut block = vec![0; 16 * 1024];
                while let Ok(read) = server.read(&mut block).await {
                    count.set(count.get() + read);
                    task::yield_now().await;
                }
            });
            let mut worst = Duration::ZERO;
            for _ in 0..50 {
                let due = clock::now() + Duration::from_millis(2);
                timer::sleep_until(due).await;
                worst = worst.max(clock::now() - due);
            }
            assert!(worst < Duration::from_millis(500), "late by {worst:?}");
            assert!(bytes.get() > 0);
        });
    }
}

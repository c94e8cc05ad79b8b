//! A shard's turns: between two of them everybody who was woken has run, and sockets and timers have been looked at.
//!
//! Our executor begins a turn each time that it has asked epoll. monoio tells nobody when it has asked the ring, and a task
//! that wakes itself there keeps it from asking. So on io_uring a turn is asked for: a task waits for what the ring can
//! complete at once, and the runtime only learns that it is complete when nobody is left to run.

use std::cell::Cell;
use std::io;
use std::os::unix::net::UnixStream;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::clock::{self, Instant};
use super::local::{AbortOnUnwind, Local};
use super::timer;

/// So many turns are remembered: a task that waits for longer was woken before all of them.
const TURNS_KEPT: u32 = 64;

thread_local! {
    /// How many turns have begun on this shard.
    static BEGUN: Cell<u64> = const { Cell::new(0) };
    /// Whether turns begin only when they are asked for.
    static ON_REQUEST: Cell<bool> = const { Cell::new(false) };
    /// When the last turns began, by their numbers; `START` where they are not ours.
    static BEGAN_AT: [Cell<Instant>; TURNS_KEPT as usize] =
        const { [const { Cell::new(Instant::START) }; TURNS_KEPT as usize] };
    /// The turn in which the task was woken that runs.
    static WOKEN_IN: Cell<u32> = const { Cell::new(0) };
    static REQUESTS: Local<TurnRequests> =
        const { Local::new(TurnRequests { is_asked: false, task: None, waiting: Vec::new() }) };
}

/// Who asked for a turn. One per shard; in use on io_uring only.
struct TurnRequests {
    /// There shall be another turn.
    is_asked: bool,
    /// The task that begins turns, while nobody asks.
    task: Option<Waker>,
    /// Tasks that go on in it.
    waiting: Vec<Waker>,
}

/// One of a shard's turns; means nothing on another shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

impl Turn {
    /// The turn that runs, and there will be one after it: what comes in meanwhile is known then.
    #[inline]
    pub fn current() -> Self {
        if ON_REQUEST.get() {
            request(None);
        }
        Self(BEGUN.get())
    }

    /// Whether a later one has begun.
    #[inline]
    pub fn is_over(self) -> bool {
        self.0 != BEGUN.get()
    }
}

/// Wakes a task in a later turn.
pub(super) fn wait_for_next(waker: &Waker) {
    if ON_REQUEST.get() {
        request(Some(waker.clone()));
    } else {
        waker.wake_by_ref();
    }
}

/// Sockets and timers have been looked at, at this time; `START` where nobody says.
#[inline]
pub(super) fn begin(at: Instant) {
    let begun = BEGUN.get().wrapping_add(1);
    BEGUN.set(begun);
    BEGAN_AT.with(|turns| turns[place_of(number())].set(at));
}

/// The turn that runs, as far as it tells it from those before.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "few are compared")]
pub(super) fn number() -> u32 {
    BEGUN.get() as u32
}

/// A task runs that was woken in this turn.
#[inline]
pub(super) fn run_woken_in(turn: u32) {
    WOKEN_IN.set(turn);
}

/// Nobody says any more when turns begin.
pub(super) fn forget() {
    BEGAN_AT.with(|turns| turns.iter().for_each(|began_at| began_at.set(Instant::START)));
}

/// Where it is kept when a turn began.
#[inline]
const fn place_of(turn: u32) -> usize {
    (turn % TURNS_KEPT) as usize
}

/// When what the task waited for that runs was seen: it has been in line since then. Where the runtime does not say, it is
/// [`clock::turn`].
#[inline]
pub fn woken_at() -> Instant {
    let turn = number();
    let age = turn.wrapping_sub(WOKEN_IN.get()).min(TURNS_KEPT - 1);
    match BEGAN_AT.with(|turns| turns[place_of(turn.wrapping_sub(age))].get()) {
        Instant::START => clock::turn(),
        at => at,
    }
}

#[cold]
fn request(waiting: Option<Waker>) {
    let task = REQUESTS.with(|requests| {
        requests.with(|requests| {
            requests.waiting.extend(waiting);
            requests.is_asked = true;
            requests.task.take()
        })
    });
    if let Some(task) = task {
        task.wake();
    }
}

/// Begins turns that were asked for, where the runtime is monoio, for as long as the shard lives.
pub(super) struct TurnTask(UnixStream);

impl TurnTask {
    /// From here on turns of this thread begin when they are asked for and this runs.
    pub(super) fn new() -> io::Result<Self> {
        // The end of a stream can be read at any time.
        let (ended, _) = UnixStream::pair()?;
        ended.set_nonblocking(true)?;
        ON_REQUEST.set(true);
        Ok(Self(ended))
    }

    pub(super) async fn run(self) {
        let ended = match monoio::net::UnixStream::from_std(self.0) {
            Ok(ended) => Some(ended),
            Err(error) => {
                tracing::error!(%error, "turns cannot be kept by the ring; they take a millisecond each");
                None
            }
        };
        loop {
            std::future::poll_fn(|cx| {
                REQUESTS.with(|requests| {
                    requests.with(|requests| {
                        if std::mem::take(&mut requests.is_asked) {
                            return Poll::Ready(());
                        }
                        requests.task = Some(cx.waker().clone());
                        Poll::Pending
                    })
                })
            })
            .await;
            let is_told = match &ended {
                Some(ended) => ended.readable(false).await.is_ok(),
                None => false,
            };
            if !is_told {
                timer::sleep(Duration::from_millis(1)).await;
            }
            let guard = AbortOnUnwind("a panic while turns were kept");
            begin(Instant::START);
            let waiting = REQUESTS.with(|requests| requests.with(|requests| std::mem::take(&mut requests.waiting)));
            for waker in waiting {
                waker.wake();
            }
            guard.disarm();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::shard::{TcpStream, clock, task, testing};

    /// Yields that end a test that would otherwise not end.
    const YIELDS_MAX: u64 = 2_000_000;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let client = TcpStream::connect(address, clock::now() + Duration::from_secs(30)).await.expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        (client, TcpStream::from_fd(server.into()).expect("registered"))
    }

    /// Tasks that yield for as long as the test lasts. Returns how often each has.
    fn yielders(count: usize) -> Rc<[Cell<u64>]> {
        let yields: Rc<[Cell<u64>]> = (0..count).map(|_| Cell::new(0)).collect();
        for number in 0..count {
            let yields = Rc::clone(&yields);
            task::spawn(number, async move {
                while yields[number].get() < YIELDS_MAX {
                    task::yield_now().await;
                    yields[number].set(yields[number].get() + 1);
                }
            });
        }
        yields
    }

    #[test]
    fn whoever_yields_starves_neither_sockets_nor_timers() {
        for yielding in [1, 3, 1_000] {
            testing::on_both_drivers(move || async move {
                let yields = yielders(yielding);
                let (mut client, mut server) = pair().await;
                task::spawn("echo", async move {
                    let mut byte = [0];
                    while server.read_exact(&mut byte).await.is_ok() {
                        server.write_all(&byte).await.expect("written");
                    }
                });
                let before = yields[0].get();
                for number in 0..50 {
                    client.write_u8(number).await.expect("written");
                    assert_eq!(client.read_u8().await.ok(), Some(number));
                }
                // One turn to hear the byte and one to hear its echo; our executor takes four for a thousand tasks.
                let turns = yields[0].get() - before;
                assert!((50..50 * 16).contains(&turns), "50 echoes in {turns} turns");
                for _ in 0..5 {
                    timer::sleep(Duration::from_millis(1)).await;
                }
                let (least, most) = (yields.iter().map(Cell::get).min(), yields.iter().map(Cell::get).max());
                assert!(most < Some(YIELDS_MAX), "the timer did not wait for them to end");
                let apart = most.zip(least).map_or(0, |(most, least)| most - least);
                assert!(apart <= 2, "each had its turns: {least:?} and {most:?}");
            });
        }
    }

    #[test]
    fn whoever_yields_goes_on_after_the_others() {
        testing::on_both_drivers(|| async {
            let order = Rc::new(Local::new(Vec::new()));
            for number in 0..3 {
                let order = Rc::clone(&order);
                task::spawn(number, async move {
                    for _ in 0..3 {
                        order.with(|order| order.push(number));
                        task::yield_now().await;
                    }
                });
            }
            testing::until(|| order.with(|order| order.len() == 9)).await;
            assert_eq!(order.with(std::mem::take), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        });
    }

    #[test]
    fn what_came_meanwhile_is_heard_in_the_next_turn() {
        testing::on_both_drivers(|| async {
            for _ in 0..100 {
                let (mut idle, mut peer) = pair().await;
                assert_eq!(idle.heard(), crate::shard::Heard::Nothing);
                // Over loopback it has arrived when this returns.
                peer.write_all(b"unasked").await.expect("written");
                let turn = Turn::current();
                assert!(!turn.is_over());
                task::yield_now().await;
                assert!(turn.is_over());
                assert_eq!(idle.heard(), crate::shard::Heard::Bytes);
            }
        });
    }

    #[test]
    fn a_task_knows_since_when_it_has_been_in_line() {
        testing::on(crate::shard::Driver::Epoll, || async {
            let ms = Duration::from_millis;
            let waits = Rc::new(Local::new(Vec::new()));
            let began = clock::now();
            // Each holds the core, and all were woken together.
            for number in 0..20 {
                let waits = Rc::clone(&waits);
                task::spawn(number, async move {
                    waits.with(|waits| waits.push(clock::now().since(woken_at())));
                    let until = clock::now() + ms(2);
                    while clock::now() < until {
                        std::hint::spin_loop();
                    }
                });
            }
            testing::until(|| waits.with(|waits| waits.len() == 20)).await;
            let all = clock::now().since(began);
            let waits = waits.with(std::mem::take);
            assert!(waits.is_sorted() && waits[19] >= ms(38) && waits[19] <= all * 2, "{waits:?} of {all:?}");
            // Who was woken just now has not waited, whatever came before.
            task::yield_now().await;
            assert!(clock::now().since(woken_at()) < ms(38));
        });
    }

    #[test]
    fn more_tasks_than_run_in_a_turn_have_waited_for_longer_than_it() {
        testing::on(crate::shard::Driver::Epoll, || async {
            let last = Rc::new(Cell::new(Duration::ZERO));
            let began = clock::now();
            for number in 0..3000 {
                let last = Rc::clone(&last);
                task::spawn(number, async move {
                    let until = clock::now() + Duration::from_micros(10);
                    while clock::now() < until {
                        std::hint::spin_loop();
                    }
                    last.set(clock::now().since(woken_at()));
                });
            }
            // It is behind all of them.
            task::yield_now().await;
            let all = clock::now().since(began);
            assert!(last.get() >= Duration::from_millis(29) && last.get() <= all * 2, "{:?} of {all:?}", last.get());
        });
    }

    #[test]
    fn a_turn_ends_also_when_nothing_else_happens() {
        testing::on_both_drivers(|| async {
            for _ in 0..3 {
                let turn = Turn::current();
                testing::until(|| turn.is_over()).await;
            }
        });
    }
}

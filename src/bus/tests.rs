//! The mesh across real threads, on both drivers.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::mesh::{Capacity, Mesh, Received};
use super::*;
use crate::shard::clock::{self, Instant};
use crate::shard::listener::{Acceptor, bind};
use crate::shard::stream::TcpStream;
use crate::shard::{Driver, task, testing};

/// No machine needs this long; it turns a lost wake-up into a failure.
fn give_up() -> Instant {
    clock::now() + Duration::from_mins(1)
}

/// Runs `test` on a thread as the control thread runs: tokio, one thread.
fn on_control<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test());
}

/// Everybody reads numbers, and whose they are.
enum Numbers {}

impl Letters for Numbers {
    type Control = (ThreadId, u32);
    type Bridge = (ThreadId, u32);
    type Shard = (ThreadId, u32);
    type DroppableToBridge = (ThreadId, u32);
    type DroppableToShard = (ThreadId, u32);
}

/// Sends `count` numbered letters to every thread of the mesh, itself included, and receives as many from each, checking
/// that they come once and in order. Then waits until nothing of its own waits any more.
async fn exchange<A: Address<Numbers, Letter = (ThreadId, u32)>>(
    (bus, mut pump): (Bus<Numbers>, Pump<Numbers, A>),
    count: u32,
) {
    let (me, threads) = (bus.me(), bus.shards() + 2);
    let mut seen = HashMap::new();
    let mut sent = 0;
    poll_fn(|cx| {
        // All threads send as fast as they can; the small rings overflow at once.
        while sent < count {
            bus.send(to::Control, (me, sent));
            bus.send(to::Bridge, (me, sent));
            bus.broadcast(|| (me, sent));
            sent += 1;
        }
        let polled = pump.poll(cx, |letter| {
            let Received::Control((from, letter)) = letter else { panic!("nothing droppable was sent") };
            let seen = seen.entry(from).or_insert(0);
            assert_eq!(letter, *seen, "from {from}");
            *seen += 1;
        });
        assert!(polled.is_pending());
        let done = bus.waiting() == 0 && seen.len() == threads && seen.values().all(|&seen| seen == count);
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    assert!(bus.counts().spilled > 0, "the rings were meant to overflow");
    assert_eq!(pump.received(), u64::from(count) * threads as u64);
}

const EXCHANGED: u32 = 3_000;

fn on_tokio_thread<A: Address<Numbers, Letter = (ThreadId, u32)>>(port: Port<Numbers, A>) {
    on_control(|| async move {
        let ends = on_tokio(port).expect("a port");
        let done = tokio::time::timeout(Duration::from_mins(1), exchange(ends, EXCHANGED)).await;
        assert!(done.is_ok(), "letters are missing");
    });
}

#[test]
fn every_letter_arrives_once_and_in_order() {
    for driver in testing::drivers() {
        let Mesh { control, bridge, shards } = build::<Numbers>(2, 32);
        let mut threads: Vec<_> = shards
            .into_iter()
            .map(|port| {
                thread::spawn(move || {
                    testing::on(driver, move || async move {
                        let ends = on_shard(port).expect("a port");
                        let done = timer::within(give_up(), exchange(ends, EXCHANGED)).await;
                        assert!(done.is_some(), "letters are missing");
                    });
                })
            })
            .collect();
        threads.push(thread::spawn(move || on_tokio_thread(bridge)));
        on_tokio_thread(control);
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

fn build<L: Letters>(shards: usize, capacity: usize) -> Mesh<L> {
    mesh::build(shards, Capacity { control: capacity, droppable: capacity }).expect("a mesh")
}

/// What shards and the bridge say over both lanes.
#[derive(Clone, Copy)]
enum Word {
    /// The sender's next number.
    Number(ThreadId, u32),
    /// The sender's last over this lane: so many droppable letters went.
    Last(ThreadId, u32),
}

enum TwoLanes {}

impl Letters for TwoLanes {
    type Control = ();
    type Bridge = Word;
    type Shard = Word;
    type DroppableToBridge = (ThreadId, u32);
    type DroppableToShard = (ThreadId, u32);
}

/// What came from one sender.
#[derive(Default)]
struct FromOne {
    control: u32,
    /// One more than the last, and how many.
    droppable: (u32, u32),
    last: Option<u32>,
}

/// Offers every shard and the bridge `count` letters over the control lane and four times as many over the other, and takes
/// what comes, until all of it is accounted for. Returns how many droppable letters were dropped.
async fn flood<A>((bus, mut pump): (Bus<TwoLanes>, Pump<TwoLanes, A>), count: u32) -> u32
where
    A: Address<TwoLanes, Letter = Word, Droppable = (ThreadId, u32)>,
{
    const EACH: u32 = 4;
    let (me, shards) = (bus.me(), bus.shards());
    let mut went = vec![0; shards + 1];
    let mut from_all: HashMap<_, FromOne> = HashMap::new();
    let mut sent = 0;
    poll_fn(|cx| {
        // In bursts that the rings do not hold.
        for _ in 0..64 {
            match sent.cmp(&count) {
                Ordering::Less => {
                    (0..shards).for_each(|shard| bus.send(to::Shard(shard), Word::Number(me, sent)));
                    bus.send(to::Bridge, Word::Number(me, sent));
                    for letter in sent * EACH..(sent + 1) * EACH {
                        for (shard, went) in went.iter_mut().enumerate() {
                            *went += u32::from(if shard < shards {
                                bus.try_send(to::Shard(shard), (me, letter))
                            } else {
                                bus.try_send(to::Bridge, (me, letter))
                            });
                        }
                    }
                }
                Ordering::Equal => {
                    (0..shards).for_each(|shard| bus.send(to::Shard(shard), Word::Last(me, went[shard])));
                    bus.send(to::Bridge, Word::Last(me, went[shards]));
                }
                Ordering::Greater => break,
            }
            sent += 1;
        }
        let polled = pump.poll(cx, |letter| match letter {
            Received::Control(Word::Number(from, letter)) => {
                let one = from_all.entry(from).or_default();
                assert_eq!(letter, one.control, "from {from}");
                one.control += 1;
            }
            Received::Control(Word::Last(from, went)) => from_all.entry(from).or_default().last = Some(went),
            Received::Droppable((from, letter)) => {
                let (next, seen) = &mut from_all.entry(from).or_default().droppable;
                assert!(letter >= *next, "from {from}: {letter} after {next}");
                (*next, *seen) = (letter + 1, *seen + 1);
            }
        });
        assert!(polled.is_pending());
        let is_whole = |one: &FromOne| one.control == count && one.last == Some(one.droppable.1);
        // The bridge has no line with a second lane to itself.
        let done =
            from_all.len() == shards + 1 && from_all.values().all(is_whole) && bus.waiting() == 0 && sent > count;
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let counts = bus.counts();
    assert_eq!(counts.sent_droppable, u64::from(went.iter().sum::<u32>()));
    assert_eq!(counts.sent_droppable + counts.dropped, u64::from(count * EACH) * (shards as u64 + 1));
    assert_eq!(pump.received(), u64::from(count + 1) * (shards as u64 + 1));
    assert_eq!(pump.received_droppable(), from_all.values().map(|one| u64::from(one.droppable.1)).sum::<u64>());
    u32::try_from(counts.dropped).expect("few were offered")
}

#[test]
fn under_a_flood_of_both_lanes_control_is_whole_and_the_other_is_counted() {
    const LETTERS: u32 = 2_000;
    for driver in testing::drivers() {
        let Mesh { bridge, shards, .. } = build::<TwoLanes>(2, 32);
        let mut threads: Vec<_> = shards
            .into_iter()
            .map(|port| {
                thread::spawn(move || {
                    testing::on(driver, move || async move {
                        let ends = on_shard(port).expect("a port");
                        let done = timer::within(give_up(), flood(ends, LETTERS)).await;
                        assert!(done.expect("letters are missing") > 0, "the rings were meant to be full");
                    });
                })
            })
            .collect();
        threads.push(thread::spawn(move || {
            on_control(|| async move {
                let ends = on_tokio(bridge).expect("a port");
                let done = tokio::time::timeout(Duration::from_mins(1), flood(ends, LETTERS)).await;
                assert!(done.expect("letters are missing") > 0, "the rings were meant to be full");
            });
        }));
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Whoever answers each letter with another one keeps its lane full for ever.
#[test]
fn a_lane_that_never_empties_leaves_the_other_and_the_thread_their_turns() {
    enum Echoes {}
    impl Letters for Echoes {
        type Control = ();
        type Bridge = ();
        type Shard = bool;
        type DroppableToBridge = ();
        type DroppableToShard = bool;
    }
    const MANY: usize = 3 * BUDGET;
    testing::on_both_drivers(|| async {
        for flooded in [Received::Control(()), Received::Droppable(())] {
            let port = build::<Echoes>(1, 2 * MANY).shards.pop().expect("there is one");
            let (bus, mut pump) = on_shard(port).expect("a port");
            let (mut heard, mut polls, mut handled) = (None, 0, 0);
            poll_fn(|cx| {
                polls += 1;
                if polls == 1 {
                    for _ in 0..MANY {
                        match flooded {
                            Received::Control(()) => bus.send(to::Shard(0), true),
                            Received::Droppable(()) => assert!(bus.try_send(to::Shard(0), true)),
                        }
                    }
                } else if polls == 2 {
                    // One over the other lane, behind all of them.
                    match flooded {
                        Received::Control(()) => assert!(bus.try_send(to::Shard(0), false)),
                        Received::Droppable(()) => bus.send(to::Shard(0), false),
                    }
                }
                let before = handled;
                let polled = pump.poll(cx, |letter| {
                    handled += 1;
                    match letter {
                        Received::Control(true) => bus.send(to::Shard(0), true),
                        Received::Droppable(true) => assert!(bus.try_send(to::Shard(0), true)),
                        Received::Control(false) | Received::Droppable(false) => heard = Some(polls),
                    }
                });
                assert!(polled.is_pending());
                assert!(handled - before <= BUDGET, "the thread has its turn");
                if polls == 8 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            assert_eq!(heard, Some(2), "{flooded:?}");
            let least = if matches!(flooded, Received::Control(())) { BUDGET } else { BUDGET / 2 };
            assert!(handled >= 7 * least, "{flooded:?}: {handled}");
        }
    });
}

/// Letters of one type for shards; nobody else is told anything.
struct ToShards<T>(PhantomData<T>);

impl<T: Send + 'static> Letters for ToShards<T> {
    type Control = ();
    type Bridge = ();
    type Shard = T;
    type DroppableToBridge = ();
    type DroppableToShard = ();
}

/// The port of a lone shard.
fn lone<T: Send + 'static>() -> Port<ToShards<T>, to::Shard> {
    build::<ToShards<T>>(1, 4).shards.pop().expect("there is one")
}

#[test]
fn what_a_task_sends_goes_out_by_itself() {
    testing::on_both_drivers(|| async {
        let (bus, pump) = on_shard(lone::<u32>()).expect("a port");
        let heard = Rc::new(Cell::new(0));
        let count = Rc::clone(&heard);
        let echo = bus.clone();
        task::spawn("pump", async move {
            pump.run(|letter| {
                let Received::Control(letter) = letter else { return };
                count.set(count.get() + 1);
                // Sending from within the handler neither recurses nor wakes the pump by itself.
                if letter > 0 {
                    echo.send(to::Shard(0), letter - 1);
                }
            })
            .await;
        });
        // Only once the pump rests does a letter have to wake it.
        testing::until(|| bus.shared.with(|shared| matches!(shared.pump, PumpState::Resting(_)))).await;
        bus.send(to::Shard(0), 99);
        testing::until(|| heard.get() == 100).await;
    });
}

#[test]
fn a_panic_in_the_handler_ends_the_process() {
    let Some(output) = testing::in_child("bus::tests::a_panic_in_the_handler_ends_the_process") else {
        testing::on(Driver::Epoll, || async {
            let (bus, pump) = on_shard(lone::<()>()).expect("a port");
            task::spawn("pump", async move {
                pump.run(|_| panic!("a letter that nobody understands")).await;
            });
            bus.send(to::Shard(0), ());
            testing::until(|| false).await;
        });
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(testing::signal(&output), Some(libc::SIGABRT), "{said}");
    assert!(said.contains("a letter that nobody understands"), "{said}");
}

/// Sends to shard 1 and rings for every letter, but never has more than a few under way, so that the reader falls
/// asleep and is woken all the time.
async fn pester<A: Address<Pestering, Letter = Pester>>((bus, mut pump): (Bus<Pestering>, Pump<Pestering, A>)) {
    let me = bus.me();
    let mut over = false;
    (0..8).for_each(|_| bus.send(to::Shard(1), Pester::Poke(me)));
    poll_fn(|cx| {
        let polled = pump.poll(cx, |letter| match letter {
            Received::Control(Pester::Poke(_)) => {
                bus.send(to::Shard(1), Pester::Poke(me));
                bus.flush();
            }
            Received::Control(Pester::Stop) => over = true,
            Received::Droppable(_) => {}
        });
        assert!(polled.is_pending());
        if over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

enum Pester {
    /// Who pokes.
    Poke(ThreadId),
    Stop,
}

enum Pestering {}

impl Letters for Pestering {
    type Control = Pester;
    type Bridge = ();
    type Shard = Pester;
    type DroppableToBridge = ();
    type DroppableToShard = ();
}

/// Foreign wake-ups starve poll I/O on io_uring; bells must not. Two threads keep the shard's bell ringing while two of
/// its tasks talk over loopback: both the letters and the echoes have to get on.
#[test]
fn io_stays_alive_while_the_mesh_is_busy() {
    const LETTERS: u64 = 20_000;
    const ECHOES: u64 = 2_000;
    for driver in testing::drivers() {
        let Mesh { control, mut shards, .. } = build::<Pestering>(2, 64);
        let mut shard = || shards.pop().expect("two were built");
        let (shard, other) = (shard(), shard());
        let pesters = [
            thread::spawn(move || on_control(|| async move { pester(on_tokio(control).expect("a port")).await })),
            thread::spawn(move || {
                testing::on(driver, move || async move { pester(on_shard(other).expect("a port")).await });
            }),
        ];
        testing::on(driver, move || async move {
            let (bus, pump) = on_shard(shard).expect("a port");
            let letters = Rc::new(Cell::new(0));
            let echoes = Rc::new(Cell::new(0));
            let stalls = Rc::new(Cell::new(0_u64));

            let reply = bus.clone();
            let (count, last) = (Rc::clone(&letters), Rc::clone(&stalls));
            task::spawn("pump", async move {
                pump.run(|poke| {
                    let Received::Control(poke) = poke else { return };
                    count.set(count.get() + 1);
                    last.set(last.get() + 1);
                    match poke {
                        Pester::Poke(ThreadId::Shard(from)) => reply.send(to::Shard(from), poke),
                        _ => reply.send(to::Control, poke),
                    }
                })
                .await;
            });

            let mut bound = bind("listener", "127.0.0.1:0".parse().expect("an address"), 16, 1).expect("a port");
            let acceptor = Rc::new(Acceptor::new(bound.sockets.pop().expect("one socket")).expect("an acceptor"));
            let accepting = Rc::clone(&acceptor);
            task::spawn("acceptor", async move {
                let result = accepting
                    .run(|fd, _| {
                        task::spawn("echo", async move {
                            let mut stream = TcpStream::from_fd(fd).expect("registered");
                            let mut bytes = [0; 16];
                            while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                                stream.write_all(&bytes[..read]).await.expect("written");
                            }
                        });
                    })
                    .await;
                result.expect("it was stopped");
            });

            let worst = Rc::new(Cell::new(0));
            let (count, most, between) = (Rc::clone(&echoes), Rc::clone(&worst), Rc::clone(&stalls));
            task::spawn("client", async move {
                let mut stream = TcpStream::connect(bound.address, give_up()).await.expect("connected");
                let mut bytes = [0; 4];
                loop {
                    between.set(0);
                    stream.write_all(b"ping").await.expect("written");
                    stream.read_exact(&mut bytes).await.expect("read");
                    most.set(between.get().max(most.get()));
                    count.set(count.get() + 1);
                }
            });

            testing::until(|| letters.get() >= LETTERS && echoes.get() >= ECHOES).await;
            // An echo takes a handful of the shard's turns, and a turn handles at most a budget of letters.
            let turns = worst.get() / BUDGET as u64;
            assert!(turns < 64, "{} letters were handled within one echo", worst.get());
            acceptor.stop();
            bus.send(to::Control, Pester::Stop);
            bus.send(to::Shard(0), Pester::Stop);
            // The pump, which would ring, ends with this future.
            bus.flush();
            testing::until(|| bus.waiting() == 0).await;
        });
        for pester in pesters {
            pester.join().expect("it ended well");
        }
    }
}

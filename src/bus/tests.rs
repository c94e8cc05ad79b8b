//! The mesh across real threads, on both drivers.

use std::cell::Cell;
use std::rc::Rc;
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

/// Sends `count` numbered letters to every thread of the mesh, itself included, and receives as many from each, checking
/// that they come once and in order. Then waits until nothing of its own waits any more.
async fn exchange((bus, mut pump): (Bus<u32>, Pump<u32>), count: u32) {
    let mut seen = vec![0; bus.len()];
    let mut sent = 0;
    poll_fn(|cx| {
        // All threads send as fast as they can; the small rings overflow at once.
        while sent < count {
            (0..bus.len()).for_each(|to| bus.send(to, sent));
            sent += 1;
        }
        let polled = pump.poll(cx, |from, letter| {
            assert_eq!(letter, seen[from], "from thread {from}");
            seen[from] += 1;
        });
        assert!(polled.is_pending());
        let done = bus.waiting() == 0 && seen.iter().all(|&seen| seen == count);
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    assert!(bus.counts().spilled > 0, "the rings were meant to overflow");
    assert_eq!(pump.received(), u64::from(count) * bus.len() as u64);
}

#[test]
fn every_letter_arrives_once_and_in_order() {
    const LETTERS: u32 = 3_000;
    for driver in testing::drivers() {
        let mut mesh = build(4, 32);
        let shards: Vec<_> = mesh
            .drain(1..)
            .map(|end| {
                thread::spawn(move || {
                    testing::on(driver, move || async move {
                        let ends = on_shard(end).expect("an endpoint");
                        let done = timer::within(give_up(), exchange(ends, LETTERS)).await;
                        assert!(done.is_some(), "letters are missing");
                    });
                })
            })
            .collect();
        let control = mesh.pop().expect("one is left");
        on_control(|| async move {
            let ends = on_tokio(control).expect("an endpoint");
            let done = tokio::time::timeout(Duration::from_mins(1), exchange(ends, LETTERS)).await;
            assert!(done.is_ok(), "letters are missing");
        });
        for shard in shards {
            if let Err(panic) = shard.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

fn build<L: Send>(count: usize, capacity: usize) -> Vec<Endpoint<L>> {
    mesh::build(count, capacity).expect("a mesh")
}

#[test]
fn what_a_task_sends_goes_out_by_itself() {
    testing::on_both_drivers(|| async {
        let (bus, pump) = on_shard(build(1, 4).pop().expect("one end")).expect("an endpoint");
        let heard = Rc::new(Cell::new(0));
        let count = Rc::clone(&heard);
        let echo = bus.clone();
        task::spawn("pump", async move {
            pump.run(|from, letter: u32| {
                count.set(count.get() + 1);
                // Sending from within the handler neither recurses nor wakes the pump by itself.
                if letter > 0 {
                    echo.send(from, letter - 1);
                }
            })
            .await;
        });
        // Only once the pump rests does a letter have to wake it.
        testing::until(|| bus.shared.with(|shared| matches!(shared.pump, Attention::Resting(_)))).await;
        bus.send(bus.me(), 99);
        testing::until(|| heard.get() == 100).await;
    });
}

#[test]
fn a_panic_in_the_handler_ends_the_process() {
    let Some(output) = testing::in_child("bus::tests::a_panic_in_the_handler_ends_the_process") else {
        testing::on(Driver::Epoll, || async {
            let (bus, pump) = on_shard(build(1, 4).pop().expect("one end")).expect("an endpoint");
            task::spawn("pump", async move {
                pump.run(|_, (): ()| panic!("a letter that nobody understands")).await;
            });
            bus.send(0, ());
            testing::until(|| false).await;
        });
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(testing::signal(&output), Some(libc::SIGABRT), "{said}");
    assert!(said.contains("a letter that nobody understands"), "{said}");
}

/// Sends to thread 1 and rings for every letter, but never has more than a few under way, so that the reader falls
/// asleep and is woken all the time.
async fn pester((bus, mut pump): (Bus<Pester>, Pump<Pester>)) {
    let mut over = false;
    (0..8).for_each(|_| bus.send(1, Pester::Poke));
    poll_fn(|cx| {
        let reply = bus.clone();
        let polled = pump.poll(cx, |from, letter| match letter {
            Pester::Poke => {
                reply.send(from, Pester::Poke);
                reply.flush();
            }
            Pester::Stop => over = true,
        });
        assert!(polled.is_pending());
        if over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

enum Pester {
    Poke,
    Stop,
}

/// Foreign wake-ups starve poll I/O on io_uring; bells must not. Two threads keep the shard's bell ringing while two of
/// its tasks talk over loopback: both the letters and the echoes have to get on.
#[test]
fn io_stays_alive_while_the_mesh_is_busy() {
    const LETTERS: u64 = 20_000;
    const ECHOES: u64 = 2_000;
    for driver in testing::drivers() {
        let mut mesh = build::<Pester>(3, 64).into_iter();
        let mut end = || mesh.next().expect("three were built");
        let (control, shard, other) = (end(), end(), end());
        let pesters = [
            thread::spawn(move || on_control(|| async move { pester(on_tokio(control).expect("an endpoint")).await })),
            thread::spawn(move || {
                testing::on(driver, move || async move { pester(on_shard(other).expect("an endpoint")).await });
            }),
        ];
        testing::on(driver, move || async move {
            let (bus, pump) = on_shard(shard).expect("an endpoint");
            let letters = Rc::new(Cell::new(0));
            let echoes = Rc::new(Cell::new(0));
            let stalls = Rc::new(Cell::new(0_u64));

            let reply = bus.clone();
            let (count, last) = (Rc::clone(&letters), Rc::clone(&stalls));
            task::spawn("pump", async move {
                pump.run(|from, _poke| {
                    count.set(count.get() + 1);
                    last.set(last.get() + 1);
                    reply.send(from, Pester::Poke);
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
            bus.send(0, Pester::Stop);
            bus.send(2, Pester::Stop);
            // The pump, which would ring, ends with this future.
            bus.flush();
            testing::until(|| bus.waiting() == 0).await;
        });
        for pester in pesters {
            pester.join().expect("it ended well");
        }
    }
}

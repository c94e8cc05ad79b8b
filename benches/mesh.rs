//! Letters between two threads: how many a second one way, and how long one takes there and back.
//!
//! Both threads spin, so this is what the rings cost; a sleeping reader costs a wake-up by its doorbell on top, which is
//! the kernel's time and not ours.

use std::hint::black_box;
use std::thread;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shardgate::bus::{
    mesh::{Capacity, Inbox, Letters, Outbox, Received, build},
    to,
};

/// As large as a letter that carries a socket and an address.
type Letter = [u64; 6];

/// Two shards write each other.
enum Numbers {}

impl Letters for Numbers {
    type Control = ();
    type Bridge = ();
    type Shard = Letter;
    type DroppableToBridge = ();
    type DroppableToShard = Letter;
}

/// What ends the other thread.
const STOP: u64 = u64::MAX;

/// Letters in one batch: the rings hold four of them.
const BATCH: u64 = 1024;

/// This thread's half, and another thread that runs `other` on its half.
fn two(
    other: impl FnOnce(Outbox<Numbers>, Inbox<Letter, Letter>) + Send + 'static,
) -> (Outbox<Numbers>, Inbox<Letter, Letter>, thread::JoinHandle<()>) {
    let mut shards = build::<Numbers>(2, Capacity { control: 4096, droppable: 4096 }).expect("a mesh").shards;
    let theirs = shards.pop().expect("two ends");
    let ours = shards.pop().expect("two ends");
    let thread = thread::spawn(move || {
        let (outbox, inbox) = theirs.split();
        other(outbox, inbox);
    });
    let (outbox, inbox) = ours.split();
    (outbox, inbox, thread)
}

/// Answers the last letter of each batch, so that the sender knows when the batch has arrived.
fn acknowledge(mut outbox: Outbox<Numbers>, mut inbox: Inbox<Letter, Letter>) {
    let mut stop = false;
    while !stop {
        inbox.drain(256, |letter| {
            let (Received::Control(letter) | Received::Droppable(letter)) = letter;
            if letter[0] == STOP {
                stop = true;
            } else if letter[0] == BATCH - 1 {
                outbox.send(to::Shard(0), letter);
            }
            _ = black_box(letter);
        });
        outbox.flush();
    }
}

fn one_way(c: &mut Criterion) {
    let (mut outbox, mut inbox, thread) = two(acknowledge);
    let mut group = c.benchmark_group("mesh");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("one way", |b| {
        b.iter(|| {
            for number in 0..BATCH {
                outbox.send(to::Shard(1), [number; 6]);
            }
            outbox.flush();
            while inbox.drain(1, |letter| _ = black_box(letter)) == 0 {
                std::hint::spin_loop();
            }
        });
    });
    group.finish();
    outbox.send(to::Shard(1), [STOP; 6]);
    outbox.flush();
    thread.join().expect("the other thread ends well");
}

fn one_way_droppable(c: &mut Criterion) {
    let (mut outbox, mut inbox, thread) = two(acknowledge);
    let mut group = c.benchmark_group("mesh");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("one way, droppable", |b| {
        b.iter(|| {
            for number in 0..BATCH {
                // None is dropped: the ring holds four batches, and the last one has arrived.
                assert!(outbox.try_send(to::Shard(1), [number; 6]));
            }
            outbox.flush();
            while inbox.drain(1, |letter| _ = black_box(letter)) == 0 {
                std::hint::spin_loop();
            }
        });
    });
    group.finish();
    outbox.send(to::Shard(1), [STOP; 6]);
    outbox.flush();
    thread.join().expect("the other thread ends well");
}

fn there_and_back(c: &mut Criterion) {
    let (mut outbox, mut inbox, thread) = two(acknowledge);
    c.bench_function("mesh/there and back", |b| {
        b.iter(|| {
            outbox.send(to::Shard(1), [BATCH - 1; 6]);
            outbox.flush();
            while inbox.drain(1, |letter| _ = black_box(letter)) == 0 {
                std::hint::spin_loop();
            }
        });
    });
    outbox.send(to::Shard(1), [STOP; 6]);
    outbox.flush();
    thread.join().expect("the other thread ends well");
}

criterion_group!(benches, one_way, one_way_droppable, there_and_back);
criterion_main!(benches);

//! The rings, driven by hand.

use super::inbox::BATCH;
use super::*;
use crate::shard::testing;

/// Numbers for shards; nobody else is told anything.
enum Numbers {}

impl Letters for Numbers {
    type Control = ();
    type Bridge = ();
    type Shard = u32;
    type DroppableToBridge = ();
    type DroppableToShard = u32;
}

fn both(capacity: usize) -> Capacity {
    Capacity { control: capacity, droppable: capacity }
}

/// Two halves of one direction, the bridge's to shard 0.
fn pair(capacity: usize) -> (Outbox<Numbers>, Inbox<u32, u32>) {
    let mut mesh = build::<Numbers>(1, both(capacity)).expect("a mesh");
    let reader = mesh.shards.pop().expect("there is one");
    (mesh.bridge.split().0, reader.split().1)
}

/// What is taken with such a budget, when there are control letters only.
fn drained(inbox: &mut Inbox<u32, u32>, budget: usize) -> Vec<u32> {
    let mut letters = Vec::new();
    let taken = inbox.drain(budget, |letter| match letter {
        Received::Control(letter) => letters.push(letter),
        Received::Droppable(letter) => panic!("{letter} is droppable"),
    });
    assert_eq!(taken, letters.len());
    letters
}

#[test]
fn letters_that_do_not_fit_wait_and_keep_their_order() {
    let (mut outbox, mut inbox) = pair(4);
    for letter in 0..10 {
        outbox.send(to::Shard(0), letter);
    }
    outbox.flush();
    assert_eq!((outbox.waiting(), outbox.counts().spilled), (6, 6));
    let mut seen = Vec::new();
    for turn in 0..4 {
        seen.extend(drained(&mut inbox, 3));
        if turn == 0 {
            // There is room in the ring again, but others were first.
            outbox.send(to::Shard(0), 10);
        }
        outbox.flush();
    }
    assert_eq!(seen, (0..11).collect::<Vec<_>>());
    assert_eq!((outbox.waiting(), outbox.counts().sent, inbox.received()), (0, 11, 11));
}

#[test]
fn no_sender_is_heard_late_because_of_another() {
    let mut mesh = build::<Numbers>(1, both(1024)).expect("a mesh");
    let (_own, mut inbox) = mesh.shards.pop().expect("there is one").split();
    let (mut quiet, _bridge) = mesh.bridge.split();
    let (mut loud, _control) = mesh.control.split();
    (0..1000).for_each(|letter| loud.send(to::Shard(0), letter));
    quiet.send(to::Shard(0), 7_000);
    let first = drained(&mut inbox, BATCH + 1);
    assert!(first.contains(&7_000));
    assert_eq!(drained(&mut inbox, usize::MAX).len(), 1000 - BATCH);
    assert!(!inbox.has_letters());
}

#[test]
fn a_letter_reaches_the_thread_it_is_for() {
    enum Words {}
    impl Letters for Words {
        type Control = &'static str;
        type Bridge = char;
        type Shard = u32;
        type DroppableToBridge = char;
        type DroppableToShard = i64;
    }
    let Mesh { control, bridge, shards } = build::<Words>(2, both(4)).expect("a mesh");
    let (_, mut control) = control.split();
    let (_, mut bridge) = bridge.split();
    let (mut outboxes, mut inboxes): (Vec<_>, Vec<_>) = shards.into_iter().map(Port::split).unzip();
    assert_eq!(outboxes.iter().map(Outbox::me).collect::<Vec<_>>(), [ThreadId::Shard(0), ThreadId::Shard(1)]);
    let sender = &mut outboxes[1];
    sender.send(to::Control, "control");
    sender.send(to::Bridge, 'b');
    sender.send(to::Shard(0), 0);
    let mut number = 10;
    sender.broadcast(|| {
        number += 1;
        number
    });
    assert!(sender.try_send(to::Bridge, 'd') && sender.try_send(to::Shard(0), -1));
    sender.flush();
    let mut seen = Vec::new();
    control.drain(usize::MAX, |Received::Control(word)| seen.push(word.to_owned()));
    bridge.drain(usize::MAX, |sign| {
        let (Received::Control(sign) | Received::Droppable(sign)) = sign;
        seen.push(sign.to_string());
    });
    for inbox in &mut inboxes {
        inbox.drain(usize::MAX, |number| {
            seen.push(match number {
                Received::Control(number) => number.to_string(),
                Received::Droppable(number) => number.to_string(),
            });
        });
    }
    assert_eq!(seen, ["control", "b", "d", "0", "11", "-1", "12"]);
}

#[test]
fn letters_to_a_thread_that_has_ended_are_dropped_and_counted() {
    let (mut outbox, inbox) = pair(2);
    (0..5).for_each(|letter| outbox.send(to::Shard(0), letter));
    drop(inbox);
    outbox.flush();
    assert_eq!((outbox.waiting(), outbox.counts().undeliverable), (0, 3));
    outbox.send(to::Shard(0), 5);
    assert_eq!(outbox.counts().undeliverable, 4);
}

/// Control letters as they are, droppable ones negative.
fn taken(inbox: &mut Inbox<u32, u32>, share: &mut Share) -> Vec<i64> {
    let mut letters = Vec::new();
    let count = inbox.drain_within(
        share,
        || true,
        |letter| {
            letters.push(match letter {
                Received::Control(letter) => i64::from(letter),
                Received::Droppable(letter) => -i64::from(letter),
            });
        },
    );
    assert_eq!(count, letters.len());
    letters
}

#[test]
fn what_does_not_fit_is_dropped_counted_and_told() {
    let (mut outbox, mut inbox) = pair(2);
    let went: Vec<_> = (1..=4).map(|letter| outbox.try_send(to::Shard(0), letter)).collect();
    assert_eq!(went, [true, true, false, false]);
    // The other lane has room of its own.
    outbox.send(to::Shard(0), 7);
    assert_eq!(taken(&mut inbox, &mut Share::of(8)), [7, -1, -2]);
    assert!(outbox.try_send(to::Shard(0), 5), "there is room again");
    assert_eq!(taken(&mut inbox, &mut Share::of(8)), [-5]);
    let OutboxCounts { sent, sent_droppable, dropped, spilled, .. } = outbox.counts();
    assert_eq!((sent, sent_droppable, dropped, spilled), (1, 3, 2, 0));
    assert_eq!((inbox.received(), inbox.received_droppable()), (1, 3));
    drop(inbox);
    assert!((0..4).any(|letter| !outbox.try_send(to::Shard(0), letter)), "nothing grows when nobody reads");
}

#[test]
fn the_control_thread_has_nothing_that_may_be_dropped() {
    let mesh = build::<Numbers>(1, both(4)).expect("a mesh");
    let (mut control, _inbox) = mesh.control.split();
    assert!(!control.try_send(to::Shard(0), 1) && !control.try_send(to::Bridge, ()));
    assert_eq!(control.counts().dropped, 2);
}

#[test]
fn neither_lane_starves_the_other() {
    let (mut outbox, mut inbox) = pair(64);
    let lanes =
        |letters: &[i64]| letters.chunk_by(|one, two| (*one > 0) == (*two > 0)).map(<[_]>::len).collect::<Vec<_>>();
    (1..=64).for_each(|letter| outbox.send(to::Shard(0), letter));
    fill_droppable(&mut outbox);
    // Both wait: control letters first, and half of the budget each.
    let mut share = Share::of(20);
    assert_eq!(lanes(&taken(&mut inbox, &mut share)), [10, 10]);
    assert!(inbox.is_used_up(&share));
    // Droppable ones alone have their half, however often one looks within the same share.
    drained_control(&mut inbox);
    fill_droppable(&mut outbox);
    let mut share = Share::of(20);
    assert_eq!(lanes(&taken(&mut inbox, &mut share)), [10]);
    assert!(
        taken(&mut inbox, &mut share).is_empty() && inbox.is_used_up(&share),
        "letters wait that it does not allow"
    );
    // Whoever takes no more of them leaves them where they are, and has used up its share of them.
    let mut share = Share::of(20);
    let count = std::cell::Cell::new(0);
    assert_eq!(inbox.drain_within(&mut share, || count.get() < 3, |_| count.set(count.get() + 1)), 3);
    assert!(taken(&mut inbox, &mut share).is_empty() && inbox.is_used_up(&share));
    // What comes meanwhile over the other lane is still taken.
    outbox.send(to::Shard(0), 1);
    assert_eq!(lanes(&taken(&mut inbox, &mut share)), [1]);
    // Control letters alone have all of it.
    while !taken(&mut inbox, &mut Share::of(128)).is_empty() {}
    (1..=64).for_each(|letter| outbox.send(to::Shard(0), letter));
    let mut share = Share::of(20);
    assert_eq!(taken(&mut inbox, &mut share).len(), 20);
    assert!(inbox.is_used_up(&share));
}

fn fill_droppable(outbox: &mut Outbox<Numbers>) {
    while outbox.try_send(to::Shard(0), 1) {}
}

/// Takes all control letters and no others.
fn drained_control(inbox: &mut Inbox<u32, u32>) {
    // A budget of one has no half for the other lane.
    while inbox.drain(1, |_| ()) > 0 {}
}

#[test]
fn a_reader_that_is_stuck_ends_the_process() {
    let Some(output) = testing::in_child("bus::mesh::tests::a_reader_that_is_stuck_ends_the_process") else {
        let (mut outbox, _stuck) = pair(1);
        let last = u32::try_from(SPILL_MAX).expect("it is small") + 1;
        (0..last).for_each(|letter| outbox.send(to::Shard(0), letter));
        assert_eq!(outbox.waiting(), SPILL_MAX);
        eprintln!("the spill is full");
        outbox.send(to::Shard(0), last);
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(testing::signal(&output), Some(libc::SIGABRT), "{said}");
    assert!(said.contains("the spill is full") && said.contains("shard 0 has not taken"), "{said}");
    assert!(said.contains("letters from the bridge"), "{said}");
}

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
}

/// Two halves of one direction, the bridge's to shard 0.
fn pair(capacity: usize) -> (Outbox<Numbers>, Inbox<u32>) {
    let mut mesh = build::<Numbers>(1, capacity).expect("a mesh");
    let reader = mesh.shards.pop().expect("there is one");
    (mesh.bridge.split().0, reader.split().1)
}

fn drained(inbox: &mut Inbox<u32>, budget: usize) -> Vec<u32> {
    let mut letters = Vec::new();
    let taken = inbox.drain(budget, |letter| letters.push(letter));
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
    let mut mesh = build::<Numbers>(1, 1024).expect("a mesh");
    let (_own, mut inbox) = mesh.shards.pop().expect("there is one").split();
    let (mut quiet, _bridge) = mesh.bridge.split();
    let (mut loud, _control) = mesh.control.split();
    (0..1000).for_each(|letter| loud.send(to::Shard(0), letter));
    quiet.send(to::Shard(0), 7_000);
    let first = drained(&mut inbox, BATCH + 1);
    assert_eq!(first.last(), Some(&7_000));
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
    }
    let Mesh { control, bridge, shards } = build::<Words>(2, 4).expect("a mesh");
    let (_, mut control) = control.split();
    let (_, mut bridge) = bridge.split();
    let (mut outboxes, mut inboxes): (Vec<_>, Vec<_>) = shards.into_iter().map(Port::split).unzip();
    assert_eq!(outboxes.iter().map(Outbox::me).collect::<Vec<_>>(), [Endpoint::Shard(0), Endpoint::Shard(1)]);
    let sender = &mut outboxes[1];
    sender.send(to::Control, "control");
    sender.send(to::Bridge, 'b');
    sender.send(to::Shard(0), 0);
    let mut number = 10;
    sender.broadcast(|| {
        number += 1;
        number
    });
    sender.flush();
    let mut seen = Vec::new();
    control.drain(usize::MAX, |word| seen.push(word.to_owned()));
    bridge.drain(usize::MAX, |sign| seen.push(sign.to_string()));
    for inbox in &mut inboxes {
        inbox.drain(usize::MAX, |number| seen.push(number.to_string()));
    }
    assert_eq!(seen, ["control", "b", "0", "11", "12"]);
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

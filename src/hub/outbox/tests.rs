//! Tables of what is dropped and told, and seeds against a model that knows only what was pushed and what came out.

use std::collections::BTreeMap;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::super::encode::Encoder;
use super::super::position::{Epoch, Position};
use super::*;

/// Numbers messages by room, as a home would.
#[derive(Default)]
struct Sender {
    encoder: Encoder,
    seqs: BTreeMap<String, u64>,
}

impl Sender {
    /// A message like `a7x`: of room `a`, with the payload "x" and its own number.
    fn message(&mut self, room: &str, slow: Slow, payload_bytes: usize) -> Frame {
        let seq = self.seqs.entry(room.to_owned()).or_default();
        *seq += 1;
        let position = Position { epoch: Epoch::parse("k3"), seq: *seq };
        let text = self.encoder.room_message(0, room, position, "u", &"7".repeat(payload_bytes.max(1)));
        let room = RoomName::parse(room).expect("a name");
        self.encoder.frame(&text, Kind::Message { room, position, slow })
    }
}

/// `p` for a plain frame, `a7` for a message, `a(7-9)` for a gap.
fn name(frame: &Frame) -> String {
    match frame.kind() {
        Kind::Plain => "p".to_owned(),
        Kind::Message { room, position, .. } => format!("{room}{}", position.seq),
        Kind::Gap(gap) => format!("{}({}-{})", gap.room, gap.from, gap.to),
        Kind::Opening => "101".to_owned(),
    }
}

fn names(outbox: &Outbox) -> String {
    outbox.frames.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// Pushes what `script` names into an outbox for so many messages: `a` drops its oldest, `c` and `d` keep the latest with
/// the key after it, all others close; `p` is plain, `!` is a write of ten bytes, `.` of all but ten.
fn check(messages: usize, script: &str, expected: &Expect) {
    let mut sender = Sender::default();
    let one = cost(&sender.message("x", Slow::Close, 1));
    let mut outbox = Outbox::default();
    let mut lines = String::new();
    for word in script.split(' ') {
        let (room, key) = word.split_at(1);
        let frame = match room {
            "p" => sender.encoder.reconnect(1),
            "a" | "b" => sender.message(room, Slow::DropOldest, 1),
            "c" | "d" => sender.message(room, Slow::Latest(Key::of(key)), 1),
            "!" => {
                outbox.written(10);
                continue;
            }
            "." => {
                let all: usize = outbox.frames.iter().map(|frame| frame.bytes().len()).sum();
                outbox.written(all - outbox.begun() - 10);
                continue;
            }
            _ => sender.message(room, Slow::Close, 1),
        };
        if let Err(full) = outbox.push(frame, messages * one) {
            lines.push_str(&full.to_string());
            lines.push_str(": ");
        }
    }
    expected.assert_eq(&(lines + &names(&outbox)));
}

#[test]
fn what_may_go_goes_and_is_told() {
    // An eighth of 8 is one: two go for the ninth, and a gap comes in their place.
    check(8, "a a a a a a a a", &expect!["a1 a2 a3 a4 a5 a6 a7 a8"]);
    check(8, "a a a a a a a a a", &expect!["a(1-4) a5 a6 a7 a8 a9"]);
    check(8, "a a a a a a a a a a a a a", &expect!["a(1-6) a7 a8 a9 a10 a11 a12 a13"]);
    // Its own room's first, then others'.
    check(8, "b b b a a a b b a", &expect!["b1 b2 b3 a(1-3) b4 b5 a4"]);
    check(8, "b b b b b b b b a", &expect!["b(1-4) b5 b6 b7 b8 a1"]);
    // Answers and messages of other rooms stay.
    check(8, "p a x a a p x a a a", &expect!["p a(1-3) x2 p x3 a4 a5 a6"]);
    check(8, "x x x x x x x x a", &expect!["the outbox is full: x2 x3 x4 x5 x6 x7 x8 x9"]);
    check(8, "x x x x x x x a a", &expect!["the outbox is full: x2 x3 x4 x5 x6 x7 x8 a(1-1)"]);
    // What is partly written stays.
    check(8, "a ! a a a a a a a a", &expect!["a1 a(2-5) a6 a7 a8 a9"]);
    check(8, "a a a a a a a a . a a a a a a a a", &expect!["a8 a(9-11) a12 a13 a14 a15 a16"]);
}

#[test]
fn only_the_latest_with_each_key_stays() {
    check(8, "c1 c2 c1 c3 c1 c2 c1 c1 c1", &expect!["c(1-3) c4 c(5-5) c6 c(7-8) c9"]);
    check(8, "c1 c2 c3 c4 c5 c6 c7 c8 c1", &expect!["the outbox is full: c(1-1) c2 c3 c4 c5 c6 c7 c8"]);
    check(8, "c1 d1 c1 d1 c1 d1 c2 d2 x", &expect!["c(1-2) d(1-2) c3 d3 c4 d4 x2"]);
    check(8, "c1 c1 c1 c1 c1 c1 c1 c1 p c1 c1 c1 c1 c1 c1 c1", &expect!["c(1-13) p c14 c15"]);
    check(8, "c1 ! c1 c1 c1 c1 c1 c1 c1 c1", &expect!["c1 c(2-8) c9"]);
}

#[test]
fn the_answer_to_the_handshake_is_first_and_stays() {
    let mut sender = Sender::default();
    let mut outbox = Outbox::default();
    let welcome = sender.encoder.reconnect(1);
    let opening = Frame::of_wire(b"HTTP/1.1 101\r\n\r\n".to_vec(), Kind::Opening, welcome.tally());
    let opening_bytes = opening.bytes().len();
    outbox.push(welcome, 1000).expect("there is room");
    outbox.begin_with(opening);
    // More than fits: the rest makes room.
    for _ in 0..100 {
        outbox.push(sender.message("a", Slow::DropOldest, 1), 1000).expect("the oldest go");
    }
    assert!(names(&outbox).starts_with("101 p a("), "{}", names(&outbox));
    outbox.abandon();
    assert_eq!(names(&outbox), "101");
    assert_eq!(outbox.bytes(), opening_bytes + REFERENCE_BYTES);
    outbox.written(opening_bytes);
    outbox.push(sender.message("a", Slow::DropOldest, 1), 1000).expect("there is room");
    outbox.abandon();
    assert_eq!((names(&outbox), outbox.bytes()), (String::new(), 0));
}

/// What the outbox is asked to do.
#[derive(Clone, Debug)]
enum Step {
    Push {
        room: char,
        key: u8,
        payload_bytes: usize,
    },
    /// Of the bytes that the slices hold, so many in 100.
    Write(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let push = (prop::sample::select(vec!['a', 'b', 'c', 'd', 'x', 'p']), 0_u8..4, 1_usize..300)
        .prop_map(|(room, key, payload_bytes)| Step::Push { room, key, payload_bytes });
    prop::collection::vec(prop_oneof![6 => push, 1 => (0_usize..=100).prop_map(Step::Write)], 1..120)
}

fn concat(pieces: &[IoSlice<'_>]) -> Vec<u8> {
    pieces.iter().flat_map(|piece| piece.to_vec()).collect()
}

/// The text of the first frame, and what follows it.
fn read_frame(wire: &[u8]) -> (serde_json::Value, &[u8]) {
    assert_eq!(wire[0], 0x81);
    let (length, header) = match wire[1] {
        126 => (usize::from(u16::from_be_bytes([wire[2], wire[3]])), 4),
        short @ 0..126 => (usize::from(short), 2),
        long => panic!("no frame here is so long: {long}"),
    };
    (serde_json::from_slice(&wire[header..header + length]).expect("JSON"), &wire[header + length..])
}

/// What each frame that was pushed is, in order.
#[derive(Default)]
struct Pushed {
    /// Room, number, key.
    messages: Vec<(String, u64, u8)>,
    plain: u64,
    /// Room and key of the message that found no place. Earlier ones with its key may be dropped for it: the socket is
    /// closed then, and nobody counts on them.
    refused: Option<(String, u8)>,
}

impl Pushed {
    /// That what came out of the wire is what was pushed, less what a gap tells.
    fn check(&self, mut wire: &[u8]) {
        let mut next: BTreeMap<String, u64> = BTreeMap::new();
        let mut next_plain = 0;
        let mut delivered = Vec::new();
        while !wire.is_empty() {
            let (frame, rest) = read_frame(wire);
            wire = rest;
            let room = || frame["room"].as_str().expect("a room").to_owned();
            match frame["type"].as_str().expect("a type") {
                "reconnect" => {
                    assert_eq!(frame["payload"]["afterMs"], next_plain, "no plain frame is lost");
                    next_plain += 1;
                }
                "gap" => {
                    let next = next.entry(room()).or_insert(1);
                    assert_eq!(frame["payload"]["from"], *next, "told once, before what follows");
                    *next = frame["payload"]["to"].as_u64().expect("a number") + 1;
                    assert!(room() != "x", "nothing is dropped where the policy is to close");
                }
                _ => {
                    let next = next.entry(room()).or_insert(1);
                    assert_eq!(frame["seq"], *next, "in order, without a hole that is not told");
                    delivered.push((room(), *next));
                    *next += 1;
                }
            }
        }
        assert_eq!(next_plain, self.plain);
        let mut order = self.messages.iter().map(|(room, seq, _)| (room.clone(), *seq));
        assert!(delivered.iter().all(|message| order.any(|pushed| pushed == *message)), "the order is that of pushing");
        for (at, (room, seq, key)) in self.messages.iter().enumerate() {
            assert!(*seq < next[room], "{room}{seq} is delivered or told");
            let is_latest = !self.messages[at + 1..].iter().any(|(other, _, later)| other == room && later == key);
            let is_latest = is_latest && self.refused != Some((room.clone(), *key));
            if matches!(room.as_str(), "c" | "d") && is_latest {
                assert!(delivered.contains(&(room.clone(), *seq)), "{room}{seq} is the latest with its key");
            }
        }
    }
}

/// Only what may not go is left, and it takes more than seven eighths with the frame that found no place.
fn check_full(outbox: &Outbox, refused: &Frame, bytes_max: usize) {
    let waiting: Vec<&Frame> = outbox.frames.iter().skip(usize::from(outbox.written > 0)).collect();
    for (at, frame) in waiting.iter().enumerate() {
        let Kind::Message { slow, .. } = frame.kind() else { continue };
        assert!(*slow != Slow::DropOldest);
        let mut later = waiting[at + 1..].iter().copied().chain([refused]);
        assert!(latest(frame).is_none_or(|key| !later.any(|frame| latest(frame) == Some(key))));
    }
    assert!(outbox.cost + cost(refused) > bytes_max - bytes_max / 8);
}

proptest! {
    #[test]
    fn whatever_is_dropped_is_told(steps in steps(), bytes_max in 1000_usize..6000) {
        let mut sender = Sender::default();
        let tally = sender.encoder.tally().clone();
        let mut outbox = Outbox::default();
        let mut pushed = Pushed::default();
        let mut wire = Vec::new();
        for step in steps {
            match step {
                Step::Push { room, key, payload_bytes } => {
                    let frame = match room {
                        'p' => sender.encoder.reconnect(pushed.plain),
                        'a' | 'b' => sender.message(&room.to_string(), Slow::DropOldest, payload_bytes),
                        'x' => sender.message("x", Slow::Close, payload_bytes),
                        room => sender.message(&room.to_string(), Slow::Latest(Key::of(&key.to_string())), payload_bytes),
                    };
                    let (before, count) = (outbox.cost, outbox.frames.len());
                    let Ok(dropped) = outbox.push(frame.clone(), bytes_max) else {
                        prop_assert!(before + cost(&frame) > bytes_max && outbox.frames.len() <= count);
                        check_full(&outbox, &frame, bytes_max);
                        pushed.refused = Some((room.to_string(), key));
                        break;
                    };
                    prop_assert_eq!(dropped == 0, before + cost(&frame) <= bytes_max);
                    prop_assert!(dropped == 0 || outbox.cost <= bytes_max - bytes_max / 8);
                    if room == 'p' {
                        pushed.plain += 1;
                    } else {
                        let room = room.to_string();
                        let seq = sender.seqs[&room];
                        pushed.messages.push((room, seq, key));
                    }
                }
                Step::Write(share) => {
                    let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
                    let count = outbox.slices(&mut pieces);
                    let bytes = concat(&pieces[..count]);
                    prop_assert_eq!(bytes.is_empty(), outbox.is_empty());
                    let taken = bytes.len() * share / 100;
                    wire.extend_from_slice(&bytes[..taken]);
                    outbox.written(taken);
                }
            }
            prop_assert!(outbox.bytes() <= bytes_max);
            prop_assert_eq!(outbox.bytes(), outbox.frames.iter().map(cost).sum::<usize>());
            let most = if outbox.is_empty() { 0 } else { outbox.frames.len().max(4) * 4 };
            prop_assert!(outbox.frames.capacity() <= most);
        }
        while !outbox.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let count = outbox.slices(&mut pieces);
            let bytes = concat(&pieces[..count]);
            wire.extend_from_slice(&bytes);
            outbox.written(bytes.len());
        }
        prop_assert_eq!((outbox.bytes(), tally.bytes()), (0, 0));
        pushed.check(&wire);
    }

    #[test]
    fn an_outbox_that_is_given_up_ends_between_frames(share in 0_usize..=100, count in 1_usize..5) {
        let mut sender = Sender::default();
        let mut outbox = Outbox::default();
        let frames: Vec<Frame> = (0..count).map(|_| sender.message("x", Slow::Close, 9)).collect();
        let all: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes().to_vec()).collect();
        for frame in frames {
            outbox.push(frame, 1 << 20).unwrap();
        }
        let written = all.len() * share / 100;
        outbox.written(written);
        outbox.abandon();
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let rest = outbox.slices(&mut pieces);
        let wire = [&all[..written], &concat(&pieces[..rest])].concat();
        let ends: Vec<usize> = (0..=count).map(|frames| frames * all.len() / count).collect();
        prop_assert!(ends.contains(&wire.len()));
        prop_assert_eq!(ends.contains(&written), rest == 0);
        outbox.written(wire.len() - written);
        prop_assert_eq!((outbox.bytes(), sender.encoder.tally().bytes()), (0, 0));
    }
}

#[test]
fn pieces_are_bounded_and_a_burst_gives_its_memory_back() {
    let mut sender = Sender::default();
    let mut outbox = Outbox::default();
    let frame = sender.encoder.reconnect(1);
    for _ in 0..1000 {
        outbox.push(frame.clone(), 1 << 20).unwrap();
    }
    let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
    assert_eq!(outbox.slices(&mut pieces), PIECES_MAX);
    assert!(pieces.iter().all(|piece| **piece == *frame.bytes()));
    outbox.written(998 * frame.bytes().len());
    assert!(outbox.frames.capacity() <= 8, "{}", outbox.frames.capacity());
    assert!(size_of::<Outbox>() <= 48, "each idle socket has one");
}

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
                outbox.written(all - outbox.written - 10);
                continue;
            }
            _ => sender.message(room, Slow::Close, 1),
        };
        if let Err(full) = outbox.push(frame, messages * one) {
            lines += &format!("{full}: ");
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

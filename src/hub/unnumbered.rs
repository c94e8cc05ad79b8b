//! A message of a room before it has its number: as instances hand it to the bus, and the bus to instances.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::position::Position;

/// A message, whole but for its number. Moves between shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unnumbered {
    /// One JSON object.
    pub(super) text: Box<str>,
    /// Where the number belongs.
    pub(super) cut: usize,
    /// Where the payload begins and ends.
    pub(super) payload: (usize, usize),
}

impl Unnumbered {
    /// The message as its members get it.
    pub fn number(&self, position: Position) -> Arc<str> {
        const NUMBER_BYTES: usize = 64;
        let (head, tail) = self.text.split_at_checked(self.cut).unwrap_or((&self.text, ""));
        let mut whole = Vec::with_capacity(self.text.len().saturating_add(NUMBER_BYTES));
        whole.extend_from_slice(head.as_bytes());
        whole.extend_from_slice(br#","seq":"#);
        whole.extend_from_slice(itoa::Buffer::new().format(position.seq).as_bytes());
        whole.extend_from_slice(br#","epoch":""#);
        position.epoch.push(&mut whole);
        whole.push(b'"');
        whole.extend_from_slice(tail.as_bytes());
        // Only texts were put together, and only whole ones.
        Arc::from(str::from_utf8(&whole).unwrap_or_default())
    }

    /// What was said.
    pub fn payload(&self) -> &str {
        self.text.get(self.payload.0..self.payload.1).unwrap_or_default()
    }

    /// As the bus keeps it: where the number belongs, where the payload begins and ends, and the text after a line break.
    pub fn to_kept(&self) -> String {
        let Self { text, cut, payload: (from, to) } = self;
        format!("{cut} {from} {to}\n{text}")
    }

    /// What was kept so; nothing where it cannot have been.
    pub fn parse(kept: &str) -> Option<Self> {
        let (places, text) = kept.split_once('\n')?;
        let mut places = places.splitn(3, ' ').map(|place| place.parse::<usize>().ok());
        let (cut, from, to) = (places.next()??, places.next()??, places.next()??);
        let is_whole = text.get(from..to).is_some() && text.split_at_checked(cut).is_some_and(is_object_cut_open);
        is_whole.then(|| Self { text: text.into(), cut, payload: (from, to) })
    }
}

/// Whether it is one JSON object that has room for another member between these: whoever can write to the bus is not to write
/// to clients what they cannot read.
fn is_object_cut_open((head, tail): (&str, &str)) -> bool {
    let is_json = |text: &str| text.starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok();
    let is_between =
        !head.ends_with(|last: char| last == '{' || last.is_ascii_whitespace()) && tail.starts_with([',', '}']);
    is_between && is_json(&[head, "}"].concat()) && is_json(&[head, tail].concat())
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hub::{encode::Encoder, position::Epoch};

    const POSITION: Position = Position { epoch: Epoch::NONE, seq: 20 };

    #[test]
    fn with_its_number_it_is_what_a_room_that_gives_numbers_says() {
        let (mut encoder, payload, user) = (Encoder::default(), r#"{"room":"é","seq":1}"#, "4\"2\u{1F600}");
        let message = encoder.unnumbered_message(0, "public.a", user, payload);
        assert_eq!(message.payload(), payload);
        assert_eq!(message.number(POSITION), encoder.room_message(0, "public.a", POSITION, user, payload));
        let push = encoder.unnumbered_push(0, "price", "public.a", payload);
        assert_eq!(push.payload(), payload);
        assert_eq!(push.number(POSITION), encoder.pushed_to_room(0, "price", "public.a", POSITION, payload));
        assert_eq!(Unnumbered::parse(&push.to_kept()).expect("ours"), push);
    }

    #[test]
    fn what_is_none_is_passed_over() {
        let wrong = [
            "",
            "1 2 3",
            "1 2\n{}",
            "x 0 0\n{}",
            "3 0 0\n{}",
            "0 2 1\n{}",
            "0 0 9\n{}",
            "1 0 0\né",
            "0 0 1\né",
            // Nothing that a client could read would come of these.
            "1 0 0\n{}",
            "2 0 0\n{}",
            "6 0 0\n[\"a\",1]",
            "6 0 0\n{\"a\":",
            "6 0 0\n{\"a\":1}}",
            "7 0 0\n{\"a\":[,1]}",
            "6 0 0\n{\"a\":\",\"}",
            "7 0 0\n{\"a\":1x}",
            "6 5 6\n{\"a\":1,\"b\":x}",
        ];
        assert!(Unnumbered::parse("6 5 6\n{\"a\":1}").is_some());
        for kept in wrong {
            assert_eq!(Unnumbered::parse(kept), None, "{kept:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_kept_panics(kept in r#"[0-9]{0,2} [0-9]{0,2} [0-9]{0,2}\n(.{0,20}|\{("a":(1|"\{,"|\{"b": ?2\}),?){0,3} ?\})"#) {
            if let Some(message) = Unnumbered::parse(&kept) {
                let whole = message.number(POSITION);
                prop_assert!(serde_json::from_str::<IgnoredAny>(&whole).is_ok(), "{whole}");
                message.payload();
                prop_assert_eq!(Unnumbered::parse(&message.to_kept()), Some(message));
            }
        }
    }
}

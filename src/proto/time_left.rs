//! `X-Request-Timeout-Ms`: how long the sender of a request waits for its answer, in milliseconds.

use super::head::{Known, RequestHead};

/// More digits than these would be weeks.
const DIGITS_MAX: usize = 9;
const MS_MAX: u32 = 999_999_999;

/// What a request says of the time that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeLeft {
    /// Nothing.
    Unsaid,
    /// So many milliseconds.
    Ms(u32),
    /// Something that means nothing.
    Malformed,
}

impl TimeLeft {
    /// What this head says. Of two fields, neither counts.
    pub fn of(head: &RequestHead) -> Self {
        let mut fields = head.fields.iter().filter(|field| field.known == Known::XRequestTimeout);
        match (fields.next(), fields.next()) {
            (None, _) => Self::Unsaid,
            (Some(field), None) => parse_ms(head.text(field.value)).map_or(Self::Malformed, Self::Ms),
            (Some(_), Some(_)) => Self::Malformed,
        }
    }
}

/// Up to nine digits and nothing else. Nought is none: to some it stands for no time, to others for any (Envoy).
pub fn parse_ms(value: &[u8]) -> Option<u32> {
    if value.is_empty() || value.len() > DIGITS_MAX || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let ms = value.iter().fold(0_u32, |ms, digit| ms.saturating_mul(10).saturating_add(u32::from(digit & 0x0f)));
    Some(ms).filter(|ms| *ms > 0)
}

/// Says how much is left, instead of whatever was said before; less than a millisecond is one.
pub fn say(head: &mut RequestHead, ms: u128) {
    head.remove(|known| known == Known::XRequestTimeout);
    let ms = u32::try_from(ms).unwrap_or(MS_MAX).clamp(1, MS_MAX);
    head.push(Known::XRequestTimeout, b"X-Request-Timeout-Ms", itoa::Buffer::new().format(ms).as_bytes());
}

/// For the fuzzer: whatever is taken is what would be written for it, but for noughts in front.
#[doc(hidden)]
pub fn fuzz_one(value: &[u8]) {
    let Some(ms) = parse_ms(value) else { return };
    let written = itoa::Buffer::new().format(ms).as_bytes().to_vec();
    assert!(ms > 0 && value.ends_with(&written) && value.iter().all(u8::is_ascii_digit), "{}", value.escape_ascii());
    let mut head = RequestHead::unknown();
    head.push(Known::XRequestTimeout, b"X-Request-Timeout-Ms", value);
    assert_eq!(TimeLeft::of(&head), TimeLeft::Ms(ms));
    say(&mut head, u128::from(ms));
    assert_eq!((TimeLeft::of(&head), head.fields.len()), (TimeLeft::Ms(ms), 1));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn digits_count_and_nothing_else_does() {
        for (value, wanted) in [
            ("1", Some(1)),
            ("200", Some(200)),
            ("000200", Some(200)),
            ("999999999", Some(999_999_999)),
            ("1000000000", None),
            ("0", None),
            ("000", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("1.5", None),
            ("1e3", None),
            ("0x10", None),
            ("1 0", None),
            ("1,2", None),
            ("200ms", None),
            ("\u{664}", None),
        ] {
            assert_eq!(parse_ms(value.as_bytes()), wanted, "{value:?}");
        }
    }

    #[test]
    fn of_two_neither_counts_and_what_is_said_replaces_all() {
        let mut head = RequestHead::unknown();
        assert_eq!(TimeLeft::of(&head), TimeLeft::Unsaid);
        head.push(Known::XRequestTimeout, b"X-Request-Timeout-Ms", b"5");
        assert_eq!(TimeLeft::of(&head), TimeLeft::Ms(5));
        head.push(Known::XRequestTimeout, b"x-request-timeout-ms", b"5");
        assert_eq!(TimeLeft::of(&head), TimeLeft::Malformed);
        say(&mut head, 0);
        assert_eq!(TimeLeft::of(&head), TimeLeft::Ms(1));
        say(&mut head, u128::MAX);
        assert_eq!(TimeLeft::of(&head), TimeLeft::Ms(MS_MAX));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_digits_or_nothing(value in prop_oneof!["[0-9]{0,12}", "\\PC{0,12}"]) {
            fuzz_one(value.as_bytes());
        }
    }
}

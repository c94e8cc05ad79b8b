//! Where a room stands: the number of its last message, and which count of numbers that belongs to.

use std::fmt;

/// Characters of an epoch as it is made.
const EPOCH_DIGITS: u32 = 8;

/// Which count of a room's messages: a new one begins when the old numbers are lost. Lower-case base 36 on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epoch(u64);

impl Epoch {
    /// No room's epoch: what a client says that never was told of one.
    pub const NONE: Self = Self(0);

    /// A new one, which nobody has seen before.
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        const FIRST: u64 = 36_u64.pow(EPOCH_DIGITS - 1);
        const PAST: u64 = 36_u64.pow(EPOCH_DIGITS);
        Self(rng.u64(FIRST..PAST))
    }

    /// The epoch that was written so; what no epoch is written as is [`Epoch::NONE`], which no room has.
    pub fn parse(text: &str) -> Self {
        if text.len() > 12 || text.starts_with('0') {
            return Self::NONE;
        }
        let digit = |character: char| match character {
            '0'..='9' | 'a'..='z' => character.to_digit(36),
            _ => None,
        };
        let value = text
            .chars()
            .try_fold(0_u64, |value, character| value.checked_mul(36)?.checked_add(u64::from(digit(character)?)));
        Self(value.unwrap_or_default())
    }

    /// Appends it as it is written.
    pub fn push(self, out: &mut Vec<u8>) {
        let mut digits = [0_u8; 13];
        let mut value = self.0;
        let mut begin = digits.len();
        for (at, place) in digits.iter_mut().enumerate().rev() {
            *place = char::from_digit((value % 36) as u32, 36).map_or(b'0', |digit| digit as u8);
            begin = at;
            value /= 36;
            if value == 0 {
                break;
            }
        }
        out.extend_from_slice(digits.get(begin..).unwrap_or_default());
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(13);
        self.push(&mut text);
        f.write_str(str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The last message of a room that somebody has; 0 before the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Position {
    /// Which count.
    pub epoch: Epoch,
    /// The number in it.
    pub seq: u64,
}

/// A digest of a message and all before it in its epoch: numbers that were given twice differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Digest(u64);

impl Digest {
    /// Of nothing.
    pub const NONE: Self = Self(0);

    /// The digest that was written so; what none is written as is [`Digest::NONE`].
    pub fn parse(text: &str) -> Self {
        let is_one = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        Self(u64::from_str_radix(text, 16).ok().filter(|_| is_one).unwrap_or_default())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How a message joins on to the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Chain {
    /// The digest of what it follows.
    pub before: Digest,
    /// Its own.
    pub after: Digest,
}

/// The last message of a room, as somebody has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Last {
    /// Its number.
    pub position: Position,
    /// Its digest.
    pub digest: Digest,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_no_epoch_is_written_as_is_none() {
        for text in ["", "0", "0a", "K3", "k 3", "é", "-1", "+1", "zzzzzzzzzzzzz", "3w5e11264sgsg"] {
            assert_eq!(Epoch::parse(text), Epoch::NONE, "{text:?}");
        }
        assert_eq!(Epoch::parse("k3"), Epoch(20 * 36 + 3));
    }

    #[test]
    fn new_ones_have_eight_characters() {
        let mut rng = fastrand::Rng::with_seed(7);
        assert!((0..1000).all(|_| Epoch::random(&mut rng).to_string().len() == 8));
    }

    #[test]
    fn what_no_digest_is_written_as_is_none() {
        for text in ["", "0", "+123456789abcdef", "0123456789abcdeg", "0123456789abcdef0"] {
            assert_eq!(Digest::parse(text), Digest::NONE, "{text:?}");
        }
        assert_eq!(Digest::parse("0123456789abcdef").to_string(), "0123456789abcdef");
    }

    proptest! {
        #[test]
        fn reading_undoes_writing(value in 1_u64..36_u64.pow(12)) {
            prop_assert_eq!(Epoch::parse(&Epoch(value).to_string()), Epoch(value));
        }
    }
}

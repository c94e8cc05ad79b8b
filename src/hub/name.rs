//! What rooms are called, where each is at home, and the patterns that rules name them by.
//!
//! Who may do what in a room is for `rules.rs`.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Bytes of the longest name.
pub const ROOM_NAME_BYTES_MAX: usize = 128;

/// Stands in a pattern for the user who asks.
const SUB: &str = "{sub}";

/// The shard that keeps what all shards share about something of this name.
#[inline]
pub fn home_of(name: &str, shards: usize) -> usize {
    // The hash as a fraction of the shards: even, and without a division.
    let scaled = u128::from(stable_hash(name.as_bytes())).saturating_mul(shards as u128);
    usize::try_from(scaled >> 64).unwrap_or_default()
}

/// The name of a room: `[A-Za-z0-9._:-]{1,128}`. Moves between shards.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomName(Arc<str>);

impl RoomName {
    /// The name, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        is_room_name(text).then(|| Self(Arc::from(text)))
    }

    /// The name as text.
    #[inline]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shard where this room is at home, of so many: the same on every shard, and in every process with as many.
    #[inline]
    pub fn home(&self, shards: usize) -> usize {
        home_of(self.as_str(), shards)
    }

    /// A hash that never changes: of the name alone, without a key. Whoever wants a room at some shard may search for a
    /// name that is there; what a user may open is bounded per user instead.
    #[inline]
    pub fn stable_hash(&self) -> u64 {
        stable_hash(self.0.as_bytes())
    }
}

/// FNV-1a, and after it the last mix of `MurmurHash3`, since FNV leaves the high bits of short texts alike.
pub(super) fn stable_hash(bytes: &[u8]) -> u64 {
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    sum ^ (sum >> 33)
}

impl Borrow<str> for RoomName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for RoomName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether this can be a room's name.
pub fn is_room_name(text: &str) -> bool {
    (1..=ROOM_NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_name_byte)
}

/// Whether this byte may stand in a room's name.
#[inline]
pub const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-')
}

/// What divides a name into parts, as far as patterns see it.
const fn is_separator(byte: u8) -> bool {
    matches!(byte, b'.' | b':')
}

/// Some rooms, by their names: `lobby` is that room, `public.*` every room whose name goes on after `public.`,
/// `user.{sub}.*` the rooms of the user who asks, `*` every room. Moves between shards.
///
/// `.` and `:` divide a name into parts. `*` and `{sub}` stand for something only as whole parts: `*` once, at the end, and
/// takes all that is left, further separators too; `{sub}` once, anywhere before it, and takes the user's id. What could be
/// read in two ways is no pattern, so that nobody takes `public*` for less than it would be.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    /// What comes before `{sub}`, or the whole pattern without its `*`.
    head: Arc<str>,
    /// What comes after `{sub}`, without the `*`; none where the pattern names no user.
    tail: Option<Arc<str>>,
    /// Whether more may follow, and must.
    is_open: bool,
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing, or more than a room's name can have.
    #[error("a pattern has 1 to 128 characters")]
    Length,
    /// A character that no room's name has.
    #[error("a pattern is made of A-Z, a-z, 0-9, `.`, `_`, `:` and `-`, with `{{sub}}` and `*` as whole parts")]
    Character,
    /// `*` elsewhere than as the last part.
    #[error("`*` is the whole last part of a pattern: `public.*`")]
    Star,
    /// `{sub}` twice, or beside other characters.
    #[error("`{{sub}}` is one whole part of a pattern: `user.{{sub}}.*`")]
    Sub,
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if !(1..=ROOM_NAME_BYTES_MAX).contains(&text.len()) {
            return Err(PatternError::Length);
        }
        let (text, is_open) = match text.strip_suffix('*') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        if text.contains('*') || is_open && !is_part_end(text) {
            return Err(PatternError::Star);
        }
        let (head, tail) = match text.split_once(SUB) {
            Some((head, tail)) => (head, Some(tail)),
            None => (text, None),
        };
        if let Some(tail) = tail {
            let begins_part = tail.bytes().next().is_none_or(is_separator);
            if tail.contains(SUB) || !is_part_end(head) || !begins_part {
                return Err(PatternError::Sub);
            }
        }
        if !head.bytes().chain(tail.unwrap_or_default().bytes()).all(is_name_byte) {
            return Err(PatternError::Character);
        }
        Ok(Self { head: Arc::from(head), tail: tail.map(Arc::from), is_open })
    }

    /// Whether the room is one of these for this user.
    ///
    /// A user whose id could not stand in a room's name, or holds the separator that follows it in the pattern, has none:
    /// else the user `a` would be let into the rooms of the user `a.b`.
    #[inline]
    pub fn matches(&self, user: &str, room: &str) -> bool {
        let Some(rest) = room.strip_prefix(&*self.head) else { return false };
        let Some(tail) = &self.tail else { return self.ends(rest) };
        let is_part = |byte: u8| is_name_byte(byte) && Some(&byte) != tail.as_bytes().first();
        !user.is_empty()
            && user.bytes().all(is_part)
            && rest.strip_prefix(user).and_then(|rest| rest.strip_prefix(&**tail)).is_some_and(|rest| self.ends(rest))
    }

    /// Whether the room is one of these for any user.
    #[inline]
    pub fn covers(&self, room: &str) -> bool {
        let Some(rest) = room.strip_prefix(&*self.head) else { return false };
        let Some(tail) = &self.tail else { return self.ends(rest) };
        let Some(&separator) = tail.as_bytes().first() else { return is_room_name(rest) };
        let Some(end) = rest.bytes().position(|byte| byte == separator) else { return false };
        end > 0 && rest.get(end..).and_then(|rest| rest.strip_prefix(&**tail)).is_some_and(|rest| self.ends(rest))
    }

    /// Whether the pattern names the user who asks.
    pub const fn names_user(&self) -> bool {
        self.tail.is_some()
    }

    /// Whether this may be what is left of a name.
    const fn ends(&self, rest: &str) -> bool {
        self.is_open != rest.is_empty()
    }
}

/// Whether a new part may begin after this.
fn is_part_end(text: &str) -> bool {
    text.bytes().next_back().is_none_or(is_separator)
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.head)?;
        if let Some(tail) = &self.tail {
            write!(f, "{SUB}{tail}")?;
        }
        f.write_str(if self.is_open { "*" } else { "" })
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check_name(text: &str, is_name: bool) {
        assert_eq!(RoomName::parse(text).map(|name| name.to_string()), is_name.then(|| text.to_owned()), "{text:?}");
    }

    #[test]
    fn names_have_a_form() {
        check_name("public.sale", true);
        check_name("a", true);
        check_name("A-z_0:9.", true);
        check_name(&"a".repeat(128), true);
        check_name(&"a".repeat(129), false);
        for text in ["", " ", "a b", "a/b", "a*", "{a}", "ä", "a\0", "a\n", "a\"b"] {
            check_name(text, false);
        }
    }

    #[test]
    fn homes_never_change() {
        // Other instances, and those of the next version, count on it.
        let homes = ["public.sale", "a", "user.42.cart"].map(|name| {
            let name = RoomName::parse(name).expect("a name");
            format!("{:016x} {} {} {}", name.stable_hash(), name.home(1), name.home(4), name.home(64))
        });
        expect!["913891d100305be2 0 2 36, 82a2a958a9bece5b 0 2 32, 6b5b3b6b90f587c0 0 1 26"]
            .assert_eq(&homes.join(", "));
    }

    #[test]
    fn homes_are_even() {
        for shards in [2, 3, 4, 64] {
            let mut rooms = vec![0_usize; shards];
            for room in 0..shards * 1000 {
                rooms[RoomName::parse(&format!("public.{room}")).expect("a name").home(shards)] += 1;
            }
            assert!(rooms.iter().all(|&rooms| (800..1200).contains(&rooms)), "{rooms:?}");
        }
    }

    fn check(pattern: &str, expected: &Expect) {
        let said = match Pattern::parse(pattern) {
            Ok(pattern) => pattern.to_string(),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&said);
    }

    #[test]
    fn patterns_have_one_reading() {
        check("public.*", &expect!["public.*"]);
        check("*", &expect!["*"]);
        check("lobby", &expect!["lobby"]);
        check("user.{sub}.*", &expect!["user.{sub}.*"]);
        check("{sub}", &expect!["{sub}"]);
        check("user:{sub}", &expect!["user:{sub}"]);
        check("", &expect!["a pattern has 1 to 128 characters"]);
        check(&"a".repeat(129), &expect!["a pattern has 1 to 128 characters"]);
        check("public*", &expect!["`*` is the whole last part of a pattern: `public.*`"]);
        check("*.public", &expect!["`*` is the whole last part of a pattern: `public.*`"]);
        check("a.*.b", &expect!["`*` is the whole last part of a pattern: `public.*`"]);
        check("a.**", &expect!["`*` is the whole last part of a pattern: `public.*`"]);
        check("{sub}*", &expect!["`*` is the whole last part of a pattern: `public.*`"]);
        check("u{sub}.*", &expect!["`{sub}` is one whole part of a pattern: `user.{sub}.*`"]);
        check("{sub}s.*", &expect!["`{sub}` is one whole part of a pattern: `user.{sub}.*`"]);
        check("{sub}.{sub}", &expect!["`{sub}` is one whole part of a pattern: `user.{sub}.*`"]);
        check(
            "{user}.*",
            &expect!["a pattern is made of A-Z, a-z, 0-9, `.`, `_`, `:` and `-`, with `{sub}` and `*` as whole parts"],
        );
        check(
            "a b",
            &expect!["a pattern is made of A-Z, a-z, 0-9, `.`, `_`, `:` and `-`, with `{sub}` and `*` as whole parts"],
        );
    }

    /// Whether the pattern has this room for this user, and for any.
    fn matches(pattern: &str, user: &str, room: &str) -> (bool, bool) {
        let pattern = Pattern::parse(pattern).expect("a pattern");
        (pattern.matches(user, room), pattern.covers(room))
    }

    #[test]
    fn patterns_match_whole_parts() {
        assert_eq!(matches("public.*", "42", "public.sale"), (true, true));
        assert_eq!(matches("public.*", "42", "public.a.b:c"), (true, true));
        for room in ["public", "public.", "publicity.x", "a.public.b", "Public.a"] {
            assert_eq!(matches("public.*", "42", room), (false, false), "{room}");
        }
        assert_eq!(matches("lobby", "42", "lobby"), (true, true));
        assert_eq!(matches("lobby", "42", "lobby.a"), (false, false));
        assert_eq!(matches("*", "", "a"), (true, true));
        assert_eq!(matches("user.{sub}.*", "42", "user.42.cart"), (true, true));
        assert_eq!(matches("user.{sub}.*", "42", "user.43.cart"), (false, true));
        assert_eq!(matches("user.{sub}.*", "4", "user.42.cart"), (false, true));
        assert_eq!(matches("user.{sub}.*", "42", "user.42."), (false, false));
        assert_eq!(matches("user.{sub}.*", "42", "user.42"), (false, false));
        assert_eq!(matches("user.{sub}", "42", "user.42"), (true, true));
        assert_eq!(matches("{sub}:cart", "42", "42:cart"), (true, true));
        assert_eq!(matches("{sub}:cart", "42", "42:cart2"), (false, false));
    }

    #[test]
    fn users_have_no_rooms_that_could_be_others() {
        // The room may be that of `cart.x` of the user `a`.
        assert_eq!(matches("user.{sub}.*", "a.cart", "user.a.cart.x"), (false, true));
        assert_eq!(matches("user.{sub}.*", "a", "user.a.cart.x"), (true, true));
        assert_eq!(matches("user:{sub}:*", "a.cart", "user:a.cart:x"), (true, true));
        assert_eq!(matches("user.{sub}.*", "", "user..x"), (false, false));
        for user in ["a@b", "auth0|7", "*", "{sub}", "a b"] {
            assert!(!matches("user.{sub}.*", user, &format!("user.{user}.x")).0, "{user}");
        }
    }

    proptest! {
        #[test]
        fn no_room_belongs_to_two_users(
            pattern in "(user[.:])?\\{sub\\}([.:](x[.:])?\\*?)?",
            users in prop::array::uniform2("[a.:x]{1,4}"),
            rest in "[a.:x]{0,4}",
            separator in "[.:]",
        ) {
            let Ok(pattern) = Pattern::parse(&pattern) else { return Ok(()) };
            for room in users.iter().flat_map(|user| [format!("user{separator}{user}{separator}{rest}"), format!("{user}{separator}{rest}"), user.clone()]) {
                let [one, other] = users.each_ref().map(|user| pattern.matches(user, &room));
                prop_assert!(!(one && other) || users[0] == users[1], "{} {}", pattern, room);
                prop_assert!(pattern.covers(&room) || !one && !other, "who has it is covered: {} {}", pattern, room);
            }
        }

        #[test]
        fn any_text_is_a_pattern_or_not(text in "[a.{}sub:*é]{0,12}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert_eq!(pattern.to_string(), text);
            }
        }
    }
}

//! What keys a terminal has sent, out of its bytes. A pure core.
//!
//! `crossterm` reads events too, but tells of a key that comes with a change of the window's size only when another one comes.

use super::view::Key;

/// So many rows are a page.
const PAGE: isize = 10;
/// Longer sequences are those of no key.
const SEQUENCE_MAX: usize = 16;
const ESC: u8 = 0x1b;
const CTRL_C: u8 = 0x03;

/// The first key of these bytes, if it is one that means something, and how many of them it is. `None`: more have to come.
/// With `is_all` nothing more comes, so that an Esc is the key and not the beginning of another.
fn first(bytes: &[u8], is_all: bool) -> Option<(Option<Key>, usize)> {
    match bytes {
        [] => None,
        [ESC] => is_all.then_some((Some(Key::End), 1)),
        [ESC, ESC, ..] => Some((Some(Key::End), 1)),
        // ECMA-48 §5.4: parameters, then a final byte.
        [ESC, b'[' | b'O', rest @ ..] => {
            match rest.iter().take(SEQUENCE_MAX).position(|byte| (0x40..=0x7e).contains(byte)) {
                Some(end) => Some((sequence(&rest[..end], rest[end]), end + 3)),
                None => (is_all || rest.len() >= SEQUENCE_MAX).then_some((None, bytes.len().min(SEQUENCE_MAX + 2))),
            }
        }
        // A key together with Alt.
        [ESC, _, ..] => Some((None, 2)),
        [byte, ..] => Some((plain(*byte), 1)),
    }
}

fn plain(byte: u8) -> Option<Key> {
    Some(match byte {
        CTRL_C | b'q' => Key::End,
        b'\t' | b'l' => Key::Next,
        b'h' => Key::Previous,
        b'j' => Key::Move(1),
        b'k' => Key::Move(-1),
        b's' => Key::Sort,
        b'p' => Key::Pause,
        _ => return None,
    })
}

/// As xterm has them; a Shift or Ctrl that is held makes no difference.
fn sequence(parameters: &[u8], last: u8) -> Option<Key> {
    Some(match (last, parameters.split(|byte| *byte == b';').next().unwrap_or_default()) {
        (b'A', _) => Key::Move(-1),
        (b'B', _) => Key::Move(1),
        (b'C', _) => Key::Next,
        (b'D' | b'Z', _) => Key::Previous,
        (b'H', _) | (b'~', b"1" | b"7") => Key::First,
        (b'F', _) | (b'~', b"4" | b"8") => Key::Last,
        (b'~', b"5") => Key::Move(-PAGE),
        (b'~', b"6") => Key::Move(PAGE),
        _ => return None,
    })
}

/// Takes the keys out of what has come; what may be the beginning of one stays. With `is_all` nothing does.
pub(super) fn take(bytes: &mut Vec<u8>, is_all: bool) -> Vec<Key> {
    let mut keys = Vec::new();
    while let Some((key, length)) = first(bytes, is_all) {
        keys.extend(key);
        bytes.drain(..length);
    }
    keys
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_known_by_their_bytes() {
        for (bytes, key) in [
            ("q", Some(Key::End)),
            ("\u{3}", Some(Key::End)),
            ("\u{1b}", Some(Key::End)),
            ("\t", Some(Key::Next)),
            ("\u{1b}[C", Some(Key::Next)),
            ("\u{1b}OC", Some(Key::Next)),
            ("\u{1b}[1;5C", Some(Key::Next)),
            ("\u{1b}[Z", Some(Key::Previous)),
            ("\u{1b}[D", Some(Key::Previous)),
            ("\u{1b}[A", Some(Key::Move(-1))),
            ("j", Some(Key::Move(1))),
            ("\u{1b}[5~", Some(Key::Move(-PAGE))),
            ("\u{1b}[6~", Some(Key::Move(PAGE))),
            ("\u{1b}[H", Some(Key::First)),
            ("\u{1b}[1~", Some(Key::First)),
            ("\u{1b}[F", Some(Key::Last)),
            ("\u{1b}[4;2~", Some(Key::Last)),
            ("s", Some(Key::Sort)),
            ("p", Some(Key::Pause)),
            ("x", None),
            ("é", None),
            ("\u{1b}q", None),
            ("\u{1b}[", None),
            ("\u{1b}[15~", None),
        ] {
            let mut all = bytes.as_bytes().to_vec();
            assert_eq!((take(&mut all, true), all.len()), (Vec::from_iter(key), 0), "{bytes:?}");
        }
        let mut begun = b"\x1b[".to_vec();
        assert!(take(&mut begun, false).is_empty());
        begun.extend(b"A\x1b");
        assert_eq!(take(&mut begun, false), [Key::Move(-1)]);
        assert_eq!(take(&mut begun, true), [Key::End], "nothing has come behind it");
    }

    proptest! {
        #[test]
        fn bytes_may_come_in_any_parts(bytes in proptest::collection::vec(prop_oneof![Just(ESC), Just(b'['), any::<u8>()], 0..200), parts in 1_usize..20) {
            let mut whole = bytes.clone();
            let mut told = take(&mut whole, false);
            told.extend(take(&mut whole, true));
            let (mut rest, mut in_parts) = (Vec::new(), Vec::new());
            for part in bytes.chunks(parts) {
                rest.extend(part);
                in_parts.extend(take(&mut rest, false));
                prop_assert!(rest.len() < SEQUENCE_MAX + 2);
            }
            in_parts.extend(take(&mut rest, true));
            prop_assert_eq!((told, rest.len()), (in_parts, 0));
        }
    }
}

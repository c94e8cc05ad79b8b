//! Bytes from outside made harmless for a log line: always valid UTF-8, never a control character, never too long.
//!
//! It knows JSON's escapes and nothing of which field a text belongs to.

/// Stands at the end of a text that was cut.
pub const TRUNCATION_MARK: &str = "…";

/// Whether every byte may stand in a JSON string as it is: printable ASCII without `"` and `\`.
///
/// Blocks are looked at whole, 16 bytes (one SSE2 register) or 8; what is left over at the end is the last block once
/// again.
#[inline]
pub fn is_plain(bytes: &[u8]) -> bool {
    if let Some(last) = bytes.last_chunk::<16>() {
        return bytes.as_chunks::<16>().0.iter().all(is_plain_block) && is_plain_block(last);
    }
    match (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (Some(first), Some(last)) => is_plain_block(first) && is_plain_block(last),
        _ => bytes.iter().fold(0, |found, &byte| found | needs_escape(byte)) == 0,
    }
}

/// No early exit and no branch, so that the compiler looks at a block in a few instructions.
#[inline]
fn is_plain_block<const N: usize>(block: &[u8; N]) -> bool {
    block.iter().fold(0, |found, &byte| found | needs_escape(byte)) == 0
}

/// 1 for whatever is not printable ASCII, `"` and `\`; else 0.
#[inline]
const fn needs_escape(byte: u8) -> u8 {
    (byte.wrapping_sub(b' ') >= 0x5f) as u8 | (byte == b'"') as u8 | (byte == b'\\') as u8
}

/// Appends `bytes` as the inside of a JSON string.
///
/// Invalid UTF-8 becomes U+FFFD; quotes, backslashes and whatever could move a cursor, break a line or reorder the
/// text on a reader's screen is escaped.
#[inline]
pub fn push_json(out: &mut Vec<u8>, bytes: &[u8]) {
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
    } else {
        push_escaped(out, bytes, Quotes::Escaped);
    }
}

/// [`push_json`] of at most `max` bytes of input; a longer one is cut between characters and marked.
#[inline]
pub fn push_json_bounded(out: &mut Vec<u8>, bytes: &[u8], max: usize) {
    if bytes.len() <= max {
        push_json(out, bytes);
    } else {
        push_json(out, cut(bytes, max));
        out.extend_from_slice(TRUNCATION_MARK.as_bytes());
    }
}

/// Appends a whole line as some formatter wrote it: quotes and backslashes stay, what would harm a reader is escaped.
pub fn push_line(out: &mut Vec<u8>, line: &[u8]) {
    push_escaped(out, line, Quotes::Kept);
}

#[derive(Clone, Copy, PartialEq)]
enum Quotes {
    Escaped,
    Kept,
}

/// The longest start of `bytes` within `max` bytes that ends between two characters.
fn cut(bytes: &[u8], max: usize) -> &[u8] {
    let is_continuation = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
    // A character has at most three continuation bytes; more of them are no character and may be cut anywhere.
    let end = (max.saturating_sub(3)..=max).rev().find(|&end| !is_continuation(end)).unwrap_or(max);
    bytes.get(..end).unwrap_or(bytes)
}

#[cold]
fn push_escaped(out: &mut Vec<u8>, bytes: &[u8], quotes: Quotes) {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            push_character(out, character, quotes);
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn push_character(out: &mut Vec<u8>, character: char, quotes: Quotes) {
    match character {
        '"' | '\\' if quotes == Quotes::Escaped => out.extend([b'\\', character as u8]),
        '\n' => out.extend(b"\\n"),
        '\r' => out.extend(b"\\r"),
        '\t' => out.extend(b"\\t"),
        _ if is_harmful(character) => {
            // Each of them lies in the basic plane: four digits say it.
            out.extend(b"\\u");
            for shift in [12, 8, 4, 0] {
                let digit = (u32::from(character) >> shift) & 0xf;
                out.push(char::from_digit(digit, 16).map_or(b'0', |digit| digit as u8));
            }
        }
        _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// Control characters, line separators, marks that reorder text (Unicode UAX #9) and the byte order mark.
const fn is_harmful(character: char) -> bool {
    matches!(character,
        '\0'..='\x1f'
        | '\x7f'..='\u{9f}'
        | '\u{61c}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn escaped(bytes: &[u8], max: usize) -> String {
        let mut out = Vec::new();
        push_json_bounded(&mut out, bytes, max);
        String::from_utf8(out).expect("always UTF-8")
    }

    fn check(input: &[u8], expected: &Expect) {
        expected.assert_eq(&escaped(input, 16));
    }

    #[test]
    fn texts_are_made_harmless() {
        check(b"/a?b=c&d", &expect!["/a?b=c&d"]);
        check(b"say \"hi\" \\o/", &expect![[r#"say \"hi\" \\o/"#]]);
        check(b"a\r\nb\tc\0\x1b[2J\x7f", &expect![[r"a\r\nb\tc\u0000\u001b[2J\u007f"]]);
        check("naïve ☕".as_bytes(), &expect!["naïve ☕"]);
        check("\u{85}\u{9b}2J".as_bytes(), &expect![[r"\u0085\u009b2J"]]);
        check("a\u{2028}b\u{202e}c".as_bytes(), &expect![[r"a\u2028b\u202ec"]]);
        check(b"\xff\xfea\xe2\x82b", &expect!["��a�b"]);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        check(b"0123456789abcdef", &expect!["0123456789abcdef"]);
        check(b"0123456789abcdefg", &expect!["0123456789abcdef…"]);
        check("0123456789abcde☕☕".as_bytes(), &expect!["0123456789abcde…"]);
        check("0123456789abc☕☕".as_bytes(), &expect!["0123456789abc☕…"]);
        check(&[0x80; 20], &expect!["����������������…"]);
    }

    #[test]
    fn lines_keep_their_quotes() {
        let mut out = Vec::new();
        push_line(&mut out, b"{\"a\":\"\\u001b\"} \x1b \xc2\x9b");
        expect![[r#"{"a":"\u001b"} \u001b \u009b"#]].assert_eq(&String::from_utf8_lossy(&out));
    }

    proptest! {
        #[test]
        fn what_is_parsed_back_is_what_came(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let text = escaped(&bytes, 200);
            prop_assert!(!text.chars().any(is_harmful));
            let parsed: String = serde_json::from_str(&format!("\"{text}\"")).expect("a JSON string");
            prop_assert_eq!(parsed, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn plain_is_what_needs_no_escape(bytes in prop::collection::vec(b' '..=0x80, 0..80)) {
            prop_assert_eq!(is_plain(&bytes), bytes.iter().all(|&byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'));
            if is_plain(&bytes) {
                let mut out = Vec::new();
                push_escaped(&mut out, &bytes, Quotes::Escaped);
                prop_assert_eq!(out, bytes);
            }
        }

        #[test]
        fn nothing_outgrows_its_bound(bytes in prop::collection::vec(any::<u8>(), 0..400), max in 0_usize..100) {
            prop_assert!(escaped(&bytes, max).len() <= 6 * max + TRUNCATION_MARK.len());
        }
    }
}

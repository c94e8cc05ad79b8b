//! Which bytes may stand where: one table of 256 entries for all the grammars of a head.

/// May stand in a token: methods and field names (RFC 9110 §5.6.2).
pub(in crate::proto) const TOKEN: u8 = 1;
/// May stand in the path of a target.
pub(in crate::proto) const PATH: u8 = 1 << 1;
/// May stand in the query of a target.
pub(in crate::proto) const QUERY: u8 = 1 << 2;
/// May stand in a field value: visible ASCII, space, tab and obs-text (RFC 9110 §5.5).
pub(in crate::proto) const VALUE: u8 = 1 << 3;
/// May stand in the name of a host.
pub(in crate::proto) const HOST: u8 = 1 << 4;

static CLASSES: [u8; 256] = classes();

/// All classes of a byte.
#[inline]
fn classes_of(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or_default()
}

/// Whether the byte is of this class.
#[inline]
pub(in crate::proto) fn is(byte: u8, class: u8) -> bool {
    classes_of(byte) & class != 0
}

/// How many bytes at the beginning are of this class.
pub(in crate::proto) fn prefix_length(bytes: &[u8], class: u8) -> usize {
    // Sixteen at once take a branch and not sixteen.
    let (chunks, _) = bytes.as_chunks::<16>();
    let are_all = |chunk: &&[u8; 16]| chunk.iter().fold(class, |all, byte| all & classes_of(*byte)) == class;
    let whole = chunks.iter().take_while(are_all).count().saturating_mul(16);
    let rest = bytes.get(whole..).unwrap_or_default();
    whole.saturating_add(rest.iter().take_while(|byte| is(**byte, class)).count())
}

/// Whether all bytes are of this class.
#[inline]
pub(in crate::proto) fn all(bytes: &[u8], class: u8) -> bool {
    bytes.iter().all(|&byte| is(byte, class))
}

/// Without the optional white space around it (RFC 9110 §5.6.3: spaces and tabs, nothing else).
#[inline]
pub(in crate::proto) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "runs in the compiler")]
const fn classes() -> [u8; 256] {
    let mut table = [0_u8; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = class_of(byte);
        if byte == u8::MAX {
            return table;
        }
        byte += 1;
    }
}

const fn class_of(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => TOKEN | PATH | QUERY | VALUE | HOST,
        b'!' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'^' | b'|' => TOKEN | PATH | QUERY | VALUE,
        b'(' | b')' | b',' | b'/' | b':' | b';' | b'=' | b'@' | b'[' | b']' => PATH | QUERY | VALUE,
        b'`' => TOKEN | QUERY | VALUE,
        b'#' => TOKEN | VALUE,
        b'?' | b'\\' | b'{' | b'}' => QUERY | VALUE,
        b'"' | b'<' | b'>' | b' ' | b'\t' | 0x80..=0xff => VALUE,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_first_byte_of_another_class() {
        for length in 0..50 {
            let mut bytes = vec![b'a'; length];
            assert_eq!(prefix_length(&bytes, TOKEN), length);
            for place in 0..length {
                bytes.splice(place.., vec![b'/'; length - place]);
                assert_eq!((prefix_length(&bytes, TOKEN), prefix_length(&bytes, PATH)), (place, length));
                bytes.splice(place.., vec![b'a'; length - place]);
            }
        }
    }
}

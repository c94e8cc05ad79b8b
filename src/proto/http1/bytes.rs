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

/// Whether the byte is of this class.
#[inline]
pub(in crate::proto) fn is(byte: u8, class: u8) -> bool {
    CLASSES.get(usize::from(byte)).is_some_and(|classes| classes & class != 0)
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

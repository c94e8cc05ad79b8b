//! Reads the tables of raw messages in this folder.
//!
//! A line is `name | raw bytes | outcome | what was understood`. In the raw bytes `\r` `\n` `\t` `\\` and `\xHH` stand
//! for one byte, `\p` for a bar, and `\{n*c}` for n times the byte c. The outcome is `accept`, `wait` (more bytes are
//! needed), or the status and the name of the mistake. Lines that begin with `#` are comments.

/// One line of a table.
pub struct Case {
    /// What it is about.
    pub name: String,
    /// As written in the table.
    pub written: String,
    /// What the peer sends.
    pub raw: Vec<u8>,
    /// `accept`, `wait`, or status and name of the mistake.
    pub outcome: String,
}

/// The cases of a table, and every line as it stands: comments are `Err`.
pub fn lines(table: &str) -> impl Iterator<Item = Result<Case, &str>> {
    table.lines().map(|line| {
        let mut columns = line.split(" | ");
        match (columns.next(), columns.next()) {
            (Some(name), Some(written)) if !line.starts_with('#') => Ok(Case {
                name: name.to_owned(),
                written: written.to_owned(),
                raw: unescape(written),
                outcome: columns.next().unwrap_or_default().trim_end().to_owned(),
            }),
            _ => Err(line),
        }
    })
}

fn unescape(written: &str) -> Vec<u8> {
    let mut raw = Vec::new();
    let mut rest = written;
    while let Some((before, escape)) = rest.split_once('\\') {
        raw.extend_from_slice(before.as_bytes());
        let length = match escape.as_bytes().first() {
            Some(b'r') => push(&mut raw, b'\r'),
            Some(b'n') => push(&mut raw, b'\n'),
            Some(b't') => push(&mut raw, b'\t'),
            Some(b'p') => push(&mut raw, b'|'),
            Some(b'\\') => push(&mut raw, b'\\'),
            Some(b'x') => {
                let hex = escape.get(1..3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
                push(&mut raw, hex.unwrap_or_else(|| panic!("\\x takes two hex digits: {written}"))) + 2
            }
            Some(b'{') => {
                let (inner, _) = escape[1..].split_once('}').unwrap_or_else(|| panic!("no closing brace: {written}"));
                let (times, byte) = inner.split_once('*').unwrap_or_else(|| panic!("no asterisk: {written}"));
                let times: usize = times.parse().unwrap_or_else(|_| panic!("not a count: {written}"));
                raw.extend(unescape(byte).repeat(times));
                inner.len() + 2
            }
            _ => panic!("unknown escape: {written}"),
        };
        rest = &escape[length..];
    }
    raw.extend_from_slice(rest.as_bytes());
    raw
}

fn push(raw: &mut Vec<u8>, byte: u8) -> usize {
    raw.push(byte);
    1
}

//! The PROXY protocol, versions 1 and 2: the header before a connection's own bytes in which a balancer says whose connection
//! it passes on. What follows it is never touched; whose word counts is for others to say.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::{FromStr, from_utf8};

/// The longest header that is read: TLVs of a longer one are for others. The specification has receivers take 536 bytes, as
/// many as fit into the smallest segment.
pub const HEADER_BYTES_MAX: usize = 536;

/// The longest line of version 1, its end included.
const LINE_BYTES_MAX: usize = 107;
/// The shortest one: `PROXY UNKNOWN` and its end.
const LINE_BYTES_MIN: usize = 15;
/// What each line begins with. The shortest method of HTTP that does so too is none.
const LINE_START: &[u8] = b"PROXY ";

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length of the rest.
const FIXED_BYTES: usize = 16;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Whose connection it is.
    Client(SocketAddr),
    /// No address: the connection is the balancer's own (`LOCAL`), or it does not know whose (`UNKNOWN`, `UNSPEC`, a socket
    /// with a path).
    Nobody,
}

/// Why what came is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It does not begin as one, or breaks the rules of its version.
    #[error("it is no PROXY header")]
    Malformed,
    /// It goes on for longer than one may.
    #[error("the PROXY header is longer than {HEADER_BYTES_MAX} bytes, or its line than {LINE_BYTES_MAX}")]
    TooLong,
    /// Its checksum is not that of its bytes.
    #[error("the checksum of the PROXY header is wrong")]
    Checksum,
}

/// Reads one header, however its bytes come.
#[derive(Clone, Debug, Default)]
pub struct HeaderReader {
    bytes: Vec<u8>,
}

impl HeaderReader {
    /// So many bytes are still to come for certain: whoever reads no more of them at once never reads beyond the header.
    pub fn wanted(&self) -> usize {
        let length = self.bytes.len();
        if length < LINE_BYTES_MIN {
            return LINE_BYTES_MIN.saturating_sub(length);
        }
        if self.bytes.starts_with(SIGNATURE) {
            return self.whole_bytes().unwrap_or(FIXED_BYTES).saturating_sub(length).max(1);
        }
        line_wanted(&self.bytes)
    }

    /// Takes bytes as they come, none behind the header's last; says how many that were, and what the header says once it is
    /// whole.
    pub fn handle_input(&mut self, input: &[u8]) -> Result<(usize, Option<Told>), HeaderError> {
        let mut taken = 0_usize;
        for &byte in input {
            taken = taken.saturating_add(1);
            if let Some(told) = self.push(byte)? {
                return Ok((taken, Some(told)));
            }
        }
        Ok((taken, None))
    }

    fn push(&mut self, byte: u8) -> Result<Option<Told>, HeaderError> {
        let before = self.bytes.last().copied();
        self.bytes.push(byte);
        let bytes = &*self.bytes;
        if SIGNATURE.starts_with(bytes) || bytes.starts_with(SIGNATURE) {
            return match self.whole_bytes() {
                Some(whole) if whole > HEADER_BYTES_MAX => Err(HeaderError::TooLong),
                Some(whole) if whole == bytes.len() => read_binary(bytes).map(Some),
                _ => Ok(None),
            };
        }
        if LINE_START.starts_with(bytes) {
            return Ok(None);
        }
        if !bytes.starts_with(LINE_START) {
            return Err(HeaderError::Malformed);
        }
        match (before, byte) {
            (Some(b'\r'), b'\n') => read_line(bytes).map(Some),
            (Some(b'\r'), _) => Err(HeaderError::Malformed),
            _ if bytes.len() >= LINE_BYTES_MAX => Err(HeaderError::TooLong),
            (_, b' '..=b'~' | b'\r') => Ok(None),
            _ => Err(HeaderError::Malformed),
        }
    }

    /// How long a header of version 2 is, once that is known.
    fn whole_bytes(&self) -> Option<usize> {
        let [high, low] = *self.bytes.get(14..FIXED_BYTES)?.first_chunk()?;
        usize::from(u16::from_be_bytes([high, low])).checked_add(FIXED_BYTES)
    }
}

/// How much of a line of version 1 is still to come at least: the shortest of each field that is missing, and its end.
fn line_wanted(line: &[u8]) -> usize {
    let end = if line.ends_with(b"\r") { 1 } else { 2 };
    let (address_min, fields) = match line.split_at_checked(11) {
        Some((b"PROXY TCP4 ", fields)) => ("0.0.0.0".len(), fields),
        Some((b"PROXY TCP6 ", fields)) => ("::".len(), fields),
        _ => return end,
    };
    let mut wanted = [address_min, address_min, 1, 1].into_iter();
    let mut missing = 0_usize;
    for field in fields.split(|byte| matches!(byte, b' ' | b'\r')) {
        missing = wanted.next().unwrap_or(0).saturating_sub(field.len());
    }
    wanted.fold(missing, |sum, field| sum.saturating_add(field).saturating_add(1)).saturating_add(end)
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`, with one space between two fields.
fn read_line(line: &[u8]) -> Result<Told, HeaderError> {
    let line = line.strip_suffix(b"\r\n").and_then(|line| from_utf8(line).ok()).ok_or(HeaderError::Malformed)?;
    let mut fields = line.split(' ').skip(1);
    let (family, mut next) = (fields.next(), || fields.next().ok_or(HeaderError::Malformed));
    let client = match family {
        // Whatever stands behind it is to be ignored.
        Some("UNKNOWN") => return Ok(Told::Nobody),
        Some("TCP4") => client::<Ipv4Addr>([next()?, next()?, next()?, next()?]),
        Some("TCP6") => client::<Ipv6Addr>([next()?, next()?, next()?, next()?]),
        _ => None,
    };
    match (client, fields.next()) {
        (Some(client), None) => Ok(Told::Client(client)),
        _ => Err(HeaderError::Malformed),
    }
}

fn client<A: FromStr + Into<IpAddr>>([source, destination, port, other_port]: [&str; 4]) -> Option<SocketAddr> {
    let source = source.parse::<A>().ok()?.into();
    destination.parse::<A>().ok()?;
    read_port(other_port)?;
    Some(SocketAddr::new(source, read_port(port)?))
}

/// Digits only, without a nought in front.
fn read_port(text: &str) -> Option<u16> {
    let is_usual = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_usual)
}

/// A whole header of version 2.
fn read_binary(header: &[u8]) -> Result<Told, HeaderError> {
    let (fixed, rest) = header.split_at_checked(FIXED_BYTES).ok_or(HeaderError::Malformed)?;
    let [.., version_and_command, family, _, _] = *fixed else { return Err(HeaderError::Malformed) };
    match version_and_command {
        // LOCAL: the balancer looks whether anybody is there. The rest is to be discarded.
        0x20 => return Ok(Told::Nobody),
        0x21 => {}
        _ => return Err(HeaderError::Malformed),
    }
    let (told, address_bytes) = match (family, rest) {
        (0x00, _) => (Told::Nobody, 0),
        (0x11, [a, b, c, d, _, _, _, _, high, low, _, _, ..]) => {
            (Told::Client(SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), u16::from_be_bytes([*high, *low]))), 12)
        }
        (0x21, rest) if rest.len() >= 36 => {
            let source = rest.first_chunk::<16>().map_or(Ipv6Addr::UNSPECIFIED, |bytes| Ipv6Addr::from(*bytes));
            let port = rest.get(32..34).and_then(|port| port.first_chunk()).map_or(0, |port| u16::from_be_bytes(*port));
            (Told::Client(SocketAddr::new(source.into(), port)), 36)
        }
        (0x31, rest) if rest.len() >= 216 => (Told::Nobody, 216),
        // Datagrams do not come over a connection; the rest is undefined, or too short for what it says.
        _ => return Err(HeaderError::Malformed),
    };
    check_tlvs(header, FIXED_BYTES.saturating_add(address_bytes))?;
    Ok(told)
}

/// The type of the TLV with the `CRC32c` of the header.
const CHECKSUM: u8 = 0x03;

/// Whether what stands behind the addresses is whole TLVs, and the checksum, where there is one, is right.
fn check_tlvs(header: &[u8], mut at: usize) -> Result<(), HeaderError> {
    let mut checksum = None;
    while let Some(tlv @ [_, ..]) = header.get(at..) {
        let [kind, high, low, rest @ ..] = tlv else { return Err(HeaderError::Malformed) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest.get(..length).ok_or(HeaderError::Malformed)?;
        let start = at.saturating_add(3);
        if *kind == CHECKSUM {
            let (None, Ok(said)) = (checksum, <[u8; 4]>::try_from(value)) else { return Err(HeaderError::Malformed) };
            checksum = Some((start, u32::from_be_bytes(said)));
        }
        at = start.saturating_add(length);
    }
    match checksum {
        Some((start, said)) if said != crc32c_without(header, start) => Err(HeaderError::Checksum),
        _ => Ok(()),
    }
}

/// `CRC32c` (RFC 9260, appendix A) of these bytes, with noughts for the four at `start`.
fn crc32c_without(bytes: &[u8], start: usize) -> u32 {
    let end = start.saturating_add(4);
    let mut crc = u32::MAX;
    for (at, &byte) in bytes.iter().enumerate() {
        crc ^= if (start..end).contains(&at) { 0 } else { u32::from(byte) };
        for _ in 0..8 {
            let bit = crc & 1;
            crc = (crc >> 1) ^ if bit == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// For the fuzzer, whose first byte says in what pieces the rest comes: any pieces give the same, and whoever reads what is
/// wanted never reads beyond the header.
#[doc(hidden)]
pub fn fuzz_one(input: &[u8]) {
    let Some((&piece, bytes)) = input.split_first() else { return };
    let whole = HeaderReader::default().handle_input(bytes);
    let mut reader = HeaderReader::default();
    let (mut at, mut outcome) = (0_usize, Ok(None));
    while at < bytes.len() && outcome == Ok(None) {
        let wanted = reader.wanted();
        assert!((1..=HEADER_BYTES_MAX).contains(&wanted));
        let length = wanted.min(usize::from(piece).max(1));
        let given = bytes.get(at..).map_or(&[][..], |rest| rest.get(..length).unwrap_or(rest));
        match reader.handle_input(given) {
            Ok((taken, told)) => {
                assert_eq!(taken, given.len(), "what is wanted is the header's");
                at = at.saturating_add(taken);
                outcome = Ok(told);
            }
            Err(error) => outcome = Err(error),
        }
        assert!(reader.bytes.len() <= HEADER_BYTES_MAX);
    }
    assert_eq!(outcome, whole.map(|(_, told)| told), "{}", bytes.escape_ascii());
    if let (Ok((taken, _)), Ok(_)) = (whole, outcome) {
        assert_eq!(taken, at);
    }
}

#[cfg(test)]
#[path = "proxy_protocol_tests.rs"]
mod tests;

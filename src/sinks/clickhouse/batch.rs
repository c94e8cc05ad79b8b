//! Rows on their way: lines of the access log become rows of `JSONEachRow`, many rows a batch, compressed as they come.
//!
//! The compressed bytes are what waits in memory, what is kept in files and what is sent, so that it is done once.

use std::hash::Hasher as _;
use std::io::{self, Read as _, Write as _};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use hyper::body::Bytes;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use crate::shard::Instant;

/// The fastest level: lines are alike, and it makes a sixth of them (docs/clickhouse.md).
const LEVEL: Compression = Compression::new(1);

/// Rows that are sent together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) rows: u32,
    /// When its first row came, in milliseconds since 1970.
    pub(super) oldest_ms: u64,
    /// The rows, each with its newline, compressed.
    pub(super) gzip: Bytes,
}

impl Batch {
    /// What names these bytes: a server that is sent them twice may know them by it.
    pub(super) fn token(&self) -> u128 {
        token(&self.gzip)
    }

    /// The rows as they were. Fails where they would be more than `bytes_max`.
    pub(super) fn inflate(&self, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut rows = Vec::new();
        MultiGzDecoder::new(&*self.gzip).take(bytes_max as u64 + 1).read_to_end(&mut rows)?;
        if rows.len() > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(rows) }
    }
}

/// See [`Batch::token`].
pub(super) fn token(bytes: &[u8]) -> u128 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish128().as_u128()
}

/// Compresses rows.
pub(super) fn compress(rows: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), LEVEL);
    // Writing to a vector cannot fail.
    let _ = encoder.write_all(rows);
    encoder.finish().unwrap_or_default().into()
}

/// A batch that grows.
pub(super) struct Builder {
    encoder: GzEncoder<Vec<u8>>,
    rows: u32,
    bytes: usize,
    oldest_ms: u64,
    /// When its first row came.
    pub(super) since: Instant,
}

impl Builder {
    pub(super) fn new(now: Instant, unix_ms: u64) -> Self {
        Self { encoder: GzEncoder::new(Vec::new(), LEVEL), rows: 0, bytes: 0, oldest_ms: unix_ms, since: now }
    }

    /// Adds whole lines, which are numbered from `first` on. A row is the line with its number and the process's name.
    pub(super) fn push(&mut self, node: &str, first: u64, lines: &[u8]) {
        let mut number = itoa::Buffer::new();
        // Handed over in one go: the encoder does more for each call than for a row.
        let mut rows = Vec::with_capacity(lines.len() + lines.len() / 4);
        for (line, place) in lines.split_inclusive(|byte| *byte == b'\n').zip(first..) {
            let Some(fields) = line.strip_prefix(b"{") else { continue };
            let parts: [&[u8]; 6] =
                [b"{\"node\":\"", node.as_bytes(), b"\",\"line\":", number.format(place).as_bytes(), b",", fields];
            for part in parts {
                rows.extend_from_slice(part);
            }
            self.rows += 1;
        }
        let _ = self.encoder.write_all(&rows);
        self.bytes += rows.len();
    }

    /// How many bytes its rows have.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Memory that it takes.
    pub(super) fn memory(&self) -> usize {
        self.encoder.get_ref().capacity()
    }

    /// When its first row came, in milliseconds since 1970.
    pub(super) fn oldest_ms(&self) -> u64 {
        self.oldest_ms
    }

    pub(super) fn finish(self) -> Batch {
        let mut gzip = self.encoder.finish().unwrap_or_default();
        gzip.shrink_to_fit();
        Batch { rows: self.rows, oldest_ms: self.oldest_ms, gzip: gzip.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_its_line_with_a_number_and_the_process() {
        let mut builder = Builder::new(Instant::START, 7);
        builder.push("n_1", 41, b"{\"time\":\"t\"}\n{\"time\":\"u\"}\n");
        builder.push("n_1", 1, b"{\"time\":\"v\"}\n");
        let batch = builder.finish();
        assert_eq!((batch.rows, batch.oldest_ms), (3, 7));
        let rows = batch.inflate(1000).expect("it is whole");
        let expected = "{\"node\":\"n_1\",\"line\":41,\"time\":\"t\"}\n{\"node\":\"n_1\",\"line\":42,\"time\":\"u\"}\n\
                        {\"node\":\"n_1\",\"line\":1,\"time\":\"v\"}\n";
        assert_eq!(String::from_utf8(rows).expect("UTF-8"), expected);
        assert!(batch.inflate(expected.len() - 1).is_err(), "what grows past its bound is not made");
    }

    #[test]
    fn the_same_rows_have_the_same_name_and_others_another() {
        let batch = |rows: &[u8]| Batch { rows: 1, oldest_ms: 0, gzip: compress(rows) };
        assert_eq!(batch(b"a\n").token(), batch(b"a\n").token());
        assert_ne!(batch(b"a\n").token(), batch(b"b\n").token());
    }
}

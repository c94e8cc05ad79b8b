//! How batches lie in a file: one behind the other, each with its length and a checksum, so that of a file that was torn or
//! damaged everything is found that is whole, and nothing else.

use std::hash::Hasher as _;

use hyper::body::Bytes;
use siphasher::sip::SipHasher13;

use super::batch::Batch;

/// Begins a file.
pub(super) const FILE_MAGIC: &[u8; 8] = b"SGSPILL1";
/// Begins a record.
const MAGIC: &[u8; 4] = b"\xf3SGB";
/// Magic, length, rows, time of the first row, checksum.
const HEAD: usize = 4 + 4 + 4 + 8 + 8;
/// No batch is larger: twice the most that `batch_bytes` can be.
pub(super) const PAYLOAD_MAX: usize = 32 << 20;

/// Appends a record.
pub(super) fn write(batch: &Batch, out: &mut Vec<u8>) {
    let length = u32::try_from(batch.gzip.len()).unwrap_or(u32::MAX);
    out.reserve(HEAD + batch.gzip.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&batch.rows.to_le_bytes());
    out.extend_from_slice(&batch.oldest_ms.to_le_bytes());
    out.extend_from_slice(&checksum(length, batch.rows, batch.oldest_ms, &batch.gzip).to_le_bytes());
    out.extend_from_slice(&batch.gzip);
}

/// How many bytes a record of the batch has.
pub(super) fn length(batch: &Batch) -> u64 {
    (HEAD + batch.gzip.len()) as u64
}

fn checksum(length: u32, rows: u32, oldest_ms: u64, payload: &[u8]) -> u64 {
    // A checksum and no secret: the files are this user's.
    let mut hasher = SipHasher13::new_with_keys(0x5348_4152_4447_4154, 0x4552_5350_494c_4c31);
    for part in [&length.to_le_bytes()[..], &rows.to_le_bytes(), &oldest_ms.to_le_bytes(), payload] {
        hasher.write(part);
    }
    hasher.finish()
}

/// Reads the records of a file's bytes, one after the other.
#[derive(Debug)]
pub(super) struct Records {
    bytes: Bytes,
    /// Where the next one begins.
    at: usize,
    /// Stretches that are no record, torn ones among them.
    pub(super) damaged: u64,
}

impl Records {
    /// `None` where the file is none of ours. One that ends within what begins it was torn before it had a record.
    pub(super) fn new(bytes: Bytes) -> Option<Self> {
        let at = FILE_MAGIC.len().min(bytes.len());
        FILE_MAGIC.starts_with(bytes.get(..at)?).then_some(Self { bytes, at, damaged: 0 })
    }

    /// The next whole record. What lies before it is passed over and counted.
    pub(super) fn next(&mut self) -> Option<Batch> {
        let mut is_damaged = false;
        let found = loop {
            if let Some((batch, end)) = self.record_at(self.at) {
                self.at = end;
                break Some(batch);
            }
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            is_damaged |= !rest.is_empty();
            let Some(further) = rest.get(1..).and_then(|rest| memchr::memmem::find(rest, MAGIC)) else {
                self.at = self.bytes.len();
                break None;
            };
            self.at += 1 + further;
        };
        self.damaged += u64::from(is_damaged);
        found
    }

    fn record_at(&self, at: usize) -> Option<(Batch, usize)> {
        let head = self.bytes.get(at..)?.get(..HEAD)?;
        let number = |range: std::ops::Range<usize>| Some(u32::from_le_bytes(head.get(range)?.try_into().ok()?));
        let wide = |range: std::ops::Range<usize>| Some(u64::from_le_bytes(head.get(range)?.try_into().ok()?));
        let (length, rows) = (number(4..8)?, number(8..12)?);
        let (oldest_ms, checked) = (wide(12..20)?, wide(20..28)?);
        let start = at + HEAD;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        if head.get(..4)? != MAGIC || end > self.bytes.len() {
            return None;
        }
        let gzip = self.bytes.slice(start..end);
        (checksum(length, rows, oldest_ms, &gzip) == checked).then_some((Batch { rows, oldest_ms, gzip }, end))
    }

    /// Memory that it takes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batches() -> impl Strategy<Value = Vec<Batch>> {
        let payload = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            // What looks like a record's beginning.
            proptest::collection::vec(prop_oneof![Just(MAGIC.to_vec()), Just(vec![0; 9])], 0..20)
                .prop_map(|parts| parts.concat()),
        ];
        let batch = (any::<u32>(), any::<u64>(), payload);
        let batch = batch.prop_map(|(rows, oldest_ms, gzip)| Batch { rows, oldest_ms, gzip: gzip.into() });
        proptest::collection::vec(batch, 0..8)
    }

    fn file(batches: &[Batch]) -> Vec<u8> {
        let mut bytes = FILE_MAGIC.to_vec();
        for batch in batches {
            write(batch, &mut bytes);
        }
        bytes
    }

    fn read(bytes: Vec<u8>) -> (Vec<Batch>, u64) {
        let Some(mut records) = Records::new(bytes.into()) else { return (Vec::new(), 0) };
        let found = std::iter::from_fn(|| records.next()).collect();
        (found, records.damaged)
    }

    /// Whether `some` are of `all`, in their order.
    fn are_of(some: &[Batch], all: &[Batch]) -> bool {
        let mut all = all.iter();
        some.iter().all(|batch| all.any(|other| other == batch))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(batches in batches()) {
            prop_assert_eq!(read(file(&batches)), (batches, 0));
        }

        #[test]
        fn of_a_file_that_was_cut_the_whole_records_are_read(batches in batches(), cut in any::<prop::sample::Index>()) {
            let whole = file(&batches);
            let end = cut.index(whole.len() + 1);
            let mut starts = vec![FILE_MAGIC.len()];
            for batch in &batches {
                starts.push(starts.last().unwrap() + usize::try_from(length(batch)).unwrap());
            }
            let kept = starts.iter().skip(1).filter(|record_end| **record_end <= end).count();
            let (found, damaged) = read(whole[..end].to_vec());
            prop_assert_eq!(&found[..], &batches[..kept]);
            let is_torn = end >= FILE_MAGIC.len() && !starts.contains(&end);
            prop_assert_eq!(damaged, u64::from(is_torn));
        }

        #[test]
        fn of_a_damaged_file_no_wrong_row_is_read_and_no_whole_one_is_lost(
            batches in batches(),
            hits in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        ) {
            let mut bytes = file(&batches);
            let mut hit_records = std::collections::BTreeSet::new();
            for (at, flips) in hits {
                let at = at.index(bytes.len());
                bytes[at] ^= flips;
                let mut end = FILE_MAGIC.len();
                let record = batches.iter().position(|batch| {
                    end += usize::try_from(length(batch)).unwrap();
                    at < end
                });
                if at < FILE_MAGIC.len() { hit_records.extend(0..batches.len()) } else { hit_records.extend(record) }
            }
            let (found, _) = read(bytes);
            prop_assert!(are_of(&found, &batches), "{found:?}");
            prop_assert!(found.len() + hit_records.len() >= batches.len());
        }

        #[test]
        fn what_is_no_file_of_ours_is_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut file = FILE_MAGIC.to_vec();
            file.extend(bytes);
            prop_assert!(read(file).0.is_empty());
        }
    }
}

//! Rows that a server refuses among others that it takes: which they are, found by sending the batch in ever smaller parts.
//!
//! The server says of a batch that something is wrong with it, and takes none of it. A row is given up only when it was
//! refused alone, twice, and others were taken meanwhile; where nothing is taken, the rows are not to blame.

use std::collections::VecDeque;
use std::ops::Range;

/// Parts that are refused, one after the other and none taken, before it is said that nothing is: down to a sixteenth.
const REFUSALS_MAX: u32 = 31;

/// A batch that was refused whole.
#[derive(Debug)]
pub(super) struct Splitting {
    rows: Vec<u8>,
    /// Where each row ends.
    ends: Vec<usize>,
    /// Parts that are still to be sent, the largest first.
    parts: VecDeque<Range<usize>>,
    /// Rows that were refused alone.
    suspects: VecDeque<usize>,
    /// Rows that were refused again.
    refused: Vec<usize>,
    /// Suspects are asked about once more.
    is_confirming: bool,
    refusals: u32,
    /// Whether the server takes rows: some of these, or others since these were refused.
    takes_rows: bool,
}

/// What is next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send these rows.
    Send(Range<usize>),
    /// All rows but those refused are in the table.
    Done,
    /// Nothing of it is taken.
    NothingTaken,
}

impl Splitting {
    /// `takes_rows`: the server has taken others since it refused these for the first time.
    pub(super) fn new(rows: Vec<u8>, takes_rows: bool) -> Self {
        let ends: Vec<usize> = memchr::memchr_iter(b'\n', &rows).map(|at| at + 1).collect();
        let mut splitting = Self {
            rows,
            parts: VecDeque::new(),
            suspects: VecDeque::new(),
            refused: Vec::new(),
            is_confirming: false,
            refusals: 0,
            takes_rows,
            ends,
        };
        splitting.divide(0..splitting.ends.len());
        splitting
    }

    fn divide(&mut self, part: Range<usize>) {
        match part.len() {
            0 => {}
            1 => self.suspects.push_back(part.start),
            length => {
                let middle = part.start + length / 2;
                self.parts.extend([part.start..middle, middle..part.end]);
            }
        }
    }

    /// What is to be sent, or what came of it all.
    pub(super) fn step(&mut self) -> Step {
        if !self.takes_rows && self.refusals >= REFUSALS_MAX {
            return Step::NothingTaken;
        }
        if let Some(part) = self.parts.front() {
            return Step::Send(part.clone());
        }
        match self.suspects.front() {
            None => Step::Done,
            Some(_) if !self.takes_rows => Step::NothingTaken,
            Some(&row) => {
                self.is_confirming = true;
                Step::Send(row..row + 1)
            }
        }
    }

    /// What was sent is in the table.
    pub(super) fn handle_taken(&mut self) {
        self.takes_rows = true;
        if self.is_confirming {
            self.suspects.pop_front();
        } else {
            self.parts.pop_front();
        }
    }

    /// What was sent is refused.
    pub(super) fn handle_refused(&mut self) {
        self.refusals += 1;
        if self.is_confirming {
            self.refused.extend(self.suspects.pop_front());
        } else if let Some(part) = self.parts.pop_front() {
            self.divide(part);
        }
    }

    /// The bytes of some rows.
    pub(super) fn bytes(&self, rows: &Range<usize>) -> &[u8] {
        let start = rows.start.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let end = rows.end.checked_sub(1).and_then(|last| self.ends.get(last)).copied().unwrap_or(0);
        self.rows.get(start..end).unwrap_or_default()
    }

    /// How many rows are refused, and of the first one what names it.
    pub(super) fn refused(&self) -> (u64, String) {
        let first = self.refused.first().map(|&row| self.bytes(&(row..row + 1)));
        // `{"node":"n_…","line":7`: what comes from clients stands behind it.
        let name =
            first.and_then(|row| row.splitn(3, |byte| *byte == b',').map(<[u8]>::len).take(2).reduce(|a, b| a + 1 + b));
        let name = first.zip(name).and_then(|(row, length)| row.get(1..length)).unwrap_or_default();
        (self.refused.len() as u64, String::from_utf8_lossy(name).replace('"', ""))
    }

    /// Memory that it takes.
    pub(super) fn memory(&self) -> usize {
        self.rows.capacity() + self.ends.capacity() * size_of::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn rows(count: usize) -> Vec<u8> {
        (0..count).flat_map(|row| format!("{{\"node\":\"n_1\",\"line\":{row},\"x\":\"\"}}\n").into_bytes()).collect()
    }

    /// Sends parts to a server that refuses the bad rows; which rows are in the table then, and after how many requests.
    fn send(splitting: &mut Splitting, bad: &BTreeSet<usize>) -> (Step, BTreeSet<usize>, usize) {
        let (mut table, mut requests) = (BTreeSet::new(), 0);
        loop {
            let part = match splitting.step() {
                Step::Send(part) => part,
                step => return (step, table, requests),
            };
            assert!(!part.is_empty());
            requests += 1;
            if part.clone().any(|row| bad.contains(&row)) {
                splitting.handle_refused();
            } else {
                assert!(part.clone().all(|row| table.insert(row)), "no row is sent twice");
                splitting.handle_taken();
            }
        }
    }

    proptest! {
        #[test]
        fn the_rows_that_are_refused_are_lost_and_no_other(
            count in 2_usize..600,
            bad in proptest::collection::btree_set(0_usize..600, 1..8),
        ) {
            let bad: BTreeSet<usize> = bad.into_iter().map(|row| row % count).collect();
            let mut splitting = Splitting::new(rows(count), false);
            let (step, table, requests) = send(&mut splitting, &bad);
            if bad.len() < count {
                prop_assert_eq!(step, Step::Done);
                prop_assert_eq!(&table, &(0..count).filter(|row| !bad.contains(row)).collect());
                prop_assert_eq!(splitting.refused().0, bad.len() as u64);
                // Two halves on each level for each, and once more alone.
                prop_assert!(requests <= bad.len() * (2 * 11 + 1));
            }
        }
    }

    #[test]
    fn where_nothing_is_taken_no_row_is_given_up() {
        for count in [1, 2, 5, 1000] {
            let mut splitting = Splitting::new(rows(count), false);
            let (step, table, requests) = send(&mut splitting, &(0..count).collect());
            assert_eq!((step, table.len()), (Step::NothingTaken, 0), "{count}");
            assert!(requests <= REFUSALS_MAX as usize, "{requests}");
        }
        // Unless the server takes those of others.
        let mut splitting = Splitting::new(rows(3), true);
        assert_eq!(send(&mut splitting, &(0..3).collect()).0, Step::Done);
        assert_eq!(splitting.refused(), (3, "node:n_1,line:0".to_owned()));
    }

    #[test]
    fn a_row_that_is_taken_the_second_time_is_kept() {
        let mut splitting = Splitting::new(rows(2), false);
        assert_eq!(splitting.step(), Step::Send(0..1));
        splitting.handle_refused();
        assert_eq!(splitting.step(), Step::Send(1..2));
        splitting.handle_taken();
        assert_eq!(splitting.step(), Step::Send(0..1));
        splitting.handle_taken();
        assert_eq!((splitting.step(), splitting.refused().0), (Step::Done, 0));
    }
}

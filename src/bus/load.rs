//! How loaded each shard is, for all shards to see, and when a fresh socket should go to another.
//!
//! The only shared numbers beside the doorbell's: each is written by its own shard and only read by the others, on a
//! cache line of its own.

#[expect(clippy::disallowed_types, reason = "each shard publishes its load to the others")]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Open connections of every shard. One per process, behind an `Arc`.
#[derive(Debug)]
pub struct LoadBoard {
    shards: Box<[ConnectionCount]>,
}

#[derive(Debug, Default)]
#[repr(align(128))] // Two lines: processors fetch them in pairs.
#[expect(clippy::disallowed_types, reason = "each shard publishes its load to the others")]
struct ConnectionCount(AtomicUsize);

impl LoadBoard {
    /// A board with a place for each of `shards` shards.
    pub fn new(shards: usize) -> Self {
        Self { shards: (0..shards.max(1)).map(|_| ConnectionCount::default()).collect() }
    }

    /// One more connection on `shard`. A shard that hands a socket over counts it for the receiver at once, so that a
    /// burst does not all go to the same one.
    #[inline]
    pub fn add(&self, shard: usize) {
        self.shards[shard].0.fetch_add(1, Ordering::Relaxed);
    }

    /// One connection fewer on `shard`, which must have been added before.
    #[inline]
    pub fn sub(&self, shard: usize) {
        self.shards[shard].0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Open connections of `shard`.
    #[inline]
    pub fn load(&self, shard: usize) -> usize {
        self.shards[shard].0.load(Ordering::Relaxed)
    }

    /// Open connections of all shards.
    pub fn total(&self) -> usize {
        self.shards.iter().map(|entry| entry.0.load(Ordering::Relaxed)).sum()
    }

    /// The shard with the fewest connections, and how many those are; the first of several.
    pub fn least_loaded(&self) -> (usize, usize) {
        let loads = self.shards.iter().map(|entry| entry.0.load(Ordering::Relaxed)).enumerate();
        loads.min_by_key(|&(_, load)| load).unwrap_or_default()
    }
}

/// Whether a shard with `mine` connections should hand a fresh one to a shard with `least`.
///
/// The kernel's hash spreads connections evenly but for chance: of n connections on k shards one shard has n/k within
/// about the square root of that. The slack of 16 keeps the noise of small numbers from moving sockets for nothing, the
/// tenth that of large ones; beyond both the shards are clearly uneven.
#[inline]
pub const fn should_hand_over(mine: usize, least: usize) -> bool {
    mine > least.saturating_add(least / 10).saturating_add(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_shard_is_found() {
        let board = LoadBoard::new(3);
        assert_eq!(board.least_loaded(), (0, 0));
        board.add(0);
        board.add(0);
        board.add(1);
        assert_eq!(board.least_loaded(), (2, 0));
        board.add(2);
        board.add(2);
        assert_eq!(board.least_loaded(), (1, 1));
        board.sub(0);
        board.sub(0);
        assert_eq!(board.least_loaded(), (0, 0));
        assert_eq!(board.load(2), 2);
    }

    #[test]
    fn only_a_clear_difference_moves_a_socket() {
        for (mine, least, moves) in [
            (0, 0, false),
            (16, 0, false),
            (17, 0, true),
            (116, 100, false),
            (126, 100, false),
            (127, 100, true),
            (4_547, 4_453, false),
            (5_000, 4_000, true),
            (usize::MAX, usize::MAX, false),
        ] {
            assert_eq!(should_hand_over(mine, least), moves, "{mine} against {least}");
        }
    }
}

//! What each key owes, in a table that never grows: two sets of four places for a key, by a hash that outsiders cannot
//! foresee.
//!
//! Only places whose key owes nothing are taken for another key: forgetting it changes nothing. When all eight places of
//! a new key are owing, it shares one more place with all others that find none.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::IpAddr,
    sync::OnceLock,
};

use siphasher::sip::SipHasher13;

use crate::auth::Claims;

/// Whose requests are counted together: an address, a caller or a route, in 128 bits. The same on every instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellKey([u64; 2]);

/// The key of the place that all share who find none of their own.
pub const SHARED: CellKey = CellKey([u64::MAX, u64::MAX]);

impl CellKey {
    /// Of a client's address. IPv6 counts by /64: that is what one household is given, and it has 2^64 addresses.
    #[inline]
    pub fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self([u64::from(address.to_bits()), 4]),
            IpAddr::V6(address) => Self([(address.to_bits() >> 64) as u64, 6]),
        }
    }

    /// Of a caller: subjects are unique within their issuer only.
    #[inline]
    pub fn of_caller(claims: &Claims) -> Self {
        Self::of_texts(b'u', claims.iss.as_bytes(), claims.sub.as_bytes())
    }

    /// Of a text in two parts, as issuer and subject. What is not text has other keys by the last byte.
    #[inline]
    pub fn of_texts(kind: u8, first: &[u8], second: &[u8]) -> Self {
        // Two hashes of 64 bits under keys that are known: equal ones are not found by trying.
        let one = sip13(0x7368_6172_6467_6174, u64::from(kind), first.len() as u64, first, second);
        let two = sip13(0x6c69_6d69_7473_2e31, u64::from(kind), first.len() as u64, first, second);
        Self([one, two | 1 << 63])
    }

    /// The two halves, for where it is written.
    pub const fn halves(self) -> [u64; 2] {
        self.0
    }

    /// The hash by which it has its places here and its home among the shards. Another one in every process.
    #[inline]
    fn secret_hash(self) -> u64 {
        static SECRET: OnceLock<[u64; 2]> = OnceLock::new();
        let [one, other] = *SECRET.get_or_init(|| {
            let state = RandomState::new();
            [state.hash_one(0), state.hash_one(1)]
        });
        let [first, second] = self.0;
        sip13(one, other, first, &second.to_le_bytes(), &[])
    }

    /// The shard on which its requests are counted together.
    #[inline]
    pub fn home(self, shards: usize) -> usize {
        let bits = (self.secret_hash() >> 48) as usize;
        bits.checked_rem(shards).unwrap_or(0)
    }
}

/// SipHash-1-3 over a number and two texts. By name, because the standard library's hash may become another one, and
/// instances of different ages count together.
#[inline]
fn sip13(key0: u64, key1: u64, number: u64, first: &[u8], second: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(key0, key1);
    hasher.write_u64(number);
    hasher.write(first);
    hasher.write(second);
    hasher.finish()
}

/// What one key owes. 32 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cell {
    /// Whose it is.
    pub key: CellKey,
    /// Until when something is owed, as far as this shard knows.
    pub owed_until: u64,
    /// Admitted here, and not known to have been counted at home.
    pub ahead: u16,
    /// Of these, not even told yet. Where the key is at home: counted, and not spread yet.
    pub untold: u16,
    /// Somebody has it listed as one to tell of.
    pub is_listed: bool,
}

impl Cell {
    #[inline]
    const fn owes(&self, now: u64) -> bool {
        // One that is listed stays, so that lists are no longer than the table.
        self.owed_until > now || self.ahead > 0 || self.is_listed
    }
}

/// Places in a set: two lines of the cache.
const WAYS: usize = 4;

/// The cells of one limit. One per limit and shard.
#[derive(Debug)]
pub struct Cells {
    /// Sets of four.
    places: Box<[Cell]>,
    /// Of all who find no place of their own.
    shared_cell: Cell,
    /// A power of two.
    sets: usize,
    /// Keys that owed nothing and made room for others.
    pub evicted: u64,
    /// Requests of keys that found no place of their own.
    pub shared: u64,
}

/// A place in the table; good until the next key is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellIndex(usize);

impl CellIndex {
    /// Beyond the table.
    const SHARED: Self = Self(usize::MAX);
}

impl Cells {
    /// A table for so many keys, rounded up to a power of two.
    pub fn new(keys_max: usize) -> Self {
        let sets = keys_max.div_ceil(WAYS).next_power_of_two().max(2);
        let places = vec![Cell::default(); sets.saturating_mul(WAYS)].into_boxed_slice();
        Self { places, shared_cell: Cell { key: SHARED, ..Cell::default() }, sets, evicted: 0, shared: 0 }
    }

    /// How many keys have a place of their own.
    pub const fn capacity(&self) -> usize {
        self.places.len()
    }

    /// The key's place: its own, one that nobody needs any more, or the shared one.
    #[inline]
    pub fn find(&mut self, key: CellKey, now: u64) -> CellIndex {
        let sets = self.sets_of(key);
        if let Some(place) = self.known(key, sets) {
            return place;
        }
        let [one, other] = sets.map(|set| self.free(set, now));
        let (place, free) = if one.1 > other.1 { one } else { other };
        let Some(cell) = self.places.get_mut(place).filter(|_| free > 0) else {
            self.shared = self.shared.saturating_add(1);
            return CellIndex::SHARED;
        };
        self.evicted = self.evicted.saturating_add(u64::from(cell.key != CellKey::default()));
        *cell = Cell { key, ..Cell::default() };
        CellIndex(place)
    }

    /// The key's place, or a new one where there is room; never the shared one for a key that has none.
    pub fn find_own(&mut self, key: CellKey, now: u64) -> Option<CellIndex> {
        let shared = self.shared;
        let place = self.find(key, now);
        self.shared = shared;
        (self.at(place).key == key).then_some(place)
    }

    /// The key's place, if it has one.
    #[inline]
    pub fn find_known(&self, key: CellKey) -> Option<CellIndex> {
        self.known(key, self.sets_of(key))
    }

    /// The cell at a place.
    #[inline]
    pub fn at(&mut self, place: CellIndex) -> &mut Cell {
        self.places.get_mut(place.0).unwrap_or(&mut self.shared_cell)
    }

    /// Every cell that owes something.
    pub fn owing(&mut self, now: u64) -> impl Iterator<Item = &mut Cell> {
        self.places.iter_mut().chain([&mut self.shared_cell]).filter(move |cell| cell.owes(now))
    }

    /// The first places of the key's two sets.
    #[inline]
    fn sets_of(&self, key: CellKey) -> [usize; 2] {
        let hash = key.secret_hash();
        #[expect(clippy::cast_possible_truncation, reason = "bits are taken out of it")]
        let set = |hash: u64| (hash as usize & self.sets.wrapping_sub(1)).wrapping_mul(WAYS);
        [set(hash), set(hash >> 24)]
    }

    #[inline]
    fn known(&self, key: CellKey, sets: [usize; 2]) -> Option<CellIndex> {
        if key == SHARED {
            return Some(CellIndex::SHARED);
        }
        sets.into_iter().find_map(|first| {
            let way = self.set(first).iter().position(|cell| cell.key == key)?;
            Some(CellIndex(first.wrapping_add(way)))
        })
    }

    /// A free place of a set, and how many there are.
    #[inline]
    fn free(&self, first: usize, now: u64) -> (usize, usize) {
        let free = (first..).zip(self.set(first)).filter(|(_, cell)| !cell.owes(now));
        free.fold((first, 0_usize), |(_, count), (place, _)| (place, count.saturating_add(1)))
    }

    /// The set that begins with this place.
    #[inline]
    fn set(&self, first: usize) -> &[Cell] {
        self.places.get(first..first.wrapping_add(WAYS)).unwrap_or_default()
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    fn address(text: &str) -> CellKey {
        CellKey::of_address(text.parse().expect("an address"))
    }

    fn numbered(number: u32) -> CellKey {
        CellKey::of_address(std::net::Ipv4Addr::from_bits(number).into())
    }

    #[test]
    fn addresses_of_one_household_have_one_key() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("10.0.0.1"), address("::ffff:10.0.0.1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
        // The upper half of this one reads like an IPv4 address.
        assert_ne!(address("10.0.0.1"), address("0:0:a00:1::"));
    }

    #[test]
    fn texts_are_told_apart_wherever_they_are_parted() {
        let key = |first: &str, second: &str| CellKey::of_texts(b'u', first.as_bytes(), second.as_bytes());
        assert_eq!(key("issuer", "42"), key("issuer", "42"));
        let keys = [key("a", "bc"), key("ab", "c"), key("abc", ""), key("", "abc"), key("a", "bc\0"), key("", "")];
        for (index, one) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(one), "{index}");
        }
        assert_ne!(CellKey::of_texts(b'r', b"", b"x"), CellKey::of_texts(b'u', b"", b"x"));
    }

    /// Instances of different ages share a Redis. The numbers are another implementation's, of the bytes in one piece.
    #[test]
    fn keys_are_the_same_for_ever() {
        assert_eq!(
            CellKey::of_texts(b'u', b"shardgate", b"42").halves(),
            [18_370_540_996_907_571_219, 11_889_962_420_793_949_986]
        );
        assert_eq!(address("10.0.0.1").halves(), [0x0a00_0001, 4]);
    }

    #[test]
    fn a_cell_is_half_a_line() {
        assert_eq!(size_of::<Cell>(), 32);
    }

    #[test]
    fn only_keys_that_owe_nothing_make_room() {
        let mut cells = Cells::new(8);
        let mut owing = 0_u32;
        while cells.shared == 0 {
            let place = cells.find(numbered(owing), 0);
            cells.at(place).owed_until = 10;
            owing += 1;
        }
        assert!(owing > 4, "{owing}");
        for key in 0..owing - 1 {
            let place = cells.find_known(numbered(key)).expect("it owes something");
            assert_eq!(cells.at(place).owed_until, 10);
        }
        assert_eq!(cells.evicted, 0);
        // Once they owe nothing they go, those that are ahead stay.
        let kept = cells.find_known(numbered(0)).expect("it is there");
        cells.at(kept).ahead = 1;
        for key in 1000..2000 {
            cells.find(numbered(key), 10);
        }
        assert!(cells.evicted > 0);
        assert!(cells.find_known(numbered(0)).is_some());
    }

    #[test]
    fn a_flood_of_keys_takes_no_more_memory_and_the_known_keep_their_places() {
        let mut cells = Cells::new(4096);
        let capacity = cells.capacity();
        let mut own = 0;
        for key in 0..1_000_000 {
            let place = cells.find(numbered(key), 0);
            own += u32::from(cells.at(place).key == numbered(key));
            cells.at(place).owed_until = 1;
        }
        assert_eq!(cells.capacity(), capacity);
        assert!(own as usize <= capacity);
        assert!(own as usize * 100 >= capacity * 98, "{own} of {capacity} places are used before keys have to share");
        let known = (0..1_000_000).filter(|key| cells.find_known(numbered(*key)).is_some()).count();
        assert_eq!(known, own as usize);
    }

    #[test]
    fn a_table_that_is_not_full_makes_hardly_anybody_share() {
        let mut cells = Cells::new(65_536);
        for key in 0..45_000 {
            let place = cells.find(numbered(key), 0);
            cells.at(place).owed_until = 1;
        }
        assert!(cells.shared < 450, "{} of 45000", cells.shared);
    }

    #[test]
    fn homes_are_spread_evenly() {
        let mut homes = [0; 4];
        for key in 0..4000 {
            homes[numbered(key).home(4)] += 1;
        }
        assert!(homes.iter().all(|count| (800..1200).contains(count)), "{homes:?}");
    }
}

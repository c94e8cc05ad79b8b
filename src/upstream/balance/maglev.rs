//! The tables of consistent hashing: Maglev (Eisenbud et al., NSDI 2016, §3.4). Each backend fills in places in an order of its
//! own, in turns; so all get their share, and whoever comes or goes moves little else.

use std::{cmp::Reverse, collections::BinaryHeap, hash::Hasher as _};

use siphasher::sip::SipHasher13;

use super::Share;

/// Sizes of tables, primes: with a hundred places for each backend shares differ by 1 % at most (§5.3).
const SIZES: [usize; 4] = [2039, 16_381, 65_537, 131_071];

/// Which backend has which key. Moves between threads: made by the control thread, since it takes longer than a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// The places of each tier; none of one whose backends all have no weight.
    tiers: Box<[Box<[u16]>]>,
}

impl Table {
    /// For backends with these names and shares. The same for the same, on every shard and instance, in whatever order they
    /// are told.
    pub fn new<N: AsRef<str>>(backends: &[(N, Share)]) -> Self {
        let tiers = backends.iter().map(|(_, share)| usize::from(share.tier) + 1).max().unwrap_or(0);
        let mut members = vec![Vec::new(); tiers];
        for (at, (name, share)) in (0_u16..).zip(backends) {
            if share.weight > 0 {
                members[usize::from(share.tier)].push((name.as_ref(), share.weight, at));
            }
        }
        Self { tiers: members.into_iter().map(fill).collect() }
    }

    /// The backends of a tier that a key goes to: the first, or the next if that does not take it, and so on.
    pub(super) fn from(&self, tier: usize, key: u64) -> impl Iterator<Item = usize> {
        let places = self.tiers.get(tier).map_or(&[][..], |places| places);
        let start = usize::try_from(key % places.len().max(1) as u64).unwrap_or(0);
        let (before, after) = places.split_at(start);
        after.iter().chain(before).map(|at| usize::from(*at))
    }
}

/// The places of one tier, whose members have these names and weights.
fn fill(mut members: Vec<(&str, u16, u16)>) -> Box<[u16]> {
    if members.is_empty() {
        return Box::default();
    }
    members.sort_unstable();
    let size = SIZES.into_iter().find(|size| *size >= members.len() * 100).unwrap_or(SIZES[3]);
    let mut cursors: Vec<_> = members.iter().map(|(name, ..)| Cursor::new(name, size)).collect();
    // Whose turn is next: one of twice the weight has twice as many. Those of equal weights take turns in order.
    let mut turns: BinaryHeap<_> =
        (0..members.len()).map(|member| Reverse((turn_length(members[member].1), member))).collect();
    let mut places: Vec<Option<u16>> = vec![None; size];
    let mut empty = size;
    while empty > 0
        && let Some(mut turn) = turns.peek_mut()
    {
        let Reverse((due, member)) = &mut *turn;
        let ((_, weight, at), cursor) = (members[*member], &mut cursors[*member]);
        let mut place = cursor.next(size);
        while places[place].is_some() {
            place = cursor.next(size);
        }
        places[place] = Some(at);
        empty -= 1;
        *due += turn_length(weight);
    }
    places.into_iter().flatten().collect()
}

/// How long it is between two turns of one of this weight.
fn turn_length(weight: u16) -> u64 {
    // A table has fewer than 2^17 places, so that no sum of turns is more than 2^58.
    (1 << 41) / u64::from(weight.max(1))
}

/// Where a backend puts its name next.
struct Cursor {
    next: usize,
    step: usize,
}

impl Cursor {
    fn new(name: &str, size: usize) -> Self {
        let hash = |seed: u64| {
            let mut hasher = SipHasher13::new_with_keys(seed, 0);
            hasher.write(name.as_bytes());
            usize::try_from(hasher.finish() % (1 << 31)).unwrap_or(0)
        };
        Self { next: hash(1) % size, step: hash(2) % (size - 1) + 1 }
    }

    fn next(&mut self, size: usize) -> usize {
        let after = (self.next + self.step) % size;
        std::mem::replace(&mut self.next, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|at| format!("10.0.0.{at}:80")).collect()
    }

    fn table(names: &[String]) -> Table {
        let one = Share { weight: 1, tier: 0 };
        Table::new(&names.iter().map(|name| (name, one)).collect::<Vec<_>>())
    }

    fn shares(table: &Table, count: usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        for at in &table.tiers[0] {
            shares[usize::from(*at)] += 1;
        }
        shares
    }

    #[test]
    fn all_get_their_share() {
        for count in [1, 3, 20, 100, 1024] {
            let table = table(&names(count));
            let shares = shares(&table, count);
            let (least, most) = (shares.iter().min(), shares.iter().max());
            assert!(most <= least.map(|least| least + 1).as_ref(), "{count}: {least:?} to {most:?}");
        }
    }

    #[test]
    fn who_goes_moves_little_else() {
        let all = names(20);
        let mut fewer = all.clone();
        fewer.remove(7);
        let (before, after) = (table(&all), table(&fewer));
        let moved = before.tiers[0].iter().zip(&after.tiers[0]).filter(|(before, after)| {
            let name = &all[usize::from(**before)];
            *name != all[7] && *name != fewer[usize::from(**after)]
        });
        let share = moved.count() * 100 / before.tiers[0].len();
        assert!(share <= 5, "{share} % of the keys moved that need not");
    }

    #[test]
    fn the_order_in_which_they_are_told_does_not_matter() {
        let names = names(20);
        let share = |at: usize| Share { weight: [1, 5][at % 2], tier: 0 };
        let told: Vec<_> = names.iter().enumerate().map(|(at, name)| (name, share(at))).collect();
        let turned: Vec<_> = told.iter().rev().copied().collect();
        let (one, other) = (Table::new(&told), Table::new(&turned));
        let same = one.tiers[0].iter().zip(&other.tiers[0]);
        assert!(same.clone().all(|(one, other)| one + other == 19), "{:?}", same.take(20).collect::<Vec<_>>());
    }

    #[test]
    fn shares_are_as_weights_and_each_tier_has_a_table_of_its_own() {
        let share = |weight, tier| Share { weight, tier };
        let of = |shares: &[Share]| {
            let names = names(shares.len());
            Table::new(&names.iter().zip(shares.iter().copied()).collect::<Vec<_>>())
        };
        let counts = |table: &Table, tier: usize, count: usize| {
            let mut counts = vec![0; count];
            table.tiers[tier].iter().for_each(|at| counts[usize::from(*at)] += 1);
            counts
        };
        let weighted = of(&[share(1, 0), share(3, 0), share(0, 0), share(6, 0)]);
        assert_eq!(counts(&weighted, 0, 4), [203, 612, 0, 1224]);
        let tiered = of(&[share(1, 0), share(1, 2), share(1, 0), share(9, 2), share(0, 1)]);
        assert_eq!(counts(&tiered, 0, 5), [1020, 0, 1019, 0, 0]);
        assert_eq!(counts(&tiered, 1, 5), [0; 5]);
        assert_eq!(counts(&tiered, 2, 5), [0, 203, 0, 1836, 0]);
        assert_eq!(tiered.from(1, 7).count() + tiered.from(9, 7).count(), 0);
        let extreme = of(&[share(u16::MAX, 0), share(1, 0)]);
        assert_eq!(counts(&extreme, 0, 2), [2039, 0]);
    }
}

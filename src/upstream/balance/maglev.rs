//! The table of consistent hashing: Maglev (Eisenbud et al., NSDI 2016, §3.4). Each backend fills in places in an order of its
//! own, in turns; so all get their share, and whoever comes or goes moves little else.

use siphasher::sip::SipHasher13;
use std::hash::Hasher as _;

/// Sizes of tables, primes: with a hundred places for each backend shares differ by 1 % at most (§5.3).
const SIZES: [usize; 4] = [2039, 16_381, 65_537, 131_071];

/// Which backend has which key. Moves between threads: made by the control thread, since it takes longer than a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    places: Box<[u16]>,
}

impl Table {
    /// For backends with these names; `None` for none. The same for the same, on every shard and instance.
    pub fn new<N: AsRef<str>>(backends: &[N]) -> Option<Self> {
        if backends.is_empty() {
            return None;
        }
        let size = SIZES.into_iter().find(|size| *size >= backends.len() * 100).unwrap_or(SIZES[3]);
        let mut cursors: Vec<(u16, Cursor)> =
            (0_u16..).zip(backends).map(|(at, name)| (at, Cursor::new(name.as_ref(), size))).collect();
        let mut places: Vec<Option<u16>> = vec![None; size];
        let mut empty = size;
        'filled: loop {
            for (at, cursor) in &mut cursors {
                if empty == 0 {
                    break 'filled;
                }
                let mut place = cursor.next(size);
                while places[place].is_some() {
                    place = cursor.next(size);
                }
                places[place] = Some(*at);
                empty -= 1;
            }
        }
        Some(Self { places: places.into_iter().flatten().collect() })
    }

    /// The backends that a key goes to: the first, or the next if that does not take it, and so on.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = usize::try_from(key % self.places.len() as u64).unwrap_or(0);
        let (before, after) = self.places.split_at(start);
        after.iter().chain(before).map(|at| usize::from(*at))
    }
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
        Table::new(names).expect("there are backends")
    }

    fn shares(table: &Table, count: usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        for at in &table.places {
            shares[usize::from(*at)] += 1;
        }
        shares
    }

    #[test]
    fn all_get_their_share() {
        assert_eq!(Table::new::<&str>(&[]), None);
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
        let moved = before.places.iter().zip(&after.places).filter(|(before, after)| {
            let name = &all[usize::from(**before)];
            *name != all[7] && *name != fewer[usize::from(**after)]
        });
        let share = moved.count() * 100 / before.places.len();
        assert!(share <= 5, "{share} % of the keys moved that need not");
    }
}

//! Values that come and go, each in a slot that is used again, and keys that do not mistake the next value for the last.

use std::{
    mem,
    ops::{Index, IndexMut, Range},
};

/// No index. What links values to each other ends with it.
pub const NONE: u32 = u32::MAX;

/// Where the next free slot would be named: this one has a value.
const TAKEN: u32 = u32::MAX - 1;

/// A value in a slab, for those who may outlive it.
///
/// Once the value has gone, the key finds nothing, whatever has its slot; unless it is kept while that slot changes hands
/// 2³² times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// Where its value is, or was.
    #[inline]
    pub const fn index(self) -> u32 {
        self.index
    }

    /// As one number, for the kernel to hand back.
    #[inline]
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// Undoes [`Key::to_bits`]. Any number makes a key, which then finds a value or none.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    pub const fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// A list of values that keep their places. Inserting, finding and removing take a few instructions each, and nothing is
/// allocated but for more values at a time than ever before.
///
/// Whoever owns a value, and is the one to remove it, knows it by its index, which is half as large as a key: every socket,
/// remembered token and link of a chain holds one. Whoever may outlive it has a [`Key`]. Free slots are found through a
/// list inside the slots, so a slot takes eight bytes and its value; an empty one holds a default, which for most is free,
/// where an `Option` would cost eight bytes more (`Option<Waker>`).
///
/// Why not a crate: `slab` has no generations. `slotmap` has them, in slots as small, but owners hold whole keys there, and
/// a value cannot be given another key ([`Slab::renew`]), which is what makes an alarm's old settings stale.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    /// The slot that was left last.
    free: u32,
    taken: u32,
}

#[derive(Debug)]
struct Slot<T> {
    /// Changes with each value.
    generation: u32,
    /// The slot that was left before this one, `NONE` for the first; `TAKEN` while this one has a value.
    next_free: u32,
    value: T,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Slab<T> {
    /// A slab without values.
    pub const fn new() -> Self {
        Self { slots: Vec::new(), free: NONE, taken: 0 }
    }

    /// How many values there are.
    #[inline]
    pub const fn len(&self) -> usize {
        self.taken as usize
    }

    /// Whether there is none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// Every index that was ever given out: as many as there have been values at a time.
    #[inline]
    pub fn indices(&self) -> Range<u32> {
        0..u32::try_from(self.slots.len()).unwrap_or(TAKEN)
    }

    /// Takes a value in, and tells its owner the index.
    #[inline]
    pub fn insert(&mut self, value: T) -> u32 {
        self.taken += 1;
        let index = self.free;
        if let Some(slot) = self.slots.get_mut(index as usize) {
            self.free = mem::replace(&mut slot.next_free, TAKEN);
            slot.value = value;
            return index;
        }
        let index = u32::try_from(self.slots.len()).ok().filter(|index| *index < TAKEN);
        self.slots.push(Slot { generation: 0, next_free: TAKEN, value });
        index.expect("memory and descriptors run out long before 4 billion values")
    }

    /// Gives a value back and leaves its slot to another; `None` if there is none.
    #[inline]
    pub fn remove(&mut self, index: u32) -> Option<T>
    where
        T: Default,
    {
        let slot = self.slots.get_mut(index as usize).filter(|slot| slot.next_free == TAKEN)?;
        slot.generation = slot.generation.wrapping_add(1);
        slot.next_free = mem::replace(&mut self.free, index);
        self.taken -= 1;
        Some(mem::take(&mut slot.value))
    }

    /// A key to the value at an index.
    #[inline]
    pub fn key(&self, index: u32) -> Key {
        Key { index, generation: self.slots[index as usize].generation }
    }

    /// A new key to the value at an index. Earlier ones find nothing from now on, as if another value were there.
    #[inline]
    pub fn renew(&mut self, index: u32) -> Key {
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        Key { index, generation: slot.generation }
    }

    /// The value that this is the key to, if it is still there.
    #[inline]
    pub fn find(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        (slot.generation == key.generation && slot.next_free == TAKEN).then_some(&slot.value)
    }

    /// As [`Slab::find`].
    #[inline]
    pub fn find_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        (slot.generation == key.generation && slot.next_free == TAKEN).then_some(&mut slot.value)
    }

    /// The value at an index, if one is there.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let slot = self.slots.get_mut(index as usize)?;
        (slot.next_free == TAKEN).then_some(&mut slot.value)
    }

    /// All values, by their indices.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter(|slot| slot.next_free == TAKEN).map(|slot| &mut slot.value)
    }
}

/// For owners: an index that holds no value is a mistake of theirs.
impl<T> Index<u32> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: u32) -> &T {
        let slot = &self.slots[index as usize];
        debug_assert_eq!(slot.next_free, TAKEN, "nobody owns slot {index}");
        &slot.value
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        let slot = &mut self.slots[index as usize];
        debug_assert_eq!(slot.next_free, TAKEN, "nobody owns slot {index}");
        &mut slot.value
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, rc::Rc, task::Waker};

    use proptest::prelude::*;

    use super::*;

    /// One whose next slot has had so many values.
    fn worn(generation: u32) -> Slab<u32> {
        Slab { slots: vec![Slot { generation, next_free: NONE, value: 0 }], free: 0, taken: 0 }
    }

    #[test]
    fn slots_are_used_again_and_old_keys_find_nothing() {
        let mut slab = Slab::new();
        let [one, two, three] = [10, 20, 30].map(|value| slab.insert(value));
        let key = slab.key(two);
        assert_eq!((slab.find(key), slab[one], slab[three], slab.len()), (Some(&20), 10, 30, 3));
        assert_eq!((slab.remove(two), slab.find(key)), (Some(20), None));
        assert_eq!(slab.get_mut(two), None);
        assert_eq!((slab.remove(two), slab.len()), (None, 2), "once");
        assert_eq!((slab.insert(40), slab.find(key), slab.len()), (two, None, 3), "the slot is another's");
        assert_eq!(slab.find(slab.key(two)), Some(&40));
        // What was left last is taken first, then what was left before.
        slab.remove(one);
        slab.remove(three);
        assert_eq!([(); 3].map(|()| slab.insert(50)), [three, one, 3]);
        assert_eq!(slab.values_mut().map(|value| *value).collect::<Vec<_>>(), [50, 40, 50, 50]);
        assert_eq!((slab.indices(), slab.remove(4), slab.remove(NONE)), (0..4, None, None));
    }

    #[test]
    fn a_renewed_value_stays_and_its_earlier_keys_do_not() {
        let mut slab = Slab::new();
        let index = slab.insert(1);
        let before = slab.key(index);
        let after = slab.renew(index);
        assert_eq!((slab.find(before), slab.find(after), slab.key(index)), (None, Some(&1), after));
        slab.remove(index);
        slab.insert(2);
        assert_eq!((slab.find(before), slab.find(after)), (None, None));
    }

    #[test]
    fn generations_go_round_and_neighbours_are_told_apart_there_too() {
        for generation in [0, 1, u32::MAX - 1, u32::MAX] {
            let mut slab = worn(generation);
            let keys: Vec<_> = (0..4)
                .map(|value| {
                    let index = slab.insert(value);
                    let key = slab.key(index);
                    assert_eq!((index, slab.remove(index)), (0, Some(value)));
                    key
                })
                .collect();
            slab.insert(9);
            assert!(keys.iter().all(|key| slab.find(*key).is_none()), "{keys:?}");
            assert_eq!(slab.renew(0).generation, generation.wrapping_add(5));
        }
        // As long as is promised, and no longer: 2³² values later the key would be good again.
        let mut slab = worn(7);
        let index = slab.insert(1);
        let key = slab.key(index);
        slab.slots[0].generation = 6;
        assert_eq!(slab.find(key), None);
        assert_eq!((slab.renew(index), slab.find(key)), (key, Some(&1)));
    }

    #[test]
    fn keys_fit_a_number_and_no_number_harms() {
        let mut slab = Slab::new();
        slab.insert('a');
        slab.remove(0);
        for (bits, index) in [(0, 0), (1 << 32, 0), (u64::MAX, NONE), (5, 5), (u64::from(TAKEN), TAKEN)] {
            let key = Key::from_bits(bits);
            assert_eq!((key.to_bits(), key.index(), slab.find(key)), (bits, index, None));
            assert_eq!(slab.find_mut(key), None);
        }
        slab.insert('b');
        assert_eq!(slab.find(Key::from_bits(1 << 32)), Some(&'b'));
    }

    #[test]
    fn a_slot_takes_eight_bytes_and_its_value() {
        assert_eq!(size_of::<Slot<Option<Rc<u8>>>>(), 16);
        assert_eq!(size_of::<Slot<Option<Waker>>>(), 24);
        assert_eq!(size_of::<Key>(), 8);
    }

    proptest! {
        /// Whatever comes and goes, also where generations go round: a key finds its own value for as long as that lives,
        /// then nothing; and no more slots are used than there were values at a time.
        #[test]
        fn it_does_what_a_map_would_do(
            generation in prop_oneof![Just(0), u32::MAX - 3..=u32::MAX, any::<u32>()],
            steps in prop::collection::vec((0_u8..5, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut slab = worn(generation);
            let mut living: BTreeMap<u32, (u32, Key)> = BTreeMap::new();
            let mut stale: Vec<Key> = Vec::new();
            let mut most = 1;
            for (value, (action, which)) in (0..).zip(steps) {
                let chosen = (!living.is_empty()).then(|| *living.keys().nth(which.index(living.len())).expect("one"));
                match (action, chosen) {
                    (0..2, _) | (_, None) => {
                        let index = slab.insert(value);
                        prop_assert!(living.insert(index, (value, slab.key(index))).is_none());
                    }
                    (2..4, Some(index)) => {
                        let (value, key) = living.remove(&index).expect("chosen");
                        prop_assert_eq!(slab.remove(index), Some(value));
                        stale.push(key);
                    }
                    (_, Some(index)) => {
                        let key = slab.renew(index);
                        stale.push(mem::replace(&mut living.get_mut(&index).expect("chosen").1, key));
                    }
                }
                most = most.max(living.len());
                prop_assert_eq!((slab.len(), slab.is_empty()), (living.len(), living.is_empty()));
                prop_assert_eq!(slab.indices().len(), most);
                for (index, (value, key)) in &living {
                    prop_assert_eq!((slab[*index], slab.find(*key), key.index()), (*value, Some(value), *index));
                }
                for key in &stale {
                    prop_assert_eq!(slab.find(*key), None);
                    prop_assert_eq!(slab.find_mut(*key), None);
                }
                let values: Vec<_> = slab.values_mut().map(|value| *value).collect();
                prop_assert_eq!(values, living.values().map(|(value, _)| *value).collect::<Vec<_>>());
            }
        }
    }
}

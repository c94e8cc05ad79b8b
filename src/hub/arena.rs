//! The house's slab as the hub uses it: found by keys only, so that a stale one never finds another's value, and without a
//! panic.

use std::ops::Range;

use crate::shard::Slab;
pub(super) use crate::shard::slab::Key;

/// Values under keys.
#[derive(Debug)]
pub(super) struct Arena<T>(Slab<Option<T>>);

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self(Slab::new())
    }
}

impl<T> Arena<T> {
    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Keeps a value.
    pub(super) fn insert(&mut self, value: T) -> Key {
        let index = self.0.insert(Some(value));
        self.0.key(index)
    }

    /// Takes a value out.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        self.0.find(key)?;
        self.0.remove(key.index())?
    }

    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<&T> {
        self.0.find(key)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.0.find_mut(key)?.as_mut()
    }

    /// How many places there are, taken or not.
    pub(super) fn places(&self) -> u32 {
        self.0.indices().end
    }

    /// The keys of those at these places.
    pub(super) fn keys_at(&self, places: Range<u32>) -> Vec<Key> {
        let keys = (places.start..places.end.min(self.places())).map(|index| self.0.key(index));
        keys.filter(|&key| self.get(key).is_some()).collect()
    }

    /// All that are there, with their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.0.indices().filter_map(|index| {
            let key = self.0.key(index);
            self.get(key).map(|value| (key, value))
        })
    }
}

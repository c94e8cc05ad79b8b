//! Values under keys that are never mistaken for one another: a key outlives its value, and then finds nothing.

/// Names a value of an [`Arena`]; stale once the value has gone, however often its place was taken since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// Names nothing.
    pub const NONE: Self = Self { index: u32::MAX, generation: 0 };

    /// The key as a number, for those who carry it elsewhere.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The key of [`Key::to_bits`].
    #[expect(clippy::cast_possible_truncation, reason = "each half is one field")]
    pub const fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// A place, and how many values it has had.
#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

/// Values in the order of their places; a place that was left is taken again first.
#[derive(Debug)]
pub(super) struct Arena<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Arena<T> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.places.len().saturating_sub(self.free.len())
    }

    /// Keeps a value.
    pub(super) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop()
            && let Some(place) = self.places.get_mut(index as usize)
        {
            place.value = Some(value);
            return Key { index, generation: place.generation };
        }
        // So many values do not fit into memory.
        let index = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        self.places.push(Place { generation: 1, value: Some(value) });
        Key { index, generation: 1 }
    }

    /// Takes a value out.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize).filter(|place| place.generation == key.generation)?;
        let value = place.value.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<&T> {
        self.places.get(key.index as usize).filter(|place| place.generation == key.generation)?.value.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.places.get_mut(key.index as usize).filter(|place| place.generation == key.generation)?.value.as_mut()
    }

    /// All that are there, with their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0_u32..).zip(&self.places).filter_map(|(index, place)| {
            place.value.as_ref().map(|value| (Key { index, generation: place.generation }, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_outlived_its_value_finds_nothing() {
        let mut arena = Arena::default();
        let one = arena.insert("one");
        assert_eq!((arena.get(one), arena.len()), (Some(&"one"), 1));
        assert_eq!(arena.remove(one), Some("one"));
        let two = arena.insert("two");
        assert_eq!((arena.remove(one), arena.get(one), arena.get(two)), (None, None, Some(&"two")));
        assert_ne!(one, two);
        assert_eq!(Key::from_bits(two.to_bits()), two);
        assert_eq!(arena.get(Key::NONE), None);
        assert_eq!(arena.iter().collect::<Vec<_>>(), [(two, &"two")]);
    }
}

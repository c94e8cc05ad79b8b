//! Numbers for names: a route or an upstream keeps its slot for the life of the process.
//!
//! Counters are indexed by slot, so that a request counts without looking a name up, and a reload that drops a route
//! and brings it back goes on counting where it was.

use std::collections::HashMap;

/// The slot of what has none of its own: requests that no route took, names past the bound.
pub const OTHER: MetricSlot = MetricSlot(0);
/// Names that one registry keeps, [`OTHER`] included. More would make a scrape long, and a reload with ever new names a leak.
pub const SLOTS_MAX: usize = 1024;

/// An index into the counters of routes or upstreams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetricSlot(u16);

impl MetricSlot {
    /// The slot of this index, if there may be one.
    pub fn at(index: usize) -> Option<Self> {
        u16::try_from(index).ok().filter(|_| index < SLOTS_MAX).map(Self)
    }

    /// The slot as an index, below [`SLOTS_MAX`].
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names and their slots; append only. One per process and kind of name, with the control thread.
#[derive(Clone, Debug)]
pub struct MetricSlots {
    names: Vec<String>,
    by_name: HashMap<String, MetricSlot>,
}

impl Default for MetricSlots {
    fn default() -> Self {
        // A route that somebody calls `other` counts there too: two series may not have one name.
        Self { names: vec!["other".to_owned()], by_name: HashMap::from([("other".to_owned(), OTHER)]) }
    }
}

impl MetricSlots {
    /// The slot of a name, a new one if it was never seen; [`OTHER`] when all are taken.
    pub fn claim(&mut self, name: &str) -> MetricSlot {
        if let Some(&slot) = self.by_name.get(name) {
            return slot;
        }
        let Some(slot) = u16::try_from(self.names.len()).ok().filter(|&slot| usize::from(slot) < SLOTS_MAX) else {
            return OTHER;
        };
        self.names.push(name.to_owned());
        self.by_name.insert(name.to_owned(), MetricSlot(slot));
        MetricSlot(slot)
    }

    /// All names in the order of their slots.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_slot() {
        let mut slots = MetricSlots::default();
        let (events, predict) = (slots.claim("events"), slots.claim("predict"));
        assert_eq!((events.index(), predict.index()), (1, 2));
        assert_eq!(slots.claim("events"), events);
        assert_eq!(slots.claim("other"), OTHER);
        assert_eq!(slots.names(), ["other", "events", "predict"]);
    }

    #[test]
    fn names_past_the_bound_share_a_slot() {
        let mut slots = MetricSlots::default();
        for index in 1..SLOTS_MAX {
            assert_eq!(slots.claim(&format!("route-{index}")).index(), index);
        }
        assert_eq!(slots.claim("one more"), OTHER);
        assert_eq!(slots.claim("route-7").index(), 7);
        assert_eq!(slots.names().len(), SLOTS_MAX);
    }
}

//! The alarms of a shard's deadlines: which is due, and which comes next. Pure; `shard::timer` turns the clock.
//!
//! A timer of the runtime's takes half a KiB and never forgets its first waker. With ten thousand idle connections an
//! alarm has to be smaller than that: here it is a slot and a place in a heap, and one runtime timer serves them all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::task::Waker;

use super::clock::Instant;
use super::slab::{Key, Slab};

/// All alarms of one shard.
#[derive(Debug)]
pub(super) struct Alarms {
    /// What goes off when; also what was moved or closed since, until its time comes or the heap is swept.
    heap: BinaryHeap<Reverse<(Instant, Key)>>,
    /// Whom each alarm wakes; nobody when it is not set or has gone off. Setting one renews its key, which makes its older
    /// entries in the heap stale.
    open: Slab<Option<Waker>>,
}

/// An open alarm.
pub(super) type Id = u32;

impl Alarms {
    pub(super) const fn new() -> Self {
        Self { heap: BinaryHeap::new(), open: Slab::new() }
    }

    /// A new alarm, not set.
    pub(super) fn open(&mut self) -> Id {
        self.open.insert(None)
    }

    /// Forgets an alarm; its number may be given out again.
    pub(super) fn close(&mut self, id: Id) {
        self.open.remove(id);
    }

    /// Sets an alarm, in place of any earlier setting, to wake `waker`.
    pub(super) fn set(&mut self, id: Id, at: Instant, waker: &Waker) {
        self.open[id] = Some(waker.clone());
        self.heap.push(Reverse((at, self.open.renew(id))));
        self.sweep();
    }

    /// Whether an alarm still has to go off; if so it will wake `waker`.
    #[inline]
    pub(super) fn is_ticking(&mut self, id: Id, waker: &Waker) -> bool {
        let Some(known) = &mut self.open[id] else { return false };
        // The same one stays.
        known.clone_from(waker);
        true
    }

    /// Lets one due alarm go off. To be called until there is none.
    pub(super) fn go_off(&mut self, now: Instant) -> Option<Waker> {
        while let Some(&Reverse((at, key))) = self.heap.peek()
            && at <= now
        {
            self.heap.pop();
            if let Some(waker) = self.open.find_mut(key).and_then(Option::take) {
                return Some(waker);
            }
        }
        None
    }

    /// Whoever waits for an alarm. None goes off any more that was set.
    pub(super) fn take_all(&mut self) -> Vec<Waker> {
        self.heap.clear();
        self.open.values_mut().filter_map(Option::take).collect()
    }

    /// When the next alarm goes off.
    pub(super) fn next(&mut self) -> Option<Instant> {
        while let Some(&Reverse((at, key))) = self.heap.peek() {
            if self.open.find(key).is_some() {
                return Some(at);
            }
            self.heap.pop();
        }
        None
    }

    /// Connections come and go faster than their deadlines: at a thousand a second, each with a minute to go, sixty
    /// thousand stale entries would pile up. At most every second entry is stale.
    fn sweep(&mut self) {
        if self.heap.len() > 64 + 2 * self.open.len() {
            let open = &self.open;
            self.heap.retain(|Reverse((_, key))| open.find(*key).is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    struct Task;

    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }

    fn waker() -> Waker {
        Waker::from(Arc::new(Task))
    }

    fn at(ns: u64) -> Instant {
        Instant::from_nanos(ns)
    }

    /// How many alarms go off at `now`.
    fn gone_off(alarms: &mut Alarms, now: u64) -> usize {
        std::iter::from_fn(|| alarms.go_off(at(now))).count()
    }

    #[test]
    fn alarms_go_off_in_time_and_once() {
        let mut alarms = Alarms::new();
        let (first, second) = (alarms.open(), alarms.open());
        let task = waker();
        alarms.set(second, at(20), &task);
        alarms.set(first, at(10), &task);
        assert_eq!(alarms.next(), Some(at(10)));
        assert_eq!(gone_off(&mut alarms, 9), 0);
        assert_eq!(gone_off(&mut alarms, 10), 1);
        assert!(!alarms.is_ticking(first, &task) && alarms.is_ticking(second, &task));
        assert_eq!(alarms.next(), Some(at(20)));
        assert_eq!(gone_off(&mut alarms, 30), 1);
        assert_eq!((gone_off(&mut alarms, 30), alarms.next()), (0, None));
    }

    #[test]
    fn setting_again_and_closing_cancel() {
        let mut alarms = Alarms::new();
        let (moved, closed) = (alarms.open(), alarms.open());
        alarms.set(moved, at(10), &waker());
        alarms.set(closed, at(11), &waker());
        alarms.set(moved, at(30), &waker());
        alarms.close(closed);
        assert_eq!(alarms.next(), Some(at(30)));
        let reused = alarms.open();
        assert_eq!(reused, closed);
        assert!(!alarms.is_ticking(reused, &waker()));
        assert_eq!(gone_off(&mut alarms, 29), 0);
        assert_eq!(gone_off(&mut alarms, 30), 1);
    }

    #[test]
    fn the_last_waker_is_woken() {
        let mut alarms = Alarms::new();
        let alarm = alarms.open();
        let (before, after) = (waker(), waker());
        alarms.set(alarm, at(1), &before);
        assert!(alarms.is_ticking(alarm, &after));
        assert!(alarms.go_off(at(1)).expect("it is due").will_wake(&after));
    }

    #[test]
    fn what_is_stale_does_not_pile_up() {
        let mut alarms = Alarms::new();
        let task = waker();
        for round in 0..10_000 {
            let alarm = alarms.open();
            alarms.set(alarm, at(1_000_000 + round), &task);
            alarms.close(alarm);
        }
        assert!(alarms.heap.len() <= 66 && alarms.open.indices().len() == 1, "{} entries", alarms.heap.len());
    }

    #[test]
    fn it_does_what_a_list_would_do() {
        // The same random steps on a list of (alarm, time) that is searched from end to end.
        let mut random = fastrand::Rng::with_seed(7);
        let mut alarms = Alarms::new();
        let mut list: Vec<(Id, Option<u64>)> = Vec::new();
        let task = waker();
        let mut now = 0;
        for _ in 0..20_000 {
            match random.u8(0..10) {
                0 | 1 => list.push((alarms.open(), None)),
                2 if !list.is_empty() => alarms.close(list.swap_remove(random.usize(0..list.len())).0),
                3..8 if !list.is_empty() => {
                    let entry = random.usize(0..list.len());
                    let time = now + random.u64(1..500);
                    alarms.set(list[entry].0, at(time), &task);
                    list[entry].1 = Some(time);
                }
                _ => {
                    now += random.u64(0..100);
                    let due = list.iter_mut().filter(|(_, time)| time.is_some_and(|time| time <= now));
                    let due = due.map(|(_, time)| *time = None).count();
                    assert_eq!(gone_off(&mut alarms, now), due);
                }
            }
            for &(id, time) in &list {
                assert_eq!(alarms.is_ticking(id, &task), time.is_some());
            }
            assert_eq!(alarms.next(), list.iter().filter_map(|(_, time)| *time).min().map(at));
        }
    }
}

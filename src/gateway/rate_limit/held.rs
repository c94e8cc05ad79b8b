//! Requests that wait until their key's home has counted those before them. Pure.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::{collections::BTreeMap, task::Waker};

use super::cells::CellKey;

/// A limit's slot and a key: what a home answers of.
pub(super) type HeldKey = (usize, CellKey);

/// The requests that are held. One per shard; as many as there are requests under way, at the most.
#[derive(Debug, Default)]
pub(super) struct HeldRequests {
    /// By key, then in the order in which they came.
    wakers: BTreeMap<(HeldKey, u64), Waker>,
    number: u64,
}

impl HeldRequests {
    /// One more request waits; the number is its own.
    pub(super) fn add(&mut self, key: HeldKey, waker: &Waker) -> u64 {
        self.number = self.number.wrapping_add(1);
        self.wakers.insert((key, self.number), waker.clone());
        self.number
    }

    /// Whether it still waits; if so it will wake `waker`.
    pub(super) fn waits(&mut self, key: HeldKey, number: u64, waker: &Waker) -> bool {
        let Some(known) = self.wakers.get_mut(&(key, number)) else { return false };
        known.clone_from(waker);
        true
    }

    /// It waits no longer.
    pub(super) fn remove(&mut self, key: HeldKey, number: u64) {
        self.wakers.remove(&(key, number));
    }

    /// All that wait for word of this key, the first first. They wait no longer.
    #[inline]
    pub(super) fn take(&mut self, key: HeldKey) -> Vec<Waker> {
        let mut taken = Vec::new();
        while let Some((&place, _)) = self.wakers.range((key, 0)..=(key, u64::MAX)).next() {
            taken.extend(self.wakers.remove(&place));
        }
        taken
    }

    /// All that wait.
    pub(super) fn take_all(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakers).into_values().collect()
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, clippy::panic, reason = "a test may panic")]
mod tests {
    use std::{cell::Cell, rc::Rc, time::Duration};

    use super::{
        super::{Counted, Limits, Owed, Post, Statement, To, compile},
        *,
    };
    use crate::{
        config,
        shard::{Instant, Local, task, testing, timer},
        telemetry::slots::MetricSlots,
    };

    #[test]
    fn word_of_a_key_wakes_those_who_wait_for_it_and_nobody_else() {
        let mut held = HeldRequests::default();
        let waker = Waker::noop();
        let [one, other] = [b"one", b"two"].map(|name| CellKey::of_texts(b'u', b"", name));
        let waiting = [(7, one), (7, other), (8, one), (7, one)].map(|key| (key, held.add(key, waker)));
        let waits = |held: &mut HeldRequests| waiting.map(|(key, number)| held.waits(key, number, waker));
        assert_eq!(waits(&mut held), [true; 4]);
        assert_eq!(held.take((7, one)).len(), 2);
        assert_eq!(waits(&mut held), [false, true, true, false]);
        assert!(held.take((7, one)).is_empty());
        held.remove(waiting[1].0, waiting[1].1);
        assert_eq!(waits(&mut held), [false, false, true, false]);
        assert_eq!(held.take_all().len(), 1);
        assert!(held.wakers.is_empty());
    }

    #[test]
    fn whoever_is_held_looks_again_when_word_comes_and_not_before() {
        testing::on_both_drivers(|| async {
            // Of two shards this one may be ahead by one.
            let text = "[limits.api]\nkey = \"user\"\nquota = 8\nwindow = \"1d\"\n";
            let config = config::resolve(Some((std::path::Path::new("f"), text)), &BTreeMap::new());
            let plans: Rc<[_]> =
                compile(&config.expect("it is right"), 2, &mut MetricSlots::default()).expect("room").into();
            let sent = Rc::new(Local::new(Vec::new()));
            let tell_hits = {
                let sent = Rc::clone(&sent);
                Box::new(move |to, hits| {
                    sent.with(|sent| sent.push((to, hits)));
                    true
                })
            };
            let tell_counted = Box::new(|_, _| panic!("no key is at home here"));
            let tell_owed = Box::new(|_, _| panic!("no key is at home here"));
            let limits = Limits::new(Post { me: 0, shards: 2, tell_hits, tell_counted, tell_owed });
            limits.adopt(&plans);
            let of = |number: u8| CellKey::of_texts(b'u', b"", &[number]);
            let key = (0..u8::MAX).map(of).find(|key| key.home(2) == 1).expect("half of all are at home there");
            let looks = Rc::new(Cell::new(0));
            let passed = Rc::new(Cell::new(0));
            for number in 0..2 {
                let (limits, plans) = (limits.clone(), Rc::clone(&plans));
                let (looks, passed) = (Rc::clone(&looks), Rc::clone(&passed));
                task::spawn(number, async move {
                    let key_of = |_| {
                        looks.set(looks.get() + 1);
                        Some(key)
                    };
                    let outcome = limits.pass(&plans, &[0], key_of, &mut Statement::default()).await;
                    passed.set(passed.get() + u32::from(outcome.is_ok()));
                });
            }
            testing::until(|| looks.get() == 2).await;
            for _ in 0..3 {
                timer::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!((looks.get(), passed.get()), (2, 1), "the second waits, and does not look");
            let [(To::Shard(1), hits)] = sent.with(std::mem::take)[..] else { panic!("one is told of") };
            let owed = |key| Owed { limit: hits.limit, key, until: Instant::START };
            let word = |key, count| Counted { owed: owed(key), count, answers: 1 };
            let other = (0..u8::MAX).map(of).find(|other| *other != key).expect("another key");
            limits.hear(To::Shard(1), word(other, 1));
            task::yield_now().await;
            assert_eq!((looks.get(), passed.get()), (2, 1), "that was another's");
            limits.hear(To::Shard(1), word(key, hits.count));
            task::yield_now().await;
            assert_eq!((looks.get(), passed.get()), (3, 2), "in the next turn at the latest");
        });
    }
}

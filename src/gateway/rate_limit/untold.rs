//! What homes are still to be told, by home. Pure.
//!
//! A home that takes no letters, or is late with its answers, is told no more for the time being: what its keys are
//! ahead by stands in their cells, and each cell is listed here once. So however long a home stands still, a shard keeps
//! no more for it than there are cells, and no more answers than a few wait for a shard.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::collections::VecDeque;

use super::{To, cells::CellKey};
use crate::telemetry::slots::MetricSlot;

/// Hits of which a home has not answered yet: as many answers as the ring to a shard holds, so that the home, too, never
/// keeps any aside.
pub(super) const UNANSWERED_MAX: u16 = 1024;

/// Keys listed below which a list that is empty again keeps its memory.
const KEPT_MAX: usize = 1024;

/// One per shard.
#[derive(Debug)]
pub(super) struct Untold {
    /// The shards, and Redis at last.
    homes: Box<[OfHome]>,
}

#[derive(Debug, Default)]
struct OfHome {
    listed: VecDeque<(MetricSlot, CellKey)>,
    unanswered: u16,
}

impl Untold {
    /// Nothing is to be told to any of so many shards, nor to Redis.
    pub(super) fn new(shards: usize) -> Self {
        Self { homes: (0..=shards).map(|_| OfHome::default()).collect() }
    }

    /// All homes.
    pub(super) fn homes(&self) -> impl Iterator<Item = To> + use<> {
        let shards = self.homes.len().saturating_sub(1);
        (0..shards).map(To::Shard).chain([To::Redis])
    }

    /// Something is to be told of this key. It is not listed yet.
    pub(super) fn list(&mut self, home: To, slot: MetricSlot, key: CellKey) {
        if let Some(of_home) = self.at(home) {
            of_home.listed.push_back((slot, key));
        }
    }

    /// The next key of whom something is to be told; it is not listed any more.
    pub(super) fn next(&mut self, home: To) -> Option<(MetricSlot, CellKey)> {
        let listed = &mut self.at(home)?.listed;
        let next = listed.pop_front();
        if listed.is_empty() && listed.capacity() > KEPT_MAX {
            *listed = VecDeque::new();
        }
        next
    }

    /// Whether the home may be told once more.
    pub(super) fn may_tell(&mut self, home: To) -> bool {
        self.at(home).is_some_and(|of_home| of_home.unanswered < UNANSWERED_MAX)
    }

    /// It is told.
    pub(super) fn told(&mut self, home: To) {
        if let Some(of_home) = self.at(home) {
            of_home.unanswered = of_home.unanswered.saturating_add(1);
        }
    }

    /// It has answered so many times, or was not told after all.
    pub(super) fn answered(&mut self, home: To, times: u16) {
        if let Some(of_home) = self.at(home) {
            of_home.unanswered = of_home.unanswered.saturating_sub(times);
        }
    }

    /// Whether nothing is to be told.
    pub(super) fn is_empty(&self) -> bool {
        self.homes.iter().all(|of_home| of_home.listed.is_empty())
    }

    fn at(&mut self, home: To) -> Option<&mut OfHome> {
        match home {
            To::Shard(shard) => self.homes.get_mut(shard),
            To::Redis => self.homes.last_mut(),
        }
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]
mod tests {
    use std::{cell::Cell, collections::BTreeMap, rc::Rc, time::Duration};

    use super::{
        super::{Counted, Hits, Limits, Owed, Post, Statement, compile},
        *,
    };
    use crate::{
        config,
        shard::{Instant, Local, testing, timer},
        telemetry::slots::MetricSlots,
    };

    type Sent = Rc<Local<Vec<Hits>>>;

    /// Shard 0 of two with one limit by caller, what it has told shard 1, and whether there is room for it.
    fn limits(quota: u32) -> (Limits, Vec<super::super::LimitPlan>, Sent, Rc<Cell<bool>>) {
        let text = format!("[limits.api]\nkey = \"user\"\nquota = {quota}\nwindow = \"1d\"\n");
        let config = config::resolve(Some((std::path::Path::new("f"), &text)), &BTreeMap::new());
        let plans = compile(&config.expect("it is right"), 2, &mut MetricSlots::default()).expect("room");
        let (sent, has_room) = (Sent::default(), Rc::new(Cell::new(true)));
        let tell_hits = {
            let (sent, has_room) = (Rc::clone(&sent), Rc::clone(&has_room));
            Box::new(move |to, hits| {
                assert_eq!(to, To::Shard(1));
                if has_room.get() {
                    sent.with(|sent| sent.push(hits));
                }
                has_room.get()
            })
        };
        let tell_counted = Box::new(|_, _| ());
        let limits = Limits::new(Post { me: 0, shards: 2, tell_hits, tell_counted, tell_owed: Box::new(|_, _| ()) });
        limits.adopt(&plans);
        (limits, plans, sent, has_room)
    }

    /// Keys whose home is shard 1.
    fn keys() -> impl Iterator<Item = CellKey> {
        (0..u32::MAX).map(|number| CellKey::of_texts(b'u', b"", &number.to_le_bytes())).filter(|key| key.home(2) == 1)
    }

    fn answer(hits: Hits) -> Counted {
        let owed = Owed { limit: hits.limit, key: hits.key, until: Instant::START };
        Counted { owed, count: hits.count, answers: 1 }
    }

    #[test]
    fn what_does_not_go_is_kept_and_told_together() {
        testing::on_both_drivers(|| async {
            // A lease of 100.
            let (limits, plans, sent, has_room) = limits(800);
            let key = keys().next().expect("half of all are at home there");
            has_room.set(false);
            for _ in 0..70 {
                let outcome = limits.pass(&plans, &[0], |_| Some(key), &mut Statement::default()).await;
                assert!(outcome.is_ok());
            }
            // It was tried again meanwhile.
            for _ in 0..4 {
                timer::sleep(super::super::TELL_AFTER).await;
            }
            assert!(sent.with(|sent| sent.is_empty()));
            has_room.set(true);
            testing::until(|| sent.with(|sent| !sent.is_empty())).await;
            let [Hits { count: 70, .. }] = sent.with(std::mem::take)[..] else { panic!("all of them, once") };
            // Whoever tells ends when all is told.
            testing::until(|| limits.0.state.with(|state| !state.is_telling)).await;
        });
    }

    #[test]
    fn a_home_that_does_not_answer_is_told_so_much_and_no_more() {
        testing::on_both_drivers(|| async {
            // A lease of 1: each request is told of at once.
            let (limits, plans, sent, _) = limits(8);
            let (told_max, more) = (usize::from(UNANSWERED_MAX), 500);
            for key in keys().take(told_max + more) {
                let outcome = limits.pass(&plans, &[0], |_| Some(key), &mut Statement::default()).await;
                assert!(outcome.is_ok());
            }
            for _ in 0..4 {
                timer::sleep(Duration::from_millis(5)).await;
            }
            let told = sent.with(std::mem::take);
            assert_eq!(told.len(), told_max);
            for hits in &told[..10] {
                limits.hear(To::Shard(1), answer(*hits));
            }
            testing::until(|| sent.with(|sent| sent.len() == 10)).await;
            for hits in &told[10..] {
                limits.hear(To::Shard(1), answer(*hits));
            }
            testing::until(|| sent.with(|sent| sent.len() == more)).await;
        });
    }
}

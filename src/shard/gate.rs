//! A gate for work that is long for a turn: so many tasks pass it in one, as long as what they do takes no more than its
//! share, and the others wait in the order in which they came. Those who are next for one turn pass it in any order.

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Poll, Waker},
    time::Duration,
};

use super::{Instant, Local, Turn, clock, task};

/// When the work of a turn has taken this long, nobody else passes in it. Everybody else waits meanwhile; it is about what
/// all other tasks of a turn take.
const TIME_PER_TURN: Duration = Duration::from_millis(1);

/// One per shard and kind of work.
#[derive(Debug)]
pub struct Gate {
    /// Who passes in one turn.
    per_turn: usize,
    state: Local<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The turn in which somebody passed last, how many did, and how long their work took.
    turn: Option<Turn>,
    passed: usize,
    spent: Duration,
    next: u64,
    /// In the order of their numbers.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    /// `None` for those at the front, who look in every turn.
    waker: Option<Waker>,
}

/// So many wait that there is no place for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowded;

/// Whoever has passed: held while the work is done, and not over an await, for what others do meanwhile is no part of it.
#[derive(Debug)]
#[must_use = "the work takes until it is dropped"]
pub struct Passed<'g> {
    gate: &'g Gate,
    began: Instant,
}

impl Gate {
    /// A gate for at most so many in each turn, and for one whatever that takes.
    pub fn new(per_turn: usize) -> Self {
        Self { per_turn, state: Local::new(State::default()) }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.state.with(|state| state.waiting.len())
    }

    /// Waits for its turn behind all who came before, unless so many wait already. Dropping the future gives the place up.
    pub async fn pass(&self, waiting_max: usize) -> Result<Passed<'_>, Crowded> {
        let entered = self.state.with(|state| {
            if state.waiting.is_empty() && state.admit(self.per_turn) {
                return Ok(None);
            }
            if state.waiting.len() >= waiting_max {
                return Err(Crowded);
            }
            let number = state.next;
            state.next += 1;
            state.waiting.push_back(Waiting { number, waker: None });
            Ok(Some(number))
        });
        let Some(number) = entered? else { return Ok(self.passed()) };
        let _place = Place { gate: self, number };
        loop {
            poll_fn(|cx| self.state.with(|state| state.poll_front(number, self.per_turn, cx.waker()))).await;
            if self.state.with(|state| state.admit(self.per_turn)) {
                return Ok(self.passed());
            }
            task::yield_now().await;
        }
    }

    fn passed(&self) -> Passed<'_> {
        Passed { gate: self, began: clock::now() }
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        let took = clock::now() - self.began;
        self.gate.state.with(|state| state.spent += took);
    }
}

impl State {
    /// Lets one more pass in this turn, if it may.
    fn admit(&mut self, per_turn: usize) -> bool {
        if self.turn.is_none_or(Turn::is_over) {
            (self.turn, self.passed, self.spent) = (Some(Turn::current()), 0, Duration::ZERO);
        }
        let passes = self.passed == 0 || (self.passed < per_turn && self.spent < TIME_PER_TURN);
        self.passed += usize::from(passes);
        passes
    }

    fn place(&self, number: u64) -> Option<usize> {
        self.waiting.binary_search_by_key(&number, |waiting| waiting.number).ok()
    }

    /// Ready for those who may be among the next.
    fn poll_front(&mut self, number: u64, per_turn: usize, waker: &Waker) -> Poll<()> {
        match self.place(number) {
            Some(place) if place >= per_turn => {
                self.waiting[place].waker = Some(waker.clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

/// A place among those who wait.
struct Place<'g> {
    gate: &'g Gate,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let woken = self.gate.state.with(|state| {
            if let Some(place) = state.place(self.number) {
                state.waiting.remove(place);
            }
            // Whoever has come to the front by that.
            state.waiting.get_mut(self.gate.per_turn - 1).and_then(|waiting| waiting.waker.take())
        });
        if let Some(waker) = woken {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::shard::{testing, timer};

    /// Twenty tasks come to a gate for three, and each does this behind it: their numbers in the order in which they passed,
    /// by turn.
    async fn turns_of_twenty(work: fn(Passed<'_>)) -> Vec<Vec<usize>> {
        let gate = Rc::new(Gate::new(3));
        let passed = Rc::new(Local::new(Vec::new()));
        for number in 0..20 {
            let (gate, passed) = (Rc::clone(&gate), Rc::clone(&passed));
            task::spawn("one", async move {
                work(gate.pass(100).await.expect("there is room"));
                passed.with(|passed| passed.push((number, Turn::current())));
            });
        }
        testing::until(|| passed.with(|passed| passed.len()) == 20).await;
        assert_eq!(gate.waiting(), 0);
        let passed = passed.with(std::mem::take);
        let turns = passed.chunk_by(|one, two| one.1 == two.1);
        turns.map(|turn| turn.iter().map(|(number, _)| *number).collect()).collect()
    }

    /// Works for that long or longer.
    fn work_for(duration: Duration) {
        let until = clock::now() + duration;
        while clock::now() < until {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn so_many_pass_in_a_turn_in_the_order_in_which_they_came() {
        testing::on_both_drivers(|| async {
            let turns = turns_of_twenty(|passed| drop(passed)).await;
            assert!(turns.iter().all(|turn| turn.len() <= 3), "{turns:?}");
            for (place, number) in turns.iter().flatten().enumerate() {
                assert!(place.abs_diff(*number) < 3, "only those at the front overtake one another: {turns:?}");
            }
        });
    }

    #[test]
    fn work_that_is_longer_than_its_share_of_a_turn_is_alone_in_it() {
        testing::on_both_drivers(|| async {
            let long = |passed: Passed<'_>| {
                work_for(TIME_PER_TURN);
                drop(passed);
            };
            let turns = turns_of_twenty(long).await;
            assert_eq!(turns.len(), 20, "{turns:?}");
            let half = |passed: Passed<'_>| {
                work_for(TIME_PER_TURN / 2);
                drop(passed);
            };
            let turns = turns_of_twenty(half).await;
            assert!(turns.iter().all(|turn| turn.len() <= 2), "{turns:?}");
        });
    }

    #[test]
    fn past_the_bound_nobody_waits_and_who_leaves_makes_room() {
        testing::on_both_drivers(|| async {
            let gate = Rc::new(Gate::new(1));
            let full = Rc::clone(&gate);
            // All of it in one turn.
            let told = poll_fn(move |cx| {
                let mut first = Box::pin(full.pass(2));
                assert!(first.as_mut().poll(cx).is_ready());
                let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(full.pass(2))).collect();
                for one in &mut waiting {
                    assert!(one.as_mut().poll(cx).is_pending());
                }
                assert_eq!(Box::pin(full.pass(2)).as_mut().poll(cx).map(Result::err), Poll::Ready(Some(Crowded)));
                drop(waiting.remove(0));
                assert_eq!(full.waiting(), 1);
                assert!(Box::pin(full.pass(2)).as_mut().poll(cx).is_pending());
                Poll::Ready(full.waiting())
            });
            assert_eq!(told.await, 1, "those futures are gone");
            let soon = clock::now() + Duration::from_secs(30);
            assert!(timer::within(soon, gate.pass(2)).await.is_some_and(|passed| passed.is_ok()));
        });
    }
}

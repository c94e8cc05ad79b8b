//! A gate for work that is long for a turn: so many tasks pass it in one, and the others wait in the order in which they
//! came. Those who are next for one turn pass it in any order.

use std::{collections::VecDeque, future::poll_fn, task::Poll, task::Waker};

use super::{Local, Turn, task};

/// One per shard and kind of work.
#[derive(Debug)]
pub struct Gate {
    /// Who passes in one turn.
    per_turn: usize,
    state: Local<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The turn in which somebody passed last, and how many did.
    turn: Option<Turn>,
    passed: usize,
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

impl Gate {
    /// A gate for so many in each turn.
    pub fn new(per_turn: usize) -> Self {
        Self { per_turn, state: Local::new(State::default()) }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.state.with(|state| state.waiting.len())
    }

    /// Waits for its turn behind all who came before, unless so many wait already. Dropping the future gives the place up.
    pub async fn pass(&self, waiting_max: usize) -> Result<(), Crowded> {
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
        let Some(number) = entered? else { return Ok(()) };
        let _place = Place { gate: self, number };
        loop {
            poll_fn(|cx| self.state.with(|state| state.poll_front(number, self.per_turn, cx.waker()))).await;
            if self.state.with(|state| state.admit(self.per_turn)) {
                return Ok(());
            }
            task::yield_now().await;
        }
    }
}

impl State {
    /// Lets one more pass in this turn, if it may.
    fn admit(&mut self, per_turn: usize) -> bool {
        if self.turn.is_none_or(Turn::is_over) {
            (self.turn, self.passed) = (Some(Turn::current()), 0);
        }
        let passes = self.passed < per_turn;
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
    use std::{rc::Rc, time::Duration};

    use super::*;
    use crate::shard::{clock, testing, timer};

    #[test]
    fn so_many_pass_in_a_turn_in_the_order_in_which_they_came() {
        testing::on_both_drivers(|| async {
            let gate = Rc::new(Gate::new(3));
            let passed = Rc::new(Local::new(Vec::new()));
            for number in 0..20 {
                let (gate, passed) = (Rc::clone(&gate), Rc::clone(&passed));
                task::spawn("one", async move {
                    gate.pass(100).await.expect("there is room");
                    passed.with(|passed| passed.push((number, Turn::current())));
                });
            }
            testing::until(|| passed.with(|passed| passed.len()) == 20).await;
            let passed = passed.with(std::mem::take);
            for (place, (number, _)) in passed.iter().enumerate() {
                assert!(place.abs_diff(*number) < 3, "only those at the front overtake one another: {passed:?}");
            }
            for turn in passed.chunk_by(|one, two| one.1 == two.1) {
                assert!(turn.len() <= 3, "{passed:?}");
            }
            assert_eq!(gate.waiting(), 0);
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
                assert_eq!(Box::pin(full.pass(2)).as_mut().poll(cx), Poll::Ready(Err(Crowded)));
                drop(waiting.remove(0));
                assert_eq!(full.waiting(), 1);
                assert!(Box::pin(full.pass(2)).as_mut().poll(cx).is_pending());
                Poll::Ready(full.waiting())
            });
            assert_eq!(told.await, 1, "those futures are gone");
            let soon = clock::now() + Duration::from_secs(30);
            assert_eq!(timer::within(soon, gate.pass(2)).await, Some(Ok(())));
        });
    }
}

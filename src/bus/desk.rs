//! Questions to another thread: a task asks and waits, its shard goes on, and the answer finds the task that asked.
//!
//! What a question and an answer are, and which letters carry them, is decided above. A question whose asker has gone is
//! withdrawn, so that the other thread may leave it.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::{
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use crate::shard::{
    Local,
    slab::{Key, Slab},
};

/// Names a question while it waits. Goes with the letter and comes back with the answer; a late one finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(Key);

/// What a desk hands to the one who sends letters.
#[derive(Debug)]
pub enum DeskLetter<Q> {
    /// Answer this.
    Ask(Ticket, Q),
    /// Somebody still waited for this when the desk was asked.
    Awaited(Ticket),
    /// Nobody waits for this any more.
    Withdraw(Ticket),
}

/// There are as many open questions as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("as many questions wait for an answer as may")]
pub struct Busy;

/// One per shard and kind of question.
pub struct Desk<Q, A> {
    waiting: Local<Slab<QuestionState<A>>>,
    open_max: usize,
    post: Box<dyn Fn(DeskLetter<Q>)>,
}

/// What has become of a question.
#[derive(Default)]
enum QuestionState<A> {
    /// Its answer was taken, or nobody waits for one.
    #[default]
    Done,
    Asked {
        waker: Option<Waker>,
        /// Whoever is to answer wants to know whether somebody still waits.
        is_doubted: bool,
    },
    Answered(A),
}

impl<Q, A> fmt::Debug for Desk<Q, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Desk").field("open", &self.open()).finish_non_exhaustive()
    }
}

impl<Q, A> Desk<Q, A> {
    /// A desk with at most this many open questions; `post` sends what it is given, and never waits.
    pub fn new(open_max: usize, post: impl Fn(DeskLetter<Q>) + 'static) -> Rc<Self> {
        Rc::new(Self { waiting: Local::new(Slab::new()), open_max, post: Box::new(post) })
    }

    /// Asks. The question is on its way at once; dropping what comes back withdraws it.
    pub fn ask(self: &Rc<Self>, question: Q) -> Result<PendingAnswer<Q, A>, Busy> {
        let ticket = self.waiting.with(|waiting| {
            if waiting.len() >= self.open_max {
                return Err(Busy);
            }
            let index = waiting.insert(QuestionState::Asked { waker: None, is_doubted: false });
            Ok(Ticket(waiting.key(index)))
        })?;
        (self.post)(DeskLetter::Ask(ticket, question));
        Ok(PendingAnswer { desk: Rc::clone(self), ticket, is_done: false })
    }

    /// An answer has come. One that nobody waits for any more is dropped.
    pub fn told(&self, ticket: Ticket, answer: A) {
        let waker = self.waiting.with(|waiting| {
            match std::mem::replace(waiting.find_mut(ticket.0)?, QuestionState::Answered(answer)) {
                QuestionState::Asked { waker, .. } => waker,
                QuestionState::Done | QuestionState::Answered(_) => None,
            }
        });
        // Outside the closure: waking runs code of the runtime's.
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whoever is to answer wants to know whether somebody still waits. The asker is woken, and confirms or drops its
    /// question; if it has left, a withdrawal is on its way already.
    pub fn doubt(&self, ticket: Ticket) {
        let waker = self.waiting.with(|waiting| match waiting.find_mut(ticket.0)? {
            QuestionState::Asked { waker, is_doubted } => {
                *is_doubted = true;
                waker.take()
            }
            QuestionState::Done | QuestionState::Answered(_) => None,
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Questions that have no answer yet, or one that was not taken.
    pub fn open(&self) -> usize {
        self.waiting.with(|waiting| waiting.len())
    }
}

/// A question under way. Dropping it withdraws the question.
#[must_use]
pub struct PendingAnswer<Q, A> {
    desk: Rc<Desk<Q, A>>,
    ticket: Ticket,
    is_done: bool,
}

impl<Q, A> fmt::Debug for PendingAnswer<Q, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PendingAnswer").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl<Q, A> PendingAnswer<Q, A> {
    /// Whether the one who is to answer wants to know if somebody still waits. To be looked at after each poll.
    pub fn is_doubted(&self) -> bool {
        let is_doubted = |state: &QuestionState<A>| matches!(state, QuestionState::Asked { is_doubted: true, .. });
        self.desk.waiting.with(|waiting| waiting.find(self.ticket.0).is_some_and(is_doubted))
    }

    /// Somebody still waits.
    pub fn confirm(&self) {
        self.desk.waiting.with(|waiting| {
            if let Some(QuestionState::Asked { is_doubted, .. }) = waiting.find_mut(self.ticket.0) {
                *is_doubted = false;
            }
        });
        (self.desk.post)(DeskLetter::Awaited(self.ticket));
    }
}

impl<Q, A> Future for PendingAnswer<Q, A> {
    type Output = A;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<A> {
        let key = self.ticket.0;
        let answer = self.desk.waiting.with(|waiting| {
            // It is here until its answer is taken; whoever polls again after that waits for nothing.
            if let QuestionState::Asked { waker, .. } = waiting.find_mut(key)? {
                *waker = Some(cx.waker().clone());
                return None;
            }
            match waiting.remove(key.index()) {
                Some(QuestionState::Answered(answer)) => Some(answer),
                _ => None,
            }
        });
        match answer {
            Some(answer) => {
                self.is_done = true;
                Poll::Ready(answer)
            }
            None => Poll::Pending,
        }
    }
}

impl<Q, A> Drop for PendingAnswer<Q, A> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let state = self.desk.waiting.with(|waiting| waiting.remove(self.ticket.0.index()));
        if let Some(QuestionState::Asked { .. }) = state {
            (self.desk.post)(DeskLetter::Withdraw(self.ticket));
        }
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, clippy::panic, reason = "a test may panic")]
mod tests {
    use std::{pin::pin, rc::Rc};

    use super::*;

    type Posted = Rc<Local<Vec<DeskLetter<&'static str>>>>;

    fn desk(open_max: usize) -> (Rc<Desk<&'static str, u32>>, Posted) {
        let posted: Posted = Rc::new(Local::new(Vec::new()));
        let post = Rc::clone(&posted);
        (Desk::new(open_max, move |letter| post.with(|posted| posted.push(letter))), posted)
    }

    fn next(posted: &Posted) -> DeskLetter<&'static str> {
        posted.with(|posted| posted.remove(0))
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn answers_find_their_questions_in_any_order() {
        let (desk, posted) = desk(8);
        let [mut one, mut two] = ["one", "two"].map(|question| Box::pin(desk.ask(question).expect("there is room")));
        let (DeskLetter::Ask(first, "one"), DeskLetter::Ask(second, "two")) = (next(&posted), next(&posted)) else {
            panic!("both are posted as they were asked")
        };
        assert!(poll(one.as_mut()).is_pending());
        desk.told(second, 2);
        assert!(poll(one.as_mut()).is_pending());
        assert_eq!(poll(two.as_mut()), Poll::Ready(2));
        desk.told(first, 1);
        assert_eq!(poll(one.as_mut()), Poll::Ready(1));
        drop((one, two));
        assert_eq!(desk.open(), 0);
        assert!(posted.with(|posted| posted.is_empty()), "what is answered is not withdrawn");
    }

    #[test]
    fn whoever_leaves_withdraws_and_a_late_answer_finds_nobody() {
        let (desk, posted) = desk(1);
        let asked = desk.ask("one").expect("there is room");
        let DeskLetter::Ask(ticket, _) = next(&posted) else { panic!("it is posted") };
        assert_eq!(desk.ask("two").expect_err("there is room for one"), Busy);
        drop(asked);
        assert!(matches!(next(&posted), DeskLetter::Withdraw(withdrawn) if withdrawn == ticket));
        let mut next_asked = pin!(desk.ask("three").expect("the place is free again"));
        desk.told(ticket, 1);
        assert!(poll(next_asked.as_mut()).is_pending(), "the answer to another question");
        let DeskLetter::Ask(ticket, "three") = next(&posted) else { panic!("it is posted") };
        desk.told(ticket, 3);
        assert_eq!(poll(next_asked.as_mut()), Poll::Ready(3));
    }

    #[test]
    fn whoever_is_doubted_confirms_or_has_left() {
        let (desk, posted) = desk(2);
        let mut asked = Box::pin(desk.ask("one").expect("there is room"));
        let DeskLetter::Ask(ticket, _) = next(&posted) else { panic!("it is posted") };
        assert!(poll(asked.as_mut()).is_pending() && !asked.is_doubted());
        desk.doubt(ticket);
        assert!(poll(asked.as_mut()).is_pending() && asked.is_doubted());
        asked.confirm();
        assert!(!asked.is_doubted());
        assert!(matches!(next(&posted), DeskLetter::Awaited(confirmed) if confirmed == ticket));
        desk.doubt(ticket);
        drop(asked);
        assert!(matches!(next(&posted), DeskLetter::Withdraw(withdrawn) if withdrawn == ticket));
        desk.doubt(ticket);
        let mut another = Box::pin(desk.ask("two").expect("there is room"));
        assert!(poll(another.as_mut()).is_pending() && !another.is_doubted(), "it was about another question");
    }

    #[test]
    fn an_answer_that_was_not_taken_is_dropped_with_its_question() {
        let (desk, posted) = desk(1);
        let asked = desk.ask("one").expect("there is room");
        let DeskLetter::Ask(ticket, _) = next(&posted) else { panic!("it is posted") };
        desk.told(ticket, 1);
        desk.told(ticket, 2);
        drop(asked);
        assert_eq!(desk.open(), 0);
        assert!(posted.with(|posted| posted.is_empty()));
    }
}

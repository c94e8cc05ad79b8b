//! Questions to the hub that requests wait for.

use std::{
    collections::HashMap,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use super::Sockets;
use crate::{
    hub::{Answer, Hub},
    shard::{Instant, Local},
};

/// The questions under way, by their numbers. The hub bounds them.
#[derive(Default)]
pub(super) struct Questions(Local<Open>);

#[derive(Default)]
struct Open {
    next: u64,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Default)]
struct Waiting {
    waker: Option<Waker>,
    answer: Option<Answer>,
}

/// A question's number, until whoever asked has gone.
struct Number<'q>(&'q Questions, u64);

impl Drop for Number<'_> {
    fn drop(&mut self) {
        self.0.0.with(|open| open.waiting.remove(&self.1));
    }
}

impl Questions {
    fn open(&self) -> Number<'_> {
        let number = self.0.with(|open| {
            open.next = open.next.wrapping_add(1);
            open.waiting.insert(open.next, Waiting::default());
            open.next
        });
        Number(self, number)
    }

    pub(super) fn told(&self, number: u64, answer: Answer) {
        let waker = self.0.with(|open| {
            let waiting = open.waiting.get_mut(&number)?;
            waiting.answer = Some(answer);
            waiting.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Sockets {
    /// Asks the hub, and waits for its answer, which comes within a bound.
    pub(super) async fn ask(self: &Rc<Self>, question: impl FnOnce(&mut Hub<super::Handle>, Instant, u64)) -> Answer {
        let number = self.questions.open();
        self.step(|hub, now| question(hub, now, number.1));
        poll_fn(|cx| {
            self.questions.0.with(|open| {
                let Some(waiting) = open.waiting.get_mut(&number.1) else { return Poll::Pending };
                if let Some(answer) = waiting.answer.take() {
                    return Poll::Ready(answer);
                }
                waiting.waker = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await
    }
}

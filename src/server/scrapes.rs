//! Clients of one shard who ask for the metrics. Pure.
//!
//! The control thread is asked for all who wait, one letter at a time: those who come while it is out wait for the next,
//! which tells what was counted when they came. So however often clients ask and leave, no more than one is under way.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use crate::bus::desk::Ticket;

/// One per shard.
#[derive(Debug, Default)]
pub(super) struct Scrapes {
    /// Whom the letter under way is for; it is out even when all of them have left.
    asked: Option<Vec<Ticket>>,
    /// Who came since.
    waiting: Vec<Ticket>,
}

impl Scrapes {
    /// A client asks. Whether the control thread is to be asked now.
    #[must_use]
    pub(super) fn handle_ask(&mut self, ticket: Ticket) -> bool {
        self.waiting.push(ticket);
        self.begin()
    }

    /// A client has left.
    pub(super) fn handle_withdrawn(&mut self, ticket: Ticket) {
        self.waiting.retain(|waiting| *waiting != ticket);
        if let Some(asked) = &mut self.asked {
            asked.retain(|waiting| *waiting != ticket);
        }
    }

    /// The control thread has told: who is answered by it, and whether it is to be asked again.
    #[must_use]
    pub(super) fn handle_told(&mut self) -> (Vec<Ticket>, bool) {
        let answered = self.asked.take().unwrap_or_default();
        (answered, self.begin())
    }

    fn begin(&mut self) -> bool {
        let begins = self.asked.is_none() && !self.waiting.is_empty();
        if begins {
            self.asked = Some(std::mem::take(&mut self.waiting));
        }
        begins
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may panic")]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::{
        bus::desk::{Desk, DeskLetter},
        shard::Local,
    };

    #[test]
    fn one_letter_is_under_way_however_many_come_and_go() {
        let letters = Rc::new(Local::new(Vec::new()));
        let post = Rc::clone(&letters);
        let desk = Desk::<(), ()>::new(8, move |letter| post.with(|letters| letters.push(letter)));
        let (mut scrapes, mut sent) = (Scrapes::default(), 0);
        let mut deliver = |scrapes: &mut Scrapes| {
            for letter in letters.with(std::mem::take) {
                match letter {
                    DeskLetter::Ask(ticket, ()) => sent += u32::from(scrapes.handle_ask(ticket)),
                    DeskLetter::Withdraw(ticket) => scrapes.handle_withdrawn(ticket),
                    DeskLetter::Awaited(_) => {}
                }
            }
            sent
        };
        let first = desk.ask(()).expect("there is room");
        assert_eq!(deliver(&mut scrapes), 1);
        for _ in 0..1000 {
            drop(desk.ask(()).expect("there is room"));
        }
        let later = [(); 2].map(|()| desk.ask(()).expect("there is room"));
        assert_eq!(deliver(&mut scrapes), 1, "the first is out");
        let (answered, again) = scrapes.handle_told();
        assert_eq!((answered.len(), again), (1, true), "those who left wait for nothing");
        drop(first);
        let (answered, again) = scrapes.handle_told();
        assert_eq!((answered.len(), again), (2, false));
        drop(later);
        assert_eq!(deliver(&mut scrapes), 1, "nobody waits");
        drop(desk.ask(()).expect("there is room"));
        assert_eq!(deliver(&mut scrapes), 2, "it is out, though nobody waits for it");
        assert_eq!(scrapes.handle_told(), (vec![], false));
    }
}

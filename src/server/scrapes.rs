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

use std::sync::Arc;

use crate::{bus::desk::Ticket, telemetry::format::Format};

/// The formats that somebody waits for, by their places.
pub(super) type Wanted = [bool; Format::ALL.len()];

/// The metrics in the formats that were wanted: megabytes, and so never copied.
pub(super) type Texts = [Option<Arc<String>>; Format::ALL.len()];

/// Who asked, and for which format.
type Asker = (Ticket, Format);

/// One per shard.
#[derive(Debug, Default)]
pub(super) struct Scrapes {
    /// Whom the letter under way is for; it is out even when all of them have left.
    asked: Option<Vec<Asker>>,
    /// Who came since.
    waiting: Vec<Asker>,
}

impl Scrapes {
    /// A client asks for the metrics. Returns what to ask the control thread for, unless a letter to it is out already.
    #[must_use]
    pub(super) fn handle_ask(&mut self, ticket: Ticket, format: Format) -> Option<Wanted> {
        self.waiting.push((ticket, format));
        self.begin()
    }

    /// A client has left.
    pub(super) fn handle_withdrawn(&mut self, ticket: Ticket) {
        self.waiting.retain(|(waiting, _)| *waiting != ticket);
        if let Some(asked) = &mut self.asked {
            asked.retain(|(waiting, _)| *waiting != ticket);
        }
    }

    /// The control thread has told. Returns who is answered by it, and what to ask it for again where others have come since.
    #[must_use]
    pub(super) fn handle_told(&mut self) -> (Vec<Asker>, Option<Wanted>) {
        let answered = self.asked.take().unwrap_or_default();
        (answered, self.begin())
    }

    fn begin(&mut self) -> Option<Wanted> {
        if self.asked.is_some() || self.waiting.is_empty() {
            return None;
        }
        let asked = self.asked.insert(std::mem::take(&mut self.waiting));
        Some(Format::ALL.map(|wanted| asked.iter().any(|(_, format)| *format == wanted)))
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
        let desk = Desk::<Format, ()>::new(8, move |letter| post.with(|letters| letters.push(letter)));
        let (mut scrapes, mut sent) = (Scrapes::default(), 0);
        let mut deliver = |scrapes: &mut Scrapes| {
            for letter in letters.with(std::mem::take) {
                match letter {
                    DeskLetter::Ask(ticket, format) => sent += u32::from(scrapes.handle_ask(ticket, format).is_some()),
                    DeskLetter::Withdraw(ticket) => scrapes.handle_withdrawn(ticket),
                    DeskLetter::Awaited(_) => {}
                }
            }
            sent
        };
        let first = desk.ask(Format::Text).expect("there is room");
        assert_eq!(deliver(&mut scrapes), 1);
        for _ in 0..1000 {
            drop(desk.ask(Format::Text).expect("there is room"));
        }
        let later = Format::ALL.map(|format| desk.ask(format).expect("there is room"));
        assert_eq!(deliver(&mut scrapes), 1, "the first is out");
        let (answered, again) = scrapes.handle_told();
        let both = Some([true; 2]);
        assert_eq!((answered.len(), again), (1, both), "those who left wait for nothing");
        drop(first);
        let (answered, again) = scrapes.handle_told();
        assert_eq!((answered.len(), again), (2, None));
        assert_eq!(answered.into_iter().map(|(_, format)| format).collect::<Vec<_>>(), Format::ALL);
        drop(later);
        assert_eq!(deliver(&mut scrapes), 1, "nobody waits");
        drop(desk.ask(Format::Text).expect("there is room"));
        assert_eq!(deliver(&mut scrapes), 2, "it is out, though nobody waits for it");
        assert_eq!(scrapes.handle_told(), (vec![], None));
    }
}

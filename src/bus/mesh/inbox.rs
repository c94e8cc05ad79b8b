//! The receiving half: a ring from each sender.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rtrb::Consumer;

use crate::bus::doorbell::Doorbell;

/// Letters taken from one ring before the next ring's turn, so that no sender is heard late because of another.
pub(super) const BATCH: usize = 64;

/// A thread's receiving half.
#[derive(Debug)]
pub struct Inbox<T> {
    /// By sender.
    rings: Vec<Consumer<T>>,
    /// The ring whose turn it is.
    next: usize,
    received: u64,
    pub(in crate::bus) bell: Arc<Doorbell>,
    /// Until somebody waits on it.
    pub(in crate::bus) ear: Option<UnixStream>,
}

impl<T> Inbox<T> {
    pub(super) fn new(rings: Vec<Consumer<T>>, bell: Arc<Doorbell>, ear: UnixStream) -> Self {
        Self { rings, next: 0, received: 0, bell, ear: Some(ear) }
    }

    /// Takes up to `budget` letters, some from each ring in turn, and returns how many.
    ///
    /// Fewer than `budget` means that all rings were empty when they were looked at.
    pub fn drain(&mut self, budget: usize, mut handle: impl FnMut(T)) -> usize {
        let mut taken = 0;
        let mut empty = 0;
        while empty < self.rings.len() && taken < budget {
            let from = self.next;
            self.next = if from + 1 == self.rings.len() { 0 } else { from + 1 };
            let ring = &mut self.rings[from];
            let before = taken;
            let end = budget.min(taken + BATCH);
            while taken < end
                && let Ok(letter) = ring.pop()
            {
                taken += 1;
                handle(letter);
            }
            empty = if taken == before { empty + 1 } else { 0 };
        }
        self.received += taken as u64;
        taken
    }

    /// Whether a letter waits.
    pub fn has_letters(&self) -> bool {
        self.rings.iter().any(|ring| !ring.is_empty())
    }

    /// Letters taken so far.
    pub fn received(&self) -> u64 {
        self.received
    }
}

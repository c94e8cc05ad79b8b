//! The receiving half: two rings from each sender, one for each lane.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rtrb::Consumer;

use crate::bus::doorbell::Doorbell;

/// Letters taken from one ring before the next ring's turn, so that no sender is heard late because of another.
pub(super) const BATCH: usize = 64;

/// A letter that has come, by its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<T, D> {
    /// Never lost.
    Control(T),
    /// Others of its kind may have been dropped before it.
    Droppable(D),
}

/// How many letters may still be taken before a thread does something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Of both lanes.
    all: usize,
    /// Of them, droppable ones: never more than `all`.
    droppable: usize,
}

impl Share {
    /// So many letters, at most half of them droppable; what one lane does not use is the control lane's.
    pub const fn of(letters: usize) -> Self {
        Self { all: letters, droppable: letters / 2 }
    }

    /// One less, for something else that was done.
    pub(in crate::bus) const fn use_one(&mut self) {
        self.take(1, 0);
    }

    const fn take(&mut self, control: usize, droppable: usize) {
        self.all = self.all.saturating_sub(control).saturating_sub(droppable);
        self.droppable = self.droppable.saturating_sub(droppable);
        if self.droppable > self.all {
            self.droppable = self.all;
        }
    }
}

/// A thread's receiving half. Control letters are a `T` each, droppable ones a `D`.
#[derive(Debug)]
pub struct Inbox<T, D> {
    control: Rings<T>,
    droppable: Rings<D>,
    received: u64,
    received_droppable: u64,
    pub(in crate::bus) bell: Arc<Doorbell>,
    /// Until somebody waits on it.
    pub(in crate::bus) socket: Option<UnixStream>,
}

impl<T, D> Inbox<T, D> {
    pub(super) fn new(
        control: Vec<Consumer<T>>,
        droppable: Vec<Consumer<D>>,
        bell: Arc<Doorbell>,
        socket: UnixStream,
    ) -> Self {
        let (control, droppable) = (Rings { all: control, next: 0 }, Rings { all: droppable, next: 0 });
        Self { control, droppable, received: 0, received_droppable: 0, bell, socket: Some(socket) }
    }

    /// Takes up to `budget` letters, at most half of them droppable, and returns how many.
    ///
    /// No letters means that all rings were empty when they were looked at, unless the budget was less than two.
    pub fn drain(&mut self, budget: usize, handle: impl FnMut(Received<T, D>)) -> usize {
        self.drain_within(&mut Share::of(budget), || true, handle)
    }

    /// Takes letters as long as the share allows, and returns how many: control letters first, then droppable ones.
    ///
    /// Of each lane some are taken from each ring in turn. However many control letters come, the other lane has what it
    /// may have of the share; and where `takes` says before a droppable one that it is enough of them, there are no more in
    /// this share.
    pub fn drain_within(
        &mut self,
        share: &mut Share,
        mut takes: impl FnMut() -> bool,
        mut handle: impl FnMut(Received<T, D>),
    ) -> usize {
        let Self { control, droppable, .. } = self;
        let first = control.take(share.all - share.droppable, || true, |letter| handle(Received::Control(letter)));
        let mut is_enough = false;
        let may_take = || {
            is_enough = !takes();
            !is_enough
        };
        let then = droppable.take(share.droppable, may_take, |letter| handle(Received::Droppable(letter)));
        let last = control.take(share.all - first - then, || true, |letter| handle(Received::Control(letter)));
        share.take(first + last, then);
        if is_enough {
            share.droppable = 0;
        }
        self.received += (first + last) as u64;
        self.received_droppable += then as u64;
        first + then + last
    }

    /// Whether the share is used up as far as this inbox can use it: letters may wait that it does not allow.
    pub(in crate::bus) fn is_used_up(&self, share: &Share) -> bool {
        share.all == 0 || (share.droppable == 0 && self.droppable.has_letters())
    }

    /// Whether a letter waits, of either lane.
    pub fn has_letters(&self) -> bool {
        self.control.has_letters() || self.droppable.has_letters()
    }

    /// Control letters taken so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Droppable letters taken so far.
    pub fn received_droppable(&self) -> u64 {
        self.received_droppable
    }
}

/// The rings of one lane.
#[derive(Debug)]
struct Rings<T> {
    /// By sender.
    all: Vec<Consumer<T>>,
    /// The ring whose turn it is.
    next: usize,
}

impl<T> Rings<T> {
    fn take(&mut self, budget: usize, mut takes: impl FnMut() -> bool, mut handle: impl FnMut(T)) -> usize {
        let mut taken = 0;
        let mut empty = 0;
        while empty < self.all.len() && taken < budget {
            let from = self.next;
            self.next = if from + 1 == self.all.len() { 0 } else { from + 1 };
            let ring = &mut self.all[from];
            let before = taken;
            let end = budget.min(taken + BATCH);
            while taken < end {
                if !takes() {
                    return taken;
                }
                let Ok(letter) = ring.pop() else { break };
                taken += 1;
                handle(letter);
            }
            empty = if taken == before { empty + 1 } else { 0 };
        }
        taken
    }

    fn has_letters(&self) -> bool {
        self.all.iter().any(|ring| !ring.is_empty())
    }
}

//! The shard's open client connections, so that a drain can reach those that sleep.

use std::{
    rc::Rc,
    task::{Context, Waker},
};

use crate::shard::Local;

/// One per shard.
#[derive(Clone, Debug)]
pub struct Connections {
    state: Rc<Local<State>>,
}

#[derive(Debug)]
struct State {
    /// A place for each connection; the waker of one that sleeps between two requests.
    places: Vec<Option<Waker>>,
    free: Vec<u32>,
    open: usize,
    /// Answers tell clients to come back elsewhere.
    is_ending: bool,
    /// Connections close as soon as nothing is under way.
    is_closing: bool,
    /// Connections close whatever is under way.
    is_cut: bool,
}

/// A connection's place among the shard's. Dropping it gives it back.
#[derive(Debug)]
pub struct Slot {
    connections: Connections,
    place: u32,
}

impl Default for Connections {
    fn default() -> Self {
        Self::new()
    }
}

impl Connections {
    /// A shard without connections.
    pub fn new() -> Self {
        let state =
            State { places: Vec::new(), free: Vec::new(), open: 0, is_ending: false, is_closing: false, is_cut: false };
        Self { state: Rc::new(Local::new(state)) }
    }

    /// Takes a place for a new connection.
    pub fn enter(&self) -> Slot {
        let place = self.state.with(|state| {
            state.open += 1;
            state.free.pop().unwrap_or_else(|| {
                state.places.push(None);
                u32::try_from(state.places.len() - 1).expect("descriptors are far fewer than 2³²")
            })
        });
        Slot { connections: self.clone(), place }
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.state.with(|state| state.open)
    }

    /// From now on answers carry `Connection: close`.
    pub fn end_after_answers(&self) {
        self.state.with(|state| state.is_ending = true);
    }

    /// From now on connections close as soon as nothing is under way; those that sleep close at once.
    pub fn close_when_idle(&self) {
        self.tell_all(|state| {
            state.is_ending = true;
            state.is_closing = true;
        });
    }

    /// Ends all connections now, in the middle of what they do; what was under way is recorded as aborted.
    pub fn cut(&self) {
        self.tell_all(|state| state.is_cut = true);
    }

    fn tell_all(&self, change: impl FnOnce(&mut State)) {
        let connections: Vec<Waker> = self.state.with(|state| {
            change(state);
            state.places.iter_mut().filter_map(Option::take).collect()
        });
        for waker in connections {
            waker.wake();
        }
    }
}

impl Slot {
    /// Whether the answer under way shall be the last.
    pub fn is_ending(&self) -> bool {
        self.connections.state.with(|state| state.is_ending)
    }

    /// Before a connection sleeps: whether it had better close. A drain wakes it otherwise.
    pub fn is_closing(&self, cx: &Context<'_>) -> bool {
        self.heard(cx, |state| state.is_closing)
    }

    /// Before a connection does anything: whether it is to end here and now. A cut wakes it otherwise.
    pub fn is_cut(&self, cx: &Context<'_>) -> bool {
        self.heard(cx, |state| state.is_cut)
    }

    fn heard(&self, cx: &Context<'_>, what: impl FnOnce(&State) -> bool) -> bool {
        self.connections.state.with(|state| {
            let place = &mut state.places[self.place as usize];
            if !place.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *place = Some(cx.waker().clone());
            }
            what(state)
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The waker goes after the borrow: dropping it may drop a task, and that another slot.
        let waker = self.connections.state.with(|state| {
            state.open -= 1;
            state.free.push(self.place);
            state.places[self.place as usize].take()
        });
        drop(waker);
    }
}

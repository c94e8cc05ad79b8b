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
    /// A place for each connection.
    places: Vec<Place>,
    free: Vec<u32>,
    open: usize,
    /// Answers tell clients to come back elsewhere.
    is_ending: bool,
    /// Connections close as soon as nothing is under way.
    is_closing: bool,
    /// Connections end now, whatever is under way.
    is_cut: bool,
}

#[derive(Debug, Default)]
struct Place {
    /// Of the connection's task.
    waker: Option<Waker>,
    /// This connection ends now.
    is_cut: bool,
    /// Counts the connections that had this place.
    turn: u32,
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
                state.places.push(Place::default());
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
        self.wake_after(|state| {
            state.is_ending = true;
            state.is_closing = true;
        });
    }

    /// Every connection's task runs, and sees what has changed for all of them.
    pub fn wake(&self) {
        self.wake_after(|_| {});
    }

    /// Connections end now; each exchange under way is counted and logged as cut off.
    pub fn cut(&self) {
        self.wake_after(|state| state.is_cut = true);
    }

    fn wake_after(&self, change: impl FnOnce(&mut State)) {
        let wakers: Vec<Waker> = self.state.with(|state| {
            change(state);
            state.places.iter_mut().filter_map(|place| place.waker.take()).collect()
        });
        for waker in wakers {
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
    pub fn is_closing(&self) -> bool {
        self.connections.state.with(|state| state.is_closing)
    }

    /// At each poll of a connection: whether it ends now. It is woken when that, or a drain, begins.
    pub fn is_cut(&self, cx: &Context<'_>) -> bool {
        self.connections.state.with(|state| {
            let place = &mut state.places[self.place as usize];
            if !place.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                place.waker = Some(cx.waker().clone());
            }
            state.is_cut || place.is_cut
        })
    }

    /// A handle that cuts this one connection, for as long as it lasts.
    pub fn cutter(&self) -> Cutter {
        let turn = self.connections.state.with(|state| state.places[self.place as usize].turn);
        Cutter { connections: self.connections.clone(), place: self.place, turn }
    }
}

/// Cuts one connection, whatever is under way on it. It may outlive the connection, and does nothing then.
#[derive(Clone, Debug)]
pub struct Cutter {
    connections: Connections,
    place: u32,
    turn: u32,
}

impl Cutter {
    /// The connection's task runs, and sees what has changed for it.
    pub fn wake(&self) {
        let waker = self.connections.state.with(|state| {
            state.places.get_mut(self.place as usize).filter(|place| place.turn == self.turn)?.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The connection ends now. Its exchange under way is counted and logged as cut off.
    pub fn cut(&self) {
        let waker = self.connections.state.with(|state| {
            let place = state.places.get_mut(self.place as usize).filter(|place| place.turn == self.turn)?;
            place.is_cut = true;
            place.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The waker goes after the borrow: dropping it may drop a task, and that another slot.
        let waker = self.connections.state.with(|state| {
            state.open -= 1;
            state.free.push(self.place);
            let place = &mut state.places[self.place as usize];
            place.turn = place.turn.wrapping_add(1);
            place.is_cut = false;
            place.waker.take()
        });
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cutter_ends_its_own_connection_and_no_later_one_at_its_place() {
        let connections = Connections::new();
        let cx = Context::from_waker(Waker::noop());
        let (one, two) = (connections.enter(), connections.enter());
        let cutter = one.cutter();
        cutter.cut();
        assert!(one.is_cut(&cx) && !two.is_cut(&cx));
        drop(one);
        let next = connections.enter();
        assert!(!next.is_cut(&cx), "the place is a new connection's");
        cutter.cut();
        assert!(!next.is_cut(&cx));
        next.cutter().cut();
        assert!(next.is_cut(&cx) && !two.is_cut(&cx));
    }
}

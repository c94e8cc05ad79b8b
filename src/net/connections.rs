//! The shard's open client connections, and how they are told to end: a drain or a revocation reaches those that sleep.

use std::{
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::shard::{
    Local,
    slab::{Key, Slab},
};

/// Why what is under way on a connection ends before its time. It may say so within a bound, and then goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its caller's session has ended.
    Revoked,
    /// Its caller was kicked: what lasts ends, the token stays good.
    Kicked,
    /// The process drains: what would last for ever ends. Requests are served to their ends meanwhile.
    Draining,
    /// There is no more time.
    Cut,
}

/// One per shard.
#[derive(Clone, Debug)]
pub struct Connections {
    state: Rc<Local<State>>,
}

#[derive(Debug)]
struct State {
    open: Slab<Open>,
    /// Answers tell clients to come back elsewhere.
    is_ending: bool,
    /// Connections close as soon as nothing is under way, and those that last end within this time.
    closes_within: Option<Duration>,
    /// Connections end now, whatever is under way.
    is_cut: bool,
}

/// What is known of one connection.
#[derive(Debug, Default)]
struct Open {
    /// Of the connection's task.
    waker: Option<Waker>,
    /// What is under way on this connection ends now.
    end: Option<End>,
}

/// A connection's place among the shard's. Dropping it gives it back.
#[derive(Debug)]
pub struct Slot {
    connections: Connections,
    index: u32,
}

impl Default for Connections {
    fn default() -> Self {
        Self::new()
    }
}

impl Connections {
    /// A shard without connections.
    pub fn new() -> Self {
        let state = State { open: Slab::new(), is_ending: false, closes_within: None, is_cut: false };
        Self { state: Rc::new(Local::new(state)) }
    }

    /// Takes a place for a new connection.
    pub fn enter(&self) -> Slot {
        let index = self.state.with(|state| state.open.insert(Open::default()));
        Slot { connections: self.clone(), index }
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.state.with(|state| state.open.len())
    }

    /// From now on answers carry `Connection: close`.
    pub fn end_after_answers(&self) {
        self.state.with(|state| state.is_ending = true);
    }

    /// From now on connections close as soon as nothing is under way; those that sleep close at once, and those that
    /// last by themselves end within `window`, each when it likes.
    pub fn close_when_idle(&self, window: Duration) {
        self.wake_after(|state| {
            state.is_ending = true;
            state.closes_within = Some(window);
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
            state.open.values_mut().filter_map(|open| open.waker.take()).collect()
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
        self.closes_within().is_some()
    }

    /// In a drain: within which time what lasts by itself is to end.
    pub fn closes_within(&self) -> Option<Duration> {
        self.connections.state.with(|state| state.closes_within)
    }

    /// At each poll of a connection: whether what is under way on it ends. Its task is woken when that begins.
    pub fn poll_end(&self, cx: &Context<'_>) -> Poll<End> {
        self.connections.state.with(|state| {
            let open = &mut state.open[self.index];
            if !open.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                open.waker = Some(cx.waker().clone());
            }
            let of_all = if state.is_cut { Some(End::Cut) } else { state.closes_within.map(|_| End::Draining) };
            match open.end.filter(|_| !state.is_cut).or(of_all) {
                Some(end) => Poll::Ready(end),
                None => Poll::Pending,
            }
        })
    }

    /// A handle that ends what is under way on this one connection, for as long as it lasts.
    pub fn ender(&self) -> Ender {
        let key = self.connections.state.with(|state| state.open.key(self.index));
        Ender { connections: self.connections.clone(), key }
    }
}

/// Ends what is under way on one connection. It may outlive the connection, and does nothing then.
#[derive(Clone, Debug)]
pub struct Ender {
    connections: Connections,
    key: Key,
}

impl Ender {
    /// The connection's task runs, and sees what has changed for it.
    pub fn wake(&self) {
        self.wake_after(|_| {});
    }

    /// What is under way ends, for this reason. The first reason stays.
    pub fn end(&self, end: End) {
        self.wake_after(|open| {
            open.end.get_or_insert(end);
        });
    }

    fn wake_after(&self, change: impl FnOnce(&mut Open)) {
        let waker = self.connections.state.with(|state| {
            let open = state.open.find_mut(self.key)?;
            change(open);
            open.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let open = self.connections.state.with(|state| state.open.remove(self.index));
        // After the borrow: dropping its waker may drop a task, and that another slot.
        drop(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(slot: &Slot) -> Option<End> {
        match slot.poll_end(&Context::from_waker(Waker::noop())) {
            Poll::Ready(end) => Some(end),
            Poll::Pending => None,
        }
    }

    #[test]
    fn an_ender_ends_its_own_connection_and_no_later_one_at_its_place() {
        let connections = Connections::new();
        let (one, two) = (connections.enter(), connections.enter());
        let ender = one.ender();
        ender.end(End::Revoked);
        ender.end(End::Kicked);
        assert_eq!((end(&one), end(&two)), (Some(End::Revoked), None), "the first reason stays");
        drop(one);
        let next = connections.enter();
        assert_eq!(end(&next), None, "the place is a new connection's");
        ender.end(End::Revoked);
        assert_eq!(end(&next), None);
        next.ender().end(End::Kicked);
        assert_eq!((end(&next), end(&two)), (Some(End::Kicked), None));
    }

    #[test]
    fn a_drain_says_how_long_what_lasts_may_last_and_a_cut_goes_before_all() {
        let connections = Connections::new();
        let (one, two) = (connections.enter(), connections.enter());
        assert_eq!((one.closes_within(), one.is_closing()), (None, false));
        two.ender().end(End::Revoked);
        connections.close_when_idle(Duration::from_secs(3));
        assert_eq!(one.closes_within(), Some(Duration::from_secs(3)));
        assert_eq!((end(&one), end(&two)), (Some(End::Draining), Some(End::Revoked)));
        connections.cut();
        assert_eq!((end(&one), end(&two)), (Some(End::Cut), Some(End::Cut)));
    }
}

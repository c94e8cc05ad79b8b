//! Whether a client still waits for its operation. It is looked at again right before something is done that cannot be
//! taken back: a client that gave up may have renewed elsewhere, and what is done for it then is done against it.
//!
//! Whoever was there a moment ago is taken to be there. After a longer while (an instance that was stopped, a store that
//! took its time) the shard is asked, which asks the kernel: the end of the connection is known there, whatever shard and
//! bridge have heard of it.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::{cell::Cell, collections::HashMap, rc::Rc, time::Duration};

use tokio::{sync::Notify, time::timeout};

use super::letter::{AllLetters, ReplyTo, ToShard};
use crate::{
    accounts::Waiter,
    bus::{Bus, to},
    shard::{Instant, Local, clock},
};

/// A client that was there so lately is there. Longer than letters take on a busy machine, and far shorter than a client
/// needs to give up, go to another instance and come past `sessions.refresh_grace` there.
const FRESH: Duration = Duration::from_millis(100);

/// The clients that wait. One per process, on the bridge.
#[derive(Debug, Default)]
pub(super) struct WaitingClients {
    all: Local<HashMap<ReplyTo, Rc<WaitingClient>>>,
}

/// One that waits.
pub(super) struct WaitingClient {
    name: ReplyTo,
    bus: Bus<AllLetters>,
    /// Nothing is begun for it past this.
    until: Instant,
    /// It was seen to be there at this time, or later.
    seen_at: Cell<Instant>,
    /// When its shard was asked last.
    asked_at: Cell<Instant>,
    has_left: Cell<bool>,
    news: Notify,
}

impl std::fmt::Debug for WaitingClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitingClient")
            .field("name", &self.name)
            .field("has_left", &self.has_left)
            .finish_non_exhaustive()
    }
}

impl WaitingClients {
    /// A client was there at `came`, and waits for what it asked until `until`.
    pub(super) fn enter(
        &self,
        name: ReplyTo,
        bus: Bus<AllLetters>,
        came: Instant,
        until: Instant,
    ) -> Rc<WaitingClient> {
        let (seen_at, asked_at) = (Cell::new(came), Cell::new(came));
        let (has_left, news) = (Cell::new(false), Notify::new());
        let client = Rc::new(WaitingClient { name, bus, until, seen_at, asked_at, has_left, news });
        self.all.with(|all| all.insert(name, Rc::clone(&client)));
        client
    }

    /// Its shard has seen it.
    pub(super) fn seen(&self, name: ReplyTo) {
        if let Some(client) = self.all.with(|all| all.get(&name).cloned()) {
            // Not now: the letter may have been on its way for as long as the process stood still.
            client.seen_at.set(client.asked_at.get());
            client.news.notify_waiters();
        }
    }

    /// It has left, or was answered.
    pub(super) fn leave(&self, name: ReplyTo) {
        if let Some(client) = self.all.with(|all| all.remove(&name)) {
            client.has_left.set(true);
            client.news.notify_waiters();
        }
    }
}

impl Waiter for Rc<WaitingClient> {
    fn waits_until(&self) -> Instant {
        self.until
    }

    async fn is_there(&self) -> bool {
        loop {
            let now = clock::now();
            if self.has_left.get() || self.until < now {
                return false;
            }
            if now.since(self.seen_at.get()) <= FRESH {
                return true;
            }
            self.asked_at.set(now);
            let news = self.news.notified();
            self.bus.send(to::Shard(self.name.shard), ToShard::Doubted(self.name.ticket));
            // A shard that does not answer stands still, and so does its client.
            let _ = timeout(self.until.since(now), news).await;
        }
    }
}

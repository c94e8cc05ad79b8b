//! Revocations whose operations wait, before they are answered, until the shards of this instance have been told of them.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::{cell::Cell, collections::HashMap, rc::Rc};

use tokio::sync::Notify;

use crate::{accounts::Operation, auth::revocation::Kind, shard::Local};

/// What is waited for. One per process, on the bridge.
#[derive(Debug, Default)]
pub(super) struct Revoking {
    sessions: Local<Waited>,
    users: Local<Waited>,
}

/// By the id of what is revoked: however many wait for the same, there is one of it.
type Waited = HashMap<Box<str>, Rc<Notice>>;

#[derive(Debug, Default)]
struct Notice {
    is_told: Cell<bool>,
    came: Notify,
}

/// Waits for one revocation. Dropping it waits no longer.
#[derive(Debug)]
pub(super) struct RevocationWait<'a> {
    of: &'a Local<Waited>,
    id: Box<str>,
    news: Rc<Notice>,
}

impl Revoking {
    /// For an operation that revokes: to be waited for once it is done.
    pub(super) fn expect(&self, operation: &Operation) -> Option<RevocationWait<'_>> {
        let (of, id) = match operation {
            Operation::Logout { sid, .. } | Operation::EndSession { sid, .. } => (&self.sessions, sid),
            Operation::LogoutAll { user } => (&self.users, user),
            // The shards have been told of what is ended again; whoever kicks has told them itself.
            Operation::EndAgain { .. }
            | Operation::Kick { .. }
            | Operation::Login { .. }
            | Operation::Refresh { .. }
            | Operation::Sessions { .. } => return None,
        };
        let id: Box<str> = id.as_str().into();
        let news = of.with(|waited| Rc::clone(waited.entry(id.clone()).or_default()));
        Some(RevocationWait { of, id, news })
    }

    /// The shards have been told of this.
    pub(super) fn tell(&self, kind: Kind, id: &str) {
        let of = match kind {
            Kind::Session => &self.sessions,
            Kind::User => &self.users,
            Kind::Kick => return,
        };
        if let Some(news) = of.with(|waited| waited.remove(id)) {
            news.is_told.set(true);
            news.came.notify_waiters();
        }
    }
}

impl RevocationWait<'_> {
    /// Until the shards have been told, since this was expected.
    pub(super) async fn told(&self) {
        // Whoever tells does so on this thread, and not between these two lines.
        let came = self.news.came.notified();
        if !self.news.is_told.get() {
            came.await;
        }
    }
}

impl Drop for RevocationWait<'_> {
    fn drop(&mut self) {
        let Self { of, id, news } = self;
        of.with(|waited| {
            // The map's and ours: nobody else waits for it. What was told is not in the map, or it is another's.
            if Rc::strong_count(news) == 2 && waited.get(id).is_some_and(|other| Rc::ptr_eq(other, news)) {
                waited.remove(id);
            }
        });
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may panic")]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    fn log_out(sid: &str) -> Operation {
        Operation::Logout { user: "7".to_owned(), sid: sid.to_owned() }
    }

    fn is_told(wait: &RevocationWait<'_>) -> bool {
        pin!(wait.told()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn waited(revoking: &Revoking) -> usize {
        [&revoking.sessions, &revoking.users].iter().map(|of| of.with(|waited| waited.len())).sum()
    }

    #[test]
    fn all_that_wait_for_it_are_told_and_nobody_else() {
        let revoking = Revoking::default();
        let wait = |operation| revoking.expect(&operation).expect("it revokes");
        let same = [wait(log_out("a")), wait(log_out("a"))];
        let (other, user) = (wait(log_out("b")), wait(Operation::LogoutAll { user: "a".to_owned() }));
        assert_eq!(waited(&revoking), 3);
        revoking.tell(Kind::Session, "a");
        revoking.tell(Kind::Session, "unknown");
        revoking.tell(Kind::Kick, "b");
        assert_eq!([is_told(&same[0]), is_told(&same[1]), is_told(&other), is_told(&user)], [true, true, false, false]);
        let later = wait(log_out("a"));
        assert!(!is_told(&later), "that was before it began");
        drop(same);
        revoking.tell(Kind::Session, "a");
        revoking.tell(Kind::User, "a");
        assert_eq!([is_told(&later), is_told(&other), is_told(&user)], [true, false, true]);
    }

    #[test]
    fn a_waiter_is_woken_when_it_is_told() {
        let revoking = Revoking::default();
        let wait = revoking.expect(&log_out("a")).expect("it revokes");
        let mut told = pin!(wait.told());
        assert!(told.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        revoking.tell(Kind::Session, "a");
        assert!(told.poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten() {
        let revoking = Revoking::default();
        let waits: Vec<_> = ["a", "a", "b"].map(|sid| revoking.expect(&log_out(sid))).into();
        assert_eq!(waited(&revoking), 2);
        let mut waits = waits.into_iter();
        drop(waits.next());
        assert_eq!(waited(&revoking), 2, "another waits for the same");
        drop(waits);
        assert_eq!(waited(&revoking), 0);
    }
}

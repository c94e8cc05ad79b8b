//! The calls to services that are under way, and who waits for each: one message, or equal ones of several sockets.

use std::{
    cell::Cell,
    collections::HashMap,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
};

use crate::{auth::Claims, config::HubShare, hub::Ticket, shard::Local};

/// The calls of a shard. One per shard.
#[derive(Default)]
pub(super) struct Calls(Local<Board>);

#[derive(Default)]
struct Board {
    /// The call that each message waits for, by the hub's tickets.
    waits_for: HashMap<u64, u64>,
    calls: HashMap<u64, UnderWay>,
    /// The call that further messages like these may wait for.
    shared: HashMap<Rc<Equal>, u64>,
    last: u64,
}

struct UnderWay {
    cancel: Rc<Cancel>,
    waiting: Vec<Ticket>,
    equal: Option<Rc<Equal>>,
}

/// What two messages have in common that may share a call.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Equal {
    /// The service's place in the plan.
    index: usize,
    /// What the service is told of the user, where that has to be the same.
    user: Option<Box<str>>,
    payload: Box<str>,
}

impl Equal {
    /// None where each message is a call of its own.
    pub(super) fn new(share: HubShare, index: usize, claims: &Claims, payload: &str) -> Option<Self> {
        let user = match share {
            HubShare::Nobody => return None,
            // The answer may depend on the role, which another session need not have. None of these has a line feed inside.
            HubShare::User => {
                Some([&claims.iss, &claims.sub, claims.roles.as_list().unwrap_or_default()].join("\n").into())
            }
            HubShare::Anyone => None,
        };
        Some(Self { index, user, payload: payload.into() })
    }
}

/// Names a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call(u64);

/// Ends a call for which nobody waits any more.
#[derive(Default)]
pub(super) struct Cancel {
    is_cancelled: Cell<bool>,
    waker: Local<Option<Waker>>,
}

impl Calls {
    /// A message waits: for a call that is under way, or for a new one, which is then the asker's to make.
    pub(super) fn wait(&self, ticket: Ticket, equal: Option<Equal>) -> Option<(Call, Rc<Cancel>)> {
        self.0.with(|board| {
            if let Some(equal) = &equal
                && let Some(&number) = board.shared.get(equal)
                && let Some(call) = board.calls.get_mut(&number)
            {
                call.waiting.push(ticket);
                board.waits_for.insert(ticket.to_bits(), number);
                return None;
            }
            board.last += 1;
            let (number, cancel, equal) = (board.last, Rc::new(Cancel::default()), equal.map(Rc::new));
            board.shared.extend(equal.iter().map(|equal| (Rc::clone(equal), number)));
            board.waits_for.insert(ticket.to_bits(), number);
            board.calls.insert(number, UnderWay { cancel: Rc::clone(&cancel), waiting: vec![ticket], equal });
            Some((Call(number), cancel))
        })
    }

    /// Nobody waits with this ticket any more. The call goes on for the others, if there are any.
    pub(super) fn cancel(&self, ticket: Ticket) {
        let ended = self.0.with(|board| {
            let number = board.waits_for.remove(&ticket.to_bits())?;
            let call = board.calls.get_mut(&number)?;
            call.waiting.retain(|waiting| *waiting != ticket);
            if call.waiting.is_empty() { board.remove(number) } else { None }
        });
        if let Some(UnderWay { cancel, .. }) = ended {
            cancel.is_cancelled.set(true);
            if let Some(waker) = cancel.waker.with(Option::take) {
                waker.wake();
            }
        }
    }

    /// A call is over: so many of those who wait for it, in order. Nobody waits for it any more who did not before.
    pub(super) fn take(&self, call: Call, most: usize) -> Vec<Ticket> {
        self.0.with(|board| {
            let Some(mut over) = board.remove(call.0) else { return Vec::new() };
            let later = over.waiting.split_off(most.min(over.waiting.len()));
            let waiting = std::mem::replace(&mut over.waiting, later);
            if !over.waiting.is_empty() {
                board.calls.insert(call.0, UnderWay { equal: None, ..over });
            }
            for ticket in &waiting {
                board.waits_for.remove(&ticket.to_bits());
            }
            waiting
        })
    }

    /// Other services may be meant from now on: nobody waits any more for what was asked of those before.
    pub(super) fn part(&self) {
        self.0.with(|board| board.shared.clear());
    }
}

impl Board {
    fn remove(&mut self, number: u64) -> Option<UnderWay> {
        let call = self.calls.remove(&number)?;
        if let Some(equal) = &call.equal
            && self.shared.get(equal) == Some(&number)
        {
            self.shared.remove(equal);
        }
        Some(call)
    }
}

impl Cancel {
    /// What comes of this, unless it is cancelled before.
    pub(super) async fn unless<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        let mut call = pin!(call);
        poll_fn(|cx| {
            if self.is_cancelled.get() {
                return Poll::Ready(None);
            }
            self.waker.with(|waker| *waker = Some(cx.waker().clone()));
            call.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Slab;

    fn tickets<const COUNT: usize>() -> [Ticket; COUNT] {
        let mut slab = Slab::new();
        std::array::from_fn(|_| {
            let index = slab.insert(());
            slab.key(index)
        })
    }

    fn equal(share: HubShare, index: usize, user: &str, payload: &str) -> Option<Equal> {
        Equal::new(share, index, &Claims::plain(user), payload)
    }

    #[test]
    fn equal_messages_of_those_who_share_wait_for_one_call() {
        use HubShare::{Anyone, Nobody, User};
        for (share, other, is_shared) in [
            (Nobody, (0, "a", "1"), false),
            (User, (0, "a", "1"), true),
            (User, (0, "b", "1"), false),
            (User, (0, "a", "2"), false),
            (User, (1, "a", "1"), false),
            (Anyone, (0, "b", "1"), true),
            (Anyone, (0, "b", "2"), false),
        ] {
            let (calls, [one, two]) = (Calls::default(), tickets());
            let (call, _) = calls.wait(one, equal(share, 0, "a", "1")).expect("nobody was there before");
            let (index, user, payload) = other;
            let further = calls.wait(two, equal(share, index, user, payload));
            assert_eq!(further.is_none(), is_shared, "{share:?} {other:?}");
            let waiting = if is_shared { vec![one, two] } else { vec![one] };
            assert_eq!(calls.take(call, 9), waiting, "{share:?} {other:?}");
        }
    }

    #[test]
    fn who_shares_is_of_one_role_too() {
        let claims = |role: &str| Claims { roles: crate::auth::CallerRoles::new(&[role]), ..Claims::plain("a") };
        let of = |role| Equal::new(HubShare::User, 0, &claims(role), "1");
        assert_eq!(of("user"), of("user"));
        assert_ne!(of("user"), of("admin"));
    }

    #[test]
    fn a_call_ends_with_the_last_who_waits_for_it() {
        let (calls, [one, two, three]) = (Calls::default(), tickets());
        let same = || equal(HubShare::Anyone, 0, "a", "1");
        let (_, cancel) = calls.wait(one, same()).expect("a new one");
        assert!(calls.wait(two, same()).is_none());
        calls.cancel(one);
        assert!(!cancel.is_cancelled.get(), "another waits");
        calls.cancel(two);
        assert!(cancel.is_cancelled.get());
        let (call, _) = calls.wait(three, same()).expect("what is cancelled is nobody's to wait for");
        assert_eq!(calls.take(call, 9), [three]);
        calls.0.with(|board| {
            assert!(board.waits_for.is_empty() && board.calls.is_empty() && board.shared.is_empty());
        });
    }

    #[test]
    fn who_waits_for_a_call_that_is_over_is_told_in_parts() {
        let (calls, [one, two, three, four]) = (Calls::default(), tickets());
        let same = || equal(HubShare::Anyone, 0, "a", "1");
        let (call, _) = calls.wait(one, same()).expect("a new one");
        assert!(calls.wait(two, same()).is_none() && calls.wait(three, same()).is_none());
        assert_eq!(calls.take(call, 1), [one]);
        let (next, _) = calls.wait(four, same()).expect("what is over is nobody's to wait for");
        calls.cancel(two);
        assert_eq!((calls.take(call, 1), calls.take(call, 1)), (vec![three], vec![]));
        assert_eq!(calls.take(next, 1), [four]);
        calls.0.with(|board| assert!(board.waits_for.is_empty() && board.calls.is_empty()));
    }

    #[test]
    fn after_a_reload_nobody_waits_for_what_another_service_was_asked() {
        let (calls, [one, two]) = (Calls::default(), tickets());
        let same = || equal(HubShare::Anyone, 0, "a", "1");
        let (before, _) = calls.wait(one, same()).expect("a new one");
        calls.part();
        let (after, _) = calls.wait(two, same()).expect("a new one");
        assert_eq!((calls.take(before, 9), calls.take(after, 9)), (vec![one], vec![two]));
    }
}

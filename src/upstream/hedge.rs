//! A request that two instances are asked, because the first one takes long (Dean and Barroso, "The Tail at Scale"): at most
//! two, within the budget for retries, and only where that changes nothing.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use super::{
    Asker, Backend, Call, Failure, Trail, Upstream,
    permit::RequestPermit,
    send::{Answered, Attempt},
};
use crate::{
    net::{OwnedBody, RequestBody},
    proto::head::{Framing, RequestHead, ResponseHead},
    shard::{Deadline, Instant, buffers, clock},
    telemetry::metrics::Outcome,
};

/// Whether a request may be carried out twice at once: its method is idempotent (RFC 9110 §9.2.2), and it is all here.
pub(super) fn may_be_hedged(head: &RequestHead) -> bool {
    head.method.is_idempotent() && head.framing == Framing::None && !head.upgrade
}

/// Who waits for the second attempt: whoever waits for the first, which alone tells of interim answers, and notices when the
/// client leaves.
struct Beside<'a, A>(&'a A);

impl<A: Asker> Asker for Beside<'_, A> {
    fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    fn prepare(&self, _: &mut ResponseHead) -> bool {
        false
    }
}

/// What is known of the two attempts when there is an answer that counts, or none will come.
struct Ends {
    first: Option<Result<Answered, Failure>>,
    second: Option<Result<Answered, Failure>>,
}

impl Ends {
    /// An answer counts at once, unless it says that there is none and the other one may still say more.
    fn is_over(&self) -> bool {
        let is_good =
            |end: &Option<Result<Answered, Failure>>| matches!(end, Some(Ok((answer, ..))) if answer.status < 500);
        is_good(&self.first) || is_good(&self.second) || (self.first.is_some() && self.second.is_some())
    }

    /// Whether the second attempt has the answer that counts.
    fn is_second(&self) -> bool {
        let rank = |end: &Option<Result<Answered, Failure>>| match end {
            Some(Ok((answer, ..))) if answer.status < 500 => 2,
            Some(Ok(_)) => 1,
            Some(Err(_)) | None => 0,
        };
        rank(&self.second) > rank(&self.first)
    }
}

impl Upstream {
    /// As [`Upstream::attempt`], and when no answer has come after a while, another instance is asked as well. The first
    /// answer counts; the connection of the other attempt closes. Where both fail, the first failure counts, and the second
    /// instance joins those that `failed`.
    #[expect(clippy::too_many_arguments, reason = "what a request is and what has become of it so far")]
    pub(super) async fn hedged(
        self: &Rc<Self>,
        attempt: &mut Attempt<'_>,
        after: Duration,
        backend: Option<Rc<Backend>>,
        head: &mut RequestHead,
        body: &mut impl RequestBody,
        call: &Call,
        trail: &mut Trail,
        asker: &impl Asker,
        failed: &mut Vec<Rc<Backend>>,
    ) -> Result<Answered, Failure> {
        let (began, limit) = (attempt.began, attempt.limit);
        let Some(asked) = backend else { return Err(self.nobody()) };
        let mut copy = head.copy(buffers::take(), buffers::take_fields());
        let mut other = None;
        let mut trail2 = trail.beside();
        let began2;
        let ends = {
            let first = self.attempt(attempt, Some(Rc::clone(&asked)), head, body, call, trail, asker);
            let mut first = pin!(first);
            let mut due = Deadline::new();
            due.set(began + after);
            let end = poll_fn(|cx| match first.as_mut().poll(cx) {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending => due.poll(cx).map(|()| None),
            });
            if let Some(end) = end.await {
                give(copy);
                return end;
            }
            began2 = clock::now();
            let Some((backend, place)) = self.second(began2, call, &asked) else {
                give(copy);
                return first.await;
            };
            let place = other.insert(place);
            let mut attempt = Attempt::new(began2, limit, place);
            let mut body = OwnedBody::new(Vec::new(), limit);
            let beside = Beside(asker);
            let second = self.attempt(&mut attempt, Some(backend), &mut copy, &mut body, call, &mut trail2, &beside);
            let mut second = pin!(second);
            let mut ends = Ends { first: None, second: None };
            poll_fn(|cx| {
                if ends.first.is_none()
                    && let Poll::Ready(end) = first.as_mut().poll(cx)
                {
                    // Whoever asked has gone, or may not be answered.
                    let is_nobodys = matches!(end, Err(Failure::Ended | Failure::ClientGone | Failure::Request(_)));
                    ends.first = Some(end);
                    if is_nobodys {
                        return Poll::Ready(());
                    }
                }
                if ends.second.is_none()
                    && let Poll::Ready(end) = second.as_mut().poll(cx)
                {
                    ends.second = Some(end);
                }
                if ends.is_over() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            ends
        };
        trail.unusual.is_any = true;
        trail.unusual.is_hedged = true;
        let now = clock::now();
        let counts = if ends.is_second() {
            let is_its_fault = is_its_fault(ends.first.as_ref(), trail, call, now);
            let outcome = self.lost(ends.first, &asked, now.since(began), now, is_its_fault, trail);
            trail.replace_try(&mut trail2, outcome, now);
            trail.unusual.hedge_won = true;
            // As if it had been the only one, but for the time: that is from the first one on.
            (trail.backend, trail.reused) = (trail2.backend.take(), trail2.reused);
            (trail.status, trail.answered_at, trail.mended) = (trail2.status, trail2.answered_at, trail2.mended);
            trail.waited = trail2.answered_at.unwrap_or(now).since(began);
            std::mem::swap(head, &mut copy);
            if let Some(place) = other {
                attempt.place.take_over(place, now);
            }
            ends.second
        } else {
            if let Some(backend) = &trail2.backend {
                if ends.second.is_some() {
                    failed.push(Rc::clone(backend));
                }
                let backend = Rc::clone(backend);
                let is_its_fault = is_its_fault(ends.second.as_ref(), &trail2, call, now);
                let outcome = self.lost(ends.second, &backend, now.since(began2), now, is_its_fault, trail);
                trail.fail_other_try(&mut trail2, outcome, now);
            }
            ends.first
        };
        trail.attempts += trail2.attempts;
        trail.opened += trail2.opened;
        trail.connect += trail2.connect;
        give(copy);
        counts.unwrap_or(Err(Failure::Ended))
    }

    /// Another instance than the one that was asked, and a place for the attempt; `None` where there is none, or no budget.
    fn second(self: &Rc<Self>, now: Instant, call: &Call, asked: &Rc<Backend>) -> Option<(Rc<Backend>, RequestPermit)> {
        let backend = self.choose_among(now, call.hash_key, |backend| !Rc::ptr_eq(backend, asked))?;
        Some((backend, self.enter_again(now)?))
    }

    /// Counts the attempt that does not count. Its connection closes with what is dropped here.
    fn lost(
        &self,
        end: Option<Result<Answered, Failure>>,
        backend: &Rc<Backend>,
        waited: Duration,
        now: Instant,
        is_its_fault: bool,
        trail: &mut Trail,
    ) -> Outcome {
        let outcome = match end {
            None => {
                self.gave_up(backend, waited, now);
                Outcome::Cancelled
            }
            Some(Ok((answer, ..))) if answer.status >= 500 => Outcome::ServerError,
            Some(Ok(_)) => Outcome::Cancelled,
            Some(Err(failure)) => {
                if is_its_fault {
                    trail.ejected += u32::from(self.failed(backend, &failure, waited, now));
                } else if failure.is_of_time() {
                    self.gave_up(backend, waited, now);
                }
                failure.outcome().unwrap_or(Outcome::Cancelled)
            }
        };
        trail.failed[outcome.index()] += 1;
        backend.count(outcome);
        outcome
    }
}

/// Whether an attempt with this trail failed by its instance's fault: not since the time of the request was up, nor since a
/// kept connection was closed.
fn is_its_fault(end: Option<&Result<Answered, Failure>>, trail: &Trail, call: &Call, now: Instant) -> bool {
    let Some(Err(failure)) = end else { return false };
    let is_late = now >= call.deadline && failure.is_of_time();
    failure.class().is_some() && !is_late && !trail.was_stale(failure)
}

fn give(head: RequestHead) {
    buffers::give(head.bytes);
    buffers::give_fields(head.fields);
}

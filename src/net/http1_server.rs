//! One client's HTTP/1.1 connection from accept to close: heads in, answers out, in order.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    AnswerBody, Cut, Finish, Io, Mistake, Peer, Sent, Service, Slot, Stream, Switched, Upgrade,
    body::RequestBody as _,
    inbound::{First, Http1Body, HttpLimits, Inbound, NoRequest},
    outbound::{self, AfterAnswer},
    stream::Shutdown,
};
use crate::{
    proto::head::{RequestHead, Version},
    shard::{Instant, clock, task, woken_at},
};

/// A connection that is closed while the client still writes is read on until it pauses for this long, so that the client
/// gets to read the answer (RFC 9112 §9.6): bytes that nobody reads make a reset, which takes the answer with it.
const LINGER_PAUSE: Duration = Duration::from_secs(2);

/// But for no longer than this, as in nginx, and no further: somebody who goes on and on means no answer.
const LINGER_MAX: Duration = Duration::from_secs(30);
const LINGER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes that are read over before the shard's other tasks get their turn.
const LINGER_BYTES_PER_TURN: usize = 1024 * 1024;

/// How long a fresh connection is waited for when its shard closes.
const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// A connection that falls silent keeps its box for this long: under load the next request needs no new one, and an idle
/// connection is soon small.
const WARM: Duration = Duration::from_millis(25);

/// Serves a connection until one side closes it, or it has switched to another protocol. Dropping the future closes it at
/// once.
///
/// Between requests it is small: exchanges live in a box of their own while they come.
pub async fn serve_connection<S: Service>(service: Rc<S>, stream: Stream, peer: Peer, slot: &Slot) -> Option<Switched> {
    let io = Rc::new(Io::new(stream));
    let mut inbound = Inbound::new(Rc::clone(&io));
    let mut served = 0_u32;
    // A new connection gets the time of a head, not that of a pause between two.
    let mut due = clock::turn() + service.limits().header_timeout;
    loop {
        inbound.deadline().set(due);
        if poll_fn(|cx| poll_request(cx, slot, &mut inbound, served == 0)).await != First::Bytes {
            io.say_goodbye();
            return None;
        }
        let busy = Box::pin(serve_while_busy(&*service, &peer, slot, &io, &mut inbound, &mut served));
        match busy.await {
            After::Idle(since) => due = since + service.limits().keep_alive_timeout,
            After::Close => return None,
            After::Leave => {
                io.say_goodbye();
                return None;
            }
            After::Switched(upgrade) => return Some(Switched { first: inbound.take_rest(), io, upgrade }),
        }
    }
}

/// Waits for a request's first bytes.
///
/// What has come is served, whether the shard drains or not. A connection that has been served before then closes; one
/// that was just accepted gets a moment, since its first request is on its way and nobody else can answer it.
fn poll_request(cx: &mut Context<'_>, slot: &Slot, inbound: &mut Inbound, is_fresh: bool) -> Poll<First> {
    let first = inbound.poll_first_bytes(cx);
    if first.is_ready() || !slot.is_closing() {
        return first;
    }
    if !is_fresh {
        return Poll::Ready(First::Closed);
    }
    let due = clock::now() + DRAIN_GRACE;
    if inbound.deadline().at().is_none_or(|at| due < at) {
        inbound.deadline().set(due);
    }
    inbound.deadline().poll(cx).map(|()| First::Closed)
}

/// What a connection does when its requests are answered.
enum After {
    /// It has been waiting for the next request since then.
    Idle(Instant),
    /// It closes, and has said all that it has to say.
    Close,
    /// It closes between two requests.
    Leave,
    /// It speaks another protocol from now on.
    Switched(Box<dyn Upgrade>),
}

/// Serves requests for as long as they come without a pause.
async fn serve_while_busy<S: Service>(
    service: &S,
    peer: &Peer,
    slot: &Slot,
    io: &Io,
    inbound: &mut Inbound,
    served: &mut u32,
) -> After {
    loop {
        let mut has_waited = false;
        let after = {
            let mut serving = pin!(serve_one(service, peer, slot, io, inbound, served));
            let polled = |cx: &mut Context<'_>| {
                let polled = serving.as_mut().poll(cx);
                has_waited |= polled.is_pending();
                polled
            };
            poll_fn(polled).await
        };
        let idle_since = match after {
            After::Idle(since) => since,
            ended => return ended,
        };
        if inbound.has_bytes() {
            // One request a turn: eight cost as much, and let neighbours wait for longer. Whoever waited for a backend
            // meanwhile has held nobody up.
            if !has_waited {
                task::yield_now().await;
            }
            continue;
        }
        inbound.deadline().set(idle_since + WARM);
        match poll_fn(|cx| poll_request(cx, slot, inbound, false)).await {
            First::Bytes => {}
            First::Closed => return After::Leave,
            First::TimedOut => return After::Idle(idle_since),
        }
    }
}

/// Serves one request, whose first bytes are here.
async fn serve_one<S: Service>(
    service: &S,
    peer: &Peer,
    slot: &Slot,
    io: &Io,
    inbound: &mut Inbound,
    served: &mut u32,
) -> After {
    let limits = service.limits();
    // From here on its bytes wait, for their shard too.
    let began = woken_at();
    inbound.deadline().set(began + limits.header_timeout);
    let head = match poll_fn(|cx| inbound.poll_head(cx, &limits)).await {
        Ok(head) => head,
        Err(NoRequest::Closed) => return After::Close,
        Err(NoRequest::TimedOut) => return refuse(service, peer, io, inbound, Mistake::TimedOut, &limits).await,
        Err(NoRequest::Refused(error)) => {
            return refuse(service, peer, io, inbound, Mistake::Head(error), &limits).await;
        }
    };
    *served = served.saturating_add(1);
    let wants_more = head.keep_alive && (limits.requests_max == 0 || *served < limits.requests_max);
    let asked = RequestKind::of(&head);
    let mut body = Http1Body::new(inbound);
    body.set_due(began + limits.request_timeout);
    let mut under_way = UnderWay::begin(io, service.begin(peer, slot, head, began));
    let Some(response) = service.serve(under_way.exchange(), body).await else {
        under_way.finish(Sent { body_bytes: 0, request_bytes: inbound.received_bytes(), cut: None });
        return After::Close;
    };

    let keeps = wants_more && !slot.is_ending();
    let mut answer = outbound::Answer::new(response, asked.is_head, asked.version, keeps, limits.write_timeout);
    if answer.takes_head() {
        let (head, body, request_bytes) = answer.into_head();
        let upgrade = service.switch(under_way.take(), body, head, request_bytes);
        return upgrade.map_or(After::Close, After::Switched);
    }
    let sent = answer.send(io).await;
    let ending = answer.ending();
    let tells_its_end = answer.tells_its_end();
    let body = answer.into_body();
    if sent.cut.is_none() && ending == AfterAnswer::Switch {
        let upgrade = service.switch(under_way.take(), body, Vec::new(), sent.request_bytes);
        return upgrade.map_or(After::Close, After::Switched);
    }
    let finished_at = under_way.finish(sent);
    if let Some(cut) = sent.cut {
        if matches!(cut, Cut::ClientGone | Cut::ClientStalled) {
            body.abandon();
        } else if tells_its_end {
            // A part is seen to be one, and the client gets what was sent of it, and of the answers before.
            drop(body);
            linger(io, inbound, Shutdown::Cut).await;
        }
        return After::Close;
    }
    if ending == AfterAnswer::Close {
        linger(io, inbound, Shutdown::Whole).await;
        return After::Close;
    }
    if !inbound.is_body_done() {
        inbound.deadline().set_after(LINGER_PAUSE);
        if !poll_fn(|cx| inbound.poll_discard(cx)).await {
            linger(io, inbound, Shutdown::Whole).await;
            return After::Close;
        }
    }
    After::Idle(finished_at)
}

/// An exchange that is told what was sent of its answer even when its task ends in the middle.
struct UnderWay<'i, E: Finish> {
    io: &'i Io,
    exchange: Option<E>,
}

impl<'i, E: Finish> UnderWay<'i, E> {
    fn begin(io: &'i Io, exchange: E) -> Self {
        io.received.set(0);
        io.sent.set(0);
        Self { io, exchange: Some(exchange) }
    }

    fn exchange(&mut self) -> &mut E {
        self.exchange.as_mut().expect("it is there until it ends")
    }

    fn take(mut self) -> E {
        self.exchange.take().expect("it ends once")
    }

    fn finish(&mut self, sent: Sent) -> Instant {
        let finished_at = self.exchange().finish(sent);
        self.exchange = None;
        finished_at
    }
}

impl<E: Finish> Drop for UnderWay<'_, E> {
    fn drop(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            let Io { received, sent, .. } = self.io;
            exchange.give_up(Sent { body_bytes: sent.get(), request_bytes: received.get(), cut: None });
        }
    }
}

/// What of a request decides how its answer is written.
#[derive(Clone, Copy)]
struct RequestKind {
    is_head: bool,
    version: Version,
}

impl RequestKind {
    fn of(head: &RequestHead) -> Self {
        Self { is_head: head.method == crate::proto::head::Method::Head, version: head.version }
    }
}

/// Answers a head that is none, and closes.
async fn refuse<S: Service>(
    service: &S,
    peer: &Peer,
    io: &Io,
    inbound: &mut Inbound,
    mistake: Mistake,
    limits: &HttpLimits,
) -> After {
    let (response, exchange) = service.refuse(peer, mistake, Http1Body::new(inbound), clock::now());
    let mut under_way = UnderWay::begin(io, exchange);
    let mut answer = outbound::Answer::new(response, false, Version::Http11, false, limits.write_timeout);
    let sent = answer.send(io).await;
    drop(answer);
    under_way.finish(sent);
    linger(io, inbound, if sent.cut.is_none() { Shutdown::Whole } else { Shutdown::Cut }).await;
    After::Close
}

/// Ends our direction and reads on for a while, so that the answer is not lost to a reset.
pub(super) async fn linger(io: &Io, inbound: &mut Inbound, how: Shutdown) {
    let ends_at = clock::now() + LINGER_MAX;
    let mut bytes_left = LINGER_BYTES_MAX;
    let mut is_shut = false;
    inbound.deadline().set_after(LINGER_PAUSE);
    loop {
        let mut turn = bytes_left.min(LINGER_BYTES_PER_TURN);
        bytes_left -= turn;
        let goes_on = poll_fn(|cx| {
            // A client that still writes may read nothing of ours before we have read it.
            is_shut = is_shut || io.poll_shutdown(cx, how).is_ready();
            inbound.poll_linger(cx, &mut turn, LINGER_PAUSE, ends_at)
        });
        if !goes_on.await || bytes_left == 0 || clock::now() >= ends_at {
            break;
        }
        task::yield_now().await;
    }
    if !is_shut {
        // It has ended its direction before ours had ended, and may read on.
        let shut = |cx: &mut Context<'_>| match io.poll_shutdown(cx, how) {
            Poll::Pending => inbound.deadline().poll(cx),
            Poll::Ready(()) => Poll::Ready(()),
        };
        poll_fn(shut).await;
    }
}

//! One client's HTTP/1.1 connection from accept to close: heads in, answers out, in order.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    AnswerBody, Finish, Io, Mistake, Peer, Request, Sent, Service, Slot,
    inbound::{HttpLimits, Inbound, NoRequest, RequestBody},
    outbound::{self, Ending},
    tunnel,
};
use crate::{
    proto::head::{RequestHead, Version},
    shard::{TcpStream, clock, timer},
};

/// A connection that is closed while the client still writes reads on for this long, and this far, so that the client
/// gets to read the answer (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// How long a fresh connection is waited for when its shard closes.
const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// Requests that are served from bytes that are here already before other connections get their turn.
const REQUESTS_PER_TURN: u32 = 64;

/// Serves a connection until one side closes it. Dropping the future closes it at once.
///
/// Between requests it is small: an exchange lives in a box of its own while it is under way.
pub async fn serve_connection<S: Service>(service: Rc<S>, stream: TcpStream, peer: Peer, slot: &Slot) {
    let io = Rc::new(Io::new(stream));
    let mut inbound = Inbound::new(Rc::clone(&io));
    let mut served = 0_u32;
    // A new connection gets the time of a head, not that of a pause between two.
    inbound.deadline().set_after(service.limits().header_timeout);
    loop {
        if !poll_fn(|cx| poll_request(cx, slot, &mut inbound, served == 0)).await {
            return;
        }
        let busy = Box::pin(serve_while_busy(&*service, &peer, slot, &io, &mut inbound, &mut served));
        match busy.await {
            After::Idle => {}
            // Boxed: a timer is 640 bytes, aligned to 128, and every idle connection would keep room for it.
            After::Turn => Box::pin(timer::sleep(timer::TURN)).await,
            After::Close => return,
        }
        inbound.deadline().set_after(service.limits().keep_alive_timeout);
    }
}

/// Waits for a request's first bytes: `Ready(false)` when none will be served.
///
/// What has come is served, whether the shard drains or not. A connection that has been served before then closes; one
/// that was just accepted gets a moment, since its first request is on its way and nobody else can answer it.
fn poll_request(cx: &mut Context<'_>, slot: &Slot, inbound: &mut Inbound, is_fresh: bool) -> Poll<bool> {
    let has_bytes = inbound.poll_first_bytes(cx);
    if has_bytes.is_ready() || !slot.is_closing(cx) {
        return has_bytes;
    }
    if !is_fresh {
        return Poll::Ready(false);
    }
    let due = clock::now() + DRAIN_GRACE;
    if inbound.deadline().at().is_none_or(|at| due < at) {
        inbound.deadline().set(due);
    }
    inbound.deadline().poll(cx).map(|()| false)
}

/// What a connection does when its bytes are used up.
#[derive(Debug, PartialEq, Eq)]
enum After {
    /// It waits for the next request.
    Idle,
    /// It lets others have their turn first.
    Turn,
    /// It closes.
    Close,
}

/// Serves requests as long as their bytes are here.
async fn serve_while_busy<S: Service>(
    service: &S,
    peer: &Peer,
    slot: &Slot,
    io: &Io,
    inbound: &mut Inbound,
    served: &mut u32,
) -> After {
    let limits = service.limits();
    let mut turn = 0;
    while inbound.has_bytes() {
        if turn == REQUESTS_PER_TURN {
            return After::Turn;
        }
        turn += 1;
        let began = clock::now();
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
        let asked = Asked::of(&head);
        let mut body = RequestBody::new(inbound);
        body.set_due(began + limits.request_timeout);
        let (response, exchange) = service.serve(peer, Request { head, body, began }).await;
        let Some(response) = response else {
            exchange.finish(Sent { body_bytes: 0, cut: None });
            return After::Close;
        };
        let keeps = wants_more && !slot.is_ending();
        let mut answer = outbound::Answer::new(response, asked.is_head, asked.version, keeps, limits.write_timeout);
        let sent = answer.send(io).await;
        let ending = answer.ending();
        if sent.cut.is_none() && ending == Ending::Tunnel {
            let bytes = match answer.into_body().into_tunnel() {
                Some((backend, idle)) => tunnel::run(io, inbound, backend, idle).await,
                None => 0,
            };
            exchange.finish(Sent { body_bytes: bytes, cut: None });
            return After::Close;
        }
        let body = answer.into_body();
        exchange.finish(sent);
        if sent.cut.is_some() {
            body.abandon();
            return After::Close;
        }
        if ending == Ending::Close {
            linger(io, inbound).await;
            return After::Close;
        }
        if !inbound.is_body_done() {
            inbound.deadline().set_after(LINGER);
            if !poll_fn(|cx| inbound.poll_discard(cx)).await {
                return After::Close;
            }
        }
    }
    After::Idle
}

/// What of a request decides how its answer is written.
#[derive(Clone, Copy)]
struct Asked {
    is_head: bool,
    version: Version,
}

impl Asked {
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
    let (response, exchange) = service.refuse(peer, mistake, RequestBody::new(inbound), clock::now());
    let mut answer = outbound::Answer::new(response, false, Version::Http11, false, limits.write_timeout);
    let sent = answer.send(io).await;
    drop(answer);
    exchange.finish(sent);
    linger(io, inbound).await;
    After::Close
}

/// Ends our direction and reads on for a while, so that the answer is not lost to a reset.
async fn linger(io: &Io, inbound: &mut Inbound) {
    io.shut_down_writes();
    inbound.deadline().set_after(LINGER);
    let mut bytes_max = LINGER_BYTES_MAX;
    poll_fn(|cx| inbound.poll_linger(cx, &mut bytes_max)).await;
}

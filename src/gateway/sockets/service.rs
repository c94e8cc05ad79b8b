//! Messages for services: each is a request of its own, counted, logged and traced as those of HTTP are.

use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use serde_json::value::RawValue;

use super::{
    Sockets,
    calls::{self, Equal},
    plan::Service,
};
use crate::{
    auth::Claims,
    config::{HubShare, RetryOn},
    exchange::{Exchange, Labels, Reject},
    gateway::{
        Gateway, Plan,
        fields::{self, FieldRules, RequestContext},
        live::Live,
    },
    hub::{ServiceOutcome, SocketKey, Ticket, code::Code, is_too_deep},
    net::{AnswerBody as _, Cut, Finish as _, OwnedBody, Peer, Scheme, Sent},
    proto::head::{Framing, Known, Method, RequestHead, ResponseHead, Span},
    shard::{Instant, clock, task, timer},
    telemetry::{
        record::RouteNames,
        spans::{SpanKind, SpanNames},
    },
    upstream::{Asker, Call, RetryRules, Streaming, Upstream},
};

/// Bytes of a service's answer that a message can carry, however large an outbox may be.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Sockets that are told of the answer they share before the shard's other tasks get their turn.
const ANSWERS_PER_TURN: usize = 256;

/// Whoever sent the message.
struct Sender {
    claims: Rc<Claims>,
    client: IpAddr,
    scheme: Scheme,
}

/// What a service made of a message.
pub(super) struct Answered {
    pub(super) status: u16,
    /// None where nobody reads it.
    body: Option<Vec<u8>>,
    retry_after_ms: Option<u64>,
}

impl Sockets {
    /// Sends a message to its service, in a task of its own; where an equal one is under way already, its answer will do.
    pub(super) fn forward(
        self: &Rc<Self>,
        ticket: Ticket,
        socket: SocketKey,
        index: usize,
        id: Option<&str>,
        payload: Box<str>,
    ) {
        let Some(gateway) = self.gateway() else { return };
        let sender = self.hub.with(|hub| {
            let handle = &hub.socket(socket)?.handle;
            let claims = Rc::clone(handle.claims.as_ref()?);
            Some(Sender { claims, client: handle.client, scheme: handle.scheme })
        });
        let Some(sender) = sender else { return };
        // The index is of this plan, whatever comes before the task has its turn.
        let live = gateway.live();
        let share = live.plan.hub.services.get(index).map_or(HubShare::Nobody, |service| service.share);
        let equal = Equal::new(share, index, &sender.claims, &payload);
        let Some((number, cancel)) = self.calls.wait(ticket, equal) else { return };
        let (sockets, id) = (Rc::clone(self), id.map(Box::<str>::from));
        let address = SocketAddr::new(sender.client, 0);
        // A larger one would fill the outbox of a client that reads as fast as it can.
        let answer_bytes_max = ANSWER_BYTES_MAX.min(self.outbox_bytes_max.get() / 2);
        task::spawn(address, async move {
            let promise = Promise { sockets, number };
            let call = call(&gateway, &live, index, &sender, id.as_deref(), payload, answer_bytes_max);
            if let Some(answered) = cancel.unless(call).await {
                let outcome = outcome(&answered);
                while promise.tell(&outcome, ANSWERS_PER_TURN) {
                    task::yield_now().await;
                }
            }
        });
    }
}

/// Whoever waits for a call is told what became of it; also when its task has panicked.
struct Promise {
    sockets: Rc<Sockets>,
    number: calls::Call,
}

impl Promise {
    /// Tells so many of them, and says whether there may be more.
    fn tell(&self, outcome: &ServiceOutcome<'_>, most: usize) -> bool {
        let waiting = self.sockets.calls.take(self.number, most);
        let may_be_more = waiting.len() == most;
        if !waiting.is_empty() {
            self.sockets.step(|hub, now| {
                for ticket in waiting {
                    hub.service_answered(now, ticket, outcome);
                }
            });
        }
        may_be_more
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // Nobody waits any more for a call that was told of or cancelled.
        self.tell(&ServiceOutcome::Refused { code: Code::UpstreamFailed, retry_after_ms: None }, usize::MAX);
    }
}

fn outcome(answered: &Result<Answered, Code>) -> ServiceOutcome<'_> {
    let refused = |code, retry_after_ms| ServiceOutcome::Refused { code, retry_after_ms };
    match answered {
        Ok(Answered { status: status @ 200..=299, body: None, .. }) => {
            ServiceOutcome::Taken { status: *status, json: "null" }
        }
        Ok(Answered { status: status @ 200..=299, body: Some(body), .. }) => match std::str::from_utf8(body) {
            Ok("") => ServiceOutcome::Taken { status: *status, json: "null" },
            // It becomes a part of what the client is sent.
            Ok(json) if serde_json::from_str::<&RawValue>(json).is_ok() && !is_too_deep(json) => {
                ServiceOutcome::Taken { status: *status, json: json.trim() }
            }
            _ => refused(Code::UpstreamBadResponse, None),
        },
        Ok(Answered { status: 429, retry_after_ms, .. }) => refused(Code::RateLimited, *retry_after_ms),
        Ok(Answered { status: 400..=499, .. }) => refused(Code::UpstreamRefused, None),
        Ok(Answered { status: 500.., retry_after_ms, .. }) => refused(Code::UpstreamFailed, *retry_after_ms),
        // Whatever else is no answer to a POST that a message can carry: a redirect, for one.
        Ok(_) => refused(Code::UpstreamBadResponse, None),
        Err(code) => refused(*code, None),
    }
}

/// One message to its service.
async fn call(
    gateway: &Gateway,
    live: &Live,
    index: usize,
    sender: &Sender,
    id: Option<&str>,
    payload: Box<str>,
    answer_bytes_max: usize,
) -> Result<Answered, Code> {
    let Some(service) = live.plan.hub.services.get(index) else { return Err(Code::UpstreamFailed) };
    let (Some(upstream), Some(labels)) = (live.upstreams.get(service.upstream), live.service_labels.get(index)) else {
        return Err(Code::UpstreamFailed);
    };
    // A call that several share is no session's own.
    let key = id.filter(|_| service.share == HubShare::Nobody).map(|id| {
        // The session's own name for the event, so that the service takes it once.
        let session = sender.claims.sid.as_deref().unwrap_or(&sender.claims.sub);
        [session.as_bytes(), b":", id.as_bytes()].concat()
    });
    let message = Message {
        path: &service.path,
        timeout: service.timeout,
        key,
        caller: Some(Rc::clone(&sender.claims)),
        client: sender.client,
        scheme: sender.scheme,
        payload: payload.into_string().into_bytes(),
        answer_bytes_max: service.has_answer.then_some(answer_bytes_max),
    };
    post(gateway, upstream, labels, message).await
}

/// What is sent to a service by POST.
pub(super) struct Message<'a> {
    pub(super) path: &'a str,
    /// Until the end of the answer.
    pub(super) timeout: Duration,
    /// The `Idempotency-Key`.
    pub(super) key: Option<Vec<u8>>,
    /// Whom it is from; the gateway's own are from nobody.
    pub(super) caller: Option<Rc<Claims>>,
    pub(super) client: IpAddr,
    pub(super) scheme: Scheme,
    pub(super) payload: Vec<u8>,
    /// A longer answer is none. Without a bound nobody reads it: its status says all, whatever becomes of its body.
    pub(super) answer_bytes_max: Option<usize>,
}

/// One request to a service, from its head to the end of its answer.
pub(super) async fn post(
    gateway: &Gateway,
    upstream: &Rc<Upstream>,
    labels: &Rc<Labels>,
    message: Message<'_>,
) -> Result<Answered, Code> {
    let began = clock::now();
    let (due, answer_bytes_max) = (began + message.timeout, message.answer_bytes_max);
    let (head, target) = request_head(&message);
    let peer = Peer::new(SocketAddr::new(message.client, 0), message.scheme);
    let mut exchange = Exchange::begin(&gateway.ledger, &peer, None, head, began, false, message.client);
    exchange.routed(labels);
    exchange.kind = SpanKind::Message;
    exchange.caller = message.caller;
    say(&mut exchange);
    let mut body = OwnedBody::new(message.payload, due);
    let call = Call {
        target,
        preserve_host: false,
        response_timeout: message.timeout,
        stream_idle_timeout: message.timeout,
        retries_max: 1,
        retry: RetryRules::new(&[RetryOn::Connect, RetryOn::Reset], None),
        hedge_after: None,
        deadline: Instant::NEVER,
        may_be_shed: false,
        is_last: false,
        drops_trailers: true,
        cancels_on_close: true,
        // The hub's own connections are of nobody who should stay with one instance.
        hash_key: None,
    };
    let sending = send(upstream, &mut exchange, &mut body, &call, due, answer_bytes_max);
    let answered = sending.await;
    let (status, mut shown) = match &answered {
        Ok((head, _)) => (head.status, ResponseHead::new(head.status, Vec::new(), Vec::new())),
        Err(reject) => {
            let (head, _) = exchange.refuse(reject);
            (head.status, head)
        }
    };
    exchange.answered(&mut shown);
    let (answered, cut, body_bytes) = match answered {
        Ok((head, Ok(body))) => {
            let body_bytes = body.len() as u64;
            let body = answer_bytes_max.map(|_| body);
            (Ok(Answered { status, body, retry_after_ms: retry_after_ms(&head) }), None, body_bytes)
        }
        Ok((head, Err(cut))) if answer_bytes_max.is_none() => {
            (Ok(Answered { status, body: None, retry_after_ms: retry_after_ms(&head) }), Some(cut), 0)
        }
        Ok((_, Err(cut))) => {
            let code = if cut == Cut::UpstreamStalled { Code::UpstreamTimeout } else { Code::UpstreamBadResponse };
            (Err(code), Some(cut), 0)
        }
        Err(reject) => (Err(Code::from(reject.code)), None, 0),
    };
    exchange.finish(Sent { body_bytes, request_bytes: body_length(&body), cut });
    answered
}

fn body_length(body: &OwnedBody) -> u64 {
    use crate::net::RequestBody as _;
    body.received_bytes()
}

/// Nobody but the hub waits, and it has a way of its own to say that it does not any more.
struct Hub;

impl Asker for Hub {
    fn has_ended(&self) -> bool {
        false
    }

    fn prepare(&self, _: &mut ResponseHead) -> bool {
        false
    }
}

/// Sends it, and takes the answer's body whole.
async fn send(
    upstream: &Rc<Upstream>,
    exchange: &mut Exchange,
    body: &mut OwnedBody,
    call: &Call,
    due: Instant,
    bytes_max: Option<usize>,
) -> Result<(ResponseHead, Result<Vec<u8>, Cut>), Reject> {
    let (head, trail, _) = exchange.to_send();
    let (answer, streaming) = upstream.send(head, body, call, trail, &Hub).await?;
    let whole = timer::within(due, whole(streaming, body, bytes_max)).await;
    Ok((answer, whole.unwrap_or(Err(Cut::UpstreamStalled))))
}

/// Its body; where nobody reads it, nothing, once it has come as far as a body may that somebody reads.
async fn whole(mut streaming: Streaming, request: &mut OwnedBody, bytes_max: Option<usize>) -> Result<Vec<u8>, Cut> {
    let (mut bytes, mut length) = (Vec::new(), 0_usize);
    poll_fn(|cx| {
        loop {
            match streaming.poll_fill(cx, request) {
                Poll::Ready(Ok(true)) => {
                    let chunk = streaming.chunk();
                    let more = chunk.len();
                    length = length.saturating_add(more);
                    match bytes_max {
                        Some(max) if length > max => return Poll::Ready(Err(Cut::UpstreamMalformed)),
                        Some(_) => bytes.extend_from_slice(chunk),
                        None if length > ANSWER_BYTES_MAX => return Poll::Ready(Ok(())),
                        None => {}
                    }
                    streaming.consume(more);
                }
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(cut)) => return Poll::Ready(Err(cut)),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await?;
    Ok(bytes)
}

/// The request that a message becomes.
fn request_head(message: &Message<'_>) -> (RequestHead, Span) {
    let mut head = RequestHead::unknown();
    head.method = Method::Post;
    head.method_text = head.append(&[b"POST"]);
    let target = head.append(&[message.path.as_bytes()]);
    (head.target, head.path) = (target, target);
    head.framing = Framing::Length(message.payload.len() as u64);
    head.push(Known::ContentType, b"Content-Type", b"application/json");
    if let Some(key) = &message.key {
        head.push(Known::Other, b"Idempotency-Key", key);
    }
    (head, target)
}

/// Adds what services are told of a request.
fn say(exchange: &mut Exchange) {
    let said = RequestContext {
        request_id: exchange.request_id.as_bytes(),
        trace: &exchange.trace,
        continues_trace: false,
        peer: exchange.peer.text(),
        scheme: exchange.peer.scheme,
        is_trusted: false,
        caller: exchange.caller.as_deref(),
        stripped: None,
        forwards_authorization: false,
    };
    fields::of_request(&mut exchange.head, &said, &FieldRules::default());
}

/// What `Retry-After` says in seconds (RFC 9110 §10.2.3); a date is passed over.
fn retry_after_ms(head: &ResponseHead) -> Option<u64> {
    let seconds: u64 = std::str::from_utf8(head.value(Known::RetryAfter)?).ok()?.trim().parse().ok()?;
    seconds.checked_mul(1000)
}

/// What logs and metrics call the messages for each service.
pub(in crate::gateway) fn label_services(plan: &Plan) -> Vec<Rc<Labels>> {
    let of = |service: &Service| {
        let upstream = &plan.upstreams[service.upstream];
        let place = RouteNames::new(&service.name, &upstream.name);
        let names = SpanNames::new(&service.name, &service.path, &upstream.name);
        Rc::new(Labels { place, route_slot: service.slot, upstream_slot: upstream.slot, names })
    };
    plan.hub.posts().map(of).collect()
}

//! The endpoints of accounts on a shard: a request becomes an operation, the bridge carries it out, and its outcome
//! becomes the answer. What operations do is for `accounts`.

use std::{
    future::{Future as _, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use zeroize::Zeroizing;

use super::{Gateway, Live, Page, access::Standing, body::Body, pages::json, router::Captures};
use crate::{
    accounts::{Operation, Outcome, Payload, Question, request},
    auth::{Claims, rbac::Roles},
    bus::desk::PendingAnswer,
    exchange::{ClientNote, Code, Exchange, Reject},
    net::{BodyFailure, RequestBody},
    proto::head::{Framing, Known, ResponseHead, Span},
    shard::{buffers, clock},
    telemetry::spans::SpanKind,
    upstream::Failure,
};

/// What is asked of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccountEndpoint {
    Login,
    Refresh,
    Logout,
    LogoutAll,
    Me,
    Sessions,
    EndSession,
}

impl AccountEndpoint {
    /// Whether it is for callers without a token: to log in is how one gets one.
    pub(super) const fn is_public(self) -> bool {
        matches!(self, Self::Login | Self::Refresh)
    }

    /// Whether it is not begun once its client has left: the client may have gone on elsewhere meanwhile, with what this
    /// would spend or end.
    const fn needs_its_client(self) -> bool {
        matches!(self, Self::Login | Self::Refresh | Self::LogoutAll)
    }

    /// Whether it ends sessions: callers whose session has ended may ask again.
    pub(super) const fn ends(self) -> bool {
        matches!(self, Self::Logout | Self::LogoutAll | Self::EndSession)
    }
}

/// Answers a request about an account.
///
/// Dropping the future withdraws the operation; one that changes something may still be carried out.
pub(super) async fn answer(
    live: &Live,
    gateway: &Gateway,
    exchange: &Exchange,
    endpoint: AccountEndpoint,
    standing: Standing,
    captures: &Captures,
    body: &mut impl RequestBody,
) -> Result<(ResponseHead, Body), Reject> {
    let plan = &live.plan;
    let operation = match endpoint {
        AccountEndpoint::Me => {
            let document = me(caller(exchange)?, &plan.roles).to_string().into_bytes();
            return Ok(json(&Page { status: 200, body: document }));
        }
        AccountEndpoint::Login => {
            let bytes = read_body(exchange, body, BODY_BYTES_MAX).await?;
            request::login(exchange.head.value(Known::ContentType), &bytes, note(exchange))?
        }
        AccountEndpoint::Refresh => {
            let bytes = read_body(exchange, body, BODY_BYTES_MAX).await?;
            request::refresh(exchange.head.value(Known::ContentType), &bytes, note(exchange))?
        }
        AccountEndpoint::Logout | AccountEndpoint::LogoutAll | AccountEndpoint::EndSession
            if standing == Standing::Ended =>
        {
            let sid = match endpoint {
                AccountEndpoint::EndSession => Some(named_session(exchange, captures)),
                _ => None,
            };
            end_again(endpoint, own(caller(exchange)?)?, sid)?
        }
        AccountEndpoint::Logout => {
            let claims = own(caller(exchange)?)?;
            let Some(sid) = &claims.sid else { return Err(no_session()) };
            Operation::Logout { user: claims.sub.to_string(), sid: sid.to_string() }
        }
        AccountEndpoint::LogoutAll => Operation::LogoutAll { user: own(caller(exchange)?)?.sub.to_string() },
        AccountEndpoint::Sessions => {
            let claims = own(caller(exchange)?)?;
            Operation::Sessions { user: claims.sub.to_string(), current: claims.sid.as_deref().map(str::to_owned) }
        }
        AccountEndpoint::EndSession => {
            let claims = own(caller(exchange)?)?;
            request::end_session(&claims.sub, named_session(exchange, captures))?
        }
    };
    // Before the look: whatever happens between the two, the client is not said to have been seen later than it was.
    let came = clock::turn();
    if plan.cancels_on_close && endpoint.needs_its_client() && poll_fn(|cx| Poll::Ready(body.has_client_left(cx))).await
    {
        // What it had sent was found only now, as this shard did not run.
        return Err(Reject::new(Code::ClientClosed));
    }
    let desk = &gateway.desks.accounts;
    let asked = desk
        .ask(Question { operation, came })
        .map_err(|busy| Reject { cause: Some(Box::new(busy)), ..Reject::new(Code::Overloaded) })?;
    let outcome = outcome(asked, body, plan.cancels_on_close).await;
    exchange.tell_part(SpanKind::Account, came, outcome.is_err());
    match outcome? {
        Outcome::Done { status, body } => Ok(done(status, &body)),
        Outcome::Refused { code, retry_after_s } => Err(Reject { retry_after_s, ..Reject::new(code) }),
    }
}

/// Ends all sessions of a user: somebody who may has thrown the user out.
pub(super) async fn end_all(gateway: &Gateway, user: &str) -> Result<(), Reject> {
    carry_out(gateway, Operation::LogoutAll { user: user.to_owned() }).await
}

/// Closes what a user has open, on all instances.
pub(super) async fn kick(gateway: &Gateway, user: &str, by: &str) -> Result<(), Reject> {
    carry_out(gateway, Operation::Kick { user: user.to_owned(), by: by.to_owned() }).await
}

async fn carry_out(gateway: &Gateway, operation: Operation) -> Result<(), Reject> {
    let asked = gateway.desks.accounts.ask(Question { operation, came: clock::turn() });
    match asked.map_err(|_| Reject::new(Code::Overloaded))?.await {
        Outcome::Done { .. } => Ok(()),
        Outcome::Refused { code, retry_after_s } => Err(Reject { retry_after_s, ..Reject::new(code) }),
    }
}

/// The session that the path names.
fn named_session<'a>(exchange: &'a Exchange, captures: &Captures) -> &'a [u8] {
    let (path, sid) = (exchange.head.path, captures.nth(0));
    Span { start: path.start + sid.start, end: path.start + sid.end }.of(&exchange.head.bytes)
}

/// What a token that is revoked may ask for: that the end which revoked it is done. Of another session it ends nothing.
fn end_again(endpoint: AccountEndpoint, claims: &Claims, named: Option<&[u8]>) -> Result<Operation, Reject> {
    let sid = claims.sid.as_deref();
    if sid.is_none() || named.is_some_and(|named| Some(named) != sid.map(str::as_bytes)) {
        return Err(Reject::new(Code::TokenRevoked));
    }
    let sid = sid.filter(|_| endpoint != AccountEndpoint::LogoutAll).map(str::to_owned);
    Ok(Operation::EndAgain { user: claims.sub.to_string(), sid, began_ms: claims.began_ms() })
}

fn caller(exchange: &Exchange) -> Result<&Claims, Reject> {
    exchange.caller.as_deref().ok_or_else(|| Reject::new(Code::TokenMissing))
}

/// Sessions are those of our own users: whoever comes with another issuer's token has none here.
fn own(claims: &Claims) -> Result<&Claims, Reject> {
    match claims.origin {
        crate::auth::Origin::Own => Ok(claims),
        crate::auth::Origin::Foreign => Err(no_session()),
    }
}

fn no_session() -> Reject {
    Reject::because(Code::Forbidden, "the token belongs to no session of this gateway")
}

fn note(exchange: &Exchange) -> ClientNote {
    ClientNote::new(exchange.head.value(Known::UserAgent).unwrap_or_default(), exchange.client)
}

/// Who calls, as the token says, and all that it may do.
fn me(claims: &Claims, roles: &Roles) -> serde_json::Value {
    serde_json::json!({ "user": Payload(claims), "permissions": roles.granted(claims) })
}

/// Bytes of a body with an account's data.
const BODY_BYTES_MAX: u64 = request::BODY_BYTES_MAX as u64;

/// How long a body may take: it is one packet or two.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// The body, whole: it is small and soon here, or refused.
pub(super) async fn read_body(
    exchange: &Exchange,
    body: &mut impl RequestBody,
    bytes_max: u64,
) -> Result<Zeroizing<Vec<u8>>, Reject> {
    if let Framing::Length(bytes) = exchange.head.framing
        && bytes > bytes_max
    {
        return Err(Reject::new(Code::BodyTooLarge));
    }
    body.set_bytes_max(bytes_max);
    body.set_due(body.due().min(exchange.began + BODY_TIME_MAX));
    let mut bytes = Zeroizing::new(Vec::new());
    body.wait_until_due();
    poll_fn(|cx| {
        loop {
            match body.poll_fill(cx) {
                Poll::Ready(Ok(true)) => {
                    bytes.extend_from_slice(body.chunk());
                    body.consume(usize::MAX);
                }
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Pending => return body.deadline().poll(cx).map(|()| Err(BodyFailure::TimedOut)),
            }
        }
    })
    .await
    .map_err(|failure| Reject::from(Failure::Request(failure)))?;
    Ok(bytes)
}

/// The outcome, unless the client leaves before, where that matters.
async fn outcome(
    mut asked: PendingAnswer<Question, Outcome>,
    body: &mut impl RequestBody,
    cancels_on_close: bool,
) -> Result<Outcome, Reject> {
    // A short body that no endpoint reads is read over: behind it one sees whether the client is still there.
    let mut reads_over = body.is_short();
    poll_fn(|cx: &mut Context<'_>| {
        while reads_over && !body.is_done() {
            match body.poll_fill(cx) {
                Poll::Ready(Ok(_)) => body.consume(usize::MAX),
                Poll::Ready(Err(BodyFailure::ClientGone)) => {
                    return Poll::Ready(Err(Reject::new(Code::ClientClosed)));
                }
                // What is asked needs no body, so what is wrong with it is for whoever reads the next request.
                Poll::Ready(Err(_)) => reads_over = false,
                Poll::Pending => break,
            }
        }
        if cancels_on_close && body.is_done() && body.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Reject::new(Code::ClientClosed)));
        }
        if let Poll::Ready(outcome) = Pin::new(&mut asked).poll(cx) {
            return Poll::Ready(Ok(outcome));
        }
        if asked.is_doubted() {
            if cancels_on_close && body.has_client_left(cx) {
                return Poll::Ready(Err(Reject::new(Code::ClientClosed)));
            }
            asked.confirm();
        }
        Poll::Pending
    })
    .await
}

/// The answer to what was done. It may hold tokens: nobody on the way keeps it (RFC 6749 §5.1).
fn done(status: u16, document: &[u8]) -> (ResponseHead, Body) {
    if document.is_empty() {
        let mut head = ResponseHead::new(status, buffers::take(), buffers::take_fields());
        head.push(Known::Other, b"Cache-Control", b"no-store");
        return (head, Body::Own(Vec::new().into()));
    }
    json(&Page { status, body: document.to_vec() })
}

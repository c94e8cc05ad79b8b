//! The opening of a socket: whether its handshake is in order, whether its page may, and who it speaks for.

use std::rc::Rc;

use super::socket::Opening;
use crate::{
    auth::Claims,
    exchange::{Code, Exchange, OpenSocket, Reject, Tether},
    gateway::{Gateway, access::bearer, body::Body, cors, live::Live, token_query},
    hub::{Identity, code::Close},
    proto::{
        head::{Known, RequestHead, ResponseHead, Span},
        websocket::{DeflateOffer, Handshake, HandshakeError},
    },
    shard::buffers,
};

/// The subprotocol that the hub speaks.
const PROTOCOL: &str = "shardgate.v1";

/// Who a socket speaks for from now on.
pub(super) struct LoggedIn {
    pub(super) identity: Identity,
    pub(super) claims: Rc<Claims>,
    /// None where its session has none that could end.
    pub(super) tether: Option<Tether>,
}

/// A request for a socket that is in order, whose page may, and of which it is known who it speaks for.
pub(in crate::gateway) struct Opener {
    handshake: Handshake,
    deflate: Option<DeflateOffer>,
    entrance: Result<Option<LoggedIn>, Close>,
}

impl Opener {
    /// Reads a request for a socket: the exchange has its caller from then on, if that is known already. Or it is refused.
    pub(in crate::gateway) fn admit(live: &Live, gateway: &Gateway, exchange: &mut Exchange) -> Result<Self, Reject> {
        let handshake = Handshake::read(&exchange.head, PROTOCOL).map_err(refused)?;
        admit_origin(live, &exchange.head)?;
        if !live.plan.hub.opens_without_bus && !gateway.sockets.has_bus() {
            return Err(Reject::because(
                Code::DependencyUnavailable,
                "the bus between instances is away; try again shortly, perhaps at another instance",
            ));
        }
        let entrance = who(live, gateway, exchange, handshake.bearer)?;
        Ok(Self { deflate: handshake.deflate.filter(|_| live.plan.hub.deflates), handshake, entrance })
    }

    /// Answers it: it is a socket from then on.
    pub(in crate::gateway) fn open(self, gateway: &Gateway, exchange: &Exchange) -> (ResponseHead, Body) {
        let Self { handshake, deflate, entrance } = self;
        let mut head = ResponseHead::new(101, buffers::take(), buffers::take_fields());
        handshake.answer(&mut head, handshake.speaks.then_some(PROTOCOL), deflate);
        let opening = Opening {
            sockets: Rc::clone(&gateway.sockets),
            entrance,
            head: Vec::new(),
            client: exchange.client,
            scheme: exchange.peer.scheme,
            opened: OpenSocket::of(exchange),
            deflate,
        };
        (head, Body::Upgraded(Box::new(opening)))
    }
}

pub(in crate::gateway) fn refused(error: HandshakeError) -> Reject {
    let code = match error {
        HandshakeError::NotAsked | HandshakeError::Version => Code::UpgradeRequired,
        HandshakeError::Method => Code::MethodNotAllowed,
        _ => Code::BadRequest,
    };
    let allow = (code == Code::MethodNotAllowed).then(|| "GET".to_owned());
    Reject { allow, ..Reject::caused(code, error) }
}

/// A page may open sockets if it may read answers, or if it came from this host itself. Who sends no `Origin` is no browser.
fn admit_origin(live: &Live, head: &RequestHead) -> Result<(), Reject> {
    if head.value(Known::Origin).is_none() {
        return Ok(());
    }
    // Whoever says it twice is of none.
    let origin = cors::origin_of(head).map_or(&b""[..], |origin| head.text(origin));
    if live.plan.cors.as_deref().is_some_and(|cors| cors.allows(origin)) {
        return Ok(());
    }
    let host = origin.splitn(2, |byte| *byte == b':').nth(1).and_then(|rest| rest.strip_prefix(b"//"));
    if host.is_some_and(|host| host.eq_ignore_ascii_case(head.text(head.authority))) {
        return Ok(());
    }
    Err(Reject::because(Code::Forbidden, "pages of this origin may not open sockets here (cors.origins)"))
}

/// Who the socket speaks for. A token that is not good is refused where whoever sent it can see that: not in a browser, which
/// sends it as a subprotocol, and is told by a close code.
fn who(
    live: &Live,
    gateway: &Gateway,
    exchange: &mut Exchange,
    offered: Option<Span>,
) -> Result<Result<Option<LoggedIn>, Close>, Reject> {
    let in_query = match live.plan.hub.token_query.as_deref() {
        Some(name) => token_query::take(&mut exchange.head, name)?,
        None => None,
    };
    let head = &exchange.head;
    let (token, is_of_browser) = match (head.value(Known::Authorization), in_query, offered) {
        (None, None, None) => return Ok(Ok(None)),
        (Some(_), None, None) => (bearer(head)?, false),
        (None, Some(span), None) => (head.text(span), false),
        (None, None, Some(span)) => (head.text(span), true),
        _ => return Err(Reject::because(Code::BadRequest, "there is more than one token")),
    };
    // Keys that a token names and nobody knows are fetched, whichever way it came.
    let checked = gateway.identity.check(token, &live.plan).inspect_err(|_| gateway.ask_for_keys());
    if let Some(span) = in_query {
        token_query::wipe(&mut exchange.head, span);
    }
    match checked {
        Ok(claims) => {
            exchange.caller = Some(Rc::clone(&claims));
            let tether = exchange.tie_what_follows(gateway.identity.tethers());
            Ok(Ok(Some(LoggedIn { identity: gateway.sockets.identity(live, &claims), claims, tether })))
        }
        Err(reject) if is_of_browser && reject.code.status() == 401 => Ok(Err(match reject.code {
            Code::TokenExpired => Close::TokenExpired,
            Code::TokenRevoked => Close::Revoked,
            _ => Close::Unauthenticated,
        })),
        Err(reject) => Err(reject),
    }
}

//! What services and operators ask of the hub over HTTP: a message for a room or a user, a kick, a look.

use std::{rc::Rc, sync::Arc};

use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::Sockets;
use crate::{
    accounts::request::is_json,
    auth::Claims,
    exchange::{Code, Exchange, Reject},
    gateway::{
        Gateway, Page,
        account::{self, read_body},
        body::Body,
        live::Live,
        pages,
        router::Captures,
    },
    hub::{
        Answer, ServiceMessage,
        code::Code as HubCode,
        is_too_deep,
        name::RoomName,
        position::Epoch,
        rules::{may_push, may_push_to_users},
    },
    net::RequestBody,
    proto::head::{Known, ResponseHead, Span},
};

/// What is asked of the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum HubEndpoint {
    Publish,
    PublishToUser,
    Kick,
    Look,
}

/// What a service publishes, as it stands in the request's body.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published<'a> {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(default)]
    id: Option<String>,
}

impl Published<'_> {
    fn message<'m>(&'m self, claims: &'m Claims) -> ServiceMessage<'m> {
        let kind = self.kind.as_deref().unwrap_or(ROOM_MESSAGE);
        ServiceMessage { sub: &claims.sub, kind, id: self.id.as_deref(), payload: self.payload.get() }
    }
}

/// What a message is where its `type` is left out.
const ROOM_MESSAGE: &str = "room_message";

/// Answers a request of the hub's.
pub(in crate::gateway) async fn answer(
    live: &Live,
    gateway: &Gateway,
    exchange: &mut Exchange,
    endpoint: HubEndpoint,
    captures: &Captures,
    body: &mut impl RequestBody,
) -> Result<(ResponseHead, Body), Reject> {
    let claims = exchange.caller.clone().ok_or_else(|| Reject::new(Code::TokenMissing))?;
    let named = named(exchange, captures).to_owned();
    match endpoint {
        HubEndpoint::Look => {
            need(live, &claims, "hub:read")?;
            look(gateway, room(&named)?).await
        }
        HubEndpoint::Publish => {
            let room = room(&named)?;
            if !may_publish(live, &claims, |granted| may_push(granted, room.as_str())) {
                return Err(lacks("hub:publish"));
            }
            let bytes = read(live, exchange, body).await?;
            publish(gateway, room, &parse(live, &bytes)?.message(&claims)).await
        }
        HubEndpoint::PublishToUser => {
            if !may_publish(live, &claims, |granted| may_push_to_users(granted)) {
                return Err(lacks("hub:publish"));
            }
            let user = user(&named)?;
            let bytes = read(live, exchange, body).await?;
            publish_to_user(live, gateway, &user, &parse(live, &bytes)?.message(&claims)).await
        }
        HubEndpoint::Kick => {
            need(live, &claims, "hub:admin")?;
            let user = user(&named)?;
            kick(gateway, &user, &claims.sub, revokes(exchange)?).await
        }
    }
}

async fn look(gateway: &Gateway, room: RoomName) -> Result<(ResponseHead, Body), Reject> {
    let asked = room.clone();
    match gateway.sockets.ask(|hub, now, asker| hub.look_for(now, asker, asked)).await {
        Answer::Room(seen) => {
            let epoch = (seen.position.epoch != Epoch::NONE).then(|| seen.position.epoch.to_string());
            Ok(document(
                200,
                &json!({
                    "room": room.as_str(), "members": seen.members, "connections": seen.connections,
                    "seq": seen.position.seq, "epoch": epoch,
                }),
            ))
        }
        other => Err(unanswered(other)),
    }
}

async fn publish(
    gateway: &Gateway,
    room: RoomName,
    message: &ServiceMessage<'_>,
) -> Result<(ResponseHead, Body), Reject> {
    let asked = room.clone();
    match gateway.sockets.ask(|hub, now, asker| hub.publish_for(now, asker, asked, message)).await {
        Answer::Published(position) => Ok(document(
            202,
            &json!({
                "room": room.as_str(), "seq": position.seq, "epoch": position.epoch.to_string(),
            }),
        )),
        other => Err(unanswered(other)),
    }
}

async fn publish_to_user(
    live: &Live,
    gateway: &Gateway,
    user: &Arc<str>,
    message: &ServiceMessage<'_>,
) -> Result<(ResponseHead, Body), Reject> {
    match gateway.sockets.ask(|hub, now, asker| hub.publish_to_user_for(now, asker, user, message)).await {
        // It was told here; with its id it may be said again.
        Answer::Sockets { others: None, .. } if !live.plan.hub.opens_without_bus => {
            Err(Reject::new(Code::DependencyUnavailable))
        }
        // A shard had no room for it.
        Answer::Sockets { asked, answered, .. } if answered < asked => Err(Reject::new(Code::Overloaded)),
        Answer::Sockets { count, .. } => Ok(document(202, &json!({ "connections": count }))),
        other => Err(unanswered(other)),
    }
}

/// Closes the user's sockets, and ends the sessions if that is asked for.
async fn kick(gateway: &Gateway, user: &Arc<str>, by: &str, revokes: bool) -> Result<(ResponseHead, Body), Reject> {
    // First, so that they are counted.
    let kicked = close_all(&gateway.sockets, user).await;
    if revokes {
        account::end_all(gateway, user).await.map_err(without_accounts)?;
    } else if gateway.sockets.spans_instances() {
        // Those that could not be asked hear it from the log of revocations, which only accounts have.
        match account::kick(gateway, user, by).await {
            Err(reject) if reject.code == Code::NotFound => {}
            Err(_) if kicked.as_ref().is_ok_and(Kicked::is_whole) => {}
            told => told?,
        }
    }
    kicked.map(|kicked| kicked.document())
}

/// What came of a kick. The instance that answers has asked itself.
struct Kicked {
    closed: u32,
    asked: u32,
    answered: u32,
}

impl Kicked {
    const fn is_whole(&self) -> bool {
        self.asked == self.answered
    }

    fn document(&self) -> (ResponseHead, Body) {
        let Self { closed, asked, answered } = self;
        document(200, &json!({ "closed": closed, "instancesAsked": asked, "instancesAnswered": answered }))
    }
}

/// Closes the user's sockets, on all instances.
async fn close_all(sockets: &Rc<Sockets>, user: &Arc<str>) -> Result<Kicked, Reject> {
    match sockets.ask(|hub, now, asker| hub.kick_for(now, asker, user)).await {
        Answer::Sockets { count, asked, answered, others: Some(others) } => Ok(Kicked {
            closed: count,
            asked: others.asked.saturating_add(1),
            answered: others.answered.saturating_add(u32::from(asked == answered)),
        }),
        // Whoever is here is closed; of the others nobody knows how many there are.
        Answer::Sockets { others: None, .. } => Err(Reject::new(Code::DependencyUnavailable)),
        other => Err(unanswered(other)),
    }
}

fn document(status: u16, document: &serde_json::Value) -> (ResponseHead, Body) {
    pages::json(&Page { status, body: document.to_string().into_bytes() })
}

/// The room or the user that the path names.
fn named<'e>(exchange: &'e Exchange, captures: &Captures) -> &'e [u8] {
    let (path, named) = (exchange.head.path, captures.nth(0));
    Span { start: path.start + named.start, end: path.start + named.end }.of(&exchange.head.bytes)
}

fn room(named: &[u8]) -> Result<RoomName, Reject> {
    let room = std::str::from_utf8(named).ok().and_then(RoomName::parse);
    room.ok_or_else(|| Reject::because(Code::ValidationFailed, HubCode::InvalidRoom.sentence()))
}

/// A user's id is whatever an issuer has made it: in a path it is percent-encoded.
fn user(named: &[u8]) -> Result<Arc<str>, Reject> {
    let text = percent_decoded(named).and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.filter(|text| (1..=255).contains(&text.len()));
    text.map(Arc::from)
        .ok_or_else(|| Reject::because(Code::ValidationFailed, "a user's id is a text of 1 to 255 bytes"))
}

/// RFC 3986 §2.1. The path is in normal form: what follows a `%` is two hexadecimal digits.
fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            decoded.push(byte);
            rest = after;
            continue;
        }
        let (digits, after) = after.split_first_chunk::<2>()?;
        decoded.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    Some(decoded)
}

fn need(live: &Live, claims: &Claims, permission: &'static str) -> Result<(), Reject> {
    if live.plan.roles.permit(claims, permission) { Ok(()) } else { Err(lacks(permission)) }
}

/// Whether a caller may publish everywhere, or where these grants say.
fn may_publish(live: &Live, claims: &Claims, may_push: impl FnOnce(Vec<&str>) -> bool) -> bool {
    live.plan.roles.permit(claims, "hub:publish") || may_push(live.plan.roles.granted(claims))
}

fn lacks(permission: &str) -> Reject {
    Reject::caused(Code::Forbidden, format!("the caller lacks the permission {permission}"))
}

/// `?revoke=true`.
fn revokes(exchange: &Exchange) -> Result<bool, Reject> {
    match exchange.head.query.map(|query| exchange.head.text(query)) {
        None | Some(b"" | b"revoke=false") => Ok(false),
        Some(b"revoke=true") => Ok(true),
        Some(_) => Err(Reject::because(Code::ValidationFailed, "the query is revoke=true, revoke=false or nothing")),
    }
}

/// Sessions end where accounts are kept.
fn without_accounts(reject: Reject) -> Reject {
    match reject.code {
        Code::NotFound => Reject::because(
            Code::NotFound,
            "the sockets are closed; there are no accounts here whose sessions could end",
        ),
        _ => reject,
    }
}

/// The body, as large as a message may be and some around it.
async fn read(live: &Live, exchange: &Exchange, body: &mut impl RequestBody) -> Result<Vec<u8>, Reject> {
    const AROUND: u64 = 1024;
    let bytes_max = live.plan.hub.message_bytes_max() + AROUND;
    let is_json = exchange.head.value(Known::ContentType).is_some_and(is_json);
    if !is_json {
        return Err(Reject::new(Code::UnsupportedMediaType));
    }
    let read = read_body(exchange, body, bytes_max).await.map_err(|reject| match reject.code {
        Code::BodyTooLarge => {
            Reject::because(Code::BodyTooLarge, "the body is longer than hub.message_bytes_max allows")
        }
        _ => reject,
    });
    Ok(read?.to_vec())
}

fn parse<'b>(live: &Live, bytes: &'b [u8]) -> Result<Published<'b>, Reject> {
    let published: Published<'_> = serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            Reject::because(Code::ValidationFailed, "the document has payload, and may have type and id; nothing else")
        }
        _ => Reject::new(Code::InvalidJson),
    })?;
    if published.kind.as_deref().is_some_and(|kind| kind != ROOM_MESSAGE && !live.plan.hub.is_pushable(kind)) {
        return Err(Reject::because(
            Code::ValidationFailed,
            "services push types of their own: not the hub's, nor those of messages for services and of their answers",
        ));
    }
    if is_too_deep(published.payload.get()) {
        return Err(Reject::because(Code::ValidationFailed, "the payload is nested deeper than 100 levels"));
    }
    if published.id.as_deref().is_some_and(|id| !(1..=64).contains(&id.chars().count())) {
        return Err(Reject::because(Code::ValidationFailed, "an id is a text of 1 to 64 characters"));
    }
    Ok(published)
}

/// There is no answer.
fn unanswered(answer: Answer) -> Reject {
    match answer {
        Answer::Refused(HubCode::Draining) => Reject::new(Code::Draining),
        Answer::Refused(HubCode::DependencyUnavailable | HubCode::Timeout) => Reject::new(Code::DependencyUnavailable),
        _ => Reject::new(Code::Overloaded),
    }
}

//! The hub as it is configured, for programs: an `AsyncAPI` 3 document of its one channel, with every message both ways.
//!
//! It is written from the hub's side: what clients send is *received*. `docs/websocket.md` is the same for people, and
//! `hub/` is what does it.

use serde_json::{Map, Value, json};

use crate::{
    config::{HUB_TYPES, Hub, HubRoom, HubService, HubShare, written_duration},
    hub::{
        code::{Close, Code},
        limits::ID_CHARACTERS_MAX,
    },
};

/// The document of this hub, behind a listener on this port. Without a hub it has no channel.
pub fn document(hub: &Hub, port: u16) -> Value {
    let mut document = json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Shardgate's WebSocket hub",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Rooms, users and services over one socket, as the gateway is configured now.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "defaultContentType": "application/json",
    });
    if hub.enabled {
        let parts = Messages::of(hub);
        document["servers"] = servers(hub, port);
        document["channels"] = json!({"hub": channel(hub, &parts)});
        document["operations"] = parts.operations.into();
        document["components"] =
            json!({"messages": parts.all, "schemas": schemas(hub), "securitySchemes": security_schemes(hub)});
    }
    document
}

fn servers(hub: &Hub, port: u16) -> Value {
    let schemes: Vec<Value> = security_schemes(hub).keys().map(|name| reference("securitySchemes", name)).collect();
    json!({"gateway": {
        "host": "{host}",
        "pathname": "/ws",
        "protocol": "ws",
        "description": "`wss` behind whatever ends TLS.",
        "variables": {"host": {"default": format!("localhost:{port}"), "description": "Where clients find the gateway."}},
        "security": schemes,
    }})
}

fn security_schemes(hub: &Hub) -> Map<String, Value> {
    let mut schemes = Map::new();
    let about = "An access token in `Authorization`; browsers offer the subprotocols `shardgate.v1` and `bearer.<token>` \
                 instead, and others may send `auth` as their first message.";
    schemes.insert(
        "bearer".to_owned(),
        json!({"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": about}),
    );
    if let Some(name) = &hub.token_query {
        schemes.insert("query".to_owned(), json!({"type": "httpApiKey", "name": name, "in": "query"}));
    }
    schemes
}

fn channel(hub: &Hub, messages: &Messages) -> Value {
    let names: Map<String, Value> =
        messages.all.keys().map(|name| (name.clone(), reference("messages", name))).collect();
    let close =
        |close: &Close| json!({"code": close.code(), "reason": close.reason(), "comeBack": close.is_to_reconnect()});
    json!({
        "address": "/ws",
        "title": "The hub",
        "description": "Text frames, one JSON object each.",
        "messages": names,
        "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
        "x-rooms": hub.rooms.iter().map(room).collect::<Vec<_>>(),
        "x-limits": {
            "messageBytesMax": hub.message_bytes_max,
            "messagesPerSecond": hub.messages_per_s,
            "roomsPerSocketMax": hub.rooms_per_socket_max,
            "socketsPerUserMax": hub.sockets_per_user_max,
            "historyMessages": hub.history_messages,
            "historyAgeMs": millis(hub.history_age),
            "dedupWindowMs": millis(hub.dedup_window),
        },
        "x-close-codes": Close::ALL.iter().map(close).collect::<Vec<_>>(),
    })
}

fn room(room: &HubRoom) -> Value {
    json!({
        "pattern": room.pattern, "roles": room.roles, "permissions": room.permissions,
        "join": room.join, "publish": room.publish, "presence": room.presence,
        "presenceEvents": room.presence_events, "slowConsumer": room.slow_consumer.name(),
    })
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A reference to a part of the components.
fn reference(part: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{part}/{name}")})
}

/// Every message, by `client.<type>` or `hub.<type>`, and what is done with it.
struct Messages {
    all: Map<String, Value>,
    operations: Map<String, Value>,
}

impl Messages {
    fn of(hub: &Hub) -> Self {
        let mut messages = Self { all: Map::new(), operations: Map::new() };
        messages.answers(hub.ping_interval);
        messages.tells(hub);
        messages.client_asks(hub.ping_interval);
        for service in &hub.services {
            messages.service(service);
        }
        messages
    }

    /// A message that the hub sends, with an example.
    fn says(&mut self, summary: &str, members: &[(&str, Value)], required: &[&str], example: &Value) -> String {
        self.add("hub", summary, members, required, example)
    }

    /// A message that the hub takes, with an example, and what it may answer.
    fn asks(&mut self, summary: &str, members: &[(&str, Value)], required: &[&str], example: &Value, answers: &[&str]) {
        let name = self.add("client", summary, members, required, example);
        let of_channel = |name: &str| json!({"$ref": format!("#/channels/hub/messages/{name}")});
        let answers: Vec<Value> = answers.iter().chain(&["hub.error"]).map(|answer| of_channel(answer)).collect();
        let operation = json!({
            "action": "receive",
            "channel": {"$ref": "#/channels/hub"},
            "summary": summary,
            "messages": [of_channel(&name)],
            "reply": {"channel": {"$ref": "#/channels/hub"}, "messages": answers},
        });
        self.operations.insert(name, operation);
    }

    /// What the hub sends without being asked.
    fn unasked(&mut self, summary: &str, members: &[(&str, Value)], required: &[&str], example: &Value) {
        let name = self.says(summary, members, required, example);
        let operation = json!({
            "action": "send",
            "channel": {"$ref": "#/channels/hub"},
            "summary": summary,
            "messages": [{"$ref": format!("#/channels/hub/messages/{name}")}],
        });
        self.operations.insert(name, operation);
    }

    fn add(
        &mut self,
        side: &str,
        summary: &str,
        members: &[(&str, Value)],
        required: &[&str],
        example: &Value,
    ) -> String {
        let own = example["type"].as_str().unwrap_or_default();
        // Services name the types of what they push themselves.
        let (side, kind) =
            if members.iter().any(|(name, _)| *name == "type") { ("service", "message") } else { (side, own) };
        let mut properties: Map<String, Value> = Map::new();
        properties.insert("type".to_owned(), json!({"const": own}));
        properties.extend(members.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())));
        let required: Vec<&str> = ["type"].into_iter().chain(required.iter().copied()).collect();
        let mut message = json!({
            "name": kind,
            "title": kind,
            "summary": summary,
            "payload": {"type": "object", "required": required, "properties": properties},
            "examples": [{"payload": example}],
        });
        if properties.contains_key("id") {
            message["correlationId"] = json!({"location": "$message.payload#/id"});
        }
        let name = format!("{side}.{kind}");
        self.all.insert(name.clone(), message);
        name
    }

    /// What the hub says to one socket, about itself or as an answer.
    fn answers(&mut self, ping_interval: std::time::Duration) {
        let (id, room, time) = (of("id"), of("room"), of("timestamp"));
        let position = [("seq", of("seq")), ("epoch", of("epoch"))];
        let in_room = [&[("room", room.clone())], &position[..]].concat();
        let answers = [("id", id.clone()), ("timestamp", time.clone())];
        let whose = [("userId", text()), ("sessionId", text()), ("timestamp", time.clone())];
        let none = || object(&[], &[]);

        let welcome = object(
            &[("connectionId", text()), ("heartbeatMs", number()), ("serverTime", time.clone()), ("node", text())],
            &["connectionId", "heartbeatMs", "serverTime", "node"],
        );
        let heartbeat_ms = millis(ping_interval);
        self.unasked(
            "The socket is logged in.",
            &with(&whose, welcome),
            &["payload", "userId"],
            &json!({
                "type": "welcome",
                "payload": {"connectionId": "c_1", "heartbeatMs": heartbeat_ms, "serverTime": TIME, "node": "n1"},
                "userId": "42", "sessionId": "s_9f", "timestamp": TIME,
            }),
        );
        let expires = object(&[("expiresAt", time.clone())], &["expiresAt"]);
        let auth_ok = with(&[&whose[..], &[("id", id.clone())]].concat(), expires);
        self.says("The token counts from now on.", &auth_ok, &["payload", "userId"], &json!({
            "type": "auth_ok", "id": "1", "payload": {"expiresAt": TIME}, "userId": "42", "sessionId": "s_9f", "timestamp": TIME,
        }));
        let heartbeat = json!({"type": "heartbeat", "payload": {}, "timestamp": TIME});
        self.says("The hub is there.", &with(&answers, none()), &["payload"], &heartbeat);
        let message = room_message();
        let joined = object(
            &[
                ("members", number()),
                ("recovered", json!({"type": "boolean"})),
                ("messages", json!({"type": "array", "items": {"type": "object"}})),
            ],
            &["members"],
        );
        let members = with(&[&in_room[..], &answers].concat(), joined);
        self.says(
            "The room is joined; what follows comes after this position.",
            &members,
            &["room", "seq", "epoch", "payload"],
            &json!({
                "type": "joined", "id": "2", "room": "public.sale", "epoch": "k3", "seq": 20,
                "payload": {"members": 12, "recovered": true, "messages": [message]}, "timestamp": TIME,
            }),
        );
        let left = with(&[&answers[..], &[("room", room.clone())]].concat(), none());
        let example = json!({"type": "left", "id": "3", "room": "public.sale", "payload": {}});
        self.says("The room is left.", &left, &["room", "payload"], &example);
        let status = object(&[("status", number())], &[]);
        let ack = with(&[&in_room[..], &answers].concat(), status);
        let example = json!({"type": "ack", "id": "4", "room": "public.sale", "seq": 20, "epoch": "k3", "payload": {}});
        self.says("The message has its number, or the service has accepted it.", &ack, &["payload"], &example);
        let user = object(&[("userId", text()), ("connections", number())], &["userId", "connections"]);
        let users =
            object(&[("users", json!({"type": "array", "items": user})), ("total", number())], &["users", "total"]);
        let presence = with(&[&answers[..], &[("room", room.clone())]].concat(), users);
        self.says(
            "Who is in the room.",
            &presence,
            &["room", "payload"],
            &json!({
                "type": "presence", "id": "5", "room": "public.sale",
                "payload": {"users": [{"userId": "42", "connections": 2}], "total": 1},
            }),
        );
        let error = with(&[("id", id), ("room", room.clone())], of("error"));
        self.says("A message was refused.", &error, &["payload"], &json!({
            "type": "error", "id": "7",
            "payload": {"code": "rate_limited", "message": Code::RateLimited.sentence(), "retryable": true, "retryAfterMs": 500},
        }));
    }

    /// What the hub tells without being asked.
    fn tells(&mut self, hub: &Hub) {
        let (room, time) = (of("room"), of("timestamp"));
        let in_room = [("room", room.clone()), ("seq", of("seq")), ("epoch", of("epoch"))];
        let whose = [("userId", text()), ("sessionId", text()), ("timestamp", time.clone())];
        let message = room_message();
        let of_room = with(&[&in_room[..], &whose].concat(), of("any"));
        let required = ["room", "seq", "epoch", "userId", "payload"];
        self.unasked("A member's message, to every member of its room.", &of_room, &required, &message);
        let pushed = with(&[&in_room[..], &[("type", of("serviceType")), ("timestamp", time)]].concat(), of("any"));
        let example =
            json!({"type": "price", "room": "public.sale", "seq": 21, "epoch": "k3", "payload": 9, "timestamp": TIME});
        self.unasked("A service's message, to a room or to a user.", &pushed, &["payload"], &example);
        if hub.rooms.iter().any(|room| room.presence_events) {
            let event =
                object(&[("event", json!({"enum": ["join", "leave"]})), ("userId", text())], &["event", "userId"]);
            let members = with(&[("room", room.clone())], event);
            let example =
                json!({"type": "presence_event", "room": "public.sale", "payload": {"event": "join", "userId": "42"}});
            self.unasked("A user came or went.", &members, &["room", "payload"], &example);
        }
        let gap = with(
            &[("room", room), ("epoch", of("epoch"))],
            object(&[("from", of("seq")), ("to", of("seq"))], &["from", "to"]),
        );
        let example = json!({"type": "gap", "room": "public.sale", "epoch": "k3", "payload": {"from": 21, "to": 30}});
        self.unasked("These messages were dropped for this socket.", &gap, &["room", "epoch", "payload"], &example);
        let lost = with(&in_room, object(&[("continuity", json!({"const": false}))], &["continuity"]));
        let example = json!({"type": "continuity", "room": "public.sale", "epoch": "k4", "seq": 0, "payload": {"continuity": false}});
        let about = "An unknown number of messages is lost; what follows is counted from here.";
        self.unasked(about, &lost, &["room", "epoch", "seq", "payload"], &example);
        let later = with(&[], object(&[("afterMs", number())], &["afterMs"]));
        let example = json!({"type": "reconnect", "payload": {"afterMs": 4200}});
        self.unasked("Come back so long after the close, which follows.", &later, &["payload"], &example);
    }

    fn client_asks(&mut self, ping_interval: std::time::Duration) {
        let (id, room) = (("id", of("id")), ("room", of("room")));
        let token = [id.clone(), ("payload", object(&[("token", text())], &["token"]))];
        let example = json!({"type": "auth", "id": "1", "payload": {"token": "eyJ…"}});
        self.asks("Log in, or renew the token in place.", &token, &["payload"], &example, &["hub.auth_ok"]);
        let about = format!(
            "Ask for an answer; for clients that see no pings, after {} of silence.",
            written_duration(ping_interval)
        );
        let bare = [id.clone(), ("payload", object(&[], &[]))];
        self.asks(&about, &bare, &[], &json!({"type": "heartbeat", "payload": {}}), &["hub.heartbeat"]);
        let recover = object(&[("epoch", of("epoch")), ("seq", of("seq"))], &["epoch", "seq"]);
        let join = [id.clone(), room.clone(), ("payload", object(&[("recover", recover)], &[]))];
        let example = json!({"type": "join_room", "id": "2", "room": "public.sale", "payload": {"recover": {"epoch": "k3", "seq": 17}}});
        self.asks(
            "Become a member, with what was missed since a position.",
            &join,
            &["room"],
            &example,
            &["hub.joined"],
        );
        let in_room = [id.clone(), room.clone(), ("payload", object(&[], &[]))];
        let example = json!({"type": "leave_room", "id": "3", "room": "public.sale", "payload": {}});
        self.asks("Be a member no more.", &in_room, &["room"], &example, &["hub.left"]);
        let message = [id, room, ("payload", of("any"))];
        let example = json!({"type": "room_message", "id": "4", "room": "public.sale", "payload": {"any": "json"}});
        self.asks("Send a message to all members.", &message, &["room", "payload"], &example, &["hub.ack"]);
        let example = json!({"type": "presence", "id": "5", "room": "public.sale", "payload": {}});
        self.asks("Ask who is in a room.", &in_room, &["room"], &example, &["hub.presence"]);
    }

    fn service(&mut self, service: &HubService) {
        let HubService { type_name, upstream, path, answer, share, .. } = service;
        let answered = match answer {
            Some(answer) => {
                let members = [("id", of("id")), ("payload", of("any")), ("timestamp", of("timestamp"))];
                let example = json!({"type": answer, "id": "7", "payload": {}});
                self.says(&format!("What {upstream} answered."), &members, &["id", "payload"], &example)
            }
            None => "hub.ack".to_owned(),
        };
        let within = written_duration(service.timeout);
        let about = format!("POST {path} of {upstream}, with the payload as its body, answered within {within}.");
        // It becomes a part of `Idempotency-Key`, which a call for several has not.
        let id = if *share == HubShare::Nobody { of("headerId") } else { of("id") };
        let members = [("id", id), ("payload", of("any"))];
        let example = json!({"type": type_name, "id": "6", "payload": {}});
        self.asks(&about, &members, &["id", "payload"], &example, &[&answered]);
    }
}

fn room_message() -> Value {
    json!({
        "type": "room_message", "room": "public.sale", "seq": 20, "epoch": "k3", "userId": "42",
        "payload": {"any": "json"}, "timestamp": TIME,
    })
}

/// These members, and the payload.
fn with(members: &[(&'static str, Value)], payload: Value) -> Vec<(&'static str, Value)> {
    [members, &[("payload", payload)]].concat()
}

const TIME: &str = "2026-11-23T10:15:00Z";

fn schemas(hub: &Hub) -> Value {
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    // What messages for services and their answers are called is no service's to push.
    let of_services =
        hub.services.iter().flat_map(|service| [Some(&service.type_name), service.answer.as_ref()]).flatten();
    let taken: Vec<&str> = HUB_TYPES.into_iter().chain(of_services.map(String::as_str)).collect();
    json!({
        "any": {"description": "Any JSON."},
        "id": {"type": "string", "minLength": 1, "maxLength": ID_CHARACTERS_MAX, "description": "The client's name for the message; the answer has it too."},
        "headerId": {"type": "string", "pattern": "^[!-~]{1,64}$", "description": "The client's name for the message; the service sees it in `Idempotency-Key`."},
        "room": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
        "seq": {"type": "integer", "minimum": 0, "description": "The number of a message in its room and epoch, without holes."},
        "epoch": {"type": "string", "description": "Numbers of different epochs do not compare."},
        "timestamp": {"type": "string", "format": "date-time"},
        "serviceType": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$", "not": {"enum": taken}},
        "error": {
            "type": "object",
            "required": ["code", "message", "retryable"],
            "properties": {
                "code": {"enum": codes},
                "message": {"type": "string"},
                "retryable": {"type": "boolean", "description": "Whether the same message, with the same id, may be taken later."},
                "retryAfterMs": {"type": "integer", "minimum": 0},
            },
        },
    })
}

fn of(schema: &str) -> Value {
    reference("schemas", schema)
}

fn text() -> Value {
    json!({"type": "string"})
}

fn number() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn object(members: &[(&str, Value)], required: &[&str]) -> Value {
    let properties: Map<String, Value> =
        members.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({"type": "object", "properties": properties, "required": required})
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

    use super::*;
    use crate::config::Config;
    use expect_test::expect;

    /// The operations: who says what, and what is answered.
    fn told(document: &Value) -> String {
        let name = |reference: &Value| {
            let path = reference["$ref"].as_str().expect("a reference");
            let name = path.strip_prefix("#/channels/hub/messages/").expect("of the channel").to_owned();
            assert!(document["components"]["messages"][&name].is_object(), "{name}");
            name
        };
        let names = |list: &Value| list.as_array().map(|list| list.iter().map(name).collect::<Vec<_>>().join(", "));
        let line = |operation: &Value| {
            let [action, summary] = ["action", "summary"].map(|key| operation[key].as_str().expect("it has both"));
            let messages = names(&operation["messages"]).expect("a list");
            let reply = names(&operation["reply"]["messages"]).map(|reply| format!(" -> {reply}")).unwrap_or_default();
            format!("{action} {messages}{reply}: {summary}\n")
        };
        document["operations"].as_object().into_iter().flatten().map(|(_, operation)| line(operation)).collect()
    }

    #[test]
    fn what_is_by_default_is_told() {
        let mut config =
            crate::config::resolve(None, &std::collections::BTreeMap::new()).expect("what is by default is right");
        config.hub.rooms[0].presence_events = true;
        let document = document(&config.hub, 3000);
        expect![[r#"
            receive client.auth -> hub.auth_ok, hub.error: Log in, or renew the token in place.
            receive client.cart_event -> hub.ack, hub.error: POST /events of ingestion, with the payload as its body, answered within 15s.
            receive client.heartbeat -> hub.heartbeat, hub.error: Ask for an answer; for clients that see no pings, after 25s of silence.
            receive client.join_room -> hub.joined, hub.error: Become a member, with what was missed since a position.
            receive client.leave_room -> hub.left, hub.error: Be a member no more.
            receive client.prediction_request -> hub.prediction_response, hub.error: POST /predict of prediction, with the payload as its body, answered within 15s.
            receive client.presence -> hub.presence, hub.error: Ask who is in a room.
            receive client.room_message -> hub.ack, hub.error: Send a message to all members.
            send hub.continuity: An unknown number of messages is lost; what follows is counted from here.
            send hub.gap: These messages were dropped for this socket.
            send hub.presence_event: A user came or went.
            send hub.reconnect: Come back so long after the close, which follows.
            send hub.room_message: A member's message, to every member of its room.
            send hub.welcome: The socket is logged in.
            send service.message: A service's message, to a room or to a user.
        "#]].assert_eq(&told(&document));
        expect![[r##"
            {
              "correlationId": {
                "location": "$message.payload#/id"
              },
              "examples": [
                {
                  "payload": {
                    "id": "6",
                    "payload": {},
                    "type": "cart_event"
                  }
                }
              ],
              "name": "cart_event",
              "payload": {
                "properties": {
                  "id": {
                    "$ref": "#/components/schemas/headerId"
                  },
                  "payload": {
                    "$ref": "#/components/schemas/any"
                  },
                  "type": {
                    "const": "cart_event"
                  }
                },
                "required": [
                  "type",
                  "id",
                  "payload"
                ],
                "type": "object"
              },
              "summary": "POST /events of ingestion, with the payload as its body, answered within 15s.",
              "title": "cart_event"
            }"##]]
        .assert_eq(
            &serde_json::to_string_pretty(&document["components"]["messages"]["client.cart_event"]).expect("JSON"),
        );
    }

    #[test]
    fn ids_become_headers_unless_several_share_a_call_and_no_service_pushes_what_another_answers() {
        let mut hub = Config::default().hub;
        let service = |type_name: &str, share| HubService {
            type_name: type_name.to_owned(),
            answer: Some(format!("{type_name}_answer")),
            share,
            ..HubService::default()
        };
        (hub.enabled, hub.services) = (true, vec![service("own", HubShare::Nobody), service("shared", HubShare::User)]);
        let components = &document(&hub, 3000)["components"];
        let id = |name: &str| components["messages"][name]["payload"]["properties"]["id"]["$ref"].clone();
        assert_eq!(id("client.own"), "#/components/schemas/headerId");
        assert_eq!(id("client.shared"), "#/components/schemas/id");
        let taken = components["schemas"]["serviceType"]["not"]["enum"].as_array().expect("a list");
        assert!(
            ["welcome", "own", "own_answer"].iter().all(|name| taken.iter().any(|taken| taken == name)),
            "{taken:?}"
        );
    }

    #[test]
    fn what_is_not_configured_is_not_there() {
        let hub = Hub { enabled: true, ..Config::default().hub };
        let bare = document(&Hub { services: Vec::new(), rooms: Vec::new(), ..hub.clone() }, 3000);
        let messages = bare["components"]["messages"].as_object().expect("there are messages");
        assert!(!messages.keys().any(|name| name.contains("presence_event") || name.contains("cart")), "{messages:?}");
        assert!(document(&Hub { enabled: false, ..hub.clone() }, 3000).get("channels").is_none());
        let query = document(&Hub { token_query: Some("token".to_owned()), ..hub }, 3000);
        assert_eq!(query["components"]["securitySchemes"]["query"]["name"], "token");
    }
}

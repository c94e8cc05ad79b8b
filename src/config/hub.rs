//! The WebSocket hub from what is written: what holds in which rooms, and which messages go to which services.

use super::keys::section::FromFields as _;
use super::names::{PERMISSION_FORM, is_one_permission, is_plain};
use super::path::check_path;
use super::raw::quoted;
use super::read::{Fields, suggestion_of};
use super::report::Report;
use super::{
    Config, HubRoom, HubService, HubShare, Role, SlowConsumer, Upstream, WithoutRedis, written_duration, written_size,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the close of a socket may take, from the gateway's close frame to the client's.
pub const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Each is compared with the name of a room when a socket wants to do something there.
const ROOMS_MAX: usize = 256;
const SERVICES_MAX: usize = 64;

/// Types of messages that the hub itself gives a meaning, in either direction.
pub const HUB_TYPES: [&str; 16] = [
    "ack",
    "auth",
    "auth_ok",
    "continuity",
    "error",
    "gap",
    "heartbeat",
    "join_room",
    "joined",
    "leave_room",
    "left",
    "presence",
    "presence_event",
    "reconnect",
    "room_message",
    "welcome",
];

/// What a service of the reference platform is answered by, and nobody sends.
const BUILT_IN_ANSWER: &str = "prediction_response";

/// The services of the reference platform: type, upstream, path, type of the answer.
const BUILT_IN: [(&str, &str, &str, Option<&str>); 2] = [
    ("cart_event", "ingestion", "/events", None),
    ("prediction_request", "prediction", "/predict", Some(BUILT_IN_ANSWER)),
];

impl HubRoom {
    /// What any user may do everything in, besides what is by default.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self { pattern: pattern.into(), join: true, publish: true, presence: true, ..Self::default() }
    }
}

/// Reads the sections inside `[hub]`, and checks all of it.
pub(super) fn read_hub(config: &mut Config, fields: &Fields<'_>, report: &mut Report) {
    config.hub.rooms = read_rooms(fields, &config.roles, report);
    config.hub.services = read_services(fields, &config.upstreams, report);
    let hub = &config.hub;
    if hub.dead_after <= hub.ping_interval {
        let [ping, dead] = [hub.ping_interval, hub.dead_after].map(written_duration);
        let right = format!("it is more than hub.ping_interval, which is \"{ping}\"");
        fields.wrong_pair(report, ["dead_after", "ping_interval"], format_args!("is \"{dead}\""), &right);
    }
    check_events(config, fields, report);
    let hub = &config.hub;
    if hub.outbox_bytes_max < hub.message_bytes_max.saturating_mul(2) {
        let [outbox, message] = [hub.outbox_bytes_max, hub.message_bytes_max].map(|bytes| written_size(bytes as u64));
        let warning = format!(
            "hub.outbox_bytes_max is \"{outbox}\", and hub.message_bytes_max \"{message}\": below twice as much, long messages \
             close members who read as fast as they can (4000)"
        );
        report.warn(&fields.place_of("outbox_bytes_max"), &warning);
    }
    if hub.without_redis == WithoutRedis::Local && !config.redis.is_given() {
        report.warn(&fields.place_of("without_redis"), "hub.without_redis is given, and there is no Redis");
    }
    if let Some(name) = hub.token_query.as_ref().filter(|name| !is_plain(name)) {
        let right = "it is up to 64 of A-Z, a-z, 0-9, ., _ and -, like \"token\"";
        fields.wrong(report, "token_query", format_args!("is {}", quoted(name)), right);
    }
}

fn check_events(config: &Config, fields: &Fields<'_>, report: &mut Report) {
    let (hub, upstreams) = (&config.hub, &config.upstreams);
    if let Some(name) = hub.events_upstream.as_ref().filter(|name| !upstreams.contains_key(*name)) {
        let what = format_args!("is {}, and there is no such upstream", quoted(name));
        fields.wrong(report, "events_upstream", what, &suggestion_of(name, upstreams, "[upstreams.shop]"));
    }
    if let Err(right) = check_path(&hub.events_path) {
        fields.wrong(report, "events_path", format_args!("is {}", quoted(&hub.events_path)), &right);
    }
}

fn read_rooms(hub: &Fields<'_>, roles: &BTreeMap<String, Role>, report: &mut Report) -> Vec<HubRoom> {
    if hub.node("rooms").is_none() {
        return vec![HubRoom::new("public.*"), HubRoom::new("user.{sub}.*")];
    }
    let entries = Fields::listed(HubRoom::SECTION, hub.node("rooms"), ROOMS_MAX, report);
    let rooms: Vec<HubRoom> = entries.iter().map(|fields| read_room(fields, roles, report)).collect();
    for (index, (fields, room)) in entries.iter().zip(&rooms).enumerate() {
        let is_same = |other: &&HubRoom| {
            (&other.pattern, &other.roles, &other.permissions) == (&room.pattern, &room.roles, &room.permissions)
        };
        if rooms.iter().take(index).any(|other| is_same(&other)) {
            let pattern = quoted(&room.pattern);
            let warning = format!(
                "hub.rooms[{index}].pattern is {pattern}, as that of an entry before it for the same roles and permissions: \
                 either may allow something, and all else is as the first one says"
            );
            report.warn(&fields.place_of("pattern"), &warning);
        }
    }
    rooms
}

fn read_room(fields: &Fields<'_>, roles: &BTreeMap<String, Role>, report: &mut Report) -> HubRoom {
    let room = HubRoom::from_fields(fields, report);
    if fields.is_text("pattern") && !is_pattern(&room.pattern) {
        let right = "a room's name is up to 128 of A-Z, a-z, 0-9, ., _, : and -; {sub}, once, stands for the user's id, and a \
                     star at the end for all that begin so: each by itself between \".\" or \":\", as in user.{sub}.*";
        fields.wrong(report, "pattern", format_args!("is {}", quoted(&room.pattern)), right);
    }
    for role in room.roles.iter().filter(|role| !roles.contains_key(*role)) {
        let what = format_args!("has {}, and there is no such role", quoted(role));
        fields.wrong(report, "roles", what, &suggestion_of(role, roles, "[roles.editor]"));
    }
    let wrong = room.permissions.iter().filter(|permission| !is_one_permission(permission));
    fields.wrong_values(report, "permissions", wrong, PERMISSION_FORM);
    if let Some(key) = &room.key {
        if !is_pointer(key) {
            let right = "a JSON pointer begins with a slash, like \"/symbol\", has ~ only as ~0 or ~1 (RFC 6901), up to 16 \
                         steps, and up to 128 bytes";
            fields.wrong(report, "key", format_args!("is {}", quoted(key)), right);
        } else if room.slow_consumer != SlowConsumer::Latest {
            let right = "keys are for slow_consumer = \"latest\"";
            fields.wrong(
                report,
                "key",
                format_args!("is given, and slow_consumer is \"{}\"", room.slow_consumer.name()),
                right,
            );
        }
    }
    room
}

/// Whether it is a JSON pointer (RFC 6901 §3) that a room's messages may be looked through with.
fn is_pointer(text: &str) -> bool {
    const STEPS_MAX: usize = 16;
    let has_sound_escapes = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    text.starts_with('/') && text.len() <= 128 && text.matches('/').count() <= STEPS_MAX && has_sound_escapes
}

/// Whether it is the name of a room, with `{sub}` for the user's id and a star at the end.
fn is_pattern(pattern: &str) -> bool {
    let stem = match pattern.strip_suffix('*') {
        Some("") => return true,
        Some(stem) if stem.ends_with(['.', ':']) => stem,
        Some(_) => return false,
        None => pattern,
    };
    let is_room_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-');
    let is_end = |byte: Option<u8>| byte.is_none_or(|byte| matches!(byte, b'.' | b':'));
    let (head, tail) = stem.split_once("{sub}").unwrap_or((stem, ""));
    // Else the rule would be none, and nobody would say so.
    let is_whole_part = head == stem || is_end(head.bytes().next_back()) && is_end(tail.bytes().next());
    (1..=128).contains(&pattern.len()) && is_whole_part && head.bytes().chain(tail.bytes()).all(is_room_byte)
}

fn read_services(hub: &Fields<'_>, upstreams: &BTreeMap<String, Upstream>, report: &mut Report) -> Vec<HubService> {
    if hub.node("services").is_none() {
        let of = |&(name, upstream, path, answer): &(&str, &str, &str, Option<&str>)| {
            upstreams.contains_key(upstream).then(|| HubService {
                type_name: name.to_owned(),
                upstream: upstream.to_owned(),
                path: path.to_owned(),
                answer: answer.map(str::to_owned),
                ..HubService::default()
            })
        };
        return BUILT_IN.iter().filter_map(of).collect();
    }
    let mut services: Vec<HubService> = Vec::new();
    for fields in Fields::listed(HubService::SECTION, hub.node("services"), SERVICES_MAX, report) {
        let service = HubService::from_fields(&fields, report);
        check_type("type_name", &service.type_name, &fields, report);
        if let Some(answer) = &service.answer {
            check_type("answer", answer, &fields, report);
        }
        if services.iter().any(|other| other.type_name == service.type_name) {
            let what = format_args!("is {}, as that of another entry", quoted(&service.type_name));
            fields.wrong(report, "type_name", what, "a type goes to one service");
        }
        if fields.is_text("upstream") && !upstreams.contains_key(&service.upstream) {
            let what = format_args!("is {}, and there is no such upstream", quoted(&service.upstream));
            fields.wrong(report, "upstream", what, &suggestion_of(&service.upstream, upstreams, "[upstreams.shop]"));
        }
        if fields.is_text("path")
            && let Err(right) = check_path(&service.path)
        {
            fields.wrong(report, "path", format_args!("is {}", quoted(&service.path)), &right);
        }
        if service.share != HubShare::Nobody && service.answer.is_none() {
            let what = format_args!("is \"{}\", and there is no answer", service.share.name());
            fields.wrong(report, "share", what, "what is only acknowledged is an event, and each counts");
        }
        services.push(service);
    }
    services
}

fn check_type(key: &str, name: &str, fields: &Fields<'_>, report: &mut Report) {
    if !fields.is_text(key) {
        return;
    }
    if !is_plain(name) {
        let right = "a type is up to 64 of A-Z, a-z, 0-9, ., _ and -, like \"cart_event\"";
        fields.wrong(report, key, format_args!("is {}", quoted(name)), right);
    } else if HUB_TYPES.contains(&name) || key == "type_name" && name == BUILT_IN_ANSWER {
        fields.wrong(report, key, format_args!("is {}", quoted(name)), "the hub itself gives that type its meaning");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_names_with_a_place_for_the_user_and_a_star_at_the_end() {
        for good in ["news", "public.*", "user.{sub}.*", "user.{sub}", "{sub}", "*", "a:b-c_d.E9", "orders:*"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in ["", "pub*", "*.x", "a.*.b", "{sub}{sub}", "{user}.*", "a b", "ü", "a/b", "**", &"a".repeat(129)] {
            assert!(!is_pattern(bad), "{bad}");
        }
        for half in ["team-{sub}.*", "a.{sub}b", "a{sub}", "{sub}.{sub}", "user.{sub}*"] {
            assert!(!is_pattern(half), "{half}");
        }
    }
}

//! The hub's messages as the load test uses them: what it sends, and what it needs to know of what comes. Pure.
//!
//! A message that is measured carries a stamp, `@@` with the time when it should have left and `#` with its number, which
//! the hub passes on as part of the payload.

/// Digits of a stamp's time and of its number.
const TIME_DIGITS: usize = 19;
const NUMBER_DIGITS: usize = 10;
/// A stamp's bytes.
const STAMP_BYTES: usize = 2 + TIME_DIGITS + 1 + NUMBER_DIGITS;

/// What a message of the hub is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    RoomMessage,
    Joined,
    Ack,
    /// With its code.
    Error(String),
    /// Messages were lost, and this says so: a `gap`, or a `continuity` that is false.
    Loss,
    Reconnect,
    /// What asks nothing of a client: `welcome`, `heartbeat`, `presence_event` and the like.
    Other,
}

/// When a message should have left, and which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) intended_at: u64,
    pub(crate) number: u64,
}

impl Stamp {
    /// The stamp in a text, if it has one.
    pub(crate) fn find(text: &[u8]) -> Option<Self> {
        let at = memchr::memmem::find(text, b"@@")?;
        let stamp = text.get(at + 2..at + STAMP_BYTES)?;
        let (time, rest) = stamp.split_at(TIME_DIGITS);
        let number = rest.strip_prefix(b"#")?;
        Some(Self { intended_at: crate::answer::number(time)?, number: crate::answer::number(number)? })
    }
}

/// Where a message stands in its room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// The epoch's name, as a hash of it.
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
}

impl Position {
    /// The position in a frame that has its payload behind it, as the hub writes them, and the epoch's name.
    pub(crate) fn find(text: &[u8]) -> Option<Self> {
        let head = &text[..memchr::memmem::find(text, b"\"payload\":")?];
        let behind = |name: &[u8]| Some(&head[memchr::memmem::find(head, name)? + name.len()..]);
        let seq = behind(b"\"seq\":")?;
        let digits = seq.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(seq.len());
        let epoch = behind(b"\"epoch\":\"")?;
        let epoch = &epoch[..memchr::memchr(b'"', epoch)?];
        Some(Self { epoch: hash(epoch), seq: crate::answer::number(&seq[..digits])? })
    }
}

/// FNV-1a: names of epochs are short and few.
pub(crate) fn hash(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Which kind of message a text is.
pub(crate) fn kind(text: &[u8]) -> Kind {
    // Servers put the type first as a rule; whoever does not costs us a parse.
    let first = text.strip_prefix(b"{\"type\":\"").and_then(|rest| Some(&rest[..memchr::memchr(b'"', rest)?]));
    match first {
        Some(b"room_message") => Kind::RoomMessage,
        Some(b"ack") => Kind::Ack,
        Some(b"joined") => Kind::Joined,
        Some(b"heartbeat" | b"welcome" | b"presence_event") => Kind::Other,
        _ => kind_of_parsed(text),
    }
}

fn kind_of_parsed(text: &[u8]) -> Kind {
    let Ok(message) = serde_json::from_slice::<serde_json::Value>(text) else { return Kind::Other };
    match message["type"].as_str().unwrap_or_default() {
        "room_message" => Kind::RoomMessage,
        "ack" => Kind::Ack,
        "joined" => Kind::Joined,
        "error" => Kind::Error(message["payload"]["code"].as_str().unwrap_or("unnamed").to_owned()),
        "gap" => Kind::Loss,
        "continuity" if message["payload"]["continuity"] == false => Kind::Loss,
        "reconnect" => Kind::Reconnect,
        _ => Kind::Other,
    }
}

/// What asks to be let into a room.
pub(crate) fn join(room: &str) -> String {
    format!(r#"{{"type":"join_room","room":"{room}","payload":{{}}}}"#)
}

/// What asks to be let into a room again, with what one has of it: the epoch and the number.
pub(crate) fn join_again(room: &str, epoch: &str, seq: u64) -> String {
    let recover = format!(r#"{{"recover":{{"epoch":"{epoch}","seq":{seq}}}}}"#);
    format!(r#"{{"type":"join_room","room":"{room}","payload":{recover}}}"#)
}

/// A message to a room, with a stamp, whose payload takes `payload_bytes` or as many as the stamp needs.
pub(crate) fn publish(room: &str, stamp: Stamp, payload_bytes: usize) -> String {
    format!(r#"{{"type":"room_message","room":"{room}","payload":{}}}"#, payload(stamp, payload_bytes))
}

/// The same with an id, so that it is answered, and is the same message when it is sent again.
pub(crate) fn publish_with_id(room: &str, stamp: Stamp, payload_bytes: usize) -> String {
    let (id, payload) = (id(stamp), payload(stamp, payload_bytes));
    format!(r#"{{"type":"room_message","id":"{id}","room":"{room}","payload":{payload}}}"#)
}

/// A message's id: no two runs have the same.
pub(crate) fn id(stamp: Stamp) -> String {
    format!("{}.{}", stamp.number, stamp.intended_at)
}

/// The number of the message that has this id.
pub(crate) fn number_of(id: &str) -> Option<u64> {
    id.split_once('.')?.0.parse().ok()
}

/// A JSON string with a stamp and filling, of this many bytes or as many as the stamp needs.
pub(crate) fn payload(stamp: Stamp, bytes: usize) -> String {
    let Stamp { intended_at, number } = stamp;
    let filling = bytes.saturating_sub(STAMP_BYTES + 2);
    format!("\"@@{intended_at:0TIME_DIGITS$}#{number:0NUMBER_DIGITS$}{:x<filling$}\"", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { intended_at: 12_345, number: 67 };

    #[test]
    fn a_stamp_goes_through_a_room() {
        let text = publish("public.load.3", STAMP, 128);
        let message: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&message["type"], &message["room"]), (&"room_message".into(), &"public.load.3".into()));
        assert_eq!(message["payload"].to_string().len(), 128);
        assert_eq!(Stamp::find(text.as_bytes()), Some(STAMP));
        assert_eq!(payload(STAMP, 1).len(), STAMP_BYTES + 2, "room for the stamp there is always");
    }

    #[test]
    fn what_is_no_stamp_is_none() {
        for text in [
            "",
            "@@",
            "a@b",
            "@@0000000000000012345",
            "@@0000000000000012345#00000000x7",
            "@@000000000000001234x#0000000067",
        ] {
            assert_eq!(Stamp::find(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn kinds_are_known_wherever_the_type_stands() {
        for (text, expected) in [
            (r#"{"type":"room_message","room":"r","seq":20,"payload":{"type":"ack"}}"#, Kind::RoomMessage),
            (r#"{"room":"r","type":"room_message"}"#, Kind::RoomMessage),
            (r#"{"type":"joined","room":"r"}"#, Kind::Joined),
            (r#"{"id":"1","type":"joined"}"#, Kind::Joined),
            (r#"{"type":"ack","id":"4"}"#, Kind::Ack),
            (r#"{"type":"error","payload":{"code":"rate_limited"}}"#, Kind::Error("rate_limited".to_owned())),
            (r#"{"type":"error"}"#, Kind::Error("unnamed".to_owned())),
            (r#"{"type":"gap","payload":{"from":1,"to":2}}"#, Kind::Loss),
            (r#"{"type":"continuity","payload":{"continuity":false}}"#, Kind::Loss),
            (r#"{"type":"continuity","payload":{"continuity":true}}"#, Kind::Other),
            (r#"{"type":"reconnect","payload":{"afterMs":4200}}"#, Kind::Reconnect),
            (r#"{"type":"welcome"}"#, Kind::Other),
            ("no JSON", Kind::Other),
        ] {
            assert_eq!(kind(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_position_stands_before_the_payload() {
        let text = br#"{"type":"room_message","room":"r","seq":20,"epoch":"k3","payload":{"seq":1,"epoch":"x"}}"#;
        assert_eq!(Position::find(text), Some(Position { epoch: hash(b"k3"), seq: 20 }));
        assert_ne!(hash(b"k3"), hash(b"k4"));
        for text in [r#"{"seq":20,"epoch":"k3"}"#, r#"{"seq":20,"payload":{"epoch":"k3"}}"#, r#"{"payload":"seq":1}"#] {
            assert_eq!(Position::find(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_id_has_its_message() {
        let message: serde_json::Value = serde_json::from_str(&publish_with_id("r", STAMP, 64)).expect("JSON");
        assert_eq!(message["id"].as_str().and_then(number_of), Some(STAMP.number));
        assert_ne!(id(STAMP), id(Stamp { intended_at: 1, ..STAMP }), "another run's");
        assert_eq!(number_of("join"), None);
    }

    #[test]
    fn a_join_names_its_room() {
        assert_eq!(
            join_again("public.a", "k3", 17),
            r#"{"type":"join_room","room":"public.a","payload":{"recover":{"epoch":"k3","seq":17}}}"#
        );
        assert_eq!(join("public.a"), r#"{"type":"join_room","room":"public.a","payload":{}}"#);
    }
}

//! A client as the simulation has it: what it asked for, and whether what it is told is what it was promised.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::{Instant, SocketKey};
use super::plan::Seen;
use crate::proto::websocket::Inflater;

/// Where a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) epoch: String,
    pub(super) seq: u64,
}

/// What was asked for and not answered yet.
#[derive(Clone, Debug)]
pub(super) enum Sent {
    Join { room: String, recover: Option<View> },
    Leave { room: String },
    Publish { room: String, number: u64 },
    Presence,
    Heartbeat,
    Auth { token: usize },
    Cart,
    Prediction,
    Nonsense,
}

/// What all clients together were told.
#[derive(Debug, Default)]
pub(super) struct Truth {
    /// What each number of each count of each room is.
    said: BTreeMap<(String, String, u64), String>,
    /// Where each message of ours got its numbers, and when.
    numbers: BTreeMap<u64, Vec<(String, String, u64, Instant)>>,
}

impl Truth {
    fn hear(&mut self, now: Instant, message: &Value) {
        let (room, epoch, seq) = place(message);
        let text = message.to_string();
        let known = self.said.entry((room.clone(), epoch.clone(), seq)).or_insert_with(|| text.clone());
        assert_eq!(*known, text, "one number is one message for all");
        if let Some(number) = message["payload"]["n"].as_u64() {
            self.number(now, number, room, epoch, seq);
        }
    }

    /// A message has this number: no other, unless the room forgot that it had seen it.
    fn number(&mut self, now: Instant, number: u64, room: String, epoch: String, seq: u64) {
        let places = self.numbers.entry(number).or_default();
        if places.iter().any(|(_, known, known_seq, _)| *known == epoch && *known_seq == seq) {
            return;
        }
        for (_, known, known_seq, at) in places.iter() {
            let is_forgotten = *known != epoch || now.since(*at).as_secs() > 100;
            assert!(is_forgotten, "message {number} has the numbers {known_seq} and {seq}");
        }
        places.push((room, epoch, seq, now));
    }

    /// Every ack names the message that it acknowledges.
    pub(super) fn check(&self) {
        for (number, places) in &self.numbers {
            for (room, epoch, seq, _) in places {
                if let Some(text) = self.said.get(&(room.clone(), epoch.clone(), *seq)) {
                    let message: Value = serde_json::from_str(text).expect("JSON");
                    assert_eq!(message["payload"]["n"].as_u64(), Some(*number), "{text}");
                }
            }
        }
    }
}

fn place(message: &Value) -> (String, String, u64) {
    let text = |name: &str| message[name].as_str().unwrap_or_else(|| panic!("{name} of {message}")).to_owned();
    (text("room"), text("epoch"), message["seq"].as_u64().expect("a number"))
}

/// One socket, seen from outside.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is true or not by itself")]
pub(super) struct Client {
    pub(super) shard: usize,
    pub(super) key: SocketKey,
    pub(super) user: usize,
    /// Which token counts: the second one allows less.
    pub(super) token: Option<usize>,
    takes_deflated: bool,
    /// Until the hub closed it or its connection ended.
    pub(super) is_open: bool,
    pub(super) is_stalled: bool,
    pub(super) was_stalled: bool,
    /// Bytes that came and are no whole frame yet.
    pub(super) bytes: Vec<u8>,
    pub(super) views: BTreeMap<String, View>,
    pub(super) sent: BTreeMap<String, Sent>,
    /// The order in which the messages with an ack were sent.
    order: BTreeMap<String, usize>,
    said: usize,
    last_ack: Option<usize>,
}

/// Rooms that only the first token of a user allows.
pub(super) const PRIVATE: &str = "public.b.";

impl Client {
    pub(super) fn new(shard: usize, key: SocketKey, user: usize, token: Option<usize>, takes_deflated: bool) -> Self {
        Self {
            shard,
            key,
            user,
            token,
            takes_deflated,
            is_open: true,
            is_stalled: false,
            was_stalled: false,
            bytes: Vec::new(),
            views: BTreeMap::new(),
            sent: BTreeMap::new(),
            order: BTreeMap::new(),
            said: 0,
            last_ack: None,
        }
    }

    /// Notes what is said; its text.
    pub(super) fn say(&mut self, id: &str, sent: Sent) -> String {
        let (kind, room, payload) = match &sent {
            Sent::Join { room, recover: None } => ("join_room", room.as_str(), "{}".to_owned()),
            Sent::Join { room, recover: Some(View { epoch, seq }) } => {
                ("join_room", room.as_str(), format!(r#"{{"recover":{{"epoch":"{epoch}","seq":{seq}}}}}"#))
            }
            Sent::Leave { room } => ("leave_room", room.as_str(), "{}".to_owned()),
            Sent::Publish { room, number } => {
                // Some are long enough to be compressed.
                let filler = if number % 11 == 0 { 700 } else { number % 7 * 40 };
                let filler = "x".repeat(usize::try_from(filler).expect("small"));
                ("room_message", room.as_str(), format!(r#"{{"n":{number},"k":{},"f":"{filler}"}}"#, number % 3))
            }
            Sent::Presence => ("presence", "public.a.1", "{}".to_owned()),
            Sent::Heartbeat => ("heartbeat", "", "{}".to_owned()),
            Sent::Auth { token } => ("auth", "", format!(r#"{{"token":"{token}"}}"#)),
            Sent::Cart => ("cart_event", "", "{}".to_owned()),
            Sent::Prediction => ("prediction_request", "", "{}".to_owned()),
            Sent::Nonsense => ("nonsense", "", "{}".to_owned()),
        };
        if matches!(sent, Sent::Publish { .. } | Sent::Cart) {
            self.said += 1;
            self.order.insert(id.to_owned(), self.said);
        }
        let room = if room.is_empty() { String::new() } else { format!(r#","room":"{room}""#) };
        let text = format!(r#"{{"type":"{kind}","id":"{id}"{room},"payload":{payload}}}"#);
        assert!(self.sent.insert(id.to_owned(), sent).is_none(), "ids are used once");
        text
    }

    /// Reads what has come as far as it is whole.
    pub(super) fn read(&mut self, now: Instant, truth: &mut Truth, seen: &mut Seen) {
        while let [first @ (0x81 | 0xc1), short, ..] = self.bytes[..] {
            let (header, length) = match (short, &self.bytes[..]) {
                (126, [_, _, high, low, ..]) => (4, usize::from(u16::from_be_bytes([*high, *low]))),
                (126, _) => return,
                _ => (2, usize::from(short)),
            };
            assert!(short < 127, "no message is that long");
            if self.bytes.len() < header + length {
                return;
            }
            let payload = &self.bytes[header..header + length];
            let message = if first == 0x81 {
                serde_json::from_slice(payload).expect("JSON")
            } else {
                assert!(self.takes_deflated, "it did not ask for that");
                seen.deflated += 1;
                let inflated = Inflater::default().inflate(payload, 1 << 20).map(<[u8]>::to_vec);
                serde_json::from_slice(&inflated.expect("compressed text")).expect("JSON")
            };
            self.bytes.drain(..header + length);
            self.hear(now, &message, truth, seen);
        }
        assert!(self.bytes.first().is_none_or(|&byte| [0x81, 0xc1].contains(&byte)), "a frame begins here");
    }

    fn hear(&mut self, now: Instant, message: &Value, truth: &mut Truth, seen: &mut Seen) {
        let kind = message["type"].as_str().expect("a type");
        let room = message["room"].as_str();
        let sent = message["id"].as_str().map(|id| {
            self.sent.remove(id).unwrap_or_else(|| panic!("nobody asked for {message}, or it is answered already"))
        });
        if let Some(room) = room.filter(|room| room.starts_with(PRIVATE)) {
            let is_goodbye = matches!(kind, "left" | "error" | "ack" | "presence");
            assert!(is_goodbye || self.token == Some(0), "{room} is not allowed: {message}");
        }
        match (kind, sent) {
            ("room_message", None) => {
                truth.hear(now, message);
                self.advance(message);
                seen.messages += 1;
            }
            ("gap", None) => {
                let view = self.view(message);
                assert_eq!(message["payload"]["from"], view.seq + 1, "{message}");
                let to = message["payload"]["to"].as_u64().expect("a number");
                assert!(to > view.seq, "{message}");
                view.seq = to;
                assert_eq!(message["epoch"], view.epoch.as_str());
                seen.gaps += 1;
            }
            ("continuity", None) => {
                let (_, epoch, seq) = place(message);
                let view = self.view(message);
                assert!(view.epoch != epoch || view.seq < seq, "nothing was lost: {message}");
                *view = View { epoch, seq };
                seen.continuities += 1;
            }
            ("presence_event", None) => {
                self.view(message);
                seen.presence_events += 1;
            }
            ("welcome" | "reconnect" | "push", None) => assert!(self.token.is_some() || kind == "reconnect"),
            ("left", None) => {
                let room = room.expect("a room");
                assert!(room.starts_with(PRIVATE) && self.token == Some(1), "{message}");
                assert!(self.views.remove(room).is_some(), "{message}");
                seen.forbidden += 1;
            }
            ("error", None) => assert_eq!(message["payload"]["code"], "forbidden", "{message}"),
            ("joined", Some(Sent::Join { room, recover })) => {
                self.joined(now, message, room, recover.as_ref(), truth, seen);
            }
            ("left", Some(Sent::Leave { room })) => assert!(self.views.remove(&room).is_some(), "{message}"),
            ("ack", Some(Sent::Publish { room, number })) => {
                let (acked, epoch, seq) = place(message);
                assert_eq!(acked, room);
                truth.number(now, number, acked, epoch, seq);
                self.acked(message);
                seen.acks += 1;
            }
            ("ack", Some(Sent::Cart)) => self.acked(message),
            ("presence", Some(Sent::Presence))
            | ("heartbeat", Some(Sent::Heartbeat))
            | ("prediction_response", Some(Sent::Prediction)) => {}
            ("auth_ok", Some(Sent::Auth { token })) => {
                self.token = Some(token);
                seen.renewals += 1;
            }
            ("error", Some(_)) => seen.errors += 1,
            (_, sent) => panic!("{message} is no answer to {sent:?}"),
        }
    }

    fn joined(
        &mut self,
        now: Instant,
        message: &Value,
        room: String,
        recover: Option<&View>,
        truth: &mut Truth,
        seen: &mut Seen,
    ) {
        let (joined, epoch, seq) = place(message);
        assert_eq!(joined, room);
        assert!(message["payload"]["members"].as_u64().expect("a number") > 0, "the joiner counts: {message}");
        let payload = &message["payload"];
        match (recover, payload["recovered"].as_bool()) {
            (None, None) => assert!(payload["messages"].is_null()),
            (Some(_), Some(false)) => {
                assert!(payload["messages"].is_null());
                seen.unrecovered += 1;
            }
            (Some(last), Some(true)) => {
                let messages = payload["messages"].as_array().expect("messages");
                let wanted: Vec<u64> = (last.seq + 1..=seq).collect();
                let got: Vec<u64> = messages.iter().filter_map(|message| message["seq"].as_u64()).collect();
                assert_eq!((got, &last.epoch), (wanted, &epoch), "exactly what was missed");
                for message in messages {
                    truth.hear(now, message);
                }
                seen.recovered += messages.len();
            }
            _ => panic!("{recover:?} is no question for {message}"),
        }
        assert!(self.views.insert(room, View { epoch, seq }).is_none(), "joined twice: {message}");
        seen.joins += 1;
    }

    /// A member gets each number once, in order.
    fn advance(&mut self, message: &Value) {
        let (_, epoch, seq) = place(message);
        let view = self.view(message);
        assert_eq!(View { epoch, seq }, View { epoch: view.epoch.clone(), seq: view.seq + 1 }, "the next: {message}");
        view.seq = seq;
    }

    fn view(&mut self, message: &Value) -> &mut View {
        let room = message["room"].as_str().expect("a room");
        self.views.get_mut(room).unwrap_or_else(|| panic!("not in that room: {message}"))
    }

    fn acked(&mut self, message: &Value) {
        let place = self.order[message["id"].as_str().expect("an id")];
        let last = self.last_ack.replace(place);
        assert!(last.is_none_or(|last| last < place), "acks are out of order: {message}");
    }
}

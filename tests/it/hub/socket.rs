//! A WebSocket client that says what it is told, right or wrong, and hears every frame.

use std::{collections::VecDeque, io};

use serde_json::{Value, json};
use shardgate::proto::websocket::{Deflater, Event, Inflater, Limits, Opcode, Reader, client_frame};

use crate::{
    client::{Client, Response, is_silence},
    harness::Gateway,
    secrets,
};

/// What frames are masked with.
pub(super) const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What asks for a socket, but for the empty line at its end.
pub(super) const ASK: &str = "GET /ws HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Text(String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

/// A socket of the hub's, at the client's end.
#[derive(Debug)]
pub(super) struct Socket {
    client: Client,
    reader: Reader,
    heard: VecDeque<Heard>,
    inflater: Inflater,
    /// Texts that came compressed.
    pub(super) deflated: usize,
    /// Bytes that came.
    pub(super) bytes: usize,
    /// What greeted it, if it came with a token.
    pub(super) welcome: Value,
}

impl Socket {
    /// Opens one with a token, and hears the welcome.
    #[track_caller]
    pub(super) fn open(gateway: &Gateway, token: &str) -> Self {
        let mut socket = Self::bare(gateway, &format!("Authorization: Bearer {token}\r\n"));
        socket.welcome = socket.hear();
        assert_eq!(socket.welcome["type"], "welcome", "it comes first: {}", socket.welcome);
        socket
    }

    /// Opens one with these fields.
    #[track_caller]
    pub(super) fn bare(gateway: &Gateway, fields: &str) -> Self {
        Self::on(gateway.connect(), fields).expect("it opens").0
    }

    /// Asks for one with these fields; the answer is a 101 or why not.
    pub(super) fn on(mut client: Client, fields: &str) -> Result<(Self, Response), Response> {
        client.send(format!("{ASK}{fields}\r\n"));
        let answer = client.read_response();
        if answer.status != 101 {
            return Err(answer);
        }
        assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "RFC 6455 §1.3");
        let limits = Limits { message_bytes_max: 16 << 20, fragments_max: 1 };
        let reader = Reader::of_server(limits, answer.field("sec-websocket-extensions").is_some());
        let (heard, inflater) = (VecDeque::new(), Inflater::default());
        Ok((Self { client, reader, heard, inflater, deflated: 0, bytes: 0, welcome: Value::Null }, answer))
    }

    /// The shard that serves it, as its name tells.
    #[track_caller]
    pub(super) fn shard(&self) -> usize {
        let name = self.welcome["payload"]["connectionId"].as_str().expect("it was greeted");
        let shard = name.split('_').nth(1).and_then(|shard| usize::from_str_radix(shard, 16).ok());
        shard.unwrap_or_else(|| panic!("{name} tells no shard"))
    }

    /// The socket below.
    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Sends these bytes as they are.
    #[track_caller]
    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.send(bytes);
    }

    /// Sends one frame.
    #[track_caller]
    pub(super) fn send_frame(&mut self, opcode: Opcode, payload: &[u8]) {
        self.client.send(client_frame(opcode, true, payload, KEY));
    }

    /// Sends one frame with this payload compressed.
    #[track_caller]
    pub(super) fn send_deflated(&mut self, opcode: Opcode, payload: &[u8]) {
        self.client.send(deflated_frame(opcode, Deflater::default().deflate(payload, 15)));
    }

    /// Says something.
    #[track_caller]
    pub(super) fn say(&mut self, message: &Value) {
        self.say_text(&message.to_string());
    }

    /// Says something, as it stands here.
    #[track_caller]
    pub(super) fn say_text(&mut self, text: &str) {
        secrets::keep_message(text.as_bytes());
        self.send_frame(Opcode::Text, text.as_bytes());
    }

    /// Says something, and hears the next.
    #[track_caller]
    pub(super) fn ask(&mut self, message: &Value) -> Value {
        self.say(message);
        self.hear()
    }

    /// Joins a room, and returns the answer.
    #[track_caller]
    pub(super) fn join(&mut self, room: &str) -> Value {
        let joined = self.ask(&json!({ "type": "join_room", "id": "join", "room": room, "payload": {} }));
        assert_eq!((&joined["type"], &joined["room"]), (&json!("joined"), &json!(room)), "{joined}");
        joined
    }

    /// Joins a room, and says where it was when it left it.
    #[track_caller]
    pub(super) fn recover(&mut self, room: &str, epoch: &Value, seq: u64) -> Value {
        let recover = json!({ "recover": { "epoch": epoch, "seq": seq } });
        let joined = self.ask(&json!({ "type": "join_room", "id": "recover", "room": room, "payload": recover }));
        assert_eq!(joined["type"], "joined", "{joined}");
        joined
    }

    /// Publishes in a room under an id.
    #[track_caller]
    pub(super) fn publish(&mut self, room: &str, id: &str, payload: &Value) {
        self.say(&json!({ "type": "room_message", "id": id, "room": room, "payload": payload }));
    }

    /// The next message. A ping is answered on the way.
    #[track_caller]
    pub(super) fn hear(&mut self) -> Value {
        loop {
            match self.hear_frame() {
                Heard::Text(text) => {
                    return serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                }
                Heard::Ping(payload) => self.send_frame(Opcode::Pong, &payload),
                other => panic!("no message, but {other:?}"),
            }
        }
    }

    /// The next message of this type; what comes before is passed over.
    #[track_caller]
    pub(super) fn hear_type(&mut self, kind: &str) -> Value {
        loop {
            let heard = self.hear();
            if heard["type"] == kind {
                return heard;
            }
        }
    }

    /// The answer to what had this id; what comes before is passed over.
    #[track_caller]
    pub(super) fn hear_answer(&mut self, id: &str) -> Value {
        loop {
            let heard = self.hear();
            if heard["id"] == id {
                return heard;
            }
        }
    }

    /// The next messages, so many.
    #[track_caller]
    pub(super) fn hear_all(&mut self, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.hear()).collect()
    }

    /// Checks that the next message is this one, times aside.
    #[track_caller]
    pub(super) fn expect(&mut self, message: &Value) {
        assert_eq!(timeless(self.hear()), *message);
    }

    /// Checks that nothing waits to be heard: what is asked now is answered next.
    #[track_caller]
    pub(super) fn expect_nothing(&mut self) {
        let answer = self.ask(&json!({ "type": "heartbeat", "id": "nothing", "payload": {} }));
        assert_eq!((&answer["type"], &answer["id"]), (&json!("heartbeat"), &json!("nothing")), "{answer}");
    }

    /// Checks that the next is an error with this code for this id, and returns it.
    #[track_caller]
    pub(super) fn expect_error(&mut self, id: &Value, code: &str) -> Value {
        let error = self.hear();
        assert_eq!((&error["type"], &error["payload"]["code"]), (&json!("error"), &json!(code)), "{error}");
        assert_eq!(&error["id"], id, "{error}");
        error
    }

    /// The next frame.
    #[track_caller]
    pub(super) fn hear_frame(&mut self) -> Heard {
        self.next_frame().expect("a frame").expect("the connection goes on")
    }

    /// The next frame; `None` at the end of the connection.
    pub(super) fn next_frame(&mut self) -> io::Result<Option<Heard>> {
        while self.heard.is_empty() {
            let mut bytes = self.client.read_some()?;
            if bytes.is_empty() {
                return Ok(None);
            }
            self.bytes += bytes.len();
            let mut rest = bytes.as_mut_slice();
            while let Some(event) = self.reader.next(&mut rest).expect("the hub keeps to RFC 6455") {
                self.heard.push_back(match event {
                    Event::Text(text) => Heard::Text(text.to_owned()),
                    Event::Ping(payload) => Heard::Ping(payload.to_vec()),
                    Event::Pong(payload) => Heard::Pong(payload.to_vec()),
                    Event::Close { code, reason } => Heard::Close(code, reason.to_owned()),
                    Event::Deflated { is_text: true, payload } => {
                        self.deflated += 1;
                        let text = self.inflater.inflate(payload, 16 << 20).expect("the hub keeps to RFC 7692");
                        Heard::Text(String::from_utf8(text.to_vec()).expect("the hub sends text"))
                    }
                    Event::Binary(_) | Event::Deflated { .. } => panic!("the hub sends text"),
                });
            }
        }
        Ok(self.heard.pop_front())
    }

    /// Hears all until the close frame, answers that, and sees the end. Returns the messages and the code.
    #[track_caller]
    pub(super) fn hear_close(&mut self) -> (Vec<Value>, u16) {
        let mut messages = Vec::new();
        loop {
            match self.next_frame() {
                Ok(Some(Heard::Text(text))) => messages.push(serde_json::from_str(&text).expect("JSON")),
                Ok(Some(Heard::Close(code, _))) => {
                    let code = code.expect("the hub says why");
                    let _ = self.client.try_send(client_frame(Opcode::Close, true, &code.to_be_bytes(), KEY));
                    self.client.expect_end();
                    return (messages, code);
                }
                Ok(Some(Heard::Ping(_) | Heard::Pong(_))) => {}
                Ok(None) => panic!("an end without a close frame, after {messages:?}"),
                Err(error) if is_silence(&error) => panic!("no close came, but {messages:?}"),
                Err(error) => panic!("{error} before a close frame, after {messages:?}"),
            }
        }
    }

    /// Checks that it is closed with this code; what came before is passed over.
    #[track_caller]
    pub(super) fn expect_close(&mut self, code: u16) {
        let (messages, found) = self.hear_close();
        assert_eq!(found, code, "after {messages:?}");
    }
}

/// A client's frame with this payload, which says that it is compressed.
pub(super) fn deflated_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = client_frame(opcode, true, payload, KEY);
    frame[0] |= 0x40; // RFC 7692 §6: RSV1
    frame
}

/// The message without times, each of which is checked for its form; those of messages that it carries too.
#[track_caller]
pub(super) fn timeless(mut message: Value) -> Value {
    if let Some(time) = message.as_object_mut().and_then(|message| message.remove("timestamp")) {
        expect_time(&time);
    }
    if message["type"] == "joined" {
        let carried = message["payload"].get_mut("messages").and_then(Value::as_array_mut);
        for message in carried.into_iter().flatten() {
            *message = timeless(message.take());
        }
    }
    message
}

/// RFC 3339, in UTC.
#[track_caller]
pub(super) fn expect_time(time: &Value) {
    let text = time.as_str().unwrap_or_default();
    let is_time = text.len() >= 20 && text.ends_with('Z') && text.as_bytes().get(10) == Some(&b'T');
    assert!(is_time, "{time} is no time");
}

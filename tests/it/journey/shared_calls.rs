//! Equal messages for a service share one call while it is under way, where its entry says so.

use std::sync::mpsc::{Sender, channel};

use serde_json::{Value, json};
use shardgate::proto::websocket::{Opcode, client_frame};

use super::{
    Setup,
    access::{KEYS, token},
};
use crate::{backend::Backend, client::Client, harness::Gateway};

/// A socket of the hub.
pub(super) struct Socket {
    client: Client,
    /// What came and was not looked at yet.
    unread: Vec<u8>,
}

impl Socket {
    /// Opens one for a user; it has been welcomed.
    #[track_caller]
    pub(super) fn open(gateway: &Gateway, user: &str) -> Self {
        let mut client = gateway.connect();
        let token = token(&json!({ "sub": user, "sid": format!("s_{user}") }));
        client.send(format!(
            "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token}\r\n\r\n"
        ));
        let answer = client.read_response();
        assert_eq!(answer.status, 101, "{answer:?}");
        let mut socket = Self { client, unread: Vec::new() };
        socket.until("welcome");
        socket
    }

    pub(super) fn say(&mut self, message: &Value) {
        self.client.send(client_frame(Opcode::Text, true, message.to_string().as_bytes(), [1, 2, 3, 4]));
    }

    /// The next message of this type; others are passed over.
    #[track_caller]
    pub(super) fn until(&mut self, kind: &str) -> Value {
        loop {
            let head = self.take(2);
            let length = match head[1] {
                126 => self.take(2).iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
                short => usize::from(short),
            };
            let text = self.take(length);
            let message: Value = serde_json::from_slice(&text).expect("JSON");
            if message["type"] == kind {
                return message;
            }
        }
    }

    #[track_caller]
    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            let more = self.client.read_some().expect("more comes");
            assert!(!more.is_empty(), "the gateway has closed: {:?}", String::from_utf8_lossy(&self.unread));
            self.unread.extend(more);
        }
        self.unread.drain(..count).collect()
    }

    /// Ends the connection without a word.
    pub(super) fn cut(self) {
        drop(self.client);
    }
}

/// A gateway whose type `ask` goes to this backend. It has one shard: what sockets share, they share on one.
fn start(backend: &Backend, share: &str) -> Gateway {
    let rest = format!(
        "{KEYS}[runtime]\nshards = 1\n[[hub.services]]\ntype_name = \"ask\"\nupstream = \"back\"\npath = \"/ask\"\n\
         answer = \"told\"\nshare = \"{share}\"\n"
    );
    Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()])
}

fn ask(id: &str) -> Value {
    json!({ "type": "ask", "id": id, "payload": { "what": 1 } })
}

/// A backend that answers when it is told to, each time with a further number.
#[expect(clippy::disallowed_types, reason = "a test's backend, whose threads share what the test says")]
fn held() -> (Backend, Sender<()>) {
    let (go, held) = channel();
    let held = std::sync::Mutex::new((0, held));
    let backend = Backend::answering(move |_| {
        let mut held = held.lock().expect("no thread panics with it");
        held.0 += 1;
        // The end of the test lets all go.
        let _ = held.1.recv();
        format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}", held.0)
    });
    (backend, go)
}

/// Waits until the gateway has read all that the socket said so far.
#[track_caller]
fn settle(socket: &mut Socket) {
    socket.say(&json!({ "type": "heartbeat" }));
    socket.until("heartbeat");
}

#[test]
fn equal_messages_of_one_user_are_one_call_and_each_is_answered() {
    let (mut backend, go) = held();
    let gateway = start(&backend, "user");
    let mut sockets = [Socket::open(&gateway, "ann"), Socket::open(&gateway, "ann")];
    for (socket, id) in sockets.iter_mut().zip(["1", "2"]) {
        socket.say(&ask(id));
        settle(socket);
    }
    let mut other = Socket::open(&gateway, "ben");
    other.say(&ask("3"));
    settle(&mut other);
    assert_eq!([backend.request(), backend.request()].map(|request| request.body), [br#"{"what":1}"#; 2]);
    go.send(()).expect("the backend waits");
    go.send(()).expect("the backend waits");
    let told = sockets.each_mut().map(|socket| socket.until("told"));
    assert_eq!(told.each_ref().map(|told| &told["id"]), ["1", "2"]);
    assert_eq!(told[0]["payload"], told[1]["payload"]);
    assert_ne!(other.until("told")["payload"], told[0]["payload"]);
    // What has been answered is not kept.
    sockets[0].say(&ask("4"));
    backend.request();
    go.send(()).expect("the backend waits");
    assert_eq!(sockets[0].until("told")["payload"], 3);
    assert!(backend.requests().is_empty());
}

#[test]
fn who_leaves_takes_the_call_along_only_as_the_last() {
    let (mut backend, go) = held();
    let gateway = start(&backend, "anyone");
    let [mut one, mut two] = ["ann", "ben"].map(|user| Socket::open(&gateway, user));
    one.say(&ask("1"));
    settle(&mut one);
    two.say(&ask("2"));
    settle(&mut two);
    let request = backend.request();
    assert_eq!(request.head.field("x-user-id"), Some("ann"), "the first asks");
    one.cut();
    gateway.metrics_until("one socket is left", |metrics| metrics.sum("shardgate_sockets_open") == 1);
    go.send(()).expect("the backend waits");
    assert_eq!(two.until("told")["payload"], 1);
    // Whom nobody waits for is not worked for.
    two.say(&ask("3"));
    let last = backend.request();
    two.cut();
    gateway.metrics_until("nobody is left", |metrics| metrics.sum("shardgate_sockets_open") == 0);
    go.send(()).expect("the backend waits");
    backend.wait_ended(last.connection);
    assert!(backend.requests().is_empty());
}

#[test]
fn without_a_word_in_its_entry_each_message_is_a_call() {
    let (mut backend, go) = held();
    let gateway = start(&backend, "nobody");
    let mut sockets = [Socket::open(&gateway, "ann"), Socket::open(&gateway, "ann")];
    for socket in &mut sockets {
        socket.say(&ask("1"));
    }
    backend.request();
    backend.request();
    drop(go);
    let mut payloads = sockets.each_mut().map(|socket| socket.until("told")["payload"].as_u64());
    payloads.sort_unstable();
    assert_eq!(payloads, [Some(1), Some(2)]);
}

#[test]
fn what_a_room_message_takes_to_its_members_is_measured() {
    let gateway = start(&Backend::ok(), "nobody");
    let mut sockets = ["ann", "ben"].map(|user| Socket::open(&gateway, user));
    for socket in &mut sockets {
        socket.say(&json!({ "type": "join_room", "room": "public.x" }));
        socket.until("joined");
    }
    for _ in 0..3 {
        sockets[0].say(&json!({ "type": "room_message", "room": "public.x", "payload": 1 }));
        for socket in &mut sockets {
            socket.until("room_message");
        }
    }
    gateway.metrics_until("each message is timed once", |metrics| {
        metrics.sum("shardgate_hub_publish_to_write_seconds_count") == 3
            && metrics.sum("shardgate_hub_written_bytes_total") > 600
    });
}

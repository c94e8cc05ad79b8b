//! A tiny hub for the tests: rooms, messages to all members, echoes, log-outs, and plain answers to all other requests. One
//! thread, no permissions; it checks tokens, and closes a member whose outbox is full. It may have two instances, which are
//! two ports of one hub, and make mistakes.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ring::hmac;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::hub::frame::{CLOSE, TEXT};
use crate::hub::sockets::{ACCEPT, KEY};
use crate::hub::token;
use crate::socket::{self, Poller};

/// Those of the listeners are this and the next.
const LISTENERS: u64 = u64::MAX - 1;
pub(super) const SECRET: &str = "a secret for tests, of over 32 bytes";
/// A member for which more than this waits is closed with 4000.
const OUTBOX_BYTES_MAX: usize = 64 * 1024;

struct Member {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    instance: usize,
    session: Value,
    is_websocket: bool,
    echoes: bool,
    room: Option<String>,
    closing: bool,
}

/// What it does wrong; 0: never.
#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    /// Of so many upgrades the last is answered 503.
    pub(super) refuse: usize,
    /// Of so many messages the last is refused for now.
    pub(super) put_off: usize,
    /// Of so many deliveries the last is left out; with `tells` the member is told so.
    pub(super) lose: usize,
    pub(super) tells: bool,
    /// Of so many deliveries the last is made twice.
    pub(super) double: usize,
    /// With this message the second instance dies, and its sockets with it.
    pub(super) die: usize,
    /// Nothing is kept for those who come back.
    pub(super) forgets: bool,
}

/// Serves in a thread of its own until the tests end. Every `refuse`th upgrade is answered 503; 0: none.
pub(super) fn hub(refuse: usize) -> u16 {
    instances(Faults { refuse, ..Faults::default() })[0]
}

/// A hub of two instances.
pub(super) fn instances(faults: Faults) -> [u16; 2] {
    let [one, other] = [0, 1].map(|_| socket::listen(Ipv4Addr::LOCALHOST, 0).expect("a free port"));
    let hub = Hub { faults, listeners: vec![one.0, other.0], ..Hub::default() };
    std::thread::spawn(move || hub.run());
    [one.1, other.1]
}

#[derive(Default)]
struct Room {
    seq: u64,
    members: BTreeSet<u64>,
    history: Vec<String>,
    /// Numbers of messages that had an id.
    ids: BTreeMap<String, u64>,
}

#[derive(Default)]
struct Hub {
    faults: Faults,
    listeners: Vec<OwnedFd>,
    upgrades: usize,
    messages: usize,
    deliveries: usize,
    next_key: u64,
    members: BTreeMap<u64, Member>,
    rooms: BTreeMap<String, Room>,
    /// Members with something to write or to end.
    touched: BTreeSet<u64>,
}

impl Hub {
    fn run(mut self) {
        let mut poller = Poller::new().expect("epoll");
        for (instance, listener) in self.listeners.iter().enumerate() {
            poller.watch(listener, LISTENERS + instance as u64).expect("watched");
        }
        let mut buffer = vec![0; 64 * 1024];
        loop {
            poller.wait(None);
            while let Some(ready) = poller.next() {
                if ready.key >= LISTENERS {
                    let instance = usize::from(ready.key > LISTENERS);
                    while let Some(socket) = self.listeners.get(instance).and_then(|one| socket::accept(one).ok()) {
                        let key = self.next_key;
                        self.next_key += 1;
                        poller.watch(&socket, key).expect("watched");
                        let member = Member {
                            socket,
                            input: Vec::new(),
                            output: Vec::new(),
                            instance,
                            session: Value::Null,
                            is_websocket: false,
                            echoes: false,
                            room: None,
                            closing: false,
                        };
                        self.members.insert(key, member);
                    }
                    continue;
                }
                self.touched.insert(ready.key);
                let mut is_over = false;
                while let Some(member) = self.members.get_mut(&ready.key) {
                    match socket::receive(&member.socket, &mut buffer) {
                        Ok(0) => {
                            is_over = true;
                            break;
                        }
                        Ok(received) => {
                            member.input.extend_from_slice(&buffer[..received]);
                            self.take(ready.key);
                        }
                        Err(Errno::AGAIN) => break,
                        Err(_) => {
                            is_over = true;
                            break;
                        }
                    }
                }
                if is_over {
                    self.remove(ready.key);
                }
            }
            while let Some(key) = self.touched.pop_first() {
                let Some(member) = self.members.get_mut(&key) else { continue };
                while !member.output.is_empty()
                    && let Ok(sent) = socket::send(&member.socket, &member.output)
                {
                    member.output.drain(..sent);
                }
                if member.output.len() > OUTBOX_BYTES_MAX && !member.closing {
                    // What waits is dropped, but for the frame that is partly sent, which a hub must find: this one just ends.
                    member.closing = true;
                }
                if member.closing && (member.output.is_empty() || member.output.len() > OUTBOX_BYTES_MAX) {
                    self.remove(key);
                }
            }
        }
    }

    fn remove(&mut self, key: u64) {
        let room = self.members.remove(&key).and_then(|member| member.room);
        if let Some(room) = room.and_then(|room| self.rooms.get_mut(&room)) {
            room.members.remove(&key);
        }
    }

    /// The second instance is gone, and all that it had.
    fn die(&mut self) {
        self.listeners.truncate(1);
        let theirs = self.members.iter().filter(|(_, member)| member.instance == 1).map(|(key, _)| *key);
        for key in theirs.collect::<Vec<_>>() {
            self.remove(key);
        }
    }

    fn log_out(&mut self, session: &Value) {
        for (key, member) in self.members.iter_mut().filter(|(_, member)| member.session == *session) {
            put(&mut member.output, CLOSE, &4102_u16.to_be_bytes());
            member.closing = true;
            self.touched.insert(*key);
        }
    }

    fn take(&mut self, key: u64) {
        loop {
            let Some(member) = self.members.get_mut(&key) else { return };
            if member.is_websocket {
                let Some((opcode, text, taken)) = client_frame(&member.input) else { return };
                member.input.drain(..taken);
                match opcode {
                    TEXT if member.echoes => put(&mut member.output, TEXT, text.as_bytes()),
                    TEXT => self.text(key, &text),
                    _ => member.closing = true,
                }
            } else {
                let Some(end) = memchr::memmem::find(&member.input, b"\r\n\r\n") else { return };
                let head = String::from_utf8_lossy(&member.input[..end]).into_owned();
                member.input.drain(..end + 4);
                self.head(key, &head);
            }
        }
    }

    fn head(&mut self, key: u64, head: &str) {
        let bearer = head.split_once("bearer.").or_else(|| head.split_once("Bearer "));
        let bearer = bearer.and_then(|(_, rest)| rest.lines().next()).unwrap_or_default();
        let claims = token::claims(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), bearer);
        let member = self.members.get_mut(&key).expect("it speaks");
        let is_upgrade = head.contains("Upgrade: websocket");
        member.echoes = head.starts_with("GET /ws/echo ");
        self.upgrades += usize::from(is_upgrade);
        let status = match (&claims, is_upgrade) {
            (None, _) if !member.echoes => "401 Unauthorized",
            (_, true) if is_turn(self.faults.refuse, self.upgrades) => "503 Busy",
            (_, true) => {
                assert!(head.contains(KEY) && head.contains("Sec-WebSocket-Version: 13"), "{head}");
                let agreed = format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
                member.output.extend_from_slice(agreed.as_bytes());
                member.is_websocket = true;
                member.session = claims.map_or(Value::Null, |claims| claims["sid"].clone());
                if !member.echoes {
                    put(&mut member.output, TEXT, br#"{"type":"welcome","payload":{"heartbeatMs":25000}}"#);
                    put(&mut member.output, 9, b"are you there");
                }
                return;
            }
            (Some(claims), _) if head.starts_with("POST /auth/logout ") => {
                member.output.extend_from_slice(b"HTTP/1.1 204 Gone\r\n\r\n");
                return self.log_out(&claims["sid"]);
            }
            _ => "200 OK",
        };
        member.output.extend_from_slice(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok").as_bytes());
    }

    fn text(&mut self, key: u64, text: &str) {
        let message: Value = serde_json::from_str(text).expect("JSON");
        let name = message["room"].as_str().unwrap_or_default().to_owned();
        let room = self.rooms.entry(name.clone()).or_default();
        match message["type"].as_str() {
            Some("join_room") => {
                room.members.insert(key);
                let mut payload = json!({"members": room.members.len()});
                if let Some(seq) = message["payload"]["recover"]["seq"].as_u64() {
                    let missed = room.history.get(usize::try_from(seq).expect("few")..).expect("a number that it gave");
                    let missed = missed.iter().map(|frame| serde_json::from_str::<Value>(frame).expect("JSON"));
                    let (missed, keeps) = (missed.collect::<Vec<_>>(), !self.faults.forgets);
                    payload["recovered"] = keeps.into();
                    payload["messages"] = if keeps { missed.into() } else { Value::Null };
                }
                let answer =
                    json!({"type": "joined", "room": name, "seq": room.seq, "epoch": "e1", "payload": payload});
                let member = self.members.get_mut(&key).expect("it speaks");
                put(&mut member.output, TEXT, answer.to_string().as_bytes());
                member.room = Some(name);
            }
            Some("room_message") if room.members.contains(&key) => {
                self.messages += 1;
                let answers = &mut self.members.get_mut(&key).expect("it speaks").output;
                if is_turn(self.faults.put_off, self.messages) {
                    let payload = json!({"code": "dependency_unavailable", "retryable": true});
                    let error = json!({"type": "error", "id": message["id"], "payload": payload});
                    return put(answers, TEXT, error.to_string().as_bytes());
                }
                let id = message["id"].as_str().map(str::to_owned);
                let known = id.as_ref().and_then(|id| room.ids.get(id)).copied();
                room.seq += u64::from(known.is_none());
                if let Some(id) = id {
                    let seq = known.unwrap_or(room.seq);
                    let ack = json!({"type": "ack", "id": id, "seq": seq, "epoch": "e1", "payload": {}});
                    put(answers, TEXT, ack.to_string().as_bytes());
                    room.ids.insert(id, seq);
                }
                if known.is_none() {
                    self.deliver(&name, &message["payload"]);
                }
                if self.faults.die > 0 && self.messages == self.faults.die {
                    self.die();
                }
            }
            _ => {
                let error = json!({"type": "error", "payload": {"code": "not_joined"}}).to_string();
                put(&mut self.members.get_mut(&key).expect("it speaks").output, TEXT, error.as_bytes());
            }
        }
    }

    fn deliver(&mut self, name: &str, payload: &Value) {
        let room = self.rooms.get_mut(name).expect("it has members");
        let seq = room.seq;
        let frame =
            format!(r#"{{"type":"room_message","room":"{name}","seq":{seq},"epoch":"e1","payload":{payload}}}"#);
        for key in &room.members {
            self.deliveries += 1;
            let output = &mut self.members.get_mut(key).expect("a member").output;
            let is_lost = is_turn(self.faults.lose, self.deliveries);
            if is_lost && self.faults.tells {
                let gap = json!({"type": "gap", "epoch": "e1", "payload": {"from": seq, "to": seq}});
                put(output, TEXT, gap.to_string().as_bytes());
            }
            let times = usize::from(!is_lost) + usize::from(is_turn(self.faults.double, self.deliveries));
            for _ in 0..times {
                put(output, TEXT, frame.as_bytes());
            }
        }
        room.history.push(frame);
        self.touched.append(&mut room.members.clone());
    }
}

/// Whether it is the turn of what is done every so often; 0: never.
fn is_turn(every: usize, nth: usize) -> bool {
    every > 0 && nth.is_multiple_of(every)
}

/// A server's frame.
fn put(output: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    output.push(0x80 | opcode);
    if let Ok(length @ ..126) = u8::try_from(payload.len()) {
        output.push(length);
    } else {
        output.push(126);
        output.extend_from_slice(&u16::try_from(payload.len()).expect("two bytes").to_be_bytes());
    }
    output.extend_from_slice(payload);
}

/// The masked frame at the front of `bytes`, and how many bytes it takes. Pongs are passed over.
fn client_frame(bytes: &[u8]) -> Option<(u8, String, usize)> {
    let (opcode, second) = (bytes.first()? & 0x0f, *bytes.get(1)?);
    assert!(second & 0x80 != 0, "clients mask");
    let (begin, length) = match second & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
        short => (2, usize::from(short)),
    };
    let key: [u8; 4] = *bytes.get(begin..)?.first_chunk()?;
    let payload = bytes.get(begin + 4..begin + 4 + length)?;
    let plain = payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect::<Vec<_>>();
    let taken = begin + 4 + length;
    if opcode == 10 {
        assert_eq!(plain, b"are you there");
        return client_frame(&bytes[taken..]).map(|(opcode, text, more)| (opcode, text, taken + more));
    }
    Some((if opcode == TEXT { TEXT } else { CLOSE }, String::from_utf8_lossy(&plain).into_owned(), taken))
}

//! A tiny hub for the tests: rooms, messages to all members, echoes, and plain answers to all other requests. One thread, no
//! permissions; it checks tokens, and closes a member whose outbox is full.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use ring::hmac;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::hub::frame::{CLOSE, TEXT};
use crate::hub::sockets::{ACCEPT, KEY};
use crate::hub::token;
use crate::socket::{self, Poller};

const LISTENER: u64 = u64::MAX;
pub(super) const SECRET: &str = "a secret for tests, of over 32 bytes";
/// A member for which more than this waits is closed with 4000.
const OUTBOX_BYTES_MAX: usize = 64 * 1024;

struct Member {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    is_websocket: bool,
    echoes: bool,
    room: Option<String>,
    closing: bool,
}

/// Serves in a thread of its own until the tests end. Every `refuse`th upgrade is answered 503; 0: none.
pub(super) fn hub(refuse: usize) -> u16 {
    let (listener, port) = socket::listen(0).expect("a free port");
    std::thread::spawn(move || Hub { refuse, ..Hub::default() }.run(&listener));
    port
}

#[derive(Default)]
struct Hub {
    refuse: usize,
    upgrades: usize,
    next_key: u64,
    members: BTreeMap<u64, Member>,
    rooms: BTreeMap<String, (u64, BTreeSet<u64>)>,
    /// Members with something to write or to end.
    touched: BTreeSet<u64>,
}

impl Hub {
    fn run(mut self, listener: &OwnedFd) {
        let mut poller = Poller::new().expect("epoll");
        poller.watch(listener, LISTENER).expect("watched");
        let mut buffer = vec![0; 64 * 1024];
        loop {
            poller.wait(None);
            while let Some(ready) = poller.next() {
                if ready.key == LISTENER {
                    while let Ok(socket) = socket::accept(listener) {
                        let key = self.next_key;
                        self.next_key += 1;
                        poller.watch(&socket, key).expect("watched");
                        let (input, output) = (Vec::new(), Vec::new());
                        let (is_websocket, echoes, room, closing) = (false, false, None, false);
                        self.members.insert(key, Member { socket, input, output, is_websocket, echoes, room, closing });
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
        if let Some((_, members)) = room.and_then(|room| self.rooms.get_mut(&room)) {
            members.remove(&key);
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
            (_, true) if self.refuse > 0 && self.upgrades.is_multiple_of(self.refuse) => "503 Busy",
            (_, true) => {
                assert!(head.contains(KEY) && head.contains("Sec-WebSocket-Version: 13"), "{head}");
                let agreed = format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
                member.output.extend_from_slice(agreed.as_bytes());
                member.is_websocket = true;
                if !member.echoes {
                    put(&mut member.output, TEXT, br#"{"type":"welcome","payload":{"heartbeatMs":25000}}"#);
                    put(&mut member.output, 9, b"are you there");
                }
                return;
            }
            _ => "200 OK",
        };
        member.output.extend_from_slice(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok").as_bytes());
    }

    fn text(&mut self, key: u64, text: &str) {
        let message: Value = serde_json::from_str(text).expect("JSON");
        let name = message["room"].as_str().unwrap_or_default().to_owned();
        let (seq, members) = self.rooms.entry(name.clone()).or_default();
        match message["type"].as_str() {
            Some("join_room") => {
                members.insert(key);
                let answer =
                    json!({"type": "joined", "room": name, "seq": *seq, "payload": {"members": members.len()}});
                let member = self.members.get_mut(&key).expect("it speaks");
                put(&mut member.output, TEXT, answer.to_string().as_bytes());
                member.room = Some(name);
            }
            Some("room_message") if members.contains(&key) => {
                *seq += 1;
                let frame = json!({"type": "room_message", "room": name, "seq": *seq, "payload": message["payload"]});
                let frame = frame.to_string();
                for member in members.iter() {
                    put(&mut self.members.get_mut(member).expect("a member").output, TEXT, frame.as_bytes());
                }
                self.touched.append(&mut members.clone());
            }
            _ => {
                let error = json!({"type": "error", "payload": {"code": "not_joined"}}).to_string();
                put(&mut self.members.get_mut(&key).expect("it speaks").output, TEXT, error.as_bytes());
            }
        }
    }
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

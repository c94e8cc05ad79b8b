//! `/ws/echo`: what the gateway itself says as a WebSocket server.

use shardgate::proto::websocket::{Opcode, client_frame};

use super::{Setup, expect_refusal};
use crate::{client::Client, harness::Gateway};

const KEY: [u8; 4] = [1, 2, 3, 4];
const ASK: &str = "GET /ws/echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn start() -> Gateway {
    Setup { rest: "[hub]\necho = true", ..Setup::default() }.start(&[([127, 0, 0, 1], 1).into()])
}

fn open(gateway: &Gateway, fields: &str, first: &[u8]) -> Client {
    let mut client = gateway.connect();
    client.send([format!("{ASK}{fields}\r\n").as_bytes(), first].concat());
    let answer = client.read_response();
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "RFC 6455 §1.3");
    assert_eq!((answer.field("connection"), answer.field("upgrade")), (Some("upgrade"), Some("websocket")));
    assert_eq!(answer.field("sec-websocket-extensions").is_some(), !fields.is_empty(), "{answer:?}");
    client
}

fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    client_frame(opcode, true, payload, KEY)
}

#[test]
fn messages_come_back_and_a_close_ends_it() {
    let gateway = start();
    // The first message comes right behind the handshake.
    let mut client = open(&gateway, "", &frame(Opcode::Text, b"early"));
    assert_eq!(client.read_until("early"), b"\x81\x05early");
    client.send([frame(Opcode::Ping, b"you"), frame(Opcode::Binary, &[7; 300])].concat());
    assert_eq!(client.read_until("you"), b"\x8a\x03you");
    assert_eq!(client.read_until([7; 300]), [&[0x82, 126, 1, 44][..], &[7; 300]].concat());
    client.send(frame(Opcode::Close, &[3, 232]));
    assert_eq!(client.read_to_end().expect("a FIN"), [0x88, 2, 3, 232]);
    let line = &gateway.access_lines(1)[0];
    assert_eq!((line["status"].as_u64(), line["route"].as_str()), (Some(101), Some("/ws/echo")), "{line}");
}

#[test]
fn a_mistake_is_named_and_ends_it() {
    let gateway = start();
    for (bytes, code) in [
        (b"\x81\x05hello".to_vec(), 1002_u16),
        (frame(Opcode::Text, &[0xff]), 1007),
        ([&[0x82, 0xff, 0, 0, 0, 0, 1, 0, 0, 1][..], &KEY].concat(), 1009),
    ] {
        let mut client = open(&gateway, "", &[]);
        client.send(bytes);
        assert_eq!(client.read_to_end().expect("a FIN"), [&[0x88, 2][..], &code.to_be_bytes()].concat());
    }
}

#[test]
fn compressed_messages_come_back_compressed() {
    let gateway = start();
    let mut client = open(&gateway, "Sec-WebSocket-Extensions: permessage-deflate\r\n", &[]);
    // RFC 7692 §7.2.3.1.
    let mut hello = frame(Opcode::Text, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
    hello[0] |= 0x40;
    client.send(hello);
    let back = client.read_until([0x00]);
    assert_eq!(back[0], 0xc1, "{back:x?}");
}

#[test]
fn what_is_no_handshake_is_refused_and_without_the_key_there_is_nothing() {
    let gateway = start();
    let answer = gateway.get("/ws/echo");
    expect_refusal(&answer, 426, "upgrade_required");
    assert_eq!((answer.field("upgrade"), answer.field("sec-websocket-version")), (Some("websocket"), Some("13")));
    let mut client = gateway.connect();
    client.send(format!("{}\r\n", ASK.replace("Version: 13", "Version: 8")));
    expect_refusal(&client.read_response(), 426, "upgrade_required");
    let mut client = gateway.connect();
    client.send(format!("{}\r\n", ASK.replace("ZQ==", "ZR==")));
    expect_refusal(&client.read_response(), 400, "bad_request");
    let without = Gateway::start("");
    assert_eq!(without.get("/ws/echo").status, 404);
}

//! What operators see of the hub.

use serde_json::json;

use super::{on_each_shard, socket::Socket, start, user};
use shardgate::proto::websocket::Opcode;

#[test]
fn what_is_there_is_counted_where_it_is() {
    let gateway = start("[hub]\nhistory_age = \"1h\"\n");
    let mut sockets = on_each_shard(&gateway);
    for socket in &mut sockets {
        socket.join("public.a");
    }
    sockets[0].publish("public.a", "1", &json!("x".repeat(1000)));
    for socket in &mut sockets {
        socket.hear_type("room_message");
    }
    let metrics = gateway.metrics_until("all is written", |metrics| metrics.sum("shardgate_hub_outbox_bytes") == 0);
    for name in ["sockets_open", "hub_users", "hub_rooms"] {
        assert_eq!(metrics.by_shard(&format!("shardgate_{name}")), [1; 4], "{name}");
    }
    // A welcome, a joined and a copy each, and one ack.
    assert!(metrics.value("shardgate_hub_deliveries_total") >= 13);
    assert!(metrics.sum("shardgate_hub_history_bytes") > 1000);
    assert_eq!(metrics.sum("shardgate_hub_rooms_at_home"), 1, "on one shard, wherever its members are");
    drop(sockets);
    let metrics = gateway.metrics_until("all have gone", |metrics| metrics.sum("shardgate_sockets_open") == 0);
    assert_eq!((metrics.sum("shardgate_hub_users"), metrics.sum("shardgate_hub_rooms")), (0, 0));
    assert_eq!(metrics.sum("shardgate_hub_rooms_at_home"), 1, "it remembers");
}

#[test]
fn each_socket_has_a_line_in_the_log_at_its_end() {
    let gateway = start("");
    let mut socket = Socket::open(&gateway, &user("42"));
    socket.join("public.a");
    socket.publish("public.a", "1", &json!("x"));
    socket.hear_all(2);
    socket.send_frame(Opcode::Binary, b"x");
    socket.expect_close(1003);
    let gone = Socket::open(&gateway, &user("43"));
    drop(gone);
    let fields = "Sec-WebSocket-Protocol: shardgate.v1, bearer.nonsense\r\n";
    let (mut refused, _) = Socket::on(gateway.connect(), fields).expect("it opens");
    refused.expect_close(4100);
    drop((socket, refused));

    let lines = gateway.access_lines(6);
    let of = |code: u16| lines.iter().find(|line| line["close_code"] == code).expect("a line");
    let told = of(1003);
    let opened = lines.iter().find(|line| line["user"] == "42" && line["protocol"] == "HTTP/1.1").expect("it opened");
    assert_eq!(told["request_id"], opened["request_id"], "{told}");
    assert_eq!(
        (&told["user"], &told["status"], &told["reason"], &told["protocol"], &told["path"]),
        (&json!("42"), &json!(101), &json!("unsupported"), &json!("websocket"), &json!("/ws")),
    );
    // A welcome, a joined, an ack, a copy and the close.
    assert_eq!((&told["messages_in"], &told["messages_out"]), (&json!(2), &json!(5)), "{told}");
    assert!(told["total_us"].as_u64() > Some(0), "{told}");
    let gone = of(1006);
    assert_eq!((&gone["reason"], &gone["user"]), (&json!("client_gone"), &json!("43")), "{gone}");
    let refused = of(4100);
    assert_eq!((&refused["reason"], &refused["user"]), (&json!("unauthenticated"), &json!(null)), "{refused}");
}

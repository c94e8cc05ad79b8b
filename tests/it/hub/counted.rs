//! What operators see of the hub.

use serde_json::json;

use super::{on_each_shard, start};

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

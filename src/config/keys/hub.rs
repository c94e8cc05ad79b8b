//! The part of the table that is about the WebSocket hub: `[hub]` and the sections inside it.

use super::section::{section, words};
use super::{DAY, GIB, HOUR, KIB, MIB, MINUTE, SECOND};
use std::time::Duration;

section! {
    /// The WebSocket hub at `/ws`: rooms, users and services. See [websocket.md](websocket.md).
    Hub = Once "hub", per Each, by Reload {
        /// Whether there is one. Without it `/ws` and `/hub/*` are paths like any other.
        enabled: bool = true, e.g. false, per Process, by Restart;
        /// Whether `/ws/echo` answers each message with itself, for tests of conformance and of the way to the gateway. It
        /// asks for no token.
        echo: bool = false, e.g. true, per Process;
        /// The parameter of the query that may hold the token, for clients that can set no field. It is never logged here;
        /// what stands before the gateway may log it.
        token_query: Option<String> as Text("name of a parameter") = unset "no token in the query", e.g. "token";
        /// Whether sockets opened from now on may have their messages compressed (permessage-deflate, RFC 7692), where the
        /// client offers it. It takes time of the shards for less to send: see
        /// [compression](websocket.md#compression).
        deflate: bool = false, e.g. true, per Process;
        /// How long a socket that came without a token may take until it sends one (`4100`).
        auth_timeout: Duration as Duration(SECOND, MINUTE) = "10s", e.g. "5s";
        /// Sockets of one address that have not sent a token yet (IPv6: of one /64); more are refused (`4104`).
        unauthenticated_per_address_max: u32 as Number(1, 1_000_000) = 32, e.g. 8, per Shard;
        /// A socket that has sent nothing for so long is pinged; each at a time of its own in the last fifth of it. `heartbeatMs`
        /// of `welcome`.
        ping_interval: Duration as Duration(SECOND, HOUR) = "25s", e.g. "10s";
        /// A socket that has sent nothing for so long, not even a pong, is closed (`4001`).
        dead_after: Duration as Duration(SECOND, DAY) = "60s", e.g. "30s";
        /// Bytes of a client's message (`1009`), and of what a service publishes (`413 body_too_large`; 1 KiB more for what is
        /// around the payload).
        message_bytes_max: usize as Size(KIB, MIB) = "64KiB", e.g. "16KiB";
        /// Messages a second of one socket, on average; twice as many at once after a pause (`rate_limited`).
        messages_per_s: u32 as Number(1, 100_000) = 50, e.g. 10;
        /// Rooms that one socket may be in.
        rooms_per_socket_max: u32 as Number(1, 10_000) = 128, e.g. 16;
        /// Rooms that there are because one user was the first in them, until they are forgotten; each shard an equal share
        /// (`too_many_rooms`).
        rooms_per_user_max: u32 as Number(1, 1_000_000) = 1024, e.g. 100, per Process;
        /// Sockets of one user on this instance (`4104`).
        sockets_per_user_max: u32 as Number(1, 1_000_000) = 64, e.g. 5, per Process;
        /// Sockets of this instance (`4104`), each shard an equal share: a shard whose share is full refuses, even if others
        /// have room. Further bounds are `listener.connections_max` and the memory that there is.
        sockets_max: u32 as Number(1, 100_000_000) = 1_000_000, e.g. 20000, per Process;
        /// Rooms of this instance, with those that only keep their history, each shard an equal share; a join that would make
        /// one more on the shard that its name leads to is refused (`overloaded`).
        rooms_max: u32 as Number(1, 100_000_000) = 100_000, e.g. 1000, per Process;
        /// Bytes that wait for one socket that does not read. Past it the room's `slow_consumer` says what happens.
        outbox_bytes_max: usize as Size(64 * KIB, GIB) = "1MiB", e.g. "256KiB";
        /// Bytes that wait for all sockets together, each message counted once. Past it the socket for which most waits is
        /// closed (`4000`). Each shard has an equal share.
        outboxes_bytes_max: u64 as Size(MIB, 64 * GIB) = "256MiB", e.g. "64MiB", per Process;
        /// Bytes of all rooms' histories, each shard an equal share. Past it the oldest messages are forgotten.
        histories_bytes_max: u64 as Size(MIB, 64 * GIB) = "256MiB", e.g. "64MiB", per Process;
        /// Messages that a room remembers for those who come back. 0: none.
        history_messages: u32 as Number(0, 100_000) = 256, e.g. 1000;
        /// Bytes that a room remembers.
        history_bytes: usize as Size(0, 64 * MIB) = "1MiB", e.g. "256KiB";
        /// How long a room remembers a message, also when nobody is in it any more.
        history_age: Duration as Duration(0, DAY) = "5m", e.g. "1m";
        /// How long a message with an `id` is known again, so that it is not delivered twice.
        dedup_window: Duration as Duration(SECOND, HOUR) = "2m", e.g. "5m";
        /// How long a user's last socket may be away from a room before the others are told that the user has left.
        presence_grace: Duration as Duration(0, HOUR) = "5s", e.g. "15s";
        /// The upstream that is told of rooms and users by POST: when a room has its first member or none any more, and a user
        /// the first socket or none any more. See [lifecycle events](websocket.md#lifecycle-events).
        events_upstream: Option<String> as Text("name of an upstream") = unset "no events are sent", e.g. "ingestion";
        /// Where it is told.
        events_path: String as Text("path, as `/events`") = "/hub-events", e.g. "/presence";
        /// What it is told of.
        events: Vec<HubEventType> as List("`room.occupied`, `room.vacated`, `user.online` or `user.offline`")
            = ["room.occupied", "room.vacated", "user.online", "user.offline"], e.g. ["user.online", "user.offline"];
        /// How long it may take to answer. What it does not take is sent again until it does.
        events_timeout: Duration as Duration(1, MINUTE) = "5s", e.g. "1s";
        /// Events that wait while it does not take them; past it the oldest are dropped
        /// (`shardgate_hub_events_total{result="dropped"}`). Where instances share a Redis, those of all of them together: the largest of the instances that live counts.
        events_waiting_max: u32 as Number(1, 10_000_000) = 10_000, e.g. 1000, per Process;
        /// What happens to those who want a socket while Redis is away, where rooms span instances by it: they are refused,
        /// so that a balancer sends them to an instance that has Redis, or let in: services answer them, and rooms that
        /// this instance is in already. Messages to rooms are refused until Redis is back (`dependency_unavailable`).
        without_redis: WithoutRedis = "refuse", e.g. "local", per Process;
    } with {
        /// What holds in which rooms; those by default where none is written.
        rooms: Vec<HubRoom>,
        /// Which messages go to which services; those of the reference platform where none is written.
        services: Vec<HubService>,
    }
}

words! {
    /// What a service is told of rooms and users.
    HubEventType {
        /// A room has its first member.
        RoomOccupied = "room.occupied",
        /// A room has had no member for `hub.presence_grace`.
        RoomVacated = "room.vacated",
        /// A user has the first socket.
        UserOnline = "user.online",
        /// A user has had no socket for `hub.presence_grace`.
        UserOffline = "user.offline",
    }
}

section! {
    /// What holds in rooms of these names. An action is allowed where any of the entries that match allows it; all else
    /// is the first matching entry's to say. Without any entry, any user may do everything in `public.*`, and each user
    /// in `user.{sub}.*`; everything else is denied.
    HubRoom = Listed "hub.rooms", per Each, by Reload {
        /// Names of rooms: `news`, or all that begin so, `news.*`. `{sub}` stands for the user's own id, by itself between
        /// `.` or `:`.
        pattern: String as Text("name of a room, `public.*` or `user.{sub}.*`") = required, e.g. "public.*";
        /// Roles of which a user needs one. Empty: any user.
        roles: Vec<String> as List("name of a role") = [], e.g. ["analyst"];
        /// Permissions of which a user needs all.
        permissions: Vec<String> as List("permission, as `orders:read`") = [], e.g. ["orders:read"];
        /// Whether they may join.
        join: bool = true, e.g. false;
        /// Whether they may send messages.
        publish: bool = true, e.g. false;
        /// Whether they may ask who is there.
        presence: bool = true, e.g. false;
        /// Whether members are told when users come and go.
        presence_events: bool = false, e.g. true;
        /// What happens to a member that does not read and whose outbox is full: it is closed (`4000`), loses the oldest
        /// messages of the room, or all but the latest of each `key`; losses are told by a `gap`, and what finds no room all
        /// the same closes it.
        slow_consumer: SlowConsumer = "close", e.g. "drop_oldest";
        /// Where a message's key stands in its payload (a JSON pointer), for `slow_consumer = "latest"`. A message without
        /// one has the key `""`.
        key: Option<String> as Text("JSON pointer, as `/symbol`") = unset "every message has the key `\"\"`", e.g. "/symbol";
        /// Messages that the room remembers.
        history_messages: Option<u32> as Number(0, 100_000) = unset "as `hub.history_messages`", e.g. 10;
        /// How long it remembers them.
        history_age: Option<Duration> as Duration(0, DAY) = unset "as `hub.history_age`", e.g. "1h";
    }
}

words! {
    /// What happens to those who want a socket while Redis is away.
    WithoutRedis {
        /// They are refused (503).
        Refuse = "refuse",
        /// They are let in.
        Local = "local",
    }
}

words! {
    /// What happens to a member whose outbox is full.
    SlowConsumer {
        /// It is closed.
        Close = "close",
        /// It loses the oldest messages of the room.
        DropOldest = "drop_oldest",
        /// It keeps the latest message of each key.
        Latest = "latest",
    }
}

section! {
    /// A type of messages that goes to a service. Without any entry, `cart_event` goes to `ingestion` and
    /// `prediction_request` to `prediction`, where there are upstreams of these names.
    HubService = Listed "hub.services", per Each, by Reload {
        /// The message's `type`.
        type_name: String as Text("name, as `cart_event`") = required, e.g. "cart_event";
        /// The upstream that takes it.
        upstream: String as Text("name of an upstream") = required, e.g. "ingestion";
        /// Where it is sent there, by POST, with the payload as its body.
        path: String as Text("path, as `/events`") = required, e.g. "/events";
        /// The `type` of what the client is sent, with the service's JSON as its payload.
        answer: Option<String> as Text("name, as `prediction_response`") = unset "an `ack` with the status",
            e.g. "prediction_response";
        /// How long the service may take until its answer is here (`upstream_timeout`).
        timeout: Duration as Duration(1, 10 * MINUTE) = "15s", e.g. "5s";
        /// Messages of one socket that wait behind the one under way; further ones are refused (`overloaded`).
        waiting_max: u32 as Number(0, 10_000) = 64, e.g. 16;
        /// Whose equal messages share one call while it is under way: nobody's, those of one user, or anyone's. The
        /// service sees one `X-User-Id`.
        share: HubShare = "nobody", e.g. "user";
    }
}

words! {
    /// Whose equal messages share one call.
    HubShare {
        /// Each is a call of its own.
        Nobody = "nobody",
        /// Those of one user.
        User = "user",
        /// Those of anyone.
        Anyone = "anyone",
    }
}

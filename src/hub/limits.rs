//! Every number that bounds the hub, with its default.

use std::time::Duration;

/// Characters of a client's `id`.
pub const ID_CHARACTERS_MAX: usize = 64;

/// Levels that a payload may be nested: what goes to other members must not overflow their parsers. Those of most
/// languages stop somewhere between 100 and 1,000.
pub const DEPTH_MAX: usize = 100;

/// Bounds of one hub. Immutable; on every shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one message of a client, inflated.
    pub message_bytes_max: usize,
    /// The same before `auth`.
    pub anonymous_message_bytes_max: usize,
    /// From the upgrade until `auth` must have come.
    pub auth_within: Duration,
    /// Sockets of one address that have not logged in.
    pub anonymous_per_address_max: u32,
    /// Sockets of one user.
    pub sockets_per_user_max: u32,
    /// Sockets of the instance.
    pub sockets_max: u32,
    /// Rooms that one socket is in.
    pub rooms_per_socket_max: usize,
    /// Rooms at home on one shard, those that only remember included.
    pub rooms_max: usize,
    /// Rooms that the sockets of one user together are in, and so hold open.
    pub rooms_per_user_max: usize,
    /// Messages a second of one socket, on average.
    pub messages_per_second: u32,
    /// Messages at once of one socket that was quiet before.
    pub messages_burst: u32,
    /// So many `error` frames within [`Limits::errors_within`] close the socket.
    pub errors_max: u32,
    /// See [`Limits::errors_max`].
    pub errors_within: Duration,
    /// A quiet client is pinged so often; any frame of its own counts as an answer.
    pub ping_every: Duration,
    /// A client of which nothing came for so long is dead.
    pub dead_after: Duration,
    /// Bytes that wait for one socket.
    pub outbox_bytes_max: usize,
    /// Bytes of frames that wait on one shard; past it the socket with most of them goes first.
    pub frames_bytes_max: usize,
    /// Bytes of the histories of all rooms at home on one shard.
    pub history_bytes_max: usize,
    /// How long a join, a publish or a question may wait for its answer from another shard.
    pub answer_within: Duration,
    /// A room that is quiet tells its position so often.
    pub position_every: Duration,
    /// How long a close frame may take to be written before the connection is cut.
    pub close_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 64 << 10,
            anonymous_message_bytes_max: 8 << 10,
            auth_within: Duration::from_secs(10),
            anonymous_per_address_max: 100,
            // Tabs and devices of a person; services use the HTTP endpoints.
            sockets_per_user_max: 64,
            sockets_max: 100_000,
            rooms_per_socket_max: 128,
            rooms_max: 1 << 17,
            rooms_per_user_max: 1024,
            messages_per_second: 50,
            messages_burst: 200,
            errors_max: 20,
            errors_within: Duration::from_secs(10),
            // NAT and balancers forget a quiet connection after 30 s at the earliest.
            ping_every: Duration::from_secs(25),
            dead_after: Duration::from_mins(1),
            outbox_bytes_max: 1 << 20,
            frames_bytes_max: 256 << 20,
            history_bytes_max: 64 << 20,
            answer_within: Duration::from_secs(5),
            position_every: Duration::from_secs(5),
            close_within: Duration::from_secs(5),
        }
    }
}

//! Every number that bounds the hub: what the configuration says, and what nobody may change.

use std::time::Duration;

use crate::config::{self, Config};

/// Characters of a client's `id`.
pub const ID_CHARACTERS_MAX: usize = 64;

/// Levels that a payload may be nested: what goes to other members must not overflow their parsers. Those of most
/// languages stop somewhere between 100 and 1,000.
pub const DEPTH_MAX: usize = 100;

/// What has come of messages that are not whole may take such a part of what may wait for all sockets.
const UNFINISHED_PART: u64 = 4;

/// Bounds of one hub. Immutable; each shard has its share, [`Limits::of_shard`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one message of a client, inflated.
    pub message_bytes_max: usize,
    /// The same before `auth`.
    pub anonymous_message_bytes_max: usize,
    /// From the first byte of a message to its last.
    pub message_within: Duration,
    /// Bytes that all sockets of one shard hold of messages that have come in part; past it those with most are closed.
    pub unfinished_bytes_max: usize,
    /// From the upgrade until `auth` must have come.
    pub auth_within: Duration,
    /// Sockets of one address that have not logged in.
    pub anonymous_per_address_max: u32,
    /// Sockets of one user.
    pub sockets_per_user_max: u32,
    /// Sockets of one shard.
    pub sockets_max: u32,
    /// Rooms that one socket is in.
    pub rooms_per_socket_max: usize,
    /// Rooms at home on one shard, those that only remember included.
    pub rooms_max: usize,
    /// Rooms at home on one shard that there are because one user was the first in them.
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
    /// Frames that clients, and letters, may each have queued for sockets before the shard's other tasks get their turn; a
    /// message that was begun goes to all members of its room here.
    pub pushes_per_turn: usize,
    /// Bytes that wait for one socket.
    pub outbox_bytes_max: usize,
    /// Bytes of frames that wait on one shard; past it the socket with most of them goes first.
    pub frames_bytes_max: usize,
    /// Bytes of the histories of all rooms at home on one shard.
    pub history_bytes_max: usize,
    /// How long the ids of messages to users are known.
    pub ids_for: Duration,
    /// How long a join, a publish or a question may wait for its answer from another shard.
    pub answer_within: Duration,
    /// Where rooms span instances, each is compared with what the bus has so often.
    pub position_every: Duration,
    /// How long a close frame may take to be written before the connection is cut.
    pub close_within: Duration,
}

impl Limits {
    /// As the configuration has them for the instance, with those that nobody may change.
    pub fn of(hub: &config::Hub) -> Self {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Self {
            message_bytes_max: hub.message_bytes_max,
            anonymous_message_bytes_max: 8 << 10,
            message_within: Duration::from_secs(10),
            unfinished_bytes_max: size(hub.outboxes_bytes_max / UNFINISHED_PART),
            auth_within: hub.auth_timeout,
            anonymous_per_address_max: hub.unauthenticated_per_address_max,
            sockets_per_user_max: hub.sockets_per_user_max,
            sockets_max: hub.sockets_max,
            rooms_per_socket_max: hub.rooms_per_socket_max as usize,
            rooms_max: hub.rooms_max as usize,
            rooms_per_user_max: hub.rooms_per_user_max as usize,
            messages_per_second: hub.messages_per_s,
            messages_burst: hub.messages_per_s.saturating_mul(2),
            errors_max: 20,
            errors_within: Duration::from_secs(10),
            ping_every: hub.ping_interval,
            dead_after: hub.dead_after,
            // A fraction of a millisecond. Writing them takes far longer, and is sliced for itself.
            pushes_per_turn: 4096,
            outbox_bytes_max: hub.outbox_bytes_max,
            frames_bytes_max: size(hub.outboxes_bytes_max),
            history_bytes_max: size(hub.histories_bytes_max),
            ids_for: hub.dedup_window,
            answer_within: Duration::from_secs(5),
            position_every: Duration::from_secs(5),
            close_within: Duration::from_secs(5),
        }
    }

    /// Whether something is due earlier for a socket by these than by others.
    pub(super) fn are_times_earlier(&self, than: &Self) -> bool {
        self.ping_every < than.ping_every
            || self.dead_after < than.dead_after
            || self.message_within < than.message_within
    }

    /// The share of one of so many shards: what counts for the instance is divided, rounding up.
    #[must_use]
    pub fn of_shard(&self, shards: usize) -> Self {
        let shards = shards.max(1);
        Self {
            sockets_max: self.sockets_max.div_ceil(u32::try_from(shards).unwrap_or(u32::MAX)),
            rooms_max: self.rooms_max.div_ceil(shards),
            rooms_per_user_max: self.rooms_per_user_max.div_ceil(shards),
            frames_bytes_max: self.frames_bytes_max.div_ceil(shards),
            // One socket may always send one message, as long as may be.
            unfinished_bytes_max: self
                .unfinished_bytes_max
                .div_ceil(shards)
                .max(self.message_bytes_max.saturating_mul(2)),
            history_bytes_max: self.history_bytes_max.div_ceil(shards),
            ..self.clone()
        }
    }
}

impl Default for Limits {
    /// As they are where nothing is configured.
    fn default() -> Self {
        Self::of(&Config::default().hub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_for_the_instance_is_shared_out() {
        let limits = Limits::default();
        assert_eq!(limits.of_shard(1), limits);
        let share = Limits { rooms_per_user_max: 5, sockets_max: 3, ..limits.clone() }.of_shard(4);
        assert_eq!((share.rooms_per_user_max, share.sockets_max), (2, 1), "rounded up: no shard has none");
        assert_eq!(share.rooms_max, 25_000);
        assert_eq!(share.anonymous_per_address_max, limits.anonymous_per_address_max, "each shard's own");
        assert_eq!(share.sockets_per_user_max, limits.sockets_per_user_max, "a user's home counts for all");
    }
}

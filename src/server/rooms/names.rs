//! What rooms' keys and channels are called in Redis.

use ring::digest::{Context, SHA256};

use crate::hub::name::RoomName;

/// Rooms are spread over so many channels. The same on all instances.
pub(super) const PARTITIONS: usize = 64;

/// Names, as a server or a cluster has them.
pub(super) struct Names {
    is_cluster: bool,
    /// This instance.
    pub(super) node: String,
    /// The channel by which this instance hears itself.
    pub(super) canary: String,
    /// The channel that all instances hear.
    pub(super) all: String,
    /// The key of the instances that live.
    pub(super) instances: String,
}

/// The partition of a room.
pub(super) fn partition(room: &RoomName) -> usize {
    // The low bits: the home shard is taken from the high ones.
    usize::try_from(room.stable_hash() % PARTITIONS as u64).unwrap_or_default()
}

/// Whether an instance can be called so.
pub(super) fn is_node(name: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.strip_prefix("n_").is_some_and(|rest| rest.len() == 12 && rest.bytes().all(is_digit))
}

impl Names {
    /// A key like those of rooms that no room has: by it one sees whether Redis lets keys of rooms be changed.
    pub(super) const PROBE: &str = "shardgate:room::probe";

    pub(super) fn new(is_cluster: bool, node: &str) -> Self {
        // What is of all instances together is on one node of a cluster.
        let tag = if is_cluster { "{fleet}" } else { "" };
        Self {
            is_cluster,
            node: node.to_owned(),
            canary: format!("shardgate:bus:canary:{node}"),
            all: format!("shardgate:bus:all{tag}"),
            instances: format!("shardgate:instances{tag}"),
        }
    }

    pub(super) const fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// The keys of a room: where it stands, and its log.
    pub(super) fn room(&self, room: &RoomName) -> [String; 2] {
        let tag = self.tag(partition(room));
        [format!("shardgate:room:{room}:meta{tag}"), format!("shardgate:room:{room}:log{tag}")]
    }

    /// The key of who is in a room.
    pub(super) fn here(&self, room: &RoomName) -> String {
        format!("shardgate:room:{room}:here{}", self.tag(partition(room)))
    }

    /// The key that lives as long as an instance does, and a while after it.
    pub(super) fn lease(node: &str) -> String {
        format!("shardgate:presence:{node}")
    }

    /// The key of a message's id.
    pub(super) fn id(&self, room: &RoomName, speaker: &str, id: &str) -> String {
        let mut mark = Context::new(&SHA256);
        // The length first: what the one ends with is not what the other begins with.
        mark.update(&(speaker.len() as u64).to_le_bytes());
        mark.update(speaker.as_bytes());
        mark.update(id.as_bytes());
        let mark = mark.finish();
        let mark = mark.as_ref().first_chunk::<16>().map_or(0, |half| u128::from_be_bytes(*half));
        format!("shardgate:room:{room}:id:{mark:032x}{}", self.tag(partition(room)))
    }

    /// A partition's channel.
    pub(super) fn channel(&self, partition: usize) -> String {
        if self.is_cluster { format!("shardgate:bus:{{{partition}}}") } else { format!("shardgate:bus:{partition}") }
    }

    /// The keys of lifecycle events, as their script has them.
    pub(super) fn lifecycle(&self) -> [String; 8] {
        let tag = if self.is_cluster { "{fleet}" } else { "" };
        let key = |name: &str| format!("shardgate:events:{name}{tag}");
        let [meta, there, here, outbox, gone, nodes, sender] =
            ["meta", "there", "here", "outbox", "gone", "nodes", "sender"].map(key);
        [meta, there, here, outbox, gone, nodes, self.instances.clone(), sender]
    }

    /// The channel that one instance hears.
    pub(super) fn channel_of(node: &str) -> String {
        format!("shardgate:bus:node:{node}")
    }

    /// What puts the keys and the channel of a partition on one node of a cluster.
    fn tag(&self, partition: usize) -> String {
        if self.is_cluster { format!("{{{partition}}}") } else { String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_documented_and_in_a_cluster_share_a_slot() {
        let room = RoomName::parse("public.sale").expect("a name");
        let (alone, cluster) = (Names::new(false, "n_1"), Names::new(true, "n_1"));
        assert_eq!(alone.room(&room), ["shardgate:room:public.sale:meta", "shardgate:room:public.sale:log"]);
        assert_eq!((alone.channel(17), &*alone.canary), ("shardgate:bus:17".into(), "shardgate:bus:canary:n_1"));
        let tag = format!("{{{}}}", partition(&room));
        let names =
            [&cluster.room(&room)[..], &[cluster.id(&room, "s1", "2"), cluster.channel(partition(&room))]].concat();
        assert!(names.iter().all(|name| name.ends_with(&tag)), "{names:?}");
        assert_ne!(alone.id(&room, "s1", "2"), alone.id(&room, "s", "12"));
    }
}

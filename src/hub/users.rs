//! How many sockets a user has on all shards: each shard tells the home of the user's name, which says who has too many.
//!
//! A socket comes in before its count is known there; it is closed when it turns out to be one too many.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Close, Hub, RoomLetter, SocketKey, name::home_of};
use crate::shard::Instant;

/// Sockets by shard of each user at home here. One per shard.
#[derive(Debug, Default)]
pub(super) struct UserCounts(HashMap<Arc<str>, Box<[Count]>>);

/// What a shard has told.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    sockets: u32,
    /// So many of them it was told to close, and has not said yet that it did. They count no more: another shard's would be
    /// closed for them.
    going: u32,
}

impl Count {
    const fn staying(self) -> u32 {
        self.sockets.saturating_sub(self.going)
    }
}

impl UserCounts {
    /// Notes the sockets of a user on one shard. Says how many that shard may have, if it has more than that.
    fn note(&mut self, shards: usize, from: usize, user: &Arc<str>, count: u32, max: u32) -> Option<u32> {
        let counts = self.0.entry(Arc::clone(user)).or_insert_with(|| vec![Count::default(); shards].into());
        let all = counts.iter().fold(0, |all: u32, count| all.saturating_add(count.staying()));
        let known = counts.get_mut(from)?;
        let others = all.saturating_sub(known.staying());
        let before = std::mem::replace(&mut known.sockets, count);
        known.going = known.going.saturating_sub(before.saturating_sub(count));
        let is_over = before < count && others.saturating_add(known.staying()) > max;
        let may_have = max.saturating_sub(others);
        if is_over {
            known.going = count.saturating_sub(may_have);
        }
        if counts.iter().all(|count| count.sockets == 0) {
            self.0.remove(user);
        }
        is_over.then_some(may_have)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl<W> Hub<W> {
    /// The sockets of a user here are more or less than before.
    pub(super) fn tell_count(&mut self, user: &Arc<str>) {
        // By itself a shard knows.
        if self.shards > 1 {
            let letter = RoomLetter::UserCount { user: Arc::clone(user), count: self.count_of(user) };
            self.post.send(home_of(user, self.shards), letter);
        }
    }

    fn count_of(&self, user: &str) -> u32 {
        self.users.get(user).map_or(0, |sockets| u32::try_from(sockets.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn handle_user_count(&mut self, from: usize, user: Arc<str>, count: u32) {
        let max = self.plan.limits.sockets_per_user_max;
        if let Some(max) = self.user_counts.note(self.shards, from, &user, count, max) {
            self.post.send(from, RoomLetter::UserMax { user, max });
        }
    }

    /// The user has too many sockets on all shards: the last ones go.
    pub(super) fn handle_user_max(&mut self, now: Instant, user: &str, max: u32) {
        let sockets = self.users.get(user).map_or(&[][..], Vec::as_slice);
        let over: Vec<SocketKey> = sockets.iter().skip(max as usize).copied().collect();
        for key in over {
            self.end(now, key, Some(Close::TooManyConnections));
        }
    }

    /// Letters that did not go, to be sent again: counts as they are now, each once.
    pub(super) fn renew_counts(&self, letters: &mut Vec<(usize, RoomLetter)>) {
        let mut told = HashSet::new();
        letters.retain_mut(|(_, letter)| match letter {
            RoomLetter::UserCount { user, count } => {
                *count = self.count_of(user);
                told.insert(Arc::clone(user))
            }
            _ => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_going_is_made_good_by_no_other() {
        let mut counts = UserCounts::default();
        let mut note = |from, count| counts.note(3, from, &"42".into(), count, 3);
        assert_eq!([note(0, 1), note(1, 1), note(2, 1)], [None; 3]);
        assert_eq!(note(1, 2), Some(1), "the last one goes");
        // Another comes before the shard has said that it went: that one goes, and not one of those that may stay.
        assert_eq!(note(2, 2), Some(1));
        assert_eq!([note(1, 1), note(2, 1)], [None; 2]);
        assert_eq!(note(0, 2), Some(1), "three are here still");
        // Who leaves by itself makes room, whichever it was.
        assert_eq!([note(0, 1), note(0, 0)], [None; 2]);
        assert_eq!(note(1, 2), None);
        assert_eq!(note(1, 3), Some(2));
    }

    #[test]
    fn who_came_last_is_one_too_many() {
        let mut counts = UserCounts::default();
        let mut note = |from, count| counts.note(3, from, &"42".into(), count, 3);
        assert_eq!([note(0, 1), note(1, 1), note(2, 1)], [None; 3]);
        // What is over the bound goes where it came, and no other.
        assert_eq!([note(1, 2), note(1, 3)], [Some(1); 2]);
        assert_eq!([note(1, 2), note(1, 1)], [None; 2], "fewer are no reason to close any");
        assert_eq!([note(0, 0), note(2, 2)], [None; 2], "who leaves makes room");
        assert_eq!([note(2, 0), note(1, 0)], [None; 2]);
        assert_eq!(counts.len(), 0, "nobody is remembered");
    }
}

//! What follows from a request that Redis did not carry out: the connection is given up, or the log is told what Redis refuses and
//! what to do, of each thing once a minute, however many requests meet it.

use std::{fmt, time::Duration};

use super::{Rooms, ToControl};
use crate::{
    bus::{redis::RedisFailure, to},
    hub::name::RoomName,
    shard::{clock, complaints::Complaints},
};

/// How often the log is told that something is refused.
const REFUSAL_INTERVAL: Duration = Duration::from_mins(1);

/// What to do about it.
const ADVICE: &str = "NOPERM: its user lacks a key, channel or command of those that docs/sessions.md lists; WRONGTYPE: \
                      somebody else has written this key, which is to be deleted";

/// What is needed of Redis.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need<'a> {
    /// A connection for scripts and channels together.
    Connection,
    Scripts,
    /// Which server it is.
    Server,
    Rooms,
    Room(&'a RoomName),
    Lease,
    Instances,
    Channel(&'a str),
    Events,
}

impl Need<'_> {
    /// How many of them are told of by themselves.
    const KINDS: usize = 8;

    const fn kind(self) -> usize {
        match self {
            Self::Connection => 0,
            Self::Scripts => 1,
            Self::Server => 2,
            Self::Rooms | Self::Room(_) => 3,
            Self::Lease => 4,
            Self::Instances => 5,
            Self::Channel(_) => 6,
            Self::Events => 7,
        }
    }
}

/// As the log names it.
impl fmt::Display for Need<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection => f.write_str("a connection that speaks RESP3"),
            Self::Scripts => f.write_str("SCRIPT LOAD"),
            Self::Server => f.write_str("INFO"),
            Self::Rooms => f.write_str("shardgate:room:*"),
            Self::Room(room) => write!(f, "shardgate:room:{room}:*, shardgate:bus:*"),
            Self::Lease => f.write_str("shardgate:presence:*"),
            Self::Instances => f.write_str("shardgate:instances*, shardgate:bus:*"),
            Self::Channel(channel) => f.write_str(channel),
            Self::Events => f.write_str("shardgate:events:*"),
        }
    }
}

/// What Redis has refused.
#[derive(Debug)]
pub(super) struct Refusals {
    by_kind: [Complaints; Need::KINDS],
    /// Those that the control thread has not counted yet.
    uncounted: u64,
    /// Whether something that all of it needs has been refused since it was up.
    pub(super) is_told: bool,
    /// Whether lifecycle events are refused.
    of_events: bool,
}

impl Refusals {
    pub(super) fn new() -> Self {
        let by_kind = [const { Complaints::every(REFUSAL_INTERVAL) }; Need::KINDS];
        Self { by_kind, uncounted: 0, is_told: false, of_events: false }
    }
}

impl Rooms {
    /// What follows from what came of a request on the connection of this number.
    pub(super) fn note(&self, number: u64, need: Need<'_>, failure: &RedisFailure) {
        let is_of_no_use = match failure {
            RedisFailure::Refused(_) => return self.note_refusal(need, failure),
            RedisFailure::Away(_) => true,
            // A cluster's other servers may take what one does not.
            RedisFailure::NoChanges(..) => !self.names.is_cluster(),
            RedisFailure::Late => false,
        };
        // That it is away, or takes no changes, the log is told where the connection for sessions is kept.
        if is_of_no_use {
            self.state.with(|state| state.failed = number);
            self.failed.notify_one();
        }
    }

    fn note_refusal(&self, need: Need<'_>, failure: &RedisFailure) {
        let (is_of_events, is_of_all) = (matches!(need, Need::Events), !matches!(need, Need::Events | Need::Server));
        let (count, is_first) = self.state.with(|state| {
            state.refusals.uncounted += 1;
            let count = state.refusals.by_kind[need.kind()].add(clock::now(), 1);
            (count, is_of_all && !std::mem::replace(&mut state.refusals.is_told, true))
        });
        if let Some(count) = count {
            let (what, error) = (need.to_string(), ErrorChain(failure));
            match need {
                Need::Server => tracing::warn!(
                    what,
                    %error,
                    "Redis does not tell which server it is: that a replica took over which lacks the last messages may not be \
                     seen; its user lacks a command of those that docs/sessions.md lists"
                ),
                Need::Events => {
                    tracing::error!(what, %error, count, "Redis refuses what lifecycle events need; {ADVICE}");
                }
                _ => tracing::error!(
                    what,
                    %error,
                    count,
                    "Redis refuses what rooms across instances need; {ADVICE}"
                ),
            }
        }
        if is_first {
            self.way.0.send(to::Control, ToControl::BusRefused);
        }
        if is_of_events {
            self.events_are_refused(self.lifecycle.is_wanted());
        }
    }

    /// What lifecycle events need is refused, or is not: then the hub is ready.
    pub(super) fn events_are_refused(&self, are: bool) {
        if self.state.with(|state| std::mem::replace(&mut state.refusals.of_events, are)) != are {
            self.way.0.send(to::Control, ToControl::EventsRefused(are));
        }
    }

    /// Has what was refused counted.
    pub(super) fn count_refusals(&self) {
        let count = self.state.with(|state| std::mem::take(&mut state.refusals.uncounted));
        if count > 0 {
            self.way.0.send(to::Control, ToControl::BusRefusals(count));
        }
    }
}

/// A failure with its cause, in one line.
struct ErrorChain<'a>(&'a RedisFailure);

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        match self.0 {
            RedisFailure::Refused(cause) => write!(f, ": {cause}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Instant;

    #[test]
    fn the_log_is_told_once_in_a_while_with_a_count() {
        let interval = Duration::from_secs(4);
        let (mut complaints, start) = (Complaints::every(interval), Instant::START);
        assert_eq!(complaints.add(start, 0), None);
        assert_eq!(complaints.add(start, 1), Some(1));
        assert_eq!(complaints.add(start + interval / 2, 1), None);
        assert_eq!(complaints.add(start + interval, 2), Some(3));
    }
}

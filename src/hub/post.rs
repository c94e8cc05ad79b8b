//! Where letters wait until they go: to this shard's own hub, handled before its call ends or in the next turn, to another's, or to the bus.

use std::collections::VecDeque;

use super::bus::BusRequest;
use super::letter::RoomLetter;

/// Letters on their way. One per shard.
#[derive(Debug, Default)]
pub(super) struct Post {
    shard: usize,
    own: VecDeque<RoomLetter>,
    others: VecDeque<(usize, RoomLetter)>,
    bus: VecDeque<BusRequest>,
}

impl Post {
    pub(super) fn new(shard: usize) -> Self {
        Self { shard, ..Self::default() }
    }

    pub(super) fn send(&mut self, to: usize, letter: RoomLetter) {
        if to == self.shard {
            self.own.push_back(letter);
        } else {
            self.others.push_back((to, letter));
        }
    }

    /// To the bus.
    pub(super) fn ask(&mut self, request: BusRequest) {
        self.bus.push_back(request);
    }

    pub(super) fn next_request(&mut self) -> Option<BusRequest> {
        self.bus.pop_front()
    }

    pub(super) fn next_own(&mut self) -> Option<RoomLetter> {
        self.own.pop_front()
    }

    /// To this shard's own hub, before all that waits.
    pub(super) fn send_first(&mut self, letter: RoomLetter) {
        self.own.push_front(letter);
    }

    pub(super) fn is_own_empty(&self) -> bool {
        self.own.is_empty()
    }

    pub(super) fn next_other(&mut self) -> Option<(usize, RoomLetter)> {
        self.others.pop_front()
    }
}

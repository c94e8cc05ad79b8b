//! Requests and answers, in an open or a closed loop.

use std::collections::VecDeque;

use super::{EXPIRE_EVERY, Meter, Plan, REST};
use crate::http::{Client, Outcome};
use crate::pace::Pace;
use crate::socket;
use crate::tally::Tally;

pub(super) fn run(client: Client, meter: Meter<'_>) -> Tally {
    let share = meter.share;
    let threads = share.job.threads.min(share.job.connections).max(1) as u64;
    let pace = match share.job.plan {
        Plan::Open { rate, arrival, seed } => {
            let rate = rate / threads as f64;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a gap is positive and short")]
            let gap = (1e9 / rate) as u64;
            // Threads take turns, so that together they are as even as one.
            let nth = share.nth as u64;
            Some(Pace::new(arrival, rate, share.start + gap * nth / threads, seed.wrapping_add(nth)))
        }
        _ => None,
    };
    let timeout = share.job.timeout_ns;
    let end = share.end;
    let mut it = Loop { client, meter, pace, idle: VecDeque::new(), resting: VecDeque::new() };
    for slot in 0..it.client.connections() {
        it.client.open(slot);
        it.resting.push_back((share.start, slot));
    }
    let mut next_expiry = share.start;
    loop {
        let now = socket::now();
        it.meter.tick(now, it.client.traffic);
        if now >= end && it.client.busy() == 0 {
            break;
        }
        if now >= next_expiry {
            next_expiry = now + EXPIRE_EVERY;
            it.client.expire(now.saturating_sub(timeout));
        }
        let next = it.send_due(now).min(next_expiry);
        it.client.wait(next.saturating_sub(now));
        while let Some((slot, outcome)) = it.client.next(&mut |_, _| {}) {
            it.ended(slot, outcome);
        }
    }
    it.meter.tally.backlog = it.pace.as_ref().map_or(0, |pace| pace.untaken_before(end));
    it.meter.finish(&it.client)
}

struct Loop<'share> {
    client: Client,
    meter: Meter<'share>,
    /// None in a closed loop.
    pace: Option<Pace>,
    /// Connections without a request, in an open loop; the longest idle comes first, so that all are used.
    idle: VecDeque<usize>,
    /// Connections that wait a little after a failure, with the time when they go on.
    resting: VecDeque<(u64, usize)>,
}

impl Loop<'_> {
    /// Sends what is due; returns when more will be.
    fn send_due(&mut self, now: u64) -> u64 {
        let end = self.meter.share.end;
        while let Some((at, slot)) = self.resting.front().copied() {
            if at > now {
                break;
            }
            self.resting.pop_front();
            self.ready(slot, now);
        }
        let mut next = self.resting.front().map_or(u64::MAX, |(at, _)| *at);
        if now < end {
            next = next.min(end);
        }
        let Some(pace) = &mut self.pace else { return next };
        while let Some(slot) = self.idle.front().copied() {
            let due = pace.next_due();
            if due >= end {
                break;
            }
            if pace.take_due(now).is_none() {
                next = next.min(due);
                break;
            }
            self.idle.pop_front();
            // A connection was free, so whatever is late is late by our own fault.
            if due >= self.meter.share.measure_from {
                self.meter.tally.lag.saturating_record(now - due);
            }
            self.client.send(slot, due, now);
        }
        next
    }

    /// A connection can take the next request.
    fn ready(&mut self, slot: usize, now: u64) {
        let end = self.meter.share.end;
        match &mut self.pace {
            None if now < end => self.client.send(slot, now, now),
            None => {}
            Some(pace) => {
                let due = if pace.next_due() < end { pace.take_due(now) } else { None };
                match due {
                    Some(due) if now < end => self.client.send(slot, due, now),
                    _ => self.idle.push_back(slot),
                }
            }
        }
    }

    fn ended(&mut self, slot: usize, outcome: Outcome) {
        if outcome == Outcome::Closed {
            return; // while idle, which is the server's right: the next request connects again
        }
        let now = self.client.now();
        self.meter.count(outcome, self.client.intended_at(slot), now);
        if matches!(outcome, Outcome::Failed(_)) {
            self.resting.push_back((now + REST, slot));
        } else {
            self.ready(slot, now);
        }
    }
}

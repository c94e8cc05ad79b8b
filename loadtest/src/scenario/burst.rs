//! A number of requests at once, each sent one time: how many are served, how many told to come back later, and what
//! the served ones were told.

use super::{EXPIRE_EVERY, Meter, SECOND};
use crate::http::{Client, Outcome};
use crate::socket;
use crate::tally::Tally;

pub(super) fn run(mut client: Client, mut meter: Meter<'_>) -> Tally {
    let share = meter.share;
    let count = share.job.requests.heads.len();
    let slots = client.connections();
    // What is asked at once should arrive at once: the connections stand before the first request leaves.
    for slot in 0..slots {
        client.open(slot);
    }
    let settled = socket::now() + SECOND / 2;
    while socket::now() < settled {
        client.wait(SECOND / 100);
        while client.next(&mut |_, _| {}).is_some() {}
    }
    let start = socket::now();
    meter.tick(start, client.traffic);
    let (mut sent, mut next_expiry) = (0, start);
    let mut free = (0..slots).rev().collect::<Vec<_>>();
    let mut contents = vec![Vec::new(); slots];
    while sent < count || client.busy() > 0 {
        let now = socket::now();
        meter.tick(now, client.traffic);
        while sent < count
            && let Some(slot) = free.pop()
        {
            client.send(slot, now, now);
            sent += 1;
        }
        if now >= next_expiry {
            next_expiry = now + EXPIRE_EVERY;
            client.expire(now.saturating_sub(share.job.timeout_ns));
        }
        client.wait(SECOND / 10);
        while let Some((slot, outcome)) = client.next(&mut |slot, part| contents[slot].extend_from_slice(part)) {
            if outcome == Outcome::Closed {
                continue; // after its answer
            }
            let now = client.now();
            meter.count(outcome, client.intended_at(slot), now);
            let content = std::mem::take(&mut contents[slot]);
            match outcome {
                Outcome::Answered { status: 200 } => {
                    meter.tally.contents.push(content);
                    meter.tally.took_ns = now - start;
                }
                Outcome::Answered { status: 429 | 503 } => {
                    meter.tally.told_when += u64::from(client.was_told_when(slot));
                }
                _ => {}
            }
            free.push(slot);
        }
    }
    meter.finish(&client)
}

//! Keep-alive connections that have each had one answer and then do nothing: what they weigh on the server.

use super::{EXPIRE_EVERY, Meter, SECOND};
use crate::http::{Client, Outcome};
use crate::process;
use crate::socket;
use crate::tally::{Held, Tally};

/// Connections on their way at once: fewer than a listener's backlog.
const OPENING_MAX: usize = 256;

pub(super) fn run(mut client: Client, mut meter: Meter<'_>, hold_ns: u64) -> Tally {
    let share = meter.share;
    let before = share.job.server_pid.map(process::memory);
    let (mut next_slot, mut next_expiry) = (0, 0);
    // Until all have had their answers; then for as long as they are to be held.
    let mut until = None;
    loop {
        let now = socket::now();
        meter.tick(now, client.traffic);
        if now >= next_expiry {
            next_expiry = now + EXPIRE_EVERY;
            client.expire(now.saturating_sub(share.job.timeout_ns));
        }
        while next_slot < client.connections() && client.busy() < OPENING_MAX {
            client.send(next_slot, now, now);
            next_slot += 1;
        }
        if until.is_none() && next_slot == client.connections() && client.busy() == 0 {
            until = Some(now + hold_ns);
        }
        if until.is_some_and(|until| now >= until) || now >= share.end {
            break;
        }
        client.wait(until.map_or(SECOND / 10, |until| until - now).min(SECOND / 10));
        while let Some((slot, outcome)) = client.next(&mut |_, _| {}) {
            let now = client.now();
            if outcome == Outcome::Closed {
                meter.tally.closed += 1;
            } else {
                meter.count(outcome, client.intended_at(slot), now);
            }
        }
    }
    // Weighed while they are open.
    let connections = (0..client.connections()).filter(|slot| client.is_open(*slot)).count() as u64;
    let after = share.job.server_pid.map(process::memory);
    meter.tally.held = Some(Held { connections, before: before.unwrap_or_default(), after: after.unwrap_or_default() });
    meter.finish(&client)
}

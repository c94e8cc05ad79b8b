//! One big body on each connection, up or down.

use super::{Meter, SECOND};
use crate::http::{Client, Outcome};
use crate::socket;
use crate::tally::Tally;

pub(super) fn run(mut client: Client, mut meter: Meter<'_>) -> Tally {
    let share = meter.share;
    let start = socket::now();
    meter.tick(start, client.traffic);
    for slot in 0..client.connections() {
        client.send(slot, start, start);
    }
    // A transfer may take as long as it likes while bytes move; it fails when none have for the timeout.
    let (mut moved, mut moved_at) = (0, start);
    while client.busy() > 0 {
        client.wait(SECOND / 10);
        while let Some((slot, outcome)) = client.next(&mut |_, _| {}) {
            if outcome != Outcome::Closed {
                meter.count(outcome, client.intended_at(slot), client.now());
                meter.tally.took_ns = meter.tally.took_ns.max(client.now() - start);
            }
        }
        let now = socket::now();
        meter.tick(now, client.traffic);
        let total = client.traffic.bytes_in + client.traffic.bytes_out;
        if total != moved {
            (moved, moved_at) = (total, now);
        } else if now - moved_at > share.job.timeout_ns || now >= share.end {
            client.expire(u64::MAX);
        }
    }
    meter.finish(&client)
}

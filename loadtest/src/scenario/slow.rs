//! Slow clients (slowloris): each sends a byte at a time of a head, or of a body, that never ends; what does the
//! server do with each, and after how long?

use super::{Meter, SECOND};
use crate::http::{Client, Failure, Outcome};
use crate::socket;
use crate::tally::{Ending, Tally};

pub(super) fn run(mut client: Client, mut meter: Meter<'_>, every_ns: u64, in_body: bool) -> Tally {
    let share = meter.share;
    let count = client.connections() as u64;
    let head = share.job.requests.heads[0].clone();
    // Without the empty line at its end, a head goes on for ever in the value of one field.
    let endless = [&head[..head.len() - 2], b"X-Slow: "].concat();
    let mut sent = vec![0_usize; client.connections()];
    let mut open = vec![true; client.connections()];
    for slot in 0..client.connections() {
        client.begin(slot, share.start, share.start);
    }
    // The nth byte of all leaves at start + n × every ÷ connections: spread evenly, no burst.
    let mut turn = 0_u64;
    while client.busy() > 0 {
        let now = socket::now();
        meter.tick(now, client.traffic);
        if now >= share.end {
            break;
        }
        let due = |turn: u64| {
            let elapsed = u128::from(turn) * u128::from(every_ns.max(1)) / u128::from(count);
            share.start + u64::try_from(elapsed).unwrap_or(u64::MAX / 2)
        };
        while due(turn) <= now {
            let slot = usize::try_from(turn % count).unwrap_or(0);
            turn += 1;
            if !open[slot] {
                continue;
            }
            let bytes = match (in_body, sent[slot]) {
                (true, 0) => head.as_slice(),
                (true, _) => b"x",
                (false, at) => endless.get(at..=at).unwrap_or(b"a"),
            };
            sent[slot] += usize::from(client.trickle(slot, bytes));
        }
        client.wait(due(turn).min(share.end).saturating_sub(now).min(SECOND / 10));
        while let Some((slot, outcome)) = client.next(&mut |_, _| {}) {
            let ending = match outcome {
                Outcome::Answered { status } => Ending::Status(status),
                Outcome::Failed(failure) => Ending::Closed(failure),
                Outcome::Closed => continue, // after its answer
            };
            if let Outcome::Failed(Failure::ConnectRefused | Failure::NoSocket | Failure::Network) = outcome {
                meter.tally.count(outcome, 0, &share.job.expected);
            }
            open[slot] = false;
            meter.tally.endings.push((ending, client.now().saturating_sub(share.start)));
        }
    }
    let lasted = socket::now().saturating_sub(share.start);
    let still_open = open.iter().filter(|open| **open).map(|_| (Ending::StillOpen, lasted));
    meter.tally.endings.extend(still_open);
    meter.finish(&client)
}

//! What will go wrong when, and who has which errand then: made of a seed alone.
//!
//! Faults of Redis and faults of the instances have a row each, so that they meet. Errands bring users to where it hurts:
//! log-outs to the moment when Redis fails, renewals to the instance that freezes.

use std::time::Duration;

use fastrand::Rng;

use super::history::Ms;

pub(super) const INSTANCES: usize = 2;

/// For so long instances start again now and then, then for as long they do not.
const RESTARTS_MS: Ms = 22_000;

/// A user and what is due.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) seed: u64,
    pub(super) errands: Vec<(Ms, Errand)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    LogOut,
    /// At this instance first; and in again.
    LogOutEverywhere(usize),
    /// At this instance first, which does not answer; and once more soon.
    Renew(usize),
}

/// What Redis suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RedisFault {
    /// Killed, and started again later from its file.
    Kill,
    /// The same, and it is away for longer than an instance waits for it that starts.
    Leave,
    /// Killed, and started again at once.
    Bounce,
    /// Stopped: it keeps its connections and answers nobody.
    Stop,
    /// Full: it reads and refuses to write.
    Fill,
    /// All connections of clients are cut.
    Blink,
}

/// What an instance suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InstanceFault {
    Freeze,
    Kill,
    Restart,
}

/// One fault: when, whose, what, and for how long.
#[derive(Debug)]
pub(super) struct Due<F> {
    pub(super) at: Ms,
    pub(super) instance: usize,
    pub(super) fault: F,
    pub(super) lasts: Duration,
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) redis: Vec<Due<RedisFault>>,
    pub(super) instances: Vec<Due<InstanceFault>>,
    pub(super) lives: Vec<Life>,
    /// From here on nothing goes wrong any more.
    pub(super) calm_at: Ms,
}

impl Plan {
    pub(super) fn new(seed: u64, users: usize, time: Duration) -> Self {
        let mut rng = Rng::with_seed(seed);
        let calm_at = Ms::try_from(time.as_millis()).expect("minutes");
        let kinds = [
            RedisFault::Kill,
            RedisFault::Leave,
            RedisFault::Bounce,
            RedisFault::Stop,
            RedisFault::Fill,
            RedisFault::Blink,
            RedisFault::Bounce,
            RedisFault::Blink,
        ];
        let redis = row(&mut rng, calm_at, 800..3_000, &kinds, |rng, fault| match fault {
            RedisFault::Leave => rng.u64(6_500..8_500),
            RedisFault::Blink | RedisFault::Bounce => 0,
            RedisFault::Fill => rng.u64(200..1_500),
            RedisFault::Kill | RedisFault::Stop => rng.u64(200..3_000),
        });
        // To freeze is what is cheapest, and what finds most.
        let kinds = [InstanceFault::Freeze, InstanceFault::Freeze, InstanceFault::Kill, InstanceFault::Restart];
        let mut instances = row(&mut rng, calm_at, 1_000..4_000, &kinds, |rng, fault| match fault {
            // Long enough for a client to renew twice elsewhere, or as short as a pause that nobody sees.
            InstanceFault::Freeze if rng.bool() => rng.u64(2_200..3_500),
            InstanceFault::Freeze => rng.u64(200..1_000),
            InstanceFault::Kill | InstanceFault::Restart => rng.u64(0..500),
        });
        // An instance that starts may finish what others left half done. So for some time none does.
        instances.retain(|due| due.fault == InstanceFault::Freeze || (due.at / RESTARTS_MS).is_multiple_of(2));
        for away in redis.iter().filter(|due| due.fault == RedisFault::Leave) {
            let (at, instance, lasts) = (away.at + 100, rng.usize(0..INSTANCES), Duration::ZERO);
            instances.push(Due { at, instance, fault: InstanceFault::Kill, lasts });
        }
        instances.sort_by_key(|due| due.at);
        let lives = (0..users).map(|_| Life::new(&mut rng, &redis, &instances)).collect();
        Self { redis, instances, lives, calm_at }
    }
}

/// Faults one after the other, each kind as often as it is in `kinds`.
fn row<F: Copy>(
    rng: &mut Rng,
    calm_at: Ms,
    pause: std::ops::Range<Ms>,
    kinds: &[F],
    lasts: impl Fn(&mut Rng, F) -> Ms,
) -> Vec<Due<F>> {
    let (mut row, mut kinds, mut at) = (Vec::new(), kinds.to_vec(), 1_500);
    loop {
        rng.shuffle(&mut kinds);
        for &fault in &kinds {
            at += rng.u64(pause.clone());
            let lasts = lasts(rng, fault);
            if at + lasts > calm_at {
                return row;
            }
            row.push(Due { at, instance: rng.usize(0..INSTANCES), fault, lasts: Duration::from_millis(lasts) });
            at += lasts;
        }
    }
}

impl Life {
    fn new(rng: &mut Rng, redis: &[Due<RedisFault>], instances: &[Due<InstanceFault>]) -> Self {
        let mut errands = Vec::new();
        for due in redis {
            // Milliseconds around the fault: an ending is some round trips long.
            let at = (due.at + rng.u64(0..16)).saturating_sub(10);
            match rng.u8(0..10) {
                0..5 => errands.push((at, Errand::LogOut)),
                5 => errands.push((at, Errand::LogOutEverywhere(rng.usize(0..INSTANCES)))),
                _ => {}
            }
        }
        // An instance that starts while Redis is away knows nothing of what has just ended.
        for due in redis.iter().filter(|due| due.fault == RedisFault::Leave) {
            errands.push((due.at.saturating_sub(rng.u64(200..1_000)), Errand::LogOut));
        }
        for due in instances.iter().filter(|due| due.fault == InstanceFault::Freeze) {
            // Some amid the freeze; most behind it: what is asked of Redis when the instance freezes is late when it goes on,
            // and whoever asks then is put off.
            let at =
                if due.at % 3 == 0 { (due.at + rng.u64(0..60)).saturating_sub(20) } else { due.at + rng.u64(10..80) };
            let errand = if rng.u8(0..6) == 0 { Errand::LogOutEverywhere } else { Errand::Renew };
            errands.push((at, errand(due.instance)));
        }
        errands.sort_by_key(|(at, _)| *at);
        Self { seed: rng.u64(..), errands }
    }
}

//! What the log is told of verdicts: the first change of an upstream at once, and what else changes within a second together.
//! Whoever flaps does not fill it.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    shard::Instant,
    telemetry::metrics::ProbeResult,
    upstream::{BackendAddress, probe::Verdict},
};

/// Lines of an upstream are at least so far apart.
const QUIET: Duration = Duration::from_secs(1);

/// So many instances are named in a line.
const NAMED_MAX: usize = 16;

/// The changes of one upstream's verdicts.
#[derive(Debug, Default)]
pub(super) struct Changes {
    quiet_until: Instant,
    /// Whose verdict has changed since the last line, and whether it is up now.
    untold: BTreeMap<BackendAddress, bool>,
    /// How many changes that were.
    count: u32,
}

impl Changes {
    /// An instance's verdict was this one, and is that one now.
    pub(super) fn tell(
        &mut self,
        upstream: &str,
        at: &BackendAddress,
        before: Verdict,
        verdict: Verdict,
        result: ProbeResult,
        now: Instant,
    ) {
        if before == verdict || (before.is_down() && verdict.is_down()) {
            // That it is so was told.
            return;
        }
        if now < self.quiet_until {
            self.count += 1;
            self.untold.insert(at.clone(), verdict.is_up());
            return;
        }
        let (instance, address) = (&*at.name, &at.address);
        if before == Verdict::Unknown && verdict.is_up() {
            // As it should be.
            tracing::debug!(upstream, instance, %address, "an instance is up: its first probe went well");
            return;
        }
        self.quiet_until = now + QUIET;
        if verdict.is_up() {
            tracing::info!(upstream, instance, %address, "an instance is up: its probes go well");
        } else {
            let error = ProbeResult::VALUES[result.index()];
            tracing::warn!(upstream, instance, %address, error, "an instance is down: its probes fail");
        }
    }

    /// When there is something left to tell.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.count > 0).then_some(self.quiet_until)
    }

    /// Tells what has changed since the last line, if it is time.
    pub(super) fn tell_rest(&mut self, upstream: &str, now: Instant) {
        if self.due().is_none_or(|due| now < due) {
            return;
        }
        let (changes, untold) = (std::mem::take(&mut self.count), std::mem::take(&mut self.untold));
        self.quiet_until = now + QUIET;
        if let [(at, is_up)] = &*untold.iter().collect::<Vec<_>>() {
            let (instance, address) = (&*at.name, &at.address);
            if **is_up {
                tracing::info!(upstream, instance, %address, changes, "an instance is up: its probes go well");
            } else {
                tracing::warn!(upstream, instance, %address, changes, "an instance is down: its probes fail");
            }
            return;
        }
        let [down, up] = [false, true].map(|is_one| {
            let which = untold.iter().filter(|(_, is_up)| **is_up == is_one);
            listed(which.map(|(at, _)| at.label()).collect())
        });
        if down.is_empty() {
            tracing::info!(upstream, changes, up, "instances are up: their probes go well");
        } else {
            tracing::warn!(upstream, changes, down, up, "instances are down: their probes fail");
        }
    }
}

fn listed(names: Vec<String>) -> String {
    let count = names.len();
    let mut named: Vec<_> = names.into_iter().take(NAMED_MAX).collect();
    if count > NAMED_MAX {
        named.push(format!("and {} more", count - NAMED_MAX));
    }
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_is_told_at_once_and_the_rest_once_a_second() {
        let at = |port: u16| {
            let address = std::net::SocketAddr::from(([10, 0, 0, 1], port)).into();
            BackendAddress { name: "a".into(), address }
        };
        let (mut changes, mut now) = (Changes::default(), Instant::START + QUIET);
        let flap = |changes: &mut Changes, port, verdict, now| {
            let before = if verdict == Verdict::Up { Verdict::Down } else { Verdict::Up };
            changes.tell("a", &at(port), before, verdict, ProbeResult::Refused, now);
        };
        flap(&mut changes, 1, Verdict::Down, now);
        assert_eq!((changes.due(), changes.quiet_until), (None, now + QUIET), "that is a line");
        for round in 0..100 {
            let verdict = if round % 2 == 0 { Verdict::Up } else { Verdict::Down };
            flap(&mut changes, 1, verdict, now);
            flap(&mut changes, 2, verdict, now);
        }
        assert_eq!((changes.due(), changes.count, changes.untold.len()), (Some(now + QUIET), 200, 2));
        changes.tell_rest("a", now);
        assert_eq!(changes.count, 200, "not yet");
        now += QUIET;
        changes.tell_rest("a", now);
        assert_eq!((changes.due(), changes.count, changes.quiet_until), (None, 0, now + QUIET));
        // From not well to not there: it was told that it is down.
        changes.tell("a", &at(1), Verdict::Unwell, Verdict::Down, ProbeResult::Refused, now + QUIET);
        assert_eq!(changes.quiet_until, now + QUIET);
        assert_eq!(listed(vec!["a".to_owned(); NAMED_MAX + 2]).matches("and 2 more").count(), 1);
    }
}

//! What a shard tells of each instance: whether it uses it, and what it counted. Adding up is for the control thread.

use std::{hash::Hasher as _, net::IpAddr, rc::Rc};

use siphasher::sip::SipHasher13;

use super::{Backend, BackendAddress, Probed, Upstream, UpstreamState};
use crate::{
    shard::Instant,
    telemetry::metrics::{InstanceOut, Outcome},
};

/// Names an instance of an upstream to the control thread: a hash of where it is and of the name that it is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(u64);

/// How an instance stands on one shard, and what was counted there since it came. Moves to the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceReport {
    /// Which one.
    pub id: InstanceId,
    /// Since when the shard has counted: of one that went and came back it may know nothing any more.
    pub counted_since: Instant,
    /// Why the shard does not use it; `None` if it does.
    pub out: Option<InstanceOut>,
    /// Until when it is left out for failing, whatever else keeps it out.
    pub out_until: Option<Instant>,
    /// The class of its last failure, while it is left out for failing, or fails and is not.
    pub error: Option<&'static str>,
    /// Requests under way.
    pub in_flight: u32,
    /// How long it takes to answer, in microseconds; 0 while nothing is known of late.
    pub latency_us: u32,
    /// What was counted.
    pub counts: InstanceCounts,
}

impl InstanceReport {
    /// Whether it fails in a row, and is in use.
    pub fn is_failing_in_use(&self) -> bool {
        self.error.is_some() && self.out_until.is_none()
    }
}

/// What a shard counts of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceCounts {
    /// Attempts that ended, by outcome.
    pub requests: [u64; Outcome::COUNT],
    /// Times that it was left out.
    pub ejections: u64,
}

impl BackendAddress {
    /// What metrics call it: as configured, and behind a name the address that it stands for.
    pub fn label(&self) -> String {
        let address = self.address.to_string();
        // A socket with a path has no name of its own.
        if self.address.ip().is_none() || address == *self.name {
            return address;
        }
        if self.is_https() && self.host().parse::<IpAddr>().is_ok() {
            return self.name.to_string();
        }
        format!("{} {address}", self.name)
    }

    /// What names it to the control thread; the same on every shard.
    pub fn id(&self) -> InstanceId {
        let mut hasher = SipHasher13::new();
        hasher.write(self.label().as_bytes());
        InstanceId(hasher.finish())
    }
}

impl Upstream {
    /// How each instance stands on this shard; those too that are leaving, until nothing is under way on them and that has been
    /// told.
    pub fn report_instances(&self, now: Instant) -> Vec<InstanceReport> {
        self.state.with(|state| {
            let UpstreamState { settings, backends, leaving, .. } = state;
            let report = |backend: &Rc<Backend>| {
                backend.state.with(|known| {
                    known.is_told = known.in_flight == 0;
                    let out_until = known.outlier.out_until(now);
                    let is_failing = known.outlier.is_failing(&settings.outlier);
                    InstanceReport {
                        id: backend.id,
                        counted_since: backend.made_at,
                        out: match known.probed {
                            _ if known.order.held.is_some() => Some(InstanceOut::Held),
                            _ if out_until.is_some() => Some(InstanceOut::Ejected),
                            Probed::Untested if settings.is_probed => Some(InstanceOut::Untested),
                            Probed::Unwell | Probed::Down if settings.is_probed => Some(InstanceOut::Probes),
                            _ if is_failing => Some(InstanceOut::Failing),
                            _ => None,
                        },
                        out_until,
                        error: known.last_error.filter(|_| out_until.is_some() || is_failing),
                        in_flight: known.in_flight,
                        latency_us: known.latency.of_late_us(now),
                        counts: known.counts,
                    }
                })
            };
            backends.iter().chain(&*leaving).map(report).collect()
        })
    }
}

impl Backend {
    /// An attempt at it has ended.
    #[inline]
    pub fn count(&self, outcome: Outcome) {
        self.state.with(|state| state.counts.requests[outcome.index()] += 1);
    }
}

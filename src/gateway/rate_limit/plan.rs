//! Limits made ready for the shards: compiled once per configuration.

use super::{
    cells::CellKey,
    counter::{Home, Terms},
    gcra::Rate,
};
use crate::{
    config::{Config, Limit, LimitApplies, LimitKey, LimitScope, Route},
    telemetry::slots::{MetricSlot, MetricSlots, OTHER},
};

/// A limit, compiled. Crosses to the shards within their plan.
#[derive(Clone, Debug)]
pub struct LimitPlan {
    /// Its name.
    pub name: Box<str>,
    /// Whose requests are counted together.
    pub key: LimitKey,
    terms: Terms,
    /// What it works by on one instance while Redis is away.
    local: Terms,
    /// `"name";q=100;w=60`
    pub(super) policy: Box<[u8]>,
    /// `"name";r=`
    pub(super) remaining: Box<[u8]>,
    applies: LimitApplies,
}

/// Which limits a route's requests meet: first those by address, then the others; as places in the plan's list.
#[derive(Clone, Debug, Default)]
pub(in crate::gateway) struct RouteLimits {
    pub(in crate::gateway) by_address: Box<[u8]>,
    pub(in crate::gateway) later: Box<[u8]>,
    /// What the route is counted by.
    pub(in crate::gateway) key: CellKey,
}

/// All limits of a configuration, for so many shards. `None` when more were named since the process began than it has
/// places for.
pub fn compile(config: &Config, shards: usize, slots: &mut MetricSlots) -> Option<Vec<LimitPlan>> {
    let compiled = config.limits.iter().map(|(name, limit)| {
        let slot = slots.claim(name);
        (slot != OTHER).then(|| LimitPlan::compile(name, limit, slot, shards))
    });
    compiled.collect()
}

impl LimitPlan {
    fn compile(name: &str, limit: &Limit, slot: MetricSlot, shards: usize) -> Self {
        let rate = Rate::new(limit.interval_ns(), limit.burst());
        let home = match limit.scope {
            LimitScope::Shard => Home::Here,
            LimitScope::Process if shards == 1 => Home::Here,
            LimitScope::Process => Home::Shard,
            LimitScope::Fleet => Home::Redis,
        };
        let terms =
            Terms { slot, rate, home, lease: lease(limit, shards), dry_run: limit.dry_run, keys_max: limit.keys_max };
        let local = if limit.scope == LimitScope::Fleet {
            let home = if shards == 1 { Home::Here } else { Home::Shard };
            Terms { rate: local_share(limit), home, ..terms }
        } else {
            terms
        };
        // The window is told in whole seconds, so a shorter one is told as what it comes to in a second.
        let window_ms = limit.window.as_millis().max(1);
        let window_s = window_ms.div_ceil(1000);
        let quota = u128::from(limit.quota) * window_s * 1000 / window_ms;
        Self {
            name: name.into(),
            key: limit.key,
            terms,
            local,
            policy: format!("\"{name}\";q={quota};w={window_s}").into_bytes().into(),
            remaining: format!("\"{name}\";r=").into_bytes().into(),
            applies: limit.applies,
        }
    }

    /// Its place in the metrics; letters name it so, too.
    pub fn slot(&self) -> MetricSlot {
        self.terms.slot
    }

    /// What it works by.
    pub fn terms(&self, is_redis_away: bool) -> Terms {
        if is_redis_away { self.local } else { self.terms }
    }

    /// Whether all instances count it together.
    pub fn is_fleet(&self) -> bool {
        self.terms.home == Home::Redis
    }

    /// At what rate Redis counts it.
    pub fn rate(&self) -> Rate {
        self.terms.rate
    }
}

/// How far one shard may be ahead of a key's home: all of them together by a quarter of the burst, and each by one.
fn lease(limit: &Limit, shards: usize) -> u16 {
    let share = limit.burst() / u32::try_from(shards.saturating_mul(4)).unwrap_or(u32::MAX).max(1);
    u16::try_from(share).unwrap_or(u16::MAX / 2).clamp(1, u16::MAX / 2)
}

/// What an instance allows by itself while Redis is away.
fn local_share(limit: &Limit) -> Rate {
    let percent = limit.local_share_percent.clamp(1, 100);
    let interval = (limit.interval_ns().saturating_mul(100)).div_ceil(u64::from(percent));
    let burst = u64::from(limit.burst()) * u64::from(percent) / 100;
    Rate::new(interval, u32::try_from(burst).unwrap_or(u32::MAX).max(1))
}

impl RouteLimits {
    /// Those of a route.
    pub(in crate::gateway) fn of_route(limits: &[LimitPlan], route: &Route) -> Self {
        Self::gather(limits, &route.name, |limit| match &route.limits {
            Some(named) => named.iter().any(|name| **name == *limit.name),
            None => limit.applies == LimitApplies::All,
        })
    }

    /// Those of one of the gateway's own endpoints for accounts.
    pub(in crate::gateway) fn of_auth(limits: &[LimitPlan], name: &str) -> Self {
        Self::gather(limits, name, |limit| matches!(limit.applies, LimitApplies::All | LimitApplies::Auth))
    }

    /// Those of another one of the gateway's own endpoints.
    pub(in crate::gateway) fn of_own(limits: &[LimitPlan], name: &str) -> Self {
        Self::gather(limits, name, |limit| limit.applies == LimitApplies::All)
    }

    /// Those of requests that no route takes, and of preflights.
    pub(in crate::gateway) fn without_route(limits: &[LimitPlan]) -> Box<[u8]> {
        Self::gather(limits, "", |limit| limit.applies == LimitApplies::All).by_address
    }

    /// Whether no limit holds.
    pub(in crate::gateway) fn is_empty(&self) -> bool {
        self.by_address.is_empty() && self.later.is_empty()
    }

    fn gather(limits: &[LimitPlan], name: &str, holds: impl Fn(&LimitPlan) -> bool) -> Self {
        let places = |is_wanted: &dyn Fn(&LimitPlan) -> bool| {
            let wanted = limits.iter().enumerate().filter(|(_, limit)| holds(limit) && is_wanted(limit));
            wanted.filter_map(|(index, _)| u8::try_from(index).ok()).collect()
        };
        Self {
            by_address: places(&|limit| limit.key == LimitKey::Address),
            later: places(&|limit| limit.key != LimitKey::Address),
            key: CellKey::of_texts(b'r', b"", name.as_bytes()),
        }
    }
}

//! Rate limits: what is counted, how much of it is allowed, and on which routes. Counting is for the gateway.

use super::raw::{Node, Place, Value, quoted};
use super::read::{Fields, Report, suggestion};
use super::resolve::{NAME_FORM, is_name};
use super::{Route, units, written_duration};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A limit of the rate of requests. All of it follows a reload, and what is counted stays counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limit {
    /// Whose requests are counted together. Default address.
    pub key: LimitKey,
    /// Requests for each window, on average. Default 100.
    pub quota: u32,
    /// The window. Default 1 min.
    #[serde(serialize_with = "units::duration")]
    pub window: Duration,
    /// Requests at once, after a pause. `None`: as many as `quota`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Who counts together. Default process.
    pub scope: LimitScope,
    /// Where it holds. Default all.
    pub applies: LimitApplies,
    /// Whether it only counts and logs. Default false.
    pub dry_run: bool,
    /// What one instance allows by itself while Redis is away, in percent of the quota; of limits of the fleet. Default 50.
    pub local_share_percent: u32,
    /// Keys that each shard remembers. Default 65536. Shard.
    pub keys_max: usize,
}

impl Limit {
    /// Requests at once, after a pause.
    pub fn burst(&self) -> u32 {
        self.burst.unwrap_or(self.quota)
    }

    /// Nanoseconds in which one request is earned, rounded up: never faster than the quota.
    pub fn interval_ns(&self) -> u64 {
        let window = u64::try_from(self.window.as_nanos()).unwrap_or(u64::MAX);
        window.div_ceil(u64::from(self.quota.max(1))).max(1)
    }
}

/// A word of the configuration for each variant.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $(#[$doc:meta] $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub enum $name { $(#[$doc] #[serde(rename = $word)] $variant,)* }

        impl super::read::FromText for $name {
            fn from_text(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(super::read::one_of(Self::WORDS)),
                }
            }
        }

        impl super::read::Written for $name {
            fn read(node: &Node, key: &'static super::keys::Key, path: &str, report: &mut Report) -> Option<Self> {
                super::read::read_text(node, key.kind, path, report)
            }
        }

        impl $name {
            /// What may be written.
            pub const WORDS: &'static [&'static str] = &[$($word),*];
        }
    };
}

words! {
    /// Whose requests are counted together.
    LimitKey {
        /// Those of one client address, behind trusted proxies; of one /64 with IPv6.
        Address = "address",
        /// Those of one caller with a valid token.
        User = "user",
        /// All of a route's.
        Route = "route",
    }
}

words! {
    /// Who counts together.
    LimitScope {
        /// Each shard by itself.
        Shard = "shard",
        /// All shards of the process.
        Process = "process",
        /// All instances that share a Redis.
        Fleet = "fleet",
    }
}

words! {
    /// Where a limit holds.
    LimitApplies {
        /// On every route that names no limits of its own, on the gateway's own endpoints for accounts, and by address elsewhere.
        All = "all",
        /// On the gateway's own endpoints for accounts only.
        Auth = "auth",
        /// On the routes that name it.
        Named = "named",
    }
}

/// Each costs a look-up for every request, and a line in every answer.
const LIMITS_MAX: usize = 32;
/// Limits of one route, whoever named them.
pub const LIMITS_PER_ROUTE_MAX: usize = 8;
/// Faster is no rate that one could count by.
const QUOTA_PER_S_MAX: u64 = 1_000_000;
/// A burst is worth at most this much of the quota.
const BURST_WORTH_MAX: Duration = Duration::from_hours(30 * 24);

/// Reads `[limits.<name>]`.
pub(super) fn read_limits(node: Option<&Node>, report: &mut Report) -> BTreeMap<String, Limit> {
    let mut limits = BTreeMap::new();
    let Some(node) = node else { return limits };
    let Value::Table(table) = &node.value else {
        report.wrong(node, "limits", "it is a table of limits by name: [limits.login]");
        return limits;
    };
    for (name, node) in table {
        if !is_name(name) {
            report.push(node.place.clone(), format!("{} is no name of a limit", quoted(name)), NAME_FORM);
            continue;
        }
        let fields = Fields::of("limits.<name>", format!("limits.{name}"), Some(node), report);
        let limit = Limit {
            key: fields.take("key", report),
            quota: fields.take("quota", report),
            window: fields.take("window", report),
            burst: fields.take_written("burst", report),
            scope: fields.take("scope", report),
            applies: fields.take("applies", report),
            dry_run: fields.take("dry_run", report),
            local_share_percent: fields.take("local_share_percent", report),
            keys_max: fields.take("keys_max", report),
        };
        check_rate(&limit, &fields, report);
        limits.insert(name.clone(), limit);
    }
    if limits.len() > LIMITS_MAX {
        let what = format!("there are {} limits", limits.len());
        report.push(node.place.clone(), what, &format!("there are at most {LIMITS_MAX}"));
    }
    let on_all = limits.values().filter(|limit| limit.applies == LimitApplies::All).count();
    if on_all > LIMITS_PER_ROUTE_MAX {
        let what = format!("{on_all} limits apply to all routes");
        report.push(node.place.clone(), what, &format!("a route has at most {LIMITS_PER_ROUTE_MAX}"));
    }
    limits
}

fn check_rate(limit: &Limit, fields: &Fields<'_>, report: &mut Report) {
    let path = &fields.path;
    let per_s_max = limit.window.as_millis() * u128::from(QUOTA_PER_S_MAX) / 1000;
    if u128::from(limit.quota) > per_s_max {
        let what = format!("{path}.quota is {} in {}", limit.quota, written_duration(limit.window));
        report.push(fields.place_of("quota"), what, &format!("it is at most {QUOTA_PER_S_MAX} a second"));
    }
    let worth = u128::from(limit.interval_ns()) * u128::from(limit.burst());
    if worth > BURST_WORTH_MAX.as_nanos() {
        let what = format!("{path}.burst is {}", limit.burst());
        let right = format!("it is at most what the quota gives in {}", written_duration(BURST_WORTH_MAX));
        report.push(fields.place_of("burst"), what, &right);
    }
}

/// The limits that a route names: there are such, and they suit it.
pub(super) fn check_limits(route: &Route, fields: &Fields<'_>, limits: &BTreeMap<String, Limit>, report: &mut Report) {
    let Some(named) = &route.limits else { return };
    let path = &fields.path;
    let place = || fields.place_of("limits");
    for (index, name) in named.iter().enumerate() {
        let what = match limits.get(name) {
            None => format!("{path}.limits has {}, and there is no such limit", quoted(name)),
            Some(_) if named[..index].contains(name) => {
                report.push(place(), format!("{path}.limits has {} twice", quoted(name)), "once is enough");
                continue;
            }
            Some(limit) if limit.applies == LimitApplies::Auth => {
                let what = format!("{path}.limits has {}, which applies to the endpoints for accounts", quoted(name));
                report.push(place(), what, &format!("write limits.{name}.applies = \"named\""));
                continue;
            }
            Some(_) => continue,
        };
        let right = if limits.is_empty() {
            "define one: [limits.partners]".to_owned()
        } else {
            let names: Vec<&str> = limits.keys().map(String::as_str).collect();
            suggestion(name, &names, "")
        };
        report.push(place(), what, &right);
    }
    if named.len() > LIMITS_PER_ROUTE_MAX {
        let what = format!("{path}.limits has {} limits", named.len());
        report.push(place(), what, &format!("a route has at most {LIMITS_PER_ROUTE_MAX}"));
    }
}

/// Limits that hold nowhere look like a slip.
pub(super) fn warn_about_unused(limits: &BTreeMap<String, Limit>, routes: &[Route], report: &mut Report) {
    let is_named = |name: &String| routes.iter().flat_map(|route| &route.limits).flatten().any(|named| named == name);
    for (name, _) in limits.iter().filter(|(name, limit)| limit.applies == LimitApplies::Named && !is_named(name)) {
        report.warn(&Place::File, &format!("limits.{name} applies where it is named, and no route names it"));
    }
}

/// Without Redis nobody counts together with others.
pub(super) fn warn_about_lonely(limits: &BTreeMap<String, Limit>, has_redis: bool, report: &mut Report) {
    for (name, _) in limits.iter().filter(|(_, limit)| limit.scope == LimitScope::Fleet && !has_redis) {
        let why = "and there is no Redis (redis.urls): each instance counts alone, at its local_share_percent";
        report.warn(&Place::File, &format!("limits.{name}.scope is \"fleet\", {why}"));
    }
}

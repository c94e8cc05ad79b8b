//! Rate limits: what is counted, how much of it is allowed, and on which routes. Counting is for the gateway.

use super::keys::section::FromFields as _;
use super::raw::{Table, quoted};
use super::read::{Fields, suggestion_of};
use super::report::{Location, Report};
use super::{Limit, LimitApplies, LimitScope, Route, written_duration};
use std::collections::BTreeMap;
use std::time::Duration;

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

/// Each costs a look-up for every request, and a line in every answer.
const LIMITS_MAX: usize = 32;
/// Limits of one route, whoever named them.
pub const LIMITS_PER_ROUTE_MAX: usize = 8;
/// Faster is no rate that one could count by.
const QUOTA_PER_S_MAX: u64 = 1_000_000;
/// A burst is worth at most this much of the quota.
const BURST_WORTH_MAX: Duration = Duration::from_hours(30 * 24);

/// Reads `[limits.<name>]`.
pub(super) fn read_limits(root: &Table, report: &mut Report) -> BTreeMap<String, Limit> {
    let (node, mut limits) = (root.get("limits"), BTreeMap::new());
    for (name, fields) in Fields::named(Limit::SECTION, node, ["a limit", "login"], report) {
        let limit = Limit::from_fields(&fields, report);
        check_rate(&limit, &fields, report);
        limits.insert(name.to_owned(), limit);
    }
    let place = node.map_or(Location::File, |node| node.place.clone());
    if limits.len() > LIMITS_MAX {
        let what = format!("there are {} limits", limits.len());
        report.push(place.clone(), what, &format!("there are at most {LIMITS_MAX}"));
    }
    let on_all = limits.values().filter(|limit| limit.applies == LimitApplies::All).count();
    if on_all > LIMITS_PER_ROUTE_MAX {
        let what = format!("{on_all} limits apply to all routes");
        report.push(place, what, &format!("a route has at most {LIMITS_PER_ROUTE_MAX}"));
    }
    limits
}

fn check_rate(limit: &Limit, fields: &Fields<'_>, report: &mut Report) {
    let per_s_max = limit.window.as_millis() * u128::from(QUOTA_PER_S_MAX) / 1000;
    if u128::from(limit.quota) > per_s_max {
        let what = format_args!("is {} in {}", limit.quota, written_duration(limit.window));
        fields.wrong(report, "quota", what, &format!("it is at most {QUOTA_PER_S_MAX} a second"));
    }
    let worth = u128::from(limit.interval_ns()) * u128::from(limit.burst());
    if worth > BURST_WORTH_MAX.as_nanos() {
        let right = format!("it is at most what the quota gives in {}", written_duration(BURST_WORTH_MAX));
        fields.wrong(report, "burst", format_args!("is {}", limit.burst()), &right);
    }
}

/// The limits that a route names: there are such, and they suit it.
pub(super) fn check_limits(route: &Route, fields: &Fields<'_>, limits: &BTreeMap<String, Limit>, report: &mut Report) {
    let Some(named) = &route.limits else { return };
    for (index, name) in named.iter().enumerate() {
        let shown = quoted(name);
        match limits.get(name) {
            None => {
                let right = suggestion_of(name, limits, "[limits.partners]");
                fields.wrong(report, "limits", format_args!("has {shown}, and there is no such limit"), &right);
            }
            Some(_) if named[..index].contains(name) => {
                fields.wrong(report, "limits", format_args!("has {shown} twice"), "once is enough");
            }
            Some(limit) if limit.applies == LimitApplies::Auth => {
                let what = format_args!("has {shown}, which applies to the endpoints for accounts");
                fields.wrong(report, "limits", what, &format!("write limits.{name}.applies = \"named\""));
            }
            Some(_) => {}
        }
    }
    if named.len() > LIMITS_PER_ROUTE_MAX {
        let right = format!("a route has at most {LIMITS_PER_ROUTE_MAX}");
        fields.wrong(report, "limits", format_args!("has {} limits", named.len()), &right);
    }
}

/// Limits that hold nowhere look like a mistake.
pub(super) fn warn_about_unused(limits: &BTreeMap<String, Limit>, routes: &[Route], report: &mut Report) {
    let is_named = |name: &String| routes.iter().flat_map(|route| &route.limits).flatten().any(|named| named == name);
    for (name, _) in limits.iter().filter(|(name, limit)| limit.applies == LimitApplies::Named && !is_named(name)) {
        report.warn(&Location::File, &format!("limits.{name} applies where it is named, and no route names it"));
    }
}

/// Without Redis nobody counts together with others.
pub(super) fn warn_about_lonely(limits: &BTreeMap<String, Limit>, has_redis: bool, report: &mut Report) {
    for (name, _) in limits.iter().filter(|(_, limit)| limit.scope == LimitScope::Fleet && !has_redis) {
        let why = "and there is no Redis (redis.urls): each instance counts alone, at its local_share_percent";
        report.warn(&Location::File, &format!("limits.{name}.scope is \"fleet\", {why}"));
    }
}

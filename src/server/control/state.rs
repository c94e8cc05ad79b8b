//! The document about everything that goes on, out of what the control thread knows; and the samples that its rates are of.

use std::{collections::BTreeMap, time::Duration};

use super::{super::letter::Scraped, Control};
use crate::{
    admin::{
        health::{self, HealthInputs, UpstreamHealth},
        history::{self, Counted, History, Mark, Sample, ShardSample, per_second, percentile_ms, rounded},
        state::{
            ChangesState, ConfigurationState, CountState, DatabaseState, HeldState, HistoryState, HubState,
            INSTANCES_MAX, InstanceState, LogState, ProbeState, ProcessState, ROUTES_MAX, RequestsState, RouteState,
            ShardState, State, UPSTREAMS_MAX, UpstreamState,
        },
    },
    shard::{Instant, clock},
    telemetry::{
        dependency::{Databases, Dependency},
        metrics::{AdminRefusal, CircuitState, Counters, ProbeResult, Reload, STATUS_CLASSES, UpstreamCounters},
        usage,
    },
    upstream::{
        BackendAddress, InstanceId, InstanceReport,
        probe::{LastProbe, Verdict},
    },
};

/// The form of the document; another number is another form.
const FORMAT: u32 = 1;

/// What is counted by name, and the time since a mark.
struct Since<'m> {
    older: &'m Mark,
    newer: Mark,
    time: Duration,
}

impl Since<'_> {
    fn rate(&self, older: u64, newer: u64) -> Option<f64> {
        per_second(older, newer, self.time)
    }
}

impl Control {
    /// Notes how things are, once a second.
    pub(super) fn note_second(&mut self) {
        let now = clock::now();
        let shards = self.shards.iter_mut().map(|shard| {
            let lag = std::mem::take(&mut shard.lag);
            let sample = |scraped: &Scraped| ShardSample {
                requests: scraped.counters.requests,
                cpu: Duration::from_micros(scraped.counters.cpu.0),
                lag,
            };
            shard.scraped.as_deref().map(sample).unwrap_or_default()
        });
        let shards = shards.collect();
        let sample = Sample::of(now, usage::process_time(), shards, self.counted());
        self.history.note(sample);
        if self.history.wants_mark(now) {
            self.history.mark(Mark::of(now, &self.sum()));
        }
    }

    fn counted(&self) -> impl Iterator<Item = &Counters> {
        self.shards.iter().filter_map(|shard| Some(&shard.scraped.as_ref()?.counters))
    }

    fn sum(&self) -> Counters {
        let mut sum = Counters::default();
        self.counted().for_each(|counters| sum.merge(counters));
        sum
    }

    /// All of it, as JSON.
    pub(super) fn state_document(&self) -> Vec<u8> {
        // It is made of numbers and texts.
        serde_json::to_vec(&self.state()).unwrap_or_default()
    }

    fn state(&self) -> State {
        let now = clock::now();
        let known = self.known();
        let sum = self.sum();
        let newer = Mark::of(now, &sum);
        let older = self.history.marked().unwrap_or(&newer);
        let time = now.since(older.at);
        let newer = newer.clone();
        let since = Since { older, newer, time };
        let (routes, routes_left_out) = self.routes(&since);
        let (upstreams, upstreams_left_out) = self.upstreams(&known, &since, &sum);
        State {
            format: FORMAT,
            timestamp: known.timestamp.clone(),
            process: self.process_state(&known),
            shards: self.shard_states(),
            requests: self.requests(&since, &sum),
            history: history_of(&self.history),
            routes,
            routes_left_out,
            upstreams,
            upstreams_left_out,
            hub: self.hub_state(&known, &sum),
            databases: database_states(&known.databases),
            configuration: self.configuration_state(),
            log: LogState {
                level: self.operators.level.as_ref().unwrap_or(&self.config.log.level).clone(),
                configured: self.config.log.level.clone(),
            },
            certificates: self.certificate_states(),
            certificates_refusal: self.shown.refusal.clone(),
            changes: self.changes_state(),
        }
    }

    fn process_state(&self, known: &HealthInputs) -> ProcessState {
        let started = Duration::from_secs(u64::try_from(self.process.start_time).unwrap_or(0));
        let cores = self
            .history
            .window()
            .and_then(|(older, newer)| history::share(older.cpu, newer.cpu, newer.at.since(older.at)));
        ProcessState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: health::rfc3339(started),
            uptime_seconds: known.uptime_s,
            status: health::word(known).to_owned(),
            draining: !known.is_accepting,
            rss_bytes: usage::resident(),
            cpu_seconds: rounded(usage::process_time().as_secs_f64()),
            cpu_cores: cores,
            descriptors_open: usage::descriptors(),
            descriptors_max: self.descriptors,
        }
    }

    fn shard_states(&self) -> Vec<ShardState> {
        let window = self.history.window();
        let states = self.shards.iter().enumerate().map(|(number, shard)| {
            let recent = window.and_then(|(older, newer)| {
                let (before, after) = (older.shards.get(number)?, newer.shards.get(number)?);
                Some((before, after, newer.at.since(older.at)))
            });
            let counters = shard.scraped.as_ref().map(|scraped| &scraped.counters);
            let level = |value: fn(&Counters) -> i64| counters.map_or(0, value);
            ShardState {
                shard: number,
                answers: shard.is_heard(),
                generation: shard.applied,
                busy: recent.and_then(|(before, after, time)| history::share(before.cpu, after.cpu, time)),
                lag_ms: self.history.lag(number).map(|lag| rounded(lag.as_secs_f64() * 1000.0)),
                connections: level(|counters| counters.connections_open),
                sockets: level(|counters| counters.sockets_open),
                requests: counters.map_or(0, |counters| counters.requests),
                requests_per_second: recent
                    .and_then(|(before, after, time)| per_second(before.requests, after.requests, time)),
                in_flight: level(|counters| counters.requests_in_flight),
            }
        });
        states.collect()
    }

    fn requests(&self, since: &Since<'_>, sum: &Counters) -> RequestsState {
        let window = self.history.window();
        let part = |part| window.and_then(|(older, newer)| percentile_ms(&older.duration, &newer.duration, part));
        let statuses = STATUS_CLASSES.iter().enumerate().map(|(at, name)| CountState {
            name: (*name).to_owned(),
            total: since.newer.statuses[at],
            per_second: since.rate(since.older.statuses[at], since.newer.statuses[at]),
        });
        let codes = self.names.reject_codes.iter().enumerate().filter(|(at, _)| since.newer.refusals[*at] > 0);
        let refusals = codes.map(|(at, name)| CountState {
            name: (*name).to_owned(),
            total: since.newer.refusals[at],
            per_second: since.rate(since.older.refusals[at], since.newer.refusals[at]),
        });
        RequestsState {
            window_seconds: window.map_or(0.0, |(older, newer)| rounded(newer.at.since(older.at).as_secs_f64())),
            total: sum.requests,
            per_second: window
                .and_then(|(older, newer)| per_second(older.requests, newer.requests, newer.at.since(older.at))),
            in_flight: sum.requests_in_flight,
            p50_ms: part(0.5),
            p99_ms: part(0.99),
            p999_ms: part(0.999),
            gateway_p99_ms: window.and_then(|(older, newer)| percentile_ms(&older.gateway, &newer.gateway, 0.99)),
            statuses: statuses.collect(),
            refusals: refusals.collect(),
        }
    }

    fn routes(&self, since: &Since<'_>) -> (Vec<RouteState>, usize) {
        let nothing = Counted::default();
        let mut routes: Vec<_> = (self.names.routes.names().iter().zip(&since.newer.routes).enumerate())
            .filter(|(_, (_, route))| route.total > 0)
            .map(|(slot, (name, route))| {
                let older = since.older.routes.get(slot).unwrap_or(&nothing);
                let part = |part| percentile_ms(&older.duration, &route.duration, part);
                RouteState {
                    name: name.clone(),
                    total: route.total,
                    per_second: since.rate(older.total, route.total),
                    errors: route.failed,
                    errors_per_second: since.rate(older.failed, route.failed),
                    p50_ms: part(0.5),
                    p99_ms: part(0.99),
                    p999_ms: part(0.999),
                }
            })
            .collect();
        let left_out = routes.len().saturating_sub(ROUTES_MAX);
        routes.sort_by(|one, other| other.total.cmp(&one.total).then_with(|| one.name.cmp(&other.name)));
        routes.truncate(ROUTES_MAX);
        (routes, left_out)
    }

    fn upstreams(&self, known: &HealthInputs, since: &Since<'_>, sum: &Counters) -> (Vec<UpstreamState>, usize) {
        let mut upstreams: Vec<_> = (known.upstreams.iter().enumerate())
            .map(|(place, upstream)| self.upstream(place, upstream, known, since, sum))
            .collect();
        let left_out = upstreams.len().saturating_sub(UPSTREAMS_MAX);
        if left_out > 0 {
            upstreams.sort_by_key(|upstream| matches!(&*upstream.status, "up" | "disabled"));
            upstreams.truncate(UPSTREAMS_MAX);
        }
        let mut room = INSTANCES_MAX;
        for upstream in &mut upstreams {
            let all = upstream.instances.len();
            if all > room {
                upstream.instances.sort_by_key(|instance| instance.status == "up" && instance.held.is_none());
                upstream.instances.truncate(room);
            }
            upstream.instances_left_out = all - upstream.instances.len();
            room -= upstream.instances.len();
        }
        (upstreams, left_out)
    }

    fn upstream(
        &self,
        place: usize,
        health: &UpstreamHealth,
        known: &HealthInputs,
        since: &Since<'_>,
        sum: &Counters,
    ) -> UpstreamState {
        let (status, entry) = health::entry(health, known);
        let word = |name: &str| entry[name].as_str().map(str::to_owned);
        let slot = self.plan.upstreams[place].slot.index();
        let (nothing, silence) = (Counted::default(), UpstreamCounters::default());
        let (older, newer) =
            (since.older.upstreams.get(slot).unwrap_or(&nothing), since.newer.upstreams.get(slot).unwrap_or(&nothing));
        let counters = sum.upstreams().get(slot).unwrap_or(&silence);
        UpstreamState {
            name: health.name.clone(),
            status: status.to_owned(),
            error: word("error"),
            circuit: word("circuit").unwrap_or_default(),
            circuit_shards: health.reports.iter().filter(|report| report.circuit != CircuitState::Closed).count(),
            probed: health.probes.is_some(),
            total: newer.total,
            per_second: since.rate(older.total, newer.total),
            failures_per_second: since.rate(older.failed, newer.failed),
            p50_ms: percentile_ms(&older.duration, &newer.duration, 0.5),
            p99_ms: percentile_ms(&older.duration, &newer.duration, 0.99),
            in_flight: counters.requests_in_flight,
            connections_idle: counters.connections_idle,
            instances: self.instances(place, health, known.now),
            instances_left_out: 0,
        }
    }

    fn instances(&self, place: usize, health: &UpstreamHealth, now: Instant) -> Vec<InstanceState> {
        let Some(there) = self.lookups.current().get(place) else { return Vec::new() };
        let mut told: BTreeMap<InstanceId, Vec<&InstanceReport>> = BTreeMap::new();
        let scraped = self.shards.iter().filter_map(|shard| shard.scraped.as_ref());
        for scraped in scraped.filter(|scraped| scraped.generation == self.plan.generation) {
            for report in scraped.instances.get(place).into_iter().flat_map(|(_, reports)| reports) {
                told.entry(report.id).or_default().push(report);
            }
        }
        let probes = health.probes.as_ref();
        let mut instances: Vec<_> = (there.iter().enumerate())
            .map(|(index, there)| {
                let reports = told.get(&there.at.id()).map_or(&[][..], Vec::as_slice);
                let probe = probes.and_then(|probes| probes.get(index)).copied();
                let wanted = self.operators.orders.of(&health.name, &there.at).and_then(|entry| entry.order.weight);
                InstanceState {
                    held: self.held(&health.name, &there.at),
                    weight: Some(u32::from(wanted.unwrap_or(there.weight))),
                    configured_weight: Some(u32::from(there.weight)),
                    priority: Some(u32::from(there.priority)),
                    zone: there.zone.as_deref().map(str::to_owned),
                    ..instance(&there.at, reports, probe, now)
                }
            })
            .collect();
        // Who is held and has gone is still held when it comes again.
        let is_there = |at: &BackendAddress| there.iter().any(|there| there.at == *at);
        let gone = self.operators.orders.instances_of(&health.name).filter(|at| !is_there(at));
        instances.extend(gone.map(|at| InstanceState {
            instance: at.name.to_string(),
            address: at.address.to_string(),
            status: "gone".to_owned(),
            held: self.held(&health.name, at),
            ..InstanceState::default()
        }));
        instances
    }

    fn held(&self, upstream: &str, at: &BackendAddress) -> Option<HeldState> {
        let entry = self.operators.orders.of(upstream, at)?;
        let state = entry.order.held?.name().to_owned();
        Some(HeldState { state, by: entry.by.clone(), at: entry.at.clone() })
    }

    fn hub_state(&self, known: &HealthInputs, sum: &Counters) -> HubState {
        let window = self.history.window();
        HubState {
            enabled: self.config.hub.enabled,
            sockets: sum.sockets_open,
            // A room has one home.
            rooms: sum.hub_homes,
            users: sum.hub_users,
            messages_per_second: window
                .and_then(|(older, newer)| per_second(older.messages, newer.messages, newer.at.since(older.at))),
            dropped: sum.hub_dropped,
            outbox_bytes: sum.hub_frame_bytes,
            bus: known.bus_health.name().to_owned(),
        }
    }

    fn configuration_state(&self) -> ConfigurationState {
        ConfigurationState {
            generation: self.plan.generation,
            applied: self.is_applied(),
            path: self.file.as_ref().map(|file| file.path().display().to_string()),
            loaded_at: self.taken.at.clone(),
            reloads_applied: self.process.config_reloads[Reload::Applied.index()],
            reloads_refused: self.process.config_reloads[Reload::Refused.index()],
            refusal: self.taken.refusal.clone(),
            restart_needed: self.taken.restart_needed.clone(),
        }
    }

    fn changes_state(&self) -> ChangesState {
        let counts = AdminRefusal::VALUES.iter().zip(self.operators.refusals.counts());
        let refused = counts.filter(|(_, total)| *total > 0);
        ChangesState {
            possible: self.operators.access.borrow().has_tokens(),
            refused: refused
                .map(|(name, total)| CountState { name: (*name).to_owned(), total, per_second: None })
                .collect(),
            latest: self.operators.latest.iter().cloned().collect(),
        }
    }
}

/// An instance, by what shards and probes say of it.
fn instance(
    at: &BackendAddress,
    reports: &[&InstanceReport],
    probe: Option<(Verdict, Option<LastProbe>)>,
    now: Instant,
) -> InstanceState {
    let out: Vec<_> = reports.iter().filter_map(|report| report.out_until).filter(|until| *until > now).collect();
    let error = reports.iter().find_map(|report| report.error).map(str::to_owned);
    let last = probe.and_then(|(_, last)| last);
    let probed = last.map(|last| ProbeResult::VALUES[last.result.index()].to_owned());
    let (status, why) = match probe.map(|(verdict, _)| verdict) {
        Some(Verdict::Down | Verdict::Unwell) => ("down", probed.clone()),
        Some(Verdict::Unknown) => ("untested", probed.clone()),
        _ if !out.is_empty() => ("ejected", error),
        _ if error.is_some() => ("failing", error),
        _ => ("up", None),
    };
    let latency = reports.iter().map(|report| report.latency_us).max().filter(|us| *us > 0);
    InstanceState {
        instance: at.name.to_string(),
        address: at.address.to_string(),
        status: status.to_owned(),
        why,
        in_flight: reports.iter().map(|report| u64::from(report.in_flight)).sum(),
        latency_ms: latency.map(|us| rounded(f64::from(us) / 1000.0)),
        ejected_by_shards: out.len(),
        ejected_for_seconds: out.iter().max().map(|until| rounded(until.since(now).as_secs_f64())),
        probe: last.zip(probed).map(|(last, result)| ProbeState {
            result,
            took_ms: rounded(last.took.as_secs_f64() * 1000.0),
            age_seconds: rounded(now.since(last.at).as_secs_f64()),
        }),
        ..InstanceState::default()
    }
}

fn database_states(stores: &Databases) -> Vec<DatabaseState> {
    let Databases { redis, postgres, embedded, clickhouse } = stores;
    let named = [("redis", redis), ("postgres", postgres), ("embedded", embedded), ("clickhouse", clickhouse)];
    let there = named.into_iter().filter_map(|(name, store)| Some((name, store.as_ref()?)));
    let state = |(name, store): (&str, &Dependency)| DatabaseState {
        name: name.to_owned(),
        status: match store.error {
            None => "up",
            Some(_) if store.is_degraded => "degraded",
            Some(_) => "down",
        }
        .to_owned(),
        error: store.error.map(str::to_owned),
        latency_ms: rounded(store.latency.as_secs_f64() * 1000.0),
        checked_at: health::rfc3339(store.checked_at),
    };
    there.map(state).collect()
}

fn history_of(history: &History) -> HistoryState {
    let rate = |count: fn(&Sample) -> u64| {
        history.series(|older, newer| per_second(count(older), count(newer), newer.at.since(older.at)))
    };
    let part = |part| history.series(|older, newer| percentile_ms(&older.duration, &newer.duration, part));
    #[expect(clippy::cast_precision_loss, reason = "counts of connections are small")]
    let level = |level: fn(&Sample) -> i64| history.series(|_, newer| Some(level(newer) as f64));
    HistoryState {
        interval_seconds: 1.0,
        requests: rate(|sample| sample.requests),
        errors: rate(|sample| sample.errors),
        p50_ms: part(0.5),
        p99_ms: part(0.99),
        connections: level(|sample| sample.connections),
        sockets: level(|sample| sample.sockets),
        messages: rate(|sample| sample.messages),
        cpu_cores: history.series(|older, newer| history::share(older.cpu, newer.cpu, newer.at.since(older.at))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn an_instance_is_down_whatever_its_probes_fail_by() {
        let at = BackendAddress { name: "shop:80".into(), address: SocketAddr::from(([10, 0, 0, 1], 80)).into() };
        let now = clock::now();
        let told = |verdict, result| {
            let last = LastProbe { result, took: Duration::from_millis(1), at: now };
            let InstanceState { status, why, .. } = instance(&at, &[], Some((verdict, Some(last))), now);
            (status, why)
        };
        let word = |status: &str, why: Option<&str>| (status.to_owned(), why.map(str::to_owned));
        assert_eq!(told(Verdict::Up, ProbeResult::Good), word("up", None));
        assert_eq!(told(Verdict::Unknown, ProbeResult::TimedOut), word("untested", Some("timeout")));
        assert_eq!(told(Verdict::Down, ProbeResult::Refused), word("down", Some("refused")));
        assert_eq!(told(Verdict::Unwell, ProbeResult::Status), word("down", Some("status")));
        assert_eq!(instance(&at, &[], None, now).status, "up");
    }
}

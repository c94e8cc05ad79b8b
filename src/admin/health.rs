//! Many parts, one answer: what `/health` and `/health/ready` say, from what is known already: docs/health.md.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Map, Value, json};

use crate::{
    shard::Instant,
    telemetry::{
        dependency::{Databases, Dependency, ExportHealth},
        metrics::{CircuitState, ProbeResult},
    },
    upstream::{
        Report,
        probe::{LastProbe, Verdict},
    },
};

/// What the control thread knows when it is asked.
#[derive(Clone, Debug)]
pub struct HealthInputs {
    /// What is known of each upstream.
    pub upstreams: Vec<UpstreamHealth>,
    /// Upstreams with a name whose look-ups fail, whether it has addresses from before or not.
    pub unresolved: BTreeSet<String>,
    /// How the stores are.
    pub databases: Databases,
    /// What was revoked lately is not known, so that `revocation.fail` decides.
    pub is_revocation_stale: bool,
    /// Seconds since the process began.
    pub uptime_s: u64,
    /// Now, as RFC 3339 has it.
    pub timestamp: String,
    /// The same by the clock of what is known.
    pub now: Instant,
    /// Shards that run the current configuration.
    pub shards_ready: usize,
    /// All shards.
    pub shards: usize,
    /// The listeners are open and nobody has asked the process to end.
    pub is_accepting: bool,
    /// Whether there is a hub.
    pub has_hub: bool,
    /// How the bus between instances is.
    pub bus_health: BusHealth,
    /// How the way of spans to their collector is.
    pub traces: ExportHealth,
}

/// What is known of one upstream.
#[derive(Clone, Debug, Default)]
pub struct UpstreamHealth {
    /// Its name.
    pub name: String,
    /// How many instances it has.
    pub instances: usize,
    /// Of each, whether it gets nothing because somebody wants it so: an operator holds it out of use, or its weight is 0.
    pub withheld: Vec<bool>,
    /// How it stands on each shard that has told.
    pub reports: Vec<Report>,
    /// What probes say of each instance; `None` where there are none.
    pub probes: Option<Vec<(Verdict, Option<LastProbe>)>>,
    /// Whether nobody looks at the certificates of those that speak TLS (`verify = false`).
    pub is_unverified: bool,
}

/// How the bus between instances is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusHealth {
    /// There is none.
    None,
    /// This instance hears itself over it.
    Up,
    /// It does not.
    Down,
    /// Redis is there, and refuses what the bus needs.
    Refused,
    /// Rooms span instances, and Redis refuses what lifecycle events need.
    EventsRefused,
}

impl BusHealth {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Up => "up",
            Self::Down => "down",
            Self::Refused => "refused",
            Self::EventsRefused => "events_refused",
        }
    }
}

/// `GET /health`: 503 only when no route can be served.
pub fn whole(known: &HealthInputs) -> (u16, Vec<u8>) {
    let mut services = Map::new();
    let mut well = 0;
    let mut down = 0;
    for upstream in &known.upstreams {
        let (status, entry) = entry(upstream, known);
        well += usize::from(matches!(status, "up" | "disabled"));
        down += usize::from(status == "down");
        services.insert(camel_case(&upstream.name), entry);
    }
    let Databases { redis, postgres, clickhouse, .. } = &known.databases;
    let databases = json!({
        "redis": store(redis.as_ref()),
        "postgres": store(postgres.as_ref()),
        "clickhouse": store(clickhouse.as_ref()),
    });
    services.insert("databases".to_owned(), databases);
    let (status, word) = judged(known, well, down);
    let document = json!({
        "status": word,
        "services": services,
        "revocations": {"status": if known.is_revocation_stale { "stale" } else { "current" }},
        "traces": traces(known.traces),
        "timestamp": known.timestamp,
        "version": env!("CARGO_PKG_VERSION"),
        "uptimeSeconds": known.uptime_s,
    });
    (status, document.to_string().into_bytes())
}

/// The status of the whole, of whose upstreams so many are well, and so many down.
fn judged(known: &HealthInputs, well: usize, down: usize) -> (u16, &'static str) {
    let are_stores_up = known.databases.all().all(|store| store.error.is_none());
    let total = known.upstreams.len();
    match () {
        () if total > 0 && down == total => (503, "unhealthy"),
        () if well == total && are_stores_up && !known.is_revocation_stale && known.shards_ready == known.shards => {
            (200, "healthy")
        }
        () => (200, "degraded"),
    }
}

/// The status of the whole, in a word.
pub fn word(known: &HealthInputs) -> &'static str {
    let statuses: Vec<_> = known.upstreams.iter().map(|upstream| entry(upstream, known).0).collect();
    let count = |is_so: fn(&str) -> bool| statuses.iter().filter(|status| is_so(status)).count();
    judged(known, count(|status| matches!(status, "up" | "disabled")), count(|status| status == "down")).1
}

/// `GET /health/ready`: whether traffic should come here. Upstreams and databases are no part of it.
pub fn ready(known: &HealthInputs) -> (u16, Vec<u8>) {
    let is_ready = known.is_accepting && known.shards_ready == known.shards;
    let document = json!({
        "status": if is_ready { "ready" } else { "not ready" },
        "shards": {"ready": known.shards_ready, "total": known.shards},
        "draining": !known.is_accepting,
    });
    (if is_ready { 200 } else { 503 }, document.to_string().into_bytes())
}

/// `GET /health/ready/hub`: whether sockets should come here: traffic may, and rooms span instances if they are to.
pub fn ready_hub(known: &HealthInputs) -> (u16, Vec<u8>) {
    let is_ready =
        ready(known).0 == 200 && known.has_hub && matches!(known.bus_health, BusHealth::None | BusHealth::Up);
    let document = json!({
        "status": if is_ready { "ready" } else { "not ready" },
        "hub": if known.has_hub { "enabled" } else { "disabled" },
        "bus": known.bus_health.name(),
    });
    (if is_ready { 200 } else { 503 }, document.to_string().into_bytes())
}

/// Spans are for operators: that they are lost makes no request fail, and the whole no worse.
fn traces(health: ExportHealth) -> Value {
    match health {
        ExportHealth::Off => json!({"status": "disabled"}),
        ExportHealth::Up => json!({"status": "up"}),
        ExportHealth::Failing(error) => json!({"status": "down", "error": error}),
    }
}

/// One upstream's status, and its entry.
pub fn entry(upstream: &UpstreamHealth, known: &HealthInputs) -> (&'static str, Value) {
    let seen = Seen::of(upstream);
    let circuit = upstream.reports.iter().map(|report| report.circuit).max().unwrap_or_default();
    // While it is half open whoever comes is let through, also if nobody does for hours: its instances say how it is.
    let is_open = circuit == CircuitState::Open;
    let is_unresolved = known.unresolved.contains(&upstream.name);
    let withheld = upstream.withheld.iter().filter(|is_withheld| **is_withheld).count();
    let is_all_withheld = withheld == upstream.instances;
    let status = match (seen.at, seen.healthy) {
        // Nobody is there who could be asked, however well they are.
        (_, _) if is_all_withheld => "down",
        // The first probes are under way.
        (None, _) if upstream.probes.is_some() || is_unresolved => "degraded",
        (None, _) => "disabled",
        (Some(_), _) if seen.serving == 0 => "down",
        (Some(_), healthy) if healthy < upstream.instances || is_open || is_unresolved => "degraded",
        (Some(_), _) => "up",
    };
    let unix = |at: Instant| crate::shard::clock::unix_now().saturating_sub(known.now.since(at));
    let mut entry = json!({
        "status": status,
        "latencyMs": seen.at.map(|_| f64::from(seen.latency_us) / 1000.0),
        "instances": {"healthy": seen.healthy, "total": upstream.instances},
        "circuit": CircuitState::VALUES[circuit.index()],
        "checkedAt": seen.at.map(|at| rfc3339(unix(at))),
    });
    if withheld > 0 {
        entry["instances"]["withheld"] = Value::from(withheld);
    }
    if upstream.reports.iter().any(|report| report.is_panicking) {
        entry["panic"] = Value::from(true);
    }
    if upstream.is_unverified {
        entry["tls"] = Value::from("unverified");
    }
    let error = seen.error.or(is_unresolved.then_some("unresolved"));
    let error = error.or((is_all_withheld && withheld > 0).then_some("withheld"));
    if let Some(error) = error {
        entry["error"] = Value::from(error);
    }
    (status, entry)
}

/// What is known of an upstream's instances.
#[derive(Debug, Default)]
struct Seen {
    healthy: usize,
    /// Those of the healthy ones that get requests.
    serving: usize,
    latency_us: u32,
    /// When something was found out last; `None` while nothing is known.
    at: Option<Instant>,
    error: Option<&'static str>,
}

impl Seen {
    /// The worse of what probes and requests say.
    fn of(upstream: &UpstreamHealth) -> Self {
        let by_requests = Self::by_requests(&upstream.reports);
        let Some(probes) = &upstream.probes else { return by_requests };
        let by_probes = Self::by_probes(probes, &upstream.withheld);
        let (healthy, serving) = match by_requests.at {
            Some(_) => (by_requests.healthy, by_requests.serving),
            None => (usize::MAX, usize::MAX),
        };
        Self {
            healthy: by_probes.healthy.min(healthy),
            serving: by_probes.serving.min(serving),
            error: by_probes.error.or(by_requests.error),
            ..by_probes
        }
    }

    /// The worst that any shard sees which has asked an instance for something.
    fn by_requests(reports: &[Report]) -> Self {
        let asked = || reports.iter().filter(|report| report.tried_at.is_some());
        Self {
            healthy: asked().map(|report| report.healthy).min().unwrap_or(0),
            serving: asked().map(|report| report.serving).min().unwrap_or(0),
            latency_us: asked().map(|report| report.latency_us).max().unwrap_or(0),
            at: asked().filter_map(|report| report.tried_at).max(),
            error: asked().find_map(|report| report.error),
        }
    }

    fn by_probes(probes: &[(Verdict, Option<LastProbe>)], withheld: &[bool]) -> Self {
        let is_withheld = |place: usize| withheld.get(place).copied().unwrap_or(false);
        let up = || probes.iter().enumerate().filter(|(_, (verdict, _))| verdict.is_up());
        let last = || probes.iter().filter_map(|(_, last)| last.as_ref());
        let latency = last().map(|last| last.took).max().unwrap_or_default();
        let error = |last: &LastProbe| ProbeResult::VALUES[last.result.index()];
        Self {
            healthy: up().count(),
            serving: up().filter(|(place, _)| !is_withheld(*place)).count(),
            latency_us: u32::try_from(latency.as_micros()).unwrap_or(u32::MAX),
            at: last().map(|last| last.at).max(),
            error: last().find(|last| last.result != ProbeResult::Good).map(error),
        }
    }
}

/// One store.
fn store(store: Option<&Dependency>) -> Value {
    let Some(Dependency { error, is_degraded, latency, checked_at }) = store else {
        return json!({"status": "disabled"});
    };
    let (is_up, word) = match error {
        None => (true, "up"),
        // It answers, so what only reads goes on.
        Some(_) if *is_degraded => (true, "degraded"),
        Some(_) => (false, "down"),
    };
    let mut entry = json!({
        "status": word,
        // Tenths of a millisecond say enough, and stay short.
        "latencyMs": (latency.as_secs_f64() * 10_000.0).round() / 10.0,
        "instances": {"healthy": usize::from(is_up), "total": 1},
        "circuit": "closed",
        "checkedAt": rfc3339(*checked_at),
    });
    if let Some(error) = error {
        entry["error"] = Value::from(*error);
    }
    entry
}

/// A time since 1970 as RFC 3339 has it.
pub fn rfc3339(unix: Duration) -> String {
    let time = i64::try_from(unix.as_millis()).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(String::new, |time| format!("{time:.3}"))
}

/// `ai-engine` is `aiEngine` in the document, as the platform's clients know it.
fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut is_next_upper = false;
    for character in name.chars() {
        match character {
            '-' | '_' | '.' | ' ' => is_next_upper = !out.is_empty(),
            _ if is_next_upper => {
                out.extend(character.to_uppercase());
                is_next_upper = false;
            }
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(healthy: usize, total: usize) -> Report {
        let error = (healthy < total).then_some("refused");
        Report {
            healthy,
            serving: healthy,
            total,
            error,
            latency_us: 1500,
            tried_at: Some(Instant::START),
            ..Report::default()
        }
    }

    fn known(upstreams: &[(&str, &[(usize, usize)])]) -> HealthInputs {
        let upstream = |(name, reports): &(&str, &[(usize, usize)])| UpstreamHealth {
            name: (*name).to_owned(),
            instances: reports[0].1,
            reports: reports.iter().map(|(healthy, total)| report(*healthy, *total)).collect(),
            ..UpstreamHealth::default()
        };
        HealthInputs {
            upstreams: upstreams.iter().map(upstream).collect(),
            unresolved: BTreeSet::new(),
            databases: Databases::default(),
            is_revocation_stale: false,
            uptime_s: 5,
            timestamp: "2026-11-24T10:00:00Z".to_owned(),
            now: Instant::START,
            shards_ready: 2,
            shards: 2,
            is_accepting: true,
            has_hub: true,
            bus_health: BusHealth::None,
            traces: ExportHealth::Off,
        }
    }

    fn outcome(known: &HealthInputs) -> (u16, Value) {
        let (status, body) = whole(known);
        (status, serde_json::from_slice(&body).expect("a JSON document"))
    }

    #[test]
    fn the_whole_is_as_well_as_its_parts() {
        for (upstreams, status, word) in [
            (&[("a", &[(1, 1), (1, 1)][..]), ("b", &[(2, 2)])][..], 200, "healthy"),
            (&[("a", &[(1, 1), (0, 1)]), ("b", &[(2, 2)])], 200, "degraded"),
            (&[("a", &[(1, 2)])], 200, "degraded"),
            (&[("a", &[(0, 1)]), ("b", &[(0, 2)])], 503, "unhealthy"),
        ] {
            let (found, document) = outcome(&known(upstreams));
            assert_eq!((found, &document["status"]), (status, &Value::from(word)), "{upstreams:?}");
        }
    }

    #[test]
    fn a_part_is_as_bad_as_its_worst_shard_sees_it() {
        let (_, document) = outcome(&known(&[("ai-engine", &[(2, 2), (1, 2)])]));
        let entry = &document["services"]["aiEngine"];
        assert_eq!(entry["status"], "degraded");
        assert_eq!(entry["instances"], json!({"healthy": 1, "total": 2}));
        assert_eq!(entry["error"], "refused");
    }

    /// What `/health` says of an upstream of two instances, without the time.
    fn told(reports: Vec<Report>, probes: Option<Vec<(Verdict, Option<LastProbe>)>>) -> String {
        told_of(UpstreamHealth { name: "a".to_owned(), instances: 2, reports, probes, ..UpstreamHealth::default() })
    }

    fn told_of(upstream: UpstreamHealth) -> String {
        let mut known = known(&[]);
        known.upstreams = vec![upstream];
        let (status, mut document) = outcome(&known);
        let mut entry = document["services"]["a"].take();
        if let Some(at) = entry["checkedAt"].as_str() {
            assert!(at.ends_with('Z') && at.len() == 24, "{at}");
            entry["checkedAt"] = Value::from("then");
        }
        format!("{status} {}: {entry}", document["status"])
    }

    #[test]
    fn what_nobody_has_asked_is_not_called_well() {
        let unasked = Report { healthy: 2, total: 2, ..Report::default() };
        let nothing = "200 \"healthy\": {\"checkedAt\":null,\"circuit\":\"closed\",\
                       \"instances\":{\"healthy\":0,\"total\":2},\"latencyMs\":null,\"status\":\"disabled\"}";
        assert_eq!(told(vec![unasked.clone(); 2], None), nothing);
        assert_eq!(told(vec![], None), nothing);
        let asked = "200 \"healthy\": {\"checkedAt\":\"then\",\"circuit\":\"closed\",\
                     \"instances\":{\"healthy\":2,\"total\":2},\"latencyMs\":1.5,\"status\":\"up\"}";
        assert_eq!(told(vec![unasked, report(2, 2)], None), asked);
    }

    #[test]
    fn probes_say_how_their_instances_are() {
        let last = |result| {
            let took = Duration::from_micros(2500);
            Some(LastProbe { at: Instant::START, took, result })
        };
        let (up, down) = ((Verdict::Up, last(ProbeResult::Good)), (Verdict::Down, last(ProbeResult::TimedOut)));
        let (untold, fails) = ((Verdict::Unknown, None), (Verdict::Unknown, last(ProbeResult::Refused)));
        let entry = |checked: &str, healthy: u8, latency: &str, status: &str, error: &str| {
            let error = if error.is_empty() { String::new() } else { format!("\"error\":\"{error}\",") };
            format!(
                "{{\"checkedAt\":{checked},\"circuit\":\"closed\",{error}\"instances\":{{\"healthy\":{healthy},\"total\":2}},\
                 \"latencyMs\":{latency},\"status\":\"{status}\"}}"
            )
        };
        let unasked = || vec![Report { total: 2, ..Report::default() }];
        for (reports, probes, document, of_upstream) in [
            (unasked(), [up, up], "200 \"healthy\"", entry("\"then\"", 2, "2.5", "up", "")),
            (unasked(), [up, down], "200 \"degraded\"", entry("\"then\"", 1, "2.5", "degraded", "timeout")),
            (unasked(), [down, down], "503 \"unhealthy\"", entry("\"then\"", 0, "2.5", "down", "timeout")),
            (unasked(), [untold, untold], "200 \"degraded\"", entry("null", 0, "null", "degraded", "")),
            (unasked(), [fails, untold], "503 \"unhealthy\"", entry("\"then\"", 0, "2.5", "down", "refused")),
            (unasked(), [up, untold], "200 \"degraded\"", entry("\"then\"", 1, "2.5", "degraded", "")),
            (vec![report(1, 2)], [up, up], "200 \"degraded\"", entry("\"then\"", 1, "2.5", "degraded", "refused")),
            (vec![report(2, 2)], [up, up], "200 \"healthy\"", entry("\"then\"", 2, "2.5", "up", "")),
        ] {
            assert_eq!(told(reports, Some(probes.to_vec())), format!("{document}: {of_upstream}"));
        }
    }

    #[test]
    fn who_is_held_out_of_use_may_be_well_and_serves_nobody() {
        let up = (Verdict::Up, Some(LastProbe { at: Instant::START, took: Duration::ZERO, result: ProbeResult::Good }));
        let down = (Verdict::Down, up.1);
        let told = |withheld: [bool; 2], probes: Option<[(Verdict, Option<LastProbe>); 2]>, reports: Vec<Report>| {
            let (withheld, probes) = (withheld.into(), probes.map(Vec::from));
            let told = told_of(UpstreamHealth {
                name: "a".to_owned(),
                instances: 2,
                withheld,
                reports,
                probes,
                ..UpstreamHealth::default()
            });
            let entry: Value = serde_json::from_str(told.split_once(": ").expect("an entry").1).expect("JSON");
            format!("{} {} {} {}", &told[..3], entry["status"], entry["instances"], entry["error"])
        };
        let of_shard = |serving| vec![Report { serving, ..report(2, 2) }];
        let counts = |healthy, withheld| format!("{{\"healthy\":{healthy},\"total\":2,\"withheld\":{withheld}}}");
        for (withheld, probes, reports, expected) in [
            // What is taken out on purpose, and well, is no trouble.
            ([true, false], Some([up, up]), vec![], format!("200 \"up\" {} null", counts(2, 1))),
            ([true, false], None, of_shard(1), format!("200 \"up\" {} null", counts(2, 1))),
            // But where it alone is well nobody is left.
            ([true, false], Some([up, down]), vec![], format!("503 \"down\" {} null", counts(1, 1))),
            ([true, false], None, of_shard(0), format!("503 \"down\" {} null", counts(2, 1))),
            ([true, true], Some([up, up]), vec![], format!("503 \"down\" {} \"withheld\"", counts(2, 2))),
            ([true, true], None, vec![], format!("503 \"down\" {} \"withheld\"", counts(0, 2))),
        ] {
            assert_eq!(told(withheld, probes, reports), expected);
        }
    }

    #[test]
    fn a_circuit_that_nobody_asks_makes_nothing_worse() {
        let last = LastProbe { at: Instant::START, took: Duration::from_micros(2500), result: ProbeResult::Good };
        let probes = Some(vec![(Verdict::Up, Some(last)); 2]);
        let status = |circuit, probes| {
            let mut known = known(&[]);
            let reports = vec![Report { circuit, ..report(2, 2) }, report(2, 2)];
            known.upstreams = vec![UpstreamHealth {
                name: "a".to_owned(),
                instances: 2,
                withheld: [false; 2].into(),
                reports,
                probes,
                ..UpstreamHealth::default()
            }];
            let document = outcome(&known).1;
            [document["status"].clone(), document["services"]["a"]["circuit"].clone()]
        };
        for probes in [probes, None] {
            assert_eq!(status(CircuitState::HalfOpen, probes.clone()), ["healthy", "half_open"]);
            assert_eq!(status(CircuitState::Open, probes), ["degraded", "open"]);
        }
    }

    #[test]
    fn a_name_whose_look_ups_fail_is_told_whether_it_has_addresses_or_not() {
        let mut known = known(&[("old", &[(2, 2)]), ("new", &[(0, 0)])]);
        known.unresolved = ["old", "new"].map(str::to_owned).into();
        let (status, document) = outcome(&known);
        assert_eq!((status, &document["status"]), (200, &Value::from("degraded")));
        for (name, status) in [("old", "degraded"), ("new", "down")] {
            let entry = &document["services"][name];
            assert_eq!([&entry["status"], &entry["error"]], [status, "unresolved"]);
        }
    }

    #[test]
    fn a_store_that_is_away_degrades_the_whole() {
        let mut known = known(&[("a", &[(1, 1)])]);
        let dependency = |error| {
            let (latency, checked_at) = (Duration::from_micros(1_234), Duration::from_millis(1_764_000_000_250));
            Some(Dependency { error, is_degraded: false, latency, checked_at })
        };
        known.databases = Databases { redis: dependency(None), ..Databases::default() };
        let (status, document) = outcome(&known);
        assert_eq!((status, &document["status"]), (200, &Value::from("healthy")));
        let databases = &document["services"]["databases"];
        let up = json!({
            "status": "up", "latencyMs": 1.2, "instances": {"healthy": 1, "total": 1}, "circuit": "closed",
            "checkedAt": "2025-11-24T16:00:00.250Z",
        });
        assert_eq!(databases["redis"], up);
        assert_eq!(databases["postgres"], json!({"status": "disabled"}));
        known.databases.redis = dependency(Some("timeout"));
        let (status, document) = outcome(&known);
        assert_eq!((status, &document["status"]), (200, &Value::from("degraded")));
        assert_eq!(document["services"]["databases"]["redis"]["error"], "timeout");
        known.databases.redis =
            dependency(Some("out_of_memory")).map(|store| Dependency { is_degraded: true, ..store });
        let (status, document) = outcome(&known);
        assert_eq!((status, &document["status"]), (200, &Value::from("degraded")));
        assert_eq!(document["services"]["databases"]["redis"]["status"], "degraded");
        assert_eq!(ready(&known).0, 200, "whoever is ready without it stays ready");
        known.databases = Databases { embedded: dependency(Some("disk_full")), ..Databases::default() };
        assert_eq!(outcome(&known).1["status"], "degraded");
    }

    #[test]
    fn not_to_know_what_was_revoked_degrades_the_whole() {
        let mut known = known(&[("a", &[(1, 1)])]);
        assert_eq!(outcome(&known).1["revocations"]["status"], "current");
        known.is_revocation_stale = true;
        let (status, document) = outcome(&known);
        assert_eq!((status, &document["status"]), (200, &Value::from("degraded")));
        assert_eq!(document["revocations"]["status"], "stale");
        assert_eq!(ready(&known).0, 200);
    }

    #[test]
    fn readiness_is_about_the_shards_alone() {
        let mut known = known(&[("a", &[(0, 1)])]);
        assert_eq!(ready(&known).0, 200);
        known.shards_ready = 1;
        assert_eq!(ready(&known).0, 503);
        known.shards_ready = 2;
        known.is_accepting = false;
        assert_eq!(ready(&known).0, 503);
    }

    #[test]
    fn the_hub_is_ready_with_the_whole_and_its_bus() {
        let mut known = known(&[("a", &[(1, 1)])]);
        for (has_hub, bus_health, is_accepting, status) in [
            (true, BusHealth::None, true, 200),
            (true, BusHealth::Up, true, 200),
            (true, BusHealth::Down, true, 503),
            (true, BusHealth::Refused, true, 503),
            (true, BusHealth::EventsRefused, true, 503),
            (true, BusHealth::Up, false, 503),
            (false, BusHealth::None, true, 503),
        ] {
            (known.has_hub, known.bus_health, known.is_accepting) = (has_hub, bus_health, is_accepting);
            assert_eq!(ready_hub(&known).0, status, "{known:?}");
        }
    }

    #[test]
    fn names_become_camel_case() {
        for (name, key) in [("ingestion", "ingestion"), ("ai-engine", "aiEngine"), ("a_b.c", "aBC"), ("-x", "x")] {
            assert_eq!(camel_case(name), key);
        }
    }
}

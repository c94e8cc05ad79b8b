//! Many parts, one answer: what `/health` and `/health/ready` say, from what is known already. It probes nothing.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::{
    telemetry::dependency::{Databases, Dependency},
    upstream::Report,
};

/// What the control thread knows when it is asked.
#[derive(Clone, Debug)]
pub struct HealthInputs {
    /// Each upstream's name, and how it stands on each shard that has told.
    pub upstreams: Vec<(String, Vec<Report>)>,
    /// How the stores are.
    pub databases: Databases,
    /// What was revoked lately is not known, so that `revocation.fail` decides.
    pub is_revocation_stale: bool,
    /// Seconds since the process began.
    pub uptime_s: u64,
    /// Now, as RFC 3339 has it.
    pub timestamp: String,
    /// When the shards last told.
    pub checked_at: String,
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

/// `GET /health`: 503 only when no route can be served.
pub fn whole(known: &HealthInputs) -> (u16, Vec<u8>) {
    let mut services = Map::new();
    let mut up = 0;
    let mut down = 0;
    for (name, reports) in &known.upstreams {
        let entry = entry(reports, &known.checked_at);
        up += usize::from(entry["status"] == "up");
        down += usize::from(entry["status"] == "down");
        services.insert(camel_case(name), entry);
    }
    let Databases { redis, postgres, .. } = &known.databases;
    let databases =
        json!({"redis": store(redis.as_ref()), "postgres": store(postgres.as_ref()), "clickhouse": store(None)});
    services.insert("databases".to_owned(), databases);
    let are_stores_up = known.databases.all().all(|store| store.error.is_none());
    let total = known.upstreams.len();
    let (status, word) = match () {
        () if total > 0 && down == total => (503, "unhealthy"),
        () if up == total && are_stores_up && !known.is_revocation_stale && known.shards_ready == known.shards => {
            (200, "healthy")
        }
        () => (200, "degraded"),
    };
    let document = json!({
        "status": word,
        "services": services,
        "revocations": {"status": if known.is_revocation_stale { "stale" } else { "current" }},
        "timestamp": known.timestamp,
        "version": env!("CARGO_PKG_VERSION"),
        "uptimeSeconds": known.uptime_s,
    });
    (status, document.to_string().into_bytes())
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
        "bus": match known.bus_health {
            BusHealth::None => "none",
            BusHealth::Up => "up",
            BusHealth::Down => "down",
            BusHealth::Refused => "refused",
            BusHealth::EventsRefused => "events_refused",
        },
    });
    (if is_ready { 200 } else { 503 }, document.to_string().into_bytes())
}

/// One upstream: the worst that any shard sees of it.
fn entry(reports: &[Report], checked_at: &str) -> Value {
    let worst = |value: fn(&Report) -> usize| reports.iter().map(value).min().unwrap_or(0);
    let (healthy, total) = (worst(|report| report.healthy), worst(|report| report.total));
    let is_open = reports.iter().any(|report| report.is_open);
    let latency_us = reports.iter().map(|report| report.latency_us).max().unwrap_or(0);
    let status = match healthy {
        0 => "down",
        _ if healthy < total || is_open => "degraded",
        _ => "up",
    };
    let mut entry = json!({
        "status": status,
        "latencyMs": f64::from(latency_us) / 1000.0,
        "instances": {"healthy": healthy, "total": total},
        "circuit": if is_open { "open" } else { "closed" },
        "checkedAt": checked_at,
    });
    if let Some(error) = reports.iter().find_map(|report| report.error) {
        entry["error"] = Value::from(error);
    }
    entry
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

fn rfc3339(unix: Duration) -> String {
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
        Report { healthy, total, error, ..Report::default() }
    }

    fn known(upstreams: &[(&str, &[(usize, usize)])]) -> HealthInputs {
        let upstream = |(name, reports): &(&str, &[(usize, usize)])| {
            ((*name).to_owned(), reports.iter().map(|(healthy, total)| report(*healthy, *total)).collect())
        };
        HealthInputs {
            upstreams: upstreams.iter().map(upstream).collect(),
            databases: Databases::default(),
            is_revocation_stale: false,
            uptime_s: 5,
            timestamp: "2026-11-24T10:00:00Z".to_owned(),
            checked_at: "2026-11-24T09:59:59Z".to_owned(),
            shards_ready: 2,
            shards: 2,
            is_accepting: true,
            has_hub: true,
            bus_health: BusHealth::None,
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

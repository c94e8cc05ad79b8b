//! The one document about everything that goes on, `GET /api/state`: what the dashboard and `shardgate top` show. Each member
//! is explained in docs/dashboard.md.
//!
//! It is read back by `shardgate top`, of another version perhaps: what is missing there stands for nothing, and what is new
//! is passed over.

use serde::{Deserialize, Serialize};

/// So many routes are in the document; those with the most requests.
pub const ROUTES_MAX: usize = 50;
/// So many upstreams, and so many instances of all of them together; those with trouble come first.
pub const UPSTREAMS_MAX: usize = 100;
/// See [`UPSTREAMS_MAX`].
pub const INSTANCES_MAX: usize = 500;
/// So many of the latest changes by operators.
pub const CHANGES_MAX: usize = 20;
/// The text of a refusal, and any other that comes from outside, is so long at most, in bytes.
pub const TEXT_MAX: usize = 4096;

/// Declares the parts of the document.
macro_rules! document {
    ($($(#[$meta:meta])* $Part:ident { $($(#[$field_meta:meta])+ $field:ident: $type:ty,)+ })+) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
            #[serde(default, rename_all = "camelCase")]
            pub struct $Part { $($(#[$field_meta])+ pub $field: $type,)+ }
        )+
    };
}

document! {
    /// The document.
    State {
        /// Of this form; another one means something else.
        format: u32,
        /// When it was made.
        timestamp: String,
        /// The process.
        process: ProcessState,
        /// Each shard.
        shards: Vec<ShardState>,
        /// All requests.
        requests: RequestsState,
        /// The last minutes, second by second.
        history: HistoryState,
        /// Routes with the most requests.
        routes: Vec<RouteState>,
        /// Routes that are not among them.
        routes_left_out: usize,
        /// Upstreams.
        upstreams: Vec<UpstreamState>,
        /// Upstreams that are not among them.
        upstreams_left_out: usize,
        /// The hub.
        hub: HubState,
        /// Stores that the gateway depends on.
        databases: Vec<DatabaseState>,
        /// The configuration.
        configuration: ConfigurationState,
        /// The log.
        log: LogState,
        /// Certificates of listeners.
        certificates: Vec<CertificateState>,
        /// What their files held that was refused, until something is taken again.
        certificates_refusal: Option<RefusalState>,
        /// What operators have changed.
        changes: ChangesState,
    }

    /// The process.
    ProcessState {
        /// The gateway's version.
        version: String,
        /// The process's id.
        pid: u32,
        /// When it started.
        started_at: String,
        /// How long ago that was.
        uptime_seconds: u64,
        /// As `/health` has it.
        status: String,
        /// Whether it drains.
        draining: bool,
        /// Memory that is resident.
        rss_bytes: Option<u64>,
        /// Processor time of all threads.
        cpu_seconds: f64,
        /// Cores in use of late.
        cpu_cores: Option<f64>,
        /// Open descriptors.
        descriptors_open: Option<u64>,
        /// How many there may be.
        descriptors_max: u64,
    }

    /// One shard.
    ShardState {
        /// Its number.
        shard: usize,
        /// Whether it has told of itself when it was last asked.
        answers: bool,
        /// The configuration that it runs.
        generation: u64,
        /// Share of the time that its thread ran, of late.
        busy: Option<f64>,
        /// How late its timer was, at worst, of late.
        lag_ms: Option<f64>,
        /// Client connections.
        connections: i64,
        /// Sockets of the hub.
        sockets: i64,
        /// Requests that ended.
        requests: u64,
        /// The same a second, of late.
        requests_per_second: Option<f64>,
        /// Requests under way.
        in_flight: i64,
    }

    /// All requests.
    RequestsState {
        /// The time that rates and percentiles are of.
        window_seconds: f64,
        /// Requests that ended since the start.
        total: u64,
        /// A second, in the window.
        per_second: Option<f64>,
        /// Requests under way.
        in_flight: i64,
        /// Half of the requests took no longer.
        p50_ms: Option<f64>,
        /// 99 % of them.
        p99_ms: Option<f64>,
        /// 99.9 % of them.
        p999_ms: Option<f64>,
        /// What the gateway itself added, to 99 % of them.
        gateway_p99_ms: Option<f64>,
        /// By the hundreds of the status.
        statuses: Vec<CountState>,
        /// Refusals by the gateway, by code.
        refusals: Vec<CountState>,
    }

    /// One of several counts.
    CountState {
        /// What is counted.
        name: String,
        /// How often since the start.
        total: u64,
        /// How often a second, in the window.
        per_second: Option<f64>,
    }

    /// The last minutes; each list ends with the latest second.
    HistoryState {
        /// From one value to the next.
        interval_seconds: f64,
        /// Requests a second.
        requests: Vec<Option<f64>>,
        /// Those that failed, a second: a status of 500 or above, or none.
        errors: Vec<Option<f64>>,
        /// Half of the requests took no longer.
        p50_ms: Vec<Option<f64>>,
        /// 99 % of them.
        p99_ms: Vec<Option<f64>>,
        /// Client connections.
        connections: Vec<Option<f64>>,
        /// Sockets of the hub.
        sockets: Vec<Option<f64>>,
        /// Messages queued for sockets, a second.
        messages: Vec<Option<f64>>,
        /// Cores in use.
        cpu_cores: Vec<Option<f64>>,
    }

    /// One route.
    RouteState {
        /// Its name; `other` is what no route took.
        name: String,
        /// Requests that ended since the start.
        total: u64,
        /// A second, in the window.
        per_second: Option<f64>,
        /// Those that failed since the start.
        errors: u64,
        /// A second, in the window.
        errors_per_second: Option<f64>,
        /// Half of the requests took no longer.
        p50_ms: Option<f64>,
        /// 99 % of them.
        p99_ms: Option<f64>,
        /// 99.9 % of them.
        p999_ms: Option<f64>,
    }

    /// One upstream.
    UpstreamState {
        /// Its name.
        name: String,
        /// As `/health` has it.
        status: String,
        /// What was wrong last, while something is.
        error: Option<String>,
        /// As the shard sees it that sees the worst: `closed`, `half_open` or `open`.
        circuit: String,
        /// Shards on which it is not closed.
        circuit_shards: usize,
        /// Whether its instances are probed.
        probed: bool,
        /// Attempts that ended since the start.
        total: u64,
        /// A second, in the window.
        per_second: Option<f64>,
        /// Those without an answer, or with a status of 500 or above.
        failures_per_second: Option<f64>,
        /// Half of the attempts took no longer.
        p50_ms: Option<f64>,
        /// 99 % of them.
        p99_ms: Option<f64>,
        /// Requests under way.
        in_flight: i64,
        /// Connections that wait for a request.
        connections_idle: i64,
        /// Its instances.
        instances: Vec<InstanceState>,
        /// Instances that are not among them.
        instances_left_out: usize,
    }

    /// One instance.
    InstanceState {
        /// As configured or found.
        instance: String,
        /// Where it is.
        address: String,
        /// `up`, `untested`, `down`, `ejected` or `failing`.
        status: String,
        /// Why it is not up.
        why: Option<String>,
        /// What an operator has done with it: `drained` or `ejected`.
        held: Option<HeldState>,
        /// Requests under way.
        in_flight: u64,
        /// How long its answers take of late.
        latency_ms: Option<f64>,
        /// Shards that have ejected it.
        ejected_by_shards: usize,
        /// When the last of them lets it in again.
        ejected_for_seconds: Option<f64>,
        /// Its share beside the others of its priority.
        weight: Option<u32>,
        /// The same, if no operator had changed it.
        configured_weight: Option<u32>,
        /// Those with a higher number are there for when too few of the lower ones are well.
        priority: Option<u32>,
        /// Where it stands.
        zone: Option<String>,
        /// How its last probe ended.
        probe: Option<ProbeState>,
    }

    /// What an operator has done with an instance.
    HeldState {
        /// `drained` or `ejected`.
        state: String,
        /// Whose token it was.
        by: String,
        /// When.
        at: String,
    }

    /// The last probe of an instance.
    ProbeState {
        /// `good`, or what was wrong.
        result: String,
        /// How long it took.
        took_ms: f64,
        /// How long ago it ended.
        age_seconds: f64,
    }

    /// The hub.
    HubState {
        /// Whether there is one.
        enabled: bool,
        /// Sockets that are open.
        sockets: i64,
        /// Rooms, each counted once.
        rooms: i64,
        /// Users, each counted by every shard that has a socket of theirs.
        users: i64,
        /// Messages queued for sockets, a second.
        messages_per_second: Option<f64>,
        /// Messages that full outboxes dropped.
        dropped: u64,
        /// Bytes that wait for sockets.
        outbox_bytes: i64,
        /// `none`, `up`, `down`, `refused` or `events_refused`: how rooms across instances are.
        bus: String,
    }

    /// One store.
    DatabaseState {
        /// `redis`, `postgres`, `embedded` or `clickhouse`.
        name: String,
        /// `up`, `degraded` or `down`.
        status: String,
        /// Why it is not up.
        error: Option<String>,
        /// How long the last question took.
        latency_ms: f64,
        /// When that was.
        checked_at: String,
    }

    /// The configuration.
    ConfigurationState {
        /// Counts configurations since the start.
        generation: u64,
        /// Whether every shard runs it.
        applied: bool,
        /// The file.
        path: Option<String>,
        /// When it was taken.
        loaded_at: String,
        /// How often another one was taken.
        reloads_applied: u64,
        /// How often one was refused.
        reloads_refused: u64,
        /// The refusal since the last one that was taken.
        refusal: Option<RefusalState>,
        /// Keys that differ in the file and are applied by a restart only.
        restart_needed: Vec<String>,
    }

    /// A configuration that was refused.
    RefusalState {
        /// When.
        at: String,
        /// Every mistake, a line each.
        text: String,
    }

    /// The log.
    LogState {
        /// What is let through.
        level: String,
        /// What is let through by the configuration.
        configured: String,
    }

    /// A certificate.
    CertificateState {
        /// Whom it names.
        names: Vec<String>,
        /// When it expires.
        expires_at: String,
    }

    /// What operators have changed.
    ChangesState {
        /// Whether a token is configured.
        possible: bool,
        /// Requests to the operator's listener that were refused, by reason.
        refused: Vec<CountState>,
        /// The latest changes, the last one first.
        latest: Vec<ChangeState>,
    }

    /// One change.
    ChangeState {
        /// When.
        at: String,
        /// Whose token it was.
        by: String,
        /// From where.
        from: String,
        /// What.
        what: String,
    }
}

/// A text from outside, cut where it is too long.
pub fn bounded(text: &str) -> String {
    if text.len() <= TEXT_MAX {
        return text.to_owned();
    }
    let mut end = TEXT_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// A document of which every part is there.
    fn whole() -> State {
        let instance = InstanceState {
            held: Some(HeldState::default()),
            probe: Some(ProbeState::default()),
            ..InstanceState::default()
        };
        let count = || vec![CountState::default()];
        State {
            shards: vec![ShardState::default()],
            requests: RequestsState { statuses: count(), refusals: count(), ..RequestsState::default() },
            routes: vec![RouteState::default()],
            upstreams: vec![UpstreamState { instances: vec![instance], ..UpstreamState::default() }],
            databases: vec![DatabaseState::default()],
            configuration: ConfigurationState {
                refusal: Some(RefusalState::default()),
                ..ConfigurationState::default()
            },
            certificates: vec![CertificateState::default()],
            certificates_refusal: Some(RefusalState::default()),
            changes: ChangesState { refused: count(), latest: vec![ChangeState::default()], ..ChangesState::default() },
            ..State::default()
        }
    }

    /// The members of a document by their ways from its root.
    fn members(value: &Value, way: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    let way = if way.is_empty() { name.clone() } else { format!("{way}.{name}") };
                    found.insert(way.clone());
                    members(value, &way, found);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| members(value, &format!("{way}[]"), found)),
            _ => {}
        }
    }

    #[test]
    fn every_member_is_documented_and_no_other() {
        let text = include_str!("../../docs/dashboard.md");
        let (_, text) = text.split_once("## The document").expect("the heading");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let documented: BTreeSet<String> = rows.map(|(way, _)| way.to_owned()).collect();
        let mut found = BTreeSet::new();
        members(&serde_json::to_value(whole()).expect("JSON"), "", &mut found);
        let missing: Vec<_> = found.difference(&documented).collect();
        let unknown: Vec<_> = documented.difference(&found).collect();
        assert!(missing.is_empty() && unknown.is_empty(), "missing: {missing:?}; not there: {unknown:?}");
    }

    #[test]
    fn what_another_version_says_is_read_as_far_as_it_goes() {
        let text = r#"{"format":1,"new":[{}],"shards":[{"shard":1,"new":null}],"process":{}}"#;
        let state: State = serde_json::from_str(text).expect("a document");
        assert_eq!(state.shards, [ShardState { shard: 1, ..ShardState::default() }]);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(bounded("short"), "short");
        let cut = bounded(&"€".repeat(TEXT_MAX));
        assert!(cut.len() <= TEXT_MAX + 3 && cut.ends_with("€…"));
    }
}

//! The one table of metrics, and the plain counters that it declares.
//!
//! A row gives a counter's field, type, published name, labels and meaning; `exposition` publishes what stands here,
//! and a test keeps `docs/metrics.md` true to it. Counting is adding to a field of the shard's own [`Counters`]; a
//! scrape asks each shard for a copy.

pub use super::clickhouse_metrics::ClickhouseCounters;
use super::histogram::{Histogram, Lifetimes, Own, Requests};
pub use super::instance_metrics::InstanceCounters;
pub use super::labels::{
    AdminChange, AdminRefusal, BusLoss, BusRefusal, Carried, CircuitState, ExportFailure, HubEvent, InstanceOut,
    KeyFetch, LimitOutcome, Outcome, ProbeResult, Probed, ProxyFailure, RETRY_REASONS, Refusal, Reload, RequestResult,
    RowOutcome, Shed, SocketClosed, SpanLoss, Stale, Store, ThreadKind, TlsAlpn, TlsFailure, TlsFault, TlsVersion,
    TokenCheck, TunnelEnded,
};
pub use super::name_metrics::{NAMES_MAX, NameCounters};
use super::slots::{MetricSlot, MetricSlots, SLOTS_MAX};
use super::table::{Facts, Field as _, Merge, Metric, MetricKind, Micros, MicrosBy, Per, Sparse, Value, Values, table};

/// The hundreds of an answer's status; the last is for requests that ended without an answer.
pub const STATUS_CLASSES: &[&str] = &["1xx", "2xx", "3xx", "4xx", "5xx", "none"];
/// Room for the codes of refusals.
pub const REJECT_CODES_MAX: usize = 64;

table! {
    /// What one shard counts. One per shard; copies answer a scrape.
    Counters {
        /// Connections accepted from clients.
        connections_accepted: u64 = Counter "shardgate_connections_accepted_total" per Process;
        /// Fresh connections closed unserved, by reason.
        connections_refused: [u64; Refusal::COUNT] = Counter "shardgate_connections_refused_total" per Process
            by "reason" in Values::Fixed(Refusal::VALUES);
        /// Client connections open now.
        connections_open: i64 = Gauge "shardgate_connections_open" per Shard;
        /// Client connections open now, by what they carry. How long tunnels and sockets last is no request's duration.
        connections_by_protocol: Sparse<{ Carried::COUNT }> = Gauge "shardgate_connections_by_protocol" per Process
            by "protocol" in Values::Fixed(Carried::VALUES);
        /// Fresh connections handed to a shard with fewer of them.
        connections_handed_over: u64 = Counter "shardgate_connections_handed_over_total" per Shard;
        /// Connections closed because their PROXY header could not be used, by reason.
        proxy_failures: [u64; ProxyFailure::COUNT] = Counter "shardgate_proxy_protocol_refused_total" per Process
            by "reason" in Values::Fixed(ProxyFailure::VALUES);
        /// TLS handshakes that were done, by the version that was agreed on.
        tls_handshakes: [u64; TlsVersion::COUNT] = Counter "shardgate_tls_handshakes_total" per Process
            by "version" in Values::Fixed(TlsVersion::VALUES);
        /// TLS handshakes that were done, by the protocol that was agreed on (ALPN).
        tls_alpn: [u64; TlsAlpn::COUNT] = Counter "shardgate_tls_alpn_total" per Process
            by "protocol" in Values::Fixed(TlsAlpn::VALUES);
        /// TLS handshakes that took up a session again.
        tls_resumed: u64 = Counter "shardgate_tls_resumed_total" per Process;
        /// TLS handshakes that failed, by reason.
        tls_failures: [u64; TlsFailure::COUNT] = Counter "shardgate_tls_handshakes_failed_total" per Process
            by "reason" in Values::Fixed(TlsFailure::VALUES);
        /// TLS handshakes that wait until their shard comes to them.
        tls_waiting: i64 = Gauge "shardgate_tls_handshakes_waiting" per Shard;
        /// Accepts that failed for want of descriptors or memory.
        accept_errors: u64 = Counter "shardgate_accept_errors_total" per Process;
        /// Requests that ended, by the shard that served them.
        requests: u64 = Counter "shardgate_shard_requests_total" per Shard;
        /// Requests being served now.
        requests_in_flight: i64 = Gauge "shardgate_requests_in_flight" per Shard;
        /// Time that the gateway itself added to a request.
        gateway_duration: Histogram<Own> = Histogram "shardgate_gateway_duration_seconds" per Process;
        /// Time that requests for upstreams stood in line until their shard came to them.
        queue_duration: Histogram<Own> = Histogram "shardgate_queue_duration_seconds" per Process;
        /// Requests whose `X-Request-Timeout-Ms` was no number of milliseconds, or stood there twice; it was left out.
        deadlines_malformed: u64 = Counter "shardgate_deadlines_malformed_total" per Process;
        /// Requests that the gateway refused, by error code.
        rejects: [u64; REJECT_CODES_MAX] = Counter "shardgate_rejects_total" per Process
            by "code" in Values::RejectCodes;
        /// Tokens that were shown, by how their check came out.
        tokens: [u64; TokenCheck::COUNT] = Counter "shardgate_tokens_total" per Process
            by "result" in Values::Fixed(TokenCheck::VALUES);
        /// Tokens that a shard remembers.
        tokens_remembered: i64 = Gauge "shardgate_tokens_remembered" per Shard;
        /// Requests with a token that came while revocations were not known up to date, by what became of them.
        stale: [u64; Stale::COUNT] = Counter "shardgate_revocation_stale_requests_total" per Process
            by "outcome" in Values::Fixed(Stale::VALUES);
        /// Seconds for which a shard has not known of everything that was revoked; since its start, if it never did.
        revocation_age: i64 = Gauge "shardgate_revocation_age_seconds" per Shard;
        /// Shards that know of no revocations, or whose knowledge is older than `revocation.max_staleness`; 0 is well.
        revocation_stale_shards: i64 = Gauge "shardgate_revocation_stale_shards" per Process;
        /// Time from a revocation to the shard's knowledge of it.
        revocation_lag: Histogram<Requests> = Histogram "shardgate_revocation_lag_seconds" per Process;
        /// Revocations that a shard holds.
        revocations: i64 = Gauge "shardgate_revocations_held" per Shard;
        /// Exchanges under way that end with their caller's session.
        exchanges_tied: i64 = Gauge "shardgate_exchanges_tied" per Shard;
        /// Exchanges cut off or refused because their caller's session ended under them.
        exchanges_revoked: u64 = Counter "shardgate_exchanges_revoked_total" per Process;
        /// Access-log lines dropped because they could not be written in time.
        access_log_dropped: u64 = Counter "shardgate_access_log_dropped_total" per Process;
        /// Spans that were recorded, those included that were dropped later. Requests that are not recorded have none.
        spans_recorded: u64 = Counter "shardgate_trace_spans_recorded_total" per Process;
        /// Panics caught; each closed one connection.
        panics: u64 = Counter "shardgate_panics_total" per Process;
        /// Letters to other shards that found their ring full and were kept aside.
        mesh_spilled: u64 = Counter "shardgate_mesh_spilled_total" per Process;
        /// Letters of shards that found no room and were dropped. Losing them is harmless: counts for rate limits are told later, and what shards miss of a room they have sent again.
        mesh_dropped: u64 = Counter "shardgate_mesh_dropped_total" per Process;
        /// How much later than due a shard's regular timer ran.
        loop_lag: Histogram<Own> = Histogram "shardgate_loop_lag_seconds" per Shard;
        /// CPU time of a shard's thread, the kernel's work for it included.
        cpu: Micros = Counter "shardgate_shard_cpu_seconds_total" per Shard;
        /// Number of the configuration that a shard runs.
        config_generation: i64 = Gauge "shardgate_config_generation" per Shard;
        /// Buffers kept for the next connection that needs one.
        buffers_idle: i64 = Gauge "shardgate_buffers_idle" per Shard;
        /// Sockets of the hub that are open now.
        sockets_open: i64 = Gauge "shardgate_sockets_open" per Shard;
        /// Sockets of the hub that were closed by the gateway or answered a close, by the code.
        sockets_closed: [u64; SocketClosed::COUNT] = Counter "shardgate_sockets_closed_total" per Process
            by "reason" in Values::Fixed(SocketClosed::VALUES);
        /// Users with sockets here, each counted by every shard that has one.
        hub_users: i64 = Gauge "shardgate_hub_users" per Shard;
        /// Rooms with members here, each counted by every shard that has one.
        hub_rooms: i64 = Gauge "shardgate_hub_rooms" per Shard;
        /// Rooms that are at home here, with those that only keep their history.
        hub_homes: i64 = Gauge "shardgate_hub_rooms_at_home" per Shard;
        /// Bytes that wait for sockets, each message counted once.
        hub_frame_bytes: i64 = Gauge "shardgate_hub_outbox_bytes" per Shard;
        /// Bytes of rooms' histories.
        hub_history_bytes: i64 = Gauge "shardgate_hub_history_bytes" per Shard;
        /// Sockets with something to be written that wait for their turn.
        hub_backlog: i64 = Gauge "shardgate_hub_fan_out_backlog" per Shard;
        /// Bytes that were written to sockets, frames' headers included.
        hub_written_bytes: u64 = Counter "shardgate_hub_written_bytes_total" per Process;
        /// Time from a room message's number until a shard had written it to the last of its members that read; once for each message and shard with members.
        hub_publish_to_write: Histogram<Own> = Histogram "shardgate_hub_publish_to_write_seconds" per Process;
        /// Lifecycle events of rooms and users, by what became of them: delivered, refused by the service, or dropped because too many waited.
        hub_events: [u64; HubEvent::COUNT] = Counter "shardgate_hub_events_total" per Process
            by "result" in Values::Fixed(HubEvent::VALUES);
        /// Lifecycle events that wait for the service here; where instances share a Redis, only those that this one is sending.
        hub_events_waiting: i64 = Gauge "shardgate_hub_events_waiting" per Shard;
        /// Messages queued for sockets.
        hub_deliveries: u64 = Counter "shardgate_hub_deliveries_total" per Process;
        /// Messages that full outboxes dropped; their sockets were told of the gap.
        hub_dropped: u64 = Counter "shardgate_hub_dropped_total" per Process;
        /// Times that a shard missed messages of a room and had them sent again.
        hub_pulls: u64 = Counter "shardgate_hub_gaps_pulled_total" per Process;
        /// Members who were told that messages of a room are lost (`continuity`), each counted by itself.
        hub_discontinuities: u64 = Counter "shardgate_hub_discontinuities_total" per Process;
        /// Room messages that were given to Redis for their number.
        bus_publishes: u64 = Counter "shardgate_hub_bus_publishes_total" per Process;
        /// Room messages that Redis brought, from whatever instance, for rooms with members here.
        bus_deliveries: u64 = Counter "shardgate_hub_bus_deliveries_total" per Process;
        /// Room messages that were missed, and read from Redis's log.
        bus_repaired: u64 = Counter "shardgate_hub_bus_repaired_total" per Process;
        /// Times that a room's members here were told of a loss between instances: what they missed had left the log, or Redis had lost messages and a new epoch began.
        bus_losses: [u64; BusLoss::COUNT] = Counter "shardgate_hub_bus_losses_total" per Process
            by "reason" in Values::Fixed(BusLoss::VALUES);
        /// Messages, joins and questions that were refused because Redis was away or too much waited for it.
        bus_refused: [u64; BusRefusal::COUNT] = Counter "shardgate_hub_bus_refused_total" per Process
            by "reason" in Values::Fixed(BusRefusal::VALUES);
        /// Bytes of bodies, in either direction, that went from socket to socket without being copied to user space.
        spliced_bytes: u64 = Counter "shardgate_spliced_bytes_total" per Process;
    }
    also {
        routes: Vec<RouteCounters>,
        upstreams: Vec<UpstreamCounters>,
        limits: Vec<LimitCounters>,
    }
}

table! {
    /// What one shard counts of one route.
    #[derive(Default)]
    RouteCounters {
        /// Requests that ended, by the class of their status.
        requests: [u64; STATUS_CLASSES.len()] = Counter "shardgate_requests_total" per Route
            by "status" in Values::Fixed(STATUS_CLASSES);
        /// Time from a request's first byte to its answer's last; to the end of its answer's head where that begins a stream of events, or switches protocols.
        duration: Histogram<Requests> = Histogram "shardgate_request_duration_seconds" per Route;
        /// Bytes of request bodies received.
        request_bytes: u64 = Counter "shardgate_request_body_bytes_total" per Route;
        /// Bytes of answer bodies sent.
        response_bytes: u64 = Counter "shardgate_response_body_bytes_total" per Route;
        /// Streams of events (`text/event-stream`) open now. How long they last is no request's duration.
        streams_open: i64 = Gauge "shardgate_streams_open" per Route;
        /// How long streams of events lasted.
        stream_lifetime: Histogram<Lifetimes> = Histogram "shardgate_stream_lifetime_seconds" per Route;
        /// Tunnels open now: requests that have switched to another protocol. How long they last is no request's duration.
        tunnels_open: i64 = Gauge "shardgate_tunnels_open" per Route;
        /// Tunnels that ended, by reason.
        tunnels_ended: [u64; TunnelEnded::COUNT] = Counter "shardgate_tunnels_ended_total" per Route
            by "reason" in Values::Fixed(TunnelEnded::VALUES);
        /// How long tunnels lasted.
        tunnel_lifetime: Histogram<Lifetimes> = Histogram "shardgate_tunnel_lifetime_seconds" per Route;
        /// Bytes that clients sent through tunnels.
        tunnel_received_bytes: u64 = Counter "shardgate_tunnel_received_bytes_total" per Route;
        /// Bytes that were sent to clients through tunnels.
        tunnel_sent_bytes: u64 = Counter "shardgate_tunnel_sent_bytes_total" per Route;
    }
}

table! {
    /// What one shard counts of one upstream.
    #[derive(Default)]
    UpstreamCounters {
        /// Attempts that ended, by outcome.
        requests: [u64; Outcome::COUNT] = Counter "shardgate_upstream_requests_total" per Upstream
            by "outcome" in Values::Fixed(Outcome::VALUES);
        /// Requests in flight to it now.
        requests_in_flight: i64 = Gauge "shardgate_upstream_requests_in_flight" per Upstream;
        /// Requests in flight to it whose body is still coming in.
        uploads_in_flight: i64 = Gauge "shardgate_upstream_uploads_in_flight" per Upstream;
        /// Time that requests waited for it.
        duration: Histogram<Requests> = Histogram "shardgate_upstream_duration_seconds" per Upstream;
        /// Connections opened to it.
        connections_opened: u64 = Counter "shardgate_upstream_connections_opened_total" per Upstream;
        /// Requests that went over a connection used before.
        connections_reused: u64 = Counter "shardgate_upstream_connections_reused_total" per Upstream;
        /// Connections to it that wait for a request now.
        connections_idle: i64 = Gauge "shardgate_upstream_connections_idle" per Upstream;
        /// Connections to it that are held out of use until it is known that nothing comes behind their last answers.
        connections_held: i64 = Gauge "shardgate_upstream_connections_held" per Upstream;
        /// Connections to it that were closed because something came which nobody had asked for.
        connections_unasked: u64 = Counter "shardgate_upstream_connections_unasked_total" per Upstream;
        /// Instances of it that sent something unasked of late, each counted by every shard that saw it.
        instances_distrusted: i64 = Gauge "shardgate_upstream_instances_distrusted" per Upstream;
        /// Shards that send requests to instances of it which are not well, because too few are (`panic_percent`).
        shards_panicking: i64 = Gauge "shardgate_upstream_shards_panicking" per Upstream;
        /// Requests sent to it again, by reason.
        retries: [u64; RETRY_REASONS.len()] = Counter "shardgate_upstream_retries_total" per Upstream
            by "reason" in Values::Fixed(RETRY_REASONS);
        /// Requests that were not sent to it again because the budget for that was spent.
        retries_refused: u64 = Counter "shardgate_upstream_retries_refused_total" per Upstream;
        /// Requests for which another instance was asked as well, for want of an answer.
        hedges: u64 = Counter "shardgate_upstream_hedges_total" per Upstream;
        /// Such requests whose answer that other instance gave.
        hedges_won: u64 = Counter "shardgate_upstream_hedges_won_total" per Upstream;
        /// Requests to it whose own deadline passed before they were answered.
        deadlines_missed: u64 = Counter "shardgate_upstream_deadlines_missed_total" per Upstream;
        /// Requests to it that were refused at once instead of being answered too late, by reason.
        shed: [u64; Shed::COUNT] = Counter "shardgate_upstream_shed_total" per Upstream
            by "reason" in Values::Fixed(Shed::VALUES);
        /// Instances of it that were taken out for failing.
        ejections: u64 = Counter "shardgate_upstream_ejections_total" per Upstream;
        /// Instances of it that are left out now, each counted by every shard that leaves it out.
        instances_ejected: i64 = Gauge "shardgate_upstream_instances_ejected" per Upstream;
        /// Shards on which its circuit is open: they send nothing for a while, as most of what they sent to it failed.
        circuit_open_shards: i64 = Gauge "shardgate_upstream_circuit_open_shards" per Upstream;
        /// Changes of its circuit on any shard, by the state that was entered.
        circuit_changes: [u64; CircuitState::COUNT] = Counter "shardgate_upstream_circuit_changes_total" per Upstream
            by "state" in Values::Fixed(CircuitState::VALUES);
        /// Requests that were refused because its circuit was open.
        circuit_refused: u64 = Counter "shardgate_upstream_circuit_refused_total" per Upstream;
        /// Answers of it with white space before the colon of a field, which was taken out.
        answers_mended: u64 = Counter "shardgate_upstream_answers_mended_total" per Upstream;
    }
}

table! {
    /// What the control thread counts of the probes of one upstream.
    #[derive(Default)]
    ProbeCounters {
        /// Probes of its instances that ended, by result.
        probes: [u64; ProbeResult::COUNT] = Counter "shardgate_upstream_probes_total" per Upstream
            by "result" in Values::Fixed(ProbeResult::VALUES);
        /// Instances of it that are up by their probes. Upstreams without probes have neither series.
        instances_up: i64 = Gauge "shardgate_upstream_instances_up" per Upstream;
    }
}

impl ProbeCounters {
    /// Adds what was counted of another one.
    pub fn join(&mut self, other: &Self) {
        self.merge_fields(other);
    }
}

table! {
    /// What one shard counts of one limit.
    #[derive(Default)]
    LimitCounters {
        /// Requests that met the limit, by outcome.
        requests: [u64; LimitOutcome::COUNT] = Counter "shardgate_limit_requests_total" per Limit
            by "outcome" in Values::Fixed(LimitOutcome::VALUES);
        /// Requests that waited until other shards or Redis had counted those before them.
        held: u64 = Counter "shardgate_limit_held_total" per Limit;
        /// Keys that owed nothing and were forgotten to make room for others.
        evicted: u64 = Counter "shardgate_limit_evicted_total" per Limit;
        /// Requests of new keys that found no place of their own and were counted together.
        shared: u64 = Counter "shardgate_limit_shared_total" per Limit;
        /// Shards that count a limit of the fleet by this instance alone, as there is no Redis; 0 while Redis counts it.
        shards_alone: i64 = Gauge "shardgate_limit_shards_alone" per Limit;
    }
}

table! {
    /// What the control thread counts. One per process.
    #[derive(Default)]
    ProcessCounters {
        /// Reloads of the configuration, by result.
        config_reloads: [u64; Reload::COUNT] = Counter "shardgate_config_reloads_total" per Process
            by "result" in Values::Fixed(Reload::VALUES);
        /// Fetches of other issuers' key sets, by result.
        key_fetches: [u64; KeyFetch::COUNT] = Counter "shardgate_key_fetches_total" per Process
            by "result" in Values::Fixed(KeyFetch::VALUES);
        /// Times that shards were told that names of instances have other addresses.
        discovery_changes: u64 = Counter "shardgate_discovery_changes_total" per Process;
        /// Times that entries were missing in the log of revocations. What this instance knew was written back.
        revocation_log_losses: u64 = Counter "shardgate_revocation_log_losses_total" per Process;
        /// Operations on accounts that have begun, log-ins left out: at most 512 renewals, and 512 endings and lists.
        operations_under_way: i64 = Gauge "shardgate_account_operations_under_way" per Process;
        /// Operations on accounts that wait for their turn, log-ins left out: the stores are slow.
        operations_waiting: i64 = Gauge "shardgate_account_operations_waiting" per Process;
        /// Whether rooms span instances now: Redis brings back what this instance says to itself.
        bus_up: i64 = Gauge "shardgate_hub_bus_up" per Process;
        /// Commands that Redis refused which rooms across instances and lifecycle events need: a key, channel or command that its user lacks, or a key that somebody else has written. The log names it.
        bus_refusals: u64 = Counter "shardgate_hub_bus_refusals_total" per Process;
        /// Time until Redis brought back what this instance said to itself, each half second.
        bus_round_trip: Histogram<Own> = Histogram "shardgate_hub_bus_round_trip_seconds" per Process;
        /// Seconds until the first of the certificates that clients are shown ends; 0 when one has ended. Without certificates there is no such series.
        certificate_expiry: Sparse<1> = Gauge "shardgate_certificate_expiry_seconds" per Process
            by "certificate" in Values::Fixed(&["first"]);
        /// Times that the files of certificates held something else while the configuration stayed, by what became of that. What is refused is tried again, and counted anew when something else is wrong with it.
        certificate_changes: [u64; Reload::COUNT] = Counter "shardgate_certificate_changes_total" per Process
            by "result" in Values::Fixed(Reload::VALUES);
        /// Spans that the collector took.
        spans_exported: u64 = Counter "shardgate_trace_spans_exported_total" per Process;
        /// Spans that nobody has, by reason.
        spans_dropped: [u64; SpanLoss::COUNT] = Counter "shardgate_trace_spans_dropped_total" per Process
            by "reason" in Values::Fixed(SpanLoss::VALUES);
        /// Spans that wait to be exported.
        spans_waiting: i64 = Gauge "shardgate_trace_spans_waiting" per Process;
        /// Requests with spans that failed, by reason; most are sent again.
        span_exports_failed: [u64; ExportFailure::COUNT] = Counter "shardgate_trace_exports_failed_total" per Process
            by "reason" in Values::Fixed(ExportFailure::VALUES);
        /// Changes by operators.
        admin_changes: [u64; AdminChange::COUNT] = Counter "shardgate_admin_changes_total" per Process
            by "change" in Values::Fixed(AdminChange::VALUES);
        /// Requests to the operator's listener that were refused, by reason.
        admin_refused: [u64; AdminRefusal::COUNT] = Counter "shardgate_admin_refused_total" per Process
            by "reason" in Values::Fixed(AdminRefusal::VALUES);
        /// Instances that operators hold out of use.
        instances_held: i64 = Gauge "shardgate_instances_held" per Process;
        /// Whether a store that is configured does what it is asked: 1, or 0.
        stores_up: Sparse<{ Store::COUNT }> = Gauge "shardgate_store_up" per Process
            by "store" in Values::Fixed(Store::VALUES);
        /// Instances that have no series of their own, as there are too many of them.
        instances_unlisted: i64 = Gauge "shardgate_instances_unlisted" per Process;
        /// The program: its version, and what the shards wait for sockets with.
        build: Facts = Info "shardgate_build_info" per Process by "version, driver" in Values::Free;
        /// The configuration in force: the first digits of the SHA-256 of `shardgate config`. Processes with the same one run the same, secrets left out.
        config: Facts = Info "shardgate_config_info" per Process by "hash" in Values::Free;
        /// When the configuration in force was taken, in seconds since 1970.
        config_applied: i64 = Gauge "shardgate_config_applied_time_seconds" per Process;
        /// CPU time of the process, by what its threads do, the kernel's work for it included.
        cpu: MicrosBy<{ ThreadKind::COUNT }> = Counter "shardgate_cpu_seconds_total" per Process
            by "thread" in Values::Fixed(ThreadKind::VALUES);
        /// Memory of the process that is in RAM.
        resident: i64 = Gauge "shardgate_resident_memory_bytes" per Process;
        /// Descriptors that are open: sockets, files, pipes.
        descriptors_open: i64 = Gauge "shardgate_open_descriptors" per Process;
        /// Descriptors that may be open.
        descriptors_max: i64 = Gauge "shardgate_max_descriptors" per Process;
        /// When the process started, in seconds since 1970.
        start_time: i64 = Gauge "shardgate_start_time_seconds" per Process;
        /// Shards that should answer a scrape.
        shards: i64 = Gauge "shardgate_shards" per Process;
        /// Shards that answered this scrape in time.
        shards_answered: i64 = Gauge "shardgate_shards_answered" per Process;
    }
    also {
        /// What was counted of probes, by the upstreams' slots; `None` for those without.
        pub probes: Vec<Option<ProbeCounters>>,
        /// What the sink of ClickHouse counted; `None` if there is no sink.
        pub clickhouse: Option<ClickhouseCounters>,
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            connections_accepted: 0,
            tokens: [0; TokenCheck::COUNT],
            tokens_remembered: 0,
            connections_refused: [0; Refusal::COUNT],
            connections_open: 0,
            connections_by_protocol: Sparse::default(),
            connections_handed_over: 0,
            proxy_failures: [0; ProxyFailure::COUNT],
            tls_handshakes: [0; TlsVersion::COUNT],
            tls_alpn: [0; TlsAlpn::COUNT],
            tls_resumed: 0,
            tls_failures: [0; TlsFailure::COUNT],
            tls_waiting: 0,
            accept_errors: 0,
            requests: 0,
            requests_in_flight: 0,
            gateway_duration: Histogram::default(),
            queue_duration: Histogram::default(),
            deadlines_malformed: 0,
            rejects: [0; REJECT_CODES_MAX],
            stale: [0; Stale::COUNT],
            revocation_age: 0,
            revocation_stale_shards: 0,
            revocation_lag: Histogram::default(),
            revocations: 0,
            exchanges_tied: 0,
            exchanges_revoked: 0,
            access_log_dropped: 0,
            spans_recorded: 0,
            panics: 0,
            mesh_spilled: 0,
            mesh_dropped: 0,
            loop_lag: Histogram::default(),
            cpu: Micros::default(),
            config_generation: 0,
            buffers_idle: 0,
            sockets_open: 0,
            sockets_closed: [0; SocketClosed::COUNT],
            hub_users: 0,
            hub_rooms: 0,
            hub_homes: 0,
            hub_frame_bytes: 0,
            hub_history_bytes: 0,
            hub_events: [0; HubEvent::COUNT],
            hub_events_waiting: 0,
            hub_backlog: 0,
            hub_written_bytes: 0,
            hub_publish_to_write: Histogram::default(),
            hub_deliveries: 0,
            hub_dropped: 0,
            hub_pulls: 0,
            hub_discontinuities: 0,
            bus_publishes: 0,
            bus_deliveries: 0,
            bus_repaired: 0,
            bus_losses: [0; BusLoss::COUNT],
            bus_refused: [0; BusRefusal::COUNT],
            spliced_bytes: 0,
            routes: vec![RouteCounters::default()],
            upstreams: vec![UpstreamCounters::default()],
            limits: vec![LimitCounters::default()],
        }
    }
}

/// What is counted of a request when it ended.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// The route's slot; [`OTHER`](super::slots::OTHER) when no route took it.
    pub route: MetricSlot,
    /// The answer's status; 0 when there was none.
    pub status: u16,
    /// From the request's first byte to the answer's last.
    pub total_us: u64,
    /// The part of it that the gateway added.
    pub gateway_us: u64,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
}

impl Counters {
    /// Counts a request that ended; once for each.
    #[inline]
    pub fn finish(&mut self, finished: &Finished) {
        self.requests += 1;
        self.gateway_duration.observe_us(finished.gateway_us);
        let route = self.route(finished.route);
        route.requests[status_class(finished.status)] += 1;
        route.duration.observe_us(finished.total_us);
        route.request_bytes += finished.request_bytes;
        route.response_bytes += finished.response_bytes;
    }

    /// The counters of a route.
    #[inline]
    pub fn route(&mut self, slot: MetricSlot) -> &mut RouteCounters {
        at(&mut self.routes, slot)
    }

    /// The counters of an upstream.
    #[inline]
    pub fn upstream(&mut self, slot: MetricSlot) -> &mut UpstreamCounters {
        at(&mut self.upstreams, slot)
    }

    /// The counters of a limit.
    #[inline]
    pub fn limit(&mut self, slot: MetricSlot) -> &mut LimitCounters {
        at(&mut self.limits, slot)
    }

    /// Sorts the open connections by what they carry, once it is known how many there are.
    pub fn count_protocols(&mut self) {
        let tunnels: i64 = self.routes.iter().map(|route| route.tunnels_open).sum();
        let streams: i64 = self.routes.iter().map(|route| route.streams_open).sum();
        let http = self.connections_open - tunnels - streams - self.sockets_open;
        let level = |count: i64| Some(u64::try_from(count).unwrap_or(0));
        let of = &mut self.connections_by_protocol.0;
        of[Carried::Http1.index()] = level(http);
        of[Carried::Stream.index()] = level(streams);
        of[Carried::Tunnel.index()] = level(tunnels);
        of[Carried::Socket.index()] = level(self.sockets_open);
    }

    /// Counts a refusal by the place of its code in [`Names::reject_codes`].
    #[inline]
    pub fn reject(&mut self, code: usize) {
        if let Some(count) = self.rejects.get_mut(code) {
            *count += 1;
        }
    }

    /// Makes room for the slots of a new configuration, so that no request has to.
    pub fn make_room(&mut self, routes: usize, upstreams: usize) {
        grow(&mut self.routes, routes);
        grow(&mut self.upstreams, upstreams);
    }

    /// Adds what another shard counted.
    pub fn merge(&mut self, other: &Self) {
        self.merge_fields(other);
        self.make_room(other.routes.len(), other.upstreams.len());
        for (mine, theirs) in self.routes.iter_mut().zip(&other.routes) {
            mine.merge_fields(theirs);
        }
        grow(&mut self.limits, other.limits.len());
        for (mine, theirs) in self.limits.iter_mut().zip(&other.limits) {
            mine.merge_fields(theirs);
        }
        for (mine, theirs) in self.upstreams.iter_mut().zip(&other.upstreams) {
            mine.merge_fields(theirs);
        }
    }

    /// The counters of all routes, by slot.
    pub fn routes(&self) -> &[RouteCounters] {
        &self.routes
    }

    /// The counters of all limits, by slot.
    pub fn limits(&self) -> &[LimitCounters] {
        &self.limits
    }

    /// The counters of all upstreams, by slot.
    pub fn upstreams(&self) -> &[UpstreamCounters] {
        &self.upstreams
    }
}

/// The element of a slot. A slot that came before [`Counters::make_room`] did costs its first use an allocation.
#[inline]
fn at<T: Default>(elements: &mut Vec<T>, slot: MetricSlot) -> &mut T {
    if slot.index() >= elements.len() {
        grow(elements, slot.index() + 1);
    }
    &mut elements[slot.index()]
}

#[cold]
fn grow<T: Default>(elements: &mut Vec<T>, length: usize) {
    if length > elements.len() {
        elements.resize_with(length.min(SLOTS_MAX), T::default);
    }
}

#[inline]
fn status_class(status: u16) -> usize {
    match status / 100 {
        class @ 1..=5 => usize::from(class) - 1,
        _ => STATUS_CLASSES.len() - 1,
    }
}

/// The names behind slots and codes. One per process, with whoever answers scrapes.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Routes by slot.
    pub routes: MetricSlots,
    /// Upstreams by slot.
    pub upstreams: MetricSlots,
    /// Limits by slot.
    pub limits: MetricSlots,
    /// Codes of refusals by the number that [`Counters::reject`] takes.
    pub reject_codes: &'static [&'static str],
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;

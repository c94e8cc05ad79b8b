//! Every row of the table of metrics moves: each by what is done here to one gateway, or by a test that is named.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use shardgate::exchange::Code;

use super::{
    access::{KEYS, token, unix_now},
    outcomes::nobody,
};
use crate::{
    backend::{Backend, Conversation},
    client::{Client, Response},
    harness::{Gateway, shardgate, until},
};

const SOON: Duration = Duration::from_secs(10);
const EMAIL: &str = "ann@shop.example";
const PASSWORD: &str = "a password of the tests";

/// Rows that one gateway alone, or within seconds, does not move, with the tests that do.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("connections_refused_total reason=limit", "tests/it/process/shards.rs", "past_the_limit_clients_are_told"),
    ("connections_refused_total reason=descriptors", "tests/it/process/shards.rs", "running_out_of_descriptors"),
    ("connections_handed_over_total", "tests/it/process/shards.rs", "a_shard_with_too_many_connections"),
    ("proxy_protocol_refused_total reason=untrusted", "tests/it/process/proxied.rs", "\"untrusted\", 1)"),
    ("proxy_protocol_refused_total reason=timeout", "tests/it/process/proxied.rs", "\"timeout\", 2)"),
    ("proxy_protocol_refused_total reason=left", "tests/it/process/proxied.rs", "\"left\", 1)"),
    ("proxy_protocol_refused_total reason=malformed", "tests/it/process/proxied.rs", "\"malformed\", 3)"),
    ("proxy_protocol_refused_total reason=too_long", "tests/it/process/proxied.rs", "\"too_long\", 2)"),
    ("proxy_protocol_refused_total reason=checksum", "tests/it/process/proxied.rs", "\"checksum\", 1)"),
    ("tls_handshakes_total version=1.2", "tests/it/process/tls.rs", "curl_is_served_by_every_shard"),
    ("tls_handshakes_total version=1.3", "tests/it/process/tls.rs", "curl_is_served_by_every_shard"),
    ("tls_alpn_total protocol=http/1.1", "tests/it/process/tls.rs", "curl_is_served_by_every_shard"),
    ("tls_alpn_total protocol=none", "tests/it/process/tls.rs", "protocol=\\\"none\\\""),
    ("tls_handshakes_failed_total reason=timeout", "tests/it/process/tls.rs", "failed(\"timeout\", 2)"),
    ("tls_handshakes_failed_total reason=left", "tests/it/process/tls.rs", "failed(\"left\", 1)"),
    ("tls_handshakes_failed_total reason=refused", "tests/it/process/tls.rs", "the refusal is counted"),
    ("tls_handshakes_failed_total reason=plain_http", "tests/it/process/tls.rs", "failed(\"plain_http\", 1)"),
    ("tls_handshakes_failed_total reason=incompatible", "tests/it/process/tls.rs", "failed(\"incompatible\", 1)"),
    (
        "tls_handshakes_failed_total reason=no_certificate",
        "tests/it/process/tls.rs",
        "a_certificate_is_shown_by_the_name",
    ),
    ("tls_handshakes_failed_total reason=malformed", "tests/it/process/tls.rs", "failed(\"malformed\", 1)"),
    ("tls_handshakes_failed_total reason=crowded", "src/net/tls_tests.rs", "past_the_bound_a_handshake_is_refused"),
    ("tls_resumed_total", "tests/it/process/tls.rs", "shardgate_tls_resumed_total\"), 59"),
    ("certificate_expiry_seconds certificate=first", "tests/it/process/tls.rs", "operators_see_when_certificates_end"),
    (
        "certificate_changes_total result=applied",
        "tests/it/process/certificates.rs",
        "files_that_change_are_taken_whole",
    ),
    (
        "certificate_changes_total result=refused",
        "tests/it/process/certificates.rs",
        "files_that_change_are_taken_whole",
    ),
    ("admin_refused_total reason=handshake", "tests/it/process/certificates.rs", "operators_are_served_over_tls"),
    ("tls_handshakes_waiting", "src/shard/gate.rs", "full.waiting(), 1"),
    ("accept_errors_total", "tests/it/process/shards.rs", "running_out_of_descriptors"),
    ("rejects_total code=misdirected_request", "tests/it/process/to_https.rs", "it_leads_to_no_host_but_ours"),
    ("rejects_total code=overloaded", "tests/it/process/shards.rs", "past_the_limit_clients_are_told"),
    ("rejects_total code=draining", "tests/it/process/drain.rs", "what_is_left_at_the_end_of_the_drain"),
    ("requests_total status=none", "src/telemetry/metrics_tests.rs", "a_request_is_counted_where_it_belongs"),
    ("revocation_stale_requests_total outcome=refused", "tests/it/sessions/mod.rs", "what_is_known_serves_while_redis"),
    ("revocation_stale_requests_total outcome=served", "tests/it/sessions/mod.rs", "what_is_known_serves_while_redis"),
    ("revocation_age_seconds", "tests/it/sessions/mod.rs", "what_is_known_serves_while_redis"),
    ("revocation_stale_shards", "tests/it/sessions/unread.rs", "an_instance_that_starts_while_redis_is_away"),
    ("upstream_connections_held", "tests/it/journey/reuse.rs", "\"connections_held\"), 1"),
    ("upstream_connections_unasked_total", "tests/it/journey/reuse.rs", "\"connections_unasked_total\") == 1"),
    ("upstream_instances_distrusted", "tests/it/journey/reuse.rs", "\"instances_distrusted\"), 1"),
    ("upstream_retries_total reason=reset", "tests/it/journey/upstream.rs", "what_is_safe_to_repeat_is_sent_again"),
    ("upstream_retries_total reason=timeout", "tests/it/journey/retries.rs", "retries(&gateway, \"timeout\") >= 2"),
    ("upstream_retries_total reason=502", "tests/it/journey/retries.rs", "a_status_is_tried_again_at_another_instance"),
    ("upstream_retries_total reason=503", "tests/it/journey/retries.rs", "a_status_is_tried_again_at_another_instance"),
    ("upstream_retries_total reason=504", "tests/it/journey/retries.rs", "a_status_is_tried_again_at_another_instance"),
    ("upstream_retries_refused_total", "tests/it/journey/retries.rs", "\"retries_refused_total\"), 1"),
    ("upstream_hedges_total", "tests/it/journey/retries.rs", "won == hedges"),
    ("upstream_hedges_won_total", "tests/it/journey/retries.rs", "won == hedges"),
    ("upstream_shed_total reason=deadline", "tests/it/journey/shedding.rs", "upstream_shed_total"),
    ("upstream_shed_total reason=queue", "src/upstream/tests.rs", "a_shard_that_is_behind_refuses_at_once"),
    ("access_log_dropped_total", "src/telemetry/access_log_tests.rs", "what_the_system_refuses_is_counted"),
    ("trace_spans_recorded_total", "tests/it/journey/spans.rs", "what_is_not_sampled_is_not_recorded"),
    ("trace_spans_exported_total", "tests/it/journey/spans.rs", "shardgate_trace_spans_exported_total\") == 128"),
    (
        "trace_spans_waiting",
        "tests/it/journey/span_export.rs",
        "lost + metrics.value(\"shardgate_trace_spans_waiting\")",
    ),
    (
        "trace_spans_dropped_total reason=shard_full",
        "src/telemetry/spans_tests.rs",
        "(batch.len(), batch.dropped), (1, 6)",
    ),
    ("trace_spans_dropped_total reason=queue_full", "tests/it/journey/span_export.rs", "\"queue_full\") > 0"),
    ("trace_spans_dropped_total reason=refused", "tests/it/journey/span_export.rs", "\"refused\") == 4"),
    ("trace_spans_dropped_total reason=rejected", "tests/it/journey/span_export.rs", "\"rejected\") == 3"),
    ("trace_spans_dropped_total reason=gave_up", "src/sinks/otlp/queue.rs", "in_the_end_given_up"),
    ("trace_exports_failed_total reason=timeout", "tests/it/journey/span_export.rs", "\"timeout\") >= 2"),
    ("trace_exports_failed_total reason=unreachable", "tests/it/journey/span_export.rs", "\"unreachable\") > 0"),
    ("trace_exports_failed_total reason=busy", "tests/it/journey/span_export.rs", "failures(&metrics, \"busy\")"),
    ("trace_exports_failed_total reason=refused", "tests/it/journey/span_export.rs", "failures(&metrics, \"refused\")"),
    ("upstream_shards_panicking", "tests/it/journey/tiers.rs", "every shard panics"),
    ("upstream_probes_total result=body", "tests/it/journey/probes.rs", "result=\\\"body\\\""),
    ("instance_requests_total outcome=tls_failed", "tests/it/journey/to_services.rs", "what_is_wrong_with"),
    ("upstream_requests_total outcome=tls_failed", "tests/it/journey/to_services.rs", "what_is_wrong_with"),
    ("upstream_probes_total result=tls_unknown_authority", "tests/it/journey/to_services.rs", "what_is_wrong_with"),
    ("upstream_probes_total result=tls_wrong_name", "tests/it/journey/to_services.rs", "what_is_wrong_with"),
    ("upstream_probes_total result=tls_expired", "tests/it/journey/to_services.rs", "what_is_wrong_with"),
    ("upstream_probes_total result=tls_not_spoken", "tests/it/journey/to_services.rs", "what_is_wrong_with"),
    ("upstream_probes_total result=tls_alert", "tests/it/journey/to_services.rs", "-tls1_2"),
    ("upstream_probes_total result=tls_failed", "tests/it/journey/to_services.rs", "what_is_wrong_with"),
    ("upstream_probes_total result=not_asked", "src/upstream/probe.rs", "NotAsked, Refused"),
    ("panics_total", "src/shard/task.rs", "a_panic_ends_its_task_and_no_other"),
    ("hub_fan_out_backlog", "src/hub/tests/limits.rs", "a_message_is_timed_until_the_last_who_reads_has_it"),
    ("hub_written_bytes_total", "tests/it/journey/shared_calls.rs", "hub_publish_to_write_seconds_count"),
    ("hub_publish_to_write_seconds", "tests/it/journey/shared_calls.rs", "hub_publish_to_write_seconds_count"),
    ("hub_events_total result=delivered", "tests/it/journey/hub_events.rs", "a_service_is_told_who_comes_and_goes"),
    ("hub_events_total result=refused", "tests/it/journey/hub_events.rs", "past_the_bound_the_oldest_go"),
    ("hub_events_total result=dropped", "tests/it/journey/hub_events.rs", "past_the_bound_the_oldest_go"),
    ("hub_events_waiting", "tests/it/journey/hub_events.rs", "past_the_bound_the_oldest_go"),
    ("tunnels_open", "tests/it/journey/tunnels.rs", "\"shardgate_tunnels_open\") == count"),
    ("tunnels_ended_total reason=broken", "tests/it/journey/tunnels.rs", "tunnels_are_counted_by_how_they_end"),
    ("tunnels_ended_total reason=closed", "tests/it/journey/tunnels.rs", "tunnels_are_counted_by_how_they_end"),
    ("tunnels_ended_total reason=idle", "tests/it/journey/tunnels.rs", "tunnels_are_counted_by_how_they_end"),
    ("tunnels_ended_total reason=revoked", "tests/it/accounts/walk.rs", "websockets_are_told_that_their_session"),
    ("tunnels_ended_total reason=kicked", "tests/it/sessions/mod.rs", "a_kick_closes_what_lasts_on_every_instance"),
    ("tunnels_ended_total reason=draining", "src/exchange/open_tunnel.rs", "each_end_is_counted_and_logged_once"),
    ("tunnels_ended_total reason=cut", "src/exchange/open_tunnel.rs", "each_end_is_counted_and_logged_once"),
    ("tunnel_lifetime_seconds", "tests/it/journey/tunnels.rs", "tunnels_are_counted_by_how_they_end"),
    ("tunnel_received_bytes_total", "tests/it/journey/tunnels.rs", "tunnels_are_counted_by_how_they_end"),
    ("tunnel_sent_bytes_total", "tests/it/journey/tunnels.rs", "tunnels_are_counted_by_how_they_end"),
    ("spliced_bytes_total", "tests/it/journey/large.rs", "a_hundred_mebibytes_go_both_ways_unseen"),
    ("mesh_dropped_total", "src/bus/tests.rs", "under_a_flood_of_both_lanes_control_is_whole"),
    ("mesh_spilled_total", "src/bus/tests.rs", "every_letter_arrives_once_and_in_order"),
    ("limit_held_total", "tests/it/journey/rate_limits.rs", "a_burst_from_everywhere_at_once"),
    ("limit_shared_total", "tests/it/journey/rate_limits.rs", "a_flood_of_addresses_stays_within_its_bound"),
    ("limit_shards_alone", "tests/it/journey/rate_limits.rs", "instances_count_together_in_redis_and_alone"),
    ("key_fetches_total result=good", "tests/it/journey/tokens.rs", "another_issuers_keys_are_fetched_and_followed"),
    ("discovery_changes_total", "tests/it/process/followed.rs", "shardgate_discovery_changes_total"),
    ("discovery_age_seconds", "tests/it/process/followed.rs", "of_name(\"age_seconds\")) >="),
    ("discovery_failures_total", "tests/it/process/followed.rs", "of_name(\"failures_total\")) >="),
    ("revocation_log_losses_total", "tests/it/sessions/mod.rs", "revocation_log_losses_total"),
    ("rejects_total code=upgrade_required", "tests/it/hub/opening.rs", "what_is_no_handshake_is_refused"),
    ("sockets_open", "tests/it/hub/counted.rs", "what_is_there_is_counted_where_it_is"),
    ("sockets_closed_total reason=normal", "tests/it/hub/bounds.rs", "(\"normal\", 3)"),
    ("sockets_closed_total reason=protocol_error", "tests/it/hub/bounds.rs", "(\"protocol_error\", 5)"),
    ("sockets_closed_total reason=unsupported", "tests/it/hub/bounds.rs", "(\"unsupported\", 1)"),
    ("sockets_closed_total reason=invalid_text", "tests/it/hub/bounds.rs", "(\"invalid_text\", 1)"),
    ("sockets_closed_total reason=too_big", "tests/it/hub/bounds.rs", "(\"too_big\", 1)"),
    ("sockets_closed_total reason=policy_violation", "tests/it/hub/bounds.rs", "\"policy_violation\", 4"),
    ("sockets_closed_total reason=no_pong", "tests/it/hub/bounds.rs", "\"no_pong\", 2"),
    ("sockets_closed_total reason=token_expired", "tests/it/hub/bounds.rs", "\"token_expired\", 2"),
    ("sockets_closed_total reason=unauthenticated", "tests/it/hub/opening.rs", "\"unauthenticated\", 1"),
    ("sockets_closed_total reason=too_many_connections", "tests/it/hub/opening.rs", "\"too_many_connections\", 12"),
    ("sockets_closed_total reason=slow_consumer", "tests/it/hub/slow.rs", "\"slow_consumer\", 1"),
    ("sockets_closed_total reason=revoked", "tests/it/hub/ends.rs", "\"revoked\", 5"),
    ("sockets_closed_total reason=restart", "tests/it/hub/ends.rs", "some have been sent away"),
    ("sockets_closed_total reason=try_later", "src/hub/tests/points.rs", "Some(Close::TryLater)"),
    ("hub_users", "tests/it/hub/counted.rs", "what_is_there_is_counted_where_it_is"),
    ("hub_rooms", "tests/it/hub/counted.rs", "what_is_there_is_counted_where_it_is"),
    ("hub_rooms_at_home", "tests/it/hub/counted.rs", "what_is_there_is_counted_where_it_is"),
    ("hub_history_bytes", "tests/it/hub/counted.rs", "what_is_there_is_counted_where_it_is"),
    ("hub_deliveries_total", "tests/it/hub/counted.rs", "what_is_there_is_counted_where_it_is"),
    ("hub_outbox_bytes", "tests/it/hub/slow.rs", "all_outboxes_together_are_bounded"),
    ("hub_dropped_total", "tests/it/hub/slow.rs", "a_room_may_drop_its_oldest_messages"),
    ("hub_gaps_pulled_total", "src/hub/tests/points.rs", "counts.pulls > 0"),
    ("hub_discontinuities_total", "src/hub/tests/points.rs", "counts.discontinuities == 1"),
    ("hub_bus_publishes_total", "src/hub/tests/bus.rs", "what_the_bus_does_is_counted"),
    ("hub_bus_deliveries_total", "src/hub/tests/bus.rs", "what_the_bus_does_is_counted"),
    ("hub_bus_repaired_total", "src/hub/tests/bus.rs", "what_the_bus_does_is_counted"),
    ("hub_bus_losses_total reason=window", "src/hub/tests/bus.rs", "what_the_bus_does_is_counted"),
    ("hub_bus_losses_total reason=epoch", "tests/it/hub/instances/failover.rs", "hub_bus_losses_total"),
    ("hub_bus_refused_total reason=away", "tests/it/hub/instances/faults.rs", "hub_bus_refused_total"),
    ("hub_bus_refused_total reason=full", "src/hub/tests/bus.rs", "what_the_bus_does_is_counted"),
    ("hub_bus_up", "tests/it/hub/instances/faults.rs", "shardgate_hub_bus_up"),
    ("hub_bus_refusals_total", "tests/it/hub/instances/refusing.rs", "shardgate_hub_bus_refusals_total"),
    ("hub_bus_round_trip_seconds", "tests/it/hub/instances/faults.rs", "hub_bus_round_trip_seconds_count"),
    ("clickhouse_rows_total outcome=sent", "tests/it/process/clickhouse.rs", "metrics.value(SENT)"),
    (
        "clickhouse_rows_total outcome=refused",
        "src/sinks/clickhouse/sink/tests.rs",
        "a_row_that_is_refused_holds_nothing",
    ),
    ("clickhouse_rows_total outcome=dropped", "src/sinks/clickhouse/sink/tests.rs", "past_the_bounds_rows_are_dropped"),
    ("clickhouse_rows_total outcome=cut", "src/sinks/clickhouse/sink/tests.rs", "at_the_end_what_is_not_sent_is_kept"),
    ("clickhouse_batches_total", "src/sinks/clickhouse/sink/tests.rs", "world.counters().batches, 2"),
    ("clickhouse_requests_total result=good", "src/sinks/clickhouse/sink/tests.rs", "good > 5 && rejected > 5"),
    ("clickhouse_requests_total result=rejected", "src/sinks/clickhouse/sink/tests.rs", "good > 5 && rejected > 5"),
    ("clickhouse_requests_total result=failed", "tests/it/process/clickhouse.rs", "clickhouse_requests_total{result="),
    ("clickhouse_memory_bytes", "tests/it/process/clickhouse.rs", "(\"shardgate_clickhouse_memory_bytes\") > 1000"),
    ("clickhouse_spill_bytes", "tests/it/process/clickhouse.rs", "(\"shardgate_clickhouse_spill_bytes\") > 0"),
    ("clickhouse_spill_damaged_total", "tests/it/process/clickhouse.rs", "clickhouse_spill_damaged_total"),
    ("clickhouse_spill_errors_total", "src/sinks/clickhouse/sink/tests.rs", "counters.spill_errors > 0"),
    ("clickhouse_oldest_row_age_seconds", "src/sinks/clickhouse/sink/tests.rs", "contains(&counters.oldest_age)"),
    ("connections_by_protocol protocol=tunnel", "tests/it/process/metrics.rs", "\"tunnel\", 1"),
    ("connections_by_protocol protocol=stream", "tests/it/process/metrics.rs", "\"stream\", 1"),
    ("streams_open", "tests/it/process/metrics.rs", "shardgate_streams_open"),
    ("stream_lifetime_seconds", "tests/it/process/metrics.rs", "stream_lifetime_seconds_count"),
    ("connections_by_protocol protocol=socket", "tests/it/process/metrics.rs", "\"socket\", 1"),
    ("instance_out_shards reason=failing", "src/upstream/tests.rs", "Some(InstanceOut::Failing)"),
    ("instance_out_shards reason=held", "src/upstream/tests.rs", "Some(InstanceOut::Held)"),
    ("instance_out_shards reason=untested", "src/upstream/tests.rs", "Some(InstanceOut::Untested)"),
    ("instances_unlisted", "src/server/instances.rs", "(INSTANCES_MAX, 4)"),
    ("store_up store=redis", "tests/it/process/deploy.rs", "RedisServer::start"),
    ("store_up store=clickhouse", "tests/it/process/clickhouse.rs", "shardgate_store_up{store="),
    ("store_up store=postgres", "src/telemetry/dependency.rs", "only_stores_that_there_are_have_series"),
    ("cpu_seconds_total thread=shard", "src/telemetry/usage.rs", "threads_are_known_by"),
    ("cpu_seconds_total thread=control", "src/telemetry/usage.rs", "threads_are_known_by"),
    ("cpu_seconds_total thread=bridge", "src/telemetry/usage.rs", "threads_are_known_by"),
    ("cpu_seconds_total thread=store", "src/telemetry/usage.rs", "threads_are_known_by"),
    ("cpu_seconds_total thread=password", "src/telemetry/usage.rs", "threads_are_known_by"),
    ("cpu_seconds_total thread=access_log", "src/telemetry/usage.rs", "threads_are_known_by"),
    ("cpu_seconds_total thread=clickhouse", "src/telemetry/usage.rs", "threads_are_known_by"),
    ("cpu_seconds_total thread=other", "src/telemetry/usage.rs", "threads_are_known_by"),
    ("account_operations_under_way", "tests/it/sessions/crowd.rs", "account_operations_under_way"),
    ("account_operations_waiting", "tests/it/sessions/crowd.rs", "account_operations_waiting"),
    (
        "admin_changes_total change=eject",
        "tests/it/process/operators.rs",
        "[\"eject\", \"drain\", \"return\"].map(counted)",
    ),
    (
        "admin_changes_total change=drain",
        "tests/it/process/operators.rs",
        "[\"eject\", \"drain\", \"return\"].map(counted)",
    ),
    (
        "admin_changes_total change=return",
        "tests/it/process/operators.rs",
        "[\"eject\", \"drain\", \"return\"].map(counted)",
    ),
    (
        "admin_changes_total change=weight",
        "tests/it/process/operators.rs",
        "shardgate_admin_changes_total{change=\\\"weight\\\"}",
    ),
    (
        "admin_changes_total change=probe",
        "tests/it/process/operators.rs",
        "shardgate_admin_changes_total{change=\\\"probe\\\"}",
    ),
    (
        "admin_changes_total change=log_level",
        "tests/it/process/operators.rs",
        "shardgate_admin_changes_total{change=\\\"log_level\\\"}",
    ),
    (
        "admin_refused_total reason=host",
        "tests/it/process/operators.rs",
        "[\"origin\", \"host\", \"malformed\"].map(refused)",
    ),
    (
        "admin_refused_total reason=origin",
        "tests/it/process/operators.rs",
        "[\"origin\", \"host\", \"malformed\"].map(refused)",
    ),
    (
        "admin_refused_total reason=malformed",
        "tests/it/process/operators.rs",
        "[\"origin\", \"host\", \"malformed\"].map(refused)",
    ),
    (
        "admin_refused_total reason=token_missing",
        "tests/it/process/operators.rs",
        "[\"token_missing\", \"token_wrong\", \"too_many_guesses\"]",
    ),
    (
        "admin_refused_total reason=token_wrong",
        "tests/it/process/operators.rs",
        "[\"token_missing\", \"token_wrong\", \"too_many_guesses\"]",
    ),
    (
        "admin_refused_total reason=too_many_guesses",
        "tests/it/process/operators.rs",
        "[\"token_missing\", \"token_wrong\", \"too_many_guesses\"]",
    ),
    ("admin_refused_total reason=not_configured", "tests/it/process/operators.rs", "refused(\"not_configured\")"),
    ("instances_held", "tests/it/process/operators.rs", "shardgate_instances_held"),
];

/// Labels that tell owners apart, or say what there is to say.
const OWNERS: [&str; 10] = ["", "shard", "route", "upstream", "address", "limit", "name", "version", "driver", "hash"];

/// A row: a metric's name without `shardgate_`, and the value of the label that is not its owner's.
fn row(name: &str, label: Option<(&str, &str)>) -> String {
    let name = name.strip_prefix("shardgate_").expect("all begin so");
    label.map_or_else(|| name.to_owned(), |(label, value)| format!("{name} {label}={value}"))
}

/// All rows, out of the document that is checked against the table.
fn all_rows() -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).expect("it is there");
    let mut rows = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("| `shardgate_")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let name = cells[0].trim_matches('`');
        // `route`; `status`: 1xx, 2xx, …
        let Some((label, values)) = cells[2].split("; ").find_map(|label| label.split_once("`: ")) else {
            rows.insert(row(name, None));
            continue;
        };
        let label = label.trim_start_matches('`');
        let values: Vec<&str> = if label == "code" { Code::NAMES.to_vec() } else { values.split(", ").collect() };
        rows.extend(values.into_iter().map(|value| row(name, Some((label, value)))));
    }
    rows
}

/// The rows that are not nought in a scrape.
fn moved(scrape: &str) -> BTreeSet<String> {
    let kinds: BTreeMap<&str, &str> =
        scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let series = scrape.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let moved = series.filter(|(_, value)| value.parse() != Ok(0.0)).filter_map(|(series, _)| {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let name = match kinds.get(name) {
            Some(_) => name,
            None => name.strip_suffix("_count").filter(|name| kinds.get(name) == Some(&"histogram"))?,
        };
        let mut labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
        let by = labels.find(|(label, _)| !OWNERS.contains(label));
        Some(row(name, by.map(|(label, value)| (label, value.trim_matches('"')))))
    });
    moved.collect()
}

fn serve(conversation: &mut Conversation) -> std::io::Result<()> {
    loop {
        let (_, head) = conversation.read_head()?;
        let path = head.first_line.split(' ').nth(1).unwrap_or_default();
        if let Some(length) = head.field("content-length").filter(|_| path == "/x") {
            conversation.take(length.parse().expect("a number"))?;
        }
        match path {
            "/stream" => {
                conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
                conversation.read_to_end();
                return Ok(());
            }
            "/late" | "/narrow" | "/small" => {
                conversation.read_to_end();
                return Ok(());
            }
            "/closed" => return Ok(()),
            "/malformed" => conversation.send("HTTP/9\r\n\r\n")?,
            "/switch" => conversation.send("HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")?,
            "/302" => conversation.send("HTTP/1.1 302 Found\r\nLocation : /\r\nContent-Length: 0\r\n\r\n")?,
            "/500" => conversation.send("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")?,
            _ => conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?,
        }
    }
}

#[track_caller]
fn ask(gateway: &Gateway, request: impl AsRef<[u8]>) -> Response {
    let mut client = gateway.connect();
    client.send(request);
    client.read_response()
}

#[track_caller]
fn post(gateway: &Gateway, path: &str, kind: &str, body: &str, fields: &str) -> Response {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{fields}");
    ask(gateway, format!("{head}\r\n{body}"))
}

#[track_caller]
pub(crate) fn log_in(gateway: &Gateway) -> Value {
    let body = json!({ "email": EMAIL, "password": PASSWORD }).to_string();
    let answer = post(gateway, "/auth/login", "application/json", &body, "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn refresh(gateway: &Gateway, token: &str) -> Response {
    post(gateway, "/auth/refresh", "application/json", &json!({ "refreshToken": token }).to_string(), "")
}

pub(crate) fn add_ann(gateway: &Gateway) {
    let directory = tempfile::tempdir().expect("a folder");
    let mut command = shardgate(directory.path());
    command.current_dir(gateway.directory()).args(["user", "add", EMAIL, "--role", "user", "--config"]);
    let mut child = command.arg(gateway.config_path()).stdin(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("it is piped").write_all(PASSWORD.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it is ours").success());
}

fn config(backend: &Backend) -> String {
    let (back, away) = (backend.address(), nobody());
    let public = |path: &str, upstream: &str, more: &str| {
        format!("[[routes]]\npath = \"{path}\"\nupstream = \"{upstream}\"\naccess = \"public\"\n{more}\n")
    };
    let probed = |path: &str, instance: SocketAddr| {
        format!(
            "[upstreams.probed-{path}]\ninstances = [\"{instance}\"]\n\
             [upstreams.probed-{path}.health]\npath = \"/{path}\"\ninterval = \"300ms\"\ntimeout = \"200ms\"\n"
        )
    };
    [
        format!(
            "[runtime]\nshards = 1\n[http]\nheader_timeout = \"300ms\"\ntarget_bytes_max = \"512B\"\n\
             [accounts]\npassword_memory = \"64KiB\"\npassword_passes = 1\n[sessions]\nrefresh_grace = \"0s\"\n\
             [trust]\nproxies = [\"127.0.0.1\"]\n{KEYS}\
             [[auth.issuers]]\nissuer = \"away\"\njwks_url = \"http://{away}/keys\"\n\
             [limits.one]\nquota = 1\nwindow = \"1d\"\napplies = \"named\"\n\
             [limits.watch]\nquota = 1\nwindow = \"1d\"\napplies = \"named\"\ndry_run = true\n\
             [limits.wide]\nquota = 100000\nwindow = \"1s\"\napplies = \"named\"\nkeys_max = 8\n\
             [upstreams.back]\ninstances = [\"{back}\"]\nretries_max = 0\noutlier_failures = 0\nresponse_timeout = \"200ms\"\n\
             [upstreams.named]\ninstances = [\"localhost:9\"]\n\
             [upstreams.narrow]\ninstances = [\"{back}\"]\nrequests_max = 1\n\
             [upstreams.away]\ninstances = [\"{away}\"]\nretries_max = 1\noutlier_failures = 2\noutlier_percent_max = 100\npanic_percent = 0\n\
             [[routes]]\npath = \"/me\"\nupstream = \"back\"\n\
             [[routes]]\npath = \"/stream\"\nupstream = \"back\"\n\
             [[routes]]\npath = \"/admin\"\nupstream = \"back\"\nroles = [\"admin\"]\n"
        ),
        format!(
            "[upstreams.broken]\ninstances = [\"{away}\"]\nretries_max = 0\noutlier_failures = 0\n\
             [upstreams.broken.breaker]\nrequests_min = 2\n\
             [upstreams.mended]\ninstances = [\"{back}\"]\nretries_max = 0\noutlier_failures = 0\n\
             [upstreams.mended.breaker]\nrequests_min = 2\nopen_for = \"100ms\"\n"
        ),
        probed("x", backend.address()),
        probed("closed", backend.address()),
        probed("malformed", backend.address()),
        probed("late", backend.address()),
        probed("500", backend.address()),
        probed("away", away),
        public("/*", "back", ""),
        public("/small", "back", "body_bytes_max = \"10B\""),
        public("/narrow", "narrow", ""),
        public("/away", "away", ""),
        public("/broken", "broken", ""),
        public("/mended/*", "mended", "strip_prefix = \"/mended\""),
        public("/one", "back", "limits = [\"one\"]"),
        public("/watch", "back", "limits = [\"watch\"]"),
        public("/wide", "back", "limits = [\"wide\"]"),
    ]
    .concat()
}

/// What is asked, and with which status it is answered.
fn requests() -> Vec<(String, u16)> {
    let get = |path: &str, fields: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let with = |claims: Value| format!("Authorization: Bearer {}\r\n", token(&claims));
    let posted = |kind: &str, body: &str| {
        let length = body.len();
        format!(
            "POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let wrong = json!({ "email": EMAIL, "password": "not that" }).to_string();
    let many = "X: 1\r\n".repeat(150);
    let switch = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    [
        (get("/x", ""), 200),
        (get("/switch", switch), 101),
        (get("/302", ""), 302),
        (get("/500", ""), 500),
        ("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab".to_owned(), 200),
        (get("/closed", ""), 502),
        (get("/malformed", ""), 502),
        (get("/late", ""), 504),
        (get("/late", "X-Request-Timeout-Ms: 50\r\n"), 504),
        (get("/x", "X-Request-Timeout-Ms: soon\r\n"), 200),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        (posted("application/json", "{"), 400),
        (posted("text/plain", "{}"), 415),
        (posted("application/json", "{}"), 422),
        (posted("application/json", &wrong), 401),
        (get("/me", ""), 401),
        (get("/me", &with(json!({}))), 200),
        (get("/me", &with(json!({ "aud": "others" }))), 401),
        (get("/me", &with(json!({ "exp": unix_now() - 60 }))), 401),
        (get("/me", &with(json!({ "iss": "away" }))), 503),
        (get("/admin", &with(json!({}))), 403),
        (get("/metrics", ""), 404),
        ("DELETE /auth/login HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405),
        ("GET /x HTT".to_owned(), 408),
        ("POST /small HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n".to_owned(), 413),
        (get(&format!("/{}", "x".repeat(600)), ""), 414),
        (get("/x", "Expect: the unexpected\r\n"), 417),
        (get("/one", ""), 200),
        (get("/one", ""), 429),
        (get("/watch", ""), 200),
        (get("/watch", ""), 200),
        (get("/x", &many), 431),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 501),
        (get("/away", ""), 502),
        (get("/away", ""), 503),
        (get("/broken", ""), 502),
        (get("/broken", ""), 502),
        (get("/broken", ""), 503),
        (get("/mended/closed", ""), 502),
        (get("/mended/closed", ""), 502),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n".to_owned(), 505),
    ]
    .into()
}

fn get_mended() -> &'static str {
    "GET /mended/x HTTP/1.1\r\nHost: a\r\n\r\n"
}

#[test]
fn every_row_moves() {
    let backend = Backend::start(serve);
    let mut gateway = Gateway::start(&config(&backend));
    add_ann(&gateway);
    for (request, status) in requests() {
        assert_eq!(ask(&gateway, &request).status, status, "{request}");
    }
    until(SOON, "the circuit tries", || (ask(&gateway, get_mended()).status == 200).then_some(()));
    for _ in 0..8 {
        assert_eq!(ask(&gateway, get_mended()).status, 200);
    }
    // More addresses than there are places, each of which soon owes nothing.
    for n in 0..64 {
        ask(&gateway, format!("GET /wide HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.{n}\r\n\r\n"));
    }
    // Two requests over one connection, to the service too.
    let mut kept = gateway.connect();
    assert_eq!([kept.get("/x").status, kept.get("/x").status, kept.get("/x").status], [200; 3]);

    // One place, which one takes that is not answered, and who leaves in the end.
    let mut holds = gateway.connect();
    holds.send("GET /narrow HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.metrics_until("it is under way", |metrics| {
        metrics.value("shardgate_upstream_requests_in_flight{upstream=\"narrow\"}") == 1
    });
    assert_eq!(ask(&gateway, "GET /narrow HTTP/1.1\r\nHost: a\r\n\r\n").status, 503);
    drop(holds);
    let mut uploads = gateway.connect();
    uploads.send("POST /small HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");

    // Sessions: one that is renewed twice with the same token, one that is logged out under a stream.
    let session = log_in(&gateway);
    let token = session["refreshToken"].as_str().expect("a token");
    assert_eq!([refresh(&gateway, token).status, refresh(&gateway, token).status], [200, 401]);
    assert_eq!(refresh(&gateway, token).json()["code"], "refresh_invalid");
    let session = log_in(&gateway);
    let bearer = format!("Authorization: Bearer {}\r\n", session["accessToken"].as_str().expect("a token"));
    let mut stream: Client = gateway.connect();
    stream.send(format!("GET /stream HTTP/1.1\r\nHost: a\r\n{bearer}\r\n"));
    stream.read_until("first");
    assert_eq!(kept.get("/x").status, 200);
    gateway.metrics_until("all of it is under way", |metrics| {
        metrics.value("shardgate_upstream_connections_idle{upstream=\"back\"}") > 0
            && metrics.value("shardgate_upstream_uploads_in_flight{upstream=\"back\"}") == 1
            && metrics.value("shardgate_rejects_total{code=\"client_closed\"}") == 1
    });
    let mut rows = moved(&gateway.ask_admin("/metrics").text());
    assert_eq!(post(&gateway, "/auth/logout", "application/json", "", &bearer).status, 204);
    stream.expect_end();
    assert_eq!(ask(&gateway, format!("GET /me HTTP/1.1\r\nHost: a\r\n{bearer}\r\n")).status, 401);

    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, SOON);
    gateway.expect_error("the configuration is refused");
    gateway.rewrite_config("[no such section]\n");
    gateway.signal(Signal::HUP);
    gateway.log_until("the configuration is refused", SOON);
    rows.extend(moved(&gateway.ask_admin("/metrics").text()));

    let all = all_rows();
    let named: BTreeSet<String> = ELSEWHERE.iter().map(|(row, ..)| (*row).to_owned()).collect();
    let left: Vec<&String> = all.iter().filter(|row| !rows.contains(*row) && !named.contains(*row)).collect();
    assert!(left.is_empty(), "nothing moves these rows: {left:#?}");
    let unknown: Vec<&String> = named.iter().filter(|row| !all.contains(*row)).collect();
    assert!(unknown.is_empty(), "there are no such rows: {unknown:?}");
    for (row, file, test) in ELSEWHERE {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_default();
        assert!(text.contains(test), "{row}: {file} has no {test}");
    }
}

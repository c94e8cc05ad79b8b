//! Numbers and words as people read them, and the whole as plain text.

use std::fmt::Write as _;

use crate::admin::state::{InstanceState, State};

/// A text from outside as a terminal may have it: without control characters, and no longer than so many characters.
pub(super) fn harmless(text: &str, length_max: usize) -> String {
    let is_harmless = |character: &char| {
        !character.is_control()
            && !matches!(character, '\u{61c}' | '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}')
    };
    let mut characters = text.chars().filter(is_harmless);
    let mut cut: String = characters.by_ref().take(length_max).collect();
    if characters.next().is_some() {
        cut.pop();
        cut.push('…');
    }
    cut
}

pub(super) fn rate(value: Option<f64>) -> String {
    match value.filter(|value| value.is_finite()) {
        None => "-".to_owned(),
        Some(value) if value >= 10_000.0 => format!("{:.1}k", value / 1000.0),
        Some(value) if value >= 10.0 || value == 0.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.1}"),
    }
}

pub(super) fn time(ms: Option<f64>) -> String {
    match ms.filter(|ms| ms.is_finite()) {
        None => "-".to_owned(),
        Some(ms) if ms < 1.0 => format!("{:.0}µs", ms * 1000.0),
        Some(ms) if ms < 10.0 => format!("{ms:.1}ms"),
        Some(ms) if ms < 1000.0 => format!("{ms:.0}ms"),
        Some(ms) => format!("{:.1}s", ms / 1000.0),
    }
}

pub(super) fn percent(share: Option<f64>) -> String {
    share.filter(|share| share.is_finite()).map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0))
}

pub(super) fn bytes(value: Option<u64>) -> String {
    let Some(value) = value else { return "-".to_owned() };
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let at = (value.max(1).ilog2() / 10).min(4);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let amount = value as f64 / f64::from(2_u32).powi(10 * i32::try_from(at).unwrap_or(0));
    format!("{amount:.0} {}", units[at as usize])
}

pub(super) fn lasting(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match () {
        () if days > 0 => format!("{days}d {hours}h"),
        () if hours > 0 => format!("{hours}h {minutes}m"),
        () if minutes > 0 => format!("{minutes}m {}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

/// How an instance is, with what an operator has done with it.
pub(super) fn standing(instance: &InstanceState) -> String {
    let mut said = match &instance.held {
        Some(held) => format!("{} by {}; {}", held.state, held.by, instance.status),
        None => instance.status.clone(),
    };
    if let Some(why) = &instance.why {
        let _ = write!(said, " ({why})");
    }
    if instance.ejected_by_shards > 0 {
        let _ = write!(said, " on {}", instance.ejected_by_shards);
    }
    said
}

/// The lines above the tables.
pub(super) fn head(state: &State) -> [String; 2] {
    let (process, requests) = (&state.process, &state.requests);
    let refused = match (&state.configuration.refusal, &state.certificates_refusal) {
        (Some(_), _) => ", a newer configuration is refused",
        (None, Some(_)) => ", newer certificates are refused",
        (None, None) => "",
    };
    let word = if process.draining { "draining" } else { &process.status };
    let first = format!(
        "{word}, up {}, configuration {}{refused}; {} resident, {} cores, {} connections, {} sockets",
        lasting(process.uptime_seconds),
        state.configuration.generation,
        bytes(process.rss_bytes),
        process.cpu_cores.map_or_else(|| "-".to_owned(), |cores| format!("{cores:.2}")),
        state.shards.iter().fold(0_i64, |sum, shard| sum.saturating_add(shard.connections)),
        state.hub.sockets,
    );
    let second = format!(
        "{} requests/s, {} failing/s, {} under way; p50 {}, p99 {}, p99.9 {}",
        rate(requests.per_second),
        rate(state.history.errors.last().copied().flatten()),
        requests.in_flight,
        time(requests.p50_ms),
        time(requests.p99_ms),
        time(requests.p999_ms),
    );
    [harmless(&first, 400), harmless(&second, 400)]
}

/// A table's head and rows, as texts.
pub(super) type Rows = (Vec<&'static str>, Vec<Vec<String>>);

pub(super) fn upstreams(state: &State) -> Rows {
    let mut rows = Vec::new();
    for upstream in &state.upstreams {
        let error = upstream.error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
        let circuit = match &*upstream.circuit {
            "" | "closed" => String::new(),
            circuit => format!(", circuit {} on {}", circuit.replace('_', " "), upstream.circuit_shards),
        };
        rows.push(vec![
            upstream.name.clone(),
            format!("{}{error}{circuit}", upstream.status),
            rate(upstream.per_second),
            rate(upstream.failures_per_second),
            upstream.in_flight.to_string(),
            time(upstream.p50_ms),
            time(upstream.p99_ms),
        ]);
        rows.extend(upstream.instances.iter().map(|instance| {
            vec![
                format!("  {}", instance.instance),
                standing(instance),
                String::new(),
                String::new(),
                instance.in_flight.to_string(),
                time(instance.latency_ms),
                String::new(),
            ]
        }));
    }
    (vec!["UPSTREAM", "STATUS", "REQ/S", "FAIL/S", "UNDER WAY", "P50", "P99"], rows)
}

pub(super) fn shards(state: &State) -> Rows {
    let row = |shard: &crate::admin::state::ShardState| {
        vec![
            if shard.answers { shard.shard.to_string() } else { format!("{} silent", shard.shard) },
            percent(shard.busy),
            time(shard.lag_ms),
            rate(shard.requests_per_second),
            shard.in_flight.to_string(),
            shard.connections.to_string(),
            shard.sockets.to_string(),
        ]
    };
    (
        vec!["SHARD", "BUSY", "LAG", "REQ/S", "UNDER WAY", "CONNECTIONS", "SOCKETS"],
        state.shards.iter().map(row).collect(),
    )
}

pub(super) fn routes(state: &State) -> Rows {
    let row = |route: &crate::admin::state::RouteState| {
        vec![
            route.name.clone(),
            route.total.to_string(),
            rate(route.per_second),
            route.errors.to_string(),
            time(route.p50_ms),
            time(route.p99_ms),
            time(route.p999_ms),
        ]
    };
    (vec!["ROUTE", "REQUESTS", "REQ/S", "ERRORS", "P50", "P99", "P99.9"], state.routes.iter().map(row).collect())
}

/// So wide is a column of plain text at most.
const COLUMN_MAX: usize = 60;

/// All of it, for a file or a pipe.
pub(super) fn plain(state: &State) -> String {
    let mut out = String::new();
    for line in head(state) {
        out.push_str(&line);
        out.push('\n');
    }
    for (head, rows) in [upstreams(state), shards(state), routes(state)] {
        let head: Vec<_> = head.into_iter().map(str::to_owned).collect();
        let rows: Vec<Vec<_>> = std::iter::once(head)
            .chain(rows)
            .map(|row| row.iter().map(|cell| harmless(cell, COLUMN_MAX)).collect())
            .collect();
        let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
        let widths: Vec<_> = (0..rows[0].len()).map(|at| width(at).unwrap_or(0)).collect();
        out.push('\n');
        for row in &rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| {
                // Words stand left, numbers right.
                if at == 0 || at == 1 && rows[0][1] == "STATUS" {
                    format!("{cell:width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_short() {
        let rates = [None, Some(0.0), Some(0.25), Some(12.5), Some(9_999.0), Some(123_456.0), Some(f64::NAN)].map(rate);
        expect!["- 0 0.2 12 9999 123.5k -"].assert_eq(&rates.join(" "));
        let times =
            [None, Some(0.0), Some(0.05), Some(1.26), Some(250.0), Some(60_000.0), Some(f64::INFINITY)].map(time);
        expect!["- 0µs 50µs 1.3ms 250ms 60.0s -"].assert_eq(&times.join(" "));
        let sizes = [None, Some(0), Some(1023), Some(5 << 20), Some(u64::MAX)].map(bytes);
        expect!["-, 0 B, 1023 B, 5 MiB, 16777216 TiB"].assert_eq(&sizes.join(", "));
        expect!["0s, 1m 1s, 1h 1m, 1d 1h, 213503982334601d 7h"]
            .assert_eq(&[0, 61, 3_700, 90_000, u64::MAX].map(lasting).join(", "));
    }

    #[test]
    fn nothing_from_outside_steers_a_terminal() {
        assert_eq!(harmless("a\u{1b}[2J\r\nb\u{202e}c\u{9b}d\u{61c}", 100), "a[2Jbcd");
        assert_eq!((harmless("abcd", 4), harmless("abcde", 4)), ("abcd".to_owned(), "abc…".to_owned()));
        assert_eq!(harmless("abc", 0), "…");
    }

    #[test]
    fn the_whole_is_a_few_tables() {
        expect![[r"
            degraded, up 1h 2m, configuration 0; 42 MiB resident, 0.72 cores, 24 connections, 7 sockets
            800 requests/s, 0.3 failing/s, 3 under way; p50 1.3ms, p99 31ms, p99.9 180ms

            UPSTREAM         STATUS              REQ/S  FAIL/S  UNDER WAY    P50   P99
            shop             degraded (refused)    812     0.3          3  1.3ms  31ms
              10.0.0.5:9000  up                                         1  1.5ms
              10.0.0.6:9000  drained by ann; up                         1  1.5ms
              10.0.0.7:9000  down (refused)                             1  1.5ms

            SHARD     BUSY    LAG  REQ/S  UNDER WAY  CONNECTIONS  SOCKETS
            0          50%  400µs    400          0           12        0
            1 silent   25%  400µs    400          0           12        0

            ROUTE  REQUESTS  REQ/S  ERRORS  P50    P99  P99.9
            shop         90    1.0       1    -  5.0ms      -
            pay          10    1.0       3    -   90ms      -
            new           5    1.0       0    -      -      -
        "]]
        .assert_eq(&plain(&super::super::view::tests::example()));
    }

    #[test]
    fn a_circuit_is_told_while_it_is_not_closed() {
        let mut state = super::super::view::tests::example();
        let mut status = |circuit: &str| {
            (state.upstreams[0].circuit, state.upstreams[0].circuit_shards) = (circuit.to_owned(), 3);
            upstreams(&state).1[0][1].clone()
        };
        assert_eq!(status("closed"), "degraded (refused)");
        assert_eq!(status("open"), "degraded (refused), circuit open on 3");
        assert_eq!(status("half_open"), "degraded (refused), circuit half open on 3");
    }

    proptest! {
        #[test]
        fn any_json_is_shown_or_refused(json in ".{0,200}", number in any::<f64>(), count in any::<i64>(), text in any::<String>()) {
            let _ = serde_json::from_str::<State>(&json).map(|state| plain(&state));
            let mut state = super::super::view::tests::example();
            state.requests.per_second = Some(number);
            state.requests.p50_ms = Some(number);
            state.shards[0].busy = Some(number);
            state.shards.iter_mut().for_each(|shard| shard.connections = count);
            let upstream = &mut state.upstreams[0];
            for part in [&mut upstream.name, &mut upstream.circuit, &mut upstream.instances[0].instance] {
                part.clone_from(&text);
            }
            (upstream.error, upstream.instances[2].why) = (Some(text.clone()), Some(text.clone()));
            state.routes[0].name.clone_from(&text);
            state.process.status = text;
            let steers = plain(&state).chars().any(|character| character.is_control() && character != '\n');
            prop_assert!(!steers);
        }
    }
}

//! What reports say, as text and as JSON, and which runs have failed.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use expect_test::expect;

use super::*;
use crate::http::{Failure, Outcome, Requests};
use crate::pace::Arrival;
use crate::process::Memory;
use crate::scenario::Server;
use crate::tally::Held;

fn job(plan: Plan) -> Job {
    let requests = Requests {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        tls: None,
        resumes: false,
        closes: false,
        heads: Vec::new(),
        body: Vec::new(),
        body_bytes: 0,
        to_head: false,
    };
    Job {
        plan,
        requests: Arc::new(requests),
        connections: 1,
        threads: 1,
        warm_up_ns: 0,
        duration_ns: 0,
        timeout_ns: 0,
        expected: Vec::new(),
        server_pid: None,
        tokens_out: None,
        records: false,
    }
}

fn measured(tally: Tally) -> Measured {
    let memory = Memory { rss_kib: 9000, pss_kib: 8000 };
    let server = Server { cpu_us: 500_000, memory, rss_before_kib: 5000, rss_peak_kib: 9500 };
    Measured { tally, seconds: 2.0, own_cpu_ns: 1_000_000_000, server: Some(server) }
}

/// An open run that did not keep up.
fn behind() -> Report {
    let mut tally = Tally::new();
    for nth in 1..=1000 {
        tally.count(Outcome::Answered { status: 200 }, nth * 1000, &[]);
    }
    tally.count(Outcome::Answered { status: 503 }, 5, &[]);
    tally.count(Outcome::Failed(Failure::Timeout), 5, &[]);
    tally.answered_meanwhile = 1001;
    tally.backlog = 7;
    tally.thread_cpu_ns = 1_900_000_000;
    tally.lag.record(2_000_000).expect("within bounds");
    let plan = Plan::Open { rate: 505.0, arrival: Arrival::Constant, seed: 1 };
    Report::new(&job(plan), &measured(tally))
}

#[test]
fn a_run_that_fell_behind_warns() {
    let report = behind();
    assert!(report.failed());
    expect![[r"
        seconds                    2.00
        answers_per_s              500.5
        latency_us                 p50 500.2  p90 900.1  p99 990.2  p99.9 999.4  p99.99 1000  max 1000
        unexpected_us              p50 0.06  p90 0.06  p99 0.06  p99.9 0.06  p99.99 0.06  max 0.06
        connects                   0
        intended_per_s             505.0
        backlog                    7
        own_lag_us                 p50 2001  p90 2001  p99 2001  p99.9 2001  p99.99 2001  max 2001
        answers                    1001
        failed                     2
          status 200               1000
          status 503               1
          timeout                  1
        server_cpu_percent         25.00
        server_cpu_us_per_request  499.5
        server_rss_kib             9000
        server_pss_kib             8000
        server_rss_before_kib      5000
        server_rss_peak_kib        9500
        own_cpu_percent            50.00
        own_cpu_us_per_request     999.0
        warning: 7 requests never left: no connection was free. The latencies are of those that did; the rate is over what server, connections or load test can do
        warning: the load test itself sent 1 % of its requests over 1 ms late: high latencies are partly its own
        warning: a thread of the load test used 95 % of a core: it, not the server, may be the limit; try --threads
    "]].assert_eq(&report.table());
}

#[test]
fn json_has_conditions_and_all_figures() {
    let conditions = Conditions {
        command: vec!["shardgate-loadtest".to_owned(), "open".to_owned()],
        date: "2026-01-01T00:00:00Z".to_owned(),
        version: "1.2.3",
        kernel: "6.1".to_owned(),
        cores: 2,
        processor: "any".to_owned(),
    };
    expect![[r#"
        {
          "answers": 1001,
          "answers_per_s": 500.5,
          "backlog": 7,
          "conditions": {
            "command": [
              "shardgate-loadtest",
              "open"
            ],
            "cores": 2,
            "date": "2026-01-01T00:00:00Z",
            "kernel": "6.1",
            "processor": "any",
            "version": "1.2.3"
          },
          "connects": 0,
          "failed": true,
          "failures": {
            "timeout": 1
          },
          "intended_per_s": 505.0,
          "latency_us": {
            "count": 1000,
            "max": 1000.447,
            "mean": 500.504864,
            "p50": 500.223,
            "p90": 900.095,
            "p99": 990.207,
            "p99_9": 999.423,
            "p99_99": 1000.447
          },
          "own_cpu_percent": 50.0,
          "own_cpu_us_per_request": 999.000999000999,
          "own_lag_us": {
            "count": 1,
            "max": 2000.895,
            "mean": 2000.384,
            "p50": 2000.895,
            "p90": 2000.895,
            "p99": 2000.895,
            "p99_9": 2000.895,
            "p99_99": 2000.895
          },
          "seconds": 2.0,
          "server_cpu_percent": 25.0,
          "server_cpu_us_per_request": 499.5004995004995,
          "server_pss_kib": 8000,
          "server_rss_before_kib": 5000,
          "server_rss_kib": 9000,
          "server_rss_peak_kib": 9500,
          "status_classes": {
            "2xx": 1000,
            "5xx": 1
          },
          "statuses": {
            "200": 1000,
            "503": 1
          },
          "unexpected_us": {
            "count": 1,
            "max": 0.063,
            "mean": 0.032,
            "p50": 0.063,
            "p90": 0.063,
            "p99": 0.063,
            "p99_9": 0.063,
            "p99_99": 0.063
          },
          "warnings": [
            "7 requests never left: no connection was free. The latencies are of those that did; the rate is over what server, connections or load test can do",
            "the load test itself sent 1 % of its requests over 1 ms late: high latencies are partly its own",
            "a thread of the load test used 95 % of a core: it, not the server, may be the limit; try --threads"
          ]
        }"#]].assert_eq(&serde_json::to_string_pretty(&behind().json(&conditions)).expect("plain values"));
}

#[test]
fn held_connections_are_weighed() {
    let mut tally = Tally::new();
    tally.count(Outcome::Answered { status: 200 }, 1000, &[]);
    let (before, after) = (Memory { rss_kib: 5000, pss_kib: 4000 }, Memory { rss_kib: 35_000, pss_kib: 33_000 });
    tally.held = Some(Held { connections: 10_000, before, after });
    let report = Report::new(&job(Plan::Idle { hold_ns: 0 }), &measured(tally));
    assert!(!report.failed());
    expect![[r"
        seconds                   2.00
        closed_by_server          0
        connections_held          10000
        rss_before_kib            5000
        rss_held_kib              35000
        rss_bytes_per_connection  3072
        pss_bytes_per_connection  2970
        answers                   1
        failed                    0
          status 200              1
        server_cpu_percent        25.00
        server_rss_kib            9000
        server_pss_kib            8000
        server_rss_before_kib     5000
        server_rss_peak_kib       9500
        own_cpu_percent           50.00
    "]]
    .assert_eq(&report.table());
}

#[test]
fn slow_endings_are_grouped() {
    let mut tally = Tally::new();
    tally.endings = vec![
        (Ending::StillOpen, 30_000_000_000),
        (Ending::Status(408), 10_100_000_000),
        (Ending::Status(408), 10_000_000_000),
        (Ending::Closed(Failure::EofBeforeAnswer), 12_000_000_000),
    ];
    let report = Report::new(&job(Plan::Slow { every_ns: 1, in_body: false }), &measured(tally));
    assert!(!report.failed());
    expect![[r"
        seconds                2.00
        answered 408           2 after 10.0 to 10.1 s, median 10.1 s
        eof_before_answer      1 after 12.0 to 12.0 s, median 12.0 s
        still open             1 after 30.0 to 30.0 s, median 30.0 s
        answers                0
        failed                 0
        server_cpu_percent     25.00
        server_rss_kib         9000
        server_pss_kib         8000
        server_rss_before_kib  5000
        server_rss_peak_kib    9500
        own_cpu_percent        50.00
    "]]
    .assert_eq(&report.table());
}

#[test]
fn a_run_without_events_has_failed() {
    assert!(Report::new(&job(Plan::Events), &measured(Tally::new())).failed());
}

#[test]
fn progress_is_one_line() {
    let before = Tally::new();
    let mut now = before.clone();
    now.answered_meanwhile = 3000;
    now.count(Outcome::Answered { status: 200 }, 250_000, &[]);
    now.count(Outcome::Failed(Failure::Reset), 0, &[]);
    // The histogram keeps three digits and tells the upper end of the bucket.
    assert_eq!(progress(3.0, 1.5, &before, &now), "3 s  2000/s  p99 250.1 us  1 failed");
}

//! The scenarios against the mock hub, over real sockets. Counts, never times.

use clap::Parser;
use serde_json::Value;

use crate::hub::mock;
use crate::options::{Cli, Command};
use crate::report::Conditions;

/// Runs a scenario for a moment; tells its report, or why there is none.
fn run(port: u16, line: &str) -> Result<Value, String> {
    static SECRET_FILE: std::sync::LazyLock<std::path::PathBuf> = std::sync::LazyLock::new(|| {
        let file = std::env::temp_dir().join(format!("shardgate-loadtest-hub-{}", std::process::id()));
        std::fs::write(&file, mock::SECRET).expect("written");
        file
    });
    let line = format!(
        "shardgate-loadtest {line} --url ws://127.0.0.1:{port}/ws --secret {} --warm-up 100ms --quiet --timeout 10s",
        SECRET_FILE.display()
    );
    let Command::Hub(command) = Cli::try_parse_from(line.split(' ')).expect("a valid line").command else {
        panic!("{line} is no scenario of the hub")
    };
    let conditions = Conditions {
        command: Vec::new(),
        date: String::new(),
        version: "",
        kernel: String::new(),
        cores: 0,
        processor: String::new(),
    };
    super::measure(&command).map(|report| report.json(&conditions)).map_err(|error| error.to_string())
}

fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

#[test]
fn idle_sockets_join_and_get_the_large_message() {
    let own = std::process::id();
    let line = format!("hub-idle --from 20 --to 60 --hold 50ms --burst-hold 50ms --threads 2 --server-pid {own}");
    let report = run(mock::hub(0), &line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "sockets"), number(&report, "burst_deliveries")), (60, 60));
    assert_eq!(report["joining_us"]["count"], 60);
    assert!(report["rss_bytes_per_socket"].is_number() && report["after_burst_ratio"].is_number(), "{report:#}");
}

#[test]
fn echoes_come_back_at_the_rate() {
    let report = run(mock::hub(0), "hub-echo --connections 5 --rate 200 --duration 500ms").expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "sent"), number(&report, "deliveries")), (100, 100));
}

#[test]
fn every_member_of_every_room_counts() {
    let line = "hub-fan-out --rooms 3 --members 8 --rate 60 --duration 500ms --threads 2";
    let report = run(mock::hub(0), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "sent"), number(&report, "deliveries"), number(&report, "missing")), (30, 240, 0));
    assert_eq!(report["latency_us"]["count"], 240);
    assert_eq!(report["to_the_last_us"]["count"], 30, "each message has one last member");
}

#[test]
fn who_stops_reading_is_counted_apart() {
    // 48 KiB, 100 times a second: more than kernel and mock hold for one that does not read.
    let line = "hub-slow-readers --members 10 --slow 2 --rate 100 --payload-bytes 48KiB --duration 1500ms";
    let report = run(mock::hub(0), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "before_deliveries"), number(&report, "beside_deliveries")), (150 * 8, 150 * 8));
    let slow = report["slow_ended"].as_object().expect("counts").values().filter_map(Value::as_u64).sum::<u64>();
    assert_eq!(slow, 2, "{report:#}");
}

#[test]
fn a_crowd_leaves_and_others_go_on() {
    let line = "hub-mass-disconnect --connections 100 --others 4 --rate 40 --accepts 20 --duration 1s";
    let report = run(mock::hub(0), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "dropped"), number(&report, "after_deliveries")), (100, 160));
    let new = report["new_joining_us"]["count"].as_u64().expect("a count");
    assert!((36..=40).contains(&new), "{new} of 20 a second in 2 s");
    assert_eq!(number(&report, "attempts"), 104 + new);
}

#[test]
fn a_crowd_comes_back_whoever_is_refused() {
    let line =
        "hub-reconnect-storm --connections 50 --jitter 200ms --others 4 --rate 20 --accepts 0.1 --duration 500ms";
    let report = run(mock::hub(0), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "attempts"), &report["returning_us"]["count"]), (104, &50.into()), "{report:#}");
    // Every 70th is refused: the 70th and no other of the first return's 50, which tries once more.
    let report = run(mock::hub(70), line).expect("it runs");
    assert_eq!(
        (&report["failed"], &report["attempts_failed"]["refused_503"]),
        (&false.into(), &1.into()),
        "{report:#}"
    );
    assert_eq!((number(&report, "attempts"), &report["returning_us"]["count"]), (105, &50.into()), "{report:#}");
    assert!(report["all_back_after_s"].as_f64() > Some(0.5), "it waited half a second at least: {report:#}");
}

#[test]
fn requests_go_on_beside_the_sockets() {
    let line =
        "targets --rooms 2 --members 10 --rate 40 --http-rate 100 --http-connections 4 --duration 500ms --baseline";
    let report = run(mock::hub(0), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "sockets"), number(&report, "deliveries")), (20, 200));
    assert_eq!(report["http_statuses"]["200"], 50);
    assert_eq!(report["http_alone_statuses"]["200"], 50);
}

#[test]
fn a_hub_that_refuses_or_is_not_there_fails_the_run() {
    let refused = run(mock::hub(1), "hub-fan-out --members 3 --duration 100ms");
    assert_eq!(refused, Err("no socket got into its room".to_owned()));
    let unused = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let absent = run(unused.expect("a free port").port(), "hub-fan-out --members 3 --duration 100ms");
    assert_eq!(absent, Err("no socket got into its room".to_owned()));
    // Some are in their rooms and some are not: the run goes on, and has failed.
    let some = run(mock::hub(3), "hub-fan-out --members 3 --rate 10 --duration 300ms").expect("it runs");
    assert_eq!((&some["failed"], number(&some, "not_joined")), (&true.into(), 1), "{some:#}");
}

#[test]
fn a_command_line_says_what_is_wrong_with_it() {
    let refusal = |line: &str| run(1, line).expect_err("refused");
    assert!(refusal("hub-idle --from 5 --to 5").contains("less than"));
    assert!(refusal("hub-fan-out --room a/b").contains("--room"));
    assert!(refusal("hub-fan-out --server-pid 4294967295").contains("no process"));
    assert!(refusal("hub-slow-readers --rooms 2 --slow 3").contains("as many in each"));
    assert!(refusal("hub-fan-out --rooms 1000 --members 1000").contains("500000"));
}
